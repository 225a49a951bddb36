"An ensemble as a file: what it says, what is in it, and what it refuses."
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mammo_nb.core.backends import open_graph
from mammo_nb.core.engines import (export_onnx, largest_difference, load_engine, parity, probe_inputs, probe_pictures)
from mammo_nb.core.ensembles import Ensemble, export_module, rebuild, weights_digest
from mammo_nb.core.graphs import write_mixed
from mammo_nb.core.networks import Mirrored, create_network, save_weights
from mammo_nb.core.providers import LIMITS, build_engines, gate, open_ensemble, process_engine, write_smaller
from mammo_nb.core.sidecars import EngineError, Tensor
from mammo_nb.ich.learning import graphs as ich
from mammo_nb.mammo.learning.lesions import Pointing
from mammo_nb.trauma.learning import graphs as trauma
from mammo_nb.trauma.recipes import Model

SIZE = (64, 48)


def ensemble() -> Ensemble:
    "Two networks that disagree, with answers spread over 0..1; the second pools by maximum, as the winner's did."
    models = [create_network("resnet10t", seed=k, global_pool=pool) for k, pool in enumerate(("avg", "max"))]
    for k, model in enumerate(models):
        nn.init.normal_(model.fc.weight, std=3 / (1 + 3 * k), generator=torch.Generator().manual_seed(k))
        nn.init.constant_(model.fc.bias, -3.)
    return Ensemble(models, **models[0].normalization)


def pictures(n: int) -> np.ndarray:
    "Bright spots of many sizes."
    rng, (y, x) = np.random.default_rng(3), np.mgrid[:SIZE[0], :SIZE[1]]
    spots = [
        255 * np.exp(-((y - rng.uniform(0, SIZE[0]))**2 + (x - rng.uniform(0, SIZE[1]))**2) / w**2)
        for w in np.geomspace(2, 60, n)
    ]
    return np.stack(spots).astype(np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    export_onnx(ensemble(), folder / "ensemble.onnx", SIZE, {"threshold": 0.31})
    return folder / "ensemble.onnx"


def test_probabilities_are_those_of_each_network_fed_by_hand():
    e, images = ensemble(), pictures(4)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = (torch.from_numpy(images).float().div(255)[:, None].repeat(1, 3, 1, 1) - mean) / std
    with torch.no_grad():
        expected = torch.cat([m.eval()(x).sigmoid() for m in e.models], 1).numpy()
    got = load_engine(e)(images)
    assert got.shape == (4, 2) and got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert np.abs(got[:, 0] - got[:, 1]).max() > 0.01   # the order of the networks shows


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_file_says_what_torch_says_for_any_number_of_images(exported, n):
    images, torch_engine, file = pictures(n), load_engine(ensemble()), load_engine(exported)
    assert file.name == "onnxruntime" and file.size == SIZE and torch_engine.name == "torch"
    assert parity(torch_engine, file, images) <= 1e-4


@pytest.mark.skipif(not find_spec("openvino"), reason="no openvino")
def test_another_back_end_says_it_too(exported):
    file = load_engine(exported, backend="openvino", threads=1)
    assert file.name == "openvino" and file.size == SIZE and parity(load_engine(exported), file, pictures(5)) <= 1e-4


def test_a_process_has_one_engine(exported):
    a, b = process_engine(str(exported)), process_engine(str(exported))
    assert a.compute is b.compute and parity(a, load_engine(exported), pictures(3)) <= 1e-5


def test_the_answers_that_are_compared_are_spread_out():
    assert np.ptp(load_engine(ensemble())(pictures(7))) > 0.3   # else parity would compare 0.5 with 0.5


def test_one_thread_and_one_image_at_a_time_change_nothing_that_matters(exported):
    images, file = pictures(5), load_engine(exported)
    alone = np.concatenate([load_engine(exported, threads=1)(i[None]) for i in images])
    np.testing.assert_allclose(alone, file(images), atol=1e-5)
    assert np.array_equal(file(images), file(images))


def test_networks_left_in_training_mode_are_exported_for_evaluation(tmp_path, exported):
    e = ensemble()
    e.train()
    sidecar = export_onnx(e, tmp_path / "e.onnx", SIZE, {})
    assert sidecar["sha256"] == json.loads(exported.with_suffix(".json").read_text())["sha256"]


def test_another_process_in_another_folder_writes_the_same_bytes_without_paths(exported, tmp_path):
    code = (f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_engines as t, pathlib; "
        f"t.export_onnx(t.ensemble(), pathlib.Path('e.onnx'), t.SIZE, {{}})")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "e.onnx").read_bytes() == exported.read_bytes()
    graph = onnx.load(tmp_path / "e.onnx")
    for tensor in graph.graph.initializer:
        tensor.ClearField("raw_data")   # three bytes of a weight may spell anything
    for trace in (".py", "site-packages", "/", "\\"):
        assert trace.encode() not in graph.SerializeToString()
    assert sorted(os.listdir(tmp_path)) == ["e.json", "e.onnx"]   # no external data, nothing half-written


def test_the_json_beside_the_file(exported):
    sidecar = json.loads(exported.with_suffix(".json").read_text())
    assert sidecar["threshold"] == 0.31 and sidecar["size"] == list(SIZE) and sidecar["folds"] == 2
    assert sidecar["precision"] == "float32"
    assert sidecar["inputs"] == [{"name": "images", "dtype": "uint8", "shape": ["n", 1, *SIZE], "layout": "NCHW"}]
    assert sidecar["outputs"] == [{"name": "probabilities", "dtype": "float32", "shape": ["n", 2], "layout": "NF",
                                   "activation": "sigmoid"}]
    assert sidecar["preparation"]["images"]["scale"] == 255 and sidecar["preparation"]["images"]["channels"] == 3
    np.testing.assert_allclose(sidecar["preparation"]["images"]["mean"], [.485, .456, .406], rtol=1e-6)
    np.testing.assert_array_equal(sidecar["probe"],
                                  load_engine(ensemble())(probe_pictures(SIZE)).astype(float).round(6))
    assert sidecar["weights_sha256"] == weights_digest(
        ensemble()) and sidecar["versions"]["torch"] == torch.__version__.split("+")[0]
    assert load_engine(exported).metadata == sidecar


def test_the_digest_of_the_weights_sees_one_changed_number():
    a, b = ensemble(), ensemble()
    assert weights_digest(a) == weights_digest(b)
    with torch.no_grad():
        b.models[1].fc.bias += 1e-6
    assert weights_digest(a) != weights_digest(b)


@pytest.mark.parametrize("wrong, says", [
    (lambda x: x.astype(np.float32) / 255, "float32 (2, 1, 64, 48)"), (lambda x: x.tolist(), "list"),
    (lambda x: x[0], "uint8 (64, 48)"), (lambda x: x.transpose(0, 2, 1), "uint8 (2, 1, 48, 64)"),
    (lambda x: x[:, None].repeat(3, 1), "uint8 (2, 3, 64, 48)"), (lambda x: x[:0], "uint8 (0, 1, 64, 48)")])
def test_other_input_is_refused_with_what_would_fit(exported, wrong, says):
    with pytest.raises(EngineError) as e:
        load_engine(exported)(wrong(pictures(2)))
    assert "takes images: uint8 (n, 1, 64, 48) NCHW" in str(e.value) and f"got {says}." in str(e.value)


def test_the_axis_of_one_channel_may_be_left_out(exported):
    x, engine = pictures(3), load_engine(exported)
    assert np.array_equal(engine(x), engine(x[:, None])) and np.array_equal(engine(x), engine({"images": x}))


def test_files_that_do_not_belong_together_or_cannot_be_run(exported, tmp_path):
    with pytest.raises(EngineError, match="not there"):
        load_engine(tmp_path / "none.onnx")
    path, sidecar = tmp_path / "e.onnx", json.loads(exported.with_suffix(".json").read_text())
    path.write_bytes(exported.read_bytes())
    with pytest.raises(EngineError, match="e.json is not there"):
        load_engine(path)
    (tmp_path / "e.json").write_text(json.dumps(sidecar))
    path.write_bytes(exported.read_bytes()[:-7])
    with pytest.raises(EngineError, match="checksum"):
        load_engine(path)
    path.write_bytes(b"not a graph")
    (tmp_path / "e.json").write_text(json.dumps({**sidecar, "sha256": hashlib.sha256(b"not a graph").hexdigest()}))
    with pytest.raises(EngineError, match="cannot be run"):
        load_engine(path)


def test_what_cannot_be_asked_for(exported, tmp_path):
    with pytest.raises(EngineError, match="'onnxruntime'"):
        load_engine(exported, backend="torch")
    with pytest.raises(EngineError, match="'torch'"):
        load_engine(ensemble(), backend="onnxruntime")
    with pytest.raises(EngineError, match="at least one"):
        Ensemble([], 0.5, 0.5)
    with pytest.raises(EngineError, match="size"):
        export_onnx(ensemble(), tmp_path / "e.onnx", SIZE, {"size": 3})
    assert not list(tmp_path.iterdir())


class Detector(nn.Module):
    "Not a classifier: colour in, as many boxes as there are places."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 5, 1))

    def forward(self, x):
        return self.layers(x).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("dynamic, batch", [(True, 1), (True, 5), (False, 1)])
def test_any_module_becomes_a_graph(tmp_path, dynamic, batch):
    module, path, n = Detector().train(), tmp_path / "d.onnx", "n" if dynamic else 1
    sidecar = export_module(module, path, [Tensor("pixels", "float32", (n, 3, 33, 41), "NCHW")],
                            [Tensor("boxes", "float32", ("n", "boxes", "values"), "NLC")], {"stride": 2, "size": 33})
    assert sidecar["inputs"] == [{"name": "pixels", "dtype": "float32", "shape": [n, 3, 33, 41], "layout": "NCHW"}]
    assert sidecar["outputs"] == [{"name": "boxes", "dtype": "float32", "shape": [n, 320, 5], "layout": "NLC"}]
    assert sidecar["stride"] == 2 and sidecar["precision"] == "float32" and sidecar["weights_sha256"] == weights_digest(
        module)
    x = torch.rand(batch, 3, 33, 41)
    with torch.no_grad():
        expected = module.eval()(x).numpy()
    opened = open_graph(path)
    np.testing.assert_allclose(opened(x.numpy()), expected, atol=1e-5)
    assert parity(opened, open_graph(path, threads=1), x.numpy()) <= 1e-5
    with pytest.raises(EngineError, match="no ensemble"):
        load_engine(path)


def test_differences_of_probabilities_are_absolute_and_those_of_features_relative():
    features, probabilities = np.float32([[-50, 2]]), np.float32([[.5, 1]])
    assert largest_difference(probabilities, probabilities + [[0, .25]]) == .25
    assert largest_difference(features, features + [[0, .5]]) == .01
    both = {"features": features, "probabilities": probabilities}
    assert largest_difference(both, {"features": features + [[1, 0]], "probabilities": probabilities - .125}) == .125
    for a, b in ((features, [[np.nan, 2]]), ([[np.nan, 2]], features)):
        assert np.isnan(largest_difference(a, b))
    assert largest_difference(features, [[np.inf, 2]]) == np.inf


class OfTwo(nn.Module):
    "Computes with two items only."
    def forward(self, x):
        return x + torch.arange(2.)[:, None]


def test_a_dimension_that_torch_would_fix_is_an_error(tmp_path):
    with pytest.raises(EngineError, match=r"shape \[2, 4\] only"):
        export_module(OfTwo(), tmp_path / "two.onnx", [Tensor("x", "float32", ("n", 4))],
                      [Tensor("y", "float32", ("n", 4))], {})
    assert not list(tmp_path.iterdir())


def test_exports_before_leave_no_trace_in_a_graph(tmp_path):
    "Torch remembers the shapes of recurrent layers that it has seen in the process."
    readers = [ich.SeriesReader(16, 16, 2, 0, cell=cell, deltas=deltas)
               for cell, deltas in (("lstm", True), ("gru", True), ("lstm", False))]
    sequence = ich.readers(readers, 2, 16, ["subdural", "any"])
    export_module(sequence, tmp_path / "sequence.onnx", sequence.inputs, sequence.outputs, {})
    models = [Model(backbone="resnet10t", size=32, hidden=8, auxiliary="none", columns="bowel_injury"),
              Model("e", "resnet10t", rnn="lstm", size=32, hidden=8, auxiliary="none", columns="bowel_injury")]
    members = [trauma.make_member(**trauma.member_options(m, ["crop_32"])) for m in models]
    blocks = trauma.injury_graph(members, ["crop_32"], [32], 4)
    export_module(blocks, tmp_path / "blocks.onnx", blocks.inputs, blocks.outputs, {})
    assert open_graph(tmp_path / "blocks.onnx").inputs[0].shape == ("n", 4, 3, 32, 32)


@pytest.mark.parametrize("key", ["precision", "weights_sha256", "versions"])
def test_what_the_export_knows_best(tmp_path, key):
    with pytest.raises(EngineError, match=key):
        export_module(Detector(), tmp_path / "d.onnx", [Tensor("x", "float32", (1, 3, 33, 41))],
                      [Tensor("y", "float32", (1, 320, 5))], {key: 1})
    assert not list(tmp_path.iterdir())


def test_a_float16_ensemble_keeps_float32_at_both_ends(exported, tmp_path):
    path = tmp_path / "e.fp16.onnx"
    sidecar = write_mixed(exported, path)
    about = json.loads(exported.with_suffix(".json").read_text())
    assert sidecar["precision"] == "mixed" and sidecar["threshold"] == 0.31
    assert sidecar["inputs"] == about["inputs"] and sidecar["outputs"] == about["outputs"]
    assert path.stat().st_size < 0.52 * exported.stat().st_size
    got, before = load_engine(path)(pictures(7)), load_engine(exported)(pictures(7))
    assert got.dtype == np.float32 and 0 < np.abs(got - before).max() < LIMITS["fp16"]
    with pytest.raises(EngineError, match="write_mixed"):
        ensemble().half()


def test_torch_in_16_bits_is_near_and_leaves_the_network_as_it_was():
    e, images = ensemble(), pictures(5)
    before, digest = load_engine(e)(images), weights_digest(e)
    engine = load_engine(e, precision="bf16")
    assert engine.precision == "bf16" and 0 < np.abs(engine(images) - before).max() < 0.05 and weights_digest(
        e) == digest
    with pytest.raises(EngineError, match="GPU"):
        load_engine(e, precision="fp16", device="cpu")
    with pytest.raises(EngineError, match="bf16, fp16"):
        load_engine(e, precision="int8")


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_a_compiled_network_says_the_same():
    torch.manual_seed(0)
    e = Ensemble([
        nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
        for _ in range(2)
    ], 0.5, 0.25)
    engine = load_engine(e, "compiled")
    assert engine.name == "compiled" and np.abs(engine(pictures(3)) - load_engine(e)(pictures(3))).max() <= 1e-6


def test_drawn_pictures_are_the_same_everywhere():
    drawn = probe_pictures((2048, 1024))
    assert drawn.shape == (2, 2048, 1024) and drawn.dtype == np.uint8 and drawn.min() == 0 and drawn.max() == 255
    assert hashlib.sha256(probe_pictures(SIZE).tobytes()).hexdigest().startswith("5e644de3d9532f82")
    assert not np.array_equal(*drawn)
    probe = probe_inputs([Tensor("images", "uint8", ("n", 1, *SIZE), "NCHW")])
    assert np.array_equal(probe["images"][:, 0], probe_pictures(SIZE))


# an ensemble with its weights, as a stage leaves it

BUILT = {
    "kind": "timm", "network": "resnet10t", "global_pool": "max", "mirrored": False,
    "weights": ["fold_0.safetensors", "fold_1.safetensors"]
}


def spread() -> list:
    models = [create_network("resnet10t", seed=k, global_pool="max") for k in range(2)]
    for k, model in enumerate(models):
        nn.init.normal_(model.fc.weight, std=1., generator=torch.Generator().manual_seed(k))
        nn.init.constant_(model.fc.bias, k - 1.)
    return models


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, models = tmp_path_factory.mktemp("whole"), spread()
    for name, model in zip(BUILT["weights"], models):
        save_weights(model, folder / name, {})
    export_onnx(Ensemble(models, **models[0].normalization), folder / "ensemble.onnx", SIZE,
                {"threshold": 0.3, "rebuild": BUILT})
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "w")
    return tmp_path / "w"


@pytest.fixture(scope="module")
def said(whole):
    models = spread()
    return load_engine(Ensemble(models, **models[0].normalization))(pictures(7))


def edit(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_an_ensemble_is_opened_by_what_is_there(folder, said):
    engine = open_ensemble(folder, device="cpu")
    assert (engine.name, engine.precision, engine.size, engine.refused) == ("onnxruntime", "fp32", SIZE,
                                                                            ()) and engine.metadata["threshold"] == 0.3
    assert np.abs(engine(pictures(7)) - said).max() <= 1e-4 and np.ptp(said) > .15
    assert open_ensemble(folder, providers=["torch-fp32"], device="cpu").name == "torch"


def test_what_is_refused_is_told_and_torch_is_last(folder, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    (folder / "ensemble.onnx").write_bytes(b"half of a file")
    engine = open_ensemble(folder, device="cpu", reduced=True)
    assert engine.name == "torch" and engine.size == SIZE and np.abs(engine(pictures(7)) - said).max() <= 1e-6
    assert [r.split(" on cpu: ")[0]
            for r in engine.refused] == ["openvino-bf16", "onnxruntime-fp32", "openvino-fp32", "compiled-fp32"]
    assert "checksum" in engine.refused[1] and "no no-such-compiler" in engine.refused[3]
    shutil.copy(folder / "fold_0.safetensors", folder / "fold_1.safetensors")
    shutil.copy(folder / "fold_0.json", folder / "fold_1.json")
    with pytest.raises(
            EngineError, match=
            "(?s)No provider can run ensemble.*openvino-fp32.*compiled-fp32.*torch-fp32 on cpu: .*not the weights that "
            "were exported"
    ):
        open_ensemble(folder, device="cpu")
    (folder / "fold_1.safetensors").unlink()
    with pytest.raises(EngineError, match="torch-fp32 on cpu: WeightsError: fold_1.safetensors: no such file"):
        open_ensemble(folder, device="cpu")


def test_a_missing_package_is_a_reason(folder, monkeypatch):
    for name in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    engine = open_ensemble(folder, providers=["openvino-fp32", "onnxruntime-fp32", "torch-fp32"], device="cpu")
    assert engine.name == "torch" and [
        "pip install openvino" in r or "pip install onnxruntime" in r for r in engine.refused
    ] == [True, True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here a GPU would be taken")
def test_a_gpu_that_is_not_there_costs_no_answer(folder, said, monkeypatch):
    here, about = ModuleType("tensorrt_rtx"), json.loads((folder / "ensemble.json").read_text())
    here.__version__ = "1.2.0"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", here)
    for target, built in ("SM75", "1.2.0"), ("SM80", "1.1.0"):
        (folder / f"ensemble.{target}.engine").write_bytes(b"engine")
        entries = {
            "package": "tensorrt_rtx", "version": built, "target": target, "batches": [1, 2, 8], "precision": "mixed",
            "inputs": about["inputs"], "outputs": about["outputs"], "sha256": hashlib.sha256(b"engine").hexdigest()
        }
        (folder / f"ensemble.{target}.engine.json").write_text(json.dumps(entries))
    engine = open_ensemble(folder, device="cuda", reduced=False)
    assert engine.device == "cpu" and engine.precision == "fp32" and np.abs(engine(pictures(7)) - said).max() <= 1e-4
    reasons = dict(r.split(" on cuda: ") for r in engine.refused)
    assert "needs an NVIDIA GPU" in reasons["ensemble.SM75.engine"] and "1.1.0" in reasons["ensemble.SM80.engine"] and {
        "onnxruntime-fp32", "torch-fp32"
    } < set(reasons)


def test_16_bits_only_if_asked_for(folder):
    if not find_spec("openvino"):
        pytest.skip("no openvino")
    assert open_ensemble(folder, device="cpu").precision == "fp32"
    models = spread()
    found = gate(folder, "ensemble", pictures(7),
                 load_engine(Ensemble(models, **models[0].normalization))(pictures(7)), ["openvino-bf16"])
    if "difference" not in found["openvino-bf16"]:
        pytest.skip(found["openvino-bf16"]["unavailable"])
    engine = open_ensemble(folder, device="cpu", reduced=True)
    assert engine.precision == ("bf16" if found["openvino-bf16"]["within"] else "fp32")


def test_what_is_beyond_its_limit_is_not_taken_any_more(folder, said):
    write_mixed(folder / "ensemble.onnx", folder / "ensemble.fp16.onnx")
    assert open_ensemble(folder, providers=["onnxruntime-fp16"]).precision == "fp16"
    found = gate(folder, "ensemble", pictures(7), said, ["onnxruntime-fp16", "onnxruntime-fp32", "coreml-fp32"],
                 {"fp16": 1e-9, "fp32": 1e-4})
    assert not found["onnxruntime-fp16"]["within"] and found["onnxruntime-fp32"]["within"] and 0 < found[
        "onnxruntime-fp16"]["difference"] < 5e-3 and "coreml" in found["coreml-fp32"]["unavailable"]
    engine = open_ensemble(folder, providers=["onnxruntime-fp16", "onnxruntime-fp32"])
    assert engine.precision == "fp32" and "differed from torch by" in engine.refused[
        0] and "more than 1e-09" in engine.refused[0]
    with pytest.raises(EngineError, match="not good enough to build"):
        build_engines(folder, "ensemble", ["SM75"])
    gate(folder, "ensemble", pictures(7), said, ["onnxruntime-fp16"])   # within the usual limit
    assert open_ensemble(folder, providers=["onnxruntime-fp16"]).precision == "fp16"


@pytest.mark.parametrize(("change", "words"), [(.01, "for the probe inputs it differs"),
                                               (float("nan"), "probe is nan, and must be a finite number")])
def test_an_engine_that_says_something_else_here_is_not_taken(folder, change, words):
    sidecar = folder / "ensemble.json"
    probe = json.loads(sidecar.read_text())["probe"]
    edit(sidecar, probe=[[p + change for p in row] for row in probe])
    with pytest.raises(EngineError, match=words):
        open_ensemble(folder, providers=["onnxruntime-fp32"], device="cpu")


def test_a_file_of_other_weights_is_not_taken(folder):
    write_mixed(folder / "ensemble.onnx", folder / "ensemble.fp16.onnx")
    edit(folder / "ensemble.fp16.json", weights_sha256="0" * 64)
    with pytest.raises(EngineError, match="ensemble.fp16.onnx was made of other weights"):
        open_ensemble(folder, providers=["onnxruntime-fp16"])


def test_a_folder_that_cannot_be_opened_at_all(folder):
    with pytest.raises(EngineError, match="none.json cannot be read"):
        open_ensemble(folder, "none")
    sidecar = json.loads((folder / "ensemble.json").read_text())
    del sidecar["probe"]
    (folder / "ensemble.json").write_text(json.dumps(sidecar))
    with pytest.raises(EngineError, match="older export"):
        open_ensemble(folder)


def test_networks_left_out_change_nothing_for_the_others(folder, said):
    models = spread()
    e = Ensemble(models, **models[0].normalization)
    smaller = write_smaller(e, folder / "ensemble.onnx", folder / "ensemble_1.onnx", [1], {"oof_auc": .9})
    assert smaller["folds"] == 1 and smaller["oof_auc"] == .9 and smaller["threshold"] == .3
    assert smaller["outputs"][0]["shape"] == ["n", 1] and smaller["rebuild"]["weights"] == ["fold_1.safetensors"]
    assert (folder / "ensemble_1.onnx").stat().st_size < .52 * (folder / "ensemble.onnx").stat().st_size
    for way in "onnxruntime-fp32", "torch-fp32":
        assert np.abs(open_ensemble(folder, "ensemble_1", [way], "cpu")(pictures(7)) - said[:, 1:]).max() <= 1e-4
    with pytest.raises(EngineError, match=r"0 to 1, and \[2\] was requested"):
        write_smaller(e, folder / "ensemble.onnx", folder / "e.onnx", [2], {})


def test_networks_that_point_and_look_twice_are_built_again(tmp_path):
    models = [Pointing(create_network("resnet10t", seed=k)).eval() for k in range(2)]
    for k, model in enumerate(models):
        nn.init.normal_(model.where.weight, std=.1, generator=torch.Generator().manual_seed(k))
        save_weights(model, tmp_path / BUILT["weights"][k], {})
    e = Ensemble([Mirrored(m) for m in models], **models[0].normalization)
    about = {
        "rebuild": {**BUILT, "kind": "mammo.pointing", "global_pool": None, "mirrored": True},
        "preparation": e.preparation(), "inputs": [{"name": "images", "dtype": "uint8", "shape": ["n", 1, *SIZE],
                                                    "layout": "NCHW"}],
        "outputs": [{"name": "probabilities", "dtype": "float32", "shape": ["n", 2], "layout": "NF",
                     "activation": "sigmoid"}], "weights_sha256": weights_digest(e)
    }
    assert parity(load_engine(rebuild(tmp_path, about)), load_engine(e), pictures(3)) == 0
    about["rebuild"]["mirrored"] = False
    with pytest.raises(EngineError, match="not the weights"):
        rebuild(tmp_path, about)
    with pytest.raises(EngineError, match="does not state how to build"):
        rebuild(tmp_path, {})
    about["rebuild"]["weights"] = ["../fold_0.safetensors"]
    with pytest.raises(ValueError, match="no path below a folder"):
        rebuild(tmp_path, about)


def test_engines_are_named_after_their_gpu(folder):
    pytest.importorskip("tensorrt_rtx")
    built = build_engines(folder, "ensemble", ["SM75", "SM86"], batches=(1, 2, 4))
    assert [(b["target"], b["precision"], b["batches"]) for b in built] == [("SM75", "mixed", [1, 2, 4]),
                                                                            ("SM86", "mixed", [1, 2, 4])]
    assert (folder / "ensemble.SM75.engine").is_file() and built[0]["weights_sha256"] == json.loads(
        (folder / "ensemble.json").read_text())["weights_sha256"]


# the stage

@pytest.fixture(scope="module")
def stage_run(tmp_path_factory):
    "A run with two small networks, up to the selection."
    import cv2
    import pandas as pd

    from mammo_nb.core.files import sha256, write_csv, write_json
    from mammo_nb.core.runs import Run
    from mammo_nb.mammo import engines
    from mammo_nb.mammo.recipes import Crops, Select, Train
    from mammo_nb.mammo.system import system
    run_dir, models, rng = tmp_path_factory.mktemp("stage") / "run", spread(), np.random.default_rng(0)
    weights = run_dir / "weights"
    for name, model in zip(BUILT["weights"], models):
        save_weights(model, weights / name, {})
    (weights / "detector.onnx").write_bytes(b"detector")
    write_json(weights / "detector.json", {"sha256": sha256(weights / "detector.onnx")})
    (run_dir / "processed/cleaned_images").mkdir(parents=True)
    rows = [{
        "patient_id": str(k // 2), "image_id": str(k), "laterality": "LR"[k % 2], "cancer": int(k % 3 == 0),
        "fold": k // 6, "epoch": 0, "probability": rng.random()
    } for k in range(12)]
    for row, image in zip(rows, pictures(12)):
        cv2.imwrite(str(run_dir / f"processed/cleaned_images/{row['patient_id']}@{row['image_id']}.png"), image)
    write_csv(run_dir / "oof.csv", pd.DataFrame(rows))
    chosen = [{"fold": 0, "epoch": 0, "auc": .7, "pf1": .5}, {"fold": 1, "epoch": 0, "auc": .6, "pf1": .6}]
    scores = {"auc": .65, "auc_95": [.5, .8], "breasts": 4, "cancers": 2}
    write_json(run_dir / "selection.json", {"folds": chosen, "threshold": .4, **scores})
    train = Train(network="resnet10t", weights="none", global_pool="max", height=SIZE[0], width=SIZE[1])
    recorded = {"train": asdict(train), "crops": asdict(Crops()), "select": asdict(Select(metric="pf1"))}
    stages = {k: {"parameters": v, "reads": {}, "writes": {}} for k, v in recorded.items()}
    write_json(run_dir / "manifest.json", {"run": "run", "stages": stages})
    (weights / "ensemble_9.onnx").write_bytes(b"of a run before")
    run = Run.create(run_dir, system, "tiny", overrides={
        "engines.variants": "1@0.67 1", "engines.ways": "torch-bf16", "engines.targets": "SM75",
        "engines.reduced_tolerance": 1e-9
    })
    found = engines.run_stage(run)
    return run_dir, found, pd.DataFrame(rows)


def test_the_manifest_has_the_parity_of_each_way(stage_run):
    run_dir, found, _ = stage_run
    entry = json.loads((run_dir / "manifest.json").read_text())["stages"]["engines"]
    assert entry["results"]["parity"] == found and list(found) == ["onnxruntime-fp32", "torch-bf16", "onnxruntime-fp16"]
    assert found["onnxruntime-fp32"]["within"] and found["onnxruntime-fp32"][
        "difference"] <= 1e-4 and not found["torch-bf16"]["within"] and found["torch-bf16"]["limit"] == 1e-9
    assert set(json.loads(
        (run_dir / "weights/ensemble.json").read_text())["refused"]) == {"torch-bf16", "onnxruntime-fp16"}
    assert "not good enough" in entry["results"]["engines"]["SM75"]   # there is none, and the stage has ended well
    assert all(
        set(json.loads((
            run_dir / f"weights/{v['name']}.json").read_text())["refused"]) == {"torch-bf16", "onnxruntime-fp16"}
        for v in entry["results"]["variants"])
    written = {f.name for f in (run_dir / "weights").glob("ensemble*.onnx")}
    assert written == {f"ensemble{n}.onnx" for n in ("", ".fp16", "_1", "_1_32x32")}   # and none of the run before
    assert "weights/ensemble.onnx" in entry["writes"]


def test_cheaper_ensembles_are_listed_with_their_scores(stage_run):
    from sklearn.metrics import roc_auc_score
    run_dir, _, oof = stage_run
    folder = run_dir / "weights"
    about = json.loads((folder / "ensemble.json").read_text())
    assert [(v["name"], v["folds"], v["size"], v["scale"])
            for v in about["variants"]] == [("ensemble_1", 1, [64, 48], 1.0), ("ensemble_1_32x32", 1, [32, 32], .67)]
    held = oof[oof["fold"] == 1]   # fold 1 has the better pF1, though the lower AUC; one image a breast
    assert about["variants"][0]["oof_auc"] == round(roc_auc_score(held["cancer"], held["probability"]), 4)
    small = open_ensemble(folder, "ensemble_1_32x32", device="cpu")
    assert small.size == (32, 32) and small.metadata["rebuild"]["weights"] == ["fold_1.safetensors"
                                                                               ] and small.metadata["threshold"] == .4
    from mammo_nb.core.runs import Run
    from mammo_nb.mammo.engines import fitted_crops
    assert about["variants"][1]["oof_auc"] == small.metadata["oof_auc"] == round(
        roc_auc_score(held["cancer"],
                      small(fitted_crops(Run.open(run_dir), held, (32, 32)))[:, 0]), 4)


@pytest.mark.parametrize("variants, says", [
    ("2", "no cheaper"), ("0", "no cheaper"), ("1@1.5", "no cheaper"), ("many", "takes words such as"),
    ("1@x", "takes words such as")])
def test_cheaper_ensembles_that_cannot_be(variants, says):
    from mammo_nb.mammo.engines import wanted_variants
    from mammo_nb.core.recipes import RecipeError
    with pytest.raises(RecipeError, match=says):
        wanted_variants(variants, 2, (64, 48))

"An ensemble as a file: what it says, what is in it, and what it refuses."
import hashlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mammo_nb.core.backends import open_graph
from mammo_nb.core.engines import EngineError, Ensemble, export_module, export_onnx, load_engine, parity, process_engine, weights_digest
from mammo_nb.core.networks import create_network

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
    spots = [255 * np.exp(-((y - rng.uniform(0, SIZE[0]))**2 + (x - rng.uniform(0, SIZE[1]))**2) / w**2) for w in np.geomspace(2, 60, n)]
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
    with torch.no_grad(): expected = torch.cat([m.eval()(x).sigmoid() for m in e.models], 1).numpy()
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
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_engines as t, pathlib; t.export_onnx(t.ensemble(), pathlib.Path('e.onnx'), t.SIZE, {{}})"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "e.onnx").read_bytes() == exported.read_bytes()
    graph = onnx.load(tmp_path / "e.onnx")
    for tensor in graph.graph.initializer: tensor.ClearField("raw_data")   # three bytes of a weight may spell anything
    for trace in (".py", "site-packages", "/", "\\"): assert trace.encode() not in graph.SerializeToString()
    assert sorted(os.listdir(tmp_path)) == ["e.json", "e.onnx"]   # no external data, nothing half-written


def test_the_json_beside_the_file(exported):
    sidecar = json.loads(exported.with_suffix(".json").read_text())
    assert sidecar["threshold"] == 0.31 and sidecar["size"] == list(SIZE) and sidecar["folds"] == 2 and sidecar["precision"] == "float32"
    assert sidecar["weights_sha256"] == weights_digest(ensemble()) and sidecar["versions"]["torch"] == torch.__version__.split("+")[0]
    assert load_engine(exported).metadata == sidecar


def test_the_digest_of_the_weights_sees_one_changed_number():
    a, b = ensemble(), ensemble()
    assert weights_digest(a) == weights_digest(b)
    with torch.no_grad(): b.models[1].fc.bias += 1e-6
    assert weights_digest(a) != weights_digest(b)


@pytest.mark.parametrize("wrong, says", [
    (lambda x: x.astype(np.float32) / 255, "uint8"), (lambda x: x.tolist(), "uint8"), (lambda x: x[0], "(n, 64, 48)"),
    (lambda x: x.transpose(0, 2, 1), "(n, 64, 48)"), (lambda x: x[:, None], "(n, 64, 48)")])
def test_other_input_is_refused_with_what_would_fit(exported, wrong, says):
    with pytest.raises(EngineError) as e: load_engine(exported)(wrong(pictures(2)))
    assert says in str(e.value)


def test_files_that_do_not_belong_together_or_cannot_be_run(exported, tmp_path):
    with pytest.raises(EngineError, match="not there"): load_engine(tmp_path / "none.onnx")
    path, sidecar = tmp_path / "e.onnx", json.loads(exported.with_suffix(".json").read_text())
    path.write_bytes(exported.read_bytes())
    with pytest.raises(EngineError, match="e.json is not there"): load_engine(path)
    (tmp_path / "e.json").write_text(json.dumps(sidecar))
    path.write_bytes(exported.read_bytes()[:-7])
    with pytest.raises(EngineError, match="checksum"): load_engine(path)
    path.write_bytes(b"not a graph")
    (tmp_path / "e.json").write_text(json.dumps({**sidecar, "sha256": hashlib.sha256(b"not a graph").hexdigest()}))
    with pytest.raises(EngineError, match="cannot be run"): load_engine(path)


def test_what_cannot_be_asked_for(exported, tmp_path):
    with pytest.raises(EngineError, match="'onnxruntime'"): load_engine(exported, backend="torch")
    with pytest.raises(EngineError, match="'torch'"): load_engine(ensemble(), backend="onnxruntime")
    with pytest.raises(EngineError, match="at least one"): Ensemble([], 0.5, 0.5)
    with pytest.raises(EngineError, match="size"): export_onnx(ensemble(), tmp_path / "e.onnx", SIZE, {"size": 3})
    assert not list(tmp_path.iterdir())


class Detector(nn.Module):
    "Not a classifier: colour in, as many boxes as there are places."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 5, 1))

    def forward(self, x): return self.layers(x).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("dynamic, batch", [(True, 1), (True, 5), (False, 1)])
def test_any_module_becomes_a_graph(tmp_path, dynamic, batch):
    module, path = Detector().train(), tmp_path / "d.onnx"
    sidecar = export_module(module, path, torch.zeros(1, 3, 33, 41), input="pixels", output="boxes", dynamic=dynamic, metadata={"stride": 2, "size": 33})
    n = "n" if dynamic else "1"
    assert (sidecar["input"], sidecar["output"]) == (f"pixels: float32 ({n}, 3, 33, 41)", f"boxes: float32 ({n}, 320, 5)")
    assert sidecar["stride"] == 2 and sidecar["precision"] == "float32" and sidecar["weights_sha256"] == weights_digest(module)
    x = torch.rand(batch, 3, 33, 41)
    with torch.no_grad(): expected = module.eval()(x).numpy()
    opened = open_graph(path)
    np.testing.assert_allclose(opened(x.numpy()), expected, atol=1e-5)
    assert parity(opened, open_graph(path, threads=1), x.numpy()) <= 1e-5
    with pytest.raises(EngineError, match="no ensemble"): load_engine(path)


@pytest.mark.parametrize("key", ["precision", "weights_sha256", "versions"])
def test_what_the_export_knows_best(tmp_path, key):
    with pytest.raises(EngineError, match=key): export_module(Detector(), tmp_path / "d.onnx", torch.zeros(1, 3, 33, 41), input="x", output="y", dynamic=False, metadata={key: 1})
    assert not list(tmp_path.iterdir())


def test_a_float16_ensemble_keeps_float32_at_both_ends(tmp_path):
    e = Ensemble([nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)) for _ in range(2)], 0.5, 0.25)
    images, before = pictures(5), load_engine(e)(pictures(5))
    sidecar = export_onnx(e.half(), tmp_path / "e.onnx", SIZE, {})
    assert sidecar["precision"] == "float16" and sidecar["input"] == "images: uint8 (n, 1, 64, 48)" and sidecar["output"] == "probabilities: float32 (n, 2)"
    got = load_engine(tmp_path / "e.onnx")(images)
    assert got.dtype == np.float32 and np.abs(got - before).max() < 0.01

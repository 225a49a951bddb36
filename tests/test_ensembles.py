"Networks of other kinds than one picture: six classes, volumes, sequences, two outputs; the same from every package."
import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from mammo_nb.core.backends import open_graph
from mammo_nb.core.engines import export_checked, export_onnx, load_engine, parity, probe_inputs
from mammo_nb.core.ensembles import Ensemble, make_network, rebuild, register_network
from mammo_nb.core.graphs import write_mixed
from mammo_nb.core.networks import WeightsError, save_weights
from mammo_nb.core.providers import LIMITS, build_engines, gate, open_ensemble, write_smaller
from mammo_nb.core.sidecars import EngineError, Tensor, read_sidecar
from mammo_nb.core.tensorrt import build_tensorrt

SIX = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")


class Slice(nn.Module):
    "Three windows of a slice -> six logits."
    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                    nn.Linear(8, 6))
        nn.init.normal_(self.layers[-1].weight, std=3)

    def forward(self, x):
        return self.layers(x)


class Series(nn.Module):
    "Features of the slices of a series, padded, and how many there are -> logits of each slice and of the series."
    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.memory, self.slices, self.whole = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 6), nn.Linear(8, 1)
        for layer in (self.slices, self.whole):
            nn.init.normal_(layer.weight, std=2)

    def forward(self, features, lengths):
        here = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
        states = self.memory(features)[0] * here[..., None]
        return {"series": self.whole(states.sum(1) / lengths[:, None]), "slice": self.slices(states)}


class Volume(nn.Module):
    "A volume and its mask -> the injury of an organ (three classes, of which one is true) and a bleeding."
    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.organ, self.bleeding = nn.Conv3d(1, 8, 3, 2), nn.Linear(8, 3), nn.Linear(8, 1)
        for layer in (self.organ, self.bleeding):
            nn.init.normal_(layer.weight, std=3)

    def forward(self, volumes, masks):
        features = self.conv(volumes * masks).relu().mean((2, 3, 4))
        return self.organ(features), self.bleeding(features)


register_network("test.slice")(lambda seed: Slice(seed + 100))   # the weights of the file come after
register_network("test.series")(lambda seed: Series(seed + 100))
register_network("test.volume")(lambda seed: Volume(seed + 100))


def slices() -> Ensemble:
    return Ensemble([Slice(0), Slice(1), Slice(2)], (.5, .4, .3), (.2, .2, .3),
                    inputs=[Tensor("slices", "uint8", ("n", 3, "height", "width"), "NCHW")],
                    outputs=[Tensor("probabilities", "float32", ("n", "folds", 6), "NFC", "sigmoid", SIX)])


def series() -> Ensemble:
    inputs = [Tensor("features", "float32", ("n", "length", 5), "NLC"), Tensor("lengths", "int64", ("n",), "N")]
    outputs = [Tensor("slice", "float32", ("n", "folds", "length", 6), "NFLC", "sigmoid", SIX),
               Tensor("series", "float32", ("n", "folds"), "NF", "sigmoid", ("any",))]
    return Ensemble([Series(0), Series(1)], inputs=inputs, outputs=outputs)


def volumes() -> Ensemble:
    inputs = [Tensor("volumes", "float32", ("n", 1, "depth", "height", "width"), "NCDHW"),
              Tensor("masks", "bool", ("n", 1, "depth", "height", "width"), "NCDHW")]
    outputs = [Tensor("organ", "float32", ("n", "folds", 3), "NFC", "softmax", ("healthy", "low", "high")),
               Tensor("bleeding", "float32", ("n", "folds"), "NF", "sigmoid", ("bleeding",))]
    return Ensemble([Volume(0), Volume(1)], 40., 100., scale=1, channels=1, inputs=inputs, outputs=outputs)


def drawn(kind: str, n: int) -> dict:
    "Inputs whose results are spread out."
    rng = np.random.default_rng(n)
    if kind == "slices":
        return {"slices": rng.integers(0, 256, (n, 3, 24, 20), np.uint8) // rng.integers(1, 9, (n, 3, 1, 1), np.uint8)}
    if kind == "series":
        return {"features": rng.normal(size=(n, 9, 5)).astype(np.float32), "lengths": np.arange(n) % 9 + 1}
    shape = (n, 1, 6, 10, 8)
    return {"volumes": rng.normal(40, 200, shape).astype(np.float32), "masks": rng.random(shape) < .8}


MADE = {"slices": (slices, (24, 20)), "series": (series, ()), "volumes": (volumes, (6, 10, 8))}


@pytest.fixture(scope="module", params=list(MADE))
def case(request, tmp_path_factory):
    "An ensemble as a stage leaves it: kind, ensemble, folder."
    make, size = MADE[request.param]
    ensemble, folder = make(), tmp_path_factory.mktemp(request.param)
    files = [f"fold_{k}.safetensors" for k in range(len(ensemble.models))]
    for file, model in zip(files, ensemble.models):
        save_weights(model, folder / file, {})
    about = {"kind": f"test.{request.param.removesuffix('s') if request.param != 'series' else 'series'}", "seed": 0,
             "mirrored": False, "weights": files}
    export_onnx(ensemble, folder / "ensemble.onnx", size, {"rebuild": about})
    return request.param, ensemble, folder


def named(result, ensemble) -> dict:
    return result if isinstance(result, dict) else {ensemble.outputs[0].name: result}


def test_the_numbers_are_those_of_each_network_fed_by_hand(case):
    kind, ensemble, _ = case
    given = drawn(kind, 4)
    x = [torch.from_numpy(a) for a in given.values()]
    if kind == "slices":
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((.5, .4, .3), (.2, .2, .3)))
        x[0] = (x[0].float() / 255 - mean) / std
    if kind == "volumes":
        x[0] = (x[0].float() - 40) / 100
    made = named(load_engine(ensemble)(given), ensemble)
    for k, model in enumerate(ensemble.models):
        with torch.no_grad():
            answer = model(*x)
        if kind == "slices":
            expected = {"probabilities": answer.sigmoid()}
        elif kind == "series":
            expected = {"slice": answer["slice"].sigmoid(), "series": answer["series"][:, 0].sigmoid()}
        else:
            expected = {"organ": answer[0].softmax(1), "bleeding": answer[1][:, 0].sigmoid()}
        for name, value in expected.items():
            np.testing.assert_allclose(made[name][:, k], value.numpy(), atol=1e-6)
    assert all(np.ptp(y) > .1 for y in made.values())   # results that are all alike would hide a difference


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("n", [1, 5])
def test_every_package_gives_what_torch_gives(case, backend, n):
    if not find_spec(backend):
        pytest.skip(f"no {backend}")
    kind, ensemble, folder = case
    file = load_engine(folder / "ensemble.onnx", backend, threads=1)
    assert file.size == MADE[kind][1] and [t.name for t in file.outputs] == [t.name for t in ensemble.outputs]
    assert parity(load_engine(ensemble), file, drawn(kind, n)) <= 1e-5


def test_other_lengths_than_the_example_of_the_export(tmp_path, case):
    kind, ensemble, folder = case
    if kind != "series":
        pytest.skip("only the series has a free length")
    given = {"features": np.ones((2, 60, 5), np.float32), "lengths": np.array([60, 1])}
    assert parity(load_engine(ensemble), load_engine(folder / "ensemble.onnx"), given) <= 1e-5
    longer = {"features": np.pad(given["features"], ((0, 0), (0, 7), (0, 0))), "lengths": given["lengths"]}
    engine = load_engine(folder / "ensemble.onnx")
    np.testing.assert_allclose(engine(longer)["series"], engine(given)["series"], atol=1e-6)   # padding has no effect


def test_the_json_states_all_that_is_between_the_file_and_the_probabilities(case):
    kind, ensemble, folder = case
    about = read_sidecar(folder / "ensemble.onnx")
    assert about["folds"] == len(ensemble.models) and about["size"] == list(MADE[kind][1])
    if kind == "slices":
        assert about["inputs"] == [{"name": "slices", "dtype": "uint8", "shape": ["n", 3, 24, 20], "layout": "NCHW"}]
        assert about["outputs"] == [{"name": "probabilities", "dtype": "float32", "shape": ["n", 3, 6], "layout": "NFC",
                                     "activation": "sigmoid", "classes": list(SIX)}]
        assert about["preparation"]["slices"] == {"scale": 255, "channels": 3, "mean": pytest.approx([.5, .4, .3]),
                                                  "std": pytest.approx([.2, .2, .3])}
    if kind == "series":
        assert [t["shape"] for t in about["inputs"]] == [["n", "length", 5], ["n"]] and about["preparation"] == {}
        assert [t["shape"] for t in about["outputs"]] == [["n", 2, "length", 6], ["n", 2]]
    if kind == "volumes":
        assert [(t["dtype"], t["shape"]) for t in about["inputs"]] == [("float32", ["n", 1, 6, 10, 8]),
                                                                       ("bool", ["n", 1, 6, 10, 8])]
        assert [t["activation"] for t in about["outputs"]] == ["softmax", "sigmoid"]


WRONG = {
    "slices": [(lambda g: {"pictures": g["slices"]}, "takes the inputs slices, and got pictures"),
               (lambda g: g["slices"][:, :1], r"takes slices: uint8 \(n, 3, 24, 20\) NCHW.*got uint8 \(2, 1, 24, 20\)"),
               (lambda g: g["slices"].astype(np.int16), r"got int16 \(2, 3, 24, 20\)")],
    "series": [(lambda g: g["features"], "takes the inputs features, lengths, and got"),
               (lambda g: {**g, "lengths": np.array([1, 2, 3])}, "n is 3, and features has 2"),
               (lambda g: {**g, "lengths": g["lengths"].astype(float)}, "takes lengths: int64 .*got float64")],
    "volumes": [(lambda g: {**g, "masks": g["masks"][..., :4]}, r"takes masks: bool .*got bool \(2, 1, 6, 10, 4\)"),
                (lambda g: {**g, "volumes": g["volumes"][:, 0, 0]}, r"volumes: float32 .*got float32 \(2, 10, 8\)"),
                (lambda g: {"volumes": g["volumes"]}, "takes the inputs volumes, masks, and got volumes")],
}


@pytest.mark.parametrize("number", range(3))
def test_names_types_and_shapes_are_checked_on_run_in_torch_and_from_the_file(case, number):
    kind, ensemble, folder = case
    change, message = WRONG[kind][number]
    with pytest.raises(EngineError, match=message):
        load_engine(folder / "ensemble.onnx")(change(drawn(kind, 2)))
    message = message.replace("24, 20) NCHW", "height, width) NCHW").replace(r"24, 20\) NCHW", r"height, width\) NCHW")
    if kind == "volumes" and number == 0:   # in torch the size is free, and has to be the same for both
        message = r"takes masks: bool .*width is 4, and volumes has 8"
    with pytest.raises(EngineError, match=message):
        load_engine(ensemble)(change(drawn(kind, 2)))


def test_a_json_of_another_network_is_refused_on_load(case, tmp_path):
    kind, _, folder = case
    about = json.loads((folder / "ensemble.json").read_text())
    (tmp_path / "e.onnx").write_bytes((folder / "ensemble.onnx").read_bytes())
    for key in ("inputs", "outputs"):
        for entry in range(len(about[key])):
            changed = json.loads(json.dumps(about))
            changed[key][entry]["shape"][-1] = 77
            changed[key][entry].pop("classes", None)
            (tmp_path / "e.json").write_text(json.dumps(changed))
            with pytest.raises(EngineError, match="e.json lists .*77.*do not belong together"):
                load_engine(tmp_path / "e.onnx")


def test_a_json_that_contradicts_itself_is_refused_with_its_name(case, tmp_path):
    _, _, folder = case
    about = json.loads((folder / "ensemble.json").read_text())
    about["outputs"][0]["activation"] = "tanh"
    (tmp_path / "e.onnx").write_bytes((folder / "ensemble.onnx").read_bytes())
    (tmp_path / "e.json").write_text(json.dumps(about))
    with pytest.raises(EngineError, match="e.json describes its outputs wrongly.*'tanh'"):
        load_engine(tmp_path / "e.onnx")


def test_the_probe_inputs_are_those_of_the_file_and_the_providers_agree(case):
    kind, ensemble, folder = case
    about = read_sidecar(folder / "ensemble.onnx")
    probe = probe_inputs(load_engine(folder / "ensemble.onnx").inputs)
    assert all(len(a) == 2 and not np.array_equal(a[0], a[1]) for a in probe.values())
    names = {t.name for t in ensemble.outputs}
    assert isinstance(about["probe"], list) if len(names) == 1 else {*about["probe"]} == names
    for provider in ("onnxruntime-fp32", "openvino-fp32", "torch-fp32"):
        if provider.startswith("openvino") and not find_spec("openvino"):
            continue
        engine = open_ensemble(folder, providers=[provider], device="cpu")
        assert engine.name == provider.split("-")[0] and parity(engine, load_engine(ensemble), drawn(kind, 3)) <= 1e-5


def test_weights_fill_a_registered_network_again(case):
    kind, ensemble, folder = case
    about = read_sidecar(folder / "ensemble.onnx")
    again = rebuild(folder, about)
    assert parity(load_engine(again), load_engine(ensemble), drawn(kind, 2)) == 0
    with pytest.raises(WeightsError, match="'test.unknown': no such kind is registered. There are timm, .*Import the"):
        rebuild(folder, {**about, "rebuild": {**about["rebuild"], "kind": "test.unknown"}})
    with pytest.raises(WeightsError, match="arguments do not fit .*depth"):
        rebuild(folder, {**about, "rebuild": {**about["rebuild"], "depth": 3}})


def test_mixed_precision_fewer_networks_and_the_gate(case, tmp_path):
    kind, ensemble, folder = case
    sidecar = write_mixed(folder / "ensemble.onnx", folder / "ensemble.fp16.onnx")
    whole, given = read_sidecar(folder / "ensemble.onnx"), drawn(kind, 5)
    assert sidecar["inputs"] == whole["inputs"] and sidecar["outputs"] == whole["outputs"]
    reference = load_engine(ensemble)(given)
    limits = {**LIMITS, "fp16": .05}   # these networks are drawn wide
    found = gate(folder, "ensemble", given, reference, ["onnxruntime-fp32", "onnxruntime-fp16"], limits)
    assert found["onnxruntime-fp32"]["within"] and found["onnxruntime-fp16"]["within"]
    smaller = write_smaller(ensemble, folder / "ensemble.onnx", folder / "one.onnx", [1], {})
    assert smaller["folds"] == 1 and all(t["shape"][1] == 1 for t in smaller["outputs"])
    assert [t.get("classes") for t in smaller["outputs"]] == [t.get("classes") for t in whole["outputs"]]
    one = named(open_ensemble(folder, "one", ["onnxruntime-fp32"], "cpu")(given), ensemble)
    for name, y in named(reference, ensemble).items():
        np.testing.assert_allclose(one[name], y[:, 1:2], atol=1e-5)


def test_engines_are_built_without_a_gpu(case):
    pytest.importorskip("tensorrt_rtx")
    kind, _, folder = case
    ranges = {"length": (1, 8, 64)} if kind == "series" else {}
    built = build_engines(folder, "ensemble", ["SM86"], ranges=ranges)[0]
    assert built["target"] == "SM86" and built["outputs"] == read_sidecar(folder / "ensemble.onnx")["outputs"]
    if kind == "series":
        with pytest.raises(EngineError, match="length may be any number: give ranges"):
            build_tensorrt(folder / "ensemble.onnx", folder / "e.engine", target="SM86")


def test_an_export_that_differs_leaves_nothing(tmp_path):
    with pytest.raises(EngineError, match="differs from torch"):
        export_checked(slices(), tmp_path / "e.onnx", drawn("slices", 2), {}, tolerance=-1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change, message", [
    ({"outputs": [Tensor("p", "float32", ("n", 6), "NC")]}, "second axis .* is F"),
    ({"inputs": [Tensor("x", "uint8", ("n", 3, "height", "width"))]}, "layout with the axis C"),
])
def test_ensembles_that_cannot_be(change, message):
    with pytest.raises(EngineError, match=message):
        Ensemble([Slice(0)], .5, .5, **change)


def test_a_size_needs_a_number_for_each_axis(tmp_path):
    with pytest.raises(EngineError, match=r"a number for each of \(depth, height, width\), and got \(10, 8\)"):
        export_onnx(volumes(), tmp_path / "e.onnx", (10, 8), {})


def test_a_kind_is_registered_once():
    with pytest.raises(ValueError, match="'test.slice' already"):
        register_network("test.slice")(Slice)
    assert make_network({"kind": "timm", "network": "resnet10t", "classes": 6, "channels": 4}).fc.out_features == 6


def test_a_graph_of_no_ensemble_is_opened_as_a_graph(tmp_path):
    from mammo_nb.core.ensembles import export_module
    export_module(Slice(0), tmp_path / "s.onnx", [Tensor("x", "float32", ("n", 3, 24, 20), "NCHW")],
                  [Tensor("logits", "float32", ("n", 6), "NC")], {})
    assert open_graph(tmp_path / "s.onnx")(np.zeros((2, 3, 24, 20), np.float32)).shape == (2, 6)
    with pytest.raises(EngineError, match="s.onnx is no ensemble: its output logits: .*no axis F"):
        load_engine(tmp_path / "s.onnx")

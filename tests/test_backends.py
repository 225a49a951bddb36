"A graph as a file: the same numbers from every back end, and what none of them opens."
import hashlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from mammo_nb.core import sidecars
from mammo_nb.core.backends import open_graph, process_graph
from mammo_nb.core.sidecars import EngineError, Tensor, read_sidecar, write_graph
from mammo_nb.core.tensorrt import build_tensorrt

PACKAGES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}   # module -> what pip calls it
LISTED = {"inputs": [{"name": "images", "dtype": "uint8", "shape": ["n", 1, 40, 32]}],
          "outputs": [{"name": "probabilities", "dtype": "float32", "shape": ["n", 2]}]}

GRAPH = '''<ir_version: 10, opset_import: ["": 20]>
shapes ({type}[{n}, 1, 40, 32] images) => (float[{n}, 2] probabilities) {{
    grey = Cast<to = {compute}>(images)
    x = Div(grey, white)
    maps = Conv<strides = [2, 2]>(x, kernels)
    rectified = Relu(maps)
    means = ReduceMean<keepdims = 0>(rectified, area)
    logits = MatMul(means, weights)
    answers = Sigmoid(logits)
    probabilities = Cast<to = 1>(answers)
}}'''


def graph(n="n", half=False, type="uint8") -> onnx.ModelProto:
    "A small network with drawn weights; it computes in float16 if asked to."
    rng, dtype = np.random.default_rng(1), np.float16 if half else np.float32
    model = onnx.parser.parse_model(GRAPH.format(n=n, type=type, compute=10 if half else 1))
    values = {"white": 255., "kernels": rng.normal(size=(8, 1, 5, 5)), "weights": rng.normal(size=(8, 2)) / 2}
    model.graph.initializer.extend([*(onnx.numpy_helper.from_array(np.asarray(v, dtype), k) for k, v in values.items()),
                                    onnx.numpy_helper.from_array(np.array([2, 3]), "area")])
    onnx.checker.check_model(model)
    return model


def pictures(n: int) -> np.ndarray:
    "Bright spots of many sizes."
    rng, (y, x) = np.random.default_rng(3), np.mgrid[:40, :32]
    spots = [
        255 * np.exp(-((y - rng.uniform(0, 40))**2 + (x - rng.uniform(0, 32))**2) / w**2)
        for w in np.geomspace(2, 40, n)
    ]
    return np.stack(spots).astype(np.uint8)[:, None]


def needs(package: str):
    "Skip where a package is missing; it is not imported, which is for the back end to do in its own way."
    if not find_spec(package):
        pytest.skip(f"no {package}")


@pytest.fixture
def path(tmp_path):
    write_graph(graph(), tmp_path / "g.onnx", {"purpose": "test"})
    return tmp_path / "g.onnx"


def resign(path: Path, content: bytes, **entries):
    "Give a file other bytes and a JSON that agrees with them."
    path.write_bytes(content)
    sidecar = path.with_suffix(".json") if path.suffix == ".onnx" else Path(f"{path}.json")
    sidecar.write_text(json.dumps({**entries, "sha256": hashlib.sha256(content).hexdigest()}))


def by_hand(images: np.ndarray) -> np.ndarray:
    "The same network in NumPy."
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph().graph.initializer}
    windows = np.lib.stride_tricks.sliding_window_view(images[:, 0] / 255, (5, 5), axis=(1, 2))[:, ::2, ::2]
    maps = np.maximum(np.einsum("nyxij,kij->nkyx", windows, constants["kernels"][:, 0]), 0)
    return 1 / (1 + np.exp(-maps.mean((2, 3)) @ constants["weights"]))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("n, batch", [("n", 1), ("n", 5), (3, 3)])
def test_every_back_end_says_what_the_network_is(tmp_path, backend, n, batch):
    needs(backend)
    write_graph(graph(n), tmp_path / "g.onnx", {})
    opened = open_graph(tmp_path / "g.onnx", backend, threads=1)
    assert opened.name == backend and opened.inputs == (Tensor("images", "uint8", (n, 1, 40, 32)),)
    got = opened(pictures(batch))
    assert got.shape == (batch, 2) and got.dtype == np.float32
    np.testing.assert_allclose(got, by_hand(pictures(batch)), atol=1e-5)


def test_the_answers_that_are_compared_are_spread_out():
    assert np.ptp(by_hand(pictures(5))) > 0.05


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_answer_stays_what_it_was_when_the_next_is_asked_for(path, backend):
    needs(backend)
    opened, first = open_graph(path, backend), pictures(2)
    answer = opened(first)
    kept = answer.copy()
    opened(255 - first)
    # views are no trouble, either
    assert np.array_equal(answer, kept) and np.array_equal(opened(first[::-1])[::-1], kept)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("wrong", [
    lambda x: x / 255, lambda x: x.astype(np.int8), lambda x: x[:, 0], lambda x: x.transpose(0, 1, 3, 2),
    lambda x: x[:0], lambda x: x.tolist()])
def test_other_input_is_refused_alike_by_all(path, backend, wrong):
    needs(backend)
    with pytest.raises(EngineError, match=r"g.onnx takes images: uint8 \(n, 1, 40, 32\); every dimension at .* got"):
        open_graph(path, backend)(wrong(pictures(2)))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_fixed_number_of_images_is_kept_to(tmp_path, backend):
    needs(backend)
    write_graph(graph(3), tmp_path / "g.onnx", {})
    with pytest.raises(EngineError, match=r"takes images: uint8 \(3, 1, 40, 32\); got uint8 \(2, "):
        open_graph(tmp_path / "g.onnx", backend)(pictures(2))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_float_inputs_have_numpys_name(tmp_path, backend):
    needs(backend)
    write_graph(graph(type="float"), tmp_path / "g.onnx", {})
    opened = open_graph(tmp_path / "g.onnx", backend)
    assert opened.inputs[0].dtype == "float32"
    np.testing.assert_allclose(opened(pictures(2).astype(np.float32)), by_hand(pictures(2)), atol=1e-5)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_other_types_are_converted_only_where_the_json_lists_them(tmp_path, backend):
    needs(backend)
    shape = ("n", 1, 40, 32)
    for also in ((), ("uint8",)):
        write_graph(graph(type="float"), tmp_path / "g.onnx", {}, [Tensor("images", "float32", shape, also=also)])
        opened = open_graph(tmp_path / "g.onnx", backend)
        if also:
            np.testing.assert_allclose(opened(pictures(2)), by_hand(pictures(2)), atol=1e-5)
        else:
            with pytest.raises(EngineError, match="takes images: float32 .*got uint8"):
                opened(pictures(2))
        with pytest.raises(EngineError, match="got int16"):
            opened(pictures(2).astype(np.int16))


def test_the_same_graph_is_the_same_file_without_traces(path):
    model = graph()
    model.doc_string = model.graph.node[0].doc_string = "/home/somebody/train.py"
    model.graph.node[1].metadata_props.add(key="trace", value="/home/somebody/train.py")
    write_graph(model, path.with_name("h.onnx"), {})
    assert path.read_bytes() == path.with_name("h.onnx").read_bytes() and b"somebody" not in path.read_bytes()


def test_the_json_says_what_the_graph_is(path):
    assert read_sidecar(path) == {
        "purpose": "test", "format": "onnx", "opset": 20,
        "inputs": [{"name": "images", "dtype": "uint8", "shape": ["n", 1, 40, 32]}],
        "outputs": [{"name": "probabilities", "dtype": "float32", "shape": ["n", 2]}],
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest()
    }
    assert open_graph(path).metadata == read_sidecar(path)


def test_the_caller_adds_layout_activation_and_classes(tmp_path):
    stated = [Tensor("images", "uint8", ("n", 1, "h", "w"), "NCHW"),
              Tensor("probabilities", "float32", ("n", 2), "NC", "sigmoid", ("mass", "calcification"))]
    written = write_graph(graph(), tmp_path / "g.onnx", {}, stated)
    assert written["inputs"] == [{"name": "images", "dtype": "uint8", "shape": ["n", 1, 40, 32], "layout": "NCHW"}]
    assert written["outputs"] == [{"name": "probabilities", "dtype": "float32", "shape": ["n", 2], "layout": "NC",
                                   "activation": "sigmoid", "classes": ["mass", "calcification"]}]
    assert open_graph(tmp_path / "g.onnx").outputs[0] == stated[1]
    for wrong, message in ((Tensor("image", "uint8", ("n",)), "no input or output image: it has images"),
                           (Tensor("images", "float32", ("n",)), "float32, and the graph has uint8"),
                           (Tensor("images", "uint8", ("n", 1), "NC"), "one letter for each of its 4 axes")):
        with pytest.raises(EngineError, match=message):
            write_graph(graph(), tmp_path / "h.onnx", {}, [wrong])
    assert not list(tmp_path.glob("h*"))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("key, old, new", [
    ("inputs", "images", "picture"), ("inputs", "uint8", "float32"), ("inputs", 32, 33), ("inputs", 32, "w"),
    ("inputs", "n", 4), ("outputs", "probabilities", "logits"), ("outputs", 2, 3), ("outputs", "float32", "float64")])
def test_a_json_that_lists_something_else_is_refused_on_load(path, backend, key, old, new):
    needs(backend)
    sidecar = json.loads(path.with_suffix(".json").read_text())
    entry = sidecar[key][0]
    sidecar[key] = [{k: [new if n == old else n for n in v] if k == "shape" else new if v == old else v
                     for k, v in entry.items()}]
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    with pytest.raises(EngineError, match=rf"g.json lists .*{new}.* and g.onnx has .*{old}.*do not belong together"):
        open_graph(path, backend)


@pytest.mark.parametrize("entries, message", [
    (None, "lists no inputs. An older version wrote it"), ([], "lists no inputs"),
    ([{"name": "images"}], "describes its inputs wrongly"),
    ([{"name": "images", "dtype": "pixels", "shape": []}], "describes its inputs wrongly"),
    ([{"name": "images", "dtype": "uint8", "shape": ["n", 1, 40, 32], "layout": "NCWW"}], "no letter twice")])
def test_a_json_that_cannot_be_understood(path, entries, message):
    sidecar = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**sidecar, "inputs": entries}))
    with pytest.raises(EngineError, match=message):
        open_graph(path)


@pytest.mark.parametrize("key", ["format", "opset", "inputs", "outputs", "sha256"])
def test_the_caller_cannot_say_it_otherwise(tmp_path, key):
    with pytest.raises(EngineError, match=key):
        write_graph(graph(), tmp_path / "g.onnx", {key: "mine"})
    assert not list(tmp_path.iterdir())


TWO = '''<ir_version: 10, opset_import: ["": 20]>
two (float[n, k, 3] features, int64[n] lengths) => (float[n, 3] sums, float[n, k] first) {
    sum = ReduceSum<keepdims = 0>(features, axis)
    count = Cast<to = 1>(lengths)
    column = Unsqueeze(count, axis)
    sums = Div(sum, column)
    first = Gather<axis = 2>(features, zero)
}'''


@pytest.fixture
def two(tmp_path):
    "Two inputs, two outputs, two free dimensions."
    model = onnx.parser.parse_model(TWO)
    model.graph.initializer.extend([onnx.numpy_helper.from_array(np.array([1]), "axis"),
                                    onnx.numpy_helper.from_array(np.array(0), "zero")])
    onnx.checker.check_model(model)
    write_graph(model, tmp_path / "two.onnx", {})
    return tmp_path / "two.onnx"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_several_inputs_and_outputs_go_by_name(two, backend):
    needs(backend)
    opened, rng = open_graph(two, backend), np.random.default_rng(0)
    for n, k in ((1, 5), (4, 2)):
        given = {"lengths": np.arange(1, n + 1), "features": rng.normal(size=(n, k, 3)).astype(np.float32)}
        made = opened(given)
        assert list(made) == ["sums", "first"]
        np.testing.assert_allclose(made["sums"], given["features"].sum(1) / given["lengths"][:, None], rtol=1e-5)
        np.testing.assert_array_equal(made["first"], given["features"][..., 0])


@pytest.mark.parametrize("change, message", [
    (lambda g: g["features"], "takes the inputs features, lengths, and got one array without a name"),
    (lambda g: {"features": g["features"]}, "takes the inputs features, lengths, and got features"),
    (lambda g: {**g, "mask": g["lengths"]}, "and got features, lengths, mask"),
    (lambda g: {**g, "lengths": g["lengths"][:2]}, r"lengths: int64 \(n,\).*n is 2, and features has 3"),
    (lambda g: {**g, "lengths": g["lengths"].astype(np.int32)}, r"takes lengths: int64 .*got int32 \(3,\)"),
    (lambda g: {**g, "features": g["features"][..., :2]}, r"features: float32 \(n, k, 3\).*got float32 \(3, 4, 2\)"),
    (lambda g: {**g, "lengths": [4, 3, 2]}, "takes lengths.*got list")])
def test_inputs_that_do_not_fit_are_refused_by_name(two, change, message):
    given = {"features": np.ones((3, 4, 3), np.float32), "lengths": np.array([4, 3, 2])}
    assert open_graph(two)(given)["first"].shape == (3, 4)
    with pytest.raises(EngineError, match=message):
        open_graph(two)(change(given))


def test_a_result_that_is_not_what_the_json_lists_is_refused(two):
    from dataclasses import replace
    opened = open_graph(two)
    given = {"features": np.ones((3, 4, 3), np.float32), "lengths": np.array([4, 3, 2])}
    good = opened(given)
    for wrong in ({**good, "sums": good["sums"][:2]}, {**good, "sums": good["sums"].astype(np.float64)},
                  {"first": good["first"]}):
        with pytest.raises(EngineError, match=r"two.onnx by onnxruntime should give sums: float32 \(n, 3\)"):
            replace(opened, compute=lambda arrays, wrong=wrong: wrong)(given)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_weights_that_are_too_large_for_the_graph_lie_beside_it(tmp_path, monkeypatch, backend):
    needs(backend)
    monkeypatch.setattr(sidecars, "LARGEST", 100)
    model, file, weights = graph(), tmp_path / "g.onnx", tmp_path / "g.onnx.data"
    made = write_graph(model, file, {})
    assert write_graph(model, tmp_path / "h.onnx", {})["weights_file_sha256"] == made["weights_file_sha256"]
    assert weights.stat().st_size >= 4 * 8 * 25 and {p.name for p in tmp_path.iterdir()} == {
        f"{n}.{kind}" for n in "gh" for kind in ("onnx", "onnx.data", "json")}
    np.testing.assert_allclose(open_graph(file, backend)(pictures(5)), by_hand(pictures(5)), atol=1e-5)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(EngineError, match="g.onnx.data, which has the weights of g.onnx, is missing or differs"):
        open_graph(file, backend)
    weights.unlink()
    with pytest.raises(EngineError, match="is missing or differs.*copy all three"):
        open_graph(file, backend)
    monkeypatch.undo()
    write_graph(model, tmp_path / "h.onnx", {})   # a small graph takes the place of a large one
    assert not (tmp_path / "h.onnx.data").exists() and "weights_file_sha256" not in read_sidecar(tmp_path / "h.onnx")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_files_that_do_not_belong_together_or_cannot_be_run(path, backend):
    needs(backend)
    content, sidecar = path.read_bytes(), path.with_suffix(".json")
    with pytest.raises(EngineError, match="none.onnx is not there"):
        open_graph(path.with_name("none.onnx"), backend)
    path.write_bytes(content[:-7])
    with pytest.raises(EngineError, match="checksum in g.json.*copy both again"):
        open_graph(path, backend)
    for rubbish in (b"not a graph", b"", content[:200]):
        resign(path, rubbish, **LISTED)
        with pytest.raises(EngineError, match=f"g.onnx cannot be run by {backend}"):
            open_graph(path, backend)
    for rubbish in ("{", "[]"):
        sidecar.write_text(rubbish)
        with pytest.raises(EngineError, match="g.json"):
            open_graph(path, backend)
    sidecar.unlink()
    with pytest.raises(EngineError, match="g.json is not there.*copy both"):
        open_graph(path, backend)


def test_what_cannot_be_asked_for(path):
    for options in {"backend": "torch"}, {"backend": "tensorrt"}, {"backend": "onnxruntime", "precision": "bf16"}, {
            "backend": "openvino", "precision": "int8"
    }:
        with pytest.raises(EngineError, match="it is .*'(onnxruntime|fp32)'"):
            open_graph(path, **options)
    resign(path.with_name("g.pt"), b"weights")
    path.with_name("g.pt.json").rename(path.with_name("g.json"))
    with pytest.raises(EngineError):
        open_graph(path.with_name("g.pt"))


def test_who_asks_for_a_gpu_is_not_given_the_processor(path):
    import onnxruntime
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has CUDA here")
    with pytest.raises(EngineError, match="CPUExecutionProvider: pip install onnxruntime-gpu"):
        open_graph(path, "onnxruntime", device="cuda:0")
    assert open_graph(path, "onnxruntime", device="cpu")(pictures(2)).shape == (2, 2)
    with pytest.raises(EngineError, match="on the CPU"):
        open_graph(path, "openvino", device="cuda")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_missing_package_is_named(path, monkeypatch, backend):
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(EngineError, match=f"pip install {backend}"):
        open_graph(path, backend)


def test_half_the_bits_only_when_asked_for(path):
    needs("openvino")
    exact, images = by_hand(pictures(5)), pictures(5)
    assert np.abs(open_graph(path, "openvino")(images) - exact).max() < 1e-5
    try:
        reduced = open_graph(path, "openvino", precision="bf16")
    except EngineError as e:
        pytest.skip(str(e))   # a processor without bfloat16
    assert np.abs(reduced(images) - exact).max() < 0.05


def test_a_process_opens_a_graph_once(path):
    assert process_graph(str(path)) is process_graph(str(path))
    np.testing.assert_allclose(process_graph(str(path))(pictures(3)), by_hand(pictures(3)), atol=1e-5)


@pytest.mark.skipif(not find_spec("openvino"), reason="no openvino")
def test_graphs_that_are_closed_leave_the_handlers_of_signals_alone(path):
    "OpenVINO's cores change the stack on which signals are handled; two of them once left it on freed memory."
    code = (
        "import faulthandler, signal, subprocess, sys; faulthandler.enable()\n"
        "from mammo_nb.core.backends import open_graph\n"
        "signal.signal(signal.SIGCHLD, lambda *_: None)\n"
        "first, second = (open_graph(sys.argv[1], 'openvino') for _ in range(2))\n"
        "del first\ndel second\n"
        "subprocess.run(['true'])\nprint('alive')")
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_a_process_that_runs_a_graph_never_loads_torch_and_reports_to_nobody(path):
    code = """import sys; import mammo_nb.core.backends as b; assert 'torch' not in sys.modules
for backend in sys.argv[2:]: b.process_graph(sys.argv[1], backend)
assert 'torch' not in sys.modules and not [m for m in sys.modules if m.startswith('openvino_telemetry.')]"""
    home = path.parent / "home"
    home.mkdir()
    installed = [p for p in ("onnxruntime", "openvino") if find_spec(p)]
    # where CI is set, nothing is reported anyhow
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")}, "HOME": str(home)
    }
    subprocess.run([sys.executable, "-c", code, str(path), *installed], check=True, env=environment)
    assert not list(home.iterdir())   # no identifier, no report that waits to be sent


@pytest.mark.parametrize("package", PACKAGES)
def test_an_engine_of_another_version_is_refused(path, monkeypatch, package):
    here = ModuleType(package)
    here.__version__ = "1.7.1"
    monkeypatch.setitem(sys.modules, package, here)
    engine = path.with_name("g.engine")
    resign(engine, b"engine", package=package, version="1.2.0", target="SM75", batches=[1, 2, 8], **LISTED)
    with pytest.raises(EngineError, match=rf"1\.2\.0.*1\.7\.1.*pip install {PACKAGES[package]}==1\.2\.0"):
        open_graph(engine)
    other = next(p for p in PACKAGES if p != package)
    with pytest.raises(EngineError, match=f"'{package}'"):
        open_graph(engine, other)
    engine.write_bytes(b"enginE")
    with pytest.raises(EngineError, match="checksum in g.engine.json"):
        open_graph(engine)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_engine_for_another_gpu_is_refused(path, monkeypatch, package):
    import torch
    here = ModuleType(package)
    here.__version__ = "1.2.0"
    monkeypatch.setitem(sys.modules, package, here)
    engine = path.with_name("g.engine")
    resign(engine, b"engine", package=package, version="1.2.0", target="SM75", batches=[1, 2, 8], **LISTED)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
        open_graph(engine)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(EngineError, match="built for SM75, and this GPU is SM86"):
        open_graph(engine)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_engine_needs_its_package(path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match=f"pip install {PACKAGES[package]}"):
        build_tensorrt(path, path.with_name("g.engine"), package=package)


@pytest.mark.parametrize("package", PACKAGES)
def test_without_a_gpu_a_target_is_needed(path, monkeypatch, package):
    "The real package where it is installed, else an imitation as far as this: rtx alone builds ahead of time."
    import torch
    if not find_spec(package):
        here = ModuleType(package)
        here.__version__ = "1.2.0"
        if package == "tensorrt_rtx":
            here.ComputeCapability = type("ComputeCapability", (), {"SM120": 1, "SM75": 2, "CURRENT": 3})
        monkeypatch.setitem(sys.modules, package, here)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    remedy = "or name a target: SM75" if package == "tensorrt_rtx" else "has it.$"
    with pytest.raises(EngineError, match=f"no GPU to build for.*{remedy}"):
        build_tensorrt(path, path.with_name("g.engine"), package=package)
    with pytest.raises(EngineError, match="has no target 'SM1'.*None, which is the GPU of this machine"):
        build_tensorrt(path, path.with_name("g.engine"), package=package, target="SM1")
    assert not list(path.parent.glob("*.engine*"))


def test_an_engine_needs_its_own_name_and_ranges(path, two):
    with pytest.raises(EngineError, match="NAME.engine"):
        build_tensorrt(path, path)
    with pytest.raises(EngineError, match="'tensorrt' or 'tensorrt_rtx'"):
        build_tensorrt(path, path.with_name("g.engine"), package="onnxruntime")
    with pytest.raises(EngineError, match="batches"):
        build_tensorrt(path, path.with_name("g.engine"), target="SM75", batches=(4, 2, 8))
    with pytest.raises(EngineError, match="k may be any number: give ranges, such as {'k': "):
        build_tensorrt(two, path.with_name("g.engine"), target="SM75")
    with pytest.raises(EngineError, match="the range of k is"):
        build_tensorrt(two, path.with_name("g.engine"), target="SM75", ranges={"k": (2, 1, 4)})


@pytest.mark.parametrize("n, batches", [("n", [1, 2, 4]), (3, [3, 3, 3])])
def test_an_engine_is_built_ahead_of_time(tmp_path, n, batches):
    trt = pytest.importorskip("tensorrt_rtx")
    onnx_file, engine = tmp_path / "g.onnx", tmp_path / "g.engine"
    exported = write_graph(graph(n, half=True), onnx_file, {"weights_sha256": "abc", "threshold": 0.3})
    sidecar = build_tensorrt(onnx_file, engine, target="SM75", batches=(1, 2, 4))
    assert sidecar == read_sidecar(engine) and read_sidecar(onnx_file) == exported   # the graph keeps its own JSON
    assert (sidecar["package"], sidecar["version"], sidecar["target"],
            sidecar["batches"]) == ("tensorrt_rtx", trt.__version__, "SM75", batches)
    assert (sidecar["onnx_sha256"], sidecar["weights_sha256"], sidecar["threshold"],
            sidecar["inputs"]) == (exported["sha256"], "abc", 0.3, exported["inputs"])
    import torch
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
            open_graph(engine)
        with pytest.raises(EngineError, match="name a target: SM75"):
            build_tensorrt(onnx_file, tmp_path / "h.engine")
    with pytest.raises(EngineError, match="no target 'SM1'"):
        build_tensorrt(onnx_file, tmp_path / "h.engine", target="SM1")
    assert not list(tmp_path.glob("h.*"))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_type_that_tensorrt_lacks_is_named(path, package):
    write_graph(graph(type="int16"), path, {})
    assert open_graph(path)(pictures(2).astype(np.int16)).shape == (2, 2)
    with pytest.raises(EngineError, match="TensorRT takes no int16, which is the type of images: export the network"):
        build_tensorrt(path, path.with_name("g.engine"), package=package)


def test_an_engine_of_two_inputs_is_built_for_ranges(two):
    pytest.importorskip("tensorrt_rtx")
    engine = two.with_name("two.engine")
    built = build_tensorrt(two, engine, target="SM86", batches=(1, 2, 4), ranges={"k": (1, 8, 64)})
    assert built["ranges"] == {"k": [1, 8, 64], "n": [1, 2, 4]} and built["batches"] == [1, 2, 4]
    assert [t["name"] for t in built["outputs"]] == ["sums", "first"] and engine.stat().st_size > 1000


def test_the_refusal_of_a_target_names_a_remedy(path):
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(EngineError, match="SM75.*FP32 GEMM.*write_mixed"):
        build_tensorrt(path, path.with_name("g.engine"), target="SM75")
    resign(path, b"not a graph", **LISTED)
    with pytest.raises(EngineError, match="g.onnx cannot be built"):
        build_tensorrt(path, path.with_name("g.engine"), target="SM75")
    assert not list(path.parent.glob("*.engine*"))


# TensorRT's calls as its documentation has them, computed by ONNX Runtime: there is no GPU where the tests run

class Imitation(ModuleType):
    "A package of one class each for runtime, engine and context; buffers are read and written by address."
    ILogger = type("ILogger", (), {"ERROR": 1})
    TensorIOMode = type("TensorIOMode", (), {"INPUT": 0, "OUTPUT": 1})
    __version__ = "1.2.0"

    @staticmethod
    def nptype(dtype):
        return dtype

    class Runtime:
        def __init__(self, logger):
            pass
        def deserialize_cuda_engine(self, content):
            return Engine(content)


class Engine:
    "An engine whose content is an ONNX file."
    def __init__(self, content):
        import onnxruntime
        self.session = onnxruntime.InferenceSession(content)
        self.ports = {p.name: p for p in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.num_io_tensors, self.names = len(self.ports), list(self.ports)
        self.taken = [p.name for p in self.session.get_inputs()]
    def get_tensor_name(self, k):
        return self.names[k]
    def get_tensor_mode(self, name):
        return 0 if name in self.taken else 1
    def get_tensor_dtype(self, name):
        return {"tensor(float)": np.float32, "tensor(int64)": np.int64}[self.ports[name].type]
    def get_tensor_shape(self, name):
        return [n if isinstance(n, int) else -1 for n in self.ports[name].shape]
    def create_execution_context(self):
        return Context(self)


class Context:
    "Shapes and addresses first, then the computation; at most 3 items of 8 places."
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self.portions = engine, {}, {}, []
    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return shape[0] <= 3 and (len(shape) == 1 or shape[1] <= 8)
    def get_tensor_shape(self, name):
        n, k, _ = self.shapes["features"]
        return {"sums": (n, 3), "first": (n, k)}[name]
    def set_tensor_address(self, name, address):
        self.addresses[name] = address
    def array(self, name, shape):
        import ctypes
        dtype = np.dtype(self.engine.get_tensor_dtype(name))
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self.addresses[name]), dtype).reshape(shape)
    def execute_async_v3(self, stream):
        self.portions.append(self.shapes["features"][0])
        made = self.engine.session.run(None, {n: self.array(n, s) for n, s in self.shapes.items()})
        for port, y in zip(self.engine.session.get_outputs(), made):
            self.array(port.name, y.shape)[...] = y
        return True


@pytest.mark.parametrize("package", PACKAGES)
def test_the_adapter_gives_names_shapes_and_portions_to_tensorrt(two, monkeypatch, package):
    from contextlib import nullcontext
    from types import SimpleNamespace

    import torch
    monkeypatch.setitem(sys.modules, package, Imitation(package))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0, synchronize=lambda: None))
    monkeypatch.setattr(torch, "device", lambda name: "cpu")
    listed, engine = read_sidecar(two), two.with_name("two.engine")
    resign(engine, two.read_bytes(), package=package, version="1.2.0", target="SM75", batches=[1, 2, 3],
           ranges={"n": [1, 2, 3], "k": [1, 4, 8]}, inputs=listed["inputs"], outputs=listed["outputs"])
    opened, rng = open_graph(engine), np.random.default_rng(1)
    assert opened.name == package
    given = {"features": rng.normal(size=(7, 5, 3)).astype(np.float32), "lengths": np.arange(1, 8)}
    made, exact = opened(given), open_graph(two, "onnxruntime")(given)
    assert made["sums"].shape == (7, 3) and all(np.array_equal(made[name], exact[name]) for name in exact)
    given["features"] = np.zeros((7, 9, 3), np.float32)
    with pytest.raises(EngineError, match=r"for the ranges .*'k': \[1, 4, 8\].*features has the shape \(3, 9, 3\)"):
        opened(given)

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

from mammo_nb.core.backends import EngineError, build_tensorrt, open_graph, process_graph, read_sidecar, write_graph

GRAPH = '''<ir_version: 10, opset_import: ["": 20]> shapes ({type}[{n}, 1, 40, 32] images) => (float[{n}, 2] probabilities) {{
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
    assert opened.name == backend and opened.dtype == "uint8" and opened.shape == (None if n == "n" else n, 1, 40, 32)
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
@pytest.mark.parametrize("wrong", [lambda x: x / 255, lambda x: x.astype(np.int8), lambda x: x[:, 0], lambda x: x.transpose(0, 1, 3, 2), lambda x: x[:0], lambda x: x.tolist()])
def test_other_input_is_refused_alike_by_all(path, backend, wrong):
    needs(backend)
    with pytest.raises(EngineError, match=r"takes uint8 \(n, 1, 40, 32\), n at least 1, got"):
        open_graph(path, backend)(wrong(pictures(2)))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_fixed_number_of_images_is_kept_to(tmp_path, backend):
    needs(backend)
    write_graph(graph(3), tmp_path / "g.onnx", {})
    with pytest.raises(EngineError, match=r"takes uint8 \(3, 1, 40, 32\), got uint8 \(2, "):
        open_graph(tmp_path / "g.onnx", backend)(pictures(2))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_float_inputs_have_numpys_name(tmp_path, backend):
    needs(backend)
    write_graph(graph(type="float"), tmp_path / "g.onnx", {})
    opened = open_graph(tmp_path / "g.onnx", backend)
    assert opened.dtype == "float32"
    np.testing.assert_allclose(opened(pictures(2).astype(np.float32)), by_hand(pictures(2)), atol=1e-5)


def test_the_same_graph_is_the_same_file_without_traces(path):
    model = graph()
    model.doc_string = model.graph.node[0].doc_string = "/home/somebody/train.py"
    model.graph.node[1].metadata_props.add(key="trace", value="/home/somebody/train.py")
    write_graph(model, path.with_name("h.onnx"), {})
    assert path.read_bytes() == path.with_name("h.onnx").read_bytes() and b"somebody" not in path.read_bytes()


def test_the_json_says_what_the_graph_is(path):
    assert read_sidecar(path) == {
        "purpose": "test", "format": "onnx", "opset": 20, "input": "images: uint8 (n, 1, 40, 32)",
        "output": "probabilities: float32 (n, 2)", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()
    }
    assert open_graph(path).metadata == read_sidecar(path)


@pytest.mark.parametrize("key", ["format", "opset", "input", "output", "sha256"])
def test_the_caller_cannot_say_it_otherwise(tmp_path, key):
    with pytest.raises(EngineError, match=key):
        write_graph(graph(), tmp_path / "g.onnx", {key: "mine"})
    assert not list(tmp_path.iterdir())


def test_one_tensor_in_and_one_out(tmp_path):
    model = graph()
    model.graph.output.append(onnx.helper.make_tensor_value_info("logits", 1, ["n", 2]))
    with pytest.raises(EngineError, match="1 inputs and 2 outputs"):
        write_graph(model, tmp_path / "g.onnx", {})


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
        resign(path, rubbish)
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
    assert np.abs(open_graph(path, "openvino", precision="bf16")(images) - exact).max() < 0.05


def test_a_process_opens_a_graph_once(path):
    assert process_graph(str(path)) is process_graph(str(path))
    np.testing.assert_allclose(process_graph(str(path))(pictures(3)), by_hand(pictures(3)), atol=1e-5)


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


def test_an_engine_of_another_version_is_refused(path, monkeypatch):
    here = ModuleType("tensorrt_rtx")
    here.__version__ = "1.7.1"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", here)
    engine = path.with_name("g.engine")
    resign(engine, b"engine", package="tensorrt_rtx", version="1.2.0", target="SM75", batches=[1, 2, 8])
    with pytest.raises(EngineError, match=r"1\.2\.0.*1\.7\.1.*pip install tensorrt-rtx==1\.2\.0"):
        open_graph(engine)
    with pytest.raises(EngineError, match="'tensorrt_rtx'"):
        open_graph(engine, "tensorrt")
    engine.write_bytes(b"enginE")
    with pytest.raises(EngineError, match="checksum in g.engine.json"):
        open_graph(engine)


def test_an_engine_for_another_gpu_is_refused(path, monkeypatch):
    import torch
    here = ModuleType("tensorrt_rtx")
    here.__version__ = "1.2.0"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", here)
    engine = path.with_name("g.engine")
    resign(engine, b"engine", package="tensorrt_rtx", version="1.2.0", target="SM75", batches=[1, 2, 8])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
        open_graph(engine)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(EngineError, match="built for SM75, and this GPU is SM86"):
        open_graph(engine)


def test_an_engine_needs_its_package_a_target_and_its_own_name(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(EngineError, match="pip install tensorrt-rtx"):
        build_tensorrt(path, path.with_name("g.engine"), target="SM75")
    with pytest.raises(EngineError, match="NAME.engine"):
        build_tensorrt(path, path)
    with pytest.raises(EngineError, match="'tensorrt' or 'tensorrt_rtx'"):
        build_tensorrt(path, path.with_name("g.engine"), package="onnxruntime")
    with pytest.raises(EngineError, match="batches"):
        build_tensorrt(path, path.with_name("g.engine"), target="SM75", batches=(4, 2, 8))


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
            sidecar["input"]) == (exported["sha256"], "abc", 0.3, exported["input"])
    import torch
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
            open_graph(engine)
        with pytest.raises(EngineError, match="name a target: SM75"):
            build_tensorrt(onnx_file, tmp_path / "h.engine")
    with pytest.raises(EngineError, match="no target 'SM1'"):
        build_tensorrt(onnx_file, tmp_path / "h.engine", target="SM1")
    assert not list(tmp_path.glob("h.*"))


def test_what_a_target_cannot_do_is_told(path):
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(EngineError, match="SM75.*FP32 GEMM.*write_mixed"):
        build_tensorrt(path, path.with_name("g.engine"), target="SM75")
    resign(path, b"not a graph")
    with pytest.raises(EngineError, match="g.onnx cannot be built"):
        build_tensorrt(path, path.with_name("g.engine"), target="SM75")
    assert not list(path.parent.glob("*.engine*"))

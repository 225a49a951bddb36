# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Back ends
# > One graph file, several programs that can run it, the same numbers.
#
# A network that was exported no longer needs torch. ONNX Runtime runs it anywhere, OpenVINO is quicker on many CPUs,
# TensorRT on NVIDIA's GPUs. Which of them computes should be a matter of time and not of results, so they are opened in
# one place, with the settings under which float32 means float32. torch is not loaded here: a process that cuts
# thousands of pictures starts without it.

# %%
#| default_exp core.backends

# %% tags=["parameters"]
size = (96, 64)  # height, width of the example's input, pixels

# %%
#| export
import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx

from mammo_nb.core.files import read_json, replacing, sha256, write_json

# %%
#| hide
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version

import matplotlib.pyplot as plt
import pandas as pd


# %% [markdown]
# ## Two files
# A graph is a file and a JSON beside it that says what it is. The JSON holds the graph's checksum, so that two halves
# of different runs are not taken for one. Exporters write comments and source locations into the graph, with the
# folders of the machine they ran on. None of that belongs in a file that is handed out; without it, and with the bytes
# in a fixed order, the same graph is the same file.

# %%
#| export
class EngineError(Exception):
    "A graph or an engine that cannot be made, read or fed, with the remedy."

def add_entries(
    metadata: dict,  # the caller's entries
    own: dict,       # those that an export makes
) -> dict:           # both
    "Both sets of entries, if no key is in both."
    if taken := sorted({*own} & {*metadata}):
        raise EngineError(f"metadata may not set {', '.join(taken)}: the export does.")
    return {**metadata, **own}

def strip_traces(
    model: onnx.ModelProto,  # changed in place
) -> None:
    "Remove comments and source locations, which name folders of the machine."
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer,
                 *model.functions, *(n for f in model.functions for n in f.node)):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")

def _describe(value: onnx.ValueInfoProto) -> str:
    "Such as 'images: uint8 (n, 1, 96, 64)'."
    tensor = value.type.tensor_type
    dims = ", ".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
    return f"{value.name}: {onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)} ({dims})"

def write_graph(
    model: onnx.ModelProto,  # one input, one output; its traces are removed
    path: Path,              # NAME.onnx
    metadata: dict,          # entries for NAME.json
) -> dict:                   # NAME.json
    "Write NAME.onnx and NAME.json, each complete or not at all."
    path, ends = Path(path), (model.graph.input, model.graph.output)
    if [len(e) for e in ends] != [1, 1]:
        raise EngineError(
            f"{path.name} would have {len(ends[0])} inputs and {len(ends[1])} outputs: put what it takes into one "
            "tensor, and what it gives."
        )
    strip_traces(model)
    content = model.SerializeToString(deterministic=True)
    sidecar = add_entries(
        metadata, {
            "format": "onnx", "opset": model.opset_import[0].version, "input": _describe(ends[0][0]),
            "output": _describe(ends[1][0]), "sha256": hashlib.sha256(content).hexdigest()
        })
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    write_json(sidecar_path(path), sidecar)
    return sidecar

def sidecar_path(
    path: Path,  # NAME.onnx or NAME.engine
) -> Path:       # NAME.json or NAME.engine.json: both kinds may lie in one folder
    "The JSON beside a graph."
    return path.with_suffix(".json" if path.suffix == ".onnx" else path.suffix + ".json")

def read_sidecar(
    path: Path,  # NAME.onnx or NAME.engine
) -> dict:       # the JSON beside it
    "What a graph says of itself, once it is known that both files are there and belong together."
    path = Path(path)
    sidecar = sidecar_path(path)
    for needed in (path, sidecar):
        if not needed.is_file():
            raise EngineError(
                f"{needed.name} is not there. An engine is two files, {path.name} and {sidecar.name}: copy both.")
    try:
        metadata = read_json(sidecar)
    except ValueError as e:
        raise EngineError(f"{sidecar.name} is no JSON ({e}): copy it again.") from e
    if not isinstance(metadata, dict) or metadata.get("sha256") != sha256(path):
        raise EngineError(
            f"{path.name} differs from the checksum in {sidecar.name}. The two belong to different runs, or one was "
            "damaged: copy both again."
        )
    return metadata

# %% [markdown]
# The example is written in ONNX's own language. It takes 8-bit pictures, as the networks of this project do, and its
# weights are drawn: two layers of kernels, the mean of each map, a sigmoid.

# %%
rng = np.random.default_rng(0)
model = onnx.parser.parse_model(
    f'''<ir_version: 10, opset_import: ["": 20]> spots (uint8[n, 1, {size[0]}, {size[1]}] images) => (float[n, 2] probabilities) {{
    grey = Cast<to = 1>(images)
    x = Div(grey, white)
    maps = Conv<strides = [2, 2]>(x, kernels)
    rectified = Relu(maps)
    deep = Conv<strides = [2, 2]>(rectified, more)
    means = ReduceMean<keepdims = 0>(deep, area)
    logits = MatMul(means, weights)
    probabilities = Sigmoid(logits)
}}''')
for name, values in {
        "white": 255., "kernels": rng.normal(size=(8, 1, 5, 5)), "more": rng.normal(size=(16, 8, 3, 3)),
        "weights": rng.normal(size=(16, 2)) / 4
}.items():
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values, np.float32), name))
model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3]), "area"))
onnx.checker.check_model(model)
folder = Path(tempfile.mkdtemp())
model.graph.node[0].doc_string = str(Path.cwd() / "train.py")
sidecar = write_graph(model, folder / "spots.onnx", {"purpose": "example"})
assert str(Path.cwd()).encode() not in (folder / "spots.onnx").read_bytes() and read_sidecar(
    folder / "spots.onnx") == sidecar
assert write_graph(model, folder / "again.onnx", {})["sha256"] == sidecar["sha256"]
pd.Series(sidecar, name="spots.json").to_frame()

# %% [markdown]
# ## One way to run
# Whatever computes behind it, a graph takes one array and gives one. OpenVINO would turn float pictures into 8-bit ones
# without a word, ONNX Runtime would not; so the input is checked here, once for all.

# %%
#| export
@dataclass(frozen=True)
class Graph:
    "A graph that is ready to run."
    # the package that computes: 'onnxruntime', 'openvino', 'tensorrt' or 'tensorrt_rtx'
    name: str
    path: Path                             # the file
    metadata: dict                         # the JSON beside the file
    dtype: str                             # of the input, such as 'uint8'
    shape: tuple[int | None, ...]          # of the input; None = any
    compute: Callable = field(repr=False)  # array -> array

    def __call__(self,
        x: np.ndarray,  # of this dtype and shape
    ) -> np.ndarray:    # what the graph gives
        got = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        if not isinstance(x, np.ndarray) or x.dtype != self.dtype or x.ndim != len(self.shape) or any(
                w not in (None, n) for w, n in zip(self.shape, x.shape)) or not x.size:
            raise EngineError(
                f"{self.path.name} takes {self.dtype} "
                f"({', '.join('n' if n is None else str(n) for n in self.shape)}){', n at least 1' if None in self.shape else ''}, "
                f"got {got}."
            )
        return self.compute(np.ascontiguousarray(x))

@dataclass(frozen=True)
class Backend:
    "A package that runs graphs."
    suffix: str                          # of the files that it runs
    pip: str                             # what to install
    precisions: tuple[str, ...]          # that it can be asked for
    open: Callable = field(repr=False)   # path, metadata, threads, precision, device -> dtype, shape, compute

BACKENDS: dict[str, Backend] = {}  # package -> how to run with it; the first that fits a file is its default

def _package(name: str) -> ModuleType:
    "The package of a back end."
    try:
        return import_module(name)
    except (ImportError, OSError) as e:
        raise EngineError(f"{name} cannot be loaded ({e}): pip install {BACKENDS[name].pip}") from e

# %% [markdown]
# **ONNX Runtime** comes with the project. On a GPU it would multiply with 10 bits of mantissa (TF32) if it were not
# told otherwise, and where CUDA's libraries are missing it takes the processor and says so only in its log; who asked
# for the GPU gets an error instead. Since 1.29 its builds for Linux and macOS, too, report sessions and names of models
# to Microsoft and keep an identifier in the home folder; a variable that is set before its first import turns that off.
# Nothing that computes on patients' pictures should call home unasked.

# %%
#| export
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # processes started from here inherit it

def _open_onnxruntime(path: Path, metadata: dict, threads: int | None, precision: str, device: str) -> tuple:
    runtime = _package("onnxruntime")
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile, NotImplemented
    options = runtime.SessionOptions()
    options.use_deterministic_compute = True
    if threads:
        options.intra_op_num_threads = threads
    kind, _, number = device.partition(":")
    # float32 means float32 on a GPU, too
    wanted = {"CUDAExecutionProvider": {"use_tf32": 0, "device_id": number or "0"}, "CPUExecutionProvider": {}}
    if kind == "cpu":
        del wanted["CUDAExecutionProvider"]
    providers = [(p, o) for p, o in wanted.items() if p in runtime.get_available_providers()]
    try:
        session = runtime.InferenceSession(path, options, providers=providers)
    except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile, NotImplemented) as e:
        raise EngineError(
            f"{path.name} cannot be run by onnxruntime {runtime.__version__} ({e}). Export it again with these "
            "versions."
        ) from e
    if kind == "cuda" and (got := session.get_providers()[0]) != "CUDAExecutionProvider":
        raise EngineError(
            f"onnxruntime {runtime.__version__} would run {path.name} with its {got}: pip install onnxruntime-gpu in "
            "place of onnxruntime, for the CUDA of this machine."
        )
    taken = session.get_inputs()[0]
    dtype = taken.type.removeprefix("tensor(").removesuffix(")")  # C's names: 'float' is NumPy's float32
    return {"float": "float32", "double": "float64"}.get(dtype, dtype), tuple(
        n if isinstance(n, int) else None for n in taken.shape), lambda x: session.run(None, {taken.name: x})[0]

# %% [markdown]
# **OpenVINO** computes in bfloat16 by itself where the processor can, which moves a logit by some thousandths; here it
# has to be asked for. It also binds its threads to cores, and processes beside each other may choose the same ones;
# that is off. And its mere import reports to Google Analytics and leaves files in the home folder; the package that
# does so is hidden from it, and then it uses a stub of its own.

# %%
#| export
def _open_openvino(path: Path, metadata: dict, threads: int | None, precision: str, device: str) -> tuple:
    if device.startswith("cuda"):
        raise EngineError("openvino computes on the CPU, not on an NVIDIA GPU: ask for device 'cpu'.")
    sys.modules.setdefault("openvino_telemetry", None)  # an import of it fails
    openvino = _package("openvino")
    options = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision], "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise EngineError("This processor has no bfloat16: ask for precision 'fp32'.")
    try:
        model = core.read_model(path)
        compiled = core.compile_model(model, "CPU", options)
    except RuntimeError as e:
        raise EngineError(
            f"{path.name} cannot be run by openvino {openvino.__version__} ({str(e).strip()}). Export it again with "
            "these versions."
        ) from e
    taken = model.input(0)
    return taken.element_type.to_dtype().name, tuple(
        None if n.is_dynamic else n.get_length() for n in taken.partial_shape), lambda x: compiled([x])[0]

# %%
#| export
BACKENDS |= {"onnxruntime": Backend(".onnx", "onnxruntime", ("fp32",), _open_onnxruntime),
             "openvino": Backend(".onnx", "openvino", ("fp32", "bf16"), _open_openvino)}

def open_graph(
    path: Path,                  # NAME.onnx or NAME.engine, its JSON beside it
    backend: str = "auto",       # a key of BACKENDS that fits the file; 'auto' = onnxruntime, or what built the engine
    threads: int | None = None,  # threads on the CPU; None = one a core
    precision: str = "fp32",     # or, with openvino, 'bf16' where the processor has it; a file in float16 keeps its own
    device: str = "",            # 'cpu', 'cuda' or 'cuda:1'; "": a GPU if the package sees one
) -> Graph:
    "Open a graph with one of the back ends."
    path = Path(path)
    metadata = read_sidecar(path)
    fits = [name for name, b in BACKENDS.items() if b.suffix == path.suffix and metadata.get("package", name) == name]
    if not fits:
        raise EngineError(
            f"{path.name} is of no kind that can be run: {', '.join(sorted({b.suffix for b in BACKENDS.values()}))}.")
    name = fits[0] if backend == "auto" else backend
    if name not in fits:
        raise EngineError(f"No backend {backend!r} for {path.name}: it is 'auto' or {' or '.join(map(repr, fits))}.")
    if precision not in BACKENDS[name].precisions:
        raise EngineError(
            f"No precision {precision!r} with {name}: it is {' or '.join(map(repr, BACKENDS[name].precisions))}.")
    return Graph(name, path, metadata, *BACKENDS[name].open(path, metadata, threads, precision, device))

@lru_cache(maxsize=4)
def process_graph(
    path: str,             # NAME.onnx or NAME.engine
    backend: str = "auto",
) -> Graph:
    "A graph of this process, opened once and on one thread: where work is spread over processes, they share the cores."
    return open_graph(Path(path), backend, threads=1)

# %% [markdown]
# Bright spots of many sizes give answers that are spread out; pictures that all get the same answer would hide a
# difference.

# %%
rows, columns = np.mgrid[:size[0], :size[1]]
spots = [
    np.exp(-((rows - r * size[0])**2 + (columns - c * size[1])**2) / (2 * w**2))
    for r, c, w in zip(rng.random(24), rng.random(24), np.geomspace(2, 60, 24))
]
pictures = (255 * np.stack(spots)).round().astype(np.uint8)[:, None]
graph = open_graph(folder / "spots.onnx")
reference = graph(pictures)
assert graph.name == "onnxruntime" and graph.dtype == "uint8" and graph.shape == (
    None, 1, *size) and reference.shape == (24, 2) and np.ptp(reference) > 0.3
for wrong in (pictures / 255, pictures[0], pictures.transpose(0, 1, 3, 2), pictures[:0], [1, 2]):
    try:
        graph(wrong)
    except EngineError as e:
        print(e)
    else:
        raise AssertionError
graph

# %% [markdown]
# What cannot be opened says why, and what would help:

# %%
damaged = bytearray((folder / "again.onnx").read_bytes())
damaged[-100] ^= 1
(folder / "again.onnx").write_bytes(damaged)
for name, options in ("none.onnx", {}), ("again.onnx", {}), ("spots.onnx", {"backend": "coreml"}), ("spots.onnx", {
        "precision": "int8"
}):
    try:
        open_graph(folder / name, **options)
    except EngineError as e:
        print(e)
    else:
        raise AssertionError

# %% [markdown]
# ## TensorRT
# An engine is a graph translated for one kind of GPU by one version of one package: NVIDIA's `tensorrt`, which
# translates on the machine that has the GPU, or `tensorrt_rtx`, which does so ahead of time on any machine. Neither
# opens an engine of another version, and the message it has for that is hard to read; so version and target stand in
# the JSON and are compared first.
#
# Numbers keep the types they have in the graph. With a target of SM75 (the T4 of Kaggle's notebooks) `tensorrt_rtx` has
# no matrix products in float32, and such a graph is refused: [mixed precision](08_graphs.py) is what it takes.
#
# **Not verified here:** there was no GPU where this was written. Building ahead of time was run, and being refused
# without a driver; the lines after the comparison of the targets, and `tensorrt` as a whole, follow NVIDIA's
# documentation and have not run.

# %%
#| export
def _target(device: str = "cuda") -> str | None:
    "A GPU of this machine by compute capability, such as 'SM75'; None if torch finds none."
    import torch  # slow to load, and not needed by the other back ends
    return "SM{}{}".format(*torch.cuda.get_device_capability(device)) if torch.cuda.is_available() else None

def _logger(trt: ModuleType):
    "A logger that keeps errors for the exception that follows, and says nothing."
    class Logger(trt.ILogger):
        def __init__(self):
            super().__init__()
            self.errors = []
        def log(self, severity, message):
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)
    return Logger()

def build_tensorrt(
    path_onnx: Path,                              # NAME.onnx, its JSON beside it
    path_engine: Path,                            # NAME.engine; NAME.engine.json is written beside it
    *,
    package: str = "tensorrt_rtx",                # or 'tensorrt'
    target: str | None = None,                    # a kind of GPU, such as 'SM75'; None = that of this machine
    # images at once: fewest, usual, most; a graph with a fixed number keeps it
    batches: tuple[int, int, int] = (1, 2, 8),
) -> dict:                                        # NAME.engine.json
    "Translate a graph for a GPU."
    path_onnx, path_engine, kinds = Path(path_onnx), Path(path_engine), [
        n for n, b in BACKENDS.items() if b.suffix == ".engine"
    ]
    if path_engine.suffix != ".engine" or package not in kinds:
        raise EngineError(
            f"{path_engine.name} by {package!r}: an engine is named NAME.engine and built by "
            f"{' or '.join(map(repr, kinds))}."
        )
    if not 1 <= batches[0] <= batches[1] <= batches[2]:
        raise EngineError(
            f"batches is {batches}: give the fewest, the usual and the most images at once, in this order.")
    metadata, trt = read_sidecar(path_onnx), _package(package)
    # targets that need no GPU here
    ahead = sorted((t for t in dir(getattr(trt, "ComputeCapability", None)) if t.startswith("SM")),
                   key=lambda t: int(t[2:]))
    if target is not None and target not in ahead:
        raise EngineError(
            f"{package} {trt.__version__} has no target {target!r}: it is "
            f"{', '.join([*ahead, 'or None'] if ahead else ['None'])}, which is the GPU of this machine."
        )
    named, target = target, target or _target()
    if target is None:
        raise EngineError(
            "torch finds no GPU to build for. Build on the machine that has "
            f"it{', or name a target: ' + ', '.join(ahead) if ahead else ''}."
        )
    logger, failed = _logger(trt), f"{path_onnx.name} cannot be built for {target} by {package} {trt.__version__}"
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path_onnx.read_bytes()):
        raise EngineError(f"{failed}: {'; '.join(parser.get_error(k).desc() for k in range(parser.num_errors))}")
    config, taken = builder.create_builder_config(), network.get_input(0)
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    if ahead:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, named or "CURRENT"), 0)
    if taken.shape[0] == -1:
        profile = builder.create_optimization_profile()
        profile.set_shape(taken.name, *((n, *tuple(taken.shape)[1:]) for n in batches))
        config.add_optimization_profile(profile)
    else:
        batches = (taken.shape[0],) * 3
    content = builder.build_serialized_network(network, config)
    if content is None:
        reason = "; ".join(logger.errors)
        raise EngineError(
            f"{failed}: {reason}{' Convert it with write_mixed of core/graphs first.' if 'FP32 GEMM' in reason else ''}"
        )
    with replacing(path_engine) as temporary:
        temporary.write_bytes(content)
    sidecar = {
        **{k: v for k, v in metadata.items() if k not in ("format", "opset", "sha256")}, "format": "tensorrt",
        "package": package, "version": trt.__version__, "target": target, "batches": list(batches),
        "onnx_sha256": metadata["sha256"], "sha256": sha256(path_engine)
    }
    write_json(sidecar_path(path_engine), sidecar)
    return sidecar

# %% [markdown]
# torch's tensors are the buffers on the GPU, and its current stream the queue. More images than the engine takes at
# once go in portions.

# %%
#| export
def _open_tensorrt(path: Path, metadata: dict, threads: int | None, precision: str, device: str) -> tuple:
    package, built = metadata["package"], metadata["version"]
    trt = _package(package)
    if trt.__version__ != built:
        raise EngineError(
            f"{path.name} was built by {package} {built}, and this is {trt.__version__}: pip install "
            f"{BACKENDS[package].pip}=={built}, or build it again from its ONNX file."
        )
    if device == "cpu" or (here := _target(device or "cuda")) is None:
        raise EngineError(
            f"{path.name} needs an NVIDIA GPU and its driver, and "
            f"{'the CPU was asked for' if device == 'cpu' else 'torch finds none here'}: run its ONNX file instead."
        )
    if here != metadata["target"]:
        raise EngineError(
            f"{path.name} was built for {metadata['target']}, and this GPU is {here}: build it again for {here}, or "
            "run its ONNX file."
        )
    import torch
    logger, gpu = _logger(trt), torch.device(device or "cuda")
    with torch.cuda.device(gpu):
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        context = engine and engine.create_execution_context()
    if context is None:
        raise EngineError(f"{path.name} cannot be run by {package} {built}: {'; '.join(logger.errors)}")
    modes = {engine.get_tensor_mode(n): n for n in map(engine.get_tensor_name, range(engine.num_io_tensors))}
    taken, given = modes[trt.TensorIOMode.INPUT], modes[trt.TensorIOMode.OUTPUT]
    dtype, out = (np.dtype(trt.nptype(engine.get_tensor_dtype(n))).name for n in (taken, given))

    def portion(images):
        x = torch.from_numpy(images).to(gpu)
        if not context.set_input_shape(taken, tuple(x.shape)):
            raise EngineError(
                f"{path.name} takes {metadata['batches'][0]} to {metadata['batches'][2]} images at once, got {len(x)}.")
        y = torch.empty(tuple(context.get_tensor_shape(given)), dtype=getattr(torch, out), device=x.device)
        context.set_tensor_address(taken, x.data_ptr())
        context.set_tensor_address(given, y.data_ptr())
        with torch.cuda.device(gpu):
            stream = torch.cuda.current_stream()
            done = context.execute_async_v3(stream.cuda_stream)
            stream.synchronize()
        if not done:
            raise EngineError(f"{path.name} failed: {'; '.join(logger.errors) or runtime}")
        return y.cpu().numpy()

    most = metadata["batches"][2]
    return dtype, tuple(None if n == -1 else n for n in engine.get_tensor_shape(
        taken)), lambda x: np.concatenate([portion(x[k:k + most]) for k in range(0, len(x), most)])

BACKENDS |= {"tensorrt": Backend(".engine", "tensorrt", ("fp32",), _open_tensorrt),
             "tensorrt_rtx": Backend(".engine", "tensorrt-rtx", ("fp32",), _open_tensorrt)}

# %% [markdown]
# Here is what this machine says. Where `tensorrt_rtx` is installed, SM75 is refused for its matrix product in float32,
# SM86 is built, and without such a GPU the engine is not opened.

# %%
for target in "SM75", "SM86":
    try:
        started = time.monotonic()
        build_tensorrt(folder / "spots.onnx", folder / f"spots_{target}.engine", target=target)
        print(
            f"{target}: {(folder / f'spots_{target}.engine').stat().st_size / 1e6:.1f} MB in "
            f"{time.monotonic() - started:.1f} s"
        )
        print(open_graph(folder / f"spots_{target}.engine"))
    except EngineError as e:
        print(f"{target}: {e}")

# %% [markdown]
# ## What came out
# The back ends on this machine, and how far each is from ONNX Runtime on the same pictures, one by one and all at once.

# %%
found = {}
for name, backend in BACKENDS.items():
    try:
        found[name] = {
            "files": backend.suffix, "version": version(backend.pip), "precisions": ", ".join(backend.precisions)
        }
    except PackageNotFoundError:
        found[name] = {
            "files": backend.suffix, "version": f"pip install {backend.pip}", "precisions": ", ".join(
                backend.precisions)
        }
pd.DataFrame(found).T

# %%
others, told = {}, []
for name, precision in ("openvino", "fp32"), ("openvino", "bf16"):
    try:
        others[f"{name}, {precision}"] = open_graph(folder / "spots.onnx", name, precision=precision)
    except EngineError as e:
        told.append(str(e))
others["onnxruntime, one by one"] = lambda x: np.concatenate([graph(x[k:k + 1]) for k in range(len(x))])
differences = {name: np.abs(other(pictures).astype(np.float64) - reference).max(1) for name, other in others.items()}
assert all(d.max() <= 1e-4 for name, d in differences.items() if "bf16" not in name)
fig, ax = plt.subplots(figsize=(8, 3))
for marker, (name, d) in zip("osx", differences.items()):
    ax.plot(np.maximum(d, 1e-9), marker, label=f"{name}: at most {d.max():.1e}", alpha=0.7)
ax.axhline(1e-4, color="lightgrey")
ax.set(yscale="log", ylim=(3e-10, 1), xlabel="picture", ylabel="difference",
       title="probabilities, against onnxruntime (0 is drawn at 1e-9)")
ax.legend(loc="upper left", ncols=2, fontsize=8)
fig.tight_layout()
for line in told:
    print(line)

# %% [markdown]
# A worker process asks by name, and gets the same open graph each time.

# %%
assert process_graph(str(folder / "spots.onnx")) is process_graph(str(folder / "spots.onnx"))
assert np.abs(process_graph(str(folder / "spots.onnx"))(pictures) - reference).max() <= 1e-5

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Back ends
# > One graph file, several packages that can run it, the same numbers.
#
# A network that was exported no longer needs torch. ONNX Runtime runs it anywhere, OpenVINO is faster on many CPUs,
# TensorRT on NVIDIA's GPUs. The choice should change the time and not the results, so all of them are opened in one
# place, with settings that compute float32 with all of its digits. torch is not imported here, so a process that crops
# thousands of pictures starts without it.

# %%
#| default_exp core.backends

# %% tags=["parameters"]
size = (96, 64)  # height, width of the example's input, pixels

# %%
#| export
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from mammo_nb.core.sidecars import (EngineError, Tensor, check_inputs, check_outputs, read_sidecar, read_tensors,
                                    sidecar_path)
from mammo_nb.core.tensorrt import load_package, open_tensorrt

# %%
#| hide
import tempfile
from importlib.metadata import PackageNotFoundError, version

import matplotlib.pyplot as plt
import onnx
import pandas as pd

from mammo_nb.core.sidecars import write_graph

# %% [markdown]
# ## One way to run
# With every package a graph takes arrays by name and gives arrays by name; where there is only one, the array alone.
# Inputs are compared with the JSON before the computation and results after it.

# %%
#| export
@dataclass(frozen=True)
class Graph:
    "A network that is ready to run."
    name: str                              # what computes: a key of BACKENDS, or 'torch'
    path: Path                             # the file; of a network in memory a name
    metadata: dict = field(repr=False)     # the JSON beside the file
    inputs: tuple[Tensor, ...]             # what it takes
    outputs: tuple[Tensor, ...]            # what it gives
    compute: Callable = field(repr=False)  # arrays by name -> arrays by name

    def __call__(self,
        given: np.ndarray | Mapping[str, np.ndarray],  # the only input, or all inputs by name
    ) -> np.ndarray | dict[str, np.ndarray]:           # the only output, or all outputs by name
        arrays, words = check_inputs(self.inputs, given, self.path.name)
        made = self.compute(arrays)
        check_outputs(self.outputs, made, words, f"{self.path.name} by {self.name}")
        return made if len(self.outputs) > 1 else made[self.outputs[0].name]

@dataclass(frozen=True)
class Backend:
    "A package that runs graphs."
    suffix: str                          # of the files that it runs
    pip: str                             # what to install
    precisions: tuple[str, ...]          # that can be requested
    open: Callable = field(repr=False)   # path, metadata, threads, precision, device -> inputs, outputs, compute

# %% [markdown]
# **ONNX Runtime** comes with the project. On a GPU it would multiply with 10 bits of mantissa (TF32), which is switched
# off. Where CUDA's libraries are missing it falls back to the CPU and only logs it; here a request for the GPU is then
# an error. Since 1.29 its builds for Linux and macOS report sessions and names of models to Microsoft and keep an
# identifier in the home folder. A variable that is set before its first import turns that off: nothing that computes on
# patients' pictures should report anything.

# %%
#| export
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # processes started from here inherit it
_NUMPY = {"float": "float32", "double": "float64"}   # ONNX Runtime uses C's names for these

def _runtime_tensors(ports: list) -> tuple[Tensor, ...]:
    found = []
    for port in ports:
        dtype = port.type.removeprefix("tensor(").removesuffix(")")
        shape = tuple(n if isinstance(n, int) else "?" for n in port.shape)
        found.append(Tensor(port.name, _NUMPY.get(dtype, dtype), shape))
    return tuple(found)

def _open_onnxruntime(path: Path, metadata: dict, threads: int | None, precision: str, device: str) -> tuple:
    runtime = load_package("onnxruntime", BACKENDS["onnxruntime"].pip)
    from onnxruntime.capi.onnxruntime_pybind11_state import (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf,
                                                             NoSuchFile, NotImplemented)
    options = runtime.SessionOptions()
    options.use_deterministic_compute = True
    if threads:
        options.intra_op_num_threads = threads
    kind, _, number = device.partition(":")
    wanted = {"CUDAExecutionProvider": {"use_tf32": 0, "device_id": number or "0"}, "CPUExecutionProvider": {}}
    if kind == "cpu":
        del wanted["CUDAExecutionProvider"]
    providers = [(p, o) for p, o in wanted.items() if p in runtime.get_available_providers()]
    try:
        session = runtime.InferenceSession(path, options, providers=providers)
    except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile, NotImplemented) as e:
        raise EngineError(f"{path.name} cannot be run by onnxruntime {runtime.__version__} ({e}). Export it again with "
                          "these versions.") from e
    if kind == "cuda" and (got := session.get_providers()[0]) != "CUDAExecutionProvider":
        raise EngineError(f"onnxruntime {runtime.__version__} would run {path.name} with its {got}: pip install "
                          "onnxruntime-gpu in place of onnxruntime, for the CUDA of this machine.")
    names = [o.name for o in session.get_outputs()]

    def compute(arrays):
        return dict(zip(names, session.run(names, arrays)))

    return _runtime_tensors(session.get_inputs()), _runtime_tensors(session.get_outputs()), compute

# %% [markdown]
# **OpenVINO** computes in bfloat16 by default where the processor can, which moves a logit by some thousandths; here
# bfloat16 has to be requested. It also binds its threads to cores, and processes beside each other may choose the same
# ones; that is off. Its mere import reports to Google Analytics and leaves files in the home folder. The package that
# does so is hidden from it, and OpenVINO then uses a stub of its own.

# %%
#| export
def _openvino_tensors(ports: list, declared: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    "OpenVINO may have several names for one tensor; the one of the JSON is taken if it is among them."
    found = []
    for port in ports:
        names = port.get_names()
        name = next((t.name for t in declared if t.name in names), min(names, default="?"))
        shape = tuple("?" if n.is_dynamic else n.get_length() for n in port.partial_shape)
        found.append(Tensor(name, np.dtype(port.element_type.to_dtype()).name, shape))
    return tuple(found)

@cache
def _openvino_core():
    """OpenVINO of this process. A core gives the calling thread another stack for signals, and takes it away at its
    end (2026.4). Of two cores, the one that ends last restores the stack that the other has freed, and the next signal
    with a handler ends the process. So there is one, which stays."""
    from openvino import Core
    return Core()

def _open_openvino(path: Path, metadata: dict, threads: int | None, precision: str, device: str) -> tuple:
    if device.startswith("cuda"):
        raise EngineError("openvino computes on the CPU, not on an NVIDIA GPU: use device 'cpu'.")
    sys.modules.setdefault("openvino_telemetry", None)  # an import of it fails
    openvino = load_package("openvino", BACKENDS["openvino"].pip)
    core = _openvino_core()
    options = {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision], "NUM_STREAMS": 1,
               "ENABLE_CPU_PINNING": False}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise EngineError("This processor has no bfloat16: use precision 'fp32'.")
    try:
        model = core.read_model(path)
        compiled = core.compile_model(model, "CPU", options)
    except RuntimeError as e:
        raise EngineError(f"{path.name} cannot be run by openvino {openvino.__version__} ({str(e).strip()}). Export it "
                          "again with these versions.") from e
    declared = (*_listed(path, metadata, "inputs"), *_listed(path, metadata, "outputs"))
    inputs, outputs = (_openvino_tensors(ports, declared) for ports in (model.inputs, model.outputs))

    def compute(arrays):
        made = compiled([arrays[t.name] for t in inputs])
        return {t.name: made[k] for k, t in enumerate(outputs)}

    return inputs, outputs, compute

# %% [markdown]
# ## Open
# What the package finds in the file is compared with what the JSON lists. A dimension of an input has to be free in
# both or in neither. Packages may report less about the outputs, so there a free dimension fits any number.

# %%
#| export
BACKENDS = {  # package -> how to run with it; the first that fits a file is its default
    "onnxruntime": Backend(".onnx", "onnxruntime", ("fp32",), _open_onnxruntime),
    "openvino": Backend(".onnx", "openvino", ("fp32", "bf16"), _open_openvino),
    "tensorrt": Backend(".engine", "tensorrt", ("fp32",), open_tensorrt),
    "tensorrt_rtx": Backend(".engine", "tensorrt-rtx", ("fp32",), open_tensorrt),
}

def _listed(path: Path, metadata: dict, key: str) -> tuple[Tensor, ...]:
    return read_tensors(metadata, key, sidecar_path(path).name)

def _compare(
    declared: tuple[Tensor, ...],  # of the JSON
    found: tuple[Tensor, ...],     # by the package, in the file
    path: Path,
    exact: bool,                   # of inputs: what is free in one is free in the other
) -> None:
    "Raise EngineError if a file is not what its JSON describes."
    by_name = {t.name: t for t in found}
    for tensor in declared:
        other = by_name.get(tensor.name)
        same = other is not None and other.dtype == tensor.dtype and len(other.shape) == len(tensor.shape)
        if same:
            for a, b in zip(tensor.shape, other.shape):
                free = isinstance(a, str), isinstance(b, str)
                same = same and (a == b or all(free) or not exact and any(free))
        if not same or len(found) != len(declared):
            raise EngineError(f"{sidecar_path(path).name} lists {tensor}, and {path.name} has "
                              f"{'; '.join(map(str, found))}. The two do not belong together: export the network "
                              "again.")

def open_graph(
    path: Path,                  # NAME.onnx or NAME.engine, its JSON beside it
    backend: str = "auto",       # a key of BACKENDS that fits the file; 'auto' = onnxruntime, or what built the engine
    threads: int | None = None,  # threads on the CPU; None = one for each core
    precision: str = "fp32",     # or, with openvino, 'bf16' where the processor has it; a file in float16 keeps its own
    device: str = "",            # 'cpu', 'cuda' or 'cuda:1'; "": a GPU if the package finds one
) -> Graph:
    "Open a graph with one of the back ends. Raises EngineError."
    path = Path(path)
    metadata = read_sidecar(path)
    fits = [name for name, b in BACKENDS.items() if b.suffix == path.suffix and metadata.get("package", name) == name]
    if not fits:
        names = sorted({"NAME" + b.suffix for b in BACKENDS.values()})
        raise EngineError(f"{path.name} cannot be run: files are named {' or '.join(names)}.")
    name = fits[0] if backend == "auto" else backend
    if name not in fits:
        raise EngineError(f"No backend {backend!r} for {path.name}: it is 'auto' or {' or '.join(map(repr, fits))}.")
    if precision not in BACKENDS[name].precisions:
        choices = " or ".join(map(repr, BACKENDS[name].precisions))
        raise EngineError(f"No precision {precision!r} with {name}: it is {choices}.")
    inputs, outputs = _listed(path, metadata, "inputs"), _listed(path, metadata, "outputs")
    found_in, found_out, compute = BACKENDS[name].open(path, metadata, threads, precision, device)
    _compare(inputs, found_in, path, exact=True)
    _compare(outputs, found_out, path, exact=False)
    return Graph(name, path, metadata, inputs, outputs, compute)

@lru_cache(maxsize=4)
def process_graph(
    path: str,             # NAME.onnx or NAME.engine
    backend: str = "auto",
) -> Graph:
    "Open a graph once in this process, on one thread, since the processes of a run share the cores."
    return open_graph(Path(path), backend, threads=1)

def bright_spots(
    size: tuple[int, int],     # height, width, pixels
    rng: np.random.Generator,  # draws the centres
    n: int = 24,               # number of pictures
) -> np.ndarray:               # uint8 (n, height, width)
    "Draw pictures of one bright spot each, of many sizes, for which networks with random weights give many results."
    rows, columns = np.mgrid[:size[0], :size[1]]
    spots = [
        np.exp(-((rows - r * size[0])**2 + (columns - c * size[1])**2) / (2 * w**2))
        for r, c, w in zip(rng.random(n), rng.random(n), np.geomspace(2, 60, n))
    ]
    return (255 * np.stack(spots)).round().astype(np.uint8)

# %% [markdown]
# The example is written in ONNX's own language. It takes 8-bit pictures and a number of millimetres for each, and has
# two outputs; its weights are drawn: two layers of kernels, the mean of each map, a sigmoid.

# %%
rng = np.random.default_rng(0)
model = onnx.parser.parse_model(
    f'''<ir_version: 10, opset_import: ["": 20]> spots (uint8[n, 1, {size[0]}, {size[1]}] images, float[n, 1] spacing)
    => (float[n, 2] probabilities, float[n, 16] means) {{
    grey = Cast<to = 1>(images)
    x = Div(grey, white)
    maps = Conv<strides = [2, 2]>(x, kernels)
    rectified = Relu(maps)
    deep = Conv<strides = [2, 2]>(rectified, more)
    averages = ReduceMean<keepdims = 0>(deep, area)
    means = Mul(averages, spacing)
    logits = MatMul(means, weights)
    probabilities = Sigmoid(logits)
}}''')
drawn = {
    "white": 255.,
    "kernels": rng.normal(size=(8, 1, 5, 5)),
    "more": rng.normal(size=(16, 8, 3, 3)),
    "weights": rng.normal(size=(16, 2)) / 4,
}
for name, values in drawn.items():
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values, np.float32), name))
model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3]), "area"))
onnx.checker.check_model(model)
folder = Path(tempfile.mkdtemp())
stated = [Tensor("images", "uint8", ("n", 1, *size), "NCHW"),
          Tensor("probabilities", "float32", ("n", 2), "NC", "sigmoid", ("spot", "no spot"))]
sidecar = write_graph(model, folder / "spots.onnx", {"purpose": "example"}, stated)
pd.DataFrame([*sidecar["inputs"], *sidecar["outputs"]]).fillna("")

# %% [markdown]
# Bright spots of many sizes give results that are spread out; pictures with equal results would hide a difference.

# %%
pictures = bright_spots(size, rng)[:, None]
arrays = {"images": pictures, "spacing": np.linspace(.5, 2, 24, dtype=np.float32)[:, None]}
graph = open_graph(folder / "spots.onnx")
reference = graph(arrays)["probabilities"]
assert graph.name == "onnxruntime" and reference.shape == (24, 2) and np.ptp(reference) > 0.3
for wrong in (pictures, {**arrays, "images": pictures / 255}, {**arrays, "images": pictures.transpose(0, 1, 3, 2)},
              {**arrays, "spacing": arrays["spacing"][:3]}, {**arrays, "images": pictures[:0]}):
    try:
        graph(wrong)
    except EngineError as e:
        print(e)
    else:
        raise AssertionError
graph

# %% [markdown]
# A file that cannot be opened is refused with the reason and the remedy. The last one has a JSON that lists another
# width:

# %%
write_graph(model, folder / "again.onnx", {})
damaged = bytearray((folder / "again.onnx").read_bytes())
damaged[-100] ^= 1
(folder / "again.onnx").write_bytes(damaged)
write_graph(model, folder / "other.onnx", {})
other = folder / "other.json"
other.write_text(other.read_text().replace(str(size[1]), str(size[1] + 1)))
for name, options in (("none.onnx", {}), ("again.onnx", {}), ("spots.onnx", {"backend": "coreml"}),
                      ("spots.onnx", {"precision": "int8"}), ("other.onnx", {})):
    try:
        open_graph(folder / name, **options)
    except EngineError as e:
        print(e)
    else:
        raise AssertionError

# %% [markdown]
# ## What came out
# The back ends on this machine, and how far each is from ONNX Runtime on the same pictures, one by one and all at once.

# %%
found = {}
for name, backend in BACKENDS.items():
    try:
        installed = version(backend.pip)
    except PackageNotFoundError:
        installed = f"pip install {backend.pip}"
    found[name] = {"files": backend.suffix, "version": installed, "precisions": ", ".join(backend.precisions)}
pd.DataFrame(found).T

# %%
others, missing = {}, []
for name, precision in ("openvino", "fp32"), ("openvino", "bf16"):
    try:
        others[f"{name}, {precision}"] = open_graph(folder / "spots.onnx", name, precision=precision)
    except EngineError as e:
        missing.append(str(e))

def one_by_one(arrays):
    parts = [graph({n: a[k:k + 1] for n, a in arrays.items()})["probabilities"] for k in range(len(pictures))]
    return {"probabilities": np.concatenate(parts)}

others["onnxruntime, one by one"] = one_by_one
differences = {name: np.abs(other(arrays)["probabilities"].astype(np.float64) - reference).max(1)
               for name, other in others.items()}
assert all(d.max() <= 1e-4 for name, d in differences.items() if "bf16" not in name)
fig, ax = plt.subplots(figsize=(8, 3))
for marker, (name, d) in zip("osx", differences.items()):
    ax.plot(np.maximum(d, 1e-9), marker, label=f"{name}: at most {d.max():.1e}", alpha=0.7)
ax.axhline(1e-4, color="lightgrey")
ax.set(yscale="log", ylim=(3e-10, 1), xlabel="picture", ylabel="difference",
       title="probabilities, against onnxruntime (0 is drawn at 1e-9)")
ax.legend(loc="upper left", ncols=2, fontsize=8)
fig.tight_layout()
for line in missing:
    print(line)

# %% [markdown]
# A worker process opens a graph by its name, and gets the same open graph each time.

# %%
assert process_graph(str(folder / "spots.onnx")) is process_graph(str(folder / "spots.onnx"))
assert np.abs(process_graph(str(folder / "spots.onnx"))(arrays)["probabilities"] - reference).max() <= 1e-5

# %% [markdown]
# ---
# [← TensorRT](52_tensorrt.py) · [Ensembles →](54_ensembles.py)

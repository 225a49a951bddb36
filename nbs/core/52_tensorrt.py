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
# # TensorRT
# > One adapter for both of NVIDIA's packages: build an engine for a kind of GPU, and run it.
#
# An engine is a graph compiled for one kind of GPU by one version of one package. `tensorrt` builds on the machine that
# has the GPU; `tensorrt_rtx` also builds ahead of time, on a machine without one. Neither opens an engine of another
# version, and its message for that is hard to read. So version and target stand in the JSON and are compared first.
#
# Numbers keep the types that they have in the graph. For SM75 (the T4 of Kaggle's notebooks) `tensorrt_rtx` has no
# matrix products in float32 and refuses such a graph; [mixed precision](55_graphs.py) is accepted.
#
# **Not verified here:** there was no GPU where this was written. Building ahead of time was run, and so was the refusal
# without a driver. What follows after the comparison of the targets was run only against an imitation of the package
# (tests/test_backends.py), and is written after NVIDIA's documentation.

# %%
#| default_exp core.tensorrt

# %% tags=["parameters"]
size = (64, 48)  # height, width of the example's pictures, pixels

# %%
#| export
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from mammo_nb.core.files import replacing, sha256, write_json
from mammo_nb.core.sidecars import EngineError, Tensor, read_sidecar, read_tensors, sidecar_path

# %%
#| hide
import tempfile
import time

import onnx

from mammo_nb.core.sidecars import write_graph

# %% [markdown]
# ## Build
# A graph whose dimensions are all numbers is built for exactly these. Where a dimension is a word, TensorRT needs a
# range: the smallest, the usual and the largest number. For `n`, the number of items, there is a default; any other
# word needs a range from the caller.

# %%
#| export
PACKAGES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}  # module -> what to install
TAKEN = ("float32", "float16", "int64", "int32", "int8", "uint8", "bool")  # types of inputs that TensorRT accepts

def load_package(
    module: str,             # such as 'tensorrt_rtx'
    install: str,            # what pip calls it
) -> ModuleType:
    "Import an optional package. Raises EngineError that names what to install."
    try:
        return import_module(module)
    except (ImportError, OSError) as e:
        raise EngineError(f"{module} cannot be loaded ({e}): pip install {install}") from e

def gpu_target(
    device: str = "cuda",  # 'cuda', 'cuda:1' and so on
) -> str | None:           # None if torch finds no GPU
    "Compute capability of a GPU of this machine, such as 'SM75'."
    import torch  # slow to load, and not needed by the other back ends
    return "SM{}{}".format(*torch.cuda.get_device_capability(device)) if torch.cuda.is_available() else None

def make_logger(trt: ModuleType):
    "Make a logger that keeps errors for the exception that follows, and prints nothing."
    class Logger(trt.ILogger):
        def __init__(self):
            super().__init__()
            self.errors = []
        def log(self, severity, message):
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)
    return Logger()

def ahead_targets(
    trt: ModuleType,
) -> list[str]:      # such as SM75; [] if the package builds for the GPU of this machine only
    "Kinds of GPU that a package builds for without having one."
    found = [t for t in dir(getattr(trt, "ComputeCapability", None)) if t.startswith("SM")]
    return sorted(found, key=lambda t: int(t[2:]))

def choose_target(
    trt: ModuleType,
    package: str,
    target: str | None,  # as in `build_tensorrt`
) -> str:
    "Choose the kind of GPU to build for. Raises EngineError that lists the available ones."
    ahead = ahead_targets(trt)
    if target is not None and target not in ahead:
        raise EngineError(f"{package} {trt.__version__} has no target {target!r}: it is "
                          f"{', '.join([*ahead, 'or None'])}, which is the GPU of this machine.")
    found = target or gpu_target()
    if found:
        return found
    name = f", or name a target: {', '.join(ahead)}" if ahead else ""
    raise EngineError(f"torch finds no GPU to build for. Build on the machine that has it{name}.")

def word_ranges(
    inputs: tuple[Tensor, ...],
    batches: tuple[int, int, int],
    ranges: Mapping[str, tuple[int, int, int]],
) -> dict[str, tuple[int, int, int]]:  # for each word in the shapes of the inputs
    "Smallest, usual and largest number of every free dimension."
    known = {"n": tuple(batches), **{word: tuple(numbers) for word, numbers in ranges.items()}}
    for word, numbers in known.items():
        if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
            named = "batches" if word == "n" else f"the range of {word}"
            raise EngineError(f"{named} is {numbers}: give the smallest, the usual and the largest number, in this "
                              "order.")
    words = sorted({n for t in inputs for n in t.shape if isinstance(n, str)})
    if missing := [w for w in words if w not in known]:
        raise EngineError(f"{', '.join(missing)} may be any number: give ranges, such as "
                          f"{{{missing[0]!r}: (1, 8, 64)}}, the smallest, the usual and the largest.")
    return {w: known[w] for w in words}

def build_tensorrt(
    path_onnx: Path,                            # NAME.onnx, its JSON beside it
    path_engine: Path,                          # NAME.engine; NAME.engine.json is written beside it
    *,
    package: str = "tensorrt_rtx",              # or 'tensorrt'
    target: str | None = None,                  # a kind of GPU, such as 'SM75'; None = that of this machine
    # items at once: fewest, usual, most; a graph with a fixed number keeps it
    batches: tuple[int, int, int] = (1, 2, 8),
    # the same for other words, such as the length of a sequence
    ranges: Mapping[str, tuple[int, int, int]] = {},
) -> dict:                                      # NAME.engine.json
    "Compile a graph for a kind of GPU. Raises EngineError."
    path_onnx, path_engine = Path(path_onnx), Path(path_engine)
    if path_engine.suffix != ".engine" or package not in PACKAGES:
        raise EngineError(f"{path_engine.name} by {package!r}: an engine is named NAME.engine and built by "
                          f"{' or '.join(map(repr, PACKAGES))}.")
    metadata = read_sidecar(path_onnx)
    inputs = read_tensors(metadata, "inputs", sidecar_path(path_onnx).name)
    if unknown := [t for t in inputs if t.dtype not in TAKEN]:
        raise EngineError(f"TensorRT takes no {unknown[0].dtype}, which is the type of {unknown[0].name}: export the "
                          f"network with one of {', '.join(TAKEN)}.")
    ranges = word_ranges(inputs, batches, ranges)
    trt = load_package(package, PACKAGES[package])
    chosen = choose_target(trt, package, target)
    failed = f"{path_onnx.name} cannot be built for {chosen} by {package} {trt.__version__}"
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path_onnx.read_bytes(), str(path_onnx)):
        raise EngineError(f"{failed}: {'; '.join(parser.get_error(k).desc() for k in range(parser.num_errors))}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # it has 10 bits of mantissa instead of 23
    if ahead_targets(trt):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target or "CURRENT"), 0)
    if ranges:
        profile = builder.create_optimization_profile()
        for tensor in inputs:
            shapes = [tuple(ranges[n][k] if isinstance(n, str) else n for n in tensor.shape) for k in range(3)]
            profile.set_shape(tensor.name, *shapes)
        config.add_optimization_profile(profile)
    content = builder.build_serialized_network(network, config)
    if content is None:
        reason = "; ".join(logger.errors)
        remedy = " Convert it with write_mixed of core/graphs first." if "FP32 GEMM" in reason else ""
        raise EngineError(f"{failed}: {reason}{remedy}")
    with replacing(path_engine) as temporary:
        temporary.write_bytes(content)
    items = inputs[0].shape[0]
    sidecar = {
        **{k: v for k, v in metadata.items() if k not in ("format", "opset", "sha256", "weights_file_sha256")},
        "format": "tensorrt",
        "package": package,
        "version": trt.__version__,
        "target": chosen,
        "batches": list(ranges["n"]) if items == "n" else [items] * 3,
        "ranges": {word: list(numbers) for word, numbers in ranges.items()},
        "onnx_sha256": metadata["sha256"],
        "sha256": sha256(path_engine),
    }
    write_json(sidecar_path(path_engine), sidecar)
    return sidecar

# %% [markdown]
# ## Run
# torch's tensors are the buffers on the GPU, and its current stream is the queue. More items than the engine takes at
# once are split into portions.

# %%
#| export
def check_target(
    path: Path,       # NAME.engine
    metadata: dict,   # NAME.engine.json
    device: str,      # 'cpu', 'cuda', 'cuda:1' or ""
) -> ModuleType:      # the package that built it
    "Check the package of an engine, its version and the GPU. Raises EngineError if the engine cannot run here."
    package, built = metadata["package"], metadata["version"]
    trt = load_package(package, PACKAGES[package])
    if trt.__version__ != built:
        raise EngineError(f"{path.name} was built by {package} {built}, and this is {trt.__version__}: pip install "
                          f"{PACKAGES[package]}=={built}, or build it again from its ONNX file.")
    if device == "cpu" or (here := gpu_target(device or "cuda")) is None:
        why = "the CPU was requested" if device == "cpu" else "torch finds none here"
        raise EngineError(f"{path.name} needs an NVIDIA GPU and its driver, and {why}: run its ONNX file instead.")
    if here != metadata["target"]:
        raise EngineError(f"{path.name} was built for {metadata['target']}, and this GPU is {here}: build it again for "
                          f"{here}, or run its ONNX file.")
    return trt

class _Context:
    "An engine on the GPU, for one portion at a time."
    def __init__(self, path: Path, metadata: dict, trt: ModuleType, device: str):
        import torch
        self.path, self.metadata = path, metadata
        self.logger = make_logger(trt)
        self.gpu = torch.device(device or "cuda")
        with torch.cuda.device(self.gpu):
            self.runtime = trt.Runtime(self.logger)
            self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
            self.context = self.engine and self.engine.create_execution_context()
        if self.context is None:
            raise EngineError(f"{path.name} cannot be run by {metadata['package']} {metadata['version']}: "
                              f"{'; '.join(self.logger.errors)}")
        names = [self.engine.get_tensor_name(k) for k in range(self.engine.num_io_tensors)]
        modes = [(n, self.engine.get_tensor_mode(n)) for n in names]
        self.taken = [n for n, mode in modes if mode == trt.TensorIOMode.INPUT]
        self.given = [n for n, mode in modes if mode == trt.TensorIOMode.OUTPUT]
        self.types = {n: np.dtype(trt.nptype(self.engine.get_tensor_dtype(n))).name for n in names}

    def found(self, names: list[str]) -> tuple[Tensor, ...]:
        "Describe tensors as the engine has them."
        shapes = {n: tuple(self.engine.get_tensor_shape(n)) for n in names}
        return tuple(Tensor(n, self.types[n], tuple("?" if d == -1 else d for d in shapes[n])) for n in names)

    def __call__(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch
        inputs = {name: torch.from_numpy(arrays[name]).to(self.gpu) for name in self.taken}
        for name, x in inputs.items():
            if not self.context.set_input_shape(name, tuple(x.shape)):
                raise EngineError(f"{self.path.name} was built for the ranges {self.metadata['ranges']}, and {name} "
                                  f"has the shape {tuple(x.shape)}.")
            self.context.set_tensor_address(name, x.data_ptr())
        outputs = {}
        for name in self.given:
            shape = tuple(self.context.get_tensor_shape(name))
            outputs[name] = torch.empty(shape, dtype=getattr(torch, self.types[name]), device=self.gpu)
            self.context.set_tensor_address(name, outputs[name].data_ptr())
        with torch.cuda.device(self.gpu):
            stream = torch.cuda.current_stream()
            done = self.context.execute_async_v3(stream.cuda_stream)
            stream.synchronize()
        if not done:
            raise EngineError(f"{self.path.name} failed: {'; '.join(self.logger.errors) or 'no reason was logged'}")
        return {name: y.cpu().numpy() for name, y in outputs.items()}

def open_tensorrt(
    path: Path,           # NAME.engine
    metadata: dict,       # NAME.engine.json
    threads: int | None,  # not used: the GPU has its own
    precision: str,       # not used: an engine keeps the types of its graph
    device: str,          # 'cuda', 'cuda:1' or "", the first GPU
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Callable]:  # inputs, outputs, arrays by name -> arrays by name
    "Open an engine on a GPU. Raises EngineError."
    context = _Context(path, metadata, check_target(path, metadata, device), device)
    inputs = read_tensors(metadata, "inputs", sidecar_path(path).name)
    split = [t.name for t in inputs if t.shape[0] == "n"]
    most = metadata["batches"][2]

    def compute(arrays):
        if not split:
            return context(arrays)
        count = len(arrays[split[0]])
        portions = [context({n: a[k:k + most] if n in split else a for n, a in arrays.items()})
                    for k in range(0, count, most)]
        return {name: np.concatenate([p[name] for p in portions]) for name in context.given}

    return context.found(context.taken), context.found(context.given), compute

# %% [markdown]
# ## What came out
# The example is a matrix product in ONNX's own language. Where `tensorrt_rtx` is installed, SM75 refuses it in float32
# and SM86 builds it; `tensorrt` builds only where its GPU is. Each refusal names a remedy.

# %%
model = onnx.parser.parse_model(
    f'''<ir_version: 10, opset_import: ["": 20]>
    grey (uint8[n, 1, {size[0]}, {size[1]}] images) => (float[n, 2] logits) {{
    grey = Cast<to = 1>(images)
    flat = Flatten(grey)
    logits = MatMul(flat, weights)
}}''')
weights = np.random.default_rng(0).normal(size=(size[0] * size[1], 2)).astype(np.float32) / 255
model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weights"))
folder = Path(tempfile.mkdtemp())
write_graph(model, folder / "grey.onnx", {})
for package, target in ("tensorrt_rtx", "SM75"), ("tensorrt_rtx", "SM86"), ("tensorrt", None):
    started = time.monotonic()
    try:
        entries = build_tensorrt(folder / "grey.onnx", folder / "grey.engine", package=package, target=target)
        print(f"{package}, {entries['target']}: built in {time.monotonic() - started:.1f} s")
    except EngineError as e:
        print(f"{package}, {target}: {e}")

# %% [markdown]
# ---
# [← Sidecars](51_sidecars.py) · [Back ends →](53_backends.py)

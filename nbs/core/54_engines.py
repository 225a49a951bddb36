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
# # Engines
# > Several networks as one file that needs none of the code that trained them.
#
# Between a trained network and a prediction on another machine lie small decisions: the division by 255, the mean, the
# order of the folds, the sigmoid. Each is one line that can be forgotten. Here they are all inside the graph: 8-bit
# pictures go in, one probability a network comes out, and a JSON beside the file says what it is.

# %%
#| default_exp core.engines

# %% tags=["parameters"]
architecture = "resnet10t"  # a timm network, a small one
size = (96, 64)             # height, width of its input, pixels
folds = 2                   # networks in the ensemble

# %%
#| export
import copy
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from mammo_nb.core.backends import EngineError, Graph, add_entries, build_tensorrt, open_graph, process_graph, read_sidecar, write_graph
from mammo_nb.core.files import inside, read_json, write_json
from mammo_nb.core.graphs import carried, keep_columns, write_mixed

# %%
#| hide
import tempfile
import time

import matplotlib.pyplot as plt
import pandas as pd

from mammo_nb.core.networks import create_network, save_weights

# %% [markdown]
# ## One graph
# The ensemble is a network like any other. Its input is a picture as it is stored: one channel, 8 bits, a quarter of
# what float32 would take on its way to the device.

# %%
#| export
class Ensemble(nn.Module):
    "Several classifiers with the same input, from grey levels to probabilities."
    def __init__(self,
        models: Sequence[nn.Module],     # each (n, 3, H, W) -> one logit an image
        mean: float | Sequence[float],   # of the normalisation, on the 0..1 scale
        std: float | Sequence[float],
    ):
        super().__init__()
        if not models:
            raise EngineError("An ensemble needs at least one network.")
        self.models = nn.ModuleList(models).requires_grad_(False)
        for name, values in ("mean", mean), ("std", std):
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.eval()

    def forward(self,
        images: torch.Tensor,  # uint8 (n, 1, H, W)
    ) -> torch.Tensor:         # float32 (n, networks), probabilities
        x = (images.float() / 255).expand(-1, 3, -1, -1)
        x = (x - self.mean) / self.std
        return torch.sigmoid(torch.cat([model(x) for model in self.models], 1).float())

    def half(self):
        raise EngineError(
            "All of a network in float16 has sums that overflow. Its file: write_mixed of core/graphs; in torch: "
            "load_engine(ensemble, precision='fp16')."
        )

# %% [markdown]
# An untrained network says 0.5 to everything, and two that say 0.5 agree whatever is wrong with them. So the last layer
# is drawn wide here, and the pictures are bright spots of many sizes.

# %%
models = [create_network(architecture, seed=k) for k in range(folds)]
for model in models:
    torch.nn.init.normal_(model.get_classifier().weight, std=2, generator=torch.Generator().manual_seed(len(models)))
ensemble = Ensemble(models, **models[0].normalization)
rng, (rows, columns) = np.random.default_rng(0), np.mgrid[:size[0], :size[1]]
spots = [
    np.exp(-((rows - r * size[0])**2 + (columns - c * size[1])**2) / (2 * w**2))
    for r, c, w in zip(rng.random(24), rng.random(24), np.geomspace(2, 60, 24))
]
pictures = (255 * np.stack(spots)).round().astype(np.uint8)
x = torch.from_numpy(pictures)[:, None]
with torch.no_grad():
    probabilities = ensemble(x)
    by_hand = torch.sigmoid(models[1]((x.repeat(1, 3, 1, 1) / 255 - ensemble.mean) / ensemble.std))
assert probabilities.shape == (24, folds) and torch.allclose(probabilities[:, 1:2], by_hand,
                                                             atol=1e-6) and probabilities.std() > 0.1
probabilities[:4]

# %% [markdown]
# ## One way to run
# Whatever computes behind it, an engine takes pictures as NumPy has them and gives probabilities. It is strict about
# its input: float pictures in 0..1, or a frame turned on its side, would give probabilities too, only wrong ones.

# %%
#| export
@dataclass(frozen=True)
class Engine:
    "A runnable ensemble."
    name: str                        # 'torch', 'compiled' or the back end of a file
    size: tuple[int, int] | None     # height, width of the input; None = any
    metadata: dict = field(repr=False)     # the JSON beside the file
    compute: Callable = field(repr=False)  # uint8 (n, 1, H, W) -> float32 (n, folds)
    precision: str = "fp32"          # or 'bf16', 'fp16'
    device: str = ""                 # 'cpu', 'cuda' or 'cuda:1', if one was asked for
    refused: tuple[str, ...] = ()    # what `open_ensemble` tried before, and why it was not taken

    def __call__(self,
        images: np.ndarray,  # uint8 (n, H, W)
    ) -> np.ndarray:         # float32 (n, folds), probabilities
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            raise EngineError(
                f"{self.name} takes uint8 grey levels, got {getattr(images, 'dtype', type(images).__name__)}. Window "
                "the image and scale it to 0..255 first."
            )
        if images.ndim != 3 or self.size and images.shape[1:] != tuple(self.size):
            raise EngineError(
                f"{self.name} takes (n, {', '.join(map(str, self.size or ('height', 'width')))}), got {images.shape}. "
                "Resize to this height and width, one channel."
            )
        return np.asarray(self.compute(np.ascontiguousarray(images)[:, None]), np.float32)

# %% [markdown]
# In torch a network may be compiled first, for which a CPU needs a C++ compiler, and may multiply in 16 bits, where
# autocast keeps in float32 what has to be: normalisations, softmax, sums.

# %%
#| export
_HALVES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

def load_engine(
    source: Path | nn.Module,     # NAME.onnx or NAME.engine with its JSON beside it, or an Ensemble
    # 'torch' or 'compiled' for a module, 'onnxruntime' or 'openvino' for NAME.onnx; 'auto' = the first that fits
    backend: str = "auto",
    threads: int | None = None,   # threads on the CPU for a file; None = one a core
    # of a module: 'bf16', or on a GPU 'fp16', of which a copy is made; of a file, as in `open_graph`
    precision: str = "fp32",
    device: str = "",             # 'cpu', 'cuda', 'cuda:1'; "": where the module is; for a file as in `open_graph`
) -> Engine:
    "An engine from a file or from a network in memory."
    if not isinstance(source, nn.Module):
        return _from_graph(open_graph(source, backend, threads, precision, device))
    if backend not in ("auto", "torch", "compiled"):
        raise EngineError(f"No backend {backend!r} for a module: it is 'auto', 'torch' or 'compiled'.")
    if precision not in _HALVES:
        raise EngineError(f"No precision {precision!r} for a module: it is {', '.join(_HALVES)}.")
    return _from_module(source.eval(), backend == "compiled", precision, device)

def _need_compiler() -> None:
    wanted = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if not shutil.which(wanted):
        raise EngineError(
            f"Compiling a network for the CPU needs a C++ compiler, and there is no {wanted}: install it, or name "
            "another in the variable CXX."
        )

def _from_module(ensemble: nn.Module, compiled: bool, precision: str, device: str) -> Engine:
    place, half = torch.device(device) if device else next(ensemble.buffers()).device, _HALVES[precision]
    if precision == "fp16" and place.type == "cpu":
        raise EngineError("float16 is for GPUs; on a CPU take precision 'bf16'.")
    if compiled and place.type == "cpu":
        _need_compiler()
    if half:
        ensemble = copy.deepcopy(ensemble)
        for module in ensemble.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.to(half)   # once, instead of at each call
    if device:
        ensemble = ensemble.to(place)
    if half or compiled or place.type == "cuda":
        ensemble = ensemble.to(memory_format=torch.channels_last)
    run = torch.compile(ensemble) if compiled else ensemble
    # on a GPU convolutions would multiply with 10 bits of mantissa (TF32)
    exact = (lambda: torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)
             ) if place.type == "cuda" else nullcontext

    def compute(images):
        with torch.inference_mode(), torch.autocast(place.type, half, enabled=half is not None), exact():
            return run(torch.from_numpy(images).to(place)).float().cpu().numpy()
    return Engine("compiled" if compiled else "torch", None, {}, compute, precision, str(place))

def _from_graph(graph: Graph) -> Engine:
    if "folds" not in graph.metadata:
        raise EngineError(
            f"{graph.path.name} is no ensemble of classifiers, its JSON counts no folds: open it with open_graph.")
    return Engine(graph.name, tuple(graph.metadata["size"]), graph.metadata, graph)

def process_engine(
    path: str,              # NAME.onnx or NAME.engine
    backend: str = "auto",  # as in load_engine
) -> Engine:
    """An engine of this process, opened once and on one thread: where work is spread over processes, they share the
    cores."""
    return _from_graph(process_graph(path, backend))

def parity(
    a: Engine | Graph,
    b: Engine | Graph,
    images: np.ndarray,  # what both take; engines: uint8 (n, H, W)
) -> float:              # largest absolute difference of a probability
    "How far two engines, or two graphs, are apart on the same pictures."
    return float(np.abs(a(images).astype(np.float64) - b(images)).max())

# %% [markdown]
# ## Export
# What torch exports is written by [back ends](08_backends.py), without traces of the machine and in a fixed order of
# bytes. Beside it stand the digest of the weights and the versions that made the file; the caller adds entries and
# cannot set these.

# %%
#| export
def weights_digest(
    module: nn.Module,
) -> str:               # 64 hexadecimal digits
    "SHA-256 over names, types, shapes and bytes of all tensors, in order of name."
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

def export_module(
    module: nn.Module,      # one tensor -> one tensor; set to evaluation
    path: Path,             # NAME.onnx
    example: torch.Tensor,  # an input of the right type, shape and device; what it holds does not matter
    *,
    input: str,             # name of the input
    output: str,            # name of the output
    dynamic: bool,          # leave the first dimension open
    metadata: dict,         # the caller's entries for NAME.json
) -> dict:                  # NAME.json
    "Write any module as NAME.onnx and NAME.json."
    module = module.eval()
    if dynamic and len(example) == 1:
        example = torch.cat([example] * 2)  # a batch of 1 would be taken for a constant
    precision = str(next((p.dtype for p in module.parameters()), torch.float32)).removeprefix("torch.")
    metadata = add_entries(
        metadata, {
            "precision": precision, "weights_sha256": weights_digest(module),
            "versions": {p: version(p) for p in ("torch", "timm", "onnx")}
        })
    quiet = logging.getLogger("torch.onnx")
    level, _ = quiet.level, quiet.setLevel(logging.ERROR)
    try:
        program = torch.onnx.export(module, (example,), dynamo=True, verbose=False, external_data=False, input_names=[
            input
        ], output_names=[output], dynamic_shapes=({0: torch.export.Dim("n")},) if dynamic else None)
    finally:
        quiet.setLevel(level)
    return write_graph(program.model_proto, path, metadata)

# %% [markdown]
# The number of images stays open, their size does not. Into the JSON go the normalisation, and what the networks say to
# two drawn pictures: whoever opens the file elsewhere can see whether it says the same there. The pictures are computed
# in integers, so that they are the same everywhere.

# %%
#| export
def probe_pictures(
    size: tuple[int, int],  # height, width
) -> np.ndarray:            # uint8 (2, height, width)
    "Two pictures, each of a wide and a narrow bright disc."
    (h, w), away = size, lambda a, b: (rows - h * a // 8)**2 + (columns - w * b // 8)**2
    rows, columns = np.ogrid[:h, :w]
    disc = lambda a, b, radius: np.maximum(160 - 160 * away(a, b) // radius**2, 0)
    return np.stack(
        [np.minimum(disc(3 + k, 2, w // 2 + 1) + disc(5, 2 + k, w // 8 + 1), 255) for k in range(2)]).astype(np.uint8)

def export_onnx(
    ensemble: Ensemble,
    path: Path,               # NAME.onnx
    size: tuple[int, int],    # height, width of the input, pixels
    metadata: dict,           # the caller's entries for NAME.json
) -> dict:                    # NAME.json
    "Write an ensemble as NAME.onnx and NAME.json, each complete or not at all."
    example = torch.zeros(2, 1, *size, dtype=torch.uint8, device=ensemble.mean.device)
    own = {
        "size": list(size), "folds": len(ensemble.models), "mean": ensemble.mean.flatten().tolist(),
        "std": ensemble.std.flatten().tolist(), "probe": load_engine(ensemble)(
            probe_pictures(size)).astype(float).round(6).tolist()
    }
    return export_module(ensemble, path, example, input="images", output="probabilities", dynamic=True,
                         metadata=add_entries(metadata, own))

# %%
folder = Path(tempfile.mkdtemp())
started = time.monotonic()
sidecar = export_onnx(ensemble, folder / "ensemble.onnx", size, {"architecture": architecture, "threshold": 0.31})
print(f"{time.monotonic() - started:.0f} s, {(folder / 'ensemble.onnx').stat().st_size / 1e6:.1f} MB")
assert str(Path.cwd()).encode() not in (folder / "ensemble.onnx").read_bytes() and b"site-packages" not in (
    folder / "ensemble.onnx").read_bytes()
pd.Series(sidecar, name="ensemble.json").to_frame()

# %% [markdown]
# What does not fit is refused, with what would:

# %%
engine = load_engine(folder / "ensemble.onnx")
for wrong in (pictures / 255, pictures[0], pictures.transpose(0, 2, 1)):
    try:
        engine(wrong)
    except EngineError as e:
        print(e)

# %% [markdown]
# ## Parity
# The file has to say what torch says, for one picture as for many, and for pictures that are not noise: flat ones, and
# a gradient.

# %%
#| export
def export_checked(
    ensemble: Ensemble,
    path: Path,               # NAME.onnx
    images: np.ndarray,       # uint8 (n, H, W), what it is tried on
    metadata: dict,           # the caller's entries for NAME.json
    tolerance: float,         # largest allowed difference of a probability
) -> float:                   # largest difference there is
    """Write an ensemble as NAME.onnx and NAME.json if the file says what torch says, else leave none and raise
    EngineError."""
    path = Path(path)
    export_onnx(ensemble, path, images.shape[1:], metadata)
    difference = parity(load_engine(ensemble), load_engine(path), images)
    if difference <= tolerance:
        return difference   # a difference that is no number is none
    path.unlink()
    path.with_suffix(".json").unlink()
    raise EngineError(f"{path.name} differs from torch by {difference:.2g}, more than {tolerance:.2g}")

# %%
gradient = np.broadcast_to(np.linspace(0, 255, size[1]).astype(np.uint8), size)
tests = np.concatenate([
    pictures,
    np.zeros((1, *size), np.uint8),
    np.full((1, *size), 255, np.uint8), gradient[None], gradient[None, ::-1, ::-1]
])
reference, ours = load_engine(ensemble)(tests), engine(tests)
one_by_one = np.concatenate([engine(t[None]) for t in tests])
fig, axes = plt.subplots(1, 2, figsize=(9, 3))
axes[0].plot([0, 1], [0, 1], color="lightgrey")
axes[0].plot(reference, ours, ".")
axes[0].set(xlabel="torch", ylabel="onnxruntime", title="probabilities")
axes[1].plot(np.abs(ours - reference), "o", label=[f"network {k}" for k in range(folds)])
axes[1].set(xlabel="picture", ylabel="difference", title=f"largest {parity(load_engine(ensemble), engine, tests):.1e}")
axes[1].legend()
axes[1].ticklabel_format(axis="y", scilimits=(0, 0))
fig.tight_layout()
assert parity(load_engine(ensemble), engine, tests) <= 1e-4 and np.abs(one_by_one - ours).max() <= 1e-5
try:
    export_checked(ensemble, folder / "refused.onnx", tests, {}, tolerance=1e-12)
except EngineError as e:
    print(e)
assert not list(folder.glob("refused*"))

# %% [markdown]
# ## Half the bits
# GPUs multiply float16 several times as fast as float32, and some targets of TensorRT take nothing else. `write_mixed`
# of [graphs](08_graphs.py) makes such a file of one that is there, and torch's autocast such a network. Their answers
# are their own; how far they may be from those of float32 is a limit that is set once for all:

# %%
#| export
LIMITS = {"fp32": 1e-4, "bf16": 5e-3, "fp16": 5e-3}   # largest difference of a probability against float32 in torch

# %%
write_mixed(folder / "ensemble.onnx", folder / "ensemble.fp16.onnx")
for name, other in ("mixed graph", load_engine(
        folder / "ensemble.fp16.onnx")), ("torch, bf16", load_engine(ensemble, precision="bf16")):
    print(f"{name}: moves a probability by at most {parity(other, engine, tests):.1e}")
    assert 0 < parity(other, engine, tests) < 0.05   # noise in untrained networks with wide last layers
try:
    ensemble.half()
except EngineError as e:
    print(e)

# %% [markdown]
# ## From its weights
# Where no file can be run there is still torch. The JSON says what networks the weights beside it belong to, and the
# digest of the whole shows whether what was built is what was exported.

# %%
#| export
def rebuild(
    folder: Path,     # has the weights that the JSON names
    # NAME.json, with `rebuild`: network (a timm name), global_pool, pointing, mirrored, weights (files)
    metadata: dict,
) -> Ensemble:
    "An ensemble as it was before it was exported."
    # slow to load, and seldom needed
    from mammo_nb.core.networks import Mirrored, Pointing, create_network, load_weights
    about, models = metadata.get("rebuild"), []
    if not about:
        raise EngineError("its JSON does not say how to build its networks: export it again.")
    for file in about["weights"]:
        model = create_network(about["network"], global_pool=about["global_pool"])
        if about["pointing"]:
            model = Pointing(model)
        load_weights(model, inside(folder, file))
        models.append(Mirrored(model) if about["mirrored"] else model)
    ensemble = Ensemble(models, metadata["mean"], metadata["std"])
    if weights_digest(ensemble) != metadata["weights_sha256"]:
        raise EngineError(
            f"{', '.join(about['weights'])} are not the weights that were exported: copy them from the same run.")
    return ensemble

# %% [markdown]
# ## Whatever runs here
# A submission must not die of an engine. So all ways to run an ensemble are tried in an order, the quick ones first: on
# a GPU the engines that were built for it, then ONNX Runtime, then torch; on a CPU ONNX Runtime or OpenVINO, then
# torch. 16 bits are for GPUs, unless they are asked for. A way is taken if its package is there, if its file is whole,
# of these weights and for this machine, and if it says to the two drawn pictures what the networks said when they were
# exported. Why the others were not taken is kept.

# %%
#| export
WAYS = {"cuda": ("onnxruntime-fp16", "compiled-fp16", "torch-fp16", "onnxruntime-fp32", "compiled-fp32", "torch-fp32"),
        # before those of 'cuda': the engines in the folder
        "cpu": ("openvino-bf16", "onnxruntime-fp32", "openvino-fp32", "compiled-fp32", "torch-fp32")}

def _open_way(folder: Path, name: str, metadata: dict, way: str, device: str, threads: int | None) -> Engine:
    "One way, such as 'openvino-bf16', or an engine's file."
    backend, _, precision = way.rpartition("-")
    if way.endswith(".engine"):
        file, backend, precision = way, "auto", "fp16" if read_sidecar(
            folder / way).get("precision") == "mixed" else "fp32"
    elif backend in ("torch", "compiled"):
        if threads:
            torch.set_num_threads(threads)
        return replace(load_engine(rebuild(folder, metadata), backend, None, precision, device), size=tuple(
            metadata["size"]), metadata=metadata)
    else:
        file = f"{name}.fp16.onnx" if precision == "fp16" else f"{name}.onnx"
    engine = load_engine(folder / file, backend, threads, "fp32" if precision == "fp16" else precision, device)
    if engine.metadata["weights_sha256"] != metadata["weights_sha256"]:
        raise EngineError(f"{file} was made of other weights than {name}.onnx: make it again.")
    return replace(engine, metadata=metadata, precision=precision, device=device)

def _prove(engine: Engine) -> None:
    "An engine computes, and says of the drawn pictures what was said when it was exported."
    said, limit = engine(probe_pictures(engine.size)), LIMITS[engine.precision]
    difference = np.abs(said - np.asarray(engine.metadata["probe"])).max()
    if not difference <= limit:
        raise EngineError(
            f"it says of two drawn pictures what is {difference:.2g} from what was said at the export, more than "
            f"{limit:g}."
        )

def open_ensemble(
    # has NAME.json and some of NAME.onnx, NAME.fp16.onnx, NAME.*.engine, and the weights that the JSON names
    folder: Path,
    name: str = "ensemble",
    # ways to try in this order, such as 'openvino-bf16', 'compiled-fp32' or the file of an engine; 'auto': those of
    # WAYS
    backends: str | Sequence[str] = "auto",
    device: str = "auto",                    # 'cpu', 'cuda', 'cuda:1'; 'auto': the first GPU, if there is one
    reduced: bool | None = None,             # whether 'auto' may compute in 16 bits; None: on a GPU
    threads: int | None = None,              # on the CPU; None = one a core
) -> Engine:                                 # its `refused` says what was not taken, and why
    "An ensemble, by the first way that works here."
    folder, refused = Path(folder), []
    try:
        metadata = read_json(folder / f"{name}.json")
    except (OSError, ValueError) as e:
        raise EngineError(f"{folder} has no {name}.json that can be read ({e}): copy it again.") from e
    if "probe" not in metadata:
        raise EngineError(f"{name}.json of {folder} is of an older export: run the stage that wrote it again.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    reduced = device != "cpu" if reduced is None else reduced
    for way, place in _auto_ways(folder, name, device, reduced) if backends == "auto" else [
        (w, "cpu" if w.startswith("openvino") else device) for w in backends
    ]:
        try:
            if reason := metadata.get("refused", {}).get(way):
                raise EngineError(reason)
            engine = _open_way(folder, name, metadata, way, place, threads)
            if backends == "auto" and not reduced and engine.precision != "fp32":
                raise EngineError("it computes in 16 bits.")
            _prove(engine)
            return replace(engine, refused=tuple(refused))
        except Exception as e:  # compilers, drivers and packages have errors of their own, with nothing in common
            refused.append(
                f"{way} on {place}: "
                f"{e if isinstance(e, EngineError) else f'{type(e).__name__}: {str(e).strip()[:200]}'}"
            )
    raise EngineError("\n  ".join([f"Nothing can run {name} of {folder}:", *refused]))

def _auto_ways(folder: Path, name: str, device: str, reduced: bool) -> list[tuple[str, str]]:
    "Ways and where to go them, the quick ones first; where there is a GPU, the CPU is what is left at the end."
    ways = [(w, "cpu") for w in WAYS["cpu"]]
    if device != "cpu":
        ways = [(w, device) for w in (*(f.name for f in sorted(folder.glob(f"{name}.*.engine"))), *WAYS["cuda"])] + ways
    return [(w, d) for w, d in ways if reduced or w.endswith(("fp32", ".engine"))]

# %% [markdown]
# Here is the ensemble from above as a stage would write it, with its weights. Then its graph is damaged, and torch
# steps in.

# %%
for k, model in enumerate(models):
    save_weights(model, folder / f"fold_{k}.safetensors", {})
built = {
    "network": architecture, "global_pool": None, "pointing": False, "mirrored": False,
    "weights": [f"fold_{k}.safetensors" for k in range(folds)]
}
export_onnx(ensemble, folder / "ensemble.onnx", size, {"rebuild": built})
opened = open_ensemble(folder)
assert parity(opened, load_engine(ensemble), tests) <= (1e-4 if opened.precision == "fp32" else 5e-2)
print(opened)
(folder / "damaged").mkdir()
for file in folder.glob("*.*"):
    shutil.copy(file, folder / "damaged")
(folder / "damaged" / "ensemble.onnx").write_bytes(b"half of a file")
left = open_ensemble(folder / "damaged", backends=["openvino-fp32", "onnxruntime-fp32", "torch-fp32"], device="cpu")
assert left.name == "torch" and parity(left, load_engine(ensemble), tests) == 0
for reason in left.refused:
    print(reason)

# %% [markdown]
# ## The gate
# A way that has been compared with torch on real pictures, and was too far from it, is noted in the JSON, and nobody
# takes it after that.

# %%
#| export
def gate(
    folder: Path,
    name: str,                # NAME.json gets the ways that are not to be taken
    images: np.ndarray,       # uint8 (n, H, W), what all are asked
    reference: np.ndarray,    # float32 (n, folds), what torch said to them, in float32
    ways: Sequence[str],      # such as 'openvino-bf16'
    limits: dict = LIMITS,    # precision -> largest difference of a probability
    device: str = "cpu",      # that they run on
) -> dict[str, dict]:         # way -> difference and limit, or why it cannot be asked here
    "Compare ways with torch, and note those that are beyond their limit."
    folder, found = Path(folder), {}
    metadata = read_json(folder / f"{name}.json")
    for way in ways:
        try:
            engine = _open_way(folder, name, metadata, way, device, None)
        except Exception as e:  # as in `open_ensemble`
            found[way] = {"unavailable": str(e).strip().splitlines()[0]}
            continue
        difference = float(np.abs(engine(images).astype(np.float64) - reference).max())
        found[way] = {
            "difference": difference, "limit": limits[engine.precision],
            "within": difference <= limits[engine.precision]
        }
    beyond = {
        w: f"it differed from torch by {f['difference']:.2g} on {len(images)} pictures, more than {f['limit']:g}."
        for w, f in found.items() if not f.get("within", True)
    }
    write_json(
        folder / f"{name}.json",
        {**metadata, "refused": {**{w: r for w, r in metadata.get("refused", {}).items() if w not in found}, **beyond}})
    return found

# %%
found = gate(folder, "ensemble", tests, reference,
             ["onnxruntime-fp32", "onnxruntime-fp16", "openvino-fp32", "openvino-bf16", "torch-bf16"],
             {**LIMITS, "fp16": 1e-9})
try:
    open_ensemble(folder, backends=["onnxruntime-fp16"])
except EngineError as e:
    print(e)
else:
    raise AssertionError
pd.DataFrame(found).T

# %% [markdown]
# ## Fewer networks, and engines
# A smaller ensemble is the same file with networks left out; an engine is the mixed graph, translated for one kind of
# GPU, which needs no such GPU at hand (see [back ends](08_backends.py)). An engine is named after its GPU,
# `ensemble.SM75.engine`, so that many may lie in one folder and each machine finds its own.

# %%
#| export
def write_smaller(
    ensemble: Ensemble,
    path: Path,            # NAME.onnx of this ensemble
    path_smaller: Path,    # gets a JSON of its own
    kept: Sequence[int],   # networks that stay, by number
    metadata: dict,        # entries of the JSON that differ
) -> dict:                 # the JSON
    "Leave networks out of an exported ensemble."
    of_all, model, kept = carried(read_sidecar(path)), onnx.load(path), list(kept)
    keep_columns(model, kept)
    smaller = Ensemble([ensemble.models[k] for k in kept], of_all["mean"], of_all["std"])
    own = {
        "folds": len(kept), "probe": [[row[k] for k in kept] for row in of_all["probe"]],
        "weights_sha256": weights_digest(smaller)
    }
    if "rebuild" in of_all:
        own["rebuild"] = {**of_all["rebuild"], "weights": [of_all["rebuild"]["weights"][k] for k in kept]}
    return write_graph(model, path_smaller, {**of_all, **own, **metadata})

def build_engines(
    folder: Path,
    name: str,                                   # NAME.onnx, from which NAME.fp16.onnx is made
    targets: Sequence[str],                      # kinds of GPU, such as SM75, for which NAME.SM75.engine is built
    package: str = "tensorrt_rtx",
    batches: tuple[int, int, int] = (1, 2, 8),   # images at once: fewest, usual, most
) -> list[dict]:                                 # their JSONs
    "Engines of an ensemble, in mixed precision."
    folder = Path(folder)
    path, mixed = folder / f"{name}.onnx", folder / f"{name}.fp16.onnx"
    if reason := read_sidecar(path).get("refused", {}).get("onnxruntime-fp16"):
        raise EngineError(f"{name}.fp16.onnx is not good enough to build engines of: {reason}")
    if not mixed.is_file() or read_sidecar(mixed)["fp32_sha256"] != read_sidecar(path)["sha256"]:
        write_mixed(path, mixed)
    return [
        build_tensorrt(mixed, folder / f"{name}.{target}.engine", package=package, target=target, batches=batches)
        for target in targets
    ]

# %%
smaller = write_smaller(ensemble, folder / "ensemble.onnx", folder / "ensemble_1.onnx", [1], {})
assert smaller["folds"] == 1 and np.abs(open_ensemble(folder, "ensemble_1", device="cpu")
                                        (tests) - reference[:, 1:]).max() <= 1e-4
gate(folder, "ensemble", tests, reference, ["onnxruntime-fp16"], {"fp16": 0.05})   # let it in again
try:
    print([f"{e['target']}, batches {e['batches']}" for e in build_engines(folder, "ensemble", ["SM75", "SM86"])])
except EngineError as e:
    print(e)

# %% [markdown]
# ## What came out
# The same weights, exported again, are the same file; a file that was touched is not run.

# %%
again = export_onnx(ensemble, folder / "again.onnx", size, {})
assert again["sha256"] == sidecar["sha256"] and again["weights_sha256"] == sidecar["weights_sha256"]
damaged = bytearray((folder / "again.onnx").read_bytes())
damaged[-100] ^= 1
(folder / "again.onnx").write_bytes(damaged)
try:
    load_engine(folder / "again.onnx")
except EngineError as e:
    print(e)

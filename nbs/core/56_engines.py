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
# # Engines
# > An ensemble that is ready to run: from a file or in torch, with the same call and the same checks.
#
# The same ensemble may run in torch, compiled, in 16 bits, or from its file by another package. Code that predicts is
# the same for all of them. An engine takes stored numbers as NumPy has them and gives probabilities, and refuses input
# of another type or shape: float pictures in 0..1 or a frame turned on its side would give probabilities too, only
# wrong ones.

# %%
#| default_exp core.engines

# %% tags=["parameters"]
architecture = "resnet10t"  # a timm network, a small one
size = (96, 64)             # height, width of its input, pixels
folds = 2                   # networks in the ensemble

# %%
#| export
import copy
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mammo_nb.core.backends import Graph, open_graph
from mammo_nb.core.batches import to_float
from mammo_nb.core.ensembles import Ensemble, bound, export_module, place_of
from mammo_nb.core.errors import ProjectError
from mammo_nb.core.sidecars import EngineError, Tensor, add_entries

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import pandas as pd

from mammo_nb.core.backends import bright_spots
from mammo_nb.core.ensembles import drawn_ensemble
from mammo_nb.core.graphs import write_mixed

# %% [markdown]
# ## One call
# An engine is a graph whose results have the networks on their second axis. The axis of the channels may be left out of
# the input where there is one channel, as in a stack of grey pictures.

# %%
#| export
@dataclass(frozen=True)
class Engine(Graph):
    "A runnable ensemble; called with the only input or with a dict of all, it gives the only output or a dict of all."
    precision: str = "fp32"         # or 'bf16', 'fp16'
    device: str = ""                # 'cpu', 'cuda' or 'cuda:1', if one was requested
    refused: tuple[str, ...] = ()   # what `open_ensemble` tried before, and why it was not taken

    @property
    def size(self) -> tuple[int, ...] | None:
        "Depth, height and width of the first input, as far as it has them; None if they are free."
        first = self.inputs[0]
        numbers = tuple(n for n, letter in zip(first.shape, first.layout) if letter in "DHW")
        return numbers if all(isinstance(n, int) for n in numbers) else None

    def __call__(self, given: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray | dict[str, np.ndarray]:
        first = self.inputs[0]
        named = given if isinstance(given, Mapping) else {first.name: given}
        x, channel = named.get(first.name), first.axis("C")
        alone = channel is not None and first.shape[channel] == 1
        if alone and isinstance(x, np.ndarray) and x.ndim == len(first.shape) - 1:
            named = {**named, first.name: np.expand_dims(x, channel)}
        return super().__call__(named)

# %% [markdown]
# In torch a network may be compiled first, for which a CPU needs a C++ compiler, and may multiply in 16 bits, where
# autocast keeps normalisations, softmax and sums in float32.

# %%
#| export
_HALVES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

def load_engine(
    source: Path | nn.Module,     # NAME.onnx or NAME.engine with its JSON beside it, or an Ensemble
    backend: str = "auto",        # of an Ensemble 'torch' or 'compiled'; of a file as in `open_graph`
    threads: int | None = None,   # threads on the CPU for a file; None = one for each core
    precision: str = "fp32",      # of an Ensemble also 'bf16' and, on a GPU, 'fp16', of which a copy is made
    device: str = "",             # 'cpu', 'cuda', 'cuda:1'; "": where the module is; for a file as in `open_graph`
) -> Engine:
    "Make an engine from a file or from a network in memory. Raises EngineError."
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
        raise EngineError(f"Compiling a network for the CPU needs a C++ compiler, and there is no {wanted}: install "
                          "it, or name another in the variable CXX.")

def _in_half(ensemble: nn.Module, half: torch.dtype) -> nn.Module:
    "Make a copy whose products are in 16 bits, so that weights are converted once instead of at each call."
    ensemble = copy.deepcopy(ensemble)
    for module in ensemble.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            module.to(half)
    return ensemble

def _from_module(ensemble: nn.Module, compiled: bool, precision: str, device: str) -> Engine:
    place = torch.device(device) if device else place_of(ensemble)
    half = _HALVES[precision]
    if precision == "fp16" and place.type == "cpu":
        raise EngineError("float16 is for GPUs; on a CPU use precision 'bf16'.")
    if compiled and place.type == "cpu":
        _need_compiler()
    if half:
        ensemble = _in_half(ensemble, half)
    if device:
        ensemble = ensemble.to(place)
    flat = all(p.dim() < 5 for p in ensemble.parameters())   # channels_last is for tensors of four axes
    if flat and (half or compiled or place.type == "cuda"):
        ensemble = ensemble.to(memory_format=torch.channels_last)
    run = torch.compile(ensemble) if compiled else ensemble
    exact = nullcontext
    if place.type == "cuda":   # convolutions would multiply with 10 bits of mantissa (TF32)
        exact = partial(torch.backends.cudnn.flags, enabled=True, benchmark=True, allow_tf32=False)
    inputs, outputs = ensemble.inputs, ensemble.outputs

    def compute(arrays):
        given = [torch.from_numpy(arrays[t.name]).to(place) for t in inputs]
        with torch.inference_mode(), torch.autocast(place.type, half, enabled=half is not None), exact():
            made = run(*given)
        made = made if isinstance(made, tuple) else (made,)
        return {t.name: to_float(y).cpu().numpy() for t, y in zip(outputs, made)}

    name = "compiled" if compiled else "torch"
    return Engine(name, Path(name), {}, inputs, outputs, compute, precision, str(place))

def _from_graph(graph: Graph) -> Engine:
    if wrong := [t for t in graph.outputs if t.axis("F") != 1]:
        raise EngineError(f"{graph.path.name} is no ensemble: its output {wrong[0]} has no axis F, the networks, in "
                          "second place. Open it with open_graph.")
    return Engine(**{f.name: getattr(graph, f.name) for f in fields(Graph)})

class NotFinite(ProjectError):
    "A prediction that is no number."

def finite(
    values: np.ndarray,   # predictions
) -> np.ndarray:          # the same
    "Raise NotFinite unless all predictions are finite numbers."
    if not np.isfinite(values).all():
        wrong = np.asarray(values)[~np.isfinite(values)]
        raise NotFinite(f"a network predicted {wrong[0]}. Run it in 32 bits, or leave its weights out.")
    return values

def largest_difference(
    a: np.ndarray | Mapping[str, np.ndarray],
    b: np.ndarray | Mapping[str, np.ndarray],  # of the same shapes and names
) -> float:                                    # NaN if either holds one
    """The largest absolute difference of two results. Features have no bounds as probabilities have, and rounding grows
    with the numbers: where |a| exceeds 1, the difference is divided by its largest value."""
    if isinstance(a, Mapping):
        return float(np.max([largest_difference(a[name], b[name]) for name in a]))
    a = np.asarray(a, np.float64)
    return float(np.abs(a - b).max() / max(1., np.abs(a).max()))

def parity(
    a: Graph,
    b: Graph,
    given: np.ndarray | Mapping[str, np.ndarray],  # what both take
) -> float:                                        # as `largest_difference`
    "The largest difference between two engines, or two graphs, on the same inputs."
    return largest_difference(a(given), b(given))

# %%
ensemble = drawn_ensemble(architecture, folds)
pictures = bright_spots(size, np.random.default_rng(0))
engine = load_engine(ensemble)
assert engine(pictures).shape == (24, folds) and np.array_equal(engine(pictures), engine({"images": pictures[:, None]}))
engine(pictures[:3])

# %% [markdown]
# ## Export
# The number of items stays free, their size does not. The JSON gets the preparation and the *probe*, which is what the
# networks gave for drawn inputs: on another machine it shows whether the file gives the same there. The inputs are
# computed in integers, so that they are the same everywhere.

# %%
#| export
def probe_pictures(
    size: tuple[int, int],  # height, width
) -> np.ndarray:            # uint8 (2, height, width)
    "Draw two pictures, each of a wide and a narrow bright disc."
    h, w = size
    rows, columns = np.ogrid[:h, :w]

    def disc(a: int, b: int, radius: int) -> np.ndarray:  # centre in eighths of height and width
        squared = (rows - h * a // 8)**2 + (columns - w * b // 8)**2
        return np.maximum(160 - 160 * squared // radius**2, 0)

    pictures = [np.minimum(disc(3 + k, 2, w // 2 + 1) + disc(5, 2 + k, w // 8 + 1), 255) for k in range(2)]
    return np.stack(pictures).astype(np.uint8)

def probe_inputs(
    inputs: Sequence[Tensor],   # what an ensemble takes, of fixed size
) -> dict[str, np.ndarray]:     # of two items; other free dimensions are 8
    "Make pictures (each shifted against the one before), a ramp for other numbers, lengths for an integer per item."
    given = {}
    free = {"n": 2}   # items; other free dimensions are 8
    long = 8          # places of the sequence that came last
    for tensor in inputs:
        shape = [n if isinstance(n, int) else free.get(n, 8) for n in tensor.shape]
        if tensor.layout == "N" and tensor.dtype.startswith("int"):
            given[tensor.name] = (long - np.arange(shape[0])).astype(tensor.dtype)
            continue
        if tensor.axis("L") is not None:
            long = shape[tensor.axis("L")]
        if tensor.layout.endswith("HW"):
            drawn = probe_pictures(tuple(shape[-2:]))
            numbers = np.stack([np.roll(drawn[k % 2], k // 2 * 3, 1) for k in range(int(np.prod(shape[:-2])))])
        else:
            numbers = (np.arange(int(np.prod(shape))) * 37 % 256).astype(np.uint8)
        numbers = numbers.reshape(shape)
        if tensor.dtype == "bool":
            numbers = numbers > 127
        elif tensor.dtype.startswith("float"):
            numbers = numbers / 255
        given[tensor.name] = numbers.astype(tensor.dtype)
    return given

def export_onnx(
    ensemble: Ensemble,
    path: Path,               # NAME.onnx
    size: Sequence[int],      # depth, height and width of the first input, as far as it has them
    metadata: dict,           # the caller's entries for NAME.json
) -> dict:                    # NAME.json
    "Write an ensemble as NAME.onnx and NAME.json, each complete or not at all."
    inputs = bound(ensemble.inputs, size)
    made = load_engine(ensemble)(probe_inputs(inputs))
    if isinstance(made, Mapping):
        probe = {name: y.astype(float).round(6).tolist() for name, y in made.items()}
    else:
        probe = made.astype(float).round(6).tolist()
    own = {"size": list(size), "folds": len(ensemble.models), "preparation": ensemble.preparation(), "probe": probe}
    return export_module(ensemble, path, inputs, ensemble.outputs, add_entries(metadata, own))

# %%
folder = Path(tempfile.mkdtemp())
sidecar = export_onnx(ensemble, folder / "ensemble.onnx", size, {"architecture": architecture, "threshold": 0.31})
pd.Series(sidecar, name="ensemble.json").to_frame()

# %% [markdown]
# Input that does not fit is refused, with the type and shape that would:

# %%
engine = load_engine(folder / "ensemble.onnx")
for wrong in (pictures / 255, pictures[0], pictures.transpose(0, 2, 1), {"pictures": pictures}):
    try:
        engine(wrong)
    except EngineError as e:
        print(e)
    else:
        raise AssertionError

# %% [markdown]
# ## Parity
# The file has to give what torch gives, for one picture as for many, and for pictures that are not noise: flat ones,
# and a gradient.

# %%
#| export
def export_checked(
    ensemble: Ensemble,
    path: Path,               # NAME.onnx
    given: np.ndarray | Mapping[str, np.ndarray],  # inputs on which the file is compared with torch
    metadata: dict,           # the caller's entries for NAME.json
    tolerance: float,         # largest allowed difference of a probability
) -> float:                   # largest difference there is
    """Write an ensemble as NAME.onnx and NAME.json if the file gives what torch gives, else leave none and raise
    EngineError."""
    path = Path(path)
    first = ensemble.inputs[0]
    shape = (given[first.name] if isinstance(given, Mapping) else given).shape
    # the axis of the only channel may be left out
    words = [n for k, n in enumerate(first.shape) if len(shape) == len(first.shape) or k != first.axis("C")]
    size = [n for n, word in zip(shape, words) if word in ("depth", "height", "width")]
    export_onnx(ensemble, path, size, metadata)
    difference = parity(load_engine(ensemble), load_engine(path), given)
    if difference <= tolerance:   # not so if it is NaN
        return difference
    path.unlink()
    path.with_suffix(".json").unlink()
    raise EngineError(f"{path.name} differs from torch by {difference:.2g}, more than {tolerance:.2g}. Export it with "
                      "the versions of requirements.lock, or raise the tolerance.")

# %%
gradient = np.broadcast_to(np.linspace(0, 255, size[1]).astype(np.uint8), size)
flat = np.stack([np.zeros(size, np.uint8), np.full(size, 255, np.uint8)])
tests = np.concatenate([pictures, flat, gradient[None], gradient[None, ::-1, ::-1]])
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
# ## What came out
# GPUs multiply float16 several times as fast as float32, and some targets of TensorRT accept nothing else.
# [Graphs](55_graphs.py) makes such a file, and torch's autocast such a network. Their probabilities differ from those
# in float32:

# %%
write_mixed(folder / "ensemble.onnx", folder / "ensemble.fp16.onnx")
reduced = {"mixed graph": load_engine(folder / "ensemble.fp16.onnx"),
           "torch, bf16": load_engine(ensemble, precision="bf16")}
for name, other in reduced.items():
    difference = parity(other, engine, tests)
    print(f"{name}: moves a probability by at most {difference:.1e}")
    assert 0 < difference < 0.05   # noise in untrained networks with wide last layers
try:
    ensemble.half()
except EngineError as e:
    print(e)

# %% [markdown]
# ---
# [← Graphs](55_graphs.py) · [Providers →](57_providers.py)

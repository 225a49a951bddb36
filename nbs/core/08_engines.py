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
# Between a trained network and a prediction on another machine lie small decisions: the division by 255, the mean, the order of the folds, the sigmoid. Each is one line that can be forgotten. Here they are all inside the graph: 8-bit pictures go in, one probability a network comes out, and a JSON beside the file says what it is.

# %%
#| default_exp core.engines

# %% tags=["parameters"]
architecture = "resnet10t"  # a timm network, a small one
size = (96, 64)             # height, width of its input, pixels
folds = 2                   # networks in the ensemble

# %%
#| export
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mammo_nb.core.backends import EngineError, Graph, add_entries, open_graph, process_graph, write_graph

# %%
#| hide
import copy
import tempfile
import time

import matplotlib.pyplot as plt
import pandas as pd

from mammo_nb.core.networks import create_network

# %% [markdown]
# ## One graph
# The ensemble is a network like any other. Its input is a picture as it is stored: one channel, 8 bits, a quarter of what float32 would take on its way to the device.

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
        if not models: raise EngineError("An ensemble needs at least one network.")
        self.models = nn.ModuleList(models).requires_grad_(False)
        for name, values in ("mean", mean), ("std", std):
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.eval()

    def forward(self,
        images: torch.Tensor,  # uint8 (n, 1, H, W)
    ) -> torch.Tensor:         # float32 (n, networks), probabilities
        x = (images.float() / 255).expand(-1, 3, -1, -1)
        x = ((x - self.mean) / self.std).to(self.mean.dtype)  # float32 up to here, in a float16 ensemble too
        return torch.sigmoid(torch.cat([model(x) for model in self.models], 1).float())

# %% [markdown]
# An untrained network says 0.5 to everything, and two that say 0.5 agree whatever is wrong with them. So the last layer is drawn wide here, and the pictures are bright spots of many sizes.

# %%
models = [create_network(architecture, seed=k) for k in range(folds)]
for model in models: torch.nn.init.normal_(model.get_classifier().weight, std=2, generator=torch.Generator().manual_seed(len(models)))
ensemble = Ensemble(models, **models[0].normalization)
rng, (rows, columns) = np.random.default_rng(0), np.mgrid[:size[0], :size[1]]
spots = [np.exp(-((rows - r * size[0])**2 + (columns - c * size[1])**2) / (2 * w**2)) for r, c, w in zip(rng.random(24), rng.random(24), np.geomspace(2, 60, 24))]
pictures = (255 * np.stack(spots)).round().astype(np.uint8)
x = torch.from_numpy(pictures)[:, None]
with torch.no_grad():
    probabilities = ensemble(x)
    by_hand = torch.sigmoid(models[1]((x.repeat(1, 3, 1, 1) / 255 - ensemble.mean) / ensemble.std))
assert probabilities.shape == (24, folds) and torch.allclose(probabilities[:, 1:2], by_hand, atol=1e-6) and probabilities.std() > 0.1
probabilities[:4]

# %% [markdown]
# ## Export
# What torch exports is written by [back ends](08_backends.py), without traces of the machine and in a fixed order of bytes. Beside it stand the digest of the weights and the versions that made the file; the caller adds entries and cannot set these.

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
    if dynamic and len(example) == 1: example = torch.cat([example] * 2)  # a batch of 1 would be taken for a constant
    precision = str(next((p.dtype for p in module.parameters()), torch.float32)).removeprefix("torch.")
    metadata = add_entries(metadata, {"precision": precision, "weights_sha256": weights_digest(module), "versions": {p: version(p) for p in ("torch", "timm", "onnx")}})
    quiet = logging.getLogger("torch.onnx")
    level, _ = quiet.level, quiet.setLevel(logging.ERROR)
    try:
        program = torch.onnx.export(module, (example,), dynamo=True, verbose=False, external_data=False, input_names=[input], output_names=[output],
                                    dynamic_shapes=({0: torch.export.Dim("n")},) if dynamic else None)
    finally: quiet.setLevel(level)
    return write_graph(program.model_proto, path, metadata)

# %% [markdown]
# The number of images stays open, their size does not.

# %%
#| export
def export_onnx(
    ensemble: Ensemble,
    path: Path,               # NAME.onnx
    size: tuple[int, int],    # height, width of the input, pixels
    metadata: dict,           # the caller's entries for NAME.json
) -> dict:                    # NAME.json
    "Write an ensemble as NAME.onnx and NAME.json, each complete or not at all."
    example = torch.zeros(2, 1, *size, dtype=torch.uint8, device=ensemble.mean.device)
    return export_module(ensemble, path, example, input="images", output="probabilities", dynamic=True, metadata=add_entries(metadata, {"size": list(size), "folds": len(ensemble.models)}))

# %%
folder = Path(tempfile.mkdtemp())
started = time.monotonic()
sidecar = export_onnx(ensemble, folder / "ensemble.onnx", size, {"architecture": architecture, "threshold": 0.31})
print(f"{time.monotonic() - started:.0f} s, {(folder / 'ensemble.onnx').stat().st_size / 1e6:.1f} MB")
assert str(Path.cwd()).encode() not in (folder / "ensemble.onnx").read_bytes() and b"site-packages" not in (folder / "ensemble.onnx").read_bytes()
pd.Series(sidecar, name="ensemble.json").to_frame()

# %% [markdown]
# ## One way to run
# Whatever computes behind it, an engine takes pictures as NumPy has them and gives probabilities. It is strict about its input: float pictures in 0..1, or a frame turned on its side, would give probabilities too, only wrong ones.

# %%
#| export
@dataclass(frozen=True)
class Engine:
    "A runnable ensemble."
    name: str                        # 'torch' or the back end of a file
    size: tuple[int, int] | None     # height, width of the input; None = any
    metadata: dict                   # the JSON beside the file
    compute: Callable = field(repr=False)  # uint8 (n, 1, H, W) -> float32 (n, folds)

    def __call__(self,
        images: np.ndarray,  # uint8 (n, H, W)
    ) -> np.ndarray:         # float32 (n, folds), probabilities
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            raise EngineError(f"{self.name} takes uint8 grey levels, got {getattr(images, 'dtype', type(images).__name__)}. Window the image and scale it to 0..255 first.")
        if images.ndim != 3 or self.size and images.shape[1:] != tuple(self.size):
            raise EngineError(f"{self.name} takes (n, {', '.join(map(str, self.size or ('height', 'width')))}), got {images.shape}. Resize to this height and width, one channel.")
        return np.asarray(self.compute(np.ascontiguousarray(images)[:, None]), np.float32)

# %%
#| export
def load_engine(
    source: Path | nn.Module,     # NAME.onnx or NAME.engine with its JSON beside it, or an Ensemble
    backend: str = "auto",        # 'torch' for a module, 'onnxruntime' or 'openvino' for NAME.onnx; 'auto' = the first that fits
    threads: int | None = None,   # threads on the CPU for a file; None = one a core
) -> Engine:
    "An engine from a file or from a network in memory."
    if not isinstance(source, nn.Module): return _from_graph(open_graph(source, backend, threads))
    if backend not in ("auto", "torch"): raise EngineError(f"No backend {backend!r} for a module: it is 'auto' or 'torch'.")
    return _from_module(source)

def _from_module(ensemble: nn.Module) -> Engine:
    def compute(images):
        with torch.inference_mode(): return ensemble(torch.from_numpy(images).to(next(ensemble.buffers()).device)).cpu().numpy()
    ensemble.eval()
    return Engine("torch", None, {}, compute)

def _from_graph(graph: Graph) -> Engine:
    if "folds" not in graph.metadata: raise EngineError(f"{graph.path.name} is no ensemble of classifiers, its JSON counts no folds: open it with open_graph.")
    return Engine(graph.name, tuple(graph.metadata["size"]), graph.metadata, graph)

def process_engine(
    path: str,              # NAME.onnx or NAME.engine
    backend: str = "auto",  # as in load_engine
) -> Engine:
    "An engine of this process, opened once and on one thread: where work is spread over processes, they share the cores."
    return _from_graph(process_graph(path, backend))

def parity(
    a: Engine | Graph,
    b: Engine | Graph,
    images: np.ndarray,  # what both take; engines: uint8 (n, H, W)
) -> float:              # largest absolute difference of a probability
    "How far two engines, or two graphs, are apart on the same pictures."
    return float(np.abs(a(images).astype(np.float64) - b(images)).max())

# %% [markdown]
# What does not fit is refused, with what would:

# %%
engine = load_engine(folder / "ensemble.onnx")
for wrong in (pictures / 255, pictures[0], pictures.transpose(0, 2, 1)):
    try: engine(wrong)
    except EngineError as e: print(e)

# %% [markdown]
# ## Parity
# The file has to say what torch says, for one picture as for many, and for pictures that are not noise: flat ones, and a gradient.

# %%
#| export
def export_checked(
    ensemble: Ensemble,
    path: Path,               # NAME.onnx
    images: np.ndarray,       # uint8 (n, H, W), what it is tried on
    metadata: dict,           # the caller's entries for NAME.json
    tolerance: float,         # largest allowed difference of a probability
) -> float:                   # largest difference there is
    "Write an ensemble as NAME.onnx and NAME.json if the file says what torch says, else leave none and raise EngineError."
    path = Path(path)
    export_onnx(ensemble, path, images.shape[1:], metadata)
    difference = parity(load_engine(ensemble), load_engine(path), images)
    if difference <= tolerance: return difference   # a difference that is no number is none
    path.unlink(); path.with_suffix(".json").unlink()
    raise EngineError(f"{path.name} differs from torch by {difference:.2g}, more than {tolerance:.2g}")

# %%
gradient = np.broadcast_to(np.linspace(0, 255, size[1]).astype(np.uint8), size)
tests = np.concatenate([pictures, np.zeros((1, *size), np.uint8), np.full((1, *size), 255, np.uint8), gradient[None], gradient[None, ::-1, ::-1]])
reference, ours = load_engine(ensemble)(tests), engine(tests)
one_by_one = np.concatenate([engine(t[None]) for t in tests])
fig, axes = plt.subplots(1, 2, figsize=(9, 3))
axes[0].plot([0, 1], [0, 1], color="lightgrey"); axes[0].plot(reference, ours, "."); axes[0].set(xlabel="torch", ylabel="onnxruntime", title="probabilities")
axes[1].plot(np.abs(ours - reference), "o", label=[f"network {k}" for k in range(folds)]); axes[1].set(xlabel="picture", ylabel="difference", title=f"largest {parity(load_engine(ensemble), engine, tests):.1e}"); axes[1].legend(); axes[1].ticklabel_format(axis="y", scilimits=(0, 0))
fig.tight_layout()
assert parity(load_engine(ensemble), engine, tests) <= 1e-4 and np.abs(one_by_one - ours).max() <= 1e-5
try: export_checked(ensemble, folder / "refused.onnx", tests, {}, tolerance=1e-12)
except EngineError as e: print(e)
assert not list(folder.glob("refused*"))

# %% [markdown]
# ## Half the bits
# Some GPUs want float16, and some targets of TensorRT take nothing else. `half()` turns an ensemble into one that computes in float16 between the normalisation and the sigmoid, which stay in float32. Its answers are its own: compare them before a threshold is carried over.

# %%
halved = export_onnx(copy.deepcopy(ensemble).half(), folder / "half.onnx", size, {})
moved = parity(load_engine(folder / "half.onnx"), engine, tests)
print(f"{halved['precision']}, {(folder / 'half.onnx').stat().st_size / 1e6:.1f} MB, moves a probability by at most {moved:.1e}")
assert halved["precision"] == "float16" and halved["output"] == sidecar["output"] and 0 < moved < 0.02

# %% [markdown]
# ## What came out
# The same weights, exported again, are the same file; a file that was touched is not run.

# %%
again = export_onnx(ensemble, folder / "again.onnx", size, {})
assert again["sha256"] == sidecar["sha256"] and again["weights_sha256"] == sidecar["weights_sha256"]
damaged = bytearray((folder / "again.onnx").read_bytes()); damaged[-100] ^= 1
(folder / "again.onnx").write_bytes(damaged)
try: load_engine(folder / "again.onnx")
except EngineError as e: print(e)

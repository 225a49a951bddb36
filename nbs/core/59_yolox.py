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
# # YOLOX
# > The winner's detector: network and loss from a library, the layer names of the original, our training loop.
#
# YOLOX's own trainer gives another network each time it runs (YOLOX#1612), because workers draw their seeds from the
# clock. The network and its loss are sound. So only these two are taken, from `pixeltable-yolox`, and everything random
# stays with `core/train`. Published files load strictly, since the layers keep their names.

# %%
#| default_exp core.yolox

# %% tags=["parameters"]
size = 256   # side of the input in the examples, pixels

# %%
#| export
import copy
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from yolox.config import YoloxConfig
from yolox.models import YoloxModule

from mammo_nb.core.detection import cells
from mammo_nb.core.ensembles import export_module
from mammo_nb.core.networks import load_state, read_state
from mammo_nb.core.sidecars import EngineError, Tensor

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import numpy as np

from mammo_nb.core.backends import open_graph
from mammo_nb.core.detection import STRIDES, decode
from mammo_nb.core.networks import WeightsError

# %%
#| export
# the library's loss calls autocast by an old name, once a frame
warnings.filterwarnings("ignore", "`torch.cuda.amp.autocast", FutureWarning)

# %% [markdown]
# ## The network
# As the library has it, except that the output is the same in training and in evaluation: the raw values of each cell,
# before anything is decoded. The loss and the boxes are computed elsewhere. Batch normalisation adds 1e-3 to the
# variance, not torch's 1e-5; no file states it, and the boxes are wrong without it.

# %%
#| export
class Yolox(YoloxModule):
    "YOLOX with the raw values of the cells as output, in training and in evaluation."
    frozen_norm = False   # True: batch normalisation keeps its running statistics in training, too

    def train(self, mode: bool = True):
        super().train(mode)
        if mode and self.frozen_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self,
        x: torch.Tensor,   # float (n, 3, size, size), 0 to 255, not normalised
    ) -> torch.Tensor:     # (n, cells, 5 + classes): dx, dy, log w, log h in cells; logits of objectness and classes
        head, levels = self.head, []
        for k, features in enumerate(self.backbone(x)):
            stem = head.stems[k](features)
            box = head.reg_convs[k](stem)
            values = [head.reg_preds[k](box), head.obj_preds[k](box), head.cls_preds[k](head.cls_convs[k](stem))]
            levels.append(torch.cat(values, 1).flatten(2))
        return torch.cat(levels, 2).permute(0, 2, 1)

def create_yolox(
    name: str = "nano",   # nano, tiny, s, m, l or x
    classes: int = 1,     # number of classes
    seed: int = 0,        # of the initial weights
) -> Yolox:
    "Make a YOLOX network with random weights. Raises ValueError for an unknown name."
    config = YoloxConfig.get_named_config(f"yolox-{name}")
    if config is None:
        raise ValueError(f"no YOLOX {name!r}; there are nano, tiny, s, m, l and x")
    config.num_classes = classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = config.get_model()
    return Yolox(made.backbone, made.head)

# %%
network = create_yolox().eval()
assert sum(p.numel() for p in network.parameters()) == 896_754 and len(network.state_dict()) == 642
assert {(m.eps, m.momentum) for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {(1e-3, .03)}
with torch.no_grad():
    assert network(torch.zeros(2, 3, size, size)).shape == (2, sum((size // s) ** 2 for s in STRIDES), 6)

# %% [markdown]
# ## The loss
# SimOTA assigns each true box to the cells that predict it best (arXiv:2107.08430, section 2.1). Those cells learn its
# sides by overlap and, in the last epochs, by their plain difference too (L1). The library's own code computes the loss
# from our output.
#
# Which cells are candidates has changed between versions. Today they are those within 1.5 cells of the box's centre.
# The winner's copy was older: cells anywhere in the box or within 2.5 cells of its centre, where a cell that meets only
# one of the two conditions has a high cost.

# %%
#| export
def _old_constraint(
    boxes: torch.Tensor,   # (boxes, 4) cx, cy, w, h
    strides: torch.Tensor, # (1, cells)
    x: torch.Tensor,       # (1, cells), columns
    y: torch.Tensor,       # (1, cells), rows
) -> tuple[torch.Tensor, torch.Tensor]:  # bool (cells,), candidates; bool (boxes, candidates), meets both conditions
    "Candidate cells of YOLOX before August 2022, as in the winner's copy."
    centre = torch.stack([(x[0] + .5) * strides[0], (y[0] + .5) * strides[0]], -1)[None]
    away = (centre - boxes[:, None, :2]).abs()
    inside = (away < boxes[:, None, 2:] / 2).all(-1)
    near = (away < 2.5 * strides[0][None, :, None]).all(-1)
    allowed = inside.any(0) | near.any(0)
    return allowed, (inside & near)[:, allowed]

class YoloxLoss:
    "Loss of a batch from the output of `Yolox`, by the library's code."
    def __init__(self,
        network: Yolox,
        size: int,               # side of the input, pixels
        faithful: bool = False,  # assign boxes as the winner's copy did
    ):
        self.head = network.head
        self.l1 = False
        if faithful:
            self.head.get_geometry_constraint = _old_constraint
        self.place, self.stride = (torch.from_numpy(a) for a in cells(size))

    def __call__(self,
        raw: torch.Tensor,      # (n, cells, 5 + classes) of `Yolox`
        targets: torch.Tensor,  # float (n, boxes, 5): class, cx, cy, w, h in pixels; rows of zeros are none
    ) -> torch.Tensor:          # scalar: 5 IoU loss + objectness + class (+ L1 of the sides if `l1` is set)
        place, stride = self.place.to(raw.device), self.stride.to(raw.device)
        # no box is e^8 cells wide; a network that predicts one would overflow a step later
        boxes = torch.cat([(raw[..., :2] + place) * stride, torch.exp(raw[..., 2:4].clamp(max=8)) * stride], -1)
        self.head.use_l1 = self.l1
        return self.head.get_losses(None, [place[None, :, 0]], [place[None, :, 1]], [stride[None, :, 0]], targets,
                                    torch.cat([boxes, raw[..., 4:]], -1), [raw[..., :4]], raw.dtype)[0]

# %%
# the same number as the library gives in its own training mode
torch.manual_seed(0)
pictures = torch.rand(2, 3, size, size) * 255
targets = torch.tensor([[[0., 100, 120, 90, 180]], [[0., 60, 128, 120, 240]]])
for l1 in (False, True):
    ours, theirs = create_yolox().train(), create_yolox().train()
    loss = YoloxLoss(ours, size)
    loss.l1 = theirs.head.use_l1 = l1
    expected = YoloxModule.forward(theirs, pictures, targets)["total_loss"]
    assert torch.isclose(loss(ours(pictures), targets), expected, rtol=1e-6)

# %% [markdown]
# ## Files
# The official `yolox_nano.pth` and the winner's checkpoint are dicts with the EMA weights under `model`. They load by
# name, all or nothing. To start from the 80 classes of COCO, the one layer whose shape depends on their number keeps
# its initial weights.

# %%
#| export
def load_yolox(
    network: Yolox,        # filled in place
    path: Path,            # .pth of YOLOX or .safetensors
    initial: bool = False, # as initial weights: the last layer of the classes may differ in shape, and is left out
) -> dict:                 # the JSON beside the file, or which entry it was
    "Fill a network from a published or converted file, strictly."
    state, metadata = read_state(path)
    if initial:
        own = network.state_dict()
        for name in list(state):
            if name.startswith("head.cls_preds.") and name in own and own[name].shape != state[name].shape:
                state[name] = own[name]
    load_state(network, state, path)
    return metadata

# %%
folder = Path(tempfile.mkdtemp())
coco, winner = create_yolox(classes=80, seed=1), create_yolox(seed=2)
torch.save({"start_epoch": 300, "model": coco.state_dict(), "optimizer": {}}, folder / "yolox_nano.pth")
scores = {"best_ap": np.float64(.9626), "curr_ap": np.float64(.96)}
torch.save({"start_epoch": 400, "model": winner.state_dict(), "optimizer": {}, **scores}, folder / "winner.pth")
load_yolox(network, folder / "winner.pth")
assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), winner.state_dict().values()))
load_yolox(network, folder / "yolox_nano.pth", initial=True)
assert torch.equal(network.backbone.C3_n4.conv1.conv.weight, coco.backbone.C3_n4.conv1.conv.weight)
assert network.head.cls_preds[0].weight.shape[0] == 1
try:
    load_yolox(network, folder / "yolox_nano.pth")
except WeightsError as e:
    print(e)

# %% [markdown]
# ## One graph
# For use the picture goes in as one channel of grey levels from 0 to 255, and decoded boxes come out. The levels may be
# 8 bits as stored, or floats: the winner's detector was shown levels that were not cut to whole numbers. His engine
# left the decoding to the caller; with `decode` off the graph gives the same values as his.
#
# The network was made for colours, and its first layer sorts the pixels by odd and even rows and columns. With three
# equal channels both can be folded into the weights: one convolution of 6 by 6 pixels with stride 2.

# %%
#| export
def grey_stem(
    stem: nn.Module,   # YOLOX's Focus: four quarters of the pixels as channels, convolution 3x3, normalisation, SiLU
) -> nn.Module:        # the same for one channel, float (n, 1, size, size)
    "A first layer that gives for one channel what `stem` gives for three equal ones."
    stem = copy.deepcopy(stem.conv)
    weight = stem.conv.weight.detach()
    quarters = weight.unflatten(1, (4, 3)).sum(2)            # the three channels are equal
    whole = weight.new_zeros(len(weight), 1, 6, 6)
    for k, (row, column) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        whole[:, 0, row::2, column::2] = quarters[:, k]
    stem.conv = nn.Conv2d(1, len(weight), 6, stride=2, padding=2, bias=False, device=weight.device, dtype=weight.dtype)
    stem.conv.weight = nn.Parameter(whole)
    return stem

class DetectorGraph(nn.Module):
    "From grey levels to boxes in pixels of the square, or to the raw values of the cells."
    def __init__(self,
        network: Yolox,
        size: int,            # side of the input, pixels
        decode: bool = True,  # False: dx, dy, log w, log h as they are
    ):
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decode, self.size = decode, size
        self.inputs = (Tensor("images", "float32", ("n", 1, size, size), "NCHW", also=("uint8",)),)
        self.outputs = (Tensor("candidates", "float32", ("n", "cells", 5 + network.head.num_classes), "NLC"),)
        self.network.backbone.backbone.stem = grey_stem(network.backbone.backbone.stem)
        for name, value in zip(("place", "stride"), cells(size)):
            self.register_buffer(name, torch.from_numpy(value))
        self.eval()

    def forward(self,
        images: torch.Tensor,  # float32 or uint8 (n, 1, size, size), levels 0 to 255
    ) -> torch.Tensor:         # float32 (n, cells, 5 + classes): box, objectness and classes as probabilities
        raw = self.network(images.float())
        box, scores = raw[..., :4], torch.sigmoid(raw[..., 4:])
        if self.decode:
            box = torch.cat([(box[..., :2] + self.place) * self.stride, torch.exp(box[..., 2:]) * self.stride], -1)
        return torch.cat([box, scores], -1)

def export_yolox(
    network: Yolox,
    path: Path,               # NAME.onnx
    size: int,                # side of the input, pixels
    metadata: dict,           # the caller's entries for NAME.json
    batch: int | None = None, # a fixed number of pictures; None: any
    decode: bool = True,      # of `DetectorGraph`
) -> dict:                    # NAME.json
    "Write NAME.onnx and NAME.json. Raises EngineError."
    if batch is not None and batch < 1:
        raise EngineError(f"a batch has at least one picture, not {batch}")
    graph = DetectorGraph(network, size, decode)
    inputs = [replace(t, shape=(batch or "n", *t.shape[1:])) for t in graph.inputs]
    own = {"size": size, "decoded": decode, "batch": batch or "any", "classes": network.head.num_classes}
    return export_module(graph, path, inputs, graph.outputs, {**metadata, **own})

# %% [markdown]
# ## What came out
# One picture at a time in a graph of fixed size, three in one that takes any number; decoded inside the graph, or
# outside by `core/detection`: the boxes are the same.

# %%
squares = (np.random.default_rng(0).random((3, 1, size, size)) * 255).astype(np.uint8)
with torch.no_grad():
    reference = DetectorGraph(network, size)(torch.from_numpy(squares)).numpy()
outputs = {}
for label, options in {"any number": {}, "one": {"batch": 1}, "not decoded": {"decode": False}}.items():
    export_yolox(network, folder / f"{label}.onnx", size, {}, **options)
    graph = open_graph(folder / f"{label}.onnx")
    if label == "one":
        outputs[label] = np.concatenate([graph(s[None]) for s in squares])
    else:
        outputs[label] = graph(squares)
outputs["not decoded"] = decode(outputs["not decoded"], size)
differences = {k: np.abs(v - reference)[..., :4].max() for k, v in outputs.items()}
assert max(differences.values()) < 0.05 and all(np.abs(v - reference)[..., 4:].max() < 1e-5 for v in outputs.values())
plt.figure(figsize=(5, 2))
plt.barh(list(differences), list(differences.values()))
plt.xlabel("largest difference of a side from torch, pixels")
plt.tight_layout()

# %% [markdown]
# ---
# [← Detection](58_detection.py) · [Submitting →](60_submitting.py)

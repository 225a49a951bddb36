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
# # Explanations
# > A heat map shows which places of a picture a network's answer came from.
#
# Grad-CAM (Selvaraju et al. 2017) weights each channel of a feature map by the mean of its gradient. It was made for
# the last map, where a cell is 32 pixels wide. HiResCAM (Draelos & Carin 2020) multiplies gradient and feature in each
# cell and then adds the channels. So it works on finer maps, too. captum computes it as *gradient x activation*.
#
# A heat map says where the answer came from. It does not say that the answer is right.

# %%
#| default_exp core.explanations

# %%
#| export
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from scipy.stats import binomtest
from torch import nn

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.networks import Mirrored
from mammo_nb.core.pictures import place_of_fit

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.ensembles import drawn_ensemble
from mammo_nb.core.pictures import fit_resize

# %% tags=["parameters"]
seed = 0   # of the random pictures below

# %% [markdown]
# ## The maps of a network
# timm names the stages of a network and how many pixels lie between two of their cells. Three maps are used: those with
# a step of 8 and of 16 pixels, and the last one before the pooling. EfficientNet has one more convolution behind its
# last stage. A map with fewer than four cells along a side says too little about places and is left out. A network may
# name layers of its own: its attribute `feature_info` is a list of `{"module": ..., "reduction": ...}`, as in timm.

# %%
#| export
class ExplanationError(ProjectError):
    "A network of which no heat map can be made."

STEPS = (8, 16)   # pixels from cell to cell, of the maps that are used besides the last one
CELLS = 4         # along the shorter side, at least

def _layer(body: nn.Module, name: str) -> nn.Module:
    "A stage by timm's name for it; a network that only gives maps has some of them under flattened names."
    flat = name.replace(".", "_")
    return body.get_submodule(flat if flat in dict(body.named_children()) else name)

def feature_layers(
    network: nn.Module,            # has a timm network in it
    size: tuple[int, int],         # height, width of its input, pixels
    steps: tuple | None = None,    # pixels from cell to cell of the maps; None: STEPS and the last map
) -> dict[int, nn.Module]:         # step in pixels -> layer, the last map's at the end
    "The layers whose maps are used. Raises ExplanationError."
    body = next((m for m in network.modules() if hasattr(m, "feature_info")), None)
    if body is None:
        raise ExplanationError(f"{type(network).__name__} has no feature maps that timm names, so there is no heat map "
                               "of its answers.")
    info = getattr(body.feature_info, "info", body.feature_info)
    layers = {stage["reduction"]: _layer(body, stage["module"]) for stage in info}
    last = max(layers)
    behind = next((m for m in network.modules() if hasattr(m, "conv_head") and hasattr(m, "bn2")), None)
    if behind:
        layers[last] = behind.bn2
    wanted = set(steps or (*STEPS, last))
    used = {step: layers[step] for step in sorted(wanted & set(layers)) if min(size) // step >= CELLS}
    if not used:
        raise ExplanationError(f"An input of {size[0]}x{size[1]} pixels is too small for a heat map of "
                               f"{type(body).__name__}.")
    return used

# %%
layers = feature_layers(drawn_ensemble("convnext_atto", 1), (256, 128))
assert [(step, type(layer).__name__) for step, layer in layers.items()] == [
    (8, "ConvNeXtStage"), (16, "ConvNeXtStage"), (32, "ConvNeXtStage")]
lite = drawn_ensemble("tf_efficientnet_lite0", 1)
assert feature_layers(lite, (256, 128))[32].weight.shape == (1280,) and list(feature_layers(lite, (64, 64))) == [8, 16]

# %% [markdown]
# ## A heat map
# Parts of the answer are signed: some places speak against it. Networks of an ensemble are averaged with their signs,
# so the map explains the mean of their logits. Then the places that speak for the answer are kept, each map is scaled
# to a maximum of 1, and the maps are averaged. No place is known better than to a part of a cell of the coarsest map,
# so the result is smoothed with a Gaussian of half a cell.
#
# This way was chosen on drawn breasts (recipe `demo`, 58 images of cancers that were found). Inside of the lesion were
# 0.34 of the peaks of the last map, 0.64 and 0.66 of those of the finer ones, 0.69 of the three maps together, and 0.93
# with the smoothing.
#
# Transformers have no maps but one vector for each cell, row by row, and sometimes vectors of no place before them.
# They are put back into rows and columns.

# %%
#| export
PIXELS = 2**19   # of the pictures that pass a network together; a picture of the winner's is four times as large

Answer = Callable[[nn.Module, torch.Tensor], torch.Tensor]  # network, pictures -> logits (n, outputs)

def _cells(
    found: torch.Tensor,     # parts of the answer: (n, channels, rows, columns), or (n, vectors, channels)
    grid: tuple[int, int],   # rows, columns
) -> torch.Tensor:           # float32 (n, rows, columns)
    "The part of each cell. Raises ExplanationError."
    if found.ndim == 4:
        return found.sum(1).float()
    count = grid[0] * grid[1]
    if found.ndim != 3 or found.shape[1] < count:
        raise ExplanationError(f"A layer gives {tuple(found.shape)}, and that is no map of {grid[0]}x{grid[1]} cells.")
    return found[:, -count:].sum(2).float().unflatten(1, grid)

def contributions(
    network: nn.Module,
    x: torch.Tensor,               # float (n, channels, height, width), as the network takes it
    target: int | tuple = 0,       # output that is explained
    answer: Answer | None = None,  # how the network is asked; None: network(x)
    steps: tuple | None = None,    # as for `feature_layers`
) -> list[torch.Tensor]:           # float32 (n, rows, columns) of each map, signed
    "HiResCAM of one network; of one with horizontal-flip TTA, the mean of both views."
    from captum.attr import LayerGradientXActivation   # slow to import; predictions without heat maps do without it
    if isinstance(network, Mirrored):
        plain, mirrored = (contributions(network.model, view, target, answer, steps) for view in (x, x.flip(-1)))
        return [(p + m.flip(-1)) / 2 for p, m in zip(plain, mirrored)]
    asked = network.eval() if answer is None else lambda pictures: answer(network, pictures)
    layers = feature_layers(network, x.shape[-2:], steps)
    with torch.enable_grad():
        found = LayerGradientXActivation(asked, list(layers.values())).attribute(x, target=target)
    return [_cells(parts.detach(), tuple(side // step for side in x.shape[-2:])) for parts, step in zip(found, layers)]

def _scaled(maps: np.ndarray) -> np.ndarray:
    "Divide each map by its maximum, unless it is 0 everywhere."
    top = maps.max((1, 2), keepdims=True)
    return np.divide(maps, top, out=np.zeros_like(maps), where=top > 0)

def heat_maps(
    networks: Sequence[nn.Module],  # of an ensemble
    x: torch.Tensor,                # float (n, channels, height, width), as the networks take it, on their device
    target: int | tuple = 0,
    answer: Answer | None = None,   # as for `contributions`
    steps: tuple | None = None,     # the same
) -> np.ndarray:                    # float32 (n, height, width), 0 to 1; 0 everywhere if no place speaks for the answer
    "Which places of each picture the answer came from. Raises ExplanationError."
    count = max(1, PIXELS // (x.shape[-2] * x.shape[-1]))
    if len(x) > count:
        parts = [heat_maps(networks, x[s:s + count], target, answer, steps) for s in range(0, len(x), count)]
        return np.concatenate(parts)
    size = tuple(x.shape[-2:])
    sigma = max(feature_layers(networks[0], size, steps)) / 2
    together = 0
    for maps in zip(*(contributions(network, x, target, answer, steps) for network in networks)):
        mean = torch.stack(maps).mean(0).clamp(min=0)
        spread = nn.functional.interpolate(mean[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        together = together + _scaled(spread.cpu().numpy())
    return _scaled(np.stack([cv2.GaussianBlur(heat, (0, 0), sigma) for heat in together]))

# %% [markdown]
# A network whose answer depends on one place only: the mean of the pixels of one cell. The heat map has its peak there,
# whatever the picture is.

# %%
class OnePlace(nn.Module):
    "Means over 8, 16 and 32 pixels; the answer is one of the last ones."
    feature_info = [{"module": f"mean{step}", "reduction": step} for step in (8, 16, 32)]

    def __init__(self, row: int, column: int):
        super().__init__()
        self.mean8, self.mean16, self.mean32 = nn.AvgPool2d(8), nn.AvgPool2d(2), nn.AvgPool2d(2)
        self.row, self.column = row, column

    def forward(self, x):
        return self.mean32(self.mean16(self.mean8(x)))[:, :1, self.row, self.column]

noise = torch.rand(8, 1, 256, 128, generator=torch.Generator().manual_seed(seed)) + .1
heat = heat_maps([OnePlace(5, 2)], noise)
assert heat.shape == (8, 256, 128) and heat.dtype == np.float32
assert all(np.unravel_index(h.argmax(), h.shape)[0] // 32 == 5 for h in heat)
assert all(np.unravel_index(h.argmax(), h.shape)[1] // 32 == 2 for h in heat)
assert np.allclose(heat.max((1, 2)), 1) and heat.min() >= 0
mirrored = heat_maps([Mirrored(OnePlace(5, 0))], noise)[0]
assert mirrored[176, :16].min() > .5 and mirrored[176, -16:].min() > .5   # one view sees the left, one the right

# %% [markdown]
# ## On the frame
# A network gets a crop that was resized to fit. The way back cuts the padding off and puts the rest into the box of the
# crop.

# %%
#| export
def onto_frame(
    heat: np.ndarray,                 # float32 (height, width) of the network's input
    crop: tuple[int, int],            # rows, columns of the crop before `fit_resize`
    box: tuple[int, int, int, int],   # x0, y0, x1, y1 of the crop in the frame, half-open, pixels
    frame: tuple[int, int],           # rows, columns
    plain: bool = False,              # as for `fit_resize`
) -> np.ndarray:                      # float32 (rows, columns); 0 outside of the box
    "A heat map of a network's input, where its crop lies in the frame."
    top, left, bottom, right = place_of_fit(crop, *heat.shape, plain)
    x0, y0, x1, y1 = box
    whole = np.zeros(frame, np.float32)
    whole[y0:y1, x0:x1] = cv2.resize(heat[top:bottom, left:right], (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
    return whole

def peak(
    heat: np.ndarray,              # (rows, columns)
) -> tuple[int, int] | None:       # row, column; None if it is 0 everywhere
    "The hottest place."
    return tuple(int(k) for k in np.unravel_index(heat.argmax(), heat.shape)) if heat.any() else None

def hit(
    heat: np.ndarray,   # (rows, columns)
    mask: np.ndarray,   # the same shape, not 0 in the lesion
) -> bool:
    "Whether the hottest place lies inside of the lesion; there is no tolerance."
    place = peak(heat)
    return place is not None and bool(mask[place])

def hit_rate(
    hits: Sequence[bool],  # of independent items
) -> dict:                 # items, hits, share, low, high (95 %, Wilson 1927); nan without an item
    "The share of hits with its interval."
    n, k = len(hits), int(np.sum(hits))
    if not n:
        return {"items": 0, "hits": 0, "share": np.nan, "low": np.nan, "high": np.nan}
    low, high = binomtest(k, n).proportion_ci(method="wilson")
    return {"items": n, "hits": k, "share": k / n, "low": float(low), "high": float(high)}

# %% [markdown]
# A bright spot in a frame, and a network that answers with the mean brightness. The peak comes back to the spot.

# %%
class Brightness(OnePlace):
    "Its answer is the mean of all cells."
    def forward(self, x):
        return self.mean32(self.mean16(self.mean8(x))).mean((2, 3))

frame = np.zeros((700, 500), np.uint8)
frame[300:340, 380:420] = 255
box = (230, 100, 480, 650)   # x0, y0, x1, y1
crop = frame[box[1]:box[3], box[0]:box[2]]
seen = fit_resize(crop, 256, 128)
found, = heat_maps([Brightness(0, 0)], torch.from_numpy(seen)[None, None] / 255)
back = onto_frame(found, crop.shape, box, frame.shape)
assert np.abs(np.subtract(peak(back), (320, 400))).max() <= 8 and hit(back, frame)
assert not hit(back, np.zeros_like(frame)) and not hit(np.zeros_like(back), frame)
rate = hit_rate([True] * 8 + [False] * 2)
assert np.allclose([rate["share"], rate["low"], rate["high"]], [.8, .490, .943], atol=5e-4)

# %% [markdown]
# ## Drawn
# The colours are those of *inferno*, which is perceived evenly and also by people who confuse red and green. Below a
# fifth of the maximum nothing is drawn, so that the picture can be seen.

# %%
#| export
LOW, STRENGTH = 0.2, 0.65   # heat that is not drawn; opacity of the hottest place
SCALE = "heat: 0 (nothing drawn below 0.2) to 1 (yellow), relative to the hottest place of each picture"

def overlay(
    grey: np.ndarray,   # uint8 (rows, columns)
    heat: np.ndarray,   # float32 (rows, columns), 0 to 1
) -> np.ndarray:        # uint8 (rows, columns, 3), RGB
    "A picture under its heat map."
    colours = cv2.applyColorMap(np.uint8(np.round(255 * heat)), cv2.COLORMAP_INFERNO)[..., ::-1]
    opacity = STRENGTH * np.clip((heat - LOW) / (1 - LOW), 0, 1)[..., None] ** .5
    return np.uint8(np.round((1 - opacity) * grey[..., None] + opacity * colours))

def beside(
    grey: np.ndarray,   # uint8 (rows, columns)
    heat: np.ndarray,   # float32 (rows, columns), 0 to 1
) -> np.ndarray:        # uint8 (rows, 2 x columns, 3), RGB
    "A picture, and to the right of it the same one under its heat map."
    return np.hstack([np.repeat(grey[..., None], 3, 2), overlay(grey, heat)])

def colour_scale(
    figure,             # of matplotlib
):
    "A bar below the pictures of a figure that states the scale."
    from matplotlib.cm import ScalarMappable   # slow to import, and needed here only
    bar = figure.colorbar(ScalarMappable(cmap="inferno"), ax=figure.axes, orientation="horizontal", fraction=.02,
                          pad=.02, aspect=60)
    bar.set_label(SCALE, fontsize=8)

# %%
figure, axes = plt.subplots(1, 2, figsize=(6, 4))
grey = np.uint8(np.random.default_rng(seed).integers(40, 90, frame.shape) + frame // 2)
axes[0].imshow(beside(seen, found))
axes[1].imshow(overlay(grey, back))
for axis in axes:
    axis.axis("off")
colour_scale(figure)
assert (overlay(grey, back)[0, 0] == grey[0, 0]).all()   # transparent where it is cold

# %% [markdown]
# ---
# [← Results as DICOM](76_dicom_results.py) · [Pages →](78_pages.py)

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
# # Walk-through
# > Weights, head and score as in the published walk-through, where the baseline has another way by default.
#
# The author fine-tuned torchvision's ConvNeXt-tiny. The baseline builds timm's, which is the same network with other
# names of its layers. So torchvision's weights are translated. Head and score are used where a recipe has
# `train.faithful`.

# %%
#| default_exp baseline.learning.walkthrough

# %%
#| export
import re
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mammo_nb.core.networks import WeightsError, read_state

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.metrics import threshold_curve
from mammo_nb.core.networks import create_network

# %% tags=["parameters"]
seed = 0   # of the head below

# %% [markdown]
# ## Names of the layers
# torchvision counts stem, stages and the layers between them in one sequence, `features.0` to `features.7`. An even
# number is the stem or a downsampling, an odd one is a stage. timm stores the scale of a layer as a vector, torchvision
# as a map of one pixel.

# %%
#| export
_LAYERS = {"block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1", "block.5": "mlp.fc2"}   # of a block

def timm_name(
    name: str,   # tensor name in torchvision's ConvNeXt
) -> str:        # tensor name in timm's
    "Translate one name, e.g. `features.5.4.block.3.weight` to `stages.2.blocks.4.mlp.fc1.weight`."
    for old, new in (("classifier.0.", "head.norm."), ("classifier.2.", "head.fc."), ("features.0.", "stem.")):
        if name.startswith(old):
            return new + name[len(old):]
    _, number, at, rest = name.split(".", 3)
    stage, odd = divmod(int(number), 2)
    if not odd:
        return f"stages.{stage}.downsample.{at}.{rest}"
    layer = re.sub(r"block\.\d", lambda found: _LAYERS[found[0]], rest).replace("layer_scale", "gamma")
    return f"stages.{stage}.blocks.{at}.{layer}"

def named_as_in_timm(
    state: dict[str, torch.Tensor],   # of torchvision's ConvNeXt
) -> dict[str, torch.Tensor]:         # for timm's, in the same order
    "Translate the names of a state dict."
    return {timm_name(name): tensor.flatten() if name.endswith("layer_scale") else tensor
            for name, tensor in state.items()}

# %%
assert timm_name("features.5.4.block.3.weight") == "stages.2.blocks.4.mlp.fc1.weight"
assert timm_name("features.6.1.bias") == "stages.3.downsample.1.bias"
assert timm_name("features.1.0.layer_scale") == "stages.0.blocks.0.gamma"

# %% [markdown]
# ## torchvision's weights
# They come from torchvision's server, or from a file that was downloaded elsewhere. The head of 1000 classes is not
# used; the linear layer of the new network stays.

# %%
#| export
def torchvision_state(
    model: nn.Module,         # timm's ConvNeXt-tiny, whose own linear layer is kept
    file: Path | str = "",    # convnext_tiny-983f1562.pth; "": fetched from torchvision's server, once
) -> dict[str, torch.Tensor]: # for `load_state`
    "ImageNet weights of torchvision's ConvNeXt-tiny under timm's names. Raises WeightsError."
    state = read_state(Path(file))[0] if file else _fetched()
    return named_as_in_timm(state) | {f"head.fc.{name}": tensor for name, tensor in model.head.fc.state_dict().items()}

def _fetched() -> dict[str, torch.Tensor]:
    "The weights from torchvision's server or from torch's cache."
    from torchvision.models import ConvNeXt_Tiny_Weights  # only training needs torchvision
    published = ConvNeXt_Tiny_Weights.DEFAULT
    try:
        return published.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as e:  # no connection, or a damaged file
        raise WeightsError("torchvision", f"its ImageNet weights could not be fetched ({type(e).__name__})",
                           f"Download {published.url} and give its path: weights='torchvision:PATH'.") from e

# %% [markdown]
# ## The head
# In the walk-through the LayerNorm and the linear layer of the head are new modules, so both start as torch initialises
# them: the LayerNorm with ones and zeros, the linear layer evenly within one over the root of its inputs.

# %%
#| export
def renew_head(
    model: nn.Module,   # a timm network, changed in place
    seed: int,
):
    "Start the linear layer anew, and the normalisation before it if the head has one."
    norm = getattr(getattr(model, "head", None), "norm", None)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.manual_seed(seed)
        for layer in (norm, model.get_classifier()):
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()

# %%
network = create_network("test_convnext")
with torch.no_grad():
    network.head.norm.weight.mul_(3)
renew_head(network, seed)
limit = network.head.fc.in_features**-.5
assert (network.head.norm.weight == 1).all() and 0 < network.head.fc.weight.abs().max() <= limit

# %% [markdown]
# ## The score
# The three sums of the walk-through's pF1 start at 1e-6. So no division is by zero, and decisions that are equally good
# may differ in the seventh digit, which then decides between thresholds. Of equal ones the first counts.

# %%
#| export
_START = 1e-6

def soft_pf1(
    labels,          # (n,) 0 or 1
    probabilities,   # (n,), clipped to 0 to 1
) -> float:
    "Probabilistic F1 whose sums start at 1e-6."
    y, p = np.asarray(labels) == 1, np.clip(np.asarray(probabilities, float), 0, 1)
    # cumsum adds one after the other, as a loop does; another order would round otherwise
    positives, hit, false = (np.cumsum([_START, *x])[-1] for x in (y[y].astype(float), p[y], p[~y]))
    precision, recall = hit / (hit + false), hit / positives
    return float(2 * (precision * recall) / (precision + recall))

def first_threshold(
    labels,          # (n,) 0 or 1
    probabilities,   # (n,)
    thresholds,      # (t,), rising
) -> tuple[float, float]:  # threshold, its score
    "The threshold with the best score; the first of equal ones."
    p = np.asarray(probabilities)
    scores = [soft_pf1(labels, p > t) for t in thresholds]
    at = int(np.argmax(scores))
    return float(thresholds[at]), scores[at]

# %% [markdown]
# Two cancers, three thresholds: at 0.1 both are found with three false alarms, at 0.5 one without a false alarm. F1 is
# 4 / 7 and 2 / 3. The curve shows how little the 1e-6 changes.

# %%
y, p = np.array([1, 1, 0, 0, 0]), np.array([.9, .2, .3, .4, .3])
assert np.isclose(soft_pf1(y, p > .1), 4 / 7, atol=1e-6) and np.isclose(soft_pf1(y, p > .5), 2 / 3, atol=1e-6)
assert first_threshold(y, p, [.1, .5, .7])[0] == .5
grid = np.arange(20) / 20
plain = threshold_curve(y, p, grid)["score"]
assert np.abs(plain - [soft_pf1(y, p > t) for t in grid]).max() < 2e-6
plt.figure(figsize=(4, 2.2))
plt.plot(grid, plain, marker="o")
plt.xlabel("threshold")
plt.ylabel("F1");

# %% [markdown]
# ---
# [↑ Baseline](../00_system.py)

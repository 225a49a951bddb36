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
# # Targets
# > What the network is trained to predict: a label, and where a lesion is.
#
# Labels contain errors, so the target of a positive is a little below 1. In a data set with masks of its lesions there
# is a second target besides the label: the cells of the picture that a lesion reaches into.

# %%
#| default_exp mammo.learning.targets

# %%
#| export
import numpy as np
import torch
from torch.nn import functional as F

from mammo_nb.mammo.learning.lesions import CELL

# %%
#| hide
import matplotlib.pyplot as plt

# %% tags=["parameters"]
soft_positive = 0.1  # of the example below

# %% [markdown]
# ## The label
# A target a little below 1, and with label smoothing a little above 0, keeps the network from being certain about
# labels that may be wrong.

# %%
#| export
def soft_targets(
    cancer: np.ndarray,            # 0 or 1 for each image
    soft_positive: float,          # subtracted from the target of a positive
    label_smoothing: float = 0.0,  # share that is spread over both classes (Szegedy et al. 2016, section 7)
) -> np.ndarray:                   # float32, one for each image
    "Make the targets of the classifier."
    return cancer.astype(np.float32) * (1 - soft_positive) * (1 - label_smoothing) + label_smoothing / 2

# %%
assert np.allclose(soft_targets(np.array([0, 1]), soft_positive), [0, 1 - soft_positive])
assert np.allclose(soft_targets(np.array([0, 1]), 0, .1), [.05, .95])

# %% [markdown]
# ## The cells
# A label for an image holds little information about half a thousand pixels of lesion among sixty thousand of breast.
# The target is the mask in cells of 16 by 16 pixels: 1 where a part of a lesion is.

# %%
#| export
def lesion_cells(
    mask: np.ndarray,    # uint8 (height, width), multiples of CELL; lesions white
) -> np.ndarray:         # float32 (height / CELL, width / CELL), 1 where a lesion is
    "Find the cells that a lesion reaches into. Raises ValueError for other sizes."
    h, w = mask.shape
    if h % CELL or w % CELL:
        raise ValueError(f"Masks are learnt in cells of {CELL} pixels, and the network's input has {h} x {w}. "
                         f"Set height and width to multiples of {CELL}.")
    return (mask.reshape(h // CELL, CELL, w // CELL, CELL).max((1, 3)) > 127).astype(np.float32)

# %%
square = np.zeros((64, 32), np.uint8)
square[15:40, 18:20] = 255
assert lesion_cells(square).tolist() == [[0, 1], [0, 1], [0, 1], [0, 0]]
fig, axes = plt.subplots(1, 2, figsize=(3, 2.5))
axes[0].imshow(square, cmap="gray")
axes[1].imshow(lesion_cells(square), cmap="gray");

# %% [markdown]
# ## Two losses
# A pointing network has two logits for the label (`judgements`): one from the mean over the picture, as every
# classifier, and one from its cells, malignant against benign. Both have the label as their target. The cells have the
# mask as theirs: a cell with a malignant lesion is to be malignant, one with a benign lesion benign, and all others
# neither.

# %%
#| export
def pointing_loss(
    outputs: dict[str, torch.Tensor],  # judgements (n, 2); cells (n, 2, cells), benign and malignant; logits
    targets: dict[str, torch.Tensor],  # label (n, 1); cells (n, cells), 1 where a lesion is
    weight: float,                     # of the loss of the cells
) -> dict[str, torch.Tensor]:          # label, cells
    "Cross-entropy of the judgements, and of the cells, in which a cell with a lesion counts ten times."
    label, there = targets["label"], targets["cells"]
    wanted = torch.stack([there * (1 - label), there * label], 1)
    cells = F.binary_cross_entropy_with_logits(outputs["cells"], wanted, weight=1 + 9 * wanted)
    return {"label": F.binary_cross_entropy_with_logits(outputs["judgements"], label.expand(-1, 2)),
            "cells": weight * cells}

# %% [markdown]
# By hand: at the start of a training both judgements are 0 and all cells are -4. For one benign picture of four cells
# with a lesion in the first, a cell costs ln(1 + e^4) = 4.018 where the lesion is, ten times over, and ln(1 + e^-4) =
# 0.018 elsewhere.

# %%
losses = pointing_loss({"judgements": torch.zeros(1, 2), "cells": torch.full((1, 2, 4), -4.)},
                       {"label": torch.tensor([[0.]]), "cells": torch.tensor([[1., 0, 0, 0]])}, weight=2.)
assert np.isclose(losses["label"], np.log(2))
assert np.isclose(losses["cells"], 2 * (10 * np.log1p(np.exp(4)) + 7 * np.log1p(np.exp(-4))) / 8)
{name: round(value.item(), 3) for name, value in losses.items()}

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

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
# # Lesions
# > A classifier that also predicts where a lesion is.
#
# Masks of lesions hold more information than a label for the whole breast. A network that was trained with them also
# predicts whether each cell of 16 by 16 pixels has a benign or a malignant lesion. Its output is the mean of two
# logits: the classifier's, which averages over the picture, and that of the cells, in which a lesion of a few cells is
# not diluted by the breast around it.

# %%
#| default_exp mammo.learning.lesions

# %% tags=["parameters"]
architecture = "tf_efficientnet_lite0"  # the timm network shown below
size = (96, 96)                         # height, width of the images shown below, in pixels

# %%
#| export
import torch
from torch import nn

from mammo_nb.core.ensembles import register_network
from mammo_nb.core.networks import create_network

# %%
#| hide
import pandas as pd

from mammo_nb.core.ensembles import make_network
from mammo_nb.core.pictures import diagram

# %% [markdown]
# Two ways lead from the picture to the output. Only the lower one is trained with masks:

# %%
diagram({"x": (0, 0.5, "picture\n(3, h, w)"), "fine": (1, 0.5, "first blocks:\nfeatures (c, h/16, w/16)"),
         "coarse": (2.2, 0, "last blocks:\nfeatures (C, h/32, w/32)"),
         "head": (3.6, 0, "mean over the picture,\nlinear"),
         "cells": (2.2, 1, "1x1 convolution: each cell\nbenign, malignant"),
         "sum": (3.6, 1, "log-sum-exp of malignant\nminus that of benign"), "mean": (4.7, 0.5, "mean of\ntwo logits")},
        [("x", "fine"), ("fine", "coarse"), ("coarse", "head"), ("head", "mean"), ("fine", "cells"), ("cells", "sum"),
         ("sum", "mean")])

# %% [markdown]
# The cells come from the feature map that has 1/16 of the picture's height and width, through one convolution. Over the
# cells the two kinds of lesion are compared by a log-sum-exp, a smooth maximum. In training the output holds both
# logits (`judgements`) and all cells, each with a loss of its own.

# %%
#| export
CELL = 16  # pixels, height and width of a cell

class Pointing(nn.Module):
    "A classifier that also predicts which cells have a benign or a malignant lesion; its logit is the mean of both."
    def __init__(self,
        classifier: nn.Module,  # of timm, with .normalization and a feature map at 1/16 of the size
    ):
        super().__init__()
        self.index, channels = next(
            (i, f["num_chs"]) for i, f in enumerate(classifier.feature_info) if f["reduction"] == CELL)
        self.classifier = classifier
        self.where = nn.Conv2d(channels, 2, 1)
        self.normalization = classifier.normalization
        nn.init.zeros_(self.where.weight)
        nn.init.constant_(self.where.bias, -4.)  # at first every cell has a probability of 0.018

    def forward(self,
        x: torch.Tensor,   # (n, 3, height, width)
    ) -> torch.Tensor | dict[str, torch.Tensor]:  # (n, 1) logits; in training judgements (n, 2), cells (n, 2, cells)
        features, (fine,) = self.classifier.forward_intermediates(x, indices=[self.index])
        cells = self.where(fine).flatten(2)
        benign, malignant = cells.unbind(1)
        by_picture = self.classifier.forward_head(features)
        by_cells = malignant.logsumexp(1, keepdim=True) - benign.logsumexp(1, keepdim=True)
        judged = torch.cat([by_picture, by_cells], 1)
        return {"judgements": judged, "cells": cells} if self.training else judged.mean(1, keepdim=True)

# %% [markdown]
# An exported ensemble of such networks is built again from its weights under the kind `mammo.pointing`.

# %%
#| export
@register_network("mammo.pointing")
def pointing_classifier(
    network: str,                    # timm architecture
    global_pool: str | None = None,
) -> Pointing:
    "Make the network of the recipes with `lesion_weight`."
    return Pointing(create_network(network, global_pool=global_pool))

# %%
pointing = make_network({"kind": "mammo.pointing", "network": architecture}).eval()
noise = torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    # before the first step all cells are equal, and the second judgement is 0
    assert torch.allclose(pointing(noise), pointing.classifier(noise) / 2)
    outputs = pointing.train()(noise)
assert outputs["judgements"].shape == (4, 2)
assert outputs["cells"].shape == (4, 2, (size[0] // CELL) * (size[1] // CELL))

# %% [markdown]
# ## What came out
# A picture with one malignant cell, among more and more cells without a lesion. In the mean over the cells it soon
# disappears, in the log-sum-exp it does not:

# %%
rows = []
for cells in (4, 36, 144, 1024):
    malignant = torch.full((cells,), -4.)
    malignant[0] = 4.
    difference = malignant.logsumexp(0) - torch.full((cells,), -4.).logsumexp(0)
    rows.append({"cells": cells, "mean": round(malignant.mean().item() + 4, 2),
                 "log-sum-exp": round(difference.item(), 2)})
pd.DataFrame(rows)

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

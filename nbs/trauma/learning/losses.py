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
# # Losses
# > Soft labels by cross-entropy, masks by Dice.
#
# A label of a slice is a share: a patient's label times the part of the organ that this slice shows. Cross-entropy
# takes such a share as it is. Masks are compared by their overlap, because an organ covers a few per cent of a picture
# and a cross-entropy of pixels would be satisfied with none.

# %%
#| default_exp trauma.learning.losses

# %% tags=["parameters"]
side = 32   # of the drawn masks, pixels

# %%
#| export
import torch
from torch.nn import functional as F

# %%
#| hide
import matplotlib.pyplot as plt

# %% [markdown]
# ## Dice
# Sums go over all pictures of a batch, channel by channel. A channel without a pixel in the truth counts as zero loss,
# so an organ that is not there asks for nothing.

# %%
#| export
def dice_scores(
    probabilities: torch.Tensor,  # 0 to 1, (n, channels, ...)
    truth: torch.Tensor,          # 0 or 1, same shape
) -> torch.Tensor:                # (channels,), 0 to 1
    "Dice of each channel over all pictures of a batch."
    over = [k for k in range(probabilities.ndim) if k != 1]
    both, all_of_them = (probabilities * truth).sum(over), (probabilities + truth).sum(over)
    return 2 * both / all_of_them.clamp_min(1e-7)

def dice_loss(
    logits: torch.Tensor,   # (n, channels, ...)
    truth: torch.Tensor,    # 0 or 1, same shape
) -> torch.Tensor:          # scalar
    "Mean over the channels of 1 - Dice; a channel without truth counts as zero."
    over = [k for k in range(truth.ndim) if k != 1]
    there = (truth.sum(over) > 0).to(logits.dtype)
    return ((1 - dice_scores(torch.sigmoid(logits), truth)) * there).mean()

# %% [markdown]
# By hand: a square, and the same square moved by half of its side, overlap by half. The second channel is empty.

# %%
truth = torch.zeros(1, 2, side, side)
truth[0, 0, 8:24, 8:24] = 1
moved = truth.roll(8, -1)
assert dice_scores(moved, truth)[0] == 0.5
sure = (moved * 2 - 1) * 50
assert torch.allclose(dice_loss(sure, truth), torch.tensor(0.25)) and dice_loss((truth * 2 - 1) * 50, truth) < 1e-6

# %% [markdown]
# ## The loss of a classifier
# The Dice losses of all auxiliary masks are added and weighted. At a validation there are no masks.

# %%
#| export
def classifier_loss(
    weight: float,   # of the Dice loss
):                   # f(outputs, targets) -> the terms `labels` and, where masks are drawn, `masks`
    "Make the loss of a network that reads blocks."
    def loss(outputs: dict, targets: dict) -> dict[str, torch.Tensor]:
        terms = {"labels": F.binary_cross_entropy_with_logits(outputs["labels"], targets["labels"])}
        if "masks" in outputs:
            truth = targets["masks"].flatten(0, 1)
            terms["masks"] = weight * sum(dice_loss(mask, truth) for mask in outputs["masks"])
        return terms
    return loss

# %%
outputs = {"labels": torch.zeros(1, 2, 3), "masks": [sure.expand(2, -1, -1, -1)] * 2}
targets = {"labels": torch.full((1, 2, 3), 0.25), "masks": truth[None].expand(1, 2, -1, -1, -1)}
terms = classifier_loss(0.125)(outputs, targets)
assert torch.allclose(terms["labels"], torch.tensor(2.).log()) and torch.allclose(terms["masks"], torch.tensor(0.0625))
assert classifier_loss(0.125)({"labels": outputs["labels"]}, targets).keys() == {"labels"}

# %% [markdown]
# ## What came out
# The loss of a square that moves away, by its distance.

# %%
distances = range(0, side // 2 + 1)
values = [dice_loss((truth.roll(d, -1) * 2 - 1) * 50, truth).item() for d in distances]
assert values == sorted(values)
plt.figure(figsize=(5, 2.2))
plt.plot(distances, values)
plt.xlabel("distance, pixels")
plt.ylabel("Dice loss, mean of two channels");

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

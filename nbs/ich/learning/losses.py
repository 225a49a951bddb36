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
# > The competition's weighted log loss, as a training loss and as a metric.
#
# The competition scores each slice by the log loss of six labels, and `any` counts twice. The training minimises the
# same number. The two differ only where the metric clips a probability, because a clipped value has no gradient.

# %%
#| default_exp ich.learning.losses

# %%
#| export
import numpy as np
import torch
from torch.nn import functional as F

# %%
#| hide
import matplotlib.pyplot as plt
from sklearn import metrics

# %% tags=["parameters"]
n, classes = 400, 6   # slices and classes of the random example below

# %% [markdown]
# ## Weights
# The last class is `any`. With six classes each of the five kinds of hemorrhage has the weight 1/7, and `any` has 2/7.
# A data set with one class has no weights.

# %%
#| export
def class_weights(
    classes: int,    # number of classes; the last one is `any`
) -> np.ndarray:     # float64 (classes,), their sum is 1
    "Weights of the competition: `any` counts twice."
    weights = np.ones(classes)
    weights[-1] = 2
    return weights / weights.sum()

# %%
assert np.allclose(class_weights(6), [1 / 7] * 5 + [2 / 7]) and class_weights(1).tolist() == [1]

# %% [markdown]
# ## The training loss

# %%
#| export
def weighted_log_loss(
    logits: torch.Tensor,   # (..., classes), float
    targets: torch.Tensor,  # (..., classes), 0 or 1
) -> torch.Tensor:          # scalar
    "Weighted mean of the binary cross-entropies; not clipped."
    each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").flatten(0, -2).mean(0)
    return (each * torch.as_tensor(class_weights(logits.shape[-1]), dtype=each.dtype, device=each.device)).sum()

# %% [markdown]
# By hand: a logit of 0 costs log 2. If only `any` is wrong, the loss is 2/7 of its cross-entropy.

# %%
right = torch.full((1, 6), -30.)
wrong = right.clone()
wrong[0, 5] = 30.
assert torch.allclose(weighted_log_loss(torch.zeros(4, 6), torch.ones(4, 6)), torch.tensor(2.).log())
assert torch.allclose(weighted_log_loss(wrong, torch.zeros(1, 6)), torch.tensor(30 * 2 / 7))
assert weighted_log_loss(right, torch.zeros(1, 6)) < 1e-9

# %% [markdown]
# ## The metric
# A probability is clipped to 1e-5 and 1 - 1e-5, so that one wrong slice costs 11.5 at most.

# %%
#| export
CLIP = 1e-5

def class_losses(
    labels: np.ndarray,         # 0 or 1, (n, classes)
    probabilities: np.ndarray,  # 0 to 1, (n, classes)
    clip: float = CLIP,         # smallest distance of a probability from 0 and 1
) -> np.ndarray:                # float64 (classes,)
    "Log loss of each class. Raises ValueError for shapes that differ, no slices or numbers that are no probabilities."
    y, p = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    if y.shape != p.shape or y.ndim != 2 or not len(y):
        raise ValueError(f"Labels have the shape {y.shape} and probabilities {p.shape}. "
                         "Both must have a row for each slice and a column for each class.")
    if not ((0 <= p) & (p <= 1)).all():
        raise ValueError("A probability is not between 0 and 1. Give probabilities, not logits.")
    p = np.clip(p, clip, 1 - clip)
    return -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(0)

def log_loss(
    labels: np.ndarray,         # 0 or 1, (n, classes); (n,) for a single class
    probabilities: np.ndarray,  # 0 to 1, same shape
    clip: float = CLIP,         # smallest distance of a probability from 0 and 1
) -> float:
    "The metric of the competition: weighted mean of the log losses of the classes."
    y, p = np.asarray(labels), np.asarray(probabilities)
    if y.ndim == 1:
        y, p = y[:, None], p.reshape(len(p), -1)
    return float(class_losses(y, p, clip) @ class_weights(y.shape[1]))

# %% [markdown]
# For each class it is scikit-learn's log loss of the clipped probabilities, and without extreme probabilities it is the
# training loss.

# %%
rng = np.random.default_rng(0)
labels, logits = rng.integers(2, size=(n, classes)), rng.normal(size=(n, classes)) * 3
probabilities = 1 / (1 + np.exp(-logits))
expected = [metrics.log_loss(labels[:, k], probabilities[:, k]) for k in range(classes)]
assert np.allclose(class_losses(labels, probabilities), expected)
same = weighted_log_loss(torch.tensor(logits), torch.tensor(labels, dtype=torch.float64)).item()
assert abs(log_loss(labels, probabilities) - same) < 1e-9
assert np.isclose(log_loss([1], [0.0]), -np.log(1e-5)) and log_loss([1], [1.0]) > 0

# %%
for y, p in (([[1, 0]], [[.5, float("nan")]]), ([[1, 0]], [[.5]]), ([[1, 0]], [[.5, 2]])):
    try:
        log_loss(y, p)
    except ValueError as e:
        print(e)

# %% [markdown]
# ## What came out
# The cost of a probability, if the label is 1. A confident mistake is what costs, so a model must know its uncertainty.

# %%
p = np.linspace(0, 1, 2001)
plt.figure(figsize=(5, 2.4))
plt.plot(p, [log_loss([1], [each]) for each in p])
plt.xlabel("probability of the label")
plt.ylabel("log loss")
plt.title(f"log loss, clipped at {CLIP}", fontsize=9);

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

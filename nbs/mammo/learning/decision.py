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
# # Decision
# > From the probabilities of several networks to 0 or 1 for a breast.
#
# The probability of an image is the mean over the networks, the probability of a breast the mean over its images. A
# breast is positive if its probability is above the threshold.

# %%
#| default_exp mammo.learning.decision

# %%
#| export
import numpy as np
import pandas as pd

from mammo_nb.core.metrics import above

# %% [markdown]
# ## Networks
# A network may fail on an image: its output is not a number. The mean is then not a number either, the image is
# reported as an error, and the breast is decided by its other images. In the winner's code an output that is not a
# number counts as 0 and an infinite one as the largest float32, without a message (`faithful`). One failure of four
# networks pulls an image down by a quarter, and may turn a cancer into 0.

# %%
#| export
def image_means(
    probabilities: np.ndarray,  # (n, networks)
    faithful: bool = False,     # what is not finite is replaced, as in the winner's code
) -> np.ndarray:                # float32 (n,); not finite where a network's output is not, unless `faithful`
    "The mean over the networks, in float32."
    probabilities = np.asarray(probabilities, np.float32)
    with np.errstate(over="ignore"):  # two of the largest float32 have no finite sum
        return (np.nan_to_num(probabilities) if faithful else probabilities).mean(1)

# %%
outputs = np.array([[.4, .5, .5, .6], [.4, np.nan, .5, .6]], np.float32)
assert np.allclose(image_means(outputs), [.5, np.nan], equal_nan=True)
assert np.allclose(image_means(outputs, faithful=True), [.5, .375])
image_means(outputs, faithful=True)

# %% [markdown]
# ## Breasts
# Both sides are compared as float32: 0.31 in float32 is 0.3100000024, and a breast with this probability is not above
# the threshold 0.31. Compared as float64 it would be.

# %%
#| export
def breast_decisions(
    images: pd.DataFrame,   # prediction_id, probability (missing where an image failed); one row an image
    threshold: float,
) -> pd.Series:             # prediction_id -> 0 or 1; a breast without any prediction gets 0
    "Decide for each breast by the mean over its images, which is above the threshold or not."
    mean = images.groupby("prediction_id")["probability"].mean()
    return pd.Series(above(mean, threshold).astype(int), index=mean.index, name="cancer")

# %% [markdown]
# ## What came out

# %%
table = pd.DataFrame({"prediction_id": ["1_L", "1_L", "1_R", "2_L", "3_L"],
                      "probability": [.9, np.nan, np.float32(.31), .3101, None]})
decided = breast_decisions(table, .31)
assert decided.to_dict() == {"1_L": 1, "1_R": 0, "2_L": 1, "3_L": 0}
decided

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

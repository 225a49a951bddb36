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
# # Scores
# > Log loss and AUC of predictions with intervals over patients, and the change from one prediction to another.
#
# The slices of a patient resemble each other, so a thousand slices of forty patients say little more than forty
# patients do. The bootstrap draws patients. Two predictions of the same slices are compared on the same draws, so what
# makes all predictions of a draw better or worse cancels out.

# %%
#| default_exp ich.learning.scores

# %%
#| export
import numpy as np
import pandas as pd

from mammo_nb.core.metrics import auc
from mammo_nb.core.uncertainty import auc_interval, bootstrap, interval
from mammo_nb.ich.learning.losses import CLIP, class_weights, log_loss

# %%
#| hide
from mammo_nb.ich.recipes import CLASSES

# %% tags=["parameters"]
patients, slices = 40, 25   # of the random predictions below

# %% [markdown]
# ## Log loss by patient

# %%
#| export
def patient_sums(
    labels: np.ndarray,         # 0 or 1, (n, classes)
    probabilities: np.ndarray,  # (n, classes)
    patients: np.ndarray,       # (n,) ids
) -> tuple[np.ndarray, np.ndarray]:  # sum of the weighted log loss, and number of slices, of each patient
    "What the log loss of any selection of patients follows from."
    p = np.clip(np.asarray(probabilities, np.float64), CLIP, 1 - CLIP)
    y = np.asarray(labels, np.float64)
    each = -(y * np.log(p) + (1 - y) * np.log(1 - p)) @ class_weights(y.shape[1])
    codes, names = pd.factorize(np.asarray(patients), sort=True)
    return np.bincount(codes, each, len(names)), np.bincount(codes, minlength=len(names))

def drawn_losses(
    sums: np.ndarray,    # (patients,)
    counts: np.ndarray,  # (patients,)
) -> np.ndarray:         # (DRAWS,)
    "Bootstrap of the log loss over patients."
    return bootstrap(lambda times: times @ sums / (times @ counts), np.arange(len(sums)))

# %%
rng = np.random.default_rng(0)
who = np.repeat(np.arange(patients), slices)
labels = (rng.random((len(who), 6)) < 0.2 + 0.3 * (who % 2)[:, None]).astype(int)
good = np.clip(0.8 * labels + 0.1 + rng.normal(0, 0.1, labels.shape), 0, 1)
sums, counts = patient_sums(labels, good, who)
assert np.isclose(sums.sum() / counts.sum(), log_loss(labels, good)) and counts.tolist() == [slices] * patients

# %% [markdown]
# ## A table of predictions
# Each row is one prediction of the same slices. The change is that of the log loss from the first row.

# %%
#| export
def compare(
    known: pd.DataFrame,                 # patient_id and the labels, a row for each slice
    classes: tuple[str, ...],            # columns of labels
    predictions: dict[str, np.ndarray],  # name of a step -> probabilities (n, classes); the first is compared with
) -> pd.DataFrame:                       # step, log_loss, low, high, auc_any, ..., change_percent, ...
    "Scores of each prediction with 95 % intervals over patients."
    rows, reference, labels = [], None, known[list(classes)].to_numpy()
    for step, found in predictions.items():
        drawn = drawn_losses(*patient_sums(labels, found, known["patient_id"]))
        loss = log_loss(labels, found)
        reference = (loss, drawn) if reference is None else reference
        change = 100 * (drawn / reference[1] - 1)
        values = loss, auc(labels[:, -1], found[:, -1]), 100 * (loss / reference[0] - 1)
        intervals = interval(drawn), auc_interval(labels[:, -1], found[:, -1], known["patient_id"]), interval(change)
        rows.append([step, *(number for value, around in zip(values, intervals) for number in (value, *around))])
    columns = ["step", "log_loss", "low", "high", "auc_any", "auc_low", "auc_high", "change_percent", "change_low",
               "change_high"]
    return pd.DataFrame(rows, columns=columns)

def neighbours_mean(
    known: pd.DataFrame,       # series and place, a row for each slice
    probabilities: np.ndarray, # (n, classes)
) -> np.ndarray:               # (n, classes)
    "Mean of each slice and the slices below and above it; at the ends of a series there is one neighbour."
    frame = pd.DataFrame(probabilities, index=pd.RangeIndex(len(known)))
    order = known.reset_index(drop=True).sort_values(["series", "place"]).index
    rolled = frame.loc[order].groupby(known.reset_index(drop=True)["series"].loc[order]).rolling(
        3, center=True, min_periods=1).mean()
    return rolled.droplevel(0).loc[frame.index].to_numpy()

# %%
four = pd.DataFrame({"series": ["a", "b", "a", "a"], "place": [2, 0, 0, 1]})
assert neighbours_mean(four, np.array([[.9], [.5], [.1], [.2]])).ravel().round(9).tolist() == [.55, .5, .15, .4]

# %% [markdown]
# ## What came out
# A prediction, a better one, and one that is neither:

# %%
known = pd.DataFrame(labels, columns=list(CLASSES)).assign(patient_id=who)
noise = np.clip(good + rng.normal(0, .15, good.shape), 0, 1)
table = compare(known, CLASSES, {"noisy": noise, "good": good, "as noisy": noise})
assert table["change_percent"].iloc[1] < -20 and table["change_high"].iloc[1] < 0
assert table["change_percent"].iloc[2] == 0 and (table["low"] < table["log_loss"]).all()
table.round(3)

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

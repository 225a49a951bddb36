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
# # Uncertainty
# > Bootstrap intervals over patients.
#
# The views of one patient, or the slices of one scan, are not independent. An interval that draws images is therefore
# too narrow. The bootstrap here draws patients with replacement and computes the score anew for each draw. A patient
# who is drawn twice counts twice, so a draw is nothing but a number for each patient: how often. The predictions are
# sorted once, and each draw only counts. This makes thousands of draws cheap.

# %%
#| default_exp core.uncertainty

# %%
#| export
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from mammo_nb.core.metrics import checked

# %%
#| hide
import time

import matplotlib.pyplot as plt

from mammo_nb.core.metrics import auc, average_precision

# %% tags=["parameters"]
patients, views, prevalence, seed = 600, 4, 0.08, 0   # of the random screening round below

# %% [markdown]
# ## Draws

# %%
#| export
DRAWS = 1000  # of a bootstrap, where nothing else is said

def draws(
    patients: int,    # number of patients
    n: int = DRAWS,   # number of draws
    seed: int = 0,
) -> Iterator[np.ndarray]:  # n times int (patients,): how often each patient is drawn
    "Draw as many patients as there are, with replacement; the same ones for one seed."
    rng = np.random.default_rng(seed)
    for _ in range(n):
        yield np.bincount(rng.integers(patients, size=patients), minlength=patients)

def bootstrap(
    score: Callable,  # f(times (rows,) float) -> float or array: the score if each row counts that often
    patients,         # (rows,) ids
    n: int = DRAWS,
    seed: int = 0,
) -> np.ndarray:      # (n,) or (n, ...)
    "The score of each draw of patients (Efron & Tibshirani 1993); raises ValueError for rows without a patient."
    codes, names = pd.factorize(np.asarray(patients), sort=True)
    if (codes < 0).any():
        raise ValueError(f"{int((codes < 0).sum())} rows have no patient.")
    return np.array([score(times.astype(float)[codes]) for times in draws(len(names), n, seed)])

def interval(
    values: np.ndarray,   # (n, ...), from `bootstrap`
    level: float = 0.95,  # share of the draws that lie in the interval
) -> np.ndarray:          # (2, ...): low, high; nan where no draw has a number
    "Percentile interval; draws whose score is nan are left out."
    values = np.asarray(values, float)
    some = ~np.isnan(values).all(axis=0)
    found = np.full((2, *values.shape[1:]), np.nan)
    if some.any():
        found[:, some] = np.nanquantile(values[:, some], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return found

# %% [markdown]
# A proportion has a known standard error, $\sqrt{q(1-q)/n}$. Here is one of 200 patients, 60 of whom are ill:

# %%
ill = np.arange(200) < 60
shares = bootstrap(lambda times: times @ ill / times.sum(), np.arange(200), 2000)
expected = np.sqrt(.3 * .7 / 200)
assert abs(shares.std() / expected - 1) < .06
print(f"standard error {shares.std():.4f}, by the formula {expected:.4f}; 95 % {interval(shares).round(3).tolist()}")

# %% [markdown]
# ## Ranked predictions
# All scores that depend on the order of the predictions follow from two running sums: the positives and the negatives
# at or above each probability. Rows with equal probabilities are one step. For AUC, the trapezoids between the steps
# count equal probabilities of both classes half (Mann & Whitney 1947).
#
# Between two positives only negatives are added, and the curve is straight. So it is enough to know the sums at its
# corners. Where positives are few, these are few.

# %%
#| export
class Ranked:
    "Predictions that were sorted once. Its methods take how often each row counts, and are scores for `bootstrap`."

    def __init__(
        self,
        labels,         # (rows,) 0 or 1
        probabilities,  # (rows,) in [0, 1]
        thresholds=(),  # (t,) at which `counts` is wanted as well
    ):
        y, p = checked(labels, probabilities)
        self.order = np.argsort(-p, kind="stable")
        y, p = y[self.order], p[self.order]
        rows = np.append(0, np.flatnonzero(np.diff(p, append=-1)) + 1)  # down to each step, from none on
        positives = np.append(0, np.cumsum(y, dtype=int))[rows]
        rising = p[rows[1:] - 1][::-1].astype(np.float32)               # compared as `above` in core.metrics does it
        wanted = len(rising) - np.searchsorted(rising, np.asarray(thresholds, np.float32), side="right")
        found = np.flatnonzero(np.diff(positives)) + 1                  # steps with a positive
        corners = np.unique(np.concatenate([[0, len(rows) - 1], found - 1, found, wanted]).astype(int))
        self.at = np.searchsorted(corners, wanted)    # (t,) places of the thresholds in `counts`
        self.rows, self.positives = rows[corners], positives[corners]
        self.positive = self.order[y == 1]

    def counts(
        self,
        times=None,  # (rows,) how often each row counts; None: once
    ) -> tuple[np.ndarray, np.ndarray]:  # (corners,) each, from 0
        "Positives and negatives from the highest probability down to each corner of the ROC curve."
        times = np.ones(len(self.order)) if times is None else times
        hits = _running(times[self.positive])[self.positives]
        return hits, _running(times[self.order])[self.rows] - hits

    def auc(self, times=None) -> float:
        "Area under the ROC curve; nan if there is only one class."
        return auc_of(*self.counts(times))

    def average_precision(self, times=None) -> float:
        "Area under the precision-recall curve as a step function; nan without a positive."
        return average_precision_of(*self.counts(times))

def _running(times: np.ndarray) -> np.ndarray:
    "Running sums from 0, one more than there are values."
    sums = np.zeros(len(times) + 1)
    np.cumsum(times, out=sums[1:])
    return sums

def auc_of(
    hits: np.ndarray,    # (corners,) from `Ranked.counts`
    alarms: np.ndarray,  # (corners,)
) -> float:
    "Area under the ROC curve from running sums; nan if there is only one class."
    pairs = hits[-1] * alarms[-1]
    return float((hits[1:] + hits[:-1]) @ np.diff(alarms) / (2 * pairs)) if pairs else float("nan")

def average_precision_of(
    hits: np.ndarray,    # (corners,) from `Ranked.counts`
    alarms: np.ndarray,  # (corners,)
) -> float:
    "Average precision from running sums; nan without a positive."
    called = hits[1:] + alarms[1:]
    precision = np.divide(hits[1:], called, out=np.zeros_like(called), where=called > 0)
    return float(np.diff(hits) @ precision / hits[-1]) if hits[-1] else float("nan")

# %%
rng = np.random.default_rng(seed)
who = np.repeat(np.arange(patients), views)
y = np.repeat(rng.random(patients) < prevalence, views).astype(int)
p = (1 / (1 + np.exp(-rng.normal(np.where(y, 0., -1.5), 1) - np.repeat(rng.normal(0, 1, patients), views)))).round(2)
ranked = Ranked(y, p, [.3])
assert np.isclose(ranked.auc(), auc(y, p)) and np.isclose(ranked.average_precision(), average_precision(y, p))
assert ranked.counts()[0][ranked.at[0]] == y[p > .3].sum()

# %% [markdown]
# ## Intervals

# %%
#| export
def auc_interval(
    labels,         # (rows,) 0 or 1
    probabilities,  # (rows,)
    patients,       # (rows,) ids
    n: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:  # nan, nan if no draw has both classes
    "Bootstrap interval of the AUC over patients."
    low, high = interval(bootstrap(Ranked(labels, probabilities).auc, patients, n, seed), level)
    return float(low), float(high)

# %% [markdown]
# ## What came out
# The views of a patient resemble each other here. An interval over images would be too narrow:

# %%
began = time.perf_counter()
found = {"patients": bootstrap(ranked.auc, who), "images": bootstrap(ranked.auc, np.arange(len(who)))}
seconds = time.perf_counter() - began
assert found["images"].std() < .8 * found["patients"].std()
plt.figure(figsize=(6, 2.6))
for name, values in found.items():
    low, high = interval(values)
    plt.hist(values, bins=40, alpha=.6, label=f"draws of {name}: {low:.3f} to {high:.3f}")
plt.axvline(ranked.auc(), color="black", lw=1)
plt.xlabel("AUC")
plt.legend(fontsize=8)
print(f"{2 * DRAWS} draws of {len(who)} images in {seconds:.2f} s")

# %% [markdown]
# ---
# [← Evidence](70_evidence.py) · [Calibration →](72_calibration.py)

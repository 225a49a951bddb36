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
# # Calibration
# > Whether probabilities mean what they say, and a correction that is fitted on other folds.
#
# A calibrated model is right in thirty of a hundred breasts to which it gives 0.3. Networks often are not: the loss
# rewards extreme outputs, and a sampler shows them more cancers than there are. Ranking scores such as AUC do not see
# this.

# %%
#| default_exp core.calibration

# %%
#| export
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.special import expit

from mammo_nb.core.metrics import checked

# %%
#| hide

from mammo_nb.core.metrics import auc

# %% tags=["parameters"]
n, overconfidence, seed = 4000, 3.0, 0   # items below, and the factor on their true log-odds

# %% [markdown]
# ## The reliability curve
# Probabilities are put into bins of equal width. In each bin the mean probability is compared with the share of
# positives. The *expected calibration error* (ECE) is the mean distance, weighted with the number of items. The *Brier
# score* is the mean squared distance of a probability from its label. It needs no bins, and falls if ranking or
# calibration get better.

# %%
#| export
BINS = 10

class Reliability:
    "Predictions in bins. Methods that take how often each row counts are scores for `bootstrap`."

    def __init__(
        self,
        labels,         # (rows,) 0 or 1
        probabilities,  # (rows,) in [0, 1]
        bins: int = BINS,
    ):
        self.labels, self.probabilities = checked(labels, probabilities)
        self.bins = bins
        self.bin = np.minimum((self.probabilities * bins).astype(int), bins - 1)
        self.squared, self.excess = (self.probabilities - self.labels)**2, self.probabilities - self.labels

    def brier(
        self,
        times=None,  # (rows,) how often each row counts; None: once
    ) -> float:      # 0 (perfect) to 1; nan without a row
        "Mean squared distance of probability and label (Brier 1950)."
        return self._mean(self.squared, times)

    def error(
        self,
        times=None,  # (rows,)
    ) -> float:      # 0 (perfect) to 1; nan without a row
        "Expected calibration error in bins of equal width (Naeini et al. 2015)."
        times = np.ones(len(self.bin)) if times is None else times
        excess = np.bincount(self.bin, times * self.excess, self.bins)
        return float(np.abs(excess).sum() / times.sum()) if times.sum() else float("nan")

    def table(self) -> pd.DataFrame:  # low, high, items, predicted, observed; bins with items only
        "The mean probability and the share of positives of each bin."
        rows = pd.DataFrame({"bin": self.bin, "predicted": self.probabilities, "observed": self.labels})
        found = rows.groupby("bin").agg(items=("observed", "size"), predicted=("predicted", "mean"),
                                        observed=("observed", "mean")).reset_index()
        found.insert(0, "low", found["bin"] / self.bins)
        found.insert(1, "high", (found.pop("bin") + 1) / self.bins)
        return found

    def _mean(self, values: np.ndarray, times) -> float:
        if times is None:
            return float(values.mean()) if len(values) else float("nan")
        return float(times @ values / times.sum()) if times.sum() else float("nan")

# %% [markdown]
# By hand: bin 0.8 to 0.9 has two items with 0.8, of which one is positive: 0.3 too high. Bin 0.2 to 0.3 has two with
# 0.2 and no positive: 0.2 too high. The error is (2 · 0.3 + 2 · 0.2) / 4.

# %%
#| export
def plot_reliability(
    axis: plt.Axes,
    labels,         # (rows,) 0 or 1
    probabilities,  # (rows,) in [0, 1]
    name: str,      # of the positives, such as "cancer"
):
    "The share of positives by predicted probability; on the diagonal both are equal."
    table = Reliability(labels, probabilities).table()
    axis.plot([0, 1], [0, 1], color="lightgrey")
    axis.plot(table["predicted"], table["observed"], marker="o")
    axis.set(title=f"reliability, {name} in {int(np.sum(labels))} of {len(labels)}", ylabel=f"share with {name}",
             xlabel="probability, mean of a bin")

# %%
four = Reliability([1, 0, 0, 0], [.8, .8, .2, .2])
assert np.isclose(four.error(), .25) and np.isclose(four.brier(), (.04 + .64 + .04 + .04) / 4)
four.table()

# %% [markdown]
# ## Corrections
# *Temperature* scaling divides the log-odds by one number. It keeps the order, and with one number it cannot overfit
# (Guo et al. 2017). It cannot change 0.5, so it does not mend a wrong prevalence. *Isotonic* regression fits any rising
# steps (Zadrozny & Elkan 2002). It mends more and needs some hundred positives.

# %%
#| export
SMALLEST = 1e-7  # distance from 0 and 1 to which probabilities are clipped before log-odds are taken

def _log_odds(probabilities) -> np.ndarray:
    p = np.clip(np.asarray(probabilities, float), SMALLEST, 1 - SMALLEST)
    return np.log(p / (1 - p))

WARMEST = 100.0  # largest temperature; a larger one would say that low probabilities mean positives

def fit_temperature(
    labels,         # (n,) 0 or 1, both classes
    probabilities,  # (n,)
) -> dict:          # method, temperature
    "Temperature scaling: a logistic regression on the log-odds without an intercept, whose weight is 1 / temperature."
    from sklearn.linear_model import LogisticRegression  # here, as it takes a second; `predict` needs none
    model = LogisticRegression(C=np.inf, fit_intercept=False).fit(_log_odds(probabilities)[:, None], labels)
    return {"method": "temperature", "temperature": float(1 / max(model.coef_[0, 0], 1 / WARMEST))}

def fit_isotonic(
    labels,         # (n,) 0 or 1
    probabilities,  # (n,)
) -> dict:          # method, and the corners of the curve: before and after, two lists
    "Isotonic regression; beyond the probabilities that it has seen it stays at its first or last value."
    from sklearn.isotonic import IsotonicRegression
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(probabilities, labels)
    return {"method": "isotonic", "before": model.X_thresholds_.tolist(), "after": model.y_thresholds_.tolist()}

METHODS = {"temperature": fit_temperature, "isotonic": fit_isotonic}

def corrected(
    probabilities,      # (n,)
    correction: dict,   # of one of METHODS, as it is stored with weights
) -> np.ndarray:        # float64 (n,)
    "Apply a correction."
    if correction["method"] == "temperature":
        return expit(_log_odds(probabilities) / correction["temperature"])
    return np.interp(np.asarray(probabilities, float), correction["before"], correction["after"])

# %% [markdown]
# A correction must not see the labels that it is scored on. So each fold is corrected by what the other folds fit.

# %%
#| export
def calibrated(
    labels,         # (n,) 0 or 1
    probabilities,  # (n,)
    folds,          # (n,) at least two; a patient is in one fold only
    method: str,    # temperature or isotonic
) -> np.ndarray:    # float64 (n,)
    "Probabilities of each fold, corrected with a fit on the other folds; raises ValueError for input without a fit."
    y, p = checked(labels, probabilities)
    folds, found = np.asarray(folds), np.empty(len(p))
    if method not in METHODS:
        raise ValueError(f"{method} is no method; there are {', '.join(METHODS)}.")
    if len(set(folds)) < 2:
        raise ValueError("A correction out of fold needs at least two folds.")
    for fold in np.unique(folds):
        held = folds == fold
        if len(set(y[~held])) < 2:
            raise ValueError(f"The folds other than {fold} have labels of one class only.")
        found[held] = corrected(p[held], METHODS[method](y[~held], p[~held]))
    return found

def best_correction(
    labels,         # (n,) 0 or 1
    probabilities,  # (n,)
    folds,          # (n,)
) -> dict | None:   # fitted on all folds; None: no correction is better out of fold, or none can be fitted
    "The method with the lowest Brier score out of fold. It is chosen on the folds that it is scored on."
    (y, p), folds = checked(labels, probabilities), np.asarray(folds)
    if any(len(set(y[folds != fold])) < 2 for fold in np.unique(folds)):   # also with one fold
        return None
    scores = {"": Reliability(y, p).brier()}
    scores |= {method: Reliability(y, calibrated(y, p, folds, method)).brier() for method in METHODS}
    best = min(scores, key=scores.get)
    return METHODS[best](y, p) if best else None

# %% [markdown]
# ## What came out
# Predictions that rank well and are far too sure of themselves, before and after:

# %%
rng = np.random.default_rng(seed)
odds = rng.normal(-1, 1.2, n)
y, folds = (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(int), np.arange(n) % 4
kinds = {"as predicted": 1 / (1 + np.exp(-overconfidence * odds))}
kinds |= {method: calibrated(y, kinds["as predicted"], folds, method) for method in METHODS}
plt.figure(figsize=(4, 3.4))
plt.plot([0, 1], [0, 1], color="lightgrey")
for name, p in kinds.items():
    curve = Reliability(y, p).table()
    plt.plot(curve["predicted"], curve["observed"], marker=".", label=name)
plt.xlabel("probability, mean of a bin")
plt.ylabel("share of positives")
plt.legend(fontsize=8)
table = pd.DataFrame({name: {"Brier": Reliability(y, p).brier(), "ECE": Reliability(y, p).error(), "AUC": auc(y, p)}
                      for name, p in kinds.items()}).T
assert (table["Brier"].iloc[1:] < .9 * table["Brier"].iloc[0]).all() and (table["ECE"].iloc[1:] < .03).all()
assert best_correction(y, kinds["as predicted"], folds)["method"] == "temperature"
assert best_correction(y, kinds["as predicted"], 0 * folds) is None
table.round(3)

# %% [markdown]
# ---
# [← Uncertainty](71_uncertainty.py) · [Estimates →](73_estimates.py)

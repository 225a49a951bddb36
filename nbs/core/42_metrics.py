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
# # Metrics
# > The score of the competition, AUC and average precision.
#
# The competition scored *probabilistic F1* (pF1). Decisions of 0 and 1 score higher in it than probabilities do, so the
# winner submitted decisions. The threshold, and the choice between epochs, come from the curves made here. All of them
# are vectorised, because a selection scores hundreds of combinations.

# %%
#| default_exp core.metrics

# %%
#| export
import numpy as np
import pandas as pd

# %%
#| hide
import matplotlib.pyplot as plt

# %% tags=["parameters"]
n, prevalence, seed = 2000, 0.05, 0   # of the random screening round below

# %%
#| export
def checked(
    labels,         # (n,) 0 or 1
    probabilities,  # (n,), clipped to [0, 1]
) -> tuple[np.ndarray, np.ndarray]:  # float64 (n,) both
    "Labels as float 0 or 1 and probabilities as float64 in [0, 1]; raises ValueError for other input."
    y, p = np.asarray(labels, dtype=float).ravel(), np.asarray(probabilities, dtype=float).ravel()
    if y.shape != p.shape:
        raise ValueError(f"There are {len(y)} labels for {len(p)} probabilities.")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("Labels must be 0 or 1.")
    if not np.isfinite(p).all():
        raise ValueError(f"{int((~np.isfinite(p)).sum())} probabilities are not finite. "
                         "Predict the images that failed, or leave them out.")
    return y, np.clip(p, 0, 1)

def _fbeta(true_positive, positives, predicted, beta: float):
    "F-beta from counts, which may be sums of probabilities; 0 where nothing is predicted or nothing is positive."
    weighted = (1 + beta**2) * true_positive
    total = beta**2 * positives + predicted
    return np.divide(weighted, total, out=np.zeros_like(np.asarray(weighted, float)), where=np.asarray(total) > 0)

def pfbeta(
    labels,              # (n,) 0 or 1
    probabilities,       # (n,) in [0, 1], clipped to it
    beta: float = 1.0,   # weight of recall against precision
) -> float:              # 0..1; 0 if there is no positive or nothing is predicted
    "Probabilistic F-beta (Yacouby & Axman 2020): each probability counts as that share of a positive prediction."
    y, p = checked(labels, probabilities)
    return float(_fbeta((y * p).sum(), y.sum(), p.sum(), beta))

# %% [markdown]
# By hand: two cancers are predicted with 0.9 and 0.4, a healthy breast with 0.2. Precision is 1.3 / 1.5, recall 1.3 /
# 2, and F1 is 2 · 1.3 / (2 + 1.5).

# %%
assert np.isclose(pfbeta([1, 1, 0], [.9, .4, .2]), 2.6 / 3.5)
pfbeta([1, 1, 0], [.9, .4, .2])

# %% [markdown]
# ## Thresholds
# The grid is the winner's, 0 to 0.99 in steps of 0.01. A breast is called positive if its probability is above the
# threshold. Networks give float32, in which 0.3 is a little more than 0.3 in float64, so both sides are compared as
# float32: a probability of 0.3 is not above 0.3. One sort and one search give the counts for all hundred thresholds.

# %%
#| export
GRID = np.arange(100) / 100

def above(
    probabilities,          # (n,)
    threshold: float,
) -> np.ndarray:            # bool (n,); False for nan
    "Whether probabilities are above a threshold, compared as float32."
    return np.asarray(probabilities, np.float32) > np.float32(threshold)

def threshold_curve(
    labels,             # (n,) 0 or 1
    probabilities,      # (n,)
    thresholds=GRID,    # (t,)
) -> pd.DataFrame:      # threshold, score, precision, recall; t rows
    "F1, precision and recall of the decisions `probability > threshold`, for every threshold."
    y, p = checked(labels, probabilities)
    p, thresholds = p.astype(np.float32), np.asarray(thresholds, dtype=float)

    def count(values: np.ndarray) -> np.ndarray:
        "Number of values above each threshold."
        return len(values) - np.searchsorted(np.sort(values), thresholds.astype(np.float32), side="right").astype(float)

    def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.divide(a, b, out=np.zeros_like(a), where=b > 0)

    called, hit, positives = count(p), count(p[y == 1]), y.sum()
    return pd.DataFrame({"threshold": thresholds, "score": _fbeta(hit, positives, called, 1.0),
                         "precision": divide(hit, called), "recall": divide(hit, np.full_like(hit, positives))})

def best_threshold(
    labels,         # (n,) 0 or 1
    probabilities,  # (n,)
    thresholds=GRID,  # (t,)
) -> tuple[float, float]:  # threshold, its F1
    "The threshold with the best F1; among equal ones the one nearest to 0.5."
    curve = threshold_curve(labels, probabilities, thresholds)
    best = curve[curve["score"] == curve["score"].max()]
    row = best.loc[(best["threshold"] - 0.5).abs().idxmin()]
    return float(row["threshold"]), float(row["score"])

# %%
rng = np.random.default_rng(seed)
y = (rng.random(n) < prevalence).astype(int)
p = 1 / (1 + np.exp(-rng.normal(np.where(y, 0.5, -2.5), 1.2)))
curve, (threshold, score) = threshold_curve(y, p), best_threshold(y, p)
assert np.isclose(score, pfbeta(y, above(p, threshold)))
assert not above(np.float32(.3), .3) and float(np.float32(.3)) > .3
fig, axes = plt.subplots(1, 2, figsize=(9, 3))
axes[0].plot(curve["recall"], curve["precision"])
axes[0].set(xlabel="recall", ylabel="precision", title="precision at every recall")
axes[1].plot(curve["threshold"], curve["score"])
axes[1].axvline(threshold, color="orange")
axes[1].set(xlabel="threshold", title=f"F1 of the decisions, best {score:.2f} at {threshold:.2f}")
fig.tight_layout()

# %% [markdown]
# ## Ranking
# AUC and average precision need no threshold. Average precision is the area under the precision-recall curve as a step
# function. The winner's "PR-AUC" is the area under straight lines between the same points (`straight`), which no
# threshold reaches; on 120 random images it is 0.175, and average precision 0.184. Intervals of these
# numbers are in [71_uncertainty](71_uncertainty.py).

# %%
#| export
def auc(
    labels,         # (n,) 0 or 1
    probabilities,  # (n,)
) -> float:         # 0 to 1
    "Area under the ROC curve; nan if there is only one class."
    from sklearn import metrics  # here, as it takes a second and most programs that import this module need none of it
    y, p = checked(labels, probabilities)
    return float(metrics.roc_auc_score(y, p)) if 0 < y.sum() < len(y) else float("nan")

def average_precision(
    labels,         # (n,) 0 or 1
    probabilities,  # (n,)
    straight: bool = False,  # straight lines between the points of the curve in place of steps
) -> float:         # 0 to 1
    "Area under the precision-recall curve as a step function; nan without a positive."
    from sklearn import metrics
    y, p = checked(labels, probabilities)
    if not y.sum():
        return float("nan")
    if straight:
        precision, recall, _ = metrics.precision_recall_curve(y, p)
        return float(metrics.auc(recall, precision))
    return float(metrics.average_precision_score(y, p))

# %%
assert auc([0, 1, 0, 1], [.5] * 4) == .5   # equal probabilities of both classes count half
print(f"AUC {auc(y, p):.3f}, average precision {average_precision(y, p):.3f}")

# %% [markdown]
# A probability that is not a number is an error:

# %%
try:
    auc([0, 1], [.5, float("nan")])
except ValueError as e:
    print(e)

# %% [markdown]
# ---
# [← Folds](41_folds.py) · [Ranks →](43_ranks.py)

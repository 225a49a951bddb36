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
# # DeLong
# > Is the AUC of one model higher than that of another on the same items?
#
# AUC is a mean over all pairs of a positive and a negative item. Its variance follows from the *placement* of each
# item: the share of the other class that it is on the right side of (DeLong, DeLong & Clarke-Pearson 1988). Placements
# are differences of midranks, so no pair has to be formed (Sun & Xu 2014). Two models on the same items have placements
# that go together; their covariance makes the test of the difference sharper.
#
# Two breasts of a patient are not independent. With `patients`, the placements are summed by patient first (Obuchowski
# 1997). If each patient has one item, the result is that of DeLong.

# %%
#| default_exp core.delong

# %%
#| export
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from mammo_nb.core.metrics import checked

# %%
#| hide
from mammo_nb.core.metrics import auc
from mammo_nb.core.uncertainty import Ranked, bootstrap

# %% tags=["parameters"]
patients, seed = 300, 0   # of the random predictions below, two items each

# %%
#| export
def placements(
    labels,         # (n,) 0 or 1, both classes
    probabilities,  # (n,)
) -> np.ndarray:    # float64 (n,) in [0, 1]; the mean of the positives is the AUC, and so is that of the negatives
    "For each item the share of the other class on the right side of it; equal probabilities count half."
    y, p = checked(labels, probabilities)
    p = pd.Series(p)
    ill, well, ranks = y == 1, y == 0, p.rank()
    found = np.empty(len(y))
    found[ill] = (ranks[ill] - p[ill].rank()) / well.sum()
    found[well] = 1 - (ranks[well] - p[well].rank()) / ill.sum()
    return found

# %% [markdown]
# By hand: the positive 0.6 is above one of two negatives, the positive 0.4 equals one and is above none.

# %%
assert np.allclose(placements([1, 1, 0, 0], [.6, .4, .4, .7]), [.5, .25, .75, 0])

# %%
#| export
@dataclass(frozen=True)
class Difference:
    "Two AUCs on the same items."
    aucs: tuple[float, float]
    covariance: np.ndarray   # float64 (2, 2), of the two AUCs

    @property
    def value(self) -> float:
        "The first minus the second."
        return self.aucs[0] - self.aucs[1]

    @property
    def error(self) -> float:
        "Standard error of the difference."
        a, b = self.covariance
        return float(np.sqrt(max(0., a[0] + b[1] - 2 * a[1])))

    @property
    def p(self) -> float:
        "Two-sided p value of no difference; 1 if the models are the same, nan where the variance is unknown."
        if not self.error:
            return float("nan") if self.value else 1.
        return float(2 * ndtr(-abs(self.value) / self.error))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        "Normal interval of the difference."
        half = float(ndtri((1 + level) / 2) * self.error)
        return self.value - half, self.value + half

def delong(
    labels,         # (n,) 0 or 1
    first,          # (n,) probabilities of one model
    second,         # (n,) probabilities of the other one
    patients=None,  # (n,) ids; None: the items are independent
) -> Difference:
    """Paired comparison of two AUCs; raises ValueError if there is only one class. The covariance is nan if a class is
    that of one patient only."""
    y, _ = checked(labels, first)
    if len(set(y)) < 2:
        raise ValueError("An AUC needs items of both classes.")
    codes, names = pd.factorize(np.arange(len(y)) if patients is None else np.asarray(patients))
    placed = np.stack([placements(y, p) for p in (first, second)])
    aucs = placed[:, y == 1].mean(1)
    classes = []
    for label in (1, 0):
        own = y == label
        sums = np.stack([np.bincount(codes[own], (row - a)[own], len(names)) for row, a in zip(placed, aucs)])
        classes.append((sums / own.sum(), len(set(codes[own]))))
    (ill, with_ill), (well, with_well), n = *classes, len(names)
    if min(with_ill, with_well) < 2:
        return Difference(tuple(aucs.tolist()), np.full((2, 2), np.nan))
    both = ill @ well.T * n / (n - 1)  # 0 unless a patient has items of both classes
    covariance = ill @ ill.T * with_ill / (with_ill - 1) + well @ well.T * with_well / (with_well - 1) + both + both.T
    return Difference(tuple(aucs.tolist()), covariance)

# %% [markdown]
# ## What came out
# Two models on patients with two items each. The items of a patient resemble each other, and both models look at the
# same items. The standard error by patient is that of the bootstrap.

# %%
rng = np.random.default_rng(seed)
who = np.repeat(np.arange(patients), 2)
y = (np.repeat(rng.random(patients), 2) + .3 * rng.random(2 * patients) > .9).astype(int)
seen = 1.2 * y + np.repeat(rng.normal(0, 1, patients), 2)
first, second = (1 / (1 + np.exp(-(seen + rng.normal(0, noise, len(y))))) for noise in (.5, 1.2))
found, alone = delong(y, first, second, who), delong(y, first, second)
assert np.allclose(found.aucs, [auc(y, first), auc(y, second)])
a, b = Ranked(y, first), Ranked(y, second)
drawn = bootstrap(lambda times: a.auc(times) - b.auc(times), who, 2000)
assert abs(drawn.std() / found.error - 1) < .15
pd.DataFrame({"difference": [found.value, alone.value, drawn.mean()],
              "standard error": [found.error, alone.error, drawn.std()], "p": [found.p, alone.p, np.nan]},
             index=["DeLong by patient", "DeLong by item", "bootstrap by patient"]).round(4)

# %% [markdown]
# ---
# [← Estimates](73_estimates.py) · [Comparison →](75_comparison.py)

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
# > The metric of the competition, from slices to patients, and the scaling of probabilities.
#
# The metric punishes a missed severe injury more than a missed light one. So a network's probabilities are not what one
# should submit. Three steps lie between: the maximum over all slices of a patient, factors for the rare and expensive
# grades, and rows that sum to one.

# %%
#| default_exp trauma.learning.scores

# %% tags=["parameters"]
patients, seed = 300, 0   # of the drawn competition below

# %%
#| export
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.uncertainty import bootstrap, interval
from mammo_nb.trauma.recipes import GRADES, SUBMITTED

# %%
#| hide
import matplotlib.pyplot as plt
from sklearn.metrics import log_loss

# %% [markdown]
# ## The metric
# There are six groups: the five organs, and whether there is any injury. Each is a log loss in which a patient weighs
# as much as the true grade costs. A row of an organ is scaled to the sum 1 first. The probability of any injury is not
# submitted: it is the largest probability, over the organs, of not being healthy.

# %%
#| export
COSTS = {"healthy": 1., "low": 2., "high": 4., "injury": 2., "extravasation_injury": 6., "any_injury": 6.}
GROUPS = (*GRADES, "any_injury")
SMALLEST = np.finfo(np.float64).eps   # smallest distance of a probability from 0 and 1

class ScoreError(ProjectError):
    "Predictions that have no score."

def cost(
    column: str,   # of SUBMITTED
) -> float:
    "Weight of a patient with this grade."
    return COSTS.get(column, COSTS[column.rsplit("_", 1)[1]])

def _log_losses(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    "-log of the true grade's probability; both arrays (n, grades)."
    p = np.clip(probabilities, SMALLEST, 1 - SMALLEST)
    return -(truth * np.log(p / p.sum(1, keepdims=True))).sum(1)

def normalised(
    values: np.ndarray,   # (n, grades), not negative
    organ: str,           # named in the error
) -> np.ndarray:          # rows that sum to 1
    "Scale rows to the sum 1. Raises ScoreError for a row without a sum, and for numbers that are no probabilities."
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all() or (values < 0).any():
        raise ScoreError(f"{organ}: a prediction is negative or not finite. Predict these patients again.")
    total = values.sum(1, keepdims=True)
    if not (total > 0).all():
        raise ScoreError(f"{organ}: all grades of a patient are zero. Give each patient a positive number.")
    return values / total

_OF = {organ: [SUBMITTED.index(f"{organ}_{grade}") for grade in grades] for organ, grades in GRADES.items()}
_COSTS = np.array([cost(c) for c in SUBMITTED])

def _losses(
    truth: np.ndarray,       # (n, SUBMITTED), 0 or 1
    injured: np.ndarray,     # (n,), 0 or 1
    prediction: np.ndarray,  # (n, SUBMITTED)
) -> tuple[np.ndarray, np.ndarray]:  # losses and weights, both (n, 6)
    "Losses and weights of patients from arrays."
    losses, weights, ill = [], [], []
    for organ, columns in _OF.items():
        y, p = truth[:, columns], normalised(prediction[:, columns], organ)
        losses.append(_log_losses(y, p))
        weights.append(y @ _COSTS[columns])
        ill.append(1 - p[:, 0])
    losses.append(_log_losses(*(np.stack([1 - v, v], 1) for v in (injured, np.max(ill, axis=0)))))
    weights.append(np.where(injured > 0, COSTS["any_injury"], 1.))
    return np.stack(losses, 1), np.stack(weights, 1)

def _total(losses: np.ndarray, weights: np.ndarray) -> float:
    return float(((losses * weights).sum(0) / weights.sum(0)).mean())

def patient_losses(
    truth: pd.DataFrame,       # 0 or 1, the columns SUBMITTED and any_injury
    prediction: pd.DataFrame,  # the columns SUBMITTED, rows in the same order
) -> tuple[np.ndarray, np.ndarray]:  # losses and weights of each patient, both (n, 6) in the order of GROUPS
    "What the score of any selection of patients follows from. Raises ScoreError."
    known, injured = truth[list(SUBMITTED)].to_numpy(float), truth["any_injury"].to_numpy(float)
    return _losses(known, injured, prediction[list(SUBMITTED)].to_numpy(float))

def group_losses(
    truth: pd.DataFrame,       # as for `patient_losses`
    prediction: pd.DataFrame,
) -> dict[str, float]:         # by name of GROUPS
    "The six parts of the score: means over the patients with their weights."
    losses, weights = patient_losses(truth, prediction)
    return dict(zip(GROUPS, ((losses * weights).sum(0) / weights.sum(0)).tolist()))

def score(
    truth: pd.DataFrame,       # as for `patient_losses`
    prediction: pd.DataFrame,
) -> float:
    "The metric of the competition: the mean of the six parts; smaller is better."
    return _total(*patient_losses(truth, prediction))

# %% [markdown]
# By hand: two patients, one healthy and one with a severe injury of the liver. Everybody else is certain. The liver is
# healthy with 1/2, low 1/4 and high 1/4 in both, submitted as 2, 1, 1. The healthy patient costs log 2 once, the other
# log 4 four times. Any injury has the probability 1/2, so it costs log 2.

# %%
truth = pd.DataFrame({c: [0, 0] for c in (*SUBMITTED, "any_injury")})
for organ in GRADES:
    truth[f"{organ}_healthy"] = 1
truth.loc[1, ["liver_healthy", "liver_high", "any_injury"]] = [0, 1, 1]
prediction = truth[list(SUBMITTED)].astype(float)
prediction[["liver_healthy", "liver_low", "liver_high"]] = [2., 1., 1.]
parts = group_losses(truth, prediction)
assert np.isclose(parts["liver"], (np.log(2) + 4 * np.log(4)) / 5) and np.isclose(parts["any_injury"], np.log(2))
assert np.isclose(score(truth, prediction), (parts["liver"] + parts["any_injury"]) / 6)
for wrong in (0., -1., np.nan):
    try:
        score(truth, prediction.assign(liver_healthy=wrong, liver_low=0., liver_high=0.))
    except ScoreError as e:
        print(e)
    else:
        raise AssertionError

# %% [markdown]
# Each part is scikit-learn's log loss with these weights.

# %%
rng = np.random.default_rng(seed)

def drawn(n):
    table = pd.DataFrame(index=range(n))
    for organ, grades in GRADES.items():
        grade = rng.choice(len(grades), n, p=[.8, *[.2 / (len(grades) - 1)] * (len(grades) - 1)])
        for k, name in enumerate(grades):
            table[f"{organ}_{name}"] = (grade == k).astype(int)
    healthy = table[[f"{organ}_healthy" for organ in GRADES]].min(axis=1)
    return table.assign(any_injury=1 - healthy)[[*SUBMITTED, "any_injury"]]

truth = drawn(patients)
guess = pd.DataFrame(rng.random((patients, len(SUBMITTED))), columns=SUBMITTED)
spleen = [f"spleen_{grade}" for grade in GRADES["spleen"]]
p = guess[spleen].to_numpy() / guess[spleen].to_numpy().sum(1, keepdims=True)
grade = truth[spleen].to_numpy().argmax(1)
expected = log_loss(grade, p, sample_weight=np.array([1, 2, 4])[grade], labels=[0, 1, 2])
assert np.isclose(group_losses(truth, guess)["spleen"], expected)

# %% [markdown]
# ## From slices to patients
# Folds of one model are averaged slice by slice. A patient then has the largest probability over all slices, blocks and
# series, and models are averaged after that. A model without a column leaves it to the others.

# %%
#| export
PLACE = ["patient_id", "series", "block", "triplet"]   # columns that identify a slice of a block

def slice_means(
    folds: Sequence[pd.DataFrame],   # PLACE and a column for each label; the predictions of each fold of one model
) -> pd.DataFrame:                   # the same columns, a row for each slice
    "Mean over the folds of a model, slice by slice."
    return pd.concat(folds).groupby(PLACE, sort=False).mean().reset_index()

def patient_maxima(
    slices: pd.DataFrame,   # patient_id and a column for each label
    columns: Sequence[str],
) -> pd.DataFrame:          # the index patient_id in order of appearance, and the columns
    "The largest probability over all slices, blocks and series of a patient."
    return slices.groupby("patient_id", sort=False)[list(columns)].max()

def model_means(
    models: Sequence[pd.DataFrame],   # index patient_id, a column for each label that a model predicts
) -> pd.DataFrame:                    # index patient_id, all columns
    "Mean over the models that have a column."
    together = pd.concat(models)
    return together.groupby(level=0, sort=False).mean()

# %%
one = pd.DataFrame({"patient_id": ["b", "b", "a"], "series": "s", "block": 0, "triplet": [0, 1, 0], "x": [.1, .5, .2]})
other = one.assign(x=[.3, .1, .2])
assert np.allclose(slice_means([one, other])["x"], [.2, .3, .2])
both = patient_maxima(slice_means([one, other]), ["x"])
assert both.index.tolist() == ["b", "a"] and np.allclose(both["x"], [.3, .2])
more = model_means([both, both.rename(columns={"x": "y"}), both + .2])
assert np.allclose(more["x"], [.4, .3]) and np.allclose(more["y"], both["x"])

# %% [markdown]
# ## Scaling
# A submission has a number for each grade, and it need not be a probability: rows are scaled to the sum 1. `healthy` is
# what is left by the probability of any injury of the organ, and each other grade has a factor. With exact
# probabilities the best factor would be the cost of the grade. A grade that no model predicts gets its share among the
# training patients, times its cost.

# %%
#| export
Factors = dict[str, float]   # column of SUBMITTED that is not healthy -> factor

def _sources(organ: str) -> dict[str, tuple[str, ...]]:
    "Columns of models from which each grade of an organ is taken; the first that there is."
    if len(GRADES[organ]) == 2:
        names = (f"{organ}_injury", f"{organ}_marked")
        return {"healthy": names, "injury": names}
    return {grade: (f"{organ}_{'injury' if grade == 'healthy' else grade}",) for grade in GRADES[organ]}

def scaled(
    probabilities: pd.DataFrame,  # index patient_id, columns of recipes.COLUMNS
    factors: Factors,             # 1 where a grade is not named
    shares: pd.Series,            # share of each of SUBMITTED among the training patients
) -> pd.DataFrame:                # index patient_id, SUBMITTED
    "From probabilities to the columns of a submission."
    made = {}
    for organ in GRADES:
        for grade, names in _sources(organ).items():
            column, own = f"{organ}_{grade}", [n for n in names if n in probabilities]
            if not own:
                made[column] = np.full(len(probabilities), shares[column] * cost(column))
            elif grade == "healthy":
                made[column] = 1 - probabilities[own[0]].to_numpy()
            else:
                made[column] = factors.get(column, 1.) * probabilities[own[0]].to_numpy()
    return pd.DataFrame(made, index=probabilities.index)[list(SUBMITTED)]

def prior_submission(
    patients: Sequence[str],
    shares: pd.Series,   # share of each of SUBMITTED among the training patients
    costs: bool,         # whether they are multiplied by their cost
) -> pd.DataFrame:       # index patient_id, SUBMITTED
    "What can be submitted without looking: the same row for every patient."
    row = {c: shares[c] * (cost(c) if costs else 1.) for c in SUBMITTED}
    return pd.DataFrame([row] * len(patients), index=pd.Index(patients, name="patient_id"))

# %% [markdown]
# The factors of the published validation scripts. They treat extravasation in another way: half of it comes from the
# share of all training patients, and the bowel's probability is added. An organ that the script does not predict gets
# its share among the validated patients, a high grade twice, an extravasation six times.

# %%
#| export
def scaled_originally(
    probabilities: pd.DataFrame,  # index patient_id, columns of recipes.COLUMNS
    shares: pd.Series,            # of SUBMITTED among all training patients
    own_shares: pd.Series,        # of SUBMITTED among these patients
) -> pd.DataFrame:                # index patient_id, SUBMITTED
    "From probabilities to the columns of a submission, as the published validation scripts do it."
    factors = {f"{organ}_high": 2. for organ in GRADES}
    made = scaled(probabilities, factors, own_shares)
    for column in SUBMITTED:
        organ, grade = column.rsplit("_", 1)
        if not any(name in probabilities for name in _sources(organ)[grade]):
            made[column] = own_shares[column] * {"high": 2., "injury": 6.}.get(grade, 1.)
    if "extravasation_injury" in probabilities:
        p = probabilities["extravasation_injury"]
        made["extravasation_healthy"] = 0.5 * shares["extravasation_healthy"] + 0.5 * (1 - p)
        made["extravasation_injury"] = 3 * shares["extravasation_injury"] + 4 * p + made["bowel_injury"]
    return made

# %% [markdown]
# ## Fitted factors
# The factors are chosen one after the other, three times round, each as the best of a grid for the whole score. They
# are chosen on out-of-fold predictions, so the score there is a little too good; `crossfitted` gives one that is not.

# %%
#| export
GRID = tuple(2. ** (k / 2) for k in range(-6, 9))   # 1/8 to 16

def fit_factors(
    truth: pd.DataFrame,          # index patient_id, SUBMITTED and any_injury
    probabilities: pd.DataFrame,  # index patient_id in the same order
    shares: pd.Series,            # of SUBMITTED
    rounds: int = 3,
) -> Factors:
    "Factors with the best score on these patients; where several are equal, the one next to the cost of the grade."
    known, injured = truth[list(SUBMITTED)].to_numpy(float), truth["any_injury"].to_numpy(float)
    bare, factors = scaled(probabilities, {}, shares).to_numpy(), {}
    for column in SUBMITTED:
        organ, grade = column.rsplit("_", 1)
        if grade != "healthy" and any(name in probabilities for name in _sources(organ)[grade]):
            factors[column] = cost(column)

    def value(tried: Factors) -> float:
        return _total(*_losses(known, injured, bare * [tried.get(c, 1.) for c in SUBMITTED]))

    for _ in range(rounds):
        for column in factors:
            grid = sorted(GRID, key=lambda f: abs(np.log(f / cost(column))))
            factors[column] = grid[int(np.argmin([value({**factors, column: f}) for f in grid]))]
    return factors

def crossfitted(
    truth: pd.DataFrame,          # index patient_id, SUBMITTED and any_injury
    probabilities: pd.DataFrame,  # index patient_id in the same order
    folds: np.ndarray,            # fold of each patient
    shares: pd.Series,            # of SUBMITTED
) -> pd.DataFrame:                # index patient_id, SUBMITTED
    "Submission columns of each fold with factors that were fitted on the others."
    made = []
    for fold in np.unique(folds):
        held = folds == fold
        factors = fit_factors(truth[~held], probabilities[~held], shares)
        made.append(scaled(probabilities[held], factors, shares))
    return pd.concat(made).loc[probabilities.index]

# %% [markdown]
# ## A table of submissions
# Every row predicts the same patients. The change is that of the score from the first row. The intervals draw patients
# with replacement, and all rows the same ones.

# %%
#| export
def compare(
    truth: pd.DataFrame,                # as for `patient_losses`
    steps: dict[str, pd.DataFrame],     # name of a step -> SUBMITTED; the first is compared with
    seed: int = 0,
) -> pd.DataFrame:                      # step, score, low, high, change_percent, change_low, change_high, GROUPS
    "Scores of several submissions with 95 % intervals over patients."
    rows, first = [], None
    for step, prediction in steps.items():
        losses, weights = patient_losses(truth, prediction)
        costs = losses * weights
        values = bootstrap(lambda times: np.mean(times @ costs / (times @ weights)), np.arange(len(truth)), seed=seed)
        parts = group_losses(truth, prediction)
        total = float(np.mean(list(parts.values())))
        first = (total, values) if first is None else first
        change = 100 * (values / first[1] - 1)
        (low, high), (change_low, change_high) = interval(values), interval(change)
        rows.append({"step": step, "score": total, "low": low, "high": high,
                     "change_percent": 100 * (total / first[0] - 1), "change_low": change_low,
                     "change_high": change_high, **parts})
    return pd.DataFrame(rows)

# %%
shares = truth[list(SUBMITTED)].mean()
rows = {"shares": prior_submission(truth.index, shares, costs=False),
        "shares times costs": prior_submission(truth.index, shares, costs=True), "guess": guess}
table = compare(truth, rows)
assert np.allclose(table["score"], [score(truth, r) for r in rows.values()])
assert table["score"].iloc[2] > table["score"].iloc[1] and table["change_percent"].iloc[0] == 0
table.round(3)

# %% [markdown]
# ## What came out
# Drawn patients with probabilities that are exact. The fitted factors are close to the costs 2 and 4, and submitting
# bare probabilities costs more.

# %%
grades = rng.dirichlet([4, 1, 1], 20 * patients)
kidney = np.array([rng.choice(3, p=p) for p in grades])
many = drawn(20 * patients)
for k, name in enumerate(GRADES["kidney"]):
    many[f"kidney_{name}"] = (kidney == k).astype(int)
many["any_injury"] = 1 - many[[f"{organ}_healthy" for organ in GRADES]].min(axis=1)
exact = pd.DataFrame({"kidney_injury": 1 - grades[:, 0], "kidney_low": grades[:, 1], "kidney_high": grades[:, 2]})
shares = many[list(SUBMITTED)].mean()

def kidney_loss(low, high):
    made = scaled(exact, {"kidney_low": low, "kidney_high": high}, shares)
    return group_losses(many, made)["kidney"]

losses = {f: kidney_loss(2., f) for f in GRID}
assert min(losses, key=losses.get) == 4. and kidney_loss(2., 4.) < kidney_loss(1., 1.)
plt.figure(figsize=(5, 2.2))
plt.semilogx(losses.keys(), losses.values(), marker="o", base=2)
plt.xlabel("factor of a high grade")
plt.ylabel("log loss of the kidney");

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

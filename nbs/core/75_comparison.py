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
# # Comparison
# > Two runs of one system on the same items: every score, its difference, and how sure the difference is.
#
# Two recipes whose intervals overlap may still differ clearly: both are wrong on the same hard patients. So both are
# scored on the same draws of patients, and the interval is that of the difference.

# %%
#| default_exp core.comparison

# %%
#| export
from importlib import import_module

import numpy as np
import pandas as pd

from mammo_nb.core.delong import delong
from mammo_nb.core.errors import ProjectError
from mammo_nb.core.estimates import Scores, number_in_words
from mammo_nb.core.runs import Run
from mammo_nb.core.uncertainty import DRAWS, bootstrap, interval

# %% tags=["parameters"]
patients, seed = 400, 0   # of the random predictions below, two items each

# %% [markdown]
# ## What a run predicted out of fold
# The tables of the systems differ. The module that a system declares as `outcomes` has a function `outcomes(run)` that
# reads them as one table. It has a row for each outcome of each item:
#
# | column | meaning |
# |---|---|
# | outcome | what is predicted, such as `cancer` |
# | item | what it is predicted for: breast, slice or patient |
# | patient_id | whose item it is |
# | label | 0 or 1 |
# | probability | of a network that was not trained on this patient |
# | threshold | of the run's decisions; missing where it has none |

# %%
#| export
COLUMNS = ("outcome", "item", "patient_id", "label", "probability", "threshold")

class ComparisonError(ProjectError):
    "Two runs that cannot be compared."

def read_outcomes(
    run: Run,
) -> pd.DataFrame:   # COLUMNS
    "The out-of-fold predictions of a run; raises ComparisonError if there are none."
    name, system = run.folder.name, run.system
    if not system.outcomes:
        raise ComparisonError(f"{name} is a run of {system.name}, which declares no outcomes.")
    if not run.path("oof.csv").is_file():
        raise ComparisonError(f"{name} has no oof.csv: run make reproduce for it first, in a mode that trains.")
    table = import_module(f"mammo_nb.{system.name}.{system.outcomes}").outcomes(run)[list(COLUMNS)]
    if table.empty:
        raise ComparisonError(f"{name} held no fold back, so it has no predictions out of fold.")
    return table

def matched(
    first: pd.DataFrame,   # COLUMNS
    second: pd.DataFrame,  # COLUMNS
) -> pd.DataFrame:         # outcome, item, patient_id, label, and probability and threshold of both (_1, _2)
    "The items that both have predicted; raises ComparisonError if there are none, or if labels contradict."
    keys = ["outcome", "item", "patient_id"]
    for table in (first, second):
        if table.duplicated(keys).any():
            raise ComparisonError(f"{int(table.duplicated(keys).sum())} items are predicted twice.")
    both = first.merge(second, on=keys, suffixes=("_1", "_2"))
    if both.empty:
        raise ComparisonError("The two runs have no item in common: they have read different data.")
    if wrong := int((both["label_1"] != both["label_2"]).sum()):
        raise ComparisonError(f"{wrong} items have different labels in the two runs.")
    return both.rename(columns={"label_1": "label"}).drop(columns="label_2")

# %%
a = pd.DataFrame([("cancer", "1_L", "1", 0, .2, .5), ("cancer", "1_R", "1", 1, .7, .5)], columns=COLUMNS)
assert len(matched(a, a.iloc[1:])) == 1
try:
    matched(a, a.assign(label=0))
except ComparisonError as e:
    print(e)

# %% [markdown]
# ## Paired differences

# %%
#| export
def _threshold(column: pd.Series) -> float | None:
    value = column.iloc[0]
    return None if pd.isna(value) else float(value)

def differences(
    items: pd.DataFrame,  # from `matched`, of one outcome
    n: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:        # metric; first, second and difference (second - first), each with low and high; p
    "Scores of two models on the same draws of patients; p is that of DeLong by patient, for AUC."
    labels, patients = items["label"].to_numpy(), items["patient_id"].to_numpy()
    thresholds = [_threshold(items[f"threshold_{k}"]) for k in (1, 2)]
    if None in thresholds:
        thresholds = [None, None]
    one, two = (Scores(labels, items[f"probability_{k}"], t) for k, t in zip((1, 2), thresholds))

    def both(times=None) -> np.ndarray:  # (3, metrics)
        "The scores of both, and their differences."
        a, b = one(times), two(times)
        return np.stack([a, b, b - a])

    values, (low, high) = both(), interval(bootstrap(both, patients, n, seed))
    table = pd.DataFrame({"metric": one.names})
    for k, name in enumerate(("first", "second", "difference")):
        table[name], table[f"{name} low"], table[f"{name} high"] = values[k], low[k], high[k]
    table["p"] = np.nan
    if len(set(labels)) == 2:
        found = delong(labels, items["probability_1"], items["probability_2"], patients)
        table.loc[table["metric"] == "AUC", "p"] = found.p
    return table

def compare_runs(
    first: Run,
    second: Run,    # of the same system
    n: int = DRAWS,
    seed: int = 0,
) -> tuple[pd.DataFrame, list[str]]:  # `differences` with the outcome in front; what should be known about them
    "Compare the out-of-fold predictions of two runs; raises ComparisonError."
    if first.system.name != second.system.name:
        raise ComparisonError(f"{first.folder.name} is a run of {first.system.name}, {second.folder.name} of "
                              f"{second.system.name}. Only runs of one system can be compared.")
    tables = [read_outcomes(run) for run in (first, second)]
    items = matched(*tables)
    lines = [f"{own['item'].nunique()} items of {own['patient_id'].nunique()} patients, {int(own['label'].sum())} "
             f"positive: {outcome}" for outcome, own in items.groupby("outcome", sort=False)]
    for run, table in zip((first, second), tables):
        if left := len(table) - len(items):
            lines.append(f"{left} predictions of {run.folder.name} have no counterpart and are left out")
    parts = [differences(own, n, seed).assign(outcome=outcome) for outcome, own in items.groupby("outcome", sort=False)]
    table = pd.concat(parts, ignore_index=True)
    return table[["outcome", *table.columns.drop("outcome")]], lines

def comparison_in_words(
    table: pd.DataFrame,      # from `compare_runs`
    names: tuple[str, str],   # of the runs
) -> pd.DataFrame:            # text
    "The table as it is printed."
    shown = table[["outcome", "metric"]].copy()
    for column, name in zip(("first", "second", "difference"), (*names, "difference")):
        shown[name] = [number_in_words(*row) for row in
                       zip(table[column], table[f"{column} low"], table[f"{column} high"])]
    shown["p (DeLong)"] = ["" if np.isnan(p) else f"{p:.2g}" for p in table["p"]]
    return shown

# %% [markdown]
# ## What came out
# The second model sees what the first one sees, with less noise:

# %%
rng = np.random.default_rng(seed)
who = np.repeat(np.arange(patients), 2)
label = (rng.random(len(who)) < .15).astype(int)
seen = rng.normal(1.5 * label - 2, 1)
made = pd.DataFrame({"outcome": "cancer", "item": np.arange(len(who)), "patient_id": who, "label": label})
tables = [made.assign(probability=1 / (1 + np.exp(-rng.normal(seen, noise))), threshold=.3) for noise in (1., .3)]
found = differences(matched(*tables)).assign(outcome="cancer")
row = found.iloc[0]
alone = sum((row[f"{name} high"] - row[f"{name} low"])**2 for name in ("first", "second"))**.5
assert 0 < row["difference"] and row["difference high"] - row["difference low"] < alone and row["p"] < .01
comparison_in_words(found, ("noisy", "better"))

# %% [markdown]
# ---
# [← DeLong](74_delong.py) · [Results as DICOM →](76_dicom_results.py)

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
# # Folds
# > A patient is in one fold only, and folds have about equal numbers of slices.
#
# Both series of a patient show the same injuries. If they are on both sides of a split, the score measures memory. The
# published split deals out patients by their number of slices, so that each fold has about equally many.

# %%
#| default_exp trauma.folds

# %%
#| export
import numpy as np
import pandas as pd

from mammo_nb.core.files import write_csv
from mammo_nb.core.folds import check_folds
from mammo_nb.core.runs import Run
from mammo_nb.trauma.reading.competition import TRAIN, CompetitionError, by_number, place_of, read_labels, read_table

# %%
#| hide
from sklearn.model_selection import GroupKFold

from mammo_nb.core.practice import practice
from mammo_nb.trauma.recipes import GRADES
from mammo_nb.trauma.system import system

# %% tags=["parameters"]
run_dir = ""      # folder of the run; "" makes a small practice run
overrides = {}    # changes for this run, such as {"folds.n_folds": 3}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="folds", overrides=overrides)
run.contract("folds")

# %% [markdown]
# ## The split
# This is scikit-learn's `GroupKFold`: from the patient with the most slices to the one with the fewest, each goes to
# the fold with the fewest slices so far. Ids that are numbers are compared as numbers. The original's release left
# patients with equal numbers of slices in the order of a sort that is not stable.

# %%
#| export
def split(
    patients: pd.Series,     # the patient of each slice
    n_folds: int = 4,
    faithful: bool = False,  # whether equal patients are in the order of an unstable sort; it depends on the processor
) -> pd.Series:              # patient -> fold, 0 .. n_folds - 1
    "Deal patients out by their numbers of slices. Raises CompetitionError if there are fewer patients than folds."
    count = patients.value_counts()
    if len(count) < n_folds:
        raise CompetitionError(f"{len(count)} patients cannot be spread over {n_folds} folds. Choose fewer folds.")
    count = count.loc[sorted(count.index, key=lambda name: by_number(str(name)))]
    order = np.argsort(count.to_numpy(), kind=None if faithful else "stable")[::-1]
    slices, folds = np.zeros(n_folds), {}
    for name, number in count.iloc[order].items():
        folds[name] = int(slices.argmin())
        slices[folds[name]] += number
    return pd.Series(folds)

# %%
slices = pd.Series(np.repeat(["10", "9", "8", "7"], [50, 40, 30, 20]))
assert split(slices, 2).to_dict() == {"10": 0, "9": 1, "8": 1, "7": 0}
random = pd.Series(np.random.default_rng(0).integers(1, 40, 4000))
theirs = np.empty(len(random))
for k, (_, held) in enumerate(GroupKFold(4).split(random, groups=random)):
    theirs[held] = k
assert (random.map(split(random)) == theirs).all()
split(slices, 2)

# %% [markdown]
# ## Run the stage
# The table has one row a patient, with the labels, so that training reads no other table of labels. A patient without
# labels or without a series that can be used is named in the output.

# %%
#| export
def run_stage(
    run: Run,
) -> pd.DataFrame:       # folds.csv: patient_id, slices, fold and the labels
    "info.csv and the labels of the patients -> folds.csv."
    settings = run.section("folds")
    with run.stage("folds") as results:
        info = read_table(run.path("info.csv"))
        labels = read_labels(run.path(place_of(run)) / TRAIN)
        labelled = info[info["patient_id"].isin(labels["patient_id"])]
        counted = labelled.groupby("patient_id", sort=False).size().rename("slices").reset_index()
        folds = split(labelled["patient_id"], settings.n_folds, settings.faithful)
        table = counted.assign(fold=counted["patient_id"].map(folds)).merge(labels, on="patient_id")
        check_folds(table)
        write_csv(run.path("folds.csv"), table)
        results |= {"patients": len(table), "without series": len(set(labels["patient_id"]) - set(table["patient_id"])),
                    "without labels": int(info.loc[~info.index.isin(labelled.index), "patient_id"].nunique())}
    return read_table(run.path("folds.csv"))

# %%
table = run_stage(run)
table.head().T

# %% [markdown]
# ## What came out
# Patients and slices of every fold, and the share of each injury, which the split does not balance.

# %%
hurt = table[["fold"]].join(1 - table[[f"{organ}_healthy" for organ in GRADES]].set_axis(list(GRADES), axis=1))
summary = table.groupby("fold").agg(patients=("patient_id", "size"), slices=("slices", "sum")).join(
    hurt.groupby("fold").mean().round(2))
summary

# %%
ax = summary[list(GRADES)].plot.bar(figsize=(7, 2.4), rot=0, width=0.8)
ax.set(ylabel="share of patients", xlabel="fold")
ax.legend(loc="center left", bbox_to_anchor=(1, .5), fontsize=8);

# %% [markdown]
# ---
# [← Blocks](05_blocks.py) · [Train →](07_train.py)

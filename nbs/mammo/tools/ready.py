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
# # Ready
# > What can be checked in seconds is checked before a run that takes hours.
#
# A training on labelled images fails late if a fold has no cancer, or if masks of lesions are wanted and there are
# none. The label tables show both at once.

# %%
#| default_exp mammo.tools.ready

# %%
#| export
import pandas as pd

from mammo_nb.core.runs import Run, find_files
from mammo_nb.mammo.datasets import DatasetError, place_of, read_set, set_names
from mammo_nb.mammo.system import test_set

# %%
#| hide
example = pd.DataFrame({"patient_id": list("aabc"), "cancer": [1, 1, 0, 0], "mask": ["m.png", None, None, None]})

# %%
#| export
def check_labels(
    labels: pd.DataFrame,  # patient_id, cancer, and mask where there are some; of the set that is split into folds
    name: str,             # of the set
    n_folds: int,
    masks: bool,           # whether the training learns from masks of lesions
):
    "Raise DatasetError if a training on these labels would fail."
    patients = labels.groupby("patient_id")["cancer"].max()
    cancers = int(patients.sum())
    if cancers in (0, len(patients)):
        raise DatasetError(f"{name}: all {len(patients)} patients have the label cancer={int(cancers > 0)}. A training "
                           "needs both labels, 0 and 1, in the column cancer.")
    if min(cancers, len(patients) - cancers) < n_folds:
        fewer = min(cancers, len(patients) - cancers)
        remedy = f'Take fewer folds, SET="folds.n_folds={fewer}".'
        if fewer < 2:
            remedy = "Two folds are the least, so add patients."
        raise DatasetError(f"{name}: patients with a cancer: {cancers} of {len(patients)}, and each of {n_folds} folds "
                           f"needs a patient of each kind. {remedy}")
    if masks and ("mask" not in labels or not labels["mask"].notna().any()):
        raise DatasetError(f"{name}: the recipe learns from masks of lesions (train.lesion_weight), and the set has "
                           'none. Put them into its folder mask/, or add SET="train.lesion_weight=0".')

def check_run(
    run: Run,   # that is about to begin
):
    "Check the data of a run before its first stage. Raises DatasetError."
    if run.has("phantom") or not run.has("folds"):
        return  # drawn data fits the recipe, and a detector needs no labels
    if run.section("datasets").name == "phantom" and not run.path("competition/").is_dir():
        raise DatasetError(f"The mode {run.mode} trains on labelled images and draws none. Name their folder "
                           'below raw of settings.ini: SET="datasets.name=my_folder".')
    if run.has("submit") and not all(find_files(run.folder, f) for f in test_set(run)):
        raise DatasetError(f"{run.section('datasets').name} has no test set (test.csv, sample_submission.csv, "
                           "test_images/), and the mode of the run predicts one. Add MODE=labelled.")
    tables = {name: read_set(name, run.path(place_of(name)), validated=name == set_names(run)[0])
              for name in set_names(run)}
    name = set_names(run)[0]
    check_labels(tables[name], name, run.section("folds").n_folds, run.section("train").lesion_weight > 0)

# %% [markdown]
# ## What came out
# Each fault in one sentence, with its remedy:

# %%
check_labels(pd.concat([example.assign(patient_id=example["patient_id"] + str(n)) for n in range(2)]), "mine", 2, True)
for labels, folds, masks in ((example, 4, False), (example.assign(cancer=1), 2, False),
                             (pd.concat([example.assign(patient_id=example["patient_id"] + str(n), mask=None)
                                         for n in range(2)]), 2, True)):
    try:
        check_labels(labels, "mine", folds, masks)
    except DatasetError as e:
        print(e)

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

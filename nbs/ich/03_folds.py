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
# > A patient is in one fold only.
#
# Neighbouring slices of a patient look alike. If they are on both sides of a split, the score measures memory. A
# patient may have several series, so folds are made of patients.

# %%
#| default_exp ich.folds

# %%
#| export
import pandas as pd

from mammo_nb.core.files import write_csv
from mammo_nb.core.folds import RULES, assign_folds, check_folds
from mammo_nb.core.runs import Run
from mammo_nb.ich.reading.competition import read_table, usable
from mammo_nb.ich.recipes import classes_of

# %%
#| hide
from mammo_nb.core.practice import practice
from mammo_nb.ich.system import system

# %% tags=["parameters"]
run_dir = ""      # folder of the run; "" makes a small practice run
overrides = {}    # changes for this run, such as {"folds.method": "original"}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="folds", overrides=overrides)
run.contract("folds")

# %% [markdown]
# ## The original's folds
# All labelled images are sorted by name. The fold of a patient is the place of his first image, modulo the number of
# folds. Image names are random, so the split is random, and nothing is balanced. Without a random generator it is the
# same on every machine.

# %%
#| export
def original_folds(
    table: pd.DataFrame,  # image_id and patient_id of all labelled images whose header is known
    n_folds: int = 5,
) -> pd.Series:           # patient_id -> fold, 0 .. n_folds - 1
    "The place of each patient's first image among all images sorted by name, modulo the number of folds."
    ordered = table.sort_values("image_id", kind="stable", ignore_index=True).drop_duplicates("patient_id")
    return pd.Series(ordered.index % n_folds, index=ordered["patient_id"], name="fold")

# %%
images = pd.DataFrame({"image_id": list("dcbafe"), "patient_id": list("zyyxzz")})   # a x, b y, c y, d z, e z, f z
assert original_folds(images, 2).to_dict() == {"x": 0, "y": 1, "z": 1}

# %% [markdown]
# ## Balanced folds
# With few patients, random folds differ in their share of hemorrhages, and their scores cannot be compared. The other
# method keeps the share of slices with any hemorrhage equal.

# %%
#| export
def split(
    table: pd.DataFrame,         # from `read_table`: slices.csv
    n_folds: int = 5,
    method: str = "stratified",  # original or stratified
    seed: int = 67,              # of the stratified split
) -> pd.DataFrame:               # usable rows and `fold`
    "Assign a fold to every patient and keep the rows that can be used."
    slices = usable(table)
    if method == "stratified":
        return assign_folds(slices, n_folds, seed, label="any")
    # an image that is left out of its series has a header and labels, so it counts
    labelled = table[table["error"].eq("") & table["any"].notna() & table["patient_id"].ne("")]
    slices["fold"] = slices["patient_id"].map(original_folds(labelled, n_folds))
    check_folds(slices)
    return slices

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
) -> pd.DataFrame:       # folds.csv
    "processed/slices.csv -> folds.csv."
    settings = run.section("folds")
    with run.stage("folds") as results:
        results["rule"] = RULES[False] if settings.method == "stratified" else "place of the patient's first image"
        table = read_table(run.path("processed/slices.csv"))
        write_csv(run.path("folds.csv"), split(table, settings.n_folds, settings.method, settings.seed))
    return read_table(run.path("folds.csv"))

# %%
table = run_stage(run)
table[["patient_id", "series", "image_id", "place", "position_mm", *classes_of(table), "fold"]].head()

# %% [markdown]
# ## What came out
# Patients, slices and the share of each kind of hemorrhage in every fold.

# %%
classes = list(classes_of(table))
summary = table.groupby("fold").agg(patients=("patient_id", "nunique"), series=("series", "nunique"),
                                    slices=("place", "size"), **{c: (c, "mean") for c in classes})
summary.round(3)

# %%
ax = summary[classes].plot.bar(figsize=(7, 2.6), rot=0, width=0.8)
ax.set(ylabel="share of slices", xlabel="fold")
ax.legend(loc="center left", bbox_to_anchor=(1, .5), fontsize=8);

# %% [markdown]
# ---
# [← Prepare](02_prepare.py) · [Classify →](04_classify.py)

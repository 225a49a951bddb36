# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Data sets
# > From a competition's own table to one table that every later stage understands.
#
# The table of a competition says what its organisers needed to say; ours says what a classifier needs to know, and every id in it is text, since an id that was once read as a number has lost its leading zeros. Whoever brings other data enters here: a CSV with `patient_id, image_id, laterality, view, cancer` and one DICOM file a row.

# %%
#| default_exp mammo.datasets

# %%
#| export
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from mammo_nb.core.files import write_csv
from mammo_nb.core.stages import locate, stage
from mammo_nb.mammo.recipes import get_recipe, get_section

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.dicom import read_image
from mammo_nb.core.stages import practice

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
recipe = "demo"                               # a name in mammo_nb.mammo.recipes
overrides = {}                                # changes to the section `datasets`
writes = ["processed/cleaned_label.csv"]      # the unified table; reads the competition's train.csv

# %%
#| hide
if not run_dir:
    from mammo_nb.mammo import phantom  # slow to load, and not needed in a run
    run_dir, recipe = practice(phantom.run)

# %%
#| export
REQUIRED = ["patient_id", "image_id", "laterality", "view", "cancer"]
KEPT = ["site_id", "age", "density", "BIRADS", "machine_id", "implant"]  # where the data set knows them

class DatasetError(Exception):
    "A table that cannot be used: file, what is wrong with it, and where."

# %% [markdown]
# ## Reading
# Ids become parts of file names, so an id that climbs out of its folder is an error and not a file somewhere else.

# %%
#| export
def read_table(
    path: Path,        # a CSV
    required: list,    # columns that must be there
) -> pd.DataFrame:     # every id as text
    "Read a table and refuse it if a column is missing or an id is no file name."
    path = Path(path)
    if not path.exists(): raise DatasetError(f"{path} is not there. A competition goes below `raw` of settings.ini, in the layout of the README.")
    table = pd.read_csv(path, dtype={c: str for c in ("patient_id", "image_id", "prediction_id", "site_id", "machine_id", "error")}, keep_default_na=True)
    missing = [c for c in required if c not in table]
    if missing: raise DatasetError(f"{path.name} has no column {', '.join(missing)}; it has {', '.join(table.columns)}.")
    for c in {"patient_id", "image_id"} & set(table.columns):
        bad = table[c].isna() | ~table[c].fillna("").str.fullmatch(r"[^/\\\x00]+") | table[c].isin([".", ".."])
        if bad.any(): raise DatasetError(f"{path.name}, row {bad.idxmax() + 2}: {c} {table[c][bad.idxmax()]!r} is no file name.")
    return table

def _refuse(table: pd.DataFrame, bad: pd.Series, what: str):
    "Raise with the first bad row."
    if bad.any(): raise DatasetError(f"{int(bad.sum())} of {len(table)} rows: {what}; the first is {table.loc[bad.idxmax(), ['patient_id', 'image_id']].to_dict()}.")

# %% [markdown]
# ## Unifying
# One row an image. The label belongs to the breast, so both views of a breast must agree on it.

# %%
#| export
def unify(
    raw: pd.DataFrame,   # columns of a competition's train.csv
) -> pd.DataFrame:       # REQUIRED, those of KEPT that are known, and `file`, relative to the competition
    "The unified table: checked, ids as text, in the order of the source."
    _refuse(raw, raw.duplicated(["patient_id", "image_id"]), "an image twice")
    _refuse(raw, ~raw["laterality"].isin(["L", "R"]), "laterality is neither L nor R")
    _refuse(raw, ~raw["cancer"].isin([0, 1]), "cancer is neither 0 nor 1")
    mixed = raw.groupby(["patient_id", "laterality"])["cancer"].transform("nunique") > 1
    _refuse(raw, mixed, "images of one breast disagree about cancer")
    table = raw[REQUIRED + [c for c in KEPT if c in raw]].copy()
    table["cancer"] = table["cancer"].astype(int)
    if "file" in raw: table["file"] = raw["file"]
    else: table["file"] = "train_images/" + raw["patient_id"] + "/" + raw["image_id"] + ".dcm"
    return table

# %% [markdown]
# Predictions are made for images and scored for breasts: the mean over a breast's images, as in the competition's `prediction_id`.

# %%
#| export
def per_breast(
    predictions: pd.DataFrame,  # patient_id, laterality, probability, and cancer where known; one row an image
) -> pd.DataFrame:              # one row a breast, in order of first appearance, with `images`, their number
    "Mean probability over the images of each breast."
    wanted = {"probability": ("probability", "mean"), "images": ("probability", "size")}
    if "cancer" in predictions: wanted["cancer"] = ("cancer", "max")
    return predictions.groupby(["patient_id", "laterality"], sort=False).agg(**wanted).reset_index()

# %%
example = pd.DataFrame({"patient_id": list("aaab"), "laterality": list("LLRL"), "cancer": [1, 1, 0, 0], "probability": [.2, .6, .1, .3]})
breasts = per_breast(example)
assert breasts["probability"].round(3).tolist() == [.4, .1, .3] and breasts["images"].tolist() == [2, 1, 1]
breasts

# %%
for change in ({"laterality": list("LLXL")}, {"cancer": [1, 0, 0, 0]}):
    try: unify(example.assign(image_id=list("wxyz"), view="CC", **change))
    except DatasetError as e: print(e)

# %% [markdown]
# ## Run the stage
# A synthetic competition lies in the run itself, a real one below `raw`.

# %%
#| export
def competition(
    recipe: str,   # a recipe
) -> str:          # a name for `locate`
    "Where the recipe's competition is."
    return "competition" if get_recipe(recipe).phantom else f"raw/{get_section(recipe, 'datasets').name}"

def run(
    run_dir: Path,                   # folder of the run
    recipe: str,                     # a recipe
    overrides: dict | None = None,   # changes to the section `datasets`
) -> pd.DataFrame:                   # the unified table
    "train.csv of the competition -> processed/cleaned_label.csv."
    source, target = competition(recipe), "processed/cleaned_label.csv"
    with stage(run_dir, "datasets", reads=[f"{source}/train.csv"], writes=[target], parameters=asdict(get_section(recipe, "datasets", overrides))):
        table = unify(read_table(locate(run_dir, f"{source}/train.csv"), REQUIRED))
        write_csv(locate(run_dir, target), table)
    return table

# %%
table = run(run_dir, recipe, overrides)
table.head()

# %% [markdown]
# ## What came out
# How many patients, breasts and images, how many of them with cancer, and one breast of each kind as stored.

# %%
breasts = table.drop_duplicates(["patient_id", "laterality"])
summary = pd.DataFrame({"patients": [table["patient_id"].nunique()], "breasts": len(breasts), "images": len(table),
                        "breasts with cancer": breasts["cancer"].sum(), "share": round(breasts["cancer"].mean(), 3)})
summary

# %%
fig, axes = plt.subplots(1, 4, figsize=(11, 4))
shown = [r for c in (0, 1) for v in ("CC", "MLO") for r in table[(table["cancer"] == c) & (table["view"] == v)].head(1).itertuples()]
for ax, row in zip(axes, shown):
    ax.imshow(read_image(locate(run_dir, f"{competition(recipe)}/{row.file}")).pixels, cmap="gray")
    ax.set_title(f"{row.laterality} {row.view}, {'cancer' if row.cancer else 'no cancer'}", fontsize=9); ax.axis("off")
fig.suptitle("Stored values, before any window: some are inverted")
fig.tight_layout()

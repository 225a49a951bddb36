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
# # Data sets
# > From the tables of the data sets to one table that every later stage reads.
#
# The unified table has what a classifier needs to know. Every id in it is text, because an id that is read as a number
# loses its leading zeros. Each published set has its reader in `reading/published`. Other data are read by
# `reading/own`: a CSV file with `patient_id, laterality, view, cancer`, and one DICOM, PNG or JPEG file per row.

# %%
#| default_exp mammo.datasets

# %%
#| export
from pathlib import Path

import pandas as pd

from mammo_nb.core.files import write_csv
from mammo_nb.core.runs import Run
from mammo_nb.core.settings import NoDataset, find_dataset
from mammo_nb.mammo.reading.labels import KEPT, REQUIRED, DatasetError, read_table
from mammo_nb.mammo.reading.sources import BREAST, how_to_get, label_table, source_of

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.dicom import read_image
from mammo_nb.core.practice import practice
from mammo_nb.mammo.system import system
from mammo_nb.mammo.reading.sources import totals

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run, such as {"datasets.external": "vindr"}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="datasets", overrides=overrides)
run.contract("datasets")

# %% [markdown]
# ## Unifying
# The table has one row per image. If the label of a data set belongs to the breast, all images of a breast must have
# the same label. The list in `reading/sources` states to what the label belongs.

# %%
#| export
def _refuse(table: pd.DataFrame, bad: pd.Series, what: str):
    "Raise DatasetError with the number of bad rows and the first of them."
    if bad.any():
        raise DatasetError(
            f"{int(bad.sum())} of {len(table)} rows: {what}; the first is "
            f"{table.loc[bad.idxmax(), ['patient_id', 'image_id']].to_dict()}."
        )

def unify(
    raw: pd.DataFrame,      # from a reader, or with the columns of a competition's train.csv
    agree: tuple = BREAST,  # images with equal values in these columns must have the same label; (): none
) -> pd.DataFrame:         # REQUIRED, known columns of KEPT, `file` (default: as in a competition), `mask` if known
    "Make the unified table: checked, with ids as text, in the order of the source. Raises DatasetError."
    for c in ("patient_id", "image_id"):
        bad = ~raw[c].fillna("").str.fullmatch(r"[^/\\\x00]+") | raw[c].isin([".", ".."])
        _refuse(raw, bad, f"{c} is no file name")
    _refuse(raw, raw.duplicated(["patient_id", "image_id"]), "an image twice")
    _refuse(raw, ~raw["laterality"].isin(["L", "R"]), "laterality is neither L nor R")
    _refuse(raw, ~raw["cancer"].isin([0, 1]), "cancer is neither 0 nor 1")
    if agree:
        bad = raw.groupby(list(agree))["cancer"].transform("nunique") > 1
        _refuse(raw, bad, "images of one breast disagree about cancer")
    table = raw[REQUIRED + [c for c in KEPT if c in raw]].copy()
    table["cancer"] = table["cancer"].astype(int)
    if "file" in raw:
        table["file"] = raw["file"]
    else:
        table["file"] = "train_images/" + raw["patient_id"] + "/" + raw["image_id"] + ".dcm"
    if "mask" in raw:
        table["mask"] = raw["mask"]
    return table

# %% [markdown]
# ## Predictions per breast
# Predictions are made per image and scored per breast. The prediction of a breast is the mean over its images. A breast
# corresponds to the competition's `prediction_id`.

# %%
#| export
def per_breast(
    predictions: pd.DataFrame,  # one row per image: patient_id, laterality, probability, and cancer if known
    *more: str,                 # other columns that tell the rows of the result apart, such as the exam
) -> pd.DataFrame:              # one row per breast in order of first appearance; `images` is the number of images
    "Average the probabilities of the images of each breast."
    wanted = {"probability": ("probability", "mean"), "images": ("probability", "size")}
    if "cancer" in predictions:
        wanted["cancer"] = ("cancer", "max")
    return predictions.groupby(["patient_id", "laterality", *more], sort=False).agg(**wanted).reset_index()

# %%
example = pd.DataFrame(
    {"patient_id": list("aaab"), "laterality": list("LLRL"), "cancer": [1, 1, 0, 0], "probability": [.2, .6, .1, .3]})
breasts = per_breast(example)
assert breasts["probability"].round(3).tolist() == [.4, .1, .3] and breasts["images"].tolist() == [2, 1, 1]
breasts

# %%
for change in ({"laterality": list("LLXL")}, {"cancer": [1, 0, 0, 0]}):
    try:
        unify(example.assign(image_id=list("wxyz"), view="CC", **change))
    except DatasetError as e:
        print(e)

# %% [markdown]
# ## The folder of a set
# `core/settings` finds the folder of a downloaded set. A synthetic competition is in the folder of its run. If a set is
# nowhere, the error explains how to get it.

# %%
#| export
def place_of(
    name: str,    # name of a data set, or "phantom"
) -> str:         # name for `locate`, such as "raw/vindr"
    "Find the folder of a data set. Raises DatasetError."
    if name == "phantom":
        return "competition"
    try:
        return find_dataset(name)
    except NoDataset as e:
        raise DatasetError(f"{e}\n{how_to_get(name)}") from e

def competition(
    run: Run,
) -> str:          # a name for `locate`
    "Where the recipe's own set is."
    return place_of("phantom" if run.has("phantom") else run.section("datasets").name)

def root_of(
    run: Run,
    name: str,      # in the column `dataset` of the unified table
) -> Path:          # what its column `file` is relative to
    "Folder from which the files of a set are named: its own for a drawn competition, else the one above it."
    place = run.path(place_of(name))
    return place if name == "phantom" else place.parent

# %%
try:
    place_of("vindr of the moon")
except DatasetError as e:
    print(e)

# %% [markdown]
# ## One table of several sets
# The recipe's own set comes first. Only this set will be split into folds, so the images of its breasts must have the
# same label. The other sets are added to every training. A patient in two sets would be on both sides of a split.

# %%
#| export
def read_set(
    name: str,               # name of a data set
    folder: Path,            # folder of the set
    validated: bool = False, # whether the set is scored per breast, so that the images of a breast must agree
) -> pd.DataFrame:           # REQUIRED, KEPT where known, file relative to the folder, dataset, scaling
    "Read and check a data set with its reader. Raises DatasetError."
    source = source_of(name)
    try:
        raw = source.read(folder)
        table = unify(raw, source.agree)
        if validated:
            unify(raw)
    except DatasetError as e:
        hint = ""
        if validated and source.agree != BREAST and "disagree" in str(e):
            hint = f" {name} can be an external set."
        raise DatasetError(f"{name}: {e}{hint}") from e
    return table.assign(dataset=name, scaling=raw["scaling"].values if "scaling" in raw else source.scaling)

def combine(
    tables: list,      # from `read_set`, the recipe's own set first
) -> pd.DataFrame:     # the rows of all tables, in this order
    "Combine several sets in one table. Raises DatasetError if a patient is in two of them."
    table = pd.concat(tables, ignore_index=True)
    bad = table.groupby("patient_id")["dataset"].transform("nunique") > 1
    _refuse(table, bad, "a patient_id that is in two data sets; give one of them a prefix")
    kept = [c for c in KEPT if c in table]
    mask = ["mask"] if "mask" in table else []
    return table[[*REQUIRED, *kept, "file", "dataset", "scaling", *mask]]

# %%
sets = [
    unify(example.assign(image_id=list("wxyz"), view="CC", patient_id=list(ids))).assign(
        dataset=name, scaling="window") for name, ids in (("one", "aaab"), ("two", "cccd"), ("three", "cccd"))
]
assert combine(sets[:2])["dataset"].value_counts().to_dict() == {"one": 4, "two": 4}
try:
    combine(sets)
except DatasetError as e:
    print(e)

# %% [markdown]
# ## Run the stage

# %%
#| export
def set_names(
    run: Run,
) -> list[str]:   # the set that is split into folds first; phantom for the synthetic competition
    "Data sets of a run; raises `DatasetError` if one is named twice."
    settings = run.section("datasets")
    names = ["phantom" if run.has("phantom") else settings.name, *settings.external.split()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(
            f"{', '.join(twice)} more than once among the data sets of the recipe; leave it out of `external`.")
    return names

def published(
    run: Run,
) -> list[str]:   # names for `locate`
    "The label tables that a run reads."
    places = {name: place_of(name) for name in set_names(run)}
    return [f"{place}/{label_table(name, run.path(place))}" for name, place in places.items()]

def set_folders(
    run: Run,
) -> list[str]:   # names for `locate`
    "The folders with the images that a run is trained on; of a competition without those of its test set."
    places = [place_of(name) for name in set_names(run)]
    nested = {place: f"{place}/train_images/" for place in places}
    return [nested[place] if run.path(nested[place]).is_dir() else f"{place}/" for place in places]

def run_stage(
    run: Run,
) -> pd.DataFrame:  # the unified table, as later stages read it
    "The published tables of the recipe's sets -> processed/cleaned_label.csv."
    names = set_names(run)
    target = run.path("processed/cleaned_label.csv")
    with run.stage("datasets"):
        tables = [read_set(name, run.path(place_of(name)), validated=name == names[0]) for name in names]
        for name, table in zip(names, tables):
            if name == "phantom":
                continue
            for column in {"file", "mask"} & set(table.columns):
                table[column] = f"{name}/" + table[column]
        write_csv(target, combine(tables))
    return read_table(target, REQUIRED)

# %%
table = run_stage(run)
table.head()

# %% [markdown]
# ## What came out
# The numbers of patients, breasts and images, those with cancer, and one image of each kind as stored.

# %%
summary = {}
for name, part in table.groupby("dataset", sort=False):
    breasts = per_breast(part.assign(probability=0))
    summary[name] = {
        "patients": part["patient_id"].nunique(), "breasts": len(breasts), "images": len(part),
        "images with cancer": part["cancer"].sum(), "breasts with cancer": breasts["cancer"].sum(),
        "share of images": round(part["cancer"].mean(), 3)
    }
pd.DataFrame(summary).T

# %%
pd.concat([totals(name, part).assign(dataset=name)
           for name, part in table.groupby("dataset", sort=False)]).set_index("dataset")

# %%
for name, part in table.groupby("dataset", sort=False):
    shown = [
        r for c in (0, 1) for v in ("CC", "MLO")
        for r in part[(part["cancer"] == c) & (part["view"] == v)].head(1).itertuples()
    ]
    fig, axes = plt.subplots(1, 4, figsize=(11, 4))
    for ax in axes:
        ax.axis("off")
    for ax, row in zip(axes, shown):
        ax.imshow(read_image(root_of(run, name) / row.file).pixels, cmap="gray")
        ax.set_title(f"{row.laterality} {row.view}, {'cancer' if row.cancer else 'no cancer'}", fontsize=9)
    fig.suptitle(f"{name}: stored values without a window; some images may be inverted")
    fig.tight_layout()

# %% [markdown]
# ---
# [← Phantom](01_phantom.py) · [Detector →](03_detector.py)

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
# > From the tables that data sets come with to one table that every later stage understands.
#
# The table of a competition says what its organisers needed to say; ours says what a classifier needs to know, and
# every id in it is text, since an id that was once read as a number has lost its leading zeros. Each published set has
# its reader in `reading/sources`, and so has whoever brings other data: a CSV with `patient_id, laterality, view, cancer`,
# and one DICOM, PNG or JPEG file a row.

# %%
#| default_exp mammo.datasets

# %%
#| export
from pathlib import Path

import pandas as pd

from mammo_nb.core.files import write_csv
from mammo_nb.core.settings import read_paths
from mammo_nb.core.runs import Run
from mammo_nb.mammo.reading.sources import BREAST, KEPT, REQUIRED, DatasetError, how_to_get, label_table, read_table, source_of

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.dicom import read_image
from mammo_nb.core.runs import practice
from mammo_nb.mammo.system import system
from mammo_nb.mammo.reading.sources import totals

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run, such as {"datasets.field": value}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="datasets", overrides=overrides)
run.contract("datasets")

# %% [markdown]
# ## Unifying
# One row an image. Where the label belongs to the breast, both views of a breast must agree on it; what it belongs to
# is the data set's to say.

# %%
#| export
def _refuse(table: pd.DataFrame, bad: pd.Series, what: str):
    "Raise with the first bad row."
    if bad.any():
        raise DatasetError(
            f"{int(bad.sum())} of {len(table)} rows: {what}; the first is "
            f"{table.loc[bad.idxmax(), ['patient_id', 'image_id']].to_dict()}."
        )

def unify(
    raw: pd.DataFrame,      # from a reader of `reading/sources`, or columns of a competition's train.csv
    agree: tuple = BREAST,  # images that are equal in these columns must be equal in cancer; (): none
# REQUIRED, those of KEPT that are known, `file`, else as in a competition, and `mask` if any is known
) -> pd.DataFrame:
    "The unified table: checked, ids as text, in the order of the source."
    for c in ("patient_id", "image_id"):
        _refuse(raw, ~raw[c].fillna("").str.fullmatch(r"[^/\\\x00]+") | raw[c].isin([".", ".."]),
                f"{c} is no file name")
    _refuse(raw, raw.duplicated(["patient_id", "image_id"]), "an image twice")
    _refuse(raw, ~raw["laterality"].isin(["L", "R"]), "laterality is neither L nor R")
    _refuse(raw, ~raw["cancer"].isin([0, 1]), "cancer is neither 0 nor 1")
    if agree:
        _refuse(raw,
                raw.groupby(list(agree))["cancer"].transform("nunique") > 1,
                "images of one breast disagree about cancer")
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
# Predictions are made for images and scored for breasts: the mean over a breast's images, as in the competition's
# `prediction_id`.

# %%
#| export
def per_breast(
    predictions: pd.DataFrame,  # patient_id, laterality, probability, and cancer where known; one row an image
) -> pd.DataFrame:              # one row a breast, in order of first appearance, with `images`, their number
    "Mean probability over the images of each breast."
    wanted = {"probability": ("probability", "mean"), "images": ("probability", "size")}
    if "cancer" in predictions:
        wanted["cancer"] = ("cancer", "max")
    return predictions.groupby(["patient_id", "laterality"], sort=False).agg(**wanted).reset_index()

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
# ## Where a set is
# Downloaded sets lie below `raw` of settings.ini, small ones may lie below `samples`; a synthetic competition lies in
# the run itself. A set that is nowhere is an error that says how to get it.

# %%
#| export
def place_of(
    name: str,    # a data set, or phantom
) -> str:         # for `locate`: "raw/vindr"
    "Where a data set is."
    if name == "phantom":
        return "competition"
    if "/" in name or name in ("", ".", ".."):
        raise DatasetError(
            f"{name!r} is no name of a data set; name a folder below `raw` or `samples` of settings.ini.")
    paths = read_paths()
    found = next((first for first in ("raw", "samples") if (getattr(paths, first) / name).is_dir()), None)
    if not found:
        raise DatasetError(
            f"No folder {name} in {paths.raw} (raw of settings.ini) or in {paths.samples} (samples). Put the set "
            f"there, or name its place: MAMMO_NB_RAW=/data make ...\n{how_to_get(name)}"
        )
    return f"{found}/{name}"

def competition(
    run: Run,
) -> str:          # a name for `locate`
    "Where the recipe's own set is."
    return place_of("phantom" if run.has("phantom") else run.section("datasets").name)

def root_of(
    run: Run,
    name: str,      # in the column `dataset` of the unified table
) -> Path:          # what its column `file` is relative to
    "A competition of the run has its own root; other files begin with the name of their set."
    place = run.path(place_of(name))
    return place if name == "phantom" else place.parent

# %%
try:
    place_of("vindr of the moon")
except DatasetError as e:
    print(e)

# %% [markdown]
# ## One table of many
# The recipe's own set comes first, and only that will be split into folds, so its breasts must agree about cancer. The
# others train along. A patient in two sets would be on both sides of a split.

# %%
#| export
def read_set(
    name: str,              # a data set
    folder: Path,           # where it is
    validated: bool = False,# scored by breast, so both views of a breast must agree
) -> pd.DataFrame:          # REQUIRED, KEPT where known, file relative to the folder, dataset, scaling
    "A data set, by its reader, checked."
    source = source_of(name)
    try:
        raw = source.read(folder)
        table = unify(raw, source.agree)
        if validated:
            unify(raw)
    except DatasetError as e:
        raise DatasetError(f"{name}: {e}" + f" {name} can be an external set." *
                           (validated and source.agree != BREAST and "disagree" in str(e))) from e
    return table.assign(dataset=name, scaling=raw["scaling"].values if "scaling" in raw else source.scaling)

def combine(
    tables: list,      # from `read_set`; the recipe's own set first
) -> pd.DataFrame:     # one after the other
    "Several sets in one table; a patient is in one of them."
    table = pd.concat(tables, ignore_index=True)
    _refuse(table,
            table.groupby("patient_id")["dataset"].transform("nunique") > 1,
            "a patient_id that is in two data sets; give one of them a prefix")
    return table[[
        *REQUIRED, *(c for c in KEPT if c in table), "file", "dataset", "scaling",
        *(["mask"] if "mask" in table else [])
    ]]

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
    return [f"{place}/train_images/" if (run.path(place) / "train_images").is_dir() else f"{place}/" for place in places]

def run_stage(
    run: Run,
) -> pd.DataFrame:  # the unified table, as later stages read it
    "The published tables of the recipe's sets -> processed/cleaned_label.csv."
    names, target = set_names(run), run.path("processed/cleaned_label.csv")
    with run.stage("datasets"):
        tables = [read_set(name, run.path(place_of(name)), validated=name == names[0]) for name in names]
        for name, table in zip(names, tables):
            for column in {"file", "mask"} & set(table.columns) if name != "phantom" else ():
                table[column] = f"{name}/" + table[column]
        write_csv(target, combine(tables))
    return read_table(target, REQUIRED)

# %%
table = run_stage(run)
table.head()

# %% [markdown]
# ## What came out
# How many patients, breasts and images, how many of them with cancer, and one breast of each kind as stored.

# %%
summary = pd.DataFrame({
    name: {
        "patients": part["patient_id"].nunique(),
        "breasts": len(breasts := part.drop_duplicates(["patient_id", "laterality"])),
        "images": len(part), "images with cancer": part["cancer"].sum(), "breasts with cancer": per_breast(
            part.assign(probability=0))["cancer"].sum(), "share of images": round(part["cancer"].mean(), 3)
    } for name, part in table.groupby("dataset", sort=False)
}).T
summary

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
    fig.suptitle(f"{name}: stored values, before any window; some may be inverted")
    fig.tight_layout()

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
# # Competition
# > Where the files of a data set are, and its labels as one row per slice.
#
# The competition has six rows for each slice, one for each kind of hemorrhage and one for any of them. Some rows are
# there twice. Its images are in one flat folder, named by the id of the slice; which patient and which series a slice
# belongs to is known only from the header of its file.

# %%
#| default_exp ich.reading.competition

# %%
#| export
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import TableError, read_csv
from mammo_nb.core.runs import Run
from mammo_nb.core.settings import find_dataset
from mammo_nb.ich.reading import phe
from mammo_nb.ich.recipes import CLASSES, COMPETITION

# %%
#| hide
import tempfile

# %% tags=["parameters"]
folder = ""   # a folder in the competition's layout; "" makes one with two slices

# %%
#| export
class CompetitionError(ProjectError):
    "A table or a folder that does not have the layout of the competition."

# %% [markdown]
# ## Labels
# `ID_<hash>_<class>` is a row of the table. A row that is there twice with the same label counts once. If two rows have
# different labels, or if a slice lacks a class, the right label is unknown, and it is an error.

# %%
#| export
LABELS, SAMPLE = "stage_2_train.csv", "stage_2_sample_submission.csv"

def _several(names) -> str:
    "The first three names and how many there are."
    names = list(dict.fromkeys(map(str, names)))
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"

def split_ids(
    table: pd.DataFrame,  # has the column ID, text
    path: Path,           # its file, for messages
) -> pd.DataFrame:        # the table with image_id and kind, one of CLASSES
    "Split the column ID into slice and class. Raises CompetitionError."
    parts = table["ID"].astype(str).str.rpartition("_")
    table = table.assign(image_id=parts[0], kind=parts[2])
    wrong = table.loc[~table["kind"].isin(CLASSES) | table["image_id"].eq(""), "ID"]
    if len(wrong):
        raise CompetitionError(f"{path}: {len(wrong)} IDs are not <image>_<class>, such as {_several(wrong)}. "
                               f"The classes are {', '.join(CLASSES)}.")
    return table

def read_labels(
    path: Path | str,    # stage_2_train.csv
) -> pd.DataFrame:       # image_id and CLASSES (0 or 1), one row a slice, sorted by image_id
    "Read the label table. Raises CompetitionError for labels that are missing, no label or contradictory."
    path = Path(path)
    try:
        table = read_csv(path, dtype={"ID": str})
    except TableError as e:
        raise CompetitionError(str(e)) from e
    if missing := {"ID", "Label"} - set(table.columns):
        raise CompetitionError(f"{path} has no column {', '.join(sorted(missing))}. The label table has ID and Label.")
    wrong = table.loc[~table["Label"].isin([0, 1]), "ID"]
    if len(wrong):
        raise CompetitionError(f"{path}: the label of {_several(wrong)} is neither 0 nor 1. Correct the rows.")
    table = split_ids(table, path).drop_duplicates(["ID", "Label"])
    twice = table.loc[table["ID"].duplicated(), "ID"]
    if len(twice):
        raise CompetitionError(f"{path}: {_several(twice)} are there twice, with different labels. Remove the wrong "
                               f"rows.")
    wide = table.pivot(index="image_id", columns="kind", values="Label").reindex(columns=list(CLASSES))
    lacking = wide.index[wide.isna().any(axis=1)]
    if len(lacking):
        raise CompetitionError(f"{path}: {_several(lacking)} lack a class. A slice has {len(CLASSES)} rows.")
    return wide.astype(int).sort_index().rename_axis(columns=None).reset_index()

# %%
if not folder:
    folder = Path(tempfile.mkdtemp())
    rows = [f"ID_{name}_{kind},{int(name == 'b' and kind in ('any', 'subdural'))}" for name in "ba" for kind in CLASSES]
    (folder / LABELS).write_text("\n".join(["ID,Label", *rows, *rows[:2]]) + "\n")
    (folder / "stage_2_train_images").mkdir()
    (folder / "stage_2_train_images/ID_a.dcm").write_bytes(b"")
labels = read_labels(Path(folder) / LABELS)
assert labels["image_id"].is_unique and labels["image_id"].is_monotonic_increasing
labels.head()

# %%
bad = Path(tempfile.mkdtemp()) / LABELS
for more in ("ID_a_any,0\nID_a_any,1", "ID_a_any,1", "ID_a_brain,1", "ID_a_any,2"):
    bad.write_text(f"ID,Label\n{more}\n")
    try:
        read_labels(bad)
    except CompetitionError as e:
        print(str(e).replace(str(bad), LABELS))

# %% [markdown]
# ## Images
# The published folders are `stage_2_train` and `stage_2_test`; the original renames them.

# %%
#| export
def images_folder(
    folder: Path | str,  # of the competition
    part: str,           # train or test
) -> Path:               # the flat folder with <image_id>.dcm
    "The folder of the images. Raises CompetitionError if there is none."
    places = [Path(folder) / f"stage_2_{part}_images", Path(folder) / f"stage_2_{part}"]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise CompetitionError(f"No {places[0].name} and no {places[1].name} in {folder}. Unpack the competition's "
                               f"archive there.")
    return found

# %%
images_folder(folder, "train").name

# %% [markdown]
# ## The files of a run
# A recipe names its data set. The phantom is in the folder of the run, other sets are found by `core/settings`.

# %%
#| export
ORIGINS = {  # data set -> how to get it
    COMPETITION: f"{COMPETITION} is at https://www.kaggle.com/competitions/{COMPETITION}, with rules to accept.",
    "head_ich_phe_256":
        "head_ich_phe_256 is made from PHE-SICH-CT-IDS, https://figshare.com/articles/dataset/PHE-SICH-CT-IDS/23957937 "
        "(non-commercial research use): labels.csv with patient, slice, file and positive, and slices of one window in "
        "img/, as PNG of 256x256 pixels."}

def place_of(
    run: Run,
) -> str:       # a name for `run.path`, without / at the end
    "Where the data set of a run is. Raises NoDataset."
    name = run.section("prepare").dataset
    return "competition" if name == "phantom" else find_dataset(name, origin=ORIGINS.get(name, ""))

def training_files(
    run: Run,
) -> list[str]:  # names for `run.path`: the label table and the folder of images
    "What a run is trained on. Before a phantom is drawn, its names are those that it will have."
    place = place_of(run)
    folder = run.path(place)
    if phe.is_phe(folder):
        return [f"{place}/{phe.LABELS}", f"{place}/{phe.IMAGES}/"]
    images = "stage_2_train_images" if not folder.is_dir() else images_folder(folder, "train").name
    return [f"{place}/{LABELS}", f"{place}/{images}/"]

def test_files(
    run: Run,
) -> list[str]:  # names for `run.path`: the sample submission and the folder of images
    "What a run predicts at the end."
    place = place_of(run)
    folder = run.path(place)
    images = "stage_2_test_images" if not folder.is_dir() else images_folder(folder, "test").name
    return [f"{place}/{SAMPLE}", f"{place}/{images}/"]

# %% [markdown]
# ## The table of slices
# `slices.csv` and `folds.csv` are read again with ids as text. A slice can be used if it has no error and a place in
# its series; a localizer or a copy of another file has none.

# %%
#| export
WHOLE = ("rows", "columns", "place", "x0", "y0", "x1", "y1", "fold", *CLASSES)
REAL = ("position_mm", "gap_mm", "mean_hu")

def read_table(
    path: Path | str,   # slices.csv or folds.csv
) -> pd.DataFrame:      # ids and notes as text, numbers as float or, where all rows have them, int
    "Read a table of slices as later stages need it."
    table = read_csv(path, dtype=str, keep_default_na=False)
    for column in (*WHOLE, *REAL):
        if column not in table:
            continue
        table[column] = pd.to_numeric(table[column].replace("", np.nan))
        if column in WHOLE and table[column].notna().all():
            table[column] = table[column].astype(int)
    return table

def usable(
    table: pd.DataFrame,  # from `read_table`
) -> pd.DataFrame:        # rows of slices with a place in a series and without an error; a new index
    "The slices of a table that can be learned from."
    table = table[table["error"].eq("") & table["place"].notna()].reset_index(drop=True)
    return table.astype({c: int for c in WHOLE if c in table})

def places_by_position(
    table: pd.DataFrame,   # patient_id, study, series and the position x, y, z in mm, in any order
) -> pd.Series:            # 0, 1, ... within a series; the table's index
    "The original's order of a series: by x, then by y, then by z; equal positions stay in the order of the table."
    ordered = table.sort_values(["patient_id", "series", "study", "x", "y", "z"], kind="stable")
    return ordered.groupby(["patient_id", "series", "study"]).cumcount().reindex(table.index)

# %%
scattered = pd.DataFrame({"patient_id": "p", "study": "t", "series": list("ssru"), "x": [1., 1, 0, 0], "y": 0.,
                          "z": [9., -10, 3, 5]})
assert places_by_position(scattered).tolist() == [1, 0, 0, 0]

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

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
# > Where the files of a data set are, and what its tables say about patients and slices.
#
# A patient has one label for each organ. A series has no labels of its own, and of its slices only those with an
# injured bowel or an active extravasation are named. Images lie in `<patient>/<series>/<instance>.dcm`; the names of
# these folders are the ids of the tables, whatever the headers say.

# %%
#| default_exp trauma.reading.competition

# %%
#| export
from pathlib import Path

import pandas as pd

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import TableError, read_csv
from mammo_nb.core.runs import Run
from mammo_nb.core.settings import find_dataset
from mammo_nb.trauma.recipes import COMPETITION, GRADES, SUBMITTED

# %%
#| hide
import tempfile

# %% tags=["parameters"]
folder = ""   # a folder in the competition's layout; "" makes one with two patients

# %%
#| export
class CompetitionError(ProjectError):
    "A table or a folder that does not have the layout of the competition."

# %% [markdown]
# ## Labels of patients
# For each organ exactly one grade is 1. An injury of any organ, or an extravasation, makes a patient injured.

# %%
#| export
TRAIN, IMAGE_LEVEL, SAMPLE = "train.csv", "image_level_labels.csv", "sample_submission.csv"

def _table(
    path: Path,
    columns: tuple[str, ...],  # that it must have
) -> pd.DataFrame:             # all text
    "Read a table of the competition. Raises CompetitionError."
    try:
        table = read_csv(path, dtype=str, keep_default_na=False)
    except TableError as e:
        raise CompetitionError(str(e)) from e
    if missing := [c for c in columns if c not in table]:
        raise CompetitionError(f"{path} has no column {', '.join(missing)}. Fetch it again.")
    return table

def read_labels(
    path: Path | str,    # train.csv
) -> pd.DataFrame:       # patient_id (text), the columns of SUBMITTED and any_injury, 0 or 1
    "Read the labels of the patients. Raises CompetitionError for labels that are missing or contradictory."
    path = Path(path)
    table = _table(path, ("patient_id", *SUBMITTED))[["patient_id", *SUBMITTED]]
    twice = table.loc[table["patient_id"].duplicated(), "patient_id"]
    if len(twice):
        raise CompetitionError(f"{path}: patient {twice.iloc[0]} is there twice. Remove the wrong row.")
    values = table[list(SUBMITTED)].apply(pd.to_numeric, errors="coerce")
    for organ, grades in GRADES.items():
        own = values[[f"{organ}_{grade}" for grade in grades]]
        wrong = table.loc[~(own.isin([0, 1]).all(axis=1) & own.sum(axis=1).eq(1)), "patient_id"]
        if len(wrong):
            raise CompetitionError(f"{path}: patient {wrong.iloc[0]} does not have exactly one grade of {organ}. "
                                   f"Correct the row.")
    table[list(SUBMITTED)] = values.astype(int)
    table["any_injury"] = 1 - values[[f"{organ}_healthy" for organ in GRADES]].min(axis=1).astype(int)
    return table

# %% [markdown]
# ## Labels of slices
# The table names the slices with an injury, one row for each.

# %%
#| export
INJURIES = {"Bowel": "bowel", "Active_Extravasation": "extravasation"}  # their names there and here

def read_image_labels(
    path: Path | str,    # image_level_labels.csv
) -> pd.DataFrame:       # series and instance (text), bowel, extravasation (0 or 1); one row a slice
    "Read which slices show an injury. Raises CompetitionError for an injury that is unknown."
    path = Path(path)
    table = _table(path, ("series_id", "instance_number", "injury_name"))
    wrong = table.loc[~table["injury_name"].isin(INJURIES), "injury_name"]
    if len(wrong):
        raise CompetitionError(f"{path} names {wrong.iloc[0]!r}. The injuries of slices are {', '.join(INJURIES)}.")
    kinds = pd.get_dummies(table["injury_name"].map(INJURIES)).reindex(columns=list(INJURIES.values()), fill_value=0)
    table = pd.concat([table["series_id"], table["instance_number"], kinds.astype(int)], axis=1)
    return table.rename(columns={"series_id": "series", "instance_number": "instance"}).groupby(
        ["series", "instance"], as_index=False).max()

# %%
if not folder:
    folder = Path(tempfile.mkdtemp())
    healthy = {c: int(c.endswith("healthy")) for c in SUBMITTED}
    hurt = healthy | {"liver_healthy": 0, "liver_high": 1, "extravasation_healthy": 0, "extravasation_injury": 1}
    pd.DataFrame([{"patient_id": 7, **healthy}, {"patient_id": 19, **hurt}]).to_csv(folder / TRAIN, index=False)
    rows = [(19, 4001, 12, "Active_Extravasation"), (19, 4001, 12, "Bowel"), (19, 4001, 13, "Bowel")]
    pd.DataFrame(rows, columns=["patient_id", "series_id", "instance_number", "injury_name"]).to_csv(
        folder / IMAGE_LEVEL, index=False)
    for patient, series, instance in ((7, 55, 1), (19, 4001, 12), (19, 800, 3)):
        (folder / f"train_images/{patient}/{series}").mkdir(parents=True)
        (folder / f"train_images/{patient}/{series}/{instance}.dcm").write_bytes(b"")
folder = Path(folder)
labels = read_labels(folder / TRAIN)
labels.head().T

# %%
named = read_image_labels(folder / IMAGE_LEVEL)
named.head()

# %%
bad = Path(tempfile.mkdtemp()) / TRAIN
for change in ({"liver_low": 1}, {"patient_id": labels["patient_id"].iloc[0]}):
    labels.assign(**change).to_csv(bad, index=False)
    try:
        read_labels(bad)
    except CompetitionError as e:
        print(str(e).replace(str(bad), TRAIN))

# %% [markdown]
# ## Series
# A folder two levels down is a series. Ids that are numbers are sorted as numbers.

# %%
#| export
def by_number(
    name: str,   # an id
) -> tuple:
    "Key that sorts ids which are numbers as numbers, before all others."
    return (0, int(name), "") if name.isdigit() else (1, 0, name)

def list_series(
    images: Path | str,             # train_images or test_images
) -> list[tuple[str, str]]:         # patient and series, the names of the folders, in order
    "The series of a folder. Raises CompetitionError if there is none."
    pairs = [(p.parent.name, p.name) for p in Path(images).glob("*/*") if p.is_dir()]
    if not pairs:
        raise CompetitionError(f"{images} has no folders <patient>/<series>. Unpack the competition's archive there.")
    return sorted(pairs, key=lambda pair: (by_number(pair[0]), by_number(pair[1])))

# %%
list_series(folder / "train_images")

# %% [markdown]
# ## The files of a run
# A recipe names its data set. The phantom is in the folder of the run, other sets are found by `core/settings`.

# %%
#| export
ORIGINS = {  # data set -> how to get it
    COMPETITION: f"{COMPETITION} is at https://www.kaggle.com/competitions/{COMPETITION}, with rules to accept."}

def place_of(
    run: Run,
) -> str:       # a name for `run.path`, without / at the end
    "Where the data set of a run is. Raises NoDataset."
    name = run.section("volumes").dataset
    return "competition" if name == "phantom" else find_dataset(name, origin=ORIGINS.get(name, ""))

def grade_files(
    run: Run,
) -> list[str]:  # a name for `run.path`
    "The table with the grades of the patients that a run is trained on."
    return [f"{place_of(run)}/{TRAIN}"]

def injured_files(
    run: Run,
) -> list[str]:  # a name for `run.path`
    "The table of the slices with an injury."
    return [f"{place_of(run)}/{IMAGE_LEVEL}"]

def image_files(
    run: Run,
) -> list[str]:  # a name for `run.path`
    "The folder of the images that a run is trained on."
    return [f"{place_of(run)}/train_images/"]

def mask_files(
    run: Run,
) -> list[str]:  # a name for `run.path`
    "The folder of the segmentations, <series>.nii."
    return [f"{place_of(run)}/segmentations/"]

def test_files(
    run: Run,
) -> list[str]:  # names for `run.path`
    "What a run predicts at the end: the sample submission and the folder of images."
    place = place_of(run)
    return [f"{place}/{SAMPLE}", f"{place}/test_images/"]

# %% [markdown]
# ## Tables of a run
# In all tables of a run the ids are text, and a cell without a value is empty.

# %%
#| export
TEXT = ("patient_id", "study", "series", "image_id", "file", "frame", "instance", "plane", "orientation", "error",
        "note", "volume", "block", "places")

def read_table(
    path: Path | str,   # slices.csv, series.csv, info.csv, blocks.csv or folds.csv
) -> pd.DataFrame:      # columns of TEXT as text, others as numbers where all of their values are
    "Read a table of a run as later stages need it."
    table = read_csv(path, dtype={c: str for c in TEXT}, low_memory=False)
    text = [c for c in TEXT if c in table]
    table[text] = table[text].fillna("")
    return table

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

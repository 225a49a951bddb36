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
# # Labels
# > Tables of labels, read as text and checked before anything uses them.
#
# Tables come from many publishers, and a mistake in a table is a mistake in every later stage. So all cells are read as
# text, a missing column is an error, and a word without a known meaning is an error. The notebooks in this folder read
# data. For the labels, read them in this order: `labels` reads tables, `published` and `own` read whole data sets, and
# `sources` lists all sets. For the pixels: `boxes` finds the breast, `faithful` repeats the winner's preparation,
# `inputs` makes the input of a network, and `roi` reads boxes that people have drawn.

# %%
#| default_exp mammo.reading.labels

# %%
#| export
from pathlib import Path
from zipfile import BadZipFile

import pandas as pd

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import TableError, read_csv

# %%
#| hide
import tempfile

# %%
#| export
REQUIRED = ["patient_id", "image_id", "laterality", "view", "cancer"]
KEPT = ["site_id", "age", "density", "BIRADS", "machine_id", "implant"]  # columns that are kept where they are known

class DatasetError(ProjectError):
    "A table cannot be used. The text names the file, the place and the reason."

# %% [markdown]
# ## Tables of the project
# Ids become parts of file names. So an id that would lead out of its folder is an error.

# %%
#| export
def read_table(
    path: Path,        # a CSV file
    required: list,    # names of columns that must exist
) -> pd.DataFrame:     # the table, with every id as text
    "Read a table. Raises DatasetError if the file or a column is missing, or if an id cannot be a file name."
    path = Path(path)
    if not path.exists():
        raise DatasetError(
            f"{path} does not exist. A competition goes below `raw` of settings.ini, in the layout of the README.")
    texts = "patient_id", "image_id", "prediction_id", "site_id", "machine_id", "dataset", "scaling", "error"
    table = read_csv(path, dtype={c: str for c in texts})
    missing = [c for c in required if c not in table]
    if missing:
        raise DatasetError(f"{path.name} has no column {', '.join(missing)}; it has {', '.join(table.columns)}.")
    for c in {"patient_id", "image_id"} & set(table.columns):
        bad = table[c].isna() | ~table[c].fillna("").str.fullmatch(r"[^/\\\x00]+") | table[c].isin([".", ".."])
        if bad.any():
            raise DatasetError(f"{path.name}, row {bad.idxmax() + 2}: {c} {table[c][bad.idxmax()]!r} is no file name.")
    return table

# %% [markdown]
# ## Published tables
# Published labels are CSV files or Excel sheets, with blanks around words and with words such as `NA` that have a
# meaning. Every cell is read as text, and each reader interprets its own columns.

# %%
#| export
def read_labels(
    folder: Path,      # folder of the data set
    names: tuple,      # possible names of the table, CSV or Excel; the first that exists is read
    required: list,    # names of columns that must exist
    sheet: str | int = 0,  # sheet of an Excel file, by name or number
) -> pd.DataFrame:     # text without surrounding blanks; "" for an empty cell
    "Read a published table of labels. Raises DatasetError if the file or a column is missing."
    path = next((Path(folder) / name for name in names if (Path(folder) / name).is_file()), None)
    if path is None:
        raise DatasetError(f"{folder} has no {' or '.join(names)}.")
    try:
        if path.suffix == ".xlsx":
            table = pd.read_excel(path, sheet, dtype=str, keep_default_na=False)
        else:
            table = read_csv(path, dtype=str, keep_default_na=False)
    except TableError as e:
        raise DatasetError(str(e)) from e
    except (ValueError, OSError, KeyError, BadZipFile) as e:
        raise DatasetError(f"{path.name} cannot be read as a table: {e}. Fetch it again.") from e
    table.columns = [str(c).strip() for c in table.columns]
    if missing := [c for c in required if c not in table]:
        raise DatasetError(f"{path.name} has no column {', '.join(missing)}; it has {', '.join(table.columns)}.")
    return table.fillna("").apply(lambda column: column.str.strip())

def known(
    labels: pd.DataFrame,
    column: str,           # name of a column
    meanings: dict,        # word -> meaning
) -> pd.Series:            # the meaning of each row
    "Replace the words of a column by their meanings. Raises DatasetError for a word without a meaning."
    if (odd := labels[column][~labels[column].isin(list(meanings))]).size:
        raise DatasetError(
            f"{len(odd)} rows have a {column} that is unknown, such as {odd.iloc[0]!r} in row {odd.index[0] + 2}. "
            f"The known ones are {', '.join(map(repr, meanings))}.")
    return labels[column].map(meanings)

def number(
    column: pd.Series,     # text
) -> pd.Series:            # numbers, NaN for text that is no number
    "Convert a column of text to numbers."
    return pd.to_numeric(column, errors="coerce")

SIDES = {"L": "L", "LEFT": "L", "R": "R", "RIGHT": "R"}

def side(
    column: pd.Series,     # text such as "left" or "R"
) -> pd.Series:            # L or R; NaN for any other text, which is an error later
    "Convert a column of sides to L and R."
    return column.str.strip().str.upper().map(SIDES)

# %%
folder = Path(tempfile.mkdtemp())
(folder / "label.csv").write_text("patient, biopsy \n007, NA \n008,BENIGN\n")
labels = read_labels(folder, ("label.xlsx", "label.csv"), ["biopsy"])
assert labels["patient"].tolist() == ["007", "008"] and labels["biopsy"].tolist() == ["NA", "BENIGN"]
for attempt in (lambda: read_labels(folder, ("label.xlsx",), []), lambda: read_labels(folder, ("label.csv",), ["age"]),
                lambda: known(labels, "biopsy", {"BENIGN": 0, "DCIS": 1})):
    try:
        attempt()
    except DatasetError as e:
        print(e)
    else:
        raise AssertionError(attempt)

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

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
# # PHE
# > Real slices with hemorrhages: 60 patients, one window, one label a slice.
#
# `head_ich_phe_256` holds grey pictures of slices and says for each slice whether there is a hemorrhage. A picture has
# no header: the patient is the series, and the number of the slice is its position. In the files the head lies on its
# side, with the face to the left. It is turned upright, so that a mirror image exchanges left and right, and so that
# these pictures and those of DICOM files look alike.

# %%
#| default_exp ich.reading.phe

# %%
#| export
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import inside, read_csv
from mammo_nb.core.headers import NotDicom
from mammo_nb.core.pictures import picture_bytes

# %%
#| hide
import tempfile

from mammo_nb.core.pictures import sheet, write_png
from mammo_nb.core.settings import NoDataset, find_dataset, read_paths

# %% tags=["parameters"]
name = "head_ich_phe_256"   # the data set; if it is nowhere, three pictures are drawn

# %%
#| export
LABELS, IMAGES = "labels.csv", "img"
COLUMNS = ["patient", "slice", "file", "positive"]

class PheError(ProjectError):
    "A label table or a picture of the data set that cannot be read."

def is_phe(
    folder: Path,
) -> bool:
    "Whether a folder has the layout of this data set."
    path = Path(folder) / LABELS
    if not path.is_file():
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.readline().strip().split(",") == COLUMNS

# %% [markdown]
# ## Table
# The columns are those of every table of slices. The distance of slices is not known: a gap is a number of slices.

# %%
#| export
def read_slices(
    folder: Path | str,   # with labels.csv and img/
) -> pd.DataFrame:        # the columns of a table of slices without sizes and HU; place; any
    "The table of the slices, in the order of their numbers. Raises PheError."
    path = Path(folder) / LABELS
    raw = read_csv(path, dtype=str, keep_default_na=False)
    wrong = raw[~raw["slice"].str.fullmatch(r"\d+") | ~raw["positive"].isin(["0", "1"]) | raw["patient"].eq("")]
    if len(wrong):
        raise PheError(f"{path}: row {wrong.index[0] + 2} is {wrong.iloc[0].to_dict()}. A row has a patient, the "
                       f"number of a slice, its file, and 0 or 1.")
    twice = raw[raw.duplicated(["patient", "slice"]) | raw["file"].duplicated()]
    if len(twice):
        raise PheError(f"{path}: {twice['file'].iloc[0]} or its slice is there twice. Remove the wrong row.")
    number = raw["slice"].astype(int)
    table = pd.DataFrame({
        "patient_id": raw["patient"], "study": "", "series": raw["patient"],
        "image_id": [Path(f).stem for f in raw["file"]], "file": [f"{IMAGES}/{f}" for f in raw["file"]], "frame": "",
        "position_mm": number.astype(float), "error": "", "note": "", "any": raw["positive"].astype(int)})
    table = table.sort_values(["patient_id", "position_mm"], kind="stable", ignore_index=True)
    series = table.groupby("series")
    table["gap_mm"] = -series["position_mm"].diff(-1)
    table["place"] = series.cumcount()
    return table

def read_picture(
    folder: Path | str,
    file: str,           # of the table
) -> np.ndarray:         # uint8 (rows, columns, 3), the grey picture in all channels, face up
    "One picture, turned upright. Raises PheError."
    try:
        data = picture_bytes(inside(folder, file))
    except (OSError, NotDicom) as e:
        raise PheError(f"{Path(folder) / file} is missing or no picture ({e}). Fetch it again.") from None
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if grey is None:
        raise PheError(f"{Path(folder) / file} is no picture. Fetch it again.")
    return cv2.merge([cv2.rotate(grey, cv2.ROTATE_90_CLOCKWISE)] * 3)

# %%
try:
    place, _, rest = find_dataset(name).partition("/")
    folder = getattr(read_paths(), place) / rest
except NoDataset:
    folder = Path(tempfile.mkdtemp())
    (folder / LABELS).write_text("patient,slice,file,positive\n7,2,7_2.png,0\n7,10,7_10.png,1\n7,1,7_1.png,0\n")
    for n in (1, 2, 10):
        write_png(folder / IMAGES / f"7_{n}.png", cv2.circle(np.zeros((64, 64), np.uint8), (32, 32), 20 + n, 90, -1))
assert is_phe(folder)
table = read_slices(folder)
assert all(part["position_mm"].is_monotonic_increasing for _, part in table.groupby("series"))
table.groupby("series").agg(slices=("any", "size"), positive=("any", "sum")).head()

# %%
first = table[table["series"] == table["series"].iloc[0]]
sheet([read_picture(folder, f)[..., 0] for f in first["file"]], title="one series, from its first slice to its last");

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

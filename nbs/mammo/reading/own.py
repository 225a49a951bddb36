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
# # Own data sets
# > A CSV file and pictures of your own, read without any programming.
#
# The names of the columns are fixed. The place of the pictures is found: in the folder itself, or in one folder below
# it. A folder of masks beside the pictures has the same file names. So the usual names of picture folders are tried
# first, and two other folders that would both fit are an error.

# %%
#| default_exp mammo.reading.own

# %%
#| export
from pathlib import Path

import pandas as pd

from mammo_nb.core.dicom import ENDINGS
from mammo_nb.core.files import walk
from mammo_nb.core.pictures import PICTURES
from mammo_nb.mammo.reading.labels import KEPT, REQUIRED, DatasetError, known, read_table, side

# %%
#| hide
import tempfile

import cv2
import numpy as np

# %% tags=["parameters"]
own = ""   # a folder with a CSV file and images; "" makes a small one

# %%
#| export
PLACES = ("", "img", "images", "train_images")  # folders that are tried first
MASKS = ("mask", "masks")                       # folders of drawn lesions, under the names of the pictures

def own_table(
    folder: Path,
) -> str:         # name of the table
    "Find the table of a folder: labels.csv, train.csv, or the only CSV file. Raises DatasetError."
    tables = sorted(p.name for p in Path(folder).glob("*.csv"))
    named = next((name for name in ("labels.csv", "train.csv") if name in tables), None)
    if not named and len(tables) != 1:
        listed = ": " + ", ".join(tables) if tables else ""
        raise DatasetError(
            f"{folder} has {len(tables)} CSV files{listed}. Keep one, or call the table of the images labels.csv.")
    return named or tables[0]

def _own_files(folder: Path, table: pd.DataFrame) -> list[str]:
    "Find the file of each row, relative to the folder. A missing file gets the name that it should have."
    pictures = [p for p in sorted(walk(folder)) if p.suffix.lower() in (*PICTURES, *ENDINGS)]
    existing = [p.relative_to(folder).as_posix() for p in pictures]
    if "file" in table:
        paths = {p: p for p in existing}
        wanted = [(f,) for f in table["file"].astype(str)]
    else:
        paths = {p.rpartition(".")[0]: p for p in reversed(existing)}
        wanted = [(f"{p}/{i}", i) for p, i in zip(table["patient_id"], table["image_id"])]

    def files_in(place):
        files = []
        for names in wanted:
            named = [f"{place}/{name}".lstrip("/") for name in names]
            files.append(next((paths[name] for name in named if name in paths), named[-1]))
        return files

    found = {}
    for place in dict.fromkeys((*PLACES, *sorted(p.name for p in folder.iterdir() if p.is_dir()))):
        files = files_in(place)
        if set(existing) & set(files):
            found[place] = files
    usual = [place for place in PLACES if place in found]
    if not found:
        raise DatasetError(
            f"None of the {len(table)} images of the table is in {folder} or in a folder of it. "
            f"The first one should be {wanted[0][-1]}.")
    if not usual and len(found) > 1:
        raise DatasetError(
            f"The images of the table could be those in {' or in '.join(found)}. Rename the right folder to images.")
    return found[usual[0] if usual else next(iter(found))]

def _own_masks(folder: Path, files: list[str]) -> list:
    "Find the mask of each picture, relative to the folder; None for a picture without a mask."
    place = next((folder / m for m in MASKS if (folder / m).is_dir()), None)
    masks = []
    for file in files:
        name = f"{Path(file).stem}.png"
        masks.append(f"{place.name}/{name}" if place and (place / name).is_file() else None)
    return masks

def read_own(
    folder: Path,     # a CSV file and images; optionally mask/ with PNG files, lesions white on black
) -> pd.DataFrame:    # REQUIRED, KEPT and `scaling` where given, `file`, and `mask` if there is any
    """Read anybody's data set. Positive: `cancer` is 1. The CSV file has patient_id, laterality, view, cancer, and
    image_id or file (image_id is then its stem). Raises DatasetError."""
    folder = Path(folder)
    path = folder / own_table(folder)
    table = read_table(path, ["patient_id", "laterality", "view", "cancer"])
    if "image_id" not in table and "file" not in table:
        raise DatasetError(
            f"{path.name} has neither a column image_id nor a column file. It has {', '.join(table.columns)}.")
    if "image_id" not in table:
        table["image_id"] = [Path(f).stem for f in table["file"].astype(str)]
    if "scaling" in table:
        table["scaling"] = known(table.fillna({"scaling": ""}), "scaling",
                                 {s: s for s in ("", "window", "percentile", "none")})
    table["laterality"] = side(table["laterality"].astype(str))
    table["view"] = table["view"].astype(str).str.strip().str.upper()
    table["file"] = _own_files(folder, table)
    if any(masks := _own_masks(folder, table["file"].tolist())):
        table["mask"] = masks
    return table[[c for c in (*REQUIRED, *KEPT, "scaling", "file", "mask") if c in table]]

# %% [markdown]
# ## What came out
# A column that is not known, here `colour`, is left out.

# %%
if not own:
    own = Path(tempfile.mkdtemp()) / "mine"
    (own / "images").mkdir(parents=True)
    for name in ("a_L_CC", "b_L_CC"):
        cv2.imwrite(str(own / "images" / f"{name}.png"), np.zeros((8, 8), np.uint8))
    (own / "labels.csv").write_text("file,patient_id,laterality,view,cancer,age,colour\n"
                                    "a_L_CC.png,a,left,cc,1,61,red\nb_L_CC.png,b,L,CC,0,54,blue\n")
mine = read_own(own)
assert mine["file"].notna().all() and set(mine["laterality"]) <= {"L", "R"}
mine.head()

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

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
# # CBIS-DDSM
# > Scanned films with outlined masses and calcifications, as TCIA publishes them and as Kaggle hosts them.
#
# The set has a table for each kind of finding and each official split. A row is a finding, with the paths of its frame,
# of its mask, and of a cut-out around it. Every patient has a finding, so there is no healthy woman in the set, and a
# breast without a malignant finding has a benign one. A score on it does not show how well a screening would work.
#
# The paths of the tables are not those of the files. TCIA's retriever names folders by date or by UID and files by
# number, and Kaggle's version has JPEG files in folders named by the UID of their series. In some rows the paths of
# mask and cut-out are exchanged. So a file is found by its folder, and a mask is recognised by its size, which is that
# of its frame.

# %%
#| default_exp mammo.reading.cbis

# %%
#| export
from pathlib import Path

import pandas as pd

from mammo_nb.core.dicom import ENDINGS, read_header
from mammo_nb.core.files import walk
from mammo_nb.core.headers import DicomError
from mammo_nb.core.pictures import PICTURES
from mammo_nb.mammo.reading.labels import SIDES, DatasetError, known, number, read_labels

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import numpy as np

from mammo_nb.core.pictures import write_png

# %% [markdown]
# ## Findings
# In both versions the tables have the same names. Kaggle's are in the folder `csv`.

# %%
#| export
def _names(kind: str, split: str) -> tuple[str, str]:
    "Possible names of a table."
    name = f"{kind}_case_description_{split}_set.csv"
    return name, f"csv/{name}"

KINDS = ("mass", "calc")
CBIS_TABLES = tuple(name for kind in KINDS for name in _names(kind, "train"))  # one of them has to be there
PATHS = ["image file path", "cropped image file path", "ROI mask file path"]
_NEEDED = ["patient_id", "left or right breast", "image view", "assessment", "pathology", *PATHS]

def cbis_findings(
    folder: Path,          # with the tables, in the layout of TCIA or of Kaggle
    kinds: tuple = KINDS,  # mass, calc
) -> pd.DataFrame:         # a row for each finding: kind, split, patient_id, laterality, view, malignant, ..., PATHS
    """Read the tables of CBIS-DDSM that are there. A patient of a test table that is read is a test patient, also in
    the training table of the other kind. Raises DatasetError without a training table."""
    folder, parts = Path(folder), []
    for kind in kinds:
        for split in ("train", "test"):
            names = _names(kind, split)
            if not any((folder / name).is_file() for name in names):
                continue
            table = read_labels(folder, names, _NEEDED)
            density = table["breast_density" if "breast_density" in table else "breast density"]
            parts.append(pd.DataFrame({
                "kind": kind, "split": split, "patient_id": table["patient_id"],
                "laterality": table["left or right breast"].str.upper().map(SIDES), "view": table["image view"],
                "malignant": known(table, "pathology", {"BENIGN": 0, "BENIGN_WITHOUT_CALLBACK": 0, "MALIGNANT": 1}),
                "density": density.map(dict(zip("1234", "ABCD"))), "BIRADS": number(table["assessment"]),
                **{path: table[path] for path in PATHS}}))
    if not any(part["split"].iloc[0] == "train" for part in parts if len(part)):
        raise DatasetError(f"{folder} has no {' or '.join(names[0] for names in (_names(k, 'train') for k in kinds))}.")
    found = pd.concat(parts, ignore_index=True)
    tested = found.loc[found["split"] == "test", "patient_id"]
    found.loc[found["patient_id"].isin(tested), "split"] = "test"
    return found

# %% [markdown]
# ## Files
# A path of a table is `CASE/STUDY/SERIES/000000.dcm`. The folder of its file is one of those below.

# %%
#| export
def files_of(
    folder: Path,   # of the set
    path: str,      # as a table has it
) -> list[Path]:    # the images of its series, sorted; [] if they are not there
    "Find the images of a series. Raises DatasetError for a path of another form."
    parts = path.replace('"', "").strip().split("/")
    if len(parts) != 4:
        raise DatasetError(f"{path!r} is not of the form CASE/STUDY/SERIES/000000.dcm.")
    case, study, series = parts[:3]
    for base in (folder, folder / "CBIS-DDSM", *sorted(folder.glob("manifest-*/CBIS-DDSM"))):
        for place in (base / "jpeg" / series, base / case / study / series, base / case):
            if place.is_dir():
                return sorted(p for p in walk(place) if p.suffix.lower() in (*ENDINGS, *PICTURES))
    return []

def _size(path: Path) -> tuple[int, int] | None:
    "Rows and columns of an image; None for a file that cannot be read."
    try:
        header = read_header(path)
    except DicomError:
        return None
    return header.rows, header.columns

def masks_of(
    folder: Path,
    frame: Path,            # the image of the finding
    finding: pd.Series,     # a row of `cbis_findings`
) -> list[Path]:            # the mask; [] if none has the size of the frame
    "Find the mask of a finding among the files of its two series."
    size = _size(frame)
    candidates = {p: None for path in PATHS[1:] for p in files_of(folder, finding[path])}
    return [p for p in candidates if p != frame and size and _size(p) == size][:1]

def cbis_frames(
    folder: Path,
    findings: pd.DataFrame,   # from `cbis_findings`
) -> pd.DataFrame:            # patient_id, image_id, laterality, view, cancer, split, density, BIRADS, file, masks
    """A row for each side and view of a patient, with all its findings. `file` and the list `masks` are relative to the
    folder. Cancer is that of the breast: any of its findings, in any view, is malignant."""
    folder, rows = Path(folder), []
    ill = findings.groupby(["patient_id", "laterality"])["malignant"].max()
    for (patient, side, view), own in findings.groupby(["patient_id", "laterality", "view"], sort=False):
        found = next((files[0] for path in own[PATHS[0]] if (files := files_of(folder, path))), None)
        masks = [m for _, finding in own.iterrows() for m in masks_of(folder, found, finding)] if found else []
        expected = "CBIS-DDSM/" + own[PATHS[0]].iloc[0].rpartition("/")[0] + "/1-1.dcm"
        rows.append({
            "patient_id": patient, "image_id": f"{patient}_{side}_{view}", "laterality": side, "view": view,
            "cancer": int(ill[patient, side]), "split": own["split"].iloc[0], "density": own["density"].iloc[0],
            "BIRADS": own["BIRADS"].max(), "findings": len(own),
            "file": found.relative_to(folder).as_posix() if found else expected,
            "masks": [m.relative_to(folder).as_posix() for m in masks]})
    return pd.DataFrame(rows)

# %% [markdown]
# ## The unified table
# Only the official training split is read, so that a training cannot see a test patient. A frame with several findings
# has a mask for each, and a mask of one of them would call the others healthy tissue. Such a frame has no mask here.
# [A smaller copy](../tools/smaller.py) draws all findings into one mask.

# %%
#| export
def read_cbis(
    folder: Path,     # the tables in it or in csv/; the frames in CBIS-DDSM/, in manifest-*/CBIS-DDSM/ or in jpeg/
) -> pd.DataFrame:
    """Read the training split of CBIS-DDSM. Positive: any finding of the breast has the pathology MALIGNANT. Raises
    DatasetError."""
    findings = cbis_findings(folder)
    frames = cbis_frames(folder, findings[findings["split"] == "train"])
    one = frames["findings"].eq(1) & frames["masks"].map(len).eq(1)
    frames["mask"] = [masks[0] if alone else None for masks, alone in zip(frames["masks"], one)]
    return frames.drop(columns=["masks", "findings", "split"])

# %% [markdown]
# ## What came out
# A small folder in the layout of Kaggle, with exchanged paths in the second row:

# %%
folder = Path(tempfile.mkdtemp())
y, x = np.mgrid[:64, :48]
breast, lesion = np.hypot(x, y - 32) < 40, np.hypot(x - 18, y - 30) < 6
series = {"frame": breast * 90 + lesion * 60, "mask": lesion * 255, "cut-out": (breast * 90 + lesion * 60)[20:40, 8:28]}
rows = []
for number_of, patient in enumerate(("P_00001", "P_00002")):
    for name, pixels in series.items():
        write_png(folder / f"jpeg/1.{number_of}.{name}/1-1.png", pixels.astype(np.uint8))
    paths = [f"Mass-Training_{patient}_LEFT_CC/1/1.{number_of}.{name}/000000.dcm" for name in
             (("frame", "cut-out", "mask") if not number_of else ("frame", "mask", "cut-out"))]
    rows.append([patient, "3", "LEFT", "CC", "4", ("MALIGNANT", "BENIGN")[number_of], *paths])
(folder / "csv").mkdir()
pd.DataFrame(rows, columns=["patient_id", "breast_density", *_NEEDED[1:]]).to_csv(
    folder / "csv/mass_case_description_train_set.csv", index=False)
table = read_cbis(folder)
assert table["cancer"].tolist() == [1, 0] and table["mask"].str.contains(".mask/").all()
fig, axes = plt.subplots(1, 3, figsize=(6, 2.6))
for ax, (name, pixels) in zip(axes, series.items()):
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    ax.set_title(f"{name}, {pixels.shape[0]} x {pixels.shape[1]}", fontsize=9)
    ax.axis("off")
table

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

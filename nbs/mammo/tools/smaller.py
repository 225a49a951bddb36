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
# # A smaller copy
# > CBIS-DDSM at 256 pixels: the frames, their masks and one table, from the 164 GB that TCIA publishes.
#
# The recipes `cbis` and `cbis_long` read a small version of the masses, because a film of 4,000 by 3,000 pixels takes
# longer to decode than a small network takes to look at it. All their scores were measured on that version. This
# notebook makes such a version from the published set: put the set into `raw` (`make data DATASET=cbis` says where it
# is), write the name of its folder below, and run all cells. With masses alone, the splits are the official ones of the
# masses; with both kinds, a patient of any test table is a test patient.
#
# The small version that was measured came with no record of how it had been made. It has 1,231 frames of 691 patients,
# 256 pixels a side, right breasts mirrored, and one mask for each frame. This notebook gives the same table and layout;
# that each pixel is the same has not been checked, and cannot be without the set.

# %%
#| default_exp mammo.tools.smaller

# %%
#| export
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammo_nb.core.dicom import read_frame
from mammo_nb.core.files import write_csv
from mammo_nb.core.parallel import map_files
from mammo_nb.core.pictures import shrink, write_png
from mammo_nb.core.windows import minmax
from mammo_nb.mammo.reading.cbis import cbis_findings, cbis_frames
from mammo_nb.mammo.reading.own import read_own

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt

# %% tags=["parameters"]
folder = ""      # CBIS-DDSM, such as "../../../datasets/raw/cbis"; "" draws a small one
output = ""      # folder of the copy, such as "../../../datasets/raw/cbis_ddsm_mass_256"; "" takes a temporary one
size = 256       # side of the pictures, in pixels
kinds = "mass"   # kinds of findings: mass, calc, or both with a blank between them
split = "train"  # official split: train or test
workers = 2      # processes

# %% [markdown]
# ## One frame
# A right breast is mirrored, so that the chest wall is always on the left. The frame is padded to a square with black,
# so that no tissue is stretched, and made smaller by averaging. Its darkest value becomes 0 and its brightest 255. A
# pixel of the mask is white if more than half of it is lesion.

# %%
#| export
def square(
    pixels: np.ndarray,   # (rows, columns)
    mirrored: bool,       # whether left and right are exchanged first
    size: int,            # side of the result, in pixels
) -> np.ndarray:          # float32 (size, size)
    "Mirror, pad with the lowest value on the right or below, and average."
    pixels = pixels[:, ::-1] if mirrored else pixels
    side = max(pixels.shape)
    padded = np.full((side, side), pixels.min(), np.float32)
    padded[:pixels.shape[0], :pixels.shape[1]] = pixels
    return shrink(padded, size, size)

def copy_frame(
    item: dict,  # folder, file, masks: list of files; output, name, mirrored, size
) -> dict:       # mask_px: white pixels of the mask
    "Write the small picture of a frame, and the union of its masks. Raises DicomError."
    cv2.setNumThreads(1)
    folder, output = Path(item["folder"]), Path(item["output"])
    pixels = read_frame(folder / item["file"]).decode().pixels
    union = np.zeros(pixels.shape, np.float32)
    for file in item["masks"]:
        mask = read_frame(folder / file).decode().pixels
        union[mask > mask.max() // 2] = 255  # a JPEG has grey along its edges
    small = square(union, item["mirrored"], item["size"]) > 127
    write_png(output / "img" / f"{item['name']}.png",
              np.uint8(minmax(square(pixels, item["mirrored"], item["size"])) * 255))
    if item["masks"]:
        write_png(output / "mask" / f"{item['name']}.png", np.uint8(small) * np.uint8(255))
    return {"mask_px": int(small.sum())}

# %%
y, x = np.mgrid[:64, :48]
right = np.uint16(900 * (np.hypot(47 - x, y - 32) < 30))
assert square(right, True, 32).shape == (32, 32) and square(right, True, 32)[16, 0] == 900
assert square(right, True, 32)[:, 24:].max() == 0   # padded

# %% [markdown]
# ## The copy
# It is a folder as [anybody's own set](../reading/own.py) is. A frame that cannot be read is named and left out.

# %%
#| export
COPIED = ["split", "file", "patient_id", "laterality", "view", "cancer", "density", "BIRADS", "findings", "mask_px"]

def copy_cbis(
    folder: Path,                # CBIS-DDSM as published
    output: Path,                # gets img/, mask/ and labels.csv
    size: int = 256,             # side of the pictures, in pixels
    kinds: tuple = ("mass",),    # of findings: mass, calc
    split: str = "train",        # train or test
    workers: int | None = None,  # processes; None: one a core
) -> pd.DataFrame:               # labels.csv
    "Make a small copy of one official split. A stopped call continues where it stopped. Raises DatasetError."
    folder, output = Path(folder).resolve(), Path(output).resolve()
    findings = cbis_findings(folder, kinds)
    frames = cbis_frames(folder, findings[findings["split"] == split])
    names = frames["image_id"]
    items = [{"folder": str(folder), "output": str(output), "file": row.file, "masks": row.masks, "name": row.image_id,
              "mirrored": row.laterality == "R", "size": size} for row in frames.itertuples()]
    done = map_files(copy_frame, items, table=output / "copied.csv", writes=output, workers=workers, label="frames")
    frames = frames.assign(file=names + ".png", mask_px=done.get("mask_px"))[done["error"].eq("").to_numpy()]
    for row in done[done["error"].ne("")].head(20).itertuples():
        print(f"left out {row.error}")
    write_csv(output / "labels.csv", frames[COPIED])
    return frames[COPIED]

# %%
#| hide
if not folder:
    folder, rows = Path(tempfile.mkdtemp()), []
    for number, (patient, side) in enumerate((("P_00001", "LEFT"), ("P_00004", "RIGHT"))):
        lesion = np.hypot(x - 15, y - 30) < 7
        frame = 40_000 * (np.hypot(x, y - 32) < 30) + 20_000 * lesion
        if side == "RIGHT":
            lesion, frame = lesion[:, ::-1], frame[:, ::-1]
        case = f"Mass-Training_{patient}_{side}_CC"
        paths = [f"{case}/1/1.{number}0", f"{case}_1/1/1.{number}1", f"{case}_1/1/1.{number}1"]
        for path, name, pixels in ((paths[0], "1-1", np.uint16(frame)), (paths[1], "1-1", np.uint8(lesion * 255)),
                                   (paths[1], "1-2", np.uint16(frame[15:45, 5:30]))):
            write_png(folder / "CBIS-DDSM" / path / f"{name}.png", pixels)
        paths = [f"{path}/000000.dcm" for path in paths]
        rows.append([patient, "3", side, "CC", "4", ("MALIGNANT", "BENIGN")[number], *paths])
    pd.DataFrame(rows, columns=[
        "patient_id", "breast_density", "left or right breast", "image view", "assessment", "pathology",
        "image file path", "cropped image file path", "ROI mask file path"]).to_csv(
        folder / "mass_case_description_train_set.csv", index=False)
output = Path(output or tempfile.mkdtemp())

# %%
labels = copy_cbis(folder, output, size, tuple(kinds.split()), split, workers)
print(f"{len(labels)} frames of {labels['patient_id'].nunique()} patients, {labels['cancer'].sum()} with cancer")
labels.head()

# %% [markdown]
# ## What came out
# Frames and masks. The recipes read the copy as any folder with a table:

# %%
again = read_own(output)
assert len(again) == len(labels) and again["mask"].notna().sum() == labels["mask_px"].notna().sum()
chosen = again.head(4)
fig, axes = plt.subplots(2, len(chosen), figsize=(2.4 * len(chosen), 4.8), squeeze=False)
for column, row in zip(axes.T, chosen.itertuples()):
    for ax, file in zip(column, (row.file, row.mask)):
        if isinstance(file, str):
            ax.imshow(cv2.imread(str(output / file), cv2.IMREAD_GRAYSCALE), cmap="gray", vmin=0, vmax=255)
        ax.axis("off")
    column[0].set_title(f"{row.image_id}, {'cancer' if row.cancer else 'no cancer'}", fontsize=8)
fig.tight_layout()

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

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
# # Masks
# > The organs that someone has outlined, on the slices of a series: of the competition, or of TotalSegmentator.
#
# The competition has one NIfTI file for some of its series, with the labels 1 to 5. TotalSegmentator has one file an
# organ, and it tells colon, duodenum and small bowel apart. Both are brought to the slices by their place in the
# patient; `core/labels` does that.

# %%
#| default_exp trauma.reading.masks

# %%
#| export
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_nb.core.dicom import read_frame, read_header
from mammo_nb.core.geometry import Slice, fill_orientation
from mammo_nb.core.labels import BadLabels, as_series, on_grid, read_labels, read_nifti
from mammo_nb.trauma.reading.levels import stretched
from mammo_nb.trauma.reading.windows import PART_LABELS, PARTS, totalsegmentator_case
from mammo_nb.trauma.recipes import ORGANS

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import nibabel

# %% tags=["parameters"]
size = 48   # rows and columns of the drawn case

# %% [markdown]
# ## The slices of a series
# A stage knows a series by its rows of `processed/slices.csv`. The headers say where they are.

# %%
#| export
def slices_of(
    images: Path | str,   # the folder to which the column `file` is relative
    rows: pd.DataFrame,   # of one series of slices.csv, in the order of the volume
) -> list[Slice]:         # with position, orientation and spacing. Raises BadLabels
    "Read where the slices of a series are."
    slices = []
    for file, frame in zip(rows["file"], rows["frame"]):
        path = Path(images) / file
        header = read_header(path) if frame in ("", 0) else read_frame(path, int(frame) - 1).header
        slices.append(Slice.of(header, file, 0 if frame == "" else int(frame)))
    fill_orientation(slices)
    for s in slices:
        if s.position is None or s.spacing is None:
            raise BadLabels(Path(s.file), "it has no position or pixel spacing, so no labels can be brought to it",
                            "Leave the series out of the segmentations.")
    return slices

# %% [markdown]
# ## Two layouts
# A file has all organs as numbers. A folder has a file for each of seven parts, three of which are bowel. A part
# without a file is not in the scan.

# %%
#| export
def _part(folder: Path, part: str) -> Path | None:
    "The file of a part of TotalSegmentator."
    return next(iter(sorted(folder.glob(f"{part}.nii*"))), None)

def organ_labels(
    path: Path | str,     # .nii, .nii.gz, or a folder with liver.nii.gz, kidney_left.nii.gz, ...
    slices: list[Slice],  # of one volume, in order
) -> np.ndarray:          # uint8 (slices, rows, columns), 0 or 1 + number of the organ. Raises BadLabels
    "Outlined organs on the slices of a series."
    path = Path(path)
    if not path.is_dir():
        found = on_grid(read_labels(path), slices)
        if not 0 <= found.min() <= found.max() <= len(ORGANS):
            raise BadLabels(path, f"it has labels from {found.min()} to {found.max()}",
                            f"Give labels 1 to {len(ORGANS)}: {', '.join(ORGANS)}.")
        return found.astype(np.uint8)
    labels = np.zeros((len(slices), slices[0].rows, slices[0].columns), np.uint8)
    files = [(_part(path, part), label) for part, label in zip(PARTS, PART_LABELS)]
    if not any(file for file, _ in files):
        raise BadLabels(path, "no organ in it", f"Give a folder with files such as {PARTS[0]}.nii.gz.")
    for file, label in files:
        if file:
            labels[on_grid(read_labels(file), slices) > 0] = label
    return labels

# %% [markdown]
# ## A case of TotalSegmentator
# The scan is a NIfTI file too. It is turned into an axial series, and its slices are stretched like those of the
# competition. The original stretches the whole scan without a window, and turns it by fixed flips.

# %%
#| export
def list_cases(
    folder: Path | str,  # with <case>/ct.nii.gz and <case>/segmentations/<organ>.nii.gz
) -> list[Path]:         # folders of the cases, sorted. Raises BadLabels
    "The cases of a data set in TotalSegmentator's layout."
    cases = sorted({p.parent for p in Path(folder).glob("*/ct.nii*") if (p.parent / "segmentations").is_dir()})
    if not cases:
        raise BadLabels(Path(folder), "no case in it", "Give a folder with <case>/ct.nii.gz and <case>/segmentations/.")
    return cases

def read_case(
    case: Path | str,        # a folder of `list_cases`
    faithful: bool = False,  # levels and flips of the original
) -> tuple[np.ndarray, np.ndarray]:  # uint8 levels and labels, both (slices, rows, columns). Raises BadLabels
    "Volume and labels of a case."
    folder, scan = Path(case) / "segmentations", read_nifti(next(Path(case).glob("ct.nii*")))
    if faithful:
        files = [_part(folder, part) for part in PARTS]
        parts = [read_labels(file).values if file else np.zeros_like(scan.values) for file in files]
        return totalsegmentator_case(scan.values, np.stack(parts))
    values, slices = as_series(scan)
    levels = np.stack([np.rint(stretched(hu) * 255).astype(np.uint8) for hu in values])
    return levels, organ_labels(folder, slices)

# %% [markdown]
# ## What came out
# A drawn case of ellipsoids, with the axes of TotalSegmentator: to the right, to the front, to the head. The volume
# runs to the left, to the back and to the head. The original's flips give the same slices from head to feet.

# %%
case = Path(tempfile.mkdtemp()) / "s0001"
(case / "segmentations").mkdir(parents=True)
affine = np.diag([4.0, 4, 6, 1])
x, y, z = np.mgrid[:size, :size, :24] / np.array([size, size, 24])[:, None, None, None]
inside = lambda at, r: sum(((u - c) / q) ** 2 for u, c, q in zip((x, y, z), at, r)) < 1
parts = {"liver": inside((.7, .55, .65), (.18, .2, .3)), "spleen": inside((.22, .4, .7), (.08, .12, .2)),
         "colon": inside((.25, .6, .3), (.06, .07, .25)), "small_bowel": inside((.5, .65, .25), (.15, .12, .2))}
scan = np.where(inside((.5, .5, .5), (.45, .35, 2)), -90, -1000) + 190 * sum(parts.values()) + 30 * parts["liver"]
nibabel.save(nibabel.Nifti1Image(scan.astype(np.int16), affine), case / "ct.nii.gz")
for part, mask in parts.items():
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), affine), case / "segmentations" / f"{part}.nii.gz")
levels, labels = read_case(list_cases(case.parent)[0])
assert np.array_equal(labels[::-1], read_case(case, faithful=True)[1]) and set(np.unique(labels)) == {0, 1, 2, 5}
assert np.argwhere(labels == 1)[:, 2].mean() < size / 2 < np.argwhere(labels == 2)[:, 2].mean()  # the liver is right
fig, axes = plt.subplots(1, 8, figsize=(12, 1.7))
for ax, picture, mask in zip(axes, levels[::3], labels[::3]):
    ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
    ax.imshow(np.ma.masked_equal(mask, 0), cmap="tab10", vmin=1, vmax=10, alpha=0.5)
    ax.axis("off")

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

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
# > Labels of organs from NIfTI files, brought to the grid of a series by their place in the patient.
#
# A segmentation is often stored in another file than the scan, with other axes, in another order, and sometimes with
# another resolution. Flipping and transposing until it fits is a guess, and an organ on the wrong side looks right.
# Both files say where their voxels are, and that decides.

# %%
#| default_exp core.labels

# %% tags=["parameters"]
size = 48   # rows and columns of the drawn series

# %%
#| export
import gzip
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import write_csv
from mammo_nb.core.geometry import Slice, normal_of
from mammo_nb.core.volumes import Volume

# %%
#| hide
import tempfile
from dataclasses import replace

import matplotlib.pyplot as plt
import nibabel

from mammo_nb.core.volumes import arrange

# %% [markdown]
# ## A NIfTI file
# The sform is an affine from voxels to mm, the qform is the same without shear. A code of 0 says that a form is not
# set. If both are set and differ, the sform counts, and a note says how far they are apart. If none is set, the place
# of the voxels is unknown and the file is refused. NIfTI runs to the right, front and head where DICOM runs to the
# left, back and head.

# %%
#| export
class BadLabels(ProjectError):
    "A file of labels that cannot be used, or that fits no series."
    def __init__(self,
        path: Path,      # the file
        problem: str,    # what is wrong
        remedy: str,     # what to do about it
    ):
        super().__init__(f"{Path(path).name}: {problem}. {remedy}")

@dataclass
class Nifti:
    "An image with its place in the patient."
    path: Path
    values: np.ndarray   # three axes, in any order and direction
    affine: np.ndarray   # (4, 4), from voxels to mm, LPS
    notes: list = field(default_factory=list)

UNITS = {0: ("no unit", 1.0), 1: ("metres", 1000.0), 2: ("millimetres", 1.0), 3: ("micrometres", 0.001)}
PLAUSIBLE = (0.02, 60.0)         # size of a voxel of a scan, mm
NEAR = 0.1                       # mm between two forms that are the same
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

def _forms(
    header,              # of nibabel
) -> dict[str, np.ndarray]:  # sform, qform: (4, 4), RAS; only what is set and can be inverted
    "The affines that a header has."
    import nibabel
    forms = {}
    for name in ("sform", "qform"):
        try:
            affine = getattr(header, f"get_{name}")(coded=True)[0]
        except nibabel.spatialimages.HeaderDataError:
            continue
        if affine is not None and np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-12:
            forms[name] = affine
    return forms

def _affine(
    path: Path,
    header,              # of nibabel
    shape: tuple,        # of the three axes
) -> tuple[np.ndarray, list[str]]:  # (4, 4), mm, LPS; notes
    "Where the voxels are."
    forms, notes = _forms(header), []
    if not forms:
        raise BadLabels(path, "it has neither an sform nor a qform, so its place in the patient is unknown",
                        "Write it again with the affine of the scan that was labelled.")
    affine = forms.get("sform", forms.get("qform"))
    unit, factor = UNITS.get(int(header["xyzt_units"]) & 7, UNITS[0])
    voxel = np.linalg.norm(affine[:3, :3], axis=0)
    likely = lambda sizes: PLAUSIBLE[0] <= sizes.min() and sizes.max() <= PLAUSIBLE[1]
    if not likely(voxel * factor) and likely(voxel):
        notes.append(f"the header says {unit}, but its voxels are those of a scan in mm; read as mm")
        factor = 1.0
    if len(forms) == 2:
        corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
        apart = np.abs(corners @ (forms["sform"] - forms["qform"])[:3].T).max() * factor
        if apart > NEAR:
            notes.append(f"sform and qform disagree by up to {apart:.1f} mm; the sform is used")
    return RAS_TO_LPS @ np.diag([factor, factor, factor, 1.0]) @ affine, notes

def read_nifti(
    path: Path | str,    # .nii or .nii.gz; what it is shows in its first bytes
) -> Nifti:
    "Read an image of three axes. Further axes must have length 1."
    import nibabel       # for making networks only; Kaggle's image lacks it
    path = Path(path)
    remedy = "Give labels as a NIfTI file, .nii or .nii.gz, with one volume."
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        second = content[:4] in (b"\x1c\2\0\0", b"\0\0\2\x1c")   # length of the header, in either order of bytes
        image = (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_bytes(content)
        values = np.asanyarray(image.dataobj)
    except Exception as e:  # nibabel has a class of its own for each kind of damage
        raise BadLabels(path, f"it cannot be read as NIfTI ({str(e).strip('.') or type(e).__name__})", remedy) from e
    shape = (*values.shape, 1, 1)
    if values.dtype.names or np.iscomplexobj(values) or int(np.prod(shape[3:])) != 1 or 0 in shape:
        raise BadLabels(path, f"it holds {' x '.join(map(str, values.shape))} values of type {values.dtype}, which is "
                        "no single volume", remedy)
    values = values.reshape(shape[:3])
    affine, notes = _affine(path, image.header, values.shape)
    return Nifti(path, values, affine, notes)

# %% [markdown]
# ## Labels are whole numbers
# A tool that computes with labels may store them as 3.0000002. Values in between are probabilities or a picture.

# %%
#| export
def read_labels(
    path: Path | str,    # .nii or .nii.gz
) -> Nifti:              # values of an integer type; 0: no label
    "Read a file of labels."
    found = read_nifti(path)
    if not np.issubdtype(found.values.dtype, np.integer):
        if lost := int(np.isnan(found.values).sum()):
            found.notes.append(f"{lost} voxels are not a number; taken as no label")
        values = np.nan_to_num(found.values)
        whole = np.rint(values)
        if np.abs(whole - values).max() > 0.01:
            raise BadLabels(path, "its values are no whole numbers, so they are no labels",
                            "Give the labels, not probabilities or the scan itself.")
        found.values = whole.astype(np.int32)
    return found

# %% [markdown]
# ## On the grid of a series
# Each pixel of a slice has a place in the patient. The label is that of the voxel in which the place lies. Every slice
# has its own position, so a tilted gantry, a gap and uneven steps need no special care. Places that lie midway between
# two voxels all go to the same side, whatever their last digits.

# %%
#| export
MIDWAY = 1e-3   # voxels, by which the border between two of them is shifted

def axes_of(
    s: Slice,            # with position, orientation and spacing
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # first pixel, mm; steps to the next row and to the next column, mm
    "The place of a slice, LPS."
    row, column = np.array(s.orientation[:3]), np.array(s.orientation[3:])
    return np.array(s.position, float), column * s.spacing[0], row * s.spacing[1]

def on_grid(
    labels: Nifti,
    slices: list[Slice], # of one volume, in order
) -> np.ndarray:         # (slices, rows, columns), the type of the labels; 0 outside of the file
    "Labels on the grid of a series."
    inverse = np.linalg.inv(labels.affine)
    result = np.zeros((len(slices), slices[0].rows, slices[0].columns), labels.values.dtype)
    for picture, s in zip(result, slices):
        start, down, across = axes_of(s)
        inside, index = True, []
        for axis, length in zip(inverse[:3], labels.values.shape):
            at = (axis[:3] @ start + axis[3] + (axis[:3] @ down) * np.arange(s.rows)[:, None]
                  + (axis[:3] @ across) * np.arange(s.columns))
            at = np.floor(at + (0.5 - MIDWAY)).astype(np.int64)
            inside = inside & (at >= 0) & (at < length)
            index.append(at)
        picture[inside] = labels.values[tuple(at[inside] for at in index)]
    return result

# %% [markdown]
# A drawn series of an oblique stack, and a ball of labels that is stored with permuted and reversed axes and a turned
# affine. The labels come out where the ball is.

# %%
def drawn(n, centre, tilt=0.3, step=4.0, pixel=3.0):
    "Slices of a tilted stack around a place."
    c, s = np.cos(tilt), np.sin(tilt)
    orientation = (1.0, 0.0, 0.0, 0.0, c, -s)
    start = np.array(centre) - pixel * (size - 1) / 2 * np.array([1, c, -s])
    return [Slice(f"{i}.dcm", 0, size, size, series="1.2", position=tuple(start + (0, 0, (i - n // 2) * step)),
                  orientation=orientation, spacing=(pixel, pixel)) for i in range(n)]

affine = np.array([[0, 1.2, -1.6, 40], [0, -1.6, -1.2, 100], [-2.5, 0, 0, 60], [0, 0, 0, 1.0]])   # RAS
index = np.indices((50, 60, 70)).reshape(3, -1)
ras = affine[:3, :3] @ index + affine[:3, 3:]
middle = affine[:3, :3] @ [25, 30, 35] + affine[:3, 3]
shape = (np.linalg.norm((ras - middle[:, None]).T / (30, 20, 25), axis=1) < 1).reshape(50, 60, 70).astype(np.uint8)
scratch = Path(tempfile.mkdtemp())
nibabel.save(nibabel.Nifti1Image(shape, affine), scratch / "ball.nii.gz")
slices = drawn(21, middle * (-1, -1, 1))
mask = on_grid(read_labels(scratch / "ball.nii.gz"), slices)
fig, axes = plt.subplots(1, 7, figsize=(10, 1.7))
for ax, picture in zip(axes, mask[::3]):
    ax.imshow(picture)
    ax.axis("off")
assert abs(mask.sum() * 9 * 4 * np.cos(0.3) / (4 / 3 * np.pi * 30 * 20 * 25) - 1) < 0.02  # volume of an ellipsoid, mm³

# %% [markdown]
# ## Which series
# Of several series in a folder the labels belong to the one that covers most of them. Where two cover them alike, it
# is the one whose voxels lie nearest to theirs and are most like them in size.

# %%
#| export
SAMPLE = 100_000   # labelled voxels that are looked up

def is_placed(
    volume: Volume,
) -> bool:
    "Whether all slices of a volume have a position and a pixel spacing."
    return all(s.position is not None and s.spacing for s in volume.slices)

def fit_of(
    labels: Nifti,
    slices: list[Slice],       # of one volume, in order
) -> tuple[float, float]:      # share of the labelled voxels that it covers; how far its grid is from theirs, mm
    "How well labels fit a series. An empty file is compared by all of its voxels."
    at = np.argwhere(labels.values) if labels.values.any() else np.argwhere(np.ones(labels.values.shape, bool))
    at = at[:: -(-len(at) // SAMPLE)] @ labels.affine[:3, :3].T + labels.affine[:3, 3]
    normal = normal_of(np.mean([s.orientation for s in slices], axis=0))
    places, along = np.array([s.position for s in slices]) @ normal, at @ normal
    nearest = np.searchsorted((places[1:] + places[:-1]) / 2, along)
    gap = float(np.median(np.diff(places))) if len(places) > 1 else slices[0].thickness or 1.0
    off = [along - places[nearest]]
    inside = np.abs(off[0]) <= gap * (0.5 + MIDWAY)
    starts, downs, acrosses = (np.array(v) for v in zip(*map(axes_of, slices)))
    from_start = at - starts[nearest]
    for steps, count in ((downs, slices[0].rows), (acrosses, slices[0].columns)):
        length = np.linalg.norm(steps[0])
        index = np.einsum("ni,ni->n", from_start, steps[nearest]) / length**2
        inside &= (index >= -0.5 - MIDWAY) & (index <= count - 0.5 + MIDWAY)
        off.append((index - np.rint(index)) * length)
    if not inside.any():
        return 0.0, np.inf
    sizes = np.cbrt([gap * np.prod(slices[0].spacing), abs(np.linalg.det(labels.affine[:3, :3]))])
    return float(inside.mean()), float(np.linalg.norm(np.array(off)[:, inside], axis=0).mean() + np.ptp(sizes))

def fitting(
    labels: Nifti,
    volumes: list[Volume],
) -> tuple[Volume, float]:  # the series, and the share of the labelled voxels that it covers
    "The series to which labels belong. BadLabels if they lie in none."
    placed = [v for v in volumes if is_placed(v)]
    if not placed:
        raise BadLabels(labels.path, "no series has positions, so nothing can be compared with it",
                        "Give slices with ImagePositionPatient (0020,0032) and PixelSpacing (0028,0030).")
    found = [(round(share, 2), -away, i) for i, v in enumerate(placed) for share, away in [fit_of(labels, v.slices)]]
    share, _, best = max(found)
    volume = placed[best]
    if not any(np.isfinite(f[1]) for f in found) or labels.values.any() and not on_grid(labels, volume.slices).any():
        raise BadLabels(labels.path, "none of its labels lies in a series of the folder",
                        "Give the labels of this scan, with the affine of the scan that was labelled.")
    return volume, share

# %%
others = [replace(s, position=tuple(np.array(s.position) + (0, 9, 30)), series="1.3", notes=[]) for s in slices]
volumes, _ = arrange(slices + others)
found, share = fitting(read_labels(scratch / "ball.nii.gz"), volumes)
assert found.name == "1.2" and share == 1

# %% [markdown]
# ## A table of labels
# Each label with its number of voxels and its centre, on the grid of the series.

# %%
#| export
LABELS = ["label", "voxels", "x_mm", "y_mm", "z_mm"]

def measured(
    mask: np.ndarray,      # (slices, rows, columns)
    slices: list[Slice],   # of the same grid
) -> pd.DataFrame:         # LABELS; centres in LPS
    "Number of voxels and centre of each label."
    counts, sums = {}, {}
    for picture, s in zip(mask, slices):
        start, down, across = axes_of(s)
        for label in np.unique(picture[picture != 0]).tolist():
            rows, columns = np.nonzero(picture == label)
            counts[label] = counts.get(label, 0) + len(rows)
            sums[label] = sums.get(label, 0) + len(rows) * start + rows.sum() * down + columns.sum() * across
    rows = [[label, counts[label], *np.round(sums[label] / counts[label], 3)] for label in sorted(counts)]
    return pd.DataFrame(rows, columns=LABELS).astype({"label": int, "voxels": int})

def write_labels(
    path: Path | str,      # .nii or .nii.gz
    volumes: list[Volume], # of the folder
    output: Path | str,    # labels.csv goes here
) -> pd.DataFrame:         # LABELS
    "Bring a file of labels to the grid of its series, write labels.csv and say what was found."
    table = Path(output) / "labels.csv"
    table.unlink(missing_ok=True)
    labels = read_labels(path)
    volume, share = fitting(labels, volumes)
    found = measured(on_grid(labels, volume.slices), volume.slices)
    write_csv(table, found)
    notes = labels.notes + ([f"{1 - share:.0%} of the labelled voxels lie outside of it"] if share < 0.995 else [])
    note = f" ({'; '.join(notes)})" if notes else ""
    print(f"{labels.path.name}: {len(found)} labels on the grid of {volume.name}{note} -> {table}")
    return found

# %%
found = write_labels(scratch / "ball.nii.gz", volumes, scratch)
assert np.abs(found[["x_mm", "y_mm", "z_mm"]].to_numpy()[0] - middle * (-1, -1, 1)).max() < 1
found

# %% [markdown]
# ## A scan from a NIfTI file
# Some data sets have the scan itself as NIfTI. Its axes are turned so that slices run to the head, rows to the back and
# columns to the left, as nearly as they can without resampling, and its slices then say where they are.

# %%
#| export
def as_series(
    image: Nifti,
) -> tuple[np.ndarray, list[Slice]]:  # (slices, rows, columns), the type of the image; one Slice a slice
    "A NIfTI image as an axial series."
    direction = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    order, free = [], [0, 1, 2]
    for axis in (2, 1, 0):                                     # slices first: z, then y, then x
        order.append(max(free, key=lambda k: abs(direction[axis, k])))
        free.remove(order[-1])
    affine, values = image.affine[:, [*order, 3]].copy(), image.values.transpose(order)
    for k, axis in enumerate((2, 1, 0)):
        if affine[axis, k] < 0:
            values = np.flip(values, k)
            affine[:3, 3] += affine[:3, k] * (values.shape[k] - 1)
            affine[:3, k] *= -1
    step = np.linalg.norm(affine[:3, :3], axis=0)
    orientation = tuple((affine[:3, [2, 1]] / step[[2, 1]]).T.ravel().tolist())
    return values, [Slice(image.path.name, k + 1, *values.shape[1:], series=image.path.name, orientation=orientation,
                          position=tuple((affine[:3, 3] + k * affine[:3, 0]).tolist()), spacing=(step[1], step[2]))
                    for k in range(len(values))]

# %%
ball, places = as_series(read_nifti(scratch / "ball.nii.gz"))
assert np.array_equal(on_grid(read_labels(scratch / "ball.nii.gz"), places), ball) and ball.shape == (50, 60, 70)
[round(v, 3) for v in places[0].orientation]

# %% [markdown]
# ---
# [← Train](48_train.py) · [Running networks →](50_running.py)

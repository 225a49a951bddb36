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
# # Scanners
# > Series in space, the noise of a picture, and the files that are written: DICOM slices and NIfTI segmentations.
#
# A patient has one or two series, in two phases after the injection of contrast. They start at other heights and have
# other numbers of slices. In some the instance numbers run from feet to head, and in a few the series ends in the
# middle of an organ.

# %%
#| default_exp trauma.drawing.scanners

# %% tags=["parameters"]
size = 96    # rows and columns of the pictures below
seed = 3     # of the drawn body

# %%
#| export
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from mammo_nb.core.files import replacing
from mammo_nb.trauma.drawing.body import Grid

# %%
#| hide
import tempfile
from dataclasses import asdict

import matplotlib.pyplot as plt
import nibabel
import pandas as pd

from mammo_nb.core.dicom import read_frames
from mammo_nb.core.hu import to_hu
from mammo_nb.trauma.drawing.body import PHASES, draw_body
from mammo_nb.trauma.drawing.organs import draw_organs, label_map

# %% [markdown]
# ## Kinds of files
# Most files of the real data set have 16 bits and a sign. In some only 12 of 16 bits are stored and the sign is not
# extended, so that a reader who takes the words as they are sees air as bright. The window of the header differs too.

# %%
#| export
@dataclass(frozen=True)
class Scanner:
    "How a scanner writes its files."
    name: str
    share: int              # number of patients, out of 12
    bits: int               # BitsStored
    signed: bool            # PixelRepresentation
    intercept: int          # HU
    window: tuple           # center, width

SCANNERS = (
    Scanner("16 bits, signed", 4, 16, True, -1024, (50, 400)),
    Scanner("12 bits, unsigned", 3, 12, False, -1024, (40, 400)),
    Scanner("12 bits, signed, sign not extended", 2, 12, True, 0, (60, 360)),
    Scanner("16 bits, signed, intercept 0", 2, 16, True, 0, (40, 350)),
    Scanner("16 bits, unsigned", 1, 16, False, -1024, (50, 450)),
)

def stored_values(
    hu: np.ndarray,         # float32, HU
    scanner: Scanner,
) -> np.ndarray:            # int16 or uint16 of the same shape
    "HU as the values that a scanner stores."
    values = np.round(hu).astype(np.int32) - scanner.intercept
    if not scanner.signed:
        return np.clip(values, 0, 2**scanner.bits - 1).astype(np.uint16)
    values = np.clip(values, -(2 ** (scanner.bits - 1)), 2 ** (scanner.bits - 1) - 1)
    return (values & (2**scanner.bits - 1)).astype(np.uint16).view(np.int16)  # higher bits stay 0

# %%
pd.DataFrame([asdict(s) for s in SCANNERS]).set_index("name")

# %% [markdown]
# ## Slices in space

# %%
#| export
@dataclass(frozen=True)
class Series:
    "The geometry of one series."
    first: tuple             # x, y of the first pixel, mm
    spacing: float           # of pixels, mm
    levels: tuple            # z of the slices, mm, ascending
    instances: tuple         # instance number of each slice
    incomplete: bool         # whether it ends in the middle of an organ

    @property
    def gap(self) -> float:  # mm
        "Distance between slices."
        return self.levels[1] - self.levels[0] if len(self.levels) > 1 else 5.0

def draw_series(
    rng: np.random.Generator,
    count: int,              # slices
    size: int,               # rows and columns
    width: float,            # half the width of the body, mm
    incomplete: bool,
) -> Series:
    "Lay slices through a body, from the pelvis to the lungs."
    low, high = rng.uniform(-190, -160), rng.uniform(142, 165)
    if incomplete:
        low, high = (rng.uniform(-20, 20), high) if rng.random() < 0.5 else (low, rng.uniform(50, 80))
    gap = round(float((high - low) / count), 4)
    levels = np.round(low + gap * np.arange(count), 4)
    spacing = round(float(rng.uniform(2.15, 2.4) * width / size), 6)
    first = tuple(np.round(rng.normal(0, 5, 2) - spacing * (size - 1) / 2, 4).tolist())
    start = int(rng.integers(1, 40)) if rng.random() < 0.5 else 1
    numbers = np.arange(start, start + count)[::1 if rng.random() < 0.25 else -1]  # mostly from head to feet
    return Series(first, spacing, tuple(levels.tolist()), tuple(numbers.tolist()), incomplete)

# %% [markdown]
# ## What a scanner adds
# Noise with a standard deviation of 8 to 14 HU, which is finer than any injury, and the table below the body.

# %%
#| export
def expose(
    rng: np.random.Generator,
    hu: np.ndarray,          # float32 (slices, rows, columns), changed in place
    g: Grid,
    noise: float,            # standard deviation, HU
    table: float,            # y of the table, mm
):
    "Add the table and noise."
    d = np.abs(g.y - table + 0.0016 * g.x**2) - 1.5
    hu += np.where((hu < -900) & (d < g.edge / 2), np.float32(820), np.float32(0))
    for picture in hu:
        grain = cv2.GaussianBlur(rng.standard_normal(picture.shape, dtype=np.float32), (3, 3), 0.5)
        picture += grain * np.float32(noise / 0.66) * np.where(picture < -900, np.float32(0.5), np.float32(1))

# %% [markdown]
# ## One DICOM file
# Patients, series and instances are numbers, as in the competition. A series may lack optional tags.

# %%
#| export
OPTIONAL = ("SliceThickness", "WindowCenter", "PatientPosition", "KVP", "SOPClassUID")  # tags that may be missing
ROOT = "1.2.826.0.1.3680043.8.498"  # of the identifiers

def write_dicom(
    path: Path,              # the file to write, <instance>.dcm
    pixels: np.ndarray,      # stored values, int16 or uint16 (rows, columns)
    *,
    scanner: Scanner,
    series: Series,
    number: int,             # of the slice in `series.levels`
    patient: int,            # PatientID
    name: int,               # of the series
    missing: tuple = (),     # some of OPTIONAL
):
    "Write one slice. The file is whole or absent."
    instance, z = series.instances[number], series.levels[number]
    study = f"{ROOT}.{patient}"
    uid = f"{study}.{name}.{instance}"
    values = dict(
        SOPClassUID=CTImageStorage, SOPInstanceUID=uid, Modality="CT", PatientID=str(patient), StudyInstanceUID=study,
        SeriesInstanceUID=f"{study}.{name}", SeriesNumber=str(name % 100), InstanceNumber=str(instance), KVP="120",
        PatientPosition="HFS", SliceThickness=f"{series.gap:.4f}",
        ImagePositionPatient=[f"{v:.4f}" for v in (*series.first, z)], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", Rows=pixels.shape[0], Columns=pixels.shape[1],
        PixelSpacing=[f"{series.spacing:.6f}"] * 2, BitsAllocated=16, BitsStored=scanner.bits,
        HighBit=scanner.bits - 1, PixelRepresentation=int(scanner.signed), WindowCenter=str(scanner.window[0]),
        WindowWidth=str(scanner.window[1]), RescaleIntercept=str(scanner.intercept), RescaleSlope="1")
    with config.disable_value_validation():
        d = Dataset()
        for tag, value in values.items():
            if tag not in missing and not (tag == "WindowWidth" and "WindowCenter" in missing):
                setattr(d, tag, value)
        d.PixelData = pixels.tobytes()
        d["PixelData"].VR = "OW"
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID, d.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        d.file_meta.MediaStorageSOPInstanceUID, d.file_meta.ImplementationClassUID = uid, f"{ROOT}.1"
        with replacing(path) as temporary:
            d.save_as(temporary, enforce_file_format=True)

# %% [markdown]
# ## One segmentation
# The competition's NIfTI files have the axes column, row, slice. Columns run to the patient's left, rows to the front,
# and slices to the head, so that the second axis runs against the rows of the DICOM file. The affine says so in RAS.

# %%
#| export
def write_segmentation(
    path: Path,              # the file to write, <series>.nii
    labels: np.ndarray,      # uint8 (slices, rows, columns), slices ascending
    series: Series,
):
    "Write labels in the axes of the competition. The file is whole or absent."
    import nibabel       # for making networks only; Kaggle's image lacks it
    s, last = series.spacing, series.first[1] + series.spacing * (labels.shape[1] - 1)
    affine = np.array([[-s, 0, 0, -series.first[0]], [0, s, 0, -last], [0, 0, series.gap, series.levels[0]],
                       [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(np.ascontiguousarray(labels.transpose(2, 1, 0)[:, ::-1]), affine)
    image.header.set_xyzt_units("mm")
    with replacing(path) as temporary:
        temporary.write_bytes(image.to_bytes())

# %% [markdown]
# ## What came out
# The same slice as each scanner stores it. What is read is what was drawn, within the range that the bits allow.

# %%
scratch, rng = Path(tempfile.mkdtemp()), np.random.default_rng(seed)
body, series = draw_body(rng), draw_series(rng, 40, size, 160, incomplete=False)
grid = Grid.of(series.first, series.spacing, size, series.levels[26:27])
drawn = draw_organs(body, grid, PHASES[0])
hu = drawn.canvas.hu
expose(rng, hu, grid, 11.0, 128.0)
fig, axes = plt.subplots(1, len(SCANNERS) + 1, figsize=(12, 2.2))
for ax, s in zip(axes, SCANNERS):
    write_dicom(scratch / "1.dcm", stored_values(hu[0], s), scanner=s, series=series, number=26, patient=10004,
                name=21057)
    read = to_hu(next(read_frames(scratch / "1.dcm")).decode()).values
    inside = (hu[0] > -1000) & (hu[0] < 2000)
    assert np.abs(read - hu[0])[inside].max() <= 1, s.name
    ax.imshow(read, cmap="gray", vmin=-150, vmax=250)
write_segmentation(scratch / "1.nii", label_map(drawn), series)
stored = np.asarray(nibabel.load(scratch / "1.nii").dataobj)
axes[-1].imshow(stored[:, :, 0], cmap="tab10", vmin=0, vmax=9)     # as stored: columns down, rows against the file's
for ax in axes:
    ax.axis("off")
assert np.array_equal(stored[:, ::-1, 0].T, label_map(drawn)[0])

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

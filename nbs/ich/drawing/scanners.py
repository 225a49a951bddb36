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
# > Slices in space, what a scanner adds to a picture, and the DICOM file that it writes.
#
# The gantry is tilted in most series, so that the slices are parallel to the floor of the skull. Then the table moves
# along another axis than the normal of the slices, and the head wanders through the picture from slice to slice.
# Everything else that differs between scanners is in the numbers of the header.

# %%
#| default_exp ich.drawing.scanners

# %% tags=["parameters"]
size = 128   # rows and columns of the pictures below
seed = 3     # of the drawn head

# %%
#| export
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from mammo_nb.core.files import replacing
from mammo_nb.ich.drawing.face import over
from mammo_nb.ich.drawing.head import Cut, soft

# %%
#| hide
import tempfile
from dataclasses import asdict

import matplotlib.pyplot as plt
import pandas as pd

from mammo_nb.core.dicom import read_frames
from mammo_nb.core.hu import to_hu
from mammo_nb.ich.drawing.face import draw_tissue
from mammo_nb.ich.drawing.head import cut_head, draw_head

# %% [markdown]
# ## Kinds of files
# Nearly all files of the real data set have 16 bits, a sign and an intercept of -1024. The others are rare there, and
# more frequent here, so that a small competition has one of each. Two of them are mistakes that the real data set has:
# negative values under an unsigned header, and padding below every HU.

# %%
#| export
@dataclass(frozen=True)
class Scanner:
    "How a scanner writes its files."
    name: str
    share: int              # number of patients, out of 25
    bits: int               # BitsStored
    signed: bool            # PixelRepresentation
    intercept: int          # HU
    windows: tuple          # ((center, width), ...)
    padding: int | None = None  # HU outside the scan circle; None: air
    named: bool = True      # whether the header names the padding

SCANNERS = (
    Scanner("16 bits, signed", 15, 16, True, -1024, ((40, 80),)),
    Scanner("16 bits, signed, two windows, padding", 3, 16, True, -1024, ((36, 80), (700, 3000)), -3024),
    Scanner("12 bits, unsigned", 2, 12, False, -1024, ((40, 80), (40, 80))),
    Scanner("12 bits, signed, intercept 0", 1, 12, True, 0, ((35, 100),)),
    Scanner("16 bits, intercept 0, padding unnamed", 1, 16, True, 0, ((30, 80),), -2000, False),
    Scanner("12 bits, intercept -1000", 1, 12, False, -1000, ((40, 150),)),
    Scanner("12 bits, sign lost", 1, 12, False, 0, ((40, 80),)),
    Scanner("16 bits, unsigned", 1, 16, False, -1024, ((47, 80), (600, 2800))),
)

def stored_values(
    hu: np.ndarray,     # float32 (rows, columns)
    scanner: Scanner,
) -> np.ndarray:        # int16 or uint16 (rows, columns)
    "HU as the values that a scanner stores."
    values = np.round(hu).astype(np.int32) - scanner.intercept
    if scanner.signed:
        low, high = -2 ** (scanner.bits - 1), 2 ** (scanner.bits - 1) - 1
        return np.clip(values, low, high).astype(np.int16)
    if scanner.intercept == 0:  # the sign is lost: two's complement under an unsigned header
        return (np.clip(values, -1024, 3000) & (2**scanner.bits - 1)).astype(np.uint16)
    return np.clip(values, 0, 2**scanner.bits - 1).astype(np.uint16)

# %%
pd.DataFrame([asdict(s) for s in SCANNERS]).set_index("name")

# %% [markdown]
# ## Slices in space
# The first row of a slice runs to the patient's left, its first column to the back and, by the tilt, down. Places in
# the head are measured along the tilted axes.

# %%
#| export
@dataclass(frozen=True)
class Series:
    "The geometry of one series."
    positions: np.ndarray    # float64 (slices, 3), ImagePositionPatient, mm, from the lowest slice up
    orientation: tuple       # ImageOrientationPatient
    spacing: float           # of pixels, mm
    gap: float               # between slices along their normal, mm
    turn: float              # of the head in the picture, radians
    roll: float              # of the head, as a slope

def draw_series(
    rng: np.random.Generator,
    count: int,              # slices
    size: int,               # rows and columns
    vertex: float,           # height of the skin at the vertex, mm
    tilted: bool,            # whether the gantry is tilted
    follows: bool = False,   # whether the centre of the picture follows the head, against the tilt
) -> Series:
    "Lay slices through a head, the highest one at its vertex."
    tilt = np.radians(np.clip(rng.normal(11, 5), 3, 17)) if tilted else 0.0
    if follows:
        tilt = -abs(tilt or 0.1)
    c, s = np.cos(tilt), np.sin(tilt)
    gap = min(7.5, (vertex + rng.uniform(24, 34)) / count)
    spacing = rng.uniform(228, 250) / size
    levels = vertex - gap * (rng.uniform(0, 0.7) + np.arange(count)[::-1])  # along the normal, mm
    start = -spacing * (size - 1) / 2
    drift = levels if follows else np.full(count, levels.mean())
    y = c * (start + rng.normal(-5, 3)) + drift * s
    z = (levels - y * s) / c
    positions = np.stack([np.full(count, start + rng.normal(0, 3)), y, z], 1)
    return Series(np.round(positions, 6), (1.0, 0.0, 0.0, 0.0, float(c), float(-s)), spacing, gap,
                  rng.normal(0, 0.06), rng.normal(0, 0.025))

def places(
    series: Series,
    number: int,             # of the slice
    size: int,
) -> tuple:                  # x, y, z of the pixels in the head, float32 (size, size), and z of the middle, mm
    "Where the pixels of a slice are in the head."
    column = np.array(series.orientation[3:])
    normal = np.cross(series.orientation[:3], column)
    at = series.positions[number]
    steps = np.arange(size, dtype=np.float32) * np.float32(series.spacing)
    x, y = np.meshgrid(np.float32(at[0]) + steps, np.float32(at @ column) + steps)
    level = float(at @ normal)
    t, u = np.float32(np.cos(series.turn)), np.float32(np.sin(series.turn))
    x, y = t * x - u * y, u * x + t * y
    return x, y, np.float32(level) + np.float32(series.roll) * x, level

def head_box(
    x: np.ndarray,           # mm
    y: np.ndarray,
    level: float,            # mm
) -> tuple:                  # two slices: rows and columns
    "The part of a picture in which the head is."
    ahead, wide = (126, 100) if level < 50 else (106, 92)
    inside = (y > -ahead) & (y < 116) & (np.abs(x) < wide)
    return tuple(slice(int(hit[0]), int(hit[-1]) + 1) for hit in (np.flatnonzero(inside.any(a)) for a in (1, 0)))

# %% [markdown]
# ## What a scanner adds
# Quantum noise, weak blotches, dark bands and streaks between dense bones, and the headrest below the head. The noise
# has a standard deviation of 3 to 5 HU, so that a faint hemorrhage is at the limit of what one slice can show.

# %%
#| export
def expose(
    rng: np.random.Generator,
    hu: np.ndarray,          # float32 (size, size), without noise; changed in place
    box: tuple,              # two slices: the rows and columns with the head
    c: Cut,                  # of this box
    noise: float,            # standard deviation, HU
):
    "Add beam hardening and noise to a drawn slice."
    head = hu[box]
    inside = soft(c.skin, 4)
    dense = min(float((head > 700).mean()) * 8, 1.0)
    low = float(np.exp(-((c.level - 14) / 13) ** 2))
    band = rng.normal(0, 1.1, (8, 8)).astype(np.float32)
    band = cv2.resize(band, head.shape[::-1], interpolation=cv2.INTER_CUBIC)
    if low > 0.05:
        band -= 9 * low * np.exp(-((c.y - 12) / 7) ** 2) * soft(np.abs(c.x) - 34, 12)
    for _ in range(rng.poisson(5 * low + 0.25 * dense)):       # streaks from the petrous bones and other dense parts
        angle = rng.normal(0, 0.35) + (rng.random() < 0.2) * rng.uniform(-1.5, 1.5)
        side, wide = int(rng.choice([-1, 1])), rng.uniform(1.2, 3.5)
        off = (c.y - rng.uniform(2, 24)) * float(np.cos(angle)) - (c.x - side * 40) * float(np.sin(angle))
        band += rng.normal(0, 4 + 5 * low) * np.exp(-(off / wide) ** 2)
    grain = cv2.GaussianBlur(rng.standard_normal(hu.shape, dtype=np.float32), (3, 3), 0.55) * np.float32(noise / 0.62)
    grain[box] *= 1 + (0.9 * low + 0.8) * inside
    hu += 0.5 * grain
    head += band * inside

def headrest(
    x: np.ndarray,           # mm, in the picture, not turned with the head
    y: np.ndarray,
    hu: np.ndarray,          # changed in place
    edge: float,             # width of an edge, mm
    curve: float,            # radius of the rest, mm
    deep: float,             # y of its lowest point, mm
):
    "A shell of carbon fibre that opens upwards. It is brighter at its sides."
    around = np.hypot(x, y - (deep - curve)) - curve
    shell = np.maximum(np.abs(around) - 1.2, deep - 95 - y)
    side = np.maximum(shell, 52 - np.abs(x))
    over(hu, -250, soft(shell, edge) * 0.8)
    over(hu, 260, soft(side, edge))

# %% [markdown]
# ## One DICOM file
# Identifiers look as in the competition: `ID_` and hexadecimal digits, which are no legal UIDs. Instance numbers and
# file names say nothing about the order. A series may lack optional tags.

# %%
#| export
OPTIONAL = ("StudyID", "InstanceNumber", "SliceThickness", "WindowCenter", "SOPClassUID")  # tags that may be missing

def write_dicom(
    path: Path,              # the file to write
    pixels: np.ndarray,      # stored values, int16 or uint16 (rows, columns)
    *,
    scanner: Scanner,
    series: Series,
    number: int,             # of the slice
    ids: dict,               # patient, study, series, image
    instance: int,           # InstanceNumber
    missing: tuple = (),     # some of OPTIONAL
):
    "Write one slice. The file is whole or absent."
    values = dict(
        SOPClassUID=CTImageStorage, SOPInstanceUID=ids["image"], Modality="CT", PatientID=ids["patient"],
        StudyInstanceUID=ids["study"], SeriesInstanceUID=ids["series"], StudyID="", InstanceNumber=str(instance),
        SliceThickness=f"{series.gap:.4f}", ImagePositionPatient=[f"{p:.6f}" for p in series.positions[number]],
        ImageOrientationPatient=[f"{o:.6f}" for o in series.orientation], SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2", Rows=pixels.shape[0], Columns=pixels.shape[1],
        PixelSpacing=[f"{series.spacing:.6f}"] * 2, BitsAllocated=16, BitsStored=scanner.bits,
        HighBit=scanner.bits - 1, PixelRepresentation=int(scanner.signed),
        RescaleIntercept=str(scanner.intercept), RescaleSlope="1")
    centers, widths = zip(*scanner.windows)
    values["WindowCenter"], values["WindowWidth"] = [[str(v) for v in w] if len(w) > 1 else str(w[0])
                                                     for w in (centers, widths)]
    with config.disable_value_validation():  # the identifiers are no legal UIDs
        d = Dataset()
        for name, value in values.items():
            if name not in missing and not (name == "WindowWidth" and "WindowCenter" in missing):
                setattr(d, name, value)
        if scanner.padding is not None and scanner.named:
            d.add_new("PixelPaddingValue", "SS" if scanner.signed else "US", scanner.padding - scanner.intercept)
        d.PixelData = (pixels if scanner.bits == 16 or not scanner.signed else pixels & 0xFFF).astype("<i2" if
                       scanner.signed else "<u2").tobytes()
        d["PixelData"].VR = "OW"
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID, d.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        d.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[ids["image"]])
        d.file_meta.ImplementationClassUID = generate_uid(entropy_srcs=["mammo_nb"])
        d.file_meta.ImplementationVersionName = "MAMMO_NB"
        with replacing(path) as temporary:
            d.save_as(temporary, enforce_file_format=True)

# %% [markdown]
# ## What came out
# The same slice as each scanner stores it. What is read is what was drawn, within the range that the bits allow.

# %%
scratch, rng = Path(tempfile.mkdtemp()), np.random.default_rng(seed)
head, series = draw_head(rng), draw_series(rng, 26, size, 132.0, tilted=True)
x, y, z, level = places(series, 14, size)
box, hu = head_box(x, y, level), np.full((size, size), -1000, np.float32)
c = cut_head(head, x[box], y[box], z[box], level, 2.0)
hu[box] = draw_tissue(head, c)[0]
headrest(x, y, hu, 2.0, 120.0, 112.0)
expose(rng, hu, box, c, 4.0)
fig, axes = plt.subplots(1, len(SCANNERS), figsize=(12, 2))
for ax, s in zip(axes, SCANNERS):
    write_dicom(scratch / "one.dcm", stored_values(hu, s), scanner=s, series=series, number=14, instance=3,
                ids=dict(patient="ID_0a", study="ID_0b", series="ID_0c", image="ID_0d"))
    read = to_hu(next(read_frames(scratch / "one.dcm")).decode()).values
    inside = (hu > -1000) & (hu < 2000)
    assert np.abs(read - hu)[inside].max() <= 1, s.name
    ax.imshow(read, cmap="gray", vmin=0, vmax=80)
    ax.axis("off")

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

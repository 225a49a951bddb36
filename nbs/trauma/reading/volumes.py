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
# # Volumes
# > A folder of slices becomes one file of grey levels in the order of the patient, without ever being in memory.
#
# A series may have a thousand slices. Each file is decoded once, and its grey levels are written. The order is known
# when the positions of all slices are known, and then the levels are put together slice by slice.

# %%
#| default_exp trauma.reading.volumes

# %%
#| export
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_nb.core.dicom import Image, read_frame
from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import replacing, short_hash
from mammo_nb.core.geometry import Slice
from mammo_nb.core.headers import NotDicom
from mammo_nb.core.hu import Hounsfield, to_hu
from mammo_nb.core.series import SERIES, SLICES, read_series, tables_of
from mammo_nb.core.volumes import Volume
from mammo_nb.trauma.reading.competition import by_number
from mammo_nb.trauma.reading.levels import slice_levels

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

# %% tags=["parameters"]
slices = 12   # of the drawn series

# %%
#| export
class NoSeries(ProjectError):
    "A folder of images in which no slice can be read."

# %% [markdown]
# ## One slice
# The levels of a slice wait in a file of their own until its place is known.

# %%
#| export
def _waiting(folder: Path, found: Slice) -> Path:
    "Where the levels of a slice wait."
    return folder / f"{short_hash(found.name)}.npy"

def write_levels(
    found: Slice,
    image: Image,
    hounsfield: Hounsfield,
    folder: Path,         # where the levels wait
    window: str,          # ours or theo
    faithful: bool,
) -> dict:                # whether the values were corrected by 1024
    "Write the levels of a slice while its file is open."
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(_waiting(folder, found)) as temporary:
        np.save(temporary, slice_levels(image, window, faithful, hounsfield.values))
    return {"offset": bool(hounsfield.offset)}

def levels_of(
    found: Slice,
    images: Path,      # the folder that its file is in
    folder: Path,      # where the levels wait
    window: str,       # as for `write_levels`
    faithful: bool,
    file: str = "",    # its file, where the name in `found` is a digest
) -> np.ndarray:       # uint8 (rows, columns)
    "The levels of a slice; computed again if the other slices show that its values are HU + 1024."
    if not found.offset or found.more["offset"] or faithful:
        return np.load(_waiting(folder, found))
    image = read_frame(images / (file or found.file), found.frame - 1 if found.frame else None).decode()
    return slice_levels(image, window, hu=to_hu(image, offset=True).values)

# %% [markdown]
# ## One file
# The order is that of the positions along the normal. The original orders by the number in the file's name.

# %%
#| export
def instance_of(
    found: Slice,
) -> str:          # number of the file, or of the frame in a multi-frame file
    "The number by which the competition's tables name a slice."
    return str(found.frame) if found.frame else Path(found.file).stem

def write_volume(
    path: Path,            # .npy, uint8 (slices, rows, columns)
    slices: list[Slice],   # of one size, in order
    levels,                # function of a slice -> uint8 (rows, columns)
):
    "Write a volume slice by slice."
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(slices), slices[0].rows, slices[0].columns)}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_2_0(file, header)
        for found in slices:
            file.write(np.ascontiguousarray(levels(found)).tobytes())

# %% [markdown]
# ## One series
# A folder of the competition is one series. If its slices form several volumes, for they have other sizes or other
# orientations, the largest axial one is used, and the others get a note.

# %%
#| export
OTHER = "not in the largest axial volume of its series; left out"

def _rows(volumes: list[Volume], rest: pd.DataFrame, used: list[Slice]) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Tables of slices and series; `place` and `instance` of the slices that are used."
    table, series = tables_of(volumes, rest)
    found = [s for v in volumes for s in v.slices] + [s for s in rest["slice"] if s is not None]
    of = {(s.file, str(s.frame or "")): s for s in found}
    places = {id(s): k for k, s in enumerate(used)}
    rows = [of.get((file, str(frame))) for file, frame in zip(table["file"], table["frame"])]
    table["instance"] = [instance_of(s) if s else Path(f).stem for s, f in zip(rows, table["file"])]
    table["place"] = [places.get(id(s), "") for s in rows]
    lost = table["position_mm"].ne("") & table["place"].eq("")
    table.loc[lost, "note"] = [f"{note}; {OTHER}".lstrip("; ") for note in table.loc[lost, "note"]]
    names = [v.name for v in volumes if any(id(s) in places for s in v.slices)]
    series["used"] = series["series"].isin(names).astype(int)
    order = pd.to_numeric(table["place"]).fillna(np.inf)
    return table.iloc[np.argsort(order, kind="stable")].reset_index(drop=True), series

def _faithful_order(volumes: list[Volume], rest: pd.DataFrame) -> list[Slice]:
    "All slices of the most frequent size by the numbers of their files, as the original takes them."
    found = [s for v in volumes for s in v.slices] + [s for s in rest["slice"] if s is not None]
    sizes = pd.Series([(s.rows, s.columns) for s in found]).value_counts()
    return sorted((s for s in found if (s.rows, s.columns) == sizes.index[0]), key=lambda s: by_number(instance_of(s)))

def prepare_series(
    images: Path | str,       # folder of the slices of one series
    path: Path | str,         # .npy of the volume
    window: str = "ours",     # ours or theo
    faithful: bool = False,   # levels and order of the original
    code=None,                # what the levels depend on besides; a change starts anew
) -> tuple[pd.DataFrame, pd.DataFrame]:  # SLICES, instance, place; SERIES, used
    "Write the volume of one series. Raises NoSeries if no slice can be read."
    images, path = Path(images), Path(path)
    waiting = path.with_name(f".{path.stem}")
    waiting.mkdir(parents=True, exist_ok=True)
    each = partial(write_levels, folder=waiting, window=window, faithful=faithful)
    depends, why = {"window": window, "faithful": faithful}, ""
    try:
        volumes, rest = read_series(images, waiting, 1, each, depends, code, label=None)
    except NotDicom as e:
        volumes, why = [], e.problem
    if not volumes:
        shutil.rmtree(waiting)
        why = why or next((r for r in [*rest["error"], *rest["note"]] if r), "no files")
        raise NoSeries(f"No slice of {images} can be read: {why}. Fetch the series again or leave it out.")
    used = _faithful_order(volumes, rest) if faithful else max(
        volumes, key=lambda v: (v.plane.startswith("axial"), len(v.slices))).slices
    write_volume(path, used, lambda s: levels_of(s, images, waiting, window, faithful))
    tables = _rows(volumes, rest, used)
    shutil.rmtree(waiting)
    return tables

# %% [markdown]
# ## What came out
# A drawn series from head to feet in files whose numbers run the other way. One file is cut short, and one is a
# coronal reformat. The table says so, and the volume is in the order of the patient.

# %%
def write_slice(path, hu, position, orientation=(1, 0, 0, 0, 1, 0)):
    "A CT file."
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for name, value in dict(
            SOPClassUID="1.2.840.10008.5.1.4.1.1.2", SOPInstanceUID=f"1.2.{path.stem}", PatientID="7", Modality="CT",
            StudyInstanceUID="1.2", SeriesInstanceUID="1.2.3", ImagePositionPatient=list(position),
            ImageOrientationPatient=list(orientation), PixelSpacing=[4, 4], Rows=hu.shape[0], Columns=hu.shape[1],
            SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=16, BitsStored=16, HighBit=15,
            PixelRepresentation=1, RescaleSlope=1, RescaleIntercept=0, PixelData=hu.astype("<i2").tobytes()).items():
        setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)

folder = Path(tempfile.mkdtemp())
y, x = np.mgrid[:48, :64]
for k in range(slices):
    liver = np.hypot((x - 20) / (4 + k), (y - 22) / (4 + k)) < 1
    write_slice(folder / f"{slices - k}.dcm", np.select([liver, np.hypot((x - 32) / 30, (y - 24) / 20) < 1],
                                                        [110, 20], -1000), (0, 0, 5.0 * k))
write_slice(folder / "90.dcm", np.full((48, 64), 20), (0, 0, 0), (1, 0, 0, 0, 0, -1))
(folder / "91.dcm").write_bytes((folder / "2.dcm").read_bytes()[:-500])
table, series = prepare_series(folder, folder / "out" / "7_1.npy")
volume = np.load(folder / "out" / "7_1.npy", mmap_mode="r")
assert volume.shape == (slices, 48, 64) and not list((folder / "out").glob(".*"))
assert table["instance"].tolist()[:slices] == [str(slices - k) for k in range(slices)]
share = (np.asarray(volume) > 200).mean((1, 2))
assert (np.diff(share) > 0).all(), "the liver grows from slice to slice"
table[["instance", "place", "position_mm", "error", "note"]].tail(4)

# %%
fig, axes = plt.subplots(1, slices, figsize=(12, 1.1))
for ax, picture in zip(axes, volume):
    ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
    ax.axis("off")

# %%
try:
    prepare_series(Path(tempfile.mkdtemp()), folder / "out" / "none.npy")
except NoSeries as e:
    print(type(e).__name__, str(e).split(":")[-1])
assert set(SLICES) < set(table) and set(SERIES) < set(series) and series["used"].tolist().count(1) == 1

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

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
# # Series
# > A folder of files becomes two tables: every slice in the order of the patient, and one row a series.
#
# Each file is opened once, in parallel: its header is read, its pixels are decoded, and the mean HU is kept. Then
# `core/volumes` arranges the headers. The tables name every file of the folder: a slice has a place, a file that failed
# has an error, and everything else has a note.

# %%
#| default_exp core.series

# %%
#| export
import hashlib
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_nb.core.dicom import ENDINGS, Frame, folder_of, read_frame, read_frames
from mammo_nb.core.errors import safe_cells
from mammo_nb.core.files import open_file, walk, write_csv
from mammo_nb.core.geometry import Slice
from mammo_nb.core.headers import BadHeader, Header, NotDicom, NotImage
from mammo_nb.core.hu import OFFSET, SHIFTED, to_hu
from mammo_nb.core.parallel import map_files
from mammo_nb.core.processes import quiet
from mammo_nb.core.settings import hidden_id
from mammo_nb.core.volumes import Volume, arrange

# %%
#| hide
import shutil
import tempfile

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from mammo_nb.core.pictures import sheet
from mammo_nb.core.windows import linear

# %% tags=["parameters"]
folder = ""           # a folder with DICOM series; "" draws one
output = ""           # slices.csv and series.csv go here; "" is a temporary folder
n_slices = 12         # slices drawn
tilt = 12.0           # gantry tilt of the drawn series, degrees

# %% [markdown]
# ## Files to read
# A head of ellipsoids: skull, brain, ventricles and a bleeding, cut by a tilted gantry every 5 mm. The file names are
# in random order, the instance numbers run from head to feet, one file exists twice, and one is cut short.

# %%
def head(z, size=96):
    "HU of a slice at z mm, (size, size)."
    y, x = (np.mgrid[:size, :size] / size - .5) * 200
    ball = lambda a, b, c, at=(0, 0, 0): ((x - at[0]) / a)**2 + ((y - at[1]) / b)**2 + ((z - at[2]) / c)**2 < 1
    hu = np.select([ball(8, 24, 14), ball(12, 12, 12, (30, -20, 8)), ball(66, 82, 44), ball(72, 88, 50)],
                   [5, 70, 35, 1000], -1000)
    return hu + np.random.default_rng(int(z * 10) + 999).normal(0, 4, hu.shape).astype(int)

def write_slice(path, hu, position, orientation=(1, 0, 0, 0, 1, 0), number=1, **tags):
    "A CT file in 12 bits."
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    base = dict(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", SOPInstanceUID=generate_uid(entropy_srcs=[path.name]),
                PatientID="P1", Modality="CT", StudyInstanceUID="1.2", SeriesInstanceUID="1.2.3", SeriesNumber=2,
                InstanceNumber=number, ImagePositionPatient=[f"{p:.6f}" for p in position],
                ImageOrientationPatient=[f"{o:.7f}" for o in orientation], PixelSpacing=[2, 2], SliceThickness=5,
                Rows=hu.shape[0], Columns=hu.shape[1], SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2",
                BitsAllocated=16, BitsStored=12, HighBit=11, PixelRepresentation=0, RescaleSlope=1,
                RescaleIntercept=-1024, PixelData=np.clip(hu + 1024, 0, 4095).astype("<u2").tobytes())
    for name, value in (base | tags).items():
        setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)

if not folder:
    folder = Path(tempfile.mkdtemp())
    angle = np.radians(tilt)
    names = np.random.default_rng(1).permutation(n_slices)
    for i, name in enumerate(names):
        write_slice(folder / f"IM{name:03d}.dcm", head(i * 5 - 5 * n_slices / 2), (-96, -96, i * 5),
                    (1, 0, 0, 0, np.cos(angle), -np.sin(angle)), number=n_slices - i)
    shutil.copy(folder / "IM002.dcm", folder / "copy of IM002.dcm")
    (folder / "cut.dcm").write_bytes((folder / "IM004.dcm").read_bytes()[:-4000])
    (folder / "report.txt").write_text("no image")
folder, output = Path(folder), Path(output or tempfile.mkdtemp())

# %% [markdown]
# ## One file
# A file without the DICM mark is read only if it begins like a data set, since pydicom reads any text as some elements.
# Objects without an image, colour pictures and screen captures are no slices and no failures. A file that is named
# `.dcm` and cannot be read is a failure.

# %%
#| export
NO_DICOM = "no DICOM file"
NO_SLICE = {  # beginning of a SOP class UID -> what such an object is
    "1.2.840.10008.5.1.4.1.1.66": "a segmentation, registration or raw data",
    "1.2.840.10008.5.1.4.1.1.481": "an object of radiotherapy",
    "1.2.840.10008.5.1.4.1.1.11": "a presentation state",
}
IMAGE_TYPES = ("ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "AXIAL", "LOCALIZER", "OTHER")  # that tables may show
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture: a picture of a screen, unless it has a position

def _is_dicom(
    path: Path,
) -> bool:
    "Whether a file has the DICM mark, or begins with an element of a low group, or is named like a DICOM file."
    with open_file(path) as f:
        start = f.read(132)
    if start[128:] == b"DICM":
        return True
    plausible = start[:2] in (b"\x02\0", b"\x08\0", b"\0\x08") and len(start) == 132  # group 2 or 8
    return plausible or path.suffix.lower() in ENDINGS and not path.name.startswith("._")

def _reason(
    header: Header,
) -> str:       # '' for a slice
    "Why an image is no slice of a volume."
    for root, what in NO_SLICE.items():
        if header.object_class == root or header.object_class.startswith(root + "."):
            return f"{what} ({header.object_class.name}); no slice"
    if header.object_class.startswith(CAPTURE) and header.position is None:
        return "a screen capture without a position; no slice"
    return ""

def _measured(
    frame: Frame,
    file: str,     # relative to the folder
    each,          # as for `read_slices`
) -> Slice:
    "A slice with its mean HU and the digest of its pixels."
    found = Slice.of(frame.header, file, frame.index + 1 if frame.header.frames > 1 else 0)
    image = frame.decode()
    hounsfield = to_hu(image)
    values = hounsfield.values
    found.mean = round(float(values.mean(dtype=np.float64)), 3)
    found.offset = hounsfield.offset
    found.notes = list(hounsfield.notes)
    if values.min() < values.max():
        found.digest = hashlib.sha1(np.ascontiguousarray(values)).hexdigest()[:16]
    if each:
        found.more = each(found, image, hounsfield)
    return found

def read_slices(
    item: dict,  # root: the folder; file: its name in the tables; path: relative to the folder, if it is not `file`
    each=None,   # function of Slice, Image and Hounsfield -> dict for `Slice.more`; None: nothing more is done
) -> dict:       # slices: fields of each; note: why there are none
    "The slices of one file; DicomError when it should be read and cannot be."
    path = Path(item["root"], item.get("path", item["file"]))
    if not _is_dicom(path):
        return {"slices": [], "note": NO_DICOM}
    slices = []
    try:
        for frame in read_frames(path):
            if reason := _reason(frame.header):
                return {"slices": [], "note": reason}
            slices.append(asdict(_measured(frame, item["file"], each)))
    except NotImage as e:
        return {"slices": [], "note": f"{e.problem}; no slice"}
    except BadHeader as e:
        if e.tag.startswith(("SamplesPerPixel", "PhotometricInterpretation")):
            return {"slices": [], "note": f"{e.problem}; no slice"}
        raise
    return {"slices": slices, "note": ""}

def read_hidden(
    item: dict,  # as for `read_slices`, with `key`
    each=None,
) -> dict:
    "As `read_slices`, with digests in place of ids, and without free text of the header."
    found = read_slices(item, each)
    for s in found["slices"]:
        s |= {name: hidden_id(s[name], item["key"]) for name in ("patient_id", "study", "series", "image_id", "kernel")}
        s["image_type"] = [word for word in s["image_type"] if word in IMAGE_TYPES]
        s["notes"] = [note for note in s["notes"] if note == SHIFTED]
    return found | {"note": found["note"] and "no slice"}

# %%
for name in ("IM004.dcm", "report.txt"):
    if (folder / name).exists():
        found = read_slices({"root": folder, "file": name})
        print(name, found["note"], [(s["mean"], s["position"]) for s in found["slices"]])

# %% [markdown]
# ## Many files
# All files of the folder are read in parallel. A run that is killed continues where it stopped: finished files stand in
# a journal beside the tables, until the tables are written. A system may do more with the pixels of a slice, such as
# write a picture; a file is then still decoded once only.

# %%
#| export
def files_of(
    folder: Path,
    besides: Path,  # the output, which may lie in the folder
) -> list[str]:
    "Every file of a folder to any depth, relative to it, sorted; what cannot be opened is among them."
    out, root, paths = besides.resolve(), folder.resolve(), sorted(walk(folder))
    if out == root:
        own = {"slices.csv", "series.csv", "files.csv.journal", "files.csv"}
        paths = [p for p in paths if p.parent != folder or p.name not in own]
    else:
        paths = [p for p in paths if not Path(os.path.realpath(p)).is_relative_to(out)]
    return [p.relative_to(folder).as_posix() for p in paths]

def names_behind(
    folder: Path,   # or a single file
    besides: Path,
    key: str,       # from `id_key`; "": names are no digests
) -> dict[str, str]:  # digest -> file
    "Find the names of the files of a folder behind their digests."
    files = [Path(folder).name] if Path(folder).is_file() else files_of(Path(folder), Path(besides))
    return {hidden_id(f, key): f for f in files} if key else {}

def _tuples(
    fields: dict,  # of a slice, as JSON holds them
) -> Slice:
    "Rebuild a slice from its fields."
    return Slice(**{name: tuple(v) if isinstance(v, list) and name != "notes" else v for name, v in fields.items()})

def _settle_offset(
    volume: Volume,
):
    "Correct slices that cannot show an offset by themselves, if most others of their volume have it."
    shifted = [s for s in volume.slices if s.offset]
    if not shifted or len(shifted) < sum(s.offset is False for s in volume.slices):
        return
    for s in volume.slices:
        if not s.offset:
            s.mean = round(s.mean - OFFSET, 3)
            s.offset = True
            s.notes.append(SHIFTED)

def read_series(
    folder: Path | str,          # searched to any depth, or a single file
    output: Path | str,          # keeps the journal, so that a later call reads only new and changed files
    workers: int | None = None,  # processes; None: one a core, or this one when there are few files
    each=None,                   # as for `read_slices`
    params=None,                 # what `each` depends on, can be written as JSON; a change starts anew
    code=None,                   # digests of the code, as for `map_files`
    label: str | None = "files",  # text beside the progress bar; None: no bar
    key: str = "",               # from `id_key`: ids and names of files are replaced by digests; "": they stay
) -> tuple[list[Volume], pd.DataFrame]:  # volumes; file, frame, slice, error, note of what is in none
    "Read all files of a folder and arrange their slices."
    scans, folder, output = Path(folder), folder_of(folder), Path(output)
    if not scans.exists():
        raise NotDicom(scans, "no such file or folder", "", "Name a folder with DICOM files, or a file.")
    files = [scans.name] if scans.is_file() else files_of(folder, output)
    if not files:
        raise NotDicom(folder, "no files in it", "", "Name a folder with DICOM files.")
    items = [{"root": str(folder), "file": f} for f in files]
    read_one = partial(read_slices, each=each) if each else read_slices
    if key:
        items = [{**item, "file": hidden_id(f, key), "path": f, "key": key} for item, f in zip(items, files)]
        read_one, params = partial(quiet, partial(read_hidden, each=each)), {"hidden": params}
    table = output / "files.csv"
    read = map_files(read_one, items, table=table, params=params,
                     code=code, reads=lambda item: [Path(item["root"], item.get("path", item["file"]))],
                     workers=workers or (1 if len(files) < 64 else None), label=label)
    table.unlink()
    slices, rest = [], []
    for row in read.itertuples():
        found = row.slices if "slices" in read and isinstance(row.slices, list) else []
        slices += [_tuples(fields) for fields in found]
        if not found:
            note = row.note if "note" in read and isinstance(row.note, str) else ""
            rest.append({"file": row.file, "frame": "", "slice": None, "error": row.error, "note": note})
    volumes, left = arrange(slices)
    for volume in volumes:
        _settle_offset(volume)
    rest += [{"file": s.file, "frame": s.frame or "", "slice": s, "error": "", "note": "; ".join(s.notes)}
             for s in left]
    return volumes, pd.DataFrame(rest, columns=["file", "frame", "slice", "error", "note"])

# %% [markdown]
# ## Two tables
# `slices.csv` has the slices of each series in the order of the patient, then the files that are in none. `series.csv`
# has one row a series.

# %%
#| export
SLICES = ["patient_id", "study", "series", "image_id", "file", "frame", "position_mm", "gap_mm", "rows", "columns",
          "mean_hu", "error", "note"]
SERIES = ["patient_id", "study", "series", "files", "slices", "rows", "columns", "spacing_mm", "row_spacing_mm",
          "column_spacing_mm", "plane", "orientation", "note"]

def _slice_row(
    s: Slice,
    series: str,          # name of its volume
    place: float | None,  # mm
    gap: float | None,    # mm
) -> dict:
    "One row of slices.csv."
    number = lambda value: "" if value is None else round(float(value), 4)
    return {"patient_id": s.patient_id, "study": s.study, "series": series, "image_id": s.image_id, "file": s.file,
            "frame": s.frame or "", "position_mm": number(place), "gap_mm": number(gap), "rows": s.rows,
            "columns": s.columns, "mean_hu": number(s.mean), "error": s.error, "note": "; ".join(s.notes)}

def _series_row(
    v: Volume,
) -> dict:
    "One row of series.csv."
    first = v.slices[0]
    row_spacing, column_spacing = [round(p, 6) for p in first.spacing] if first.spacing else ("", "")
    named = sum(bool(s.notes) for s in v.slices)
    notes = v.notes + ([f"{named} slices have a note in slices.csv"] if named else [])
    return {"patient_id": first.patient_id, "study": first.study, "series": v.name,
            "files": len({s.file for s in v.slices}), "slices": len(v.slices), "rows": first.rows,
            "columns": first.columns, "spacing_mm": "" if v.spacing is None else round(v.spacing, 4),
            "row_spacing_mm": row_spacing, "column_spacing_mm": column_spacing, "plane": v.plane,
            "orientation": " ".join(f"{o:.6g}" for o in first.orientation), "note": "; ".join(notes)}

def tables_of(
    volumes: list[Volume],
    rest: pd.DataFrame,     # from `read_series`
) -> tuple[pd.DataFrame, pd.DataFrame]:  # slices, series
    "The rows of slices.csv and series.csv."
    volumes = sorted(volumes, key=lambda v: (v.slices[0].patient_id, v.slices[0].study,
                                             v.slices[0].series_number or 0, v.name))
    rows = [_slice_row(s, v.name, p, g) for v in volumes for s, p, g in zip(v.slices, v.places, v.gaps)]
    for other in rest.sort_values(["file", "frame"], key=lambda c: c.astype(str)).itertuples():
        if other.slice is not None:
            rows.append(_slice_row(other.slice, other.slice.series, None, None))
        else:
            rows.append({"file": other.file, "error": other.error, "note": other.note})
    slices = pd.DataFrame(rows, columns=SLICES, dtype=object).fillna("")
    return slices, pd.DataFrame([_series_row(v) for v in volumes], columns=SERIES, dtype=object)

def write_tables(
    volumes: list[Volume],
    rest: pd.DataFrame,          # from `read_series`
    output: Path | str,          # slices.csv and series.csv go here
) -> tuple[pd.DataFrame, pd.DataFrame]:  # slices, series
    "Write the two tables."
    slices, series = map(safe_cells, tables_of(volumes, rest))
    write_csv(Path(output) / "slices.csv", slices)
    write_csv(Path(output) / "series.csv", series)
    return slices, series

def write_series(
    folder: Path | str,          # searched to any depth
    output: Path | str,          # slices.csv and series.csv go here
    workers: int | None = None,  # processes; None: one a core, or this one when there are few files
) -> tuple[pd.DataFrame, pd.DataFrame]:  # slices, series
    "Read a folder and write its two tables."
    return write_tables(*read_series(folder, output, workers), output)

def print_series(
    slices: pd.DataFrame,
    series: pd.DataFrame,
    output: Path | str,
) -> int:                 # files that failed
    "Print a line for each series, then the files that are in none."
    notes = slices.groupby("series")["note"].unique()
    for v in series.itertuples():
        uneven = "unevenly spaced" if v.slices > 1 else "alone"
        spacing = uneven if v.spacing_mm == "" else f"every {v.spacing_mm} mm"
        note = f" ({v.note})" if v.note else ""
        print(f"{v.series}: {v.slices} {v.plane} slices of {v.rows} x {v.columns}, {spacing}{note}")
        if len(shared := notes[v.series]) == 1 and shared[0]:  # assumed for the whole series, such as its steps
            print(f"  all of them: {shared[0]}")
    others = slices[slices["position_mm"] == ""]
    failed = int((others["error"] != "").sum())
    for row in others.head(20).itertuples():
        print(f"{'failed' if row.error else 'left out'} {row.file}: {row.error or row.note}")
    if len(others) > 20:
        print(f"... and {len(others) - 20} more files in slices.csv")
    print(f"{len(series)} series of {len(slices) - len(others)} slices; {len(others) - failed} files left out, "
          f"{failed} failed -> {Path(output) / 'slices.csv'}")
    return failed

# %%
slices, series = write_series(folder, output)
print_series(slices, series, output)
slices[["file", "position_mm", "gap_mm", "mean_hu", "error", "note"]]

# %%
series.T

# %% [markdown]
# ## A volume
# The rows of a series are read again as one array of HU, with the corrections that the table names.

# %%
#| export
def read_volume(
    folder: Path | str,    # as given to `write_series`
    rows: pd.DataFrame,    # of one series of slices.csv, in its order
) -> np.ndarray:           # float32 (slices, rows, columns), HU
    "The pixels of a series in the order of the patient."
    volume = []
    for row in rows.itertuples():
        frame = None if row.frame == "" else int(row.frame) - 1
        image = read_frame(Path(folder) / row.file, frame).decode()
        volume.append(to_hu(image, offset=SHIFTED in row.note).values)
    return np.stack(volume)

# %%
name = series["series"].iloc[0]
volume = read_volume(folder, slices[(slices["series"] == name) & (slices["position_mm"] != "")])
assert np.allclose(volume.mean((1, 2)), slices["mean_hu"].iloc[:len(volume)].astype(float), atol=0.01)
brain = [(linear(v, 40, 80) * 255).astype(np.uint8) for v in volume]
sheet(brain, columns=6, title="from feet to head, whatever the files are called; brain window, 40 and 80 HU");

# %% [markdown]
# ---
# [← Volumes](37_volumes.py) · [Stream →](39_stream.py)

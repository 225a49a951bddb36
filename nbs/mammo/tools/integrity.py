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
# # Integrity
# > Whether one file is complete and agrees with the table that names it.
#
# An *error* is a file that cannot be read or does not exist. A *problem* is something that a person should judge: the
# file can be read, but it may spoil a training. Nothing is decoded here unless a file seems damaged, so the check of a
# file takes as long as reading its bytes.

# %%
#| default_exp mammo.tools.integrity

# %%
#| export
import hashlib
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from pydicom.uid import RLELossless

from mammo_nb.core.codestreams import HIGH_THROUGHPUT, JPEG_2000, JPEG_LS, read_codestream
from mammo_nb.core.dicom import ENDINGS, NATIVE, Frame
from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import PathError, inside
from mammo_nb.core.grey import window_fault
from mammo_nb.core.headers import DicomError
from mammo_nb.core.pictures import is_whole
from mammo_nb.core.windows import FUNCTIONS
from mammo_nb.mammo.reading.blank import SMALLEST
from mammo_nb.mammo.reading.frames import several
from mammo_nb.mammo.reading.labels import DatasetError, read_table
from mammo_nb.mammo.reading.mammograms import Mammogram, read_frame, read_header

# %%
#| hide
import tempfile

from mammo_nb.core.dicom import find_files
from mammo_nb.mammo.phantom import make_competition

# %% tags=["parameters"]
folder = ""    # DICOM files, or a competition with its tables; "" makes a small competition

# %%
#| hide
scratch = Path(tempfile.mkdtemp())
truth = make_competition(scratch / "competition", patients=2, test_patients=1, frame=(320, 256), prevalence=.5,
                         seed=2023, workers=1)
folder = Path(folder or scratch / "competition")
files, _ = find_files(folder)

# %%
#| export
class CheckError(ProjectError):
    "Nothing can be checked: there are no files, or a table cannot be used. The text names it and the reason."

class Missing(Exception):
    "A file that a table names does not exist."

# %% [markdown]
# ## One file
# A header can be valid and still spoil a training: a scan for processing has other grey levels, and a burned-in name
# may be recognised by the network. Windows are tested by the rules of [grey](../../core/28_grey.py).

# %%
#| export
def _unusable(header: Mammogram) -> bool:
    "Whether one of the windows cannot be applied, or lies beyond all values that the bits can hold."
    bits = header.bits_stored
    low, high = (-2**(bits - 1), 2**(bits - 1) - 1) if header.signed else (0, 2**bits - 1)
    limits = np.sort([(header.slope or 1) * end + (header.intercept or 0) for end in (low, high)])
    if header.modality_lut is not None:
        limits = header.modality_lut.entries.min(), header.modality_lut.entries.max()
    known = header.voi_function in FUNCTIONS
    return bool(header.windows) and not known or any(
        window_fault(window, header.voi_function, limits) for window in header.windows)

def _header_problems(header: Mammogram) -> list[str]:
    "List the problems of a header. Sides and views are compared with the table in `compare`."
    found = {
        f"multi-frame: {several(header)}": header.frames > 1,
        "no window": bool(header.syntax and not header.windows and not header.voi_luts),
        "a VOI LUT Sequence instead of a window": bool(header.voi_luts) and not header.windows,
        "a Modality LUT Sequence": header.modality_lut is not None,
        "rescaled": (header.slope or 1, header.intercept or 0) != (1, 0),
        "PresentationLUTShape INVERSE": header.presentation == "INVERSE" and header.photometric == "MONOCHROME2",
        "PixelPaddingValue": header.padding is not None,
        f"pixels are {header.aspect:.2f} times as high as wide": header.aspect != 1,
        "window that cannot be used": _unusable(header),
        "for processing, not for presentation": header.intent == "FOR PROCESSING",
        "burned-in annotation": header.burned_in == "YES",
        f"modality {header.modality}": header.modality not in ("", "MG"),
        f"no standard mammogram: {header.special}":
            header.special not in ("", "for processing", header.modality, f"{header.modality} slice"),
        "no PatientID": bool(header.syntax) and not header.patient_id,
        f"BitsStored {header.bits_stored}, HighBit {header.high_bit}": header.high_bit != header.bits_stored - 1
    }
    return [problem for problem, is_so in found.items() if is_so] + list(header.notes)

def _stream_problems(frame: Frame) -> list[str]:
    "List what a JPEG 2000 or JPEG-LS stream says otherwise than the header. It is read as the values say."
    header = frame.header
    coded = read_codestream(frame.data) if header.syntax in JPEG_2000 + HIGH_THROUGHPUT + JPEG_LS else None
    if coded is None:
        return []
    signs = ["unsigned", "signed"]
    found = {
        f"{signs[coded.signed]} pixels, {signs[header.signed]} header":
            header.syntax not in JPEG_LS and coded.signed != header.signed,
        f"{coded.precision} bits in the pixels, BitsStored {header.bits_stored}": coded.precision != header.bits_stored
    }
    return [problem for problem, is_so in found.items() if is_so]

def _frame_problems(frame: Frame) -> list[str]:
    "List the problems of a compressed frame: it contradicts its header, or ends too early."
    header = frame.header
    if header.samples != 1 or not header.photometric.startswith("MONOCHROME"):
        return [f"colour, {header.photometric}"]  # and a decoder must compare the channels
    if not header.syntax:  # PNG or JPEG
        return [] if is_whole(frame.data) else ["no end mark"]
    if header.syntax in NATIVE or header.syntax == RLELossless:
        return []  # native pixels are counted when they are read, and RLE pixels state no size
    coded = read_codestream(frame.data)
    if coded is None:
        return ["pixels do not start like their compression"]
    problems = []
    size, expected = (f"{h.rows} x {h.columns} x {h.samples}" for h in (coded, header))
    if size != expected:
        problems.append(f"{size} in the pixels, {expected} in the header")
    if not coded.complete:
        problems.append("pixels without end marker")
    return problems

# %% [markdown]
# All bytes are read, because this shows whether a file was truncated. A frame that contradicts its header is decoded at
# once, because only a decoder shows whether it can still be read. If two files have the same SOPInstanceUID, one is a
# copy or a mistake. The UID is stored as a digest, for comparison only. If the tag is absent, the header falls back to
# the name of the file. This name is no identity, unless the file is named after its UID.

# %%
#| export
def _identity(header: Mammogram) -> str:
    "Give the SOPInstanceUID; an empty string if there is none."
    named = header.path.suffix.lower() in ENDINGS and header.image_id.count(".") > 2  # such as 1.2.840.10.dcm
    return header.image_id if named or header.image_id != header.path.stem else ""

def _digest(data: bytes) -> str:
    "SHA-256 of some bytes; an empty string for no bytes."
    return hashlib.sha256(data).hexdigest() if data else ""

BARE = 0.5  # bits a pixel below which a compressed frame may be empty; tissue needs two and more without loss

def _is_bare(frame: Frame) -> bool:
    "Whether a frame may show nothing: one value, very few bytes, or very few pixels."
    header, data = frame.header, frame.data
    if min(header.rows, header.columns) < SMALLEST:
        return True
    if header.syntax in NATIVE and header.bits_allocated in (8, 16):
        values = np.frombuffer(data[:len(data) // 2 * 2], f"u{header.bits_allocated // 8}")
        return values.size == 0 or np.ptp(np.percentile(values[::max(1, values.size // 10_000)], (1, 99))) == 0
    return 8 * len(data) < BARE * header.rows * header.columns

def inspect_file(
    item: dict,  # folder; file; tables, the names of the tables that name the file
) -> dict:       # columns of the header; problems, a list; failure, an error of the pixels; digests uid, pixels; bare
    "Read header and bytes of one file, and decode it only if it seems damaged. Raises Missing, DicomError."
    path = Path(item["folder"]) / item["file"]
    frame, doubts, failure = None, [], ""
    if not path.is_file():
        raise Missing(f"named by {' and '.join(item['tables'])}, but does not exist")
    try:
        frame = read_frame(path, frame=0)
        if doubts := _frame_problems(frame):
            doubts += [note for note in frame.decode().header.notes if note not in frame.header.notes]
        doubts += _stream_problems(frame)
    except DicomError as e:
        failure = f"{type(e).__name__}: {e}"
    header = frame.header if frame else read_header(path)
    if header.special and failure.startswith("BadHeader"):
        failure = ""  # such as a colour ultrasound: it is a problem already, and nothing will read its pixels
    names = "rows", "columns", "frames", "bits_stored", "photometric", "voi_function", "laterality", "view"
    return {
        **{name: getattr(header, name) for name in names},
        "syntax": header.syntax_name, "windows": len(header.windows), "bytes": path.stat().st_size,
        "problems": _header_problems(header) + doubts, "failure": failure,
        "uid": _digest(_identity(header).encode()), "patient": _digest(header.patient_id.encode()),
        "study": _digest(header.study.encode()), "pixels": _digest(frame.data if frame else b""),
        "bare": bool(frame and _is_bare(frame))
    }

# %%
whole = scratch / "competition" / truth["file"][0]
half = scratch / "half.dcm"
half.write_bytes(whole.read_bytes()[:whole.stat().st_size // 2])
rows = [inspect_file({"folder": path.parent, "file": path.name}) for path in (whole, half)]
assert not rows[0]["failure"] and rows[1]["failure"].startswith("CorruptPixels")
pd.DataFrame(rows, index=["whole", "half"]).T

# %% [markdown]
# ## The tables
# A competition has `train.csv` and `test.csv`. They name a file in a column `file`, or by patient and image in the
# folders of the competition. A table of the user without a column `file` names images by their id, in any folder. A
# path that leads out of the folder is an error, before anything is opened.

# %%
#| export
def _own_tables(folder: Path) -> list[Path]:
    """Find train.csv and test.csv of a competition. For train_images/, or for one patient's folder in it, this is the
    table beside train_images/."""
    images = [place for place in (folder, folder.parent) if place.name.endswith("_images")]
    beside = [place.with_name(f"{place.name.removesuffix('_images')}.csv") for place in images]
    return [path for path in (folder / "train.csv", folder / "test.csv", *beside) if path.is_file()]

def _named_rows(path: Path, needed: list[str]):
    "Read a table that names files: pairs of the row's number and its columns as text."
    try:
        content = read_table(path, [])
    except (DatasetError, ValueError, OSError) as e:
        raise CheckError(f"{path.name} cannot be used: {e}") from e
    needed = ["file"] if "file" in content else needed
    if lacking := [c for c in needed if c not in content]:
        raise CheckError(f"{path.name} has no column {', '.join(lacking)}; it has {', '.join(content.columns)}.")
    texts = content.reindex(columns=[*needed, "laterality", "view"]).astype(object).fillna("").astype(str)
    return enumerate(texts.to_dict("records"), 2)

def named_files(
    folder: Path,               # absolute
    files: list[str],           # the files that were found in the folder
    table: Path | None = None,  # a CSV file; None: the tables of a competition
) -> dict | None:            # file -> rows that name it: (table, row number, {laterality, view}); None without a table
    "Find the rows that name the files of a folder. Raises CheckError."
    own, places, named = _own_tables(folder), defaultdict(list), defaultdict(list)
    tables = [Path(os.path.abspath(table))] if table else own
    for file in files:
        places[Path(file).stem].append(file)
    for path in tables:
        root, tree = (path.parent, f"{path.stem}_images") if path in own else (folder, "")
        for number, row in _named_rows(path, ["patient_id", "image_id"] if tree else ["image_id"]):
            if "file" in row:
                names = [row["file"]]
            elif tree:
                names = [f"{tree}/{row['patient_id']}/{row['image_id']}.dcm"]
            else:
                names = places.get(row["image_id"], [f"{row['image_id']}.dcm"])
            try:
                paths = [inside(root, name) for name in names]
            except PathError as e:
                raise CheckError(f"{path.name}, row {number}: {e}") from e
            sides = {what: row[what].strip().upper() for what in ("laterality", "view")}
            for p in paths:
                if folder in p.parents:
                    named[p.relative_to(folder).as_posix()].append((path.name, number, sides))
    return named if tables else None

# %%
named = named_files(folder.resolve(), files)
dict(list((named or {}).items())[:3])

# %%
for path in ("../../etc/passwd", "/etc/passwd"):
    pd.DataFrame({"file": [truth["file"][0], path]}).to_csv(scratch / "odd.csv", index=False)
    try:
        named_files(folder.resolve(), files, scratch / "odd.csv")
    except CheckError as e:
        print(e)
    else:
        raise AssertionError(path)

# %% [markdown]
# ## Table and header
# The values of the table are compared with the header. If only one of them has the side, later stages use that value,
# and this is no problem.

# %%
#| export
def compare(
    rows: pd.DataFrame,  # from `inspect_file`; laterality and view are completed in place
    named: dict | None,  # from `named_files`
):                       # yields (file, problem)
    """Find disagreements of header and table, sides that neither has, files that no row or several rows name, and files
    with the UID or the pixels of an earlier one, and patients with several studies."""
    for at, row in zip(rows.index, rows.to_dict("records")):
        file, naming = row["file"], (named or {}).get(row["file"], [])
        if named is not None and not naming:
            yield file, "in no table"
        if len(naming) > 1:
            yield file, "named by " + " and ".join(f"{table} row {number}" for table, number, _ in naming)
        for what in ("laterality", "view"):
            if not row["syntax"]:
                continue  # a PNG or JPEG file has no header
            header, table = row[what], naming[0][2][what] if naming else ""
            if header and table and header != table:
                yield file, f"{what} {header} in the header, {table} in the table"
            if not header and not table:
                yield file, f"{what} unknown"
            rows.at[at, what] = header or table or "unknown"
    for column, what in (("uid", "SOPInstanceUID"), ("pixels", "pixels")):
        known = rows[rows[column].ne("")]
        for file, first in zip(known["file"], known.groupby(column)["file"].transform("first")):
            if file != first:
                yield file, f"same {what} as {first}"
    exams = rows[rows["patient"].ne("") & rows["study"].ne("")]
    for file, count in zip(exams["file"], exams.groupby("patient")["study"].transform("nunique")):
        if count > 1:
            yield file, f"one of {count} studies of its patient"

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

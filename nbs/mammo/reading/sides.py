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
# # Sides
# > Tables that name the patient, the side and the view of a file, as spreadsheets write them.
#
# A table of a user has been through a spreadsheet. It may have another encoding, semicolons instead of commas, and ids
# that lost their leading zeros. A row that is matched with a wrong file gives a wrong side without a word, so a row is
# matched with a file, counted as unmatched, or refused.

# %%
#| default_exp mammo.reading.sides

# %%
#| export
import csv
import io
import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import joblib
import pandas as pd

from mammo_nb.core.cluster import connect_cluster, rows_on_cluster
from mammo_nb.core.errors import cell, decode_text, shown
from mammo_nb.core.files import inside, short_hash
from mammo_nb.core.parallel import shared_paths
from mammo_nb.core.pictures import LONGEST, stem_of
from mammo_nb.core.processes import rows_in_processes
from mammo_nb.mammo.reading.frames import frame_id, frame_indices
from mammo_nb.mammo.reading.labels import DatasetError
from mammo_nb.mammo.reading.mammograms import Mammogram, read_header
from mammo_nb.mammo.reading.views import parse_side, parse_view, special_view

# %%
#| hide
import tempfile

# %% [markdown]
# ## Text
# Spreadsheets write tables in several encodings, and with several separators.

# %%
#| export
SEPARATORS = ",;\t"

def read_text_table(
    path: Path,     # a CSV file
) -> pd.DataFrame:  # text without surrounding blanks, "" for an empty cell; columns in lower case
    "Read a table of any usual encoding and separator. No text is a missing value. Raises DatasetError."
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"{path} does not exist.")
    text = decode_text(path.read_bytes())
    text = re.sub(r"\A\s*sep=.\r?\n", "", text)  # a line that only Excel needs
    first = text.lstrip().partition("\n")[0]
    separator = max(SEPARATORS, key=lambda s: len(next(csv.reader([first], delimiter=s), [])))
    try:
        table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False)
    except ValueError as e:
        raise DatasetError(f"{path.name} cannot be read as a table: {shown(str(e))}. Save it as CSV.") from e
    table.columns = [shown(str(c).strip().lower()) for c in table.columns]
    return table.fillna("").apply(lambda column: column.str.strip())

# %%
place = Path(tempfile.mkdtemp())
for number, (encoding, separator) in enumerate((("utf-8-sig", ","), ("utf-16", "\t"), ("cp1252", ";"))):
    rows = [["file", "patient_id", "laterality", "view"], ["é.dcm", "NA", "L", "CC"]]
    (place / f"{number}.csv").write_bytes("\r\n".join(map(separator.join, rows)).encode(encoding))
    assert read_text_table(place / f"{number}.csv").values.tolist() == rows[1:]

# %% [markdown]
# ## Rows and files
# Ids are compared as they are first, and then without what a spreadsheet changes: leading zeros, a `.0` after digits,
# upper and lower case. A path is compared from its end, since a table may come from another computer. A row belongs to
# the files that agree with it best, if no other row agrees better with them.

# %%
#| export
def plain_id(
    name: str,  # an id, or a part of a path
) -> str:
    "Remove what spreadsheets add and add nothing that they remove: `007`, `7.0` and `7` are the same."
    name = cell(name).removeprefix("'").lower()
    digits = re.fullmatch(r"(\d+)(?:\.0+)?", name)
    return (digits[1].lstrip("0") or "0") if digits else name

def parts_of_path(
    path: str,           # of any system
) -> tuple[str, ...]:    # its parts, the last one without a known ending
    "Split a path at / and at the backslashes of Windows."
    parts = [p for p in path.replace("\\", "/").split("/") if p not in ("", ".")]
    return (*parts[:-1], stem_of(parts[-1])) if parts else ()

def _best(own: list[tuple], others: list[tuple]) -> list[tuple]:
    "For each path what it has in common with the best of the others: the last part, the equal parts from the end."
    def ends(parts: tuple):
        plain = tuple(plain_id(p) for p in reversed(parts))
        for exact in (parts[-1], None):   # None: the last part is equal only as a `plain_id`
            yield from ((exact, plain[:depth]) for depth in range(len(parts), 0, -1))

    there = {end for parts in others if parts for end in ends(parts)}
    return [next((end for end in ends(parts) if end in there), ()) if parts else () for parts in own]

def _pairs(wanted: list[tuple], files: list[str]) -> dict[int, list[int]]:
    "Pair each file with the rows of `wanted` that agree best: number of the file -> numbers of the rows."
    # many files have one name where folders tell them apart, so rows and files are not compared one by one
    parts = [parts_of_path(f) for f in files]
    rows, stems, of_files = defaultdict(list), defaultdict(set), _best(parts, wanted)
    for row, common in enumerate(_best(wanted, parts)):
        rows[common].append(row)
    for common, p in zip(of_files, parts):
        stems[common].add(p[-1])
    # several stems: `7` for both `007` and `07`
    return {at: rows[common] for at, common in enumerate(of_files)
            if common and common in rows and len(stems[common]) == 1}

_pairs([("7",), ("b", "1"), ("2",)], ["007.dcm", "a/1.dcm", "b/1.dcm", "02", "002"])

# %% [markdown]
# Rows for the same file are put together, and they must not contradict each other.

# %%
#| export
def _merged(rows: list[dict], file: str, name: str) -> dict:
    "Put the rows of one file together. Raises DatasetError if they disagree."
    meanings = {"laterality": parse_side, "view": parse_view}
    merged = {}
    for column in ("patient_id", "image_id", "laterality", "view"):
        texts = [row[column] for row in rows if row.get(column)]
        if len({meanings.get(column, str)(t) for t in texts}) > 1:
            raise DatasetError(f"{name} has several rows for {shown(file)}, and their {column} differs: "
                               f"{', '.join(map(shown, dict.fromkeys(texts)))}. Keep the right row.")
        if texts:
            merged[column] = texts[0]
    return merged

def match_rows(
    path: Path,        # a CSV file with file or image_id, laterality, view; patient_id if known
    files: list[str],  # paths below the folder of the scans
) -> tuple[dict[str, dict], int, int]:
    # file -> patient_id, image_id, laterality, view as far as known; rows that match no file; all rows
    "Match the rows of a table with files. Raises DatasetError."
    table = read_text_table(path)
    if missing := [c for c in ("laterality", "view") if c not in table]:
        raise DatasetError(f"{path.name} has no column {', '.join(missing)}; it has {', '.join(table.columns)}.")
    if not {"image_id", "file"} & set(table.columns):
        raise DatasetError(
            f"{path.name} has no column image_id or file; it has {', '.join(table.columns)}. Add one of the two.")
    if "patient_id" in table and table["patient_id"].str.fullmatch(r"\d+\.0|").all():
        table["patient_id"] = table["patient_id"].str.removesuffix(".0")
    rows = table.to_dict("records")
    wanted = []
    for row in rows:
        folder = [] if row.get("file") else list(filter(None, [row.get("patient_id")]))
        name = row.get("file") or row.get("image_id") or ""
        wanted.append((*folder, *parts_of_path(name)) if name else ())
    pairs = _pairs(wanted, files)
    found = {}
    for at, matched in pairs.items():
        chosen = [rows[r] for r in matched]
        if not any(row.get("file") for row in chosen):  # the file has the id as it was
            chosen = [{**row, "image_id": stem_of(files[at])} for row in chosen]
        found[files[at]] = _merged(chosen, files[at], path.name)
    return found, len(rows) - len({r for matched in pairs.values() for r in matched}), len(rows)

# %% [markdown]
# Without a table of the user, the tables of a competition are read: in the folder, or beside it.

# %%
#| export
def read_sides(
    folder: Path,               # folder of the scans; train.csv and test.csv of a competition may lie in it or above it
    files: list[str],           # paths below the folder
    table: Path | None = None,  # as in `match_rows`
) -> tuple[dict[str, dict], str]:  # rows as from `match_rows`; a line about rows of `table` without a file, or ""
    "Read the ids, lateralities and views of files from tables. Raises DatasetError."
    if table:
        sides, lost, rows = match_rows(Path(table), files)
        lines = [f"{lost} of {rows} rows of {Path(table).name} match no file"] if lost else []
        if wrong := sum(bool(row.get("laterality")) and not parse_side(row["laterality"]) for row in sides.values()):
            lines.append(f"the laterality of {wrong} of {len(sides)} files is neither left nor right in "
                         f"{Path(table).name}")
        return sides, "; ".join(lines)
    folder = Path(folder).resolve()
    names = [(folder.parent, folder.name), (folder.parent.parent, folder.parent.name)]
    beside = [above / f"{images.removesuffix('_images')}.csv" for above, images in names]
    sides = {}
    for found in (folder / "train.csv", folder / "test.csv", *beside):
        if found.is_file():
            sides |= match_rows(found, files)[0]
    return sides, ""

# %% [markdown]
# ## The ids of a file
# Side and view come from the header, else from the table. Otherwise they are *unknown*, which is better than a guess.
# Ids come from the table first. Without a PatientID the study is the patient, and without a study the folder. All
# commands use these ids.

# %%
#| export
def with_table_view(
    header: Mammogram,
    item: dict,        # row, its row of a table or None
) -> Mammogram:        # `special` is what the table says, where the header has no view
    "Complete a header by the view of the table, which may be no standard one."
    text = (item.get("row") or {}).get("view", "")
    if header.special or header.view or text.strip().lower() in ("", "unknown"):
        return header
    return replace(header, special=special_view(*parse_view(text)[1:]))

FEW = 500   # headers that one process reads before another one could start
NO_HEADER = SimpleNamespace(patient_id="", study="", instance="", laterality="", view="", frames=1)

def identify(
    header: Mammogram | None,  # None: it cannot be read
    item: dict,        # file; row, its row of a table or None; frame: index from 0 if one was read
) -> dict:             # patient_id, image_id, laterality, view
    "Find the ids, the side and the view of one file or frame."
    header = header or NO_HEADER
    row = item.get("row") or {}
    path = Path(item["file"])
    patient = row.get("patient_id") or header.patient_id or header.study or path.parent.name
    side, view = parse_side(row.get("laterality", "")), parse_view(row.get("view", ""))
    image = row.get("image_id") or header.instance or stem_of(path.name)
    return {"patient_id": patient or "unknown", "image_id": frame_id(image, header.frames, item.get("frame")),
            "laterality": header.laterality or side or view[0] or "unknown",
            "view": header.view or view[1] or "unknown"}

def identify_file(
    item: dict,  # folder, file; row, its row of a table or None
) -> dict:       # as from `identify`, and frames
    "Read the header of a file and find its ids. Raises DicomError."
    header = read_header(inside(item["folder"], item["file"]))
    return {**identify(header, item), "frames": header.frames}

def identify_files(
    folder: Path,
    files: list[str],            # paths below the folder
    sides: dict[str, dict],      # file -> its row of a table
    workers: int | None = None,  # processes that read headers; None: one per core
) -> dict[str, dict]:            # file -> as from `identify_file`; a file that cannot be read has the ids of its path
    "Find the ids of many files."
    items = {f: {"file": f, "folder": str(Path(folder).resolve()), "row": sides.get(f)} for f in files}
    processes = max(1, min(workers or joblib.cpu_count(), len(files) // FEW))
    # nothing is written, so that a stopped run leaves the journal of its crops only
    with connect_cluster() as client:
        if client:
            rows = rows_on_cluster(client, identify_file, items, shared_paths(items))
        else:
            rows = rows_in_processes(identify_file, items, processes if processes > 1 else 0)
        read = {f: json.loads(row) for f, row in rows}
    return {f: {**identify(None, items[f]), "frames": 1} if read[f]["error"] else read[f] for f in files}

# %% [markdown]
# Ids become names of pictures, `{patient_id}@{image_id}.png`. Characters that no name of a file should have are quoted
# as in an address, and ids that are repeated or very long end with a digest of the file.

# %%
#| export
def picture_ids(
    ids: list[tuple[str, str]],  # patient_id, image_id of each file
    files: list[str],            # their paths
) -> list[tuple[str, str]]:      # the same for names of pictures, all different also where case does not count
    "Make ids that can be parts of a file name and are different for each file."
    safe = [tuple(quote(t, " ()+,=^", "utf-8", "surrogateescape") for t in pair) for pair in ids]
    # no hidden file, and no formula in a table
    safe = [(re.sub(r"^[.=+-]", lambda m: f"%{ord(m[0]):02X}", patient), image) for patient, image in safe]
    count = Counter("@".join(pair).lower() for pair in safe)
    names = []
    for file, pair in zip(files, safe):
        patient, image = pair
        if count["@".join(pair).lower()] > 1 or len("@".join(pair)) > LONGEST:
            patient = patient[:LONGEST // 3]
            image = f"{image[:LONGEST - 20 - len(patient)]}~{short_hash(shown(file))}"
        names.append((patient, image))
    return names

def ids_of_files(
    folder: Path,
    files: list[str],  # paths below the folder
    workers: int | None = None,  # as in `identify_files`
    frames: str = "",  # as from `check_frames`
) -> tuple[pd.DataFrame, pd.DataFrame]:
    # patient_id, image_id; file, frame (index from 0 or None), and the same ids as parts of a picture's name
    "Find the ids of files, or of the chosen frames; a file that cannot be read has those of its path."
    found = identify_files(folder, files, read_sides(folder, files)[0], workers)
    places = [(f, index) for f in files for index in frame_indices(found[f]["frames"], frames)]
    ids = [(found[f]["patient_id"], frame_id(found[f]["image_id"], found[f]["frames"], index)) for f, index in places]
    names = picture_ids(ids, [f"{f}#{index}" if found[f]["frames"] > 1 else f for f, index in places])
    table = pd.DataFrame([(*p, *n) for p, n in zip(places, names)], dtype=object,
                         columns=["file", "frame", "patient_id", "image_id"])
    return pd.DataFrame(ids, columns=["patient_id", "image_id"], dtype=object), table

def frame_entries(
    folder: Path,
    files: list[str],            # paths below the folder
    sides: dict[str, dict],      # as from `read_sides`
    choice: str,                 # as from `check_frames`
    workers: int | None = None,
) -> list[tuple[str, str, str]]:  # file, choice of one frame, and a name that no other entry has
    "Choose the frames of each file; the headers are read only if all frames are wanted."
    if choice != "all":
        return [(f, choice, f) for f in files]
    counts = {f: row["frames"] for f, row in identify_files(folder, files, sides, workers).items()}
    return [(f, str(n), f"{f}#{n}.dcm" if counts[f] > 1 else f) for f in files for n in range(1, counts[f] + 1)]

assert picture_ids([("A/1", "x"), ("B", "y"), ("b", "Y")], ["1", "2", "3"])[0] == ("A%2F1", "x")
assert len({"@".join(n).lower() for n in picture_ids([("B", "y"), ("b", "Y")], ["2", "3"])}) == 2

# %% [markdown]
# ## What came out
# Ids that lost zeros and gained endings, a path of Windows, and a row whose file is missing. Two rows for one file that
# disagree are refused.

# %%
(place / "t.csv").write_text("file;patient_id;laterality;view\n7.0;NA;L;CC\nD:\\x\\b\\1.DCM;2;right;MLO\nc;3;L;CC\n")
files = ["007.dcm", "a/1.dcm", "b/1.dcm"]
sides, told = read_sides(place, files, place / "t.csv")
assert set(sides) == {"007.dcm", "b/1.dcm"} and sides["007.dcm"]["patient_id"] == "NA" and told.startswith("1 of 3")
(place / "t.csv").write_text("file,laterality,view\n7,L,CC\n007,R,CC\n007,L,CC\n")
try:
    read_sides(place, files, place / "t.csv")
except DatasetError as e:
    print(e)
else:
    raise AssertionError("two rows disagree")

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Check
# > Is the data set whole, does it agree with its table, and how long will it take? Asked before anything long runs.
#
# Three hundred gigabytes arrive with a file that was cut short, one that came twice, one that a table names and nobody
# sent. Training on them goes well until it does not, and then it is night. Here every file is opened and its bytes are
# read, but only a sample is decoded: a damaged or repeated file shows without that, and the sample tells what decoding
# all of them will cost. A data set that `reading/sources` knows is read by its reader first, and its patients, images and
# positives are counted against the published numbers.

# %%
#| default_exp mammo.tools.check

# %%
#| export
import hashlib
import os
import re
import shutil
import tempfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from pydicom.uid import RLELossless

from mammo_nb.core.decoders import read_codestream
from mammo_nb.core.dicom import ENDINGS, NATIVE, Frame, find_files
from mammo_nb.core.files import PathError, inside, write_csv
from mammo_nb.core.headers import DicomError
from mammo_nb.core.parallel import map_files
from mammo_nb.core.raster import is_whole
from mammo_nb.core.settings import SettingsError, read_paths
from mammo_nb.core.runs import locate
from mammo_nb.core.windows import WindowError, apply_window
from mammo_nb.mammo.crops import crop_file, crop_path
from mammo_nb.mammo.datasets import DatasetError, place_of, read_set, read_table
from mammo_nb.mammo.recipes import Crops
from mammo_nb.mammo.reading.mammograms import Mammogram, read_frame, read_header
from mammo_nb.mammo.reading.sources import totals

# %%
#| hide
import matplotlib.pyplot as plt
import pydicom

from mammo_nb.core.dicom import read_image
from mammo_nb.core.windows import to_grey
from mammo_nb.mammo.phantom import make_competition

# %% tags=["parameters"]
folder = ""    # mammograms in DICOM, or a competition with its tables; "" makes a small one
sample = 8     # how many files are decoded
workers = 2    # processes

# %%
#| hide
scratch = Path(tempfile.mkdtemp())
truth = make_competition(scratch / "competition", patients=4, test_patients=1, frame=(320, 256), prevalence=.5,
                         seed=2023, workers=workers)
folder = Path(folder or scratch / "competition")

# %%
#| export
class CheckError(Exception):
    "Nothing can be checked: no files, or a table that cannot be used; says which and why."

class Missing(Exception):
    "A file that should be there is not."

# %%
files, others = find_files(folder)
len(files), others

# %% [markdown]
# ## One file
# What a header says can be legal and still spoil a training: a scan for processing has other grey levels, a burned-in
# name teaches a network to read. These are problems, for a person to judge. A window is tried out rather than judged by
# rules of its own.

# %%
#| export
def _unusable(header: Mammogram) -> bool:
    "Whether one of the windows has no meaning."
    try:
        for which in range(len(header.windows)):
            apply_window(np.zeros(1), header.windows, header.voi_function, which)
    except WindowError:
        return True
    return False

def _header_problems(header: Mammogram) -> list[str]:
    "What a person should know before trusting this file; sides are left to `_compared`, which has the table as well."
    found = {
        "multi-frame": header.frames > 1, "no window": bool(
            header.syntax and not header.windows), "window that cannot be used":
                _unusable(header), "for processing, not for presentation": header.intent == "FOR PROCESSING",
        "burned-in annotation": header.burned_in == "YES", f"modality {header.modality}": header.modality not in
                                                                                          ("", "MG"),
        f"colour, {header.photometric}": header.samples != 1 or not header.photometric.startswith("MONOCHROME"),
        f"BitsStored {header.bits_stored}, HighBit {header.high_bit}": header.high_bit != header.bits_stored - 1
    }
    return [what for what, is_so in found.items() if is_so]

def _frame_problems(frame: Frame) -> list[str]:
    "Whether a compressed frame contradicts its header, or stops before its end."
    header = frame.header
    if not header.syntax:
        return ["no end mark"] * (not is_whole(frame.data))  # PNG or JPEG
    if header.syntax in NATIVE or header.syntax == RLELossless:
        return []  # the first are counted when read, the second names no size
    coded = read_codestream(frame.data)
    if coded is None:
        return ["pixels do not start like their compression"]
    size, expected = (f"{h.rows} x {h.columns} x {h.samples}" for h in (coded, header))
    return [f"{size} in the pixels, {expected} in the header"] * (size != expected) + ["pixels without end marker"
                                                                                       ] * (not coded.complete)

# %% [markdown]
# Bytes are read even where nothing is decoded, since that is how a file that was cut short shows. A frame that
# contradicts itself is decoded at once: only a decoder knows whether it can still be read. Of two files with the same
# SOPInstanceUID one is a copy or a mistake; the UID is kept as a digest and only for comparing. Where the tag is absent
# the header falls back on the file's name, which is no identity, unless the file is named after its UID.

# %%
#| export
def _identity(header: Mammogram) -> str:
    "The SOPInstanceUID, '' where there is none."
    named = header.path.suffix.lower() in ENDINGS and header.image_id.count(".") > 2  # 1.2.840.10.dcm
    return header.image_id if named or header.image_id != header.path.stem else ""

def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if data else ""

def inspect_file(
    item: dict,  # folder, file, tables: names of those that name it
) -> dict:       # the header's columns, problems, `failure`: why the pixels cannot be read, and digests: uid, pixels
    "Header and bytes of one file; nothing is decoded unless it looks damaged."
    path, frame, doubts, failure = Path(item["folder"]) / item["file"], None, [], ""
    if not path.is_file():
        raise Missing(f"named by {' and '.join(item['tables'])}, not there")
    try:
        frame = read_frame(path, frame=0)
        if doubts := _frame_problems(frame):
            frame.decode()
    except DicomError as e:
        failure = f"{type(e).__name__}: {e}"
    header = frame.header if frame else read_header(path)
    same = {
        c: getattr(header, c)
        for c in ("rows", "columns", "frames", "bits_stored", "photometric", "voi_function", "laterality", "view")
    }
    return {
        **same, "syntax": header.syntax_name, "windows": len(header.windows),
        "bytes": path.stat().st_size, "problems": _header_problems(header) + doubts, "failure": failure, "uid": _digest(
            _identity(header).encode()), "pixels": _digest(frame.data if frame else b"")
    }

# %%
whole = scratch / "competition" / truth["file"][0]
half = scratch / "half.dcm"
half.write_bytes(whole.read_bytes()[:whole.stat().st_size // 2])
rows = [inspect_file({"folder": path.parent, "file": path.name}) for path in (whole, half)]
assert not rows[0]["failure"] and rows[1]["failure"].startswith("CorruptPixels")
pd.DataFrame(rows, index=["whole", "half"]).T

# %% [markdown]
# ## The table beside them
# A competition has `train.csv` and `test.csv`; they name a file by a column `file`, or by patient and image in the
# competition's own tree. A table of the user's that has no such column names images alone, wherever they lie. A table
# is someone else's text: a path in it that leads out of the folder is refused before anything is opened.

# %%
#| export
def _own_tables(folder: Path) -> list[Path]:
    """train.csv and test.csv of a competition, or the one beside its train_images/, also for one patient's folder in
    there."""
    images = [place for place in (folder, folder.parent) if place.name.endswith("_images")]
    beside = [place.with_name(f"{place.name.removesuffix('_images')}.csv") for place in images]
    return [path for path in (folder / "train.csv", folder / "test.csv", *beside) if path.is_file()]

def _named_rows(path: Path, needed: list[str]):
    "(number of the row, its columns as text), from a table that names files."
    try:
        content = read_table(path, [])
    except (DatasetError, ValueError, OSError) as e:
        raise CheckError(f"{path.name} cannot be used: {e}") from e
    needed = ["file"] if "file" in content else needed
    if lacking := [c for c in needed if c not in content]:
        raise CheckError(f"{path.name} has no column {', '.join(lacking)}; it has {', '.join(content.columns)}.")
    return enumerate(
        content.reindex(
            columns=[*needed, "laterality", "view"]).astype(object).fillna("").astype(str).to_dict("records"), 2)

def named_files(
    folder: Path,               # absolute
    files: list[str],           # those found in it
    table: Path | None = None,  # a CSV; None: those of a competition
# file -> the rows that name it: (table, number, {laterality, view}); None: there is no table
) -> dict | None:
    "What tables say of the files of a folder."
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
# What the table says is compared with the header. A side that only one of them knows is no problem: later stages take
# it from there.

# %%
#| export
def _compared(
    rows: pd.DataFrame,  # from `inspect_file`; laterality and view are completed in place
    named: dict | None,  # from `named_files`
):                       # yields (file, problem)
    """Where header and table disagree or neither knows; files that are named never or twice; files that are, or say
    that they are, an earlier one."""
    for at, row in zip(rows.index, rows.to_dict("records")):
        file, said = row["file"], (named or {}).get(row["file"], [])
        if named is not None and not said:
            yield file, "in no table"
        if len(said) > 1:
            yield file, "named by " + " and ".join(f"{table} row {number}" for table, number, _ in said)
        for what in ("laterality", "view"):
            if not row["syntax"]:
                continue  # no header
            header, table = row[what], said[0][2][what] if said else ""
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

# %% [markdown]
# ## The sample
# A crop of the sample is made as the stage would make it, measured and thrown away. The first one in a process would
# also pay for loading its decoder, so it is made twice.

# %%
#| export
_met = set()  # compressions that this process has decoded

def measure_crop(
    item: dict,  # for `crop_file`, and syntax
) -> dict:       # decoder; seconds; size of the PNG, bytes
    "What one crop costs."
    row = crop_file(item)
    if item["syntax"] not in _met:
        row = crop_file(item)
    _met.add(item["syntax"])
    png = crop_path(item["images"], item["patient_id"], item["image_id"])
    size = png.stat().st_size
    png.unlink()
    return {"decoder": row["decoder"], "seconds": row["seconds"], "size": size}

def _croppable(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["error"].eq("") & table["frames"].eq(1)]

def estimate(
    table: pd.DataFrame,   # from `check_folder`: error, frames, bytes
    seconds: list[float],  # of each file that was timed
    sizes: list[int],      # of their crops, bytes
    workers: int,          # processes
# files, timed, workers; seconds for all; crops, dicom and free: bytes. {} if nothing was timed
) -> dict:
    "What cropping all of it will cost: the mean of the sample, times the files."
    if not len(seconds):
        return {}
    wanted = _croppable(table)
    try:
        target = read_paths(read_paths().runs / "run").processed
    except SettingsError:
        target = Path.cwd()
    target = next(p for p in (target, *target.parents) if p.exists())  # the folder is made later, on the same disk
    return {
        "files": len(wanted), "timed": len(seconds), "workers": workers,
        "seconds": float(np.mean(seconds)) * len(wanted) / workers, "crops": float(np.mean(sizes)) * len(wanted),
        "dicom": int(wanted["bytes"].sum()), "free": shutil.disk_usage(target).free
    }

# %%
example = pd.DataFrame({"error": "", "frames": 1, "bytes": 6_000_000}, index=range(50_000))
cost = estimate(example, [.2, .3], [1_500_000, 2_500_000], workers=2)
assert (cost["seconds"], cost["crops"], cost["dicom"]) == (6250, 1e11, 3 * 10**11)
cost

# %% [markdown]
# ## All of it
# Two passes: the bytes of every file, then the pixels of a few. Which few is settled by a fixed seed, so that a second
# check decodes the same ones.

# %%
#| export
NUMBERS = ["bytes", "rows", "columns", "frames", "bits_stored", "windows"]
COLUMNS = [
    "file", "bytes", "syntax", *NUMBERS[1:5], "photometric", "windows", "voi_function", "laterality", "view", "decoder",
    "problems", "error"
]

def check_folder(
    folder: Path,                # looked through to any depth
    table: Path | None = None,   # a CSV; None: those of a competition, in the folder or beside it
    sample: int = 32,            # how many files are decoded
    everything: bool = False,    # decode all of them
    settings: Crops = Crops(),   # of the crops that are measured
    workers: int | None = None,  # processes; None: one a core
    only_named: bool = False,    # leave alone what the table does not name: published sets hold masks and drawings too
# COLUMNS, one row a file, missing ones too; attrs: others, files left out, and `estimate`
) -> pd.DataFrame:
    "Check every mammogram of a folder, and every one that its tables name."
    folder, workers = Path(os.path.abspath(folder)), workers or joblib.cpu_count()
    files, others = ([], 0) if only_named else find_files(folder)
    named = named_files(folder, files, table)
    tables = {file: sorted({name for name, *_ in said}) for file, said in (named or {}).items()}
    items = [{"file": f, "folder": str(folder), "tables": tables.get(f, [])} for f in sorted({*files, *tables})]
    with tempfile.TemporaryDirectory() as scratch:
        rows = map_files(inspect_file, items, table=Path(scratch) / "check.csv", workers=workers, label="files")
        rows = rows.reindex(columns=[*COLUMNS, "failure", "uid", "pixels"]).astype({c: "Int64" for c in NUMBERS})
        texts = [c for c in rows if c not in NUMBERS]
        rows[texts] = rows[texts].astype(object).fillna("")
        rows["error"] += rows["failure"]
        ready = _croppable(rows)
        if not everything:
            ready = ready.iloc[np.sort(np.random.default_rng(0).permutation(len(ready))[:sample])]
        place = {
            "folder": str(folder), "images": f"{scratch}/crops", "settings": asdict(settings), "patient_id": "sample"
        }
        items = [{**place, "file": row.file, "syntax": row.syntax, "image_id": str(row.Index)}
                 for row in ready.itertuples()]
        crops = map_files(measure_crop, items, table=Path(scratch) / "sample.csv", workers=workers, label="sample")
    crops = crops.reindex(columns=["decoder", "seconds", "size", "error"]).set_index(ready.index)
    for column in ("decoder", "error"):
        rows.loc[crops.index, column] = crops[column].fillna("")
    problems = {row.file: list(row.problems) for row in rows.itertuples()}
    for file, problem in _compared(rows, named):
        problems[file].append(problem)
    rows["problems"] = ["; ".join(problems[file]) for file in rows["file"]]
    timed = crops[crops["error"].eq("")]
    rows.attrs = {"others": others, "estimate": estimate(rows, timed["seconds"], timed["size"], workers)}
    return rows[COLUMNS]

def check_dataset(
    name: str,         # a data set of `reading/sources`, or a folder below `raw` or `samples` with somebody's own
    **how,             # sample, everything, settings, workers of `check_folder`
) -> pd.DataFrame:     # as `check_folder`, of the files that its labels name; attrs: `totals` too
    "Check a data set: its labels by its reader, then the files that they name."
    folder = locate(Path.cwd(), place_of(name))
    labels = read_set(name, folder)
    with tempfile.TemporaryDirectory() as scratch:
        write_csv(Path(scratch) / f"{name}.csv", labels)
        table = check_folder(folder, Path(scratch) / f"{name}.csv", only_named=True, **how)
    table.attrs["totals"] = totals(name, labels)
    return table

# %%
table = check_folder(folder, sample=sample, workers=workers)
assert table["decoder"].ne("").sum() <= sample
table.head()

# %% [markdown]
# ## In sentences
# Forty files fit on a screen, fifty thousand do not: of many, those with the same trouble are counted, and three of
# them are named.

# %%
#| export
MANY = 40  # files; more are counted, not listed

def _amount(size: float) -> str:
    "Bytes as '98 GB'."
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"

def _duration(seconds: float) -> str:
    "Seconds as '1 h 50 min'."
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes > 1 else (f"{max(1, round(seconds))} "
        "s")

def estimate_text(
    cost: dict,  # from `estimate`, not empty
) -> str:
    "The estimate in two lines."
    short = ", not enough" * (cost["crops"] > cost["free"])
    return (
        f"{cost['files']:,} files: about {_duration(cost['seconds'])} with {cost['workers']} "
        f"process{'es' * (cost['workers'] > 1)}, "
        f"{_amount(cost['crops'])} of crops; {_amount(cost['free'])} free{short}\n"
        f"as measured on {cost['timed']:,} of them; {_amount(cost['dicom'])} of files to read")

def group_kinds(
    table: pd.DataFrame,  # from `check_folder`
    column: str,          # problems or error
) -> dict:                # kind -> its files, the most frequent first
    "Files by trouble. A kind of several files leaves out what differs: their own names, another's, a row."
    kinds = defaultdict(list)
    for file, text in zip(table["file"], table[column]):
        parts = text.split("; ") if column == "problems" else [text.replace(f"{Path(file).name}: ", "").rstrip(".")]
        for part in filter(None, parts):
            kinds[re.sub(r"^(same \w+ as|named by) .+", r"\1 ...", part)].append((part, file))
    found = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    return {kind if len(parts) > 1 else parts[0][0]: [file for _, file in parts] for kind, parts in found}

def print_check(
    table: pd.DataFrame,  # from `check_folder`
# 0 if every file is there and can be read, and no number differs from the published one; else 1
) -> int:
    "Print what there is, what is wrong with it, the estimate and a count."
    failed, missing = table["error"].ne(""), table["error"].str.startswith("Missing:").sum()
    good = table[~failed]
    if len(table) <= MANY and len(good):
        print(good.drop(columns="error").to_string(index=False, max_colwidth=40))
    if len(table) > MANY:
        kinds = good.groupby(["syntax", "rows", "columns", "photometric"]).size().sort_values(
            ascending=False, kind="stable")
        for (syntax, rows, columns, photometric), n in kinds[:MANY // 2].items():
            print(f"{n:7,}  {syntax}, {rows} x {columns}, {photometric}")
        if len(kinds) > MANY // 2:
            print(f"{kinds[MANY // 2:].sum():7,}  of {len(kinds) - MANY // 2:,} other kinds")
    for kind, files in (*group_kinds(table, "problems").items(), *group_kinds(table, "error").items()):
        print(f"{len(files):7,}  {kind}: {', '.join(files[:3])}{', ...' * (len(files) > 3)}")
    if cost := table.attrs.get("estimate"):
        print(estimate_text(cost))
    short = False
    if (counted := table.attrs.get("totals")) is not None:
        short = bool((counted["found"] != counted["published"].fillna(counted["found"])).any())
        print(", ".join(f"{row.found:,} {row.what}" + f" (published: {row.published:,})" * pd.notna(row.published)
                        for row in counted.itertuples()) + "; these are not the published numbers" * short)
    kind = "files" if table["syntax"].isin(["PNG", "JPEG"]).any() else "DICOM files"
    print(
        f"{len(table) - missing} {kind}, {failed.sum() - missing} cannot be read, {table.attrs.get('others', 0)} "
        "other files left out"
    )
    return int(failed.any() or short)

# %%
assert print_check(table) == 0 or (scratch / "competition") != folder

# %% [markdown]
# ## A bad delivery
# The same competition as it might arrive: one file cut in half, one left out, one sent a second time under another
# name, a scan for processing, and a table with a slip in it.

# %%
bad = shutil.copytree(scratch / "competition", scratch / "bad")
paths = [bad / file for file in truth["file"]]
paths[1].write_bytes(paths[1].read_bytes()[:paths[1].stat().st_size // 2])
paths[2].unlink()
ds = pydicom.dcmread(paths[3])
ds.SOPInstanceUID = f"{ds.SOPInstanceUID[:-3]}.1"
ds.save_as(paths[3].with_name("again.dcm"))
ds = pydicom.dcmread(paths[4])
ds.PresentationIntentType = "FOR PROCESSING"
ds.save_as(paths[4])
train = pd.read_csv(bad / "train.csv", dtype={"patient_id": str, "image_id": str})
train.loc[0, "laterality"] = {"L": "R", "R": "L"}[train["laterality"][0]]
train.to_csv(bad / "train.csv", index=False)
found = check_folder(bad, sample=2, workers=workers)
assert print_check(found) == 1

# %%
problems, errors = group_kinds(found, "problems"), group_kinds(found, "error")
assert {"in no table", "for processing, not for presentation", f"same pixels as {truth['file'][3]}"} < set(problems)
assert {kind.split(":")[0] for kind in errors} == {"Missing", "CorruptPixels"}
slip = found.loc[found["file"] == truth["file"][0], "problems"].iloc[0].split("; ")[-1]
fig, axes = plt.subplots(1, 4, figsize=(12, 3), width_ratios=(3, 1, 1, 1))
for kinds, colour in ((problems, "tab:blue"), (errors, "tab:red")):
    axes[0].barh([kind.split(":")[0].split(" as ")[0] for kind in kinds], [len(files) for files in kinds.values()],
                 color=colour)
axes[0].invert_yaxis()
axes[0].set_xlabel("files: problems blue, errors red")
for ax, path, title in zip(axes[1:], (paths[0], paths[3], paths[3].with_name("again.dcm")),
                           (slip.replace(", ", ",\n"), "an image", "and the same again")):
    image = read_image(path)
    ax.imshow(to_grey(image.pixels, image.header), cmap="gray")
    ax.set_title(title, fontsize=8)
    ax.axis("off")
fig.tight_layout()

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
# # Check
# > Whether a data set is complete and agrees with its table, and how long cropping will take.
#
# Three hundred gigabytes may contain a truncated file, a duplicate, or a row of a table without a file. A training
# would fail on them after hours, so they are found before. The bytes of every file are read (`integrity`), but only a
# sample is decoded. Damaged and repeated files are found without decoding, and the sample shows how long the decoding
# of all files will take. A data set of `reading/sources` is read by its reader first, and its patients, images and
# positives are compared with the published numbers.

# %%
#| default_exp mammo.tools.check

# %%
#| export
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

from mammo_nb.core.dicom import find_files, folder_of
from mammo_nb.core.files import write_csv
from mammo_nb.core.parallel import group_kinds, map_files, print_kinds
from mammo_nb.core.runs import locate
from mammo_nb.core.settings import kept_beside, read_paths, SettingsError
from mammo_nb.mammo.crops import crop_file, crop_path
from mammo_nb.mammo.datasets import place_of, read_set
from mammo_nb.core.errors import cell
from mammo_nb.mammo.reading.names import packed_files
from mammo_nb.mammo.reading.sources import totals
from mammo_nb.mammo.recipes import Crops
from mammo_nb.mammo.tools.commands import read_size
from mammo_nb.mammo.tools.integrity import compare, inspect_file, named_files

# %%
#| hide
import matplotlib.pyplot as plt
import pydicom

from mammo_nb.core.dicom import read_image
from mammo_nb.core.windows import to_grey
from mammo_nb.mammo.phantom import make_competition

# %% tags=["parameters"]
folder = ""    # DICOM files, or a competition with its tables; "" makes a small competition
sample = 8     # number of files that are decoded
workers = 2    # processes

# %%
#| hide
scratch = Path(tempfile.mkdtemp())
truth = make_competition(scratch / "competition", patients=4, test_patients=1, frame=(320, 256), prevalence=.5,
                         seed=2023, workers=workers)
folder = Path(folder or scratch / "competition")

# %% [markdown]
# ## The sample
# A crop is made as the stage makes it, measured and deleted. The first crop of a process also includes the loading of
# its decoder, so it is made twice.

# %%
#| export
_met = set()  # compressions that this process has decoded

def measure_crop(
    item: dict,  # as for `crop_file`, and syntax
) -> dict:       # decoder; seconds; size of the PNG file, in bytes; note
    "Measure the time and the size of one crop."
    row = crop_file(item)
    if item["syntax"] not in _met:
        row = crop_file(item)
    _met.add(item["syntax"])
    png = crop_path(item["images"], item["patient_id"], item["image_id"])
    size = png.stat().st_size
    png.unlink()
    return {"decoder": row["decoder"], "seconds": row["seconds"], "size": size, "note": row["note"]}

def _croppable(table: pd.DataFrame) -> pd.DataFrame:
    "Select the files that can be cropped: readable, with one frame."
    return table[table["error"].eq("") & table["frames"].eq(1)]

def estimate(
    table: pd.DataFrame,   # from `check_folder`: error, frames, bytes
    seconds: list[float],  # seconds of each file of the sample
    sizes: list[int],      # size of the crop of each file of the sample, in bytes
    workers: int,          # number of processes
) -> dict:                # files, timed, workers; seconds of all files; crops, dicom, free in bytes. {}: nothing timed
    "Estimate time and space for cropping all files: the mean of the sample times the number of files."
    if not len(seconds):
        return {}
    wanted = _croppable(table)
    try:
        target = read_paths(read_paths().runs / "run").processed
    except SettingsError:
        target = Path.cwd()
    target = next(p for p in (target, *target.parents) if p.exists())  # the folder will be made on the same disk
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
# ## A folder
# There are two passes: the bytes of every file, then the pixels of the sample. The sample is drawn with a fixed seed,
# so that a second check decodes the same files. Files that seem to have no contents are decoded as well, and a picture
# without a breast is a problem.

# %%
#| export
NUMBERS = ["bytes", "rows", "columns", "frames", "bits_stored", "windows"]
COLUMNS = [
    "file", "bytes", "syntax", *NUMBERS[1:5], "photometric", "windows", "voi_function", "laterality", "view", "decoder",
    "problems", "error"
]

def check_folder(
    folder: Path,                # searched to any depth, or a single file
    table: Path | None = None,   # a CSV file; None: the tables of a competition, in the folder or beside it
    sample: int = 32,            # number of files that are decoded
    everything: bool = False,    # whether all files are decoded
    settings: Crops = Crops(),   # settings of the crops that are measured
    workers: int | None = None,  # number of processes; None: one per core
    only_named: bool = False,    # skip files that the table does not name, such as masks in published sets
    output: Path | None = None,  # the CSV file of the result, beside which finished files are remembered
) -> pd.DataFrame:              # COLUMNS, a row for each file, also a missing one; attrs: others (skipped), estimate
    "Check every file of a folder and every file that its tables name. Raises CheckError, DicomError."
    scans, workers = Path(os.path.abspath(folder)), workers or joblib.cpu_count()
    folder, (files, others) = folder_of(scans), ([], 0) if only_named else find_files(scans)
    named = named_files(folder, files, table)
    if named and scans.is_file():  # the tables name other files, too
        named = {file: rows for file, rows in named.items() if file in files}
    tables = {file: sorted({name for name, *_ in rows}) for file, rows in (named or {}).items()}
    items = [{"file": f, "folder": str(folder), "tables": tables.get(f, [])} for f in sorted({*files, *tables})]
    with kept_beside(output) as scratch:
        rows = map_files(inspect_file, items, table=Path(scratch) / "check.csv", workers=workers, label="files",
                         scratch=True)
        rows = rows.reindex(columns=[*COLUMNS, "failure", "uid", "patient", "study", "pixels", "bare"])
        rows = rows.astype({c: "Int64" for c in NUMBERS})
        texts = [c for c in rows if c not in NUMBERS]
        rows[texts] = rows[texts].astype(object).fillna("")
        rows["error"] += rows["failure"]
        left = rows["error"].str.extract(r"^NotImage: .*?: (not an image: .*?) \(")[0].dropna()
        rows.loc[left.index, "error"] = ""
        ready = _croppable(rows)
        if not everything:
            drawn = np.isin(np.arange(len(ready)), np.random.default_rng(0).permutation(len(ready))[:sample])
            ready = ready[drawn | ready["bare"].eq(True)]
        place = {"folder": str(folder), "images": f"{scratch}/crops", "settings": asdict(settings),
                 "patient_id": "sample"}
        items = [{**place, "file": row.file, "syntax": row.syntax, "image_id": str(row.Index)}
                 for row in ready.itertuples()]
        crops = map_files(measure_crop, items, table=Path(scratch) / "sample.csv", workers=workers,
                          label="sample", scratch=True)
    crops = crops.reindex(columns=["decoder", "seconds", "size", "note", "error"]).set_index(ready.index)
    for column in ("decoder", "error"):
        rows.loc[crops.index, column] = crops[column].fillna("")
    problems = {row.file: [*row.problems, *left.loc[left.index == row.Index]] for row in rows.itertuples()}
    for at, note in crops["note"].items():
        problems[rows["file"][at]] += [note] if note and isinstance(note, str) else []
    for file, problem in compare(rows, named):
        problems[file].append(problem)
    rows["problems"] = ["; ".join(problems[file]) for file in rows["file"]]
    timed = crops[crops["error"].eq("")]
    cost = estimate(rows, timed["seconds"], timed["size"], workers)
    for column in ("file", "problems", "error"):
        rows[column] = rows[column].map(cell)
    sideless = rows["syntax"].isin(["PNG", "JPEG"]) & rows["laterality"].eq("unknown")
    rows.attrs = {"others": others, "packed": packed_files(scans), "estimate": cost, "sideless": int(sideless.sum())}
    return rows[COLUMNS]

def check_dataset(
    name: str,         # a data set of `reading/sources`, or a folder of your own below `raw` or `samples`
    **how,             # sample, everything, settings, workers, output of `check_folder`
) -> pd.DataFrame:     # as from `check_folder`, for the files that the labels name; attrs also has `totals`
    "Read the labels of a data set with its reader, and check the files that they name. Raises DatasetError."
    folder = locate(Path.cwd(), place_of(name))
    labels = read_set(name, folder)
    with tempfile.TemporaryDirectory() as scratch:
        write_csv(Path(scratch) / f"{name}.csv", labels)
        table = check_folder(folder, Path(scratch) / f"{name}.csv", only_named=True, **how)
    table.attrs["totals"] = totals(name, labels)
    return table

def check_data(
    folder: Path | None,         # a competition, or any folder with mammograms; None: the data set is named
    dataset: str = "",           # as in `check_dataset`
    table: Path | None = None,   # as in `check_folder`; a data set has its own
    size: str = "",              # HEIGHTxWIDTH of the crops that are measured, such as 2048x1024
    **how,                       # sample, everything, workers, output of `check_folder`
) -> pd.DataFrame:               # as from `check_folder`
    "Check a folder or a data set, as the command line does."
    height, width = read_size(size)
    how["settings"] = Crops(height=height, width=width)
    return check_dataset(dataset, **how) if dataset else check_folder(folder, table, **how)

# %%
table = check_folder(folder, sample=sample, workers=workers)
assert table["decoder"].ne("").sum() <= sample
table.head()

# %% [markdown]
# ## The report
# Forty files fit on a screen, fifty thousand do not. So of many files, those with the same problem are counted, and
# three of them are named.

# %%
#| export
MANY = 40  # number of files above which they are counted instead of listed

def _amount(size: float) -> str:
    "Format bytes, such as '98 GB'."
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"

def _duration(seconds: float) -> str:
    "Format seconds, such as '1 h 50 min'."
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    if minutes > 1:
        return f"{minutes} min"
    return f"{max(1, round(seconds))} s"

def estimate_text(
    cost: dict,  # from `estimate`, not empty
) -> str:        # two lines
    "Describe an estimate."
    processes = "1 process" if cost["workers"] == 1 else f"{cost['workers']} processes"
    short = ", not enough" if cost["crops"] > cost["free"] else ""
    return (
        f"{cost['files']:,} files: about {_duration(cost['seconds'])} with {processes}, "
        f"{_amount(cost['crops'])} of crops; {_amount(cost['free'])} free{short}\n"
        f"as measured on {cost['timed']:,} of them; {_amount(cost['dicom'])} of files to read")

def print_check(
    table: pd.DataFrame,  # from `check_folder`
) -> int:                # 0 if every file exists and can be read, and all numbers are the published ones; else 1
    "Print the files, their problems and errors, the estimate and the totals."
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
    print_kinds(table)
    if sideless := table.attrs.get("sideless"):
        print(f"PNG and JPEG files without a known side: {sideless}. Name them in a CSV with the columns file, "
              "patient_id, laterality and view: --table sides.csv")
    if cost := table.attrs.get("estimate"):
        print(estimate_text(cost))
    short = False
    if (counted := table.attrs.get("totals")) is not None:
        short = bool((counted["found"] != counted["published"].fillna(counted["found"])).any())
        numbers = []
        for row in counted.itertuples():
            published = f" (published: {row.published:,})" if pd.notna(row.published) else ""
            numbers.append(f"{row.found:,} {row.what}{published}")
        if short:
            numbers[-1] += "; these are not the published numbers"
        print(", ".join(numbers))
    kind = "files" if table["syntax"].isin(["PNG", "JPEG"]).any() else "DICOM files"
    others = table.attrs.get("others", 0)
    print(f"{len(table) - missing} {kind}, {failed.sum() - missing} cannot be read, {others} other files left out")
    if packed := table.attrs.get("packed"):
        print(packed)
    return int(failed.any() or short)

# %%
assert print_check(table) == 0 or (scratch / "competition") != folder

# %% [markdown]
# ## What came out
# The same competition with five faults: one file truncated, one missing, one copied under another name, one scan for
# processing, and a wrong side in the table.

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

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

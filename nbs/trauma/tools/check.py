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
# > Whether a data set of abdominal CT is complete and agrees with its tables, and how long preparing it will take.
#
# The competition has 1.5 million files in 4,700 folders, and four tables that name them. A file that is cut short, a
# patient without a folder or a mark on a slice that does not exist would be found after hours, or never. Here the
# header of every file is read and compared with the tables; a sample of the pixels is decoded and timed.

# %%
#| default_exp trauma.tools.check

# %%
#| export
import shutil
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

from mammo_nb.core.budget import in_words
from mammo_nb.core.dicom import find_files, folder_of, read_frame
from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import inside, read_csv
from mammo_nb.core.parallel import map_files, print_kinds
from mammo_nb.core.runs import locate
from mammo_nb.core.settings import find_dataset, kept_beside
from mammo_nb.trauma.reading.competition import IMAGE_LEVEL, SAMPLE, TRAIN, read_image_labels, read_labels
from mammo_nb.trauma.reading.levels import slice_levels

# %%
#| hide
import tempfile

from mammo_nb.trauma.phantom import make_competition

# %% tags=["parameters"]
folder = ""    # a competition, or a folder of DICOM files; "" draws a small competition
sample = 8     # number of files that are decoded

# %% [markdown]
# ## Files
# Patient and series are the names of the folders, as in the tables.

# %%
#| export
def inspect_file(
    item: dict,  # folder, file
) -> dict:       # ids, size, and where the slice lies
    "Read the header and the bytes of a file; raises DicomError."
    path = inside(item["folder"], item["file"])
    header = read_frame(path, 0).header
    place = "" if header.position is None else " ".join(f"{p:.2f}" for p in header.position)
    return {"bytes": path.stat().st_size, "rows": header.rows, "columns": header.columns, "position": place,
            "header_series": header.series}

def measure_file(
    item: dict,  # folder, file
) -> dict:       # seconds, and bytes of the levels
    "Make the levels of a slice, as the stage volumes does, and measure it."
    started = time.perf_counter()
    levels = slice_levels(read_frame(inside(item["folder"], item["file"]), 0).decode())
    return {"seconds": time.perf_counter() - started, "size": levels.size}

# %% [markdown]
# ## Tables
# What the tables name and the folders do not have, and the reverse. A patient of the table without a folder is an
# error, a folder without a row in the table is odd.

# %%
#| export
COLUMNS = ["file", "bytes", "patient_id", "series", "instance", "rows", "columns", "problems", "error"]

def table_faults(
    folder: Path,          # of a competition
    rows: pd.DataFrame,    # file, patient_id, series, instance; part: train or test
) -> tuple[list[dict], dict]:  # rows with an error; (part, patient or series) -> problem
    "Compare the tables with the folders."
    errors, problems = [], {}

    def missing(file: str, words: str):
        errors.append({"file": file, "error": words})

    train, test = rows[rows["part"] == "train"], rows[rows["part"] == "test"]
    if (folder / TRAIN).is_file():
        try:
            labels = set(read_labels(folder / TRAIN)["patient_id"])
        except ProjectError as e:
            labels = set(train["patient_id"])
            missing(TRAIN, f"BadLabel: {e}")
        for patient in sorted(labels - set(train["patient_id"])):
            missing(f"train_images/{patient}/", f"Missing: {TRAIN} names this patient, and there are no images")
        problems |= {("train", p): f"not in {TRAIN}" for p in set(train["patient_id"]) - labels}
    if (folder / IMAGE_LEVEL).is_file():
        try:
            marked = read_image_labels(folder / IMAGE_LEVEL)
        except ProjectError as e:
            marked = pd.DataFrame(columns=["series", "instance"])
            missing(IMAGE_LEVEL, f"BadLabel: {e}")
        there = set(zip(train["series"], train["instance"]))
        for series, instance in zip(marked["series"], marked["instance"]):
            if (series, instance) not in there:
                missing(f"{series}/{instance}.dcm", f"Missing: {IMAGE_LEVEL} marks this slice, and there is none")
    if (folder / SAMPLE).is_file():
        wanted = set(read_csv(folder / SAMPLE, dtype=str)["patient_id"])
        for patient in sorted(wanted - set(test["patient_id"])):
            missing(f"test_images/{patient}/", f"Missing: {SAMPLE} names this patient, and there are no images")
        problems |= {("test", p): f"not in {SAMPLE}" for p in set(test["patient_id"]) - wanted}
    for path in sorted((folder / "segmentations").glob("*.nii*")):
        if path.name.split(".")[0] not in set(train["series"]):
            missing(f"segmentations/{path.name}", "Missing: there is no series of this name")
    return errors, problems

# %% [markdown]
# ## A folder

# %%
#| export
def check_data(
    folder: Path | None,         # a competition, a folder of DICOM files, or a single file
    dataset: str = "",           # instead of a folder: a folder below `raw` or `samples`
    table: Path | None = None,   # not used: the competition's tables are in its folder
    size: str = "",              # not used: volumes have the size of the slices
    sample: int = 32,            # number of files that are decoded
    everything: bool = False,    # whether all files are decoded
    workers: int | None = None,  # processes; None: one a core
    output: Path | None = None,  # the CSV file of the result, beside which finished files are remembered
) -> pd.DataFrame:               # COLUMNS, a row for each file, also for one that is missing; attrs: estimate, others
    "Check every file of a folder and everything that its tables name."
    scans, workers = Path(folder or locate(Path.cwd(), find_dataset(dataset))).resolve(), workers or joblib.cpu_count()
    folder, (files, others) = folder_of(scans), find_files(scans)
    items = [{"file": f, "folder": str(folder)} for f in sorted(files)]
    with kept_beside(output) as scratch:
        rows = map_files(inspect_file, items, table=Path(scratch) / "check.csv", workers=workers, label="files",
                         scratch=True)
        for column in [*COLUMNS, "header_series", "position"]:
            rows[column] = rows[column].astype(object).fillna("") if column in rows else ""
        good = rows.index[rows["error"].eq("")]
        if not everything:
            good = good[np.sort(np.random.default_rng(0).permutation(len(good))[:sample])]
        timed = map_files(measure_file, [items[k] for k in good], table=Path(scratch) / "sample.csv", workers=workers,
                          label="sample", scratch=True)
    rows.loc[good, "error"] = timed["error"].to_numpy()
    parts = [Path(f).parts for f in rows["file"]]
    own = [p if len(p) == 4 and p[0] in ("train_images", "test_images") else ("", "", "", p[-1]) for p in parts]
    rows["part"] = [p[0].split("_")[0] for p in own]
    rows["patient_id"], rows["series"] = [p[1] for p in own], [p[2] for p in own]
    rows["instance"] = [Path(p[3]).stem for p in own]
    errors, problems = ([], {}) if scans.is_file() else table_faults(folder, rows)
    rows["problems"] = _problems(rows, problems)
    rows = pd.concat([rows, pd.DataFrame(errors, columns=["file", "error"])], ignore_index=True)[COLUMNS].fillna("")
    fine = timed[timed["error"].eq("")]
    cost = {} if not len(fine) else {
        "files": len(files), "timed": len(fine), "workers": workers, "free": shutil.disk_usage(Path.cwd()).free,
        "seconds": float(fine["seconds"].mean()) * len(files) / workers,
        "volumes": float(fine["size"].mean()) * len(files)}
    rows.attrs = {"others": others, "estimate": cost}
    return rows

def _problems(rows: pd.DataFrame, noted: dict) -> list[str]:
    "What is odd about each file, in words."
    found = {k: [noted[key]] if (key := (part, patient)) in noted else []
             for k, part, patient in zip(rows.index, rows["part"], rows["patient_id"])}
    for _, series in rows[rows["series"].ne("")].groupby(["part", "patient_id", "series"]):
        first = series.index[0]
        read = series[series["error"].eq("")]
        if read["header_series"].nunique() > 1:
            found[first].append(f"its folder has slices of {read['header_series'].nunique()} series")
        if len(series) == 1:
            found[first].append("the only slice of its series")
        again = read["position"].ne("") & read.duplicated("position")
        for k in read.index[again]:
            found[k].append("at the position of another slice of its series")
    return ["; ".join(words) for words in found.values()]

# %% [markdown]
# ## The report

# %%
#| export
def print_check(
    rows: pd.DataFrame,  # from `check_data`
) -> int:                # 0 if every file can be read and no table is wrong, else 1
    "Print what was found."
    series = rows[rows["series"].ne("")].groupby(["patient_id", "series"]).size()
    if len(series):
        print(f"{rows.loc[rows['series'].ne(''), 'patient_id'].nunique():,} patients, {len(series):,} series of "
              f"{series.min()} to {series.max()} slices, half of them up to {series.median():.0f}")
    print_kinds(rows)
    if cost := rows.attrs.get("estimate"):
        print(f"{cost['files']:,} files: about {in_words(cost['seconds'])} with {cost['workers']} processes and "
              f"{cost['volumes'] / 1e9:.2g} GB of volumes, {cost['free'] / 1e9:.0f} GB free; as measured on "
              f"{cost['timed']}")
    failed = rows["error"].ne("")
    print(f"{len(rows):,} files, {failed.sum():,} with an error, {rows.attrs.get('others', 0):,} other files left out")
    return int(failed.any() or not len(rows))

# %% [markdown]
# ## What came out
# A small competition, and the same with a file cut short, a patient without images, a mark on a slice that does not
# exist, and a copied slice.

# %%
scratch = Path(tempfile.mkdtemp())
if not folder:
    folder = scratch / "competition"
    make_competition(folder, patients=2, test_patients=1, size=32, lengths="6 8", prevalence=1.0, contrast=1.0,
                     seed=2023, workers=1)
assert print_check(check_data(folder, sample=sample, workers=1)) == 0 or folder != scratch / "competition"

# %%
if folder == scratch / "competition":
    bad = shutil.copytree(folder, scratch / "bad")
    paths = sorted((bad / "train_images").glob("*/*/*.dcm"))
    paths[1].write_bytes(paths[1].read_bytes()[:paths[1].stat().st_size // 2])
    shutil.copy(paths[2], paths[2].with_name("999.dcm"))
    shutil.rmtree(next((bad / "test_images").iterdir()))
    with open(bad / IMAGE_LEVEL, "a") as file:
        file.write(f"{paths[0].parts[-3]},{paths[0].parts[-2]},777,Bowel\n")
    found = check_data(bad, sample=sample, workers=1)
    assert print_check(found) == 1
    assert sorted(e.split(":")[0] for e in found["error"] if e) == ["CorruptPixels", "Missing", "Missing"]
    assert found["problems"].str.contains("at the position of another slice").sum() == 1

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

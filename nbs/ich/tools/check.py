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
# > Whether a head-CT data set is complete and agrees with its labels, and how long preparing it will take.
#
# The competition has 870,000 files and six labels for each. A file that is cut short, a label that is there twice with
# different values or a series of two patients would be found after hours, or never. Here every file is read once and
# its header is compared with the others; a sample of the pixels is decoded and timed.

# %%
#| default_exp ich.tools.check

# %%
#| export
import shutil
import time
from pathlib import Path

import cv2
import joblib
import numpy as np
import pandas as pd

from mammo_nb.core.budget import in_words
from mammo_nb.core.dicom import find_files, folder_of, read_frame
from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import TableError, inside, read_csv, sha256
from mammo_nb.core.parallel import map_files, print_kinds
from mammo_nb.core.runs import locate
from mammo_nb.core.settings import find_dataset, kept_beside
from mammo_nb.ich.reading import phe
from mammo_nb.ich.reading.competition import LABELS, SAMPLE
from mammo_nb.ich.reading.inputs import Seen, read_picture
from mammo_nb.ich.reading.squares import head_box
from mammo_nb.ich.recipes import CLASSES

# %%
#| hide
import tempfile

from mammo_nb.ich.phantom import make_competition

# %% tags=["parameters"]
folder = ""    # a competition, or a folder of DICOM files; "" draws a small competition
sample = 8     # number of files that are decoded

# %% [markdown]
# ## Labels
# A slice has one row for each class. A row that is there twice with one value is harmless, and the original removes it.
# Two values, a value that is neither 0 nor 1, a class that is missing, or an `any` that disagrees with the kinds are
# errors.

# %%
#| export
class CheckError(ProjectError):
    "A folder or a table that cannot be checked."

def _read_ids(path: Path) -> pd.DataFrame:
    "ID and Label with image_id and kind."
    try:
        table = read_csv(path, dtype=str, keep_default_na=False)
    except TableError as e:
        raise CheckError(str(e)) from e
    if missing := {"ID", "Label"} - set(table):
        raise CheckError(f"{path} has no column {', '.join(sorted(missing))}. The label table has ID and Label.")
    parts = table["ID"].str.rpartition("_")
    return table.assign(image_id=parts[0], kind=parts[2])

def label_faults(
    path: Path,   # stage_2_train.csv
) -> tuple[dict, dict, pd.Series]:  # image_id -> error; image_id -> problem; image_id -> value of any
    "What is wrong with a label table."
    table = _read_ids(path)
    errors, problems = {}, {}

    def note(kind: dict, images, words: str):
        for image in dict.fromkeys(images):
            kind.setdefault(image, words)

    note(errors, table.loc[~table["kind"].isin(CLASSES), "image_id"], "BadLabel: an ID is not <image>_<class>")
    table = table[table["kind"].isin(CLASSES)]
    note(errors, table.loc[~table["Label"].isin(["0", "1"]), "image_id"], "BadLabel: a label is neither 0 nor 1")
    note(problems, table.loc[table.duplicated(["ID", "Label"]), "image_id"], "rows of the label table twice")
    table = table.drop_duplicates(["ID", "Label"])
    note(errors, table.loc[table["ID"].duplicated(), "image_id"], "LabelConflict: the same ID with different labels")
    wide = table.drop_duplicates("ID").pivot(index="image_id", columns="kind", values="Label").reindex(columns=CLASSES)
    note(errors, wide.index[wide.isna().any(axis=1)], f"BadLabel: fewer than {len(CLASSES)} classes")
    known = wide.dropna().eq("1")
    wrong = known.index[known["any"] != known[list(CLASSES[:-1])].any(axis=1)]
    note(errors, wrong, "LabelConflict: any disagrees with the kinds of hemorrhage")
    return errors, problems, wide["any"]

# %%
example = Path(tempfile.mkdtemp()) / LABELS
rows = [f"ID_{i}_{c},{int(c in ('any', 'subdural') and i == 'b')}" for i in "abcd" for c in CLASSES]
example.write_text("\n".join(["ID,Label", *rows[:-1], rows[0], "ID_b_epidural,1", "ID_c_any,1"]) + "\n")
errors, problems, positive = label_faults(example)
assert set(errors) == {"ID_b", "ID_c", "ID_d"} and set(problems) == {"ID_a"}
errors

# %% [markdown]
# ## Files
# Every file is read, so that a damaged one is found; equal bytes and equal SOPInstanceUIDs are copies.

# %%
#| export
def inspect_file(
    item: dict,  # folder, file
) -> dict:       # ids, size, and digest of the bytes
    "Read the header of a file; raises DicomError or PheError."
    path = inside(item["folder"], item["file"])
    row = {"bytes": path.stat().st_size, "digest": sha256(path)[:16]}
    if path.suffix.lower() == ".png":
        picture = phe.read_picture(item["folder"], item["file"])
        patient = path.stem.rpartition("_")[0]
        return row | {"patient_id": patient, "series": patient, "rows": picture.shape[0], "columns": picture.shape[1]}
    header = read_frame(path, 0).header
    return row | {"patient_id": header.patient_id, "study": header.study, "series": header.series,
                  "uid": header.image_id, "rows": header.rows, "columns": header.columns}

def measure_file(
    item: dict,  # folder, file
) -> dict:       # seconds, and bytes of the picture
    "Make the picture of a slice, as prepare does, and measure it."
    cv2.setNumThreads(1)
    started = time.perf_counter()
    picture = read_picture(Path(item["folder"]), {"file": item["file"], "frame": "", "note": ""}, Seen(0, ()))
    head_box(picture)
    size = len(cv2.imencode(".png", picture)[1])
    return {"seconds": time.perf_counter() - started, "size": size}

# %% [markdown]
# ## A folder

# %%
#| export
COLUMNS = ["file", "bytes", "patient_id", "study", "series", "image_id", "rows", "columns", "any", "problems", "error"]

def _named(folder: Path) -> tuple[dict, dict, dict, dict]:
    "Files that tables name: image_id -> file; errors, problems and value of any by image_id."
    named, errors, problems, positive = {}, {}, {}, {}
    if phe.is_phe(folder):
        table = phe.read_slices(folder)
        return dict(zip(table["image_id"], table["file"])), {}, {}, dict(zip(table["image_id"], table["any"]))
    for part, name in (("train", LABELS), ("test", SAMPLE)):
        if not (folder / name).is_file():
            continue
        images = next((n for n in (f"stage_2_{part}_images", f"stage_2_{part}") if (folder / n).is_dir()), "")
        if name == LABELS:
            errors, problems, labels = label_faults(folder / name)
            positive = labels.dropna().to_dict()
            ids = [*labels.index]
        else:
            ids = _read_ids(folder / name)["image_id"].unique()
        if images:
            named |= {i: f"{images}/{i}.dcm" for i in ids}
    return named, errors, problems, positive

def check_data(
    folder: Path | None,         # a competition, a folder of DICOM files, a single file, or pictures with labels.csv
    dataset: str = "",           # instead of a folder: a folder below `raw` or `samples`
    table: Path | None = None,   # not used: the competition's tables are in its folder
    size: str = "",              # not used: pictures have the size of the slice
    sample: int = 32,            # number of files that are decoded
    everything: bool = False,    # whether all files are decoded
    workers: int | None = None,  # processes; None: one a core
    output: Path | None = None,  # the CSV file of the result, beside which finished files are remembered
) -> pd.DataFrame:               # COLUMNS, a row for each file, also for one that is missing; attrs: estimate, others
    "Check every file of a folder and every file that its tables name."
    scans, workers = Path(folder or locate(Path.cwd(), find_dataset(dataset))).resolve(), workers or joblib.cpu_count()
    folder, (files, others) = folder_of(scans), find_files(scans)
    named, errors, problems, positive = ({}, {}, {}, {}) if scans.is_file() else _named(folder)
    of = {file: image for image, file in named.items()}
    items = [{"file": f, "folder": str(folder)} for f in sorted({*files, *of})]
    with kept_beside(output) as scratch:
        rows = map_files(inspect_file, items, table=Path(scratch) / "check.csv", workers=workers, label="files",
                         scratch=True)
        for column in [*COLUMNS, "uid", "digest"]:
            rows[column] = rows[column].astype(object).fillna("") if column in rows else ""
        absent = [not (folder / f).is_file() for f in rows["file"]]
        rows.loc[absent, "error"] = "Missing: a table names it, and there is no such file"
        good = rows.index[rows["error"].eq("")]
        if not everything:
            good = good[np.sort(np.random.default_rng(0).permutation(len(good))[:sample])]
        timed = map_files(measure_file, [items[k] for k in good], table=Path(scratch) / "sample.csv", workers=workers,
                          label="sample", scratch=True)
    rows.loc[good, "error"] = timed["error"].to_numpy()
    rows["image_id"] = [of.get(f, Path(f).stem) for f in rows["file"]]
    rows["any"] = [positive.get(i, "") for i in rows["image_id"]]
    faults = [errors.get(i, "") for i in rows["image_id"]]
    rows["error"] = [e or fault for e, fault in zip(rows["error"], faults)]
    rows["problems"] = _problems(rows, of, problems)
    fine = timed[timed["error"].eq("")]
    rows = rows[COLUMNS]
    rows.attrs = {"others": others, "estimate": estimate(rows, fine, workers)}
    return rows

def _problems(rows: pd.DataFrame, of: dict, noted: dict) -> list[str]:
    "What is odd about each file, in words."
    found = {k: [noted[i]] if i in noted else [] for k, i in rows["image_id"].items()}
    for column, words in (("digest", "same bytes as"), ("uid", "same SOPInstanceUID as")):
        for _, same in rows[rows[column].ne("")].groupby(column):
            for k in same.index[1:]:
                found[k].append(f"{words} {same['file'].iloc[0]}")
    series = rows[rows["series"].ne("")]
    for name, own in series.groupby("series"):
        if own["patient_id"].nunique() > 1:
            for k in own.index:
                found[k].append(f"series {name} has {own['patient_id'].nunique()} patients")
        if len(own) == 1:
            found[own.index[0]].append("the only slice of its series")
    if of:
        for k in rows.index[~rows["file"].isin(of.keys())]:
            found[k].append("in no table")
    return ["; ".join(words) for words in found.values()]

def estimate(
    rows: pd.DataFrame,    # COLUMNS
    timed: pd.DataFrame,   # seconds and size of the files that were decoded
    workers: int,          # processes
) -> dict:                 # files, timed, workers; seconds of all; pictures, free: bytes. {}: nothing was decoded
    "Time and disk that preparing all files needs: the mean of the sample times their number."
    count = int((~rows["error"].str.startswith("Missing")).sum())
    if not len(timed):
        return {}
    return {"files": count, "timed": len(timed), "workers": workers,
            "seconds": float(timed["seconds"].mean()) * count / workers,
            "pictures": float(timed["size"].mean()) * count, "free": shutil.disk_usage(Path.cwd()).free}

# %% [markdown]
# ## The report

# %%
#| export
def print_check(
    rows: pd.DataFrame,  # from `check_data`
) -> int:                # 0 if every file can be read and no label contradicts, else 1
    "Print what was found."
    series = rows[rows["series"].ne("")].groupby("series").size()
    if len(series):
        print(f"{rows['patient_id'].nunique():,} patients, {len(series):,} series of {series.min()} to {series.max()} "
              f"slices, half of them up to {series.median():.0f}")
    if (known := rows["any"].ne("")).any():
        share = rows.loc[known, "any"].astype(int).mean()
        print(f"{known.sum():,} slices have labels, {share:.1%} of them a hemorrhage")
    print_kinds(rows)
    if cost := rows.attrs.get("estimate"):
        print(f"{cost['files']:,} files: about {in_words(cost['seconds'])} with {cost['workers']} processes and "
              f"{cost['pictures'] / 1e9:.2g} GB of pictures, {cost['free'] / 1e9:.0f} GB free; as measured on "
              f"{cost['timed']}")
    failed = rows["error"].ne("")
    print(f"{len(rows):,} files, {failed.sum():,} with an error, {rows.attrs.get('others', 0):,} other files left out")
    return int(failed.any() or not len(rows))

# %% [markdown]
# ## What came out
# A small competition with a file cut short, one missing, one copied, a label changed, and a series of two patients.

# %%
scratch = Path(tempfile.mkdtemp())
if not folder:
    folder = scratch / "competition"
    make_competition(folder, patients=3, test_patients=1, size=48, slices=8, prevalence=.5, seed=2019, workers=1)
assert print_check(check_data(folder, sample=sample, workers=1)) == 0 or folder != scratch / "competition"

# %%
bad = shutil.copytree(folder, scratch / "bad") if folder == scratch / "competition" else Path(folder)
paths = sorted((bad / "stage_2_train_images").glob("*.dcm"))
if folder == scratch / "competition":
    paths[1].write_bytes(paths[1].read_bytes()[:paths[1].stat().st_size // 2])
    paths[2].unlink()
    shutil.copy(paths[3], paths[3].with_name("ID_copy00000.dcm"))
    text = (bad / LABELS).read_text().splitlines()
    (bad / LABELS).write_text("\n".join([*text, f"{text[9].rpartition(',')[0]},{1 - int(text[9][-1])}"]) + "\n")
    found = check_data(bad, sample=sample, workers=1)
    assert print_check(found) == 1
    kinds = {e.split(":")[0] for e in found["error"] if e}
    assert kinds == {"CorruptPixels", "Missing", "LabelConflict"}
    assert found["problems"].str.contains("same bytes as").sum() == 1

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

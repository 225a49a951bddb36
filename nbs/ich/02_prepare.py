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
# # Prepare
# > From a folder of slices to a table in the order of the patient, and one picture for each slice.
#
# A competition gives a flat folder of files in random order. Their headers say which slices belong together and where
# they lie. Each file is opened once: its header is read, its values become HU, and its picture is written. A file that
# cannot be read stays in the table with its error, and a file that is no slice of a series stays with a note.

# %%
#| default_exp ich.prepare

# %%
#| export
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammo_nb.core.dicom import Image, read_frame
from mammo_nb.core.files import write_csv
from mammo_nb.core.geometry import Slice
from mammo_nb.core.hu import Hounsfield
from mammo_nb.core.parallel import map_files
from mammo_nb.core.pictures import write_png
from mammo_nb.core.runs import Run
from mammo_nb.core.series import SLICES, read_series, tables_of
from mammo_nb.ich.reading import phe
from mammo_nb.ich.reading.competition import (LABELS, CompetitionError, images_folder, place_of, places_by_position,
                                              read_labels, read_table, usable)
from mammo_nb.ich.reading.squares import common_box, head_box
from mammo_nb.ich.reading.windows import shifted, slice_picture, windowed
from mammo_nb.ich.recipes import classes_of

# %%
#| hide
from mammo_nb.core.pictures import sheet
from mammo_nb.core.practice import practice
from mammo_nb.core.volumes import arrange
from mammo_nb.ich.system import system

# %% tags=["parameters"]
run_dir = ""      # folder of the run; "" makes a small practice run
overrides = {}    # changes for this run, such as {"prepare.faithful": True}
workers = 0       # number of processes; 0: one per core

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="prepare", overrides=overrides)
run.contract("prepare")

# %% [markdown]
# ## A picture
# The id of a slice is the name of its file, because the labels name files. The box of the head is measured on the
# picture and stored in the table. The picture itself is not cropped, so that every later view can be made of it.

# %%
#| export
def name_of(
    found: Slice,
) -> str:          # such as ID_0123456789; a frame of a multi-frame file adds its number
    "The id of a slice, by which labels and pictures are found."
    stem = Path(found.file).stem
    return f"{stem}_{found.frame}" if found.frame else stem

def write_picture(
    found: Slice,
    image: Image,            # its stored values
    hounsfield: Hounsfield,  # its values in HU
    folder: str,             # of the pictures
    faithful: bool,          # windows and box of the original
) -> dict:                   # box, and whether the values were corrected by 1024
    "Write the picture of a slice while its file is open."
    picture = shifted(image) if faithful else windowed(hounsfield.values)
    write_png(Path(folder) / f"{name_of(found)}.png", picture)
    return {"box": head_box(picture, faithful), "offset": bool(hounsfield.offset)}

# %% [markdown]
# A slice that is nearly all air or all tissue does not show by itself that its intercept was lost. The other slices of
# its series show it. `core/series` finds these slices when all files are read, and their pictures are written again.

# %%
#| export
def _correct(
    slices: list[Slice],  # of all volumes; `more` is changed in place
    images: Path,         # folder of the files
    pictures: Path,       # folder of the pictures
):
    "Write the pictures of slices again whose values turned out to be HU + 1024."
    for found in slices:
        if not found.offset or found.more["offset"]:
            continue
        frame = found.frame - 1 if found.frame else None
        picture = slice_picture(read_frame(images / found.file, frame).decode(), offset=True)
        write_png(pictures / f"{name_of(found)}.png", picture)
        found.more = {"box": head_box(picture), "offset": True}

# %% [markdown]
# ## A table
# The place of a slice is its number in its series, along the normal. The original sorts positions by x, then by y, then
# by z, and keeps what `core/series` leaves out: a slice that was scanned again, or a localizer.

# %%
#| export
BOX = ["x0", "y0", "x1", "y1"]
NO_PATIENT = "no PatientID (0010,0020); its study or series stands for the patient"

def slice_table(
    volumes: list,          # from `read_series`, slices with the box in `more`
    rest: pd.DataFrame,     # from `read_series`
    faithful: bool = False, # the original's order
) -> pd.DataFrame:          # SLICES, place and BOX; empty text where there is no value
    "One row for each slice and for each file that is no slice, with its place in the series."
    table, _ = tables_of(volumes, rest)
    found = [s for v in volumes for s in v.slices] + [s for s in rest["slice"] if s is not None]
    of = {(s.file, str(s.frame or "")): s for s in found}
    rows = [of.get((file, str(frame))) for file, frame in zip(table["file"], table["frame"])]
    table["image_id"] = [name_of(s) if s else Path(f).stem for s, f in zip(rows, table["file"])]
    for column, k in zip(BOX, range(4)):
        table[column] = [s.more["box"][k] if s else "" for s in rows]
    placed = table["position_mm"].ne("")
    if faithful:
        placed = pd.Series([s is not None for s in rows])
        table["series"] = [s.series if s else "" for s in rows]
        points = pd.DataFrame([s.position if s and s.position else (np.nan,) * 3 for s in rows], columns=list("xyz"))
        place = places_by_position(pd.concat([table[["patient_id", "study", "series"]], points], axis=1)[placed])
    else:
        place = table[placed].groupby("series", sort=False).cumcount()
    table.insert(len(SLICES), "place", place.reindex(table.index).astype("Int64").astype(object).fillna(""))
    unknown = table["patient_id"].eq("") & placed
    table.loc[unknown, "note"] = [f"{n}; {NO_PATIENT}".lstrip("; ") for n in table.loc[unknown, "note"]]
    table.loc[unknown, "patient_id"] = table["study"].where(table["study"].ne(""), table["series"])
    if faithful:
        order = table["place"].replace("", len(table)).astype(int)
        table = table.assign(order=order, last=~placed).sort_values(
            ["last", "patient_id", "study", "series", "order"], kind="stable", ignore_index=True)
        table = table.drop(columns=["order", "last"])
    return table

# %% [markdown]
# A labelled slice without a file and a file without labels are errors of one row each. Two files of one name are an
# error of the data set.

# %%
#| export
def with_labels(
    table: pd.DataFrame,   # from `slice_table`
    labels: pd.DataFrame,  # from `read_labels`
    folder: str,           # of the images, for messages
) -> pd.DataFrame:         # the table with the labels, and a row for each labelled slice without a file
    "Add the labels of slices. Raises CompetitionError if two slices have the same id."
    slices = table[table["place"].ne("")]
    twice = slices.loc[slices["image_id"].duplicated(), ["image_id", "file"]]
    if len(twice):
        raise CompetitionError(f"{folder}: another file is also named {twice['image_id'].iloc[0]}: "
                               f"{twice['file'].iloc[0]}. Labels name files, so remove one of them.")
    table = table.merge(labels, how="left", on="image_id")
    classes = list(classes_of(labels))
    lost = table[classes[0]].isna() & table["place"].ne("")
    table.loc[lost, "error"] = f"NoLabel: not in {LABELS}"
    missing = labels[~labels["image_id"].isin(table["image_id"])]
    rows = missing.assign(file=missing["image_id"] + ".dcm", error=f"Missing: no such file in {folder}")
    table = pd.concat([table, rows], ignore_index=True).astype(object)
    table[classes] = table[classes].astype("Int64").astype(object)
    return table.fillna("")

# %%
drawn = [Slice(f"{name}.dcm", 0, 4, 4, position=(0, 0, z), series="1.2", patient_id=patient,
               more={"box": (0, 0, 4, 4), "offset": False}) for name, z, patient in (("b", 5, "p"), ("a", 0, "p"))]
lists = [SLICES[:0], ["file", "frame", "slice", "error", "note"]]
others = pd.DataFrame([["cut.dcm", "", None, "CorruptPixels: ...", ""]], columns=lists[1])
example = slice_table(arrange(drawn)[0], others)
given = pd.DataFrame({"image_id": ["a", "cut", "gone"], "any": [1, 0, 0]})
example = with_labels(example, given, "stage_2_train_images")
assert example["image_id"].tolist() == ["a", "b", "cut", "gone"] and example["any"].tolist() == [1, "", 0, 0]
example[["image_id", "patient_id", "position_mm", "place", "x1", "any", "error", "note"]]

# %% [markdown]
# ## Pictures that are given
# The data set of single pictures has one window. It is put into all three channels.

# %%
#| export
def copy_picture(
    item: dict,  # image_id, file, root, pictures, faithful
) -> dict:       # rows, columns and box
    "Write one given picture in three channels."
    picture = phe.read_picture(item["root"], item["file"])
    write_png(Path(item["pictures"]) / f"{item['image_id']}.png", picture)
    sides = dict(zip(("rows", "columns"), picture.shape))
    return sides | dict(zip(BOX, head_box(picture, item["faithful"])))

def prepare_given(
    folder: Path,         # of the data set
    output: Path,         # the folder `processed`
    settings: dict,       # pictures: folder; faithful
    code: dict,           # a change starts anew
    workers: int | None,
) -> pd.DataFrame:
    "The table and the pictures of a data set of single pictures."
    table = phe.read_slices(folder)
    items = [{**row, "root": str(folder), **settings} for row in table[["image_id", "file"]].to_dict("records")]
    found = map_files(copy_picture, items, table=output / "pictures.csv", key="image_id", code=code, workers=workers,
                      reads=lambda item: [Path(item["root"], item["file"])], writes=output, label="prepare")
    (output / "pictures.csv").unlink()
    for column in ("rows", "columns", *BOX):
        table[column] = found[column].values if column in found else np.nan
        table[column] = table[column].astype("Int64").astype(object)
    table["error"] = found["error"].values
    table["mean_hu"] = ""
    return table[[*SLICES, "place", *BOX, *classes_of(table)]].astype(object).fillna("")

# %% [markdown]
# ## One box for a series
# With `box` set to `series`, all slices of a series are cut alike.

# %%
#| export
def with_common_boxes(
    table: pd.DataFrame,   # with `rows`, `columns`, `series`, `place` and BOX
) -> pd.DataFrame:         # the same, the slices of a series have one box
    "Give all slices of a series the box around all of their heads."
    table = table.copy()
    known = table["place"].ne("") & table["x0"].ne("")
    for (_, rows, columns), own in table[known].groupby(["series", "rows", "columns"]):
        table.loc[own.index, BOX] = common_box(own[BOX].values.tolist(), (int(rows), int(columns)))
    return table

# %%
boxed = with_common_boxes(pd.DataFrame({
    "series": ["s", "s", "t", "s"], "place": [0, 1, 0, ""], "rows": 9, "columns": 9, "x0": [1, 2, 3, ""],
    "y0": [1, 2, 3, ""], "x1": [5, 6, 7, ""], "y1": [7, 6, 8, ""]}).astype(object))
assert boxed[BOX].values.tolist() == [[1, 1, 6, 7], [1, 1, 6, 7], [3, 3, 7, 8], [""] * 4]

# %% [markdown]
# ## Run the stage

# %%
#| export
def prepare_files(
    folder: Path,         # in the competition's layout
    output: Path,         # the folder `processed`
    settings: dict,       # pictures: folder; faithful
    code: dict,           # a change starts anew
    workers: int | None,
) -> pd.DataFrame:
    "The table and the pictures of a competition."
    labels = read_labels(folder / LABELS)
    images, faithful = images_folder(folder, "train"), settings["faithful"]
    each = partial(write_picture, folder=settings["pictures"], faithful=faithful)
    volumes, rest = read_series(images, output, workers, each, settings, code)
    if not faithful:
        _correct([s for v in volumes for s in v.slices], images, Path(settings["pictures"]))
    return with_labels(slice_table(volumes, rest, faithful), labels, images.name)

def run_stage(
    run: Run,
    workers: int | None = None,   # number of processes; None: one per core
) -> pd.DataFrame:                # slices.csv
    "The files of a data set -> processed/slices.csv and processed/pictures/."
    with run.stage("prepare") as results:
        folder, output = run.path(place_of(run)), run.path("processed/")
        section = run.section("prepare")
        settings = {"pictures": str(output / "pictures"), "faithful": section.faithful}
        make = prepare_given if phe.is_phe(folder) else prepare_files
        made = make(folder, output, settings, run.code("prepare"), workers)
        write_csv(output / "slices.csv", with_common_boxes(made) if section.box == "series" else made)
        for left in (output / "pictures").glob(".*.png"):
            left.unlink()   # left by a process that was killed
        table = read_table(output / "slices.csv")
        results |= {"rows": len(table), "slices": len(usable(table)), "failed": int(table["error"].ne("").sum())}
    return table

# %%
table = run_stage(run, workers or None)
slices = usable(table)
slices.groupby("series").agg(patient=("patient_id", "first"), slices=("place", "size"), mm=("gap_mm", "median"),
                             **{c: (c, "sum") for c in classes_of(table)}).head(8)

# %%
table.loc[table["error"].ne("") | table["place"].isna(), ["file", "error", "note"]].head(8)

# %% [markdown]
# What was corrected or is odd, and in how many files:

# %%
notes = table.loc[table["note"].ne(""), "note"].replace(r"\b\w*\d[\w.]*", "#", regex=True)
notes.value_counts().head(8).to_frame("files")

# %% [markdown]
# ## What came out
# The series with the most hemorrhage, from its lowest slice to its highest, with the box of the head. Red is the bone
# window, green the subdural and blue the brain window.

# %%
most = slices.groupby("series")[classes_of(table)[-1]].sum().idxmax()
shown = slices[slices["series"] == most].sort_values("place")
pictures = [cv2.imread(str(run.path(f"processed/pictures/{i}.png")))[..., ::-1] for i in shown["image_id"]]
figure = sheet(pictures, shown[BOX].values.tolist(), columns=9)
for ax, row in zip(figure.axes, shown.itertuples()):
    kinds = [c[:6] for c in classes_of(table) if getattr(row, c) and (c != "any" or len(classes_of(table)) == 1)]
    ax.set_title(" ".join(kinds), fontsize=8, color="white", pad=1)

# %% [markdown]
# ---
# [← Phantom](01_phantom.py) · [Folds →](03_folds.py)

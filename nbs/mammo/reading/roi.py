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
# # Region of interest
# > Boxes around breasts: read from the files of a drawing tool, checked, and written for training and evaluation.
#
# A detector is only as good as its boxes. The winner's boxes were drawn in part by others and in part by hand, and
# stored in the text files of YOLOv5, one per picture. Every line of such a set is checked before a training. A wrong
# line becomes a row of a table with the name of the problem, and does not stop the training.

# %%
#| default_exp mammo.reading.roi

# %% tags=["parameters"]
folder = ""    # a set in YOLOv5 text files: classes.txt, train.txt, val.txt, labels/; "" makes one from a practice run

# %%
#| export
import math
from pathlib import Path

import pandas as pd

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import write_json, write_text

# %%
#| hide
import tempfile

import cv2
import matplotlib.pyplot as plt
import numpy as np

from mammo_nb.core.dicom import read_image
from mammo_nb.core.practice import practice
from mammo_nb.mammo.system import system
from mammo_nb.mammo.datasets import read_table

# %% [markdown]
# ## The text files
# `classes.txt` names the classes, `train.txt` and `val.txt` list pictures, and `labels/` has a file for each picture.
# Each line is a box: *class, centre x, centre y, width, height*, as shares of the picture. Our only class is the
# breast.

# %%
#| export
COLUMNS = ["image", "patient_id", "image_id", "split", "cx", "cy", "w", "h"]  # the last four are shares of the picture

class AnnotationError(ProjectError):
    "A set of boxes cannot be used at all. The text names what is missing."

def _box(
    line: str,      # one line of a label file
    classes: list,  # names of the classes
) -> tuple[list | None, str]:  # cx, cy, w, h as shares, None for a wrong line; the problem, "" for a correct line
    "Read one line, `class cx cy w h`."
    words = line.split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != 5 or not all(map(math.isfinite, numbers)):
        return None, f"a line that is no box: {line!r:.60}"
    kind, cx, cy, w, h = numbers
    if kind not in range(len(classes)):
        return None, f"class {words[0]}, there are {len(classes)}"
    if w <= 0 or h <= 0:
        return None, "a box without area"
    # such files are written with six digits after the point
    if min(cx - w / 2, cy - h / 2) < -2e-6 or max(cx + w / 2, cy + h / 2) > 1 + 2e-6:
        return None, "the box leaves the picture"
    return [cx, cy, w, h], ""

def _label(
    path: Path,     # labels/*.txt
    classes: list,  # names of the classes
) -> tuple[list | None, str]:  # as from `_box`
    "Read the one box of a picture."
    if not path.exists():
        return None, "no label"
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    if len(lines) != 1:
        return None, f"{len(lines)} boxes, one is expected"
    return _box(lines[0], classes)

def read_yolo(
    folder: Path,          # contains classes.txt, train.txt, val.txt and labels/
    images: bool = False,  # whether a missing picture is a problem
) -> tuple[pd.DataFrame, pd.DataFrame]:  # usable boxes with COLUMNS; problems with the columns image and problem
    """Read and check boxes in the text format of YOLOv5. Pictures are named `<patient_id>@<image_id>`. Raises
    AnnotationError if a file of the set is missing."""
    folder = Path(folder)
    for name in ("classes.txt", "train.txt", "val.txt", "labels"):
        if not (folder / name).exists():
            raise AnnotationError(
                f"{folder} has no {name}. A set of boxes has classes.txt, train.txt, val.txt and labels/.")
    classes = [name.strip() for name in (folder / "classes.txt").read_text().split("\n") if name.strip()]
    listed = [(line.strip(), split) for split in ("train", "val")
              for line in (folder / f"{split}.txt").read_text().splitlines() if line.strip()]
    rows, problems, seen = [], [], set()
    for image, split in listed:
        stem = Path(image).stem
        if stem in seen:
            problems.append((image, "listed twice"))
            continue
        seen.add(stem)
        box, problem = _label(folder / "labels" / f"{stem}.txt", classes)
        if images and not (folder / image).exists():
            problem = problem or "no picture"
        patient_id, at, image_id = stem.partition("@")
        if not at:
            problem = problem or "a name without patient: <patient_id>@<image_id> is expected"
        if problem:
            problems.append((image, problem))
        else:
            rows.append((image, patient_id, image_id, split, *box))
    problems += [(f"labels/{path.name}", "in no list") for path in sorted((folder / "labels").glob("*.txt"))
                 if path.stem not in seen]
    boxes = pd.DataFrame(rows, columns=COLUMNS)
    problems += [(image, "its patient is in train and in val") for image in boxes.loc[shared(boxes), "image"]]
    return boxes, pd.DataFrame(problems, columns=["image", "problem"])

def shared(
    boxes: pd.DataFrame,  # patient_id, split
) -> pd.Series:           # bool, one per box
    "Find boxes of patients who are in more than one split."
    return boxes.groupby("patient_id")["split"].transform("nunique") > 1

def apart(
    boxes: pd.DataFrame,     # COLUMNS
    faithful: bool = False,  # keep the splits unchanged; in the published set, three patients are in both
) -> pd.DataFrame:           # the same boxes
    "Move patients who are in both splits to train."
    return boxes if faithful else boxes.assign(split=boxes["split"].mask(shared(boxes), "train"))

# %% [markdown]
# ## A practice set
# It is made from phantoms, whose boxes are known.

# %%
#| export
def write_yolo(
    folder: Path,         # gets classes.txt, train.txt, val.txt and labels/
    boxes: pd.DataFrame,  # COLUMNS
    classes: tuple = ("ROI",),  # names of the classes
):
    "Write boxes as text files of YOLOv5."
    folder = Path(folder)
    write_text(folder / "classes.txt", "\n".join(classes) + "\n")
    for split in ("train", "val"):
        images = boxes.loc[boxes["split"] == split, "image"]
        write_text(folder / f"{split}.txt", "".join(f"{image}\n" for image in images))
    for row in boxes.itertuples():
        write_text(folder / "labels" / f"{Path(row.image).stem}.txt",
                   f"0 {row.cx:.6f} {row.cy:.6f} {row.w:.6f} {row.h:.6f}\n")

def from_pixels(
    table: pd.DataFrame,  # patient_id, image_id; x0, y0, x1, y1, half-open, and rows, columns, all in pixels
    split: list,          # train or val, one per row
) -> pd.DataFrame:        # COLUMNS
    "Convert boxes in pixels to shares of their picture."
    names = "images/" + table["patient_id"] + "@" + table["image_id"] + ".png"
    return pd.DataFrame({
        "image": names, "patient_id": table["patient_id"], "image_id": table["image_id"], "split": split,
        "cx": (table["x0"] + table["x1"]) / 2 / table["columns"], "cy": (table["y0"] + table["y1"]) / 2 / table["rows"],
        "w": (table["x1"] - table["x0"]) / table["columns"], "h": (table["y1"] - table["y0"]) / table["rows"]
    })[COLUMNS]

# %%
if not folder:
    run = practice(system, before="datasets")
    truth = read_table(run.path("competition/truth/boxes.csv"), ["x0"])
    frames = []
    for r in truth.itertuples():
        file = next(run.path("competition").glob(f"*_images/{r.patient_id}/{r.image_id}.dcm"))
        frames.append(read_image(file).pixels)
    truth["rows"], truth["columns"] = zip(*(f.shape for f in frames))
    folder = Path(tempfile.mkdtemp()) / "set"
    drawn = from_pixels(truth, ["val" if p == truth["patient_id"].iloc[-1] else "train" for p in truth["patient_id"]])
    write_yolo(folder, drawn)
boxes, problems = read_yolo(folder)
print(f"{len(boxes)} boxes, {boxes['split'].eq('val').sum()} of them for validation; {len(problems)} problems")
boxes.head()

# %% [markdown]
# The place and the size of the boxes:

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3.4))
for r in boxes.itertuples():
    corner = r.cx - r.w / 2, r.cy - r.h / 2
    axes[0].add_patch(plt.Rectangle(corner, r.w, r.h, fill=False, edgecolor="tab:blue", alpha=.25))
axes[0].set(xlim=(0, 1), ylim=(1, 0), title="all boxes, as shares of the picture", aspect="equal")
for split, part in boxes.groupby("split"):
    axes[1].scatter(part["w"], part["h"], s=12, label=split)
axes[1].set(xlabel="width", ylabel="height", xlim=(0, 1.02), ylim=(0, 1.02),
            title=f"median area {(boxes['w'] * boxes['h']).median():.2f}")
axes[1].legend()
fig.tight_layout()

# %% [markdown]
# The problems that are found in a set with mistakes:

# %%
bad = Path(tempfile.mkdtemp())
write_yolo(bad, boxes.head(6))
names = [Path(image).stem for image in boxes["image"].head(6)]
texts = "0 .5 .5 .4", "3 .5 .5 .4 .4", "0 .9 .5 .4 .4", "0 .5 .5 0 .4", "0 .5 .5 .4 .4\n0 .4 .4 .2 .2\n"
for name, text in zip(names, texts):
    (bad / "labels" / f"{name}.txt").write_text(text)
(bad / "labels" / "7@8.txt").write_text("0 .5 .5 .4 .4\n")
usable, found = read_yolo(bad)
assert len(usable) == 1 and len(found) == 6
found

# %% [markdown]
# ## COCO
# The usual evaluation reads one JSON file per split, with boxes in pixels. Pixels need the size of each picture.

# %%
#| export
def to_coco(
    boxes: pd.DataFrame,      # COLUMNS
    sizes: dict,              # image -> (rows, columns), in pixels
    name: str = "ROI",        # name of the class, whose id is 1
) -> dict:                    # images, annotations, categories
    """Convert boxes to COCO instances: [x, y, width, height] in pixels, ids from 1. Raises AnnotationError if the size
    of a picture is unknown."""
    if absent := [image for image in boxes["image"] if image not in sizes]:
        raise AnnotationError(f"{len(absent)} pictures have no size, such as {absent[0]}. Give the size of each one.")
    images, annotations = [], []
    for number, row in enumerate(boxes.itertuples(), 1):
        rows, columns = map(int, sizes[row.image])
        w, h = row.w * columns, row.h * rows
        images.append({"id": number, "file_name": row.image, "height": rows, "width": columns})
        annotations.append({
            "id": number, "image_id": number, "category_id": 1,
            "bbox": [row.cx * columns - w / 2, row.cy * rows - h / 2, w, h], "area": w * h, "iscrowd": 0
        })
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": name}]}

def write_coco(
    folder: Path,           # gets instances_train2017.json and instances_val2017.json, the names that YOLOX expects
    boxes: pd.DataFrame,    # COLUMNS
    sizes: dict,            # image -> (rows, columns), in pixels
):
    "Write one COCO file per split."
    for split, part in boxes.groupby("split"):
        write_json(Path(folder) / f"instances_{split}2017.json", to_coco(part, sizes))

# %%
if "truth" in globals():
    sizes = {image: frame.shape for image, frame in zip(drawn["image"], frames)}
    coco = to_coco(boxes[boxes["split"] == "val"], sizes)
    fig, axes = plt.subplots(1, 4, figsize=(11, 3.6))
    for ax, image, annotation in zip(axes, coco["images"], coco["annotations"]):
        frame = frames[drawn["image"].tolist().index(image["file_name"])]
        ax.imshow(cv2.resize(frame, None, fx=.5, fy=.5), cmap="gray")
        ax.axis("off")
        x, y, w, h = (v / 2 for v in annotation["bbox"])
        ax.add_patch(plt.Rectangle((x, y), w, h, fill=False, edgecolor="orange"))
    last = truth[truth["patient_id"] == truth["patient_id"].iloc[-1]]
    for annotation, r in zip(coco["annotations"], last.itertuples()):
        assert np.allclose(annotation["bbox"], (r.x0, r.y0, r.x1 - r.x0, r.y1 - r.y0), atol=1e-3)

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

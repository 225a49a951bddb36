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
# # Annotations
# > Boxes that somebody has drawn, and DICOM files: a set of pictures to train a detector on.
#
# In a set of boxes in YOLOv5 text, each picture is named after its patient and its image. The DICOM files of the
# competition are read, and each becomes a small picture for the detector: from minimum to maximum, tissue bright.

# %%
#| default_exp mammo.reading.annotations

# %%
#| export
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammo_nb.core.dicom import read_frame
from mammo_nb.core.files import inside, write_csv
from mammo_nb.core.grey import decode_grey
from mammo_nb.core.parallel import map_files
from mammo_nb.core.pictures import write_png
from mammo_nb.core.runs import StageError
from mammo_nb.mammo.reading import faithful
from mammo_nb.mammo.reading.boxes import frame_view
from mammo_nb.mammo.reading.roi import apart, read_yolo, write_yolo
from mammo_nb.mammo.recipes import Detector

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt

from mammo_nb.mammo.phantom import make_competition
from mammo_nb.mammo.reading.roi import from_pixels

# %% tags=["parameters"]
size = 96  # side of the detector's input, pixels

# %% [markdown]
# ## One frame
# A frame is decoded at the size that is needed. With `faithful` it is prepared as the winner did it: decoded in full,
# windowed, stored as a JPEG file, then resized bilinearly.

# %%
#| export
def view_file(
    item: dict,  # file and folder of the competition; target: PNG; size in pixels; faithful
) -> dict:       # rows and columns of the frame
    "Write one frame as the detector's input."
    cv2.setNumThreads(1)
    frame = read_frame(inside(item["folder"], item["file"]))
    size = item["size"]
    rows, columns = frame.header.rows, frame.header.columns
    if item["faithful"]:
        image = frame.decode()
        whole, _ = faithful.detector_view(faithful.as_cast(image.pixels, "window"), image.header, "window",
                                          max(rows, columns))
        whole = cv2.imdecode(cv2.imencode(".jpg", whole.astype(np.uint8))[1], cv2.IMREAD_GRAYSCALE)
        ratio = min(size / rows, size / columns)
        view = cv2.resize(whole, (int(columns * ratio), int(rows * ratio)), interpolation=cv2.INTER_LINEAR)
    else:
        view = frame_view(decode_grey(frame, min(1.0, size / max(rows, columns))), size)
    write_png(Path(item["target"]), view)
    return {"rows": rows, "columns": columns}

# %% [markdown]
# ## A set
# A box that cannot be used has a row in `problems.csv` with the reason, and the others are used.

# %%
#| export
def prepare_frames(
    annotations: Path,       # boxes in YOLOv5 text
    competition: Path,       # with train_images/<patient_id>/<image_id>.dcm
    output: Path,            # gets the set, problems.csv and frames.csv
    settings: Detector,      # size; faithful: patients in both parts stay there
    workers: int | None = None,  # processes; None: one for each core
) -> pd.DataFrame:           # the boxes, roi.COLUMNS
    "Make a set with pictures of boxes and DICOM files; raises `StageError` if a part of it is empty."
    boxes, problems = read_yolo(annotations)
    boxes = apart(boxes, settings.faithful)
    items = [{
        "file": f"train_images/{b.patient_id}/{b.image_id}.dcm",
        "folder": str(competition),
        "target": str(output / b.image),
        "size": settings.size,
        "faithful": settings.faithful,
    } for b in boxes.itertuples()]
    views = map_files(view_file, items, table=output / "frames.csv",
                      params={"size": settings.size, "faithful": settings.faithful}, writes=output,
                      workers=workers, label="frames")
    failed = views["error"].ne("").to_numpy()
    unread = pd.DataFrame({"image": boxes["image"][failed], "problem": views["error"][failed].to_numpy()})
    problems = pd.concat([problems, unread])
    write_csv(output / "problems.csv", problems)
    boxes = boxes[~failed].reset_index(drop=True)
    for split, purpose in (("train", "train"), ("val", "validate")):
        if not boxes["split"].eq(split).any():
            raise StageError(f"There is no usable box to {purpose} with. The reasons are in "
                             f"{output.name}/problems.csv; correct the boxes or add files.")
    write_yolo(output, boxes)
    print(f"{len(boxes)} frames are used; {output / 'problems.csv'} lists {len(problems)} problems.")
    return boxes

# %% [markdown]
# ## What came out
# A small drawn competition, whose boxes are known. One file is missing:

# %%
folder = Path(tempfile.mkdtemp())
table = make_competition(folder / "raw", patients=4, test_patients=1, frame=(320, 256), prevalence=.5, seed=3)
table = table[table["split"] == "train"].assign(rows=320, columns=256)
first = table["patient_id"].iloc[0]
write_yolo(folder / "drawn", from_pixels(table, ["val" if p == first else "train" for p in table["patient_id"]]))
missing = table.iloc[-1]
(folder / "raw/train_images" / missing["patient_id"] / f"{missing['image_id']}.dcm").unlink()
boxes = prepare_frames(folder / "drawn", folder / "raw", folder / "set", Detector(size=size), workers=1)
assert len(boxes) == len(table) - 1 and len(pd.read_csv(folder / "set/problems.csv")) == 1

# %%
fig, axes = plt.subplots(1, 6, figsize=(10, 2.4))
for ax, b in zip(axes, boxes.itertuples()):
    view = cv2.imread(str(folder / "set" / b.image), cv2.IMREAD_GRAYSCALE)
    corner, sides = np.array([b.cx - b.w / 2, b.cy - b.h / 2]), np.array([b.w, b.h])
    scale = np.array(view.shape[::-1])
    ax.imshow(view, cmap="gray", vmin=0, vmax=255)
    ax.add_patch(plt.Rectangle(corner * scale, *(sides * scale), fill=False, edgecolor="orange"))
    ax.axis("off")

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

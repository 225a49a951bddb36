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
# > A simple way from a frame to a picture: all grey levels, the largest bright area, twice as high as wide.
#
# There is no detector and no window from the header. The darkest pixel becomes black and the brightest white, and the
# breast is the largest area above a threshold. So a bright marker next to a faint breast costs grey levels, and a label
# that touches the breast is in the picture. The winner's preparation avoids both; the comparison measures what that is
# worth. Boxes and pictures are those of the walk-through's code, pixel by pixel: `tests/test_parity_baseline`.

# %%
#| default_exp baseline.prepare

# %%
#| export
import time
from dataclasses import asdict

import cv2
import numpy as np
import pandas as pd

from mammo_nb.baseline.system import Prepare
from mammo_nb.core.dicom import Image, read_image
from mammo_nb.core.files import inside, write_csv
from mammo_nb.core.parallel import map_files
from mammo_nb.core.pictures import write_png
from mammo_nb.core.runs import Run
from mammo_nb.mammo.crops import WHOLE, crop_path
from mammo_nb.mammo.datasets import read_table, root_of
from mammo_nb.mammo.reading.boxes import Box

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.practice import practice
from mammo_nb.baseline.system import system

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run, such as {"prepare.height": 512}
workers = 0                                   # number of processes; 0: one per core
label = 1                                     # label of the images that are shown at the end, 0 or 1

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="prepare", overrides=overrides)
run.contract("prepare")

# %%
#| hide
settings = run.section("prepare")
labels = read_table(run.path("processed/cleaned_label.csv"), ["file"])
image = read_image(root_of(run, labels["dataset"][0]) / labels["file"][0])

# %% [markdown]
# ## Grey levels
# The computation uses whole numbers only, so that every machine rounds alike. MONOCHROME1 stores bright tissue as low
# numbers.

# %%
#| export
def full_range(
    image: Image,    # a frame as stored
) -> np.ndarray:     # uint8 (rows, columns), tissue bright
    "Lowest to highest stored value as 0 to 255; a flat frame is black."
    low, high = int(image.pixels.min()), int(image.pixels.max())
    x = image.pixels.astype(np.int64)
    x = high - x if image.header.photometric == "MONOCHROME1" else x - low
    return (x * 255 // max(1, high - low)).astype(np.uint8)

# %%
grey = full_range(image)
assert grey.dtype == np.uint8 and (grey.min(), grey.max()) == (0, 255)
fig, axes = plt.subplots(1, 2, figsize=(7, 3.4))
axes[0].imshow(grey, cmap="gray")
axes[0].axis("off")
axes[0].set_title(f"{image.header.photometric}, {grey.shape}", fontsize=9)
axes[1].hist(grey[grey > 0], bins=64)
axes[1].set(title="grey levels above black", yticks=[])
fig.tight_layout()

# %% [markdown]
# ## The largest bright area
# The frame is blurred a little and cut at a threshold, and the largest outline is kept. The walk-through speaks of
# Otsu's threshold, but its code sets OpenCV's flag to 16, which is the triangle method; Otsu's is 8. So all its boxes
# come from the triangle method, and ours do. It is also the better one here: it puts the threshold at the foot of the
# background's peak, where the skin begins. On 104 drawn frames the boxes contain the whole breast (IoU 0.979 to 0.994).
# Otsu's are tighter on most, but their IoU falls to 0.72, and on 3 frames they cut off more than a tenth of the breast.

# %%
#| export
def largest_box(
    grey: np.ndarray,   # uint8 (rows, columns)
) -> Box:               # source "triangle"; "full frame" if there is no outline
    "Bounding box of the largest outline above the threshold of the triangle method (Zack, Rogers & Latt 1977)."
    _, bright = cv2.threshold(cv2.GaussianBlur(grey, (5, 5), 0), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_TRIANGLE)
    outlines, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not outlines:
        return Box(0, 0, grey.shape[1], grey.shape[0], "full frame")
    x, y, w, h = cv2.boundingRect(max(outlines, key=cv2.contourArea))
    return Box(x, y, x + w, y + h, "triangle")

# %%
box = largest_box(grey)
fig, ax = plt.subplots(figsize=(3, 4))
ax.imshow(grey, cmap="gray")
ax.axis("off")
ax.set_title(f"{box.source}: {box.x1 - box.x0} x {box.y1 - box.y0} of {grey.shape[1]} x {grey.shape[0]}", fontsize=9)
ax.add_patch(plt.Rectangle((box.x0, box.y0), box.x1 - box.x0, box.y1 - box.y0, fill=False, edgecolor="orange"));

# %% [markdown]
# ## Twice as high as wide
# Black rows are added on top, or black columns on the left. An odd height stays odd, as in the walk-through: the width
# is half of it, rounded down. The result is resized to the network's input, bilinear.

# %%
#| export
def pad_upright(
    grey: np.ndarray,   # uint8 (rows, columns)
) -> np.ndarray:        # uint8 (2 n, n) or (2 n + 1, n), the picture in its lower right corner
    "Zeros on top or on the left, until the height is twice the width; an odd height is one more."
    rows, columns = grey.shape
    width = max(columns, rows // 2)
    top = max(0, 2 * width - rows)
    return cv2.copyMakeBorder(grey, top, 0, width - columns, 0, cv2.BORDER_CONSTANT, value=0)

def prepare(
    image: Image,        # a frame as stored
    settings: Prepare,
) -> tuple[np.ndarray, Box]:  # uint8 (height, width); the box that was cut out, in frame pixels
    "The picture that is stored, and that is the input of the network."
    grey = full_range(image)
    box = largest_box(grey)
    upright = pad_upright(grey[box.y0:box.y1, box.x0:box.x1])
    return cv2.resize(upright, (settings.width, settings.height), interpolation=cv2.INTER_LINEAR), box

# %%
examples = [np.full((30, 40), 200, np.uint8), np.full((91, 20), 200, np.uint8), grey[box.y0:box.y1, box.x0:box.x1]]
assert [pad_upright(e).shape for e in examples[:2]] == [(80, 40), (91, 45)]
assert pad_upright(examples[0])[:50].max() == 0 and pad_upright(examples[1])[:, :25].max() == 0
fig, axes = plt.subplots(1, 4, figsize=(7, 3), facecolor="slategrey")
for ax, p in zip(axes, [*map(pad_upright, examples), prepare(image, settings)[0]]):
    ax.imshow(p, cmap="gray", vmin=0, vmax=255)
    ax.set_title(p.shape, fontsize=9)
    ax.axis("off")

# %% [markdown]
# ## Run the stage
# The table has one row for each image, with columns of mammo's crops.csv, and the pictures have the paths of its crops.
# So later stages of `mammo` can read both.

# %%
#| export
def prepare_file(
    item: dict,  # file, patient_id, image_id, folder, images, settings
) -> dict:       # a row of crops.csv, and seconds
    "Decode, prepare, write."
    cv2.setNumThreads(1)  # the processes share the cores already
    started, settings = time.perf_counter(), Prepare(**item["settings"])
    image = read_image(inside(item["folder"], item["file"]))
    picture, box = prepare(image, settings)
    sha = write_png(crop_path(item["images"], item["patient_id"], item["image_id"]), picture)
    return {
        "patient_id": item["patient_id"], "image_id": item["image_id"], "rows": image.header.rows,
        "columns": image.header.columns, "decoder": image.decoder, "x0": box.x0, "y0": box.y0, "x1": box.x1,
        "y1": box.y1, "box_source": box.source, "sha256": sha, "seconds": round(time.perf_counter() - started, 3)
    }

def run_stage(
    run: Run,
    workers: int | None = None,      # number of processes; None: one per core
) -> pd.DataFrame:                   # crops.csv with seconds
    "The files of the unified table -> cleaned_images/, crops.csv, crop_errors.csv."
    settings = run.section("prepare")
    with run.stage("prepare"):
        output = run.path("processed/")
        place = {"images": str(output / "cleaned_images"), "settings": asdict(settings)}
        files = read_table(output / "cleaned_label.csv", ["file", "patient_id", "image_id", "dataset"])
        roots = {name: str(root_of(run, name)) for name in files["dataset"].unique()}
        items = [{**row, "folder": roots[name], **place}
                 for row, name in zip(files[["file", "patient_id", "image_id"]].to_dict("records"), files["dataset"])]
        work = map_files(prepare_file, items, table=output / "crops_seconds.csv",
                         params=place, code=run.code("prepare"), writes=output, label="prepare", workers=workers)
        for left in (output / "cleaned_images").glob(".*.png"):
            left.unlink()   # left by a process that was killed
        for column in ("patient_id", "image_id"):
            work[column] = files[column].values  # an error row has them too
        work = work.astype({c: "Int64" for c in WHOLE if c in work})
        failed = work.loc[work["error"] != "", ["file", "patient_id", "image_id", "error"]]
        write_csv(output / "crop_errors.csv", failed)
        write_csv(output / "crops.csv", work.drop(columns=["seconds"], errors="ignore"))
    return work

# %%
table = run_stage(run, workers or None)
done = table[table["error"] == ""]
print(f"{len(done)} of {len(table)} images, {done['seconds'].median():.2f} s each")
table.groupby("box_source").size().to_frame("images")

# %% [markdown]
# ## What came out
# Nine images of one label, drawn at random.

# %%
chosen = labels[labels["cancer"] == label].merge(done[["patient_id", "image_id"]])
chosen = chosen.sample(min(9, len(chosen)), random_state=0)
fig, axes = plt.subplots(3, 3, figsize=(5, 9.6), facecolor="black")
for ax, row in zip(axes.flat, chosen.itertuples()):
    path = crop_path(run.path("processed/cleaned_images"), row.patient_id, row.image_id)
    ax.imshow(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), cmap="gray", vmin=0, vmax=255)
    ax.set_title(f"{row.laterality} {row.view}, {'cancer' if label else 'no cancer'}", fontsize=8, color="white")
for ax in axes.flat:
    ax.axis("off")
fig.tight_layout(pad=0.3)

# %% [markdown]
# ---
# [← Baseline](00_system.py) · [Train →](02_train.py)

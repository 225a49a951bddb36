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
# # Exams
# > What the images of a run are, and whole exams of the breasts that a model is most wrong about.
#
# A wrong probability is understood from the whole exam: the other view of the same breast, and the other breast. The
# views hang as a radiologist is used to: the right breast on the left, CC before MLO.

# %%
#| default_exp mammo.learning.exams

# %%
#| export
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from mammo_nb.core.dicom import read_frame
from mammo_nb.core.explanations import colour_scale, onto_frame, overlay
from mammo_nb.core.grey import decode_grey
from mammo_nb.core.pictures import shrink
from mammo_nb.core.reports import extremes, show_files
from mammo_nb.core.runs import Run
from mammo_nb.mammo.crops import crop, scaling_of
from mammo_nb.mammo.datasets import per_breast, root_of
from mammo_nb.mammo.reading.boxes import Box
from mammo_nb.mammo.reading.labels import read_table
from mammo_nb.mammo.recipes import Crops

# %%
#| hide
import tempfile
from types import SimpleNamespace

from mammo_nb.core.pictures import write_png

# %% tags=["parameters"]
rows, columns = 400, 320   # of the drawn frames below

# %% [markdown]
# ## What the images are

# %%
#| export
def sets_table(
    tables: dict[str, pd.DataFrame],   # name -> one row an image: patient_id, laterality, and cancer where known
) -> pd.DataFrame:                     # set, patients, breasts, images, breasts with cancer
    "The size of each set."
    counted = []
    for name, table in tables.items():
        breasts = table.groupby(["patient_id", "laterality"])
        cancers = int(breasts["cancer"].max().sum()) if "cancer" in table else None
        counted.append((name, table["patient_id"].nunique(), breasts.ngroups, len(table), cancers))
    found = pd.DataFrame(counted, columns=["set", "patients", "breasts", "images", "breasts with cancer"])
    return found.astype({"breasts with cancer": "Int64"})

FACTS = {"size": "frame, rows × columns", "decoder": "decoder", "box_source": "box found by", "note": "note"}

def plot_boxes(
    table: pd.DataFrame,   # rows, columns, x0, y0, x1, y1 of each frame, in pixels
):
    "All boxes in a frame of unit size, and the share of the frame that they keep."
    table = table.dropna(subset=["x0", "rows"])
    x0, x1 = table["x0"] / table["columns"], table["x1"] / table["columns"]
    y0, y1 = table["y0"] / table["rows"], table["y1"] / table["rows"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=[1, 2])
    for left, top, right, bottom in zip(x0, y0, x1, y1):
        axes[0].add_patch(Rectangle((left, top), right - left, bottom - top, fill=False,
                                    alpha=max(.03, min(.6, 30 / len(table)))))
    axes[0].set(xlim=(0, 1), ylim=(1, 0), aspect="equal", title=f"boxes of {len(table)} frames", xticks=[], yticks=[])
    axes[1].hist((x1 - x0) * (y1 - y0), bins=30, range=(0, 1))
    axes[1].set(title="share of the frame inside the box", xlabel="share", ylabel="frames")
    figure.tight_layout()

def show_data(
    run: Run,
    trained: bool,   # whether the run has a training set of its own
):
    "Sizes of the sets, sizes and decoders of their frames, files that could not be used, and all boxes."
    files = {**({"training": "processed/crops.csv"} if trained else {}), "test": "test_per_image.csv"}
    images = {name: read_table(run.path(file), ["file"]) for name, file in files.items() if run.path(file).exists()}
    if not images:
        return
    labelled = {"training": read_table(run.path("folds.csv"), ["cancer"])} if trained else {}
    show_files(sets_table({**images, **labelled}), images, FACTS)
    plot_boxes(pd.concat(images.values()))

# %%
made = pd.DataFrame({"patient_id": ["1", "1", "2"], "laterality": ["L", "L", "R"], "cancer": [1, 1, 0]})
sets_table({"training": made, "test": made.drop(columns="cancer")})

# %% [markdown]
# ## The most confident wrong breasts

# %%
#| export
def wrong_breasts(
    oof: pd.DataFrame,   # one row an image: patient_id, laterality, cancer, probability
    threshold: float,
    count: int = 3,      # of each kind
) -> pd.DataFrame:       # one row a breast: patient_id, laterality, probability, cancer, kind (missed or suspected)
    "The cancers with the lowest probabilities below the threshold, and the other breasts with the highest above it."
    rows = extremes(per_breast(oof), "cancer", threshold, count)
    return rows[rows["kind"].isin(["missed", "suspected"])].reset_index(drop=True)

VIEWS = {"CC": 0, "MLO": 1}   # others follow

def exam_images(
    run: Run,
    patient_id: str,
) -> pd.DataFrame:    # a row an image: what crops.csv has, view, laterality, cancer, dataset, probability
    "The images of a patient of the training data, in the order in which they hang."
    oof = read_table(run.path("oof.csv"), ["probability"]).query("patient_id == @patient_id")
    folds = read_table(run.path("folds.csv"), ["view"])[["patient_id", "image_id", "view", "dataset"]]
    crops = read_table(run.path("processed/crops.csv"), ["file"])
    rows = oof.merge(folds, on=["patient_id", "image_id"], how="left")
    rows = rows.merge(crops, on=["patient_id", "image_id"], how="left")
    order = pd.DataFrame({"view": rows["view"].map(VIEWS).fillna(len(VIEWS)), "side": rows["laterality"] != "R"})
    return rows.loc[order.sort_values(["view", "side"], kind="stable").index].reset_index(drop=True)

def read_small(
    path: Path,      # of a frame
    height: int,     # rows of the result, at most those of the frame
) -> np.ndarray:     # uint8 (rows, columns)
    "A frame as a small grey picture. Raises DicomError."
    frame = read_frame(path)
    settings = Crops(height=height)
    settings = Crops(height=height, scaling=scaling_of(frame.header, settings))
    image = decode_grey(frame, min(1.0, height / frame.header.rows))
    return crop(image, Box(0, 0, frame.header.columns, frame.header.rows, "full frame"), settings)[0]

def draw_view(
    axis: plt.Axes,
    picture: np.ndarray,   # uint8 (rows, columns), the whole frame at any scale
    row,                   # of `exam_images`
    height: float,         # rows of the frame in pixels
    wrong: bool,           # whether it shows the breast that the exam is shown for
):
    "One frame with its box and its probability; a thick frame for the breast that is meant."
    down = picture.shape[0] / height
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axis.add_patch(Rectangle((row.x0 * down, row.y0 * down), (row.x1 - row.x0) * down, (row.y1 - row.y0) * down,
                             fill=False, color="orange"))
    axis.set_title(f"{row.laterality} {row.view}: {row.probability:.2f}", fontsize=10)
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set(color="orangered" if wrong else "lightgrey", linewidth=3 if wrong else 1)

def heat_in_frame(
    heat: np.ndarray,          # float32 in the shape of the stored crop
    row,                       # of `exam_images`
    shape: tuple[int, int],    # rows, columns of the result
    fitted: Callable = shrink,   # uint8 cut of the frame, rows, columns -> the same as the stored crop
) -> np.ndarray:               # float32 (rows, columns); 0 outside of the box
    "The heat map of a crop, where its box lies in a frame of another size."
    down, across = shape[0] / row.rows, shape[1] / row.columns
    x0, y0, x1, y1 = (round(side * scale) for side, scale in zip((row.x0, row.y0, row.x1, row.y1), 2 * (across, down)))
    whole = fitted(np.full((int(row.y1 - row.y0), int(row.x1 - row.x0)), 255, np.uint8), *heat.shape) > 127
    inside = heat[np.ix_(whole.any(1), whole.any(0))]   # a crop may have black sides that the frame has not
    return onto_frame(inside, inside.shape, (x0, y0, x1, y1), shape)

def show_exam(
    run: Run,
    breast,             # a row of `wrong_breasts`
    height: int = 400,  # of each picture, pixels
    heat: dict | None = None,    # image_id -> heat map in the shape of the crop, drawn below each image; None: none
    fitted: Callable = shrink,   # as for `heat_in_frame`
):
    "All images of an exam, each with its box and its out-of-fold probability."
    images, levels = exam_images(run, breast.patient_id), 2 if heat else 1
    columns = max(4, len(images))
    figure, axes = plt.subplots(levels, columns, figsize=(2.4 * columns, .4 + 3.2 * levels), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, row in enumerate(images.itertuples()):
        picture = read_small(root_of(run, row.dataset) / row.file, height)
        axes[0, i].axis("on")
        draw_view(axes[0, i], picture, row, row.rows, row.laterality == breast.laterality)
        if heat:
            axes[1, i].imshow(overlay(picture, heat_in_frame(heat[row.image_id], row, picture.shape, fitted)))
    truth = "cancer" if breast.cancer else "no cancer"
    figure.suptitle(f"{breast.kind}: patient {breast.patient_id}, breast {breast.laterality}, {truth}, "
                    f"probability {breast.probability:.2f}", fontsize=11)
    figure.tight_layout()
    if heat:
        colour_scale(figure)

# %%
oof = pd.DataFrame({"patient_id": ["1", "1", "2", "2"], "laterality": ["L", "R", "L", "R"], "cancer": [1, 0, 0, 1],
                    "probability": [.1, .8, .2, .9]})
assert wrong_breasts(oof, .5)[["laterality", "kind"]].values.tolist() == [["L", "missed"], ["R", "suspected"]]

# %% [markdown]
# A spot in the middle of a crop of 60 × 30 lies in the middle of its box, also in a frame of half the size:

# %%
spot = np.zeros((60, 30), np.float32)
spot[29:31, 14:16] = 1
place = SimpleNamespace(rows=rows, columns=columns, x0=100, y0=50, x1=250, y1=350)
middle = np.unravel_index(heat_in_frame(spot, place, (rows // 2, columns // 2)).argmax(), (rows // 2, columns // 2))
assert np.abs(np.subtract(middle, (100, 87.5))).max() <= 2.5

# %% [markdown]
# ## What came out
# A drawn frame with its box:

# %%
path = Path(tempfile.mkdtemp()) / "frame.png"
frame = np.zeros((rows, columns), np.uint8)
frame[rows // 4:, :columns // 2] = np.linspace(200, 20, columns // 2)
write_png(path, frame)
small = read_small(path, rows // 2)
assert small.shape == (rows // 2, columns // 2)
box = pd.Series({"x0": 0, "y0": rows // 4, "x1": columns // 2, "y1": rows, "laterality": "L", "view": "CC",
                 "probability": .1})
draw_view(plt.figure(figsize=(2, 2.6)).gca(), small, box, rows, wrong=True)

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

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
# # Boxes
# > The place of the breast in a frame: from the detector, else from Otsu's threshold, else the full frame.
#
# Half of a mammogram is air, and a network that is trained on air learns the edges of collimators. The winner used a
# small detector, a threshold where its confidence was low, and the full frame where the threshold failed too. The same
# order is used here, and the table of crops records the source of each box. A file that cannot be read is a row of the
# error table, and never a full frame.

# %%
#| default_exp mammo.reading.boxes

# %%
#| export
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mammo_nb.core.backends import EngineError, Graph, process_graph, read_sidecar
from mammo_nb.core.detection import candidates, letterbox, pad_square, unletterbox
from mammo_nb.core.dicom import Image
from mammo_nb.core.grey import is_negative
from mammo_nb.core.pictures import shrink
from mammo_nb.core.settings import SettingsError, find_trained
from mammo_nb.core.windows import minmax, percentile
from mammo_nb.mammo.reading import faithful
from mammo_nb.mammo.reading.tissue import refine_box
from mammo_nb.mammo.recipes import Crops

# %%
#| hide
from dataclasses import astuple

import matplotlib.pyplot as plt

from mammo_nb.core.dicom import read_frame
from mammo_nb.core.grey import decode_grey
from mammo_nb.core.practice import practice
from mammo_nb.mammo.system import system

# %% tags=["parameters"]
file = ""       # a mammogram in DICOM; "" draws one
detector = ""   # detector.onnx; "" uses Otsu's threshold

# %%
#| hide
if not file:
    run = practice(system, before="datasets")
    file = sorted(run.path("competition/train_images").glob("*/*.dcm"))[0]
frame = read_frame(file)
image = decode_grey(frame)

# %% [markdown]
# ## A small view of the frame
# The box is searched in a small picture of the whole frame, scaled from minimum to maximum, with bright tissue.
# MONOCHROME1 frames are inverted. PNG and JPEG files are never inverted: 8 bits are used unchanged, 16 bits are scaled
# from their minimum to their 99th percentile.

# %%
#| export
def frame_view(
    image: Image,     # a frame from `decode_grey`, at any scale
    size: int = 416,  # longest side of the result, in pixels
    scaling: str = "window",  # window: minimum to maximum; percentile or none: a picture without windows
) -> np.ndarray:      # uint8 (rows, columns), tissue bright
    "Make a small view of the whole frame."
    return _view(_small(image, size), image, scaling)

def _view(small: np.ndarray, image: Image, scaling: str) -> np.ndarray:
    "Scale a small picture to grey levels, tissue bright."
    if scaling != "window" and small.dtype == np.uint8:
        return small
    return (_grey(small, image, scaling) * 255).astype(np.uint8)

def _small(image: Image, size: int) -> np.ndarray:
    "Reduce a frame to `size` pixels on its longer side, if it is larger."
    rows, columns = image.pixels.shape
    rows = rows * image.header.aspect  # in a view, pixels are square
    scale = min(1.0, size / max(rows, columns))
    return shrink(image.pixels, max(1, round(rows * scale)), max(1, round(columns * scale)))

def _grey(small: np.ndarray, image: Image, scaling: str) -> np.ndarray:
    "Scale a small picture to floats from 0 to 1, tissue bright."
    if scaling != "window":
        return percentile(small, 0, 99)
    grey = minmax(small)
    return 1 - grey if is_negative(image.header) else grey

# %%
view = frame_view(image)
plt.figure(figsize=(3, 4))
plt.imshow(view, cmap="gray")
plt.title(f"{image.pixels.shape} -> {view.shape}")
plt.axis("off");

# %% [markdown]
# ## Otsu
# Otsu's threshold separates tissue from air. Markers are brighter than tissue, so the brightest 5 % of the pixels are
# blackened first. The largest region above the threshold is the breast. The constants are those of the winner's
# fallback.

# %%
#| export
def otsu_box(
    view: np.ndarray,        # uint8 (rows, columns), tissue bright
    min_area: float = 0.04,  # smallest area of a breast, as a share of the view
) -> tuple[int, int, int, int] | None:  # x0, y0, x1, y1, half-open, in view pixels; None if no region is large enough
    "Find the bounding box of the largest contour above Otsu's threshold."
    dark = view.copy()
    dark[dark > np.percentile(dark, 95)] = dark.min()
    blurred = cv2.GaussianBlur(dark, (5, 5), 0)
    _, mask = cv2.threshold(blurred, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    mask = cv2.dilate(mask, np.ones((3, 3), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return None
    largest = max(contours, key=cv2.contourArea)
    if cv2.contourArea(largest) < min_area * view.size:
        return None
    x, y, w, h = cv2.boundingRect(largest)
    return x, y, x + w, y + h

# %% [markdown]
# ## Detector
# `03_detector` trains the detector and writes two files: the graph and its description. A process opens them once. The
# batch may have any size. A detector takes grey levels as floats. Graphs of older versions take whole levels only; then
# the views of `faithful` are truncated.

# %%
#| export
def open_detector(
    path: Path,              # detector.onnx, with detector.json beside it
    backend: str = "auto",   # as for `open_graph`
) -> Graph:
    "Open a detector, once per process and on one thread. Raises EngineError if the file is no detector."
    graph = process_graph(str(path), backend)
    if not graph.metadata.get("decoded") or graph.metadata.get("classes") != 1:
        raise EngineError(
            f"{graph.path.name} is no detector of one class that gives boxes in pixels. "
            "Make one with `mammo-nb detector`.")
    return graph

def _candidates(squares: Sequence[np.ndarray], graph: Graph, confidence: float, overlap: float) -> list[tuple]:
    "Boxes in pixels of the squares and their scores, for each square."
    batch, stated = np.stack(squares)[:, None], graph.metadata.get("inputs")
    outputs = graph(batch.astype(stated[0]["dtype"]) if stated else batch)
    return [candidates(output, confidence, overlap) for output in outputs]

def detect(
    views: Sequence[np.ndarray],  # uint8 (rows, columns), from `frame_view`
    graph: Graph,                 # from `open_detector`
    confidence: float = 0.5,      # smallest confidence; the default is the winner's
    overlap: float = 0.9,         # IoU above which the box with the lower score is removed; the default is the winner's
) -> list[tuple[np.ndarray, np.ndarray]]:  # per view: boxes (n, 4) in its pixels, scores (n,) in descending order
    "Predict all boxes of some views, in one batch."
    size = graph.metadata["size"]
    squares, ratios = zip(*(letterbox(view, size) for view in views))
    found = _candidates(squares, graph, confidence, overlap)
    return [(unletterbox(boxes, ratio, *view.shape), scores)
            for (boxes, scores), ratio, view in zip(found, ratios, views)]

# %% [markdown]
# The detector is the named one, else the one in `assets/trained`, else that of the newest finished run. Otsu's
# threshold is used if there is no detector, or if `otsu` is named.

# %%
#| export
def find_detector(
    named: str = "",   # detector.onnx, a folder with this file, or "otsu"; "": search for a detector
) -> Path | None:      # detector.onnx; None: Otsu's threshold
    "Find the detector to use. Raises EngineError if the named one does not exist."
    if named == "otsu":
        return None
    if named.endswith(".onnx") and Path(named).is_file():
        return Path(named)
    try:
        folder = find_trained(["detector.onnx", "detector.json"], named)
    except SettingsError:
        folder = None  # outside of a checkout there is no settings.ini
    if named and not folder:
        raise EngineError(
            f"{named} has no detector.onnx with its detector.json. `make reproduce` writes both to runs/demo/weights.")
    return folder / "detector.onnx" if folder else None

def detector_in_words(
    path: Path | None,   # from `find_detector`
) -> str:
    "Name a detector and its average precision on the images it was tested on, where that is recorded."
    if path is None:
        return "none, breasts are found by Otsu's threshold"
    about = read_sidecar(path)
    score = f", AP50 {about['ap50']:.3f} on the images it was tested on" if "ap50" in about else ""
    return f"{path} (recipe {about.get('recipe', 'unknown')}{score})"

# %% [markdown]
# ## Finding the breast
# The box with the highest score is used if its confidence and its area are large enough. Otherwise the box of Otsu's
# threshold is used, if its area is large enough. Otherwise the box is the full frame.
#
# A box of either kind is then refined in a larger view (`reading/tissue`): it is moved to the edge of the tissue in it,
# and gets the margin of the recipe. The winner's boxes were used as they were found (`faithful`).
#
# The sides of a view are whole numbers, so rows and columns are not reduced by exactly the same factor. Here each axis
# is mapped back by its own factor and rounded outwards, so that no tissue is lost. The winner divided both axes by the
# ratio 416 / longer side and truncated. In the figures of `tests/test_parity_mammo.py`, 73 of 82 boxes of the detector
# are up to 3 frame pixels from the winner's, and 32 of 34 boxes of Otsu's threshold up to 13, because the view differs
# too. With `faithful`, all 117 boxes are equal.

# %%
#| export
@dataclass(frozen=True)
class Box:
    "A box in frame pixels, half-open: rows y0 to y1 - 1, columns x0 to x1 - 1."
    x0: int
    y0: int
    x1: int
    y1: int
    source: str                  # detector, otsu, full frame or no breast found
    score: float | None = None   # confidence of the detector, 0 to 1

def _area(box) -> float:
    "Area of x0, y0, x1, y1."
    return (box[2] - box[0]) * (box[3] - box[1])

def _chosen(view: np.ndarray, found: tuple | None, settings: Crops) -> tuple | None:
    "Choose x0, y0, x1, y1 in view pixels, source and score; None if there is no box."
    if found is not None and len(found[0]) and _area(found[0][0]) >= settings.min_area * view.size:
        return *found[0][0], "detector", float(found[1][0])
    fallback = otsu_box(view, settings.min_area)
    return None if fallback is None else (*fallback, "otsu", None)

def _refined(chosen: tuple | None, small: np.ndarray, image: Image, settings: Crops) -> tuple | None:
    "Move a box to the edge of its tissue; as `_chosen`, in pixels of the same small picture."
    if chosen is None or not settings.growth:
        return chosen
    view = small
    if max(small.shape) != settings.box_size:  # the detector takes another size
        small = _small(image, settings.box_size)
    fine = _grey(small, image, settings.scaling)
    ratio = np.tile(np.divide(fine.shape[::-1], view.shape[::-1]), 2)
    box = refine_box(fine, np.array(chosen[:4]) * ratio, settings.growth, settings.margin) / ratio
    return *box.tolist(), *chosen[4:]

def _in_frame(chosen: tuple | None, view: np.ndarray, image: Image) -> Box:
    "Map a box from view to frame pixels, rounded outwards."
    rows, columns = image.header.rows, image.header.columns
    if chosen is None:
        return Box(0, 0, columns, rows, "full frame")
    down, across = rows / view.shape[0], columns / view.shape[1]
    x0, y0, x1, y1, source, score = chosen
    # the small term keeps 100.00000001 from becoming 101
    x1, y1 = (int(np.ceil(end - 1e-6)) for end in (x1 * across, y1 * down))
    return Box(int(x0 * across), int(y0 * down), min(columns, x1), min(rows, y1), source, score)

def _faithful_box(view: np.ndarray, ratio: float, found: tuple, image: Image, settings: Crops) -> Box:
    "Choose the winner's box: both axes divided by the ratio of the view, truncated, clipped to the frame."
    rows, columns = image.header.rows, image.header.columns

    def in_frame(box) -> list[int]:
        return np.clip((np.asarray(box) / ratio).astype(int), 0, (columns, rows, columns, rows)).tolist()

    boxes, scores = found
    if view.min() == view.max():  # a frame without contrast
        return Box(0, 0, columns, rows, "full frame")
    if len(boxes) and _area(box := in_frame(boxes[0])) >= settings.min_area * rows * columns:
        return Box(*box, "detector", float(scores[0]))
    fallback = otsu_box(view.astype(np.uint8), settings.min_area)
    return Box(*in_frame(fallback), "otsu") if fallback else Box(0, 0, columns, rows, "full frame")

def _faithful_boxes(images: Sequence[Image], size: int, settings: Crops, graph: Graph | None) -> list[Box]:
    "Find the breast in each frame as the winner did."
    scaling = settings.scaling
    views = [faithful.detector_view(faithful.as_cast(image.pixels, scaling), image.header, scaling, size)
             for image in images]
    found = [((), ())] * len(views)
    if graph:
        squares = [pad_square(view, size) for view, _ in views]
        found = _candidates(squares, graph, settings.confidence, settings.overlap)
    return [_faithful_box(*view, boxes, image, settings) for view, boxes, image in zip(views, found, images)]

def find_boxes(
    images: Sequence[Image],      # frames from `decode_grey` at any scale; with `faithful` as stored
    # with `faithful`, the view, its levels and the mapping of boxes are the winner's, and boxes are not refined
    settings: Crops = Crops(),
    graph: Graph | None = None,   # the detector; None: Otsu's threshold
) -> list[Box]:                   # one box per frame, in frame pixels; its source is "full frame" if none was found
    "Find the breast in each frame."
    size = graph.metadata["size"] if graph else settings.box_size
    if settings.faithful:
        return _faithful_boxes(images, size, settings, graph)
    small = [_small(image, size) for image in images]
    views = [_view(picture, image, settings.scaling) for picture, image in zip(small, images)]
    found = detect(views, graph, settings.confidence, settings.overlap) if graph else [None] * len(views)
    chosen = [_chosen(view, boxes, settings) for view, boxes in zip(views, found)]
    return [_in_frame(_refined(box, picture, image, settings), picture, image)
            for box, picture, image in zip(chosen, small, images)]

def find_box(
    image: Image,                 # as in `find_boxes`
    settings: Crops = Crops(),    # as in `find_boxes`
    graph: Graph | None = None,   # the detector; None: Otsu's threshold
) -> Box:
    "Find the breast in one frame."
    return find_boxes([image], settings, graph)[0]

# %%
box = find_box(image, graph=open_detector(detector) if detector else None)
fig, ax = plt.subplots(figsize=(3, 4))
ax.imshow(view, cmap="gray")
ax.axis("off")
ax.set_title(f"{box.source}: {astuple(box)[:4]}", fontsize=9)
small = view.shape[0] / image.pixels.shape[0]
corner = box.x0 * small, box.y0 * small
width, height = (box.x1 - box.x0) * small, (box.y1 - box.y0) * small
ax.add_patch(plt.Rectangle(corner, width, height, fill=False, edgecolor="orange"))

# %% [markdown]
# ## What came out
# An empty frame gives the full frame. A box with a low score, or a box that is too small, is replaced by Otsu's:

# %%
empty = Image(image.header, np.zeros_like(image.pixels), "none")
assert find_box(empty).source == "full frame"

class Constant:
    "A detector that always predicts one box, in pixels of its square."
    metadata = {"size": 416}
    def __init__(self, *box_and_scores):
        self.output = np.array(box_and_scores, np.float32)
    def __call__(self, squares):
        return np.tile(self.output, (len(squares), 1, 1))

sources = []
for output in ((100, 200, 120, 180, .9, .9), (100, 200, 120, 180, .7, .7), (100, 200, 30, 30, .9, .9)):
    box = find_box(image, graph=Constant(*output))
    sources.append(box.source)
    print(output, "->", box)
assert sources == ["detector", "otsu", "otsu"]

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

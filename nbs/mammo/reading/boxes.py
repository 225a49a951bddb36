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
# # Boxes
# > Where the breast is in a frame: the detector's answer, else Otsu's, else everything, and always said which.
#
# Half of a mammogram is air, and a network fed with air learns about collimators. The winner asked a small detector,
# fell back on a threshold where it was unsure, and on the whole frame where that failed too. Here the same order holds,
# and the table of crops says for each image who gave the box. An error is an error: it becomes a row of the error
# table, not a full frame.

# %%
#| default_exp mammo.reading.boxes

# %%
#| export
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mammo_nb.core.backends import EngineError, Graph, process_graph
from mammo_nb.core.detection import candidates, letterbox, unletterbox
from mammo_nb.core.dicom import Image
from mammo_nb.core.pictures import shrink
from mammo_nb.core.settings import SettingsError
from mammo_nb.core.runs import find_trained
from mammo_nb.core.windows import minmax, percentile
from mammo_nb.mammo.reading import faithful
from mammo_nb.mammo.recipes import Crops

# %%
#| hide
from dataclasses import astuple

import matplotlib.pyplot as plt

from mammo_nb.core.dicom import read_frame
from mammo_nb.core.runs import practice
from mammo_nb.mammo.system import system

# %% tags=["parameters"]
file = ""       # a mammogram in DICOM; "" draws one
detector = ""   # detector.onnx; "" does without

# %%
#| hide
if not file:
    run = practice(system, before="datasets")
    file = sorted(run.path("competition/train_images").glob("*/*.dcm"))[0]
frame = read_frame(file)
image = frame.decode()

# %% [markdown]
# ## Seeing the frame
# The box is looked for in a small picture of the whole frame: minimum to maximum, bright where tissue is dense.
# MONOCHROME1 stores the opposite. Pictures that are no DICOM files are never inverted: 8 bits are looked at as they
# are, 16 bits up to their 99th percentile.

# %%
#| export
def frame_view(
    image: Image,     # a frame as stored, at any scale
    size: int = 416,  # longest side of the result, pixels
    scaling: str = "window",  # window: by the range; percentile or none: a picture without windows
) -> np.ndarray:      # uint8 (rows, columns)
    "The whole frame, small, tissue bright."
    rows, columns = image.pixels.shape
    scale = min(1.0, size / max(rows, columns))
    small = shrink(image.pixels, max(1, round(rows * scale)), max(1, round(columns * scale)))
    if scaling != "window":
        return small if small.dtype == np.uint8 else (percentile(small, 0, 99) * 255).astype(np.uint8)
    grey = minmax(small)
    return ((1 - grey if image.header.photometric == "MONOCHROME1" else grey) * 255).astype(np.uint8)

# %%
view = frame_view(image)
plt.figure(figsize=(3, 4))
plt.imshow(view, cmap="gray")
plt.title(f"{image.pixels.shape} -> {view.shape}")
plt.axis("off");

# %% [markdown]
# ## Otsu
# Otsu's threshold separates tissue from air. Markers are brighter than tissue, so the brightest twentieth is taken out
# before; what remains above the threshold and is largest is the breast. The constants are the winner's fallback (facts,
# section 2).

# %%
#| export
def otsu_box(
    view: np.ndarray,        # uint8 (rows, columns), tissue bright
    min_area: float = 0.04,  # a contour below this share of the view is no breast
) -> tuple[int, int, int, int] | None:  # x0, y0, x1, y1 in view pixels; None if nothing is large enough
    "Bounding box of the largest contour above Otsu's threshold."
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
# `03_detector` trains it and leaves two files, the graph and what it is. A process opens them once. The batch is
# whatever is given; for one frame it is one.

# %%
#| export
def open_detector(
    path: Path,              # detector.onnx, with detector.json beside it
    backend: str = "auto",   # of `open_graph`
) -> Graph:
    "The detector of a process, opened once and on one thread."
    graph = process_graph(str(path), backend)
    if not graph.metadata.get("decoded") or graph.metadata.get("classes") != 1:
        raise EngineError(
            f"{graph.path.name} is no detector of one class that gives boxes in pixels; make one with `mammo-nb "
            "detector`."
        )
    return graph

def detect(
    views: Sequence[np.ndarray],  # uint8 (rows, columns), as `frame_view` makes them
    graph: Graph,                 # from `open_detector`
    confidence: float = 0.5,      # least confidence; the winner's
    overlap: float = 0.9,         # IoU above which the less sure of two boxes goes; the winner's
) -> list[tuple[np.ndarray, np.ndarray]]:  # for each view: (n, 4) x0, y0, x1, y1 in its pixels; (n,) scores, falling
    "All boxes that the detector finds, in one batch."
    size = graph.metadata["size"]
    squares, ratios = zip(*(letterbox(view, size) for view in views))
    found = [candidates(output, confidence, overlap) for output in graph(np.stack(squares)[:, None])]
    return [(unletterbox(boxes, ratio, *view.shape), scores)
            for (boxes, scores), ratio, view in zip(found, ratios, views)]

# %% [markdown]
# Which detector: the one that is named, else the one that is kept in `assets/trained`, else that of the newest finished
# run; Otsu if there is none, or if he is named.

# %%
#| export
def find_detector(
    named: str = "",   # detector.onnx, a folder with one, or otsu; "": look for one
) -> Path | None:      # detector.onnx; None: Otsu
    "The detector to use."
    if named == "otsu":
        return None
    if named.endswith(".onnx") and Path(named).is_file():
        return Path(named)
    try:
        folder = find_trained(["detector.onnx", "detector.json"], named)
    except SettingsError:
        folder = None  # not in a checkout
    if named and not folder:
        raise EngineError(
            f"{named} has no detector.onnx with its detector.json. `make reproduce` writes them to runs/demo/weights.")
    return folder / "detector.onnx" if folder else None

# %% [markdown]
# ## Finding the breast
# The surest box of the detector, if it is sure enough and covers a share of the frame; Otsu's, if its contour does; the
# frame.

# %%
#| export
@dataclass(frozen=True)
class Box:
    "A box in frame pixels, half open: rows y0..y1, columns x0..x1."
    x0: int
    y0: int
    x1: int
    y1: int
    source: str                  # how it was found: detector, otsu or full frame
    score: float | None = None   # the detector's confidence, 0 to 1

def _area(box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])

def _chosen(view: np.ndarray, found: tuple | None, settings: Crops) -> tuple | None:
    "x0, y0, x1, y1 in view pixels, source, score; None if nobody knows."
    if found is not None and len(found[0]) and _area(found[0][0]) >= settings.min_area * view.size:
        return *found[0][0], "detector", float(found[1][0])
    fallback = otsu_box(view, settings.min_area)
    return None if fallback is None else (*fallback, "otsu", None)

def _in_frame(chosen: tuple | None, view: np.ndarray, image: Image, cut_off: bool) -> Box:
    "From view to frame pixels: outwards to whole ones, or cut off as the winner did."
    rows, columns = image.header.rows, image.header.columns
    if chosen is None:
        return Box(0, 0, columns, rows, "full frame")
    down, across = rows / view.shape[0], columns / view.shape[1]
    # a hair less, so that 100.00000001 is not 101
    end = int if cut_off else lambda v: int(np.ceil(v - 1e-6))
    x0, y0, x1, y1, source, score = chosen
    return Box(int(x0 * across), int(y0 * down), min(columns, end(x1 * across)), min(rows, end(y1 * down)), source,
               score)

def find_boxes(
    images: Sequence[Image],      # frames as stored, at any scale
    # confidence, overlap, min_area, scaling; `faithful` is read here: the view and whole numbers of the winner
    settings: Crops = Crops(),
    graph: Graph | None = None,   # the detector; None: Otsu
) -> list[Box]:
    "Where the breast is in each frame, in frame pixels; the full frame if none was found, and it says so."
    size = graph.metadata["size"] if graph else settings.box_size
    seen = lambda i: faithful.detector_view(faithful.as_cast(i.pixels, settings.scaling), i.header, settings.scaling,
                                            size)[0] if settings.faithful else frame_view(i, size, settings.scaling)
    views = [seen(image) for image in images]
    found = detect(views, graph, settings.confidence, settings.overlap) if graph else [None] * len(views)
    return [
        _in_frame(_chosen(view, f, settings), view, image, settings.faithful)
        for view, f, image in zip(views, found, images)
    ]

def find_box(
    image: Image,                 # a frame as stored, at any scale
    settings: Crops = Crops(),    # as in `find_boxes`
    graph: Graph | None = None,
) -> Box:
    "Where the breast is in one frame."
    return find_boxes([image], settings, graph)[0]

# %%
box = find_box(image, graph=open_detector(detector) if detector else None)
fig, ax = plt.subplots(figsize=(3, 4))
ax.imshow(view, cmap="gray")
ax.axis("off")
ax.set_title(f"{box.source}: {astuple(box)[:4]}", fontsize=9)
small = view.shape[0] / image.pixels.shape[0]
ax.add_patch(
    plt.Rectangle((box.x0 * small, box.y0 * small), (box.x1 - box.x0) * small, (box.y1 - box.y0) * small, fill=False,
                  edgecolor="orange"))

# %% [markdown]
# An empty frame has no breast, and says so instead of inventing one. A detector that is unsure, or sure of something
# too small, is not asked twice:

# %%
empty = Image(image.header, np.zeros_like(image.pixels), "none")
assert find_box(empty).source == "full frame"
class Says:
    "A detector that always gives one box, in pixels of its square."
    metadata = {"size": 416}
    def __init__(self, *box_and_scores):
        self.said = np.array(box_and_scores, np.float32)
    def __call__(self, squares):
        return np.tile(self.said, (len(squares), 1, 1))

for said in ((100, 200, 120, 180, .9, .9), (100, 200, 120, 180, .7, .7), (100, 200, 30, 30, .9, .9)):
    print(said, "->", find_box(image, graph=Says(*said)))
assert [
    find_box(image, graph=Says(100, 200, w, h, s, s)).source
    for w, h, s in ((120, 180, .9), (120, 180, .7), (30, 30, .9))
] == ["detector", "otsu", "otsu"]

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
# # Detection
# > The steps before and after a detector, in plain NumPy.
#
# A detector is trained with one framework and used through others. All of them share a few steps: the picture is fitted
# into a square, thousands of candidate boxes are reduced to a few, and a score measures how good those are. A pixel of
# difference here is a pixel of difference in every crop, so each step is exact and checked by hand.

# %%
#| default_exp core.detection

# %%
#| export
import contextlib
import io

import cv2
import numpy as np

# %%
#| hide
import matplotlib.pyplot as plt

# %% tags=["parameters"]
size = 416   # side of a detector's input, pixels

# %% [markdown]
# ## Letterbox
# The picture goes to the top left corner of a square, as large as it fits, and the rest is grey 114. With no padding on
# the left and above, mapping boxes back is a division. A picture that was already resized to fit is only padded.

# %%
#| export
PAD = 114  # YOLOX's grey

def pad_square(
    picture: np.ndarray,  # (rows, columns), uint8 or floats, neither side longer than `size`
    size: int,            # side of the square, pixels
) -> np.ndarray:          # (size, size), same dtype
    "Put a picture into the top left corner of a square."
    square = np.full((size, size), PAD, picture.dtype)
    square[:picture.shape[0], :picture.shape[1]] = picture
    return square

def letterbox(
    picture: np.ndarray,  # uint8 (rows, columns)
    size: int,            # side of the square, pixels
) -> tuple[np.ndarray, float]:  # uint8 (size, size); scale, pixels of the square per pixel of the picture
    "Fit a picture into the top left corner of a square (YOLOX's preproc): bilinear, sides rounded down to pixels."
    rows, columns = picture.shape
    ratio = min(size / rows, size / columns)
    fitted = max(1, int(rows * ratio)), max(1, int(columns * ratio))
    if picture.shape != fitted:
        picture = cv2.resize(picture, fitted[::-1], interpolation=cv2.INTER_LINEAR)
    return pad_square(picture, size), ratio

def unletterbox(
    boxes: np.ndarray,   # (n, 4) x0, y0, x1, y1 in the square
    ratio: float,        # from `letterbox`
    rows: int,           # height of the picture, pixels
    columns: int,        # width of the picture, pixels
) -> np.ndarray:         # float64 (n, 4), in the picture
    "Map boxes from the square to pixels of the picture, clipped at its edges."
    return np.clip(np.asarray(boxes, float).reshape(-1, 4) / ratio, 0, (columns, rows, columns, rows))

# %%
picture = np.tile(np.linspace(0, 255, 640).astype(np.uint8), (832, 1))
square, ratio = letterbox(picture, size)
assert ratio == size / 832 and square.shape == (size, size)
assert (square[:, int(640 * ratio):] == PAD).all() and square[0, 0] == 0
boxes = unletterbox([[0, 0, 640 * ratio, size], [-9, 5 * ratio, 999, 999]], ratio, 832, 640)
assert boxes.tolist() == [[0, 0, 640, 832], [0, 5, 640, 832]]
plt.figure(figsize=(2.6, 2.6))
plt.imshow(square, cmap="gray", vmin=0, vmax=255)
plt.axis("off")
plt.title(f"{picture.shape} in {square.shape}", fontsize=9);

# %% [markdown]
# ## Candidates
# YOLOX divides the square by three grids, with cells of 8, 16 and 32 pixels. Each cell predicts one box: the offset of
# its centre from the cell's corner, in cells, and the logarithms of its sides, in cells too.

# %%
#| export
STRIDES = (8, 16, 32)

def cells(
    size: int,   # side of the square, pixels, a multiple of 32
) -> tuple[np.ndarray, np.ndarray]:  # float32 (cells, 2) column and row of each; (cells, 1) its side in pixels
    "List the cells of the three grids, row by row, finest first: 3549 for 416. Raises ValueError."
    if size % STRIDES[-1]:
        raise ValueError(f"a detector's input must be a multiple of {STRIDES[-1]} pixels, got {size}")
    places = [np.stack(np.meshgrid(np.arange(size // s), np.arange(size // s)), -1).reshape(-1, 2) for s in STRIDES]
    sides = [np.full((len(p), 1), s) for p, s in zip(places, STRIDES)]
    return np.concatenate(places).astype(np.float32), np.concatenate(sides).astype(np.float32)

def decode(
    raw: np.ndarray,  # (..., cells, 5 + classes): dx, dy, log w, log h in cells, then scores
    size: int,        # side of the square, pixels
) -> np.ndarray:      # same shape: cx, cy, w, h in pixels, scores as they were
    "Boxes in pixels of the square: (d + cell) stride, exp(s) stride (Ge et al. 2021, arXiv:2107.08430)."
    place, side = cells(size)
    return np.concatenate([(raw[..., :2] + place) * side, np.exp(raw[..., 2:4]) * side, raw[..., 4:]], -1)

# %%
# the cell in column 3, row 2 of the coarsest grid, by hand: its corner is at (96, 64)
raw = np.zeros((len(cells(size)[0]), 6), np.float32)
at = (size // 8) ** 2 + (size // 16) ** 2 + 2 * (size // 32) + 3
raw[at] = [0.5, -0.25, np.log(4), np.log(2.5), 0.9, 0.8]
assert np.allclose(decode(raw, size)[at], [3.5 * 32, 1.75 * 32, 128, 80, 0.9, 0.8])
[len(cells(s)[0]) for s in (256, 416)]

# %% [markdown]
# ## Non-maximum suppression
# Neighbouring cells predict nearly the same box. The box with the highest score is kept, and those that overlap it by
# more than a given IoU are removed.

# %%
#| export
def corners(
    boxes: np.ndarray,  # (..., 4) cx, cy, w, h
) -> np.ndarray:        # (..., 4) x0, y0, x1, y1
    "Convert boxes from centre and sides to corners."
    half = boxes[..., 2:4] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], -1)

def iou(
    a: np.ndarray,  # (n, 4) x0, y0, x1, y1
    b: np.ndarray,  # (m, 4)
) -> np.ndarray:    # (n, m), 0 to 1; 0 where neither has an area
    "Intersection over union of every box with every other."
    a, b = np.asarray(a, float).reshape(-1, 1, 4), np.asarray(b, float).reshape(1, -1, 4)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])

    def area(box: np.ndarray) -> np.ndarray:
        return (box[..., 2:] - box[..., :2]).clip(0).prod(-1)

    both = sides.clip(0).prod(-1)
    either = area(a) + area(b) - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)

def nms(
    boxes: np.ndarray,   # (n, 4) x0, y0, x1, y1
    scores: np.ndarray,  # (n,)
    overlap: float,      # IoU above which the one with the lower score is removed
) -> np.ndarray:         # indices of those that are kept, highest score first
    "Greedy non-maximum suppression; of equal scores the first is kept."
    left = np.argsort(-np.asarray(scores), kind="stable")
    kept = []
    while len(left):
        kept.append(left[0])
        left = left[1:][iou(boxes[left[:1]], boxes[left[1:]])[0] <= overlap]
    return np.array(kept, int)

def candidates(
    output: np.ndarray,  # (cells, 6) decoded: cx, cy, w, h, objectness, class probability
    confidence: float,   # smallest objectness times probability
    overlap: float,      # IoU, as in `nms`
) -> tuple[np.ndarray, np.ndarray]:  # float64 (n, 4) x0, y0, x1, y1 in the square; scores (n,), highest first
    "Select the boxes of one picture."
    scores = output[:, 4] * output[:, 5]
    sure = scores >= confidence
    boxes, scores = corners(output[sure].astype(float)), scores[sure]
    kept = nms(boxes, scores, overlap)
    return boxes[kept], scores[kept]

# %%
three = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
assert iou(three, three)[0].tolist() == [1, .9, 0]
assert nms(three, [.8, .9, .7], .5).tolist() == [1, 2] and nms(three, [.8, .9, .7], .9).tolist() == [1, 0, 2]

# %% [markdown]
# ## Average precision
# The score of COCO is the area under the curve of precision over recall, for boxes with an IoU of at least 0.50, and
# averaged over thresholds from 0.50 to 0.95. It is computed by COCO's own library.

# %%
#| export
def coco_score(
    truth: dict,   # COCO instances: images, annotations, categories
    found: list,   # dicts of image_id, category_id, bbox [x, y, width, height], score
) -> dict:         # ap: mean over IoU .5 to .95; ap50: at .5
    "Average precision by pycocotools."
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    if not found:
        return {"ap": 0.0, "ap50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints tables
        known = COCO()
        known.dataset = truth
        known.createIndex()
        score = COCOeval(known, known.loadRes(found), "bbox")
        score.evaluate()
        score.accumulate()
        score.summarize()
    return {"ap": float(score.stats[0]), "ap50": float(score.stats[1])}

# %% [markdown]
# Two pictures with a box of 100 by 100 each, found a little too wide. The IoU of the first box is 100/112, which
# reaches eight of the ten thresholds, that of the second 100/130, which reaches six. A threshold that only the box with
# the higher score reaches gives half the area (51 of 101 points of recall).

# %%
truth = {
    "images": [{"id": i} for i in (1, 2)], "categories": [{"id": 1, "name": "box"}],
    "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 100, 100], "area": 10_000, "iscrowd": 0}
                    for i in (1, 2)]
}
found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 112, 100], "score": .9},
         {"image_id": 2, "category_id": 1, "bbox": [0, 0, 130, 100], "score": .8}]
score = coco_score(truth, found)
assert np.isclose(score["ap"], (6 + 2 * 51 / 101) / 10, atol=1e-6) and score["ap50"] == 1
score

# %% [markdown]
# ---
# [← Providers](57_providers.py) · [YOLOX →](59_yolox.py)

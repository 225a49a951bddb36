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
# # Squares
# > The head is cut out of the slice, and becomes a square of the network's size.
#
# A slice shows 25 cm of air and table around a head of 15 cm. Without the crop half of the network's pixels are air.
# The box must contain the head and not the headrest, which is a thin bright line below it.

# %%
#| default_exp ich.reading.squares

# %%
#| export
import cv2
import numpy as np
from scipy.ndimage import minimum_filter

# %%
#| hide
import matplotlib.pyplot as plt

# %% tags=["parameters"]
size = 96   # side of the network's input below, pixels

# %% [markdown]
# ## A box
# All pixels that are not black in all channels are in the plain box, the headrest among them. A minimum filter removes
# every structure that is thinner than its kernel. What remains of the head is smaller by half a kernel on each side, so
# the box is widened by a kernel.

# %%
#| export
SHARE = 15   # the kernel of the minimum filter is the side of the picture divided by this

def bounding_box(
    shown: np.ndarray,   # (rows, columns); 0 is background
) -> tuple | None:       # x0, y0, x1, y1 in pixels, x1 and y1 exclusive; None if all is background
    "The smallest box around all pixels above 0."
    rows, columns = (np.flatnonzero((shown > 0).any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

def brightest(
    picture: np.ndarray,  # uint8 (rows, columns, channels)
) -> np.ndarray:          # uint8 (rows, columns)
    "The brightest channel of each pixel."
    channels = cv2.split(picture)  # the maximum along the last axis takes NumPy ten times as long
    found = channels[0]
    for channel in channels[1:]:
        found = cv2.max(found, channel)
    return found

def plain_box(
    picture: np.ndarray,  # uint8 (rows, columns, 3)
) -> tuple | None:        # as from `bounding_box`
    "The box of everything that is not black: what the original's code does."
    return bounding_box(brightest(picture))

def filtered_box(
    picture: np.ndarray,        # uint8 (rows, columns, 3)
    limit_by_rows: bool = False,# the original's mistake: also the columns end at the number of rows
) -> tuple | None:              # as from `bounding_box`; None if nothing is thicker than the kernel
    "The box of everything that is thicker than a fifteenth of the picture, as the original's authors describe it."
    rows, columns = picture.shape[:2]
    kernel = max(1, (rows if limit_by_rows else min(rows, columns)) // SHARE)
    box = bounding_box(minimum_filter(brightest(picture), size=kernel))
    if box is None:
        return None
    x0, y0, x1, y1 = box
    right = rows if limit_by_rows else columns
    return max(0, x0 - kernel), max(0, y0 - kernel), min(right, x1 + kernel), min(rows, y1 + kernel)

# %% [markdown]
# The code that the original's authors published takes the plain box. A slice at the top of the head may be smaller than
# the kernel, then the plain box is used here too. A blank picture is kept whole.

# %%
#| export
def head_box(
    picture: np.ndarray,     # uint8 (rows, columns, 3)
    faithful: bool = False,  # whether the plain box is used, as in the original
) -> tuple:                  # x0, y0, x1, y1 in pixels, x1 and y1 exclusive
    "The box that is cut out of a slice."
    box = None if faithful else filtered_box(picture)
    return box or plain_box(picture) or (0, 0, picture.shape[1], picture.shape[0])

# %%
y, x = np.mgrid[:240, :320]
slice_ = np.zeros((240, 320, 3), np.uint8)
slice_[np.hypot((x - 210) / 70, (y - 110) / 90) < 1] = (90, 110, 120)
slice_[np.abs(np.hypot(x - 210, (y - 90) / 1.1) - 122) < 1.5] = (0, 40, 90)
slice_[:90] *= (np.hypot((x - 210) / 70, (y - 110) / 90) < 1)[:90, :, None]
boxes = {"plain": plain_box(slice_), "filtered": filtered_box(slice_),
         "filtered, limited by rows": filtered_box(slice_, limit_by_rows=True)}
assert boxes["filtered, limited by rows"][2] == 240 and 280 <= boxes["filtered"][2] < 300
assert head_box(np.zeros((4, 6, 3), np.uint8)) == (0, 0, 6, 4)
fig, axes = plt.subplots(1, 3, figsize=(9, 2.6))
for ax, (name, (x0, y0, x1, y1)) in zip(axes, boxes.items()):
    ax.imshow(slice_[..., ::-1])
    ax.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="orange"))
    ax.set_title(name, fontsize=9)
    ax.axis("off")

# %% [markdown]
# A box of each slice shows the top of the head as large as its middle. One box for all slices of a series keeps the
# scale, so that the picture tells how high in the head a slice is. A slice in which no head was found, whose box is
# therefore the whole picture, has no part in it.

# %%
#| export
def common_box(
    boxes: list[tuple],       # of the slices of a series, from `head_box`
    shape: tuple[int, int],   # rows and columns of each of their pictures
) -> tuple:                   # x0, y0, x1, y1 in pixels
    "The box around the heads of all slices of a series."
    whole = (0, 0, shape[1], shape[0])
    found = [box for box in map(tuple, boxes) if box != whole] or [whole]
    x0, y0, x1, y1 = zip(*found)
    return min(x0), min(y0), max(x1), max(y1)

# %%
assert common_box([(2, 3, 9, 8), (0, 0, 20, 10), (4, 1, 12, 7)], (10, 20)) == (2, 1, 12, 8)
assert common_box([(0, 0, 20, 10)] * 2, (10, 20)) == (0, 0, 20, 10)

# %% [markdown]
# ## A square
# The cut-out head is pasted into the top left of a black square, so that its proportions are kept. Then it is resized.
# The original resizes a whole slice without a square, which changes its proportions if it is not square itself.

# %%
#| export
def square(
    picture: np.ndarray,   # uint8 (rows, columns, 3)
    box: tuple | None,     # x0, y0, x1, y1 in pixels; None: the whole picture
) -> np.ndarray:           # uint8 (side, side, 3), side the longer edge of the box
    "A part of a picture at the top left of a black square."
    x0, y0, x1, y1 = box if box is not None else (0, 0, picture.shape[1], picture.shape[0])
    part = picture[y0:y1, x0:x1]
    side = max(part.shape[:2])
    whole = np.zeros((side, side, 3), picture.dtype)
    whole[:part.shape[0], :part.shape[1]] = part
    return whole

def read_view(
    picture: np.ndarray,     # uint8 (rows, columns, 3)
    box: tuple | None,       # x0, y0, x1, y1 in pixels; None: not cropped
    size: int,               # side of the result, pixels
    faithful: bool = False,  # whether a picture that is not cropped is stretched to a square, as in the original
) -> np.ndarray:             # uint8 (size, size, 3)
    "What a network sees of a picture: crop, square, bilinear resize."
    seen = picture if box is None and faithful else square(picture, box)
    return cv2.resize(seen, (size, size), interpolation=cv2.INTER_LINEAR)

# %%
views = [read_view(slice_, box, size) for box in (None, boxes["plain"], boxes["filtered"])]
assert square(slice_, (210, 100, 250, 120)).shape == (40, 40, 3) and not square(slice_, (210, 100, 250, 120))[20:].any()
fig, axes = plt.subplots(1, 3, figsize=(6, 2.2))
for ax, view in zip(axes, views):
    ax.imshow(view[..., ::-1])
    ax.axis("off")

# %% [markdown]
# ## Normalization
# Mean and standard deviation of each channel are the original's, measured on its training set.

# %%
#| export
MEANS = (0.22363983, 0.18190407, 0.2523437)   # of the channels brain, subdural, bone; 1 is white
STDS = (0.32451536, 0.2956294, 0.31335256)

def normalized(
    view: np.ndarray,   # uint8 (rows, columns, 3)
) -> np.ndarray:        # float32 (3, rows, columns)
    "A view as the input of a network."
    values = (view.astype(np.float32) / 255 - np.float32(MEANS)) / np.float32(STDS)
    return np.ascontiguousarray(np.moveaxis(values, -1, 0))

# %%
assert np.allclose(normalized(np.full((1, 1, 3), 255, np.uint8))[:, 0, 0], [2.3924, 2.7673, 2.3860], atol=1e-4)

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

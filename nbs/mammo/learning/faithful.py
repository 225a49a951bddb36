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
# # Faithful
# > Four changes of an image as the winner's library computed them, where `augment` computes better ones.
#
# The winner used albumentations 1.3.0. Four of its changes have small defects, which `augment` has not. A recipe with
# `train.faithful` uses the ones below. With the same numbers drawn they give what the library gave: equal grey levels
# where only levels change, and at most 3 % of the pixels by up to 3 levels where OpenCV 4.7 and 5.0 interpolate
# differently (`tests/test_parity_mammo.py`). Which numbers are drawn differs, because the generators are others.

# %%
#| default_exp mammo.learning.faithful

# %%
#| export
import cv2
import numpy as np

# %%
#| hide
import matplotlib.pyplot as plt

# %% tags=["parameters"]
rows, columns = 160, 97   # of the example, pixels

# %%
example = np.add.outer(np.arange(rows), np.arange(columns)).astype(np.uint8)

# %% [markdown]
# ## Grey levels
# The library truncates the levels. They are half a level darker on average than rounded ones: by .05 to .68 in the
# figures, since a factor such as 1.5 gives whole numbers more often than .61.

# %%
#| export
def contrast(
    image: np.ndarray,  # uint8 (height, width)
    factor: float,
    shift: float,       # added, as a share of 255
) -> np.ndarray:        # uint8, same shape
    "Scale and shift the grey levels, cut off and truncated."
    levels = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(255 * shift)
    return cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8))

# %%
assert contrast(np.array([[1, 3, 200]], np.uint8), 1.5, .001)[0].tolist() == [1, 4, 255]

# %% [markdown]
# ## Fewer pixels
# The library computes in floats from 0 to 1, places the smaller pixels by the factor and not by the rounded size, and
# truncates once. `augment` rounds twice. In the figures, 13 to 43 % of the pixels differ, by up to 20 levels at edges,
# and truncation makes them .03 to .31 levels darker.

# %%
#| export
def rescale(
    image: np.ndarray,  # uint8 (height, width)
    scale: float,       # size of the smaller image, as a share
    down: int,          # interpolation of the way down
    up: int,            # and of the way up
) -> np.ndarray:        # uint8, same shape
    "Make an image smaller and larger again."
    unit = image.astype(np.float32) / 255
    scale = max(scale, *(.5 / side for side in image.shape))  # at least one pixel
    small = cv2.resize(unit, None, fx=scale, fy=scale, interpolation=down)
    again = cv2.resize(small, image.shape[::-1], interpolation=up)
    return (np.clip(again, 0, 1) * 255).astype(np.uint8)

# %%
assert np.abs(rescale(example, .8, cv2.INTER_LINEAR, cv2.INTER_LINEAR)[5:90, 5:90].astype(int)
              - example[5:90, 5:90]).max() <= 1

# %% [markdown]
# ## Elastic
# The three points of the affine map stand around (height / 2, width / 2), taken as x and y. So for an image that is
# higher than wide they lie to the right of the middle, and further down it is moved more. In the figures, 41 to 53 % of
# the pixels differ from a map around the middle. The map and the displacements are two interpolations; one, as in
# `augment`, gives other levels in 2 to 3 % of the pixels and a sharper image.

# %%
#| export
def bend(
    image: np.ndarray,  # uint8 (height, width)
    moves: np.ndarray,  # float (3, 2), how far the points move in x and y, pixels
    shifts: np.ndarray, # float32 (height, width, 2), displacements in x and y, pixels
) -> np.ndarray:        # uint8, same shape
    "An affine map of three points, then a displacement of each pixel."
    h, w = image.shape
    centre, arm = np.array([h // 2, w // 2]), max(1, min(h, w) // 3)
    points = (centre + arm * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    matrix = cv2.getAffineTransform(points, points + np.float32(moves))
    moved = cv2.warpAffine(image, matrix, (w, h), flags=cv2.INTER_LINEAR, borderValue=0)
    x, y = np.float32(np.arange(w)), np.float32(np.arange(h))[:, None]
    return cv2.remap(moved, x + shifts[..., 0], y + shifts[..., 1], cv2.INTER_LINEAR, borderValue=0)

# %%
still = np.zeros((rows, columns, 2), np.float32)
assert np.array_equal(bend(example, np.zeros((3, 2)), still), example)

# %% [markdown]
# ## Grid
# The cells of the grid are as long as the side divided by the number of steps, truncated, and a shorter cell takes what
# is left. Its drawn width is reduced by its share. The last cell ends at the side itself, one pixel outside of the
# image, so at least the last row and column become black. In the figures, 40 to 43 % of the pixels differ from a grid
# of equal cells, and pixels come from places that are up to 1.2 pixels apart.

# %%
#| export
def grid_sources(
    length: int,         # of a side, pixels
    widths: np.ndarray,  # float (steps + 1,), the drawn factor of each cell
) -> np.ndarray:         # float32 (length,), the place of each pixel in the image before
    "Stretch some cells of a line and compress others."
    steps, factors = len(widths) - 1, np.array(widths, float)
    cell = max(1, length // steps)
    starts = np.arange(steps + 1) * cell
    ends = np.minimum(starts + cell, length)
    factors[-1] *= max(0, ends[-1] - starts[-1]) / cell
    factors *= length / cell / factors.sum()
    places = np.concatenate([[0], np.cumsum(factors * cell)])
    places[-1] = length
    sources = np.empty(length, np.float32)
    for start, end, low, high in zip(starts, ends, places, places[1:]):
        if end > start:
            sources[start:end] = np.linspace(low, high, end - start)
    return sources

def distort(
    image: np.ndarray,    # uint8 (height, width)
    across: np.ndarray,   # float (steps + 1,), factors of the columns of the grid
    down: np.ndarray,     # float (steps + 1,), factors of its rows
) -> np.ndarray:          # uint8, same shape
    "A grid of unequal columns and rows."
    x, y = np.meshgrid(grid_sources(image.shape[1], across), grid_sources(image.shape[0], down))
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderValue=0)

# %% [markdown]
# ## What came out
# A line of equal cells, and one that is stretched in its middle.

# %%
equal, stretched = (grid_sources(columns, w) for w in (np.ones(6), np.array([.7, 1.1, 1.3, 1.1, .7, 1.])))
assert equal[0] == 0 and equal[-1] == columns and not distort(example, np.ones(6), np.ones(6))[-1].any()
plt.figure(figsize=(4, 2.5))
plt.plot(equal, label="equal cells")
plt.plot(stretched, label="unequal cells")
plt.xlabel("pixel of the result")
plt.ylabel("pixel of the image")
plt.legend();

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

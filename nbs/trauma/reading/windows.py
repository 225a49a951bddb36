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
# # Windows
# > Thirty-two slices at once: what the 3D network is trained on, and what it sees when it measures organs.
#
# A series has 15 to 1000 slices and a network has a fixed depth. In training a series is thinned to every second slice,
# made smaller and cut into windows that overlap by half. When organs are measured, all slices are used, in windows one
# after the other.

# %%
#| default_exp trauma.reading.windows

# %%
#| export
from collections.abc import Iterator

import cv2
import numpy as np

# %%
#| hide
import matplotlib.pyplot as plt

# %% tags=["parameters"]
length, depth = 70, 16   # slices of the drawn series and of a window

# %% [markdown]
# ## Small slices
# Grey levels are interpolated, labels are taken from the nearest pixel.

# %%
#| export
def shrunk(
    picture: np.ndarray,   # (rows, columns), uint8 or float
    size: int,             # side of the result, pixels
    labels: bool = False,  # whether the values are labels
) -> np.ndarray:           # (size, size), same type
    "A slice at the size of the 3D network."
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_NEAREST_EXACT if labels else cv2.INTER_LINEAR)

def small_levels(
    volume: np.ndarray,  # uint8 (slices, rows, columns), may be mapped from a file
    rows,                # numbers of the slices that are used
    size: int,           # side of the result, pixels
    whole: bool = False, # whether whole levels are interpolated, as the original does with TotalSegmentator
) -> np.ndarray:         # float32 (len(rows), size, size) in [0, 1]
    "Slices of a volume as the 3D network sees them; one slice is in memory at a time."
    small = np.empty((len(rows), size, size), np.float32)
    for k, row in enumerate(rows):
        small[k] = shrunk(volume[row], size) / 255.0 if whole else shrunk(volume[row] / 255.0, size)
    return small

# %% [markdown]
# ## Windows of the training
# The last window ends at the last slice. The original leaves the last starts out instead, so that up to 16 slices at
# the end of a series are never seen. It also writes a series of at most one window into whole numbers, so that only
# pure white is left of its grey levels.

# %%
#| export
def window_starts(
    length: int,             # slices that are used of a series
    depth: int,              # slices of a window
    faithful: bool = False,  # whether starts are left out as in the original
) -> list[int]:
    "First slices of the windows, which overlap by half."
    if length <= depth:
        return [0]
    if faithful:
        return list(range(0, length, depth // 2))[:-2]
    return [*range(0, length - depth, depth // 2), length - depth]

def training_windows(
    volume: np.ndarray,      # uint8 (slices, rows, columns)
    labels: np.ndarray,      # uint8 (slices, rows, columns), 0 or 1 + number of the organ
    depth: int = 32,         # slices of a window
    size: int = 128,         # side of a window, pixels
    every: int = 2,          # every second slice is used
    faithful: bool = False,  # windows as in the original
    whole: bool = False,     # as for `small_levels`; such a series is not truncated
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:  # start; float32 and uint8 (depth, size, size)
    "The windows of a series. Short series are filled up with black slices."
    rows = range(0, len(volume), every)
    small = small_levels(volume, rows, size, whole)
    masks = np.stack([shrunk(labels[row], size, labels=True) for row in rows])
    if len(rows) < depth:
        filled = ((0, depth - len(rows)), (0, 0), (0, 0))
        small, masks = np.pad(small, filled), np.pad(masks, filled)
    if faithful and len(rows) <= depth and not whole:
        small = np.trunc(small)
    for start in window_starts(len(rows), depth, faithful):
        yield start, small[start:start + depth], masks[start:start + depth]

# %%
assert window_starts(33, 32) == [0, 1] and window_starts(33, 32, faithful=True) == [0]
assert window_starts(65, 32) == [0, 16, 32, 33] and window_starts(65, 32, faithful=True) == [0, 16, 32]
assert window_starts(20, 32) == window_starts(32, 32) == [0]

# %% [markdown]
# ## Windows of the measurement
# All slices are measured. The windows follow each other, and the last one is filled up with black slices. The original
# copies its last window into whole numbers first, also a full one.

# %%
#| export
def following_windows(
    volume: np.ndarray,      # uint8 (slices, rows, columns)
    depth: int = 32,         # slices of a window
    size: int = 128,         # side of a window, pixels
    faithful: bool = False,  # whether the last window is truncated as in the original
) -> Iterator[np.ndarray]:   # float32 (depth, size, size) in [0, 1]
    "Windows of a whole series, one after the other."
    for start in range(0, len(volume), depth):
        rows = range(start, min(start + depth, len(volume)))
        window = small_levels(volume, rows, size)
        if faithful and start + depth >= len(volume):
            window = np.trunc(window)
        yield np.pad(window, ((0, depth - len(rows)), (0, 0), (0, 0)))

# %% [markdown]
# ## Labels in the original's layout
# The original does not read the position of a NIfTI file. It turns the arrays by fixed flips, which fit the files of
# the competition and of TotalSegmentator. Where geometry is known, `core` puts labels onto the slices instead.

# %%
#| export
PARTS = ("liver", "spleen", "kidney_left", "kidney_right", "colon", "duodenum", "small_bowel")  # files of a case
PART_LABELS = (1, 2, 3, 4, 5, 5, 5)  # their labels here: one organ is the bowel

def competition_labels(
    stored: np.ndarray,  # (columns, rows, slices), as the NIfTI file has it
) -> np.ndarray:         # (slices, rows, columns)
    "Labels of the competition in the order of its slices, by the original's flips."
    return stored[:, ::-1, ::-1].transpose(2, 1, 0)

def totalsegmentator_case(
    ct: np.ndarray,     # (x, y, z), HU, as the NIfTI file has it
    parts: np.ndarray,  # bool (7, x, y, z), in the order of PARTS
) -> tuple[np.ndarray, np.ndarray]:  # uint8 volume and labels, both (slices, rows, columns)
    "A case of TotalSegmentator by the original's flips: stretched from its lowest to its highest value, no window."
    span = float(ct.max()) - float(ct.min())
    levels = (255 * ((ct - float(ct.min())) / (span or 1.0))).astype(np.uint8)
    labels = np.zeros(ct.shape, np.uint8)
    for part, label in zip(parts, PART_LABELS):
        labels[part > 0] = label
    return tuple(each[::-1, ::-1, ::-1].transpose(2, 1, 0) for each in (levels, labels))

# %% [markdown]
# ## What came out
# A drawn series of a sphere, with its label, in windows. Each row is a window; the last one overlaps more.

# %%
z, y, x = np.mgrid[:length, :60, :72]
ball = (((z - length * .6) / 20)**2 + ((y - 30) / 16)**2 + ((x - 30) / 20)**2 < 1)
volume = (60 + 130 * ball + np.random.default_rng(0).integers(0, 20, ball.shape)).astype(np.uint8)
windows = list(training_windows(volume, ball.astype(np.uint8), depth, 32))
assert [start for start, *_ in windows] == [0, 8, 16, 19] and windows[-1][1].shape == (depth, 32, 32)
fig, axes = plt.subplots(len(windows), depth, figsize=(12, 0.8 * len(windows)))
for row, (start, levels, masks) in zip(axes, windows):
    for ax, picture, mask in zip(row, levels, masks):
        ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
        ax.contour(mask, [0.5], colors="orange", linewidths=1) if mask.any() else None
        ax.axis("off")
measured = list(following_windows(volume, depth, 32))
assert len(measured) == 5 and not measured[-1][length % depth:].any() and measured[-1][0].any()
tail = small_levels(volume, range(length - length % depth, length), 32)
assert np.array_equal(measured[-1][:len(tail)], tail), "the last window equals its slices to the last bit"

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

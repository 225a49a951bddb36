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
# # Organs
# > What the masks of a series say about each slice: how much of an organ is there, and where to cut.
#
# The label of a patient says that the liver is injured, not where. The slice with most liver is likely to show it, and
# a slice without liver cannot. So the label is multiplied by the share of the organ in the slice.

# %%
#| default_exp trauma.reading.organs

# %%
#| export
from pathlib import Path

import numpy as np

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import replacing
from mammo_nb.trauma.recipes import ORGANS

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt

# %% tags=["parameters"]
slices = 40   # of the drawn series

# %% [markdown]
# Drawn masks: a liver, a spleen and one kidney. The other kidney and the bowel are not found.

# %%
z, y, x = np.mgrid[:slices, :32, :32]
ball = lambda cz, cy, cx, r: np.hypot(np.hypot((z - cz) * 0.6, y - cy), x - cx) < r
masks = np.stack([ball(20, 14, 9, 6), ball(16, 15, 24, 4), ball(26, 20, 21, 3), ball(0, 0, 0, 0), ball(0, 0, 0, 0)], 1)

# %% [markdown]
# ## Visibility
# The pixels of an organ in a slice, divided by the most that it has in any slice of the series. An organ that is not
# found at all has no visibility. The original gets no number there for the bowel, and then no number for its label.

# %%
#| export
def visibility(
    masks: np.ndarray,       # bool (slices, organs, rows, columns), in the order of ORGANS
    faithful: bool = False,  # whether a bowel that is not found gives nan
) -> np.ndarray:             # float64 (slices, organs), 0 to 1
    "How much of each organ is in each slice, relative to its largest slice."
    pixels = masks.sum((2, 3), dtype=np.float64)
    most = pixels.max(0)
    shares = pixels / np.maximum(most, 1)
    if faithful:
        bowel = ORGANS.index("bowel")
        shares[:, bowel] = np.where(most[bowel] > 0, shares[:, bowel], np.nan)
    return shares

# %%
seen = visibility(masks)
assert (seen.max(0) == [1, 1, 1, 0, 0]).all() and np.isnan(visibility(masks, faithful=True)[:, 4]).all()
fig, ax = plt.subplots(figsize=(6, 2.2))
for organ, curve in zip(ORGANS, seen.T):
    ax.plot(curve, label=organ)
ax.set(xlabel="slice", ylabel="visibility")
ax.legend(fontsize=8);

# %% [markdown]
# ## Crop
# The box around all organs of a series, as fractions of its sides. The original counts from the first to the last
# pixel, so that the last one is cut off. A series without organs keeps its whole frame.

# %%
#| export
WHOLE = (0.0, 1.0, 0.0, 1.0)  # the crop of a whole frame: top, bottom, left, right

def crop_of(
    masks: np.ndarray,       # bool (slices, organs, rows, columns)
    faithful: bool = False,  # whether the last row and column are left out
) -> tuple[float, float, float, float]:  # top, bottom, left, right as fractions of the sides
    "The box around all organs of a series."
    union = masks.any((0, 1))
    if not union.any():
        return WHOLE
    box = []
    for axis, side in ((1, union.shape[0]), (0, union.shape[1])):
        at = np.flatnonzero(union.any(axis))
        box += [at[0] / side, (at[-1] + (0 if faithful else 1)) / side]
    return tuple(float(b) for b in box) if box[0] < box[1] and box[2] < box[3] else WHOLE

def cut(
    picture: np.ndarray,   # (..., rows, columns)
    crop: tuple,           # top, bottom, left, right as fractions
) -> np.ndarray:           # a view of it, of at least one pixel
    "Cut a picture to a crop, with decimals cut off."
    rows, columns = picture.shape[-2:]
    top, bottom, left, right = (int(f * side) for f, side in zip(crop, (rows, rows, columns, columns)))
    return picture[..., top:max(bottom, top + 1), left:max(right, left + 1)]

# %%
crop = crop_of(masks)
assert crop == (9 / 32, 23 / 32, 4 / 32, 28 / 32) and crop_of(masks & False) == WHOLE
assert cut(masks, crop).sum() == masks.sum() and cut(masks, crop).shape[-2:] == (14, 24)
fig, ax = plt.subplots(figsize=(2.4, 2.4))
ax.imshow(masks.any(0).astype(int).argmax(0) + masks.any((0, 1)), cmap="viridis")
top, bottom, left, right = (32 * f - 0.5 for f in crop)
ax.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="orange")
ax.axis("off");

# %% [markdown]
# ## Files
# A mask has one bit a pixel, and slices can be read one by one.

# %%
#| export
class MaskError(ProjectError):
    "A file of masks that cannot be read."

def write_masks(
    path: Path,          # .npy
    masks: np.ndarray,   # bool (slices, organs, size, size)
):
    "Write masks with one bit a pixel."
    with replacing(path) as temporary:
        np.save(temporary, np.packbits(masks, axis=-1))

def read_masks(
    path: Path,      # from `write_masks`
    rows=None,       # numbers of the slices; None: all
) -> np.ndarray:     # bool (slices, organs, size, size)
    "Read masks of slices. Raises MaskError."
    try:
        bits = np.load(path, mmap_mode="r")
        bits = np.asarray(bits if rows is None else bits[rows])
        return np.unpackbits(bits, axis=-1, count=bits.shape[-2]).astype(bool)
    except (OSError, ValueError, IndexError) as e:
        raise MaskError(f"{path} cannot be read: {e}. Run the stage info again.") from e

# %%
path = Path(tempfile.mkdtemp()) / "7_1.npy"
write_masks(path, masks)
assert np.array_equal(read_masks(path), masks) and np.array_equal(read_masks(path, [7, 3]), masks[[7, 3]])
try:
    read_masks(path, [slices])
except MaskError as e:
    print(type(e).__name__)

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

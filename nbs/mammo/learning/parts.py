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
# # Parts
# > A part of an image, and the image with its sides or its ends exchanged.
#
# These changes move pixels and leave their grey levels as they are. `augment` uses them first.

# %%
#| default_exp mammo.learning.parts

# %%
#| export
import cv2
import numpy as np

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.pictures import sheet
from mammo_nb.mammo.drawing.breast import make_breast

# %% tags=["parameters"]
rows, columns = 1024, 832   # of the frame that the breast below is drawn in, pixels
seed = 7

# %%
drawn = make_breast(np.random.default_rng(seed), "L", "MLO", (rows, columns), "mass")
x0, y0, x1, y1 = drawn.box
breast = (drawn.pixels[y0:y1, x0:x1] * 255).astype(np.uint8)

# %% [markdown]
# ## A part of the breast
# A rectangle of half to all of the area, with proportions near those of the network's input. It is not resized here:
# the transforms that follow work on the stored pixels, and the caller fits the result (`core/pictures.fit_resize`).
# The rectangles are those of the winner: with the same numbers drawn, 120 of 120 are equal
# (`tests/test_parity_mammo.py`).

# %%
#| export
def random_crop(
    image: np.ndarray,           # uint8 (height, width)
    rng: np.random.Generator,
    area: tuple = (0.5, 1.0),    # share of the area
    ratio: tuple = (0.5, 0.8),   # width / height, log-uniform
    tries: int = 10,             # draws; after them the largest centred rectangle with an allowed ratio is taken
) -> np.ndarray:                 # uint8, a view of the image
    "Cut out a rectangle (Szegedy et al. 2015, section 6), without resizing."
    h, w = image.shape
    for _ in range(tries):
        pixels = h * w * rng.uniform(*area)
        proportion = np.exp(rng.uniform(*np.log(ratio)))
        crop_h, crop_w = round((pixels / proportion) ** 0.5), round((pixels * proportion) ** 0.5)
        if 0 < crop_h <= h and 0 < crop_w <= w:
            top, left = rng.integers(0, h - crop_h + 1), rng.integers(0, w - crop_w + 1)
            return image[top:top + crop_h, left:left + crop_w]
    crop_h, crop_w = min(h, max(1, round(w / ratio[0]))), min(w, max(1, round(h * ratio[1])))
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    return image[top:top + crop_h, left:left + crop_w]

def flip_sides(
    image: np.ndarray,          # uint8 (height, width)
    rng: np.random.Generator,
) -> np.ndarray:                # uint8, same shape
    "Exchange left and right."
    return cv2.flip(image, 1)

def flip_ends(
    image: np.ndarray,          # uint8 (height, width)
    rng: np.random.Generator,
) -> np.ndarray:                # uint8, same shape
    "Exchange top and bottom."
    return cv2.flip(image, 0)

# %%
cuts = [random_crop(breast, np.random.default_rng([seed, i])) for i in range(11)]
sheet([breast, *cuts], title="crops, not resized")
shares = [c.size / breast.size for c in cuts]
assert min(shares) >= .49 and max(shares) <= 1
# too wide for any try: centre crop
assert random_crop(np.zeros((100, 300), np.uint8), np.random.default_rng(0)).shape == (100, 80)

# %% [markdown]
# ## What came out
# How large the crops are and how wide, and the mirrored images.

# %%
many = [random_crop(breast, np.random.default_rng(i)) for i in range(500)]
plt.figure(figsize=(4, 2.5))
plt.scatter([c.size / breast.size for c in many], [c.shape[1] / c.shape[0] for c in many], s=3)
plt.xlabel("share of the area")
plt.ylabel("width / height");

# %%
sides, ends = flip_sides(breast, None), flip_ends(breast, None)
sheet([breast, sides, ends, flip_ends(sides, None)], columns=8, title="flips")
assert (sides[:, 0] == breast[:, -1]).all() and (ends[0] == breast[-1]).all()

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

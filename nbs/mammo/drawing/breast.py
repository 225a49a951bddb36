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
# # Breast
# > One drawn mammogram, with the mask of its breast and of its lesion.
#
# Tissue, lesion, skin and noise come together here, in a frame of any size. The result carries its own truth: the mask
# of the breast, the mask of the lesion and the box around the breast.

# %%
#| default_exp mammo.drawing.breast

# %% tags=["parameters"]
rows, columns = 832, 640   # frame, pixels
seed = 7                   # of the random generator
conspicuity = 1.0          # contrast of lesions; at 1 an attentive reader sees them

# %%
#| export
from dataclasses import dataclass

import cv2
import numpy as np

from mammo_nb.mammo.drawing.anatomy import Anatomy, draw_anatomy, outline, tissue
from mammo_nb.mammo.drawing.lesions import KINDS, add_calcifications, add_mass, place
from mammo_nb.mammo.drawing.texture import FIELD, fill, make_frame, power_law

# %%
#| hide
import matplotlib.pyplot as plt

# %% [markdown]
# ## One mammogram
# A large frame is drawn reduced to `WORKING` rows, enlarged, and then gets its finest structure: texture, grains of
# calcium and noise. So the time hardly depends on the size of the frame, and fine detail is still there.

# %%
#| export
WORKING = 1280     # rows; in a larger frame everything but the finest structure is drawn reduced
BREAST = 64        # grey level of the breast in a mask, beside those of KINDS

@dataclass(frozen=True)
class Breast:
    "A drawn mammogram and its truth."
    pixels: np.ndarray        # float32 (rows, columns), from 0 (air) to 1
    breast_mask: np.ndarray   # bool, same shape
    lesion_mask: np.ndarray   # uint8, same shape: the grey level of KINDS inside the lesion, else 0
    box: tuple                # x0, y0, x1, y1 of the breast, half-open, in pixels

def mask_box(
    mask: np.ndarray,   # (rows, columns), true inside
) -> tuple:             # x0, y0, x1, y1, half-open, in pixels; () for an empty mask
    "Find the bounding box of a mask."
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1) if len(xs) else ()

def make_breast(
    rng: np.random.Generator,
    laterality: str,                  # L or R; a right breast has its chest wall on the right
    view: str,                        # CC or MLO
    frame: tuple,                     # rows, columns
    lesion: str | None = None,        # a key of KINDS; None: no lesion
    breast: Anatomy | None = None,    # None: drawn at random
    conspicuity: float = 1.0,         # factor of the lesion's contrast; 0: invisible
) -> Breast:
    "Draw one mammogram. Raises ValueError for an unknown lesion."
    if lesion is not None and lesion not in KINDS:
        raise ValueError(f"Unknown lesion {lesion!r}. Choose one of {', '.join(KINDS)}.")
    rows, columns = frame
    factor = max(1, rows / WORKING)
    small = make_frame(round(rows / factor), round(columns / factor))
    breast = breast or draw_anatomy(rng)
    polygon, nipple, axis, fold = outline(rng, breast, view, columns * FIELD / rows)
    # the nipple is in profile, or nearly so
    bump, reach = np.linspace(0, 2 * np.pi, 40), rng.uniform(0, 3.5)
    cover = np.maximum(fill(small, polygon),
                       fill(small, np.stack([nipple[0] + reach * np.cos(bump), nipple[1] + 4.5 * np.sin(bump)], 1)))
    skin = cv2.distanceTransform((cover > 0.5).astype(np.uint8), cv2.DIST_L2, 5) * np.float32(small.mm)
    picture, muscle = tissue(rng, small, breast, view, nipple, axis, cover, skin)
    if lesion:
        centre = place(small, breast, view, nipple, axis, np.where(muscle < 0.3, np.minimum(skin, small.x), 0))
        size = breast.size * (0.75 if lesion.startswith("benign") else 1)
        lesion_mask = add_mass(rng, small, picture, cover, lesion, centre, size, conspicuity)
    full = make_frame(rows, columns)
    if factor > 1:
        picture, cover = [cv2.resize(a, (columns, rows), interpolation=cv2.INTER_LINEAR) for a in (picture, cover)]
        fine = power_law(rng, (512, 512), 3.0, largest=2 * factor)
        picture += np.tile(0.006 * fine, (-(-rows // 512), -(-columns // 512)))[:rows, :columns] * cover
    inside = cover > 0.5
    if lesion:
        lesion_mask = cv2.resize(lesion_mask, (columns, rows), interpolation=cv2.INTER_NEAREST)
    else:
        lesion_mask = np.zeros((rows, columns), np.uint8)
    if fold and rng.random() < 0.25:  # the upper abdomen below the fold is in the frame, but is no breast
        belly = np.clip((rng.uniform(4, 9) - full.x + 3 * np.sin(full.y / 15)) / 6, 0, 1) ** 0.5 * (full.y > fold + 4)
        picture = np.where(inside, picture, np.maximum(picture, 0.22 * belly))
    if lesion and lesion.endswith("calcifications"):  # too fine to be drawn reduced
        lesion_mask = add_calcifications(rng, full, picture, cover, lesion, centre, size, conspicuity)
    noise = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.006)
    picture += noise * np.sqrt(np.clip(picture, 0, 1))
    pixels = np.clip(picture, 0, 1).astype(np.float32)
    lesion_mask = lesion_mask * inside * np.uint8(KINDS.get(lesion, 0))
    if laterality == "R":
        pixels, inside, lesion_mask = [np.ascontiguousarray(a[:, ::-1]) for a in (pixels, inside, lesion_mask)]
    return Breast(pixels, inside, lesion_mask, mask_box(inside))

# %%
kinds = (None, "mass", "calcifications", "benign_mass", "benign_calcifications", None)
fig, axes = plt.subplots(2, 6, figsize=(12, 5.4), facecolor="black")
for i, ax in enumerate(axes.flat):
    rng = np.random.default_rng([seed, i // 2])
    b = make_breast(rng, "LR"[i // 2 % 2], ("CC", "MLO")[i % 2], (rows, columns), kinds[i // 2], draw_anatomy(rng),
                    conspicuity)
    assert b.box == mask_box(b.breast_mask) and not (b.lesion_mask[~b.breast_mask]).any()
    ax.imshow(b.pixels, cmap="gray", vmin=0, vmax=1)
    ax.axis("off")
    if b.lesion_mask.any():
        x0, y0, x1, y1 = mask_box(b.lesion_mask)
        ax.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="yellow", lw=0.6))
fig.tight_layout(pad=0.2)

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

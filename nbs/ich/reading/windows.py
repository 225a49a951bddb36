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
# > From HU to a picture of three channels: brain, subdural and bone window.
#
# Brain and blood differ by 30 HU, and a CT slice has 4000. A radiologist therefore looks at a slice through several
# windows. The network gets three of them as the channels of one picture. A grey level must mean the same HU in every
# picture, or the network cannot learn that blood has 60 to 80 HU.

# %%
#| default_exp ich.reading.windows

# %%
#| export
import numpy as np

from mammo_nb.core.dicom import Image
from mammo_nb.core.hu import to_hu

# %%
#| hide
from pathlib import Path

import matplotlib.pyplot as plt
from pydicom.uid import ExplicitVRLittleEndian

from mammo_nb.core.headers import Header

# %% tags=["parameters"]
size = 192       # side of the slice drawn below, pixels

# %% [markdown]
# ## Levels
# A window of center c and width w shows c - w/2 as black and c + w/2 as white. The "bone" window of this system ends at
# 230 HU: it is a window of soft tissue in which all bone is white.

# %%
#| export
WINDOWS = {"brain": (40, 80), "subdural": (80, 200), "bone": (40, 380)}  # center, width in HU; channels 0, 1, 2

def windowed(
    hu: np.ndarray,    # (rows, columns), HU
) -> np.ndarray:       # uint8 (rows, columns, 3); 0 in all channels is air
    "The three windows of a slice in HU, rounded to 256 levels."
    levels = np.empty((*hu.shape, 3), np.uint8)
    for channel, (center, width) in enumerate(WINDOWS.values()):
        share = (hu.astype(np.float32) - (center - width / 2)) / width
        levels[..., channel] = np.rint(255 * share.clip(0, 1))
    return levels

# %%
levels = windowed(np.array([[-1000, -20, 0, 40, 80, 180, 230]]))
assert levels[0].T.tolist() == [[0, 0, 0, 128, 255, 255, 255], [0, 0, 26, 76, 128, 255, 255],
                                [0, 87, 101, 128, 154, 221, 255]]
levels[0].T

# %% [markdown]
# ## The original's levels
# The original applies slope and intercept of the header and repairs nothing. Then it subtracts the mean of each channel
# and after that the minimum of each channel. The mean cancels, except for its rounding, and the darkest pixel becomes
# 0. In a slice without air every level is shifted by that. The levels are truncated.

# %%
#| export
def shifted(
    image: Image,      # stored values and header
) -> np.ndarray:       # uint8 (rows, columns, 3); in each channel the darkest pixel is 0
    "The three windows of a slice as the original computes them."
    slope = 1.0 if image.header.slope is None else image.header.slope
    hu = image.pixels.astype(np.float64) * slope + (image.header.intercept or 0.0)
    levels = np.empty((*hu.shape, 3), np.uint8)
    for channel, (center, width) in enumerate(WINDOWS.values()):
        low, high = center - width / 2, center + width / 2
        share = (hu.clip(low, high) - low) / width
        share -= share.mean()
        levels[..., channel] = ((share - share.min()) * 255).astype(np.uint8)
    return levels

# %% [markdown]
# ## One call

# %%
#| export
def slice_picture(
    image: Image,                # stored values and header of a CT slice
    faithful: bool = False,      # whether the levels are computed as in the original
    offset: bool | None = None,  # whether the values are HU + 1024; None: decided from the values
) -> np.ndarray:                 # uint8 (rows, columns, 3): brain, subdural and bone window
    "The picture of a slice; OpenCV writes its channels as blue, green and red."
    if faithful:
        return shifted(image)
    return windowed(to_hu(image, offset).values)

# %% [markdown]
# A head with an acute hemorrhage of 70 HU at the skull, and a file that lost its intercept. The corrected picture is
# the same for both files. In the original's picture of the second one all tissue has one level.

# %%
y, x = np.mgrid[:size, :size] / (size / 2) - 1
radius = np.hypot(x / .75, y / .9)
hu = np.select([(radius < .9) & (x > .55), radius < .9, radius < 1], [70, 34, 1200], -1000)
hu = hu + np.random.default_rng(0).integers(-6, 7, hu.shape)

def made(stored, **tags):
    "An Image of a CT slice in 12 bits."
    fields = dict(path=Path("slice.dcm"), syntax=ExplicitVRLittleEndian, syntax_name="", rows=size, columns=size,
                  frames=1, bits_allocated=16, bits_stored=12, high_bit=11, signed=False, samples=1,
                  photometric="MONOCHROME2", image_id="1", modality="CT", slope=1.0, intercept=-1024.0)
    return Image(Header(**fields | tags), np.asarray(stored).clip(0, 4095).astype(np.uint16), "native")

usual, lost = made(hu + 1024), made(hu + 1024, intercept=0.0)
pictures = [slice_picture(usual), slice_picture(lost), slice_picture(lost, faithful=True)]
assert np.array_equal(pictures[0], pictures[1]) and (np.ptp(pictures[2][radius < 1], axis=0) == 0).all()
fig, axes = plt.subplots(1, 5, figsize=(11, 2.6))
shown = [*np.moveaxis(pictures[0], -1, 0), pictures[0][..., ::-1], pictures[2][..., ::-1]]
for ax, shown_picture, title in zip(axes, shown, [*WINDOWS, "all three", "original, intercept lost"]):
    ax.imshow(shown_picture, cmap="gray", vmin=0, vmax=255)
    ax.set_title(title, fontsize=9)
    ax.axis("off")

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

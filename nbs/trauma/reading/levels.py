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
# # Levels
# > From a CT slice to 256 grey levels: the window of soft tissue, or the one that the file names.
#
# An injured liver differs from a healthy one by 30 to 60 HU. The window from -150 to 250 HU shows the organs and their
# injuries and makes air black and bone white. The published system has two preparations of the same files, and its
# models were trained on one or the other.

# %%
#| default_exp trauma.reading.levels

# %%
#| export
import numpy as np

from mammo_nb.core.dicom import Image
from mammo_nb.core.hu import AIR, to_hu

# %%
#| hide
from pathlib import Path

import matplotlib.pyplot as plt
from pydicom.uid import ExplicitVRLittleEndian

from mammo_nb.core.headers import Header

# %% tags=["parameters"]
size = 192       # side of the slice drawn below, pixels

# %% [markdown]
# ## Stretched
# After the window the darkest pixel of a slice becomes 0 and the brightest 255. A slice with air and bone is not
# changed by that. A slice of one value has no contrast, and it becomes black.

# %%
#| export
CENTER, WIDTH = 50.0, 400.0  # HU, the window of soft tissue

def stretched(
    hu: np.ndarray,          # (rows, columns), HU
    center: float = CENTER,  # HU
    width: float = WIDTH,    # HU
) -> np.ndarray:             # float64 (rows, columns) in [0, 1]
    "A slice cut off at a window and stretched from its darkest to its brightest pixel."
    shown = np.clip(hu, center - width / 2, center + width / 2, dtype=np.float64)
    low, high = shown.min(), shown.max()
    return (shown - low) / (high - low) if high > low else np.zeros_like(shown)

# %%
assert stretched(np.array([[-1000, -150, 50, 250, 3000]])).tolist() == [[0, 0, .5, 1, 1]]
assert stretched(np.array([[20, 30, 40]])).tolist() == [[0, .5, 1]] and not stretched(np.full((2, 2), -1000)).any()

# %% [markdown]
# ## One call
# `ours` is the window of soft tissue. `theo` is the first window of the file, or that of soft tissue where the file has
# none. The original applies slope and intercept, repairs nothing and cuts the decimals of the levels off. A negative
# value in 12 of 16 bits is a large positive one for it.

# %%
#| export
def slice_levels(
    image: Image,                # stored values and header of a CT slice
    window: str = "ours",        # ours or theo
    faithful: bool = False,      # whether levels are computed as in the original
    hu: np.ndarray | None = None,  # (rows, columns), its values in HU; None: computed from the image
) -> np.ndarray:                 # uint8 (rows, columns); 0 is black
    "The grey levels of a slice."
    header, own = image.header, (CENTER, WIDTH)
    if window == "theo":
        own = next(((c, w) for c, w in header.windows if np.isfinite((c, w)).all() and w > 0), own)
    if not faithful:
        hu = to_hu(image).values if hu is None else hu
        return np.rint(stretched(hu, *own) * 255).astype(np.uint8)
    stored = image.pixels.astype(np.int64)
    if header.signed and header.bits_stored < header.bits_allocated:
        stored %= 2**header.bits_stored  # negative values whose sign was not repaired
    hu = stored * (1.0 if header.slope is None else header.slope) + (header.intercept or 0.0)
    return (stretched(hu, *own) * 255).astype(np.uint8)

# %% [markdown]
# A body with liver, spine and a laceration. The file that lost its intercept gives the same picture as the usual one.

# %%
y, x = np.mgrid[:size, :size] / (size / 2) - 1
inside = np.hypot(x / .9, y / .7) < 1
liver = np.hypot((x + .4) / .4, (y + .1) / .4) < 1
hu = np.select([liver & (abs(y + .1 - .4 * (x + .4)) < .04), liver, np.hypot(x, y - .4) < .15, inside],
               [40, 110, 400, 15], AIR)
hu = hu + np.random.default_rng(0).integers(-6, 7, hu.shape)

def made(stored, **tags):
    "An Image of a CT slice in 12 bits."
    fields = dict(path=Path("slice.dcm"), syntax=ExplicitVRLittleEndian, syntax_name="", rows=size, columns=size,
                  frames=1, bits_allocated=16, bits_stored=12, high_bit=11, signed=False, samples=1,
                  photometric="MONOCHROME2", image_id="1", modality="CT", slope=1.0, intercept=-1024.0)
    return Image(Header(**fields | tags), np.asarray(stored).clip(0, 4095).astype(np.uint16), "native")

usual, lost = made(hu + 1024, windows=((60.0, 360.0),)), made(hu + 1024, intercept=0.0)
pictures = {"ours": slice_levels(usual), "intercept lost": slice_levels(lost), "theo": slice_levels(usual, "theo"),
            "intercept lost, original": slice_levels(lost, faithful=True)}
assert np.array_equal(pictures["ours"], pictures["intercept lost"]) and pictures["theo"].max() == 255
assert np.abs(pictures["ours"].astype(int) - slice_levels(usual, faithful=True)).max() <= 1
assert np.array_equal(slice_levels(made(hu + 1024), "theo"), pictures["ours"]), "a file without a window"
fig, axes = plt.subplots(1, 4, figsize=(10, 2.7))
for ax, (title, picture) in zip(axes, pictures.items()):
    ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
    ax.set_title(title, fontsize=9)
    ax.axis("off")

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

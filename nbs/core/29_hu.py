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
# # HU
# > From stored values to Hounsfield units, with the known mistakes of CT files corrected and named.
#
# A CT file stores integers; slope and intercept of its header turn them into Hounsfield units (HU): air is -1000, water
# is 0. Some files lack the intercept, some lack the sign, and some hold a value outside the scan circle that is no
# measurement. Uncorrected, each of these shifts or wraps the image, and no later step fails.

# %%
#| default_exp core.hu

# %% tags=["parameters"]
size = 128   # side of the slice drawn below, pixels

# %%
#| export
from dataclasses import dataclass

import numpy as np

from mammo_nb.core.dicom import Image
from mammo_nb.core.grey import padding_mask
from mammo_nb.core.headers import BadHeader, Header, tag_name

# %%
#| hide
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from pydicom.uid import ExplicitVRLittleEndian

# %% [markdown]
# ## A slice to correct
# A head of 40 HU in a skull of 1200 HU, with air around it, and the header of an ordinary CT file.

# %%
y, x = np.mgrid[:size, :size] / (size / 2) - 1
radius = np.hypot(x / .75, y / .9)
truth = np.select([radius < .9, radius < 1], [40, 1200], -1000) + np.random.default_rng(0).integers(-8, 9, (size, size))
truth = np.maximum(truth, -1000).astype(float)

def made(stored, **tags):
    "An Image of a CT slice with the given header fields."
    fields = dict(path=Path("slice.dcm"), syntax=ExplicitVRLittleEndian, syntax_name="", rows=size, columns=size,
                  frames=1, bits_allocated=16, bits_stored=16, high_bit=15, signed=False, samples=1,
                  photometric="MONOCHROME2", image_id="1", modality="CT", slope=1.0, intercept=-1024.0)
    return Image(Header(**fields | tags), np.asarray(stored).astype(np.int16 if tags.get("signed") else np.uint16),
                 "native")

# %% [markdown]
# ## Padding
# A scanner fills the corners outside its scan circle. The header may name the value that it used; some programs write
# it with the wrong sign, 63536 for -2000. Unnamed padding is recognised in the four corners: one value, below every HU
# that a scanner measures. Padding becomes air.

# %%
#| export
AIR = -1000.0          # HU
CT = ("CT", "")        # modalities whose values are HU; some competitions remove the tag
LOWEST = -1024.0       # HU; the smallest value that scanners store for a measurement
WRAPPED = 4096         # stored values so near to the top of an unsigned range are negative ones

# %%
wrong = made(np.where(radius > 1.2, 63536, truth + 1024), padding=(63536, 63536))
signed = made(np.where(radius > 1.2, -2000, truth), padding=(63536, 63536), signed=True)
assert (padding_mask(wrong.pixels, wrong.header) == (radius > 1.2)).all()
assert (padding_mask(signed.pixels, signed.header) == (radius > 1.2)).all()

# %% [markdown]
# ## Sign and offset
# Two mistakes are common when the intercept is 0. In the first, negative values are stored in two's complement under an
# unsigned header, so that air is 3096 in 12 bits. In the second, 1024 was added to every value without a matching
# intercept, so that air is at 24 and soft tissue around 1064. The second is recognised by its histogram: air near 0,
# and many more values of soft tissue around 1024 than of bone above it or between the two.

# %%
#| export
OFFSET = 1024  # stored values for 0 HU when the intercept is lost

def wraps(
    pixels: np.ndarray,  # (rows, columns) stored values
    header: Header,
) -> np.ndarray:         # bool, same shape: negative values under an unsigned header
    "Values of a CT that are negative, in two's complement, although the header is unsigned."
    if header.signed or header.modality not in CT or pixels.dtype.kind != "u" or header.bits_stored < 12:
        return np.zeros(pixels.shape, bool)
    if header.bits_stored == 16:
        return pixels >= 2**16 - WRAPPED
    negative = pixels >= 2**header.bits_stored - OFFSET
    if (header.intercept or 0) <= -100 or negative.mean() < 0.01 or (pixels[~negative] < 300).mean() < 0.3:
        return np.zeros(pixels.shape, bool)
    return negative

def has_offset(
    values: np.ndarray,  # of a CT slice, any shape, with the header's slope and intercept applied
) -> bool | None:        # None: the slice holds too little air or tissue to decide
    "Whether values are HU + 1024: air near 0 and soft tissue near 1024, with little in between."
    count = lambda low, high: float(((values >= low) & (values < high)).mean())
    if count(-np.inf, -100) > 0.001:
        return False  # negative values are air or fat: HU as they are
    air, between, tissue, bone = count(-100, 300), count(300, 800), count(974, 1124), count(1200, 2000)
    if air < 0.02 or tissue + bone < 0.02:
        return None
    return tissue > 2 * between and tissue > bone

# %% [markdown]
# ## One call
# Corrections are named, so that a table can report them. A slice that is nearly all air or all tissue cannot show an
# offset by itself. `offset` passes the finding of the other slices of its series.

# %%
#| export
NO_RESCALE = "no RescaleSlope and RescaleIntercept; stored values are taken as HU"
SHIFTED = "values are HU + 1024 under intercept 0; corrected"
SIGN_LOST = "negative values under an unsigned header; corrected"
PADDED = "padding below -1024 HU without PixelPaddingValue; set to air"

@dataclass(frozen=True)
class Hounsfield:
    "A slice in HU."
    values: np.ndarray       # float32 (rows, columns)
    notes: tuple[str, ...]   # what was corrected
    offset: bool | None      # whether the slice had an offset of 1024; None: not known

def to_hu(
    image: Image,                # stored values and header of a CT slice, or of any image with a rescale
    offset: bool | None = None,  # whether 1024 must be subtracted; None: decided from the values
) -> Hounsfield:
    "Stored values as HU: sign, slope, intercept, padding and offset (PS3.3 C.11.1.1.2); raises BadHeader for slope 0."
    header, pixels, notes = image.header, image.pixels, []
    slope = 1.0 if header.slope is None else header.slope
    intercept = header.intercept or 0.0
    if slope == 0:
        raise BadHeader(header.path, "a slope of 0 makes all values equal", tag_name("RescaleSlope"),
                        "Correct the tag or leave the file out.")
    padding, negative = padding_mask(pixels, header), wraps(pixels, header)
    stored = pixels.astype(np.float32)
    if (negative & ~padding).any():
        stored[negative] -= 2.0**header.bits_stored
        notes.append(SIGN_LOST)
    values = stored * np.float32(slope) + np.float32(intercept)
    if header.modality not in CT:
        return Hounsfield(values, tuple(notes), False)
    if header.slope is None and header.intercept is None:
        notes.append(NO_RESCALE)
    if offset is None:
        offset = has_offset(values[~padding]) if (slope, intercept) == (1, 0) else False
    if offset:
        values -= OFFSET
        notes.append(SHIFTED)
    corners = values[[0, 0, -1, -1], [0, -1, 0, -1]]
    if not padding.any() and corners.min() == corners.max() < LOWEST:
        padding = values == corners[0]
        notes.append(PADDED)
    values[padding] = AIR
    return Hounsfield(values, tuple(notes), offset)

# %% [markdown]
# The same slice written in seven ways:

# %%
ways = {
    "12 bits, intercept -1024": made(truth + 1024, bits_stored=12),
    "slope 2, intercept -2048": made((truth + 2048) / 2, slope=2.0, intercept=-2048.0),
    "no rescale, signed": made(truth, signed=True, slope=None, intercept=None),
    "12 bits, sign lost": made(truth.astype(int) & 0xFFF, bits_stored=12, intercept=0.0),
    "intercept lost": made(truth + 1024, bits_stored=12, intercept=0.0),
    "padding with the wrong sign": wrong,
    "padding unnamed": made(np.where(radius > 1.2, -2000, truth + 1024), signed=True),
}
fig, axes = plt.subplots(1, len(ways), figsize=(12, 2))
for ax, (name, image) in zip(axes, ways.items()):
    found = to_hu(image)
    inside = radius < 1.2
    assert np.abs(found.values - truth)[inside].max() <= 1 and found.values[0, 0] <= -990, name
    ax.imshow(found.values, cmap="gray", vmin=-100, vmax=200)
    ax.set_title(name, fontsize=8)
    ax.axis("off")
pd.Series({name: "; ".join(to_hu(image).notes) for name, image in ways.items()}).to_frame("notes")

# %% [markdown]
# An image that is clipped at 0 HU is not mistaken for one with an offset, and metal of 7976 HU stays as it is:

# %%
assert to_hu(made(np.maximum(truth, 0), intercept=0.0)).offset in (False, None)
metal = np.where(radius < .1, 7976, truth)
assert to_hu(made(metal + 1024)).values.max() == 7976

# %% [markdown]
# ---
# [← Grey](28_grey.py) · [Chapter 3: many files →](30_many_files.py)

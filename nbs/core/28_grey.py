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
# # Grey
# > Every step from stored values to the grey levels of a picture, in the order of the standard.
#
# A header describes a chain (PS3.3 C.7.6.3, C.11.1, C.11.2, C.11.6): a modality table or a slope and an intercept,
# pixels that are no image, a window or a table, and black and white exchanged. A step that is left out gives a picture
# without an error, and a wrong one. Here the chain stands in one place. What cannot be used is passed over with a note,
# because one odd tag must not cost an image.

# %%
#| default_exp core.grey

# %% tags=["parameters"]
center, width = 2000., 1500.  # the window of the examples, in values after the modality step

# %%
#| export
import math
from dataclasses import replace

import numpy as np

from mammo_nb.core.dicom import Frame, Image
from mammo_nb.core.headers import Header
from mammo_nb.core.parsing import Lut
from mammo_nb.core.windows import FUNCTIONS, limits_of, look_up, to_grey

# %%
#| hide
from pathlib import Path

import matplotlib.pyplot as plt
from pydicom.uid import ExplicitVRLittleEndian

# %% [markdown]
# ## The modality step
# Windows are given in values after a table, or after slope and intercept. Nearly all mammograms have slope 1 and
# intercept 0, and their values stay as they are.

# %%
#| export
def through(
    x: np.ndarray,  # integers
    lut: Lut,
    signed: bool,   # whether values before the table can be negative
) -> np.ndarray:    # uint16, same shape
    "Look values up in a table; values outside of it get its first or last entry (PS3.3 C.11.1.1.1, C.11.2.1.1)."
    first = lut.first & 0xFFFF  # 16 bits, whose sign some files lose
    if first >= 32768 and (signed or first > limits_of(x)[1]):
        first -= 65536
    last = len(lut.entries) - 1
    return look_up(x, lambda v: lut.entries[np.clip(np.round(v).astype(np.int64) - first, 0, last)])

def modality_values(
    pixels: np.ndarray,  # stored values
    header: Header,      # modality_lut, slope, intercept, signed
) -> np.ndarray:         # integers if all values are whole and fit 16 bits, else float32; same shape
    "Apply the Modality LUT Sequence, or slope and intercept (PS3.3 C.11.1)."
    if header.modality_lut is not None:
        return through(pixels, header.modality_lut, header.signed)
    slope, intercept = header.slope or 1.0, header.intercept or 0.0
    if (slope, intercept) == (1, 0):
        return pixels
    ends = [slope * end + intercept for end in limits_of(pixels)]
    low, high = min(ends), max(ends)
    kinds = [k for k in (np.uint16, np.int16) if np.iinfo(k).min <= low and high <= np.iinfo(k).max]
    if kinds and slope.is_integer() and intercept.is_integer():
        return look_up(pixels, lambda v: (v.astype(np.int64) * int(slope) + int(intercept)).astype(kinds[0]))
    return look_up(pixels, lambda v: v.astype(np.float32) * np.float32(slope) + np.float32(intercept))

# %% [markdown]
# ## Padding
# Pixels outside of the detector, or behind a shutter, may have a value that is no measurement. They become background:
# the darkest value of the picture.

# %%
#| export
def padding_mask(
    pixels: np.ndarray,  # (rows, columns) stored values
    header: Header,      # with .padding
) -> np.ndarray:         # bool, same shape
    "Pixels with the values of PixelPaddingValue to PixelPaddingRangeLimit, whatever sign the header gives them."
    if header.padding is None:
        return np.zeros(pixels.shape, bool)
    low, high = np.array(header.padding, np.int64).astype(pixels.dtype)  # 63536 is -2000 in int16, and the reverse
    return (pixels >= low) & (pixels <= high)

def _masked(pixels: np.ndarray, header: Header) -> np.ndarray:
    "As `padding_mask`; a value with more bits than are stored is found by its lower bits, all that is left of it."
    mask = padding_mask(pixels, header)
    if header.padding and not header.signed and header.padding[0] >> header.bits_stored and not mask.any():
        mask = pixels == header.padding[0] & (1 << header.bits_stored) - 1
    return mask

def _is_inverse(header: Header) -> bool:
    "Whether black and white are exchanged after the window."
    return header.photometric == "MONOCHROME1" or header.presentation == "INVERSE"

def is_negative(
    header: Header,
) -> bool:           # whether low values are bright
    "MONOCHROME1, PresentationLUTShape INVERSE (PS3.3 C.11.6), or a falling VOI table without a window."
    falling = bool(header.voi_luts) and not header.windows
    falling = falling and int(header.voi_luts[0].entries[0]) > int(header.voi_luts[0].entries[-1])
    return _is_inverse(header) != falling

def _needs_all(header: Header) -> bool:
    "Whether padding spoils means of neighbours: it is not at the dark end of the stored values."
    if header.padding is None:
        return False
    darkest = -(1 << header.bits_stored - 1) if header.signed else 0
    plain = header.modality_lut is None and (header.slope or 1.0) > 0
    return is_negative(header) or not plain or header.padding != (darkest, darkest)

# %% [markdown]
# ## One call before the box
# The result has the values that windows refer to, and a header that says so: without padding, slope and table. So the
# search for the breast, the crop and its grey levels need to know of none of these. A picture with whole bytes and an
# ordinary header is returned as it is.

# %%
#| export
def settled(
    image: Image,  # stored values
) -> Image:        # values after the modality step, padding filled; notes in its header
    "Apply all steps before the window."
    header, pixels, notes = image.header, image.pixels, list(image.header.notes)
    if not header.syntax:
        return image
    mask = _masked(pixels, header)
    if mask.any() and mask.mean() > 0.98:
        notes.append("PixelPaddingValue is the value of nearly all pixels; ignored")
        mask[:] = False
    if header.slope == 0:
        notes.append("RescaleSlope is 0; ignored")
    if header.presentation == "IDENTITY" and header.photometric == "MONOCHROME1":
        notes.append("PresentationLUTShape IDENTITY under MONOCHROME1; shown as MONOCHROME1")
    values = modality_values(pixels, header)
    if mask.any():
        values = values.copy() if values is pixels else values
        values[mask] = (np.max if is_negative(header) else np.min)(values[~mask])
    return replace(image, pixels=values, header=replace(
        header, slope=None, intercept=None, modality_lut=None, padding=None, presentation="", notes=tuple(notes),
        photometric="MONOCHROME1" if _is_inverse(header) else "MONOCHROME2"))

def decode_grey(
    frame: Frame,
    scale: float = 1.0,  # as for `Frame.decode`
) -> Image:              # from `settled`
    "Decode a frame, in no higher resolution than is needed, and apply all steps before the window."
    return settled(frame.decode(1.0 if _needs_all(frame.header) else scale))

# %% [markdown]
# ## Windows that mean something
# A window counts if it is finite and wide enough, and if some pixels lie inside it. A sigmoid never ends, but beyond
# one and a half widths from its centre nothing of it is left in 255 levels. The first window that counts is taken,
# beginning with the one that is asked for. Without one, the VOI table is used, and without a table the range of the
# pixels.

# %%
#| export
def window_fault(
    window: tuple[float, float],  # center, width
    function: str,                # a key of FUNCTIONS
    limits: tuple[float, float],  # lowest and highest value of the pixels
) -> str:                         # why the window cannot be used; ''
    "What is wrong with a window."
    center, width = window
    if not (math.isfinite(center) and math.isfinite(width)):
        return "is not finite"
    if width <= 0 or function == "LINEAR" and width < 1:
        return "has no width"
    low, high = limits
    if low == high:
        return ""
    if function == "LINEAR" and width == 1:
        return "leaves two levels"
    reach = 1.5 * width if function == "SIGMOID" else width / 2
    return "lies beyond all pixels" if center + reach < low or center - reach > high else ""

def choose_window(
    header: Header,               # windows, voi_function, voi_luts
    limits: tuple[float, float],  # lowest and highest value of the pixels
    which: int = 0,               # the window that is tried first
) -> tuple[Header, tuple[str, ...]]:  # with this window only, or with none; notes
    "Choose the window of a picture."
    function, notes = header.voi_function, []
    if function not in FUNCTIONS:
        notes.append(f"VOILUTFunction {function} is unknown; taken as LINEAR")
        function = "LINEAR"
    order = sorted(range(len(header.windows)), key=lambda i: (i != which, i))
    for i in order:
        if not (fault := window_fault(header.windows[i], function, limits)):
            return replace(header, windows=(header.windows[i],), voi_function=function), tuple(notes)
        notes.append(f"window {i + 1} {fault}")
    if header.windows:
        notes.append("the VOI LUT is used" if header.voi_luts else "shown from the lowest to the highest value")
    return replace(header, windows=(), voi_function="LINEAR"), tuple(notes if header.windows else ())

def grey_levels(
    values: np.ndarray,  # from `settled`, or a part of it, any shape
    header: Header,      # of the same
    which: int = 0,      # the window that is tried first
) -> tuple[np.ndarray, tuple | None, tuple[str, ...]]:  # uint8, same shape; center and width that were used; notes
    "Window or VOI table, and black and white exchanged where the header says so."
    limits = limits_of(values)
    header, notes = choose_window(header, limits, which)
    if header.windows or not header.voi_luts:
        return to_grey(values, header), next(iter(header.windows), None), notes
    lut = header.voi_luts[min(which, len(header.voi_luts) - 1)]
    levels = through(values, lut, limits[0] < 0).astype(np.float32) / np.float32(lut.top)
    levels = np.clip(1 - levels if header.photometric == "MONOCHROME1" else levels, 0, 1)
    return (levels * 255 + 1e-4).astype(np.uint8), None, notes

# %% [markdown]
# ## What came out
# The same picture, stored in seven ways:

# %%
y, x = np.mgrid[:160, :120]
truth = np.clip(3000 * np.sqrt(np.clip(1 - (x / 110)**2 - ((y - 80) / 75)**2, 0, 1)) + 300, 0, 4095).astype(np.uint16)

def made(stored, **tags):
    "A stored picture with the given fields of its header."
    fields = dict(path=Path("a.dcm"), syntax=ExplicitVRLittleEndian, syntax_name="", rows=160, columns=120, frames=1,
                  bits_allocated=16, bits_stored=16, high_bit=15, signed=stored.dtype.kind == "i", samples=1,
                  photometric="MONOCHROME2", image_id="1", windows=((center, width),))
    return Image(Header(**fields | tags), stored, "native")

line = np.clip((np.arange(4096) - (center - .5)) / (width - 1) + .5, 0, 1) * 65535
padded = np.where(x > 100, 65535, truth).astype(np.uint16)
ways = {
    "as it is": made(truth),
    "signed, intercept 2048": made(truth.astype(np.int16) - 2048, slope=1.0, intercept=2048.0),
    "slope -1": made(4095 - truth, slope=-1.0, intercept=4095.0),
    "inverse": made(4095 - truth, windows=((4096 - center, width),), presentation="INVERSE"),
    "modality table": made(4095 - truth, modality_lut=Lut(0, np.arange(4096, dtype=np.uint16)[::-1], 65535)),
    "VOI table": made(truth, windows=(), voi_luts=(Lut(0, np.round(line).astype(np.uint16), 65535),)),
    "padding": made(padded, padding=(65535, 65535)),
}
fig, axes = plt.subplots(1, len(ways), figsize=(12, 2.4))
expected = grey_levels(truth, ways["as it is"].header)[0].astype(int)
for ax, (name, image) in zip(axes, ways.items()):
    found = settled(image)
    grey, _, notes = grey_levels(found.pixels, found.header)
    assert np.abs(grey.astype(int) - expected)[x <= 100].max() <= 1 and not notes, name
    assert not grey[x > 100].any() or name != "padding"
    ax.imshow(grey, cmap="gray", vmin=0, vmax=255)
    ax.set_title(name, fontsize=8)
    ax.axis("off")

# %% [markdown]
# Windows that mean nothing are passed over:

# %%
for windows in (((30_000., 100.), (center, width)), ((math.nan, width), (center, width)), ((center, -3.),)):
    grey, _, notes = grey_levels(truth, made(truth, windows=windows).header)
    print(windows, "; ".join(notes))
    assert notes and ((grey == expected).all() or len(windows) == 1)

# %% [markdown]
# ---
# [← Windows](27_windows.py) · [HU →](29_hu.py)

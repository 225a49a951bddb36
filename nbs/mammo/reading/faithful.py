# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Faithful
# > The winner's way from stored values to what its networks saw, number by number, for its published weights.
#
# Weights carry the habits of the pipeline that they were trained in. Whoever loads the published ones wants the same
# numbers in front of them, including what we would do otherwise: a cast to 16 signed bits, truncation instead of
# rounding, and a percentile that is off by one. Nothing here is used unless a recipe says `faithful`.

# %%
#| default_exp mammo.reading.faithful

# %%
#| export
import numpy as np

from mammo_nb.core.windows import WindowError

# %%
#| hide
from types import SimpleNamespace

import cv2
import matplotlib.pyplot as plt

# %% tags=["parameters"]
center, width = 2048, 4096   # window of the examples

# %% [markdown]
# ## Stored values
# All DICOM files were cast to `int16`. Values from 32,768 on become negative: two images of CMMD have them.

# %%
#| export
def as_cast(
    pixels: np.ndarray,  # stored values
    scaling: str,        # "window" for DICOM, "percentile" for MiniDDSM and CDD-CESM, which were no DICOM files
) -> np.ndarray:         # same shape
    "int16 for DICOM, wrapping."
    if scaling != "window":
        return pixels
    # a view wraps too, and takes no memory
    return pixels.view(np.int16) if pixels.dtype == np.uint16 else pixels.astype(np.int16)

assert as_cast(np.array([40_000], np.uint16), "window")[0] == 40_000 - 65_536

# %% [markdown]
# ## Grey levels
# The first window of the header, by its function, on a scale of 0 to 255 that stays a float; without a window the range
# of the crop. No slope, no intercept, no look-up table: on VinDr the table over-exposed. MiniDDSM and CDD-CESM have no
# windows; their white is the 99th percentile less one, a slip that the winning run was trained with.

# %%
#| export
def _range(x: np.ndarray, low: float, high: float) -> np.ndarray:
    "0 to 255 between two values; in place, since a frame as floats is twice the frame."
    if not high > low:
        return np.zeros(x.shape, np.float32)
    x -= np.float32(low)
    x /= np.float32(float(high) - float(low))  # the range of int16 does not fit int16
    np.clip(x, 0, 1, out=x)
    x *= 255
    return x

def _windowed(x: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    "0 to 255 by a window, in place."
    if not (np.isfinite(center) and width > 1):
        raise WindowError(f"the first window is {center}, {width}; the winner's preparation knows no other")
    if function == "SIGMOID":  # 255 / (1 + exp(-4 (x - c) / w))
        x -= center
        x *= -4
        x /= width
        with np.errstate(over="ignore"):
            np.exp(x, out=x)  # infinity gives black, as it should
        x += 1
        return np.divide(255, x, out=x)
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise WindowError(f"VOILUTFunction (0028,1056) is {function!r}; known are LINEAR, LINEAR_EXACT, SIGMOID")
    shift = np.float32(function == "LINEAR")  # ((x - (c - .5)) / (w - 1) + .5) 255, or without .5 and 1
    x -= center - shift / 2
    x /= width - shift
    x += np.float32(0.5)
    x *= 255
    return np.clip(x, 0, 255, out=x)

def _limits(pixels: np.ndarray, scaling: str) -> tuple:
    "What becomes black and white where no window says so."
    return (pixels.min(), np.percentile(pixels, 99) - 1) if scaling == "percentile" else (pixels.min(), pixels.max())

def grey_floats(
    pixels: np.ndarray,  # from `as_cast`: the crop, or rows of it
    header,              # anything with .windows, .voi_function and .photometric
    scaling: str,        # "window", or "percentile": (x - min) / (p99 - 1 - min)
    limits: tuple | None = None,  # of the whole crop, where `pixels` are rows of it
) -> np.ndarray:         # float32 in [0, 255], same shape
    "Facts, section 3: window or percentile, then MONOCHROME1 inversion."
    x = pixels.astype(np.float32)
    if scaling == "percentile":
        return _range(x, *(limits or _limits(pixels, scaling)))  # never inverted
    if header.windows:
        grey = _windowed(x, *map(np.float32, header.windows[0]), header.voi_function)
    else:
        grey = _range(x, *(limits or _limits(pixels, scaling)))
    return np.subtract(255, grey, out=grey) if header.photometric == "MONOCHROME1" else grey

def grey_levels(
    pixels: np.ndarray,  # from `as_cast`: the crop
    header,              # as in `grey_floats`
    scaling: str,
) -> np.ndarray:         # uint8, same shape
    "The grey levels of training: cut off to whole ones, some rows at a time."
    limits, levels = _limits(pixels, scaling), np.empty(pixels.shape, np.uint8)
    for start in range(0, len(pixels), 256):
        levels[start:start + 256] = grey_floats(pixels[start:start + 256], header, scaling, limits)
    return levels

# %%
header = SimpleNamespace(windows=((center, width),), voi_function="LINEAR", photometric="MONOCHROME2")
ramp = np.arange(0, 4096, dtype=np.int16).reshape(64, 64)
assert grey_floats(ramp, header, "window")[[0, -1], [0, -1]].tolist() == [0, 255]
assert np.allclose(grey_floats(np.array([0, 50, 101, 200]), header, "percentile"),
                   np.clip(np.array([0, 50, 101, 200]) / (np.percentile([0, 50, 101, 200], 99) - 1), 0, 1) * 255)
plt.figure(figsize=(5, 2.5))
for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
    plt.plot(ramp.ravel(),
             grey_floats(ramp, SimpleNamespace(**{**vars(header), "voi_function": function}), "window").ravel(),
             label=function)
plt.xlabel("stored value")
plt.ylabel("level")
plt.legend();

# %% [markdown]
# ## What the detector saw
# The whole frame from its minimum to its maximum, tissue bright, made to fit into 416 pixels. CDD-CESM went in as it
# was.

# %%
#| export
def _bilinear(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    "OpenCV's INTER_LINEAR as float32: centres of pixels on centres, four neighbours, no smoothing."
    def neighbours(have: int, wanted: int):
        at = np.clip((np.arange(wanted) + .5) * have / wanted - .5, 0, have - 1)
        low = np.minimum(at.astype(int), max(have - 2, 0))
        return low, np.minimum(low + 1, have - 1), (at - low).astype(np.float32)
    (top, bottom, down), (left, right, across) = neighbours(pixels.shape[0], rows), neighbours(pixels.shape[1], columns)
    upper, lower = ((1 - across) * pixels[np.ix_(r, left)] + across * pixels[np.ix_(r, right)] for r in (top, bottom))
    return ((1 - down)[:, None] * upper + down[:, None] * lower).astype(np.float32)

def detector_view(
    pixels: np.ndarray,  # from `as_cast`: the whole frame
    header,              # anything with .photometric
    scaling: str,        # as in `grey_floats`
    size: int = 416,     # longest side, pixels
) -> tuple[np.ndarray, float]:  # uint8 (rows, columns), without padding; and its pixels per frame pixel
    "Facts, section 2 (use) and 3 (ROI input)."
    ratio = min(size / pixels.shape[0], size / pixels.shape[1])
    # resized before it is scaled: both are linear, and the frame need not be there as floats
    small = _bilinear(pixels, int(pixels.shape[0] * ratio), int(pixels.shape[1] * ratio))
    grey = small if scaling == "percentile" and pixels.dtype == np.uint8 else _range(small, *_limits(pixels, scaling))
    if scaling == "window" and header.photometric == "MONOCHROME1":
        grey = 255 - grey
    return grey.astype(np.uint8), ratio

# %%
view, ratio = detector_view(ramp, header, "window")
assert np.abs(
    _bilinear(ramp, 100, 41) - cv2.resize(ramp.astype(np.float32), (41,
                                                                    100), interpolation=cv2.INTER_LINEAR)).max() < 1e-2
assert view.shape == (416, 416) and ratio == 6.5 and view.max() == 255

# %% [markdown]
# ## What the classifier saw
# Training images were cut off to whole levels at full size and resized afterwards. For the submission the order was the
# other one: resized as floats, bilinear and without smoothing, and cut off last. The published weights were scored that
# way.

# %%
#| export
def network_input(
    grey: np.ndarray,  # float32 (rows, columns) from `grey_floats`: the crop
    height: int,       # of the result, pixels
    width: int,
) -> np.ndarray:       # uint8 (height, width), black on both sides of what does not fill it
    "Resize to fit, pad in the middle, cut off."
    import torch  # only here: the workers that make crops do without it
    ratio = min(height / grey.shape[0], width / grey.shape[1])
    rows, columns = int(grey.shape[0] * ratio), int(grey.shape[1] * ratio)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(grey)[None, None], (rows, columns), mode="bilinear", align_corners=False,
        antialias=False)[0, 0].numpy()
    top, left = (height - rows) // 2, (width - columns) // 2
    return np.pad(small, ((top, height - rows - top), (left, width - columns - left))).astype(np.uint8)

# %%
crop = grey_floats(ramp, header, "window")
first, last = network_input(crop, 48, 32), cv2.resize(crop.astype(np.uint8), (32, 32), interpolation=cv2.INTER_LINEAR)
assert first.shape == (48, 32) and not first[:8].any() and not first[-8:].any()
print(
    f"the order matters: {(first[8:40] != last).mean():.0%} of the pixels differ, by at most "
    f"{np.abs(first[8:40].astype(int) - last).max()} level"
)

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
# > The winner's preparation from stored values to the input of its networks, with the same numbers.
#
# Weights depend on the preparation that they were trained with. The published weights need the winner's preparation,
# including the parts that we would do differently: a cast to signed 16 bits, truncation instead of rounding, and a
# white level that is one too low. Nothing here is used unless a recipe has `faithful`.

# %%
#| default_exp mammo.reading.faithful

# %%
#| export
from dataclasses import replace

import numpy as np

from mammo_nb.core.headers import Header
from mammo_nb.core.windows import FUNCTIONS, WindowError

# %%
#| hide
from types import SimpleNamespace

import cv2
import matplotlib.pyplot as plt

# %% tags=["parameters"]
center, width = 2048, 4096   # window of the examples

# %% [markdown]
# ## Stored values
# All DICOM files were cast to `int16`. Values of 32,768 and more become negative. Two images of CMMD have such values.

# %%
#| export
def as_cast(
    pixels: np.ndarray,  # stored values
    scaling: str,        # "window" for DICOM; "percentile" for MiniDDSM and CDD-CESM, which were no DICOM files
) -> np.ndarray:         # int16 for "window", else unchanged; same shape
    "Cast the values of a DICOM file to int16; large values wrap around."
    if scaling != "window":
        return pixels
    # a view of uint16 wraps as well, and needs no memory
    return pixels.view(np.int16) if pixels.dtype == np.uint16 else pixels.astype(np.int16)

# %%
assert as_cast(np.array([40_000], np.uint16), "window")[0] == 40_000 - 65_536

# %% [markdown]
# ## The window
# The original knows the first window of a header only, and a first window without a width gives it no picture. There is
# nothing to be faithful to, so then the next usable window is taken, or none.

# %%
#| export
def choose_window(
    header: Header,
) -> tuple[Header, tuple[str, ...]]:  # the same if its first window can be used; notes
    "Replace a first window that gives no picture."
    function = header.voi_function if header.voi_function in FUNCTIONS else "LINEAR"
    notes = () if function == header.voi_function else (
        f"VOILUTFunction {header.voi_function} is unknown; taken as LINEAR",)
    least = 1 if function == "LINEAR" else 0
    usable = [(c, w) for c, w in header.windows if np.isfinite([c, w]).all() and w > least]
    if not header.windows or usable[:1] == list(header.windows[:1]):
        return (replace(header, voi_function=function) if notes else header), notes
    notes += (f"window 1 has no width or is not finite; {'the next one is' if usable else 'no window is'} used",)
    return replace(header, voi_function=function, windows=tuple(usable[:1])), notes

# %% [markdown]
# ## Grey levels
# The first window of the header is applied with its function. The result is a float from 0 to 255. Without a window,
# the range of the crop is used. Slope, intercept and look-up tables are ignored; the tables of VinDr made images too
# bright. MiniDDSM and CDD-CESM have no windows. Their white level is the 99th percentile minus one, an error with which
# the winning networks were trained: without it, 19 % of the pixels of an 8-bit picture differ by up to 2 levels.
#
# A linear window is a factor and an offset in float32. In this order of the arithmetic, the levels of the figures in
# `tests/test_parity_mammo.py` are equal in all pixels. In other orders, up to 0.2 % of the pixels of a case differ by
# a level. A width of 1 is accepted by LINEAR_EXACT and SIGMOID, and leaves LINEAR nothing to divide by.
#
# In the submission, JPEG 2000 and JPEG Lossless files were decoded on the GPU, and there the two numbers of a window
# were held as float16. `half` does so, too. Where float16 holds both numbers exactly, nothing changes, and whole
# numbers up to 2048 are exact. In the figures, 1.6 to 3.2 % of the pixels change by one level elsewhere. A width of
# 65,520 or more becomes infinite, and all pixels get level 127. So this is a switch of its own, `crops.half_windows`,
# and it is off. For the published weights it is an entry of `ensemble.json`. It changes predictions only: the crops of
# the training were made on the CPU.

# %%
#| export
def _range(x: np.ndarray, low: float, high: float) -> np.ndarray:
    "Scale two limits to 0 and 255. Works in place, because a frame of floats needs twice the memory."
    if not high > low:
        return np.zeros(x.shape, np.float32)
    x -= np.float32(low)
    x /= np.float32(float(high) - float(low))  # the range of int16 does not fit int16
    np.clip(x, 0, 1, out=x)
    x *= 255
    return x

def _held(number: float, half: bool) -> float:
    "Round a number to float16, in which 65,520 and more is infinite, or leave it."
    with np.errstate(over="ignore"):
        return float(np.float16(number)) if half else float(number)

def _line(center: float, width: float, function: str, half: bool) -> tuple[float, float]:
    "Factor and offset of a linear window, to 0 to 255."
    if function == "LINEAR":  # ((x - (c - 0.5)) / (w - 1) + 0.5) * 255
        center, width = center - 0.5, width - 1
        share = center / width
    else:                     # LINEAR_EXACT: ((x - c) / w + 0.5) * 255, where c / w is rounded to float16 as well
        share = _held(center / width, half)
    return 255 / width, (0.5 - share) * 255

def _windowed(x: np.ndarray, center: float, width: float, function: str, half: bool) -> np.ndarray:
    "Apply a window, to 0 to 255, in place."
    center, width = _held(center, half), _held(width, half)
    if not (np.isfinite(center) and width > (1 if function == "LINEAR" else 0)):
        raise WindowError(
            f"the first window has center {center} and width {width}, and the winner's preparation uses no other one")
    if function == "SIGMOID":  # 255 / (1 + exp(-4 (x - c) / w))
        x -= center
        x *= -4
        x /= width
        with np.errstate(over="ignore"):
            np.exp(x, out=x)  # infinity gives black, as it should
        x += 1
        return np.divide(255, x, out=x)
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise WindowError(f"VOILUTFunction (0028,1056) is {function!r}. Known are LINEAR, LINEAR_EXACT and SIGMOID.")
    factor, offset = _line(center, width, function, half)
    x *= factor
    x += offset
    return np.clip(x, 0, 255, out=x)

def _limits(pixels: np.ndarray, scaling: str) -> tuple:
    "Give the values of black and white for pixels without a window."
    if scaling == "percentile":
        return pixels.min(), np.percentile(pixels, 99) - 1
    return pixels.min(), pixels.max()

def grey_floats(
    pixels: np.ndarray,  # from `as_cast`: the crop, or some rows of it
    header,              # object with windows, voi_function and photometric
    scaling: str,        # "window", or "percentile": (x - min) / (p99 - 1 - min)
    limits: tuple | None = None,  # black and white of the whole crop, if `pixels` are some of its rows
    half: bool = False,  # the numbers of the window are rounded to float16
) -> np.ndarray:         # float32 from 0 to 255, same shape
    "Apply window or percentile, then invert MONOCHROME1. Raises WindowError."
    x = pixels.astype(np.float32)
    if scaling == "percentile":
        return _range(x, *(limits or _limits(pixels, scaling)))  # never inverted
    if header.windows:
        grey = _windowed(x, *header.windows[0], header.voi_function, half)
    else:
        grey = _range(x, *(limits or _limits(pixels, scaling)))
    return np.subtract(255, grey, out=grey) if header.photometric == "MONOCHROME1" else grey

def grey_levels(
    pixels: np.ndarray,  # from `as_cast`: the crop
    header,              # as in `grey_floats`
    scaling: str,        # as in `grey_floats`
) -> np.ndarray:         # uint8, same shape
    "Compute the grey levels of training, truncated to whole numbers. Works on 256 rows at a time, to save memory."
    limits = _limits(pixels, scaling)
    levels = np.empty(pixels.shape, np.uint8)
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
    changed = SimpleNamespace(**vars(header) | {"voi_function": function})
    plt.plot(ramp.ravel(), grey_floats(ramp, changed, "window").ravel(), label=function)
plt.xlabel("stored value")
plt.ylabel("level")
plt.legend();

# %% [markdown]
# ## Input of the detector
# The whole frame is scaled from its minimum to its maximum, with bright tissue, and resized to fit into 416 pixels. The
# 8-bit images of CDD-CESM are used unchanged. The frame is scaled first, so that values beyond the 99th percentile of
# MiniDDSM are clipped before they are averaged; in the other order the view differs by up to 41 levels. The levels are
# not rounded: the detector was shown floats, and only Otsu's threshold whole levels.
#
# The sides of the view are truncated. Of 200 sizes of frames, 54 give a view whose longer side is 415 pixels, because
# `h * (416 / h)` may be a little less than 416.

# %%
#| export
def _bilinear(pixels: np.ndarray, rows: int, columns: int, scaled=np.float32) -> np.ndarray:
    """Resize as OpenCV's INTER_LINEAR does, in float32: pixel centres, four neighbours, no smoothing. Only the
    neighbours are scaled, which saves a whole frame of floats."""
    def neighbours(have: int, wanted: int):
        at = np.clip((np.arange(wanted) + .5) * have / wanted - .5, 0, have - 1)
        low = np.minimum(at.astype(int), max(have - 2, 0))
        return low, np.minimum(low + 1, have - 1), (at - low).astype(np.float32)
    (top, bottom, down), (left, right, across) = neighbours(pixels.shape[0], rows), neighbours(pixels.shape[1], columns)
    upper, lower = ((1 - across) * scaled(pixels[np.ix_(r, left)]) + across * scaled(pixels[np.ix_(r, right)])
                    for r in (top, bottom))
    return ((1 - down)[:, None] * upper + down[:, None] * lower).astype(np.float32)

def detector_view(
    pixels: np.ndarray,  # from `as_cast`: the whole frame
    header,              # object with photometric
    scaling: str,        # as in `grey_floats`
    size: int = 416,     # longest side, in pixels
) -> tuple[np.ndarray, float]:  # float32 (rows, columns), 0 to 255, without padding; view pixels per frame pixel
    "Make the input of the winner's detector."
    unchanged = scaling == "percentile" and pixels.dtype == np.uint8
    limits = None if unchanged else _limits(pixels, scaling)

    def scaled(part: np.ndarray) -> np.ndarray:
        grey = part.astype(np.float32)
        return grey if unchanged else _range(grey, *limits)

    ratio = min(size / pixels.shape[0], size / pixels.shape[1])
    grey = _bilinear(pixels, int(pixels.shape[0] * ratio), int(pixels.shape[1] * ratio), scaled)
    return 255 - grey if scaling == "window" and header.photometric == "MONOCHROME1" else grey, ratio

# %%
view, ratio = detector_view(ramp, header, "window")
expected = cv2.resize(ramp.astype(np.float32), (41, 100), interpolation=cv2.INTER_LINEAR)
assert np.abs(_bilinear(ramp, 100, 41) - expected).max() < 1e-2
assert view.shape == (416, 416) and ratio == 6.5 and view.max() == 255 and (view % 1 > 0).any()

# %% [markdown]
# ## Input of the classifier
# For training, the images were truncated to whole grey levels at full size and resized afterwards. For the submission,
# they were resized as floats, bilinear and without smoothing, and truncated last. The published score belongs to the
# second order.

# %%
#| export
def network_input(
    grey: np.ndarray,  # float32 (rows, columns) from `grey_floats`: the crop
    height: int,       # height of the result, in pixels
    width: int,        # width of the result, in pixels
) -> np.ndarray:       # uint8 (height, width), black on both sides of the crop
    "Resize a crop to fit, pad it on both sides, and truncate it to whole grey levels."
    import torch  # imported here, because processes that make crops do not need it
    ratio = min(height / grey.shape[0], width / grey.shape[1])
    rows, columns = int(grey.shape[0] * ratio), int(grey.shape[1] * ratio)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(grey)[None, None], (rows, columns), mode="bilinear", align_corners=False,
        antialias=False)[0, 0].numpy()
    top, left = (height - rows) // 2, (width - columns) // 2
    return np.pad(small, ((top, height - rows - top), (left, width - columns - left))).astype(np.uint8)

# %%
crop = grey_floats(ramp, header, "window")
submitted = network_input(crop, 48, 32)
trained = cv2.resize(crop.astype(np.uint8), (32, 32), interpolation=cv2.INTER_LINEAR)
assert submitted.shape == (48, 32) and not submitted[:8].any() and not submitted[-8:].any()
print(
    f"The two orders differ in {(submitted[8:40] != trained).mean():.0%} of the pixels, by at most "
    f"{np.abs(submitted[8:40].astype(int) - trained).max()} level."
)

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

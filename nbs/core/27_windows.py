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
# > From the values that a detector stored to the grey levels that a reader or a network gets.
#
# An image is stored in 10 to 16 bits and shown in 8. The *window* in the header defines which part of the range lies
# between black and white. Vendors write it differently: there are three formulas, one to four windows, and both
# polarities. An image shown with the wrong window raises no error, but every later score is lower.

# %%
#| default_exp core.windows

# %% tags=["parameters"]
center, width = 2000., 1500.  # the window shown below, in stored values
bits = 12                     # bits stored
size = 1024                   # side of the image timed at the end, in pixels

# %%
#| export
import math

import numpy as np

from mammo_nb.core.errors import ProjectError

# %%
#| hide
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd

# %% [markdown]
# Real headers hold windows of width zero, and words instead of numbers. Such a window raises an error that names the
# tag.

# %%
#| export
class WindowError(ProjectError, ValueError):
    "A window that cannot be applied; the message names tag and remedy."

REMEDY = "Correct the tag, choose another window with which=, or use minmax."  # the end of every message

def _check(
    center: float,       # WindowCenter (0028,1050)
    width: float,        # WindowWidth (0028,1051)
    function: str,       # VOILUTFunction (0028,1056)
    smallest: float = 0, # least width; 0 itself is excluded
):
    "Raise WindowError for a window that the formula is not defined for (PS3.3 C.11.2.1.2.1, C.11.2.1.3)."
    if not math.isfinite(center):
        raise WindowError(f"WindowCenter (0028,1050) is {center}, no finite number. {REMEDY}")
    if not math.isfinite(width) or width <= 0 or width < smallest:
        allowed = f">= {smallest}" if smallest else "> 0"
        raise WindowError(f"WindowWidth (0028,1051) is {width}; {function} needs {allowed}. {REMEDY}")

# %% [markdown]
# Arithmetic is done in the smallest float that holds the stored values exactly: float32 for up to 16 bits, float64
# beyond.

# %%
#| export
def _float(
    x: np.ndarray,  # numbers
) -> np.ndarray:    # float32 or float64
    "Stored values as floats, without loss."
    x = np.asarray(x)
    return x.astype(np.result_type(x.dtype, np.float32), copy=False)

def _unit(
    x: np.ndarray,  # float grey levels
) -> np.ndarray:    # float32 in [0, 1]
    "Clip to [0, 1]."
    return np.clip(x, 0, 1).astype(np.float32, copy=False)

# %% [markdown]
# ## The three functions
# LINEAR is the default. A window of `width` covers `width - 1` steps centred on `center - 0.5`, so that the 4096 values
# of a 12-bit image, with centre 2048 and width 4096, reach exactly black and exactly white. A width of 1 leaves no step
# and is a threshold.

# %%
#| export
def linear(
    x: np.ndarray,  # stored values, any shape
    center: float,  # WindowCenter (0028,1050), in stored values
    width: float,   # WindowWidth (0028,1051), in stored values, >= 1
) -> np.ndarray:    # float32 in [0, 1], same shape
    "VOI LINEAR, DICOM PS3.3 C.11.2.1.2.1."
    _check(center, width, "LINEAR", 1)
    if width == 1:
        return (np.asarray(x) > center - 0.5).astype(np.float32)
    return _unit((_float(x) - (center - 0.5)) / (width - 1) + 0.5)

# %%
whole = np.arange(2**bits, dtype=np.uint16)
assert linear(whole, 2**bits / 2, 2**bits)[[0, -1]].tolist() == [0, 1]
assert linear(whole, 3, 1)[:6].tolist() == [0, 0, 0, 1, 1, 1]
linear(np.array([0, 1, 2, 3, 4]), 2, 4)  # by hand: (x - 1.5) / 3 + 0.5

# %% [markdown]
# LINEAR_EXACT is the straight line from `center - width/2` to `center + width/2`.

# %%
#| export
def linear_exact(
    x: np.ndarray,  # stored values, any shape
    center: float,  # in stored values
    width: float,   # in stored values, > 0
) -> np.ndarray:    # float32 in [0, 1], same shape
    "VOI LINEAR_EXACT, DICOM PS3.3 C.11.2.1.3.2."
    _check(center, width, "LINEAR_EXACT")
    return _unit((_float(x) - center) / width + 0.5)

# %%
assert linear_exact(np.array([0, 1, 2, 3, 4]), 2, 4).tolist() == [0, .25, .5, .75, 1]

# %% [markdown]
# SIGMOID never clips. It bends towards black and white as film does, and keeps a little contrast in the darkest and the
# brightest tissue, where the other two have none. Written with `tanh` it cannot overflow for a narrow window.

# %%
#| export
def sigmoid(
    x: np.ndarray,  # stored values, any shape
    center: float,  # in stored values
    width: float,   # in stored values, > 0
) -> np.ndarray:    # float32 in [0, 1], same shape
    "VOI SIGMOID, 1 / (1 + exp(-4 (x - center) / width)), DICOM PS3.3 C.11.2.1.3.1."
    _check(center, width, "SIGMOID")
    return _unit(0.5 + 0.5 * np.tanh(2 * (_float(x) - center) / width))  # the same function

# %%
assert sigmoid(np.array([center]), center, width) == 0.5
assert np.allclose(sigmoid(whole, center, width), 1 / (1 + np.exp(-4 * (whole - center) / width)), atol=1e-6)
fig, ax = plt.subplots(figsize=(6, 3))
for f in (linear, linear_exact, sigmoid):
    ax.plot(whole, f(whole, center, width), label=f.__name__, ls="--" if f is linear_exact else "-")
ax.axvspan(center - width / 2, center + width / 2, color="0.93")
ax.legend()
ax.set(xlabel="stored value", ylabel="grey level", title=f"center {center:.0f}, width {width:.0f}")
fig.tight_layout()

# %% [markdown]
# LINEAR and LINEAR_EXACT coincide at this width; in a window of four values they differ:

# %%
few = np.arange(0, 6)
levels = {f.__name__: f(few, 2, 4) for f in (linear, linear_exact, sigmoid)}
pd.DataFrame(levels, index=pd.Index(few, name="stored value")).round(3)

# %% [markdown]
# ## No window
# Without a window there are two choices: the whole range, or the range between two percentiles, which does not depend
# on a single dead pixel or a burned-in label. An image of one value has no contrast and becomes black.

# %%
#| export
def limits_of(
    x: np.ndarray,  # numbers, any shape
) -> tuple[float, float]:
    "Lowest and highest value as floats, since the difference of two int16 may not fit int16."
    return float(np.min(x)), float(np.max(x))

def _stretch(
    x: np.ndarray,  # numbers, any shape
    low: float,     # becomes black
    high: float,    # becomes white
) -> np.ndarray:    # float32 in [0, 1]
    "Straight line from `low` to `high`."
    if not (math.isfinite(low) and math.isfinite(high)):
        raise WindowError("the image holds infinite values or nan. Decode it again.")
    if high <= low:
        return (np.asarray(x) > low).astype(np.float32)
    return _unit((_float(x) - low) / (high - low))

def minmax(
    x: np.ndarray,  # numbers, any shape
) -> np.ndarray:    # float32 in [0, 1], same shape
    "The whole range of the image; black where it has only one value."
    return _stretch(x, *limits_of(x))

def percentile(
    x: np.ndarray,  # numbers, any shape
    low: float,     # per cent of the pixels at or below black, 0 to 100
    high: float,    # per cent at or below white, 0 to 100
) -> np.ndarray:    # float32 in [0, 1], same shape
    "The range between two percentiles of the image (linear interpolation)."
    return _stretch(x, *(float(q) for q in np.percentile(x, (low, high))))

# %%
hot = np.array([10, 20, 30, 40, 4000], np.int16)
assert minmax(np.array([-32768, 0, 32767], np.int16)).round(2).tolist() == [0, .5, 1]
assert not minmax(np.full((4, 4), 7)).any() and not percentile(np.full(4, 7), 1, 99).any()
pd.DataFrame({"stored": hot, "minmax": minmax(hot), "percentile 0-75": percentile(hot, 0, 75)}).round(3)

# %% [markdown]
# ## One call for a header
# The function and the windows come from the header, the choice of window from the caller. Eight and sixteen bits have
# 256 and 65,536 values. These are windowed once, in a table, and the pixels are looked up in it. This is exact and
# several times faster than computing 26 million pixels.

# %%
#| export
FUNCTIONS = {"LINEAR": linear, "LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid}  # VOILUTFunction (0028,1056)

def look_up(
    x: np.ndarray,  # integers or floats, any shape
    f,              # element-wise function of stored values
) -> np.ndarray:    # f(x)
    "`f(x)`, through a table for integers of 8 or 16 bits."
    x = np.asarray(x)
    if x.dtype.kind not in "iu" or x.dtype.itemsize > 2 or x.size < 256**x.dtype.itemsize:
        return f(x)
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    table = f(np.arange(256**unsigned.itemsize).astype(unsigned).view(x.dtype))
    found = np.empty(x.shape, table.dtype)
    # in strips of 64 rows, because numpy makes an index of 8 bytes for each pixel
    for start in range(0, len(x), 64):
        # the bytes of a value are its index, also for negative and big-endian values
        table.take(x[start:start + 64].view(unsigned), mode="clip", out=found[start:start + 64])
    return found

def _window(
    x: np.ndarray,    # stored values; their range is the window when the header has none
    windows,          # ((center, width), ...), as in a header
    function: str,    # 'LINEAR', 'LINEAR_EXACT', 'SIGMOID'
    which: int,       # index of the window
):                    # function of stored values
    "The chosen window, or the whole range when there is none, as a function of stored values."
    if not len(windows):
        limits = limits_of(x)
        return lambda x: _stretch(x, *limits)
    if function not in FUNCTIONS:
        raise WindowError(f"VOILUTFunction (0028,1056) is {function!r}; known are {', '.join(FUNCTIONS)}. {REMEDY}")
    if not 0 <= which < len(windows):
        raise WindowError(f"WindowCenter (0028,1050) has no window {which}, the header has {len(windows)}. {REMEDY}")
    return lambda x: FUNCTIONS[function](x, *windows[which])

def apply_window(
    x: np.ndarray,             # stored values, any shape
    windows,                   # ((center, width), ...), as in a header; empty: minmax
    function: str = "LINEAR",  # VOILUTFunction (0028,1056)
    which: int = 0,            # index of the window: vendors put their first choice first
) -> np.ndarray:               # float32 in [0, 1], same shape
    "One of the header's windows, or the whole range when it has none."
    return look_up(x, _window(x, windows, function, which))

# %% [markdown]
# Last, eight bits. MONOCHROME1 means that *low* values are white, so the grey level is inverted after the window. The
# level times 255 is cut off, not rounded, as the published pipelines do. A ten-thousandth of a level is added first,
# because a value that is exactly 85 may otherwise become 84 in binary arithmetic. There a published pipeline may be one
# level lower.

# %%
#| export
def to_grey(
    pixels: np.ndarray,  # stored values, any shape
    header_like,         # anything with .windows, .voi_function and .photometric
    which: int = 0,      # index of the window
) -> np.ndarray:         # uint8, same shape
    "Window, MONOCHROME1 inversion (PS3.3 C.7.6.3.1.2), 255 levels, cut off."
    window = _window(pixels, header_like.windows, header_like.voi_function, which)
    inverted = header_like.photometric == "MONOCHROME1"
    def level(x):
        grey = window(x)
        if inverted:
            grey = 1 - grey
        return (grey * 255 + 1e-4).astype(np.uint8)
    return look_up(pixels, level)

# %%
header = SimpleNamespace(windows=((center, width), (2400., 700.)), voi_function="SIGMOID", photometric="MONOCHROME2")
y, x = np.mgrid[:size, :size] / size
stored = np.clip(
    np.sqrt(np.clip(1 - (x - 1)**2 - (2 * y - 1)**2, 0, 1)) * 2600 + 700 * np.exp(-((x - .6)**2 + (y - .4)**2) * 900),
    0, 2**bits - 1).astype(np.uint16)
changed = lambda **fields: SimpleNamespace(**{**vars(header), **fields})
views = {"first window": to_grey(stored, header), "second window": to_grey(stored, header, which=1),
         "LINEAR": to_grey(stored, changed(voi_function="LINEAR")),
         "no window": to_grey(stored, changed(windows=())),
         "MONOCHROME1": to_grey(stored, changed(photometric="MONOCHROME1"))}
fig, axes = plt.subplots(1, 5, figsize=(11, 2.6))
for ax, (name, grey) in zip(axes, views.items()):
    ax.imshow(grey, cmap="gray", vmin=0, vmax=255)
    ax.set_title(name, fontsize=9)
    ax.axis("off")
fig.tight_layout()

# %% [markdown]
# The table changes only the time:

# %%
computed = (sigmoid(stored, center, width) * 255 + 1e-4).astype(np.uint8)
assert np.array_equal(views["first window"], computed)
assert np.array_equal(apply_window(stored.astype(np.int16) - 2000, header.windows),
                      linear(stored.astype(np.int16) - 2000, center, width))

# %% [markdown]
# The errors for windows that cannot be used:

# %%
for windows, function in ((((2048, 0),), "LINEAR"), (((math.nan, 4096),), "SIGMOID"), (((2048, 4096),), "GAMMA")):
    try:
        apply_window(stored, windows, function)
    except WindowError as e:
        print(e)
    else:
        raise AssertionError(windows)

# %% [markdown]
# ---
# [← DICOM](26_dicom.py) · [Grey →](28_grey.py)

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
# # Texture
# > Noise, rays and curves, from which a breast is drawn.
#
# Mammographic texture looks the same at every magnification, and a reader notices at once when a picture does not have
# this property. Fat, septa, ducts and vessels have no fixed shape. They are made here from filtered noise and irregular
# lines, in a frame that is measured in millimetres.

# %%
#| default_exp mammo.drawing.texture

# %% tags=["parameters"]
rows, columns = 512, 416   # size of the frame, in pixels
seed = 7                   # of the random generator

# %%
#| export
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.fft import fftfreq, irfft2, rfft2, rfftfreq

# %%
#| hide
import matplotlib.pyplot as plt

# %% [markdown]
# ## The frame
# Anatomy has sizes in millimetres, and a picture has pixels. A frame knows both, so that the same breast can be drawn
# with 320 or with 5355 rows.

# %%
#| export
FIELD = 240.0      # height of every frame, in mm: a 24 cm detector

@dataclass(frozen=True)
class Frame:
    "The pixels of a picture and their coordinates in millimetres."
    rows: int
    columns: int
    x: np.ndarray     # float32 (1, columns), distance from the chest wall, in mm
    y: np.ndarray     # float32 (rows, 1), distance from the top, in mm
    mm: float         # size of a pixel, in mm

def make_frame(rows: int, columns: int) -> Frame:
    "Make a frame whose height is FIELD millimetres."
    mm = FIELD / rows
    return Frame(rows, columns, (np.arange(columns, dtype=np.float32)[None] + 0.5) * mm,
                 (np.arange(rows, dtype=np.float32)[:, None] + 0.5) * mm, mm)

def crop_frame(
    frame: Frame,
    centre: tuple,        # x, y in mm
    reach: float,         # distance to each side, in mm
) -> tuple:               # the smaller Frame, with the same coordinates; its slices (rows, columns) of the large frame
    "Cut the part of a frame around a point, which is all that a lesion needs."
    (x0, x1), (y0, y1) = ((max(0, int((c - reach) / frame.mm)), min(n, int((c + reach) / frame.mm) + 1))
                          for c, n in zip(centre, (frame.columns, frame.rows)))
    return Frame(y1 - y0, x1 - x0, frame.x[:, x0:x1], frame.y[y0:y1], frame.mm), np.s_[y0:y1, x0:x1]

def fixed_point(
    frame: Frame,
    points: np.ndarray,   # (n, 2), in mm
) -> np.ndarray:          # int32 (n, 2), in sixteenths of a pixel, as OpenCV draws with shift=4
    "Convert millimetres to the pixels of a frame."
    pixels = (np.asarray(points) - (frame.x[0, 0], frame.y[0, 0])) / frame.mm
    return np.round(pixels * 16).astype(np.int32)

def fill(
    frame: Frame,
    points: np.ndarray,   # polygon (n, 2), in mm
) -> np.ndarray:          # float32 (rows, columns), covered share of each pixel, 0 to 1
    "Draw a filled, anti-aliased polygon."
    canvas = np.zeros((frame.rows, frame.columns), np.uint8)
    cv2.fillPoly(canvas, [fixed_point(frame, points)], 255, cv2.LINE_AA, shift=4)
    return canvas * np.float32(1 / 255)

# %%
frame = make_frame(rows, columns)
triangle = fill(frame, [(0, 0), (90, 0), (0, 120)])
area = triangle.sum() * frame.mm**2
assert abs(area - 5400) < 110  # OpenCV also fills the outline
print(f"A pixel measures {frame.mm:.3f} mm. A triangle of 5400 mm2 covers {area:.0f} mm2.")

# %% [markdown]
# ## Power-law noise
# The power of a mammogram falls with about the third power of spatial frequency. White noise that is filtered to this
# spectrum looks like fat and gland. Its only other parameter is the size of the largest structures. Noise made by an
# FFT is periodic, so it can be tiled without a seam.

# %%
#| export
def power_law(
    rng: np.random.Generator,
    shape: tuple,            # rows, columns
    exponent: float = 3.0,   # power ~ frequency ** -exponent
    largest: float = 0.0,    # size of the largest structures, in pixels; 0: the whole field
) -> np.ndarray:             # float32 (rows, columns), mean 0, standard deviation 1, periodic
    "Draw noise with a power-law spectrum. The exponent is about 3 in mammograms (Burgess 1999)."
    spectrum = rfft2(rng.standard_normal(shape, dtype=np.float32))
    lowest = 1 / (largest or max(shape))
    down = (fftfreq(shape[0])[:, None]**2 + lowest**2).astype(np.float32)
    squared = down + (rfftfreq(shape[1])[None]**2).astype(np.float32)
    spectrum *= squared ** np.float32(-exponent / 4)
    spectrum[0, 0] = 0
    noise = irfft2(spectrum, s=shape)
    return noise / noise.std()

def smooth_noise(
    rng: np.random.Generator,
    frame: Frame,
    exponent: float,       # exponent of the power law
    largest: float,        # size of the largest structures, in mm
    detail: float = 0.5,   # resolution at which the noise is made, as a share of the frame's; enough for smooth fields
) -> np.ndarray:           # float32 (rows, columns), mean 0, standard deviation about 1
    "Draw power-law noise on a frame, at reduced resolution to save time."
    shape = (max(8, round(frame.rows * detail)), max(8, round(frame.columns * detail)))
    noise = power_law(rng, shape, exponent, largest=largest / frame.mm * detail)
    return cv2.resize(noise, (frame.columns, frame.rows), interpolation=cv2.INTER_LINEAR)

# %%
#| hide
def radial_exponent(
    image: np.ndarray,           # (rows, columns)
    low: float = 0.02,           # lowest frequency, in cycles per pixel
    high: float = 0.2,           # highest frequency, in cycles per pixel
) -> float:
    "Measure minus the slope of log power over log frequency in a Hann-windowed patch."
    window = np.hanning(image.shape[0])[:, None] * np.hanning(image.shape[1])[None]
    power = np.abs(rfft2((image - image.mean()) * window)) ** 2
    frequency = np.hypot(fftfreq(image.shape[0])[:, None], rfftfreq(image.shape[1])[None])
    edges = np.geomspace(low, high, 13)
    index = np.digitize(frequency.ravel(), edges)
    means = [power.ravel()[index == i].mean() for i in range(1, len(edges))]
    return float(-np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(means), 1)[0])

# %%
rng = np.random.default_rng(seed)
fig, axes = plt.subplots(1, 3, figsize=(8, 2.8))
for ax, exponent in zip(axes, (2, 3, 4)):
    noise = power_law(rng, (256, 256), exponent)
    ax.imshow(noise, cmap="gray")
    ax.set_title(f"{exponent}, measured {radial_exponent(noise):.2f}", fontsize=9)
    ax.axis("off")
    assert abs(radial_exponent(noise) - exponent) < 0.25

# %% [markdown]
# ## Ridges and strands
# A *ridged* field is bright where noise crosses zero, which gives the honeycomb of the septa. In polar coordinates
# around the nipple, the same noise gives ducts and Cooper's ligaments that run towards the nipple.

# %%
#| export
def ridges(
    noise: np.ndarray,     # standard normal, any shape
    width: float = 0.25,   # width of a ridge, in standard deviations
) -> np.ndarray:           # 0 to 1, same shape
    "Make bright curves where the noise crosses zero."
    return np.exp(-(noise / np.float32(width)) ** 2)

def strands(
    rng: np.random.Generator,
    frame: Frame,
    centre: tuple,         # x, y in mm
    across: float,         # number of tiles around the full circle; more tiles give finer strands
    along: float,          # radius that one tile covers, in mm; a larger radius gives longer strands
    exponent: float = 3.4, # exponent of the power law
) -> np.ndarray:           # float32 (rows, columns), noise stretched along rays from `centre`
    "Draw power-law noise in polar coordinates, bent so that the rays are not straight."
    tile = power_law(rng, (512, 512), exponent, largest=90)
    half = make_frame(frame.rows // 2, frame.columns // 2)
    bend = [smooth_noise(rng, half, 4.0, 60, 0.25) * np.float32(9) for _ in range(2)]
    radius, angle = cv2.cartToPolar(half.x - centre[0] + bend[0], half.y - centre[1] + bend[1])
    drawn = cv2.remap(tile, angle * np.float32(across / 2 / np.pi * 512), radius * np.float32(512 / along),
                      cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return cv2.resize(drawn, (frame.columns, frame.rows), interpolation=cv2.INTER_LINEAR)

# %%
rays = strands(rng, frame, (90, 120), 4, 800, 4.4)
assert rays.shape == (rows, columns)
fig, axes = plt.subplots(1, 3, figsize=(8, 3.2))
shown = {
    "ridges": ridges(smooth_noise(rng, frame, 4.4, 22), 0.15),
    "strands": rays,
    "ridges of strands": ridges(rays, 0.15),
}
for ax, (title, picture) in zip(axes, shown.items()):
    ax.imshow(picture, cmap="gray")
    ax.set_title(title)
    ax.axis("off")

# %% [markdown]
# ## Curves
# Vessels, ducts and spicules are paths whose direction changes gradually.

# %%
#| export
def curve(
    rng: np.random.Generator,
    start: tuple,          # x, y in mm
    heading: float,        # first direction, in radians
    length: float,         # in mm
    wander: float,         # change of direction per step of 2 mm, in radians
) -> np.ndarray:           # (n, 2), in mm
    "Draw a path whose direction changes gradually."
    turn = np.cumsum(rng.normal(0, wander, max(4, int(length / 2)))) + heading
    return np.asarray(start) + np.cumsum(2 * np.stack([np.cos(turn), np.sin(turn)], 1), 0)

def draw_curves(
    frame: Frame,
    curves: list,          # pairs of a path (n, 2) in mm and a width in mm
) -> np.ndarray:           # float32 (rows, columns), 0 to 1
    "Draw vessels and spicules as soft lines. A line thinner than a pixel is drawn fainter."
    canvas = np.zeros((frame.rows, frame.columns), np.uint8)
    for path, width in curves:
        pixels = width / frame.mm
        cv2.polylines(canvas, [fixed_point(frame, path)], False, int(255 * min(1, pixels)),
                      max(1, round(pixels)), cv2.LINE_AA, shift=4)
    return cv2.GaussianBlur(canvas, (0, 0), max(0.4 / frame.mm, 0.6)).astype(np.float32) / 255

# %%
paths = [(curve(rng, (10, y), 0, 100, 0.12), w)
         for y, w in zip(np.linspace(40, 200, 6), (0.1, 0.2, 0.4, 0.8, 1.6, 3.2))]
drawn = draw_curves(frame, paths)
assert drawn[:100].max() < drawn[-130:].max()
plt.figure(figsize=(3.2, 3.6))
plt.imshow(drawn, cmap="gray")
plt.title("width 0.1 to 3.2 mm")
plt.axis("off");

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

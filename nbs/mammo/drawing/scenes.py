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
# # Scenes
# > The geometry of a frame: a breast of any build on a film, and the film in a frame.
#
# A detector that was trained on regular frames expects an upright breast at the edge of a film that fills the frame.
# Here the breast may be bent, cut off, rotated or shifted, on a film of any shape. `appearance` and `film` then change
# how it looks, and `frames` makes a set. The box is exact because the mask of the breast goes through the same
# geometry.

# %%
#| default_exp mammo.drawing.scenes

# %% tags=["parameters"]
seed = 67   # of the random generator

# %%
#| export
from dataclasses import dataclass, replace

import cv2
import numpy as np

from mammo_nb.mammo.drawing.anatomy import Anatomy, draw_anatomy
from mammo_nb.mammo.drawing.breast import make_breast
from mammo_nb.mammo.drawing.lesions import KINDS
from mammo_nb.mammo.drawing.texture import FIELD

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd

from mammo_nb.core.pictures import sheet

# %% [markdown]
# ## Breasts of every build
# The breasts of the drawn competition are average on purpose. A detector must know others too: flat and long, narrow
# and broad, all fat and all gland, and sometimes with an implant.

# %%
#| export
def chance(
    rng: np.random.Generator,
    probability: float,   # 0 to 1
) -> bool:
    "Draw True with a probability."
    return bool(rng.random() < probability)

def log_uniform(
    rng: np.random.Generator,
    low: float,
    high: float,
) -> float:
    "Draw a number between two limits, uniform in its logarithm."
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))

def field(
    rng: np.random.Generator,
    shape: tuple,         # rows, columns
    cells: float,         # number of random values along the longer side
) -> np.ndarray:          # float32 (rows, columns), about standard normal
    "Draw a smooth random field."
    small = rng.standard_normal([max(2, round(cells * n / max(shape)) + 1) for n in shape], dtype=np.float32)
    return cv2.resize(small, shape[::-1], interpolation=cv2.INTER_CUBIC)

def draw_build(
    rng: np.random.Generator,
) -> Anatomy:
    "Draw the properties of a breast of any build."
    depth = float(rng.uniform(34, 150) if chance(rng, 0.5) else np.clip(rng.normal(85, 18), 35, 140))
    return replace(draw_anatomy(rng, density=float(rng.beta(0.8, 0.9)), implant=chance(rng, 0.04)), depth=depth,
                   height=float(np.clip(depth * np.exp(rng.normal(-0.12, 0.22)) + rng.uniform(0, 25), 38, 98)))

# %%
pd.DataFrame([draw_build(np.random.default_rng([seed, i]))
              for i in range(200)])[["depth", "height", "density"]].describe().loc[["min", "50%", "max"]].round(2)

# %% [markdown]
# ## From frame to breast
# The geometry is one chain of maps: from a pixel of the frame to a point of the film to a point of the breast. The film
# may be smaller than the frame, rotated in it or mirrored. On the film, the breast is rotated, made narrow or broad
# from row to row, lowered at the nipple and bent by long waves. All maps are smooth, so they are computed on a coarse
# grid and interpolated. The grid extends beyond the frame, so it also gives the area of the breast outside of the
# frame.

# %%
#| export
FINE = 1.0      # size of a pixel of the drawn breast, in mm
PAD = 48        # mirrored continuation behind the chest wall and above the upper edge, in mm
STEP = 8        # size of a cell of the coarse grid, in frame pixels

def frame_shape(
    rng: np.random.Generator,
    size: int,           # longest side, in pixels
) -> tuple:              # rows, columns
    "Draw the shape of a frame: a narrow film, a usual detector, a square or a landscape frame."
    aspects = (0.5, 0.65), (0.65, 0.74), (0.74, 0.86), (0.86, 1.05), (1.05, 1.6)
    low, high = aspects[rng.choice(5, p=[0.15, 0.2, 0.45, 0.13, 0.07])]
    aspect = rng.uniform(low, high)
    return (size, round(size * aspect)) if aspect <= 1 else (round(size / aspect), size)

def lay_film(
    rng: np.random.Generator,
    shape: tuple,        # rows, columns of the frame
    extent: tuple,       # x0, y0, x1, y1 of the drawn breast, in mm
    view: str,           # CC or MLO
    laterality: str,     # L or R
# matrix 3 x 3 from frame pixels to film mm; width and height of the film in mm; offset x, y from film to breast in mm
) -> tuple:
    "Place the film in the frame, and the breast on the film."
    turned = chance(rng, 0.02)
    rows, columns = shape[::-1] if turned else shape
    left, top, right, bottom = np.zeros(4)
    if chance(rng, 0.25):
        left = rng.uniform(0.01, 0.15)
    if chance(rng, 0.12):
        left, top, right, bottom = rng.uniform(0.005, 0.18, 4)
    wide, high = columns * (1 - left - right), rows * (1 - top - bottom)
    x0, y0, x1, y1 = extent
    # the part of the breast that was not pulled onto the film, in mm
    behind = x1 * rng.uniform(0, 0.15) * chance(rng, 0.6)
    # height of the breast as a share of the film's height
    share = rng.triangular(0.32, 0.78, 1.2) if view == "CC" else rng.triangular(0.35, 0.76, 1.12)
    above = rng.uniform(-6, 0.3 * y1) if view == "MLO" else None  # the frame begins in the axilla
    scale = (y1 - (y0 if above is None else above)) / (share * high)  # mm per pixel
    scale = (x1 - behind) / (np.clip((x1 - behind) / scale / wide, 0.2, rng.uniform(0.85, 1.2)) * wide)
    if above is None:
        above = y0 - np.clip(rng.normal(0.5, 0.24), -0.05, 1.05) * (high * scale - (y1 - y0))
    sx, sy = scale * np.exp(rng.normal(0, 0.04, 2))
    matrix = np.array([[sx, 0, -left * columns * sx], [0, sy, -top * rows * sy], [0, 0, 1]])
    if chance(rng, 0.2):  # the film is rotated
        turn, cx, cy = np.deg2rad(rng.uniform(-12, 12) * rng.uniform(0.2, 1)), columns / 2, rows / 2
        c, s = np.cos(turn), np.sin(turn)
        matrix = matrix @ [[c, -s, cx - c * cx + s * cy], [s, c, cy - s * cx - c * cy], [0, 0, 1]]
    if (laterality == "R") != chance(rng, 0.05):
        matrix = matrix @ [[-1, 0, columns - 1], [0, 1, 0], [0, 0, 1]]
    if chance(rng, 0.015):
        matrix = matrix @ [[1, 0, 0], [0, -1, rows - 1], [0, 0, 1]]
    if turned:
        matrix = matrix @ [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    return matrix, (wide * sx, high * sy), (behind, above)

def bend(
    rng: np.random.Generator,
    x: np.ndarray,       # distance from the chest wall in the bent breast, in mm
    y: np.ndarray,       # distance from the upper edge in the bent breast, in mm
    extent: tuple,       # x0, y0, x1, y1 of the drawn breast, in mm
    view: str,           # CC or MLO
) -> tuple:              # x and y in the drawn breast, in mm
    "Map points of a bent breast to the drawn breast: rotated, narrower or broader, hanging and wavy."
    _, y0, depth, y1 = extent
    turn, middle = np.deg2rad(np.clip(rng.normal(0, 4.5), -12, 12)), (y0 + y1) / 2
    c, s = np.cos(turn), np.sin(turn)
    x, y = x * c - (y - middle) * s, middle + x * s + (y - middle) * c
    tip = 0.5 if view == "CC" else 0.68  # position of the nipple, from 0 at the top of the breast to 1 at its end
    rise = (y - y0) / (y1 - y0)
    if view == "MLO":
        rise = np.where((rise > 0) & (rise < 1), np.clip(rise, 0, 1) ** np.exp(rng.normal(-0.22, 0.25)), rise)
    away = (rise - tip) / np.where(rise < tip, tip, 1 - tip)  # from -1 at the top to 1 at the lowest point
    lower = away > 0
    flare = np.where(lower, *(rng.uniform(0, 0.6, 2) * chance(rng, 0.7))) * np.exp(
        -np.clip(x, 0, None) / rng.uniform(4, 30)) * (lower | (view == "CC"))
    away, rise = away / (1 + flare), tip + (rise - tip) / (1 + flare)  # the skin continues along the chest wall
    hang = rng.normal(0.10, 0.16) if view == "MLO" else rng.normal(0, 0.10)
    y = y0 + rise * (y1 - y0) - hang * x * np.clip(x / depth, 0, 1.2)
    slim = sum(rng.normal(0, 0.14 / k) * np.sin(np.pi * k * rise + rng.uniform(0, 6.3)) for k in (1, 2))
    if view == "MLO":
        # the axilla is a strip, or as wide as the breast
        slim = slim + rng.normal(0.02, 0.22) * np.clip(1 - rise / 0.5, -0.3, 1) - 0.07
    # the breast is round, or pointed like a cone
    cones = (rng.uniform(-0.15, 1.0, 2) + rng.exponential(0.5) * chance(rng, 0.3)) * chance(rng, 0.75)
    cone = np.where(lower, *cones) * np.clip(np.abs(away), 0, 1.2)**rng.uniform(1, 2.5) * (lower | (view == "CC"))
    x = x * np.exp(slim) * (1 + cone)
    waves = [
        rng.normal(0, 0.013) * length *
        np.sin(6.28 / length * (x * np.cos(way) + y * np.sin(way)) + rng.uniform(0, 6.3))
        for length, way in zip(rng.uniform(55, 240, 8), rng.uniform(0, 6.3, 8))
    ]
    return x + sum(waves[:4]), y + sum(waves[4:])

# %%
fig, axes = plt.subplots(2, 9, figsize=(12, 3.2))
for i, ax in enumerate(axes.flat):
    rng, view = np.random.default_rng([seed, i]), ("CC", "MLO")[i // 9]
    b = make_breast(rng, "L", view, (256, 214), breast=draw_build(rng))
    y, x = np.mgrid[:256, :214] * (FIELD / 256)
    x, y = bend(rng, x, y, tuple(np.array(b.box) * FIELD / 256), view)
    shape = cv2.remap(b.breast_mask.astype(np.float32), *(np.float32(a * 256 / FIELD) for a in (x, y)),
                      cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    ax.imshow(shape - 0.5 * b.breast_mask, cmap="gray")
    ax.axis("off")
fig.suptitle("outlines: dark as drawn, light as bent")
fig.tight_layout(pad=0.3)

# %% [markdown]
# ## A scene
# A scene is a breast on a film in a frame. Each family of properties changes a scene in place. A family can be left
# out, which is how each of them is shown and tested. Only what hides the breast, a film edge or a collimator, changes
# `cover` and with it the box.

# %%
#| export
@dataclass
class Scene:
    "A frame that is being drawn. Its arrays are (rows, columns), float32 unless stated otherwise."
    picture: np.ndarray   # grey levels, about 0 to 1
    cover: np.ndarray     # visible share of the breast in each pixel, 0 to 1
    film: np.ndarray      # bool, where the film is
    x: np.ndarray         # distance from the chest wall in the drawn breast, in mm
    y: np.ndarray         # distance from the upper edge in the drawn breast, in mm
    u: np.ndarray         # distance from the chest wall before bending, in mm
    v: np.ndarray         # distance from the upper edge before bending, in mm
    mm: float             # size of a pixel, in mm
    extent: tuple         # x0, y0, x1, y1 of the drawn breast, in mm
    view: str             # CC or MLO
    laterality: str       # L or R
    whole: float          # area of the breast, including the part outside of the frame, in pixels

def lay_out(
    rng: np.random.Generator,
    breast: Anatomy,
    laterality: str,      # L or R
    view: str,            # CC or MLO
    size: int,            # longest side, in pixels
) -> Scene:
    "Draw a breast at its place in a frame, on a black background."
    lesion = str(rng.choice(list(KINDS))) if chance(rng, 0.15) else None
    drawn = make_breast(rng, "L", view, (round(FIELD / FINE), round(0.84 * FIELD / FINE)), lesion, breast)
    extent, pad = tuple(v * FINE for v in drawn.box), round(PAD / FINE)
    layers = [
        cv2.copyMakeBorder(a, pad, 0, pad, 0, cv2.BORDER_REFLECT_101)
        for a in (drawn.pixels, drawn.breast_mask.astype(np.float32))
    ]
    if view == "CC":
        layers[1][:pad] = 0  # in CC the breast also ends at its upper edge
    shape = rows, columns = frame_shape(rng, size)
    matrix, (wide, high), offset = lay_film(rng, shape, extent, view, laterality)
    reach = round(0.4 * size / STEP) * STEP  # the coarse grid extends this far beyond the frame, in pixels
    at_x = np.arange(-reach, columns + reach + STEP, STEP)[None]
    at_y = np.arange(-reach, rows + reach + STEP, STEP)[:, None]
    straight = (matrix[k, 0] * at_x + matrix[k, 1] * at_y + matrix[k, 2] + offset[k] for k in (0, 1))
    points = np.float32(bend(rng, *straight, extent, view))

    def sample(layer, x, y):
        return cv2.remap(layer, x / np.float32(FINE) + pad, y / np.float32(FINE) + pad, cv2.INTER_LINEAR)

    mm = float(np.sqrt(abs(np.linalg.det(matrix))))
    shift = np.float32([[1 / STEP, 0, reach / STEP], [0, 1 / STEP, reach / STEP]])
    x, y = (cv2.warpAffine(p, shift, (columns, rows), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP) for p in points)
    u, v = (matrix[k, 0] * np.arange(columns)[None] + matrix[k, 1] * np.arange(rows)[:, None] + matrix[k, 2]
            for k in (0, 1))
    film = (u >= 0) & (v >= 0) & (u <= wide) & (v <= high)
    picture, cover = (sample(layer, x, y) for layer in layers)
    # the whole breast is what lies in front of the chest wall and below the upper edge, inside the frame or not
    inside = (sample(layers[1], *points) > 0.5) & (points[0] > 0) & (points[1] > offset[1] * (view == "MLO"))
    cover = cv2.GaussianBlur(cover, (0, 0), 0.6) * film
    u, v = (np.float32(a + b) for a, b in zip((u, v), offset))
    return Scene(np.clip(picture, 0, 1) * cover, cover, film, x, y, u, v, mm, extent, view, laterality,
                 float(inside.sum() * STEP**2))

# %%
def scenes(count=24, size=192):
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        yield lay_out(rng, draw_build(rng), "LR"[i // 2 % 2], ("CC", "MLO")[i % 2], size)

sheet([s.picture for s in scenes()], title="scenes, before any family");

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

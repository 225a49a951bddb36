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
# # Frames
# > Whole frames for a detector to learn from, drawn more varied than any hospital's.
#
# A detector that has seen tidy frames believes that air is black and that whatever is bright is breast. Real ones have film edges, labels as large as a hand, collimators, an abdomen below the breast, or white air. Nobody can draw them as they are; but who has learned from frames stranger than any real one finds the real ones easy (*domain randomisation*). So everything that does not make a breast is left to chance here, and the box is exact because the breast's mask goes through the same geometry.

# %%
#| default_exp mammo.frames

# %% tags=["parameters"]
size = 320      # longest side of a frame, pixels
patients = 3    # drawn below, four frames each
seed = 67

# %%
#| export
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from mammo_nb.core.files import write_text
from mammo_nb.core.pictures import write_png
from mammo_nb.mammo.anatomy import KINDS, Anatomy, draw_anatomy, make_breast, mask_box, other_breast
from mammo_nb.mammo.roi import from_pixels, write_yolo
from mammo_nb.mammo.texture import FIELD

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt

from mammo_nb.mammo.roi import read_yolo

# %% [markdown]
# ## Women of every build
# The competition's women are average on purpose. A detector must know the others too: flat and long breasts, narrow and broad ones, all fat and all gland, now and then an implant.

# %%
#| export
def chance(
    rng: np.random.Generator,
    probability: float,
) -> bool:
    "True as often as that."
    return bool(rng.random() < probability)

def log_uniform(
    rng: np.random.Generator,
    low: float,
    high: float,
) -> float:
    "Between two numbers, small ones as likely as large ones."
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))

def field(
    rng: np.random.Generator,
    shape: tuple,         # rows, columns
    cells: float,         # along the longer side
) -> np.ndarray:          # float32, about standard normal
    "A smooth random field."
    small = rng.standard_normal([max(2, round(cells * n / max(shape)) + 1) for n in shape], dtype=np.float32)
    return cv2.resize(small, shape[::-1], interpolation=cv2.INTER_CUBIC)

def draw_build(
    rng: np.random.Generator,
) -> Anatomy:
    "A breast of any build."
    depth = float(rng.uniform(34, 150) if chance(rng, 0.5) else np.clip(rng.normal(85, 18), 35, 140))
    return replace(draw_anatomy(rng, density=float(rng.beta(0.8, 0.9)), implant=chance(rng, 0.04)), depth=depth,
                   height=float(np.clip(depth * np.exp(rng.normal(-0.12, 0.22)) + rng.uniform(0, 25), 38, 98)))

# %%
pd.DataFrame([draw_build(np.random.default_rng([seed, i])) for i in range(200)])[["depth", "height", "density"]].describe().loc[["min", "50%", "max"]].round(2)

# %% [markdown]
# ## From frame to breast
# Geometry is one chain, read backwards: a pixel of the frame, a point of the film, a point of the breast. The film may be smaller than the frame, turned in it or mirrored. On the film the breast is turned, made slim or broad from row to row, lets its nipple hang, and is bent by long waves. All of it is smooth, so it is worked out on a coarse grid and read out at the end; and as the grid reaches beyond the frame, it also tells how much of the breast is outside.

# %%
#| export
FINE = 1.0      # mm a pixel of the breast as it is drawn
PAD = 48        # mm that it continues, mirrored, behind the chest wall and above the upper edge
STEP = 8        # frame pixels a cell of the coarse grid

def frame_shape(
    rng: np.random.Generator,
    size: int,           # longest side, pixels
) -> tuple:              # rows, columns
    "Narrow films, usual detectors, squares, a few that lie on their side."
    low, high = ((0.5, 0.65), (0.65, 0.74), (0.74, 0.86), (0.86, 1.05), (1.05, 1.6))[rng.choice(5, p=[0.15, 0.2, 0.45, 0.13, 0.07])]
    aspect = rng.uniform(low, high)
    return (size, round(size * aspect)) if aspect <= 1 else (round(size / aspect), size)

def lay_film(
    rng: np.random.Generator,
    shape: tuple,        # rows, columns of the frame
    extent: tuple,       # x0, y0, x1, y1 of the drawn breast, mm
    view: str,           # CC or MLO
    laterality: str,     # L or R
) -> tuple:              # 3x3 frame pixel -> film mm; width and height of the film, mm; breast minus film coordinates x, y, mm
    "Where the film lies in the frame, and the breast on the film."
    turned = chance(rng, 0.02)
    rows, columns = shape[::-1] if turned else shape
    left, top, right, bottom = np.zeros(4)
    if chance(rng, 0.25): left = rng.uniform(0.01, 0.15)
    if chance(rng, 0.12): left, top, right, bottom = rng.uniform(0.005, 0.18, 4)
    wide, high = columns * (1 - left - right), rows * (1 - top - bottom)
    x0, y0, x1, y1 = extent
    behind = x1 * rng.uniform(0, 0.15) * chance(rng, 0.6)                       # the chest wall did not go all the way in
    share = rng.triangular(0.32, 0.78, 1.2) if view == "CC" else rng.triangular(0.35, 0.76, 1.12)                                     # of the film's height that the breast takes
    above = rng.uniform(-6, 0.3 * y1) if view == "MLO" else None                # the frame begins in the axilla
    scale = (y1 - (y0 if above is None else above)) / (share * high)            # mm a pixel
    scale = (x1 - behind) / (np.clip((x1 - behind) / scale / wide, 0.2, rng.uniform(0.85, 1.2)) * wide)
    if above is None: above = y0 - np.clip(rng.normal(0.5, 0.24), -0.05, 1.05) * (high * scale - (y1 - y0))
    sx, sy = scale * np.exp(rng.normal(0, 0.04, 2))
    matrix = np.array([[sx, 0, -left * columns * sx], [0, sy, -top * rows * sy], [0, 0, 1]])
    if chance(rng, 0.2):                                                        # the film lies askew
        turn, cx, cy = np.deg2rad(rng.uniform(-12, 12) * rng.uniform(0.2, 1)), columns / 2, rows / 2
        c, s = np.cos(turn), np.sin(turn)
        matrix = matrix @ [[c, -s, cx - c * cx + s * cy], [s, c, cy - s * cx - c * cy], [0, 0, 1]]
    if (laterality == "R") != chance(rng, 0.05): matrix = matrix @ [[-1, 0, columns - 1], [0, 1, 0], [0, 0, 1]]
    if chance(rng, 0.015): matrix = matrix @ [[1, 0, 0], [0, -1, rows - 1], [0, 0, 1]]
    if turned: matrix = matrix @ [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    return matrix, (wide * sx, high * sy), (behind, above)

def bend(
    rng: np.random.Generator,
    x: np.ndarray,       # mm from the chest wall, of the bent breast
    y: np.ndarray,       # mm
    extent: tuple,       # x0, y0, x1, y1 of the drawn breast, mm
    view: str,
) -> tuple:              # x and y in the drawn breast, mm
    "Another woman's outline: turned, slim here and broad there, hanging, wavy."
    _, y0, depth, y1 = extent
    turn, middle = np.deg2rad(np.clip(rng.normal(0, 4.5), -12, 12)), (y0 + y1) / 2
    c, s = np.cos(turn), np.sin(turn)
    x, y = x * c - (y - middle) * s, middle + x * s + (y - middle) * c
    tip = 0.5 if view == "CC" else 0.68                                         # where the nipple is between the top of the breast, 0, and its lowest point, 1
    rise = (y - y0) / (y1 - y0)
    if view == "MLO": rise = np.where((rise > 0) & (rise < 1), np.clip(rise, 0, 1) ** np.exp(rng.normal(-0.22, 0.25)), rise)
    away = (rise - tip) / np.where(rise < tip, tip, 1 - tip)                    # -1 top, 1 lowest point
    lower = away > 0
    flare = np.where(lower, *(rng.uniform(0, 0.6, 2) * chance(rng, 0.7))) * np.exp(-np.clip(x, 0, None) / rng.uniform(4, 30)) * (lower | (view == "CC"))
    away, rise = away / (1 + flare), tip + (rise - tip) / (1 + flare)           # skin runs out along the chest wall
    hang = rng.normal(0.10, 0.16) if view == "MLO" else rng.normal(0, 0.10)
    y = y0 + rise * (y1 - y0) - hang * x * np.clip(x / depth, 0, 1.2)
    slim = sum(rng.normal(0, 0.14 / k) * np.sin(np.pi * k * rise + rng.uniform(0, 6.3)) for k in (1, 2))
    if view == "MLO": slim = slim + rng.normal(0.02, 0.22) * np.clip(1 - rise / 0.5, -0.3, 1) - 0.07   # the axilla: a strip, or as wide as the breast
    cones = (rng.uniform(-0.15, 1.0, 2) + rng.exponential(0.5) * chance(rng, 0.3)) * chance(rng, 0.75)   # round, or pointed like a cone
    x = x * np.exp(slim) * (1 + np.where(lower, *cones) * np.clip(np.abs(away), 0, 1.2) ** rng.uniform(1, 2.5) * (lower | (view == "CC")))
    waves = [rng.normal(0, 0.013) * length * np.sin(6.28 / length * (x * np.cos(way) + y * np.sin(way)) + rng.uniform(0, 6.3))
             for length, way in zip(rng.uniform(55, 240, 8), rng.uniform(0, 6.3, 8))]
    return x + sum(waves[:4]), y + sum(waves[4:])

# %%
fig, axes = plt.subplots(2, 9, figsize=(12, 3.2))
for i, ax in enumerate(axes.flat):
    rng, view = np.random.default_rng([seed, i]), ("CC", "MLO")[i // 9]
    b = make_breast(rng, "L", view, (256, 214), breast=draw_build(rng))
    y, x = np.mgrid[:256, :214] * (FIELD / 256)
    x, y = bend(rng, x, y, tuple(np.array(b.box) * FIELD / 256), view)
    shape = cv2.remap(b.breast_mask.astype(np.float32), *(np.float32(a * 256 / FIELD) for a in (x, y)), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    ax.imshow(shape - 0.5 * b.breast_mask, cmap="gray"); ax.axis("off")
fig.suptitle("outlines: grey as drawn, light as bent"); fig.tight_layout(pad=0.3)

# %% [markdown]
# ## A scene
# The breast on its film on its frame. Everything that follows changes a scene in place, one family of properties each, and a family can be left out, which is how each of them is shown and tested. Only what hides the breast, a film edge or a collimator, changes `cover` and with it the box.

# %%
#| export
@dataclass
class Scene:
    "A frame in the making; arrays are float32, rows x columns."
    picture: np.ndarray   # about 0 to 1
    cover: np.ndarray     # 0 to 1, the breast as far as it is to be seen
    film: np.ndarray      # bool, where the film is
    x: np.ndarray         # mm from the chest wall, in the breast's own coordinates
    y: np.ndarray         # mm from the upper edge
    u: np.ndarray         # mm from the chest wall, not bent
    v: np.ndarray         # mm from the upper edge, not bent
    mm: float             # of a pixel
    extent: tuple         # x0, y0, x1, y1 of the breast, mm, in its own coordinates
    view: str             # CC or MLO
    laterality: str       # L or R
    whole: float          # area of the breast with what lies outside the frame, pixels

def lay_out(
    rng: np.random.Generator,
    breast: Anatomy,
    laterality: str,      # L or R
    view: str,            # CC or MLO
    size: int,            # longest side, pixels
) -> Scene:
    "A breast in its place, on black."
    lesion = str(rng.choice(list(KINDS))) if chance(rng, 0.15) else None
    drawn = make_breast(rng, "L", view, (round(FIELD / FINE), round(0.84 * FIELD / FINE)), lesion, breast)
    extent, pad = tuple(v * FINE for v in drawn.box), round(PAD / FINE)
    layers = [cv2.copyMakeBorder(a, pad, 0, pad, 0, cv2.BORDER_REFLECT_101) for a in (drawn.pixels, drawn.breast_mask.astype(np.float32))]
    if view == "CC": layers[1][:pad] = 0                                         # a breast from above ends above, too
    shape = rows, columns = frame_shape(rng, size)
    matrix, (wide, high), offset = lay_film(rng, shape, extent, view, laterality)
    reach = round(0.4 * size / STEP) * STEP                                      # the coarse grid looks this far beyond the frame
    at_x, at_y = (np.arange(-reach, n + reach + STEP, STEP)[None if k == 0 else np.s_[:, None]] for k, n in enumerate((columns, rows)))
    points = np.float32(bend(rng, *(matrix[k, 0] * at_x + matrix[k, 1] * at_y + matrix[k, 2] + offset[k] for k in (0, 1)), extent, view))
    look = lambda layer, x, y: cv2.remap(layer, x / np.float32(FINE) + pad, y / np.float32(FINE) + pad, cv2.INTER_LINEAR)
    mm = float(np.sqrt(abs(np.linalg.det(matrix))))
    shift = np.float32([[1 / STEP, 0, reach / STEP], [0, 1 / STEP, reach / STEP]])
    x, y = (cv2.warpAffine(p, shift, (columns, rows), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP) for p in points)
    u, v = (matrix[k, 0] * np.arange(columns)[None] + matrix[k, 1] * np.arange(rows)[:, None] + matrix[k, 2] for k in (0, 1))
    film = (u >= 0) & (v >= 0) & (u <= wide) & (v <= high)
    picture, cover = (look(layer, x, y) for layer in layers)
    # what is cut off is the breast in front of the chest wall and below the upper edge, outside of frame or film
    seen = (look(layers[1], *points) > 0.5) & (points[0] > 0) & (points[1] > offset[1] * (view == "MLO"))
    cover = cv2.GaussianBlur(cover, (0, 0), 0.6) * film
    return Scene(np.clip(picture, 0, 1) * cover, cover, film, x, y, *(np.float32(a + b) for a, b in zip((u, v), offset)), mm, extent, view, laterality, float(seen.sum() * STEP**2))

# %% [markdown]
# The same scenes are shown after each family.

# %%
def sheet(pictures, boxes=None, columns=12, title=""):
    rows = -(-len(pictures) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(12, 1.35 * rows + 0.2), facecolor="slategrey")
    for ax in axes.flat: ax.axis("off")
    for i, (ax, p) in enumerate(zip(axes.flat, pictures)):
        ax.imshow(p, cmap="gray", **({"vmin": 0, "vmax": 255} if p.dtype == np.uint8 else {}))
        if boxes: ax.add_patch(plt.Rectangle(boxes[i][:2], boxes[i][2] - boxes[i][0], boxes[i][3] - boxes[i][1], fill=False, edgecolor="orange", lw=0.8))
    fig.suptitle(title, fontsize=10); fig.tight_layout(pad=0.2)

def scenes(*families, count=24, size=192):
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        scene = lay_out(rng, draw_build(rng), "LR"[i // 2 % 2], ("CC", "MLO")[i % 2], size)
        for family in families: family(rng, scene)
        yield scene

sheet([s.picture for s in scenes()], title="as laid out")

# %% [markdown]
# ## Light
# The same breast, under- or overexposed, with hard or soft contrast. On film its rim, where it is thin, fades nearly into the air; processed for presentation it is as bright as the rest, or brighter. Muscle can be darker than fat or white. What is beneath may be blurred or burnt out altogether: an outline must do.

# %%
#| export
def light(rng: np.random.Generator, s: Scene):
    "Exposure, contrast, the rim, muscle."
    inside, shape = s.cover > 0.5, s.cover.shape
    if not inside.any(): return
    tissue = np.clip(s.picture / max(float(np.percentile(s.picture[inside], 99.5)), 0.05), 0, 1.1)
    skin = cv2.distanceTransform((s.cover > 0.5).astype(np.uint8) | ~s.film, cv2.DIST_L2, 3) * np.float32(s.mm)   # mm below the skin
    if chance(rng, 0.12): tissue = cv2.GaussianBlur(tissue, (0, 0), rng.uniform(2, 12) / s.mm)                         # texture lost
    tissue = tissue ** np.float32(log_uniform(rng, 0.35, 2.8) if chance(rng, 0.5) else np.exp(rng.normal(0, 0.3)))
    if s.view == "MLO" and chance(rng, 0.5):                                                                           # the muscle, of any width and brightness
        top, bottom, soft = s.extent[2] * rng.uniform(0.15, 0.85), s.extent[3] * rng.uniform(0.3, 0.95), rng.uniform(1, 5)
        edge = top * (1 - s.y / bottom) - s.x + rng.uniform(-0.12, 0.2) * top * np.sin(np.clip(s.y / bottom, 0, 1) * np.float32(np.pi))
        tissue += np.clip(edge / soft, 0, 1) * np.float32(rng.uniform(-0.15, 0.6) if chance(rng, 0.7) else 0.7) * (1 - 0.6 * tissue)
    if chance(rng, 0.35): tissue *= 1 + np.float32(rng.uniform(-0.6, 0.6)) * (np.clip(s.x / s.extent[2], 0, 1) - np.float32(0.5))   # from chest wall to nipple
    if chance(rng, 0.3): tissue *= 1 + np.float32(rng.uniform(0.05, 0.25)) * field(rng, shape, 4)
    low, high = np.sort(rng.uniform([0.02, 0.35], [0.45, 1.05]))
    kind = rng.random()
    if kind < 0.08: low, high = rng.uniform([0.02, 0.06], [0.05, 0.18])             # dim: a label is much brighter
    elif kind < 0.15: low, high = rng.uniform([0.6, 0.85], [0.9, 1.0])              # nearly flat and white
    elif kind < 0.20: low, high = rng.uniform([0.25, 1.1], [0.7, 1.8])              # burnt out
    tissue = np.clip(low + (high - low) * tissue, 0, 1)
    rim = rng.random()
    if rim < 0.5:                                                                  # thin tissue is dark
        fade = np.exp(-skin / np.float32(log_uniform(rng, 2, 32)))
        tissue *= 1 - np.float32(rng.uniform(0.3, 0.95)) * fade
    elif rim < 0.7: tissue += np.float32(rng.uniform(0.03, 0.4)) * np.exp(-((skin - np.float32(rng.uniform(0, 2.5))) / np.float32(rng.uniform(0.7, 4))) ** 2)  # the skin's line, or a shining rim
    s.picture = np.clip(tissue, 0, 1) * s.cover

# %%
sheet([s.picture for s in scenes(light)], title="light")

# %% [markdown]
# Some breasts have more in them or on them than tissue: vessels of chalk, clips, wires, a pacemaker in the muscle, folds of skin, a nipple beside the outline.

# %%
#| export
def within(
    rng: np.random.Generator,
    inside: np.ndarray,   # bool
) -> tuple:               # x, y, pixels
    "A random point of a mask."
    y, x = divmod(int(rng.choice(np.flatnonzero(inside))), inside.shape[1])
    return x, y

def strokes(
    rng: np.random.Generator,
    start: tuple,         # x, y, pixels
    length: float,        # pixels
    wander: float,        # radians a step
) -> np.ndarray:          # n x 2 int32, sixteenths of a pixel
    "A line that changes direction little by little."
    turn = np.cumsum(rng.normal(0, wander, 24)) + rng.uniform(0, 6.3)
    return np.int32(16 * (np.array(start) + np.cumsum(np.stack([np.cos(turn), np.sin(turn)], 1), 0) * length / 24))

def contents(rng: np.random.Generator, s: Scene):
    "Foreign bodies, chalk, folds and moles."
    inside = s.cover > 0.9
    if not inside.any(): return
    ink, mm = np.zeros(s.cover.shape, np.uint8), 1 / s.mm
    dot = lambda at, r, level: cv2.circle(ink, tuple(int(16 * v) for v in at), max(8, int(16 * r * mm)), int(level), -1, cv2.LINE_AA, 4)
    if chance(rng, 0.10):
        for _ in range(rng.integers(1, 14)): dot(within(rng, inside), rng.uniform(0.5, 4), rng.uniform(120, 255))
    if chance(rng, 0.08):                                                            # chalky vessels, wires
        for _ in range(rng.integers(1, 4)): cv2.polylines(ink, [strokes(rng, within(rng, inside), rng.uniform(20, 120) * mm, rng.choice([0.02, 0.25]))], False, int(rng.uniform(80, 255)), int(rng.integers(1, 3)), cv2.LINE_AA, 4)
    if chance(rng, 0.03):                                                            # pacemaker, port
        at, r = within(rng, inside & (s.y < 0.5 * s.extent[3])), rng.uniform(10, 22) * mm
        cv2.ellipse(ink, at, (int(r), int(r * rng.uniform(0.6, 1))), rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
        cv2.polylines(ink, [strokes(rng, at, 90 * mm, 0.2)], False, 200, 2, cv2.LINE_AA, 4)
    s.picture += ink * np.float32(1 / 255) * s.cover * (1 - s.picture)
    if chance(rng, 0.15):                                                            # folds: a dark and a bright line
        line = cv2.polylines(np.zeros_like(ink), [strokes(rng, within(rng, inside), rng.uniform(25, 90) * mm, 0.06)], False, 255, int(rng.integers(1, 4)), cv2.LINE_AA, 4)
        s.picture += cv2.GaussianBlur(line, (0, 0), rng.uniform(0.6, 2)).astype(np.float32) * np.float32(rng.uniform(-0.3, 0.35) / 255) * s.cover
    s.picture = np.clip(s.picture, 0, 1)

# %%
sheet([s.picture for s in scenes(light, contents, count=12)], title="contents")

# %% [markdown]
# ## Air
# Black, grey, uneven, grainy, striped, brighter than fat, or white. The breast either covers it or is added to it, as on film, where its rim ends in the grey of the base. A breast that cannot be told from its air teaches nothing, so it is lifted out of it.

# %%
#| export
def air(rng: np.random.Generator, s: Scene):
    "A background under the breast."
    shape, kind = s.cover.shape, rng.random()
    level = 0.0 if kind < 0.40 else rng.uniform(0, 0.08) if kind < 0.55 else rng.uniform(0.05, 0.35) if kind < 0.84 else rng.uniform(0.3, 0.6) if kind < 0.94 else rng.uniform(0.75, 1.0)
    sky = np.full(shape, level, np.float32)
    if chance(rng, 0.30): sky += np.float32(rng.uniform(0.01, 0.10)) * field(rng, shape, rng.uniform(1, 4))
    if chance(rng, 0.10): sky += np.float32(log_uniform(rng, 0.004, 0.04)) * field(rng, shape, rng.uniform(8, 90))
    if chance(rng, 0.06): sky += np.float32(rng.uniform(0.01, 0.05)) * np.sin(np.linspace(0, rng.uniform(10, 300), shape[0], dtype=np.float32))[:, None]
    if chance(rng, 0.08):                                                            # scattered rays: a halo of the breast
        small = cv2.resize(s.cover, None, fx=1 / STEP, fy=1 / STEP, interpolation=cv2.INTER_AREA)
        sky += np.float32(rng.uniform(0.03, 0.2)) * cv2.resize(cv2.GaussianBlur(small, (0, 0), rng.uniform(1, 5)), shape[::-1])
    sky = np.clip(sky, 0, 1)
    inside, outside = s.cover > 0.9, (s.cover < 0.1) & s.film
    if not (inside.any() and outside.any()): return
    if level < 0.4 and chance(rng, 0.5): s.picture = 1 - (1 - s.picture) * (1 - sky)
    else: s.picture = s.picture + sky * (1 - s.cover)
    away = float(np.median(s.picture[inside]) - np.median(s.picture[outside]))
    if abs(away) < 0.1: s.picture += np.float32((0.1 - abs(away)) * (1 if away > 0 or level < 0.5 else -1)) * s.cover
    s.picture = np.clip(s.picture, 0, 1)

# %%
sheet([s.picture for s in scenes(light, air)], title="air (each picture stretched by itself)")

# %% [markdown]
# ## Neighbours
# Below the fold of an MLO view lies the abdomen, from a sliver to half the frame, touching the breast or with a crease between; above it may lie arm or shoulder. From above, the other breast comes in at the chest wall. None of it is in the box. Millimetres on the film make it easy: the abdomen is what lies below the fold and near the chest wall.

# %%
#| export
def neighbours(rng: np.random.Generator, s: Scene):
    "Abdomen, arm, the other breast: body that is not the breast."
    inside = s.cover > 0.9
    near = inside & (s.u < s.u[inside].min() + 12)
    if not near.any(): return
    first, last = (float(v) for v in np.percentile(s.v[near], (1, 99)))
    depth, base = s.extent[2], np.percentile(s.picture[inside], (25, 90))
    body = np.zeros(s.cover.shape, np.float32)
    wave = lambda: rng.uniform(0.5, 6) * np.sin(s.v * np.float32(6.28 / rng.uniform(25, 120)) + rng.uniform(0, 6.3))
    below, soft = s.v - last, np.float32(rng.uniform(1, 8))
    if s.view == "MLO" and chance(rng, 0.65):
        start, width = rng.choice([-2, rng.uniform(0, 5), rng.uniform(0, 30)]), depth * log_uniform(rng, 0.1, 1.3)
        shape = width * (rng.uniform(0.1, 1) + np.clip((below - start) / rng.uniform(10, 90), 0, 1) ** np.float32(rng.uniform(0.4, 2)) * rng.uniform(0, 1.2)) + wave()
        body = np.clip((shape - s.u) / soft, 0, 1) * np.clip((below - start) / rng.uniform(1, 20), 0, 1)
    if s.view == "MLO" and chance(rng, 0.12):                                     # the arm: a lobe at the top, before the axilla
        cx, cy, r = depth * rng.uniform(0.5, 1.2), float(s.v[s.film].min()) + rng.uniform(-25, 5), rng.uniform(18, 45)
        body = np.maximum(body, np.clip((1 - np.hypot((s.u - cx) / (r * rng.uniform(1, 2)), (s.v - cy) / r)) * r / soft, 0, 1))
    if s.view == "CC":
        for away in [d for d in (first - s.v, below) if chance(rng, 0.15)]:      # the other breast, or the chest's skin
            gap, width = rng.uniform(-3, 25), depth * rng.uniform(0.04, 0.5)
            shape = width * np.clip((away - gap) / rng.uniform(10, 70), 0, 1) ** np.float32(rng.uniform(0.4, 1.5)) + wave() * 0.5
            body = np.maximum(body, np.clip((shape - s.u) / soft, 0, 1) * np.clip((away - gap) / 3, 0, 1))
    if not body.any(): return
    grey = base[0] + (base[1] - base[0]) * rng.uniform(-0.3, 1.2) + rng.uniform(0.01, 0.15) * field(rng, body.shape, rng.uniform(4, 40)) + rng.uniform(-0.3, 0.3) * np.clip(s.u / depth, 0, 1)
    body *= (1 - s.cover) * s.film
    s.picture += body * (np.clip(grey, 0, 1) - s.picture)
    if chance(rng, 0.5):                                                             # a crease where skin meets skin
        crease = cv2.GaussianBlur(s.cover, (0, 0), rng.uniform(0.7, 2)) * cv2.GaussianBlur(body, (0, 0), rng.uniform(0.7, 2))
        s.picture *= 1 - np.clip(crease * np.float32(rng.uniform(0.5, 3.5)), 0, 0.9)

# %%
sheet([s.picture for s in scenes(light, air, neighbours)], title="neighbours")

# %% [markdown]
# ## Film and collimator
# What surrounds the film, where it does not fill the frame, is black, white, grey or uneven. Its own edges are bright or dark strips, straight or tilted. A collimator leaves a window, with corners sharp or round. Paddles leave lines; handling leaves tape, scratches, dust and finger prints; a processor leaves a block for the patient's name.

# %%
#| export
def level(rng: np.random.Generator) -> float:
    "A grey: white and black more often than others."
    return float(rng.choice([rng.uniform(0.8, 1), 0.0, rng.uniform(0, 1)], p=[0.4, 0.35, 0.25]))

def hide(
    s: Scene,             # changed in place
    where: np.ndarray,    # float32, 0 to 1
    grey,                 # 0 to 1, a number or rows x columns
):
    "Put something before the breast."
    s.picture += where * (grey - s.picture)
    s.cover *= where < 0.5

def borders(rng: np.random.Generator, s: Scene):
    "Around the film, its edges, the collimator."
    rows, columns = shape = s.cover.shape
    if not s.film.all():
        around = level(rng) + rng.choice([0, rng.uniform(0.02, 0.2)]) * field(rng, shape, rng.uniform(2, 20))
        hide(s, np.float32(~s.film), np.clip(around, 0, 1))
    y, x = np.arange(rows, dtype=np.float32)[:, None], np.arange(columns, dtype=np.float32)[None]
    sides = ((x, y / rows), (columns - 1 - x, y / rows), (y, x / columns), (rows - 1 - y, x / columns))   # distance to a side, place along it
    if chance(rng, 0.4):
        bright, uneven = level(rng), rng.uniform(0, 0.3) * chance(rng, 0.4)
        for k in rng.permutation(4)[:rng.choice([1, 2, 3, 4], p=[0.45, 0.2, 0.1, 0.25])]:
            away, along = sides[k]
            wide = log_uniform(rng, 0.003, 0.08) * max(shape)
            strip = wide * (1 + rng.uniform(-1, 1) * chance(rng, 0.5) * (along - 0.5)) + (0.2 * wide * field(rng, shape, 12) if uneven else 0)
            hide(s, np.clip(strip - away, 0, 1), np.clip(bright + uneven * field(rng, shape, 8), 0, 1))
    if chance(rng, 0.15):
        box = np.array(mask_box(s.cover > 0.5) or (0, 0, columns, rows), float)
        edge = np.array([box[0], box[1], columns - box[2], rows - box[3]]) * rng.uniform(-0.03, 0.98, 4) - 2   # the window's distance to each side, pixels
        lean, corner = rng.uniform(-0.06, 0.06, 4) * chance(rng, 0.4), rng.choice([0, rng.uniform(0.02, 0.4)]) * min(shape)
        ways = [edge[i] + lean[i] * max(shape) * along - away for i, (away, along) in zip((0, 2, 1, 3), sides)]
        across, down = np.maximum(ways[0], ways[1]) + corner, np.maximum(ways[2], ways[3]) + corner
        beyond = np.hypot(np.maximum(across, 0), np.maximum(down, 0)) - corner if corner else np.maximum(across, down)
        hide(s, np.clip(beyond, 0, 1), np.float32(level(rng)))

def handling(rng: np.random.Generator, s: Scene):
    "Lines of paddles, scratches, dust, tape, finger prints, shading."
    rows, columns = shape = s.cover.shape
    ink = np.zeros(shape, np.uint8)
    anywhere = lambda: (int(rng.uniform(-0.1, 1.1) * columns), int(rng.uniform(-0.1, 1.1) * rows))
    for _ in range(rng.poisson(0.35)):                                               # paddles, seams of a detector
        start, end = anywhere(), anywhere()
        if chance(rng, 0.7): end = (start[0], end[1]) if chance(rng, 0.5) else (end[0], start[1])
        cv2.line(ink, start, end, int(rng.uniform(60, 255)), int(rng.choice([1, 1, 2])), cv2.LINE_AA)
    if chance(rng, 0.06): cv2.rectangle(ink, anywhere(), anywhere(), int(rng.uniform(60, 255)), 1, cv2.LINE_AA)
    if chance(rng, 0.10):
        for _ in range(rng.integers(2, 12)): cv2.polylines(ink, [strokes(rng, anywhere(), rng.uniform(0.02, 0.3) * rows, 0.05)], False, int(rng.uniform(40, 255)), 1, cv2.LINE_AA, 4)
    s.picture += ink * np.float32(rng.uniform(0.1, 0.6) * rng.choice([-1, 1, 1]) / 255)
    if chance(rng, 0.10):                                                            # dust
        for _ in range(rng.integers(4, 60)): s.picture[int(rng.integers(rows)), int(rng.integers(columns))] = rng.choice([0, 1])
    if chance(rng, 0.06):                                                            # tape, finger prints: see-through
        ink[:] = 0
        for _ in range(rng.integers(1, 4)):
            cv2.ellipse(ink, anywhere(), (int(rng.uniform(0.01, 0.05) * rows), int(rng.uniform(0.01, 0.07) * rows)), rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
        if chance(rng, 0.5): cv2.fillConvexPoly(ink, np.int32(cv2.boxPoints((anywhere(), (rng.uniform(0.2, 0.6) * rows, rng.uniform(0.03, 0.08) * rows), rng.uniform(0, 180)))), 255, cv2.LINE_AA)
        s.picture += ink * np.float32(rng.uniform(-0.15, 0.25) / 255)
    if chance(rng, 0.2): s.picture *= 1 + np.float32(rng.uniform(0.05, 0.2)) * field(rng, shape, rng.uniform(1, 3))
    np.clip(s.picture, 0, 1, out=s.picture)

# %%
sheet([s.picture for s in scenes(light, air, borders, handling, count=36)], title="borders and handling")

# %% [markdown]
# ## Markers
# Letters and plates of lead, burned-in text, labels as large as a hand, beads, a wedge of steps; upright, turned, tilted, some from behind. They lie in the air, where technicians put them; few touch the breast.

# %%
#| export
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX)
WORDS = ("AB", "M.K.", "RT 3", "1", "2", "12", "04-11-97", "1998", "28 kV", "65 mAs", "ID 4711", "MAG", "XCCL", "AX", "LM", "W/O", "TOMO", "31 kV Rh/Rh", "DOB 1944", "SCREENING", "D 12:40")

def write_words(
    rng: np.random.Generator,
    lines: list,          # of text
    tall: float,          # of a line, pixels
) -> np.ndarray:          # float32, 0 to 1
    "Letters in some font."
    font, weight = int(rng.choice(FONTS)), int(rng.integers(1, 7))
    sizes = [cv2.getTextSize(line, font, 1.6, weight)[0] for line in lines]
    step = max(h for _, h in sizes) + int(rng.integers(12, 40))
    ink = np.zeros((step * len(lines) + 16, max(w for w, _ in sizes) + 24), np.uint8)
    for i, line in enumerate(lines): cv2.putText(ink, line, (12, step * (i + 1)), font, 1.6, 255, weight, cv2.LINE_AA)
    ratio = tall * len(lines) / len(ink)
    return cv2.resize(ink, (max(3, round(ink.shape[1] * ratio)), max(3, round(ink.shape[0] * ratio))), interpolation=cv2.INTER_AREA).astype(np.float32) / 255

def draw_marker(
    rng: np.random.Generator,
    side: str,            # such as R
    view: str,            # such as MLO
    size: int,            # longest side of the frame, pixels
) -> tuple:               # float32 brightness and cover, 0 to 1
    "Letters, a plate with letters, a bead, a ring, a wedge."
    bright, tall = rng.uniform(0.6, 1.0), max(4.0, size * log_uniform(rng, 0.018, 0.09))
    if chance(rng, 0.1): side, view = str(rng.choice(list("LR"))), str(rng.choice(["CC", "MLO"]))
    lines = [str(rng.choice([f"{side} {view}", f"{side}{view}", f"{side}-{view}", side, view, f"{side} {view} {rng.integers(10)}"]))] if chance(rng, 0.65) else [str(rng.choice(WORDS))]
    kind = rng.random()
    if kind < 0.55:
        cover = write_words(rng, lines + [str(rng.choice(WORDS))] * int(rng.integers(0, 2)), tall)
        picture = np.full_like(cover, bright)
    elif kind < 0.82:                                                                # a plate or an identification block
        lines += [str(w) for w in rng.choice(WORDS, rng.integers(0, 5))]
        tall = min(tall, 0.3 * size / len(lines))
        letters = write_words(rng, lines, tall)
        letters = cv2.copyMakeBorder(letters, *(int(v) for v in rng.uniform(0, 0.8 * tall, 4)), cv2.BORDER_CONSTANT, value=0)
        ground, ink = (bright, rng.uniform(0, 0.5)) if chance(rng, 0.6) else (rng.uniform(0, 0.45), bright)
        picture, cover = ground + (ink - ground) * letters * (rng.random() > 0.12), np.ones_like(letters)
    elif kind < 0.93:
        r = max(1, int(size * log_uniform(rng, 0.004, 0.03)))
        cover = cv2.circle(np.zeros((2 * r + 3, 2 * r + 3), np.float32), (r + 1, r + 1), r, 1.0, int(rng.choice([-1, -1, 1])), cv2.LINE_AA)
        picture = np.full_like(cover, bright)
    else:
        picture = np.repeat(np.linspace(rng.uniform(0, 0.4), bright, int(rng.integers(4, 12)), dtype=np.float32), max(2, int(tall * rng.uniform(0.4, 1))))[None].repeat(int(tall), 0)
        cover = np.ones_like(picture)
    if chance(rng, 0.08): picture, cover = picture[:, ::-1], cover[:, ::-1]
    turns = int(rng.choice(4, p=[0.68, 0.13, 0.06, 0.13]))
    picture, cover = (np.ascontiguousarray(np.rot90(a, turns), np.float32) for a in (picture, cover))
    if chance(rng, 0.25):
        (h, w), angle = cover.shape, rng.uniform(-45, 45) * rng.uniform(0.1, 1)
        c, s = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
        wide, high = int(w * c + h * s) + 2, int(w * s + h * c) + 2
        matrix = cv2.getRotationMatrix2D((w / 2, h / 2), angle, 1)
        matrix[:, 2] += (wide - w) / 2, (high - h) / 2
        picture = cv2.warpAffine(picture, matrix, (wide, high), borderMode=cv2.BORDER_REPLICATE)
        cover = cv2.warpAffine(cover, matrix, (wide, high))
    return picture, cover

def markers(rng: np.random.Generator, s: Scene):
    "None to five, beside the breast."
    rows, columns = s.cover.shape
    breast = cv2.integral(cv2.dilate((s.cover > 0.5).astype(np.uint8), np.ones((5, 5), np.uint8)))
    side = s.laterality if chance(rng, 0.95) else "LR"[s.laterality == "L"]
    for _ in range(rng.choice(6, p=[0.24, 0.3, 0.22, 0.13, 0.07, 0.04])):
        picture, cover = draw_marker(rng, side, s.view, max(rows, columns))
        h, w = cover.shape
        if h >= rows or w >= columns: continue
        allowed = 0.12 * h * w if chance(rng, 0.05) else 0
        for _ in range(12):
            y, x = int(rng.integers(rows - h + 1)), int(rng.integers(columns - w + 1))
            if breast[y + h, x + w] - breast[y, x + w] - breast[y + h, x] + breast[y, x] <= allowed: break
        else: continue
        part = s.picture[y:y + h, x:x + w]
        part += cover * (picture - part)

# %%
sheet([s.picture for s in scenes(light, air, markers, count=36)], title="markers")

# %% [markdown]
# ## The machine's own marks
# Quantum noise, grain of film, a little blur, pictures that were small once, JPEG, a tone curve, and a negative that was stored as a positive. Values above the display's range are cut off.

# %%
#| export
def noise(rng: np.random.Generator, s: Scene):
    "Blur, resampling, noise, JPEG, tone."
    p, shape = s.picture, s.cover.shape
    if chance(rng, 0.10): p = cv2.resize(cv2.resize(p, None, fx=(f := rng.uniform(0.35, 0.8)), fy=f, interpolation=int(rng.choice([cv2.INTER_AREA, cv2.INTER_NEAREST]))), shape[::-1], interpolation=cv2.INTER_LINEAR)
    if chance(rng, 0.25): p = cv2.GaussianBlur(p, (0, 0), rng.uniform(0.4, 1.5))
    if chance(rng, 0.10): p = p + np.float32(rng.uniform(0.3, 1.2)) * (p - cv2.GaussianBlur(p, (0, 0), rng.uniform(0.7, 3)))   # sharpened
    if chance(rng, 0.40): p = p + np.float32(log_uniform(rng, 0.003, 0.05)) * rng.standard_normal(shape, dtype=np.float32) * (np.sqrt(np.clip(p, 0, 1)) if chance(rng, 0.5) else 1)
    if chance(rng, 0.10): p = p + np.float32(log_uniform(rng, 0.004, 0.03)) * field(rng, shape, max(shape) / rng.uniform(1.5, 5))
    p = np.clip(p, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.2)))
    if chance(rng, 0.15):
        coded = cv2.imencode(".jpg", np.uint8(p * 255), [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 95))])[1]
        p = cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
    s.picture = 1 - p if chance(rng, 0.06) else p

FAMILIES = (light, contents, air, neighbours, borders, handling, markers, noise)   # in this order

def stretch(
    picture: np.ndarray,   # float32
) -> np.ndarray:           # uint8
    "Minimum to maximum over 0 to 255, as a detector sees every frame."
    low, high = float(picture.min()), float(picture.max())
    return np.round((picture - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)

def visible(
    picture: np.ndarray,   # float32
    inside: np.ndarray,    # bool, the breast
) -> bool:
    "Whether anybody could find the breast: it differs from what is around it by more than a few of 255 levels, or is not flat."
    around = cv2.dilate(inside.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool) & ~inside
    span = np.ptp(picture)
    if span <= 0.05 or not around.any(): return bool(span > 0.05)
    return bool(max(abs(np.median(picture[inside]) - np.median(picture[around])), picture[inside].std() / 2) > 0.05 * span)

def draw_scene(
    rng: np.random.Generator,
    breast: Anatomy,
    laterality: str,          # L or R
    view: str,                # CC or MLO
    size: int,                # longest side, pixels
    families: tuple = FAMILIES,
) -> Scene:
    "A scene that shows a breast: one that is cut off or hidden too much is drawn again."
    while True:
        s = lay_out(rng, breast, laterality, view, size)
        for family in families: family(rng, s)
        inside = s.cover > 0.5
        x0, y0, x1, y1 = mask_box(inside) or (0, 0, 0, 0)
        if inside.sum() >= 0.55 * s.whole and (x1 - x0) * (y1 - y0) >= 0.06 * inside.size and visible(s.picture, inside): return s

def draw_frame(
    rng: np.random.Generator,
    breast: Anatomy,
    laterality: str,          # L or R
    view: str,                # CC or MLO
    size: int,                # longest side, pixels
    strangeness: float = 1.0, # 0 to 1, the share of families that a frame has
) -> tuple[np.ndarray, tuple]:  # uint8 (rows, columns); x0, y0, x1, y1 of the breast, half open, pixels
    "One frame and the box of its breast."
    s = draw_scene(rng, breast, laterality, view, size, tuple(f for f in FAMILIES if chance(rng, strangeness)))
    return stretch(s.picture), mask_box(s.cover > 0.5)

# %%
pictures, boxes = zip(*(draw_frame(rng := np.random.default_rng([seed, i]), draw_build(rng), "LR"[i // 2 % 2], ("CC", "MLO")[i % 2], size) for i in range(40)))
assert all(p.dtype == np.uint8 and max(p.shape) == size and np.ptp(p) == 255 for p in pictures)
sheet(pictures, boxes, 10, "finished frames")

# %% [markdown]
# With all families left out, what is bright is breast and nothing else, and the box is that of the bright pixels. A family that hides nothing leaves the box alone.

# %%
for i in range(6):
    bare, lit = (draw_scene(np.random.default_rng([seed, i]), draw_build(np.random.default_rng(i)), "L", ("CC", "MLO")[i % 2], size, families) for families in ((), (light, contents, air, neighbours, handling, markers)))
    assert not bare.picture[bare.cover == 0].any() and np.abs(np.subtract(mask_box(bare.picture > 0.02), mask_box(bare.cover > 0.5))).max() <= 2
    assert mask_box(bare.cover > 0.5) == mask_box(lit.cover > 0.5)

# %% [markdown]
# ## A set
# Four frames a patient, both breasts from above and from the side, in the text format of `03_roi`; whole patients are held back. Each frame has a seed of its own, so neither the number of processes nor an interruption changes a byte. The label is written before the picture: a picture that exists says that its frame is done.

# %%
#| export
def plan_frames(
    patients: int,
    held_back: float,     # share of them in val
    seed: int,
) -> list:                # a dict a frame
    "Who is drawn, in table order."
    held = max(1, round(held_back * patients)) if held_back and patients > 1 else 0
    apart, frames = set(np.random.default_rng((seed, 0)).permutation(patients)[:held].tolist()), []
    for i in range(patients):
        rng = np.random.default_rng((seed, 1, i))
        first = draw_build(rng)
        breasts = {"L": first, "R": other_breast(rng, first)}
        frames += [{"patient_id": str(i + 1), "image_id": side + view, "laterality": side, "view": view, "breast": breasts[side],
                    "split": "val" if i in apart else "train", "entropy": (seed, 2, i, k)} for k, (side, view) in enumerate((s, v) for s in "LR" for v in ("CC", "MLO"))]
    return frames

def make_frame_file(
    folder: Path,         # of the set
    frame: dict,          # of `plan_frames`
    size: int,            # longest side, pixels
    strangeness: float,   # 0 to 1
) -> tuple:               # x0, y0, x1, y1, rows, columns: pixels
    "Draw and write one frame and its label, unless they are there."
    cv2.setNumThreads(1)
    stem = f"{frame['patient_id']}@{frame['image_id']}"
    path, label = folder / "images" / f"{stem}.png", folder / "labels" / f"{stem}.txt"
    if path.exists() and label.exists():
        rows, columns = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).shape
        cx, cy, w, h = (float(v) for v in label.read_text().split()[1:])
        return *(round(v) for v in ((cx - w / 2) * columns, (cy - h / 2) * rows, (cx + w / 2) * columns, (cy + h / 2) * rows)), rows, columns
    picture, box = draw_frame(np.random.default_rng(frame["entropy"]), frame["breast"], frame["laterality"], frame["view"], size, strangeness)
    x0, y0, x1, y1, rows, columns = found = (*box, *picture.shape)
    write_text(label, f"0 {(x0 + x1) / 2 / columns:.6f} {(y0 + y1) / 2 / rows:.6f} {(x1 - x0) / columns:.6f} {(y1 - y0) / rows:.6f}\n")
    write_png(path, picture)
    return found

def draw_frames(
    folder: Path,                 # gets images/, labels/, classes.txt, train.txt, val.txt
    *,
    patients: int,
    held_back: float,             # share of them in val
    size: int,                    # longest side of a frame, pixels
    seed: int,
    strangeness: float = 1.0,     # 0 to 1, see `draw_frame`
    workers: int | None = None,   # processes; None = one a core
    identity: dict | None = None, # what else the pictures depend on, such as the code; JSON-able
) -> pd.DataFrame:                # roi.COLUMNS
    "Draw a set; finished frames of an earlier call with the same parameters are kept, others make room."
    folder = Path(folder)
    about, note = json.dumps({"patients": patients, "held_back": held_back, "size": size, "seed": seed, "strangeness": strangeness, "identity": identity}, indent=1), folder / "frames.json"
    if not note.exists() or note.read_text() != about:
        for part in ("images", "labels"): shutil.rmtree(folder / part, ignore_errors=True)
        write_text(note, about)
    frames = plan_frames(patients, held_back, seed)
    jobs = (delayed(make_frame_file)(folder, frame, size, strangeness) for frame in frames)
    found = list(tqdm(Parallel(n_jobs=workers or os.cpu_count(), return_as="generator")(jobs), total=len(frames), desc="frames", unit="img"))
    table = pd.DataFrame(frames)[["patient_id", "image_id", "split"]]
    table[["x0", "y0", "x1", "y1", "rows", "columns"]] = found
    boxes = from_pixels(table, table["split"].tolist())
    write_yolo(folder, boxes)
    return boxes

# %%
scratch = Path(tempfile.mkdtemp())
settings = dict(patients=patients, held_back=0.3, size=size, seed=seed)
set_boxes = draw_frames(scratch / "set", **settings)
before = {f: f.read_bytes() for f in (scratch / "set").rglob("*") if f.is_file()}
for image in set_boxes["image"][::3]: (scratch / "set" / image).unlink()
assert draw_frames(scratch / "set", **settings, workers=1).equals(set_boxes) and before == {f: f.read_bytes() for f in (scratch / "set").rglob("*") if f.is_file()}
read, problems = read_yolo(scratch / "set", images=True)
assert problems.empty and np.allclose(read[["cx", "cy", "w", "h"]], set_boxes[["cx", "cy", "w", "h"]], atol=1e-6)
set_boxes.head(4)

# %% [markdown]
# ## What came out
# Where the boxes of the frames above lie in shares of the frame, and how large they are. In the winner's set, digital frames only, the median box is 0.51 wide and 0.76 high; here it varies more than that, on purpose.

# %%
shares = np.array([(b[0] / p.shape[1], b[1] / p.shape[0], b[2] / p.shape[1], b[3] / p.shape[0]) for p, b in zip(pictures, boxes)])
w, h = (shares[:, 2:] - shares[:, :2]).T
fig, axes = plt.subplots(1, 2, figsize=(8, 3.4))
for x0, y0, x1, y1 in shares: axes[0].add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="tab:blue", alpha=0.3))
axes[0].set(xlim=(0, 1), ylim=(1, 0), title="all boxes, in shares of the frame", aspect="equal")
axes[1].scatter(w, h, s=12); axes[1].set(xlabel="width", ylabel="height", xlim=(0, 1.02), ylim=(0, 1.02), title=f"median {np.median(w):.2f} x {np.median(h):.2f}"); fig.tight_layout()
assert (w * h >= 0.06).all()

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
# # Anatomy
# > The healthy breast: its outline, its gland, its muscle and the tissue between them.
#
# A pipeline cannot be shown, taught or tested without mammograms, and mammograms cannot be passed around. The notebooks
# in this folder draw them from a seed. Read them in this order: `texture` makes noise and curves, `anatomy` the tissue
# of one breast, `lesions` what may grow in it, and `breast` the finished picture. `machines` writes that picture as a
# DICOM file. `scenes`, `appearance`, `film` and `frames` draw the more varied frames that the detector is trained on.

# %%
#| default_exp mammo.drawing.anatomy

# %% tags=["parameters"]
rows, columns = 832, 640   # frame, pixels
seed = 7                   # of the random generator; each seed draws another woman

# %%
#| export
from dataclasses import dataclass, replace

import cv2
import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import expit

from mammo_nb.mammo.drawing.texture import (FIELD, Frame, curve, draw_curves, fill, make_frame, power_law, ridges,
                                            smooth_noise, strands)

# %%
#| hide
import matplotlib.pyplot as plt

# %% [markdown]
# ## What both views share
# The two views of a breast show the same size, the same density and the same lesion, so these are drawn once. A lesion
# is placed by its distance from the nipple, which is also how radiologists match a finding in two views.

# %%
#| export
@dataclass(frozen=True)
class Anatomy:
    "The properties that both views of one breast share."
    depth: float              # from the chest wall to the nipple, in mm
    height: float             # half the base of the breast, in mm
    density: float            # from 0 (density A of BI-RADS) to 1 (density D)
    distance: float = 0.5     # from the lesion to the nipple, as a share of the depth
    angles: tuple = (0., 0.)  # direction from the nipple to the lesion in CC and in MLO, in radians from the axis
    size: float = 16.0        # diameter of the lesion, in mm
    implant: bool = False     # whether there is an implant
    vascular: bool = False    # whether the arteries are calcified

def draw_anatomy(
    rng: np.random.Generator,
    density: float | None = None,   # from 0 to 1; None: drawn at random
    implant: bool = False,
) -> Anatomy:
    "Draw the properties of a breast. The kind of its lesion is chosen elsewhere."
    depth = float(np.clip(rng.normal(88, 14), 60, 115))
    return Anatomy(depth=depth, height=float(np.clip(depth * rng.normal(0.86, 0.08), 50, 92)),
                   density=float(rng.beta(2, 2.4)) if density is None else density,
                   distance=float(rng.uniform(0.35, 0.7)), angles=tuple(rng.uniform(-0.65, 0.65, 2).tolist()),
                   size=float(rng.uniform(14, 23)), implant=implant, vascular=bool(rng.random() < 0.12))

def other_breast(
    rng: np.random.Generator,
    breast: Anatomy,
) -> Anatomy:
    "Draw the same woman's other breast: nearly the same size, the same density, and a lesion site of its own."
    own = draw_anatomy(rng)
    return replace(breast, depth=breast.depth * rng.uniform(0.95, 1.05), height=breast.height * rng.uniform(0.96, 1.04),
                   distance=own.distance, angles=own.angles, size=own.size)

# %%
draw_anatomy(np.random.default_rng(seed))

# %% [markdown]
# ## The outline
# Everything is drawn with the chest wall on the left. Lengths are millimetres from the upper left corner of the frame,
# and a right breast is mirrored at the end. Seen from above (CC), a breast is half an ellipse. Seen from the side
# (MLO), it hangs: the axillary tail leaves the frame at the top, the nipple points forward and a little down, and the
# inframammary fold is its lower end.

# %%
#| export
def outline(
    rng: np.random.Generator,
    breast: Anatomy,
    view: str,          # CC or MLO
    width: float,       # width of the frame, in mm
# polygon (n, 2) in mm; nipple (x, y) in mm; direction of the nipple's axis in radians; y of the fold in mm, None in CC
) -> tuple:
    "Draw the skin line as a spline through a few landmarks."
    depth, half = min(breast.depth, 0.85 * width), breast.height
    if view == "CC":
        middle = FIELD * rng.uniform(0.46, 0.54)
        angle = np.linspace(-np.pi / 2, np.pi / 2, 15)
        bulge = 1 + np.interp(angle, np.linspace(-np.pi / 2, np.pi / 2, 6), rng.normal(0, 0.015, 6))
        power = rng.uniform(0.72, 0.9)
        x = depth * np.cos(angle) ** power * bulge
        y = middle + half * np.sign(angle) * np.abs(np.sin(angle)) ** 0.95 * bulge
        x[[0, -1]] = -2
        nipple, axis, fold = (float(depth * bulge[7]), float(middle)), 0.0, None
    else:
        drop = rng.uniform(0.56, 0.64) * FIELD                # y of the nipple
        fold = min(drop + half * rng.uniform(0.60, 0.80), 0.94 * FIELD)
        arm = depth * rng.uniform(0.5, 0.7)                   # width of the axilla at the top of the frame
        x = np.array([
            arm * 1.02, arm, arm * 1.06, 0.84 * depth, 0.97 * depth, depth, 0.93 * depth, 0.72 * depth, 0.42 * depth,
            0.14 * depth, -2
        ])
        y = np.array([-12, 0.04 * FIELD, 0.18 * FIELD, drop - 0.62 * half, drop - 0.28 * half, drop, drop + 0.26 * half,
                      drop + 0.52 * half, (drop + 0.68 * half + fold) / 2, fold - 1, fold + 1])
        x[1:-2] *= 1 + rng.normal(0, 0.012, len(x) - 3)
        nipple, axis = (float(x[5]), float(y[5])), rng.uniform(0.05, 0.2)
    t = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    fine = np.linspace(0, t[-1], 240)
    points = np.stack([CubicSpline(t, x)(fine), CubicSpline(t, y)(fine)], 1)
    corner = [(-5, points[0, 1])] if view == "MLO" else []
    return np.concatenate([points, [(-5, points[-1, 1])], np.array(corner).reshape(-1, 2)]), nipple, axis, fold

# %%
frame = make_frame(rows, columns)
woman = draw_anatomy(np.random.default_rng(seed))
fig, axes = plt.subplots(1, 6, figsize=(10, 2.4))
for i, ax in enumerate(axes):
    view = ("CC", "MLO")[i % 2]
    skin, nipple, axis, fold = outline(np.random.default_rng(i), draw_anatomy(np.random.default_rng(i // 2)), view,
                                       columns * frame.mm)
    ax.imshow(fill(frame, skin), cmap="gray", extent=(0, columns * frame.mm, FIELD, 0))
    ax.plot(*nipple, "r.")
    ax.set_title(view)
    ax.axis("off")

# %% [markdown]
# ## Gland and muscle
# Glandular tissue is a disc behind the nipple with lobules of fat in it. A mammogram is a projection, so several layers
# of tissue are added. The sum gives the soft veils that a single layer does not have.

# %%
#| export
def gland(
    rng: np.random.Generator,
    frame: Frame,
    breast: Anatomy,
    view: str,             # CC or MLO
    nipple: tuple,         # x, y in mm
    axis: float,           # angle by which the breast hangs, in radians
    rays: list,            # noise stretched towards the nipple, one (rows, columns) array per layer
) -> np.ndarray:           # float32 (rows, columns), 0 is fat and about 1 is dense tissue
    """Draw fibroglandular tissue: a disc behind the nipple with lobules of fat in it. A denser breast has a larger and
    fuller disc."""
    # the disc is smooth, so half the resolution is enough
    whole, frame, depth = frame, make_frame(frame.rows // 2, frame.columns // 2), nipple[0]
    rise = -np.tan(axis) * 2.2 if view == "MLO" else rng.normal(0, 0.12)
    u = (nipple[0] - frame.x) / depth                                          # 0 at the nipple, 1 at the chest wall
    v = (frame.y - nipple[1] - rise * (nipple[0] - frame.x)) / breast.height
    spread = 0.16 + (0.4 + 0.25 * breast.density) * np.sqrt(np.clip(u, 0, 1))
    disc = 1 - np.hypot((u - 0.40) / (0.42 + 0.16 * breast.density), v / spread)
    disc = 1.7 * disc + 0.5 * smooth_noise(rng, frame, 4.0, 34, 0.5) - 0.85 + 0.95 * breast.density
    dense = np.zeros_like(disc)
    for layer in rays:
        lobes = smooth_noise(rng, frame, 3.8, 26)
        small = 0.8 * smooth_noise(rng, frame, 4.4, rng.uniform(10, 22))
        drawn_out = 0.6 * cv2.resize(layer, disc.shape[::-1], interpolation=cv2.INTER_AREA)
        fat = small + drawn_out - 0.8 * breast.density
        body = expit(3.2 * (disc + 0.45 * lobes))
        dense += body * (0.95 + 0.12 * lobes - 0.8 * expit(3.5 * fat) + 0.35 * ridges(fat + 0.35, 0.25))
    return cv2.resize(dense / len(rays), (whole.columns, whole.rows), interpolation=cv2.INTER_LINEAR)

def pectoral(
    rng: np.random.Generator,
    frame: Frame,
    breast: Anatomy,
    view: str,             # CC or MLO
) -> np.ndarray:           # float32 (rows, columns), 0 to 1
    "Draw the pectoral muscle: a triangle at the top of the chest wall in MLO, at most a thin strip in CC."
    if view == "CC":
        if rng.random() > 0.25:
            return np.zeros((frame.rows, frame.columns), np.float32)
        depth, half = rng.uniform(3, 9), breast.height * rng.uniform(0.4, 0.6)
        y = np.linspace(-half, half, 30)
        points = np.stack([depth * (1 - (y / half) ** 2), y + FIELD / 2 * rng.uniform(0.9, 1.1)], 1)
    else:
        top, bottom = breast.depth * rng.uniform(0.36, 0.52), FIELD * rng.uniform(0.45, 0.62)
        t = np.linspace(0, 1, 30)
        x = top * (1 - t) + rng.uniform(0.0, 5) * np.sin(np.pi * t)
        points = np.stack([np.append(x, -9), np.append(t * bottom, -9)], 1)
    return cv2.GaussianBlur(fill(frame, points), (0, 0), 1.2 / frame.mm)

# %%
nipple = (80., 120.)
fig, axes = plt.subplots(1, 4, figsize=(10, 3.2))
rng = np.random.default_rng(seed)
rays = [strands(rng, frame, nipple, 4, 800, 4.4) for _ in range(3)]
shown = {
    "strands": ridges(rays[0], 0.15),
    "gland, density B": gland(rng, frame, replace(woman, density=0.3), "CC", nipple, 0, rays),
    "gland, density D": gland(rng, frame, replace(woman, density=0.95), "CC", nipple, 0, rays),
    "pectoral muscle": pectoral(rng, frame, woman, "MLO"),
}
for ax, (title, picture) in zip(axes, shown.items()):
    ax.imshow(picture, cmap="gray")
    ax.set_title(title)
    ax.axis("off")

# %% [markdown]
# ## The tissue of a breast
# Fat, gland, septa, muscle and vessels are added up. The presented picture is nearly flat from the chest wall to a few
# millimetres below the skin, because manufacturers equalise the periphery. There the breast gets thinner and darker,
# and the skin itself is a bright line.

# %%
#| export
def tissue(
    rng: np.random.Generator,
    frame: Frame,
    breast: Anatomy,
    view: str,             # CC or MLO
    nipple: tuple,         # x, y in mm
    axis: float,           # direction of the nipple's axis, in radians
    cover: np.ndarray,     # (rows, columns), share of each pixel that the breast covers, 0 to 1
    skin: np.ndarray,      # (rows, columns), distance to the skin, in mm
) -> tuple:                # the picture without lesions and the muscle, both float32 (rows, columns), about 0 to 1
    "Draw fat, gland, septa, muscle, vessels and skin."
    clouds = power_law(rng, (frame.rows, frame.columns), 3.0, largest=30 / frame.mm)
    rays = [strands(rng, frame, (nipple[0] + 14, nipple[1]), rng.uniform(3, 5), 800, 4.4) for _ in range(3)]
    septa = sum(ridges(r + 0.1 * clouds, 0.10) for r in rays)
    septa = septa + 0.6 * ridges(smooth_noise(rng, frame, 4.4, 22) + 0.15 * clouds, 0.10)
    dense = gland(rng, frame, breast, view, nipple, axis, rays) * np.clip(skin / 10, 0, 1)
    muscle = pectoral(rng, frame, breast, view)
    vessels = []
    for _ in range(rng.integers(3, 8)):
        start = rng.uniform(0, 0.35) * nipple[0], nipple[1] + rng.uniform(-0.7, 0.7) * breast.height
        path = curve(rng, start, rng.normal(0, 0.35), rng.uniform(0.5, 0.9) * nipple[0], 0.14)
        vessels.append((path, rng.uniform(0.5, 1.2)))
    thickness = np.sqrt(1 - (1 - np.clip(skin / 22, 0, 1)) ** 2)
    fat = 0.19 + 0.018 * clouds + 0.05 * septa
    picture = fat + dense * (0.48 + 0.04 * clouds + 0.05 * septa)
    brightness = 0.20 + 0.16 * np.clip(1 - frame.y / 130, 0, 1) + 0.012 * clouds + 0.03 * septa
    picture += muscle * brightness * (1 - 0.5 * dense) + 0.07 * draw_curves(frame, vessels)
    if view == "MLO" and rng.random() < 0.4:  # lymph nodes are ovals with a fatty hilum, at the end of the muscle
        for _ in range(rng.integers(1, 3)):
            cx, cy, size = rng.uniform(0.2, 0.5) * breast.depth, rng.uniform(25, 80), rng.uniform(2.5, 4.5)
            u = np.hypot((frame.x - cx) / size, (frame.y - cy) / (1.4 * size))
            picture += 0.16 * expit(8 * (1 - u)) * (1 - 0.8 * np.exp(-3 * u**2))
    if breast.vascular:
        path, width = vessels[0]
        dots = [(path[i:i + 2] + side, 0.3) for side in (-1.1, 1.1)
                for i in range(4, len(path) - 4) if rng.random() < 0.5]
        picture += 0.4 * draw_curves(frame, dots)
    if breast.implant:
        u, v = frame.x / (0.72 * nipple[0]), (frame.y - nipple[1] + 4) / (0.62 * breast.height)
        bag = np.clip((1 - np.hypot(u, v)) * 0.5 * nipple[0] / 1.5, 0, 1)
        picture = picture * (1 - bag) + bag * (0.84 + 0.05 * np.clip(1 - np.hypot(u, v), 0, 1))
    picture = picture * (0.3 + 0.7 * thickness) + 0.05 * np.exp(-((skin - 0.8) / 0.7) ** 2)
    nub = np.exp(-(((frame.x - nipple[0] + 1) / 5) ** 2 + ((frame.y - nipple[1]) / 4.2) ** 2) ** 2)
    return (picture + 0.12 * nub) * cover, muscle

# %% [markdown]
# The same tissue, without and with what surrounds the gland:

# %%
skin, nipple, axis, _ = outline(np.random.default_rng(seed), woman, "MLO", columns * frame.mm)
cover = fill(frame, skin)
depth = cv2.distanceTransform((cover > 0.5).astype(np.uint8), cv2.DIST_L2, 5) * np.float32(frame.mm)
picture, muscle = tissue(np.random.default_rng(seed), frame, woman, "MLO", nipple, axis, cover, depth)
assert picture.shape == muscle.shape == (rows, columns) and not picture[cover == 0].any()
fig, axes = plt.subplots(1, 3, figsize=(8, 3.4))
for ax, (title, shown) in zip(axes, {"coverage": cover, "muscle": muscle, "tissue": picture}.items()):
    ax.imshow(shown, cmap="gray")
    ax.set_title(title)
    ax.axis("off")

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

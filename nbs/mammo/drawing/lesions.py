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
# # Lesions
# > Masses and calcifications, malignant and benign, and the place where they lie.
#
# A cancer is a dense core that pulls its surroundings into *spicules*, or a cluster of fine, irregular
# *micro-calcifications*. Benign masses are round and smooth, benign calcifications few and coarse. The truth of a drawn
# lesion is known to the pixel, because its mask is made from the same shape as its picture.

# %%
#| default_exp mammo.drawing.lesions

# %% tags=["parameters"]
rows, columns = 832, 640   # frame, pixels
seed = 7                   # of the random generator

# %%
#| export
import cv2
import numpy as np
from scipy.special import expit

from mammo_nb.mammo.drawing.anatomy import Anatomy
from mammo_nb.mammo.drawing.texture import Frame, crop_frame, curve, draw_curves, fixed_point

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.mammo.drawing.texture import FIELD, make_frame

# %% [markdown]
# ## Shapes
# Each function returns a shape between 0 and 1. How bright the shape becomes is decided when it is added to a picture.

# %%
#| export
# kind of lesion -> its grey level in a mask
KINDS = {"mass": 255, "calcifications": 224, "benign_mass": 192, "benign_calcifications": 160}

def mass(
    rng: np.random.Generator,
    frame: Frame,
    centre: tuple,         # x, y in mm
    size: float,           # diameter of the core, in mm
    malignant: bool,       # a spiculated, irregular mass; False: a smooth oval
) -> np.ndarray:           # float32 (rows, columns), 0 to 1
    "Draw the shape of a mass."
    dx, dy = frame.x - centre[0], frame.y - centre[1]
    turn = rng.uniform(0, np.pi)
    a, b = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    radius, stretch = size / 2, rng.uniform(1.1, 1.4)
    r = np.hypot(a / stretch, b * stretch ** 0.5) / radius
    if not malignant:
        return np.sqrt(np.clip(1 - r ** 2.4, 0, 1))
    angle = np.arctan2(dy, dx)
    wobble = sum(rng.normal(0, 0.11) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 7))
    core = expit((0.85 - r / (1 + wobble)) * 7)
    spicules = []
    for heading in np.linspace(0, 2 * np.pi, rng.integers(16, 26), endpoint=False):
        heading += rng.normal(0, 0.15)
        start = (centre[0] + 0.3 * radius * np.cos(heading), centre[1] + 0.3 * radius * np.sin(heading))
        spicules.append((curve(rng, start, heading, radius * (0.9 + rng.gamma(2, 0.45)), 0.10), rng.uniform(0.3, 1.1)))
    fade = np.exp(-np.clip(np.hypot(dx, dy) / radius - 1, 0, None) / 0.8)
    return np.maximum(core, 0.75 * fade * draw_curves(frame, spicules))

def calcifications(
    rng: np.random.Generator,
    frame: Frame,
    centre: tuple,         # x, y in mm
    size: float,           # diameter of the cluster, in mm
    malignant: bool,       # many fine, pleomorphic grains; False: a few coarse, round ones
) -> np.ndarray:           # float32 (rows, columns), 0 to 1
    "Draw the shape of a cluster of calcifications."
    canvas = np.zeros((frame.rows, frame.columns), np.uint8)
    count = rng.integers(30, 50) if malignant else rng.integers(1, 4)
    spread = rng.uniform(0.6, 1, 2) * size / 4
    for x, y in rng.normal(0, 1, (count, 2)) * spread + centre:
        grain = np.clip(rng.lognormal(-0.7, 0.35), 0.25, 0.9) if malignant else rng.uniform(0.9, 1.8)  # radius in mm
        form = (grain, grain * rng.uniform(0.3, 0.9)) if malignant else (grain, grain * rng.uniform(0.85, 1))
        level = rng.uniform(120, 255)
        shrink = min(1.0, form[1] / frame.mm)  # a grain smaller than a pixel is drawn fainter
        axes = tuple(max(8, round(f / frame.mm * 16)) for f in form)
        cv2.ellipse(canvas, tuple(fixed_point(frame, (x, y)).tolist()), axes, rng.uniform(0, 180), 0, 360,
                    int(level * shrink), -1, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(canvas, (0, 0), max(0.12 / frame.mm, 0.35)).astype(np.float32) / 255

# %% [markdown]
# ## In a picture
# The centre is searched around the angle of the anatomy, until it lies in the breast and away from muscle and skin. A
# mass can be added to a reduced picture; grains of calcium are too fine for that and are added at full resolution.

# %%
#| export
# kind of lesion -> brightness that its mass adds
GAIN = {"mass": 0.48, "calcifications": 0.27, "benign_mass": 0.26, "benign_calcifications": 0.0}

def place(
    frame: Frame,
    breast: Anatomy,
    view: str,             # CC or MLO
    nipple: tuple,         # x, y in mm
    axis: float,           # direction of the nipple's axis, in radians
    room: np.ndarray,      # (rows, columns), distance to skin and chest wall, in mm; 0 in the muscle
) -> tuple:                # x, y in mm
    "Find the centre of a lesion: at its distance from the nipple, as near to its angle as there is room."
    wanted = breast.angles[view == "MLO"]
    distance = breast.distance * min(breast.depth, nipple[0])
    candidates = wanted * np.linspace(1, -0.6, 24) - 1.2 * axis
    x, y = nipple[0] - distance * np.cos(candidates), nipple[1] + distance * np.sin(candidates)
    column = np.clip((x / frame.mm).astype(int), 0, frame.columns - 1)
    row = np.clip((y / frame.mm).astype(int), 0, frame.rows - 1)
    best = np.argmax(np.minimum(room[row, column], breast.size * 0.75) - 0.01 * np.arange(24))
    return float(x[best]), float(y[best])

def add_mass(
    rng: np.random.Generator,
    frame: Frame,
    picture: np.ndarray,   # float32 (rows, columns), changed in place
    cover: np.ndarray,     # (rows, columns), share of each pixel that the breast covers, 0 to 1
    lesion: str,           # a key of KINDS
    centre: tuple,         # x, y in mm
    size: float,           # diameter, in mm
    conspicuity: float,    # factor of the contrast
) -> np.ndarray:           # uint8 (rows, columns), 1 in the mass
    "Add a mass, or the denser tissue that surrounds malignant calcifications."
    gain = GAIN[lesion] * conspicuity
    near, part = crop_frame(frame, centre, 2.5 * size)
    added = mass(rng, near, centre, size, not lesion.startswith("benign"))
    picture[part] += gain * added * (1 - 0.35 * picture[part]) * cover[part]  # film and display saturate
    mask = np.zeros(cover.shape, np.uint8)
    mask[part] = added > 0.25
    return mask

def add_calcifications(
    rng: np.random.Generator,
    frame: Frame,
    picture: np.ndarray,   # float32 (rows, columns), changed in place
    cover: np.ndarray,     # (rows, columns), share of each pixel that the breast covers, 0 to 1
    lesion: str,           # a key of KINDS
    centre: tuple,         # x, y in mm
    size: float,           # diameter of the cluster, in mm
    conspicuity: float,    # factor of the contrast
) -> np.ndarray:           # uint8 (rows, columns), 1 in the grains and between neighbouring grains
    "Add grains of calcium, which are the brightest structures in a breast."
    near, part = crop_frame(frame, centre, 2 * size)
    added = calcifications(rng, near, centre, size, not lesion.startswith("benign"))
    picture[part] += 0.7 * conspicuity * added * cover[part]
    reach = max(3, round(3 / frame.mm)) | 1
    mask = np.zeros(cover.shape, np.uint8)
    mask[part] = cv2.morphologyEx((added > 0.2).astype(np.uint8), cv2.MORPH_CLOSE,
                                  cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    return mask

# %%
frame, rng = make_frame(rows, columns), np.random.default_rng(seed)
lesions = {
    "mass": mass(rng, frame, (60, 120), 18, True),
    "benign_mass": mass(rng, frame, (60, 120), 14, False),
    "calcifications": calcifications(rng, frame, (60, 120), 16, True),
    "benign_calcifications": calcifications(rng, frame, (60, 120), 16, False),
}
assert set(lesions) == set(KINDS)
fig, axes = plt.subplots(1, 4, figsize=(10, 2.8))
for ax, (kind, picture) in zip(axes, lesions.items()):
    ax.imshow(picture, cmap="gray", extent=(0, columns * frame.mm, FIELD, 0))
    ax.set(title=kind, xlim=(30, 90), ylim=(150, 90))
    ax.axis("off")
    assert picture.max() > 0.5

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

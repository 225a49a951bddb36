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
# # Head
# > The healthy head as a volume: skull and its floor, brain, ventricles, sulci and cisterns, in HU.
#
# The notebooks in this folder draw head CT from a seed. `head` makes the cranium and the brain, `face` what lies below
# and in front of the floor of the skull, `hemorrhage` the five kinds of hemorrhage and what looks like them, and
# `scanners` writes a drawn slice as a DICOM file.
#
# A head is a function of a place: x to the patient's left, y to the back and z to the vertex, in mm. The floor of the
# skull is a landscape of three steps, the fossae. A slice at height z shows brain where the landscape is lower than z,
# and bone where the slice cuts it. The cross that the petrous bones and the sphenoid wings form in low slices follows
# from that.

# %%
#| default_exp ich.drawing.head

# %% tags=["parameters"]
size = 128   # rows and columns of the pictures below
seed = 3     # of the drawn head

# %%
#| export
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

# %%
#| hide
import matplotlib.pyplot as plt

# %% [markdown]
# ## What makes one head
# The numbers that differ between people, and a few volumes of smooth noise. The noise bends contours, and its zero
# lines are the sulci.

# %%
#| export
CELL = (8.0, 5.0, 5.0)     # size of a cell of noise (z, y, x), mm
FLOOR_CELL = 2.5           # of the landscape of the floor, mm
EXTENT = 110.0             # noise and landscape reach from -EXTENT to EXTENT in x and y, mm
BOTTOM = -48.0             # and from BOTTOM up in z, mm
FAR = np.float32(30)       # distance of what is not near a slice, mm

@dataclass(frozen=True)
class Head:
    "The properties of one head."
    width: float           # half the width of the cavity of the skull, mm
    length: float          # half its length, mm
    height: float          # of the vertex inside, above the foramen magnum, mm
    egg: float             # how much narrower the forehead is than the back
    skew: float            # asymmetry of left and right
    bone: float            # thickness of the skull, mm
    scalp: float           # thickness of the scalp, mm
    atrophy: float         # 0: narrow sulci and ventricles; 1: wide ones
    contrast: float        # grey minus white matter, HU
    sinus: float           # size of the frontal sinus, 0: none
    pineal: float          # calcification of the pineal gland, HU; 0: none
    plexus: float          # of the choroid plexus
    ganglia: float         # of the basal ganglia
    floor: np.ndarray      # float32 (88, 88), height of the floor of the skull, mm
    noise: np.ndarray      # float32 (4, 24, 44, 44), smooth noise, standard deviation 1

def _floor(
    rng: np.random.Generator,
) -> np.ndarray:           # float32 (88, 88), mm
    "The landscape of the floor: three fossae, petrous bones, sphenoid wings, sella, clivus and foramen magnum."
    n = int(2 * EXTENT / FLOOR_CELL)
    y, x = (np.mgrid[:n, :n].astype(np.float32) + 0.5) * FLOOR_CELL - EXTENT
    left = x * rng.uniform(0.93, 1.07)
    wide = np.abs(left)
    wing = y + 19 + 0.40 * wide - 0.002 * wide**2              # 0 at the edge of the sphenoid wing
    petrous = y + 9 - 0.46 * wide                              # 0 at the crest of the petrous bone
    step = lambda d, w: 1 / (1 + np.exp(np.clip(d / w, -30, 30)))
    roof = 30 + 14 * np.exp(-((wide - 33) / 15) ** 2 - ((y + 64) / 24) ** 2) + 0.012 * np.clip(wide - 45, 0, 40) ** 2
    front = step(wing, 2.0) * (roof + 3 * step(wide - 3, 1.5) * step(np.abs(y + 62) - 8, 3))
    behind = 1 - step(petrous, 2.5)
    middle = (1 - step(wing, 2.0)) * (1 - behind) * (11 + 0.004 * np.clip(wide - 25, 0, 40) ** 2)
    middle = middle + (1 - step(wing, 2.0)) * (1 - behind) * 16 * step(wide - 15, 2.0)
    hole = np.hypot(x / 15, (y - 32) / 18)
    back = behind * (-3 + 9 * np.clip(hole - 1, 0, 2.5))
    ridge = np.exp(-(petrous / 7.5) ** 2) * (1 - step(wide - 11, 3))
    edge = np.exp(-((wing - 1) / 3.5) ** 2) * (1 - step(wide - 13, 3))
    height = front + middle + back + ridge * (15 - 0.05 * wide) + edge * 5
    height = height + np.exp(-((y - 1) / 4.5) ** 2) * step(wide - 9, 2) * 5                    # dorsum sellae
    height = height - np.exp(-(((y + 9) / 4.5) ** 2 + (wide / 7) ** 2)) * 7                    # sella
    height = height - 120 * step((hole - 1) * 15, 1.5)
    return np.float32(height + gaussian_filter(rng.normal(0, 6, (n, n)), 3))

def draw_head(
    rng: np.random.Generator,
) -> Head:
    "Draw the properties of a head."
    noise = []
    for smooth in (1.0, 1.25, 2.2, 0.7):  # sulci, their second set, contours, texture
        cells = gaussian_filter(rng.normal(0, 1, (24, 44, 44)).astype(np.float32), (1.1 * smooth, smooth, smooth))
        noise.append(cells / cells.std())
    old = rng.beta(2, 2)
    calcified = rng.random(3) < (0.25 + 0.5 * old, 0.2 + 0.5 * old, 0.05 + 0.2 * old)
    pineal, plexus, ganglia = np.where(calcified, rng.uniform(60, 260, 3), 0).tolist()
    return Head(width=rng.normal(67, 2.5), length=rng.normal(84, 3), height=rng.normal(118, 4),
                egg=rng.uniform(0.05, 0.14), skew=rng.normal(0, 0.015), bone=rng.uniform(4.6, 7.4),
                scalp=rng.uniform(3.5, 7), atrophy=old, contrast=rng.uniform(9, 13), sinus=rng.uniform(0, 1),
                pineal=pineal, plexus=plexus, ganglia=ganglia * 0.5, floor=_floor(rng), noise=np.stack(noise))

def sample(
    head: Head,
    which: int,            # 0 and 1: sulci, 2: contours, 3: texture
    x: np.ndarray,         # mm, float32 (rows, columns)
    y: np.ndarray,
    z: float,              # mm
) -> np.ndarray:           # float32 (rows, columns), standard deviation about 1
    "One slice of the noise."
    place = min(max((z - BOTTOM) / CELL[0], 0), 22.999)
    low, share = int(place), np.float32(place % 1)
    slab = head.noise[which, low] * (1 - share) + head.noise[which, low + 1] * share
    return cv2.remap(slab, (x + EXTENT) / CELL[2] - 0.5, (y + EXTENT) / CELL[1] - 0.5, cv2.INTER_CUBIC,
                     borderMode=cv2.BORDER_REFLECT)

# %%
head = draw_head(np.random.default_rng(seed))
fig, axes = plt.subplots(1, 2, figsize=(7, 3))
axes[0].imshow(head.floor, cmap="terrain", vmin=-10, vmax=50)
axes[1].imshow(head.noise[0, 12], cmap="gray");

# %% [markdown]
# ## Shapes
# Everything is made of signed distances in mm, negative inside. An edge is as soft as a pixel is wide.

# %%
#| export
def soft(
    distance: np.ndarray,  # mm, negative inside
    width: float = 2.0,    # of the edge, mm
) -> np.ndarray:           # 1 inside, 0 outside
    "How much of a pixel is inside."
    return np.clip(np.float32(0.5) - distance * np.float32(1 / width), 0, 1)

def ball(
    x: np.ndarray,         # mm
    y: np.ndarray,
    z,                     # mm, array or number
    centre: tuple,         # x, y, z, mm
    radii: tuple,          # mm
    angle: float = 0.0,    # by which it is turned from y towards x, radians
) -> np.ndarray:           # signed distance, mm; nearly right close to the surface
    "An ellipsoid."
    dx, dy, dz = x - np.float32(centre[0]), y - np.float32(centre[1]), (z - centre[2]) / radii[2]
    if angle:
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        dx, dy = c * dx - s * dy, s * dx + c * dy
    return (np.sqrt((dx / radii[0]) ** 2 + (dy / radii[1]) ** 2 + dz**2) - 1) * min(radii[0], radii[1])

@dataclass
class Cut:
    "A slice of the head, with the distances that later drawings need; arrays are float32 (rows, columns)."
    x: np.ndarray          # mm
    y: np.ndarray
    z: np.ndarray
    level: float           # z of the middle, mm
    edge: float            # width of an edge, mm
    depth: np.ndarray      # distance to the inner table of the skull, positive inside, mm
    inner: np.ndarray      # 1 inside the vault
    outer: np.ndarray      # 1 inside the outer table
    skin: np.ndarray       # distance to the skin, negative inside, mm
    thickness: np.ndarray  # of the skull, mm
    above: np.ndarray      # height above the floor of the skull, mm
    contour: np.ndarray    # noise that bends contours
    texture: np.ndarray    # fine noise

def cut_head(
    head: Head,
    x: np.ndarray,         # mm, float32 (rows, columns)
    y: np.ndarray,
    z: np.ndarray,
    level: float,          # z of the middle of the slice, mm
    edge: float,           # width of an edge, mm
) -> Cut:
    "Where a slice cuts skin, skull and the floor of the skull."
    contour, texture = (sample(head, which, x, y, level) for which in (2, 3))
    middle = np.float32(0.38 * head.height)
    rise = np.where(z > middle, (z - middle) / (head.height - middle), (middle - z) / (middle + 38))
    y0 = y + np.float32(2)
    taper = head.egg * np.clip(y0 / head.length, -1.1, 0.7) + head.skew * np.clip(x * y0 / 1500, -1, 1)
    across = x / (head.width * (1 + taper))
    along = y0 / head.length
    round_ = np.sqrt(np.sqrt((across**2 + along**2) ** 2 - np.float32(0.45) * (across * along) ** 2)) + 1e-4
    local = np.hypot(x, y0) / round_                           # radius of the outline in this direction, mm
    scale = lambda extra: np.sqrt(np.clip(1 - np.clip(rise * (head.height - middle) / (head.height - middle + extra),
                                                      0, 1) ** 2.3, 0, 1))
    bent = round_ - np.float32(0.008) * contour
    thickness = head.bone * (1 + 0.13 * contour + 0.5 * np.exp(-((x / 14) ** 2 + ((y - 86) / 20) ** 2)))
    depth = (scale(0) - bent) * local - 3 * np.clip(z - head.height, 0, 9)
    outer = (bent - scale(head.bone)) * local - thickness
    low = np.clip((30 - z) / 50, 0, 1)
    skin = (round_ - scale(head.bone + head.scalp)) * local - thickness - head.scalp * (
        1 + 0.2 * contour + 1.6 * low * np.clip(y / 60, -0.4, 1))
    above = z - cv2.remap(head.floor, (x + EXTENT) / FLOOR_CELL - 0.5, (y + EXTENT) / FLOOR_CELL - 0.5,
                          cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return Cut(x, y, z, level, edge, depth, soft(-depth, edge), soft(outer, edge), skin, thickness, above, contour,
               texture)

# %% [markdown]
# ## Brain
# Grey matter lies along the surface and along the sulci, and in the nuclei. The falx and the tentorium are a little
# brighter, and what is left is CSF.

# %%
#| export
@dataclass
class Brain:
    "What is inside the skull; arrays are float32 (rows, columns)."
    hu: np.ndarray
    sulci: np.ndarray       # share of a pixel that is a sulcus, a fissure or a cistern
    ventricles: np.ndarray  # share that is a ventricle

def _ventricles(
    head: Head,
    c: Cut,
) -> np.ndarray:            # signed distance, mm
    "Lateral ventricles with their horns, the third and the fourth ventricle."
    grow = 0.75 + 0.75 * head.atrophy
    wide = np.abs(c.x + np.float32(0.6) * c.contour)
    shapes = (
        ((10, -28, 57), (4.4 * grow, 14, 13), 0.30),             # frontal horn
        ((13, 2, 68), (5.0 * grow, 27, 8 + 2 * grow), -0.12),    # body
        ((24, 30, 58), (5.6 * grow, 14, 14), -0.30),             # atrium
        ((25, 49, 52), (3.2 * grow, 17, 8), 0.10),               # occipital horn
        ((33, 4, 37), (2.0 * grow, 15, 6), -0.35),               # temporal horn
        ((0, -2, 48), (2.1 * grow, 13, 11), 0.0),                # third
        ((0, 33, 21), (5.2 + 2.5 * grow, 4.8, 9), 0.0),          # fourth
    )
    near = [ball(wide, c.y, c.z, *shape) for shape in shapes if abs(c.level - shape[0][2]) < shape[1][2] + 8]
    return np.minimum.reduce(near) if near else np.full(wide.shape, FAR)

def _cisterns(
    head: Head,
    c: Cut,
) -> np.ndarray:            # signed distance, mm
    "Basal cisterns, Sylvian fissures and the fissure between the hemispheres."
    grow = 0.7 + 0.7 * head.atrophy
    wide = np.abs(c.x)
    bend = c.contour
    near = []
    if 20 < c.level < 50:
        star = np.hypot(c.x, c.y + 6) * (1 + 0.28 * np.cos(5 * np.arctan2(c.x, -(c.y + 6)))) - 10.5
        near.append(star + bend + np.abs(c.z - 33) * 1.2)
        smile = np.maximum(np.abs(np.hypot(c.x, (c.y - 12) * 1.05) - 17 - bend) - 1.5 * grow, 17 - c.y)
        near.append(smile + np.clip(np.abs(c.z - 38) - 4, 0, 99))
    if c.level < 38:
        near.append(ball(c.x, c.y, c.z, (0, 3, 20), (13, 2.6, 12)))
    if 22 < c.level < 78:
        fine = 2.2 * c.texture + 2.5 * bend
        slope = c.y + 4 + np.float32(0.75) * (wide - 44) + fine
        sylvius = np.abs(slope) - np.float32(1.2) * grow - np.float32(0.06) * np.clip(wide - 38, 0, 30)
        sylvius = np.maximum(sylvius, np.abs(wide - 49) - 15) + np.clip(np.abs(c.z - 46) - 11, 0, 99) * 0.4
        insula = np.maximum(np.abs(wide - 38 - 0.7 * fine) - 1.0 * grow, np.abs(c.y - 4) - 11)
        near += [sylvius, insula + np.clip(np.abs(c.z - 52) - 9, 0, 99) * 0.4]
    callosum = np.hypot((c.y - 2) / 52, (c.z - 62) / 22)
    between = wide - 0.7 * grow - 0.5 * np.clip(bend, -1, 2) + np.clip(1.05 - callosum, 0, 1) * 40
    between = between + np.clip(44 - c.z + 0.9 * np.clip(-c.y - 18, 0, 12), 0, 60) * 0.3
    return np.minimum.reduce([*near, between])

def draw_brain(
    head: Head,
    c: Cut,
) -> Brain:
    "Fill the skull."
    e = c.edge
    wide = np.abs(c.x)
    vent = _ventricles(head, c)
    ventricles = soft(vent, e)
    deep = np.minimum(c.depth, c.above)                             # below the surface of the brain, mm
    cerebellum = soft(np.maximum(c.z - 36 + 0.09 * wide, 12 - c.y + 0.1 * wide), 4)
    fold = np.minimum(np.abs(sample(head, 0, c.x, c.y, c.level)) * 3.4,
                      np.abs(sample(head, 1, c.x, c.y, c.level)) * 4.6)  # distance to a sulcus, roughly, mm
    fold = fold / (1 + 0.6 * cerebellum)
    width = np.float32(0.25 + 1.0 * head.atrophy) * (1 + 0.3 * c.contour)
    sulcus = fold - np.clip(width * (1.35 - deep / 15), -2, 3)
    sulci = np.maximum(soft(sulcus, 1.4) * np.float32(0.9), soft(deep - 0.6 - 1.6 * head.atrophy, e) * 0.8)
    sulci = np.maximum(sulci, soft(_cisterns(head, c), e))
    sulci = np.maximum(sulci * (1 - 0.6 * cerebellum), soft(np.abs(c.z + 8) - 9, 3) * soft(deep - 4, 2))
    ribbon = np.maximum(soft(deep - 4.0, 4.0), soft(fold - 1.2 - 0.09 * np.clip(16 - deep, -12, 9), 2.5))
    grey = ribbon
    if 34 < c.level < 74:
        nuclei = [ball(wide, c.y, c.z, *shape) for shape in (
            ((15, -20, 58), (4.5, 8, 12), 0.25), ((25, -8, 52), (6, 14, 11), -0.25), ((10, 8, 52), (7.5, 11, 9), -0.3))]
        grey = np.maximum(grey, soft(np.minimum.reduce(nuclei), 3.0) * 0.9)
    grey = np.maximum(grey, cerebellum * 0.75)
    hu = 26 + head.contrast * grey + 0.9 * c.texture - 2.5 * soft(18 - deep, 16)
    hu = hu - 3.0 * soft(np.abs(vent) - 3, 6) * head.atrophy
    hu = hu + (7 - hu) * np.maximum(sulci, ventricles)
    sheet = soft(wide - 0.6 - 0.3 * c.contour, e) * soft(46 - c.z + np.clip(20 - np.abs(c.y + 4), 0, 20), 8)
    sheet = sheet * soft(1.25 - np.hypot((c.y - 2) / 52, (c.z - 58) / 26), 0.2)
    tent = soft(np.abs(c.y - 24 - 0.5 * wide + 0.8 * (c.z - 38)) - 0.6, e) * soft(np.abs(c.z - 34) - 8, 4)
    hu = hu + 24 * np.maximum(sheet, tent * soft(9 - wide, 3) * 0.35) * soft(0.5 - c.depth, 1)
    sinus = np.hypot(c.x, c.depth - 1) - 4.5
    hu = hu + (52 - hu) * soft(sinus, 3) * soft(-c.y, 5)                  # sagittal sinus at the back
    hu = hu + 6 * np.exp(np.clip(-c.depth / 4, -9, 0))                    # capping below the skull
    for strength, at, radii in ((head.pineal, (0, 20, 48), (3.0, 2.6, 4)), (head.plexus, (25, 33, 58), (3.2, 5, 6)),
                                (head.ganglia, (21, -8, 52), (3.0, 6, 5))):
        if strength and abs(c.level - at[2]) < 12:
            hu = hu + strength * soft(ball(wide, c.y, c.z, at, radii) + 0.6 * c.texture, e)
    return Brain(hu, sulci, ventricles)

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

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
# # Body
# > The trunk as a volume: skin, fat, muscle, spine, ribs, pelvis, diaphragm, lungs and the large vessels, in HU.
#
# The notebooks in this folder draw abdominal CT from a seed. `body` makes the trunk, `organs` what lies in it,
# `injuries` what a trauma does to it, and `scanners` writes a drawn slice as a DICOM file.
#
# A body is a function of a place: x to the patient's left, y to the back and z to the head, in mm. The origin is in
# front of the second lumbar vertebra. Two series of a patient are two grids in the same body.

# %%
#| default_exp trauma.drawing.body

# %% tags=["parameters"]
size = 96    # rows and columns of the pictures below
seed = 3     # of the drawn body

# %%
#| export
from dataclasses import dataclass, replace

import numpy as np

# %%
#| hide
import matplotlib.pyplot as plt

# %% [markdown]
# ## A grid
# Slices are axial, so a place is three short arrays, and much of a body needs two of them only. A long series is drawn
# in slabs of a few slices.

# %%
#| export
@dataclass(frozen=True)
class Grid:
    "A slab of axial slices."
    x: np.ndarray          # float32 (1, 1, columns), mm
    y: np.ndarray          # float32 (1, rows, 1), mm
    z: np.ndarray          # float32 (slices, 1, 1), mm
    edge: float            # width of an edge, mm

    @classmethod
    def of(cls,
        first: tuple,      # x, y of the first pixel, mm
        spacing: float,    # of pixels, mm
        size: int,         # rows and columns
        levels,            # z of the slices, mm
    ):
        "The grid of some slices."
        steps = np.arange(size, dtype=np.float32) * np.float32(spacing)
        x, y = np.float32(first[0]) + steps, np.float32(first[1]) + steps
        return cls(x[None, None], y[None, :, None], np.asarray(levels, np.float32)[:, None, None],
                   max(1.5, 1.1 * spacing))

# %% [markdown]
# ## Shapes
# Everything is made of signed distances in mm, negative inside. An edge is as soft as a pixel is wide.

# %%
#| export
def soft(
    distance,              # mm, negative inside
    width: float,          # of the edge, mm
) -> np.ndarray:           # 1 inside, 0 outside
    "How much of a pixel is inside."
    return np.clip(np.float32(0.5) - distance * np.float32(1 / width), 0, 1)

def ball(
    g: Grid,
    centre: tuple,         # x, y, z, mm
    radii: tuple,          # mm
) -> np.ndarray:           # signed distance, mm; nearly right close to the surface
    "An ellipsoid."
    parts = [((at - np.float32(c)) * np.float32(1 / r)) ** 2 for at, c, r in zip((g.x, g.y, g.z), centre, radii)]
    return (np.sqrt(sum(parts)) - 1) * np.float32(min(radii))

def ellipse(
    g: Grid,
    x: float,              # of the centre, mm
    y: float,
    radii: tuple,          # along x and y, mm
) -> np.ndarray:           # signed distance, mm, float32 (1, rows, columns)
    "A column that runs along the body."
    return (np.hypot((g.x - np.float32(x)) / radii[0], (g.y - np.float32(y)) / radii[1]) - 1) * np.float32(min(radii))

def merge(
    a: np.ndarray,         # signed distances, mm
    b: np.ndarray,
    over: float,           # width of the seam, mm
) -> np.ndarray:
    "Two shapes joined with a smooth seam."
    h = np.clip(0.5 + 0.5 * (b - a) / np.float32(over), 0, 1)
    return b + (a - b) * h - np.float32(over) * h * (1 - h)

# %% [markdown]
# ## Noise
# Smooth noise bends contours, mottles organs and strands the fat. It is a coarse lattice of random numbers under cubic
# splines, and a spline on a grid is three small matrix products.

# %%
#| export
EXTENT = (240.0, 170.0, 260.0)      # noise reaches from -EXTENT to EXTENT in x, y and z, mm
CELLS = {"contour": 30.0, "texture": 9.0}   # size of a cell, mm

def _splines(
    at: np.ndarray,        # places, mm
    extent: float,         # mm
    cell: float,           # mm
) -> np.ndarray:           # float32 (places, nodes)
    "Weights of the nodes of a lattice at some places."
    d = np.abs((at.ravel()[:, None] + extent) / cell - np.arange(int(2 * extent / cell) + 2, dtype=np.float32))
    return np.where(d < 1, 2 / 3 - d**2 + d**3 / 2, np.clip(2 - d, 0, 1) ** 3 / 6).astype(np.float32)

def draw_noise(
    rng: np.random.Generator,
    cell: float,           # mm
) -> np.ndarray:           # float32 (nodes along z, y, x)
    "The lattice of a noise."
    return rng.standard_normal([int(2 * e / cell) + 2 for e in EXTENT[::-1]], dtype=np.float32)

def noise(
    lattice: np.ndarray,   # from `draw_noise`
    cell: float,           # mm
    g: Grid,
) -> np.ndarray:           # float32 (slices, rows, columns), standard deviation about 1
    "A noise on a grid."
    wx, wy, wz = (_splines(at, e, cell) for at, e in zip((g.x, g.y, g.z), EXTENT))
    return wy @ np.tensordot(wz, lattice, 1) @ wx.T * np.float32(3)

# %% [markdown]
# ## What makes one body

# %%
#| export
@dataclass(frozen=True)
class Body:
    "The properties of one body."
    width: float           # half the width of the trunk, mm
    depth: float           # half its depth, mm
    fat: float             # thickness of the fat below the skin, mm
    wall: float            # thickness of the muscles of the wall, mm
    dome: float            # height of the diaphragm, mm
    disc: float            # distance of the vertebrae, mm
    shifts: np.ndarray     # (8, 3), by which the organs are displaced, mm
    sizes: np.ndarray      # (8,), factors of the organs' sizes
    loops: np.ndarray      # (6,), phases of the bowel's loops, radians
    contrast: bool         # whether the bowel has oral contrast
    cysts: tuple           # (organ, direction, radius) of harmless cysts
    contour: np.ndarray    # lattices of noise
    texture: np.ndarray

def draw_body(
    rng: np.random.Generator,
) -> Body:
    "Draw the properties of a body."
    big = rng.normal(1, 0.07)
    cysts = tuple((str(rng.choice(("liver", "left_kidney", "right_kidney"))), tuple(rng.normal(0, 1, 3)),
                   rng.uniform(6, 13)) for _ in range(rng.poisson(0.6)))
    return Body(width=160 * big, depth=108 * big * rng.normal(1, 0.05), fat=rng.uniform(10, 30),
                wall=rng.uniform(10, 15), dome=rng.normal(122, 6), disc=rng.normal(34, 1.5),
                shifts=rng.normal(0, 1, (8, 3)) * (5, 4, 7), sizes=rng.normal(1, 0.07, 8).clip(0.85, 1.15),
                loops=rng.uniform(0, 2 * np.pi, 6), contrast=bool(rng.random() < 0.15), cysts=cysts,
                contour=draw_noise(rng, CELLS["contour"]), texture=draw_noise(rng, CELLS["texture"]))

# %% [markdown]
# ## The trunk
# The outline is a superellipse. The cavity is what skin, fat and muscle leave, and the diaphragm closes it with two
# domes. In front of the arterial phase the aorta is brightest; in the portal venous phase the veins have caught up.

# %%
#| export
AIR, LUNG, FAT, MUSCLE = -1000.0, -840.0, -100.0, 58.0   # HU
SPINE = 0.45   # y of the middle of a vertebra, in halves of the trunk's depth

@dataclass(frozen=True)
class Phase:
    "HU of vessels and organs at one time after the injection of contrast."
    name: str
    aorta: float
    vein: float
    liver: float
    spleen: float
    cortex: float          # of the kidneys
    medulla: float
    bowel: float           # its wall
    mottle: float          # of the spleen

PHASES = (Phase("portal venous", 165, 155, 112, 122, 185, 170, 88, 0),
          Phase("arterial", 320, 75, 84, 125, 205, 85, 98, 22))

def draw_phase(
    rng: np.random.Generator,
    phase: Phase,          # one of PHASES
) -> Phase:
    "A phase as one patient shows it: no two are timed alike."
    early = float(rng.normal(1, 0.07))
    even = {name: getattr(phase, name) * float(rng.normal(1, 0.04))
            for name in ("liver", "spleen", "cortex", "medulla", "bowel")}
    return replace(phase, aorta=phase.aorta * early, vein=phase.vein * (2 - early), **even)

@dataclass
class Canvas:
    "A slab that is being drawn."
    g: Grid
    hu: np.ndarray         # float32 (slices, rows, columns)
    contour: np.ndarray    # noise that bends contours, standard deviation 1
    texture: np.ndarray    # fine noise
    skin: np.ndarray       # signed distance to the skin, mm, float32 (1, rows, columns)
    inner: np.ndarray      # to the inner side of the wall
    dome: np.ndarray       # height of the diaphragm, mm, float32 (1, rows, columns)
    aorta: np.ndarray | None = None  # signed distance to the aorta, mm

    def paint(self,
        value,             # HU, number or array
        distance,          # signed distance, mm
        share: float = 1,  # how much of it covers what is there
    ):
        "Lay a shape over the picture."
        self.hu += (value - self.hu) * (soft(distance, self.g.edge) * np.float32(share))

def _bones(
    body: Body,
    c: Canvas,
):
    "Spine, ribs and pelvis."
    g = c.g
    back = SPINE * body.depth
    along = np.abs((g.z + 400) % np.float32(body.disc) - np.float32(body.disc / 2))    # 0 in the middle of a vertebra
    waist = 21 + 0.018 * along**2
    d = (np.hypot(g.x / 1.2, g.y - back) - waist)
    arch = np.abs(np.hypot(g.x, g.y - back - 31) - 11) - 4
    process = np.maximum(np.abs(g.x) - 3.5, np.abs(g.y - back - 46) - 10)
    wing = np.maximum(np.abs(g.y - back - 25) - 4, np.abs(g.x) - 40) + np.clip(along - 5, 0, 20)
    for side in (-1, 1):
        c.paint(MUSCLE, np.maximum(ellipse(g, side * 40, back + 34, (32, 24)), c.skin + 5))
    grow = np.clip(1 - g.z / 120, 0, 1.25) * 18
    for side in (-1, 1):
        c.paint(MUSCLE + 4, np.hypot(g.x - side * 40, g.y - back - 4) - grow)           # psoas
    c.paint(280, np.maximum(np.minimum(np.minimum(arch, process), wing) + np.clip(along - 12, 0, 9), c.skin + 6))
    c.paint(190 + 45 * c.texture, np.maximum(d, along - 13.5))
    c.paint(520, np.maximum(np.abs(d + 1.5) - 1.5, along - 13.5))
    c.paint(85, np.maximum(d, 13.5 - along))                                            # discs
    c.paint(12, np.hypot(g.x, g.y - back - 31) - 8)
    around = np.arctan2(np.abs(g.x), g.y)                                               # 0 at the back
    lean = np.abs((g.z + 400 + 60 * around) % 30 - 15)
    rib = np.hypot(c.inner - 5, np.clip(lean - 1, 0, 15)) - 4.5
    c.paint(420, np.maximum(rib, 20 - g.z - 30 * np.clip(2.2 - around, -1, 1)))
    wide = np.float32(body.width / 160)
    bowl = np.hypot((np.abs(g.x) - 28 * wide) / 1.05, g.y - 8) - (64 + 0.26 * (g.z + 190)) * wide
    c.paint(MUSCLE + 5 * c.texture, np.maximum(np.maximum(-bowl, c.inner), g.z + 112 + 0.5 * g.y))
    pelvis = np.maximum(np.maximum(np.abs(bowl) - 5, g.z + 104 - 0.25 * np.abs(g.x)), 52 * wide - np.abs(g.x))
    c.paint(330 + 60 * c.texture, np.maximum(np.maximum(pelvis, -g.y - 42), c.skin + 8))

def draw_trunk(
    body: Body,
    g: Grid,
    phase: Phase,
) -> Canvas:
    "Everything but the organs."
    r = (np.abs(g.x / np.float32(body.width)) ** 2.4 + np.abs(g.y / np.float32(body.depth)) ** 2.4) ** (1 / 2.4) + 1e-3
    skin = (r - 1) * (np.hypot(g.x, g.y) + np.float32(0.1)) / r
    fat = body.fat * (1 + 0.35 * np.clip(g.y / body.depth, -1, 1))
    inner = skin + fat + body.wall
    dome = np.float32(body.dome) - 0.006 * np.minimum((g.x + 72) ** 2, (g.x - 78) ** 2 + 900) - 0.004 * (g.y + 15) ** 2
    shape = (len(g.z), g.y.size, g.x.size)
    c = Canvas(g, np.full(shape, AIR, np.float32), noise(body.contour, CELLS["contour"], g),
               noise(body.texture, CELLS["texture"], g), skin, inner, dome)
    c.paint(20, skin)
    c.paint(FAT + 4 * c.texture, skin + 2.5)
    c.paint(MUSCLE + 5 * c.texture, inner - body.wall + 1.5 * c.contour)
    c.paint(FAT + 7 * np.clip(c.texture, 0, 3), inner + c.contour)
    lung = np.maximum(inner + 2, dome - g.z)
    c.paint(LUNG + 25 * c.texture, lung)
    c.paint(MUSCLE, np.maximum(ellipse(g, 4, 0.42 * body.depth, (34, 40)), dome - g.z))      # mediastinum
    c.paint(phase.aorta * 0.8, np.maximum(ball(g, (25, -35, 165), (62, 48, 62)), inner))     # heart
    _bones(body, c)
    back = SPINE * body.depth
    split = np.clip(-(g.z + 85), 0, 100) * 0.35                                         # the bifurcation
    thin = 0.1 * np.minimum(split, 30)
    tube = lambda x, y, wide: np.hypot((np.abs(g.x - x) - split) / wide, g.y - back + y)
    c.aorta = tube(6, 34 - 0.3 * split, 1) - 10 + thin
    c.paint(phase.aorta, c.aorta)
    c.paint(phase.vein, tube(-22, 32 - 0.45 * split, 1.25) - 9.5 + thin / 2)
    return c

# %%
body = draw_body(np.random.default_rng(seed))
grid = Grid.of((-180, -180), 360 / size, size, np.linspace(-190, 170, 10))
c = draw_trunk(body, grid, PHASES[0])
fig, axes = plt.subplots(2, 5, figsize=(10, 4.2), facecolor="black")
for ax, z, hu in zip(axes.flat, grid.z.ravel(), c.hu):
    ax.imshow(hu, cmap="gray", vmin=-150, vmax=250)
    ax.set_title(f"{z:.0f} mm", color="grey", fontsize=8)
    ax.axis("off")
assert 0.8 < c.texture.std() < 1.2 and np.median(c.hu[:, 0, 0]) == AIR
fig.tight_layout(pad=0.1)

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

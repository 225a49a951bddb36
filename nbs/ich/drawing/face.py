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
# # Face
# > What lies below and in front of the brain: orbits, air sinuses, petrous bones, muscles, the first vertebra.
#
# A third of the slices of a head series show little brain. They must be there, since a model has to learn that bright
# bone and dark air next to brain mean nothing.

# %%
#| default_exp ich.drawing.face

# %% tags=["parameters"]
size = 128   # rows and columns of the pictures below
seed = 3     # of the drawn head

# %%
#| export
import numpy as np

from mammo_nb.ich.drawing.head import Brain, Cut, Head, ball, cut_head, draw_brain, draw_head, sample, soft

# %%
#| hide
import matplotlib.pyplot as plt

# %% [markdown]
# ## Tissue by tissue
# Each tissue is laid over what is there already. A shape that lies entirely above or below the slice is left out.

# %%
#| export
AIR, FAT, MUSCLE = -1000.0, -95.0, 52.0   # HU

def over(
    hu: np.ndarray,     # float32 (rows, columns), changed in place
    value,              # HU, number or array
    share: np.ndarray,  # of each pixel that is covered, 0 to 1
):
    "Lay a tissue over a picture."
    hu += (value - hu) * share

def _outline(
    c: Cut,
) -> np.ndarray:        # signed distance to the skin, mm
    "Skin of head, face and neck."
    wide = np.abs(c.x)
    skin = c.skin
    if c.level < 45:
        low = np.float32(min(max((40 - c.level) / 45, 0), 1))
        face = ball(c.x, c.y, c.z, (0, -38, 0), (62 - 4 * low, 62 - 4 * low, 62))
        neck = ball(c.x, c.y, c.z, (0, 24, -40), (66, 58, 70))
        nose = np.maximum(ball(wide, c.y, c.z, (0, -96, -8), (9 + 6 * low, 19, 24)), -c.y - 122)
        skin = np.minimum.reduce([skin + 30 * low * soft(c.y + 20, 60), face, neck, nose])
    if -12 < c.level < 34:  # ears
        turn = ball(wide, c.y, c.z, (79, 22, 12), (5, 14, 20), -0.5)
        skin = np.minimum(skin, np.abs(turn + 1) - 2.2)
    return skin

def _orbits(
    c: Cut,
    hu: np.ndarray,     # changed in place
):
    "Orbital fat in a bony cone, eyes with lenses, the muscles and the optic nerve."
    wide, e = np.abs(c.x), c.edge
    roof = np.maximum(np.maximum(c.above + 4, np.abs(wide - 31) - 16), np.abs(c.y + 64) - 22)
    over(hu, FAT + 6 * c.texture, soft(roof, e) * soft(20 - c.z, 6))
    along = np.clip((c.y + 80) / 46, 0, 1)
    middle = 33 - 18 * along
    around = np.hypot(wide - middle, c.z - 22) - (19 - 14 * along)
    around = np.maximum(np.maximum(around, c.y + 34), -c.y - 86 + 0.25 * np.clip(wide - 30, 0, 99))
    over(hu, 800, soft(np.abs(around - 1.0) - 1.1, e) * soft(-c.y - 82 + 0.35 * wide, e))
    over(hu, FAT + 6 * c.texture, soft(around, e))
    nerve = np.hypot(wide - middle + 1, c.z - 22)
    muscle = np.abs(np.abs(nerve - (13.5 - 11 * along)) - 0.5) - 0.8
    over(hu, 45, soft(np.maximum(muscle, -c.y - 72), e) * soft(around, e) * soft(np.abs(c.z - 22) - 6, 4))
    over(hu, 38, soft(np.maximum(np.maximum(nerve - 2.0, -c.y - 64), c.y + 34), e))
    eye = ball(wide, c.y, c.z, (32, -75, 22), (12, 12.5, 12))
    over(hu, 50, soft(eye, e))
    over(hu, 12, soft(eye + 1.6, e))
    over(hu, 75, soft(ball(wide, c.y, c.z, (32, -83.5, 22), (4.5, 2.2, 4.5)), e))

def _cells(
    c: Cut,
    hu: np.ndarray,       # changed in place
    distance: np.ndarray, # signed distance of the cavity, mm
    walls: np.ndarray,    # noise whose zero lines are walls
    wall: float,          # thickness of a wall in units of the noise
    bone: float,          # HU of the walls
):
    "A bony cavity with cells of air."
    over(hu, bone, soft(np.abs(distance) - 1.0, c.edge))
    over(hu, np.where(np.abs(walls) < wall, np.float32(0.4 * bone), np.float32(AIR + 20)), soft(distance, c.edge))

def _front(
    head: Head,
    c: Cut,
    hu: np.ndarray,     # changed in place
):
    "Nose, its sinuses, cheek bones, jaw."
    wide, e = np.abs(c.x), c.edge
    walls = sample(head, 0, c.x * 1.6, c.y * 1.6, c.level)
    if c.level < 16:
        bend = c.y + 92 - 0.021 * wide**2 * (1 + 0.2 * c.contour)
        arch = np.maximum(np.abs(bend - 6) - 2.2, np.abs(wide - 46) - 20)
        over(hu, 900, soft(arch + np.clip(np.abs(c.z - 2) - 9, 0, 99) * 0.4, e))
        jaw = ball(wide, c.y, c.z, (50, -20, -25), (4.5, 10 + 0.1 * c.level, 26), 0.25)
        over(hu, 1000, soft(jaw, e))
        over(hu, 450, soft(jaw + 2.4, e))
    if c.level < 14:
        maxilla = ball(wide, c.y, c.z, (28, -62, -10), (13, 18, 21)) + 1.5 * c.contour
        _cells(c, hu, maxilla, np.float32(9), 0.1, 850)
        nasal = np.maximum(wide - 13, np.abs(c.y + 66) - 30) + np.clip(c.z - 6, 0, 99)
        _cells(c, hu, nasal, walls, 0.34, 180)
        over(hu, 500, soft(wide - 0.5 - 0.4 * np.abs(c.contour), e) * soft(nasal, e))
        throat = ball(wide, c.y, c.z, (0, -22, -22), (12, 8, 20))
        over(hu, AIR, soft(throat + 2 * c.contour, e))
    if 2 < c.level < 42:
        ethmoid = np.maximum(np.maximum(wide - 11.5, np.abs(c.y + 60) - 22), np.abs(c.z - 20) - 16)
        _cells(c, hu, ethmoid, walls, 0.22, 450)
        sphenoid = ball(wide, c.y, c.z, (7, -26, 15), (8, 10, 8))
        _cells(c, hu, sphenoid, np.float32(9), 0.1, 700)
        bridge = np.maximum(np.abs(c.y + 92 - 0.02 * wide**2) - 2.5, wide - 10)
        over(hu, 900, soft(bridge, e))
    if -8 < c.level < 44:
        _orbits(c, hu)

def _back(
    head: Head,
    c: Cut,
    hu: np.ndarray,     # changed in place
):
    "Mastoid cells, the ear canal, the first vertebra with the dens, the cord."
    wide, e = np.abs(c.x), c.edge
    if -14 < c.level < 36:
        walls = sample(head, 1, c.x * 2.2, c.y * 2.2, c.level * 2)
        mastoid = ball(wide, c.y, c.z, (59, 25, 8), (8, 13, 20), -0.5)
        over(hu, 800, soft(mastoid - 2.5, e))
        over(hu, np.where(np.abs(walls) < 0.55, np.float32(700), np.float32(-650)), soft(mastoid + 1.0, e))
        canal = ball(wide, c.y, c.z, (66, 10, 6), (13, 3.2, 4), 0.15)
        over(hu, AIR, soft(canal, e))
        inner = ball(wide, c.y, c.z, (38, 10, 17), (9, 5, 7), -0.45)
        over(hu, 1500, soft(inner, e))
        over(hu, 100, soft(np.abs(ball(wide, c.y, c.z, (38, 10, 17), (4, 3, 5), -0.45)) - 0.8, e))
    if c.level < -4:
        ring = np.hypot(c.x / 1.25, c.y - 28) - 17
        ring = np.abs(ring - 2.5) - 2.6 - 2.2 * np.exp(-((c.y - 22) / 9) ** 2)
        over(hu, 900, soft(ring + np.clip(np.abs(c.z + 26) - 11, 0, 99) * 0.5, e))
        over(hu, 600, soft(ball(wide, c.y, c.z, (21, 18, -16), (8, 10, 12)), e))
        dens = ball(c.x, c.y, c.z, (0, 14, -28), (5.5, 5.5, 17))
        over(hu, 950, soft(dens, e))
        canal = ball(c.x, c.y, c.z, (0, 32, -20), (15, 12, 60))
        over(hu, 10, soft(canal, e))
        over(hu, 36, soft(ball(c.x, c.y, c.z, (0, 31, -20), (8, 7, 70)), e))

# %% [markdown]
# ## The whole slice
# First skin, fat and muscle, then the face, then the bone of vault and floor, at last the brain.

# %%
#| export
def draw_tissue(
    head: Head,
    c: Cut,
) -> tuple[np.ndarray, Brain, np.ndarray]:  # HU float32 (rows, columns), the brain, and where it is, 0 to 1
    "One slice of a healthy head, without noise."
    e = c.edge
    skin = _outline(c)
    hu = np.full(c.x.shape, AIR, np.float32)
    inside = soft(skin, e)
    muscles = sample(head, 1, c.x * 1.3, c.y * 1.3, c.level)
    fleshy = np.clip((34 - c.level) / 24, 0.12, 1)
    flesh = np.where(np.abs(muscles) < 0.85 * fleshy, np.float32(MUSCLE), np.float32(FAT + 15))
    temporal = soft(np.hypot((np.abs(c.x) - head.width - 8) / 9, (c.y + 28) / 26) * 9 - 9, 3) * soft(c.z - 62, 12)
    flesh = flesh + (MUSCLE - flesh) * np.maximum(temporal, soft(np.abs(skin + 1.2) - 1.2, e))
    over(hu, flesh + 8 * c.texture, inside)
    if c.level < 44:
        _front(head, c, hu)
    vault = c.outer * soft(-c.above - 9 + 1.5 * c.contour, 4) * soft(c.depth - 1, e)
    share = np.clip(c.depth / -c.thickness, 0, 1)                           # 0 at the inner, 1 at the outer table
    diploe = np.exp(-((share - 0.5) / 0.24) ** 2) * np.clip(c.thickness / 6, 0.3, 1.2)
    seam = soft(np.abs(c.y + 24 + 0.30 * (c.z - 60) - 2.5 * c.texture) - 0.7, e) * soft(55 - c.z, 8)  # coronal suture
    bone = 1280 - 520 * diploe + 50 * c.texture - 500 * seam
    over(hu, bone, vault)
    if c.level < 52:
        thin = 4.5 + 1.5 * c.contour
        under = soft(np.abs(c.above + thin / 2) - thin / 2, e) * soft(-c.depth - 3, e)
        over(hu, 850 + 90 * c.texture, under)
        solid = soft(c.above, e) * soft(-c.above - 8 - 14 * np.exp(-((c.y - 6) / 14) ** 2), 6) * soft(-c.depth - 2, e)
        solid = solid * soft(-c.y - 10 + 0.1 * np.abs(c.x), 6) * (1 - soft(np.abs(c.x) - 4, 6) * (c.y > 20))
        over(hu, 620 + 260 * c.texture, solid * 0.9)
        if head.sinus > 0.2 and 30 < c.level:
            frontal = ball(np.abs(c.x), c.y, c.z, (9, 1 - head.length, 44), (13 * head.sinus, 4.0, 11 * head.sinus))
            over(hu, AIR, soft(frontal, e))
    if c.level < 40:
        _back(head, c, hu)
    brain = draw_brain(head, c)
    room = soft(-c.depth, e) * soft(-c.above, e)
    over(hu, brain.hu, room)
    return hu, brain, room

# %%
head = draw_head(np.random.default_rng(seed))
y, x = np.mgrid[:size, :size].astype(np.float32) * (230 / size) - 115
fig, axes = plt.subplots(3, 7, figsize=(12, 5.4), facecolor="black")
for ax, level in zip(axes.T.flat, np.linspace(-28, 122, 21)):
    hu = draw_tissue(head, cut_head(head, x, y, np.full_like(x, level), float(level), 2.0))[0]
    assert hu.dtype == np.float32 and hu.min() > -1100 and hu.max() < 2500
    ax.imshow(hu, cmap="gray", vmin=0, vmax=80)
    ax.axis("off")
fig.tight_layout(pad=0.1)

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

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
# # Organs
# > Liver, spleen, kidneys and bowel with their labels, and what lies between them without one.
#
# Each organ is a signed distance that starts as one or two ellipsoids, gives way to the wall, the diaphragm and its
# neighbours, and is bent by noise. Vessels, ducts, cysts, contents of the bowel and the mottled spleen of the arterial
# phase are there because they look like injuries and are none.

# %%
#| default_exp trauma.drawing.organs

# %% tags=["parameters"]
size = 96    # rows and columns of the pictures below
seed = 3     # of the drawn body

# %%
#| export
from dataclasses import dataclass

import numpy as np

from mammo_nb.trauma.drawing.body import AIR, FAT, SPINE, Body, Canvas, Grid, Phase, ball, draw_trunk, merge
from mammo_nb.trauma.recipes import ORGANS

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.trauma.drawing.body import PHASES, draw_body

# %% [markdown]
# ## Places
# Where each organ lies in an average body: an ellipsoid by its centre and radii. Injuries use the same places.

# %%
#| export
PLACES = {  # organ -> centre x, y, z and radii, mm, in a body of average size
    "liver": ((-76, -6, 62), (66, 76, 78)),
    "spleen": ((100, 28, 82), (36, 50, 56)),
    "left_kidney": ((64, 34, 4), (28, 27, 54)),
    "right_kidney": ((-64, 36, -4), (28, 27, 54)),
    "bowel": ((0, -28, -62), (88, 52, 74)),
    "left lobe": ((-12, -52, 78), (70, 34, 40)),
    "stomach": ((46, -42, 66), (42, 32, 40)),
    "gallbladder": ((-46, -44, 24), (15, 21, 20)),
}

def place_of(
    body: Body,
    organ: str,            # a key of PLACES
) -> tuple[tuple, tuple]:  # centre, radii, mm
    "Where an organ lies in a body."
    i = list(PLACES).index(organ)
    (x, y, z), radii = PLACES[organ]
    wide, deep = body.width / 160, body.depth / 108
    (dx, dy, dz), grow = body.shifts[i], body.sizes[i]
    centre = float(x * wide + dx), float(y * deep + dy), float(z + dz)
    return centre, tuple(float(r * grow * w) for r, w in zip(radii, (wide, deep, 1)))

# %% [markdown]
# ## Bowel
# The colon is a frame of tubes. The loops of the small bowel are the tubes of a periodic surface in an ellipsoid, so
# close to each other that little fat is between them. Lumen, wall and contents follow from the same distance.

# %%
#| export
def _segment(
    g: Grid,
    a: tuple,              # mm
    b: tuple,
    radius: float,         # mm
) -> np.ndarray:           # signed distance, mm
    "A tube from one place to another."
    ab = np.subtract(b, a).astype(np.float32)
    r = [at - np.float32(v) for at, v in zip((g.x, g.y, g.z), a)]
    t = np.clip(sum(u * w for u, w in zip(r, ab)) / float(ab @ ab), 0, 1)
    return np.sqrt(sum((u - t * w) ** 2 for u, w in zip(r, ab))) - np.float32(radius)

def _bowel(
    body: Body,
    c: Canvas,
    phase: Phase,
) -> np.ndarray:           # signed distance to its outside, mm
    "Draw colon and small bowel."
    g = c.g
    (x, y, z), radii = place_of(body, "bowel")
    side, top, ahead = 0.66 * body.width, z + 52, -0.56 * body.depth
    pouch = 2.5 * np.cos(g.z / 5.5 + body.loops[0]) + 2.5 * np.cos(g.x / 5.5)                 # haustra
    colon = [_segment(g, (-0.72 * side, 14, z - 68), (-side, 8, top - 14), 23),
             _segment(g, (-side, 6, top - 14), (0, ahead, top - 26), 20),
             _segment(g, (0, ahead, top - 26), (side, 14, top + 30), 20),
             _segment(g, (side + 4, 22, top + 26), (0.76 * side, 18, z - 70), 17),
             _segment(g, (0.76 * side, 18, z - 70), (10, 30, z - 112), 16)]
    colon = np.minimum.reduce(colon) + pouch * 0.7 + c.contour
    p, s = np.float32(11.5), body.loops
    surface = (np.sin(g.x / p + s[0]) * np.cos(g.y / p + s[1]) + np.sin(g.y / p + s[2]) * np.cos(g.z / p + s[3])
               + np.sin(g.z / p + s[4]) * np.cos(g.x / p + s[5]) + 0.25 * c.texture)
    loops = -p * (surface + np.float32(0.85)) * np.float32(0.55)
    small = np.maximum(loops, ball(g, (x, y, z), radii) + 3 * c.contour)
    tubes = np.minimum(colon, np.maximum(small, 3 - colon))
    tubes = np.maximum(tubes, np.maximum(c.inner + 3, 26 - np.hypot(g.x, g.y - SPINE * body.depth)))
    c.paint(phase.bowel, tubes)
    fluid = 300.0 if body.contrast else 22.0
    c.paint(fluid + 12 * c.texture, np.maximum(tubes, small + 4.5))
    c.paint(-25 + 75 * c.texture, np.maximum(tubes, colon + 3.5))                              # stool
    gas = np.maximum(colon + 4, 6 * np.sin(g.z / 31 + s[1]) + g.y + 20 + 8 * c.contour)
    c.paint(AIR * 0.9, np.maximum(tubes, gas), 0.95)
    return tubes

# %% [markdown]
# ## The other organs

# %%
#| export
def _liver(
    body: Body,
    c: Canvas,
    phase: Phase,
) -> np.ndarray:           # signed distance, mm
    "Draw liver and gallbladder."
    g = c.g
    centre, radii = place_of(body, "liver")
    lobes = merge(ball(g, centre, radii), ball(g, *place_of(body, "left lobe")), 14) + 3 * c.contour
    liver = np.maximum(np.maximum(lobes, c.inner + 3), g.z - c.dome + 4)
    (x, y, z), (wide, deep, high) = place_of(body, "right_kidney")
    liver = np.maximum(liver, 9 - ball(g, (x, y + 18, z), (wide, deep + 18, high)))
    fissure = np.abs(g.x + 22 + 0.3 * (g.y + 60) + 3 * c.contour) - 2.5
    liver = np.maximum(liver, -np.maximum(np.maximum(fissure, g.y + 42), g.z - 78))
    liver = np.maximum(liver, 34 - np.hypot(g.x, g.y - SPINE * body.depth))
    c.paint(phase.liver + 4 * c.texture, liver)
    x, y, z = centre
    for i, angle in enumerate((-0.7, 0.25, 1.1)):                                              # veins of the liver
        end = x - 55 * np.cos(angle), y - 55 * np.sin(angle), z + 5 - 14 * i
        vein = _segment(g, (-22, 14, z + 34), end, 5)
        c.paint(phase.vein * 0.8 + 0.2 * phase.liver, np.maximum(vein, liver + 3), 0.9)
    c.paint(phase.vein, np.maximum(_segment(g, (-20, 6, z - 22), (x - 10, y - 4, z - 10), 7), liver + 2), 0.9)
    gall = ball(g, *place_of(body, "gallbladder"))
    c.paint(10, gall)
    return np.maximum(liver, -gall)

def _kidney(
    body: Body,
    c: Canvas,
    phase: Phase,
    organ: str,            # left_kidney or right_kidney
) -> np.ndarray:           # signed distance, mm
    "Draw a kidney with its pelvis in fat."
    (x, y, z), radii = place_of(body, organ)
    inwards = -np.sign(x)
    kidney = ball(c.g, (x, y, z), radii) + 1.5 * c.contour
    c.paint(FAT, kidney - 9, 0.9)
    c.paint(phase.cortex, kidney)
    c.paint(phase.medulla, kidney + 8 - 3 * np.clip(c.texture, -1.5, 1.5))
    sinus = ball(c.g, (x + inwards * 17, y - 6, z), (20, 9, 20)) + c.contour
    c.paint(FAT + 30, sinus)
    c.paint(30, ball(c.g, (x + inwards * 14, y - 5, z - 3), (13, 5, 9)))
    return np.maximum(kidney, -np.maximum(sinus, ball(c.g, (x + inwards * 26, y - 8, z), (20, 14, 26))))

@dataclass
class Drawn:
    "A slab with its organs."
    canvas: Canvas
    organs: dict           # organ -> signed distance, mm, float32 (slices, rows, columns)

def draw_organs(
    body: Body,
    g: Grid,
    phase: Phase,
) -> Drawn:
    "Draw a healthy body."
    c = draw_trunk(body, g, phase)
    back = SPINE * body.depth
    bowel = _bowel(body, c, phase)
    bladder = np.maximum(ball(g, (0, -18, -196), (44, 38, 42)), c.inner + 8)
    c.paint(8, bladder)
    head, tail = _segment(g, (-20, -6, 22), (-24, 0, 2), 12), _segment(g, (-20, -6, 22), (62, 18, 44), 11)
    c.paint(phase.bowel + 8, merge(head, tail, 6) + 2 * c.contour)                             # pancreas
    stomach = np.maximum(ball(g, *place_of(body, "stomach")) + 3 * c.contour, np.maximum(c.inner + 4, g.z - c.dome + 6))
    c.paint(phase.bowel, stomach)
    c.paint(np.where(g.y < -52 + 3 * c.contour, AIR * 0.9, 250.0 if body.contrast else 25.0), stomach + 5)
    liver = _liver(body, c, phase)
    spleen = np.maximum(np.maximum(ball(g, *place_of(body, "spleen")) + 2.5 * c.contour, c.inner + 3),
                        g.z - c.dome + 4)
    hollow = np.minimum(ball(g, (56, 4, 76), (34, 32, 50)), ball(g, *place_of(body, "left_kidney")) - 8)
    spleen = np.maximum(spleen, -hollow)
    c.paint(phase.spleen + 3 * c.texture + phase.mottle * np.sin(c.contour * 4), spleen)
    x, y, z = place_of(body, "spleen")[0]
    c.paint(phase.vein, _segment(g, (x - 22, y, z - 8), (0, 12, 34), 5))
    kidneys = {organ: _kidney(body, c, phase, organ) for organ in ("left_kidney", "right_kidney")}
    for organ, (x, y, z) in ((o, place_of(body, o)[0]) for o in kidneys):
        c.paint(phase.vein, _segment(g, (x * 0.72, y - 4, z), (-12 if x < 0 else 6, back - 28, z + 6), 4))
    others = np.minimum(np.minimum(liver, spleen), np.minimum(*kidneys.values()))
    bowel = np.maximum(bowel, -np.minimum(others, np.minimum(stomach, bladder)))
    organs = {"liver": np.maximum(liver, -np.minimum(*kidneys.values())), "spleen": spleen, **kidneys, "bowel": bowel}
    for organ, towards, radius in body.cysts:
        centre, radii = place_of(body, organ)
        at = np.array(centre) + 0.6 * np.array(radii) * towards / np.linalg.norm(towards)
        c.paint(4, np.maximum(ball(g, tuple(at), (radius,) * 3), organs[organ] - 3))
    return Drawn(c, organs)

def label_map(
    drawn: Drawn,
) -> np.ndarray:           # uint8 (slices, rows, columns), 0 and 1 to 5 in the order of ORGANS
    "The labels of a slab."
    labels = np.zeros(drawn.canvas.hu.shape, np.uint8)
    for number in range(len(ORGANS), 0, -1):
        labels[drawn.organs[ORGANS[number - 1]] < 0] = number
    return labels

# %%
body = draw_body(np.random.default_rng(seed))
grid = Grid.of((-180, -180), 360 / size, size, np.linspace(-190, 150, 12))
fig, axes = plt.subplots(6, 6, figsize=(13, 11), facecolor="black")
for row, phase in zip((0, 2), PHASES):
    drawn = draw_organs(body, grid, phase)
    for ax, hu in zip(axes[row:row + 2].flat, drawn.canvas.hu):
        ax.imshow(hu, cmap="gray", vmin=-150, vmax=250)
labels = label_map(drawn)
for ax, shown in zip(axes[4:].flat, labels):
    ax.imshow(shown, cmap="tab10", vmin=0, vmax=9)
for ax in axes.flat:
    ax.axis("off")
assert set(np.unique(labels)) == set(range(6))
fig.tight_layout(pad=0.1)

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

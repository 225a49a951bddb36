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
# # Hemorrhage
# > Five kinds of hemorrhage, each where anatomy puts it, and what looks like them in a single slice.
#
# A hemorrhage is a body in the head: it spans three to six neighbouring slices, and its first and last slice show a
# faint rim of it. A calcification that the slice cuts in half, a bony edge below the skull or a motion streak can look
# the same, but is gone in the next slice. This is why a model of single slices is unsure, and why a model of the series
# need not be.

# %%
#| default_exp ich.drawing.hemorrhage

# %% tags=["parameters"]
size = 128   # rows and columns of the pictures below
seed = 3     # of the drawn head

# %%
#| export
from dataclasses import dataclass, replace

import numpy as np

from mammo_nb.ich.drawing.head import Brain, Cut, Head, ball, soft

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.ich.drawing.face import draw_tissue
from mammo_nb.ich.drawing.head import cut_head, draw_head

# %% [markdown]
# ## A hemorrhage
# Its place is a point in the head; those below the skull also have a direction.

# %%
#| export
KINDS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
SHARES = (0.10, 0.27, 0.20, 0.24, 0.19)   # of patients with a hemorrhage, whose first one is of this kind

@dataclass(frozen=True)
class Lesion:
    "One hemorrhage, or something that looks like one."
    kind: str              # one of KINDS
    centre: tuple          # x, y, z, mm
    half: float            # half of its extent along z, mm
    hu: float              # of its core
    thickness: float       # below the skull, or radius, mm
    spread: float          # along the skull, or second radius, mm
    angle: float           # direction, radians
    imitation: bool = False  # whether it is no hemorrhage and is not labelled

def draw_lesion(
    rng: np.random.Generator,
    head: Head,
    kind: str,             # one of KINDS
    gap: float,            # between slices, mm
    levels: tuple,         # lowest and highest z of the series, mm
) -> Lesion:
    "Draw the place and size of a hemorrhage that spans three to six slices."
    half = gap * rng.uniform(1.5, 2.55)
    low, high = {"epidural": (34, 88), "subdural": (42, 96), "intraparenchymal": (38, 84), "intraventricular": (46, 66),
                 "subarachnoid": (34, 90)}[kind]
    low, high = max(low, levels[0] + half), min(high, levels[1] - half)
    z = rng.uniform(low, max(high, low + 1))
    side = int(rng.choice([-1, 1]))
    hu = rng.uniform(50, 74)
    if kind == "epidural":                        # between the sutures: frontal, temporal or parietal
        angle = rng.choice([rng.uniform(0.45, 0.75), rng.uniform(1.35, 1.95)])
        return Lesion(kind, (0, 0, z), half, hu, rng.uniform(6, 14), rng.uniform(20, 29), float(side * angle))
    if kind == "subdural":
        return Lesion(kind, (0, 0, z), half, hu - 3, rng.uniform(2.8, 7), rng.uniform(45, 75),
                      float(side * rng.uniform(1.0, 2.0)))
    if kind == "intraparenchymal":
        place = side * rng.uniform(16, 40), rng.uniform(-40, 45), z
        if rng.random() < 0.5:                    # basal ganglia
            place = side * rng.uniform(20, 29), rng.uniform(-14, 8), min(max(z, 44), 64)
        radius = rng.uniform(3.5, 13)
        return Lesion(kind, place, half, hu, radius, radius * rng.uniform(1.0, 1.6), rng.uniform(-1, 1))
    if kind == "intraventricular":                # level of the sediment; angle says which side has more
        return Lesion(kind, (side * rng.uniform(0, 30), rng.uniform(14, 46), z), half, hu - 2, 1, 1, 0)
    if rng.random() < 0.3 and levels[0] < 28:     # cisterns
        return Lesion(kind, (side * rng.uniform(0, 14), rng.uniform(-10, 8), rng.uniform(33, 42)), half, hu - 5, 1,
                      rng.uniform(24, 38), 0)
    angle = side * rng.uniform(0.3, 2.6)
    x, y = 0.75 * head.width * float(np.sin(angle)), -0.75 * head.length * float(np.cos(angle))
    return Lesion(kind, (x, y, z), half, hu - 5, 1, rng.uniform(18, 34), 0)

def imitate(
    rng: np.random.Generator,
    head: Head,
    gap: float,            # mm
    level: float,          # z of the only slice that shows it, mm
) -> Lesion:
    "Draw what looks like a hemorrhage in one slice only."
    kind = str(rng.choice(KINDS, p=SHARES))
    made = draw_lesion(rng, head, kind, gap, (level - 30, level + 30))
    return replace(made, centre=(*made.centre[:2], level), half=0.55 * gap, hu=made.hu - 4, imitation=True,
                   thickness=made.thickness * 0.8, spread=made.spread * 0.8)

# %% [markdown]
# ## Drawing it
# Each kind is a share of a pixel that is blood. A lens bulges, a crescent follows the skull, blood in sulci and
# ventricles fills what CSF filled, and a blob in the brain has a dark rim of oedema.

# %%
#| export
def _below_skull(
    c: Cut,
    lesion: Lesion,
) -> np.ndarray:           # share of blood
    "A lens or a crescent along the inner table."
    ahead = np.hypot(c.x, c.y + 2)
    turn = np.arctan2(c.x, -(c.y + 2)) - np.float32(lesion.angle)
    turn = np.abs((turn + np.pi) % (2 * np.pi) - np.pi)
    along = (turn * ahead / lesion.spread) ** 2 + ((c.z - lesion.centre[2]) / lesion.half) ** 2
    if lesion.kind == "epidural":
        deep = lesion.thickness * (1 - along)
    else:
        deep = lesion.thickness * np.sqrt(np.clip(1 - along, 0, 1)) * (1 + 0.25 * c.contour)
        deep = np.minimum(deep, np.abs(c.x) * 2 - 4)     # the falx stops it
    return soft(c.depth - deep, c.edge) * soft(along - 1, 0.3)

def blood(
    head: Head,
    c: Cut,
    brain: Brain,
    room: np.ndarray,      # where the brain is, 0 to 1
    lesion: Lesion,
) -> np.ndarray:           # share of each pixel that is blood, 0 to 1, float32 (rows, columns)
    "Where the blood of a lesion is in a slice."
    x, y, z = lesion.centre
    away = (c.z - z) / lesion.half
    fade = np.clip(1.25 * (1 - away**2), 0, 1)
    if lesion.kind in ("epidural", "subdural"):
        share = _below_skull(c, lesion)
    elif lesion.kind == "intraparenchymal":
        share = soft(ball(c.x, c.y, c.z, lesion.centre, (lesion.thickness, lesion.spread, lesion.half), lesion.angle)
                     + np.float32(0.12 * lesion.thickness) * (c.contour + c.texture), 1.5 * c.edge) * (1 - brain.sulci)
    elif lesion.kind == "intraventricular":
        near = soft(np.abs(c.x - x) - 34, 10)
        share = brain.ventricles * soft(y - c.y, 6) * near * fade
    else:
        near = np.hypot(c.x - x, c.y - y) / lesion.spread
        share = brain.sulci * np.clip(1.5 * (1 - near), 0, 1) * fade
    return np.float32(share * room)

def add_blood(
    head: Head,
    c: Cut,
    brain: Brain,
    room: np.ndarray,      # where the brain is, 0 to 1
    lesions: list,         # of Lesion
    hu: np.ndarray,        # float32 (rows, columns), changed in place
    contrast: float = 1.0, # factor of the difference between blood and what it replaces
# kind -> HU that the hemorrhages of this kind add at contrast 1, float32 (rows, columns); no imitations
) -> dict:
    "Draw the lesions of one slice."
    added, taken = {}, 0
    for lesion in lesions:
        if abs(c.level - lesion.centre[2]) > 1.3 * lesion.half + 6:
            continue
        at = replace(c, z=np.full_like(c.z, c.level)) if lesion.imitation else c  # an artefact lies in its slice
        share = blood(head, at, brain, room, lesion) * (1 - taken)
        if not share.any():
            continue
        if lesion.kind == "intraparenchymal" and not lesion.imitation:
            wide = replace(lesion, thickness=lesion.thickness + 5, spread=lesion.spread + 5)
            hu -= 7 * np.clip(blood(head, c, brain, room, wide) - share, 0, 1)
        taken = np.maximum(taken, share)
        change = np.maximum(lesion.hu + 2.5 * c.texture - brain.hu, 0) * share
        hu += change * np.float32(contrast)
        if not lesion.imitation:
            added[lesion.kind] = np.maximum(added.get(lesion.kind, 0), change)
    return added

# %%
head = draw_head(np.random.default_rng(seed))
y, x = np.mgrid[:size, :size].astype(np.float32) * (230 / size) - 115
fig, axes = plt.subplots(5, 6, figsize=(9, 7.6), facecolor="black")
for i, kind in enumerate(KINDS):
    lesion = draw_lesion(np.random.default_rng(seed + i), head, kind, 5.6, (20, 118))
    shown = []
    for ax, step in zip(axes[i], np.arange(-2.5, 3)):
        level = float(lesion.centre[2] + 5.6 * step)
        c = cut_head(head, x, y, np.full_like(x, level), level, 2.0)
        hu, brain, room = draw_tissue(head, c)
        added = add_blood(head, c, brain, room, [lesion], hu)
        shown.append(int((added.get(kind, np.zeros(1)) > 8).sum()))  # pixels
        ax.imshow(hu, cmap="gray", vmin=0, vmax=80)
        ax.axis("off")
    assert shown[2] + shown[3] > max(10, 2 * (shown[0] + shown[5])), kind
fig.tight_layout(pad=0.1)

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

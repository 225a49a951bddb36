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
# # Injuries
# > Lacerations and haematomas of low and high grade, an injured bowel, and contrast that leaves a vessel.
#
# An injury is a list of parts, each with a place and a size. A low grade is one or two lacerations, or a thin
# subcapsular haematoma. A high grade has several deep lacerations, a large haematoma and blood around the organ. Each
# part spans several slices, and no single slice shows all of an injury.

# %%
#| default_exp trauma.drawing.injuries

# %% tags=["parameters"]
size = 96    # rows and columns of the pictures below
seed = 3     # of the drawn body

# %%
#| export
from dataclasses import dataclass

import numpy as np

from mammo_nb.trauma.drawing.body import AIR, PHASES, Body, Grid, Phase, ball, soft
from mammo_nb.trauma.drawing.organs import Drawn, draw_organs, place_of

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.trauma.drawing.body import draw_body

# %% [markdown]
# ## Parts
# A laceration is a bent sheet through an organ. A haematoma lies in the organ, below its capsule or around it. Contrast
# that leaves a vessel lies in a haematoma, and spreads between the two phases.

# %%
#| export
INJURIES = ("liver_low", "liver_high", "spleen_low", "spleen_high", "kidney_low", "kidney_high", "bowel_injury",
            "extravasation_injury")

@dataclass(frozen=True)
class Part:
    "One part of an injury."
    kind: str              # laceration, inside, capsule, around, infarct, wall, fluid, gas, pool or leak
    organ: str             # one of ORGANS, or "" for the space between them
    centre: tuple          # x, y, z, mm
    size: float            # half of its length or its radius, mm
    thick: float           # thickness or second radius, mm
    hu: float
    normal: tuple = (0, 0, 1)  # of the sheet

def _place(
    rng: np.random.Generator,
    body: Body,
    organ: str,
    low: float,            # least depth below the surface, as a share of the organ's greatest depth; negative: outside
    high: float,           # most
) -> tuple:                # x, y, z, mm
    "A place in or at an organ, away from its upper and lower end."
    centre, radii = place_of(body, organ)
    x, y, z = (np.float32(c + r * (np.linspace(-reach, reach, 16) + rng.uniform(-0.06, 0.06)))
               for c, r, reach in zip(centre, radii, (1.1, 1.1, 0.6)))
    g = Grid(x[None, None], y[None, :, None], z[:, None, None], 2.0)
    depth = -draw_organs(body, g, PHASES[0]).organs[organ]
    found = np.argwhere((depth >= low * depth.max()) & (depth <= high * depth.max()))
    k, j, i = found[rng.integers(len(found))]
    return float(x[i]), float(y[j]), float(z[k])

def _sheet(
    rng: np.random.Generator,
) -> tuple:                # unit vector
    "The normal of a laceration, which stands more upright than flat."
    n = rng.normal(0, 1, 3) * (1, 1, 0.45)
    return tuple((n / np.linalg.norm(n)).tolist())

def draw_injury(
    rng: np.random.Generator,
    body: Body,
    injury: str,           # one of INJURIES
) -> list[Part]:
    "Draw the parts of an injury."
    name, grade = injury.split("_")
    if name == "bowel":
        centre, radii = place_of(body, "bowel")
        angle, height = rng.uniform(0.75, 2.4) * np.pi, rng.uniform(-0.5, 0.5)
        at = np.array(centre) + 0.62 * np.array(radii) * (np.cos(angle), np.sin(angle), height)
        above = at - (0, 10, 0)
        parts = [Part("fluid", "", tuple(at), rng.uniform(32, 44), 1, rng.uniform(25, 45)),
                 Part("wall", "bowel", tuple(at), rng.uniform(30, 40), 6, 75)]
        return parts + [Part("gas", "", tuple(above + rng.normal(0, (16, 7, 14))), rng.uniform(4, 8), 1, AIR * 0.9)
                        for _ in range(rng.integers(2, 5))]
    if name == "extravasation":
        organ = str(rng.choice(("liver", "spleen", "left_kidney", "right_kidney", "bowel")))
        at = _place(rng, body, organ, -0.15, 0.4)
        return [Part("pool", "", at, rng.uniform(20, 30), 1, rng.uniform(45, 60)),
                Part("leak", "", at, rng.uniform(9, 13), rng.uniform(12, 19), rng.uniform(260, 340))]
    organ = name if name != "kidney" else str(rng.choice(("left_kidney", "right_kidney")))
    scale = 0.72 if organ.endswith("kidney") else 1.0
    cut = lambda length, thick: Part("laceration", organ, _place(rng, body, organ, 0.3, 0.9),
                                     scale * length, thick, rng.uniform(22, 40), _sheet(rng))
    if grade == "low":
        if rng.random() < 0.3:
            return [Part("capsule", organ, _place(rng, body, organ, 0, 0.15), scale * rng.uniform(36, 48),
                         scale * rng.uniform(12, 15), rng.uniform(30, 45))]
        return [cut(rng.uniform(30, 42), rng.uniform(7.5, 9.5)) for _ in range(rng.integers(1, 3))]
    parts = [Part("around", organ, _place(rng, body, organ, 0, 0.15), scale * rng.uniform(60, 80),
                  rng.uniform(10, 16), rng.uniform(38, 55)),
             Part("inside", organ, _place(rng, body, organ, 0.3, 0.9), scale * rng.uniform(20, 30), 1,
                  rng.uniform(42, 56))]
    if organ.endswith("kidney"):
        parts.append(Part("infarct", organ, _place(rng, body, organ, 0.15, 0.5), rng.uniform(20, 27), 1, 45))
    return parts + [cut(rng.uniform(36, 52), rng.uniform(8, 11)) for _ in range(rng.integers(2, 4))]

# %% [markdown]
# ## Drawing them
# A part is a share of each voxel that it replaces. How much changed is returned, since bowel injuries and
# extravasations are labelled slice by slice. If asked, all parts of all injuries are noted, too: they say where an
# injury lies.

# %%
#| export
def _share(
    part: Part,
    drawn: Drawn,
    growth: float,         # of contrast that has left a vessel
) -> np.ndarray:           # float32 (slices, rows, columns), 0 to 1
    "How much of each voxel a part replaces."
    c = drawn.canvas
    g, e = c.g, c.g.edge
    cavity = soft(np.maximum(c.inner + 1, g.z - c.dome + 2), e)
    free = np.minimum.reduce([drawn.organs[o] for o in drawn.organs])       # distance to the nearest organ
    around = lambda radius: ball(g, part.centre, (radius,) * 3) + 0.13 * radius * c.contour
    if part.kind == "leak":
        blob = ball(g, part.centre, (part.size * growth, part.size * growth, part.thick * growth))
        return soft(blob + 2.2 * c.contour + 1.5 * c.texture, e) * cavity
    if part.kind == "fluid":
        return soft(around(part.size) + 5 * c.texture, 12) * soft(-free, e) * cavity * np.float32(0.9)
    if part.kind == "gas":
        return soft(ball(g, part.centre, (part.size, part.size, 1.4 * part.size)), e) * soft(-free, e) * cavity
    if part.kind == "pool":
        return soft(around(part.size), e) * cavity
    own = drawn.organs[part.organ]
    inside = soft(own, e)
    if part.kind == "laceration":
        d = [at - np.float32(v) for at, v in zip((g.x, g.y, g.z), part.centre)]
        across = np.abs(sum(u * np.float32(n) for u, n in zip(d, part.normal)) + 4 * c.contour + 1.2 * c.texture)
        far = np.sqrt(sum(u**2 for u in d)) / np.float32(part.size)
        thin = 0.5 * part.thick * np.clip(1.25 - far**2, 0, 1)
        return soft(across - thin, e) * soft((far - 1) * part.size, e) * inside
    if part.kind == "capsule":
        near = ball(g, part.centre, (part.size,) * 3) / part.size + 1
        return soft(-own - part.thick * (1 - near**2), e) * soft(near - 1, 0.1) * inside
    if part.kind == "around":
        near = ball(g, part.centre, (part.size,) * 3) / part.size + 1
        layer = soft(own - part.thick * (1 - near**2) - 1.5 * c.contour, e) * soft(near - 1, 0.1)
        return layer * (1 - inside) * soft(-free, e) * cavity
    if part.kind == "wall":
        return soft(around(part.size), 8) * soft(own, e) * soft(-own - part.thick, e)
    return soft(around(part.size), e) * inside * np.float32(0.92)           # inside, infarct

def add_injuries(
    drawn: Drawn,
    injuries: dict,        # one of INJURIES -> its parts
    phase: Phase,
    contrast: float = 1.0, # factor of the injuries against what they replace
    whole: dict | None = None,  # gets injury -> the same of all of its parts
) -> dict:                 # injury -> what its labelled parts change at contrast 1, HU, float32 (slices, rows, columns)
    "Draw injuries into a slab. Contrast that has left a vessel is drawn last."
    c, changed, before = drawn.canvas, {}, drawn.canvas.hu.copy()
    growth = 0.8 if phase.name == "arterial" else 1.1
    z = c.g.z
    for injury, parts in sorted(injuries.items(), key=lambda item: item[0].startswith("extra")):
        for part in parts:
            if z.min() > part.centre[2] + 1.5 * part.size + 8 or z.max() < part.centre[2] - 1.5 * part.size - 8:
                continue
            hu = part.hu + 4 * c.texture if part.kind != "leak" else part.hu * (phase.aorta + 300) / 520
            share = _share(part, drawn, growth)
            c.hu += (hu - c.hu) * share * np.float32(contrast)
            change = np.abs(hu - before) * share
            if part.kind in ("leak", "wall", "gas", "fluid"):
                changed[injury] = np.maximum(changed.get(injury, 0), change)
            if whole is not None:
                whole[injury] = np.maximum(whole.get(injury, 0), change)
    return changed

# %%
fig, axes = plt.subplots(8, 8, figsize=(13, 13), facecolor="black")
for i, injury in enumerate(INJURIES):
    rng = np.random.default_rng(seed + i)
    body = draw_body(rng)
    parts = draw_injury(rng, body, injury)
    middle = float(np.median([p.centre[2] for p in parts]))
    grid = Grid.of((-180, -180), 360 / size, size, middle + np.linspace(-42, 42, 8))
    drawn = draw_organs(body, grid, PHASES[i % 2])
    before = drawn.canvas.hu.copy()
    add_injuries(drawn, {injury: parts}, PHASES[i % 2])
    shown = (np.abs(drawn.canvas.hu - before) > 15).sum((1, 2))
    assert (shown > 8).sum() >= 2, injury
    for ax, hu in zip(axes[i], drawn.canvas.hu):
        ax.imshow(hu + rng.normal(0, 11, hu.shape), cmap="gray", vmin=-150, vmax=250)
        ax.axis("off")
fig.tight_layout(pad=0.1)

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

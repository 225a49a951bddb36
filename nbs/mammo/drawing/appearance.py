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
# # Appearance
# > The light in a frame, the air around the breast and the body beside it, drawn at random.
#
# Real frames have film edges, large labels, collimators, an abdomen below the breast, or white air. They cannot be
# drawn exactly as they are. But a detector that was trained on frames more varied than any real ones works on the real
# ones too (*domain randomisation*). Each family of properties is a function that changes a scene (`scenes`) in place.
# This notebook has four families that belong to the patient; `film` has the four that belong to the equipment.

# %%
#| default_exp mammo.drawing.appearance

# %% tags=["parameters"]
seed = 67   # of the random generator

# %%
#| export
import cv2
import numpy as np

from mammo_nb.mammo.drawing.scenes import STEP, Scene, chance, field, log_uniform

# %%
#| hide
from mammo_nb.core.pictures import sheet
from mammo_nb.mammo.drawing.scenes import draw_build, lay_out

# %%
def scenes(*families, count=24, size=192):
    "The same scenes each time, changed by some families."
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        scene = lay_out(rng, draw_build(rng), "LR"[i // 2 % 2], ("CC", "MLO")[i % 2], size)
        for family in families:
            family(rng, scene)
        yield scene

# %% [markdown]
# ## Light
# The same breast can be underexposed or overexposed, with high or low contrast. On film, the thin rim of the breast
# fades into the air. In an image processed for presentation, the rim is as bright as the rest, or brighter. Muscle can
# be darker than fat, or white. The texture inside may be blurred or saturated, so that the outline alone must suffice.

# %%
#| export
def light(rng: np.random.Generator, s: Scene):
    "Change exposure, contrast, the rim of the breast and the brightness of the muscle."
    inside, shape = s.cover > 0.5, s.cover.shape
    if not inside.any():
        return
    tissue = np.clip(s.picture / max(float(np.percentile(s.picture[inside], 99.5)), 0.05), 0, 1.1)
    # depth below the skin, in mm
    skin = cv2.distanceTransform((s.cover > 0.5).astype(np.uint8) | ~s.film, cv2.DIST_L2, 3) * np.float32(s.mm)
    if chance(rng, 0.12):
        tissue = cv2.GaussianBlur(tissue, (0, 0), rng.uniform(2, 12) / s.mm)  # the texture is lost
    tissue = tissue ** np.float32(log_uniform(rng, 0.35, 2.8) if chance(rng, 0.5) else np.exp(rng.normal(0, 0.3)))
    # a muscle of any width and brightness
    if s.view == "MLO" and chance(rng, 0.5):
        top, bottom = s.extent[2] * rng.uniform(0.15, 0.85), s.extent[3] * rng.uniform(0.3, 0.95)
        soft = rng.uniform(1, 5)
        edge = top * (1 - s.y / bottom) - s.x + rng.uniform(-0.12, 0.2) * top * np.sin(
            np.clip(s.y / bottom, 0, 1) * np.float32(np.pi))
        gain = np.float32(rng.uniform(-0.15, 0.6) if chance(rng, 0.7) else 0.7)
        tissue += np.clip(edge / soft, 0, 1) * gain * (1 - 0.6 * tissue)
    if chance(rng, 0.35):
        # from chest wall to nipple
        tissue *= 1 + np.float32(rng.uniform(-0.6, 0.6)) * (np.clip(s.x / s.extent[2], 0, 1) - np.float32(0.5))
    if chance(rng, 0.3):
        tissue *= 1 + np.float32(rng.uniform(0.05, 0.25)) * field(rng, shape, 4)
    low, high = np.sort(rng.uniform([0.02, 0.35], [0.45, 1.05]))
    kind = rng.random()
    if kind < 0.08:
        low, high = rng.uniform([0.02, 0.06], [0.05, 0.18])  # dim: a label is much brighter
    elif kind < 0.15:
        low, high = rng.uniform([0.6, 0.85], [0.9, 1.0])     # nearly flat and white
    elif kind < 0.20:
        low, high = rng.uniform([0.25, 1.1], [0.7, 1.8])     # saturated
    tissue = np.clip(low + (high - low) * tissue, 0, 1)
    rim = rng.random()
    if rim < 0.5:  # thin tissue is dark
        fade = np.exp(-skin / np.float32(log_uniform(rng, 2, 32)))
        tissue *= 1 - np.float32(rng.uniform(0.3, 0.95)) * fade
    elif rim < 0.7:  # the line of the skin, or a bright rim
        gain = np.float32(rng.uniform(0.03, 0.4))
        depth = (skin - np.float32(rng.uniform(0, 2.5))) / np.float32(rng.uniform(0.7, 4))
        tissue += gain * np.exp(-depth**2)
    s.picture = np.clip(tissue, 0, 1) * s.cover

# %%
sheet([s.picture for s in scenes(light)], title="light");

# %% [markdown]
# ## Contents
# Some breasts contain or carry more than tissue: calcified vessels, clips, wires, a pacemaker in the muscle, folds of
# skin, moles.

# %%
#| export
def within(
    rng: np.random.Generator,
    inside: np.ndarray,   # bool (rows, columns)
) -> tuple:               # x, y in pixels
    "Choose a random point of a mask."
    y, x = divmod(int(rng.choice(np.flatnonzero(inside))), inside.shape[1])
    return x, y

def strokes(
    rng: np.random.Generator,
    start: tuple,         # x, y in pixels
    length: float,        # in pixels
    wander: float,        # change of direction per step, in radians
) -> np.ndarray:          # int32 (24, 2), in sixteenths of a pixel
    "Make a line whose direction changes gradually."
    turn = np.cumsum(rng.normal(0, wander, 24)) + rng.uniform(0, 6.3)
    return np.int32(16 * (np.array(start) + np.cumsum(np.stack([np.cos(turn), np.sin(turn)], 1), 0) * length / 24))

def contents(rng: np.random.Generator, s: Scene):
    "Add foreign bodies, calcified vessels, folds and moles."
    inside = s.cover > 0.9
    if not inside.any():
        return
    ink, per_mm = np.zeros(s.cover.shape, np.uint8), 1 / s.mm
    if chance(rng, 0.10):  # moles and clips
        for _ in range(rng.integers(1, 14)):
            at, radius, grey = within(rng, inside), rng.uniform(0.5, 4), rng.uniform(120, 255)
            cv2.circle(ink, tuple(int(16 * v) for v in at), max(8, int(16 * radius * per_mm)), int(grey), -1,
                       cv2.LINE_AA, 4)
    if chance(rng, 0.08):  # calcified vessels and wires
        for _ in range(rng.integers(1, 4)):
            path = strokes(rng, within(rng, inside), rng.uniform(20, 120) * per_mm, rng.choice([0.02, 0.25]))
            cv2.polylines(ink, [path], False, int(rng.uniform(80, 255)), int(rng.integers(1, 3)), cv2.LINE_AA, 4)
    if chance(rng, 0.03):  # a pacemaker or a port
        at, r = within(rng, inside & (s.y < 0.5 * s.extent[3])), rng.uniform(10, 22) * per_mm
        cv2.ellipse(ink, at, (int(r), int(r * rng.uniform(0.6, 1))), rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
        cv2.polylines(ink, [strokes(rng, at, 90 * per_mm, 0.2)], False, 200, 2, cv2.LINE_AA, 4)
    s.picture += ink * np.float32(1 / 255) * s.cover * (1 - s.picture)
    if chance(rng, 0.15):  # a fold of the skin, dark or bright
        path = strokes(rng, within(rng, inside), rng.uniform(25, 90) * per_mm, 0.06)
        line = cv2.polylines(np.zeros_like(ink), [path], False, 255, int(rng.integers(1, 4)), cv2.LINE_AA, 4)
        soft = cv2.GaussianBlur(line, (0, 0), rng.uniform(0.6, 2)).astype(np.float32)
        s.picture += soft * np.float32(rng.uniform(-0.3, 0.35) / 255) * s.cover
    s.picture = np.clip(s.picture, 0, 1)

# %%
sheet([s.picture for s in scenes(light, contents, count=12)], title="contents");

# %% [markdown]
# ## Air
# Air is black, grey, uneven, grainy, striped, brighter than fat, or white. The breast either covers the air or is added
# to it. The second happens on film, where the rim of the breast ends in the grey of the film base. A detector learns
# nothing from a breast that cannot be distinguished from its air, so the difference is kept at 0.1 or more.

# %%
#| export
def air(rng: np.random.Generator, s: Scene):
    "Draw a background under the breast."
    shape, kind = s.cover.shape, rng.random()
    if kind < 0.40:
        level = 0.0
    elif kind < 0.55:
        level = rng.uniform(0, 0.08)
    elif kind < 0.84:
        level = rng.uniform(0.05, 0.35)
    elif kind < 0.94:
        level = rng.uniform(0.3, 0.6)
    else:
        level = rng.uniform(0.75, 1.0)
    sky = np.full(shape, level, np.float32)
    if chance(rng, 0.30):
        sky += np.float32(rng.uniform(0.01, 0.10)) * field(rng, shape, rng.uniform(1, 4))
    if chance(rng, 0.10):
        sky += np.float32(log_uniform(rng, 0.004, 0.04)) * field(rng, shape, rng.uniform(8, 90))
    if chance(rng, 0.06):
        sky += np.float32(rng.uniform(0.01, 0.05)) * np.sin(
            np.linspace(0, rng.uniform(10, 300), shape[0], dtype=np.float32))[:, None]
    if chance(rng, 0.08):  # scattered radiation: a halo around the breast
        small = cv2.resize(s.cover, None, fx=1 / STEP, fy=1 / STEP, interpolation=cv2.INTER_AREA)
        gain = np.float32(rng.uniform(0.03, 0.2))
        sky += gain * cv2.resize(cv2.GaussianBlur(small, (0, 0), rng.uniform(1, 5)), shape[::-1])
    sky = np.clip(sky, 0, 1)
    inside, outside = s.cover > 0.9, (s.cover < 0.1) & s.film
    if not (inside.any() and outside.any()):
        return
    if level < 0.4 and chance(rng, 0.5):
        s.picture = 1 - (1 - s.picture) * (1 - sky)
    else:
        s.picture = s.picture + sky * (1 - s.cover)
    away = float(np.median(s.picture[inside]) - np.median(s.picture[outside]))
    if abs(away) < 0.1:
        s.picture += np.float32((0.1 - abs(away)) * (1 if away > 0 or level < 0.5 else -1)) * s.cover
    s.picture = np.clip(s.picture, 0, 1)

# %%
sheet([s.picture for s in scenes(light, air)], title="air (each picture stretched by itself)");

# %% [markdown]
# ## Neighbours
# Below the fold of an MLO view lies the abdomen. It takes from a thin strip to half of the frame, and touches the
# breast or is separated from it by a crease. Above the breast there may be the arm or the shoulder. In a CC view, the
# other breast may enter at the chest wall. None of this is in the box. The positions are given in millimetres on the
# film.

# %%
#| export
def neighbours(rng: np.random.Generator, s: Scene):
    "Add abdomen, arm or the other breast: parts of the body that are not the breast."
    inside = s.cover > 0.9
    near = inside & (s.u < s.u[inside].min() + 12)
    if not near.any():
        return
    first, last = (float(v) for v in np.percentile(s.v[near], (1, 99)))
    depth, base = s.extent[2], np.percentile(s.picture[inside], (25, 90))
    body = np.zeros(s.cover.shape, np.float32)
    wave = lambda: rng.uniform(0.5, 6) * np.sin(s.v * np.float32(6.28 / rng.uniform(25, 120)) + rng.uniform(0, 6.3))
    below, soft = s.v - last, np.float32(rng.uniform(1, 8))
    if s.view == "MLO" and chance(rng, 0.65):  # the abdomen
        start, width = rng.choice([-2, rng.uniform(0, 5), rng.uniform(0, 30)]), depth * log_uniform(rng, 0.1, 1.3)
        least = rng.uniform(0.1, 1)
        rise = np.clip((below - start) / rng.uniform(10, 90), 0, 1)**np.float32(rng.uniform(0.4, 2))
        shape = width * (least + rise * rng.uniform(0, 1.2)) + wave()
        body = np.clip((shape - s.u) / soft, 0, 1) * np.clip((below - start) / rng.uniform(1, 20), 0, 1)
    if s.view == "MLO" and chance(rng, 0.12):  # the arm: a lobe at the top, in front of the axilla
        cx, cy, r = depth * rng.uniform(0.5, 1.2), float(s.v[s.film].min()) + rng.uniform(-25, 5), rng.uniform(18, 45)
        distance = np.hypot((s.u - cx) / (r * rng.uniform(1, 2)), (s.v - cy) / r)
        body = np.maximum(body, np.clip((1 - distance) * r / soft, 0, 1))
    if s.view == "CC":  # the other breast, or the skin of the chest
        for away in [d for d in (first - s.v, below) if chance(rng, 0.15)]:
            gap, width = rng.uniform(-3, 25), depth * rng.uniform(0.04, 0.5)
            rise = np.clip((away - gap) / rng.uniform(10, 70), 0, 1)**np.float32(rng.uniform(0.4, 1.5))
            shape = width * rise + wave() * 0.5
            body = np.maximum(body, np.clip((shape - s.u) / soft, 0, 1) * np.clip((away - gap) / 3, 0, 1))
    if not body.any():
        return
    grey = base[0] + (base[1] - base[0]) * rng.uniform(-0.3, 1.2) + rng.uniform(0.01, 0.15) * field(
        rng, body.shape, rng.uniform(4, 40)) + rng.uniform(-0.3, 0.3) * np.clip(s.u / depth, 0, 1)
    body *= (1 - s.cover) * s.film
    s.picture += body * (np.clip(grey, 0, 1) - s.picture)
    if chance(rng, 0.5):  # a crease where skin meets skin
        near_breast = cv2.GaussianBlur(s.cover, (0, 0), rng.uniform(0.7, 2))
        crease = near_breast * cv2.GaussianBlur(body, (0, 0), rng.uniform(0.7, 2))
        s.picture *= 1 - np.clip(crease * np.float32(rng.uniform(0.5, 3.5)), 0, 0.9)

# %%
sheet([s.picture for s in scenes(light, air, neighbours)], title="neighbours");

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

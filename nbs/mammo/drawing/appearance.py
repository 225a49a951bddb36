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
# # Appearance
# > Everything about a frame that does not make a breast, left to chance.
#
# Real frames have film edges, labels as large as a hand, collimators, an abdomen below the breast, or white air. Nobody
# can draw them as they are; but who has learned from frames stranger than any real one finds the real ones easy
# (*domain randomisation*). Each family of properties is a function that changes a scene (`drawing/scenes`) in place. The
# same scenes are shown after each.

# %%
#| default_exp mammo.drawing.appearance

# %% tags=["parameters"]
seed = 67

# %%
#| export
import cv2
import numpy as np

from mammo_nb.mammo.drawing.anatomy import mask_box
from mammo_nb.mammo.drawing.scenes import STEP, Scene, chance, field, log_uniform

# %%
#| hide
from mammo_nb.core.pictures import sheet
from mammo_nb.mammo.drawing.scenes import draw_build, lay_out

# %%
def scenes(*families, count=24, size=192):
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        scene = lay_out(rng, draw_build(rng), "LR"[i // 2 % 2], ("CC", "MLO")[i % 2], size)
        for family in families:
            family(rng, scene)
        yield scene

# %% [markdown]
# ## Light
# The same breast, under- or overexposed, with hard or soft contrast. On film its rim, where it is thin, fades nearly
# into the air; processed for presentation it is as bright as the rest, or brighter. Muscle can be darker than fat or
# white. What is beneath may be blurred or burnt out altogether: an outline must do.

# %%
#| export
def light(rng: np.random.Generator, s: Scene):
    "Exposure, contrast, the rim, muscle."
    inside, shape = s.cover > 0.5, s.cover.shape
    if not inside.any():
        return
    tissue = np.clip(s.picture / max(float(np.percentile(s.picture[inside], 99.5)), 0.05), 0, 1.1)
    # mm below the skin
    skin = cv2.distanceTransform((s.cover > 0.5).astype(np.uint8) | ~s.film, cv2.DIST_L2, 3) * np.float32(s.mm)
    if chance(rng, 0.12):
        tissue = cv2.GaussianBlur(tissue, (0, 0), rng.uniform(2, 12) / s.mm)                         # texture lost
    tissue = tissue ** np.float32(log_uniform(rng, 0.35, 2.8) if chance(rng, 0.5) else np.exp(rng.normal(0, 0.3)))
    # the muscle, of any width and brightness
    if s.view == "MLO" and chance(rng, 0.5):
        top, bottom, soft = s.extent[2] * rng.uniform(0.15, 0.85), s.extent[3] * rng.uniform(0.3, 0.95), rng.uniform(
            1, 5)
        edge = top * (1 - s.y / bottom) - s.x + rng.uniform(-0.12, 0.2) * top * np.sin(
            np.clip(s.y / bottom, 0, 1) * np.float32(np.pi))
        tissue += np.clip(edge / soft, 0,
                          1) * np.float32(rng.uniform(-0.15, 0.6) if chance(rng, 0.7) else 0.7) * (1 - 0.6 * tissue)
    if chance(rng, 0.35):
        # from chest wall to nipple
        tissue *= 1 + np.float32(rng.uniform(-0.6, 0.6)) * (np.clip(s.x / s.extent[2], 0, 1) - np.float32(0.5))
    if chance(rng, 0.3):
        tissue *= 1 + np.float32(rng.uniform(0.05, 0.25)) * field(rng, shape, 4)
    low, high = np.sort(rng.uniform([0.02, 0.35], [0.45, 1.05]))
    kind = rng.random()
    if kind < 0.08:
        low, high = rng.uniform([0.02, 0.06], [0.05, 0.18])             # dim: a label is much brighter
    elif kind < 0.15:
        low, high = rng.uniform([0.6, 0.85], [0.9, 1.0])              # nearly flat and white
    elif kind < 0.20:
        low, high = rng.uniform([0.25, 1.1], [0.7, 1.8])              # burnt out
    tissue = np.clip(low + (high - low) * tissue, 0, 1)
    rim = rng.random()
    if rim < 0.5:                                                                  # thin tissue is dark
        fade = np.exp(-skin / np.float32(log_uniform(rng, 2, 32)))
        tissue *= 1 - np.float32(rng.uniform(0.3, 0.95)) * fade
    elif rim < 0.7:
        # the skin's line, or a shining rim
        tissue += np.float32(rng.uniform(0.03, 0.4)) * np.exp(-(
            (skin - np.float32(rng.uniform(0, 2.5))) / np.float32(rng.uniform(0.7, 4)))**2)
    s.picture = np.clip(tissue, 0, 1) * s.cover

# %%
sheet([s.picture for s in scenes(light)], title="light");

# %% [markdown]
# Some breasts have more in them or on them than tissue: vessels of chalk, clips, wires, a pacemaker in the muscle,
# folds of skin, a nipple beside the outline.

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
    if not inside.any():
        return
    ink, mm = np.zeros(s.cover.shape, np.uint8), 1 / s.mm
    dot = lambda at, r, level: cv2.circle(ink, tuple(int(16 * v) for v in at), max(8, int(16 * r * mm)), int(level), -1,
                                          cv2.LINE_AA, 4)
    if chance(rng, 0.10):
        for _ in range(rng.integers(1, 14)):
            dot(within(rng, inside), rng.uniform(0.5, 4), rng.uniform(120, 255))
    if chance(rng, 0.08):                                                            # chalky vessels, wires
        for _ in range(rng.integers(1, 4)):
            cv2.polylines(ink, [strokes(rng, within(rng, inside),
                                        rng.uniform(20, 120) * mm, rng.choice([0.02, 0.25]))], False,
                          int(rng.uniform(80, 255)), int(rng.integers(1, 3)), cv2.LINE_AA, 4)
    if chance(rng, 0.03):                                                            # pacemaker, port
        at, r = within(rng, inside & (s.y < 0.5 * s.extent[3])), rng.uniform(10, 22) * mm
        cv2.ellipse(ink, at, (int(r), int(r * rng.uniform(0.6, 1))), rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
        cv2.polylines(ink, [strokes(rng, at, 90 * mm, 0.2)], False, 200, 2, cv2.LINE_AA, 4)
    s.picture += ink * np.float32(1 / 255) * s.cover * (1 - s.picture)
    if chance(rng, 0.15):                                                            # folds: a dark and a bright line
        line = cv2.polylines(np.zeros_like(ink), [strokes(rng, within(rng, inside),
                                                          rng.uniform(25, 90) * mm, 0.06)], False, 255,
                             int(rng.integers(1, 4)), cv2.LINE_AA, 4)
        s.picture += cv2.GaussianBlur(line, (0, 0), rng.uniform(0.6, 2)).astype(np.float32) * np.float32(
            rng.uniform(-0.3, 0.35) / 255) * s.cover
    s.picture = np.clip(s.picture, 0, 1)

# %%
sheet([s.picture for s in scenes(light, contents, count=12)], title="contents");

# %% [markdown]
# ## Air
# Black, grey, uneven, grainy, striped, brighter than fat, or white. The breast either covers it or is added to it, as
# on film, where its rim ends in the grey of the base. A breast that cannot be told from its air teaches nothing, so it
# is lifted out of it.

# %%
#| export
def air(rng: np.random.Generator, s: Scene):
    "A background under the breast."
    shape, kind = s.cover.shape, rng.random()
    level = 0.0 if kind < 0.40 else rng.uniform(0, 0.08) if kind < 0.55 else rng.uniform(
        0.05, 0.35) if kind < 0.84 else rng.uniform(0.3, 0.6) if kind < 0.94 else rng.uniform(0.75, 1.0)
    sky = np.full(shape, level, np.float32)
    if chance(rng, 0.30):
        sky += np.float32(rng.uniform(0.01, 0.10)) * field(rng, shape, rng.uniform(1, 4))
    if chance(rng, 0.10):
        sky += np.float32(log_uniform(rng, 0.004, 0.04)) * field(rng, shape, rng.uniform(8, 90))
    if chance(rng, 0.06):
        sky += np.float32(rng.uniform(0.01, 0.05)) * np.sin(
            np.linspace(0, rng.uniform(10, 300), shape[0], dtype=np.float32))[:, None]
    # scattered rays: a halo of the breast
    if chance(rng, 0.08):
        small = cv2.resize(s.cover, None, fx=1 / STEP, fy=1 / STEP, interpolation=cv2.INTER_AREA)
        sky += np.float32(rng.uniform(0.03, 0.2)) * cv2.resize(cv2.GaussianBlur(small,
                                                                                (0, 0), rng.uniform(1, 5)), shape[::-1])
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
# Below the fold of an MLO view lies the abdomen, from a sliver to half the frame, touching the breast or with a crease
# between; above it may lie arm or shoulder. From above, the other breast comes in at the chest wall. None of it is in
# the box. Millimetres on the film make it easy: the abdomen is what lies below the fold and near the chest wall.

# %%
#| export
def neighbours(rng: np.random.Generator, s: Scene):
    "Abdomen, arm, the other breast: body that is not the breast."
    inside = s.cover > 0.9
    near = inside & (s.u < s.u[inside].min() + 12)
    if not near.any():
        return
    first, last = (float(v) for v in np.percentile(s.v[near], (1, 99)))
    depth, base = s.extent[2], np.percentile(s.picture[inside], (25, 90))
    body = np.zeros(s.cover.shape, np.float32)
    wave = lambda: rng.uniform(0.5, 6) * np.sin(s.v * np.float32(6.28 / rng.uniform(25, 120)) + rng.uniform(0, 6.3))
    below, soft = s.v - last, np.float32(rng.uniform(1, 8))
    if s.view == "MLO" and chance(rng, 0.65):
        start, width = rng.choice([-2, rng.uniform(0, 5), rng.uniform(0, 30)]), depth * log_uniform(rng, 0.1, 1.3)
        shape = width * (rng.uniform(0.1, 1) + np.clip(
            (below - start) / rng.uniform(10, 90), 0, 1)**np.float32(rng.uniform(0.4, 2)) * rng.uniform(0, 1.2)) + wave(
            )
        body = np.clip((shape - s.u) / soft, 0, 1) * np.clip((below - start) / rng.uniform(1, 20), 0, 1)
    # the arm: a lobe at the top, before the axilla
    if s.view == "MLO" and chance(rng, 0.12):
        cx, cy, r = depth * rng.uniform(0.5, 1.2), float(s.v[s.film].min()) + rng.uniform(-25, 5), rng.uniform(18, 45)
        body = np.maximum(
            body, np.clip((1 - np.hypot((s.u - cx) / (r * rng.uniform(1, 2)), (s.v - cy) / r)) * r / soft, 0, 1))
    if s.view == "CC":
        for away in [d for d in (first - s.v, below) if chance(rng, 0.15)]:      # the other breast, or the chest's skin
            gap, width = rng.uniform(-3, 25), depth * rng.uniform(0.04, 0.5)
            shape = width * np.clip(
                (away - gap) / rng.uniform(10, 70), 0, 1)**np.float32(rng.uniform(0.4, 1.5)) + wave() * 0.5
            body = np.maximum(body, np.clip((shape - s.u) / soft, 0, 1) * np.clip((away - gap) / 3, 0, 1))
    if not body.any():
        return
    grey = base[0] + (base[1] - base[0]) * rng.uniform(-0.3, 1.2) + rng.uniform(0.01, 0.15) * field(
        rng, body.shape, rng.uniform(4, 40)) + rng.uniform(-0.3, 0.3) * np.clip(s.u / depth, 0, 1)
    body *= (1 - s.cover) * s.film
    s.picture += body * (np.clip(grey, 0, 1) - s.picture)
    if chance(rng, 0.5):                                                             # a crease where skin meets skin
        crease = cv2.GaussianBlur(s.cover,
                                  (0, 0), rng.uniform(0.7, 2)) * cv2.GaussianBlur(body, (0, 0), rng.uniform(0.7, 2))
        s.picture *= 1 - np.clip(crease * np.float32(rng.uniform(0.5, 3.5)), 0, 0.9)

# %%
sheet([s.picture for s in scenes(light, air, neighbours)], title="neighbours");

# %% [markdown]
# ## Film and collimator
# What surrounds the film, where it does not fill the frame, is black, white, grey or uneven. Its own edges are bright
# or dark strips, straight or tilted. A collimator leaves a window, with corners sharp or round. Paddles leave lines;
# handling leaves tape, scratches, dust and finger prints; a processor leaves a block for the patient's name.

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
    # distance to a side, place along it
    sides = ((x, y / rows), (columns - 1 - x, y / rows), (y, x / columns), (rows - 1 - y, x / columns))
    if chance(rng, 0.4):
        bright, uneven = level(rng), rng.uniform(0, 0.3) * chance(rng, 0.4)
        for k in rng.permutation(4)[:rng.choice([1, 2, 3, 4], p=[0.45, 0.2, 0.1, 0.25])]:
            away, along = sides[k]
            wide = log_uniform(rng, 0.003, 0.08) * max(shape)
            strip = wide * (1 + rng.uniform(-1, 1) * chance(rng, 0.5) *
                            (along - 0.5)) + (0.2 * wide * field(rng, shape, 12) if uneven else 0)
            hide(s, np.clip(strip - away, 0, 1), np.clip(bright + uneven * field(rng, shape, 8), 0, 1))
    if chance(rng, 0.15):
        box = np.array(mask_box(s.cover > 0.5) or (0, 0, columns, rows), float)
        # the window's distance to each side, pixels
        edge = np.array([box[0], box[1], columns - box[2], rows - box[3]]) * rng.uniform(-0.03, 0.98, 4) - 2
        lean, corner = rng.uniform(-0.06, 0.06, 4) * chance(rng, 0.4), rng.choice([0, rng.uniform(0.02, 0.4)
                                                                                   ]) * min(shape)
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
        if chance(rng, 0.7):
            end = (start[0], end[1]) if chance(rng, 0.5) else (end[0], start[1])
        cv2.line(ink, start, end, int(rng.uniform(60, 255)), int(rng.choice([1, 1, 2])), cv2.LINE_AA)
    if chance(rng, 0.06):
        cv2.rectangle(ink, anywhere(), anywhere(), int(rng.uniform(60, 255)), 1, cv2.LINE_AA)
    if chance(rng, 0.10):
        for _ in range(rng.integers(2, 12)):
            cv2.polylines(ink, [strokes(rng, anywhere(),
                                        rng.uniform(0.02, 0.3) * rows, 0.05)], False, int(rng.uniform(40, 255)), 1,
                          cv2.LINE_AA, 4)
    s.picture += ink * np.float32(rng.uniform(0.1, 0.6) * rng.choice([-1, 1, 1]) / 255)
    if chance(rng, 0.10):                                                            # dust
        for _ in range(rng.integers(4, 60)):
            s.picture[int(rng.integers(rows)), int(rng.integers(columns))] = rng.choice([0, 1])
    if chance(rng, 0.06):                                                            # tape, finger prints: see-through
        ink[:] = 0
        for _ in range(rng.integers(1, 4)):
            cv2.ellipse(ink, anywhere(), (int(rng.uniform(0.01, 0.05) * rows), int(rng.uniform(0.01, 0.07) * rows)),
                        rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
        if chance(rng, 0.5):
            cv2.fillConvexPoly(
                ink,
                np.int32(
                    cv2.boxPoints(
                        (anywhere(), (rng.uniform(0.2, 0.6) * rows, rng.uniform(0.03, 0.08) * rows), rng.uniform(
                            0, 180)))), 255, cv2.LINE_AA)
        s.picture += ink * np.float32(rng.uniform(-0.15, 0.25) / 255)
    if chance(rng, 0.2):
        s.picture *= 1 + np.float32(rng.uniform(0.05, 0.2)) * field(rng, shape, rng.uniform(1, 3))
    np.clip(s.picture, 0, 1, out=s.picture)

# %%
sheet([s.picture for s in scenes(light, air, borders, handling, count=36)], title="borders and handling");

# %% [markdown]
# ## Markers
# Letters and plates of lead, burned-in text, labels as large as a hand, beads, a wedge of steps; upright, turned,
# tilted, some from behind. They lie in the air, where technicians put them; few touch the breast.

# %%
#| export
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX,
         cv2.FONT_HERSHEY_TRIPLEX)
WORDS = ("AB", "M.K.", "RT 3", "1", "2", "12", "04-11-97", "1998", "28 kV", "65 mAs", "ID 4711", "MAG", "XCCL", "AX",
         "LM", "W/O", "TOMO", "31 kV Rh/Rh", "DOB 1944", "SCREENING", "D 12:40")

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
    for i, line in enumerate(lines):
        cv2.putText(ink, line, (12, step * (i + 1)), font, 1.6, 255, weight, cv2.LINE_AA)
    ratio = tall * len(lines) / len(ink)
    return cv2.resize(ink, (max(3, round(ink.shape[1] * ratio)), max(3, round(ink.shape[0] * ratio))),
                      interpolation=cv2.INTER_AREA).astype(np.float32) / 255

def draw_marker(
    rng: np.random.Generator,
    side: str,            # such as R
    view: str,            # such as MLO
    size: int,            # longest side of the frame, pixels
) -> tuple:               # float32 brightness and cover, 0 to 1
    "Letters, a plate with letters, a bead, a ring, a wedge."
    bright, tall = rng.uniform(0.6, 1.0), max(4.0, size * log_uniform(rng, 0.018, 0.09))
    if chance(rng, 0.1):
        side, view = str(rng.choice(list("LR"))), str(rng.choice(["CC", "MLO"]))
    lines = [
        str(
            rng.choice(
                [f"{side} {view}", f"{side}{view}", f"{side}-{view}", side, view, f"{side} {view} {rng.integers(10)}"]))
    ] if chance(rng, 0.65) else [str(rng.choice(WORDS))]
    kind = rng.random()
    if kind < 0.55:
        cover = write_words(rng, lines + [str(rng.choice(WORDS))] * int(rng.integers(0, 2)), tall)
        picture = np.full_like(cover, bright)
    # a plate or an identification block
    elif kind < 0.82:
        lines += [str(w) for w in rng.choice(WORDS, rng.integers(0, 5))]
        tall = min(tall, 0.3 * size / len(lines))
        letters = write_words(rng, lines, tall)
        letters = cv2.copyMakeBorder(letters, *(int(v) for v in rng.uniform(0, 0.8 * tall, 4)), cv2.BORDER_CONSTANT,
                                     value=0)
        ground, ink = (bright, rng.uniform(0, 0.5)) if chance(rng, 0.6) else (rng.uniform(0, 0.45), bright)
        picture, cover = ground + (ink - ground) * letters * (rng.random() > 0.12), np.ones_like(letters)
    elif kind < 0.93:
        r = max(1, int(size * log_uniform(rng, 0.004, 0.03)))
        cover = cv2.circle(np.zeros((2 * r + 3, 2 * r + 3), np.float32), (r + 1, r + 1), r, 1.0,
                           int(rng.choice([-1, -1, 1])), cv2.LINE_AA)
        picture = np.full_like(cover, bright)
    else:
        picture = np.repeat(np.linspace(rng.uniform(0, 0.4), bright, int(rng.integers(4, 12)), dtype=np.float32),
                            max(2, int(tall * rng.uniform(0.4, 1))))[None].repeat(int(tall), 0)
        cover = np.ones_like(picture)
    if chance(rng, 0.08):
        picture, cover = picture[:, ::-1], cover[:, ::-1]
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
        if h >= rows or w >= columns:
            continue
        allowed = 0.12 * h * w if chance(rng, 0.05) else 0
        for _ in range(12):
            y, x = int(rng.integers(rows - h + 1)), int(rng.integers(columns - w + 1))
            if breast[y + h, x + w] - breast[y, x + w] - breast[y + h, x] + breast[y, x] <= allowed:
                break
        else:
            continue
        part = s.picture[y:y + h, x:x + w]
        part += cover * (picture - part)

# %%
sheet([s.picture for s in scenes(light, air, markers, count=36)], title="markers");

# %% [markdown]
# ## The machine's own marks
# Quantum noise, grain of film, a little blur, pictures that were small once, JPEG, a tone curve, and a negative that
# was stored as a positive. Values above the display's range are cut off.

# %%
#| export
def noise(rng: np.random.Generator, s: Scene):
    "Blur, resampling, noise, JPEG, tone."
    p, shape = s.picture, s.cover.shape
    if chance(rng, 0.10):
        p = cv2.resize(
            cv2.resize(p, None, fx=(f := rng.uniform(0.35, 0.8)), fy=f, interpolation=int(
                rng.choice([cv2.INTER_AREA, cv2.INTER_NEAREST]))), shape[::-1], interpolation=cv2.INTER_LINEAR)
    if chance(rng, 0.25):
        p = cv2.GaussianBlur(p, (0, 0), rng.uniform(0.4, 1.5))
    if chance(rng, 0.10):
        p = p + np.float32(rng.uniform(0.3, 1.2)) * (p - cv2.GaussianBlur(p, (0, 0), rng.uniform(0.7, 3)))   # sharpened
    if chance(rng, 0.40):
        p = p + np.float32(log_uniform(rng, 0.003, 0.05)) * rng.standard_normal(
            shape, dtype=np.float32) * (np.sqrt(np.clip(p, 0, 1)) if chance(rng, 0.5) else 1)
    if chance(rng, 0.10):
        p = p + np.float32(log_uniform(rng, 0.004, 0.03)) * field(rng, shape, max(shape) / rng.uniform(1.5, 5))
    p = np.clip(p, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.2)))
    if chance(rng, 0.15):
        coded = cv2.imencode(".jpg", np.uint8(p * 255), [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 95))])[1]
        p = cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
    s.picture = 1 - p if chance(rng, 0.06) else p

FAMILIES = (light, contents, air, neighbours, borders, handling, markers, noise)   # in this order

# %%
sheet([s.picture for s in scenes(*FAMILIES)], title="all of it");

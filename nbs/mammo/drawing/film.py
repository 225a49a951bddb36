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
# # Film
# > The traces of the equipment: film edges, collimators, paddles, markers and noise.
#
# These four families of properties belong to the equipment and to the people who handle it. They change a scene in
# place, like the families of `appearance`. Only `borders` may hide a part of the breast, and then the box changes with
# it.

# %%
#| default_exp mammo.drawing.film

# %% tags=["parameters"]
seed = 67   # of the random generator

# %%
#| export
import cv2
import numpy as np

from mammo_nb.mammo.drawing.appearance import strokes
from mammo_nb.mammo.drawing.breast import mask_box
from mammo_nb.mammo.drawing.scenes import Scene, chance, field, log_uniform

# %%
#| hide
from mammo_nb.core.pictures import sheet
from mammo_nb.mammo.drawing.appearance import air, contents, light, neighbours
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
# ## Borders and handling
# Where the film does not fill the frame, its surroundings are black, white, grey or uneven. The edges of the film are
# bright or dark strips, straight or tilted. A collimator leaves a window with sharp or round corners. Paddles leave
# lines. Handling leaves tape, scratches, dust and finger prints.

# %%
#| export
def level(rng: np.random.Generator) -> float:
    "Draw a grey level from 0 to 1; white and black are the most frequent."
    return float(rng.choice([rng.uniform(0.8, 1), 0.0, rng.uniform(0, 1)], p=[0.4, 0.35, 0.25]))

def hide(
    s: Scene,             # changed in place
    where: np.ndarray,    # float32 (rows, columns), opacity from 0 to 1
    grey,                 # grey level from 0 to 1, a number or an array (rows, columns)
):
    "Put something in front of the breast, and remove from `cover` what is hidden."
    s.picture += where * (grey - s.picture)
    s.cover *= where < 0.5

def borders(rng: np.random.Generator, s: Scene):
    "Draw the surroundings of the film, the edges of the film and the collimator."
    rows, columns = shape = s.cover.shape
    if not s.film.all():
        around = level(rng) + rng.choice([0, rng.uniform(0.02, 0.2)]) * field(rng, shape, rng.uniform(2, 20))
        hide(s, np.float32(~s.film), np.clip(around, 0, 1))
    y, x = np.arange(rows, dtype=np.float32)[:, None], np.arange(columns, dtype=np.float32)[None]
    # distance to each side, in pixels, and position along that side, 0 to 1
    sides = ((x, y / rows), (columns - 1 - x, y / rows), (y, x / columns), (rows - 1 - y, x / columns))
    if chance(rng, 0.4):
        bright, uneven = level(rng), rng.uniform(0, 0.3) * chance(rng, 0.4)
        for k in rng.permutation(4)[:rng.choice([1, 2, 3, 4], p=[0.45, 0.2, 0.1, 0.25])]:
            away, along = sides[k]
            wide = log_uniform(rng, 0.003, 0.08) * max(shape)
            tilt = rng.uniform(-1, 1) * chance(rng, 0.5)
            strip = wide * (1 + tilt * (along - 0.5)) + (0.2 * wide * field(rng, shape, 12) if uneven else 0)
            hide(s, np.clip(strip - away, 0, 1), np.clip(bright + uneven * field(rng, shape, 8), 0, 1))
    if chance(rng, 0.15):
        box = np.array(mask_box(s.cover > 0.5) or (0, 0, columns, rows), float)
        # distance from the window to each side, in pixels
        edge = np.array([box[0], box[1], columns - box[2], rows - box[3]]) * rng.uniform(-0.03, 0.98, 4) - 2
        lean = rng.uniform(-0.06, 0.06, 4) * chance(rng, 0.4)
        corner = rng.choice([0, rng.uniform(0.02, 0.4)]) * min(shape)
        ways = [edge[i] + lean[i] * max(shape) * along - away for i, (away, along) in zip((0, 2, 1, 3), sides)]
        across, down = np.maximum(ways[0], ways[1]) + corner, np.maximum(ways[2], ways[3]) + corner
        beyond = np.hypot(np.maximum(across, 0), np.maximum(down, 0)) - corner if corner else np.maximum(across, down)
        hide(s, np.clip(beyond, 0, 1), np.float32(level(rng)))

def handling(rng: np.random.Generator, s: Scene):
    "Add lines of paddles, scratches, dust, tape, finger prints and shading."
    rows, columns = shape = s.cover.shape
    ink = np.zeros(shape, np.uint8)
    anywhere = lambda: (int(rng.uniform(-0.1, 1.1) * columns), int(rng.uniform(-0.1, 1.1) * rows))
    for _ in range(rng.poisson(0.35)):  # paddles, seams of a detector
        start, end = anywhere(), anywhere()
        if chance(rng, 0.7):
            end = (start[0], end[1]) if chance(rng, 0.5) else (end[0], start[1])
        cv2.line(ink, start, end, int(rng.uniform(60, 255)), int(rng.choice([1, 1, 2])), cv2.LINE_AA)
    if chance(rng, 0.06):
        cv2.rectangle(ink, anywhere(), anywhere(), int(rng.uniform(60, 255)), 1, cv2.LINE_AA)
    if chance(rng, 0.10):
        for _ in range(rng.integers(2, 12)):
            path = strokes(rng, anywhere(), rng.uniform(0.02, 0.3) * rows, 0.05)
            cv2.polylines(ink, [path], False, int(rng.uniform(40, 255)), 1, cv2.LINE_AA, 4)
    s.picture += ink * np.float32(rng.uniform(0.1, 0.6) * rng.choice([-1, 1, 1]) / 255)
    if chance(rng, 0.10):  # dust
        for _ in range(rng.integers(4, 60)):
            value = rng.choice([0, 1])
            s.picture[int(rng.integers(rows)), int(rng.integers(columns))] = value
    if chance(rng, 0.06):  # tape and finger prints, which are transparent
        ink[:] = 0
        for _ in range(rng.integers(1, 4)):
            cv2.ellipse(ink, anywhere(), (int(rng.uniform(0.01, 0.05) * rows), int(rng.uniform(0.01, 0.07) * rows)),
                        rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
        if chance(rng, 0.5):
            tape = anywhere(), (rng.uniform(0.2, 0.6) * rows, rng.uniform(0.03, 0.08) * rows), rng.uniform(0, 180)
            cv2.fillConvexPoly(ink, np.int32(cv2.boxPoints(tape)), 255, cv2.LINE_AA)
        s.picture += ink * np.float32(rng.uniform(-0.15, 0.25) / 255)
    if chance(rng, 0.2):
        s.picture *= 1 + np.float32(rng.uniform(0.05, 0.2)) * field(rng, shape, rng.uniform(1, 3))
    np.clip(s.picture, 0, 1, out=s.picture)

# %%
sheet([s.picture for s in scenes(light, air, borders, handling)], title="borders and handling");

# %% [markdown]
# ## Markers
# Markers are lead letters, plates, burned-in text, large labels, beads and step wedges. They are upright, rotated,
# tilted or seen from behind. Most lie in the air beside the breast, and a few touch it.

# %%
#| export
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX,
         cv2.FONT_HERSHEY_TRIPLEX)
WORDS = ("AB", "M.K.", "RT 3", "1", "2", "12", "04-11-97", "1998", "28 kV", "65 mAs", "ID 4711", "MAG", "XCCL", "AX",
         "LM", "W/O", "TOMO", "31 kV Rh/Rh", "DOB 1944", "SCREENING", "D 12:40")

def write_words(
    rng: np.random.Generator,
    lines: list,          # lines of text
    tall: float,          # height of a line, in pixels
) -> np.ndarray:          # float32 (rows, columns), 0 to 1
    "Draw lines of text in a random font."
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
    side: str,            # L or R
    view: str,            # CC or MLO
    size: int,            # longest side of the frame, in pixels
) -> tuple:               # brightness and coverage, both float32 (rows, columns), 0 to 1
    "Draw letters, a plate with letters, a bead, a ring or a step wedge."
    bright, tall = rng.uniform(0.6, 1.0), max(4.0, size * log_uniform(rng, 0.018, 0.09))
    if chance(rng, 0.1):
        side, view = str(rng.choice(list("LR"))), str(rng.choice(["CC", "MLO"]))
    if chance(rng, 0.65):
        usual = [f"{side} {view}", f"{side}{view}", f"{side}-{view}", side, view, f"{side} {view} {rng.integers(10)}"]
        lines = [str(rng.choice(usual))]
    else:
        lines = [str(rng.choice(WORDS))]
    kind = rng.random()
    if kind < 0.55:  # letters
        second = str(rng.choice(WORDS))
        if rng.integers(0, 2):
            lines.append(second)
        cover = write_words(rng, lines, tall)
        picture = np.full_like(cover, bright)
    elif kind < 0.82:  # a plate or an identification block
        lines += [str(w) for w in rng.choice(WORDS, rng.integers(0, 5))]
        tall = min(tall, 0.3 * size / len(lines))
        letters = write_words(rng, lines, tall)
        margins = [int(v) for v in rng.uniform(0, 0.8 * tall, 4)]
        letters = cv2.copyMakeBorder(letters, *margins, cv2.BORDER_CONSTANT, value=0)
        ground, ink = (bright, rng.uniform(0, 0.5)) if chance(rng, 0.6) else (rng.uniform(0, 0.45), bright)
        picture, cover = ground + (ink - ground) * letters * (rng.random() > 0.12), np.ones_like(letters)
    elif kind < 0.93:  # a bead or a ring
        r = max(1, int(size * log_uniform(rng, 0.004, 0.03)))
        cover = cv2.circle(np.zeros((2 * r + 3, 2 * r + 3), np.float32), (r + 1, r + 1), r, 1.0,
                           int(rng.choice([-1, -1, 1])), cv2.LINE_AA)
        picture = np.full_like(cover, bright)
    else:  # a step wedge
        steps = np.linspace(rng.uniform(0, 0.4), bright, int(rng.integers(4, 12)), dtype=np.float32)
        picture = np.repeat(steps, max(2, int(tall * rng.uniform(0.4, 1))))[None].repeat(int(tall), 0)
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
    "Add up to five markers beside the breast."
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
sheet([s.picture for s in scenes(light, air, markers)], title="markers");

# %% [markdown]
# ## Noise
# The machine leaves quantum noise, film grain, a little blur, traces of resampling and of JPEG compression, a tone
# curve, and sometimes an inverted picture. Values outside the range from 0 to 1 are clipped.

# %%
#| export
def noise(rng: np.random.Generator, s: Scene):
    "Add blur, resampling, noise, JPEG artefacts, a tone curve and inversion."
    p, shape = s.picture, s.cover.shape
    if chance(rng, 0.10):
        factor, how = rng.uniform(0.35, 0.8), int(rng.choice([cv2.INTER_AREA, cv2.INTER_NEAREST]))
        small = cv2.resize(p, None, fx=factor, fy=factor, interpolation=how)
        p = cv2.resize(small, shape[::-1], interpolation=cv2.INTER_LINEAR)
    if chance(rng, 0.25):
        p = cv2.GaussianBlur(p, (0, 0), rng.uniform(0.4, 1.5))
    if chance(rng, 0.10):  # sharpening
        p = p + np.float32(rng.uniform(0.3, 1.2)) * (p - cv2.GaussianBlur(p, (0, 0), rng.uniform(0.7, 3)))
    if chance(rng, 0.40):
        grain = np.float32(log_uniform(rng, 0.003, 0.05)) * rng.standard_normal(shape, dtype=np.float32)
        if chance(rng, 0.5):
            grain = grain * np.sqrt(np.clip(p, 0, 1))
        p = p + grain
    if chance(rng, 0.10):
        p = p + np.float32(log_uniform(rng, 0.004, 0.03)) * field(rng, shape, max(shape) / rng.uniform(1.5, 5))
    p = np.clip(p, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.2)))
    if chance(rng, 0.15):
        coded = cv2.imencode(".jpg", np.uint8(p * 255), [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 95))])[1]
        p = cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
    s.picture = 1 - p if chance(rng, 0.06) else p

# %% [markdown]
# ## What came out
# All eight families, in the order in which a frame gets them:

# %%
families = light, contents, air, neighbours, borders, handling, markers, noise
sheet([s.picture for s in scenes(*families)], title="all families");

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

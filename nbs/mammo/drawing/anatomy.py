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
# # Anatomy
# > A breast that nobody has to ask permission for.
#
# A pipeline cannot be shown, taught or tested without mammograms, and mammograms cannot be passed around. Here one is
# drawn from a seed: outline, pectoral muscle, fat and glandular tissue, vessels, and, if asked for, a lesion whose
# place is known to the pixel.

# %%
#| default_exp mammo.drawing.anatomy

# %% tags=["parameters"]
rows, columns = 832, 640   # frame, pixels
seed = 7                   # another seed, another woman
conspicuity = 1.0          # contrast of lesions, 1 = readable by an attentive eye

# %%
#| export
from dataclasses import dataclass, replace
import cv2
import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import expit
from mammo_nb.mammo.drawing.texture import FIELD, Frame, crop_frame, curve, draw_curves, fill, fixed_point, make_frame, power_law, ridges, smooth_noise, strands

# %%
#| hide
import matplotlib.pyplot as plt

# %% [markdown]
# ## A woman, then her pictures
# What the two views of a breast share is decided once: its size, its density, and where a lesion lies. A lesion is
# placed as radiologists compare views, by its distance from the nipple.

# %%
#| export
WORKING = 1280     # rows above which everything but the finest structure is drawn reduced
KINDS = {"mass": 255, "calcifications": 224, "benign_mass": 192, "benign_calcifications": 160}  # grey in a mask
BREAST = 64                                                                                     # grey of the breast

@dataclass(frozen=True)
class Anatomy:
    "What both views of one breast have in common."
    depth: float              # chest wall to nipple, mm
    height: float             # half the base of the breast, mm
    density: float            # 0 (BI-RADS A) to 1 (D)
    distance: float = 0.5     # lesion to nipple, as a share of the depth
    angles: tuple = (0., 0.)  # of the lesion seen from the nipple, radians from the axis, CC and MLO
    size: float = 16.0        # diameter of the lesion, mm
    implant: bool = False
    vascular: bool = False    # calcified arteries

def draw_anatomy(
    rng: np.random.Generator,
    density: float | None = None,   # 0 to 1; drawn if None
    implant: bool = False,
) -> Anatomy:
    "A breast, without its lesion's kind."
    depth = float(np.clip(rng.normal(88, 14), 60, 115))
    return Anatomy(depth=depth, height=float(np.clip(depth * rng.normal(0.86, 0.08), 50, 92)),
                   density=float(rng.beta(2, 2.4)) if density is None else density,
                   distance=float(rng.uniform(0.35, 0.7)), angles=tuple(rng.uniform(-0.65, 0.65, 2).tolist()),
                   size=float(rng.uniform(14, 23)), implant=implant, vascular=bool(rng.random() < 0.12))

def other_breast(
    rng: np.random.Generator,
    breast: Anatomy,
) -> Anatomy:
    "The same woman's other breast: nearly the same size and density, its own lesion site."
    own = draw_anatomy(rng)
    return replace(breast, depth=breast.depth * rng.uniform(0.95, 1.05), height=breast.height * rng.uniform(0.96, 1.04),
                   distance=own.distance, angles=own.angles, size=own.size)

# %%
draw_anatomy(np.random.default_rng(seed))

# %% [markdown]
# ## The outline
# Everything is drawn with the chest wall on the left and measured in millimetres from the frame's upper left corner; a
# right breast is mirrored at the end. From above (CC) a breast is half an ellipse. From the side (MLO) it hangs: the
# axillary tail runs out of the frame at the top, the nipple points forward and a little down, and the inframammary fold
# closes it below.

# %%
#| export
def outline(
    rng: np.random.Generator,
    breast: Anatomy,
    view: str,          # CC or MLO
    width: float,       # of the frame, mm
# polygon n x 2 mm, nipple (x, y) mm, direction of the nipple's axis in radians, fold y mm or None
) -> tuple:
    "The skin, as a spline through a few landmarks."
    depth, half = min(breast.depth, 0.85 * width), breast.height
    if view == "CC":
        middle = FIELD * rng.uniform(0.46, 0.54)
        angle = np.linspace(-np.pi / 2, np.pi / 2, 15)
        bulge = 1 + np.interp(angle, np.linspace(-np.pi / 2, np.pi / 2, 6), rng.normal(0, 0.015, 6))
        power = rng.uniform(0.72, 0.9)
        x = depth * np.cos(angle) ** power * bulge
        y = middle + half * np.sign(angle) * np.abs(np.sin(angle)) ** 0.95 * bulge
        x[[0, -1]] = -2
        nipple, axis, fold = (float(depth * bulge[7]), float(middle)), 0.0, None
    else:
        drop = rng.uniform(0.56, 0.64) * FIELD                # height of the nipple
        fold = min(drop + half * rng.uniform(0.60, 0.80), 0.94 * FIELD)
        arm = depth * rng.uniform(0.5, 0.7)                   # width of the axilla at the top of the frame
        x = np.array([
            arm * 1.02, arm, arm * 1.06, 0.84 * depth, 0.97 * depth, depth, 0.93 * depth, 0.72 * depth, 0.42 * depth,
            0.14 * depth, -2
        ])
        y = np.array([-12, 0.04 * FIELD, 0.18 * FIELD, drop - 0.62 * half, drop - 0.28 * half, drop, drop + 0.26 * half,
                      drop + 0.52 * half, (drop + 0.68 * half + fold) / 2, fold - 1, fold + 1])
        x[1:-2] *= 1 + rng.normal(0, 0.012, len(x) - 3)
        nipple, axis = (float(x[5]), float(y[5])), rng.uniform(0.05, 0.2)
    t = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    fine = np.linspace(0, t[-1], 240)
    points = np.stack([CubicSpline(t, x)(fine), CubicSpline(t, y)(fine)], 1)
    corner = [(-5, points[0, 1])] if view == "MLO" else []
    return np.concatenate([points, [(-5, points[-1, 1])], np.array(corner).reshape(-1, 2)]), nipple, axis, fold

# %%
frame = make_frame(rows, columns)
woman = draw_anatomy(np.random.default_rng(seed))
fig, axes = plt.subplots(1, 6, figsize=(10, 2.4))
for i, ax in enumerate(axes):
    view = ("CC", "MLO")[i % 2]
    skin, nipple, axis, fold = outline(np.random.default_rng(i), draw_anatomy(np.random.default_rng(i // 2)), view,
                                       columns * frame.mm)
    ax.imshow(fill(frame, skin), cmap="gray", extent=(0, columns * frame.mm, FIELD, 0))
    ax.plot(*nipple, "r.")
    ax.set_title(view)
    ax.axis("off")

# %% [markdown]
# ## Gland and muscle
# Glandular tissue is a disc behind the nipple, with lobules of fat in it. A mammogram is a projection: several layers
# of tissue are added up, which is what gives it its veils.

# %%
#| export
def gland(
    rng: np.random.Generator,
    frame: Frame,
    breast: Anatomy,
    view: str,
    nipple: tuple,         # x, y mm
    axis: float,           # radians by which the breast hangs
    rays: list,            # noise drawn out towards the nipple, rows x columns, one field a layer
) -> np.ndarray:           # float32, 0 = fat, about 1 = dense
    """Fibroglandular tissue: a disc behind the nipple with lobules of fat in it, larger and fuller the denser the
    breast."""
    # soft enough for half the resolution
    whole, frame, depth = frame, make_frame(frame.rows // 2, frame.columns // 2), nipple[0]
    rise = -np.tan(axis) * 2.2 if view == "MLO" else rng.normal(0, 0.12)
    u = (nipple[0] - frame.x) / depth                                          # 0 at the nipple, 1 at the chest wall
    v = (frame.y - nipple[1] - rise * (nipple[0] - frame.x)) / breast.height
    spread = 0.16 + (0.4 + 0.25 * breast.density) * np.sqrt(np.clip(u, 0, 1))
    disc = 1 - np.hypot((u - 0.40) / (0.42 + 0.16 * breast.density), v / spread)
    disc = 1.7 * disc + 0.5 * smooth_noise(rng, frame, 4.0, 34, 0.5) - 0.85 + 0.95 * breast.density
    dense = np.zeros_like(disc)
    for r in rays: # a mammogram is a projection: layers add up, which no single threshold can imitate
        lobes = smooth_noise(rng, frame, 3.8, 26)
        fat = 0.8 * smooth_noise(rng, frame, 4.4, rng.uniform(10, 22)) + 0.6 * cv2.resize(
            r, disc.shape[::-1], interpolation=cv2.INTER_AREA) - 0.8 * breast.density
        body = expit(3.2 * (disc + 0.45 * lobes))
        dense += body * (0.95 + 0.12 * lobes - 0.8 * expit(3.5 * fat) + 0.35 * ridges(fat + 0.35, 0.25))
    return cv2.resize(dense / len(rays), (whole.columns, whole.rows), interpolation=cv2.INTER_LINEAR)

def pectoral(
    rng: np.random.Generator,
    frame: Frame,
    breast: Anatomy,
    view: str,
) -> np.ndarray:           # float32, 0 to 1
    "The muscle: a triangle at the top of the chest wall in MLO, at most a sliver in CC."
    if view == "CC":
        if rng.random() > 0.25:
            return np.zeros((frame.rows, frame.columns), np.float32)
        depth, half = rng.uniform(3, 9), breast.height * rng.uniform(0.4, 0.6)
        y = np.linspace(-half, half, 30)
        points = np.stack([depth * (1 - (y / half) ** 2), y + FIELD / 2 * rng.uniform(0.9, 1.1)], 1)
    else:
        top, bottom = breast.depth * rng.uniform(0.36, 0.52), FIELD * rng.uniform(0.45, 0.62)
        t = np.linspace(0, 1, 30)
        x = top * (1 - t) + rng.uniform(0.0, 5) * np.sin(np.pi * t)
        points = np.stack([np.append(x, -9), np.append(t * bottom, -9)], 1)
    return cv2.GaussianBlur(fill(frame, points), (0, 0), 1.2 / frame.mm)

# %%
nipple = (80., 120.)
fig, axes = plt.subplots(1, 4, figsize=(10, 3.2))
rng = np.random.default_rng(seed)
rays = [strands(rng, frame, nipple, 4, 800, 4.4) for _ in range(3)]
for ax, (title, picture) in zip(
        axes, {
            "strands": ridges(rays[0], 0.15), "gland, B": gland(
                rng, frame, replace(woman, density=0.3), "CC", nipple, 0, rays), "gland, D": gland(
                    rng, frame, replace(woman, density=0.95), "CC", nipple, 0, rays), "pectoral muscle": pectoral(
                        rng, frame, woman, "MLO")
        }.items()):
    ax.imshow(picture, cmap="gray")
    ax.set_title(title)
    ax.axis("off")

# %% [markdown]
# ## Lesions
# A cancer is a dense core that pulls its surroundings into *spicules*, or a cluster of fine, irregular
# *micro-calcifications*. Their benign cousins are round and smooth, or few and coarse. Each function returns a shape
# between 0 and 1; how bright it becomes is decided later.

# %%
#| export
def mass(
    rng: np.random.Generator,
    frame: Frame,
    centre: tuple,         # x, y mm
    size: float,           # diameter of the core, mm
    malignant: bool,
) -> np.ndarray:           # float32, 0 to 1
    "A spiculated, irregular mass, or a smooth oval one."
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
    centre: tuple,         # x, y mm
    size: float,           # diameter of the cluster, mm
    malignant: bool,
) -> np.ndarray:           # float32, 0 to 1
    "A cluster of fine, pleomorphic grains, or a few coarse round ones."
    canvas = np.zeros((frame.rows, frame.columns), np.uint8)
    count = rng.integers(30, 50) if malignant else rng.integers(1, 4)
    spread = rng.uniform(0.6, 1, 2) * size / 4
    for x, y in rng.normal(0, 1, (count, 2)) * spread + centre:
        grain = np.clip(rng.lognormal(-0.7, 0.35), 0.25, 0.9) if malignant else rng.uniform(0.9, 1.8)   # radius, mm
        form = (grain, grain * rng.uniform(0.3, 0.9)) if malignant else (grain, grain * rng.uniform(0.85, 1))
        level = rng.uniform(120, 255)
        shrink = min(1.0, form[1] / frame.mm)                                      # a grain below a pixel is fainter
        axes = tuple(max(8, round(f / frame.mm * 16)) for f in form)
        cv2.ellipse(canvas, tuple(fixed_point(frame, (x, y)).tolist()), axes, rng.uniform(0, 180), 0, 360,
                    int(level * shrink), -1, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(canvas, (0, 0), max(0.12 / frame.mm, 0.35)).astype(np.float32) / 255

# %%
lesions = {
    "mass": mass(rng, frame, (60, 120), 18, True), "benign_mass": mass(rng, frame, (60, 120), 14, False),
    "calcifications": calcifications(rng, frame, (60, 120), 16, True), "benign_calcifications": calcifications(
        rng, frame, (60, 120), 16, False)
}
fig, axes = plt.subplots(1, 4, figsize=(10, 2.8))
for ax, (kind, picture) in zip(axes, lesions.items()):
    ax.imshow(picture, cmap="gray", extent=(0, columns * frame.mm, FIELD, 0))
    ax.set(title=kind, xlim=(30, 90), ylim=(150, 90))
    ax.axis("off")
    assert picture.max() > 0.5

# %% [markdown]
# ## All together
# The presented picture is nearly flat from the chest wall to a few millimetres below the skin, where the breast gets
# thinner and darker (manufacturers equalise the periphery), and ends in the bright line of the skin itself. A lesion's
# place is looked for around the angle that the anatomy wants, until it lies in the breast and clear of muscle and skin.

# %%
#| export
@dataclass(frozen=True)
class Breast:
    "A picture and its truth."
    pixels: np.ndarray        # float32 rows x columns, 0 (air) to 1
    breast_mask: np.ndarray   # bool, same shape
    lesion_mask: np.ndarray   # uint8, same shape, grey of KINDS or 0
    box: tuple                # x0, y0, x1, y1 of the breast, half-open, pixels

def mask_box(
    mask: np.ndarray,   # 2-D, true inside
) -> tuple:             # x0, y0, x1, y1, half-open; () if empty
    "The bounding box of a mask."
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1) if len(xs) else ()

def place(
    frame: Frame,
    breast: Anatomy,
    view: str,
    nipple: tuple,         # x, y mm
    axis: float,           # radians
    room: np.ndarray,      # distance of each pixel to skin and chest wall, mm; 0 in the muscle
) -> tuple:                # x, y mm
    "A lesion's centre: at its distance from the nipple, as near its angle as there is room."
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
    picture: np.ndarray,   # changed in place
    cover: np.ndarray,     # 0 to 1, the breast
    lesion: str,           # a key of KINDS
    centre: tuple,         # x, y mm
    size: float,           # mm
    conspicuity: float,
) -> np.ndarray:           # uint8, 1 in the mass
    "A mass, or the denser, drawn-in tissue that malignant calcifications lie in."
    gain = {"mass": 0.48, "calcifications": 0.27, "benign_mass": 0.26, "benign_calcifications": 0.0
            }[lesion] * conspicuity
    near, part = crop_frame(frame, centre, 2.5 * size)
    added = mass(rng, near, centre, size, not lesion.startswith("benign"))
    picture[part] += gain * added * (1 - 0.35 * picture[part]) * cover[part]   # film and display saturate
    mask = np.zeros(cover.shape, np.uint8)
    mask[part] = added > 0.25
    return mask

def add_calcifications(
    rng: np.random.Generator,
    frame: Frame,
    picture: np.ndarray,   # changed in place
    cover: np.ndarray,     # 0 to 1, the breast
    lesion: str,           # a key of KINDS
    centre: tuple,         # x, y mm
    size: float,           # mm
    conspicuity: float,
) -> np.ndarray:           # uint8, 1 in the grains and between neighbours
    "Grains of calcium, the brightest thing in a breast."
    near, part = crop_frame(frame, centre, 2 * size)
    added = calcifications(rng, near, centre, size, not lesion.startswith("benign"))
    picture[part] += 0.7 * conspicuity * added * cover[part]
    reach = max(3, round(3 / frame.mm)) | 1
    mask = np.zeros(cover.shape, np.uint8)
    mask[part] = cv2.morphologyEx((added > 0.2).astype(np.uint8), cv2.MORPH_CLOSE,
                                  cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    return mask

def tissue(
    rng: np.random.Generator,
    frame: Frame,
    breast: Anatomy,
    view: str,
    nipple: tuple,         # x, y mm
    axis: float,           # radians
    cover: np.ndarray,     # 0 to 1, the breast
    skin: np.ndarray,      # distance to the skin, mm
) -> tuple:                # float32 picture without lesions, muscle 0 to 1
    "Fat, gland, septa, muscle, vessels and skin."
    clouds = power_law(rng, (frame.rows, frame.columns), 3.0, largest=30 / frame.mm)
    rays = [strands(rng, frame, (nipple[0] + 14, nipple[1]), rng.uniform(3, 5), 800, 4.4) for _ in range(3)]
    septa = sum(ridges(r + 0.1 * clouds, 0.10)
                for r in rays) + 0.6 * ridges(smooth_noise(rng, frame, 4.4, 22) + 0.15 * clouds, 0.10)
    dense = gland(rng, frame, breast, view, nipple, axis, rays) * np.clip(skin / 10, 0, 1)
    muscle = pectoral(rng, frame, breast, view)
    vessels = [(curve(rng, (rng.uniform(0, 0.35) * nipple[0], nipple[1] + rng.uniform(-0.7, 0.7) * breast.height),
                      rng.normal(0, 0.35),
                      rng.uniform(0.5, 0.9) * nipple[0], 0.14), rng.uniform(0.5, 1.2))
               for _ in range(rng.integers(3, 8))]
    thickness = np.sqrt(1 - (1 - np.clip(skin / 22, 0, 1)) ** 2)
    fat = 0.19 + 0.018 * clouds + 0.05 * septa
    picture = fat + dense * (0.48 + 0.04 * clouds + 0.05 * septa)
    picture += muscle * (0.20 + 0.16 * np.clip(1 - frame.y / 130, 0, 1) + 0.012 * clouds + 0.03 * septa) * (
        1 - 0.5 * dense) + 0.07 * draw_curves(frame, vessels)
    if view == "MLO" and rng.random() < 0.4:  # lymph nodes: ovals with a fatty hilum, where the muscle ends
        for _ in range(rng.integers(1, 3)):
            cx, cy, size = rng.uniform(0.2, 0.5) * breast.depth, rng.uniform(25, 80), rng.uniform(2.5, 4.5)
            u = np.hypot((frame.x - cx) / size, (frame.y - cy) / (1.4 * size))
            picture += 0.16 * expit(8 * (1 - u)) * (1 - 0.8 * np.exp(-3 * u**2))
    if breast.vascular:
        path, width = vessels[0]
        dots = [(path[i:i + 2] + side, 0.3) for side in (-1.1, 1.1) for i in range(4,
                                                                                   len(path) - 4) if rng.random() < 0.5]
        picture += 0.4 * draw_curves(frame, dots)
    if breast.implant:
        u, v = frame.x / (0.72 * nipple[0]), (frame.y - nipple[1] + 4) / (0.62 * breast.height)
        bag = np.clip((1 - np.hypot(u, v)) * 0.5 * nipple[0] / 1.5, 0, 1)
        picture = picture * (1 - bag) + bag * (0.84 + 0.05 * np.clip(1 - np.hypot(u, v), 0, 1))
    picture = picture * (0.3 + 0.7 * thickness) + 0.05 * np.exp(-((skin - 0.8) / 0.7) ** 2)
    nub = np.exp(-(((frame.x - nipple[0] + 1) / 5) ** 2 + ((frame.y - nipple[1]) / 4.2) ** 2) ** 2)
    return (picture + 0.12 * nub) * cover, muscle

def make_breast(
    rng: np.random.Generator,
    laterality: str,                  # L or R; a right breast has its chest wall on the right
    view: str,                        # CC or MLO
    frame: tuple,                     # rows, columns
    lesion: str | None = None,        # a key of KINDS
    breast: Anatomy | None = None,    # drawn if None
    conspicuity: float = 1.0,         # contrast of the lesion; 0 = not there to be seen
) -> Breast:
    "One mammogram."
    if lesion is not None and lesion not in KINDS:
        raise ValueError(f"No lesion {lesion!r}. There are {', '.join(KINDS)}.")
    rows, columns = frame
    factor = max(1, rows / WORKING)
    small = make_frame(round(rows / factor), round(columns / factor))
    breast = breast or draw_anatomy(rng)
    polygon, nipple, axis, fold = outline(rng, breast, view, columns * FIELD / rows)
    # the nipple is in profile, or not quite
    bump, reach = np.linspace(0, 2 * np.pi, 40), rng.uniform(0, 3.5)
    cover = np.maximum(fill(small, polygon),
                       fill(small, np.stack([nipple[0] + reach * np.cos(bump), nipple[1] + 4.5 * np.sin(bump)], 1)))
    skin = cv2.distanceTransform((cover > 0.5).astype(np.uint8), cv2.DIST_L2, 5) * np.float32(small.mm)
    picture, muscle = tissue(rng, small, breast, view, nipple, axis, cover, skin)
    if lesion:
        centre = place(small, breast, view, nipple, axis, np.where(muscle < 0.3, np.minimum(skin, small.x), 0))
        size = breast.size * (0.75 if lesion.startswith("benign") else 1)
        lesion_mask = add_mass(rng, small, picture, cover, lesion, centre, size, conspicuity)
    full = make_frame(rows, columns)
    if factor > 1:
        picture, cover = (cv2.resize(a, (columns, rows), interpolation=cv2.INTER_LINEAR) for a in (picture, cover))
        fine = power_law(rng, (512, 512), 3.0, largest=2 * factor)
        picture += np.tile(0.006 * fine, (-(-rows // 512), -(-columns // 512)))[:rows, :columns] * cover
    inside = cover > 0.5
    lesion_mask = cv2.resize(lesion_mask, (columns, rows), interpolation=cv2.INTER_NEAREST) if lesion else np.zeros(
        (rows, columns), np.uint8)
    if fold and rng.random() < 0.25:  # the upper abdomen, below the fold: skin in the frame that is no breast
        belly = np.clip((rng.uniform(4, 9) - full.x + 3 * np.sin(full.y / 15)) / 6, 0, 1) ** 0.5 * (full.y > fold + 4)
        picture = np.where(inside, picture, np.maximum(picture, 0.22 * belly))
    if lesion and lesion.endswith("calcifications"): # too fine to be drawn reduced
        lesion_mask = add_calcifications(rng, full, picture, cover, lesion, centre, size, conspicuity)
    picture += rng.standard_normal(
        (rows, columns), dtype=np.float32) * np.float32(0.006) * np.sqrt(np.clip(picture, 0, 1))
    pixels = np.clip(picture, 0, 1).astype(np.float32)
    lesion_mask = lesion_mask * inside * np.uint8(KINDS.get(lesion, 0))
    if laterality == "R":
        pixels, inside, lesion_mask = (np.ascontiguousarray(a[:, ::-1]) for a in (pixels, inside, lesion_mask))
    return Breast(pixels, inside, lesion_mask, mask_box(inside))

# %%
fig, axes = plt.subplots(2, 6, figsize=(12, 5.4), facecolor="black")
for i, ax in enumerate(axes.flat):
    rng = np.random.default_rng([seed, i // 2])
    b = make_breast(rng, "LR"[i // 2 % 2], ("CC", "MLO")[i % 2], (rows, columns),
                    (None, "mass", "calcifications", "benign_mass", "benign_calcifications", None)[i // 2],
                    draw_anatomy(rng), conspicuity)
    assert b.box == mask_box(b.breast_mask) and not (b.lesion_mask[~b.breast_mask]).any()
    ax.imshow(b.pixels, cmap="gray", vmin=0, vmax=1)
    ax.axis("off")
    if b.lesion_mask.any():
        x0, y0, x1, y1 = mask_box(b.lesion_mask)
        ax.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="yellow", lw=0.6))
fig.tight_layout(pad=0.2)

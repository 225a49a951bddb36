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
# # Tissue
# > A box that was found roughly is moved to the edge of the tissue in it.
#
# A detector that was trained on drawings is some percent wrong at each side of its box, and often the nipple is
# outside. The pixels show where the breast ends. A box may be a little too large, but it must not cut tissue.

# %%
#| default_exp mammo.reading.tissue

# %%
#| export
from dataclasses import dataclass

import cv2
import numpy as np

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.mammo.drawing.breast import make_breast

# %% tags=["parameters"]
seed = 4   # of the drawn breast

# %% [markdown]
# An example: a breast above an abdomen, a marker in the air, a bright strip of the collimator at the upper edge, and a
# box that cuts the nipple.

# %%
#| hide
drawn = make_breast(np.random.default_rng(seed), "L", "MLO", (416, 320))
picture = drawn.pixels.copy()
x0, y0, x1, y1 = drawn.box
picture[y1 + 3:, :40] = 0.3
picture[20:50, 270:310] = 1
picture[:4] = 1
rough = x0, y0 + 30, x1 - 25, y1 + 12

def show(ax, box, colour):
    "Draw a box."
    ax.add_patch(plt.Rectangle(box[:2], box[2] - box[0], box[3] - box[1], fill=False, edgecolor=colour))

# %%
fig, ax = plt.subplots(figsize=(3, 4))
ax.imshow(picture, cmap="gray")
show(ax, rough, "orange")
ax.axis("off");

# %% [markdown]
# ## Grey levels of air and tissue
# The box grows at most up to its limits: each side by a share of the box's width or height. The pixels between the box
# and its limits are mostly air, those in the middle of the box are mostly tissue. A picture with bright air is negated
# first. The air needs a spread, because it may be noisy or uneven.

# %%
#| export
def enlarge(
    box,            # x0, y0, x1, y1 in pixels
    share: float,   # of width and height that each side is moved outwards by; negative: inwards
    shape: tuple,   # rows, columns of the picture
) -> tuple:         # x0, y0, x1, y1 in whole pixels inside the picture
    "Move all sides of a box."
    x0, y0, x1, y1 = box
    across, down = share * (x1 - x0), share * (y1 - y0)
    low = max(0, int(np.floor(x0 - across))), max(0, int(np.floor(y0 - down)))
    return *low, min(shape[1], int(np.ceil(x1 + across))), min(shape[0], int(np.ceil(y1 + down)))

@dataclass(frozen=True)
class Levels:
    "Grey levels of a picture."
    air: float
    spread: float   # of the air, as a standard deviation
    tissue: float

def part(
    picture: np.ndarray,   # (rows, columns)
    box: tuple,            # x0, y0, x1, y1 in whole pixels
) -> np.ndarray:           # a view of the same array
    "Give the part of a picture inside a box."
    return picture[box[1]:box[3], box[0]:box[2]]

def measure_levels(
    picture: np.ndarray,   # float32 (rows, columns)
    box,                   # x0, y0, x1, y1 in pixels
    limits: tuple,         # the same for the limits of the box, in whole pixels
) -> Levels | None:        # air is brighter than tissue in a negative; None: there are no two levels
    "Measure air around a box and tissue in its middle, as medians."
    tissue = float(np.median(part(picture, enlarge(box, -0.1, picture.shape))))
    around = np.zeros(picture.shape, bool)
    part(around, limits)[:] = True
    part(around, enlarge(box, 0.02, picture.shape))[:] = False
    ring = picture[around]
    if len(ring) < 0.01 * picture.size:  # the box fills the picture, so only its darkest pixels can be air
        dark = np.sort(part(picture, limits), axis=None)
        ring = dark[:max(1, int(0.03 * picture.size))]
    if np.median(ring) > tissue:
        return Levels(float(np.median(ring)), 0.0, tissue)
    ring = ring[ring < tissue]
    if not len(ring):
        return None
    air = float(np.median(ring))
    return Levels(air, 1.4826 * float(np.median(np.abs(ring - air))), tissue)

# %%
limits = enlarge(rough, 0.2, picture.shape)
levels = measure_levels(picture, rough, limits)
print(limits, levels)
assert levels.air < 0.05 < 0.15 < levels.tissue

# %% [markdown]
# ## The component in the box
# Pixels that are brighter than a threshold form components. The one with most pixels inside the box is the breast. An
# opening removes lines and thin bridges first, so a marker that is linked by a scratch is another component. What the
# opening took from the rim of the breast is given back, because the nipple and the skin are there.

# %%
#| export
def component(
    mask: np.ndarray,   # bool (rows, columns)
    box,                # x0, y0, x1, y1 in pixels
    size: int,          # diameter of the opening, in pixels, an odd number
) -> np.ndarray:        # bool (rows, columns); empty if the box contains nothing
    "Find the component of a mask that has most pixels inside a box."
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    mask = mask.astype(np.uint8)
    # the breast continues outside of the picture
    continued = cv2.copyMakeBorder(mask, size, size, size, size, cv2.BORDER_REPLICATE)
    opened = cv2.morphologyEx(continued, cv2.MORPH_OPEN, disc)[size:-size, size:-size]
    count, labels = cv2.connectedComponents(opened)
    inside = np.bincount(part(labels, enlarge(box, -0.1, mask.shape)).ravel(), minlength=count)
    inside[0] = 0  # the background
    if not inside.any():
        return np.zeros(mask.shape, bool)
    main = (labels == inside.argmax()).astype(np.uint8)
    near = cv2.dilate(main, np.ones((2 * size + 1, 2 * size + 1), np.uint8)) & mask
    count, labels = cv2.connectedComponents(near)
    kept = np.zeros(count, bool)
    kept[labels[main > 0]] = True
    return kept[labels]

# %%
window = np.zeros(picture.shape, bool)
part(window, limits)[:] = True
breast = component((picture > 0.07) & window, rough, 9)
assert not breast[20:50, 270:].any()   # no marker
plt.figure(figsize=(3, 4))
plt.imshow(breast, cmap="gray")
plt.axis("off");

# %% [markdown]
# ## The end of the breast
# The abdomen below the fold and a strip of the collimator may belong to the same component. A profile separates them:
# the number of its pixels in each row, seen from the breast outwards. It ends where it is empty, or in a valley, after
# which it rises again. A strip along the chest wall has no valley but a constant small width, and the breast ends where
# the strip begins. An axilla may be such a strip, too, but it is as bright as the breast. A strip of film is dark or
# very narrow, so a strip must have little light in each row.
#
# The lower end is a fold, so a shallow valley is enough there. At the upper end only a deep valley counts, because the
# axilla is narrower than the arm and the breast. The columns are treated in the same way, but the nipple is a narrow
# strip, too. So there a strip ends the breast only if it goes on up to the limit of the box.

# %%
#| export
# how far a valley falls below the largest width before, and how far the profile rises after it, both as shares of this
# width
UPPER, LOWER, ACROSS = (0.25, 0.30), (0.60, 0.05), (0.40, 0.20)
FAINT = 0.12     # largest light in a row of a strip, as a share of the largest light in a row of the breast
EVEN = 0.04      # largest change of its width, as a share of the breast's width
LENGTH = 0.08    # least length of a strip, as a share of the box's height or width

def valley_end(
    profile: np.ndarray,   # float (n,), widths in pixels
    start: int,            # index inside the breast
    valley: tuple,         # UPPER, LOWER or ACROSS
) -> int:                  # index of the first element outside
    "Follow a profile to its end or to its first valley."
    peak = low = 0.0
    lowest = start
    for i in range(start, len(profile)):
        width = profile[i]
        if width <= 0:
            return i
        if low < valley[0] * peak and width > low + valley[1] * peak:
            # a valley with a flat floor ends the breast where the floor begins
            higher = np.flatnonzero(profile[start:lowest] > low + 1)
            return start + int(higher[-1]) + 1 if len(higher) else start
        if width > peak:
            peak, low, lowest = width, width, i
        elif width < low:
            low, lowest = width, i
    return len(profile)

def strip_start(
    profile: np.ndarray,   # float (n,), widths in pixels
    light: np.ndarray,     # float (n,), the same with each pixel weighted by its brightness
    end: int,              # from `valley_end`
    length: int,           # least length of a strip, in pixels
) -> int:                  # the end if there is no strip
    "Find where a narrow strip of constant width begins that leads to the end of a profile."
    last = max(0, end - max(3, length // 3))  # behind it may be a rounded corner, or a crossing strip
    peak, strip = profile[:last].max(initial=0), profile[max(0, last - length):last]
    if not len(strip) or np.ptp(strip) > EVEN * peak + 1:
        return end
    if light[last - len(strip):last].max() > FAINT * light[:last].max():
        return end
    wider = np.flatnonzero(profile[:last] > strip.max() + 1)
    return int(wider[-1]) + 1 if len(wider) else end

def side_end(
    profile: np.ndarray,   # float (n,), widths in pixels
    light: np.ndarray,     # as for `strip_start`
    start: int,            # index inside the breast
    limit: int,            # index of the limit of the box
    valley: tuple,         # UPPER, LOWER or ACROSS
    length: int,           # least length of a strip, in pixels
    short: bool,           # whether a strip counts that ends within the limit
) -> tuple[int, str]:      # index of the first element outside; "edge", or beyond the limit "tapering" or "level"
    "Find where the breast ends on one side. If it does not end within the limit: does it become narrower?"
    end = valley_end(profile, start, valley)
    begin = strip_start(profile, light, end, length)
    if begin < end and (short or end >= limit):
        return begin, "edge"
    if end < limit or end >= len(profile):
        return end, "edge"
    widths = profile[start:end]
    narrower = widths[-1] < 0.9 * widths.max() and widths[-1] <= widths[-8:].min() + 0.03 * widths.max()
    return end, "tapering" if narrower else "level"

def component_sides(
    breast: np.ndarray,   # bool (rows, columns), from `component`
    light: np.ndarray,    # float (rows, columns), brightness from 0 for air to 1 for tissue
    box,                  # x0, y0, x1, y1 in pixels
    limits: tuple,        # the same for the limits
) -> tuple:               # x0, y0, x1, y1 as floats; how each of them ends, as from `side_end`
    "Find the four sides of the breast in its component."
    light = light * breast

    def both(axis, rows, low, high, first, last, before, after):
        profile, bright = breast[rows].sum(axis).astype(float), light[rows].sum(axis)
        count, length, inside = len(profile), max(3, round(LENGTH * (high - low))), 0.3 * (high - low)
        start, how_start = side_end(profile[::-1], bright[::-1], count - 1 - int(low + inside), count - first, before,
                                    length, axis == 1)
        end, how_end = side_end(profile, bright, int(high - inside), last, after, length, axis == 1)
        return count - start, end, how_start, how_end

    y0, y1, top, bottom = both(1, np.s_[:], box[1], box[3], limits[1], limits[3], UPPER, LOWER)
    x0, x1, left, right = both(0, np.s_[y0:y1], box[0], box[2], limits[0], limits[2], ACROSS, ACROSS)
    return np.array([x0, y0, x1, y1], float), np.array([left, top, right, bottom])

# %%
light = np.clip((picture - levels.air) / (levels.tissue - levels.air), 0, 1)
sides, ways = component_sides(breast, light, rough, limits)
print(dict(zip(("left", "top", "right", "bottom"), zip(sides.tolist(), ways.tolist()))))
fig, axes = plt.subplots(1, 2, figsize=(6, 4))
axes[0].imshow(picture, cmap="gray")
show(axes[0], sides, "deepskyblue")
axes[0].axis("off")
axes[1].plot(breast.sum(1), np.arange(len(breast)))
axes[1].axhline(sides[3], color="deepskyblue")
axes[1].set(xlabel="pixels of the component in a row", ylim=(len(breast), 0))
fig.tight_layout()

# %% [markdown]
# ## Refining
# The threshold is as low as the air allows, so that the faint line of the skin counts. If a side does not end, the air
# or a collimator is part of the component, and higher thresholds are tried. These see less tissue, so with them the box
# only grows. It only grows, too, if the air is so uneven that its threshold is high, or if the box contains pixels that
# are darker than air, because the rim of such a breast may be as dark as its air. A side that does not end with any
# threshold stays where it was. If the breast becomes narrower up to the limit, the box was far too small, and its new
# limits are searched again.

# %%
#| export
THRESHOLDS = (0, 0.05, 0.1, 0.2, 0.3, 0.4)   # shares of the way from the lowest threshold to the tissue
ROUNDS = 3                                   # how often the limits are moved

def _refined(picture: np.ndarray, box: np.ndarray, growth: float) -> tuple[np.ndarray, bool]:
    "The box within its limits, and whether the breast continues beyond them. The box itself if it has no tissue."
    limits = enlarge(box, growth, picture.shape)
    levels = measure_levels(picture, box, limits)
    if levels and levels.air > levels.tissue:
        picture = -picture
        levels = measure_levels(picture, box, limits)
    if levels is None:
        return box, False
    contrast = levels.tissue - levels.air
    above = max(4 * levels.spread, 0.03 * contrast)
    lowest = levels.air + above
    if above > 0.5 * contrast:
        return box, False
    darker = (part(picture, enlarge(box, 0, picture.shape)) < levels.air - above).mean() > 0.01
    unsure = darker or above > 0.25 * contrast
    window = np.zeros(picture.shape, bool)
    part(window, limits)[:] = True
    light = np.clip((picture - levels.air) / contrast, 0, 1)
    size, refined, further = 1 + 2 * max(1, round(0.01 * max(picture.shape))), box, False
    for step in THRESHOLDS:
        threshold = lowest + step * (levels.tissue - lowest)
        breast = component((picture > threshold) & window, box, size)
        if breast.sum() < 0.3 * (box[2] - box[0]) * (box[3] - box[1]):
            break
        sides, ways = component_sides(breast, light, box, limits)
        sides = np.where(ways == "level", box, sides)
        if step or unsure:
            sides = np.concatenate([np.minimum(sides[:2], box[:2]), np.maximum(sides[2:], box[2:])])
        ended = (ways != "level").all()
        if ended or not step:
            refined, further = sides, (ways == "tapering").any()
        if ended:
            break
    return refined, further

def refine_box(
    picture: np.ndarray,   # (rows, columns), any dtype; a frame of about 400 pixels
    box,                   # x0, y0, x1, y1 in its pixels
    growth: float = 0.2,   # share of width and height by which a side may move outwards in one round
    margin: float = 0.005, # share of the longer side that is added on all sides
) -> np.ndarray:           # float (4,); the box as it was if no tissue stands out from the air
    "Move a box to the edge of the tissue in it."
    smooth, before = cv2.GaussianBlur(picture.astype(np.float32), (5, 5), 0), np.asarray(box, float)
    after, further = before, True
    for _ in range(ROUNDS):
        if further:
            after, further = _refined(smooth, after, growth)
    if after is before:
        return before
    added = margin * max(after[2] - after[0], after[3] - after[1])
    rows, columns = picture.shape
    return np.clip(after + [-added, -added, added, added], 0, [columns, rows, columns, rows])

# %% [markdown]
# ## What came out
# The refined box contains the whole breast with its nipple, and ends at the fold.

# %%
refined = refine_box(picture, rough)
outside = drawn.breast_mask.copy()
part(outside, enlarge(refined, 0, picture.shape))[:] = False
print(f"true {drawn.box}, rough {rough}, refined {refined.round(1)}")
fig, ax = plt.subplots(figsize=(3, 4))
ax.imshow(picture, cmap="gray")
for box, colour in ((drawn.box, "limegreen"), (rough, "orange"), (refined, "deepskyblue")):
    show(ax, box, colour)
ax.axis("off")
assert not outside.any() and np.abs(refined - drawn.box).max() < 9

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

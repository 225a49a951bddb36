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
# # Augment
# > Changes of an image that do not change its label.
#
# A network that is trained on every image thirty times memorises the images, unless they differ each time. The winner
# used a list of ten small transforms with probabilities. Each is a function here, and its random numbers come from a
# generator that the caller seeds. The augmentation of an image depends on its seed and on nothing else.
#
# Four transforms of the winner's library have small defects. Here they are mended, and `faithful` gives them as they
# were: grey levels are rounded and not truncated, sizes and levels of `downscale` too, `elastic` turns around the
# middle, and `grid_distortion` does not read outside of the image. How far the two ways are apart is said in
# `learning/faithful`.

# %%
#| default_exp mammo.learning.augment

# %%
#| export
from functools import partial

import cv2
import numpy as np

from mammo_nb.mammo.learning.faithful import bend, contrast as truncated_contrast, distort, rescale
from mammo_nb.mammo.learning.parts import flip_ends, flip_sides, random_crop

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd

from mammo_nb.core.pictures import fit_resize, sheet
from mammo_nb.mammo.drawing.breast import make_breast

# %% tags=["parameters"]
rows, columns = 1024, 832   # of the frame that the breast below is drawn in, pixels
seed = 7

# %%
drawn = make_breast(np.random.default_rng(seed), "L", "MLO", (rows, columns), "mass")
x0, y0, x1, y1 = drawn.box
breast = (drawn.pixels[y0:y1, x0:x1] * 255).astype(np.uint8)

def show(transform, title: str):
    "The breast as it is, and after eleven draws."
    after = [transform(breast, np.random.default_rng([seed, i])) for i in range(11)]
    assert all(a.dtype == np.uint8 and a.ndim == 2 for a in after) and any(not np.array_equal(a, breast) for a in after)
    sheet([breast, *after], title=title)
    return after

# %% [markdown]
# ## Fewer pixels
# The image is made smaller and resized back, which gives the sharpness of another machine. The result depends on the
# interpolations, so the winner used three pairs of them.

# %%
#| export
def downscale(
    image: np.ndarray,                # uint8 (height, width)
    rng: np.random.Generator,
    down: int = cv2.INTER_LINEAR,     # interpolation of the way down
    up: int = cv2.INTER_LINEAR,       # and of the way up
    scale: tuple = (0.75, 0.95),      # range of the size of the smaller image, as a share
    faithful: bool = False,           # in floats, truncated
) -> np.ndarray:                      # uint8, same shape
    "Lose detail and keep the size."
    h, w = image.shape
    s = rng.uniform(*scale)
    if faithful:
        return rescale(image, s, down, up)
    small = cv2.resize(image, (max(1, round(w * s)), max(1, round(h * s))), interpolation=down)
    return cv2.resize(small, (w, h), interpolation=up)

# %%
around = np.s_[len(breast) // 2 - 60:len(breast) // 2 + 60, 40:160]
kinds = {
    "area, linear": (cv2.INTER_AREA, cv2.INTER_LINEAR),
    "area, Lanczos": (cv2.INTER_AREA, cv2.INTER_LANCZOS4),
    "linear, linear": (cv2.INTER_LINEAR, cv2.INTER_LINEAR),
}
def detail(picture):
    return cv2.Laplacian(picture[around], cv2.CV_32F).std()

left = {name: [downscale(breast, np.random.default_rng(i), *k) for i in range(3)] for name, k in kinds.items()}
sheet([breast[around], *(p[around] for three in left.values() for p in three)], columns=10,
      title=f"a patch, and made small and large again, three draws each: {'; '.join(kinds)}")
deviations = {name: np.mean([detail(p) for p in three]) for name, three in left.items()}
deviations["as it is"] = detail(breast)
sharpness = pd.Series(deviations, name="standard deviation of the Laplacian")
assert sharpness.drop("as it is").max() < sharpness["as it is"]
sharpness.round(2)

# %% [markdown]
# ## Other grey levels
# A tone curve bends the scale and keeps its ends. It is a cubic Bézier curve whose two inner points are drawn around
# 1/4 and 3/4, which on average raises the contrast a little. Brightness and contrast move the ends too, and values
# outside of the scale are clipped. Both are applied as a table of 256 values.

# %%
#| export
def _look_up(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    "Replace each grey level by the one in the table."
    return cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8))

def tone_levels(
    low: float,      # height of the first inner point, 0..1
    high: float,     # and of the second
) -> np.ndarray:     # float (256,)
    "Bernstein form of a cubic from 0 to 255: 3 (1 - t)^2 t low + 3 (1 - t) t^2 high + t^3."
    t = np.linspace(0, 1, 256)
    return 255 * (3 * (1 - t) ** 2 * t * low + 3 * (1 - t) * t ** 2 * high + t ** 3)

def tone_curve(
    image: np.ndarray,          # uint8 (height, width)
    rng: np.random.Generator,
    scale: float = 0.3,         # standard deviation of the inner points
) -> np.ndarray:                # uint8, same shape
    "Apply a random tone curve; black and white stay."
    return _look_up(image, tone_levels(*np.clip(rng.normal((0.25, 0.75), scale), 0, 1)))

def brightness_contrast(
    image: np.ndarray,                # uint8 (height, width)
    rng: np.random.Generator,
    brightness: tuple = (-0.1, 0.2),  # added, as a share of 255
    contrast: tuple = (-0.4, 0.5),    # 1 + this is the factor
    faithful: bool = False,           # truncated
) -> np.ndarray:                      # uint8, same shape
    "Scale and shift the grey levels."
    factor, shift = 1 + rng.uniform(*contrast), rng.uniform(*brightness)
    if faithful:
        return truncated_contrast(image, factor, shift)
    return _look_up(image, np.arange(256) * factor + 255 * shift)

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 2.6))
ramp = np.arange(256, dtype=np.uint8)[None]
for ax, f in zip(axes, (tone_curve, brightness_contrast)):
    for i in range(30):
        ax.plot(f(ramp, np.random.default_rng(i))[0], lw=.8)
    ax.set(title=f.__name__.replace("_", " "), xlabel="grey level before", ylabel="and after")
fig.tight_layout()
assert np.allclose(tone_levels(1 / 3, 2 / 3), np.arange(256))   # thirds are the straight line

# %%
show(tone_curve, "tone curves")
show(brightness_contrast, "brightness and contrast");

# %% [markdown]
# ## Moved, turned, bent
# There are three transforms that move pixels. An image gets one of them at most, so that its pixels are interpolated
# once here and once when it is resized to fit. Pixels from outside are black, as the background of a breast is. The
# first transform is one matrix: shift, scale and rotation about the centre.

# %%
#| export
def shift_scale_rotate(
    image: np.ndarray,                 # uint8 (height, width)
    rng: np.random.Generator,
    shift: tuple = (0.1, 0.2),         # largest shift, as a share of width and of height
    scale: float = 0.15,               # largest change of size
    degrees: float = 30,               # largest rotation
) -> np.ndarray:                       # uint8, same shape
    "One affine map (OpenCV, `getRotationMatrix2D`)."
    h, w = image.shape
    turn = rng.uniform(-degrees, degrees)
    size = 1 + rng.uniform(-scale, scale)
    matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), turn, size)
    matrix[:, 2] += rng.uniform(-1, 1, 2) * shift * np.array([w, h])
    return cv2.warpAffine(image, matrix, (w, h), flags=cv2.INTER_LINEAR, borderValue=0)

# %%
show(shift_scale_rotate, "shifted, scaled, rotated");

# %% [markdown]
# The second is elastic. Three points around the middle move by up to ten pixels each, and the affine map that they
# define is applied; then each pixel is displaced by smoothed noise. Both maps are combined, so the pixels are
# interpolated once. Noise that is smooth over many pixels need not be drawn for every pixel: on a grid `step` times
# coarser, noise `step` times weaker has the same variance once it is smoothed, `alpha^2 / 3 / (4 pi sigma^2)`.

# %%
#| export
def smooth_noise(
    rng: np.random.Generator,
    shape: tuple,         # height, width
    alpha: float,         # uniform noise from -alpha to alpha
    sigma: float,         # of the Gaussian it is smoothed with, pixels
) -> np.ndarray:          # float32 (height, width, 2)
    "The displacements of an elastic deformation (Simard et al. 2003, section 2)."
    step = max(1, int(sigma / 4))
    coarse = tuple(-(-n // step) for n in shape)
    noise = rng.uniform(-alpha / step, alpha / step, (*coarse, 2)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma / step)
    return cv2.resize(smooth, shape[::-1], interpolation=cv2.INTER_LINEAR).reshape(*shape, 2)

def elastic(
    image: np.ndarray,        # uint8 (height, width)
    rng: np.random.Generator,
    alpha: float = 1,         # strength of the noise, pixels
    sigma: float = 20,        # its smoothness, pixels
    alpha_affine: float = 10, # largest movement of the three points, pixels
    faithful: bool = False,   # around (h // 2, w // 2) as x and y, in two interpolations
) -> np.ndarray:              # uint8, same shape
    "An affine map of three points and a displacement of each pixel, in one interpolation."
    h, w = image.shape
    moves = rng.uniform(-alpha_affine, alpha_affine, (3, 2)).astype(np.float32)
    at = smooth_noise(rng, (h, w), alpha, sigma)
    if faithful:
        return bend(image, moves, at)
    centre, arm = np.array([w // 2, h // 2]), max(1, min(h, w) // 3)
    points = (centre + arm * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    # from a pixel of the result to its source
    back = cv2.getAffineTransform(points + moves, points).astype(np.float32)
    at[..., 0] += np.arange(w, dtype=np.float32)
    at[..., 1] += np.arange(h, dtype=np.float32)[:, None]
    return cv2.remap(image, cv2.transform(at, back), None, cv2.INTER_LINEAR, borderValue=0)

# %%
show(elastic, "elastic, the winner's strength")
displacement = smooth_noise(np.random.default_rng(seed), breast.shape, 1, 20)
assert .005 < displacement.std() < .012   # expected .0081
print(f"the winner's displacements have a standard deviation of {displacement.std():.4f} pixels")

# %% [markdown]
# A hundredth of a pixel: with the winner's numbers the elastic part has no visible effect, and only the affine map is
# left. Here is a stronger one:

# %%
show(partial(elastic, alpha=500, alpha_affine=0), "elastic, alpha 500 and no affine map (not in the winner's list)");

# %% [markdown]
# The third draws a grid on the image and makes its columns and rows wider or narrower. The changes are normalised:
# together they are as wide as the image, so that nothing leaves it.

# %%
#| export
def _stretched(rng: np.random.Generator, length: int, steps: int, limit: float) -> np.ndarray:
    "Source position of each pixel of a line that is stretched in some parts and compressed in others."
    widths = 1 + rng.uniform(-limit, limit, steps)
    ends = np.concatenate([[0], np.cumsum(widths)]) / widths.sum() * (length - 1)
    return np.interp(np.arange(length), np.linspace(0, length - 1, steps + 1), ends).astype(np.float32)

def grid_distortion(
    image: np.ndarray,          # uint8 (height, width)
    rng: np.random.Generator,
    steps: int = 5,             # columns and rows of the grid
    limit: float = 0.3,         # largest change of a column's width before normalisation
    faithful: bool = False,     # with a shorter last cell, which ends outside of the image
) -> np.ndarray:                # uint8, same shape
    "A grid of unequal columns and rows; the corners stay."
    h, w = image.shape
    if faithful:
        return distort(image, *(1 + rng.uniform(-limit, limit, (2, steps + 1))))
    x, y = np.meshgrid(_stretched(rng, w, steps, limit), _stretched(rng, h, steps, limit))
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderValue=0)

# %%
show(grid_distortion, "grid distortion")
lines = np.zeros_like(breast)
lines[::len(breast) // 10] = lines[:, ::len(breast[0]) // 10] = 255
sheet([grid_distortion(cv2.dilate(lines, np.ones((5, 5))), np.random.default_rng([seed, i])) for i in range(11)],
      title="the same, of a grid")

# %% [markdown]
# ## Holes
# One to six black rectangles, so that the network does not rely on a single place. They may hide a cancer, and then the
# target is wrong; therefore only one image in four gets holes.

# %%
#| export
def coarse_dropout(
    image: np.ndarray,                # uint8 (height, width)
    rng: np.random.Generator,
    holes: tuple = (1, 6),            # fewest and most
    height: tuple = (0.05, 0.15),     # of a hole, as a share of the image's
    width: tuple = (0.1, 0.25),
) -> np.ndarray:                      # uint8, same shape
    "Black rectangles (DeVries & Taylor 2017)."
    h, w = image.shape
    image = image.copy()
    for _ in range(rng.integers(holes[0], holes[1] + 1)):
        hole_h, hole_w = int(h * rng.uniform(*height)), int(w * rng.uniform(*width))
        top, left = rng.integers(0, h - hole_h + 1), rng.integers(0, w - hole_w + 1)
        image[top:top + hole_h, left:left + hole_w] = 0
    return image

# %%
white = np.full_like(breast, 255)
assert all(.004 < (coarse_dropout(white, np.random.default_rng(i)) == 0).mean() < 6 * .15 * .25 for i in range(50))
show(coarse_dropout, "holes");

# %% [markdown]
# ## Policies
# In the winner's list each row is a step with a probability, and one of its transforms is drawn by weight. The whole
# list is applied to nine images in ten, which is the recipe's `augmentation`. It works on crops in the size in which
# the detector stored them; lengths in pixels, such as those of the elastic map, refer to that size.

# %%
#| export
WINNER = (  # probability of the step, its transforms with their weights
    (0.4, ((1, random_crop),)),
    (0.5, ((1, flip_sides),)),
    (0.5, ((1, flip_ends),)),
    (0.125, ((0.1, partial(downscale, down=cv2.INTER_AREA)),
             (0.1, partial(downscale, down=cv2.INTER_AREA, up=cv2.INTER_LANCZOS4)),
             (0.8, downscale))),
    (0.5, ((1, tone_curve), (1, brightness_contrast))),
    (0.5, ((0.6, shift_scale_rotate), (0.2, elastic), (0.2, grid_distortion))),
    (0.25, ((1, coarse_dropout),)),
)

MENDED = (downscale, brightness_contrast, elastic, grid_distortion)   # transforms with the switch `faithful`

def winner(
    image: np.ndarray,          # uint8 (height, width)
    rng: np.random.Generator,
    faithful: bool = False,     # with the defects of the winner's library
) -> np.ndarray:                # uint8, smaller where it was cropped
    "Apply the winner's list."
    for probability, choices in WINNER:
        if rng.random() >= probability:
            continue
        weights, transforms = zip(*choices)
        chosen = rng.choice(len(choices), p=np.divide(weights, sum(weights)))
        transform = transforms[chosen]
        switch = {"faithful": True} if faithful and getattr(transform, "func", transform) in MENDED else {}
        image = transform(image, rng, **switch)
    return image

# %%
chance = pd.DataFrame(
    [{"transform": getattr(f, "func", f).__name__, "share of images": .9 * p * weight / sum(w for w, _ in choices)}
     for p, choices in WINNER for weight, f in choices])
assert abs(chance["share of images"].sum() - .9 * sum(p for p, _ in WINNER)) < 1e-9
chance.groupby("transform", sort=False).sum().round(4)

# %% [markdown]
# `light` is for small images on two cores: the same kinds of change without the expensive ones, and all geometry in one
# matrix. `broad` is for data sets of a few hundred patients: all changes every time, and shear and gamma besides.
# `baseline` is the policy of the single-model baseline: every second image is mirrored. All three keep the shape.

# %%
#| export
def light(
    image: np.ndarray,            # uint8 (height, width)
    rng: np.random.Generator,
) -> np.ndarray:                  # uint8, same shape
    "Flips, shift, scale, rotation, brightness and contrast, holes."
    h, w = image.shape
    turn = rng.uniform(-30, 30) if rng.random() < .5 else 0.0
    scale = rng.uniform(.85, 1.15) if rng.random() < .5 else 1.0
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), turn, scale)
    if rng.random() < .5:
        matrix[:, 2] += rng.uniform(-.1, .1, 2) * (w, h)
    if turn or scale != 1 or matrix[:, 2].any():
        image = cv2.warpAffine(image, matrix, (w, h), flags=cv2.INTER_LINEAR, borderValue=0)
    if rng.random() < .5:
        image = image[:, ::-1]
    if rng.random() < .5:
        image = image[::-1]
    if rng.random() < .5:
        contrast, brightness = 1 + rng.uniform(-.3, .3), rng.uniform(-.1, .1) * 255
        levels = np.clip(np.arange(256) * contrast + brightness, 0, 255).astype(np.uint8)
        image = cv2.LUT(np.ascontiguousarray(image), levels)
    if rng.random() < .25:
        image = coarse_dropout(image, rng, (1, 3), (.05, .12), (.08, .2))
    return image

def broad(
    image: np.ndarray,            # uint8 (height, width), or (height, width, 2): image and mask, which is moved along
    rng: np.random.Generator,
) -> np.ndarray:                  # uint8, same shape
    "Flips, shift, scale, shear, rotation, gamma, brightness and contrast, holes."
    h, w = image.shape[:2]
    turn = rng.uniform(-30, 30)
    scale = np.exp(rng.uniform(np.log(.8), np.log(1.25)))
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), turn, scale)
    matrix[:, 2] += rng.uniform(-.08, .08, 2) * (w, h)
    shear = rng.uniform(-.1, .1) if rng.random() < .5 else 0.0
    matrix = matrix @ [[1, shear, -shear * h / 2], [0, 1, 0], [0, 0, 1]]
    image = cv2.warpAffine(image, matrix, (w, h), flags=cv2.INTER_LINEAR, borderValue=0)
    if rng.random() < .5:
        image = image[:, ::-1]
    if rng.random() < .5:
        image = image[::-1]
    gamma = np.exp(rng.uniform(-.3, .3))
    contrast = 1 + rng.uniform(-.25, .25)
    brightness = rng.uniform(-25, 25) * (np.arange(256) > 3)   # air stays black
    levels = np.clip(255 * (np.arange(256) / 255)**gamma * contrast + brightness, 0, 255).astype(np.uint8)
    grey = cv2.LUT(np.ascontiguousarray(image if image.ndim == 2 else image[..., 0]), levels)
    if rng.random() < .3:
        grey = coarse_dropout(grey, rng, (1, 3), (.04, .12), (.06, .2))
    return grey if image.ndim == 2 else np.dstack([grey, image[..., 1]])

def baseline(
    image: np.ndarray,          # uint8 (height, width)
    rng: np.random.Generator,
) -> np.ndarray:                # uint8, same shape
    "Mirror every second image."
    return flip_sides(image, rng) if rng.random() < 0.5 else image

def none(
    image: np.ndarray,          # uint8 (height, width)
    rng: np.random.Generator,
) -> np.ndarray:                # uint8, same shape
    "No change."
    return image

POLICIES = {f.__name__: f for f in (winner, light, broad, baseline, none)}
BEFORE_FITTING = ("winner",)   # policies for crops that are not yet resized to fit; the others come after that
WITH_MASK = ("broad", "none")  # policies that move a mask along

def augment(
    image: np.ndarray,            # uint8 (height, width); for WITH_MASK also (height, width, 2), image and mask
    rng: np.random.Generator,
    policy: str,                  # a key of POLICIES
    faithful: bool = False,       # of the policy `winner`; the others have no such switch
) -> np.ndarray:                  # uint8; another shape where the policy crops
    "Augment one image with the random numbers of the generator. Raises ValueError for an unknown policy."
    if policy not in POLICIES:
        raise ValueError(f"No augmentation {policy!r}. There are {', '.join(POLICIES)}.")
    if image.ndim == 3 and policy not in WITH_MASK:
        raise ValueError(f"Augmentation {policy} does not move masks along; {' and '.join(WITH_MASK)} do.")
    switch = {"faithful": True} if faithful and policy == "winner" else {}
    return np.ascontiguousarray(POLICIES[policy](image, rng, **switch))

# %% [markdown]
# ## What came out
# The input of the network for each policy, fitted to a canvas that is twice as high as wide.

# %%
for policy in ("winner", "light", "broad", "baseline"):
    image = breast if policy in BEFORE_FITTING else fit_resize(breast, 512, 256)
    many = [augment(image, np.random.default_rng([seed, i]), policy) for i in range(24)]
    sheet([fit_resize(m, 512, 256) for m in many], title=policy)
assert all((augment(breast, np.random.default_rng(3), p) == augment(breast, np.random.default_rng(3), p)).all()
           for p in POLICIES)
try:
    augment(breast, np.random.default_rng(0), "lite")
except ValueError as e:
    print(e)

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

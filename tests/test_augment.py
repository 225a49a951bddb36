"Augmentation: each transform against its definition, the odds of each, and the same seed for the same image."
from functools import partial

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from mammo_nb.mammo.learning import augment as module
from mammo_nb.mammo.learning.augment import (BEFORE_FITTING, POLICIES, WINNER, augment, brightness_contrast,
                                             coarse_dropout, downscale, elastic, flip_ends, flip_sides,
                                             grid_distortion, random_crop, shift_scale_rotate, smooth_noise,
                                             tone_curve, tone_levels)

TRANSFORMS = [
    random_crop, flip_sides, flip_ends,
    *(partial(downscale, down=cv2.INTER_AREA, up=u) for u in (cv2.INTER_LINEAR, cv2.INTER_LANCZOS4)), downscale,
    tone_curve, brightness_contrast, shift_scale_rotate, elastic, grid_distortion, coarse_dropout
]


class Fixed:
    "A generator whose numbers are known: each call takes the next."
    def __init__(self, *values):
        self.values = list(values)
    def uniform(self, low=0., high=1., size=None):
        value = np.asarray(self.values.pop(0), float)
        assert (value >= low).all() and (value <= high).all(), "a number that cannot be drawn"
        return value if value.ndim else float(value)
    def normal(self, loc, scale):
        return np.asarray(loc) + np.asarray(self.values.pop(0)) * scale
    def integers(self, low, high):
        value = self.values.pop(0)
        assert low <= value < high, (low, value, high)
        return value


def texture(shape=(120, 80), smooth=4., seed=0) -> np.ndarray:
    "Smooth enough for interpolations to agree."
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), smooth)
    return np.clip(128 + noise / noise.std() * 40, 0, 255).astype(np.uint8)


# ---- transforms
def test_a_crop_has_the_area_and_proportion_that_were_drawn():
    image = np.arange(400 * 300, dtype=np.uint32).reshape(400, 300)
    cut = random_crop(image, Fixed(.5, np.log(.6), 7, 9))   # 60,000 pixels, width .6 of the height: 316 x 190
    assert cut.shape == (round((60000 / .6)**.5), round((60000 * .6)**.5)) == (316, 190) and cut[0, 0] == 7 * 300 + 9
    for seed in range(200):
        h, w = random_crop(image, np.random.default_rng(seed)).shape
        assert .49 <= h * w / image.size <= 1 and .49 < w / h < .81


@pytest.mark.parametrize("shape, cut", [((100, 300), (100, 80)), ((1000, 100), (200, 100)), ((1, 1), (1, 1))])
def test_where_no_crop_fits_the_largest_centred_one_is_taken(shape, cut):
    image = np.arange(shape[0] * shape[1], dtype=np.uint32).reshape(shape)
    part = random_crop(image, np.random.default_rng(0))
    assert part.shape == cut and part[0, 0] == image[(shape[0] - cut[0]) // 2, (shape[1] - cut[1]) // 2]


def test_flips():
    image = texture()
    assert (flip_sides(image, None) == image[:, ::-1]).all() and (flip_ends(image, None) == image[::-1]).all()


def test_downscale_is_two_resizes_and_loses_what_is_fine():
    image = np.random.default_rng(0).integers(0, 256, (100, 60), dtype=np.uint8)
    for down, up in ((cv2.INTER_AREA, cv2.INTER_LANCZOS4), (cv2.INTER_LINEAR, cv2.INTER_LINEAR)):
        inexact = cv2.resize(cv2.resize(image.astype(np.float32), (48, 80), interpolation=down), (60, 100),
                             interpolation=up)
        got = downscale(image, Fixed(.8), down, up)
        assert np.abs(got - np.clip(inexact, 0, 255)).max() <= 2   # two roundings
        assert got.std() < .9 * image.std()


def test_the_tone_curve_is_the_bezier_curve_of_its_points():
    assert np.allclose(tone_levels(1 / 3, 2 / 3), np.arange(256)) and np.allclose(tone_levels(0, 1)[[0, 255]], [0, 255])
    assert tone_levels(.4, .9)[51] == pytest.approx(255 * (3 * .64 * .2 * .4 + 3 * .8 * .04 * .9 + .008))   # t = .2
    ramp = np.arange(256, dtype=np.uint8)[None]
    # .25 + .5 * .3 and .75 - .3
    assert (tone_curve(ramp, Fixed((.5, -1.)))[0] == np.rint(tone_levels(.4, .45))).all()
    # points stay between black and white
    assert (tone_curve(ramp, Fixed((-9., 9.)))[0] == np.rint(tone_levels(0, 1))).all()


def test_brightness_is_added_as_a_share_of_white_and_contrast_is_a_factor():
    levels = np.array([[0, 10, 100, 200, 255]], np.uint8)
    assert brightness_contrast(levels, Fixed(-.4, .2))[0].tolist() == [51, 57, 111, 171, 204]   # .6 x + 51
    # 1.5 x - 25.5, half to even
    assert brightness_contrast(levels, Fixed(.5, -.1))[0].tolist() == [0, 0, 124, 255, 255]


def test_shift_scale_and_rotation_are_about_the_centre():
    image = texture()
    h, w = image.shape
    got = shift_scale_rotate(image, Fixed(20., .1, (.5, -1.)))   # 20 degrees, 1.1, shifted 4 to the right and 24 up
    theta = np.deg2rad(20)
    y, x = np.indices(image.shape).astype(float)
    u, v = x - (w - 1) / 2 - 4, y - (h - 1) / 2 + 24
    # counter-clockwise, y down
    source = np.stack([(v * np.cos(theta) + u * np.sin(theta)) / 1.1 + (h - 1) / 2,
                       (u * np.cos(theta) - v * np.sin(theta)) / 1.1 + (w - 1) / 2])
    expected = map_coordinates(image.astype(float), source, order=1, cval=0)
    inside = (source[0] > 1) & (source[0] < h - 2) & (source[1] > 1) & (source[1] < w - 2)
    assert inside.mean() > .5 and np.abs(got - expected)[inside].max() <= 2.5
    assert (got[(source[0] < -1) | (source[1] < -1) | (source[0] > h) | (source[1] > w)] == 0).all()


def test_the_elastic_map_is_affine_first_then_displaced(monkeypatch):
    image = texture((120, 90))
    field = np.stack([
        3 * np.sin(np.arange(90) / 15)[None] * np.ones((120, 1)), 2 * np.cos(np.arange(120) / 20)[:, None] * np.ones(
            (1, 90))
    ], -1).astype(np.float32)
    monkeypatch.setattr(module, "smooth_noise", lambda rng, shape, alpha, sigma: field.copy())
    moves = np.array([[4, -3], [-5, 2], [1, 6]], np.float32)
    got = elastic(image, Fixed(moves))
    # centre (45, 60), a third of the shorter side each way
    points = np.array([[75, 90], [75, 30], [15, 30]], np.float32)
    affine = cv2.warpAffine(image, cv2.getAffineTransform(points, points + moves), (90, 120), flags=cv2.INTER_LINEAR)
    grid = np.indices(image.shape)
    twice = map_coordinates(affine.astype(float), [grid[0] + field[..., 1], grid[1] + field[..., 0]], order=1, cval=0)
    middle = np.s_[20:-20, 20:-20]
    # two interpolations against one
    assert np.abs(got.astype(float) - twice)[middle].mean() < .6 and np.abs(got.astype(float) - twice)[middle].max() < 5
    assert np.abs(got.astype(float) - image)[middle].mean() > 5


def test_smoothed_noise_drawn_on_a_coarse_grid_is_as_strong_as_the_smoothed_noise_of_every_pixel():
    coarse = smooth_noise(np.random.default_rng(0), (600, 500), 100, 12)
    every = gaussian_filter(np.random.default_rng(1).uniform(-100, 100, (600, 500)), 12)
    assert coarse.shape == (600, 500, 2) and coarse[..., 0].std() == pytest.approx(every.std(), rel=.15)
    assert coarse.std() == pytest.approx(100 / 3 ** .5 / (2 * np.pi ** .5 * 12), rel=.1)
    correlation = lambda f: np.corrcoef(f[:, :-12].ravel(), f[:, 12:].ravel())[0, 1]   # exp(-1/4) a sigma apart
    assert correlation(coarse[..., 0]) == pytest.approx(np.exp(-.25), abs=.05) == pytest.approx(
        correlation(every), abs=.05)


def test_the_grid_keeps_its_corners_and_its_order():
    columns = np.tile(np.arange(251, dtype=np.uint8), (101, 1))
    # widths .7 1.3 1 1 1: ends at 0 35 100 150 200 250
    got = grid_distortion(columns, Fixed((-.3, .3, 0, 0, 0), np.zeros(5)))[50]
    assert got[[0, 25, 50, 75, 100, 150, 250]].tolist() == pytest.approx([0, 17, 35, 67, 100, 150, 250], abs=1)
    for seed in range(20):
        for image in (columns, columns.T.copy()):
            line = grid_distortion(image, np.random.default_rng(seed))
            line = line[50] if image is columns else line[:, 50]
            assert line[0] == 0 and line[-1] == 250 and (np.diff(line.astype(int)) >= 0).all()


def test_holes_have_the_sizes_that_were_drawn_and_the_image_stays():
    image = np.full((200, 100), 9, np.uint8)
    got = coarse_dropout(image, Fixed(2, .05, .25, 10, 75, .15, .1, 170, 0))
    assert (got == 0).sum() == 10 * 25 + 30 * 10 and not got[10:20, 75:].any() and not got[170:, :10].any() and (
        image == 9).all()
    counts = [
        cv2.connectedComponents((coarse_dropout(np.full(
            (2000, 1000), 1, np.uint8), np.random.default_rng(s)) == 0).astype(np.uint8))[0] - 1 for s in range(60)
    ]
    assert min(counts) >= 1 and max(counts) <= 6 and len(set(counts)) >= 4


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: getattr(t, "func", t).__name__)
@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (57, 31)])
def test_transforms_of_small_images_keep_type_shape_and_input(transform, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    before = image.copy()
    for seed in range(5):
        got = transform(image, np.random.default_rng(seed))
        assert got.dtype == np.uint8 and got.size and (transform is random_crop or got.shape == shape)
    assert (image == before).all()


# ---- policies
def test_the_winners_transforms_come_in_their_order_and_with_their_odds(monkeypatch):
    done = []
    spy = lambda f: lambda image, rng: done.append(f) or image
    monkeypatch.setattr(module, "WINNER", tuple((p, tuple((w, spy(f)) for w, f in ways)) for p, ways in WINNER))
    rng, n, played = np.random.default_rng(0), 20000, []
    for _ in range(n):
        done.clear()
        augment(np.zeros((2, 2), np.uint8), rng, "winner")
        played.append(list(done))
    flat = [f for steps in played for f in steps]
    down = [f for _, ways in WINNER for _, f in ways if getattr(f, "func", f) is downscale]
    expected = {
        random_crop: .4, flip_sides: .5, flip_ends: .5, down[0]: .0125, down[1]: .0125, down[2]: .1, tone_curve: .25,
        brightness_contrast: .25, shift_scale_rotate: .3, elastic: .1, grid_distortion: .1, coarse_dropout: .25
    }
    for f, p in expected.items():
        assert abs(flat.count(f) / n - p) < 4 * (p * (1 - p) / n) ** .5, f
    order = list(expected)
    assert all([order.index(f) for f in steps] == sorted(order.index(f) for f in steps) for steps in played)
    assert not any(
        {tone_curve, brightness_contrast} <= set(s) or len({shift_scale_rotate, elastic, grid_distortion} & set(s)) > 1
        for s in played)


@pytest.mark.parametrize("policy", POLICIES)
def test_augmentation_is_its_seed(policy):
    image = texture((128, 64))
    before = image.copy()
    once, again = ([augment(image, np.random.default_rng(s), policy) for s in range(30)] for _ in range(2))
    assert all((a.shape == b.shape) and (a == b).all() and a.flags["C_CONTIGUOUS"] and a.dtype == np.uint8
               for a, b in zip(once, again)) and (image == before).all()
    different = {a.tobytes() for a in once}
    assert len(different) == {"none": 1, "baseline": 2}.get(policy, len(different)) and (policy in ("none", "baseline")
                                                                                         or len(different) > 25)
    assert policy in BEFORE_FITTING or {a.shape for a in once} == {image.shape}


def test_a_mask_goes_where_its_image_goes():
    mask = np.zeros((128, 64), np.uint8)
    mask[50:70, 20:34] = 255
    # the image is the mask: wherever the mask says lesion, the moved image is bright, or a hole is there
    for seed in range(12):
        image, moved = np.moveaxis(augment(np.dstack([mask, mask]), np.random.default_rng(seed), "broad"), 2, 0)
        assert set(np.unique(image[moved == 0])) <= set(range(60)) and moved.max() == 255
        bright = image[moved == 255] > 100
        assert bright.mean() > .5


def test_a_policy_that_cannot_move_a_mask_is_an_error():
    with pytest.raises(ValueError, match="light does not move masks along; broad and none do"):
        augment(np.zeros((8, 8, 2), np.uint8), np.random.default_rng(0), "light")


def test_an_unknown_policy_is_an_error():
    with pytest.raises(ValueError, match="'lite'. There are winner, light, broad, baseline, none"):
        augment(texture(), np.random.default_rng(0), "lite")

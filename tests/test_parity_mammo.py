"""The mammography system against figures that the original code computed: boxes, windows, sizes, augmentation.

`PARITY=FOLDER pytest tests/test_parity_mammo.py` runs another set of figures; see tests/parity.py.
"""
import inspect
import random
from dataclasses import replace
from functools import cache
from hashlib import sha256
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from pydicom.uid import JPEG2000Lossless
from scipy.ndimage import gaussian_filter

from mammo_nb.core.detection import decode
from mammo_nb.core.dicom import Image
from mammo_nb.core.headers import Header
from mammo_nb.core.pictures import fit_resize, write_png
from mammo_nb.core.windows import WindowError
from mammo_nb.mammo.crops import faithful_floats
from mammo_nb.mammo.learning import augment
from mammo_nb.mammo.learning.augment import (MENDED, WINNER, brightness_contrast, coarse_dropout, downscale,
                                             grid_distortion, random_crop, shift_scale_rotate, tone_curve)
from mammo_nb.mammo.learning.faithful import bend, distort, grid_sources
from mammo_nb.mammo.reading import faithful
from mammo_nb.mammo.reading.boxes import Box, find_box, otsu_box
from mammo_nb.mammo.recipes import RECIPES, Crops, Train
from mammo_nb.mammo.train import BreastCrops
from parity import FOLDER, arrays, figures, frame, needs_parity, picture, uniform

pytestmark = needs_parity
SIZE = 416  # side of the detector's input, pixels


def names(file: str, part: str) -> list[str]:
    "The names of the cases of a part of a file; none where the set is absent."
    return list(figures(file)[part]) if (FOLDER / f"{file}.json").is_file() else []


def apart(made: np.ndarray, expected: np.ndarray) -> tuple[float, int]:
    "Share of pixels that differ, and the largest difference."
    difference = np.abs(made.astype(int) - expected.astype(int))
    return float((difference > 0).mean()), int(difference.max())


def digest(array: np.ndarray) -> str:
    return sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def image_of(pixels: np.ndarray, **fields) -> Image:
    "A decoded frame with the given fields of its header."
    empty = dict.fromkeys(Header.__dataclass_fields__)
    known = {"rows": pixels.shape[0], "columns": pixels.shape[1], "photometric": "MONOCHROME2", "windows": (),
             "voi_function": "LINEAR"}
    return Image(Header(**{**empty, **known, **fields}), pixels, "none")


def header_of(stated: dict) -> dict:
    "The fields of the header of a case with a window."
    windows = ()
    if stated["centers"] is not None:
        windows = tuple(zip(np.atleast_1d(stated["centers"]).tolist(), np.atleast_1d(stated["widths"]).tolist()))
    return {"windows": windows, "voi_function": (stated["function"] or "LINEAR").upper(),
            "photometric": stated["photometric"]}


# ---- the view of the detector
@cache
def viewed(name: str) -> tuple[np.ndarray, float, str]:
    "The view of a frame, its ratio, and the frame's photometric interpretation."
    stated = figures("mammo_boxes")["views"][name]
    pixels = frame(stated["frame"], *map(int, name.split("x")), stated["marker"], stated["monochrome1"])
    assert digest(pixels) == stated["sha256_int16"], f"{name} is another frame"
    photometric = "MONOCHROME1" if stated["monochrome1"] else "MONOCHROME2"
    image = image_of(pixels, photometric=photometric)
    return *faithful.detector_view(pixels, image.header, "window", SIZE), photometric


@pytest.mark.parametrize("name", names("mammo_boxes", "views"))
def test_view_of_the_detector(name):
    stated, given = figures("mammo_boxes")["views"][name], arrays("mammo_boxes")
    view, _, _ = viewed(name)
    assert list(view.shape) == stated["view"] and view.dtype == np.float32
    np.testing.assert_allclose([view.min(), view.max()], [stated["min"], stated["max"]], atol=.02)
    np.testing.assert_allclose((view % 1 > 0).mean(), stated["share_not_whole"], atol=.01)
    if f"view.{name}" in given:
        shown = np.full((SIZE, SIZE), stated["pad_value"], np.float32)
        shown[:view.shape[0], :view.shape[1]] = view
        np.testing.assert_allclose(shown[::6, ::6], given[f"view.{name}"], atol=.02)
        share, largest = apart(view[::6, ::6].astype(np.uint8), given[f"levels.{name}"])
        assert largest <= 1 and share <= .001


def test_sizes_of_views():
    for rows, columns, *expected in figures("mammo_boxes")["view_sizes"]:
        pixels = np.broadcast_to(np.int16(0), (rows, columns))
        made = faithful.detector_view(pixels, image_of(pixels).header, "window", SIZE)[0].shape
        assert list(made) == expected, (rows, columns)


# ---- boxes
class Raw:
    "A detector that gives the raw output of a case; it keeps what it is shown."
    metadata = {"size": SIZE}

    def __init__(self, case: dict):
        raw = uniform(f"raw/{case['case']}", 3549 * 6).reshape(3549, 6)
        raw = np.concatenate([raw[:, :2] - .5, 2 * raw[:, 2:4] - 1, raw[:, 4:] / 2], 1)
        for row, *values in case["strong"]:
            raw[row] = values
        self.output = decode(raw.astype(np.float32), SIZE)[None]

    def __call__(self, squares):
        self.shown = squares
        return self.output


def boxes() -> list[dict]:
    "The cases with a box; none where the set is absent."
    return figures("mammo_boxes")["cases"] if (FOLDER / "mammo_boxes.json").is_file() else []


@pytest.mark.parametrize("case", boxes(), ids=lambda case: case["case"])
def test_boxes(case, monkeypatch):
    rows, columns = case["size"]
    if case["case"] == "dots":
        y, x = np.indices((rows, columns), np.int32) % 300
        image = image_of(np.where((y < 90) & (x < 90), 2200, 200).astype(np.int16))
    else:
        view, ratio, photometric = viewed(case["case"].split("/")[0])
        monkeypatch.setattr(faithful, "detector_view", lambda *_: (view, ratio))  # made once for all cases of a frame
        image = image_of(np.broadcast_to(np.int16(0), (rows, columns)), photometric=photometric)
    graph = Raw(case)
    box = find_box(image, Crops(faithful=True), graph)
    assert box.source == case["source"]
    if case["box"] is None:
        assert box == Box(0, 0, columns, rows, "full frame")
        return
    assert [box.x0, box.y0, box.x1, box.y1] == case["box"]
    assert graph.shown.shape == (1, 1, SIZE, SIZE) and graph.shown.dtype == np.float32
    if case["score"] is not None:
        assert box.score == pytest.approx(case["score"], abs=1e-6)


@pytest.mark.parametrize("name", names("mammo_boxes", "otsu"))
def test_otsu_boxes(name):
    stated, picture = figures("mammo_boxes")["otsu"][name], arrays("mammo_boxes")[f"otsu.{name}"]
    found = otsu_box(picture, figures("mammo_boxes")["constants"]["least_area"])
    if not stated["accepted"]:
        assert found is None
        return
    assert list(found) == stated["box"]


def test_a_blank_frame_is_used_whole():
    blank = image_of(np.full((500, 400), 7, np.int16))
    case = next(c for c in figures("mammo_boxes")["cases"] if c["source"] == "detector")
    assert find_box(blank, Crops(faithful=True), Raw(case)) == Box(0, 0, 400, 500, "full frame")


# ---- windows
@pytest.mark.parametrize("half", [False, True], ids=["train", "float16"])
@pytest.mark.parametrize("case", names("mammo_windows", "cases"))
def test_windows(case, half):
    stated, given = figures("mammo_windows")["cases"][case], arrays("mammo_windows")
    image = image_of(given[f"{case}.pixels"], syntax=JPEG2000Lossless, **header_of(stated))
    whole = Box(0, 0, image.header.columns, image.header.rows, "full frame")
    settings = Crops(faithful=True, half_windows=half)
    expected = given.get(f"{case}.{'gpu16' if half else 'train'}")
    if expected is None:  # the original raises, or gives no numbers
        with pytest.raises(WindowError):
            faithful_floats(image, whole, settings)
        return
    levels = faithful_floats(image, whole, settings).astype(np.uint8)
    share, largest = apart(levels, expected)
    assert largest <= 1 and share <= .005
    if not half:
        cast = faithful.as_cast(image.pixels, "window")
        assert np.array_equal(faithful.grey_levels(cast, image.header, "window"), levels)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("case", names("mammo_windows", "ways"))
def test_from_frame_to_network_input(case, half):
    stated, given = figures("mammo_windows")["ways"][case], arrays("mammo_windows")
    dark_is_high = stated["photometric"] == "MONOCHROME1"
    pixels = frame(stated["frame"], *stated["size"], stated.get("marker", False), dark_is_high).astype(np.uint16)
    assert digest(pixels) == stated["sha256_uint16"]
    image, settings = image_of(pixels, syntax=JPEG2000Lossless, **header_of(stated)), Crops(faithful=True)
    box = Box(*stated["box"], "detector")
    cast = faithful.as_cast(pixels, "window")[box.y0:box.y1, box.x0:box.x1]
    levels = faithful.grey_levels(cast, image.header, "window")
    assert list(levels.shape) == stated["crop"] and digest(levels) == stated["crop_levels_sha256"]
    floats = faithful_floats(image, box, replace(settings, half_windows=half))
    made = faithful.network_input(floats, 2048, 1024)[::16, ::16]
    share, largest = apart(made, given[f"way.{case}.{'gpu16' if half else 'infer'}"])
    assert largest <= 1 and share <= .002


@pytest.mark.parametrize("case", names("mammo_windows", "pictures_without_windows"))
def test_pictures_without_windows(case):
    stated, given = figures("mammo_windows")["pictures_without_windows"][case], arrays("mammo_windows")
    drawn = frame(stated["frame"], *stated["size"], stated["marker"]).astype(int)
    pixels = eval(stated["levels"], {"__builtins__": {}}, {"frame": drawn}).astype(stated["dtype"])
    assert digest(pixels) == stated["sha256"]
    x0, y0, x1, y1 = stated["box"]
    levels = faithful.grey_levels(pixels[y0:y1, x0:x1], None, "percentile")
    assert digest(levels) == stated["crop_sha256"] and np.array_equal(levels[::3, ::3], given[f"{case}.levels"])
    view, _ = faithful.detector_view(pixels, SimpleNamespace(photometric="MONOCHROME2"), "percentile", SIZE)
    assert list(view.shape) == stated["view"]
    shown = np.full((SIZE, SIZE), 114, np.float32)
    shown[:view.shape[0], :view.shape[1]] = view
    np.testing.assert_allclose(shown[::6, ::6], given[f"{case}.view"], atol=.02)


# ---- the size of training
def test_sizes_of_inputs():
    for rows, columns, *expected in figures("mammo_resize")["sizes"]:
        inside = fit_resize(np.full((rows, columns), 9, np.uint8), 2048, 1024, plain=True) == 9
        height, width = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        assert [len(height), len(width), height[0], width[0]] == expected, (rows, columns)


def crop_to_resize(case: str, stated: dict, given: dict) -> np.ndarray:
    "A crop of the figures, stored or by formula."
    made = given[f"{case}.input"] if f"{case}.input" in given else picture(stated["name"], *stated["size"])
    assert digest(made) == stated["sha256_input"]
    return made


@pytest.mark.parametrize("case", names("mammo_resize", "pictures"))
def test_resize(case):
    stated, given = figures("mammo_resize")["pictures"][case], arrays("mammo_resize")
    made = fit_resize(crop_to_resize(case, stated, given), *stated["to"], plain=True)
    assert digest(made) == stated["sha256_output"]
    expected = given[f"{case}.output"]
    step = made.shape[0] // expected.shape[0]
    assert np.array_equal(made[::step, ::step], expected)


def test_pictures_as_the_network_gets_them(tmp_path):
    stated, given = figures("mammo_resize"), arrays("mammo_resize")
    cases = [str(i) for i in stated["normalised"]["of"]]
    for case in cases:
        write_png(tmp_path / f"p@{case}.png", crop_to_resize(case, stated["pictures"][case], given))
    table = pd.DataFrame({"patient_id": "p", "image_id": cases, "cancer": 0})
    height, width = stated["normalised"]["shape"][2:]
    settings = replace(RECIPES["winner_fold2"].section(Train), height=height, width=width)
    data = BreastCrops(table, tmp_path, settings, {"mean": [.485, .456, .406], "std": [.229, .224, .225]})
    made = np.stack([data[i, -1][0].numpy() for i in range(len(cases))])
    assert list(made.shape) == stated["normalised"]["shape"]
    np.testing.assert_allclose(made[:, :, ::9, ::9], given["normalised"], atol=1e-5)


# ---- augmentation
class Given:
    "A generator that gives the stated numbers, one for each call."

    def __init__(self, *values):
        self.values = list(values)

    def uniform(self, low=0., high=1., size=None):
        return self.values.pop(0)

    normal = integers = uniform


def parameters(step: str) -> list:
    "The cases of a step; none where the set is absent."
    known = figures("mammo_augment")[step] if (FOLDER / "mammo_augment.json").is_file() else []
    return [pytest.param(i, case, id=f"{step}-{i}") for i, case in enumerate(known)]


def before_and_after(step: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    given = arrays("mammo_augment")
    return given["input"], given[f"{step}.{number}"]


def interpolated_alike(made: np.ndarray, expected: np.ndarray) -> None:
    "The tolerance for OpenCV 4.7 against 5."
    difference = np.abs(made.astype(int) - expected)
    assert difference.max() <= 5 and (difference > 0).mean() <= .04 and difference.mean() <= .06


@pytest.mark.parametrize("number, case", parameters("brightness_contrast"))
def test_brightness_and_contrast(number, case):
    image, expected = before_and_after("brightness_contrast", number)
    drawn = Given(case["alpha"] - 1, case["beta"])
    assert np.array_equal(brightness_contrast(image, drawn, faithful=True), expected)


@pytest.mark.parametrize("number, case", parameters("downscale"))
def test_downscale(number, case):
    image, expected = before_and_after("downscale", number)
    assert np.array_equal(downscale(image, Given(case["scale"]), case["down"], case["up"], faithful=True), expected)


@pytest.mark.parametrize("number, case", parameters("tone_curve"))
def test_tone_curve(number, case):
    image, expected = before_and_after("tone_curve", number)
    assert np.array_equal(tone_curve(image, Given(np.array([case["low"], case["high"]]))), expected)


@pytest.mark.parametrize("number, case", parameters("shift_scale_rotate"))
def test_shift_scale_rotate(number, case):
    image, expected = before_and_after("shift_scale_rotate", number)
    shift = np.array([case["dx"] / .1, case["dy"] / .2])
    interpolated_alike(shift_scale_rotate(image, Given(case["angle"], case["scale"] - 1, shift)), expected)


@pytest.mark.parametrize("number, case", parameters("elastic"))
def test_elastic(number, case):
    image, expected = before_and_after("elastic", number)
    drawn = np.random.RandomState(case["random_state"])
    moves = drawn.uniform(-10, 10, (3, 2))
    shifts = np.stack([gaussian_filter(drawn.rand(*image.shape) * 2 - 1, 20) for _ in "xy"], -1).astype(np.float32)
    np.testing.assert_allclose(moves, case["moves"], atol=1e-6)
    given = arrays("mammo_augment")
    for axis, name in enumerate(("dx", "dy")):
        np.testing.assert_allclose(shifts[::8, ::8, axis], given[f"elastic.{number}.{name}"], atol=1e-6)
    interpolated_alike(bend(image, moves, shifts), expected)
    # the displacements move nothing visible: those of another generator give the same picture
    interpolated_alike(bend(image, moves, shifts[::-1]), bend(image, moves, shifts))


@pytest.mark.parametrize("number, case", parameters("grid_distortion"))
def test_grid_distortion(number, case):
    image, expected = before_and_after("grid_distortion", number)
    across, down = np.array(case["drawn_x"]), np.array(case["drawn_y"])
    interpolated_alike(distort(image, across, down), expected)
    drawn = Given(np.stack([across, down]) - 1)
    assert np.array_equal(grid_distortion(image, drawn, faithful=True), distort(image, across, down))
    given = arrays("mammo_augment")
    for name, length, widths in (("x", image.shape[1], across), ("y", image.shape[0], down)):
        places, shown = grid_sources(length, widths), given[f"grid_distortion.{number}.{name}"]
        inside = places <= length - 1   # the ramp is interpolated with black between the last pixel and the outside
        np.testing.assert_allclose(places[inside], shown[inside], atol=.05)
        assert (shown[places >= length] == 0).all() and places[-1] == length


@pytest.mark.parametrize("number, case", parameters("coarse_dropout"))
def test_holes(number, case):
    image, expected = before_and_after("coarse_dropout", number)
    drawn = [len(case["holes_x1_y1_x2_y2"])]
    for x0, y0, x1, y1 in case["holes_x1_y1_x2_y2"]:
        drawn += [(y1 - y0 + .5) / image.shape[0], (x1 - x0 + .5) / image.shape[1], y0, x0]
    assert np.array_equal(coarse_dropout(image, Given(*drawn)), expected)


def test_sizes_of_holes():
    stated = figures("mammo_augment")["coarse_dropout_of_1000"]
    sizes, white = [], np.full((1000, 1000), 255, np.uint8)
    for seed in range(400):
        dark = (coarse_dropout(white, np.random.default_rng(seed), holes=(1, 1)) == 0).astype(np.uint8)
        sizes.append(cv2.boundingRect(dark)[:1:-1])   # height, width
    low, high = np.min(sizes, 0), np.max(sizes, 0)
    assert stated["height"][0] <= low[0] <= stated["height"][0] + 3 and stated["width"][0] <= low[1]
    assert stated["height"][1] - 3 <= high[0] <= stated["height"][1] and high[1] <= stated["width"][1]


class Python:
    "Python's generator under the names of numpy's."

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def uniform(self, low, high):
        return self.random.uniform(low, high)

    def integers(self, low, high):
        return self.random.randint(low, high - 1)


def test_rectangles_of_crops():
    for stated in figures("mammo_augment")["crop"].values():
        height, width = stated["size"]
        numbered = np.arange(height * width).reshape(height, width)
        for seed, expected in enumerate(stated["python_seed_from_0_top_left_height_width"]):
            cut = random_crop(numbered, Python(seed))
            assert [*divmod(int(cut[0, 0]), width), *cut.shape] == expected, (stated["size"], seed)


STEPS = {  # name in the original's library -> transform, and the ranges that it is stated with
    "CustomRandomSizedCropNoResize": ("random_crop", lambda m: {"area": m["scale"], "ratio": m["ratio"]}),
    "HorizontalFlip": ("flip_sides", lambda m: {}),
    "VerticalFlip": ("flip_ends", lambda m: {}),
    "Downscale": ("downscale", lambda m: {"scale": (m["scale_min"], m["scale_max"]),
                                          "down": m["interpolation"]["downscale"],
                                          "up": m["interpolation"]["upscale"]}),
    "RandomToneCurve": ("tone_curve", lambda m: {"scale": m["scale"]}),
    "RandomBrightnessContrast": ("brightness_contrast", lambda m: {"brightness": m["brightness_limit"],
                                                                   "contrast": m["contrast_limit"]}),
    "ShiftScaleRotate": ("shift_scale_rotate", lambda m: {"shift": (m["shift_limit_x"][1], m["shift_limit_y"][1]),
                                                          "scale": m["scale_limit"][1] - 1,
                                                          "degrees": m["rotate_limit"][1]}),
    "ElasticTransform": ("elastic", lambda m: {"alpha": m["alpha"], "sigma": m["sigma"],
                                               "alpha_affine": m["alpha_affine"]}),
    "GridDistortion": ("grid_distortion", lambda m: {"steps": m["num_steps"], "limit": m["distort_limit"][1]}),
    "CoarseDropout": ("coarse_dropout", lambda m: {part: (m[f"min_{key}"], m[f"max_{key}"]) for part, key in
                                                   (("holes", "holes"), ("height", "height"), ("width", "width"))}),
}


def test_the_pipeline_has_the_steps_odds_and_ranges_of_the_original():
    stated = figures("mammo_augment")["pipeline"]
    assert stated["p"] == RECIPES["winner_fold2"].section(Train).augmentation
    for (odds, ways), step in zip(WINNER, stated["members"], strict=True):
        assert odds == step["p"]
        weights = np.array([weight for weight, _ in ways])
        np.testing.assert_allclose(weights / weights.sum(), step.get("shares", [1]))
        for (_, way), member in zip(ways, step.get("members", [step]), strict=True):
            name, ranges = STEPS[member["name"]]
            assert getattr(way, "func", way).__name__ == name
            defaults = {key: value.default for key, value in inspect.signature(way).parameters.items()}
            for key, expected in ranges(member).items():
                np.testing.assert_allclose(defaults[key], expected, err_msg=f"{name} {key}")


@pytest.mark.parametrize("transform", [way for _, ways in WINNER for _, way in ways],
                         ids=lambda way: getattr(way, "func", way).__name__)
def test_the_switch_changes_the_mended_transforms_and_no_other(transform, monkeypatch):
    monkeypatch.setattr(augment, "WINNER", ((1., ((1, transform),)),))
    image = arrays("mammo_augment")["input"]
    made = [[augment.augment(image, np.random.default_rng(seed), "winner", faithful) for seed in range(5)]
            for faithful in (False, True)]
    same = all(np.array_equal(a, b) for a, b in zip(*made))
    assert same == (getattr(transform, "func", transform) not in MENDED)

"The mammography stages: tables, boxes, batches, selection, submission."
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest

from mammo_nb.core.dicom import Image
from mammo_nb.core.pictures import fit_resize
from mammo_nb.mammo.reading.boxes import Box, find_box, otsu_box
from mammo_nb.mammo.crops import crop
from mammo_nb.mammo.datasets import DatasetError, per_breast, read_table, unify
from mammo_nb.core.recipes import RecipeError
from mammo_nb.core.runs import Run
from mammo_nb.mammo.recipes import Train
from mammo_nb.mammo.system import system
from mammo_nb.mammo.select import best_epochs, combinations, plateau
from mammo_nb.mammo.submit import predict_means, to_submission
from mammo_nb.mammo.train import one_positive_batches


def table(**columns):
    base = {
        "patient_id": ["007", "007"], "image_id": ["01", "02"], "laterality": ["L", "L"], "view": ["CC", "MLO"],
        "cancer": [1, 1]
    }
    return pd.DataFrame({**base, **columns})


# ---- datasets
def test_ids_stay_text_and_order_stays(tmp_path):
    table().to_csv(tmp_path / "train.csv", index=False)
    unified = unify(read_table(tmp_path / "train.csv", ["cancer"]))
    assert unified["patient_id"].tolist() == ["007", "007"] and unified["file"].tolist() == [
        "train_images/007/01.dcm", "train_images/007/02.dcm"
    ]


@pytest.mark.parametrize("columns, told", [
    ({"image_id": ["01", "01"]}, "an image twice"), ({"laterality": ["L", "left"]}, "neither L nor R"),
    ({"cancer": [1, 2]}, "neither 0 nor 1"), ({"cancer": [1, 0]}, "disagree")])
def test_tables_that_make_no_sense_are_refused(columns, told):
    with pytest.raises(DatasetError, match=told):
        unify(table(**columns))


@pytest.mark.parametrize("image_id", ["../../etc/passwd", "..", "a/b", "a\\b", ""])
def test_an_id_cannot_leave_its_folder(tmp_path, image_id):
    table(image_id=[image_id, "02"]).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DatasetError, match="no file name"):
        read_table(tmp_path / "t.csv", [])


def test_missing_column_lists_what_there_is(tmp_path):
    table().drop(columns="cancer").to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DatasetError, match="no column cancer; it has patient_id"):
        read_table(tmp_path / "t.csv", ["cancer"])


def test_breast_is_the_mean_of_its_images():
    breasts = per_breast(
        pd.DataFrame(
            {"patient_id": ["a", "a", "a", "b"], "laterality": ["L", "R", "L", "L"], "probability": [.2, .9, .4, .5]}))
    assert breasts["probability"].round(9).tolist() == [.3, .9, .5] and breasts["images"].tolist() == [2, 1, 1]


# ---- crops
def disc_frame(header_of, rows=1600, columns=1200, photometric="MONOCHROME2"):
    "A half disc of tissue at the left edge, a small bright marker on the right; 12 bits."
    y, x = np.mgrid[:rows, :columns]
    pixels = np.where((x / 700) ** 2 + ((y - 800) / 600) ** 2 < 1, 1500, 20).astype(np.uint16)
    pixels[100:180, 1000:1120] = 4000
    return Image(
        replace(header_of, rows=rows, columns=columns, photometric=photometric, windows=((2048.0, 4096.0),),
                voi_function="LINEAR"), pixels if photometric == "MONOCHROME2" else 4095 - pixels, "made")


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    from mammo_nb.core.dicom import read_header
    from mammo_nb.mammo.phantom import make_competition
    root = tmp_path_factory.mktemp("c")
    make_competition(root, patients=2, test_patients=1, frame=(320, 256), prevalence=.5, seed=1, workers=1)
    return read_header(next((root / "train_images").rglob("*.dcm")))


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_box_holds_the_breast_and_not_the_marker(header, photometric):
    box = find_box(disc_frame(header, photometric=photometric))
    pixel = 1600 / 416 * 3 + .005 * 1200   # three pixels of the small view, and the margin
    assert box.source == "otsu"
    assert np.allclose([box.x0, box.y0, box.x1, box.y1], [0, 200, 700, 1400], atol=pixel)


def test_no_breast_is_the_full_frame_and_says_so(header):
    image = disc_frame(header)
    empty = Image(image.header, np.full((1600, 1200), 30, np.uint16), "made")
    assert find_box(empty) == Box(0, 0, 1200, 1600, "full frame")


def test_small_contour_is_refused():
    view = np.zeros((400, 300), np.uint8)
    cv2.circle(view, (150, 200), 55, 200, -1)   # 8 % of the view
    assert otsu_box(view, .10) is None and otsu_box(view, .04) is not None


def test_a_bright_marker_alone_is_no_breast():
    view = np.zeros((400, 300), np.uint8)
    view[20:60, 220:280] = 255   # 2 % of the view, among the brightest twentieth
    assert otsu_box(view, .005) is None


def test_crop_is_windowed_from_stored_values_and_inverted(header):
    box = Box(0, 700, 100, 800, "otsu")
    both = [crop(disc_frame(header, photometric=p), box)[0] for p in ("MONOCHROME2", "MONOCHROME1")]
    # PS3.3 C.11.2.1.2.1 by hand: ((1500 - 2047.5) / 4095 + .5) * 255 = 93.4
    assert abs(int(both[0][50, 50]) - 93) <= 1 and abs(int(both[1][50, 50]) - 93) <= 1


@pytest.mark.parametrize("shape", [(900, 450), (300, 900), (37, 11), (384, 192), (1, 1)])
def test_fit_resize_keeps_proportions_and_centres(shape):
    fitted = fit_resize(np.full(shape, 200, np.uint8), 384, 192)
    rows, columns = np.flatnonzero(fitted.any(1)), np.flatnonzero(fitted.any(0))
    assert fitted.shape == (384, 192)
    assert abs(rows[0] - (383 - rows[-1])) <= 1 and abs(columns[0] - (191 - columns[-1])) <= 1
    h, w = len(rows), len(columns)
    assert h == 384 or w == 192
    assert abs(h / w - shape[0] / shape[1]) <= shape[0] / shape[1] * (1 / h + 1 / w) * 1.01


# ---- training
@pytest.mark.parametrize("ratio", [.01, .1429, 1.0, 100.0])
def test_every_batch_has_a_positive_and_every_negative_comes_once(ratio):
    cancer = np.array([1] * 7 + [0] * 93)
    batches = one_positive_batches(cancer, 8, ratio, seed=3)
    seen = np.zeros(100, int)
    for epoch in range(4):
        rows = [[i for i, _ in b] for b in batches(epoch)]
        assert all(cancer[r].sum() >= 1 and len(r) <= 8 for r in rows)
        assert sorted(i for r in rows for i in r if not cancer[i]) == list(range(7, 100))
        for r in rows:
            np.add.at(seen, r, 1)
    assert np.ptp(seen[:7]) <= 1     # the deck deals positives evenly, across epochs
    assert batches(2) == one_positive_batches(cancer, 8, ratio, seed=3)(2) != batches(1)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_rank_has_a_positive_in_each_batch_and_together_they_see_each_negative_once(ranks):
    cancer = np.zeros(101, int)
    cancer[:5] = 1
    deal = one_positive_batches(cancer, 8, .1429, 3, ranks)(0)
    shares = [deal[r::ranks] for r in range(ranks)]
    # 96 negatives, 7 a batch
    assert len({len(s) for s in shares}) == 1 and len(deal) == {1: 14, 2: 14, 3: 15}[ranks]
    assert all(cancer[[i for i, _ in b]].sum() == 1 and 6 <= len(b) - 1 <= 7 for s in shares for b in s)
    assert sorted(i for b in deal for i, _ in b if not cancer[i]) == list(range(5, 101))


def test_training_without_one_class_is_refused():
    with pytest.raises(ValueError, match="both classes"):
        one_positive_batches(np.zeros(9), 4, .5, 0)


# ---- selection and submission
def test_best_epoch_breaks_ties_by_auc_then_early():
    history = pd.DataFrame(
        {"fold": [0, 0, 0, 1, 1], "epoch": [1, 2, 3, 1, 2], "pf1": [.5, .7, .7, .6, .6], "auc": [.9, .8, .85, .7, .7]})
    assert best_epochs(history)[["fold", "epoch"]].values.tolist() == [[0, 3], [1, 1]]


def test_epochs_are_chosen_together_and_equals_keep_the_epochs_that_are_best_alone():
    breasts = {(0, 1): ([1, 0], [.9, .1]), (0, 2): ([1, 0], [.3, .2]), (1, 1): ([1, 0], [.4, .35]),
               (1, 2): ([1, 0], [.8, .2])}
    breasts = {k: pd.DataFrame({"cancer": c, "probability": p}) for k, (c, p) in breasts.items()}
    ranked = pd.DataFrame({"fold": [0, 0, 1, 1], "epoch": [2, 1, 1, 2]})       # by themselves all are without a mistake
    tried = combinations(ranked, breasts)
    assert tried[["fold_0", "fold_1", "pf1"]].round(3).values.tolist() == [[2, 2, 1], [1, 1, 1], [1, 2, 1], [2, 1, .8]]


def test_plateau_stops_at_the_first_fall():
    curve = pd.DataFrame({"threshold": [.1, .2, .3, .4, .5, .6], "score": [.96, .5, .96, 1.0, .99, .2]})
    assert plateau(curve, .4) == (.3, .5)


def test_submission_follows_the_sample_and_a_lost_breast_is_zero():
    predictions = pd.DataFrame({"prediction_id": ["b", "a", "a", "c"], "probability": [.7, .2, .9, np.nan]})
    sample = pd.DataFrame({"prediction_id": ["c", "a", "b"], "cancer": .021})
    # a: mean .55 is not above
    assert to_submission(predictions, sample, .55).values.tolist() == [["c", 0], ["a", 0], ["b", 1]]


def test_an_image_without_a_number_is_left_out_or_counts_as_zero_with_faithful():
    class Two:
        "Two networks, one of which fails on the second image."
        metadata = {"crops": {}}

        def __call__(self, inputs):
            return np.array([[.2, .6], [.8, np.nan]], np.float32)
    engine = Two()
    assert np.allclose(predict_means(engine, None), [[.4], [np.nan]], equal_nan=True)
    engine.metadata = {"crops": {"faithful": True}}
    assert np.allclose(predict_means(engine, None), [[.4], [.4]])
    engine.metadata = {}   # the baseline's weights, whose pictures are prepared in another way
    assert np.isnan(predict_means(engine, None)[1, 0])


def test_a_breast_on_the_threshold_is_negative_also_in_float32():
    predictions = pd.DataFrame({"prediction_id": ["a", "b"], "probability": np.float32([.31, .310001])})
    sample = pd.DataFrame({"prediction_id": ["a", "b"], "cancer": .021})
    assert float(np.float32(.31)) > .31 and to_submission(predictions, sample, .31)["cancer"].tolist() == [0, 1]


def test_a_stranger_in_the_test_table_is_told():
    with pytest.raises(DatasetError, match="such as z"):
        to_submission(pd.DataFrame({"prediction_id": ["z"], "probability": [.5]}),
                      pd.DataFrame({"prediction_id": ["a"], "cancer": 0}), .5)


# ---- recipes
@pytest.mark.parametrize("recipe, overrides, message", [
    ("dmo", {}, "There are cbis, cbis_long, demo"),
    ("demo", {"trian.epochs": 1}, "There are phantom"),
    ("demo", {"train.network.depth": 1}, "It has network"),
    ("demo", {"train.height": 1.5}, "takes int"),
    ("demo", {"train.height": True}, "takes int"),
])
def test_slips_in_a_recipe_are_errors_before_anything_runs(tmp_path, recipe, overrides, message):
    with pytest.raises(RecipeError, match=message):
        Run.create(tmp_path, system, recipe, overrides=overrides)


def test_overrides_leave_the_recipe_alone(tmp_path):
    run = Run.create(tmp_path, system, "demo", overrides={"train.drop_rate": 1})
    assert run.section("train").drop_rate == 1.0 != system.recipe("demo").section(Train).drop_rate
    with pytest.raises(Exception, match="cannot assign"):
        run.section("train").drop_rate = 1.0

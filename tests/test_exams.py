"The report's exams of wrong breasts and wrong organs: which are chosen, and how the views hang."
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mammo_nb.core.pictures import write_png
from mammo_nb.baseline.report import fitted as upright
from mammo_nb.core.pictures import shrink
from mammo_nb.mammo.learning.exams import (exam_images, heat_in_frame, read_small, sets_table, show_exam,
                                           wrong_breasts)
from mammo_nb.trauma.report import organ_rows


@pytest.fixture
def run(tmp_path):
    "Patient 7 with five images in no order, one of them of another view; patient 8 has one."
    views = [("7", "a", "L", "MLO"), ("7", "b", "R", "MLO"), ("7", "c", "L", "ML"), ("7", "d", "L", "CC"),
             ("7", "e", "R", "CC"), ("8", "f", "R", "CC")]
    table = pd.DataFrame(views, columns=["patient_id", "image_id", "laterality", "view"])
    table["dataset"], table["cancer"] = "phantom", (table["laterality"] == "L").astype(int)
    table["probability"] = [.1, .2, .3, .4, .5, .9]
    table["file"] = table["image_id"] + ".png"
    table = table.assign(rows=200, columns=160, x0=10, y0=20, x1=110, y1=180)
    (tmp_path / "processed").mkdir()
    (tmp_path / "competition").mkdir()
    table[["patient_id", "image_id", "laterality", "cancer", "probability"]].to_csv(tmp_path / "oof.csv", index=False)
    table[["patient_id", "image_id", "view", "dataset"]].to_csv(tmp_path / "folds.csv", index=False)
    table[["patient_id", "image_id", "file", "rows", "columns", "x0", "y0", "x1", "y1"]].to_csv(
        tmp_path / "processed/crops.csv", index=False)
    for name in table["file"]:
        frame = np.zeros((200, 160), np.uint8)
        frame[20:180, 10:110] = np.arange(100, 200, dtype=np.uint8)
        write_png(tmp_path / "competition" / name, frame)
    return SimpleNamespace(path=lambda name: tmp_path / name, table=table)


def test_views_hang_right_before_left_and_cc_before_mlo(run):
    rows = exam_images(run, "7")
    assert rows["image_id"].tolist() == ["e", "d", "b", "a", "c"]
    assert rows["probability"].tolist() == [.5, .4, .2, .1, .3]


def test_an_exam_shows_each_image_with_its_box_and_marks_the_breast(run):
    breast = next(wrong_breasts(run.table, .5).itertuples())
    assert (breast.patient_id, breast.laterality, breast.kind) == ("7", "L", "missed")
    show_exam(run, breast, height=100)
    axes = [axis for axis in plt.gcf().axes if axis.axison]
    assert [axis.get_title() for axis in axes] == ["R CC: 0.50", "L CC: 0.40", "R MLO: 0.20", "L MLO: 0.10",
                                                   "L ML: 0.30"]
    assert [axis.spines["left"].get_linewidth() for axis in axes] == [1, 3, 1, 3, 3]
    assert all(axis.images[0].get_array().shape == (100, 80) for axis in axes)
    assert axes[0].patches[0].get_bbox().bounds == (5, 10, 50, 80)   # at half size
    assert "missed: patient 7, breast L, cancer, probability 0.27" in plt.gcf()._suptitle.get_text()
    plt.close("all")


def test_heat_maps_hang_below_their_images(run):
    heat = {name: np.zeros((80, 50), np.float32) for name in "abcde"}
    heat["b"][60, 25] = 1   # box 100 x 160 at half size: row 140, column 60 of the frame, (70, 30) of the picture
    show_exam(run, next(wrong_breasts(run.table, .5).itertuples()), height=100, heat=heat)
    below = [axis for axis in plt.gcf().axes if not axis.axison and axis.images]
    assert len(below) == 5
    colours = [np.asarray(axis.images[0].get_array(), int) for axis in below]
    warm = [np.argwhere(np.ptp(c, 2) > 0) for c in colours]
    assert [len(w) > 0 for w in warm] == [False, False, True, False, False]
    assert np.abs(warm[2].mean(0) - (70.2, 30.2)).max() < 1
    plt.close("all")


@pytest.mark.parametrize("fitted, shape", [(shrink, (64, 32)), (upright, (128, 64))], ids=["as cut", "padded"])
def test_heat_comes_back_to_the_box_also_from_a_padded_crop(fitted, shape):
    row = SimpleNamespace(rows=400, columns=320, x0=20, y0=100, x1=220, y1=300)   # a square box
    cut = np.zeros((200, 200), np.uint8)
    cut[140:160, 40:60] = 255
    back = heat_in_frame(fitted(cut, *shape).astype(np.float32) / 255, row, (400, 320), fitted)
    assert np.abs(np.argwhere(back > .5).mean(0) - (249.5, 69.5)).max() < 2
    assert back[:100].max() == back[300:].max() == back[:, :20].max() == back[:, 220:].max() == 0


def test_wrong_breasts_are_those_farthest_from_the_threshold_and_none_that_are_right():
    table = pd.DataFrame({"patient_id": [str(n) for n in range(6)], "laterality": "L", "cancer": [1, 1, 1, 0, 0, 0],
                          "probability": [.4, .1, .9, .6, .8, .2]})
    rows = wrong_breasts(table, .5)
    assert rows[["patient_id", "kind"]].values.tolist() == [["1", "missed"], ["0", "missed"], ["4", "suspected"],
                                                            ["3", "suspected"]]
    assert wrong_breasts(table, .5, count=1)["patient_id"].tolist() == ["1", "4"]
    assert wrong_breasts(table[table["patient_id"].isin(["2", "5"])], .5).empty


def test_sets_are_counted_by_patient_breast_and_image(run):
    table = sets_table({"training": run.table, "test": run.table.drop(columns="cancer")}).set_index("set")
    assert table.loc["training"].tolist() == [2, 3, 6, 1] and pd.isna(table.loc["test", "breasts with cancer"])


def test_a_frame_is_never_enlarged(run):
    assert read_small(run.path("competition/a.png"), 50).shape == (50, 40)
    assert read_small(run.path("competition/a.png"), 1000).shape == (200, 160)


def test_an_organ_is_shown_where_most_of_it_is_seen():
    oof = pd.DataFrame({"patient_id": ["1", "2"], "liver_healthy": [1, 0], "p_liver_injury": [.7, .2],
                        "kidney_healthy": [0, 1], "p_kidney_injury": [.1, .3]})
    info = pd.DataFrame({"patient_id": ["1", "1", "2", "2"], "series": ["a", "b", "c", "c"], "place": [0, 0, 4, 5],
                         "visibility_liver": [.1, .9, .8, .2], "visibility_left_kidney": [.5, .3, .1, .4],
                         "visibility_right_kidney": [.0, .4, .1, .4], "visibility_bowel": 0.})
    rows = organ_rows(oof, info).set_index(["organ", "patient_id"])
    assert rows.loc[("liver", "1"), ["label", "probability", "series"]].tolist() == [0, .7, "b"]
    assert rows.loc[("liver", "2"), ["label", "place"]].tolist() == [1, 4]
    assert rows.loc[("kidney", "1"), ["label", "series"]].tolist() == [1, "b"]   # both kidneys together
    assert rows.loc[("kidney", "2"), "place"] == 5 and len(rows) == 4

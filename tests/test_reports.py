"core/reports and mammo/report: the threshold decides how a picture is labelled, and a breast is shown once."
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mammo_nb.core.pictures import write_png
from mammo_nb.core.reports import extremes, plot_history
from mammo_nb.core.runs import Run
from mammo_nb.core.train import from_one
from mammo_nb.mammo.report import show_extremes
from mammo_nb.mammo.system import system


def test_epochs_are_drawn_from_one_at_whole_numbers():
    history = pd.DataFrame({"fold": [0, 0, 1, 1], "epoch": [0, 1, 0, 1], "loss": [.7, .6, .8, .5]})
    fig, axis = plt.subplots()
    plot_history(axis, history)
    assert [line.get_xdata().tolist() for line in axis.lines] == [[1, 2], [1, 2]]
    assert from_one(history)["epoch"].tolist() == [1, 2, 1, 2] and history["epoch"].tolist() == [0, 1, 0, 1]
    ticks = axis.xaxis.get_major_locator().tick_values(1, 2)
    assert (ticks == ticks.astype(int)).all()
    plt.close(fig)


def test_a_label_is_what_the_threshold_decides_and_not_the_rank():
    table = pd.DataFrame({"probability": [.9, .8, .7, .2, .6, .55, .1, .05], "cancer": [1, 1, 1, 1, 0, 0, 0, 0]})
    rows = extremes(table, "cancer", threshold=.5, count=2)
    assert {k: g["probability"].tolist() for k, g in rows.groupby("kind")} == {
        "found": [.9, .8], "missed": [.2], "suspected": [.6, .55], "passed": [.05, .1]}
    assert set(extremes(table, "cancer", threshold=.05)["kind"]) == {"found", "suspected", "passed"}  # none missed
    assert "found" not in set(extremes(table[:1], "cancer", threshold=.9)["kind"])  # equal is not above


@pytest.fixture
def run(tmp_path):
    "A run with two cancers, of two views each; the first has a mask."
    run = Run.create(tmp_path / "r", system, "tiny")
    rows = [("p1", "a", "L", "CC", 1, .9), ("p1", "b", "L", "MLO", 1, .8), ("p2", "c", "R", "CC", 1, .1),
            ("p2", "d", "R", "MLO", 1, .2), ("p3", "e", "R", "CC", 0, .3)]
    table = pd.DataFrame(rows, columns=["patient_id", "image_id", "laterality", "view", "cancer", "probability"])
    table.drop(columns="view").to_csv(run.path("oof.csv"), index=False)
    table.drop(columns="probability").to_csv(run.path("folds.csv"), index=False)
    run.path("selection.json").write_text(json.dumps({"threshold": .5}))
    for row in table.itertuples():
        write_png(run.path(f"processed/cleaned_images/{row.patient_id}@{row.image_id}.png"), np.zeros((8, 4), np.uint8))
    mask = np.zeros((8, 4), np.uint8)
    mask[2:5, 1:3] = 255
    write_png(run.path("processed/cleaned_masks/p1@a.png"), mask)
    return run


def test_a_breast_is_shown_once_with_id_view_and_the_outline_of_its_lesion(run):
    show_extremes(run)
    axes = [axis for axis in plt.gcf().axes if axis.get_title()]
    assert [axis.get_title().split("\n") for axis in axes] == [
        ["found: 0.85", "p1 L", "CC"], ["missed: 0.15", "p2 R", "MLO"], ["passed: 0.30", "p3 R", "CC"]]
    assert [len(axis.collections) for axis in axes] == [1, 0, 0]
    plt.close("all")

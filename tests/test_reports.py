"core/reports and mammo/report: the threshold decides how a picture is labelled, and a breast is shown once."
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mammo_nb.core.estimates import POINTS, plot_thresholds
from mammo_nb.core.pictures import write_png
from mammo_nb.core.reports import extremes, plot_history, show_files
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


def test_files_are_counted_and_those_that_failed_are_named(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    sets = pd.DataFrame({"set": ["training", "test"], "patients": [2, 1]})
    files = pd.DataFrame({"file": ["a.dcm", "b.dcm", "c.dcm"], "rows": [512, 512, None], "columns": [256, 256, None],
                          "decoder": ["pillow", "native", None], "error": [None, "", "cut off"]})
    tables = {"training": files, "test": files[:1]}
    show_files(sets, tables, {"size": "slice", "decoder": "decoder", "box": "box"})
    counts, facts, first, errors, second = shown
    assert counts["patients"].to_dict() == {"training": 2, "test": 1}
    assert facts.reset_index().values.tolist() == [
        ["training", "slice", "512 × 256", 2], ["training", "decoder", "pillow", 1],
        ["training", "decoder", "native", 1], ["test", "slice", "512 × 256", 1], ["test", "decoder", "pillow", 1]]
    assert first.data == "1 of 3 training files could not be used."
    assert errors["error"].to_dict() == {"c.dcm": "cut off"}
    assert second.data == "0 of 1 test files could not be used."
    shown.clear()
    show_files(sets, {"training": files}, {"size": "slice"}, {"test patients": files[:2]}, unit="series")
    assert "series" in shown[1] and [s.data for s in shown[2:]] == ["0 of 2 test patients could not be used."]


def test_a_figure_of_every_threshold_has_the_scores_of_each_outcome():
    "By hand: above 0.5 there are one of two positives and one of two negatives; above 0.3 both and one."
    one = pd.DataFrame({"outcome": "any", "item": list("abcd"), "label": [0, 0, 1, 1], "threshold": np.nan,
                        "probability": [.1, .6, .4, .9]})
    figure = plot_thresholds(pd.concat([one, one.assign(outcome="epidural", label=[1, 0, 0, 0])]))
    menu, = figure.layout.updatemenus
    assert [b.label for b in menu.buttons] == ["any", "epidural"]
    for button, values in zip(menu.buttons, (
            {"sensitivity": (1, .5), "specificity": (.5, .5), "precision": (2 / 3, .5), "recall rate": (.75, .5)},
            {"sensitivity": (0, 0), "specificity": (0, 1 / 3), "precision": (0, 0), "pF1": (0, 0)})):
        traces = [t for t, visible in zip(figure.data, button.args[0]["visible"]) if visible]
        curves = {t.name: t for t in traces}
        assert len(traces) == 7
        for name, expected in values.items():
            assert np.allclose([curves[name].y[30], curves[name].y[50]], expected), name
    assert curves["positive"].text.tolist() == ["a"] and curves["negative"].x.tolist() == [.4, .6, .9]
    assert [t.visible for t in figure.data] == [True] * 7 + [False] * 7


def test_a_figure_of_many_items_has_a_part_of_them_with_both_ends():
    n = 10 * POINTS
    items = pd.DataFrame({"outcome": "any", "item": np.arange(n).astype(str), "label": 0, "threshold": .5,
                          "probability": np.random.default_rng(0).random(n)})
    items.loc[0, "label"] = 1
    points = {t.name: t for t in plot_thresholds(items).data}
    shown, others = points[f"negative, {POINTS} of {n - 1}"].x, items["probability"][1:]
    assert len(shown) == POINTS and (shown.min(), shown.max()) == (others.min(), others.max())
    assert points["positive"].text.tolist() == ["0"] and points["threshold 0.50"].x == (.5, .5)


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

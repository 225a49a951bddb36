"The bag and the report of head CT: scores by hand, tables that must not be averaged, submissions that are not whole."
import numpy as np
import pandas as pd
import pytest

from mammo_nb.core.files import read_json, write_csv, write_json
from mammo_nb.core.runs import Run
from mammo_nb.core.uncertainty import draws
from mammo_nb.ich import bag, report, sequence
from mammo_nb.ich.learning.scores import compare
from mammo_nb.ich.recipes import CLASSES
from mammo_nb.ich.system import system
from test_ich_sequence import end_to_end, made_run


def submission(ids, values) -> pd.DataFrame:
    return pd.DataFrame({"ID": list(ids), "Label": values})


# ---- submissions
def test_the_mean_of_submissions_by_hand():
    tables = [submission("cab", [.2, 0, 1]), submission("cab", [.4, 0, 1]), submission("cab", [.9, 0, 1])]
    found = bag.average_submissions(tables)
    assert found["ID"].tolist() == ["c", "a", "b"]   # one order in all tables is kept
    np.testing.assert_allclose(found["Label"], [.5, 1e-5, 1 - 1e-5], rtol=1e-12)
    sorted_by_id = bag.average_submissions([tables[0], tables[1][::-1]])
    assert sorted_by_id["ID"].tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("tables, problem", [
    ([], "no submission"),
    ([submission("ab", [.2, .4]), submission("ac", [.2, .4])], "different IDs"),
    ([submission("ab", [.2, .4]), submission("abc", [.2, .4, .1])], "different IDs"),
    ([submission("aab", [.2, .4, .1]), submission("abb", [.6, .6, .6])], "twice"),
    ([submission("aab", [.2, .4, .1])] * 2, "twice"),
    ([submission("ab", [.2, .4]), submission("ab", [np.nan, .6])], "not a probability"),
    ([submission("ab", [.2, 1.4])], "not a probability"),
])
def test_submissions_of_which_there_is_no_mean(tables, problem):
    with pytest.raises(bag.BagError, match=problem):
        bag.average_submissions(tables)


# ---- scores
def test_scores_of_two_patients_by_hand():
    known = pd.DataFrame({"patient_id": ["a", "a", "b"], "any": [1, 0, 1]})
    first, second = np.array([[.5], [.5], [.5]]), np.array([[.8], [.2], [.5]])
    table = compare(known, ("any",), {"CNN": first, "other": second})
    better, same = -np.log(.8), -np.log(.5)
    by_draw = {(2, 0): better, (1, 1): (2 * better + same) / 3, (0, 2): same}   # how often a and b are drawn
    losses = np.array([by_draw[tuple(d)] for d in draws(2)])
    row = table.iloc[1]
    assert table["log_loss"].tolist() == pytest.approx([same, (2 * better + same) / 3])
    assert [row["low"], row["high"]] == pytest.approx(np.quantile(losses, [.025, .975]).tolist())
    assert row["change_percent"] == pytest.approx(100 * ((2 * better + same) / 3 / same - 1))
    changes = 100 * (losses / same - 1)   # the first row is log 2 in each draw
    assert [row["change_low"], row["change_high"]] == pytest.approx(np.quantile(changes, [.025, .975]).tolist())
    assert [table["auc_any"][0], row["auc_any"]] == [.5, 1]


def test_the_weight_of_any_is_twice_that_of_a_kind():
    known = pd.DataFrame(0, index=range(4), columns=list(CLASSES)).assign(patient_id=["a", "a", "b", "b"])
    wrong_kind, wrong_any = np.full((4, 6), 1e-9), np.full((4, 6), 1e-9)
    wrong_kind[0, 0], wrong_any[0, 5] = .5, .5
    table = compare(known, CLASSES, {"kind": wrong_kind, "any": wrong_any})
    right = -np.log(1 - 1e-5)
    expected = [right + w / 7 * (np.log(2) - right) / 4 for w in (1, 2)]
    assert table["log_loss"].tolist() == pytest.approx(expected)
    assert table["auc_any"].isna().all() and table["auc_low"].isna().all()   # no slice has a hemorrhage


def test_the_list_of_members_states_the_score_of_the_bag(tmp_path):
    run = made_run(tmp_path / "run", {"bag.readers": "lstm"})
    sequence.run_stage(run)
    ladder = bag.run_stage(run).set_index("step")
    stated = read_json(run.path("bag.json"))
    assert stated["log_loss"] == pytest.approx(ladder.loc[stated["step"], "log_loss"])
    assert stated["auc_any"] == pytest.approx(ladder.loc[stated["step"], "auc_any"])
    assert stated["change_percent"] == {"CNN": pytest.approx(ladder.loc[
        stated["step"], ["change_percent", "change_low", "change_high"]].tolist())}
    nothing_held_back = made_run(tmp_path / "all", {"bag.readers": "lstm"}, folds=(-1,))
    sequence.run_stage(nothing_held_back)
    bag.run_stage(nothing_held_back)
    stated = read_json(nothing_held_back.path("bag.json"))
    assert stated["log_loss"] is None and stated["auc_any"] is None
    assert pd.read_csv(nothing_held_back.path("ladder.csv")).empty


def test_predictions_of_another_end_to_end_training_do_not_enter(tmp_path):
    run = made_run(tmp_path / "run", {"bag.readers": "lstm"}, skips=())
    sequence.run_stage(run)
    end_to_end(run)
    assert "end to end" in bag.run_stage(run)["step"].tolist()
    predicted = run.path("checkpoints/end2end/pred.csv")
    kept = predicted.read_text()
    predicted.write_text(kept.replace("0.", "0.0", 1))
    with pytest.raises(bag.BagError, match="pred.csv is not the file that the stage end2end wrote"):
        bag.run_stage(run)
    predicted.write_text(kept)
    other = read_json(run.path("weights/members.json"))
    write_json(run.path("weights/members.json"), {**other, "made": "again"})
    with pytest.raises(bag.BagError, match="started from other sequence models"):
        bag.run_stage(run)


# ---- report
@pytest.fixture
def submitted(tmp_path) -> tuple[Run, pd.DataFrame]:
    "A run with a submission for six slices of three patients, wrong in the first slice, and the submission."
    run = Run.create(tmp_path / "run", system, "tiny")
    images = [f"ID_{k:09x}" for k in range(6)]
    truth = pd.DataFrame([(f"{image}_{c}", k % 2) for k, image in enumerate(images) for c in CLASSES],
                         columns=["ID", "Label"])
    ours = truth.assign(Label=.8 * truth["Label"] + .1)
    ours.loc[ours["ID"].str.startswith(images[0]), "Label"] = .9
    write_csv(run.path("competition/truth/test.csv"), truth)
    write_csv(run.path("test_per_slice.csv"), pd.DataFrame({"patient_id": np.repeat(["a", "b", "c"], 2),
                                                            "image_id": images}))
    return run, ours


def test_the_score_of_a_submission_is_by_id(submitted):
    run, ours = submitted
    assert report.test_scores(run).empty   # there is no submission yet
    write_csv(run.path("submissions/submission.csv"), ours.sample(frac=1, random_state=1))
    scored = report.test_scores(run).iloc[0]
    assert scored["log_loss"] == pytest.approx((5 * -np.log(.9) - np.log(.1)) / 6)
    assert scored["low"] == pytest.approx(-np.log(.9))   # a draw without the first patient
    run.path("competition/truth/test.csv").unlink()
    assert report.test_scores(run).empty


@pytest.mark.parametrize("left_out", ["ID_000000000_any", "ID_000000000_"])
def test_a_submission_that_lacks_slices_has_no_score(submitted, left_out):
    run, ours = submitted
    write_csv(run.path("submissions/submission.csv"), ours[~ours["ID"].str.startswith(left_out)])
    with pytest.raises(report.ReportError, match="submission.csv lacks"):
        report.test_scores(run)

"""Abdominal trauma: inference with two graphs, and the submission of folders of patients."""
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import read_json, write_json
from mammo_nb.core.rehearse import scoring_problems
from mammo_nb.core.sidecars import EngineError
from mammo_nb.core.submission import find_submission
from mammo_nb.core.submit import submit
from mammo_nb.trauma.learning.blocks import read_triplets
from mammo_nb.trauma.learning.inference import (check_weights, open_engines, patient_probabilities, read_series,
                                                submitted)
from mammo_nb.trauma.reading.blocks import block_rows, middle_rows
from mammo_nb.trauma.reading.competition import SAMPLE
from mammo_nb.trauma.reading.organs import WHOLE
from mammo_nb.trauma.recipes import GRADES, SUBMITTED
from mammo_nb.trauma.submit import decide, prepare_item, read_test, submission
from mammo_nb.trauma.tools.hidden import hidden_test
from trauma import COLUMNS, ORGAN_NAMES, SCALING, SHARES, SIZE, weights  # noqa: F401, the fixture

VOLUME = np.zeros((50, 40, 48), np.uint8)
VOLUME[10:30, 8:28, 12:30] = 153   # 0.6, what the segmenter calls liver


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    "A hidden test set and the patients that cannot be read."
    folder = tmp_path_factory.mktemp("hidden") / "competition"
    return folder, hidden_test(folder)


@pytest.fixture(scope="module")
def sent(hidden, weights, tmp_path_factory):  # noqa: F811
    "A submission with its table and report."
    output = tmp_path_factory.mktemp("submitted")
    submit(submission, hidden[0], weights, output, workers=0)
    names = {"patient_id": str}
    tables = [pd.read_csv(output / name, dtype=names) for name in ("submission.csv", "test_per_patient.csv")]
    return *tables, read_json(output / "submit.json")


# ---- inference
def test_organs_give_the_crop(weights):  # noqa: F811
    reading = read_series(open_engines(weights, device="cpu"), VOLUME)
    assert reading.masks.shape == (50, 5, 32, 32) and not reading.masks[:, 1:].any()
    assert reading.masks[10:30, 0].any((1, 2)).all() and not reading.masks[[9, 30]].any()
    np.testing.assert_allclose(reading.crop, [8 / 40, 28 / 40, 12 / 48, 30 / 48], atol=1.01 / 32)


def test_probabilities_of_slices_and_patients_are_those_of_the_graph(weights):  # noqa: F811
    engines = open_engines(weights, device="cpu")
    reading = read_series(engines, VOLUME)
    expected = {c: np.full(50, np.nan) for c in COLUMNS}
    for places in block_rows(50, engines.seen.blocks):
        both = {f"crop_{SIZE}": reading.crop, f"whole_{SIZE}": WHOLE}
        values = engines.classifier({name: read_triplets(VOLUME, places, crop, SIZE)[None]
                                     for name, crop in both.items()})[0]
        for k, place in enumerate(middle_rows(places)):
            for c in COLUMNS:   # folds of a model are averaged
                own = values[:2, k].mean(0) if c in ORGAN_NAMES else values[2, k]
                expected[c][place] = np.fmax(expected[c][place], own[COLUMNS.index(c)])
    slices = reading.slices()
    for c in COLUMNS:
        np.testing.assert_allclose(slices[c], expected[c], atol=1e-6)
    dark = read_series(engines, np.zeros((20, 40, 48), np.uint8))
    assert dark.crop == WHOLE and not dark.masks.any(), "a series without organs keeps its frame"
    patient = patient_probabilities([dark, reading])
    for c in COLUMNS:
        assert patient[c][0] == pytest.approx(np.nanmax(expected[c]), abs=1e-6)


def test_scaling_by_hand():
    p = pd.DataFrame({"liver_injury": [.4], "liver_low": [.3], "liver_high": [.2], "bowel_injury": [.25],
                      "extravasation_injury": [.1]})
    made = submitted(p, SCALING).iloc[0]
    np.testing.assert_allclose(made[["liver_healthy", "liver_low", "liver_high"]], np.array([.6, .6, .8]) / 2)
    np.testing.assert_allclose(made[["bowel_healthy", "bowel_injury"]], np.array([.75, .5]) / 1.25)
    np.testing.assert_allclose(made["extravasation_injury"], .1)
    np.testing.assert_allclose(made["spleen_high"], 4 * .05 / (.9 + 2 * .05 + 4 * .05)), "a grade of no model"
    assert submitted(p, {**SCALING, "kind": "none"})["bowel_injury"][0] == pytest.approx(.25)


def test_one_slice_is_enough(weights):  # noqa: F811
    reading = read_series(open_engines(weights, device="cpu"), VOLUME[:1])
    assert reading.slices().notna().all(axis=None) and len(reading.slices()) == 1


def test_graphs_of_two_runs_are_refused(weights, tmp_path):  # noqa: F811
    for name in ("segmenter.onnx", "segmenter.json", "classifier.onnx"):
        shutil.copy(weights / name, tmp_path)
    with pytest.raises(EngineError, match="no classifier.json"):
        check_weights(tmp_path)
    about = read_json(weights / "classifier.json")
    write_json(tmp_path / "classifier.json", {**about, "segmenter_weights_sha256": "0"})
    with pytest.raises(EngineError, match="another segmenter"):
        open_engines(tmp_path)


# ---- the decision
def test_a_patient_without_a_prediction_gets_the_weighted_shares():
    found = pd.DataFrame({"patient_id": ["2", "1"], **dict.fromkeys(SUBMITTED, [np.nan, .3])})
    sample = pd.DataFrame({"patient_id": ["3", "1", "2"], **dict.fromkeys(SUBMITTED, .5)})
    made = decide(found, sample, {"scaling": {"shares": SHARES}})
    assert made.columns.equals(sample.columns) and made["patient_id"].tolist() == ["3", "1", "2"]
    assert (made.iloc[1, 1:] == .3).all()
    for row in (0, 2):
        assert made["extravasation_injury"][row] == pytest.approx(.6 / 1.5)
        for organ in GRADES:
            assert made.loc[row, [f"{organ}_{g}" for g in GRADES[organ]]].sum() == pytest.approx(1)


# ---- a test set
def sent_file(table: pd.DataFrame, folder: Path) -> Path:
    "A submission as a file."
    table.to_csv(folder / "submission.csv", index=False)
    return folder / "submission.csv"


def test_the_sample_is_filled_in_its_order(hidden, sent):
    ours, table, report = sent
    sample = pd.read_csv(hidden[0] / SAMPLE, dtype={"patient_id": str})
    assert ours["patient_id"].equals(sample["patient_id"]) and list(ours.columns) == list(sample.columns)
    of = table.dropna(subset="bowel_injury").set_index("patient_id")
    for row in ours.set_index("patient_id").itertuples():
        if row.Index in of.index:
            np.testing.assert_allclose(row[1:], of.loc[row.Index, list(SUBMITTED)].astype(float), atol=1e-6)
    assert of["extravasation_injury"].nunique() > 3 and report["system"] == "trauma"
    assert scoring_problems(sent_file(ours, hidden[0].parent), hidden[0] / SAMPLE) == []


def test_only_the_unreadable_patient_fails(hidden, sent):
    ours, table, report = sent
    failed = table[table["error"].notna()]
    assert failed["file"].tolist() == hidden[1] and failed["error"].str.startswith("NoSeries").all()
    assert (report["failed"], report["predicted"]) == (1, report["items"] - 1)
    assert report["differences"]["patients of the sample without a folder"] == ["65534"]
    assert len(report["differences"]["patients that are not in the sample"]) == 1
    prior = ours[ours["patient_id"].isin([failed["patient_id"].iloc[0], "65534"])]
    assert len(prior) == 2 and np.allclose(prior["bowel_injury"], .2 / 1.1)


def test_what_was_left_out_is_named(sent):
    notes = sent[1]["note"]
    for words, why in (("2 files left out", "a reformat"), ("1 files left out", "another matrix"),
                       ("1 files failed", "a file cut short"), ("one gap among steps", "a missing instance"),
                       ("one slice; the spacing is unknown", "a single slice")):
        assert notes.str.contains(words).sum() >= 1, why
    assert (sent[1]["series"] == 2).sum() == 1


def test_volumes_of_a_patient_are_removed(hidden, weights):  # noqa: F811
    test = read_test(hidden[0])
    row = test.items[~test.items["file"].isin(hidden[1])].iloc[0].to_dict()
    about, patient = prepare_item({"folder": str(hidden[0]), "row": row, "window": "ours", "faithful": False}, None)
    files = [np.load(path).shape for path in patient["volumes"]]
    assert about["series"] == len(files) and about["slices"] == sum(shape[0] for shape in files)
    submission.predict(open_engines(weights, device="cpu"), [patient])
    assert not [p for p in patient["volumes"] if Path(p).exists()]


@pytest.mark.parametrize("spoil, words", [
    (lambda f: (f / SAMPLE).unlink(), "has no sample_submission.csv"),
    (lambda f: shutil.rmtree(f / "test_images"), "has no test_images"),
    (lambda f: (f / SAMPLE).write_text("patient_id,bowel_injury\n1,0.5\n"), "has the columns"),
    (lambda f: (f / SAMPLE).write_text((f / SAMPLE).read_text() + (f / SAMPLE).read_text().split("\n")[1] + "\n"),
     "twice")])
def test_a_wrong_competition_is_named(hidden, weights, tmp_path, spoil, words):  # noqa: F811
    folder = shutil.copytree(hidden[0], tmp_path / "competition")
    spoil(folder)
    with pytest.raises(ProjectError, match=words):
        submit(submission, folder, weights, tmp_path / "out", workers=0)


def test_the_declaration_is_found_by_name():
    assert find_submission("trauma") is submission and submission.tables == ()

"""A submission of any competition: one row of 14 targets for a series, or six rows for each slice, through the same
pass, the same time budget and the same checks."""
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mammo_nb.core.files import read_json, write_json
from mammo_nb.core.rehearse import scoring_problems
from mammo_nb.core.submission import Submission, SubmissionError, ItemSet, find_submission, read_submission
from mammo_nb.core.submit import Output, submit, submit_items, summary

TARGETS = tuple(f"organ_{k}" for k in range(14))
CLASSES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
STUDIES, SLICES = 10, 4


class Clock:
    "Time that passes only when a part of the test moves it."
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def engine_of(weights, name, device, backend, batch=4):
    return SimpleNamespace(metadata={"batches": [1, batch, batch]}, name=name, precision="fp32", refused=())


def write_competition(folder: Path, sample: pd.DataFrame, test: pd.DataFrame) -> Path:
    "Series as folders of text files, one file a slice, whose number is its position."
    folder.mkdir()
    sample.to_csv(folder / "sample_submission.csv", index=False)
    test.to_csv(folder / "test.csv", index=False)
    for study in range(STUDIES):
        (folder / f"series/{study}").mkdir(parents=True)
        for k in range(SLICES):
            (folder / f"series/{study}/{k}.txt").write_text(str((study * SLICES + k) / (STUDIES * SLICES)))
    (folder / "toy.onnx").touch()
    small = {"name": "toy_small", "folds": 1, "size": [1, 1, 1]}
    write_json(folder / "toy.json", {"folds": 1, "size": [SLICES, 1, 1], "variants": [small]})
    return folder


# ---- one row of 14 targets: an item is a series
def read_series(folder: Path) -> ItemSet:
    sample = pd.read_csv(folder / "sample_submission.csv", dtype={"study": str})
    items = pd.read_csv(folder / "test.csv", dtype=str).assign(file=lambda t: "series/" + t["study"])
    return ItemSet(sample, items, "study", sample["study"].tolist(), {})


def prepare_series(item: dict, mode) -> tuple:
    files = sorted(Path(item["folder"], item["file"]).iterdir())
    values = [float(f.read_text()) for f in files]
    return {"slices": len(files)}, {"volume": np.array(values), "length": np.array(len(files))}


def collate_series(inputs: list) -> dict:
    "A dict of inputs, as a network with a volume and its length takes them."
    assert isinstance(inputs[0], dict)
    return {name: np.stack([x[name] for x in inputs]) for name in inputs[0]}


def predict_series(engine, inputs: dict) -> np.ndarray:
    mean = inputs["volume"].sum(1) / inputs["length"]
    return mean[:, None] * np.linspace(.1, 1, len(TARGETS))


def flip_series(inputs: dict) -> dict:
    return {**inputs, "volume": 1 - inputs["volume"]}


def decide_series(table: pd.DataFrame, sample: pd.DataFrame, metadata: dict) -> pd.DataFrame:
    known = table.set_index("study").reindex(sample["study"]).reset_index(drop=True)
    return sample[["study"]].assign(**{t: known[t].fillna(.5) for t in TARGETS})


wide = Submission("wide", "toy-series", read_series, prepare_series, decide_series, draw_hidden_test=None, engine="toy",
                  columns=TARGETS, predict=predict_series, flip=flip_series, collate=collate_series,
                  open_engine=engine_of, table="test_per_series.csv", item="series", group="studies")


@pytest.fixture
def series(tmp_path):
    studies = pd.Series([str(k) for k in reversed(range(STUDIES))], name="study")
    sample = studies.to_frame().assign(**dict.fromkeys(TARGETS, .5))
    return write_competition(tmp_path / "series", sample, studies.to_frame().sort_values("study"))


def mean_of(study: str) -> float:
    return np.mean([(int(study) * SLICES + k) / (STUDIES * SLICES) for k in range(SLICES)])


def test_fourteen_targets_of_one_row_come_from_one_series(series, tmp_path):
    (series / "series/3/0.txt").write_text("damaged")
    submit(wide, series, series, tmp_path / "out", workers=0)
    ours = pd.read_csv(tmp_path / "out/submission.csv", dtype={"study": str})
    assert list(ours.columns) == ["study", *TARGETS] and ours["study"].tolist() == [str(k) for k in range(9, -1, -1)]
    for row in ours.set_index("study").itertuples():
        expected = [.5] * 14 if row[0] == "3" else mean_of(row[0]) * np.linspace(.1, 1, 14)
        assert np.allclose(row[1:], expected, atol=1e-6)
    table, report = pd.read_csv(tmp_path / "out/test_per_series.csv"), read_json(tmp_path / "out/submit.json")
    assert table["slices"].dropna().tolist() == [SLICES] * 9 and table["error"].notna().sum() == 1
    assert (report["items"], report["predicted"], report["failed"], report["rows"]) == (10, 9, 1, 10)
    assert report["groups_without_prediction"] == ["3"]
    assert "1 of 10 studies have no prediction, such as 3" in summary(report)
    assert scoring_problems(tmp_path / "out/submission.csv", series / "sample_submission.csv") == []


def test_tta_flips_inputs_as_the_system_declares(series, tmp_path):
    plain, flipped = (submit(wide, series, series, tmp_path / str(f), flip=f, workers=0) for f in (False, True))
    assert np.allclose(flipped["organ_13"], .5)   # the mean of x and 1 - x
    assert np.ptp(plain["organ_13"]) > .5


# ---- six rows a slice: an item is a slice
def read_slices(folder: Path) -> ItemSet:
    sample, test = pd.read_csv(folder / "sample_submission.csv"), pd.read_csv(folder / "test.csv", dtype=str)
    groups = sample["ID"].str.rpartition("_")[0].unique().tolist()
    items = test.assign(file="series/" + test["study"] + "/" + test["slice"] + ".txt",
                        group="ID_" + test["study"] + "x" + test["slice"])
    without = sorted(set(items["group"]) - set(groups))
    return ItemSet(sample, items, "group", groups, {"slices without six rows": without})


def prepare_slice(item: dict, mode) -> tuple:
    return {}, np.array([float(Path(item["folder"], item["file"]).read_text())])


def decide_slices(table: pd.DataFrame, sample: pd.DataFrame, metadata: dict) -> pd.DataFrame:
    long = table.melt("group", list(CLASSES)).assign(ID=lambda t: t["group"] + "_" + t["variable"])
    return sample[["ID"]].assign(Label=sample["ID"].map(long.set_index("ID")["value"]).fillna(.1))


tall = Submission("tall", "toy-slices", read_slices, prepare_slice, decide_slices, draw_hidden_test=None, engine="toy",
                  columns=CLASSES, predict=lambda engine, x: x * np.arange(1, 7) / 6, open_engine=engine_of, first=.25,
                  table="test_per_slice.csv", item="slices", group="slices")


@pytest.fixture
def slices(tmp_path):
    test = pd.DataFrame([{"study": str(s), "slice": str(k)} for s in range(STUDIES) for k in range(SLICES)])
    ids = [f"ID_{r.study}x{r.slice}_{c}" for r in test.itertuples() for c in CLASSES]
    sample = pd.DataFrame({"ID": np.random.default_rng(0).permutation(ids), "Label": .5})
    return write_competition(tmp_path / "slices", sample, test)


def test_six_rows_a_slice_come_from_one_slice(slices, tmp_path):
    submit(tall, slices, slices, tmp_path / "out", workers=0)
    ours, sample = (pd.read_csv(p) for p in (tmp_path / "out/submission.csv", slices / "sample_submission.csv"))
    assert ours["ID"].tolist() == sample["ID"].tolist() and len(ours) == 6 * STUDIES * SLICES
    label = ours.set_index("ID")["Label"]
    assert label["ID_5x2_any"] == pytest.approx(22 / 40)
    assert label["ID_5x2_epidural"] == pytest.approx(22 / 240, abs=1e-6)
    report = read_json(tmp_path / "out/submit.json")
    assert (report["items"], report["rows"], report["groups"]) == (40, 240, 40)
    assert scoring_problems(tmp_path / "out/submission.csv", slices / "sample_submission.csv") == []
    ours.iloc[:-1].to_csv(tmp_path / "short.csv", index=False)
    assert len(scoring_problems(tmp_path / "short.csv", slices / "sample_submission.csv")) == 1


def test_the_first_file_has_the_declared_value_whatever_happens_later(slices, tmp_path):
    (slices / "toy.json").unlink()
    with pytest.raises(Exception, match="toy.onnx"):
        submit(tall, slices, slices, tmp_path / "out", workers=0)
    first = pd.read_csv(tmp_path / "out/submission.csv")
    assert (first["Label"] == .25).all() and first["ID"].tolist() == pd.read_csv(
        slices / "sample_submission.csv")["ID"].tolist()


# ---- the time budget
@pytest.mark.parametrize("system, name, count", [(wide, "series", 50), (tall, "slices", STUDIES * SLICES)])
def test_a_budget_takes_the_cheaper_network_of_any_system(system, name, count, request, tmp_path):
    "The whole network needs 4 s an item, its variant 1 s; half of the time that the whole one needs is given."
    folder, clock = request.getfixturevalue(name), Clock()

    def predict(engine, inputs):
        values = system.predict(engine, inputs)
        clock.now += len(values) * (4 if engine.name == "toy" else 1)
        return values

    if name == "series":   # more series of the same files
        for k in range(STUDIES, count):
            (folder / f"series/{k}").symlink_to(folder / f"series/{k % STUDIES}")
        ids = pd.DataFrame({"study": range(count)})
        ids.to_csv(folder / "test.csv", index=False)
        ids.assign(**dict.fromkeys(TARGETS, .5)).to_csv(folder / "sample_submission.csv", index=False)
    small = replace(system, predict=predict, open_engine=partial(engine_of, batch=2))
    output = Output(tmp_path / "submission.csv", tmp_path / "table.csv", tmp_path / "submit.json")
    budget = str(2 * count)
    submit_items(small, folder, folder, output, budget=budget, workers=0, clock=clock)
    report = read_json(output.report)
    assert clock.now < float(budget) and report["predicted"] == count and report["not_reached"] == 0
    assert set(report["done_with"]) == {"toy", "toy_small"} and report["dropped"] == [
        f"{report['done_with']['toy_small']} {system.item} with toy_small instead of toy"]


# ---- what a system must not do
@pytest.mark.parametrize("spoil, words", [
    (lambda t: t.iloc[::-1].reset_index(drop=True), "changed the values or the order of study"),
    (lambda t: t.drop(columns="organ_3"), "the sample has 10 rows of study, organ_0"),
    (lambda t: t.iloc[1:], "returned 9 rows"),
    (lambda t: t.assign(organ_3=1.5), "must lie between 0 and 1"),
    (lambda t: t.assign(organ_3=np.nan), "organ_3': nan")])
def test_rows_that_the_scorer_would_refuse_are_an_error_of_the_system(series, tmp_path, spoil, words):
    odd = replace(wide, decide=lambda *given: spoil(decide_series(*given)))
    with pytest.raises(SubmissionError, match=words):
        submit(odd, series, series, tmp_path / "out", workers=0)
    assert (tmp_path / "out/submission.csv").read_bytes() == (series / "sample_submission.csv").read_bytes()


def test_the_manifest_of_the_weights_names_the_system(tmp_path):
    with pytest.raises(SubmissionError, match="no manifest.json that names a system"):
        read_submission(tmp_path)
    write_json(tmp_path / "manifest.json", {"system": "baseline", "files": {}})
    assert read_submission(tmp_path).engine == "baseline"
    with pytest.raises(SubmissionError, match="There are baseline, ich, mammo"):
        find_submission("thyroid")


# ---- six rows a slice: an item is a series, whose slices are predicted together
def read_series_of_slices(folder: Path) -> ItemSet:
    sample, test = pd.read_csv(folder / "its_sample.csv"), pd.read_csv(folder / "test.csv", dtype=str)
    items = test.assign(file=test["study"], group="ID_" + test["study"] + "x" + test["slice"])
    return ItemSet(sample, items, "group", items["group"].tolist(), {})


def prepare_series_of_slices(item: dict, mode) -> tuple:
    "A slice that cannot be read is NaN in the input and has an error in its row."
    values, errors = [], []
    for row in item["rows"]:
        text = Path(item["folder"], "series", row["study"], f"{row['slice']}.txt").read_text()
        values.append(np.nan if text == "damaged" else float(text))
        errors.append("Damaged: no number" if text == "damaged" else "")
    more = {"error": errors} if any(errors) else {}
    return {"slices": len(values), "place": list(range(len(values))), **more}, np.array(values)


def predict_series_of_slices(engine, inputs: list) -> list[np.ndarray]:
    "The mean of the series is a part of each row, so that slices alone would predict something else."
    return [(x[:, None] + np.nanmean(x)) / 2 * np.arange(1, 7) / 6 for x in inputs]


together = replace(tall, read_test=read_series_of_slices, prepare=prepare_series_of_slices, collate=list,
                   predict=predict_series_of_slices, sample="its_sample.csv", tables=("test.csv",), item="series")


@pytest.fixture
def of_slices(slices):
    "Series of unequal lengths, whose rows are mixed."
    test = pd.read_csv(slices / "test.csv", dtype=str)
    test = test[(test["study"] != "7") | (test["slice"] == "2")].sample(frac=1, random_state=0)
    test.to_csv(slices / "test.csv", index=False)
    (slices / "sample_submission.csv").rename(slices / "its_sample.csv")
    return slices


def test_one_item_predicts_a_row_for_each_of_its_slices(of_slices, tmp_path):
    submit(together, of_slices, of_slices, tmp_path / "out", workers=0)
    label = pd.read_csv(tmp_path / "out/submission.csv").set_index("ID")["Label"]
    mean = np.mean([20, 21, 22, 23]) / 40
    assert label["ID_5x2_any"] == pytest.approx((22 / 40 + mean) / 2)
    assert label["ID_5x3_epidural"] == pytest.approx((23 / 40 + mean) / 12, abs=1e-6)
    assert label["ID_7x2_any"] == pytest.approx(30 / 40)
    table = pd.read_csv(tmp_path / "out/test_per_slice.csv", dtype={"study": str, "slice": str})
    test = pd.read_csv(of_slices / "test.csv", dtype=str)
    assert table[["study", "slice"]].equals(test) and len(table) == 9 * SLICES + 1
    assert (table["slices"] == table["study"].map(test["study"].value_counts())).all()
    assert sorted(table.loc[table["study"] == "5", "place"]) == [0, 1, 2, 3]
    report = read_json(tmp_path / "out/submit.json")
    assert (report["items"], report["predicted"], report["failed"], report["groups"]) == (10, 10, 0, 37)


def test_a_damaged_slice_costs_its_own_rows_only(of_slices, tmp_path):
    (of_slices / "series/5/2.txt").write_text("damaged")
    (of_slices / "series/6/0.txt").unlink()
    submit(together, of_slices, of_slices, tmp_path / "out", workers=0)
    label = pd.read_csv(tmp_path / "out/submission.csv").set_index("ID")["Label"]
    assert (label[[f"ID_5x2_{c}" for c in CLASSES]] == .1).all() and label["ID_6x1_any"] == .1
    assert label["ID_5x3_any"] == pytest.approx((23 / 40 + np.mean([20, 21, 23]) / 40) / 2, abs=1e-6)
    table = pd.read_csv(tmp_path / "out/test_per_slice.csv", dtype={"study": str, "slice": str})
    failed = table[table["error"].notna()]
    assert sorted(failed["study"]) == ["5", "6", "6", "6", "6"]
    assert failed.loc[failed["study"] == "5", "error"].tolist() == ["Damaged: no number"]
    report = read_json(tmp_path / "out/submit.json")
    assert (report["items"], report["predicted"], report["failed"]) == (10, 9, 2)
    assert len(report["groups_without_prediction"]) == 5


def test_a_killed_submission_of_series_continues(of_slices, tmp_path):
    calls = []

    def predict(engine, inputs):
        calls.append(len(inputs))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict_series_of_slices(engine, inputs)

    with pytest.raises(KeyboardInterrupt):
        submit(replace(together, predict=predict), of_slices, of_slices, tmp_path / "out", workers=0)
    again = submit(replace(together, predict=predict), of_slices, of_slices, tmp_path / "out", workers=0)
    whole = submit(together, of_slices, of_slices, tmp_path / "whole", workers=0)
    pd.testing.assert_frame_equal(again, whole)
    assert sum(calls) == 4 + 4 + 6   # the first batch counts, the interrupted one is predicted again


@pytest.mark.parametrize("spoil, words", [
    (lambda x: x[1:], "has 4 rows, and a list of 3 values"),
    (lambda x: x * np.where(np.arange(len(x)) == 1, np.inf, 1)[:, None], None)])
def test_rows_that_a_network_leaves_out_are_found(of_slices, tmp_path, spoil, words):
    def predict(engine, inputs):
        return [spoil(x) if len(x) > 1 else x for x in predict_series_of_slices(engine, inputs)]

    odd = replace(together, predict=predict)
    if words:
        with pytest.raises(SubmissionError, match=words):
            submit(odd, of_slices, of_slices, tmp_path / "out", workers=0)
        return
    submit(odd, of_slices, of_slices, tmp_path / "out", workers=0)
    table = pd.read_csv(tmp_path / "out/test_per_slice.csv")
    assert table["error"].str.startswith("NotFinite").sum() == 9 and table["any"].isna().sum() == 9

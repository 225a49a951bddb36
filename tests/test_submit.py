"The submission: a valid file whatever happens, the same answers as `predict`, and an end in time."
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from mammo_nb.cli import app
from mammo_nb.core.engines import export_onnx, load_engine, probe_pictures
from mammo_nb.core.ensembles import GREY, PROBABILITIES, Ensemble as networks
from mammo_nb.core.files import read_json, write_json
from mammo_nb.core.networks import create_network, save_weights
from mammo_nb.core.sidecars import EngineError, write_graph
from mammo_nb.core import submit as module
from mammo_nb.core.budget import BudgetError, Planner, read_budget, read_modes
from mammo_nb.core.submission import SubmissionError
from mammo_nb.core.submit import Output, submit_items
from mammo_nb.mammo.reading.inputs import see_item
from mammo_nb.mammo.datasets import DatasetError
from mammo_nb.mammo.phantom import make_competition
from mammo_nb.mammo.tools.predict import predict_items
from mammo_nb.mammo.submit import submission as mammo

SIZE, THRESHOLD = (128, 64), .815   # half of the breasts are above


def submit(competition, weights, output, **how):
    "The submission of mammo."
    return module.submit(mammo, competition, weights, output, **how)


def files_of(folder: Path) -> Output:
    return Output(folder / "submission.csv", folder / "test_per_image.csv", folder / "submit.json")


def write_ensemble(folder: Path, name="ensemble", size=SIZE, **metadata):
    """Two 'networks' that weigh the pixels: the left side counts otherwise than the right, so a mirror image is another
    picture."""
    rows, columns = np.mgrid[:size[0], :size[1]] / np.array(size).reshape(2, 1, 1)
    model = onnx.parser.parse_model(
        f'''<ir_version: 10, opset_import: ["": 20]>
        weigh (uint8[n, 1, {size[0]}, {size[1]}] images) => (float[n, 2] probabilities) {{
        grey = Cast<to = 1>(images)
        flat = Flatten(grey)
        sums = MatMul(flat, weights)
        logits = Add(sums, bias)
        probabilities = Sigmoid(logits)
    }}''')
    weights = np.stack([(columns - .3).ravel(), (.4 - columns + rows / 2).ravel()], 1) / (255 * size[0] * size[1]) * 60
    for key, values in {"weights": weights, "bias": [-.5, .25]}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values, np.float32), key))
    probe = 1 / (1 + np.exp(-(probe_pictures(size).reshape(2, -1) @ weights + [-.5, .25])))
    write_graph(
        model, folder / f"{name}.onnx", {
            "probe": probe.tolist(), "weights_sha256": "0" * 64, "threshold": THRESHOLD, "folds": 2, "size": list(size),
            "crops": {"height": size[0], "width": size[1]}, "demonstration": True, **metadata
        }, [GREY, PROBABILITIES])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    write_ensemble(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, weights):
    "A competition, and its submission: twelve images or more of three patients."
    folder = tmp_path_factory.mktemp("whole")
    make_competition(folder / "c", patients=1, test_patients=3, frame=(320, 256), prevalence=.5, seed=5, workers=1)
    submit(folder / "c", weights, folder / "out", workers=2)
    return SimpleNamespace(competition=folder / "c", out=folder / "out", table=read(folder / "out"),
                           submission=pd.read_csv(folder / "out/submission.csv"))


def read(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "test_per_image.csv", dtype={"patient_id": str, "image_id": str}, keep_default_na=False,
                       na_values={"probability": ""})


@pytest.fixture
def scans(whole, tmp_path):
    shutil.copytree(whole.competition, tmp_path / "c", ignore=shutil.ignore_patterns("train_images"))
    return tmp_path / "c"


# ---- the same answers
def test_a_stream_answers_as_predict_does(whole, weights, tmp_path):
    test = pd.read_csv(whole.competition / "test.csv", dtype=str)
    items = [{
        "file": f"test_images/{r.patient_id}/{r.image_id}.dcm", "folder": str(whole.competition),
        "weights": str(weights), "row": r._asdict()
    } for r in test.itertuples(index=False)]
    expected = predict_items(items, tmp_path / "t.csv", workers=1)
    assert (whole.table["file"] == expected["file"]).all() and np.abs(
        whole.table["probability"] - expected["probability"]).max() <= 1e-6 and np.ptp(expected["probability"]) > .02
    for column in ("patient_id", "image_id", "laterality", "view", "rows", "columns", "decoder", "x0", "y0", "x1", "y1",
                   "box_source", "note"):
        assert whole.table[column].astype(str).tolist() == expected[column].astype(str).tolist(), column
    mean = expected.assign(breast=test["patient_id"] + "_" + test["laterality"]).groupby("breast")["probability"].mean()
    assert whole.submission["cancer"].tolist() == [int(mean[b] > THRESHOLD) for b in whole.submission["prediction_id"]
                                                   ] and 0 < whole.submission["cancer"].mean() < 1


def test_the_way_to_run_the_networks_does_not_show(whole, tmp_path):
    models = [create_network("convnext_atto", seed=k) for k in range(2)]
    for k, model in enumerate(models):
        torch.nn.init.normal_(model.get_classifier().weight, std=.2, generator=torch.Generator().manual_seed(k))
        save_weights(model, tmp_path / f"fold_{k}.safetensors", {})
    built = {
        "kind": "timm", "network": "convnext_atto", "global_pool": None, "mirrored": False,
        "weights": ["fold_0.safetensors", "fold_1.safetensors"]
    }
    export_onnx(
        networks(models, **models[0].normalization), tmp_path / "ensemble.onnx", SIZE,
        {"rebuild": built, "threshold": .5, "crops": {"height": SIZE[0], "width": SIZE[1]}, "demonstration": True})
    tables = {}
    for way in ("onnxruntime-fp32", "openvino-fp32", "torch-fp32"):
        submit(whole.competition, tmp_path, tmp_path / way, backend=way, workers=1)
        assert read_json(tmp_path / way / "submit.json")["engine"] == way.replace("-", ", ")
        tables[way] = read(tmp_path / way)["probability"]
    assert np.ptp(tables["torch-fp32"]) > .01 and all(
        np.abs(t - tables["torch-fp32"]).max() < 5e-5 for t in tables.values())
    assert len({(tmp_path / way / "submission.csv").read_bytes() for way in tables}) == 1
    with pytest.raises(EngineError, match="nowhere.engine"):
        submit(whole.competition, tmp_path, tmp_path / "none", backend="nowhere.engine", workers=1)


def test_processes_and_devices_do_not_show(whole, weights, tmp_path, monkeypatch):
    before = sorted(whole.competition.rglob("*"))
    for name, how in {"turn": dict(workers=0), "one": dict(workers=1), "two devices": dict(workers=2)}.items():
        monkeypatch.setattr(module, "devices", lambda: ["cpu", "cpu"] if name == "two devices" else ["cpu"])
        out = tmp_path / name
        submit_items(mammo, whole.competition, weights, files_of(out), **how)
        for file in ("submission.csv", "test_per_image.csv"):
            assert (out / file).read_bytes() == (whole.out / file).read_bytes(), name
        assert sorted(os.listdir(out)) == ["submission.csv", "submit.json", "test_per_image.csv"]
    # the input may be read-only
    assert read_json(out / "submit.json")["networks"] == ["cpu"] * 2 and sorted(whole.competition.rglob("*")) == before


def test_the_mirror_image_counts_half(whole, weights, tmp_path):
    submit(whole.competition, weights, tmp_path / "out", flip=True, workers=1, pngs=tmp_path / "pngs")
    table, engine = read(tmp_path / "out"), load_engine(weights / "ensemble.onnx")
    pictures = np.stack([
        cv2.imread(str(tmp_path / f"pngs/{r.patient_id}@{r.image_id}.png"), cv2.IMREAD_GRAYSCALE)
        for r in table.itertuples()
    ])
    plain, mirrored = engine(pictures).mean(1), engine(np.ascontiguousarray(pictures[:, :, ::-1])).mean(1)
    assert np.abs(table["probability"] - (plain + mirrored) / 2).max() <= 2e-6 and np.abs(plain - mirrored).max() > 1e-3
    assert np.abs(whole.table["probability"] - plain).max() <= 2e-6
    assert (table["network"] == "ensemble with flip TTA").all()


def test_a_variant_is_shown_smaller_pictures(whole, weights, tmp_path, monkeypatch):
    "Two groups of four are begun before the plan says so."
    folder, half = tmp_path / "weights", (64, 32)
    folder.mkdir()
    write_ensemble(folder, variants=[{"name": "small", "folds": 2, "size": list(half)}])
    write_ensemble(folder, "small", half)
    monkeypatch.setattr(Planner, "choose", lambda self, busy, left: self.modes[-1]
                        if left < len(whole.table) else self.modes[0])
    out = files_of(tmp_path)
    submit_items(mammo, whole.competition, folder, out, workers=0)
    table, small = read(tmp_path), load_engine(folder / "small.onnx")
    by = table["network"] == "small"
    assert by.sum() == len(table) - 8 == read_json(out.report)["done_with"]["small"] and (
        table.loc[~by, "probability"] == whole.table.loc[~by, "probability"]).all()
    item = {
        "folder": str(whole.competition), "row": None, "settings": {"height": half[0], "width": half[1]},
        "detector": "", "size": half, "pngs": ""
    }
    expected = [
        float(small(see_item({**item, "file": f}, SimpleNamespace(size=half))[1][None]).mean())
        for f in table.loc[by, "file"]
    ]
    assert np.abs(table.loc[by, "probability"] - expected).max() <= 1e-6


# ---- what is wrong with a test set
def test_bad_files_and_bad_tables_cost_their_own_breast(whole, scans, weights, tmp_path):
    test = pd.read_csv(scans / "test.csv", dtype=str)
    broken, gone = (scans / f"test_images/{test.patient_id[k]}/{test.image_id[k]}.dcm" for k in (0, 5))
    broken.write_bytes(broken.read_bytes()[:3000])
    gone.unlink()
    stranger = test.iloc[[1]].assign(patient_id="stranger", prediction_id="stranger_L")
    pd.concat([test, test.iloc[[2]], stranger]).sample(frac=1, random_state=1).to_csv(scans / "test.csv", index=False)
    sample = pd.read_csv(scans / "sample_submission.csv")
    sample = pd.concat(
        [sample.sample(frac=1, random_state=2),
         pd.DataFrame({"prediction_id": ["nobody_R"], "cancer": [.02]})])
    sample.to_csv(scans / "sample_submission.csv", index=False)
    submission = submit(scans, weights, tmp_path / "out", workers=1)
    table, report = read(tmp_path / "out").set_index("image_id"), read_json(tmp_path / "out/submit.json")
    failed = table[table["error"] != ""]
    assert sorted(failed.index) == sorted(
        [broken.stem, gone.stem]) and (failed["patient_id"] != "").all() and failed["probability"].isna().all()
    good = table.drop(failed.index)
    assert good["probability"].tolist() == whole.table.set_index("image_id").loc[good.index, "probability"].tolist()
    assert pd.read_csv(tmp_path / "out/submission.csv").equals(
        submission) and submission["prediction_id"].tolist() == sample["prediction_id"].tolist()
    mean = good.groupby("prediction_id")["probability"].mean()
    assert submission["cancer"].tolist() == [int(mean.get(b, 0) > THRESHOLD) for b in submission["prediction_id"]]
    assert (report["items"], report["failed"], report["not_reached"]) == (len(test), 2, 0)
    assert report["differences"] == {
        "not in sample_submission.csv, left out": ["stranger_L"], "without an image in test.csv": ["nobody_R"],
        "duplicate rows of test.csv": 1
    }
    assert report["groups_without_prediction"] == sorted({"nobody_R"} | (
        set(failed["prediction_id"]) - set(good["prediction_id"])))


@pytest.mark.parametrize("spoil, told", [
    (lambda c: (c / "sample_submission.csv").unlink(), "no sample_submission.csv. Name the folder"),
    (lambda c: (c / "test.csv").unlink(), "no test.csv. Name the folder"),
    (lambda c: (c / "test.csv").write_text("patient_id,image_id\n1,2\n"), "no column laterality"),
    (lambda c: (c / "sample_submission.csv").write_text("prediction_id,cancer\n7_L,0\n7_L,0\n"), "'7_L' twice"),
    (lambda c: (c / "sample_submission.csv").write_text("prediction_id,cancer\n7_L,0\n"), "different sets")])
def test_a_competition_that_is_none_is_told(scans, weights, tmp_path, spoil, told):
    spoil(scans)
    with pytest.raises((SubmissionError, DatasetError), match=told):
        submit(scans, weights, tmp_path / "out", workers=1)
    if (scans / "sample_submission.csv").exists():
        assert (tmp_path / "out/submission.csv").read_bytes() == (scans / "sample_submission.csv").read_bytes()


def test_without_images_or_weights_there_is_a_file(scans, weights, tmp_path):
    with pytest.raises(EngineError, match="differs from the checksum"):
        shutil.copytree(weights, tmp_path / "bad")
        (tmp_path / "bad/ensemble.onnx").write_bytes(b"nothing")
        submit(scans, tmp_path / "bad", tmp_path / "a", workers=1)
    assert (tmp_path / "a/submission.csv").read_bytes() == (scans / "sample_submission.csv").read_bytes()
    with pytest.raises(BudgetError, match="8h30m"):
        submit(scans, weights, tmp_path / "b", budget="soon", workers=1)
    assert (tmp_path / "b/submission.csv").read_bytes() == (scans / "sample_submission.csv").read_bytes()
    pd.read_csv(scans / "test.csv", dtype=str).head(0).to_csv(scans / "test.csv", index=False)
    submission, sample = submit(scans, weights, tmp_path / "c", budget="9h", flip=True, workers=1), pd.read_csv(
        scans / "sample_submission.csv")
    assert submission["prediction_id"].tolist() == sample["prediction_id"].tolist() and (submission["cancer"]
                                                                                         == 0).all() and len(
                                                                                             read(tmp_path / "c")) == 0


def test_a_prediction_that_is_no_number_is_an_error_of_its_image(scans, weights, tmp_path):
    class Engine:
        metadata, name, precision, refused = {"batches": [1, 2, 8]}, "broken", "fp32", ()
        def __call__(self, images):
            return np.where(np.arange(len(images))[:, None] == 1, np.nan, .7)
    module.submit(replace(mammo, open_engine=lambda *_: Engine()), scans, weights, tmp_path / "out", workers=1)
    table, report = read(tmp_path / "out"), read_json(tmp_path / "out/submit.json")
    assert report["batch"] == 2 and (table["probability"].dropna() == .7).all()
    assert table["error"].str.startswith("NotFinite").sum() == len(table) // 2 == report["failed"]


# ---- what ends a run early
SCRIPT = '''
    import os, sys
    from dataclasses import replace
    from pathlib import Path
    from mammo_nb.core.submit import submit
    from mammo_nb.mammo.submit import submission
    competition, weights, out, how = sys.argv[1:]
    calls = []
    class Counting:
        def __init__(self, *where):
            self.engine = engine = submission.open_engine(*where)
            self.name, self.metadata = engine.name, engine.metadata
            self.precision, self.refused = engine.precision, engine.refused
        def __call__(self, images):
            calls.append(len(images))
            if len(calls) == 3:
                os.kill(os.getpid(), int(how))
            return self.engine(images)
    submit(replace(submission, open_engine=Counting), Path(competition), Path(weights), Path(out), workers=0)
'''


def in_turn(whole, weights, out):
    return submit(whole.competition, weights, out, workers=0)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "error"])
def test_a_run_that_is_ended_leaves_a_valid_file_and_goes_on(whole, weights, tmp_path, how, monkeypatch):
    "After two batches of four."
    calls = []
    def counting(network, mode, pictures):
        calls.append(len(pictures))
        if how == "error" and len(calls) == 3:
            raise MemoryError("the GPU is full")
        return answer(network, mode, pictures)
    answer = module.Network.__call__
    monkeypatch.setattr(module.Network, "__call__", counting)
    if how == "error":
        with pytest.raises(MemoryError):
            in_turn(whole, weights, tmp_path)
        calls.clear()
    else:
        (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
        done = subprocess.run([
            sys.executable, tmp_path / "script.py", whole.competition, weights, tmp_path,
            str(int(getattr(signal, how)))
        ], capture_output=True, text=True, timeout=300)
        assert done.returncode == {"SIGTERM": 143, "SIGKILL": -9}[how], done.stderr
    left = pd.read_csv(tmp_path / "submission.csv")
    rows = [json.loads(line)["row"] for line in (tmp_path / "test_per_image.csv.journal").read_text().splitlines()[1:]
            if '"item"' in line]
    assert left["prediction_id"].tolist() == whole.submission["prediction_id"].tolist() and len(rows) == 8
    known = pd.DataFrame(rows).assign(
        breast=lambda t: t["patient_id"] + "_" + t["laterality"]).groupby("breast")["probability"].mean()
    if how != "SIGKILL":
        assert left["cancer"].tolist() == [int(known.get(b, 0) > THRESHOLD) for b in left["prediction_id"]]
    in_turn(whole, weights, tmp_path)
    assert sum(calls) == len(whole.table) - 8
    for file in ("submission.csv", "test_per_image.csv"):
        assert (tmp_path / file).read_bytes() == (whole.out / file).read_bytes()


# ---- the end in time
class Clock:
    "Time that passes when it is told to."
    def __init__(self):
        self.now = 0.0
    def __call__(self):
        return self.now


VARIANTS = [{"name": "ensemble_2", "folds": 2, "size": [2048, 1024]},
            {"name": "ensemble_2_small", "folds": 2, "size": [1024, 512]}]


def nine_hours(folder: Path, decode, network, budget="9h", images=1600, variants=VARIANTS):
    """A night on a machine that takes `decode(size)` seconds a file and `network(name)` seconds a picture: its report,
    its table, and when it ended."""
    patients = np.arange(images // 4).repeat(4)
    test = pd.DataFrame({
        "patient_id": patients, "image_id": np.arange(images), "laterality": ["L", "L", "R", "R"] * (images // 4),
        "view": ["CC", "MLO"] * (images // 2)
    })
    folder.mkdir(exist_ok=True)
    test.assign(prediction_id=test["patient_id"].astype(str) + "_" + test["laterality"]).to_csv(
        folder / "test.csv", index=False)
    pd.DataFrame({"prediction_id": [f"{p}_{s}" for p in range(images // 4) for s in "LR"], "cancer": .02}).to_csv(
        folder / "sample_submission.csv", index=False)
    clock = Clock()
    def prepare(item, mode):
        clock.now += decode(mode.size)
        return {}, np.zeros((2, 2), np.uint8)
    class Engine:
        metadata, name, precision, refused = {"batches": [1, 8, 8]}, "simulated", "fp32", ()
        def __init__(self, weights, name, device, backend):
            clock.now += 30
            self.seconds = network(name)
        def __call__(self, pictures):
            clock.now += self.seconds * len(pictures)
            return np.full((len(pictures), 4), .9)
    metadata = {"threshold": .5, "demonstration": False, "folds": 4, "size": [2048, 1024], "variants": variants}
    (folder / "ensemble.onnx").touch()
    write_json(folder / "ensemble.json", metadata)
    system = replace(mammo, prepare=prepare, open_engine=Engine, entries=lambda weights, metadata: {})
    shutil.copy(folder / "sample_submission.csv", folder / "sample.csv")
    submit_items(system, folder, folder, files_of(folder), budget=budget, flip=True, workers=0, clock=clock)
    submission = pd.read_csv(folder / "submission.csv")
    assert submission["prediction_id"].tolist() == pd.read_csv(folder / "sample.csv")["prediction_id"].tolist()
    return read_json(folder / "submit.json"), read(folder), submission, clock.now


def full_of(name):
    return {"ensemble": 1, "ensemble_2": .5, "ensemble_2_small": .125}[name]


def test_with_time_enough_nothing_is_dropped(tmp_path):
    # 15 s an image, 19.6 s there are
    report, table, submission, end = nine_hours(tmp_path, lambda size: 5, lambda name: 5 * full_of(name))
    assert report["dropped"] == [] == report["plan"] and (table["network"] == "ensemble with flip TTA").all() and (
        submission["cancer"] == 1).all() and end == 30 + 1600 * 15
    assert report["rates"] == {"decoding": {"2048x1024": .2}, "network, one pass": {"ensemble": .2}}


@pytest.mark.parametrize("decode, network, worst", [
    (5, 9, "ensemble"),              # 23 s with the mirror image, 14 s without
    (5, 18, "ensemble_2"),           # 23 s without, 14 s with two folds
    (5, 36, "ensemble_2_small")])    # 23 s with two folds, and 9.5 s in half the size
def test_what_is_dropped_comes_in_order_and_no_more_than_it_must(tmp_path, decode, network, worst):
    report, table, submission, end = nine_hours(tmp_path, lambda size: decode, lambda name: network * full_of(name))
    order = ["ensemble with flip TTA", "ensemble", "ensemble_2", "ensemble_2_small"]
    assert end < 9 * 3600 and report["not_reached"] == 0 and (table["error"] == "").all() and (submission["cancer"]
                                                                                               == 1).all()
    assert end > .8 * 9 * 3600   # what is left over goes into doing better
    counts = table["network"].value_counts()
    assert set(counts.index) <= set(order[:order.index(worst) + 1]) and counts[worst] > 100
    assert report["dropped"] == [
        f"{n} images with {mode} instead of {order[0]}" for mode, n in counts.items() if mode != order[0]
    ]
    first = report["plan"][0]
    assert first["mode"] == worst and "items with ensemble with flip TTA would take" in first["why"] and first[
        "after_seconds"] < 3600


def test_a_decoder_that_slows_down_on_the_way(tmp_path):
    done = []
    def slower(size):
        done.append(size)
        return (4 if len(done) < 600 else 40) * (size[0] / 2048)
    report, table, submission, end = nine_hours(tmp_path, slower, lambda name: 4 * full_of(name))
    assert end < 9 * 3600 and report["not_reached"] == 0
    # nothing before it had to be
    assert (table["network"] == "ensemble with flip TTA").sum() >= 550 and (table["network"]
                                                                               == "ensemble_2_small").sum() > 500


def test_what_cannot_be_done_is_left_and_said(tmp_path):
    report, table, submission, end = nine_hours(tmp_path, lambda size: 120 * (size[0] / 2048),
                                                lambda name: 20 * full_of(name))
    left = table["error"].str.startswith("NotReached")
    assert .93 * 9 * 3600 < end < 9 * 3600 and report["not_reached"] == left.sum() > 600 and report["failed"] == 0
    assert "will not be reached" in report["plan"][-1]["why"] or any("will not be reached" in p["why"]
                                                                     for p in report["plan"])
    reached = set(table.loc[~left, "prediction_id"])
    assert len(reached) == min(800, (~left).sum())   # one image of each breast comes first
    assert submission.set_index("prediction_id")["cancer"].to_dict() == {
        b: int(b in reached) for b in submission["prediction_id"]
    }
    assert report["groups_without_prediction"] == sorted(set(submission["prediction_id"]) - reached)
    assert (tmp_path / "test_per_image.csv.journal").exists()   # with more time, the same call does the others


def test_without_variants_only_the_mirror_image_can_go(tmp_path):
    report, table, _, end = nine_hours(tmp_path, lambda size: 5, lambda name: 18, variants=[])
    assert end < 9 * 3600 and set(table.loc[table["error"] == "", "network"]) == {
        "ensemble with flip TTA", "ensemble"
    } and report["not_reached"] > 0


@pytest.mark.parametrize("seconds", [1, 60, 600])
def test_a_few_seconds_are_kept_to(tmp_path, seconds):
    "One batch may be under way when the time is up; in turn, here, nothing can cut it short."
    _, table, submission, end = nine_hours(tmp_path, lambda size: .5, lambda name: .2 * full_of(name),
                                           budget=str(seconds))
    assert end <= max(30 + 24 * .5, seconds) + 16 * .2


def test_a_planner_measures_what_was_there():
    clock, said = Clock(), []
    modes = read_modes({"folds": 4, "size": [2048, 1024], "variants": VARIANTS}, flip=True)
    planner = Planner(modes, group=2, seconds=1000, workers=4, networks=2, clock=clock, show=said.append)
    for k in range(4):
        for _ in range(2):
            planner.decoded(modes[0], 0, 8.0)
        # the first batch of each network has waited for its engine
        planner.answered(modes[0], k % 2, 2, k, k + (100 if k < 2 else 12))
    assert planner.rates() == {"decoding": {"2048x1024": .5}, "network, one pass": {"ensemble": round(2 / 3, 3)}}
    # two networks at 6 s, or four processes at 8 s: the slower of the two; a variant is taken to decode as slowly
    assert [planner._expected(m) for m in modes] == [3, 2, 2, 2]
    assert planner.aim == 970 and planner.until == 990 and planner.choose(0, 10) == modes[0] and not said


@pytest.mark.parametrize("text, seconds", [
    ("8h30m", 30600),
    ("45m", 2700),
    ("90s", 90),
    ("120", 120),
    ("1h1m1s", 3661),
    ("", None)])
def test_a_budget_is_read_as_it_is_written(text, seconds):
    assert read_budget(text) == seconds


@pytest.mark.parametrize("text", ["8.5h", "h", "0m", "30m8h", "-5", "1 h"])
def test_a_budget_that_is_none_is_told(text):
    with pytest.raises(BudgetError, match="8h30m, 45m, 90s"):
        read_budget(text)


# ---- the command
def test_the_command_says_how_it_went_and_its_exit_code_too(whole, scans, weights, tmp_path):
    call = lambda *more: CliRunner().invoke(app, [
        "submit", str(scans), "-o",
        str(tmp_path / "out"), "--weights",
        str(weights), "--workers", "1", *more
    ])
    done = call("--budget", "9h")
    assert done.exit_code == 0 and f"{len(whole.table)} of {len(whole.table)} images predicted" in done.output and (
        tmp_path / "out/submission.csv").read_bytes() == (whole.out / "submission.csv").read_bytes()
    next((scans / "test_images").rglob("*.dcm")).write_bytes(b"")
    done = call()
    assert done.exit_code == 1 and "1 failed" in done.output and call("--allow-errors").exit_code == 0

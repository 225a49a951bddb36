"`make reproduce` as a user runs it, with the smallest recipe, in a copy of the checkout."
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, copy_checkout, make

from mammo_nb.core.systems import find_system, system_names

STAGES = [
    "01_phantom", "02_datasets", "03_detector", "04_crops", "05_folds", "06_train", "07_select", "08_engines",
    "09_submit", "10_report"
]


def ran(output: str) -> list[str]:
    "Stages that make executed, in order."
    return re.findall(r"^\[\d+/\d+\] nbs/\S+/(\w+)\.py", output, flags=re.MULTILINE)


def reproduce(checkout: Path, *more: str) -> str:
    done = make(checkout, "reproduce", "RECIPE=tiny", *more)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def results(run: Path) -> dict:
    "Digests of everything that must not depend on the day: crops, folds, weights, engine, submission."
    manifest = json.loads((run / "manifest.json").read_text())
    written = {w: digest for entry in manifest["stages"].values() for w, digest in entry["writes"].items()}
    logs = "checkpoints/"   # of trainings, with dates
    return {w: digest for w, digest in written.items() if w != "submit.json" and "seconds" not in w and
            not (w.startswith(logs) and " files, " in digest)}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def first(checkout):
    "The first run of a fresh copy."
    output = reproduce(checkout)
    assert ran(output) == STAGES
    return checkout / "runs" / "tiny"


def test_run_leaves_what_the_readme_promises(first):
    for f in ["submission.csv", "oof.csv", "report.html", "manifest.json", *(f"{s}.ipynb" for s in STAGES)]:
        assert (first / f).is_file(), f
    sample, ours = (pd.read_csv(first / f, dtype={"prediction_id": str})
                    for f in ("competition/sample_submission.csv", "submission.csv"))
    assert list(ours.columns) == list(sample.columns) and ours["cancer"].isin([0, 1]).all()
    assert (ours["prediction_id"] == sample["prediction_id"]).all()
    assert "image/png" in (first / "06_train.ipynb").read_text()
    oof = pd.read_csv(first / "oof.csv")
    assert {"patient_id", "image_id", "laterality", "cancer", "fold", "epoch", "probability"} <= set(oof.columns)
    crops = pd.read_csv(first / "processed/crops.csv")
    assert len(oof) == len(crops) == len(list((first / "processed/cleaned_images").glob("*.png")))
    assert not list(first.rglob("*.failed.ipynb"))


def test_second_run_finds_nothing_to_do(checkout, first):
    assert ran(reproduce(checkout)) == []


def test_trained_weights_predict_without_training(checkout, first):
    output = reproduce(checkout, "MODE=trained", f"WEIGHTS={first / 'weights'}")
    assert ran(output) == ["01_phantom", "09_submit", "10_report"]
    assert (checkout / "runs/tiny-trained/submission.csv").read_bytes() == (first / "submission.csv").read_bytes()


def test_killed_in_training_it_resumes_to_the_same_weights(checkout, first):
    venv = Path(sys.prefix)
    with open(checkout / "killed.log", "w") as log:
        process = subprocess.Popen(
            ["make", "reproduce", "RECIPE=tiny", "RUN=killed", f"VENV={venv}", "-o", f"{venv}/.installed"],
            cwd=checkout, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH":
                str(checkout)}, start_new_session=True)
        state = checkout / "runs/killed/checkpoints/fold_1/last.pt"   # the second fold has begun
        while not state.exists() and process.poll() is None:
            time.sleep(.02)
        kernels = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True).stdout.split()
        for pid in [*kernels, *_descendants(process.pid)]:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
    assert state.exists() and not (checkout / "runs/killed/06_train.ipynb").exists(), (
        checkout / "killed.log").read_text()[-2000:]
    output = reproduce(checkout, "RUN=killed")
    assert ran(output)[0] == "06_train"
    assert results(checkout / "runs/killed") == results(first)   # and with it: two full runs, the same digests


def _descendants(pid: int) -> list[int]:
    children = [
        int(c) for c in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    ]
    return [d for c in children for d in _descendants(c)] + children


@pytest.mark.parametrize("arguments, message", [
    (["RECIPE=tinny"], "There are cbis, cbis_long, demo"),
    (["SET=folds.folds=3"], "folds has no folds"),
    (["SET=folds.n_folds=1"], "must be at least 2"),
    (["SYSTEM=nothing"], "There are baseline, ich, mammo"),
    (["MODE=half"], "There are full, partial"),
    (["MODE=trained", "WEIGHTS=nbs"], "Mode trained needs ensemble.onnx"),
    (["RUN=two words"], "must be the name of one folder"),
    (["recipe=tiny"], "no variable recipe. Did you mean RECIPE?"),
    (["test-foo"], "There is no target test-foo."),
    (["WEIGHT=nbs"], "Did you mean WEIGHTS?"),
    (["tests"], "no target tests. Did you mean test?"),
])
def test_slips_are_errors_before_anything_runs(checkout, arguments, message):
    done = make(checkout, "reproduce", "RUN=slip", *arguments)
    assert done.returncode != 0 and message in done.stdout and ran(done.stdout) == []


def test_help_begins_with_reproduce_and_test_and_lists_every_recipe():
    said = make(ROOT, "help").stdout
    assert [line.split()[1] for line in said.splitlines() if line.startswith("  make ")][:2] == ["reproduce", "test"]
    for name in system_names():
        assert all(f"RECIPE={recipe} " in said for recipe in find_system(name).recipes)

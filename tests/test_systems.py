"""A system is one folder: a toy system runs, resumes and reports without any other system, and no other file of the
checkout changes."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, copy_checkout, make
from test_reproduce import ran

from mammo_nb.core.systems import system_names

TOY = Path(__file__).parent / "toy"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    root = copy_checkout(tmp_path_factory.mktemp("checkout"), without=system_names())
    (root / "nbs/toy").mkdir()
    for source in TOY.glob("*.py"):
        (root / "nbs/toy" / source.name).write_bytes(source.read_bytes())
    return root


def reproduce(checkout, *more):
    done = make(checkout, "reproduce", "SYSTEM=toy", *more)
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def first(checkout):
    code, output = reproduce(checkout)
    assert code == 0 and ran(output) == ["01_draw", "02_count"], output[-3000:]
    return checkout / "runs/toy-demo"


def test_a_system_of_one_folder_runs_and_reports(first):
    counts, labels = (pd.read_csv(first / f"{name}.csv") for name in ("counts", "labels"))
    assert (counts.merge(labels, on="file").eval("dots == label")).all() and len(counts) == 32
    assert "100% of 32 pictures counted right" in (first / "report.html").read_text()
    assert list(json.loads((first / "manifest.json").read_text())["stages"]) == ["draw", "count"]


def test_code_reruns_its_stage_and_a_sentence_costs_nothing(checkout, first):
    source = checkout / "nbs/toy/02_count.py"
    text = source.read_text()
    code, title = "    with run.stage", "## What came out"
    assert code in text and title in text
    source.write_text(text.replace(title, "## What is counted"))
    assert ran(reproduce(checkout)[1]) == []
    source.write_text(text.replace(code, f"    assert folder.is_dir()\n{code}"))
    assert ran(reproduce(checkout)[1]) == ["02_count"]
    source.write_text(text)
    assert ran(reproduce(checkout)[1]) == ["02_count"]


def test_it_resumes_where_something_changed(checkout, first):
    assert ran(reproduce(checkout)[1]) == []
    (first / "counts.csv").unlink()
    assert ran(reproduce(checkout)[1]) == ["02_count"]
    assert ran(reproduce(checkout, "SET=count.threshold=0.25")[1]) == ["02_count"]
    assert ran(reproduce(checkout, "SET=draw.pictures=3")[1]) == ["01_draw", "02_count"]


def test_a_failing_stage_names_notebook_cell_and_error(checkout, first):
    source = checkout / "nbs/toy/02_count.py"
    text = source.read_text()
    source.write_text(text.replace("= run_stage(run)", "= run_stage(1 / 0)"))
    code, output = reproduce(checkout, "RUN=failing")
    debugged = reproduce(checkout, "RUN=failing", "DEBUG=1")[1]
    source.write_text(text)
    assert "Traceback" in debugged and "run_stage(1 / 0)" in debugged
    assert code != 0 and ran(output) == ["01_draw", "02_count"]
    own = [line for line in output.splitlines() if not line.startswith("make")]
    assert "Traceback" not in output and own[-1].startswith("02_count.py, cell")
    assert "ZeroDivisionError: division by zero. Mend" in output and "runs/failing/02_count.failed.ipynb" in output
    assert (checkout / "runs/failing/02_count.failed.ipynb").exists()
    assert ran(reproduce(checkout, "RUN=failing")[1]) == ["02_count"]
    assert not (checkout / "runs/failing/02_count.failed.ipynb").exists()


def test_a_built_notebook_that_is_gone_is_built_again(checkout, first):
    reproduce(checkout)
    (checkout / "nbs/toy/02_count.ipynb").unlink()
    (first / "counts.csv").unlink()
    command = [sys.executable, "-c", "from mammo_nb.cli import main; main()", "reproduce", "--system", "toy"]
    done = subprocess.run(command, cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, text=True,
                          capture_output=True)
    assert done.returncode == 0 and ran(done.stdout) == ["02_count"], done.stderr


def test_failed_files_are_counted_at_the_end(checkout, first):
    source = checkout / "nbs/toy/01_draw.py"
    text = source.read_text()
    spoil = '        (run.path("pictures/") / "00001.png").write_bytes(b"no picture")\n        write_csv('
    source.write_text(text.replace("        write_csv(", spoil))
    code, output = reproduce(checkout, "RUN=broken")
    source.write_text(text)
    assert code != 0 and "1 pictures could not be used" in output



def test_its_errors_name_what_there_is(checkout):
    for slip, message in (("SET=draw.pictures=1", "draw.pictures must be at least 2, got 1"),
                          ("SET=drow.pictures=8", "There are draw, count"), ("RECIPE=dmo", "There are demo, tiny")):
        code, output = reproduce(checkout, "RUN=slip", slip)
        assert code != 0 and message in output and ran(output) == []


def test_nothing_outside_its_folder_has_to_know_it(checkout, first):
    made = {p.relative_to(checkout).as_posix() for p in checkout.rglob("*.py")}
    known = {p.relative_to(ROOT).as_posix() for folder in ("nbs", "mammo_nb") for p in (ROOT / folder).rglob("*.py")}
    new = {p for p in made - known if not p.startswith("runs/")}
    assert new == {f"nbs/toy/{p.name}" for p in TOY.glob("*.py")} | {
        f"mammo_nb/toy/{name}.py" for name in ("__init__", "system", "draw", "count")}
    changed = [p for p in made & known if (checkout / p).read_bytes() != (ROOT / p).read_bytes()]
    assert changed == ["mammo_nb/_modidx.py"]


def test_no_file_outside_a_systems_folder_names_it():
    names = "|".join(p.parent.name for p in (ROOT / "nbs").glob("*/00_system.py"))
    found = subprocess.run(["grep", "-rnE", f"mammo_nb\\.({names})\\b|\"({names})\"|'({names})'|nbs/({names})/",
                            "--include=*.py", "Makefile", "nbs/core", *map(str, (ROOT / "nbs").glob("*.py")), "kaggle"],
                           cwd=ROOT, text=True, capture_output=True).stdout
    assert found == ""

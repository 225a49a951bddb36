"The contract of a stage, and when it has to run again."
import json

import pytest
from conftest import ROOT

from mammo_nb.core.files import sha256, write_text
from mammo_nb.core.notebooks import build
from mammo_nb.core.stages import (StageError, changed_files, code_digest, execute, locate, modules_of, read_manifest,
                                  refresh_inputs, stage, stage_inputs)


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_missing_input_stops_before_anything_runs(tmp_path):
    with pytest.raises(StageError, match="crops.csv"):
        with stage(tmp_path, "folds", reads=["processed/crops.csv"]):
            pytest.fail("ran")


def test_broken_promise_is_an_error_and_leaves_no_record(tmp_path):
    with pytest.raises(StageError, match="oof.csv"):
        with stage(tmp_path, "select", writes=["oof.csv"]):
            pass
    assert read_manifest(tmp_path) == {}


def test_a_stage_that_fails_leaves_no_record_and_no_lock(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with stage(tmp_path, "select"):
            1 / 0
    with stage(tmp_path, "select"):
        pass  # would wait for ever behind a lock that was kept
    assert list(read_manifest(tmp_path)["stages"]) == ["select"]


def test_manifest_holds_digests_of_what_was_read_and_written(tmp_path):
    (tmp_path / "a.csv").write_text("1")
    with stage(tmp_path, "x", reads=["a.csv"], writes=["b.csv"], parameters={"seed": 1}):
        (tmp_path / "b.csv").write_text("2")
    entry = read_manifest(tmp_path)["stages"]["x"]
    # sha256 of "1"
    assert entry["reads"] == {"a.csv": "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"}
    assert entry["writes"] == {"b.csv": sha256(tmp_path / "b.csv")} and entry["parameters"] == {"seed": 1}
    assert read_manifest(tmp_path)["environment"]["packages"]["torch"]


def test_named_folders_come_from_the_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMMO_NB_PROCESSED", str(tmp_path / "elsewhere"))
    assert locate(tmp_path / "r", "processed/crops.csv") == tmp_path / "elsewhere/crops.csv"
    assert locate(tmp_path / "r", "oof.csv") == tmp_path / "r/oof.csv"


def test_changed_and_lost_files_are_named(tmp_path):
    for f in "ab":
        (tmp_path / f).write_text(f)
    with stage(tmp_path, "x", reads=["a"], writes=["b"]):
        pass
    assert changed_files(tmp_path, "x") == []
    (tmp_path / "a").write_text("other")
    (tmp_path / "b").unlink()
    assert changed_files(tmp_path, "x") == ["b is gone", "a changed"]


def test_text_and_comments_are_no_code(tmp_path):
    p = tmp_path / "n.py"
    p.write_text("# %% [markdown]\n# Words.\n\n# %%\nx = 1  # one\n")
    before = code_digest(p)
    p.write_text("# %% [markdown]\n# Other words.\n\n# %%\nx = 1  # uno\n")
    assert code_digest(p) == before
    p.write_text("# %%\nx = 2\n")
    assert code_digest(p) != before


def test_a_stage_depends_on_modules_it_reaches_only_through_others():
    names = {str(m.relative_to(ROOT / "mammo_nb")) for m in modules_of(ROOT / "nbs/mammo/05_folds.py", ROOT)}
    assert {"core/folds.py", "mammo/datasets.py", "core/settings.py"} <= names   # settings only through stages
    assert "mammo/report.py" not in names and "mammo/submit.py" not in names


def test_inputs_file_keeps_its_date_until_something_changes(tmp_path):
    source, target = ROOT / "nbs/mammo/05_folds.py", tmp_path / "inputs/05_folds.json"
    inputs = lambda n: json.loads(
        json.dumps(stage_inputs(ROOT, source, tmp_path, {"recipe": "tiny"}, {"n_folds": n}, None)))
    assert refresh_inputs(target, inputs(4)) == ["first run"]
    stamp = target.stat().st_mtime_ns
    assert refresh_inputs(target, inputs(4)) == [] and target.stat().st_mtime_ns == stamp
    assert refresh_inputs(target, inputs(5)) == ["recipe"] and target.stat().st_mtime_ns > stamp
    assert refresh_inputs(target, inputs(5), ["oof.csv is gone"]) == ["oof.csv is gone"]


@pytest.fixture
def notebook(tmp_path):
    source = tmp_path / "nbs/x/01_divide.py"
    write_text(source, '# %% tags=["parameters"]\ndivisor = 2\n\n# %%\nprint("quotient", 10 / divisor)\n')
    build(tmp_path)
    return source


def test_execute_passes_parameters_and_shows_output(notebook, tmp_path, capsys):
    execute(notebook, tmp_path / "r/01_divide.ipynb", {"divisor": 5, "not_a_parameter": 1})
    assert "quotient 2.0" in capsys.readouterr().out and "quotient 2.0" in (tmp_path / "r/01_divide.ipynb").read_text()


def test_a_failed_notebook_is_kept_beside_and_named(notebook, tmp_path):
    output = tmp_path / "r/01_divide.ipynb"
    with pytest.raises(StageError, match=r"01_divide.py, cell \d+: ZeroDivisionError: division by zero"):
        execute(notebook, output, {"divisor": 0})
    assert not output.exists() and output.with_suffix(".failed.ipynb").exists()
    execute(notebook, output, {"divisor": 1})
    assert output.exists() and not output.with_suffix(".failed.ipynb").exists()


def test_a_killed_kernel_is_told_in_words(tmp_path):
    source = tmp_path / "nbs/x/01_die.py"
    write_text(source, "# %%\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    build(tmp_path)
    with pytest.raises(StageError, match="01_die.py: its process was ended from outside"):
        execute(source, tmp_path / "r/01_die.ipynb", {})
    assert not (tmp_path / "r/01_die.ipynb").exists()

"When a stage has to run again, and how one runs."
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from conftest import ROOT

from mammo_nb.core import files
from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import sha256, write_text
from mammo_nb.core.notebooks import build
from mammo_nb.core.recipes import Recipe, bounded
from mammo_nb.core.runs import Run, StageError
from mammo_nb.core.stages import (changed_files, check_run, code_digest, execute, modules_of, refresh_inputs,
                                   stage_inputs)
from mammo_nb.core.systems import Mode, Stage, System, find_system, system_names


@dataclass(frozen=True)
class Double:
    "A factor."
    factor: int = bounded(2, low=1)


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def run(tmp_path):
    system = System("toy", "Toy", (Stage("read", writes=("a.csv",)),
                                   Stage("double", Double, reads=("a.csv",), writes=("b.csv",))),
                    {"full": Mode("all", ("read", "double"))}, {"demo": Recipe("two stages")}, {})
    run = Run.create(tmp_path / "r", system)
    with run.stage("read"):
        run.path("a.csv").write_text("1")
    with run.stage("double"):
        run.path("b.csv").write_text("2")
    return run


def test_changed_and_lost_files_are_named(run):
    assert changed_files(run, "double") == []
    run.path("a.csv").write_text("other")
    run.path("b.csv").unlink()
    assert changed_files(run, "double") == ["b.csv is gone", "a.csv changed"]
    run.path("b.csv").write_text("edited")  # a result that somebody has changed is made again
    assert changed_files(run, "double") == ["a.csv changed", "b.csv changed"]


def test_damage_in_a_folder_of_results_is_seen_without_reading_what_is_unchanged(tmp_path, monkeypatch):
    system = System("toy", "Toy", (Stage("draw", writes=("processed/pictures/", "ensemble.json")),),
                    {"full": Mode("all", ("draw",))}, {"demo": Recipe("one stage")}, {})
    run = Run.create(tmp_path / "r", system)
    pictures = run.path("processed/pictures/")
    with run.stage("draw"):
        pictures.mkdir(parents=True)
        for k in range(9):
            (pictures / f"{k}.png").write_text(f"picture {k}")
        run.path("ensemble.json").write_text("{}")
    read = []
    monkeypatch.setattr(files, "sha256", lambda path: read.append(path.name) or sha256(path))
    assert changed_files(run, "draw") == [] and read == []
    (pictures / ".12.8.png").write_text("left by a process that was killed")
    assert changed_files(run, "draw") == []
    state = (pictures / "5.png").stat()
    (pictures / "5.png").write_bytes(bytes(state.st_size))
    os.utime(pictures / "5.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert changed_files(run, "draw") == ["processed/pictures/ changed"] and read == ["5.png"]
    (pictures / "5.png").write_text("picture 5")
    assert changed_files(run, "draw") == []   # the content counts, not the time
    run.path("ensemble.json").write_text("")
    assert changed_files(run, "draw") == ["ensemble.json changed"]


def test_a_lost_manifest_runs_the_stages_again_and_a_damaged_one_is_told(run):
    manifest = run.folder / "manifest.json"
    whole = json.loads(manifest.read_text())
    for damaged in ("", "[]", '{"stages": []}', '{"stages": {"double": {"reads": {}}}}', '{"stages": {"double": 3}}'):
        manifest.write_text(damaged)
        with pytest.raises(StageError, match="manifest.json is damaged. Delete it, and the stages run again."):
            changed_files(run, "double")
    manifest.unlink()
    assert changed_files(run, "double") == ["manifest.json has no finished run of it"]
    manifest.write_text(json.dumps(whole))
    assert changed_files(run, "double") == []


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
    assert {"core/folds.py", "mammo/datasets.py", "core/settings.py"} <= names  # settings only through runs
    assert "mammo/report.py" not in names and "mammo/submit.py" not in names


def test_an_edit_of_another_recipe_is_no_reason_and_one_of_the_machinery_is(tmp_path):
    system = find_system("mammo")
    inputs = stage_inputs(Run.create(tmp_path, system, "tiny"), system.stage("folds"), ROOT, None)
    assert "mammo_nb/mammo/recipes.py" not in inputs["modules"] and "mammo_nb/core/recipes.py" in inputs["modules"]
    assert "mammo_nb/mammo/system.py" not in inputs["modules"] and inputs["section"]["n_folds"] == 2


def test_inputs_file_keeps_its_date_until_something_changes(tmp_path):
    system, target = find_system("mammo"), tmp_path / "inputs/05_folds.json"
    inputs = lambda n: stage_inputs(Run.create(tmp_path, system, "tiny", overrides={"folds.n_folds": n}),
                                    system.stage("folds"), ROOT, None)
    assert refresh_inputs(target, inputs(4)) == ["first run"]
    stamp = target.stat().st_mtime_ns
    assert refresh_inputs(target, inputs(4)) == [] and target.stat().st_mtime_ns == stamp
    assert refresh_inputs(target, inputs(5)) == ["section"] and target.stat().st_mtime_ns > stamp
    assert refresh_inputs(target, inputs(5), ["oof.csv is gone"]) == ["oof.csv is gone"]
    assert json.loads(target.read_text())["section"]["n_folds"] == 5


@pytest.fixture
def notebook(tmp_path):
    source = tmp_path / "nbs/x/01_divide.py"
    write_text(source, '# %% tags=["parameters"]\ndivisor = 2\n\n# %%\nprint("quotient", 10 / divisor)\n')
    build(tmp_path)
    return source


def test_execute_passes_parameters_and_shows_output(notebook, tmp_path, capsys):
    execute(notebook, tmp_path / "r/01_divide.ipynb", {"divisor": 5, "not_a_parameter": 1})
    assert "quotient 2.0" in capsys.readouterr().out and "quotient 2.0" in (tmp_path / "r/01_divide.ipynb").read_text()


def test_a_run_prints_its_own_sections_and_examples_stay_in_the_notebook(tmp_path, capsys):
    source = tmp_path / "nbs/x/01_work.py"
    write_text(source, "# %% [markdown]\n# # Work\n# > Work.\n\n# %%\nprint('no folder vindr of the moon')\n\n"
               "# %% [markdown]\n# ## Run the stage\n\n# %%\nimport sys\nprint('12 files')\n"
               "for n in range(3):\n    print(f'\\r{n}', end='', file=sys.stderr)\nprint(' done', file=sys.stderr)\n\n"
               "# %% [markdown]\n# ## What came out\n\n# %%\nprint('AUC 0.9')\n\n"
               "# %% [markdown]\n# ## Out of time\n\n# %%\nprint('24 of 24 breasts have no prediction')\n")
    build(tmp_path)
    execute(source, tmp_path / "r/01_work.ipynb", {})
    printed = capsys.readouterr()
    assert printed.out == "12 files\nAUC 0.9\n" and printed.err == "2 done\n"
    text = (tmp_path / "r/01_work.ipynb").read_text()
    assert "of the moon" in text and "24 of 24" in text and "All other cells are examples" in text


def test_a_long_folder_for_temporary_files_is_no_obstacle(notebook, tmp_path, monkeypatch):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    execute(notebook, tmp_path / "r/01_divide.ipynb", {"divisor": 5})
    assert (tmp_path / "r/01_divide.ipynb").exists()


def test_the_log_of_a_kernel_that_ends_is_not_printed(tmp_path, capfd):
    source = tmp_path / "nbs/x/01_work.py"
    write_text(source, "# %%\nget_ipython().kernel.log.error('KeyboardInterrupt caught in kernel.')\nprint('done')\n")
    build(tmp_path)
    execute(source, tmp_path / "r/01_work.ipynb", {})
    printed = capfd.readouterr()
    assert "done" in printed.out and "KeyboardInterrupt" not in printed.out + printed.err


def test_what_the_processes_of_a_stage_print_is_printed_once_and_progress_is_one_line(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST")   # with it ipykernel does not collect what processes print
    source = tmp_path / "nbs/x/01_work.py"
    code = "import sys\nfor n in range(1, 4): print(f'\\rfold 0: {n} of 3', end='', file=sys.stderr, flush=True)\n"
    code += "print(file=sys.stderr)"
    write_text(source, f"# %%\nimport subprocess, sys\ncode = {code!r}\n"
               "assert not subprocess.run([sys.executable, '-c', code]).returncode\nprint('done')\n")
    build(tmp_path)
    execute(source, tmp_path / "r/01_work.ipynb", {})
    printed = capfd.readouterr()
    assert printed.err.split("\n") == ["fold 0: 3 of 3", ""] and printed.out == "done\n"
    assert "fold 0: 3 of 3" in (tmp_path / "r/01_work.ipynb").read_text()


@pytest.mark.parametrize("collected", [True, False])
def test_the_last_words_of_a_process_are_shown_when_its_cell_fails(tmp_path, capfd, monkeypatch, collected):
    if collected:
        monkeypatch.delenv("PYTEST_CURRENT_TEST")   # with it ipykernel does not collect what processes print
    source = tmp_path / "nbs/x/01_work.py"
    code = "import sys; print('one of many', file=sys.stderr); sys.exit('no such package')"
    write_text(source, f"# %%\nimport subprocess, sys\nprint('begun')\n"
               f"subprocess.run([sys.executable, '-c', {code!r}], check=True)\n")
    build(tmp_path)
    with pytest.raises(StageError, match="cell 0, failed: CalledProcessError"):
        execute(source, tmp_path / "r/01_work.ipynb", {})
    printed = capfd.readouterr()
    assert (printed.out + printed.err).count("no such package") == 1 and "one of many" in printed.out + printed.err


def test_a_kernel_that_breaks_down_leaves_its_last_words(tmp_path, capfd):
    source = tmp_path / "nbs/x/01_break.py"
    write_text(source, "# %%\nimport os\nos.write(2, b'double free\\n')\nos.abort()\n")
    build(tmp_path)
    with pytest.raises(StageError, match="01_break.py: its process was ended"):
        execute(source, tmp_path / "r/01_break.ipynb", {})
    assert "double free" in capfd.readouterr().err


def test_a_data_set_that_is_nowhere_is_told_before_the_first_stage(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MAMMO_NB_RAW", str(tmp_path / "raw"))
    monkeypatch.setenv("MAMMO_NB_SAMPLES", str(tmp_path / "samples"))
    for system, recipe, said in (("ich", "phe", "figshare.com/articles/dataset/PHE-SICH-CT-IDS/23957937"),
                                 ("ich", "full", "kaggle.com/competitions/rsna-intracranial-hemorrhage-detection"),
                                 ("trauma", "coatmed384fullseed", "kaggle.com/competitions/rsna-2023-abdominal-trauma"),
                                 ("mammo", "winner", "kaggle.com/competitions/rsna-breast-cancer-detection")):
        run = Run.create(tmp_path / system / recipe, find_system(system), recipe)
        with pytest.raises(ProjectError, match=said):
            check_run(run)
    for system in system_names():   # what a run draws itself is not there before its first stage
        check_run(Run.create(tmp_path / system / "tiny", find_system(system), "tiny"))


def test_a_kernel_of_another_python_is_not_taken(notebook, tmp_path, monkeypatch):
    spec = {"argv": ["/gone/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "Python 3",
            "language": "python"}
    write_text(tmp_path / "jupyter/kernels/python3/kernel.json", json.dumps(spec))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    execute(notebook, tmp_path / "r/01_divide.ipynb", {"divisor": 5})
    assert (tmp_path / "r/01_divide.ipynb").exists()


def test_a_full_disk_is_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3e8))
    with pytest.raises(StageError, match="has 300 MB of free disk, and a run needs at least 1000"):
        check_run(SimpleNamespace(folder=tmp_path, system=None))


def test_a_failed_notebook_is_kept_beside_and_named(notebook, tmp_path):
    output = tmp_path / "r/01_divide.ipynb"
    said = r"01_divide.py, cell \d+, failed: ZeroDivisionError: division by zero. Mend.*failed.ipynb"
    with pytest.raises(StageError, match=said):
        execute(notebook, output, {"divisor": 0})
    assert not output.exists() and output.with_suffix(".failed.ipynb").exists()
    execute(notebook, output, {"divisor": 1})
    assert output.exists() and not output.with_suffix(".failed.ipynb").exists()


def test_a_killed_kernel_is_an_error_in_words(tmp_path):
    source = tmp_path / "nbs/x/01_die.py"
    write_text(source, "# %%\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    build(tmp_path)
    with pytest.raises(StageError, match="01_die.py: its process was ended from outside"):
        execute(source, tmp_path / "r/01_die.ipynb", {})
    assert not (tmp_path / "r/01_die.ipynb").exists()

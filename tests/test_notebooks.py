"core/notebooks: .py notebooks, .ipynb files and the package contain the same."
import json
import re
import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
from conftest import ROOT, copy_checkout, make

from mammo_nb.core.notebooks import NotebookConflict, build, export, from_percent, sync, to_percent
from mammo_nb.core.stages import code_digest

SOURCES = sorted(p.relative_to(ROOT) for p in (ROOT / "nbs").rglob("*.py"))


def modules(root: Path) -> dict:
    return {str(p.relative_to(root)): p.read_text() for p in sorted((root / "mammo_nb").rglob("*.py"))}


@pytest.fixture
def checkout(tmp_path):
    return copy_checkout(tmp_path)


@pytest.fixture(scope="module")
def jupyter():
    "The object with which JupyterLab opens and saves files after `make lab`."
    from jupyter_server.services.contents.largefilemanager import LargeFileManager
    from jupytext.sync_contentsmanager import build_sync_jupytext_contents_manager_class
    return build_sync_jupytext_contents_manager_class(LargeFileManager)(root_dir=str(ROOT / "nbs"))


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_saving_in_jupyter_changes_nothing(source, jupyter, tmp_path):
    text = (ROOT / source).read_text()
    model = jupyter.get(str(source.relative_to("nbs")), type="notebook")
    jupyter.root_dir = str(tmp_path)
    shutil.copy(ROOT / "nbs/jupytext.toml", tmp_path)
    jupyter.save({"type": "notebook", "format": "json", "content": model["content"]}, source.name)
    jupyter.root_dir = str(ROOT / "nbs")
    assert (tmp_path / source.name).read_text() == text == to_percent(from_percent(text), text)


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_notebook_has_title_subtitle_and_module(source):
    nb = jupytext.reads((ROOT / source).read_text(), fmt="py:percent")
    assert nb.cells[0].source.startswith("# ") and "\n> " in nb.cells[0].source
    # the start page, the page of a chapter and the page of the originals export nothing
    page = source.name in ("00_start.py", "70_originals.py") or source.parent.name == "core" and source.name[1] == "0"
    assert any("#| default_exp" in c.source for c in nb.cells) != page


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "A checkout whose package was written anew; a test that edits it puts it right again."
    checkout = copy_checkout(tmp_path_factory.mktemp("exported"))
    for folder in (p for p in (checkout / "mammo_nb").iterdir() if p.is_dir()):
        shutil.rmtree(folder)
    export(checkout)
    return checkout


def test_package_is_a_fresh_export(exported):
    assert modules(exported) == modules(ROOT)


def test_built_notebooks_are_the_same_elsewhere_and_twice(checkout, tmp_path_factory):
    other = copy_checkout(tmp_path_factory.mktemp("other"))
    first, second = build(checkout), build(other)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second] and len(first) == len(SOURCES)
    assert build(checkout) == []


def edit(path: Path, old: str, new: str):
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))


def test_an_exported_cell_changes_its_module_and_a_text_cell_none(exported):
    texts = {name: (exported / name).read_text() for name in ("nbs/mammo/05_folds.py", "nbs/mammo/07_select.py")}
    edit(exported / "nbs/mammo/05_folds.py", "# # Folds", "# # Folds again")
    edit(exported / "nbs/mammo/07_select.py", "share: float = 0.95", "share: float = 0.90")
    export(exported)
    after, before = modules(exported), modules(ROOT)
    assert {p for p in after if after[p] != before[p]} == {"mammo_nb/mammo/select.py"}
    for name, text in texts.items():
        (exported / name).write_text(text)


def test_the_module_of_a_removed_notebook_is_removed(exported):
    source = exported / "nbs/mammo/10_report.py"
    text = source.read_text()
    source.unlink()
    export(exported)
    assert not (exported / "mammo_nb/mammo/report.py").exists()
    assert not (exported / "nbs/mammo/10_report.ipynb").exists()
    source.write_text(text)


def test_an_edit_in_jupyter_comes_back_to_the_source_only(checkout):
    build(checkout)
    sources = {s: (checkout / s).read_text() for s in SOURCES}
    target = checkout / "nbs/mammo/05_folds.ipynb"
    nb = nbformat.read(target, as_version=4)
    cell = next(c for c in nb.cells if c.source.startswith("table.head()") or "table.head()" in c.source)
    cell.source += "\nprint('added in Jupyter')"
    cell.outputs = [nbformat.v4.new_output("stream", text="added in Jupyter\n")]
    nb.metadata["language_info"] = {"name": "python", "version": "3.99"}  # as Jupyter does on saving
    nbformat.write(nb, target)
    with pytest.raises(NotebookConflict, match="make sync"):
        build(checkout)
    assert sync(checkout) == [checkout / "nbs/mammo/05_folds.py"]
    changed = {s for s in SOURCES if (checkout / s).read_text() != sources[s]}
    assert changed == {Path("nbs/mammo/05_folds.py")}
    assert (checkout / "nbs/mammo/05_folds.py").read_text() == sources[Path("nbs/mammo/05_folds.py")].replace(
        "table = run_stage(run)\ntable.head()", "table = run_stage(run)\ntable.head()\nprint('added in Jupyter')")
    assert build(checkout) == [] and sync(checkout) == []


def test_edits_on_both_sides_are_a_conflict_and_lose_nothing(checkout):
    build(checkout)
    target = checkout / "nbs/mammo/05_folds.ipynb"
    content = json.loads(target.read_text())
    content["cells"][-1]["source"] = "1 + 1"
    target.write_text(json.dumps(content))
    edit(target.with_suffix(".py"), "# # Folds", "# # Folds again")
    for action in (build, sync):
        with pytest.raises(NotebookConflict):
            action(checkout)
    assert "1 + 1" in target.read_text() and "Folds again" in target.with_suffix(".py").read_text()


def test_damaged_and_conflicting_files_are_named_and_nothing_else_is_lost(checkout):
    build(checkout)
    target, source = checkout / "nbs/mammo/05_folds.ipynb", checkout / "nbs/mammo/05_folds.py"
    whole, text = target.read_text(), source.read_text()
    for damaged in (whole[:200], "<<<<<<< HEAD\n" + whole, ""):
        target.write_text(damaged)
        for action in (build, sync):
            with pytest.raises(NotebookConflict, match="05_folds.ipynb is damaged or has conflict marks"):
                action(checkout)
    target.unlink()
    source.write_text(text.replace("# # Folds", "<<<<<<< ours\n# # Folds\n=======\n# # Fold\n>>>>>>> theirs"))
    with pytest.raises(NotebookConflict, match="05_folds.py has conflict marks"):
        build(checkout)
    source.write_text("\ufeff" + text)
    assert build(checkout) == [target] and target.read_text() == whole
    assert code_digest(source) == code_digest(ROOT / "nbs/mammo/05_folds.py")


@pytest.mark.parametrize("damage, said", [
    (lambda text: text[:text.index(b"def ") + 6], r"05_folds.py, line \d+: .*Python cannot read this file"),
    (lambda text: b"", "05_folds.py is empty"),
    (lambda text: text + b"# \xe9\n", "05_folds.py is not in UTF-8"),
    (lambda text: text + b"\0", "05_folds.py.*Python cannot read this file"),
], ids=["torn", "empty", "latin", "zero"])
def test_a_torn_source_is_named_and_the_package_stays(exported, damage, said):
    source, before = exported / "nbs/mammo/05_folds.py", modules(exported)
    whole = source.read_bytes()
    source.write_bytes(damage(whole))
    answer = make(exported, "export")
    source.write_bytes(whole)
    assert answer.returncode and re.search(said, answer.stdout) and "Traceback" not in answer.stdout
    assert modules(exported) == before


def test_nbdev_clean_is_no_edit(checkout):
    build(checkout)
    target = checkout / "nbs/mammo/05_folds.ipynb"
    nb = nbformat.read(target, as_version=4)
    nb.metadata = {"kernelspec": nb.metadata["kernelspec"]}
    nbformat.write(nb, target)
    assert sync(checkout) == [] and build(checkout) == [target] and build(checkout) == []

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Notebooks
# > One source in three forms: text for git, notebooks for Jupyter, and a package for Python.
#
# Every line of the package is written in `nbs/**/*.py`. These are notebooks in jupytext's percent format, which git can
# compare and people can review. nbdev and papermill need `.ipynb` files, so these are built and never committed. No
# edit is lost: `make sync` copies edits from Jupyter to the `.py`, and a build that would overwrite an edit stops with
# an error.

# %%
#| default_exp core.notebooks

# %%
#| export
import ast
import hashlib
import os
import re
import sys
from pathlib import Path

import jupytext
import nbformat

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import write_text

# %%
#| hide
import tempfile

# %%
#| export
class NotebookConflict(ProjectError):
    "A notebook is damaged, or it was edited and the edit would be lost."

# %% [markdown]
# ## Build
# nbdev writes the id of each exported cell into the module. With random ids, every build would change `mammo_nb/`. So
# an id is a digest of the cell's text. If a text occurs several times, its number is added.

# %%
#| export
def _digest(text: str) -> str:
    "SHA-256 of a text, as hexadecimal digits."
    return hashlib.sha256(text.encode()).hexdigest()

def cell_ids(
    cells: list,  # notebook cells with `cell_type` and `source`
) -> list[str]:   # 8 hexadecimal digits each, unique within the notebook
    "Make ids that depend only on the text of the cells."
    seen, ids = {}, []
    for cell in cells:
        text = f"{cell.cell_type}\n{cell.source}"
        n = seen[text] = seen.get(text, 0) + 1
        ids.append(_digest(text if n == 1 else f"{text}\n#{n}")[:8])
    return ids

# %%
two = [nbformat.v4.new_code_cell("x = 1"), nbformat.v4.new_code_cell("x = 1"), nbformat.v4.new_markdown_cell("x = 1")]
assert cell_ids(two) == cell_ids(two) and len(set(cell_ids(two))) == 3
cell_ids(two)

# %%
#| export
def _cells_digest(nb) -> str:
    "Digest of what can be edited in Jupyter: the kind, source and tags of every cell."
    return _digest(repr([(c.cell_type, c.source, c.metadata.get("tags", [])) for c in nb.cells]))

def from_percent(
    text: str,                  # a notebook in percent format
) -> nbformat.NotebookNode:     # the notebook, with digests as ids and a record of its source
    "Convert the text of a `.py` notebook to a notebook."
    nb = jupytext.reads(text, fmt="py:percent")
    nb.nbformat_minor = 5  # the first version with cell ids
    for cell, i in zip(nb.cells, cell_ids(nb.cells)):
        cell["id"] = i
    kernel = nb.metadata.get("kernelspec", {"display_name": "Python 3", "language": "python", "name": "python3"})
    nb.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "mammo_nb": {"source": _digest(text), "cells": _cells_digest(nb)}})
    return nb

# %%
#| export
def _sources(root: Path) -> list[Path]:
    "List all notebook sources of a checkout, in reading order."
    return sorted(p for p in (Path(root) / "nbs").rglob("*.py")
                  if not any(part.startswith(".") for part in p.parts[len(Path(root).parts):]))

def _was_edited(nb, text: str) -> bool:
    "Whether a built notebook has other cells than it was built with; `text` is its source, if it has no record."
    record = nb.metadata.get("mammo_nb") or from_percent(text).metadata["mammo_nb"]  # nbdev-clean removes the record
    return _cells_digest(nb) != record["cells"]

_conflict = re.compile(r"^(<{7}|>{7})( |$)", re.MULTILINE)

def _read_source(path: Path) -> str:
    "The text of a `.py` notebook, without the mark that some editors put first. Raises NotebookConflict."
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise NotebookConflict(f"{path} is not in UTF-8: byte {e.start} is no letter. Save it in UTF-8.") from e
    if _conflict.search(text):
        raise NotebookConflict(f"{path} has conflict marks of git (<<<<<<<). Resolve them first.")
    return text

def _check_python(path: Path, text: str):
    "Raise NotebookConflict for a source that Python cannot read, such as one that was cut off while it was saved."
    if not text.strip():
        raise NotebookConflict(f"{path} is empty. `git checkout {path}` brings back its last version.")
    try:
        ast.parse(text)
    except (SyntaxError, ValueError) as e:  # ValueError: a zero byte
        where = f", line {e.lineno}" if getattr(e, "lineno", None) else ""
        raise NotebookConflict(f"{path}{where}: {getattr(e, 'msg', e)}. Python cannot read this file; mend it, or "
                               f"`git checkout {path}` discards all changes of it.") from e

def _read_built(path: Path):
    "A built notebook; raises NotebookConflict if it is none."
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, AttributeError, KeyError, nbformat.ValidationError) as e:
        raise NotebookConflict(f"{path} is damaged or has conflict marks, so it cannot be read ({type(e).__name__}). "
                               f"It is built from {path.with_suffix('.py').name}: delete it, and `make notebooks` "
                               "builds it again.") from e

def build_one(
    source: Path,  # a `.py` notebook
) -> bool:         # whether the file was written
    "Build the .ipynb of a source if it is missing or older than its text. Raises NotebookConflict if it was edited."
    text = _read_source(source)
    target = source.with_suffix(".ipynb")
    if target.exists():
        old = _read_built(target)
        if _was_edited(old, text):
            raise NotebookConflict(
                f"{target} was edited in Jupyter. `make sync` copies the edit to {source.name}; "
                "delete the .ipynb to discard it.")
        if old.metadata.get("mammo_nb", {}).get("source") == _digest(text):
            return False  # the file keeps its outputs
    _check_python(source, text)
    write_text(target, nbformat.writes(from_percent(text)))
    return True

def build(
    root: Path,      # a checkout, the folder that contains nbs/
) -> list[Path]:     # the .ipynb files that were written
    """Build the `.ipynb` of every `.py` whose text has changed, and delete those whose `.py` no longer exists. Raises
    NotebookConflict if a notebook was edited."""
    sources = _sources(root)
    for stray in set((Path(root) / "nbs").rglob("*.ipynb")) - {s.with_suffix(".ipynb") for s in sources}:
        if ".ipynb_checkpoints" in stray.parts:
            continue
        nb = _read_built(stray)
        if "mammo_nb" in nb.metadata and not _was_edited(nb, ""):
            stray.unlink()
    return [s.with_suffix(".ipynb") for s in sources if build_one(s)]

# %% [markdown]
# A checkout with one notebook is built twice. The second build has nothing to do.

# %%
root = Path(tempfile.mkdtemp())
source = root / "nbs" / "00_hello.py"
write_text(
    source,
    "# %% [markdown]\n# # Hello\n# > A greeting.\n\n"
    "# %% tags=[\"parameters\"]\nname = \"world\"\n\n# %%\nprint(name)\n")
assert len(build(root)) == 1 and build(root) == []
nb = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
[(c.cell_type, c.id, c.metadata) for c in nb.cells]

# %% [markdown]
# ## Sync
# An edit in Jupyter changes the `.ipynb`. Only the cells are copied back. The header of the `.py` and all cells that
# were not edited remain unchanged, so git shows the edit only.

# %%
#| export
_header = re.compile(r"\A# ---\n(?:#.*\n)*?# ---\n")

def to_percent(
    nb: nbformat.NotebookNode,  # notebook with the edited cells
    text: str,                  # text of the `.py` before the edit; its header is kept
) -> str:                       # text of the `.py` with the edited cells
    "Convert the cells of a notebook to percent format."
    old = jupytext.reads(text, fmt="py:percent")
    old.cells = nb.cells
    kept = "tags", "lines_to_next_cell"  # the second is jupytext's own note on blank lines
    for cell in old.cells:
        metadata = {k: cell.metadata[k] for k in kept if cell.metadata.get(k) not in (None, [])}
        cell.metadata = nbformat.from_dict(metadata)
    header = _header.match(text)
    return (header[0] if header else "") + _header.sub("", jupytext.writes(old, fmt="py:percent"))

def sync(
    root: Path,      # a checkout
) -> list[Path]:     # the .py files that were changed
    "Copy edits from Jupyter to the sources. Raises NotebookConflict if both were edited."
    taken, conflicts = [], []
    for source in _sources(root):
        target = source.with_suffix(".ipynb")
        if not target.exists():
            continue
        nb = _read_built(target)
        text = _read_source(source)
        if not _was_edited(nb, text):
            continue
        if nb.metadata.get("mammo_nb", {}).get("source") != _digest(text):
            conflicts.append(source)
            continue
        text = to_percent(nb, text)
        write_text(source, text)
        nb.metadata["mammo_nb"] = {"source": _digest(text), "cells": _cells_digest(nb)}
        for cell, i in zip(nb.cells, cell_ids(nb.cells)):
            cell["id"] = i
        write_text(target, nbformat.writes(nb))
        taken.append(source)
    if conflicts:
        raise NotebookConflict(
            f"Edited in Jupyter and in the .py: {', '.join(map(str, conflicts))}. "
            "Keep one of the two: delete the .ipynb, or `git checkout` the .py; then `make sync`.")
    return taken

# %%
nb.cells[1].source = 'name = "reader"'
nbformat.write(nb, source.with_suffix(".ipynb"))
try:
    build(root)
except NotebookConflict as e:
    print(str(e).replace(str(root), "."))
assert sync(root) == [source] and build(root) == []
print(source.read_text())

# %% [markdown]
# ## Export
# nbdev writes the modules. Two things are added here: all notebooks are built first, and a module whose notebook no
# longer exists is deleted.

# %%
#| export
_made_from = re.compile(r"^# AUTOGENERATED! DO NOT EDIT! File to edit: (\S+)\.$", re.MULTILINE)

def _drop_orphans(library: Path) -> list[Path]:
    "Delete modules whose notebook no longer exists."
    dropped = []
    for module in sorted(library.rglob("*.py")):
        found = _made_from.search(module.read_text(encoding="utf-8"))
        if found and not (module.parent / found[1]).exists():
            module.unlink()
            dropped.append(module)
    return dropped

def export(
    root: Path,  # a checkout
):
    "Build all notebooks and write `mammo_nb/` from them. Raises NotebookConflict."
    from nbdev.doclinks import nbdev_export
    root = Path(root).resolve()
    build(root)
    _drop_orphans(root / "mammo_nb")
    here = Path.cwd()
    os.chdir(root)  # nbdev finds its configuration from the working directory
    try:
        nbdev_export()
    finally:
        os.chdir(here)

def command(
    action,   # build, sync or export
):
    "What `make notebooks`, `make sync` and `make export` do in a checkout. An error is one sentence, and ends with 1."
    try:
        for path in action(".") or []:
            print(path)
    except ProjectError as e:
        sys.exit(str(e))

# %% [markdown]
# `make test` and the continuous integration check that a build on another machine, or a second build, does not change
# `mammo_nb/`.

# %% [markdown]
# ## What a run prints
# A notebook teaches as well as works, so some of its cells print errors of made-up data. A run prints only the output
# of two sections, and its executed notebook says that all other cells are examples.

# %%
#| export
SHOWN = ("Run the stage", "What came out")  # sections whose output a run prints

def shown_cells(
    cells: list,     # of a notebook
) -> list[bool]:     # for each cell, whether a run prints its output
    "Choose the cells that are about the run; without a section that runs the stage, all of them."
    titles, title = [], ""
    for cell in cells:
        if cell.cell_type == "markdown" and (found := re.search(r"^#+ (.+)$", cell.source, re.MULTILINE)):
            title = found[1].strip()
        titles.append(title)
    return [SHOWN[0] not in titles or title in SHOWN for title in titles]

_EXAMPLES = ("*The sections " + " and ".join(f"**{s}**" for s in SHOWN) + " are about this run. All other cells are "
             "examples: they try single functions, some of them on made-up or damaged inputs, and what they print says "
             "nothing about your files.*")

def mark_examples(
    path: Path,  # an executed notebook
):
    "Say in an executed notebook which cells are examples."
    page = nbformat.read(path, as_version=4)
    if not all(shown_cells(page.cells)):
        page.cells.insert(1, nbformat.v4.new_markdown_cell(_EXAMPLES))
        nbformat.write(page, path)

# %%
cells = [nbformat.v4.new_markdown_cell("# Work"), nbformat.v4.new_code_cell("1 / 3"),
         nbformat.v4.new_markdown_cell("## Run the stage"), nbformat.v4.new_code_cell("2 / 3")]
assert shown_cells(cells) == [False, False, True, True] and shown_cells(cells[:2]) == [True, True]

# %% [markdown]
# ---
# [← Settings](13_settings.py) · [Recipes →](15_recipes.py)

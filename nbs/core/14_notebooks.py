# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Notebooks
# > One source, three readers: git sees text, Jupyter sees notebooks, Python sees a package.
#
# Every line of the package is written in `nbs/**/*.py`, notebooks in jupytext's percent format that git can compare and
# people can review. nbdev and papermill want `.ipynb`, so these are built, never kept. This notebook is the bridge, and
# it loses nobody's work: what was edited in Jupyter goes back to the `.py` with `make sync`, and a build that would
# overwrite such an edit refuses.

# %%
#| default_exp core.notebooks

# %%
#| export
import hashlib
import os
import re
from pathlib import Path

import jupytext
import nbformat

from mammo_nb.core.files import write_text

# %%
#| hide
import tempfile

# %%
#| export
class NotebookConflict(Exception):
    "A built notebook was edited, and going on would lose the edit."

# %% [markdown]
# ## Build
# nbdev writes the id of each exported cell into the module. A random id would change `mammo_nb/` with every build, so
# an id is a digest of the cell itself; a cell that occurs twice is told apart by counting.

# %%
#| export
def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

def cell_ids(
    cells: list,  # notebook cells with `cell_type` and `source`
) -> list[str]:   # 8 hexadecimal digits each, unique within the notebook
    "Ids that depend on nothing but the cells' own text."
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
    "What a person can edit in Jupyter: the kind, source and tags of every cell."
    return _digest(repr([(c.cell_type, c.source, c.metadata.get("tags", [])) for c in nb.cells]))

def from_percent(
    text: str,                  # a notebook in percent format
) -> nbformat.NotebookNode:     # the same notebook with content-derived ids and a record of its source
    "Turn the text of a `.py` notebook into a notebook."
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
    "All notebook sources below `root`, in reading order."
    return sorted(p for p in (Path(root) / "nbs").rglob("*.py")
                  if not any(part.startswith(".") for part in p.parts[len(Path(root).parts):]))

def _was_edited(nb) -> bool:
    return _cells_digest(nb) != nb.metadata.get("mammo_nb", {}).get("cells")

def _build_one(source: Path) -> bool:
    "Build `source`'s .ipynb unless it is up to date; True if it was written."
    text, target = source.read_text(encoding="utf-8"), source.with_suffix(".ipynb")
    if target.exists():
        old = nbformat.read(target, as_version=4)
        if _was_edited(old):
            raise NotebookConflict(
                f"{target} was edited in Jupyter. `make sync` takes the edit over into {source.name}; deleting the "
                ".ipynb drops it."
            )
        if old.metadata["mammo_nb"]["source"] == _digest(text):
            return False  # keeps outputs that a reader has made
    write_text(target, nbformat.writes(from_percent(text)))
    return True

def build(
    root: Path,      # a checkout, the folder that holds nbs/
) -> list[Path]:     # the .ipynb files written
    "Build `.ipynb` from every `.py` whose text has changed; drop those whose `.py` is gone."
    sources = _sources(root)
    for stray in set((Path(root) / "nbs").rglob("*.ipynb")) - {s.with_suffix(".ipynb") for s in sources}:
        if ".ipynb_checkpoints" in stray.parts:
            continue
        nb = nbformat.read(stray, as_version=4)
        if "mammo_nb" in nb.metadata and not _was_edited(nb):
            stray.unlink()
    return [s.with_suffix(".ipynb") for s in sources if _build_one(s)]

# %% [markdown]
# A checkout with one notebook, built twice: the second time there is nothing to do.

# %%
root = Path(tempfile.mkdtemp())
source = root / "nbs" / "00_hello.py"
write_text(
    source,
    "# %% [markdown]\n# # Hello\n# > A greeting.\n\n# %% tags=[\"parameters\"]\nname = \"world\"\n\n# %%\nprint(name)\n"
)
assert len(build(root)) == 1 and build(root) == []
nb = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
[(c.cell_type, c.id, c.metadata) for c in nb.cells]

# %% [markdown]
# ## Sync
# An edit made in Jupyter lands in the `.ipynb`. Only the cells travel back: the header of the `.py` stays as it is, and
# so does git's view of every cell that was not touched.

# %%
#| export
_header = re.compile(r"\A# ---\n(?:#.*\n)*?# ---\n")

def to_percent(
    nb: nbformat.NotebookNode,  # cells as edited
    text: str,                  # the `.py` as it was: its header is kept
) -> str:                       # the `.py` with those cells
    "Put a notebook's cells back into percent format."
    old = jupytext.reads(text, fmt="py:percent")
    old.cells = nb.cells
    kept = "tags", "lines_to_next_cell"  # the second is jupytext's own note on blank lines
    for cell in old.cells:
        cell.metadata = nbformat.from_dict({k: cell.metadata[k] for k in kept if cell.metadata.get(k) not in (None, [])})
    header = _header.match(text)
    return (header[0] if header else "") + _header.sub("", jupytext.writes(old, fmt="py:percent"))

def sync(
    root: Path,      # a checkout
) -> list[Path]:     # the .py files that took over an edit
    "Carry edits made in Jupyter back to the sources; refuse where both sides changed."
    taken, conflicts = [], []
    for source in _sources(root):
        target = source.with_suffix(".ipynb")
        if not target.exists():
            continue
        nb, text = nbformat.read(target, as_version=4), source.read_text(encoding="utf-8")
        if not _was_edited(nb):
            continue
        if nb.metadata["mammo_nb"]["source"] != _digest(text):
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
            f"Edited in Jupyter and in the .py: {', '.join(map(str, conflicts))}. Keep one: delete the .ipynb, or "
            "`git checkout` the .py, then `make sync`."
        )
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
# nbdev writes the modules. Two things it leaves to us: a module whose notebook is gone must go too, and a built
# notebook must be current first.

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
    "Build all notebooks and write `mammo_nb/` from them."
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

# %% [markdown]
# That a build on another machine, or twice on this one, changes nothing in `mammo_nb/` is what `make test` and the
# continuous integration check.

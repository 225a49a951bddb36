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
# # Practice
# > A small run for a stage notebook that is opened on its own.
#
# A stage notebook that is opened on its own has no run. `practice` makes a small one in the folder `temp`: the recipe
# `tiny`, with every stage before the one that is read. Finished stages are kept, and the next notebook copies them as
# long as no code has changed.

# %%
#| default_exp core.practice

# %%
#| export
import fcntl
import hashlib
import os
import shutil
import tempfile
from importlib import import_module
from pathlib import Path

from mammo_nb.core.runs import Run
from mammo_nb.core.settings import read_paths
from mammo_nb.core.systems import System

# %%
#| export
def _package() -> str:
    "Digest of the package's files."
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

def _mark(path: Path | str) -> tuple[int, int]:
    "Size and time of a file."
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns

def _keep(
    folder: Path,          # of a run
    before: Path | None,   # what was kept of it one stage earlier
    to: Path,
):
    "Copy a run; files that are as they were one stage earlier take no room again."
    def copy(source: str, target: str):
        known = before and before / Path(source).relative_to(folder)
        if known and known.is_file() and _mark(known) == _mark(source):
            os.link(known, target)
        else:
            shutil.copy2(source, target)
    shutil.copytree(folder, to, copy_function=copy, dirs_exist_ok=True)

# %%
with tempfile.TemporaryDirectory() as place:
    folder, first, second = (Path(place) / name for name in ("run", "first", "second"))
    folder.mkdir()
    for name in ("same", "changed"):
        (folder / name).write_text(name)
    _keep(folder, None, first)
    (folder / "changed").write_text("changed again")
    _keep(folder, first, second)
    assert (first / "same").samefile(second / "same") and not (folder / "same").samefile(first / "same")
    assert (first / "changed").read_text() == "changed" and (second / "changed").read_text() == "changed again"

# %%
#| export
def practice(
    system: System,
    before: str = "",                # a stage, which is not run; "": all stages run but those that only show results
    overrides: dict | None = None,   # for the stage that is read; the stages before it run without
    recipe: str = "tiny",
) -> Run:
    "A small run in the `temp` folder of the settings, up to the stage that is being read."
    scratch = read_paths().temp
    shelf = scratch / "practice" / _package()
    shelf.mkdir(parents=True, exist_ok=True)
    for old in set(shelf.parent.iterdir()) - {shelf}:
        shutil.rmtree(old, ignore_errors=True)
    run = Run.create(Path(tempfile.mkdtemp(dir=scratch)) / "practice", system, recipe)
    names = [s.name for s in run.plan]
    todo = run.plan[:names.index(before)] if before else run.plan
    kept = [shelf / "-".join([system.name, recipe, *names[:n + 1]]) for n in range(len(todo))]
    with open(shelf / ".lock", "w") as lock:  # one of two notebooks that start together makes the run
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = max((n for n, k in enumerate(kept) if k.exists()), default=-1)
        if done >= 0:
            shutil.copytree(kept[done], run.folder, dirs_exist_ok=True)
        for n in range(done + 1, len(todo)):
            module = import_module(todo[n].module)
            if hasattr(module, "run_stage"):
                module.run_stage(run)
            partial = kept[n].with_name(f".{kept[n].name}")
            shutil.rmtree(partial, ignore_errors=True)
            _keep(run.folder, kept[n - 1] if n else None, partial)
            partial.rename(kept[n])
    return Run.open(run.folder, overrides)

# %% [markdown]
# ---
# [← Stages](18_stages.py) · [Pixels →](20_pixels.py)

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
# # Stages
# > Which stages of a run have to run again, and how one runs.
#
# papermill executes a notebook and keeps no record of it. File dates are no record either: a `git checkout` or a
# corrected spelling mistake changes them. Each stage therefore gets a small JSON file of its *inputs*: its code without
# comments, its section of the recipe, and the inputs of the stage before it. The stage runs again when these change,
# when a file that it read changes, or when a file that it read or wrote is gone.

# %%
#| default_exp core.stages

# %%
#| export
import ast
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path

from mammo_nb.core.errors import Printed
from mammo_nb.core.files import read_json, sha256, write_json
from mammo_nb.core.runs import Run, StageError, digests_in, find_files, read_manifest
from mammo_nb.core.settings import Paths, read_paths
from mammo_nb.core.systems import Stage

# %%
#| hide
from mammo_nb.core.files import write_text
from mammo_nb.core.notebooks import build

# %% [markdown]
# ## When a stage has to run again
# Comments and text cells are not code: Python's own parser drops them, so correcting a sentence does not cost a
# training. A stage also depends on the modules that it imports, and on those that these import.

# %%
#| export
def code_digest(
    path: Path,  # a module, or a notebook source in percent format
) -> str:        # sha256 of its syntax tree
    "Digest of the code alone: comments, text cells and layout do not count."
    tree = ast.parse(Path(path).read_bytes())
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()

def _imported(path: Path, root: Path) -> set[Path]:
    "Modules of the package that one file imports, as files below `root`."
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(path.relative_to(root).parts[:-node.level]) if node.level else []
            if node.module:
                base.append(node.module)
            names = [".".join(base)]
            names += [f"{names[0]}.{a.name}" for a in node.names]
        else:
            continue
        found |= {root / (n.replace(".", "/") + ".py") for n in names if n.startswith("mammo_nb.")}
    return {p for p in found if p.exists()}

def modules_of(
    path: Path,       # a notebook source or module
    root: Path,       # the checkout
) -> list[Path]:      # files of mammo_nb/ that it needs, directly or not
    "The modules that a notebook depends on."
    todo, seen = [Path(path)], set()
    while todo:
        new = _imported(todo.pop(), Path(root)) - seen
        seen |= new
        todo += new
    return sorted(seen)

# %%
root = Path(tempfile.mkdtemp())
write_text(root / "mammo_nb" / "core" / "a.py", "from .b import x\n")
(root / "mammo_nb" / "core" / "b.py").write_text("x = 1\n")
(root / "nb.py").write_text("# %% [markdown]\n# Some text.\n\n# %%\nfrom mammo_nb.core.a import x\n")
assert [p.name for p in modules_of(root / "nb.py", root)] == ["a.py", "b.py"]
before = code_digest(root / "nb.py")
(root / "nb.py").write_text((root / "nb.py").read_text().replace("Some text", "Better text"))
assert code_digest(root / "nb.py") == before

# %% [markdown]
# The modules `recipes` and `system` of a system are left out: an edit of one recipe must not re-run another, and the
# values of the section are among the inputs anyway.

# %%
#| export
def _declares(module: Path) -> bool:
    "Whether a module is a system's declaration."
    return module.stem in ("recipes", "system") and module.parent.name != "core"

def stage_inputs(
    run: Run,
    stage: Stage,
    root: Path,            # the checkout
    before: Path | None,   # inputs file of the stage before; None for the first
) -> dict:                 # JSON-able
    "Everything that decides whether a stage must run again."
    section = run.section(stage.name)
    source = stage.source(root)
    modules = [m for m in modules_of(source, root) if not _declares(m)]
    return {
        "notebook": code_digest(source), "modules": {str(m.relative_to(root)): code_digest(m) for m in modules},
        "recipe": run.recipe, "mode": run.mode, "weights": str(run.weights or ""),
        "section": asdict(section) if section else None,
        "paths": {f.name: str(getattr(read_paths(run.folder), f.name)) for f in fields(Paths)},
        "before": sha256(before) if before else None
    }

def changed_files(
    run: Run,
    name: str,       # the stage
) -> list[str]:      # one reason a file
    "Files that the stage read or wrote when it ran and that have changed or are gone since."
    past = read_manifest(run.folder).get("stages", {}).get(name)
    if past is None:
        return ["manifest.json has no finished run of it"] if run.system.stage(name).writes else []
    stored, digests = {**past["reads"], **past["writes"]}, digests_in(run.folder)
    gone = [f for f in stored if not find_files(run.folder, f)]
    changed = [f for f in stored if f not in gone and digests.of(run.path(f)) != stored[f]]
    digests.save()
    return [f"{f} is gone" for f in gone] + [f"{f} changed" for f in changed]

def refresh_inputs(
    target: Path,     # the inputs file of the stage
    inputs: dict,     # from `stage_inputs`
    files: list = (), # from `changed_files`
) -> list[str]:       # why the stage has to run again; empty if it has not
    "Rewrite the inputs file if anything has changed."
    target = Path(target)
    try:
        old = read_json(target)
    except (FileNotFoundError, ValueError):  # the first run, or a damaged file
        old = None
    inputs = json.loads(json.dumps(inputs))  # as it comes back from a file
    if old is None:
        why = ["first run"]
    else:
        why = [k for k in inputs if old.get(k) != inputs[k]] + list(files)
    if why:
        write_json(target, inputs)
    return why

# %%
inputs = {"notebook": before, "recipe": "demo"}
target = root / "inputs.json"
[refresh_inputs(target, i) for i in (inputs, inputs, {**inputs, "recipe": "tiny"})]

# %% [markdown]
# ## Running a stage
# The executed notebook gets its final name only if every cell ran. The notebook of a failed stage is kept beside it.
# A notebook teaches as well as works, so some of its cells print errors of made-up data. A run prints only what the
# sections **Run the stage** and **What came out** print.

# %%
#| export
def parameter_names(
    source: Path,  # notebook source
) -> set[str]:
    "Names assigned in the cell tagged `parameters`."
    from jupytext import reads
    cells = reads(Path(source).read_text(encoding="utf-8-sig"), fmt="py:percent").cells
    names = set()
    for cell in cells:
        if "parameters" not in cell.metadata.get("tags", []):
            continue
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.Assign):
                names |= {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return names

def _engine() -> str:
    "Make papermill tell the streams which cell runs; returns the name of the engine."
    from papermill.engines import NBClientEngine, papermill_engines

    from mammo_nb.core.notebooks import shown_cells

    class Sections(NBClientEngine):
        "papermill's own engine, with the streams switched at the start of each cell."
        @classmethod
        def execute_managed_notebook(cls, nb_man, *arguments, **options):
            "Run the notebook."
            shown, start = shown_cells(nb_man.nb.cells), nb_man.cell_start

            def cell_start(cell, index, **more):
                options["stdout_file"].on = options["stderr_file"].on = shown[index]
                start(cell, index, **more)
            nb_man.cell_start = cell_start
            return super().execute_managed_notebook(nb_man, *arguments, **options)
    papermill_engines.register("sections", Sections)
    return "sections"

def _unsaid(log: Path, notebook: Path) -> list[str]:
    "The last lines of a kernel's own streams that its notebook does not have, without progress bars."
    cells = json.loads(notebook.read_text())["cells"] if notebook.is_file() else []
    said = {line for cell in cells for output in cell.get("outputs", [])
            for line in "".join(output.get("text", "")).splitlines()}
    lines = re.split(r"[\r\n]+", log.read_text(errors="replace"))
    return [line for line in lines if line and "%|" not in line and line not in said][-20:]

@contextmanager
def _kernels(log: Path, notebook: Path):
    """Give the class of kernels whose own streams go to a file. What their processes print reaches the notebook, and
    ipykernel repeats it on these streams. If a kernel or a cell fails, the last words of a process may have come too
    late for the notebook; they are shown then."""
    from jupyter_client.manager import AsyncKernelManager
    from papermill import PapermillExecutionError
    with open(log, "wb") as file:
        class Quiet(AsyncKernelManager):
            "Kernels that print to the file."
            async def start_kernel(self, **options):
                "Start one."
                return await super().start_kernel(stdout=file, stderr=file, **options)
        try:
            yield Quiet
        except (RuntimeError, PapermillExecutionError):
            for line in _unsaid(log, notebook):
                print(line, file=sys.stderr)
            raise

def _failure(source: Path, failed: Path, error) -> str:
    "What a failed cell means to the user; `error` is papermill's."
    import builtins
    said = error.evalue.strip() or "no message"
    # an error of the package says what to do; an error of Python does not
    remedy = ""
    if hasattr(builtins, error.ename):
        remedy = "Mend the cause and run the same command again; finished stages are kept. "
    return (f"{source.name}, cell {error.cell_index}, failed: {error.ename}: {said.rstrip('.')}. {remedy}"
            f"The traceback is in {os.path.relpath(failed)}.")

def execute(
    source: Path,        # notebook source; the .ipynb beside it is what runs
    output: Path,        # the executed notebook
    parameters: dict,    # for the cell tagged `parameters`; those it does not have are left out
):
    "Run a notebook through papermill; raise `StageError` naming notebook, cell, error and remedy if it fails."
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    from mammo_nb.core.notebooks import mark_examples
    source, output = Path(source), Path(output)
    running = output.with_name(f".{output.name}")
    failed = output.with_suffix(".failed.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # not a kernel `python3` that another Python has installed
    accepted = parameter_names(source)
    parameters = {name: value for name, value in parameters.items() if name in accepted}
    try:
        # only this user can open these sockets; a port would be open to every user. Their path has at most 107 bytes
        with tempfile.TemporaryDirectory(dir="/tmp" if len(tempfile.gettempdir()) > 64 else None) as scratch:
            with _kernels(Path(scratch) / "printed", running) as kernels:
                papermill.execute_notebook(
                    source.with_suffix(".ipynb"), running, parameters, kernel_name="python3", cwd=str(source.parent),
                    progress_bar=False, coalesce_streams=True, engine_name=_engine(), kernel_manager_class=kernels,
                    stdout_file=Printed(sys.stdout), stderr_file=Printed(sys.stderr),
                    # a kernel that is told to end may log that it was interrupted, as if a stage had failed
                    extra_arguments=["--log-level=CRITICAL"],
                    # ipykernel's threads may wait for one another at the end; it is told again after half of this time
                    config=Config(KernelManager={"transport": "ipc", "ip": f"{scratch}/kernel",
                                                 "shutdown_wait_time": 2.0}))
    except papermill.PapermillExecutionError as e:
        os.replace(running, failed)
        raise StageError(_failure(source, failed, e)) from e  # with its traceback, which --debug shows
    except DeadKernelError:
        raise StageError(
            f"{source.name}: its process was ended from outside, most often for lack of memory. "
            "Run it again to continue where it stopped.") from None
    mark_examples(running)
    os.replace(running, output)
    failed.unlink(missing_ok=True)

# %%
source = root / "nbs" / "demo" / "01_divide.py"
write_text(source, '# %% tags=["parameters"]\ndivisor = 2\n\n# %%\nprint(10 / divisor)\n')
build(root)
execute(source, root / "runs" / "01_divide.ipynb", {"divisor": 5, "unknown": 1})

# %%
try:
    execute(source, root / "runs" / "01_divide.ipynb", {"divisor": 0})
except StageError as e:
    print(e)
sorted(p.name for p in (root / "runs").iterdir())

# %% [markdown]
# ## Running all stages
# The stages run in their order. A stage whose inputs have not changed is skipped, so a run that was stopped continues
# where it stopped.

# %%
#| export
LEAST_FREE = 1e9  # bytes; the demos write a fraction of it, `mammo-nb check` estimates what a data set needs

def check_run(
    run: Run,
):
    "Check in seconds what would stop a run late. Raises a `ProjectError` with the remedy."
    free = shutil.disk_usage(run.folder).free
    if free < LEAST_FREE:
        raise StageError(f"{run.folder} has {free / 1e6:.0f} MB of free disk, and a run needs at least "
                         f"{LEAST_FREE / 1e6:.0f}. Make room, or set another folder: MAMMO_NB_RUNS=/elsewhere make ...")
    if run.system.ready:
        import_module(f"mammo_nb.{run.system.name}.{run.system.ready}").check_run(run)
    run.names(run.plan[0].reads)  # from outside: a data set that is nowhere is an error here. Others are not yet drawn

def reproduce(
    run: Run,
    root: Path = Path("."),   # the checkout
) -> list[str]:               # the stages that ran
    "Run every stage of a run that has to run; raises `StageError` at the first that fails."
    from mammo_nb.core.notebooks import build_one  # needs jupytext, which predicting does not
    check_run(run)
    ran = []
    before = None
    plan = run.plan
    for number, stage in enumerate(plan, start=1):
        label = run.system.label(stage.name)
        inputs = run.folder / "inputs" / f"{label}.json"
        notebook = run.folder / f"{label}.ipynb"
        why = refresh_inputs(inputs, stage_inputs(run, stage, root, before), changed_files(run, stage.name))
        before = inputs
        if not why and notebook.exists() and notebook.stat().st_mtime_ns >= inputs.stat().st_mtime_ns:
            continue
        if why and why != ["first run"]:
            print(f"{label} runs again: {', '.join(why)}", flush=True)
        source = stage.source(root)
        build_one(source)
        print(f"\n[{number}/{len(plan)}] {source} -> {os.path.relpath(notebook)}", flush=True)
        execute(source, notebook, {"run_dir": str(run.folder)})
        ran.append(stage.name)
    return ran

def failures(
    run: Run,
) -> dict[str, int]:   # what the rows are -> how many have an error
    "Count the rows with an error in the tables that the system declares."
    import pandas as pd
    tables = {name: what for name, what in run.system.failures.items() if find_files(run.folder, name)}
    return {what: int(pd.read_csv(run.path(name))["error"].notna().sum()) for name, what in tables.items()}

# %% [markdown]
# ---
# [← Runs](17_runs.py) · [Practice →](19_practice.py)

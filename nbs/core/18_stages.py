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
# # Stages
# > A run is a row of notebooks; each says what it read, what it wrote and how long it took.
#
# papermill executes a notebook but remembers nothing. Make remembers by file dates, which a `git checkout` or a
# corrected spelling mistake upsets. So each stage gets a small text file of *inputs*, its code without comments, its
# section of the recipe, and the digests of what it reads; make compares that file and runs the stage when it has
# changed. The same digests make up the manifest of the run.

# %%
#| default_exp core.stages

# %%
#| export
import ast
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import fields
from importlib import metadata
from pathlib import Path

from mammo_nb.core.files import read_json, sha256, write_json
from mammo_nb.core.settings import Paths, read_paths

# %%
#| hide
from mammo_nb.core.files import write_text
from mammo_nb.core.notebooks import build

# %%
#| export
class StageError(Exception):
    "A stage cannot run: what it reads is missing, or it did not write what it promised."

# %% [markdown]
# ## What a stage reads and writes
# A stage names its files by the folders of `settings.ini`: `processed/crops.csv`. Anything else hangs from the folder
# of the run.

# %%
#| export
def locate(
    run_dir: Path,  # folder of the run
    name: str,      # "processed/crops.csv", or "oof.csv" for a file in the folder of the run
) -> Path:          # absolute
    "Where a named file of a run is."
    first, _, rest = str(name).partition("/")
    if rest and first in {f.name for f in fields(Paths)}:
        return getattr(read_paths(run_dir), first) / rest
    return Path(run_dir).resolve() / name

def read_manifest(
    run_dir: Path,  # folder of the run
) -> dict:          # empty before the first stage
    "The manifest of a run."
    path = Path(run_dir) / "manifest.json"
    return read_json(path) if path.exists() else {}

def recorded(
    run_dir: Path,  # folder of the run
    name: str,      # a stage that has run
) -> dict:          # its section of the recipe, overrides included
    "The parameters that a stage ran with: later stages ask here, not the recipe."
    return read_manifest(run_dir)["stages"][name]["parameters"]

# %%
#| export
_packages = ("torch", "timm", "numpy", "pandas", "scikit-learn", "opencv-python", "pydicom", "onnxruntime", "nbdev",
             "papermill")

def environment() -> dict:
    "Python, packages and hardware of this process; CUDA is named only where torch is loaded and sees one."
    torch = sys.modules.get("torch")
    installed = {d.metadata["Name"].lower() for d in metadata.distributions()}
    return {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else "cpu",
            "packages": {p: metadata.version(p) for p in _packages if p in installed}}

# %% [markdown]
# The work of a stage happens inside `stage(...)`. It refuses to start without its inputs and to end without its
# outputs, lets only one process at a time write to a run, and adds one entry to the manifest.

# %%
#| export
@contextmanager
def stage(
    run_dir: Path,      # folder of the run
    name: str,          # the stage's one word: "folds"
    *,
    reads: list = (),   # names of files that earlier stages wrote
    writes: list = (),  # names of files that this stage promises
    parameters: dict | None = None,  # the recipe's section, seeds included; JSON-able
):
    """Check what a stage reads, time it, check and record what it wrote; what the block puts into the dict that it gets
    is recorded, too."""
    run_dir = Path(run_dir).resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    missing = [r for r in reads if not locate(run_dir, r).exists()]
    if missing:
        raise StageError(
            f"{name} reads {', '.join(missing)}, which {run_dir.name} does not have: run the stage that writes it "
            "first."
        )
    with open(run_dir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system whatever happens to this process
        started, results = time.monotonic(), {}
        yield results
        seconds = round(time.monotonic() - started, 1)
        missing = [w for w in writes if not locate(run_dir, w).exists()]
        if missing:
            raise StageError(f"{name} ended without writing {', '.join(missing)}.")
        manifest = read_manifest(run_dir) or {"run": run_dir.name, "stages": {}}
        manifest["environment"] = environment()
        manifest["stages"][name] = {"parameters": parameters or {}, "seconds": seconds,
                                    "reads": {r: sha256(locate(run_dir, r)) for r in reads},
                                    "writes": {w: sha256(locate(run_dir, w)) for w in writes},
                                    **({"results": results} if results else {})}
        write_json(run_dir / "manifest.json", manifest)

# %%
run = Path(tempfile.mkdtemp()) / "first"
with stage(run, "labels", writes=["processed/labels.csv"], parameters={"patients": 2}) as results:
    table = locate(run, "processed/labels.csv")
    table.parent.mkdir(parents=True)
    table.write_text("patient_id,cancer\n1,0\n2,1\n")
    results["cancers"] = 1
read_manifest(run)["stages"]

# %%
try:
    with stage(run, "train", reads=["processed/crops.csv"]):
        pass
except StageError as e:
    print(e)

# %% [markdown]
# A stage notebook opened on its own has no run behind it. `practice` makes one, small, in the folder for scratch, by
# running the stages before it; what one notebook has made so, the next one copies, as long as no code has changed.

# %%
#| export
def _package() -> str:
    "Digest of the package's files."
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

def practice(
    *stages,             # functions f(run_dir, recipe), in order
    recipe: str = "tiny",
) -> tuple[Path, str]:   # the folder of the practice run and the name of its recipe
    "A small run in the `temp` folder of the settings, up to the stage that is being read."
    scratch = read_paths().temp
    shelf = scratch / "practice" / _package()
    shelf.mkdir(parents=True, exist_ok=True)
    for old in set(shelf.parent.iterdir()) - {shelf}:
        shutil.rmtree(old, ignore_errors=True)
    run_dir = Path(tempfile.mkdtemp(dir=scratch)) / "practice"
    kept = [
        shelf / "-".join([recipe, *(f.__module__.rpartition(".")[2] for f in stages[:n + 1])])
        for n in range(len(stages))
    ]
    with open(shelf / ".lock", "w") as lock:  # of two notebooks that start together one makes the run
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = max((n for n, k in enumerate(kept) if k.exists()), default=-1)
        if done >= 0:
            shutil.copytree(kept[done], run_dir)
        else:
            run_dir.mkdir()
        for f, keep in list(zip(stages, kept))[done + 1:]:
            f(run_dir, recipe)
            shutil.copytree(run_dir, partial := keep.with_name(f".{keep.name}"), dirs_exist_ok=True)
            partial.rename(keep)
    return run_dir, recipe

# %% [markdown]
# What a run has trained is used by later ones: named, kept in `assets/trained`, or of the newest finished run, in this
# order.

# %%
#| export
def find_trained(
    names: list,                # of files that must all be there, such as ensemble.onnx and ensemble.json
    named: Path | None = None,  # a folder, or that of a run; None or "": look for one
) -> Path | None:               # the folder that has them; None if none does
    "A folder with trained files."
    whole = lambda folder: all((folder / name).is_file() for name in names)
    if named:
        return next((f for f in (Path(named), Path(named) / "weights") if whole(f)), None)
    paths = read_paths()
    if whole(paths.assets / "trained"):
        return paths.assets / "trained"
    finished = [read_paths(report.parent).final_models for report in paths.runs.glob("*/report.html")]
    return max(filter(whole, finished), key=lambda f: (f / names[0]).stat().st_mtime, default=None)

# %%
for name in ("detector.onnx", "detector.json"):
    write_text(run / "weights" / name, "")
assert find_trained(["detector.onnx", "detector.json"], run) == run / "weights" and find_trained(["ensemble.onnx"],
                                                                                                 run) is None

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
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()

def _imported(path: Path, root: Path) -> set[Path]:
    "Modules of the package that one file imports, as files below `root`."
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(path.relative_to(root).parts[:-node.level]) if node.level else []
            names = [".".join(base + [node.module] if node.module else base)]
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
# The inputs of a stage are one JSON text. It is rewritten only when it has changed, so that its date is what make
# needs; and it contains the inputs of the stage before, so that whatever re-runs a stage re-runs all that come after.
# The module `recipes` is left out, since editing one recipe must not re-run another: its values are there instead.

# %%
#| export
def stage_inputs(
    root: Path,             # the checkout
    notebook: Path,         # source of the stage, nbs/<system>/NN_word.py
    run_dir: Path,          # folder of the run
    parameters: dict,       # what papermill will inject
    section: dict | None,   # the stage's section of the recipe
    before: Path | None,    # inputs file of the stage before
) -> dict:                  # JSON-able
    "Everything that decides whether a stage must run again."
    return {
        "notebook": code_digest(notebook), "modules": {
            str(m.relative_to(root)): code_digest(m) for m in modules_of(notebook, root) if m.stem != "recipes"
        }, "parameters": parameters, "recipe": section, "paths": {
            f.name: str(getattr(read_paths(run_dir), f.name)) for f in fields(Paths)
        }, "before": sha256(before) if before else None
    }

def stage_name(
    notebook: Path,  # nbs/<system>/NN_word.py
) -> str:            # the word
    "A stage is named as its module."
    return Path(notebook).stem.partition("_")[2]

def changed_files(
    run_dir: Path,   # folder of the run
    name: str,       # the stage
) -> list[str]:      # one reason a file
    "Files that differ from what the stage read when it ran, or that it wrote and that are gone."
    past = read_manifest(run_dir).get("stages", {}).get(name, {"reads": {}, "writes": {}})
    gone = [f"{f} is gone" for f in {**past["reads"], **past["writes"]} if not locate(run_dir, f).exists()]
    return gone + [
        f"{f} changed"
        for f, sha in past["reads"].items() if locate(run_dir, f).exists() and sha256(locate(run_dir, f)) != sha
    ]

def code_of(
    run_dir: Path,  # folder of the run
    name: str,      # the stage
) -> dict:          # digests of its notebook and modules; empty if make does not run it
    "What code a stage runs with, so that a training in progress knows whether it may go on."
    found = sorted((Path(run_dir) / "inputs").glob(f"*_{name}.json"))
    inputs = read_json(found[0]) if found else {}
    return {k: inputs[k] for k in ("notebook", "modules") if k in inputs}

def refresh_inputs(
    target: Path,     # the inputs file that make looks at
    inputs: dict,     # from `stage_inputs`
    files: list = (), # from `changed_files`
) -> list[str]:       # why the stage has to run again; empty if it has not
    "Rewrite the inputs file if anything has changed."
    target = Path(target)
    # as it comes back from a file
    old, inputs = read_json(target) if target.exists() else None, json.loads(json.dumps(inputs))
    why = ["first run"] if old is None else [k for k in inputs if old.get(k) != inputs[k]] + list(files)
    if why:
        write_json(target, inputs)
    return why

# %%
inputs = {"notebook": before, "parameters": {"recipe": "demo"}}
target = root / "inputs.json"
[
    refresh_inputs(target, inputs),
    refresh_inputs(target, inputs),
    refresh_inputs(target, {**inputs, "parameters": {"recipe": "tiny"}})
]

# %% [markdown]
# ## Running one
# The executed notebook carries its final name only if every cell ran. A failed one is kept beside it, for reading.

# %%
#| export
def parameter_names(
    source: Path,  # notebook source
) -> set[str]:
    "Names assigned in the cell tagged `parameters`."
    from jupytext import reads
    cells = reads(Path(source).read_text(encoding="utf-8"), fmt="py:percent").cells
    tagged = [c.source for c in cells if "parameters" in c.metadata.get("tags", [])]
    return {
        t.id for s in tagged for n in ast.parse(s).body if isinstance(n, ast.Assign) for target in n.targets
        for t in ast.walk(target) if isinstance(t, ast.Name)
    }

def execute(
    source: Path,        # notebook source; the .ipynb beside it is what runs
    output: Path,        # the executed notebook
    parameters: dict,    # for the cell tagged `parameters`; those it does not have are left out
):
    "Run a notebook through papermill; raise `StageError` naming notebook, cell and error if it fails."
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config
    source, output = Path(source), Path(output)
    running, failed = output.with_name(f".{output.name}"), output.with_suffix(".failed.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    accepted = parameter_names(source)
    try:
        # files that only this user can open, where a port could be listened to
        with tempfile.TemporaryDirectory() as sockets:
            papermill.execute_notebook(
                source.with_suffix(".ipynb"), running, {k: v for k, v in parameters.items() if k in accepted},
                kernel_name="python3", cwd=str(source.parent), progress_bar=False, coalesce_streams=True,
                config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}), stdout_file=sys.stdout,
                stderr_file=sys.stderr)
    except papermill.PapermillExecutionError as e:
        os.replace(running, failed)
        trace = "\n".join(e.traceback[-12:]) if isinstance(e.traceback, list) else str(e.traceback)
        raise StageError(
            f"{trace}\n{source.name}, cell {e.cell_index}: {e.ename}: {e.evalue}\nThe notebook up to that cell: "
            f"{failed}"
        ) from None
    except DeadKernelError:
        raise StageError(
            f"{source.name}: its process was ended from outside, most often for lack of memory; run again to go on "
            "where it stopped"
        ) from None
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
    print(str(e).splitlines()[-2])
sorted(p.name for p in (root / "runs").iterdir())

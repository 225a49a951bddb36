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
# # Runs
# > One folder per run: its recipe, what each stage read and wrote, and how long that took.
#
# A `Run` holds its folder, its system, its recipe and its manifest. A stage gets its paths and its section of the
# recipe from it, and does its work inside `run.stage(...)`, which checks the declared files before and after.

# %%
#| default_exp core.runs

# %%
#| export
import fcntl
import os
import platform
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path

import pandas as pd

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import read_json, sync_all, write_json
from mammo_nb.core.recipes import RecipeError, from_dict, override
from mammo_nb.core.settings import Digests, Paths, find_trained, read_paths
from mammo_nb.core.systems import Stage, System, described, find_system

# %%
#| hide
from mammo_nb.core.recipes import Recipe, bounded
from mammo_nb.core.systems import Mode

# %%
#| export
class StageError(ProjectError):
    "A file that a stage reads is missing, or the stage did not write a file that it declares."

# %% [markdown]
# ## Where a file is
# The first part of a name is a folder of `settings.ini` (`processed/crops.csv`, or `processed/` itself). Any other
# name is relative to the folder of the run.

# %%
#| export
def locate(
    folder: Path,  # of the run
    name: str,     # "processed/crops.csv", "weights/", "oof.csv", or an absolute path, which stays as it is
) -> Path:         # absolute
    "Path of a named file or folder of a run."
    first, _, rest = str(name).partition("/")
    if first in {f.name for f in fields(Paths)}:
        return getattr(read_paths(folder), first) / rest
    return Path(folder).resolve() / name

def find_files(
    folder: Path,  # of the run
    name: str,     # as for `locate`; may be a pattern
) -> list[Path]:   # empty if there is none; a folder counts if it is not empty
    "Files that a declared name stands for."
    path = locate(folder, name)
    if name.endswith("/"):
        return [path] if path.is_dir() and any(path.iterdir()) else []
    if "*" in path.name:
        return sorted(p for p in path.parent.glob(path.name) if p.suffix != ".journal")
    return [path] if path.exists() else []

def _state(path: Path, remedy: str) -> dict:
    "A JSON object that a run keeps; raises `StageError` if the file is damaged."
    try:
        stored = read_json(path)
    except ValueError:
        stored = None
    if not isinstance(stored, dict):
        raise StageError(f"{path} is damaged. {remedy}")
    return stored

def read_manifest(
    folder: Path,  # of the run
) -> dict:         # empty before the first stage
    "The manifest of a run: versions, and for each stage its parameters, seconds and digests."
    path = Path(folder) / "manifest.json"
    if not path.exists():
        return {}
    remedy = "Delete it, and the stages run again. Their finished files are used where they are unchanged."
    stored = _state(path, remedy)
    stages = stored.get("stages")
    whole = isinstance(stages, dict) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(part), dict) for part in ("parameters", "reads", "writes"))
        for entry in stages.values())
    if not whole:
        raise StageError(f"{path} is damaged. {remedy}")
    return stored

# %% [markdown]
# A finished run is verified by the content of its files (`core/files`). The raw data of a run, which no stage has
# written, may be hundreds of gigabytes. So names, sizes and times stand for them.

# %%
#| export
def digests_in(
    folder: Path,  # of the run
) -> Digests:      # which reads what is in the folders of the run, and looks at the others
    "Digests of the files of a run."
    paths = read_paths(folder)
    own = (Path(folder).resolve(), paths.processed, paths.checkpoints, paths.weights, paths.submissions)
    return Digests(Path(folder) / ".marks.json", own)

def _digests(folder: Path, names, digests: Digests) -> dict[str, str]:
    "Name -> digest of its file or folder; a pattern gives one entry for each file."
    found = {}
    for name in names:
        for path in find_files(folder, name):
            key = f"{name.rpartition('/')[0]}/{path.name}".lstrip("/") if "*" in name else name
            found[key] = digests.of(path)
    return found

# %%
#| export
_packages = ("torch", "timm", "numpy", "pandas", "scikit-learn", "opencv-python", "pydicom", "onnxruntime", "nbdev",
             "papermill")

def environment() -> dict:
    "Python, packages and hardware of this process; the device is 'cpu' unless torch is loaded and finds a GPU."
    torch = sys.modules.get("torch")
    installed = {d.metadata["Name"].lower() for d in metadata.distributions()}
    return {
        "python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else "cpu",
        "packages": {p: metadata.version(p) for p in _packages if p in installed}
    }

# %% [markdown]
# ## A run
# `run.json` stores the recipe, the mode, the weights and the overrides of a run. `Run.create` checks all of them, so
# that a mistake is an error before anything runs; `Run.open` reads it back, in a notebook or in another process.

# %%
#| export
@dataclass(frozen=True)
class Run:
    "A folder with the results of one recipe of one system."
    folder: Path               # absolute
    system: System
    recipe: str                # key of the system's recipes
    mode: str                  # key of the system's modes
    weights: Path | None = None                    # folder with trained weights that the mode uses
    overrides: dict = field(default_factory=dict)  # dotted field -> value: "train.loop.epochs": 8

    def __post_init__(self):
        self.system.mode(self.mode)
        sections = [s.name for s in self.system.stages if s.section]
        for name in self.overrides:
            if name.partition(".")[0] not in sections:
                raise RecipeError(f"No section {name.partition('.')[0]!r} in a recipe of {self.system.name}. "
                                  f"There are {', '.join(sections)}.")
        for stage in self.plan:
            self.section(stage.name)  # an impossible value is an error now

    @classmethod
    def create(
        cls,
        folder: Path,                   # made if it does not exist
        system: System,
        recipe: str = "demo",
        mode: str | None = None,        # None: the mode that the recipe is made for
        weights: Path | None = None,    # for modes with trained weights; None: assets/trained
        overrides: dict | None = None,
    ):                                  # the run
        "Start a run or continue one; raises a `ProjectError` for a name that does not exist or a value out of range."
        folder = Path(folder).resolve()
        mode = mode or system.recipe(recipe).mode
        needed = system.mode(mode).weights
        if weights and not needed:
            fitting = [name for name, each in system.modes.items() if each.weights]
            raise StageError(f"Mode {mode} uses no trained weights, and WEIGHTS names {weights}. "
                             f"Modes that use some: {', '.join(fitting)}.")
        if needed:
            place = find_trained(needed, weights or read_paths().assets / "trained")
            if place is None:
                raise StageError(f"Mode {mode} needs {', '.join(needed)}, which {weights or 'assets/trained'} does not "
                                 f"have. Name a folder that has them, such as WEIGHTS=runs/demo/weights.")
            weights = place.resolve()
        run = cls(folder, system, recipe, mode, weights, dict(overrides or {}))
        if (folder / "run.json").exists():
            run._check_owner()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", {
            "system": system.name, "recipe": recipe, "mode": mode, "weights": str(weights or ""),
            "overrides": run.overrides})
        return run

    @classmethod
    def open(
        cls,
        folder: Path | str,             # of a run that was created
        overrides: dict | None = None,  # further changes, for this process only
    ):                                  # the run
        "Open a run; raises `StageError` if the folder holds none."
        path = Path(folder).resolve() / "run.json"
        if not path.exists():
            raise StageError(f"{path.parent} holds no run: it has no run.json. `make reproduce` makes one.")
        remedy = "Remove the folder, and `make reproduce` starts the run again."
        stored = _state(path, remedy)
        if missing := {"system", "recipe", "mode", "weights", "overrides"} - set(stored):
            raise StageError(f"{path} has no {', '.join(sorted(missing))}. {remedy}")
        weights = Path(stored["weights"]) if stored["weights"] else None
        return cls(path.parent, find_system(stored["system"]), stored["recipe"], stored["mode"], weights,
                   {**stored["overrides"], **(overrides or {})})

    def _check_owner(self):
        "Raise `StageError` if the folder belongs to a run of another system or recipe; its files would be mixed up."
        stored = _state(self.folder / "run.json", "Remove the folder, or choose another RUN.")
        if (stored.get("system"), stored.get("recipe")) != (self.system.name, self.recipe):
            raise StageError(f"{self.folder} is a run of {stored.get('system')} {stored.get('recipe')}, not of "
                             f"{self.system.name} {self.recipe}. Remove the folder, or choose another RUN.")

    @property
    def plan(self) -> list[Stage]:
        "The stages of this run, in order; what the user names as data is not drawn."
        stages = self.system.plan(self.recipe, self.mode)
        return [s for s in stages if self.overrides.get(s.unless, s.name) == s.name]

    def has(
        self,
        stage: str,
    ) -> bool:
        "Whether a stage belongs to this run."
        return stage in [s.name for s in self.plan]

    def path(
        self,
        name: str,   # as for `locate`
    ) -> Path:
        "Path of a file or, with `/` at the end, of a folder of this run."
        return locate(self.folder, name)

    def section(
        self,
        stage: str,
    ):               # a frozen dataclass; None if the stage has no section
        "The section of a stage, with this run's overrides."
        kind = self.system.stage(stage).section
        if kind is None:
            return None
        own = {n.partition(".")[2]: v for n, v in self.overrides.items() if n.partition(".")[0] == stage}
        return override(self.system.recipe(self.recipe).section(kind), own, stage)

    def recorded(
        self,
        stage: str,  # that has run
    ):               # its section as it was then
        "The section that a stage has run with; later stages use this and not the recipe."
        entry = read_manifest(self.folder).get("stages", {}).get(stage)
        if entry is None:
            raise StageError(f"{stage} has not run in {self.folder.name}: run it first.")
        return from_dict(self.system.stage(stage).section, entry["parameters"])

    def names(
        self,
        declared,           # `reads` or `writes` of a stage
    ) -> list[str]:
        "Declared names of files; a function of the run is called."
        return [n for d in declared for n in ([d] if isinstance(d, str) else d(self))]

    def contract(
        self,
        stage: str,
    ) -> pd.DataFrame:  # file, direction, present, about
        "What a stage reads and writes, and whether it is there: the first table of its notebook."
        declared = self.system.stage(stage)
        rows = []
        for direction in ("reads", "writes"):
            for each in getattr(declared, direction):
                about = "" if isinstance(each, str) else described(each)
                rows += [(n, direction, bool(find_files(self.folder, n)), about) for n in self.names([each])]
        return pd.DataFrame(rows, columns=["file", "direction", "present", "about"])

    def code(
        self,
        stage: str,
    ) -> dict:       # digests of its notebook and modules; empty outside of `make reproduce`
        "The code that a stage runs with. A training in progress continues only with the same code."
        path = self.folder / "inputs" / f"{self.system.label(stage)}.json"
        inputs = read_json(path) if path.exists() else {}
        return {k: inputs[k] for k in ("notebook", "modules") if k in inputs}

    @contextmanager
    def stage(
        self,
        name: str,
    ):               # a dict; values that the caller adds to it are stored in the manifest
        """Check what a stage reads, time it, check what it wrote and record both in the manifest. One process at a time
        writes to a run. Raises `StageError` if a declared file is missing before or after."""
        declared = self.system.stage(name)
        reads = self.names(declared.reads)
        if missing := [r for r in reads if not find_files(self.folder, r)]:
            raise StageError(f"{name} reads {', '.join(missing)}, which {self.folder.name} does not have: run the "
                             f"stage that writes it first.")
        with open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the operating system releases it, even if this process is killed
            started, results = time.monotonic(), {}
            yield results
            writes = self.names(declared.writes)  # names may depend on what the stage found
            seconds = round(time.monotonic() - started, 1)
            if missing := [w for w in writes if not find_files(self.folder, w)]:
                raise StageError(f"{name} ended without writing {', '.join(missing)}.")
            section = self.section(name)
            manifest = read_manifest(self.folder) or {"run": self.folder.name, "stages": {}}
            manifest |= {"system": self.system.name, "recipe": self.recipe, "environment": environment()}
            digests = digests_in(self.folder)
            manifest["stages"][name] = {
                "parameters": asdict(section) if section else {}, "seconds": seconds,
                "reads": _digests(self.folder, reads, digests), "writes": _digests(self.folder, writes, digests)}
            if results:
                manifest["stages"][name]["results"] = results
            sync_all(digests.new)  # before the manifest says that they are finished
            digests.save()
            write_json(self.folder / "manifest.json", manifest)

# %% [markdown]
# A system of two stages, declared here, and a run of it:

# %%
@dataclass(frozen=True)
class Draw:
    "Numbers of the drawn data set."
    pictures: int = bounded(32, low=2)  # number of pictures

toy = System(
    name="toy", title="Count the dots",
    stages=(Stage("draw", Draw, writes=("processed/labels.csv",)),
            Stage("count", reads=("processed/labels.csv",), writes=("counts.csv",))),
    modes={"full": Mode("both stages", ("draw", "count"))},
    recipes={"demo": Recipe("32 pictures"), "tiny": Recipe("4 pictures", Draw(pictures=4))}, failures={})
run = Run.create(Path(tempfile.mkdtemp()) / "first", toy, overrides={"draw.pictures": 5})
with run.stage("draw") as results:
    table = run.path("processed/labels.csv")
    table.parent.mkdir(parents=True)
    table.write_text("file,label\n" + "a.png,3\n" * run.section("draw").pictures)
    results["dots"] = 15
assert run.recorded("draw") == Draw(5)
run.contract("count")

# %% [markdown]
# Missing files and misspelt names are errors that list what exists:

# %%
def count_nothing():
    "A stage that does not write its file."
    with run.stage("count"):
        pass

for mistake in (count_nothing, lambda: Run.create(run.folder, toy, "dmo"),
                lambda: Run.create(run.folder, toy, mode="half"),
                lambda: Run.create(run.folder, toy, overrides={"draw.picture": 3})):
    try:
        mistake()
    except ProjectError as e:
        print(e)

# %% [markdown]
# ---
# [← Systems](16_systems.py) · [Stages →](18_stages.py)

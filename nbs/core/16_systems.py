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
# # Systems
# > A system is one folder that declares itself: its stages, what they read and write, its modes and its recipes.
#
# The command line, the Makefile, the Kaggle notebook and the tests read this declaration and name no stage themselves.
# A new system is therefore a new folder below `nbs/`, and no other file changes.

# %%
#| default_exp core.systems

# %%
#| export
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.recipes import Recipe, RecipeError, check_section

# %%
#| hide
from mammo_nb.core.recipes import bounded

# %%
#| export
class DeclarationError(ProjectError):
    "A system that does not exist, or whose declaration contradicts itself."

# %% [markdown]
# ## Stages
# A stage names the files that it reads and writes, in the folders of `settings.ini` or in the folder of the run. A name
# may be a pattern (`weights/fold_*.safetensors`) that stands for at least one file; a name that ends with `/` is a
# folder. Where a name depends on the recipe, a function of the run returns the names, and tables show its docstring.

# %%
#| export
Names = tuple[str | Callable, ...]  # names of files, or functions: Run -> list of names

@dataclass(frozen=True)
class Stage:
    "One step of a system: one notebook, one module, one section of the recipe."
    name: str                    # one domain word: the name of the notebook and of the module
    section: type | None = None  # class of its section; None: nothing to set
    reads: Names = ()            # what must exist before it runs
    writes: Names = ()           # what exists after it has run
    unless: str = ""             # field, such as datasets.name: a run that sets it to other data leaves the stage out
    home: str = ""               # the system whose folder has the notebook; "": the one that declares the stage

    def __post_init__(self):
        for direction in ("reads", "writes"):
            if not isinstance(getattr(self, direction), tuple):
                raise DeclarationError(f"Stage {self.name}: {direction} must be a tuple of names, such as ('a.csv',).")

    @property
    def module(self) -> str:  # such as mammo_nb.toy.count
        "Name of the module that has `run_stage(run)`."
        return f"mammo_nb.{self.home}.{self.name}"

    def source(
        self,
        root: Path = Path("."),  # the checkout
    ) -> Path:                   # nbs/<home>/NN_<name>.py
        "The notebook of the stage; raises `DeclarationError` if there is none."
        found = sorted((Path(root) / "nbs" / self.home).glob(f"[0-9][0-9]_{self.name}.py"))
        if len(found) != 1:
            raise DeclarationError(f"Stage {self.name} needs one notebook nbs/{self.home}/NN_{self.name}.py; "
                                   f"there are {len(found)}.")
        return found[0]

def described(
    name,   # an entry of `reads` or `writes`
) -> str:
    "An entry in words: the name itself, or the docstring of the function."
    return name if isinstance(name, str) else name.__doc__

# %% [markdown]
# ## Modes
# A mode is a selection of stages. A mode that uses trained weights names the files that must exist.

# %%
#| export
@dataclass(frozen=True)
class Mode:
    "Which stages run."
    about: str                    # a few words, shown in tables
    stages: tuple[str, ...]       # names, in the order of the system
    weights: tuple[str, ...] = () # files that must lie in WEIGHTS, or else in assets/trained

# %% [markdown]
# ## The declaration
# A system checks itself when its module is imported: every mode and recipe names stages that exist, every section
# fits its class, and every file that a stage reads is written by a stage before it or comes from outside.

# %%
#| export
OUTSIDE = ("raw/", "samples/", "assets/")  # folders that no stage writes

@dataclass(frozen=True)
class System:
    "Data, network, recipes and a list of stages."
    name: str                       # name of its folder below nbs/
    title: str
    stages: tuple[Stage, ...]       # in their order; stages of another system keep their `home`
    modes: dict[str, Mode]
    recipes: dict[str, Recipe]      # `demo` and `tiny` are always there
    failures: dict[str, str]        # tables with a column `error` -> what their rows are
    competition: str = ""           # slug at Kaggle
    weights: tuple[str, ...] = ()   # files that a prediction needs
    commands: str = ""              # module of the system with a typer `app`; "": no commands of its own
    default: bool = False           # whether it is the system that is meant where none is named
    predict: str = ""               # module with `predict_folder` and `print_predictions`; "": no prediction of scans
    read: str = ""                  # module with `read_image`, for a header of its own; "": that of `core/dicom`
    ready: str = ""                 # module with `check_run(run)`, called before the first stage; "": none
    check: str = ""                 # module with `check_data` and `print_check`; "": no check of data sets
    outcomes: str = ""              # module with `outcomes(run)`, see core/comparison; "": runs cannot be compared

    def __post_init__(self):
        if not isinstance(self.stages, tuple):
            raise DeclarationError(f"{self.name}: stages must be a tuple, such as (Stage(...),).")
        own = tuple(s if s.home else replace(s, home=self.name) for s in self.stages)
        object.__setattr__(self, "stages", own)
        names = [s.name for s in own]
        if len(set(names)) < len(names):
            raise DeclarationError(f"{self.name} declares a stage twice: {', '.join(names)}.")
        for mode, each in self.modes.items():
            if unknown := set(each.stages) - set(names):
                wrong = ", ".join(sorted(unknown))
                raise DeclarationError(f"{self.name}: mode {mode} names {wrong}, which is no stage.")
        for key, recipe in self.recipes.items():
            self._check_recipe(key, recipe)
        self._check_reads()

    def _check_recipe(self, key: str, recipe: Recipe):
        sections = {s.section: s.name for s in self.stages if s.section}
        if recipe.mode not in self.modes:
            raise DeclarationError(f"{self.name}: recipe {key} has mode {recipe.mode!r}; "
                                   f"there are {', '.join(self.modes)}.")
        if unknown := set(recipe.skips) - {s.name for s in self.stages}:
            raise DeclarationError(f"{self.name}: recipe {key} skips {', '.join(sorted(unknown))}, which is no stage.")
        if foreign := [k.__name__ for k in recipe.sections if k not in sections]:
            raise DeclarationError(f"{self.name}: recipe {key} has sections of no stage: {', '.join(foreign)}.")
        for kind, section in recipe.sections.items():
            check_section(section, f"{key}.{sections[kind]}")

    def _check_reads(self):
        written = list(OUTSIDE)
        for each in self.stages:
            for name in each.reads:
                if isinstance(name, str) and not any(_covers(w, name) for w in written):
                    raise DeclarationError(f"{self.name}: {each.name} reads {name}, which no stage before it writes.")
            written += [w for w in each.writes if isinstance(w, str)]

    def stage(
        self,
        name: str,
    ) -> Stage:
        "A stage by its name; raises `DeclarationError` that lists the names."
        for each in self.stages:
            if each.name == name:
                return each
        raise DeclarationError(f"{self.name} has no stage {name!r}. It has {', '.join(s.name for s in self.stages)}.")

    def recipe(
        self,
        name: str,
    ) -> Recipe:
        "A recipe by its name; raises `RecipeError` that lists the names."
        if name not in self.recipes:
            raise RecipeError(f"{self.name} has no recipe {name!r}. There are {', '.join(sorted(self.recipes))}.")
        return self.recipes[name]

    def mode(
        self,
        name: str,
    ) -> Mode:
        "A mode by its name; raises `DeclarationError` that lists the names."
        if name not in self.modes:
            raise DeclarationError(f"{self.name} has no mode {name!r}. There are {', '.join(self.modes)}.")
        return self.modes[name]

    def plan(
        self,
        recipe: str,
        mode: str,
    ) -> list[Stage]:  # in order
        "The stages that a recipe runs in a mode."
        chosen = set(self.mode(mode).stages) - set(self.recipe(recipe).skips)
        return [s for s in self.stages if s.name in chosen]

    def label(
        self,
        name: str,   # a stage
    ) -> str:        # such as 03_detector: the stem of its executed notebook
        "Place and name of a stage in this system."
        names = [s.name for s in self.stages]
        return f"{names.index(self.stage(name).name) + 1:02}_{name}"

    def flow(self):
        "Draw the flow of the data: one line a file, from the stage that writes it to those that read it."
        from matplotlib import pyplot as plt
        return _draw(self, plt)

# %%
#| export
def _covers(written: str, read: str) -> bool:
    "Whether a name that is written includes one that is read."
    if written.endswith("/"):
        return read.startswith(written)
    return fnmatch(read, written) or fnmatch(written, read)

def _draw(system: System, plt):
    "The picture of `System.flow`."
    column = {s.name: n for n, s in enumerate(system.stages)}
    written = {described(w): column[s.name] for s in system.stages for w in s.writes}
    readers = {}
    for stage in system.stages:
        for name in map(described, stage.reads):
            source = next((w for w in written if _covers(w, name)), name)
            readers.setdefault(source, []).append(column[stage.name])
    names = [n for n in readers if n not in written] + list(written)  # what comes from outside stands first
    figure, ax = plt.subplots(figsize=(0.75 * len(column) + 4.5, 0.26 * len(names) + 1))
    for y, name in enumerate(names):
        start, ends = written.get(name, -0.5), readers.get(name, [])
        ax.plot([start, max([start, *ends])], [y, y], color="#46719c", lw=1.5)
        ax.plot(ends, [y] * len(ends), "o", color="white", markeredgecolor="#46719c", markersize=6)
        if name in written:
            ax.plot(start, y, "s", color="#46719c", markersize=7)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_xticks(range(len(column)), map(system.label, column), fontsize=8, rotation=35, ha="left")
    ax.set(xlim=(-0.5, len(column) - 0.5), ylim=(len(names) - 0.4, -0.6))
    ax.xaxis.tick_top()
    ax.set_title(f"{system.title}: a square writes, a circle reads", fontsize=9)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    plt.close(figure)
    return figure

# %% [markdown]
# Two stages make the smallest system:

# %%
@dataclass(frozen=True)
class Draw:
    "Numbers of the drawn data set."
    pictures: int = bounded(32, low=2, high=100_000)  # number of pictures

toy = System(
    name="toy", title="Count the dots",
    stages=(Stage("draw", Draw, writes=("pictures/", "labels.csv")),
            Stage("count", reads=("pictures/", "labels.csv"), writes=("counts.csv",))),
    modes={"full": Mode("both stages", ("draw", "count")), "trained": Mode("count alone", ("count",))},
    recipes={"demo": Recipe("32 pictures"), "tiny": Recipe("4 pictures", Draw(pictures=4))},
    failures={"counts.csv": "pictures"})
assert [s.name for s in toy.plan("demo", "full")] == ["draw", "count"] and toy.label("count") == "02_count"
toy.flow()

# %% [markdown]
# A declaration that contradicts itself raises an error that names the fault:

# %%
for changes in ({"recipes": {"demo": Recipe("x", Draw(pictures=1))}}, {"modes": {"full": Mode("all", ("draws",))}},
                {"stages": toy.stages[1:], "modes": {}, "recipes": {}}):
    try:
        replace(toy, **changes)
    except ProjectError as e:
        print(e)

# %% [markdown]
# ## Which systems there are
# A folder of the package with a module `system` is a system.

# %%
#| export
def system_names() -> list[str]:
    "Names of all systems, sorted."
    return sorted(p.parent.name for p in Path(__file__).parents[1].glob("*/system.py"))

def find_system(
    name: str,
) -> System:
    "A system by its name; raises `DeclarationError` that lists the names."
    if name not in system_names():
        raise DeclarationError(f"There is no system {name!r}. There are {', '.join(system_names())}.")
    return importlib.import_module(f"mammo_nb.{name}.system").system

def default_system() -> System:
    "The system that is meant where none is named: the one that declares itself the default."
    return next(system for system in map(find_system, system_names()) if system.default)

# %%
#| hide
assert toy.stage("draw").module == "mammo_nb.toy.draw"

# %% [markdown]
# ---
# [← Recipes](15_recipes.py) · [Runs →](17_runs.py)

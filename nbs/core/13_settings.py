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
# # Settings
# > Where data enters and where results go: one small file, and the environment above it.
#
# The winning system kept its folders in a `SETTINGS.json`; ours are in `settings.ini` beside the README. Nothing else
# in the project knows a path: a run is moved to another disk by editing one line, or for one run only by an environment
# variable.

# %%
#| default_exp core.settings

# %%
#| export
import configparser
import os
from dataclasses import dataclass, fields
from pathlib import Path

from mammo_nb.core.errors import ProjectError

# %%
#| hide
import tempfile

# %% tags=["parameters"]
variable = "MAMMO_NB_RAW"   # the environment variable of `raw`, shown below

# %%
#| export
class SettingsError(ProjectError):
    "settings.ini is missing, or holds a name that no stage reads."

# %%
#| export
@dataclass(frozen=True)
class Paths:
    "The folders of `settings.ini`, absolute."
    raw: Path           # data sets as downloaded, one folder each
    samples: Path       # small data sets, looked in after raw
    processed: Path     # cleaned tables and images of a run
    checkpoints: Path   # training states in progress
    weights: Path       # trained weights that were selected
    submissions: Path   # predictions for a test set
    assets: Path        # small data files shipped with the project; trained/ below it holds weights to keep
    temp: Path          # scratch
    runs: Path          # one folder a run

# %% [markdown]
# The file is looked for from the working directory upwards, as git does, so that a notebook in `nbs/mammo/` and a
# command typed at the root find the same one.

# %%
#| export
def find_settings(
    start: Path | None = None,  # folder to look from; None: the working directory
) -> Path:                      # the nearest settings.ini at or above it
    "Find `settings.ini`."
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "settings.ini").is_file():
            return folder / "settings.ini"
    raise SettingsError(
        f"No settings.ini at or above {start}. Start from a checkout of mammo_nb, or copy its settings.ini there.")

# %% [markdown]
# `{run}` in a path stands for the folder of the run, so that one line decides whether runs share a folder. A misspelt
# name in the file would silently send data elsewhere, so it is an error that lists the names that exist.

# %%
#| export
def _check_names(given: set, settings: Path):
    "Every name known, every name there."
    names = {f.name for f in fields(Paths)}
    for what, wrong in (("unknown", given - names), ("missing", names - given)):
        if wrong:
            raise SettingsError(
                f"{settings.name} [paths]: {', '.join(sorted(wrong))} {what}. The names are {', '.join(sorted(names))}."
            )

def read_paths(
    run_dir: Path | str = "",      # the folder of a run; "": paths that belong to no run
    settings: Path | None = None,  # a settings.ini; None: the nearest one
) -> Paths:                        # absolute folders; they need not exist yet
    "Read `[paths]`; the environment variable `MAMMO_NB_<NAME>` wins over the file."
    settings = Path(settings or find_settings()).resolve()
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(settings, encoding="utf-8")
    given = dict(parser["paths"]) if parser.has_section("paths") else {}
    _check_names(set(given), settings)
    chosen = {
        n: os.environ.get(f"MAMMO_NB_{n.upper()}", p).replace("{run}", str(Path(run_dir).resolve()))
        for n, p in given.items()
    }
    return Paths(**{n: (settings.parent / Path(p).expanduser()).resolve() for n, p in chosen.items()})

# %% [markdown]
# Relative paths hang from the file, not from the working directory:

# %%
folder = Path(tempfile.mkdtemp())
(folder / "settings.ini").write_text("[paths]\n" + "\n".join(
    f"{f.name} = {f.name}" for f in fields(Paths)).replace("= processed", "= {run}/processed"))
paths = read_paths(folder / "runs" / "demo", folder / "settings.ini")
assert paths.raw == folder.resolve() / "raw" and paths.processed == folder.resolve() / "runs" / "demo" / "processed"
{f.name: str(getattr(paths, f.name).relative_to(folder.resolve())) for f in fields(Paths)}

# %% [markdown]
# The environment wins, for one run:

# %%
os.environ[variable] = str(folder / "big_disk")
assert read_paths(settings=folder / "settings.ini").raw.name == "big_disk"
del os.environ[variable]

# %% [markdown]
# And a slip of the pen is told:

# %%
(folder / "settings.ini").write_text("[paths]\nraws = here\n")
try:
    read_paths(settings=folder / "settings.ini")
except SettingsError as e:
    print(e)

# %% [markdown]
# ## The default system
# The section `[run]` names the system that is meant where none is named.

# %%
#| export
def read_run_settings(
    settings: Path | None = None,  # a settings.ini; None: the nearest one
) -> dict[str, str]:               # system
    "Read `[run]`; the environment variable `MAMMO_NB_SYSTEM` wins over the file."
    settings = Path(settings or find_settings()).resolve()
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(settings, encoding="utf-8")
    system = os.environ.get("MAMMO_NB_SYSTEM") or parser.get("run", "system", fallback="")
    if not system:
        raise SettingsError(f"{settings} names no system. Add a section [run] with a line such as `system = mammo`.")
    return {"system": system}

# %%
(folder / "settings.ini").write_text("[run]\nsystem = toy\n")
assert read_run_settings(folder / "settings.ini") == {"system": "toy"}

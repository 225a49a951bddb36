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
# > The folders of data and results: one small file, and environment variables that override it.
#
# The winning system kept its folders in a `SETTINGS.json`; ours are in `settings.ini` beside the README. No other part
# of the project contains a path. Runs are moved to another disk by editing one line, or, for one run only, by an
# environment variable.

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
    "settings.ini is missing, or has wrong names."

# %%
#| export
@dataclass(frozen=True)
class Paths:
    "The folders of `settings.ini`, as absolute paths."
    raw: Path           # downloaded data sets, one folder each
    samples: Path       # small data sets, searched after `raw`
    processed: Path     # cleaned tables and images of a run
    checkpoints: Path   # checkpoints of trainings
    weights: Path       # trained weights that were selected
    submissions: Path   # predictions for a test set
    assets: Path        # small data files of the project; `trained/` below it is for weights that are kept
    temp: Path          # temporary files
    runs: Path          # one folder per run

# %% [markdown]
# The file is searched from the working directory upwards, as git does. So a notebook in a folder below `nbs/` and a
# command at the root of the checkout use the same file.

# %%
#| export
def find_settings(
    start: Path | None = None,  # folder where the search starts; None: the working directory
) -> Path:                      # the nearest settings.ini, in this folder or above it
    "Find `settings.ini`. Raises SettingsError."
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "settings.ini").is_file():
            return folder / "settings.ini"
    raise SettingsError(
        f"No settings.ini in {start} or above it. Work in a checkout of mammo_nb, or copy its settings.ini there.")

# %% [markdown]
# `{run}` in a path is replaced by the folder of the run. So one line decides whether runs share a folder. With a
# misspelt name, data would go to a wrong folder without any message, so it is an error that lists the correct names.

# %%
#| export
def _check_names(given: set, settings: Path):
    "Raise SettingsError unless every name is known and every known name is given."
    names = {f.name for f in fields(Paths)}
    for what, wrong in (("unknown", given - names), ("missing", names - given)):
        if wrong:
            raise SettingsError(
                f"{settings.name} [paths]: {', '.join(sorted(wrong))} {what}. "
                f"The names are {', '.join(sorted(names))}.")

def read_paths(
    run_dir: Path | str = "",      # folder of a run; "": no run
    settings: Path | None = None,  # a settings.ini; None: the nearest one
) -> Paths:                        # absolute folders, which need not exist
    "Read `[paths]`. The environment variable `MAMMO_NB_<NAME>` overrides the file. Raises SettingsError."
    settings = Path(settings or find_settings()).resolve()
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(settings, encoding="utf-8")
    given = dict(parser["paths"]) if parser.has_section("paths") else {}
    _check_names(set(given), settings)
    chosen = {}
    for name, path in given.items():
        text = os.environ.get(f"MAMMO_NB_{name.upper()}", path).replace("{run}", str(Path(run_dir).resolve()))
        chosen[name] = (settings.parent / Path(text).expanduser()).resolve()
    return Paths(**chosen)

# %% [markdown]
# Relative paths start at the folder of the file, not at the working directory:

# %%
folder = Path(tempfile.mkdtemp())
lines = [f"{f.name} = {f.name}" for f in fields(Paths)]
(folder / "settings.ini").write_text("[paths]\n" + "\n".join(lines).replace("= processed", "= {run}/processed"))
paths = read_paths(folder / "runs" / "demo", folder / "settings.ini")
assert paths.raw == folder.resolve() / "raw" and paths.processed == folder.resolve() / "runs" / "demo" / "processed"
{f.name: str(getattr(paths, f.name).relative_to(folder.resolve())) for f in fields(Paths)}

# %% [markdown]
# An environment variable overrides the file for one run:

# %%
os.environ[variable] = str(folder / "big_disk")
assert read_paths(settings=folder / "settings.ini").raw.name == "big_disk"
del os.environ[variable]

# %% [markdown]
# A misspelt name is an error:

# %%
(folder / "settings.ini").write_text("[paths]\nraws = here\n")
try:
    read_paths(settings=folder / "settings.ini")
except SettingsError as e:
    print(e)

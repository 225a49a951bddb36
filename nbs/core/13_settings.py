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
import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Iterator

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import make_folder, mark_of, owner, read_json, sha256, short_hash, state_of, write_json

# %% tags=["parameters"]
variable = "MAMMO_NB_RAW"   # the environment variable of `raw`, shown below

# %%
#| export
class SettingsError(ProjectError):
    "settings.ini is missing, or has wrong names."

class NoDataset(ProjectError):
    "A data set is in none of the folders of settings.ini, or its name is no name of a folder."

# %%
#| export
@dataclass(frozen=True)
class Paths:
    "The folders of `settings.ini`, as absolute paths."
    raw: Path           # downloaded data sets, one folder each
    samples: Path       # small data sets, searched after `raw`; they may be in sub-folders, one a kind of data
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
# ## The folder of a data set
# A recipe names a data set and not its folder. A downloaded set is below `raw`. A small one is below `samples`, or in
# one of its sub-folders.

# %%
#| export
def find_dataset(
    name: str,                     # name of the set's folder
    settings: Path | None = None,  # a settings.ini; None: the nearest one
    origin: str = "",              # how to get the set, a sentence for the error
) -> str:                          # such as raw/vindr or samples/ct/head_ge_28: where `locate` finds it
    "Find the folder of a data set. Raises NoDataset with the folders that were searched."
    if any(c in name for c in "/\\\0*?[") or name in ("", ".", ".."):
        raise NoDataset(
            f"{name!r} is no name of a data set. Use the name of a folder below `raw` or `samples` of settings.ini.")
    paths = read_paths(settings=settings)
    nested = sorted(paths.samples.glob(f"*/{name}")) if paths.samples.is_dir() else []
    places = {f"raw/{name}": paths.raw / name, f"samples/{name}": paths.samples / name}
    places |= {f"samples/{folder.parent.name}/{name}": folder for folder in nested}
    found = next((place for place, folder in places.items() if folder.is_dir()), None)
    if found is None:
        raise NoDataset(
            f"No folder {name} in {paths.raw} (raw of settings.ini) or in {paths.samples} and its sub-folders "
            "(samples). Put the set there, or set its folder, such as MAMMO_NB_RAW=/data make reproduce."
            + f"\n{origin}" * bool(origin))
    return found

# %%
for made in ("samples/ct/head", "samples/breasts", "raw/breasts"):
    (folder / made).mkdir(parents=True)
places = [find_dataset(name, folder / "settings.ini") for name in ("head", "breasts")]
assert places == ["samples/ct/head", "raw/breasts"]
for name in ("heart", "../raw"):
    try:
        find_dataset(name, folder / "settings.ini")
    except NoDataset as e:
        print(e)

# %% [markdown]
# A command that writes one file may keep what it has computed in a hidden folder beside it. Without a file there is
# nothing to keep.

# %%
#| export
@contextmanager
def kept_beside(
    output: Path | str | None,  # a file; None: a temporary folder
) -> Iterator[Path]:            # the folder, which stays if there is a file
    "A folder for what a command computes on the way to its file."
    if output:
        folder = Path(output).absolute().with_name(f".{Path(output).name}")
        with owner(folder):
            yield folder
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

# %%
with kept_beside(folder / "check.csv") as kept:
    (kept / "files.csv.journal").write_text("")
assert kept == folder / ".check.csv" and kept.is_dir()

# %% [markdown]
# ## Trained weights
# Later runs use what an earlier run has trained. A named folder comes first, then `assets/trained`, then the newest
# finished run.

# %%
#| export
def find_trained(
    names,                      # files that must all be there, such as ensemble.onnx and ensemble.json
    named: Path | None = None,  # a folder, or the folder of a run; None or "": search
) -> Path | None:               # the folder that has them; None if none does
    "Find a folder with trained files."
    def whole(folder: Path) -> bool:
        return all((folder / name).is_file() for name in names)

    if named:
        return next((f for f in (Path(named), Path(named) / "weights") if whole(f)), None)
    paths = read_paths()
    if whole(paths.assets / "trained"):
        return paths.assets / "trained"
    finished = [read_paths(report.parent).weights for report in paths.runs.glob("*/report.html")]
    return max(filter(whole, finished), key=lambda f: (f / names[0]).stat().st_mtime, default=None)

# %%
trained = folder / "first" / "weights"
trained.mkdir(parents=True)
for name in ("detector.onnx", "detector.json"):
    (trained / name).write_text("")
assert find_trained(["detector.onnx", "detector.json"], folder / "first") == trained
assert find_trained(["ensemble.onnx"], folder / "first") is None

# %% [markdown]
# ## Ids in place of ids
# `--hash-ids` replaces ids. A plain digest of a number of six digits is found by trying a million of them, so the
# digest has a key (HMAC, RFC 2104). The key belongs to the user and not to the output, which may be given away. The
# same id has the same digest in all outputs of one key.

# %%
#| export
def id_key() -> str:  # hexadecimal
    "The user's key: the file that MAMMO_NB_ID_KEY names, else id.key in the user's settings. It is made once."
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = Path(os.environ.get("MAMMO_NB_ID_KEY") or home / "mammo_nb" / "id.key")
    if not path.is_file():
        make_folder(path.parent)
        new = path.with_name(f".{os.getpid()}.{path.name}")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        try:
            os.link(new, path)   # another process may have made it at the same time
        except FileExistsError:
            pass
        new.unlink()
    if len(key := path.read_bytes()) < 16:
        raise SettingsError(f"{path} is too short for a key. Remove it, and a new one is made.")
    return key.hex()

def hidden_id(
    text: str,   # an id or the name of a file
    key: str,    # from `id_key`
) -> str:        # 12 hexadecimal digits; "" for ""
    "The digest of an id."
    if not text:
        return ""
    return hmac.new(bytes.fromhex(key), text.encode("utf-8", "backslashreplace"), "sha256").hexdigest()[:12]

# %%
with tempfile.TemporaryDirectory() as home:
    os.environ["MAMMO_NB_ID_KEY"] = f"{home}/new/id.key"
    key = id_key()
    assert id_key() == key and os.stat(f"{home}/new/id.key").st_mode & 0o777 == 0o600
    del os.environ["MAMMO_NB_ID_KEY"]
assert hidden_id("10006", key) == hidden_id("10006", key) != hidden_id("10006", key[::-1]) and hidden_id("", key) == ""

# %% [markdown]
# ## The parts of a training
# Detector, networks and thresholds of one training belong together. So the stage that writes the last of them adds
# `parts.json`: an id of the training and the digest of the JSON of each graph. Each of these has the digest of its
# network. A part that was edited, or that comes from another training, is found before anything is predicted.

# %%
#| export
PARTS = "parts.json"

class PartsError(ProjectError):
    "A part of a training that is not as the training has left it."

def parts_of(
    weights: Path,      # a folder of weights
) -> dict[str, str]:    # name of each JSON -> its sha256
    "What predictions depend on."
    own = (PARTS, "manifest.json", "dataset-metadata.json")   # the others are made for Kaggle
    return {path.name: sha256(path) for path in sorted(Path(weights).glob("*.json")) if path.name not in own}

def _graphs(weights: Path) -> dict[str, str]:
    "Name of the JSON of each graph -> its sha256."
    return {path.name: sha256(path) for path in sorted(Path(weights).glob("*.json"))
            if path.with_suffix(".onnx").is_file()}

def seal_parts(
    weights: Path,      # a folder of weights of which nothing is missing
) -> dict:              # parts.json: training, files
    "Write parts.json."
    files = _graphs(weights)
    parts = {"training": short_hash(repr(sorted(files.items()))), "files": files}
    write_json(Path(weights) / PARTS, parts)
    return parts

def sealed(
    weights: Path,      # a folder of weights, perhaps with parts.json
) -> list[str]:         # names of the files that `check_parts` reads
    "List the parts of a training."
    return [PARTS, *_graphs(weights)] if (Path(weights) / PARTS).is_file() else []

def check_parts(
    weights: Path,      # a folder of weights; one without parts.json is not checked
):
    "Raise PartsError if a part is not as the training has left it."
    if not (weights / PARTS).is_file():
        return
    try:
        parts, found = read_json(weights / PARTS), _graphs(weights)
        wrong = [name for name, digest in parts["files"].items() if found.get(name, digest) != digest]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise PartsError(f"{weights / PARTS} is damaged. Copy all files of one training again.") from None
    if wrong:
        raise PartsError(
            f"{', '.join(wrong)} of {weights} was edited, or belongs to another training than {parts['training']}. "
            f"Copy all files of one training again. If you have edited it on purpose, remove {PARTS}.")

# %%
place = Path(tempfile.mkdtemp())
(place / "toy.onnx").write_bytes(b"a graph")
write_json(place / "toy.json", {"threshold": 0.4})
seal_parts(place)
check_parts(place)
write_json(place / "toy.json", {"threshold": 0.5})
try:
    check_parts(place)
except PartsError as e:
    print(str(e).replace(str(place), "weights"))
else:
    raise AssertionError

# %% [markdown]
# A misspelt name is an error:

# %%
(folder / "settings.ini").write_text("[paths]\nraws = here\n")
try:
    read_paths(settings=folder / "settings.ini")
except SettingsError as e:
    print(e)

# %% [markdown]
# ## Many digests
# A folder has a digest too: that of the names and digests of its files. Temporary files and journals are no content. A
# file is read once. After that its mark shows whether it has changed, so that the next check reads no gigabytes.

# %%
#| export
class Digests:
    "Digests of files and folders, with the marks of all files that were read."
    def __init__(self,
        path: Path,         # JSON file of the marks; need not exist
        own: Iterable,      # folders whose files are read; of others only names, sizes and times are taken
    ):
        self.path, self.own = Path(path), {Path(p) for p in own}
        try:
            self.marks = dict(read_json(self.path))
        except (OSError, ValueError, TypeError):   # the first check, or a damaged file: all files are read
            self.marks = {}
        self.new = []       # files that were read

    def _file(self, path: Path) -> str:
        mark = self.marks.get(str(path))
        if mark is None or mark[:4] != state_of(path):
            mark = self.marks[str(path)] = mark_of(path)
            self.new.append(path)
        return mark[4]

    def of(self,
        path: Path,  # absolute; a file or a folder
    ) -> str:
        "sha256 of a file. A folder is described by the number of its files, and a sha256 over all of them."
        if not path.is_dir():
            return self._file(path)
        own, lines = bool(self.own & {path, *path.parents}), []
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            name = file.relative_to(path)
            if name.suffix == ".journal" or any(part.startswith(".") for part in name.parts):
                continue
            state = file.stat()
            what = self._file(file) if own else f"{state.st_size} {state.st_mtime_ns}"
            lines.append(f"{name.as_posix()} {what}\n")
        return f"{len(lines)} files, sha256 {hashlib.sha256(''.join(lines).encode()).hexdigest()}"

    def save(self):
        "Store the marks."
        if self.new:
            write_json(self.path, {file: mark for file, mark in self.marks.items() if os.path.exists(file)})

# %%
(place / "pictures").mkdir()
(place / "pictures" / "1.png").write_text("one")
digests = Digests(place / ".marks.json", [place])
before = digests.of(place / "pictures")
digests.save()
again = Digests(place / ".marks.json", [place])
assert again.of(place / "pictures") == before and not again.new
(place / "pictures" / "1.png").write_text("")
assert again.of(place / "pictures") != before
before

# %% [markdown]
# ---
# [← Files](12_files.py) · [Notebooks →](14_notebooks.py)

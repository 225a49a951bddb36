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
# # Kernels
# > What goes to Kaggle is checked before it is sent.
#
# Kaggle calls a notebook a kernel and takes it with a file of metadata beside it. Much of what can be wrong with that
# file is accepted without a message and found hours later: a title from which Kaggle makes another address, a folder
# that the client leaves out. So the metadata are checked here with the rules of Kaggle, and each message has the form
# that is correct.

# %%
#| default_exp core.kernels

# %%
#| export
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import jupytext
import nbformat

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import read_json, sha256, write_json, write_text
from mammo_nb.core.notebooks import from_percent
from mammo_nb.core.sidecars import read_sidecar
from mammo_nb.core.stages import parameter_names

# %%
#| hide
import tempfile

from mammo_nb.core.settings import find_settings

# %% tags=["parameters"]
user = "somebody"   # owner of the data sets and kernels shown below

# %%
#| export
class KernelError(ProjectError):
    "What Kaggle would not take, or did not finish."

# %% [markdown]
# ## Metadata
# The committed files name no user and no competition: `{user}` and `{competition}` stand for them. A kernel's notebook
# is committed as text, so it is built on the way.

# %%
#| export
DATASET, KERNEL = "dataset-metadata.json", "kernel-metadata.json"

def prepare(
    source: Path,   # a folder of kaggle/ with metadata; that of a kernel has a notebook in percent format
    target: Path,   # the folder that is sent
    user: str,      # name of the user at Kaggle
    competition: str = "",  # name of the competition in its address; only a kernel needs it
) -> Path:          # target
    "Fill in the metadata and build the notebook."
    target.mkdir(parents=True, exist_ok=True)
    name = next((n for n in (DATASET, KERNEL) if (source / n).is_file()), None)
    if name is None:
        raise KernelError(f"{source} has neither {DATASET} nor {KERNEL}: name a folder of kaggle/.")
    text = (source / name).read_text(encoding="utf-8")
    write_text(target / name, text.replace("{user}", user).replace("{competition}", competition))
    if name == KERNEL:
        code = Path(_read(target / name)["code_file"])
        notebook = from_percent((source / code.with_suffix(".py")).read_text(encoding="utf-8"))
        write_text(target / code, nbformat.writes(notebook))
    return target

def _read(path: Path) -> dict:
    "A JSON file with one object."
    try:
        content = read_json(path)
    except ValueError as e:
        raise KernelError(f"{path} is no JSON ({e}): correct it.") from None
    if not isinstance(content, dict):
        raise KernelError(f"{path} must have one object in braces.")
    return content

# %% [markdown]
# ## The rules of Kaggle
# The lengths are those that Kaggle's client checks, or its server where the client does not. The numbers of bytes and
# files are the smallest that its documentation and users report, since Kaggle changes them.

# %%
#| export
MOST_BYTES, MOST_FILES, MOST_CODE = 100e9, 1000, 1_000_000   # of a data set, in a data set, of a notebook
SHAPES = ("NvidiaTeslaT4", "")                                # two T4, or no accelerator
SCANS = (".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".nii", ".gz", ".zip", ".csv")

def slugify(
    title: str,
) -> str:       # lower-case letters and digits with single hyphens between
    "The address that Kaggle makes of a title."
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")

def _bare(source) -> bool:
    "Whether a source is user/slug."
    return isinstance(source, str) and bool(re.fullmatch(r"[A-Za-z0-9_-]+/[a-z0-9]+(-[a-z0-9]+)*", source))

def _names(about: dict, what: str, shortest: int) -> list[str]:
    "Problems with id and title."
    ref, title = about.get("id", ""), about.get("title", "")
    if "{user}" in str(ref):
        return [f"id is {ref!r}: the user's name is filled in by make kaggle-push; send the folder that it writes."]
    if not _bare(ref):
        return [f"id is {ref!r}: it must be user/slug, the slug of lower-case letters, digits and single hyphens, "
                "without address or version."]
    slug, problems = ref.partition("/")[2], []
    for name, text in (("title", title), ("slug", slug)):
        if not shortest <= len(text) <= 50:
            problems.append(f"{name} {text!r} of the {what} has {len(text)} characters: give it {shortest} to 50.")
    if slugify(title) != slug:
        problems.append(
            f"title {title!r} makes the address {slugify(title)!r}, and the id has {slug!r}: Kaggle would make another "
            f"{what} than the one that is named. Write the title {slug.replace('-', ' ')!r}, or the id "
            f"{ref.partition('/')[0]}/{slugify(title)}.")
    return problems

def _is_scan(path: Path) -> bool:
    "Whether a file seems to be data of patients."
    with open(path, "rb") as file:
        return path.suffix.lower() in SCANS or file.read(132)[128:] == b"DICM"

def _file_problem(path: Path) -> str | None:
    "The problem with one entry of a data set."
    if path.is_dir():
        return (f"{path.name}/ is a folder, which the client leaves out without a message: put its files beside "
                f"{DATASET}.")
    if _is_scan(path):
        return (f"{path.name} looks like patients' data (a scan, a picture, an archive or a table), which must not "
                "leave this machine. Remove it.")
    if not path.stat().st_size:
        return f"{path.name} is empty, and Kaggle refuses empty files: make it again."
    return None

def _dataset(folder: Path, about: dict) -> list[str]:
    "Problems with a data set."
    problems, files = _names(about, "data set", 6), [p for p in sorted(folder.iterdir()) if p.name != DATASET]
    licences = about.get("licenses")
    if not (isinstance(licences, list) and len(licences) == 1 and licences[0].get("name")):
        problems.append('licenses must name one: "licenses": [{"name": "other"}].')
    if (subtitle := about.get("subtitle")) and not 20 <= len(subtitle) <= 80:
        problems.append(f"subtitle has {len(subtitle)} characters: give it 20 to 80, or leave it out.")
    problems += filter(None, map(_file_problem, files))
    problems += [
        f"resources names {r.get('path')!r}, which is not in the folder: make it, or take it out."
        for r in about.get("resources", []) if not (folder / str(r.get("path"))).is_file()
    ]
    size = sum(p.stat().st_size for p in files if p.is_file())
    if not files:
        problems.append(
            f"{folder} has nothing but {DATASET}: run make kaggle-wheels or make kaggle-weights first.")
    if len(files) > MOST_FILES:
        problems.append(f"{len(files)} files: Kaggle takes {MOST_FILES}. Leave out what predicting does not need.")
    if size > MOST_BYTES:
        problems.append(
            f"{size / 1e9:.1f} GB: Kaggle takes {MOST_BYTES / 1e9:.0f}. Leave out what predicting does not need.")
    return problems

def _code_problem(code: Path, named) -> str | None:
    "The problem with the notebook of a kernel."
    if not code.is_file():
        return f"code_file is {named!r}, which is not in the folder: send the folder that make kaggle-push writes."
    if code.stat().st_size > MOST_CODE:
        return f"{code.name} has {code.stat().st_size / 1e6:.1f} MB: Kaggle takes 1 MB. Clear its outputs."
    try:
        nbformat.validate(nbformat.read(code, as_version=4))
    except Exception as e:  # nbformat passes on the exceptions of its parts
        return f"{code.name} is no notebook ({type(e).__name__}): build it again."
    return None

def _kernel(folder: Path, about: dict) -> list[str]:
    "Problems with a kernel."
    problem = _code_problem(folder / str(about.get("code_file", "")), about.get("code_file"))
    problems = _names(about, "kernel", 5) + ([problem] if problem else [])
    for key, wanted in (("language", "python"), ("kernel_type", "notebook")):
        if about.get(key) != wanted:
            problems.append(f"{key} is {about.get(key)!r}: write {wanted!r}.")
    for key in ("is_private", "enable_gpu", "enable_internet"):
        if not isinstance(about.get(key), bool):
            problems.append(
                f"{key} is {about.get(key)!r}: write true or false, without quotes; the client replaces a value that "
                "it does not know by its default."
            )
    shape = about.get("machine_shape", "")
    if shape not in SHAPES:
        problems.append(
            f"machine_shape is {shape!r}: write \"NvidiaTeslaT4\" for two T4; the P100 does not run today's image.")
    for key in ("dataset_sources", "kernel_sources"):
        problems += [f"{key} has {s!r}: write user/slug, without address or version."
                     for s in about.get(key, []) if not _bare(s)]
    problems += [
        f"competition_sources has {s!r}: write the competition's name in its address, nothing before it."
        for s in about.get("competition_sources", []) if not s or slugify(s) != s
    ]
    return problems

def metadata_problems(
    folder: Path,   # as it would be sent
) -> list[str]:     # a sentence each; empty if Kaggle would take it
    "Find what is wrong with a data set or kernel, and what to write instead."
    folder = Path(folder)
    for name, judge in ((DATASET, _dataset), (KERNEL, _kernel)):
        if (folder / name).is_file():
            return judge(folder, _read(folder / name))
    return [f"{folder} has neither {DATASET} nor {KERNEL}."]

def check_metadata(
    *folders: Path,
):
    "Raise KernelError if anything is wrong with any of the folders."
    problems = [f"{Path(f).name}: {p}" for f in folders for p in metadata_problems(f)]
    if problems:
        raise KernelError("\n".join(problems))

# %%
root, outbox = find_settings().parent, Path(tempfile.mkdtemp())
sent = prepare(root / "kaggle/submission", outbox / "submission", user, "a-competition")
assert metadata_problems(sent) == []
about = read_json(sent / KERNEL)
assert about["enable_internet"] is False and about["machine_shape"] == "NvidiaTeslaT4"   # two T4, and no network
wrong = {"title": "My submission", "dataset_sources": ["https://www.kaggle.com/datasets/somebody/mammo-nb-wheels"],
         "enable_gpu": "yes"}
write_json(sent / KERNEL, {**about, **wrong})
print(*metadata_problems(sent), sep="\n")
assert len(metadata_problems(sent)) == 3

# %% [markdown]
# ## Weights
# The data set has what a prediction reads, and what proves that it is what was trained: graphs and engines with their
# sidecars, the weights of the networks, and a manifest. The manifest names the system, so that the one submission
# notebook finds its declaration, and has the digest of each file. Pickles and tables are left out.

# %%
#| export
CARRIED = (".onnx", ".data", ".engine", ".safetensors", ".json")

def _networks(files: list[Path], weights: Path) -> list[Path]:
    "Files of weights in folders below, which torch needs where no graph can be run."
    named = [weights / name for p in files if p.suffix == ".json" and p.with_suffix(".onnx") in files
             for name in read_json(p).get("rebuild", {}).get("weights", [])]
    if lost := [p for p in named if not p.is_file()]:
        raise KernelError(f"{lost[0]} is not there, and a JSON beside it names it: copy it from the same run.")
    return [p for p in dict.fromkeys(named) if p not in files]

def gather_weights(
    weights: Path,   # folder with <engine>.onnx, such as runs/demo/weights
    folder: Path,    # made anew
    system: str,     # name of the system
    engine: str,     # name of its engine
) -> dict:           # manifest.json: system, files (name -> bytes and sha256)
    "Gather the files of a data set of weights. Raises EngineError for a graph that does not fit its JSON."
    weights, folder = Path(weights), Path(folder)
    files = sorted(
        p for p in weights.iterdir()
        if p.is_file() and p.suffix in CARRIED and not p.name.startswith(".")
        and p.name not in ("manifest.json", DATASET))
    files += _networks(files, weights)
    found = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
    for p in files:
        if p.suffix in (".onnx", ".engine"):
            read_sidecar(p)
    if f"{engine}.onnx" not in found:
        raise KernelError(f"{weights} has no {engine}.onnx: name the weights of a finished run of {system}, such as "
                          "WEIGHTS=runs/demo/weights.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for p in files:
        shutil.copy(p, folder)
    manifest = {"system": system, "files": found}
    write_json(folder / "manifest.json", manifest)
    return manifest

# %% [markdown]
# ## A stage as a kernel
# Those who train at Kaggle push stages one by one. Such a kernel begins with a cell that installs the package, sets the
# folders of the data by `MAMMO_NB_*`, and copies what the kernels before it have written. It may use the internet: only
# a submission may not.

# %%
#| export
_OPENING = '''import os
import shutil
import subprocess
import sys
inputs, work = "/kaggle/input", "/kaggle/working"
{mounts}
check_wheels(mounted("mammo-nb-wheels"))
wheel = next(mounted("mammo-nb-wheels").glob("mammo_nb-*.whl"))
subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--find-links", str(wheel.parent),
                f"{{wheel}}[train]"], check=True)
Path(work, "settings.ini").write_text({settings!r})
for kernel in {before!r}:
    shutil.copytree(mounted(kernel) / "runs", Path(work, "runs"), dirs_exist_ok=True)
for name in {competitions!r}:
    os.environ["MAMMO_NB_RAW"] = str(mounted(name).parent)
os.environ |= {{"MAMMO_NB_SAMPLES": inputs, "MAMMO_NB_RUNS": str(Path(work, "runs"))}}
os.chdir(work)'''

_CHOSEN = '''from mammo_nb.core.runs import Run
from mammo_nb.core.systems import find_system
run_dir = str(Run.create({folder!r}, find_system({system!r}), {recipe!r}).folder)'''

def kernel_name(
    notebook: Path,  # nbs/<system>/NN_word.py
) -> str:            # such as mammo-nb-mammo-04-crops
    "The slug of a stage's kernel."
    return slugify(f"mammo nb {notebook.parent.name} {notebook.stem}")

def _mounts(root: Path) -> str:
    "The cells of the submission that find what is attached, and that check the wheels."
    text = (root / "kaggle/submission/submission.py").read_text(encoding="utf-8")
    cells = jupytext.reads(text, fmt="py:percent").cells
    return "\n\n".join(c.source for c in cells if {"mounts", "digests"} & set(c.metadata.get("tags", [])))

def stage_kernel(
    root: Path,                    # the checkout
    notebook: Path,                # nbs/<system>/NN_word.py
    target: Path,                  # the folder to send
    user: str,                     # name of the user at Kaggle
    system: str,                   # name of the system whose run the stage belongs to
    recipe: str = "demo",          # recipe of the run
    before: Iterable[Path] = (),   # notebooks whose kernels have written what this one reads
    competitions: Iterable[str] = (),  # competitions that it reads, by their names at Kaggle
    gpu: bool = False,             # two T4
) -> Path:                         # target
    "Make a kernel of a stage notebook: metadata, an opening cell, and a cell that creates the run."
    root, notebook, competitions = Path(root), Path(notebook), list(competitions)
    before = [kernel_name(Path(b)) for b in before]
    opening = _OPENING.format(mounts=_mounts(root), settings=(root / "settings.ini").read_text(encoding="utf-8"),
                              before=before, competitions=competitions)
    if "run_dir" not in parameter_names(notebook):
        raise KernelError(f"{notebook} is no stage: it has no run_dir among its parameters. Name one of "
                          "nbs/*/NN_word.py that README lists as a stage.")
    nb = from_percent(notebook.read_text(encoding="utf-8"))
    at = next(i for i, c in enumerate(nb.cells) if "parameters" in c.metadata.get("tags", []))
    chosen = _CHOSEN.format(folder=f"/kaggle/working/runs/{recipe}", system=system, recipe=recipe)
    nb.cells.insert(at + 1, nbformat.v4.new_code_cell(chosen, id="chosen"))
    nb.cells.insert(0, nbformat.v4.new_code_cell(opening, id="opening"))
    name = kernel_name(notebook)
    target.mkdir(parents=True, exist_ok=True)
    write_text(target / f"{name}.ipynb", nbformat.writes(nb))
    about = {
        "id": f"{user}/{name}", "title": name.replace("-", " "), "code_file": f"{name}.ipynb", "language": "python",
        "kernel_type": "notebook", "is_private": True, "enable_gpu": gpu, "enable_internet": True,
        "dataset_sources": [f"{user}/mammo-nb-wheels"], "competition_sources": competitions,
        "kernel_sources": [f"{user}/{b}" for b in before], "model_sources": [],
        **({"machine_shape": "NvidiaTeslaT4"} if gpu else {})
    }
    write_json(target / KERNEL, about)
    return target

# %% [markdown]
# ## What came out
# A kernel of a stage, with its opening cell:

# %%
folds, crops = (next((root / "nbs").glob(f"*/*_{word}.py")) for word in ("folds", "crops"))
kernel = stage_kernel(root, folds, outbox / "folds", user, folds.parent.name, before=[crops])
assert metadata_problems(kernel) == []
assert read_json(kernel / KERNEL)["kernel_sources"] == [f"somebody/{kernel_name(crops)}"]
print(nbformat.read(kernel / f"{kernel_name(folds)}.ipynb", as_version=4).cells[0].source[:420])

# %% [markdown]
# ---
# [← Wheels](64_wheels.py) · [Publishing →](66_publishing.py)

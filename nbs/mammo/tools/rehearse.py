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
# # Rehearse
# > The submission's own notebook, on a hidden test set of the worst kind, with nothing but what Kaggle will have.
#
# A code competition tells little about a submission that failed: it timed out, threw an exception, or was scored with
# an error, and the day's try is gone. So the whole of it is played here first: an empty environment, the wheels, no
# network, inputs that cannot be written to, patients as the public test set has none, and at the end the questions that
# the scorer would ask.

# %%
#| default_exp mammo.tools.rehearse

# %%
#| export
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mammo_nb.core.files import write_csv, write_json, write_text
from mammo_nb.core.kernels import prepare
from mammo_nb.core.wheels import needed, python_of, read_pins
from mammo_nb.mammo.drawing.machines import MACHINES
from mammo_nb.mammo.phantom import TEST_COLUMNS, make_image, plan

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt

from mammo_nb.core.dicom import read_frame
from mammo_nb.core.settings import find_settings

# %% tags=["parameters"]
frame = (320, 256)   # rows, columns of the drawn frames

# %%
#| export
class RehearsalError(Exception):
    "The submission would fail at Kaggle; says where."

# %% [markdown]
# ## A hidden test set
# The public test set of the competition is one patient with four images. The hidden one held everything: patients with
# a single image and with seven, a machine that no training patient was seen on. Here one file is cut off as well, and
# the tables have their rows in different orders.

# %%
#| export
def hidden_test(
    root: Path,            # a competition's folder, made here
    frame: tuple[int, int] = (320, 256),  # rows, columns
    seed: int = 7,
) -> dict:                 # what is odd about it: single, seven, unseen (patient ids), corrupt (file)
    "test.csv, sample_submission.csv and test_images/ as a hidden test set might be."
    images = plan("test", 6, 0.3, seed)
    patients = list(dict.fromkeys(i["patient_id"] for i in images))
    of = {p: [i for i in images if i["patient_id"] == p] for p in patients}
    single, seven, unseen, broken = patients[:4]
    of[single] = of[single][:1]
    of[seven] = (of[seven] * 2)[:7]
    of[seven] = [{**image, "image_id": f"{image['image_id']}{k}", "entropy": (*image["entropy"], k), "number": k + 1}
                 for k, image in enumerate(of[seven])]
    stranger = replace(MACHINES[2], machine_id=9999)
    of[unseen] = [{**image, "machine": stranger, "machine_id": stranger.machine_id, "site_id": 9}
                  for image in of[unseen]]
    images = [image for p in patients for image in of[p]]
    for image in images:
        make_image(root, image, frame, 1.)
    shutil.rmtree(root / "truth")  # Kaggle does not tell
    path = root / "test_images" / broken / f"{of[broken][0]['image_id']}.dcm"
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 3])
    rng, table = np.random.default_rng(seed), pd.DataFrame(images)
    table["prediction_id"] = table["patient_id"] + "_" + table["laterality"]
    write_csv(root / "test.csv", table[TEST_COLUMNS].iloc[rng.permutation(len(table))])
    ids = table["prediction_id"].unique()
    write_csv(root / "sample_submission.csv",
              pd.DataFrame({"prediction_id": ids[rng.permutation(len(ids))], "cancer": .02}))
    return {"single": single, "seven": seven, "unseen": unseen, "corrupt": path.relative_to(root).as_posix()}

# %%
root = Path(tempfile.mkdtemp()) / "rsna-breast-cancer-detection"
odd = hidden_test(root, frame)
test, sample = (pd.read_csv(root / f, dtype={"patient_id": str, "image_id": str})
                for f in ("test.csv", "sample_submission.csv"))
count = test["patient_id"].value_counts()
assert count[odd["single"]] == 1 and count[odd["seven"]] == 7 and set(test.loc[test["patient_id"] == odd["unseen"],
                                                                               "machine_id"]) == {9999}
assert set(sample["prediction_id"]) == set(
    test["prediction_id"]) and sample["prediction_id"].tolist() != test["prediction_id"].drop_duplicates().tolist()
assert all((root / "test_images" / r.patient_id / f"{r.image_id}.dcm").is_file()
           for r in test.itertuples()) and test["image_id"].is_unique
seven = test[test["patient_id"] == odd["seven"]]
fig, axes = plt.subplots(1, 7, figsize=(12, 2.6))
for axis, row in zip(axes, seven.itertuples()):
    axis.imshow(read_frame(root / "test_images" / row.patient_id / f"{row.image_id}.dcm").decode().pixels, cmap="gray")
    axis.set_title(f"{row.laterality} {row.view}")
    axis.axis("off")

# %% [markdown]
# ## The scorer's questions
# The scorer joins the file to its labels by id and reads a number from each row. Whatever it would stumble over is
# found here, and all of it at once.

# %%
#| export
def scoring_problems(
    submission: Path,  # submission.csv
    sample: Path,      # sample_submission.csv
) -> list[str]:        # a sentence each; empty if it would be scored
    "What the scorer would refuse."
    if not Path(submission).is_file():
        return [f"There is no {Path(submission).name}."]
    try:
        ours, wanted = (pd.read_csv(p, dtype=str, keep_default_na=False) for p in (submission, sample))
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as e:
        return [f"{Path(submission).name} is no table: {e}."]
    if list(ours.columns) != list(wanted.columns):
        return [f"The columns are {', '.join(ours.columns)}, not {', '.join(wanted.columns)}."]
    key, value = wanted.columns
    said = []
    for what, ids in (("twice", ours.loc[ours[key].duplicated(),
                                         key]), ("that nobody asked for", ours.loc[~ours[key].isin(wanted[key]), key])):
        if len(ids):
            said.append(f"{len(ids)} {key} {what}, such as {ids.iloc[0]}.")
    if missing := sorted(set(wanted[key]) - set(ours[key])):
        said.append(f"{len(missing)} of {len(wanted)} {key} are missing, such as {missing[0]}.")
    numbers = pd.to_numeric(ours[value], errors="coerce")
    wrong = ours[~(numbers.between(0, 1))]   # not a number is not between, either
    if len(wrong):
        said.append(
            f"{len(wrong)} values of {value} are no number from 0 to 1, such as {wrong[value].iloc[0]!r} for "
            f"{wrong[key].iloc[0]}."
        )
    return said

# %%
wrong = root.parent / "wrong.csv"
good = sample.assign(cancer=0)
write_csv(wrong, good)
assert scoring_problems(wrong, root / "sample_submission.csv") == []
bad = pd.concat([good.iloc[1:], good.iloc[[1]]]).astype({"cancer": object})
bad.iloc[0, 1] = "nan"
write_csv(wrong, bad)
found = scoring_problems(wrong, root / "sample_submission.csv")
assert len(found) == 3   # one twice, one missing, one no number
print(*found, sep="\n")

# %% [markdown]
# ## Only what Kaggle has
# A new environment sees the packages of `image.txt` and what these need themselves, as links into the environment of
# the project, and nothing else of it. Whatever else the submission imports must come from the wheels, or the import
# fails, here as there. The versions are those of this machine, not of the image: that the image's fit is what the
# closure check is for.

# %%
#| export
def _distributions() -> dict:
    return {
        str(canonicalize_name(d.metadata["Name"])): d for d in importlib.metadata.distributions() if d.metadata["Name"]
    }

def visible_packages(
    image: Iterable[str],  # normalised names
) -> set[str]:             # those of them that are installed here, and what they need
    "What of this environment stands for the image."
    here, todo, seen = _distributions(), [Requirement(name) for name in image], set()
    while todo:
        wanted = todo.pop()
        name = str(canonicalize_name(wanted.name))
        if name not in here or (name, *sorted(wanted.extras)) in seen:
            continue
        seen.add((name, *sorted(wanted.extras)))
        todo += needed(map(Requirement, here[name].requires or []), wanted.extras)
    return {name for name, *_ in seen}

@cache
def _owners() -> dict:
    "Path below site-packages -> one of the packages that have files there, and the names of all."
    owners = {}
    for name, d in _distributions().items():
        for file in d.files or []:
            if ".." in file.parts or "__pycache__" in file.parts or file.is_absolute():
                continue
            for k in range(len(file.parts)):
                owners.setdefault(file.parts[:k + 1], (d, set()))[1].add(name)
    return owners

def link_packages(
    names: set[str],   # from `visible_packages`
    folder: Path,      # links go here
):
    """Links to the files of some packages; a folder that they share with others is made anew, with links to what is
    theirs."""
    owners, linked = _owners() if names else {}, set()
    for parts, (d, whose) in sorted(owners.items()):
        if not whose & names or any(parts[:k] in linked for k in range(1, len(parts))):
            continue
        there, here = Path(d.locate_file(Path(*parts))), folder.joinpath(*parts)
        if whose <= names and there.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(there)
            linked.add(parts)

def _kernel(folder: Path) -> Path:
    "Tell Jupyter of an environment; its Python."
    kernel = {
        "argv": [str(folder / "bin/python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3", "language": "python", "env": {"PYTHONPATH": ""}
    }
    write_json(folder / "share/jupyter/kernels/python3/kernel.json", kernel)
    return folder / "bin/python"

def make_environment(
    folder: Path,          # the environment, made here
    image: Iterable[str],  # normalised names
) -> Path:                 # its Python
    "An environment with the image's packages and nothing else."
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = folder / "image"
    link_packages(visible_packages(image), packages)
    write_text(next(folder.glob("lib/python3*/site-packages")) / "image.pth", f"{packages}\n")
    return _kernel(folder)

# %% [markdown]
# Where there is a Python of the image's version, 8 GB and some minutes, the image's own versions can be installed
# instead:

# %%
#| export
def exact_environment(
    folder: Path,            # the environment, made here
    image: dict[str, str],   # normalised name -> version, `python` included
    python: str,             # a Python of the image's version
) -> Path:                   # the environment's Python
    "An environment with the image's packages in the image's versions; from the network."
    found = subprocess.run([python, "-c", "import sys; print('{}.{}'.format(*sys.version_info))"], capture_output=True,
                           text=True).stdout.strip() if shutil.which(python) else "none"
    if found != python_of(image):
        raise RehearsalError(
            f"{python} is {found}, and the image has Python {python_of(image)}: name one of that version, such as "
            f"EXACT=/usr/bin/python{python_of(image)}."
        )
    subprocess.run([python, "-m", "venv", folder], check=True)
    pins = [f"{name}=={version}" for name, version in image.items() if name != "python"]
    done = subprocess.run(
        [folder / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *pins],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RehearsalError(f"The image's packages could not be installed: {' '.join(done.stdout.splitlines()[-2:])}")
    return _kernel(folder)

# %%
try:
    exact_environment(Path("never/made"), {"python": "2.7.18"}, sys.executable)
except RehearsalError as e:
    print(str(e).replace(sys.executable, "this Python"))

# %% [markdown]
# ## No network, no writing
# Where the system lets us, the notebook runs in name spaces of its own (`unshare`): one without any network, and one in
# which the inputs are mounted read-only. Where it does not, a hook in the environment refuses connections beyond this
# machine, and the inputs lose their permission to be written to.

# %%
#| export
_REFUSE = '''
import socket
def _local(function):
    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(("127.", "::1", "localhost")): raise OSError("the rehearsal has no network")
        return function(self, address)
    return connect
socket.socket.connect, socket.socket.connect_ex = _local(socket.socket.connect), _local(socket.socket.connect_ex)
'''

def _unshare() -> list[str]:
    "How this system gives a process its own network and mounts; empty if it does not."
    how = ["unshare", "--net", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    try:
        return how if subprocess.run([*how, "true"], capture_output=True).returncode == 0 else []
    except FileNotFoundError:
        return []

def isolated(
    command: list,     # to run
    inputs: Path,      # must not be written to
    python: Path,      # of `make_environment`
) -> tuple[list, str]: # the command to run instead, and how it is shut off
    "Shut a command off."
    if how := _unshare():
        bind = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        return [*how, "sh", "-c", bind, str(inputs), *map(str, command)], "network and mounts of its own (unshare)"
    site = next(python.parents[1].glob("lib/python3*/site-packages"))
    write_text(site / "sitecustomize.py", _REFUSE)
    for path in [inputs, *inputs.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    return list(map(str, command)), "a hook that refuses connections, inputs without write permission"

# %%
with tempfile.TemporaryDirectory() as scratch:
    inputs = Path(scratch) / "input"
    inputs.mkdir()
    command, how = isolated(
        ["sh", "-c", f"touch {inputs}/x || echo refused; cat /proc/net/dev | tail -n +3 | cut -d: -f1"], inputs,
        Path(sys.executable)) if _unshare() else (["echo", "refused"], "")
    said = subprocess.run(command, capture_output=True, text=True).stdout.split()
    assert said[0] == "refused" and set(said[1:]) <= {"lo"} and not list(inputs.iterdir())
print(how or "unshare is not to be had here")

# %% [markdown]
# ## Run the stage
# The notebook is the one that is pushed, with other folders for its parameters. papermill runs outside, the notebook's
# process inside.

# %%
#| export
NESTED = {"competition": "competitions/{name}", "dataset": "datasets/somebody/{name}"}
FLAT = {"competition": "{name}", "dataset": "{name}"}

def lay_out(
    folder: Path,       # stands for /kaggle/input
    wheels: Path,
    weights: Path,
    layout: dict = NESTED,  # or FLAT, as Kaggle used to mount
) -> dict:              # what is odd about the test set, see `hidden_test`
    "The inputs of the submission where Kaggle mounts them."
    for kind, name, source in (("dataset", "mammo-nb-wheels", wheels), ("dataset", "mammo-nb-weights", weights)):
        shutil.copytree(source, folder / layout[kind].format(name=name))
    return hidden_test(folder / layout["competition"].format(name="rsna-breast-cancer-detection"))

_RUN = """import json, sys
from pathlib import Path
from mammo_nb.core.stages import StageError, execute
try: execute(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
except StageError as e: sys.exit(str(e))"""

def rehearse(
    root: Path,              # the checkout
    wheels: Path,            # for this Python, from `make_wheels`
    weights: Path,           # from `gather_weights`
    scratch: Path,           # made anew, and kept for a look
    layout: dict = NESTED,   # or FLAT
    extras: str = "[kaggle]",  # of our wheel
    exact: str = "",         # a Python of the image's version; "": this one, and the versions that are here
) -> Path:                   # submission.csv
    "Run the submission as Kaggle would; an error if it would fail there."
    root, scratch = Path(root).resolve(), Path(scratch).resolve()
    shutil.rmtree(scratch, ignore_errors=True)
    inputs, work = scratch / "input", scratch / "working"
    image = read_pins(root / "kaggle/wheels/image.txt")
    python = exact_environment(scratch / "venv", image, exact) if exact else make_environment(scratch / "venv", image)
    odd = lay_out(inputs, Path(wheels), Path(weights), layout)
    prepare(root / "kaggle/submission", work, "somebody")
    shutil.copy(root / "kaggle/submission/submission.py", work)
    parameters = {"inputs": str(inputs), "output": str(work), "extras": extras}
    command, how = isolated(
        [sys.executable, "-c", _RUN, work / "submission.py", work / "executed.ipynb",
         json.dumps(parameters)], inputs, python)
    print(f"rehearsal with {how}", flush=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "MAMMO_NB_", "KAGGLE", "VIRTUAL_ENV"))}
    environment = {
        **clean, "PYTHONPATH": str(root), "JUPYTER_PATH": str(scratch / "venv/share/jupyter"), "HOME": str(scratch),
        "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "IPYTHONDIR": str(scratch / "ipython")
    }
    done = subprocess.run(command, cwd=work, env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    for path in [inputs, *inputs.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)  # so that they can be removed
    if done.returncode:
        said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout).splitlines()
        raise RehearsalError("The submission fails:\n" + textwrap.indent("\n".join(said[-25:]), "  "))
    sample = next(inputs.rglob("sample_submission.csv"))
    problems = scoring_problems(work / "submission.csv", sample)
    images = pd.read_csv(work / "test_per_image.csv")
    failed = images.loc[images["error"].notna(), "file"].tolist()
    if failed != [odd["corrupt"]]:
        problems.append(
            f"Errors are reported for {', '.join(failed) or 'no file'}, where {odd['corrupt']} alone is damaged.")
    if problems:
        raise RehearsalError("The submission would be refused: " + " ".join(problems))
    return work / "submission.csv"

# %% [markdown]
# ## What came out
# `make kaggle-rehearse` runs it in full. What would stand for the image here, and how much of this environment would
# not be seen:

# %%
image = read_pins(find_settings().parent / "kaggle/wheels/image.txt")
seen = visible_packages(image)
assert {"torch", "numpy", "ipykernel"
        } <= seen and not {"onnxruntime", "pydicom", "imagecodecs", "nbdev", "papermill"} & seen
print(f"{len(seen)} packages seen, {len(_distributions()) - len(seen)} not")

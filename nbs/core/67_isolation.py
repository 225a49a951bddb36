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
# # Isolation
# > An environment with the packages of Kaggle's image and nothing else, and a process without network.
#
# A submission that works here can fail at Kaggle, because this machine has more packages, a network and a writable
# input folder. So [the rehearsal](68_rehearse.py) runs in an environment that has none of these.

# %%
#| default_exp core.isolation

# %%
#| export
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import write_json, write_text
from mammo_nb.core.wheels import needed, python_of

# %%
#| hide
import tempfile

from mammo_nb.core.settings import find_settings
from mammo_nb.core.wheels import read_pins

# %% tags=["parameters"]
root = ""   # the checkout; "" finds it from here

# %%
#| export
class IsolationError(ProjectError):
    "An environment that cannot be made."

# %% [markdown]
# ## Only the packages of the image
# A new environment has the packages of `image.txt` and their requirements, as links into the environment of the
# project. Whatever else the submission imports must come from the wheels, or the import fails, here as at Kaggle. The
# versions are those of this machine. Whether the versions of the image fit is checked with [the wheels](64_wheels.py).

# %%
#| export
def _distributions() -> dict:
    "Normalised name -> distribution, of this environment."
    found = [d for d in importlib.metadata.distributions() if d.metadata["Name"]]
    return {str(canonicalize_name(d.metadata["Name"])): d for d in found}

def visible_packages(
    image: Iterable[str],  # normalised names
) -> set[str]:             # those that are installed here, and their requirements
    "The packages of this environment that stand for the image."
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
    "Path below site-packages -> (a package that has files there, the names of all such packages)."
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
    folder: Path,      # the links go here
):
    "Link the files of some packages; a folder that they share with other packages is made anew."
    owners, linked = _owners() if names else {}, set()
    for parts, (d, whose) in sorted(owners.items()):
        if not whose & names or any(parts[:k] in linked for k in range(1, len(parts))):
            continue
        there, here = Path(d.locate_file(Path(*parts))), folder.joinpath(*parts)
        if whose <= names and there.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(there)
            linked.add(parts)

def _register(folder: Path) -> Path:
    "Register an environment as Jupyter's Python kernel; returns its Python."
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
    "Make an environment with the packages of the image and nothing else."
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = folder / "image"
    link_packages(visible_packages(image), packages)
    write_text(next(folder.glob("lib/python3*/site-packages")) / "image.pth", f"{packages}\n")
    return _register(folder)

# %% [markdown]
# With a Python of the image's version, a network, 8 GB of disk and some minutes, the versions of the image can be
# installed instead:

# %%
#| export
def _version_of(python: str) -> str:
    "The version of a Python, such as 3.12; none if there is no such program."
    if not shutil.which(python):
        return "none"
    code = "import sys; print('{}.{}'.format(*sys.version_info))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()

def exact_environment(
    folder: Path,            # the environment, made here
    image: dict[str, str],   # normalised name -> version, `python` included
    python: str,             # a Python of the image's version
) -> Path:                   # the environment's Python
    "Make an environment with the image's packages in the image's versions, from the network."
    found = _version_of(python)
    if found != python_of(image):
        raise IsolationError(
            f"{python} has version {found}, and the image has Python {python_of(image)}. Name one of that version, "
            f"such as EXACT=/usr/bin/python{python_of(image)}.")
    subprocess.run([python, "-m", "venv", folder], check=True)
    pins = [f"{name}=={version}" for name, version in image.items() if name != "python"]
    done = subprocess.run(
        [folder / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *pins],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise IsolationError(
            f"The packages of the image could not be installed. pip wrote: {' '.join(done.stdout.splitlines()[-2:])}")
    return _register(folder)

# %%
try:
    exact_environment(Path("never/made"), {"python": "2.7.18"}, sys.executable)
except IsolationError as e:
    print(str(e).replace(sys.executable, "this Python"))

# %% [markdown]
# ## No network, no writing
# Where the system permits it, the notebook runs in its own name spaces (`unshare`): a network name space without any
# network, and a mount name space with read-only inputs. Elsewhere an audit hook (PEP 578) in the environment refuses
# what Python sends to other machines, by any kind of socket, and the inputs lose their write permission. Such a hook
# holds no program that is not Python, and no library that calls the system itself. So the rehearsal says that it is not
# isolated.

# %%
#| export
_REFUSE = '''
import sys
def _hook(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        own, address = arguments
        if own.family == 1 or address is None:   # a socket of this machine; one that is connected already
            return
        if not str(address[0]).startswith(("127.", "::1", "localhost")):
            raise OSError("the rehearsal has no network")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        if str(arguments[0] or "localhost") not in ("127.0.0.1", "0.0.0.0", "::1", "localhost"):
            raise OSError("the rehearsal has no network")
    elif event == "socket.__new__" and (arguments[1] == 17 or arguments[2] & 0xF == 3):   # packets, raw
        raise OSError("the rehearsal has no network")
sys.addaudithook(_hook)
'''

def _unshare() -> list[str]:
    "The command that gives a process its own network and mounts; empty if the system does not permit it."
    how = ["unshare", "--net", "--mount"]
    if os.geteuid():
        how.append("--map-root-user")
    try:
        permitted = subprocess.run([*how, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        permitted = False
    return how if permitted else []

def isolated(
    command: list,     # to run
    inputs: Path,      # folder that must not be written to
    python: Path,      # from `make_environment`
) -> tuple[list, str]: # the command to run instead, and how it is isolated
    "Isolate a command from the network and from its inputs."
    if how := _unshare():
        bind = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        return [*how, "sh", "-c", bind, str(inputs), *map(str, command)], "its own network and mounts (unshare)"
    site = next(python.parents[1].glob("lib/python3*/site-packages"))
    write_text(site / "sitecustomize.py", _REFUSE)
    for path in [inputs, *inputs.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    told = "not isolated: a hook refuses what Python sends, and inputs have no write permission"
    return list(map(str, command)), told

# %%
if _unshare():
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch) / "input"
        inputs.mkdir()
        code = f"touch {inputs}/x || echo refused; cat /proc/net/dev | tail -n +3 | cut -d: -f1"
        command, how = isolated(["sh", "-c", code], inputs, Path(sys.executable))
        printed = subprocess.run(command, capture_output=True, text=True).stdout.split()
        assert printed[0] == "refused" and set(printed[1:]) <= {"lo"} and not list(inputs.iterdir())
    print(how)
else:
    print("unshare is not permitted here")

# %% [markdown]
# ## What came out
# The number of packages of this environment that the rehearsal has and has not:

# %%
root = Path(root or find_settings().parent)
seen = visible_packages(read_pins(root / "kaggle/wheels/image.txt"))
assert {"torch", "numpy", "ipykernel"} <= seen
assert not {"onnxruntime", "pydicom", "imagecodecs", "nbdev", "papermill"} & seen
print(f"{len(seen)} packages seen, {len(_distributions()) - len(seen)} not seen")

# %% [markdown]
# ---
# [← Publishing](66_publishing.py) · [Rehearse →](68_rehearse.py)

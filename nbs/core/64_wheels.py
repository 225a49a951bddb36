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
# # Wheels
# > All packages that a notebook without internet has to install, in one folder.
#
# A submission runs on a machine without a package index, and a missing package would be noticed after the deadline. So
# the packages are a data set of their own: our wheel and all that it needs to predict, without the packages of the
# machine's image. Each requirement of each wheel is followed to prove that nothing is missing.

# %%
#| default_exp core.wheels

# %%
#| export
import email
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import sha256, write_text

# %%
#| hide
import pandas as pd

# %% tags=["parameters"]
root = ""   # the checkout; "" finds it from here

# %%
#| hide
root = Path(root or next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "settings.ini").is_file()))

# %%
#| export
class WheelError(ProjectError):
    "A folder of wheels that would not install, or that could not be made."

# %% [markdown]
# ## The packages of the image
# `kaggle/wheels/image.txt` lists the packages of Kaggle's image that the submission uses, with their versions and where
# these were seen. `python` is one of them, and its version alone decides for which Python the wheels are made.
# `lock.txt` lists the packages of the data set, with digests. Both have lines in pip's format.

# %%
#| export
def read_pins(
    path: Path,          # lines `name==version`; --hash and comments may follow
) -> dict[str, str]:     # normalised name -> version
    "Read packages and their versions."
    text = Path(path).read_text(encoding="utf-8").splitlines()
    lines = [line.partition("#")[0].partition(" ")[0].strip() for line in text if not line.startswith((" ", "#"))]
    pins = [line.partition("==") for line in lines if line]
    if wrong := [name for name, _, version in pins if not version]:
        raise WheelError(f"{Path(path).name}: {wrong[0]!r} is not of the form name==version.")
    return {str(canonicalize_name(name)): version for name, _, version in pins}

def python_of(
    image: dict[str, str],  # from `read_pins`
) -> str:                   # such as 3.12
    "The version of the image's Python."
    if "python" not in image:
        raise WheelError(
            "The list of the image's packages has no line python==3.x. Add it: the wheels are made for this Python.")
    return ".".join(image["python"].split(".")[:2])

# %%
image, lock = (read_pins(root / "kaggle/wheels" / name) for name in ("image.txt", "lock.txt"))
assert python_of(image) == "3.12" and "torch" in image and "torch" not in lock and not set(image) & set(lock)
print(f"{len(image)} packages of the image are used, {len(lock)} are in the data set: {', '.join(lock)}")

# %% [markdown]
# ## A wheel
# The name of a wheel has its Python and system, and its metadata have its requirements. The tag of a Linux wheel names
# the oldest C library that it runs with. Kaggle's image is an Ubuntu 22.04, which has glibc 2.35.

# %%
#| export
GLIBC = 35  # 2.35

def _platforms() -> list[str]:
    numbered = [f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC, 4, -1)]
    return [*numbered, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]

def _tags(python: str) -> set:
    version = tuple(map(int, python.split(".")))
    return {
        *cpython_tags(version, platforms=_platforms()),
        *compatible_tags(version, f"cp{version[0]}{version[1]}", _platforms())
    }

def environment_of(
    python: str,           # such as 3.12
) -> dict[str, str]:       # for packaging's markers
    "The values of environment markers on the machine at Kaggle, whatever machine this is."
    return {
        **default_environment(), "python_version": python, "python_full_version": f"{python}.0",
        "implementation_name": "cpython", "platform_python_implementation": "CPython", "os_name": "posix",
        "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"
    }

@dataclass(frozen=True)
class Wheel:
    "The metadata of a wheel."
    path: Path
    name: str          # normalised
    version: str
    requires: tuple    # packaging's Requirement
    python: str        # versions that it accepts, such as >=3.10
    tags: frozenset    # packaging's Tag

def read_wheel(
    path: Path,    # NAME-VERSION-TAGS.whl
) -> Wheel:
    "Read name, version and requirements (PEP 427, core metadata)."
    try:
        name, version, _, tags = parse_wheel_filename(Path(path).name)
        with zipfile.ZipFile(path) as archive:
            inside = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
            about = email.message_from_bytes(archive.read(inside))
    except (ValueError, StopIteration, zipfile.BadZipFile) as e:
        raise WheelError(
            f"{Path(path).name} is no wheel ({e or 'it has no METADATA'}). Remove it and make the folder again."
        ) from None
    return Wheel(Path(path), str(name), str(version), tuple(map(Requirement, about.get_all("Requires-Dist", []))),
                 about.get("Requires-Python", ""), frozenset(tags))

# %% [markdown]
# ## Completeness
# Every requirement is followed from what the notebook installs, with the markers of the image
# (`python_version < "3.13"`). Each must be met by a wheel of the folder or by the image, in a version that fits. This
# also finds what pip would find too late: two versions of a package, a wheel for another Python, a wheel that would
# replace a package of the image.

# %%
#| export
def needed(
    requires: Iterable[Requirement],
    extras: Iterable[str],             # extras that are installed
    environment: dict[str, str] = {},  # from `environment_of`; other markers have the values of this machine
) -> list[Requirement]:
    "The requirements that apply on a machine."
    return [
        r for r in requires
        if not r.marker or any(r.marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras))
    ]

def _follow(todo: list, offered: dict, marked: dict) -> list[str]:
    "Problems with requirements and with the requirements of what meets them."
    seen, problems = set(), []
    while todo:
        wanted, by = todo.pop()
        name = str(canonicalize_name(wanted.name))
        if (key := (name, str(wanted.specifier), *sorted(wanted.extras))) in seen:
            continue
        seen.add(key)
        found = offered.get(name)
        version = found.version if isinstance(found, Wheel) else found
        if version is None:
            problems.append(f"{by} needs {wanted}, which neither the folder nor the image has: add it to lock.txt "
                            "(mammo-nb kaggle-wheels --lock).")
        elif not wanted.specifier.contains(version, prereleases=True):
            place = "the folder" if isinstance(found, Wheel) else "the image"
            problems.append(f"{by} needs {wanted}, and {place} has {version}: bring another version of {name} or of "
                            f"{by}.")
        if not isinstance(found, Wheel):
            continue
        todo += [(r, f"{found.name} {found.version}") for r in needed(found.requires, wanted.extras, marked)]
    return problems

def closure_problems(
    folder: Path,            # of wheels
    image: dict[str, str],   # packages of the image, `python` included
    roots: Iterable[str],    # what the notebook installs
) -> list[str]:              # a sentence each; empty if nothing is missing
    "Find what would fail when the wheels are installed over the image without an index."
    wheels, python = [read_wheel(p) for p in sorted(Path(folder).glob("*.whl"))], python_of(image)
    accepted, problems = _tags(python), []
    for w in wheels:
        if not w.tags & accepted:
            problems.append(f"{w.path.name} is not for CPython {python} on Linux x86_64 with glibc 2.{GLIBC}: make the "
                            "folder again.")
        if not SpecifierSet(w.python).contains(f"{python}.0"):
            problems.append(
                f"{w.path.name} wants Python {w.python}, the image has {python}: pin an older version in lock.txt.")
        if sum(o.name == w.name for o in wheels) > 1:
            problems.append(f"{w.path.name} is not the only {w.name} in the folder: make it anew, from an empty one.")
        if w.name in image:
            problems.append(f"{w.path.name} would replace {w.name} {image[w.name]} of the image: leave the wheel out, "
                            "or take the package out of image.txt.")
    offered = {**{n: v for n, v in image.items() if n != "python"}, **{w.name: w for w in wheels}}
    return problems + _follow([(Requirement(r), "the notebook") for r in roots], offered, environment_of(python))

# %% [markdown]
# A folder of invented wheels, one of which needs a package that is nowhere:

# %%
def make_wheel(folder, name, version, *requires, tags="py3-none-any"):
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {r}" for r in requires]
    with zipfile.ZipFile(Path(folder) / f"{name}-{version}-{tags}.whl", "w") as archive:
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n\n")

folder, held = Path(tempfile.mkdtemp()), {"python": "3.12.13", "numpy": "2.0.2"}
make_wheel(folder, "ours", "1.0", "numpy>=1.26", "codec>=2; python_version >= '3.12'", "gpu; extra == 'nvidia'")
make_wheel(folder, "codec", "2.1", "numpy>=2.1", tags="cp312-cp312-manylinux_2_28_x86_64")
found = closure_problems(folder, held, ["ours[nvidia]"])
assert len(found) == 2 and "gpu" in found[0] and "numpy>=2.1" in found[1]
assert closure_problems(folder, {**held, "numpy": "2.2.0"}, ["ours"]) == []
print(*found, sep="\n")

# %% [markdown]
# ## Versions
# pip's resolver chooses the versions, with the image's packages as constraints, and reports what it would install
# without downloading it. The packages of the image are left out, and the others become the lock, with the digests of
# their files. Two packages of NVIDIA are published as sources only, a few lines of Python each. They are listed in
# `source.txt` and built here.

# %%
#| export
def _pip(*arguments, cwd: Path | None = None):
    "Run pip; raises WheelError with its last two lines."
    done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)], cwd=cwd,
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.startswith("ERROR")] or done.stdout.splitlines()
        raise WheelError(f"pip {arguments[0]} failed: {' '.join(lines[-2:])}")

def _for_target(python: str) -> list[str]:
    return [
        "--only-binary=:all:", "--python-version", python, "--implementation", "cp",
        *(f"--platform={p}" for p in _platforms())
    ]

def build_wheel(
    root: Path,     # the checkout
    folder: Path,   # the wheel goes here
):
    "Build our own wheel from the package as it is."
    with tempfile.TemporaryDirectory() as copy:  # setuptools leaves files where it builds
        shutil.copytree(root / "mammo_nb", Path(copy) / "mammo_nb", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(root / name, copy)
        _pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, copy)

def build_sources(
    listed: Path,   # source.txt: lines with digests in pip's format
    folder: Path,   # wheels go here
):
    "Build wheels of packages that are published as sources only."
    _pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--require-hashes", "--requirement", listed,
         "--wheel-dir", folder)

def resolve(
    roots: Iterable[str],    # what the notebook installs
    folder: Path,            # wheels that are in no index: ours, and those of `build_sources`
    image_list: Path,        # image.txt
) -> list[tuple]:            # name, version, SHA-256; sorted
    "Choose the packages that the data set must have: all that are needed and not in the image."
    image, report = read_pins(image_list), Path(folder) / "report.json"
    limits = Path(folder) / "constraints.txt"
    write_text(limits, "".join(f"{n}=={v}\n" for n, v in image.items() if n != "python"))
    try:
        _pip("install", "--dry-run", "--quiet", "--ignore-installed", "--report", report, "--target", folder,
             *_for_target(python_of(image)), "--find-links", folder, "--constraint", limits, *roots)
        chosen = json.loads(report.read_text(encoding="utf-8"))["install"]
    finally:
        for leftover in (report, limits):
            leftover.unlink(missing_ok=True)
    found = {str(canonicalize_name(c["metadata"]["name"])): c for c in chosen}
    kept, todo, marked = set(), [Requirement(r) for r in roots], environment_of(python_of(image))
    while todo:  # the image has the requirements of its own packages
        wanted = todo.pop()
        name = str(canonicalize_name(wanted.name))
        if name in image or (name, *sorted(wanted.extras)) in kept:
            continue
        kept.add((name, *sorted(wanted.extras)))
        todo += needed(map(Requirement, found[name]["metadata"].get("requires_dist", [])), wanted.extras, marked)
    made = {read_wheel(p).name for p in Path(folder).glob("*.whl")}
    return [(name, found[name]["metadata"]["version"], found[name]["download_info"]["archive_info"]["hashes"]["sha256"])
            for name in sorted({k[0] for k in kept} - made)]

def write_lock(
    path: Path,         # lock.txt
    rows: list[tuple],  # from `resolve`
    note: str,          # its first line
):
    "Write names, versions and digests in pip's format."
    lines = [f"{name}=={version} --hash=sha256:{digest}\n" for name, version, digest in rows]
    write_text(path, f"# {note}\n" + "".join(lines))

# %% [markdown]
# ## The folder
# The wheels are made for the image's Python, whatever Python runs here. The rehearsal needs wheels of the same versions
# for this Python as well. Those are other files, so the digests of the lock do not apply to them.

# %%
#| export
def download_wheels(
    lock: Path,           # lock.txt
    folder: Path,         # wheels go here
    python: str,          # of the machine that will install them, such as 3.12
    hashed: bool = True,  # whether the lock's digests are for this Python
):
    "Download the packages of the lock for a Python."
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as names:
        names.write("".join(f"{n}=={v}\n" for n, v in read_pins(lock).items()))
        names.flush()
        _pip("download", "--quiet", "--no-deps", *_for_target(python), "--dest", folder, "--requirement",
             *((lock, "--require-hashes") if hashed else (names.name,)))

def write_sums(
    folder: Path,   # of wheels and constraints.txt
):
    "Write SHA256SUMS, which the submission compares with the files."
    files = sorted([*folder.glob("*.whl"), *folder.glob("constraints.txt")])
    write_text(folder / "SHA256SUMS", "".join(f"{sha256(p)}  {p.name}\n" for p in files))

def make_wheels(
    root: Path,                # the checkout
    folder: Path,              # made anew
    roots: Iterable[str],      # what the notebook installs
    python: str | None = None, # None means the image's
) -> list[Wheel]:
    "Make a folder of wheels that installs without an index; raises WheelError if anything is missing."
    place, folder = Path(root) / "kaggle" / "wheels", Path(folder)
    image, scratch = read_pins(place / "image.txt"), folder.with_name(f".{os.getpid()}.{folder.name}")
    target = python or python_of(image)
    try:
        scratch.mkdir(parents=True)
        build_wheel(Path(root), scratch)
        build_sources(place / "source.txt", scratch)
        download_wheels(place / "lock.txt", scratch, target, hashed=target == python_of(image))
        problems = closure_problems(scratch, {**image, "python": target}, roots)
        if problems:
            raise WheelError("The wheels would not install on the image:\n" + "\n".join(problems))
        wheels = [read_wheel(p) for p in sorted(scratch.glob("*.whl"))]
        # without these constraints pip would keep a package that the image has, in any version
        write_text(scratch / "constraints.txt", "".join(f"{w.name}=={w.version}\n" for w in wheels))
        write_sums(scratch)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [read_wheel(p) for p in sorted(folder.glob("*.whl"))]

def print_wheels(
    wheels: list[Wheel],
):
    "Print the size of each wheel and their sum."
    for w in wheels:
        print(f"{w.path.stat().st_size / 1e6:8.2f} MB  {w.path.name}")
    total = sum(w.path.stat().st_size for w in wheels)
    print(f"{total / 1e6:8.2f} MB  {len(wheels)} wheels in {wheels[0].path.parent}")

# %% [markdown]
# ## What came out
# Our own wheel, built from this checkout, and its requirements for predicting:

# %%
build_wheel(root, folder)
ours = next(w for w in map(read_wheel, folder.glob("*.whl")) if w.name == "mammo-nb")
print_wheels([ours])
needs = [r for r in ours.requires if not r.marker or r.marker.evaluate({**environment_of("3.12"), "extra": ""})]
# these make and run notebooks; a submission only predicts
assert not {"papermill", "nbdev", "jupytext", "kaggle"} & {r.name for r in needs}
pd.DataFrame({
    "needs": map(str, needs),
    "comes from": ["the image" if canonicalize_name(r.name) in image else "the data set" for r in needs]
})

# %% [markdown]
# ---
# [← Submit](63_submit.py) · [Kernels →](65_kernels.py)

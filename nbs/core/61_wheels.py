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
# # Wheels
# > Everything a notebook without internet has to install, in one folder, and nothing that is there already.
#
# A submission runs on a machine that reaches no package index. What it misses it cannot fetch, and it is told so after
# the deadline. So the packages travel as a data set of their own: our wheel and all that it needs to predict, less what
# the machine's image holds. Whether that is really all is not left to luck: each requirement of each wheel is looked
# up.

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

from mammo_nb.core.files import sha256, write_text

# %%
#| hide
import pandas as pd

# %% tags=["parameters"]
root = ""   # the checkout; "": found from here

# %%
#| hide
root = Path(root or next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "settings.ini").is_file()))

# %%
#| export
class WheelError(Exception):
    "A folder of wheels that would not install, or could not be made; says what to do."

# %% [markdown]
# ## What the image holds
# `kaggle/wheels/image.txt` lists the packages of Kaggle's image that we count on, with their versions and where these
# were seen; `python` is one of them, and its version is the only place that says for which Python the wheels are.
# `lock.txt` lists what we bring, with digests. Both are lines as pip knows them.

# %%
#| export
def read_pins(
    path: Path,          # lines `name==version`, --hash and comments may follow
) -> dict[str, str]:     # normalised name -> version
    "Packages and their versions."
    lines = [
        line.partition("#")[0].partition(" ")[0].strip()
        for line in Path(path).read_text(encoding="utf-8").splitlines() if not line.startswith((" ", "#"))
    ]
    pins = [line.partition("==") for line in lines if line]
    if wrong := [name for name, _, version in pins if not version]:
        raise WheelError(f"{Path(path).name}: {wrong[0]!r} is not of the form name==version.")
    return {str(canonicalize_name(name)): version for name, _, version in pins}

def python_of(
    image: dict[str, str],  # from `read_pins`
) -> str:                   # such as 3.12
    "The image's Python."
    if "python" not in image:
        raise WheelError(
            "The list of what the image holds has no line python==3.x, which says for which Python the wheels are.")
    return ".".join(image["python"].split(".")[:2])

# %%
image, lock = (read_pins(root / "kaggle/wheels" / name) for name in ("image.txt", "lock.txt"))
assert python_of(image) == "3.12" and "torch" in image and "torch" not in lock and not set(image) & set(lock)
print(f"{len(image)} of the image's packages are counted on, {len(lock)} are brought: {', '.join(lock)}")

# %% [markdown]
# ## A wheel
# A wheel says in its name for which Python and system it is, and inside what it needs. Linux wheels are tagged by the
# oldest C library that they run with; Kaggle's image is an Ubuntu 22.04, which has glibc 2.35.

# %%
#| export
GLIBC = 35  # 2.35

def _platforms() -> list[str]:
    return [f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC, 4, -1)
            ] + ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]

def _tags(python: str) -> set:
    version = tuple(map(int, python.split(".")))
    return {
        *cpython_tags(version, platforms=_platforms()),
        *compatible_tags(version, f"cp{version[0]}{version[1]}", _platforms())
    }

def environment_of(
    python: str,           # such as 3.12
) -> dict[str, str]:       # for packaging's markers
    "What requirements may ask about the machine there, whatever machine this is."
    return {
        **default_environment(), "python_version": python, "python_full_version": f"{python}.0",
        "implementation_name": "cpython", "platform_python_implementation": "CPython", "os_name": "posix",
        "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"
    }

@dataclass(frozen=True)
class Wheel:
    "What a wheel says of itself."
    path: Path
    name: str          # normalised
    version: str
    requires: tuple    # packaging's Requirement
    python: str        # versions that it accepts, such as >=3.10
    tags: frozenset    # packaging's Tag

def read_wheel(
    path: Path,    # NAME-VERSION-TAGS.whl
) -> Wheel:
    "Name, version and requirements (PEP 427, core metadata)."
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
# ## Is it whole?
# From what the notebook installs, every requirement is followed, with the questions answered as the image would
# (`python_version < "3.13"`). Each must be met by a wheel of the folder or by the image, in a version that fits. That
# also finds what pip would find too late: two versions of a package, a wheel for another Python, a wheel that would put
# another version over one of the image's.

# %%
#| export
def needed(
    requires: Iterable[Requirement],
    extras: Iterable[str],             # that are asked for
    environment: dict[str, str] = {},  # from `environment_of`; what is missing is as here
) -> list[Requirement]:
    "Requirements that hold on a machine."
    return [
        r for r in requires
        if not r.marker or any(r.marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras))
    ]

def _follow(todo: list, offered: dict, marked: dict) -> list[str]:
    "Problems with requirements, these and those that follow from them."
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
            problems.append(
                f"{by} needs {wanted}, which neither the folder nor the image has: add it to lock.txt (mammo-nb "
                "kaggle-wheels --lock)."
            )
        elif not wanted.specifier.contains(version, prereleases=True):
            problems.append(
                f"{by} needs {wanted}, and {'the folder' if isinstance(found, Wheel) else 'the image'} has {version}: "
                f"bring another version of {name} or of {by}."
            )
        if not isinstance(found, Wheel):
            continue
        todo += [(r, f"{found.name} {found.version}") for r in needed(found.requires, wanted.extras, marked)]
    return problems

def closure_problems(
    folder: Path,            # of wheels
    image: dict[str, str],   # what the image holds, `python` included
    roots: Iterable[str],    # what the notebook installs
) -> list[str]:              # a sentence each; empty if the folder is whole
    "What would go wrong when the wheels are installed over the image without an index."
    wheels, python = [read_wheel(p) for p in sorted(Path(folder).glob("*.whl"))], python_of(image)
    wearable, problems = _tags(python), []
    for w in wheels:
        if not w.tags & wearable:
            problems.append(
                f"{w.path.name} is not for CPython {python} on Linux x86_64 with glibc 2.{GLIBC}: make the folder "
                "again."
            )
        if not SpecifierSet(w.python).contains(f"{python}.0"):
            problems.append(
                f"{w.path.name} wants Python {w.python}, the image has {python}: pin an older version in lock.txt.")
        if sum(o.name == w.name for o in wheels) > 1:
            problems.append(f"{w.path.name} is not the only {w.name} in the folder: make it anew, from an empty one.")
        if w.name in image:
            problems.append(
                f"{w.path.name} would take the place of {w.name} {image[w.name]} of the image: leave it out, or the "
                "package out of image.txt."
            )
    offered = {**{n: v for n, v in image.items() if n != "python"}, **{w.name: w for w in wheels}}
    return problems + _follow([(Requirement(r), "the notebook") for r in roots], offered, environment_of(python))

# %% [markdown]
# A folder of made-up wheels, one of which needs what nobody brings:

# %%
def make_wheel(folder, name, version, *requires, tags="py3-none-any"):
    with zipfile.ZipFile(Path(folder) / f"{name}-{version}-{tags}.whl", "w") as archive:
        archive.writestr(
            f"{name}-{version}.dist-info/METADATA", "\n".join([
                "Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}"
                                                                                   for r in requires)
            ]) + "\n\n")

folder, held = Path(tempfile.mkdtemp()), {"python": "3.12.13", "numpy": "2.0.2"}
make_wheel(folder, "ours", "1.0", "numpy>=1.26", "codec>=2; python_version >= '3.12'", "gpu; extra == 'nvidia'")
make_wheel(folder, "codec", "2.1", "numpy>=2.1", tags="cp312-cp312-manylinux_2_28_x86_64")
found = closure_problems(folder, held, ["ours[nvidia]"])
assert len(found) == 2 and "gpu" in found[0] and "numpy>=2.1" in found[1]
assert closure_problems(folder, {**held, "numpy": "2.2.0"}, ["ours"]) == []
print(*found, sep="\n")

# %% [markdown]
# ## Which versions
# pip's own resolver chooses, with the image's packages as constraints, and tells what it would install without
# downloading it. What is in the image is left out, the rest is the lock, with the digests of its files. Two packages of
# NVIDIA's are published as sources only, a few lines of Python each; they are named in `source.txt` and built here.

# %%
#| export
def _pip(*arguments, cwd: Path | None = None):
    "Run pip; its last words become the error."
    done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)], cwd=cwd,
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.startswith("ERROR")] or done.stdout.splitlines()
        raise WheelError(f"pip {arguments[0]}: {' '.join(said[-2:])}")

def _for_target(python: str) -> list[str]:
    return [
        "--only-binary=:all:", "--python-version", python, "--implementation", "cp",
        *(f"--platform={p}" for p in _platforms())
    ]

def build_wheel(
    root: Path,     # the checkout
    folder: Path,   # the wheel goes here
):
    "Our own wheel, of the package as it stands."
    with tempfile.TemporaryDirectory() as copy:  # setuptools leaves traces where it builds
        shutil.copytree(root / "mammo_nb", Path(copy) / "mammo_nb", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(root / name, copy)
        _pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, copy)

def build_sources(
    listed: Path,   # source.txt: lines with digests, as pip wants them
    folder: Path,   # wheels go here
):
    "Wheels of packages that are published as sources only."
    _pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--require-hashes", "--requirement", listed,
         "--wheel-dir", folder)

def resolve(
    roots: Iterable[str],    # what the notebook installs
    folder: Path,            # wheels that are on no index: ours, and those of `build_sources`
    image_list: Path,        # image.txt
) -> list[tuple]:            # name, version, SHA-256; sorted
    "What must be brought, less what the image holds."
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
    while todo:  # what the image's packages need themselves, the image has
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
    "Names, versions and digests, as pip reads them."
    write_text(path,
               f"# {note}\n" + "".join(f"{name}=={version} --hash=sha256:{digest}\n" for name, version, digest in rows))

# %% [markdown]
# ## The folder
# Wheels for the image's Python whatever Python runs here. The rehearsal asks for those of this Python as well, of the
# same versions; their files are others, so the digests of the lock do not apply.

# %%
#| export
def download_wheels(
    lock: Path,           # lock.txt
    folder: Path,         # wheels go here
    python: str,          # of the machine that will install them, such as 3.12
    hashed: bool = True,  # the lock's digests are for this Python
):
    "Fetch what the lock names, for that Python."
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as names:
        names.write("".join(f"{n}=={v}\n" for n, v in read_pins(lock).items()))
        names.flush()
        _pip("download", "--quiet", "--no-deps", *_for_target(python), "--dest", folder, "--requirement",
             *((lock, "--require-hashes") if hashed else (names.name,)))

def make_wheels(
    root: Path,                # the checkout
    folder: Path,              # made anew
    roots: Iterable[str],      # what the notebook installs
    python: str | None = None, # None: the image's
) -> list[Wheel]:
    "A folder of wheels that installs without an index, or an error that says what is missing."
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
        write_text(scratch / "SHA256SUMS", "".join(f"{sha256(w.path)}  {w.path.name}\n" for w in wheels))
        # else pip would keep an image's own pydicom, of whatever version
        write_text(scratch / "constraints.txt", "".join(f"{w.name}=={w.version}\n" for w in wheels))
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [read_wheel(p) for p in sorted(folder.glob("*.whl"))]

def print_wheels(
    wheels: list[Wheel],
):
    "A line a wheel, and their sum."
    for w in wheels:
        print(f"{w.path.stat().st_size / 1e6:8.2f} MB  {w.path.name}")
    print(
        f"{sum(w.path.stat().st_size for w in wheels) / 1e6:8.2f} MB  {len(wheels)} wheels in {wheels[0].path.parent}")

# %% [markdown]
# ## What came out
# Our own wheel, built from this checkout, and what it asks for when nothing but predictions are wanted:

# %%
build_wheel(root, folder)
ours = next(w for w in map(read_wheel, folder.glob("*.whl")) if w.name == "mammo-nb")
print_wheels([ours])
needs = [r for r in ours.requires if not r.marker or r.marker.evaluate({**environment_of("3.12"), "extra": ""})]
# these make notebooks; Kaggle only predicts
assert not {"papermill", "nbdev", "jupytext", "kaggle"} & {r.name for r in needs}
pd.DataFrame({
    "needs": map(str, needs),
    "brought by": ["the image" if canonicalize_name(r.name) in image else "the wheels" for r in needs]
})

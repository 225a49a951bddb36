"`.ci/ready.py`, which `make install` runs first: what is missing is named, with the command of the distribution."
import importlib.util
import re
import subprocess
import sys
from importlib import metadata

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

spec = importlib.util.spec_from_file_location("ready", ROOT / ".ci/ready.py")
ready = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ready)


@pytest.fixture(autouse=True)
def one_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(ready.tempfile, "gettempdir", lambda: str(tmp_path))


def test_nothing_is_missing_where_the_tests_run(tmp_path):
    assert ready.problems(tmp_path / "not/yet/there", ready.distribution(), free=12e9) == []


@pytest.mark.parametrize("gigabytes, code", [(0, 0), (1e9, 1)])
def test_the_script_ends_with_1_only_where_something_is_missing(tmp_path, gigabytes, code):
    script = tmp_path / "ready.py"
    script.write_text((ROOT / ".ci/ready.py").read_text().replace("GIGABYTES = 8", f"GIGABYTES = {gigabytes}"))
    ended = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert (ended.returncode, bool(ended.stderr)) == (code, bool(code)), ended.stderr


@pytest.mark.parametrize("changes, said", [
    ({"version": (3, 9, 1)}, "needs Python 3.10 to 3.13, and this is 3.9"),
    ({"free": 9e9}, "has 9.0 GB free, and the installation needs about 11"),
    ({"libraries": ("libmoon.so.1",)}, "OpenCV needs libmoon.so.1, which this system lacks: apt-get install libgl1"),
    ({"libraries": ("libmoon.so.1",), "names": ["rocky", "rhel"]}, "dnf install mesa-libGL"),
    ({"libraries": ("libmoon.so.1",), "names": ["plan9"]}, "install the packages of your system"),
])
def test_what_is_missing_is_named_with_its_remedy(tmp_path, changes, said):
    found = ready.problems(**{"folder": tmp_path, "names": ["debian"], "free": 12e9, **changes})
    assert len(found) == 1 and said in found[0]


def test_every_package_is_locked_with_the_digests_of_its_files():
    lines = (ROOT / "requirements.lock").read_text().replace("\\\n", " ").splitlines()
    locked = {}
    for line in filter(lambda text: not text.startswith("#"), lines):
        requirement, *digests = line.split(" --hash=")
        assert digests and all(re.fullmatch("sha256:[0-9a-f]{64}", d.strip()) for d in digests), line
        found = Requirement(requirement.strip())
        locked[canonicalize_name(found.name)] = found
    todo, seen = [Requirement("mammo-nb[dev]")], set()
    while todo:
        wanted = todo.pop()
        key = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if key in seen:
            continue
        seen.add(key)
        if key[0] != "mammo-nb":
            assert wanted.specifier.contains(next(iter(locked[key[0]].specifier)).version), wanted
        for text in metadata.requires(wanted.name) or []:
            needed = Requirement(text)
            if not needed.marker or any(needed.marker.evaluate({"extra": e}) for e in ("", *wanted.extras)):
                todo.append(needed)
    assert len(seen) > 150


def test_make_install_takes_the_locked_files_only():
    done = subprocess.run(["make", "-n", "-B", "install", "VENV=v"], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    assert "--no-deps --require-hashes --requirement requirements.lock" in done.stdout
    assert "--no-index --no-build-isolation --editable ." in done.stdout


def test_a_python_without_venv_gets_the_package(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)
    monkeypatch.setattr(ready.importlib, "import_module", missing)
    found = ready.problems(tmp_path, ["ubuntu", "debian"], version=(3, 12, 3), free=12e9)
    assert found == ["Python has no module venv: apt-get install python3.12-venv"]

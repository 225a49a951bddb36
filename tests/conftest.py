"What several test files need: the checkout, real scans where there are any, and a copy of the checkout to run in."
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_scans():
    "The folder of real mammograms; a test that asks for it is skipped where it is absent."
    if not (SHARED / "mammo").is_dir():
        pytest.skip("needs real scans in ../shared/data/mammo")
    return SHARED / "mammo"


def copy_checkout(to: Path, without: list[str] = ()) -> Path:
    "The sources of the checkout in another folder, as git would see them, without built notebooks and some systems."
    for name in ("nbs", "mammo_nb", "assets"):
        shutil.copytree(
            ROOT / name, to / name, ignore=shutil.ignore_patterns("*.ipynb", "__pycache__", "trained", ".exported",
                                                                  ".ipynb_checkpoints", *without))
    for name in ("pyproject.toml", "settings.ini", "Makefile", "requirements.lock", "README.md"):
        shutil.copy(ROOT / name, to / name)
    return to


def make(checkout: Path, *arguments: str, **popen) -> subprocess.CompletedProcess:
    "Run make in a copy, with the environment that runs the tests; modules come from the copy."
    venv = Path(sys.prefix)
    return subprocess.run(["make", *arguments, f"VENV={venv}", "-o", f"{venv}/.installed"], cwd=checkout, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env={**os.environ, "PYTHONPATH": str(checkout)}, **popen)


@contextmanager
def local_cluster(**options):
    """A Dask cluster of this machine's processes. It leaves thread counts in the environment, which would reach the
    trainings of later tests."""
    distributed = pytest.importorskip("distributed")
    before = dict(os.environ)
    try:
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0",
                                      **options) as cluster:
            yield cluster
    finally:
        os.environ.clear()
        os.environ.update(before)

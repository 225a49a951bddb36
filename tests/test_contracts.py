"What a stage declares that it reads and writes is what it really reads and writes: the smallest run of each system."
import os
from fnmatch import fnmatch
from importlib import import_module

import pytest
from conftest import ROOT

from mammo_nb.core import runs
from mammo_nb.core.runs import Run
from mammo_nb.core.systems import find_system, system_names

OWN = ("manifest.json", "run.json")  # of the run itself, not of a stage


def files_of(run: Run) -> list:
    "Files of a run, without hidden ones, journals and those that belong to the run itself."
    return [p for p in run.folder.rglob("*") if p.is_file() and p.name not in OWN and p.suffix != ".journal"
            and not any(part.startswith(".") for part in p.relative_to(run.folder).parts)]


def covered(run: Run, path, names: list[str]) -> bool:
    "Whether one of the declared names stands for a file: by its own name, by a pattern, or by a folder above it."
    for name in names:
        place = run.path(name)
        if any(fnmatch(str(p), str(place).rstrip("/")) for p in (path, *path.parents)):
            return True
    return False


@pytest.fixture(scope="module")
def reading_leaves_a_trace(tmp_path_factory):
    probe = tmp_path_factory.mktemp("probe") / "x"
    probe.write_text("x")
    os.utime(probe, (1, 1))
    probe.read_text()
    if probe.stat().st_atime == 1:
        pytest.skip("this file system does not record when a file was read")


@pytest.mark.parametrize("name", system_names())
def test_a_stage_reads_and_writes_what_it_declares(name, tmp_path, monkeypatch, reading_leaves_a_trace):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(runs, "_digests", lambda *_: {})  # reads every declared file
    run = Run.create(tmp_path / "run", find_system(name), "tiny")
    for stage in run.plan:
        module = import_module(stage.module)
        if not hasattr(module, "run_stage"):
            continue  # a page that only shows what the others have written
        before = {}
        for path in files_of(run):
            os.utime(path, (1, path.stat().st_mtime))
            before[path] = path.stat().st_mtime_ns
        module.run_stage(run)
        after = files_of(run)
        written = [p for p in after if before.get(p) != p.stat().st_mtime_ns]
        read = [p for p in before if p.exists() and p.stat().st_atime != 1 and p not in written]
        reads, writes = run.names(stage.reads), run.names(stage.writes)
        show = lambda paths: [p.relative_to(run.folder).as_posix() for p in paths][:5]
        assert not (extra := [p for p in written if not covered(run, p, writes)]), f"{stage.name} writes {show(extra)}"
        assert not (extra := [p for p in read if not covered(run, p, reads)]), f"{stage.name} reads {show(extra)}"
        inside = [n for n in reads if run.path(n).is_relative_to(run.folder)]
        unread = [n for n in inside if not any(covered(run, p, [n]) for p in read)]
        assert not unread, f"{stage.name} declares {unread} and does not read it"

"What survives a power failure, a full disk, a killed run and a second one, and what a finished folder costs again."
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from mammo_nb.core import files, parallel
from mammo_nb.core.files import StorageError, owner, replacing, sha256, write_csv, write_json
from mammo_nb.core.parallel import SYNCED, map_files
from mammo_nb.mammo.tools.crops import crop_folder


class Disk:
    "A disk that keeps only what was synced: the contents of files, and the names in folders."
    def __init__(self, monkeypatch):
        self.contents, self.folders = {}, {}  # inode -> bytes; folder -> name -> inode
        real = os.fsync

        def fsync(descriptor):
            real(descriptor)
            path, state = os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor)
            if stat.S_ISDIR(state.st_mode):
                self.folders[path] = {e.name: (e.inode(), e.is_dir()) for e in os.scandir(path)}
            else:
                self.contents[state.st_ino] = Path(path).read_bytes()
        monkeypatch.setattr(os, "fsync", fsync)

    def fail(self, folder: Path) -> dict:
        "What a power failure leaves of a folder: path -> bytes; a file whose content was not synced is empty."
        kept = {}
        for name, (inode, is_folder) in self.folders.get(str(folder), {}).items():
            if is_folder:
                kept |= self.fail(folder / name)
            else:
                kept[folder / name] = self.contents.get(inode, b"")
        return kept


def restore(folder: Path, kept: dict):
    shutil.rmtree(folder)
    folder.mkdir()
    for path, content in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


class PowerFailure(BaseException):
    pass


def draw(item):
    with replacing(Path(item["out"]) / "pictures" / f"{item['file']}.txt") as temporary:
        temporary.write_text(f"picture {item['x'] ** 2}\n" * 50)
    return {"square": item["x"] ** 2}


@pytest.mark.parametrize("pause, least", [(0, 12), (1e9, 0)])
def test_a_power_failure_leaves_no_row_without_its_file(tmp_path, monkeypatch, pause, least):
    out, disk, kept, calls = tmp_path / "out", Disk(monkeypatch), {}, []
    items = [{"file": f"{x:02}", "x": x, "out": str(out)} for x in range(20)]

    def fails(item):
        calls.append(item["x"])
        if len(calls) == 14:
            kept.update(disk.fail(out))  # before Python closes anything in order
            raise PowerFailure
        return draw(item)

    monkeypatch.setattr(parallel, "PAUSE", pause)
    with pytest.raises(PowerFailure):
        map_files(fails, items, table=out / "t.csv", workers=1)
    lines = kept[out / "t.csv.journal"].decode().split("\n")
    rows = [json.loads(line) for line in lines[1:-1] if '"item"' in line]
    assert len(rows) >= least
    for row in rows:   # each is on the disk before its row says so
        (path, mark), = row["files"].items()
        assert len(kept[Path(path)]) == mark[0] and kept[Path(path)].startswith(b"picture ")
    restore(out, kept)
    calls.clear()
    calls.extend([None] * 20)
    found = map_files(fails, items, table=out / "t.csv", workers=1)
    assert len(calls) - 20 == 20 - len(rows) and found["square"].tolist() == [x ** 2 for x in range(20)]
    assert [(out / f"pictures/{i['file']}.txt").read_text() for i in items] == [
        f"picture {x ** 2}\n" * 50 for x in range(20)]


def test_a_row_whose_file_was_emptied_by_the_power_failure_does_not_count(tmp_path, monkeypatch):
    "As a file system leaves it that writes the journal first: the rows are there, and the files are empty."
    out, calls = tmp_path / "out", []
    items = [{"file": f"{x:02}", "x": x, "out": str(out)} for x in range(8)]

    def fails(item):
        calls.append(item["x"])
        if len(calls) == 6:
            (out / "pictures/01.txt").write_bytes(b"")
            path = out / "pictures/02.txt"
            state = path.stat()
            path.write_bytes(bytes(state.st_size))  # zeros in place of the content
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
            raise PowerFailure
        return draw(item)

    with pytest.raises(PowerFailure):
        map_files(fails, items, table=out / "t.csv", workers=1)
    map_files(fails, items, table=out / "t.csv", workers=1)
    assert calls[6:] == [1, 2, 5, 6, 7]
    assert (out / "pictures/02.txt").read_text().startswith("picture 4")


def test_single_files_are_synced_with_their_new_folders(tmp_path, monkeypatch):
    disk, root = Disk(monkeypatch), tmp_path / "new"
    write_json(root / "a" / "b" / "one.json", {"one": 1})
    write_csv(root / "t.csv", pd.DataFrame({"a": [1]}))
    assert disk.fail(root) == {root / "a/b/one.json": b'{\n "one": 1\n}\n', root / "t.csv": b"a\n1\n"}


def test_a_power_failure_of_a_real_file_system(scans, tmp_path, monkeypatch):
    "An ext4 file system in a file, which is copied in mid-run. The copy is what a machine without power would keep."
    image, failed, disk = tmp_path / "image", tmp_path / "failed", tmp_path / "disk"
    disk.mkdir()
    with open(image, "wb") as file:
        file.truncate(32 << 20)

    def mount(source):
        return subprocess.run(["mount", "-o", "loop", source, disk], capture_output=True).returncode == 0

    if not shutil.which("mkfs.ext4") or subprocess.run(["mkfs.ext4", "-q", image]).returncode or not mount(image):
        pytest.skip("needs to make and mount a file system")
    add = parallel.Journal.add

    def fails(journal, item, row):
        add(journal, item, row)
        if len(journal.rows) == 30:
            shutil.copyfile(image, failed)
            raise PowerFailure
    try:
        monkeypatch.setattr(parallel, "PAUSE", 0.02)
        with monkeypatch.context() as patch, pytest.raises(PowerFailure):
            patch.setattr(parallel.Journal, "add", fails)
            crop(scans, disk / "out")
        subprocess.run(["umount", disk], check=True)
        assert mount(failed)
        lines = (disk / "out/crops_seconds.csv.journal").read_bytes().rpartition(SYNCED)[0].splitlines()
        rows = [json.loads(line) for line in lines[1:] if b'"item"' in line]
        assert len(rows) >= 10
        for row in rows:
            for path, mark in row["files"].items():
                assert sha256(path) == mark[4]
        before = inodes(disk / "out")
        crop(scans, disk / "out")
        redone = written(before, disk / "out")
        assert len(redone) <= 40 - len(rows)
        crop(scans, tmp_path / "anew")
        assert content(disk / "out") == content(tmp_path / "anew")
    finally:
        subprocess.run(["umount", "-l", disk])


# --- a finished folder

@pytest.fixture
def scans(tmp_path):
    "Forty pictures with a bright half, as a breast."
    folder = tmp_path / "scans"
    rng = np.random.default_rng(7)
    for k in range(40):
        add(folder, k, rng)
    return folder


def add(folder, k, rng):
    picture = rng.integers(0, 9, (96, 64), np.uint8)
    picture[10:80, :30 + k % 7] += np.uint8(150)
    (folder / f"{k // 4}").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"{k // 4}/{k:03}.png"), picture)


def inodes(out):
    "Which files of the crops were written: each writing gives a new inode."
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (out / "cleaned_images").iterdir()}


def written(before, out):
    return sorted(name for name, state in inodes(out).items() if before.get(name) != state)


def finished_pictures(table):
    "Pictures whose rows are in a table of `map_files`, or in the synced part of its journal."
    if table.exists():
        rows = pd.read_csv(table)
        return set(rows.loc[rows["error"].isna(), "picture"])
    journal = table.with_name(f"{table.name}.journal")
    lines = journal.read_bytes().rpartition(SYNCED)[0].splitlines() if journal.exists() else []
    return {Path(path).name for line in lines if b'"item"' in line for path in json.loads(line)["files"]}


def content(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.*")
            if p.is_file() and not p.name.startswith("crops_seconds")}


def crop(scans, out):
    return crop_folder(scans, out, workers=1)


def test_ten_new_files_cost_ten_files(scans, tmp_path):
    out = tmp_path / "out"
    assert (crop(scans, out)["error"] == "").all()
    before = inodes(out)
    crop(scans, out)
    assert len(before) == 40 and written(before, out) == []
    for k in range(40, 50):
        add(scans, k, np.random.default_rng(k))
    crop(scans, out)
    assert written(before, out) == [f"{k // 4}@{k:03}.png" for k in range(40, 50)]
    (scans / "0/000.png").unlink()
    (out / "cleaned_images/mine.png").write_bytes(b"of somebody else")
    assert len(crop(scans, out)) == 49 and not (out / "cleaned_images/0@000.png").exists()
    (out / "cleaned_images/mine.png").unlink()   # it was left alone
    crop(scans, tmp_path / "anew")
    assert content(out) == content(tmp_path / "anew")


def test_a_moved_output_removes_nothing_where_it_was(scans, tmp_path):
    crop(scans, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    before = inodes(tmp_path / "out")
    (scans / "0/000.png").unlink()
    assert len(crop(scans, tmp_path / "copy")) == 39 and inodes(tmp_path / "out") == before


def test_a_replaced_file_is_done_again_and_not_served(scans, tmp_path):
    out = tmp_path / "out"
    crop(scans, out)
    before = inodes(out)
    first, second = scans / "0/001.png", scans / "3/013.png"
    shutil.copyfile(first, second)                # another patient's picture under this name
    crop(scans, out)
    assert written(before, out) == ["3@013.png"]
    table = pd.read_csv(out / "crops.csv", dtype={"image_id": str}).set_index("image_id")
    assert table.loc["013", "sha256"] == table.loc["001", "sha256"]


@pytest.mark.parametrize("harm", ["emptied", "zeros", "removed"])
def test_a_damaged_result_is_made_again(scans, tmp_path, harm):
    out = tmp_path / "out"
    crop(scans, out)
    before, whole = inodes(out), content(out)
    for name in ("1@004.png", "9@039.png"):
        path = out / "cleaned_images" / name
        state = path.stat()
        if harm == "removed":
            path.unlink()
            continue
        path.write_bytes(bytes(state.st_size if harm == "zeros" else 0))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # a time that hides it
    crop(scans, out)
    assert written(before, out) == ["1@004.png", "9@039.png"] and content(out) == whole


def test_errors_are_tried_again_and_the_rest_is_not(scans, tmp_path):
    out, broken = tmp_path / "out", scans / "5/020.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    assert (crop(scans, out)["error"] != "").sum() == 1
    before = inodes(out)
    state = broken.stat()
    broken.write_bytes(whole)
    os.utime(broken, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (crop(scans, out)["error"] == "").all() and written(before, out) == ["5@020.png"]


def test_other_settings_or_other_code_start_anew(scans, tmp_path, monkeypatch):
    out = tmp_path / "out"
    crop(scans, out)
    before = inodes(out)
    monkeypatch.setattr(parallel, "package_digest", lambda: "another version")
    crop(scans, out)
    assert len(written(before, out)) == 40


# --- a full disk

@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_ends_the_run_in_a_sentence_and_the_next_one_continues(scans, tmp_path, monkeypatch, code):
    out, real, left = tmp_path / "out", os.replace, [25]

    def full(source, target):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        with pytest.raises(StorageError, match="cannot be written: the disk is .* what is finished is kept"):
            crop(scans, out)
    before = inodes(out)
    assert len(before) == 25 and not [p for p in out.rglob(".*")]
    assert (crop(scans, out)["error"] == "").all()
    assert len(written(before, out)) == 15


def test_a_small_disk(scans, tmp_path):
    "The same on a file system of 60 kB, where root may mount one."
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60k", "none", disk], capture_output=True).returncode:
        pytest.skip("needs to mount a small file system")
    try:
        done = command("crops", scans, "-o", disk / "out", "--detector", "otsu", "--workers", "2")
        assert done.returncode == 2 and "the disk is full" in done.stderr.splitlines()[-1], done.stderr
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert command("crops", scans, "-o", disk / "out", "--detector", "otsu").returncode == 0
        crop(scans, tmp_path / "anew")
        assert content(disk / "out") == content(tmp_path / "anew")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def command(*arguments, **how):
    code = "import sys; from mammo_nb.cli import main; sys.argv[0] = 'mammo-nb'; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True, timeout=120,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, **how)


def test_an_output_that_cannot_be_is_a_sentence(scans, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        done = command("crops", scans, "-o", output, "--detector", "otsu")
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert "choose another output" in done.stderr and str(tmp_path / "file") in done.stderr
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("limit", ["ulimit -v 900000", "mount -t tmpfs -o ro none /dev/shm", "exec >/dev/full"])
def test_a_limit_of_the_machine_is_a_sentence_and_a_later_run_continues(scans, tmp_path, limit):
    "Little memory, no shared memory, and an output on a full disk. How far a run gets depends on the machine."
    isolated = ["unshare", "--mount"]
    if subprocess.run([*isolated, "true"], capture_output=True).returncode:
        pytest.skip("needs mounts of its own")
    code = "import sys; from mammo_nb.cli import main; sys.argv[0] = 'mammo-nb'; main()"
    done = subprocess.run([*isolated, "bash", "-c", f'{limit} && exec "$@"', "-", sys.executable, "-c", code, "crops",
                           scans, "-o", tmp_path / "out", "--detector", "otsu", "--workers", "2"],
                          cwd=ROOT, text=True, capture_output=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    last = (done.stderr.splitlines() or [""])[-1]
    assert done.returncode in (0, 1, 2) and "Traceback" not in done.stderr and "not foreseen" not in done.stderr
    assert done.returncode < 2 or last.endswith("."), done.stderr
    before = inodes(tmp_path / "out") if (tmp_path / "out/cleaned_images").is_dir() else {}
    saved = finished_pictures(tmp_path / "out/crops_seconds.csv")
    assert (crop(scans, tmp_path / "out")["error"] == "").all()
    assert not saved & set(written(before, tmp_path / "out"))   # a task has several files, so more were in progress
    crop(scans, tmp_path / "anew")
    assert content(tmp_path / "out") == content(tmp_path / "anew")


# --- two runs, and killed ones

def test_a_second_run_is_refused_in_a_sentence(scans, tmp_path):
    code = ("import sys; from mammo_nb.core.files import owner\n"
            "with owner(sys.argv[1]):\n    print('locked', flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}) as first:
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(StorageError, match="Another run writes to .*out at the moment"):
            crop(scans, tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())
        first.kill()
        first.wait()
    crop(scans, tmp_path / "out")   # the lock of a killed process is gone
    with owner(tmp_path / "out"), owner(tmp_path / "out"):
        crop(scans, tmp_path / "out")


SLEEPERS = """
import os, sys, time
from mammo_nb.core.parallel import SYNCED, map_files

def work(item):
    print(os.getpid(), flush=True)
    time.sleep(600)
    return {}

if __name__ == "__main__":
    map_files(work, [{"file": str(k)} for k in range(4)], table=sys.argv[1], workers=2, label=None)
"""


def test_processes_end_with_a_run_that_is_killed(tmp_path):
    (tmp_path / "sleepers.py").write_text(SLEEPERS)
    with subprocess.Popen([sys.executable, tmp_path / "sleepers.py", tmp_path / "t.csv"], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}) as parent:
        children = {int(parent.stdout.readline()) for _ in range(2)}
        parent.send_signal(signal.SIGKILL)
        assert parent.stdout.read() == ""   # which ends when the last of them has ended
    assert len(children) == 2


def test_sigterm_ends_a_command_and_its_processes(scans, tmp_path):
    code = ("import signal, os, sys, threading; from mammo_nb import cli; from mammo_nb.core import parallel\n"
            "add = parallel.Journal.add\n"
            "def tell(self, item, row):\n"
            "    add(self, item, row)\n"
            "    if len(self.rows) == 8:\n        os.kill(os.getpid(), signal.SIGTERM)\n"
            "parallel.Journal.add = tell\ncli.main()")
    done = subprocess.run([sys.executable, "-c", code, "crops", scans, "-o", tmp_path / "out", "--detector", "otsu",
                           "--workers", "2"], cwd=ROOT, text=True, capture_output=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 128 + signal.SIGTERM and "Traceback" not in done.stderr, done.stderr
    journal = (tmp_path / "out/crops_seconds.csv.journal").read_text().splitlines()
    assert sum('"item"' in line for line in journal) == 8 and "synced" in journal[-1]
    before = inodes(tmp_path / "out")
    crop(scans, tmp_path / "out")
    assert len(set(before) - set(written(before, tmp_path / "out"))) >= 8


def test_a_digest_is_not_read_twice_and_damage_is_seen(tmp_path, monkeypatch):
    path, read = tmp_path / "a.bin", []
    path.write_bytes(b"abc")
    mark = files.mark_of(path)
    monkeypatch.setattr(files, "sha256", lambda p: read.append(p) or sha256(p))
    assert files.unchanged(path, mark) and not read
    os.utime(path)
    assert files.unchanged(path, mark) and read == [path]
    path.write_bytes(b"abd")
    os.utime(path, ns=(mark[1], mark[1]))
    assert not files.unchanged(path, mark)
    assert files.unchanged(path, files.mark_of(path), read=True) and len(read) == 4

"""A soak of `mammo-nb crops`: `python tests/bench/soak.py [FILES] [SEED]`, as root, since it mounts a file system.

Drawn small files are cropped onto an ext4 file system in a file. Meanwhile the run or one of its processes is killed
ten times, the power fails twice (the image of the file system is copied in mid-run, and the copy is what is mounted
next), the disk is filled once, two files are replaced by others and one is removed. At the end every file must be a
row, and all that was written must be equal, byte for byte, to an undisturbed run over the final files."""
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[2]
BROKEN = 20   # every so many-th file is none
JOURNAL = "crops_seconds.csv.journal"


def draw(path: Path, k: int):
    "A picture with a bright half, as a breast; some files are cut short."
    rng = np.random.default_rng(k)
    picture = rng.integers(0, 9, (96, 64), np.uint8)
    picture[8 + k % 5:80 + k % 9, :28 + k % 11] += np.uint8(120 + k % 60)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture)
    if k % BROKEN == 7:
        path.write_bytes(path.read_bytes()[:90])


class Disk:
    "An ext4 file system in a file."
    def __init__(self, folder: Path):
        self.image, self.place = folder / "image", folder / "disk"
        self.place.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(256 << 20)
        subprocess.run(["mkfs.ext4", "-q", self.image], check=True)
        self.mount()

    def mount(self):
        subprocess.run(["mount", "-o", "loop", self.image, self.place], check=True)

    def umount(self):
        while subprocess.run(["umount", self.place], capture_output=True).returncode:
            time.sleep(0.05)   # the processes of a killed run end half a second after it

    def fill(self):
        "Take all blocks that are free."
        with open(self.place / "filler", "wb") as filler:
            size = 0
            try:
                while True:
                    state = os.statvfs(self.place)
                    more = max(1, state.f_bfree) * state.f_bsize
                    os.posix_fallocate(filler.fileno(), size, more)
                    size += more
            except OSError:
                pass

    def snapshot(self):
        "What a machine without power would keep at this moment."
        shutil.copyfile(self.image, self.image.with_name("failed"))

    def fail(self):
        "Go on with the snapshot."
        self.umount()
        os.replace(self.image.with_name("failed"), self.image)
        self.mount()


def start(scans: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", "from mammo_nb.cli import main; main()", "crops", scans, "-o", out, "--detector", "otsu",
         "--workers", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def rows(out: Path) -> int:
    "Rows in the journal."
    path = out / JOURNAL
    return path.read_bytes().count(b'"item"') if path.is_file() else 0


def children(pid: int) -> list[int]:
    "The processes that work for a run; not the tracker of joblib, which has no files."
    found = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [c for c in found if b"popen_loky" in Path(f"/proc/{c}/cmdline").read_bytes()]


def wait_for(run: subprocess.Popen, out: Path, count: int) -> bool:
    "Wait until so many rows are done; false if the run has ended before."
    while run.poll() is None:
        if rows(out) >= count:
            return True
        time.sleep(0.005)
    return False


def change(scans: Path, files: list[Path]):
    "Two files are replaced by new ones, one of them of the same size, and one is removed."
    draw(files[11], 5011)
    state = files[12].stat()
    other = next(p for p in files[40:] if p.stat().st_size == state.st_size)
    shutil.copyfile(other, files[12])
    files[33].unlink()


def soak(folder: Path, count: int, seed: int) -> list[dict]:
    "Run the events, then compare. Gives a row for each event."
    rng, scans = random.Random(seed), folder / "scans"
    files = [scans / f"{k // 8:04}" / f"{k:05}.png" for k in range(count)]
    for k, path in enumerate(files):
        draw(path, k)
    disk = Disk(folder)
    out, told = disk.place / "out", []
    events = ["run killed"] * 5 + ["process killed"] * 5 + ["power fails"] * 2 + ["disk full"]
    rng.shuffle(events)
    events.insert(rng.randrange(3, len(events)), "files replaced and removed")
    step, run = count // (len(events) + 2), None
    try:
        for event in events:
            run = run if run and run.poll() is None else start(scans, out)
            reached = wait_for(run, out, rows(out) + rng.randrange(step // 4, step))
            done = rows(out)
            if event == "process killed" and reached and (own := children(run.pid)):
                os.kill(rng.choice(own), signal.SIGKILL)   # the run goes on
            elif event == "disk full":
                disk.fill()
                words, code = run.communicate()[1], run.returncode
                assert code == 2 and "the disk is full" in words.splitlines()[-1], words[-2000:]
                (disk.place / "filler").unlink()
            else:
                if event == "power fails":
                    disk.snapshot()
                run.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]) if event != "power fails" else
                                signal.SIGKILL)
                run.communicate()
                if event == "power fails":
                    disk.fail()
                elif event == "files replaced and removed":
                    change(scans, files)
            told.append({"event": event, "rows_before": done, "rows_after": rows(out), "in_mid_run": reached})
        last = run if run and run.poll() is None else start(scans, out)
        words = last.communicate()[1]
        assert last.returncode == 1, words[-2000:]   # for the broken files
        again = start(scans, folder / "undisturbed")
        assert again.communicate() and again.returncode == 1
        table = pd.read_csv(out / "crops.csv", dtype=str)
        assert sorted(table["file"]) == sorted(p.relative_to(scans).as_posix() for p in scans.rglob("*.png"))
        assert content(out) == content(folder / "undisturbed")
        told.append({"event": "end", "rows_before": "", "rows_after": rows(out), "in_mid_run": ""})
    finally:
        if run and run.poll() is None:
            run.kill()
        subprocess.run(["umount", "-l", disk.place])
    return told


def content(out: Path) -> dict:
    "All that a run has written, without its journal and its seconds."
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*")
            if p.is_file() and not p.name.startswith("crops_seconds")}


if __name__ == "__main__":
    number, drawn = (int(a) for a in (*sys.argv[1:3], *("2000", "1")[len(sys.argv) - 1:]))
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        found = pd.DataFrame(soak(Path(scratch), number, drawn))
        print(found.to_csv(index=False), end="")
        print(f"{number} files, seed {drawn}: equal to an undisturbed run, {time.perf_counter() - began:.0f} s",
              file=sys.stderr)

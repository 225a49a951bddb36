"""What durability costs: `python tests/bench/durable.py [FILES]` crops drawn mammograms in one process, twice, and runs
all stages of the recipe `tiny`, twice. It prints the share of the time that goes into syncing, digests, checks and
locks, as CSV; the second calls find everything finished."""
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from mammo_nb.core import files, parallel, processes, settings, stages
from mammo_nb.core.runs import Run
from mammo_nb.core.systems import find_system
from mammo_nb.mammo.tools.crops import crop_folder
from mammo_nb.mammo.phantom import make_competition

spent = Counter()


def timed(module, name, what):
    "Count the seconds in a function."
    function = getattr(module, name)

    def measured(*given, **named):
        started = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            spent[what] += time.perf_counter() - started
    setattr(module, name, measured)


def timed_lock(module):
    "Count the seconds in which a lock is taken and released."
    real = module.owner

    @contextmanager
    def measured(folder):
        started = time.perf_counter()
        lock = real(folder)
        lock.__enter__()
        spent["locks"] += time.perf_counter() - started
        try:
            yield
        finally:
            started = time.perf_counter()
            lock.__exit__(None, None, None)
            spent["locks"] += time.perf_counter() - started
    module.owner = measured


def call(name: str, work) -> list[dict]:
    "A row for the whole call, and one for each part."
    spent.clear()
    started = time.perf_counter()
    work()
    whole = time.perf_counter() - started
    return [{"call": name, "part": part, "seconds": round(seconds, 4), "share": round(seconds / whole, 4)}
            for part, seconds in (("all", whole), *spent.items())]


if __name__ == "__main__":
    patients = max(1, int(sys.argv[1]) // 4) if len(sys.argv) > 1 else 15
    kept = tempfile.TemporaryDirectory(dir=".")
    scratch = Path(kept.name).resolve()
    make_competition(scratch / "competition", patients=patients, test_patients=1, frame=(1664, 1280), prevalence=.5,
                     seed=5)
    timed(parallel.Journal, "sync", "syncing")
    timed(processes, "marked", "digests of what was written")
    timed(parallel.Journal, "verify", "checking what is there")
    timed(parallel, "item_digest", "states of the inputs")
    timed(files, "make_folder", "folders")
    timed_lock(parallel)
    rows = []
    for number in ("first", "second"):
        rows += call(f"crops, {number}", lambda: crop_folder(scratch / "competition/train_images", scratch / "out",
                                                             workers=1))
    run = Run.create(scratch / "run", find_system("mammo"), "tiny")
    out, sys.stdout = sys.stdout, open(os.devnull, "w")
    stages.reproduce(run)
    timed(settings.Digests, "of", "digests of the run")
    timed(files, "sync", "syncing")
    again = call("reproduce, second", lambda: stages.reproduce(run))
    sys.stdout = out
    print(pd.DataFrame(rows + again).to_csv(index=False), end="")

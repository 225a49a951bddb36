"""What durability costs: `python tests/bench/durable.py [FILES]` crops drawn mammograms in one process, twice, and
prints the share of the time that goes into syncing, digests and checks, and the time of the second call."""
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mammo_nb.core import files, parallel, processes
from mammo_nb.mammo.crops import crop_folder
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


if __name__ == "__main__":
    patients = max(1, int(sys.argv[1]) // 4) if len(sys.argv) > 1 else 15
    kept = tempfile.TemporaryDirectory(dir=".")
    scratch = Path(kept.name)
    make_competition(scratch / "competition", patients=patients, test_patients=1, frame=(1664, 1280), prevalence=.5,
                     seed=5)
    timed(parallel.Journal, "sync", "syncing")
    timed(processes, "marked", "digests of what was written")
    timed(parallel.Journal, "verify", "checking what is there")
    timed(parallel, "item_digest", "states of the inputs")
    timed(files, "make_folder", "folders")
    for call in ("first", "second"):
        spent.clear()
        started = time.perf_counter()
        table = crop_folder(scratch / "competition/train_images", scratch / "out", workers=1)
        whole = time.perf_counter() - started
        print(f"{call} call: {len(table)} files in {whole:.2f} s, {len(table) / whole:.1f} a second")
        for what, seconds in spent.items():
            print(f"  {what:28} {seconds:6.3f} s  {seconds / whole:6.2%}")

"""From a DICOM file to a crop of 2048x1024, by this checkout and by an earlier one, in turn with decoding alone.
`.venv/bin/python tests/bench/crops.py EARLIER_CHECKOUT > tests/bench/results/crops.csv`

Each checkout runs in a process of its own, which waits while the other one works; one thread.
"""
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from mammo_nb.mammo.drawing.breast import make_breast
from mammo_nb.mammo.drawing.machines import MACHINES, stored_values, write_dicom

ROUNDS = 15
FILES = [("J2K 2776x2082x12", (2776, 2082), JPEG2000Lossless),
         ("JPEG Lossless 3062x2394x12", (3062, 2394), JPEGLosslessSV1)]
WORKER = """
import sys, time, cv2, torch
from dataclasses import asdict
from pathlib import Path
from mammo_nb.core.codestreams import read_codestream
from mammo_nb.core.decoders import DECODERS
from mammo_nb.core.dicom import read_frame
from mammo_nb.mammo.crops import crop_file
from mammo_nb.mammo.recipes import Crops
cv2.setNumThreads(1)
torch.set_num_threads(1)
for line in sys.stdin:
    what, path = line.strip().split(" ", 1)
    frame, path = read_frame(path), Path(path)
    item = {"file": path.name, "folder": str(path.parent), "images": sys.argv[1], "patient_id": "p", "image_id": "1",
            "settings": asdict(Crops(height=2048, width=1024))}
    started = time.perf_counter()
    if what == "decode":
        DECODERS["imagecodecs"].decode(frame.data, read_codestream(frame.data), frame.header, 0)
    else:
        row = crop_file(item)
    took = time.perf_counter() - started
    size = (Path(sys.argv[1]) / "p@1.png").stat().st_size if what == "crop" else 0
    print(took, size, *(str(row[c]) for c in ("x0", "y0", "x1", "y1")) if what == "crop" else "", flush=True)
"""


def start(checkout: Path, images: Path) -> subprocess.Popen:
    images.mkdir()
    return subprocess.Popen([sys.executable, "-c", WORKER, str(images)], text=True, stdin=subprocess.PIPE, cwd=checkout,
                            stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(checkout)})


def ask(worker: subprocess.Popen, what: str, path: Path) -> list[float]:
    worker.stdin.write(f"{what} {path}\n")
    worker.stdin.flush()
    return [float(x) for x in worker.stdout.readline().split()]


rows, machine = [], next(m for m in MACHINES if m.bits_stored == 12 and m.photometric == "MONOCHROME2")
with tempfile.TemporaryDirectory() as scratch:
    scratch = Path(scratch)
    places = {"earlier": Path(sys.argv[1]).resolve(), "now": Path(__file__).resolve().parents[2]}
    workers = {name: start(place, scratch / name) for name, place in places.items()}
    for name, frame, syntax in FILES:
        drawn = make_breast(np.random.default_rng(7), "L", "MLO", frame, "mass")
        stored, windows = stored_values(drawn.pixels, machine)
        path = scratch / f"{name.replace(' ', '_')}.dcm"
        write_dicom(path, stored, patient_id="1", image_id="2", laterality="L", view="MLO", syntax=syntax,
                    photometric="MONOCHROME2", bits_stored=12, windows=windows, voi_function=machine.voi_function)
        ways = {"decoding alone": ("now", "decode"), "crop, earlier": ("earlier", "crop"), "crop, now": ("now", "crop")}
        seconds, last = {way: [] for way in ways}, {}
        for turn in range(ROUNDS + 2):
            for way, (who, what) in ways.items():
                took, *last[way] = ask(workers[who], what, path)
                if turn > 1:
                    seconds[way].append(took)
        alone = seconds["decoding alone"]
        for way, s in seconds.items():
            # the ratio of each turn, because the machine is shared
            ratios = [mine / base for mine, base in zip(s, alone)]
            rows.append({"file": name, "way": way, "runs": len(s), "min_ms": round(1e3 * min(s), 1),
                         "median_ms": round(1e3 * statistics.median(s), 1),
                         "of_decoding": round(min(s) / min(alone), 2),
                         "of_decoding_median": round(statistics.median(ratios), 2),
                         "png_bytes": int(last[way][0]) or "",
                         "box": " ".join(f"{x:.0f}" for x in last[way][1:])})
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
packages = " ".join(f"{p} {version(p)}" for p in ("imagecodecs", "opencv-python", "numpy"))
pd.DataFrame(rows).assign(cpu=cpu, versions=packages).to_csv(sys.stdout, index=False)

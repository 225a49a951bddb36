"""What a stream makes of its parts: decoding alone, the network alone, and both at once, from files to probabilities.

    python tests/bench/submit.py [--weights runs/demo/weights] [--images 240] [--rows 3062 --columns 2394]
        [--cores 0,1] [--rounds 3]

JPEG 2000 frames of 12 bits are drawn and coded; decoding is what a submission does to a file: header, decode,
detector, crop, fit. One process decodes and one thread computes, each on a core of its own where there are two;
alone means the same process without a network, and the same network on pictures that lie in memory. All three run
in turn in each round, and the ratio is that of the stream to the slower part. Where both share one core the ratio
cannot come near one: half, if they are equally fast. `--repeat` asks the network so often about a picture, to set
its pace to the decoder's. Waiting is that of the last round, as in submit.json. Results go to
tests/bench/results/submit.csv.
"""
import argparse
import os
import platform
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--weights", type=Path, default=Path("runs/demo/weights"))
parser.add_argument("--images", type=int, default=240)
parser.add_argument("--rows", type=int, default=3062)
parser.add_argument("--columns", type=int, default=2394)
parser.add_argument("--cores", default=",".join(map(str,
                                                    sorted(os.sched_getaffinity(0))[:2])),
                    help="the decoding process on the first, the network on the last")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--repeat", type=int, default=1)
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "submit.csv")
options = parser.parse_args()
cores = [int(c) for c in options.cores.split(",")]
os.sched_setaffinity(0, {cores[-1]})  # before any thread: threads inherit it

import numpy as np
import pandas as pd

from mammo_nb.core.budget import Mode
from mammo_nb.core.engines import load_engine
from mammo_nb.core.files import read_json
from mammo_nb.core.stream import Watch, flow, grouped
from mammo_nb.mammo.drawing.breast import make_breast
from mammo_nb.mammo.reading.inputs import see_item
from mammo_nb.mammo.drawing.machines import MACHINES, stored_values, write_dicom
from mammo_nb.mammo.submit import item_entries


def decode(item, mode):
    "In the process that decodes."
    os.sched_setaffinity(0, {item["core"]})
    return see_item(item, mode)


def write_frames(folder: Path, count: int = 8) -> list:
    "A few frames, each read many times: the system keeps files in memory anyway, and what is measured is the work."
    for k in range(count):
        rng, machine, side, view = np.random.default_rng(k), MACHINES[k % 4], "LR"[k % 2], ("CC", "MLO")[k // 2 % 2]
        pixels, windows = stored_values(
            make_breast(rng, side, view, (options.rows, options.columns), "mass" if k % 3 else None).pixels, machine)
        write_dicom(folder / f"{k}.dcm", pixels, patient_id="1", image_id=str(k), laterality=side, view=view,
                    syntax=machine.syntax, photometric=machine.photometric, bits_stored=machine.bits_stored,
                    windows=windows, voi_function=machine.voi_function)
    return [f"{k}.dcm" for k in range(count)]


def once(items: dict, network, batch: int, mode: Mode) -> tuple:
    "Images a second from the first file's start to the last answer, and the watch."
    class One(Watch):
        def choose(self, busy, left):
            return mode
    watch = One(1, 1)
    rows = list(flow(grouped(items, items, batch), decode, [network], watch, workers=1, limit=2 + 2 * batch))
    assert len(rows) == len(items) and not any('"error": ""' not in row for _, row in rows), rows[0]
    return len(rows) / (watch.batches[-1][4] - watch.decodes[0][1]), watch


with tempfile.TemporaryDirectory() as folder:
    metadata, batch = read_json(options.weights / "ensemble.json"), 4
    entries = {**item_entries(options.weights.resolve(), metadata), "pngs": ""}
    mode = Mode("ensemble", metadata["folds"], tuple(metadata["size"]))
    names = write_frames(Path(folder))
    items = {
        k: {"folder": folder, "file": names[k % len(names)], "row": None, "core": cores[0], **entries}
        for k in range(options.images)
    }
    engine = load_engine(options.weights / "ensemble.onnx", threads=1)
    def network(mode, pictures):
        for _ in range(options.repeat):
            probabilities = engine(pictures).mean(1)
        return [{"probability": float(p)} for p in probabilities]
    nothing = lambda mode, pictures: [{"probability": 0.0}] * len(pictures)
    pictures = np.stack([see_item(items[k], mode)[1] for k in range(batch)])
    rates = {"decoding alone": [], "network alone": [], "both": []}
    once(dict(list(items.items())[:8]), network, batch, mode)  # warm: the process, the engine, the files
    for _ in range(options.rounds):
        rates["decoding alone"].append(once(items, nothing, batch, mode)[0])
        started = time.monotonic()
        for _ in range(options.images // batch):
            network(mode, pictures)
        rates["network alone"].append(options.images // batch * batch / (time.monotonic() - started))
        rate, watch = once(items, network, batch, mode)
        rates["both"].append(rate)

slower = [min(d, n) for d, n in zip(rates["decoding alone"], rates["network alone"])]
cpu = next((line.split(":")[1].strip()
            for line in subprocess.run(["lscpu"], capture_output=True, text=True).stdout.splitlines()
            if line.startswith("Model name")), platform.processor())
table = pd.DataFrame([{
    "part": part, "images_per_second": round(statistics.median(r), 2), "least": round(min(r), 2), "most": round(
        max(r), 2)
} for part, r in rates.items()]).assign(
    of_the_slower=["", "", round(statistics.median(b / s for b, s in zip(rates["both"], slower)),
                                 3)], waited_decoding=["", "", watch.waited()["decoding"]],
    waited_network=["", "", watch.waited()["network"]], frame=f"{options.rows}x{options.columns}", input="x".join(
        map(str, mode.size)), folds=mode.folds, repeat=options.repeat, images=options.images, rounds=options.rounds,
    cores=len(set(cores)), batch=batch, cpu=cpu, onnxruntime=version("onnxruntime"), imagecodecs=version("imagecodecs"))
table.to_csv(options.output, index=False)
print(table.iloc[:, :7].to_string(index=False))

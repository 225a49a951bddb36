"""A long abdominal series by step: seconds, and the largest memory of a process that does nothing else.

    python tests/bench/trauma_series.py [--slices 1000] [--size 512] [--threads 1]

A drawn body is written as DICOM files to a temporary folder. Each step runs in a process of its own: the volume is
written from the files (`read`), organs are found in all slices by the 3D network at its published size (`organs`), all
blocks are read at 384 pixels (`blocks`), and one published network of the 2.5D models reads them (`network`). Networks
have random weights, on which time does not depend; they run in eager torch and by the engine that `mammo-nb predict`
chooses. The first three steps prepare a series and have a limit of 2 GiB. Seconds include the imports and the opening
of a network; `cpu_seconds` are the processor's own, which other users of the machine change less. The table goes to
tests/bench/results/trauma_series.csv.
"""
import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

RESULTS = Path(__file__).parent / "results"
LIMIT = 2.0   # GiB, resident, of the steps that prepare a series
SCRIPT = "v2s_try5_v10_fulldata"   # whose first model reads the blocks
STEPS = (("read", ""), ("organs", "eager"), ("organs", "engine"), ("blocks", ""), ("network", "eager"),
         ("network", "engine"))


def draw(folder: Path, slices: int, size: int):
    "Write a series of ellipses with noise."
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from test_trauma_prepare import write_slice
    y, x = np.mgrid[:size, :size] / (size / 2) - 1
    rng = np.random.default_rng(0)
    noise = rng.integers(-12, 13, (8, size, size))
    for k in range(slices):
        liver = np.hypot((x + .35) / .4, (y + .1) / .4) < .5 + .5 * np.sin(np.pi * k / slices)
        hu = np.select([liver, np.hypot(x / .85, y / .65) < 1], [110, 20], -1000) + noise[k % 8]
        write_slice(folder / f"{slices - k}.dcm", hu, 0.7 * k)


def graph(name: str):
    "The module of a network, as the stage engines exports it."
    from mammo_nb.trauma.learning.graphs import injury_graph, make_member, member_options, organ_graph
    from mammo_nb.trauma.learning.inference import input_name
    from mammo_nb.trauma.learning.segmenter import make_segmenter
    from mammo_nb.trauma.recipes import PUBLISHED
    if name == "organs":
        return organ_graph(make_segmenter("resnet18d").eval(), 32, 128)
    model = PUBLISHED[SCRIPT][1][0]
    view = input_name(model.crop, model.size)
    return injury_graph([make_member(**member_options(model, [view]))], [view], [model.size], 32)


def open_network(name: str, way: str, folder: Path):
    "An engine with float32 inputs and outputs of numpy."
    from mammo_nb.core.engines import load_engine
    from mammo_nb.core.providers import open_ensemble
    threads = int(os.environ["OMP_NUM_THREADS"])
    return load_engine(graph(name)) if way == "eager" else open_ensemble(folder, name, device="cpu", threads=threads)


def prepare(folder: Path):
    "Write the graphs of both networks."
    from mammo_nb.core.engines import export_onnx
    for name in ("organs", "network"):
        export_onnx(graph(name), folder / f"{name}.onnx", (), {})


def step(name: str, way: str, folder: Path):
    "Do one step, and print seconds, the processor's seconds, GiB and what has computed."
    started, used, by = time.perf_counter(), time.process_time(), ""
    if name == "prepare":
        prepare(folder)
    if name == "read":
        from mammo_nb.trauma.reading.volumes import prepare_series
        prepare_series(folder / "7", folder / "volume.npy")
    if name == "organs":
        from mammo_nb.trauma.learning.inference import find_organs
        from mammo_nb.trauma.reading.organs import write_masks
        network = open_network(name, way, folder)
        volume, by = np.load(folder / "volume.npy", mmap_mode="r"), network.name
        write_masks(folder / "masks.npy", find_organs(volume, lambda window: network(window[None])[0, 0], 32, 128))
    if name in ("blocks", "network"):
        from mammo_nb.trauma.learning.blocks import read_triplets
        from mammo_nb.trauma.reading.blocks import block_rows
        volume = np.load(folder / "volume.npy", mmap_mode="r")
        network = open_network(name, way, folder) if way else None
        for places in block_rows(len(volume)):
            pictures = read_triplets(volume, places, (.1, .9, .1, .9), 384)
            if network:
                network(pictures[None])
                by = network.name
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{time.perf_counter() - started:.1f} {time.process_time() - used:.1f} {memory:.2f} {by}")


def call(name: str, way: str, scratch: str) -> list[str]:
    "A step in a process of its own: what it prints last."
    done = subprocess.run([sys.executable, __file__, "--step", name, way, scratch], text=True, check=True,
                          stdout=subprocess.PIPE)
    return done.stdout.splitlines()[-1].split()


def machine() -> dict:
    "Processor and versions."
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = next((line.split(":")[1].strip() for line in flags.splitlines() if line.startswith("model name")),
               platform.processor())
    return {"cpu": cpu, "versions": " ".join(f"{p} {version(p)}" for p in ("torch", "timm", "onnxruntime", "openvino"))}


def main():
    "Draw the series, run the steps and write the table."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--step", nargs=3)
    asked = parser.parse_args()
    if asked.step:
        return step(asked.step[0], asked.step[1], Path(asked.step[2]))
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        draw(Path(scratch) / "7", asked.slices, asked.size)
        call("prepare", "", scratch)
        for name, way in STEPS:
            seconds, used, memory, *by = call(name, way, scratch)
            rows.append({"slices": asked.slices, "size": asked.size, "step": name, "way": way, "by": " ".join(by),
                         "seconds": float(seconds), "cpu_seconds": float(used), "peak_gib": float(memory),
                         "threads": asked.threads, **machine()})
            print({k: v for k, v in rows[-1].items() if k not in ("cpu", "versions")}, flush=True)
            table = pd.DataFrame(rows)
            table.to_csv(RESULTS / "trauma_series.csv", index=False)   # what is done stays if a later step fails
    if (table.loc[table["step"] != "network", "peak_gib"] > LIMIT).any():
        sys.exit(f"More than {LIMIT} GiB were needed.")


if __name__ == "__main__":
    main()

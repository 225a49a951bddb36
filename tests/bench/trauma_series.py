"""A long abdominal series by step: seconds, and the largest memory of a process that does nothing else.

    python tests/bench/trauma_series.py [--slices 1000] [--size 512]

A drawn body is written as DICOM files to a temporary folder. Each step runs in a process of its own: the volume is
written from the files (`read`), organs are found in all slices by the 3D network at its published size (`organs`), and
all blocks are read at 384 pixels (`blocks`). The table goes to tests/bench/results/trauma_series.csv.
"""
import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

RESULTS = Path(__file__).parent / "results"
LIMIT = 2.0   # GiB, resident


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


def step(name: str, folder: Path):
    "Do one step, and print seconds and GiB."
    started = time.perf_counter()
    if name == "read":
        from mammo_nb.trauma.reading.volumes import prepare_series
        prepare_series(folder / "7", folder / "volume.npy")
    volume = np.load(folder / "volume.npy", mmap_mode="r")
    if name == "organs":
        from functools import partial

        from mammo_nb.trauma.learning.inference import find_organs
        from mammo_nb.trauma.learning.segmenter import make_segmenter, organ_probabilities
        from mammo_nb.trauma.reading.organs import write_masks
        segment = partial(organ_probabilities, make_segmenter("resnet18d").eval())
        write_masks(folder / "masks.npy", find_organs(volume, segment, 32, 128))
    if name == "blocks":
        from mammo_nb.trauma.learning.blocks import read_triplets
        from mammo_nb.trauma.reading.blocks import block_rows
        for places in block_rows(len(volume)):
            read_triplets(volume, places, (.1, .9, .1, .9), 384)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{time.perf_counter() - started:.1f} {memory:.2f}")


def main():
    "Draw the series, run the steps and write the table."
    parser = argparse.ArgumentParser()
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--step", nargs=2)
    asked = parser.parse_args()
    if asked.step:
        return step(asked.step[0], Path(asked.step[1]))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        draw(Path(scratch) / "7", asked.slices, asked.size)
        for name in ("read", "organs", "blocks"):
            done = subprocess.run([sys.executable, __file__, "--step", name, scratch], text=True, check=True,
                                  stdout=subprocess.PIPE)
            seconds, memory = map(float, done.stdout.split()[-2:])
            rows.append({"slices": asked.slices, "size": asked.size, "step": name, "seconds": seconds,
                         "peak_gib": memory})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(RESULTS / "trauma_series.csv", index=False)
    if (table["peak_gib"] > LIMIT).any():
        sys.exit(f"More than {LIMIT} GiB were needed.")


if __name__ == "__main__":
    main()

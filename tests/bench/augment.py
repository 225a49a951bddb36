"""What augmentation costs: milliseconds of processor time for each image, on one thread, for each transform of the
winner's and each policy, of a drawn breast in the size of the winner's network input and of the demo's.

    .venv/bin/python tests/bench/augment.py > tests/bench/results/augment.csv

Each image gets its own seed; policies are timed over more images, since some draws do much and others nothing.
"""
import platform
import statistics
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammo_nb.core.pictures import fit_resize
from mammo_nb.mammo.drawing.breast import make_breast
from mammo_nb.mammo.learning.augment import BEFORE_FITTING, POLICIES, WINNER, augment

SIZES = [(2048, 1024), (256, 128)]


def name(transform) -> str:
    ways = {cv2.INTER_AREA: "area", cv2.INTER_LINEAR: "linear", cv2.INTER_LANCZOS4: "Lanczos"}
    return transform.__name__ if not isinstance(
        transform,
        partial) else f"{transform.func.__name__} ({', '.join(ways[i] for i in transform.keywords.values())})"


def fitted(image, rng, policy, size):
    "What the data loader does."
    return fit_resize(augment(image, rng, policy), *size) if policy in BEFORE_FITTING else augment(
        fit_resize(image, *size), rng, policy)


cv2.setNumThreads(1)
rows = []
for h, w in SIZES:
    drawn = make_breast(np.random.default_rng(7), "L", "MLO", (h * 5 // 4, w * 5 // 3), "mass")
    x0, y0, x1, y1 = drawn.box
    breast = cv2.resize((drawn.pixels[y0:y1, x0:x1] * 255).astype(np.uint8), (w, h), interpolation=cv2.INTER_AREA)
    todo = {("transform", name(f)): (f, 25) for _, ways in WINNER for _, f in ways}
    todo |= {("policy", p): (partial(augment, policy=p), 200)
             for p in POLICIES} | {("policy and fitting", p): (partial(fitted, policy=p, size=(h, w)), 200)
                                   for p in POLICIES}
    for (kind, what), (f, n) in todo.items():
        ms = []
        for seed in range(-2, n):   # two to warm up
            rng = np.random.default_rng(abs(seed))
            started = time.thread_time()
            f(breast, rng)
            ms.append(1e3 * (time.thread_time() - started))
        ms = ms[2:]
        rows.append({
            "height": h, "width": w, "kind": kind, "what": what, "images": n, "mean_ms": round(statistics.mean(ms), 3),
            "median_ms": round(statistics.median(ms), 3), "max_ms": round(max(ms), 3)
        })

cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
           platform.processor()) if Path("/proc/cpuinfo").exists() else platform.processor()
pd.DataFrame(rows).assign(cpu=cpu, opencv=version("opencv-python"), numpy=version("numpy")).to_csv(
    sys.stdout, index=False)

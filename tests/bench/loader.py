"""Whether the data loader keeps up with training at the winner's size: its stages, its worker processes, and the GPU.

    .venv/bin/python tests/bench/loader.py

Crops are drawn and stored as the stage `crops` stores them, in two sizes: about that of the network's input, and that
of a breast in a frame of 5355x4915 pixels. The data set is the stage's own, with the recipe's augmentation. Stages are
timed in this process by the seconds of its thread, and both sizes take turns. A run with worker processes counts the
seconds of all processes, since other work may use the machine; samples a second follow from them for one core.

What a GPU takes is not measured here. The operations of a training step of one picture are counted by torch at the
full size, without computing. The published samples a second of this network (RTX 3090) are scaled by the pixels, and
carried over to other GPUs once by their memory's bandwidth and once by the peak of their tensor cores.
Results go to tests/bench/results/loader.csv and loader_gpu.csv.
"""
import argparse
import os
import resource
import statistics
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, default_collate
from torch.utils.flop_counter import FlopCounterMode

from mammo_nb.core.pictures import fit_resize, write_png
from mammo_nb.mammo.crops import crop_path
from mammo_nb.mammo.drawing.breast import make_breast
from mammo_nb.mammo.learning.augment import augment
from mammo_nb.mammo.recipes import Train
from mammo_nb.mammo.system import system
from mammo_nb.mammo.train import BreastCrops, build_network

RESULTS = Path(__file__).parent / "results"
SIZES = {"input": (2048, 1024), "large frame": (4400, 2000)}   # rows, columns of the drawn crops, about
# samples a second of training with AMP and channels_last, batch 64: timm's results/
# benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv, row convnext_small_384_in22ft1k (commit 5e7d47c)
PUBLISHED, PUBLISHED_SIDE = 165.65, 384
# memory in GB/s and tensor cores in TFLOPS (16 bits, sums in 32) of NVIDIA's data sheets
GPUS = {"RTX 3090": (936, 71), "T4": (320, 65), "A100 40 GB": (1555, 312)}

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((.485, .456, .406), (.229, .224, .225)))   # of ImageNet


def draw_crops(folder: Path, size: tuple[int, int], count: int, seed: int) -> pd.DataFrame:
    "Store crops of drawn breasts, their sides within a tenth of the size."
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        h, w = (int(side * rng.uniform(.9, 1.1)) for side in size)
        drawn = make_breast(rng, "L", "MLO", (1280, 1024), "mass")   # the noise makes the details, and the bytes
        x0, y0, x1, y1 = drawn.box
        crop = cv2.resize((drawn.pixels[y0:y1, x0:x1] * 255).astype(np.uint8), (w, h), interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(crop + rng.normal(0, 2, crop.shape) * (crop > 8), 0, 255).astype(np.uint8)   # of the detector
        write_png(crop_path(folder, str(number), "0"), noisy)
        rows.append({"patient_id": str(number), "image_id": "0", "cancer": int(number == 0)})
    return pd.DataFrame(rows)


class Clock:
    "Milliseconds of this thread, by stage."
    def __init__(self):
        self.taken, self.last = {}, time.thread_time()

    def note(self, stage: str):
        now = time.thread_time()
        self.taken.setdefault(stage, []).append(1e3 * (now - self.last))
        self.last = time.thread_time()


def one_sample(data: BreastCrops, index: int, seed: int, clock: Clock) -> tuple[torch.Tensor, torch.Tensor]:
    "The steps of `BreastCrops.__getitem__` one by one: the sample, and its picture before the last step."
    settings, rng = data.settings, np.random.default_rng(seed)
    clock.last = time.thread_time()
    stored = data._read(data.paths[index])
    clock.note("decode PNG")
    policy = settings.augment if rng.random() < settings.augmentation else "none"
    augmented = augment(stored, rng, policy, settings.faithful)
    clock.note("augment")
    fitted = fit_resize(augmented, settings.height, settings.width, plain=settings.faithful)
    clock.note("resize to fit")
    grey = torch.from_numpy(np.ascontiguousarray(fitted))
    clock.note("uint8 tensor")
    image = np.empty((3, *fitted.shape), np.float32)
    for channel, values in zip(image, data.values):
        cv2.LUT(fitted, values, dst=channel)
    image = torch.from_numpy(image)
    clock.note("normalised floats, looked up")
    computed = (grey.float().div(255).expand(3, -1, -1) - MEAN) / STD
    clock.note("the same, computed")
    assert torch.equal(image, computed)
    return image, grey[None]


def stages(sets: dict[str, BreastCrops], rounds: int, batch: int) -> list[dict]:
    "Rows of the stages: the sets take turns."
    clocks = {name: Clock() for name in sets}
    for name, data in sets.items():
        sample, grey = one_sample(data, 0, 1, Clock())
        assert torch.equal(sample, data[0, 1][0]), "these steps are not those of the data set"
        on_device = (grey.float().div(255) - MEAN) / STD   # what a device would do with the uint8 tensor
        assert torch.equal(on_device, sample)
    for seed in range(rounds):
        for name, data in sets.items():
            samples = [one_sample(data, k % len(data), seed * batch + k, clocks[name]) for k in range(batch)]
            for stage, which in (("collate floats", 0), ("collate uint8", 1)):
                clocks[name].last = time.thread_time()
                default_collate([s[which] for s in samples])
                clocks[name].note(stage)
    rows = []
    for name, clock in clocks.items():
        for stage, taken in clock.taken.items():
            each = [ms / (batch if stage.startswith("collate") else 1) for ms in taken]
            rows.append({"crops": name, "what": stage, "workers": 0, "samples": rounds * batch,
                         "cpu_ms_a_sample": round(statistics.mean(each), 2),
                         "median_ms": round(statistics.median(each), 2), "max_ms": round(max(each), 2)})
    return rows


def processor_seconds() -> float:
    "Of this process and of its children that have ended."
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def loaded(name: str, data: BreastCrops, workers: int, batch: int, batches: int) -> dict:
    "One pass through a DataLoader, as training makes it."
    def order(count: int, first: int) -> list:
        return [[(k % len(data), first + b * batch + k) for k in range(batch)] for b in range(count)]

    def run(given: list) -> tuple[float, float]:
        cpu, wall = processor_seconds(), time.perf_counter()
        for _ in DataLoader(data, batch_sampler=given, num_workers=workers):
            continue   # the loader's work alone
        return processor_seconds() - cpu, time.perf_counter() - wall

    started, _ = run(order(workers or 1, 0))     # processes start and end, and a batch each is loaded
    cpu, wall = run(order(batches + (workers or 1), 1000))
    each = (cpu - started) / (batches * batch)   # start, end and first batches left out
    return {"crops": name, "what": "DataLoader", "workers": workers, "samples": batches * batch,
            "cpu_ms_a_sample": round(1e3 * each, 2), "samples_s_a_core": round(1 / each, 1),
            "wall_samples_s": round((batches + (workers or 1)) * batch / wall, 1)}


def operations(settings: Train) -> dict[str, float]:
    """Operations of one picture in units of 10^12; a product with its sum counts as two. Nothing is computed. The
    gradients of inputs and of weights need as many each; torch's counter has too many for depthwise ones."""
    with torch.device("meta"):
        model = build_network(replace(settings, weights="none")).train()
        picture = torch.zeros(1, 3, settings.height, settings.width)
    model = model.to("meta")
    with FlopCounterMode(display=False) as forward:
        model(picture)
    counted = forward.get_total_flops() / 1e12
    return {"forward": counted, "training": 3 * counted}


def gpu_rows(settings: Train) -> list[dict]:
    "What GPUs take, carried over from one published measurement."
    counted = operations(settings)
    base = PUBLISHED * PUBLISHED_SIDE**2 / (settings.height * settings.width)
    memory, tensor = GPUS["RTX 3090"]
    return [{
        "gpu": gpu, "tflop_forward": round(counted["forward"], 3), "tflop_training": round(counted["training"], 3),
        "samples_s_by_bandwidth": round(base * m / memory, 1), "samples_s_by_tensor_peak": round(base * t / tensor, 1),
        "samples_s_never_above": round(t / counted["training"], 1)
    } for gpu, (m, t) in GPUS.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=4, help="drawn crops of each size")
    parser.add_argument("--rounds", type=int, default=6, help="batches for the stages")
    parser.add_argument("--batches", type=int, default=2, help="for each number of workers")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    settings = system.recipe("winner_fold2").section(Train)
    batch, normalization = settings.loop.batch_size, {"mean": MEAN.flatten().tolist(), "std": STD.flatten().tolist()}
    with tempfile.TemporaryDirectory() as folder:
        sets, megabytes = {}, {}
        for seed, (name, size) in enumerate(SIZES.items()):
            (images := Path(folder, str(seed))).mkdir()
            table = draw_crops(images, size, args.crops, seed)
            sets[name] = BreastCrops(table, images, settings, normalization)
            megabytes[name] = round(statistics.mean(p.stat().st_size for p in sets[name].paths) / 1e6, 2)
        rows = stages(sets, args.rounds, batch)
        for workers in args.workers:
            rows += [loaded(name, data, workers, batch, args.batches) for name, data in sets.items()]
    about = {"cpu": next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                          if line.startswith("model name")), ""), "cores": len(os.sched_getaffinity(0))}
    about |= {"versions": " ".join(f"{p} {version(p)}" for p in ("torch", "opencv-python", "numpy", "timm"))}
    table = pd.DataFrame(rows).assign(megabytes=lambda t: t["crops"].map(megabytes), **about)
    table.to_csv(RESULTS / "loader.csv", index=False)
    gpus = pd.DataFrame(gpu_rows(settings))
    gpus.to_csv(RESULTS / "loader_gpu.csv", index=False)
    print(table.drop(columns=[*about]).to_string(index=False), gpus.to_string(index=False), sep="\n\n")


if __name__ == "__main__":
    main()

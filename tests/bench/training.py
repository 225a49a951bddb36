"""Training steps a second: the winner's settings against ours, option by option, side by side in one run.

    .venv/bin/python tests/bench/training.py   # GPU: winner_fold2 (ConvNeXt-small, 2048x1024, batch 8); CPU: demo
    .venv/bin/python tests/bench/training.py --steps 20 --rounds 3 --deterministic-steps 200 --threads 1

Each row is one way to train the same network: images a second (median of the rounds), times the first row, and on a
GPU the peak of its memory. Pictures are noise, time does not depend on them. Further rows say what the data
loader brings (decoding, augmentation and fitting, in one process) and what an affine change with a new tone takes on
the device, so that it can be seen which of them waits. At the end two deterministic trainings, whose weights
must have the same digest. Results go to tests/bench/results/training_<device>.csv.
"""
import argparse
import copy
import gc
import platform
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from mammo_nb.core.engines import weights_digest
from mammo_nb.core.pictures import write_png
from mammo_nb.core.steps import Training, seed_everything
from mammo_nb.mammo.drawing.breast import make_breast
from mammo_nb.mammo.recipes import Train
from mammo_nb.mammo.system import system
from mammo_nb.mammo.train import BreastCrops, build_network

RESULTS = Path(__file__).parent / "results"
LOSS = F.binary_cross_entropy_with_logits


@dataclass(frozen=True)
class Way:
    "One way to take a training step."
    half: torch.dtype | None
    channels_last: bool = False
    fused: bool = False
    foreach_average: bool = False
    compiled: bool = False
    batch: int = 1   # times the recipe's


def ways(device: str, half: torch.dtype | None) -> dict[str, Way]:
    "The winner's (float16 where there is one), then one option more in each row."
    winner = Way(torch.float16 if device == "cuda" else None)
    bf16 = replace(winner, half=torch.bfloat16)
    base = bf16 if half else winner   # a CPU without 16-bit units would only convert back and forth
    last = replace(base, channels_last=True)
    foreach = replace(last, foreach_average=True)
    fused = replace(foreach, fused=True)
    return {
        "the winner's: AMP, NCHW, eager": winner, "bfloat16": bf16, "and channels last": last,
        "and one kernel for the average": foreach, "and a fused optimiser": fused, "and torch.compile": replace(
            fused, compiled=True), "eager, twice the batch": replace(fused, batch=2), "eager, half the batch": replace(
                fused, batch=.5)
    }


class PlainStep:
    "A training loop as one would write it, with the options of a `Way`."
    def __init__(self, settings, way: Way, device: str):
        self.way, self.device = way, device
        self.layout = torch.channels_last if way.channels_last else torch.contiguous_format
        self.model = build_network(settings, "none").to(device, memory_format=self.layout).train()
        loop, parameters = settings.loop, self.model.parameters()
        options = dict(lr=loop.lr, weight_decay=loop.weight_decay, fused=way.fused, foreach=not way.fused)
        if loop.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(parameters, momentum=.9, nesterov=True, **options)
        else:
            self.optimizer = torch.optim.AdamW(parameters, **options)
        self.scaler = torch.amp.GradScaler(device, enabled=way.half == torch.float16)
        self.average, self.decay = copy.deepcopy(self.model).state_dict(), settings.loop.ema_decay
        self.run = torch.compile(self.model) if way.compiled else self.model

    def __call__(self, x: torch.Tensor, y: torch.Tensor):
        x, y = x.to(self.device, non_blocking=True, memory_format=self.layout), y.to(self.device, non_blocking=True)
        with torch.autocast(self.device, self.way.half, enabled=self.way.half is not None):
            output = self.run(x)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(LOSS(output.float(), y)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            state = {k: v for k, v in self.model.state_dict().items() if v.is_floating_point()}
            if self.way.foreach_average:
                torch._foreach_lerp_([self.average[k] for k in state], list(state.values()), 1 - self.decay)
            else:
                for k, v in state.items():
                    self.average[k].copy_(self.decay * self.average[k] + (1 - self.decay) * v)


class OurStep:
    "The step that recipes train with."
    def __init__(self, settings, deterministic: bool, device: str):
        config = replace(settings.loop, deterministic=deterministic)
        seed_everything(config.seed, deterministic)
        self.state = Training(build_network(settings, "none", 1), config, torch.device(device))
        self.state.model.train()
        self.model = self.state.model

    def __call__(self, x, y):
        self.state.train_batch(x, y, LOSS)


def wait(device: str):
    if device == "cuda":
        torch.cuda.synchronize()


def timed(make, settings, batch: int, steps: int, device: str) -> dict:
    "Images a second and peak memory of one way, built anew and warmed up."
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    x, y = torch.rand(batch, 3, settings.height, settings.width), (torch.arange(batch) % 2).float()[:, None]
    if device == "cuda":
        x, y = x.pin_memory(), y.pin_memory()
    step = make()
    for _ in range(3):
        step(x, y)
    wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        step(x, y)
    wait(device)
    return {
        "images_s": batch * steps / (time.perf_counter() - started),
        "peak_GB": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
    }


def loader_rate(settings, count: int = 24) -> float:
    "Images a second of one loading process."
    with tempfile.TemporaryDirectory() as folder:
        h, w = settings.height * 5 // 4, settings.width * 5 // 4
        drawn = make_breast(np.random.default_rng(7), "L", "MLO", (h, w), "mass")
        write_png(Path(folder) / "1@1.png", (drawn.pixels * 255).astype(np.uint8))
        data = BreastCrops(pd.DataFrame({"patient_id": ["1"], "image_id": ["1"], "cancer": [1]}), Path(folder),
                           settings, {"mean": .5, "std": .5})
        data[(0, 0)]
        started = time.perf_counter()
        for seed in range(count):
            data[(0, seed)]
        return count / (time.perf_counter() - started)


def device_augmentation_rate(settings, device: str, steps: int) -> float:
    "Images a second of an affine change, a mirror and a new tone, a batch at a time, on the device."
    x = torch.rand(settings.loop.batch_size, 1, settings.height, settings.width, device=device)
    def once():
        theta = torch.eye(2, 3, device=device).repeat(len(x), 1, 1) + .1 * torch.randn(len(x), 2, 3, device=device)
        moved = F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)
        return (moved * (1 + .2 * torch.randn(len(x), 1, 1, 1, device=device))).clamp(0, 1)
    for _ in range(3):
        once()
    wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        once()
    wait(device)
    return len(x) * steps / (time.perf_counter() - started)


def deterministic_digest(settings, steps: int, device: str) -> str:
    "Of the weights after so many steps on pictures drawn from a seed."
    step, rng = OurStep(settings, True, device), torch.Generator().manual_seed(3)
    for _ in range(steps):
        step(torch.rand(settings.loop.batch_size, 3, settings.height, settings.width, generator=rng), (torch.rand(
            settings.loop.batch_size, 1, generator=rng) < .3).float())
    return weights_digest(step.model)


def machine(device: str) -> dict:
    cpu = next((line.split(":")[1].strip()
                for line in subprocess.run(["lscpu"], capture_output=True, text=True).stdout.splitlines()
                if line.startswith("Model name")), platform.processor())
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "timm": version("timm")
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="", help="whose section train is measured")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deterministic-steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = args.recipe or ("winner_fold2" if device == "cuda" else "demo")
    settings = system.recipe(recipe).section(Train)
    half = OurStep(settings, False, device).state.half
    todo = {
        name: (lambda w=w: PlainStep(settings, w, device), max(1, int(w.batch * settings.loop.batch_size)))
        for name, w in ways(device, half).items()
    }
    todo |= {"ours (core.train), fastest kernels": (lambda: OurStep(settings, False, device), settings.loop.batch_size),
             "ours (core.train), deterministic": (lambda: OurStep(settings, True, device), settings.loop.batch_size)}
    seen = {name: [] for name in todo}
    for round in range(args.rounds):
        for name, (make, batch) in todo.items():
            seed_everything(0, False)
            seen[name].append(timed(make, settings, batch, args.steps, device))
            print(f"round {round + 1}: {name}: {seen[name][-1]['images_s']:.1f} images/s", flush=True)
    first = statistics.median(r["images_s"] for r in next(iter(seen.values())))
    rows = [{
        "what": name, "batch": todo[name][1], "images_s": (rate := statistics.median(r["images_s"] for r in results)),
        "times_winner": rate / first, "peak_GB": results[-1]["peak_GB"]
    } for name, results in seen.items()]
    rows += [
        {"what": "loading, one process: decode, augment, fit", "batch": 1, "images_s": loader_rate(settings)},
        {"what": "affine and tone on the device", "batch": settings.loop.batch_size,
         "images_s": device_augmentation_rate(settings, device, args.steps)},
    ]
    digests = [deterministic_digest(settings, args.deterministic_steps, device) for _ in range(2)]
    rows += [{
        "what": f"{args.deterministic_steps} deterministic steps twice: "
                f"{'equal weights, ' if len(set(digests)) == 1 else 'DIFFERENT WEIGHTS, '}{digests[0][:16]}",
        "batch": settings.loop.batch_size
    }]
    table = pd.DataFrame(rows).round(2).assign(recipe=recipe, height=settings.height, width=settings.width,
                                               **machine(device))
    table.to_csv(RESULTS / f"training_{device}.csv", index=False)
    print(table.iloc[:, :5].to_string(index=False))
    if len(set(digests)) > 1:
        raise SystemExit("two deterministic trainings ended with different weights")


if __name__ == "__main__":
    main()

"""Providers of an ensemble side by side: time an image against eager torch in float32, and the largest difference.

    .venv/bin/python tests/bench/engines.py                       # CPU: ensemble of runs/demo, ConvNeXt-small 256x128
    .venv/bin/python tests/bench/engines.py --run runs/demo --threads 1 --rounds 7
    .venv/bin/python tests/bench/engines.py                       # GPU: 4 x ConvNeXt-small 2048x1024, with engines

The ConvNeXt has random weights: time does not depend on them, differences do, so those of the demo count. All providers
are opened and warmed up first, then take turns; the median of the rounds is written down. On one thread of a CPU the
processor's own seconds are counted, which other users of the machine do not change.
Results go to tests/bench/results/engines.csv, on a GPU to engines_cuda.csv.
"""
import argparse
import os
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from torch import nn

from mammo_nb.core.engines import export_onnx
from mammo_nb.core.ensembles import Ensemble
from mammo_nb.core.files import read_json, write_json
from mammo_nb.core.graphs import write_mixed
from mammo_nb.core.networks import create_network, save_weights
from mammo_nb.core.providers import LIMITS, build_engines, open_ensemble
from mammo_nb.core.runs import Run
from mammo_nb.core.sidecars import EngineError
from mammo_nb.mammo.engines import sample_crops
from mammo_nb.mammo.tools.fetch import drawn_pictures

RESULTS = Path(__file__).parent / "results"
CPU = [
    "torch-fp32", "compiled-fp32", "onnxruntime-fp32", "openvino-fp32", "torch-bf16", "compiled-bf16", "openvino-bf16"
]
GPU = [
    "torch-fp32", "compiled-fp32", "onnxruntime-fp32", "torch-fp16", "torch-bf16", "onnxruntime-fp16", "compiled-fp16",
    "compiled-bf16"
]


def random_ensemble(folder: Path, network: str, folds: int, size: tuple[int, int]) -> Path:
    "An ensemble as a stage leaves it, with random weights: blocks and head are drawn wide, or it would be an identity."
    models = [create_network(network, global_pool="max", seed=k) for k in range(folds)]
    for k, model in enumerate(models):
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                nn.init.constant_(parameter, .1)
        nn.init.normal_(model.get_classifier().weight, std=.1, generator=torch.Generator().manual_seed(k))
        save_weights(model, folder / f"fold_{k}.safetensors", {})
    built = {
        "kind": "timm", "network": network, "global_pool": "max", "mirrored": False,
        "weights": [f"fold_{k}.safetensors" for k in range(folds)]
    }
    export_onnx(Ensemble(models, **models[0].normalization), folder / "ensemble.onnx", size, {"rebuild": built})
    return folder


def opened(folder: Path, providers: list[str], device: str, threads: int | None) -> dict:
    "Engines by provider. What a gate has ruled out is measured too; what cannot be opened is printed."
    metadata, found = read_json(folder / "ensemble.json"), {}
    write_json(folder / "ensemble.json", {k: v for k, v in metadata.items() if k != "refused"})
    with patch.dict(LIMITS, dict.fromkeys(LIMITS, 1.)):
        for name in providers:
            try:
                found[name] = open_ensemble(folder, providers=[name], device=device, threads=threads)
            except EngineError as e:
                print(str(e).splitlines()[-1].strip())
    return found


def measured(name: str, engines: dict, pictures: np.ndarray, batch: int, rounds: int, clock) -> list[dict]:
    "Rows of one ensemble: the providers take turns."
    seconds = {way: [] for way in engines}
    portions = [pictures[k:k + batch] for k in range(0, len(pictures), batch)]
    answers = {way: np.concatenate([engine(p) for p in portions]) for way, engine in engines.items()}   # warms up, too
    for _ in range(rounds):
        for way, engine in engines.items():
            started = clock()
            for portion in portions:
                engine(portion)
            seconds[way].append((clock() - started) / len(pictures))
    typical = {way: statistics.median(s) for way, s in seconds.items()}
    differences = {way: float(np.abs(a - answers["torch-fp32"]).max()) for way, a in answers.items()}
    return [{
        "ensemble": name, "way": way, "batch": batch, "ms_an_image": 1e3 * s, "images_s": 1 / s,
        "times_eager": typical["torch-fp32"] / s, "difference": differences[way], "limit": LIMITS[
            engines[way].precision], "within": differences[way] <= LIMITS[engines[way].precision]
    } for way, s in typical.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"),
                        help="of which the ensemble is measured, on a CPU")
    parser.add_argument("--network", default="convnext_small.fb_in22k_ft_in1k_384")
    parser.add_argument("--size", type=int, nargs=2, default=None,
                        help="of the network's input; default: 256 128, on a GPU 2048 1024")
    parser.add_argument("--folds", type=int, default=None, help="of the network; default: 1, on a GPU 4")
    parser.add_argument("--batch", type=int, default=None, help="default: 4, on a GPU 2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[],
                        help="providers to leave out: compiling takes minutes of a processor")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    cpu_ways, gpu_ways = ([w for w in ways if w not in args.without] for ways in (CPU, GPU))
    torch.set_num_threads(args.threads)
    size = tuple(args.size or ((2048, 1024) if gpu else (256, 128)))
    folds, batch = args.folds or (4 if gpu else 1), args.batch or (2 if gpu else 4)
    clock, rows = time.process_time if args.threads == 1 and not gpu else time.perf_counter, []
    if not gpu:
        with tempfile.TemporaryDirectory() as copy:
            run = Run.open(args.run)
            weights = run.path("weights/")
            for file in (*weights.glob("ensemble.[jo]*"), *weights.glob("fold_*")):
                Path(copy, file.name).write_bytes(file.read_bytes())
            about = read_json(weights / "ensemble.json")
            rows += measured(
                f"{about['folds']} x {about['network']} at {about['size'][0]}x{about['size'][1]} of {args.run.name}",
                opened(Path(copy), cpu_ways, "cpu", args.threads), sample_crops(run, tuple(about["size"])), batch,
                args.rounds, clock)
    with tempfile.TemporaryDirectory() as folder:
        folder, ways = random_ensemble(Path(folder), args.network, folds, size), cpu_ways
        if gpu:
            write_mixed(folder / "ensemble.onnx", folder / "ensemble.fp16.onnx")
            target = "SM{}{}".format(*torch.cuda.get_device_capability())
            try:
                build_engines(folder, "ensemble", [target])
            except EngineError as e:
                print(e)
            ways = [*gpu_ways, *(f.name for f in folder.glob("*.engine"))]
        rows += measured(f"{folds} x {args.network} at {size[0]}x{size[1]}, random weights",
                         opened(folder, ways, "cuda" if gpu else "cpu", args.threads),
                         np.concatenate([drawn_pictures(size, 4)] * 2), batch, args.rounds, clock)
    found = []
    for package in ("torch", "timm", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt-rtx", "triton"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue   # not installed here, so not among the versions
    cpu = next((line.split(":")[1].strip()
                for line in subprocess.run(["lscpu"], capture_output=True, text=True).stdout.splitlines()
                if line.startswith("Model name")), "")
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    units = " ".join(f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {f} " in flags)
    table = pd.DataFrame(rows).assign(device=torch.cuda.get_device_name() if gpu else f"{cpu} ({units})",
                                      threads=args.threads, versions=" ".join(found))
    table = table.round({"ms_an_image": 2, "images_s": 2, "times_eager": 2})
    table["difference"] = table["difference"].map("{:.1e}".format)
    table.to_csv(RESULTS / f"engines{'_cuda' if gpu else ''}.csv", index=False)
    print(table.iloc[:, :9].to_string(index=False))
    for name, part in table[table["within"]].groupby("ensemble", sort=False):
        print(
            f"{name}: best within its limit {part.loc[part['times_eager'].idxmax(), 'way']}, "
            f"{part['times_eager'].max():.2f} x eager torch"
        )


if __name__ == "__main__":
    main()

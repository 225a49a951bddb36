"""TensorRT-RTX engines of the winner's ensemble, built on a machine without a GPU: seconds, size, memory.

    .venv/bin/python tests/bench/tensorrt.py             # 4 x ConvNeXt-small at 2048x1024 for SM75, the T4 of Kaggle
    .venv/bin/python tests/bench/tensorrt.py --targets SM75 SM80 SM86 SM89 SM120 --size 1024 512

Weights are random: neither time nor size depends on them. Each step runs in a process of its own, so that its peak of
memory is its own. Only a GPU can show whether an engine computes the right numbers. Needs `tensorrt-rtx`.
Results go to tests/bench/results/tensorrt.csv.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parent / "results"
STEPS = {   # what is measured -> code; a is the dict of arguments
    "export": """import torch
from mammo_nb.core.engines import export_onnx
from mammo_nb.core.ensembles import Ensemble
from mammo_nb.core.networks import create_network
models = [create_network(a["network"], global_pool="max", seed=k) for k in range(a["folds"])]
export_onnx(Ensemble(models, **models[0].normalization), Path(a["folder"], "ensemble.onnx"), tuple(a["size"]), {})""",
    "mixed precision": """from mammo_nb.core.graphs import write_mixed
write_mixed(Path(a["folder"], "ensemble.onnx"), Path(a["folder"], "ensemble.fp16.onnx"))""",
    "engine": """from mammo_nb.core.providers import build_engines
build_engines(Path(a["folder"]), "ensemble", [a["target"]], batches=tuple(a["batches"]))"""}


def measured(step: str, arguments: dict) -> dict:
    "Seconds, seconds of the processor (with imports), and peak memory of one step."
    code = f"""import json, resource, sys, time
from pathlib import Path
a, started = json.loads(sys.argv[1]), time.perf_counter()
{STEPS[step]}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps({{"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time(), "peak_GB": peak}}))"""
    done = subprocess.run([sys.executable, "-c", code, json.dumps(arguments)], check=True, capture_output=True,
                          text=True)
    return {"step": step, **json.loads(done.stdout.splitlines()[-1])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="convnext_small.fb_in22k_ft_in1k_384")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=[2048, 1024])
    parser.add_argument("--targets", nargs="+", default=["SM75"])
    parser.add_argument("--batches", type=int, nargs=3, default=[1, 2, 8])
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for step, target, file in [("export", "", "ensemble.onnx"), ("mixed precision", "", "ensemble.fp16.onnx"),
                                   *(("engine", t, f"ensemble.{t}.engine") for t in args.targets)]:
            row = measured(step, {**vars(args), "target": target, "folder": folder})
            rows.append({"step": step, "target": target, **row, "MB": Path(folder, file).stat().st_size / 1e6})
            print({k: round(v, 1) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    cpu = next((line.split(":")[1].strip()
                for line in subprocess.run(["lscpu"], capture_output=True, text=True).stdout.splitlines()
                if line.startswith("Model name")), "")
    versions = " ".join(f"{p} {version(p)}" for p in ("tensorrt-rtx", "torch", "timm", "onnx"))
    table = pd.DataFrame(rows).round(1).assign(
        network=args.network, folds=args.folds, height=args.size[0], width=args.size[1], batches=" ".join(
            map(str, args.batches)), cpu=cpu, cores=len(os.sched_getaffinity(0)), versions=versions)
    table.to_csv(RESULTS / "tensorrt.csv", index=False)


if __name__ == "__main__":
    main()

"""Head CT from DICOM to features, and from features to probabilities: eager torch against the providers, side by side.

    python tests/bench/head_ct.py --weights runs/ich/weights [--scans ../shared/data/ct/head_ge_28] [--rounds 5]
    python tests/bench/head_ct.py --network resnext101_32x8d --size 480 --rounds 2     # random weights, no run needed

Slices: header, HU, windows, crop and all classifiers, one view, as a submission does it; "reading" is that without a
network. Sequences: all sequence models on a series. All ways are opened and warmed up first, then take turns in one
process; the median of the rounds is written down, and differences are those of results (features, probabilities)
against eager torch.
On one thread the processor's own seconds are counted, which other users of the machine do not change.
Results go to tests/bench/results/head_ct.csv.
"""
import argparse
import os
import platform
import statistics
import subprocess
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mammo_nb.core.engines import export_onnx
from mammo_nb.core.files import read_json
from mammo_nb.core.networks import save_weights
from mammo_nb.core.providers import LIMITS, open_ensemble
from mammo_nb.core.sidecars import EngineError
from mammo_nb.ich.learning.graphs import Member, SeriesReader, encode_series, encoders, readers
from mammo_nb.ich.reading.inputs import Seen, encoder_inputs, find_slices, read_series_pictures
from mammo_nb.ich.recipes import CLASSES, View

RESULTS = Path(__file__).parent / "results"
WAYS = ("torch-fp32", "compiled-fp32", "onnxruntime-fp32", "openvino-fp32")


def random_bag(folder: Path, network: str, size: int, embedding: int) -> Path:
    "Graphs of a bag with random weights, as the stage engines leaves them."
    member = Member(network, len(CLASSES), embedding)
    model = SeriesReader(member.width, member.width, len(CLASSES))
    save_weights(member, folder / "encoders/windows_fold0_epoch0.safetensors", {})
    save_weights(model, folder / "sequence/lstm_fold0_epoch0_0.safetensors", {})
    own = {"classes": CLASSES, "tta": 1, "faithful": False, "box": "slice", "given": False, "views": [asdict(View())]}
    common = {"mirrored": False, "classes": len(CLASSES)}
    export_onnx(encoders([member], ["windows_crop"], CLASSES), folder / "encoder.onnx", [size, size], {
        **own, "network": network, "rebuild": {
            **common, "kind": "ich_member", "network": network, "embedding": embedding,
            "weights": ["encoders/windows_fold0_epoch0.safetensors"]}})
    export_onnx(readers([model], 1, member.width, CLASSES), folder / "sequence.onnx", [], {"rebuild": {
        **common, "kind": "ich_series_reader", "embedding": member.width, "units": member.width,
        "weights": ["sequence/lstm_fold0_epoch0_0.safetensors"]}})
    return folder


def opened(folder: Path, name: str, ways: list[str], threads: int, device: str) -> dict:
    "Engines by provider; what cannot be opened is printed."
    found = {}
    for way in ways:
        try:
            found[way] = open_ensemble(folder, name, [way], device, threads=threads)
        except EngineError as e:
            print(str(e).splitlines()[-1].strip())
    return found


def measured(part: str, ways: dict, count: int, rounds: int, clock) -> list[dict]:
    "A row for each way; `ways` are functions without arguments, which take turns."
    answers, seconds = {way: run() for way, run in ways.items()}, {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            started = clock()
            run()
            seconds[way].append((clock() - started) / count)
    eager = statistics.median(seconds["torch-fp32"])
    reference, rows = answers["torch-fp32"], []
    for way, own in seconds.items():
        typical = statistics.median(own)
        ratio = statistics.median(e / s for e, s in zip(seconds["torch-fp32"], own))
        known = answers[way] is not None
        difference = float(np.abs(answers[way] - reference).max()) if known else None
        rows.append({"part": part, "way": way, "per_second": round(1 / typical, 2), "ms": round(1e3 * typical, 3),
                     "times_eager": round(ratio, 2) if known else None,
                     "share_of_eager": round(typical / eager, 3), "difference": difference,
                     "within": difference <= LIMITS["fp32"] if known else None})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=None, help="default: random weights of --network")
    parser.add_argument("--network", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--embedding", type=int, default=64, help="0: the network's own features")
    parser.add_argument("--scans", type=Path, default=Path("../shared/data/ct/head_ge_28"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--without", nargs="*", default=[], help="providers to leave out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clock = time.process_time if args.threads == 1 and device == "cpu" else time.perf_counter
    ways = [w for w in WAYS if w not in args.without]
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        folder = args.weights or random_bag(scratch / "bag", args.network, args.size, args.embedding)
        about = read_json(folder / "encoder.json")
        table, _ = find_slices(args.scans, scratch, workers=1)
        rows = table[table["place"] != ""].to_dict("records")
        settings = Seen.read(about)

        def read():
            return encoder_inputs(read_series_pictures(args.scans, rows, settings)[0], settings)

        classifiers = opened(folder, "encoder", ways, args.threads, device)
        models = opened(folder, "sequence", ways, args.threads, device)
        inputs = read()
        features = encode_series(classifiers["torch-fp32"], inputs)[0]
        found = measured("slices, from DICOM to features", {
            **{way: lambda e=engine: encode_series(e, read())[0] for way, engine in classifiers.items()},
            "reading": lambda: read() and None}, len(rows), args.rounds, clock)
        found += measured("slices, classifiers alone", {
            way: lambda e=engine: encode_series(e, inputs)[1] for way, engine in classifiers.items()},
            len(rows), args.rounds, clock)
        found += measured("sequences", {
            way: lambda e=engine: e(features).mean(1) for way, engine in models.items()}, 1, args.rounds, clock)
    cpu = next((line.split(":")[1].strip()
                for line in subprocess.run(["lscpu"], capture_output=True, text=True).stdout.splitlines()
                if line.startswith("Model name")), platform.processor())
    versions = []
    for package in ("torch", "timm", "onnxruntime", "openvino"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue   # not installed here
    models_of = read_json(args.weights / "sequence.json")["folds"] if args.weights else 1
    result = pd.DataFrame(found).assign(
        networks=f"{about['folds']} x {about['network']} at {about['size'][0]}, {models_of} sequence models",
        slices=len(rows), rounds=args.rounds, threads=args.threads,
        device=torch.cuda.get_device_name() if device == "cuda" else cpu, versions=" ".join(versions))
    result["difference"] = result["difference"].map("{:.1e}".format, na_action="ignore")
    result.to_csv(RESULTS / "head_ct.csv", index=False)
    print(result.iloc[:, :8].to_string(index=False))


if __name__ == "__main__":
    main()

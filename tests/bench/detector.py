"""What it takes to find a breast: letterbox, network, thinning, on one core, for an image already decoded.

    python tests/bench/detector.py [--detector runs/demo/weights/detector.onnx] [--scans ../shared/data/mammo]

One row a network and size: the exported graph in ONNX Runtime and OpenVINO against the same weights in eager
PyTorch, side by side in one run, with the largest difference of a side of any box. The winner's size, 416,
is timed with random weights: time does not depend on them. With scans, the boxes of a trained detector on real
mammograms against boxes drawn by hand. Results go to tests/bench/results/detector.csv and detector_scans.csv.
"""
import argparse
import platform
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mammo_nb.core.backends import open_graph
from mammo_nb.core.detection import iou, letterbox
from mammo_nb.core.dicom import read_frame
from mammo_nb.core.yolox import create_yolox, export_yolox, load_yolox
from mammo_nb.mammo.drawing.breast import make_breast
from mammo_nb.mammo.reading.boxes import detect, find_box, frame_view, open_detector, otsu_box
from mammo_nb.mammo.detector import torch_graph
from mammo_nb.mammo.recipes import Crops

RESULTS = Path(__file__).parent / "results"
# x0, y0, x1, y1 in pixels of the file, drawn by hand on the frame at 832 rows: the breast with its axillary tail down
# to the fold
BY_HAND = {"ge_senographe_RMLO_GH133.dcm": (1163, 0, 2394, 2252), "ddsm_P_00173_benign_L_CC.dcm": (0, 666, 1438, 3889)}


def machine() -> dict:
    cpu = next((line.split(":")[1].strip()
                for line in subprocess.run(["lscpu"], capture_output=True, text=True).stdout.splitlines()
                if line.startswith("Model name")), platform.processor())
    return {"cpu": cpu, **{p: version(p) for p in ("torch", "onnxruntime", "openvino")}}


def times(function, views: list, repeats: int = 7) -> list:
    "Milliseconds a view, one number a round."
    for view in views:
        function(view)
    rounds = []
    for _ in range(repeats):
        started = time.perf_counter()
        for view in views:
            function(view)
        rounds.append((time.perf_counter() - started) / len(views) * 1e3)
    return rounds


def measure(label: str, network, size: int, folder: Path, frames: list) -> list:
    "Rows of one network: each back end in turn, round by round."
    export_yolox(network, folder / f"{label}.onnx", size, {})
    graphs = {
        "torch eager": torch_graph(network, size),
        **{name: open_graph(folder / f"{label}.onnx", name, threads=1) for name in ("onnxruntime", "openvino")}
    }
    views = [frame_view(f, size) for f in frames]
    squares = np.stack([letterbox(v, size)[0] for v in views])[:, None]
    said = {name: g(squares)[..., :4] for name, g in graphs.items()}
    rows, eager = [], None
    for name, graph in graphs.items():
        rounds = times(lambda v: detect([v], graph), views)
        eager = eager or statistics.median(rounds)
        rows.append({
            "network": label, "size": size, "backend": name, "ms": round(statistics.median(rounds), 2), "ms_min": round(
                min(rounds), 2), "ms_max": round(max(rounds), 2), "times_eager": round(
                    eager / statistics.median(rounds), 2),
            "largest_difference_px": float(f"{np.abs(said[name] - said['torch eager']).max():.1e}")
        })
    rows.append(
        {"network": "Otsu", "size": size, "backend": "", "ms": round(statistics.median(times(otsu_box, views)), 2)})
    return rows


def on_scans(folder: Path, graph) -> pd.DataFrame:
    rows = []
    for name, true in BY_HAND.items():
        frame = read_frame(folder / name)
        for how, g in (("detector", graph), ("Otsu", None)):
            image = frame.decode(.25)
            box = find_box(image, Crops(), g)
            rows.append({
                "file": name, "by": how, "found": box.source, "score": box.score and round(box.score, 3), "x0": box.x0,
                "y0": box.y0, "x1": box.x1, "y1": box.y1, "iou": round(
                    iou([(box.x0, box.y0, box.x1, box.y1)], [true]).item(), 3)
            })
    return pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detector", type=Path, default=Path("runs/demo/weights/detector.onnx"))
    parser.add_argument("--scans", type=Path, default=Path("../shared/data/mammo"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    from mammo_nb.core.dicom import Image
    from mammo_nb.core.headers import Header
    empty = dict.fromkeys(Header.__dataclass_fields__)
    pixels = [
        np.uint16(
            make_breast(np.random.default_rng(k), "LR"[k % 2], ("CC", "MLO")[k // 2 % 2], (832, 640)).pixels * 4095)
        for k in range(8)
    ]
    frames = [
        Image(Header(**{**empty, "rows": 832, "columns": 640, "photometric": "MONOCHROME2", "windows": ()}), p, "none")
        for p in pixels
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        rows += measure("random, the winner's size", create_yolox().eval(), 416, Path(folder), frames)
        if arguments.detector.exists():
            network = create_yolox()
            load_yolox(network, arguments.detector.with_name("yolox.safetensors"))
            rows += measure("demo", network.eval(),
                            open_detector(arguments.detector).metadata["size"], Path(folder), frames)
    table = pd.DataFrame(rows).assign(**machine())
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "detector.csv", index=False)
    print(table.drop(columns=list(machine())).to_string(index=False))
    if arguments.scans.is_dir() and arguments.detector.exists():
        found = on_scans(arguments.scans, open_detector(arguments.detector))
        found.to_csv(RESULTS / "detector_scans.csv", index=False)
        print(found.to_string(index=False))


if __name__ == "__main__":
    main()

"""What it takes to find a breast: letterbox, network, thinning, on one core, for an image already decoded.

    python tests/bench/detector.py [--detector runs/demo/weights/detector.onnx] [--scans ../shared/data/mammo]

One row a network and size: the exported graph in ONNX Runtime and OpenVINO against the same weights in eager
PyTorch, side by side in one run, with the largest difference of a side of any box. The winner's size, 416,
is timed with random weights: time does not depend on them. With scans, the boxes of a trained detector on real
mammograms against boxes drawn by hand. Results go to tests/bench/results/detector.csv and detector_scans.csv.

    python tests/bench/detector.py --boxes [--detector ...] [--scans ...]

measures boxes only, as they are found and refined: the share of the breast outside, nipples outside, and IoU, on
drawn frames, whose breast is known, and on every fourth CBIS picture (300). There the breast is the largest component
above 10 of 255 grey levels, opened by 9 pixels; it includes the abdomen where this touches the breast, and the nipple
is its pixel that is farthest from the chest wall. Results go to detector_boxes.csv and detector_scans.csv.
"""
import argparse
import itertools
import platform
import statistics
import subprocess
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from mammo_nb.core.backends import open_graph
from mammo_nb.core.detection import iou, letterbox
from mammo_nb.core.dicom import Image, read_frame
from mammo_nb.core.headers import Header
from mammo_nb.core.yolox import create_yolox, export_yolox, load_yolox
from mammo_nb.mammo.drawing.breast import make_breast, mask_box
from mammo_nb.mammo.drawing.frames import FAMILIES, draw_scene, plan_frames, stretch
from mammo_nb.mammo.drawing.scenes import chance
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
        image = frame.decode(.25)
        for by, way in itertools.product(("detector", "Otsu"), WAYS):
            box = find_box(image, WAYS[way], graph if by == "detector" else None)
            corners = box.x0, box.y0, box.x1, box.y1
            rows.append({
                "file": name, "by": by, "box": way, "found": box.source, "score": box.score and round(box.score, 3),
                **dict(zip(("x0", "y0", "x1", "y1"), corners)), "iou": round(iou([corners], [true]).item(), 3)
            })
    return pd.DataFrame(rows)


WAYS = {"as found": Crops(growth=0), "refined": Crops()}


def plain_image(pixels: np.ndarray) -> Image:
    "Grey levels as the picture of a file without windows."
    fields = dict.fromkeys(Header.__dataclass_fields__)
    rows, columns = pixels.shape
    return Image(Header(**{**fields, "rows": rows, "columns": columns, "aspect": 1.0, "photometric": "MONOCHROME2",
                           "windows": ()}),
                 pixels, "none")


def drawn_frames(strangeness: float, patients: int):
    "Frames as those that the detector is trained on, of other patients: grey levels, mask, nipple."
    for frame in plan_frames(patients, 0, 4711):
        rng = np.random.default_rng(frame["entropy"])
        scene = draw_scene(rng, frame["breast"], frame["laterality"], frame["view"], 416,
                           tuple(f for f in FAMILIES if chance(rng, strangeness)))
        mask = scene.cover > .5
        yield stretch(scene.picture), mask, tip(mask, scene.x)


def competition_frames(count: int):
    "Frames as those of the drawn competition."
    for i in range(count):
        side, view = "LR"[i // 2 % 2], ("CC", "MLO")[i % 2]
        drawn = make_breast(np.random.default_rng([99, i]), side, view, (832, 640))
        across = np.tile(np.arange(640.), (832, 1))
        yield np.uint16(drawn.pixels * 4095), drawn.breast_mask, tip(drawn.breast_mask, across if side == "L" else
                                                                      -across)


def cbis_pictures(folder: Path, count: int):
    "Real pictures, whose breasts are on the left in front of black."
    for path in sorted(folder.glob("*.png"))[::4][:count]:
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        bright = cv2.copyMakeBorder(np.uint8(grey > 10), 9, 9, 9, 9, cv2.BORDER_REPLICATE)
        opened = cv2.morphologyEx(bright, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9)))
        _, labels, stats, _ = cv2.connectedComponentsWithStats(opened[9:-9, 9:-9])
        mask = labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
        yield grey, mask, tip(mask, np.tile(np.arange(grey.shape[1]), (len(grey), 1)))


def tip(mask: np.ndarray, away: np.ndarray) -> tuple:
    "x, y of the pixel of a mask that is farthest from the chest wall."
    ys, xs = np.nonzero(mask)
    farthest = away[mask].argmax()
    return xs[farthest], ys[farthest]


def box_quality(label: str, frames, graph) -> list:
    "Rows of one set, as found and refined, by the detector and by Otsu's threshold."
    found = {way: [] for way in itertools.product(("detector", "Otsu"), WAYS)}
    for pixels, mask, (x, y) in frames:
        for by, way in found:
            settings = replace(WAYS[way], scaling="none" if pixels.dtype == np.uint8 else "window")
            box = find_box(plain_image(pixels), settings, graph if by == "detector" else None)
            corners = box.x0, box.y0, box.x1, box.y1
            outside = 1 - mask[box.y0:box.y1, box.x0:box.x1].sum() / mask.sum()
            found[by, way].append((outside, not (box.x0 <= x < box.x1 and box.y0 <= y < box.y1),
                                   iou([corners], [mask_box(mask)]).item()))
    rows = []
    for (by, way), values in found.items():
        outside, nipple, overlap = np.array(values, float).T
        rows.append({
            "pictures": label, "count": len(values), "by": by, "box": way, "breast_outside_percent": round(
                100 * outside.mean(), 3), "median_outside_percent": round(100 * np.median(outside), 3),
            "share_above_0.1_percent": round((outside > .001).mean(), 3), "nipples_outside": int(nipple.sum()),
            "iou_mean": round(overlap.mean(), 3), "iou_min": round(overlap.min(), 3)
        })
    return rows


def measure_boxes(scans: Path, graph):
    sets = {
        "drawn competition": competition_frames(80), "drawn frames, strangeness 0": drawn_frames(0, 25),
        "drawn frames, strangeness 0.2": drawn_frames(.2, 50), "drawn frames, strangeness 1": drawn_frames(1, 25)
    }
    if scans.is_dir():
        sets["CBIS-DDSM, 256 x 256"] = cbis_pictures(scans / "cbis_ddsm_mass_256/img", 300)
    table = pd.DataFrame([row for label, frames in sets.items() for row in box_quality(label, frames, graph)])
    table.to_csv(RESULTS / "detector_boxes.csv", index=False)
    print(table.to_string(index=False))
    if scans.is_dir():
        found = on_scans(scans, graph)
        found.to_csv(RESULTS / "detector_scans.csv", index=False)
        print(found.to_string(index=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detector", type=Path, default=Path("runs/demo/weights/detector.onnx"))
    parser.add_argument("--scans", type=Path, default=Path("../shared/data/mammo"))
    parser.add_argument("--boxes", action="store_true", help="measure boxes, and no times")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.boxes:
        measure_boxes(arguments.scans, open_detector(arguments.detector))
        return
    pixels = [
        np.uint16(
            make_breast(np.random.default_rng(k), "LR"[k % 2], ("CC", "MLO")[k // 2 % 2], (832, 640)).pixels * 4095)
        for k in range(8)
    ]
    frames = [plain_image(p) for p in pixels]
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

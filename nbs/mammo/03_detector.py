# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Detector
# > A network of a megabyte that finds the breast in a frame, trained from boxes.
#
# Otsu's threshold finds what is bright. Besides the breast that may be the abdomen, and where air is not dark it is the
# whole frame. The winner drew 571 boxes and trained YOLOX-nano on them, the smallest YOLOX; it was right on all 50
# frames that he held back. Where his boxes and scans are missing, frames are drawn (`drawing/frames`), with enough
# variety for the detector to work on real scans.

# %%
#| default_exp mammo.detector

# %%
#| export
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from mammo_nb.core.backends import EngineError, Graph, open_graph, read_sidecar
from mammo_nb.core.detection import STRIDES, coco_score, corners, letterbox, pad_square
from mammo_nb.core.engines import load_engine
from mammo_nb.core.files import sha256
from mammo_nb.core.networks import load_weights, save_weights
from mammo_nb.core.runs import Run, StageError
from mammo_nb.core.train import fit
from mammo_nb.core.yolox import DetectorGraph, Yolox, YoloxLoss, create_yolox, export_yolox, load_yolox
from mammo_nb.mammo.drawing.frames import draw_frames
from mammo_nb.mammo.reading.annotations import prepare_frames
from mammo_nb.mammo.reading.boxes import detect
from mammo_nb.mammo.reading.roi import to_coco
from mammo_nb.mammo.recipes import Detector

# %%
#| hide
import time

import matplotlib.pyplot as plt

from mammo_nb.core.detection import iou
from mammo_nb.core.dicom import read_frame
from mammo_nb.core.grey import decode_grey
from mammo_nb.core.practice import practice
from mammo_nb.core.train import plot_epochs
from mammo_nb.mammo.datasets import read_table
from mammo_nb.mammo.reading.boxes import frame_view, open_detector, otsu_box
from mammo_nb.mammo.reading.roi import from_pixels
from mammo_nb.mammo.system import system

# %% tags=["parameters"]
run_dir = ""                             # folder of the run; "" makes a small practice run
overrides = {}                           # changes for this run, such as {"detector.patients": 400}
workers = 0                              # processes that prepare frames; 0: one a core

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="detector", overrides=overrides)
run.contract("detector")

# %%
#| hide
settings = run.section("detector")

# %% [markdown]
# ## Frames with boxes
# A recipe names boxes that somebody has drawn (`reading/annotations` reads them), or the frames are drawn together with
# their boxes. Both give the same folder: boxes in YOLOv5 text, and pictures as the detector gets them.

# %%
#| export
def make_frames(
    run: Run,
    settings: Detector,
    workers: int | None = None,  # processes; None: one for each core
) -> tuple[pd.DataFrame, Path]:  # roi.COLUMNS and the folder of the set
    "Draw or read the set that a recipe names."
    folder = run.path("processed/roi")
    if not settings.annotations:
        boxes = draw_frames(folder, patients=settings.patients, held_back=settings.held_back, size=settings.size,
                            seed=settings.drawing_seed, strangeness=settings.strangeness, workers=workers)
        return boxes, folder
    raw = run.path(f"raw/{run.section('datasets').name}")
    return prepare_frames(raw.parent / settings.annotations, raw, folder, settings, workers), folder

# %%
boxes, folder = make_frames(run, settings, workers or None)
fig, axes = plt.subplots(2, 8, figsize=(12, 4))
for ax, b in zip(axes.flat, boxes.itertuples()):
    view = cv2.imread(str(folder / b.image), cv2.IMREAD_GRAYSCALE)
    ax.imshow(view, cmap="gray", vmin=0, vmax=255)
    ax.axis("off")
    rows, columns = view.shape
    ax.add_patch(
        plt.Rectangle(((b.cx - b.w / 2) * columns, (b.cy - b.h / 2) * rows), b.w * columns, b.h * rows, fill=False,
                      edgecolor="orange"))
fig.suptitle(f"{boxes['split'].eq('train').sum()} frames to train with, {boxes['split'].eq('val').sum()} held back")
fig.tight_layout()

# %% [markdown]
# ## The input of the network
# Each frame in a square, every second one mirrored, as the winner did. Other variety comes from the frames themselves.
# With `detector.faithful`, the frames of the set already have the winner's size, whose longer side may be 415 of 416
# pixels, and they are only padded.

# %%
#| export
class Frames(Dataset):
    "Frames as squares, with their boxes: `dataset[(index, seed)]`, mirrored for half of the seeds, not for -1."
    def __init__(
        self,
        boxes: pd.DataFrame,   # roi.COLUMNS
        folder: Path,          # of the set
        size: int,             # side of the square, pixels
        fitted: bool = False,  # the frames have been resized to fit
    ):
        self.files, self.size, self.fitted = [Path(folder) / image for image in boxes["image"]], size, fitted
        self.shares = corners(boxes[["cx", "cy", "w", "h"]].to_numpy(float))

    def __len__(self):
        return len(self.files)

    def square(self, index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        "The square, uint8 (size, size), and x0, y0, x1, y1 in it."
        picture = cv2.imread(str(self.files[index]), cv2.IMREAD_GRAYSCALE)
        if picture is None:
            raise FileNotFoundError(f"{self.files[index]} cannot be read. Run the stage detector again.")
        box = self.shares[index] * ([*picture.shape[::-1]] * 2)
        if seed >= 0 and np.random.default_rng(seed).random() < .5:
            picture = np.ascontiguousarray(picture[:, ::-1])
            x0, y0, x1, y1 = box
            box = np.array([picture.shape[1] - x1, y0, picture.shape[1] - x0, y1])
        if self.fitted:
            return pad_square(picture, self.size), box
        square, ratio = letterbox(picture, self.size)
        return square, box * ratio

    def __getitem__(self, at: tuple[int, int]):
        square, (x0, y0, x1, y1) = self.square(*at)
        target = [[0, (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]]
        return torch.from_numpy(square).float().expand(3, -1, -1), torch.tensor(target, dtype=torch.float32)

# %%
frames = Frames(boxes, folder, settings.size)
fig, axes = plt.subplots(2, 8, figsize=(12, 3.4))
for ax, (i, seed) in zip(axes.flat, ((i, seed) for i in range(4) for seed in (-1, 0, 1, 2))):
    square, (x0, y0, x1, y1) = frames.square(i, seed)
    ax.imshow(square, cmap="gray", vmin=0, vmax=255)
    ax.axis("off")
    ax.set_title("as it is" if seed < 0 else f"seed {seed}", fontsize=8)
    ax.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="orange"))
    assert 0 <= x0 < x1 <= settings.size and 0 <= y0 < y1 <= settings.size
fig.tight_layout()

# %% [markdown]
# ## Training
# The loop is that of `core/train`, the loss that of `core/yolox`, and the schedule the winner's. After each epoch the
# boxes of the held-back patients are predicted with the EMA weights and scored by COCO's AP: the mean over ten
# thresholds of the overlap, of which the strictest is 95 %.

# %%
#| export
def frame_batches(
    count: int,         # frames
    batch_size: int,
    seed: int,
):                      # f(epoch) -> batches of (index, seed)
    "Sampler with every frame once in an epoch, in a new order and with a new seed."
    def batches(epoch: int) -> list[list[tuple[int, int]]]:
        rng = np.random.default_rng([seed, epoch])
        seeds = rng.integers(2**31, size=count)
        pairs = [(int(i), int(seeds[i])) for i in rng.permutation(count)]
        return [pairs[s:s + batch_size] for s in range(0, count, batch_size)]
    return batches

def read_views(
    boxes: pd.DataFrame,   # roi.COLUMNS
    folder: Path,          # of the set
) -> list:                 # uint8 (rows, columns)
    "Read the frames of a set."
    return [cv2.imread(str(folder / image), cv2.IMREAD_GRAYSCALE) for image in boxes["image"]]

def found_in(
    boxes: pd.DataFrame,   # roi.COLUMNS
    views: list,           # uint8 (rows, columns), the frame of each box
    graph: Graph,          # anything that `detect` takes
    batch_size: int = 16,
) -> tuple[dict, list]:    # COCO instances and results, for `coco_score`
    "Boxes that a detector finds in frames, down to a confidence of 1 %, beside the true ones."
    truth = to_coco(boxes, {image: view.shape for image, view in zip(boxes["image"], views)})
    found = []
    for start in range(0, len(views), batch_size):
        found += detect(views[start:start + batch_size], graph, confidence=.01)
    results = [{"image_id": number, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(score)}
               for number, (places, scores) in enumerate(found, 1)
               for (x0, y0, x1, y1), score in zip(places.tolist(), scores)]
    return truth, results

def torch_graph(
    network: Yolox,
    size: int,       # side of the input, pixels
) -> Graph:
    "A network in memory in the place of a file."
    return replace(load_engine(DetectorGraph(network, size)), metadata={"size": size})

def expect(
    network: Yolox,      # untrained
    sides: np.ndarray,   # width and height of a usual box, pixels of the input
):
    "Set biases so that an untrained network predicts a box of the usual size, not one of the size of a cell."
    with torch.no_grad():
        for layer, stride in zip(network.head.reg_preds, STRIDES):
            layer.bias[2:] = torch.from_numpy(np.log(sides / stride))

def train_detector(
    boxes: pd.DataFrame,   # roi.COLUMNS
    folder: Path,          # of the set
    output: Path,          # checkpoints/detector/
    settings: Detector,
    identity: dict,        # which data and code this is
    initial: Path | None = None,  # .pth of YOLOX with the initial weights
) -> pd.DataFrame:         # history: a row for each epoch
    "Train YOLOX-nano; with `faithful`, frames and the cells of boxes are as in the winner's copy of YOLOX."
    loop = settings.loop
    train, held = (boxes[boxes["split"] == split].reset_index(drop=True) for split in ("train", "val"))
    network = create_yolox(seed=loop.seed)
    if initial:
        load_yolox(network, initial, initial=True)
    else:
        expect(network, settings.size * train[["w", "h"]].median().to_numpy())
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = settings.norm_momentum
    loss = YoloxLoss(network, settings.size, settings.faithful)
    views = read_views(held, folder)

    def on_epoch(epoch: int):
        loss.l1 = epoch >= loop.epochs - settings.l1_epochs
        network.frozen_norm = epoch >= loop.epochs - settings.frozen_norm

    def validate(model: Yolox, epoch: int) -> dict:
        return coco_score(*found_in(held, views, torch_graph(model, settings.size)))

    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads)
    try:
        return fit(network, Frames(train, folder, settings.size, fitted=settings.faithful),
                   frame_batches(len(train), loop.batch_size, loop.seed), loss, validate, loop, output,
                   label="detector", identity=identity, on_epoch=on_epoch)
    finally:
        torch.set_num_threads(threads)

# %% [markdown]
# ## Export
# The best epoch becomes a file of weights and a graph. The graph must predict what torch predicts: the boxes with the
# highest confidence in the held-back frames are compared.

# %%
#| export
FILES = ["detector.onnx", "detector.json"]

def export_detector(
    network: Yolox,
    path: Path,              # detector.onnx; detector.json beside it
    size: int,               # side of the input, pixels
    metadata: dict,          # entries of detector.json
    squares: np.ndarray,     # uint8 (n, 1, size, size) to compare on
    tolerance: float,        # pixels
) -> float:                  # largest difference of a side of the boxes with the highest confidence, pixels
    "Write the graph; raises `EngineError` and removes it if its boxes differ from torch's."
    export_yolox(network, path, size, metadata)
    ours, reference = (g(squares) for g in (open_graph(path), torch_graph(network, size)))
    surest = (reference[..., 4] * reference[..., 5]).argmax(1)
    rows = np.arange(len(squares))
    difference = float(np.abs(ours[rows, surest, :4] - reference[rows, surest, :4]).max())
    if not difference <= tolerance:
        path.unlink()
        raise EngineError(f"{path.name} differs from torch by {difference:.2g} pixels, more than {tolerance:.2g}. "
                          "Export it with the versions of requirements.lock, or raise detector.tolerance.")
    return difference

def convert_detector(
    checkpoint: Path,   # YOLOX-nano of one class, .pth or .safetensors
    folder: Path,       # gets detector.onnx, detector.json and yolox.safetensors
    size: int = 416,    # side of the input, pixels
) -> float:             # largest difference of a side from torch, in the boxes with the highest confidence, pixels
    "Convert a published checkpoint."
    folder = Path(folder)
    network = create_yolox()
    load_yolox(network, checkpoint)
    about = {"network": "yolox-nano", "source": Path(checkpoint).name, "demonstration": False}
    save_weights(network, folder / "yolox.safetensors", about)
    squares = np.random.default_rng(0).integers(0, 256, (4, 1, size, size), np.uint8)
    return export_detector(network, folder / "detector.onnx", size, about, squares, Detector.tolerance)

def keep_detector(
    run: Run,   # a run of the mode partial
) -> dict:      # detector.json
    "Copy a trained detector into the run instead of training one."
    source, target = run.weights, run.path("weights/")
    target.mkdir(parents=True, exist_ok=True)
    for path in (*source.glob("detector.*"), *source.glob("yolox.*")):
        shutil.copyfile(path, target / path.name)
    return read_sidecar(target / "detector.onnx")

# %% [markdown]
# ## Run the stage

# %%
#| export
def _initial(run: Run, settings: Detector) -> Path | None:
    "The file of initial weights that a recipe names; None for random weights."
    if settings.weights == "none":
        return None
    path = run.path(f"assets/trained/{settings.weights}")
    if not path.is_file():
        raise StageError(
            f"{path} is not there. Download it, the COCO checkpoint of YOLOX-nano, from the releases of "
            "github.com/Megvii-BaseDetection/YOLOX, or start from random weights with SET=detector.weights=none."
        )
    return path

def run_stage(
    run: Run,
    workers: int | None = None,      # processes that prepare frames; None: one a core
) -> pd.DataFrame | None:            # history; None if the detector was kept
    "Frames with boxes -> weights/detector.onnx and .json, weights/yolox.safetensors, checkpoints/detector/."
    settings = run.section("detector")
    with run.stage("detector") as results:
        results["kept"] = run.mode == "partial"
        if results["kept"]:
            keep_detector(run)
            return None
        initial = _initial(run, settings)
        boxes, folder = make_frames(run, settings, workers)
        output, target = run.path("checkpoints/detector"), run.path("weights/detector.onnx")
        identity = {
            "recipe": asdict(settings), "boxes": boxes.to_csv(index=False),
            "initial": sha256(initial) if initial else "", "code": run.code("detector")
        }
        history = train_detector(boxes, folder, output, settings, identity, initial)
        best = history.loc[history["ap"].idxmax()]
        network = create_yolox()
        load_weights(network, output / f"epoch_{int(best['epoch'])}.safetensors")
        about = {
            "recipe": run.recipe, "network": "yolox-nano", "epoch": int(best["epoch"]), "ap": best["ap"],
            "ap50": best["ap50"], "demonstration": not settings.annotations
        }
        save_weights(network, target.with_name("yolox.safetensors"), about)
        held = Frames(boxes[boxes["split"] == "val"], folder, settings.size)
        squares = np.stack([held.square(i, -1)[0] for i in range(len(held))])[:, None]
        export_detector(network, target, settings.size, about, squares, settings.tolerance)
    return history

# %%
history = run_stage(run, workers or None)
graph = open_detector(run.path("weights/detector.onnx"))
pd.Series(graph.metadata, name="detector.json").to_frame()

# %% [markdown]
# ## What came out
# The loss falls and the score rises, faster in the epochs in which batch normalisation keeps its statistics.

# %%
if history is not None:
    fig, axes = plt.subplots(1, 2, figsize=(9, 2.8))
    plot_epochs(axes[0], history["epoch"], history["loss"])
    axes[0].set_title("training loss")
    for column, label in (("ap", "AP, mean of IoU .50 to .95"), ("ap50", "AP at IoU .50")):
        plot_epochs(axes[1], history["epoch"], history[column], label)
    axes[1].set(title=f"held-back patients, {(boxes['split'] == 'val').sum()} frames", ylim=(0, 1.02))
    axes[1].legend()
    fig.tight_layout()
    best = history.loc[history["ap"].idxmax()]
    print(f"epoch {best['epoch'] + 1:.0f}: AP {best['ap']:.3f}, AP50 {best['ap50']:.3f}")

# %% [markdown]
# Three methods to find a breast, on the held-back frames: how much of the true box each one covers, its worst case, and
# its time on one core.

# %%
held = boxes[boxes["split"] == "val"].reset_index(drop=True)
views = read_views(held, folder)
true = corners(held[["cx", "cy", "w", "h"]].to_numpy(float)) * [[*v.shape[::-1]] * 2 for v in views]
methods = {
    "detector": lambda view, whole: next(iter(detect([view], graph)[0][0]), whole),
    "Otsu": lambda view, whole: otsu_box(view) or whole,
    "full frame": lambda view, whole: whole,
}
answers = {name: [] for name in methods}
seconds = dict.fromkeys(methods, 0.0)
for view in views:
    whole = (0, 0, *view.shape[::-1])
    for name, method in methods.items():
        started = time.perf_counter()
        answers[name].append(method(view, whole))
        seconds[name] += time.perf_counter() - started
overlaps = {name: np.array([iou(a, t).item() for a, t in zip(found, true)]) for name, found in answers.items()}
pd.DataFrame({
    name: {
        "mean IoU": o.mean(), "lowest": o.min(), "share under 0.6": (o < .6).mean(),
        "ms a frame": seconds[name] / len(views) * 1e3
    } for name, o in overlaps.items()
}).T.round(3)

# %% [markdown]
# The frames of the competition, whose patients are not in the training set either. They vary less than the frames of
# the training.

# %%
if (truths := run.path("competition/truth/boxes.csv")).exists():
    table = read_table(truths, ["x0"])
    seen = [
        read_frame(next(run.path("competition").glob(f"*_images/{r.patient_id}/{r.image_id}.dcm")))
        for r in table.itertuples()
    ]
    table["rows"], table["columns"] = zip(*((f.header.rows, f.header.columns) for f in seen))
    score = coco_score(*found_in(from_pixels(table, ["val"] * len(table)),
                                 [frame_view(decode_grey(f, .25), graph.metadata["size"]) for f in seen], graph))
    print(f"{len(table)} frames of the competition: AP {score['ap']:.3f}, AP50 {score['ap50']:.3f}")

# %% [markdown]
# The held-back frames with the smallest overlap, then some with a usual one: the true box in green, the detector's in
# orange.

# %%
order = np.argsort(overlaps["detector"])
fig, axes = plt.subplots(3, 8, figsize=(12, 7))
usual = order[8:][np.linspace(0, len(order) - 9, 16).astype(int)] if len(order) > 8 else []
for ax, i in zip(axes.flat, [*order[:8], *usual]):
    ax.imshow(views[i], cmap="gray", vmin=0, vmax=255)
    ax.set_title(f"{overlaps['detector'][i]:.2f}", fontsize=8)
    for (x0, y0, x1, y1), colour in ((true[i], "limegreen"), (answers["detector"][i], "orange")):
        ax.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour))
for ax in axes.flat:
    ax.axis("off")
fig.tight_layout()

# %% [markdown]
# ---
# [← Data sets](02_datasets.py) · [Crops →](04_crops.py)

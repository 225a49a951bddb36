"""A real abdominal scan with outlined organs: read, aligned by place, and learned by heart by the 3D network.

    python tests/bench/abdomen.py [--scan ../shared/data/ct/abdomen_ts] [--out runs/bench/abdomen] [--steps 750]

The scan and its numbered organs are laid out as TotalSegmentator does, one file an organ, and read back through
`reading/masks`. Three figures go to the folder: `overlay.png` has the outlines on the slices, `curves.png` the
visibility of each organ with the crop, `learned.png` what the network finds after it has seen nothing but this scan.
Dice of each organ at the size of the network, over all slices, goes to tests/bench/results/abdomen.csv. A network that
cannot learn one scan by heart, or labels that lie beside their organs, do not reach 0.90.
"""
import argparse
import time
from pathlib import Path

import matplotlib
import nibabel
import numpy as np
import pandas as pd
import torch

from mammo_nb.trauma.learning.losses import dice_loss, dice_scores
from mammo_nb.trauma.learning.segmenter import make_segmenter
from mammo_nb.trauma.reading.masks import list_cases, read_case
from mammo_nb.trauma.reading.organs import crop_of, visibility
from mammo_nb.trauma.reading.windows import following_windows, shrunk, training_windows
from mammo_nb.trauma.recipes import ORGANS

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

RESULTS = Path(__file__).parent / "results"
NUMBERS = {"liver": 5, "spleen": 1, "kidney_left": 3, "kidney_right": 2, "small_bowel": 18, "duodenum": 19, "colon": 20}
COLOURS = ("#e6762d", "#4fb3a5", "#d64f8a", "#8a6fd1", "#e3c341")


def lay_out(scan: Path, case: Path):
    "The numbered organs of a scan as one file an organ."
    (case / "segmentations").mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.load(scan / "example_ct.nii.gz"), case / "ct.nii.gz")
    numbered = nibabel.load(scan / "example_seg_117.nii.gz")
    for part, number in NUMBERS.items():
        mask = (np.asarray(numbered.dataobj) == number).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(mask, numbered.affine), case / "segmentations" / f"{part}.nii.gz")


def overlay(path: Path, levels: np.ndarray, labels: np.ndarray, found: np.ndarray | None = None):
    "Slices with the outlines of their organs; dashed: what was found."
    fig, axes = plt.subplots(3, 6, figsize=(15, 6.6), facecolor="black")
    for ax, k in zip(axes.flat, np.linspace(4, len(levels) - 3, 18).astype(int)):
        ax.imshow(levels[k], cmap="gray")
        for number, colour in enumerate(COLOURS, 1):
            for volume, line in ((labels, "-"), (found, "--")):
                if volume is not None and (volume[k] == number).any():
                    ax.contour(volume[k] == number, [0.5], colors=colour, linewidths=0.8, linestyles=line)
        ax.set_title(k, color="grey", fontsize=7, pad=1)
        ax.axis("off")
    fig.tight_layout(pad=0.1)
    fig.savefig(path, dpi=80)
    plt.close(fig)


def curves(path: Path, levels: np.ndarray, masks: np.ndarray):
    "Visibility of each organ along the series, and the crop around all of them."
    fig, (ax, picture) = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=(2, 1))
    for organ, share, colour in zip(ORGANS, visibility(masks).T, COLOURS):
        ax.plot(share, label=organ, color=colour)
    ax.set(xlabel="slice, from the feet up", ylabel="visibility")
    ax.legend(fontsize=8)
    top, bottom, left, right = crop_of(masks)
    rows, columns = levels.shape[1:]
    picture.imshow(levels.max(0), cmap="gray")
    picture.plot(np.array([left, right, right, left, left]) * columns - 0.5,
                 np.array([top, top, bottom, bottom, top]) * rows - 0.5, color="orange")
    picture.set_title("crop on the brightest pixels of all slices", fontsize=9)
    picture.axis("off")
    fig.tight_layout()
    fig.savefig(path, dpi=80)
    plt.close(fig)


def learn(levels: np.ndarray, labels: np.ndarray, options: argparse.Namespace) -> torch.nn.Module:
    "Train on the windows of one scan and nothing else."
    _, x, y = zip(*training_windows(levels, labels, options.depth, options.size, every=1))
    x, y = torch.from_numpy(np.stack(x)), torch.from_numpy(np.stack(y))
    masks = torch.stack([(y == number).float() for number in range(1, len(ORGANS) + 1)], 1)
    torch.manual_seed(0)
    model = make_segmenter(options.network, widths=options.widths).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, options.steps)
    start = time.perf_counter()
    for step in range(options.steps):
        chosen = torch.randperm(len(x))[:options.batch]
        logits, truth = model(x[chosen]), masks[chosen]
        loss = dice_loss(logits, truth) + torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 19:
            print(f"step {step + 1}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path, default=Path("../shared/data/ct/abdomen_ts"))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/abdomen"))
    parser.add_argument("--network", default="resnet18d")
    parser.add_argument("--widths", type=int, nargs=4, default=(64, 32, 16, 16), help="of the decoder")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--batch", type=int, default=2, help="windows; one alone is slow on a CPU")
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--lr", type=float, default=4e-3)
    options = parser.parse_args()
    lay_out(options.scan, options.out / "cases" / "example")
    levels, labels = read_case(list_cases(options.out / "cases")[0])
    overlay(options.out / "overlay.png", levels, labels)
    curves(options.out / "curves.png", levels,
           np.stack([labels == number for number in range(1, len(ORGANS) + 1)], 1))
    model = learn(levels, labels, options).eval()
    small = np.stack([shrunk(picture, options.size, labels=True) for picture in labels])
    with torch.no_grad():
        windows = np.stack(list(following_windows(levels, options.depth, options.size)))
        found = torch.cat(list(model(torch.from_numpy(windows)).sigmoid()), 1)[:, :len(small)]
    truth = torch.stack([torch.from_numpy(small == number) for number in range(1, len(ORGANS) + 1)])
    dice = dice_scores((found > 0.5).float()[None], truth.float()[None]).tolist()
    shown = torch.where(found.amax(0) > 0.5, found.argmax(0) + 1, 0).numpy()
    overlay(options.out / "learned.png", np.stack([shrunk(v, options.size) for v in levels]), small, shown)
    row = {"network": options.network, "depth": options.depth, "size": options.size, "steps": options.steps,
           **{organ: round(d, 3) for organ, d in zip(ORGANS, dice)}, "mean": round(float(np.mean(dice)), 3)}
    print(pd.Series(row).to_string())
    RESULTS.mkdir(exist_ok=True)
    pd.DataFrame([row]).to_csv(RESULTS / "abdomen.csv", index=False)
    if row["mean"] < 0.90:
        raise SystemExit("mean Dice below 0.90")


if __name__ == "__main__":
    main()

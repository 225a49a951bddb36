# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Frames
# > Whole frames for a detector to learn from, drawn more varied than any hospital's.
#
# A scene (`drawing/scenes`) with its appearance (`drawing/appearance`) and the exact box of its breast, and sets of them in the
# format in which people keep their own boxes (`reading/roi`).

# %%
#| default_exp mammo.drawing.frames

# %% tags=["parameters"]
size = 320      # longest side of a frame, pixels
patients = 3    # drawn below, four frames each
seed = 67

# %%
#| export
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from mammo_nb.core.files import write_text
from mammo_nb.core.pictures import write_png
from mammo_nb.mammo.drawing.anatomy import Anatomy, mask_box, other_breast
from mammo_nb.mammo.drawing.appearance import FAMILIES
from mammo_nb.mammo.reading.roi import from_pixels, write_yolo
from mammo_nb.mammo.drawing.scenes import Scene, chance, draw_build, lay_out

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt

from mammo_nb.core.pictures import sheet
from mammo_nb.mammo.drawing.appearance import air, contents, handling, light, markers, neighbours
from mammo_nb.mammo.reading.roi import read_yolo

# %% [markdown]
# ## A frame
# Some families or all of them, in their order; a scene in which nobody could find the breast is drawn again.

# %%
#| export
def stretch(
    picture: np.ndarray,   # float32
) -> np.ndarray:           # uint8
    "Minimum to maximum over 0 to 255, as a detector sees every frame."
    low, high = float(picture.min()), float(picture.max())
    return np.round((picture - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)

def visible(
    picture: np.ndarray,   # float32
    inside: np.ndarray,    # bool, the breast
) -> bool:
    """Whether anybody could find the breast: it differs from what is around it by more than a few of 255 levels, or is
    not flat."""
    around = cv2.dilate(inside.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool) & ~inside
    span = np.ptp(picture)
    if span <= 0.05 or not around.any():
        return bool(span > 0.05)
    return bool(
        max(abs(np.median(picture[inside]) - np.median(picture[around])), picture[inside].std() / 2) > 0.05 * span)

def draw_scene(
    rng: np.random.Generator,
    breast: Anatomy,
    laterality: str,          # L or R
    view: str,                # CC or MLO
    size: int,                # longest side, pixels
    families: tuple = FAMILIES,
) -> Scene:
    "A scene that shows a breast: one that is cut off or hidden too much is drawn again."
    while True:
        s = lay_out(rng, breast, laterality, view, size)
        for family in families:
            family(rng, s)
        inside = s.cover > 0.5
        x0, y0, x1, y1 = mask_box(inside) or (0, 0, 0, 0)
        if inside.sum() >= 0.55 * s.whole and (x1 - x0) * (y1 - y0) >= 0.06 * inside.size and visible(
                s.picture, inside):
            return s

def draw_frame(
    rng: np.random.Generator,
    breast: Anatomy,
    laterality: str,          # L or R
    view: str,                # CC or MLO
    size: int,                # longest side, pixels
    strangeness: float = 1.0, # 0 to 1, the share of families that a frame has
) -> tuple[np.ndarray, tuple]:  # uint8 (rows, columns); x0, y0, x1, y1 of the breast, half open, pixels
    "One frame and the box of its breast."
    s = draw_scene(rng, breast, laterality, view, size, tuple(f for f in FAMILIES if chance(rng, strangeness)))
    return stretch(s.picture), mask_box(s.cover > 0.5)

# %%
pictures, boxes = zip(
    *(draw_frame(rng := np.random.default_rng([seed, i]), draw_build(rng), "LR"[i // 2 % 2], ("CC", "MLO")[i % 2], size)
      for i in range(40)))
assert all(p.dtype == np.uint8 and max(p.shape) == size and np.ptp(p) == 255 for p in pictures)
sheet(pictures, boxes, 10, "finished frames");

# %% [markdown]
# With all families left out, what is bright is breast and nothing else, and the box is that of the bright pixels. A
# family that hides nothing leaves the box alone.

# %%
for i in range(6):
    bare, lit = (draw_scene(np.random.default_rng([seed, i]), draw_build(np.random.default_rng(i)), "L",
                            ("CC", "MLO")[i % 2], size, families)
                 for families in ((), (light, contents, air, neighbours, handling, markers)))
    assert not bare.picture[bare.cover == 0].any() and np.abs(
        np.subtract(mask_box(bare.picture > 0.02), mask_box(bare.cover > 0.5))).max() <= 2
    assert mask_box(bare.cover > 0.5) == mask_box(lit.cover > 0.5)

# %% [markdown]
# ## A set
# Four frames a patient, both breasts from above and from the side, in the text format of `reading/roi`; whole patients are
# held back. Each frame has a seed of its own, so neither the number of processes nor an interruption changes a byte.
# The label is written before the picture: a picture that exists says that its frame is done.

# %%
#| export
def plan_frames(
    patients: int,
    held_back: float,     # share of them in val
    seed: int,
) -> list:                # a dict a frame
    "Who is drawn, in table order."
    held = max(1, round(held_back * patients)) if held_back and patients > 1 else 0
    apart, frames = set(np.random.default_rng((seed, 0)).permutation(patients)[:held].tolist()), []
    for i in range(patients):
        rng = np.random.default_rng((seed, 1, i))
        first = draw_build(rng)
        breasts = {"L": first, "R": other_breast(rng, first)}
        frames += [{
            "patient_id": str(i + 1), "image_id": side + view, "laterality": side, "view": view,
            "breast": breasts[side], "split": "val" if i in apart else "train", "entropy": (seed, 2, i, k)
        } for k, (side, view) in enumerate((s, v) for s in "LR" for v in ("CC", "MLO"))]
    return frames

def make_frame_file(
    folder: Path,         # of the set
    frame: dict,          # of `plan_frames`
    size: int,            # longest side, pixels
    strangeness: float,   # 0 to 1
) -> tuple:               # x0, y0, x1, y1, rows, columns: pixels
    "Draw and write one frame and its label, unless they are there."
    cv2.setNumThreads(1)
    stem = f"{frame['patient_id']}@{frame['image_id']}"
    path, label = folder / "images" / f"{stem}.png", folder / "labels" / f"{stem}.txt"
    if path.exists() and label.exists():
        rows, columns = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).shape
        cx, cy, w, h = (float(v) for v in label.read_text().split()[1:])
        return *(round(v) for v in ((cx - w / 2) * columns, (cy - h / 2) * rows, (cx + w / 2) * columns,
                                    (cy + h / 2) * rows)), rows, columns
    picture, box = draw_frame(np.random.default_rng(frame["entropy"]), frame["breast"], frame["laterality"],
                              frame["view"], size, strangeness)
    x0, y0, x1, y1, rows, columns = found = (*box, *picture.shape)
    write_text(
        label,
        f"0 {(x0 + x1) / 2 / columns:.6f} {(y0 + y1) / 2 / rows:.6f} {(x1 - x0) / columns:.6f} {(y1 - y0) / rows:.6f}\n"
    )
    write_png(path, picture)
    return found

def draw_frames(
    folder: Path,                 # gets images/, labels/, classes.txt, train.txt, val.txt
    *,
    patients: int,
    held_back: float,             # share of them in val
    size: int,                    # longest side of a frame, pixels
    seed: int,
    strangeness: float = 1.0,     # 0 to 1, see `draw_frame`
    workers: int | None = None,   # processes; None = one a core
    identity: dict | None = None, # what else the pictures depend on, such as the code; JSON-able
) -> pd.DataFrame:                # roi.COLUMNS
    "Draw a set; finished frames of an earlier call with the same parameters are kept, others make room."
    folder = Path(folder)
    about, note = json.dumps(
        {
            "patients": patients, "held_back": held_back, "size": size, "seed": seed, "strangeness": strangeness,
            "identity": identity
        }, indent=1), folder / "frames.json"
    if not note.exists() or note.read_text() != about:
        for part in ("images", "labels"):
            shutil.rmtree(folder / part, ignore_errors=True)
        write_text(note, about)
    frames = plan_frames(patients, held_back, seed)
    jobs = (delayed(make_frame_file)(folder, frame, size, strangeness) for frame in frames)
    found = list(
        tqdm(
            Parallel(n_jobs=workers or os.cpu_count(), return_as="generator")(jobs), total=len(frames), desc="frames",
            unit="img"))
    table = pd.DataFrame(frames)[["patient_id", "image_id", "split"]]
    table[["x0", "y0", "x1", "y1", "rows", "columns"]] = found
    boxes = from_pixels(table, table["split"].tolist())
    write_yolo(folder, boxes)
    return boxes

# %%
scratch = Path(tempfile.mkdtemp())
settings = dict(patients=patients, held_back=0.3, size=size, seed=seed)
set_boxes = draw_frames(scratch / "set", **settings)
before = {f: f.read_bytes() for f in (scratch / "set").rglob("*") if f.is_file()}
for image in set_boxes["image"][::3]:
    (scratch / "set" / image).unlink()
assert draw_frames(scratch / "set", **settings, workers=1).equals(set_boxes) and before == {
    f: f.read_bytes() for f in (scratch / "set").rglob("*") if f.is_file()
}
read, problems = read_yolo(scratch / "set", images=True)
assert problems.empty and np.allclose(read[["cx", "cy", "w", "h"]], set_boxes[["cx", "cy", "w", "h"]], atol=1e-6)
set_boxes.head(4)

# %% [markdown]
# ## What came out
# Where the boxes of the frames above lie in shares of the frame, and how large they are. In the winner's set, digital
# frames only, the median box is 0.51 wide and 0.76 high; here it varies more than that, on purpose.

# %%
shares = np.array(
    [(b[0] / p.shape[1], b[1] / p.shape[0], b[2] / p.shape[1], b[3] / p.shape[0]) for p, b in zip(pictures, boxes)])
w, h = (shares[:, 2:] - shares[:, :2]).T
fig, axes = plt.subplots(1, 2, figsize=(8, 3.4))
for x0, y0, x1, y1 in shares:
    axes[0].add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="tab:blue", alpha=0.3))
axes[0].set(xlim=(0, 1), ylim=(1, 0), title="all boxes, in shares of the frame", aspect="equal")
axes[1].scatter(w, h, s=12)
axes[1].set(xlabel="width", ylabel="height", xlim=(0, 1.02), ylim=(0, 1.02),
            title=f"median {np.median(w):.2f} x {np.median(h):.2f}")
fig.tight_layout()
assert (w * h >= 0.06).all()

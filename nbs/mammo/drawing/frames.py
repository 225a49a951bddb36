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
# # Frames
# > Whole frames that a detector is trained on, drawn more varied than those of any hospital.
#
# A frame is a scene (`scenes`) that was changed by the families of `appearance` and `film`, with the exact box of its
# breast. A set of frames is stored in the format in which people keep their own boxes (`reading/roi`).

# %%
#| default_exp mammo.drawing.frames

# %% tags=["parameters"]
size = 320      # longest side of a frame, in pixels
patients = 3    # patients drawn below, with four frames each
seed = 67       # of the random generator

# %%
#| export
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from joblib import delayed
from tqdm import tqdm

from mammo_nb.core.files import write_text
from mammo_nb.core.pictures import write_png
from mammo_nb.core.processes import in_processes
from mammo_nb.mammo.drawing.anatomy import Anatomy, other_breast
from mammo_nb.mammo.drawing.appearance import air, contents, light, neighbours
from mammo_nb.mammo.drawing.breast import mask_box
from mammo_nb.mammo.drawing.film import borders, handling, markers, noise
from mammo_nb.mammo.drawing.scenes import Scene, chance, draw_build, lay_out
from mammo_nb.mammo.reading.roi import from_pixels, write_yolo

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt

from mammo_nb.core.pictures import sheet
from mammo_nb.mammo.reading.roi import read_yolo

# %% [markdown]
# ## A frame
# A frame gets some or all families, always in the same order. A scene in which a reader could not find the breast is
# drawn again.

# %%
#| export
FAMILIES = (light, contents, air, neighbours, borders, handling, markers, noise)   # applied in this order

def stretch(
    picture: np.ndarray,   # float32 (rows, columns)
) -> np.ndarray:           # uint8, same shape
    "Scale the range from minimum to maximum to 0 to 255, as is done for every frame that a detector gets."
    low, high = float(picture.min()), float(picture.max())
    return np.round((picture - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)

def visible(
    picture: np.ndarray,   # float32 (rows, columns)
    inside: np.ndarray,    # bool, same shape, the breast
) -> bool:
    """Whether a reader could find the breast: it differs from its surroundings by more than 5 % of the range of grey
    levels, or its own texture does."""
    around = cv2.dilate(inside.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool) & ~inside
    span = np.ptp(picture)
    if span <= 0.05 or not around.any():
        return bool(span > 0.05)
    contrast = abs(np.median(picture[inside]) - np.median(picture[around]))
    return bool(max(contrast, picture[inside].std() / 2) > 0.05 * span)

def draw_scene(
    rng: np.random.Generator,
    breast: Anatomy,
    laterality: str,          # L or R
    view: str,                # CC or MLO
    size: int,                # longest side, in pixels
    families: tuple = FAMILIES,  # functions that change the scene in place
) -> Scene:
    "Draw a scene that shows a breast. If too much of the breast is cut off or hidden, draw it again."
    while True:
        s = lay_out(rng, breast, laterality, view, size)
        for family in families:
            family(rng, s)
        inside = s.cover > 0.5
        x0, y0, x1, y1 = mask_box(inside) or (0, 0, 0, 0)
        shown, share = inside.sum() >= 0.55 * s.whole, (x1 - x0) * (y1 - y0) >= 0.06 * inside.size
        if shown and share and visible(s.picture, inside):
            return s

def draw_frame(
    rng: np.random.Generator,
    breast: Anatomy,
    laterality: str,          # L or R
    view: str,                # CC or MLO
    size: int,                # longest side, in pixels
    strangeness: float = 1.0, # probability of each family, 0 to 1
) -> tuple[np.ndarray, tuple]:  # uint8 (rows, columns); x0, y0, x1, y1 of the breast, half-open, in pixels
    "Draw one frame, and give the box of its breast."
    s = draw_scene(rng, breast, laterality, view, size, tuple(f for f in FAMILIES if chance(rng, strangeness)))
    return stretch(s.picture), mask_box(s.cover > 0.5)

# %%
pictures, boxes = [], []
for i in range(40):
    rng = np.random.default_rng([seed, i])
    picture, box = draw_frame(rng, draw_build(rng), "LR"[i // 2 % 2], ("CC", "MLO")[i % 2], size)
    pictures.append(picture)
    boxes.append(box)
assert all(p.dtype == np.uint8 and max(p.shape) == size and np.ptp(p) == 255 for p in pictures)
sheet(pictures, boxes, 10, "finished frames");

# %% [markdown]
# Without any family only the breast is bright, and the box is that of the bright pixels. A family that hides nothing
# does not change the box.

# %%
harmless = light, contents, air, neighbours, handling, markers
for i in range(6):
    bare, lit = (draw_scene(np.random.default_rng([seed, i]), draw_build(np.random.default_rng(i)), "L",
                            ("CC", "MLO")[i % 2], size, families) for families in ((), harmless))
    assert not bare.picture[bare.cover == 0].any()
    assert np.abs(np.subtract(mask_box(bare.picture > 0.02), mask_box(bare.cover > 0.5))).max() <= 2
    assert mask_box(bare.cover > 0.5) == mask_box(lit.cover > 0.5)

# %% [markdown]
# ## A set
# A set has four frames per patient: both breasts in CC and MLO. It is written in the text format of `reading/roi`, and
# whole patients are held out for validation. Each frame has its own seed, so neither the number of processes nor an
# interruption changes a byte. The label is written before the picture, so a frame is complete when its picture exists.

# %%
#| export
def plan_frames(
    patients: int,        # number of patients
    held_back: float,     # share of the patients in val
    seed: int,
) -> list:                # one dict per frame: ids, breast, split and seed
    "Plan which frames are drawn, in table order."
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
    folder: Path,         # folder of the set
    frame: dict,          # from `plan_frames`
    size: int,            # longest side, in pixels
    strangeness: float,   # probability of each family, 0 to 1
) -> tuple:               # x0, y0, x1, y1, rows, columns, all in pixels
    "Draw and write one frame and its label, unless both exist."
    cv2.setNumThreads(1)
    stem = f"{frame['patient_id']}@{frame['image_id']}"
    path, label = folder / "images" / f"{stem}.png", folder / "labels" / f"{stem}.txt"
    if path.exists() and label.exists():
        rows, columns = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).shape
        cx, cy, w, h = (float(v) for v in label.read_text().split()[1:])
        corners = (cx - w / 2) * columns, (cy - h / 2) * rows, (cx + w / 2) * columns, (cy + h / 2) * rows
        return *(round(v) for v in corners), rows, columns
    picture, box = draw_frame(np.random.default_rng(frame["entropy"]), frame["breast"], frame["laterality"],
                              frame["view"], size, strangeness)
    x0, y0, x1, y1, rows, columns = found = (*box, *picture.shape)
    cx, cy, w, h = (x0 + x1) / 2 / columns, (y0 + y1) / 2 / rows, (x1 - x0) / columns, (y1 - y0) / rows
    write_text(label, f"0 {cx:.6f} {cy:.6f} {w:.6f} {h:.6f}\n")
    write_png(path, picture)
    return found

def draw_frames(
    folder: Path,                 # gets images/, labels/, classes.txt, train.txt, val.txt
    *,
    patients: int,                # number of patients, with four frames each
    held_back: float,             # share of the patients in val
    size: int,                    # longest side of a frame, in pixels
    seed: int,
    strangeness: float = 1.0,     # probability of each family, 0 to 1
    workers: int | None = None,   # number of processes; None: one per core
    identity: dict | None = None, # what else the pictures depend on, such as the code; can be written as JSON
) -> pd.DataFrame:                # one row per frame with the columns roi.COLUMNS
    "Draw a set. Finished frames of a call with the same parameters are kept, other frames are removed."
    folder = Path(folder)
    note = folder / "frames.json"
    about = json.dumps(
        {
            "patients": patients, "held_back": held_back, "size": size, "seed": seed, "strangeness": strangeness,
            "identity": identity
        }, indent=1)
    if not note.exists() or note.read_text() != about:
        for part in ("images", "labels"):
            shutil.rmtree(folder / part, ignore_errors=True)
        write_text(note, about)
    frames = plan_frames(patients, held_back, seed)
    jobs = (delayed(make_frame_file)(folder, frame, size, strangeness) for frame in frames)
    drawn = in_processes(jobs, workers)
    found = list(tqdm(drawn, total=len(frames), desc="frames", unit="img"))
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
assert draw_frames(scratch / "set", **settings, workers=1).equals(set_boxes)
assert before == {f: f.read_bytes() for f in (scratch / "set").rglob("*") if f.is_file()}
read, problems = read_yolo(scratch / "set", images=True)
assert problems.empty and np.allclose(read[["cx", "cy", "w", "h"]], set_boxes[["cx", "cy", "w", "h"]], atol=1e-6)
set_boxes.head(4)

# %% [markdown]
# ## What came out
# The plots show where the boxes of the frames above lie, as shares of the frame, and how large they are. In the
# winner's set, which has digital frames only, the median box is 0.51 wide and 0.76 high. Here the boxes vary more, on
# purpose.

# %%
shares = np.array(
    [(b[0] / p.shape[1], b[1] / p.shape[0], b[2] / p.shape[1], b[3] / p.shape[0]) for p, b in zip(pictures, boxes)])
w, h = (shares[:, 2:] - shares[:, :2]).T
fig, axes = plt.subplots(1, 2, figsize=(8, 3.4))
for x0, y0, x1, y1 in shares:
    axes[0].add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="tab:blue", alpha=0.3))
axes[0].set(xlim=(0, 1), ylim=(1, 0), title="all boxes, as shares of the frame", aspect="equal")
axes[1].scatter(w, h, s=12)
axes[1].set(xlabel="width", ylabel="height", xlim=(0, 1.02), ylim=(0, 1.02),
            title=f"median {np.median(w):.2f} x {np.median(h):.2f}")
fig.tight_layout()
assert (w * h >= 0.06).all()

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

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
# # Inputs
# > From a file to what the network is shown, and to the row that says how.
#
# A prediction of a folder and a submission look at a file in the same way, and differ in where the network is: in the
# same process, or at the end of a stream. This module knows no network and loads no torch, so the processes that decode
# start quickly and stay small.

# %%
#| default_exp mammo.reading.inputs

# %%
#| export
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from mammo_nb.core.dicom import Frame
from mammo_nb.core.files import inside
from mammo_nb.core.pictures import fit_resize, write_png
from mammo_nb.mammo.reading import faithful
from mammo_nb.mammo.reading.boxes import open_detector
from mammo_nb.mammo.reading.mammograms import Mammogram, read_frame
from mammo_nb.mammo.crops import Breast, crop_path, cut_breast, faithful_floats
from mammo_nb.mammo.recipes import Crops

# %%
#| hide
from types import SimpleNamespace

import matplotlib.pyplot as plt

from mammo_nb.core.runs import Run, practice
from mammo_nb.mammo.system import system

# %% tags=["parameters"]
run_dir = ""        # folder of a run; "" makes a small practice run
size = (128, 64)    # height, width of a network's input, pixels

# %%
#| hide
run = Run.open(run_dir) if run_dir else practice(system, before="crops")

# %% [markdown]
# ## What the network is shown
# Decode, find, cut, window, resize: the same functions that made the training crops, with the settings that the weights
# remember. A network with a smaller input is shown the same breast, cut out of a smaller picture of the frame where the
# file has one.

# %%
#| export
def network_input(
    breast: Breast,          # cut out of its frame
    settings: Crops,         # `faithful` is read here: resized before it is cut off to whole levels
    size: tuple[int, int],   # height, width of the network's input
) -> np.ndarray:             # uint8 (height, width)
    "What the network is shown."
    if settings.faithful:
        return faithful.network_input(
            faithful_floats(breast.image, breast.box, replace(settings, scaling=breast.scaling)), *size)
    return fit_resize(breast.grey, *size)

def fit_to(
    settings: Crops,         # of the training
    size: tuple[int, int],   # height, width of an input smaller than the training's
) -> Crops:                  # whose crops, and what is decoded for them, are no larger than this
    "Settings for a smaller network."
    return replace(settings, height=min(settings.height or size[0], size[0]), width=min(
        settings.width or size[1], size[1]))

@dataclass(frozen=True)
class Seen:
    "A file on its way to the network."
    frame: Frame
    breast: Breast
    picture: np.ndarray  # uint8 (height, width)

def see(
    path: Path,             # a file
    settings: Crops,
    detector: str,          # detector.onnx; "": Otsu
    size: tuple[int, int],  # height, width of the network's input
) -> Seen:
    "Read a file as far as the network is concerned."
    cv2.setNumThreads(1)  # the processes share the cores already
    frame = read_frame(path)
    breast = cut_breast(frame, settings, open_detector(detector) if detector else None)
    return Seen(frame, breast, network_input(breast, settings, size))

# %%
file = sorted(run.path("competition/test_images").rglob("*.dcm"))[0]
finds, settings = str(run.path("weights/detector.onnx")), Crops(height=size[0], width=size[1], box_size=80)
half = size[0] // 2, size[1] // 2
both = [see(file, s, finds, n) for s, n in ((settings, size), (fit_to(settings, half), half))]
assert both[0].breast.box == both[1].breast.box and both[1].breast.grey.shape[0] <= half[0] and fit_to(
    Crops(), half).height == half[0]
assert np.abs(cv2.resize(both[0].picture, half[::-1], interpolation=cv2.INTER_AREA).astype(int)
              - both[1].picture).mean() < 6
fig, axes = plt.subplots(1, 2, figsize=(5, 4))
for ax, s in zip(axes, both):
    ax.imshow(s.picture, cmap="gray", vmin=0, vmax=255)
    ax.set_title(f"{s.picture.shape}, from {s.breast.image.pixels.shape}", fontsize=9)
    ax.axis("off")

# %% [markdown]
# ## Its row
# The tags speak first, then a table, in the manner of a competition's `test.csv`; otherwise the answer is *unknown*,
# which is better than a guess.

# %%
#| export
def _identify(header: Mammogram, item: dict) -> dict:
    "patient_id, image_id, laterality and view of one file."
    row, path = item.get("row") or {}, Path(item["file"])
    return {"patient_id": row.get("patient_id") or header.patient_id or path.parent.name or "unknown",
            "image_id": row.get("image_id") or header.image_id or path.stem,
            "laterality": header.laterality or row.get("laterality") or "unknown",
            "view": header.view or row.get("view") or "unknown"}

def row_of(
    seen: Seen,
    item: dict,  # file; row from a table, if any
) -> dict:       # a row of per_image.csv without its probability
    "Whose picture it is, and how it was made."
    box = seen.breast.box
    return {
        **_identify(seen.frame.header, item), "rows": seen.frame.header.rows, "columns": seen.frame.header.columns,
        "decoder": seen.breast.image.decoder, "x0": box.x0, "y0": box.y0, "x1": box.x1, "y1": box.y1,
        "box_source": box.source
    }

# %%
row_of(both[0], {"file": file.name, "row": {"patient_id": "1", "view": "CC"}})

# %% [markdown]
# ## In a stream
# What a decoding process does with one item. The picture can be kept as a PNG, to look at or to train on; nothing here
# reads it back.

# %%
#| export
def see_item(
    # folder, file, row; settings, detector; size: of the training's input; pngs: a folder or ""
    item: dict,
    mode,                    # with `size`, height and width of the network's input
) -> tuple[dict, np.ndarray]:  # row without probability; uint8 (height, width)
    "A file as a row and a picture."
    settings = Crops(**item["settings"])
    if mode.size != tuple(item["size"]):
        settings = fit_to(settings, mode.size)
    seen = see(inside(item["folder"], item["file"]), settings, item["detector"], mode.size)
    row = row_of(seen, item)
    if item["pngs"]:
        write_png(crop_path(item["pngs"], row["patient_id"], row["image_id"]), seen.picture)
    return row, seen.picture

# %% [markdown]
# ## What came out

# %%
item = {
    "folder": str(file.parent), "file": file.name, "row": None, "settings": vars(settings), "detector": finds,
    "size": size, "pngs": ""
}
(row, picture), (_, small) = see_item(item, SimpleNamespace(size=size)), see_item(item, SimpleNamespace(size=half))
assert (picture == both[0].picture).all() and (small == both[1].picture).all()
row

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
# # Inputs
# > From a file to the input of the network, and to the row that records how it was made.
#
# The prediction of a folder and a submission prepare a file in the same way. They differ in where the network is: in
# the same process, or at the end of a stream. This module contains no network and does not load torch, so the processes
# that decode start quickly and need little memory.

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
from mammo_nb.core.headers import MultiFrame
from mammo_nb.core.pictures import fit_resize, write_png
from mammo_nb.mammo.crops import Breast, crop_path, cut_breast, faithful_floats
from mammo_nb.mammo.reading import faithful
from mammo_nb.mammo.reading.boxes import open_detector
from mammo_nb.mammo.reading.frames import frame_indices, frame_note
from mammo_nb.mammo.reading.mammograms import no_standard, read_frame, read_header
from mammo_nb.mammo.reading.sides import identify, with_table_view
from mammo_nb.mammo.recipes import Crops

# %%
#| hide
from types import SimpleNamespace

import matplotlib.pyplot as plt

from mammo_nb.core.practice import practice
from mammo_nb.core.runs import Run
from mammo_nb.mammo.system import system

# %% tags=["parameters"]
run_dir = ""        # folder of a run; "" makes a small practice run
size = (128, 64)    # height, width of the network's input, in pixels

# %%
#| hide
run = Run.open(run_dir) if run_dir else practice(system, before="crops")

# %% [markdown]
# ## The input of the network
# A file is decoded, the breast is found, cut out, windowed and resized. The functions are those that made the training
# crops, with the settings that are stored with the weights. For a network with a smaller input, the breast is cut out
# of a smaller picture of the frame if the file has one.

# %%
#| export
def network_input(
    breast: Breast,          # from `cut_breast`
    settings: Crops,         # with `faithful`, the crop is resized before it is truncated to whole grey levels
    size: tuple[int, int],   # height, width of the network's input, in pixels
) -> np.ndarray:             # uint8 (height, width)
    "Resize a breast to the input of the network."
    if settings.faithful:
        floats = faithful_floats(breast.image, breast.box, replace(settings, scaling=breast.scaling))
        return faithful.network_input(floats, *size)
    return fit_resize(breast.grey, *size)

def fit_to(
    settings: Crops,         # settings of the training
    size: tuple[int, int],   # height, width of an input that is smaller than that of the training, in pixels
) -> Crops:                  # settings whose crops, and the pictures decoded for them, are not larger than this
    "Adapt the settings to a network with a smaller input."
    height = min(settings.height or size[0], size[0])
    width = min(settings.width or size[1], size[1])
    return replace(settings, height=height, width=width)

@dataclass(frozen=True)
class Seen:
    "A file that is prepared for the network."
    frame: Frame
    breast: Breast
    picture: np.ndarray  # uint8 (height, width)

def see(
    path: Path,             # DICOM, PNG or JPEG
    settings: Crops,
    detector: str,          # detector.onnx; "": Otsu's threshold
    size: tuple[int, int],  # height, width of the network's input, in pixels
    frame: int | None = None,  # index from 0; required when there are several
) -> Seen:
    "Prepare a file for the network. Raises DicomError, WindowError."
    cv2.setNumThreads(1)  # the processes already share the cores
    read = read_frame(path, frame)
    breast = cut_breast(read, settings, open_detector(detector) if detector else None)
    return Seen(read, breast, network_input(breast, settings, size))

# %%
file = sorted(run.path("competition/test_images").rglob("*.dcm"))[0]
detector_file = str(run.path("weights/detector.onnx"))
settings = Crops(height=size[0], width=size[1], box_size=80)
half = size[0] // 2, size[1] // 2
both = [see(file, s, detector_file, n) for s, n in ((settings, size), (fit_to(settings, half), half))]
assert both[0].breast.box == both[1].breast.box and both[1].breast.grey.shape[0] <= half[0]
assert fit_to(Crops(), half).height == half[0]
reduced = cv2.resize(both[0].picture, half[::-1], interpolation=cv2.INTER_AREA)
assert np.abs(reduced.astype(int) - both[1].picture).mean() < 6
fig, axes = plt.subplots(1, 2, figsize=(5, 4))
for ax, s in zip(axes, both):
    ax.imshow(s.picture, cmap="gray", vmin=0, vmax=255)
    ax.set_title(f"{s.picture.shape}, from {s.breast.image.pixels.shape}", fontsize=9)
    ax.axis("off")

# %% [markdown]
# ## The row of a file
# [Sides](sides.py) finds the ids, the side and the view.

# %%
#| export
def row_of(
    seen: Seen,
    item: dict,  # file; row, its row of a table or None
) -> dict:       # a row of per_image.csv, without the probability; withheld: whether it must not get one
    "Record the patient, the side and the view of a picture, and how it was made."
    box = seen.breast.box
    header = with_table_view(seen.frame.header, item)
    notes = [no_standard(header), frame_note(header, seen.frame.index), seen.breast.told()]
    return {**identify(header, {**item, "frame": seen.frame.index}), "rows": header.rows, "columns": header.columns,
            "decoder": seen.breast.image.decoder, "x0": box.x0, "y0": box.y0, "x1": box.x1, "y1": box.y1,
            "box_source": box.source, "note": "; ".join(filter(None, notes)), "withheld": bool(seen.breast.note)}

# %%
row_of(both[0], {"file": file.name, "row": {"patient_id": "1", "view": "CC"}})

# %% [markdown]
# ## In a stream
# A decoding process calls this function for each item. Of several frames it takes the middle one, because every image
# of a hidden test set needs a prediction. The picture can also be stored as a PNG file, for a reader or
# for a training. Nothing here reads that file.

# %%
#| export
def see_item(
    item: dict,    # folder, file, row, settings, detector; size of the training's input; pngs: a folder or ""
    mode,          # object with `size`: height and width of the network's input, in pixels
) -> tuple[dict, np.ndarray]:  # row without probability; uint8 (height, width)
    "Make a row and a picture from a file."
    settings = Crops(**item["settings"])
    if mode.size != tuple(item["size"]):
        settings = fit_to(settings, mode.size)
    path = inside(item["folder"], item["file"])
    try:
        seen = see(path, settings, item["detector"], mode.size)
    except MultiFrame:
        middle, = frame_indices(read_header(path).frames, "middle")
        seen = see(path, settings, item["detector"], mode.size, middle)
    row = row_of(seen, item)
    if item["pngs"]:
        write_png(crop_path(item["pngs"], row["patient_id"], row["image_id"]), seen.picture)
    return row, seen.picture

# %% [markdown]
# ## What came out
# The row and the pictures of one file; a process of a stream gives the same as `see`.

# %%
item = {"folder": str(file.parent), "file": file.name, "row": None, "settings": vars(settings),
        "detector": detector_file, "size": size, "pngs": ""}
row, picture = see_item(item, SimpleNamespace(size=size))
_, small = see_item(item, SimpleNamespace(size=half))
assert (picture == both[0].picture).all() and (small == both[1].picture).all()
row

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

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
# > From a folder of files to series in the order of the patient, and from a series to the input of the encoders.
#
# A submission, a prediction on one's own scans and the training must see the same pictures. So the settings come from
# the JSON of the weights, and each step is the one of [prepare](../02_prepare.py) and
# [slices](../learning/slices.py).

# %%
#| default_exp ich.reading.inputs

# %%
#| export
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammo_nb.core.dicom import folder_of, read_frame
from mammo_nb.core.files import inside, walk
from mammo_nb.core.geometry import Slice
from mammo_nb.core.hu import SHIFTED
from mammo_nb.core.series import read_series, tables_of
from mammo_nb.ich.learning.slices import read_view
from mammo_nb.ich.prepare import slice_table
from mammo_nb.ich.reading import phe
from mammo_nb.ich.reading.squares import common_box, head_box
from mammo_nb.ich.reading.windows import slice_picture
from mammo_nb.ich.recipes import View

# %%
#| hide
import tempfile

from mammo_nb.core.pictures import sheet, write_png

# %% tags=["parameters"]
size = 96     # side of the encoders' input below, pixels

# %% [markdown]
# ## Settings
# What the input depends on. It is a part of the JSON of the weights.

# %%
#| export
@dataclass(frozen=True)
class Seen:
    "How the input of the encoders is made of a slice."
    size: int                 # side, pixels
    views: tuple[View, ...]   # one input for each kind of view
    faithful: bool = False    # windows, crop and order of the original
    box: str = "slice"        # of each slice, or of all slices of a series
    given: bool = False       # trained on pictures of one window, not on HU

    @classmethod
    def read(cls,
        metadata: dict,   # encoder.json
    ):
        "The settings in the JSON of the weights."
        values = {f.name: metadata[f.name] for f in fields(cls) if f.name != "size"}
        return cls(**values | {"size": metadata["size"][0], "views": tuple(View(**v) for v in metadata["views"])})

def input_name(
    view: View,
) -> str:        # such as windows_crop
    "The name of an encoder's input: views of the same kind share one."
    return f"{view.channels}_{'crop' if view.crop else 'whole'}"

# %%
settings = Seen(size, (View(), View("all", crop=False), View("neighbours", "neighbours")))
assert [input_name(v) for v in settings.views] == ["windows_crop", "windows_whole", "neighbours_crop"]

# %% [markdown]
# ## Series of a folder
# `core/series` reads every file and arranges the slices. Each series is read in its order. What is in no series, such
# as a copy or a localizer, is predicted alone, and its note says why.

# %%
#| export
PICTURES = (".png", ".jpg", ".jpeg")

def _nothing(found, image, hounsfield) -> dict:
    "The box is found when the picture is made."
    return {"box": ("", "", "", ""), "offset": False}

def find_slices(
    folder: Path,                # DICOM files, searched to any depth
    output: Path,                # keeps the journal of the files that were read
    faithful: bool = False,      # the original's order
    workers: int | None = None,  # processes; None: one a core
    key: str = "",               # as for `read_series`
) -> tuple[pd.DataFrame, pd.DataFrame]:  # columns of slices.csv, place ("" outside of a series) and uid; series.csv
    "Read a folder and arrange its slices; uid is the SOPInstanceUID, image_id is made from the name of the file."
    volumes, rest = read_series(folder, output, workers, _nothing, key=key)
    table, series = slice_table(volumes, rest, faithful), tables_of(volumes, rest)[1]
    found = [s for v in volumes for s in v.slices] + [s for s in rest["slice"] if isinstance(s, Slice)]
    uids = {(s.file, str(s.frame or "")): s.image_id for s in found}
    table["uid"] = [uids.get((file, str(frame)), "") for file, frame in zip(table["file"], table["frame"])]
    return table, series

def find_pictures(
    folder: Path,   # pictures named <patient>_<slice>.png, searched to any depth, or a single one
    besides: Path,  # a folder that is left out
) -> pd.DataFrame:  # as from `find_slices`, without uid
    "Arrange pictures by the numbers in their names; the patient is the series, a number is a position."
    scans, folder, besides, rows = Path(folder), folder_of(folder), Path(besides).resolve(), []
    if besides == folder.resolve():
        besides = besides / "previews"  # the output lies beside the pictures
    found = walk(scans) if scans.is_dir() else [scans]
    for path in sorted(p for p in found if p.suffix.lower() in PICTURES):
        if path.name.startswith(".") or path.resolve().is_relative_to(besides):
            continue
        patient, _, number = path.stem.rpartition("_")
        row = {"file": path.relative_to(folder).as_posix(), "image_id": path.stem, "patient_id": patient}
        if patient and number.isdecimal():
            row |= {"series": patient, "position_mm": float(number)}
        else:
            row["error"] = f"NoPlace: {path.name} is not named <patient>_<slice>{path.suffix}, so its place is unknown"
        rows.append(row)
    columns = ["patient_id", "study", "series", "image_id", "file", "frame", "position_mm", "error", "note", "place"]
    table = pd.DataFrame(rows, columns=columns).sort_values(["series", "position_mm", "file"], ignore_index=True)
    named = table[table["series"].notna()]
    twice = named.duplicated(["series", "position_mm"])
    table.loc[twice[twice].index, "note"] = "a picture with the same number is before it"
    table["place"] = named.groupby("series").cumcount()
    table["place"] = table["place"].astype("Int64")
    return table.astype(object).fillna("")

# %% [markdown]
# ## Pictures
# One slice after another, since a series is what one process works on. A file that cannot be read costs its own slice.

# %%
#| export
def read_picture(
    folder: Path,
    row: Mapping,      # file, frame and note of a slice
    settings: Seen,
) -> np.ndarray:       # uint8 (rows, columns, 3)
    "The picture of a slice as the training had it; raises DicomError or PheError."
    path = inside(folder, row["file"])
    if path.suffix.lower() in PICTURES:
        return phe.read_picture(folder, row["file"])
    frame = int(row["frame"]) - 1 if str(row["frame"]) else None
    image = read_frame(path, frame).decode()
    picture = slice_picture(image, settings.faithful, True if SHIFTED in str(row["note"]) else None)
    return cv2.merge([picture[..., 0]] * 3) if settings.given else picture

def read_series_pictures(
    folder: Path,
    rows: list[Mapping],   # of a series, in their order
    settings: Seen,
) -> tuple[list[np.ndarray], list[int], list[str]]:  # pictures; their numbers in `rows`; an error for each row, or ""
    "The pictures of a series."
    pictures, kept, errors = [], [], []
    for k, row in enumerate(rows):
        try:
            pictures.append(read_picture(folder, row, settings))
        except Exception as e:  # the series goes on; the reason is in the table
            errors.append(f"{type(e).__name__}: {e}")
        else:
            kept.append(k)
            errors.append("")
    return pictures, kept, errors

# %%
def drawn(place):
    "A head with a bright spot that moves from slice to slice."
    picture = cv2.ellipse(np.zeros((128, 160, 3), np.uint8), (80, 64), (40, 52), 0, 0, 360, (110, 70, 130), -1)
    return cv2.circle(picture, (60 + 10 * place, 50), 8, (210, 110, 150), -1)

folder = Path(tempfile.mkdtemp())
for k in range(5):
    write_png(folder / f"img/p_{k + 8}.png", drawn(k)[..., 0])
(folder / "img/p_10.png").write_bytes(b"no picture")
write_png(folder / "img/other.png", drawn(0))
table = find_pictures(folder, folder / "out")
rows = table[table["place"] != ""].to_dict("records")
assert [r["image_id"] for r in rows] == ["p_8", "p_9", "p_10", "p_11", "p_12"]
pictures, kept, errors = read_series_pictures(folder, rows, settings)
assert kept == [0, 1, 3, 4] and errors[2].startswith("PheError")
table[["file", "series", "position_mm", "place", "error"]]

# %% [markdown]
# ## The encoders' input
# Views that differ in their encoders only share an input. A slice that cannot be read is nobody's neighbour.

# %%
#| export
def encoder_inputs(
    pictures: list[np.ndarray],  # uint8 (rows, columns, 3) of a series, in its order
    settings: Seen,
) -> dict[str, np.ndarray]:      # name of an input -> uint8 (n, 3, size, size)
    "The input of the encoders for a series."
    boxes = [head_box(picture, settings.faithful) for picture in pictures]
    if settings.box == "series" and len({picture.shape for picture in pictures}) == 1:
        boxes = [common_box(boxes, pictures[0].shape[:2])] * len(boxes)

    def view_of(k: int, view: View, picture: np.ndarray) -> np.ndarray:
        return read_view(picture, boxes[k], settings.size, view.crop, settings.faithful)

    inputs = {}
    for view in settings.views:
        if input_name(view) in inputs:
            continue
        seen = []
        for k, picture in enumerate(pictures):
            if view.channels == "windows":
                seen.append(view_of(k, view, picture))
                continue
            near = [pictures[max(0, k - 1)], picture, pictures[min(len(pictures) - 1, k + 1)]]
            seen.append(np.dstack([view_of(k, view, p)[..., 0] for p in near]))
        inputs[input_name(view)] = np.ascontiguousarray(np.stack(seen).transpose(0, 3, 1, 2))
    return inputs

# %% [markdown]
# ## What came out
# The inputs of a drawn series: the head cut out, the whole slice, and three slices as red, green and blue.

# %%
inputs = encoder_inputs([drawn(k) for k in range(5)], settings)
assert all(x.shape == (5, 3, size, size) and x.dtype == np.uint8 for x in inputs.values())
near, single = inputs["neighbours_crop"], inputs["windows_crop"]
assert np.array_equal(near[1, 1], single[1, 0]) and np.array_equal(near[0, 0], near[0, 1])
sheet([x.transpose(1, 2, 0) for part in inputs.values() for x in part], columns=5);

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

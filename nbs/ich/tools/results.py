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
# # Pages and DICOM
# > The most suspicious slices of each series in three windows, and what a report calls the classes.
#
# `mammo-nb predict --system ich --html --dicom` writes them. How pages and results are made is in
# [Studies](../../core/82_studies.py). A class has its largest probability in the series, and refers to the slice that
# has it.

# %%
#| default_exp ich.tools.results

# %%
#| export
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_nb.core.dicom_results import CAUTION, Maker
from mammo_nb.core.exams import captioned, enlarged
from mammo_nb.core.files import sha256
from mammo_nb.core.pictures import write_png
from mammo_nb.core.studies import Reported, Score, Shown, suspicious
from mammo_nb.ich.reading.windows import WINDOWS
from mammo_nb.ich.recipes import CLASSES

# %%
#| hide
import tempfile

import cv2
import matplotlib.pyplot as plt

# %% tags=["parameters"]
size = 200   # side of the drawn slice, pixels

# %% [markdown]
# ## Names
# A class of the project is no term of a coding scheme, so its code is one of a scheme of its own, as DICOM has it for
# such cases: its name begins with 99.

# %%
#| export
SCHEME, HEAD = "99MAMMONB", ("69536005", "SCT", "Head")
CODES = {c: Reported((f"ich_{c}"[:16], SCHEME, f"Probability of {c} {'intracranial ' * (c == 'any')}hemorrhage"), HEAD)
         for c in CLASSES}
ABOUT = (f"The slices with the largest probability of each class, in these windows: "
         f"{', '.join(f'{name} ({c} HU, width {w})' for name, (c, w) in WINDOWS.items())}. Slices count from 0.")

def maker_of(
    weights: Path,   # has encoder.onnx and sequence.onnx
) -> Maker:
    "What made the results."
    return Maker("mammo_nb ich", sha256(weights / "encoder.onnx") + sha256(weights / "sequence.onnx"),
                 f"mammo_nb, {CAUTION}")

# %% [markdown]
# ## Slices
# The three windows that the networks read, side by side. Networks that were trained on pictures of one window read only
# one.

# %%
#| export
def draw_slices(
    folder: Path,                # gets a PNG for each slice; what it has is removed
    pictures: list[np.ndarray],  # uint8 (rows, columns, 3), a window each channel
    values: pd.DataFrame,        # probabilities: a row a picture, a column a class
    places: list[int],           # of the pictures in the series
    note: str,                   # words about the weights
) -> list[dict]:                 # at: number of the picture; picture: name of the file; words
    "Draw the most suspicious slices of a series."
    shutil.rmtree(folder, ignore_errors=True)
    found = []
    for k, _, _ in suspicious(values):
        best = values.iloc[k].sort_values(ascending=False, kind="stable")[:3]
        words = ", ".join(f"{name} {p:.2f}" for name, p in best.items())
        channels = np.moveaxis(pictures[k], -1, 0)
        windows = channels[:1] if (channels == channels[0]).all() else channels
        drawn = np.repeat(np.hstack(list(windows))[..., None], 3, 2)
        names = f", windows: {', '.join(WINDOWS)}" if len(windows) > 1 else ""
        lines = [f"slice {places[k]}{names}", words, note or CAUTION]
        write_png(folder / f"{places[k]}.png", captioned(enlarged(drawn), lines))
        found.append({"at": k, "picture": f"{folder.name}/{places[k]}.png", "words": words})
    return found

# %% [markdown]
# ## From the tables

# %%
#| export
def results_of(
    table: pd.DataFrame,    # as from `read_folder`, with a column for each class, and item
    drawn: dict[str, list], # item -> from `draw_slices`; at: number of the row among those of the item
    classes: list[str],
) -> tuple[list[Score], list[Shown]]:
    "The scores of each series, and the slices that are shown."
    scores, shown = [], []
    for item, own in table[table["place"].ne("")].groupby("item", sort=False):
        rows = own.to_dict("records")
        about = rows[0]["patient_id"], rows[0]["study"], rows[0]["series"]
        for c in classes:
            values = pd.to_numeric(own[c]).reset_index(drop=True)
            if values.notna().any():
                row = rows[values.idxmax()]
                at = {name: row[name] for name in ("series", "file", "frame", "place")}
                scores.append(Score(*about, c, float(values.max()), (at,)))
        for s in drawn.get(item, []):
            row = rows[s["at"]]
            shown.append(Shown(*about, int(row["place"]), s["picture"], s["words"], row["file"], str(row["frame"]),
                               str(row["image_id"])))
    return scores, shown

# %% [markdown]
# ## What came out
# A drawn slice, as a page and an archive show it:

# %%
y, x = np.mgrid[:size, :size] / (size / 2) - 1
head = (np.hypot(x / .75, y / .9) < .9)[..., None] * np.array([110, 128, 140], np.uint8)
values = pd.DataFrame([[.1, .2], [.7, .8]], columns=["subdural", "any"])
with tempfile.TemporaryDirectory() as folder:
    found = draw_slices(Path(folder) / "1.2.3", [head, head], values, [0, 1], "")
    picture = cv2.imread(str(Path(folder) / found[0]["picture"]))
assert [s["at"] for s in found] == [1, 0] and picture.shape == (size + 3 * 18 + 6, 3 * size, 3)
assert all(len(r.name[0]) <= 16 for r in CODES.values()) and len({r.name[0] for r in CODES.values()}) == len(CODES)
plt.figure(figsize=(8, 3.5))
plt.imshow(picture)
plt.axis("off");

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

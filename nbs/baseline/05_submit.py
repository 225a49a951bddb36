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
# # Submit
# > The same hidden test set with the single network of the baseline.
#
# Test set, decision and tables are [the winner's](../mammo/09_submit.py). The input of the network and the weights are
# the baseline's own. Most of the time goes into decoding. Horizontal-flip TTA is a part of the graph, so the submission
# does not add another one.

# %%
#| default_exp baseline.submit

# %%
#| export
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammo_nb.baseline.prepare import prepare
from mammo_nb.baseline.system import Prepare, system
from mammo_nb.core.budget import Mode, read_modes
from mammo_nb.core.dicom import read_image
from mammo_nb.core.files import inside
from mammo_nb.core.pictures import write_png
from mammo_nb.core.runs import Run
from mammo_nb.core.submission import open_network
from mammo_nb.core.submit import submit_stage
from mammo_nb.mammo.crops import crop_path
from mammo_nb.mammo.datasets import competition
from mammo_nb.mammo.reading.blank import NO_BREAST, why_blank
from mammo_nb.mammo.submit import submission as mammo

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.files import read_json
from mammo_nb.core.practice import practice
from mammo_nb.core.submission import find_weights
from mammo_nb.core.submit import summary
from mammo_nb.mammo.datasets import read_table

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run; the stage has no section of its own
workers = 0                                   # processes that decode; 0 means one a core

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="submit", overrides=overrides)
run.contract("submit")

# %% [markdown]
# ## One image
# It is prepared with the settings of the training, which the weights carry.

# %%
#| export
def prepare_item(
    item: dict,  # folder, file, row; settings of `prepare`; pngs: folder where inputs are kept, or ""
    mode: Mode,  # not used, because all modes have the same input
) -> tuple[dict, np.ndarray]:  # row without probability; uint8 (height, width)
    "Read an image file as a row and the network's input."
    cv2.setNumThreads(1)  # the processes share the cores already
    image = read_image(inside(item["folder"], item["file"]))
    picture, box = prepare(image, Prepare(**item["settings"]))
    corners = box.x0, box.y0, box.x1, box.y1
    reason = why_blank(picture, (image.header.rows, image.header.columns), corners)
    note = f"{NO_BREAST}: {reason}" if reason else ""
    ids = {c: item["row"][c] for c in ("patient_id", "image_id", "laterality", "view")}
    if item["pngs"]:
        write_png(crop_path(item["pngs"], ids["patient_id"], ids["image_id"]), picture)
    return {
        **ids, "rows": image.header.rows, "columns": image.header.columns, "decoder": image.decoder,
        **dict(zip(("x0", "y0", "x1", "y1"), corners)), "box_source": NO_BREAST if reason else box.source, "note": note,
        "withheld": bool(reason)
    }, picture

# %% [markdown]
# ## The declaration

# %%
#| export
def item_entries(
    weights: Path,     # folder with baseline.onnx and baseline.json
    metadata: dict,    # baseline.json
) -> dict:             # entries of each item, for `prepare_item`
    "How the input of the network is made."
    return {"settings": metadata["prepare"]}

def only_mode(
    metadata: dict,    # baseline.json: folds, size
    flip: bool,        # ignored: the graph already has TTA
    name: str,         # name of the engine
) -> list[Mode]:       # one
    "The only mode; the baseline has no cheaper variants."
    return read_modes(metadata, False, name)

submission = replace(mammo, system=system.name, engine="baseline", prepare=prepare_item, entries=item_entries,
                     modes=only_mode, open_engine=open_network)

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
    workers: int | None = None,    # processes that decode; None means one a core
) -> pd.DataFrame:                 # the submission
    "test_images -> submissions/submission.csv, test_per_image.csv and submit.json."
    return submit_stage(run, submission, run.path(competition(run)), workers)

# %%
decided = run_stage(run, workers or None)
table = read_table(run.path("test_per_image.csv"), ["probability"])
report = read_json(run.path("submit.json"))
print(f"{len(decided)} breasts, {decided['cancer'].sum()} of them predicted positive", *summary(report), sep="\n")
decided.head()

# %% [markdown]
# ## What came out
# The probabilities of the breasts with the threshold.

# %%
place = find_weights("baseline", run.weights or run.path("weights/"))
threshold = read_json(place / "baseline.json")["threshold"]
plt.figure(figsize=(6, 2.8))
plt.hist(table.groupby("prediction_id")["probability"].mean().dropna(), bins=30, range=(0, 1))
plt.axvline(threshold, color="orange", label=f"threshold {threshold:.2f}")
plt.xlabel("probability of a breast")
plt.ylabel("breasts")
plt.legend();

# %% [markdown]
# ---
# [← Engines](04_engines.py) · [Report →](06_report.py)

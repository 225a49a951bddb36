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
# # Submit
# > The hidden test set in one pass, with a valid file from the first second.
#
# The winner's submission does the work, safeguards included: the sample goes out first, and a file that cannot be read
# costs its own breast only. Here is what differs, the picture and the network. Most of the time goes into decoding; the
# network is asked twice an image.

# %%
#| default_exp baseline.submit

# %%
#| export
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammo_nb.baseline.prepare import prepare
from mammo_nb.baseline.system import Prepare
from mammo_nb.core.dicom import read_image
from mammo_nb.core.files import inside, read_json
from mammo_nb.core.runs import Run, StageError, find_trained
from mammo_nb.mammo.datasets import competition
from mammo_nb.mammo.submit import Ensemble, Output, open_network, submit_images

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.runs import practice
from mammo_nb.baseline.system import system
from mammo_nb.mammo.datasets import read_table
from mammo_nb.mammo.submit import told

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run; the stage has no section of its own
workers = 0                                   # processes; 0: one a core

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="submit", overrides=overrides)
run.contract("submit")

# %% [markdown]
# ## One image
# Prepared as the weights remember.

# %%
#| export
def see_item(
    item: dict,              # folder, file, row; settings: of `prepare`
    mode,                    # there is only one
) -> tuple[dict, np.ndarray]:  # row without probability; uint8 (height, width)
    "A file as a row and a picture."
    cv2.setNumThreads(1)  # the processes share the cores already
    image = read_image(inside(item["folder"], item["file"]))
    picture, box = prepare(image, Prepare(**item["settings"]))
    return {
        **item["row"], "rows": image.header.rows, "columns": image.header.columns, "decoder": image.decoder,
        "x0": box.x0, "y0": box.y0, "x1": box.x1, "y1": box.y1, "box_source": box.source
    }, picture

def find_network(
    folder: Path,   # with baseline.onnx, or a run that has such a folder
) -> Path:          # the folder
    "Where baseline.onnx and baseline.json are."
    found = find_trained(["baseline.onnx", "baseline.json"], folder)
    if not found:
        raise StageError(
            f"{folder} has no baseline.onnx with its baseline.json. `make reproduce SYSTEM=baseline` writes such a "
            "folder: runs/baseline-demo/weights."
        )
    return found.resolve()

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
    workers: int | None = None,    # processes that decode; None: one a core
) -> pd.DataFrame:                 # the submission
    "test_images -> submissions/submission.csv, test_per_image.csv and submit.json."
    place = find_network(run.weights or run.path("weights/"))
    files = Output(run.path("submissions/submission.csv"), run.path("test_per_image.csv"),
                   run.path("submit.json"))
    with run.stage("submit") as results:
        results["weights"] = place.name
        metadata = read_json(place / "baseline.json")
        network = Ensemble(metadata, see_item, partial(open_network, place), "baseline",
                           {"settings": metadata["prepare"]})
        return submit_images(run.path(competition(run)), lambda: network, files, workers=workers)

# %%
submission = run_stage(run, workers or None)
per_image = read_table(run.path("test_per_image.csv"), ["probability"])
print(f"{len(submission)} breasts, {submission['cancer'].sum()} called", *told(read_json(run.path("submit.json"))), sep="\n")
submission.head()

# %% [markdown]
# ## What came out
# The probabilities of the breasts and where the threshold cut.

# %%
threshold = read_json(find_network(run.weights or run.path("weights/")) / "baseline.json")["threshold"]
plt.figure(figsize=(6, 2.8))
plt.hist(per_image.groupby("prediction_id")["probability"].mean().dropna(), bins=30, range=(0, 1))
plt.axvline(threshold, color="orange", label=f"threshold {threshold:.2f}")
plt.xlabel("probability of a breast")
plt.ylabel("breasts")
plt.legend();

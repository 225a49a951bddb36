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
# # Count
# > From a picture to the number of its dots.

# %%
#| default_exp toy.count

# %% tags=["parameters"]
run_dir = ""    # folder of the run; "" makes a practice run
overrides = {}  # changes for this run, such as {"count.threshold": 0.6}

# %%
#| export
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammo_nb.core.parallel import map_files
from mammo_nb.core.runs import Run

# %%
#| hide
from mammo_nb.core.practice import practice
from mammo_nb.toy.system import system

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="count", overrides=overrides)
run.contract("count")

# %%
#| export
def count_dots(
    picture: np.ndarray,  # uint8 (rows, columns), dots bright on dark
    threshold: float,     # grey level in [0, 1]
) -> int:                 # number of 8-connected regions above the threshold
    "Count bright regions; label 0 of cv2.connectedComponents is the background."
    labels, _ = cv2.connectedComponents((picture > 255 * threshold).astype(np.uint8), connectivity=8)
    return labels - 1

def count_file(
    item: dict,  # file: name of a PNG; folder; threshold
) -> dict:       # dots
    "One row of counts.csv."
    picture = cv2.imread(str(Path(item["folder"]) / item["file"]), cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise ValueError(f"{item['file']} is no picture that OpenCV reads; draw it again or remove it")
    return {"dots": count_dots(picture, item["threshold"])}

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
) -> pd.DataFrame:  # file, dots, error
    "pictures/ -> counts.csv."
    settings, folder = run.section("count"), run.path("pictures/")
    with run.stage("count"):
        items = [{"file": p.name, "folder": str(folder), "threshold": settings.threshold}
                 for p in sorted(folder.glob("*.png"))]
        return map_files(count_file, items, table=run.path("counts.csv"), params={"threshold": settings.threshold})

# %%
counts = run_stage(run)

# %% [markdown]
# ## What came out

# %%
both = counts.merge(pd.read_csv(run.path("labels.csv")), on="file")
print(f"{(both['dots'] == both['label']).mean():.0%} of {len(both)} pictures counted right")

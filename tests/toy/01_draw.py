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
# # Draw
# > Pictures with a known number of dots.

# %%
#| default_exp toy.draw

# %% tags=["parameters"]
run_dir = ""    # folder of the run; "" makes a practice run
overrides = {}  # changes for this run, such as {"draw.pictures": 8}

# %%
#| export
import cv2
import numpy as np
import pandas as pd

from mammo_nb.core.files import write_csv
from mammo_nb.core.runs import Run

# %%
#| hide
from mammo_nb.core.practice import practice
from mammo_nb.toy.system import system

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="draw", overrides=overrides)
run.contract("draw")

# %% [markdown]
# Dots lie on a grid, two pixels apart, so that no two of them touch.

# %%
#| export
def draw_dots(
    dots: int,    # how many, at most (size / 8) squared
    size: int,    # rows and columns, pixels
    seed: int,
) -> np.ndarray:  # uint8 (size, size)
    "A picture with so many separate dots."
    places = np.random.default_rng(seed).choice((size // 8) ** 2, dots, replace=False)
    picture = np.zeros((size, size), np.uint8)
    for row, column in zip(places // (size // 8) * 8, places % (size // 8) * 8):
        picture[row + 1:row + 7, column + 1:column + 7] = 255
    return picture

# %%
assert draw_dots(3, 64, 0).sum() == 3 * 36 * 255

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
) -> pd.DataFrame:  # file, label
    "The recipe -> pictures/ and labels.csv."
    settings = run.section("draw")
    with run.stage("draw"):
        run.path("pictures/").mkdir(exist_ok=True)
        rows = [{"file": f"{n:05}.png", "label": n % 9 + 1} for n in range(settings.pictures)]
        for n, row in enumerate(rows):
            picture = draw_dots(row["label"], settings.size, settings.seed + n)
            cv2.imwrite(str(run.path("pictures/") / row["file"]), picture)
        write_csv(run.path("labels.csv"), table := pd.DataFrame(rows))
    return table

# %%
run_stage(run).head()

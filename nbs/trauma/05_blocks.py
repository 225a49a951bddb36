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
# # Blocks
# > Series of any length become blocks of one length, which a network can read.
#
# A series has 15 to 1000 slices and a network reads 96. This stage decides which slices belong together. It copies no
# pixels: a block is a list of rows of its volume.

# %%
#| default_exp trauma.blocks

# %%
#| export
import pandas as pd

from mammo_nb.core.files import write_csv
from mammo_nb.core.runs import Run
from mammo_nb.trauma.reading.blocks import block_rows
from mammo_nb.trauma.reading.competition import read_table
from mammo_nb.trauma.recipes import Blocks

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np

from mammo_nb.core.pictures import sheet
from mammo_nb.core.practice import practice
from mammo_nb.trauma.system import system

# %% tags=["parameters"]
run_dir = ""      # folder of the run; "" makes a small practice run
overrides = {}    # changes for this run, such as {"blocks.sampling": "equidistant"}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="blocks", overrides=overrides)
run.contract("blocks")

# %% [markdown]
# ## The table
# `places` are the slices of a block, as numbers within the volume. A block is named by its patient, its series and its
# first and last slice.

# %%
#| export
def block_table(
    info: pd.DataFrame,   # one row a slice: patient_id, series
    how: Blocks,
) -> pd.DataFrame:        # block, patient_id, series, slices (of the series), places (text, separated by blanks)
    "The blocks of all series, in the order of the table."
    made = []
    for (patient, series), slices in info.groupby(["patient_id", "series"], sort=False):
        for rows in block_rows(len(slices), how):
            made.append({"block": f"{patient}_{series}_{rows[0]}_{rows[-1]}", "patient_id": patient, "series": series,
                         "slices": len(slices), "places": " ".join(map(str, rows))})
    return pd.DataFrame(made)

# %%
example = pd.DataFrame({"patient_id": "7", "series": ["1"] * 150 + ["2"] * 20})
found = block_table(example, Blocks())
assert found["block"].tolist() == ["7_1_0_95", "7_1_50_145", "7_2_0_19"]
found

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
) -> pd.DataFrame:       # blocks.csv
    "info.csv -> blocks.csv."
    with run.stage("blocks") as results:
        table = block_table(read_table(run.path("info.csv")), run.section("blocks"))
        write_csv(run.path("blocks.csv"), table)
        results |= {"blocks": len(table)}
    return read_table(run.path("blocks.csv"))

# %%
table = run_stage(run)
table.assign(places=table["places"].str.slice(0, 40) + " ...").head(8)

# %% [markdown]
# ## What came out
# How many blocks a series has, by its length, and the first block of a series, each slice where the network sees it.

# %%
counts = table.groupby(["patient_id", "series"]).agg(slices=("slices", "first"), blocks=("block", "size"))
fig, ax = plt.subplots(figsize=(5, 2.2))
ax.plot(counts["slices"], counts["blocks"], "o", color="#46719c", ms=4)
ax.set(xlabel="slices of a series", ylabel="blocks");

# %%
name = table["block"].iloc[0].rsplit("_", 2)[0]
own = table[table["block"].str.startswith(f"{name}_")]
volume = np.load(run.path("processed/volumes/") / f"{name}.npy", mmap_mode="r")
read = [int(p) for p in own["places"].iloc[0].split()]
assert all(max(map(int, places.split())) < len(volume) for places in own["places"])
sheet([np.asarray(volume[p]) for p in read[:18]], columns=9, title=own["block"].iloc[0]);

# %% [markdown]
# ---
# [← Info](04_info.py) · [Folds →](06_folds.py)

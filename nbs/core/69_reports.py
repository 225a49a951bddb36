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
# # Reports
# > The tables and figures that the report of every system has.
#
# A report reads the files of a run and computes nothing that a stage did not write. What it shows of the stages, the
# machine, the training and the submission is the same for all systems, and stands here.

# %%
#| default_exp core.reports

# %%
#| export
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mammo_nb.core.train import plot_epochs

# %% tags=["parameters"]
pictures = 5   # number of pictures in the figure below

# %% [markdown]
# ## Tables

# %%
#| export
def stages_table(
    manifest: dict,   # manifest of a run
) -> pd.DataFrame:    # stage, seconds, wrote
    "The time and the files of each stage."
    return pd.DataFrame([
        {"stage": name, "seconds": entry["seconds"], "wrote": ", ".join(Path(w).name for w in entry["writes"])}
        for name, entry in manifest["stages"].items()])

def environment_table(
    manifest: dict,   # manifest of a run
) -> pd.DataFrame:    # one column with the name of the run
    "The machine and the versions of the packages."
    environment = manifest["environment"]
    values = {**{k: v for k, v in environment.items() if k != "packages"}, **environment["packages"]}
    return pd.Series(values, name=manifest["run"]).to_frame()

def submission_line(
    report: dict,   # submit.json
) -> str:           # Markdown
    "One line about the submission."
    return (f"`submission.csv`: {report['rows']} rows from {report['items']} {report['item']}, {report['failed']} of "
            "which failed")

# %%
manifest = {"run": "demo", "stages": {"draw": {"seconds": 1.5, "writes": ["pictures/", "labels.csv"]}},
            "environment": {"python": "3.12", "packages": {"numpy": "2.0"}}}
assert environment_table(manifest)["demo"].to_dict() == {"python": "3.12", "numpy": "2.0"}
print(submission_line({"rows": 48, "items": 96, "item": "images", "failed": 1}))
stages_table(manifest)

# %% [markdown]
# ## Figures

# %%
#| export
def plot_history(
    axis: plt.Axes,
    history: pd.DataFrame,  # fold, epoch (from 0, as stored), loss
):
    "Training loss over the epochs, a line for each fold."
    for fold, rows in history.groupby("fold"):
        plot_epochs(axis, rows["epoch"], rows["loss"], f"fold {fold}")
    axis.set_title("training loss")
    axis.legend(fontsize=8)

def plot_probabilities(
    axis: plt.Axes,
    labels: pd.Series,         # 0 or 1
    probabilities: pd.Series,  # in [0, 1]
    threshold: float,          # drawn as a line
    names: tuple[str, str],    # of label 0 and label 1
    title: str,
):
    "Histograms of the probabilities of both labels."
    for label, name in enumerate(names):
        axis.hist(probabilities[labels == label], bins=25, range=(0, 1), alpha=.6, label=name)
    axis.axvline(threshold, color="black", lw=1)
    axis.set(title=f"{title}, n = {len(labels)}", xlabel=f"line: threshold {threshold:.2f}")
    axis.legend(fontsize=8)

def plot_ladder(
    ladder: pd.DataFrame,  # step, low, high and the score, a row for each step
    score: str,            # the column of the score
    label: str,            # of its axis
):
    "The score of each step with its interval, the first step on top."
    plt.figure(figsize=(8, 0.4 * len(ladder) + 1))
    width = [ladder[score] - ladder["low"], ladder["high"] - ladder[score]]
    plt.errorbar(ladder[score], range(len(ladder)), xerr=width, fmt="o")
    plt.yticks(range(len(ladder)), ladder["step"])
    plt.gca().invert_yaxis()
    plt.xlabel(label)

KINDS = {(1, True): "found", (1, False): "missed", (0, True): "suspected", (0, False): "passed"}

def extremes(
    table: pd.DataFrame,  # one row per item, with a column `probability`
    label: str,           # column with 0 or 1
    threshold: float,     # an item with a higher probability is called positive
    count: int = 4,       # items of each kind, if there are so many
) -> pd.DataFrame:        # the rows with a column `kind`: found, missed, suspected, passed
    "The clearest items of each kind: the highest probabilities above the threshold and the lowest below it."
    table = table.sort_values("probability", ascending=False)
    positive = table["probability"].astype(np.float32) > np.float32(threshold)  # as the curve of thresholds compares
    kind = pd.Series([KINDS[int(y), bool(p)] for y, p in zip(table[label], positive)], table.index, dtype=object)
    table = table.assign(kind=kind)
    parts = [table[kind == k] for k in KINDS.values()]
    return pd.concat([part.head(count) if k in ("found", "suspected") else part.iloc[::-1].head(count)
                      for k, part in zip(KINDS.values(), parts)])

def show_pictures(
    rows: pd.DataFrame,    # one row per picture, such as from `extremes`
    load: Callable,        # row -> uint8 (height, width)
    title: Callable,       # row -> title of the picture
    columns: int = 8,      # pictures side by side
    mask: Callable | None = None,  # row -> uint8 (height, width), outlined where it is white; or None
):
    "Show pictures in a grid."
    shape = -(-len(rows) // columns), columns
    figure, axes = plt.subplots(*shape, figsize=(12, 3.8 * shape[0]), squeeze=False)
    for axis, row in zip(axes.flat, rows.itertuples()):
        axis.imshow(load(row), cmap="gray", vmin=0, vmax=255)
        axis.set_title(title(row), fontsize=9)
        outline = None if mask is None else mask(row)
        if outline is not None and outline.any():
            axis.contour(outline, levels=[127], colors="orange", linewidths=1)
    for axis in axes.flat:
        axis.axis("off")
    figure.tight_layout()

# %% [markdown]
# ## What came out
# The items of each kind among random predictions, as grey pictures:

# %%
rng = np.random.default_rng(0)
table = pd.DataFrame({"probability": rng.random(40), "cancer": rng.integers(0, 2, 40)})
chosen = extremes(table, "cancer", threshold=0.6, count=2)
kinds = chosen.groupby("kind")
assert (kinds["cancer"].first() == kinds["cancer"].last()).all() and len(chosen) == 8
assert kinds["probability"].min()[["found", "suspected"]].min() > 0.6 >= kinds["probability"].max()["missed"]
show_pictures(chosen.head(pictures), lambda row: np.full((8, 6), round(255 * row.probability), np.uint8),
              lambda row: f"{row.kind}: {row.probability:.2f}", columns=pictures)

# %% [markdown]
# ---
# [← Rehearse](68_rehearse.py) · [Evidence →](70_evidence.py)

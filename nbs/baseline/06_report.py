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
# # Report
# > The baseline's run on one page, compared with the winner's on the same patients.
#
# Everything is read from the files of two runs. The comparison uses the fold that the baseline held back, and of the
# winner the one network that was not trained on this fold either. On the synthetic test set the winner uses all its
# networks.

# %%
#| default_exp baseline.report

# %%
#| export
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammo_nb.baseline.prepare import pad_upright
from mammo_nb.core.files import read_json
from mammo_nb.core.metrics import auc, pfbeta
from mammo_nb.core.runs import Run, read_manifest
from mammo_nb.core.uncertainty import auc_interval
from mammo_nb.mammo.datasets import per_breast, read_table
from mammo_nb.mammo.report import test_score

# %%
#| hide
import matplotlib.pyplot as plt
from IPython.display import Markdown

from mammo_nb.baseline.select import outcomes
from mammo_nb.baseline.system import system
from mammo_nb.core.calibration import plot_reliability
from mammo_nb.core.estimates import estimates, plot_plateau, show_thresholds
from mammo_nb.core.practice import practice
from mammo_nb.core.reports import environment_table, plot_history, plot_probabilities, stages_table
from mammo_nb.core.settings import read_paths
from mammo_nb.mammo.learning.exams import show_data, show_exam, wrong_breasts
from mammo_nb.mammo.report import result_lines, show_extremes
from mammo_nb.mammo.tools.heat_maps import MEASURED, held_back_heat, lesion_hits

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run; the stage has no section of its own
other = ""                                    # folder of the winner's run; "" is the one of the same recipe, runs/demo

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="report", overrides=overrides)
run.contract("report")

# %%
#| hide
other = Path(other or read_paths().runs / run.recipe)
pd.set_option("display.max_colwidth", 300)   # notes and errors are read whole
manifest = read_manifest(run.folder)
trained_here = "select" in manifest["stages"]

# %% [markdown]
# ## The result

# %%
lines = []
if trained_here:
    s, network = read_json(run.path("selection.json")), manifest["stages"]["train"]["parameters"]["network"]
    remark = "" if network.startswith("convnext_tiny") else ", in place of the published ConvNeXt-tiny: see the recipes"
    lines += [
        f"**AUC per breast {s['auc']:.3f}** (95 % interval {s['auc_95'][0]:.3f} to {s['auc_95'][1]:.3f}; "
        f"{s['breasts']} breasts of one fold, {s['cancers']} with cancer)",
        f"pF1 {s['pf1']:.3f} at threshold {s['threshold']:.2f}; network {network}{remark}"]
lines += result_lines(run)
print("\n".join(lines).replace("**", "").replace("*", ""))
Markdown("\n\n".join(lines))

# %%
if trained_here:
    breasts = per_breast(read_table(run.path("oof.csv"), ["probability"]))
    fig, axes = plt.subplots(1, 2, figsize=(8, 3))
    plot_history(axes[0], read_table(run.path("checkpoints/history.csv"), ["loss"]))
    plot_probabilities(axes[1], breasts["cancer"], breasts["probability"], s["threshold"], ("no cancer", "cancer"),
                       "probability of a breast, held-out fold")
    fig.tight_layout()

# %% [markdown]
# ## Data and boxes

# %%
show_data(run, trained_here)

# %% [markdown]
# ## How sure the scores are
# All scores per breast of the held-back fold, with 95 % intervals over patients. The threshold was chosen on these
# breasts, so the scores at it are a little too good.

# %%
if trained_here:
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.2))
    plot_plateau(axes[0], breasts["cancer"], breasts["probability"], s["threshold"], s["plateau"])
    plot_reliability(axes[1], breasts["cancer"], breasts["probability"], "cancer")
    fig.tight_layout()
    display(estimates(breasts["cancer"], breasts["probability"], breasts["patient_id"],
                      s["threshold"]).set_index("metric").round(3))

# %%
if trained_here:
    show_thresholds(outcomes(run), ("no cancer", "cancer"))

# %% [markdown]
# ## Compared with the winner
# The rows can be compared if the same patients are in the same fold, which is checked. The interval is a bootstrap over
# patients. A fold of the demo has 24 patients, so the interval is wide, and a difference smaller than it means nothing.
# Each run has its own threshold: the baseline's was chosen on the fold that it is scored on here, the winner's on all
# four folds.

# %%
#| export
def scores(
    run: Run,        # a run that has trained
    fold: int,       # the fold that is scored
) -> dict:           # AUC with its interval and pF1 on the fold, AUC and pF1 of a synthetic test set, seconds
    "The scores of a run on one fold and on its test set, and its time."
    oof = read_table(run.path("oof.csv"), ["fold", "probability"])
    stages = read_manifest(run.folder)["stages"]
    test = test_score(run)
    breasts = per_breast(oof[oof["fold"] == fold])
    labels, probabilities = breasts["cancer"], breasts["probability"]
    low, high = auc_interval(labels, probabilities, breasts["patient_id"])
    decided = probabilities > read_json(run.path("selection.json"))["threshold"]
    return {
        "AUC": auc(labels, probabilities), "from": low, "to": high, "pF1": pfbeta(labels, decided),
        "test AUC": test.get("auc"), "test pF1": test.get("pf1"), "networks": len(set(oof["fold"])),
        "training, s": stages["train"]["seconds"],
        "all stages, s": round(sum(s["seconds"] for s in stages.values()), 1)
    }

def compare(
    run: Run,        # the baseline's run
    other: Path,     # the winner's
) -> pd.DataFrame | str:  # two rows; or the reason why there are none
    "Compare both systems on the fold that the baseline held out."
    if not (Path(other) / "selection.json").exists():
        return (f"{Path(other).name} has no selection.json: run make reproduce, delete "
                f"{run.folder.name}/{run.system.label('report')}.ipynb and run make reproduce SYSTEM=baseline again")
    theirs = Run.open(other)
    fold = int(read_table(run.path("oof.csv"), ["fold"])["fold"].iloc[0])
    tables = [read_table(r.path("oof.csv"), ["fold", "cancer"]) for r in (run, theirs)]
    held = [t[t["fold"] == fold].set_index(["patient_id", "image_id"])["cancer"].sort_index() for t in tables]
    if not held[0].equals(held[1]):
        return (f"{theirs.folder.name} has other images in fold {fold} than {run.folder.name}: the two runs read "
                "different data or have other folds")
    rows = pd.DataFrame({"winner": scores(theirs, fold), "baseline": scores(run, fold)})
    return rows.T.rename_axis("system").reset_index()

# %%
compared = compare(run, other) if trained_here else "nothing was trained in this run"
if isinstance(compared, str):
    print(compared)
else:
    display(compared.set_index("system").astype(float).round(3))

# %% [markdown]
# ## The most confident wrong breasts
# Each with its whole exam, the box that the network sees, and the probability of each image. A red frame marks the
# breast that is meant. Below each image is its heat map. The stage prepare pads a box before it is resized, and a heat
# map is brought back to the box.

# %%
#| export
GRAPH = "weights/baseline.onnx"

def fitted(
    cut: np.ndarray,   # uint8 (rows, columns) of the box in the frame
    rows: int,         # of the result, pixels
    columns: int,
) -> np.ndarray:       # uint8 (rows, columns)
    "A mask as the stage prepare fits its picture."
    return cv2.resize(pad_upright(cut), (columns, rows), interpolation=cv2.INTER_LINEAR)

# %%
if trained_here:
    oof = read_table(run.path("oof.csv"), ["probability"])
    wrong = wrong_breasts(oof, s["threshold"])
    heat = held_back_heat(run, oof[oof["patient_id"].isin(wrong["patient_id"])], GRAPH)
    for breast in wrong.itertuples():
        show_exam(run, breast, heat=heat, fitted=fitted)
        plt.show()

# %% [markdown]
# ## The clearest right and wrong predictions
# The cancers that the threshold finds and misses, and the other breasts that it suspects and passes. Beside each image
# is its heat map, and an orange line is the outline of a lesion, where masks are known.

# %%
if trained_here:
    show_extremes(run, GRAPH, fitted)

# %% [markdown]
# How often the hottest place of a cancer that was found lies inside of its lesion, as in the winner's report:

# %%
if trained_here:
    display(lesion_hits(run, MEASURED, GRAPH, fitted).round(3))

# %% [markdown]
# ## Stages and environment
# ### Stages

# %%
stages_table(manifest)

# %% [markdown]
# ### Environment

# %%
environment_table(manifest)

# %% [markdown]
# ---
# [← Submit](05_submit.py)

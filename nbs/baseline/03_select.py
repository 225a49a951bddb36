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
# # Select
# > The epoch that is kept, and its threshold, from the one fold that is held back.
#
# The choices are the same as in `mammo`, with less data: a quarter of the breasts instead of all, and thresholds in
# steps of 0.05.

# %%
#| default_exp baseline.select

# %%
#| export
import shutil

import pandas as pd

from mammo_nb.baseline.train import THRESHOLDS, best_on_grid
from mammo_nb.core.files import write_csv, write_json
from mammo_nb.core.metrics import threshold_curve
from mammo_nb.core.runs import Run
from mammo_nb.mammo.datasets import per_breast, read_table
from mammo_nb.mammo import select as mammo_select
from mammo_nb.mammo.select import best_epochs, plateau, summarise

# %%
#| hide
import matplotlib.pyplot as plt
from sklearn.metrics import roc_curve

from mammo_nb.baseline.system import system
from mammo_nb.core.practice import practice

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run; the stage has no section of its own

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="select", overrides=overrides)
run.contract("select")

# %% [markdown]
# ## The threshold
# Scores and intervals are computed as in `mammo`. The threshold and the scores at it come from the coarse grid.

# %%
#| export
def summarise_fold(
    oof: pd.DataFrame,  # predictions of the fold, one row for each image
    faithful: bool = False,  # the first of equal thresholds
) -> dict:              # values for JSON, with the keys of mammo's selection
    "Scores per breast, and the best threshold of 0, 0.05 ... 0.95."
    breasts = per_breast(oof)
    threshold, pf1 = best_on_grid(breasts["cancer"], breasts["probability"], faithful)
    wide = plateau(threshold_curve(breasts["cancer"], breasts["probability"], THRESHOLDS), threshold)
    return {**summarise(oof), "threshold": threshold, "pf1": pf1, "plateau": wide}

# %%
example = pd.DataFrame(
    {"patient_id": list("abcd"), "laterality": "L", "cancer": [0, 0, 1, 1], "probability": [.12, .33, .38, .9]})
assert summarise_fold(example)["threshold"] == 0.35 and summarise_fold(example)["pf1"] == 1

# %%
#| export
def outcomes(
    run: Run,          # that has run this stage
) -> pd.DataFrame:     # outcome, item, patient_id, label, probability, threshold; one row a breast of the fold
    "Predictions of the held-back breasts for `mammo-nb compare`, read as in `mammo`."
    return mammo_select.outcomes(run)

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
) -> dict:           # selection.json
    "checkpoints -> oof.csv, selection.json and weights/fold_*.safetensors."
    checkpoints, final = run.path("checkpoints/"), run.path("weights/")
    with run.stage("select"):
        chosen = best_epochs(read_table(checkpoints / "history.csv", ["fold", "epoch", "auc", "pf1"]))
        fold, epoch = int(chosen["fold"].iloc[0]), int(chosen["epoch"].iloc[0])
        oof = read_table(checkpoints / f"fold_{fold}" / f"pred_{epoch}.csv", ["probability"])
        write_csv(run.path("oof.csv"), oof)
        final.mkdir(parents=True, exist_ok=True)
        for suffix in (".safetensors", ".json"):
            shutil.copyfile(checkpoints / f"fold_{fold}" / f"epoch_{epoch}{suffix}", final / f"fold_{fold}{suffix}")
        chosen = chosen[["fold", "epoch", "auc", "pf1"]].to_dict("records")
        result = {"folds": chosen, **summarise_fold(oof, run.recorded("train").faithful)}
        write_json(run.path("selection.json"), result)
    return result

# %%
selection = run_stage(run)
low, high = selection["auc_95"]
print(f"AUC per breast {selection['auc']:.3f} (95 % {low:.3f} to {high:.3f}, {selection['breasts']} breasts, "
      f"{selection['cancers']} with cancer)")
low, high = selection["plateau"]
print(f"pF1 {selection['pf1']:.3f} at threshold {selection['threshold']:.2f}, plateau {low:.2f} to {high:.2f}; "
      f"epoch {selection['folds'][0]['epoch'] + 1}")

# %% [markdown]
# ## What came out

# %%
breasts = per_breast(read_table(run.path("oof.csv"), ["probability"]))
curve = threshold_curve(breasts["cancer"], breasts["probability"], THRESHOLDS)
fig, axes = plt.subplots(1, 2, figsize=(8, 3))
axes[0].plot(*roc_curve(breasts["cancer"], breasts["probability"])[:2])
axes[0].set(title=f"ROC, AUC {selection['auc']:.3f}, {len(breasts)} breasts", xlabel="false positive rate",
            ylabel="sensitivity")
axes[1].plot(curve["threshold"], curve["score"], marker="o")
axes[1].axvline(selection["threshold"], color="orange")
axes[1].axvspan(*selection["plateau"], alpha=.2, color="orange")
axes[1].set(title="pF1 by threshold, and its plateau", xlabel="threshold")
fig.tight_layout()

# %% [markdown]
# ---
# [← Train](02_train.py) · [Engines →](04_engines.py)

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
# # Select
# > The epoch that each fold keeps, and the one threshold for all, from predictions that no model trained on.
#
# The winner picked epochs by hand from a table and typed the threshold into the submission. Here both come from the out-of-fold predictions, are written down with what they scored, and nothing is typed.

# %%
#| default_exp mammo.select

# %%
#| export
import shutil
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from mammo_nb.core.files import write_csv, write_json
from mammo_nb.core.metrics import auc, average_precision, best_threshold, bootstrap_interval, threshold_curve
from mammo_nb.core.stages import locate, stage
from mammo_nb.mammo.datasets import per_breast, read_table
from mammo_nb.mammo.recipes import get_section

# %%
#| hide
import matplotlib.pyplot as plt
from sklearn.metrics import precision_recall_curve, roc_curve

from mammo_nb.core.stages import practice

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
recipe = "demo"                               # a name in mammo_nb.mammo.recipes
overrides = {}                                # changes to the section `select`
reads = ["checkpoints/history.csv"]           # and checkpoints/fold_*/
writes = ["oof.csv", "selection.json"]        # and final_models/fold_*.safetensors

# %%
#| hide
if not run_dir:
    from mammo_nb.mammo import crops, datasets, detector, folds, phantom, train  # slow to load, and not needed in a run
    run_dir, recipe = practice(phantom.run, datasets.run, detector.run, crops.run, folds.run, train.run)

# %% [markdown]
# ## The best epoch of a fold
# By the winner's score, pF1 over breasts at the fold's own best threshold. That score moves in steps, so equal epochs are told apart by their AUC, and then the earlier is taken.

# %%
#| export
def best_epochs(
    history: pd.DataFrame,  # fold, epoch, auc and the metric
    metric: str = "pf1",    # a column of the history
) -> pd.DataFrame:          # the chosen row of each fold
    "One epoch a fold."
    ordered = history.sort_values(["fold", metric, "auc", "epoch"], ascending=[True, False, False, True])
    return ordered.groupby("fold").head(1).reset_index(drop=True)

# %%
example = pd.DataFrame({"fold": [0, 0, 0], "epoch": [1, 2, 3], "pf1": [.6, .7, .7], "auc": [.9, .8, .8]})
assert best_epochs(example)["epoch"].tolist() == [2]

# %% [markdown]
# ## The threshold
# All folds together, at the threshold that scores best on them. What matters is how wide the plateau around it is: a threshold on a needle's point will not hold on new patients.

# %%
#| export
def plateau(
    curve: pd.DataFrame,   # threshold, score
    best: float,           # the chosen threshold
    share: float = 0.95,   # of the best score
) -> tuple[float, float]:  # first and last threshold of the stretch around `best`
    "How far the threshold may move before the score falls below a share of its best."
    good = (curve["score"] >= share * curve["score"].max()).to_numpy()
    at = int((curve["threshold"] - best).abs().argmin())
    low, high = at, at
    while low > 0 and good[low - 1]: low -= 1
    while high < len(good) - 1 and good[high + 1]: high += 1
    return float(curve["threshold"].iloc[low]), float(curve["threshold"].iloc[high])

def summarise(
    oof: pd.DataFrame,  # predictions of all folds, one row an image
) -> dict:              # JSON-able
    "Scores per breast of out-of-fold predictions, and the threshold they give."
    breasts = per_breast(oof)
    labels, probabilities = breasts["cancer"], breasts["probability"]
    threshold, pf1 = best_threshold(labels, probabilities)
    low, high = bootstrap_interval(auc, labels, probabilities, breasts["patient_id"])
    return {"threshold": threshold, "plateau": plateau(threshold_curve(labels, probabilities), threshold), "pf1": pf1,
            "auc": auc(labels, probabilities), "auc_95": [low, high], "average_precision": average_precision(labels, probabilities),
            "breasts": len(breasts), "cancers": int(labels.sum())}

# %% [markdown]
# ## Run the stage

# %%
#| export
def run(
    run_dir: Path,                   # folder of the run
    recipe: str,                     # a recipe
    overrides: dict | None = None,   # changes to the section `select`
) -> dict:                           # selection.json
    "checkpoints -> oof.csv, selection.json and final_models/fold_*.safetensors."
    settings = get_section(recipe, "select", overrides)
    checkpoints, final = locate(run_dir, "checkpoints/history.csv").parent, locate(run_dir, "final_models/fold_0").parent
    history = read_table(checkpoints / "history.csv", ["fold", "epoch", settings.metric])
    weights = [f"final_models/fold_{k}.safetensors" for k in sorted(history["fold"].unique())]
    with stage(run_dir, "select", reads=["checkpoints/history.csv"], writes=["oof.csv", "selection.json", *weights], parameters=asdict(settings)):
        chosen = best_epochs(history, settings.metric)
        oof = pd.concat([read_table(checkpoints / f"fold_{r.fold}" / f"pred_{r.epoch}.csv", ["probability"]) for r in chosen.itertuples()])
        write_csv(locate(run_dir, "oof.csv"), oof)
        final.mkdir(parents=True, exist_ok=True)
        for r in chosen.itertuples():
            for suffix in (".safetensors", ".json"): shutil.copyfile(checkpoints / f"fold_{r.fold}" / f"epoch_{r.epoch}{suffix}", final / f"fold_{r.fold}{suffix}")
        result = {"folds": chosen[["fold", "epoch", "auc", "pf1"]].to_dict("records"), **summarise(oof)}
        write_json(locate(run_dir, "selection.json"), result)
    return result

# %%
selection = run(run_dir, recipe, overrides)
print(f"out-of-fold AUC per breast {selection['auc']:.3f} (95 % {selection['auc_95'][0]:.3f} to {selection['auc_95'][1]:.3f}, {selection['breasts']} breasts, {selection['cancers']} with cancer)")
print(f"pF1 {selection['pf1']:.3f} at threshold {selection['threshold']:.2f}, plateau {selection['plateau'][0]:.2f} to {selection['plateau'][1]:.2f}")

# %% [markdown]
# ## What came out

# %%
pd.DataFrame(selection["folds"]).round(3)

# %%
breasts = per_breast(read_table(locate(run_dir, "oof.csv"), ["probability"]))
curve = threshold_curve(breasts["cancer"], breasts["probability"])
fig, axes = plt.subplots(1, 3, figsize=(11, 3))
axes[0].plot(*roc_curve(breasts["cancer"], breasts["probability"])[:2]); axes[0].set(title=f"ROC, AUC {selection['auc']:.3f}", xlabel="false positive rate", ylabel="sensitivity")
precision, recall, _ = precision_recall_curve(breasts["cancer"], breasts["probability"])
axes[1].plot(recall, precision); axes[1].set(title=f"average precision {selection['average_precision']:.3f}", xlabel="recall", ylabel="precision")
axes[2].plot(curve["threshold"], curve["score"]); axes[2].axvline(selection["threshold"], color="orange"); axes[2].axvspan(*selection["plateau"], alpha=.2, color="orange")
axes[2].set(title="pF1 by threshold, and its plateau", xlabel="threshold"); fig.tight_layout()

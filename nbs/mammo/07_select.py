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
# > The epoch that each fold keeps, and one threshold for all, from out-of-fold predictions.
#
# The winner chose some epochs of each fold by eye, scored all 525 combinations and typed the threshold into the
# submission. Here both are computed from the out-of-fold predictions and stored together with their scores.

# %%
#| default_exp mammo.select

# %%
#| export
import shutil
from itertools import product

import pandas as pd

from mammo_nb.core.calibration import best_correction
from mammo_nb.core.files import read_json, write_csv, write_json
from mammo_nb.core.metrics import auc, average_precision, best_threshold, threshold_curve
from mammo_nb.core.runs import Run
from mammo_nb.core.uncertainty import auc_interval
from mammo_nb.mammo.datasets import per_breast, read_table

# %%
#| hide
import matplotlib.pyplot as plt
from sklearn.metrics import precision_recall_curve, roc_curve

from mammo_nb.core.practice import practice
from mammo_nb.core.train import from_one
from mammo_nb.mammo.system import system

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run, such as {"select.candidates": 5}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="select", overrides=overrides)
run.contract("select")

# %% [markdown]
# ## The best epochs of a fold
# Epochs are compared by the winner's score, pF1 over breasts at the fold's own best threshold. Epochs with equal pF1
# are common; among them the one with the higher AUC is better, and then the earlier one.

# %%
#| export
def best_epochs(
    history: pd.DataFrame,  # fold, epoch, auc and the metric
    metric: str = "pf1",    # a column of the history: pf1 or auc
    candidates: int = 1,    # epochs of each fold
) -> pd.DataFrame:          # their rows, folds in order, best first
    "The best epochs of each fold."
    ordered = history.sort_values(["fold", metric, "auc", "epoch"], ascending=[True, False, False, True])
    return ordered.groupby("fold").head(candidates).reset_index(drop=True)

# %%
example = pd.DataFrame({"fold": [0, 0, 0], "epoch": [1, 2, 3], "pf1": [.6, .7, .7], "auc": [.9, .8, .8]})
assert best_epochs(example)["epoch"].tolist() == [2] and best_epochs(example, "auc", 2)["epoch"].tolist() == [1, 2]

# %% [markdown]
# ## Combinations of epochs
# The ensemble has one threshold, so the folds must be good at a common threshold and not only each at its own. Two
# folds may rank equally well, one with low and one with high probabilities; at a common threshold they are worse than
# each alone. Every combination of the folds' best epochs is scored on all breasts.

# %%
#| export
def combinations(
    ranked: pd.DataFrame,   # fold, epoch: candidates, from `best_epochs`
    breasts: dict,          # (fold, epoch) -> cancer, probability; one row for each breast
    metric: str = "pf1",    # pf1 or auc
) -> pd.DataFrame:          # fold_0, fold_1, ... (epochs), pf1, threshold, auc; best first, ties in order of `ranked`
    "Scores over all breasts of every combination of one epoch of each fold."
    folds, rows = sorted(ranked["fold"].unique()), []
    for epochs in product(*(ranked.loc[ranked["fold"] == k, "epoch"] for k in folds)):
        pooled = pd.concat([breasts[k, e] for k, e in zip(folds, epochs)])
        threshold, pf1 = best_threshold(pooled["cancer"], pooled["probability"])
        row = {f"fold_{k}": int(e) for k, e in zip(folds, epochs)}
        rows.append(row | {"pf1": pf1, "threshold": threshold, "auc": auc(pooled["cancer"], pooled["probability"])})
    return pd.DataFrame(rows).sort_values([metric, "auc"], ascending=False, kind="stable", ignore_index=True)

# %%
labels, low, high = [0, 0, 1, 1], [.1, .2, .3, .4], [.5, .6, .7, .8]   # two epochs, each without a mistake
predicted = {(k, e): pd.DataFrame({"cancer": labels, "probability": p})
             for k, e, p in [(0, 0, low), (1, 0, high), (1, 1, low)]}
tried = combinations(pd.DataFrame({"fold": [0, 1, 1], "epoch": [0, 0, 1]}), predicted)
# 4 of 4 found and nothing else; .2: 4 of 4 and two healthy breasts
assert tried["fold_1"].tolist() == [1, 0] and tried["pf1"].round(3).tolist() == [1, .8]
tried

# %% [markdown]
# ## The threshold
# The threshold is the one with the best score over all folds. The wider the plateau of good scores around it, the more
# likely it holds for new patients.

# %%
#| export
def plateau(
    curve: pd.DataFrame,   # threshold, score
    best: float,           # the chosen threshold
    share: float = 0.95,   # of the best score
) -> tuple[float, float]:  # first and last threshold of the plateau around `best`
    "The range of thresholds around the best one whose scores stay above a share of the best score."
    good = (curve["score"] >= share * curve["score"].max()).to_numpy()
    at = int((curve["threshold"] - best).abs().argmin())
    low, high = at, at
    while low > 0 and good[low - 1]:
        low -= 1
    while high < len(good) - 1 and good[high + 1]:
        high += 1
    return float(curve["threshold"].iloc[low]), float(curve["threshold"].iloc[high])

def summarise(
    oof: pd.DataFrame,  # out-of-fold predictions, one row for each image
) -> dict:              # values for JSON
    "Scores per breast of out-of-fold predictions, and the threshold they give."
    breasts = per_breast(oof)
    labels, probabilities = breasts["cancer"], breasts["probability"]
    threshold, pf1 = best_threshold(labels, probabilities)
    low, high = auc_interval(labels, probabilities, breasts["patient_id"])
    return {
        "threshold": threshold,
        "plateau": plateau(threshold_curve(labels, probabilities), threshold),
        "pf1": pf1,
        "auc": auc(labels, probabilities),
        "auc_95": [low, high],
        "average_precision": average_precision(labels, probabilities),
        "breasts": len(breasts),
        "cancers": int(labels.sum()),
    }

# %% [markdown]
# [Calibration](../core/72_calibration.py) explains the correction of probabilities that goes with the weights.
# `predict` shows corrected probabilities beside the others.

# %%
#| export
def correction_of(
    oof: pd.DataFrame,  # out-of-fold predictions, one row for each image
) -> dict | None:       # as from `best_correction`
    "The correction of the probabilities of breasts."
    breasts = per_breast(oof)
    folds = breasts["patient_id"].map(oof.drop_duplicates("patient_id").set_index("patient_id")["fold"])
    return best_correction(breasts["cancer"], breasts["probability"], folds)

# %% [markdown]
# `mammo-nb compare` reads the out-of-fold predictions of two runs. It wants them as core's `comparison` says it.

# %%
#| export
def outcomes(
    run: Run,          # that has run this stage
) -> pd.DataFrame:     # outcome, item, patient_id, label, probability, threshold; one row a breast
    "Out-of-fold predictions of the breasts, with the threshold of the run."
    breasts = per_breast(read_table(run.path("oof.csv"), ["probability"]))
    return breasts.rename(columns={"cancer": "label"}).assign(
        outcome="cancer", item=breasts["patient_id"] + " " + breasts["laterality"],
        threshold=read_json(run.path("selection.json"))["threshold"])

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
) -> dict:                           # selection.json
    "checkpoints -> oof.csv, selection.json, combinations.csv and weights/fold_*.safetensors."
    settings = run.section("select")
    checkpoints, final = run.path("checkpoints/"), run.path("weights/")
    with run.stage("select"):
        history = read_table(checkpoints / "history.csv", ["fold", "epoch", settings.metric])
        ranked = best_epochs(history, settings.metric, settings.candidates)
        predictions = {}
        for r in ranked.itertuples():
            path = checkpoints / f"fold_{r.fold}" / f"pred_{r.epoch}.csv"
            predictions[r.fold, r.epoch] = read_table(path, ["probability"])
        tried = combinations(ranked, {k: per_breast(p) for k, p in predictions.items()}, settings.metric)
        write_csv(run.path("combinations.csv"), tried)
        chosen = ranked[[tried.loc[0, f"fold_{r.fold}"] == r.epoch for r in ranked.itertuples()]]
        oof = pd.concat([predictions[r.fold, r.epoch] for r in chosen.itertuples()])
        write_csv(run.path("oof.csv"), oof)
        final.mkdir(parents=True, exist_ok=True)
        for r in chosen.itertuples():
            for suffix in (".safetensors", ".json"):
                shutil.copyfile(checkpoints / f"fold_{r.fold}" / f"epoch_{r.epoch}{suffix}",
                                final / f"fold_{r.fold}{suffix}")
        labels = [per_breast(predictions[r.fold, r.epoch])["cancer"] for r in chosen.itertuples()]
        folds = chosen[["fold", "epoch", "auc", "pf1"]].assign(
            breasts=[len(each) for each in labels], cancers=[int(each.sum()) for each in labels])
        result = {
            "folds": folds.to_dict("records"), "combinations": len(tried), **summarise(oof),
            "calibration": correction_of(oof)
        }
        write_json(run.path("selection.json"), result)
    return result

# %%
selection = run_stage(run)
low, high = selection["auc_95"]
print(f"out-of-fold AUC per breast {selection['auc']:.3f} (95 % {low:.3f} to {high:.3f}, "
      f"{selection['breasts']} breasts, {selection['cancers']} with cancer)")
low, high = selection["plateau"]
print(f"pF1 {selection['pf1']:.3f} at threshold {selection['threshold']:.2f}, plateau {low:.2f} to {high:.2f}")

# %% [markdown]
# ## What came out

# %% [markdown]
# Epochs are shown from 1, as in the training; in the files, and in their names, the first epoch is 0.

# %%
folds = pd.DataFrame(selection["folds"])
assert folds[["breasts", "cancers"]].sum().tolist() == [selection["breasts"], selection["cancers"]]
display(from_one(folds).round(3))
tried = pd.read_csv(run.path("combinations.csv"))
tried[tried.filter(like="fold_").columns] += 1
tried.iloc[[*range(min(4, len(tried))), -1]].round(3)   # the best and the worst

# %%
breasts = per_breast(read_table(run.path("oof.csv"), ["probability"]))
curve = threshold_curve(breasts["cancer"], breasts["probability"])
cases = f"{selection['breasts']} breasts, {selection['cancers']} with cancer"
fig, axes = plt.subplots(1, 3, figsize=(11, 3.2))
axes[0].plot(*roc_curve(breasts["cancer"], breasts["probability"])[:2])
axes[0].set(title=f"ROC, AUC {selection['auc']:.3f}\n{cases}", xlabel="false positive rate", ylabel="sensitivity")
precision, recall, _ = precision_recall_curve(breasts["cancer"], breasts["probability"])
axes[1].plot(recall, precision)
axes[1].set(title=f"average precision {selection['average_precision']:.3f}\n{cases}", xlabel="recall",
            ylabel="precision")
axes[2].plot(curve["threshold"], curve["score"])
axes[2].axvline(selection["threshold"], color="orange")
axes[2].axvspan(*selection["plateau"], alpha=.2, color="orange")
axes[2].set(title=f"pF1 by threshold, and its plateau\n{cases}", xlabel="threshold")
fig.tight_layout()

# %% [markdown]
# ---
# [← Train](06_train.py) · [Engines →](08_engines.py)

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
# > One page about a run: its data, its scores, its best and worst predictions, and its time.
#
# Everything here is read from the files of the run. The page trains and predicts nothing. It computes the score of a
# synthetic test set, whose labels only this page reads, and intervals and subgroups of the out-of-fold predictions.

# %%
#| default_exp mammo.report

# %%
#| export
from collections.abc import Callable

import cv2
import matplotlib.pyplot as plt
import numpy as np

from mammo_nb.core.explanations import beside, colour_scale
from mammo_nb.core.files import read_json
from mammo_nb.core.metrics import auc, pfbeta
from mammo_nb.core.pictures import show_pictures, shrink
from mammo_nb.core.reports import extremes, submission_line
from mammo_nb.core.runs import Run
from mammo_nb.core.submission import DEMONSTRATION
from mammo_nb.mammo.crops import crop_path
from mammo_nb.mammo.datasets import per_breast, read_table
from mammo_nb.mammo.tools.heat_maps import GRAPH, MEASURED, held_back_heat, lesion_hits, lesion_mask

# %%
#| hide
import pandas as pd
from IPython.display import Markdown
from sklearn.metrics import roc_curve

from mammo_nb.core.calibration import METHODS, Reliability, calibrated, plot_reliability
from mammo_nb.core.estimates import GROUP_SCORES, estimates, in_words, plot_plateau, show_thresholds
from mammo_nb.core.practice import practice
from mammo_nb.core.reports import environment_table, plot_history, plot_probabilities, stages_table
from mammo_nb.core.runs import read_manifest
from mammo_nb.mammo.learning.exams import show_data, show_exam, wrong_breasts
from mammo_nb.mammo.learning.subgroups import by_unit, subgroups
from mammo_nb.mammo.select import outcomes
from mammo_nb.mammo.system import system

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run; the stage has no section of its own

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="report", overrides=overrides)
run.contract("report")

# %%
#| hide
pd.set_option("display.max_colwidth", 300)   # notes and errors are read whole
manifest = read_manifest(run.folder)
trained_here = "select" in manifest["stages"]

# %% [markdown]
# ## The result

# %%
#| export
def test_score(
    run: Run,   # a run on a synthetic competition
) -> dict:      # auc and pf1 per breast of the submission, breasts, cancers; empty where there are no labels
    "Score the submission against the labels of the phantoms."
    truth = run.path("competition/truth/test_labels.csv")
    if not truth.exists():
        return {}
    labels = read_table(truth, ["prediction_id", "cancer"]).drop_duplicates("prediction_id")
    labels = labels.set_index("prediction_id")["cancer"]
    images = read_table(run.path("test_per_image.csv"), ["probability"])
    probability = images.groupby("prediction_id")["probability"].mean().fillna(0)
    decided = read_table(run.path("submissions/submission.csv"), ["cancer"]).set_index("prediction_id")["cancer"]
    return {
        "auc": auc(labels, probability.reindex(labels.index)), "pf1": pfbeta(labels, decided.reindex(labels.index)),
        "breasts": len(labels), "cancers": int(labels.sum())
    }

def result_lines(
    run: Run,
) -> list[str]:  # Markdown
    "The scores of a synthetic test set and the state of the submission, where the run has them."
    lines, score = [], test_score(run)
    if score:
        lines.append(
            f"Synthetic test set: AUC per breast {score['auc']:.3f}, pF1 of the submission {score['pf1']:.3f} "
            f"({score['breasts']} breasts, {score['cancers']} with cancer)")
    if run.path("submit.json").exists():
        lines.append(submission_line(read_json(run.path("submit.json"))))
        images = read_table(run.path("test_per_image.csv"), ["probability"])
        if images["note"].eq(DEMONSTRATION).any():
            lines.append(f"*{DEMONSTRATION}*: these weights were trained on drawn breasts only")
    return lines

# %%
lines = []
if trained_here:
    s = read_json(run.path("selection.json"))
    lines += [
        f"**Out-of-fold AUC per breast {s['auc']:.3f}** (95 % interval {s['auc_95'][0]:.3f} to {s['auc_95'][1]:.3f}; "
        f"{s['breasts']} breasts, {s['cancers']} with cancer)",
        f"pF1 {s['pf1']:.3f} at threshold {s['threshold']:.2f}, average precision {s['average_precision']:.3f}"]
lines += result_lines(run)
print("\n".join(lines).replace("**", "").replace("*", ""))
Markdown("\n\n".join(lines))

# %%
if trained_here:
    breasts = per_breast(read_table(run.path("oof.csv"), ["probability"]))
    fig, axes = plt.subplots(1, 3, figsize=(11, 3))
    plot_history(axes[0], read_table(run.path("checkpoints/history.csv"), ["loss"]))
    axes[1].plot(*roc_curve(breasts["cancer"], breasts["probability"])[:2])
    axes[1].set(title=f"ROC, out of fold, {len(breasts)} breasts", xlabel="false positive rate", ylabel="sensitivity")
    plot_probabilities(axes[2], breasts["cancer"], breasts["probability"], s["threshold"], ("no cancer", "cancer"),
                       "probability of a breast")
    fig.tight_layout()

# %%
if trained_here:
    folds = pd.DataFrame(s["folds"]).round(3)
    display(folds.assign(epoch=folds["epoch"] + 1))  # counted from 1; the files of epoch 1 are named epoch_0

# %% [markdown]
# ## Data and boxes
# The sets, the sizes of the frames, and how they were read. A file that could not be used has no row in the scores. The
# network sees only what is inside the box of the breast. A box that keeps nearly the whole frame, or nearly nothing of
# it, is worth a look.

# %%
show_data(run, trained_here)

# %% [markdown]
# ## How sure the scores are
# All scores of the out-of-fold predictions per breast, at the threshold of the run, with 95 % intervals over patients.
# The threshold was chosen on these breasts, so the scores at it are a little too good.

# %%
if trained_here:
    scored = estimates(breasts["cancer"], breasts["probability"], breasts["patient_id"], s["threshold"])
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.2))
    plot_plateau(axes[0], breasts["cancer"], breasts["probability"], s["threshold"], s["plateau"])
    plot_reliability(axes[1], breasts["cancer"], breasts["probability"], "cancer")
    fig.tight_layout()
    display(scored.set_index("metric").round(3))

# %%
if trained_here:
    show_thresholds(outcomes(run), ("no cancer", "cancer"))

# %% [markdown]
# The corrections of the probabilities are fitted on the other folds. The one with the lowest Brier score goes with the
# weights, unless none is lower than without a correction; `predict` has its result in the column `calibrated`. The
# threshold and all other tables are those of the probabilities as the networks give them.

# %%
if trained_here:
    folds = breasts["patient_id"].map(read_table(run.path("oof.csv"), ["fold"]).groupby("patient_id")["fold"].first())
    labelled = breasts.groupby(folds)["cancer"].agg(["sum", "size"])
    if len(labelled) > 1 and ((labelled["sum"] > 0) & (labelled["sum"] < labelled["size"])).all():
        kinds = {"as predicted": breasts["probability"]}
        kinds |= {m: calibrated(breasts["cancer"], breasts["probability"], folds, m) for m in METHODS}
        display(pd.DataFrame({name: {"Brier": Reliability(breasts["cancer"], p).brier(),
                                     "ECE": Reliability(breasts["cancer"], p).error()}
                              for name, p in kinds.items()}).T.round(4))

# %% [markdown]
# ## Subgroups
# The breasts of each site, machine, density, decade of age, view and implant, where the labels have them. Scores at a
# threshold are those at the threshold of the run.

# %%
if trained_here:
    oof = read_table(run.path("oof.csv"), ["probability"])
    grouped = subgroups(oof, read_table(run.path("folds.csv"), ["image_id"]), s["threshold"])
    display(in_words(grouped, GROUP_SCORES).set_index(["attribute", "group"]))

# %% [markdown]
# Images, breasts and patients, each with its own best threshold. The published rows are about the original data.

# %%
if trained_here:
    display(in_words(by_unit(oof), ("AUC", "pF1")).set_index("unit").round(3))

# %% [markdown]
# ## The most confident wrong breasts
# Cancers with the lowest probabilities, and other breasts with the highest, each with its whole exam. The views hang as
# in a reading room: the right breast on the left. Each image has its own out-of-fold probability and, in orange, the
# box that the network sees. A red frame marks the breast that is meant. Below each image is its heat map: the places
# that the probability came from, as the network of its fold had it (`core/77_explanations`). The hottest place of each
# image is yellow, also where nothing was suspected.

# %%
if trained_here:
    wrong = wrong_breasts(oof, s["threshold"])
    if wrong.empty:
        display(Markdown("No breast is on the wrong side of the threshold."))
    heat = held_back_heat(run, oof[oof["patient_id"].isin(wrong["patient_id"])])
    for breast in wrong.itertuples():
        show_exam(run, breast, heat=heat)
        plt.show()

# %% [markdown]
# ## The clearest right and wrong predictions
# Breasts out of fold, as the threshold decides. Of the cancers some are found and some are missed; of the other breasts
# some are suspected and some passed. Shown are those farthest from the threshold. A breast appears once, with the
# probability of the whole breast and the image that had the highest one. An orange line is the outline of a lesion,
# where masks are known. Beside each image is its heat map.

# %%
#| export
def show_extremes(
    run: Run,                    # a run that has trained
    graph: str = "",             # whose networks explain each image beside it, as for `held_back_heat`; "": none
    fitted: Callable = shrink,   # as for `lesion_mask`
):
    "Show up to four breasts each of those found, missed, suspected and passed, with id, view and probability."
    oof = read_table(run.path("oof.csv"), ["probability"])
    breasts = per_breast(oof)
    rows = extremes(breasts, "cancer", read_json(run.path("selection.json"))["threshold"])
    best = oof.sort_values("probability", ascending=False).drop_duplicates(["patient_id", "laterality"])
    best = best.merge(read_table(run.path("folds.csv"), ["view"])[["image_id", "patient_id", "view"]])
    known = ["patient_id", "laterality", "image_id", "view", *(["fold"] if graph else [])]
    rows = rows.merge(best[known], on=["patient_id", "laterality"])
    found = held_back_heat(run, rows, graph) if graph else {}

    def picture(row):
        path = crop_path(run.path("processed/cleaned_images"), row.patient_id, row.image_id)
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        return beside(grey, found[row.image_id]) if graph else grey

    def outline(row):
        mask = lesion_mask(run, row.patient_id, row.image_id, fitted)
        return np.pad(mask, ((0, 0), (0, mask.shape[1]))) if graph and mask is not None else mask

    show_pictures(rows, picture, lambda row: f"{row.kind}: {row.probability:.2f}\n{row.patient_id} {row.laterality}\n"
                  f"{row.view}", columns=4 if graph else 8, mask=outline)
    if graph:
        colour_scale(plt.gcf())

# %%
if trained_here:
    show_extremes(run, GRAPH)

# %% [markdown]
# How often the hottest place of a cancer that was found lies inside of its lesion, with 95 % intervals (Wilson). There
# is no tolerance: a peak one pixel outside is no hit. A breast is counted once, by the image shown above; two images of
# a breast resemble each other, so the interval of the images is a little too narrow. How heat maps are made was chosen
# on breasts such as those of the demo.

# %%
if trained_here:
    hits = lesion_hits(run, MEASURED)
    if len(hits):
        display(hits.set_index("unit").round(3))
    else:
        print("no masks of lesions are known here")

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
# [← Submit](09_submit.py)

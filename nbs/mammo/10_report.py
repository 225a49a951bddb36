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
# # Report
# > One page about one run: what it was made of, how good it is, what it looked at, how long it took.
#
# Everything here is read from the files of the run; nothing is computed that another stage did not write down, except
# the score of a synthetic test set, whose truth only this page may see.

# %%
#| default_exp mammo.report

# %%
#| export
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import pandas as pd

from mammo_nb.core.metrics import auc, pfbeta
from mammo_nb.core.runs import Run, read_manifest
from mammo_nb.mammo.crops import crop_path
from mammo_nb.mammo.datasets import read_table

# %%
#| hide
from IPython.display import Markdown
from sklearn.metrics import roc_curve

from mammo_nb.core.files import read_json
from mammo_nb.core.runs import practice
from mammo_nb.mammo.datasets import per_breast
from mammo_nb.mammo.system import system
from mammo_nb.mammo.tools.predict import DEMONSTRATION

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run; the stage has no section of its own

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="report", overrides=overrides)
run.contract("report")

# %%
#| hide
manifest = read_manifest(run.folder)
trained_here = "select" in manifest["stages"]

# %% [markdown]
# ## The result

# %%
#| export
def test_score(
    run: Run,        # folder of a run on a synthetic competition
) -> dict:           # auc and pf1 per breast of the submission; empty where nobody knows the truth
    "Score the submission against the phantoms' own truth."
    truth = run.path("competition/truth/test_labels.csv")
    if not truth.exists():
        return {}
    labels = read_table(
        truth, ["prediction_id", "cancer"]).drop_duplicates("prediction_id").set_index("prediction_id")["cancer"]
    probability = read_table(run.path("test_per_image.csv"),
                             ["probability"]).groupby("prediction_id")["probability"].mean().fillna(0)
    decided = read_table(run.path("submissions/submission.csv"), ["cancer"]).set_index("prediction_id")["cancer"]
    return {
        "auc": auc(labels, probability.reindex(labels.index)), "pf1": pfbeta(labels, decided.reindex(labels.index)),
        "breasts": len(labels), "cancers": int(labels.sum())
    }

# %%
lines = []
if trained_here:
    s = read_json(run.path("selection.json"))
    lines += [
        f"**Out-of-fold AUC per breast {s['auc']:.3f}** (95 % interval {s['auc_95'][0]:.3f} to {s['auc_95'][1]:.3f}; "
        f"{s['breasts']} breasts, {s['cancers']} with cancer)",
        f"pF1 {s['pf1']:.3f} at threshold {s['threshold']:.2f}, average precision {s['average_precision']:.3f}"
    ]
score = test_score(run)
if score:
    lines.append(
        f"Synthetic test set: AUC per breast {score['auc']:.3f}, pF1 of the submission {score['pf1']:.3f} "
        f"({score['breasts']} breasts, {score['cancers']} with cancer)"
    )
if "submit" in manifest["stages"]:
    per_image = read_table(run.path("test_per_image.csv"), ["probability"])
    lines.append(
        f"`submission.csv`: {len(read_table(run.path('submissions/submission.csv'), ['cancer']))} breasts from "
        f"{len(per_image)} images, {per_image['error'].notna().sum()} of which failed"
    )
    if (per_image["note"].fillna("") != "").any():
        lines.append(f"*{DEMONSTRATION}*: these weights have seen drawn breasts only")
print("\n".join(lines).replace("**", "").replace("*", ""))
Markdown("\n\n".join(lines))

# %%
if trained_here:
    breasts = per_breast(read_table(run.path("oof.csv"), ["probability"]))
    history = read_table(run.path("checkpoints/history.csv"), ["loss"])
    fig, axes = plt.subplots(1, 3, figsize=(11, 3))
    for fold, h in history.groupby("fold"):
        axes[0].plot(h["epoch"], h["loss"], marker="o", label=f"fold {fold}")
    axes[0].set(title="training loss", xlabel="epoch")
    axes[0].legend(fontsize=8)
    axes[1].plot(*roc_curve(breasts["cancer"], breasts["probability"])[:2])
    axes[1].set(title="ROC, out of fold, per breast", xlabel="false positive rate", ylabel="sensitivity")
    for label, name in ((0, "no cancer"), (1, "cancer")):
        axes[2].hist(breasts.loc[breasts["cancer"] == label, "probability"], bins=25, range=(0, 1), alpha=.6,
                     label=name)
    axes[2].axvline(s["threshold"], color="black", lw=1)
    axes[2].set(title="probability of a breast")
    axes[2].legend(fontsize=8)
    fig.tight_layout()

# %%
if trained_here:
    display(pd.DataFrame(s["folds"]).round(3))

# %% [markdown]
# ## What it looked at
# Where it was most right and most wrong, out of fold: the cancers it found and missed, the others it suspected and did
# not.

# %%
#| export
def show_extremes(
    run: Run,        # folder of a run that has trained
):
    "Four images each of those found, missed, suspected and passed, with their probabilities out of fold."
    oof = read_table(run.path("oof.csv"), ["probability"]).sort_values("probability")
    groups = {
        "found": oof[oof.cancer == 1].tail(4), "missed": oof[oof.cancer == 1].head(4),
        "suspected": oof[oof.cancer == 0].tail(4), "passed": oof[oof.cancer == 0].head(4)
    }
    fig, axes = plt.subplots(2, 8, figsize=(12, 6.5))
    for ax, (name, row) in zip(axes.flat, ((n, r) for n, g in groups.items() for r in g.itertuples())):
        ax.imshow(
            cv2.imread(str(crop_path(run.path("processed/cleaned_images"), row.patient_id, row.image_id)),
                       cv2.IMREAD_GRAYSCALE), cmap="gray", vmin=0, vmax=255)
        ax.set_title(f"{name}: {row.probability:.2f}", fontsize=9)
    for ax in axes.flat:
        ax.axis("off")
    fig.tight_layout()

# %%
if trained_here:
    show_extremes(run)

# %% [markdown]
# ## What it was made of

# %%
#| export
def stages_table(
    manifest: dict,   # of a run
) -> pd.DataFrame:    # stage, seconds, wrote
    "What each stage took and made."
    return pd.DataFrame([{"stage": n, "seconds": e["seconds"], "wrote": ", ".join(Path(w).name for w in e["writes"])}
                         for n, e in manifest["stages"].items()])

def environment_table(
    manifest: dict,   # of a run
) -> pd.DataFrame:    # one column, under the run's name
    "Machine and versions."
    environment = manifest["environment"]
    return pd.Series({**{k: v for k, v in environment.items() if k != "packages"}, **environment["packages"]},
                     name=manifest["run"]).to_frame()

# %%
stages_table(manifest)

# %%
environment_table(manifest)

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
# > The baseline's run on one page, and beside it the winner's on the same patients.
#
# Everything is read from the files of two runs. What is compared is the fold that the baseline held back, for the
# winner with the one of its networks that has not seen it either; and the synthetic test set, where the winner has all
# its networks.

# %%
#| default_exp baseline.report

# %%
#| export
from pathlib import Path

import pandas as pd

from mammo_nb.core.files import read_json
from mammo_nb.core.metrics import auc, bootstrap_interval, pfbeta
from mammo_nb.core.runs import Run, read_manifest
from mammo_nb.mammo.datasets import per_breast, read_table
from mammo_nb.mammo.report import test_score

# %%
#| hide
import matplotlib.pyplot as plt
from IPython.display import Markdown

from mammo_nb.core.files import write_csv
from mammo_nb.core.settings import read_paths
from mammo_nb.core.runs import practice
from mammo_nb.baseline.system import system
from mammo_nb.mammo.tools.predict import DEMONSTRATION
from mammo_nb.mammo.report import environment_table, show_extremes, stages_table

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run; the stage has no section of its own
other = ""                                    # folder of the winner's run; "": the one of the same recipe, runs/demo

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="report", overrides=overrides)
run.contract("report")

# %%
#| hide
other = Path(other or read_paths().runs / run.recipe)
manifest = read_manifest(run.folder)
trained_here = "select" in manifest["stages"]

# %% [markdown]
# ## The result

# %%
lines, per_image = [], read_table(run.path("test_per_image.csv"), ["probability"])
if trained_here:
    s, network = read_json(run.path("selection.json")), manifest["stages"]["train"]["parameters"]["network"]
    lines += [
        f"**AUC per breast {s['auc']:.3f}** (95 % interval {s['auc_95'][0]:.3f} to {s['auc_95'][1]:.3f}; "
        f"{s['breasts']} breasts of one fold, {s['cancers']} with cancer)",
        f"pF1 {s['pf1']:.3f} at threshold {s['threshold']:.2f}; network {network}" +
        ", in place of the published ConvNeXt-tiny: see the recipes" * (not network.startswith("convnext_tiny"))
    ]
if score := test_score(run):
    lines.append(
        f"Synthetic test set: AUC per breast {score['auc']:.3f}, pF1 of the submission {score['pf1']:.3f} "
        f"({score['breasts']} breasts, {score['cancers']} with cancer)"
    )
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
    history, breasts = read_table(run.path("checkpoints/history.csv"), ["loss"]), per_breast(
        read_table(run.path("oof.csv"), ["probability"]))
    fig, axes = plt.subplots(1, 2, figsize=(8, 3))
    axes[0].plot(history["epoch"], history["loss"], marker="o")
    axes[0].set(title="training loss", xlabel="epoch")
    for label, name in ((0, "no cancer"), (1, "cancer")):
        axes[1].hist(breasts.loc[breasts["cancer"] == label, "probability"], bins=20, range=(0, 1), alpha=.6,
                     label=name)
    axes[1].axvline(s["threshold"], color="black", lw=1)
    axes[1].set(title="probability of a breast, fold held back")
    axes[1].legend(fontsize=8)
    fig.tight_layout()

# %% [markdown]
# ## Against the winner
# Two rows are comparable if the same patients lie in the same fold; this is checked, not assumed. The interval draws
# patients: a fold of the demo has 24 of them, so it is wide, and a difference smaller than it means nothing. The
# threshold of each run is its own: the baseline's was chosen on the very fold that it is scored on here, the winner's
# on all four.

# %%
#| export
def scores(
    run: Run,        # folder of a run that has trained
    fold: int,       # the fold that is scored
) -> dict:           # AUC and its interval, pF1 on the fold; AUC and pF1 of a synthetic test set; seconds
    "What a run is worth on one fold and on its test set, and what it took."
    oof, stages, test = read_table(run.path("oof.csv"),
                                   ["fold", "probability"]), read_manifest(run.folder)["stages"], test_score(run)
    breasts = per_breast(oof[oof["fold"] == fold])
    labels, probabilities = breasts["cancer"], breasts["probability"]
    low, high = bootstrap_interval(auc, labels, probabilities, breasts["patient_id"])
    decided = probabilities > read_json(run.path("selection.json"))["threshold"]
    return {
        "AUC": auc(labels, probabilities), "from": low, "to": high,
        "pF1": pfbeta(labels, decided), "test AUC": test.get("auc"), "test pF1": test.get("pf1"), "networks": len(
            set(oof["fold"])), "training, s": stages["train"]["seconds"], "all stages, s": round(
                sum(s["seconds"] for s in stages.values()), 1)
    }

def compare(
    run: Run,        # the baseline's run
    other: Path,     # the winner's
) -> pd.DataFrame | str:  # two rows; or why there are none
    "Both systems on the fold that the baseline held back."
    if not (Path(other) / "selection.json").exists():
        return (f"{Path(other).name} has no selection.json: run make reproduce, delete {run.folder.name}/09_report.ipynb "
                "and run make reproduce SYSTEM=baseline again")
    theirs = Run.open(other)
    fold = int(read_table(run.path("oof.csv"), ["fold"])["fold"].iloc[0])
    tables = [read_table(r.path("oof.csv"), ["fold", "cancer"]) for r in (run, theirs)]
    held = [t[t["fold"] == fold].set_index(["patient_id", "image_id"])["cancer"].sort_index() for t in tables]
    if not held[0].equals(held[1]):
        return (f"{theirs.folder.name} has other images in fold {fold} than {run.folder.name}: the two runs read different data or "
            "split it otherwise")
    return pd.DataFrame({"winner": scores(theirs, fold), "baseline": scores(run, fold)}).T.rename_axis("system").reset_index()

# %%
compared = compare(run, other) if trained_here else "nothing was trained in this run"
if isinstance(compared, str):
    print(compared)
else:
    write_csv(run.path("comparison.csv"), compared)
    display(compared.set_index("system").astype(float).round(3))

# %% [markdown]
# ## What it looked at
# The cancers it found and missed, the others it suspected and did not.

# %%
if trained_here:
    show_extremes(run)

# %% [markdown]
# ## What it was made of

# %%
stages_table(manifest)

# %%
environment_table(manifest)

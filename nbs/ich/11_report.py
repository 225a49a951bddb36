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
# > The run on one page: what the sequence model adds, where it errs, what was submitted.
#
# Everything is read from the files of the run.

# %%
#| default_exp ich.report

# %%
#| export
import numpy as np
import pandas as pd

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.runs import Run
from mammo_nb.ich.learning.scores import compare
from mammo_nb.ich.recipes import CLASSES

# %%
#| hide
import matplotlib.pyplot as plt
from IPython.display import Markdown

from mammo_nb.core.estimates import OUTCOME_SCORES, by_outcome, in_words, plot_reliabilities, show_thresholds
from mammo_nb.core.explanations import beside, colour_scale
from mammo_nb.core.files import read_json
from mammo_nb.core.pictures import sheet, show_pictures
from mammo_nb.core.practice import practice
from mammo_nb.core.reports import (environment_table, most_wrong, plot_history, plot_ladder, plot_probabilities,
                                   show_files, stages_table, submission_line)
from mammo_nb.core.train import plot_epochs
from mammo_nb.core.runs import read_manifest
from mammo_nb.ich.bag import classifier_predictions, outcomes
from mammo_nb.ich.learning.slices import read_picture
from mammo_nb.ich.recipes import classes_of
from mammo_nb.ich.system import system
from mammo_nb.ich.tools.heat_maps import blood_hits, found_slices, held_back_heat, view_of

# %% tags=["parameters"]
run_dir = ""     # folder of the run; "" makes a small practice run
overrides = {}   # changes for this run; the stage has no section of its own

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="report", overrides=overrides)
run.contract("report")

# %%
#| hide
pd.set_option("display.max_colwidth", 300)   # notes and errors are read whole
manifest = read_manifest(run.folder)
oof = ladder = pd.DataFrame()
if run.has("bag"):
    oof = pd.read_csv(run.path("oof.csv"), dtype={"patient_id": str, "series": str, "image_id": str})
    ladder = pd.read_csv(run.path("ladder.csv"))

# %% [markdown]
# ## The result
# A synthetic competition has the truth of its test set, so the submission is scored too.

# %%
#| export
class ReportError(ProjectError):
    "Results from which no score follows."

def test_scores(
    run: Run,
) -> pd.DataFrame:   # one row with log loss and interval; empty if the truth is not there
    """The score of the submission against competition/truth/test.csv, with an interval over patients.
    Raises ReportError for a submission that is not whole, because the rows that are left may be the easy ones."""
    truth, ours = run.path("competition/truth/test.csv"), run.path("submissions/submission.csv")
    if not truth.is_file() or not ours.is_file():
        return pd.DataFrame()
    both = pd.read_csv(truth).merge(pd.read_csv(ours), on="ID", how="left", suffixes=("_true", "_ours"))
    if missing := both["Label_ours"].isna().sum():
        raise ReportError(f"{ours.name} lacks {missing} of the {len(both)} labels of {truth.parent.name}/{truth.name}. "
                          "Run the stage submit again.")
    both[["image_id", "class"]] = both["ID"].str.rsplit("_", n=1, expand=True)
    wide = both.pivot(index="image_id", columns="class", values=["Label_ours", "Label_true"])
    table = pd.read_csv(run.path("test_per_slice.csv"), dtype=str).drop_duplicates("image_id").set_index("image_id")
    known = wide["Label_true"].astype(int).join(table["patient_id"]).fillna({"patient_id": ""})
    return compare(known, CLASSES, {"submission": wide["Label_ours"][list(CLASSES)].to_numpy()})

# %%
lines = []
if len(ladder):
    first, stated = ladder.iloc[0], read_json(run.path("bag.json"))
    bag = ladder.set_index("step", drop=False).loc[stated["step"]]
    pairs = ", ".join(f"{change:+.1f} % ({low:+.1f} to {high:+.1f}) against {other}"
                      for other, (change, low, high) in stated["change_percent"].items())
    lines += [
        f"**{bag['step']}: log loss {bag['log_loss']:.4f}** ({bag['low']:.4f} to {bag['high']:.4f}), CNN "
        f"{first['log_loss']:.4f} ({first['low']:.4f} to {first['high']:.4f}); out of fold, {len(oof)} slices of "
        f"{oof['patient_id'].nunique()} patients, 95 % intervals over patients. This is the bag that the recipe "
        "names, whatever the other rows are.",
        f"Paired, on the same draws of patients: {pairs}.",
        f"AUC of any hemorrhage in a slice {bag['auc_any']:.3f} ({bag['auc_low']:.3f} to {bag['auc_high']:.3f}), "
        f"CNN {first['auc_any']:.3f}"]
elif run.has("bag"):
    lines += ["Every model was trained on all slices. None is held back, so there is no score out of fold."]
scored = test_scores(run)
if len(scored):
    s = scored.iloc[0]
    lines += [f"**Submission: log loss {s['log_loss']:.4f}** ({s['low']:.4f} to {s['high']:.4f}) on the synthetic "
              "test set"]
if run.has("submit"):
    lines += [submission_line(read_json(run.path("submit.json")))]
print("\n".join(lines).replace("**", ""))
Markdown("\n\n".join(lines))

# %% [markdown]
# ## Data
# The slices of each set, and what was said about them when they were read.

# %%
#| export
def read_slices(
    run: Run,
) -> dict[str, pd.DataFrame]:   # training or test -> one row a slice
    "The tables of slices that a run has."
    files = {"training": "processed/slices.csv", "test": "test_per_slice.csv"}
    return {name: pd.read_csv(run.path(file), dtype={"patient_id": str, "series": str, "note": str, "error": str})
            for name, file in files.items() if run.path(file).is_file()}

def sets_table(
    slices: dict[str, pd.DataFrame],   # from `read_slices`
) -> pd.DataFrame:                     # set, patients, series, slices, slices with a hemorrhage
    "The size of each set."
    rows = [(name, t["patient_id"].nunique(), t["series"].nunique(), len(t),
             int(t["any"].sum()) if name == "training" and "any" in t else None) for name, t in slices.items()]
    table = pd.DataFrame(rows, columns=["set", "patients", "series", "slices", "slices with a hemorrhage"])
    return table.astype({"slices with a hemorrhage": "Int64"})

def with_gaps(
    table: pd.DataFrame,   # one row a slice
) -> pd.DataFrame:         # a copy with the distance to the next slice in words, where distances are known
    "What `show_files` counts besides sizes."
    if "gap_mm" not in table:
        return table
    gap = table["gap_mm"].round().astype("Int64").astype(str) + " mm"
    return table.assign(gap=gap.where(table["gap_mm"].notna()))

FACTS = {"size": "slice, rows × columns", "gap": "distance to the next slice, rounded", "note": "note"}

# %%
slices = read_slices(run)
if slices:
    show_files(sets_table(slices), {name: with_gaps(table) for name, table in slices.items()}, FACTS)

# %% [markdown]
# ## What each step adds
# Every row predicts the same held-back slices. `change_percent` is the change of the log loss from the first row, with
# an interval over the same draws of patients.

# %%
if len(ladder):
    display(ladder.set_index("step").astype(float).round(4))
    plot_ladder(ladder, "log_loss", "log loss, out of fold")

# %% [markdown]
# ## Each kind of hemorrhage
# Scores per slice of the bag, out of fold, with 95 % intervals over patients. *Sensitivity at a specificity of 0.9* is
# what is found if a tenth of the slices without this kind are called positive. *Brier* and *ECE* say how far
# probabilities are from what happens, see core's `calibration`.

# %%
if len(ladder):
    display(in_words(by_outcome(outcomes(run)), OUTCOME_SCORES).set_index("outcome"))
    show_thresholds(outcomes(run))

# %% [markdown]
# The reliability of the probabilities: on the grey line, as many are positive as the probability says. The numbers are
# the positives, and all items.

# %%
if len(ladder):
    plot_reliabilities(outcomes(run))

# %% [markdown]
# ## Slices with and without a hemorrhage
# The ROC curve of `any`, of the classifier alone and of the bag, and the probabilities of the bag.

# %%
#| export
def roc(
    labels: np.ndarray,         # 0 or 1, (n,)
    probabilities: np.ndarray,  # (n,)
) -> tuple[np.ndarray, np.ndarray]:  # false and true positive rate, from 0 to 1
    "The ROC curve; slices with equal probabilities are one step."
    order = np.argsort(-probabilities, kind="stable")
    ill, values = np.asarray(labels, float)[order], np.asarray(probabilities)[order]
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    hits, seen = ill.cumsum()[last], last + 1
    return np.append(0, (seen - hits) / max(1, (1 - ill).sum())), np.append(0, hits / max(1, ill.sum()))

# %%
false, true = roc(np.array([1, 0, 1, 0]), np.array([.9, .5, .5, .1]))
assert false.tolist() == [0, 0, .5, 1] and true.tolist() == [0, .5, 1, 1]

# %%
if len(ladder):
    classes = classes_of(oof)
    readers = read_json(run.path("bag.json"))["readers"]
    view = next(r.view for r in run.recorded("sequence").readers if r.name == readers[0])
    oof["cnn"] = classifier_predictions(run, view, oof)[:, -1]
    fig, axes = plt.subplots(1, 2, figsize=(9, 3))
    for column, name in (("cnn", "CNN"), ("p_any", "bag")):
        axes[0].plot(*roc(oof["any"], oof[column].to_numpy()), label=name)
    axes[0].set(title="ROC of any hemorrhage in a slice, out of fold", xlabel="false positive rate")
    axes[0].set_ylabel("true positive rate")
    axes[0].legend(fontsize=8)
    plot_probabilities(axes[1], oof["any"], oof["p_any"], .5, ("no hemorrhage", "hemorrhage"),
                       "probability of any, bag")
    axes[1].set_yscale("log")
    fig.tight_layout()

# %% [markdown]
# ## The most confident wrong slices
# Slices with a hemorrhage that got the lowest probabilities of `any`, and slices without one that got the highest, out
# of fold. One slice a series, brain window. The kinds that a reader has marked are named.

# %%
if len(ladder):
    table = oof.assign(probability=oof["p_any"]).sort_values("probability")
    table = pd.concat([table[table["any"] == 1].drop_duplicates("series"),
                       table[table["any"] == 0].drop_duplicates("series", keep="last")])
    wrong = most_wrong(table, "any", 5)
    kinds = [c for c in CLASSES if c in oof and c != "any"]

    def slice_title(row) -> str:
        marked = ", ".join(k for k in kinds if getattr(row, k)) or "no hemorrhage"
        return f"any {row.probability:.3f}, series {row.series}\nslice {row.place}: {marked}"

    show_pictures(wrong, lambda row: read_picture(run.path("processed/pictures") / f"{row.image_id}.png")[..., 0],
                  slice_title, columns=5)

# %% [markdown]
# ## One series
# The series with the most slices whose prediction the sequence model changed, and its most suspicious slices.

# %%
if len(ladder):
    with_some = oof.groupby("series")["any"].transform("sum") > 0
    moved = (oof["p_any"] - oof["cnn"]).abs().where(with_some, 0).groupby(oof["series"]).sum()
    own = oof[oof["series"] == moved.idxmax()].sort_values("place").reset_index(drop=True)
    plt.figure(figsize=(9, 2.6))
    plt.fill_between(own.index, own["any"], step="mid", color="lightgrey", label="hemorrhage")
    plt.plot(own["cnn"], marker=".", label="CNN")
    plt.plot(own["p_any"], marker=".", label="with the sequence model")
    plt.xlabel("slice, from feet to head")
    shown = sorted(own["p_any"].nlargest(7).index)
    plt.plot(shown, own["p_any"][shown], "o", mfc="none", color="black", label="shown below")
    plt.legend(fontsize=8)
    pictures = [read_picture(run.path("processed/pictures") / f"{own['image_id'][k]}.png")[..., 0] for k in shown]
    sheet(pictures, columns=7, title=f"slices {', '.join(map(str, shown))}, brain window")

# %% [markdown]
# ## Where the blood was seen
# The slices of eight patients with a hemorrhage that the classifier found with the highest probability, each beside its
# heat map: the places that the probability of `any` came from (`core/77_explanations`). The map is that of the
# classifier alone; the sequence model has no places. Where slices are drawn, their blood is known, and a hit is a peak
# inside of it. A low share of hits says that the maps of this classifier cannot be trusted.

# %%
if len(ladder):
    explained = view_of(run)
    slices = found_slices(run, explained)
    heat = held_back_heat(run, explained, slices)
    eight = slices.drop_duplicates("patient_id").head(8)
    if len(eight):
        show_pictures(eight, lambda row: beside(*heat[row.image_id]), lambda row: f"{row.patient_id}\n{row.cnn:.2f}",
                      columns=4)
        colour_scale(plt.gcf())
    display(blood_hits(run, explained, slices, heat).round(3))

# %% [markdown]
# ## Training

# %%
if run.has("classify"):
    history = pd.read_csv(run.path("checkpoints/classify/history.csv"))
    views = list(dict.fromkeys(history["encoder"]))
    fig, axes = plt.subplots(1, len(views), figsize=(4.5 * len(views), 2.8), squeeze=False)
    for ax, name in zip(axes[0], views):
        own = history[history["encoder"] == name]
        if "loss" in own:
            plot_history(ax, own)
        ax.set_title(f"training loss, {name}")
    fig.tight_layout()

# %%
if run.has("sequence"):
    history = pd.read_csv(run.path("checkpoints/sequence/history.csv"))
    scores = [c for c in ("loss", "log_loss") if c in history]
    fig, axes = plt.subplots(1, len(scores), figsize=(4.5 * len(scores), 2.8), squeeze=False)
    for ax, score in zip(axes[0], scores):
        for name, own in history.groupby("reader", sort=False):
            mean = own.groupby("epoch")[score].mean()
            plot_epochs(ax, mean.index, mean, name)
        ax.set_title({"loss": "training loss", "log_loss": f"log loss of {len(oof)} held-back slices"}[score])
    axes[0, 0].legend(fontsize=8)
    fig.tight_layout()

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
# [← Submit](10_submit.py)

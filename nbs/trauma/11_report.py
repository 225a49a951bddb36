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
# > What a run has found, in one page.
#
# The score, what each part of the method adds, where the networks look, and how sure one can be of all that with so few
# patients. The report reads what the stages have written and trains nothing.

# %%
#| default_exp trauma.report

# %%
#| export
import numpy as np
import pandas as pd

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.runs import Run
from mammo_nb.trauma.learning.scores import compare, prior_submission
from mammo_nb.trauma.reading.competition import by_number, read_labels
from mammo_nb.trauma.recipes import GRADES, SUBMITTED

# %%
#| hide
import matplotlib.pyplot as plt
from IPython.display import Markdown

from mammo_nb.core.estimates import OUTCOME_SCORES, by_outcome, in_words, plot_reliabilities, show_thresholds
from mammo_nb.core.explanations import beside, colour_scale
from mammo_nb.core.files import read_json
from mammo_nb.core.metrics import auc
from mammo_nb.core.pictures import show_pictures
from mammo_nb.core.practice import practice
from mammo_nb.core.reports import (environment_table, extremes, most_wrong, plot_history, plot_ladder, show_files,
                                   stages_table, submission_line)
from mammo_nb.core.train import plot_epochs
from mammo_nb.core.runs import read_manifest
from mammo_nb.trauma.ensemble import outcomes
from mammo_nb.trauma.learning.scores import GROUPS
from mammo_nb.trauma.recipes import ORGANS
from mammo_nb.trauma.system import system
from mammo_nb.trauma.tools.heat_maps import (drawn_injuries, found_injuries, held_back_heat, in_a_sentence, injury_hits,
                                             responsible_slices)

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
if run.has("ensemble"):
    oof = pd.read_csv(run.path("oof.csv"), dtype={"patient_id": str})
    ladder = pd.read_csv(run.path("ladder.csv"))
    about = read_json(run.path("ensemble.json"))

# %% [markdown]
# ## The result
# The first row of the table is what can be submitted without looking: the shares of the training patients, times the
# costs of the grades. A synthetic competition has the truth of its test set, so the submission is scored too.

# %%
#| export
class ReportError(ProjectError):
    "Results from which no score follows."

def test_scores(
    run: Run,
    shares: dict,        # column of SUBMITTED -> share among the training patients
) -> pd.DataFrame:       # from `compare`: shares times costs, submission; empty if the truth is not there
    """The score of the submission against competition/truth/test.csv, with intervals over patients. Raises ReportError
    for a submission that is not whole."""
    truth, ours = run.path("competition/truth/test.csv"), run.path("submissions/submission.csv")
    if not truth.is_file() or not ours.is_file():
        return pd.DataFrame()
    known = read_labels(truth).set_index("patient_id")
    known = known.loc[sorted(known.index, key=by_number)]
    found = pd.read_csv(ours, dtype={"patient_id": str}).set_index("patient_id")
    if missing := set(known.index) - set(found.index):
        raise ReportError(f"{ours.name} lacks {len(missing)} of the {len(known)} patients of {truth.parent.name}/"
                          f"{truth.name}. Run the stage submit again.")
    prior = prior_submission(known.index, pd.Series(shares), costs=True)
    return compare(known, {"shares times costs": prior, "submission": found.loc[known.index, list(SUBMITTED)]})

# %%
lines = []
if len(ladder):
    rows = ladder.set_index("step", drop=False)
    crossed = [step for step in rows.index if step.endswith("factors of other folds")]
    # with one fold there are no other folds, and the row of the ensemble has the costs as factors, which are not fitted
    own = rows.loc[crossed[0] if crossed else " and ".join(m["name"] for m in about["models"])]
    lines += [
        f"**{own['step']}: score {own['score']:.3f}** ({own['low']:.3f} to {own['high']:.3f}), "
        f"{own['change_percent']:+.0f} % ({own['change_low']:+.0f} to {own['change_high']:+.0f}) against the "
        f"shares' {rows['score'].iloc[0]:.3f}; out of fold, {len(oof)} patients, 95 % intervals over patients. "
        "Smaller is better."]
    plain = rows.loc["shares", "score"]
    lines += [f"Against the shares without costs, {plain:.3f}, that is {100 * (own['score'] / plain - 1):+.0f} %."]
elif run.has("ensemble"):
    lines += ["Every model was trained on all patients. None is held back, so there is no score out of fold."]
scored = test_scores(run, about["scaling"]["shares"]) if run.has("ensemble") else pd.DataFrame()
if len(scored):
    first, s = scored.iloc[0], scored.iloc[1]
    lines += [f"**Submission: score {s['score']:.3f}** ({s['low']:.3f} to {s['high']:.3f}) on the synthetic test set, "
              f"{s['change_percent']:+.0f} % against the shares' {first['score']:.3f}"]
if run.has("segment"):
    dice = pd.read_csv(run.path("checkpoints/segment/history.csv")).iloc[-1]
    of = ", ".join(f"{organ.replace('_', ' ')} {dice[f'dice_{organ}']:.2f}" for organ in ORGANS)
    lines += [f"Organs of held-back patients: mean Dice {dice['dice']:.3f} ({of})"]
if run.has("submit"):
    lines += [submission_line(read_json(run.path("submit.json")))]
print("\n".join(lines).replace("**", ""))
Markdown("\n\n".join(lines))

# %% [markdown]
# ## Data
# The patients and series of each set, and what was said about them when they were read.

# %%
#| export
FACTS = {"size": "slice, rows × columns", "spacing": "spacing of slices, mm", "plane": "plane", "note": "note"}

def sets_table(
    series: pd.DataFrame | None,   # series.csv of the training set, one row a series
    test: pd.DataFrame | None,     # what was predicted, one row a patient
    injured: int | None = None,    # patients with an injury in the training set, where labels are known
) -> pd.DataFrame:                 # set, patients, series, series used, slices, patients with an injury
    "The size of each set."
    rows = []
    if series is not None:
        rows.append(("training", series["patient_id"].nunique(), len(series), int(series["used"].sum()),
                     int(series["slices"].sum()), injured))
    if test is not None:
        rows.append(("test", test["patient_id"].nunique(), int(test["series"].sum()), None, int(test["slices"].sum()),
                     None))
    table = pd.DataFrame(rows, columns=["set", "patients", "series", "series used", "slices",
                                        "patients with an injury"])
    return table.astype({"series used": "Int64", "patients with an injury": "Int64"})

# %%
texts = {name: str for name in ("patient_id", "note", "error")}
series = pd.read_csv(run.path("processed/series.csv"), dtype=texts) if run.has("volumes") else None
test = pd.read_csv(run.path("test_per_patient.csv"), dtype=texts) if run.has("submit") else None
seen, read = {}, {}
if series is not None:
    spacing = series["spacing_mm"].round(1).astype(str).where(series["spacing_mm"].notna(), "uneven")
    seen["training"] = series.assign(spacing=spacing)
    read |= {"training slices": pd.read_csv(run.path("processed/slices.csv"), dtype=texts), "training series": series}
if test is not None:
    read["test patients"] = test
show_files(sets_table(series, test, int(oof["any_injury"].sum()) if len(oof) else None), seen, FACTS, read, "series")

# %% [markdown]
# ## What each part adds
# Every row predicts the same held-back patients. `change_percent` is the change of the score from the first row, with
# an interval over the same draws of patients.

# %%
if len(ladder):
    display(ladder.set_index("step").astype(float).round(3))
    plot_ladder(ladder, "score", "score, out of fold")

# %% [markdown]
# ## Organs
# For each organ, the probability of an injury in healthy and in injured patients, out of fold, and its AUC.

# %%
if len(oof):
    fig, axes = plt.subplots(1, len(GRADES), figsize=(12, 2.8), sharey=True)
    for ax, organ in zip(axes, GRADES):
        column = f"p_{organ}_injury"
        ill = 1 - oof[f"{organ}_healthy"]
        if column in oof:
            across = ill + np.random.default_rng(0).uniform(-0.15, 0.15, len(oof))
            ax.plot(across, oof[column], "o", ms=4, alpha=0.6)
            ax.set_title(f"{organ}, AUC {auc(ill, oof[column]):.2f}\n{int(ill.sum())} of {len(ill)} patients",
                         fontsize=10)
        ax.set(xticks=[0, 1], xticklabels=["healthy", "injured"], ylim=(0, 1))
    axes[0].set_ylabel("probability of an injury")
    fig.tight_layout()

# %% [markdown]
# The same with 95 % intervals over patients. *Sensitivity at a specificity of 0.9* is what is found if a tenth of the
# others are called positive. The others of a *low* injury are all patients without it, those with a *high* one, too.
# *Brier* and *ECE* say how far probabilities are from what happens, see core's `calibration`.

# %%
if len(oof):
    display(in_words(by_outcome(outcomes(run)), OUTCOME_SCORES).set_index("outcome"))
    show_thresholds(outcomes(run))

# %% [markdown]
# The reliability of the probabilities: on the grey line, as many are positive as the probability says. The numbers are
# the positives, and all items.

# %%
if len(oof):
    plot_reliabilities(outcomes(run))

# %% [markdown]
# The groups of the score, and the factors of the expensive grades:

# %%
if len(ladder):
    parts = ladder.set_index("step")[list(GROUPS)]
    display(parts.round(3))
    display(pd.Series(about["scaling"]["factors"], name=f"factors: {about['scaling']['note']}").to_frame())

# %% [markdown]
# ## The most confident wrong organs
# Injured organs with the lowest probabilities of an injury, and healthy ones with the highest, out of fold. Shown is
# the slice in which the segmentation sees most of the organ. An extravasation is in no organ, and the slice is that of
# the bowel.

# %%
#| export
PARTS = {"kidney": ("left_kidney", "right_kidney")}   # organs that the segmentation names otherwise

def organ_rows(
    oof: pd.DataFrame,   # from oof.csv
    info: pd.DataFrame,  # from info.csv
) -> pd.DataFrame:       # organ, patient_id, label, probability, series, place of the slice with most of the organ
    "One row an organ and patient, with the slice that shows it best."
    rows = []
    for organ in [o for o in GRADES if f"p_{o}_injury" in oof]:
        columns = [f"visibility_{part}" for part in PARTS.get(organ, (organ,)) if f"visibility_{part}" in info]
        seen = info[columns].sum(axis=1) if columns else info["visibility_bowel"]
        best = info.loc[seen.groupby(info["patient_id"]).idxmax(), ["patient_id", "series", "place"]]
        own = oof[["patient_id", f"p_{organ}_injury"]].rename(columns={f"p_{organ}_injury": "probability"})
        rows.append(own.assign(organ=organ, label=1 - oof[f"{organ}_healthy"].astype(int)).merge(best, on="patient_id"))
    return pd.concat(rows, ignore_index=True)

# %%
if len(oof) and run.has("info"):
    info = pd.read_csv(run.path("info.csv"), dtype={"patient_id": str, "series": str})
    wrong = most_wrong(organ_rows(oof, info), "label", 5)

    def organ_slice(row) -> np.ndarray:
        volume = run.path("processed/volumes/") / f"{row.patient_id}_{row.series}.npy"
        return np.load(volume, mmap_mode="r")[row.place]

    show_pictures(wrong, organ_slice, lambda row: f"{row.organ} {row.probability:.2f}, "
                  f"{'injured' if row.label else 'healthy'}\npatient {row.patient_id}", columns=5)

# %% [markdown]
# ## Where the injury was seen
# Organs out of fold: injuries that were found and that were missed, and healthy organs that were suspected, those
# farthest from the threshold. It is the probability below which nine of ten healthy organs lie. Shown is the slice with
# the largest probability, as the network sees it, and beside it the heat map: the places of this slice that the answer
# came from (`core/77_explanations`). An orange line is the outline of the injury of this organ, where it is known.

# %%
if len(ladder):
    slices = responsible_slices(run)
    margin = slices.assign(p=slices["probability"], probability=slices["probability"] - slices["threshold"])
    clearest = extremes(margin.dropna(subset="threshold"), "label", 0.0)
    clearest = clearest[clearest["kind"] != "passed"]
    counted_too = found_injuries(slices)
    asked = pd.concat([clearest, counted_too]).drop_duplicates(["organ", "patient_id"])
    heat, masks = held_back_heat(run, asked), drawn_injuries(run, asked)

    def outline(row) -> np.ndarray | None:
        mask = masks.get((row.organ, row.patient_id))
        return None if mask is None else np.uint8(255) * np.pad(mask, ((0, 0), (0, mask.shape[1])))

    if len(clearest):
        show_pictures(clearest, lambda row: beside(*heat[row.organ, row.patient_id]), lambda row: f"{row.kind}: "
                      f"{row.organ} {row.p:.2f}\npatient {row.patient_id}, slice {row.place}", columns=4, mask=outline)
        colour_scale(plt.gcf())

# %% [markdown]
# How often the hottest place of an injury that was found lies inside of it, with 95 % intervals (Wilson). There is no
# tolerance. A patient is counted by the organ with the highest probability. Organs of a patient resemble each other, so
# the interval of all organs is a little too narrow. `chance` is the mean share of the picture that the injury fills.
# `shown` counts the slices that show the injury at all.

# %%
if len(ladder):
    hits = injury_hits(counted_too, heat, masks)
    if len(hits):
        display(hits.set_index("unit").round(3))
        display(Markdown(in_a_sentence(hits)))
    else:
        print("it is not known where injuries lie here, or none was found")

# %% [markdown]
# ## One patient
# The injured patient whose slices vary most: the largest probabilities along each block.

# %%
if len(ladder):
    history = pd.read_csv(run.path("checkpoints/train/history.csv"))
    chosen = history[(history["model"] == about["models"][0]["name"]) & history["chosen"] & (history["fold"] >= 0)]
    found = pd.concat([pd.read_csv(run.path(f"checkpoints/train/{r.model}/fold_{r.fold}/pred_{r.epoch}.csv"),
                                   dtype={"patient_id": str, "series": str}) for r in chosen.itertuples()])
    columns = about["models"][0]["columns"].split()
    hurt = oof.loc[oof["any_injury"] == 1, "patient_id"]
    spread = found[found["patient_id"].isin(hurt)].groupby("patient_id")[columns].std().max(axis=1)
    if len(spread):
        own = found[found["patient_id"] == spread.idxmax()].reset_index(drop=True)
        best = own[columns].max().nlargest(4).index
        plt.figure(figsize=(9, 2.6))
        for column in best:
            plt.plot(own[column], marker=".", label=column)
        for start in own.index[own["triplet"] == 0]:
            plt.axvline(start - 0.5, color="lightgrey")
        row = oof[oof["patient_id"] == spread.idxmax()].iloc[0]
        true = [c for c in SUBMITTED if row[c] == 1 and not c.endswith("healthy")]
        plt.title(f"patient {spread.idxmax()}: {', '.join(true)}", fontsize=9)
        plt.xlabel("triplet, a line at the start of each block")
        plt.legend(fontsize=8)

# %% [markdown]
# ## Training

# %%
if run.has("segment"):
    history = pd.read_csv(run.path("checkpoints/segment/history.csv"))
    fig, ax = plt.subplots(figsize=(6, 2.6))
    for organ in ORGANS:
        plot_epochs(ax, history["epoch"], history[f"dice_{organ}"], organ)
    ax.set(title=f"Dice of {history['patients'].iloc[-1]:.0f} held-back patients", ylim=(0, 1))
    ax.legend(fontsize=8)

# %%
if run.has("train"):
    history = pd.read_csv(run.path("checkpoints/train/history.csv"))
    names = list(dict.fromkeys(history["model"]))
    fig, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 2.8), squeeze=False)
    for ax, name in zip(axes[0], names):
        plot_history(ax, history[history["model"] == name])
        ax.set_title(f"training loss, {name}", fontsize=9)
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

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
# # Bag
# > The mean over epochs, folds and kinds of sequence models; and what each step of the method adds.
#
# A bag of similar models makes smaller mistakes than each of them. The original averaged every file that it found in a
# folder, and a file of an earlier run entered without a word. Here only files enter whose names and digests stand in
# the manifest of the stage before.

# %%
#| default_exp ich.bag

# %%
#| export
import numpy as np
import pandas as pd

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import read_json, sha256, write_csv, write_json
from mammo_nb.core.recipes import RecipeError
from mammo_nb.core.runs import Run
from mammo_nb.ich.learning.embeddings import read_embeddings
from mammo_nb.ich.learning.losses import CLIP
from mammo_nb.ich.learning.scores import compare, neighbours_mean
from mammo_nb.ich.learning.slices import read_folds
from mammo_nb.ich.recipes import Reader, classes_of
from mammo_nb.ich.sequence import embedded, embeddings_folder, feature_files

# %%
#| hide
from mammo_nb.core.practice import practice
from mammo_nb.core.reports import plot_ladder
from mammo_nb.ich.system import system

# %% tags=["parameters"]
run_dir = ""     # folder of the run; "" makes a small practice run
overrides = {}   # changes for this run, such as {"bag.readers": "lstm gru"}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="bag", overrides=overrides)
run.contract("bag")

# %% [markdown]
# ## Members
# `weights/members.json` names every sequence model and every table of predictions with its digest.

# %%
#| export
class BagError(ProjectError):
    "A member of the bag that is missing or that is not the file which was written."

def checked(
    run: Run,
    files: dict[str, str],   # name within the run -> sha256
    stage: str = "sequence", # which wrote them
) -> list[str]:              # the names
    "Compare files with their digests. Raises BagError for one that is missing or has changed."
    for name, digest in files.items():
        path = run.path(name)
        if not path.is_file() or sha256(path) != digest:
            raise BagError(f"{name} is not the file that the stage {stage} wrote. Run the stage {stage} again.")
    return list(files)

def predictions_of(
    made: dict,           # weights/members.json
    readers: list[str],   # names of kinds
) -> dict[str, str]:      # file -> sha256
    "Tables of out-of-fold predictions of some kinds of sequence models."
    return {f"checkpoints/sequence/{name}": digest for name, digest in made["predictions"].items()
            if name.split("/")[0] in readers}

def members_of(
    run: Run,
    readers: list[str],   # names of kinds
) -> tuple[dict, dict]:   # file -> sha256, of the weights and of the predictions
    "Files that enter the bag. Raises BagError for a file that has changed, RecipeError for a kind that does not exist."
    made = read_json(run.path("weights/members.json"))
    there = list(dict.fromkeys(m["reader"] for m in made["members"]))
    if not readers or (wrong := [r for r in readers if r not in there]):
        raise RecipeError(f"bag.readers names {' '.join(wrong) if readers else 'nothing'}. There are "
                          f"{', '.join(there)}.")
    weights = {f"weights/sequence/{m['file']}": made["sha256"][m["file"]] for m in made["members"]
               if m["reader"] in readers}
    predictions = predictions_of(made, readers)
    checked(run, {**weights, **predictions})
    return weights, predictions

# %%
readers = run.section("bag").readers.split()
weights, predictions = members_of(run, readers)
(run.path("weights/sequence") / "of_an_earlier_run_fold0_epoch0_0.safetensors").touch()
assert members_of(run, readers) == (weights, predictions)   # a file that nobody named does not enter
(run.path("weights/sequence") / "of_an_earlier_run_fold0_epoch0_0.safetensors").unlink()
list(weights)

# %% [markdown]
# ## Out of fold
# Each slice is predicted by models that have not seen its patient. A training on all data has no such slices.

# %%
#| export
def read_predictions(
    run: Run,
    files: list[str],           # tables of predictions of one or several kinds
    classes: tuple[str, ...],
) -> pd.DataFrame:              # patient_id, series, image_id, place, fold, labels, p_<class>; a row for each slice
    "Mean prediction of the held-back slices."
    columns = [f"p_{c}" for c in classes]
    known = ["patient_id", "series", "image_id", "place", "fold", *classes]
    if not files:
        return pd.DataFrame(columns=[*known, *columns])
    texts = dict.fromkeys(["patient_id", "series", "image_id"], str)
    table = pd.concat([pd.read_csv(run.path(f), dtype=texts) for f in files])
    mean = table.groupby("image_id", sort=False)[columns].mean().clip(CLIP, 1 - CLIP)
    return table[known].drop_duplicates("image_id").merge(mean.reset_index(), on="image_id")

def classifier_predictions(
    run: Run,
    view: str,             # name of a view
    known: pd.DataFrame,   # image_id, fold
    tta: int = 1,          # views of a slice that are averaged
) -> np.ndarray:           # (n, classes)
    "Probabilities of the classifiers for the slices that they have not seen; the mean over views and epochs."
    parts, source = [], embeddings_folder(run)
    made = read_json(source / "embeddings.json")
    for fold, rows in known.groupby("fold"):
        files = [f for own, epoch in embedded(made, view, tta) if own == fold
                 for f in feature_files(source, made, view, fold, epoch, tta)]
        found = np.mean([read_embeddings(f, rows["image_id"].tolist())[1] for f in files], axis=0)
        parts.append(pd.DataFrame(found, index=rows.index))
    return pd.concat(parts).loc[known.index].to_numpy()

def end_to_end_predictions(
    run: Run,
) -> pd.DataFrame:   # the columns of pred.csv
    "Predictions of the end-to-end model. Raises BagError for those of other sequence models and for a changed file."
    made = read_json(run.path("checkpoints/end2end/pred.json"))
    if made["members"] != sha256(run.path("weights/members.json")):
        raise BagError("checkpoints/end2end/pred.csv started from other sequence models than those of this run. Run "
                       "the stage end2end again.")
    checked(run, {"checkpoints/end2end/pred.csv": made["sha256"]}, "end2end")
    return pd.read_csv(run.path("checkpoints/end2end/pred.csv"), dtype={"image_id": str})

# %% [markdown]
# ## What each step adds
# The first row is the classifier alone. The second one is the mean of its predictions for several views of a slice, so
# that this gain is not mistaken for one of the sequence model. Every row predicts the same slices.

# %%
#| export
def step_names(
    readers: list[Reader],   # of the recipe
    first: str,              # view of the first row
) -> dict[str, str]:         # name of a kind -> its step
    "Kinds of sequence models in words; two that would read alike get their names."
    words = {}
    for reader in readers:
        own = [f"CNN{'' if reader.view == first else ' ' + reader.view} + {reader.cell.upper()}"]
        own += ["differences"] if reader.deltas else []
        own += ["TTA"] if reader.tta > 1 else []
        words[reader.name] = " + ".join(own)
    texts = list(words.values())
    return {name: text if texts.count(text) == 1 else f"{text}, {name}" for name, text in words.items()}

TTA = "CNN + TTA"   # the step with the mean over views of a slice

def bag_step(
    readers: list[Reader],   # of the recipe
    bagged: list[str],       # names of those in the bag
) -> str:
    "The row of the ladder that is the bag."
    if len(bagged) > 1:
        return "bag of " + ", ".join(bagged)
    return step_names(readers, next(r.view for r in readers if r.name == bagged[0]))[bagged[0]]

def ladder_steps(
    run: Run,
    readers: list[Reader],     # of the recipe
    bagged: list[str],         # names of those in the bag
    known: pd.DataFrame,       # the bag's out-of-fold table
    classes: tuple[str, ...],
) -> dict[str, np.ndarray]:    # step -> probabilities (n, classes)
    "The classifier, its means over views and neighbours, each kind of sequence model, the end-to-end model, the bag."
    columns, made = [f"p_{c}" for c in classes], read_json(run.path("weights/members.json"))
    first = next(r.view for r in readers if r.name == bagged[0])
    steps, tta = {"CNN": classifier_predictions(run, first, known)}, max(r.tta for r in readers if r.view == first)
    if tta > 1:
        steps[TTA] = classifier_predictions(run, first, known, tta)
    steps["CNN + mean of neighbours"] = neighbours_mean(known, steps["CNN"])
    order = known["image_id"].tolist()
    for reader in readers:
        own = checked(run, predictions_of(made, [reader.name]))
        found = read_predictions(run, own, classes).set_index("image_id")
        if not set(order) <= set(found.index):
            continue  # trained on other folds than the bag
        if reader.view != first:
            steps[f"CNN {reader.view}"] = classifier_predictions(run, reader.view, known)
        steps[step_names(readers, first)[reader.name]] = found.loc[order, columns].to_numpy()
    if run.has("end2end"):
        found = end_to_end_predictions(run).set_index("image_id")
        if set(order) <= set(found.index):
            steps["end to end"] = found.loc[order, columns].to_numpy()
    if len(bagged) > 1:
        steps[bag_step(readers, bagged)] = known[columns].to_numpy()
    return steps

# %% [markdown]
# ## Submissions
# The original's bag is a mean over tables of a submission. The order of the rows is kept if all tables have the same
# one; else they are sorted by ID.

# %%
#| export
def average_submissions(
    tables: list[pd.DataFrame],   # ID, Label
) -> pd.DataFrame:                # ID, Label
    "Mean of submissions by ID, clipped as the metric does. Raises BagError for tables of which there is no mean."
    if not tables:
        raise BagError("There is no submission to average. Name one table at least.")
    for number, table in enumerate(tables, 1):
        if table["ID"].duplicated().any():
            twice = table["ID"][table["ID"].duplicated()].iloc[0]
            raise BagError(f"Submission {number} has {twice} twice. Make it again with one row for each ID.")
        if not table["Label"].between(0, 1).all():
            wrong = table[~table["Label"].between(0, 1)].iloc[0]
            raise BagError(f"Submission {number}: {wrong['Label']} of {wrong['ID']} is not a probability. Predict "
                           "again, or leave this table out.")
    if any(set(t["ID"]) != set(tables[0]["ID"]) or len(t) != len(tables[0]) for t in tables):
        raise BagError("Submissions with different IDs cannot be averaged. Make all of them for the same test set.")
    ids = tables[0]["ID"].tolist()
    if any(t["ID"].tolist() != ids for t in tables):
        ids = sorted(ids)
    mean = pd.concat(tables).groupby("ID")["Label"].mean().clip(CLIP, 1 - CLIP)
    return mean.loc[ids].reset_index()

# %%
one, two = (pd.DataFrame({"ID": list("ba"), "Label": [.2, v]}) for v in (0, 0))
assert average_submissions([one, two]).to_dict("list") == {"ID": ["b", "a"], "Label": [.2, 1e-5]}
assert average_submissions([one, two[::-1]])["ID"].tolist() == ["a", "b"]
for wrong in ([one, two.assign(Label=float("nan"))], [one, pd.concat([two, two])], [one, two[:1]]):
    try:
        average_submissions(wrong)
    except BagError as e:
        print(e)
    else:
        raise AssertionError

# %% [markdown]
# `mammo-nb compare` reads the out-of-fold predictions of two runs. It wants them as core's `comparison` says it.

# %%
#| export
def outcomes(
    run: Run,        # that has run this stage
) -> pd.DataFrame:   # outcome, item, patient_id, label, probability, threshold; a row for each class of each slice
    "Out-of-fold predictions of the bag; there is no threshold, since the competition takes probabilities."
    ids = {"patient_id": str, "series": str, "image_id": str}
    oof = pd.read_csv(run.path("oof.csv"), dtype=ids)
    slices = oof[["patient_id"]].assign(item=oof["series"] + " " + oof["image_id"], threshold=np.nan)
    return pd.concat([slices.assign(outcome=name, label=oof[name], probability=oof[f"p_{name}"])
                      for name in classes_of(oof)], ignore_index=True)

# %% [markdown]
# ## Run the stage

# %%
#| export
CHANGE = ["change_percent", "change_low", "change_high"]

def run_stage(
    run: Run,
) -> pd.DataFrame:     # ladder.csv
    "Predictions of the sequence models -> oof.csv, ladder.csv, and bag.json with the paired comparison of the bag."
    readers = run.section("bag").readers.split()
    kinds = {r.name: r for r in run.recorded("sequence").readers}
    with run.stage("bag"):
        weights, predictions = members_of(run, readers)
        classes = classes_of(read_folds(run.path("folds.csv")))
        oof = read_predictions(run, list(predictions), classes)
        steps = ladder_steps(run, list(kinds.values()), readers, oof, classes) if len(oof) else {}
        ladder, step = compare(oof, classes, steps), bag_step(list(kinds.values()), readers)
        own = ladder.set_index("step")[["log_loss", "auc_any"]].reindex([step]).iloc[0]
        write_csv(run.path("oof.csv"), oof)
        write_csv(run.path("ladder.csv"), ladder)
        pairs = {name: compare(oof, classes, {name: steps[name], step: steps[step]}).iloc[1][CHANGE].tolist()
                 for name in ("CNN", TTA) if name in steps}
        write_json(run.path("bag.json"), {
            "members": {**weights, **predictions}, "readers": readers, "classes": list(classes), "slices": len(oof),
            "step": step, **{name: None if pd.isna(value) else float(value) for name, value in own.items()},
            "change_percent": pairs})
    return ladder

# %%
ladder = run_stage(run)
for other, (change, low, high) in read_json(run.path("bag.json"))["change_percent"].items():
    print(f"log loss of the bag against {other}: {change:+.1f} % ({low:+.1f} to {high:+.1f}, draws of patients)")
ladder.round(4)

# %% [markdown]
# ## What came out
# The log loss of each step with its interval over patients. The intervals overlap, because all steps see the same few
# patients; the column `change_percent` compares pairs.

# %%
plot_ladder(ladder, "log_loss", "log loss, out of fold")

# %% [markdown]
# ---
# [← End to end](07_end2end.py) · [Engines →](09_engines.py)

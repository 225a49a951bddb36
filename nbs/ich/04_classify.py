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
# # Classify
# > One classifier of single slices for each view and fold.
#
# The first of the two steps: a network that predicts the labels of a slice from the slice alone. Its predictions are
# the base line of this system, and its features are what the sequence model reads. A classifier must not have seen the
# patients on whom the sequence model is judged, so each fold has its own.

# %%
#| default_exp ich.classify

# %%
#| export
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from mammo_nb.core.files import read_json, sha256, write_csv, write_json
from mammo_nb.core.metrics import auc
from mammo_nb.core.networks import save_weights
from mammo_nb.core.ranks import join, launch, side_by_side
from mammo_nb.core.recipes import RecipeError
from mammo_nb.core.runs import Run, locate
from mammo_nb.core.train import fit
from mammo_nb.ich.learning.encoder import NORMALIZATION, Encoder
from mammo_nb.ich.learning.losses import log_loss, weighted_log_loss
from mammo_nb.ich.learning.slices import SlicePictures, encode, read_folds, shuffled_batches
from mammo_nb.ich.reading.published import published_files, read_published
from mammo_nb.ich.recipes import Classify, View, classes_of

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.pictures import sheet
from mammo_nb.core.practice import practice
from mammo_nb.core.train import from_one, plot_epochs
from mammo_nb.ich.system import system

# %% tags=["parameters"]
run_dir = ""     # folder of the run; "" makes a small practice run
overrides = {}   # changes for this run, such as {"classify.loop.epochs": 5}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="classify", overrides=overrides)
run.contract("classify")

# %%
#| hide
settings = run.section("classify")
table = read_folds(run.path("folds.csv"))

# %% [markdown]
# ## What is held back
# A fold is trained on the others. `all` trains on everything, as the original's single run did. Nothing is held back
# then; the first thousand slices are predicted all the same, and the history states that they are not held out.

# %%
#| export
ON_ALL = -1    # the number of the training without a fold
FIRST = 1000   # slices that such a training predicts

def chosen_folds(
    folds: str,            # numbers with blanks between them, or all
    table: pd.DataFrame,   # folds.csv
) -> list[int]:            # ON_ALL stands for a training on all data
    "The trainings of each view. Raises RecipeError for a fold that does not exist."
    if folds.strip() == "all":
        return [ON_ALL]
    there = sorted(set(table["fold"].tolist()))
    wrong = [k for k in folds.split() if k not in map(str, there)]
    if wrong or not folds.split():
        raise RecipeError(f"classify.folds is {folds!r}, and there are the folds {', '.join(map(str, there))}. "
                          "Name some of them, or write all.")
    return [int(k) for k in folds.split()]

def split_rows(
    table: pd.DataFrame,               # folds.csv
    fold: int,                         # held back, or ON_ALL
) -> tuple[np.ndarray, np.ndarray]:    # rows for the training, rows to predict
    "Rows of the table that are trained on and that are predicted."
    if fold == ON_ALL:
        return np.arange(len(table)), np.arange(min(FIRST, len(table)))
    held = (table["fold"] == fold).to_numpy()
    return np.flatnonzero(~held), np.flatnonzero(held)

# %%
rest, held = split_rows(table, 0)
assert not set(table["patient_id"].iloc[rest]) & set(table["patient_id"].iloc[held])
assert len(split_rows(table, ON_ALL)[0]) == len(table)
try:
    chosen_folds("0 7", table)
except RecipeError as e:
    print(e)

# %% [markdown]
# ## Pictures
# The input of the network for each view: slices with and without a hemorrhage, then the same with augmentation.

# %%
#| export
def slice_pictures(
    table: pd.DataFrame,   # folds.csv
    pictures: Path,        # processed/pictures/
    view: View,
    settings: Classify,    # size, augment
    faithful: bool,        # the original's crop
) -> SlicePictures:
    "The data set of a view."
    return SlicePictures(table, pictures, view, settings.size, NORMALIZATION, settings.augment, faithful)

def build_encoder(
    settings: Classify,      # network, embedding, freeze, dropout
    classes: int,            # number of classes
    weights: str = "none",   # initial weights, as `Encoder` takes them
    seed: int = 0,           # of the layers without initial weights
) -> Encoder:
    "The classifier of a recipe."
    return Encoder(settings.network, classes, settings.embedding, weights, seed, settings.freeze, settings.dropout)

# %%
ill = table["any"].to_numpy().nonzero()[0]
examples = [*ill[:len(ill) - len(ill) % 2:max(1, len(ill) // 6)][:6], *np.flatnonzero(table["any"] == 0)[:6]]
for view in settings.views:
    data = slice_pictures(table, run.path("processed/pictures"), view, settings, False)
    sheet([data.picture(r, s) for s in (-1, 5) for r in examples], columns=12, title=view.name)

# %% [markdown]
# ## Initial weights
# The recipe names them by a word, by a file, or by a folder with published files. `{fold}` and `{view}` in the name
# stand for the fold and the view. With a folder nothing is trained: the published weights of each epoch take the place
# of a training, and they are validated on the fold that they have not seen. So the embeddings of the original's own
# classifiers are one override away: `classify.weights=/path/to/{view}`.

# %%
#| export
def initial_weights(
    weights: str,       # a word that `Encoder` accepts, or a file or folder
    view: str,          # name of the view
    fold: int,
    folder: Path,       # of the run, from which a relative path starts
) -> str:               # the word, or the full path of the file or folder
    "Initial weights of one training."
    if weights in ("none", "imagenet", "imagenet_lite"):
        return weights
    word = "imagenet:" if weights.startswith("imagenet:") else ""
    return word + str(locate(folder, weights.removeprefix(word).format(fold=fold, view=view)))

# %%
assert initial_weights("imagenet_lite", "windows", 0, run.folder) == "imagenet_lite"
assert initial_weights("/w/{view}_{fold}.bin", "windows", 2, run.folder) == "/w/windows_2.bin"

# %% [markdown]
# ## One training
# After each epoch the weights predict the slices that are held back, and the predictions are kept. `log_loss` in the
# history is the competition's metric; a sequence model has to be better than that.

# %%
#| export
def validation(
    table: pd.DataFrame,    # folds.csv
    data: SlicePictures,
    fold: int,
    folder: Path,           # gets pred_<epoch>.csv
    settings: Classify,     # loop
):                          # f(encoder, epoch) -> scores
    "Make the function that predicts the held-back slices after an epoch."
    classes, (_, held) = list(classes_of(table)), split_rows(table, fold)
    known = table.iloc[held][["patient_id", "series", "image_id", "place", *classes]].assign(fold=fold)

    def validate(encoder: nn.Module, epoch: int) -> dict:
        _, found = encode(encoder, data, settings.loop.batch_size, settings.loop.workers, rows=held.tolist())
        columns = {f"p_{c}": found[:, k] for k, c in enumerate(classes)}
        write_csv(folder / f"pred_{epoch}.csv", known.assign(epoch=epoch, **columns))
        return {"log_loss": log_loss(known[classes].to_numpy(), found), "auc": auc(known["any"], columns["p_any"]),
                "held_out": fold != ON_ALL}
    return validate

def take_published(
    files: dict[int, Path],  # epoch -> published file
    encoder: Encoder,        # that they fit
    validate,                # f(encoder, epoch) -> scores
    folder: Path,            # gets epoch_<e>.safetensors and done.json
    identity: dict,          # describes data and code
):
    "Validate published weights and keep them as those of a training; the published files are not changed."
    known = {**identity, "published": {str(e): sha256(p) for e, p in files.items()}}
    done = folder / "done.json"
    if done.exists() and read_json(done).get("identity") == known:
        return
    rows = []
    for epoch, path in files.items():
        read_published(encoder, path)
        save_weights(encoder, folder / f"epoch_{epoch}.safetensors", {"epoch": epoch, "published": path.name})
        rows.append({"epoch": epoch, **{k: float(v) for k, v in validate(encoder, epoch).items()}})
    write_json(done, {"identity": known, "history": rows})

def train_classifier(
    table: pd.DataFrame,   # folds.csv
    data: SlicePictures,   # of this table
    fold: int,             # held back, or ON_ALL
    folder: Path,          # checkpoints/classify/<view>/fold_<fold>/
    settings: Classify,
    weights: str,          # initial weights; a folder of published files
    identity: dict,        # digests of data and code; a training with others in the folder is removed
):
    "Train on the other folds, and predict this one after each epoch."
    loop, published, view = settings.loop, Path(weights).is_dir(), data.view
    identity = {**identity, "view": asdict(view), "fold": fold, "weights": settings.weights} | {
        name: getattr(settings, name) for name in ("network", "embedding", "size", "augment", "freeze", "dropout")}
    if (file := Path(weights.removeprefix("imagenet:"))).is_file():
        identity["weights"] = sha256(file)
    encoder = build_encoder(settings, len(classes_of(table)), "none" if published else weights, loop.seed + fold + 1)
    validate = validation(table, data, fold, folder, settings)
    if published:
        take_published(published_files(weights, settings.size, fold), encoder, validate, folder, identity)
        return
    rows, _ = split_rows(table, fold)
    sampled = shuffled_batches(len(rows), loop.batch_size, loop.seed + fold + 1, join()[1])

    def batches(epoch: int) -> list[list[tuple[int, int]]]:
        return [[(int(rows[k]), seed) for k, seed in batch] for batch in sampled(epoch)]

    fit(encoder, data, batches, weighted_log_loss, validate, loop, folder, label=f"{view.name} fold {fold}",
        identity=identity)

# %% [markdown]
# ## Run the stage
# If `processes` is above 1, the stage starts so many processes with `torchrun`, one for each GPU, and they train one
# network together. If `jobs` is above 1, so many networks are trained at the same time.

# %%
#| export
def train_all(
    folder: str,       # folder of the run, as text for the ranks of torchrun
    overrides: dict,   # of the run, dotted field -> value
    part: int = 0,     # which of the trainings: every `parts`-th one, from this on
    parts: int = 1,
):
    "folds.csv and pictures -> checkpoints/classify/<view>/fold_<fold>/; finished trainings are not repeated."
    run = Run.open(folder, overrides)
    settings = run.section("classify")
    table = read_folds(run.path("folds.csv"))
    reads = [run.path("folds.csv"), run.path("processed/slices.csv")]
    prepared = run.recorded("prepare")
    identity = {"reads": [sha256(r) for r in reads], "prepare": asdict(prepared), "code": run.code("classify")}
    folds = chosen_folds(settings.folds, table)
    for number, view in enumerate(settings.views):
        data = slice_pictures(table, run.path("processed/pictures"), view, settings, prepared.faithful)
        for fold in [f for k, f in enumerate(folds, number * len(folds)) if k % parts == part]:
            weights = initial_weights(settings.weights, view.name, fold, run.folder)
            train_classifier(table, data, fold, run.path(f"checkpoints/classify/{view.name}/fold_{fold}"), settings,
                             weights, identity)

def run_stage(
    run: Run,
) -> pd.DataFrame:   # history of all trainings
    "folds.csv and pictures -> checkpoints/classify/ with a classifier for each view and fold, and history.csv."
    settings, folder = run.section("classify"), run.path("checkpoints/classify/")
    names = [v.name for v in settings.views]
    if len(set(names)) < len(names):
        raise RecipeError(f"classify.views has the names {', '.join(names)}. Give each view a name of its own.")
    with run.stage("classify"):
        if settings.processes * settings.nodes > 1:
            launch("mammo_nb.ich.classify:train_all", [str(run.folder), run.overrides], settings.processes,
                   settings.nodes, run.folder)
        elif side_by_side("mammo_nb.ich.classify:train_all", [str(run.folder), run.overrides], settings.jobs):
            train_all(str(run.folder), run.overrides)
        parts = []
        for name in names:
            for fold in chosen_folds(settings.folds, read_folds(run.path("folds.csv"))):
                own = folder / name / f"fold_{fold}"
                rows = pd.DataFrame(read_json(own / "done.json")["history"])
                rows.insert(0, "encoder", name)
                rows.insert(1, "fold", fold)
                files = [own / f"epoch_{e}.safetensors" for e in rows["epoch"]]
                parts.append(rows.assign(weights_sha256=[sha256(f) for f in files]))
        history = pd.concat(parts, ignore_index=True)
        write_csv(folder / "history.csv", history)
    return history

# %%
history = run_stage(run)
from_one(history).drop(columns="weights_sha256").round(4)

# %% [markdown]
# ## What came out
# Loss of the training and log loss of the held-back slices, and a calibration: in each group of slices with similar
# probabilities of `any`, the share of slices with a hemorrhage.

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 3))
for (name, fold), h in history.groupby(["encoder", "fold"]):
    for ax, column in zip(axes, ["loss", "log_loss"]):
        if column in h:
            plot_epochs(ax, h["epoch"], h[column], f"{name}, fold {fold}")
for name, h in history.groupby("encoder"):
    last = h.groupby("fold")["epoch"].max()
    parts = [pd.read_csv(run.path(f"checkpoints/classify/{name}/fold_{f}/pred_{e}.csv")) for f, e in last.items()]
    predicted = pd.concat(parts)
    groups = predicted.groupby(pd.qcut(predicted["p_any"], 8, duplicates="drop"), observed=True)
    axes[2].plot(groups["p_any"].mean(), groups["any"].mean(), marker="o", label=name)
axes[2].plot([0, 1], [0, 1], color="lightgrey")
held = f"{len(predicted)} held-back slices"
for ax, title in zip(axes, ["training loss", f"log loss, {held}", f"share of `any` in groups, {held}"]):
    ax.set_title(title, fontsize=10)
axes[2].set_xlabel("mean probability")
axes[1].legend(fontsize=8)
fig.tight_layout()
assert np.isfinite(history["log_loss"]).all()

# %% [markdown]
# ---
# [← Folds](03_folds.py) · [Embed →](05_embed.py)

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
# # Sequence
# > One sequence model for each kind, fold and epoch of the classifier; it reads features and predicts slices.
#
# A fold has its own classifier, so it has its own features and its own sequence model. The model is trained on the
# patients on whom the classifier was trained, and predicts those of the fold that is held back. The predictions of the
# last epochs are averaged, as the original did, because single epochs of so small a training differ by chance.

# %%
#| default_exp ich.sequence

# %%
#| export
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mammo_nb.core.files import read_json, sha256, write_csv, write_json
from mammo_nb.core.metrics import auc
from mammo_nb.core.ranks import side_by_side
from mammo_nb.core.recipes import RecipeError
from mammo_nb.core.runs import Run
from mammo_nb.core.train import fit
from mammo_nb.ich.learning.embeddings import VIEWS, EmbeddingsError, embedding_name, mean_views, read_embeddings
from mammo_nb.ich.learning.losses import log_loss
from mammo_nb.ich.learning.recurrent import Recurrent
from mammo_nb.ich.learning.series import SeriesEmbeddings, pad_series, predict_series, series_loss, smoothed_loss
from mammo_nb.ich.learning.slices import read_folds
from mammo_nb.ich.recipes import Reader, Sequence, classes_of

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.practice import practice
from mammo_nb.core.train import plot_epochs
from mammo_nb.ich.system import system

# %% tags=["parameters"]
run_dir = ""     # folder of the run; "" makes a small practice run
overrides = {}   # changes for this run, such as {"sequence.loop.epochs": 20}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="sequence", overrides=overrides)
run.contract("sequence")

# %% [markdown]
# ## The features that are there
# `weights/embeddings.json` names the files. In the mode `fast` they are those of another run, or embeddings that
# somebody has published.

# %%
#| export
def embeddings_folder(
    run: Run,
) -> Path:     # with embeddings.json, embeddings/ and encoders/
    "Where the features are: in the weights of the run, or in the folder WEIGHTS in the mode `fast`."
    return Path(run.weights) if run.mode == "fast" else run.path("weights/")

def embedded(
    made: dict,     # embeddings.json
    view: str,      # name of a view of the classifiers
    tta: int,       # how many of VIEWS are needed
) -> list[tuple[int, int]]:  # fold and epoch of each classifier
    "The classifiers of a view whose features are there. Raises RecipeError if there is none."
    pattern = re.compile(rf"{re.escape(view)}_fold(-?\d+)_epoch(\d+)_plain\.safetensors")
    found = sorted((int(m[1]), int(m[2])) for m in map(pattern.fullmatch, made["embeddings"]) if m)
    wanted = [embedding_name(view, f, e, v) for f, e in found for v in VIEWS[:tta]]
    if not found or (missing := [w for w in wanted if w not in made["embeddings"]]):
        what = f"{missing[0]} is missing" if found else f"there is no {view}_fold..._plain"
        raise RecipeError(f"A reader of the view {view!r} with tta {tta} finds no features: "
                          f"{what}. Name another view in sequence.readers, or run the stage embed with such a view.")
    return found

def feature_files(
    folder: Path,        # from `embeddings_folder`
    made: dict,          # embeddings.json
    view: str,           # name of a view of the classifiers
    fold: int,
    epoch: int,          # of the classifier
    tta: int,            # how many of VIEWS are needed
) -> dict[Path, str]:    # file -> sha256
    "Files of features of one classifier. Raises EmbeddingsError for one that is missing or has changed."
    names = [embedding_name(view, fold, epoch, v) for v in VIEWS[:tta]]
    files = {folder / "embeddings" / name: made["embeddings"][name] for name in names}
    for path, digest in files.items():
        if not path.is_file() or sha256(path) != digest:
            raise EmbeddingsError(f"{path.name} is not the file that embeddings.json describes. Run the stage embed, "
                                  "or fetch the embeddings again.")
    return files

# %%
settings, source = run.section("sequence"), embeddings_folder(run)
made, table = read_json(source / "embeddings.json"), read_folds(run.path("folds.csv"))
print({r.name: embedded(made, r.view, r.tta) for r in settings.readers})
try:
    embedded(made, "nothing", 1)
except RecipeError as e:
    print(e)

# %% [markdown]
# The features of one series, and how far each slice is from its neighbours. A hemorrhage begins and ends with a step.

# %%
classes, first = classes_of(table), settings.readers[-1]
fold, epoch = embedded(made, first.view, first.tta)[0]
features, _ = mean_views(list(feature_files(source, made, first.view, fold, epoch, first.tta)), list(table["image_id"]))
data = SeriesEmbeddings(features, table, classes)
rows = max(data.rows, key=lambda r: table["any"].to_numpy()[r].sum())
fig, axes = plt.subplots(1, 2, figsize=(11, 2.6))
axes[0].imshow(features[rows].T, aspect="auto", cmap="magma")
axes[0].set(title="features of a series", xlabel="slice", ylabel="feature")
axes[1].plot(np.abs(np.diff(features[rows], axis=0)).mean(1), label="change to the next slice")
axes[1].plot(table["any"].to_numpy()[rows] * axes[1].get_ylim()[1] / 2, drawstyle="steps-mid", label="hemorrhage")
axes[1].set_xlabel("slice")
axes[1].legend(fontsize=8)
fig.tight_layout()

# %% [markdown]
# ## One training
# After each epoch the held-back series are predicted, always from the mean of the views.

# %%
#| export
def series_batches(
    series: list[int],   # numbers of the series that are trained on
    batch_size: int,
    seed: int,
):                       # f(epoch) -> batches of (number, seed)
    "Batches of series in an order that depends on seed and epoch; the last one may be smaller."
    def batches(epoch: int) -> list[list[tuple[int, int]]]:
        rng = np.random.default_rng([seed, epoch])
        order = list(zip(rng.permutation(series).tolist(), rng.integers(2**31, size=len(series)).tolist()))
        return [order[s:s + batch_size] for s in range(0, len(order), batch_size)]
    return batches

def train_reader(
    data: SeriesEmbeddings,   # all series
    table: pd.DataFrame,      # folds.csv
    fold: int,                # held back; -1: none
    reader: Reader,
    settings: Sequence,
    folder: Path,             # gets the weights and predictions of each epoch, and pred.csv
    identity: dict,           # digests of data and code; a training with others in the folder is removed
    label: str,
) -> pd.DataFrame:            # history
    "Train on the other folds; pred.csv is the mean prediction of the held-back fold over the last epochs."
    classes = list(classes_of(table))
    folds = table["fold"].to_numpy()
    held = [k for k, rows in enumerate(data.rows) if folds[rows[0]] == fold]
    rest = [k for k in range(len(data)) if k not in set(held)]
    if not rest:
        raise RecipeError(f"Fold {fold} holds all series back. Choose more folds.")
    loop = replace(settings.loop, seed=settings.loop.seed + reader.seed)
    own = np.concatenate([data.rows[k] for k in held]) if held else np.empty(0, int)
    torch.manual_seed(loop.seed + fold + 1)
    model = Recurrent(data.embeddings.shape[1], settings.units, len(classes), reader.cell, reader.deltas,
                      settings.faithful)
    part = SeriesEmbeddings(data.embeddings[own].numpy(), table.iloc[own], classes) if held else None
    rates = data.labels[np.concatenate([data.rows[k] for k in rest])].mean(0)
    loss = smoothed_loss(settings.smoothing, rates) if settings.smoothing else series_loss

    def validate(eval_model, epoch: int) -> dict:
        if part is None:
            return {}
        found = predict_series(eval_model, part)
        np.save(folder / f"pred_{epoch}.npy", found)
        labels = table.iloc[own]
        return {"log_loss": log_loss(labels[classes].to_numpy(), found), "auc": auc(labels["any"], found[:, -1])}

    threads = torch.get_num_threads()
    torch.set_num_threads(1 if settings.units < 256 else threads)  # more are slower for such small layers
    try:
        history = fit(model, data, series_batches(rest, loop.batch_size, loop.seed), loss, validate, loop, folder,
                      label=label, identity=identity, collate=pad_series)
    finally:
        torch.set_num_threads(threads)
    if held:
        last = range(loop.epochs)[-settings.bag_epochs:]
        mean = np.mean([np.load(folder / f"pred_{e}.npy") for e in last], axis=0)
        known = table.iloc[own][["patient_id", "series", "image_id", "place", "fold", *classes]]
        write_csv(folder / "pred.csv", known.assign(**{f"p_{c}": mean[:, k] for k, c in enumerate(classes)}))
    return history

# %% [markdown]
# ## Run the stage
# The weights of the averaged epochs go to `weights/sequence/`, and `weights/members.json` names them. A bag reads these
# names and no others, so a file of an earlier run that lies beside them cannot enter. If `jobs` is above 1, so many
# models are trained at the same time.

# %%
#| export
def sequence_name(
    reader: str,
    fold: int,
    epoch: int,   # of the classifier
    last: int,    # epoch of the sequence model
) -> str:
    "Name of a file in weights/sequence/."
    return f"{reader}_fold{fold}_epoch{epoch}_{last}.safetensors"

def train_readers(
    run: Run,
    settings: Sequence,
    part: int = 0,                # which of the trainings: every `parts`-th one, from this on
    parts: int = 1,
) -> tuple[dict, pd.DataFrame]:   # content of weights/members.json, histories; of these trainings
    "Train the sequence models of a run; finished ones are not repeated."
    source, table = embeddings_folder(run), read_folds(run.path("folds.csv"))
    made = read_json(source / "embeddings.json")
    identity = {"folds": sha256(run.path("folds.csv")), "code": run.code("sequence"),
                **{name: getattr(settings, name) for name in ("units", "views", "smoothing", "faithful")}}
    members, histories, predictions = [], [], {}
    run.path("weights/sequence").mkdir(parents=True, exist_ok=True)
    trainings = [(reader, *at) for reader in settings.readers for at in embedded(made, reader.view, reader.tta)]
    for reader, fold, epoch in trainings[part::parts]:
        files = feature_files(source, made, reader.view, fold, epoch, reader.tta)
        ids = table["image_id"].tolist()
        features, _ = mean_views(list(files), ids)
        views = np.stack([read_embeddings(f, ids)[0] for f in files]) if settings.views == "each" else None
        data = SeriesEmbeddings(features, table, classes_of(table), views)
        known = {**identity, "reader": asdict(reader), "embeddings": list(files.values())}
        folder = run.path(f"checkpoints/sequence/{reader.name}/fold_{fold}_epoch{epoch}")
        history = train_reader(data, table, fold, reader, settings, folder, known, f"{reader.name} fold {fold}")
        histories.append(history.assign(reader=reader.name, fold=fold, encoder_epoch=epoch))
        if (folder / "pred.csv").is_file():
            predictions[f"{reader.name}/{folder.name}/pred.csv"] = sha256(folder / "pred.csv")
        for last in range(settings.loop.epochs)[-settings.bag_epochs:]:
            name = sequence_name(reader.name, fold, epoch, last)
            shutil.copyfile(folder / f"epoch_{last}.safetensors", run.path(f"weights/sequence/{name}"))
            members.append({"reader": reader.name, "view": reader.view, "fold": fold, "epoch": epoch,
                            "sequence_epoch": last, "tta": reader.tta, "cell": reader.cell, "deltas": reader.deltas,
                            "encoder": f"{reader.view}_fold{fold}_epoch{epoch}.safetensors", "file": name})
    written = {"members": members, "predictions": predictions, "units": settings.units, "faithful": settings.faithful,
               "sha256": {m["file"]: sha256(run.path(f"weights/sequence/{m['file']}")) for m in members}}
    return written, pd.concat(histories, ignore_index=True) if histories else pd.DataFrame()

def train_part(
    folder: str,       # folder of the run
    overrides: dict,   # of the run, dotted field -> value
    part: int,         # as for `train_readers`
    parts: int,
):
    "Train some of the sequence models, in a process of its own."
    run = Run.open(folder, overrides)
    train_readers(run, run.section("sequence"), part, parts)

def run_stage(
    run: Run,
) -> pd.DataFrame:     # history of all sequence models
    "folds.csv and embeddings -> checkpoints/sequence/, weights/sequence/ and weights/members.json."
    settings = run.section("sequence")
    names = [r.name for r in settings.readers]
    if len(set(names)) < len(names):
        raise RecipeError(f"sequence.readers has the names {', '.join(names)}. Give each reader a name of its own.")
    with run.stage("sequence"):
        side_by_side("mammo_nb.ich.sequence:train_part", [str(run.folder), run.overrides], settings.jobs)
        written, history = train_readers(run, settings)
        write_csv(run.path("checkpoints/sequence/history.csv"), history)
        write_json(run.path("weights/members.json"), written)
    return history

# %%
history = run_stage(run)
scores = [c for c in ("log_loss", "auc") if c in history]
history.groupby("reader", sort=False)[["loss", *scores]].last().round(4)

# %% [markdown]
# ## What came out
# The log loss of the held-back slices over the epochs, and the prediction of the series above.

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 2.8))
for name, own in history.groupby("reader", sort=False):
    for k, score in enumerate(["loss", *scores][:2]):
        mean = own.groupby("epoch")[score].mean()
        plot_epochs(axes[k], mean.index, mean, name)
held = table["fold"].isin(history["fold"]).sum()
for ax, title in zip(axes, ["training loss", f"log loss of {held} held-back slices"]):
    ax.set_title(title)
axes[0].legend(fontsize=8)
fig.tight_layout()
assert np.isfinite(history["loss"]).all()

# %% [markdown]
# ---
# [← Embed](05_embed.py) · [End to end →](07_end2end.py)

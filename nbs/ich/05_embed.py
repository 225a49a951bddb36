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
# # Embed
# > Features and probabilities of every slice, from every classifier.
#
# The sequence model is trained many times and reads every slice in each epoch. The features of a slice do not change
# meanwhile, so they are computed once and stored. The original used the weights of every epoch of a classifier as a
# member of its own, and three views of a slice.

# %%
#| default_exp ich.embed

# %%
#| export
import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from mammo_nb.core.files import sha256, write_json
from mammo_nb.core.networks import read_state, save_weights
from mammo_nb.core.ranks import side_by_side
from mammo_nb.core.recipes import RecipeError
from mammo_nb.core.runs import Run
from mammo_nb.ich.classify import build_encoder, slice_pictures
from mammo_nb.ich.learning.embeddings import VIEWS, EmbeddingsError, embedding_name, read_about, write_embeddings
from mammo_nb.ich.learning.encoder import load_encoder
from mammo_nb.ich.learning.slices import encode, read_folds
from mammo_nb.ich.recipes import Classify, Embed, classes_of

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np

from mammo_nb.core.practice import practice
from mammo_nb.ich.learning.embeddings import mean_views, read_embeddings
from mammo_nb.ich.learning.losses import log_loss
from mammo_nb.ich.system import system

# %% tags=["parameters"]
run_dir = ""     # folder of the run; "" makes a small practice run
overrides = {}   # changes for this run, such as {"embed.tta": 1}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="embed", overrides=overrides)
run.contract("embed")

# %% [markdown]
# ## Which classifiers
# The last `epochs` epochs of each training, as the history names them.

# %%
#| export
def chosen_encoders(
    history: pd.DataFrame,   # checkpoints/classify/history.csv
    settings: Classify,      # views
    epochs: int,             # last ones of each training
) -> pd.DataFrame:           # encoder, fold, epoch, weights_sha256
    "Rows of the history whose weights are embedded. Raises RecipeError if a training is shorter."
    names = [v.name for v in settings.views]
    rows = history[history["encoder"].isin(names)].sort_values(["fold", "epoch"], kind="stable")
    rows = pd.concat([rows[rows["encoder"] == n] for n in names])
    shortest = rows.groupby(["encoder", "fold"]).size().min()
    if shortest < epochs:
        raise RecipeError(f"embed.epochs is {epochs}, and a classifier has {shortest}. Lower it, or raise "
                          "classify.loop.epochs.")
    last = rows.groupby(["encoder", "fold"], sort=False).tail(epochs)
    return last[["encoder", "fold", "epoch", "weights_sha256"]].reset_index(drop=True)

def encoder_name(
    encoder: str,   # name of the view
    fold: int,
    epoch: int,
) -> str:
    "Name of a file in weights/encoders/."
    return f"{encoder}_fold{fold}_epoch{epoch}.safetensors"

# %%
classify = run.recorded("classify")
history = pd.read_csv(run.path("checkpoints/classify/history.csv"))
chosen = chosen_encoders(history, classify, 1)
assert len(chosen) == history.groupby(["encoder", "fold"]).ngroups
try:
    chosen_encoders(history, classify, 50)
except RecipeError as e:
    print(e)
chosen

# %% [markdown]
# ## One file
# A file that is there is used again if its header says the same as the header that would be written: the digest of the
# weights, of the pictures' table, the slices, the view and the size. So an interrupted run continues, and a file of
# other weights is replaced.

# %%
#| export
def keep_encoder(
    source: Path,   # checkpoints/classify/<view>/fold_<f>/epoch_<e>.safetensors
    target: Path,   # weights/encoders/<view>_fold<f>_epoch<e>.safetensors
    about: dict,    # what makes the network, for its JSON
) -> str:           # SHA-256 of the target
    "Copy the weights of a classifier, with a JSON that says which network they fit."
    if target.is_file() and sha256(target) == sha256(source) and target.with_suffix(".json").is_file():
        return sha256(target)
    state, _ = read_state(source)
    return save_weights(state, target, about)

def is_there(
    path: Path,     # weights/embeddings/<name>.safetensors
    about: dict,    # its header as it would be written
) -> bool:
    "Whether a file of embeddings is complete and has this header."
    try:
        return path.is_file() and read_about(path) == about
    except EmbeddingsError:
        return False

# %% [markdown]
# ## Run the stage
# If `jobs` is above 1, so many classifiers work at the same time.

# %%
#| export
def embed_all(
    run: Run,
    settings: Embed,
    classify: Classify,   # as the classifiers were trained
    part: int = 0,        # which of the classifiers: every `parts`-th one, from this on
    parts: int = 1,
) -> dict:                # content of weights/embeddings.json, of these classifiers
    "Write weights/encoders/ and weights/embeddings/, file by file; what is there already is kept."
    prepared, table = run.recorded("prepare"), read_folds(run.path("folds.csv"))
    classes, ids = classes_of(table), table["image_id"].tolist()
    history = pd.read_csv(run.path("checkpoints/classify/history.csv"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made = {"encoders": {}, "embeddings": {}, "classes": list(classes), "embedding": 0,
            "prepare": asdict(prepared), "classify": asdict(classify), "embed": asdict(settings)}
    views, data, shown = {v.name: v for v in classify.views}, {}, VIEWS[:settings.tta]
    for row in chosen_encoders(history, classify, settings.epochs)[part::parts].itertuples():
        name = encoder_name(row.encoder, row.fold, row.epoch)
        source = run.path(f"checkpoints/classify/{row.encoder}/fold_{row.fold}/epoch_{row.epoch}.safetensors")
        encoder = build_encoder(classify, len(classes)).to(device)
        network = {"kind": "ich_encoder", "network": classify.network, "classes": len(classes),
                   "embedding": classify.embedding, "view": asdict(views[row.encoder]), "size": classify.size,
                   "normalization": encoder.normalization, "faithful": prepared.faithful}
        network = json.loads(json.dumps(network))
        made["encoders"][name] = keep_encoder(source, run.path(f"weights/encoders/{name}"), network)
        made["embedding"] = encoder.width
        load_encoder(encoder, run.path(f"weights/encoders/{name}"))
        if row.encoder not in data:  # pictures in memory are those of one view
            data = {row.encoder: slice_pictures(table, run.path("processed/pictures"), views[row.encoder], classify,
                                                prepared.faithful)}
        for view in shown:
            file = embedding_name(row.encoder, row.fold, row.epoch, view)
            path = run.path(f"weights/embeddings/{file}")
            about = {**network, "encoder_sha256": made["encoders"][name], "tta": view,
                     "slices_sha256": sha256(run.path("processed/slices.csv")), "image_ids": ids}
            if not is_there(path, about):
                found = encode(encoder, data[row.encoder], settings.batch_size, classify.loop.workers, view,
                               file.removesuffix(".safetensors"))
                write_embeddings(path, ids, *found, about)
            made["embeddings"][file] = sha256(path)
    return made

def embed_part(
    folder: str,       # folder of the run
    overrides: dict,   # of the run, dotted field -> value
    part: int,         # as for `embed_all`
    parts: int,
):
    "Embed with some of the classifiers, in a process of its own."
    run = Run.open(folder, overrides)
    embed_all(run, run.section("embed"), run.recorded("classify"), part, parts)

def run_stage(
    run: Run,
) -> dict:   # content of weights/embeddings.json
    "folds.csv, pictures and classifiers -> weights/encoders/, weights/embeddings/ and weights/embeddings.json."
    with run.stage("embed") as results:
        side_by_side("mammo_nb.ich.embed:embed_part", [str(run.folder), run.overrides], run.section("embed").jobs)
        made = embed_all(run, run.section("embed"), run.recorded("classify"))
        write_json(run.path("weights/embeddings.json"), made)
        results |= {"encoders": len(made["encoders"]), "files": len(made["embeddings"]), "features": made["embedding"]}
    return made

# %%
made = run_stage(run)
pd.Series({k: v for k, v in made.items() if k in ("embedding", "classes", "encoders")}).to_frame("embeddings.json")

# %% [markdown]
# ## What came out
# The features of the slices of the first classifier in two dimensions (principal components), and how much the mean
# over three views lowers the log loss of the classifier on the slices that it has not seen.

# %%
table = read_folds(run.path("folds.csv"))
classes, first = list(classes_of(table)), chosen.iloc[0]
files = [run.path(f"weights/embeddings/{embedding_name(first.encoder, first.fold, first.epoch, v)}") for v in VIEWS]
files = [f for f in files if f.is_file()]
features, _ = mean_views(files, table["image_id"].tolist())
centred = features - features.mean(0)
axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
plt.figure(figsize=(5, 3.4))
plt.scatter(*(centred @ axes.T).T, c=table["any"], s=6, cmap="coolwarm")
plt.title(f"{first.encoder}, fold {first.fold}: with a hemorrhage red", fontsize=9);

# %%
held = (table["fold"] == first.fold).to_numpy()
held = held if held.any() else np.ones(len(table), bool)
labels, ids = table.loc[held, classes].to_numpy(), table.loc[held, "image_id"].tolist()
losses = {"plain": log_loss(labels, read_embeddings(files[0], ids)[1]),
          "mean of the views": log_loss(labels, mean_views(files, ids)[1])}
kept = pd.read_csv(run.path(f"checkpoints/classify/{first.encoder}/fold_{first.fold}/pred_{first.epoch}.csv"))
again = read_embeddings(files[0], kept["image_id"].astype(str).tolist())[1]
assert np.allclose(again, kept[[f"p_{c}" for c in classes]], atol=1e-4)   # as the classifier predicted in its training
pd.Series(losses, name="log loss").to_frame().round(4)

# %% [markdown]
# ---
# [← Classify](04_classify.py) · [Sequence →](06_sequence.py)

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
# # Train
# > Networks that read blocks: several models, each with its folds.
#
# Each model of the recipe is trained once for each fold that it holds back. The published models differ in backbone,
# recurrent layer, decoder, columns and preparation. A small recipe has the same differences, so that it shows what the
# recurrent layer and the auxiliary masks are worth.

# %%
#| default_exp trauma.train

# %%
#| export
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from mammo_nb.core.files import read_json, sha256, write_csv
from mammo_nb.core.metrics import auc
from mammo_nb.core.ranks import from_first, join, launch, side_by_side
from mammo_nb.core.recipes import RecipeError
from mammo_nb.core.runs import Run, locate
from mammo_nb.core.train import fit
from mammo_nb.trauma.learning.blocks import BlockDataset, balanced_batches
from mammo_nb.trauma.learning.classifier import Classifier, make_classifier
from mammo_nb.trauma.learning.losses import classifier_loss
from mammo_nb.trauma.learning.scores import cost, group_losses, patient_maxima, scaled, score
from mammo_nb.trauma.reading.competition import read_table
from mammo_nb.trauma.recipes import SUBMITTED, Model

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.practice import practice
from mammo_nb.core.train import from_one, plot_epochs
from mammo_nb.trauma.system import system

# %% tags=["parameters"]
run_dir = ""     # folder of the run; "" makes a small practice run
overrides = {}   # changes for this run, such as {"train.processes": 2}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="train", overrides=overrides)
run.contract("train")

# %% [markdown]
# ## Blocks
# Blocks of patients without labels teach nothing and are left out.

# %%
#| export
ON_ALL = -1   # the number of a training that holds nothing back

def labelled_blocks(
    run: Run,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:  # blocks with fold and injured, info, patients
    "The blocks that are learned from, all slices, and the labels of patients."
    blocks, info, patients = (read_table(run.path(name)) for name in ("blocks.csv", "info.csv", "folds.csv"))
    known = patients.set_index("patient_id")
    blocks = blocks[blocks["patient_id"].isin(known.index)].reset_index(drop=True)
    return blocks.assign(fold=blocks["patient_id"].map(known["fold"]),
                         injured=blocks["patient_id"].map(known["any_injury"]) > 0), info, patients

def chosen_folds(
    model: Model,            # folds
    patients: pd.DataFrame,  # folds.csv
) -> list[int]:              # ON_ALL stands for a training on all data
    "The trainings of a model. Raises RecipeError for a fold that does not exist."
    if model.folds.strip() == "all":
        return [ON_ALL]
    there = sorted(set(patients["fold"].tolist()))
    wrong = [k for k in model.folds.split() if k not in map(str, there)]
    if wrong or not model.folds.split():
        raise RecipeError(f"The model {model.name} holds back the folds {model.folds!r}, and there are "
                          f"{', '.join(map(str, there))}. Name some of them, or write all.")
    return [int(k) for k in model.folds.split()]

def block_dataset(
    run: Run,
    blocks: pd.DataFrame,    # from `labelled_blocks`
    info: pd.DataFrame,
    patients: pd.DataFrame,
    model: Model,
) -> BlockDataset:
    "The data set of a model."
    return BlockDataset(blocks, info, patients, run.path("processed/"), model)

# %%
settings = run.section("train")
blocks, info, patients = labelled_blocks(run)
try:
    chosen_folds(Model(folds="0 9"), patients)
except RecipeError as e:
    print(e)
pd.DataFrame([{k: v for k, v in asdict(m).items() if k not in ("loop", "columns")} for m in settings.models])

# %% [markdown]
# What a network gets of a block, augmented three times. The numbers are the label of any injury of the liver.

# %%
model = settings.models[0]
data = block_dataset(run, blocks, info, patients, model)
row = int(np.argmax([labels.sum() for labels in data.labels]))
fig, axes = plt.subplots(3, 6, figsize=(9, 4.6))
for ax_row, seed in zip(axes, (-1, 1, 2)):
    inputs, targets = data[row, seed]
    for ax, k in zip(ax_row, np.linspace(0, len(targets["labels"]) - 1, 6).astype(int)):
        ax.imshow(inputs["image"][k, 1], cmap="gray", vmin=0, vmax=1)
        ax.contour(targets["masks"][k].sum(0), [0.5], colors="orange", linewidths=1)
        ax.set_title(f"{targets['labels'][k, 0]:.2f}", fontsize=8)
        ax.axis("off")
fig.tight_layout(pad=0.3)

# %% [markdown]
# ## Predictions
# A row for each triplet of a block, without augmentation and without masks.

# %%
#| export
def build_classifier(
    model: Model,
    weights: str = "none",   # initial weights, as `make_classifier` takes them
    seed: int = 0,
) -> Classifier:
    "The network of a model."
    return make_classifier(model.backbone, len(model.columns.split()), model.rnn, model.hidden, model.dropout,
                           model.auxiliary, len(model.masks.split()), model.size, weights=weights, seed=seed,
                           freeze=model.freeze)

@torch.inference_mode()
def predict_blocks(
    network: Classifier,
    data: BlockDataset,
    blocks: pd.DataFrame,   # of the data set
    rows: list[int],        # of both
    batch_size: int = 1,
    workers: int = 0,       # data-loading processes
) -> pd.DataFrame:          # PLACE and a column for each label, probabilities
    "Predict every slice of some blocks."
    device = next(network.parameters()).device
    batches = [[(row, -1) for row in rows[s:s + batch_size]] for s in range(0, len(rows), batch_size)]
    found = []
    for inputs, _ in DataLoader(data, batch_sampler=batches, num_workers=workers):
        found.append(torch.sigmoid(network({"image": inputs["image"].to(device)})["labels"]).float().cpu())
    values = torch.cat(found)
    table = pd.DataFrame(values.flatten(0, 1).numpy(), columns=data.columns)
    count = values.shape[1]
    names = blocks.iloc[np.repeat(rows, count)][["patient_id", "series", "block"]].reset_index(drop=True)
    return pd.concat([names.assign(triplet=np.tile(np.arange(count), len(rows))), table], axis=1)

# %% [markdown]
# ## Which epoch
# The recipe says by what an epoch is chosen on the patients that are held back, or that the last one is taken. A choice
# on these patients makes their score a little too good; only `last` does not. The scores are those of the original: the
# mean AUC of the columns, the metric of the competition, or its part for the extravasation (`loss`).

# %%
#| export
def truths(
    patients: pd.DataFrame,   # folds.csv
    columns: list[str],       # of recipes.COLUMNS
) -> pd.DataFrame:            # the same columns, 0 or 1
    "Labels of patients under the names of the models' columns."
    made = {}
    for column in columns:
        organ, grade = column.split("_")
        own = f"{organ}_injury" if grade == "marked" else column
        made[column] = patients[own] if own in patients else 1 - patients[f"{organ}_healthy"]
    return pd.DataFrame(made)

def fold_scores(
    predicted: pd.DataFrame,  # from `predict_blocks`
    patients: pd.DataFrame,   # folds.csv
    columns: list[str],
) -> dict[str, float]:        # auc, score, extravasation
    "Scores of the patients that are held back."
    found = patient_maxima(predicted, columns)
    own = patients.set_index("patient_id").loc[found.index]
    truth = truths(own, columns)
    areas = [auc(truth[c], found[c]) for c in columns]
    made = scaled(found, {c: cost(c) for c in SUBMITTED}, patients[list(SUBMITTED)].mean())
    parts = group_losses(own, made)
    return {"auc": float(np.nanmean(areas)) if np.isfinite(areas).any() else 0.5, "score": score(own, made),
            "extravasation": parts["extravasation"]}

def best_epoch(
    history: pd.DataFrame,   # of a training
    best: str,               # auc, score, loss or last
) -> int:
    "The epoch whose weights are kept; the last one if nothing was held back."
    best = {"loss": "extravasation"}.get(best, best)
    if best == "last" or best not in history:
        return int(history["epoch"].iloc[-1])
    order = history[best] if best != "auc" else -history[best]
    return int(history["epoch"].iloc[int(order.to_numpy().argmin())])

# %%
example = pd.DataFrame({"epoch": [0, 1, 2], "loss": [3, 2, 1], "auc": [.5, .8, .7], "extravasation": [1, 2, 3]})
assert [best_epoch(example, best) for best in ("auc", "loss", "last")] == [1, 0, 2]
assert best_epoch(example[["epoch", "loss"]], "auc") == 2   # nothing was held back
truths(patients.head(2), ["liver_injury", "liver_low", "bowel_marked"])

# %% [markdown]
# ## One training

# %%
#| export
def initial_weights(
    model: Model,
    folder: Path,   # of the run, from which a relative path starts
) -> str:           # a word, or the full path of a file
    "Initial weights of a model."
    word, colon, file = model.weights.partition(":")
    if word in ("none", "imagenet", "imagenet_lite"):
        return f"{word}:{locate(folder, file)}" if colon else word
    return str(locate(folder, model.weights))

def train_model(
    run: Run,
    model: Model,
    fold: int,        # held back, or ON_ALL
    tables: tuple,    # from `labelled_blocks`
    identity: dict,   # digests of data and code; a training with others in the folder is removed
):
    "Train on the other folds, and predict this one after each epoch."
    blocks, info, patients = tables
    loop, folder = model.loop, run.path(f"checkpoints/train/{model.name}/fold_{fold}")
    data, weights = block_dataset(run, blocks, info, patients, model), initial_weights(model, run.folder)
    rest, held = (np.flatnonzero(part) for part in (blocks["fold"] != fold, blocks["fold"] == fold))
    sampled = balanced_batches(blocks["injured"].to_numpy()[rest], loop.batch_size, loop.seed, join()[1])
    columns = model.columns.split()

    def batches(epoch: int) -> list[list[tuple[int, int]]]:
        return [[(int(rest[k]), seed) for k, seed in batch] for batch in sampled(epoch)]

    def validate(network: Classifier, epoch: int) -> dict:
        if not len(held):
            return {}
        found = predict_blocks(network, data, blocks, held.tolist(), loop.batch_size, loop.workers)
        write_csv(folder / f"pred_{epoch}.csv", found)
        return fold_scores(found, patients, columns)

    known = {**identity, "fold": fold, "model": {k: v for k, v in asdict(model).items() if k not in ("loop", "name")}}
    if (file := Path(weights.partition(":")[2] or weights)).is_file():
        known["weights"] = sha256(file)
    fit(build_classifier(model, weights, loop.seed + fold + 1), data, batches, classifier_loss(model.auxiliary_weight),
        validate, loop, folder, label=f"{model.name} fold {fold}", identity=known)

# %% [markdown]
# ## Run the stage
# If `processes` is above 1, the stage starts so many processes with `torchrun`, one for each GPU, and they train one
# network together. If `jobs` is above 1, so many networks are trained at the same time. The weights of the chosen
# epochs go to `weights/models/`.

# %%
#| export
def train_all(
    folder: str,       # folder of the run, as text for the ranks of torchrun
    overrides: dict,   # of the run, dotted field -> value
    part: int = 0,     # which of the trainings: every `parts`-th one, from this on
    parts: int = 1,
):
    "Blocks -> checkpoints/train/<model>/fold_<fold>/; finished trainings are not repeated."
    run = Run.open(folder, overrides)
    tables = labelled_blocks(run)
    reads = [run.path(name) for name in ("info.csv", "blocks.csv", "folds.csv", "processed/slices.csv")]
    identity = from_first({"reads": [sha256(path) for path in reads], "code": run.code("train")})
    trainings = [(m, fold) for m in run.section("train").models for fold in chosen_folds(m, tables[2])]
    for model, fold in trainings[part::parts]:
        train_model(run, model, fold, tables, identity)

def run_stage(
    run: Run,
) -> pd.DataFrame:   # history of all trainings
    "Blocks and folds -> checkpoints/train/ with a training for each model and fold, and weights/models/."
    settings, folder = run.section("train"), run.path("checkpoints/train")
    names = [m.name for m in settings.models]
    if len(set(names)) < len(names):
        raise RecipeError(f"train.models has the names {', '.join(names)}. Give each model a name of its own.")
    patients = read_table(run.path("folds.csv"))
    with run.stage("train") as results:
        trainings = [(m, fold) for m in settings.models for fold in chosen_folds(m, patients)]
        if settings.processes * settings.nodes > 1:
            launch("mammo_nb.trauma.train:train_all", [str(run.folder), run.overrides], settings.processes,
                   settings.nodes, run.folder)
        elif side_by_side("mammo_nb.trauma.train:train_all", [str(run.folder), run.overrides], settings.jobs):
            train_all(str(run.folder), run.overrides)
        parts, kept = [], run.path("weights/models")
        shutil.rmtree(kept, ignore_errors=True)   # of models that are no longer in the recipe
        kept.mkdir(parents=True)
        for model, fold in trainings:
            own = folder / model.name / f"fold_{fold}"
            rows = pd.DataFrame(read_json(own / "done.json")["history"])
            epoch = best_epoch(rows, model.best)
            for ending in ("safetensors", "json"):
                shutil.copyfile(own / f"epoch_{epoch}.{ending}", kept / f"{model.name}_fold{fold}.{ending}")
            rows.insert(0, "model", model.name)
            rows.insert(1, "fold", fold)
            parts.append(rows.assign(chosen=rows["epoch"] == epoch))
        history = pd.concat(parts, ignore_index=True)
        write_csv(folder / "history.csv", history)
        results |= {"models": len(names), "trainings": len(trainings)}
    return history

# %%
history = run_stage(run)
from_one(history).round(4)

# %% [markdown]
# ## What came out
# Training loss, and the score of the held-back patients with factors that are equal to the costs of the grades. A star
# marks the epoch that is kept.

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 3))
for (name, fold), h in history.groupby(["model", "fold"], sort=False):
    for ax, column in zip(axes, ["loss", "score"]):
        if column in h:
            line = plot_epochs(ax, h["epoch"], h[column], f"{name}, fold {fold}")
            kept = h[h["chosen"]]
            ax.plot(kept["epoch"] + 1, kept[column], "*", ms=12, color=line.get_color())
held = read_table(run.path("folds.csv"))["fold"].isin(history["fold"]).sum()
axes[0].set_title("training loss")
axes[1].set_title(f"score of {held} held-back patients")
axes[1].legend(fontsize=8)
fig.tight_layout()
assert np.isfinite(history["loss"]).all()

# %% [markdown]
# ---
# [← Folds](06_folds.py) · [Ensemble →](08_ensemble.py)

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
# > One classifier for each fold, with a cancer in every batch.
#
# The parts come from other notebooks: the training loop from `core/train`, the batches from `learning/sampler`, the
# augmentation from `learning/augment`, the targets from `learning/targets`. This stage puts them together, trains a
# pretrained network on all folds but one, and predicts that one after each epoch.

# %%
#| default_exp mammo.train

# %%
#| export
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from mammo_nb.core.files import read_json, sha256, write_csv
from mammo_nb.core.metrics import auc, best_threshold
from mammo_nb.core.networks import Mirrored, create_network
from mammo_nb.core.pictures import fit_resize
from mammo_nb.core.ranks import join, launch, side_by_side
from mammo_nb.core.recipes import RecipeError
from mammo_nb.core.runs import Run, locate
from mammo_nb.core.train import fit
from mammo_nb.mammo.crops import crop_path
from mammo_nb.mammo.datasets import per_breast, read_table
from mammo_nb.mammo.learning.augment import BEFORE_FITTING, augment
from mammo_nb.mammo.learning.lesions import Pointing
from mammo_nb.mammo.learning.sampler import one_positive_batches, winner_batches
from mammo_nb.mammo.learning.targets import lesion_cells, pointing_loss, soft_targets
from mammo_nb.mammo.recipes import Train

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.practice import practice
from mammo_nb.core.train import from_one, plot_epochs
from mammo_nb.mammo.system import system

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run, such as {"train.loop.epochs": 8}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="train", overrides=overrides)
run.contract("train")

# %%
#| hide
settings = run.section("train")
table = read_table(run.path("folds.csv"), ["fold"])
images = run.path("processed/cleaned_images")

# %% [markdown]
# ## Images and targets
# An image is a normalised crop of a breast. A breast may be flipped, moved, turned and lit differently and is still the
# same breast, so it is augmented in training. In a data set with masks the target has a second part: the cells that a
# lesion reaches into.
#
# A crop is resized to fit by halving and a bilinear step, and its sides are rounded (`core/pictures`). The winner
# truncated the sides and took one bilinear step, which `train.faithful` does. In the figures of
# `tests/test_parity_mammo.py`, up to 33 % of the pixels differ between the two ways, by 1.7 levels on average, where
# truncation moves a side by one pixel or a crop is more than halved. The switch also makes the winner's augmentation as
# his library did (`learning/faithful`).

# %%
#| export
# fields of Train that determine the network and its predictions
NETWORK = ["network", "global_pool", "height", "width", "lesion_weight", "mirrored", "faithful"]

class BreastCrops(Dataset):
    """Crops of a table as normalised float tensors (3, height, width), with their targets: `dataset[(index, seed)]`, no
    augmentation for the seed -1. The target is the label (1,), or with masks a dict of label and cells."""
    def __init__(
        self,
        table: pd.DataFrame,         # patient_id, image_id, cancer
        images: Path,                # cleaned_images/
        settings: Train,             # height, width, targets, augmentation
        normalization: dict,         # mean and std of the network, on the scale 0..1
        masks: bool = False,         # with cells of lesions, from the column `mask` and cleaned_masks/
    ):
        self.paths = [crop_path(images, p, i) for p, i in zip(table["patient_id"], table["image_id"])]
        self.masks = None
        if masks:
            folder = images.with_name("cleaned_masks")
            self.masks = [crop_path(folder, p, i) if isinstance(m, str) else None
                          for p, i, m in zip(table["patient_id"], table["image_id"], table["mask"])]
        self.targets = soft_targets(table["cancer"].to_numpy(), settings.soft_positive, settings.label_smoothing)
        self.settings = settings
        mean, std = (torch.tensor(np.broadcast_to(normalization[k], 3).copy(), dtype=torch.float32).view(3, 1)
                     for k in ("mean", "std"))
        # a level has one value in each channel, which is looked up: the same bits in half of the time
        self.values = ((torch.arange(256).float().div(255) - mean) / std).numpy()

    def __len__(self):
        return len(self.paths)

    def _read(self, path: Path) -> np.ndarray:
        stored = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if stored is None:
            raise FileNotFoundError(f"{path} cannot be read. Run the stage crops again.")
        return stored

    def picture(self, index: int, seed: int) -> np.ndarray:
        "uint8 (height, width), or with its mask (height, width, 2); augmented unless the seed is negative."
        size, rng = (self.settings.height, self.settings.width), np.random.default_rng(max(seed, 0))
        exact = self.settings.faithful
        policy = self.settings.augment if seed >= 0 and rng.random() < self.settings.augmentation else "none"
        stored = self._read(self.paths[index])
        if policy in BEFORE_FITTING and self.masks is None:
            return fit_resize(augment(stored, rng, policy, exact), *size, plain=exact)
        fitted = fit_resize(stored, *size, plain=exact)
        if self.masks is not None:
            path = self.masks[index]
            mask = fit_resize(self._read(path), *size) if path else np.zeros_like(fitted)
            fitted = np.dstack([fitted, mask])
        return augment(fitted, rng, policy)

    def __getitem__(self, at: tuple[int, int]):
        picture, target = self.picture(*at), torch.tensor([self.targets[at[0]]])
        grey = np.ascontiguousarray(picture if self.masks is None else picture[..., 0])
        image = np.empty((3, *grey.shape), np.float32)
        for channel, values in zip(image, self.values):
            cv2.LUT(grey, values, dst=channel)
        if self.masks is not None:
            target = {"label": target, "cells": torch.from_numpy(lesion_cells(picture[..., 1])).flatten()}
        return torch.from_numpy(image), target

# %%
data = BreastCrops(table, images, settings, {"mean": .5, "std": .5})
fig, axes = plt.subplots(2, 8, figsize=(11, 5.5))
for row, index in enumerate([int(table["cancer"].argmax()), int(table["cancer"].argmin())]):
    for seed, ax in enumerate(axes[row], start=-1):
        ax.imshow(data.picture(index, seed), cmap="gray", vmin=0, vmax=255)
        ax.axis("off")
        ax.set_title("as it is" if seed < 0 else f"seed {seed}", fontsize=8)
fig.suptitle("the input of the network, one image in each row")
fig.tight_layout()
assert (data.picture(0, 5) == data.picture(0, 5)).all()
assert torch.equal(data[0, 5][0][0], (torch.from_numpy(data.picture(0, 5)).float() / 255 - .5) / .5)

# %% [markdown]
# ## The network
# The initial weights are those that the recipe names, by a word or by a file. A recipe that continues another training
# names the files of that training, with `{fold}` in place of the number.

# %%
#| export
def initial_weights(
    weights: str,   # a word that `create_network` accepts, or a file; {fold} in it stands for the number
    fold: int,
    folder: Path,   # folder from which `locate` finds the file
) -> str:           # the word, or the full path of the file
    "Initial weights of the network of a fold."
    if weights in ("none", "imagenet", "imagenet_lite"):
        return weights
    word = "imagenet:" if weights.startswith("imagenet:") else ""
    return word + str(locate(folder, weights.removeprefix(word).format(fold=fold)))

def build_network(
    settings: Train,          # network, global_pool, drop rates, lesion_weight
    weights: str = "none",    # initial weights, as `create_network` takes them
    seed: int = 0,            # of the layers without initial weights, such as the last one
) -> nn.Module:               # one logit for each image
    "The classifier of a recipe."
    classifier = create_network(settings.network, weights=weights, num_classes=1, global_pool=settings.global_pool,
                                drop_rate=settings.drop_rate, drop_path_rate=settings.drop_path_rate, seed=seed,
                                freeze=settings.freeze)
    return Pointing(classifier) if settings.lesion_weight else classifier

def as_asked(
    model: nn.Module,
    settings: Train,     # mirrored
) -> nn.Module:
    "The classifier as it is validated and used: alone, or with horizontal-flip TTA."
    return Mirrored(model) if settings.mirrored else model

def predict_probabilities(
    model: nn.Module,
    dataset: BreastCrops,
    batch_size: int = 32,
    workers: int = 0,         # data-loading processes
) -> np.ndarray:              # float32, one for each image
    "Probabilities of the images without augmentation."
    device = next(model.parameters()).device
    count = len(dataset)
    batches = [[(i, -1) for i in range(s, min(s + batch_size, count))] for s in range(0, count, batch_size)]
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers)
    with torch.inference_mode():
        return np.concatenate([torch.sigmoid(model(x.to(device)).float()).flatten().cpu().numpy() for x, _ in loader])

# %% [markdown]
# A recipe with `lesion_weight` trains a pointing network, which predicts cells of lesions besides the label. Before the
# first step all of its cells are equal, so that its second judgement is 0 and its logit half of the classifier's.

# %%
pointing = Pointing(build_network(replace(settings, lesion_weight=0.), seed=1))
x = torch.zeros(1, 3, 64, 32)
with torch.no_grad():
    assert torch.allclose(pointing.eval()(x), pointing.classifier(x) / 2)
    outputs = pointing.train()(x)
assert outputs["judgements"].shape == (1, 2) and outputs["cells"].shape == (1, 2, 8)

# %% [markdown]
# ## One fold
# After each epoch the EMA weights predict the fold that is held back. The predictions of all epochs are kept, because
# the selection compares them. A prediction that is not a number is an error, for such a network cannot be scored. In
# the winner's code it counts as 0 (`faithful`).

# %%
#| export
def batches_of(
    cancer: np.ndarray,  # 0 or 1 for each image of the training set
    settings: Train,
    fold: int,           # held back
):                       # f(epoch) -> batches
    "The sampler of a recipe; the winner's has the same seed for all folds."
    loop = settings.loop
    if settings.faithful:
        return winner_batches(cancer, loop.batch_size, settings.positive_ratio, loop.seed, join()[1])
    return one_positive_batches(cancer, loop.batch_size, settings.positive_ratio, loop.seed + fold, join()[1])

def held_back_probabilities(
    probability: np.ndarray,  # one for each image
    settings: Train,          # faithful
) -> np.ndarray:              # the same; with `faithful`, 0 where there is no number
    "Probabilities of the held-back fold as they are scored."
    return np.nan_to_num(probability) if settings.faithful else probability

def train_fold(
    table: pd.DataFrame,   # folds.csv
    fold: int,             # held back
    images: Path,          # cleaned_images/
    folder: Path,          # checkpoints/fold_<fold>/
    settings: Train,
    identity: dict,        # digests of data and code; a training with others in the folder is removed
) -> pd.DataFrame:         # history: a row for each epoch
    """Train on the other folds and predict this one after each epoch. A training that comes before it is in
    checkpoints/fold_<fold>/before/."""
    before, loop = settings.before, settings.loop
    if before:
        train_fold(table, fold, images, folder / "before", before, identity)
        weights = str(folder / "before" / f"epoch_{before.loop.epochs - 1}.safetensors")
    else:
        weights = initial_weights(settings.weights, fold, folder)
    held, rest = table[table["fold"] == fold], table[table["fold"] != fold]
    if (file := Path(weights.removeprefix("imagenet:"))).is_file():
        identity = {**identity, "weights": sha256(file)}
    model = build_network(settings, weights, loop.seed + fold)
    masks = settings.lesion_weight > 0
    if masks and ("mask" not in rest or rest["mask"].isna().all()):
        raise RecipeError("train.lesion_weight needs masks of lesions, and this data set has none. "
                          "Set train.lesion_weight to 0.")
    train_set = BreastCrops(rest, images, settings, model.normalization, masks)
    held_set = BreastCrops(held, images, settings, model.normalization)
    loss = partial(pointing_loss, weight=settings.lesion_weight) if masks else F.binary_cross_entropy_with_logits

    def validate(eval_model: nn.Module, epoch: int) -> dict:
        probability = predict_probabilities(as_asked(eval_model, settings), held_set, settings.val_batch_size,
                                            loop.workers)
        probability = held_back_probabilities(probability, settings)
        predictions = held[["patient_id", "image_id", "laterality", "cancer", "fold"]].assign(
            epoch=epoch, probability=probability)
        write_csv(folder / f"pred_{epoch}.csv", predictions)
        breasts = per_breast(predictions)
        threshold, pf1 = best_threshold(breasts["cancer"], breasts["probability"])
        return {"auc": auc(breasts["cancer"], breasts["probability"]), "pf1": pf1, "threshold": threshold}

    batches = batches_of(rest["cancer"].to_numpy(), settings, fold)
    return fit(model, train_set, batches, loss, validate, loop, folder, label=f"fold {fold}",
               identity={**identity, "recipe": asdict(settings), "fold": fold})

def chosen_folds(
    folds: str,            # numbers with spaces between them; "": all
    table: pd.DataFrame,   # folds.csv
) -> list[int]:
    "The folds that are trained."
    there = sorted(set(table["fold"].tolist()) - {-1})  # external sets have none
    wrong = [k for k in folds.split() if k not in map(str, there)]
    if wrong:
        raise RecipeError(f"train.folds names {', '.join(wrong)}, and there are {', '.join(map(str, there))}.")
    return [int(k) for k in folds.split()] or there

def settings_of(
    settings: Train,
    folds: list[int],   # all that there are
) -> dict[int, Train]:  # fold -> its training
    "The training of each fold: `by_fold`, or the same for all."
    if not settings.by_fold:
        return dict.fromkeys(folds, settings)
    if len(settings.by_fold) != len(folds):
        raise RecipeError(f"train.by_fold has the trainings of {len(settings.by_fold)} folds, and there are "
                          f"{len(folds)} folds. Set folds.n_folds to {len(settings.by_fold)}.")
    for k, own in zip(folds, settings.by_fold):
        differ = [f for f in NETWORK if getattr(own, f) != getattr(settings, f)]
        if differ:
            raise RecipeError(f"train.by_fold: fold {k} differs in {', '.join(differ)} from the section. "
                              "The networks of an ensemble must be alike; set the field equal in all of them.")
    return dict(zip(folds, settings.by_fold))

# %% [markdown]
# ## Where the training leaves the winner's
# With the recipes named after him the learning rates, the parameters with weight decay, the EMA, the loss, the batches
# and the scores are those of his code (`tests/test_parity_mammo_learning.py`). These parts are not.
#
# He trained and validated in float16 with a loss scaler. `amp` trains in bfloat16 on a GPU that has it, and the
# validation is in float32; `train.loop.precision=fp16` trains in his precision. With random weights and eight inputs of
# 256x128 on a CPU, the probabilities of ConvNeXt-small differ from those of float32 by at most 0.0025 (mean 0.0009) in
# bfloat16, and by 0.00015 (mean 0.00007) in float16. TF32 was on for all layers, and here it is on for convolutions
# only: 0.0002, with factors rounded to its 11 bits. The memory layout `channels_last`, which he did not use, changes
# them by 0.0000003.
#
# The random numbers of augmentation and dropout are other ones. He also saved and scored weights in the middle of the
# epochs 10 to 18, and chose whole epochs in the end. His EMA leaves whole-number buffers at 0, and here they are
# copied; ConvNeXt has none. His cuDNN was free to choose its kernels, and here it is `deterministic`, so that two runs
# on one machine agree.

# %% [markdown]
# ## Run the stage
# If `processes` is above 1, the stage starts so many processes with `torchrun`, one for each GPU, and they train one
# fold after the other. If `jobs` is above 1, as many folds are trained at the same time.

# %%
#| export
def train_folds(
    folder: str,       # folder of the run, as text for the ranks of torchrun
    overrides: dict,   # of the run, dotted field -> value
    part: int = 0,     # which of the folds: every `parts`-th one, from this on
    parts: int = 1,
):
    "folds.csv and the crops -> checkpoints/fold_*/; finished folds are not trained again."
    run = Run.open(folder, overrides)
    settings = run.section("train")
    reads = [run.path("folds.csv"), run.path("processed/crops.csv")]
    table = read_table(reads[0], ["fold"])
    checkpoints = run.path("checkpoints/")
    identity = {"reads": [sha256(r) for r in reads], "code": run.code("train")}
    own = settings_of(replace(settings, jobs=1), chosen_folds("", table))  # `jobs` is no part of what was trained
    for k in chosen_folds(settings.folds, table)[part::parts]:
        train_fold(table, k, run.path("processed/cleaned_images"), checkpoints / f"fold_{k}", own[k], identity)

def run_stage(
    run: Run,
) -> pd.DataFrame:                   # history of all folds
    "folds.csv and the crops -> checkpoints/fold_*/ and checkpoints/history.csv."
    settings, folder = run.section("train"), run.path("checkpoints/")
    with run.stage("train"):
        if settings.processes * settings.nodes > 1:
            launch("mammo_nb.mammo.train:train_folds", [str(run.folder), run.overrides], settings.processes,
                   settings.nodes, run.folder)
        elif side_by_side("mammo_nb.mammo.train:train_folds", [str(run.folder), run.overrides], settings.jobs):
            train_folds(str(run.folder), run.overrides)
        folds = chosen_folds(settings.folds, read_table(run.path("folds.csv"), ["fold"]))
        parts = [pd.DataFrame(read_json(folder / f"fold_{k}/done.json")["history"]).assign(fold=k) for k in folds]
        history = pd.concat(parts, ignore_index=True)
        history["weights_sha256"] = [
            sha256(folder / f"fold_{r.fold}" / f"epoch_{r.epoch}.safetensors") for r in history.itertuples()
        ]
        write_csv(folder / "history.csv", history)
    return history

# %%
history = run_stage(run)
from_one(history).drop(columns=["weights_sha256"]).round(4)

# %% [markdown]
# ## What came out
# From epoch to epoch the loss falls, and the score of the held-back fold rises.

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 3))
breasts = table.drop_duplicates(["patient_id", "laterality"]).groupby("fold").size()
for fold, h in history.groupby("fold"):
    for ax, column in zip(axes, ["loss", "auc", "pf1"]):
        plot_epochs(ax, h["epoch"], h[column], f"fold {fold}, {breasts[fold]} breasts held back")
for ax, title in zip(axes, ["training loss", "AUC per breast, held-back fold", "pF1 per breast, best threshold"]):
    ax.set_title(title)
axes[0].legend(fontsize=8)
fig.tight_layout()

# %%
# the images with the highest and the lowest probabilities after the last epoch of the first fold
fold, epoch = history[["fold", "epoch"]].sort_values(["fold", "epoch"], ascending=[True, False]).iloc[0]
last = read_table(run.path(f"checkpoints/fold_{fold}/pred_{epoch}.csv"), ["probability"])
last = last.sort_values("probability")
fig, axes = plt.subplots(1, 8, figsize=(11, 3))
for ax, row in zip(axes, pd.concat([last.tail(4)[::-1], last.head(4)]).itertuples()):
    ax.imshow(cv2.imread(str(crop_path(images, row.patient_id, row.image_id)), cv2.IMREAD_GRAYSCALE), cmap="gray",
              vmin=0, vmax=255)
    ax.set_title(f"{row.probability:.2f}\n{'cancer' if row.cancer else 'no cancer'}", fontsize=8)
    ax.axis("off")
fig.tight_layout()

# %% [markdown]
# ---
# [← Folds](05_folds.py) · [Select →](07_select.py)

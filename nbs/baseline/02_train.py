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
# > One network, one fold held back; cancers are drawn more often and count more in the loss.
#
# The winner puts at least one cancer into every batch. The baseline draws at random instead, with replacement: a
# positive is several times as likely to be drawn as a negative, and has several times its weight in the loss. The first
# layers keep their ImageNet weights. Everything else is the loop of `core/train`.

# %%
#| default_exp baseline.train

# %%
#| export
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import WeightedRandomSampler

from mammo_nb.baseline.learning.walkthrough import first_threshold, renew_head, torchvision_state
from mammo_nb.baseline.system import Train
from mammo_nb.core.files import sha256, write_csv
from mammo_nb.core.metrics import auc, best_threshold
from mammo_nb.core.networks import Mirrored, create_network, load_state
from mammo_nb.core.recipes import RecipeError
from mammo_nb.core.runs import Run, locate
from mammo_nb.core.train import fit
from mammo_nb.mammo.datasets import per_breast, read_table
from mammo_nb.mammo.recipes import Train as Classifier
from mammo_nb.mammo.train import BreastCrops, initial_weights, predict_probabilities

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.baseline.system import system
from mammo_nb.core.optimisation import learning_rate
from mammo_nb.core.practice import practice
from mammo_nb.core.steps import training_mode
from mammo_nb.core.train import from_one, plot_epochs

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run, such as {"train.loop.epochs": 12}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="train", overrides=overrides)
run.contract("train")

# %%
#| hide
settings = run.section("train")
table = read_table(run.path("folds.csv"), ["fold"])
images = run.path("processed/cleaned_images")

# %% [markdown]
# ## Weighted sampling
# An epoch has as many draws as there are images, made by torch's own sampler. The draws depend on the seed and on the
# number of the epoch only, so that a training that was interrupted draws the same again. With `w` the weight of a
# positive and `p` the share of positives among the images, their share of the draws is `w p / (w p + 1 - p)`.

# %%
#| export
def weighted_batches(
    cancer: np.ndarray,      # 0 or 1 for each image
    batch_size: int,
    positive_weight: float,  # of a positive; a negative has the weight 1
    seed: int,
):                           # f(epoch) -> batches of (index, seed)
    "Batches from `WeightedRandomSampler`, the last one may be smaller; raises ValueError if a class is missing."
    if not 0 < cancer.sum() < len(cancer):
        raise ValueError(f"Training needs images of both classes, and the training set has {int(cancer.sum())} "
                         f"positives among {len(cancer)} images. Choose another fold or data set.")
    weights = np.where(cancer == 1, positive_weight, 1.0)

    def batches(epoch: int) -> list[list[tuple[int, int]]]:
        rng = np.random.default_rng([seed, epoch])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        drawn = list(WeightedRandomSampler(weights, len(cancer), replacement=True, generator=generator))
        pairs = list(zip(drawn, rng.integers(2**31, size=len(drawn)).tolist()))
        return [pairs[start:start + batch_size] for start in range(0, len(pairs), batch_size)]
    return batches

# %%
cancer = table["cancer"].to_numpy()
batches = weighted_batches(cancer, settings.loop.batch_size, settings.positive_weight, settings.loop.seed)
assert batches(1) == batches(1) != batches(2) and sum(map(len, batches(0))) == len(cancer)
p, drawn = cancer.mean(), {}
for w in (1, 3, 10, 15, 35):
    sampled = weighted_batches(cancer, 26, w, 0)
    drawn[w] = np.mean([cancer[[i for batch in sampled(epoch) for i, _ in batch]].mean() for epoch in range(40)])
expected = {w: w * p / (w * p + 1 - p) for w in drawn}
assert all(abs(drawn[w] - expected[w]) < 0.05 for w in drawn)
pd.DataFrame({"drawn": drawn, "by the formula": expected}).rename_axis("weight of a positive").round(3)

# %% [markdown]
# ## Images
# The stored picture in three equal channels, every second one mirrored. The data set is the winner's without its other
# options.

# %%
#| export
def pictures(
    table: pd.DataFrame,     # patient_id, image_id, cancer
    images: Path,            # cleaned_images/
    size: tuple[int, int],   # height, width of the pictures
    normalization: dict,     # mean and std of the network, on the scale 0..1
    augment: str,            # a policy of mammo/learning/augment
) -> BreastCrops:            # `dataset[(index, seed)]`; seed -1 gives pictures without augmentation
    "Prepared pictures and their labels, 0 and 1."
    plain = Classifier(height=size[0], width=size[1], soft_positive=0.0, label_smoothing=0.0, augmentation=1.0,
                       augment=augment)
    return BreastCrops(table, images, plain, normalization)

# %%
preparation = run.recorded("prepare")
size = preparation.height, preparation.width
data = pictures(table, images, size, {"mean": .5, "std": .5}, settings.augment)
fig, axes = plt.subplots(1, 8, figsize=(11, 2.8))
for seed, ax in enumerate(axes, start=-1):
    ax.imshow(data.picture(int(np.argmax(cancer)), seed), cmap="gray", vmin=0, vmax=255)
    ax.axis("off")
    ax.set_title("as it is" if seed < 0 else f"seed {seed}", fontsize=8)
fig.tight_layout()
assert set(data.targets) == {0, 1}

# %% [markdown]
# ## The network
# timm's ConvNeXt has the published head: mean over the picture, LayerNorm, one linear layer. The parameters are counted
# from the input of the network on, and the first ones are frozen. A fine-tuned network usually keeps the LayerNorm of
# its head, which has seen ImageNet; with `faithful` it starts anew with the linear layer, as in the walk-through.

# %%
#| export
PUBLISHED = "torchvision"   # the word for its weights

def build_network(
    settings: Train,             # network, drop_path_rate, freeze, faithful
    weights: str = "none",       # initial weights, as `create_network` takes them, or torchvision, torchvision:FILE
    seed: int = 0,               # of the layers without initial weights, such as the last one
) -> nn.Module:                  # one logit for each image
    "The classifier of a recipe, its first parameters frozen. Raises WeightsError."
    word, _, file = weights.partition(":")
    named = "none" if word == PUBLISHED else weights
    model = create_network(settings.network, weights=named, drop_path_rate=settings.drop_path_rate, seed=seed,
                           freeze=settings.freeze)
    if word == PUBLISHED:
        load_state(model, torchvision_state(model, file), file or PUBLISHED)
    if settings.faithful:
        renew_head(model, seed)
    return model

def weights_of(
    settings: Train,   # weights, fold
    folder: Path,      # folder from which a file is located
) -> str:              # for `build_network`
    "Initial weights with the full path of their file."
    word, _, file = settings.weights.partition(":")
    if word != PUBLISHED:
        return initial_weights(settings.weights, settings.fold, folder)
    return f"{word}:{locate(folder, file)}" if file else word

# %%
convnext = build_network(system.recipe("baseline_tiny").section(Train))
names = [n for n, _ in convnext.named_parameters()]
assert convnext.head.norm.eps == 1e-6 and convnext.head.norm.weight.shape == (768,)
assert convnext.head.fc.weight.shape == (1, 768)
print(f"{len(names)} parameters; {sum(not p.requires_grad for p in convnext.parameters())} frozen, up to {names[69]}")
network = build_network(settings)
training_mode(network)
assert not network.bn1.training and network.blocks[-1][-1].bn3.training   # a frozen normalisation keeps its statistics

# %% [markdown]
# ## One fold
# After each epoch the fold that is held back is predicted with horizontal-flip TTA, as the test set will be. Its
# threshold comes from a coarse grid. Of equally good thresholds the one nearest to 0.5 is taken. The walk-through takes
# the first (`faithful`), which lies at the lower end of the plateau, so that a slightly higher probability of a healthy
# breast is already a false alarm. A training that does not separate cancers after the first epochs never learns to do
# so. It is stopped if its pF1 is too low.

# %%
#| export
THRESHOLDS = np.arange(20) / 20  # 0, 0.05 ... 0.95

def best_on_grid(
    labels,                   # (n,) 0 or 1
    probabilities,            # (n,)
    faithful: bool = False,   # the first of equal thresholds, and the score of the walk-through
) -> tuple[float, float]:     # threshold, its F1
    "The best of the thresholds."
    return (first_threshold if faithful else best_threshold)(labels, probabilities, THRESHOLDS)

# %%
labels, probabilities = [0, 0, 1, 1], [.1, .22, .9, .95]   # each threshold from .25 to .85 is perfect
assert [best_on_grid(labels, probabilities, faithful)[0] for faithful in (False, True)] == [.5, .25]

# %%
#| export
def train_fold(
    table: pd.DataFrame,   # folds.csv
    images: Path,          # cleaned_images/
    folder: Path,          # checkpoints/fold_<fold>/
    settings: Train,
    size: tuple[int, int],  # height, width of the pictures
    identity: dict,        # digests of data and code; a training with others in the folder is removed
) -> pd.DataFrame:         # history: a row for each epoch
    "Train on the other folds and predict the held-back one after each epoch; raises RecipeError for an unknown fold."
    loop = settings.loop
    held, rest = table[table["fold"] == settings.fold], table[table["fold"] != settings.fold]
    if held.empty:
        there = ", ".join(map(str, sorted(set(table["fold"].tolist()) - {-1})))
        raise RecipeError(f"train.fold is {settings.fold}, and there are the folds {there}.")
    weights = weights_of(settings, folder)
    if (file := Path(weights.removeprefix("imagenet:").removeprefix(f"{PUBLISHED}:"))).is_file():
        identity = {**identity, "weights": sha256(file)}
    model = build_network(settings, weights, loop.seed)
    train_set, held_set = (pictures(t, images, size, model.normalization, settings.augment) for t in (rest, held))

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(output, target, pos_weight=output.new_tensor(settings.pos_weight))

    def validate(eval_model: nn.Module, epoch: int) -> dict:
        probability = predict_probabilities(Mirrored(eval_model), held_set, loop.batch_size, loop.workers)
        predictions = held[["patient_id", "image_id", "laterality", "cancer", "fold"]].assign(
            epoch=epoch, probability=probability)
        write_csv(folder / f"pred_{epoch}.csv", predictions)
        breasts = per_breast(predictions)
        threshold, pf1 = best_on_grid(breasts["cancer"], breasts["probability"], settings.faithful)
        return {
            "auc": auc(breasts["cancer"], breasts["probability"]), "pf1": pf1, "threshold": threshold,
            "stop": epoch + 1 >= settings.dud_epochs and pf1 < settings.dud_pf1
        }

    batches = weighted_batches(rest["cancer"].to_numpy(), loop.batch_size, settings.positive_weight, loop.seed)
    return fit(model, train_set, batches, loss, validate, loop, folder, label=f"fold {settings.fold}",
               identity=identity)

# %%
steps = 20   # an epoch
published = system.recipe("baseline_tiny").section(Train).loop
plt.figure(figsize=(5, 2.2))
rates = [learning_rate(published, n // steps, n % steps / steps) for n in range(published.epochs * steps)]
plt.plot(np.arange(len(rates)) / steps, rates)
plt.title("learning rate of baseline_tiny, every batch", fontsize=9)
plt.xlabel("epoch");

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
) -> pd.DataFrame:                   # history of the fold
    "folds.csv and the pictures -> checkpoints/fold_*/ and checkpoints/history.csv."
    settings = run.section("train")
    with run.stage("train"):
        table = read_table(run.path("folds.csv"), ["fold"])
        folder = run.path("checkpoints/")
        identity = {
            "recipe": asdict(settings),
            "reads": [sha256(run.path(r)) for r in ("folds.csv", "processed/crops.csv")],
            "code": run.code("train"),
        }
        prepared = run.recorded("prepare")
        history = train_fold(table, run.path("processed/cleaned_images"), folder / f"fold_{settings.fold}",
                             settings, (prepared.height, prepared.width), identity).assign(fold=settings.fold)
        history["weights_sha256"] = [
            sha256(folder / f"fold_{r.fold}" / f"epoch_{r.epoch}.safetensors") for r in history.itertuples()
        ]
        write_csv(folder / "history.csv", history)
    return history

# %%
history = run_stage(run)
if history["stop"].any():
    print(f"stopped after {len(history)} epochs: pF1 {history['pf1'].iloc[-1]:.3f}")
from_one(history).drop(columns=["weights_sha256"]).round(5)

# %% [markdown]
# ## What came out
# The training loss, and the scores of the fold that is held back.

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 3))
held = table.loc[table["fold"].isin(history["fold"]), ["patient_id", "laterality"]].drop_duplicates()
titles = {"loss": "training loss, cancers weighted", "auc": f"AUC, {len(held)} held-back breasts",
          "pf1": f"pF1, {len(held)} held-back breasts, best threshold"}
for ax, (column, title) in zip(axes, titles.items()):
    plot_epochs(ax, history["epoch"], history[column])
    ax.set_title(title)
fig.tight_layout()

# %% [markdown]
# ---
# [← Prepare](01_prepare.py) · [Select →](03_select.py)

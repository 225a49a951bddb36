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
# # Train
# > One classifier a fold, with a cancer in every batch and randomness that survives a power cut.
#
# In screening two images in a hundred show a cancer. A batch without one teaches only that the answer is no, and the
# winner found at least one positive per batch to be what made training stable. The rest is ordinary: a pretrained
# network, augmentation, and the loop of `core/train`.

# %%
#| default_exp mammo.train

# %%
#| export
from dataclasses import asdict
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
from mammo_nb.core.ranks import join, launch
from mammo_nb.core.runs import Run, locate
from mammo_nb.core.train import Optimisation, fit
from mammo_nb.mammo.learning.augment import BEFORE_FITTING, augment
from mammo_nb.mammo.learning.lesions import CELL, Pointing
from mammo_nb.mammo.crops import crop_path
from mammo_nb.mammo.datasets import per_breast, read_table
from mammo_nb.mammo.recipes import Train

# %%
#| hide
from dataclasses import replace

import matplotlib.pyplot as plt

from mammo_nb.core.runs import practice
from mammo_nb.mammo.system import system

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run, such as {"train.field": value}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="train", overrides=overrides)
run.contract("train")

# %%
#| hide
settings = run.section("train")
table = read_table(run.path("folds.csv"), ["fold"])
images = run.path("processed/cleaned_images")

# %% [markdown]
# ## A cancer in every batch
# An epoch shows each negative once. Positives are dealt out of shuffled decks, one deck after another, so that each is
# seen equally often; the deck goes on from epoch to epoch. Every place in an epoch gets a seed of its own, from which
# its augmentation is drawn: order, worker count and an interruption change nothing. On several GPUs each takes every
# n-th batch, so the number of batches is a multiple of n, and none goes without a positive.

# %%
#| export
# fields of Train that say what a network is, and how it is asked
NETWORK = ["network", "global_pool", "height", "width", "lesion_weight", "mirrored"]

def _deck(positives: np.ndarray, start: int, count: int, seed: int) -> np.ndarray:
    "Cards `start` to `start + count` of an endless row of shuffled decks."
    n = len(positives)
    decks = [
        np.random.default_rng([seed, 1, d]).permutation(positives)
        for d in range(start // n, (start + count - 1) // n + 1)
    ]
    return np.concatenate(decks)[start % n:start % n + count]

def one_positive_batches(
    cancer: np.ndarray,  # 0 or 1 an image
    batch_size: int,
    ratio: float,        # positives per negative; one a batch if that is more
    seed: int,
    ranks: int = 1,      # processes that share the batches out among themselves
):                       # epoch -> batches of (index, seed), a multiple of `ranks`
    "Batches with at least one positive each, every negative once an epoch (facts, section 4)."
    negatives, positives = np.flatnonzero(cancer == 0), np.flatnonzero(cancer == 1)
    if not len(positives) or not len(negatives):
        raise ValueError(f"training needs both classes, got {len(positives)} positives and {len(negatives)} negatives")
    each = min(batch_size - 1, max(1, round(batch_size * ratio / (1 + ratio))))
    count = -(-len(negatives) // (batch_size - each) // ranks) * ranks
    if count > len(negatives):
        raise ValueError(f"{len(negatives)} negatives are too few for {ranks} processes")

    def batches(epoch: int) -> list[list[tuple[int, int]]]:
        order = np.random.default_rng([seed, 0, epoch]).permutation(negatives)
        dealt = _deck(positives, epoch * count * each, count * each, seed)
        seeds = np.random.default_rng([seed, 2, epoch]).integers(2**31, size=(count, batch_size))
        rows = [
            np.concatenate([dealt[b * each:(b + 1) * each], part])
            for b, part in enumerate(np.array_split(order, count))
        ]
        return [[(int(i), int(s)) for i, s in zip(row, seeds[b])] for b, row in enumerate(rows)]
    return batches

# %%
cancer = table["cancer"].to_numpy()
deal = one_positive_batches(cancer, settings.batch_size, settings.positive_ratio, settings.seed)
seen = [i for b in deal(0) for i, _ in b]
assert all(cancer[[i for i, _ in b]].sum() >= 1 for e in range(3) for b in deal(e))
assert sorted(i for i in seen if not cancer[i]) == np.flatnonzero(cancer == 0).tolist()
print(
    f"{len(deal(0))} batches of {settings.batch_size}; the first has {cancer[[i for i, _ in deal(0)[0]]].sum()} "
    "positives"
)

# %% [markdown]
# ## Images and targets
# A breast may be flipped, moved, turned and lit differently and is still the same breast: `mammo/learning/augment` has the
# policies. A target that is a little below 1, and perhaps a little above 0, keeps the network from being certain about
# labels that are not.

# %%
#| export
def soft_targets(
    cancer: np.ndarray,            # 0 or 1 an image
    soft_positive: float,          # a positive's target is lower by this
    # share of the target that is spread over the two classes (Szegedy et al. 2016, section 7)
    label_smoothing: float = 0.0,
) -> np.ndarray:                   # float32, one an image
    "What the network is to say."
    return cancer.astype(np.float32) * (1 - soft_positive) * (1 - label_smoothing) + label_smoothing / 2

# %%
assert np.allclose(soft_targets(np.array([0, 1]), .1), [0, .9]) and np.allclose(soft_targets(np.array([0, 1]), 0, .1),
                                                                                [.05, .95])

# %% [markdown]
# Where a set comes with masks of its lesions, the network may learn where they are besides what they are: cell by cell
# of 16 pixels, whether a part of a lesion is there. One label an image says little about half a thousand pixels of
# lesion in sixty thousand of breast.

# %%
#| export
def lesion_cells(
    mask: np.ndarray,    # uint8 (height, width), multiples of CELL; lesions white
) -> np.ndarray:         # float32 (height / CELL, width / CELL), 1 where a lesion is
    "Cells that a lesion reaches into."
    h, w = mask.shape
    if h % CELL or w % CELL:
        raise ValueError(
            f"masks are learnt in cells of {CELL} pixels; height and width of the network's input, {h} and {w}, must "
            "be multiples of that"
        )
    return (mask.reshape(h // CELL, CELL, w // CELL, CELL).max((1, 3)) > 127).astype(np.float32)

# %%
square = np.zeros((64, 32), np.uint8)
square[15:40, 18:20] = 255
assert lesion_cells(square).tolist() == [[0, 1], [0, 1], [0, 1], [0, 0]]

# %%
#| export
class BreastCrops(Dataset):
    "Crops of a table as normalised tensors; `dataset[(index, seed)]`, seed -1 for no augmentation."
    def __init__(self,
        table: pd.DataFrame,         # patient_id, image_id, cancer
        images: Path,                # cleaned_images/
        settings: Train,             # height, width, targets, augmentation
        normalization: dict,         # mean and std of the network, on the scale 0..1
        # the target goes on with the cells in which a lesion is, from the column `mask` and cleaned_masks/
        masks: bool = False,
    ):
        self.paths = [crop_path(images, p, i) for p, i in zip(table["patient_id"], table["image_id"])]
        self.masks = [
            crop_path(images.with_name("cleaned_masks"), p, i) if isinstance(m, str) else None
            for p, i, m in zip(table["patient_id"], table["image_id"], table["mask"])
        ] if masks else None
        self.targets = soft_targets(table["cancer"].to_numpy(), settings.soft_positive, settings.label_smoothing)
        self.settings = settings
        self.mean, self.std = (torch.tensor(np.broadcast_to(normalization[k], 3).copy(), dtype=torch.float32).view(
            3, 1, 1) for k in ("mean", "std"))

    def __len__(self):
        return len(self.paths)

    def _read(self, path: Path) -> np.ndarray:
        stored = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if stored is None:
            raise FileNotFoundError(f"{path} cannot be read: run the crops stage again")
        return stored

    def picture(self, index: int, seed: int) -> np.ndarray:
        "uint8 (height, width), or with its mask (height, width, 2); augmented unless the seed is negative."
        size, rng = (self.settings.height, self.settings.width), np.random.default_rng(max(seed, 0))
        policy = self.settings.augment if seed >= 0 and rng.random() < self.settings.augmentation else "none"
        stored = self._read(self.paths[index])
        if policy in BEFORE_FITTING and self.masks is None:
            return fit_resize(augment(stored, rng, policy), *size)
        fitted = fit_resize(stored, *size)
        if self.masks is not None:
            fitted = np.dstack(
                [fitted,
                 fit_resize(self._read(path), *size) if (path := self.masks[index]) else np.zeros_like(fitted)])
        return augment(fitted, rng, policy)

    def __getitem__(self, at: tuple[int, int]):
        picture, target = self.picture(*at), torch.tensor([self.targets[at[0]]])
        grey = picture if self.masks is None else picture[..., 0]
        image = torch.from_numpy(np.ascontiguousarray(grey)).float().div(255).expand(3, -1, -1)
        if self.masks is not None:
            target = torch.cat([target, torch.from_numpy(lesion_cells(picture[..., 1])).flatten()])
        return (image - self.mean) / self.std, target

# %%
data = BreastCrops(table, images, settings, {"mean": .5, "std": .5})
fig, axes = plt.subplots(2, 8, figsize=(11, 5.5))
for row, index in enumerate([int(np.argmax(cancer)), int(np.argmin(cancer))]):
    for seed, ax in enumerate(axes[row], start=-1):
        ax.imshow(data.picture(index, seed), cmap="gray", vmin=0, vmax=255)
        ax.axis("off")
        ax.set_title("as it is" if seed < 0 else f"seed {seed}", fontsize=8)
fig.suptitle("one image a row: what the network is shown")
fig.tight_layout()
assert (data.picture(0, 5) == data.picture(0, 5)).all()

# %% [markdown]
# ## The network
# What it starts from is a word or a file. A recipe that continues another one names the file with a place for the fold
# in it.

# %%
#| export
def initial_weights(
    weights: str,   # a word that `create_network` knows, or a file; {fold} in it stands for the number
    fold: int,
    folder: Path,   # files are found as `locate` finds them from here
) -> str:           # the same, with the file's full path
    "What the network of a fold starts from."
    if weights in ("none", "imagenet", "imagenet_lite"):
        return weights
    word = "imagenet:" if weights.startswith("imagenet:") else ""
    return word + str(locate(folder, weights.removeprefix(word).format(fold=fold)))

def pointing_loss(
    output: torch.Tensor,   # (n, 2 + 2 cells), from `Pointing`
    target: torch.Tensor,   # (n, 1 + cells): the label, and where a lesion is
    weight: float,          # of the second part
) -> torch.Tensor:
    "Cross-entropy of the two judgements, and of the cells, where a cell with a lesion counts ten times."
    label, there = target[:, :1], target[:, 1:]
    wanted = torch.cat([there * (1 - label), there * label], 1)
    cells = F.binary_cross_entropy_with_logits(output[:, 2:], wanted, weight=1 + 9 * wanted)
    return F.binary_cross_entropy_with_logits(output[:, :2], label.expand(-1, 2)) + weight * cells

def build_network(
    settings: Train,          # network, global_pool, drop rates, lesion_weight
    weights: str = "none",    # initial weights
    seed: int = 0,            # of what the initial weights leave open: the last layer
) -> nn.Module:               # one logit an image
    "The classifier of a recipe."
    classifier = create_network(settings.network, weights=weights, num_classes=1, global_pool=settings.global_pool,
                                drop_rate=settings.drop_rate, drop_path_rate=settings.drop_path_rate, seed=seed,
                                freeze=settings.freeze)
    return Pointing(classifier) if settings.lesion_weight else classifier

def as_asked(
    model: nn.Module,
    settings: Train,     # mirrored
) -> nn.Module:
    "The classifier as it is validated and used: asked once, or about the mirror image too."
    return Mirrored(model) if settings.mirrored else model

def predict_probabilities(
    model: nn.Module,
    dataset: BreastCrops,
    batch_size: int = 32,
    workers: int = 0,         # data-loading processes
) -> np.ndarray:              # float32, one an image
    "Probabilities without augmentation."
    device = next(model.parameters()).device
    loader = DataLoader(
        dataset, batch_sampler=[[(i, -1) for i in range(s, min(s + batch_size, len(dataset)))]
                                for s in range(0, len(dataset), batch_size)], num_workers=workers)
    with torch.inference_mode():
        return np.concatenate([torch.sigmoid(model(x.to(device)).float()).flatten().cpu().numpy() for x, _ in loader])

def optimisation(
    settings: Train,
) -> Optimisation:
    "The part of a recipe that concerns the loop."
    shared = {f: getattr(settings, f) for f in Optimisation.__dataclass_fields__ if hasattr(settings, f)}
    return Optimisation(**shared)

# %% [markdown]
# A pointing network judges twice: by the mean over the picture, as every classifier, and by what its cells say,
# malignant against benign, in a sum of exponentials, in which a lesion of a few cells is not diluted by the breast
# around it. What is used is the mean of both. By hand: before the first step all cells say -4, so the second judgement
# is 0; for one benign picture of four cells with a lesion in the first, the cells cost ln(1 + e^4) = 4.018 where the
# lesion is, ten times over, and ln(1 + e^-4) = 0.018 elsewhere.

# %%
pointing = Pointing(build_network(replace(settings, lesion_weight=0.), seed=1))
x = torch.zeros(1, 3, 64, 32)
with torch.no_grad():
    assert torch.allclose(pointing.eval()(x), pointing.classifier(x) / 2)
    assert pointing.train()(x).shape == (1, 2 + 2 * lesion_cells(np.zeros((64, 32), np.uint8)).size)
output, target = torch.tensor([[0., 0., *[-4.] * 8]]), torch.tensor([[0., 1, 0, 0, 0]])
assert np.isclose(pointing_loss(output, target, 1.),
                  np.log(2) + (10 * np.log1p(np.exp(4)) + 7 * np.log1p(np.exp(-4))) / 8)

# %% [markdown]
# ## One fold
# After each epoch the averaged weights predict the fold that was held back; the predictions are kept, since the
# selection wants them all.

# %%
#| export
def train_fold(
    table: pd.DataFrame,   # folds.csv
    fold: int,             # held back
    images: Path,          # cleaned_images/
    folder: Path,          # checkpoints/fold_<fold>/
    settings: Train,
    identity: dict,        # what data and code this is; a training in progress of another is dropped
) -> pd.DataFrame:         # history: one row an epoch
    """Train on the other folds; after each epoch predict this one. A training that comes before it is in
    checkpoints/fold_<fold>/before/."""
    if settings.before:
        train_fold(table, fold, images, folder / "before", settings.before, identity)
    held, rest = table[table["fold"] == fold], table[table["fold"] != fold]
    weights = str(
        folder / "before" / f"epoch_{settings.before.epochs - 1}.safetensors") if settings.before else initial_weights(
            settings.weights, fold, folder)
    if (file := Path(weights.removeprefix("imagenet:"))).is_file():
        identity = {**identity, "weights": sha256(file)}
    model = build_network(settings, weights, settings.seed + fold)
    if settings.lesion_weight and ("mask" not in rest or rest["mask"].isna().all()):
        raise ValueError(
            "train.lesion_weight is for data sets with masks of their lesions, and this one has none: set it to 0")
    train_set, held_set = BreastCrops(rest, images, settings, model.normalization, masks=settings.lesion_weight
                                      > 0), BreastCrops(held, images, settings, model.normalization)
    loss = partial(pointing_loss,
                   weight=settings.lesion_weight) if settings.lesion_weight else F.binary_cross_entropy_with_logits

    def validate(eval_model: nn.Module, epoch: int) -> dict:
        predictions = held[["patient_id", "image_id", "laterality", "cancer", "fold"]].assign(
            epoch=epoch, probability=predict_probabilities(as_asked(eval_model, settings), held_set,
                                                           settings.val_batch_size, settings.workers))
        write_csv(folder / f"pred_{epoch}.csv", predictions)
        breasts = per_breast(predictions)
        threshold, pf1 = best_threshold(breasts["cancer"], breasts["probability"])
        return {"auc": auc(breasts["cancer"], breasts["probability"]), "pf1": pf1, "threshold": threshold}

    batches = one_positive_batches(rest["cancer"].to_numpy(), settings.batch_size, settings.positive_ratio,
                                   settings.seed + fold,
                                   join()[1])
    return fit(model, train_set, batches, loss, validate, optimisation(settings), folder,
               label=f"fold {fold}", identity={**identity, "recipe": asdict(settings), "fold": fold})

def chosen_folds(
    folds: str,            # numbers with spaces between; "": all
    table: pd.DataFrame,   # folds.csv
) -> list[int]:
    "The folds that are trained."
    there = sorted(set(table["fold"].tolist()) - {-1})  # external sets have none
    wrong = [k for k in folds.split() if k not in map(str, there)]
    if wrong:
        raise ValueError(f"train.folds: no fold {', '.join(wrong)}. There are {', '.join(map(str, there))}.")
    return [int(k) for k in folds.split()] or there

def settings_of(
    settings: Train,
    folds: list[int],   # all that there are
) -> dict[int, Train]:  # fold -> how it is trained
    "Every fold's own training: `by_fold`, or the same for all."
    if not settings.by_fold:
        return dict.fromkeys(folds, settings)
    if len(settings.by_fold) != len(folds):
        raise ValueError(
            f"train.by_fold says how {len(settings.by_fold)} folds are trained, and there are {len(folds)}")
    for k, own in zip(folds, settings.by_fold):
        differ = [f for f in NETWORK if getattr(own, f) != getattr(settings, f)]
        if differ:
            raise ValueError(
                f"train.by_fold: fold {k} has another {', '.join(differ)} than the others, and they are to be one "
                "ensemble"
            )
    return dict(zip(folds, settings.by_fold))

# %% [markdown]
# ## Run the stage
# With `processes` the stage has `torchrun` start so many, one a GPU.

# %%
#| export
def train_folds(
    folder: str,       # of the run; a rank of torchrun gets it as text
    overrides: dict,   # of the run, dotted field -> value
):
    "folds.csv and the crops -> checkpoints/fold_*/; finished folds are left alone."
    run = Run.open(folder, overrides)
    settings, reads = run.section("train"), [run.path("folds.csv"), run.path("processed/crops.csv")]
    table, checkpoints = read_table(reads[0], ["fold"]), run.path("checkpoints/")
    identity = {"reads": [sha256(r) for r in reads], "code": run.code("train")}
    own = settings_of(settings, chosen_folds("", table))
    for k in chosen_folds(settings.folds, table):
        train_fold(table, k, run.path("processed/cleaned_images"), checkpoints / f"fold_{k}", own[k], identity)

def run_stage(
    run: Run,
) -> pd.DataFrame:                   # history of all folds
    "folds.csv and the crops -> checkpoints/fold_*/ and checkpoints/history.csv."
    settings, folder = run.section("train"), run.path("checkpoints/")
    with run.stage("train"):
        if settings.processes > 1:
            launch(train_folds, [str(run.folder), run.overrides], settings.processes)
        else:
            train_folds(str(run.folder), run.overrides)
        folds = chosen_folds(settings.folds, read_table(run.path("folds.csv"), ["fold"]))
        history = pd.concat(
            [pd.DataFrame(read_json(folder / f"fold_{k}/done.json")["history"]).assign(fold=k) for k in folds],
            ignore_index=True)
        history["weights_sha256"] = [
            sha256(folder / f"fold_{r.fold}" / f"epoch_{r.epoch}.safetensors") for r in history.itertuples()
        ]
        write_csv(folder / "history.csv", history)
    return history

# %%
history = run_stage(run)
history.drop(columns=["weights_sha256"]).round(4)

# %% [markdown]
# ## What came out
# The loss should fall and the score of the held-back fold rise, epoch by epoch, fold by fold.

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 3))
for fold, h in history.groupby("fold"):
    for ax, column in zip(axes, ["loss", "auc", "pf1"]):
        ax.plot(h["epoch"], h[column], marker="o", label=f"fold {fold}")
for ax, title in zip(axes, ["training loss", "AUC per breast, held-back fold", "pF1 per breast, best threshold"]):
    ax.set(title=title, xlabel="epoch")
axes[0].legend(fontsize=8)
fig.tight_layout()

# %%
# the images that the last epoch of fold 0 found most and least suspicious
last = read_table(run.path(f"checkpoints/fold_0/pred_{history['epoch'].max()}.csv"),
                  ["probability"]).sort_values("probability")
fig, axes = plt.subplots(1, 8, figsize=(11, 3))
for ax, row in zip(axes, pd.concat([last.tail(4)[::-1], last.head(4)]).itertuples()):
    ax.imshow(cv2.imread(str(crop_path(images, row.patient_id, row.image_id)), cv2.IMREAD_GRAYSCALE), cmap="gray",
              vmin=0, vmax=255)
    ax.set_title(f"{row.probability:.2f}\n{'cancer' if row.cancer else 'no cancer'}", fontsize=8)
    ax.axis("off")
fig.tight_layout()

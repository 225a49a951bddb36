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
# # Blocks to learn from
# > What a network gets to see of a block, and what it has to say about each of its slices.
#
# Three neighbouring slices are the channels of one picture, and the middle one has the labels. All triplets of a block
# get one draw of the augmentation, since they are one body. A label of a slice is the label of its patient times the
# share of the organ in the slice.

# %%
#| default_exp trauma.learning.blocks

# %%
#| export
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from mammo_nb.trauma.reading.blocks import middle_rows
from mammo_nb.trauma.reading.organs import cut, read_masks
from mammo_nb.trauma.recipes import ORGANS, Model

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt

from mammo_nb.trauma.reading.organs import write_masks

# %% tags=["parameters"]
size, seed = 64, 7   # side of the network's input in pixels, and seed of the examples

# %% [markdown]
# ## Soft labels
# A healthy patient has zeros in every slice. Kidneys have one label, and the better visible one counts.

# %%
#| export
VISIBILITY = [f"visibility_{organ}" for organ in ORGANS]

def soft_labels(
    slices: pd.DataFrame,   # rows of info.csv: VISIBILITY, extravasation, bowel
    patient: pd.Series,     # a row of folds.csv: the labels of the patient
    columns: list[str],     # of recipes.COLUMNS
) -> np.ndarray:            # float32 (slices, columns), 0 to 1
    "The labels of slices."
    seen = {organ: slices[f"visibility_{organ}"].to_numpy(np.float64) for organ in ORGANS}
    seen["kidney"] = np.maximum(seen["left_kidney"], seen["right_kidney"])
    labels = []
    for column in columns:
        organ, _, grade = column.partition("_")
        if organ in ("bowel", "extravasation"):
            marked = slices[organ].to_numpy(np.float64)
            labels.append(marked * seen["bowel"] if column == "bowel_injury" else marked)
        else:
            grades = ("low", "high") if grade == "injury" else (grade,)
            labels.append(seen[organ] * sum(patient[f"{organ}_{g}"] for g in grades))
    return np.stack(labels, 1).astype(np.float32)

# %%
drawn = pd.DataFrame({v: np.r_[0, .5, 1] for v in VISIBILITY}).assign(
    visibility_left_kidney=[.2, .1, 0], bowel=[0, 1, 1], extravasation=[0, 0, 1])
hurt = pd.Series({"liver_low": 0, "liver_high": 1, "kidney_low": 1, "kidney_high": 0, "spleen_low": 0,
                  "spleen_high": 0})
names = ["liver_injury", "liver_low", "liver_high", "kidney_low", "spleen_injury", "bowel_injury", "bowel_marked",
         "extravasation_injury"]
labels = soft_labels(drawn, hurt, names)
assert labels.T.tolist() == [[0, .5, 1], [0, 0, 0], [0, .5, 1], list(np.float32([.2, .5, 1])), [0, 0, 0], [0, .5, 1],
                             [0, 1, 1], [0, 0, 1]]
assert not soft_labels(drawn.assign(bowel=0, extravasation=0), hurt * 0, names).any()

# %% [markdown]
# ## Pictures and masks
# The organs are cut out of the slices, or the whole frame is used. Each slice is then stretched to a square.

# %%
#| export
def read_triplets(
    volume: np.ndarray,   # uint8 (slices, rows, columns), may be mapped from a file
    places: np.ndarray,   # the slices of the block
    crop: tuple,          # top, bottom, left, right as fractions; recipes with crop=False pass the whole frame
    size: int,            # side of the result, pixels
) -> np.ndarray:          # uint8 (triplets, 3, size, size)
    "The pictures of a block."
    count = len(places) // 3
    pictures = np.empty((3 * count, size, size), np.uint8)
    for k, place in enumerate(places[:3 * count]):
        pictures[k] = cv2.resize(np.ascontiguousarray(cut(volume[place], crop)), (size, size))
    return pictures.reshape(count, 3, size, size)

def read_targets(
    masks: np.ndarray,    # bool (slices, organs, side, side), in the order of ORGANS
    names: list[str],     # of recipes.MASKS
    crop: tuple,          # as for `read_triplets`
    size: int,            # side of the result, pixels
) -> np.ndarray:          # uint8 (slices, names, size, size), 0 or 1
    "The masks that the auxiliary decoder has to draw; both kidneys are one mask."
    of = {organ: cut(masks[:, k], crop) for k, organ in enumerate(ORGANS)}
    of["kidneys"] = of["left_kidney"] | of["right_kidney"]
    return np.stack([[cv2.resize(np.ascontiguousarray(of[name][k], np.uint8), (size, size),
                                 interpolation=cv2.INTER_NEAREST) for name in names] for k in range(len(masks))])

# %% [markdown]
# ## Augmentation
# Perspective, two flips and a rotation by up to 25 degrees, each in half of the cases. Pictures and masks are moved
# together. The random numbers come from the seed of the sample only.

# %%
#| export
def augmentation(
    flips: str = "both",  # both or horizontal
) -> v2.Transform:
    "The transforms of a block."
    return v2.Compose([
        v2.RandomPerspective(0.2, p=0.5),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomVerticalFlip(0.5 if flips == "both" else 0.0),
        v2.RandomApply([v2.RandomRotation(25, v2.InterpolationMode.BILINEAR)], 0.5)])

def augmented(
    transform: v2.Transform,
    pictures: torch.Tensor,    # uint8 (triplets, 3, size, size)
    masks: torch.Tensor,       # uint8 (triplets, names, size, size)
    seed: int,                 # of this sample
) -> tuple[torch.Tensor, torch.Tensor]:
    "One draw of the transforms for all slices of a block."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        moved = transform(tv_tensors.Image(pictures.flatten(0, 1)), tv_tensors.Mask(masks.flatten(0, 1)))
    return tuple(m.as_subclass(torch.Tensor).view_as(t) for m, t in zip(moved, (pictures, masks)))

# %% [markdown]
# ## The data set
# `dataset[(row, seed)]` is a block, without augmentation for the seed -1.

# %%
#| export
CROP = ["top", "bottom", "left", "right"]

class BlockDataset(torch.utils.data.Dataset):
    "Blocks of slices with labels and masks."
    def __init__(self,
        blocks: pd.DataFrame,     # blocks.csv, the rows that are used
        info: pd.DataFrame,       # info.csv: all slices of their series
        patients: pd.DataFrame,   # folds.csv: labels of their patients
        processed: Path,          # the folder with volumes/ and masks/
        model: Model,             # columns, masks, crop, size, flips
    ):
        self.columns, self.names, self.size = model.columns.split(), model.masks.split(), model.size
        self.processed, self.transform = Path(processed), augmentation(model.flips)
        of = {key: rows.sort_values("place") for key, rows in info.groupby(["patient_id", "series"])}
        labels = patients.set_index("patient_id")
        self.files, self.places, self.crops, self.labels = [], [], [], []
        for block in blocks.itertuples():
            slices, places = of[block.patient_id, block.series], np.array(block.places.split(), int)
            self.files.append(f"{block.patient_id}_{block.series}.npy")
            self.places.append(places)
            self.crops.append(tuple(slices[CROP].iloc[0]) if model.crop else (0.0, 1.0, 0.0, 1.0))
            self.labels.append(torch.from_numpy(soft_labels(slices.iloc[middle_rows(places)],
                                                            labels.loc[block.patient_id], self.columns)))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, at: tuple[int, int]):
        row, seed = at
        places, crop = self.places[row], self.crops[row]
        volume = np.load(self.processed / "volumes" / self.files[row], mmap_mode="r")
        pictures = torch.from_numpy(read_triplets(volume, places, crop, self.size))
        masks = read_masks(self.processed / "masks" / self.files[row], middle_rows(places))
        masks = torch.from_numpy(read_targets(masks, self.names, crop, self.size))
        if seed >= 0:
            pictures, masks = augmented(self.transform, pictures, masks, seed)
        return {"image": pictures.float() / 255}, {"labels": self.labels[row], "masks": masks.float()}

# %% [markdown]
# ## Epochs
# An epoch has all blocks of injured patients, and as many of the others, drawn with replacement. On several GPUs each
# process takes every n-th batch, so the number of batches is a multiple of n.

# %%
#| export
def balanced_batches(
    injured: np.ndarray,   # bool, whether the patient of each block is injured
    batch_size: int,
    seed: int,             # of order, choice and augmentation
    ranks: int = 1,        # number of processes that share the batches
):                         # f(epoch) -> batches of (row, seed)
    "Batches of an epoch with equally many blocks of injured and of healthy patients. Raises ValueError."
    hurt, healthy = np.flatnonzero(injured), np.flatnonzero(~np.asarray(injured, bool))
    if not len(hurt) or not len(healthy):
        raise ValueError(f"Training needs injured and healthy patients, and the training set has {len(hurt)} blocks of "
                         f"injured and {len(healthy)} of healthy ones. Choose other folds or another data set.")

    def batches(epoch: int) -> list[list[tuple[int, int]]]:
        rng = np.random.default_rng([seed, epoch])
        rows = rng.permutation(np.concatenate([hurt, rng.choice(healthy, len(hurt))]))
        seeds = rng.integers(2**31, size=len(rows))
        number = -(-len(rows) // batch_size // ranks) * ranks
        return [list(zip(part.tolist(), s.tolist())) for part, s in zip(np.array_split(rows, number),
                                                                       np.array_split(seeds, number))]
    return batches

# %%
injured = np.arange(20) < 6
batches = balanced_batches(injured, 4, seed)
for epoch in range(3):
    rows = [r for batch in batches(epoch) for r, _ in batch]
    assert sorted(r for r in rows if r < 6) == list(range(6)) and len(rows) == 12
assert batches(1) == batches(1) != batches(2) and {len(b) for b in batches(0)} == {4}

# %% [markdown]
# ## What came out
# A drawn body whose liver grows and shrinks. All pictures of a block are moved alike, and the masks with them.

# %%
folder = Path(tempfile.mkdtemp())
z, y, x = np.mgrid[:30, :80, :96]
liver = np.hypot(np.hypot(z - 15, (y - 34) / 1.6), (x - 34) / 1.8) < 11
bodies = np.hypot((y - 40) / 30, (x - 48) / 40) < 1
volume = (40 * bodies + 100 * liver + 30 * (np.hypot(y - 60, x - 48) < 5)).astype(np.uint8)
(folder / "volumes").mkdir()
np.save(folder / "volumes" / "7_1.npy", volume)
small = np.zeros((30, 5, 32, 32), bool)
small[:, 0] = [cv2.resize(m.astype(np.uint8), (32, 32)) for m in liver]
write_masks(folder / "masks" / "7_1.npy", small)
shares = small[:, 0].sum((1, 2)) / small[:, 0].sum((1, 2)).max()
info = pd.DataFrame({"patient_id": "7", "series": "1", "place": range(30), "bowel": 0, "extravasation": 0,
                     "top": 0.1, "bottom": 0.8, "left": 0.05, "right": 0.9, **dict.fromkeys(VISIBILITY, 0.0)})
info["visibility_liver"] = shares
blocks = pd.DataFrame([{"patient_id": "7", "series": "1", "places": " ".join(map(str, range(30)))}])
dataset = BlockDataset(blocks, info, pd.DataFrame([{"patient_id": "7", **hurt}]), folder, Model(size=size))
inputs, targets = dataset[0, -1]
assert inputs["image"].shape == (10, 3, size, size) and targets["masks"].shape == (10, 4, size, size)
assert targets["labels"].shape == (10, 10) and targets["labels"][:, 0].max() > .95
same, again, other = (dataset[0, s][0]["image"] for s in (seed, seed, seed + 1))
assert torch.equal(same, again) and not torch.equal(same, other)
fig, axes = plt.subplots(4, 8, figsize=(11, 5.6))
for ax_row, s in zip(axes, (-1, seed, seed + 1, seed + 2)):
    shown, target = dataset[0, s]
    for ax, k in zip(ax_row, range(1, 9)):
        ax.imshow(shown["image"][k, 1], cmap="gray", vmin=0, vmax=.7)
        ax.contour(target["masks"][k, 0], [0.5], colors="orange", linewidths=1)
        ax.set_title(f"{target['labels'][k, 0]:.2f}", fontsize=8)
        ax.axis("off")
fig.tight_layout(pad=0.3)

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

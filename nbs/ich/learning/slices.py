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
# # Slices
# > What a network gets to see of a slice: the crop, three slices at once, augmentation, and three views.
#
# A picture of a slice has three windows as channels. The network gets the head, cut out and resized. In training it is
# mirrored, turned and moved, because a hemorrhage may be on either side and a patient seldom lies straight.

# %%
#| default_exp ich.learning.slices

# %%
#| export
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from mammo_nb.core.errors import ProjectError
from mammo_nb.ich.learning.embeddings import VIEWS
from mammo_nb.ich.learning.encoder import Encoder
from mammo_nb.ich.reading import squares
from mammo_nb.ich.reading.competition import read_table
from mammo_nb.ich.recipes import View, classes_of

# %%
#| hide
import tempfile

from mammo_nb.core.pictures import sheet, write_png

# %% tags=["parameters"]
size, seed = 96, 7   # side of the network's input in pixels, and seed of the examples

# %% [markdown]
# A drawn series of five slices. Brain, blood and bone have other grey levels in each window.

# %%
folder = Path(tempfile.mkdtemp())
rows = []
for place in range(5):
    picture = np.zeros((128, 160, 3), np.uint8)
    half = 52 - 6 * abs(place - 2)
    cv2.ellipse(picture, (70, 66), (half - 8, half), 12, 0, 360, (255, 200, 230), -1)
    cv2.ellipse(picture, (70, 66), (half - 13, half - 5), 12, 0, 360, (110, 70, 130), -1)
    if place in (2, 3):
        cv2.circle(picture, (88, 50), 8, (210, 110, 150), -1)
    write_png(folder / f"slice{place}.png", picture)
    x, y, w, h = cv2.boundingRect(picture.max(2))
    rows.append({"patient_id": "p", "study": "t", "series": "s", "image_id": f"slice{place}", "place": place,
                 "x0": x, "y0": y, "x1": x + w, "y1": y + h, "subdural": 0, "any": int(place in (2, 3))})
table = pd.DataFrame(rows).sample(frac=1, random_state=seed)

# %% [markdown]
# ## The crop
# `reading/squares` cuts the head out. A view may also show the whole slice.

# %%
#| export
class PictureError(ProjectError):
    "A picture of a slice that cannot be read."

def read_picture(
    path: Path,     # processed/pictures/<image_id>.png
) -> np.ndarray:    # uint8 (rows, columns, 3): brain, subdural and bone window
    "Read the picture of a slice. Raises PictureError."
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise PictureError(f"{Path(path).name} in {Path(path).parent} cannot be read. Run the stage prepare again.")
    return picture

def read_view(
    picture: np.ndarray,     # uint8 (rows, columns, 3)
    box,                     # x0, y0, x1, y1 of the head, pixels; not a number where there is none
    size: int,               # side of the result, pixels
    crop: bool = True,       # whether the head is cut out
    faithful: bool = False,  # whether a whole picture is stretched to a square, as in the original
) -> np.ndarray:             # uint8 (size, size, 3)
    "What a view shows of a picture. Raises PictureError for a box outside of it."
    if not crop or not np.isfinite(np.asarray(box, float)).all():
        return squares.read_view(picture, None, size, faithful)
    x0, y0, x1, y1 = (int(v) for v in box)
    if not (0 <= x0 < x1 <= picture.shape[1] and 0 <= y0 < y1 <= picture.shape[0]):
        raise PictureError(f"The box {(x0, y0, x1, y1)} is not inside of a picture of {picture.shape[:2]} rows and "
                           "columns. Run the stage prepare again.")
    return squares.read_view(picture, (x0, y0, x1, y1), size, faithful)

# %%
picture, box = read_picture(folder / "slice2.png"), table.set_index("place").loc[2, ["x0", "y0", "x1", "y1"]]
shown = [read_view(picture, box, size), read_view(picture, box, size, crop=False)]
assert all(s.shape == (size, size, 3) for s in shown)
try:
    read_view(picture, (0, 0, 999, 5), size)
except PictureError as e:
    print(e)
sheet(shown, columns=2, title="cut out; whole");

# %% [markdown]
# ## Augmentation
# The original's: mirrored in half of the cases; shifted by up to 5 %, scaled by up to 5 % and rotated by up to 20
# degrees in three of ten cases, with the border repeated; transposed in half of the cases. The random numbers come from
# the seed of the sample only.

# %%
#| export
def augment_original(
    picture: np.ndarray,   # uint8 (size, size, channels)
    seed: int,             # of this sample
) -> np.ndarray:           # uint8, same shape
    "Mirror, shift, scale, rotate and transpose at random."
    rng = np.random.default_rng(seed)
    mirrored, moved, transposed = rng.random(3) < (0.5, 0.3, 0.5)
    if mirrored:
        picture = picture[:, ::-1]
    if moved:
        h, w = picture.shape[:2]
        angle, scale = rng.uniform(-20, 20), rng.uniform(0.95, 1.05)
        matrix = cv2.getRotationMatrix2D((w / 2, h / 2), angle, scale)
        matrix[:, 2] += rng.uniform(-0.05, 0.05, 2) * (w, h)
        picture = cv2.warpAffine(np.ascontiguousarray(picture), matrix, (w, h), flags=cv2.INTER_LINEAR,
                                 borderMode=cv2.BORDER_REPLICATE)
    if transposed:
        picture = picture.transpose(1, 0, 2)
    return np.ascontiguousarray(picture)

# %%
many = [augment_original(shown[0], k) for k in range(12)]
assert all((augment_original(shown[0], k) == m).all() for k, m in enumerate(many))
draws = [augment_original(shown[0], k) for k in range(1000)]
exact = [shown[0], shown[0][:, ::-1], shown[0].transpose(1, 0, 2), shown[0][:, ::-1].transpose(1, 0, 2)]
shares = [np.mean([np.array_equal(d, e) for d in draws]) for e in exact]
assert all(abs(s - 0.7 / 4) < 0.04 for s in shares)
sheet(many, title="twelve seeds");

# %% [markdown]
# A small data set needs more. Here each slice is turned, scaled, moved and made brighter or darker every time, but not
# transposed, because patients lie on their back. What comes in at the border is black, like the air around a head.

# %%
#| export
def augment_upright(
    picture: np.ndarray,   # uint8 (size, size, channels)
    seed: int,             # of this sample
) -> np.ndarray:           # uint8, same shape
    "Mirror, shift, scale and rotate, and change contrast and brightness, at random."
    rng = np.random.default_rng(seed)
    h, w = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), rng.uniform(-15, 15), rng.uniform(0.9, 1.1))
    matrix[:, 2] += rng.uniform(-0.06, 0.06, 2) * (w, h)
    picture = cv2.warpAffine(picture[:, ::-1] if rng.random() < 0.5 else picture, matrix, (w, h))
    contrast, brightness = rng.uniform(0.85, 1.15), rng.uniform(-19, 19)
    levels = (np.arange(256) - 102) * contrast + 102 + brightness
    return cv2.LUT(picture, levels.clip(0, 255).astype(np.uint8))

AUGMENTATIONS = {"original": augment_original, "upright": augment_upright, "none": None}

# %%
many = [augment_upright(shown[0], k) for k in range(12)]
assert all((augment_upright(shown[0], k) == m).all() for k, m in enumerate(many))
sheet(many, title="twelve seeds, upright");

# %% [markdown]
# ## Three slices
# A hemorrhage reaches over several slices, and bone that looks like one does not. With `neighbours` the three channels
# are the brain window of the slice before, the slice and the slice after, all cut to the box of the middle one. At the
# ends of a series the last slice is repeated.

# %%
#| export
KEY = ["patient_id", "study", "series"]  # columns that identify a series
def read_folds(
    path: Path,        # folds.csv
) -> pd.DataFrame:     # identifiers are text, also where they look like numbers
    "Read the table of the slices that are learned from."
    return read_table(path)

def with_neighbours(
    table: pd.DataFrame,  # all slices of their series: KEY, image_id, place
) -> pd.DataFrame:        # also previous and next: image_id of the neighbours, at an end of the slice itself
    "Find the slice before and the slice after each slice; rows keep their order."
    series = table.sort_values([*KEY, "place"], kind="stable").groupby(KEY, sort=False)["image_id"]
    return table.assign(previous=series.shift(1).fillna(table["image_id"]),
                        next=series.shift(-1).fillna(table["image_id"]))

# %%
near = with_neighbours(table).set_index("place").sort_index()
table.to_csv(folder / "folds.csv", index=False)
assert read_folds(folder / "folds.csv").equals(table.reset_index(drop=True))
assert list(near.index) == [0, 1, 2, 3, 4] and with_neighbours(table)["image_id"].equals(table["image_id"])
assert near["previous"].tolist() == ["slice0", "slice0", "slice1", "slice2", "slice3"]
assert near["next"].tolist() == ["slice1", "slice2", "slice3", "slice4", "slice4"]

# %% [markdown]
# ## The data set
# Small data sets are read once and kept in memory as they are after the crop. The table must hold whole series, since
# neighbours are looked up in it; what a training uses of it is a matter of its batches.

# %%
#| export
KEPT = 2**29  # bytes of pictures that are kept in memory, for each data-loading process

class SlicePictures(torch.utils.data.Dataset):
    "Pictures and labels of slices: `dataset[(row, seed)]`, no augmentation for the seed -1."
    def __init__(self,
        table: pd.DataFrame,      # folds.csv
        pictures: Path,           # processed/pictures/
        view: View,               # channels, crop
        size: int,                # side, pixels
        normalization: dict,      # mean and std of three channels, on the scale 0..1
        augment: str = "none",    # a key of AUGMENTATIONS
        faithful: bool = False,   # the original's crop
    ):
        table = with_neighbours(table)
        self.ids, self.folder, self.view, self.size = table["image_id"].tolist(), Path(pictures), view, size
        self.near = table[["previous", "image_id", "next"]].to_numpy()
        self.boxes = table[["x0", "y0", "x1", "y1"]].to_numpy(float)
        self.labels = torch.tensor(table[list(classes_of(table))].to_numpy(np.float32))
        self.augment, self.faithful = AUGMENTATIONS[augment], faithful
        self.mean, self.std = (torch.tensor(normalization[k]).view(3, 1, 1) for k in ("mean", "std"))
        self.keeps = len(table) * size * size * 3 <= KEPT
        self.kept = {}

    def __len__(self):
        return len(self.ids)

    def _picture(self, row: int) -> np.ndarray:
        def cut(image: str) -> np.ndarray:
            return read_view(read_picture(self.folder / f"{image}.png"), self.boxes[row], self.size, self.view.crop,
                             self.faithful)
        if self.view.channels == "windows":
            return cut(self.ids[row])
        return np.dstack([cut(image)[..., 0] for image in self.near[row]])

    def picture(self, row: int, seed: int = -1) -> np.ndarray:
        "uint8 (size, size, 3), augmented unless the seed is negative."
        picture = self.kept.get(row)
        if picture is None:
            picture = self._picture(row)
            if self.keeps:
                self.kept[row] = picture
        return self.augment(picture, seed) if self.augment and seed >= 0 else picture

    def tensor(self, row: int, seed: int = -1) -> torch.Tensor:
        "float32 (3, size, size), normalised."
        grey = torch.from_numpy(np.ascontiguousarray(self.picture(row, seed).transpose(2, 0, 1)))
        return (grey.float() / 255 - self.mean) / self.std

    def __getitem__(self, at: tuple[int, int]):
        return self.tensor(*at), self.labels[at[0]]

# %% [markdown]
# The slices of the drawn series as both kinds of classifiers see them. In the lower row red, green and blue are three
# slices.

# %%
plain = {"mean": (0., 0., 0.), "std": (1., 1., 1.)}
three = {name: SlicePictures(table, folder, View(name, name), size, plain) for name in ("windows", "neighbours")}
sheet([three[name].picture(r) for name in three for r in np.argsort(table["place"].to_numpy())], columns=5)
middle = table["place"].tolist().index(1)
picture, labels = three["neighbours"][middle, -1]
before, here = (three["windows"].picture(table["place"].tolist().index(k))[..., 0] for k in (0, 1))
assert np.array_equal(three["neighbours"].picture(middle)[..., 1], here) and labels.tolist() == [0, 0]
assert picture.shape == (3, size, size) and 0 <= picture.min() and picture.max() <= 1

# %% [markdown]
# An epoch has each slice once, in batches of nearly equal size. Order and augmentation depend on seed and epoch only.
# On several GPUs each process takes every n-th batch, so the number of batches is a multiple of n.

# %%
#| export
def shuffled_batches(
    count: int,       # samples
    batch_size: int,  # largest size of a batch
    seed: int,
    ranks: int = 1,   # number of processes that share the batches
):                    # f(epoch) -> batches of (index, seed)
    "Batches in which each sample is once in an epoch."
    number = -(-count // batch_size // ranks) * ranks

    def batches(epoch: int) -> list[list[tuple[int, int]]]:
        rng = np.random.default_rng([seed, epoch])
        order, seeds = rng.permutation(count), rng.integers(2**31, size=count)
        return [list(zip(part.tolist(), seeds[part].tolist())) for part in np.array_split(order, number)]
    return batches

# %%
batches = shuffled_batches(103, 10, seed, ranks=2)
assert batches(1) == batches(1) != batches(2) and len(batches(0)) == 12
assert sorted(i for b in batches(0) for i, _ in b) == list(range(103)) and {len(b) for b in batches(0)} == {8, 9}

# %% [markdown]
# ## Three views
# A mirrored or transposed slice has the same labels, so the features of three views are averaged (TTA).

# %%
#| export
def apply_view(
    batch: torch.Tensor,   # (..., height, width), square
    view: str,             # plain, flip or transpose
) -> torch.Tensor:         # same shape
    "Mirror or transpose pictures."
    if view not in VIEWS:
        raise ValueError(f"There is no view {view!r}. Choose one of {', '.join(VIEWS)}.")
    if view == "plain":
        return batch
    return batch.flip(-1) if view == "flip" else batch.transpose(-1, -2)

def encode(
    encoder: Encoder,
    dataset: SlicePictures,
    batch_size: int,
    workers: int = 0,        # data-loading processes
    view: str = "plain",     # of VIEWS
    label: str = "",         # shown beside the progress bar; "": no bar
    rows: list[int] | None = None,      # of the data set; None: all
) -> tuple[np.ndarray, np.ndarray]:     # embeddings float32 (n, features), probabilities float32 (n, classes)
    "Features and probabilities of slices, without augmentation, in evaluation mode."
    rows = range(len(dataset)) if rows is None else rows
    device = next(encoder.parameters()).device
    batches = [[(r, -1) for r in rows[s:s + batch_size]] for s in range(0, len(rows), batch_size)]
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, pin_memory=device.type == "cuda")
    features, probabilities = [], []
    encoder.eval()
    with torch.inference_mode(), tqdm(total=len(rows), unit=" slices", mininterval=1, desc=label,
                                      disable=not label) as bar:
        for x, _ in loader:
            seen = apply_view(x.to(device), view).contiguous(memory_format=torch.channels_last)
            found = encoder.features(seen).float()
            features.append(found.cpu().numpy())
            probabilities.append(torch.sigmoid(encoder.classify(found)).float().cpu().numpy())
            bar.update(len(x))
    return np.concatenate(features), np.concatenate(probabilities)

# %% [markdown]
# ## What came out
# Features of the drawn slices, from a network with random weights. A flip twice is no flip, and the batch in which a
# slice is does not matter.

# %%
encoder = Encoder("resnet10t", 2)
data = three["windows"]
x = torch.stack([data.tensor(r) for r in range(5)])
for view in VIEWS:
    assert torch.equal(apply_view(apply_view(x, view), view), x)
embeddings, probabilities = encode(encoder, data, 3)
alone, _ = encode(encoder, data, 1, rows=[4, 2])
assert embeddings.shape == (5, 512) and probabilities.shape == (5, 2)
assert np.allclose(alone, embeddings[[4, 2]], atol=1e-5)
pd.DataFrame(probabilities, index=table["image_id"], columns=["subdural", "any"]).round(3)

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

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
# # Series
# > A data set whose samples are series: the features of all slices in their order, and their labels.

# %%
#| default_exp ich.learning.series

# %%
#| export
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mammo_nb.core.batches import pad, step_mask
from mammo_nb.ich.learning.losses import weighted_log_loss

# %%
#| hide
from mammo_nb.ich.learning.recurrent import Recurrent

# %% tags=["parameters"]
lengths = (5, 3, 1)   # slices of the small series below

# %%
#| export
def rows_of_series(
    table: pd.DataFrame,       # series, place, and a row for each slice
) -> list[np.ndarray]:         # rows of each series, in the order of the patient
    "Rows of the table for each series, in the order in which the series first appear."
    places = table["place"].to_numpy()
    groups = pd.Series(np.arange(len(table))).groupby(table["series"].to_numpy(), sort=False)
    return [rows.to_numpy()[np.argsort(places[rows], kind="stable")] for _, rows in groups]

class SeriesEmbeddings(Dataset):
    "Series of features with the labels of their slices."
    def __init__(self,
        embeddings: np.ndarray,   # float32 (n, features), a row for each row of the table
        table: pd.DataFrame,      # series, place and the labels
        classes: tuple[str, ...], # columns of labels
        views: np.ndarray | None = None,  # float32 (views, n, features): a training reads one of them; None: the first
    ):
        self.rows = rows_of_series(table)
        self.embeddings = torch.from_numpy(np.ascontiguousarray(embeddings, np.float32))
        self.views = self.embeddings[None] if views is None else torch.from_numpy(views)
        self.labels = torch.tensor(table[list(classes)].to_numpy(np.float32))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self,
        at: tuple[int, int],   # number of the series, and a seed, which chooses the view; -1: `embeddings`
    ) -> tuple[torch.Tensor, torch.Tensor]:  # features (length, features), labels (length, classes)
        rows, seed = self.rows[at[0]], at[1]
        read = self.embeddings if seed < 0 else self.views[seed % len(self.views)]
        return read[rows], self.labels[rows]

def pad_series(
    samples: list[tuple[torch.Tensor, torch.Tensor]],  # features and labels of some series
) -> tuple[dict, dict]:         # values padded at the end, and lengths, of both
    "Make a batch of series of unequal length."
    features, labels = zip(*samples)
    return pad(list(features)), pad(list(labels))

def series_loss(
    logits: torch.Tensor,   # (n, longest, classes)
    labels: dict,           # values (n, longest, classes), lengths (n,)
) -> torch.Tensor:          # scalar
    "The weighted log loss over the slices; padding has no part in it."
    there = step_mask(labels["lengths"], logits.shape[1])
    return weighted_log_loss(logits[there], labels["values"][there])

# %%
table = pd.concat([pd.DataFrame({"series": f"s{k}", "place": range(n), "any": [1] * n}) for k, n in enumerate(lengths)])
table = table.sample(frac=1, random_state=0).reset_index(drop=True)
features = np.stack([table["place"], table["series"].str[1:].astype(int)], 1).astype(np.float32)
data = SeriesEmbeddings(features, table, ("any",))
assert all(data[k, 0][0][:, 0].tolist() == list(range(len(data.rows[k]))) for k in range(len(lengths)))
two = SeriesEmbeddings(features, table, ("any",), np.stack([features, -features]))
assert torch.equal(two[0, 5][0], -two[0, 4][0]) and torch.equal(two[0, -1][0], two[0, 4][0])
inputs, targets = pad_series([data[k, 0] for k in range(len(lengths))])
right = torch.where(step_mask(targets["lengths"], max(lengths))[..., None], 30., -30.)  # wrong in the padding only
assert series_loss(right, targets) < 1e-9

# %% [markdown]
# A classifier is surer of the slices that it was trained on than of others. A sequence model that learns from their
# features becomes too sure as well, and a confident mistake costs much. With smoothed labels it is never to be certain:
# a part of each label is replaced by the mean of the class.

# %%
#| export
def smoothed_loss(
    smoothing: float,     # share of a label that is replaced
    rates: torch.Tensor,  # (classes,) means of the labels of the training
):                        # f(logits, labels) -> scalar, as `series_loss`
    "The loss against smoothed labels."
    def loss(logits: torch.Tensor, labels: dict) -> torch.Tensor:
        values = (1 - smoothing) * labels["values"] + smoothing * rates.to(logits.device)
        return series_loss(logits, {**labels, "values": values})
    return loss

# %%
rate = torch.tensor([.2])
best = torch.full((len(lengths), max(lengths), 1), .9 + .1 * .2).logit()   # all labels are 1
assert smoothed_loss(.1, rate)(best, targets) < smoothed_loss(.1, rate)(best + .1, targets)
assert smoothed_loss(.1, rate)(best, targets) < smoothed_loss(.1, rate)(best - .1, targets)
assert smoothed_loss(0., rate)(best, targets) == series_loss(best, targets)

# %% [markdown]
# ## Predict
# Series of one batch are padded together. A model that does not read padding gives the same numbers for any batch.

# %%
#| export
def predict_series(
    model: nn.Module,        # padded series -> logits, on any device
    data: SeriesEmbeddings,
    batch_size: int = 16,    # series
) -> np.ndarray:             # float32 (n, classes), probabilities in the order of the table
    "Probabilities of all slices of a data set."
    place = next(model.parameters()).device
    found = np.zeros(data.labels.shape, np.float32)
    loader = DataLoader(data, batch_sampler=[[(k, -1) for k in range(s, min(s + batch_size, len(data)))]
                                             for s in range(0, len(data), batch_size)], collate_fn=pad_series)
    model.eval()
    with torch.no_grad():
        done = 0
        for inputs, _ in loader:
            probabilities = torch.sigmoid(model({k: v.to(place) for k, v in inputs.items()}).float()).cpu().numpy()
            for own, length in zip(probabilities, inputs["lengths"].tolist()):
                found[data.rows[done]] = own[:length]
                done += 1
    return found

# %%
torch.manual_seed(0)
model = Recurrent(2, 2, 1)
one, many = (predict_series(model, data, n) for n in (1, 3))
assert np.allclose(one, many, atol=1e-6) and one.shape == (sum(lengths), 1)
table.assign(p_any=many[:, 0]).sort_values(["series", "place"])

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

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
# # End to end
# > Classifier and sequence model trained as one, from the weights of the two stages.
#
# The classifier has learned to judge a slice alone. Nothing has told it which features help a sequence model. The
# authors of the original named this as the next step if they had had more time: to make one model of the two, so that
# the loss of the series reaches the first convolution. A sample is then a whole series of pictures.

# %%
#| default_exp ich.end2end

# %%
#| export
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from torch import nn

from mammo_nb.core.batches import step_mask
from mammo_nb.core.files import read_json, sha256, write_csv, write_json
from mammo_nb.core.metrics import auc
from mammo_nb.core.networks import load_weights
from mammo_nb.core.ranks import join, side_by_side
from mammo_nb.core.recipes import RecipeError
from mammo_nb.core.runs import Run
from mammo_nb.core.train import fit
from mammo_nb.ich.classify import build_encoder, slice_pictures
from mammo_nb.ich.learning.embeddings import VIEWS
from mammo_nb.ich.learning.encoder import Encoder, load_encoder
from mammo_nb.ich.learning.losses import log_loss
from mammo_nb.ich.learning.recurrent import Recurrent
from mammo_nb.ich.learning.series import pad_series, rows_of_series, series_loss
from mammo_nb.ich.learning.slices import SlicePictures, apply_view, read_folds, shuffled_batches
from mammo_nb.ich.recipes import classes_of

# %%
#| hide
from mammo_nb.core.pictures import sheet
from mammo_nb.core.practice import practice
from mammo_nb.core.train import from_one
from mammo_nb.ich.system import system

# %% tags=["parameters"]
run_dir = ""     # folder of the run; "" makes a small practice run
overrides = {}   # changes for this run, such as {"end2end.loop.epochs": 2}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="end2end", overrides=overrides)
run.contract("end2end")

# %% [markdown]
# ## One network of two
# The encoder sees every slice of the batch, and the padding of shorter series is left out. Its batch normalisations
# stay as they are, because the slices of one series are alike and their statistics are not those of the data. In
# training each slice is seen once, augmented. A prediction uses the mean of the features of several views, if the
# sequence model was trained with that mean.

# %%
#| export
class EncoderReader(nn.Module):
    "An encoder of slices and a sequence model as one network."
    def __init__(self,
        encoder: Encoder,
        recurrent: Recurrent,
        tta: int = 1,          # how many of VIEWS have their features averaged for a prediction
    ):
        super().__init__()
        self.encoder, self.recurrent, self.tta = encoder, recurrent, tta

    def train(self, mode: bool = True) -> nn.Module:
        "Set the mode; batch normalisations stay in evaluation mode."
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def features(self,
        slices: torch.Tensor,   # (n, 3, size, size), normalised
    ) -> torch.Tensor:          # (n, features)
        "Features of slices, of one view or the mean of several."
        views = VIEWS[:1 if self.training else self.tta]
        seen = [apply_view(slices, v).contiguous(memory_format=torch.channels_last) for v in views]
        return torch.stack([self.encoder.features(s) for s in seen]).mean(0)

    def forward(self,
        padded: dict[str, torch.Tensor],   # values (n, longest, 3, size, size), lengths int64 (n,)
    ) -> torch.Tensor:                     # logits (n, longest, classes); without meaning in the padding
        values, lengths = padded["values"], padded["lengths"]
        there = step_mask(lengths, values.shape[1])
        found = self.features(values[there])
        features = found.new_zeros(*there.shape, found.shape[1])
        features[there] = found
        return self.recurrent({"values": features, "lengths": lengths})

# %% [markdown]
# One series alone gives what the encoder and then the sequence model give, and a longer series in the same batch
# changes nothing.

# %%
torch.manual_seed(0)
small = EncoderReader(Encoder("resnet10t", 6, 8), Recurrent(8, 8, 6)).eval()
pair = [torch.randn(n, 3, 32, 32) for n in (5, 2)]
labels = [torch.zeros(n, 6) for n in (5, 2)]
with torch.no_grad():
    together = small(pad_series(list(zip(pair, labels)))[0])
    for logits, slices in zip(together, pair):
        alone = small.recurrent.read(small.encoder.features(slices)[None])[0]
        assert torch.allclose(logits[:len(slices)], alone, atol=1e-5)
small.train()
assert small.recurrent.training and not small.encoder.network.bn1.training

# %% [markdown]
# ## Series of pictures
# All slices of a series get the same augmentation, as if the patient lay differently.

# %%
#| export
class SeriesPictures(torch.utils.data.Dataset):
    "Series of pictures with the labels of their slices: `dataset[(number, seed)]`, no augmentation for the seed -1."
    def __init__(self,
        table: pd.DataFrame,     # folds.csv
        slices: SlicePictures,   # of the same table
    ):
        self.rows, self.slices = rows_of_series(table), slices

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self,
        at: tuple[int, int],
    ) -> tuple[torch.Tensor, torch.Tensor]:   # (length, 3, size, size), labels (length, classes)
        rows, seed = self.rows[at[0]], at[1]
        return torch.stack([self.slices.tensor(r, seed) for r in rows]), self.slices.labels[rows]

def predict_pictures(
    model: EncoderReader,
    data: SeriesPictures,
    series: list[int],    # numbers of the series
) -> np.ndarray:          # float32 (n, classes), probabilities; rows of the first series first
    "Probabilities of the slices of some series, one series at a time, without augmentation."
    device = next(model.parameters()).device
    found = []
    model.eval()
    with torch.inference_mode():
        for k in series:
            values = data[k, -1][0][None].to(device)
            logits = model({"values": values, "lengths": torch.tensor([values.shape[1]], device=device)})
            found.append(torch.sigmoid(logits[0].float()).cpu().numpy())
    return np.concatenate(found)

# %%
table, classify = read_folds(run.path("folds.csv")), run.recorded("classify")
slices = slice_pictures(table, run.path("processed/pictures"), classify.views[0], classify, False)
data = SeriesPictures(table, slices)
most = max(range(len(data)), key=lambda k: table["any"].to_numpy()[data.rows[k]].sum())
sheet([slices.picture(r, 4)[..., 0] for r in data.rows[most]], columns=10, title="a sample: one series, augmented")
assert data[most, 4][0].shape == (len(data.rows[most]), 3, classify.size, classify.size)
assert table["place"].to_numpy()[data.rows[most]].tolist() == sorted(table["place"].to_numpy()[data.rows[most]])

# %% [markdown]
# ## Where it starts
# The network of a fold starts from the last sequence model of that fold and from the encoder that it has read.

# %%
#| export
def first_members(
    run: Run,
    reader: str,              # name of a kind of sequence model
) -> dict[int, dict]:         # fold -> entry of weights/members.json
    "The last sequence model of each fold. Raises RecipeError if there is none, or if it was trained on all data."
    members = read_json(run.path("weights/members.json"))["members"]
    own = sorted((m for m in members if m["reader"] == reader), key=lambda m: (m["epoch"], m["sequence_epoch"]))
    if not own:
        raise RecipeError(f"end2end.reader is {reader!r}, and there are "
                          f"{', '.join(sorted({m['reader'] for m in members}))}. Name one of them.")
    chosen = {m["fold"]: m for m in own}
    if -1 in chosen:
        raise RecipeError("end2end compares predictions of folds that are held back, and this run was trained on all "
                          "data. Set classify.folds to numbers of folds.")
    return dict(sorted(chosen.items()))

# %%
members = first_members(run, run.section("end2end").reader)
try:
    first_members(run, "nobody")
except RecipeError as e:
    print(e)
pd.DataFrame(members.values())[["fold", "encoder", "file"]]

# %% [markdown]
# ## One fold

# %%
#| export
def build_whole(
    run: Run,
    member: dict,     # entry of weights/members.json
    classes: int,     # number of classes
) -> EncoderReader:
    "Encoder and sequence model with the weights of the two stages."
    encoder = build_encoder(run.recorded("classify"), classes)
    load_encoder(encoder, run.path(f"weights/encoders/{member['encoder']}"))
    recurrent = Recurrent(encoder.width, encoder.width, classes, member["cell"], member["deltas"],
                          run.recorded("sequence").faithful)
    load_weights(recurrent, run.path(f"weights/sequence/{member['file']}"))
    return EncoderReader(encoder, recurrent, member["tta"])

def train_whole(
    run: Run,
    table: pd.DataFrame,   # folds.csv
    member: dict,          # entry of weights/members.json, where it starts
) -> tuple[pd.DataFrame, pd.DataFrame]:   # history, predictions of the fold that is held back
    "Train on the other folds and predict this one; a finished training is not repeated."
    loop, classify, prepared = run.section("end2end").loop, run.recorded("classify"), run.recorded("prepare")
    classes, fold = list(classes_of(table)), member["fold"]
    view = next(v for v in classify.views if v.name == member["view"])
    model = build_whole(run, member, len(classes))
    folder = run.path(f"checkpoints/end2end/fold_{fold}")
    data = SeriesPictures(table, slice_pictures(table, run.path("processed/pictures"), view, classify,
                                                prepared.faithful))
    is_held = (table["fold"] == fold).to_numpy()
    held, rest = ([k for k, rows in enumerate(data.rows) if is_held[rows[0]] == wanted] for wanted in (True, False))
    own = table.iloc[np.concatenate([data.rows[k] for k in held])]

    def validate(eval_model: EncoderReader, epoch: int) -> dict:
        found = predict_pictures(eval_model, data, held)
        known = own[["patient_id", "series", "image_id", "place", "fold", *classes]]
        write_csv(folder / f"pred_{epoch}.csv", known.assign(**{f"p_{c}": found[:, k] for k, c in enumerate(classes)}))
        return {"log_loss": log_loss(own[classes].to_numpy(), found), "auc": auc(own["any"], found[:, -1])}

    sampled = shuffled_batches(len(rest), loop.batch_size, loop.seed + fold + 1, join()[1])

    def batches(epoch: int) -> list[list[tuple[int, int]]]:
        return [[(rest[k], seed) for k, seed in batch] for batch in sampled(epoch)]

    files = [run.path(f"weights/encoders/{member['encoder']}"), run.path(f"weights/sequence/{member['file']}"),
             run.path("folds.csv"), run.path("processed/slices.csv")]
    identity = {"member": member, "view": asdict(view), "size": classify.size, "augment": classify.augment,
                "prepare": asdict(prepared), "reads": [sha256(f) for f in files], "code": run.code("end2end")}
    history = fit(model, data, batches, series_loss, validate, loop, folder, label=f"end to end, fold {fold}",
                  identity=identity, collate=pad_series)
    return history, pd.read_csv(folder / f"pred_{history['epoch'].iloc[-1]}.csv", dtype={"image_id": str})

# %% [markdown]
# ## Run the stage
# `pred.json` has the digest of the predictions and that of the list of models from which the training started, so that
# predictions of an earlier run cannot be compared with the models of this one. If `jobs` is above 1, so many folds are
# trained at the same time.

# %%
#| export
def train_all(
    folder: str,       # folder of the run
    overrides: dict,   # of the run, dotted field -> value
    part: int = 0,     # which of the folds: every `parts`-th one, from this on
    parts: int = 1,
) -> dict[int, tuple[pd.DataFrame, pd.DataFrame]]:   # fold -> history, predictions
    "Train the networks of the folds; finished ones are not repeated."
    run = Run.open(folder, overrides)
    table, members = read_folds(run.path("folds.csv")), first_members(run, run.section("end2end").reader)
    return {fold: train_whole(run, table, members[fold]) for fold in list(members)[part::parts]}

def run_stage(
    run: Run,
) -> pd.DataFrame:   # history of all folds
    "Pictures, encoders, sequence models -> checkpoints/end2end/: a network for each fold, pred.csv and pred.json."
    with run.stage("end2end"):
        side_by_side("mammo_nb.ich.end2end:train_all", [str(run.folder), run.overrides], run.section("end2end").jobs)
        parts = train_all(str(run.folder), run.overrides)
        folder = run.path("checkpoints/end2end/")
        history = pd.concat([h.assign(fold=f) for f, (h, _) in parts.items()], ignore_index=True)
        write_csv(folder / "history.csv", history)
        write_csv(folder / "pred.csv", pd.concat([p for _, p in parts.values()], ignore_index=True))
        write_json(folder / "pred.json", {"sha256": sha256(folder / "pred.csv"),
                                          "members": sha256(run.path("weights/members.json"))})
    return history

# %%
history = run_stage(run)
from_one(history).round(4)

# %% [markdown]
# ## What came out
# The log loss on the same held-back slices: of the two stages, which are where it started, and end to end. Each point
# is a series.

# %%
classes = list(classes_of(table))
after = pd.read_csv(run.path("checkpoints/end2end/pred.csv"))
before = pd.concat([pd.read_csv(run.path(f"checkpoints/sequence/{m['reader']}/fold_{m['fold']}_epoch{m['epoch']}"
                                         "/pred.csv")) for m in members.values()])
assert sorted(after["image_id"]) == sorted(before["image_id"])
columns = [f"p_{c}" for c in classes]

def each_series(predicted):
    return predicted.groupby("series").apply(lambda s: log_loss(s[classes].to_numpy(), s[columns].to_numpy()),
                                             include_groups=False)

pairs = pd.DataFrame({"two stages": each_series(before), "end to end": each_series(after)})
ax = pairs.plot.scatter("two stages", "end to end", s=12, loglog=True, figsize=(4, 3.6))
ax.axline((1e-2, 1e-2), (1, 1), color="lightgrey")
ax.set_title("log loss of each series", fontsize=9)
scores = {name: log_loss(p[classes].to_numpy(), p[columns].to_numpy())
          for name, p in (("two stages", before), ("end to end", after))}
pd.Series(scores, name="log loss").to_frame().round(4)

# %% [markdown]
# ---
# [← Sequence](06_sequence.py) · [Bag →](08_bag.py)

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
# > One training loop for all systems, whose weights an interruption does not change.
#
# The systems differ in data, network and recipe; the loop is the same. The weights at the end depend on data, recipe
# and seed. They do not depend on how often the training was interrupted, on the number of loading processes, or on what
# ran before in the same kernel. The order of samples is a function of the epoch, the augmentation of a sample a
# function of its seed, and the dropout of a batch a function of its number.

# %%
#| default_exp core.train

# %%
#| export
import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import MaxNLocator
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mammo_nb.core.files import read_json, write_csv, write_json
from mammo_nb.core.networks import save_weights
from mammo_nb.core.optimisation import Optimisation, learning_rate
from mammo_nb.core.ranks import from_first, join, mean
from mammo_nb.core.steps import Training, seed_everything, training_mode

# %%
#| hide
import tempfile

from torch.nn import functional as F

from mammo_nb.core.batches import PadCollate, step_mask
from mammo_nb.core.files import sha256

# %% tags=["parameters"]
epochs, seed = 6, 42   # of the small trainings below

# %% [markdown]
# ## The folder of a training
# `last.pt` is the checkpoint, written every `checkpoint_every` steps and at the end of each epoch.
# `epoch_N.safetensors` holds the weights after epoch N. `history.csv` has a row for each epoch, and `done.json` is
# written at the end.
#
# The folder belongs to one training. `training.json` names it by a key, which is made of the configuration and of what
# the caller states about data and code. If one of them changes, the folder is emptied and the training starts again.

# %%
#| export
def _key(config: Optimisation, identity: dict | None) -> str:
    "Hash of all that the result depends on, also the number of processes; loading and saving are left out."
    content = {k: v for k, v in asdict(config).items() if k not in ("workers", "checkpoint_every")}
    return hashlib.sha256(json.dumps([content, identity, join()[1]], sort_keys=True).encode()).hexdigest()

def _take_folder(folder: Path, key: str) -> dict:
    """Make a folder the one of this training: files of another training and half-written files are removed. Returns the
    content of done.json, {} if the training is not finished."""
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / "training.json"
    mine = owner.exists() and read_json(owner) == key
    stale = folder.glob(".*") if mine else [p for p in folder.iterdir() if p.is_file()]
    for path in stale:
        path.unlink()
    if not mine:
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    write_json(owner, key)
    return read_json(folder / "done.json") if (folder / "done.json").exists() else {}

# %% [markdown]
# ## The loop
# The dataset gives inputs and targets, each a tensor or tensors nested in dicts and tuples. The network gets the inputs
# as one argument. Its outputs may be nested too, and the loss function gets outputs and targets.
#
# On several GPUs each process takes every n-th batch, and the processes average their gradients; the first one
# validates and writes. Learning rates, losses and scores are in `tensorboard/` (`tensorboard --logdir runs`).

# %%
#| export
def _train_epoch(state: Training, data: dict, batches: list, loss, last: Path, label: str, log: SummaryWriter | None):
    "Train from the current batch to the end of the epoch."
    config = state.config
    own = batches[state.rank::state.ranks]
    loader = DataLoader(**data, batch_sampler=own[state.batch:], num_workers=config.workers,
                        pin_memory=state.device.type == "cuda",
                        generator=torch.Generator().manual_seed(0))  # the global generator must stay unchanged
    training_mode(state.model)
    samples = [len(b) for b in own]
    together = config.accumulate
    steps = -(-len(own) // together)
    with tqdm(total=sum(samples), initial=sum(samples[:state.batch]), unit=" samples", mininterval=1,
              disable=state.rank > 0, desc=f"{label} epoch {state.epoch + 1}/{config.epochs}".strip()) as bar:
        for inputs, targets in loader:
            at, step = state.batch, state.batch // together
            rate = learning_rate(config, state.epoch, step / steps)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            share = samples[at] / sum(samples[step * together:(step + 1) * together])
            ends = (at + 1) % together == 0 or at + 1 == len(own)
            state.train_batch(inputs, targets, loss, share, ends)
            losses = state.losses()
            bar.update(samples[at])
            bar.set_postfix({name: f"{value:.4f}" for name, value in losses.items()}, refresh=False)
            if ends and (step + 1) % config.checkpoint_every == 0 and state.batch < len(own):
                state.save(last)
                if log:
                    for name, value in losses.items():
                        log.add_scalar(f"{name}, mean of the epoch so far", value, state.steps)

def _end_epoch(state: Training, validate, folder: Path, log: SummaryWriter | None):
    "Save and validate the EMA weights, and set the state to the next epoch."
    row = {"epoch": state.epoch, "lr": learning_rate(state.config, state.epoch)}
    for name, value in state.losses().items():
        row[name] = mean(value)
    if not state.rank:
        model = state.averaged()
        save_weights(model, folder / f"epoch_{state.epoch}.safetensors", {"epoch": state.epoch, **asdict(state.config)})
        scores = {name: float(value) for name, value in validate(model, state.epoch).items()}
        if twice := sorted(row.keys() & scores):
            raise ValueError(f"validate returned {', '.join(twice)}, which the history has already. Rename the scores.")
        row |= scores
        for name in row.keys() - {"epoch"}:
            log.add_scalar(name, row[name], state.steps)
        write_csv(folder / "history.csv", pd.DataFrame([*state.history, row]))
    state.history.append(from_first(row))
    state.epoch += 1
    state.batch = 0
    state.sums = {}

def fit(
    model: nn.Module,            # initial weights; trained in place
    dataset,                     # dataset[(index, seed)] -> (inputs, targets), tensors or nested dicts and tuples
    batches,                     # f(epoch) -> list of batches, each a list of (index, seed)
    loss,                        # f(outputs, targets) -> scalar tensor, or name -> scalar tensor, which are added
    validate,                    # f(model in evaluation mode, epoch) -> scores; a `stop` other than 0 ends the training
    config: Optimisation,
    folder: Path,                # gets last.pt, epoch_N.safetensors, history.csv, done.json
    device: torch.device | str | None = None,  # None: a GPU if there is one
    label: str = "",             # shown beside the progress bar
    identity: dict | None = None,  # describes data and code; can be written as JSON
    on_epoch=None,               # f(epoch), called before each epoch, for what changes with the epochs
    collate=None,                # f(samples) -> (inputs, targets) of a batch; None: torch's, which stacks
) -> pd.DataFrame:               # a row for each epoch: epoch, lr, loss, the named losses, the scores of `validate`
    "Train, or continue an interrupted training; the weights at the end are the same."
    folder, key = Path(folder), _key(config, identity)
    rank, ranks = join()
    done = from_first({} if rank else _take_folder(folder, key))
    if done:
        return pd.DataFrame(done["history"])
    seed_everything(config.seed, config.deterministic)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    state = Training(model, config, device)
    if state.resume(folder / "last.pt") and not rank:
        tqdm.write(f"{label} continues at epoch {state.epoch + 1}, batch {state.batch}".strip())
    log = None if rank else SummaryWriter(str(folder / "tensorboard"), purge_step=state.steps)
    data = {"dataset": dataset, "collate_fn": collate}
    while state.epoch < config.epochs and not (state.history and state.history[-1].get("stop")):
        if on_epoch:
            on_epoch(state.epoch)
        sampled = batches(state.epoch)
        if not sampled:
            raise ValueError(f"The sampler gives no batch for epoch {state.epoch}. Lower batch_size, or add data.")
        if len(sampled) % ranks:
            raise ValueError(f"{len(sampled)} batches cannot be shared by {ranks} processes. "
                             "Each process needs the same number of batches.")
        _train_epoch(state, data, sampled, loss, folder / "last.pt", label, log)
        _end_epoch(state, validate, folder, log)
        state.save(folder / "last.pt")
    if not rank:
        log.close()
        write_json(folder / "done.json", {
            "key": key, "history": state.history, "device": str(device), "threads": torch.get_num_threads(),
            "processes": ranks, "half_precision": str(state.half), "torch": torch.__version__
        })
    return pd.DataFrame(from_first(state.history))

# %% [markdown]
# ## One tensor, one loss
# Two moons and a small network with dropout. It is trained in one go, and once more with an interruption in the middle
# of an epoch: the files of weights are equal.

# %%
#| hide
class Moons(torch.utils.data.Dataset):
    "Two half circles; the noise of a sample comes from its seed."
    def __init__(self, n=256):
        angle, self.side = np.linspace(0, np.pi, n), np.arange(n) % 2
        self.points = np.stack([np.cos(angle) + self.side, np.where(self.side, -np.sin(angle) + .5, np.sin(angle))], 1)
    def __getitem__(self, at):
        index, seed = at
        noise = np.random.default_rng(seed).normal(0, .1, 2) if seed >= 0 else 0
        return torch.tensor(self.points[index] + noise, dtype=torch.float32), torch.tensor([float(self.side[index])])
    def batches(self, epoch):
        rng = np.random.default_rng(epoch)
        return [[(int(i), int(rng.integers(2**31))) for i in part] for part in np.split(rng.permutation(256), 16)]

def toy_network():
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Dropout(.2), nn.Linear(32, 1))

# %%
moons, folder = Moons(), Path(tempfile.mkdtemp())
config = Optimisation(epochs=epochs, batch_size=16, optimizer="adamw", lr=1e-2, min_lr=1e-4, ema_decay=.95, seed=seed,
                      checkpoint_every=5)

def accuracy(model, epoch):
    points = torch.stack([moons[(i, -1)][0] for i in range(256)])
    with torch.no_grad():
        return {"accuracy": ((model(points)[:, 0] > 0).numpy() == moons.side).mean()}

history = fit(toy_network(), moons, moons.batches, F.binary_cross_entropy_with_logits, accuracy, config,
              folder / "whole", label="in one go")
assert history["accuracy"].iloc[-1] > .85 and history["loss"].iloc[-1] < .6 * history["loss"].iloc[0]
history.round(4)

# %% [markdown]
# Files and tables count epochs from 0, as Python does: the first one is `epoch_0`. People count from 1, so progress
# bars, plots and shown tables do.

# %%
#| export
def from_one(
    table: pd.DataFrame,  # with a column `epoch`, from 0
) -> pd.DataFrame:
    "The table as it is shown: its epochs are counted from 1."
    return table.assign(epoch=table["epoch"] + 1)

def plot_epochs(
    axis: plt.Axes,
    epochs,            # numbers from 0, as stored
    values,            # one for each epoch
    label: str = "",   # in the legend
):                     # the line
    "Draw a score over the epochs, counted from 1."
    line, = axis.plot(np.asarray(epochs) + 1, values, marker="o", ms=4, label=label)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return line

# %%
fig, ax = plt.subplots(figsize=(5, 2.4))
drawn = plot_epochs(ax, history["epoch"], history["accuracy"])
ax.set_ylabel(f"accuracy, {len(moons.points)} points")
assert drawn.get_xdata()[0] == from_one(history)["epoch"].iloc[0] == 1

# %%
class PowerCut(Exception):
    pass

class CutMoons(Moons):
    "The training is interrupted at sample 700."
    seen = 0
    def __getitem__(self, at):
        CutMoons.seen += 1
        if CutMoons.seen == 700:
            raise PowerCut
        return super().__getitem__(at)

try:
    fit(toy_network(), CutMoons(), moons.batches, F.binary_cross_entropy_with_logits, accuracy, config, folder / "cut",
        label="until the interruption")
except PowerCut:
    print("interrupted")
again = fit(toy_network(), moons, moons.batches, F.binary_cross_entropy_with_logits, accuracy, config, folder / "cut",
            label="afterwards")
last = f"epoch_{epochs - 1}.safetensors"
assert sha256(folder / "cut" / last) == sha256(folder / "whole" / last) and again.equals(history)
sha256(folder / "cut" / last)[:16], sha256(folder / "whole" / last)[:16]

# %% [markdown]
# ## Sequences, two outputs, two losses
# A series has three to eight steps. A network reads it in order and predicts for each step whether its value is
# positive, and for the whole series whether their sum is. The sequences are padded; the loss leaves the padding out.
# Two batches make one step.

# %%
#| hide
class Series(torch.utils.data.Dataset):
    "Random series with a label for each step and one for the whole."
    def __getitem__(self, at):
        rng = np.random.default_rng(at[0])
        values = torch.from_numpy(rng.normal(size=(rng.integers(3, 9), 1)).astype(np.float32))
        return {"series": values}, {"steps": (values[:, 0] > 0).float(), "whole": (values.sum() > 0).float()}

class Reader(nn.Module):
    "A recurrent network with an output for each step and one for the series."
    def __init__(self):
        super().__init__()
        self.recurrent, self.steps, self.whole = nn.GRU(1, 16, batch_first=True), nn.Linear(16, 1), nn.Linear(16, 1)
    def forward(self, inputs):
        features, _ = self.recurrent(inputs["series"]["values"])
        last = features[torch.arange(len(features)), inputs["series"]["lengths"] - 1]
        return {"steps": self.steps(features)[..., 0], "whole": self.whole(last)[:, 0]}

# %%
def series_loss(outputs, targets):
    labels = targets["steps"]
    there = step_mask(labels["lengths"], labels["values"].shape[1])
    steps = F.binary_cross_entropy_with_logits(outputs["steps"][there], labels["values"][there])
    return {"steps": steps, "whole": 0.5 * F.binary_cross_entropy_with_logits(outputs["whole"], targets["whole"])}

torch.manual_seed(seed)
config = Optimisation(epochs=epochs, batch_size=8, accumulate=2, optimizer="adam", lr=2e-2, schedule="step",
                      step_epochs=3)
batches = [[(i, 0) for i in range(s, s + 8)] for s in range(0, 128, 8)]
history = fit(Reader(), Series(), lambda epoch: batches, series_loss, lambda *_: {}, config, folder / "series",
              collate=PadCollate(series=0.0, steps=0.0), label="series")
assert np.allclose(history["loss"], history["steps"] + history["whole"]) and history["loss"].iloc[-1] < .6
history.round(4)

# %% [markdown]
# ---
# [← Steps](47_steps.py) · [Labels →](49_labels.py)

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
# > One loop for every system, that a power cut cannot change.
#
# The four systems differ in data, network and recipe; the loop is one. Its promise: the weights at the end depend on
# data, recipe and seed, and not on how often the machine was switched off, how many processes loaded the data, or what
# ran before in the same kernel. That holds because nothing random is carried along: the order of samples is a function
# of the epoch, a sample's augmentation of its seed, a step's dropout of its number.

# %%
#| default_exp core.train

# %%
#| export
import copy
import hashlib
import json
import math
import os
import pickle
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mammo_nb.core.files import read_json, replacing, write_csv, write_json
from mammo_nb.core.networks import save_weights
from mammo_nb.core.ranks import from_first, join, mean

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
from torch.nn import functional as F

from mammo_nb.core.files import sha256

# %% tags=["parameters"]
epochs, seed = 6, 42   # of the toy training below

# %%
#| export
@dataclass(frozen=True)
class Optimisation:
    "What the loop needs to know; a recipe fills it."
    epochs: int
    batch_size: int              # for the record: the batches themselves come ready-made
    optimizer: str = "sgd"       # sgd (Nesterov) or adamw
    lr: float = 3e-3
    min_lr: float = 5e-5         # at the end of the cosine
    schedule: str = "timm"       # timm, yolox or cosine, see `learning_rate`
    restart_epochs: float = 0    # of cosine: it starts over after so many epochs; 0 = never
    restart_factor: int = 1      # and each round is so many times as long as the one before
    # of `epochs`, the last ones, at min_lr: timm's cooldown, YOLOX's epochs without augmentation
    flat_epochs: int = 0
    warmup_epochs: float = 0
    warmup_lr: float = 0.0       # at the start of the warm-up
    weight_decay: float = 0.0    # on matrices and kernels only
    momentum: float = 0.9        # of sgd
    ema_decay: float = 0.0       # of the averaged weights, per step; 0 = off
    # steps in which the decay grows as YOLOX's does (2000 there); 0: as TensorFlow's does; -1: constant
    ema_ramp: int = 0
    precision: str = "amp"       # amp: 16 bit where the device has it; fp32
    clip_norm: float = 0.0       # largest norm of the gradient; 0 = off
    seed: int = 42
    deterministic: bool = True   # refuse operations whose result may differ between runs
    workers: int = 0             # data-loading processes
    checkpoint_every: int = 200  # steps between checkpoints within an epoch

# %% [markdown]
# ## Learning rate
# Three schedules. timm's, which the winner's classifiers used, is set once an epoch: a straight warm-up, then a cosine
# that is counted from epoch 0, so that it does not start over when the warm-up ends. YOLOX's moves with every step: a
# quadratic warm-up, then a cosine from its end. Both may stay at their lowest for some epochs. The third, the
# baseline's, is a cosine that moves with every step too, and may start over several times.

# %%
#| export
def learning_rate(
    config: Optimisation,
    epoch: int,                  # from 0
    step_fraction: float = 0.0,  # of the epoch that has passed, 0..1
) -> float:
    "Warm-up, cosine decay (Loshchilov & Hutter 2017) from `lr` to `min_lr`, flat end."
    yolox = config.schedule == "yolox"
    if config.schedule not in ("timm", "yolox", "cosine"):
        raise ValueError(f"no schedule {config.schedule!r}; there are timm, yolox and cosine")
    t, end = epoch + step_fraction, config.epochs - config.flat_epochs
    if config.schedule == "cosine" and config.restart_epochs:
        end = config.restart_epochs
        while t >= end:
            t, end = t - end, end * config.restart_factor
    if t < config.warmup_epochs:
        return config.warmup_lr + (config.lr - config.warmup_lr) * (t / config.warmup_epochs) ** (2 if yolox else 1)
    start = config.warmup_epochs if yolox else 0
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (
        1 + math.cos(math.pi * min(1, (t - start) / max(end - start, 1e-9))))

# %%
winner = Optimisation(epochs=30, batch_size=8, lr=3e-3, min_lr=5e-5, warmup_epochs=4, warmup_lr=3e-5)
assert learning_rate(winner, 0) == 3e-5 and math.isclose(learning_rate(winner, 15), (3e-3 + 5e-5) / 2) and math.isclose(
    learning_rate(winner, 30), 5e-5)
detector = Optimisation(epochs=400, batch_size=64, lr=1e-3, min_lr=5e-5, schedule="yolox", warmup_epochs=50,
                        warmup_lr=1e-5, flat_epochs=5)
assert learning_rate(detector, 0) == 1e-5 and math.isclose(learning_rate(detector, 25), 1e-5 + 0.25 *
                                                           (1e-3 - 1e-5)) and learning_rate(detector, 396) == 5e-5
restarts = Optimisation(epochs=14, batch_size=26, lr=5e-5, min_lr=0.0, schedule="cosine", restart_epochs=2,
                        restart_factor=2)
assert learning_rate(restarts, 2) == learning_rate(restarts, 6) == 5e-5 and math.isclose(
    learning_rate(restarts, 3, 0.5), 5e-5 * 0.5 * (1 + math.cos(math.pi * 1.5 / 4)))
fig, axes = plt.subplots(1, 3, figsize=(12, 2.4))
for ax, c, title in zip(
        axes, (winner, detector, restarts),
    ("the winner's classifiers, folds 2 and 3", "the winner's detector", "a cosine of 2, 4 and 8 epochs")):
    steps = 1 if c.schedule == "timm" else 20   # an epoch
    ax.step(
        np.arange(c.epochs * steps) / steps,
        [learning_rate(c, n // steps, n % steps / steps) for n in range(c.epochs * steps)], where="post")
    ax.set(xlabel="epoch", title=f"learning rate: {title}")
fig.tight_layout()

# %% [markdown]
# ## Seeds
# `deterministic` makes torch refuse what it cannot repeat. Two machines may still differ in the last bit; two runs on
# one do not.

# %%
#| export
def seed_everything(
    seed: int,
    deterministic: bool = True,  # refuse operations whose result may differ between runs
):
    "Seed Python, NumPy and torch, and choose between repeatable and fastest kernels."
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with a fixed workspace
    torch.use_deterministic_algorithms(deterministic)
    # a debugging aid that costs a write of every new tensor
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, not deterministic

def _step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for each step: dropout is the same whether or not the steps before it ran in this process, and another one
    in each of several."""
    return int(np.random.SeedSequence([seed, step, *([rank] if rank else [])]).generate_state(1, np.uint64)[0] >> 1)

# %% [markdown]
# ## Averaged weights
# An exponential moving average of the weights is what gets validated and kept. Early on it would remember mostly the
# random start, so the decay grows with the steps, `min(decay, (1 + step) / (10 + step))`, as TensorFlow's
# `ExponentialMovingAverage` does, or `decay (1 - exp(-step / ramp))`, as YOLOX's does. timm's is constant from the
# first step, which does no harm where the start is not random.

# %%
#| export
@torch.no_grad()
def update_ema(
    average: dict[str, torch.Tensor],  # name -> tensor, changed in place
    model: nn.Module,
    decay: float,                      # the final decay
    step: int,                         # from 0
    ramp: int = 0,                     # steps of YOLOX's growing decay; 0: TensorFlow's; -1: constant
):
    "Move the average a step towards the model; integer buffers are copied."
    if ramp >= 0:
        decay = decay * (1 - math.exp(-(step + 1) / ramp)) if ramp else min(decay, (1 + step) / (10 + step))
    state = model.state_dict()
    moving = [name for name, value in state.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in moving], [state[name].to(average[name].dtype) for name in moving],
                         1 - decay)
    for name in state.keys() - set(moving):
        average[name].copy_(state[name])

# %%
toy = nn.Linear(1, 1, bias=False)
average, path = {"weight": torch.zeros(1, 1)}, []
with torch.no_grad():
    toy.weight.fill_(1.0)
for step in range(60):
    update_ema(average, toy, 0.9, step)
    path.append(average["weight"].item())
assert math.isclose(path[0], 0.9, rel_tol=1e-6)   # decay 1/10 at the first step
plt.figure(figsize=(5, 2.2))
plt.plot(path)
plt.title("average of a weight that is 1 from the start, decay 0.9")
plt.ylim(0, 1.05);

# %% [markdown]
# ## Parts
# Weight decay pulls kernels and matrices towards zero, never biases or normalisations. What does not require a gradient
# is frozen: it gets no entry in the optimiser, and a batch normalisation that is frozen keeps its statistics too.

# %%
#| export
def make_optimizer(
    model: nn.Module,
    config: Optimisation,
) -> torch.optim.Optimizer:
    "SGD with Nesterov momentum or AdamW; one-dimensional parameters are not decayed."
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
              {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    raise ValueError(f"no optimizer {config.optimizer!r}; there are sgd and adamw")

def training_mode(
    model: nn.Module,   # set in place
):
    "Training mode, in which frozen batch normalisations go on with the statistics they have."
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and not module.weight.requires_grad:
            module.eval()

def half_precision(
    device: torch.device,
    precision: str,          # amp or fp32
) -> torch.dtype | None:     # None: everything in 32 bit
    "The 16-bit type that pays on a device: bfloat16 on GPUs that have it and CPUs with AMX, float16 on older GPUs."
    if precision == "fp32":
        return None
    if precision != "amp":
        raise ValueError(f"no precision {precision!r}; there are amp and fp32")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and torch.cpu._is_amx_tile_supported() else None

# %% [markdown]
# ## State
# Everything that one step hands to the next is in one object, and the checkpoint is that object. It is read back as
# tensors and numbers only, no pickled code.

# %%
#| export
class CheckpointError(Exception):
    "A checkpoint that cannot be read."

class Training:
    "Model, optimiser, average and position of a training in progress."
    def __init__(self,
        model: nn.Module,
        config: Optimisation,
        device: torch.device,
    ):
        self.config, self.device = config, device
        self.model = model.to(device)
        for parameter in self.model.parameters():  # the layout that 2-D convolutions are quickest in
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.rank, self.ranks = join()
        # gradients are averaged over the processes; batch normalisation goes by what the first one sees
        self.network = DistributedDataParallel(self.model) if self.ranks > 1 else self.model
        self.optimizer = make_optimizer(self.model, config)
        self.half = half_precision(device, config.precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half == torch.float16)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()} if config.ema_decay else None
        self.epoch = self.step = self.total_steps = 0   # step counts within the epoch
        self.loss_sum, self.history = 0.0, []

    _numbers = ("epoch", "step", "total_steps", "loss_sum", "history")

    def save(self, path: Path):
        "Write the checkpoint; of several processes, the first does."
        if self.rank:
            return
        state = {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "scaler":
                self.scaler.state_dict(), "average": self.average or {}, **{n: getattr(self, n) for n in self._numbers}
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def resume(self, path: Path) -> bool:
        "Take up a checkpoint; False if there is none."
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except (EOFError, RuntimeError, pickle.UnpicklingError) as e:
            raise CheckpointError(
                f"{path.parent.name}/{path.name} is damaged ({type(e).__name__}): delete it to train this fold anew"
            ) from e
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average = state["average"]
        for n in self._numbers:
            setattr(self, n, state[n])
        return True

    def averaged(self) -> nn.Module:
        "A copy to evaluate: averaged weights where there are any, evaluation mode."
        model = copy.deepcopy(self.model)
        if self.average is not None:
            model.load_state_dict(self.average)
        return model.eval()

    def train_step(self, inputs: torch.Tensor, targets: torch.Tensor, loss) -> float:
        "One step; the loss of the batch."
        torch.manual_seed(_step_seed(self.config.seed, self.total_steps, self.rank))
        inputs = inputs.to(self.device, non_blocking=True)
        if inputs.ndim == 4:
            inputs = inputs.to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            output = self.network(inputs)
        value = loss(output.float(), targets.to(self.device, non_blocking=True))
        if not torch.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value.item()} at epoch {self.epoch}, step {self.step}: lower the learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(value).backward()
        if self.config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            update_ema(self.average, self.model, self.config.ema_decay, self.total_steps, self.config.ema_ramp)
        self.step += 1
        self.total_steps += 1
        return value.item()

# %% [markdown]
# ## The loop
# On several GPUs each process takes every n-th batch and they average their gradients; the first validates and writes.
# TensorBoard finds loss, learning rate and scores in `tensorboard/` (`tensorboard --logdir runs`).
#
# Three files make the training restartable. `last.pt` is the position, written every so many steps and at the end of
# each epoch; `epoch_N.safetensors` the weights that epoch left; `done.json` says that there is nothing left to do. The
# folder belongs to one training, named in `training.json` by a key made of the configuration and of what the caller
# says the training is about, so that a change of either empties the folder instead of going on with the wrong thing.

# %%
#| export
def _key(config: Optimisation, identity: dict | None) -> str:
    """Names a training. How often it is saved and how many processes load its data do not change its result; how many
    train does."""
    content = {k: v for k, v in asdict(config).items() if k not in ("workers", "checkpoint_every")}
    return hashlib.sha256(json.dumps([content, identity, join()[1]], sort_keys=True).encode()).hexdigest()

def _take_folder(folder: Path, key: str) -> dict:
    """Make the folder this training's own: nothing of another stays, nor of a write that was killed. What done.json
    says, {} if it is not there."""
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

def _train_epoch(state: Training, dataset, batches: list, loss, last: Path, label: str, log: SummaryWriter | None):
    "Train from the current step to the end of the epoch."
    config, batches = state.config, batches[state.rank::state.ranks]
    loader = DataLoader(dataset, batch_sampler=batches[state.step:], num_workers=config.workers,
                        pin_memory=state.device.type == "cuda",
                        generator=torch.Generator().manual_seed(0))  # one of its own: the global one stays untouched
    training_mode(state.model)
    with tqdm(total=sum(map(len, batches)), initial=sum(map(
            len, batches[:state.step])), unit="img", desc=f"{label} epoch {state.epoch + 1}/{config.epochs}".strip(),
              mininterval=1, disable=state.rank > 0) as bar:
        for inputs, targets in loader:
            rate = learning_rate(config, state.epoch, state.step / len(batches) if config.schedule != "timm" else 0.0)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            state.loss_sum += state.train_step(inputs, targets, loss)
            bar.update(len(inputs))
            bar.set_postfix(loss=f"{state.loss_sum / state.step:.4f}", refresh=False)
            if state.step % config.checkpoint_every == 0 and state.step < len(batches):
                state.save(last)
                if log:
                    log.add_scalar("loss, mean of the epoch so far", state.loss_sum / state.step, state.total_steps)

def _end_epoch(state: Training, validate, folder: Path, log: SummaryWriter | None):
    "Keep the averaged weights, validate them, and move on to the next epoch."
    row = {
        "epoch": state.epoch, "lr": learning_rate(state.config, state.epoch), "loss": mean(state.loss_sum / state.step)
    }
    if not state.rank:
        model = state.averaged()
        save_weights(model, folder / f"epoch_{state.epoch}.safetensors", {"epoch": state.epoch, **asdict(state.config)})
        row |= {k: float(v) for k, v in validate(model, state.epoch).items()}
        for name in row.keys() - {"epoch"}:
            log.add_scalar(name, row[name], state.total_steps)
        write_csv(folder / "history.csv", pd.DataFrame([*state.history, row]))
    state.history.append(from_first(row))
    state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0

def fit(
    model: nn.Module,            # initial weights; trained in place
    dataset,                     # dataset[(index, seed)] -> (input, target) tensors
    batches,                     # epoch -> list of batches, each a list of (index, seed)
    loss,                        # f(output, target) -> scalar tensor
    # f(model in evaluation mode, epoch) -> dict of numbers; a `stop` that is not 0 ends the training
    validate,
    config: Optimisation,
    folder: Path,                # last.pt, epoch_N.safetensors, history.csv, done.json
    device: torch.device | str | None = None,  # None: a GPU if there is one
    label: str = "",             # beside the progress bar
    identity: dict | None = None,  # what data and code this is; JSON-able
    on_epoch=None,               # f(epoch), before each: for what changes with the epochs, such as the loss
) -> pd.DataFrame:               # one row an epoch: epoch, lr, loss and what `validate` gave
    "Train, or go on where an interrupted training stopped; the weights at the end are the same."
    folder, key, (rank, ranks) = Path(folder), _key(config, identity), join()
    done = from_first({} if rank else _take_folder(folder, key))
    if done:
        return pd.DataFrame(done["history"])
    seed_everything(config.seed, config.deterministic)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    state = Training(model, config, device)
    if state.resume(folder / "last.pt") and not rank:
        tqdm.write(f"{label} goes on at epoch {state.epoch + 1}, step {state.step}".strip())
    log = None if rank else SummaryWriter(str(folder / "tensorboard"), purge_step=state.total_steps)
    while state.epoch < config.epochs and not (state.history and state.history[-1].get("stop")):
        if on_epoch:
            on_epoch(state.epoch)
        dealt = batches(state.epoch)
        if len(dealt) % ranks:
            raise ValueError(
                f"{len(dealt)} batches cannot be shared by {ranks} processes: each needs as many as the others")
        _train_epoch(state, dataset, dealt, loss, folder / "last.pt", label, log)
        _end_epoch(state, validate, folder, log)
        state.save(folder / "last.pt")
    if not rank:
        log.close()
        write_json(
            folder / "done.json", {
                "key": key, "history": state.history, "device": str(device), "threads": torch.get_num_threads(),
                "processes": ranks, "half_precision": str(state.half), "torch": torch.__version__
            })
    return pd.DataFrame(from_first(state.history))

# %% [markdown]
# ## A toy
# Two moons and a small network with dropout. Trained in one go, and again with a stop in the middle of an epoch: the
# weights are the same file.

# %%
#| hide
class Moons(torch.utils.data.Dataset):
    "Two half circles; a sample's noise comes from its seed."
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
assert history["accuracy"].iloc[-1] > .85 and history["loss"].is_monotonic_decreasing
history.round(4)

# %%
class PowerCut(Exception):
    pass

class CutMoons(Moons):
    "The light goes out at sample 700."
    seen = 0
    def __getitem__(self, at):
        CutMoons.seen += 1
        if CutMoons.seen == 700:
            raise PowerCut
        return super().__getitem__(at)

try:
    fit(toy_network(), CutMoons(), moons.batches, F.binary_cross_entropy_with_logits, accuracy, config, folder / "cut",
        label="until the cut")
except PowerCut:
    print("power cut")
again = fit(toy_network(), moons, moons.batches, F.binary_cross_entropy_with_logits, accuracy, config, folder / "cut",
            label="afterwards")
last = f"epoch_{epochs - 1}.safetensors"
assert sha256(folder / "cut" / last) == sha256(folder / "whole" / last) and again.equals(history)
sha256(folder / "cut" / last)[:16], sha256(folder / "whole" / last)[:16]

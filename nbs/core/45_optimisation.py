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
# # Optimisation
# > The numbers of a training loop: optimiser, learning rate, batches, EMA.
#
# A section of a recipe that describes a training holds one `Optimisation` in its field `loop`. The loop itself is in
# `core/train`. The numbers stand in a module of their own because recipes are loaded by every command, and torch takes
# seconds to load.

# %%
#| default_exp core.optimisation

# %%
#| export
import math
from dataclasses import dataclass

from mammo_nb.core.recipes import bounded

# %%
#| hide
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

from mammo_nb.core.recipes import RecipeError, check_section

# %% tags=["parameters"]
epochs = 30  # of the schedules that are drawn below

# %%
#| export
OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("timm", "yolox", "cosine", "step")
PRECISIONS = ("amp", "fp16", "fp32")

@dataclass(frozen=True)
class Optimisation:
    "Numbers of the training loop; the field `loop` of a section."
    epochs: int = bounded(1, low=1)             # passes over the training set, as the sampler defines one
    batch_size: int = bounded(1, low=1)         # samples in a batch of one process
    accumulate: int = bounded(1, low=1)         # batches whose gradients make one step of the optimiser
    optimizer: str = bounded("sgd", choices=OPTIMIZERS)  # sgd has Nesterov momentum
    lr: float = bounded(3e-3, low=0)            # highest learning rate
    min_lr: float = bounded(5e-5, low=0)        # learning rate at the end of a cosine
    schedule: str = bounded("timm", choices=SCHEDULES)   # see `learning_rate`
    restart_epochs: float = bounded(0.0, low=0)  # schedule cosine: epochs until the first restart; 0 = no restart
    restart_factor: int = bounded(1, low=1)     # schedule cosine: length of a round divided by that of the one before
    step_epochs: int = bounded(0, low=0)        # schedule step: epochs until the learning rate is multiplied
    step_factor: float = bounded(0.1, low=0, high=1)     # schedule step: by this
    flat_epochs: int = bounded(0, low=0)        # of `epochs`, the last ones, with `min_lr`; not for the schedule step
    warmup_epochs: float = bounded(0.0, low=0)  # epochs in which the learning rate rises from `warmup_lr` to `lr`
    warmup_lr: float = bounded(0.0, low=0)      # learning rate at the start of the warm-up
    weight_decay: float = bounded(0.0, low=0)   # of matrices and kernels; biases and normalisations are not decayed
    decay_all: bool = False                     # all parameters are decayed, as by default in torch
    momentum: float = bounded(0.9, low=0, high=1)        # of sgd
    ema_decay: float = bounded(0.0, low=0, high=1)       # decay of the EMA of the weights, per step; 0 = no EMA
    ema_ramp: int = bounded(0, low=-1)          # steps in which the decay grows, see `update_ema`; -1: constant
    precision: str = bounded("amp", choices=PRECISIONS)  # amp: 16 bits where the device has units for them
    clip_norm: float = bounded(0.0, low=0)      # largest norm of the gradient; 0 = no clipping
    seed: int = bounded(42, low=0)              # of sampler, augmentation, dropout and new layers
    deterministic: bool = True                  # refuse operations whose results may differ between two runs
    workers: int = bounded(0, low=0)            # data-loading processes
    checkpoint_every: int = bounded(200, low=1)  # steps of the optimiser between two checkpoints within an epoch

# %% [markdown]
# A number outside of its range, or a name with a slip, is an error when a recipe or an override is read:

# %%
for wrong in (Optimisation(epochs=0), Optimisation(optimizer="adams")):
    try:
        check_section(wrong, "train.loop")
    except RecipeError as e:
        print(e)

# %% [markdown]
# ## Learning rate
# There are four schedules.
#
# - `timm`, which the winner's classifiers used, changes once an epoch: a linear warm-up, then a cosine. The cosine is
#   counted from epoch 0, so it has already begun when the warm-up ends.
# - `yolox` changes with every step: a quadratic warm-up, then a cosine that starts at its end.
# - `cosine` changes with every step and may restart.
# - `step` changes once an epoch: torch's `StepLR`, after a linear warm-up.

# %%
#| export
PER_EPOCH = ("timm", "step")  # schedules whose learning rate changes once an epoch

def learning_rate(
    config: Optimisation,
    epoch: int,                  # from 0
    step_fraction: float = 0.0,  # share of the epoch that has passed, 0 to 1; ignored by schedules of PER_EPOCH
) -> float:
    """Learning rate of a step: warm-up, then cosine decay (Loshchilov & Hutter 2017) or steps. Raises ValueError for an
    unknown schedule."""
    if config.schedule not in SCHEDULES:
        raise ValueError(f"There is no schedule {config.schedule!r}. Choose one of {', '.join(SCHEDULES)}.")
    t = epoch if config.schedule in PER_EPOCH else epoch + step_fraction
    end = config.epochs - config.flat_epochs
    if config.schedule == "cosine" and config.restart_epochs:
        end = config.restart_epochs
        while t >= end:
            t, end = t - end, end * config.restart_factor
    if t < config.warmup_epochs:
        power = 2 if config.schedule == "yolox" else 1
        return config.warmup_lr + (config.lr - config.warmup_lr) * (t / config.warmup_epochs)**power
    if config.schedule == "step":
        if config.step_epochs < 1:
            raise ValueError("The schedule step needs step_epochs of at least 1.")
        return config.lr * config.step_factor**(t // config.step_epochs)
    start = config.warmup_epochs if config.schedule == "yolox" else 0
    progress = min(1, (t - start) / max(end - start, 1e-9))
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress))

# %% [markdown]
# By hand: the warm-up starts at `warmup_lr`, half of the cosine is the mean of its ends, and a quadratic warm-up has
# risen by a quarter after half of its time.

# %%
winner = Optimisation(epochs=epochs, batch_size=8, lr=3e-3, min_lr=5e-5, warmup_epochs=4, warmup_lr=3e-5)
assert learning_rate(winner, 0) == 3e-5
assert math.isclose(learning_rate(winner, epochs // 2), (3e-3 + 5e-5) / 2)
assert math.isclose(learning_rate(winner, epochs), 5e-5)

detector = Optimisation(epochs=400, batch_size=64, lr=1e-3, min_lr=5e-5, schedule="yolox", warmup_epochs=50,
                        warmup_lr=1e-5, flat_epochs=5)
assert learning_rate(detector, 0) == 1e-5
assert math.isclose(learning_rate(detector, 25), 1e-5 + 0.25 * (1e-3 - 1e-5))
assert learning_rate(detector, 396) == 5e-5

restarts = Optimisation(epochs=14, batch_size=26, lr=5e-5, min_lr=0.0, schedule="cosine", restart_epochs=2,
                        restart_factor=2)
assert learning_rate(restarts, 2) == learning_rate(restarts, 6) == 5e-5
assert math.isclose(learning_rate(restarts, 3, 0.5), 5e-5 * 0.5 * (1 + math.cos(math.pi * 1.5 / 4)))

steps = replace(winner, schedule="step", step_epochs=10, step_factor=0.5)
assert [learning_rate(steps, e) for e in (9, 10, 19, 20)] == [3e-3, 1.5e-3, 1.5e-3, 0.75e-3]

# %%
drawn = {
    "the winner's classifiers": winner,
    "the winner's detector": detector,
    "a cosine of 2, 4 and 8 epochs": restarts,
    "StepLR, halved every 10 epochs": steps,
}
fig, axes = plt.subplots(1, 4, figsize=(15, 2.4))
for ax, (title, config) in zip(axes, drawn.items()):
    per_epoch = 1 if config.schedule in PER_EPOCH else 20
    rates = [learning_rate(config, n // per_epoch, n % per_epoch / per_epoch) for n in range(config.epochs * per_epoch)]
    ax.step(np.arange(len(rates)) / per_epoch, rates, where="post")
    ax.set(xlabel="epoch", title=title)
fig.tight_layout()

# %% [markdown]
# A schedule that does not exist is an error, and the message lists those that do:

# %%
try:
    learning_rate(replace(winner, schedule="linear"), 0)
except ValueError as e:
    print(e)

# %% [markdown]
# ---
# [← Networks](44_networks.py) · [Batches →](46_batches.py)

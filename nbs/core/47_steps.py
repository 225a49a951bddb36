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
# # Steps
# > One step of a training, and everything that the next one needs from it.
#
# A training that was interrupted must end with the same weights as one that was not. Nothing random is therefore
# carried from step to step: the dropout of a step is drawn from the number of the step. What is carried, that is
# weights, optimiser, EMA and position, is in one object, and a checkpoint is that object in a file.

# %%
#| default_exp core.steps

# %%
#| export
import copy
import math
import os
import pickle
import random
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mammo_nb.core.batches import to_device, to_float
from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import replacing
from mammo_nb.core.optimisation import OPTIMIZERS, PRECISIONS, Optimisation
from mammo_nb.core.ranks import join

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
from torch.nn import functional as F

# %% tags=["parameters"]
decay = 0.9  # of the EMA that is drawn below

# %% [markdown]
# ## Seeds
# `deterministic` makes torch refuse operations that it cannot repeat. Two runs on one machine then agree to the last
# bit. Two machines may still differ.

# %%
#| export
def seed_everything(
    seed: int,
    deterministic: bool = True,  # refuse operations whose results may differ between two runs
):
    "Seed Python, NumPy and torch, and choose between repeatable and fastest kernels."
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is repeatable with a fixed workspace only
    torch.use_deterministic_algorithms(deterministic)
    # a debugging aid that costs a write of every new tensor
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic

def _batch_seed(seed: int, batch: int, rank: int) -> int:
    "Seed of the dropout of a batch; it differs between the processes of one training."
    numbers = [seed, batch, rank] if rank else [seed, batch]
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)

# %% [markdown]
# ## EMA
# The exponential moving average (EMA) of the weights is what is validated and kept. Early in a training it would
# consist mostly of the random start, so its decay grows with the steps. TensorFlow's `ExponentialMovingAverage` uses
# `min(decay, (1 + step) / (10 + step))`, YOLOX `decay (1 - exp(-step / ramp))`. The decay of timm is constant, which
# does no harm where the first weights are not random.

# %%
#| export
@torch.no_grad()
def update_ema(
    average: dict[str, torch.Tensor],  # name -> tensor, changed in place
    model: nn.Module | dict,           # or its `state_dict`, to make which takes as long as the step of a small network
    decay: float,                      # the final decay
    step: int,                         # number of the step, from 0
    ramp: int = 0,                     # steps in which the decay grows as in YOLOX; 0: as in TensorFlow; -1: constant
):
    "Move the EMA one step towards the weights of the model; integer buffers are copied."
    if ramp > 0:
        decay = decay * (1 - math.exp(-(step + 1) / ramp))
    elif ramp == 0:
        decay = min(decay, (1 + step) / (10 + step))
    state = model if isinstance(model, dict) else model.state_dict()
    moving = [name for name, value in state.items() if value.is_floating_point()]
    current = [state[name].to(average[name].dtype) for name in moving]
    torch._foreach_lerp_([average[name] for name in moving], current, 1 - decay)
    for name in state.keys() - set(moving):
        average[name].copy_(state[name])

# %%
toy = nn.Linear(1, 1, bias=False)
average, path = {"weight": torch.zeros(1, 1)}, []
with torch.no_grad():
    toy.weight.fill_(1.0)
for step in range(60):
    update_ema(average, toy, decay, step)
    path.append(average["weight"].item())
assert math.isclose(path[0], 0.9, rel_tol=1e-6)   # the decay of the first step is 1/10
plt.figure(figsize=(5, 2.2))
plt.plot(path)
plt.title(f"EMA of a weight that is 1 from the start, decay {decay}")
plt.ylim(0, 1.05);

# %% [markdown]
# ## Optimiser and precision
# Weight decay acts on kernels and matrices, and on biases and normalisations only with `decay_all`. A parameter that
# requires no gradient is frozen: it has no entry in the optimiser, and a frozen batch normalisation keeps its running
# statistics.
#
# With `amp` a network is trained in bfloat16 where the device has units for it. Its range is that of float32, so no
# gradient vanishes or overflows, but it has 8 significant bits. `fp16` is float16 on every device, as in most published
# trainings: 11 significant bits and a small range, so the loss is multiplied by a factor that a scaler adapts. The
# weights, the optimiser and the EMA are float32 in both. A validation runs in float32. On a GPU torch computes its
# convolutions with 11 significant bits of the factors (TF32), but not its matrix products. The memory layout
# `channels_last` changes the order of sums only.
#
# On a CPU the gradients of depthwise convolutions are computed in float32, except where they are of 3x3 with stride 1:
# for the others oneDNN has no fast kernel in bfloat16. A gradient of 5x5 with stride 2 takes 221 ms in bfloat16 and 26
# ms in float32, and EfficientNet-Lite0 spent two thirds of its training in them.

# %%
#| export
def make_optimizer(
    model: nn.Module,
    config: Optimisation,
) -> torch.optim.Optimizer:
    "Make SGD with Nesterov momentum, Adam or AdamW; one-dimensional parameters have no weight decay by default."
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
              {"params": [p for p in parameters if p.ndim <= 1],
               "weight_decay": config.weight_decay if config.decay_all else 0.0}]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr, fused=True)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    raise ValueError(f"There is no optimizer {config.optimizer!r}. Choose one of {', '.join(OPTIMIZERS)}.")

def training_mode(
    model: nn.Module,   # set in place
):
    "Set the training mode; frozen batch normalisations stay in evaluation mode and keep their statistics."
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and not module.weight.requires_grad:
            module.eval()

def half_precision(
    device: torch.device,
    precision: str,          # one of PRECISIONS
) -> torch.dtype | None:     # None: everything in 32 bits
    "The 16-bit type of a training; for amp the fast one: bfloat16 on CPUs with AMX and GPUs that have it, or float16."
    if precision not in PRECISIONS:
        raise ValueError(f"There is no precision {precision!r}. Choose one of {', '.join(PRECISIONS)}.")
    if precision != "amp":
        return torch.float16 if precision == "fp16" else None
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and torch.cpu._is_amx_tile_supported() else None

def depthwise_in_float32(
    model: nn.Module,   # changed in place; its parameters and their names stay
):
    "Compute depthwise convolutions in float32 under autocast, but those of 3x3 with stride 1."
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1 and (
                max(module.stride) > 1 or max(module.kernel_size) > 3):
            module.__class__ = _exact(type(module))

@cache
def _exact(kind: type) -> type:
    "A kind of convolution that computes in float32."
    class Exact(kind):
        def forward(self, x):
            with torch.autocast(x.device.type, enabled=False):
                return super().forward(x.float()).to(x.dtype)
    return Exact

# %% [markdown]
# ## Losses
# A loss function returns one number, or several with names. Several are added, and each is recorded: a term that must
# count more is multiplied by its weight inside the loss function.

# %%
#| export
def loss_terms(
    value: torch.Tensor | dict[str, torch.Tensor],  # scalar, or name -> scalar
) -> dict[str, torch.Tensor]:                       # `loss`, which is minimised, and the named terms
    "The sum of the terms of a loss, and the terms."
    if isinstance(value, torch.Tensor):
        return {"loss": value}
    if not value or {"loss", "epoch", "lr"} & set(value):
        raise ValueError(f"A loss function returned the terms {list(value)}. Return at least one, and none that is "
                         "named loss, epoch or lr.")
    first, *others = value.values()
    return {"loss": sum(others, first), **value}

# %%
terms = loss_terms({"label": torch.tensor(0.5), "mask": 2 * torch.tensor(0.75)})
assert {name: term.item() for name, term in terms.items()} == {"loss": 2.0, "label": 0.5, "mask": 1.5}

# %% [markdown]
# ## State of a training
# With `accumulate` of k, the gradients of k batches make one step. Each batch counts by its share of the samples, so
# that k batches with a mean loss give the gradient of one batch with all of their samples. A checkpoint is written
# after a step only: a training that is killed between two steps repeats the batches since the last checkpoint.
#
# A checkpoint holds tensors and numbers only. It is read without running any code from the file.

# %%
#| export
class CheckpointError(ProjectError):
    "A checkpoint that cannot be read."

class DivergedError(ProjectError):
    "A training whose loss is no longer a number."

class Training:
    "Model, optimiser, EMA and position of a training in progress."
    def __init__(
        self,
        model: nn.Module,       # trained in place
        config: Optimisation,
        device: torch.device,
    ):
        self.config, self.device = config, device
        self.model = model.to(device)
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d}  # in which convolutions are fastest
        for parameter in self.model.parameters():
            if parameter.ndim in layouts:
                parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.ndim])
        self.rank, self.ranks = join()
        # gradients are averaged over the processes; batch normalisation uses the statistics of the first one
        self.network = DistributedDataParallel(self.model) if self.ranks > 1 else self.model
        self.optimizer = make_optimizer(self.model, config)
        self.optimizer.zero_grad(set_to_none=True)
        self.half = half_precision(device, config.precision)
        if self.half == torch.bfloat16 and device.type == "cpu":
            depthwise_in_float32(self.model)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half == torch.float16)
        self.state = self.model.state_dict()   # the tensors themselves, so it is always up to date
        self.parameters = list(self.model.parameters())
        self.average = {k: v.detach().clone() for k, v in self.state.items()} if config.ema_decay else None
        self.epoch = self.batch = self.all_batches = self.steps = 0  # batch counts within the epoch, the others do not
        self.sums = {}     # name -> sum of this loss over the batches of the epoch
        self.history = []  # a row for each finished epoch

    _numbers = ("epoch", "batch", "all_batches", "steps", "sums", "history")

    def save(self, path: Path):
        "Write the checkpoint, in the first process only."
        if self.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average or {},
            **{name: getattr(self, name) for name in self._numbers},
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def resume(self, path: Path) -> bool:
        "Continue from a checkpoint; False if there is none. Raises CheckpointError if it is damaged."
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except (EOFError, RuntimeError, pickle.UnpicklingError) as e:
            raise CheckpointError(f"{path.parent.name}/{path.name} is damaged ({type(e).__name__}). "
                                  "Delete it to train this fold again from the start.") from e
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average = state["average"]
        for name in self._numbers:
            setattr(self, name, state[name])
        return True

    def averaged(self) -> nn.Module:
        "A copy for evaluation, with the EMA weights if there are any."
        model = copy.deepcopy(self.model)
        if self.average is not None:
            model.load_state_dict(self.average)
        return model.eval()

    def train_batch(
        self,
        inputs,              # nested, given to the network as one argument
        targets,             # nested, given to the loss
        loss,                # f(outputs, targets) -> scalar tensor or name -> scalar tensor
        share: float = 1.0,  # part of the step's samples that are in this batch, 0 to 1
        last: bool = True,   # whether this is the last batch of the step
    ):
        """Add the gradient of a batch, and take the step after its last batch. Raises DivergedError if the loss is not
        finite."""
        torch.manual_seed(_batch_seed(self.config.seed, self.all_batches, self.rank))
        alone = self.network.no_sync() if self.ranks > 1 and not last else nullcontext()
        with alone:  # several processes exchange their gradients once a step
            with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
                outputs = self.network(to_device(inputs, self.device))
            terms = loss_terms(loss(to_float(outputs), to_device(targets, self.device)))
            total = terms["loss"]
            if not torch.isfinite(total):
                raise DivergedError(f"The loss is {total.item()} at epoch {self.epoch}, batch {self.batch}. "
                                    "Lower the learning rate.")
            self.scaler.scale(total if share == 1 else total * share).backward()
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + term.item()
        self.batch += 1
        self.all_batches += 1
        if last:
            self._take_step()

    def _take_step(self):
        if self.config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            update_ema(self.average, self.state, self.config.ema_decay, self.steps, self.config.ema_ramp)
        self.steps += 1

    def losses(self) -> dict[str, float]:
        "Means over the batches of this epoch so far: `loss` and the named terms."
        return {name: value / self.batch for name, value in self.sums.items()}

# %% [markdown]
# ## What came out
# Six samples in batches of 4 and 2, and in one batch: the same weights after the step. A checkpoint that is read back
# holds the same position.

# %%
def trained(parts):
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    config = Optimisation(epochs=1, batch_size=4, lr=0.1, precision="fp32")
    state = Training(model, config, torch.device("cpu"))
    x, y = torch.arange(12.).view(6, 2), torch.ones(6, 1)
    for part in parts:
        state.train_batch(x[part], y[part], F.mse_loss, share=len(x[part]) / 6, last=part.stop == 6)
    return state

two, one = trained([slice(0, 4), slice(4, 6)]), trained([slice(0, 6)])
assert torch.allclose(two.model.weight, one.model.weight) and (two.steps, two.batch) == (1, 2)
with tempfile.TemporaryDirectory() as folder:
    two.save(Path(folder) / "last.pt")
    again = trained([])
    assert again.resume(Path(folder) / "last.pt") and torch.equal(again.model.weight, two.model.weight)
{"position": (again.epoch, again.batch, again.steps), "losses": again.losses()}

# %% [markdown]
# ---
# [← Batches](46_batches.py) · [Train →](48_train.py)

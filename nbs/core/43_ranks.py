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
# # Ranks
# > Several GPUs train one network: `torchrun` starts a process for each, and they agree after every step.
#
# Nothing here is ours but the calls. A training that is alone never notices; one that `torchrun` has started finds its
# number in the environment, joins the others, and shares the work.

# %%
#| default_exp core.ranks

# %%
#| export
import json
import os
import subprocess
import sys
from datetime import timedelta

import torch
from torch import distributed

# %% tags=["parameters"]
processes = 2   # started below

# %%
#| export
PATIENCE = timedelta(hours=6)  # the others wait while the first one validates

def join() -> tuple[int, int]:  # this process's number, and how many there are; 0, 1 when alone
    "Meet the other processes of a `torchrun`: NCCL between GPUs, gloo without."
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks == 1:
        return 0, 1
    if not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return distributed.get_rank(), ranks

def from_first(value):  # what the first process has; anything that pickles
    "The same in every process; the others wait for the first one."
    if join()[1] == 1:
        return value
    parcel = [value]
    distributed.broadcast_object_list(parcel)
    return parcel[0]

def mean(
    value: float,
) -> float:
    "The mean over the processes."
    ranks = join()[1]
    if ranks == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64, device="cuda" if torch.cuda.is_available() else "cpu")
    distributed.all_reduce(total)
    return total.item() / ranks

# %%
assert join() == (0, 1) and from_first({"a": 1}) == {"a": 1} and mean(2.5) == 2.5

# %% [markdown]
# A stage starts them itself, so that a notebook needs no other command than a recipe that says how many.

# %%
#| export
def launch(
    function,         # of a module, taking what JSON can say
    arguments: list,
    processes: int,   # on this machine: one a GPU
):
    "Call a function in several processes that belong together; raises CalledProcessError if one fails."
    code = (f"import json, sys; from {function.__module__} import {function.__name__} as f; "
        "f(*json.loads(sys.argv[1]))\nfrom torch import distributed as d\nif d.is_initialized(): "
        "d.destroy_process_group()")
    subprocess.run([
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--no-python",
        sys.executable, "-c", code,
        json.dumps(arguments)
    ], check=True)

# %% [markdown]
# What came out: two processes, each with a number of its own, and the mean of both numbers.

# %%
launch(print, ["hello from each"], processes)

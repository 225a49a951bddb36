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
# > Several GPUs train one network: `torchrun` starts a process for each, and they average their gradients.
#
# A *rank* is the number of a process. A training without `torchrun` has the rank 0 and is alone. A training that
# `torchrun` has started reads its rank from the environment, joins the others and shares the batches with them.

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
PATIENCE = timedelta(hours=6)  # the other processes wait while the first one validates

def join() -> tuple[int, int]:  # rank of this process, and number of processes; 0, 1 when alone
    "Join the other processes of a `torchrun`: NCCL between GPUs, else gloo."
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks == 1:
        return 0, 1
    if not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return distributed.get_rank(), ranks

def from_first(
    value,  # any value that pickles; only the one of the first process is used
):
    "Return the value of the first process in every process; the others wait for it."
    if join()[1] == 1:
        return value
    parcel = [value]
    distributed.broadcast_object_list(parcel)
    return parcel[0]

def mean(
    value: float,  # of this process
) -> float:        # the same in every process
    "Mean over the processes."
    ranks = join()[1]
    if ranks == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64, device="cuda" if torch.cuda.is_available() else "cpu")
    distributed.all_reduce(total)
    return total.item() / ranks

# %%
assert join() == (0, 1) and from_first({"a": 1}) == {"a": 1} and mean(2.5) == 2.5

# %% [markdown]
# A stage starts the processes itself: the recipe has their number, and the notebook needs no other command.

# %%
#| export
def launch(
    function,         # a function of a module that can be imported
    arguments: list,  # its arguments, which can be written as JSON
    processes: int,   # number of processes on this machine, one for each GPU
):
    "Call a function in several processes that belong together; raises CalledProcessError if one fails."
    code = "\n".join([
        "import json, sys",
        "from torch import distributed",
        f"from {function.__module__} import {function.__name__} as function",
        "function(*json.loads(sys.argv[1]))",
        "if distributed.is_initialized():",
        "    distributed.destroy_process_group()",
    ])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    subprocess.run([*torchrun, "--no-python", sys.executable, "-c", code, json.dumps(arguments)], check=True)

# %% [markdown]
# ## What came out
# Two processes, each of which prints a line:

# %%
launch(print, ["hello from each"], processes)

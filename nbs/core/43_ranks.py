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
from pkgutil import resolve_name

import joblib
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
# A stage starts the processes itself: the recipe has their number, and the notebook needs no other command. They end
# with the process that has started them, also when it is killed.

# %%
#| export
_TORCHRUN = """
import sys
from mammo_nb.core.processes import end_with
end_with(int(sys.argv.pop(1)))
from torch.distributed.run import main
main()
"""

def launch(
    function: str,    # module:name of a function; a notebook cannot lend its own one to another process
    arguments: list,  # its arguments, which can be written as JSON
    processes: int,   # number of processes on this machine, one for each GPU
):
    "Call a function in several processes that belong together; raises CalledProcessError if one fails."
    resolve_name(function)
    code = "\n".join([
        "import json, os, pkgutil, sys",
        "from mammo_nb.core.processes import end_with",
        "end_with(os.getppid())",
        "from torch import distributed",
        f"pkgutil.resolve_name({function!r})(*json.loads(sys.argv[1]))",
        "if distributed.is_initialized():",
        "    distributed.destroy_process_group()",
    ])
    torchrun = [sys.executable, "-c", _TORCHRUN, str(os.getpid()), "--standalone", f"--nproc-per-node={processes}"]
    subprocess.run([*torchrun, "--no-python", sys.executable, "-c", code, json.dumps(arguments)], check=True)

# %% [markdown]
# ## Trainings side by side
# Trainings that do not depend on each other, such as those of folds, need no common process. Small networks gain from
# this: two processes with one thread each train two of them in little more than the time of one with two threads. Each
# process takes every n-th training, and gets its share of the cores, or a GPU of its own where there are several.
#
# Finished trainings are not repeated. So the caller goes through all of them afterwards, in its own process. It
# collects what is finished, and continues what a process that failed has left. A process that loses its parent ends,
# because the end of its standard input tells it so.

# %%
#| export
_CHILD = """
import json, os, pkgutil, sys, threading
def end_with_parent():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=end_with_parent, daemon=True).start()
pkgutil.resolve_name({function!r})(*json.loads(sys.argv[1]))
"""

def _share_of_machine(part: int, parts: int) -> dict[str, str]:
    "The environment of one of several processes: its threads, and its GPU if there are several."
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, joblib.cpu_count() // parts)))
    share = {**os.environ, "OMP_NUM_THREADS": threads}
    if (gpus := torch.cuda.device_count()) > 1:
        names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        share["CUDA_VISIBLE_DEVICES"] = names[part % gpus]
    return share

def side_by_side(
    function: str,    # module:name of f(*arguments, part, parts); it resumes, and repeats nothing
    arguments: list,  # which can be written as JSON
    jobs: int,        # number of processes; 1: nothing is done, since the caller goes through all trainings anyway
) -> int:             # number of processes that failed
    "Call a function for each part of its trainings, at the same time. The caller finishes what a process has left."
    if jobs == 1:
        return 0
    resolve_name(function)   # a name that does not exist is an error of the caller, and is not tried again
    code, children = _CHILD.format(function=function), []
    try:
        for part in range(jobs):
            children.append(subprocess.Popen([sys.executable, "-c", code, json.dumps([*arguments, part, jobs])],
                                             stdin=subprocess.PIPE, env=_share_of_machine(part, jobs)))
        failed = sum(child.wait() != 0 for child in children)
    finally:
        for child in children:
            child.stdin.close()
            child.wait()
    if failed:
        print(f"{failed} of {jobs} processes failed (their messages are above). Their trainings go on in this process.")
    return failed

# %% [markdown]
# ## What came out
# Two processes that belong together, each of which prints a line. Then two that do not, and that get different parts:

# %%
launch("builtins:print", ["hello from each"], processes)

# %%
assert side_by_side("builtins:print", ["part and number of parts:"], processes) == 0

# %% [markdown]
# ---
# [← Metrics](42_metrics.py) · [Networks →](44_networks.py)

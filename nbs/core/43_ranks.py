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
# Several machines do the same, with one `torchrun` on each. A *rank* is the number of a process. A training without
# `torchrun` has the rank 0 and is alone. A training that `torchrun` has started reads its rank from the environment,
# joins the others and shares the batches with them.

# %%
#| default_exp core.ranks

# %%
#| export
import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from pkgutil import resolve_name

import joblib
import torch
from torch import distributed

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import read_json, write_json

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
# ## Processes of one training
# A stage starts the processes itself: the recipe has their number, and the notebook needs no other command. They end
# with the process that has started them, also when it is killed.
#
# With more than one node, the stage writes `nodes.json` into the folder of the run and waits. `mammo-nb node RUN` on
# each of the other machines reads it and joins. All of them must see the folder of the run under the same path. They
# meet at a port of the machine that runs the stage; `MAMMO_NB_RENDEZVOUS` names another address. If a machine is lost,
# the training ends with an error, and the same commands continue it at its last checkpoint.

# %%
#| export
_TORCHRUN = """
import sys
from mammo_nb.core.processes import end_with
end_with(int(sys.argv.pop(1)))
from torch.distributed.run import main
main()
"""

PORT = 29400   # where nodes meet, unless MAMMO_NB_RENDEZVOUS says otherwise

class NodeError(ProjectError):
    "A machine that cannot take part in a training."

def launch(
    function: str,    # module:name of a function; a notebook cannot lend its own one to another process
    arguments: list,  # its arguments, which can be written as JSON
    processes: int,   # number of processes on each machine, one for each GPU
    nodes: int = 1,   # number of machines
    folder: Path | str = "",  # for several machines: a folder that all see; gets nodes.json while the function runs
):
    "Call a function in several processes that belong together; raises CalledProcessError if one fails."
    if nodes == 1:
        _torchrun(function, arguments, processes, ["--standalone"])
        return
    address = os.environ.get("MAMMO_NB_RENDEZVOUS") or f"{socket.gethostname()}:{PORT}"
    note = Path(folder, "nodes.json")
    write_json(note, {"function": function, "arguments": arguments, "processes": processes, "nodes": nodes,
                      "address": address})
    print(f"{nodes} machines train together. On each of the others: mammo-nb node {folder}", flush=True)
    try:
        take_part(note)
    finally:
        note.unlink(missing_ok=True)

def take_part(
    note: Path,             # nodes.json of a run
    processes: int = 0,     # of this machine; 0: as many as the recipe says
):
    "Join the training that a stage has begun; raises NodeError if there is none, CalledProcessError if it fails."
    if not note.exists():
        raise NodeError(f"{note.parent} waits for no machine. Start its training first, with nodes above 1 in its "
                        "recipe.")
    about = read_json(note)
    patience = int(PATIENCE.total_seconds())
    _torchrun(about["function"], about["arguments"], processes or about["processes"], [
        f"--nnodes={about['nodes']}", "--rdzv-backend=c10d", f"--rdzv-endpoint={about['address']}",
        f"--rdzv-id={note.parent.name}", f"--rdzv-conf=join_timeout={patience}"])

def _torchrun(function: str, arguments: list, processes: int, where: list[str]):
    "Start the processes of this machine, and wait for them."
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
    torchrun = [sys.executable, "-c", _TORCHRUN, str(os.getpid()), *where, f"--nproc-per-node={processes}"]
    subprocess.run([*torchrun, "--no-python", sys.executable, "-c", code, json.dumps(arguments)], check=True)

# %% [markdown]
# ## Trainings side by side
# Trainings that do not depend on each other, such as those of folds, need no common process. Small networks gain from
# this: two processes with one thread each train two of them in little more than the time of one with two threads. Each
# process takes every n-th training, and gets its share of the cores, or a GPU of its own where there are several.
#
# Finished trainings are not repeated. So if a process failed, the caller goes through all of them in its own process,
# and continues what the other has left. A process that loses its parent ends, because the end of its standard input
# tells it so.

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
    jobs: int,        # number of processes; 1: nothing is done
) -> bool:            # whether something is left, which the caller has to do
    "Call a function for each part of its trainings, at the same time."
    if jobs == 1:
        return True
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
    return failed > 0

# %% [markdown]
# ## What came out
# Two processes that belong together, each of which prints a line. Then two that do not, and that get different parts:

# %%
launch("builtins:print", ["hello from each"], processes)

# %%
assert not side_by_side("builtins:print", ["part and number of parts:"], processes)

# %% [markdown]
# ---
# [← Metrics](42_metrics.py) · [Networks →](44_networks.py)

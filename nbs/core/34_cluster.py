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
# # Cluster
# > The rows of many items, computed on many machines.
#
# A [Dask](https://distributed.dask.org) scheduler gives the items to its workers; table and journal stay on this
# machine. Functions of installed modules are sent by name, so every worker needs the same version of mammo_nb.
# Functions of a notebook are sent by value. Files are not sent: every worker must see them under the same path.

# %%
#| default_exp core.cluster

# %%
#| export
import asyncio
import json
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice

from tqdm import tqdm

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.processes import LOST, as_row

# %% [markdown]
# ## A scheduler
# A wrong address should cost seconds and not a night, so the scheduler must respond within 10 s. Dask is imported only
# when a cluster is used.

# %%
#| export
class BackendError(ProjectError):
    "The requested processes or machines are not available. The text explains what to do."

PATIENCE = 10  # seconds within which a scheduler must respond

def connect_cluster(
    backend: str,    # "loky" or "dask"
    scheduler: str,  # address of the scheduler, for "dask"
):                   # a context manager: of a distributed.Client for "dask", of None for "loky"
    "Connect to the cluster, if the backend is one. Raises BackendError."
    if backend not in ("loky", "dask"):
        raise BackendError(f"backend is {backend!r}. Use 'loky' for processes of this machine or 'dask' for a cluster.")
    if backend == "loky":
        return nullcontext()
    if not scheduler:
        raise BackendError(
            "backend 'dask' needs the address of the scheduler, such as scheduler='tcp://10.0.0.5:8786'. "
            "`dask scheduler` prints it when it starts."
        )
    try:
        from distributed import Client, Security, comm
    except ImportError as e:
        raise BackendError("backend 'dask' needs distributed, here and on the workers: pip install distributed") from e

    async def greet():  # Client alone would wait for ever at a port that is open but silent
        line = await asyncio.wait_for(comm.connect(scheduler, **Security().get_connection_args("client")), PATIENCE)
        await line.close()

    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: asyncio.run(greet())).result()  # in a notebook, this thread has its own event loop
        return Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError, asyncio.TimeoutError) as e:  # TypeError: tls:// without certificates
        raise BackendError(
            f"no Dask scheduler responds at {scheduler} ({str(e) or f'silent for {PATIENCE} s'}). Check that `dask "
            "scheduler` is running and that this is the address it has printed."
        ) from e

# %% [markdown]
# An unknown backend, or a scheduler without an address, is an error with the correct spelling:

# %%
for given in (("dusk", ""), ("dask", "")):
    try:
        connect_cluster(*given)
    except BackendError as e:
        print(e)
    else:
        raise AssertionError(given)

# %% [markdown]
# ## Rows
# When a worker dies, Dask gives its items to other workers. An item that was in progress at four deaths
# (`distributed.scheduler.allowed-failures` plus one) comes back as `KilledWorker`. It need not be the cause if a worker
# has many threads or if many workers die. So such an item is tried once more, with no other item running, before its
# row becomes an error. With one thread per worker this is rare.

# %%
#| export
def rows_on_cluster(
    client,      # distributed.Client
    fn,          # item -> row
    todo: dict,  # hash -> item
):               # yields (hash, row as JSON) in the order in which items finish
    "Compute the rows of all items on a cluster, also if workers die. Raises BackendError if the scheduler is lost."
    # joblib's dask backend (1.6) is not used: it never returns from an item that Dask has given up, nor from a function
    # that cannot be pickled
    from distributed import KilledWorker, as_completed
    # as_completed(with_results=True) would wait for ever for a result that is lost on the way here
    finished = as_completed(loop=client.loop)
    names = {}     # future -> name of its item
    suspects = []  # names; the second round starts when the first has filled this list
    try:
        for alone, rest in (False, iter(todo)), (True, iter(suspects)):
            while True:
                threads = sum(client.nthreads().values())  # workers may join and leave
                if not threads:
                    tqdm.write(
                        f"no workers at {client.scheduler.address}, waiting for one. Start it with: dask worker "
                        f"{client.scheduler.address} --nthreads 1"
                    )
                limit = 1 if alone else 2 * max(1, threads)  # the second item of a thread waits there
                for name in islice(rest, max(0, limit - len(names))):
                    # pure=False: else an equal call of another run would be taken for this one
                    future = client.submit(as_row, fn, todo[name], pure=False)
                    names[future] = name
                    finished.add(future)
                if not names:
                    break
                future = next(finished)
                try:
                    row = future.result()
                except KilledWorker:
                    row = None
                name = names.pop(future)
                if row is None and not alone:
                    suspects.append(name)
                else:
                    yield name, row or json.dumps({"error": LOST})
    except (CancelledError, OSError) as e:
        raise BackendError(
            f"the scheduler is gone ({e}). Start it again and repeat the call: finished rows are in the journal."
        ) from e

# %% [markdown]
# ---
# [← Processes](33_processes.py) · [Parallel →](35_parallel.py)

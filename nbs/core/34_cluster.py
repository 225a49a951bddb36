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
# [Cluster](../docs/cluster.md) tells how to start one with SLURM or Kubernetes.

# %%
#| default_exp core.cluster

# %%
#| export
import asyncio
import configparser
import json
import os
import platform
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pkgutil import resolve_name

from tqdm import tqdm

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.processes import LOST, as_row, package_digest
from mammo_nb.core.settings import SettingsError, find_settings

# %%
#| hide
import tempfile

# %% [markdown]
# ## A scheduler
# The address of the scheduler is a setting, and all stages and commands that map over files obey it. A wrong address
# should cost seconds and not a night, so the scheduler must respond within 10 s. Dask is imported only when a cluster
# is used.

# %%
#| export
class BackendError(ProjectError):
    "The requested processes or machines are not available. The text explains what to do."

PATIENCE = 10  # seconds within which a scheduler must respond
ADDRESS = "MAMMO_NB_SCHEDULER"  # environment variable, which overrides the file

def read_scheduler() -> str:  # such as tcp://10.0.0.5:8786; "": this machine alone
    "Read the address of the Dask scheduler: `scheduler` below `[cluster]` of the nearest settings.ini."
    if ADDRESS in os.environ:
        return os.environ[ADDRESS].strip()
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(find_settings(), encoding="utf-8")
    except SettingsError:   # an installed package outside of a checkout
        return ""
    return parser.get("cluster", "scheduler", fallback="").strip()

def connect_cluster(
    scheduler: str | None = None,  # address of the scheduler; "": this machine; None: as the settings say
):                                 # a context manager: of a distributed.Client, or of None for this machine
    "Connect to the cluster, if there is one. Raises BackendError."
    scheduler = read_scheduler() if scheduler is None else scheduler
    if not scheduler:
        return nullcontext()
    try:
        from distributed import Client, Security, comm
    except ImportError as e:
        raise BackendError("A cluster needs the package distributed, here and on the workers: pip install "
                           "distributed") from e

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
            "scheduler` is running and that this is the address it has printed, such as tcp://10.0.0.5:8786."
        ) from e

# %% [markdown]
# The environment wins over the file, also with an empty address. A text that is no address is an error:

# %%
os.environ[ADDRESS] = ""
assert connect_cluster().__enter__() is None
os.environ[ADDRESS] = "somewhere"
try:
    connect_cluster()
except BackendError as e:
    print(e)
else:
    raise AssertionError
del os.environ[ADDRESS]

# %% [markdown]
# ## Workers that fit
# A worker with another version would write other rows, and one that does not see a folder would fail at each file. So
# all workers are asked before the first item: for the digest of their package, for their Python, and for some of the
# files that will be read and the folder that will be written. A worker that joins later is asked before its first item.

# %%
#| export
def facts(
    paths,    # files and folders that all workers must see
) -> tuple:   # what `worker_fault` compares
    "What a worker must have in common with this machine."
    return package_digest(), ".".join(platform.python_version_tuple()[:2]), tuple(sorted({str(p) for p in paths}))

def worker_fault(
    wanted: tuple,   # from `facts` of the machine that gives the work
) -> str:            # "" if there is none
    "Why this machine cannot do that work."
    code, python, _ = facts([])
    faults = []
    if code != wanted[0]:
        from mammo_nb import __version__
        faults.append(f"its mammo_nb, version {__version__}, has other code than the one here")
    if python != wanted[1]:
        faults.append(f"its Python is {python} and not {wanted[1]}")
    if missing := [path for path in wanted[2] if not os.path.exists(path)]:
        faults.append(f"it does not see {', '.join(missing[:3])}" + (" and others" if missing[3:] else ""))
    return "; ".join(faults)

def check_workers(
    client,         # distributed.Client
    wanted: tuple,  # from `facts`
):
    "Raise BackendError that lists the workers which cannot do the work, and why."
    def fault():  # is sent by value, since a worker may have no mammo_nb or an old one
        try:
            function = resolve_name("mammo_nb.core.cluster:worker_fault")
        except (ImportError, AttributeError) as e:
            return f"mammo_nb cannot be imported, or is older than the one here ({e})"
        return function(wanted)
    found = client.run(fault, on_error="return")
    wrong = [f"{name}: {why}" for name, why in sorted(found.items()) if why]
    if wrong:
        raise BackendError("\n  ".join([f"{len(wrong)} of {len(found)} workers cannot take part:", *wrong]) +
                           "\nInstall the same checkout there, and mount the folders under the same paths.")

_fitting = set()  # in a worker: facts that were compared

def row_on_worker(
    wanted: tuple,  # from `facts`
    fn,             # item -> row
    item: dict,
) -> str:           # as from `as_row`
    "Compute a row in a worker. Raises BackendError if the worker does not fit."
    if wanted not in _fitting:
        if why := worker_fault(wanted):
            raise BackendError(f"the worker on {platform.node()} cannot take part: {why}")
        _fitting.add(wanted)
    return as_row(fn, item)

# %%
with tempfile.TemporaryDirectory() as folder:
    assert not worker_fault(facts([folder]))
worker_fault(("0" * 64, "2.7", (folder,)))

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
    paths=(),    # files and folders that the workers must see
):               # yields (hash, row as JSON) in the order in which items finish
    """Compute the rows of all items on a cluster, also if workers die. Raises BackendError if a worker does not fit or
    the scheduler is lost."""
    # joblib's dask backend (1.6) is not used: it never returns from an item that Dask has given up, nor from a function
    # that cannot be pickled
    from distributed import KilledWorker, as_completed
    # as_completed(with_results=True) would wait for ever for a result that is lost on the way here
    finished = as_completed(loop=client.loop)
    names = {}     # future -> name of its item
    suspects = []  # names; the second round starts when the first has filled this list
    threads, asked = 0, float("-inf")
    wanted = facts(paths)
    try:
        if todo:
            check_workers(client, wanted)
        for alone, rest in (False, iter(todo)), (True, iter(suspects)):
            while True:
                if not threads or time.monotonic() - asked > 1:  # workers may join and leave
                    threads, asked = sum(client.nthreads().values()), time.monotonic()
                if not threads:
                    tqdm.write(
                        f"no workers at {client.scheduler.address}, waiting for one. Start it with: dask worker "
                        f"{client.scheduler.address} --nthreads 1"
                    )
                limit = 1 if alone else 2 * max(1, threads)  # the second item of a thread waits there
                for name in islice(rest, max(0, limit - len(names))):
                    # pure=False: else an equal call of another run would be taken for this one
                    future = client.submit(row_on_worker, wanted, fn, todo[name], pure=False)
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

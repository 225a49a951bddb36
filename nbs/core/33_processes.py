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
# # Processes
# > Processes of this machine that work on items, and survive the crash of one of them.
#
# joblib's processes run functions that were defined in a notebook as well as imported ones. But a crash in a codec, or
# the system's out-of-memory killer, ends a whole process without an exception. Then any of the items in progress may be
# the cause. Each of them is tried once more, with no other item running. Most of them then finish. An item that ends
# its process again gets a row with that error.

# %%
#| default_exp core.processes

# %%
#| export
import hashlib
import json
import os
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future, wait
from functools import cache, partial
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

import joblib
import numpy as np
from joblib.externals.loky.process_executor import ProcessPoolExecutor, TerminatedWorkerError

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import StorageError, mark_of, recording

# %% tags=["parameters"]
workers = 2    # processes

# %% [markdown]
# ## A row
# A function returns a flat dict for one item. The dict becomes JSON in the process that computed it, so that a row from
# the journal and a new row are the same text. Numpy numbers and paths become plain values. A value that cannot be
# written is an error of its item. If the function raises an exception, the row holds its class and its message.
#
# The files that the function writes are marked in the row, under a key that no table shows. So a later run can compare
# them with what is on the disk. A full disk would be the error of every item, so it ends the run instead.

# %%
#| export
def plain(
    value,  # a value that the json module cannot write
):          # a value that it can write
    "Convert numpy scalars, arrays and paths to plain Python values. Raises TypeError for anything else."
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} does not fit into a table")

FILES = "@files"   # key of the marks in a row

def marked(
    paths: list[Path],  # files that a function has written, from `recording`
) -> dict:              # path -> mark, of those that still exist
    "Mark the files of an item."
    return {str(p.absolute()): mark_of(p) for p in paths if p.is_file()}

def as_row(
    fn,          # item -> row, a flat dict
    item: dict,  # the item to work on
) -> str:        # the row as JSON, with the column `error` and, under FILES, the marks of the files that were written
    "Compute the row of one item. Every Exception but StorageError becomes the error of the row."
    try:
        with recording() as written:
            row = {"error": "", **fn(item)}
        if files := marked(written):
            row[FILES] = files
        return json.dumps(row, default=plain)
    except StorageError:
        raise
    except Exception as e:
        return json.dumps({"error": f"{type(e).__name__}: {e}"})  # the run continues; the reason is in the table

def quiet(
    fn,          # item -> row
    item: dict,
) -> dict:
    "The row of an item, with the classes of its errors only: their messages may name a patient."
    try:
        row = fn(item)
    except StorageError:
        raise
    except Exception as e:
        return {"error": type(e).__name__}
    error = row.get("error", "")
    if isinstance(error, list):
        return {**row, "error": [e.partition(":")[0] for e in error]}
    return {**row, "error": error.partition(":")[0]}

# %% [markdown]
# A row depends on the code that computed it. Inside the package the digest of all its modules stands for this code.

# %%
#| export
PACKAGE = mark_of.__module__.partition(".")[0]   # in a notebook, __name__ is not that of the package

@cache
def package_digest() -> str:
    "Digest of all modules of this package."
    root = Path(sys.modules[PACKAGE].__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()

# %%
assert quiet(lambda item: 1 / item["x"], {"x": 0}) == {"error": "ZeroDivisionError"}
as_row(lambda item: {"root": np.sqrt(item["x"]), "name": Path("a/b.dcm")}, {"x": 2})

# %%
as_row(lambda item: {"inverse": 1 / item["x"]}, {"x": 0})

# %% [markdown]
# ## The end of a run
# A run that is killed ends without running any more code. So each of its processes looks twice a second whether its
# parent is still there, and ends without it. Else a process with a network would hold its memory for minutes.

# %%
#| export
def end_with(
    parent: int,  # process id
):
    "End this process soon after its parent has ended. Called in a new process."
    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)
    threading.Thread(target=watch, daemon=True, name="watch of the parent").start()

def ends_with_this() -> dict:  # arguments of joblib's `Parallel` and of loky's pools
    "Make processes end with this one."
    return {"initializer": end_with, "initargs": (os.getpid(),)}

def in_processes(
    jobs,                 # of `joblib.delayed`
    workers: int | None,  # number of processes; None: one for each core
):                        # yields the results in the order of the jobs
    "Compute jobs in joblib's processes. They end after ten seconds without work; joblib would keep them for minutes."
    return joblib.Parallel(n_jobs=workers or joblib.cpu_count(), return_as="generator", idle_worker_timeout=10,
                           **ends_with_this())(jobs)

# %% [markdown]
# ## Processes
# The caller starts items and takes their results, both in its own time. An item runs only after it was started, so a
# slow caller is not flooded with results. A stream (`stream`) uses the same processes, with a queue into which its
# networks write as well.
#
# To hand an item to a process and to fetch its result takes a third of a millisecond. So short items share a task. Its
# size follows the time that the last items took, and a task whose time is over returns what it has: a long item among
# short ones delays no other result by more than its own time.

# %%
#| export
LOST = ("WorkerLost: the process ended without an error message, and again when it worked on this item alone. "
        "Check for a lack of memory, or a crash in a codec")
TOGETHER = 0.05  # seconds of short items in one task
MOST = 64        # items in one task

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
            "NUMEXPR_NUM_THREADS")

class ProcessError(ProjectError):
    "Processes that cannot be started."

def _work(fn, items: list, limit: float) -> tuple[list, float]:
    "Results of the first items, at least of one, and the seconds that they took."
    started, results = time.perf_counter(), []
    for item in items:
        try:
            results.append(fn(item))
        except Exception:
            if not results:
                raise
            break   # the next task begins with this item, and raises the error if it is still there
        if time.perf_counter() - started >= limit:
            break
    return results, time.perf_counter() - started

class Processes:
    """Processes of this machine that work on items and are replaced when one of them dies. At the end of a `with`
    block, processes that still run are killed."""
    def __init__(self,
        fn,             # item -> result; an exception of it is raised by `take`
        workers: int,   # number of processes; 0: each item is computed in this process when it is started
        lost,           # the result of an item that ended its process twice
        events: SimpleQueue | None = None,  # gets a future for each task; None: a new queue
        idle: int = 60, # seconds without work after which a process ends
        together: float = 0.0,  # seconds of short items that share a task; 0: each item is a task
    ):
        self.fn, self.workers, self.lost, self.idle, self.together = fn, workers, lost, idle, together
        self.events = events or SimpleQueue()
        self.held = deque()      # name, item; started, and waiting for a process
        self.running = {}        # future -> list of name and item, alone
        self.suspects = deque()  # name, item; in progress when a process died
        self.finished, self.mean = 0, float("inf")  # items, and seconds of each of the last ones
        share = str(max(1, joblib.cpu_count() // max(1, workers)))
        self.env = {name: os.environ.get(name, share) for name in _THREADS}
        self.pool = self._new_pool()

    def __enter__(self):
        return self
    def __exit__(self, *_):
        if self.workers:
            # a process that hangs is killed
            self.pool.shutdown(kill_workers=bool(wait(self.running, timeout=1).not_done))

    def __len__(self):   # items started and not yet taken
        return len(self.held) + sum(len(batch) for batch, _ in self.running.values()) + len(self.suspects)

    def _new_pool(self):
        "Make a pool, which starts its processes when it gets work. loky's reusable pool belongs to joblib's calls."
        if not self.workers:
            return None
        try:
            return ProcessPoolExecutor(self.workers, timeout=self.idle, env=self.env, **ends_with_this())
        except OSError as e:
            raise ProcessError(f"Processes cannot be started ({e}). Make /dev/shm writable, or work in one process: "
                               "--workers 1.") from e

    def _run(self, batch: list, alone: bool):
        "Give items to the pool, or compute them here if there are no processes."
        task = self.fn, [item for _, item in batch], self.together
        if self.workers:
            while True:
                try:
                    future = self.pool.submit(_work, *task)
                    break
                except TerminatedWorkerError:  # a process has died since the last call
                    self.pool.shutdown(kill_workers=True)
                    self.pool = self._new_pool()
        else:
            future = Future()
            future.set_result(_work(*task))
        self.running[future] = batch, alone
        future.add_done_callback(self.events.put)

    def _size(self) -> int:
        "Number of items in the next task. It grows slowly, since a process that dies loses the results of its task."
        grown = 1 + self.finished // (8 * max(1, self.workers))
        return max(1, min(MOST, grown, int(self.together / max(self.mean, 1e-9)))) if self.workers else 1

    def room(self) -> int:
        "Number of items to start now, so that each process has a task and a second one waiting."
        return max(0, max(1, 2 * self.workers) * self._size() - len(self))

    def _refill(self):
        "Run a suspect alone, or keep two tasks per process running."
        if self.suspects:
            if not self.running:
                self._run([self.suspects.popleft()], alone=True)
        elif not any(alone for _, alone in self.running.values()):
            while self.held and len(self.running) < max(1, 2 * self.workers):
                # the second task of a process waits there; the items of all are suspects when a process dies
                self._run([self.held.popleft() for _ in range(min(self._size(), len(self.held)))], alone=False)

    def start(self,
        name,  # name of the item, which `take` returns
        item,  # the item to work on
    ):
        "Start the work on an item."
        self.held.append((name, item))
        self._refill()

    def take(self,
        future: Future,  # from `events`
    ) -> list:           # name and result of each finished item; what is not finished is tried once more
        "Take the results of an event."
        batch, alone = self.running.pop(future)
        try:
            results, seconds = future.result()
        except TerminatedWorkerError:
            results = [self.lost] if alone else []
            self.suspects.extend(batch[len(results):])
        else:
            self.finished, self.mean = self.finished + len(results), seconds / len(results)
            self.held.extendleft(reversed(batch[len(results):]))
        self._refill()
        return [(name, result) for (name, _), result in zip(batch, results)]

def rows_in_processes(
    fn,            # item -> row
    todo: dict,    # hash -> item
    workers: int,  # number of processes; 0: in this one
):                 # yields (hash, row as JSON) in the order in which items finish
    "Compute the rows of all items in processes of this machine."
    rest = iter(todo.items())
    with Processes(partial(as_row, fn), workers, json.dumps({"error": LOST}), together=TOGETHER) as processes:
        while True:
            for name, item in islice(rest, processes.room()):
                processes.start(name, item)
            if not len(processes):
                return
            yield from processes.take(processes.events.get())

# %% [markdown]
# ## What came out
# Rows from two processes, in the order in which they finished. One of them is an error:

# %%
items = {name: {"x": name} for name in (4, 9, 16, -1)}
rows = dict(rows_in_processes(lambda item: {"root": int(np.sqrt(item["x"]))}, items, workers))
assert json.loads(rows[9]) == {"root": 3, "error": ""} and json.loads(rows[-1])["error"].startswith("ValueError")
rows

# %% [markdown]
# ---
# [← Kaggle](32_kaggle.py) · [Cluster →](34_cluster.py)

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
# # Many files
# > One function, fifty thousand files, one row each: on all cores, through interruptions, with nothing dropped.
#
# Reading and cropping a data set takes hours, and in hours something happens: the notebook is closed, the machine runs
# out of memory, one file kills the codec. Work that is done must stay done, a file that fails must appear in the table
# with its reason, and the table must come out the same however often the run was broken off.

# %%
#| default_exp core.parallel

# %% tags=["parameters"]
n_files = 12   # files of the demonstration
workers = 2    # processes

# %%
#| export
import asyncio
import json
import os
from collections import deque
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import closing, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

import joblib
import numpy as np
import pandas as pd
from joblib.externals.loky.process_executor import ProcessPoolExecutor, TerminatedWorkerError
from tqdm import tqdm

# %%
#| hide
import tempfile

# %% [markdown]
# ## A row
# What a function returns for one item is a flat dict. It is turned into JSON where it was computed: numpy numbers and
# paths become plain ones, what cannot be written is that item's error, and a row that was resumed is the same text as
# one that was not. The function may raise what it likes; the row then holds the error's class and message.

# %%
#| export
def _plain(
    value,  # something json does not know
):          # something it does
    "numpy scalars, arrays and paths as plain Python."
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} does not fit into a table")

def _row(
    fn,          # item -> row
    item: dict,  # what to work on
) -> str:        # the row as JSON, with 'error'
    "Work on one item; never raises an Exception."
    try:
        return json.dumps({**fn(item), "error": ""}, default=_plain)
    except Exception as e:
        return json.dumps({"error": f"{type(e).__name__}: {e}"})  # the run goes on; the reason is in the table

# %%
_row(lambda item: {"root": np.sqrt(item["x"]), "name": Path("a/b.dcm")}, {"x": 2})

# %%
_row(lambda item: {"inverse": 1 / item["x"]}, {"x": 0})

# %% [markdown]
# ## The journal
# Every finished row is appended to a text file beside the table and flushed, so that it survives the death of this
# process. The first line holds the parameters: a journal of other parameters is of no use and starts anew. Each row
# carries a hash of its item, so that a changed item is worked on again. A last line that was torn by the interruption
# is cut off before anything is appended.

# %%
#| export
class _Journal:
    "Finished rows on disk: a first line with the parameters, then one line per row."
    def __init__(self,
        path: Path,  # of the journal
        params,      # json-able: what the rows depend on besides their items
    ):
        # rows: hash of the item -> row
        self.rows, head = {}, json.dumps({"params": params}, sort_keys=True, default=_plain)
        kept, lines = len(head) + 1, path.read_bytes().split(b"\n") if path.exists() else [b""]
        if same := lines[0] == head.encode():
            for line in lines[1:-1]:  # what follows the last line feed is torn
                try:
                    entry = json.loads(line)
                    self.rows[entry["item"]] = entry["row"]
                except (ValueError, TypeError, KeyError):
                    break  # damaged: this row and those after it are done again
                kept += len(line) + 1
        self.file = path.open("r+b" if same and len(lines) > 1 else "wb")
        if not (same and len(lines) > 1):
            self._write(head)
        self.file.seek(kept)
        self.file.truncate()

    def _write(self,
        line: str,  # without line feed
    ):
        self.file.write(line.encode() + b"\n")
        self.file.flush()

    def add(self,
        item: str,  # hash of the item
        row: str,   # JSON
    ):
        "Keep a finished row."
        self._write(f'{{"item": "{item}", "row": {row}}}')
        self.rows[item] = json.loads(row)

# %%
folder = Path(tempfile.mkdtemp())
book = _Journal(folder / "t.journal", {"height": 2048})
book.add("a1", '{"mean": 3.5, "error": ""}')
book.file.write(b'{"item": "b2", "row": {"me')
book.file.close()  # torn here
assert _Journal(folder / "t.journal", {"height": 2048}).rows == {"a1": {"mean": 3.5, "error": ""}}
assert _Journal(folder / "t.journal", {"height": 1024}).rows == {}

# %% [markdown]
# ## Processes
# joblib's processes take functions defined in a notebook as well as imported ones. Python cannot survive everything: a
# codec's crash, or the system's out-of-memory killer, ends the whole process with no exception. All items that were in
# flight are then suspects; each is tried once more, alone in the machine. Most then finish. The one that ends its
# process again gets a row that says so.
#
# Whoever starts an item also takes its result, and may leave both for later: nothing runs that was not started, so a
# slow consumer is not buried. [A stream](03_stream.py) uses the same processes, and a queue that others write into as
# well.

# %%
#| export
LOST = ("WorkerLost: the process ended without an error message, and did so again with this item alone; "
        "look for a lack of memory, or a crash in a codec")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
            "NUMEXPR_NUM_THREADS")

class Processes:
    """Processes of this machine that work on items; outlives the death of any of them. `with` ends them if something is
    still running."""
    def __init__(self,
        fn,             # item -> result; what it raises is raised here by `take`
        workers: int,   # processes; 0: in this one, at once
        lost,           # result of an item that ends its process twice
        events: SimpleQueue | None = None,  # gets a future for each result; None: a queue of its own
        idle: int = 60, # seconds after which a process without work leaves: orphans of a killed run as well
    ):
        self.fn, self.workers, self.lost, self.idle = fn, workers, lost, idle
        self.events = events or SimpleQueue()
        self.held, self.running, self.suspects = deque(), {}, deque()  # running: future -> name, item, alone
        share = str(max(1, joblib.cpu_count() // max(1, workers)))
        self.env = {name: os.environ.get(name, share) for name in _THREADS}
        self.pool = self._new_pool()

    def __enter__(self):
        return self
    def __exit__(self, *_):
        if self.workers:
            # what hangs is not waited for
            self.pool.shutdown(kill_workers=bool(wait(self.running, timeout=1).not_done))

    def __len__(self):
        return len(self.held) + len(self.running) + len(self.suspects)  # started and not yet taken

    # a pool of its own: loky's reusable one belongs to joblib's own calls. It starts its processes when it gets work
    def _new_pool(self):
        return ProcessPoolExecutor(self.workers, timeout=self.idle, env=self.env) if self.workers else None

    def _run(self, name, item, alone: bool):
        if self.workers:
            while True:
                try:
                    future = self.pool.submit(self.fn, item)
                    break
                except TerminatedWorkerError:  # a process has died since
                    self.pool.shutdown(kill_workers=True)
                    self.pool = self._new_pool()
        else:
            (future := Future()).set_result(self.fn(item))
        self.running[future] = name, item, alone
        future.add_done_callback(self.events.put)

    def _refill(self):
        if self.suspects:
            if not self.running:
                self._run(*self.suspects.popleft(), alone=True)
        elif not any(alone for _, _, alone in self.running.values()):
            while self.held and len(self.running) < max(1, 2 * self.workers):
                # a second item per process waits there; all of these are suspects when one dies
                self._run(*self.held.popleft(), alone=False)

    def start(self,
        name,  # of the item, for `take`
        item,  # what to work on
    ):
        "Have an item worked on."
        self.held.append((name, item))
        self._refill()

    def take(self,
        future: Future,  # from `events`
    ):                   # name, result; None for one that is tried once more
        "The result that an event stands for."
        name, item, alone = self.running.pop(future)
        try:
            found = name, future.result()
        except TerminatedWorkerError:
            found = (name, self.lost) if alone else None
            if not alone:
                self.suspects.append((name, item))
        self._refill()
        return found

def _in_processes(
    fn,            # item -> row
    todo: dict,    # hash -> item
    workers: int,  # processes; 0: in this one
):                 # yields (hash, row as JSON) in the order they finish
    "Rows of all items."
    rest = iter(todo.items())
    with Processes(partial(_row, fn), workers, json.dumps({"error": LOST})) as processes:
        while True:
            for name, item in islice(rest, max(0, max(1, 2 * workers) - len(processes))):
                processes.start(name, item)
            if not len(processes):
                return
            if found := processes.take(processes.events.get()):
                yield found

# %% [markdown]
# ## A cluster
# The same rows from many machines: a [Dask](https://distributed.dask.org) scheduler hands the items to its workers,
# table and journal stay here. Functions of installed modules go there by name, so every worker needs the same mammo_nb
# installed; those of a notebook go by value. Files stay where they are: every worker must see them under the same path.
#
# An address at which nobody answers should cost seconds, not the night. Nothing of Dask is imported before a cluster is
# asked for.

# %%
#| export
class BackendError(Exception):
    "The processes or machines asked for are not to be had; says what to do."

_PATIENCE = 10  # seconds in which a scheduler must answer

def _client(
    backend: str,    # "loky" or "dask"
    scheduler: str,  # address, with "dask"
):                   # a distributed.Client, to be closed; this machine: None
    "The way to the cluster, if there is to be one."
    if backend not in ("loky", "dask"):
        raise BackendError(f"backend is {backend!r}; use 'loky' for processes of this machine or 'dask' for a cluster")
    if backend == "loky":
        return nullcontext()
    if not scheduler:
        raise BackendError(
            "backend 'dask' needs the scheduler's address, such as scheduler='tcp://10.0.0.5:8786'; `dask scheduler` "
            "prints it when it starts"
        )
    try:
        from distributed import Client, Security, comm
    except ImportError as e:
        raise BackendError("backend 'dask' needs distributed, here and on the workers: pip install distributed") from e
    async def greet():  # Client alone would wait for ever at a port that is open but silent
        line = await asyncio.wait_for(comm.connect(scheduler, **Security().get_connection_args("client")), _PATIENCE)
        await line.close()
    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: asyncio.run(greet())).result()  # in a notebook this thread has a loop of its own
        return Client(scheduler, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError, asyncio.TimeoutError) as e:  # TypeError: tls:// without certificates
        raise BackendError(
            f"no Dask scheduler answers at {scheduler} ({str(e) or f'silent for {_PATIENCE} s'}); is `dask scheduler` "
            "running, and is this the address it printed?"
        ) from e

# %% [markdown]
# When a worker dies, Dask has its items done elsewhere; one that was in flight at four deaths
# (`distributed.scheduler.allowed-failures`, and one more) comes back as `KilledWorker`. With many threads in a worker,
# or many deaths, that may be a bystander, so as above such an item is tried again alone before its row says so. Workers
# of one thread each keep bystanders few.

# %%
#| export
def _on_cluster(
    client,      # distributed.Client
    fn,          # item -> row
    todo: dict,  # hash -> item
):               # yields (hash, row as JSON) in the order they finish
    "Rows of all items; outlives the death of workers."
    # not joblib's dask backend (1.6): it never returns from an item that Dask gave up, nor from a function that cannot
    # be pickled
    from distributed import KilledWorker, as_completed
    # its with_results would wait for ever for a result that is lost on the way here
    finished, names, suspects = as_completed(loop=client.loop), {}, []
    try:
        for alone, rest in (False, iter(todo)), (True, iter(suspects)):
            while True:
                threads = sum(client.nthreads().values())  # workers come and go
                if not threads:
                    tqdm.write(
                        f"no workers at {client.scheduler.address}, waiting for one: dask worker "
                        f"{client.scheduler.address} --nthreads 1"
                    )
                # a second item per thread waits there
                for name in islice(rest, max(0, (1 if alone else 2 * max(1, threads)) - len(names))):
                    # pure: an equal call of another run would be taken for this one
                    future = client.submit(_row, fn, todo[name], pure=False)
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
            f"the scheduler is gone ({e}); start it again and repeat the call: finished rows are in the journal") from e

# %% [markdown]
# ## One call
# The table has one row per item, in the order of the items, with their key first and the error last. It is written
# under another name and renamed, so that it is there whole or not at all; then the journal goes. Who makes the rows is
# another matter: processes or a cluster here, a stream with a network at its end elsewhere. A stream may run out of
# time; items without a row are then errors of their own, and the journal stays for a call that does them.

# %%
#| export
UNREACHED = "NotReached: the time ended before its turn came; the same call again goes on with it"

def collect(
    # (hash -> item, of all; hash -> row, of those that are done, and it grows) -> closable iterator of (hash, row as
    # JSON) of the others
    rows_of,
    items,                 # dicts with a unique `key`
    *,
    table: Path | str,     # csv to write; `<table>.journal` beside it while running
    key: str = "file",     # name of what identifies an item
    params=None,           # json-able: what the rows depend on besides their items; others start anew
    label: str = "",       # beside the progress bar
) -> pd.DataFrame:         # as `map_files`
    "A row an item from any source, resumed where a killed run stopped."
    items, table = list(items), Path(table)
    keys = [json.loads(json.dumps(item[key], default=_plain)) for item in items]
    if len(set(keys)) < len(keys):
        raise ValueError(
            f"{table.name}: {len(keys) - len(set(keys))} items repeat a {key!r} of another; it must be unique")
    table.parent.mkdir(parents=True, exist_ok=True)
    hashed = {joblib.hash((name, item)): item for name, item in zip(keys, items)}
    path = table.with_name(table.name + ".journal")
    journal = _Journal(path, params)
    with journal.file, closing(rows_of(hashed, journal.rows)) as finished, tqdm(
            total=len(items), initial=len(hashed.keys() & journal.rows.keys()), desc=label or table.stem) as bar:
        for name, row in finished:
            journal.add(name, row)
            bar.update()
    rows = [{key: name, **journal.rows.get(h, {"error": UNREACHED})} for name, h in zip(keys, hashed)]
    columns = list(dict.fromkeys(c for row in rows for c in row if c != "error")) + ["error"]
    # object: whole numbers stay whole beside an empty field
    result = pd.DataFrame(rows, columns=columns if rows else [key, "error"], dtype=object)
    temporary = table.with_name(table.name + ".tmp")
    result.to_csv(temporary, index=False)
    os.replace(temporary, table)
    if not (hashed.keys() - journal.rows.keys()):
        path.unlink()
    if failed := int((result["error"] != "").sum()):
        tqdm.write(f"{table.name}: {failed} of {len(result)} failed, see its column 'error'")
    return result.infer_objects()

def map_files(
    fn,                    # item -> flat dict, one row of the table; may be defined in a notebook
    items,                 # dicts with a unique `key`
    *,
    table: Path | str,     # csv to write; `<table>.journal` beside it while running
    key: str = "file",     # name of what identifies an item
    params=None,           # json-able: what the rows depend on besides their items; others start anew
    # processes of this machine; 1: in this process, for debugging; None: one per core; a cluster uses all of its own
    workers: int | None = None,
    label: str = "",       # beside the progress bar
    backend: str = "loky", # "loky": processes of this machine; "dask": a cluster
    scheduler: str = "",   # with "dask": its address, such as tcp://10.0.0.5:8786
# key, the rows' columns, error ('' or 'Class: message'), in the order of `items`; read the csv with
# keep_default_na=False
) -> pd.DataFrame:
    "Run `fn` on every item, resume where a killed run stopped, and write the table."
    with _client(backend, scheduler) as client:  # before the journal is touched
        def rows_of(hashed, done):
            todo = {name: item for name, item in hashed.items() if name not in done}
            if client:
                return _on_cluster(client, fn, todo)
            several = max(1, min(workers or joblib.cpu_count(), len(todo)))
            return _in_processes(fn, todo, several if several > 1 else 0)
        return collect(rows_of, items, table=table, key=key, params=params, label=label)

# %% [markdown]
# A dozen files, of which one is empty. The function is defined here, in the notebook, and runs in other processes:

# %%
files = [{"file": folder / f"{i:02}.npy"} for i in range(n_files)]
for i, item in enumerate(files):
    np.save(item["file"], np.random.default_rng(i).integers(0, 4096, (64, 48)))
files[3]["file"].write_bytes(b"")

def summary(item):
    "Size, mean and the process that did it."
    values = np.load(item["file"])
    return dict(rows=values.shape[0], columns=values.shape[1], mean=values.mean().round(2))

found = map_files(summary, files, table=folder / "summary.csv", params={"version": 1}, workers=workers, label="summary")
assert found["file"].tolist() == [str(item["file"]) for item in files] and (found["error"] != "").sum() == 1
found.assign(file=[Path(f).name for f in found["file"]]).head()

# %% [markdown]
# ## Broken off
# The same run, interrupted at the seventh file. The journal holds what was done; the second call does the rest, and
# only that:

# %%
calls = []
def interrupted(item):
    calls.append(item["file"].name)
    if len(calls) == 7:
        raise KeyboardInterrupt
    return summary(item)

try:
    map_files(interrupted, files, table=folder / "again.csv", workers=1)
except KeyboardInterrupt:
    print("broken off;", len((folder / "again.csv.journal").read_text().splitlines()) - 1, "rows in the journal")
again = map_files(interrupted, files, table=folder / "again.csv", workers=1)
assert len(calls) == n_files + 1 and not (folder / "again.csv.journal").exists()
assert (folder / "again.csv").read_bytes() == (folder / "summary.csv").read_bytes()

# %% [markdown]
# ## A process that dies
# One item ends its process the hard way. Its neighbours do not notice:

# %%
def deadly(item):
    if item["file"].name == "05.npy":
        os._exit(1)
    return summary(item)

survived = map_files(deadly, files, table=folder / "deadly.csv", workers=workers)
assert survived["error"].str.startswith("WorkerLost").sum() == 1 and survived["rows"].notna().sum() == n_files - 2
survived.loc[survived["error"] != "", ["error"]].assign(file=lambda t: [Path(files[i]["file"]).name for i in t.index])

# %% [markdown]
# ## The same on a cluster
# Two arguments more. Here the cluster is two processes of this machine; elsewhere it is what `dask scheduler` and `dask
# worker ADDRESS --nworkers 8 --nthreads 1` have started.

# %%
from distributed import LocalCluster
with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
    map_files(summary, files, table=folder / "cluster.csv", backend="dask", scheduler=cluster.scheduler_address)
assert (folder / "cluster.csv").read_bytes() == (folder / "summary.csv").read_bytes()

# %%
try:
    map_files(summary, files, table=folder / "cluster.csv", backend="dask")
except BackendError as e:
    print(e)

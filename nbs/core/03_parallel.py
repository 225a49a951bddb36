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
# Reading and cropping a data set takes hours, and in hours something happens: the notebook is closed, the machine runs out of memory, one file kills the codec. Work that is done must stay done, a file that fails must appear in the table with its reason, and the table must come out the same however often the run was broken off.

# %%
#| default_exp core.parallel

# %% tags=["parameters"]
n_files = 12   # files of the demonstration
workers = 2    # processes

# %%
#| export
import json
import os
from contextlib import closing
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

# %%
#| hide
import tempfile

# %% [markdown]
# ## A row
# What a function returns for one item is a flat dict. It is turned into JSON where it was computed: numpy numbers and paths become plain ones, what cannot be written is that item's error, and a row that was resumed is the same text as one that was not. The function may raise what it likes; the row then holds the error's class and message.

# %%
#| export
def _plain(
    value,  # something json does not know
):          # something it does
    "numpy scalars, arrays and paths as plain Python."
    if isinstance(value, (np.generic, np.ndarray)): return value.tolist()
    if isinstance(value, Path): return str(value)
    raise TypeError(f"a {type(value).__name__} does not fit into a table")

def _row(
    fn,          # item -> row
    item: dict,  # what to work on
) -> str:        # the row as JSON, with 'error'
    "Work on one item; never raises an Exception."
    try: return json.dumps({**fn(item), "error": ""}, default=_plain)
    except Exception as e: return json.dumps({"error": f"{type(e).__name__}: {e}"})  # the run goes on; the reason is in the table

# %%
_row(lambda item: {"root": np.sqrt(item["x"]), "name": Path("a/b.dcm")}, {"x": 2})

# %%
_row(lambda item: {"inverse": 1 / item["x"]}, {"x": 0})

# %% [markdown]
# ## The journal
# Every finished row is appended to a text file beside the table and flushed, so that it survives the death of this process. The first line holds the parameters: a journal of other parameters is of no use and starts anew. Each row carries a hash of its item, so that a changed item is worked on again. A last line that was torn by the interruption is cut off before anything is appended.

# %%
#| export
class _Journal:
    "Finished rows on disk: a first line with the parameters, then one line per row."
    def __init__(self,
        path: Path,  # of the journal
        params,      # json-able: what the rows depend on besides their items
    ):
        self.rows, head = {}, json.dumps({"params": params}, sort_keys=True, default=_plain)  # rows: hash of the item -> row
        kept, lines = len(head) + 1, path.read_bytes().split(b"\n") if path.exists() else [b""]
        if same := lines[0] == head.encode():
            for line in lines[1:-1]:  # what follows the last line feed is torn
                try:
                    entry = json.loads(line)
                    self.rows[entry["item"]] = entry["row"]
                except (ValueError, TypeError, KeyError): break  # damaged: this row and those after it are done again
                kept += len(line) + 1
        self.file = path.open("r+b" if same and len(lines) > 1 else "wb")
        if not (same and len(lines) > 1): self._write(head)
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
book.file.write(b'{"item": "b2", "row": {"me'); book.file.close()  # torn here
assert _Journal(folder / "t.journal", {"height": 2048}).rows == {"a1": {"mean": 3.5, "error": ""}}
assert _Journal(folder / "t.journal", {"height": 1024}).rows == {}

# %% [markdown]
# ## Processes
# joblib's processes take functions defined in a notebook as well as imported ones; `joblib.parallel_config(backend="dask")` sends the same call to a cluster. Python cannot survive everything: a codec's crash, or the system's out-of-memory killer, ends the whole process with no exception. All items that were in flight are then suspects; each is tried once more, alone in the machine. Most then finish. The one that ends its process again gets a row that says so.

# %%
#| export
LOST = json.dumps({"error": "WorkerLost: the process ended without an error message, twice, the second time alone; "
                            "look for a lack of memory, or a crash in a codec"})

def _named_row(
    fn,          # item -> row
    name: str,   # hash of the item
    item: dict,  # what to work on
) -> tuple[str, str]:
    "A row that says whose it is: rows come in the order they finish."
    return name, _row(fn, item)

def _run(
    fn,                  # item -> row
    todo: dict,          # hash -> item
    workers: int,        # processes, 2 or more
    started: set,        # gets the hash of each item handed to a process
):                       # yields (hash, row as JSON)
    "Rows in the order they finish."
    def tasks():
        for name, item in todo.items():
            started.add(name)
            yield joblib.delayed(_named_row)(fn, name, item)
    # batches of one: nothing that is finished waits for something that is not; orphans of a killed run leave after a minute
    return joblib.Parallel(n_jobs=workers, batch_size=1, return_as="generator_unordered", idle_worker_timeout=60)(tasks())

def _in_processes(
    fn,            # item -> row
    todo: dict,    # hash -> item
    workers: int,  # processes, 2 or more
):                 # yields (hash, row as JSON) in the order they finish
    "Rows of all items; outlives the death of a process."
    while todo:
        started, done = set(), set()
        try:
            for name, row in _run(fn, todo, workers, started):
                done.add(name)
                yield name, row
        except TerminatedWorkerError:
            for name in [n for n in todo if n in started - done]:
                try: (_, row), = _run(fn, {name: todo[name]}, 2, set())  # two, one of them idle: a single one would be this very process
                except TerminatedWorkerError: row = LOST
                done.add(name)
                yield name, row
        todo = {name: item for name, item in todo.items() if name not in done}

# %% [markdown]
# ## One call
# The table has one row per item, in the order of the items, with their key first and the error last. It is written under another name and renamed, so that it is there whole or not at all; then the journal goes.

# %%
#| export
def map_files(
    fn,                    # item -> flat dict, one row of the table; may be defined in a notebook
    items,                 # dicts with a unique `key`
    *,
    table: Path | str,     # csv to write; `<table>.journal` beside it while running
    key: str = "file",     # name of what identifies an item
    params=None,           # json-able: what the rows depend on besides their items; others start anew
    workers: int | None = None,  # processes; 1: in this process, for debugging; None: one per core
    label: str = "",       # beside the progress bar
) -> pd.DataFrame:         # key, the rows' columns, error ('' or 'Class: message'), in the order of `items`; read the csv with keep_default_na=False
    "Run `fn` on every item, resume where a killed run stopped, and write the table."
    items, table = list(items), Path(table)
    keys = [json.loads(json.dumps(item[key], default=_plain)) for item in items]
    if len(set(keys)) < len(keys): raise ValueError(f"{table.name}: {len(keys) - len(set(keys))} items repeat a {key!r} of another; it must be unique")
    table.parent.mkdir(parents=True, exist_ok=True)
    hashed = {joblib.hash((name, item)): item for name, item in zip(keys, items)}
    path = table.with_name(table.name + ".journal")
    journal = _Journal(path, params)
    todo = {name: item for name, item in hashed.items() if name not in journal.rows}
    workers = max(1, min(workers or joblib.cpu_count(), len(todo)))
    finished = _in_processes(fn, todo, workers) if workers > 1 else ((name, _row(fn, item)) for name, item in todo.items())
    with journal.file, closing(finished), tqdm(total=len(items), initial=len(items) - len(todo), desc=label or table.stem) as bar:
        for name, row in finished:
            journal.add(name, row)
            bar.update()
    rows = [{key: name, **journal.rows[h]} for name, h in zip(keys, hashed)]
    columns = list(dict.fromkeys(c for row in rows for c in row if c != "error")) + ["error"]
    result = pd.DataFrame(rows, columns=columns if rows else [key, "error"], dtype=object)  # object: whole numbers stay whole beside an empty field
    temporary = table.with_name(table.name + ".tmp")
    result.to_csv(temporary, index=False)
    os.replace(temporary, table)
    path.unlink()
    if failed := int((result["error"] != "").sum()): tqdm.write(f"{table.name}: {failed} of {len(result)} failed, see its column 'error'")
    return result.infer_objects()

# %% [markdown]
# A dozen files, of which one is empty. The function is defined here, in the notebook, and runs in other processes:

# %%
files = [{"file": folder / f"{i:02}.npy"} for i in range(n_files)]
for i, item in enumerate(files): np.save(item["file"], np.random.default_rng(i).integers(0, 4096, (64, 48)))
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
# The same run, interrupted at the seventh file. The journal holds what was done; the second call does the rest, and only that:

# %%
calls = []
def interrupted(item):
    calls.append(item["file"].name)
    if len(calls) == 7: raise KeyboardInterrupt
    return summary(item)

try: map_files(interrupted, files, table=folder / "again.csv", workers=1)
except KeyboardInterrupt: print("broken off;", len((folder / "again.csv.journal").read_text().splitlines()) - 1, "rows in the journal")
again = map_files(interrupted, files, table=folder / "again.csv", workers=1)
assert len(calls) == n_files + 1 and not (folder / "again.csv.journal").exists()
assert (folder / "again.csv").read_bytes() == (folder / "summary.csv").read_bytes()

# %% [markdown]
# ## A process that dies
# One item ends its process the hard way. Its neighbours do not notice:

# %%
def deadly(item):
    if item["file"].name == "05.npy": os._exit(1)
    return summary(item)

survived = map_files(deadly, files, table=folder / "deadly.csv", workers=workers)
assert survived["error"].str.startswith("WorkerLost").sum() == 1 and survived["rows"].notna().sum() == n_files - 2
survived.loc[survived["error"] != "", ["error"]].assign(file=lambda t: [Path(files[i]["file"]).name for i in t.index])

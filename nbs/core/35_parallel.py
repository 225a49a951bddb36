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
# # Parallel
# > One function and many files: a table with one row per file, computed on all cores or on a cluster.
#
# Reading and cropping a data set takes hours, and in hours something happens: the notebook is closed, the machine runs
# out of memory, one file crashes the codec. Finished work must be kept. A file that fails must appear in the table with
# its reason. And the table must be the same, however often the run was interrupted.

# %%
#| default_exp core.parallel

# %% tags=["parameters"]
n_files = 12   # files of the demonstration
workers = 2    # processes

# %%
#| export
import json
import os
import re
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import joblib
import pandas as pd
from tqdm import tqdm

from mammo_nb.core.cluster import connect_cluster, rows_on_cluster
from mammo_nb.core.processes import plain, rows_in_processes

# %%
#| hide
import tempfile

import numpy as np

from mammo_nb.core.cluster import BackendError

# %% [markdown]
# ## The journal
# Every finished row is appended to a text file beside the table and flushed, so that it survives the end of the
# process. The first line holds the parameters. A journal with other parameters is discarded. Each row carries a hash of
# its item, so that a changed item is computed again. An incomplete last line is removed before anything is appended.

# %%
#| export
class Journal:
    "Finished rows on disk: a first line with the parameters, then one line per row."
    def __init__(self,
        path: Path,  # file of the journal
        params,      # what the rows depend on besides their items; can be written as JSON
    ):
        self.rows = {}        # hash of the item -> row
        head = json.dumps({"params": params}, sort_keys=True, default=plain)
        kept = len(head) + 1  # bytes of complete lines
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        same = lines[0] == head.encode() and len(lines) > 1
        if same:
            for line in lines[1:-1]:  # the text after the last line feed is incomplete
                try:
                    entry = json.loads(line)
                    self.rows[entry["item"]] = entry["row"]
                except (ValueError, TypeError, KeyError):
                    break  # damaged: this row and all rows after it are computed again
                kept += len(line) + 1
        self.file = path.open("r+b" if same else "wb")
        if not same:
            self._write(head)
        self.file.seek(kept)
        self.file.truncate()

    def _write(self,
        line: str,  # without line feed
    ):
        "Append a line and flush it."
        self.file.write(line.encode() + b"\n")
        self.file.flush()

    def add(self,
        item: str,  # hash of the item
        row: str,   # JSON
    ):
        "Store a finished row."
        self._write(f'{{"item": "{item}", "row": {row}}}')
        self.rows[item] = json.loads(row)

# %%
folder = Path(tempfile.mkdtemp())
book = Journal(folder / "t.journal", {"height": 2048})
book.add("a1", '{"mean": 3.5, "error": ""}')
book.file.write(b'{"item": "b2", "row": {"me')
book.file.close()  # the last line is incomplete
assert Journal(folder / "t.journal", {"height": 2048}).rows == {"a1": {"mean": 3.5, "error": ""}}
assert Journal(folder / "t.journal", {"height": 1024}).rows == {}

# %% [markdown]
# ## One table
# The table has one row per item in the order of the items, with the key first and the error last. It is written under a
# temporary name and renamed, so that it is whole or absent. Then the journal is removed. The rows come from any source:
# from processes or a cluster here, from a stream that ends in a network elsewhere. A stream may run out of time. An
# item without a row is then an error, and the journal is kept for the next call.

# %%
#| export
UNREACHED = "NotReached: the time ended before this item was started. Repeat the call to continue with it"

def collect(
    # function of two dicts, hash -> item of all items and hash -> row of finished items (which grows); gives a closable
    # iterator of (hash, row as JSON) of the items that are not finished
    rows_of,
    items,                 # dicts with a unique `key`
    *,
    table: Path | str,     # CSV file to write; `<table>.journal` is beside it during the run
    key: str = "file",     # name of the entry that identifies an item
    params=None,           # what the rows depend on besides their items, can be written as JSON; a change starts anew
    label: str | None = "",  # text beside the progress bar; "": the name of the table; None: no bar
) -> pd.DataFrame:         # as from `map_files`
    """Write a table with one row per item, with rows from any source. Continues where an interrupted run stopped.
    Raises ValueError if two items have the same key."""
    items, table = list(items), Path(table)
    keys = [json.loads(json.dumps(item[key], default=plain)) for item in items]
    if len(set(keys)) < len(keys):
        raise ValueError(
            f"{table.name}: {len(keys) - len(set(keys))} items repeat the {key!r} of another item. Make it unique.")
    table.parent.mkdir(parents=True, exist_ok=True)
    hashed = {joblib.hash((name, item)): item for name, item in zip(keys, items)}
    path = table.with_name(table.name + ".journal")
    journal = Journal(path, params)
    known = len(hashed.keys() & journal.rows.keys())
    with journal.file, closing(rows_of(hashed, journal.rows)) as finished:
        with tqdm(total=len(items), initial=known, desc=label or table.stem, disable=label is None) as bar:
            for name, row in finished:
                journal.add(name, row)
                bar.update()
    rows = [{key: name, **journal.rows.get(h, {"error": UNREACHED})} for name, h in zip(keys, hashed)]
    columns = list(dict.fromkeys(c for row in rows for c in row if c != "error")) + ["error"]
    # dtype object: whole numbers stay whole beside an empty field
    result = pd.DataFrame(rows, columns=columns if rows else [key, "error"], dtype=object)
    temporary = table.with_name(table.name + ".tmp")
    result.to_csv(temporary, index=False)
    os.replace(temporary, table)
    if not (hashed.keys() - journal.rows.keys()):
        path.unlink()
    failed = int((result["error"] != "").sum())
    if failed and label is not None:
        tqdm.write(f"{table.name}: {failed} of {len(result)} failed, see the column 'error'")
    return result.infer_objects()

def map_files(
    fn,                    # item -> flat dict, one row of the table; may be defined in a notebook
    items,                 # dicts with a unique `key`
    *,
    table: Path | str,     # CSV file to write; `<table>.journal` is beside it during the run
    key: str = "file",     # name of the entry that identifies an item
    params=None,           # what the rows depend on besides their items, can be written as JSON; a change starts anew
    # processes of this machine; 1: in this process, for debugging; None: one per core; a cluster uses all its workers
    workers: int | None = None,
    label: str | None = "",  # text beside the progress bar; "": the name of the table; None: no bar
    backend: str = "loky", # "loky": processes of this machine; "dask": a cluster
    scheduler: str = "",   # for "dask": address of the scheduler, such as tcp://10.0.0.5:8786
) -> pd.DataFrame:         # in the order of `items`: key, columns of the rows, `error` ("" or "Class: message")
    """Apply a function to every item and write a table with one row per item. Continues where an interrupted run
    stopped. Read the CSV file with keep_default_na=False. Raises BackendError if the cluster is not available."""
    with connect_cluster(backend, scheduler) as client:  # before the journal is touched
        def rows_of(hashed, done):
            todo = {name: item for name, item in hashed.items() if name not in done}
            if client:
                return rows_on_cluster(client, fn, todo)
            processes = max(1, min(workers or joblib.cpu_count(), len(todo)))
            return rows_in_processes(fn, todo, processes if processes > 1 else 0)
        return collect(rows_of, items, table=table, key=key, params=params, label=label)

# %% [markdown]
# The example has a dozen files, one of which is empty. The function is defined in this notebook and runs in other
# processes:

# %%
files = [{"file": folder / f"{i:02}.npy"} for i in range(n_files)]
for i, item in enumerate(files):
    np.save(item["file"], np.random.default_rng(i).integers(0, 4096, (64, 48)))
files[3]["file"].write_bytes(b"")

def summary(item):
    "Rows, columns and mean of one file."
    values = np.load(item["file"])
    return dict(rows=values.shape[0], columns=values.shape[1], mean=values.mean().round(2))

found = map_files(summary, files, table=folder / "summary.csv", params={"version": 1}, workers=workers, label="summary")
assert found["file"].tolist() == [str(item["file"]) for item in files] and (found["error"] != "").sum() == 1
found.assign(file=[Path(f).name for f in found["file"]]).head()

# %% [markdown]
# ## An interruption
# The same run is interrupted at the seventh file. The journal holds the finished rows, and the second call computes
# only the others:

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
    print("interrupted;", len((folder / "again.csv.journal").read_text().splitlines()) - 1, "rows in the journal")
again = map_files(interrupted, files, table=folder / "again.csv", workers=1)
assert len(calls) == n_files + 1 and not (folder / "again.csv.journal").exists()
assert (folder / "again.csv").read_bytes() == (folder / "summary.csv").read_bytes()

# %% [markdown]
# ## A process that dies
# One item ends its process without an exception. The other items are not affected:

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
# A cluster needs two more arguments. Here it is two processes of this machine. Elsewhere it is started with `dask
# scheduler` and `dask worker ADDRESS --nworkers 8 --nthreads 1`.

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
# %% [markdown]
# ## Kinds of problems
# A table of many files has the same few problems many times. They are counted by kind, with some files of each.

# %%
#| export
def group_kinds(
    table: pd.DataFrame,  # file; problems: separated by "; "; error
    column: str,          # problems or error
) -> dict:                # kind -> its files, the most frequent kind first
    "Group files by their problem. The name of a group omits what differs: names of files, of series, numbers of rows."
    kinds = defaultdict(list)
    for file, text in zip(table["file"], table[column]):
        parts = text.split("; ") if column == "problems" else [text.replace(f"{Path(file).name}: ", "").rstrip(".")]
        for part in filter(None, parts):
            kind = re.sub(r"^(same \w+ as|named by) .+", r"\1 ...", part)
            kinds[re.sub(r"^series \S+", "series ...", kind)].append((part, file))
    found = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    return {kind if len(parts) > 1 else parts[0][0]: [file for _, file in parts] for kind, parts in found}

def print_kinds(
    table: pd.DataFrame,  # as `group_kinds` takes it
):
    "Print the kinds of problems and of errors, each with its number and three files."
    for kind, files in (*group_kinds(table, "problems").items(), *group_kinds(table, "error").items()):
        print(f"{len(files):7,}  {kind}: {', '.join(files[:3])}{', ...' if len(files) > 3 else ''}")

# %%
found = pd.DataFrame([("a.dcm", "same pixels as b.dcm", ""), ("b.dcm", "same pixels as a.dcm", ""),
                      ("c.dcm", "", "NotDicom: c.dcm: no DICOM file.")], columns=["file", "problems", "error"])
assert group_kinds(found, "problems") == {"same pixels as ...": ["a.dcm", "b.dcm"]}
print_kinds(found)


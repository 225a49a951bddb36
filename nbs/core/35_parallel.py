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
import hashlib
import json
import os
import re
import time
from collections import defaultdict
from contextlib import closing
from functools import partial
from pathlib import Path

import joblib
import pandas as pd
from tqdm import tqdm

from mammo_nb.core.cluster import connect_cluster, rows_on_cluster
from mammo_nb.core.files import owner, replacing, sync, sync_all, telling, unchanged, write_csv
from mammo_nb.core.processes import FILES, PACKAGE, package_digest, plain, rows_in_processes

# %%
#| hide
import tempfile

import numpy as np

from mammo_nb.core.cluster import BackendError

# %% [markdown]
# ## The journal
# Every finished row is appended to a text file beside the table, so that it survives the end of the process. A power
# failure is worse, because it also empties files that were not synced. So once a second the files of the new rows are
# synced, then their folders, and only then a line says that all rows before it are on the disk.
#
# The first line holds the parameters and the code. A journal with others is discarded. Each row has the digest of its
# item, and of size and time of the files that the item reads. So a changed item or file is computed again. A row counts
# only if the files that it wrote still have their size and content. The files of rows that no such line follows are
# read for this. What was written for an item that is no longer wanted, such as the crop of a file that was removed, is
# removed. Rows with an error are not stored: the next call tries them again. An incomplete last line is removed
# before anything is appended.

# %%
#| export
PAUSE = 1.0   # seconds between two syncs of a journal
SYNCED = b'{"synced": true}\n'

class Journal:
    "Finished rows on disk: a first line with what all rows depend on, then one line per row."
    def __init__(self,
        path: Path,  # file of the journal
        params,      # what the rows depend on besides their items; can be written as JSON
    ):
        self.path = path
        self.rows, self.files = {}, {}  # digest of the item -> row, and marks of its files
        self.waiting = set()            # digests of rows whose files may not be on the disk
        self.saved, self.lines = time.monotonic(), 0
        self.head = json.dumps({"params": params}, sort_keys=True, default=plain)
        *lines, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
        same = lines[:1] == [self.head.encode()]
        if same:
            for line in lines[1:]:
                self._read(line)
        self.file = path.open("r+b" if same else "wb")
        if same:
            self.file.seek(-len(rest), os.SEEK_END)  # the text after the last line feed is incomplete
            self.file.truncate()
        else:
            self._write(self.head.encode() + b"\n")
            sync_all([path])

    def __enter__(self):
        return self
    def __exit__(self, *_):
        try:
            self.sync()
        finally:
            with telling(self.path):
                self.file.close()

    def _read(self, line: bytes):
        "Take the row of a line. The row of a damaged line is computed again."
        self.lines += 1
        try:
            entry = json.loads(line)
            if "synced" in entry:
                self.waiting = set()
                return
            item, row, files = entry["item"], dict(entry["row"]), dict(entry.get("files", {}))
            if not row["error"]:
                self.rows[item], self.files[item] = row, files
                self.waiting.add(item)
        except (ValueError, TypeError, KeyError):
            pass

    def _write(self, lines: bytes):
        "Append lines, and give them to the operating system. Raises StorageError."
        with telling(self.path):
            self.file.write(lines)
            self.file.flush()

    def _line(self, item: str) -> bytes:
        files = f', "files": {json.dumps(self.files[item])}' if self.files[item] else ""
        return f'{{"item": "{item}"{files}, "row": {json.dumps(self.rows[item])}}}\n'.encode()

    def verify(self,
        items,  # digests of the items that are wanted
    ):
        "Keep the rows of these items whose files are unchanged. Files that only other items have written are removed."
        here, wanted = self.path.parent.resolve(), {file for item in items for file in self.files.get(item, ())}
        others = {file for item, files in self.files.items() if item not in items for file in files}
        for path in map(Path, others - wanted):
            if path.parent.resolve().is_relative_to(here):  # the folder may have been moved since
                path.unlink(missing_ok=True)
        self.rows = {item: self.rows[item] for item in items if item in self.rows and
                     all(unchanged(file, mark, item in self.waiting) for file, mark in self.files[item].items())}
        self.waiting &= self.rows.keys()

    def add(self,
        item: str,  # digest of the item
        row: str,   # JSON
    ):
        "Store a finished row."
        row = json.loads(row)
        self.files[item] = row.pop(FILES, {})
        self.rows[item] = row
        if not row["error"]:
            self._write(self._line(item))
            self.waiting.add(item)
            self.lines += 1
        if time.monotonic() - self.saved >= PAUSE:
            self.sync()

    def sync(self):
        "Return when all rows and their files are on the disk. Raises StorageError."
        if self.waiting:
            files = [file for item in self.waiting for file in self.files[item]]
            sync_all(filter(os.path.exists, files))  # the row of a file that was removed will not count
            self._write(SYNCED)
            sync(self.path)
            self.waiting = set()
            self.lines += 1
        self.saved = time.monotonic()

    def compact(self):
        "Leave out the lines that no longer count. The file is whole at any time."
        good = [item for item, row in self.rows.items() if not row["error"]]
        if len(good) + 1 < self.lines:
            with replacing(self.path) as temporary:
                temporary.write_bytes(b"".join([self.head.encode() + b"\n", *map(self._line, good), SYNCED]))

# %%
folder = Path(tempfile.mkdtemp())
with Journal(folder / "t.journal", {"height": 2048}) as book:
    book.add("a1", '{"mean": 3.5, "error": ""}')
    book.add("b2", '{"error": "ValueError: no"}')
    book.sync()
    book.file.write(b'{"item": "c3", "row": {"me')  # the last line is incomplete
assert Journal(folder / "t.journal", {"height": 2048}).rows == {"a1": {"mean": 3.5, "error": ""}}
assert Journal(folder / "t.journal", {"height": 1024}).rows == {}

# %% [markdown]
# ## What a row depends on
# An item names its files, and their sizes and times say whether they have changed. A row also depends on code. Inside
# the package this is known: the digest of its modules, or what a stage says that it depends on. The code of a function
# in a notebook is not known.

# %%
#| export
def own_file(
    item: dict,      # perhaps with `file`, and `folder` that it is relative to
) -> list[Path]:
    "The file that an item names."
    return [Path(item.get("folder", ""), item["file"])] if "file" in item else []

def _state(path: Path) -> list | None:
    "Size in bytes and time in ns of a file; None if there is none."
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    return [state.st_size, state.st_mtime_ns]

def item_digest(
    name,              # key of the item
    item: dict,
    files: list[Path], # that the item reads
) -> str:              # 32 hexadecimal digits
    "Digest of an item and of the state of its files."
    content = [name, item, [_state(f) for f in files]]
    try:
        text = json.dumps(content, sort_keys=True, default=plain)
    except TypeError:   # an item with other objects
        return joblib.hash(content)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

def of_package(
    fn,        # a function, perhaps a `partial`
) -> bool:
    "Whether a function, and those in its arguments, are in modules of this package."
    if isinstance(fn, partial):
        return all(of_package(f) for f in (fn.func, *fn.args, *fn.keywords.values()) if callable(f))
    return (getattr(fn, "__module__", "") or "").startswith(f"{PACKAGE}.")

# %%
assert of_package(write_csv) and not of_package(lambda item: item) and not of_package(partial(write_csv, lambda: 0))

# %% [markdown]
# ## One table
# The table has one row per item in the order of the items, with the key first and the error last. It is whole or
# absent. The rows come from any source: from processes or a cluster here, from a stream that ends in a network
# elsewhere. A stream may run out of time. An item without a row is then an error, and the journal is kept for the next
# call.
#
# If the code of the function is known, the journal stays beside the finished table. Another call over the same folder
# then computes only the files that were added or changed since. Else the journal is removed.

# %%
#| export
UNREACHED = "NotReached: the time ended before this item was started. Repeat the call to continue with it"

def _keys(items: list[dict], key: str, table: Path) -> list:
    "The keys of the items. Raises ValueError if one is repeated."
    keys = [json.loads(json.dumps(item[key], default=plain)) for item in items]
    if len(set(keys)) < len(keys):
        raise ValueError(
            f"{table.name}: {len(keys) - len(set(keys))} items repeat the {key!r} of another item. Make it unique.")
    return keys

def collect(
    # function of two dicts, digest -> item of all items and digest -> row of finished items (which grows); gives a
    # closable iterator of (digest, row as JSON) of the items that are not finished
    rows_of,
    items,                 # dicts with a unique `key`
    *,
    table: Path | str,     # CSV file to write; `<table>.journal` is beside it during the run
    key: str = "file",     # name of the entry that identifies an item
    params=None,           # what the rows depend on besides their items, can be written as JSON; a change starts anew
    code=None,             # digests of the code that the rows depend on; None or empty: the whole package
    reads=own_file,        # item -> list of the files that it reads; a change of one computes the item again
    remember: bool = False,  # whether the journal is kept beside the finished table
    label: str | None = "",  # text beside the progress bar; "": the name of the table; None: no bar
    scratch: bool = False,   # whether the caller removes or hides the table, so that no message names it
) -> pd.DataFrame:         # as from `map_files`
    """Write a table with one row per item, with rows from any source. Continues where an earlier call stopped.
    Raises ValueError if two items have the same key, and StorageError if another process writes to the folder or the
    disk is full."""
    items, table = list(items), Path(table)
    keys = _keys(items, key, table)
    hashed = {item_digest(name, item, reads(item)): item for name, item in zip(keys, items)}
    path = table.with_name(table.name + ".journal")
    with owner(table.parent):
        with Journal(path, {"of": params, "code": code or package_digest()}) as journal:
            journal.verify(hashed)
            known = len(journal.rows)
            with closing(rows_of(hashed, journal.rows)) as finished:
                with tqdm(total=len(items), initial=known, desc=label or table.stem, disable=label is None) as bar:
                    for name, row in finished:
                        journal.add(name, row)
                        bar.update()
        rows = [{key: name, **journal.rows.get(h, {"error": UNREACHED})} for name, h in zip(keys, hashed)]
        columns = list(dict.fromkeys(c for row in rows for c in row if c != "error")) + ["error"]
        # dtype object: whole numbers stay whole beside an empty field
        result = pd.DataFrame(rows, columns=columns if rows else [key, "error"], dtype=object)
        write_csv(table, result)
        if remember:
            journal.compact()
        elif not (hashed.keys() - journal.rows.keys()):
            path.unlink()
    failed = int((result["error"] != "").sum())
    if failed and label is not None:
        kept = "" if scratch else f", see column 'error' of {table.name}"
        tqdm.write(f"{label or table.stem}: {failed} of {len(result)} without a result{kept}")
    return result.infer_objects()

def shared_paths(
    todo: dict,                  # name -> item
    reads=own_file,              # as for `map_files`
    writes: Path | None = None,  # as for `map_files`
) -> list[Path]:
    "The folder that is written and some of the files that are read, as far as this machine sees them."
    items = list(todo.values())
    files = [Path(f).absolute() for item in items[::max(1, len(items) // 8)] for f in reads(item)]
    if writes:
        Path(writes).mkdir(parents=True, exist_ok=True)
        files.append(Path(writes).absolute())
    return [f for f in files if f.exists()]

def map_files(
    fn,                    # item -> flat dict, one row of the table; may be defined in a notebook
    items,                 # dicts with a unique `key`
    *,
    table: Path | str,     # CSV file to write; `<table>.journal` is beside it
    key: str = "file",     # name of the entry that identifies an item
    params=None,           # what the rows depend on besides their items, can be written as JSON; a change starts anew
    code=None,             # digests of the code that the rows depend on; None or empty: the whole package
    reads=own_file,        # item -> list of the files that it reads; a change of one computes the item again
    remember: bool = True, # whether the journal is kept beside the table, if the code of `fn` is known
    # processes of this machine; 1: in this process, for debugging; None: one per core; a cluster uses all its workers
    workers: int | None = None,
    label: str | None = "",  # text beside the progress bar; "": the name of the table; None: no bar
    scratch: bool = False,   # as in `collect`
    writes: Path | None = None,     # folder of the files that `fn` writes, which the workers of a cluster must see
    scheduler: str | None = None,   # address of a cluster's scheduler; "": this machine; None: as the settings say
) -> pd.DataFrame:         # in the order of `items`: key, columns of the rows, `error` ("" or "Class: message")
    """Apply a function to every item and write a table with one row per item. Continues where an earlier call stopped.
    Read the CSV file with keep_default_na=False. Raises BackendError if the cluster is not available, and the errors
    of `collect`."""
    with connect_cluster(scheduler) as client:  # before the journal is touched
        def rows_of(hashed, done):
            todo = {name: item for name, item in hashed.items() if name not in done}
            if client:
                return rows_on_cluster(client, fn, todo, shared_paths(todo, reads, writes))
            processes = max(1, min(workers or joblib.cpu_count(), len(todo)))
            return rows_in_processes(fn, todo, processes if processes > 1 else 0)
        return collect(rows_of, items, table=table, key=key, params=params, code=code, reads=reads,
                       remember=remember and bool(code or of_package(fn)), label=label, scratch=scratch)

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
# only the others, and the empty file once more:

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
assert len(calls) == n_files + 2 and not (folder / "again.csv.journal").exists()
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
# A cluster needs the address of its scheduler, as an argument or in the settings. Here it is two processes of this
# machine. Elsewhere it is started with `dask scheduler` and `dask worker ADDRESS --nworkers 8 --nthreads 1`.

# %%
from distributed import LocalCluster
with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
    map_files(summary, files, table=folder / "cluster.csv", scheduler=cluster.scheduler_address)
assert (folder / "cluster.csv").read_bytes() == (folder / "summary.csv").read_bytes()

# %%
try:
    map_files(summary, files, table=folder / "cluster.csv", scheduler="tcp://127.0.0.1:1")
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
        # a note may say after a semicolon what was done; two passes may have the same note
        parts = re.split("; (?!left out|read as )", text) if column == "problems" else [
            text.replace(f"{Path(file).name}: ", "").rstrip(".")]
        for part in filter(None, dict.fromkeys(parts)):
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
                      ("c.dcm", "", "NotDicom: c.dcm: no DICOM file."),
                      ("d.dcm", "8 bytes too many; left out; 8 bytes too many; left out", "")],
                     columns=["file", "problems", "error"])
assert group_kinds(found, "problems") == {"same pixels as ...": ["a.dcm", "b.dcm"],
                                          "8 bytes too many; left out": ["d.dcm"]}
print_kinds(found)

# %% [markdown]
# ---
# [← Cluster](34_cluster.py) · [Geometry →](36_geometry.py)

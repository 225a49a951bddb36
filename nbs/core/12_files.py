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
# # Files
# > A file is whole or absent, and is identified by its digest.
#
# A run may be killed, a disk may be full, or two processes may write the same file. The next reader must never find an
# incomplete file under its final name. So the project writes every file under a temporary name in the same folder and
# then renames it, which the file system does in one step.
#
# A renamed file is still in the memory of the operating system. If the power fails, it may be empty. So file and folder
# are synced: the call returns when their bytes are on the disk.

# %%
#| default_exp core.files

# %%
#| export
import errno
import fcntl
import functools
import hashlib
import inspect
import io
import json
import os
import stat
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, Iterator

from mammo_nb.core.errors import ProjectError, decode_text, shown

# %% [markdown]
# ## On the disk
# A sync costs about a millisecond on a solid-state disk and ten on a magnetic one. Several at the same time share most
# of this. So many small files are synced in batches: `recording` collects the names of the files that its block writes,
# and the caller syncs them later. A single file is synced at once.

# %%
#| export
_written = ContextVar("_written", default=None)   # paths written in a `recording` block; None outside of one

def sync(
    path: Path | str,  # a file or a folder
):
    "Return when the bytes of a file, or the names in a folder, are on the disk."
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with telling(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)

def sync_all(
    paths: Iterable,  # files
):
    "Sync files, then their folders."
    paths = {Path(p) for p in paths}
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(sync, paths))
        list(threads.map(sync, {p.parent for p in paths}))

@contextmanager
def recording() -> Iterator[list[Path]]:  # paths, which grow while the block runs
    "Collect the files that a block writes. They are not synced, and the caller does it."
    token = _written.set([])
    try:
        yield _written.get()
    finally:
        _written.reset(token)

# %% [markdown]
# ## What lies in a folder
# Whoever asks for a folder of scans gets all that is in it, also behind links to other folders. Each folder is entered
# once, so that no link loops. A folder that cannot be listed is named itself: to leave it out would be silent.
#
# A pipe has the name of a file, and the first read of one waits until somebody writes. So only regular files are
# opened.

# %%
#| export
def walk(
    folder: Path | str,
) -> Iterator[Path]:  # all that is no folder, and the folders that cannot be listed; in no order
    "List what lies in a folder to any depth. Raises OSError if the folder itself cannot be listed."
    os.listdir(folder)
    entered, lost = set(), []
    for place, folders, names in os.walk(folder, followlinks=True, onerror=lambda e: lost.append(Path(e.filename))):
        try:
            state = os.stat(place)
        except OSError:      # it has vanished since it was listed
            folders.clear()
            lost.append(Path(place))
            continue
        if (state.st_dev, state.st_ino) in entered:
            folders.clear()
            continue
        entered.add((state.st_dev, state.st_ino))
        folders.sort(key=lambda name: (os.path.islink(os.path.join(place, name)), name))
        yield from (Path(place, name) for name in names)
    yield from lost

def open_file(
    path: Path | str,
) -> BinaryIO:
    "Open a regular file for reading. Raises OSError."
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        why = "a link that leads to no file" if os.path.islink(path) else "it has vanished or does not exist"
        raise FileNotFoundError(errno.ENOENT, why, str(path)) from None
    if stat.S_ISDIR(kind):
        raise PermissionError(errno.EACCES, "a folder that cannot be listed", str(path))
    if not stat.S_ISREG(kind):
        raise OSError(errno.EINVAL, "no file, but a pipe, a socket or a device", str(path))
    return open(path, "rb")

# %%
box = Path(tempfile.mkdtemp())
(box / "in").mkdir()
(box / "in" / "a.txt").write_text("a")
(box / "in" / "loop").symlink_to(box)
(box / "lost.dcm").symlink_to(box / "nothing")
os.mkfifo(box / "pipe.dcm")
assert sorted(p.name for p in walk(box)) == ["a.txt", "lost.dcm", "pipe.dcm"]
for name in ("lost.dcm", "pipe.dcm", "in"):
    try:
        open_file(box / name)
    except OSError as e:
        print(e.strerror)
    else:
        raise AssertionError(name)
with open_file(box / "in" / "a.txt") as file:
    assert file.read() == b"a"

# %% [markdown]
# ## Whole files
# A full disk is no fault of a file, and the next file would fail as well. So it has an error of its own, which ends a
# run.

# %%
#| export
class StorageError(ProjectError):
    "A disk that takes no more files, or an output that is in use."

_FULL = {errno.ENOSPC: "is full", errno.EDQUOT: "is full for this user (quota)", errno.EROFS: "is read-only"}

@contextmanager
def telling(
    path: Path | str,   # the file that is written
):
    "Turn an error of the disk, which concerns all files, into a StorageError."
    try:
        yield
    except OSError as e:
        if e.errno not in _FULL:
            raise
        raise StorageError(f"{path} cannot be written: the disk {_FULL[e.errno]}. Make room or choose another output, "
                           "and run again: what is finished is kept.") from e

def make_folder(
    folder: Path | str,
):
    "Make a folder, and those above it, and sync the names of new ones."
    folder = Path(folder)
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)

@contextmanager
def replacing(
    path: Path | str,   # the file to write; its folder is made if it does not exist
) -> Iterator[Path]:    # the temporary file, in the same folder and with the same suffix
    """Write to a temporary file, which replaces `path` when the block ends without an error. The file is then on the
    disk, except in a block of `recording`. Raises StorageError for a full or read-only disk."""
    path, written = Path(path), _written.get()
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with telling(path):
            make_folder(path.parent)
            yield temporary
            if written is None:
                sync(temporary)
            os.replace(temporary, path)
            if written is None:
                sync(path.parent)
            else:
                written.append(path)
    finally:
        temporary.unlink(missing_ok=True)

def sha256(
    path: Path | str,  # any file
) -> str:              # 64 hexadecimal digits
    "Compute the SHA-256 of a file, read in blocks of 1 MiB (FIPS 180-4)."
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

def short_hash(
    text: str,
) -> str:       # 12 hexadecimal digits
    "A digest in place of an id: the same for the same text, and without the name in it."
    return hashlib.sha256(text.encode()).hexdigest()[:12]

# %% [markdown]
# If the block raises an error, the old file is kept and the temporary file is removed:

# %%
folder = Path(tempfile.mkdtemp())
note = folder / "note.txt"
with replacing(note) as temporary:
    temporary.write_text("abc")
try:
    with replacing(note) as temporary:
        temporary.write_text("half a sent")
        raise OSError("disk full")
except OSError as e:
    print(e)
assert note.read_text() == "abc" and os.listdir(folder) == ["note.txt"]
assert sha256(note).startswith("ba7816bf")   # the example of the standard
with recording() as written:
    write_later = folder / "later.txt"
    with replacing(write_later) as temporary:
        temporary.write_text("abc")
assert written == [write_later]
sync_all(written)
write_later.unlink()
sha256(note)

# %% [markdown]
# ## Unchanged files
# The mark of a file has its size, its times, its number on the disk and its digest. If size, times and number are still
# the same, nothing has written to the file, so it is not read again. If only size and digest are the same, the file was
# copied or touched. This holds for programs that write files. A defect of the disk itself is not searched for here.

# %%
#| export
def state_of(
    path: Path | str,   # a file
) -> list[int]:         # bytes, time of the content and of the inode in ns, number of the inode
    "What a file system says about a file. Raises OSError."
    state = os.stat(path)
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]

def mark_of(
    path: Path | str,   # a file
) -> list:              # its state and its sha256
    "What identifies a file and its content. Raises OSError."
    return [*state_of(path), sha256(path)]

def unchanged(
    path: Path | str,
    mark: list,         # from `mark_of`
    read: bool = False, # whether the file is read in any case
) -> bool:
    "Whether a file exists and has the content that it had. It is read if its state has changed."
    try:
        state = state_of(path)
        if state[0] != mark[0]:
            return False
        return not read and state == mark[:4] or sha256(path) == mark[4]
    except OSError:
        return False

# %%
mark = mark_of(note)
os.utime(note)
assert unchanged(note, mark)
note.write_text("abd")
os.utime(note, ns=(mark[1], mark[1]))  # the old time does not hide the new content
assert not unchanged(note, mark)
note.write_text("abc")

# %% [markdown]
# ## One process for one output
# Two runs that write to one folder would mix their rows. So the first one locks the folder. The operating system
# releases the lock when the process ends, also when it is killed.

# %%
#| export
_owned = {}   # folder that this process has locked -> how often

@contextmanager
def owner(
    folder: Path | str,  # is made if it does not exist
):
    "Lock a folder for this process. Raises StorageError if another process has locked it."
    folder = Path(folder).resolve()
    make_folder(folder)
    if folder in _owned:   # a caller has the lock already
        _owned[folder] += 1
        try:
            yield
        finally:
            _owned[folder] -= 1
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"Another run writes to {folder} at the moment. Wait until it has ended, or choose "
                               "another folder.") from None
        _owned[folder] = 1
        try:
            yield
        finally:
            del _owned[folder]
    finally:
        os.close(lock)

def owned(
    function,   # has an argument `output`, a folder
):              # the same, under the lock
    "Lock the folder `output` while a function runs."
    signature = inspect.signature(function)

    @functools.wraps(function)
    def locked(*given, **named):
        with owner(signature.bind(*given, **named).arguments["output"]):
            return function(*given, **named)
    return locked

# %% [markdown]
# A folder is locked for each process. A second lock in the same process is no conflict:

# %%
with owner(folder), owner(folder):
    other = os.open(folder, os.O_RDONLY)   # as another process would do
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        print(e)
    else:
        raise AssertionError
    os.close(other)

# %% [markdown]
# ## Names from tables
# A table or a header may name a file, and that file must be inside the given folder. Only the name is checked; a
# symbolic link in the folder is the responsibility of its owner.

# %%
#| export
class PathError(ProjectError, ValueError):
    "A name in a table or a header leads out of its folder."

def inside(
    root: Path | str,  # the folder
    name: str,         # path below the folder, with parts separated by /
) -> Path:             # root / name
    "Give the path of a file below a folder. Raises PathError for any other name."
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive
    if not name or absolute or ".." in name.split("/") or "\\" in name or "\0" in name:
        raise PathError(f"{name!r} is no path below a folder. Correct the table that names it.")
    return Path(root) / name

# %%
assert inside("raw", "10006/1.dcm") == Path("raw/10006/1.dcm")
for name in ("../weights", "a/../../b", "/etc/passwd", "C:/x", "a\\b", "a\0b", ""):
    try:
        inside("raw", name)
    except PathError as e:
        print(e)
    else:
        raise AssertionError(name)

# %% [markdown]
# ## Text, JSON and tables
# Most small files are JSON or tables. All of them are whole or absent.

# %%
#| export
def write_text(
    path: Path | str,  # the file to write
    text: str,         # encoded as UTF-8
):
    "Write a text file."
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

def write_json(
    path: Path | str,  # the file to write
    content,           # a value that the json module can write
):
    "Write a JSON file."
    write_text(path, json.dumps(content, indent=1) + "\n")

def read_json(
    path: Path | str,  # the file to read
):                     # the value
    "Read a JSON file."
    return json.loads(Path(path).read_text(encoding="utf-8"))

def write_csv(
    path: Path | str,  # the file to write
    table,             # pandas.DataFrame; its index is not written
):
    "Write a table as CSV, with the same bytes on every system."
    with replacing(path) as temporary:
        # a name of a file may have bytes that are no UTF-8
        table.to_csv(temporary, index=False, lineterminator="\n", errors="backslashreplace")

class TableError(ProjectError, ValueError):
    "A file that is no table."

def read_csv(
    path: Path | str,  # CSV file in UTF-8, UTF-16 or Windows-1252
    **how,             # arguments of pandas.read_csv
):                     # pandas.DataFrame
    "Read a CSV file. Raises TableError for one that is empty, ragged or has an open quote."
    import pandas as pd   # half of the commands need no tables
    try:
        return pd.read_csv(io.StringIO(decode_text(Path(path).read_bytes())), **how)
    except ValueError as e:
        raise TableError(f"{path} cannot be read as a table: {shown(str(e).strip())}. Save it as CSV again.") from None

# %%
(folder / "odd.csv").write_bytes("id,é\n1,2\n".encode("utf-16"))
assert read_csv(folder / "odd.csv").columns.tolist() == ["id", "é"]
for text in ("", 'a,b\n"1,2\n', "a,b\n1,2\n1,2,3\n"):
    (folder / "odd.csv").write_text(text)
    try:
        read_csv(folder / "odd.csv")
    except TableError as e:
        print(str(e).replace(str(folder), "..."))
    else:
        raise AssertionError(text)

# %%
write_json(folder / "a" / "numbers.json", {"one": 1})
assert read_json(folder / "a" / "numbers.json") == {"one": 1}
(folder / "a" / "numbers.json").read_text()

# %% [markdown]
# ---
# [← Errors](11_errors.py) · [Settings →](13_settings.py)

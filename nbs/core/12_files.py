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
# # Files
# > A file is whole or absent, and is identified by its digest.
#
# A run may be killed, a disk may be full, or two processes may write the same file. The next reader must never find an
# incomplete file under its final name. So the project writes every file under a temporary name in the same folder and
# then renames it, which the file system does in one step.

# %%
#| default_exp core.files

# %%
#| export
import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Iterator

from mammo_nb.core.errors import ProjectError

# %%
#| hide
import tempfile

# %% [markdown]
# ## Whole files

# %%
#| export
@contextmanager
def replacing(
    path: Path | str,   # the file to write; its folder is made if it does not exist
) -> Iterator[Path]:    # the temporary file, in the same folder and with the same suffix
    "Write to a temporary file, which replaces `path` when the block ends without an error."
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

def sha256(
    path: Path | str,  # any file
) -> str:              # 64 hexadecimal digits
    "Compute the SHA-256 of a file, read in blocks of 1 MiB (FIPS 180-4)."
    digest = hashlib.sha256()
    with open(path, "rb") as file:
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
sha256(note)

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
        table.to_csv(temporary, index=False, lineterminator="\n")

# %%
write_json(folder / "a" / "numbers.json", {"one": 1})
assert read_json(folder / "a" / "numbers.json") == {"one": 1}
(folder / "a" / "numbers.json").read_text()

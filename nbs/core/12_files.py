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
# > A file is whole or absent, and known by its digest.
#
# A run is killed, a disk fills up, two processes meet: whoever reads afterwards must never find half a file under a
# good name. So everything the project writes is written under a temporary name in the same folder, then renamed, which
# the file system does in one step.

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

# %%
#| hide
import tempfile

# %%
#| export
@contextmanager
def replacing(
    path: Path | str,   # the file to make; its folder is made if need be
) -> Iterator[Path]:    # a name in the same folder to write to, with the same ending
    "Write to a temporary name, which takes the place of `path` only when the block ends well."
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
    "SHA-256 of a file's bytes, read in blocks (FIPS 180-4)."
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

# %% [markdown]
# If the block fails, the old file stays and nothing is left behind:

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
assert sha256(note).startswith("ba7816bf")   # the standard's own example
sha256(note)

# %% [markdown]
# A table or a header may name a file, but not any file: what it names must lie in the folder that was given. The name
# alone is judged; a link that the owner of the folder has put there is theirs.

# %%
#| export
class PathError(ValueError):
    "A name in a table or a header that leads out of its folder."

def inside(
    root: Path | str,  # the folder
    name: str,         # a path below it, parts separated by /
) -> Path:             # root / name
    "A path below a folder, or an error."
    if not name or PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or ".." in name.split("/") or any(
            c in name for c in "\\\0"):
        raise PathError(f"{name!r} is no path below a folder; correct the table that names it.")
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
# Most small files are JSON or tables.

# %%
#| export
def write_text(
    path: Path | str,  # the file
    text: str,         # written as UTF-8
):
    "Write text, whole or not at all."
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

def write_json(
    path: Path | str,  # the file
    content,           # anything JSON can hold
):
    "Write JSON, whole or not at all."
    write_text(path, json.dumps(content, indent=1) + "\n")

def read_json(
    path: Path | str,  # the file
):                     # what JSON holds
    "Read JSON."
    return json.loads(Path(path).read_text(encoding="utf-8"))

def write_csv(
    path: Path | str,  # the file
    table,             # pandas.DataFrame; its index is not written
):
    "Write a table, whole or not at all; the same bytes on every system."
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")

# %%
write_json(folder / "a" / "numbers.json", {"one": 1})
assert read_json(folder / "a" / "numbers.json") == {"one": 1}
(folder / "a" / "numbers.json").read_text()

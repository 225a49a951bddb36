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
# # Fetch
# > Downloads that continue after an interruption, and archives that are unpacked safely.
#
# Three hundred gigabytes take hours, and in hours a connection fails, a link expires or somebody closes the laptop. So
# the free space is checked before the first byte, an interrupted download continues where it stopped, and a file gets
# its name only when it is complete. The Kaggle client (`kaggle`) uses these downloads.

# %%
#| default_exp core.fetch

# %%
#| export
import http.client
import os
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import PathError, inside, read_json, sha256, write_json

# %%
#| hide
import re
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# %% tags=["parameters"]
size = 300_000   # bytes of the file that is downloaded below

# %%
#| export
class FetchError(ProjectError):
    "Something could not be fetched. The text names it, the reason and the remedy."

class BrokenLine(FetchError):
    "A download was interrupted and may continue if it is tried again."

# %% [markdown]
# ## Free space
# A disk that is full after two hundred gigabytes has cost a night, so the space is checked first.

# %%
#| export
def need_space(
    folder: Path,  # folder that the files go into; it need not exist yet
    size: int,     # bytes that are still to be written
    what: str,     # name of the files, for the error
):
    "Raise FetchError if the disk of a folder has too little free space."
    there = next(p for p in (Path(folder).resolve(), *Path(folder).resolve().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        raise FetchError(
            f"{what} needs {size / 1e9:.1f} GB, and the disk of {there} has {free / 1e9:.1f} GB free. Delete files, or "
            "name a folder on another disk in settings.ini."
        )

# %%
try:
    need_space(Path("a/b"), 10**18, "an exabyte")
except FetchError as e:
    print(re.sub("disk of .* has .* GB", "disk of ... has ... GB", str(e)))
need_space(Path("a/b"), 1, "a byte")

# %% [markdown]
# ## One file
# The bytes received so far are kept beside the target in a hidden file. A second hidden file holds the server's
# identifier of that version (`ETag`, RFC 9110). The rest is requested on the condition that this identifier is still
# valid. If it is not, or if the server does not support partial requests, the server sends the whole file.

# %%
#| export
def _receive(response, part: Path, note: Path, start: int, name: str) -> int | None:
    "Write a response to the partial file. Gives the size of the whole file if the server has stated it."
    if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise FetchError(
            f"{name}: the server sent another part than the requested one. Remove {part} and run again.")
    if response.status != 206:
        start = 0
    left = response.headers.get("Content-Length")
    total = start + int(left) if left else None
    need_space(part.parent, int(left or 0), name)
    write_json(note, {"mark": response.headers.get("ETag") or response.headers.get("Last-Modified") or ""})
    progress = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name)
    with open(part, "ab" if start else "wb") as file, progress as bar:
        while block := response.read(1 << 20):
            file.write(block)
            bar.update(len(block))
    return total

def download(
    url: str,              # http or https
    path: Path,            # the file to write
    digest: str = "",      # expected SHA-256; "": any
    timeout: float = 60.,  # seconds without a byte after which the connection counts as broken
) -> str:                  # SHA-256 of the file
    """Download a file, or the rest of it. The file is whole or absent. Raises BrokenLine for an interruption and
    FetchError for a wrong file."""
    path = Path(path)
    shown = url.partition("?")[0]  # the query may be a signature, which belongs in no message
    path.parent.mkdir(parents=True, exist_ok=True)
    part, note = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.json")
    mark = read_json(note)["mark"] if part.is_file() and note.is_file() else ""
    start = part.stat().st_size if mark else 0
    headers = {"Range": f"bytes={start}-", "If-Range": mark} if start else {}
    request = urllib.request.Request(url, headers={"User-Agent": "mammo_nb", "Accept-Encoding": "identity", **headers})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            total = _receive(response, part, note, start, path.name)
    except urllib.error.HTTPError as e:
        if e.code != 416 or not start:
            raise BrokenLine(
                f"{path.name}: {e.code} {e.reason} from {shown}. The received bytes are kept: run again to continue, "
                "or check whether the address is still valid."
            ) from None
        part.unlink()  # the server has no more bytes: the partial file is complete, or of another version
        return download(url, path, digest, timeout)
    except (OSError, http.client.HTTPException) as e:
        raise BrokenLine(
            f"{path.name}: {e or type(e).__name__} from {shown}. The received bytes are kept: run again to continue."
        ) from None
    if total is not None and (have := part.stat().st_size) != total:
        raise BrokenLine(
            f"{path.name}: the connection ended after {have} of {total} bytes. They are kept: run again to continue.")
    found = sha256(part)
    note.unlink()
    if digest and found != digest:
        part.unlink()
        raise FetchError(
            f"{path.name} from {shown} has the SHA-256 {found}, not {digest}. It has been changed or damaged, and was "
            "removed. Run again; if the digest stays wrong, the publisher has changed the file."
        )
    os.replace(part, path)
    return found

# %% [markdown]
# The example server on this machine closes the connection after half of the file, once:

# %%
content = bytes(i * i % 251 for i in range(size))
ranges = []   # of the requests

class Unsteady(BaseHTTPRequestHandler):
    def do_GET(self):
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        ranges.append(self.headers.get("Range"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", len(content) - start)
        self.send_header("ETag", '"one"')
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:] if start else content[:len(content) // 2])
    def log_message(self, *arguments):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Unsteady)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/weights.bin"
folder = Path(tempfile.mkdtemp())
try:
    download(url, folder / "weights.bin")
except FetchError as e:
    print(e)
assert not (folder / "weights.bin").exists() and (folder / ".weights.bin.part").stat().st_size == size // 2
download(url, folder / "weights.bin")
assert (folder / "weights.bin").read_bytes() == content and os.listdir(folder) == ["weights.bin"]
assert ranges == [None, f"bytes={size // 2}-"]

# %% [markdown]
# A file with another digest than the expected one is an error and is removed. The first call below is interrupted
# again, the second receives the whole file:

# %%
for _ in range(2):
    try:
        download(url, folder / "other.bin", digest="0" * 64)
    except FetchError as e:
        print(str(e).replace(str(server.server_port), "..."))
assert os.listdir(folder) == ["weights.bin"]
server.shutdown()
server.server_close()

# %% [markdown]
# ## An archive
# Every name in the archive is checked before anything is written, because a ZIP may contain `../../.bashrc`. A member
# is written to a temporary file and gets its name after its checksum was compared. Members that exist already with the
# checksum of the archive are skipped, so that an interrupted unpacking continues. A link that is there already is not
# followed: a folder that leads elsewhere is an error, and a linked file is replaced.

# %%
#| export
def _is_there(member: zipfile.ZipInfo, target: Path) -> bool:
    "Whether a file exists with the size and the checksum of the archive."
    if target.is_symlink() or not target.is_file() or target.stat().st_size != member.file_size:
        return False
    checksum = 0
    with open(target, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum == member.CRC

def _members(archive: zipfile.ZipFile, folder: Path) -> list[tuple[zipfile.ZipInfo, Path]]:
    "List the files of an archive with their targets. Raises FetchError if a name leaves the folder."
    files = [m for m in archive.infolist() if not m.is_dir()]
    try:
        members = [(m, inside(folder, m.filename)) for m in files]
        for place in {target.parent for _, target in members}:
            if not place.resolve().is_relative_to(folder.resolve()):
                raise FetchError(f"{Path(archive.filename).name} was not unpacked: {place} is a link that leads out of "
                                 f"{folder}. Remove the link.")
        return members
    except PathError as e:
        raise FetchError(
            f"{Path(archive.filename).name} was not unpacked: a name in it leads out of the folder "
            f"({str(e).split(' is ')[0]}). Do not use this archive; fetch it from its publisher."
        ) from None

def unpack(
    archive: Path,   # a ZIP file
    folder: Path,    # folder that the files go into
    scratch: Path,   # folder on the same disk for the file in progress
) -> int:            # number of files in the archive
    """Unpack the files that do not exist yet. Each file is whole or absent, and none lies outside of the folder. Raises
    FetchError for a damaged archive, which is removed, and for one with unsafe names."""
    part = Path(scratch) / "member.part"
    try:
        with zipfile.ZipFile(archive) as source:
            members = _members(source, Path(folder))
            todo = [(m, t) for m, t in members if not _is_there(m, t)]
            total, label = sum(m.file_size for m, _ in todo), f"unpacking {Path(archive).name}"
            need_space(folder, total, label)
            with tqdm(total=total, unit="B", unit_scale=True, desc=label, disable=not todo) as bar:
                for member, target in todo:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with source.open(member) as stream, open(part, "wb") as file:
                        shutil.copyfileobj(stream, file, 1 << 20)
                    os.replace(part, target)
                    bar.update(member.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as e:
        Path(archive).unlink()
        raise FetchError(
            f"{Path(archive).name} is damaged ({e}) and has been removed. Run again to fetch it anew; files that were "
            "unpacked are kept."
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return len(members)

# %%
def pack(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path

shelf = Path(tempfile.mkdtemp())  # archives as they come
competition = {
    "train.csv": b"patient_id,cancer\n",
    "train_images/1/2.dcm": b"pixels" * 1000,
    "test_images/3/4.dcm": b"more",
}
assert unpack(pack(shelf / "good.zip", competition), folder / "raw", folder) == 3
unpacked = [p for p in (folder / "raw").rglob("*") if p.is_file()]
assert {str(p.relative_to(folder / "raw")): p.read_bytes() for p in unpacked} == competition
try:
    unpack(pack(shelf / "evil.zip", {"harmless.txt": b"", "../../climbed.txt": b"out"}), folder / "other", folder)
except FetchError as e:
    print(e)
assert not (folder / "other").exists() and not list(folder.parent.glob("climbed.txt"))

# %% [markdown]
# ## Weights from others
# A `.pth` is an archive as well. Its list of contents says how large the files in it are, before any of them is read.

# %%
#| export
MAX_WEIGHTS = 2**32   # bytes; a checkpoint of the winner's, with its optimizer, has less than 1 GB
MAX_PICKLE = 2**26    # bytes of the structure, without the tensors

def too_large(
    path: Path,   # a file of weights
) -> str:         # why it is refused; "" if it is not
    "Say whether a file is, or would become, larger than any weights. Only the list of an archive is read."
    size, inside = Path(path).stat().st_size, {}
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {m.filename: m.file_size for m in archive.infolist()}
    except zipfile.BadZipFile:   # a format without an archive, or a damaged one
        pass
    structure = max((n for name, n in inside.items() if name.endswith("data.pkl")), default=0)
    if max(size, sum(inside.values())) <= MAX_WEIGHTS and structure <= MAX_PICKLE:
        return ""
    return f"refused: it holds {max(size, *inside.values(), 0) / 1e9:.1f} GB in one piece"

# %%
assert not too_large(pack(shelf / "weights.pth", {"archive/data.pkl": b"", "archive/data/0": bytes(1000)}))

# %% [markdown]
# ---
# [← Chapter 3: many files](30_many_files.py) · [Kaggle →](32_kaggle.py)

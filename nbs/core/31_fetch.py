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
# # Fetch
# > Large files over lines that break: what has come is kept, and half a file never stands under a good name.
#
# Three hundred gigabytes take hours, and in hours a line breaks, a link expires and somebody closes the lid. So the
# disk is asked before the first byte, what has come is continued, and a file gets its name when all of it is there.
# Kaggle's own package signs in and asks; what it is sent a link to is fetched here.

# %%
#| default_exp core.fetch

# %%
#| export
import fcntl
import http.client
import io
import os
import re
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Iterator

from tqdm import tqdm

from mammo_nb.core.files import PathError, inside, read_json, sha256, write_json

# %%
#| hide
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pandas as pd

# %% tags=["parameters"]
size = 300_000   # bytes of the file that is downloaded below

# %%
#| export
class FetchError(Exception):
    "What could not be fetched, why, and what to do about it."

class BrokenLine(FetchError):
    "A download that may go on if it is tried again."

# %% [markdown]
# ## Room
# A disk that fills up after two hundred gigabytes has cost a night.

# %%
#| export
def need_space(
    folder: Path,  # where files will go; it need not exist yet
    size: int,     # bytes still to be written
    what: str,     # named in the error
):
    "Refuse what the disk cannot hold, before the first byte."
    there = next(p for p in (Path(folder).resolve(), *Path(folder).resolve().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        raise FetchError(
            f"{what} needs {size / 1e9:.1f} GB, and the disk of {there} has {free / 1e9:.1f} GB free. Make room, or "
            "name a folder on another disk in settings.ini."
        )

# %%
try:
    need_space(Path("a/b"), 10**18, "an exabyte")
except FetchError as e:
    print(re.sub("disk of .* has .* GB", "disk of ... has ... GB", str(e)))
need_space(Path("a/b"), 1, "a byte")

# %% [markdown]
# ## A plain file
# What has come lies beside the goal under a name with a dot, with a note of what it is a part of: the server's own mark
# for that version of the file (`ETag`, RFC 9110). The rest is asked for on the condition that the mark still holds; if
# it does not, the server sends the whole file, and so it does if it does not know how to continue.

# %%
#| export
def _receive(answer, part: Path, note: Path, start: int, name: str) -> int | None:
    "Write an answer to the part; the size that the whole should have, if the server said."
    if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise FetchError(
            f"{name}: the server answered with another part than was asked for. Remove {part} and run again.")
    if answer.status != 206:
        start = 0
    left = answer.headers.get("Content-Length")
    total = start + int(left) if left else None
    need_space(part.parent, int(left or 0), name)
    write_json(note, {"mark": answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""})
    with open(part, "ab" if start else "wb") as file, tqdm(total=total, initial=start, unit="B", unit_scale=True,
                                                           desc=name) as bar:
        while block := answer.read(1 << 20):
            file.write(block)
            bar.update(len(block))
    return total

def download(
    url: str,              # http or https
    path: Path,            # the file to make
    digest: str = "",      # SHA-256 that it must have; "": any
    timeout: float = 60.,  # seconds without a byte
) -> str:                  # SHA-256 that it has
    "Download a file, or the rest of it; whole or not at all."
    path, shown = Path(path), url.partition("?")[0]  # what follows may be a signature, which belongs in no message
    path.parent.mkdir(parents=True, exist_ok=True)
    part, note = (path.with_name(f".{path.name}.{end}") for end in ("part", "json"))
    mark = read_json(note)["mark"] if part.is_file() and note.is_file() else ""
    start = part.stat().st_size if mark else 0
    headers = {"Range": f"bytes={start}-", "If-Range": mark} if start else {}
    request = urllib.request.Request(url, headers={"User-Agent": "mammo_nb", "Accept-Encoding": "identity", **headers})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            total = _receive(answer, part, note, start, path.name)
    except urllib.error.HTTPError as e:
        if e.code != 416 or not start:
            raise BrokenLine(
                f"{path.name}: {e.code} {e.reason} from {shown}. What has come is kept: run again to go on, or look "
                "whether the address still holds."
            ) from None
        part.unlink()  # nothing is left to send: the part is no part of this file, or all of it
        return download(url, path, digest, timeout)
    except (OSError, http.client.HTTPException) as e:
        raise BrokenLine(
            f"{path.name}: {e or type(e).__name__} from {shown}. What has come is kept: run again to go on.") from None
    if total is not None and (have := part.stat().st_size) != total:
        raise BrokenLine(
            f"{path.name}: the line ended after {have} of {total} bytes. They are kept: run again to go on.")
    found = sha256(part)
    note.unlink()
    if digest and found != digest:
        part.unlink()
        raise FetchError(
            f"{path.name} from {shown} has the SHA-256 {found}, not {digest}: it has been changed or damaged, and is "
            "not kept."
        )
    os.replace(part, path)
    return found

# %% [markdown]
# A server on this machine that hangs up half way, once:

# %%
content, asked = bytes(i * i % 251 for i in range(size)), []

class Unsteady(BaseHTTPRequestHandler):
    def do_GET(self):
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        asked.append(self.headers.get("Range"))
        self.send_response(206 if start else 200)
        for name, value in {
                "Content-Length": len(content) - start, "ETag": '"one"',
                "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"
        }.items():
            self.send_header(name, value)
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
assert (folder / "weights.bin").read_bytes() == content and asked == [None, f"bytes={size // 2}-"
                                                                      ] and os.listdir(folder) == ["weights.bin"]

# %% [markdown]
# With a digest known beforehand, another file is refused:

# %%
asked.clear()
for _ in range(2):
    try:
        download(url, folder / "other.bin", digest="0" * 64)
    except FetchError as e:
        print(str(e).replace(str(server.server_port), "..."))
assert os.listdir(folder) == ["weights.bin"]

# %% [markdown]
# ## An archive
# Every name in it is looked at before anything is written, for a ZIP may say `../../.bashrc`. A member is written under
# a scratch name, its checksum compared, and only then named; those that are there already are left alone, so that an
# interrupted unpacking goes on.

# %%
#| export
def _members(archive: zipfile.ZipFile, folder: Path) -> list[tuple[zipfile.ZipInfo, Path]]:
    "Files of an archive and where they go; an error if one leaves the folder."
    files = [m for m in archive.infolist() if not m.is_dir()]
    try:
        return [(m, inside(folder, m.filename)) for m in files]
    except PathError as e:
        raise FetchError(
            f"{Path(archive.filename).name} was not unpacked: a name in it leads out of the folder "
            f"({str(e).split(' is ')[0]}). Do not trust this archive."
        ) from None

def unpack(
    archive: Path,   # a ZIP file
    folder: Path,    # files go below it
    scratch: Path,   # a folder on the same disk for the file in progress
) -> int:            # files of the archive
    "Unpack what is not there yet; each file whole or not at all, and none outside the folder."
    part = Path(scratch) / "member.part"
    try:
        with zipfile.ZipFile(archive) as source:
            members = _members(source, Path(folder))
            todo = [(m, t) for m, t in members if not (t.is_file() and t.stat().st_size == m.file_size)]
            need_space(folder, total := sum(m.file_size for m, _ in todo), f"unpacking {Path(archive).name}")
            with tqdm(total=total, unit="B", unit_scale=True, desc=f"unpacking {Path(archive).name}",
                      disable=not todo) as bar:
                for member, target in todo:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with source.open(member) as stream, open(part, "wb") as file:
                        shutil.copyfileobj(stream, file, 1 << 20)
                    os.replace(part, target)
                    bar.update(member.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as e:
        Path(archive).unlink()
        raise FetchError(
            f"{Path(archive).name} is damaged ({e}) and has been removed. Run again: it is fetched anew, and files "
            "that were unpacked are kept."
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

shelf = Path(tempfile.mkdtemp())
competition = {
    "train.csv": b"patient_id,cancer\n", "train_images/1/2.dcm": b"pixels" * 1000, "test_images/3/4.dcm": b"more"
}
assert unpack(pack(shelf / "good.zip", competition), folder / "raw", folder) == 3
assert {str(p.relative_to(folder / "raw")): p.read_bytes() for p in (folder / "raw").rglob("*")
        if p.is_file()} == competition
try:
    unpack(pack(shelf / "evil.zip", {"harmless.txt": b"", "../../climbed.txt": b"out"}), folder / "other", folder)
except FetchError as e:
    print(e)
assert not (folder / "other").exists() and not list(folder.parent.glob("climbed.txt"))

# %% [markdown]
# ## Kaggle
# The package reads its credentials when it is imported, and ends the process if there are none. So it is imported here
# and no earlier, and its end becomes a sentence. It also has a way of its own to continue a download, which in some
# versions writes the error page of an expired link over what has come. So the link is all that is taken from it.

# %%
#| export
CREDENTIALS = (
    "No credentials for Kaggle were found, or they no longer hold. Make a token at "
    "https://www.kaggle.com/settings/api and save it as ~/.kaggle/access_token, readable by you alone "
    "(chmod 600), or set KAGGLE_API_TOKEN; a kaggle.json of older days in ~/.kaggle, or KAGGLE_USERNAME and "
    "KAGGLE_KEY, will do too. "
    "A competition's data moreover needs its rules accepted, on its page at kaggle.com, by the same account.")

def connect():  # kaggle's KaggleApi, signed in, with our download
    "Sign in to Kaggle with the user's own credentials."
    try:
        import requests
        with redirect_stdout(io.StringIO()):  # its own advice, which knows nothing of a competition's rules
            from kaggle.api.kaggle_api_extended import KaggleApi

            class Api(KaggleApi):
                def download_needed(self, *given, **options):
                    return True
                def download_file(self, response, outfile, *given, **options):
                    response.close()
                    download(response.url, outfile)

            api = Api()
            api.authenticate()
    except ImportError:
        raise FetchError(
            "The package kaggle is not installed; it needs Python 3.11 or later: make install PYTHON=python3.11."
        ) from None
    except requests.RequestException as e:
        raise FetchError(f"Kaggle does not answer ({type(e).__name__}). Run again when there is a network.") from None
    except SystemExit:
        raise FetchError(CREDENTIALS) from None
    return api

# %% [markdown]
# What its answers mean, in words. Addresses are left out of them: a link to a file of Kaggle's carries a signature.

# %%
#| export
def _page(source: str) -> str:
    return f"https://www.kaggle.com/{'datasets' if '/' in source else 'competitions'}/{source}"

def _meaning(source: str, status: int) -> str:
    "What a refusal means and what to do."
    if status == 401:
        return CREDENTIALS
    if status == 403:
        return (f"Kaggle refuses {source}: accept {'its terms' if '/' in source else 'the rules of the competition'} "
            f"at {_page(source)}{'' if '/' in source else '/rules'} with the account that the credentials belong "
            "to, then run again.")
    if status == 404:
        return f"Kaggle has no {source}, or does not show it to this account: look at {_page(source)}."
    if status == 429:
        return (f"Kaggle has had too many questions from this account. Wait some minutes and run again: {source} goes "
            "on where it stopped.")
    return ""

@contextmanager
def _explained(source: str):
    "Turn what kaggle's package raises into a `FetchError`."
    import requests
    try:
        yield
    except (OSError, ValueError) as e:  # those of requests are OSErrors
        answer = e.response if isinstance(e, requests.RequestException) else None
        # questions are POSTs; what a link leads to is a GET, and the storage knows no rules
        refused = answer.status_code if answer is not None and answer.request.method == "POST" else 0
        if answer is not None and not refused:
            raise BrokenLine(
                f"{source}: {answer.status_code} {answer.reason} from the storage. What has come is kept: run again "
                "to go on."
            ) from None
        said = f"{answer.status_code} {answer.reason}" if answer is not None else f"{type(e).__name__}: " + re.sub(
            r"\?\S*", "", str(e))
        raise FetchError(_meaning(source, refused)
                         or f"{source}: {said}. What has come is kept: run again to go on.") from None

def list_files(
    api,                # from `connect`
    source: str,        # a competition, or owner/name of a data set
) -> dict[str, int]:    # name -> bytes
    "All files of a competition or data set."
    ask = api.with_retry(api.dataset_list_files if "/" in source else api.competition_list_files)
    files, token = {}, None
    with _explained(source), tqdm(desc=f"files of {source}", unit=" files") as bar:
        while True:
            page = ask(source, page_token=token, page_size=200)
            if getattr(page, "error_message", ""):
                raise FetchError(f"{source}: {page.error_message}")
            files |= {f.name: f.total_bytes for f in page.files}
            bar.update(len(page.files))
            if not (token := page.next_page_token):
                return files

# %% [markdown]
# A link of Kaggle's lives for some hours, a large competition takes longer. So whenever the line breaks, Kaggle is
# asked for a new link and the rest is fetched from there; only when several tries with growing pauses bring nothing is
# it given up. Files in progress lie in a folder of their own beside the finished ones, which one process at a time may
# use.

# %%
#| export
STAGING = ".fetch"           # inside the folder that is being filled; as long as it exists, something is missing
PAUSES = (5, 15, 60, 180)    # seconds before another try, after one that brought nothing

@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    "The folder for what is in progress, removed when the block ends well."
    staging = Path(folder) / STAGING
    staging.mkdir(parents=True, exist_ok=True)
    with open(staging / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchError(f"{folder} is being fetched by another process.") from None
        yield staging
        shutil.rmtree(staging)

def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.glob(".*.part"))

def _insist(source: str, incoming: Path, call: Callable) -> Path:
    "Call until a file is whole, or several calls have brought nothing."
    incoming.mkdir(exist_ok=True)
    arrived, stuck = lambda: next((p for p in incoming.iterdir() if not p.name.startswith(".")), None), 0
    while not arrived():
        before = _bytes(incoming)
        try:
            with _explained(source):
                call(path=str(incoming), quiet=True)
        except BrokenLine:
            stuck = 0 if _bytes(incoming) > before else stuck + 1
            if stuck > len(PAUSES):
                raise
            time.sleep(PAUSES[stuck - 1] if stuck else 0)
    return arrived()

# %% [markdown]
# A competition comes as one archive: one question instead of fifty thousand, which Kaggle would not answer so fast. It
# takes its room twice until it is unpacked.

# %%
#| export
def fetch_competition(
    api,             # from `connect`
    source: str,     # its name in the address of its page
    folder: Path,    # its files go below it
    size: int = 0,   # bytes that it is known to have, unpacked; Kaggle's list may say more
) -> int:            # files
    "Fetch and unpack a competition, or the rest of it."
    folder = Path(folder)
    with _staging(folder) as staging:
        archive, listing, incoming = staging / f"{source}.zip", staging / "files.json", staging / "incoming"
        if not listing.is_file():
            write_json(listing, list_files(api, source))
        wanted = read_json(listing)
        if not archive.is_file():
            incoming.mkdir(exist_ok=True)
            whole = max(size, sum(wanted.values()))
            need_space(folder, 2 * whole - _bytes(incoming), f"{source} (archive and unpacked)")
            os.replace(_insist(source, incoming, partial(api.with_retry(api.competition_download_files), source)),
                       archive)
        count = unpack(archive, folder, staging)
        missing = [name for name in wanted if not inside(folder, name).is_file()]
        if missing:
            archive.unlink()
            raise FetchError(
                f"{source}: {len(missing)} of the {len(wanted)} files that Kaggle lists were not in its archive, such "
                f"as {missing[0]}. Run again to fetch the archive anew."
            )
    return count

def fetch_files(
    api,             # from `connect`
    source: str,     # owner/name of a data set
    names: list,     # of its files
    folder: Path,    # they go into it
):
    "Fetch some files of a data set that are not there yet."
    folder = Path(folder)
    with _staging(folder) as staging:
        listed = list_files(api, source)
        if absent := [n for n in names if n not in listed]:
            raise FetchError(f"{source} has no {', '.join(absent)}; look at {_page(source)}.")
        todo = [n for n in names if not (folder / n).is_file()]
        need_space(folder, sum(listed[n] for n in todo), source)
        for name in todo:
            arrived = _insist(source, staging / f"incoming {name}",
                              partial(api.with_retry(api.dataset_download_file), source, name))
            if arrived.name == f"{name}.zip":
                unpack(arrived, arrived.parent, staging)  # Kaggle has packed it for the journey
            whole = arrived.parent / name
            if not whole.is_file() or whole.stat().st_size != listed[name]:
                shutil.rmtree(arrived.parent)
                raise FetchError(
                    f"{name} of {source} came with {arrived.name}, which is not the {listed[name]} bytes that Kaggle "
                    "lists. It has been removed: run again to fetch it anew."
                )
            os.replace(whole, folder / name)

# %% [markdown]
# Something with the calls of Kaggle's package, whose links lead to the unsteady server:

# %%
class Shelf:
    def with_retry(self, function):
        return function
    def competition_list_files(self, source, page_token, page_size):
        names, at = sorted(competition), int(page_token or 0)
        return SimpleNamespace(
            files=[SimpleNamespace(name=n, total_bytes=len(competition[n])) for n in names[at:at + 2]],
            next_page_token=str(at + 2) if at + 2 < len(names) else "")
    def competition_download_files(self, source, path, quiet):
        download(f"{url}?signature", Path(path, f"{source}.zip"))

content = (shelf / "good.zip").read_bytes()
asked.clear()
assert fetch_competition(Shelf(), "some-competition", folder / "some-competition") == 3
assert {
    str(p.relative_to(folder / "some-competition")): p.read_bytes() for p in (folder / "some-competition").rglob("*")
    if p.is_file()
} == competition
assert asked == [None, f"bytes={len(content) // 2}-"]
server.shutdown()
server.server_close()
pd.DataFrame({"file": sorted(competition), "bytes": [len(competition[n]) for n in sorted(competition)]})

# %% [markdown]
# ## What came out
# What Kaggle may answer, and what is said:

# %%
for status in (401, 403, 404, 429):
    print(status, _meaning("some-competition", status), sep="  ", end="\n\n")

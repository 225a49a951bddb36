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
# # Kaggle
# > Competitions and data sets of Kaggle, fetched with the user's own credentials.
#
# Kaggle's package signs in and gives links to files; the files themselves are downloaded by `fetch`. Refusals of Kaggle
# become errors that explain what to do, and an interrupted download continues with a new link.

# %%
#| default_exp core.kaggle

# %%
#| export
import fcntl
import io
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Iterator

from tqdm import tqdm

from mammo_nb.core.fetch import BrokenLine, FetchError, download, need_space, unpack
from mammo_nb.core.files import inside, read_json, write_json

# %%
#| hide
import tempfile
import zipfile
from types import SimpleNamespace

import pandas as pd

# %% [markdown]
# ## Signing in
# Kaggle's package reads the credentials when it is imported, and ends the process if there are none. So it is imported
# inside the function, and the exit becomes an error with advice. Some versions of the package continue a download by
# appending the error page of an expired link to the file. So only the link is taken from the package.

# %%
#| export
CREDENTIALS = (
    "No credentials for Kaggle were found, or they are no longer valid. Make a token at "
    "https://www.kaggle.com/settings/api and save it as ~/.kaggle/access_token, readable by you alone "
    "(chmod 600), or set KAGGLE_API_TOKEN. The older kaggle.json in ~/.kaggle, or KAGGLE_USERNAME and "
    "KAGGLE_KEY, work too. "
    "For the data of a competition, the same account must also accept the rules on the competition's page.")

def connect():  # a signed-in KaggleApi that downloads with `fetch.download`
    "Sign in to Kaggle with the user's own credentials. Raises FetchError."
    try:
        import requests
        with redirect_stdout(io.StringIO()):  # hides the package's own advice, which does not mention the rules
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
            "The package kaggle is not installed. It needs Python 3.11 or later: make install PYTHON=python3.11."
        ) from None
    except requests.RequestException as e:
        raise FetchError(
            f"Kaggle does not respond ({type(e).__name__}). Check the network connection and run again.") from None
    except SystemExit:
        raise FetchError(CREDENTIALS) from None
    return api

# %% [markdown]
# ## Kaggle's answers
# A status code becomes a sentence that explains what to do. Addresses of files are left out, because Kaggle's
# links carry a signature.

# %%
#| export
def _page(source: str) -> str:
    "Give the address of the page of a competition or a data set."
    kind = "datasets" if "/" in source else "competitions"
    return f"https://www.kaggle.com/{kind}/{source}"

def _meaning(source: str, status: int) -> str:
    "Explain a refusal and what to do; an empty string for an unknown status."
    if status == 401:
        return CREDENTIALS
    if status == 403:
        terms, page = "the rules of the competition", f"{_page(source)}/rules"
        if "/" in source:
            terms, page = "its terms", _page(source)
        return (f"Kaggle refuses {source}: accept {terms} at {page} with the account that the credentials belong to, "
                "then run again.")
    if status == 404:
        return f"Kaggle has no {source}, or does not show it to this account. Check the name at {_page(source)}."
    if status == 429:
        return (f"Kaggle has received too many requests from this account. Wait some minutes and run again: {source} "
                "continues where it stopped.")
    return ""

@contextmanager
def _explained(source: str):
    "Turn an exception of Kaggle's package into a `FetchError`."
    import requests
    try:
        yield
    except (OSError, ValueError) as e:  # the exceptions of requests are OSErrors
        response = e.response if isinstance(e, requests.RequestException) else None
        # the interface is called with POST; files come from a storage with GET, and the storage has no rules
        refused = response.status_code if response is not None and response.request.method == "POST" else 0
        if response is not None and not refused:
            raise BrokenLine(
                f"{source}: {response.status_code} {response.reason} from the storage. The received bytes are kept: "
                "run again to continue."
            ) from None
        if response is not None:
            reason = f"{response.status_code} {response.reason}"
        else:
            reason = f"{type(e).__name__}: " + re.sub(r"\?\S*", "", str(e))
        other = f"{source}: {reason}. The received bytes are kept: run again to continue."
        raise FetchError(_meaning(source, refused) or other) from None

def list_files(
    api,                # from `connect`
    source: str,        # a competition, or owner/name of a data set
) -> dict[str, int]:    # name -> size in bytes
    "List all files of a competition or data set. Raises FetchError."
    request = api.with_retry(api.dataset_list_files if "/" in source else api.competition_list_files)
    files, token = {}, None
    with _explained(source), tqdm(desc=f"files of {source}", unit=" files") as bar:
        while True:
            page = request(source, page_token=token, page_size=200)
            if getattr(page, "error_message", ""):
                raise FetchError(f"{source}: {page.error_message}")
            files |= {f.name: f.total_bytes for f in page.files}
            bar.update(len(page.files))
            if not (token := page.next_page_token):
                return files

# %% [markdown]
# ## Interrupted downloads
# A link is valid for some hours, and a large competition takes longer. So after each interruption a new link is
# requested and the rest is fetched from there. The download fails only when several attempts with growing pauses have
# brought no byte. Files in progress are kept in a hidden folder beside the finished ones, which only one process at a
# time may use.

# %%
#| export
STAGING = ".fetch"           # folder for files in progress; while it exists, the download is incomplete
PAUSES = (5, 15, 60, 180)    # seconds before the next attempt, after an attempt that brought no byte

@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    "Make and lock the folder for files in progress. It is removed when the block ends without an error."
    staging = Path(folder) / STAGING
    staging.mkdir(parents=True, exist_ok=True)
    with open(staging / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchError(f"{folder} is being fetched by another process. Wait until that one has ended.") from None
        yield staging
        shutil.rmtree(staging)

def _bytes(folder: Path) -> int:
    "Count the bytes in partial files of a folder."
    return sum(p.stat().st_size for p in folder.glob(".*.part"))

def _insist(source: str, incoming: Path, call: Callable) -> Path:
    "Repeat a download until its file is complete, or until several attempts have brought no byte."
    incoming.mkdir(exist_ok=True)
    stuck = 0

    def arrived():
        return next((p for p in incoming.iterdir() if not p.name.startswith(".")), None)

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
# ## Competitions and data sets
# A competition comes as one archive: one request instead of fifty thousand, which Kaggle would limit. It needs its size
# twice on the disk until it is unpacked.

# %%
#| export
def fetch_competition(
    api,             # from `connect`
    source: str,     # name of the competition in the address of its page
    folder: Path,    # folder that its files go into
    size: int = 0,   # known size of the unpacked files, in bytes; Kaggle's list may give more
) -> int:            # number of files
    "Fetch and unpack a competition, or the rest of it. Raises FetchError."
    folder = Path(folder)
    with _staging(folder) as staging:
        archive = staging / f"{source}.zip"
        listing = staging / "files.json"
        incoming = staging / "incoming"
        if not listing.is_file():
            write_json(listing, list_files(api, source))
        wanted = read_json(listing)
        if not archive.is_file():
            incoming.mkdir(exist_ok=True)
            whole = max(size, sum(wanted.values()))
            need_space(folder, 2 * whole - _bytes(incoming), f"{source} (archive and unpacked)")
            call = partial(api.with_retry(api.competition_download_files), source)
            os.replace(_insist(source, incoming, call), archive)
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
    names: list,     # names of the files to fetch
    folder: Path,    # folder that they go into
):
    "Fetch those of some files of a data set that do not exist yet. Raises FetchError."
    folder = Path(folder)
    with _staging(folder) as staging:
        listed = list_files(api, source)
        if absent := [n for n in names if n not in listed]:
            raise FetchError(f"{source} has no {', '.join(absent)}. Check the names at {_page(source)}.")
        todo = [n for n in names if not (folder / n).is_file()]
        need_space(folder, sum(listed[n] for n in todo), source)
        for name in todo:
            call = partial(api.with_retry(api.dataset_download_file), source, name)
            arrived = _insist(source, staging / f"incoming {name}", call)
            if arrived.name == f"{name}.zip":
                unpack(arrived, arrived.parent, staging)  # Kaggle compresses some files for the transfer
            whole = arrived.parent / name
            if not whole.is_file() or whole.stat().st_size != listed[name]:
                shutil.rmtree(arrived.parent)
                raise FetchError(
                    f"{name} of {source} came as {arrived.name}, which has not the {listed[name]} bytes that Kaggle "
                    "lists. It has been removed: run again to fetch it anew."
                )
            os.replace(whole, folder / name)

# %% [markdown]
# The example has the calls of Kaggle's package. Its download is interrupted after half of the archive, once:

# %%
folder = Path(tempfile.mkdtemp())
competition = {
    "train.csv": b"patient_id,cancer\n",
    "train_images/1/2.dcm": b"pixels" * 1000,
    "test_images/3/4.dcm": b"more",
}
with zipfile.ZipFile(folder / "good.zip", "w") as archive:
    for name, data in competition.items():
        archive.writestr(name, data)
content = (folder / "good.zip").read_bytes()

class Shelf:
    calls = 0
    def with_retry(self, function):
        return function
    def competition_list_files(self, source, page_token, page_size):
        names, at = sorted(competition), int(page_token or 0)
        return SimpleNamespace(
            files=[SimpleNamespace(name=n, total_bytes=len(competition[n])) for n in names[at:at + 2]],
            next_page_token=str(at + 2) if at + 2 < len(names) else "")
    def competition_download_files(self, source, path, quiet):
        self.calls += 1
        if self.calls == 1:
            Path(path, f".{source}.zip.part").write_bytes(content[:len(content) // 2])
            raise BrokenLine("the connection ended")
        Path(path, f"{source}.zip").write_bytes(content)

shelf, target = Shelf(), folder / "some-competition"
assert fetch_competition(shelf, "some-competition", target) == 3 and shelf.calls == 2
assert {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()} == competition
pd.DataFrame({"file": sorted(competition), "bytes": [len(competition[n]) for n in sorted(competition)]})

# %% [markdown]
# ## What came out
# The refusals of Kaggle, and the messages that the user gets:

# %%
for status in (401, 403, 404, 429):
    print(status, _meaning("some-competition", status), sep="  ", end="\n\n")

# %% [markdown]
# ---
# [← Fetch](31_fetch.py) · [Processes →](33_processes.py)

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
# # Errors
# > One base class for every error that the user can mend.
#
# The text of an error that the project expects contains the remedy. The command line prints that text without a
# traceback and ends with exit code 2. All other errors are faults of the project and keep their traceback.

# %%
#| default_exp core.errors

# %%
#| export
import codecs
import errno
import hashlib
import re
import signal
import threading
from base64 import b64encode
from collections.abc import Sequence
from contextlib import contextmanager
from html import escape

# %%
#| hide
import io

# %%
#| export
class ProjectError(Exception):
    "Base class of the errors whose text names the fault, its place and the remedy."

# %% [markdown]
# A module derives its own error, so that a caller can catch just that one:

# %%
class SettingsError(ProjectError):
    "settings.ini is missing or wrong."

try:
    raise SettingsError("settings.ini has no folder `raw`. Add the line `raw = datasets/raw`.")
except ProjectError as e:
    print(f"{type(e).__name__}: {e}")

# %% [markdown]
# ## Errors of the machine
# A folder without permission or a machine without memory is no fault of the project either. Such an error comes from
# the operating system, and its text lacks the remedy.

# %%
#| export
_REMEDIES = {
    errno.EACCES: "Choose a place where you may write, or ask for the permission",
    errno.EPERM: "Choose a place where you may write, or ask for the permission",
    errno.EROFS: "Choose an output on another disk",
    errno.ENOSPC: "Make room or choose another disk, and run again",
    errno.EDQUOT: "Make room or choose another disk, and run again",
    errno.ENOTDIR: "A part of this path is a file: choose another output",
    errno.EEXIST: "A file has this name: choose another output",
    errno.EISDIR: "A folder has this name: choose another output",
    errno.ENAMETOOLONG: "Choose a shorter path",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or use fewer processes (--workers)",
    errno.ENOMEM: "Use fewer processes (--workers), or a machine with more memory",
    errno.EIO: "The disk or the network folder has a fault: check it, and run again",
    errno.ESTALE: "The network folder is gone: mount it again, and run again",
    errno.EPIPE: "The program that reads the output has ended",
}

def explain(
    error: Exception,
) -> str:           # one line; "" for an error that the machine is not the reason of
    "Describe an error of the machine and its remedy."
    if isinstance(error, MemoryError):
        return f"The memory is not enough. {_REMEDIES[errno.ENOMEM]}."
    if isinstance(error, RuntimeError) and "start new thread" in str(error):  # Python's words for a limit of the system
        return ("No more threads can be started: the limit of memory or of processes is reached (ulimit -a). "
                f"{_REMEDIES[errno.ENOMEM]}.")
    if not isinstance(error, OSError) or error.errno not in _REMEDIES:
        return ""
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror}. {_REMEDIES[error.errno]}."

# %%
try:
    open("/dev/null/a")
except OSError as e:
    print(explain(e))
    assert explain(e).startswith("/dev/null/a: Not a directory.")
assert explain(ValueError("x")) == "" and explain(RuntimeError("can't start new thread")).startswith("No more threads")

# %% [markdown]
# ## What is printed
# A progress bar is drawn again and again in the same line. In a file that collects what is printed, each of its states
# would be a line of its own.

# %%
#| export
class Printed:
    "A stream that is silent while `on` is false. Where it is no terminal, a progress bar is one line, its last state."
    def __init__(self,
        file,    # sys.stdout or sys.stderr
    ):
        self.file, self.on, self.line = file, True, ""

    def write(self, text: str):
        "Write the text of a cell."
        if not self.on:
            return
        if self.file.isatty():
            self.file.write(text)
            return
        for piece in re.split(r"([\r\n])", text):
            if piece == "\n":
                self.file.write(self.line + piece)
            self.line = "" if piece in ("\r", "\n") else self.line + piece

    def __getattr__(self, name: str):
        return getattr(self.file, name)

# %%
log = Printed(io.StringIO())
for n in range(4):
    log.write(f"\r{n} of 3")
log.write("\ndone\n")
assert log.getvalue() == "3 of 3\ndone\n"

# %% [markdown]
# A header or the name of a file may hold control characters, with which a terminal can be made to hide or to run
# something.

# %%
#| export
def shown(
    text: str,  # perhaps with control characters, or with bytes that are no text
) -> str:       # the same in one line of valid text
    "Escape what no terminal and no table should get."
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

# %% [markdown]
# A spreadsheet runs a cell that starts with `=`, `+`, `-` or `@`. An apostrophe before it makes it text.

# %%
#| export
def cell(
    text,   # an id or the name of a file
):          # the same, for a table; what is no text stays
    "Write a text so that neither a terminal nor a spreadsheet runs it."
    if not isinstance(text, str):
        return text
    text = shown(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text

assert [cell(t) for t in ("=1+1", "10008", "a\nb", None)] == ["'=1+1", "10008", "a\\nb", None]

# %%
#| export
TEXTS = ("patient_id", "study", "series", "image_id", "file", "error", "note")  # columns whose text comes from files

def safe_cells(
    table,          # pandas.DataFrame, changed in place
):                  # the same
    "Write the texts of a table by `cell`."
    for column in [c for c in table if c in TEXTS or str(c).endswith("_slice")]:
        table[column] = [cell(value) for value in table[column]]
    return table

# %% [markdown]
# A page in a browser can be made to run something, too. So foreign text in it is escaped, and the policy in its head
# forbids scripts and every request. It therefore shows the same offline.

# %%
#| export
STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: auto; padding: 0 1rem }
.wide { overflow-x: auto; margin: 1rem 0 } .wide img { max-width: 100%; height: auto }
pre { white-space: pre-wrap; overflow-wrap: anywhere }
table { border-collapse: collapse; font-size: .875rem; white-space: nowrap }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top } tbody th { text-align: left }
td.number { text-align: right } td.text { white-space: normal; min-width: 16rem }
.notice { background: #fff4d6; padding: .5rem 1rem } nav a { margin-right: 1rem } summary { padding: .5rem 0 }
@media (max-width: 600px) { .wide img { max-width: none; width: 44rem } nav a { display: block; padding: .3rem 0 }
tbody th { white-space: normal; overflow-wrap: break-word; max-width: 8rem } }"""

def page(
    title: str,       # text
    notice: str,      # text on top
    links: str,       # HTML of the navigation
    main: str,        # HTML of the content, in which foreign text is escaped
    style: str = "",  # CSS besides STYLE
    scripts: Sequence[str] = (),  # JavaScript, at the end of the page; no other script can run
) -> str:             # HTML
    "A page that needs no network and fits a phone."
    digests = " ".join(f"'sha256-{b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    allowed = f"; script-src {digests}" if scripts else ""
    last = "".join(f"<script>{s}</script>" for s in scripts)
    return f"""<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta http-equiv="Content-Security-Policy"
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'{allowed}"><style>{STYLE}{style}</style></head>
<body><p class="notice">{escape(notice)}</p>
<nav aria-label="Sections">{links}</nav><main>{main}</main>{last}</body></html>"""

# %%
assert "&lt;script&gt;" in page("<script>", "", "", "") and "default-src 'none'" in page("a", "b", "", "")

# %% [markdown]
# ## Text of others
# A byte order mark names the encoding of a table. Without one, the bytes are UTF-8, or they are Windows-1252, which
# Western spreadsheets write. UTF-16 without a mark has a zero byte in every character of a header.

# %%
#| export
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))

def decode_text(
    data: bytes,  # of a table
) -> str:
    "Decode UTF-8, UTF-16 or Windows-1252."
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data[:2]:
        encoding = "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")

# %%
assert {decode_text("é,b".encode(e)) for e in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252")} == {"é,b"}

# %% [markdown]
# ## The end of a run
# A run is told to end by SIGTERM, or by SIGHUP when its terminal is closed. Both become an exception, so that files are
# closed and processes are ended in order.

# %%
#| export
@contextmanager
def ending():
    "Turn SIGTERM and SIGHUP into SystemExit while a block runs."
    def leave(number, frame):
        raise SystemExit(128 + number)
    before = {}
    if threading.current_thread() is threading.main_thread():  # Python handles signals in the main thread only
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

# %% [markdown]
# The example is a process of its own, since Python handles signals in the main thread only, and a notebook may run in
# another one.

# %%
import subprocess
import sys

code = "import signal; from mammo_nb.core.errors import ending\nwith ending(): signal.raise_signal(signal.SIGTERM)"
assert subprocess.run([sys.executable, "-c", code]).returncode == 128 + signal.SIGTERM

# %% [markdown]
# ---
# [← Chapter 1: files, settings, runs](10_runs_and_settings.py) · [Files →](12_files.py)

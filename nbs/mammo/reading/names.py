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
# # Names
# > Names of files as PACS exports, Macs and zip programs write them, as ids and as names of pictures.
#
# An export names a file after its UID without an ending, or with bytes that are no UTF-8. No such name may stop a run,
# and no two files may write to the same picture.

# %%
#| default_exp mammo.reading.names

# %%
#| export
from collections import Counter
from pathlib import Path, PurePosixPath

from mammo_nb.core.files import short_hash, walk

# %%
#| export
REMOVED = (".dcm", ".dicom", ".png", ".jpg", ".jpeg")  # endings that are no part of an id; `.2` of a UID is one
LONGEST = 120   # bytes of a picture's name; file systems allow 255

def stem_of(
    name: str,  # name or path of a file
) -> str:       # such as '1.2.840.7' of 'a/1.2.840.7' and of '1.2.840.7.dcm'
    "Give the name of a file without its folder and without a known ending."
    last = PurePosixPath(name).name
    ending = next((e for e in REMOVED if last.lower().endswith(e) and len(last) > len(e)), "")
    return last[:len(last) - len(ending)]

def shown(
    text: str,  # perhaps with control characters, or with bytes that are no text
) -> str:       # the same in one line of valid text
    "Escape what no terminal and no table should get."
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

def picture_names(
    files: list[str],  # paths below a folder, with /
) -> list[str]:        # a name for each, all different also where case does not count
    "Name pictures after files: `p/1.dcm` becomes `p@1`; a long or repeated name ends with a digest."
    plain = []
    for file in files:
        folder = PurePosixPath(file).parent.as_posix()
        whole = shown("/".join(filter(None, [folder.strip("."), stem_of(file)]))).replace("/", "@").replace("\\", "_")
        plain.append(whole)
    count = Counter(name.lower() for name in plain)
    names = []
    for file, name in zip(files, plain):
        if count[name.lower()] > 1 or len(name.encode()) > LONGEST:
            name = f"{name.encode()[:LONGEST - 20].decode(errors='ignore')}~{short_hash(shown(file))}"
        names.append(name)
    return names

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

# %% [markdown]
# Packed files are not read. They are named, so that nobody takes a folder for complete.

# %%
#| export
PACKED = (".gz", ".zip", ".tar", ".tgz", ".7z", ".bz2")

def packed_files(
    folder: Path,
) -> str:          # a line to print; "" if there are none
    "Name the packed files of a folder."
    if not Path(folder).is_dir():
        return ""
    found = sorted(p.relative_to(folder).as_posix() for p in walk(folder) if p.suffix.lower() in PACKED)
    some = ", ".join(map(shown, found[:3])) + (", ..." if len(found) > 3 else "")
    return f"{len(found)} packed files left out, unpack them first: {some}" if found else ""

# %% [markdown]
# ## What came out

# %%
files = ["p/1.dcm", "p@1.dcm", "a", "a.dcm", "A.DCM", "1.2.840.7.1", "1.2.840.7.2", "b\udce7.dcm",
         "x" * 250, "line\nbreak.dcm", "PA20\\ST29\\IM1.dcm"]
names = picture_names(files)
assert len({n.lower() for n in names}) == len(files) and max(map(len, names)) <= LONGEST
assert names[5:7] == ["1.2.840.7.1", "1.2.840.7.2"] and all(n.isprintable() and "/" not in n for n in names)
assert stem_of("a/1.2.840.7") == stem_of("1.2.840.7.dcm") == "1.2.840.7"
dict(zip(map(shown, files), names))

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

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
from pathlib import Path

from mammo_nb.core.errors import shown
from mammo_nb.core.files import walk

# %%
#| hide
from mammo_nb.core.pictures import LONGEST, picture_names, stem_of

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

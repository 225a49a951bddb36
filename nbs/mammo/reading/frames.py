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
# # Frames
# > Which frames of a tomosynthesis or of another file with several frames are read.
#
# A tomosynthesis holds about sixty slices of a breast, one millimetre apart. The networks were trained on pictures of
# the whole breast, so no slice is predicted unless somebody asks for it: the middle one, all, or one by its number.
# Only the wanted frame is read and decoded, whatever the size of the file.

# %%
#| default_exp mammo.reading.frames

# %%
#| export
from mammo_nb.core.errors import ProjectError
from mammo_nb.core.headers import Header

# %%
#| hide
from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian

# %% [markdown]
# ## The choice
# Viewers and reports count frames from 1, and so does the option. A file with one frame has no choice.

# %%
#| export
class FramesError(ProjectError):
    "A choice of frames that is none."

def check_frames(
    choice: str,  # middle, all or a number from 1; "": none
) -> str:
    "Check a choice of frames. Raises FramesError."
    choice = str(choice).strip().lower()
    if choice not in ("", "middle", "all") and not (choice.isdecimal() and int(choice)):
        raise FramesError(f"--frames is middle, all or a number from 1, not {choice!r}.")
    return choice

def frame_indices(
    count: int,   # frames of a file
    choice: str,  # from `check_frames`
) -> list[int | None]:  # from 0; None: a frame must be named; a number may be beyond the last frame
    "The frames that are read."
    if count == 1:
        return [0]
    if choice.isdecimal():
        return [int(choice) - 1]
    return {"": [None], "middle": [(count - 1) // 2], "all": list(range(count))}[choice]

assert [frame_indices(12, c) for c in ("", "middle", "3")] == [[None], [5], [2]] and frame_indices(1, "7") == [0]

# %% [markdown]
# ## Names and notes
# The id of a picture is the id of its file and the number of its frame.

# %%
#| export
def frame_id(
    image_id: str,
    count: int,         # frames of the file
    index: int | None,  # of the frame, from 0
) -> str:
    "The id of one frame."
    return image_id if count == 1 or index is None else f"{image_id}_{index + 1}"

def frame_note(
    header: Header,
    index: int,     # from 0
) -> str:           # "" for the only frame
    "Say which frame of a file was read."
    return f"frame {index + 1} of {header.frames}" if header.frames > 1 else ""

def several(
    header: Header,  # of a file with several frames
) -> str:
    "Say what the commands can do with a file of several frames."
    return f"{header.frames} frames, choose with --frames middle, all or a number"

# %% [markdown]
# ## What came out

# %%
header = Header(Path("bto.dcm"), ExplicitVRLittleEndian, "", 4, 4, 12, 16, 12, 11, False, 1, "MONOCHROME2", "1.2")
assert frame_id("1.2", 12, 5) == "1.2_6" and frame_id("1.2", 1, 0) == "1.2" and not frame_note(
    Header(**{**vars(header), "frames": 1}), 0)
try:
    check_frames("first")
except FramesError as e:
    print(e)
else:
    raise AssertionError("no frame is the first by name")
several(header), frame_note(header, 5)

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

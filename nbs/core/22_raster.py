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
# # Raster
# > Grey pictures in PNG and JPEG, read as exactly as DICOM and with the same errors.
#
# Half of the published data sets are no longer DICOM files, but PNG or JPEG. Such a file has no tags, only numbers of 8
# or 16 bits, which are taken as they are. `core/dicom` passes files named `.png`, `.jpg` or `.jpeg` to this notebook.

# %%
#| default_exp core.raster

# %% tags=["parameters"]
rows, columns = 120, 90   # size of the pictures made below, pixels

# %%
#| export
import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydicom.uid import UID

from mammo_nb.core.headers import BadHeader, CorruptPixels, Header, NotDicom, typed_errors

# %%
#| hide
import tempfile

import cv2
import matplotlib.pyplot as plt

from mammo_nb.core.headers import DicomError

# %%
#| export
PICTURES = (".png", ".jpg", ".jpeg")  # endings, in any case
REMEDY = "Fetch the file again; if it stays so, leave it out."

def is_picture(
    path: Path,
) -> bool:
    "Whether a file is a PNG or JPEG: by its ending, unless it is a DICOM file under such a name."
    if path.suffix.lower() not in PICTURES:
        return False
    with open(path, "rb") as f:
        return f.read(132)[128:] != b"DICM"

# %% [markdown]
# ## Header
# The fields of a DICOM header, as far as a picture has them. `syntax` is empty; later stages recognise a picture by
# this. It has no windows; the caller decides how it becomes grey levels.

# %%
#| export
# mode of Pillow -> bits of a grey value
MODES = {"L": 8, "LA": 8, "P": 8, "1": 8, "RGB": 8, "RGBA": 8, "I;16": 16, "I;16B": 16}

def _opened(data: bytes, path: Path) -> Image.Image:
    "Parse a picture without decoding it; raises NotDicom, BadHeader."
    with typed_errors(NotDicom, path, "the picture does not parse", "", REMEDY):
        try:
            picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        except UnidentifiedImageError:
            raise NotDicom(path, "neither PNG nor JPEG", "", REMEDY) from None  # Pillow's message has an address in it
    if picture.mode not in MODES:
        raise BadHeader(path, f"a {picture.format} of kind {picture.mode}", "",
                        "Convert it to grey of 8 or 16 bits first.")
    return picture

def picture_header(
    path: Path,
    data: bytes | None = None,  # of the file, if it has been read
    kind: type = Header,        # Header or a class derived from it
) -> Header:
    "Size and bits of a picture; the fields of all other tags are empty."
    picture = _opened(path.read_bytes() if data is None else data, path)
    bits = MODES[picture.mode]
    return kind(path=path, syntax=UID(""), syntax_name=picture.format, rows=picture.height, columns=picture.width,
                frames=1, bits_allocated=bits, bits_stored=bits, high_bit=bits - 1, signed=False, samples=1,
                photometric="MONOCHROME2", image_id=path.stem)

# %% [markdown]
# ## Pixels
# Grey is often stored as colour with three equal channels; such a picture is grey. Three different channels are a
# colour picture. It is refused, because turning it into grey would be a guess about the meaning of its colours.

# %%
#| export
def decode_picture(
    data: bytes,     # of the file
    path: Path,
) -> np.ndarray:     # (rows, columns) uint8 or uint16, as stored
    "Grey values of a picture; BadHeader when it is coloured or transparent."
    picture = _opened(data, path)
    with typed_errors(CorruptPixels, path, "the picture does not decode", "", REMEDY):
        if picture.mode in ("P", "1"):
            picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
        values = np.asarray(picture)
    if values.ndim == 2:
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    grey, others = values[..., 0], values[..., 1:]
    if values.shape[2] in (2, 4):  # the last channel is opacity
        if (others[..., -1] < 255).any():
            raise BadHeader(path, "a picture that is transparent in places", "", "Convert it to grey first.")
        others = others[..., :-1]
    if (others != grey[..., None]).any():
        raise BadHeader(path, "a colour picture", "", "Convert it to grey first.")
    return np.ascontiguousarray(grey)

def is_whole(
    data: bytes,  # of the file
) -> bool:
    "Whether a PNG or JPEG has its end mark."
    if data.startswith(b"\x89PNG"):
        return b"IEND" in data[-16:]
    return data.rstrip(b"\0").endswith(b"\xff\xd9")

# %%
folder = Path(tempfile.mkdtemp())
ramp = np.add.outer(np.arange(rows) * 400, np.arange(columns) * 100).astype(np.uint16)
eight = (ramp >> 8).astype(np.uint8)
made = {"sixteen.png": ramp, "eight.png": eight, "three equal.png": np.dstack([eight] * 3), "eight.jpg": eight}
for name, pixels in made.items():
    cv2.imwrite(str(folder / name), pixels)
read = {p.name: decode_picture(p.read_bytes(), p) for p in sorted(folder.iterdir())}
assert (read["sixteen.png"] == ramp).all()
assert (read["eight.png"] == eight).all() and (read["three equal.png"] == eight).all()
assert np.abs(read["eight.jpg"].astype(int) - eight).max() <= 6  # JPEG is lossy
fig, axes = plt.subplots(1, 4, figsize=(8, 2.6))
for ax, (name, pixels) in zip(axes, read.items()):
    ax.imshow(pixels, cmap="gray")
    ax.set_title(f"{name}, {picture_header(folder / name).bits_stored} bits", fontsize=8)
    ax.axis("off")

# %% [markdown]
# Errors of pictures that cannot be read:

# %%
(folder / "cut.png").write_bytes((folder / "sixteen.png").read_bytes()[:-60])
(folder / "text.jpg").write_text("no picture")
cv2.imwrite(str(folder / "colour.png"), np.dstack([eight, eight // 2, eight]))
for name in ("cut.png", "text.jpg", "colour.png"):
    data = (folder / name).read_bytes()
    try:
        decode_picture(data, folder / name)
    except DicomError as e:
        print(f"{type(e).__name__:14} {e}")
    else:
        raise AssertionError(name)
assert [is_whole((folder / n).read_bytes()) for n in ("cut.png", "sixteen.png", "eight.jpg")] == [False, True, True]

# %% [markdown]
# ---
# [← Headers](21_headers.py) · [Codestreams →](23_codestreams.py)

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
# # Pictures
# > Grey pictures in PNG and JPEG, read as exactly as DICOM; pictures resized, written and shown side by side.
#
# Half of the published data sets are no longer DICOM files, but PNG or JPEG. Such a file has no tags, only numbers of 8
# or 16 bits, which are taken as they are. `core/dicom` passes files named `.png`, `.jpg` or `.jpeg` to this notebook.
# Every stage that handles pictures also resizes, writes or shows some, so each of these functions exists once.

# %%
#| default_exp core.pictures

# %% tags=["parameters"]
rows, columns = 120, 90   # size of the pictures made below, pixels
size = (100, 40)          # height, width of the fitted example, pixels

# %%
#| export
import hashlib
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from pydicom.uid import UID

from mammo_nb.core.errors import shown
from mammo_nb.core.files import open_file, replacing, short_hash
from mammo_nb.core.headers import BadHeader, CorruptPixels, Header, NotDicom, typed_errors

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import pandas as pd

from mammo_nb.core.headers import DicomError

# %% [markdown]
# ## Which files are pictures

# %%
#| export
PICTURES = (".png", ".jpg", ".jpeg")  # endings, in any case
REMEDY = "Fetch the file again; if it stays so, leave it out."
MAX_FILE = 2**30  # bytes of a picture

def is_picture(
    path: Path,
) -> bool:
    "Whether a file is a PNG or JPEG: by its ending, unless it is a DICOM file under such a name."
    if path.suffix.lower() not in PICTURES:
        return False
    with open_file(path) as f:
        return f.read(132)[128:] != b"DICM"

# %% [markdown]
# ## Names of pictures
# A picture that is drawn of a file or a series is named after it. No two may have the same name, and none may be longer
# than a file system takes. A picture of an earlier run is removed, since its name may now belong to another patient.

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

def keep_pictures(
    folder: Path,      # of previews; need not exist
    names: list[str],  # without their ending
):
    "Remove the pictures of a folder that have other names."
    for path in set(Path(folder).glob("*.png")) - {Path(folder) / f"{name}.png" for name in names}:
        path.unlink()

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

def picture_bytes(
    path: Path,
) -> bytes:     # of the whole file
    "Read a picture. A file that does not begin as one, or is too large for one, is not read. Raises NotDicom, OSError."
    with open_file(path) as f:
        if not f.read(8).startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8")):
            raise NotDicom(path, "neither PNG nor JPEG", "", REMEDY)
        size = f.seek(0, io.SEEK_END)
        if size > MAX_FILE:
            raise NotDicom(path, f"{size / 1e9:.1f} GB, which no picture has", "", "Leave it out.")
        f.seek(0)
        return f.read()

def picture_header(
    path: Path,
    data: bytes | None = None,  # of the file, if it has been read
    kind: type = Header,        # Header or a class derived from it
) -> Header:
    "Size and bits of a picture; the fields of all other tags are empty."
    picture = _opened(picture_bytes(path) if data is None else data, path)
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

def equal_channels(
    values: np.ndarray,    # (rows, columns, 3)
    path: Path,
    tolerance: int = 0,    # levels by which a lossy compression may part equal channels
) -> np.ndarray:           # (rows, columns), the first channel
    "The grey picture in three equal channels; BadHeader for colours, because their meaning would be a guess."
    apart = int((values.max(-1).astype(np.int64) - values.min(-1)).max())
    if apart > tolerance:
        raise BadHeader(path, f"a colour picture: its channels differ by up to {apart}", "",
                        "Convert it to grey first.")
    return np.ascontiguousarray(values[..., 0])

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
# ## Resizing
# A picture is halved, by the mean of four pixels, as long as it is at least twice too large; the rest is bilinear. This
# is fast, and every pixel counts. The half sizes that JPEG 2000 stores can be resized further in the same way.

# %%
#| export
def shrink(
    pixels: np.ndarray,  # (rows, columns) uint8, uint16, int16 or floats
    rows: int,           # of the result, pixels
    columns: int,        # of the result, pixels
) -> np.ndarray:         # same dtype; enlarged if `rows` and `columns` are larger
    "Resize to (rows, columns): halve by means of four pixels, then interpolate."
    while pixels.shape[0] >= 2 * rows and pixels.shape[1] >= 2 * columns:
        even = pixels[:pixels.shape[0] // 2 * 2, :pixels.shape[1] // 2 * 2]
        pixels = cv2.resize(even, (even.shape[1] // 2, even.shape[0] // 2), interpolation=cv2.INTER_AREA)
    if pixels.shape == (rows, columns):
        return pixels
    return cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_LINEAR)

# %%
checks = np.indices((64, 48)).sum(0).astype(np.uint16) % 2 * 1000
assert (shrink(checks, 16, 12) == 500).all()  # by picking pixels it would be black or white

# %%
#| export
def place_of_fit(
    shape: tuple[int, int],  # rows, columns of a picture
    height: int,             # that it is fitted into, pixels
    width: int,              # the same
    plain: bool = False,     # as for `fit_resize`
) -> tuple[int, int, int, int]:  # top, left, bottom, right, pixels; half-open
    "Where a picture lies in its fitted copy."
    ratio = min(height / shape[0], width / shape[1])
    whole = int if plain else round
    h, w = (max(1, whole(side * ratio)) for side in shape)
    top, left = (height - h) // 2, (width - w) // 2
    return top, left, top + h, left + w

def fit_resize(
    grey: np.ndarray,     # uint8 (rows, columns)
    height: int,          # of the result, pixels
    width: int,           # of the result, pixels
    plain: bool = False,  # sides truncated and one bilinear step, as in published code; False: rounded, and `shrink`
) -> np.ndarray:          # uint8 (height, width)
    "Resize to fit, keep the proportions, pad with black on both sides."
    top, left, bottom, right = place_of_fit(grey.shape, height, width, plain)
    h, w = bottom - top, right - left
    small = cv2.resize(grey, (w, h), interpolation=cv2.INTER_LINEAR) if plain else shrink(grey, h, w)
    bottom, right = height - bottom, width - right
    return cv2.copyMakeBorder(small, top, bottom, left, right, cv2.BORDER_CONSTANT, value=0)

# %%
picture = np.add.outer(np.arange(50) * 3, np.arange(60) * 2).astype(np.uint8)
assert fit_resize(np.full((50, 60), 9, np.uint8), 100, 40).sum(0).tolist() == [33 * 9] * 40
fig, axes = plt.subplots(1, 2, figsize=(4, 2.6))
for ax, p in zip(axes, (picture, fit_resize(picture, *size))):
    ax.imshow(p, cmap="gray", vmin=0, vmax=255)
    ax.set_title(p.shape)
    ax.axis("off")

# %% [markdown]
# Published code often truncates the sides and takes one bilinear step, however small the result is: `plain`. Beyond a
# factor of 2, some pixels then do not count at all, and `h * (2048 / h)` may give 2047. Of 200 sizes of crops, 148 give
# another side than with rounding.
#
# The two ways are compared with the mean over the area of each pixel, the result that counts all pixels alike. Two real
# mammograms were made 2.2 to 17 times smaller: by halving the mean distance is 0.7 to 3.4 levels, plainly it is 0.8 to
# 3.6, and larger at each size. At a factor of 1.5 the two are equal. Here is the same for a picture of fine grain:

# %%
grain = np.random.default_rng(0).integers(0, 256, (960, 480), dtype=np.uint8)
errors = []
for factor in (1.5, 2.5, 3, 4, 5):
    h, w = int(960 / factor), int(480 / factor)
    exact = cv2.resize(grain, (w, h), interpolation=cv2.INTER_AREA).astype(int)
    errors.append({"factor": factor} | {
        name: np.abs(fit_resize(grain, h, w, plain).astype(int) - exact).mean()
        for name, plain in (("halved, then bilinear", False), ("plain", True))
    })
errors = pd.DataFrame(errors).set_index("factor")
halved, plainly = errors.to_numpy()[1:].T
assert (halved < plainly).all()
assert fit_resize(np.zeros((5524, 1663), np.uint8) + np.uint8(9), 2048, 1024, plain=True).any(1).sum() == 2047
errors.round(1)

# %% [markdown]
# ## Writing
# A PNG gets its name only when it is complete, and its digest is known without reading it again. Run-length coding
# after a difference filter is faster than zlib's own search and gives smaller files on X-ray images.
# `tests/bench/png.py` compares other encoders.

# %%
#| export
NOT_A_DEVICE = "not a medical device"  # stands on every picture and beside every prediction

PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1,
       cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE,
       cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB]

def write_png(
    path: Path,          # the file
    picture: np.ndarray, # uint8 (rows, columns) or (rows, columns, 3) in BGR
) -> str:                # sha256 of the file
    "Encode and write a PNG; an interrupted call leaves no file."
    data = cv2.imencode(".png", picture, PNG)[1].tobytes()
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return hashlib.sha256(data).hexdigest()

# %%
path = Path(tempfile.mkdtemp()) / "picture.png"
assert write_png(path, picture) == hashlib.sha256(path.read_bytes()).hexdigest()
assert (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) == picture).all()

# %% [markdown]
# ## Showing many
# A contact sheet, with a box on each picture where there are boxes.

# %%
#| export
def sheet(
    pictures: list,            # (rows, columns) each; uint8 as it is, others from their lowest to their highest value
    boxes: list | None = None, # x0, y0, x1, y1 of each, pixels
    columns: int = 12,         # pictures in a row
    title: str = "",
):                             # a matplotlib figure
    "Pictures side by side."
    import matplotlib.pyplot as plt  # slow to import, and needed here only
    rows = -(-len(pictures) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(12, 1.35 * rows + 0.2), facecolor="slategrey", squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for i, (ax, p) in enumerate(zip(axes.flat, pictures)):
        limits = {"vmin": 0, "vmax": 255} if p.dtype == np.uint8 else {}
        ax.imshow(p, cmap="gray", **limits)
        if boxes:
            x0, y0, x1, y1 = boxes[i]
            ax.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="orange", lw=0.8))
    fig.suptitle(title, fontsize=10)
    fig.tight_layout(pad=0.2)
    return fig

# %%
sheet([picture, fit_resize(picture, *size)] * 6, [(5, 5, 25, 25)] * 12, title="a box on each");

# %% [markdown]
# Few pictures, each with its own title and an outline where there is one. Their table says what they are.

# %%
#| export
def show_pictures(
    rows,                  # table of pandas, one row a picture
    load: Callable,        # row -> uint8 (height, width), or (height, width, 3)
    title: Callable,       # row -> title of the picture
    columns: int = 8,      # pictures side by side
    mask: Callable | None = None,  # row -> uint8 (height, width), outlined where it is white; or None
):
    "Show pictures in a grid."
    import matplotlib.pyplot as plt  # slow to import, and needed here only
    shape = -(-len(rows) // columns), columns
    figure, axes = plt.subplots(*shape, figsize=(12, 3.8 * shape[0]), squeeze=False)
    for axis, row in zip(axes.flat, rows.itertuples()):
        axis.imshow(load(row), cmap="gray", vmin=0, vmax=255)
        axis.set_title(title(row), fontsize=9)
        outline = None if mask is None else mask(row)
        if outline is not None and outline.any():
            axis.contour(outline, levels=[127], colors="orange", linewidths=1)
    for axis in axes.flat:
        axis.axis("off")
    figure.tight_layout()

# %%
show_pictures(pd.DataFrame({"name": ["a square"]}), lambda row: picture, lambda row: row.name,
              mask=lambda row: np.pad(np.full((20, 20), 255, np.uint8), ((50, rows - 70), (30, columns - 50))))

# %% [markdown]
# ## Diagrams
# Boxes and arrows, for text that is easier to draw than to tell. A box has its place and its words.

# %%
#| export
def diagram(
    boxes: dict,        # name -> (x, y, text): centre of the box, x to the right and y downwards, in boxes
    arrows: list,       # (name, name), or (name, name, words beside the arrow)
    size: tuple = (2.2, 1.0),  # width and height of a step from box to box, inches
):                      # a matplotlib figure
    "Draw boxes with text and arrows between them."
    import matplotlib.pyplot as plt  # slow to import, and needed here only
    places = np.array([place[:2] for place in boxes.values()], float)
    low, high = places.min(0) - 0.6, places.max(0) + 0.6
    figure, axis = plt.subplots(figsize=tuple((high - low) * size))
    drawn = {name: axis.text(x, y, text, ha="center", va="center", fontsize=9,
                             bbox={"boxstyle": "round,pad=0.5", "facecolor": "#e8eef5", "edgecolor": "#46719c"})
             for name, (x, y, text) in boxes.items()}
    for start, end, *words in arrows:
        (x0, y0, _), (x1, y1, _) = boxes[start], boxes[end]
        axis.annotate("", (x1, y1), (x0, y0), arrowprops={
            "arrowstyle": "-|>", "color": "#46719c", "patchA": drawn[start].get_bbox_patch(),
            "patchB": drawn[end].get_bbox_patch(), "shrinkA": 1, "shrinkB": 1})
        axis.text((x0 + x1) / 2, (y0 + y1) / 2, " ".join(words), fontsize=8, ha="center", va="bottom")
    axis.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]))
    axis.axis("off")
    figure.tight_layout(pad=0.2)
    plt.close(figure)
    return figure

# %%
diagram({"file": (0, 0, "frame"), "crop": (1.2, 0, "breast"), "p": (2.4, 0, "probability")},
        [("file", "crop", "detector"), ("crop", "p", "network")])

# %% [markdown]
# ---
# [← Headers](21_headers.py) · [Codestreams →](23_codestreams.py)

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
# # DICOM
# > The stored values of a grey image, whatever its compression, or a typed error.
#
# An image comes in any of a dozen compressions, and of fifty thousand files a few are cut short. All later steps rely
# on two things. The numbers are exactly those that the detector stored, and a file that cannot be read raises an error
# with its name instead of returning a wrong picture.

# %%
#| default_exp core.dicom

# %% tags=["parameters"]
rows, columns = 256, 192  # size of the image made below, in pixels
bits = 12                 # bits stored of 16 allocated
seed = 0                  # of its noise

# %%
#| export
import errno
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.uid import (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian,
                         ImplicitVRLittleEndian)

from mammo_nb.core.codestreams import LOSSY, stored_values, value_notes
from mammo_nb.core.decoders import Refused, decode, decoders_for, most_halvings
from mammo_nb.core.files import open_file, walk
from mammo_nb.core.headers import (BadHeader, CorruptPixels, DicomError, Header, MissingTag, MultiFrame, NotDicom,
                                   UnsupportedSyntax, tag_name, typed_errors)
from mammo_nb.core.parsing import UNDEFINED, Exact, frame_header, opened, pixel_length
from mammo_nb.core.pictures import PICTURES, decode_picture, equal_channels, is_picture, picture_bytes, picture_header

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (UID, DigitalXRayImageStorageForPresentation, JPEG2000Lossless, JPEGLSLossless, RLELossless,
                         generate_uid)

# %% [markdown]
# ## A file to read
# The notebook needs no data and makes its own: a half disc with a bright spot, stored in 12 of 16 bits with two
# windows.

# %%
def make_dicom(path, pixels, syntax=ExplicitVRLittleEndian, named_as=None, **tags):
    "A small X-ray image; `tags` override what is set here, and None removes it."
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    base = dict(SOPClassUID=DigitalXRayImageStorageForPresentation,
                SOPInstanceUID=generate_uid(entropy_srcs=[path.stem]), Modality="DX", PatientID="10006",
                SeriesInstanceUID="1.2.3.4", WindowCenter=[2048, 1800], WindowWidth=[4096, 1200],
                VOILUTFunction="SIGMOID", Rows=pixels.shape[-2], Columns=pixels.shape[-1], SamplesPerPixel=1,
                PhotometricInterpretation="MONOCHROME2", BitsAllocated=16, BitsStored=bits, HighBit=bits - 1,
                PixelRepresentation=0, PixelData=pixels.tobytes())
    for name, value in (base | tags).items():
        if value is not None:
            setattr(ds, name, value)
    ds["PixelData"].VR = "OW"
    if syntax.is_encapsulated:
        ds.compress(syntax, generate_instance_uid=False)
    ds.file_meta.TransferSyntaxUID = named_as or syntax
    ds.save_as(path, enforce_file_format=True)
    return path

# %%
y, x = np.mgrid[:rows, :columns]
disc = np.clip(1 - np.hypot((x - columns) / columns, (y - rows / 2) / rows * 2) ** 2, 0, 1)
spot = np.exp(-((x - columns * .6) ** 2 + (y - rows * .4) ** 2) / 40)
noise = np.random.default_rng(seed).normal(0, 30, (rows, columns))
stored = np.clip(disc ** .5 * 2400 + spot * 900 + noise * (disc > 0), 0, 2**bits - 1).astype(np.uint16)
folder = Path(tempfile.mkdtemp())
plain = make_dicom(folder / "plain.dcm", stored)

# %% [markdown]
# ## Header
# Reading a header leaves the pixels on the disk. `kind` is `Header`, or the class of a system that needs more tags.

# %%
#| export
def read_header(
    path: Path | str,     # DICOM file; a PNG or JPEG has a header without tags
    kind: type = Header,  # Header or a class derived from it
) -> Header:              # checked; of the first frame, when there are several
    "Read and check the header; the pixels are not read."
    path = Path(path)
    if is_picture(path):
        return picture_header(path, kind=kind)
    with opened(path, kind) as (ds, header, _):
        return frame_header(ds, header, 0)

# %%
header = read_header(plain)
assert (header.rows, header.columns, header.series) == (rows, columns, "1.2.3.4")
assert header.windows == ((2048, 4096), (1800, 1200))
pd.Series(vars(header), name=header.path.name).drop("path").astype(str).to_frame()

# %% [markdown]
# ## Pixels
# Reading and decoding are two steps, since the caller decides how much to decode. `read_frame` reads the bytes of one
# frame, also of a file of a gigabyte. A file that is cut short is noticed here: every read must return as many bytes as
# requested. A header with fewer rows or columns than the file is an error, too. A tail of zeros is padding, and so is a
# tail that is no whole number of rows or columns, because no wrong size explains it (PS3.5 section 8.1.1).

# %%
#| export
# transfer syntaxes without compression
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)

def _native_bytes(
    header: Header,
    f: Exact,      # at the first byte of the pixels
    length: int,    # of all frames, bytes
    frame: int,     # index from 0
) -> bytes:
    "The bytes of a frame that is not compressed; with one bit a pixel, those that contain it."
    if length == UNDEFINED:
        raise ValueError("compressed pixels under a transfer syntax without compression")
    bits = header.rows * header.columns * header.bits_allocated
    needed = -(-bits * header.frames // 8)
    if length < needed:
        raise ValueError(f"{length} bytes of pixels, {needed} needed")
    start = f.tell()
    if length > needed:
        f.seek(start + needed)
        excess = length - needed
        lines = header.columns * header.bits_allocated // 8, header.rows * header.bits_allocated // 8
        if any(f.read(excess)) and not all(excess % max(1, line) for line in lines):
            raise ValueError(f"{length} bytes of pixels, {needed} expected")
    first, last = frame * bits // 8, -(-(frame + 1) * bits // 8)
    f.seek(start + first)
    return f.read(last - first)

def _native_values(
    header: Header,
    data: bytes,     # from `_native_bytes`
    frame: int,      # index from 0
) -> np.ndarray:     # (rows, columns), as the file holds them
    "Numbers of a frame that is not compressed."
    shape = header.rows, header.columns
    if header.bits_allocated == 1:  # PS3.5 section 8.1.1: the first pixel is the lowest bit, frames are not aligned
        size = math.prod(shape)
        values = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        return values[frame * size % 8:][:size].reshape(shape)
    order = ">" if header.syntax == ExplicitVRBigEndian else "<"
    return np.frombuffer(data, f"{order}u{header.bits_allocated // 8}").reshape(shape)

# %% [markdown]
# A frame is decoded once it is known how large a picture is needed. Where the compression stores a smaller one that is
# large enough, that one is decoded.

# %%
#| export
@dataclass(frozen=True)
class Image:
    "Stored values with their header."
    header: Header
    pixels: np.ndarray  # (rows, columns), stored values: no rescale, window or inversion; uint8, uint16, int16, ...
    decoder: str        # library that decoded it, 'native' when not compressed
    scale: float = 1.0  # pixels a side per pixel of the frame: 1, 1/2 or 1/4, rounded up

@dataclass(frozen=True)
class Frame:
    "One frame as the file holds it, not yet decoded."
    header: Header
    index: int   # from 0
    data: bytes  # compressed, or as stored; of a PNG or JPEG the whole file

    def decode(self,
        scale: float = 1.0,  # pixels that are needed a side, per pixel of the frame; above 0
    ) -> Image:              # of that scale or, where the compression has none so small, a larger one
        "Stored values, in no higher resolution than is needed; raises CorruptPixels."
        header, path = self.header, self.header.path
        if not header.syntax:
            return Image(header, decode_picture(self.data, path), "pillow")
        if _is_colour(header):
            return _from_colour(header, self.index)
        with typed_errors(CorruptPixels, path, f"frame {self.index} does not decode", "PixelData",
                          "Fetch the file again; if it stays so, leave it out."):
            if header.syntax in NATIVE:
                values = _native_values(header, self.data, self.index)
                return _told(header, stored_values(values, header), "native")
            halvings = min(most_halvings(self.data, header), int(-math.log2(scale))) if scale <= 0.5 else 0
            try:
                return _told(header, *decode(self.data, header, halvings), 2.0**-halvings)
            except Refused:
                if not halvings:
                    raise
                return _told(header, *decode(self.data, header))

GREY = ("MONOCHROME1", "MONOCHROME2")

def _is_colour(header: Header) -> bool:
    "Whether a DICOM file says that it has colours."
    return header.samples != 1 or header.photometric not in GREY

def _from_colour(header: Header, index: int) -> Image:
    "The grey image in equal channels, or in a palette of greys (PS3.3 C.7.6.3.1.2); BadHeader for real colours."
    path, lossy = header.path, header.syntax in LOSSY or header.photometric.startswith("YBR")
    with typed_errors(CorruptPixels, path, f"the colours of frame {index} do not decode", "PixelData",
                      "Convert it to grey first."):
        ds = pydicom.dcmread(path)
        values = pydicom.pixels.pixel_array(ds, index=index)
        if header.photometric == "PALETTE COLOR":
            if "RedPaletteColorLookupTableDescriptor" not in ds:
                raise BadHeader(path, "PALETTE COLOR is not grey, and the palette is absent",
                                tag_name("PhotometricInterpretation"), "Export the file again.")
            values = pydicom.pixels.apply_color_lut(values, ds)
    grey = equal_channels(values[..., :3], path, 3 if lossy else 0)
    bits = 8 * grey.itemsize
    note = f"{header.photometric} with equal channels; read as grey"
    return Image(replace(header, samples=1, photometric="MONOCHROME2", bits_allocated=bits, bits_stored=bits,
                         high_bit=bits - 1, signed=False, slope=None, intercept=None, modality_lut=None, voi_luts=(),
                         padding=None, windows=((128.0, 256.0),) if bits == 8 else (), voi_function="LINEAR",
                         notes=(*header.notes, note)), grey, "pydicom")

def _told(header: Header, pixels: np.ndarray, decoder: str, scale: float = 1.0) -> Image:
    "An image whose header has a note where its values contradict it."
    notes = header.notes + value_notes(pixels, header)
    return Image(replace(header, notes=notes) if notes != header.notes else header, pixels, decoder, scale)

def _check_frame(
    header: Header,
    frame: int | None,  # the requested index, from 0; None: the only one
):
    "Raise a typed error for a frame that is not grey, has no decoder, or does not exist."
    path = header.path
    if header.samples != 1 and header.modality == "CT":  # a screen capture or a map, and no slice
        raise BadHeader(path, f"{header.samples} samples per pixel: a colour image", tag_name("SamplesPerPixel"),
                        "Convert it to grey first.")
    colours = ("PALETTE COLOR",) if header.samples == 1 else ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
    if header.photometric not in (*colours, *(GREY if header.samples == 1 else ())):
        raise BadHeader(path, f"{header.photometric} with {header.samples} samples per pixel is not grey",
                        tag_name("PhotometricInterpretation" if header.samples == 1 else "SamplesPerPixel"),
                        "Convert it to grey first.")
    if header.syntax and header.syntax not in NATIVE and not decoders_for(header.syntax):
        raise UnsupportedSyntax(path, f"no decoder for {header.syntax_name} is installed",
                                tag_name("TransferSyntaxUID"), "Convert it first, for example with dcmtk's dcmdjpeg.")
    if frame is None and header.frames > 1:
        raise MultiFrame(path, f"{header.frames} frames", tag_name("NumberOfFrames"),
                         "The commands for mammograms take --frames middle, all or a number, those for CT read all "
                         f"frames. In Python: read_image(path, frame=0) to frame={header.frames - 1}.")
    if not 0 <= (frame or 0) < header.frames:
        raise MultiFrame(path, f"no frame {frame + 1} among {header.frames}", tag_name("NumberOfFrames"),
                         f"Choose 1 to {header.frames}; in Python frame=0 to frame={header.frames - 1}.")

def _located(
    ds,              # elements before the pixels
    header: Header,
    f: BinaryIO,     # at the pixels; afterwards at the first byte of their value
) -> tuple[Header, int, bytes]:  # with notes; length and VR of the pixels
    "Find the pixels, and settle what the transfer syntax says otherwise than the bytes do."
    length, vr = pixel_length(ds, f, header.path)
    notes, needed = list(header.notes), -(-header.rows * header.columns * header.bits_allocated * header.samples
                                          * header.frames // 8)
    if header.syntax not in NATIVE and length in (needed, needed + needed % 2):
        notes.append(f"the pixels are not compressed, the transfer syntax is {header.syntax_name}")
        header = replace(header, syntax=ExplicitVRLittleEndian if vr else ImplicitVRLittleEndian)
    elif header.syntax in NATIVE and bool(vr) == (header.syntax == ImplicitVRLittleEndian):
        notes.append(f"the encoding is {'explicit' if vr else 'implicit'}, the transfer syntax is {header.syntax_name}")
    if header.syntax in NATIVE and needed + needed % 2 < length < UNDEFINED:
        notes.append(f"{length - needed} bytes after the pixels; left out")
    return replace(header, notes=tuple(notes)), length, vr

def _frame_bytes(
    ds,              # elements before the pixels
    header: Header,
    f: BinaryIO,     # at the first byte of the pixels
    length: int,     # of the pixels, bytes, or UNDEFINED
    vr: bytes,       # of the pixels
    frame: int,      # index from 0
) -> bytes:
    "The bytes of one frame; CorruptPixels when the file ends early."
    with typed_errors(CorruptPixels, header.path, "the pixel data ends early or does not parse", "PixelData",
                      "Fetch the file again."):
        if header.syntax not in NATIVE:
            offsets = ds.get("ExtendedOffsetTable"), ds.get("ExtendedOffsetTableLengths")
            return get_frame(Exact(f), frame, number_of_frames=header.frames,
                             extended_offsets=offsets if all(offsets) else None)
        data = _native_bytes(header, Exact(f), length, frame)
        if header.syntax == ExplicitVRBigEndian and header.bits_allocated == 8 and vr == b"OW":
            return np.frombuffer(data, ">u2").astype("<u2").tobytes()  # pairs of bytes are words, swapped
        return data

def read_frame(
    path: Path | str,          # DICOM, PNG or JPEG file
    frame: int | None = None,  # index from 0; required when there are several
    kind: type = Header,       # Header or a class derived from it
) -> Frame:
    "Read the header and the bytes of one frame; the file is opened once and parsed once."
    path = Path(path)
    if is_picture(path):
        data = picture_bytes(path)
        header = picture_header(path, data, kind)
        _check_frame(header, frame)
        return Frame(header, 0, data)
    with opened(path, kind) as (ds, header, f):
        header, length, vr = _located(ds, header, f)
        _check_frame(header, frame)
        index = frame or 0
        if _is_colour(header):
            return Frame(frame_header(ds, header, index), index, b"")  # pydicom reads the file when it is decoded
        return Frame(frame_header(ds, header, index), index, _frame_bytes(ds, header, f, length, vr, index))

def read_frames(
    path: Path | str,      # DICOM file
    kind: type = Header,   # Header or a class derived from it
) -> Iterator[Frame]:      # in the order of the file
    "Read every frame of a file with its own header; the file is parsed once."
    with opened(Path(path), kind) as (ds, header, f):
        header, length, vr = _located(ds, header, f)
        _check_frame(header, 0)
        start = f.tell()
        for index in range(header.frames):
            f.seek(start)
            yield Frame(frame_header(ds, header, index), index, _frame_bytes(ds, header, f, length, vr, index))

def read_image(
    path: Path | str,          # DICOM file
    frame: int | None = None,  # index from 0; required when there are several
    scale: float = 1.0,        # pixels that are needed a side, per pixel of the frame
    kind: type = Header,       # Header or a class derived from it
) -> Image:
    "Read and decode one frame."
    return read_frame(path, frame, kind).decode(scale)

# %% [markdown]
# The same image in six lossless transfer syntaxes: other bytes on disk, the same stored values back, to the last bit.

# %%
report = []
for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless,
               JPEG2000Lossless, JPEGLSLossless):
    image = read_image(make_dicom(folder / f"{syntax.keyword}.dcm", stored, syntax))
    assert image.pixels.dtype == np.uint16 and np.array_equal(image.pixels, stored)
    report.append((image.header.syntax_name, image.header.path.stat().st_size, image.decoder))
pd.DataFrame(report, columns=["transfer syntax", "bytes", "decoder"])

# %%
fig, (ax, hist) = plt.subplots(1, 2, figsize=(7, 3.2))
ax.imshow(image.pixels, cmap="gray")
ax.set(title="stored values")
ax.axis("off")
hist.hist(image.pixels[image.pixels > 0], bins=100)
hist.set(xlabel="stored value", yticks=[], title=f"{bits} bits")
fig.tight_layout()

# %% [markdown]
# Half the size is enough for a scale of 0.4. A compression without smaller pictures returns the whole one.

# %%
for name, expected in (("JPEG2000Lossless", 0.5), ("JPEGLSLossless", 1.0)):
    smaller = read_frame(folder / f"{name}.dcm").decode(scale=0.4)
    print(f"{name}: {smaller.pixels.shape} by {smaller.decoder}")
    assert smaller.scale == expected

# %% [markdown]
# ## Many files
# A DICOM file is recognised by its content, not by its name: `DICM` stands after 128 bytes. A file that is named `.dcm`
# and is none becomes an error later; a spreadsheet beside the scans does not. PNG and JPEG files are scans only in a
# folder without DICOM files, since beside scans they are masks, drawings or previews. What cannot be opened, such as a
# locked folder or a link that leads nowhere, may be a scan. It is listed, and becomes an error when it is read.

# %%
#| export
ENDINGS = (".dcm", ".dicom")

def folder_of(path: Path | str) -> Path:
    "What the names of files are relative to: the path itself, or the folder of a single file."
    return Path(path).parent if Path(path).is_file() else Path(path)

def kind_of(path: Path) -> str:
    "What a file is taken for: scan, picture, other, or lost, for one that nobody can look into."
    ending = path.suffix.lower()
    if path.name.startswith("._") or path.name.upper() == "DICOMDIR":  # of macOS, and of a medium
        return "other"
    named = "scan" if ending in ENDINGS else "picture" if ending in PICTURES else ""
    try:
        with open_file(path) as f:
            return "scan" if f.read(132)[128:] == b"DICM" else named or "other"
    except OSError as e:
        return named or ("other" if e.errno == errno.EINVAL else "lost")

def find_files(
    folder: Path | str,  # searched to any depth, or a single file
    besides: Path | str | None = None,  # a folder in it whose pictures are no scans: that of the output
) -> tuple[list[str], int]:  # paths relative to `folder_of`, with /, sorted; and how many other files were left out
    "All DICOM files of a folder; where there are none, its PNG and JPEG files. A single file is taken as it is."
    folder, found, pictures, lost, others = Path(folder), [], [], [], 0
    if folder.is_file():
        return [folder.name], 0
    if not folder.is_dir():
        raise NotDicom(folder, "no such file or folder", "", "Name a folder with DICOM, PNG or JPEG images, or a file.")
    hidden = Path(besides).resolve() if besides else None
    for path in sorted(walk(folder)):
        kind = kind_of(path)
        if kind == "picture" and hidden and hidden in path.resolve().parents:
            kind = "other"
        if kind == "other":
            others += 1
        else:
            {"scan": found, "picture": pictures, "lost": lost}[kind].append(path.relative_to(folder).as_posix())
    if not found and not pictures and not lost:
        raise NotDicom(folder, f"no DICOM, PNG or JPEG file in it ({others} other files)", "", "Name another folder.")
    return (sorted(found + lost), others + len(pictures)) if found else (sorted(pictures + lost), others)

# %%
(folder / "list.csv").write_text("a,b")
found, others = find_files(folder)
assert others == 1 and "plain.dcm" in found
assert find_files(folder / "plain.dcm") == (["plain.dcm"], 0) and folder_of(folder / "plain.dcm") == folder
found

# %% [markdown]
# ## Errors
# A page of text, a file cut in half, one without rows, one with a frame of a thousand megapixels, one in a retired
# compression, and one of several frames: each error has its class, its tag and a remedy.

# %%
image_bytes = (folder / "JPEG2000Lossless.dcm").read_bytes()
cut = folder / "cut.dcm"
cut.write_bytes(image_bytes[:len(image_bytes) // 2])
note = folder / "note.dcm"
note.write_text("not an image")
bad = {
    NotDicom: note,
    CorruptPixels: cut,
    MissingTag: make_dicom(folder / "norows.dcm", stored, Rows=None),
    BadHeader: make_dicom(folder / "huge.dcm", stored, Rows=32_000, Columns=32_000),
    UnsupportedSyntax: make_dicom(folder / "retired.dcm", stored, RLELossless,
                                  named_as=UID("1.2.840.10008.1.2.4.55")),
    MultiFrame: make_dicom(folder / "stack.dcm", np.stack([stored, stored]), NumberOfFrames=2),
}
for kind, path in bad.items():
    try:
        read_image(path)
    except DicomError as e:
        print(f"{type(e).__name__:18} {e}")
        assert type(e) is kind, (kind, e)
    else:
        raise AssertionError(f"{path.name} was read")

# %% [markdown]
# One frame of the stack is an ordinary image again, and `read_frames` reads all of them:

# %%
second = read_image(folder / "stack.dcm", frame=1)
assert np.array_equal(second.pixels, stored)
assert [frame.index for frame in read_frames(folder / "stack.dcm")] == [0, 1]
second.header.frames, second.pixels.shape

# %% [markdown]
# ---
# [← Parsing](25_parsing.py) · [Windows →](27_windows.py)

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
# # DICOM
# > One way to read the stored values of a grey image, whatever the compression: right, or with an error that says why
# > not.
#
# A mammogram comes in any of a dozen compressions, and a study of fifty thousand files holds a few that are cut short.
# Everything later trusts two things from here: the numbers are exactly those that the detector stored, and a file that
# cannot be read says so by name instead of giving a wrong picture.

# %%
#| default_exp core.dicom

# %% tags=["parameters"]
rows, columns = 256, 192  # size of the image made below, in pixels
bits = 12                 # bits stored of 16 allocated
seed = 0                  # of its noise

# %%
#| export
import io
import math
import struct
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from mammo_nb.core.decoders import Refused, decode, decoders_for, most_halvings, stored_values
from mammo_nb.core.headers import (BadHeader, CorruptPixels, DicomError, Header, MissingTag, MultiFrame, NotDicom,
                                   UnsupportedSyntax, header_of, tag_name, typed_errors)
from mammo_nb.core.raster import PICTURES, decode_picture, is_picture, picture_header

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (DigitalMammographyXRayImageStorageForPresentation, JPEG2000Lossless, JPEGLSLossless,
                         RLELossless, generate_uid)

# %% [markdown]
# ## A file to read
# So that the notebook needs no data, it makes some: a half disc with a bright spot, stored in 12 of 16 bits with two
# windows, the way a digital mammogram is.

# %%
def make_dicom(path, pixels, syntax=ExplicitVRLittleEndian, named_as=None, **tags):
    "A small mammogram-like file; `tags` override or (None) remove what is set here."
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    base = dict(SOPClassUID=DigitalMammographyXRayImageStorageForPresentation,
                SOPInstanceUID=generate_uid(entropy_srcs=[path.stem]), Modality="MG", PatientID="10006",
                ImageLaterality="R", ViewPosition="MLO", PresentationIntentType="FOR PRESENTATION", PatientOrientation=[
                    "P", "FL"
                ], WindowCenter=[2048, 1800], WindowWidth=[4096, 1200], VOILUTFunction="SIGMOID", Rows=pixels.shape[-2],
                Columns=pixels.shape[-1], SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=16,
                BitsStored=bits, HighBit=bits - 1, PixelRepresentation=0, PixelData=pixels.tobytes())
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
breast = np.clip(1 - np.hypot((x - columns) / columns, (y - rows / 2) / rows * 2) ** 2, 0, 1)
spot = np.exp(-((x - columns * .6) ** 2 + (y - rows * .4) ** 2) / 40)
noise = np.random.default_rng(seed).normal(0, 30, (rows, columns))
stored = np.clip(breast ** .5 * 2400 + spot * 900 + noise * (breast > 0), 0, 2**bits - 1).astype(np.uint16)
folder = Path(tempfile.mkdtemp())
plain = make_dicom(folder / "plain.dcm", stored)

# %% [markdown]
# ## Parsing
# A file is parsed once, up to its pixels and no further. With the DICM mark it is believed; without it pydicom is made
# to try, and believed only if pixels follow: it will read any text as *something*. A deflated file is inflated by hand,
# since a megabyte of it can hold a gigabyte of zeros.

# %%
#| export
MAX_INFLATED = 2**28  # bytes

PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # whole numbers and floats

def _inflated(
    f: BinaryIO,  # behind the file meta information
) -> io.BytesIO:  # the data elements
    "Inflate a deflated file (PS3.5 A.5), but not without end."
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflate.decompress(f.read(), MAX_INFLATED)
    if inflate.unconsumed_tail:
        raise ValueError(f"it inflates to more than {MAX_INFLATED >> 20} MiB")
    return io.BytesIO(data)

def _parse(
    path: Path,   # the file
    f: BinaryIO,  # the same, open
# elements before the pixels; what then stands at the pixels: `f`, or its inflated content
) -> tuple[pydicom.Dataset, BinaryIO]:
    "Parse a file once; file_meta.TransferSyntaxUID is set."
    marked = f.read(132)[128:] == b"DICM"
    f.seek(132 if marked else 0)
    with typed_errors(BadHeader if marked else NotDicom, path, "the data elements do not parse", "",
                      "Fetch the file again; if it stays so, leave it out."):
        meta = read_dataset(f, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            f = _inflated(f)
            ds = read_dataset(f, False, True, stop_when=lambda tag, vr, length: tag in PIXELS)
            ds.file_meta = meta
            ds.set_original_encoding(False, True)
        else:
            f.seek(0)
            # what is large and not the pixels, an overlay or a vendor's raw data, is passed over
            ds = pydicom.dcmread(f, stop_before_pixels=True, defer_size=2**20, force=True)
        if not marked and not ("Rows" in ds and "Columns" in ds):
            raise NotDicom(path, "no DICM mark and no image", "", "Check that it is a DICOM image.")
        if not ds.file_meta.get("TransferSyntaxUID"):
            ds.file_meta.TransferSyntaxUID = _guess_syntax(ds, f, path)
    return ds, f

# %% [markdown]
# Where the pixels begin, a few bytes say how long they are: a number, or "until the end mark" when they are compressed.
# A missing transfer syntax can be told from the bytes, except for compressed pixels.

# %%
#| export
UNDEFINED = 0xFFFFFFFF  # length of compressed pixels, PS3.5 A.4

def _pixel_length(
    ds: pydicom.Dataset,  # the elements before
    f: BinaryIO,          # at the element; behind its length afterwards
    path: Path,           # the file
) -> tuple[int, bytes]:  # bytes, or UNDEFINED; and the VR
    "Read tag, length and VR of Pixel Data (7FE0,0010), PS3.5 section 7.1."
    implicit, little = ds.original_encoding
    order, head = "<" if little else ">", f.read(8)
    if head[:4] != struct.pack(f"{order}HH", 0x7FE0, 0x0010):
        raise MissingTag(path, "no pixels", tag_name("PixelData"), "Only images can be read.")
    if head[4:6] in (b"OB", b"OW", b"UN"):
        head += f.read(4)  # whatever the syntax says: pydicom, too, believes the bytes
    elif not implicit:
        raise BadHeader(path, f"pixels of VR {head[4:6]!r}", tag_name("PixelData"), "Export the file again.")
    return struct.unpack(f"{order}L", head[-4:])[0], head[4:6]

def _guess_syntax(
    ds: pydicom.Dataset,  # without TransferSyntaxUID
    f: BinaryIO,          # at the pixels, and there again afterwards
    path: Path,           # the file
) -> UID:
    "The transfer syntax of pixels that are not compressed."
    at = f.tell()
    length, _ = _pixel_length(ds, f, path)
    f.seek(at)
    if length == UNDEFINED:
        raise MissingTag(path, "compressed pixels without the name of the compression", tag_name("TransferSyntaxUID"),
                         "Export the file again.")
    implicit, little = ds.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian

@contextmanager
def _opened(
    path: Path,  # DICOM file
):               # yields (dataset before the pixels, its checked header, what stands at the pixels)
    "Open and parse."
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as e:
        raise DicomError(path, f"the file cannot be opened: {e.strerror}", "",
                         "Check its permissions and the disk.") from e
    with file:
        ds, f = _parse(path, file)
        yield ds, header_of(ds, path), f

def read_header(
    path: Path | str,  # DICOM file; a PNG or JPEG gives what it has of a header
) -> Header:           # checked
    "Read and check the header; the pixels are not read."
    path = Path(path)
    if is_picture(path):
        return picture_header(path)
    with _opened(path) as (_, header, _):
        return header

# %%
header = read_header(plain)
assert (header.rows, header.columns, header.laterality, header.view) == (rows, columns, "R", "MLO")
assert header.windows == ((2048, 4096), (1800, 1200))
pd.Series(vars(header), name=header.path.name).drop("path").astype(str).to_frame()

# %% [markdown]
# ## Pixels
# Reading and decoding are two steps, since how much to decode is known only by whoever uses the picture. `read_frame`
# reads the bytes of one frame, of a tomosynthesis of a gigabyte no more than that. A file that is cut short is noticed
# here: every read must give what was asked for. So is a header that speaks of fewer pixels than there are; a tail of
# zeros is padding.

# %%
#| export
# not compressed
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)

class _Exact:
    "A file of which a short read is an error, told before memory is asked for."
    def __init__(self, f: BinaryIO):
        self.f, self.seek, self.tell = f, f.seek, f.tell
        here, self.size = f.tell(), f.seek(0, io.SEEK_END)
        f.seek(here)

    def read(self, n: int) -> bytes:
        if n > self.size - self.tell():
            raise EOFError("the file ends early")
        return self.f.read(n)

def _native_bytes(
    header: Header,
    f: _Exact,      # at the first byte of the pixels
    length: int,    # of all frames, bytes
    frame: int,     # index from 0
) -> bytes:
    "The bytes of a frame that is not compressed; with one bit a pixel, those that hold it."
    if length == UNDEFINED:
        raise ValueError("compressed pixels under a transfer syntax without compression")
    bits = header.rows * header.columns * header.bits_allocated
    needed = -(-bits * header.frames // 8)
    if length < needed:
        raise ValueError(f"{length} bytes of pixels, {needed} needed")
    start = f.tell()
    if length > needed:
        f.seek(start + needed)
        if any(f.read(length - needed)):
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
        return np.unpackbits(np.frombuffer(data, np.uint8),
                             bitorder="little")[frame * math.prod(shape) % 8:][:math.prod(shape)].reshape(shape)
    return np.frombuffer(
        data, f"{'>' if header.syntax == ExplicitVRBigEndian else '<'}u{header.bits_allocated // 8}").reshape(shape)

# %% [markdown]
# A frame is decoded when somebody says how large a picture is needed. Where the compression keeps a smaller one and
# that will do, it is taken.

# %%
#| export
@dataclass(frozen=True)
class Image:
    "Stored values and what the header says of them."
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
    ) -> Image:              # of that scale or, where the compression keeps none so small, a larger one
        "Stored values, in no higher resolution than is needed."
        header, path = self.header, self.header.path
        if not header.syntax:
            return Image(header, decode_picture(self.data, path), "pillow")
        with typed_errors(CorruptPixels, path, f"frame {self.index} does not decode", "PixelData",
                          "Fetch the file again; if it stays so, leave it out."):
            if header.syntax in NATIVE:
                return Image(header, stored_values(_native_values(header, self.data, self.index), header), "native")
            halvings = min(most_halvings(self.data, header), int(-math.log2(scale))) if scale <= 0.5 else 0
            try:
                return Image(header, *decode(self.data, header, halvings), 2.0**-halvings)
            except Refused:
                if not halvings:
                    raise
                return Image(header, *decode(self.data, header))

def _check_frame(
    header: Header,
    frame: int | None,  # asked for
):
    "Refuse what is no grey frame, or has no decoder."
    path = header.path
    if header.samples != 1:
        raise BadHeader(path, f"{header.samples} samples per pixel: a colour image", tag_name("SamplesPerPixel"),
                        "Convert it to grey first.")
    if header.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise BadHeader(path, f"{header.photometric} is not grey", tag_name("PhotometricInterpretation"),
                        "Convert it to grey first.")
    if header.syntax and header.syntax not in NATIVE and not decoders_for(header.syntax):
        raise UnsupportedSyntax(path, f"no decoder for {header.syntax_name} is installed",
                                tag_name("TransferSyntaxUID"), "Convert it first, for example with dcmtk's dcmdjpeg.")
    if frame is None and header.frames > 1:
        raise MultiFrame(path, f"{header.frames} frames", tag_name("NumberOfFrames"),
                         f"Ask for one, frame=0 to frame={header.frames - 1}.")
    if not 0 <= (frame or 0) < header.frames:
        raise MultiFrame(path, f"no frame {frame} among {header.frames}", tag_name("NumberOfFrames"),
                         f"Ask for 0 to {header.frames - 1}.")

def read_frame(
    path: Path | str,          # DICOM, PNG or JPEG file
    frame: int | None = None,  # index from 0; must be given when there are several
) -> Frame:
    "Read the header and the bytes of one frame: the file is opened once and parsed once."
    path = Path(path)
    if is_picture(path):
        data = path.read_bytes()
        header = picture_header(path, data)
        _check_frame(header, frame)
        return Frame(header, 0, data)
    with _opened(path) as (ds, header, f):
        length, vr = _pixel_length(ds, f, path)
        _check_frame(header, frame)
        with typed_errors(CorruptPixels, path, "the pixel data ends early or does not parse", "PixelData",
                          "Fetch the file again."):
            if header.syntax in NATIVE:
                data = _native_bytes(header, _Exact(f), length, frame or 0)
                # pairs of bytes are words, turned round
                if header.syntax == ExplicitVRBigEndian and header.bits_allocated == 8 and vr == b"OW":
                    data = np.frombuffer(data, ">u2").astype("<u2").tobytes()
            else:
                offsets = ds.get("ExtendedOffsetTable"), ds.get("ExtendedOffsetTableLengths")
                data = get_frame(_Exact(f), frame or 0, number_of_frames=header.frames,
                                 extended_offsets=offsets if all(offsets) else None)
    return Frame(header, frame or 0, data)

def read_image(
    path: Path | str,          # DICOM file
    frame: int | None = None,  # index from 0; must be given when there are several
    scale: float = 1.0,        # pixels that are needed a side, per pixel of the frame
) -> Image:
    "Read and decode one frame."
    return read_frame(path, frame).decode(scale)

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
ax.set(title=f"{image.header.laterality} {image.header.view}, stored values")
ax.axis("off")
hist.hist(image.pixels[image.pixels > 0], bins=100)
hist.set(xlabel="stored value", yticks=[], title=f"{bits} bits")
fig.tight_layout()

# %% [markdown]
# Half the scale is enough for a consumer who asks for .4; a compression without smaller pictures gives the whole one.

# %%
for name, expected in (("JPEG2000Lossless", 0.5), ("JPEGLSLossless", 1.0)):
    smaller = read_frame(folder / f"{name}.dcm").decode(scale=0.4)
    print(f"{name}: {smaller.pixels.shape} by {smaller.decoder}")
    assert smaller.scale == expected

# %% [markdown]
# ## Many files
# DICOM is told by its content, not by its name: `DICM` stands after 128 bytes. A file that is called `.dcm` and is none
# is an error later; a spreadsheet beside the scans is not. PNG and JPEG files are scans only where there is no DICOM
# file at all: beside scans they are masks, drawings or previews.

# %%
#| export
ENDINGS = (".dcm", ".dicom")

def find_files(
    folder: Path | str,  # looked through to any depth
    besides: Path | str | None = None,  # a folder in it whose pictures are no scans: that of the output
) -> tuple[list[str], int]:  # paths relative to it, with /, sorted; and how many other files were left out
    "All DICOM files of a folder; where there are none, its PNG and JPEG files."
    folder = Path(folder)
    if not folder.is_dir():
        raise NotDicom(folder, "not a folder", "", "Name a folder with DICOM files.")
    found, pictures, others = [], [], 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "DICOMDIR"):
        with open(path, "rb") as f:
            mark = f.read(132)[128:]
        if mark == b"DICM" or path.suffix.lower() in ENDINGS:
            found.append(path.relative_to(folder).as_posix())
        elif path.suffix.lower() in PICTURES and not (besides and Path(besides).resolve() in path.resolve().parents):
            pictures.append(path.relative_to(folder).as_posix())
        else:
            others += 1
    if not found and not pictures:
        raise NotDicom(folder, f"no DICOM file in it, and no PNG or JPEG ({others} other files)", "",
                       "Name a folder with mammograms.")
    return (found, others + len(pictures)) if found else (pictures, others)

# %%
(folder / "list.csv").write_text("a,b")
found, others = find_files(folder)
assert others == 1 and "plain.dcm" in found
found

# %% [markdown]
# ## What bad files get
# A page of text, a file cut in half, one without rows, one that claims a frame of a thousand megapixels, a colour
# image, and a stack of frames: each has its class, its tag and a remedy.

# %%
image_bytes = (folder / "JPEG2000Lossless.dcm").read_bytes()
cut = folder / "cut.dcm"
cut.write_bytes(image_bytes[:len(image_bytes) // 2])
note = folder / "note.dcm"
note.write_text("not an image")
bad = {
    NotDicom: note, CorruptPixels: cut, MissingTag: make_dicom(folder / "norows.dcm", stored, Rows=None),
    BadHeader: make_dicom(folder / "huge.dcm", stored, Rows=32_000, Columns=32_000), UnsupportedSyntax: make_dicom(
        folder / "retired.dcm", stored, RLELossless, named_as=UID("1.2.840.10008.1.2.4.55")), MultiFrame: make_dicom(
            folder / "stack.dcm", np.stack([stored, stored]), NumberOfFrames=2)
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
# One frame of the stack is an ordinary image again:

# %%
second = read_image(folder / "stack.dcm", frame=1)
assert np.array_equal(second.pixels, stored)
second.header.frames, second.pixels.shape

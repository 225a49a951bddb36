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
# # Parsing
# > From the bytes of a DICOM file to its elements, up to the pixels.
#
# pydicom parses the elements. This notebook adds what careless files need: a file without the DICM mark, without a
# transfer syntax, or with a compressed body that would fill the memory. It also makes the header of each frame of a
# multi-frame file.

# %%
#| default_exp core.parsing

# %%
#| export
import io
import struct
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.filereader import read_dataset, read_partial
from pydicom.uid import (UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian,
                         ImplicitVRLittleEndian)

from mammo_nb.core.files import open_file
from mammo_nb.core.headers import (BadHeader, DicomError, Header, MissingTag, NotDicom, header_of, number_of,
                                   seconds_of, tag_name, text_of, typed_errors, vector_of, windows_of)

# %%
#| hide
import tempfile

from pydicom.dataset import Dataset

# %% [markdown]
# ## Parsing
# A file is parsed once, up to its pixels and no further. Without the DICM mark pydicom is forced to try, and its result
# counts only if it describes an image, because pydicom reads any text as some elements. A deflated file is inflated
# here, with a limit, since a megabyte of it can hold a gigabyte of zeros.
#
# Three gigabytes of zeros parse as 400 million empty elements. So a header has limits, in bytes and in reads. A read
# and what pydicom does with it take about four microseconds, so the second limit is one of time: four seconds. The
# header of a file of 2,000 frames has about a hundred thousand elements. Zeros in place of the first elements are
# refused at once.

# %%
#| export
MAX_INFLATED = 2**28  # bytes
MAX_HEADER = 2**25    # bytes that are read before the pixels; large elements are skipped and do not count
MAX_READS = 1_000_000 # calls
MAX_ELEMENTS = 50_000 # outside of sequences

class Bounded:
    "A file of whose header only so much is read. Raises ValueError."
    def __init__(self, f: BinaryIO):
        self.f, self.seek, self.tell = f, f.seek, f.tell
        self.name = getattr(f, "name", None)
        self.bytes = self.reads = 0

    def read(self, n: int = -1) -> bytes:
        data = self.f.read(min(n, MAX_HEADER + 1) if n >= 0 else MAX_HEADER + 1)
        self.bytes += len(data)
        self.reads += 1
        if self.bytes > MAX_HEADER or self.reads > MAX_READS:
            raise ValueError(f"more than {MAX_HEADER >> 20} MiB or {MAX_READS:,} reads before the pixels")
        return data

def _at_pixels():  # function of tag, VR and length, for pydicom: whether an element is the pixels
    "Stop at the pixels. Raises ValueError after too many elements."
    count = 0

    def stop(tag, vr, length) -> bool:
        nonlocal count
        count += 1
        if count > MAX_ELEMENTS:
            raise ValueError(f"more than {MAX_ELEMENTS:,} elements before the pixels")
        return tag in PIXELS
    return stop

PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # whole numbers and floats

def _inflated(
    f: BinaryIO,  # behind the file meta information
) -> io.BytesIO:  # the data elements
    "Inflate a deflated file (PS3.5 A.5), up to a limit."
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflate.decompress(f.read(), MAX_INFLATED)
    if inflate.unconsumed_tail:
        raise ValueError(f"it inflates to more than {MAX_INFLATED >> 20} MiB")
    return io.BytesIO(data)

def _parse(
    path: Path,   # the file
    f: BinaryIO,  # the same, open
) -> tuple[pydicom.Dataset, BinaryIO]:  # elements before the pixels; a file that is at the pixels: `f` or its content
    "Parse a file once; file_meta.TransferSyntaxUID is set."
    marked = f.read(132)[128:] == b"DICM"
    f.seek(132 if marked else 0)
    with typed_errors(BadHeader if marked else NotDicom, path, "the data elements do not parse", "",
                      "Fetch the file again; if it stays so, leave it out."):
        meta = read_dataset(Bounded(f), False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        at = f.tell()
        if f.read(16) == bytes(16):
            raise ValueError("zeros in place of elements")
        f.seek(at)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            f = _inflated(f)
            ds = read_dataset(Bounded(f), False, True, stop_when=_at_pixels())
            ds.file_meta = meta
            ds.set_original_encoding(False, True)
        else:
            f.seek(0)
            # large elements that are not the pixels, such as a vendor's raw data, are not read
            ds = read_partial(Bounded(f), _at_pixels(), defer_size=2**20, force=True)
        if not marked and not ("Rows" in ds and "Columns" in ds):
            raise NotDicom(path, "no DICM mark and no image", "", "Check that it is a DICOM image.")
        if not ds.file_meta.get("TransferSyntaxUID"):
            ds.file_meta.TransferSyntaxUID = _guess_syntax(ds, f, path)
    return ds, f

# %% [markdown]
# Where the pixels begin, a few bytes give their length: a number, or "undefined" when they are compressed. A missing
# transfer syntax can be inferred from the bytes, except for compressed pixels.

# %%
#| export
UNDEFINED = 0xFFFFFFFF  # length of compressed pixels, PS3.5 A.4

class Exact:
    "A file whose short reads raise EOFError before memory is allocated."
    def __init__(self, f: BinaryIO):
        self.f, self.seek, self.tell = f, f.seek, f.tell
        here = f.tell()
        self.size = f.seek(0, io.SEEK_END)
        f.seek(here)

    def read(self, n: int) -> bytes:
        if n > self.size - self.tell():
            raise EOFError("the file ends early")
        return self.f.read(n)

def pixel_length(
    ds: pydicom.Dataset,  # the elements before
    f: BinaryIO,          # at the element; afterwards at the first byte of its value
    path: Path,           # the file
) -> tuple[int, bytes]:  # bytes, or UNDEFINED; and the VR, empty where the encoding has none
    "Read tag, length and VR of Pixel Data (7FE0,0010), PS3.5 section 7.1."
    order = "<" if ds.original_encoding[1] else ">"
    head = f.read(8)
    if head[:4] != struct.pack(f"{order}HH", 0x7FE0, 0x0010):
        raise MissingTag(path, "no pixels", tag_name("PixelData"), "Only images can be read.")
    if head[4:6] in (b"OB", b"OW", b"UN"):
        head += f.read(4)  # as pydicom does: the bytes count, not the transfer syntax
        return struct.unpack(f"{order}L", head[-4:])[0], head[4:6]
    if head[4:6].isalpha() and head[4:6].isupper() and not ds.original_encoding[0]:
        raise BadHeader(path, f"pixels of VR {head[4:6]!r}", tag_name("PixelData"), "Export the file again.")
    return struct.unpack(f"{order}L", head[-4:])[0], b""

def _guess_syntax(
    ds: pydicom.Dataset,  # without TransferSyntaxUID
    f: BinaryIO,          # at the pixels, and there again afterwards
    path: Path,           # the file
) -> UID:
    "The transfer syntax of pixels that are not compressed."
    at = f.tell()
    length, _ = pixel_length(ds, f, path)
    f.seek(at)
    if length == UNDEFINED:
        raise MissingTag(path, "compressed pixels without the name of the compression", tag_name("TransferSyntaxUID"),
                         "Export the file again.")
    implicit, little = ds.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian

@contextmanager
def opened(
    path: Path,           # DICOM file
    kind: type = Header,  # Header or a class derived from it
):                        # yields (dataset before the pixels, its checked header, a file that is at the pixels)
    "Open and parse a file, and close it afterwards."
    try:
        file = open_file(path)
    except FileNotFoundError:
        raise
    except OSError as e:
        raise DicomError(path, f"it cannot be opened: {e.strerror}", "",
                         "Check its permissions and the disk.") from e
    with file:
        ds, f = _parse(path, file)
        yield ds, header_of(ds, path, kind), f

# %% [markdown]
# ## Tables and the shape of a pixel
# A header may hold look-up tables instead of a slope or a window. A table is a list of whole numbers, in bytes or
# words. The number of bits in its descriptor is often wrong, so it is compared with the entries. A table that cannot be
# understood is left out with a note.

# %%
#| export
@dataclass(frozen=True, eq=False)
class Lut:
    "A look-up table."
    first: int            # the value that its first entry stands for; its sign may be lost
    entries: np.ndarray   # uint8 or uint16 (n,)
    top: int              # the entry that is white, for a VOI table

    def __eq__(self, other):
        return isinstance(other, Lut) and (self.first, self.top) == (other.first, other.top) and np.array_equal(
            self.entries, other.entries)

def _lut(
    item: pydicom.Dataset,  # of a ModalityLUTSequence or VOILUTSequence
    order: str,             # "<" or ">"
) -> Lut:
    "LUTDescriptor (0028,3002) and LUTData (0028,3006), PS3.3 C.11.1.1.1 and C.11.2.1.1; raises for damaged ones."
    count, first, bits = (int(v) for v in item.LUTDescriptor)
    count, data = count & 0xFFFF or 65536, item.LUTData
    if not isinstance(data, bytes):  # numbers, or two entries of 8 bits in each of them
        data, order = np.atleast_1d(np.array(data, np.int64)).astype("<u2").tobytes(), "<"
    wide = len(data) >= 2 * count
    entries = np.frombuffer(data, f"{order}u2" if wide else np.uint8, count).astype(np.uint16 if wide else np.uint8)
    used = int(entries.max()).bit_length()
    bits = used if used > bits or used < bits - 1 else bits  # a table that leaves three quarters of its range black
    return Lut(first, entries, max(1, (1 << bits) - 1))

def _tables(
    ds: pydicom.Dataset,    # a header, or an item of its functional groups
    header: Header,
) -> dict:                  # modality_lut, voi_luts and notes, as far as there are any
    "The look-up tables of a header."
    order, notes, found = ">" if header.syntax == ExplicitVRBigEndian else "<", [], {}
    for field, keyword in (("modality_lut", "ModalityLUTSequence"), ("voi_luts", "VOILUTSequence")):
        luts = []
        for item in ds.get(keyword) or []:
            try:
                with typed_errors(BadHeader, header.path, "no table", keyword):
                    luts.append(_lut(item, order))
            except BadHeader:
                notes.append(f"a table of {tag_name(keyword)} cannot be understood; left out")
        if luts:
            found[field] = luts[0] if field == "modality_lut" else tuple(luts)
    return found | ({"notes": header.notes + tuple(notes)} if notes else {})

def _aspect(
    ds: pydicom.Dataset,  # a header
) -> float:               # height of a pixel by its width; 1 unless two positive numbers differ by more than 1 %
    "PixelAspectRatio (0028,0034), else PixelSpacing or ImagerPixelSpacing."
    pairs = (vector_of(ds, name, 2) for name in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"))
    down, across = next((pair for pair in pairs if pair), (1, 1))
    ratio = down / across if down > 0 and across > 0 else 1.0
    return ratio if 0.2 <= ratio <= 5 and abs(ratio - 1) > 0.01 else 1.0

# %%
table = Dataset()
table.LUTDescriptor, table.LUTData = [4, 10, 16], [0, 5, 9, 4095]
read = _lut(table, "<")
assert (read.first, read.entries.tolist(), read.top) == (10, [0, 5, 9, 4095], 4095)

# %% [markdown]
# ## Frames
# An enhanced CT or MR holds a whole series in one file. What differs from frame to frame stands in the per-frame
# functional groups, and what all frames have in common stands once in the shared ones. The order of the frames and
# their stack numbers mean nothing. Without functional groups the position in the header is that of the first frame
# only.

# %%
#| export
def frame_header(
    ds: pydicom.Dataset,  # parsed
    header: Header,       # of the file, from `header_of`
    index: int,           # of the frame, from 0
) -> Header:              # of this frame, with its tables
    "The header of one frame, from the functional groups (PS3.3 C.7.6.16)."
    header = replace(header, aspect=_aspect(ds), **_tables(ds, header))
    own = list(ds.get("PerFrameFunctionalGroupsSequence") or [])[index:index + 1]
    groups = own + list(ds.get("SharedFunctionalGroupsSequence") or [])[:1]
    if not groups:
        return header if header.frames == 1 else replace(header, position=None, location=None)
    with typed_errors(BadHeader, header.path, f"the functional groups of frame {index + 1} cannot be understood",
                      "PerFrameFunctionalGroupsSequence", "Export the file again."):
        items = {}
        for group in reversed(groups):  # the frame's own group comes last and overrides the shared one
            for element in group:
                if element.VR == "SQ" and element.value:
                    items[element.keyword] = element.value[0]
        item = lambda name: items.get(f"{name}Sequence", pydicom.Dataset())
        values, measures, content = item("PixelValueTransformation"), item("PixelMeasures"), item("FrameContent")
        window = item("FrameVOILUT")
        kinds = [i for name, i in items.items() if name.endswith("FrameTypeSequence")]
        found = {
            "position": vector_of(item("PlanePosition"), "ImagePositionPatient", 3),
            "orientation": vector_of(item("PlaneOrientation"), "ImageOrientationPatient", 6),
            "spacing": vector_of(measures, "PixelSpacing", 2), "thickness": number_of(measures, "SliceThickness"),
            "slope": number_of(values, "RescaleSlope"), "intercept": number_of(values, "RescaleIntercept"),
            "aspect": _aspect(measures) if "PixelSpacing" in measures else None,
            "acquisition_number": number_of(content, "FrameAcquisitionNumber", int),
            "acquisition_time": seconds_of(content),
            "image_type": tuple(str(v) for i in kinds for v in i.get("FrameType") or ()) or None
        }
        if (header.frames > 1 or not header.windows) and (windows := windows_of(window)):
            found |= {"windows": windows, "voi_function": text_of(window, "VOILUTFunction").upper() or "LINEAR"}
        found |= _tables(window, header)
        if header.frames > 1 and found["position"] is None:
            header = replace(header, position=None, location=None)
        return replace(header, **{name: value for name, value in found.items() if value is not None})

# %% [markdown]
# A file without the mark and without meta information, as old exports are, and a page of text:

# %%
folder = Path(tempfile.mkdtemp())
small = Dataset()
for name, value in dict(Rows=2, Columns=3, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=8,
                        BitsStored=8, HighBit=7, PixelRepresentation=0, PixelData=bytes(6)).items():
    setattr(small, name, value)
small.save_as(folder / "old", implicit_vr=True, little_endian=True)
with opened(folder / "old") as (ds, header, f):
    length, vr = pixel_length(ds, f, folder / "old")
assert (header.syntax, header.rows, length) == (ImplicitVRLittleEndian, 2, 6)
(folder / "note.txt").write_text("patient,laterality")
try:
    with opened(folder / "note.txt"):
        pass
except NotDicom as e:
    print(e)

# %% [markdown]
# ---
# [← Decoders](24_decoders.py) · [DICOM →](26_dicom.py)

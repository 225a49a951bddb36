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
# # Headers
# > The values that later steps need of a DICOM header, checked once, with one class of error for each kind of bad file.
#
# In fifty thousand files some tags are absent, repeated or wrong. This notebook turns a header into plain Python
# values. A file that cannot be used raises an error that names the file, the tag and the remedy.

# %%
#| default_exp core.headers

# %%
#| export
import logging
import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.uid import UID

from mammo_nb.core.errors import ProjectError

# %%
#| hide
import numpy as np
import pandas as pd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

# %% [markdown]
# ## Errors
# A row of an error table has to name three things: the file, the tag, and what to do. Each kind of failure is a class
# of its own, so that a batch can count the kinds.

# %%
#| export
class DicomError(ProjectError):
    "A file that cannot be used; `str()` gives file name, problem, tag and remedy."
    def __init__(self,
        path: Path,       # the file
        problem: str,     # what is wrong
        tag: str = "",    # tag concerned, 'Keyword gggg,eeee', '' when it is not one tag
        remedy: str = "", # what to do about it
    ):
        super().__init__(path, problem, tag, remedy)  # pickling passes these to the copy in another process
        self.path, self.problem, self.tag, self.remedy = Path(path), problem, tag, remedy

    def __str__(self):
        tag = f" ({self.tag})" if self.tag else ""
        remedy = f" {self.remedy}" if self.remedy else ""
        return f"{self.path.name}: {self.problem}{tag}.{remedy}"

class NotDicom(DicomError):
    "Not a DICOM file with pixels."
class NotImage(NotDicom):
    "A sound DICOM object of a class that holds no image: a report, a presentation state, a directory."
class MissingTag(DicomError):
    "A tag that the image cannot be read without is absent or empty."
class BadHeader(DicomError):
    "A tag holds a value that cannot be true."
class UnsupportedSyntax(DicomError):
    "No decoder for this compression is installed."
class CorruptPixels(DicomError):
    "The pixel data is cut short or damaged."
class MultiFrame(DicomError):
    "The file has several frames and the caller named none, or one that does not exist."

# %% [markdown]
# Parsers and codecs raise many different exceptions on damaged bytes. One context manager turns all of them into the
# class of the step that failed, and keeps the last line of the original message. A file that does not exist stays a
# `FileNotFoundError`.

# %%
#| export
def tag_name(
    keyword: str,  # 'Rows'
) -> str:          # 'Rows 0028,0010'
    "A tag by name and number."
    number = tag_for_keyword(keyword)
    return f"{keyword} {number >> 16:04X},{number & 0xFFFF:04X}"

@contextmanager
def typed_errors(
    error: type,       # the DicomError to raise
    path: Path,        # the file
    problem: str,      # what failed
    keyword: str = "", # tag concerned
    remedy: str = "",  # what to do
):
    """Turn any exception inside the block into one typed error. pydicom's warnings and log are muted, because they
    quote the patient's data."""
    log = logging.getLogger("pydicom")
    before = log.handlers, log.propagate
    try:
        # not the level, which would be computed anew for all loggers of the process, many times a file
        log.handlers, log.propagate = [logging.NullHandler()], False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DicomError, FileNotFoundError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as e:  # a panic in a codec written in Rust is not an Exception
        detail = (str(e).strip().splitlines() or [""])[-1].strip()[:200].rstrip(".: ")
        cause = f"{type(e).__name__} {detail}" if detail else type(e).__name__
        raise error(path, f"{problem}: {cause}", tag_name(keyword) if keyword else "", remedy) from e
    finally:
        log.handlers, log.propagate = before

# %%
try:
    with typed_errors(CorruptPixels, Path("10038.dcm"), "the frame does not decode", "PixelData",
                      "Fetch the file again."):
        np.frombuffer(b"odd", np.uint16)
except DicomError as e:
    print(type(e).__name__, "|", e)
    assert e.tag == "PixelData 7FE0,0010" and e.remedy

# %% [markdown]
# ## Header
# The header of any grey image: how the pixels are stored, to which study and series they belong, where they lie in the
# patient, and how stored values become physical ones. It holds no name and no date. A system that needs more tags
# derives a class, adds fields with defaults, and returns their values from `extension`; every function that reads a
# file takes this class as `kind`.

# %%
#| export
@dataclass(frozen=True)
class Header:
    "The tags of one image, or of one frame of a multi-frame file, as plain values; None where a number is absent."
    path: Path              # the file
    syntax: UID             # transfer syntax; empty for a PNG or JPEG
    syntax_name: str        # its name in PS3.6
    rows: int               # pixels
    columns: int            # pixels
    frames: int             # in the file; 1 for an ordinary image
    bits_allocated: int     # 1, 8, 16, 32 or 64
    bits_stored: int        # of those allocated
    high_bit: int           # HighBit, should be bits_stored - 1
    signed: bool            # PixelRepresentation = 1, two's complement
    samples: int            # per pixel, 1 for grey
    photometric: str        # 'MONOCHROME1' (low values white), 'MONOCHROME2', ...
    image_id: str           # SOPInstanceUID, else the file's name without its ending
    object_class: UID = UID("")  # SOPClassUID
    modality: str = ""      # 'MG', 'CT', ... or '': some competitions remove it
    patient_id: str = ""    # as stored
    study: str = ""         # StudyInstanceUID
    series: str = ""        # SeriesInstanceUID
    series_number: int | None = None
    instance_number: int | None = None
    acquisition_number: int | None = None
    acquisition_time: float | None = None   # seconds since midnight, for the order of acquisitions
    image_type: tuple[str, ...] = ()        # ('ORIGINAL', 'PRIMARY', 'AXIAL')
    kernel: str = ""                        # ConvolutionKernel of the reconstruction
    position: tuple[float, ...] | None = None     # x, y, z of the first pixel's centre, mm (LPS)
    orientation: tuple[float, ...] | None = None  # directions along a row and down a column, 6 cosines
    spacing: tuple[float, ...] | None = None      # between rows, between columns, mm
    thickness: float | None = None          # SliceThickness, mm
    step: float | None = None               # SpacingBetweenSlices, mm, as stored
    location: float | None = None           # SliceLocation, mm
    slope: float | None = None              # RescaleSlope
    intercept: float | None = None          # RescaleIntercept
    padding: tuple[int, int] | None = None  # lowest and highest stored value of pixels that are no image
    windows: tuple[tuple[float, float], ...] = ()  # (center, width); nan for what is no number
    voi_function: str = "LINEAR"            # 'LINEAR' (also when absent), 'LINEAR_EXACT', 'SIGMOID'
    modality_lut: object = None             # parsing.Lut of the ModalityLUTSequence
    voi_luts: tuple = ()                    # parsing.Lut, one for each item of the VOILUTSequence
    presentation: str = ""                  # PresentationLUTShape: 'IDENTITY', 'INVERSE' or ''
    aspect: float = 1.0                     # height of a pixel by its width
    notes: tuple[str, ...] = ()             # what was odd about the file, and how it was read
    burned_in: str = ""                     # BurnedInAnnotation: 'YES', 'NO' or ''

    @classmethod
    def extension(cls,
        ds: pydicom.Dataset,  # a parsed header
    ) -> dict:                # field -> value, for the fields that a derived class adds
        "Values of the fields of a derived class."
        return {}

# %% [markdown]
# Text tags are optional: the first value counts, and an absent tag is `''`. Numbers that the pixels depend on are
# required: each has a range, and a value outside it is a `BadHeader` that quotes it.

# %%
#| export
def text_of(
    ds: pydicom.Dataset,  # header, or an item of a sequence
    keyword: str,         # tag
) -> str:                 # first value, stripped; '' when absent
    "An optional text tag."
    value = ds.get(keyword)
    if isinstance(value, (pydicom.multival.MultiValue, list, tuple)):
        value = value[0] if len(value) else None
    return "" if value is None else str(value).strip(" \0")

def _integer(
    ds: pydicom.Dataset,  # header
    path: Path,           # file, for the error
    keyword: str,         # tag
    allowed,              # container of the values that can be true
    default: int | None = None,  # when absent; None: the tag is required
) -> int:
    "An integer tag, checked."
    with typed_errors(BadHeader, path, "the value is no integer", keyword, "Correct the tag or leave the file out."):
        value = ds.get(keyword)
        if value is None or value == "":
            if default is not None:
                return default
            raise MissingTag(path, "a required tag is absent", tag_name(keyword),
                             "Export the file again; it holds no complete image.")
        value = int(value)
    if value not in allowed:
        raise BadHeader(path, f"the value {value} cannot be true", tag_name(keyword),
                        "Correct the tag or leave the file out.")
    return value

# %% [markdown]
# Decimal tags come as one number, as several, as text, or with a decimal comma. A value that is no number becomes
# `nan`, so that only its *use* is an error. Windows may have three centres and one width; all pairs are kept.

# %%
#| export
def _number(
    value,  # a value as pydicom gives it, or text
) -> float: # nan for what is no number
    "One decimal number; '40,0' is 40."
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    try:
        return float(str(value).strip(" \0").replace(",", "."))
    except ValueError:
        return math.nan

def decimals_of(
    ds: pydicom.Dataset,  # header, or an item of a sequence
    keyword: str,         # tag
) -> list[float]:         # one per value, nan for what is no number, [] when absent or empty
    "Every value of a decimal tag."
    try:
        value = ds.get(keyword)
    except (TypeError, ValueError, OverflowError):  # pydicom converts on access, and this is no decimal string
        value = ds.get_item(keyword).value.decode("latin-1").strip(" \0").split("\\")
    if value is None or value == "":
        return []
    several = isinstance(value, (pydicom.multival.MultiValue, list, tuple))
    return [_number(v) for v in (value if several else [value])]

def vector_of(
    ds: pydicom.Dataset,  # header, or an item of a sequence
    keyword: str,         # tag
    length: int,          # numbers that it must have
) -> tuple[float, ...] | None:
    "A decimal tag of a fixed length; None when it is absent, of another length or not finite."
    values = decimals_of(ds, keyword)
    return tuple(values) if len(values) == length and all(map(math.isfinite, values)) else None

def number_of(
    ds: pydicom.Dataset,  # header, or an item of a sequence
    keyword: str,         # tag
    kind: type = float,   # float or int
):
    "The first value of an optional number; None when it is absent or no number."
    values = decimals_of(ds, keyword)
    return kind(values[0]) if values and math.isfinite(values[0]) else None

def windows_of(
    ds: pydicom.Dataset,  # header, or an item of a sequence
) -> tuple[tuple[float, float], ...]:  # (center, width) pairs in file order
    "WindowCenter (0028,1050) and WindowWidth (0028,1051), PS3.3 C.11.2.1.2; both may be multi-valued."
    pairs = zip_longest(decimals_of(ds, "WindowCenter"), decimals_of(ds, "WindowWidth"), fillvalue=math.nan)
    return tuple(pairs)

# %%
odd = Dataset()
assert windows_of(odd) == ()
odd.WindowCenter, odd.WindowWidth = [2653, 2713, 2569], 900
windows_of(odd)

# %% [markdown]
# Times of day order the acquisitions of a series. Padding is one value or a range of values.

# %%
#| export
def seconds_of(
    ds: pydicom.Dataset,  # header, or an item of a sequence
) -> float | None:        # seconds since midnight
    "AcquisitionDateTime (0008,002A) or that of the frame, AcquisitionTime (0008,0032), else ContentTime (0008,0033)."
    for keyword, start in (("AcquisitionDateTime", 8), ("FrameAcquisitionDateTime", 8), ("AcquisitionTime", 0),
                           ("ContentTime", 0)):
        digits = text_of(ds, keyword)[start:].replace(":", "")
        if digits[:6].isdecimal() and len(digits) >= 4:
            rest = _number(digits[4:].split("+")[0].split("-")[0] or 0)
            return int(digits[:2]) * 3600 + int(digits[2:4]) * 60 + (rest if math.isfinite(rest) else 0)
    return None

def _padding(
    ds: pydicom.Dataset,  # header
) -> tuple[int, int] | None:  # lowest, highest
    "PixelPaddingValue (0028,0120) to PixelPaddingRangeLimit (0028,0121), PS3.3 C.7.5.1.1.2."
    value = number_of(ds, "PixelPaddingValue", int)
    if value is None:
        return None
    limit = number_of(ds, "PixelPaddingRangeLimit", int)
    return (value, value) if limit is None else (min(value, limit), max(value, limit))

# %% [markdown]
# A header may also be wrong about the size of the image. The size is therefore checked before anything is allocated.

# %%
#| export
MAX_SIDE = 30_000  # pixels a side, far more than any detector has
MAX_BYTES = 2**30  # of one decoded frame, far less than the memory

def header_of(
    ds: pydicom.Dataset,  # parsed
    path: Path,           # the file
    kind: type = Header,  # Header or a class derived from it
) -> Header:
    "The checked header of a parsed file; raises NotImage, MissingTag, BadHeader."
    with typed_errors(BadHeader, path, "the header cannot be understood", "", "Correct the file or leave it out."):
        object_class = UID(text_of(ds, "SOPClassUID") or text_of(ds.file_meta, "MediaStorageSOPClassUID"))
        if "Rows" not in ds and object_class and "Image" not in object_class.name:
            named = ", ".join(filter(None, [text_of(ds, "Modality"), object_class.name]))
            raise NotImage(path, f"not an image: {named}",
                           tag_name("SOPClassUID"), "Leave it out.")
        syntax = UID(str(ds.file_meta.TransferSyntaxUID))
        side = range(1, MAX_SIDE + 1)
        n_rows, n_columns = _integer(ds, path, "Rows", side), _integer(ds, path, "Columns", side)
        allocated = _integer(ds, path, "BitsAllocated", (1, 8, 16, 32, 64))
        samples = _integer(ds, path, "SamplesPerPixel", range(1, 5))
        if (size := n_rows * n_columns * samples * allocated / 8) > MAX_BYTES:
            raise BadHeader(path, f"a frame of {size / 2**30:.1f} GiB cannot be true", tag_name("Rows"),
                            "Correct the tag or leave the file out.")
        if not (photometric := text_of(ds, "PhotometricInterpretation")):
            raise MissingTag(path, "it is not known whether low values are black or white",
                             tag_name("PhotometricInterpretation"), "Export the file again.")
        stored = _integer(ds, path, "BitsStored", range(1, allocated + 1))
        return kind(
            path=path, syntax=syntax, syntax_name=syntax.name, rows=n_rows, columns=n_columns,
            frames=max(1, _integer(ds, path, "NumberOfFrames", range(2**31), default=1)), bits_allocated=allocated,
            bits_stored=stored, high_bit=_integer(ds, path, "HighBit", range(allocated), default=stored - 1),
            signed=bool(_integer(ds, path, "PixelRepresentation", (0, 1))), samples=samples, photometric=photometric,
            image_id=text_of(ds, "SOPInstanceUID") or path.stem, object_class=object_class,
            modality=text_of(ds, "Modality"), patient_id=text_of(ds, "PatientID"),
            study=text_of(ds, "StudyInstanceUID"), series=text_of(ds, "SeriesInstanceUID"),
            series_number=number_of(ds, "SeriesNumber", int), instance_number=number_of(ds, "InstanceNumber", int),
            acquisition_number=number_of(ds, "AcquisitionNumber", int), acquisition_time=seconds_of(ds),
            image_type=tuple(map(str, ds.get("ImageType") or ())), kernel=text_of(ds, "ConvolutionKernel"),
            position=vector_of(ds, "ImagePositionPatient", 3), orientation=vector_of(ds, "ImageOrientationPatient", 6),
            spacing=vector_of(ds, "PixelSpacing", 2), thickness=number_of(ds, "SliceThickness"),
            step=number_of(ds, "SpacingBetweenSlices"), location=number_of(ds, "SliceLocation"),
            slope=number_of(ds, "RescaleSlope"), intercept=number_of(ds, "RescaleIntercept"), padding=_padding(ds),
            windows=windows_of(ds), voi_function=text_of(ds, "VOILUTFunction").upper() or "LINEAR",
            presentation=text_of(ds, "PresentationLUTShape").upper(), burned_in=text_of(ds, "BurnedInAnnotation"),
            **kind.extension(ds))

# %% [markdown]
# A small header with two windows and a position, and what becomes of it when a tag is absent or cannot be true:

# %%
small = Dataset()
small.file_meta = FileMetaDataset()
small.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
for name, value in dict(Rows=256, Columns=192, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2",
                        BitsAllocated=16, BitsStored=12, HighBit=11, PixelRepresentation=0, Modality="CT",
                        ImagePositionPatient=[-120, -110, 35.5], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                        AcquisitionTime="101502.5", RescaleSlope=1, RescaleIntercept=-1024,
                        WindowCenter=[40, 600], WindowWidth=[80, 2800]).items():
    setattr(small, name, value)
header = header_of(small, Path("10038.dcm"))
assert (header.position, header.intercept, header.windows) == ((-120, -110, 35.5), -1024, ((40, 80), (600, 2800)))
assert header.acquisition_time == 10 * 3600 + 15 * 60 + 2.5
pd.Series(vars(header), name=header.path.name).drop("path").astype(str).to_frame()

# %%
for name, value in (("Rows", 60_000), ("BitsStored", 17), ("PixelRepresentation", None)):
    kept, small[name].value = small[name].value, value
    try:
        header_of(small, Path("10038.dcm"))
    except DicomError as e:
        print(f"{type(e).__name__:10} {e}")
    else:
        raise AssertionError(name)
    small[name].value = kept

# %% [markdown]
# A derived class reads one tag more:

# %%
@dataclass(frozen=True)
class WithProtocol(Header):
    "A header with the name of the protocol."
    protocol: str = ""

    @classmethod
    def extension(cls, ds):
        "The added field."
        return {"protocol": text_of(ds, "ProtocolName")}

small.ProtocolName = "HEAD"
assert header_of(small, Path("10038.dcm"), WithProtocol).protocol == "HEAD"

# %% [markdown]
# ---
# [← Pixels](20_pixels.py) · [Pictures →](22_pictures.py)

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
# > One way to read a header and the stored values of a grey image, whatever the compression, and one error per kind of bad file.
#
# A mammogram comes in any of a dozen compressions, with tags absent, doubled or wrong, and a study of fifty thousand files holds a few that are cut short. Everything later trusts two things from here: the numbers are exactly those the detector stored, and a file that cannot be read says so by name instead of giving a wrong picture.

# %%
#| default_exp core.dicom

# %% tags=["parameters"]
rows, columns = 256, 192  # size of the image made below, in pixels
bits = 12                 # bits stored of 16 allocated
seed = 0                  # of its noise

# %%
#| export
import io
import logging
import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (DeflatedExplicitVRLittleEndian, DigitalMammographyXRayImageStorageForPresentation,
                         JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid)

# %% [markdown]
# ## Errors
# Whoever reads an error table at two in the morning needs three things: the file, the tag, and what to do. Each kind of failure is a class of its own, so that a batch can count them.

# %%
#| export
class DicomError(Exception):
    "A file that cannot be used; `str()` gives file name, problem, tag and remedy."
    def __init__(self,
        path: Path,       # the file
        problem: str,     # what is wrong
        tag: str = "",    # tag concerned, 'Keyword gggg,eeee', '' when it is not one tag
        remedy: str = "", # what to do about it
    ):
        super().__init__(path, problem, tag, remedy)  # all of them, so that it survives pickling between processes
        self.path, self.problem, self.tag, self.remedy = Path(path), problem, tag, remedy

    def __str__(self):
        tag = f" ({self.tag})" if self.tag else ""
        remedy = f" {self.remedy}" if self.remedy else ""
        return f"{self.path.name}: {self.problem}{tag}.{remedy}"

class NotDicom(DicomError): "Not a DICOM file with pixels."
class MissingTag(DicomError): "A tag the image cannot be read without is absent or empty."
class BadHeader(DicomError): "A tag holds a value that cannot be true."
class UnsupportedSyntax(DicomError): "No decoder for this compression."
class CorruptPixels(DicomError): "The pixel data is cut short or damaged."
class MultiFrame(DicomError): "Several frames, and none was asked for."

# %% [markdown]
# Parsers and codecs written in three languages raise what they like on damaged bytes. One small context manager turns all of it into the class that says which step failed, and keeps the last line of the original message. A file that does not exist stays a `FileNotFoundError`.

# %%
#| export
def _tag(
    keyword: str,  # 'Rows'
) -> str:          # 'Rows 0028,0010'
    "A tag by name and number."
    number = tag_for_keyword(keyword)
    return f"{keyword} {number >> 16:04X},{number & 0xFFFF:04X}"

@contextmanager
def _typed(
    error: type,       # the DicomError to raise
    path: Path,        # the file
    problem: str,      # what failed
    keyword: str = "", # tag concerned
    remedy: str = "",  # what to do
):
    "Whatever is raised inside becomes one typed error; pydicom's warnings and log, which quote a patient's data, stay silent."
    log = logging.getLogger("pydicom")
    level = log.level
    try:
        log.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DicomError, FileNotFoundError, KeyboardInterrupt, SystemExit, GeneratorExit): raise
    except BaseException as e:  # re-raised with a name; a panic in a codec written in Rust is not even an Exception
        detail = (str(e).strip().splitlines() or [""])[-1].strip()[:200].rstrip(".: ")
        raise error(path, f"{problem}: {type(e).__name__}" + f" {detail}" * bool(detail),
                    _tag(keyword) if keyword else "", remedy) from e
    finally: log.setLevel(level)

# %%
try:
    with _typed(CorruptPixels, Path("10038.dcm"), "the frame does not decode", "PixelData", "Fetch the file again."):
        np.frombuffer(b"odd", np.uint16)
except DicomError as e:
    print(type(e).__name__, "|", e)
    assert e.tag == "PixelData 7FE0,0010" and e.remedy

# %% [markdown]
# ## A file to read
# So that the notebook needs no data, it makes some: a half disc with a bright spot, stored in 12 of 16 bits with two windows, the way a digital mammogram is.

# %%
def make_dicom(path, pixels, syntax=ExplicitVRLittleEndian, named_as=None, **tags):
    "A small mammogram-like file; `tags` override or (None) remove what is set here."
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    base = dict(SOPClassUID=DigitalMammographyXRayImageStorageForPresentation, SOPInstanceUID=generate_uid(entropy_srcs=[path.stem]),
                Modality="MG", PatientID="10006", ImageLaterality="R", ViewPosition="MLO", PresentationIntentType="FOR PRESENTATION",
                PatientOrientation=["P", "FL"], WindowCenter=[2048, 1800], WindowWidth=[4096, 1200], VOILUTFunction="SIGMOID",
                Rows=pixels.shape[-2], Columns=pixels.shape[-1], SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2",
                BitsAllocated=16, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=0, PixelData=pixels.tobytes())
    for name, value in (base | tags).items():
        if value is not None: setattr(ds, name, value)
    ds["PixelData"].VR = "OW"
    if syntax.is_encapsulated: ds.compress(syntax, generate_instance_uid=False)
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
# ## Header
# What the later stages ask of a header, and nothing else: no name, no date. Two dozen fields of plain Python values, so that a header can be printed, compared and sent to another process.

# %%
#| export
@dataclass(frozen=True)
class Header:
    "What the stages need of a DICOM header."
    path: Path              # the file
    syntax: UID             # transfer syntax
    syntax_name: str        # its name in PS3.6
    rows: int               # pixels
    columns: int            # pixels
    frames: int             # 1 for an ordinary image
    bits_allocated: int     # 1, 8, 16, 32 or 64
    bits_stored: int        # of those allocated
    signed: bool            # PixelRepresentation = 1, two's complement
    samples: int            # per pixel, 1 for grey
    photometric: str        # 'MONOCHROME1' (low values white), 'MONOCHROME2', ...
    modality: str           # 'MG', 'CT', ... or '': the competition's files have none
    laterality: str         # 'L', 'R' or ''
    laterality_source: str  # keyword of the tag it was taken from, or ''
    view: str               # 'CC', 'MLO', ... or ''
    patient_id: str         # as stored
    image_id: str           # SOPInstanceUID, else the file's name without its ending
    windows: tuple[tuple[float, float], ...]  # (center, width), stored values; nan for what is no number
    voi_function: str       # 'LINEAR' (also when absent), 'LINEAR_EXACT', 'SIGMOID'
    has_voi_lut: bool       # a VOI LUT Sequence is there
    intent: str             # 'FOR PRESENTATION', 'FOR PROCESSING' or ''
    burned_in: str          # BurnedInAnnotation: 'YES', 'NO' or ''
    implant: str            # BreastImplantPresent: 'YES', 'NO' or ''

# %% [markdown]
# Text tags are optional and forgiving: the first value counts, absent is `''`. Numbers the pixels depend on are neither: each has a range, and a value outside it is a `BadHeader` that quotes it.

# %%
#| export
def _text(
    ds: pydicom.Dataset,  # header
    keyword: str,         # tag
) -> str:                 # first value, stripped; '' when absent
    "An optional text tag."
    value = ds.get(keyword)
    if isinstance(value, (pydicom.multival.MultiValue, list, tuple)): value = value[0] if len(value) else None
    return "" if value is None else str(value).strip()

def _integer(
    ds: pydicom.Dataset,  # header
    path: Path,           # file, for the error
    keyword: str,         # tag
    allowed,              # container of the values that can be true
    default: int | None = None,  # when absent; None: the tag is required
) -> int:
    "An integer tag, checked."
    with _typed(BadHeader, path, "the value is no integer", keyword, "Correct the tag or leave the file out."):
        value = ds.get(keyword)
        if value is None or value == "":
            if default is not None: return default
            raise MissingTag(path, "a required tag is absent", _tag(keyword), "Export the file again; it holds no complete image.")
        value = int(value)
    if value not in allowed: raise BadHeader(path, f"the value {value} cannot be true", _tag(keyword), "Correct the tag or leave the file out.")
    return value

# %% [markdown]
# Windows come as one number, as several, as text, or half: three centres and one width. All pairs are kept, and what is no number becomes `nan`, so that only *using* such a window is an error: silently falling back to another grey scale would be worse.

# %%
#| export
def _floats(
    ds: pydicom.Dataset,  # header
    keyword: str,         # tag
) -> list[float]:         # one per value, nan for what is no number, [] when absent or empty
    "Every value of a decimal tag."
    def number(value):
        try: return float(value)
        except (TypeError, ValueError, OverflowError): return math.nan
    try: value = ds.get(keyword)
    except (TypeError, ValueError, OverflowError): return [math.nan]  # pydicom converts on access: not a decimal string
    if value is None or value == "": return []
    return [number(v) for v in value] if isinstance(value, (pydicom.multival.MultiValue, list, tuple)) else [number(value)]

def _windows(
    ds: pydicom.Dataset,  # header
) -> tuple[tuple[float, float], ...]:  # (center, width) pairs in file order
    "WindowCenter (0028,1050) and WindowWidth (0028,1051), PS3.3 C.11.2.1.2; both may be multi-valued."
    return tuple(zip_longest(_floats(ds, "WindowCenter"), _floats(ds, "WindowWidth"), fillvalue=math.nan))

# %%
odd = Dataset()
assert _windows(odd) == ()
odd.WindowCenter, odd.WindowWidth = [2653, 2713, 2569], 900
_windows(odd)

# %% [markdown]
# The view is a short text, or a code of CID 4014 (older files carry the SRT code, newer ones SNOMED CT).

# %%
#| export
VIEWS = {  # CID 4014, SNOMED CT and the older SRT codes -> the ACR's abbreviation
    "399162004": "CC", "R-10242": "CC", "399368009": "MLO", "R-10226": "MLO", "399260004": "ML", "R-10224": "ML",
    "399352003": "LM", "R-10228": "LM", "399099002": "LMO", "R-10230": "LMO", "399196006": "FB", "R-10244": "FB",
    "399188001": "SIO", "R-102D0": "SIO", "441555000": "ISO", "R-40AAA": "ISO", "399192008": "XCCL", "R-1024A": "XCCL",
    "399101009": "XCCM", "R-1024B": "XCCM"}

def _view(
    ds: pydicom.Dataset,  # header
) -> str:                 # 'CC', 'MLO', ... or ''
    "ViewPosition (0018,5101), else the code that replaces it, ViewCodeSequence (0054,0220), PS3.3 C.8.11.5.1.1."
    if text := _text(ds, "ViewPosition").upper(): return text
    codes = [_text(item, "CodeValue") for item in ds.get("ViewCodeSequence") or []]
    return next((VIEWS[code] for code in codes if code in VIEWS), "")

# %% [markdown]
# The side is a tag of the image, of the frames of a tomosynthesis, or of the series. When all are absent, the orientation of the rows and columns decides, but only where geometry does: the plane of an MLO view runs from the axilla down to the midline, so the direction that points to the feet also points to the left in a *right* breast, however the image is turned or mirrored. In a CC view both breasts can have the same two directions; there the answer is "unknown", not a guess.

# %%
#| export
def _laterality(
    ds: pydicom.Dataset,  # header
    view: str,            # 'MLO', ...
) -> tuple[str, str]:     # 'L', 'R' or '', and the keyword it was taken from
    "ImageLaterality, FrameLaterality, Laterality, else PatientOrientation (PS3.3 C.7.6.1.1.1) of an oblique view."
    if (side := _text(ds, "ImageLaterality")) in ("L", "R"): return side, "ImageLaterality"
    for shared in ds.get("SharedFunctionalGroupsSequence") or []:
        for anatomy in shared.get("FrameAnatomySequence") or []:
            if (side := _text(anatomy, "FrameLaterality")) in ("L", "R"): return side, "FrameLaterality"
    if (side := _text(ds, "Laterality")) in ("L", "R"): return side, "Laterality"
    if view in ("MLO", "LMO"):
        for direction in ds.get("PatientOrientation") or []:
            feet, left = set(direction) & set("HF"), set(direction) & set("LR")
            if len(feet) == len(left) == 1: return "R" if (feet == {"F"}) == (left == {"L"}) else "L", "PatientOrientation"
    return "", ""

# %%
turned = Dataset()
seen = []
for directions in (["P", "FL"], ["A", "HR"], ["A", "FR"], ["P", "HL"]):  # right, right turned by 180 degrees, left, left turned
    turned.PatientOrientation = directions
    seen.append(_laterality(turned, "MLO")[0])
    assert _laterality(turned, "CC") == ("", "")
assert seen == ["R", "R", "L", "L"]

# %% [markdown]
# ## Parsing
# A file with the DICM mark is parsed as it says. Without it pydicom is asked to try, and believed only if pixels come out: forced to, it will read any text as *something*. A missing transfer syntax can be told from the bytes, except for compressed pixels.

# %%
#| export
def _parse(
    path: Path,            # the file
    pixels: bool,          # read up to and with the pixel data
) -> pydicom.Dataset:      # file_meta.TransferSyntaxUID is set
    "Parse a file once."
    remedy = "Fetch the file again; if it stays so, leave it out."
    try: source = io.BytesIO(path.read_bytes()) if pixels else path
    except FileNotFoundError: raise
    except OSError as e: raise DicomError(path, f"the file cannot be opened: {e.strerror}", "", "Check its permissions and the disk.") from e
    with _typed(BadHeader, path, "the data elements do not parse", "", remedy):
        try: ds = pydicom.dcmread(source, stop_before_pixels=not pixels)
        except InvalidDicomError:
            with _typed(NotDicom, path, "no DICM mark, and not readable without", "", "Check that it is a DICOM file."):
                ds = pydicom.dcmread(path, force=True)
            if not all(word in ds for word in ("PixelData", "Rows", "Columns")):
                raise NotDicom(path, "no DICM mark and no pixels", "", "Check that it is a DICOM image.") from None
        if ds.file_meta.get("TransferSyntaxUID"): return ds
        if "PixelData" not in ds and not pixels: return _parse(path, True)
        if "PixelData" not in ds: raise MissingTag(path, "no pixels", _tag("PixelData"), "Only images can be read.")
        if ds["PixelData"].is_undefined_length:
            raise MissingTag(path, "compressed pixels without the name of the compression", _tag("TransferSyntaxUID"), "Export the file again.")
        implicit, little = ds.original_encoding
        ds.file_meta.TransferSyntaxUID = (ImplicitVRLittleEndian if implicit else
                                          ExplicitVRLittleEndian if little else ExplicitVRBigEndian)
        return ds

# %% [markdown]
# A header may also lie about the size. 30,000 pixels a side and one gibibyte a frame are far beyond any detector and well within memory; beyond them nothing is allocated.

# %%
#| export
MAX_SIDE, MAX_BYTES = 30_000, 2**30  # of one frame: pixels a side, bytes

def _header(
    ds: pydicom.Dataset,  # parsed
    path: Path,           # the file
) -> Header:
    "The checked header of a parsed file."
    with _typed(BadHeader, path, "the header cannot be understood", "", "Correct the file or leave it out."):
        syntax = UID(str(ds.file_meta.TransferSyntaxUID))
        side = range(1, MAX_SIDE + 1)
        n_rows, n_columns = _integer(ds, path, "Rows", side), _integer(ds, path, "Columns", side)
        allocated = _integer(ds, path, "BitsAllocated", (1, 8, 16, 32, 64))
        samples = _integer(ds, path, "SamplesPerPixel", range(1, 5))
        if (size := n_rows * n_columns * samples * allocated / 8) > MAX_BYTES:
            raise BadHeader(path, f"a frame of {size / 2**30:.1f} GiB cannot be true", _tag("Rows"), "Correct the tag or leave the file out.")
        if not (photometric := _text(ds, "PhotometricInterpretation")):
            raise MissingTag(path, "black and white are not told apart", _tag("PhotometricInterpretation"), "Export the file again.")
        view = _view(ds)
        laterality, source = _laterality(ds, view)
        return Header(path=path, syntax=syntax, syntax_name=syntax.name, rows=n_rows, columns=n_columns,
            frames=max(1, _integer(ds, path, "NumberOfFrames", range(2**31), default=1)),
            bits_allocated=allocated, bits_stored=_integer(ds, path, "BitsStored", range(1, allocated + 1)),
            signed=bool(_integer(ds, path, "PixelRepresentation", (0, 1))), samples=samples, photometric=photometric,
            modality=_text(ds, "Modality"), laterality=laterality, laterality_source=source, view=view,
            patient_id=_text(ds, "PatientID"), image_id=_text(ds, "SOPInstanceUID") or path.stem,
            windows=_windows(ds), voi_function=_text(ds, "VOILUTFunction").upper() or "LINEAR",
            has_voi_lut=bool(ds.get("VOILUTSequence")), intent=_text(ds, "PresentationIntentType"),
            burned_in=_text(ds, "BurnedInAnnotation"), implant=_text(ds, "BreastImplantPresent"))

def read_header(
    path: Path | str,  # DICOM file
) -> Header:           # checked
    "Read and check the header; the pixels are not read."
    path = Path(path)
    return _header(_parse(path, pixels=False), path)

# %%
header = read_header(plain)
assert (header.rows, header.columns, header.laterality, header.view) == (rows, columns, "R", "MLO")
assert header.windows == ((2048, 4096), (1800, 1200))
pd.Series(vars(header), name=header.path.name).drop("path").astype(str).to_frame()

# %% [markdown]
# ## Pixels
# A compressed frame carries its size a second time, and the codec believes that one. Both are compared before it runs: a damaged byte there would have it allocate gigabytes.

# %%
#| export
def _coded_size(
    frame: bytes,  # one compressed frame
) -> tuple[int, int, int] | None:  # rows, columns, components; None when there is no such header
    "Size a JPEG 2000 (ISO 15444-1 A.5.1) or JPEG / JPEG-LS frame (ISO 10918-1 B.2.2) says it has."
    number = lambda start, length: int.from_bytes(frame[start:start + length], "big")
    boxed = frame.startswith(b"\0\0\0\x0cjP  ")  # a JP2 wrapper, not allowed but seen
    if (start := frame.find(b"\xff\x4f\xff\x51", 0, 4096 if boxed else 4)) >= 0:  # SOC, SIZ
        width, height, left, top = (number(start + 8 + 4 * i, 4) for i in range(4))
        return height - top, width - left, number(start + 40, 2)
    at = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while at + 9 < len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xF7 or 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            return number(at + 5, 2), number(at + 7, 2), frame[at + 9]
        at += 1 if marker == 0xFF else 2 + number(at + 2, 2)
    return None

# %% [markdown]
# pydicom finds the frame, corrects the sign where a codestream and the header disagree on it, and clears unused high bits; a codec does the rest. Several can serve one compression. One is chosen, the strictest, and recorded; when it refuses a frame, no other is asked, because some codecs return a picture for damaged bytes without a word. GDCM is not among them: on a damaged JPEG frame it ends the whole process.

# %%
#| export
PLUGINS = ("pyjpegls", "pylibjpeg", "pydicom", "pillow")  # first installed one wins; for 8-bit JPEG it is Pillow, whose rounding is everybody's

@dataclass(frozen=True)
class Image:
    "Stored values and what the header says of them."
    header: Header
    pixels: np.ndarray  # (rows, columns), stored values: no rescale, window or inversion; uint8, uint16, int16, ...
    decoder: str        # plugin that decoded it, 'native' when not compressed

def _decode(
    ds: pydicom.Dataset,  # parsed, with pixel data
    header: Header,       # its header
    frame: int,           # index from 0
) -> tuple[np.ndarray, str]:  # (rows, columns), plugin
    "One frame of stored values in the native byte order."
    path, tag = header.path, _tag("TransferSyntaxUID")
    try: decoder = get_decoder(header.syntax)
    except NotImplementedError as e:
        raise UnsupportedSyntax(path, f"no decoder for {header.syntax_name}", tag, "Convert it first, for example with dcmtk's dcmdjpeg.") from e
    order = ("pillow", *PLUGINS) if header.syntax == JPEGBaseline8Bit else PLUGINS
    plugin = next((p for p in order if p in decoder.available_plugins), "") if decoder.is_encapsulated else "native"
    if not plugin:
        raise UnsupportedSyntax(path, f"no decoder for {header.syntax_name} is installed", tag, "Install pylibjpeg with its plugins.")
    with _typed(CorruptPixels, path, f"frame {frame} does not decode", "PixelData", "Fetch the file again; if it stays so, leave it out."):
        if decoder.is_encapsulated:
            coded = get_frame(ds.PixelData, frame, number_of_frames=header.frames)
            size, expected = _coded_size(coded), (header.rows, header.columns, 1)
            if coded[:2] == b"\xff\xd8" and coded.rfind(b"\xff\xd9") < 0: raise ValueError("the JPEG frame has no end")  # libjpeg would fill it up
            if size and size != expected: raise ValueError(f"rows, columns, samples are {size} in the frame and {expected} in the header")
        pixels, _ = decoder.as_array(ds, index=frame, raw=True, decoding_plugin="" if plugin == "native" else plugin)
    # a codec may choose a smaller container than the header's (8-bit precision in 16 allocated)
    dtype = pixels.dtype.newbyteorder("=")
    if header.bits_allocated > 8 * dtype.itemsize: dtype = np.dtype(f"{dtype.kind}{header.bits_allocated // 8}")
    return np.require(pixels.astype(dtype, copy=False), requirements="CW"), plugin

def read_image(
    path: Path | str,          # DICOM file
    frame: int | None = None,  # index from 0; must be given when there are several
) -> Image:
    "Read header and stored values: the file is read once and parsed once."
    path = Path(path)
    try:
        ds = _parse(path, pixels=True)
        header = _header(ds, path)
    except (BadHeader, MissingTag) as e:
        read_header(path)  # raises when it is the header that is at fault; what is left is a file that ends within its pixels
        raise CorruptPixels(path, "the file ends early, or its pixel data does not parse", _tag("PixelData"), "Fetch the file again.") from e
    if "PixelData" not in ds: raise MissingTag(path, "no pixels", _tag("PixelData"), "Only images can be read.")
    if header.samples != 1: raise BadHeader(path, f"{header.samples} samples per pixel: a colour image", _tag("SamplesPerPixel"), "Convert it to grey first.")
    if frame is None and header.frames > 1: raise MultiFrame(path, f"{header.frames} frames", _tag("NumberOfFrames"), f"Ask for one, frame=0 to frame={header.frames - 1}.")
    if not 0 <= (frame or 0) < header.frames:
        raise MultiFrame(path, f"no frame {frame} among {header.frames}", _tag("NumberOfFrames"), f"Ask for 0 to {header.frames - 1}.")
    return Image(header, *_decode(ds, header, frame or 0))

# %% [markdown]
# The same image in six lossless transfer syntaxes: other bytes on disk, the same stored values back, to the last bit.

# %%
report = []
for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless):
    image = read_image(make_dicom(folder / f"{syntax.keyword}.dcm", stored, syntax))
    assert image.pixels.dtype == np.uint16 and np.array_equal(image.pixels, stored)
    report.append((image.header.syntax_name, image.header.path.stat().st_size, image.decoder))
pd.DataFrame(report, columns=["transfer syntax", "bytes", "decoder"])

# %%
fig, (ax, hist) = plt.subplots(1, 2, figsize=(7, 3.2))
ax.imshow(image.pixels, cmap="gray"); ax.set(title=f"{image.header.laterality} {image.header.view}, stored values"); ax.axis("off")
hist.hist(image.pixels[image.pixels > 0], bins=100); hist.set(xlabel="stored value", yticks=[], title=f"{bits} bits"); fig.tight_layout()

# %% [markdown]
# ## What bad files get
# A page of text, a file cut in half, one without rows, one that claims a frame of a thousand megapixels, a colour image, and a stack of frames: each has its class, its tag and a remedy.

# %%
image_bytes = (folder / "JPEG2000Lossless.dcm").read_bytes()
cut = folder / "cut.dcm"; cut.write_bytes(image_bytes[:len(image_bytes) // 2])
note = folder / "note.dcm"; note.write_text("not an image")
bad = {NotDicom: note, CorruptPixels: cut,
       MissingTag: make_dicom(folder / "norows.dcm", stored, Rows=None),
       BadHeader: make_dicom(folder / "huge.dcm", stored, Rows=32_000, Columns=32_000),
       UnsupportedSyntax: make_dicom(folder / "retired.dcm", stored, RLELossless, named_as=UID("1.2.840.10008.1.2.4.55")),
       MultiFrame: make_dicom(folder / "stack.dcm", np.stack([stored, stored]), NumberOfFrames=2)}
for kind, path in bad.items():
    try: read_image(path)
    except DicomError as e:
        print(f"{type(e).__name__:18} {e}")
        assert type(e) is kind, (kind, e)
    else: raise AssertionError(f"{path.name} was read")

# %% [markdown]
# One frame of the stack is an ordinary image again:

# %%
second = read_image(folder / "stack.dcm", frame=1)
assert np.array_equal(second.pixels, stored)
second.header.frames, second.pixels.shape

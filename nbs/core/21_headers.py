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
# # Headers
# > What the stages need of a DICOM header, checked once, and one error for each kind of bad file.
#
# A study of fifty thousand files holds tags that are absent, doubled or wrong. What later stages rely on is collected
# here in two dozen plain values, and whatever cannot be used is named: file, tag, remedy.

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

# %%
#| hide
import numpy as np
import pandas as pd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

# %% [markdown]
# ## Errors
# Whoever reads an error table at two in the morning needs three things: the file, the tag, and what to do. Each kind of
# failure is a class of its own, so that a batch can count them.

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

class NotDicom(DicomError):
    "Not a DICOM file with pixels."
class MissingTag(DicomError):
    "A tag the image cannot be read without is absent or empty."
class BadHeader(DicomError):
    "A tag holds a value that cannot be true."
class UnsupportedSyntax(DicomError):
    "No decoder for this compression."
class CorruptPixels(DicomError):
    "The pixel data is cut short or damaged."
class MultiFrame(DicomError):
    "Several frames, and none was asked for."

# %% [markdown]
# Parsers and codecs written in three languages raise what they like on damaged bytes. One small context manager turns
# all of it into the class that says which step failed, and keeps the last line of the original message. A file that
# does not exist stays a `FileNotFoundError`.

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
    """Whatever is raised inside becomes one typed error; pydicom's warnings and log, which quote a patient's data, stay
    silent."""
    log = logging.getLogger("pydicom")
    level = log.level
    try:
        log.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DicomError, FileNotFoundError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as e:  # re-raised with a name; a panic in a codec written in Rust is not even an Exception
        detail = (str(e).strip().splitlines() or [""])[-1].strip()[:200].rstrip(".: ")
        raise error(path, f"{problem}: {type(e).__name__}" + f" {detail}" * bool(detail),
                    tag_name(keyword) if keyword else "", remedy) from e
    finally:
        log.setLevel(level)

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
# What the later stages ask of a header, and nothing else: no name, no date. Two dozen fields of plain Python values, so
# that a header can be printed, compared and sent to another process.

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
    high_bit: int           # HighBit, should be bits_stored - 1
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
# Text tags are optional and forgiving: the first value counts, absent is `''`. Numbers the pixels depend on are
# neither: each has a range, and a value outside it is a `BadHeader` that quotes it.

# %%
#| export
def _text(
    ds: pydicom.Dataset,  # header
    keyword: str,         # tag
) -> str:                 # first value, stripped; '' when absent
    "An optional text tag."
    value = ds.get(keyword)
    if isinstance(value, (pydicom.multival.MultiValue, list, tuple)):
        value = value[0] if len(value) else None
    return "" if value is None else str(value).strip()

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
# Windows come as one number, as several, as text, or half: three centres and one width. All pairs are kept, and what is
# no number becomes `nan`, so that only *using* such a window is an error: silently falling back to another grey scale
# would be worse.

# %%
#| export
def _floats(
    ds: pydicom.Dataset,  # header
    keyword: str,         # tag
) -> list[float]:         # one per value, nan for what is no number, [] when absent or empty
    "Every value of a decimal tag."
    def number(value):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            return math.nan
    try:
        value = ds.get(keyword)
    except (TypeError, ValueError, OverflowError):
        return [math.nan]  # pydicom converts on access: not a decimal string
    if value is None or value == "":
        return []
    return [number(v) for v in value] if isinstance(value,
                                                    (pydicom.multival.MultiValue, list, tuple)) else [number(value)]

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
    if text := _text(ds, "ViewPosition").upper():
        return text
    codes = [_text(item, "CodeValue") for item in ds.get("ViewCodeSequence") or []]
    return next((VIEWS[code] for code in codes if code in VIEWS), "")

# %% [markdown]
# The side is a tag of the image, of the frames of a tomosynthesis, or of the series. When all are absent, the
# orientation of the rows and columns decides, but only where geometry does: the plane of an MLO view runs from the
# axilla down to the midline, so the direction that points to the feet also points to the left in a *right* breast,
# however the image is turned or mirrored. In a CC view both breasts can have the same two directions; there the answer
# is "unknown", not a guess.

# %%
#| export
def _laterality(
    ds: pydicom.Dataset,  # header
    view: str,            # 'MLO', ...
) -> tuple[str, str]:     # 'L', 'R' or '', and the keyword it was taken from
    "ImageLaterality, FrameLaterality, Laterality, else PatientOrientation (PS3.3 C.7.6.1.1.1) of an oblique view."
    if (side := _text(ds, "ImageLaterality")) in ("L", "R"):
        return side, "ImageLaterality"
    for shared in ds.get("SharedFunctionalGroupsSequence") or []:
        for anatomy in shared.get("FrameAnatomySequence") or []:
            if (side := _text(anatomy, "FrameLaterality")) in ("L", "R"):
                return side, "FrameLaterality"
    if (side := _text(ds, "Laterality")) in ("L", "R"):
        return side, "Laterality"
    if view in ("MLO", "LMO"):
        for direction in ds.get("PatientOrientation") or []:
            feet, left = set(direction) & set("HF"), set(direction) & set("LR")
            if len(feet) == len(left) == 1:
                return "R" if (feet == {"F"}) == (left == {"L"}) else "L", "PatientOrientation"
    return "", ""

# %%
turned = Dataset()
seen = []
# right, right turned by 180 degrees, left, left turned
for directions in (["P", "FL"], ["A", "HR"], ["A", "FR"], ["P", "HL"]):
    turned.PatientOrientation = directions
    seen.append(_laterality(turned, "MLO")[0])
    assert _laterality(turned, "CC") == ("", "")
assert seen == ["R", "R", "L", "L"]

# %% [markdown]
# A header may also lie about the size. So it is checked before anything is allocated.

# %%
#| export
MAX_SIDE, MAX_BYTES = 30_000, 2**30  # of one frame: pixels a side, bytes; far beyond any detector, well within memory

def header_of(
    ds: pydicom.Dataset,  # parsed
    path: Path,           # the file
) -> Header:
    "The checked header of a parsed file."
    with typed_errors(BadHeader, path, "the header cannot be understood", "", "Correct the file or leave it out."):
        syntax = UID(str(ds.file_meta.TransferSyntaxUID))
        side = range(1, MAX_SIDE + 1)
        n_rows, n_columns = _integer(ds, path, "Rows", side), _integer(ds, path, "Columns", side)
        allocated = _integer(ds, path, "BitsAllocated", (1, 8, 16, 32, 64))
        samples = _integer(ds, path, "SamplesPerPixel", range(1, 5))
        if (size := n_rows * n_columns * samples * allocated / 8) > MAX_BYTES:
            raise BadHeader(path, f"a frame of {size / 2**30:.1f} GiB cannot be true", tag_name("Rows"),
                            "Correct the tag or leave the file out.")
        if not (photometric := _text(ds, "PhotometricInterpretation")):
            raise MissingTag(path, "black and white are not told apart", tag_name("PhotometricInterpretation"),
                             "Export the file again.")
        view = _view(ds)
        laterality, source = _laterality(ds, view)
        return Header(path=path, syntax=syntax, syntax_name=syntax.name, rows=n_rows, columns=n_columns,
            frames=max(1, _integer(ds, path, "NumberOfFrames", range(2**31), default=1)),
            bits_allocated=allocated, bits_stored=(stored := _integer(ds, path, "BitsStored", range(1, allocated + 1))),
            high_bit=_integer(ds, path, "HighBit", range(allocated), default=stored - 1),
            signed=bool(_integer(ds, path, "PixelRepresentation", (0, 1))), samples=samples, photometric=photometric,
            modality=_text(ds, "Modality"), laterality=laterality, laterality_source=source, view=view,
            patient_id=_text(ds, "PatientID"), image_id=_text(ds, "SOPInstanceUID") or path.stem,
            windows=_windows(ds), voi_function=_text(ds, "VOILUTFunction").upper() or "LINEAR",
            has_voi_lut=bool(ds.get("VOILUTSequence")), intent=_text(ds, "PresentationIntentType"),
            burned_in=_text(ds, "BurnedInAnnotation"), implant=_text(ds, "BreastImplantPresent"))

# %% [markdown]
# A small header with two windows and a code instead of a view, and what becomes of it when a tag goes missing or cannot
# be true:

# %%
small = Dataset()
small.file_meta = FileMetaDataset()
small.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
for name, value in dict(Rows=256, Columns=192, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2",
                        BitsAllocated=16, BitsStored=12, HighBit=11, PixelRepresentation=0, ImageLaterality="R",
                        WindowCenter=[2048, 1800], WindowWidth=[4096, 1200], VOILUTFunction="SIGMOID").items():
    setattr(small, name, value)
code = Dataset()
code.CodeValue = "R-10226"
small.ViewCodeSequence = [code]
header = header_of(small, Path("10038.dcm"))
assert (header.laterality, header.view, header.windows) == ("R", "MLO", ((2048, 4096), (1800, 1200)))
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

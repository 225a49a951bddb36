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
# # Mammograms
# > The tags that only a mammogram has: side, view, implant, and whether it is made for presentation.
#
# `core/headers` reads the tags of any grey image. Side and view stand in different tags in different decades, so this
# notebook adds them to the header, with the rules that find them.

# %%
#| default_exp mammo.reading.mammograms

# %%
#| export
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pydicom

from mammo_nb.core import dicom
from mammo_nb.core.dicom import Frame, Image
from mammo_nb.core.headers import Header, text_of
from mammo_nb.mammo.reading.views import TERMS, VIEWS, parse_side, parse_view, why_special

# %%
#| hide
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from mammo_nb.core.headers import header_of

# %% [markdown]
# The view is a short text in many [spellings](views.py), or a code.

# %%
#| export
def view_of(
    ds: pydicom.Dataset,  # header
) -> str:                 # 'CC', 'MLO', ... or ''
    """ViewPosition (0018,5101), else the code that replaces it, ViewCodeSequence (0054,0220), PS3.3 C.8.11.5.1.1. Any
    text that is no term may be a name, and is OTHER."""
    if text := text_of(ds, "ViewPosition"):
        view = parse_view(text)[1]
        return view if view in TERMS else "OTHER"
    codes = [text_of(item, "CodeValue") for item in ds.get("ViewCodeSequence") or []]
    return next((VIEWS[code] for code in codes if code in VIEWS), "")

# %% [markdown]
# The side is a tag of the image, of the frames of a tomosynthesis, or of the series, a modifier of the anatomic region,
# or a part of the text of the view. When all are absent, the orientation of rows and columns decides, but only in
# oblique views. The plane of an MLO view runs from the axilla down to the midline. The direction that points to the
# feet therefore also points to the left in a *right* breast, however the image is turned or mirrored. In a CC view both
# breasts can have the same two directions, so the side stays unknown.

# %%
#| export
SIDE_CODES = {"24028007": "R", "G-A100": "R", "7771000": "L", "G-A101": "L"}  # CID 244

def laterality_of(
    ds: pydicom.Dataset,  # header
    view: str,            # 'MLO', ...
) -> tuple[str, str]:     # 'L', 'R' or '', and the keyword it was taken from
    """The side: ImageLaterality, FrameLaterality, Laterality, AnatomicRegionModifierSequence, ViewPosition, else
    PatientOrientation (PS3.3 C.7.6.1.1.1)."""
    groups = [*(ds.get("SharedFunctionalGroupsSequence") or []), *(ds.get("PerFrameFunctionalGroupsSequence") or [])]
    frames = {text_of(a, "FrameLaterality") for g in groups for a in g.get("FrameAnatomySequence") or []}
    regions = [m for region in ds.get("AnatomicRegionSequence") or []
               for m in region.get("AnatomicRegionModifierSequence") or []]
    for text, keyword in (
            (text_of(ds, "ImageLaterality"), "ImageLaterality"),
            (frames.pop() if len(frames) == 1 else "", "FrameLaterality"), (text_of(ds, "Laterality"), "Laterality"),
            *((SIDE_CODES.get(text_of(m, "CodeValue"), ""), "AnatomicRegionModifierSequence") for m in regions),
            (parse_view(text_of(ds, "ViewPosition"))[0], "ViewPosition")):
        if side := parse_side(text):
            return side, keyword
    if view in ("MLO", "LMO"):
        for direction in ds.get("PatientOrientation") or []:
            feet, left = set(direction) & set("HF"), set(direction) & set("LR")
            if len(feet) == len(left) == 1:
                return "R" if (feet == {"F"}) == (left == {"L"}) else "L", "PatientOrientation"
    return "", ""

# %%
#| export
def frame_sides(
    ds: pydicom.Dataset,   # header
) -> tuple[str, ...]:      # 'L', 'R' or '', one for each frame; () without per-frame functional groups
    "FrameLaterality (0020,9072) of each frame, else that of the shared functional groups (PS3.3 C.7.6.16.2.8)."
    def side(group) -> str:
        return next((parse_side(text_of(a, "FrameLaterality")) for a in group.get("FrameAnatomySequence") or []), "")

    shared = next(map(side, ds.get("SharedFunctionalGroupsSequence") or []), "")
    return tuple(side(group) or shared for group in ds.get("PerFrameFunctionalGroupsSequence") or [])

# %%
turned = Dataset()
sides = []
# right, right turned by 180 degrees, left, left turned
for directions in (["P", "FL"], ["A", "HR"], ["A", "FR"], ["P", "HL"]):
    turned.PatientOrientation = directions
    sides.append(laterality_of(turned, "MLO")[0])
    assert laterality_of(turned, "CC") == ("", "")
assert sides == ["R", "R", "L", "L"]

# %% [markdown]
# ## The header and its readers
# The readers have the names and arguments of those in `core/dicom`. Their headers are mammograms.

# %%
#| export
@dataclass(frozen=True)
class Mammogram(Header):
    "A header with the tags that only a mammogram has."
    laterality: str = ""         # 'L', 'R' or ''
    laterality_source: str = ""  # keyword of the tag it was taken from, or ''
    view: str = ""               # 'CC', 'MLO', ... or ''
    intent: str = ""             # 'FOR PRESENTATION', 'FOR PROCESSING' or ''
    implant: str = ""            # BreastImplantPresent: 'YES', 'NO' or ''
    special: str = ""            # why it is no standard mammogram, from `why_special`
    instance: str = ""           # SOPInstanceUID; '' when absent
    frame_sides: tuple[str, ...] = ()  # from `frame_sides`, unless ImageLaterality says it for all
    exam: str = ""               # what all images of one exam share: StudyDate, else StudyInstanceUID, else ''

    @classmethod
    def extension(cls,
        ds: pydicom.Dataset,  # a parsed header
    ) -> dict:                # field -> value
        "Side, view, intent, implant, and whether it is a standard mammogram."
        view = view_of(ds)
        laterality, source = laterality_of(ds, view)
        sides = () if source == "ImageLaterality" else frame_sides(ds)
        return {"laterality": laterality, "frame_sides": sides, "laterality_source": source, "view": view,
                "intent": text_of(ds, "PresentationIntentType"), "implant": text_of(ds, "BreastImplantPresent"),
                "special": why_special(ds, view), "instance": text_of(ds, "SOPInstanceUID"),
                "exam": text_of(ds, "StudyDate") or text_of(ds, "StudyInstanceUID")}

NO_STANDARD = "no standard mammogram"

def no_standard(
    header: Mammogram,
) -> str:              # a note; "" for a standard mammogram
    "Say why an image is no standard mammogram."
    return f"{NO_STANDARD}: {header.special}" if header.special else ""

read_header = partial(dicom.read_header, kind=Mammogram)

def read_frame(
    path: Path | str,          # DICOM, PNG or JPEG file
    frame: int | None = None,  # index from 0; required when there are several
) -> Frame:                    # with the side of this frame
    "Read the header and the bytes of one frame, as `dicom.read_frame`."
    found = dicom.read_frame(path, frame, Mammogram)
    side = "".join(found.header.frame_sides[found.index:found.index + 1])
    own = replace(found.header, laterality=side, laterality_source="FrameLaterality") if side else found.header
    return replace(found, header=own)

def read_image(
    path: Path | str,          # as in `read_frame`
    frame: int | None = None,
    scale: float = 1.0,        # pixels that are needed a side, per pixel of the frame
) -> Image:
    "Read and decode one frame."
    return read_frame(path, frame).decode(scale)

# %%
small = Dataset()
small.file_meta = FileMetaDataset()
small.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
for name, value in dict(Rows=256, Columns=192, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2",
                        BitsAllocated=16, BitsStored=12, HighBit=11, PixelRepresentation=0, Modality="MG",
                        ImageLaterality="R", PresentationIntentType="FOR PRESENTATION").items():
    setattr(small, name, value)
code = Dataset()
code.CodeValue = "R-10226"
small.ViewCodeSequence = [code]
header = header_of(small, Path("10038.dcm"), Mammogram)
assert (header.laterality, header.view, header.modality) == ("R", "MLO", "MG")
header.laterality, header.view, header.intent

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

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
# # Views
# > Sides and views in all spellings, and images that are no standard mammogram.
#
# Vendors and tables write `RMLO`, `cranio-caudal` or `CCID`, and a study also holds ultrasound, magnified details and
# tomosynthesis. The networks were trained on CC and MLO views for presentation. All other images are recognised by
# their class, modality and view, and named.

# %%
#| default_exp mammo.reading.views

# %%
#| export
import re

import pydicom

from mammo_nb.core.headers import number_of, text_of

# %%
#| hide
import pandas as pd
from pydicom.dataset import Dataset

# %% [markdown]
# ## Spellings
# A text may hold the side, the view and a modifier in any order that is in use: `R MLO`, `CC-L`, `LCCID`.

# %%
#| export
SIDES = {"L": "L", "LEFT": "L", "R": "R", "RIGHT": "R"}
NAMES = {
    "CRANIOCAUDAL": "CC", "MEDIOLATERALOBLIQUE": "MLO", "LATEROMEDIALOBLIQUE": "LMO", "MEDIOLATERAL": "ML",
    "LATEROMEDIAL": "LM", "CAUDOCRANIAL": "FB", "FROMBELOW": "FB", "EXAGGERATEDCRANIOCAUDALLATERALLY": "XCCL",
    "EXAGGERATEDCRANIOCAUDALMEDIALLY": "XCCM", "EXAGGERATEDCRANIOCAUDAL": "XCC", "AXILLARYTAIL": "AT"}
KNOWN = ("XCCL", "XCCM", "XCC", "MLO", "LMO", "SIO", "ISO", "CC", "ML", "LM", "FB", "AT", "CV")
MODIFIERS = {
    "ID": "implant displaced", "MAG": "magnification", "M": "magnification", "SPOT": "spot compression",
    "S": "spot compression", "RL": "rolled laterally", "RM": "rolled medially", "RS": "rolled superiorly",
    "RI": "rolled inferiorly", "TAN": "tangential", "NP": "nipple in profile", "AT": "axillary tail"}
_WORDS = f"({'|'.join([*NAMES, *KNOWN])})"
_SIDE, _MODIFIER = "(RIGHT|LEFT|R|L)", f"({'|'.join(sorted(MODIFIERS, key=len, reverse=True))})"
_FORMS = [re.compile(form) for form in (
    f"(?P<view>{_WORDS})", f"(?P<side>{_SIDE})(?P<view>{_WORDS})", f"(?P<view>{_WORDS})(?P<side>{_SIDE})",
    f"(?P<side>{_SIDE})?(?P<view>{_WORDS})(?P<modifier>{_MODIFIER})",
    f"(?P<side>{_SIDE})?(?P<modifier>{_MODIFIER})(?P<view>{_WORDS})")]

def parse_side(
    text: str,  # such as 'r' or 'Right'
) -> str:       # 'L', 'R' or ''
    "Read a side."
    return SIDES.get(re.sub("[^A-Z]", "", str(text).upper()), "")

def parse_view(
    text: str,            # such as 'RMLO', 'Cranio-Caudal' or 'CCID'
) -> tuple[str, str, str]:  # side 'L', 'R' or ''; view 'CC', 'MLO', ..., or the text if it is unknown; modifier or ''
    "Read a view, with its side and its modifier if the text has them."
    words = str(text).strip().upper()
    letters = re.sub("[^A-Z]", "", words)
    for form in _FORMS:
        if found := form.fullmatch(letters):
            named = {"side": "", "modifier": ""} | {k: v or "" for k, v in found.groupdict().items()}
            return (SIDES.get(named["side"], ""), NAMES.get(named["view"], named["view"]),
                    MODIFIERS.get(named["modifier"], ""))
    return "", words, ""

# %%
spellings = {
    "CC": ("", "CC", ""), "RMLO": ("R", "MLO", ""), "L CC": ("L", "CC", ""), "CCID": ("", "CC", "implant displaced"),
    "cranio-caudal": ("", "CC", ""), "Medio-Lateral Oblique": ("", "MLO", ""), "LMO": ("", "LMO", ""),
    "LML": ("L", "ML", ""), "MLO_R": ("R", "MLO", ""), "rccid": ("R", "CC", "implant displaced"),
    "MCC": ("", "CC", "magnification"), "RXCCL": ("R", "XCCL", ""), "other": ("", "OTHER", "")}
assert {text: parse_view(text) for text in spellings} == spellings
assert [parse_side(t) for t in ("r", " Left ", "RIGHT", "both", "")] == ["R", "L", "R", "", ""]
pd.DataFrame(spellings, index=["side", "view", "modifier"]).T

# %% [markdown]
# ## Codes
# The view is a code of CID 4014, its modifiers are codes of CID 4015. Older files carry SRT codes, newer
# ones SNOMED CT.

# %%
#| export
VIEWS = {  # CID 4014, SNOMED CT and the older SRT codes -> the ACR's abbreviation
    "399162004": "CC", "R-10242": "CC", "399368009": "MLO", "R-10226": "MLO", "399260004": "ML", "R-10224": "ML",
    "399352003": "LM", "R-10228": "LM", "399099002": "LMO", "R-10230": "LMO", "399196006": "FB", "R-10244": "FB",
    "399188001": "SIO", "R-102D0": "SIO", "441555000": "ISO", "R-40AAA": "ISO", "399192008": "XCCL", "R-1024A": "XCCL",
    "399101009": "XCCM", "R-1024B": "XCCM", "127457009": "SPECIMEN", "G-8310": "SPECIMEN"}
MODIFIER_CODES = {  # CID 4015
    "399055006": "spot compression", "R-102D7": "spot compression", "399163009": "magnification",
    "R-102D6": "magnification", "399209000": "implant displaced", "R-102D5": "implant displaced",
    "399161006": "cleavage", "R-102D2": "cleavage", "399011000": "axillary tail", "R-102D1": "axillary tail",
    "399110001": "tangential", "R-102C2": "tangential"}

TERMS = {*KNOWN, *NAMES.values(), *VIEWS.values(), "unknown"}   # of views
_MODIFIED = {*MODIFIER_CODES.values(), *MODIFIERS.values()}

def modifiers_of(
    ds: pydicom.Dataset,  # header
) -> list[str]:           # such as ['magnification']
    "The modifiers of a view: codes (0054,0222), else in the text of ViewPosition."
    items = [m for view in ds.get("ViewCodeSequence") or [] for m in view.get("ViewModifierCodeSequence") or []]
    items += list(ds.get("ViewModifierCodeSequence") or [])
    found = [MODIFIER_CODES.get(text_of(i, "CodeValue")) or text_of(i, "CodeMeaning").lower() for i in items]
    found.append(parse_view(text_of(ds, "ViewPosition"))[2])
    return sorted({name if name in _MODIFIED else "another modifier" for name in found if name})   # it may be a name

# %% [markdown]
# ## What is no standard mammogram
# A scanned film is a secondary capture of modality MG, and is a mammogram. Hologic also stores the slices of a
# tomosynthesis as private data of a secondary capture, whose public picture means nothing. An absent tag is no reason.

# %%
#| export
MODALITIES = ("", "MG", "CR", "DX", "RG")   # of pictures of a breast by X-rays; an absent tag, as at Kaggle
STANDARD = ("", "CC", "MLO")                # views that the networks were trained on; an unknown view is one of them
SECONDARY = "1.2.840.10008.5.1.4.1.1.7"     # SOP classes, PS3.4 B.5
TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"   # with one frame it may be a synthetic mammogram
CLASSES = {
    "1.2.840.10008.5.1.4.1.1.6.1": "ultrasound", "1.2.840.10008.5.1.4.1.1.3.1": "ultrasound",
    "1.2.840.10008.5.1.4.1.1.6.2": "ultrasound", "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR", "1.2.840.10008.5.1.4.1.1.2": "CT slice",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT slice", "1.2.840.10008.5.1.4.1.1.1.2.1": "for processing",
    "1.2.840.10008.5.1.4.1.1.13.1.4": "tomosynthesis projection",
    "1.2.840.10008.5.1.4.1.1.13.1.5": "tomosynthesis projection"}
MAGNIFIED = 1.4   # EstimatedRadiographicMagnificationFactor; of a contact view it is about 1.1

def _secondary(ds: pydicom.Dataset) -> str:
    "Why a secondary capture is no mammogram; '' for a scanned film."
    about = f"{text_of(ds, 'SeriesDescription')} {text_of(ds, 'ImageComments')}".upper()
    creators = [str(e.value).upper() for e in ds if e.tag.is_private_creator]
    if "TOMO" in about or any(e.tag.group == 0x7E01 for e in ds) and any("HOLOGIC" in c for c in creators):
        return "tomosynthesis as secondary capture"
    if "DOSE" in about or "REPORT" in about or (modality := text_of(ds, "Modality")) not in MODALITIES:
        return "secondary capture" if "DOSE" in about or "REPORT" in about else f"secondary capture of {modality}"
    return ""

def special_view(
    view: str,            # from `parse_view`
    modifier: str = "",   # from `parse_view`
) -> str:                 # such as 'view ML' or 'magnification'; '' for a standard view
    "Say why a view is no standard one."
    return modifier or ("" if view in STANDARD else f"view {view}")

def why_special(
    ds: pydicom.Dataset,  # header
    view: str,            # from `view_of`
) -> str:                 # such as 'ultrasound' or 'magnification'; '' for a standard mammogram
    "Say why an image is no standard mammogram for presentation."
    class_uid, modality = text_of(ds, "SOPClassUID"), text_of(ds, "Modality").upper()
    tomo = " as CT slices" if "TOMO" in text_of(ds, "SeriesDescription").upper() else ""
    if kind := CLASSES.get(class_uid):
        return f"tomosynthesis{tomo}" if tomo and kind == "CT slice" else kind
    if class_uid.startswith(SECONDARY) and (reason := _secondary(ds)):
        return reason
    if modality not in MODALITIES:
        return {"US": "ultrasound", "CT": "CT slice"}.get(modality, f"modality {modality}")
    if text_of(ds, "PresentationIntentType").upper() == "FOR PROCESSING":
        return "for processing"
    kinds = " ".join(map(str, ds.get("ImageType") or [])).upper()
    if "SPECIMEN" in kinds or view == "SPECIMEN":
        return "specimen"
    volume = class_uid == TOMOSYNTHESIS and (number_of(ds, "NumberOfFrames", int) or 1) > 1
    if ("TOMO" in kinds or volume) and "2D" not in kinds:
        return "tomosynthesis projection" if "PROJ" in kinds else "tomosynthesis"
    if modifiers := modifiers_of(ds):
        return ", ".join(modifiers)
    if (number_of(ds, "EstimatedRadiographicMagnificationFactor") or 1) >= MAGNIFIED:
        return "magnification"
    return special_view(view)

# %% [markdown]
# ## What came out

# %%
def header(**tags):
    ds = Dataset()
    for name, value in {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2", "Modality": "MG", **tags}.items():
        setattr(ds, name, value)
    return why_special(ds, "CC")

kinds = {
    "": header(), "film": header(SOPClassUID=SECONDARY), "dose report": header(SOPClassUID=SECONDARY, Modality="OT"),
    "US": header(Modality="US"), "raw": header(PresentationIntentType="FOR PROCESSING"),
    "specimen": header(ImageType=["ORIGINAL", "PRIMARY", "", "SPECIMEN"]), "spot": header(ViewPosition="SCC"),
    "synthetic 2D": header(ImageType=["DERIVED", "PRIMARY", "TOMO", "GENERATED_2D"])}
assert [name for name, why in kinds.items() if not why] == ["", "film", "synthetic 2D"]
pd.Series(kinds, name="no standard mammogram").to_frame()

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

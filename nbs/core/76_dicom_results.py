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
# # Results as DICOM
# > A picture and a structured report that belong to the study that was predicted.
#
# An archive of a hospital (PACS) shows what is DICOM and carries the UID of a study. A *Secondary Capture* is an RGB
# picture with a header. A *Comprehensive SR* is a tree of coded statements: here a number for each part of the body,
# with the images that it was made from, in the form of the template TID 1500. Both are made with highdicom.
#
# A report to a study names its patient, as the standard demands. Nothing else of the source is copied: no private tags
# and no sequences. The report is marked as preliminary and not verified.

# %%
#| default_exp core.dicom_results

# %%
#| export
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import replacing

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation as MAMMOGRAM

# %% tags=["parameters"]
probability = 0.25   # of the example

# %%
#| export
class DicomResultError(ProjectError):
    "A source that no DICOM result can refer to."

UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
PATIENT = ("SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate",
           "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")
CAUTION = "not a medical device"

def check_dicom(
    hash_ids: bool,   # whether ids are to be replaced by digests
):
    "Raise DicomResultError if no DICOM results can be made."
    if hash_ids:
        raise DicomResultError("A DICOM result belongs to its patient and has the ids that --hash-ids hides. Leave one "
                               "of --dicom and --hash-ids out.")
    if find_spec("highdicom") is None:
        raise DicomResultError("--dicom needs highdicom, which is not installed: pip install 'mammo_nb[clinic]'.")

def read_source(
    path: Path,        # of a DICOM file
) -> Dataset:          # UIDS and PATIENT, where PATIENT may be empty
    "Read what a result says of its source. Raises DicomResultError for a file without the UIDs of a study."
    try:
        header = dcmread(path, force=True, specific_tags=[*UIDS, *PATIENT])
    except OSError as e:
        raise DicomResultError(f"{Path(path).name} cannot be read: {e.strerror}. Predict it again.") from e
    missing = [name for name in UIDS if not header.get(name)]
    if missing:
        raise DicomResultError(f"{Path(path).name} has no {', '.join(missing)}, so no DICOM result can refer to it.")
    source = Dataset()
    for name in PATIENT:
        setattr(source, name, header.get(name) or "")
    for name in UIDS:
        setattr(source, name, header[name].value)
    if not source.SpecificCharacterSet:
        source.SpecificCharacterSet = "ISO_IR 192"
    return source

# %% [markdown]
# ## The picture
# UIDs are made from those of the source and from what made the result. The same prediction so gets the same UID when it
# is repeated, and an archive replaces it instead of keeping it twice.

# %%
#| export
@dataclass(frozen=True)
class Maker:
    "What made a result."
    name: str         # of the program or of its weights
    digest: str       # of the weights
    description: str  # of the series, at most 64 characters

    def uid(self,
        *parts: str,  # what the UID is for
    ) -> str:
        "A UID that depends on the parts and on the maker only."
        return generate_uid(entropy_srcs=[self.name, self.digest, *parts])

def secondary_capture(
    source: Dataset,       # from `read_source`
    picture: np.ndarray,   # uint8, (rows, columns) or (rows, columns, 3) RGB
    maker: Maker,
    laterality: str = "",  # L, R or ""
    part: str = "",        # tells several pictures of one source apart, such as those of its frames
    number: int = 1,       # its place among the pictures of the study
) -> Dataset:
    "A picture of the study of its source, with text in its pixels."
    from highdicom.sc import SCImage
    made = SCImage.from_ref_dataset(
        source, picture, "RGB" if picture.ndim == 3 else "MONOCHROME2", 8, "PATIENT",
        series_instance_uid=maker.uid("pictures", source.StudyInstanceUID), series_number=9001,
        sop_instance_uid=maker.uid("picture", source.SOPInstanceUID, part), instance_number=number,
        manufacturer="mammo_nb", laterality=laterality or None, patient_orientation=("L", "F"),
        contributing_equipment=[])
    made.PatientOrientation = ""   # several pictures side by side have none
    if not laterality:
        made.Laterality = ""   # unknown, or of both sides; the standard wants the tag
    made.SeriesDescription, made.BurnedInAnnotation = maker.description, "YES"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    made.SourceImageSequence = [reference]
    return made

# %% [markdown]
# ## The report

# %%
#| export
Code = tuple[str, str, str]   # value, coding scheme, meaning

PROBABILITY_OF_CANCER: Code = ("111047", "DCM", "Probability of cancer")
BREAST: Code = ("76752008", "SCT", "Breast")
SIDES: dict[str, Code] = {"L": ("7771000", "SCT", "Left"), "R": ("24028007", "SCT", "Right")}

@dataclass(frozen=True)
class Finding:
    "A number for a part of the body."
    name: Code                 # of the number
    value: float
    site: Code                 # part of the body
    laterality: str            # L, R or ""
    sources: Sequence[Dataset] # images of one study that it was made from, from `read_source`
    of: str = ""               # what else it belongs to, such as a series; tells numbers of one name and site apart

def _measured(finding: Finding, maker: Maker):
    from highdicom.sr import (CodedConcept, FindingSite, Measurement, MeasurementsAndQualitativeEvaluations,
                              SourceImageForMeasurementGroup, TrackingIdentifier)
    side = SIDES.get(finding.laterality)
    title = " ".join(filter(None, (side and side[2], finding.site[2], finding.name[2], finding.of)))
    site = FindingSite(CodedConcept(*finding.site), CodedConcept(*side) if side else None)
    unit = CodedConcept("1", "UCUM", "no units")
    value = Measurement(CodedConcept(*finding.name), round(float(finding.value), 6), unit)
    images = [SourceImageForMeasurementGroup(s.SOPClassUID, s.SOPInstanceUID) for s in finding.sources]
    uid = maker.uid("finding", title, finding.sources[0].StudyInstanceUID)
    return MeasurementsAndQualitativeEvaluations(TrackingIdentifier(uid, title), finding_sites=[site],
                                                 measurements=[value], source_images=images)

def structured_report(
    findings: Sequence[Finding],   # of one study, at least one
    maker: Maker,
) -> Dataset:
    "A Comprehensive SR with all numbers of a study; preliminary and not verified. Raises DicomResultError."
    from highdicom.sr import (CodedConcept, ComprehensiveSR, DeviceObserverIdentifyingAttributes, MeasurementReport,
                              ObservationContext, ObserverContext)
    sources = list({s.SOPInstanceUID: s for f in findings for s in f.sources}.values())
    studies = {s.StudyInstanceUID for s in sources}
    if len(studies) != 1:
        raise DicomResultError(f"A report belongs to one study, and its findings belong to {len(studies)}.")
    study = studies.pop()
    device = ObserverContext(CodedConcept("121007", "DCM", "Device"), DeviceObserverIdentifyingAttributes(
        maker.uid("device"), name="mammo_nb", manufacturer_name="mammo_nb", model_name=maker.name))
    content = MeasurementReport(
        ObservationContext(observer_device_context=device),
        CodedConcept("363679005", "SCT", "Imaging procedure"), [_measured(f, maker) for f in findings],
        title=CodedConcept("126000", "DCM", "Imaging Measurement Report"))
    made = ComprehensiveSR(sources, content[0], maker.uid("reports", study), 9002, maker.uid("report", study), 1,
                           manufacturer="mammo_nb", is_complete=True, is_final=False, contributing_equipment=[])
    made.SeriesDescription = maker.description
    return made

def save_result(
    made: Dataset,   # a picture or a report
    path: Path,
):
    "Write a result; an interrupted call leaves no file."
    with replacing(path) as temporary:
        made.save_as(temporary)

# %% [markdown]
# ## What came out
# A source, its picture, and its report. The report says for each breast what was found and in which image.

# %%
source = Dataset()
for name in PATIENT:
    setattr(source, name, "")
source.PatientID, source.SpecificCharacterSet, source.SOPClassUID = "example", "ISO_IR 192", MAMMOGRAM
source.StudyInstanceUID, source.SeriesInstanceUID, source.SOPInstanceUID = "1.2.3", "1.2.3.4", "1.2.3.4.5"
maker = Maker("example", "0" * 64, f"example, {CAUTION}")
picture = np.zeros((64, 48, 3), np.uint8)
picture[16:48, 12:36] = 255, 128, 0
with tempfile.TemporaryDirectory() as folder:
    secondary_capture(source, picture, maker, "L").save_as(Path(folder) / "picture.dcm")
    report = structured_report([Finding(PROBABILITY_OF_CANCER, probability, BREAST, "L", [source])], maker)
    report.save_as(Path(folder) / "report.dcm")
    read = dcmread(Path(folder) / "picture.dcm")
    plt.figure(figsize=(1.5, 2)), plt.imshow(read.pixel_array), plt.axis("off")
    assert np.array_equal(read.pixel_array, picture) and read.StudyInstanceUID == source.StudyInstanceUID
    assert str(probability) in str(dcmread(Path(folder) / "report.dcm"))

# %% [markdown]
# ---
# [← Comparison](75_comparison.py) · [Explanations →](77_explanations.py)

"Predictions as DICOM: pictures and reports that belong to the study, as an independent validator and reader see them."
import shutil
import subprocess
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from test_predict import mammo_nb, scans, weights  # noqa: F401  fixtures

from mammo_nb.core.dicom_results import (BREAST, PROBABILITY_OF_CANCER, DicomResultError, Finding, Maker, read_source,
                                         secondary_capture, structured_report)

SECRETS = ("Roe^Jane", "19500102", "Roe^Maiden", "secret remark")


def measured(report) -> dict:
    "Finding site and side -> number and the images that it came from, read from the tree of a report."
    found = {}
    for item in walk(report):
        if item.get("ValueType") == "CONTAINER" and item.ConceptNameCodeSequence[0].CodeValue == "125007":
            inside = list(walk(item))
            number, = (i for i in inside if i.ValueType == "NUM")
            site, = (i for i in inside if i.ValueType == "CODE" and i.ConceptNameCodeSequence[0].CodeMeaning
                     == "Finding Site")
            side, = (i for i in inside if i.ValueType == "CODE" and i.ConceptNameCodeSequence[0].CodeMeaning
                     == "Laterality")
            images = {i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in inside if i.ValueType == "IMAGE"}
            assert site.ConceptCodeSequence[0].CodeMeaning == "Breast"
            assert number.ConceptNameCodeSequence[0].CodeMeaning == "Probability of cancer"
            found[side.ConceptCodeSequence[0].CodeMeaning] = (
                float(number.MeasuredValueSequence[0].NumericValue), images)
    return found


def walk(item):
    for child in item.get("ContentSequence", []):
        yield child
        yield from walk(child)


@pytest.fixture
def studies(scans):  # noqa: F811
    "The drawn competition with UIDs of a study for each patient, and with names where they are planted."
    for path in (scans / "train_images").rglob("*.dcm"):
        header = pydicom.dcmread(path)
        patient = int(path.parent.name)
        header.StudyInstanceUID, header.SeriesInstanceUID = f"1.2.{patient}", f"1.2.{patient}.{int(path.stem)}"
        header.PatientName, header.PatientBirthDate = "Roe^Jane", "19500102"
        header.ImageComments, header.PatientComments = "secret remark", "secret remark"
        other = pydicom.Dataset()
        other.PatientName = "Roe^Maiden"
        header.ReferencedPatientSequence = [other]
        header.save_as(path)
    return scans


def test_pictures_and_reports_belong_to_the_study_and_say_what_the_tables_say(studies, weights, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    done = mammo_nb("predict", studies / "train_images", "-o", out, "--weights", weights, "--dicom")
    images, breasts = (pd.read_csv(out / name, dtype={"patient_id": str, "image_id": str})
                       for name in ("per_image.csv", "per_breast.csv"))
    assert done.returncode == 0 and f"{len(images)} pictures and 2 reports" in done.stdout
    reports = [pydicom.dcmread(p) for p in sorted((out / "dicom").glob("report_*.dcm"))]
    pictures = [pydicom.dcmread(p) for p in sorted((out / "dicom").rglob("*.dcm")) if not p.name.startswith("report_")]
    assert len(reports) == 2 and len(pictures) == len(images)
    by_uid = {}
    for path in (studies / "train_images").rglob("*.dcm"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        by_uid[header.SOPInstanceUID] = header
    for report in reports:
        patient = report.PatientID
        wanted = breasts[breasts["patient_id"] == patient].set_index("laterality")["probability"]
        found = measured(report)
        assert {k[0]: v[0] for k, v in found.items()} == pytest.approx(wanted.to_dict(), abs=1e-6)
        for side, (_, uids) in found.items():
            assert uids and all(by_uid[u].PatientID == patient and by_uid[u].ImageLaterality == side[0] for u in uids)
        assert report.StudyInstanceUID == f"1.2.{int(patient)}" and report.VerificationFlag == "UNVERIFIED"
    for picture in pictures:
        source = by_uid[picture.SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert picture.StudyInstanceUID == source.StudyInstanceUID and picture.PatientID == source.PatientID
        assert picture.pixel_array.ndim == 3 and np.ptp(picture.pixel_array) > 100
    for made in [*reports, *pictures]:
        assert "not a medical device" in made.SeriesDescription
        text = made.to_json()
        assert "Roe^Jane" in text   # a report to a study names its patient
        assert not any(secret in text for secret in ("Roe^Maiden", "secret remark"))


def test_what_is_no_dicom_of_a_study_is_named_and_the_rest_is_written(studies, weights, tmp_path):  # noqa: F811
    path = next((studies / "train_images").rglob("*.dcm"))
    header = pydicom.dcmread(path)
    del header.StudyInstanceUID
    header.save_as(path)
    out = tmp_path / "out"
    done = mammo_nb("predict", studies / "train_images", "-o", out, "--weights", weights, "--dicom")
    assert done.returncode == 0 and f"{path.name} has no StudyInstanceUID" in done.stdout
    assert len(list((out / "dicom").rglob("*.dcm"))) == len(pd.read_csv(out / "per_image.csv")) - 1 + 2
    hidden = mammo_nb("predict", studies / "train_images", "-o", tmp_path / "no", "--weights", weights, "--dicom",
                      "--hash-ids")
    assert hidden.returncode != 0 and not (tmp_path / "no/per_image.csv").exists()


def test_the_same_prediction_has_the_same_uids_and_another_network_has_others(studies, tmp_path):
    source = read_source(next((studies / "train_images").rglob("*.dcm")))
    one, again, other = (structured_report([Finding(PROBABILITY_OF_CANCER, .5, BREAST, "L", [source])],
                                           Maker("net", digest, "text")) for digest in "aab")
    assert one.SOPInstanceUID == again.SOPInstanceUID != other.SOPInstanceUID
    pictures = [secondary_capture(source, np.zeros((8, 8), np.uint8), Maker("net", "a", "text"), "L", f"{frame}")
                for frame in (1, 2)]   # of two frames of one file
    assert pictures[0].SOPInstanceUID != pictures[1].SOPInstanceUID
    foreign = deepcopy(source)
    foreign.StudyInstanceUID, foreign.SOPInstanceUID = "1.2.999", "1.2.999.1"
    with pytest.raises(DicomResultError, match="belong to 2"):
        structured_report([Finding(PROBABILITY_OF_CANCER, .5, BREAST, "L", [source]),
                           Finding(PROBABILITY_OF_CANCER, .5, BREAST, "R", [foreign])], Maker("net", "a", "text"))


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy of dicom3tools is not installed")
def test_a_validator_finds_no_error(studies, weights, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    assert mammo_nb("predict", studies / "train_images", "-o", out, "--weights", weights, "--dicom").returncode == 0
    for path in sorted((out / "dicom").rglob("*.dcm")):
        said = subprocess.run(["dciodvfy", Path(path)], capture_output=True, text=True)
        assert not [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")], path.name

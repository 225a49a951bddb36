"Pages and DICOM results of the CT systems: what the tables say, of the slices of the study, and no names."
import base64
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from ich import bag, give_uids  # noqa: F401  bag is a fixture
from test_dicom_results import walk
from test_ich_predict import drawn  # noqa: F401  fixture
from test_ich_predict import scans as heads  # noqa: F401  fixture
from test_predict import mammo_nb
from test_predict_options import SECRETS, plant, text_of
from test_trauma_predict import scans as bodies  # noqa: F401  fixture
from trauma import weights  # noqa: F401  the fixture

from mammo_nb.core.dicom_results import DicomResultError
from mammo_nb.ich.recipes import CLASSES
from mammo_nb.ich.tools.predict import predict_folder as predict_heads
from mammo_nb.trauma.recipes import SUBMITTED
from mammo_nb.trauma.tools.predict import predict_folder as predict_bodies
from mammo_nb.watching import exam_name, predict_exam


def read(folder, name):
    return pd.read_csv(folder / name, dtype=str, keep_default_na=False)


def prepare(system: str, request) -> tuple[Path, Path]:
    "Scans with a study for each patient, with planted names, and a folder of weights."
    scans, place = map(request.getfixturevalue, {"ich": ("heads", "bag"), "trauma": ("bodies", "weights")}[system])
    patients = {}
    for path in sorted(scans.rglob("*.dcm")):
        if system == "ich":
            give_uids(path)
        try:
            ds = pydicom.dcmread(path)
            ds.StudyInstanceUID = f"1.2.{patients.setdefault(ds.PatientID, len(patients) + 1)}"
            assert len(ds.PixelData) >= ds.Rows * ds.Columns * 2
        except (AssertionError, AttributeError, EOFError):   # the damaged file
            continue
        ds.save_as(path)
        plant(path)
    (scans / "Roe Jane.dcm").write_bytes(b"x" * 200)
    return scans, place


def expected(system: str, out: Path) -> dict:
    "Patient -> name of a number in a report -> its values, as the tables have them."
    found = {}
    if system == "trauma":
        for row in read(out, "per_patient.csv").to_dict("records"):
            grade = {"low": "low-grade injury", "high": "high-grade injury"}
            pairs = {c: c.split("_") for c in SUBMITTED}
            found[row["patient_id"]] = {f"Probability of {organ}: {grade.get(word, word)}": [float(row[c])]
                                        for c, (organ, word) in pairs.items()}
        return found
    for row in read(out, "per_series.csv").to_dict("records"):
        own = found.setdefault(row["patient_id"], {})
        for c in CLASSES:
            name = f"Probability of {c} {'intracranial ' if c == 'any' else ''}hemorrhage"
            own.setdefault(name, []).append(float(row[c]))
    return found


def groups_of(report) -> list[tuple[str, float, list[str]]]:
    "Of each group of a report: the name of its number, the number, the images that it refers to."
    found = []
    for item in walk(report):
        if item.get("ValueType") == "CONTAINER" and item.ConceptNameCodeSequence[0].CodeValue == "125007":
            number, = (i for i in walk(item) if i.ValueType == "NUM")
            images = [i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in walk(item) if i.ValueType == "IMAGE"]
            found.append((number.ConceptNameCodeSequence[0].CodeMeaning,
                          float(number.MeasuredValueSequence[0].NumericValue), images))
    return found


@pytest.mark.parametrize("system", ["ich", "trauma"])
def test_pages_and_reports_say_what_the_tables_say_and_belong_to_the_slices(system, request, tmp_path):
    scans, place = prepare(system, request)
    out = tmp_path / "out"
    done = mammo_nb("predict", scans, "-o", out, "--weights", place, "--system", system, "--html", "--dicom",
                    "--workers", 1, "--allow-errors", "--report", out / "run.json")
    assert done.returncode == 0, done.stdout
    wanted, slices = expected(system, out), read(out, "per_slice.csv")
    headers = {}
    for path in scans.rglob("*.dcm"):
        ds = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        headers[ds.get("SOPInstanceUID")] = ds

    # the report of each study
    reports = [pydicom.dcmread(p) for p in sorted((out / "dicom").glob("report_*.dcm"))]
    pictures = [pydicom.dcmread(p) for p in sorted((out / "dicom").glob("*.dcm")) if "report_" not in p.name]
    assert len(reports) == len(wanted) > 1 and f"{len(pictures)} pictures and {len(reports)} reports" in done.stdout
    for report in reports:
        found = {}
        for name, value, images in groups_of(report):
            found.setdefault(name, []).append(value)
            assert images and all(headers[uid].StudyInstanceUID == report.StudyInstanceUID for uid in images)
            if system == "ich":   # the slice that has this probability
                c = name.split()[2]
                assert float(slices.set_index("image_id")[c][images[0]]) == pytest.approx(value, abs=1e-6)
        own = wanted[report.PatientID]
        assert found.keys() == own.keys()
        for name in own:
            assert sorted(found[name]) == pytest.approx(sorted(own[name]), abs=1e-6), name
    for picture in pictures:
        source = headers[picture.SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert (picture.StudyInstanceUID, picture.PatientID) == (source.StudyInstanceUID, source.PatientID)
        assert picture.pixel_array.ndim == 3 and np.ptp(picture.pixel_array) > 100
    uids = Counter(made.SOPInstanceUID for made in [*reports, *pictures])
    assert max(uids.values()) == 1
    for made in [*reports, *pictures]:
        assert "not a medical device" in made.SeriesDescription
        text = made.to_json()
        assert "Roe^Jane" in text   # a result of a study names its patient
        assert not [s for s in ("Maiden", "Remark", "Doctor^B") if s in text]

    # the page of each study
    pages = {p.stem: p.read_text() for p in (out / "html").glob("*.html")}
    listed = pages.pop("index")
    assert len(pages) == len(wanted) + 1 and "failed: NotDicom" in "".join(pages.values())   # one of the odd files
    drawn = {p.read_bytes() for p in (out / "slices").glob("*/*.png")}   # noqa: F811
    assert len(list((out / "slices").glob("*/*.png"))) == len(pictures)
    for patient, own in wanted.items():
        page, = (p for p in pages.values() if f"Patient id: {patient}<" in p)
        for name, values in own.items():
            name = name.removeprefix("Probability of ").removesuffix(" hemorrhage").removesuffix(" intracranial")
            for value in values:
                assert re.search(f"<td>(series \\d, )?{name}</td><td>{value:.3f}</td>", page), (name, value)
        shown = {base64.b64decode(p) for p in re.findall("src='data:image/png;base64,([^']*)'", page)}
        assert shown and shown <= drawn and f"<td>{patient}</td>" in listed
    for page in [*pages.values(), listed]:
        words = re.sub("base64,[^']*|http-equiv", "", page)
        assert "Not a medical device" in words and "http" not in words
    # the table names each file, and here a file is named after the patient; nothing else does
    shared = text_of(out / "html") + text_of(out / "dicom") + text_of(out / "slices") + (out / "run.json").read_text()
    assert not [s for s in SECRETS if s in shared]
    assert not [s for s in SECRETS if s not in ("Roe", "Jane") and s in text_of(out) + done.stdout]


@pytest.mark.parametrize("system, predict", [("ich", predict_heads), ("trauma", predict_bodies)])
def test_results_of_an_earlier_folder_are_removed_and_hashed_ids_have_pages_only(system, predict, request, tmp_path,
                                                                                 monkeypatch):
    scans, place = prepare(system, request)
    out = tmp_path / "out"
    predict(scans, out, place, workers=1, html=True, dicom=True)
    before = {p.name: pydicom.dcmread(p).SOPInstanceUID for p in (out / "dicom").glob("*.dcm")}
    first = predict(scans, out, place, workers=1, html=True, dicom=True)
    assert {p.name: pydicom.dcmread(p).SOPInstanceUID for p in (out / "dicom").glob("*.dcm")} == before
    patient = first["patient_id"].iloc[0]
    keep = set(first["file"][first["patient_id"].eq(patient)])
    for path in scans.rglob("*"):
        if path.is_file() and path.relative_to(scans).as_posix() not in keep:
            path.unlink()
    again = predict(scans, out, place, workers=1, html=True, dicom=True)
    assert len(list((out / "html").glob("*.html"))) == 2 and len(list((out / "dicom").glob("report_*"))) == 1
    assert set(p.name for p in (out / "dicom").iterdir()) < set(before)
    exam, = again.attrs["exams"]
    assert json.loads(json.dumps(exam))["files"] == len(keep) and "file" not in str(exam["slices"])
    with pytest.raises(DicomResultError, match="hash-ids"):
        predict(scans, tmp_path / "no", place, workers=1, dicom=True, hash_ids=True)
    monkeypatch.setenv("MAMMO_NB_ID_KEY", str(tmp_path / "id.key"))
    predict(scans, tmp_path / "hidden", place, workers=1, html=True, hash_ids=True)
    texts = text_of(tmp_path / "hidden")
    ids = {str(v) for c in ("patient_id", "study", "series", "image_id") for v in first[c] if len(str(v)) > 3}
    assert not [i for i in ids if i in texts] and len(list((tmp_path / "hidden/html").glob("*.html"))) == 2


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy of dicom3tools is not installed")
@pytest.mark.parametrize("system, predict", [("ich", predict_heads), ("trauma", predict_bodies)])
def test_a_validator_finds_no_error(system, predict, request, tmp_path):
    scans, place = prepare(system, request)
    predict(scans, tmp_path / "out", place, workers=1, dicom=True)
    made = sorted((tmp_path / "out/dicom").glob("*.dcm"))
    assert len(made) > 2
    for path in made:
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
        assert not [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")], path.name


def test_files_without_a_study_are_named_and_have_a_page(heads, bag, tmp_path):  # noqa: F811
    for path in heads.glob("*.dcm"):
        ds = pydicom.dcmread(path)
        del ds.StudyInstanceUID
        ds.save_as(path)
    table = predict_heads(heads, tmp_path / "out", bag, workers=1, html=True, dicom=True)
    made = table.attrs["dicom"]
    assert made["pictures"] == made["reports"] == 0 and "has no StudyInstanceUID" in made["problems"][0]
    assert len(list((tmp_path / "out/html").glob("*.html"))) == table["patient_id"].nunique() + 1


@pytest.mark.parametrize("system", ["ich", "trauma"])
def test_a_watched_study_has_one_result(system, request, tmp_path):
    "As the server predicts an exam: from links, with pages and DICOM, and one entry in result.json."
    scans, place = prepare(system, request)
    of_study = {}
    for path in sorted(scans.rglob("*.dcm")):
        ds = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        if "StudyInstanceUID" in ds and path.name != "4.dcm":
            of_study.setdefault(ds.StudyInstanceUID, []).append(path.relative_to(scans).as_posix())
    study, files = next(iter(of_study.items()))
    out = tmp_path / exam_name(study)
    record = predict_exam({"folder": str(scans), "files": files, "output": str(out), "system": system, "options": {
        "weights": place, "dicom": True, "html": True}})
    assert record["exit_code"] == 0, record
    exam, = json.loads((out / "result.json").read_text())
    assert exam["scores"] and exam["slices"] and "patient_id" not in exam
    assert len(list((out / "html").glob("*.html"))) == 2 and len(list((out / "dicom").glob("report_*.dcm"))) == 1
    assert not [s for s in SECRETS if s in text_of(out)]

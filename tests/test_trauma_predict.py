"""Abdominal trauma: prediction of any folder, and the check of a data set."""
import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mammo_nb.cli import app
from mammo_nb.trauma.phantom import make_competition
from mammo_nb.trauma.reading.competition import IMAGE_LEVEL, TRAIN
from mammo_nb.trauma.recipes import GRADES, SUBMITTED
from mammo_nb.trauma.tools.check import check_data, print_check
from mammo_nb.trauma.tools.predict import DEMONSTRATION, NOT_AXIAL, predict_folder, print_predictions, suspicious
from test_trauma_prepare import body, series, write_slice
from trauma import COLUMNS, weights  # noqa: F401, the fixture


@pytest.fixture
def scans(tmp_path):
    "Two patients, one with two series; a coronal reformat, a report and a damaged file."
    root = tmp_path / "scans"
    for name, count in (("11", 14), ("12", 9), ("21", 10)):
        for k in range(count):
            write_slice(root / f"{name}/{count - k}.dcm", body(k), 5.0 * k, PatientID=f"patient {name[0]}")
    for k in range(5):
        write_slice(root / f"13/{k + 1}.dcm", body(k), 0.0, (1, 0, 0, 0, 0, -1), ImagePositionPatient=[0, 4 * k, 0],
                    PatientID="patient 1")
    (root / "report.txt").write_text("no scan")
    (root / "21/4.dcm").write_bytes((root / "21/4.dcm").read_bytes()[:800])
    return root


def read(folder, name):
    return pd.read_csv(folder / name, dtype=str, keep_default_na=False)


def test_every_file_has_a_row_and_every_axial_series_a_picture(scans, weights, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    result = predict_folder(scans, out, weights, workers=1)
    patients, slices = read(out, "per_patient.csv"), read(out, "per_slice.csv")
    assert sorted(slices["file"]) == sorted(p.relative_to(scans).as_posix() for p in scans.rglob("*") if p.is_file())
    assert patients[["patient_id", "series", "slices"]].values.tolist() == [["patient 1", "2", "23"],
                                                                            ["patient 2", "1", "9"]]
    values = patients[list(SUBMITTED)].astype(float)
    for organ in GRADES:
        np.testing.assert_allclose(values[[f"{organ}_{g}" for g in GRADES[organ]]].sum(axis=1), 1, atol=1e-5)
    assert patients["note"].str.contains(DEMONSTRATION).all()
    assert {p.stem for p in (out / "previews").iterdir()} == {"1.3.11", "1.3.12", "1.3.21"}
    of = slices.set_index("file")
    assert of["error"]["21/4.dcm"].startswith("CorruptPixels") and of["note"]["report.txt"] == "no DICOM file"
    assert (of["note"].str.contains(NOT_AXIAL) == of.index.str.startswith("13/")).all()
    for name, count in (("11", 14), ("12", 9), ("21", 9)):
        own = slices[slices["series"].eq(f"1.3.{name}") & slices["place"].ne("")]
        assert own["place"].astype(int).tolist() == list(range(count))
        assert own["position_mm"].astype(float).is_monotonic_increasing and (own[list(COLUMNS)] != "").any().all()
    assert print_predictions(result, out) == 1 and not (out / "volumes").exists()


def test_a_single_slice_is_a_series_of_its_own(scans, weights, tmp_path):  # noqa: F811
    predict_folder(scans / "11/3.dcm", tmp_path / "out", weights, workers=1)
    patients, slices = read(tmp_path / "out", "per_patient.csv"), read(tmp_path / "out", "per_slice.csv")
    assert slices["file"].tolist() == ["3.dcm"] and (slices["error"] == "").all()
    assert patients["slices"].tolist() == ["1"] and patients[list(SUBMITTED)].astype(float).gt(0).any(axis=None)


def test_hashed_ids_leave_no_name(scans, weights, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("MAMMO_NB_ID_KEY", str(tmp_path / "id.key"))
    (scans / "=1.dcm").write_bytes(b"no scan")
    plain = predict_folder(scans, tmp_path / "out", weights, workers=1)   # an earlier run that showed the ids
    assert "'=1.dcm" in set(plain["file"]) & set(read(tmp_path / "out", "per_slice.csv")["file"])
    hidden = predict_folder(scans, tmp_path / "out", weights, hash_ids=True, workers=1)
    paths = list((tmp_path / "out").rglob("*"))
    text = b"".join([*(p.read_bytes() for p in paths if p.is_file()), *(p.name.encode() for p in paths)])
    assert not [n for n in (b"patient 1", b"patient 2", b"1.3.11", b"1.3.21", b"4.dcm", b"report") if n in text]
    assert sorted(map(str, plain["liver_injury"])) == sorted(map(str, hidden["liver_injury"]))


def test_the_most_suspicious_slices():
    slices = pd.DataFrame({"a": [.1, .9, .8, .2], "b": [.3, np.nan, .1, .35]})
    assert suspicious(slices, 3) == [(1, "a", .9), (3, "b", .35), (2, "a", .8)]


def test_the_command_predicts_and_counts_failures(scans, weights, tmp_path):  # noqa: F811
    answer = CliRunner().invoke(app, ["predict", str(scans), "--system", "trauma", "-o", str(tmp_path / "out"),
                                      "--weights", str(weights), "--workers", "1"])
    assert answer.exit_code == 1 and "patient 2, 1 series, 9 slices: bowel" in answer.output


# ---- the check
@pytest.fixture(scope="module")
def competition(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn") / "competition"
    make_competition(root, patients=4, test_patients=1, size=32, lengths="6", prevalence=.5, contrast=1.0, seed=3,
                     workers=1)
    return root


def test_a_good_competition_passes(competition, capsys):
    rows = check_data(competition, sample=4, workers=1)
    assert print_check(rows) == 0 and "5 patients" in capsys.readouterr().out
    assert rows.attrs["estimate"]["files"] == len(rows) == len(list(competition.rglob("*.dcm")))


def test_faults_of_files_and_tables_are_found(competition, tmp_path):
    bad = shutil.copytree(competition, tmp_path / "bad")
    paths = sorted((bad / "train_images").glob("*/*/*.dcm"))
    paths[1].write_bytes(paths[1].read_bytes()[:900])
    shutil.copy(paths[2], paths[2].with_name("77.dcm"))
    table = pd.read_csv(bad / TRAIN)
    lost, other = table["patient_id"].iloc[[0, 1]]
    shutil.rmtree(bad / f"train_images/{lost}")
    table[table["patient_id"] != other].to_csv(bad / TRAIN, index=False)
    with open(bad / IMAGE_LEVEL, "a") as file:
        file.write("1,2,3,Bowel\n")
    rows = check_data(bad, sample=4, workers=1)
    kinds = rows.loc[rows["error"] != "", "error"].str.split(":").str[0].value_counts()
    assert kinds["Missing"] >= 2 and print_check(rows) == 1
    for words in ("marks this slice", "names this patient"):
        assert rows["error"].str.contains(words).any()
    odd = rows[rows["problems"].str.contains("not in train.csv")]
    assert set(odd["patient_id"]) == {str(other)}


def test_a_single_file_is_checked_alone(competition):
    file = sorted((competition / "train_images").rglob("*.dcm"))[0]
    assert check_data(file, workers=1)[["file", "error"]].values.tolist() == [[file.name, ""]]


def test_a_folder_of_scans_can_be_checked(tmp_path):
    series(tmp_path / "scans/7", 5)
    rows = check_data(tmp_path / "scans", sample=2, workers=1)
    assert print_check(rows) == 0 and len(rows) == 5

"""Head CT: prediction of any folder, and the check of a data set."""
import shutil

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from typer.testing import CliRunner

from ich import bag, write_bag  # noqa: F401, the fixture
from mammo_nb.cli import app
from mammo_nb.core.errors import ProjectError
from mammo_nb.core.pictures import write_png
from mammo_nb.ich.phantom import make_competition
from mammo_nb.ich.reading.competition import LABELS
from mammo_nb.ich.recipes import CLASSES
from mammo_nb.ich.tools.check import check_data, print_check
from mammo_nb.ich.tools.predict import DEMONSTRATION, GREY, MARKED, montage, predict_folder, print_predictions


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    "A small competition."
    root = tmp_path_factory.mktemp("drawn") / "competition"
    make_competition(root, patients=3, test_patients=1, size=48, slices=8, prevalence=.6, seed=5, workers=1)
    return root


@pytest.fixture
def scans(drawn, tmp_path):
    "Its training images, to be spoilt."
    return shutil.copytree(drawn / "stage_2_train_images", tmp_path / "scans")


def read(folder, name):
    return pd.read_csv(folder / name, dtype=str, keep_default_na=False)


# ---- any folder of DICOM
def test_every_file_has_a_row_and_every_series_a_picture(scans, bag, tmp_path):  # noqa: F811
    files = sorted(scans.glob("*.dcm"))
    (scans / "report.txt").write_text("no scan")
    files[3].write_bytes(files[3].read_bytes()[:1000])
    shutil.copy(files[5], scans / "again.dcm")
    ds = pydicom.dcmread(files[7])
    ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    ds.save_as(files[7])
    result = predict_folder(scans, tmp_path / "out", bag, workers=1)
    slices, series = read(tmp_path / "out", "per_slice.csv"), read(tmp_path / "out", "per_series.csv")
    assert sorted(slices["file"]) == sorted(p.name for p in scans.iterdir())
    of = slices.set_index("file")
    assert of["error"][files[3].name].startswith("CorruptPixels") and of["note"]["report.txt"] == "no DICOM file"
    copies = slices[slices["note"].str.contains("duplicate of .*; left out")]
    assert len(copies) == 1 and (copies["any"] == "").all()
    assert "localizer" in of["note"][files[7].name] and of["any"][files[7].name] == ""
    placed = slices[slices["place"] != ""]
    assert placed[[*CLASSES, "cnn_any"]].astype(float).stack().between(0, 1).all()
    again = slices["note"].str.contains("scanned again as").sum()
    assert len(placed) == len(files) - 2 - again
    assert set(placed["note"].str.rpartition("; ")[2]) == {DEMONSTRATION}
    assert {p.stem for p in (tmp_path / "out/previews").iterdir()} == set(series["series"])
    assert print_predictions(result, tmp_path / "out") == 1
    for row in series.itertuples():
        own = placed[placed["series"] == row.series]
        values = own["subdural"].astype(float)
        assert float(row.subdural) == values.max() and row.subdural_slice == own["image_id"][values.idxmax()]
        assert int(row.slices) == len(own) and own["position_mm"].astype(float).is_monotonic_increasing


def test_names_and_folders_of_files_change_nothing(scans, bag, tmp_path):  # noqa: F811
    first = predict_folder(scans, tmp_path / "a", bag, workers=1)
    for k, path in enumerate(sorted(scans.glob("*.dcm"))):
        (scans / f"d{k % 3}").mkdir(exist_ok=True)
        path.rename(scans / f"d{k % 3}" / f"IM{997 * k % 1000}")
    second = predict_folder(scans, tmp_path / "b", bag, workers=1)
    pair = [t.set_index("image_id")[list(CLASSES)].astype(float).sort_index() for t in (first, second)]
    assert np.abs(pair[0] - pair[1]).max(axis=None) < 1e-5


def test_a_single_file_is_predicted_and_checked(scans, bag, tmp_path):  # noqa: F811
    file = sorted(scans.glob("*.dcm"))[0]
    result = predict_folder(file, tmp_path / "out", bag, workers=1)
    assert result["file"].tolist() == [file.name] and float(result["any"].iloc[0]) >= 0
    assert check_data(file, workers=1)[["file", "error"]].values.tolist() == [[file.name, ""]]


def test_hashed_ids_leave_no_name(scans, bag, tmp_path, monkeypatch):  # noqa: F811
    (scans / "=broken.dcm").write_bytes(b"x" * 200)
    plain = predict_folder(scans, tmp_path / "plain", bag, workers=1)
    assert "'=broken.dcm" in set(plain["file"]) & set(read(tmp_path / "plain", "per_slice.csv")["file"])
    shutil.copytree(tmp_path / "plain", tmp_path / "out")   # an earlier run that showed the ids
    monkeypatch.setenv("MAMMO_NB_ID_KEY", str(tmp_path / "id.key"))
    predict_folder(scans, tmp_path / "out", bag, hash_ids=True, workers=1)
    paths = list((tmp_path / "out").rglob("*"))
    text = b"".join([*(p.read_bytes() for p in paths if p.is_file()), *(p.name.encode() for p in paths)])
    names = {str(v) for c in ("patient_id", "study", "series", "image_id", "file") for v in plain[c] if v}
    assert not [n for n in names if n.encode() in text] and b"broken" not in text
    slices = read(tmp_path / "out", "per_slice.csv")
    assert slices["patient_id"].str.fullmatch("[0-9a-f]{12}|").all() and (slices["error"] != "").sum() == 1
    values = [np.sort(table["any"].replace("", "nan").astype(float)) for table in (slices, plain)]   # in another order
    assert np.allclose(*values, equal_nan=True)


# ---- pictures, and weights that were trained on them
@pytest.fixture
def pictures(tmp_path):
    "Two patients in pictures, whose numbers are no text order, with a table beside them."
    folder = tmp_path / "pictures"
    for patient, numbers in (("0007", (8, 9, 10, 11)), ("b_3", (0, 1))):
        for n in numbers:
            grey = cv2.circle(np.zeros((64, 64), np.uint8), (32, 32), 12 + n, 60 + 10 * n, -1)
            write_png(folder / f"img/{patient}_{n}.png", grey)
    (folder / "labels.csv").write_text("patient,slice,file,positive\n0007,8,0007_8.png,0\n")
    return folder


def test_pictures_are_read_in_the_order_of_their_numbers(pictures, bag, tmp_path):  # noqa: F811
    write_png(pictures / "img/cover.png", np.zeros((8, 8), np.uint8))
    result = predict_folder(pictures, tmp_path / "out", bag, workers=1)
    own = result[result["series"] == "0007"]
    assert own["image_id"].tolist() == ["0007_8", "0007_9", "0007_10", "0007_11"]
    assert (result["series"] == "b_3").sum() == 2 and GREY in own["note"].iloc[0]
    assert result[result["error"] != ""]["file"].tolist() == ["img/cover.png"]
    assert "labels.csv" in set(result["file"])


def test_weights_with_one_class_predict_scans_and_pictures(pictures, scans, tmp_path):
    write_bag(tmp_path / "any", ("any",), given=True)
    for folder in (pictures, scans):
        result = predict_folder(folder, tmp_path / f"out_{folder.name}", tmp_path / "any", workers=1)
        assert result["any"].notna().sum() >= 6 and "subdural" not in result, result["error"].tolist()
        assert list(read(tmp_path / f"out_{folder.name}", "per_series.csv").columns[4:6]) == ["any", "any_slice"]


# ---- the command
def test_the_command_predicts_and_counts_failures(scans, bag, tmp_path):  # noqa: F811
    command = ["predict", "--system", "ich", str(scans), "-o", str(tmp_path / "out"), "--weights", str(bag),
               "--workers", "1"]
    assert CliRunner().invoke(app, command).exit_code == 0
    (scans / "broken.dcm").write_bytes(b"x" * 200)
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 1 and "failed broken.dcm" in answer.output
    assert CliRunner().invoke(app, [*command, "--allow-errors"]).exit_code == 0


def test_a_folder_without_slices_is_no_crash(bag, tmp_path):  # noqa: F811
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("nothing")
    result = predict_folder(tmp_path / "texts", tmp_path / "out", bag, workers=1)
    assert result["note"].tolist() == ["no DICOM file"] and not len(read(tmp_path / "out", "per_series.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProjectError, match="no files in it"):
        predict_folder(tmp_path / "empty", tmp_path / "out", bag, workers=1)


@pytest.mark.parametrize("n, tiles", [(1, 3), (8, 8), (20, 24), (200, None)])
def test_the_most_suspicious_slices_are_marked(n, tiles):
    slices = [np.full((40, 60, 3), 90, np.uint8)] * n
    picture = montage(slices, np.linspace(0, 1, n), ["a line"], side=64)
    orange = (picture == (40, 140, 255)).all(2)
    corners = orange[24 + 1::64, 1::64]
    assert corners.sum() == min(n, MARKED) and picture.shape[1] <= 512
    if tiles:
        assert picture.shape[0] == 24 + 64 * -(-tiles // min(8, tiles))


# ---- the check
def test_a_whole_competition_has_no_errors(drawn, capsys):
    found = check_data(drawn, sample=4, workers=1)
    assert print_check(found) == 0 and found["error"].eq("").all()
    assert found.attrs["estimate"]["timed"] == 4 and found["problems"].str.contains("label table twice").sum() == 4
    assert "patients" in (text := capsys.readouterr().out) and "of pictures" in text


def test_faults_of_files_and_labels_are_found(drawn, tmp_path):
    root = shutil.copytree(drawn, tmp_path / "bad")
    files = sorted((root / "stage_2_train_images").glob("*.dcm"))
    files[0].write_bytes(files[0].read_bytes()[:900])
    files[1].unlink()
    shutil.copy(files[2], files[2].with_name("ID_fffffffff.dcm"))
    ds = pydicom.dcmread(files[4])
    ds.PatientID = "ID_somebody"
    ds.save_as(files[4])
    lines = (root / LABELS).read_text().splitlines()
    at = {line.rpartition(",")[0]: k for k, line in enumerate(lines)}
    one, other = files[5].stem, files[6].stem
    lines.append(f"{one}_any,{1 - int(lines[at[f'{one}_any']][-1])}")
    del lines[at[f"{other}_epidural"]]
    (root / LABELS).write_text("\n".join(lines) + "\n")
    found = check_data(root, sample=0, workers=1).set_index("image_id")
    for path, words in ((files[0], "CorruptPixels"), (files[1], "Missing"), (files[5], "LabelConflict"),
                        (files[6], "BadLabel")):
        assert found["error"][path.stem].startswith(words)
    assert (found["error"] != "").sum() == 4
    assert "in no table" in found["problems"]["ID_fffffffff"]
    assert found["problems"].str.contains("same bytes as").sum() == 1
    assert found["problems"][files[4].stem].startswith("series ")


@pytest.mark.parametrize("system, code", [("ich", 0), ("toy", 2)])
def test_check_asks_the_system(drawn, tmp_path, system, code):
    answer = CliRunner().invoke(app, ["check", "--system", system, str(drawn), "--sample", "2", "--workers", "1",
                                      "-o", str(tmp_path / "check.csv")])
    assert (answer.exit_code == code) if system == "ich" else isinstance(answer.exception, (ProjectError, SystemExit))
    assert (tmp_path / "check.csv").exists() == (system == "ich")

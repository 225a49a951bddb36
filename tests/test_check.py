"mammo/tools/check: each kind of problem is found, a clean data set has none, and the cost comes from the sample."
import shutil
from types import SimpleNamespace

import imagecodecs
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, RLELossless

from mammo_nb.core.headers import DicomError
from mammo_nb.core.pictures import write_png
from mammo_nb.mammo.drawing.machines import write_dicom
from mammo_nb.mammo.recipes import Crops
from mammo_nb.mammo.tools import check
from mammo_nb.core.parallel import group_kinds
from mammo_nb.mammo.tools.check import COLUMNS, check_folder, estimate, estimate_text, print_check
from mammo_nb.mammo.tools.integrity import CheckError

SYNTAXES = (JPEG2000Lossless, JPEGLosslessSV1, RLELossless, ExplicitVRLittleEndian)


def scan(path, number, patient_id="1", laterality="L", view="CC", syntax=JPEG2000Lossless):
    "Write a bright half disc with its own noise."
    y, x = np.mgrid[:64, :48]
    pixels = (np.hypot(x, y - 32) < 28) * 2000 + np.random.default_rng(number).integers(0, 200, (64, 48))
    write_dicom(path, pixels.astype(np.uint16), patient_id=patient_id, image_id=str(number), laterality=laterality,
                view=view, syntax=syntax, photometric="MONOCHROME2", bits_stored=12, windows=((1100, 2200),),
                voi_function="LINEAR")
    return path


@pytest.fixture
def root(tmp_path):
    "A competition without any problem: two patients for training, one for testing."
    rows = [(p, str(4 * int(p) + i), "LR"[i // 2], ("CC", "MLO")[i % 2], syntax) for p in "123"
            for i, syntax in enumerate(SYNTAXES)]
    for split, patients in (("train", "12"), ("test", "3")):
        chosen = [row for row in rows if row[0] in patients]
        for p, image_id, side, view, syntax in chosen:
            scan(tmp_path / f"c/{split}_images/{p}/{image_id}.dcm", int(image_id), p, side, view, syntax)
        pd.DataFrame([row[:4] for row in chosen], columns=["patient_id", "image_id", "laterality", "view"]).to_csv(
            tmp_path / f"c/{split}.csv", index=False)
    return tmp_path / "c"


FIRST, OTHER = "train_images/1/4.dcm", "train_images/1/5.dcm"  # JPEG 2000 L CC, JPEG L MLO


def change(path, **tags):
    "Set tags of a file; None removes a tag."
    ds = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is not None:
            setattr(ds, name, value)
        elif name in ds:
            delattr(ds, name)
    ds.save_as(path)


def edit(csv, **columns):
    "Change columns of the first row of a table."
    table = pd.read_csv(csv, dtype=str)
    for name, value in columns.items():
        table.loc[0, name] = value
    table.to_csv(csv, index=False)


def trouble(table):
    "Problems and errors by file; files without any are omitted."
    return [{r.file: getattr(r, column) for r in table.itertuples() if getattr(r, column)}
            for column in ("problems", "error")]


def checked(folder, **arguments):
    return check_folder(folder, **{"workers": 1, **arguments})


def test_a_clean_competition_has_no_problem(root, capsys):
    table = checked(root)
    assert list(table.columns) == COLUMNS and trouble(table) == [{}, {}] and len(table) == 12
    assert table["decoder"].ne("").all() and set(table["laterality"]) == {"L", "R"} and (table["rows"] == 64).all()
    assert table["syntax"].nunique() == 4 and (table["bytes"] > 1000).all() and table.attrs["others"] == 2
    assert print_check(table) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "12 DICOM files, 0 cannot be read, 2 other files left out"
    assert lines[-3].startswith("12 files: about 1 s with 1 process, ")


@pytest.mark.parametrize("tags, problem", [
    ({"PresentationIntentType": "FOR PROCESSING"}, "for processing, not for presentation"),
    ({"BurnedInAnnotation": "YES"}, "burned-in annotation"),
    ({"Modality": "CT"}, "modality CT"),
    ({"WindowWidth": 0}, "window that cannot be used"),
    ({"WindowCenter": [1100, 1000], "WindowWidth": 2200}, "window that cannot be used"),
    ({"WindowCenter": None, "WindowWidth": None}, "no window"),
    ({"WindowCenter": 70_000, "WindowWidth": 100}, "window that cannot be used"),
    ({"RescaleSlope": 2, "RescaleIntercept": 0}, "rescaled"),
    ({"PresentationLUTShape": "INVERSE", "PhotometricInterpretation": "MONOCHROME2"}, "PresentationLUTShape INVERSE"),
    ({"PixelAspectRatio": [2, 1]}, "pixels are 2.00 times as high as wide"),
    ({"HighBit": 15}, "BitsStored 12, HighBit 15"),
    ({"Modality": "MG", "BreastImplantPresent": "YES"}, None)], ids=str)
def test_problems_of_a_header(root, tags, problem, capsys):
    change(root / FIRST, PatientName="DOE^JANE", StudyDate="20230212", **tags)
    table = checked(root, sample=0)
    assert trouble(table) == [{FIRST: problem} if problem else {}, {}] and print_check(table) == 0
    printed = capsys.readouterr().out
    assert "DOE" not in printed and "20230212" not in printed
    assert not problem or f"      1  {problem}: {FIRST}" in printed


def test_an_unusable_window_is_a_problem_and_no_error(root):
    change(root / FIRST, WindowWidth=0)
    problems, errors = trouble(checked(root, everything=True))
    assert problems[FIRST].startswith("window that cannot be used; window 1 has no width") and not errors


def test_header_and_table_disagree(root):
    edit(root / "train.csv", laterality="R", view="MLO")
    assert trouble(checked(root, sample=0)) == [{
        FIRST: "laterality L in the header, R in the table; view CC in the header, MLO in the table"
    }, {}]


def test_a_side_is_unknown_only_if_the_table_does_not_know_it(root):
    change(root / FIRST, ImageLaterality=None, ViewPosition=None)
    table = checked(root, sample=0).set_index("file")
    assert table.loc[FIRST, ["laterality", "view", "problems"]].tolist() == ["L", "CC", ""]
    for name in ("train.csv", "test.csv"):
        (root / name).unlink()
    table = checked(root, sample=0)
    # no problem with tables, because there is no table
    assert trouble(table) == [{FIRST: "laterality unknown; view unknown"}, {}]
    assert table.set_index("file").loc[FIRST, "laterality"] == "unknown"


def test_files_and_rows_that_do_not_match(root, capsys):
    (root / FIRST).unlink()
    scan(root / "train_images/1/99.dcm", 99)
    train = pd.read_csv(root / "train.csv", dtype=str)
    pd.concat([train, train[1:2]]).to_csv(root / "train.csv", index=False)
    table = checked(root, sample=0)
    assert trouble(table) == [{
        "train_images/1/99.dcm": "in no table", OTHER: "named by train.csv row 3 and train.csv row 10"
    }, {FIRST: "Missing: named by train.csv, but does not exist"}]
    assert len(table) == 13 and print_check(table) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "12 DICOM files, 0 cannot be read, 2 other files left out"


def test_a_file_behind_a_symbolic_link_is_not_missing(root):
    (root / "train_images/1").rename(root.parent / "elsewhere")
    (root / "train_images/1").symlink_to(root.parent / "elsewhere")
    table = checked(root, sample=0)
    assert trouble(table) == [{}, {}] and len(table) == 12


def test_repeated_files(root):
    change(root / "train_images/2/8.dcm", SOPInstanceUID=pydicom.dcmread(root / FIRST).SOPInstanceUID)
    shutil.copy(root / OTHER, root / "train_images/2/9.dcm")
    change(root / "train_images/2/9.dcm", SOPInstanceUID="1.2.3.4.5", ImageLaterality="L", ViewPosition="MLO")
    shutil.copy(root / FIRST, root / "train_images/copy.dcm")
    table = checked(root, sample=0)
    assert trouble(table) == [{
        "train_images/2/8.dcm": f"same SOPInstanceUID as {FIRST}", "train_images/2/9.dcm": f"same pixels as {OTHER}",
        "train_images/copy.dcm": f"in no table; same SOPInstanceUID as {FIRST}; same pixels as {FIRST}"
    }, {}]
    assert group_kinds(table,
                       "problems")["same SOPInstanceUID as ..."] == ["train_images/2/8.dcm", "train_images/copy.dcm"]


def test_a_name_is_no_uid_unless_the_file_is_named_after_it(tmp_path):
    for i, name in enumerate(("a/IM1.dcm", "b/IM1.dcm", "a/1.2.840.7.dcm", "b/1.2.840.7.dcm")):
        change(scan(tmp_path / name, i), SOPInstanceUID=None if "IM1" in name else "1.2.840.7")
    assert trouble(checked(tmp_path, sample=0)) == [{"b/1.2.840.7.dcm": "same SOPInstanceUID as a/1.2.840.7.dcm"}, {}]


def test_several_frames_are_a_problem_and_not_sampled(root):
    path = root / "train_images/1/7.dcm"   # not compressed
    change(path, NumberOfFrames=2, PixelData=2 * pydicom.dcmread(path).PixelData)
    table = checked(root).set_index("file")
    assert trouble(table.reset_index()) == [{
        "train_images/1/7.dcm": "multi-frame: 2 frames, choose with --frames middle, all or a number"}, {}]
    assert table["decoder"].ne("").sum() == 11 and table.loc["train_images/1/7.dcm", "frames"] == 2


def test_colour_cannot_be_used(root):
    path = root / "train_images/1/7.dcm"
    change(path, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0,
           PixelData=3 * pydicom.dcmread(path).PixelData)
    problems, errors = trouble(checked(root, sample=0))
    assert problems == {"train_images/1/7.dcm": "colour, RGB"}
    assert errors["train_images/1/7.dcm"].startswith("BadHeader")


def test_a_truncated_file_is_found_without_decoding(root, capsys):
    path = root / FIRST
    path.write_bytes(path.read_bytes()[:path.stat().st_size * 2 // 3])
    table = checked(root, sample=0)
    problems, errors = trouble(table)
    assert problems == {} and list(errors) == [FIRST] and errors[FIRST].startswith("CorruptPixels: 4.dcm: ")
    assert table["decoder"].eq("").all() and table.set_index("file").loc[FIRST, "columns"] == 48  # the header was read
    assert print_check(table) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("12 DICOM files, 1 cannot be read")


SMALLER = imagecodecs.jpeg2k_encode(np.zeros((64, 40), np.uint16), level=0, codecformat="j2k", reversible=True)


@pytest.mark.parametrize("recode, problem", [
    (lambda frame: frame[:len(frame) // 2], "pixels without end marker"),
    (lambda frame: SMALLER, "64 x 40 x 1 in the pixels, 64 x 48 x 1 in the header"),
    (lambda frame: b"nothing " * 40, "pixels do not start like their compression")], ids=["cut", "size", "start"])
def test_a_frame_that_contradicts_its_header_is_found_without_the_sample(root, recode, problem):
    ds = pydicom.dcmread(root / FIRST)
    ds.PixelData = encapsulate([recode(next(generate_frames(ds.PixelData, number_of_frames=1)))])
    ds.save_as(root / FIRST)
    problems, errors = trouble(checked(root, sample=0))
    assert problems == {FIRST: problem} and list(errors) == [FIRST] and errors[FIRST].startswith("CorruptPixels")


def test_no_image_at_all(root):
    (root / "train_images/broken.dcm").write_bytes(b"nothing")
    problems, errors = trouble(checked(root, sample=0))
    assert problems == {"train_images/broken.dcm": "in no table"}
    assert errors["train_images/broken.dcm"].startswith("NotDicom")


OUTSIDE = ["../../etc/passwd", "/etc/passwd", "train_images/../../x.dcm", "train_images\\1.dcm", "C:/x.dcm", ""]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_table_cannot_name_files_outside(root, name):
    edit(root / "train.csv", file=FIRST)
    table = pd.read_csv(root / "train.csv", dtype=str)
    table["file"] = [FIRST, name, *(f"train_images/{r.patient_id}/{r.image_id}.dcm" for r in table[2:].itertuples())]
    table.to_csv(root / "train.csv", index=False)
    with pytest.raises(CheckError, match="train.csv, row 3: .*no path below"):
        checked(root)
    table.to_csv(root.parent / "own.csv", index=False)
    (root / "train.csv").unlink()
    with pytest.raises(CheckError, match="own.csv, row 3: .*no path below"):
        checked(root, table=root.parent / "own.csv")


def test_ids_that_are_no_file_names_are_refused(root):
    edit(root / "train.csv", patient_id="..")
    with pytest.raises(CheckError, match="row 2: patient_id '..' is no file name"):
        checked(root)


def test_the_table_is_found_from_within(root, monkeypatch):
    (root / FIRST).unlink()
    lost = {"Missing: named by train.csv, but does not exist"}
    for folder, files in ((root / "train_images", 8), (root / "train_images/1", 4)):
        table = checked(folder, sample=0)
        assert len(table) == files and set(trouble(table)[1].values()) == lost and not trouble(table)[0]
    monkeypatch.chdir(root / "train_images/2")
    assert len(checked(".", sample=0)) == 4 and trouble(checked(".", sample=0)) == [{}, {}]


def test_a_file_column_counts_from_the_competition(root):
    table = pd.read_csv(root / "train.csv", dtype=str)
    files = [f"train_images/{r.patient_id}/{r.image_id}.dcm" for r in table.itertuples()]
    table[["laterality"]].assign(file=files).to_csv(root / "train.csv", index=False)
    for folder, given in ((root, None), (root / "train_images", None), (root / "train_images", root / "train.csv")):
        assert trouble(checked(folder, sample=0, table=given)) == [{}, {}]


def test_a_table_of_ones_own_names_images_wherever_they_lie(root, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (root / "train_images").rglob("*.dcm"):
        shutil.copy(path, flat)
    table = pd.read_csv(root / "train.csv", dtype=str).drop(columns="patient_id")
    table.loc[0, "image_id"] = "77"
    table.to_csv(tmp_path / "own.csv", index=False)
    assert trouble(checked(flat, table=tmp_path / "own.csv", sample=0)) == [
        {"4.dcm": "in no table"}, {"77.dcm": "Missing: named by own.csv, but does not exist"}]


def test_a_single_file_is_checked_alone(root):
    "The tables of the competition say its side, and that they name other files is no problem of this one."
    path = sorted((root / "train_images").rglob("*.dcm"))[0]
    table = checked(path)
    assert table["file"].tolist() == [path.name] and trouble(table) == trouble(checked(root)) == [{}, {}]


def test_a_folder_or_table_that_cannot_be_checked_is_an_error(root, tmp_path):
    with pytest.raises(DicomError, match="no such file or folder"):
        checked(root / "no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DicomError, match="no DICOM, PNG or JPEG file in it"):
        checked(tmp_path / "empty")
    with pytest.raises(CheckError, match="does not exist"):
        checked(root, table=root / "no.csv")
    (tmp_path / "own.csv").write_text("laterality,view\nL,CC\n")
    with pytest.raises(CheckError, match="no column image_id"):
        checked(root, table=tmp_path / "own.csv")
    (tmp_path / "own.csv").write_bytes(b"")
    with pytest.raises(CheckError, match="own.csv cannot be used"):
        checked(root, table=tmp_path / "own.csv")


def test_the_sample_has_the_given_size_and_is_the_same_each_time(root, monkeypatch):
    decoded = []
    crop_file = check.crop_file
    monkeypatch.setattr(check, "crop_file", lambda item: decoded.append(item["file"]) or crop_file(item))
    tables = [checked(root, sample=2) for _ in range(2)]
    first, second = (set(t.loc[t["decoder"] != "", "file"]) for t in tables)
    assert first == second == set(decoded) and len(first) == 2
    assert tables[0].attrs["estimate"]["timed"] == 2 and tables[0].attrs["estimate"]["files"] == 12
    assert checked(root, sample=2, everything=True)["decoder"].ne("").all()


def test_the_crops_are_measured_as_the_settings_make_them(root):
    small, large = (checked(root, settings=s).attrs["estimate"]["crops"] for s in (Crops(height=16, width=8), Crops()))
    assert 0 < small < large / 2


def test_a_failure_in_the_sample_is_an_error_and_is_not_timed(root, monkeypatch):
    crop_file = check.crop_file
    def fails(item):
        if item["file"] == FIRST:
            raise RuntimeError("no memory")
        return crop_file(item)
    monkeypatch.setattr(check, "crop_file", fails)
    table = checked(root)
    assert trouble(table) == [{}, {FIRST: "RuntimeError: no memory"}]
    assert table.attrs["estimate"]["timed"] == 11 and table.attrs["estimate"]["files"] == 11


def many(n, **columns):
    return pd.DataFrame({
        "file": [f"{i}.dcm" for i in range(n)], "error": "", "problems": "", "frames": 1, "bytes": 6_000_000,
        "syntax": "RLE", "rows": 5355, "columns": 4915, "photometric": "MONOCHROME2", **columns
    })


def test_the_estimate_by_hand(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=412 * 10**9))
    table = many(54_708)
    table.loc[0, "error"], table.loc[1, "frames"] = "CorruptPixels: cut", 50   # neither becomes a crop
    cost = estimate(table, [.2, .28], [1_700_000, 1_900_000], workers=2)
    assert cost == {
        "files": 54_706, "timed": 2, "workers": 2, "seconds": pytest.approx(54_706 * .24 / 2),
        "crops": pytest.approx(54_706 * 1_800_000), "dicom": 54_706 * 6_000_000, "free": 412 * 10**9
    }
    first, second = estimate_text(cost).splitlines()
    assert first == "54,706 files: about 1 h 49 min with 2 processes, 98.5 GB of crops; 412 GB free"
    assert second == "as measured on 2 of them; 328 GB of files to read"
    assert estimate(table, [], [], workers=2) == {}


def test_a_disk_that_is_too_small(root, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    table = checked(root)
    assert print_check(table) == 0 and "of crops; 1 kB free, not enough\n" in capsys.readouterr().out


def test_of_many_files_three_are_named(capsys):
    table = many(60, photometric=["MONOCHROME1"] * 10 + ["MONOCHROME2"] * 50)
    table.loc[:3, "problems"] = "no window; same pixels as 9.dcm"
    table.loc[:49, "error"] = [f"CorruptPixels: {i}.dcm: ends early. Fetch it again." for i in range(50)]
    table.loc[59, "error"] = "Missing: named by train.csv, but does not exist"
    assert print_check(table) == 1
    assert capsys.readouterr().out.splitlines() == [
        "      9  RLE, 5355 x 4915, MONOCHROME2",
        "      4  no window: 0.dcm, 1.dcm, 2.dcm, ...",
        "      4  same pixels as ...: 0.dcm, 1.dcm, 2.dcm, ...",
        "     50  CorruptPixels: ends early. Fetch it again: 0.dcm, 1.dcm, 2.dcm, ...",
        "      1  Missing: named by train.csv, but does not exist: 59.dcm",
        "59 DICOM files, 50 cannot be read, 0 other files left out"]


def test_many_sizes_are_summed(capsys):
    print_check(many(60, rows=range(60)))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 22 and lines[-2] == "     40  of 40 other kinds"


def test_real_scans(real_scans):
    table = checked(real_scans, workers=2).set_index("file")
    problems, errors = trouble(table.reset_index())
    assert not errors and table["decoder"].ne("").sum() == 2 and table.loc["dbt_4frames_128.dcm", "decoder"] == ""
    assert problems["dbt_4frames_128.dcm"].startswith("multi-frame")
    assert "ge_senographe_RMLO_GH133.dcm" not in problems or "MLO" not in problems["ge_senographe_RMLO_GH133.dcm"]
    assert table.loc["ge_senographe_RMLO_GH133.dcm", ["laterality", "view", "windows"]].tolist() == ["R", "MLO", 3]


def test_pictures_without_a_side_are_told_of_the_table_and_no_hidden_file_is_named(tmp_path, capsys):
    write_png(tmp_path / "in/a.png", np.full((64, 48), 90, np.uint8))
    print_check(check_folder(tmp_path / "in", workers=1))
    printed = capsys.readouterr().out
    assert "without a known side: 1. Name them in a CSV" in printed and "--table sides.csv" in printed
    (tmp_path / "b.dcm").write_bytes(b"\0" * 128 + b"DICM")
    print_check(check_folder(tmp_path / "b.dcm", workers=1))
    printed = capsys.readouterr().out
    assert "files: 1 of 1 without a result\n" in printed and "check.csv" not in printed and "--table" not in printed

"Head CT: from a competition's files to the table of slices, its pictures and its folds."
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from mammo_nb.core.recipes import Recipe
from mammo_nb.core.runs import Run
from mammo_nb.core.settings import NoDataset
from mammo_nb.ich import folds, prepare, recipes
from mammo_nb.ich.reading import competition, phe
from mammo_nb.ich.reading.competition import CompetitionError, read_labels, test_files, training_files, usable
from mammo_nb.ich.reading.inputs import Seen, encoder_inputs
from mammo_nb.ich.reading.squares import filtered_box, head_box, plain_box, read_view, square
from mammo_nb.ich.reading.windows import windowed
from mammo_nb.ich.recipes import CLASSES, View
from mammo_nb.ich.system import system

ROOT = Path(__file__).parents[1]
CT = ROOT.parent / "shared/data/ct"
test_files.__test__ = False
SIZE = 48


def head(z, size=SIZE):
    "HU of a slice of a head in air, brain 30 HU, skull 1000 HU, a hemorrhage of 70 HU at the left."
    y, x = (np.mgrid[:size, :size] + .5) / size * 2 - 1
    r = np.hypot(x, y / .9) + abs(z) / 200
    return np.select([(r < .6) & (x > .35), r < .6, r < .75], [70, 30, 1000], -1000)


def write(path, hu, z, patient="ID_p1", series="ID_s1", tags=None, intercept=-1024, stored=None, without=()):
    "A slice as the competition has them: no Modality needed, ids that are texts."
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2"
    stored = hu - intercept if stored is None else stored
    fields = dict(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", SOPInstanceUID=path.stem, PatientID=patient, Modality="CT",
                  StudyInstanceUID=series.replace("_s", "_t"), SeriesInstanceUID=series,
                  ImagePositionPatient=[-125, -120, z], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                  PixelSpacing=[.5, .5], Rows=hu.shape[0], Columns=hu.shape[1], SamplesPerPixel=1,
                  PhotometricInterpretation="MONOCHROME2", BitsAllocated=16, BitsStored=16, HighBit=15,
                  PixelRepresentation=1, RescaleSlope=1, RescaleIntercept=intercept,
                  PixelData=stored.astype("<i2").tobytes())
    with pydicom.config.disable_value_validation():   # texts as UIDs, as the competition has them
        for name, value in (fields | (tags or {})).items():
            if name not in without:
                setattr(ds, name, value)
        ds.save_as(path, enforce_file_format=True)


def image_id(number):
    "Names that are in no order, as in the competition."
    return "ID_" + hashlib.md5(str(number).encode()).hexdigest()[:9]


@pytest.fixture
def tree(tmp_path):
    "Four patients, one with two series; returns the folder and image ids by (patient, series, number)."
    folder = tmp_path / "raw/heads"
    images = folder / "stage_2_train_images"
    images.mkdir(parents=True)
    ids, rows = {}, []
    for s, (patient, n) in enumerate([("ID_p1", 6), ("ID_p1", 5), ("ID_p2", 6), ("ID_p3", 6), ("ID_p4", 5)]):
        for i in range(n):
            name = ids[patient, s, i] = image_id(100 * s + i)
            write(images / f"{name}.dcm", head(i * 5 - 10), i * 5, patient, f"ID_s{s}")
            sick = int(i in (2, 3) and patient != "ID_p4")
            rows += [(f"{name}_{kind}", sick if kind in ("any", "subdural") else 0) for kind in CLASSES]
    table = pd.DataFrame(rows + rows[:4], columns=["ID", "Label"])
    table.sample(frac=1, random_state=1).to_csv(folder / "stage_2_train.csv", index=False)
    return folder, ids


@pytest.fixture
def run_of(tmp_path, monkeypatch):
    "A run on the data set `heads` below a `raw` of its own."
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MAMMO_NB_RAW", str(tmp_path / "raw"))

    def make(name="run", dataset="heads", **overrides):
        monkeypatch.setitem(system.recipes, "heads", Recipe("test", recipes.Prepare(dataset), skips=("phantom",)))
        return Run.create(tmp_path / name, system, "heads", overrides=overrides)
    return make


def picture(run, name):
    return cv2.imread(str(run.path(f"processed/pictures/{name}.png")), cv2.IMREAD_UNCHANGED)


# ---- labels
def test_labels_are_one_row_a_slice_sorted_and_without_repeated_rows(tree):
    folder, ids = tree
    labels = read_labels(folder / "stage_2_train.csv")
    assert labels.columns.tolist() == ["image_id", *CLASSES] and labels["image_id"].tolist() == sorted(ids.values())
    positive = {name for (patient, _, i), name in ids.items() if i in (2, 3) and patient != "ID_p4"}
    assert set(labels.loc[labels["any"] == 1, "image_id"]) == positive
    assert (labels["subdural"] == labels["any"]).all() and labels["epidural"].sum() == 0


@pytest.mark.parametrize("rows, words", [
    ("ID_a_any,1\nID_a_any,0", "ID_a_any are there twice, with different labels"),
    ("ID_a_any,1", "ID_a lack a class"),
    ("ID_a_bleeding,1", "ID_a_bleeding"),
    ("ID_a_any,", "ID_a_any is neither 0 nor 1"),
    ("any,1", "1 IDs are not"),
])
def test_labels_that_cannot_be_right_are_an_error_that_names_them(tmp_path, rows, words):
    (tmp_path / "t.csv").write_text(f"ID,Label\n{rows}\n")
    with pytest.raises(CompetitionError, match=words):
        read_labels(tmp_path / "t.csv")


# ---- windows and squares
def test_levels_are_fixed_and_do_not_depend_on_the_rest_of_the_slice():
    assert windowed(np.array([[-1000., 0, 40, 80, 300]]))[0].tolist() == [
        [0, 0, 0], [0, 26, 101], [128, 76, 128], [255, 128, 154], [255, 255, 255]]   # 127.5 is rounded to even
    tissue = np.full((4, 4), 40.)
    assert (windowed(tissue) == [128, 76, 128]).all(), "a slice without air is not shifted"


def test_the_box_ignores_a_headrest_and_is_right_on_wide_and_tall_pictures():
    for rows, columns, cy, cx in ((100, 100, 45, 50), (80, 160, 38, 110), (160, 80, 90, 40)):
        y, x = np.mgrid[:rows, :columns]
        shown = np.zeros((rows, columns, 3), np.uint8)
        shown[np.hypot(y - cy, x - cx) < 25] = 90
        alone = plain_box(shown)
        shown[rows - 4:rows - 2] = 60   # a line, 2 pixels thick, thinner than the kernel of 5 pixels
        x0, y0, x1, y1 = head_box(shown)
        kernel = min(rows, columns) // 15
        assert plain_box(shown)[0] == 0 and plain_box(shown)[3] == rows - 2
        inner = np.subtract(alone, (x0, y0, x1, y1))
        assert (inner[:2] >= 0).all() and (inner[2:] <= 0).all(), "the head is inside"
        assert np.abs(inner).max() <= kernel + 1, "and little else"
        assert head_box(shown, faithful=True) == plain_box(shown)
    assert filtered_box(np.pad(shown[60:120], ((0, 0), (90, 0), (0, 0))), limit_by_rows=True)[2] == 60


def test_what_is_thinner_than_the_kernel_is_still_boxed_and_a_blank_picture_is_kept():
    dot = np.zeros((60, 90, 3), np.uint8)
    assert head_box(dot) == head_box(dot, faithful=True) == (0, 0, 90, 60)
    dot[30, 70] = 9
    assert filtered_box(dot) is None and head_box(dot) == (70, 30, 71, 31)


def test_a_view_keeps_proportions_and_starts_at_the_top_left():
    shown = np.full((40, 80, 3), 200, np.uint8)
    view = read_view(shown, (10, 0, 50, 20), 16)
    assert view.shape == (16, 16, 3) and (view[:7] == 200).all() and (view[9:] == 0).all()
    assert (read_view(shown, None, 16)[9:] == 0).all() and (read_view(shown, None, 16, faithful=True) == 200).all()
    assert square(shown, (0, 0, 5, 9)).shape == (9, 9, 3)


# ---- the stage
def test_every_series_is_in_the_order_of_its_positions_with_labels_and_pictures(tree, run_of):
    folder, ids = tree
    run = run_of()
    table = prepare.run_stage(run, workers=1)
    assert len(table) == len(ids) and table["error"].eq("").all() and usable(table).shape == table.shape
    for s in range(5):
        part = table[table["series"] == f"ID_s{s}"]
        assert part["image_id"].tolist() == [name for (_, t, _), name in ids.items() if t == s]
        assert part["place"].tolist() == list(range(len(part))) and part["gap_mm"].iloc[0] == 5
        assert part["any"].tolist() == [int(i in (2, 3) and s != 4) for i in range(len(part))]
    for (_, _, i), name in ids.items():
        assert np.array_equal(picture(run, name), windowed(head(i * 5 - 10)))
    row = table.iloc[2]
    assert (row["x0"], row["y0"], row["x1"], row["y1"]) == head_box(windowed(head(0)))


def test_files_that_fail_or_are_no_slices_stay_in_the_table(tree, run_of):
    folder, ids = tree
    images = folder / "stage_2_train_images"
    names = [ids["ID_p2", 2, i] for i in range(6)]
    whole = (images / f"{names[0]}.dcm").read_bytes()
    (images / f"{names[0]}.dcm").write_bytes(whole[:-500])
    (images / f"{names[1]}.dcm").unlink()
    write(images / f"{names[5]}.dcm", head(0).T, 60, "ID_p2", "ID_s2",
          {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})
    write(images / "ID_nolabel.dcm", head(3), 2.5, "ID_p2", "ID_s2")
    (images / "Thumbs.db").write_text("no image")
    run = run_of()
    table = prepare.run_stage(run, workers=1).set_index("image_id")
    assert table.loc[names[0], "error"].startswith("CorruptPixels") and table.loc[names[0], "any"] == 0
    assert table.loc[names[1], "error"] == "Missing: no such file in stage_2_train_images"
    assert "localizer" in table.loc[names[5], "note"] and np.isnan(table.loc[names[5], "place"])
    assert table.loc["ID_nolabel", "error"].startswith("NoLabel") and table.loc["Thumbs", "note"] == "no DICOM file"
    left = usable(table.reset_index())
    assert left.loc[left["series"] == "ID_s2", "image_id"].tolist() == names[2:5]
    folded = folds.run_stage(run_of("run", **{"folds.n_folds": 3}))
    assert len(folded) == len(left) and folded["error"].eq("").all()


def test_missing_tags_do_not_stop_the_table(tree, run_of):
    folder, ids = tree
    optional = ("Modality", "RescaleSlope", "RescaleIntercept", "StudyInstanceUID", "PatientID", "SOPInstanceUID",
                "SOPClassUID", "ImageOrientationPatient", "PixelSpacing")
    for k, tag in enumerate(optional):
        name = ids["ID_p3", 3, k % 6] if k < 6 else ids["ID_p4", 4, k - 6]
        patient, s = ("ID_p3", 3) if k < 6 else ("ID_p4", 4)
        write(folder / f"stage_2_train_images/{name}.dcm", head(0) + 0, 5 * (k % 6), patient, f"ID_s{s}",
              intercept=0 if tag == "RescaleIntercept" else -1024, without=(tag, ))
    table = prepare.run_stage(run_of(), workers=1)
    assert table["error"].eq("").all() and len(usable(table)) == len(ids)
    assert table["patient_id"].ne("").all() and table["note"].str.contains("no PatientID").sum() == 1


def test_a_lost_intercept_is_repaired_also_where_the_slice_cannot_show_it(tree, run_of):
    folder, ids = tree
    hu = [head(0), head(0), head(0), head(0), np.full((SIZE, SIZE), -1000)]
    for i in range(5):
        write(folder / f"stage_2_train_images/{ids['ID_p4', 4, i]}.dcm", hu[i], 5 * i, "ID_p4", "ID_s4", intercept=0,
              stored=hu[i] + 1024)
    write(folder / f"stage_2_train_images/{ids['ID_p4', 4, 4]}.dcm", hu[4], 20, "ID_p4", "ID_s4", intercept=0,
          stored=np.full((SIZE, SIZE), 1064))   # brain from edge to edge: nothing in it says that 1024 was added
    run = run_of()
    table = prepare.run_stage(run, workers=1).set_index("image_id")
    assert np.array_equal(picture(run, ids["ID_p4", 4, 0]), windowed(head(0)))
    assert (picture(run, ids["ID_p4", 4, 4]) == [128, 76, 128]).all(), "40 HU"
    assert "1024" in table.loc[ids["ID_p4", 4, 4], "note"]
    faithful = run_of("faithful", **{"prepare.faithful": True})
    prepare.run_stage(faithful, workers=1)
    # the original repairs nothing: all tissue is above every window, and air of 24 is 0.3, 0.22 and 0.458 of them
    assert (picture(faithful, ids["ID_p4", 4, 0])[head(0) >= 0] == [178, 198, 138]).all()


def test_faithful_sorts_by_x_then_y_then_z_and_keeps_doubled_positions(tree, run_of):
    folder, ids = tree
    names = [ids["ID_p2", 2, i] for i in range(6)]
    for i, (name, x) in enumerate(zip(names, (0, 3, 1, 1, 5, -2))):
        at = [x, -120, 20 if i in (2, 3) else 10 * i]
        write(folder / f"stage_2_train_images/{name}.dcm", head(i), 0, "ID_p2", "ID_s2", {"ImagePositionPatient": at})
    run = run_of(**{"prepare.faithful": True})
    part = prepare.run_stage(run, workers=1).query("series == 'ID_s2'")
    assert part["place"].tolist() == list(range(6)), "both slices of the doubled position have a place"
    order = part["image_id"].tolist()
    assert [order[0], order[1], set(order[2:4]), order[4], order[5]] == [
        names[5], names[0], {names[2], names[3]}, names[1], names[4]]


def test_a_killed_run_continues_and_gives_the_same_bytes(tree, run_of, tmp_path):
    folder, ids = tree
    images = folder / "stage_2_train_images"
    for key, name in ids.items():   # larger, so that there is time to kill
        write(images / f"{name}.dcm", head(key[2] * 5 - 10, 256), key[2] * 5, key[0], f"ID_s{key[1]}")
    whole = run_of("whole")
    prepare.run_stage(whole, workers=1)
    run = run_of("killed")
    code = ("import sys; from mammo_nb.core.recipes import Recipe; from mammo_nb.core.runs import Run; "
            "from mammo_nb.ich import prepare, recipes; from mammo_nb.ich.system import system; "
            "system.recipes['heads'] = Recipe('test', recipes.Prepare('heads'), skips=('phantom',)); "
            "prepare.run_stage(Run.open(sys.argv[1]), workers=1)")
    process = subprocess.Popen([sys.executable, "-c", code, str(run.folder)], cwd=ROOT, stderr=subprocess.DEVNULL,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})
    journal = run.path("processed/files.csv.journal")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not journal.exists() or journal.read_bytes().count(b'"item"') < 4):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = journal.read_bytes().count(b'"item"')
    assert 4 <= finished < len(ids) and not run.path("processed/slices.csv").exists()
    before = {p.name: p.stat().st_mtime_ns for p in run.path("processed/pictures").glob("ID*.png")}
    prepare.run_stage(run, workers=1)
    again = {p.name: p.stat().st_mtime_ns for p in run.path("processed/pictures").iterdir()}
    assert sum(again[name] == stamp for name, stamp in before.items()) >= finished, "finished files are not read again"
    assert not list(run.path("processed/pictures").glob(".*"))
    for name in ["slices.csv", *(f"pictures/{i}.png" for i in ids.values())]:
        assert run.path(f"processed/{name}").read_bytes() == whole.path(f"processed/{name}").read_bytes(), name
    assert json.loads((run.folder / "manifest.json").read_text())["stages"]["prepare"]["results"]["slices"] == len(ids)


def test_two_files_of_one_name_are_an_error(tree, run_of):
    folder, ids = tree
    name = ids["ID_p1", 0, 0]
    (folder / "stage_2_train_images/more").mkdir()
    write(folder / f"stage_2_train_images/more/{name}.dcm", head(9), 99, "ID_p9", "ID_s9")
    with pytest.raises(CompetitionError, match=name):
        prepare.run_stage(run_of(), workers=1)


# ---- where the files are
def test_the_files_of_a_run_in_both_layouts_and_the_errors_of_absent_ones(tree, run_of, tmp_path):
    folder, _ = tree
    (folder / "stage_2_test_images").mkdir()
    run = run_of()
    assert training_files(run) == ["raw/heads/stage_2_train.csv", "raw/heads/stage_2_train_images/"]
    assert test_files(run) == ["raw/heads/stage_2_sample_submission.csv", "raw/heads/stage_2_test_images/"]
    (folder / "stage_2_test_images").rename(folder / "stage_2_test")
    assert test_files(run)[1] == "raw/heads/stage_2_test/"
    assert competition.images_folder(folder, "test").name == "stage_2_test"
    (folder / "stage_2_test").rmdir()
    with pytest.raises(CompetitionError, match="No stage_2_test_images and no stage_2_test in"):
        test_files(run)
    with pytest.raises(NoDataset, match="No folder tails in"):
        training_files(run_of("other", dataset="tails"))
    drawn = Run.create(tmp_path / "drawn", system, "demo")
    assert training_files(drawn) == ["competition/stage_2_train.csv", "competition/stage_2_train_images/"]


# ---- given pictures
@pytest.fixture
def given(tmp_path):
    "Two patients of a data set of pictures; slice 10 follows slice 9."
    folder = tmp_path / "raw/pictures"
    (folder / "img").mkdir(parents=True)
    rows = ["patient,slice,file,positive"]
    for patient in ("0002", "7"):
        for n in (10, 9, 8):
            grey = np.zeros((32, 40), np.uint8)
            grey[5:20, 10:20] = 50 + n
            cv2.imwrite(str(folder / f"img/{patient}_{n}.png"), grey)
            rows.append(f"{patient},{n},{patient}_{n}.png,{int(n == 10)}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_given_pictures_become_the_same_table(given, run_of):
    (given / "img/7_9.png").write_bytes(b"no picture")
    run = run_of(dataset="pictures")
    assert training_files(run) == ["raw/pictures/labels.csv", "raw/pictures/img/"]
    table = prepare.run_stage(run, workers=1)
    assert table.columns.tolist()[:3] == ["patient_id", "study", "series"] and "subdural" not in table
    assert table["image_id"].tolist() == ["0002_8", "0002_9", "0002_10", "7_8", "7_9", "7_10"]
    assert table["position_mm"].tolist() == [8, 9, 10] * 2 and table["any"].tolist() == [0, 0, 1] * 2
    assert table["error"].ne("").tolist() == [False] * 4 + [True, False] and table["error"][4].startswith("PheError")
    assert table[["rows", "columns"]].iloc[0].tolist() == [40, 32]
    # turned clockwise: the left column becomes the upper row, and the upper row the right column
    assert (picture(run, "0002_8")[10:20, 12:27] == 58).all() and not picture(run, "0002_8")[:10].any()
    assert picture(run, "0002_8").shape == (40, 32, 3)
    assert recipes.classes_of(table) == ("any", ) and table["patient_id"].tolist()[0] == "0002"


def test_one_box_holds_the_heads_of_all_slices_of_a_series_in_training_and_in_prediction(given, run_of):
    for n, (top, bottom) in ((8, (2, 18)), (9, (5, 25)), (10, (0, 0))):   # the last slice is empty
        grey = np.zeros((32, 40), np.uint8)
        grey[top:bottom, 8:30] = 90
        cv2.imwrite(str(given / f"img/7_{n}.png"), grey)
    each, common = (prepare.run_stage(run_of(dataset="pictures", **{"prepare.box": box}), workers=1).set_index(
        "image_id")[["x0", "y0", "x1", "y1"]].astype(int) for box in ("slice", "series"))
    assert each.loc["7_10"].tolist() == [0, 0, 32, 40] and each.loc["7_8"].tolist() != each.loc["7_9"].tolist()
    two = each.loc[["7_8", "7_9"]]
    expected = [*two[["x0", "y0"]].min(), *two[["x1", "y1"]].max()]
    assert common.loc[["7_8", "7_9", "7_10"]].values.tolist() == [expected] * 3
    settings = Seen(24, (View(),), box="series", given=True)
    pictures = [phe.read_picture(given, f"img/7_{n}.png") for n in (8, 9, 10)]
    seen = encoder_inputs(pictures, settings)["windows_crop"]
    for made, picture_ in zip(seen, pictures):
        np.testing.assert_array_equal(made, read_view(picture_, expected, 24).transpose(2, 0, 1))


def test_a_wrong_row_of_given_pictures_is_an_error_that_shows_it(given):
    text = (given / "labels.csv").read_text()
    for wrong, words in (("7,9,7_9b.png,0", "there twice"), ("7,x,7_x.png,0", "row 8"), ("7,1,7_1.png,yes", "row 8")):
        (given / "labels.csv").write_text(f"{text}{wrong}\n")
        with pytest.raises(phe.PheError, match=words):
            phe.read_slices(given)


@pytest.mark.skipif(not (CT / "head_ich_phe_256").is_dir(), reason="needs ../shared/data/ct/head_ich_phe_256")
def test_the_real_pictures_are_all_read():
    table = phe.read_slices(CT / "head_ich_phe_256")
    assert table["patient_id"].nunique() == 60 and len(table) == 1733
    assert phe.read_picture(CT / "head_ich_phe_256", table["file"][0]).shape == (256, 256, 3)


# ---- folds
def test_folds_keep_patients_together_in_both_methods(tree, run_of):
    prepare.run_stage(run_of(), workers=1)
    for method in ("original", "stratified"):
        table = folds.run_stage(run_of("run", **{"folds.method": method, "folds.n_folds": 3}))
        assert set(table["fold"]) <= {0, 1, 2} and (table.groupby("patient_id")["fold"].nunique() == 1).all()
        again = folds.run_stage(run_of("run", **{"folds.method": method, "folds.n_folds": 3}))
        assert again.equals(table)
    table = folds.run_stage(run_of("run", **{"folds.method": "original", "folds.n_folds": 3}))
    names = sorted(table["image_id"])
    for _, part in table.groupby("patient_id"):
        assert part["fold"].iloc[0] == names.index(min(part["image_id"])) % 3


def test_an_image_left_out_of_its_series_counts_for_the_original_folds():
    rows = pd.DataFrame({"image_id": list("abcd"), "patient_id": list("ppqr"), "error": ["", "", "", "x"],
                         "place": [np.nan, 0, 0, 0], "any": [0, 1, 0, 0]})
    table = folds.split(rows, 2, "original")
    assert dict(zip(table["image_id"], table["fold"])) == {"b": 0, "c": 0}


# ---- real scan
@pytest.mark.skipif(not (CT / "head_ge_28").is_dir(), reason="needs ../shared/data/ct/head_ge_28")
def test_a_real_head_is_ordered_along_its_normal_whatever_the_names_are(run_of, tmp_path):
    images = tmp_path / "raw/heads/stage_2_train_images"
    images.mkdir(parents=True)
    files = sorted((CT / "head_ge_28").glob("*.dcm"))
    names = [image_id(i) for i in range(len(files))]
    heights = []
    for name, path in zip(names, files):
        shutil.copy(path, images / f"{name}.dcm")
        ds = pydicom.dcmread(path)
        normal = np.cross(ds.ImageOrientationPatient[:3], ds.ImageOrientationPatient[3:])
        heights.append(float(normal @ np.array(ds.ImagePositionPatient, float)))
    pd.DataFrame([(f"{n}_{c}", 0) for n in names for c in CLASSES], columns=["ID", "Label"]).to_csv(
        tmp_path / "raw/heads/stage_2_train.csv", index=False)
    run = run_of()
    table = prepare.run_stage(run, workers=1)
    assert table["error"].eq("").all() and table["image_id"].tolist() == [names[i] for i in np.argsort(heights)]
    np.testing.assert_allclose(table["position_mm"], sorted(heights), atol=1e-3)
    middle = files[14]
    ds = pydicom.dcmread(middle)
    hu = np.maximum(ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept), -1000)
    assert np.array_equal(picture(run, names[14]), windowed(hu))

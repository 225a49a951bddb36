"""mammo/reading/published, own and sources: every label rule on a small folder in the published layout, PNG and JPEG,
external sets, and the published numbers if the tables are available."""
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import ROOT, SHARED
from pydicom.uid import ExplicitVRLittleEndian
from typer.testing import CliRunner

from mammo_nb.cli import app
from mammo_nb.core.dicom import find_files, read_frame, read_header, read_image
from mammo_nb.core.folds import RULES, LeakageError, assign_folds
from mammo_nb.core.headers import BadHeader, CorruptPixels, MultiFrame, NotDicom
from mammo_nb.core.recipes import Recipe
from mammo_nb.core.runs import Run, read_manifest
from mammo_nb.core.windows import WindowError
from mammo_nb.mammo import crops, datasets, folds, recipes
from mammo_nb.mammo.crops import crop_files, cut_breast
from mammo_nb.mammo.datasets import combine, place_of, read_set, unify
from mammo_nb.mammo.drawing.machines import write_dicom
from mammo_nb.mammo.folds import EXTERNAL, expectations, split, spread
from mammo_nb.mammo.reading import faithful, published
from mammo_nb.mammo.reading.boxes import find_box, frame_view
from mammo_nb.mammo.reading.labels import DatasetError
from mammo_nb.mammo.reading.sources import READERS, how_to_get, label_table, totals
from mammo_nb.mammo.recipes import Crops
from mammo_nb.mammo.system import system
from mammo_nb.mammo.tools.check import check_dataset, print_check
from mammo_nb.mammo.tools.crops import crop_folder
from mammo_nb.mammo.tools.smaller import copy_cbis
from mammo_nb.mammo.reading.sides import read_sides

ASSETS = SHARED / "winner_assets"
CBIS = SHARED / "mammo/cbis_ddsm_mass_256"


@pytest.fixture
def assets():
    if not ASSETS.is_dir():
        pytest.skip("needs the published label tables in ../shared/data/winner_assets")
    return ASSETS


# ---- small folders in the published layouts
def disc(rows=64, columns=48, top=2000, dtype=np.uint16, shade=0.0):
    "A breast, which is darker towards the skin by the share `shade`."
    y, x = np.mgrid[:rows, :columns]
    distance = np.hypot(x, y - rows / 2) / (columns * .6)
    return ((distance < 1) * (1 - shade * distance) * top + (x + y) % 7).astype(dtype)


def dicom(path, laterality="L", view="CC", pixels=None, bits=12, windows=((2048, 4096),), voi_function=""):
    write_dicom(path,
                disc() if pixels is None else pixels, patient_id="p", image_id=path.stem, laterality=laterality,
                view=view, syntax=ExplicitVRLittleEndian, photometric="MONOCHROME2", bits_stored=bits, windows=windows,
                voi_function=voi_function)


def picture(path, pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), disc(top=50_000) if pixels is None else pixels)


def table(path, columns, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows, columns=columns.split("|"))
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_excel(path, index=False, sheet_name="all")


def rsna(root):
    table(
        root / "train.csv",
        "site_id|patient_id|image_id|laterality|view|age|cancer|biopsy|invasive|BIRADS|implant|density|machine_id|"
        "difficult_negative_case",
        (2, 10130, 613462606, "R", "MLO", 71, 1, 1, 0, "", 0, "B", 21, False),
        (2, 10130, 388811999, "R", "CC", 71, 1, 1, 0, "", 0, "B", 21, False),
        (1, 10006, 462822612, "L", "CC", 61, 0, 0, 0, 2, 1, "C", 29, True))
    for p, i in ((10130, 613462606), (10130, 388811999), (10006, 462822612)):
        dicom(root / f"train_images/{p}/{i}.dcm")


def vindr(root):
    rows = [("8986c1", f"b{k}", "LR"[k % 2], ("CC", "MLO")[k // 2], f"BI-RADS {5 if k % 2 else 4}", "DENSITY C")
            for k in range(4)] + [("00be", f"c{k}", "LR"[k % 2], ("CC", "MLO")[k // 2], "BI-RADS 1", "DENSITY A")
                                  for k in range(4)]
    table(root / "breast-level_annotations.csv",
          "study_id|series_id|image_id|laterality|view_position|height|width|breast_birads|breast_density|split",
          *((s, "x", i, side, v, 64, 48, b, d, "training") for s, i, side, v, b, d in rows))
    table(root / "metadata.csv", "SOP Instance UID|Patient's Age|Manufacturer", ("b0", "053Y", "IMS"),
          ("b1", "053Y", "IMS"), ("c0", "", "IMS"))
    for s, i, *_ in rows:
        dicom(root / f"images/{s}/{i}.dicom")


MASK = "Cancer\\1001\\C_1001_1.RIGHT_CC_Mask.png"


def miniddsm(root, change=lambda rows: rows):
    patients = [("C_1001_1", "Cancer", MASK, 3), ("B_3001_1", "Benign", MASK.replace("Cancer", "Benign"), 1),
                ("A_2011_1", "Normal", "-", 0)]
    rows = []
    for patient, status, contour, density in patients:
        for side in ("LEFT", "RIGHT"):
            for view in ("CC", "MLO"):
                drawn = contour if (side, view) == ("RIGHT", "CC") else "-"
                rows.append((f"{patient}.{side}_{view}.png", view, side, status, drawn, "-", 57, density))
    table(root / "Data-MoreThanTwoMasks/Data-MoreThanTwoMasks.xlsx",
          "fileName|View|Side|Status|Tumour_Contour|Tumour_Contour2|Age|Density", *change(rows))
    for name, _, _, status, *_ in rows:
        picture(root / f"MINI-DDSM-Complete-PNG-16/{status}/{name.split('_')[1]}/{name}")


def cmmd(root):
    table(root / "label.csv", "ID1|LeftRight|Age|number|abnormality|classification|subtype",
          ("D2-0111", "R", 44, 2, "mass", "Malignant", "Luminal A"),
          ("D1-0002", "L", 40, 2, "calcification", "Benign", ""))
    for patient, sides in (("D2-0111", "LRRL"), ("D1-0002", "LL")):
        for n, side in enumerate(sides, 1):
            dicom(root / f"CMMD/{patient}/07-18-2010-49690/1.000000-35817/1-{n}.dcm", side, ("CC", "MLO")[n % 2])


def cddcesm(root, change=lambda rows: rows):
    rows = [(39, 55, "R", "DM", "CC", "B", " P39_R_DM_CC", "Malignant"),
            (39, 55, "R", "DM", "MLO", "B", "P39_R_DM_MLO ", "Normal"),
            (39, 55, "R", "CESM", "CC", "B", "P39_R_CM_CC", "Malignant"),
            (281, 61, "L", "DM", "MLO", "", "P281_L_DM_MLO2", "Benign")]
    table(root / "Radiology manual annotations.xlsx",
          "Patient_ID|Age|Side|Type|View|Breast density (ACR)|Image_name|Pathology Classification/ Follow up",
          *change(rows))
    for name in ("P39_R_DM_CC", "P39_R_DM_MLO", "P281_L_DM_MLO2"):
        picture(root / f"Low energy images of CDD-CESM/{name}.jpg", disc(top=200, dtype=np.uint8))
    picture(root / "Subtracted images of CDD-CESM/P39_R_CM_CC.jpg", disc(top=200, dtype=np.uint8))


def bmcd(root):
    table(root / "label.csv", "dir|laterality|age|density|BIRADS|biopsy_result|folder_type",
          (1, "Right", 57, "b", "5", "DCIS", "suspicious"), (3, "Left", 64, "c", "4a", "MALIGNANT", "suspicious"),
          (4, "Left", 64, "c", "4a", "BENIGN", "suspicious"),
          (43, "Left", 50, "d", "4a", "NOT AVAILABLE", "suspicious"), (1, "Left", 66, "a", "1", "", "normal"))
    for place, ending in (("Suspicious_cases/1", "dcm"), ("Suspicious_cases/3", "DCM"), ("Suspicious_cases/4", "dcm"),
                          ("Suspicious_cases/43", "DCM"), ("Normal_cases/1", "dcm")):
        for name in ("CC_recent", "CC_prior", "MLO_recent", "MLO_prior"):
            dicom(root / f"Dataset/{place}/{name}.{ending}")
            picture(root / f"Dataset/{place}/{name}_GT.jpg", disc(top=200, dtype=np.uint8))


def own(root):
    table(root / "labels.csv", "file|patient_id|laterality|view|cancer|age|colour",
          ("01.png", "007", "left", "cc", 1, 61, "red"), ("02.jpg", "007", "L", "MLO", 1, 61, "red"),
          ("03.dcm", "008", "R", "CC", 0, 54, "blue"))
    for name in ("01.png", "02.jpg"):
        for place in ("img", "mask"):
            picture(root / place / name, disc(top=200, dtype=np.uint8))
    dicom(root / "img/03.dcm")


CBIS_COLUMNS = ("patient_id|breast_density|left or right breast|image view|abnormality id|assessment|pathology|"
                "image file path|cropped image file path|ROI mask file path")
LESIONS = ((30, 10), (40, 16))  # row and column of the first and of the second finding of a film


def film(*lesions):
    "A film of a left breast with bright lesions, and the mask of each."
    y, x = np.mgrid[:64, :48]
    masks = [np.hypot(y - r, x - c) < 5 for r, c in lesions]
    pixels = 200 * (np.hypot(x, y - 32) < 30) + sum(300 * m for m in masks)
    return pixels.astype(np.uint16), [np.uint8(255 * m) for m in masks]


def cbis(root, layout="tcia", kinds=("mass", "calc")):
    """CBIS-DDSM: P_00001 has one malignant mass in CC and two benign ones in MLO, P_00002 a benign mass in a right
    breast. P_00003 has a mass in the training table and a calcification in the test table, so it is a test patient."""
    films = [("mass", "train", "P_00001", "LEFT", "CC", ("MALIGNANT",)),
             ("mass", "train", "P_00001", "LEFT", "MLO", ("BENIGN", "BENIGN_WITHOUT_CALLBACK")),
             ("mass", "train", "P_00002", "RIGHT", "CC", ("BENIGN",)),
             ("mass", "train", "P_00003", "LEFT", "CC", ("BENIGN",)),
             ("calc", "test", "P_00003", "LEFT", "CC", ("MALIGNANT",))]
    tables = {}
    for n, (kind, part, patient, side, view, pathologies) in enumerate(films):
        pixels, masks = film(*LESIONS[:len(pathologies)])
        case = f"{kind.title()}-{'Training' if part == 'train' else 'Test'}_{patient}_{side}_{view}"
        if side == "RIGHT":
            pixels, masks = pixels[:, ::-1], [m[:, ::-1] for m in masks]
        frame = f"{case}/1.1.{n}/1.2.{n}/000000.dcm"
        store(root, layout, frame, 1, pixels)
        for k, (pathology, mask) in enumerate(zip(pathologies, masks)):
            cut, roi = (f"{case}_{k + 1}/1.3.{n}{k}/1.4.{n}{k}/{name}.dcm" for name in ("000000", "000001"))
            if layout == "kaggle":  # where mask and cut-out have series of their own; the paths are exchanged
                cut, roi = roi.replace("/1.4", "/1.5"), cut
            store(root, layout, roi, 1, pixels[20:40, 5:25])
            store(root, layout, cut, 2, mask)
            tables.setdefault((kind, part), []).append(
                (patient, 3, side, view, k + 1, 4, pathology, frame, cut, f"{roi}\n"))
    for (kind, part), rows in tables.items():
        if kind in kinds:
            place = root / "csv" if layout == "kaggle" else root
            names = CBIS_COLUMNS if kind == "mass" else CBIS_COLUMNS.replace("breast_density", "breast density")
            table(place / f"{kind}_case_description_{part}_set.csv", names, *rows)


def store(root, layout, path, number, pixels):
    "Write an image of CBIS-DDSM where TCIA's retrievers or Kaggle put it."
    case, study, series, _ = path.split("/")
    if layout == "kaggle":
        return picture(root / f"jpeg/{series}/{number}-123.jpg", np.uint8(np.minimum(pixels, 255)))
    folder = f"CBIS-DDSM/{case}/{study}/{series}" if layout == "tcia" else (
        f"manifest-1/CBIS-DDSM/{case}/07-20-2016-DDSM-NA-1/1.000000-images-2")
    return dicom(root / folder / f"1-{number}.dcm", pixels=pixels.astype(np.uint16), bits=16, windows=())


TREES = {
    "rsna-breast-cancer-detection": rsna, "vindr": vindr, "miniddsm": miniddsm, "cmmd": cmmd, "cddcesm": cddcesm,
    "bmcd": bmcd, "cbis": cbis, "own": own
}


def read(name, root, **how):
    TREES[name](root, **how)
    return read_set(name, root)


# ---- the rules
def test_rsna_is_as_published(tmp_path):
    found = read("rsna-breast-cancer-detection", tmp_path)
    assert found["cancer"].tolist() == [1, 1, 0] and found["implant"].tolist() == [0, 0, 1]
    assert found["patient_id"].tolist() == ["10130", "10130", "10006"]
    assert found["file"][0] == "train_images/10130/613462606.dcm" and found["site_id"].tolist() == ["2", "2", "1"]


def test_vindr_only_birads_5_is_positive(tmp_path):
    found = read("vindr", tmp_path)
    assert dict(zip(found["image_id"],
                    found["cancer"])) == {"b0": 0, "b1": 1, "b2": 0, "b3": 1, "c0": 0, "c1": 0, "c2": 0, "c3": 0}
    assert found["BIRADS"].tolist() == [4, 5, 4, 5, 1, 1, 1, 1] and found["density"].tolist() == list("CCCCAAAA")
    assert found["file"][0] == "images/8986c1/b0.dicom"
    assert found["age"].tolist()[:2] == [53, 53] and found["age"][2:].isna().all()


def test_vindr_unknown_birads_and_views_that_disagree_are_refused(tmp_path):
    vindr(tmp_path)
    labels = pd.read_csv(tmp_path / "breast-level_annotations.csv")
    for column, value, message in (
            ("breast_birads", "BIRADS V", "breast_birads that is unknown, such as 'BIRADS V' in row 2"),
            ("breast_birads", "BI-RADS 5", "images of one breast disagree"),
            ("laterality", "B", "neither L nor R"),
    ):
        changed = labels.copy()
        changed.loc[0, column] = value
        changed.to_csv(tmp_path / "breast-level_annotations.csv", index=False)
        with pytest.raises(DatasetError, match=message):
            read_set("vindr", tmp_path)


def test_miniddsm_a_contour_on_any_image_of_the_side_of_a_patient_with_cancer(tmp_path):
    found = read("miniddsm", tmp_path)
    assert len(found) == 12
    assert set(found.loc[found["cancer"] == 1, "image_id"]) == {"C_1001_1_RIGHT_CC", "C_1001_1_RIGHT_MLO"}
    assert found["file"][0] == "MINI-DDSM-Complete-PNG-16/Cancer/1001/C_1001_1.LEFT_CC.png"
    assert (tmp_path / found["file"][0]).is_file()
    assert found["density"].tolist() == list("CCCCAAAAAAAA") and (found["age"] == 57).all()
    assert found["laterality"].tolist()[:4] == list("LLRR") and set(found["scaling"]) == {"percentile"}


@pytest.mark.parametrize("contour, ill", [("12345", 0), ("123456", 1), ("-", 0), (None, 0)])
def test_miniddsm_a_contour_has_more_than_five_characters(tmp_path, contour, ill):
    found = read("miniddsm", tmp_path,
                 change=lambda rows: [(*r[:4], contour if r[4] == MASK else "-", *r[5:]) for r in rows])
    assert found["cancer"].sum() == 2 * ill


def test_miniddsm_other_names_and_statuses_are_refused(tmp_path):
    miniddsm(tmp_path)
    for change, message in (
            (lambda rows: [("scan.png", *rows[0][1:])], "not of the form"),
            (lambda rows: [(*rows[0][:3], "cancer", *rows[0][4:])], "Status that is unknown, such as 'cancer'"),
    ):
        with pytest.raises(DatasetError, match=message):
            read("miniddsm", tmp_path, change=change)


def test_cmmd_a_breast_that_the_labels_leave_out_is_normal(tmp_path):
    found = read("cmmd", tmp_path)
    assert list(zip(found["image_id"], found["laterality"], found["cancer"])) == [
        ("D1-0002_1-1", "L", 0), ("D1-0002_1-2", "L", 0), ("D2-0111_1-1", "L", 0),
        ("D2-0111_1-2", "R", 1), ("D2-0111_1-3", "R", 1), ("D2-0111_1-4", "L", 0)]
    assert found["view"].tolist() == ["MLO", "CC", "MLO", "CC", "MLO", "CC"]
    assert found["age"].tolist() == [40, 40, 44, 44, 44, 44]
    (tmp_path / "label.csv").unlink()
    table(tmp_path / "CMMD_clinicaldata_revision.xlsx", "ID1|LeftRight|Age|classification",
          ("D2-0111", "R", 44, "Malignant"))
    assert read_set("cmmd", tmp_path)["cancer"].tolist() == [0, 0, 0, 1, 1, 0]


def test_cmmd_what_cannot_be_labelled_is_an_error(tmp_path):
    cmmd(tmp_path)
    patient = tmp_path / "CMMD/D2-0111/07-18-2010-49690"
    (patient / "second").mkdir()
    with pytest.raises(DatasetError, match="has 2 folders, one is expected"):
        read_set("cmmd", tmp_path)
    (patient / "second").rmdir()
    path = patient / "1.000000-35817/1-2.dcm"
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    with pytest.raises(DatasetError, match="1 files have no readable header.*1-2.dcm"):
        read_set("cmmd", tmp_path)
    path.write_bytes(whole)
    shutil.rmtree(tmp_path / "CMMD/D1-0002")
    with pytest.raises(DatasetError, match="1 breasts of the labels have no image, such as D1-0002 L"):
        read_set("cmmd", tmp_path)
    labels = pd.read_csv(tmp_path / "label.csv")
    pd.concat([labels, labels.head(1)]).to_csv(tmp_path / "label.csv", index=False)
    with pytest.raises(DatasetError, match="D2-0111 R is in two rows"):
        read_set("cmmd", tmp_path)


def test_cddcesm_only_low_energy_and_each_image_on_its_own(tmp_path):
    found = read("cddcesm", tmp_path)
    assert found[["image_id", "patient_id", "laterality", "view", "cancer"]].values.tolist() == [
        ["P39_R_CC", "P39", "R", "CC", 1], ["P39_R_MLO", "P39", "R", "MLO", 0], ["P281_L_MLO2", "P281", "L", "MLO", 0]]
    assert all((tmp_path / f).is_file() for f in found["file"]) and found["age"].tolist() == [55, 55, 61]
    assert found["density"].isna().tolist() == [False, False, True]
    with pytest.raises(DatasetError, match="Pathology.* unknown, such as ''"):
        read("cddcesm", tmp_path, change=lambda rows: [(*rows[0][:-1], "")])
    with pytest.raises(DatasetError, match="images of one breast disagree.*can be an external set"):
        cddcesm(tmp_path)
        read_set("cddcesm", tmp_path, validated=True)


def test_bmcd_a_prior_is_never_positive_and_a_case_without_result_is_left_out(tmp_path):
    found = read("bmcd", tmp_path)
    positive = found.loc[found["cancer"] == 1, "image_id"].tolist()
    assert positive == [
        "suspicious_1CC_recent", "suspicious_1MLO_recent", "suspicious_3CC_recent", "suspicious_3MLO_recent"
    ]
    assert set(found["patient_id"]) == {"suspicious_1", "suspicious_3", "suspicious_4", "normal_1"}
    assert len(found) == 16 and all((tmp_path / f).is_file() for f in found["file"])
    assert found.loc[0, ["laterality", "density", "age", "BIRADS"]].tolist() == ["R", "B", 57, "5"]
    with pytest.raises(DatasetError, match="bmcd can be an external set"):
        read_set("bmcd", tmp_path, validated=True)


def test_bmcd_a_missing_file_stays_in_the_table(tmp_path):
    bmcd(tmp_path)
    (tmp_path / "Dataset/Normal_cases/1/CC_prior.dcm").unlink()
    found = read_set("bmcd", tmp_path)
    assert len(found) == 16 and "Dataset/Normal_cases/1/CC_prior.dcm" in found["file"].tolist()


# ---- own data sets
@pytest.mark.parametrize("layout", ["tcia", "manifest", "kaggle"])
def test_cbis_is_the_training_split_with_labels_of_the_breast(tmp_path, layout):
    found = read("cbis", tmp_path, layout=layout)
    assert found["image_id"].tolist() == ["P_00001_L_CC", "P_00001_L_MLO", "P_00002_R_CC"]  # P_00003 is tested
    assert found["cancer"].tolist() == [1, 1, 0] and set(found["density"]) == {"C"}
    assert all((tmp_path / file).is_file() for file in found["file"])
    # two masses on a film have two masks, of which one alone would call the other healthy
    assert found["mask"].notna().tolist() == [True, False, True]
    for row in found[found["mask"].notna()].itertuples():
        frame, mask = (read_image(tmp_path / file).pixels for file in (row.file, row.mask))
        assert frame.shape == mask.shape == (64, 48) and (mask[frame < 150] < 100).all() and mask.max() > 200


def test_cbis_of_masses_alone_is_enough_and_a_lost_film_stays_in_the_table(tmp_path):
    cbis(tmp_path, kinds=("mass",))
    shutil.rmtree(tmp_path / "CBIS-DDSM/Mass-Training_P_00002_RIGHT_CC")
    found = read_set("cbis", tmp_path)
    assert found["patient_id"].tolist() == ["P_00001", "P_00001", "P_00002", "P_00003"]
    assert found["file"][2] == "CBIS-DDSM/Mass-Training_P_00002_RIGHT_CC/1.1.2/1.2.2/1-1.dcm"
    assert (tmp_path / found["file"][3]).is_file() and found["mask"].isna().tolist() == [False, True, True, False]


@pytest.mark.parametrize("layout", ["tcia", "kaggle"])
def test_the_smaller_copy_of_cbis_is_an_own_set(tmp_path, layout):
    cbis(tmp_path / "cbis", layout)
    labels = copy_cbis(tmp_path / "cbis", tmp_path / "small", size=32, workers=1)
    found = read_set("small", tmp_path / "small", validated=True)
    assert found["file"].tolist() == [f"img/{name}" for name in labels["file"]] and found["mask"].notna().all()
    assert found["cancer"].tolist() == [1, 1, 0, 0] and labels["findings"].tolist() == [1, 2, 1, 1]
    left, both, right, _ = (cv2.imread(str(tmp_path / "small" / row.file), 0) for row in found.itertuples())
    assert left.shape == (32, 32) and np.abs(left.astype(int) - right).max() <= 2  # a right breast is mirrored
    masks = [cv2.imread(str(tmp_path / "small" / mask), 0) for mask in found["mask"]]
    assert all(set(np.unique(mask)) == {0, 255} for mask in masks)
    for row, column in LESIONS:  # a film of 64 x 48 becomes a square of 64, and half of that
        assert masks[1][row // 2, column // 2] == 255
    assert both[:, 24:].max() == 0 and labels["mask_px"].tolist() == [(mask > 0).sum() for mask in masks]
    (tested,) = copy_cbis(tmp_path / "cbis", tmp_path / "test", 32, ("mass", "calc"), "test", 1).itertuples()
    assert (tested.split, tested.patient_id, tested.cancer, tested.findings) == ("test", "P_00003", 1, 2)


@pytest.mark.parametrize("change, message", [
    ({"pathology": "UNPROVEN"}, "pathology that is unknown, such as 'UNPROVEN'"),
    ({"image file path": "frame.dcm"}, "not of the form CASE/STUDY/SERIES"),
])
def test_cbis_with_unknown_words_is_refused(tmp_path, change, message):
    cbis(tmp_path)
    path = tmp_path / "mass_case_description_train_set.csv"
    pd.read_csv(path, dtype=str).assign(**change).to_csv(path, index=False)
    with pytest.raises(DatasetError, match=message):
        read_set("cbis", tmp_path)


def test_own_finds_its_files_and_keeps_known_columns(tmp_path):
    found = read("own", tmp_path)
    assert "colour" not in found
    columns = ["patient_id", "image_id", "laterality", "view", "cancer", "age", "file", "scaling"]
    assert found[columns].values.tolist() == [
        ["007", "01", "L", "CC", 1, 61, "img/01.png", ""],
        ["007", "02", "L", "MLO", 1, 61, "img/02.jpg", ""],
        ["008", "03", "R", "CC", 0, 54, "img/03.dcm", ""]]


def test_own_by_image_id_below_patients_or_flat(tmp_path):
    table(tmp_path / "any.csv", "image_id|patient_id|laterality|view|cancer|scaling", ("01", "7", "L", "CC", 0, "none"),
          ("02", "7", "L", "MLO", 0, ""), ("09", "7", "R", "CC", 1, "percentile"))
    picture(tmp_path / "images/7/01.png")
    picture(tmp_path / "images/02.PNG")
    found = read_set("my set", tmp_path)
    assert found["file"].tolist() == ["images/7/01.png", "images/02.PNG", "images/09"]
    assert found["scaling"].tolist() == ["none", "", "percentile"] and set(found["dataset"]) == {"my set"}


def without_table(root):
    (root / "labels.csv").unlink()


def with_two_tables(root):
    (root / "labels.csv").rename(root / "a.csv")
    (root / "b.csv").write_text("x\n")


def in_two_folders(root):
    shutil.rmtree(root / "img")
    (root / "mask").rename(root / "x")
    shutil.copytree(root / "x", root / "y")


def without_images(root):
    for place in ("img", "mask"):
        shutil.rmtree(root / place)


def changed(change):
    "A function that changes the table of a set."
    def spoil(root):
        change(pd.read_csv(root / "labels.csv")).to_csv(root / "labels.csv", index=False)
    return spoil


@pytest.mark.parametrize("spoil, message", [
    (without_table, "has 0 CSV files"),
    (with_two_tables, "has 2 CSV files: a.csv, b.csv"),
    (in_two_folders, "could be those in x or in y"),
    (without_images, "None of the 3 images"),
    (changed(lambda labels: labels.drop(columns="view")), "no column view"),
    (changed(lambda labels: labels.drop(columns="file")), "neither a column image_id nor a column file"),
    (changed(lambda labels: labels.assign(laterality="B")), "neither L nor R"),
    (changed(lambda labels: labels.assign(cancer=[1, 0, 0])), "disagree about cancer"),
    (changed(lambda labels: labels.assign(cancer="yes")), "neither 0 nor 1"),
    (changed(lambda labels: labels.assign(scaling="log")), "scaling that is unknown, such as 'log'"),
])
def test_a_fault_of_an_own_set_is_an_error_that_names_it(tmp_path, spoil, message):
    own(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DatasetError, match=message):
        read_set("own", tmp_path)


@pytest.mark.skipif(not CBIS.is_dir(), reason="needs ../shared/data/mammo/cbis_ddsm_mass_256")
def test_own_reads_cbis_without_changes():
    found = read_set("cbis_ddsm_mass_256", CBIS, validated=True)
    labels = pd.read_csv(CBIS / "labels.csv")
    assert len(found) == 1231 and found["patient_id"].nunique() == 691
    assert found["cancer"].tolist() == labels["cancer"].tolist()
    assert found["file"].tolist() == ("img/" + labels["file"]).tolist()
    assert found["image_id"][0] == "P_00001_L_CC" and found["density"].notna().all()


# ---- every reader
@pytest.mark.parametrize("name", TREES)
def test_a_reader_gives_the_same_table_twice_and_names_what_is_missing(tmp_path, name):
    first = read(name, tmp_path / "a")
    assert read_set(name, shutil.copytree(tmp_path / "a", tmp_path / "b")).equals(first)
    assert (first[["patient_id", "image_id", "view"]].map(len) > 0).all().all()
    assert not first.duplicated(["patient_id", "image_id"]).any()
    assert not first["image_id"].str.contains(r"[|@/\\]").any()
    path = tmp_path / "a" / label_table(name, tmp_path / "a")
    table(path, "x", (1,))
    with pytest.raises(DatasetError, match="no column"):
        read_set(name, tmp_path / "a")
    path.unlink()
    with pytest.raises(DatasetError):
        read_set(name, tmp_path / "a")
    with pytest.raises(DatasetError, match="has no |has 0 CSV"):
        label_table(name, tmp_path / "a")
    for part in (READERS[name].url, READERS[name].accept, READERS[name].layout):
        assert part in how_to_get(name)


def test_a_damaged_sheet_is_an_error(tmp_path):
    miniddsm(tmp_path)
    (tmp_path / READERS["miniddsm"].tables[0]).write_bytes(b"PK\3\4 half a sheet")
    with pytest.raises(DatasetError, match="Data-MoreThanTwoMasks.xlsx cannot be read as a table"):
        read_set("miniddsm", tmp_path)


# ---- compared with the published tables
def test_cmmd_labels_give_the_published_numbers(assets, tmp_path, monkeypatch):
    cleaned = pd.read_csv(assets / "cmmd_cleaned_label.csv", dtype=str)
    headers = pd.DataFrame({
        "patient_id": cleaned["patient_id"], "image_id": cleaned["image_id"], "laterality": cleaned["laterality"],
        "view": cleaned["__CodeValue"].map({"399162004": "CC", "399368009": "MLO"}), "file": "x"
    })
    monkeypatch.setattr(published, "_cmmd_images", lambda root: headers)  # 5,202 headers that exist only as a table
    shutil.copy(assets / "cmmd_raw_label.csv", tmp_path / "label.csv")
    found = read_set("cmmd", tmp_path)
    assert totals("cmmd", found)["found"].tolist() == [1775, 5202, 2632] == totals("cmmd", found)["published"].tolist()
    assert found["cancer"].tolist() == cleaned["cancer"].astype(int).tolist()


def test_bmcd_labels_give_the_published_table(assets, tmp_path):
    shutil.copy(assets / "bmcd_raw_label.csv", tmp_path / "label.csv")
    found = read_set("bmcd", tmp_path)
    cleaned = pd.read_csv(assets / "bmcd_cleaned_label.csv", dtype=str).set_index("image_id")
    assert totals("bmcd", found)["found"].tolist() == [82, 328, 22] == totals("bmcd", found)["published"].tolist()
    found = found.set_index("image_id").loc[cleaned.index]
    assert found["cancer"].tolist() == cleaned["cancer"].astype(int).tolist()
    assert found["laterality"].tolist() == cleaned["laterality"].str[0].tolist()
    assert found["view"].tolist() == cleaned["view"].tolist()


def test_the_small_folders_have_the_names_of_the_published_listings(assets, tmp_path):
    for name in ("miniddsm", "cmmd", "bmcd", "vindr", "cddcesm"):
        TREES[name](tmp_path / name)
        listed = [
            line[2:] for line in (assets / f"layouts/{name}-pwd_structure.txt").read_text().splitlines()
            if line.endswith((".dcm", ".DCM", ".dicom", "_CC.png", "_MLO.png", "_CC.jpg"))
        ]
        made = read_set(name, tmp_path / name)["file"]
        assert {f.count("/") for f in made} == {p.count("/") for p in listed}
        assert {f.split("/")[0] for f in made} == {p.split("/")[0] for p in listed}
        assert {f.rpartition(".")[2] for f in made} <= {p.rpartition(".")[2] for p in listed}


# ---- PNG and JPEG
@pytest.mark.parametrize("ending, dtype", [("png", np.uint8), ("png", np.uint16), ("jpg", np.uint8)])
def test_pictures_are_read_like_frames(tmp_path, ending, dtype):
    pixels = disc(200, 150, 200 if dtype == np.uint8 else 50_000, dtype)
    picture(tmp_path / f"a.{ending}", pixels)
    image, header = read_image(tmp_path / f"a.{ending}"), read_header(tmp_path / f"a.{ending}")
    fields = header.rows, header.columns, header.bits_stored, header.windows, header.image_id
    assert image.header == header and fields == (200, 150, 8 * np.dtype(dtype).itemsize, (), "a")
    if ending == "png":
        assert np.array_equal(image.pixels, pixels) and image.pixels.dtype == dtype
    else:
        assert np.array_equal(image.pixels, cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_UNCHANGED))
    with pytest.raises(MultiFrame):
        read_frame(tmp_path / f"a.{ending}", frame=1)


def test_grey_stored_as_colour_is_grey_and_colour_is_refused(tmp_path):
    grey = disc(top=200, dtype=np.uint8)
    for name, pixels in (("three", np.dstack([grey] * 3)), ("four", np.dstack([grey] * 3 + [np.full_like(grey, 255)]))):
        picture(tmp_path / f"{name}.png", pixels)
        assert np.array_equal(read_image(tmp_path / f"{name}.png").pixels, grey)
    picture(tmp_path / "colour.png", np.dstack([grey, grey, grey // 2]))
    picture(tmp_path / "glass.png", np.dstack([grey, grey, grey, grey]))
    with pytest.raises(BadHeader, match="a colour picture"):
        read_image(tmp_path / "colour.png")
    with pytest.raises(BadHeader, match="transparent"):
        read_image(tmp_path / "glass.png")


def test_damaged_pictures_are_typed_errors(tmp_path):
    for name in ("a.png", "a.jpg"):
        picture(tmp_path / name, disc(300, 200, 200, np.uint8))
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:len(whole) // 2])
        with pytest.raises(CorruptPixels):
            read_image(tmp_path / name)
        (tmp_path / name).write_text("no picture")
        with pytest.raises(NotDicom):
            read_image(tmp_path / name)
    dicom(tmp_path / "scan.dcm")
    (tmp_path / "scan.dcm").rename(tmp_path / "scan.png")
    assert read_header(tmp_path / "scan.png").syntax == ExplicitVRLittleEndian


def test_pictures_are_found_only_in_a_folder_without_dicom_files(tmp_path):
    picture(tmp_path / "b/2.jpg", disc(top=200, dtype=np.uint8))
    picture(tmp_path / "a.PNG")
    picture(tmp_path / "out/previews/a.png")
    (tmp_path / "list.csv").write_text("a")
    assert find_files(tmp_path) == (["a.PNG", "b/2.jpg", "out/previews/a.png"], 1)
    assert find_files(tmp_path, besides=tmp_path / "out") == (["a.PNG", "b/2.jpg"], 2)
    dicom(tmp_path / "c.dcm")
    assert find_files(tmp_path) == (["c.dcm"], 4)


def test_grey_levels_by_scaling(tmp_path):
    sixteen = disc(200, 150, 40_000, shade=.5) + 1000
    eight = disc(200, 150, 180, np.uint8, shade=.5) + np.uint8(20)
    for name, pixels in (("a.png", sixteen), ("b.png", eight)):
        picture(tmp_path / name, pixels)
    cut = lambda b: b.image.pixels[b.box.y0:b.box.y1, b.box.x0:b.box.x1]
    a, b = (cut_breast(read_frame(tmp_path / name)) for name in ("a.png", "b.png"))
    stretched = cut_breast(read_frame(tmp_path / "b.png"), Crops(scaling="percentile"))
    assert (a.scaling, b.scaling, stretched.scaling) == ("percentile", "none", "percentile")
    assert a.box.source == b.box.source == "otsu"
    assert np.array_equal(b.grey, cut(b))
    x = cut(a).astype(float)
    assert np.abs(a.grey - np.clip((x - x.min()) / (np.percentile(x, 99) - x.min()), 0, 1) * 255).max() < 1.01
    x = cut(stretched).astype(float)
    expected = np.clip((x - x.min()) / (np.percentile(x, 99) - x.min()), 0, 1) * 255
    assert np.abs(stretched.grey - expected).max() < 1.01 and stretched.box == b.box
    for scaling, message in (("none", "16 bits"), ("gamma", "Known are")):
        with pytest.raises(WindowError, match=message):
            cut_breast(read_frame(tmp_path / "a.png"), Crops(scaling=scaling))


def test_faithful_pictures_have_the_winners_percentile(tmp_path):
    eight = disc(200, 150, 180, np.uint8) + np.uint8(20)
    picture(tmp_path / "b.png", eight)
    breast = cut_breast(read_frame(tmp_path / "b.png"), Crops(faithful=True))
    x = eight[breast.box.y0:breast.box.y1, breast.box.x0:breast.box.x1].astype(float)
    expected = np.clip((x - x.min()) / (np.percentile(x, 99) - 1 - x.min()), 0, 1) * 255
    assert breast.scaling == "percentile" and np.abs(breast.grey - np.floor(expected)).max() <= 1
    with pytest.raises(WindowError, match="faithful"):
        cut_breast(read_frame(tmp_path / "b.png"), Crops(faithful=True, scaling="none"))


def test_the_box_is_searched_in_percentiles_or_in_unchanged_8_bits(tmp_path):
    sixteen = disc(300, 200, 3000)
    sixteen[:6, :6] = 65_535  # with this label, the breast is black if the range from minimum to maximum is shown
    picture(tmp_path / "a.png", sixteen)
    picture(tmp_path / "b.png", disc(300, 200, 180, np.uint8))
    image, eight = read_image(tmp_path / "a.png"), read_image(tmp_path / "b.png")
    assert frame_view(image).max() == 255 and np.median(frame_view(image)[frame_view(image) > 5]) < 15
    assert np.median(frame_view(image, scaling="percentile")[150, :80]) > 240
    for scaling in ("none", "percentile"):
        assert np.array_equal(frame_view(eight, scaling=scaling), eight.pixels)
    black_on_white = replace(eight, header=replace(eight.header, photometric="MONOCHROME1"))
    assert np.array_equal(frame_view(black_on_white, scaling="percentile"), eight.pixels)  # no inversion
    box = find_box(image, Crops(scaling="percentile"))
    assert box.source == "otsu" and abs(box.x1 - 120) < 6


def test_cmmd_16_bits_are_shown_correctly_and_wrap_with_faithful(tmp_path):
    "D1-1343 (facts, section 8): 16 bits stored, SIGMOID, window 32768/65536; 8-bit neighbours 128/256."
    wide = disc(300, 200, 50_000) + 4000
    dicom(tmp_path / "1-1.dcm", pixels=wide, bits=16, windows=((32_768, 65_536),), voi_function="SIGMOID")
    dicom(tmp_path / "1-2.dcm", pixels=(wide >> 8), bits=8, windows=((128, 256),), voi_function="SIGMOID")
    ds = pydicom.dcmread(tmp_path / "1-1.dcm")
    assert (ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.VOILUTFunction) == (16, 15, 0, "SIGMOID")
    right, eight = (cut_breast(read_frame(tmp_path / f"1-{n}.dcm")) for n in (1, 2))
    x = wide[right.box.y0:right.box.y1, right.box.x0:right.box.x1].astype(float)
    assert np.abs(right.grey - 255 / (1 + np.exp(-4 * (x - 32_768) / 65_536))).max() < 1.01 and right.grey.max() > 190
    # equal to the image with 8 bits
    assert right.box == eight.box and np.abs(right.grey.astype(int) - eight.grey).max() <= 2
    wrapped = cut_breast(read_frame(tmp_path / "1-1.dcm"), Crops(faithful=True))
    assert wrapped.grey.max() < 120
    assert np.array_equal(faithful.as_cast(wide, "window")[150, :3], wide[150, :3].astype(np.int16))


def test_crop_files_of_several_sets_and_scalings(tmp_path):
    picture(tmp_path / "one/a.png", disc(200, 150, 180, np.uint8))
    picture(tmp_path / "two/sub/a.png", disc(200, 150, 180, np.uint8))
    files = pd.DataFrame({
        "file": ["a.png", "sub/a.png", "sub/gone.png"], "patient_id": ["1", "2", "2"], "image_id": ["a", "a", "b"],
        "dataset": ["one", "two", "two"], "scaling": ["", "percentile", "percentile"]
    })
    found = crop_files(files, {"one": tmp_path / "one", "two": tmp_path / "two"}, tmp_path / "out", workers=1)
    assert found["error"].str.partition(":")[0].tolist() == ["", "", "FileNotFoundError"]
    first, second = (cv2.imread(str(tmp_path / f"out/cleaned_images/{n}@a.png"), cv2.IMREAD_GRAYSCALE) for n in "12")
    assert first.max() < 190 and second.max() == 255


def test_a_folder_of_pictures_is_cropped_and_its_sides_come_from_a_table(tmp_path):
    own(tmp_path)
    (tmp_path / "img/03.dcm").unlink()
    found = crop_folder(tmp_path / "img", tmp_path / "img/out", workers=1, previews=True)
    assert (found["error"] == "").all() and found["file"].tolist() == ["01.png", "02.jpg"]
    # its own crops are not cropped again
    assert crop_folder(tmp_path / "img", tmp_path / "img/out", workers=1)["file"].tolist() == ["01.png", "02.jpg"]
    assert read_sides(tmp_path / "img", ["01.png"], tmp_path / "labels.csv")[0]["01.png"]["patient_id"] == "007"


# ---- sets, folders and folds
@pytest.fixture
def places(tmp_path, monkeypatch):
    "raw and samples of a run, and recipes on them: ours, and ours with a second set."
    monkeypatch.chdir(ROOT)
    for name in ("raw", "samples"):
        monkeypatch.setenv(f"MAMMO_NB_{name.upper()}", str(tmp_path / name))
    rows = [(f"{i}.png", f"p{i // 2}", "L", ("CC", "MLO")[i % 2], int(i < 8)) for i in range(24)]
    table(tmp_path / "samples/ours/labels.csv", "file|patient_id|laterality|view|cancer", *rows)
    for i in range(24):
        picture(tmp_path / f"samples/ours/img/{i}.png", disc(64, 48, 100 + 5 * i, np.uint8, shade=.5))
    cddcesm(tmp_path / "raw/cddcesm")
    for name, external in (("alone", ""), ("both", "cddcesm")):
        monkeypatch.setitem(system.recipes, name, Recipe("ours", recipes.Datasets("ours", external),
                                                         recipes.Folds(n_folds=2), skips=("phantom",)))
    return tmp_path


def stages(run_dir, recipe, monkeypatch):
    "datasets, crops and folds, with Otsu."
    (run_dir / "weights").mkdir(parents=True, exist_ok=True)
    (run_dir / "weights/detector.onnx").write_bytes(b"")
    whole = crops.crop_files
    monkeypatch.setattr(
        crops, "crop_files", lambda files, folder, output, settings, detector, *rest, **machine: whole(
            files, folder, output, settings, None, *rest, **machine))
    run = Run.create(run_dir, system, recipe)
    return datasets.run_stage(run), crops.run_stage(run, workers=1), folds.run_stage(run)


def test_external_sets_are_read_cropped_and_never_split(places, monkeypatch):
    alone, both = (stages(places / name, name, monkeypatch) for name in ("alone", "both"))
    unified, cropped, folded = both
    assert unified["dataset"].tolist() == ["ours"] * 24 + ["cddcesm"] * 3 and unified["file"].iloc[[
        0, -1
    ]].tolist() == ["ours/img/0.png", "cddcesm/Low energy images of CDD-CESM/P281_L_DM_MLO2.jpg"]
    assert (cropped["error"] == "").all() and unified["scaling"].fillna("").tolist() == [""] * 24 + ["percentile"] * 3
    assert folded["fold"].tolist() == alone[2]["fold"].tolist() + [EXTERNAL] * 3 and set(alone[2]["fold"]) == {0, 1}
    reads = read_manifest(places / "both")["stages"]["datasets"]["reads"]
    assert list(reads) == ["samples/ours/labels.csv", "raw/cddcesm/Radiology manual annotations.xlsx"]
    reread = datasets.read_table(places / "both/folds.csv", ["fold"])
    assert sorted(set(reread["fold"]) - {EXTERNAL}) == [0, 1] and reread.loc[reread["fold"] != 0,
                                                                             "dataset"].nunique() == 2
    assert spread(folded).loc[("cancer", 1), EXTERNAL] == pytest.approx(1 / 3, abs=1e-3)
    for winners in (False, True):
        folds.run_stage(Run.open(places / "both", {"folds.faithful": winners}))
        assert read_manifest(places / "both")["stages"]["folds"]["results"] == {"rule": RULES[winners]}


def test_the_error_of_a_missing_set_names_the_folders_and_the_publisher(places):
    with pytest.raises(DatasetError, match="No folder vindr in .*raw .* or in .*samples") as error:
        place_of("vindr")
    assert "physionet.org" in str(error.value) and "data use agreement" in str(error.value)
    for name in ("../ours", "", ".."):
        with pytest.raises(DatasetError, match="no name of a data set"):
            place_of(name)
    (places / "raw/ours").mkdir()
    assert place_of("ours") == "raw/ours"
    with pytest.raises(DatasetError, match="ours more than once"):
        datasets.run_stage(Run.create(places / "r", system, "alone", overrides={"datasets.external": "ours"}))


def test_a_patient_in_two_sets_or_folds_is_an_error():
    def make(name, *ids):
        images = pd.DataFrame({"patient_id": ids, "image_id": ids, "laterality": "L", "view": "CC", "cancer": 0})
        return unify(images).assign(dataset=name, scaling="")

    with pytest.raises(DatasetError, match="in two data sets"):
        combine([make("a", "1", "2"), make("b", "2", "3")])
    labels = pd.concat([make("a", *"123456").assign(cancer=[1, 0] * 3), make("b", "6", "7")], ignore_index=True)
    with pytest.raises(LeakageError):
        split(labels, 2)


@pytest.mark.parametrize("winners", [False, True])
def test_the_split_is_the_same_with_and_without_external_sets(winners):
    rng = np.random.default_rng(1)
    ours = pd.DataFrame({
        "patient_id": np.repeat([str(i) for i in rng.permutation(50_000)[:200]], 4),
        "cancer": np.repeat(rng.random(200) < .2, 4).astype(int), "dataset": "rsna"
    })
    theirs = pd.DataFrame({"patient_id": [f"D1-{i:04}" for i in range(50)], "cancer": 1, "dataset": "cmmd"})
    both = split(pd.concat([ours, theirs], ignore_index=True), faithful=winners)
    alone = assign_folds(ours, 4, 67, faithful=winners)
    assert both["fold"].tolist() == alone["fold"].tolist() + [EXTERNAL] * 50


def test_expectations_are_reported():
    made = pd.DataFrame({
        "patient_id": [str(i) for i in range(400)], "fold": [i % 2 for i in range(400)],
        "site_id": ["1", "1", "2", "2"] * 100, "age": [50, 70, 60, 60] * 100,
        "implant": [int(i < 6) for i in range(400)]
    })
    report = expectations(pd.concat([made, made.assign(patient_id="x" + made["patient_id"], fold=EXTERNAL)]))
    assert report[["fold", "holds"]].values.tolist() == [[0, True], [0, True], [1, False], [1, True]]
    assert report["found"].tolist()[:2] == ["50.0, 60.0", "1.50%"]
    assert expectations(made[["patient_id", "fold"]]).empty


# ---- integrity
def test_check_of_a_data_set(places, capsys):
    found = check_dataset("ours", sample=4, workers=1)
    assert (found["error"] == "").all() and (found["problems"] == "").all()
    assert len(found) == 24 and set(found["syntax"]) == {"PNG"}
    assert print_check(found) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "12 patients, 24 images, 8 positive images", "24 files, 0 cannot be read, 0 other files left out"
    ]
    image = places / "samples/ours/img/3.png"
    image.write_bytes(image.read_bytes()[:-40])
    (places / "samples/ours/img/4.png").unlink()
    found = check_dataset("ours", sample=4, workers=1).set_index("file")["error"]
    assert found["img/3.png"].startswith("CorruptPixels") and found["img/4.png"].startswith("Missing")
    assert (found.drop(["img/3.png", "img/4.png"]) == "").all()


def test_check_counts_against_the_published_numbers(places):
    answer = CliRunner().invoke(app, ["check", "--dataset", "cddcesm", "--sample", "1", "--workers", "1"])
    numbers = "3 images (published: 1,003), 1 positive images (published: 331); these are not the published numbers"
    assert answer.exit_code == 1 and numbers in answer.output
    assert CliRunner().invoke(app, ["check", "--dataset", "ours", "--sample", "1", "--workers", "1"]).exit_code == 0
    assert CliRunner().invoke(app, ["check"]).exit_code == 2
    assert CliRunner().invoke(app, ["check", "x", "--dataset", "ours"]).exit_code == 2


# ---- masks
def test_a_mask_is_cut_as_its_image_and_one_of_another_size_is_refused(tmp_path):
    table(tmp_path / "labels.csv", "file|patient_id|laterality|view|cancer", ("a.png", "1", "L", "CC", 1),
          ("b.png", "2", "L", "CC", 0), ("c.png", "3", "L", "CC", 0))
    breast = disc(192, 128, top=120, dtype=np.uint8)
    breast[80:110, 10:40], mask = 255, np.zeros_like(breast)
    mask[80:110, 10:40] = 255
    for name in "abc":
        picture(tmp_path / f"img/{name}.png", breast)
    picture(tmp_path / "mask/a.png", mask)
    picture(tmp_path / "mask/c.png", mask[:-1])
    files = read_set("own", tmp_path)
    assert files["mask"].tolist()[0] == "mask/a.png" and files["mask"].isna().tolist() == [False, True, False]
    rows = crop_files(files, tmp_path, tmp_path / "out", Crops(height=96, width=64), workers=1)
    assert rows["error"].ne("").tolist() == [False, False, True]
    assert "a mask of 191 x 128 for a frame of 192 x 128" in rows["error"][2]
    grey, cut = (cv2.imread(str(tmp_path / f"out/{place}/1@a.png"), cv2.IMREAD_GRAYSCALE)
                 for place in ("cleaned_images", "cleaned_masks"))
    assert grey.shape == cut.shape and 100 < (cut > 127).sum() < 30 * 30
    assert (grey[cut > 127] > 180).all() and (grey[cut == 0] < 180).all()
    assert [p.name for p in (tmp_path / "out/cleaned_masks").iterdir()] == ["1@a.png"]

"Pictures without a breast get no probability, and no real or drawn breast is refused."
import json

import cv2
import numpy as np
import pandas as pd
import pytest
from odd import breast, dataset, save
from pydicom.uid import RLELossless
from test_predict import mammo_nb, weights  # noqa: F401  (a fixture)

from mammo_nb.mammo.crops import cut_breast
from mammo_nb.mammo.phantom import make_competition
from mammo_nb.mammo.reading.blank import (FEWEST_GREYS, LEAST_SMOOTH, LEAST_TISSUE, NO_BREAST, THINNEST, smoothness,
                                          tissue_share, why_blank)
from mammo_nb.mammo.reading.mammograms import read_frame
from mammo_nb.mammo.recipes import Crops

NOISE = np.random.default_rng(0).integers(0, 4096, (320, 256)).astype(np.uint16)
SENSOR = np.random.default_rng(0).integers(0, 40, (320, 256)).astype(np.uint16)
HALF = np.where(np.arange(256) < 128, NOISE, 0).astype(np.uint16)
ODD = {  # name -> pixels, tags, a part of the reason
    "black": (np.zeros((320, 256), np.uint16), {}, "one grey level"),
    "white": (np.full((320, 256), 4095, np.uint16), {}, "saturated"),
    "one value": (np.full((320, 256), 2000, np.uint16), {}, "one grey level"),
    "noise": (NOISE, {}, "noise"),
    "half noise": (HALF, {}, "noise"),
    "sensor noise": (SENSOR, {}, "noise"),
    "sensor noise in its window": (SENSOR, {"WindowCenter": 20, "WindowWidth": 40}, "noise"),
    "16 x 16": (breast(16, 16), {}, "16 x 16"),
    "one row": (breast(1, 256), {}, "1 x 256"),
    "strip": (breast(1600, 40), {}, "thin"),
    "two levels": (((breast() > 1000) * 4095).astype(np.uint16), {}, "black and white"),
}


def put(folder, names=ODD):
    for k, name in enumerate(names):
        pixels, tags, _ = ODD[name]
        save(dataset(pixels, patient=f"P{k}", **tags), folder / f"{name}.dcm")
    save(dataset(patient="good"), folder / "good.dcm")
    return folder


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("size", [(0, 0), (256, 128), (64, 32)])
def test_each_kind_is_recognised_at_each_size(tmp_path, name, size):
    pixels, tags, reason = ODD[name]
    path = save(dataset(pixels, **tags), tmp_path / "a.dcm")
    seen = cut_breast(read_frame(path), Crops(height=size[0], width=size[1]))
    if size == (0, 0) or name not in ("half noise", "two levels"):  # these two become smooth in a small crop
        assert seen.box.source == NO_BREAST and seen.note.startswith(f"{NO_BREAST}: ") and reason in seen.note


def test_predict_leaves_the_probability_empty_and_force_gives_one(weights, tmp_path):  # noqa: F811
    put(tmp_path / "in")
    done = mammo_nb("predict", tmp_path / "in", "-o", tmp_path / "out", "--weights", weights, "--workers", 1)
    table = pd.read_csv(tmp_path / "out/per_image.csv").set_index("file")
    assert done.returncode == 0 and table["error"].isna().all() and "files without a probability: 11" in done.stdout
    assert "1 of 12 files predicted" in done.stdout and "one grey level" in done.stdout and "nan" not in done.stdout
    odd = table.drop("good.dcm")
    assert odd["probability"].isna().all() and odd["box_source"].eq(NO_BREAST).all()
    assert odd["note"].str.startswith(f"{NO_BREAST}: ").all()
    good = table.loc["good.dcm"]
    assert 0 < good["probability"] < 1 and good["box_source"] == "otsu" and NO_BREAST not in good["note"]
    breasts = pd.read_csv(tmp_path / "out/per_breast.csv").set_index("patient_id")
    assert breasts["images"].to_dict() == {f"P{k}": 0 for k in range(11)} | {"good": 1}
    assert breasts["probability"].notna().sum() == 1
    assert len(list((tmp_path / "out/previews").glob("*.png"))) == 12
    done = mammo_nb("predict", tmp_path / "in", "-o", tmp_path / "out", "--weights", weights, "--force")
    table = pd.read_csv(tmp_path / "out/per_image.csv").set_index("file")
    assert done.returncode == 0 and table["probability"].notna().all() and table.loc["black.dcm", "note"] == odd.loc[
        "black.dcm", "note"]


def test_a_blank_picture_beside_a_good_one_does_not_change_the_breast(weights, tmp_path):  # noqa: F811
    save(dataset(view="CC"), tmp_path / "in/a.dcm")
    save(dataset(np.zeros((320, 256), np.uint16), view="MLO"), tmp_path / "in/b.dcm")
    mammo_nb("predict", tmp_path / "in", "-o", tmp_path / "out", "--weights", weights)
    images, breasts = (pd.read_csv(tmp_path / f"out/per_{kind}.csv") for kind in ("image", "breast"))
    assert breasts["images"].tolist() == [1] and breasts["probability"].tolist() == [images["probability"][0]]


def test_a_black_frame_is_no_cancer_in_a_submission(weights, tmp_path):  # noqa: F811
    "With a threshold below every probability each breast is positive, but not the one without a picture of it."
    root, rows = tmp_path / "c", []
    for patient, pixels, tags in (("1", None, {}), ("2", ODD["black"][0], {}), ("3", None, {"WindowCenter": 30000,
                                                                                           "WindowWidth": 100})):
        save(dataset(pixels, patient=patient, **tags), root / f"test_images/{patient}/9.dcm")
        rows.append({"patient_id": patient, "image_id": "9", "laterality": "R", "view": "CC",
                     "prediction_id": f"{patient}_R"})
    test = pd.DataFrame(rows)
    test.to_csv(root / "test.csv", index=False)
    test[["prediction_id"]].assign(cancer=0.0).to_csv(root / "sample_submission.csv", index=False)
    about = json.loads((weights / "ensemble.json").read_text())
    place = tmp_path / "weights"
    place.mkdir()
    (place / "ensemble.onnx").write_bytes((weights / "ensemble.onnx").read_bytes())
    (place / "ensemble.json").write_text(json.dumps(about | {"threshold": 0.0}))
    done = mammo_nb("submit", root, "-o", tmp_path / "out", "--weights", place, "--workers", 1)
    report = json.loads((tmp_path / "out/submit.json").read_text())
    decided = pd.read_csv(tmp_path / "out/submission.csv").set_index("prediction_id")["cancer"]
    table = pd.read_csv(tmp_path / "out/test_per_image.csv", dtype={"patient_id": str}).set_index("patient_id")
    assert done.returncode == 0, done.stdout
    assert decided["1_R"] == 1 and decided["2_R"] == 0
    assert table["probability"].isna()["2"] and table["box_source"]["2"] == NO_BREAST and table["error"].isna().all()
    assert table["note"]["2"].startswith(f"{NO_BREAST}: one grey level")
    assert sum(n for note, n in report["withheld"].items() if note.startswith(NO_BREAST)) == report["items"] - report[
        "predicted"]
    assert f"images without a prediction: {NO_BREAST}: one grey level" in done.stdout


def test_check_lists_them_also_outside_of_its_sample(tmp_path):
    names = ["black", "white", "one value", "16 x 16", "one row"]
    put(tmp_path / "in", names)
    black = dataset(np.zeros((320, 256), np.uint16))
    black.compress(RLELossless, generate_instance_uid=False)
    save(black, tmp_path / "in/packed.dcm")
    done = mammo_nb("check", tmp_path / "in", "-o", tmp_path / "check.csv", "--sample", 0)
    table = pd.read_csv(tmp_path / "check.csv", keep_default_na=False).set_index("file")
    assert done.returncode == 0 and table.index[table["problems"].str.contains(NO_BREAST)].tolist() == sorted(
        f"{name}.dcm" for name in [*names, "packed"])
    put(tmp_path / "in")
    mammo_nb("check", tmp_path / "in", "-o", tmp_path / "check.csv", "--all")
    table = pd.read_csv(tmp_path / "check.csv", keep_default_na=False).set_index("file")
    assert set(table.index[table["problems"].str.contains(NO_BREAST)]) == {f"{name}.dcm" for name in [*ODD, "packed"]}


def margins(path, settings) -> tuple:
    "The measures of a picture, each divided by its limit in the way that more is safer."
    seen = cut_breast(read_frame(path), settings)
    box = seen.box
    assert not seen.note and box.source != NO_BREAST, (path, seen.note)
    low, high = np.percentile(seen.grey, (1, 99))
    sides = sorted((box.x1 - box.x0, box.y1 - box.y0))
    return ((high - low) / FEWEST_GREYS, tissue_share(seen.grey) / LEAST_TISSUE,
            (1 - LEAST_SMOOTH) / (1 - smoothness(seen.grey)), THINNEST * sides[0] / sides[1])


SIZES = [Crops(), Crops(height=256, width=128), Crops(height=128, width=64)]


def test_no_drawn_breast_is_refused_and_none_is_near_a_limit(tmp_path):
    make_competition(tmp_path / "c", patients=6, test_patients=1, frame=(320, 256), prevalence=.5, seed=11, workers=1)
    found = [margins(p, s) for p in sorted((tmp_path / "c").rglob("*.dcm")) for s in SIZES]
    assert len(found) >= 24 * 3 and np.min(found, axis=0).min() > 3


def test_no_real_breast_is_refused_and_none_is_near_a_limit(real_scans):
    found = [margins(real_scans / name, s) for s in SIZES
             for name in ("ddsm_P_00173_benign_L_CC.dcm", "ge_senographe_RMLO_GH133.dcm")]
    assert np.min(found, axis=0).min() > 5


def test_a_picture_of_eight_bits(tmp_path, weights):  # noqa: F811
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in/good.png"), (breast() >> 4).astype(np.uint8))
    cv2.imwrite(str(tmp_path / "in/black.png"), np.zeros((320, 256), np.uint8))
    mammo_nb("predict", tmp_path / "in", "-o", tmp_path / "out", "--weights", weights)
    table = pd.read_csv(tmp_path / "out/per_image.csv").set_index("file")
    assert table["probability"].notna().to_dict() == {"black.png": False, "good.png": True}


def test_the_limits_as_pictures():
    assert why_blank(np.zeros((99, 99), np.uint8), (99, 99), (0, 0, 99, 99)) == "one grey level, about 0 of 255"
    ramp = np.tile(np.arange(99, dtype=np.uint8), (99, 1))
    assert why_blank(ramp, (99, 99), (0, 0, 99, 99)) == ""
    assert why_blank(ramp, (99, 99), (0, 0, 99, 8)) == "the picture is a thin strip"

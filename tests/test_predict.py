"`mammo-nb check` and `mammo-nb predict`, as commands, on phantoms and on real scans."
import io
import json
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from conftest import ROOT
from pydicom.data import get_testdata_file

from mammo_nb import cli
from mammo_nb.core import parallel
from mammo_nb.core.dicom import find_files
from mammo_nb.core.engines import export_onnx
from mammo_nb.core.ensembles import Ensemble
from mammo_nb.core.files import sha256
from mammo_nb.core.headers import NotDicom
from mammo_nb.core.networks import create_network
from mammo_nb.core.pictures import write_png
from mammo_nb.core.settings import seal_parts
from mammo_nb.core.submission import DEMONSTRATION, MissingWeights, WeakWeights, find_weights
from mammo_nb.mammo.datasets import DatasetError
from mammo_nb.mammo.phantom import make_competition
from mammo_nb.mammo.reading.boxes import detector_in_words
from mammo_nb.mammo.tools import predict
from mammo_nb.mammo.tools.predict import PER_IMAGE, predict_folder


def mammo_nb(*arguments, cwd=ROOT) -> SimpleNamespace:
    "The command in this process: its exit code and what it printed."
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["mammo-nb", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return SimpleNamespace(returncode=end.value.code or 0, stdout=printed.getvalue())


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    "An untrained ensemble of two: what it says means nothing, how it is used does."
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    export_onnx(Ensemble([create_network("resnet10t").eval() for _ in range(2)], .5,
                         .5), folder / "ensemble.onnx", (128, 64),
                metadata={"threshold": .5, "crops": {}, "demonstration": True, "recipe": "test"})
    return folder


@pytest.fixture
def scans(tmp_path):
    make_competition(tmp_path / "c", patients=2, test_patients=1, frame=(320, 256), prevalence=.5, seed=5, workers=1)
    return tmp_path / "c"


def test_probabilities_of_breasts_are_corrected_as_the_weights_say(scans, weights, tmp_path):
    mended = tmp_path / "weights"
    shutil.copytree(weights, mended)
    about = json.loads((mended / "ensemble.json").read_text())
    for name, correction in (("warm", {"method": "temperature", "temperature": 2.}),
                             ("steps", {"method": "isotonic", "before": [0., 1.], "after": [0., .5]})):
        (mended / "ensemble.json").write_text(json.dumps({**about, "calibration": correction}))
        done = mammo_nb("predict", scans / "train_images", "-o", tmp_path / name, "--weights", mended)
        assert done.returncode == 0, done.stdout
        found = pd.read_csv(tmp_path / name / "per_breast.csv")
        p = found["probability"]
        wanted = 1 / (1 + np.sqrt((1 - p) / p)) if name == "warm" else p / 2
        np.testing.assert_allclose(found["calibrated"], wanted, atol=1e-9)


def test_kaggle_tree_gives_the_columns_of_the_contract(scans, weights, tmp_path):
    done = mammo_nb("predict", scans / "train_images", "-o", tmp_path / "out", "--weights", weights)
    assert done.returncode == 0, done.stdout
    assert DEMONSTRATION in done.stdout and str(weights) in done.stdout
    table, truth = (pd.read_csv(p, dtype=str) for p in (tmp_path / "out/per_image.csv", scans / "train.csv"))
    assert list(table.columns) == PER_IMAGE + ["note"] and (table["note"] == DEMONSTRATION).all()
    both = table.merge(truth, on="image_id", suffixes=("", "_true"))
    assert len(both) == len(truth) and all(
        (both[c] == both[f"{c}_true"]).all() for c in ("patient_id", "laterality", "view"))
    assert table["probability"].astype(float).between(0, 1).all()
    breasts = pd.read_csv(tmp_path / "out/per_breast.csv", dtype={"patient_id": str})
    assert list(breasts.columns) == ["patient_id", "laterality", "images", "probability", "note"
                                     ] and breasts["images"].sum() == len(table)
    mean = table.assign(probability=table["probability"].astype(float)).groupby(["patient_id",
                                                                                 "laterality"])["probability"].mean()
    assert breasts.set_index(["patient_id", "laterality"])["probability"].sub(mean).abs().max() < 1e-9
    assert len(list((tmp_path / "out/previews").glob("*.png"))) == len(table)


def test_a_folder_of_pictures_with_a_table_beside_it(weights, tmp_path):
    """PNG and JPEG: no tags, so the sides come from the table; what a first call has written into the folder is no scan
    for the second."""
    y, x = np.mgrid[:160, :120]
    (tmp_path / "in").mkdir()
    for k, name in enumerate(("a.png", "b.jpg", "c.png")):
        disc = np.clip(1 - np.hypot(x, y - 80) / 70, 0, 1) ** .5 * (50_000 if k == 2 else 150 + 10 * k)
        cv2.imwrite(str(tmp_path / "in" / name), disc.astype(np.uint16 if k == 2 else np.uint8))
    pd.DataFrame({
        "file": ["a.png", "b.jpg", "c.png"], "patient_id": ["007", "007", "008"], "laterality": ["L", "L", "R"],
        "view": ["CC", "MLO", "CC"]
    }).to_csv(tmp_path / "labels.csv", index=False)
    first, second = (predict_folder(tmp_path / "in", tmp_path / "in/out", weights, table=tmp_path / "labels.csv",
                                    workers=1) for _ in range(2))
    assert (first["error"] == "").all() and first[["file", "patient_id", "image_id", "laterality", "view", "decoder"
                                                   ]].values.tolist() == [["a.png", "007", "a", "L", "CC", "pillow"],
                                                                          ["b.jpg", "007", "b", "L", "MLO", "pillow"],
                                                                          ["c.png", "008", "c", "R", "CC", "pillow"]]
    assert second["probability"].tolist() == first["probability"].tolist() and len(
        list((tmp_path / "in/out/previews").glob("*.png"))) == 3
    (tmp_path / "labels.csv").write_text("laterality,view\nL,CC\n")
    with pytest.raises(DatasetError, match="no column image_id or file"):
        predict_folder(tmp_path / "in", tmp_path / "out", weights, table=tmp_path / "labels.csv")


def test_one_bad_file_fails_alone_and_decides_the_exit_code(scans, weights, tmp_path):
    good = predict_folder(scans / "train_images", tmp_path / "a", weights, workers=1)
    victim = sorted((scans / "train_images").rglob("*.dcm"))[1]
    victim.write_bytes(victim.read_bytes()[:3000])
    (scans / "train_images" / "notes.txt").write_text("not a scan")
    arguments = ["predict", scans / "train_images", "-o", tmp_path / "b", "--weights", weights]
    assert mammo_nb(*arguments).returncode == 1 and mammo_nb(*arguments, "--allow-errors").returncode == 0
    table = pd.read_csv(tmp_path / "b/per_image.csv", dtype={"patient_id": str})
    assert table["error"].notna().sum() == 1 and victim.name in table.loc[table["error"].notna(), "file"].iloc[0]
    others = table["error"].isna()
    assert (table.loc[others, "probability"].values == good.loc[others.values, "probability"].values).all()


def strip_sides(path: Path):
    ds = pydicom.dcmread(path)
    for tag in ("ImageLaterality", "Laterality", "ViewPosition", "PatientOrientation", "ViewCodeSequence"):
        if tag in ds:
            delattr(ds, tag)
    ds.save_as(path)


def test_unknown_sides_are_said_to_be_unknown_or_come_from_a_table(scans, weights, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for p in sorted((scans / "train_images").rglob("*.dcm"))[:2]:
        shutil.copy(p, flat)
        strip_sides(flat / p.name)
    table = predict_folder(flat, tmp_path / "a", weights, workers=1)
    assert (table["laterality"] == "unknown").all() and (table["view"] == "unknown").all()
    table = predict_folder(flat, tmp_path / "b", weights, table=scans / "train.csv", workers=1)
    truth = pd.read_csv(scans / "train.csv", dtype=str).set_index("image_id")
    assert all(truth.loc[r.image_id, "laterality"] == r.laterality and truth.loc[r.image_id, "view"] == r.view
               for r in table.itertuples())


def everything(folder, *texts):
    "All names and all bytes of a folder, and what was printed."
    paths = [p for p in folder.rglob("*")]
    return b"\n".join([*(str(p.relative_to(folder)).encode() for p in paths),
                       *(p.read_bytes() for p in paths if p.is_file()), *(t.encode() for t in texts)])


def hidden_names(scans):
    "Ids, and names of files, that must not be seen."
    table = pd.read_csv(scans / "train.csv", dtype=str)
    return {i.encode() for i in table[["patient_id", "image_id"]].values.ravel() if len(i) > 4} | {b"broken", b"MARY"}


@pytest.fixture
def named(scans, tmp_path):
    "Scans with a name in a free text of the header, and a file that cannot be read."
    folder = tmp_path / "in"
    shutil.copytree(scans / "train_images", folder)
    path = sorted(folder.rglob("*.dcm"))[0]
    ds = pydicom.dcmread(path)
    ds.ViewPosition = "MARY"
    for item in ds.get("ViewCodeSequence", []):
        item.CodeValue, item.CodeMeaning = "1", "MARY"
    ds.save_as(path)
    (folder / "broken MARY.dcm").write_bytes(b"no scan")
    return folder


def test_hashed_ids_show_no_id_anywhere(scans, named, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("MAMMO_NB_ID_KEY", str(tmp_path / "id.key"))
    out = tmp_path / "out"
    for _ in range(2):
        done = mammo_nb("predict", named, "-o", out, "--weights", weights, "--hash-ids")
        text = everything(out, done.stdout).replace(str(named).encode(), b"")
        assert done.returncode == 1 and not [i for i in hidden_names(scans) if i in text]
    table = pd.read_csv(out / "per_image.csv")
    assert table["file"].str.fullmatch("[0-9a-f]{12}").all() and (table["error"].fillna("") == "NotDicom").sum() == 1
    plain = predict_folder(named, tmp_path / "plain", weights, workers=1)
    assert np.array_equal(plain["probability"].astype(float), table["probability"].astype(float), equal_nan=True)
    (tmp_path / "id.key").unlink()
    other = predict_folder(named, tmp_path / "other", weights, hash_ids=True, workers=1)
    assert not set(other["file"]) & set(table["file"])   # another key
    assert other["patient_id"].nunique() == plain["patient_id"].nunique() == 2


def test_hashed_ids_stay_hidden_when_a_run_is_killed_and_after_one_that_showed_them(
        scans, named, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("MAMMO_NB_ID_KEY", str(tmp_path / "id.key"))
    out = tmp_path / "out"
    predict_folder(named, out, weights, workers=1)
    assert any(i in everything(out) for i in hidden_names(scans))

    def stop(journal, *given):
        add(journal, *given)
        if len(journal.rows) == 3:
            raise KeyboardInterrupt

    add = parallel.Journal.add
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parallel.Journal, "add", stop)
        predict_folder(named, out, weights, hash_ids=True, workers=1)
    text = everything(out)
    assert b'"item"' in text and not [i for i in hidden_names(scans) if i in text]
    predict_folder(named, out, weights, hash_ids=True, workers=1)
    assert not [i for i in hidden_names(scans) if i in everything(out)]


def test_hashed_previews_show_no_id(scans, named, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("MAMMO_NB_ID_KEY", str(tmp_path / "id.key"))
    drawn, real = [], predict.preview
    monkeypatch.setattr(predict, "preview", lambda breast, picture, lines: drawn.append(lines) or real(
        breast, picture, lines))
    for hashed in (False, True):
        predict_folder(named, tmp_path / "out", weights, hash_ids=hashed, workers=1)
        text, _ = "".join(map(str, drawn)).encode(), drawn.clear()
        assert any(i in text for i in hidden_names(scans)) != hashed and b"probability" in text


def test_a_table_of_sides_that_contradicts_itself_names_nobody(named, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("MAMMO_NB_ID_KEY", str(tmp_path / "id.key"))
    name = sorted(named.rglob("*.dcm"))[0].name
    (tmp_path / "sides.csv").write_text(f"file,patient_id,laterality,view\n{name},MARY,L,CC\n{name},ANNE,L,CC\n")
    done = mammo_nb("predict", named, "-o", tmp_path / "out", "--weights", weights, "--hash-ids", "--table",
                    tmp_path / "sides.csv")
    assert done.returncode == 2 and "cannot be used" in done.stdout and "MARY" not in done.stdout


def test_no_preview_of_an_earlier_run_is_left(named, weights, tmp_path):
    out = tmp_path / "out"
    predict_folder(named, out, weights, workers=1)
    first = sorted(named.rglob("*.dcm"))
    previews = {p.name for p in (out / "previews").iterdir()}
    first[1].unlink()
    first[2].write_bytes(b"no scan any more")
    table = predict_folder(named, out, weights, workers=1)
    left = {p.name for p in (out / "previews").iterdir()}
    assert left < previews and len(left) == len(previews) - 2 == table["probability"].notna().sum()


def test_without_weights_or_files_the_message_says_what_to_do(scans, tmp_path, monkeypatch):
    done = mammo_nb("predict", scans, "-o", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 2 and "--weights" in done.stdout and "Traceback" not in done.stdout
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotDicom, match="no DICOM, PNG or JPEG file"):
        find_files(tmp_path / "empty")
    with pytest.raises(MissingWeights, match="make reproduce"):
        find_weights("ensemble", tmp_path / "empty")


def test_weights_are_found_in_the_order_that_the_help_says(weights, tmp_path, monkeypatch):
    shutil.copy(ROOT / "settings.ini", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingWeights, match="no ensemble.onnx yet"):
        find_weights("ensemble")
    shutil.copytree(weights, tmp_path / "runs/old/weights")
    with pytest.raises(MissingWeights, match="no ensemble.onnx yet"):
        find_weights("ensemble")   # that run has not finished
    (tmp_path / "runs/old/report.html").touch()
    assert find_weights("ensemble") == tmp_path / "runs/old/weights"
    shutil.copytree(weights, tmp_path / "assets/trained")
    assert find_weights("ensemble") == tmp_path / "assets/trained"
    assert find_weights("ensemble", tmp_path / "runs/old") == tmp_path / "runs/old/weights"


def test_check_names_syntax_decoder_and_problems(scans, tmp_path):
    (scans / "train_images" / "broken.dcm").write_bytes(b"nothing")
    done = mammo_nb("check", scans / "train_images", "-o", tmp_path / "check.csv")
    table = pd.read_csv(tmp_path / "check.csv")
    assert done.returncode == 1 and "1 cannot be read" in done.stdout
    good = table[table["error"].isna()]
    assert len(good) == len(table) - 1 and good["decoder"].notna().all() and good["syntax"].str.contains(
        "JPEG|RLE|Explicit").all()


def test_real_scans(real_scans, weights, tmp_path):
    done = mammo_nb("predict", real_scans, "-o", tmp_path / "out", "--weights", weights)
    table = pd.read_csv(tmp_path / "out/per_image.csv").set_index("file")
    assert done.returncode == 0
    assert set(table.index) == {"dbt_4frames_128.dcm", "ddsm_P_00173_benign_L_CC.dcm", "ge_senographe_RMLO_GH133.dcm"}
    assert np.isnan(table.loc["dbt_4frames_128.dcm", "probability"]) and table["error"].isna().all()
    assert table.loc["dbt_4frames_128.dcm", "note"].startswith("no standard mammogram: tomosynthesis; 4 frames, choose")
    ge, ddsm = table.loc["ge_senographe_RMLO_GH133.dcm"], table.loc["ddsm_P_00173_benign_L_CC.dcm"]
    assert (ge["rows"], ge["columns"], ge["laterality"], ge["view"]) == (3062, 2394, "R", "MLO")
    assert (ddsm["rows"], ddsm["columns"]) == (4432, 2864)
    preview = cv2.imread(str(tmp_path / "out/previews/ge_senographe_RMLO_GH133.png"))
    assert preview is not None and (preview == (0, 165, 255)).all(axis=2).sum() > 500   # the box is drawn


def test_an_error_that_nobody_foresaw_is_one_line_and_debug_shows_where(scans, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the moon is full")
    monkeypatch.setattr("mammo_nb.mammo.tools.predict.predict_folder", fail)
    done = mammo_nb("predict", scans, "-o", tmp_path / "out")
    assert done.returncode == 2 and done.stdout.startswith("RuntimeError: the moon is full.")
    assert "--debug" in done.stdout and len(done.stdout.splitlines()) == 1
    with pytest.raises(RuntimeError, match="moon"):
        monkeypatch.setattr(sys, "argv", ["mammo-nb", "predict", str(scans), "-o", str(tmp_path), "--debug"])
        cli.main()
    assert mammo_nb("--version").stdout.strip() == f"mammo_nb {version('mammo_nb')}"


def scored(weights, to, low, high):
    "The weights with a record of their training."
    shutil.copytree(weights, to)
    about = json.loads((to / "ensemble.json").read_text())
    about["trained"] = {"data": "a drawn competition", "patients": 12, "breasts": 24, "cancers": 6,
                        "auc": (low + high) / 2, "auc_95": [low, high]}
    (to / "ensemble.json").write_text(json.dumps(about))
    return to


def test_weights_say_where_they_come_from_and_weak_ones_have_to_be_named(scans, weights, tmp_path, monkeypatch):
    shutil.copy(ROOT / "settings.ini", tmp_path)
    weak = scored(weights, tmp_path / "assets/trained", .3, .6)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeakWeights, match="0.450 .95 % 0.300 to 0.600, 24 breasts.*no better than guessing.*--weights"):
        predict_folder(scans / "train_images", tmp_path / "a", workers=1)
    named = mammo_nb("predict", scans / "train_images", "-o", tmp_path / "a", "--weights", weak, "--workers", 1,
                     cwd=tmp_path)
    for words in ("recipe test, trained on a drawn competition, 12 patients", "AUC per breast 0.450"):
        assert words in named.stdout and words in (tmp_path / "a/predict.json").read_text()
    shutil.rmtree(weak)
    scored(weights, weak, .6, .8)
    assert len(predict_folder(scans / "train_images", tmp_path / "b", workers=1))


def test_every_table_preview_and_output_says_that_this_is_no_medical_device(scans, weights, tmp_path):
    other = shutil.copytree(weights, tmp_path / "w")
    about = json.loads((other / "ensemble.json").read_text())
    (other / "ensemble.json").write_text(json.dumps({**about, "demonstration": False}))
    for place in (weights, other):
        done = mammo_nb("predict", scans / "train_images", "-o", tmp_path / "out", "--weights", place, "--workers", 1)
        assert done.stdout.splitlines()[-1].endswith("not a medical device")
        for name in ("per_image.csv", "per_breast.csv"):
            assert pd.read_csv(tmp_path / "out" / name)["note"].str.endswith("not a medical device").all()


def test_crops_says_what_found_the_boxes(tmp_path):
    y, x = np.mgrid[:160, :120]
    write_png(tmp_path / "in/a.png", ((np.hypot(x, y - 80) < 70) * 150).astype(np.uint8))
    done = mammo_nb("crops", tmp_path / "in", "-o", tmp_path / "out", "--detector", "otsu")
    assert "detector: none, breasts are found by Otsu's threshold" in done.stdout
    assert "1 of 1 files cropped (boxes: otsu 1)" in done.stdout
    graph = tmp_path / "detector.onnx"
    graph.write_bytes(b"graph")
    graph.with_suffix(".json").write_text(json.dumps({"recipe": "tiny", "ap50": .25, "sha256": sha256(graph)}))
    assert detector_in_words(graph) == f"{graph} (recipe tiny, AP50 0.250 on the images it was tested on)"


def test_in_a_log_a_progress_bar_is_one_line(scans, weights, tmp_path):
    done = mammo_nb("predict", scans / "train_images", "-o", tmp_path / "out", "--weights", weights, "--workers", 1)
    assert "\r" not in done.stdout
    assert [line for line in done.stdout.splitlines() if "predict:" in line] == [
        line for line in done.stdout.splitlines() if line.startswith("predict: 100%")] != []


def test_a_single_file_is_predicted_as_in_its_folder(scans, weights, tmp_path):
    whole = predict_folder(scans / "train_images", tmp_path / "a", weights, workers=1).set_index("file")["probability"]
    one = whole.index[0]
    table = predict_folder(scans / "train_images" / one, tmp_path / "b", weights, workers=1)
    assert table["file"].tolist() == [Path(one).name] and table["probability"].tolist() == [whole[one]]
    assert len(list((tmp_path / "b/previews").glob("*.png"))) == 1


def test_unknown_pictures_are_no_breast_and_the_table_is_pointed_to(weights, tmp_path):
    (tmp_path / "in").mkdir()
    y, x = np.mgrid[:160, :120]
    for name, grey in (("a", 120), ("b", 150), ("c", 180)):
        cv2.imwrite(str(tmp_path / f"in/{name}.png"), ((np.hypot(x, y - 80) < 70) * grey).astype(np.uint8))
    (tmp_path / "sides.csv").write_text("file,patient_id,laterality,view\nb.png,7,L,CC\nc.png,7,,CC\n")
    done = mammo_nb("predict", tmp_path / "in", "-o", tmp_path / "a", "--weights", weights, "--workers", 1)
    assert done.returncode == 0 and "known patient or side: 3" in done.stdout and "--table" in done.stdout
    assert len(pd.read_csv(tmp_path / "a/per_breast.csv")) == 0 and len(pd.read_csv(tmp_path / "a/per_image.csv")) == 3
    done = mammo_nb("predict", tmp_path / "in", "-o", tmp_path / "b", "--weights", weights, "--table",
                    tmp_path / "sides.csv", "--hash-ids", "--workers", 1)
    breasts = pd.read_csv(tmp_path / "b/per_breast.csv")
    assert "known patient or side: 2" in done.stdout and breasts[["laterality", "images"]].values.tolist() == [["L", 1]]
    done = mammo_nb("predict", get_testdata_file("CT_small.dcm"), "-o", tmp_path / "c", "--weights", weights)
    assert "no standard mammogram: CT" in done.stdout and "--table" not in done.stdout  # a CT has no side to be named


# ---- networks that give no numbers, and weights that are not as they were written
def test_a_prediction_that_is_no_number_is_an_error_row_and_its_breast_stays(scans, weights, tmp_path, monkeypatch):
    whole = predict_folder(scans / "train_images", tmp_path / "a", weights, workers=1)
    lost = whole["image_id"][(whole["patient_id"] == whole["patient_id"][0]) & (whole["laterality"] == "L")]
    opened = predict.process_engine

    class Broken:
        def __init__(self, engine):
            self.engine, self.calls = engine, 0

        def __getattr__(self, name):
            return getattr(self.engine, name)

        def __call__(self, images):
            self.calls += 1
            made = self.engine(images)
            if whole["image_id"][self.calls - 1] in set(lost):
                made[:, 1] = np.nan if self.calls % 2 else np.inf
            return made

    broken = Broken(opened(str(weights / "ensemble.onnx")))
    with monkeypatch.context() as patch:
        patch.setattr(predict, "process_engine", lambda *how: broken)
        done = mammo_nb("predict", scans / "train_images", "-o", tmp_path / "b", "--weights", weights, "--workers", 1)
    assert done.returncode == 1 and "NotFinite: a network predicted" in done.stdout
    images, breasts = (pd.read_csv(tmp_path / f"b/per_{kind}.csv", dtype={"patient_id": str, "image_id": str})
                       for kind in ("image", "breast"))
    failed = images[images["error"].notna()]
    assert set(failed["image_id"]) == set(lost) and failed["probability"].isna().all()
    assert failed["error"].str.startswith("NotFinite: ").all()
    before = pd.read_csv(tmp_path / "a/per_breast.csv", dtype={"patient_id": str})
    key = ["patient_id", "laterality"]
    assert breasts[key].equals(before[key])   # none is dropped
    gone = (breasts["patient_id"] == whole["patient_id"][0]) & (breasts["laterality"] == "L")
    assert gone.sum() == 1 and breasts.loc[gone, "probability"].isna().all()
    assert (breasts.loc[gone, "images"] == 0).all()
    assert breasts.loc[gone, "note"].item() == f"no image could be predicted; {DEMONSTRATION}"
    assert breasts[~gone].equals(before[~gone].astype(breasts.dtypes))
    predict_folder(scans / "train_images", tmp_path / "b", weights, workers=1)   # the network is whole again
    for name in ("per_image.csv", "per_breast.csv"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


@pytest.mark.parametrize("change, told", [
    ({"threshold": 99}, "threshold is 99, and must be a number from 0 to 1"),
    ({"threshold": float("nan")}, "threshold is nan"),
    ({"size": [0, 64]}, "size is 0"),
    ({"probe": [[float("inf"), 0.5], [0.5, 0.5]]}, "probe is inf, and must be a finite number"),
    ({"crops": {"confidence": 7.0}}, "confidence"),
    ({"threshold": None}, "has no threshold"),
    ("{\"threshold\": 0.5", "cannot be read"),
    ("[]", "has no"),
])
def test_edited_weights_are_told_in_a_sentence(scans, weights, tmp_path, change, told):
    place = shutil.copytree(weights, tmp_path / "weights")
    about = json.loads((place / "ensemble.json").read_text())
    if isinstance(change, dict):
        about = {k: v for k, v in (about | change).items() if v is not None}
        change = json.dumps(about)
    (place / "ensemble.json").write_text(change)
    for command in (("predict", scans / "train_images"), ("submit", scans)):
        done = mammo_nb(*command, "-o", tmp_path / "out", "--weights", place, "--workers", 1)
        lines = done.stdout.strip().splitlines()
        assert done.returncode == 2 and len(lines) == 1 and told in lines[0], done.stdout
    submission = pd.read_csv(tmp_path / "out/submission.csv")   # the sample, which stays valid
    assert submission.equals(pd.read_csv(scans / "sample_submission.csv"))


def test_an_engine_that_says_something_else_here_is_refused_and_told(scans, weights, tmp_path):
    place = shutil.copytree(weights, tmp_path / "weights")
    about = json.loads((place / "ensemble.json").read_text())
    about["probe"] = [[p + .2 if p < .5 else p - .2 for p in row] for row in about["probe"]]
    (place / "ensemble.json").write_text(json.dumps(about))
    done = mammo_nb("predict", scans / "train_images", "-o", tmp_path / "out", "--weights", place, "--workers", 1)
    assert done.returncode == 1 and "for the probe inputs it differs by 0.2" in done.stdout
    assert pd.read_csv(tmp_path / "out/per_image.csv")["probability"].isna().all()


def test_a_part_of_another_training_and_an_edited_threshold_are_noticed(scans, weights, tmp_path):
    place = shutil.copytree(weights, tmp_path / "weights")
    seal_parts(place)
    predict_folder(scans / "test_images", tmp_path / "out", place, workers=1)
    about = json.loads((place / "ensemble.json").read_text())
    (place / "ensemble.json").write_text(json.dumps(about | {"threshold": .6}))
    for command in (("predict", scans / "test_images"), ("submit", scans)):
        done = mammo_nb(*command, "-o", tmp_path / "out", "--weights", place)
        assert done.returncode == 2 and "ensemble.json of" in done.stdout and "was edited, or belongs" in done.stdout
    (place / "parts.json").unlink()   # it is wanted
    assert mammo_nb("predict", scans / "test_images", "-o", tmp_path / "out", "--weights", place).returncode == 0

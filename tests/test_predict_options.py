"The options of `mammo-nb predict`: pages of exams, the record, engine and device, the fast form, shell completion."
import base64
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from pydicom.sequence import Sequence
from test_ich_predict import bag, drawn  # noqa: F401  fixtures
from test_ich_predict import scans as heads  # noqa: F401  fixture
from test_predict import mammo_nb, scans, weights  # noqa: F401  fixtures

import mammo_nb as package
from mammo_nb.core.engines import export_onnx
from mammo_nb.core.ensembles import Ensemble
from mammo_nb.core.networks import Mirrored, create_network, save_weights
from mammo_nb.mammo.tools import predict

SECRETS = ("Roe", "Jane", "19500102", "Maiden", "Doctor", "Remark", "MARY")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def plant(path: Path):
    "Names and a birth date in every tag where one may stand, also in sequences and private tags."
    ds = pydicom.dcmread(path)
    ds.PatientName, ds.PatientBirthDate, ds.OtherPatientNames = "Roe^Jane", "19500102", "Roe^Maiden"
    ds.PatientMotherBirthName, ds.ReferringPhysicianName, ds.OperatorsName = "Maiden", "Doctor^A", "Doctor^B"
    for name in ("PatientComments", "ImageComments", "StudyDescription", "ProtocolName", "DerivationDescription"):
        setattr(ds, name, "Remark on Jane Roe")
    inner = pydicom.Dataset()
    inner.PatientName, inner.PatientBirthDate, inner.PatientComments = "Roe^Jane", "19500102", "Remark"
    request = pydicom.Dataset()
    request.RequestedProcedureDescription, request.ReferencedPatientSequence = "Remark on Jane Roe", Sequence([inner])
    ds.RequestAttributesSequence = Sequence([request])
    ds.add_new(0x00090010, "LO", "Remark")
    ds.add_new(0x00091001, "PN", "Roe^Jane")
    ds.save_as(path)


def rename_view(path: Path):
    "A name as the view, which is a free text."
    ds = pydicom.dcmread(path)
    ds.ViewPosition = "MARY"
    for item in ds.get("ViewCodeSequence", []):
        item.CodeValue, item.CodeMeaning = "1", "MARY"
    ds.save_as(path)


@pytest.fixture
def planted(scans):  # noqa: F811
    "The drawn competition with a study for each patient, planted names, a strange view and a file that is no scan."
    files = sorted((scans / "train_images").rglob("*.dcm"))
    for path in files:
        plant(path)
        ds = pydicom.dcmread(path)
        ds.StudyInstanceUID = f"1.2.{int(path.parent.name)}"
        ds.save_as(path)
    rename_view(files[0])
    (scans / "train_images/broken.dcm").write_bytes(b"no scan of Jane Roe")
    return scans / "train_images"


def ensemble(folder: Path, mirrored: bool):
    "An untrained ensemble of two with the files that it can be built from again."
    torch.manual_seed(0)
    models = [create_network("resnet10t").eval() for _ in range(2)]
    for model in models:
        torch.nn.init.normal_(model.get_classifier().weight, std=2)
    folder.mkdir()
    for k, model in enumerate(models):
        save_weights(model, folder / f"fold_{k}.safetensors", {})
    about = {"kind": "timm", "network": "resnet10t", "mirrored": mirrored,
             "weights": ["fold_0.safetensors", "fold_1.safetensors"]}
    export_onnx(Ensemble([Mirrored(m) if mirrored else m for m in models], **models[0].normalization),
                folder / "ensemble.onnx", (128, 64),
                {"threshold": .5, "crops": {}, "demonstration": True, "recipe": "test", "rebuild": about,
                 "calibration": {"method": "temperature", "temperature": 2.}})
    return folder


@pytest.fixture(scope="session")
def rebuilt(tmp_path_factory):
    return ensemble(tmp_path_factory.mktemp("rebuilt") / "weights", False)


def text_of(folder: Path) -> str:
    "All text files and all names of a folder; of pages without the bytes of their pictures."
    texts = [str(p.relative_to(folder)) for p in folder.rglob("*")]
    for path in folder.rglob("*"):
        if path.suffix in (".html", ".json", ".csv", ".journal"):
            texts.append(re.sub("base64,[^']*", "", path.read_text()))
    return "\n".join(texts)


# ---- pages
def test_pages_show_the_exams_as_the_tables_do_and_name_nobody(planted, weights, tmp_path, monkeypatch):  # noqa: F811
    written, real = [], predict.preview
    monkeypatch.setattr(predict, "preview", lambda breast, picture, lines: written.append(lines) or real(
        breast, picture, lines))
    out = tmp_path / "out"
    done = mammo_nb("predict", planted, "-o", out, "--weights", weights, "--html", "--report", out / "run.json",
                    "--workers", 1)
    assert done.returncode == 1 and "html/index.html" in done.stdout
    breasts = pd.read_csv(out / "per_breast.csv", dtype={"patient_id": str})
    pages = {p.stem: p.read_text() for p in (out / "html").glob("*.html")}
    listed = pages.pop("index")
    assert len(pages) == breasts["patient_id"].nunique() + 1 == 3   # one of the file that belongs to no exam
    for patient, own in breasts.groupby("patient_id"):
        page, = (p for p in pages.values() if f"Patient id: {patient}<" in p)
        for row in own.itertuples():
            side = {"L": "Left", "R": "Right"}[row.laterality]
            above = "<span class='above'>above</span>" if np.float32(row.probability) > np.float32(.5) else "not above"
            cells = f"<td>{side}</td><td>{row.images}</td><td>{row.probability:.3f}</td><td>{above}</td>"
            assert cells in page and f"{row.probability:.3f}</span>" in listed
        pictures = re.findall("src='data:image/png;base64,([^']*)'", page)
        previews = {p.read_bytes() for p in (out / "previews").glob(f"{patient}@*.png")}
        assert {base64.b64decode(p) for p in pictures} == previews and len(pictures) == own["images"].sum() > 2
    broken, = (p for p in pages.values() if "Patient id" not in p)
    assert "failed: NotDicom" in broken
    for page in [*pages.values(), listed]:
        words = re.sub("base64,[^']*|http-equiv", "", page)
        assert "Not a medical device" in words and "http" not in words
    everything = text_of(out) + done.stdout + str(written)
    assert not [s for s in SECRETS if s in everything]
    again = mammo_nb("predict", next(planted.glob("*/*.dcm")), "-o", out, "--weights", weights, "--html")
    assert again.returncode == 0 and len(list((out / "html").glob("*.html"))) == 2   # no page of an earlier folder


def test_the_views_stand_as_on_a_viewing_station(scans, weights, tmp_path):  # noqa: F811
    table = package.predict(scans / "train_images", weights, tmp_path / "out", html=True, workers=1)
    assert {v for v in table["view"]} == {"CC", "MLO"}
    for exam in table.attrs["exams"]:
        shown = [f"{i['laterality']} {i['view']}" for i in exam["images"]]
        assert list(dict.fromkeys(shown)) == ["R CC", "L CC", "R MLO", "L MLO"]


@pytest.mark.skipif(CHROMIUM is None or not find_spec("playwright"), reason="needs Chromium and the package playwright")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_of_an_exam_opens_offline_and_fits(scans, weights, tmp_path, width):  # noqa: F811
    from playwright.sync_api import sync_playwright
    out, requests, messages = tmp_path / "out", [], []
    package.predict(scans / "train_images", weights, out, html=True, workers=1)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.goto((out / "html/index.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("table a").first.click()
        page.wait_for_load_state()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 300)")
        assert all(p.get_attribute("alt") for p in page.locator("img").all()) and page.locator("img").count() >= 4
        page.get_by_text("All exams").click()
        page.wait_for_load_state()
        assert page.locator("h1").inner_text() == "2 exams"
        browser.close()
    assert messages == [] and all(url.startswith(("data:", out.as_uri())) for url in requests)


# ---- the record and the exit codes
def test_the_record_counts_what_happened_and_names_no_file(planted, weights, tmp_path):  # noqa: F811
    files = sorted(planted.rglob("*.dcm"))
    report = tmp_path / "run.json"
    arguments = ["predict", planted, "-o", tmp_path / "out", "--weights", weights, "--report", report]
    assert mammo_nb(*arguments).returncode == 1
    record = json.loads(report.read_text())
    about = json.loads((weights / "ensemble.json").read_text())
    assert record["counts"] == {"files": len(files), "predicted": len(files) - 2, "failed": 1, "withheld": 1,
                                "other_files": 0}
    assert record["errors"] == {"NotDicom": 1} and record["exit_code"] == 1 and record["failure"] == ""
    assert record["computed"] == ["onnxruntime, fp32"] and record["system"] == "mammo" and record["seconds"] > 0
    assert set(record["weights"]["sha256"]) == {"ensemble.json"} and about["sha256"]
    assert record["environment"]["packages"]["onnxruntime"] and record["options"]["weights"] == str(weights)
    assert not [name for p in files for name in (p.stem, "broken") if name in report.read_text()]
    assert mammo_nb(*arguments, "--allow-errors").returncode == 0
    assert json.loads(report.read_text())["exit_code"] == 0
    (planted / "broken.dcm").unlink()
    assert mammo_nb(*arguments).returncode == 0 and json.loads(report.read_text())["errors"] == {}
    (tmp_path / "empty").mkdir()
    done = mammo_nb("predict", tmp_path / "empty", "-o", tmp_path / "o", "--weights", weights, "--report", report)
    record = json.loads(report.read_text())
    assert done.returncode == 2 == record["exit_code"] and record["failure"] == "NotDicom" and "counts" not in record
    assert mammo_nb("predict", planted, "-o", tmp_path / "o", "--nothing").returncode == 2


def test_head_cts_have_the_record_and_the_engine_too(heads, bag, tmp_path):  # noqa: F811
    found = {}
    for engine in ("torch", "onnxruntime"):
        report = tmp_path / f"{engine}.json"
        done = mammo_nb("predict", heads, "-o", tmp_path / engine, "--weights", bag, "--system", "ich", "--engine",
                        engine, "--report", report, "--workers", 1)
        record = json.loads(report.read_text())
        table = pd.read_csv(tmp_path / engine / "per_slice.csv", keep_default_na=False)
        found[engine] = pd.to_numeric(table["any"], errors="coerce")
        assert record["exit_code"] == done.returncode and record["computed"] == [f"{engine}, fp32"]
        assert record["counts"]["slices"] == len(table) and record["counts"]["predicted"] == found[engine].notna().sum()
    np.testing.assert_allclose(found["torch"], found["onnxruntime"], atol=1e-4)
    done = mammo_nb("predict", heads, "-o", tmp_path / "no", "--weights", bag, "--system", "ich", "--heat-maps")
    assert done.returncode == 2 and "does not know --heat-maps" in done.stdout


# ---- engine and device
def test_engines_predict_the_same_and_are_named(scans, rebuilt, tmp_path):  # noqa: F811
    found = {}
    for engine in ("torch", "onnxruntime", *(["openvino"] if find_spec("openvino") else [])):
        table = package.predict(scans / "train_images", rebuilt, tmp_path / engine, engine=engine, workers=1)
        assert table.attrs["computed"] == [f"{engine}, fp32"] == table.attrs["record"]["computed"]
        found[engine] = table["probability"].to_numpy()
    assert found["torch"].std() > .01
    for values in found.values():
        np.testing.assert_allclose(values, found["torch"], atol=1e-4)


@pytest.mark.parametrize("options, words", [
    (("--engine", "caffe"), "No engine 'caffe': it is auto, torch, onnxruntime, openvino, tensorrt."),
    (("--device", "gpu"), "No device 'gpu': it is cpu, cuda or cuda:1."),
    (("--device", "cpu:1"), "No device 'cpu:1'"),
    (("--engine", "openvino", "--device", "cuda"), "OpenVINO computes on the CPU"),
    (("--engine", "tensorrt"), "TensorRT computes on a GPU: add --device cuda."),
    (("--device", "cuda:77"), "torch finds no GPU cuda:77 on this machine: use --device cpu.")])
def test_what_is_missing_is_said_before_a_file_is_read(scans, weights, tmp_path, options, words):  # noqa: F811
    done = mammo_nb("predict", scans / "train_images", "-o", tmp_path / "out", "--weights", weights, *options)
    assert done.returncode == 2 and words in done.stdout and len(done.stdout.splitlines()) == 1
    assert not (tmp_path / "out/per_image.csv").exists()


@pytest.mark.skipif(any(map(find_spec, ("tensorrt", "tensorrt_rtx"))), reason="TensorRT is installed")
def test_an_absent_package_comes_with_the_command_that_installs_it(scans, weights, tmp_path):  # noqa: F811
    done = mammo_nb("predict", scans / "train_images", "-o", tmp_path / "out", "--weights", weights, "--engine",
                    "tensorrt", "--device", "cuda")
    assert done.returncode == 2 and "tensorrt is not installed: pip install tensorrt-rtx" in done.stdout


# ---- the fast form
@pytest.mark.parametrize("mirrored", [False, True])
def test_fast_is_the_first_network_without_tta_and_every_output_says_so(scans, tmp_path, mirrored):  # noqa: F811
    if mirrored:
        pytest.importorskip("onnxscript", reason="the export of a network needs onnxscript")
    place, out = ensemble(tmp_path / "weights", mirrored), tmp_path / "out"
    done = mammo_nb("predict", scans / "train_images", "-o", out, "--weights", place, "--fast", "--html", "--dicom",
                    "--report", out / "run.json", "--workers", 1)
    words = "fast: one of 2 networks, no TTA"
    assert done.returncode == 0 and words in done.stdout
    table, breasts = (pd.read_csv(out / name) for name in ("per_image.csv", "per_breast.csv"))
    assert table["note"].str.contains(words).all() and breasts["note"].str.contains(words).all()
    assert "calibrated" not in breasts   # the correction belongs to the whole ensemble
    assert all(words in (out / name).read_text() for name in ("predict.json", "run.json"))
    assert all(words.lower() in p.read_text().lower() for p in (out / "html").glob("*.html"))
    made = [pydicom.dcmread(p) for p in (out / "dicom").glob("*.dcm")]
    assert all("fast" in ds.SeriesDescription for ds in made)
    alone, whole = create_network("resnet10t"), tmp_path / "one"
    torch.manual_seed(0)
    models = [create_network("resnet10t").eval() for _ in range(2)]
    for model in models:
        torch.nn.init.normal_(model.get_classifier().weight, std=2)
    whole.mkdir()
    export_onnx(Ensemble(models[:1], **alone.normalization), whole / "ensemble.onnx", (128, 64),
                {"threshold": .5, "crops": {}, "demonstration": True})
    wanted = package.predict(scans / "train_images", whole, workers=1)["probability"]
    np.testing.assert_allclose(table["probability"], wanted.astype(float), atol=1e-4)


def test_fast_needs_weights_that_can_be_rebuilt(scans, weights, tmp_path):  # noqa: F811
    done = mammo_nb("predict", scans / "train_images", "-o", tmp_path / "out", "--weights", weights, "--fast")
    assert done.returncode == 2 and "no fast form" in done.stdout and "Leave --fast out" in done.stdout


# ---- the shell
def test_the_shell_completes_commands_and_options(tmp_path):
    code = "from mammo_nb.cli import main; main()"
    def complete(words, at):
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={
            **os.environ, "_MAMMO_NB_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}).stdout
    assert "predict" in complete("mammo-nb pre", 1).split()
    assert {"--report", "--engine", "--html", "--fast"} <= set(complete("mammo-nb predict --", 2).split())
    done = subprocess.run([sys.executable, "-c", code, "--install-completion", "bash"], capture_output=True, text=True,
                          env={**os.environ, "HOME": str(tmp_path),
                               "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert done.returncode == 0 and "_MAMMO_NB_COMPLETE" in (tmp_path / ".bash_completions/mammo-nb.sh").read_text()


def test_previews_are_pictures_with_the_words_of_the_row(scans, weights, tmp_path):  # noqa: F811
    package.predict(scans / "train_images", weights, tmp_path / "out", html=True, workers=1)
    page = next(p for p in (tmp_path / "out/html").glob("*.html") if p.stem != "index").read_text()
    data = base64.b64decode(re.search("base64,([^']*)'", page)[1])
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None and (picture == (0, 165, 255)).all(axis=2).sum() > 100   # the box is drawn

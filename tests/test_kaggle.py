"""Kaggle: what is sent is what was meant, what is missing is said beforehand, and a submission that would fail there
fails here."""
import json
import os
import shlex
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import ROOT
from test_submit import write_ensemble

from mammo_nb import cli
from mammo_nb.baseline.system import Prepare
from mammo_nb.core.kaggle import connect
from mammo_nb.core.files import read_json, sha256, write_json, write_text
from mammo_nb.core import isolation, rehearse
from mammo_nb.core.kernels import _mounts
from mammo_nb.core.isolation import isolated, link_packages, make_environment, visible_packages
from mammo_nb.core.errors import ProjectError
from mammo_nb.core.kernels import (DATASET, KERNEL, KernelError, check_metadata, gather_weights, metadata_problems,
                                   prepare, slugify, stage_kernel)
from mammo_nb.core.publishing import publish_dataset, push_kernel
from mammo_nb.core.rehearse import scoring_problems
from mammo_nb.core.wheels import WheelError, build_wheel, closure_problems, read_pins, read_wheel, write_sums
from mammo_nb.mammo.tools.hidden import hidden_test

USER, COMPETITION = "somebody", "rsna-breast-cancer-detection"


# ---- metadata ------------------------------------------------------------------------------------
@pytest.fixture
def sent(tmp_path):
    "A kernel and a data set as they would be sent, without a fault."
    kernel = prepare(ROOT / "kaggle/submission", tmp_path / "submission", USER, COMPETITION)
    weights = prepare(ROOT / "kaggle/weights", tmp_path / "weights", USER)
    write_text(weights / "ensemble.onnx", "graph")
    check_metadata(kernel, weights)
    return {KERNEL: kernel, DATASET: weights}


def change(folder: Path, name: str, **values):
    about = read_json(folder / name) | values
    write_json(folder / name, {k: v for k, v in about.items() if v is not None})
    return metadata_problems(folder)


def test_the_committed_metadata_ask_for_no_internet_and_two_t4_and_name_nobody(sent):
    about = read_json(sent[KERNEL] / KERNEL)
    assert about["enable_internet"] is False and about["enable_gpu"] is True and about[
        "machine_shape"] == "NvidiaTeslaT4" and about["is_private"] is True
    assert about["dataset_sources"] == ["somebody/mammo-nb-wheels", "somebody/mammo-nb-weights"
                                        ] and about["competition_sources"] == ["rsna-breast-cancer-detection"]
    names = {
        read_json(ROOT / "kaggle" / p)["id"].partition("/")[2] for p in (f"wheels/{DATASET}", f"weights/{DATASET}")
    }
    assert {s.partition("/")[2] for s in about["dataset_sources"]} == names
    assert all("{user}/" in read_json(ROOT / "kaggle" / p)["id"]
               for p in (f"wheels/{DATASET}", f"weights/{DATASET}", f"submission/{KERNEL}"))
    assert not (ROOT / "kaggle/__init__.py").exists()   # it would hide the package kaggle


@pytest.mark.parametrize("name, values, words", [
    (KERNEL, {"title": "My submission"}, "Write the title 'mammo nb submission'"),
    (KERNEL, {"id": "https://www.kaggle.com/code/somebody/mammo-nb-submission"}, "must be user/slug"),
    (KERNEL, {"id": "somebody/mammo-nb-submission/3"}, "must be user/slug"),
    (KERNEL, {"id": "{user}/mammo-nb-submission"}, "filled in by make kaggle-push"),
    (KERNEL, {"id": "somebody/abcd", "title": "abcd"}, "give it 5 to 50"),
    (KERNEL, {"code_file": "gone.ipynb"}, "'gone.ipynb', which is not in the folder"),
    (KERNEL, {"language": "r"}, "write 'python'"),
    (KERNEL, {"kernel_type": "script"}, "write 'notebook'"),
    (KERNEL, {"enable_internet": "false"}, "without quotes"),
    (KERNEL, {"enable_internet": None}, "write true or false"),
    (KERNEL, {"machine_shape": "NvidiaTeslaP100"}, 'write "NvidiaTeslaT4"'),
    (KERNEL, {"dataset_sources": ["https://www.kaggle.com/datasets/somebody/mammo-nb-wheels"]},
     "without address or version"),
    (KERNEL, {"dataset_sources": ["mammo-nb-wheels"]}, "write user/slug"),
    (KERNEL, {"kernel_sources": ["somebody/a/2"]}, "without address or version"),
    (KERNEL, {"competition_sources": ["c/rsna-breast-cancer-detection"]}, "nothing before it"),
    (DATASET, {"title": "Weights of mammo"}, "makes the address 'weights-of-mammo'"),
    (DATASET, {"id": "somebody/abcde", "title": "abcde"}, "give it 6 to 50"),
    (DATASET, {"id": f"somebody/{'a' * 51}", "title": "a" * 51}, "has 51 characters"),
    (DATASET, {"licenses": []}, '"licenses": \\[{"name": "other"}\\]'),
    (DATASET, {"subtitle": "short"}, "give it 20 to 80"),
    (DATASET, {"resources": [{"path": "gone.onnx"}]}, "'gone.onnx', which is not in the folder")])
def test_each_rule_of_the_metadata_says_what_to_write(sent, name, values, words):
    problems = change(sent[name], name, **values)
    assert problems
    with pytest.raises(KernelError, match=words):
        check_metadata(sent[name])


@pytest.mark.parametrize("file, content, words", [
    ("scan.dcm", b"x", "patients' data"),
    ("renamed", b"\x00" * 128 + b"DICM", "patients' data"),
    ("train.csv", b"patient_id", "patients' data"),
    ("empty.onnx", b"", "is empty"),
    ("folder/inner", b"x", "is a folder")])
def test_what_must_not_or_cannot_go_is_named(sent, file, content, words):
    path = sent[DATASET] / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(KernelError, match=words):
        check_metadata(sent[DATASET])


def test_sizes_and_empty_folders(sent, tmp_path, monkeypatch):
    from mammo_nb.core import kernels
    monkeypatch.setattr(kernels, "MOST_BYTES", 4)
    monkeypatch.setattr(kernels, "MOST_CODE", 10)
    assert ["Kaggle takes 0" in p for p in metadata_problems(sent[DATASET])
            ] == [True] and "Clear its outputs" in metadata_problems(sent[KERNEL])[0]
    monkeypatch.setattr(kernels, "MOST_FILES", 0)
    assert any("1 files: Kaggle takes 0" in p for p in metadata_problems(sent[DATASET]))
    (sent[DATASET] / "ensemble.onnx").unlink()
    assert "make kaggle-weights first" in metadata_problems(sent[DATASET])[0]
    (sent[KERNEL] / "submission.ipynb").write_text("{}")
    (sent[DATASET] / DATASET).write_text("{")
    with pytest.raises(KernelError, match="is no JSON"):
        metadata_problems(sent[DATASET])
    with pytest.raises(KernelError, match="neither"):
        prepare(tmp_path, tmp_path / "to", USER)


def test_titles_become_addresses_as_kaggles_own_package_makes_them():
    theirs = pytest.importorskip("slugify").slugify
    for title in ("mammo nb submission", "Mammo_NB: 2048x1024", "a  b--c ", "RSNA 2023"):
        assert slugify(title) == theirs(title)


# ---- weights -------------------------------------------------------------------------------------
@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "run/weights"
    for name in ("ensemble.onnx", "fold_0.safetensors", "ensemble_sm75.engine", "origin.pth", "notes.csv"):
        write_text(folder / name, f"content of {name}")
    write_json(folder / "ensemble.json", {"sha256": sha256(folder / "ensemble.onnx")})
    write_json(folder / "ensemble_sm75.engine.json", {"sha256": sha256(folder / "ensemble_sm75.engine")})
    return folder


def test_weights_come_with_a_manifest_and_without_pickles(weights, tmp_path):
    manifest = gather_weights(weights, tmp_path / "to", "mammo", "ensemble")
    carried = {
        "ensemble.onnx", "ensemble.json", "fold_0.safetensors", "ensemble_sm75.engine", "ensemble_sm75.engine.json"
    }
    assert set(manifest["files"]) == carried
    assert {p.name for p in (tmp_path / "to").iterdir()} == {*carried, "manifest.json"}
    assert read_json(tmp_path / "to/manifest.json") == manifest and manifest["system"] == "mammo"
    assert manifest["files"]["ensemble.onnx"] == {"bytes": 24, "sha256": sha256(tmp_path / "to/ensemble.onnx")}
    assert gather_weights(weights, tmp_path / "to", "mammo", "ensemble") == manifest   # a second time, over the first


@pytest.mark.parametrize("spoil, words", [
    (lambda w: (w / "ensemble.onnx").write_text("another"), "ensemble.onnx differs from the checksum"),
    (lambda w: (w / "ensemble_sm75.engine.json").unlink(), "ensemble_sm75.engine.json is not there"),
    (lambda w: [(w / n).unlink() for n in ("ensemble.onnx", "ensemble.json")],
     "has no ensemble.onnx: name the weights of a finished run")])
def test_weights_that_are_not_what_they_say_stay_here(weights, tmp_path, spoil, words):
    spoil(weights)
    with pytest.raises(ProjectError, match=words):
        gather_weights(weights, tmp_path / "to", "mammo", "ensemble")
    assert not (tmp_path / "to").exists()


# ---- wheels --------------------------------------------------------------------------------------
def make_wheel(folder: Path, name: str, version: str, *requires: str, tags: str = "py3-none-any",
               python: str = "") -> Path:
    path = folder / f"{name}-{version}-{tags}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            f"{name}-{version}.dist-info/METADATA", "\n".join([
                "Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}",
                *[f"Requires-Python: {python}"] * bool(python), *(f"Requires-Dist: {r}" for r in requires)
            ]) + "\n\n")
        archive.writestr(f"{name}-{version}.dist-info/WHEEL",
                         f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tags}\n")
        archive.writestr(f"{name}-{version}.dist-info/RECORD", "")
    return path


IMAGE = {"python": "3.12.13", "numpy": "2.0.2"}


def test_a_folder_that_is_whole_has_no_problems_and_each_gap_is_one(tmp_path):
    make_wheel(tmp_path, "ours", "1.0", "numpy>=1.26", "codec[fast]", "old; python_version < '3.12'",
               "windows; sys_platform == 'win32'", "notebooks; extra == 'dev'")
    codec = make_wheel(tmp_path, "codec", "2.0", "quick>=1; extra == 'fast'", tags="cp312-cp312-manylinux_2_28_x86_64")
    quick = make_wheel(tmp_path, "quick", "1.5", tags="cp311-abi3-manylinux_2_35_x86_64")
    assert closure_problems(tmp_path, IMAGE, ["ours"]) == []
    (dev,) = closure_problems(tmp_path, IMAGE, ["ours[dev]"])
    assert "ours 1.0 needs notebooks" in dev and "add it to lock.txt" in dev
    quick.unlink()
    (gone,) = closure_problems(tmp_path, IMAGE, ["ours"])
    assert gone.startswith("codec 2.0 needs quick>=1")
    (older,) = closure_problems(tmp_path, {**IMAGE, "quick": "0.9"}, ["ours"])
    assert "the image has 0.9" in older
    codec.unlink()
    make_wheel(tmp_path, "codec", "2.0", tags="cp311-cp311-manylinux_2_28_x86_64")
    assert any("is not for CPython 3.12" in p for p in closure_problems(tmp_path, {**IMAGE, "quick": "1.5"}, ["ours"]))


@pytest.mark.parametrize("wheel, words", [
    (dict(name="ours", version="2.0"), "not the only ours"),
    (dict(name="numpy", version="2.4.0"), "would replace numpy 2.0.2"),
    (dict(name="new", version="1.0", python=">=3.13"), "wants Python >=3.13"),
    (dict(name="glibc", version="1.0", tags="py3-none-manylinux_2_39_x86_64"), "glibc 2.35"),
    (dict(name="arm", version="1.0", tags="py3-none-manylinux_2_28_aarch64"), "Linux x86_64")])
def test_wheels_that_do_not_belong_are_found(tmp_path, wheel, words):
    make_wheel(tmp_path, "ours", "1.0")
    make_wheel(tmp_path, **wheel)
    assert any(words in p for p in closure_problems(tmp_path, IMAGE, ["ours"]))


def test_what_is_no_wheel_is_said_so(tmp_path):
    (tmp_path / "half-1.0-py3-none-any.whl").write_bytes(b"PK")
    with pytest.raises(WheelError, match="half-1.0.* is no wheel"):
        read_wheel(tmp_path / "half-1.0-py3-none-any.whl")
    write_text(tmp_path / "image.txt", "numpy>=2\n")
    with pytest.raises(WheelError, match="not of the form name==version"):
        read_pins(tmp_path / "image.txt")


def test_lock_and_image_fit_what_the_package_asks_for():
    """The committed lists against pyproject.toml: a dependency added there and not locked fails here, before it fails
    at Kaggle."""
    tomllib = pytest.importorskip("tomllib")   # Python 3.11
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    offered = {n: v for f in ("image", "lock", "source") for n, v in read_pins(ROOT / f"kaggle/wheels/{f}.txt").items()}
    for r in map(Requirement, project["dependencies"] + project["optional-dependencies"]["kaggle"]):
        version = offered.get(str(canonicalize_name(r.name)))
        assert version and r.specifier.contains(
            version), f"{r}: bring it (mammo-nb kaggle-wheels --lock) or list it in image.txt"
    assert all("--hash=sha256:" in line for f in ("lock", "source")
               for line in (ROOT / f"kaggle/wheels/{f}.txt").read_text().splitlines() if not line.startswith("#"))
    assert {"papermill", "nbdev", "jupytext", "kaggle", "pytest"}.isdisjoint(
        str(canonicalize_name(Requirement(r).name)) for r in project["dependencies"])


# ---- the real client against a recorder ----------------------------------------------------------
class Handler(BaseHTTPRequestHandler):
    "The calls of kaggle 2.2.4 that sending needs, and a storage that takes PUTs."
    def do_POST(self):
        kaggle, call = self.server, self.path.rpartition("/")[2]
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kaggle.log.append((call, asked))
        if kaggle.refusals.get(call):
            return self.answer(kaggle.refusals.pop(call), {"message": "no"})
        ref = f"{asked.get('ownerSlug')}/{asked.get('datasetSlug')}"
        if call == "GetDatasetStatus":
            return self.answer(200, {"status": "READY" if kaggle.ready.get(ref) else "BLOBS_RECEIVED"
                                     }) if ref in kaggle.sets else self.answer(404, {})
        if call == "GetDataset":
            kaggle.ready[ref] = True   # ready when asked again
            return self.answer(200, {"currentVersionNumber": kaggle.sets[ref]})
        if call == "StartBlobUpload":
            return self.answer(
                200, {"token": f"token of {asked['name']}", "createUrl": f"{kaggle.url}/storage/{asked['name']}"})
        if call in ("CreateDataset", "CreateDatasetVersion"):
            ref = f"{asked['ownerSlug']}/{asked.get('slug') or asked['datasetSlug']}"
            kaggle.sets[ref] = kaggle.sets.get(ref, 0) + 1
            kaggle.ready[ref] = False
            return self.answer(200, {"status": "ok", "url": f"https://www.kaggle.com/datasets/{ref}"})
        if call == "SaveKernel":
            return self.answer(
                200, {"versionNumber": 4, "url": f"https://www.kaggle.com/code/{asked['slug']}", **kaggle.saved})
        if call == "GetKernelSessionStatus":
            return self.answer(200, kaggle.states.pop(0))
        if call == "ListKernelSessionOutput":
            return self.answer(
                200, {
                    "files": [], "log": json.dumps([{"stream_name": "stdout", "time": t, "data": f"line {t}\n"}
                                                    for t in range(100)] + [{
                                                        "stream_name": "stderr", "time": 100,
                                                        "data": "ModuleNotFoundError: No module named 'pydicom'\n"
                                                    }])
                })
        self.answer(500, {"message": f"{call} is not expected"})

    def do_PUT(self):
        kaggle, name = self.server, self.path.rpartition("/")[2]
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if name in kaggle.broken:
            return self.answer(400, {})
        kaggle.storage[name] = content
        self.answer(200, {})

    def answer(self, status: int, content: dict):
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    "A Kaggle on the loopback interface, the package pointed at it, credentials in the environment, no waiting."
    for name in [n for n in os.environ if n.startswith("KAGGLE") or n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in {
            "HOME": str(tmp_path / "home"), "KAGGLE_USERNAME": USER, "KAGGLE_KEY": "key", "TMPDIR": str(tmp_path)
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "home").mkdir()
    extended, environment = (pytest.importorskip(f"kaggle{rest}")
                             for rest in (".api.kaggle_api_extended", "sdk.kaggle_env"))
    monkeypatch.setattr(extended.tempfile, "tempdir", str(tmp_path))   # where it remembers uploads
    monkeypatch.setattr(extended.KaggleApi, "config", str(tmp_path / "home" / "kaggle.json"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.log, server.broken = [], set()
    server.refusals, server.sets, server.ready, server.storage, server.saved = {}, {}, {}, {}, {}
    server.states = [{"status": "QUEUED"}, {"status": "RUNNING"}, {"status": "RUNNING"}, {"status": "COMPLETE"}]
    server.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setitem(environment._env_to_endpoint, environment.KaggleEnv.PROD, server.url)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": .01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def asked(kaggle, call: str) -> list[dict]:
    return [what for name, what in kaggle.log if name == call]


@pytest.fixture
def outbox(tmp_path, monkeypatch):
    "A working directory with kaggle/ and the two data sets, as make would have made them."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kaggle").symlink_to(ROOT / "kaggle")
    for name in ("wheels/mammo_nb-0.1.0-py3-none-any.whl", "wheels/SHA256SUMS", "weights/ensemble.onnx",
                 "weights/manifest.json"):
        write_text(tmp_path / "build/kaggle" / name, f"content of {name}")
    write_json(tmp_path / "build/kaggle/weights/manifest.json", {"system": "mammo", "files": {}})
    return tmp_path / "build/kaggle"


def command(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mammo-nb", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0


def test_make_kaggle_push_makes_the_data_sets_and_pushes_the_notebook(kaggle, outbox, monkeypatch, capsys):
    assert command(monkeypatch, "kaggle-push") == 0
    wheels, weights = asked(kaggle, "CreateDataset")
    assert (wheels["ownerSlug"], wheels["slug"], wheels["title"], wheels["isPrivate"],
            wheels["licenseName"]) == (USER, "mammo-nb-wheels", "mammo nb wheels", True, "other")
    assert {f["token"] for f in wheels["files"]} == {"token of SHA256SUMS", "token of mammo_nb-0.1.0-py3-none-any.whl"
                                                     } and weights["slug"] == "mammo-nb-weights"
    # the bytes came
    assert set(kaggle.storage) == {"SHA256SUMS", "mammo_nb-0.1.0-py3-none-any.whl", "ensemble.onnx", "manifest.json"}
    assert kaggle.storage["ensemble.onnx"] == (outbox / "weights/ensemble.onnx").read_bytes()
    (pushed,) = asked(kaggle, "SaveKernel")
    assert (pushed["slug"], pushed["newTitle"], pushed["machineShape"]) == (f"{USER}/mammo-nb-submission",
                                                                            "mammo nb submission", "NvidiaTeslaT4")
    assert pushed["enableInternet"] is False and pushed["enableGpu"] is True and pushed["isPrivate"] is True and pushed[
        "kernelType"] == "notebook"
    assert pushed["datasetDataSources"] == [f"{USER}/mammo-nb-wheels", f"{USER}/mammo-nb-weights"
                                            ] and pushed["competitionDataSources"] == ["rsna-breast-cancer-detection"]
    cells = "".join(c["source"] for c in json.loads(pushed["text"])["cells"])
    assert "--no-index" in cells and "read_submission(mounted(weights))" in cells
    order = [call for call, _ in kaggle.log if call in ("CreateDataset", "SaveKernel", "GetKernelSessionStatus")]
    assert order == ["CreateDataset", "CreateDataset", "SaveKernel"] + ["GetKernelSessionStatus"] * 4
    said = capsys.readouterr().out
    assert all(words in said
               for words in ("somebody/mammo-nb-wheels version 1 is ready", "is queued", "is running", "is complete",
                             "it has run: https://www.kaggle.com/code/somebody/mammo-nb-submission; submit"))


def test_a_data_set_that_is_there_gets_a_version_and_is_waited_for(kaggle, outbox):
    kaggle.sets = {f"{USER}/mammo-nb-weights": 3}
    folder = prepare(ROOT / "kaggle/weights", outbox / "weights", USER)
    assert publish_dataset(connect(), folder, "epoch 8") == 4
    (version,) = asked(kaggle, "CreateDatasetVersion")
    assert version["ownerSlug"] == USER and version["datasetSlug"] == "mammo-nb-weights" and version["body"][
        "versionNotes"] == "epoch 8" and not asked(kaggle, "CreateDataset")
    assert {f["token"] for f in version["body"]["files"]} == {"token of ensemble.onnx", "token of manifest.json"}
    after = [call for call, _ in kaggle.log][[call for call, _ in kaggle.log].index("CreateDatasetVersion"):]
    assert after.count("GetDatasetStatus") == 2   # "received" the first time


def test_an_upload_that_fails_makes_no_version(kaggle, outbox):
    kaggle.broken = {"ensemble.onnx"}
    with pytest.raises(KernelError, match="ensemble.onnx did not reach Kaggle, so no version"):
        publish_dataset(connect(), prepare(ROOT / "kaggle/weights", outbox / "weights", USER), "")
    assert not asked(kaggle, "CreateDataset") and not kaggle.sets


def test_the_log_of_a_kernel_that_fails_is_printed(kaggle, sent, capsys):
    kaggle.states = [{"status": "RUNNING"}, {"status": "ERROR", "failureMessage": "Notebook threw an exception"}]
    with pytest.raises(KernelError, match="ended with error: Notebook threw an exception.*log is above"):
        push_kernel(connect(), sent[KERNEL], shown=3)
    said = capsys.readouterr().out.splitlines()
    assert said[-3:] == ["line 98", "line 99", "ModuleNotFoundError: No module named 'pydicom'"] and asked(
        kaggle, "ListKernelSessionOutput")[0]["kernelSlug"] == "mammo-nb-submission"


@pytest.mark.parametrize("saved, words", [
    ({"error": "Maximum batch GPU session count of 2 reached."}, "session count of 2"),
    ({"invalidDatasetSources": ["somebody/mammo-nb-wheels"]}, "pushed without somebody/mammo-nb-wheels"),
    ({"invalidCompetitionSources": ["rsna-breast-cancer-detection"]}, "accept the competition's rules")])
def test_what_kaggle_does_not_attach_is_an_error(kaggle, sent, saved, words):
    kaggle.saved = saved
    with pytest.raises(KernelError, match=words):
        push_kernel(connect(), sent[KERNEL])
    assert not asked(kaggle, "GetKernelSessionStatus")


@pytest.mark.parametrize("call, status, words", [
    ("SaveKernel", 401, "kaggle.com/settings"),
    ("SaveKernel", 403, "verify your phone number"),
    ("SaveKernel", 500, "Run again")])
def test_refusals_are_explained(kaggle, sent, call, status, words):
    kaggle.refusals = {call: status}
    with pytest.raises(KernelError, match=words):
        push_kernel(connect(), sent[KERNEL])


def test_nothing_is_sent_if_anything_is_wrong(kaggle, outbox, monkeypatch, capsys):
    write_text(outbox / "weights/1234.dcm", "a scan")
    assert command(
        monkeypatch,
        "kaggle-push") == 2 and "1234.dcm looks like patients' data" in capsys.readouterr().err and not kaggle.log
    assert command(monkeypatch, "kaggle-push", "--only", "wheel") == 2 and not kaggle.log


def test_without_credentials_the_command_says_what_to_do(kaggle, outbox, monkeypatch, capsys):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    assert command(monkeypatch,
                   "kaggle-push") == 2 and "kaggle.com/settings" in capsys.readouterr().err and not kaggle.log


# ---- a stage as a kernel -------------------------------------------------------------------------
def test_a_stage_finds_its_inputs_where_kaggle_mounts_them(outbox, tmp_path, monkeypatch):
    for name in ("nbs", "settings.ini"):
        (tmp_path / name).symlink_to(ROOT / name)
    assert command(monkeypatch, "kaggle-kernel", "crops", "--recipe", "winner_fold2", "--after", "detector",
                   "--user", USER) == 0
    made = outbox / "mammo-nb-mammo-04-crops"
    about = read_json(made / KERNEL)
    assert about["competition_sources"] == ["rsna-breast-cancer-detection"] and about["kernel_sources"] == [
        f"{USER}/mammo-nb-mammo-03-detector"
    ] and about["enable_internet"] is True and metadata_problems(made) == []
    cells = nbformat.read(made / "mammo-nb-mammo-04-crops.ipynb", as_version=4).cells
    chosen = next(c.source for c in cells if c.id == "chosen")
    assert "Run.create('/kaggle/working/runs/winner_fold2', find_system('mammo'), 'winner_fold2')" in chosen
    inputs, work = tmp_path / "input", tmp_path / "working"
    work.mkdir()
    (inputs / "competitions/rsna-breast-cancer-detection").mkdir(parents=True)
    wheels = inputs / "datasets/somebody/mammo-nb-wheels"
    wheels.mkdir(parents=True)
    make_wheel(wheels, "mammo_nb", "0.1.0")
    write_sums(wheels)
    write_text(inputs / "notebooks/somebody/mammo-nb-mammo-03-detector/runs/winner_fold2/weights/detector.json", "{}")
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    for name in ("MAMMO_NB_RAW", "MAMMO_NB_SAMPLES", "MAMMO_NB_RUNS"):
        monkeypatch.setenv(name, "before")
    monkeypatch.chdir(tmp_path)
    exec(cells[0].source.replace("/kaggle/input", str(inputs)).replace("/kaggle/working", str(work)), {})
    assert calls[0][-1] == f"{wheels}/mammo_nb-0.1.0-py3-none-any.whl[train]"
    from mammo_nb.core.settings import read_paths
    paths = read_paths(work / "runs/winner_fold2")   # from the working directory, as the stage will
    assert paths.raw == inputs / "competitions" and (paths.raw / "rsna-breast-cancer-detection").is_dir(
    ) and paths.weights == work / "runs/winner_fold2/weights"
    assert (paths.weights / "detector.json").is_file()


def test_what_is_no_stage_is_refused(tmp_path):
    with pytest.raises(KernelError, match="is no stage"):
        stage_kernel(ROOT, next((ROOT / "nbs/core").glob("*_windows.py")), tmp_path / "k", USER, "mammo")


# ---- rehearsal -----------------------------------------------------------------------------------
SAMPLE = pd.DataFrame({"prediction_id": ["1_L", "1_R", "2_L"], "cancer": .02})


@pytest.mark.parametrize("table, words", [
    (SAMPLE.rename(columns={"cancer": "target"}),
     ["The columns are prediction_id, target, not prediction_id, cancer."]),
    (SAMPLE[["cancer", "prediction_id"]], ["The columns are cancer, prediction_id"]),
    (SAMPLE.iloc[:2], ["1 of 3 prediction_id are missing, such as 2_L"]),
    (pd.concat([SAMPLE, SAMPLE.iloc[:1]]), ["1 prediction_id occur twice, such as 1_L"]),
    (SAMPLE.assign(prediction_id=["1_L", "1_R", "9_L"]),
     ["are not in the sample, such as 9_L", "are missing, such as 2_L"]),
    (SAMPLE.assign(cancer=[0, "", 1]), ["1 values of cancer are no number from 0 to 1, such as '' for 1_R"]),
    (SAMPLE.assign(cancer=[0, "yes", float("inf")]), ["2 values"]),
    (SAMPLE.assign(cancer=[0, 1.01, -1]), ["2 values"]),
    (SAMPLE.assign(cancer=float("nan")), ["3 values"])])
def test_a_file_that_the_scorer_would_refuse_is_refused(tmp_path, table, words):
    SAMPLE.to_csv(tmp_path / "sample.csv", index=False)
    table.to_csv(tmp_path / "submission.csv", index=False)
    problems = scoring_problems(tmp_path / "submission.csv", tmp_path / "sample.csv")
    assert len(problems) == len(words) and all(w in p for w, p in zip(words, problems))


def test_a_good_file_in_any_order_is_taken_and_none_is_not(tmp_path):
    SAMPLE.to_csv(tmp_path / "sample.csv", index=False)
    SAMPLE.iloc[::-1].assign(cancer=[0, 1, .5]).to_csv(tmp_path / "submission.csv", index=False)
    assert scoring_problems(tmp_path / "submission.csv", tmp_path / "sample.csv") == []
    assert scoring_problems(tmp_path / "none.csv", tmp_path / "sample.csv") == ["There is no none.csv."]
    (tmp_path / "empty.csv").write_text("")
    assert "is no table" in scoring_problems(tmp_path / "empty.csv", tmp_path / "sample.csv")[0]


def test_the_environment_sees_the_image_and_nothing_else(tmp_path):
    "Its packages are linked, what they need too; the project's others are not there, and neither is the checkout."
    image = ["numpy", "pandas", "ipykernel", "pip"]
    python = make_environment(tmp_path / "venv", image)
    run = lambda code, **how: subprocess.run([python, "-c", code], cwd=tmp_path, env={
        "PATH": os.environ["PATH"], "HOME": str(tmp_path)
    }, capture_output=True, text=True, **how)
    assert run(
        "import numpy, pandas, dateutil, ipykernel, zmq, sys; print(pandas.DataFrame({'a': "
        "numpy.arange(3)})['a'].sum())"
    ).stdout == "3\n"
    for outside in ("torch", "pydicom", "papermill", "mammo_nb", "tqdm"):
        assert f"No module named '{outside}'" in run(f"import {outside}").stderr
    make_wheel(tmp_path, "ours", "1.0", "numpy>=1.26", "tqdm")
    done = run(
        "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-m', 'pip', 'install', '--no-index', "
        "'--find-links', '.', 'ours']).returncode)"
    )
    # pip sees what is linked, and misses what is not
    assert done.returncode and "No matching distribution found for tqdm" in done.stderr


def test_packages_that_share_a_folder_are_taken_apart(tmp_path):
    link_packages({"protobuf"}, tmp_path)   # google/ is shared in many environments, and is a folder without __init__
    assert (tmp_path / "google/protobuf/__init__.py").is_file()
    assert "pip" in visible_packages(["pip", "not-installed"]) and "not-installed" not in visible_packages(
        ["not-installed"])


@pytest.mark.parametrize("spaces", [True, False])
def test_no_network_and_no_writing(tmp_path, monkeypatch, spaces):
    if spaces and not isolation._unshare():
        pytest.skip("unshare is not permitted here")
    if not spaces:
        monkeypatch.setattr(isolation, "_unshare", lambda: [])
    python, inputs = make_environment(tmp_path / "venv", []), tmp_path / "input"
    write_text(inputs / "a/test.csv", "id\n")
    code = (
        "import socket\ntry: socket.create_connection(('192.0.2.1', 80), timeout=5)\nexcept OSError as e: print(e)\n"
        "import os; print(os.access('input/a/test.csv', os.W_OK) and open('input/a/test.csv', 'r+').writable())"
        if spaces else
        "import socket\ntry: socket.create_connection(('192.0.2.1', 80), timeout=5)\nexcept OSError as e: print(e)")
    command, how = isolated([python, "-c", code], inputs, python)
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    refused, *writable = done.stdout.splitlines()
    if spaces:
        assert "unreachable" in refused and writable == ["False"] and "unshare" in how
    else:
        assert refused == "the rehearsal has no network" and not (
            inputs / "a/test.csv").stat().st_mode & 0o222 and not (inputs / "a").stat().st_mode & 0o222
    for path in (inputs, inputs / "a"):
        path.chmod(0o755)


LEAKS = {
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
    "low level": "_socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect(('192.0.2.1', 80))",
    "udp, low level": "_socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
    "message": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendmsg([b'x'], [], 0, ('192.0.2.1', 53))",
    "connect_ex": "socket.socket().connect_ex(('192.0.2.1', 80))",
    "name": "socket.getaddrinfo('example.org', 80)",
    "raw": "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
    "packet": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
}


@pytest.mark.parametrize("how", LEAKS)
def test_without_name_spaces_no_socket_of_python_gets_out(tmp_path, monkeypatch, how):
    monkeypatch.setattr(isolation, "_unshare", lambda: [])
    python = make_environment(tmp_path / "venv", [])
    (tmp_path / "input").mkdir()
    code = (f"import socket, _socket\ntry: {LEAKS[how]}\nexcept OSError as e: print(e)\n"
            "with socket.socket() as a:\n    a.bind(('127.0.0.1', 0)); a.listen()\n"
            "    socket.create_connection(a.getsockname()).close(); print('local')")
    command, told = isolated([python, "-c", code], tmp_path / "input", python)
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.stdout.splitlines() == ["the rehearsal has no network", "local"], done.stderr
    assert told.startswith("not isolated")


def checkout_for(folder: Path, image: list[str]) -> Path:
    "A checkout whose image list has the names of some packages."
    for name in ("kaggle/submission", "mammo_nb"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(ROOT / name)
    write_text(folder / "kaggle/wheels/image.txt", "".join(f"{name}==1\n" for name in image))
    return folder


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    "Our own wheel, from the package as it is, and constraints."
    folder = tmp_path_factory.mktemp("wheels")
    build_wheel(ROOT, folder)
    (ours,) = map(read_wheel, folder.glob("*.whl"))
    write_text(folder / "constraints.txt", f"{ours.name}=={ours.version}\n")
    write_sums(folder)
    return folder


@pytest.mark.parametrize("harm", ["edited", "added", "removed"])
def test_the_submission_installs_the_wheels_that_were_made(tmp_path, harm):
    "The cell of the committed notebook, which the kernels of stages have too."
    for name in ("one", "two"):
        make_wheel(tmp_path, name, "1.0")
    write_text(tmp_path / "constraints.txt", "one==1.0\ntwo==1.0\n")
    write_sums(tmp_path)
    names = {}
    exec(_mounts(ROOT), names)
    names["check_wheels"](tmp_path)
    if harm == "edited":
        with open(tmp_path / "one-1.0-py3-none-any.whl", "ab") as file:
            file.write(b"x")
    elif harm == "added":
        make_wheel(tmp_path, "three", "1.0")
    else:
        (tmp_path / "two-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ValueError, match="differs from SHA256SUMS"):
        names["check_wheels"](tmp_path)


def test_a_rehearsal_with_the_real_package(wheels, tmp_path):
    """The committed notebook with the package itself and the smallest weights, in an environment that has what the
    package requires and nothing else. The manifest of the weights alone names the system; `.ci/run` rehearses all."""
    (ours,) = map(read_wheel, wheels.glob("*.whl"))
    image = [r.name for r in ours.requires if not r.marker or r.marker.evaluate({"extra": ""})]
    root = checkout_for(tmp_path / "checkout", ["python", "ipykernel", "pip", *image])
    write_ensemble(tmp_path / "run", "baseline", prepare=asdict(Prepare(height=128, width=64)))
    gather_weights(tmp_path / "run", tmp_path / "weights", "baseline", "baseline")
    submission = rehearse.rehearse(root, wheels, tmp_path / "weights", tmp_path / "scratch", extras="")
    ours, report = pd.read_csv(submission), read_json(submission.parent / "submit.json")
    sample = pd.read_csv(next((tmp_path / "scratch/input").rglob("sample_submission.csv")))
    assert ours["prediction_id"].tolist() == sample["prediction_id"].tolist() and ours["cancer"].isin([0, 1]).all()
    assert (report["system"], report["failed"], report["budget_seconds"]) == ("baseline", 1, 30600)
    assert report["predicted"] == report["items"] - 1 > 10


def test_a_rehearsal_fails_where_a_package_is_missing(wheels, tmp_path):
    "tqdm is in this environment, and neither in the image's list nor among the wheels."
    root = checkout_for(tmp_path / "checkout", ["python", "numpy", "pandas", "ipykernel", "pip"])
    write_ensemble(tmp_path / "run")
    gather_weights(tmp_path / "run", tmp_path / "weights", "mammo", "ensemble")
    with pytest.raises(rehearse.RehearsalError, match="No matching distribution found"):
        rehearse.rehearse(root, wheels, tmp_path / "weights", tmp_path / "scratch", extras="")


def test_the_hidden_test_set_is_the_same_every_time(tmp_path):
    for name in "ab":
        hidden_test(tmp_path / name, (64, 48))
    files = {
        n: {p.relative_to(tmp_path / n).as_posix(): sha256(p) for p in (tmp_path / n).rglob("*") if p.is_file()}
        for n in "ab"
    }
    assert files["a"] == files["b"] and not any("truth" in f for f in files["a"])


def test_make_calls_the_commands():
    def printed(*arguments):
        done = subprocess.run(["make", "-n", *arguments, "VENV=v", "-o", "v/.installed", "-o", "nbs/.exported"],
                              cwd=ROOT, capture_output=True, text=True, check=True)
        return " ".join(shlex.split(done.stdout))
    assert printed("kaggle-wheels") == "v/bin/mammo-nb kaggle-wheels"
    assert printed("kaggle-wheels", "LOCK=1") == "v/bin/mammo-nb kaggle-wheels --lock"
    assert printed("kaggle-weights", "WEIGHTS=w") == "v/bin/mammo-nb kaggle-weights w"
    assert printed("kaggle-weights", "SYSTEM=s", "WEIGHTS=w") == "v/bin/mammo-nb kaggle-weights w --system s"
    assert printed("kaggle-rehearse", "SYSTEM=s", "WEIGHTS=w") == "v/bin/mammo-nb kaggle-rehearse w --system s"
    assert printed("kaggle-weights", "WEIGHTS=my weights") == "v/bin/mammo-nb kaggle-weights my weights"
    assert printed("kaggle-rehearse", "EXACT=p") == "v/bin/mammo-nb kaggle-rehearse --exact p"
    assert printed("kaggle-push", "ONLY=kernel") == "v/bin/mammo-nb kaggle-push --only kernel"


def test_a_rehearsal_looks_at_the_weights_before_it_gathers_wheels(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mammo_nb.core.wheels.make_wheels", lambda *_: pytest.fail("wheels are gathered first"))
    monkeypatch.setattr(sys, "argv", ["mammo-nb", "kaggle-rehearse", str(tmp_path / "gone")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and "gone does not exist" in capsys.readouterr().err

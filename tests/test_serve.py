"`predict --watch` and `mammo-nb serve`: each exam once, nothing lost when killed, unknown callers refused, no names."
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import pandas as pd
import pydicom
import pydicom.examples
import pytest
from conftest import ROOT
from ich import bag, give_uids  # noqa: F401  bag is a fixture
from test_ich_predict import drawn  # noqa: F401  fixture
from test_ich_predict import scans as heads  # noqa: F401  fixture
from test_predict import scans, weights  # noqa: F401  fixtures
from test_predict_options import SECRETS, plant, rename_view, text_of

from mammo_nb import watching
from mammo_nb.watching import Arrivals, exam_name, finished, predict_exam

pynetdicom = pytest.importorskip("pynetdicom", reason="needs pynetdicom, of the extra clinic")
pytest.importorskip("fastapi", reason="needs fastapi, of the extra clinic")
receiving = pytest.importorskip("mammo_nb.receiving")
STORESCU = shutil.which("storescu")
LIMIT = 240   # seconds that a condition may take
TOKEN = "0123456789abcdef"


def until(condition, process=None):
    "Wait for a condition, and give its value."
    pause, end = threading.Event(), time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        assert process is None or process.poll() is None, process.lines
        pause.wait(.05)
    return value


def make_dicom(path, shade=0, **tags):
    "An example of pydicom with other tags."
    ds = deepcopy(pydicom.examples.ct)
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.PixelData = bytes([shade]) + ds.PixelData[1:]
    ds.save_as(path)
    return path


class Command:
    "mammo-nb in a process; its lines as they are printed."
    def __init__(self, *arguments, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from mammo_nb.cli import main; main()", *map(str, arguments)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **environment},
            # a job in the background of a shell ignores Ctrl-C, and so would what it starts
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")))
        self.reader.start()
        self.poll = self.process.poll

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end(signal.SIGKILL)

    def end(self, how=signal.SIGINT) -> int:
        self.process.send_signal(how) if self.process.poll() is None else None
        code = self.process.wait(LIMIT)
        self.reader.join(LIMIT)
        return code

    def line(self, pattern: str):
        return until(lambda: next(filter(None, (re.search(pattern, text) for text in list(self.lines))), None), self)


@pytest.fixture
def exams(scans):  # noqa: F811
    "The drawn competition: two exams of four or more images, with the UIDs of a study and planted names."
    for path in sorted((scans / "train_images").rglob("*.dcm")):
        plant(path)
        ds = pydicom.dcmread(path)
        patient = int(path.parent.name)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.2.{patient}", f"1.2.{patient}.1"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.{patient}.1.{int(path.stem)}"
        ds.decompress(generate_instance_uid=False)
        ds.save_as(path, enforce_file_format=True)
    found = {}
    for path in sorted((scans / "train_images").rglob("*.dcm")):
        found.setdefault(pydicom.dcmread(path).StudyInstanceUID, []).append(path)
    assert len(found) == 2 and all(len(files) >= 4 for files in found.values())
    return found


# ---- complete exams
def test_an_exam_is_complete_when_nothing_has_changed_for_a_while(tmp_path):
    folder = tmp_path / "in"

    def add(name, study):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        return make_dicom(folder / name, StudyInstanceUID=study)

    for name, study in (("a/1", "1.1"), ("b/2", "1.1"), ("c/3", "1.2"), ("out/4", "1.3"), (".new/5", "1.4")):
        add(f"{name}.dcm", study)
    (folder / "notes.txt").write_text("no scan")
    one, two = exam_name("1.1"), exam_name("1.2")
    arrivals = Arrivals(folder, folder / "out", 30)
    assert arrivals.look(0) == {} and arrivals.look(29.9) == {}
    found = arrivals.look(30)
    assert {k: list(v) for k, v in found.items()} == {one: ["a/1.dcm", "b/2.dcm"], two: ["c/3.dcm"]}
    add("a/6.dcm", "1.2")   # one exam grows, the other stays complete
    assert list(arrivals.look(31)) == [one] and list(arrivals.look(60.9)) == [one]
    assert set(arrivals.look(61)) == {one, two}
    (folder / "a/6.dcm").unlink()
    make_dicom(folder / "c/3.dcm", StudyInstanceUID="1.2", PatientComments="longer")
    assert list(arrivals.look(62)) == [one] and list(arrivals.look(92)[two]) == ["c/3.dcm"]
    shutil.copy(folder / "notes.txt", folder / "c/broken.dcm")   # named like a scan: an exam of its folder
    arrivals.look(93)
    assert [list(v) for k, v in arrivals.look(123).items() if k not in (one, two)] == [["c/broken.dcm"]]


def test_only_new_and_changed_files_are_opened(tmp_path, monkeypatch):
    opened, real = [], watching.study_of
    monkeypatch.setattr(watching, "study_of", lambda path: opened.append(path.name) or real(path))
    make_dicom(tmp_path / "a.dcm", StudyInstanceUID="1.1")
    arrivals = Arrivals(tmp_path, tmp_path / "out", 0)
    for now in range(5):
        arrivals.look(now)
    make_dicom(tmp_path / "b.dcm", StudyInstanceUID="1.1")
    arrivals.look(6)
    assert opened == ["a.dcm", "b.dcm"]


def run_watch(folder, out, weights, wanted: int, **options) -> list[str]:  # noqa: F811
    "Watch in this process until so many exams are finished."
    lines = []
    watching.watch(folder, out, wait=0, until=lambda: len(lines) >= wanted, tell=lambda line, _: lines.append(line),
                   weights=weights, **options)
    return lines


def test_each_exam_is_predicted_once_and_again_only_if_it_changes(exams, weights, tmp_path):  # noqa: F811
    folder, out, (first, second) = tmp_path / "in", tmp_path / "in/out", exams
    folder.mkdir()
    for path in exams[first]:
        shutil.copy(path, folder)
    assert run_watch(folder, out, weights, 1)[0].startswith(exam_name(first))
    record = finished(out / exam_name(first))
    assert record["counts"]["predicted"] == len(exams[first]) == record["files"] and record["exit_code"] == 0
    table = pd.read_csv(out / exam_name(first) / "per_image.csv")
    assert sorted(table["file"]) == sorted(p.name for p in exams[first])
    stamp = (out / exam_name(first) / "exam.json").stat().st_mtime_ns
    for path in exams[second]:
        shutil.copy(path, folder)
    lines = run_watch(folder, out, weights, 1, html=True)
    assert len(lines) == 1 and lines[0].startswith(exam_name(second))
    assert (out / exam_name(first) / "exam.json").stat().st_mtime_ns == stamp
    (folder / exams[first][0].name).unlink()
    lines = run_watch(folder, out, weights, 1)
    assert lines[0].startswith(exam_name(first)) and finished(out / exam_name(first))["files"] == len(
        exams[first]) - 1
    assert not list(out.rglob(".files"))


def test_an_exam_that_cannot_be_predicted_does_not_end_the_watch(exams, weights, tmp_path, monkeypatch):  # noqa: F811
    folder = tmp_path / "in"
    for k, (study, files) in enumerate(exams.items()):
        (folder / str(k)).mkdir(parents=True)
        for path in files:
            shutil.copy(path, folder / str(k))
    (folder / "2").mkdir()
    (folder / "2/broken.dcm").write_bytes(b"no scan")
    monkeypatch.setattr(watching, "predict_exam", lethal)
    lines = run_watch(folder, tmp_path / "out", weights, 3)
    records = {p.parent.name: json.loads(p.read_text()) for p in (tmp_path / "out").glob("*/exam.json")}
    first, second = map(exam_name, exams)
    assert records.pop(first)["failure"] == "WorkerLost"
    assert records.pop(second)["counts"]["predicted"] == len(exams[list(exams)[1]])
    broken, = records.values()
    assert broken["errors"] == {"NotDicom": 1} and broken["exit_code"] == 1 and len(lines) == 3


def lethal(item: dict) -> dict:
    "The first exam ends its process, as a crash in a codec does."
    if any(Path(file).parts[0] == "0" for file in item["files"]):
        os._exit(1)
    return predict_exam(item)


def test_a_watch_that_is_killed_continues_and_repeats_nothing(exams, weights, tmp_path):  # noqa: F811
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for path in exams[(first := list(exams)[0])]:
        shutil.copy(path, folder)
    arguments = "predict", "--watch", folder, "-o", out, "--weights", weights, "--wait", ".2", "--html"
    with Command(*arguments) as command:
        command.line(f"^{exam_name(first)}: ")
        for path in exams[(second := list(exams)[1])]:
            shutil.copy(path, folder)
        until(lambda: (out / exam_name(second)).is_dir(), command)   # it is being predicted
        command.end(signal.SIGKILL)
    record = finished(out / exam_name(first))
    with Command(*arguments) as command:
        count = len(exams[second])
        command.line(f"^{exam_name(second)}: {count} files, {count} predicted")
        assert command.end() == 0 and "0 exams with failed files" in "".join(command.lines)
    assert not any(line.startswith(exam_name(first)) for line in command.lines)
    assert finished(out / exam_name(first)) == record
    assert not [s for s in SECRETS if s in text_of(out) + "".join(command.lines)]


# ---- the server
@pytest.fixture
def served(weights, tmp_path):  # noqa: F811
    "How to start a server with its results in one folder."
    def start(*more, **environment):
        return Command("serve", "-o", tmp_path / "clinic", "--weights", weights, "--port", 0, "--http-port", 0,
                       "--wait", ".5", *more, **{"MAMMO_NB_TOKEN": TOKEN, **environment})
    return start


def dicom_port(server) -> int:
    return int(server.line(r"^DICOM: MAMMO_NB@127.0.0.1:(\d+)")[1])


def http(server, path: str, data=None, token=TOKEN, kind=""):
    "Status and body of a request."
    base = server.line(r"^HTTP: (http://127.0.0.1:\d+)")[1]
    request = urllib.request.Request(base + path, data, {"Authorization": f"Bearer {token}", "Content-Type": kind or (
        'multipart/related; type="application/dicom"; boundary=xyz')})
    try:
        with urllib.request.urlopen(request, timeout=LIMIT) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


def body(*instances: bytes) -> bytes:
    head = b"--xyz\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + i + b"\r\n" for i in instances) + b"--xyz--\r\n"


def storescu(server, *files, caller="UNIT", called="MAMMO_NB"):
    return subprocess.run([STORESCU, "-v", "-aet", caller, "-aec", called, "127.0.0.1", str(dicom_port(server)),
                           *map(str, files)], capture_output=True, text=True, timeout=LIMIT)


def send(server, path, caller="UNIT", change=None):
    "The status of a C-STORE by pynetdicom; None if the association was refused or cut off."
    ds = pydicom.dcmread(path)
    if change:
        change(ds)
    ae = pynetdicom.AE(ae_title=caller)
    ae.add_requested_context(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", dicom_port(server), ae_title="MAMMO_NB")
    if not association.is_established:
        return None
    status = association.send_c_store(ds).get("Status")
    association.release()
    return status


def result_of(server, study: str) -> dict:
    "The result of a study, once there is one."
    def ready():
        status, found = http(server, f"/studies/{study}/result")
        return json.loads(found) if status == 200 else None
    return until(ready, server)


@pytest.mark.skipif(not STORESCU, reason="storescu of dcmtk is not installed")
def test_two_senders_at_once_and_every_exam_has_its_results(exams, served, tmp_path):
    rename_view(next(iter(exams.values()))[0])
    with served("--allow", "UNIT", "--allow", "OTHER") as server, ThreadPoolExecutor(2) as pool:
        dicom_port(server)
        sent = list(pool.map(lambda one: storescu(server, *exams[one[0]], caller=one[1]),
                             zip(exams, ("UNIT", "OTHER"))))
        assert all(s.returncode == 0 for s in sent), sent
        results = {study: result_of(server, study) for study in exams}
        for study, found in results.items():
            assert found["state"] == "predicted" and found["files"] == len(exams[study])
            exam, = found["exams"]
            assert {b["laterality"] for b in exam["breasts"]} == {"L", "R"}
            assert len(exam["images"]) == len(exams[study])
            assert {i["instance"] for i in exam["images"]} <= {pydicom.dcmread(p).SOPInstanceUID for p in exams[study]}
            reports = [n for n in found["dicom"] if n.startswith("report_")]
            assert len(reports) == 1 and len(found["dicom"]) == 1 + sum(i["probability"] is not None
                                                                        for i in exam["images"])
            for name in found["dicom"]:
                status, data = http(server, f"/studies/{study}/result/dicom/{name}")
                (tmp_path / "one.dcm").write_bytes(data)
                assert status == 200 and pydicom.dcmread(tmp_path / "one.dcm").StudyInstanceUID == study
            status, page = http(server, f"/studies/{study}/result/page")
            assert status == 200 and b"Not a medical device" in page
        assert storescu(server, *exams[next(iter(exams))]).returncode == 0   # again: confirmed, and not predicted again
        listed = json.loads(http(server, "/exams")[1])
        assert [e["state"] for e in listed] == ["predicted"] * 2
        assert server.end() == 0
    lines = [line for line in server.lines if re.match(r"[0-9a-f]{12}: \d files", line)]
    assert len(lines) == 2
    told = "".join(server.lines) + text_of(tmp_path / "clinic") + json.dumps(results) + json.dumps(listed)
    assert not [s for s in SECRETS if s in told]


@pytest.mark.skipif(not STORESCU, reason="storescu of dcmtk is not installed")
def test_a_server_that_is_killed_loses_no_image_that_it_has_confirmed(exams, served, tmp_path):
    (first, files), (second, others) = exams.items()
    with served("--allow", "UNIT") as server:
        assert storescu(server, *files[:3]).returncode == 0
        server.end(signal.SIGKILL)
    stored = list((tmp_path / "clinic/received").rglob("*.dcm"))
    assert len(stored) == 3
    sent = {pydicom.dcmread(p).SOPInstanceUID: pydicom.dcmread(p).PixelData for p in files[:3]}
    assert {pydicom.dcmread(p).SOPInstanceUID: pydicom.dcmread(p).PixelData for p in stored} == sent
    part = tmp_path / "clinic/received/.parts/half"
    part.write_bytes(b"half of an image")
    with served("--allow", "UNIT", "--wait", "0") as server:
        assert storescu(server, files[3], *others).returncode == 0
        until(lambda: (tmp_path / "clinic/results" / exam_name(second)).is_dir(), server)
        server.end(signal.SIGKILL)   # while an exam is predicted
    assert not part.exists()
    with served("--allow", "UNIT") as server:
        for study, own in exams.items():
            until(lambda: len(result_of(server, study)["exams"][0]["images"]) == len(own), server)


def test_callers_addresses_and_titles_that_are_not_known_are_refused(exams, served):
    path = next(iter(exams.values()))[0]
    with served("--allow", "UNIT") as server:
        assert send(server, path, "STRANGER") is None and send(server, path) == 0x0000
        ae = pynetdicom.AE(ae_title="UNIT")
        ae.add_requested_context("1.2.840.10008.1.1")
        wrong = ae.associate("127.0.0.1", dicom_port(server), ae_title="ELSEWHERE")
        assert not wrong.is_established
        right = ae.associate("127.0.0.1", dicom_port(server), ae_title="MAMMO_NB")
        assert right.is_established and right.send_c_echo().Status == 0x0000
        right.release()
        for token in ("", "wrong", TOKEN + "0"):
            assert http(server, "/exams", token=token)[0] == 401
            assert http(server, "/studies", body(path.read_bytes()), token)[0] == 401
        assert http(server, "/docs")[0] == 404 == http(server, "/openapi.json")[0]
    with served("--allow", "UNIT", "--from", "192.0.2.0/24") as server:
        assert send(server, path) is None and http(server, "/exams")[0] == 403


def test_too_large_images_and_requests_are_cut_off(exams, served, tmp_path):
    path = next(iter(exams.values()))[0]

    def grow(ds):
        ds.add_new(0x00090010, "LO", "PADDING")
        ds.add_new(0x00091001, "OB", bytes(3_000_000))

    big = tmp_path / "big.dcm"
    ds = pydicom.dcmread(path)
    grow(ds)
    ds.save_as(big)
    with served("--allow", "UNIT", "--largest", 1, "--most", 2) as server:
        assert send(server, path, change=grow) in (None, 0xA700)
        assert http(server, "/studies", body(big.read_bytes()))[0] == 413
        assert http(server, "/studies", body(*[path.read_bytes()] * 12))[0] in (200, 413)
        assert http(server, "/studies", iter([body(path.read_bytes()), b" " * 3_000_000]))[0] == 413   # no length given
        # whatever it is refused for, the answer comes after the last byte
        assert http(server, "/studies", iter([b" " * 100_000] * 18), kind="text/plain")[0] == 415
        assert http(server, "/studies", iter([b"no parts"] + [b" " * 100_000] * 18))[0] == 400
        assert send(server, path) == 0x0000   # and it still serves
    files = list((tmp_path / "clinic/received").rglob("*"))
    assert len([f for f in files if f.suffix == ".dcm"]) == 1 and not list(
        (tmp_path / "clinic/received/.parts").iterdir())


def test_damaged_images_get_the_status_of_the_standard(exams, served):
    (study, files), (other, _) = exams.items()
    whole = files[0].read_bytes()

    def code(answer) -> list[int]:
        found = json.loads(answer[1]).get("00081198", {"Value": []})["Value"]
        return [item["00081197"]["Value"][0] for item in found]

    with served("--allow", "UNIT") as server:
        for data in (whole[:-2], whole[:len(whole) // 2], whole[:400], b"no image", b"", bytes(1000)):
            answer = http(server, "/studies", body(data))
            assert answer[0] == 409 and code(answer) == [0xC000], len(data)
        answer = http(server, f"/studies/{other}", body(whole))
        assert answer[0] == 409 and code(answer) == [0xA900]   # of another study than the address says
        answer = http(server, f"/studies/{study}", body(whole, b"no image"))
        assert answer[0] == 202 and code(answer) == [0xC000]
        ds = json.loads(answer[1])["00081199"]["Value"][0]
        assert ds["00081155"]["Value"] == [pydicom.dcmread(files[0]).SOPInstanceUID]
        changed = whole[:-1] + bytes([whole[-1] ^ 1])
        answer = http(server, "/studies", body(changed))
        assert answer[0] == 409 and code(answer) == [0x0111]
        for data, kind, status in ((b"--xyz\r\nbroken", "", 400), (body(), "", 400), (body(whole)[:-20], "", 400),
                                   (body(whole), "application/json", 415), (body(whole), "multipart/related", 415)):
            assert http(server, "/studies", data, kind=kind)[0] == status
        for path in ("1.9/result", "1.9/result/page", "..%2f..%2fx/result", f"{study}/result/dicom/..%2fexam.json",
                     f"{study}/result/dicom/none.dcm"):
            assert http(server, f"/studies/{path}")[0] == 404, path

        def nameless(ds):
            del ds.StudyInstanceUID
        assert send(server, files[1], change=nameless) == 0xC000
        told = "".join(server.lines)
    assert "refused" in told and not [s for s in SECRETS if s in told]


def test_a_study_of_head_ct_has_one_result(heads, bag, tmp_path):   # noqa: F811
    studies = {}
    for path in sorted(heads.glob("*.dcm")):
        give_uids(path)
        plant(path)
        studies.setdefault(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID, []).append(path)
    study, files = next(iter(studies.items()))
    with Command("serve", "-o", tmp_path / "clinic", "--weights", bag, "--system", "ich", "--http-port", 0, "--wait",
                 ".5", MAMMO_NB_TOKEN=TOKEN) as server:
        assert http(server, "/studies", body(*(p.read_bytes() for p in files)))[0] == 200
        found = result_of(server, study)
        assert found["state"] == "predicted" and found["files"] == len(files)
        exam, = found["exams"]
        assert {s["name"] for s in exam["scores"]} >= {"any", "subdural"}
        assert len([n for n in found["dicom"] if n.startswith("report_")]) == 1
        assert {s["instance"] for s in exam["slices"]} <= {pydicom.dcmread(p).SOPInstanceUID for p in files}
        for name in found["dicom"]:
            assert http(server, f"/studies/{study}/result/dicom/{name}")[0] == 200, name
        status, page = http(server, f"/studies/{study}/result/page")
        assert status == 200 and b"Not a medical device" in page and b"any" in page
        told = "".join(server.lines) + json.dumps(found) + text_of(tmp_path / "clinic")
    assert not [s for s in SECRETS if s in told]


@pytest.mark.parametrize("arguments, words", [
    ((), "--allow"), (("--allow", "UNIT", "--from", "clinic"), "--from"),
    (("--allow", "UNIT", "--system", "baseline"), "predicts competitions only")])
def test_wrong_use_is_said_before_a_port_is_opened(weights, tmp_path, arguments, words):  # noqa: F811
    with Command("serve", "-o", tmp_path / "clinic", "--weights", weights, *arguments, MAMMO_NB_TOKEN="") as server:
        assert server.process.wait(LIMIT) == 2
        server.end()
    assert words in "".join(server.lines) and not any(":" in line and "127.0.0.1" in line for line in server.lines)

"""Fetching from a Kaggle server on this machine that breaks connections, refuses requests and sends wrong files:
received bytes are kept, and an incomplete file is never taken for a whole one."""
import argparse
import io
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from mammo_nb import cli
from mammo_nb.core import fetch as downloads
from mammo_nb.core import kaggle as client
from mammo_nb.core.fetch import FetchError, download, need_space, unpack
from mammo_nb.core.files import read_json, sha256, write_json, write_text
from mammo_nb.core.kaggle import STAGING, connect, fetch_competition, fetch_files, list_files
from mammo_nb.mammo.reading.sources import READERS
from mammo_nb.mammo.tools import fetch
from mammo_nb.mammo.tools.fetch import CLASSIFIERS, COMPETITION, DETECTOR, SETS, check_set, fetch_set, fetch_weights

FILES = {
    "train.csv": b"patient_id,image_id,laterality,view,cancer\n1,2,L,CC,0\n1,3,R,CC,1\n",
    "train_images/1/2.dcm": bytes(range(256)) * 300, "train_images/1/3.dcm": b"\x00" * 50_000,
    "test_images/9/8.dcm": b"x" * 70_000
}
SECRET = "X-Goog-Signature=secret"


def packed(files: dict) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    "The interface of kaggle 2.2.4 (POST, JSON), and the storage that it redirects to (GET)."
    def do_POST(self):
        kaggle, call = self.server, self.path.rpartition("/")[2]
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kaggle.log.append((call, asked, self.headers))
        if kaggle.refusals.get(call):
            status = kaggle.refusals[call].pop(0)
            return self.answer(status, {"code": status, "message": "no"}, {"Retry-After": "0"})
        if call in ("ListDataFiles", "ListDatasetFiles"):
            files = kaggle.files if call == "ListDataFiles" else {
                n: c for n, c in kaggle.storage.items() if n != "archive.zip"
            }
            start, size = int(asked.get("pageToken") or 0), min(asked["pageSize"], 3)
            page = [{"name": n, "totalBytes": kaggle.sizes.get(n, len(c))}
                    for n, c in list(files.items())[start:start + size]]
            return self.answer(
                200, {
                    "files" if call == "ListDataFiles" else "datasetFiles": page,
                    "nextPageToken": str(start + size) if start + size < len(files) else ""
                })
        name = "archive.zip"
        if call != "DownloadDataFiles":
            name = kaggle.renamed.get(asked["fileName"], asked["fileName"])
        self.answer(302, None, {"Location": f"/storage/{name}?{SECRET}"})

    def answer(self, status: int, content: dict | None, headers: dict = {}):
        body = json.dumps(content).encode() if content is not None else b""
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        kaggle, name = self.server, self.path.partition("?")[0].rpartition("/")[2]
        # the package opens what it is redirected to and is stopped there
        ours = self.headers["User-Agent"] == "mammo_nb"
        kaggle.log.append((name if ours else "link", self.headers.get("Range"), self.headers))
        cut = kaggle.cuts.pop(0) if kaggle.cuts and (ours or kaggle.cuts[0] in (403, 500)) else None
        if cut in (403, 500):
            return self.answer(cut, {"code": cut, "message": "gone"})
        if name not in kaggle.storage:
            return self.answer(404, {})
        content, tag = kaggle.storage[name], f'"{kaggle.version}"'
        wanted = self.headers.get("Range") if self.headers.get("If-Range") in (None, tag) else None
        start = int(wanted[6:-1]) if wanted else 0
        if start and start >= len(content):
            return self.answer(416, {})
        self.send_response(206 if wanted else 200)
        headers = {
            "Content-Type": "application/octet-stream", "Content-Length": len(content) - start,
            "Accept-Ranges": "bytes", "ETag": tag, "Last-Modified": "Wed, 01 Mar 2023 00:00:00 GMT"
        }
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        part = content[start:start + (len(content) if cut is None else cut)] if ours else b""
        kaggle.sent += len(part)
        self.wfile.write(part)  # HTTP/1.0: the line ends here, however much was promised

    def log_message(self, *arguments):
        pass


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    "A Kaggle server on the loopback interface that Kaggle's package uses, credentials in the environment, no pauses."
    for name in [n for n in os.environ if n.startswith("KAGGLE") or n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in {"HOME": str(tmp_path / "home"), "KAGGLE_USERNAME": "somebody", "KAGGLE_KEY": "key"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "home").mkdir()
    extended, environment = (pytest.importorskip(f"kaggle{rest}")
                             for rest in (".api.kaggle_api_extended", "sdk.kaggle_env"))
    monkeypatch.setattr(extended.KaggleApi, "config", str(tmp_path / "home" / "kaggle.json"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.log, server.refusals, server.cuts, server.sent, server.version = [], {}, [], 0, 1
    server.files, server.sizes, server.storage, server.renamed = dict(FILES), {}, {"archive.zip": packed(FILES)}, {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setitem(environment._env_to_endpoint, environment.KaggleEnv.PROD, server.url)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": .01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def contents(folder: Path) -> dict:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def free(monkeypatch, size: float):
    usage = namedtuple("usage", "total used free")(size, 0, size)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: usage)


# ---- a competition -------------------------------------------------------------------------------
def test_make_data_fetches_the_competition_once(kaggle, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MAMMO_NB_RAW", str(tmp_path / "raw"))
    monkeypatch.setitem(READERS, COMPETITION, replace(READERS[COMPETITION], images=2, positives=1))
    free(monkeypatch, 1e12)
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["mammo-nb", "data", "rsna"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
    assert contents(tmp_path / "raw" / COMPETITION) == FILES
    # nothing was asked the second time
    assert [call for call, *_ in kaggle.log] == [
        "ListDataFiles", "ListDataFiles", "DownloadDataFiles", "link", "archive.zip"
    ]
    assert kaggle.log[0][1]["competitionName"] == COMPETITION and kaggle.log[0][2]["Authorization"].startswith("Basic ")
    assert f"mammo-nb check --dataset {COMPETITION}" in capsys.readouterr().out


def test_no_byte_is_sent_twice_after_interruptions_and_expired_links(kaggle, tmp_path):
    kaggle.cuts = [60_000, 10_000, 403, 403, 50_000]
    assert fetch_competition(connect(), "any", tmp_path / "any") == 4
    assert contents(tmp_path / "any") == FILES and kaggle.sent == len(kaggle.storage["archive.zip"])
    assert [r for call, r, _ in kaggle.log
            if call == "archive.zip"] == [None, "bytes=60000-", "bytes=70000-", "bytes=120000-"]
    assert [call for call, *_ in kaggle.log].count("DownloadDataFiles") == 6   # a new link each time


def test_an_interrupted_run_continues_where_it_stopped(kaggle, tmp_path):
    kaggle.cuts = [60_000] + [500] * 50
    with pytest.raises(FetchError, match="any: 500 .* from the storage.* run again") as e:
        fetch_competition(connect(), "any", tmp_path / "any")
    assert "secret" not in str(e.value)
    there = contents(tmp_path / "any")
    assert not {n for n in there if not n.startswith(STAGING)}
    assert len(there[f"{STAGING}/incoming/.any.zip.part"]) == 60_000
    assert not any(b"secret" in c for c in there.values())
    kaggle.cuts = []
    kaggle.log.clear()
    fetch_competition(connect(), "any", tmp_path / "any")
    assert contents(tmp_path / "any") == FILES and kaggle.sent == len(kaggle.storage["archive.zip"])
    # the list of files was kept, so it is not requested again
    assert [call for call, *_ in kaggle.log] == ["DownloadDataFiles", "link", "archive.zip"]
    assert kaggle.log[-1][1] == "bytes=60000-"


def test_the_partial_file_of_an_older_version_is_not_continued(kaggle, tmp_path):
    kaggle.cuts = [60_000] + [500] * 50
    with pytest.raises(FetchError):
        fetch_competition(connect(), "any", tmp_path / "any")
    newer = {**FILES, "train.csv": b"patient_id,image_id\n5,6\n"}
    kaggle.cuts, kaggle.version, kaggle.storage["archive.zip"] = [], 2, packed(newer)
    fetch_competition(connect(), "any", tmp_path / "any")
    assert contents(tmp_path / "any") == newer


def test_a_truncated_or_damaged_archive_is_not_taken_for_a_whole_one(kaggle, tmp_path):
    whole = kaggle.storage["archive.zip"]
    kaggle.storage["archive.zip"] = whole[:-200]   # ends properly as far as HTTP can tell
    with pytest.raises(FetchError, match="damaged"):
        fetch_competition(connect(), "any", tmp_path / "any")
    at = whole.index(b"x" * 1000) + 500
    kaggle.version, kaggle.storage["archive.zip"] = 2, whole[:at] + b"y" + whole[at + 1:]
    with pytest.raises(FetchError, match="damaged .*CRC"):
        fetch_competition(connect(), "any", tmp_path / "any")
    there = contents(tmp_path / "any")
    assert "train.csv" in there and "test_images/9/8.dcm" not in there and check_set("rsna", tmp_path)["problems"]
    kaggle.version, kaggle.storage["archive.zip"] = 3, whole
    fetch_competition(connect(), "any", tmp_path / "any")
    assert contents(tmp_path / "any") == FILES


def test_unpacking_goes_on_and_keeps_what_was_finished(tmp_path):
    (tmp_path / "a.zip").write_bytes(packed(FILES))
    unpack(tmp_path / "a.zip", tmp_path / "to", tmp_path)
    (tmp_path / "to/train.csv").write_bytes(b"half")
    before = (tmp_path / "to/train_images/1/2.dcm").stat().st_mtime_ns
    assert unpack(tmp_path / "a.zip", tmp_path / "to", tmp_path) == 4 and contents(tmp_path / "to") == FILES
    assert (tmp_path / "to/train_images/1/2.dcm").stat().st_mtime_ns == before


def test_a_file_of_the_same_size_with_other_content_is_unpacked_again(tmp_path):
    (tmp_path / "a.zip").write_bytes(packed(FILES))
    unpack(tmp_path / "a.zip", tmp_path / "to", tmp_path)
    path = tmp_path / "to/train_images/1/2.dcm"
    path.write_bytes(bytes(path.stat().st_size))
    unpack(tmp_path / "a.zip", tmp_path / "to", tmp_path)
    assert contents(tmp_path / "to") == FILES


def test_links_that_are_there_already_are_not_followed(tmp_path):
    (tmp_path / "a.zip").write_bytes(packed(FILES))
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "table.csv").write_bytes(FILES["train.csv"])
    (tmp_path / "to").mkdir()
    (tmp_path / "to/train.csv").symlink_to(victim / "table.csv")
    unpack(tmp_path / "a.zip", tmp_path / "to", tmp_path)
    assert not (tmp_path / "to/train.csv").is_symlink() and contents(tmp_path / "to") == FILES
    (tmp_path / "other").mkdir()
    (tmp_path / "other/train_images").symlink_to(victim)
    with pytest.raises(FetchError, match="train_images.* is a link that leads out"):
        unpack(tmp_path / "a.zip", tmp_path / "other", tmp_path)
    assert [p.name for p in victim.iterdir()] == ["table.csv"] and not (tmp_path / "other/train.csv").exists()


@pytest.mark.parametrize("name", ["../climbed", "a/../../../climbed", "/tmp/mammo_nb_climbed", "C:\\climbed"])
def test_an_archive_that_climbs_out_writes_nothing(kaggle, tmp_path, name):
    kaggle.storage["archive.zip"] = packed({"train.csv": b"", name: b"evil"})
    with pytest.raises(FetchError, match="leads out"):
        fetch_competition(connect(), "any", tmp_path / "any")
    assert not [n for n in contents(tmp_path) if n.endswith(("climbed", "train.csv"))]
    assert not Path("/tmp/mammo_nb_climbed").exists()


def test_files_that_kaggle_lists_and_does_not_send_are_an_error(kaggle, tmp_path):
    kaggle.files["train_images/7/7.dcm"] = b"listed"
    with pytest.raises(FetchError, match="1 of the 5 files .* train_images/7/7.dcm"):
        fetch_competition(connect(), "any", tmp_path / "any")
    assert (tmp_path / "any" / STAGING).exists()


def test_two_processes_do_not_write_to_one_download(tmp_path):
    with client._staging(tmp_path / "any"):
        with pytest.raises(FetchError, match="another process"):
            fetch_competition(None, "any", tmp_path / "any")


# ---- what stands in the way ----------------------------------------------------------------------
def test_without_credentials_the_command_says_what_to_do(kaggle, tmp_path, monkeypatch, capsys):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("MAMMO_NB_RAW", str(tmp_path / "raw"))
    monkeypatch.setattr(sys, "argv", ["mammo-nb", "data", "rsna"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert end.value.code == 2 and "OAuth" not in out and not kaggle.log
    assert all(word in err for word in ("kaggle.com/settings", "~/.kaggle/access_token", "rules"))


def test_an_expired_token_is_refused_with_advice(kaggle, monkeypatch):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("KAGGLE_API_TOKEN", "expired")
    kaggle.refusals = {"IntrospectToken": [403] * 9}
    with pytest.raises(FetchError, match="no longer valid"):
        connect()
    assert kaggle.log[0][0] == "IntrospectToken"


@pytest.mark.parametrize("status, words", [
    (403, "accept the rules of the competition at https://www.kaggle.com/competitions/any/rules"),
    (401, "no longer valid"),
    (404, "Kaggle has no any"),
    (429, "Wait some minutes"),
])
def test_refusals_are_explained(kaggle, tmp_path, status, words):
    kaggle.refusals = {"DownloadDataFiles": [status] * 20}
    with pytest.raises(FetchError, match=words):
        fetch_competition(connect(), "any", tmp_path / "any")
    assert not (tmp_path / "any" / "train.csv").exists()


def test_a_list_refused_for_too_many_requests_is_requested_again(kaggle):
    kaggle.refusals = {"ListDataFiles": [429, 429]}
    assert list_files(connect(), "any") == {n: len(c) for n, c in FILES.items()}


def test_a_missing_network_is_an_error_with_advice(kaggle, tmp_path):
    api = connect()
    kaggle.shutdown()
    kaggle.server_close()
    with pytest.raises(FetchError, match="any: ConnectionError.* run again"):
        fetch_competition(api, "any", tmp_path / "any")


def test_a_disk_that_is_too_small_stops_before_the_first_byte(kaggle, tmp_path, monkeypatch):
    free(monkeypatch, 500e9)
    with pytest.raises(FetchError, match=r"630\.0 GB, .* 500\.0 GB free"):
        fetch_set("rsna", tmp_path)
    assert not kaggle.sent
    need = 2 * sum(map(len, FILES.values()))
    free(monkeypatch, need - 1)
    with pytest.raises(FetchError, match="archive and unpacked"):
        fetch_competition(connect(), "any", tmp_path / "any")
    free(monkeypatch, need)
    assert fetch_competition(connect(), "any", tmp_path / "any") == 4
    with pytest.raises(FetchError):
        need_space(tmp_path / "not" / "there" / "yet", need + 1, "more")


# ---- a plain file --------------------------------------------------------------------------------
@pytest.fixture
def plain(kaggle):
    kaggle.storage["w.pth"] = bytes(range(256)) * 1000
    return kaggle


def test_a_download_is_continued_and_named_when_it_is_whole(plain, tmp_path):
    content, path = plain.storage["w.pth"], tmp_path / "w.pth"
    plain.cuts = [100_000, 50_000]
    for came in (100_000, 150_000):
        with pytest.raises(FetchError, match=f"ended after {came} of 256000 bytes"):
            download(f"{plain.url}/w.pth", path)
        assert not path.exists()
    assert download(f"{plain.url}/w.pth", path) == sha256(path) and contents(tmp_path / ".")["w.pth"] == content
    assert [r for _, r, _ in plain.log] == [None, "bytes=100000-", "bytes=150000-"] and plain.sent == len(content)
    assert not list(tmp_path.glob(".w.pth*"))


def test_a_file_that_has_changed_is_fetched_anew(plain, tmp_path):
    plain.cuts = [100_000]
    with pytest.raises(FetchError):
        download(f"{plain.url}/w.pth", tmp_path / "w.pth")
    plain.version, plain.storage["w.pth"] = 2, b"shorter"
    download(f"{plain.url}/w.pth", tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == b"shorter"


def test_a_part_that_is_complete_already_is_not_appended_to(plain, tmp_path):
    plain.cuts = [100_000]
    with pytest.raises(FetchError):
        download(f"{plain.url}/w.pth", tmp_path / "w.pth")
    (tmp_path / ".w.pth.part").write_bytes(plain.storage["w.pth"])   # killed between the last byte and the new name
    download(f"{plain.url}/w.pth", tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == plain.storage["w.pth"]


def test_a_missing_file_and_a_wrong_digest_are_errors(plain, tmp_path):
    with pytest.raises(FetchError, match="404"):
        download(f"{plain.url}/other.pth", tmp_path / "other.pth")
    with pytest.raises(FetchError, match="has the SHA-256"):
        download(f"{plain.url}/w.pth", tmp_path / "w.pth", "0" * 64)
    assert not [n for n in contents(tmp_path) if n.endswith("pth")]


# ---- other sets ----------------------------------------------------------------------------------
def test_a_set_of_another_publisher_is_described_and_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MAMMO_NB_RAW", str(tmp_path))
    monkeypatch.setitem(READERS, "vindr", replace(READERS["vindr"], patients=1, images=2, positives=1))

    def command():
        monkeypatch.setattr(sys, "argv", ["mammo-nb", "data", "vindr"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr().out

    code, printed = command()
    vindr = READERS["vindr"]
    assert code == 1
    for words in (vindr.url, vindr.accept, vindr.layout, str(tmp_path / "vindr"), "does not exist"):
        assert words in printed
    for f in ("images/a/b.dicom", "images/a/c.dicom"):
        write_text(tmp_path / "vindr" / f, "")
    code, printed = command()
    assert code == 1 and "has no breast-level_annotations.csv" in printed
    labels = "study_id,image_id,laterality,view_position,breast_birads,breast_density\na,b,L,CC,BI-RADS 5,DENSITY B\n"
    for more, message in (
            ("", "1 images, 2 are published"),
            ("a,d,R,CC,BI-RADS 1,DENSITY B\n", "1 of 2 images are missing, such as images/a/d.dicom"),
            ("a,c,R,CC,BI-RADS 5,DENSITY B\n", "2 positive images, 1 are published"),
    ):
        write_text(tmp_path / "vindr/breast-level_annotations.csv", labels + more)
        code, printed = command()
        assert code == 1 and message in printed
    write_text(tmp_path / "vindr/breast-level_annotations.csv", labels + "a,c,R,CC,BI-RADS 1,DENSITY B\n")
    code, printed = command()
    assert not code and "mammo-nb check --dataset vindr" in printed and READERS["vindr"].url not in printed


def test_the_sets_are_listed_and_a_slip_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MAMMO_NB_RAW", str(tmp_path))
    (tmp_path / "cmmd").mkdir()
    monkeypatch.setattr(sys, "argv", ["mammo-nb", "data"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().out.splitlines()
    assert not end.value.code and [line.split()[0] for line in said
                                   ] == ["rsna", "vindr", "miniddsm", "cmmd", "cddcesm", "bmcd", "cbis"] == list(SETS)
    assert [line.split()[0] for line in said if "has a folder" in line] == ["cmmd"]
    with pytest.raises(FetchError, match="rsna, vindr, miniddsm, cmmd, cddcesm, bmcd, cbis"):
        fetch_set("vinder", tmp_path)
    assert check_set("rsna", tmp_path)["set"] == check_set(COMPETITION, tmp_path)["set"] == COMPETITION


# ---- the winner's weights ------------------------------------------------------------------------
SMALL = {"network": "test_convnext", "size": (64, 32), "detector_size": 64}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    "Files built like the winner's, of small networks."
    from mammo_nb.core.networks import create_network
    from mammo_nb.core.yolox import create_yolox
    folder, models = tmp_path_factory.mktemp("published"), []
    for k, name in enumerate(CLASSIFIERS[:2]):
        last, averaged = (create_network("test_convnext", global_pool="max", seed=seed) for seed in (99, k))
        torch.nn.init.normal_(averaged.get_classifier().weight, std=2, generator=torch.Generator().manual_seed(k))
        torch.save(
            {
                "epoch": 8, "arch": "test_convnext", "state_dict": last.state_dict(), "version": 2,
                "state_dict_ema": averaged.state_dict(), "metric": np.float64(.5), "args": argparse.Namespace(lr=3e-3)
            }, folder / name)
        models.append(averaged.eval())
    torch.save({"start_epoch": 400, "model": create_yolox().state_dict(), "best_ap": .96}, folder / DETECTOR)
    return {p.name: p.read_bytes() for p in folder.iterdir()}, models


def stand_in(checkpoint: Path, folder: Path, size: int) -> float:
    "What convert_detector leaves; the graph itself is made in test_detector and in the notebook."
    for name in ("detector.onnx", "yolox.safetensors"):
        write_text(folder / name, Path(checkpoint).name)
    for name in ("detector", "yolox"):
        write_json(folder / f"{name}.json",
                   {"source": Path(checkpoint).name, "size": size, "sha256": sha256(folder / "detector.onnx")})
    return 0.


def test_make_weights_gives_a_folder_that_predicts(kaggle, published, tmp_path, monkeypatch):
    from mammo_nb.core.engines import load_engine
    from mammo_nb.core.submission import find_weights
    from mammo_nb.mammo.tools.predict import detector_of
    files, models = published
    monkeypatch.setattr(fetch, "CLASSIFIERS", CLASSIFIERS[:2])   # half of them, for half of the time
    monkeypatch.setattr(
        fetch, "MADE",
        ["detector.onnx", "yolox.safetensors", "fold_0.safetensors", "fold_1.safetensors", "ensemble.onnx"])
    packed_one = packed({CLASSIFIERS[1]: files[CLASSIFIERS[1]]})   # Kaggle packs what it likes for the journey
    kaggle.storage = {**files, "README.md": b"not wanted", "yolox_nano.pth": b"of COCO"}
    kaggle.renamed = {CLASSIFIERS[1]: CLASSIFIERS[1] + ".zip"}
    kaggle.cuts = [1_000_000]
    monkeypatch.setattr(fetch, "convert_detector", stand_in)
    monkeypatch.setattr(fetch, "COCO", {"name": "yolox_nano.pth", "url": f"{kaggle.url}/yolox_nano.pth", "sha256": ""})
    with monkeypatch.context() as patch:
        patch.setattr(kaggle, "storage", {**kaggle.storage, CLASSIFIERS[1] + ".zip": packed_one})
        folder = tmp_path / "trained"
        differences = fetch_weights(folder, connect(), **SMALL)
    assert set(differences) == {"detector", "ensemble"} and {n: c for n, c in contents(folder).items() if n in files
                                                             } == files
    assert [r for n, r, _ in kaggle.log if n == CLASSIFIERS[0]] == [None, "bytes=1000000-"]

    engine = load_engine(find_weights("ensemble", folder) / "ensemble.onnx")
    pictures = fetch.drawn_pictures(SMALL["size"], 4)
    x = torch.from_numpy(pictures)[:, None].repeat(1, 3, 1, 1) / 255
    mean, std = (torch.tensor(models[0].normalization[k])[:, None, None] for k in ("mean", "std"))
    with torch.no_grad():
        by_hand = torch.sigmoid(torch.cat([m((x - mean) / std) for m in models], 1)).numpy()
    assert np.abs(engine(pictures) - by_hand).max() < 1e-4 and by_hand.std() > .01
    assert detector_of(folder) == folder / "detector.onnx" and read_json(folder / "detector.json")["size"] == 64
    about = read_json(folder / "ensemble.json")
    assert about["threshold"] == .31 and about["crops"]["faithful"] and about["crops"]["confidence"] == .5 and about[
        "demonstration"] is False
    assert read_json(folder / "fold_1.json")["entry"] == "state_dict_ema" and read_json(
        folder / "fold_1.json")["source"] == CLASSIFIERS[1]
    assert read_json(folder / "origin.json")["yolox_nano.pth"]["sha256"] == sha256(folder / "yolox_nano.pth") and set(
        read_json(folder / "origin.json")) == {*files, "yolox_nano.pth"}

    kaggle.log.clear()
    monkeypatch.setattr(fetch, "convert_weights", lambda *given: "converted")
    (folder / CLASSIFIERS[0]).unlink()   # the pickles may go: what was made of them is what is used
    assert fetch_weights(folder, **SMALL) == {} and not kaggle.log
    (folder / "ensemble.onnx").unlink()
    assert fetch_weights(folder, connect(), **SMALL) == "converted" and [n for n, *_ in kaggle.log if n in files
                                                                         ] == [CLASSIFIERS[0]]

    write_text(folder / "ensemble.onnx", "")
    write_json(folder / "ensemble.json", {"recipe": "demo"})
    with pytest.raises(FetchError, match="ensemble.onnx of another origin"):
        fetch_weights(folder, **SMALL)


def test_a_file_of_a_data_set_that_is_short_or_absent_is_not_kept(kaggle, tmp_path):
    kaggle.storage, kaggle.sizes = {"a.pth": b"abc", "b.pth": b"abc"}, {"b.pth": 4}
    with pytest.raises(FetchError, match="b.pth .* not the 4 bytes"):
        fetch_files(connect(), "some/body", ["a.pth", "b.pth"], tmp_path / "to")
    assert {n for n in contents(tmp_path / "to") if not n.startswith(STAGING)} == {"a.pth"} and not list(
        (tmp_path / "to" / STAGING).rglob("b.pth"))
    with pytest.raises(FetchError, match="some/body has no c.pth"):
        fetch_files(connect(), "some/body", ["c.pth"], tmp_path / "to")
    kaggle.sizes, kaggle.version = {}, 2
    fetch_files(connect(), "some/body", ["a.pth", "b.pth"], tmp_path / "to")
    assert contents(tmp_path / "to") == {"a.pth": b"abc", "b.pth": b"abc"
                                         } and [n for n, *_ in kaggle.log if n == "a.pth"] == ["a.pth"]
    kaggle.refusals = {"ListDatasetFiles": [403] * 20}
    with pytest.raises(FetchError, match="its terms at https://www.kaggle.com/datasets/some/body"):
        fetch_files(connect(), "some/body", ["a.pth"], tmp_path / "other")


def test_make_calls_the_commands():
    tell = lambda *arguments: subprocess.run(["make", "-n", *arguments, "VENV=v", "-o", "v/.installed"], cwd=ROOT,
                                             capture_output=True, text=True, check=True).stdout.strip()
    assert tell("data", "DATASET=rsna") == "v/bin/mammo-nb data rsna" and tell("weights") == "v/bin/mammo-nb weights"

"One bad file, folder or table never stops the rest, and nothing is skipped in silence."
import csv
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from typer.testing import CliRunner

from mammo_nb.cli import app
from mammo_nb.core import parsing
from mammo_nb.core.dicom import find_files, read_header
from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import TableError, open_file, read_csv, walk
from mammo_nb.core.headers import DicomError
from mammo_nb.core.series import read_series
from mammo_nb.core.submission import find_submission
from mammo_nb.core.submit import submit
from mammo_nb.ich.reading.inputs import find_pictures
from mammo_nb.mammo.tools.crops import crop_folder
from test_trauma_prepare import body, write_slice


@contextmanager
def nobody():
    "Be a user without rights, since no permission keeps root out."
    if os.geteuid():
        yield
        return
    Image.preinit()   # Pillow loads its readers late, and nobody may not read the environment of root
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def place():
    "A folder that every user may enter and write to; those of pytest are locked for all others."
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.zeros((96, 64), np.uint8)
    grey[10:80, :30] = 150
    cv2.imwrite(str(path), grey)


@pytest.fixture
def hostile(place):
    "A folder with one good picture and one of every kind of bad thing."
    scans = place / "scans"
    picture(scans / "p/good.png")
    picture(scans / "p/locked.png")
    picture(scans / "locked folder/inner.png")
    os.mkfifo(scans / "p/pipe.png")
    os.mkfifo(scans / "p/pipe")
    (scans / "p/gone.png").symlink_to(place / "nowhere.png")
    (scans / "p/IM0001").symlink_to(place / "nowhere")
    (scans / "p/loop").symlink_to(scans)
    (scans / "p/locked.png").chmod(0)
    (scans / "locked folder").chmod(0)
    yield scans
    (scans / "locked folder").chmod(0o777)


BAD = {"locked folder": "folder that cannot be listed", "p/IM0001": "link that leads to no file",
       "p/gone.png": "link that leads to no file", "p/locked.png": "Permission denied", "p/pipe.png": "a pipe"}


def test_all_that_cannot_be_opened_is_listed(hostile):
    with nobody():
        files, others = find_files(hostile)
    assert files == sorted([*BAD, "p/good.png"]) and others == 1   # the pipe without an ending


def test_what_cannot_be_opened_is_a_row_and_the_rest_is_cropped(hostile, place):
    with nobody():
        table = crop_folder(hostile, place / "out", workers=1)
    errors = dict(zip(table["file"], table["error"]))
    assert errors.pop("p/good.png") == "" and set(errors) == set(BAD)
    for name, why in BAD.items():
        assert why in errors[name], errors[name]
    assert [p.name for p in (place / "out/cleaned_images").iterdir()] == ["p@good.png"]


def test_series_and_pictures_of_slices_have_rows_for_them(hostile, place):
    with nobody():
        _, rest = read_series(hostile, place / "out", 1)
        found = find_pictures(hostile, place / "out")
    assert set(rest["file"]) == {*BAD, "p/good.png", "p/pipe"}
    errors = dict(zip(rest["file"], rest["error"] + rest["note"]))
    assert all(why in errors[name] for name, why in BAD.items()) and "a pipe" in errors["p/pipe"]
    assert set(found["file"]) == {"p/good.png", "p/locked.png", "p/gone.png", "p/pipe.png"}


@pytest.mark.parametrize("name", ["mammo", "ich", "trauma"])
def test_a_check_counts_what_cannot_be_opened(hostile, place, name):
    "Also named like scans, and as pictures are no scans of CT."
    for path in ("p/pipe.png", "p/gone.png", "p/locked.png"):
        (hostile / path).rename(hostile / f"{path}.dcm")
    tool = importlib.import_module(f"mammo_nb.{name}.tools.check")
    with nobody():
        table = tool.check_data(hostile, workers=1, everything=True, output=place / "check.csv")
    assert len(table) == 5 and (table["error"] != "").all()   # the good picture is none among scans


def test_a_file_that_vanishes_while_the_folder_is_listed_is_a_row(place, monkeypatch):
    for name in ("a.dcm", "b.png", "c"):
        (place / name).write_bytes(bytes(128) + b"DICM")
    monkeypatch.setattr("mammo_nb.core.dicom.walk", lambda folder: [p for p in list(walk(folder)) if not p.unlink()])
    assert find_files(place) == (["a.dcm", "c"], 1)


def test_a_folder_that_is_locked_itself_is_an_error(place):
    (place / "in").mkdir()
    (place / "in").chmod(0)
    with nobody(), pytest.raises(PermissionError):
        find_files(place / "in")


def test_a_pipe_is_not_waited_for(place):
    os.mkfifo(place / "a.dcm")
    with pytest.raises(OSError, match="a pipe"):
        open_file(place / "a.dcm")
    with pytest.raises(DicomError, match="a pipe"):
        read_header(place / "a.dcm")


# --- headers

def sparse(path, head=b"", size=3 << 30):
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(size)
    return path


MARK = bytes(128) + b"DICM"
META = b"\2\0\0\0UL\4\0\x1a\0\0\0\2\0\x10\0UI\x12\x001.2.840.10008.1.2\0"   # implicit VR, little endian
UNKNOWN = b"\2\0\0\0UL\4\0\x1c\0\0\0\2\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0"   # explicit VR, little endian
SEQUENCE = b"\x08\0\x40\x11\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"   # an item without an end
PRIVATE = b"\x09\0\x10\x10UN\0\0\xff\xff\xff\xff"   # an element that ends at a mark, which never comes


@pytest.mark.parametrize("head", [b"", MARK, MARK + META, MARK + META + SEQUENCE, MARK + UNKNOWN + PRIVATE],
                         ids=["zeros", "marked zeros", "zeros behind a syntax", "a sequence", "an element"])
def test_three_gigabytes_of_zeros_are_refused_at_once(tmp_path, head):
    path, spent, real = sparse(tmp_path / "a.dcm", head), [0, 0], parsing.Bounded.read

    def counted(self, n=-1):
        data = real(self, n)
        spent[0] += len(data)
        spent[1] += 1
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsing.Bounded, "read", counted)
        patch.setattr(parsing, "MAX_READS", 20_000)
        patch.setattr(parsing, "MAX_HEADER", 2**20)
        with pytest.raises(DicomError):
            read_header(path)
    assert spent[0] <= 2**21 and spent[1] <= 40_000


def test_an_inflated_header_is_bounded_too(tmp_path, monkeypatch):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    content = deflate.compress(b"\x08\0\x05\0CS\0\0" * 200_000) + deflate.flush()
    meta = META.replace(b"\x1a", b"\x1e").replace(b"\x12\x001.2.840.10008.1.2\0", b"\x16\x001.2.840.10008.1.2.1.99")
    (tmp_path / "a.dcm").write_bytes(MARK + meta + content)
    with pytest.raises(DicomError, match="elements before the pixels"):
        read_header(tmp_path / "a.dcm")


def test_a_header_of_many_frames_is_within_the_limits():
    assert parsing.MAX_READS >= 2000 * 50 * 2 * 3   # frames, elements, reads of an element with its sequence


@pytest.mark.parametrize("head", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8"])
def test_a_picture_of_gigabytes_is_not_read(tmp_path, head):
    with pytest.raises(DicomError, match="GB|neither PNG nor JPEG"):
        read_header(sparse(tmp_path / "a.png", head))


# --- tables

@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_tables_are_read_in_the_encodings_of_spreadsheets(tmp_path, encoding):
    (tmp_path / "t.csv").write_bytes("patient_id,name\n007,Jos\xe9\n".encode(encoding))
    assert read_csv(tmp_path / "t.csv", dtype=str).values.tolist() == [["007", "Jos\xe9"]]


@pytest.mark.parametrize("text", ["", "\n\n", 'a,b\n1,"2\n3,4\n', "a,b\n1,2\n1,2,3\n", "a,b\n1,\x002\n1,2,3,4\n"],
                         ids=["empty", "blank", "an open quote", "ragged", "zeros"])
def test_a_damaged_table_is_a_sentence(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(TableError, match=r"t.csv cannot be read as a table: .+\. Save it as CSV again\.") as told:
        read_csv(path)
    assert len(str(told.value).splitlines()) == 1 and str(told.value).isprintable()


@pytest.mark.parametrize("harm", ["", 'a,"b\n1,2\n', "prediction_id,cancer\n1,2\n1,2,3\n"])
def test_a_damaged_table_of_a_competition_leaves_the_valid_submission(place, harm):
    "The table of images is damaged; the sample is not, and is what has been written first."
    (place / "c/test_images").mkdir(parents=True)
    (place / "c/sample_submission.csv").write_text("prediction_id,cancer\n1_L,0\n")
    (place / "c/test.csv").write_text(harm)
    with pytest.raises(ProjectError, match="test.csv cannot be read as a table"):
        submit(find_submission("mammo"), place / "c", None, place / "out")
    assert (place / "out/submission.csv").read_text() == "prediction_id,cancer\n1_L,0\n"


# --- what a name may do

NAMES = ["=1+1.dcm", "@SUM(1).dcm", "a\x1b[2Jb.dcm"]


def test_names_of_files_run_nothing_in_a_terminal_or_a_spreadsheet(tmp_path):
    write_slice(tmp_path / "in/1.dcm", body(0), 0.0, PatientID="=2+2", PatientName="-3")
    write_slice(tmp_path / "in/2.dcm", body(1), 5.0, PatientID="=2+2", PatientName="-3")
    for name in NAMES:
        (tmp_path / "in" / name).write_bytes(b"no scan")
    answer = CliRunner().invoke(app, ["series", str(tmp_path / "in"), "-o", str(tmp_path / "out")])
    tables = [(tmp_path / "out" / n).read_text() for n in ("slices.csv", "series.csv")]
    assert answer.exit_code == 1 and "\x1b" not in answer.output + "".join(tables)
    cells = [c for text in tables for row in csv.reader(text.splitlines()) for c in row]
    assert {"'=2+2", "'=1+1.dcm", "'@SUM(1).dcm", "a\\x1b[2Jb.dcm"} <= set(cells)
    assert not [c for c in cells if c[:1] in ("=", "+", "@")]


def test_an_error_is_printed_without_control_characters(tmp_path):
    code = "import sys; from mammo_nb.cli import main; sys.argv[0] = 'mammo-nb'; main()"
    done = subprocess.run([sys.executable, "-c", code, "series", str(tmp_path / "gone\x1b[2J"), "-o", str(tmp_path)],
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and "gone\\x1b[2J" in done.stderr and "\x1b" not in done.stderr

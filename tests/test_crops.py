"mammo/crops: how much is decoded, the crops, the winner's preparation, memory, and a run that is killed."
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, local_cluster
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, RLELossless

from mammo_nb.core.dicom import Frame, read_frame
from mammo_nb.core.pictures import shrink, write_png
from mammo_nb.core.runs import Run
from mammo_nb.core.stages import failures
from mammo_nb.core.systems import find_system
from mammo_nb.mammo.crops import crop_files, crop_size, cut_breast
from mammo_nb.mammo.drawing.machines import write_dicom
from mammo_nb.mammo.phantom import make_competition
from mammo_nb.mammo.reading import faithful
from mammo_nb.mammo.reading.boxes import find_box
from mammo_nb.mammo.reading.inputs import network_input
from mammo_nb.mammo.recipes import Crops
from mammo_nb.mammo.tools.crops import crop_folder


def half_disc(rows: int, columns: int, top: int = 4000) -> np.ndarray:
    "Draw tissue at the left edge, brighter towards the chest wall, with noise; uint16."
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    r = (x / (.6 * columns)) ** 2 + ((y - rows / 2) / (.42 * rows)) ** 2
    noise = np.random.default_rng(rows).integers(0, 8, r.shape)
    return np.where(r < 1, top * (1 - r * .7), top / 100 + noise).astype(np.uint16)

def write(path: Path, pixels: np.ndarray, syntax=JPEG2000Lossless, bits: int = 12, windows=((2048, 4096),),
          voi_function: str = "", photometric: str = "MONOCHROME2") -> Path:
    write_dicom(path, pixels, patient_id="1", image_id="2", laterality="L", view="CC", syntax=syntax,
                photometric=photometric, bits_stored=bits, windows=windows, voi_function=voi_function)
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return write(tmp_path_factory.mktemp("scan") / "a.dcm", half_disc(1801, 1401))


# ---- how much is decoded
@pytest.mark.parametrize("size", [(0, 0), (2048, 1024), (1400, 800), (700, 420), (512, 256), (256, 128), (100, 2000)])
def test_no_more_is_decoded_than_the_size_needs_and_no_less(scan, size):
    breast = cut_breast(read_frame(scan), Crops(height=size[0], width=size[1]))
    rows, columns, ratio = crop_size(breast.box, Crops(height=size[0], width=size[1]))
    assert breast.grey.shape == (rows, columns)
    scale, box_needs = breast.image.scale, 416 / 1801
    assert scale >= ratio  # at least one decoded pixel for each pixel of the crop
    assert scale == .25 or scale / 2 < max(ratio, box_needs)  # half of this scale would be too little
    cut = np.array([breast.box.y1 - breast.box.y0, breast.box.x1 - breast.box.x0]) * scale
    assert (cut >= np.array(breast.grey.shape) - 1).all()


@pytest.mark.parametrize("size", [(700, 420), (256, 128)])
def test_a_crop_from_a_smaller_picture_shows_the_same(scan, tmp_path, size):
    settings = Crops(height=size[0], width=size[1])
    plain = write(tmp_path / "a.dcm", half_disc(1801, 1401), ExplicitVRLittleEndian)  # without a smaller picture
    small, full = (cut_breast(read_frame(p), settings) for p in (scan, plain))
    assert small.image.scale < full.image.scale == 1
    corners = [(b.box.x0, b.box.y0, b.box.x1, b.box.y1) for b in (small, full)]
    assert np.abs(np.subtract(*corners)).max() <= 8  # frame pixels, two pixels of the quarter
    again = cut_breast(read_frame(plain), settings)
    assert np.array_equal(again.grey, full.grey)
    both = [cv2.resize(b.grey, (64, 128), interpolation=cv2.INTER_AREA).astype(int) for b in (small, full)]
    assert np.abs(both[0] - both[1]).mean() < 2


@pytest.mark.parametrize("size", [(0, 0), (2048, 1024), (1400, 800)])
def test_a_crop_that_needs_the_full_frame_is_decoded_once_and_is_that_of_any_compression(scan, tmp_path, size,
                                                                                        monkeypatch):
    settings, scales, decode = Crops(height=size[0], width=size[1]), [], Frame.decode
    plain = cut_breast(read_frame(write(tmp_path / "a.dcm", half_disc(1801, 1401), ExplicitVRLittleEndian)), settings)
    monkeypatch.setattr(Frame, "decode", lambda frame, scale=1.0: scales.append(scale) or decode(frame, scale))
    packed = cut_breast(read_frame(scan), settings)
    assert scales == [1.0] and packed.box == plain.box and np.array_equal(packed.grey, plain.grey)


def test_a_decoder_that_cannot_reduce_gives_the_whole_picture(scan, monkeypatch):
    from mammo_nb.core import decoders
    def broken(*_):
        raise ValueError("cannot reduce")
    monkeypatch.setitem(decoders.DECODERS, "pillow", replace(decoders.DECODERS["pillow"], decode=broken))
    image = read_frame(scan).decode(.25)
    assert image.scale == 1 and image.pixels.shape == (1801, 1401)


def test_shrinking_is_by_means():
    pixels = np.random.default_rng(0).integers(0, 60_000, (96, 64), dtype=np.uint16)
    assert np.abs(shrink(pixels, 24, 16) - pixels.reshape(24, 4, 16, 4).mean((1, 3))).max() <= 1
    assert shrink(pixels, 96, 64) is pixels and shrink(pixels, 50, 40).dtype == np.uint16


# ---- the winner's preparation, compared with the formulas of facts, section 3, in 64-bit floats
def by_the_facts(pixels: np.ndarray, center: float, width: float, function: str, inverted: bool) -> np.ndarray:
    x = pixels.astype(np.uint16).view(np.int16).astype(float)
    if function == "SIGMOID":
        grey = 255 / (1 + np.exp(-4 * (x - center) / width))
    elif function == "LINEAR":
        grey = np.clip(((x - (center - .5)) / (width - 1) + .5) * 255, 0, 255)
    else:
        grey = np.clip(((x - center) / width + .5) * 255, 0, 255)
    return 255 - grey if inverted else grey


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_faithful_training_crops(tmp_path, function, photometric):
    pixels = half_disc(900, 700)
    stored = 4095 - pixels if photometric == "MONOCHROME1" else pixels
    frame = read_frame(
        write(tmp_path / "a.dcm", stored, windows=((1900, 2600), (1, 2)), voi_function=function,
              photometric=photometric))
    breast = cut_breast(frame, Crops(faithful=True, height=64, width=32))
    assert breast.image.scale == 1
    cut = stored[breast.box.y0:breast.box.y1, breast.box.x0:breast.box.x1]
    expected = by_the_facts(cut, 1900, 2600, function, photometric == "MONOCHROME1")
    assert breast.grey.shape == cut.shape and (breast.grey == expected.astype(np.uint8)).mean() > .9999
    # rounding errors of 32-bit floats change a level by at most 1
    assert np.abs(breast.grey.astype(int) - expected.astype(np.uint8)).max() <= 1


def test_faithful_casts_to_int16_and_ours_does_not(tmp_path):
    pixels = half_disc(600, 500, top=60_000)
    frame = read_frame(write(tmp_path / "a.dcm", pixels, bits=16, windows=((32_768, 65_536),)))
    wrapped, right = cut_breast(frame, Crops(faithful=True)), cut_breast(frame)
    cut = lambda b: pixels[b.box.y0:b.box.y1, b.box.x0:b.box.x1]
    assert np.abs(right.grey - (cut(right) - 32_767.5) / 65_535 * 255 - 127.5).max() < 1.01
    assert not wrapped.grey[cut(wrapped) > 40_000].any()
    expected = by_the_facts(cut(wrapped), 32_768, 65_536, "LINEAR", False).astype(np.uint8)
    assert np.abs(wrapped.grey.astype(int) - expected).max() <= 1


def test_faithful_network_input_resizes_before_it_truncates(tmp_path):
    frame = read_frame(write(tmp_path / "a.dcm", half_disc(900, 700), windows=((1900, 2600),)))
    settings = Crops(faithful=True)
    breast = cut_breast(frame, settings)
    seen = network_input(breast, settings, (512, 256))
    cut = breast.image.pixels[breast.box.y0:breast.box.y1, breast.box.x0:breast.box.x1]
    grey = by_the_facts(cut, 1900, 2600, "LINEAR", False)
    ratio = min(512 / grey.shape[0], 256 / grey.shape[1])
    rows, columns = int(grey.shape[0] * ratio), int(grey.shape[1] * ratio)
    expected = np.zeros((512, 256))
    top, left = (512 - rows) // 2, (256 - columns) // 2
    # bilinear, half-pixel centres, no smoothing
    expected[top:top + rows, left:left + columns] = cv2.resize(grey, (columns, rows), interpolation=cv2.INTER_LINEAR)
    assert seen.dtype == np.uint8 and (seen == expected.astype(np.uint8)).mean() > .999
    assert np.abs(seen - expected).max() < 1.01


def test_faithful_percentile_and_detector_view():
    x = np.random.default_rng(3).integers(0, 50_000, (300, 200)).astype(np.uint16)
    p99 = np.percentile(x, 99)
    expected = np.clip((x - float(x.min())) / (p99 - 1 - x.min()), 0, 1) * 255
    assert np.abs(faithful.grey_floats(faithful.as_cast(x, "percentile"), None, "percentile") - expected).max() < 1e-2
    eight = (x >> 8).astype(np.uint8)
    view, ratio = faithful.detector_view(eight, None, "percentile", 416)
    assert ratio == 416 / 300 and view.shape == (416, int(200 * ratio)) and view.max() <= eight.max()  # unchanged
    wide = np.array([[-32_768, 0], [0, 32_767]], np.int16)  # the range of these values does not fit int16
    header = type("H", (), {"windows": (), "photometric": "MONOCHROME2"})
    assert faithful.grey_floats(wide, header, "window").round().tolist() == [[0, 128], [128, 255]]


def test_faithful_shows_the_range_where_the_first_window_has_no_width(tmp_path):
    bad, without = (cut_breast(read_frame(write(tmp_path / "a.dcm", half_disc(300, 250), windows=windows)),
                               Crops(faithful=True)) for windows in (((1900, 0),), ()))
    assert np.array_equal(bad.grey, without.grey) and bad.notes and not without.notes


def test_faithful_box_is_truncated_at_all_sides(scan):
    image = read_frame(scan).decode()
    ours, theirs = find_box(image, Crops(growth=0)), find_box(image, Crops(faithful=True))
    assert theirs.source == ours.source == "otsu" and isinstance(theirs.x1, int)
    assert abs(theirs.x1 - ours.x1) <= 9 and abs(theirs.y0 - ours.y0) <= 9


# ---- memory
PEAK = """
import sys
from dataclasses import asdict
from pathlib import Path
from mammo_nb.mammo.crops import crop_file
from mammo_nb.mammo.recipes import Crops
settings = asdict(Crops(faithful=sys.argv[3] == "faithful"))
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
def cut(path):
    place = {"file": path.name, "folder": str(path.parent), "images": str(path.parent)}
    return crop_file({**place, "patient_id": "p", "image_id": "i", "settings": settings})
cut(Path(sys.argv[1]))  # loads all libraries
Path("/proc/self/clear_refs").write_text("5")
before = peak()
cut(Path(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1, RLELossless, ExplicitVRLittleEndian],
                         ids=lambda u: u.keyword)
@pytest.mark.parametrize("preparation", ["ours", "faithful"])
def test_a_process_needs_at_most_four_times_the_memory_of_the_frame(tmp_path, syntax, preparation):
    frame = half_disc(3000, 2400)
    files = write(tmp_path / "small.dcm", half_disc(400, 300), syntax), write(tmp_path / "large.dcm", frame, syntax)
    done = subprocess.run([sys.executable, "-c", PEAK, *files, preparation], text=True, capture_output=True, check=True)
    assert int(done.stdout) <= 4 * frame.nbytes


# ---- many files
def test_no_name_leads_out_of_the_folder(tmp_path):
    outside = write(tmp_path / "secret/a.dcm", half_disc(300, 250))
    inside = write(tmp_path / "data/a.dcm", half_disc(300, 250))
    files = pd.DataFrame({
        "file": ["a.dcm", "../secret/a.dcm", str(outside)], "patient_id": ["1", "2", "3"], "image_id": ["1", "2", "3"]
    })
    table = crop_files(files, inside.parent, tmp_path / "out", workers=1)
    assert [e.split(":")[0] for e in table["error"]] == ["", "PathError", "PathError"]
    assert [p.name for p in (tmp_path / "out/cleaned_images").iterdir()] == ["1@1.png"]


def test_names_of_a_folder_stay_apart_and_below(tmp_path):
    for name in ("7/1.png", "8/1.png", "9.png", "a b@c/é.png"):
        write_png(tmp_path / "in" / name, half_disc(300, 250, top=200).astype(np.uint8))
    table = crop_folder(tmp_path / "in", tmp_path / "out", workers=1)
    assert (table["error"] == "").all()
    names = sorted(p.name for p in (tmp_path / "out/cleaned_images").iterdir())
    assert names == ["7@1.png", "8@1.png", "a b%40c@%C3%A9.png", "unknown@9.png"]


BROKEN = {
    "empty": lambda data: b"", "text": lambda data: b"patient,image\n" * 50, "cut": lambda data: data[:len(data) // 2],
    "beginning": lambda data: data[:200],
    "no syntax": lambda data: data.replace(b"1.2.840.10008.1.2", b"1.2.840.99999.9.9")
}


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    "1,000 phantom files, 100 of them drawn, 20 of them broken."
    root = tmp_path_factory.mktemp("thousand")
    drawn = make_competition(root / "c", patients=24, test_patients=1, frame=(192, 160), prevalence=.1,
                             seed=3)["file"][:100]
    rng = np.random.default_rng(0)
    files = [root / f"in/{k:02}/{i:03}.dcm" for k in range(10) for i in range(100)]
    for k, path in enumerate(files):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "c" / drawn[k % 100], path)
    broken = rng.choice(1000, 20, replace=False)
    for n, k in enumerate(broken):
        files[k].write_bytes(list(BROKEN.values())[n % len(BROKEN)](files[k].read_bytes()))
    return root / "in", {f"{files[k].parent.name}/{files[k].name}" for k in broken}


def command(folder: Path, output: Path, *more: str, **popen) -> subprocess.Popen:
    return subprocess.Popen(
        [Path(sys.prefix) / "bin/mammo-nb", "crops", folder, "-o", output, "--detector", "otsu", *more], cwd=ROOT,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, **popen)


def content(output: Path) -> dict:
    "Digests of the files that an interruption must not change."
    return {
        p.relative_to(output).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(output.rglob("*"))
        if p.is_file() and not p.name.startswith("crops_seconds.csv")
    }


def test_a_thousand_files_with_twenty_broken_killed_twice(thousand, tmp_path):
    folder, broken = thousand
    undisturbed = command(folder, tmp_path / "a")
    printed = undisturbed.communicate()[0]
    assert undisturbed.returncode == 1 and "980 of 1000 files cropped" in printed, printed
    errors = pd.read_csv(tmp_path / "a/crop_errors.csv")
    assert set(errors["file"]) == broken and len(errors) == 20 and errors["error"].str.match(
        r"(NotDicom|CorruptPixels|BadHeader|MissingTag|UnsupportedSyntax): \d+\.dcm: ").all()
    journal, finished = tmp_path / "b/crops_seconds.csv.journal", {}
    rng = np.random.default_rng()
    for at in sorted(rng.integers(30, 900, 2)):
        run = command(folder, tmp_path / "b")
        while run.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > at):
            time.sleep(.002)
        assert run.poll() is None, f"ended before row {at}"
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        for png in (tmp_path / "b/cleaned_images").glob("[!.]*.png"):
            assert cv2.imread(str(png)) is not None, png  # a file with its final name is whole
        done = {row.split('"item": "')[1][:32] for row in journal.read_text().split("\n")[1:-1] if '"item"' in row}
        assert finished.get("rows", set()) <= done
        pictures = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "b/cleaned_images").glob("[!.]*.png")}
        redone = [name for name, when in finished.get("pictures", {}).items() if pictures[name] != when]
        # in progress: their pictures existed, and their rows did not. Two processes and the caller hold four tasks at
        # most, and a task ends after 0.05 s, which is about ten of these files
        assert len(redone) <= 48, redone
        finished = {"rows": done, "pictures": pictures}
    last = command(folder, tmp_path / "b", "--allow-errors")
    printed = last.communicate()[0]
    assert last.returncode == 0 and "20 failed" in printed, printed
    assert content(tmp_path / "b") == content(tmp_path / "a")


def test_the_same_call_on_a_cluster_that_loses_a_worker(thousand, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    folder, _ = thousand
    part = tmp_path / "in"
    for path in sorted(folder.rglob("*.dcm"))[:120]:
        (part / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, part / path.relative_to(folder))
    crop_folder(part, tmp_path / "local", workers=1)
    with local_cluster() as cluster:
        with distributed.Client(cluster) as client:
            first = next(iter(client.run(os.getpid).values()))
        monkeypatch.setenv("MAMMO_NB_SCHEDULER", cluster.scheduler_address)
        run = command(part, tmp_path / "cluster")
        journal = tmp_path / "cluster/crops_seconds.csv.journal"
        while run.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 10):
            time.sleep(.002)
        assert run.poll() is None
        os.kill(first, signal.SIGKILL)
        printed = run.communicate()[0]
    assert "of 120 files cropped" in printed, printed
    assert content(tmp_path / "cluster") == content(tmp_path / "local")


def test_failed_files_of_a_run_are_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    run = Run.create(tmp_path / "x", find_system("mammo"), "tiny")
    errors = run.path("processed/crop_errors.csv")
    errors.parent.mkdir(parents=True)
    assert failures(run) == {}
    errors.write_text("file,patient_id,image_id,error\n")
    assert failures(run) == {"training images": 0}
    errors.write_text("file,patient_id,image_id,error\na.dcm,1,2,CorruptPixels: a.dcm: x\n")
    assert failures(run) == {"training images": 1}


def test_a_single_file_is_cropped_as_in_its_folder(tmp_path):
    for number, rows in enumerate((300, 340)):
        write(tmp_path / f"in/{number}.dcm", half_disc(rows, 240))
    crop_folder(tmp_path / "in", tmp_path / "all", workers=1)
    one = crop_folder(tmp_path / "in/1.dcm", tmp_path / "one", workers=1)
    made = list((tmp_path / "one/cleaned_images").iterdir())
    assert one["file"].tolist() == ["1.dcm"] and len(made) == 1
    whole = pd.read_csv(tmp_path / "all/crops.csv", dtype=str).set_index("file")["sha256"]
    assert one["sha256"].tolist() == [whole["1.dcm"]]

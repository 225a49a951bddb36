"Files of several frames: which frame is read, with its own window and side, and what the commands say of the others."
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from odd import breast, code, dataset, save
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian,
                         ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless)
from test_predict import everything, mammo_nb, weights  # noqa: F401  (a fixture)

from mammo_nb import predict
from mammo_nb.core.headers import MultiFrame
from mammo_nb.mammo.crops import cut_breast
from mammo_nb.mammo.reading.inputs import see_item
from mammo_nb.mammo.reading.mammograms import read_frame, read_header
from mammo_nb.mammo.recipes import Crops

SPECIAL = "no standard mammogram: tomosynthesis"
TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"
SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
            RLELossless, JPEG2000Lossless, JPEGLSLossless]


def item(**tags):
    d = Dataset()
    for name, value in tags.items():
        setattr(d, name, value)
    return d


def group(window=None, side="", intercept=None):
    "Functional groups of one frame, or those that all frames share."
    found = item()
    if window:
        found.FrameVOILUTSequence = Sequence([item(WindowCenter=window[0], WindowWidth=window[1])])
    if side:
        found.FrameAnatomySequence = Sequence([item(FrameLaterality=side)])
    if intercept is not None:
        found.PixelValueTransformationSequence = Sequence([
            item(RescaleIntercept=intercept, RescaleSlope=1, RescaleType="US")])
    return found


def volume(count=5, syntax=ExplicitVRLittleEndian, sides="R", **tags):
    "A tomosynthesis: frame k is brighter by 100 k, its window and its intercept are moved by as much."
    stack = np.stack([breast(seed=k) + np.uint16(100 * k) for k in range(count)])
    sides = sides if len(sides) == count else count * sides
    groups = [group((2000 + 150 * k, 3000), side, 50 * k) for k, side in enumerate(sides)]
    d = dataset(stack, **{
        "SOPClassUID": TOMOSYNTHESIS, "ImageLaterality": None, "ViewPosition": None, "NumberOfFrames": count,
        "WindowCenter": None, "WindowWidth": None, "ViewCodeSequence": Sequence([code("399162004")]),
        "ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "NONE"],
        "PerFrameFunctionalGroupsSequence": Sequence(groups)} | tags)
    if syntax.is_encapsulated:
        d.compress(syntax, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        d.PixelData = stack.astype(">u2").tobytes()
    d.file_meta.TransferSyntaxUID = syntax
    return d


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name.partition(" (")[0])
def test_each_frame_has_its_own_values_window_and_side(tmp_path, syntax):
    path = save(volume(syntax=syntax, sides="RRLLR"), tmp_path / "a.dcm")
    for k, side in enumerate("RRLLR"):
        frame = read_frame(path, k)
        header = frame.header
        assert np.array_equal(frame.decode().pixels, breast(seed=k) + np.uint16(100 * k))
        assert (header.windows, header.intercept) == (((2000 + 150 * k, 3000),), 50 * k)
        assert (header.laterality, header.laterality_source, header.view) == (side, "FrameLaterality", "CC")
        # the same picture in a file of its own: 100 k in the values and 50 k in the intercept move with the window
        single = cut_breast(read_frame(save(dataset(breast(seed=k)), tmp_path / "single.dcm")))
        assert np.array_equal(cut_breast(frame).grey, single.grey)
    with pytest.raises(MultiFrame, match="--frames middle, all or a number"):
        read_frame(path)
    with pytest.raises(MultiFrame, match="no frame 6 among 5.*Choose 1 to 5"):
        read_frame(path, 5)


def test_shared_groups_count_for_all_frames_and_the_own_ones_more(tmp_path):
    groups = [group(), group((1500, 900), "L"), group()]
    d = volume(3, PerFrameFunctionalGroupsSequence=Sequence(groups),
               SharedFunctionalGroupsSequence=Sequence([group((2000, 3000), "R", 7)]))
    path = save(d, tmp_path / "a.dcm")
    headers = [read_frame(path, k).header for k in range(3)]
    assert [h.windows[0] for h in headers] == [(2000, 3000), (1500, 900), (2000, 3000)]
    assert [h.laterality for h in headers] == ["R", "L", "R"] and {h.intercept for h in headers} == {7}


def test_the_window_of_a_frame_counts_more_than_that_of_the_file(tmp_path):
    path = save(volume(2, WindowCenter=1, WindowWidth=2), tmp_path / "a.dcm")
    assert read_frame(path, 1).header.windows == ((2150, 3000),)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless], ids=["plain", "JPEG 2000"])
def test_memory_is_that_of_one_frame(tmp_path, syntax):
    flat = np.random.default_rng(0).integers(0, 4096, (60, 320, 256)).astype(np.uint16)
    d = dataset(flat, NumberOfFrames=60)
    if syntax.is_encapsulated:
        d.compress(syntax, generate_instance_uid=False)
    path = save(d, tmp_path / "a.dcm")
    read_frame(path, 0).decode()   # modules are loaded
    tracemalloc.start()
    pixels = read_frame(path, 40).decode().pixels
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(pixels, flat[40]) and peak < 6 * flat[0].nbytes < path.stat().st_size / 5


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    "A mammogram, a tomosynthesis, two mammograms in one file, and a synthetic mammogram of the tomosynthesis class."
    folder = tmp_path_factory.mktemp("frames") / "in"
    save(dataset(patient="A"), folder / "mg.dcm")
    save(volume(patient="A"), folder / "bto.dcm")
    two = np.stack([breast(seed=1), breast(seed=2)])
    save(dataset(two, patient="B", NumberOfFrames=2), folder / "two.dcm")
    save(dataset(patient="C", SOPClassUID=TOMOSYNTHESIS, NumberOfFrames=1), folder / "synthetic.dcm")
    return folder


def predicted(study, weights, output, *more):  # noqa: F811
    done = mammo_nb("predict", study, "-o", output, "--weights", weights, "--workers", 1, *more)
    images, breasts = (pd.read_csv(output / f"per_{kind}.csv", keep_default_na=False, na_values={"probability": ""})
                       for kind in ("image", "breast"))
    return done, images, breasts


def test_without_the_option_frames_are_not_predicted_and_the_option_is_named(study, weights, tmp_path):  # noqa: F811
    done, images, breasts = predicted(study, weights, tmp_path)
    images = images.set_index("file")
    assert done.returncode == 0 and images["error"].eq("").all()
    assert images["probability"].notna().to_dict() == {"bto.dcm": False, "mg.dcm": True, "synthetic.dcm": True,
                                                       "two.dcm": False}
    assert images.loc["bto.dcm", "note"].startswith(
        "no standard mammogram: tomosynthesis; 5 frames, choose with --frames middle, all or a number; ")
    assert images.loc["two.dcm", "note"].startswith("2 frames, choose with --frames middle, all or a number; ")
    assert "choose with --frames" in done.stdout and breasts["images"].tolist() == [1, 1, 0]  # A, C, B


@pytest.mark.parametrize("choice, numbers", [("middle", [3]), ("4", [4]), ("all", [1, 2, 3, 4, 5])])
def test_chosen_frames_are_predicted_as_files_of_their_own(study, weights, tmp_path, choice, numbers):  # noqa: F811
    done, images, breasts = predicted(study, weights, tmp_path / "out", "--frames", choice)
    rows = images[images["file"] == "bto.dcm"]
    uid = read_header(study / "bto.dcm").instance
    assert rows["image_id"].tolist() == [f"{uid}_{n}" for n in numbers]
    for n, row in zip(numbers, rows.itertuples()):
        save(dataset(breast(seed=n - 1)), tmp_path / f"single/{n}.dcm")
        assert row.note.startswith(f"no standard mammogram: tomosynthesis; frame {n} of 5; ")
        assert f"bto.dcm frame {n} of 5" in done.stdout
    single = mammo_nb("predict", tmp_path / "single", "-o", tmp_path / "one", "--weights", weights, "--workers", 1)
    alone = pd.read_csv(tmp_path / "one/per_image.csv")
    assert single.returncode == 0 and np.allclose(rows["probability"], alone["probability"], atol=2e-6)
    two = images[images["file"] == "two.dcm"]
    if choice == "4":  # a number that this file has not
        assert done.returncode == 1 and two["error"].item().startswith("MultiFrame: two.dcm: no frame 4 among 2")
    else:
        assert done.returncode == 0 and len(two) == (2 if choice == "all" else 1) and two["probability"].notna().all()
        # a tomosynthesis is no standard view, two mammograms in one file are
        assert breasts["images"].tolist() == [1, 1, len(two)] and not two["note"].str.contains("same SOP").any()
    assert len(list((tmp_path / "out/previews").glob("*.png"))) == images["probability"].notna().sum()


def test_crops_name_the_option_and_take_it(study, tmp_path):
    def cropped(output, *more):
        done = mammo_nb("crops", study, "-o", output, "--detector", "otsu", "--workers", 1, *more)
        return done, pd.read_csv(output / "crops.csv", keep_default_na=False)

    done, table = cropped(tmp_path / "none")
    assert done.returncode == 0 and "2 of 2 files cropped" in done.stdout
    assert "left out bto.dcm: 5 frames" in done.stdout and "--frames middle, all or a number" in done.stdout
    done, table = cropped(tmp_path / "all", "--frames", "all")
    assert done.returncode == 0 and "9 of 9 files cropped" in done.stdout
    assert table["file"].value_counts().to_dict() == {"bto.dcm": 5, "two.dcm": 2, "mg.dcm": 1, "synthetic.dcm": 1}
    assert table["sha256"].nunique() == 5   # five breasts are drawn
    assert all((tmp_path / "all/cleaned_images" / p).is_file() for p in table["picture"])
    assert "5 cropped: no standard mammogram: tomosynthesis\n" in done.stdout
    assert table["image_id"].is_unique and table.loc[0, "note"] == f"{SPECIAL}; frame 1 of 5"
    assert cropped(tmp_path / "middle", "--frames", "middle")[1]["note"].tolist() == [
        f"{SPECIAL}; frame 3 of 5", "", "", "frame 1 of 2"]


@pytest.mark.parametrize("choice", ["first", "0", "-1", "1.5"])
def test_another_choice_is_refused_before_anything_is_read(study, tmp_path, choice):
    for command in ("predict", "crops"):
        done = mammo_nb(command, study, "-o", tmp_path / "out", "--frames", choice)
        assert done.returncode == 2 and "--frames is middle, all or a number from 1" in done.stdout
    assert not (tmp_path / "out/per_image.csv").exists()


def test_check_counts_frames_and_names_the_option(study, tmp_path):
    done = mammo_nb("check", study, "-o", tmp_path / "check.csv", "--workers", 1)
    table = pd.read_csv(tmp_path / "check.csv", keep_default_na=False).set_index("file")
    assert done.returncode == 0 and table["frames"].to_dict() == {"bto.dcm": 5, "mg.dcm": 1, "synthetic.dcm": 1,
                                                                  "two.dcm": 2}
    assert table.loc["bto.dcm", "problems"].startswith("multi-frame: 5 frames, choose with --frames")
    assert "no standard mammogram: tomosynthesis" in table.loc["bto.dcm", "problems"]
    assert "tomosynthesis" not in table.loc["synthetic.dcm", "problems"]


def test_a_submission_takes_the_middle_frame(study):
    about = {"folder": str(study), "row": None, "settings": vars(Crops()), "detector": "", "pngs": "", "size": (64, 32)}
    mode = type("Mode", (), {"size": (64, 32)})
    row, picture = see_item({**about, "file": "bto.dcm"}, mode)
    _, two = see_item({**about, "file": "two.dcm"}, mode)
    assert row["note"].startswith("no standard mammogram: tomosynthesis; frame 3 of 5") and not row["withheld"]
    assert np.array_equal(picture, cut_to(breast(seed=2))) and np.array_equal(two, cut_to(breast(seed=1)))


def cut_to(pixels):
    "The input of a network of 64 x 32 for a mammogram of these pixels."
    import tempfile
    from pathlib import Path
    with tempfile.TemporaryDirectory() as folder:
        save(dataset(pixels), Path(folder) / "a.dcm")
        about = {"folder": folder, "row": None, "settings": vars(Crops()), "detector": "", "pngs": "", "size": (64, 32)}
        return see_item({**about, "file": "a.dcm"}, type("Mode", (), {"size": (64, 32)}))[1]


def test_the_options_of_the_command_in_python(study, weights, tmp_path):  # noqa: F811
    save(dataset(np.zeros((320, 256), np.uint16), patient="D"), tmp_path / "black.dcm")
    assert predict(tmp_path, weights, workers=1)["probability"].isna().all()
    assert predict(tmp_path, weights, workers=1, force=True)["probability"].notna().all()
    assert len(predict(study, weights, workers=1, frames="all")) == 9
    save(dataset(SOPClassUID="1.2.840.10008.5.1.4.1.1.6.1", Modality="US"), tmp_path / "us.dcm")
    assert predict(tmp_path / "us.dcm", weights, workers=1)["probability"].isna().all()
    assert predict(tmp_path / "us.dcm", weights, workers=1, all_views=True)["probability"].notna().all()
    with pytest.raises(TypeError, match="mammo does not know fames"):
        predict(study, weights, fames="all")


@pytest.mark.parametrize("choice, count", [("", 2), ("middle", 2), ("all", 4), ("2", 2)])
def test_hashed_ids_of_frames_show_no_id_anywhere(weights, tmp_path, monkeypatch, choice, count):  # noqa: F811
    monkeypatch.setenv("MAMMO_NB_ID_KEY", str(tmp_path / "id.key"))
    folder, out = tmp_path / "in", tmp_path / "out"
    d = volume(3, patient="PATIENT-4711")
    save(d, folder / "FOLDER-0815/VOLUME-0816.dcm")
    save(dataset(patient="PATIENT-4711", view="MLO", side="R"), folder / "SINGLE-0817.dcm")
    ids = ["PATIENT-4711", "FOLDER-0815", "VOLUME-0816", "SINGLE-0817", d.SOPInstanceUID, d.StudyInstanceUID]
    more = ("--frames", choice) if choice else ()
    done = mammo_nb("predict", folder, "-o", out, "--weights", weights, "--hash-ids", "--workers", 1, *more)
    text = everything(out, done.stdout).replace(str(folder).encode(), b"")
    assert done.returncode == 0, done.stdout
    assert not [i for i in ids if i.encode() in text]
    table = pd.read_csv(out / "per_image.csv", dtype=str)
    assert len(table) == count and table["image_id"].nunique() == count and table["patient_id"].nunique() == 1
    numbers = table["image_id"].str.extract(r"^[0-9a-f]{12}(?:_([0-9]+))?$")[0].dropna().astype(int)
    assert set(numbers) <= {1, 2, 3}

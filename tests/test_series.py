"core/series: volumes in the order of the patient, HU, and every other file named; on series made here."
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from typer.testing import CliRunner

from mammo_nb.core.geometry import spacing_of
from mammo_nb.core.headers import NotDicom
from mammo_nb.core.series import print_series, read_volume, write_series

DATA = Path(__file__).parents[2] / "shared" / "data"
CT = "1.2.840.10008.5.1.4.1.1.2"
AXIAL = (1, 0, 0, 0, 1, 0)
SIZE = 24
pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom warns when it writes what these tests need


def head(k):
    "HU of slice k: a disc of 40 HU with a wall of 900 HU in air; the disc grows with k, so every mean differs."
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    radius = np.hypot(x, y)
    return np.select([radius < 4 + .4 * k, radius < 5 + .4 * k], [40, 900], -1000)


def write(path, hu, z=0.0, number=1, stored=None, intercept=-1024, bits=16, signed=0, syntax=ExplicitVRLittleEndian,
          **tags):
    "A CT file; `tags` replace what is set here, and None removes it."
    values = np.asarray(hu - intercept if stored is None else stored)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    base = dict(SOPClassUID=CT, SOPInstanceUID=generate_uid(), Modality="CT", ImageType=["ORIGINAL", "PRIMARY"],
                PatientID="P7", StudyInstanceUID="1.2.7", SeriesInstanceUID="1.2.7.1", SeriesNumber=3,
                InstanceNumber=number, AcquisitionNumber=1, SliceThickness=2,
                ImagePositionPatient=[-20, -30, round(z, 6)], ImageOrientationPatient=list(AXIAL),
                SliceLocation=round(z, 6), PixelSpacing=[1.5, 1.5], Rows=values.shape[-2], Columns=values.shape[-1],
                SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=16, BitsStored=bits,
                HighBit=bits - 1, PixelRepresentation=signed, RescaleSlope=1, RescaleIntercept=intercept,
                PixelData=values.astype("<i2" if signed else "<u2").tobytes())
    for name, value in (base | tags).items():
        if value is not None:
            setattr(ds, name, value)
    if "PixelData" in ds:
        ds["PixelData"].VR = "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


NAMES = ["q", "b", "z", "a", "m", "k", "c", "x"]  # in the order of the patient; the alphabet has another


def stack(folder, n=8, step=2.0, **tags):
    "n slices every `step` mm; a callable tag is called with the number of the slice."
    for k in range(n):
        own = {name: value(k) if callable(value) else value for name, value in tags.items()}
        write(folder / f"{NAMES[k]}.dcm", head(k), **{"z": k * step, "number": k + 1, **own})
    return [f"{name}.dcm" for name in NAMES[:n]]


def run(folder, tmp_path):
    "slices.csv and series.csv as a reader of the files finds them."
    out = tmp_path / "out"
    write_series(folder, out, workers=1)
    return [pd.read_csv(out / name, dtype=str, keep_default_na=False) for name in ("slices.csv", "series.csv")]


def volumes(slices):
    "Files of each series in their order."
    placed = slices[slices["position_mm"] != ""]
    return [list(part["file"]) for _, part in placed.groupby("series", sort=False)]


def said(slices, file):
    "What the table says about a file."
    rows = slices[slices["file"] == file]
    return " ".join(rows["note"] + rows["error"])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "in"


# --- order

@pytest.mark.parametrize("number", [
    lambda k: 8 - k, lambda k: 1, lambda k: None, lambda k: (5, 2, 8, 1, 7, 3, 6, 4)[k]
], ids=["reversed", "equal", "absent", "random"])
def test_position_orders_whatever_names_and_numbers_say(folder, tmp_path, number):
    files = stack(folder, InstanceNumber=number)
    slices, series = run(folder, tmp_path)
    assert volumes(slices) == [files]
    assert list(slices["position_mm"].astype(float)) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert list(slices["gap_mm"]) == ["2.0"] * 7 + [""] and not slices["note"].any() and not slices["error"].any()
    assert list(slices["mean_hu"].astype(float)) == [pytest.approx(head(k).mean(), abs=.001) for k in range(8)]
    assert series.loc[0, ["series", "slices", "spacing_mm", "row_spacing_mm", "plane", "note"]].tolist() == [
        "1.2.7.1", "8", "2.0", "1.5", "axial", ""]


def test_files_without_ending_preamble_or_in_several_folders_are_one_series(folder, tmp_path):
    files = [f"disk{k % 2}/{k // 2}" for k in range(6)]
    for k, file in enumerate(files):
        path = write(folder / file, head(k), z=2.0 * k, syntax=ImplicitVRLittleEndian)
        if k > 1:
            data = path.read_bytes()
            length = int.from_bytes(data[140:144], "little")  # of the meta information, which goes
            path.write_bytes(data[144 + length:])
    slices, _ = run(folder, tmp_path)
    assert volumes(slices) == [files]


def test_tilt_is_measured_along_the_normal(folder, tmp_path):
    c, s = np.cos(np.radians(-15)), np.sin(np.radians(-15))
    leaning = [1, 0, 0, 0, round(c, 7), round(s, 7)]
    files = stack(folder, step=4.0, ImageOrientationPatient=leaning, GantryDetectorTilt=0)
    slices, series = run(folder, tmp_path)
    assert volumes(slices) == [files] and np.allclose(slices["gap_mm"][:-1].astype(float), 4 * c, atol=1e-3)
    assert series.loc[0, "plane"] == "axial tilted by 15.0 degrees" and "sheared by 0.268 mm" in series.loc[0, "note"]


def test_coronal_slices_are_ordered_along_y_and_noise_is_ignored(folder, tmp_path):
    noise = np.random.default_rng(0).uniform(-5e-5, 5e-5, (8, 6))
    files = stack(folder, ImagePositionPatient=lambda k: [-20, 3.0 * k, 50], InstanceNumber=1,
                  ImageOrientationPatient=lambda k: list(np.round(np.array([1, 0, 0, 0, 0, -1]) + noise[k], 7)),
                  PixelSpacing=[1.25, 1.5])
    slices, series = run(folder, tmp_path)
    assert volumes(slices) == [files] and not slices["note"].any()
    assert series.loc[0, ["plane", "row_spacing_mm", "column_spacing_mm", "spacing_mm"]].tolist()[:3] == [
        "coronal", "1.25", "1.5"]
    assert float(series.loc[0, "spacing_mm"]) == pytest.approx(3, abs=.001)


def test_feet_first_ascends_along_its_own_normal(folder, tmp_path):
    files = stack(folder, ImageOrientationPatient=[-1, 0, 0, 0, 1, 0], PatientPosition="FFS")
    assert volumes(run(folder, tmp_path)[0]) == [files[::-1]]


def test_without_positions_the_location_orders_and_then_the_number_and_both_are_said(folder, tmp_path):
    files = stack(folder / "a", ImagePositionPatient=None, InstanceNumber=1, SeriesInstanceUID="1.2.7.2")
    stack(folder / "b", ImagePositionPatient=None, SliceLocation=None, SeriesInstanceUID="1.2.7.3")
    stack(folder / "c", ImagePositionPatient=lambda k: None if k == 3 else [-20, -30, 2 * k])
    slices, _ = run(folder, tmp_path)
    found = {v[0][0]: [f[2:] for f in v] for v in volumes(slices)}
    assert found == {"a": files, "b": files, "c": files}
    assert all("SliceLocation" in said(slices, f"a/{f}") and "InstanceNumber" in said(slices, f"b/{f}") for f in files)
    assert "placed by its SliceLocation" in said(slices, "c/a.dcm") and not said(slices, "c/b.dcm")
    assert slices.set_index("file").loc["c/a.dcm", "position_mm"] == "6.0"


# --- spacing

def test_a_missing_slice_is_a_gap_between_two_named_files(folder, tmp_path):
    files = stack(folder, SpacingBetweenSlices=-7)
    (folder / files.pop(3)).unlink()
    slices, series = run(folder, tmp_path)
    assert volumes(slices) == [files] and series.loc[0, "spacing_mm"] == "2.0"
    assert "one gap among steps of 2.00 mm" in series.loc[0, "note"]
    assert [bool(said(slices, f)) for f in files] == [False, False, True, True, False, False, False]
    assert "gap of 4.00 mm" in said(slices, files[2]) and "1 missing" in said(slices, files[3])


@pytest.mark.parametrize("places, spacing, notes", [
    (np.arange(9) * .6, .6, []), (np.arange(9) * 5 + np.random.default_rng(1).uniform(-1e-4, 1e-4, 9), 5, []),
    ([0, 5, 10, 20, 25, 40, 45, 50], 5, [2, 3, 4, 5]), ([0, 5, 10, 17.5, 22.5, 27.5], None, [2, 3]),
    ([0, 2, 4, 6, 13, 20, 27], None, [3]), ([0, 5], 5, []), ([7], None, [])])
def test_spacing(places, spacing, notes):
    found, named, _ = spacing_of(np.array(places, float))
    assert found == (None if spacing is None else pytest.approx(spacing, abs=1e-4)) and sorted(named) == notes


# --- the same place twice

def test_copies_are_left_out_and_both_are_named(folder, tmp_path):
    files = stack(folder)
    shutil.copy(folder / "z.dcm", folder / "again z.dcm")
    write(folder / "other uid.dcm", head(5), z=10.0)  # the pixels of k.dcm under another SOPInstanceUID
    slices, _ = run(folder, tmp_path)
    assert volumes(slices) == [files]
    assert said(slices, "again z.dcm") == "duplicate of z.dcm; left out" and "again z.dcm" in said(slices, "z.dcm")
    assert said(slices, "other uid.dcm") == "duplicate of k.dcm; left out"


@pytest.mark.parametrize("tags", [
    lambda k, phase: dict(AcquisitionNumber=phase), lambda k, phase: dict(ConvolutionKernel=f"B{phase}0"),
    lambda k, phase: dict(InstanceNumber=8 * phase + k), lambda k, phase: dict(ContentTime=f"10{phase}000"),
    lambda k, phase: dict(InstanceNumber=2 * k + phase)
], ids=["acquisition", "kernel", "number", "time", "alternating"])
def test_two_acquisitions_at_the_same_places_are_two_volumes(folder, tmp_path, tags):
    for k in range(6):
        for phase in (1, 2):
            write(folder / f"{NAMES[k]}{phase}.dcm", head(k) + 30 * phase, z=2.0 * k, **tags(k, phase))
    slices, series = run(folder, tmp_path)
    assert volumes(slices) == [[f"{NAMES[k]}{phase}.dcm" for k in range(6)] for phase in (1, 2)]
    assert slices["note"].str.contains("of 2 at the same places").all()
    assert series["series"].tolist() == ["1.2.7.1", "1.2.7.1/2"] and series["spacing_mm"].tolist() == ["2.0", "2.0"]


def test_acquisitions_that_interleave_are_told_apart(folder, tmp_path):
    for phase in (1, 2):
        for k in range(6):
            write(folder / f"{phase}{NAMES[k]}.dcm", head(k), z=5.0 * k + phase, AcquisitionNumber=phase)
    slices, series = run(folder, tmp_path)
    assert volumes(slices) == [[f"{phase}{NAMES[k]}.dcm" for k in range(6)] for phase in (1, 2)]
    assert series["spacing_mm"].tolist() == ["5.0", "5.0"]


def test_a_slice_scanned_again_is_kept_and_the_earlier_one_named(folder, tmp_path):
    files = stack(folder)
    write(folder / "later.dcm", head(2) + 10, z=4.0, AcquisitionNumber=2)
    slices, _ = run(folder, tmp_path)
    assert volumes(slices) == [["q.dcm", "b.dcm", "later.dcm", *files[3:]]]
    assert "scanned again as later.dcm" in said(slices, "z.dcm") and "same place as z.dcm" in said(slices, "later.dcm")


def test_equal_pixels_or_uids_at_different_places_are_kept_and_said(folder, tmp_path):
    files = stack(folder, SOPInstanceUID=lambda k: "1.2.9" if k in (2, 5) else f"1.2.9.{k}",
                  stored=lambda k: head(6 if k == 7 else k) + 1024)
    slices, _ = run(folder, tmp_path)
    assert volumes(slices) == [files]
    assert said(slices, files[5]) == f"the same SOPInstanceUID as {files[2]}, at another place"
    assert said(slices, files[7]) == f"the same pixels as {files[6]}, at another place"


# --- what else lies in the folder

def test_what_is_no_slice_of_the_volume_is_named(folder, tmp_path):
    files = stack(folder)
    side = dict(ImageOrientationPatient=[0, 1, 0, 0, 0, -1], z=40.0)
    write(folder / "scout.dcm", head(1)[:12], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **side)
    report = dict(Rows=None, Columns=None, PixelData=None, ImagePositionPatient=None)
    write(folder / "dose", head(0), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.67", Modality="SR", **report)
    write(folder / "screen.dcm", head(0), SOPClassUID="1.2.840.10008.5.1.4.1.1.7", ImagePositionPatient=None)
    write(folder / "organs.dcm", head(0), SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG")
    write(folder / "colour.dcm", np.repeat(head(0), 3, 1), Columns=SIZE, SamplesPerPixel=3,
          PhotometricInterpretation="RGB", PlanarConfiguration=0)
    (folder / "notes.txt").write_text("patient,laterality\n" * 20)
    (folder / "._q.dcm").write_bytes(b"\0\5\x16\7" + bytes(200))
    (folder / "view.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(60))
    (folder / "none.dcm").write_bytes(b"")
    (folder / "bad.dcm").write_bytes(bytes(128) + b"DICM" + bytes(7))
    data = write(folder / "cut.dcm", head(0), z=30.0).read_bytes()
    (folder / "cut.dcm").write_bytes(data[:-300])
    slices, series = run(folder, tmp_path)
    assert volumes(slices) == [files] and len(series) == 1
    words = {"scout.dcm": "localizer", "dose": "Radiation Dose", "screen.dcm": "screen capture",
             "organs.dcm": "segmentation", "colour.dcm": "colour", "notes.txt": "no DICOM", "._q.dcm": "no DICOM",
             "view.png": "no DICOM"}
    for file, word in words.items():
        row = slices[slices["file"] == file].iloc[0]
        assert word in row["note"] and not row["error"], file
    for file in ("none.dcm", "bad.dcm", "cut.dcm"):
        assert slices.loc[slices["file"] == file, "error"].item().startswith(("NotDicom", "MissingTag", "Corrupt"))
    assert set(slices["file"]) == {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("tags, word", [
    (dict(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "other orientation"),
    (dict(PixelSpacing=[3, 3]), "other pixel spacing"), (dict(hu=np.pad(head(0), 4)), "other matrix, 32 x 32")])
def test_slices_of_another_geometry_are_a_volume_of_their_own(folder, tmp_path, tags, word):
    files = stack(folder)
    for k in range(3):
        place = {"ImagePositionPatient": [-20, 2 * k, 20 + k]}
        write(folder / f"other{k}.dcm", **{"hu": head(k), **place, **tags})
    slices, series = run(folder, tmp_path)
    assert volumes(slices)[0] == files and series["slices"].tolist() == ["8", "3"]
    assert all(word in said(slices, f"other{k}.dcm") for k in range(3)) and not said(slices, "q.dcm")


# --- which files belong together

def test_the_series_uid_groups_and_not_the_number(folder, tmp_path):
    for number in ("2", ""):
        for uid in ("1.2.7.8", "1.2.7.9"):
            stack(folder / number / uid, n=3, SeriesNumber=number, SeriesInstanceUID=uid + number)
    slices, _ = run(folder, tmp_path)
    assert len(volumes(slices)) == 4 and not slices["note"].any()


def test_one_uid_in_two_patients_is_two_series(folder, tmp_path):
    for patient in ("A", "B"):
        stack(folder / patient, n=4, PatientID=patient)
    slices, series = run(folder, tmp_path)
    assert [len(v) for v in volumes(slices)] == [4, 4] and series["patient_id"].tolist() == ["A", "B"]


def test_identifiers_that_are_no_uids(folder, tmp_path):
    for p in range(3):
        for k in range(4):
            write(folder / f"ID_{(p * 7 + k * 5) % 16:x}{p}.dcm", head(k), z=100 - 3 * p + 5.0 * k,
                  PatientID=f"ID_p{p}", StudyInstanceUID=f"ID_st{p}", SeriesInstanceUID=f"ID_se{p}",
                  SOPInstanceUID=f"ID_{p}{k}", InstanceNumber=None,
                  SliceLocation=None, SeriesNumber=None, AcquisitionNumber=None)
    slices, series = run(folder, tmp_path)
    assert [len(v) for v in volumes(slices)] == [4, 4, 4] and series["spacing_mm"].tolist() == ["5.0"] * 3


def test_a_series_uid_for_every_slice_is_put_together_and_said(folder, tmp_path):
    files = stack(folder, SeriesInstanceUID=lambda k: f"1.2.7.1.{k}")
    slices, series = run(folder, tmp_path)
    assert volumes(slices) == [files] and len(series) == 1
    assert slices["note"].str.contains("SeriesInstanceUID of its own").all()


# --- values

RING = np.hypot(*np.mgrid[-12:12, -12:12]) > 11

@pytest.mark.parametrize("how, word", [
    (lambda k: dict(stored=(head(k) + 2048) / 2, intercept=-2048, RescaleSlope=2), ""),
    (lambda k: dict(stored=head(k), signed=1, RescaleSlope=None, RescaleIntercept=None), "no RescaleSlope"),
    (lambda k: dict(stored=head(k) & 0xFFF, signed=1, bits=12, intercept=0), ""),
    (lambda k: dict(stored=head(k) & 0xFFF, bits=12, intercept=0), "unsigned header"),
    (lambda k: dict(stored=head(k) + 1024, bits=12, intercept=0), "HU + 1024"),
    (lambda k: dict(stored=np.where(RING, 63536, head(k) + 1024), PixelPaddingValue=63536), ""),
    (lambda k: dict(stored=np.where(RING, -2000, head(k) + 1024), signed=1), "padding"),
    (lambda k: dict(PhotometricInterpretation=f"MONOCHROME{1 + k % 2}"), ""),
    (lambda k: dict(RescaleSlope=b"1,0 "), "")],
    ids=["slope", "no rescale", "12 of 16 signed", "sign lost", "intercept lost", "padding", "untold padding",
         "monochrome1", "decimal comma"])
def test_hu(folder, tmp_path, how, word):
    for k in range(4):
        tags = how(k)
        comma = tags.pop("RescaleSlope") if isinstance(tags.get("RescaleSlope"), bytes) else b""
        path = write(folder / f"{NAMES[k]}.dcm", head(k), z=2.0 * k, **tags)
        if comma:  # pydicom would refuse to write it
            element = b"\x28\x00\x53\x10DS\x04\x00"
            data = path.read_bytes()
            assert element + b"1.0 " in data
            path.write_bytes(data.replace(element + b"1.0 ", element + comma))
    slices, _ = run(folder, tmp_path)
    assert not slices["error"].any(), slices["error"].tolist()
    truth = np.stack([head(k) for k in range(4)])
    assert np.allclose(slices["mean_hu"].astype(float), truth.mean((1, 2)), atol=.6)
    assert np.allclose(read_volume(folder, slices), truth, atol=1)
    assert slices["note"].str.contains(word, regex=False).all() and (word or not slices["note"].any())


def test_metal_is_neither_cut_nor_wrapped(folder, tmp_path):
    hu = head(3).copy()
    hu[10:12, 10:12] = 9000
    write(folder / "a.dcm", hu)
    slices, series = run(folder, tmp_path)
    assert read_volume(folder, slices).max() == 9000 and series.loc[0, "note"] == "one slice; the spacing is unknown"


def test_an_offset_that_one_slice_cannot_show_is_taken_from_the_others(folder, tmp_path):
    for k in range(5):
        hu = head(k) if k < 4 else np.full((SIZE, SIZE), -1000)  # above the head: air only
        write(folder / f"{k}.dcm", hu, z=k, stored=hu + 1024, intercept=0, bits=12)
    slices, _ = run(folder, tmp_path)
    assert float(slices["mean_hu"].iloc[4]) == -1000 and "HU + 1024" in slices["note"].iloc[4]
    assert read_volume(folder, slices)[4].max() == -1000


def item(**tags):
    one = Dataset()
    for name, value in tags.items():
        setattr(one, name, value)
    return Sequence([one])


def test_frames_of_an_enhanced_file_lie_where_their_own_groups_say(folder, tmp_path):
    order = [2, 0, 3, 1]
    slopes = {0: (1, -1024), 1: (2, -2048), 2: (.5, -1024), 3: (1, -1000)}
    frames = []
    for k in order:
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=[0, 0, 4 * k])
        frame.FrameContentSequence = item(InStackPositionNumber=4 - k)
        frame.PixelValueTransformationSequence = item(RescaleSlope=slopes[k][0], RescaleIntercept=slopes[k][1])
        frames.append(frame)
    shared = Dataset()
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=list(AXIAL))
    shared.PixelMeasuresSequence = item(PixelSpacing=[1.5, 1.5])
    stored = np.stack([(head(k) - slopes[k][1]) / slopes[k][0] for k in order])
    write(folder / "multi", head(0), stored=stored, SOPClassUID=CT + ".1", NumberOfFrames=4,
          ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None, SliceLocation=None,
          RescaleSlope=None, RescaleIntercept=None, SharedFunctionalGroupsSequence=Sequence([shared]),
          PerFrameFunctionalGroupsSequence=Sequence(frames))
    slices, series = run(folder, tmp_path)
    assert slices["frame"].tolist() == ["2", "4", "1", "3"] and set(slices["file"]) == {"multi"}
    assert slices["position_mm"].astype(float).tolist() == [0, 4, 8, 12] and series.loc[0, "files"] == "1"
    assert np.allclose(read_volume(folder, slices), np.stack([head(k) for k in range(4)]), atol=1)


# --- the whole

def test_a_killed_run_continues_and_nothing_of_it_stays(folder, tmp_path, monkeypatch):
    import mammo_nb.core.series as module
    stack(folder)
    whole, calls = module.read_slices, []

    def interrupted(one):
        calls.append(one["file"])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return whole(one)

    monkeypatch.setattr(module, "read_slices", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_series(folder, tmp_path / "out", workers=1)
    slices, _ = write_series(folder, tmp_path / "out", workers=1)
    assert len(calls) == 9 and len(set(calls)) == 8  # the interrupted file once more
    assert (slices["position_mm"] != "").all()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["series.csv", "slices.csv"]


def test_processes_give_the_same_tables(folder, tmp_path):
    stack(folder)
    (folder / "none.dcm").write_bytes(b"")
    write_series(folder, tmp_path / "one", workers=1)
    write_series(folder, tmp_path / "two", workers=2)
    for name in ("slices.csv", "series.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_output_may_lie_in_the_folder(folder, tmp_path):
    files = stack(folder)
    for _ in range(2):
        slices, _ = write_series(folder, folder / "tables", workers=1)
        assert volumes(slices) == [files] and len(slices) == 8


def test_command(folder, tmp_path):
    from mammo_nb.cli import app
    stack(folder, PatientName="DOE^JANE", StudyDate="20230212", PatientBirthDate="19500101")
    call = lambda *more: CliRunner().invoke(app, ["series", str(folder), "-o", str(tmp_path / "out"), *more])
    done = call()
    assert done.exit_code == 0 and "8 axial slices of 24 x 24, every 2.0 mm" in done.output
    written = "".join(p.read_text() for p in (tmp_path / "out").iterdir()) + done.output
    assert not any(word in written for word in ("DOE", "20230212", "19500101"))
    (folder / "none.dcm").write_bytes(b"")
    assert call().exit_code == 1 and call("--allow-errors").exit_code == 0
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(NotDicom):
        write_series(folder, tmp_path / "out")
    (folder / "a.txt").write_text("no slice")
    assert call().exit_code == 2


@pytest.mark.skipif(not (DATA / "ct/head_ge_28").is_dir(), reason="needs the head CT in ../shared/data/ct")
def test_a_real_head(tmp_path):
    slices, series = write_series(DATA / "ct/head_ge_28", tmp_path, workers=1)
    assert volumes(slices) == [[f"{k:02d}.dcm" for k in range(1, 29)]]  # named in the order of the patient
    gaps = slices["gap_mm"].iloc[:-1].astype(float)
    assert np.allclose(gaps[:13], 4.22 * .9483237, atol=1e-3) and np.allclose(gaps[14:], 7.38 * .9483237, atol=1e-3)
    row = series.iloc[0]
    assert row["spacing_mm"] == "" and row["plane"] == "axial tilted by 18.5 degrees"
    assert "uneven spacing" in row["note"] and "sheared" in row["note"] and not slices["error"].any()
    volume = read_volume(DATA / "ct/head_ge_28", slices)
    assert volume.min() == -1000 or volume.min() >= -1024  # the padding of -1500 is air
    assert 25 < np.median(volume[15][200:300, 200:300]) < 45  # brain


def test_links_that_lead_to_no_file_have_rows_of_their_own(tmp_path):
    names = stack(tmp_path / "in", n=3)
    (tmp_path / "elsewhere").mkdir()
    for name, target in (("broken.dcm", tmp_path / "nowhere"), ("empty", tmp_path / "elsewhere")):
        (tmp_path / "in" / name).symlink_to(target)
    slices, _ = run(tmp_path / "in", tmp_path)
    assert volumes(slices) == [names]
    errors = slices.set_index("file")["error"]
    assert "leads to no file" in errors["broken.dcm"] and "empty" not in errors   # a linked folder is entered


def test_a_single_file_is_a_series_of_its_own(tmp_path):
    stack(tmp_path / "in")
    file = sorted((tmp_path / "in").iterdir())[0]
    slices, series = write_series(file, tmp_path / "out")
    assert slices["file"].tolist() == [file.name] and series["slices"].tolist() == [1]
    with pytest.raises(NotDicom, match="no such file or folder"):
        write_series(tmp_path / "gone.dcm", tmp_path / "out")


def test_what_was_assumed_for_a_whole_series_is_printed(tmp_path, capsys):
    stack(tmp_path / "in", ImagePositionPatient=None, SliceLocation=None)
    print_series(*write_series(tmp_path / "in", tmp_path / "out"), tmp_path / "out")
    assert "all of them: no usable ImagePositionPatient" in capsys.readouterr().out
    stack(tmp_path / "whole")
    print_series(*write_series(tmp_path / "whole", tmp_path / "out2"), tmp_path / "out2")
    assert "all of them" not in capsys.readouterr().out

"""Abdominal trauma: from folders of slices to volumes, windows, organs, blocks, labels and folds."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from sklearn.model_selection import GroupKFold

from mammo_nb.core.series import SERIES, SLICES
from mammo_nb.trauma.blocks import block_table
from mammo_nb.trauma.folds import split
from mammo_nb.trauma.info import info_table
from mammo_nb.trauma.learning.blocks import (CROP, VISIBILITY, BlockDataset, augmentation, augmented, balanced_batches,
                                             soft_labels)
from mammo_nb.trauma.reading.blocks import block_rows, middle_rows
from mammo_nb.trauma.reading.competition import CompetitionError, list_series, read_image_labels, read_labels
from mammo_nb.trauma.reading.organs import WHOLE, crop_of, read_masks, visibility, write_masks
from mammo_nb.trauma.reading.volumes import OTHER, NoSeries, prepare_series
from mammo_nb.trauma.reading.windows import following_windows, small_levels, training_windows
from mammo_nb.trauma.recipes import COLUMNS, PUBLISHED, SUBMITTED, Blocks, Model
from mammo_nb.trauma.volumes import make_volumes

AXIAL = (1, 0, 0, 0, 1, 0)


def write_slice(path: Path, hu: np.ndarray, z: float, orientation=AXIAL, **tags) -> Path:
    "A CT file, signed, of 16 bits."
    path.parent.mkdir(parents=True, exist_ok=True)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    base = dict(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", SOPInstanceUID=f"1.2.{path.parent.name}.{path.stem}",
                PatientID="x", Modality="CT", StudyInstanceUID="1.2", SeriesInstanceUID=f"1.3.{path.parent.name}",
                InstanceNumber=int(path.stem), ImagePositionPatient=[0, 0, z], PixelSpacing=[2, 2],
                ImageOrientationPatient=list(orientation), Rows=hu.shape[0], Columns=hu.shape[1], SamplesPerPixel=1,
                PhotometricInterpretation="MONOCHROME2", BitsAllocated=16, BitsStored=16, HighBit=15,
                PixelRepresentation=1, RescaleSlope=1, RescaleIntercept=0, PixelData=hu.astype("<i2").tobytes())
    for name, value in (base | tags).items():
        if value is not None:
            setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def body(k: int, rows: int = 24, columns: int = 32) -> np.ndarray:
    "A slice of air and tissue with a bright spot that moves by one column from slice to slice."
    hu = np.full((rows, columns), -1000)
    hu[4:20, 4:28] = 40
    hu[10, 4 + k % 24] = 240
    return hu


def spots(volume: np.ndarray) -> list[int]:
    "Where the bright spot of each slice is, counted from the first tissue."
    return [int(picture[10].argmax()) - 4 for picture in volume]


def series(folder: Path, count: int, step: float = 5.0, backwards: bool = True) -> Path:
    "A series of `body`, whose file numbers run against the positions."
    for k in range(count):
        write_slice(folder / f"{count - k if backwards else k + 1}.dcm", body(k), step * k)
    return folder


# ---- one series
def test_a_volume_is_in_the_order_of_positions(tmp_path):
    table, found = prepare_series(series(tmp_path / "7", 12), tmp_path / "out/1.npy")
    volume = np.load(tmp_path / "out/1.npy")
    assert volume.dtype == np.uint8 and volume.shape == (12, 24, 32) and spots(volume) == list(range(12))
    assert (volume[:, 10][volume[:, 10] == 255].size, volume.min()) == (12, 0)
    assert volume[0, 5, 5] == round(255 * 190 / 390)   # from -150 to the brightest, 240 HU
    assert table["instance"].tolist() == [str(12 - k) for k in range(12)] and table["place"].tolist() == list(range(12))
    assert set(SLICES) < set(table) and set(SERIES) < set(found) and not list((tmp_path / "out").glob(".*"))


def test_the_original_orders_by_the_number_of_the_file(tmp_path):
    prepare_series(series(tmp_path / "7", 12), tmp_path / "1.npy", faithful=True)
    volume = np.load(tmp_path / "1.npy")
    assert spots(volume) == list(range(11, -1, -1)) and volume[0, 5, 5] == int(255 * 190 / 390)


def test_a_single_slice_is_a_series(tmp_path):
    table, found = prepare_series(series(tmp_path / "7", 1), tmp_path / "1.npy")
    assert np.load(tmp_path / "1.npy").shape == (1, 24, 32) and "one slice" in found["note"][0]
    rows = block_rows(1)[0]
    assert rows.tolist() == [0] * 96 and len(middle_rows(rows)) == 32 and table["place"].tolist() == [0]


def test_a_missing_instance_is_named(tmp_path):
    folder = series(tmp_path / "7", 12)
    (folder / "6.dcm").unlink()
    table, found = prepare_series(folder, tmp_path / "1.npy")
    assert spots(np.load(tmp_path / "1.npy")) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert "one gap" in found["note"][0] and table["note"].str.contains("1 missing").sum() == 2


def test_of_mixed_orientations_the_largest_axial_volume_is_used(tmp_path):
    folder = series(tmp_path / "7", 6)
    for k in range(9):
        write_slice(folder / f"{100 + k}.dcm", body(k), 0.0, (1, 0, 0, 0, 0, -1), ImagePositionPatient=[0, 4 * k, 0],
                    SeriesInstanceUID="1.3.7")
    table, found = prepare_series(folder, tmp_path / "1.npy")
    assert spots(np.load(tmp_path / "1.npy")) == list(range(6))
    assert found.set_index("used")["slices"].to_dict() == {1: 6, 0: 9}
    lost = table[table["place"].eq("")]
    assert len(lost) == 9 and lost["note"].str.contains(OTHER, regex=False).all()


def test_a_slice_of_another_size_and_a_damaged_file_are_left_out(tmp_path):
    folder = series(tmp_path / "7", 8)
    write_slice(folder / "3.dcm", body(5)[:12], 25.0)
    (folder / "5.dcm").write_bytes((folder / "5.dcm").read_bytes()[:700])
    table, _ = prepare_series(folder, tmp_path / "1.npy")
    assert spots(np.load(tmp_path / "1.npy")) == [0, 1, 2, 4, 6, 7]
    assert table.set_index("instance")["error"]["5"].startswith("CorruptPixels") and (table["error"] != "").sum() == 1


def test_a_lost_intercept_shows_in_the_other_slices(tmp_path):
    "A slice of tissue alone cannot show by itself that its values are HU + 1024."
    for k in range(8):
        hu = body(k) if k != 4 else np.where(body(k) < 0, 40, body(k))
        write_slice(tmp_path / f"7/{k + 1}.dcm", hu + 1024, 5.0 * k)
    prepare_series(tmp_path / "7", tmp_path / "1.npy")
    volume = np.load(tmp_path / "1.npy")
    assert spots(volume) == list(range(8)) and volume[4].min() == 0 and volume[4].max() == 255
    assert volume[3, 5, 5] == round(255 * 190 / 390)


def test_the_windows_of_the_file_are_used_for_theo(tmp_path):
    for k in range(3):
        write_slice(tmp_path / f"7/{k + 1}.dcm", body(k), 5.0 * k, WindowCenter=[40, 300], WindowWidth=[200, 1500])
    prepare_series(tmp_path / "7", tmp_path / "1.npy", "theo")
    assert np.load(tmp_path / "1.npy")[0, 5, 5] == round(255 * 100 / 200)   # 40 HU in -60 .. 140


def test_nothing_to_read_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoSeries, match="no files"):
        prepare_series(tmp_path / "empty", tmp_path / "1.npy")
    (tmp_path / "7").mkdir()
    (tmp_path / "7/1.dcm").write_bytes(b"x")
    with pytest.raises(NoSeries, match="can be read"):
        prepare_series(tmp_path / "7", tmp_path / "1.npy")
    assert not (tmp_path / "1.npy").exists()


# ---- a data set
def test_two_series_of_unequal_length_and_one_that_fails(tmp_path):
    for name, count in (("5/11", 4), ("5/2", 9), ("40/7", 3)):
        series(tmp_path / "images" / name, count)
    (tmp_path / "images/40/8").mkdir()
    (tmp_path / "images/40/8/1.dcm").write_bytes(b"x")
    assert list_series(tmp_path / "images") == [("5", "2"), ("5", "11"), ("40", "7"), ("40", "8")]
    settings = {"window": "ours", "faithful": False}
    slices, found = make_volumes(tmp_path / "images", tmp_path / "out", settings, {}, 1)
    assert found[["patient_id", "series", "slices"]].values.tolist() == [
        ["5", "2", 9], ["5", "11", 4], ["40", "7", 3], ["40", "8", 0]]
    assert found["error"].iloc[-1].startswith("NoSeries") and (found["error"] != "").sum() == 1
    assert sorted(p.name for p in (tmp_path / "out/volumes").iterdir()) == ["40_7.npy", "5_11.npy", "5_2.npy"]
    assert (slices["place"] != "").sum() == 16 and slices["file"].iloc[0] == "5/2/9.dcm"


def test_finished_series_of_an_interrupted_call_are_kept(tmp_path, monkeypatch):
    from mammo_nb.trauma import volumes
    for k in range(3):
        series(tmp_path / f"images/5/{k}", 3)
    whole, done = volumes.prepare_series, []

    def interrupted(images, *others):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(images.name)
        return whole(images, *others)
    settings = {"window": "ours", "faithful": False}
    monkeypatch.setattr(volumes, "prepare_series", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_volumes(tmp_path / "images", tmp_path / "out", settings, {}, 1)
    again = []
    monkeypatch.setattr(volumes, "prepare_series", lambda images, *others: again.append(images.name)
                        or whole(images, *others))
    _, found = make_volumes(tmp_path / "images", tmp_path / "out", settings, {}, 1)
    assert done == ["0", "1"] and again == ["2"] and len(found) == 3


# ---- windows of the 3D network
def test_the_last_window_equals_its_slices_to_the_last_bit():
    volume = np.random.default_rng(0).integers(0, 256, (77, 40, 50), np.uint8)
    windows = np.concatenate(list(following_windows(volume, 32, 32)))
    assert np.array_equal(windows[:77], small_levels(volume, range(77), 32)) and not windows[77:].any()
    faithful = np.concatenate(list(following_windows(volume, 32, 32, faithful=True)))
    assert np.array_equal(faithful[:64], windows[:64]) and set(np.unique(faithful[64:])) <= {0, 1}


@pytest.mark.parametrize("length", [1, 15, 63, 64, 65, 66, 130, 301])
def test_every_used_slice_is_in_a_window_of_the_training(length):
    volume = np.arange(1, length + 1, dtype=np.uint16).astype(np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8)
    seen = set()
    for start, levels, masks in training_windows(volume, volume, 32, 8):
        assert levels.shape == masks.shape == (32, 8, 8) and levels.dtype == np.float32
        seen |= {start + k for k in range(32) if masks[k].any()}
    assert seen == set(range(len(range(0, length, 2))))


# ---- organs
def test_visibility_peaks_at_one_and_an_absent_organ_has_none():
    masks = np.random.default_rng(1).random((20, 5, 16, 16)) < np.linspace(.1, .6, 20)[:, None, None, None]
    masks[:, 3] = False
    shares = visibility(masks)
    assert (shares.max(0) == [1, 1, 1, 0, 1]).all() and crop_of(masks & False) == WHOLE
    assert np.isnan(visibility(masks & False, faithful=True)).sum() == 20, "the bowel only"


def test_masks_are_read_slice_by_slice(tmp_path):
    masks = np.random.default_rng(2).random((9, 5, 20, 20)) < .5
    write_masks(tmp_path / "m.npy", masks)
    assert np.array_equal(read_masks(tmp_path / "m.npy"), masks)
    assert np.array_equal(read_masks(tmp_path / "m.npy", [3, 3, 8]), masks[[3, 3, 8]])


# ---- blocks
@pytest.mark.parametrize("length", range(18, 701))
def test_block_counts(length):
    used = length if length <= 400 else -(-length // 2)
    blocks = block_rows(length, Blocks(keep=100))
    assert len(blocks) == max(1, -(-used // 100)) and all(len(rows) == 100 for rows in blocks)
    assert blocks[-1][-1] == (length - 1 if length <= 400 else (length - 1) // 2 * 2) and blocks[0][0] == 0
    seen = set(np.concatenate(blocks).tolist())
    assert seen == set(range(0, length, 1 if length <= 400 else 2)), "whole blocks have all slices that are used"


def test_equidistant_slices_cover_a_series():
    for length in (1, 40, 96, 500):
        rows, = block_rows(length, Blocks(sampling="equidistant"))
        assert len(rows) == 96 and rows[0] == 0 and rows[-1] == length - 1 and (np.diff(rows) >= 0).all()
        assert np.abs(np.diff(rows) - (length - 1) / 95).max() <= 1


def test_the_table_of_blocks():
    info = pd.DataFrame({"patient_id": ["a"] * 130 + ["b"] * 20, "series": ["2"] * 130 + ["1"] * 20})
    table = block_table(info, Blocks())
    assert table["block"].tolist() == ["a_2_0_95", "a_2_30_125", "b_1_0_19"]
    assert table["slices"].tolist() == [130, 130, 20]
    assert table["places"][1].split()[-1] == "125"


# ---- labels
PATIENT = pd.Series({f"{o}_{g}": 0 for o in ("liver", "spleen", "kidney") for g in ("low", "high")})


def info(length: int, **columns) -> pd.DataFrame:
    "Slices of a series with random visibility."
    rng = np.random.default_rng(3)
    table = pd.DataFrame(rng.random((length, 5)), columns=VISIBILITY)
    table[CROP] = WHOLE
    own = {"patient_id": "7", "series": "1", "place": range(length), "bowel": 0, "extravasation": 0}
    return table.assign(**own | columns)


def test_a_healthy_patient_has_zeros():
    assert not soft_labels(info(30), PATIENT, list(COLUMNS)).any()


def test_soft_labels_by_hand():
    table = info(30, bowel=np.arange(30) % 2, extravasation=np.arange(30) % 3 == 0)
    hurt = PATIENT.copy()
    hurt[["spleen_high", "kidney_low"]] = 1
    made = dict(zip(COLUMNS, soft_labels(table, hurt, list(COLUMNS)).T))
    kidney = table[["visibility_left_kidney", "visibility_right_kidney"]].max(axis=1)
    expected = {"spleen_injury": table["visibility_spleen"], "spleen_high": table["visibility_spleen"],
                "kidney_injury": kidney, "kidney_low": kidney, "bowel_marked": table["bowel"],
                "bowel_injury": table["bowel"] * table["visibility_bowel"],
                "extravasation_injury": table["extravasation"]}
    for column in COLUMNS:
        np.testing.assert_allclose(made[column], expected.get(column, np.zeros(30)), atol=1e-6)


def test_columns_are_named_and_not_positional():
    table, hurt = info(9, bowel=1, extravasation=1), PATIENT + 1
    for _, models in PUBLISHED.values():
        names = models[0].columns.split()
        forwards = soft_labels(table, hurt, names)
        assert np.array_equal(forwards[:, ::-1], soft_labels(table, hurt, names[::-1]))
    swapped = [PUBLISHED[script][1][0].columns.split()[0] for script in ("coatmedium384extravast", "try11_v8_extrav")]
    assert swapped == ["bowel_injury", "extravasation_injury"]


def test_marked_slices_and_a_series_without_organs():
    slices = pd.DataFrame({"patient_id": "7", "series": ["1"] * 3 + ["2"] * 2, "instance": list("321") + list("12"),
                           "place": [0., 1, 2, 0, 1], "position_mm": [0., 5, 10, 0, 5]})
    none = dict.fromkeys(VISIBILITY, [0.0] * 3) | dict(zip(CROP, WHOLE))
    some = dict.fromkeys(VISIBILITY, [1.0, .5]) | dict(zip(CROP, (.1, .9, .2, .8)))
    marked = pd.DataFrame({"series": ["1", "2", "9"], "instance": ["1", "2", "2"], "bowel": [1, 0, 1],
                           "extravasation": [0, 1, 0]})
    table = info_table(slices, {("7", "1"): none, ("7", "2"): some}, marked)
    assert table["bowel"].tolist() == [0, 0, 1, 0, 0] and table["extravasation"].tolist() == [0, 0, 0, 0, 1]
    assert table[CROP].values.tolist() == [list(WHOLE)] * 3 + [[.1, .9, .2, .8]] * 2
    assert not soft_labels(table[:3].assign(bowel=0), PATIENT + 1, list(COLUMNS[:-1])).any()


# ---- the data set
@pytest.fixture
def dataset(tmp_path):
    "A data set of one short series, whose first organ is a square."
    volume = np.random.default_rng(4).integers(0, 256, (10, 40, 60), np.uint8)
    (tmp_path / "volumes").mkdir()
    np.save(tmp_path / "volumes/7_1.npy", volume)
    masks = np.zeros((10, 5, 32, 32), bool)
    masks[:, 0, 8:24, 4:20], masks[:, 2, 20:30, 2:6], masks[:, 3, 20:30, 26:30] = True, True, True
    write_masks(tmp_path / "masks/7_1.npy", masks)
    rows, = block_rows(10, Blocks(step=20, keep=18))
    blocks = pd.DataFrame([{"patient_id": "7", "series": "1", "places": " ".join(map(str, rows))}])
    patients = pd.DataFrame([{"patient_id": "7", **(PATIENT + 1)}])
    make = lambda **how: BlockDataset(blocks, info(10, top=.2, bottom=.8, left=.1, right=.9), patients, tmp_path,
                                      replace(Model(size=64), **how))
    return make, volume, rows


def test_an_item_has_the_middle_slices_labels(dataset):
    make, volume, rows = dataset
    inputs, targets = make(crop=False)[0, -1]
    assert inputs["image"].shape == (6, 3, 64, 64) and targets["masks"].shape == (6, 4, 64, 64)
    assert middle_rows(rows).tolist() == rows[1::3].tolist() == [0, 2, 3, 5, 6, 8]
    expected = soft_labels(info(10).iloc[rows[1::3]], PATIENT + 1, Model().columns.split())
    np.testing.assert_allclose(targets["labels"], expected, atol=1e-6)
    picture = torch.nn.functional.interpolate(torch.from_numpy(volume[None, rows[4:5]]).float(), (64, 64),
                                              mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(inputs["image"][1, 1], picture / 255, atol=1.01 / 255)
    assert targets["masks"][0, 2].sum() == 2 * 20 * 8, "both kidneys are one mask"


def test_the_crop_cuts_pictures_and_masks_alike(dataset):
    make, volume, rows = dataset
    inputs, targets = make()[0, -1]
    cut = torch.nn.functional.interpolate(torch.from_numpy(volume[None, rows[4:5], 8:32, 6:54]).float(), (64, 64),
                                          mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(inputs["image"][1, 1], cut / 255, atol=1.01 / 255)
    columns = torch.nonzero(targets["masks"][0, 0].any(0))[:, 0]   # columns 4 to 19 of 32, cut to 3 .. 28
    assert abs(int(columns[0]) - (4 - 3) * 64 / 25) <= 2 and abs(int(columns[-1]) - (20 - 3) * 64 / 25) <= 3


def test_one_draw_moves_all_slices_and_their_masks():
    picture = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    picture[..., 20:40, 10:36] = 200
    pictures, masks = picture.expand(6, 3, -1, -1).clone(), (picture > 0).to(torch.uint8).expand(6, 2, -1, -1).clone()
    moved = set()
    for seed in range(12):
        found, drawn = augmented(augmentation(), pictures, masks, seed)
        assert (found == found[:1, :1]).all() and (drawn == drawn[:1, :1]).all()
        both = ((found[0, 0] > 100) == (drawn[0, 0] > 0)).float().mean()
        assert both > .97 and set(drawn.unique().tolist()) <= {0, 1}
        again = augmented(augmentation(), pictures, masks, seed)
        assert torch.equal(again[0], found) and torch.equal(again[1], drawn)
        moved.add(found.float().sum().item() + found[0, 0].argmax().item())
    assert len(moved) > 5
    for seed in range(20):   # without the vertical flip the upper half stays the upper half
        drawn = augmented(augmentation("horizontal"), pictures, masks, seed)[1][0, 0]
        assert torch.nonzero(drawn)[:, 0].float().mean() < 36


def test_the_generator_of_torch_is_left_alone(dataset):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    dataset[0]()[0, 9]
    assert torch.equal(torch.rand(3), expected)


def test_an_epoch_is_balanced():
    injured = np.arange(50) % 5 == 0
    batches = balanced_batches(injured, 4, 1, ranks=3)
    drawn = [[r for batch in batches(epoch) for r, _ in batch] for epoch in range(30)]
    for rows in drawn:
        hurt = [r for r in rows if injured[r]]
        assert sorted(hurt) == np.flatnonzero(injured).tolist() and len(rows) == 20
    assert len(batches(0)) % 3 == 0 and max(map(len, batches(0))) <= 4
    assert len(set(np.concatenate(drawn).tolist())) == 50 and drawn[0] != drawn[1]
    with pytest.raises(ValueError, match="10 blocks of injured and 0"):
        balanced_batches(np.ones(10, bool), 4, 1)


# ---- folds and tables
def test_folds_are_those_of_scikit_learn_and_ids_are_numbers():
    rng = np.random.default_rng(6)
    patients = pd.Series(np.repeat(rng.permutation(np.arange(8, 108)), rng.integers(1, 9, 100)))
    expected = np.empty(len(patients), int)
    for k, (_, held) in enumerate(GroupKFold(4).split(patients, groups=patients)):
        expected[held] = k
    assert (patients.astype(str).map(split(patients.astype(str), 4)) == expected).all()
    with pytest.raises(CompetitionError, match="2 patients cannot be spread over 3"):
        split(pd.Series(["a", "b", "b"]), 3)


def test_tables_of_the_competition(tmp_path):
    row = {"patient_id": "0007", **{c: int(c.endswith("healthy")) for c in SUBMITTED}}
    pd.DataFrame([row, {**row, "patient_id": "9", "kidney_healthy": 0, "kidney_low": 1}]).to_csv(tmp_path / "t.csv")
    table = read_labels(tmp_path / "t.csv")
    assert table["patient_id"].tolist() == ["0007", "9"] and table["any_injury"].tolist() == [0, 1]
    text = "patient_id,series_id,instance_number,injury_name\n1,5,7,{}\n1,5,7,Bowel\n"
    (tmp_path / "i.csv").write_text(text.format("Active_Extravasation"))
    assert read_image_labels(tmp_path / "i.csv").values.tolist() == [["5", "7", 1, 1]]
    (tmp_path / "i.csv").write_text(text.format("Liver"))
    with pytest.raises(CompetitionError, match="names 'Liver'"):
        read_image_labels(tmp_path / "i.csv")

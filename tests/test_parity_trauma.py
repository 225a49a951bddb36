"""The trauma system against figures that the original code computed: levels, windows, blocks, organs, labels and folds.

`PARITY=FOLDER pytest tests/test_parity_trauma*.py` runs another set of figures; see tests/parity.py.
"""
from dataclasses import replace
from functools import cache
from hashlib import sha256

import cv2
import numpy as np
import pandas as pd
import pytest

from mammo_nb.core.dicom import read_image
from mammo_nb.trauma.folds import split
from mammo_nb.trauma.learning.blocks import VISIBILITY, BlockDataset, read_triplets
from mammo_nb.trauma.reading.blocks import block_rows, middle_rows
from mammo_nb.trauma.reading.levels import slice_levels
from mammo_nb.trauma.reading.organs import crop_of, visibility, write_masks
from mammo_nb.trauma.reading.windows import (PARTS, competition_labels, following_windows, totalsegmentator_case,
                                             training_windows)
from mammo_nb.trauma.recipes import ORGANS, PUBLISHED, Blocks
from parity import FOLDER, arrays, figures, needs_parity, uniform
from test_parity_ich import write_dicom

pytestmark = needs_parity


def cases(name: str, part: str) -> list[str]:
    "The names of the cases of a part of a JSON file; none where the set is absent."
    return list(figures(name)[part]) if (FOLDER / f"{name}.json").is_file() else []


# ---- levels
@pytest.mark.parametrize("case", cases("trauma_prepare", "windows"))
def test_levels(case, tmp_path):
    stated, given = figures("trauma_prepare")["windows"][case], arrays("trauma_prepare")
    path = write_dicom(tmp_path / "1.dcm", given[f"{case}.pixels"], stated)
    made, expected = slice_levels(read_image(path), faithful=True), given[f"{case}.volume_uint8"]
    assert sha256(expected.tobytes()).hexdigest() == stated["sha256"]
    assert made.dtype == np.uint8 and np.abs(made.astype(int) - expected).max() <= 1
    np.testing.assert_allclose(made.mean(), stated["mean"], atol=0.5)


def test_the_lost_sign_of_twelve_bits_is_repaired(tmp_path):
    stated, given = figures("trauma_prepare")["windows"], arrays("trauma_prepare")
    case = next(name.removesuffix(".repaired_sign") for name in given if name.endswith(".repaired_sign"))
    path = write_dicom(tmp_path / "1.dcm", given[f"{case}.pixels"], stated[case])
    for window in ("ours", "theo"):
        difference = slice_levels(read_image(path), window).astype(int) - given[f"{case}.repaired_sign"]
        assert np.abs(difference).max() <= 1


# ---- windows of the 3D network
def fourfold(array: np.ndarray, *axes: int) -> np.ndarray:
    "An array whose values stand for blocks of 4 x 4."
    for axis in axes:
        array = array.repeat(4, axis)
    return array


@pytest.mark.parametrize("source", ["seg", "tot"])
@pytest.mark.parametrize("case", cases("trauma_prepare", "segmentation_data"))
def test_windows_of_the_training(case, source, tmp_path):
    stated, given = figures("trauma_prepare")["segmentation_data"][case], arrays("trauma_seg_windows")
    if f"{source}.{case}.volume" not in given:
        pytest.skip("the set states this case without its pixels")
    if source == "seg":
        header = {"slope": 1, "intercept": 0, "bits_stored": 16}
        volume = np.stack([slice_levels(read_image(write_dicom(tmp_path / "1.dcm", p, header)), faithful=True)
                           for p in fourfold(given[f"seg.{case}.pixels"], 1, 2)])
        labels = competition_labels(fourfold(given[f"seg.{case}.nifti"], 0, 1))
    else:
        assert tuple(figures("trauma_prepare")["part_order"]) == PARTS
        ct = given[f"tot.{case}.ct"]
        parts = np.unpackbits(given[f"tot.{case}.parts"])[:len(PARTS) * ct.size].reshape(len(PARTS), *ct.shape)
        volume, labels = totalsegmentator_case(ct, parts)
    made = list(training_windows(volume, labels, faithful=True, whole=source == "tot"))
    assert [start for start, *_ in made] == stated["starts"] and len(made) == stated["windows"]
    for (_, levels, masks), expected in zip(made, stated[source]):
        unit = 1 if source == "seg" else 255
        assert list(levels.shape) == expected["shape"] and masks.dtype == np.uint8
        np.testing.assert_allclose([levels.mean(dtype=np.float64) * unit, levels.max() * unit],
                                   [expected["mean"], expected["max"]], rtol=1e-5)
        assert sha256(np.ascontiguousarray(masks).tobytes()).hexdigest() == expected["mask_sha256"]
        assert np.bincount(masks.ravel(), minlength=6).tolist() == expected["labels"]
    np.testing.assert_allclose(made[0][1][::8, ::8, ::8] * unit, given[f"{source}.{case}.volume"], atol=1e-5 * unit)
    np.testing.assert_array_equal(made[0][2][::8, ::8, ::8], given[f"{source}.{case}.mask"])
    if lost := stated["kept_slices_in_no_window"]:
        last = made[-1][0] + len(made[-1][1])
        kept = len(range(0, len(volume), 2))
        assert lost == [last, kept], "the original leaves these out"
        assert list(training_windows(volume, labels))[-1][0] == kept - 32, "and here they are seen"


@pytest.mark.parametrize("length", cases("trauma_blocks", "segmentation_blocks"))
def test_windows_of_the_measurement(length):
    stated, n = figures("trauma_blocks")["segmentation_blocks"][length], int(length)
    volume = np.full((n, 1, 1), 200, np.uint8)
    first, last = stated["truncated"]
    made = np.stack(list(following_windows(volume, size=128, faithful=True)))
    assert list(made.shape) == stated["shape"] and len(made) * 32 - n == stated["pad_slices"]
    shown = made[:, :, 0, 0].ravel()
    assert (np.abs(shown[:first] - 200 / 255) < 1e-6).all() and not shown[first:].any() and last == n


def test_the_truncated_tail():
    stated = figures("trauma_blocks")["tail_of_40"]
    given = np.array(stated["input"])
    volume = np.rint(255 * given).astype(np.uint8).reshape(-1, 1, 1)
    made = np.concatenate(list(following_windows(volume, size=4, faithful=True)))[:, 0, 0]
    np.testing.assert_allclose(made, stated["output"], atol=1 / 510)
    mended = np.concatenate(list(following_windows(volume, size=4)))[:len(given), 0, 0]
    assert np.array_equal(mended, (volume / 255.0).astype(np.float32).ravel()), "to the last bit"


# ---- blocks
@pytest.mark.parametrize("length", cases("trauma_blocks", "lengths"))
def test_blocks(length):
    stated, given = figures("trauma_blocks")["lengths"][length], figures("trauma_blocks")["arguments"]
    how = dict(step=given["step"], stride=given["stride"], cutoff=given["stride_cutoff"])
    whole = block_rows(int(length), Blocks(**how, keep=given["step"]))
    expected = [b["index"] if "index" in b else list(range(b["start"], b["stop"], b["step"])) for b in stated["blocks"]]
    assert [rows.tolist() for rows in whole] == expected
    kept = block_rows(int(length), Blocks(**how, keep=given["take_first"]))
    assert [rows.tolist() for rows in kept] == [rows[:given["take_first"]] for rows in expected]
    unseen = sorted(set(range(int(length))) - set(np.concatenate(kept).tolist()))
    never = stated["never_seen_with_first_96"]
    if isinstance(never, dict):
        assert [n for n in unseen if n % 2 == 0] == never["even"]
        assert ([n for n in unseen if n % 2] == list(range(1, int(length), 2))) == never["all_odd"]
    else:
        assert unseen == never
    assert middle_rows(np.arange(given["take_first"])).tolist() == given["label_rows_of_a_block"]


def test_blocks_of_slices_sorted_by_position():
    stated = figures("trauma_blocks")["third_party"]
    order = np.argsort(stated["z"])
    made = [[order[rows].tolist(), [int(rows[0]), int(rows[-1])]] for rows in block_rows(len(order), Blocks(keep=100))]
    assert made == [[b["row"], b["instance_first_last"]] for b in stated["blocks"]]


# ---- organs, labels, data sets
@cache
def organs_of(series: str) -> np.ndarray:
    "The masks of a series in the order of ORGANS, bool (slices, organs, 128, 128)."
    given, names = arrays("trauma_masks"), figures("trauma_softlabels")["organs"]
    shape = tuple(given[f"shape.{series}"])
    masks = np.unpackbits(given[f"masks.{series}"], count=int(np.prod(shape))).reshape(shape).astype(bool)
    return masks[:, [names.index(organ) for organ in ORGANS]]


@cache
def slices_of(series: str) -> pd.DataFrame:
    "info.csv of a series in the order of its instances, with the original's visibility of the bowel."
    stated = figures("trauma_softlabels")
    rows = pd.DataFrame({k: stated["rows"][k] for k in ("patient", "study", "instance", "extravasation", "bowel")})
    of = rows["study"].astype(str).eq(series).to_numpy()
    rows, z = rows[of].reset_index(drop=True), np.array(stated["z"])[of]
    table = pd.DataFrame(visibility(organs_of(series), faithful=True), columns=VISIBILITY)
    table[["top", "bottom", "left", "right"]] = crop_of(organs_of(series), faithful=True)
    return table.assign(patient_id=rows["patient"].astype(str), series=series, place=rows["instance"] - 1, z=z,
                        extravasation=rows["extravasation"], bowel=rows["bowel"])


def all_series() -> list[str]:
    "The series of the fixture."
    if not (FOLDER / "trauma_softlabels.json").is_file():
        return []
    return [str(series) for _, series, *_ in figures("trauma_softlabels")["series"]]


@pytest.mark.parametrize("series", all_series())
def test_visibility_and_crop(series):
    stated, given = figures("trauma_softlabels"), arrays("trauma_masks")
    of = np.array([str(s) == series for s in stated["rows"]["study"]])
    for organ in ORGANS:
        made, expected = slices_of(series)[f"visibility_{organ}"].to_numpy(), given[f"visibility.{organ}"][of]
        np.testing.assert_allclose(made, expected, atol=1e-12)
        mended = visibility(organs_of(series))[:, ORGANS.index(organ)]
        np.testing.assert_allclose(mended, np.nan_to_num(expected), atol=1e-12)
    made = crop_of(organs_of(series), faithful=True)
    np.testing.assert_allclose(made, stated["crop_y1_y2_x1_x2"][series], atol=1e-12)
    wider = np.subtract(crop_of(organs_of(series)), made)
    np.testing.assert_allclose(wider, [0, 1 / 128, 0, 1 / 128], atol=1e-12)


def blurred(series: str, block: int, shape) -> np.ndarray:
    "The volume of a block, uint8 (slices, rows, columns)."
    u = uniform(f"volume/{series}/{block}", int(np.prod(shape))).reshape(shape)
    return np.stack([cv2.GaussianBlur(v, (0, 0), 3) for v in np.floor(u * 256).astype(np.uint8)])


@pytest.mark.parametrize("script", cases("trauma_softlabels", "datasets"))
def test_data_set(script, tmp_path):
    stated, given = figures("trauma_softlabels"), arrays("trauma_softlabels")
    window, models = PUBLISHED[script]
    train = pd.DataFrame(stated["train"]["rows"], columns=stated["train"]["columns"]).astype({"patient_id": str})
    (tmp_path / "volumes").mkdir()
    number = 0
    for patient, series, length, _ in stated["series"]:
        table, masks = slices_of(str(series)), organs_of(str(series))
        if window == "theo":   # sorted by z and numbered again
            order = np.argsort(table["z"].to_numpy(), kind="stable")
            table, masks = table.iloc[order].assign(place=range(length)), masks[order]
        write_masks(tmp_path / "masks" / f"{patient}_{series}.npy", masks)
        for rows in block_rows(length):
            expected = stated["datasets"][script][number]
            first = int(window == "ours")
            whole = block_rows(length, Blocks(keep=100))
            last = max(block[-1] for block in whole if block[0] == rows[0])
            assert expected["id"] == f"{patient}_{series}"
            assert expected["first_last_instance"] == [rows[0] + first, last + first]
            block = blurred(str(series), number, (100, 64, 72))
            if f"volume.{series}.{number}" in given:
                shown = given[f"volume.{series}.{number}"]
                assert all((block == picture).all((1, 2)).any() for picture in shown), "another volume"
            np.save(tmp_path / "volumes" / f"{patient}_{series}.npy", np.zeros((length, 64, 72), np.uint8))
            one = {"patient_id": str(patient), "series": str(series), "places": " ".join(map(str, rows))}
            model = replace(models[0], size=expected["images"][-1])
            dataset = BlockDataset(pd.DataFrame([one]), table, train, tmp_path, model)
            inputs, targets = dataset[0, -1]
            labels = given[f"{script}.{number}.labels"]
            assert list(labels.shape) == expected["labels"] and np.isnan(labels).sum() == expected["nan_labels"]
            np.testing.assert_allclose(targets["labels"], labels, atol=1e-6)
            assert list(inputs["image"].shape) == expected["images"]
            assert list(targets["masks"].shape) == expected["masks"]
            assert targets["masks"].sum((0, 2, 3)).tolist() == expected["mask_sums"]
            if f"{script}.{number}.images_0_13" in given:
                pictures = read_triplets(block, np.arange(96), dataset.crops[0], model.size) / 255
                np.testing.assert_allclose(pictures[[0, 13], :, ::4, ::4], given[f"{script}.{number}.images_0_13"],
                                           atol=1.0001 / 255)
                np.testing.assert_array_equal(targets["masks"][[10, 16], :, ::3, ::3],
                                              given[f"{script}.{number}.masks_10_16"])
            number += 1
    assert number == len(stated["datasets"][script])


# ---- folds
def test_folds():
    stated = figures("trauma_softlabels")["folds"]
    slices = pd.Series(np.repeat([str(patient) for patient, *_ in stated], [n for _, n, _ in stated]))
    assert split(slices, 4, faithful=True).to_dict() == {str(patient): fold for patient, _, fold in stated}

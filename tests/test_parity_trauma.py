"""The trauma system against figures that the original code computed: levels, windows, blocks, organs, labels and folds.

`PARITY=FOLDER pytest tests/test_parity_trauma*.py` runs another set of figures; see tests/parity.py.
"""
from hashlib import sha256

import numpy as np
import pytest

from mammo_nb.core.dicom import read_image
from mammo_nb.trauma.reading.levels import slice_levels
from mammo_nb.trauma.reading.windows import (PARTS, competition_labels, following_windows, totalsegmentator_case,
                                             training_windows)
from parity import FOLDER, arrays, figures, needs_parity
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

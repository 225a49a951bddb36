"""The head-CT system against figures that the original code computed: pixels, crops, loader, folds and slice order.

`PARITY=FOLDER pytest tests/test_parity_ich*.py` runs another set of figures; see tests/parity.py.
"""
import ast
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from mammo_nb.core.dicom import read_image
from mammo_nb.ich.folds import original_folds
from mammo_nb.ich.reading.competition import places_by_position
from mammo_nb.ich.reading.squares import MEANS, STDS, filtered_box, normalized, plain_box, read_view, square
from mammo_nb.ich.reading.windows import slice_picture
from parity import FOLDER, arrays, figures, filled, integers, needs_parity, picture_input, seed, tensor

pytestmark = needs_parity


def cases(part: str) -> list[str]:
    "The names of the cases of a part of ich_pixels.json; none where the set is absent."
    if not (FOLDER / "ich_pixels.json").is_file():
        return []
    return [name for name, value in figures("ich_pixels")[part].items() if isinstance(value, dict)]


def boxed(x0: int, y0: int, x1: int, y1: int) -> list[int]:
    "A box in the order of the figures."
    return [y0, y1, x0, x1]


def test_the_formulas_give_the_numbers_of_fill_check():
    check = figures("fill_check")
    name = next(key for key in check if key.startswith("integers_of_")).removeprefix("integers_of_")
    assert integers(name, 5).tolist() == check[f"integers_of_{name}"]
    for stated in check["tensors"]:
        values = tensor(stated["name"], stated["shape"], stated["gain"]).astype(np.float64).ravel()
        np.testing.assert_allclose(values[:len(stated["first"])], stated["first"], rtol=1e-6)
        np.testing.assert_allclose([values[-1], values.sum()], [stated["last"], stated["sum"]], rtol=1e-6)
    stated = check["picture_input"]
    x = picture_input(stated["name"], stated["shape"], stated["kind"])
    np.testing.assert_allclose(x.ravel(), stated["values"], rtol=1e-6, atol=1e-9)


def test_a_shared_tensor_is_filled_under_its_first_name_and_whole_numbers_are_zero():
    state = filled([["module.a.weight", [3, 4], "float32"], ["b.weight", [3, 4], "float32", "module.a.weight"],
                    ["n.num_batches_tracked", [], "int64"]], 1.0)
    assert state["b.weight"].equal(state["module.a.weight"]) and state["n.num_batches_tracked"] == 0
    other = integers("a.weight", 12, start=seed() + 1)
    assert not np.array_equal(other, integers("a.weight", 12)), "another seed gives other numbers"


# ---- windows
def write_dicom(path: Path, pixels: np.ndarray, stated: dict) -> Path:
    "A CT slice with the pixels and the header fields of a case."
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.2", "1.2.3", "CT"
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, stated["bits_stored"], stated["bits_stored"] - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.RescaleSlope, ds.RescaleIntercept = stated["slope"], stated["intercept"]
    ds.PixelData = pixels.tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("case", cases("windows"))
def test_windows(case, tmp_path):
    stated, given = figures("ich_pixels")["windows"][case], arrays("ich_windows")
    path = write_dicom(tmp_path / "slice.dcm", given[f"{case}.pixels"], stated)
    made, expected = slice_picture(read_image(path), faithful=True), given[f"{case}.bgr"]
    assert sha256(expected.tobytes()).hexdigest() == stated["sha256_bgr"]
    difference = np.abs(made.astype(int) - expected)
    assert made.dtype == np.uint8 and difference.max() <= 1 and (difference > 0).mean() <= 0.01
    np.testing.assert_allclose(made.mean((0, 1)), stated["mean"], atol=0.01)


# ---- crops
@pytest.mark.parametrize("way", ["plain", "minimum_filter"])
@pytest.mark.parametrize("case", cases("crops"))
def test_crops(case, way):
    stated, picture = figures("ich_pixels")["crops"][case][way], arrays("ich_crop")[f"{case}.input"]
    box = plain_box(picture) if way == "plain" else filtered_box(picture, limit_by_rows=True)
    if "raises" in stated:
        assert box is None, "where the original raises there is no box"
        return
    assert boxed(*box) == stated["box_y1_y2_x1_x2"]
    cut = square(picture, box)
    assert list(cut.shape) == stated["shape"] and cut[::12, ::12].tolist() == stated["pixels_by_12"]
    assert sha256(cut.tobytes()).hexdigest() == stated["sha256"]
    np.testing.assert_allclose(cut.mean((0, 1)), stated["mean"], rtol=1e-6)


# ---- loader
@pytest.mark.parametrize("case", cases("loader"))
def test_loader(case):
    stated, expected = figures("ich_pixels")["loader"][case], arrays("ich_loader")[case]
    name, _, way = case.partition(".")
    crop, _, change = way.partition("_")
    picture = arrays("ich_crop")[f"{name}.input"]
    box = plain_box(picture) if crop == "crop" else None
    view = read_view(picture, box, stated["size"], faithful=True)
    view = {"": view, "hflip": view[:, ::-1], "transpose": view.transpose(1, 0, 2)}[change]
    made = normalized(view)
    assert list(made.shape) == stated["shape"] and made.dtype == np.float32
    step = stated["shape"][1] // expected.shape[1]
    np.testing.assert_allclose(made[:, ::step, ::step], expected, atol=0.02)
    found = [made.mean(), made.std(), made.min(), made.max()]
    np.testing.assert_allclose(found, [stated[key] for key in ("mean", "std", "min", "max")], atol=0.02)


def test_means_and_deviations():
    stated = figures("ich_pixels")["loader"]
    np.testing.assert_allclose(MEANS, stated["mean_bgr"], atol=1e-8)
    np.testing.assert_allclose(STDS, stated["std_bgr"], atol=1e-8)


# ---- order and folds
def test_order_of_slices():
    stated = figures("ich_lstm")["order"]
    table = pd.DataFrame(stated["rows"], columns=stated["columns"]).rename(columns={
        "PatientID": "patient_id", "SeriesInstanceUID": "series", "StudyInstanceUID": "study"})
    points = [[float(v) for v in ast.literal_eval(text)] for text in table["ImagePositionPatient"]]
    table[["x", "y", "z"]] = points
    table["place"] = places_by_position(table) + 1
    key = table["patient_id"] + "__" + table["series"] + "__" + table["study"]
    found = {name: [k, p] for name, k, p in zip(table["SOPInstanceUID"], key, table["place"])}
    assert found == stated["expected"]


def test_folds():
    stated = figures("ich_folds")
    n_folds = len(stated["fold_sizes_patients"])
    rows = [(patient, image) for patient, _, images in stated["patients"] for image in images]
    table = pd.DataFrame(rows, columns=["patient_id", "image_id"])
    table = table[~table["image_id"].isin(stated["labelled_without_metadata"])]
    table = table.sample(frac=1, random_state=seed())   # the order of the table must not count
    found = original_folds(table, n_folds)
    assert found.to_dict() == {patient: fold for patient, fold, _ in stated["patients"]}
    assert found.value_counts().sort_index().tolist() == stated["fold_sizes_patients"]
    sizes = table["patient_id"].map(found).value_counts().sort_index().tolist()
    assert sizes == stated["fold_sizes_images"]
    for image, patient, fold in stated["first_rows"]:
        assert found[patient] == fold and image in set(table["image_id"])

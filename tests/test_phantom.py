"The synthetic competition: its tables and files, its truth, its similarity to real files, and its reproducibility."
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, RLELossless, ExplicitVRLittleEndian

from mammo_nb.mammo import phantom
from mammo_nb.mammo.drawing.anatomy import draw_anatomy
from mammo_nb.mammo.drawing.breast import make_breast
from mammo_nb.mammo.drawing.lesions import KINDS
from mammo_nb.mammo.drawing.machines import MACHINES, stored_values, write_dicom
from mammo_nb.mammo.phantom import CompetitionError, make_competition

REAL = Path(__file__).parents[2] / "shared" / "data" / "mammo" / "ge_senographe_RMLO_GH133.dcm"
SMALL = dict(patients=7, test_patients=3, frame=(256, 208), prevalence=0.4, seed=5)

def digests(root):
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*"))
        if p.is_file()
    }

@pytest.fixture(scope="module")
def competition(tmp_path_factory):
    root = tmp_path_factory.mktemp("competition")
    return root, make_competition(root, workers=1, **SMALL)

# ---- tables and files ----------------------------------------------------------------------------
def test_tables_are_those_of_the_competition(competition):
    root, _ = competition
    train, test, sample = (pd.read_csv(root / f"{n}.csv") for n in ("train", "test", "sample_submission"))
    assert list(train) == [
        "site_id", "patient_id", "image_id", "laterality", "view", "age", "cancer", "biopsy", "invasive", "BIRADS",
        "implant", "density", "machine_id", "difficult_negative_case"
    ]
    assert list(test) == [
        "site_id", "patient_id", "image_id", "laterality", "view", "age", "implant", "machine_id", "prediction_id"
    ]
    assert list(sample) == ["prediction_id", "cancer"]
    assert train["patient_id"].nunique() == 7 and test["patient_id"].nunique() == 3
    assert train["patient_id"].dtype.kind == train["image_id"].dtype.kind == "i"
    assert not set(train["patient_id"]) & set(test["patient_id"]) and not set(train["image_id"]) & set(test["image_id"])
    assert train["image_id"].is_unique
    assert (test["prediction_id"] == test["patient_id"].astype(str) + "_" + test["laterality"]).all()
    assert list(sample["prediction_id"]) == list(test["prediction_id"].drop_duplicates())
    assert (sample["cancer"] == 0.4).all()
    views = train.groupby(["patient_id", "laterality", "view"]).size().unstack(fill_value=0)
    assert (views[["CC", "MLO"]] >= 1).all(axis=None)

def test_every_row_has_its_file_and_every_file_its_row(competition):
    root, _ = competition
    for split in ("train", "test"):
        rows, folder = pd.read_csv(root / f"{split}.csv", dtype=str), root / f"{split}_images"
        files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
        assert {f"{p}/{i}.dcm" for p, i in zip(rows["patient_id"], rows["image_id"])} == files
    assert not [p for p in root.rglob("*") if p.name.startswith(".")]

def test_clinical_columns_agree_with_each_other():
    rows = pd.DataFrame(phantom.plan("train", 200, 0.3, 11))
    assert rows.groupby("patient_id")["cancer"].max().sum() == 60
    assert (rows.groupby(["patient_id", "cancer"])["laterality"].nunique().unstack()[1].dropna() == 1).all()
    assert (rows.loc[rows["cancer"] == 1, "biopsy"] == 1).all()
    assert (rows.loc[rows["invasive"] == 1, "cancer"] == 1).all()
    assert not (rows["difficult_negative_case"] & (rows["cancer"] == 1)).any() and rows["difficult_negative_case"].any()
    assert rows.loc[rows["site_id"] == 2, ["density", "BIRADS"]].isna().all(axis=None)
    assert rows.loc[rows["site_id"] == 1, "density"].notna().mean() > 0.8
    assert set(rows["density"].dropna()) == set("ABCD")
    age = rows.groupby("site_id")["age"].mean()
    assert age[1] < age[2]
    assert 0.01 <= rows.groupby("patient_id")["implant"].max().mean() <= 0.02
    assert not (rows["implant"] & rows["cancer"]).any()
    assert set(rows["machine_id"]) == {m.machine_id for m in MACHINES}
    assert rows.groupby("machine_id")["site_id"].nunique().eq(1).all()
    assert rows["lesion"].isin(["mass", "calcifications"]).eq(rows["cancer"] == 1).all()
    assert 0.02 < rows["flipped"].mean() < 0.09 and rows.groupby(["patient_id", "laterality"]).size().max() == 3

def test_headers_agree_with_the_tables(competition):
    root, table = competition
    machines = {m.machine_id: m for m in MACHINES}
    assert len(set(table["machine_id"])) >= 5
    for row in table.itertuples():
        d = pydicom.dcmread(root / row.file)
        machine = machines[row.machine_id]
        assert "Modality" not in d and not [e for e in d if e.VR in ("DA", "TM", "DT", "PN")]
        assert (d.PatientID, d.ImageLaterality, d.ViewPosition) == (row.patient_id, row.laterality, row.view)
        written = d.file_meta.TransferSyntaxUID, d.BitsStored, d.PhotometricInterpretation
        assert written == (machine.syntax, machine.bits_stored, machine.photometric)
        assert d.get("VOILUTFunction", "") == machine.voi_function and d["WindowCenter"].VM == len(machine.windows)
        pixels = d.pixel_array.astype(float)
        grey = pixels if d.PhotometricInterpretation == "MONOCHROME2" else pixels.max() - pixels
        mask = cv2.imread(str(root / "truth" / "masks" / f"{row.patient_id}@{row.image_id}.png"), 0) > 0
        assert grey[mask].mean() > 3 * grey[~mask].mean()
        chest_left = mask[:, 0].sum() > mask[:, -1].sum()
        assert chest_left == ((row.laterality == "L") != (d.FieldOfViewHorizontalFlip == "YES"))

# ---- truth ---------------------------------------------------------------------------------------
def test_boxes_bound_the_masks_and_lesions_lie_inside(competition):
    root, table = competition
    boxes = pd.read_csv(root / "truth" / "boxes.csv", dtype={"patient_id": str, "image_id": str})
    lesions = pd.read_csv(root / "truth" / "lesions.csv", dtype={"patient_id": str, "image_id": str})
    assert len(boxes) == len(table)
    for b in boxes.itertuples():
        mask = cv2.imread(str(root / "truth" / "masks" / f"{b.patient_id}@{b.image_id}.png"), 0)
        assert mask.shape == (256, 208)
        ys, xs = np.nonzero(mask)
        assert (b.x0, b.y0, b.x1, b.y1) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        found = lesions[(lesions["patient_id"] == b.patient_id) & (lesions["image_id"] == b.image_id)]
        assert len(found) == len(np.intersect1d(mask, list(KINDS.values())))
        for l in found.itertuples():
            ys, xs = np.nonzero(mask == KINDS[l.kind])
            assert (l.x0, l.y0, l.x1, l.y1) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert b.x0 <= l.x0 < l.x1 <= b.x1 and b.y0 <= l.y0 < l.y1 <= b.y1
    sick = table[table["cancer"] == 1].merge(lesions[lesions["kind"].isin(["mass", "calcifications"])],
                                             on=["patient_id", "image_id"])
    assert len(sick) == (table["cancer"] == 1).sum() > 0

def test_answers_of_the_test_set(competition):
    root, table = competition
    answers = pd.read_csv(root / "truth" / "test_labels.csv")
    test = table[table["split"] == "test"]
    assert answers["cancer"].sum() == 1
    known = dict(zip(test["prediction_id"], test["cancer"]))
    assert dict(zip(answers["prediction_id"], answers["cancer"])) == known

@pytest.mark.parametrize("kind", list(KINDS))
def test_a_lesion_changes_its_own_place_only(kind):
    picture = {}
    for c in (0., 0.5, 1.):
        picture[c] = make_breast(np.random.default_rng(3), "L", "CC", (768, 576), kind, conspicuity=c)
    mask = picture[1.].lesion_mask > 0
    gain = {c: float((p.pixels - picture[0.].pixels)[mask].mean()) for c, p in picture.items()}
    assert gain[1.] > gain[0.5] > 0.02 and gain[1.] > 0.06
    far = picture[1.].breast_mask & (cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5) > 40 / 240 * 768)
    assert abs((picture[1.].pixels - picture[0.].pixels)[far].mean()) < 0.002

@pytest.mark.parametrize("seed", range(4))
def test_a_lesion_has_the_same_distance_from_the_nipple_in_both_views(seed):
    breast = draw_anatomy(np.random.default_rng(seed))
    distances = []
    for view in ("CC", "MLO"):
        b = make_breast(np.random.default_rng(seed), "L", view, (768, 576), "mass", breast)
        ys, xs = np.nonzero(b.lesion_mask)
        tip_x = b.box[2]
        tip_y = np.flatnonzero(b.breast_mask[:, tip_x - 2]).mean()
        distances.append(np.hypot(tip_x - xs.mean(), tip_y - ys.mean()) * 240 / 768)
    assert abs(distances[0] - distances[1]) < 13

# ---- similarity to real files --------------------------------------------------------------------
def exponent(patch, mm):
    "Minus the log-log slope of the radial power between 0.1 and 0.6 cycles per mm."
    n = len(patch)
    window = np.outer(np.hanning(n), np.hanning(n))
    power = np.abs(np.fft.fft2((patch - patch.mean()) * window)) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(n, mm), np.fft.fftfreq(n, mm)))
    bins = np.geomspace(0.1, 0.6, 9)
    radial = [power[(frequency >= lo) & (frequency < hi)].mean() for lo, hi in zip(bins, bins[1:])]
    return -np.polyfit(np.log(np.sqrt(bins[1:] * bins[:-1])), np.log(radial), 1)[0]

@pytest.mark.parametrize("frame", [(768, 576), (1024, 832)])
def test_texture_has_the_spectrum_of_a_mammogram(frame):
    found = []
    for seed in range(5):
        b = make_breast(np.random.default_rng(seed), "L", "CC", frame)
        n, middle = frame[0] // 4, (b.box[1] + b.box[3]) // 2
        patch = b.pixels[middle - n // 2:middle + n // 2, n // 8:n // 8 + n]
        found.append(exponent(patch.astype(float), 240 / frame[0]))
    assert 2.5 < np.mean(found) < 3.5

def test_texture_is_as_steep_as_in_a_real_mammogram():
    if not REAL.exists():
        pytest.skip(f"{REAL.name} is not in this checkout's shared data")
    d = pydicom.dcmread(REAL)
    grey = 1 / (1 + np.exp(-4 * (d.pixel_array.astype(float) - 2653) / 900))
    real = exponent(grey[1150:1150 + 640, -900:-900 + 640], float(d.ImagerPixelSpacing[0]))
    drawn = []
    for seed in range(4):
        pixels = make_breast(np.random.default_rng(seed), "L", "CC", (1024, 832)).pixels
        drawn.append(exponent(pixels[390:646, 30:286].astype(float), 240 / 1024))
    assert abs(real - np.mean(drawn)) < 0.6

def test_sides_are_mirrored_and_views_have_their_anatomy():
    left, right = (make_breast(np.random.default_rng(1), side, "MLO", (512, 416)) for side in "LR")
    assert np.array_equal(left.pixels, right.pixels[:, ::-1])
    assert np.array_equal(left.breast_mask, right.breast_mask[:, ::-1])
    assert left.box[0] == 0 and right.box[2] == 416
    for seed in range(6):
        cc, mlo = (make_breast(np.random.default_rng(seed), "L", view, (512, 416)) for view in ("CC", "MLO"))
        assert not cc.breast_mask[0].any() and mlo.breast_mask[0].any()  # the axillary tail leaves the frame
        muscle = mlo.pixels[10:60, 5:30]
        assert muscle.mean() > muscle.std() * 4 and muscle.mean() > 0.3

def test_a_frame_of_real_size():
    b = make_breast(np.random.default_rng(2), "R", "MLO", (2776, 2082), "calcifications")
    assert b.pixels.shape == (2776, 2082) and b.pixels.dtype == np.float32
    assert 0 <= b.pixels.min() and b.pixels.max() <= 1
    assert b.lesion_mask.any() and not b.lesion_mask[~b.breast_mask].any()
    patch = b.pixels[1200:1900, 1300:2000][b.breast_mask[1200:1900, 1300:2000]]
    assert patch.std() > 0.03
    coarse = cv2.resize(cv2.resize(b.pixels, (520, 694), interpolation=cv2.INTER_AREA), (2082, 2776))
    assert (b.pixels - coarse)[b.breast_mask].std() > 0.004  # there is detail at full resolution

# ---- files ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1, RLELossless, ExplicitVRLittleEndian])
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_file_is_read_with_the_values_that_were_written(tmp_path, syntax, bits, photometric):
    pixels = np.random.default_rng(0).integers(0, 2**bits, (61, 47), dtype=np.uint16)
    pixels[0, :2] = 0, 2**bits - 1
    write_dicom(tmp_path / "one.dcm", pixels, patient_id="10", image_id="20", laterality="R", view="CC", syntax=syntax,
                photometric=photometric, bits_stored=bits, windows=((100, 50), (200, 80)), voi_function="SIGMOID")
    d = pydicom.dcmread(tmp_path / "one.dcm")
    assert np.array_equal(d.pixel_array, pixels) and d.file_meta.TransferSyntaxUID == syntax
    assert list(d.WindowCenter) == [100, 200] and d.BitsStored == bits and d.HighBit == bits - 1
    assert [p.name for p in tmp_path.iterdir()] == ["one.dcm"]

def test_a_syntax_that_cannot_be_written_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="1.2.840.10008.1.2.4.50"):
        write_dicom(tmp_path / "one.dcm", np.zeros((8, 8), np.uint16), patient_id="1", image_id="2", laterality="L",
                    view="CC", syntax="1.2.840.10008.1.2.4.50", photometric="MONOCHROME2", bits_stored=12)
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: str(m.machine_id))
def test_the_first_window_shows_the_drawn_picture(machine):
    grey = np.linspace(0.1, 1, 200, dtype=np.float32)
    stored, windows = stored_values(grey, machine)
    center, width = windows[0]
    shown = np.clip((stored.astype(float) - center + 0.5) / (width - 1) + 0.5, 0, 1)
    if machine.photometric == "MONOCHROME1":
        shown = 1 - shown
    assert stored.max() < 2 ** machine.bits_stored and np.abs(shown - (grey - 0.06) / 0.94).max() < 0.01

# ---- reproducibility -----------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(competition, tmp_path):
    root, _ = competition
    make_competition(tmp_path, workers=2, **SMALL)
    assert digests(root) == digests(tmp_path)

def test_another_seed_is_another_competition(competition, tmp_path):
    root, table = competition
    other = make_competition(tmp_path, workers=1, **{**SMALL, "seed": 6, "patients": 2, "test_patients": 1})
    assert not set(digests(root).values()) & {
        v for k, v in digests(tmp_path).items() if k.endswith((".dcm", ".png", "train.csv", "test.csv"))
    }
    assert not set(table["image_id"]) & set(other["image_id"])

def test_an_interrupted_competition_is_continued(competition, tmp_path, monkeypatch):
    root, table = competition
    write, written = phantom.write_dicom, []
    def until_killed(path, *args, **kwargs):
        if len(written) == 9:
            raise KeyboardInterrupt
        write(path, *args, **kwargs)
        written.append(path)
    monkeypatch.setattr(phantom, "write_dicom", until_killed)
    with pytest.raises(KeyboardInterrupt):
        make_competition(tmp_path, workers=1, **SMALL)
    assert len(list(tmp_path.rglob("*.dcm"))) == 9 and not (tmp_path / "train.csv").exists()
    next(tmp_path.glob("truth/masks/*.png")).unlink()  # as if killed between picture and mask
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.dcm")}
    again = []
    def count(path, *args, **kwargs):
        write(path, *args, **kwargs)
        again.append(path)
    monkeypatch.setattr(phantom, "write_dicom", count)
    make_competition(tmp_path, workers=1, **SMALL)
    assert len(again) == len(table) - 8 and sum(p.stat().st_mtime_ns == t for p, t in before.items()) == 8
    assert digests(root) == digests(tmp_path)

def test_a_folder_with_another_competition_is_refused(competition):
    root, _ = competition
    before = digests(root)
    with pytest.raises(CompetitionError, match="Remove the folder"):
        make_competition(root, workers=1, **{**SMALL, "seed": 6})
    assert digests(root) == before

def test_an_unknown_lesion_is_an_error():
    with pytest.raises(ValueError, match="benign_mass"):
        make_breast(np.random.default_rng(0), "L", "CC", (256, 208), "cyst")

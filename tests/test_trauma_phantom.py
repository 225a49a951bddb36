"The synthetic abdominal-trauma competition: its tables and files, geometry, organs, injuries and reproducibility."
import hashlib
from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest

from mammo_nb.core.dicom import read_frame
from mammo_nb.core.files import write_text
from mammo_nb.core.hu import to_hu
from mammo_nb.core.labels import BadLabels, as_series, on_grid, read_labels, read_nifti
from mammo_nb.core.series import read_volume, write_series
from mammo_nb.trauma.drawing.body import PHASES, Grid, draw_body, draw_noise, noise
from mammo_nb.trauma.drawing.injuries import INJURIES, add_injuries, draw_injury
from mammo_nb.trauma.drawing.organs import draw_organs, label_map, place_of
from mammo_nb.trauma.drawing.scanners import SCANNERS, Series, draw_series, stored_values, write_segmentation
from mammo_nb.trauma.phantom import MARKED, make_competition, make_patient, patient_row, plan
from mammo_nb.trauma.reading.masks import list_cases, organ_labels, read_case, slices_of
from mammo_nb.trauma.recipes import GRADES, ORGANS, SUBMITTED

REAL = Path(__file__).parents[2] / "shared" / "data" / "ct" / "abdomen_ts"
SMALL = dict(patients=9, test_patients=3, size=48, lengths="15 16 18", prevalence=0.7, contrast=1.0, seed=4)
CLASSES = {"liver": 5, "spleen": 1, "kidney_left": 3, "kidney_right": 2, "small_bowel": 18, "duodenum": 19, "colon": 20}

def digests(root):
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*"))
            if p.is_file()}

@pytest.fixture(scope="module")
def competition(tmp_path_factory):
    root = tmp_path_factory.mktemp("trauma") / "competition"
    return root, make_competition(root, workers=1, **SMALL)

def drawn(seed=0, phase=PHASES[0], size=96, levels=np.arange(-190, 150, 10.0), injuries=(), contrast=1.0):
    rng = np.random.default_rng(seed)
    body = draw_body(rng)
    parts = {i: draw_injury(rng, body, i) for i in injuries}
    g = Grid.of((-190, -190), 380 / size, size, levels)
    d = draw_organs(body, g, phase)
    labels = label_map(d)
    return body, d, labels, add_injuries(d, parts, phase, contrast)

# ---- tables and files ----------------------------------------------------------------------------
def test_tables_are_those_of_the_competition(competition):
    root, series = competition
    train, test, sample = (pd.read_csv(root / n) for n in ("train.csv", "truth/test.csv", "sample_submission.csv"))
    assert list(train) == list(test) == ["patient_id", *SUBMITTED, "any_injury"] and len(train) == 9
    assert list(sample) == ["patient_id", *SUBMITTED] and sample.shape == (3, 14)
    assert list(sample["patient_id"]) == list(test["patient_id"]) and sample[list(SUBMITTED)].eq(0.5).all(axis=None)
    for table in (train, test):
        for organ, grades in GRADES.items():
            assert (table[[f"{organ}_{g}" for g in grades]].sum(axis=1) == 1).all()
        hurt = table[[f"{organ}_healthy" for organ in GRADES]].eq(0).any(axis=1)
        assert (table["any_injury"] == hurt).all()
    assert train["any_injury"].sum() == 6
    meta, tested = pd.read_csv(root / "train_series_meta.csv"), pd.read_csv(root / "test_series_meta.csv")
    assert list(meta) == ["patient_id", "series_id", "aortic_hu", "incomplete_organ"]
    assert list(tested) == ["patient_id", "series_id", "aortic_hu"]
    assert set(meta["patient_id"]) == set(train["patient_id"]) and set(tested["patient_id"]) == set(test["patient_id"])
    assert not set(meta["series_id"]) & set(tested["series_id"]) and meta["incomplete_organ"].sum() == 1
    marks = pd.read_csv(root / "image_level_labels.csv")
    assert list(marks) == ["patient_id", "series_id", "instance_number", "injury_name"]
    for kind, column in (("Bowel", "bowel_injury"), ("Active_Extravasation", "extravasation_injury")):
        ill = set(train.loc[train[column] == 1, "patient_id"])
        assert ill and set(marks.loc[marks["injury_name"] == kind, "patient_id"]) <= ill

def test_every_series_has_its_files_and_every_file_its_row(competition):
    root, series = competition
    slices = pd.read_csv(root / "truth" / "slices.csv")
    for row in series.itertuples():
        folder = root / f"{row.split}_images" / str(row.patient_id) / str(row.series_id)
        own = slices[slices["series_id"] == row.series_id]
        assert {f.name for f in folder.iterdir()} == {f"{n}.dcm" for n in own["instance_number"]}
        assert len(own) == row.slices
        named = root / "segmentations" / f"{row.series_id}.nii"
        assert named.exists() == row.segmented != (root / "truth" / named.relative_to(root)).exists()
    assert set(series.loc[series["segmented"], "split"]) == {"train"} and not series["segmented"].all()
    assert set(series.groupby("patient_id").size()) == {1, 2} and set(series["slices"]) == {15, 16, 18}
    marks = pd.read_csv(root / "image_level_labels.csv")
    known = slices[["series_id", "instance_number"]].apply(tuple, axis=1)
    assert set(marks[["series_id", "instance_number"]].apply(tuple, axis=1)) <= set(known)

def test_headers_have_the_variety_of_the_real_files(competition):
    root, series = competition
    first = [pydicom.dcmread(sorted((root / f"{r.split}_images/{r.patient_id}/{r.series_id}").iterdir())[0])
             for r in series.itertuples()]
    values = lambda name: {str(d.get(name, "missing")) for d in first}
    assert values("BitsStored") == {"12", "16"} and values("PixelRepresentation") == {"0", "1"}
    assert values("RescaleIntercept") == {"0", "-1024"} and len(values("WindowWidth")) > 2
    assert any("missing" in values(n) for n in ("SliceThickness", "WindowCenter", "PatientPosition", "SOPClassUID"))
    assert all(d.Modality == "CT" and (d.Rows, d.Columns) == (48, 48) for d in first)
    assert not [e for d in first for e in d if e.VR in ("DA", "TM", "DT", "PN")]
    unextended = [d for d in first if d.BitsStored == 12 and d.PixelRepresentation]
    words = np.frombuffer(unextended[0].PixelData, "<u2")
    assert unextended and words.max() < 4096 and (words > 2047).any()   # air is a large number without its sign

def test_instance_numbers_run_both_ways_and_do_not_start_at_one(competition):
    root, _ = competition
    slices = pd.read_csv(root / "truth" / "slices.csv")
    ways = slices.groupby("series_id").apply(
        lambda s: np.sign(np.corrcoef(s["instance_number"], s["z_mm"])[0, 1]), include_groups=False)
    assert set(ways.round()) == {-1, 1} and (ways < 0).mean() > 0.5
    starts = slices.groupby("series_id")["instance_number"].min()
    assert (starts == 1).any() and (starts > 1).any()

def test_a_large_plan():
    patients = plan("train", 1000, 0.5, [18, 20, 50], 0)
    table = pd.DataFrame([patient_row(p) for p in patients])
    assert table["any_injury"].sum() == 500 and table["patient_id"].is_unique
    counts = table[list(INJURIES)].sum()
    assert counts.min() > 70 and counts.max() < 170
    lengths = pd.Series([n for p in patients for n in p["lengths"]]).value_counts()
    assert len(lengths) == 3 and lengths.max() < 1.1 * lengths.min()
    assert sum(len(p["lengths"]) == 2 for p in patients) == 400 and sum(p["incomplete"] for p in patients) == 100
    assert not {p["patient"] for p in patients} & {p["patient"] for p in plan("test", 1000, 0.5, [18], 0)}
    few = pd.DataFrame([patient_row(p) for p in plan("train", 16, 0.5, [18], 3)])
    assert few[list(INJURIES)].sum().min() >= 1   # eight injured patients have all eight injuries

# ---- geometry ------------------------------------------------------------------------------------
def test_series_reader_and_the_segmentations_agree_with_the_truth(competition, tmp_path):
    "Labels come by their place; numbers of voxels and the values below them are those that were drawn."
    root, series = competition
    truth = pd.read_csv(root / "truth" / "slices.csv").set_index(["series_id", "instance_number"])
    for row in series[series["slices"] == 18].itertuples():
        folder = root / f"{row.split}_images" / str(row.patient_id) / str(row.series_id)
        slices, found = write_series(folder, tmp_path, workers=1)
        assert len(found) == 1 and (slices["error"] == "").all() and found["spacing_mm"].iloc[0] > 5
        place = "segmentations" if row.segmented else "truth/segmentations"
        labels = organ_labels(root / place / f"{row.series_id}.nii", slices_of(folder, slices))
        own = truth.loc[row.series_id].loc[[int(Path(f).stem) for f in slices["file"]]]
        assert own["z_mm"].is_monotonic_increasing
        for number, organ in enumerate(ORGANS, 1):
            assert np.array_equal((labels == number).sum((1, 2)), own[organ])
        hu = read_volume(folder, slices)
        for number in (1, 2, 3, 4):
            assert 40 < np.median(hu[labels == number]) < 240, ORGANS[number - 1]

def test_the_files_have_the_axes_of_the_competition(tmp_path):
    "Columns, rows from the back, slices from the feet; the published flips fit them when instances fall with z."
    labels = np.random.default_rng(0).integers(0, 6, (3, 4, 4)).astype(np.uint8)
    series = Series((-10.0, -20.0), 2.0, (5.0, 8.0, 11.0), (3, 2, 1), False)
    write_segmentation(tmp_path / "1.nii", labels, series)
    stored = nibabel.load(tmp_path / "1.nii")
    assert nibabel.aff2axcodes(stored.affine) == ("L", "A", "S") and stored.shape == (4, 4, 3)
    # the voxel [0, 0, 0] is the first column of the last row of the lowest slice: x = -10, y = -20 + 3 * 2, z = 5
    assert stored.affine[:3, 3].tolist() == [10, 14, 5] and stored.dataobj[0, 0, 0] == labels[0, 3, 0]
    flipped = np.asarray(stored.dataobj)[:, ::-1, ::-1].transpose(2, 1, 0)   # in the order of the instances
    assert np.array_equal(flipped, labels[::-1])
    values, slices = as_series(read_nifti(tmp_path / "1.nii"))
    assert np.array_equal(values, labels) and slices[2].position == (-10, -20, 11) and slices[0].spacing == (2, 2)

def test_two_series_of_a_patient_show_the_same_body(tmp_path):
    one = next(p for p in plan("train", 4, 0, [30], 3) if not p["incomplete"]) | {"lengths": [30, 24]}
    first, second = make_patient(tmp_path, one, 64, 1.0)
    read = {s["series_id"]: read_labels(tmp_path / p / "segmentations" / f"{s['series_id']}.nii") for s, p in (
        (first, "." if first["segmented"] else "truth"), (second, "." if second["segmented"] else "truth"))}
    a, b = (as_series(labels) for labels in read.values())
    moved = on_grid(read[first["series_id"]], b[1])
    dice = 2 * ((moved > 0) & (b[0] > 0)).sum() / ((moved > 0).sum() + (b[0] > 0).sum())
    assert a[0].shape[0] == 30 and b[0].shape[0] == 24 and dice > 0.85
    assert {first["phase"], second["phase"]} <= {"arterial", "portal venous"}
    for s in (first, second):
        assert (s["aortic_hu"] > 230) == (s["phase"] == "arterial")

@pytest.mark.parametrize("incomplete", [False, True])
def test_slices_cover_the_organs_unless_the_series_is_cut(incomplete):
    for seed in range(8):
        s = draw_series(np.random.default_rng(seed), 40, 96, 160.0, incomplete)
        assert np.allclose(np.diff(s.levels), s.gap) and len(set(s.instances)) == 40
        whole = s.levels[0] < -150 and s.levels[-1] > 130
        assert whole != incomplete and 2 * 160 < s.spacing * 96 < 2.6 * 160

# ---- values --------------------------------------------------------------------------------------
def test_stored_values_by_hand():
    hu = np.array([[-1000, 0, 40, 1500]], np.float32)
    by_name = {s.name: stored_values(hu, s).ravel().tolist() for s in SCANNERS}
    assert by_name["16 bits, signed"] == by_name["12 bits, unsigned"] == [24, 1024, 1064, 2524]
    assert by_name["16 bits, signed, intercept 0"] == [-1000, 0, 40, 1500]
    assert by_name["12 bits, signed, sign not extended"] == [3096, 0, 40, 1500]

def test_all_scanners_store_the_same_body(tmp_path):
    one = next(p for p in plan("train", 2, 0.5, [15], 3)) | {"lengths": [15]}
    volumes = []
    for i in range(len(SCANNERS)):
        made, = make_patient(tmp_path / str(i), one | {"scanner": i}, 48, 1.0)
        folder = tmp_path / str(i) / "train_images" / str(one["patient"]) / str(made["series_id"])
        volumes.append(to_hu(read_frame(folder / f"{made['slices'][7]['instance_number']}.dcm").decode()).values)
    inside = (volumes[0] > -950) & (volumes[0] < 2000)
    for volume in volumes[1:]:
        assert np.abs(volume - volumes[0])[inside].max() <= 1

# ---- anatomy -------------------------------------------------------------------------------------
def test_noise_is_smooth_and_the_same_on_every_grid():
    lattice = draw_noise(np.random.default_rng(0), 30.0)
    fine = Grid.of((-150, -150), 3.0, 100, np.arange(-150, 150, 3.0))
    values = noise(lattice, 30.0, fine)
    assert 0.85 < values.std() < 1.15 and np.abs(np.diff(values, axis=0)).max() < 0.5
    coarse = noise(lattice, 30.0, Grid.of((-150, -150), 6.0, 50, np.arange(-150, 150, 6.0)))
    assert np.allclose(coarse, values[::2, ::2, ::2], atol=1e-5)

@pytest.mark.parametrize("seed", range(5))
def test_organs_have_their_places_and_volumes(seed):
    body, d, labels, _ = drawn(seed)
    voxel = (380 / 96) ** 2 * 10 / 1000   # ml
    x = d.canvas.g.x.ravel()
    centre = {}
    for number, (organ, low, high) in enumerate(zip(ORGANS, (700, 80, 80, 80, 500), (2600, 500, 320, 320, 2600)), 1):
        mask = labels == number
        assert low < mask.sum() * voxel < high, organ
        centre[organ] = np.argwhere(mask).mean(0)
    side = {organ: float(np.interp(c[2], np.arange(96), x)) for organ, c in centre.items()}
    assert side["liver"] < -25 and side["right_kidney"] < -35 and side["left_kidney"] > 35 and side["spleen"] > 60
    assert centre["liver"][0] > centre["right_kidney"][0] > centre["bowel"][0]   # liver on top
    air = d.canvas.skin[0] > 3
    assert not labels[:, air].any() and (d.canvas.hu[:, air] < -990).all()

@pytest.mark.parametrize("phase", PHASES, ids=lambda p: p.name)
def test_organs_have_the_densities_of_their_phase(phase):
    _, d, labels, _ = drawn(2, phase)
    hu = d.canvas.hu
    assert abs(np.median(hu[d.organs["liver"] < -4]) - phase.liver) < 3
    assert abs(np.mean(hu[d.organs["spleen"] < -4]) - phase.spleen) < 8
    assert abs(np.median(hu[d.canvas.aorta < -4]) - phase.aorta) < 10
    rim = (d.organs["left_kidney"] > -6) & (d.organs["left_kidney"] < -3)
    assert abs(np.median(hu[rim]) - phase.cortex) < 12

# ---- injuries ------------------------------------------------------------------------------------
@lru_cache(maxsize=None)
def changes(injury, seed, contrast=1.0):
    "What an injury changes: HU against the same body without it, labels, and the levels at which slices are marked."
    levels = np.arange(-190, 150, 8.0)
    _, healthy, labels, _ = drawn(seed, size=64, levels=levels)
    _, hurt, same, marked = drawn(seed, size=64, levels=levels, injuries=[injury], contrast=contrast)
    assert np.array_equal(labels, same)
    return hurt.canvas.hu - healthy.canvas.hu, labels, marked

@pytest.mark.parametrize("injury", INJURIES)
def test_injuries_change_what_they_name_over_several_slices(injury):
    numbers = {"liver": [1], "spleen": [2], "kidney": [3, 4], "bowel": [5]}.get(injury.split("_")[0])
    for seed in range(3):
        change, labels, marked = changes(injury, seed)
        hit = np.abs(change) > 20
        assert (hit.sum((1, 2)) > 3).sum() >= 3 and hit.mean() < 0.03, seed
        own = np.isin(labels[hit], numbers).mean() if numbers else 0
        if injury.endswith("low"):
            assert own > 0.7 and np.median(change[hit]) < -20
        elif injury.endswith("high"):
            assert own > 0.3
        elif numbers:   # free gas and fluid lie beside the bowel
            assert change.min() < -200 and np.median(change[hit]) > 20 and own > 0.05
        else:
            assert np.percentile(change[hit], 99) > 80
        assert set(marked) == ({injury} if injury in MARKED else set())

@pytest.mark.parametrize("organ", ["liver", "spleen", "kidney"])
def test_a_high_grade_is_larger_than_a_low_one(organ):
    size = {grade: np.mean([(np.abs(changes(f"{organ}_{grade}", seed)[0]) > 20).sum() for seed in range(3)])
            for grade in ("low", "high")}
    assert size["high"] > 2.5 * size["low"]

def test_contrast_scales_the_injuries_and_not_the_labels(tmp_path):
    half, full = (changes("liver_low", 1, contrast)[0] for contrast in (0.5, 1.0))
    assert full.min() < -25 and np.allclose(half, full / 2, atol=1)
    one = next(p for p in plan("train", 8, 1, [18], 2) if "extravasation_injury" in p["injuries"])
    strong, none = make_patient(tmp_path / "1", one, 48, 1.0), make_patient(tmp_path / "0", one, 48, 0.0)
    marks = [[s["Active_Extravasation"] for s in made["slices"]] for made in strong]
    assert marks == [[s["Active_Extravasation"] for s in made["slices"]] for made in none] and any(map(any, marks))

def test_a_healthy_body_is_the_same_whatever_the_slab():
    body = draw_body(np.random.default_rng(1))
    levels = np.arange(-60, 60, 12.0)
    whole = draw_organs(body, Grid.of((-190, -190), 6, 64, levels), PHASES[0])
    parts = [draw_organs(body, Grid.of((-190, -190), 6, 64, levels[i:i + 3]), PHASES[0]).canvas.hu
             for i in (0, 3, 6, 9)]
    assert np.allclose(whole.canvas.hu, np.concatenate(parts), atol=0.01)
    assert place_of(body, "liver")[0][0] < 0 < place_of(body, "spleen")[0][0]

# ---- reproducibility -----------------------------------------------------------------------------
def test_same_seed_same_bytes_whatever_the_processes(competition, tmp_path):
    root, series = competition
    assert make_competition(tmp_path / "again", workers=2, **SMALL).equals(series)
    assert digests(root) == digests(tmp_path / "again")

def test_an_interrupted_call_continues_and_other_parameters_start_anew(tmp_path):
    small = SMALL | dict(patients=2, test_patients=1, lengths="15")
    series = make_competition(tmp_path / "c", workers=1, **small)
    before = digests(tmp_path / "c")
    (tmp_path / "c" / "train.csv").unlink()
    note = tmp_path / "c" / "truth" / "patients" / f"{series['patient_id'].iloc[0]}.json"
    kept = note.stat().st_mtime_ns
    make_competition(tmp_path / "c", workers=1, **small)
    assert digests(tmp_path / "c") == before and note.stat().st_mtime_ns == kept
    write_text(tmp_path / "c" / "stray.txt", "of an earlier competition")
    other = make_competition(tmp_path / "c", workers=1, **small | {"seed": 5})
    assert not set(other["series_id"]) & set(series["series_id"]) and not (tmp_path / "c" / "stray.txt").exists()

# ---- TotalSegmentator ----------------------------------------------------------------------------
def real_case(folder):
    "The real scan with one file an organ, as TotalSegmentator's data set has it."
    (folder / "segmentations").mkdir(parents=True)
    scan, numbers = nibabel.load(REAL / "example_ct_sm.nii.gz"), nibabel.load(REAL / "example_ct_sm_seg_117.nii.gz")
    nibabel.save(scan, folder / "ct.nii.gz")
    for part, number in CLASSES.items():
        mask = (np.asarray(numbers.dataobj) == number).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(mask, numbers.affine), folder / "segmentations" / f"{part}.nii.gz")
    return np.asarray(scan.dataobj), np.asarray(numbers.dataobj)

@pytest.mark.skipif(not REAL.exists(), reason="the real abdominal scan is not here")
def test_a_real_case_of_totalsegmentator(tmp_path):
    scan, numbers = real_case(tmp_path / "s0001")
    levels, labels = read_case(list_cases(tmp_path)[0])
    assert levels.shape == labels.shape == (30, 101, 122) and levels.dtype == labels.dtype == np.uint8
    for label, own in enumerate(([5], [1], [3], [2], [18, 19, 20]), 1):
        assert (labels == label).sum() == np.isin(numbers, own).sum()
    x = {label: np.argwhere(labels == label)[:, 2].mean() for label in (1, 2, 3, 4)}
    assert x[1] < 50 and x[4] < 50 and 72 < x[3] < x[2]   # liver and right kidney are on the right
    middle = levels[15].astype(int)
    expected = np.clip(scan[::-1, ::-1, 15].T.astype(float), -150, 250)
    assert np.abs(middle - (expected + 150) / 400 * 255).max() <= 1     # air and bone are in the slice
    assert np.array_equal(labels[::-1], read_case(tmp_path / "s0001", faithful=True)[1])

def test_a_folder_without_organs_and_wrong_labels_are_refused(tmp_path):
    image = nibabel.Nifti1Image(np.full((4, 4, 3), 7, np.uint8), np.eye(4))
    nibabel.save(image, tmp_path / "1.nii")
    _, slices = as_series(read_nifti(tmp_path / "1.nii"))
    with pytest.raises(BadLabels, match="labels from 7 to 7. Give labels 1 to 5: liver"):
        organ_labels(tmp_path / "1.nii", slices)
    (tmp_path / "case" / "segmentations").mkdir(parents=True)
    with pytest.raises(BadLabels, match="no organ in it"):
        organ_labels(tmp_path / "case", slices)
    with pytest.raises(BadLabels, match="no case in it"):
        list_cases(tmp_path)
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 3), np.uint8), np.eye(4)), tmp_path / "case" / "colon.nii.gz")
    assert (organ_labels(tmp_path / "case", slices) == 5).all()

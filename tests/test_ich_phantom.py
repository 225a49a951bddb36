"The synthetic head-CT competition: its tables and files, geometry, labels, anatomy and reproducibility."
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from mammo_nb.core.dicom import read_frames
from mammo_nb.core.hu import to_hu
from mammo_nb.core.series import read_volume, write_series
from mammo_nb.ich.drawing.face import draw_tissue
from mammo_nb.ich.drawing.head import cut_head, draw_head
from mammo_nb.ich.drawing.hemorrhage import KINDS, add_blood, blood, draw_lesion, imitate
from mammo_nb.ich.drawing.scanners import SCANNERS, draw_series, places, stored_values
from mammo_nb.ich.phantom import make_competition, make_patient, plan, shared_out
from mammo_nb.ich.recipes import CLASSES

REAL = Path(__file__).parents[2] / "shared" / "data" / "ct" / "head_ge_28"
SMALL = dict(patients=9, test_patients=3, size=64, slices=12, prevalence=0.6, seed=4)

def digests(root):
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*"))
            if p.is_file()}

@pytest.fixture(scope="module")
def competition(tmp_path_factory):
    root = tmp_path_factory.mktemp("ich") / "competition"
    return root, make_competition(root, workers=1, **SMALL)

def cut(head, level, size=128, spacing=1.8):
    y, x = (np.mgrid[:size, :size].astype(np.float32) - (size - 1) / 2) * np.float32(spacing)
    return cut_head(head, x, y, np.full_like(x, level), float(level), 2.0)

# ---- tables and files ----------------------------------------------------------------------------
def test_tables_are_those_of_the_competition(competition):
    root, table = competition
    train, sample, truth = (pd.read_csv(root / name) for name in (
        "stage_2_train.csv", "stage_2_sample_submission.csv", "truth/test.csv"))
    assert list(train) == list(sample) == list(truth) == ["ID", "Label"]
    assert train["ID"].str.fullmatch(r"ID_[0-9a-f]{9}_(" + "|".join(CLASSES) + ")").all()
    again = train[train.duplicated()]
    assert len(again) == 24 and not train.drop_duplicates()["ID"].duplicated().any()  # repeated rows agree
    for rows, split in ((train.drop_duplicates(), "train"), (truth, "test")):
        own = table[table["split"] == split].set_index("image_id")
        assert len(rows) == 6 * len(own)
        image, kind = rows["ID"].str.rsplit("_", n=1).str[0], rows["ID"].str.rsplit("_", n=1).str[1]
        assert rows.groupby(image)["ID"].size().eq(6).all()
        assert (rows["Label"].to_numpy() == [own.loc[i, k] for i, k in zip(image, kind)]).all()
    assert list(sample["ID"]) == list(truth["ID"]) and (sample["Label"] == 0.5).all()
    assert (table["any"] == table[list(KINDS)].max(axis=1)).all() and set(table["any"]) == {0, 1}

def test_every_row_has_its_file_and_every_file_its_row(competition):
    root, table = competition
    for split, rows in table.groupby("split"):
        files = {f.stem for f in (root / f"stage_2_{split}_images").iterdir()}
        assert files == set(rows["image_id"]) and len(files) == len(rows)
    assert table.groupby("patient_id")["split"].nunique().eq(1).all() and table["patient_id"].nunique() == 12
    assert set(table.groupby("patient_id")["series"].nunique()) == {1, 2}

def test_headers_have_the_variety_of_the_real_files(competition):
    root, table = competition
    headers = {i: pydicom.dcmread(root / f"stage_2_{s}_images" / f"{i}.dcm")
               for s, i in zip(table["split"], table["image_id"])}
    for row in table.itertuples():
        d = headers[row.image_id]
        assert (d.SOPInstanceUID, d.PatientID, d.SeriesInstanceUID) == (row.image_id, row.patient_id, row.series)
        assert d.Modality == "CT" and d.RescaleSlope == 1 and d.pixel_array.shape == (64, 64)
        assert not [e for e in d if e.VR in ("DA", "TM", "DT", "PN")]
    values = lambda name: {str(d.get(name, "missing")) for d in headers.values()}
    assert values("BitsStored") == {"12", "16"} and values("PixelRepresentation") == {"0", "1"}
    assert values("RescaleIntercept") == {"0", "-1024", "-1000"}
    assert {d["WindowCenter"].VM for d in headers.values() if "WindowCenter" in d} == {1, 2}
    assert any("missing" in values(name) for name in ("StudyID", "InstanceNumber", "SliceThickness", "WindowCenter"))
    tilted = {d.PatientID: d.ImageOrientationPatient[5] != 0 for d in headers.values()}
    assert sum(tilted.values()) > 0.7 * len(tilted)
    numbered = [(r.place, int(headers[r.image_id].InstanceNumber)) for r in table.itertuples()
                if "InstanceNumber" in headers[r.image_id]]
    assert abs(np.corrcoef(np.array(numbered).T)[0, 1]) < 0.5

def test_lengths_and_kinds_of_a_large_plan():
    patients = pd.DataFrame(plan("train", 2000, 0.5, 34, 0))
    lengths = patients["slices"]
    assert lengths.min() >= 20 and lengths.max() <= 60 and abs(lengths.median() - 34) <= 1
    assert patients["patient"].is_unique and patients["kinds"].map(bool).sum() == 1000
    assert 20 <= patients["twice"].sum() <= 30 and abs(patients["tilted"].mean() - 0.915) < 0.03
    kinds = patients["kinds"].explode().value_counts()
    assert set(kinds.index) == set(KINDS) and kinds.idxmin() == "epidural"
    assert sorted(shared_out(np.random.default_rng(0), 4, {"a": 2, "b": 1, "c": 1})) == ["a", "a", "b", "c"]
    assert sorted(shared_out(np.random.default_rng(0), 3, {"a": 5, "b": 1, "c": 1})) != ["a", "a", "a"]

# ---- geometry ------------------------------------------------------------------------------------
def test_series_reader_finds_the_order_and_the_duplicate_place(competition, tmp_path):
    root, table = competition
    slices, series = write_series(root / "stage_2_train_images", tmp_path, workers=1)
    assert (slices["error"] == "").all() and len(slices) == (table["split"] == "train").sum()
    found = slices.merge(table[["image_id", "place", "level"]], on="image_id")
    kept = found[~found["note"].str.contains("left out")]
    assert len(kept) == len(found) - 1  # one patient has two slices at one place
    assert kept.groupby("series", sort=False)["level"].apply(lambda z: (np.diff(z) > 0).all()).all()
    assert len(series) == table[table["split"] == "train"]["series"].nunique()
    one = kept[kept["series"] == kept["series"].iloc[0]]
    volume = read_volume(root / "stage_2_train_images", one)
    assert volume.shape == (len(one), 64, 64) and volume.min() >= -1100 and 700 < volume.max() < 2500

@pytest.mark.parametrize("tilted, follows", [(False, False), (True, False), (True, True)])
def test_slices_are_where_their_headers_say(tilted, follows):
    s = draw_series(np.random.default_rng(1), 30, 64, 130.0, tilted, follows)
    row, column = np.array(s.orientation[:3]), np.array(s.orientation[3:])
    normal = np.cross(row, column)
    assert np.isclose(np.linalg.norm(column), 1) and np.isclose(row @ column, 0)
    along = s.positions @ normal
    assert np.allclose(np.diff(along), s.gap, atol=1e-4) and 128 < along.max() + s.gap * 0.7 < 136
    moved = np.diff(s.positions, axis=0)
    assert np.allclose(moved[:, 0], 0) and (np.abs(moved[:, 1]) > 0.05).all() == follows
    level = places(s, 7, 64)[3]
    assert np.isclose(level, along[7])
    shift = places(s, 8, 64)[1] - places(s, 7, 64)[1]
    assert np.allclose(shift, shift[0, 0], atol=1e-4) and (abs(shift[0, 0]) > 0.05) == (tilted and not follows)

# ---- values --------------------------------------------------------------------------------------
def test_stored_values_by_hand():
    hu = np.array([[-1000, 0, 40, 1500]], np.float32)
    by_name = {s.name: stored_values(hu, s).ravel().tolist() for s in SCANNERS}
    assert by_name["16 bits, signed"] == [24, 1024, 1064, 2524]
    assert by_name["12 bits, intercept -1000"] == [0, 1000, 1040, 2500]
    assert by_name["12 bits, signed, intercept 0"] == [-1000, 0, 40, 1500]
    assert by_name["12 bits, sign lost"] == [3096, 0, 40, 1500]

def test_all_scanners_store_the_same_head(tmp_path):
    one = plan("train", 2, 0.5, 8, 3)[0]
    volumes = []
    for i in range(len(SCANNERS)):
        rows = make_patient(tmp_path / str(i), one | {"scanner": i}, 64, 1.0)
        frame = next(read_frames(tmp_path / str(i) / "stage_2_train_images" / f"{rows[4]['image_id']}.dcm"))
        volumes.append(to_hu(frame.decode()).values)
    y, x = np.ogrid[-31.5:32, -31.5:32]
    inside = (np.hypot(x, y) < 31) & (volumes[0] > -950)
    for volume in volumes[1:]:
        assert np.abs(volume - volumes[0])[inside].max() <= 1

# ---- labels and anatomy --------------------------------------------------------------------------
def test_a_hemorrhage_spans_three_to_six_slices(tmp_path):
    spans = []
    for i, kind in enumerate(KINDS * 2):
        one = plan("train", 1, 1, 20, i)[0] | {"kinds": [kind], "series": 1, "twice": False}
        rows = pd.DataFrame(make_patient(tmp_path / str(i), one, 64, 1.0))
        assert not rows[[k for k in KINDS if k != kind]].any(axis=None)  # look-alikes have no label
        shown = rows.loc[rows[kind] == 1, "place"].to_numpy()
        if len(shown):
            assert (np.diff(shown) == 1).all()
        spans.append(len(shown))
    assert max(spans) <= 6 and np.mean(np.array(spans) >= 3) >= 0.8

@pytest.mark.parametrize("kind", KINDS)
def test_blood_is_where_anatomy_puts_it(kind):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        head = draw_head(rng)
        lesion = draw_lesion(rng, head, kind, 5.6, (-20, 125))
        c = cut(head, lesion.centre[2])
        hu, brain, room = draw_tissue(head, c)
        share = blood(head, c, brain, room, lesion)
        core = share > 0.5
        assert core.any() or share.max() > 0.3, seed
        assert (share[room == 0] == 0).all()
        if kind == "epidural":      # a lens of one side, against the bone
            assert c.depth[core].min() < 3 and c.depth[core].max() < 18
            assert np.ptp(np.arctan2(c.x[core], -c.y[core])) < 1.2
        elif kind == "subdural":    # a thin crescent of one side
            assert c.depth[core].max() < 12 and (np.sign(c.x[core]) == np.sign(c.x[core][0])).all()
        elif kind == "intraventricular":
            assert (brain.ventricles[share > 0.3] > 0.3).all()
        elif kind == "subarachnoid":
            assert (brain.sulci[share > 0.3] > 0.3).all()
        else:
            assert c.depth[core].min() > 0 and np.hypot(c.x[core] - lesion.centre[0],
                                                       c.y[core] - lesion.centre[1]).max() < 30
        before = hu.copy()
        added = add_blood(head, c, brain, room, [lesion], hu)
        if (share > 0.9).any():
            assert 40 < np.median(hu[share > 0.9]) < 82
        assert set(added) == {kind} and (before - hu).max() <= 8  # oedema

def test_an_imitation_is_in_one_slice_and_has_no_label():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        head = draw_head(rng)
        fake = imitate(rng, head, 5.6, 62.0)
        changed = []
        for level in (62 - 5.6, 62.0, 62 + 5.6):
            c = cut(head, level)
            hu, brain, room = draw_tissue(head, c)
            before = hu.copy()
            assert add_blood(head, c, brain, room, [fake], hu) == {}
            changed.append(np.abs(hu - before).max())
        assert max(changed[0], changed[2]) < 1

def test_contrast_scales_the_blood_and_not_the_labels(tmp_path):
    one = plan("train", 1, 1, 20, 2)[0] | {"kinds": ["intraparenchymal"], "series": 1}
    strong, none = make_patient(tmp_path / "1", one, 64, 1.0), make_patient(tmp_path / "0", one, 64, 0.0)
    assert strong == none and any(row["any"] for row in strong)

def test_the_head_has_the_densities_of_a_head():
    head = draw_head(np.random.default_rng(0))
    c = cut(head, 66)
    hu, brain, room = draw_tissue(head, c)
    tissue = (room == 1) & (brain.sulci == 0) & (brain.ventricles == 0) & (c.depth > 8)
    assert 20 < np.percentile(hu[tissue], 5) < np.percentile(hu[tissue], 95) < 46
    assert 0 < hu[(brain.ventricles == 1) & (room == 1)].min() < 15
    ring = (c.depth < -2) & (c.depth > -4)
    assert 500 < np.median(hu[ring]) < 1500
    assert (hu[c.skin > 8] == -1000).mean() > 0.95
    assert (draw_tissue(head, cut(head, 22))[0] < -500)[(np.abs(c.x) < 12) & (np.abs(c.y + 50) < 25)].any()  # sinuses

@pytest.mark.skipif(not REAL.exists(), reason="the real head series is not here")
def test_the_phantom_resembles_a_real_head(tmp_path):
    slices, _ = write_series(REAL, tmp_path, workers=1)
    real = read_volume(REAL, slices[slices["error"] == ""])[:, ::4, ::4]
    one = plan("train", 1, 0, 28, 1)[0] | {"scanner": 0, "series": 1, "twice": False}
    rows = make_patient(tmp_path, one, 128, 1.0)
    files = [tmp_path / "stage_2_train_images" / f"{r['image_id']}.dcm" for r in rows]
    drawn = np.stack([to_hu(next(read_frames(f)).decode()).values for f in files])
    shares = lambda v: np.array([(v < -200).mean(), ((v > 0) & (v < 80)).mean(), (v > 300).mean()])
    assert np.abs(shares(real) - shares(drawn)).max() < 0.12
    median = lambda v: np.median(v[(v > 10) & (v < 60)])
    assert abs(median(real) - median(drawn)) < 6

# ---- reproducibility -----------------------------------------------------------------------------
def test_same_seed_same_bytes_whatever_the_processes(competition, tmp_path):
    root, table = competition
    assert make_competition(tmp_path / "again", workers=2, **SMALL).equals(table)
    assert digests(root) == digests(tmp_path / "again")

def test_an_interrupted_call_continues_and_other_parameters_start_anew(tmp_path):
    small = SMALL | dict(patients=2, test_patients=1, slices=8)
    table = make_competition(tmp_path / "c", workers=1, **small)
    before = digests(tmp_path / "c")
    (tmp_path / "c" / "stage_2_train.csv").unlink()
    kept = (tmp_path / "c" / "truth" / "patients" / f"{table['patient_id'].iloc[0]}.json").stat().st_mtime_ns
    make_competition(tmp_path / "c", workers=1, **small)
    assert digests(tmp_path / "c") == before
    assert (tmp_path / "c" / "truth" / "patients" / f"{table['patient_id'].iloc[0]}.json").stat().st_mtime_ns == kept
    other = make_competition(tmp_path / "c", workers=1, **small | {"seed": 5})
    files = {f.stem for f in (tmp_path / "c" / "stage_2_train_images").iterdir()}
    assert files == set(other.loc[other["split"] == "train", "image_id"]) and not set(other["image_id"]) & set(
        table["image_id"])

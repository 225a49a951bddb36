"Labels of organs on the grid of a series: by their place in the patient, whatever the axes of their file."
import gzip
from itertools import permutations, product

import nibabel
import numpy as np
import pandas as pd
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from typer.testing import CliRunner

from mammo_nb.cli import app
from mammo_nb.core.geometry import Slice
from mammo_nb.core.labels import (BadLabels, as_series, fitting, measured, on_grid, read_labels, read_nifti,
                                  write_labels)
from mammo_nb.core.volumes import Volume

LPS = np.diag([-1.0, -1, 1, 1])
ROWS, COLUMNS, COUNT = 5, 6, 4
SPACING, STEP, START = (2.0, 3.0), 4.0, (10.0, 20.0, 30.0)   # between rows and columns, between slices, mm

def series(count=COUNT, start=START, spacing=SPACING, step=STEP, rows=ROWS, columns=COLUMNS, name="1.2", turn=None):
    "Axial slices; `turn`, (4, 4), moves them in the patient."
    turn = np.eye(4) if turn is None else turn
    direction = lambda v: tuple(turn[:3, :3] @ v)
    return [Slice(f"{name}/{k}.dcm", 0, rows, columns, series=name, spacing=spacing,
                  orientation=(*direction((1, 0, 0)), *direction((0, 1, 0))),
                  position=tuple((turn @ (start[0], start[1], start[2] + step * k, 1))[:3])) for k in range(count)]

def volume(slices):
    return Volume(slices[0].series, slices, np.arange(len(slices)) * STEP)

def own_affine(turn=None):
    "RAS affine of the series' own grid with the axes column, row, slice."
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.diag([SPACING[1], SPACING[0], STEP]), START
    return LPS @ (np.eye(4) if turn is None else turn) @ affine

def labelled():
    "Labels with axes slice, row, column: 1 in three voxels, 2 in one."
    mask = np.zeros((COUNT, ROWS, COLUMNS), np.uint8)
    mask[1, 2, 3] = mask[1, 2, 4] = mask[2, 2, 3] = 1
    mask[3, 0, 5] = 2
    return mask

def write(path, values, affine=None, qform=None, **header):
    "A NIfTI file with an sform, a qform, both or none; `header` changes raw fields."
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.set_sform(affine, code=int(affine is not None))
    image.set_qform(qform, code=int(qform is not None))
    for name, value in header.items():
        image.header[name] = value
    content = image.to_bytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path

@pytest.fixture
def file(tmp_path):
    return tmp_path / "label.nii.gz"

STORED = labelled().transpose(2, 1, 0)   # column, row, slice

# ---- places --------------------------------------------------------------------------------------
def test_numbers_and_centres_by_hand(file, tmp_path):
    found = write_labels(write(file, STORED, own_affine()), [volume(series())], tmp_path)
    # label 1: columns 3, 4, 3, row 2, slices 1, 1, 2; x = 10 + 3 * 10 / 3, y = 20 + 2 * 2, z = 30 + 4 * 4 / 3
    assert found.to_numpy().tolist() == [[1, 3, 20.0, 24.0, 35.333], [2, 1, 25.0, 20.0, 42.0]]
    assert pd.read_csv(tmp_path / "labels.csv").equals(found)
    assert list(found) == ["label", "voxels", "x_mm", "y_mm", "z_mm"]

@pytest.mark.parametrize("order", permutations(range(3)))
@pytest.mark.parametrize("flips", product((False, True), repeat=3))
def test_axes_in_any_order_and_direction(file, order, flips):
    values, affine = STORED, own_affine()
    for axis in np.flatnonzero(flips):
        affine[:3, 3] += affine[:3, axis] * (values.shape[axis] - 1)
        affine[:3, axis] *= -1
        values = np.flip(values, axis)
    write(file, values.transpose(order), affine[:, [*order, 3]])
    assert np.array_equal(on_grid(read_labels(file), series()), labelled())
    scan, places = as_series(read_nifti(file))   # the same file as a scan: its grid is that of the series
    assert np.array_equal(scan, labelled())
    assert np.allclose([s.position for s in places], [s.position for s in series()])
    assert np.allclose(places[0].spacing, SPACING) and places[0].orientation == (1, 0, 0, 0, 1, 0)

def turned(a=0.4, b=-0.7, c=0.2, shift=(5, -40, 300)):
    "A rotation about three axes and a shift."
    turn = np.eye(4)
    for (i, j), angle in zip(((0, 1), (0, 2), (1, 2)), (a, b, c)):
        one = np.eye(4)
        one[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turn = one @ turn
    turn[:3, 3] = shift
    return turn

def test_an_oblique_stack_with_labels_of_its_own_grid(file):
    turn = turned()
    write(file, STORED, own_affine(turn))
    assert np.array_equal(on_grid(read_labels(file), series(turn=turn)), labelled())
    assert not on_grid(read_labels(file), series()).any()

def test_slices_of_other_orientation(file):
    "Rows that run upwards and slices from head to feet, as some scanners write them."
    write(file, STORED, own_affine())
    s = series()
    for one in s:
        one.position = tuple(np.array(one.position) + (0, SPACING[0] * (ROWS - 1), 0))
        one.orientation = (1, 0, 0, 0, -1, 0)
    assert np.array_equal(on_grid(read_labels(file), s[::-1]), labelled()[::-1, ::-1])

def box(low, high, affine, shape):
    "Labels of 1 where the centre of a voxel lies in a box, LPS mm."
    index = np.indices(shape).reshape(3, -1)
    at = (LPS @ affine)[:3, :3] @ index + (LPS @ affine)[:3, 3:]
    return ((at > np.array(low)[:, None]) & (at < np.array(high)[:, None])).all(0).reshape(shape).astype(np.uint8)

def test_a_tilted_gantry(file):
    "Slices lean while the table moves along z, so the stack is sheared; the labels are upright."
    c, sine = np.cos(0.3), np.sin(0.3)
    leaning = [Slice(f"{k}.dcm", 0, 40, 40, orientation=(1, 0, 0, 0, c, -sine), spacing=(2, 2),
                     position=(-40, -40, 5 * k + 20)) for k in range(16)]
    affine = np.array([[-1, 0, 0, 60.0], [0, -1, 0, 60], [0, 0, 1, 0], [0, 0, 0, 1]])
    low, high = (-20.5, -12.5, 30.5), (15.5, 21.5, 62.5)
    write(file, box(low, high, affine, (120, 120, 110)), affine)
    mask = on_grid(read_labels(file), leaning)
    rows = np.arange(40)
    for k, picture in enumerate(mask):
        y, z = -40 + 2 * c * rows, 5 * k + 20 - 2 * sine * rows
        hit = (y > low[1]) & (y < high[1]) & (z > low[2]) & (z < high[2])
        columns = (-40 + 2 * rows > low[0]) & (-40 + 2 * rows < high[0])
        assert np.array_equal(picture > 0, hit[:, None] & columns)
    assert np.abs(measured(mask, leaning)[["x_mm", "y_mm", "z_mm"]].to_numpy()[0] - np.add(low, high) / 2).max() < 1.5

def test_a_gap_in_the_series_moves_no_label(file):
    write(file, STORED, own_affine())
    s = series()
    del s[1]
    assert np.array_equal(on_grid(read_labels(file), s), np.delete(labelled(), 1, 0))

# ---- grids that differ ---------------------------------------------------------------------------
def test_finer_and_coarser_labels(file):
    fine = own_affine() @ np.diag([0.5, 0.5, 1, 1])   # two voxels a pixel; the first centre a quarter of a pixel before
    fine[:3, 3] = (own_affine() @ (-0.25, -0.25, 0, 1))[:3]
    write(file, STORED.repeat(2, 0).repeat(2, 1), fine)
    assert np.array_equal(on_grid(read_labels(file), series()), labelled())
    coarse = own_affine() @ np.diag([2.0, 1, 1, 1])   # a voxel over two columns, its centre between them
    coarse[:3, 3] = (own_affine() @ (0.5, 0, 0, 1))[:3]
    write(file, STORED[::2], coarse)
    assert np.array_equal(on_grid(read_labels(file), series()), labelled()[:, :, ::2].repeat(2, 2))

@pytest.mark.parametrize("first, last", [(0, 2), (1, 4), (1, 3), (3, 4)])
def test_fewer_slices_than_the_series(file, first, last):
    affine = own_affine()
    affine[:3, 3] += affine[:3, 2] * first
    write(file, STORED[:, :, first:last], affine)
    expected = np.zeros_like(labelled())
    expected[first:last] = labelled()[first:last]
    assert np.array_equal(on_grid(read_labels(file), series()), expected)

def test_late_digits_move_nothing(file):
    affine = own_affine()
    affine[:3, :3] *= 1 + 2e-6
    affine[:3, 3] += [1e-3, -2e-3, 1e-3]
    write(file, STORED, affine)
    assert np.array_equal(on_grid(read_labels(file), series()), labelled())
    for noise in (-2e-4, 2e-4):   # places midway between two voxels all go to the same one
        affine = own_affine()
        affine[:3, 3] += affine[:3, 0] * (0.5 + noise)
        write(file, STORED, affine)
        assert np.array_equal(on_grid(read_labels(file), series())[:, :, 1:], labelled()[:, :, :-1])

# ---- forms and units -----------------------------------------------------------------------------
def test_sform_before_qform_and_a_note(file, capsys, tmp_path):
    beside = own_affine()
    beside[:3, 3] += (30, -21, 0)
    labels = read_labels(write(file, STORED, own_affine(), beside))
    assert np.array_equal(on_grid(labels, series()), labelled())
    assert labels.notes == ["sform and qform disagree by up to 30.0 mm; the sform is used"]
    write_labels(file, [volume(series())], tmp_path)
    assert labels.notes[0] in capsys.readouterr().out
    assert read_labels(write(file, STORED, own_affine(), own_affine())).notes == []

def test_qform_alone_also_mirrored_and_oblique(file):
    for turn in (None, turned()):
        labels = read_labels(write(file, STORED, None, own_affine(turn)))
        assert np.array_equal(on_grid(labels, series(turn=turn)), labelled())
    mirrored = own_affine()
    mirrored[:3, 3] += mirrored[:3, 0] * (COLUMNS - 1)
    mirrored[:3, 0] *= -1
    labels = read_labels(write(file, STORED[::-1], None, mirrored))
    assert np.array_equal(on_grid(labels, series()), labelled())

def test_an_empty_sform_gives_way_to_the_qform(file):
    write(file, STORED, own_affine(), own_affine(), srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4)
    assert np.array_equal(on_grid(read_labels(file), series()), labelled())

def test_without_forms_it_is_refused(file):
    with pytest.raises(BadLabels, match="label.nii.gz: it has neither an sform nor a qform.*affine of the scan"):
        read_labels(write(file, STORED))

@pytest.mark.parametrize("unit, factor", [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_units(file, unit, factor):
    affine = np.diag([1 / factor] * 3 + [1]) @ own_affine()
    labels = read_labels(write(file, STORED, affine, xyzt_units=unit + 8))   # 8: seconds along the fourth axis
    assert labels.notes == [] and np.allclose(labels.affine, LPS @ own_affine())
    assert np.array_equal(on_grid(labels, series()), labelled())

def test_a_wrong_unit_is_seen_by_the_size_of_a_voxel(file):
    labels = read_labels(write(file, STORED, own_affine(), xyzt_units=1))
    assert "metres" in labels.notes[0] and np.array_equal(on_grid(labels, series()), labelled())

# ---- values --------------------------------------------------------------------------------------
@pytest.mark.parametrize("values", [STORED.astype(np.float32) * np.float32(1.0000001), STORED.astype(np.float64),
                                    STORED.astype(np.int16), STORED[..., None], STORED[..., None, None],
                                    STORED.astype(">i4")], ids=["f4", "f8", "i2", "4-D", "5-D", "big-endian"])
def test_types_and_further_axes(file, values):
    labels = read_labels(write(file, values, own_affine()))
    assert np.issubdtype(labels.values.dtype, np.integer)
    assert np.array_equal(on_grid(labels, series()), labelled())

@pytest.mark.parametrize("slope, inter, expected", [(2, 0, 2), (np.nan, np.nan, 1), (0, 0, 1), (1, 0, 1)])
def test_scaling(file, slope, inter, expected):
    labels = read_labels(write(file, STORED.astype(np.int32), own_affine(), scl_slope=slope, scl_inter=inter))
    assert np.array_equal(on_grid(labels, series()), labelled() * expected)

def test_not_a_number_is_no_label(file):
    values = STORED.astype(np.float32)
    values[values == 0] = np.nan
    labels = read_labels(write(file, values, own_affine()))
    assert np.array_equal(on_grid(labels, series()), labelled()) and "116 voxels" in labels.notes[0]

@pytest.mark.parametrize("values, said", [(STORED * 0.4, "no whole numbers"), (np.stack([STORED] * 2, 3), "no single"),
                                          (STORED.astype(np.complex64), "no single")])
def test_what_is_no_volume_of_labels_is_refused(file, values, said):
    with pytest.raises(BadLabels, match=said):
        read_labels(write(file, values, own_affine()))

def test_packed_or_not_whatever_the_name_and_other_versions(tmp_path):
    plain = write(tmp_path / "label.nii", STORED, own_affine()).read_bytes()
    second = nibabel.Nifti2Image(STORED, own_affine()).to_bytes()
    for name, content in (("a.nii", plain), ("b.nii.gz", gzip.compress(plain)), ("c.nii", gzip.compress(plain)),
                          ("d.nii.gz", plain), ("e.nii", second)):
        (tmp_path / name).write_bytes(content)
        assert np.array_equal(on_grid(read_labels(tmp_path / name), series()), labelled()), name
    for content in (b"", b"no image", plain[:300], plain[:-20], gzip.compress(plain)[:-30], b"\x1f\x8bxx"):
        (tmp_path / "bad.nii.gz").write_bytes(content)
        with pytest.raises(BadLabels, match="bad.nii.gz: it cannot be read as NIfTI"):
            read_labels(tmp_path / "bad.nii.gz")
    with pytest.raises(BadLabels, match="nowhere.nii"):
        read_labels(tmp_path / "nowhere.nii")

# ---- which series --------------------------------------------------------------------------------
def test_of_several_series_the_one_that_holds_them(file):
    beside, finer = series(start=(10, 20, 130), name="1.1"), series(count=8, step=2.0, name="1.3")
    other_size = series(rows=3, columns=3, spacing=(4.0, 6.0), name="1.4")
    volumes = [volume(s) for s in (beside, finer, series(), other_size)]
    labels = read_labels(write(file, STORED, own_affine()))
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
        found, share = fitting(labels, [volumes[i] for i in order])
        assert found.name == "1.2" and share == 1

def test_labels_that_fit_nothing_leave_no_table(file, tmp_path):
    (tmp_path / "labels.csv").write_text("of an earlier call")
    away = own_affine()
    away[:3, 3] += (0, 0, 500)
    with pytest.raises(BadLabels, match="none of its labels lies in a series"):
        write_labels(write(file, STORED, away), [volume(series())], tmp_path)
    assert not (tmp_path / "labels.csv").exists()
    unplaced = series()
    unplaced[0].position = None
    with pytest.raises(BadLabels, match="no series has positions"):
        fitting(read_labels(write(file, STORED, own_affine())), [volume(unplaced)])

def test_a_part_outside_is_said(file, capsys, tmp_path):
    affine = own_affine()
    affine[:3, 3] += affine[:3, 2] * 2   # slice 3, with label 2, and slice 2 now lie above the series
    found = write_labels(write(file, STORED, affine), [volume(series())], tmp_path)
    assert found[["label", "voxels"]].to_numpy().tolist() == [[1, 2]]
    assert "50% of the labelled voxels lie outside" in capsys.readouterr().out

def test_an_empty_file_has_an_empty_table(file, tmp_path):
    found = write_labels(write(file, STORED * 0, own_affine()), [volume(series())], tmp_path)
    assert len(found) == 0 and (tmp_path / "labels.csv").read_text() == "label,voxels,x_mm,y_mm,z_mm\n"
    away = own_affine()
    away[:3, 3] += (0, 0, 500)
    with pytest.raises(BadLabels):
        write_labels(write(file, STORED * 0, away), [volume(series())], tmp_path)

# ---- the command ---------------------------------------------------------------------------------
def write_slices(folder, slices):
    folder.mkdir()
    for k, s in enumerate(slices):
        d = Dataset()
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        pixels = np.full((s.rows, s.columns), k, "<i2")
        pixels[0, 0] = 40
        values = dict(SOPClassUID=CTImageStorage, SOPInstanceUID=f"1.2.3.{k + 1}", PatientID="P", Modality="CT",
                      StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.4", InstanceNumber=len(slices) - k, Rows=s.rows,
                      Columns=s.columns, ImagePositionPatient=list(s.position), SamplesPerPixel=1, BitsAllocated=16,
                      ImageOrientationPatient=list(s.orientation), PixelSpacing=list(s.spacing), BitsStored=16,
                      HighBit=15, PixelRepresentation=1, PhotometricInterpretation="MONOCHROME2", RescaleSlope=1,
                      RescaleIntercept=0, PixelData=pixels.tobytes())
        for name, value in values.items():
            setattr(d, name, value)
        d.save_as(folder / f"{k * 7 % 4}.dcm", enforce_file_format=True)
    return folder

def test_command_writes_labels_or_ends_with_a_sentence(file, tmp_path):
    folder = write_slices(tmp_path / "scan", series())
    write(file, STORED, own_affine())
    done = CliRunner().invoke(app, ["series", str(folder), "-o", str(tmp_path / "out"), "--labels", str(file)])
    assert done.exit_code == 0 and "2 labels on the grid of 1.2.4" in done.output
    found = pd.read_csv(tmp_path / "out" / "labels.csv")
    assert found.to_numpy().tolist() == [[1, 3, 20.0, 24.0, 35.333], [2, 1, 25.0, 20.0, 42.0]]
    write(file, STORED)
    done = CliRunner().invoke(app, ["series", str(folder), "-o", str(tmp_path / "out"), "--labels", str(file)])
    assert done.exit_code != 0 and isinstance(done.exception, BadLabels)   # `main` prints its text
    assert not (tmp_path / "out" / "labels.csv").exists() and (tmp_path / "out" / "slices.csv").exists()

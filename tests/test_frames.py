"mammo/drawing/frames: frames drawn for a detector, their boxes, and a set that survives an interruption."
import cv2
import numpy as np
import pytest

from mammo_nb.mammo.drawing import frames
from mammo_nb.mammo.drawing.breast import mask_box
from mammo_nb.mammo.drawing.film import borders
from mammo_nb.mammo.drawing.frames import FAMILIES, draw_frame, draw_frames, draw_scene, plan_frames
from mammo_nb.mammo.drawing.scenes import draw_build, lay_out
from mammo_nb.mammo.reading.roi import COLUMNS, read_yolo

PLAN = dict(patients=3, held_back=.34, size=128, seed=3)


def content(folder):
    "The content of every file of a folder."
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def cases(count):
    "Cases of a random generator, a breast, a side and a view."
    for i in range(count):
        rng = np.random.default_rng([11, i])
        yield rng, draw_build(rng), "LR"[i // 2 % 2], ("CC", "MLO")[i % 2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames") / "set"
    return folder, draw_frames(folder, **PLAN, workers=1)


def test_the_number_of_processes_changes_no_byte(made, tmp_path):
    folder, boxes = made
    assert draw_frames(tmp_path, **PLAN, workers=2).equals(boxes) and content(tmp_path) == content(folder)


def test_an_interrupted_set_is_finished(made, monkeypatch):
    folder, boxes = made
    before, drawn = content(folder), []
    for image in boxes["image"][:3]:
        (folder / image).unlink()
    (folder / f"labels/{boxes['patient_id'][5]}@{boxes['image_id'][5]}.txt").unlink()
    (folder / "train.txt").unlink()
    monkeypatch.setattr(frames, "draw_frame", lambda *a: drawn.append(1) or draw_frame(*a))
    # the other frames are kept
    assert [frames.make_frame_file(folder, f, PLAN["size"], 1.0) for f in plan_frames(3, .34, 3)] and len(drawn) == 4
    assert draw_frames(folder, **PLAN, workers=1).equals(boxes) and content(folder) == before


def test_other_parameters_make_another_set(tmp_path):
    draw_frames(tmp_path, patients=2, held_back=.5, size=96, seed=1, workers=1)
    (tmp_path / "notes.txt").write_text("mine")
    boxes = draw_frames(tmp_path, patients=1, held_back=0, size=96, seed=2, workers=1)
    assert len(boxes) == len(list((tmp_path / "images").iterdir())) == len(list((tmp_path / "labels").iterdir())) == 4
    assert (tmp_path / "notes.txt").exists() and read_yolo(tmp_path, images=True)[1].empty


def test_the_set_is_one_that_roi_reads(made):
    folder, boxes = made
    read, problems = read_yolo(folder, images=True)
    assert problems.empty and list(boxes) == COLUMNS and len(read) == 12
    assert boxes.groupby("patient_id")["split"].nunique().eq(1).all()
    assert boxes.groupby("split")["patient_id"].nunique().to_dict() == {"train": 2, "val": 1}
    assert set(boxes["image_id"]) == {"LCC", "LMLO", "RCC", "RMLO"} and (boxes["w"] * boxes["h"]).ge(.06 - 1e-9).all()
    for r in boxes.itertuples():
        picture = cv2.imread(str(folder / r.image), cv2.IMREAD_UNCHANGED)
        assert picture.dtype == np.uint8 and picture.ndim == 2 and max(picture.shape) == PLAN["size"]
        assert (picture.min(), picture.max()) == (0, 255)


@pytest.mark.parametrize("size", [97, 256])
def test_pictures_and_boxes_of_any_size(size):
    for rng, breast, side, view in cases(16):
        picture, (x0, y0, x1, y1) = draw_frame(rng, breast, side, view, size)
        rows, columns = picture.shape
        assert picture.dtype == np.uint8 and max(rows, columns) == size and (picture.min(), picture.max()) == (0, 255)
        assert 0 <= x0 < x1 <= columns and 0 <= y0 < y1 <= rows and (x1 - x0) * (y1 - y0) >= .06 * rows * columns


def test_the_box_is_that_of_the_bright_pixels_when_nothing_else_is_drawn():
    for rng, breast, side, view in cases(12):
        s = draw_scene(rng, breast, side, view, 200, families=())
        box = mask_box(s.cover > .5)
        assert not s.picture[s.cover == 0].any()
        # tissue is drawn up to the skin; only half a pixel of smoothing is outside of the box
        x0, y0, x1, y1 = mask_box(s.picture > .02)
        assert np.abs(np.subtract(box, (x0, y0, x1, y1))).max() <= 2


def test_only_what_hides_the_breast_moves_its_box():
    "A family that is not `borders` does not change the visible part of the breast."
    hiding, moved = [borders], 0
    for i, (_, breast, side, view) in enumerate(cases(16)):
        layout = lay_out(np.random.default_rng(i), breast, side, view, 160)
        for family in FAMILIES:
            before = layout.cover.copy()
            family(np.random.default_rng([i, 1]), layout)
            assert np.isfinite(layout.picture).all() and layout.picture.shape == before.shape
            if family in hiding:
                moved += not np.array_equal(before, layout.cover)
            else:
                assert np.array_equal(before, layout.cover), family.__name__
    assert moved


def test_a_right_breast_has_its_chest_wall_on_the_right():
    sides = []
    for i in range(30):
        rng = np.random.default_rng([5, i])
        s = draw_scene(rng, draw_build(rng), "R", ("CC", "MLO")[i % 2], 128, families=())
        x0, _, x1, _ = mask_box(s.cover > .5)
        sides.append(s.cover.shape[1] - x1 <= x0)
    assert np.mean(sides) > .75     # the rest is stored mirrored, or fills the frame

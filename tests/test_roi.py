"mammo/reading/roi: boxes as people draw them, with the usual mistakes, and as the COCO evaluation reads them."
import json

import pandas as pd
import pytest
from conftest import SHARED

from mammo_nb.mammo.reading.roi import (COLUMNS, AnnotationError, apart, from_pixels, read_yolo, shared, to_coco,
                                        write_coco, write_yolo)

PUBLISHED = SHARED / "winner_assets/roi_det_yolov5_format"


def made(*rows):
    "Boxes (image, split) in the middle of their pictures."
    return pd.DataFrame([(f"images/{name}.png", *name.split("@"), split, .5, .5, .4, .6) for name, split in rows],
                        columns=COLUMNS)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the published boxes in ../shared/data")
def test_the_published_set():
    boxes, problems = read_yolo(PUBLISHED)
    assert boxes["split"].value_counts().to_dict() == {"train": 521, "val": 50} and boxes["patient_id"].nunique() == 216
    assert set(problems["problem"]) == {"its patient is in train and in val"}
    assert set(boxes.loc[shared(boxes), "patient_id"]) == {"1511", "21161", "46373"}
    assert not shared(apart(boxes)).any() and shared(apart(boxes, faithful=True)).any()
    medians = boxes["w"].median(), boxes["h"].median(), (boxes["w"] * boxes["h"]).median()
    assert medians == pytest.approx((.506, .756, .377), abs=5e-4)


def test_written_boxes_are_read_again(tmp_path):
    pixels = pd.DataFrame({
        "patient_id": ["7", "8"], "image_id": ["01", "02"], "x0": [0, 100], "y0": [10, 0], "x1": [700, 1401],
        "y1": [1790, 900], "rows": 1801, "columns": 1401
    })
    write_yolo(tmp_path, from_pixels(pixels, ["train", "val"]))
    boxes, problems = read_yolo(tmp_path)
    assert problems.empty and boxes["image_id"].tolist() == ["01", "02"]
    coco = to_coco(boxes, {image: (1801, 1401) for image in boxes["image"]})
    for annotation, r in zip(coco["annotations"], pixels.itertuples()):
        # six digits of 1801 pixels
        assert annotation["bbox"] == pytest.approx([r.x0, r.y0, r.x1 - r.x0, r.y1 - r.y0], abs=2e-3)
        assert annotation["area"] == pytest.approx((r.x1 - r.x0) * (r.y1 - r.y0), rel=1e-5)


@pytest.mark.parametrize("text, problem", [
    ("", "0 boxes"),
    ("0 .5 .5 .4 .4\n0 .5 .5 .2 .2\n", "2 boxes"),
    ("0 .5 .5 .4", "no box"),
    ("0 .5 .5 .4 nan", "no box"),
    ("breast .5 .5 .4 .4", "no box"),
    ("1 .5 .5 .4 .4", "class 1, there are 1"),
    ("-1 .5 .5 .4 .4", "class -1"),
    ("0 .5 .5 -.4 .4", "without area"),
    ("0 .9 .5 .4 .4", "leaves the picture"),
    ("0 .5 .1 .4 .4", "leaves the picture"),
])
def test_a_wrong_box_is_named_and_left_out(tmp_path, text, problem):
    write_yolo(tmp_path, made(("7@1", "train"), ("8@1", "val")))
    (tmp_path / "labels/7@1.txt").write_text(text)
    boxes, problems = read_yolo(tmp_path)
    assert boxes["image"].tolist() == ["images/8@1.png"] and problems["image"].tolist() == ["images/7@1.png"]
    assert problem in problems["problem"][0]


def test_lists_and_files_that_do_not_fit(tmp_path):
    write_yolo(tmp_path, made(("7@1", "train"), ("7@2", "train"), ("8@1", "val"), ("9@1", "val")))
    (tmp_path / "labels/9@1.txt").unlink()
    (tmp_path / "labels/5@5.txt").write_text("0 .5 .5 .4 .4\n")
    with open(tmp_path / "val.txt", "a") as f:
        f.write("images/7@1.png\nimages/7@3.png\nimages/nobody.png\n\n")
    for name in ("7@3", "nobody"):
        (tmp_path / f"labels/{name}.txt").write_text("0 .5 .5 .4 .4\n")
    boxes, problems = read_yolo(tmp_path)
    assert set(problems.itertuples(index=False, name=None)) == {
        ("images/9@1.png", "no label"), ("images/7@1.png", "listed twice"),
        ("images/nobody.png", "a name without patient: <patient_id>@<image_id> is expected"),
        ("labels/5@5.txt", "in no list"),
        *((f"images/7@{i}.png", "its patient is in train and in val") for i in (1, 2, 3))
    }
    assert set(apart(boxes).query("split == 'val'")["patient_id"]) == {"8"}
    (tmp_path / "images").mkdir()
    for image in ("7@1", "7@2", "7@3"):
        (tmp_path / f"images/{image}.png").touch()
    assert "no picture" in read_yolo(tmp_path, images=True)[1].set_index("image")["problem"].loc["images/8@1.png"]


def test_a_missing_file_or_size_is_an_error_that_names_it(tmp_path):
    with pytest.raises(AnnotationError, match="classes.txt"):
        read_yolo(tmp_path)
    with pytest.raises(AnnotationError, match="1 pictures have no size, such as images/7@1.png"):
        to_coco(made(("7@1", "train")), {})


def test_the_coco_evaluation_reads_the_file(tmp_path):
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    boxes = made(("7@1", "train"), ("8@1", "val"), ("9@1", "val"))
    write_coco(tmp_path, boxes, {image: (832, 640) for image in boxes["image"]})
    assert len(json.loads((tmp_path / "instances_train2017.json").read_text())["images"]) == 1
    truth = COCO(str(tmp_path / "instances_val2017.json"))
    found = truth.loadRes([{"image_id": a["image_id"], "category_id": 1, "bbox": a["bbox"], "score": .9}
                           for a in truth.dataset["annotations"]])
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)

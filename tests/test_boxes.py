"mammo/reading/boxes: which method finds the breast, in which order, and in which pixels."
from dataclasses import replace

import numpy as np
import pytest

from mammo_nb.core.backends import EngineError
from mammo_nb.core.dicom import Image
from mammo_nb.mammo.reading.boxes import Box, detect, find_box, find_boxes, find_detector, open_detector
from mammo_nb.mammo.recipes import Crops


PLAIN = Crops(growth=0)   # boxes as they are found; tests/test_tissue.py has those that are refined


class Constant:
    "A detector of 416 pixels that predicts the same boxes for every picture: cx, cy, w, h, objectness, class."
    metadata = {"size": 416}

    def __init__(self, *boxes):
        self.output, self.batches = np.array(boxes, np.float32).reshape(-1, 6), []

    def __call__(self, squares):
        self.batches.append(squares.shape)
        return np.tile(self.output, (len(squares), 1, 1))


@pytest.fixture
def image(make_image):
    return make_image(832, 640, np.s_[100:700, 0:400])


@pytest.fixture
def make_image():
    "Make a bright rectangle on black, in a frame of any size, decoded at full or at a smaller scale."
    from mammo_nb.core.headers import Header

    def make(rows, columns, where, scale=1.0, photometric="MONOCHROME2"):
        pixels = np.zeros((rows, columns), np.uint16)
        pixels[where] = 3000
        pixels[where][::7] = 2500
        if photometric == "MONOCHROME1":
            pixels = 4095 - pixels
        step = int(1 / scale)
        fields = dict.fromkeys(Header.__dataclass_fields__)
        header = Header(**{**fields, "rows": rows, "columns": columns, "photometric": photometric, "windows": (),
                          "aspect": 1.0})
        return Image(header, pixels[::step, ::step], "none", scale)
    return make


def test_the_box_with_the_highest_score_is_given_in_frame_pixels(image):
    # 832 rows become 416: half a pixel of the square is a pixel of the frame; 320 of the 416 columns are picture
    box = find_box(image, PLAIN, Constant((100, 200, 120, 180, .9, .9), (100, 200, 200, 300, .95, .9)))
    assert box == Box(0, 100, 400, 700, "detector", pytest.approx(.855))
    box = find_box(image, PLAIN, Constant((100.25, 200.25, 120, 180, .9, .9)))
    assert (box.x0, box.y0, box.x1, box.y1) == (80, 220, 321, 581)   # rounded outwards
    box = find_box(image, replace(Crops(), faithful=True), Constant((100.25, 200.25, 120, 180, .9, .9)))
    assert (box.x0, box.y0, box.x1, box.y1) == (80, 220, 320, 580)   # truncated, as the winner did
    box = find_box(image, PLAIN, Constant((300, 400, 200, 200, .9, .9)))
    assert (box.x1, box.y1) == (640, 832)


def test_a_detector_of_an_older_version_is_shown_whole_levels(image):
    class Old(Constant):
        metadata = {"size": 416, "inputs": [{"name": "images", "dtype": "uint8"}]}

        def __call__(self, squares):
            self.dtype = squares.dtype
            return super().__call__(squares)

    old = Old((100, 200, 120, 180, .9, .9))
    assert find_box(image, Crops(faithful=True), old) == find_box(image, Crops(faithful=True), Constant(*old.output))
    assert old.dtype == np.uint8


def test_faithful_divides_both_axes_by_one_ratio(make_image):
    image = make_image(2803, 1001, np.s_[500:2000, 0:700])   # the view has 415 x 148 pixels, not 416 x 148.6
    box = find_box(image, Crops(faithful=True), Constant((80, 200, 100, 180, .9, .9)))
    ratio = 416 / 2803
    assert (box.x0, box.y0, box.x1, box.y1) == tuple(int(side / ratio) for side in (30, 110, 130, 290))
    ours = find_box(image, PLAIN, Constant((80, 200, 100, 180, .9, .9)))
    assert (ours.x0, ours.y0, ours.x1, ours.y1) == (201, 741, 874, 1955)   # each axis by its own, rounded outwards


@pytest.mark.parametrize("box, source", [
    ((100, 200, 120, 180, .71, .71), "detector"),  # score .5041
    ((100, 200, 120, 180, .7, .7), "otsu"),        # score .49
    ((100, 200, 73, 73, .9, .9), "detector"),      # 5329 of 133120 pixels; 4 % is 5325
    ((100, 200, 72, 72, .9, .9), "otsu"),          # 5184 pixels
])
def test_area_and_confidence_decide_between_detector_and_otsu(image, box, source):
    assert find_box(image, graph=Constant(box)).source == source


def test_the_order_is_detector_otsu_full_frame(make_image, image):
    nothing = Constant(np.zeros(6))
    assert find_box(image, graph=nothing).source == find_box(image).source == "otsu"
    small = make_image(832, 640, np.s_[100:200, 100:200])   # 1.9 % of the frame
    assert find_box(small, graph=nothing) == find_box(small) == Box(0, 0, 640, 832, "full frame")


def test_an_error_of_the_detector_is_raised(image):
    class Broken(Constant):
        def __call__(self, squares):
            raise RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        find_box(image, graph=Broken(np.zeros(6)))


def test_a_batch_gives_what_single_frames_give(make_image):
    images = [
        make_image(832, 640, np.s_[100:700, 0:400]),
        make_image(600, 900, np.s_[50:500, 300:900]),
        make_image(300, 200, np.s_[0:250, 20:150])
    ]
    graph = Constant((100, 150, 120, 180, .9, .9))
    together = find_boxes(images, graph=graph)
    assert graph.batches == [(3, 1, 416, 416)] and together == [find_box(image, graph=graph) for image in images]


@pytest.mark.parametrize("graph", [None, Constant((100, 200, 150, 280, .9, .9))])
def test_a_quarter_of_the_frame_and_its_negative_give_the_same_box(make_image, graph):
    whole, quarter, negative = (find_box(make_image(1664, 1280, np.s_[200:1400, 0:800], **o), graph=graph)
                                for o in ({}, {"scale": .25}, {"photometric": "MONOCHROME1"}))
    assert whole.source == quarter.source and negative == whole
    difference = np.subtract((whole.x0, whole.y0, whole.x1, whole.y1), (quarter.x0, quarter.y0, quarter.x1, quarter.y1))
    assert np.abs(difference).max() <= 12  # frame pixels, three pixels of the view


def test_overlapping_boxes_of_a_view_are_removed(make_image):
    views = [np.zeros((416, 320), np.uint8)]
    graph = Constant((100, 200, 120, 180, .9, .9), (101, 200, 120, 180, .8, .9), (100, 200, 60, 90, .9, .7))
    (boxes, scores), = detect(views, graph, .5, .9)
    assert boxes.tolist() == [[40, 110, 160, 290], [70, 155, 130, 245]] and scores.tolist() == pytest.approx([.81, .63])


def test_a_graph_that_is_no_detector_is_refused(tmp_path, monkeypatch):
    import onnx
    from mammo_nb.core.sidecars import write_graph
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[n, 2] x) => (float[n, 2] y) { y = Relu(x) }')
    write_graph(model, tmp_path / "detector.onnx", {"decoded": False, "classes": 1})
    with pytest.raises(EngineError, match="no detector of one class"):
        open_detector(tmp_path / "detector.onnx")
    path = tmp_path / "detector.onnx"
    assert find_detector(str(tmp_path)) == find_detector(str(path)) == path and find_detector("otsu") is None
    with pytest.raises(EngineError, match="has no detector.onnx"):
        find_detector(str(tmp_path / "nowhere"))

"core/detection against YOLOX's own code, torchvision and hand calculation."
import numpy as np
import pytest

from mammo_nb.core.detection import (PAD, candidates, cells, coco_score, corners, decode, iou, letterbox, nms,
                                     unletterbox)


@pytest.mark.parametrize("rows, columns, size", [
    (416, 320, 416), (832, 640, 416), (5355, 4915, 416), (300, 416, 256), (7, 900, 256), (100, 80, 416)])
def test_letterbox_is_yolox_own_and_its_way_back_is_exact(rows, columns, size):
    preproc = pytest.importorskip("yolox.data.data_augment").preproc
    picture = np.random.default_rng(0).integers(0, 256, (rows, columns), np.uint8)
    square, ratio = letterbox(picture, size)
    theirs, their_ratio = preproc(np.repeat(picture[..., None], 3, 2), (size, size))
    assert ratio == their_ratio and square.dtype == np.uint8 and (theirs == square).all()
    fitted = max(1, int(rows * ratio)), max(1, int(columns * ratio))
    assert (square[fitted[0]:] == PAD).all() and (square[:, fitted[1]:] == PAD).all()
    boxes = np.array([[0, 0, columns, rows], [columns / 9, rows / 7, columns / 3, rows / 2]])
    assert np.allclose(unletterbox(boxes * ratio, ratio, rows, columns), boxes, rtol=0, atol=1e-9)
    assert unletterbox([[-5, -5, 2 * size, 2 * size]], ratio, rows, columns).tolist() == [[0, 0, columns, rows]]


def test_a_picture_of_the_right_size_is_left_as_it_is():
    picture = np.random.default_rng(0).integers(0, 256, (416, 200), np.uint8)
    square, ratio = letterbox(picture, 416)
    assert ratio == 1 and (square[:, :200] == picture).all()


def test_decode_by_hand_and_by_the_library():
    raw = np.zeros((1, 3549, 6), np.float32)
    # 52 x 52 cells of 8 pixels, then 26 x 26 of 16: row 5, column 7 of the second grid has its corner at (112, 80)
    raw[0, 52 * 52 + 5 * 26 + 7] = [.25, .5, np.log(6), np.log(10), .9, .7]
    assert np.allclose(decode(raw, 416)[0, 52 * 52 + 5 * 26 + 7], [116, 88, 96, 160, .9, .7], atol=1e-4)
    torch, head = pytest.importorskip("torch"), pytest.importorskip("yolox.models").YoloxHead(
        1, width=.25, depthwise=True)
    head.hw = [torch.Size((s, s)) for s in (52, 26, 13)]
    raw = np.random.default_rng(0).normal(size=(2, 3549, 6)).astype(np.float32)
    assert np.allclose(decode(raw, 416),
                       head.decode_outputs(torch.from_numpy(raw), "torch.FloatTensor").numpy(), rtol=1e-6, atol=1e-4)
    with pytest.raises(ValueError, match="multiple of 32 pixels, got 400"):
        cells(400)


def test_iou_and_nms_are_torchvisions():
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    rng = np.random.default_rng(3)
    boxes, scores = corners(np.concatenate(
        [rng.uniform(20, 80, (60, 2)), rng.uniform(5, 60, (60, 2))], 1)).astype(np.float32), rng.random(60)
    assert np.allclose(iou(boxes, boxes),
                       ops.box_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)).numpy(), atol=1e-5)
    for overlap in (.2, .5, .9):
        assert nms(boxes, scores, overlap).tolist() == ops.nms(torch.from_numpy(boxes),
                                                               torch.from_numpy(scores.astype(np.float32)),
                                                               overlap).tolist()
    assert iou([[5, 5, 5, 9]], [[5, 5, 5, 9]]) == 0 and len(nms(np.zeros((0, 4)), [], .5)) == 0


def test_candidates_multiply_both_probabilities():
    output = np.array([[50, 50, 40, 40, .9, .9], [51, 50, 40, 40, .9, .6], [200, 200, 10, 10, .8, .6],
                       [99, 99, 10, 10, .99, .5]])
    boxes, scores = candidates(output, .5, .5)
    assert boxes.tolist() == [[30, 30, 70, 70]] and scores.tolist() == pytest.approx([.81])
    assert len(candidates(output, .48, .5)[0]) == 3 and len(candidates(output, .48, 1)[0]) == 4
    assert candidates(output, .999, .5)[0].shape == (0, 4)


def test_coco_score_of_perfect_missing_and_doubled_boxes():
    truth = {
        "images": [{"id": i} for i in (1, 2)], "categories": [{"id": 1, "name": "ROI"}], "annotations": [{
            "id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 100, 200], "area": 20_000, "iscrowd": 0
        } for i in (1, 2)]
    }
    box = lambda i, score, shift=0: {
        "image_id": i, "category_id": 1, "bbox": [10 + shift, 10, 100, 200], "score": score
    }
    assert coco_score(truth, [box(1, .9), box(2, .8)]) == {"ap": pytest.approx(1), "ap50": pytest.approx(1)}
    assert coco_score(truth, [box(1, .9)])["ap50"] == pytest.approx(51 / 101)
    assert coco_score(truth, []) == {"ap": 0, "ap50": 0}
    # less sure than all truth is found
    assert coco_score(truth, [box(1, .9), box(2, .8), box(1, .1, 90)])["ap"] == pytest.approx(1)

"mammo/detector: from boxes to a detector, twice the same, kept or converted."
import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from mammo_nb.core.backends import EngineError, open_graph
from mammo_nb.core.files import sha256
from mammo_nb.core.runs import Run, StageError, read_manifest
from mammo_nb.core.yolox import create_yolox
from mammo_nb.mammo import detector
from mammo_nb.mammo.detector import (Frames, convert_detector, export_detector, found_in, read_views, torch_graph,
                                     train_detector)
from mammo_nb.mammo.drawing.frames import draw_frames
from mammo_nb.mammo.phantom import make_competition
from mammo_nb.mammo.reading.annotations import prepare_frames
from mammo_nb.mammo.reading.boxes import open_detector
from mammo_nb.mammo.reading.roi import from_pixels, read_yolo, write_yolo
from mammo_nb.mammo.recipes import Detector
from mammo_nb.mammo.system import system

SETTINGS = system.recipe("tiny").section(Detector)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    return draw_frames(folder, patients=4, held_back=.25, size=SETTINGS.size, seed=1, strangeness=.2), folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run with the detector of the smallest recipe."
    run = Run.create(tmp_path_factory.mktemp("run"), system, "tiny", mode="detector")
    detector.run_stage(run)
    return run


def weights(folder):
    return {p.name: sha256(p) for p in sorted(folder.glob("epoch_*.safetensors"))}


def test_two_trainings_and_one_with_loading_processes_end_with_the_same_bits(frames, tmp_path):
    histories, digests = {}, {}
    for name, change in {"a": {}, "b": {}, "c": {"workers": 2}, "d": {"seed": 43}}.items():
        settings = replace(SETTINGS, loop=replace(SETTINGS.loop, **change))
        histories[name] = train_detector(*frames, tmp_path / name, settings, {})
        digests[name] = weights(tmp_path / name)
    assert len(digests["a"]) == 2 and digests["a"] == digests["b"] == digests["c"] != digests["d"]
    assert histories["a"].equals(histories["b"]) and {"ap", "ap50", "loss", "lr"} <= set(histories["a"])


def test_interrupted_it_goes_on_to_the_same_bits(frames, tmp_path, monkeypatch):
    read, count = Frames.square, [0]
    def cut(self, index, seed):
        count[0] += seed >= 0
        if count[0] == 15:
            raise KeyboardInterrupt   # in the second epoch: l1, frozen_norm and the schedule must be taken up again
        return read(self, index, seed)
    settings = replace(SETTINGS, l1_epochs=1, frozen_norm=1)
    train_detector(*frames, tmp_path / "whole", settings, {})
    monkeypatch.setattr(Frames, "square", cut)
    with pytest.raises(KeyboardInterrupt):
        train_detector(*frames, tmp_path / "cut", settings, {})
    monkeypatch.undo()
    assert len(weights(tmp_path / "cut")) == 1
    train_detector(*frames, tmp_path / "cut", settings, {})
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_frame_and_its_mirror_have_the_same_breast(frames):
    boxes, folder = frames
    data = Frames(boxes, folder, SETTINGS.size)
    plain, box = data.square(0, -1)
    mirrored = next(data.square(0, seed) for seed in range(20) if not np.array_equal(data.square(0, seed)[0], plain))
    columns = round(
        min(1, SETTINGS.size / max(plain.shape)) * cv2.imread(str(folder / boxes["image"][0]),
                                                              cv2.IMREAD_GRAYSCALE).shape[1])
    assert np.array_equal(mirrored[0][:, :columns], plain[:, :columns][:, ::-1]) and mirrored[1] == pytest.approx(
        [columns - box[2], box[1], columns - box[0], box[3]])
    tensor, target = data[(0, -1)]
    assert tensor.shape == (3, SETTINGS.size, SETTINGS.size) and tensor.max() == 255
    assert target[0].tolist() == pytest.approx(
        [0, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]])


def test_the_stage_leaves_a_detector_of_its_best_epoch(run):
    graph = open_detector(run.path("weights/detector.onnx"))
    history = pd.read_csv(run.path("checkpoints/detector/history.csv"))
    assert graph.metadata["epoch"] == history["ap"].idxmax() and graph.metadata["demonstration"]
    assert graph.metadata["ap"] == pytest.approx(history["ap"].max())
    written = read_manifest(run.folder)["stages"]["detector"]["writes"]
    assert {"weights/detector.onnx", "weights/detector.json", "weights/yolox.safetensors"} < set(written)
    boxes, _ = read_yolo(run.path("processed/roi"), images=True)
    held = boxes[boxes["split"] == "val"]
    truth, found = found_in(held, read_views(held, run.path("processed/roi")), graph)
    assert len(truth["images"]) == 4 and all({"image_id", "category_id", "bbox", "score"} == set(f) for f in found)


def test_partial_keeps_a_detector_and_names_what_it_needs(run, tmp_path):
    kept = Run.create(tmp_path / "kept", system, "tiny", mode="partial", weights=run.path("weights/"))
    assert detector.run_stage(kept) is None
    for name in ("detector.onnx", "detector.json", "yolox.safetensors"):
        assert sha256(kept.path(f"weights/{name}")) == sha256(run.path(f"weights/{name}"))
    assert not kept.path("checkpoints/").exists()
    assert read_manifest(kept.folder)["stages"]["detector"]["results"]["kept"]
    with pytest.raises(StageError, match="partial needs detector.onnx, detector.json"):
        Run.create(tmp_path / "none", system, "tiny", mode="partial", weights=tmp_path)


def test_boxes_and_dicom_files_become_a_set(tmp_path):
    table = make_competition(tmp_path / "raw", patients=4, test_patients=1, frame=(320, 256), prevalence=.5, seed=3)
    table = table[table["split"] == "train"].assign(rows=320, columns=256)
    drawn = from_pixels(table, ["val" if p == table["patient_id"].iloc[0] else "train" for p in table["patient_id"]])
    lost, shared = drawn.iloc[-1], drawn.iloc[0]
    (tmp_path / "raw/train_images" / lost["patient_id"] / f"{lost['image_id']}.dcm").unlink()
    drawn.loc[drawn.index[1], "split"] = "train"                          # a patient of val in train as well
    write_yolo(tmp_path / "drawn", drawn)
    (tmp_path / "drawn/labels" / f"{drawn['image'].iloc[5].split('/')[1][:-4]}.txt").write_text("0 .5 .5 2 .5\n")
    settings = replace(SETTINGS, size=160)
    with pytest.raises(StageError, match="validate"):
        # all of its frames went to train
        prepare_frames(tmp_path / "drawn", tmp_path / "raw", tmp_path / "none", settings, 1)
    boxes = prepare_frames(tmp_path / "drawn", tmp_path / "raw", tmp_path / "set", replace(settings, faithful=True), 1)
    problems = pd.read_csv(tmp_path / "set/problems.csv").set_index("image")["problem"]
    assert "leaves the picture" in problems[drawn["image"].iloc[5]] and "FileNotFoundError" in problems[
        lost["image"]] and (problems == "its patient is in train and in val").sum() >= 3
    read, left = read_yolo(tmp_path / "set", images=True)
    assert len(boxes) == len(read) == len(drawn) - 2 and shared["image"] in set(read.loc[read["split"] == "val",
                                                                                         "image"])
    view = cv2.imread(str(tmp_path / "set" / shared["image"]), cv2.IMREAD_GRAYSCALE)
    b = read.set_index("image").loc[shared["image"]]
    inside = view[round((b.cy - b.h / 4) * 160):round((b.cy + b.h / 4) * 160),
                  round((b.cx - b.w / 4) * 128):round((b.cx + b.w / 4) * 128)]
    # bright where the breast is, whatever the file's polarity
    assert view.shape == (160, 128) and inside.mean() > 1.2 * view.mean()


def test_an_export_that_differs_is_not_kept(run, tmp_path, monkeypatch):
    def export(network, path, size, metadata):
        for name in ("detector.onnx", "detector.json"):
            shutil.copy(run.path(f"weights/{name}"), tmp_path / name)
    monkeypatch.setattr(detector, "export_yolox", export)
    squares = np.random.default_rng(0).integers(0, 256, (2, 1, SETTINGS.size, SETTINGS.size), np.uint8)
    with pytest.raises(EngineError, match="differs from torch by"):
        export_detector(create_yolox(seed=1), tmp_path / "detector.onnx", SETTINGS.size, {}, squares, .05)
    assert not (tmp_path / "detector.onnx").exists()


def test_a_published_checkpoint_becomes_a_detector(tmp_path):
    network = create_yolox(seed=5).train()
    with torch.no_grad():
        network(torch.rand(4, 3, 96, 96) * 255)
    torch.save(
        {
            "start_epoch": 400, "model": network.state_dict(), "optimizer": {"state": {}}, "best_ap": np.float64(.9626),
            "curr_ap": np.float64(.96)
        }, tmp_path / "yolox_nano_416_roi_torch.pth")
    assert convert_detector(tmp_path / "yolox_nano_416_roi_torch.pth", tmp_path / "trained", 96) < .05
    graph, squares = open_graph(tmp_path / "trained/detector.onnx"), np.random.default_rng(1).integers(
        0, 256, (2, 1, 96, 96), np.uint8)
    assert np.allclose(graph(squares),
                       torch_graph(network.eval(), 96)(squares), atol=.05) and not graph.metadata["demonstration"]
    assert json.loads((tmp_path / "trained/yolox.json").read_text())["source"] == "yolox_nano_416_roi_torch.pth"

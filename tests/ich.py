"""A bag of small drawn networks, for tests of head CT: two classifiers and three sequence models in two graphs."""
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid
from torch import nn, Generator

from mammo_nb.core.engines import export_checked, load_engine
from mammo_nb.core.files import read_json
from mammo_nb.core.networks import save_weights
from mammo_nb.ich.learning.graphs import Member, SeriesReader, encode_series, encoders, readers
from mammo_nb.ich.recipes import CLASSES

SIZE, WIDTH, NETWORK = 32, 8, "test_resnet"
CELLS = (("lstm", True), ("gru", True), ("lstm", False))
NAMES = ("windows_crop", "neighbours_crop")
VIEWS = [{"name": "windows", "channels": "windows", "crop": True},
         {"name": "neighbours", "channels": "neighbours", "crop": True}]


def wide(layer: nn.Module, std: float, seed: int):
    "Weights with which probabilities are spread over 0 to 1."
    nn.init.normal_(layer.weight, std=std, generator=Generator().manual_seed(seed))


def write_bag(folder: Path, classes=CLASSES, **entries) -> tuple:
    "Graphs and weights of a bag as the stage engines leaves them; returns both ensembles."
    members = [Member(NETWORK, len(classes), WIDTH, k) for k in range(2)]
    for k, member in enumerate(members):
        wide(member.last, 1., k)
        save_weights(member, folder / f"encoders/{VIEWS[k]['name']}_fold0_epoch0.safetensors", {})
    models = [SeriesReader(WIDTH, WIDTH, len(classes), k % 2, cell=c, deltas=d) for k, (c, d) in enumerate(CELLS)]
    for k, model in enumerate(models):
        wide(model.linear, 1., k)
        save_weights(model, folder / f"sequence/r{k}_fold0_epoch0_1.safetensors", {})
    both, three = encoders(members, NAMES, classes), readers(models, 2, WIDTH, classes)
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 256, (5, 3, SIZE, SIZE), dtype=np.uint8) for name in NAMES}
    own = {"classes": list(classes), "tta": 3, "demonstration": True, "members": {}, "faithful": False, "box": "slice",
           "given": False, "views": VIEWS} | entries
    common = {"mirrored": False, "classes": len(classes)}
    export_checked(both, folder / "encoder.onnx", pictures, {**own, "rebuild": {
        **common, "kind": "ich_member", "network": NETWORK, "embedding": WIDTH, "each": [{"place": 0}, {"place": 1}],
        "weights": [f"encoders/{v['name']}_fold0_epoch0.safetensors" for v in VIEWS]}}, 1e-4)
    features, _ = encode_series(load_engine(both), pictures, 3)
    digest = read_json(folder / "encoder.json")["weights_sha256"]
    export_checked(three, folder / "sequence.onnx", features, {**own, "encoder_weights_sha256": digest, "rebuild": {
        **common, "kind": "ich_series_reader", "embedding": WIDTH, "units": WIDTH,
        "each": [{"place": k % 2, "cell": c, "deltas": d} for k, (c, d) in enumerate(CELLS)],
        "weights": [f"sequence/r{k}_fold0_epoch0_1.safetensors" for k in range(len(CELLS))]}}, 1e-4)
    return both, three


def give_uids(path: Path):
    "Valid UIDs in place of the ids of the competition, which are none."
    ds = pydicom.dcmread(path)
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(ds, name, generate_uid(entropy_srcs=[str(ds[name].value)]))
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.save_as(path)


@pytest.fixture(scope="session")
def bag(tmp_path_factory):
    "The folder of a bag."
    folder = tmp_path_factory.mktemp("bag")
    write_bag(folder)
    return folder

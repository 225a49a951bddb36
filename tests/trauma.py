"""Two small drawn graphs for tests of abdominal trauma: a segmenter of bright pixels, and two classifiers."""
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mammo_nb.core.engines import export_checked
from mammo_nb.core.ensembles import Ensemble
from mammo_nb.core.files import read_json
from mammo_nb.core.sidecars import Tensor
from mammo_nb.trauma.recipes import ORGANS, SUBMITTED, Blocks

DEPTH, SIDE, SIZE = 16, 32, 32
ORGAN_NAMES = ("liver_injury", "liver_low", "liver_high", "bowel_injury")
COLUMNS = (*ORGAN_NAMES, "extravasation_injury")
SHARES = {c: .9 if c.endswith("healthy") else .1 if c.endswith("injury") else .05 for c in SUBMITTED}
SCALING = {"kind": "fitted", "factors": {"liver_low": 2., "liver_high": 4., "bowel_injury": 2.}, "shares": SHARES}


class Bright(nn.Module):
    "Calls middle grey levels liver and nothing else anything."
    def forward(self, volume):   # (n, depth, rows, columns), 0 to 1
        liver = 20 - 100 * (volume - .6).abs()
        return torch.stack([liver, *[0 * volume - 20] * (len(ORGANS) - 1)], 1)


class Judge(nn.Module):
    "Sees an injury where its picture is bright."
    def __init__(self, place: int, slope: float):
        super().__init__()
        self.place, self.slope = place, slope

    def forward(self, *inputs):   # uint8 (n, triplets, 3, size, size)
        bright = inputs[self.place].float().mean((2, 3, 4)) / 255
        return torch.stack([self.slope * bright - 1 - k / 4 for k in range(len(COLUMNS))], -1)


def write_weights(folder: Path, **entries):
    "Graphs as the stage engines leaves them: two networks of the model organs, one of the model extravasation."
    rng = np.random.default_rng(0)
    segmenter = Ensemble([Bright()], inputs=[Tensor("volume", "float32", ("n", "depth", "height", "width"), "NDHW")],
                         outputs=[Tensor("probabilities", "float32", ("n", 1, len(ORGANS), "depth", "height", "width"),
                                         "NFCDHW", "sigmoid", ORGANS)])
    windows = rng.random((2, DEPTH, SIDE, SIDE), np.float32)
    export_checked(segmenter, folder / "segmenter.onnx", windows, {
        "depth": DEPTH, "side": SIDE, "threshold": .5, "faithful": False}, 1e-4)
    names = [f"{kind}_{SIZE}" for kind in ("crop", "whole")]
    inputs = [Tensor(name, "uint8", ("n", "triplets", 3, "height", "width"), "NLCHW") for name in names]
    outputs = [Tensor("probabilities", "float32", ("n", 3, "triplets", len(COLUMNS)), "NFLC", "sigmoid", COLUMNS)]
    classifier = Ensemble([Judge(0, 4.), Judge(0, 6.), Judge(1, 5.)], inputs=inputs, outputs=outputs)
    pictures = {name: rng.integers(0, 256, (2, 6, 3, SIZE, SIZE), np.uint8) for name in names}
    organs = {"model": "organs", "columns": ORGAN_NAMES, "crop": True, "size": SIZE}
    blocks = asdict(Blocks(step=20, keep=18, cutoff=60))
    export_checked(classifier, folder / "classifier.onnx", pictures, {
        "window": "ours", "faithful": False, "demonstration": True, "blocks": blocks, "columns": COLUMNS,
        "scaling": SCALING, "members": [organs, organs, {
            "model": "extravasation", "columns": COLUMNS[-1:], "crop": False, "size": SIZE}],
        "segmenter_weights_sha256": read_json(folder / "segmenter.json")["weights_sha256"], **entries}, 1e-4)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    "The folder of the graphs."
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder)
    return folder

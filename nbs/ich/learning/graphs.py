# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Graphs
# > The bag as two graphs: all classifiers at once, and all sequence models at once.
#
# A prediction needs no training code. One graph takes pictures of slices and gives the features and the probabilities
# of all classifiers. The other takes the features of one series and gives the probabilities of all sequence models. A
# series goes in alone and without padding, so nothing but its own slices can change its prediction.

# %%
#| default_exp ich.learning.graphs

# %% tags=["parameters"]
architecture = "resnet10t"  # a timm network, a small one
size = 64                   # side of its input, pixels
width = 16                  # features of a slice

# %%
#| export
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mammo_nb.core.engines import Engine
from mammo_nb.core.ensembles import Ensemble, register_network
from mammo_nb.core.files import read_json
from mammo_nb.core.providers import process_engine
from mammo_nb.core.sidecars import EngineError, Tensor
from mammo_nb.core.submission import open_network
from mammo_nb.ich.learning.embeddings import VIEWS
from mammo_nb.ich.learning.encoder import Encoder
from mammo_nb.ich.learning.recurrent import Recurrent
from mammo_nb.ich.learning.slices import apply_view

# %%
#| hide
import tempfile

import pandas as pd

from mammo_nb.core.engines import export_checked, load_engine, parity

# %% [markdown]
# ## Classifiers
# A classifier takes all inputs of the graph and uses its own. It divides by 255 and normalises, so that the graph takes
# stored pictures.

# %%
#| export
class Member(Encoder):
    "A classifier of the bag: from the inputs of all to its features and logits."
    def __init__(self,
        network: str,        # timm architecture
        classes: int,
        embedding: int = 0,  # width of the layer before the last one; 0: none
        place: int = 0,      # which input it uses
    ):
        super().__init__(network, classes, embedding)
        self.place = place
        for name, values in self.normalization.items():
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self,
        *inputs: torch.Tensor,  # uint8 (n, 3, size, size) each
    ) -> tuple[torch.Tensor, torch.Tensor]:  # features (n, width), logits (n, classes)
        features = self.features((inputs[self.place].float() / 255 - self.mean) / self.std)
        return features, self.classify(features)

register_network("ich_member")(Member)

def encoders(
    members: Sequence[Member],   # all with the same number of features
    names: Sequence[str],        # of the inputs
    classes: Sequence[str],
) -> Ensemble:
    "The classifiers of the bag as one module."
    count, width = len(members), {m.width for m in members}
    if len(width) > 1:
        raise EngineError(f"The classifiers have {sorted(width)} features; a bag needs the same number for all.")
    inputs = [Tensor(name, "uint8", ("n", 3, "height", "width"), "NCHW") for name in names]
    outputs = [Tensor("embeddings", "float32", ("n", count, *width), "NFE"),
               Tensor("probabilities", "float32", ("n", count, len(classes)), "NFC", "sigmoid", tuple(classes))]
    return Ensemble(members, inputs=inputs, outputs=outputs)

# %% [markdown]
# ## Sequence models
# A sequence model reads the features of one classifier.

# %%
#| export
class SeriesReader(Recurrent):
    "A sequence model of the bag: from the features of all classifiers to its own logits."
    def __init__(self,
        embedding: int,      # features of a slice
        units: int,
        classes: int,
        place: int = 0,      # which classifier it reads
        **how,               # cell, deltas of `Recurrent`
    ):
        super().__init__(embedding, units, classes, **how)
        self.place = place

    def forward(self,
        embeddings: torch.Tensor,  # float (length, classifiers, features) of one series in its order
    ) -> torch.Tensor:             # (length, classes) logits
        return self.read(embeddings[None, :, self.place])[0]

register_network("ich_series_reader")(SeriesReader)

def readers(
    members: Sequence[SeriesReader],
    count: int,               # number of classifiers
    width: int,               # features of a slice
    classes: Sequence[str],
) -> Ensemble:
    "The sequence models of the bag as one module."
    inputs = [Tensor("embeddings", "float32", ("length", count, width), "LKE")]
    outputs = [Tensor("probabilities", "float32", ("length", len(members), len(classes)), "LFC", "sigmoid",
                      tuple(classes))]
    return Ensemble(members, inputs=inputs, outputs=outputs)

# %%
names, classes = ["windows_crop", "neighbours_crop"], ["subdural", "any"]
both = encoders([Member(architecture, 2, width, place=k) for k in range(2)], names, classes)
for member in both.models:   # with initial weights every probability is 0.5
    nn.init.normal_(member.last.weight, std=20 / width, generator=torch.Generator().manual_seed(member.place))
cells = [("lstm", True), ("gru", True), ("lstm", False)]
models = [SeriesReader(width, width, 2, k % 2, cell=cell, deltas=deltas) for k, (cell, deltas) in enumerate(cells)]
for model in models:
    nn.init.normal_(model.linear.weight, std=2, generator=torch.Generator().manual_seed(model.place))
three = readers(models, 2, width, classes)
folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
pictures = {name: rng.integers(0, 256, (5, 3, size, size), dtype=np.uint8) for name in names}
difference = export_checked(both, folder / "encoder.onnx", pictures, {}, 1e-4)
embeddings = load_engine(folder / "encoder.onnx")(pictures)["embeddings"]
export_checked(three, folder / "sequence.onnx", embeddings, {}, 1e-4)
for length in (1, 2, 5):   # a series may have any length
    assert parity(load_engine(three), load_engine(folder / "sequence.onnx"), embeddings[:length]) < 1e-4
print(difference, load_engine(folder / "sequence.onnx"))

# %% [markdown]
# ## The bag
# The two graphs belong together: features of other classifiers would be read without an error. So the JSON of the
# sequence models holds the digest of the classifiers' weights.

# %%
#| export
@dataclass(frozen=True)
class Bag:
    "Both engines of the bag; what a submission asks of an engine is answered for both."
    encoder: Engine
    sequence: Engine

    @property
    def name(self) -> str:       # what computes
        return " and ".join(dict.fromkeys((self.encoder.name, self.sequence.name)))

    @property
    def metadata(self) -> dict:  # encoder.json
        return self.encoder.metadata

    @property
    def precision(self) -> str:
        return " and ".join(dict.fromkeys((self.encoder.precision, self.sequence.precision)))

    @property
    def refused(self) -> tuple:  # providers that were not taken, and why
        return (*self.encoder.refused, *self.sequence.refused)

BOTH = ("encoder", "sequence")

def check_bag(
    folder: Path,   # has encoder.json and sequence.json
) -> dict:          # encoder.json
    "Raise EngineError unless both graphs are there and belong together."
    folder = Path(folder)
    for name in BOTH:
        for ending in (".onnx", ".json"):
            if not (folder / f"{name}{ending}").is_file():
                raise EngineError(f"{folder} has no {name}{ending}: copy encoder.* and sequence.* of one run.")
    encoder, sequence = (read_json(folder / f"{name}.json") for name in BOTH)
    if sequence.get("encoder_weights_sha256") != encoder.get("weights_sha256"):
        raise EngineError(f"{folder}: sequence.onnx was trained on the features of other classifiers than those of "
                          "encoder.onnx. Copy encoder.* and sequence.* of one run.")
    return encoder

def open_bag(
    folder: Path,            # has encoder.* and sequence.*
    name: str = "encoder",   # not used: both are opened
    device: str = "auto",    # as in `open_network`
    backend: str = "auto",   # as in `open_network`
) -> Bag:
    "Open both engines. Raises EngineError."
    check_bag(folder)
    return Bag(*(open_network(folder, engine, device, backend) for engine in BOTH))

@lru_cache(maxsize=2)
def process_bag(
    folder: str,           # has encoder.* and sequence.*
    engine: str = "auto",  # as in `process_engine`
    device: str = "cpu",
) -> Bag:
    "Open both graphs once in this process, on one thread, since the processes of a run share the cores."
    check_bag(Path(folder))
    return Bag(*(process_engine(str(Path(folder) / f"{name}.onnx"), engine, device) for name in BOTH))

# %% [markdown]
# ## A series
# The features of the views are averaged before the sequence models read them, as in training. The probabilities of the
# sequence models are averaged after.

# %%
#| export
def encode_series(
    encoder: Engine,
    inputs: dict[str, np.ndarray],  # name -> uint8 (n, 3, size, size)
    views: int = 1,                 # how many of VIEWS are averaged
    batch: int = 16,                # slices in a pass
) -> tuple[np.ndarray, np.ndarray]: # embeddings float32 (n, classifiers, features), probabilities (n, classes)
    "Features of a series, and the mean probabilities of the classifiers."
    features, probabilities = [], []
    for start in range(0, len(next(iter(inputs.values()))), batch):
        found = []
        for view in VIEWS[:views]:
            part = {name: apply_view(torch.from_numpy(x[start:start + batch]), view) for name, x in inputs.items()}
            found.append(encoder({name: x.contiguous().numpy() for name, x in part.items()}))
        features.append(np.mean([f["embeddings"] for f in found], axis=0, dtype=np.float32))
        probabilities.append(np.mean([f["probabilities"] for f in found], axis=(0, 2)))
    return np.concatenate(features), np.concatenate(probabilities)

def predict_series(
    bag: Bag,
    inputs: dict[str, np.ndarray],  # name -> uint8 (n, 3, size, size)
    views: int = 1,                 # how many of VIEWS are averaged
) -> tuple[np.ndarray, np.ndarray]: # (n, classes) of the sequence models and (n, classes) of the classifiers
    "The probabilities of the slices of one series."
    embeddings, alone = encode_series(bag.encoder, inputs, views)
    return bag.sequence(embeddings).mean(1), alone

# %% [markdown]
# ## What came out
# The batch in which a slice is classified changes nothing, and its neighbours do.

# %%
bag = Bag(load_engine(folder / "encoder.onnx"), load_engine(folder / "sequence.onnx"))
together, alone = predict_series(bag, pictures, 3)
one_by_one = encode_series(bag.encoder, pictures, 3, batch=1)[0]
assert np.abs(one_by_one - encode_series(bag.encoder, pictures, 3)[0]).max() < 1e-4
assert np.abs(predict_series(bag, {k: v[:2] for k, v in pictures.items()}, 3)[0] - together[:2]).max() > 1e-4
pd.DataFrame(np.hstack([alone, together]), columns=[f"{c}, {w}" for w in ("classifiers", "bag") for c in classes])

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

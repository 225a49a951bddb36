# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Graphs
# > The ensemble as two graphs: the 3D network, and all networks that read blocks.
#
# A prediction needs no training code. One graph finds the organs in a window of slices. The other takes the pictures
# of blocks and gives, for each of its networks, the probabilities of each slice.

# %%
#| default_exp trauma.learning.graphs

# %% tags=["parameters"]
backbone, size, triplets = "resnet10t", 32, 4   # a small timm network, side of its input in pixels, slices of a block

# %%
#| export
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from mammo_nb.core.engines import Engine
from mammo_nb.core.ensembles import Ensemble, register_network
from mammo_nb.core.sidecars import EngineError, Tensor
from mammo_nb.trauma.learning.classifier import CoatClassifier, TimmClassifier, make_classifier
from mammo_nb.trauma.learning.unet3d import Segmenter, make_segmenter
from mammo_nb.trauma.recipes import COLUMNS, ORGANS, Model

# %%
#| hide
import tempfile
from pathlib import Path

from mammo_nb.core.engines import export_checked, load_engine

# %% [markdown]
# ## Organs
# The window is given in floats, as the training saw it: small slices are interpolated, so they have no whole levels.

# %%
#| export
def organ_graph(
    network: Segmenter,
    depth: int,          # slices of a window
    size: int,           # side of a slice, pixels
) -> Ensemble:           # volume float32 (n, depth, size, size), 0 to 1 -> organs (n, 1, organs, depth, size, size)
    "The 3D network as a module to export."
    inputs = [Tensor("volume", "float32", ("n", depth, size, size), "NDHW")]
    outputs = [Tensor("organs", "float32", ("n", 1, len(ORGANS), depth, size, size), "NFCDHW", "sigmoid", ORGANS)]
    return Ensemble([network], inputs=inputs, outputs=outputs)

# %%
scratch = Path(tempfile.mkdtemp())
network = make_segmenter("resnet10t", (16, 8, 8, 8)).eval()
window = np.random.default_rng(0).random((2, 16, 32, 32)).astype(np.float32)
export_checked(organ_graph(network, 16, 32), scratch / "segmenter.onnx", {"volume": window}, {}, 1e-4)
found = load_engine(scratch / "segmenter.onnx")({"volume": window})
assert found.shape == (2, 1, len(ORGANS), 16, 32, 32)

# %% [markdown]
# ## Injuries
# Networks with the same crop and size share an input. Each gives all of COLUMNS; those that it does not predict are
# filled, and the JSON says which it predicts.

# %%
#| export
FILLED = -30.   # logit of a column that a network does not predict

def view_name(
    model: Model,
) -> str:          # such as cropped_384
    "Name of the input of a model: what is cut out, and its size."
    return f"{'cropped' if model.crop else 'whole'}_{model.size}"

class _Member:
    "A network of the ensemble: from the inputs of all to the logits of all columns."
    def forward(self,
        *inputs: torch.Tensor,   # uint8 (n, triplets, 3, size, size) each
    ) -> torch.Tensor:           # (n, triplets, len(COLUMNS)) logits
        own = super().forward({"image": inputs[self.place].float() / 255})["labels"]
        filled = torch.full_like(own[..., :1], FILLED)
        return torch.cat([own[..., self.columns.index(c)][..., None] if c in self.columns else filled
                          for c in COLUMNS], -1)

class _CoatMember(_Member, CoatClassifier):
    pass

class _TimmMember(_Member, TimmClassifier):
    pass

@register_network("trauma_member")
def make_member(
    backbone: str,           # a timm name
    columns: Sequence[str],  # of COLUMNS, in the order of the outputs
    place: int,              # which input it reads
    **others,                # of `make_classifier`
):
    "Make a network of the ensemble, without its weights."
    network = make_classifier(backbone, len(columns), kinds=(_CoatMember, _TimmMember), **others)
    network.columns, network.place = list(columns), place
    return network

def member_options(
    model: Model,
    views: Sequence[str],   # names of the inputs
) -> dict:                  # arguments of `make_member`; they can be written as JSON
    "How to make the network of a model."
    return {"backbone": model.backbone, "columns": model.columns.split(), "place": views.index(view_name(model)),
            "rnn": model.rnn, "hidden": model.hidden, "dropout": model.dropout, "auxiliary": model.auxiliary,
            "masks": len(model.masks.split()), "size": model.size}

def injury_graph(
    members: Sequence,         # from `make_member`
    views: Sequence[str],      # names of the inputs
    sizes: Sequence[int],      # their sides, pixels
    triplets: int,             # slices of a block
) -> Ensemble:
    "The networks that read blocks as a module to export."
    inputs = [Tensor(name, "uint8", ("n", triplets, 3, size, size), "NLCHW") for name, size in zip(views, sizes)]
    outputs = [Tensor("probabilities", "float32", ("n", len(members), triplets, len(COLUMNS)), "NFLC", "sigmoid",
                      COLUMNS)]
    return Ensemble(members, inputs=inputs, outputs=outputs)

# %%
models = [Model(backbone=backbone, size=size, hidden=8, auxiliary="none", columns="liver_injury bowel_injury"),
          Model("e", backbone, rnn="lstm", size=size, hidden=8, crop=False, auxiliary="none",
                columns="bowel_injury extravasation_injury")]
views = [view_name(m) for m in models]
members = [make_member(**member_options(m, views), seed=k) for k, m in enumerate(models)]
graph = injury_graph(members, views, [size] * 2, triplets)
rng = np.random.default_rng(0)
pictures = {v: rng.integers(0, 256, (3, triplets, 3, size, size), dtype=np.uint8) for v in views}
difference = export_checked(graph, scratch / "classifier.onnx", pictures, {}, 1e-4)
engine = load_engine(scratch / "classifier.onnx")
assert engine(pictures).shape == (3, 2, triplets, len(COLUMNS))
difference

# %% [markdown]
# ## A patient
# First the folds of a model are averaged slice by slice. A patient has the largest value over all slices, blocks and
# series. The mean over models comes last.

# %%
#| export
@dataclass(frozen=True)
class Member:
    "A network of the ensemble, as classifier.json lists it."
    model: str
    fold: int
    columns: tuple[str, ...]

def members_of(
    metadata: dict,     # classifier.json
) -> list[Member]:
    "The networks of a graph in their order. Raises EngineError."
    try:
        return [Member(m["model"], m["fold"], tuple(m["columns"])) for m in metadata["members"]]
    except (KeyError, TypeError) as e:
        raise EngineError("classifier.json does not list its members. Run the stage engines again.") from e

def slice_probabilities(
    engine: Engine,
    pictures: Mapping[str, np.ndarray],   # view -> uint8 (blocks, triplets, 3, size, size) of one series
    members: Sequence[Member],
    batch: int = 4,                       # blocks in a pass
) -> dict[str, np.ndarray]:               # model -> (blocks, triplets, its columns)
    "Probabilities of each slice of a series, averaged over the folds of each model."
    count = len(next(iter(pictures.values())))
    found = np.concatenate([engine({name: x[s:s + batch] for name, x in pictures.items()})
                            for s in range(0, count, batch)])
    made = {}
    for name in dict.fromkeys(m.model for m in members):
        own = [k for k, m in enumerate(members) if m.model == name]
        columns = [COLUMNS.index(c) for c in members[own[0]].columns]
        made[name] = found[:, own].mean(1)[..., columns]
    return made

def patient_probabilities(
    series: Sequence[Mapping[str, np.ndarray]],  # from `slice_probabilities`, of all series of a patient
    members: Sequence[Member],
) -> pd.Series:                                  # by name of COLUMNS, as far as a model predicts it
    "The probabilities of a patient."
    columns = {m.model: m.columns for m in members}
    highest = [pd.Series(np.max([one[name].max((0, 1)) for one in series], axis=0), index=own)
               for name, own in columns.items()]
    return pd.concat(highest).groupby(level=0, sort=False).mean()

# %% [markdown]
# ## What came out
# Two models, the first with two folds; the bowel is predicted by both.

# %%
listed = members_of({"members": [{"model": m.name, "fold": 0, "columns": m.columns.split()} for m in models]})
found = slice_probabilities(engine, pictures, listed, batch=2)
patient = patient_probabilities([found, {k: v / 2 for k, v in found.items()}], listed)
assert found["organs"].shape == (3, triplets, 2) and patient.index.tolist() == [
    "liver_injury", "bowel_injury", "extravasation_injury"]
by_hand = (found["organs"][..., 1].max() + found["e"][..., 0].max()) / 2
assert np.isclose(patient["bowel_injury"], by_hand)
patient.to_frame("patient")

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
from collections.abc import Sequence

import torch

from mammo_nb.core.ensembles import Ensemble, register_network
from mammo_nb.core.sidecars import Tensor
from mammo_nb.trauma.learning.classifier import CoatClassifier, TimmClassifier, make_classifier
from mammo_nb.trauma.learning.inference import input_name
from mammo_nb.trauma.learning.segmenter import Segmenter, make_segmenter
from mammo_nb.trauma.recipes import COLUMNS, ORGANS, Model

# %%
#| hide
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

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
    place = views.index(input_name(model.crop, model.size))
    return {"backbone": model.backbone, "columns": model.columns.split(), "place": place, "rnn": model.rnn,
            "hidden": model.hidden, "dropout": model.dropout, "auxiliary": model.auxiliary,
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
views = [input_name(m.crop, m.size) for m in models]
members = [make_member(**member_options(m, views), seed=k) for k, m in enumerate(models)]
graph = injury_graph(members, views, [size] * 2, triplets)
rng = np.random.default_rng(0)
pictures = {v: rng.integers(0, 256, (3, triplets, 3, size, size), dtype=np.uint8) for v in views}
difference = export_checked(graph, scratch / "classifier.onnx", pictures, {}, 1e-4)
engine = load_engine(scratch / "classifier.onnx")
assert engine(pictures).shape == (3, 2, triplets, len(COLUMNS))
difference

# %% [markdown]
# ## What came out
# A network gives in the graph what it gives alone, at the columns that it predicts, and zero at the others.

# %%
with torch.no_grad():
    alone = members[1].labels(members[1].maps(torch.from_numpy(pictures[views[1]]).flatten(0, 1).float() / 255)[-1], 3)
found = pd.DataFrame(engine(pictures)[0, 1], columns=COLUMNS)
both = found[models[1].columns.split()].to_numpy()
assert np.allclose(both, torch.sigmoid(alone[0]), atol=1e-5)
assert np.allclose(found.drop(columns=models[1].columns.split()), 0)
found.round(3)

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

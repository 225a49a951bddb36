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
# # Encoder
# > A classifier of slices whose features before the last layer are kept.
#
# The sequence model does not read pictures. It reads what a classifier has computed just before its last layer: the
# mean of the feature maps over the picture, one vector for each slice. Such a classifier is called an encoder here.

# %%
#| default_exp ich.learning.encoder

# %% tags=["parameters"]
architecture = "resnet10t"  # a timm network, a small one
size = 64                   # side of its input, pixels
embedding = 16              # width of the layer before the last one

# %%
#| export
from pathlib import Path

import torch
from torch import nn

from mammo_nb.core.ensembles import register_network
from mammo_nb.core.networks import WeightsError, create_network, load_state, read_state
from mammo_nb.ich.reading.squares import MEANS, STDS

# %%
#| hide
import tempfile

import pandas as pd

from mammo_nb.core.ensembles import make_network
from mammo_nb.core.networks import save_weights

# %% [markdown]
# The original keeps all 2048 features of a ResNeXt-101, and its sequence model has as many units. A small data set
# needs fewer. `embedding` puts a layer between the features and the last layer, and its outputs are the features that
# are kept. They are never negative, like those of the network itself.
#
# Slices are normalised with the mean and the standard deviation of slices, whatever network and weights are used.

# %%
#| export
# mean and standard deviation of the three windows, on the scale 0..1, as in the original
NORMALIZATION = {"mean": MEANS, "std": STDS}
_WORDS = ("none", "imagenet", "imagenet_lite")  # initial weights that are not files

class Encoder(nn.Module):
    "A timm network that classifies slices and gives their features."
    def __init__(self,
        network: str,           # timm architecture
        classes: int,           # number of outputs
        embedding: int = 0,     # width of a linear layer before the last one; 0: none, the features of the network
        weights: str = "none",  # none, imagenet, imagenet:FILE, imagenet_lite, or a file for exactly this encoder
        seed: int = 0,          # of the layers without initial weights
        freeze: int = 0,        # number of parameters of the network, from the first one on, that are not trained
        dropout: float = 0.0,   # before each of the last layers, in training
    ):
        super().__init__()
        file = weights not in _WORDS and not weights.startswith("imagenet:")
        self.network = create_network(network, weights="none" if file else weights, num_classes=classes, seed=seed,
                                      freeze=freeze)
        self.dropout = nn.Dropout(dropout)
        self.normalization = dict(NORMALIZATION)
        self.embedding = embedding
        self.width = embedding or self.network.head_hidden_size  # number of features
        if embedding:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.projection = nn.Linear(self.network.head_hidden_size, embedding)
                self.network.reset_classifier(0)
                self.last = nn.Linear(embedding, classes)
        if file:
            load_encoder(self, Path(weights))

    def features(self,
        x: torch.Tensor,   # float (n, 3, height, width), normalised
    ) -> torch.Tensor:     # (n, width)
        "Mean of the feature maps, or the outputs of the layer before the last one."
        pooled = self.network.forward_head(self.network.forward_features(x), pre_logits=True)
        return self.projection(self.dropout(pooled)).relu() if self.embedding else pooled

    @property
    def last_layer(self) -> nn.Linear:
        "From the features to the logits."
        return self.last if self.embedding else self.network.get_classifier()

    def classify(self,
        features: torch.Tensor,   # (..., width)
    ) -> torch.Tensor:            # (..., classes) logits
        "The last layer."
        return self.last_layer(self.dropout(features))

    def forward(self,
        x: torch.Tensor,   # float (n, 3, height, width), normalised
    ) -> torch.Tensor:     # (n, classes) logits
        return self.classify(self.features(x))

# %% [markdown]
# The features and the logits belong together: the last layer on the features gives the logits. Without `embedding` the
# encoder computes what the timm network computes.

# %%
whole, small = Encoder(architecture, 6).eval(), Encoder(architecture, 6, embedding).eval()
noise = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    assert torch.equal(whole(noise), whole.network(noise))
    for encoder in (whole, small):
        assert encoder.features(noise).shape == (2, encoder.width) and encoder(noise).shape == (2, 6)
        assert torch.equal(encoder.classify(encoder.features(noise)), encoder(noise))
pd.DataFrame([{"features": e.width, "parameters": sum(p.numel() for p in e.parameters())} for e in (whole, small)])

# %% [markdown]
# ## Weights
# A file that a training of this project wrote fits the encoder by its names. A published file has the names of the
# network alone, with or without `module.` before them, and fits an encoder without an additional layer. Both are
# strict: every tensor must fit.

# %%
#| export
def load_encoder(
    encoder: Encoder,
    path: Path,         # .safetensors of a training, or a published file with the names of the network
) -> None:
    "Fill an encoder from a file, all of it or nothing, without running code from the file. Raises WeightsError."
    state, _ = read_state(path)
    if any(name.startswith("network.") for name in state):
        load_state(encoder, state, path)
    elif encoder.embedding:
        raise WeightsError(path, f"has no layer of {encoder.embedding} features before the last one",
                           "Set classify.embedding to 0.")
    else:
        load_state(encoder.network, state, path)

@register_network("ich_encoder")
def make_encoder(
    network: str,         # timm architecture
    classes: int,
    embedding: int = 0,   # width of the layer before the last one; 0: none
) -> Encoder:
    "Make an encoder with random weights, to be filled from a file."
    return Encoder(network, classes, embedding)

# %%
folder = Path(tempfile.mkdtemp())
for name, encoder in (("whole", whole), ("small", small)):
    save_weights(encoder, folder / f"{name}.safetensors", {})
    about = {"kind": "ich_encoder", "network": architecture, "classes": 6, "embedding": encoder.embedding}
    again = make_network(about).eval()
    load_encoder(again, folder / f"{name}.safetensors")
    with torch.no_grad():
        assert torch.equal(again(noise), encoder(noise))
torch.save({f"module.{k}": v for k, v in whole.network.state_dict().items()}, folder / "published.bin")
again = Encoder(architecture, 6, weights=str(folder / "published.bin")).eval()
with torch.no_grad():
    assert torch.equal(again(noise), whole(noise))
for wrong in (lambda: load_encoder(small, folder / "published.bin"),
              lambda: Encoder(architecture, 5, weights=str(folder / "published.bin"))):
    try:
        wrong()
    except WeightsError as e:
        print(e)

# %% [markdown]
# ## What came out
# Names and numbers of features of some networks; the first one is the original's.

# %%
rows = []
for name in ("resnext101_32x8d", "tf_efficientnet_lite0", "resnet10t"):
    with torch.device("meta"):
        encoder = Encoder(name, 6)
    rows.append({"network": name, "features": encoder.width,
                 "parameters": sum(p.numel() for p in encoder.parameters())})
assert rows[0] == {"network": "resnext101_32x8d", "features": 2048, "parameters": 86754630}
pd.DataFrame(rows)

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

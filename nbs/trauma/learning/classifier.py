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
# # Classifier
# > From a block of slices to the injuries in each of them: a 2D backbone, then a recurrent layer.
#
# A radiologist scrolls through a series. Here a backbone sees each slice with its two neighbours as the three channels
# of a picture, and a recurrent layer connects what it has seen in both directions. In training a decoder also draws the
# organs. The backbone is any network of timm; with those of the twelve published configurations the names of all
# parameters are those of the published weights.

# %%
#| default_exp trauma.learning.classifier

# %% tags=["parameters"]
backbone, size, triplets = "resnet10t", 64, 6   # a small timm network, side of its input in pixels, slices of a block

# %%
#| export
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from timm.models import EfficientNet
from torch import nn

from mammo_nb.core.networks import WeightsError, imagenet_lite_state, imagenet_state, load_weights
from mammo_nb.core.recipes import RecipeError
from mammo_nb.trauma.learning.decoders import Pyramid, ShuffleBlock, ShuffleHead, Unet, enlarged, mask_head

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd

# %% [markdown]
# ## What all of them do
# The triplets of all blocks of a batch go through the backbone at once. The mean of the last map is the feature vector
# of a slice, and the recurrent layer reads these vectors block by block. Numbers that are not finite become zero at
# both ends, as in the original: a broken pixel must not spoil a patient.

# %%
#| export
RNNS = {"gru": nn.GRU, "lstm": nn.LSTM}

def finite(
    x: torch.Tensor,
) -> torch.Tensor:   # same shape
    "Zero in place of numbers that are not finite."
    return torch.nan_to_num(x, nan=0., posinf=0., neginf=0.)

class Classifier(nn.Module):
    "Backbone, recurrent layer and auxiliary decoder; subclasses say how the backbone and its decoder look."
    reads = "lstm"       # name of the recurrent layer
    auxiliary = "none"

    def build(self,
        features: int,            # of a slice
        channels: Sequence[int],  # of the backbone's maps
        outputs: int, masks: int, rnn: str, hidden: int, dropout: float, auxiliary: str, unused: Sequence[str]):
        "Make the layers behind the backbone."
        self.auxiliary = auxiliary
        if rnn != "none":
            setattr(self, self.reads, RNNS[rnn](features, hidden, batch_first=True, bidirectional=True))
        self.recurrent = rnn != "none"
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * hidden if self.recurrent else features, outputs))
        if "cnn" in (auxiliary, *unused):
            self.mask_head_3, self.mask_head_4 = mask_head(channels[-2], masks), mask_head(channels[-1], masks)
        if "unet" in (auxiliary, *unused):
            self.build_unet(channels, masks)

    def pooled(self,
        last: torch.Tensor,   # (n, channels, rows, columns), the last map
    ) -> torch.Tensor:        # (n, features)
        "Features of slices."
        return last.mean((2, 3))

    def masks(self,
        maps: Sequence[torch.Tensor],  # of the backbone
        size: tuple[int, int],         # rows, columns of the picture
    ) -> tuple[torch.Tensor, ...]:     # logits (n, masks, rows, columns); two of them for `cnn`
        "What the auxiliary decoder draws."
        if self.auxiliary == "unet":
            return (enlarged(self.unet(maps), size),)
        if self.auxiliary == "cnn":
            return enlarged(self.mask_head_4(maps[-1]), size), enlarged(self.mask_head_3(maps[-2]), size)
        return ()

    def labels(self,
        last: torch.Tensor,   # (n triplets, channels, rows, columns), the last map
        blocks: int,          # n
    ) -> torch.Tensor:        # logits (n, triplets, outputs)
        "The grades of each slice."
        return self.graded(self.pooled(last).unflatten(0, (blocks, -1)))

    def graded(self,
        features: torch.Tensor,   # (n, triplets, features), from `pooled`
    ) -> torch.Tensor:            # logits (n, triplets, outputs)
        "The grades of each slice, given the features of all slices of its block."
        if self.recurrent:
            features = getattr(self, self.reads)(features)[0]
        return finite(self.head(features))

    def forward(self,
        inputs: dict[str, torch.Tensor],  # image: float (n, triplets, 3, rows, columns), 0 to 1
    ) -> dict:                            # labels: logits (n, triplets, outputs); in training also masks
        "Logits of the labels, and in training the logits of the masks."
        image = finite(inputs["image"])
        maps = self.maps(image.flatten(0, 1))
        outputs = {"labels": self.labels(maps[-1], image.shape[0])}
        if self.training and self.auxiliary != "none":
            outputs["masks"] = self.masks(maps, image.shape[-2:])
        return outputs

# %% [markdown]
# ## CoaT
# The backbone of most of the published configurations mixes convolution and attention. It has the stride 4 at its first
# map, so its decoder ends with two steps of enlargement. Each published file also holds two LSTM layers, and most of
# them a second decoder, that no output depends on. `unused` makes them, so that such a file fits; they are not trained.

# %%
#| export
class CoatClassifier(Classifier):
    "A classifier with a CoaT backbone."
    reads = "lstm2"   # whatever kind it is

    @property
    def feature_info(self) -> list[dict]:
        "The last block of each stage, as `core/77_explanations` asks for it; timm names lists, which are never called."
        return [{"module": f"enc.serial_blocks{k}.{len(getattr(self.enc, f'serial_blocks{k}')) - 1}",
                 "reduction": 2 ** (k + 1)} for k in (1, 2, 3, 4)]

    def __init__(self,
        backbone: str,      # coat_lite_medium or coat_lite_small, with or without a tag
        size: int,          # side of the pictures, pixels
        unused: Sequence[str] = (),  # parts that only exist: lstm, cnn, unet
        **others,           # of `Classifier.build`
    ):
        super().__init__()
        self.enc = timm.create_model(backbone, img_size=size, return_interm_layers=True,
                                     out_features=[f"x{k}_nocls" for k in (1, 2, 3, 4)])
        channels = [getattr(self.enc, f"patch_embed{k}").proj.out_channels for k in (1, 2, 3, 4)]
        self.build(channels[-1], channels, unused=unused, **others)
        if "lstm" in unused:
            self.lstm = nn.ModuleList([nn.ModuleDict({"lstm": nn.LSTM(c, c)}) for c in channels[2:]])
        for name, parameter in self.named_parameters():
            idle = name.startswith("lstm.") or ("cnn" in unused and name.startswith("mask_head")) or (
                "unet" in unused and name.startswith(("dec", "fpn", "final")))
            parameter.requires_grad_(not idle)

    def build_unet(self, channels: Sequence[int], masks: int):
        "The decoder that shuffles."
        self.dec4 = ShuffleBlock(channels[3], channels[2], 384)
        self.dec3 = ShuffleBlock(384, channels[1], 192)
        self.dec2 = ShuffleBlock(192, channels[0], 96)
        self.fpn = Pyramid((channels[3], 384, 192), 32)
        self.final_conv = nn.Sequential(ShuffleHead(96 + 3 * 32, masks))

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        "Maps at a quarter, 1/8, 1/16 and 1/32 of the picture's side."
        return list(self.enc(x).values())

    def unet(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        "Masks at half of the picture's side."
        one, two, three, four = maps
        fourth = self.dec4(four, three)
        third = self.dec3(fourth, two)
        return self.final_conv(self.fpn((four, fourth, third), self.dec2(third, one)))

# %% [markdown]
# ## Any other network of timm
# The EfficientNets have a convolution behind the last map that widens it. Their decoder is the plain U-Net. A recipe
# may leave out the recurrent layer; each slice then stands for itself.

# %%
#| export
class _Features(nn.Module):
    "The maps of a timm network."
    def __init__(self, backbone: str):
        super().__init__()
        self.model = timm.create_model(backbone, features_only=True)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.model(x)

class TimmClassifier(Classifier):
    "A classifier with any backbone of timm that gives maps."
    def __init__(self,
        backbone: str,   # a timm name
        size: int,       # side of the pictures, pixels; not used
        **others,        # of `Classifier.build`
    ):
        super().__init__()
        self.encoder = _Features(backbone)
        channels = self.encoder.model.feature_info.channels()
        features = channels[-1]
        whole = timm.create_model(backbone, num_classes=0)
        if isinstance(whole, EfficientNet):
            self.conv_head, self.bn2, features = whole.conv_head, whole.bn2, whole.conv_head.out_channels
        self.build(features, channels, **others)

    def build_unet(self, channels: Sequence[int], masks: int):
        "The plain U-Net, one block for each map."
        self.decoder = Unet(channels, (256, 128, 64, 32, 16)[-len(channels):])
        self.segmentation_head = nn.Sequential(nn.Conv2d(16, masks, 3, padding=1))

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        "Maps at a half or a quarter, and so on to 1/32 of the picture's side."
        return self.encoder(x)

    def pooled(self, last: torch.Tensor) -> torch.Tensor:
        "Features of slices."
        return super().pooled(self.bn2(self.conv_head(last)) if hasattr(self, "conv_head") else last)

    def unet(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        "Masks at the size of the picture, or at half of it."
        return self.segmentation_head(self.decoder(maps))

# %% [markdown]
# ## One call makes a network
# Initial weights of the backbone are those that timm publishes, those of an installed package, or none. A file of
# weights has to fit the whole network.

# %%
#| export
def _backbone_state(network: Classifier, backbone: str, weights: str) -> dict[str, torch.Tensor]:
    "Published ImageNet weights under the names of the network. Raises WeightsError where they do not fit."
    word, _, file = weights.partition(":")
    state = imagenet_lite_state(backbone) if word == "imagenet_lite" else imagenet_state(backbone, file)
    coat = isinstance(network, CoatClassifier)
    wanted = {name: name.removeprefix("enc." if coat else "encoder.model.") for name in network.state_dict()
              if name.startswith(("enc.", "encoder.") if coat else ("encoder.", "conv_head.", "bn2."))}
    missing = [own for own in wanted.values() if own not in state]
    if missing:
        raise WeightsError(file or backbone, f"has other names than the backbone {backbone}",
                           "Use weights='none', or a file for the whole network.", missing)
    return {name: state[own] for name, own in wanted.items()}

def make_classifier(
    backbone: str,           # a timm name
    outputs: int,            # labels of a slice
    rnn: str = "gru",        # gru, lstm or none
    hidden: int = 256,       # units of each direction
    dropout: float = 0.1,
    auxiliary: str = "none", # none, cnn or unet
    masks: int = 4,          # channels of the auxiliary decoder
    size: int = 384,         # side of the pictures, pixels; a multiple of 32
    unused: Sequence[str] = (),  # parts of the published files that only exist: lstm, cnn, unet
    weights: str = "none",   # none, imagenet, imagenet:FILE, imagenet_lite, or a file for the whole network
    seed: int = 0,           # of everything that starts at random
    freeze: int = 0,         # number of parameter tensors, counted from the input, that are not trained
    kinds: tuple[type, type] = (CoatClassifier, TimmClassifier),  # classes for CoaT and for other backbones
) -> Classifier:
    "Make a network that reads blocks. Raises RecipeError, WeightsError."
    if not timm.is_model(backbone):
        raise RecipeError(f"timm {timm.__version__} has no network {backbone!r}. Choose one of timm.list_models().")
    if size % 32:
        raise RecipeError(f"The side of the pictures is {size} pixels; it must be a multiple of 32.")
    coat = backbone.startswith("coat_lite")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kinds[0 if coat else 1](
            backbone, size, outputs=outputs, masks=masks, rnn=rnn, hidden=hidden, dropout=dropout, auxiliary=auxiliary,
            unused=unused)
    if weights.startswith("imagenet"):
        network.load_state_dict(_backbone_state(network, backbone, weights), strict=False)
    elif weights != "none":
        load_weights(network, Path(weights))
    for parameter in list(network.parameters())[:freeze]:
        parameter.requires_grad_(False)
    return network

# %%
network = make_classifier(backbone, 10, hidden=16, auxiliary="cnn", size=size)
image = torch.rand(2, triplets, 3, size, size)
made = network({"image": image})
assert made["labels"].shape == (2, triplets, 10)
assert [m.shape for m in made["masks"]] == [(2 * triplets, 4, size, size)] * 2
assert network.eval()({"image": image}).keys() == {"labels"}
for wrong in ({"size": 100}, {"backbone": "resnet0"}):
    try:
        make_classifier(**{"backbone": backbone, "outputs": 10, **wrong})
    except RecipeError as e:
        print(e)

# %% [markdown]
# A slice hears of the other slices of its block and of no other block. Without a recurrent layer it stands alone. A
# pixel that is not a number counts as zero.

# %%
alone = make_classifier(backbone, 10, rnn="none", size=size).eval()
changed = image.clone()
changed[0, 0] = 0.
broken = image.clone()
broken[0, 0, 0, 5, 5] = float("nan")
with torch.no_grad():
    before, after, other = (network({"image": x})["labels"] for x in (image, changed, broken))
    assert not torch.allclose(before[0, -1], after[0, -1]) and torch.allclose(before[1], after[1], atol=1e-6)
    assert torch.allclose(alone({"image": image})["labels"][0, 1:], alone({"image": changed})["labels"][0, 1:],
                          atol=1e-6)
assert torch.isfinite(other).all()

# %% [markdown]
# ## Published files
# The published files were saved by torch, from networks inside of `DataParallel`. They are read without running any
# code, and every name and every shape has to fit. Which parts exist without being used is known of each configuration.

# %%
#| export
def unused_parts(
    names: Sequence[str],    # of the tensors of a published file
    auxiliary: str,          # the decoder that its configuration uses
) -> tuple[str, ...]:        # of lstm, cnn, unet
    "The parts of a published file that no output depends on."
    own = {name.removeprefix("module.").split(".")[0] for name in names}
    parts = {"lstm": "lstm2" in own and "lstm" in own, "cnn": "mask_head_3" in own,
             "unet": bool(own & {"dec4", "decoder"})}
    return tuple(part for part, there in parts.items() if there and part != auxiliary)

# %%
assert unused_parts(["enc.x", "lstm2.w", "lstm.0.lstm.w", "mask_head_3.0.w", "dec4.w"], "cnn") == ("lstm", "unet")
assert unused_parts(["module.encoder.model.x", "lstm.w", "decoder.w"], "unet") == ()

# %% [markdown]
# ## What came out
# The masks that an untrained decoder draws, and the size of the published networks without their backbones.

# %%
rows = []
for name, options in {"coat_lite_small": {"hidden": 256, "auxiliary": "unet"}, backbone: {"auxiliary": "unet"}}.items():
    one = make_classifier(name, 10, size=size, **options)
    parts = {k: sum(p.numel() for p in m.parameters()) for k, m in one.named_children()}
    back = parts.pop("enc", 0) + parts.pop("encoder", 0)
    rows.append({"backbone": name, "its parameters": back, "other parameters": sum(parts.values())})
    drawn = one({"image": image[:1, :1]})["masks"][0]
    assert drawn.shape == (1, 4, size, size)
fig, axes = plt.subplots(1, 4, figsize=(8, 2))
for ax, mask in zip(axes, drawn[0].detach()):
    ax.imshow(mask)
    ax.axis("off")
pd.DataFrame(rows)

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

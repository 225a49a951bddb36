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
# # Decoders
# > From the feature maps of a backbone to masks, in three ways.
#
# The network that grades injuries also draws the organs, because drawing them teaches it where to look. This drawing is
# used in training only. There are three decoders: a plain U-Net, a U-Net that enlarges by shuffling channels into
# pixels, and two small heads that draw from the last two maps. Their names of parameters are those of the published
# weights.

# %%
#| default_exp trauma.learning.decoders

# %% tags=["parameters"]
size = 64   # side of the picture behind the drawn maps, pixels

# %%
#| export
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

# %%
#| hide
import pandas as pd

# %% [markdown]
# ## A plain U-Net
# Each block doubles the side of its map, adds the map of the backbone at this size, and applies two convolutions. The
# blocks that have no such map are the last ones. The 3D network has the same decoder in three dimensions.

# %%
#| export
def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs),
                         nn.ReLU(inplace=True))

class UnetBlock(nn.Module):
    "Double a map, join the map of the backbone, and apply two convolutions."
    def __init__(self,
        inputs: int,    # channels of the map
        skipped: int,   # channels of the backbone's map; 0: there is none
        outputs: int,
    ):
        super().__init__()
        self.conv1 = _convolution(inputs + skipped, outputs)
        self.conv2 = _convolution(outputs, outputs)

    def forward(self, x: torch.Tensor, skipped: torch.Tensor | None) -> torch.Tensor:
        x = F.interpolate(x, scale_factor=2., mode="nearest")
        return self.conv2(self.conv1(x if skipped is None else torch.cat([x, skipped], 1)))

class Unet(nn.Module):
    "U-Net decoder; each block has half of the stride of the one before."
    def __init__(self,
        channels: Sequence[int],  # of the backbone's maps, from fine to coarse, each with twice the stride
        widths: Sequence[int],    # of the blocks
    ):
        super().__init__()
        coarse, *skipped = reversed(channels)
        skipped = [*skipped, *[0] * len(widths)]
        self.blocks = nn.ModuleList([UnetBlock(*sizes) for sizes in zip([coarse, *widths], skipped, widths)])

    def forward(self,
        maps: Sequence[torch.Tensor],   # as many as `channels`
    ) -> torch.Tensor:                  # the last of `widths`
        x, *skipped = reversed(maps)
        skipped = [*skipped, *[None] * len(self.blocks)]
        for block, own in zip(self.blocks, skipped):
            x = block(x, own)
        return x

# %% [markdown]
# Maps of 8, 12 and 16 channels at a half, a quarter and an eighth of the picture's side. Three blocks lead back to the
# whole picture.

# %%
def drawn_maps(channels, first):
    return [torch.randn(2, c, size // (first * 2**k), size // (first * 2**k)) for k, c in enumerate(channels)]

decoder = Unet((8, 12, 16), (24, 12, 6))
assert [b.conv1[0].in_channels for b in decoder.blocks] == [16 + 12, 24 + 8, 12]
assert decoder(drawn_maps((8, 12, 16), 2)).shape == (2, 6, size, size)

# %% [markdown]
# ## A U-Net that shuffles
# The decoder of the CoaT networks. A convolution makes four channels for each new one, and these become the four pixels
# of the enlarged map. Normalisation is over the channels of a pixel.

# %%
#| export
class ChannelNorm(nn.LayerNorm):
    "LayerNorm over the channels of each pixel."
    def __init__(self,
        channels: int,
    ):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (n, channels, height, width)
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

def _enlarge(inputs: int, outputs: int, blur: bool) -> nn.Sequential:
    "Double the side of a map; `blur` averages the pixels with those before them, against a checkerboard."
    first = nn.Conv2d(inputs, 4 * outputs, 1)
    with torch.no_grad():   # at the start the four pixels are equal (Aitken et al. 2017)
        first.weight.copy_(first.weight[::4].repeat_interleave(4, 0))
        first.bias.copy_(first.bias[::4].repeat_interleave(4, 0))
    layers = [first, ChannelNorm(4 * outputs), nn.GELU(), nn.PixelShuffle(2)]
    if blur:
        layers += [nn.ReplicationPad2d((1, 0, 1, 0)), nn.AvgPool2d(2, stride=1)]
    return nn.Sequential(*layers)

class ShuffleBlock(nn.Module):
    "Double a map by shuffling, join the map of the backbone, and apply two convolutions."
    def __init__(self,
        inputs: int,    # channels of the map
        skipped: int,   # channels of the backbone's map
        outputs: int,
    ):
        super().__init__()
        self.shuf = _enlarge(inputs, inputs // 2, blur=False)
        self.bn = ChannelNorm(skipped)
        self.conv1 = nn.Sequential(nn.Conv2d(inputs // 2 + skipped, outputs, 3, padding=1), nn.GELU())
        self.conv2 = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1), nn.GELU())

    def forward(self, x: torch.Tensor, skipped: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([self.shuf(x), self.bn(skipped)], 1)
        return self.conv2(self.conv1(F.gelu(joined)))

class Pyramid(nn.Module):
    "Bring coarser maps to the size of the finest one and join all of them."
    def __init__(self,
        channels: Sequence[int],   # of the coarser maps, from coarse to fine
        width: int,                # of each after a convolution
    ):
        super().__init__()
        self.convs = nn.ModuleList([
            nn.Sequential(nn.Conv2d(c, 2 * width, 3, padding=1), nn.GELU(), ChannelNorm(2 * width),
                          nn.Conv2d(2 * width, width, 3, padding=1)) for c in channels])

    def forward(self,
        coarser: Sequence[torch.Tensor],   # each half as large as the next one
        finest: torch.Tensor,              # twice as large as the last of them
    ) -> torch.Tensor:
        made = [F.interpolate(layer(x), size=finest.shape[-2:], mode="bilinear")
                for layer, x in zip(self.convs, coarser)]
        return torch.cat([*made, finest], 1)

class ShuffleHead(nn.Module):
    "Double a map by shuffling and draw the masks."
    def __init__(self,
        inputs: int,
        masks: int,
    ):
        super().__init__()
        inner = inputs // 4
        self.shuf = _enlarge(inputs, inner, blur=True)
        self.conv = nn.Sequential(nn.Conv2d(inner, inner, 3, padding=1), ChannelNorm(inner), nn.GELU(),
                                  nn.Conv2d(inner, masks, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.shuf(x))

# %%
shuffle = _enlarge(8, 4, blur=False)
made = shuffle(torch.randn(1, 8, 5, 5))
assert made.shape == (1, 4, 10, 10) and torch.equal(made[..., ::2, ::2], made[..., 1::2, 1::2])   # no checkerboard
block = ShuffleBlock(16, 12, 10)
assert block(torch.randn(2, 16, 4, 4), torch.randn(2, 12, 8, 8)).shape == (2, 10, 8, 8)
joined = Pyramid((16, 10), 3)([torch.randn(2, 16, 4, 4), torch.randn(2, 10, 8, 8)], torch.randn(2, 6, 16, 16))
assert joined.shape == (2, 3 + 3 + 6, 16, 16) and ShuffleHead(12, 4)(joined).shape == (2, 4, 32, 32)

# %% [markdown]
# ## Two small heads
# The cheapest decoder: three convolutions on a map of the backbone. It is used on the last map and on the one before.

# %%
#| export
def mask_head(
    inputs: int,   # channels of the map
    masks: int,    # channels of the result
) -> nn.Sequential:
    "Three convolutions that draw masks at the size of their map."
    return nn.Sequential(nn.Conv2d(inputs, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(inplace=True),
                         nn.Conv2d(128, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(inplace=True),
                         nn.Conv2d(128, masks, 1))

def enlarged(
    masks: torch.Tensor,       # logits (n, masks, rows, columns)
    size: tuple[int, int],     # rows, columns of the picture
) -> torch.Tensor:
    "Masks at the size of the picture, by bilinear interpolation."
    return F.interpolate(masks, size=tuple(size), mode="bilinear") if masks.shape[-2:] != tuple(size) else masks

# %% [markdown]
# ## What came out
# The size of each decoder for the maps of a small backbone.

# %%
small = {"Unet": Unet((8, 16, 32, 64), (32, 16, 8, 8)), "ShuffleBlock": ShuffleBlock(64, 32, 32),
         "mask_head": mask_head(64, 4)}
assert enlarged(small["mask_head"](torch.randn(1, 64, 2, 2)), (size, size)).shape == (1, 4, size, size)
pd.Series({name: sum(p.numel() for p in m.parameters()) for name, m in small.items()}, name="parameters").to_frame()

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

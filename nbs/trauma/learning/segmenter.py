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
# # 3D U-Net
# > A 2D network of timm, inflated to three dimensions, that finds five organs in a window of slices.
#
# Networks with ImageNet weights are two-dimensional, and organs are not. Inflation makes a 3D network of a 2D one:
# every kernel is repeated along the new axis. The result has all layers and all names of the 2D network.

# %%
#| default_exp trauma.learning.segmenter

# %% tags=["parameters"]
depth, size = 16, 32   # slices of the window below, and side of a slice in pixels

# %%
#| export
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

from mammo_nb.core.ensembles import register_network
from mammo_nb.core.networks import WeightsError, imagenet_state, load_state, load_weights, read_state
from mammo_nb.trauma.learning.decoders import Unet
from mammo_nb.trauma.recipes import ORGANS

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt

from mammo_nb.core.files import sha256
from mammo_nb.core.networks import save_weights

# %% [markdown]
# ## Inflation
# Convolutions, normalisations and poolings get a third axis; everything else works in any number of dimensions. The
# kernels are repeated and not divided by their number, as in the original: the normalisation behind them takes care of
# that.

# %%
#| export
def _deep(number: int | tuple[int, int]) -> tuple[int, int, int]:
    "A size for three axes."
    return (number,) * 3 if isinstance(number, int) else (*number, number[-1])

def inflated(
    module: nn.Module,   # of two dimensions; its own layers are replaced
) -> nn.Module:          # the same in three dimensions
    "Repeat the kernels of a 2D network along a third axis."
    if isinstance(module, nn.Conv2d):
        made = nn.Conv3d(module.in_channels, module.out_channels, _deep(module.kernel_size), _deep(module.stride),
                         _deep(module.padding), _deep(module.dilation), module.groups, module.bias is not None)
        with torch.no_grad():
            made.weight.copy_(module.weight[..., None].expand_as(made.weight))
            if module.bias is not None:
                made.bias.copy_(module.bias)
        return made
    if isinstance(module, nn.BatchNorm2d):
        made = nn.BatchNorm3d(module.num_features, module.eps, module.momentum)
        made.load_state_dict(module.state_dict())
        return made.train(module.training)
    if isinstance(module, nn.MaxPool2d):
        return nn.MaxPool3d(module.kernel_size, module.stride, module.padding, module.dilation,
                            ceil_mode=module.ceil_mode)
    if isinstance(module, nn.AvgPool2d):
        return nn.AvgPool3d(module.kernel_size, module.stride, module.padding, module.ceil_mode,
                            module.count_include_pad)
    for name, child in module.named_children():
        setattr(module, name, inflated(child))
    return module

# %% [markdown]
# Each plane of an inflated kernel is the 2D kernel. A volume whose slices are equal gives three times the 2D result,
# away from its ends.

# %%
flat = nn.Conv2d(1, 4, 3, padding=1, bias=False)
expected = flat(torch.eye(6)[None, None])
deep = inflated(flat)
made = deep(torch.eye(6)[None, None, ..., None].expand(-1, -1, -1, -1, 5))
assert deep.weight.shape == (4, 1, 3, 3, 3) and torch.allclose(made[..., 2], 3 * expected, atol=1e-5)

# %% [markdown]
# ## The network
# The first four maps of the backbone, with strides 2 to 16, and a U-Net decoder with four blocks. A slice is repeated
# to the three channels that the backbone expects. The published file also holds the last stage of the backbone, which
# no output depends on.

# %%
#| export
STRIDE = 16   # depth, rows and columns of a window are multiples of it

class Segmenter(nn.Module):
    "Organs in a window of slices."
    def __init__(self,
        network: str,            # a timm name
        outputs: int,            # organs
        widths: Sequence[int] = (256, 128, 64, 32),  # of the decoder's four blocks
        published: bool = False, # whether it has the stage that is not used
    ):
        super().__init__()
        maps = {} if published else {"out_indices": (0, 1, 2, 3)}
        self.encoder = timm.create_model(network, features_only=True, **maps)
        self.decoder = Unet(self.encoder.feature_info.channels()[:4], widths)
        self.segmentation_head = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self,
        volume: torch.Tensor,   # float (n, depth, rows, columns), 0 to 1
    ) -> torch.Tensor:          # logits (n, organs, depth, rows, columns)
        "Logits of each organ."
        channels = volume[:, None].expand(-1, 3, -1, -1, -1)
        # the memory layout in which 3-D convolutions are fastest
        maps = self.encoder(channels.contiguous(memory_format=torch.channels_last_3d))
        return self.segmentation_head(self.decoder(maps[:4]))

@register_network("trauma_segmenter")
def make_segmenter(
    network: str,             # a timm name
    widths: Sequence[int] = (256, 128, 64, 32),  # of the decoder's four blocks
    weights: str = "none",    # initial weights: none, imagenet, imagenet:FILE, or a file for the 3D network
    seed: int = 0,            # of everything that starts at random
    published: bool = False,  # whether it fits a published file
) -> Segmenter:
    "Make a 3D network from a 2D one. Raises WeightsError."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flat = Segmenter(network, len(ORGANS), widths, published)
    if weights.startswith("imagenet"):
        state = imagenet_state(network, weights.partition(":")[2])
        own = flat.encoder.state_dict()
        if missing := [name for name in own if name not in state]:
            raise WeightsError(network, "has other names in its published weights", "Use weights='none'.", missing)
        flat.encoder.load_state_dict({name: state[name] for name in own})
    made = inflated(flat)
    if weights != "none" and not weights.startswith("imagenet"):
        load_weights(made, Path(weights))
    return made

# %%
network = make_segmenter("resnet18d").eval()
x = torch.rand(1, depth, size, size)
with torch.no_grad():
    made = network(x)
assert made.shape == (1, len(ORGANS), depth, size, size)
assert set(make_segmenter("resnet18d", published=True).state_dict()) > set(network.state_dict())

# %% [markdown]
# ## A trained network
# The JSON beside the weights has all that is needed to use them: the backbone, the decoder, and how large a window is.

# %%
#| export
def open_segmenter(
    folder: Path | str,         # has segment.safetensors and segment.json
) -> tuple[Segmenter, dict]:    # in evaluation mode; segment.json, with depth and size of a window
    "Read the network of the stage segment. Raises WeightsError."
    path = Path(folder) / "segment.safetensors"
    state, about = read_state(path)
    if missing := [name for name in ("network", "widths", "depth", "size") if name not in about]:
        raise WeightsError(path, f"its JSON does not name {', '.join(missing)}", "Run the stage segment again.")
    network = make_segmenter(about["network"], about["widths"])
    load_state(network, state, path)
    return network.eval(), about

SMALL = 2**18   # voxels

@torch.inference_mode()
def organ_probabilities(
    network: Segmenter,
    windows: np.ndarray,  # float32 (n, depth, size, size), 0 to 1
) -> np.ndarray:          # float32 (n, organs, depth, size, size)
    "What the network finds in windows."
    device = next(network.parameters()).device
    volumes = torch.from_numpy(windows)
    # on a CPU torch convolves one small window alone by a slow way: two of them take less than half its time
    if device.type == "cpu" and len(volumes) == 1 and volumes.numel() <= SMALL:
        volumes = volumes.expand(2, -1, -1, -1)
    return torch.sigmoid(network(volumes.to(device)))[:len(windows)].float().cpu().numpy()

# %% [markdown]
# Many series go through one network, and each process opens it once. The digest tells a network that was trained again
# from the one before it.

# %%
#| export
@lru_cache(maxsize=1)
def process_segmenter(
    folder: str,   # has segment.safetensors and segment.json
    digest: str,   # of segment.safetensors
) -> tuple[Callable, int, int]:   # window -> probabilities (organs, depth, size, size); depth and size of a window
    "The network of this process, on the GPU if there is one. Raises WeightsError."
    network, about = open_segmenter(folder)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    return lambda window: organ_probabilities(network, window[None])[0], about["depth"], about["size"]

# %%
folder = Path(tempfile.mkdtemp())
save_weights(network, folder / "segment.safetensors", {"network": "resnet18d", "widths": [256, 128, 64, 32],
                                                       "depth": depth, "size": size})
again, about = open_segmenter(folder)
# torch's two ways to convolve round differently: each is within 2e-5 of the same network in 64 bits
assert np.allclose(organ_probabilities(again, x[:1].numpy()), torch.sigmoid(made[:1]), atol=1e-4)
digest = sha256(folder / "segment.safetensors")
segment, *shape = process_segmenter(str(folder), digest)
assert np.allclose(segment(x[0].numpy()), torch.sigmoid(made[0]), atol=1e-4) and shape == [depth, size]
assert process_segmenter(str(folder), digest)[0] is segment
about["depth"], about["size"]

# %% [markdown]
# ## What came out
# How far the network sees: where a change in the middle of a window changes its outputs, seen along the slices and
# within the slice.

# %%
with torch.no_grad():
    changed = x.clone()
    changed[0, depth // 2, size // 2, size // 2] += 1
    seen = (network(changed) - made).abs().sum(1)[0]
fig, axes = plt.subplots(1, 2, figsize=(7, 2.4))
for ax, picture, title in zip(axes, (seen[:, size // 2], seen[depth // 2]), ("slices and columns", "rows and columns")):
    ax.imshow(picture.log1p())
    ax.set_title(title, fontsize=9)
assert seen[depth // 2, size // 2, size // 2] > 0

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

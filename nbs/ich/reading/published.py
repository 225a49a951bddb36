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
# # Published weights
# > The files of the original's classifiers, read without running code from them.
#
# The original saved its ResNeXt-101 after every epoch as `model_<size>_epoch<e>_fold<f>.bin`. Such a file is a pickle
# of tensors. The names in it are those of the network in torch's hub, with `module.` in front, since it was trained on
# four GPUs. Fold 6 stands for a training on all data.

# %%
#| default_exp ich.reading.published

# %%
#| export
import re
from pathlib import Path

from mammo_nb.core.networks import WeightsError
from mammo_nb.ich.learning.encoder import Encoder, load_encoder

# %%
#| hide
import tempfile

import torch

# %%
#| export
ALL = 6  # the original's fold that is empty, so that all data is used

def published_files(
    folder: Path,        # with the published files, of one kind of classifier
    size: int,           # side of the pictures that it was trained with, pixels
    fold: int,           # held back; -1: none
) -> dict[int, Path]:    # epoch -> file, in order
    "Find the files of one training. Raises WeightsError if there is none."
    wanted = ALL if fold == -1 else fold
    found, others = {}, []
    for path in sorted(Path(folder).glob("*.bin")):
        parts = re.fullmatch(r"model_(\d+)_epoch(\d+)_fold(\d+)", path.stem)
        if parts and (int(parts[1]), int(parts[3])) == (size, wanted):
            found[int(parts[2])] = path
        elif parts:
            others.append(f"size {parts[1]} fold {parts[3]}")
    if not found:
        there = f"it has {', '.join(sorted(set(others)))}" if others else "it has no file of that form"
        raise WeightsError(folder, f"has no model_{size}_epoch*_fold{wanted}.bin; {there}",
                           "Set classify.size and classify.folds to what is there, or name another folder.")
    return dict(sorted(found.items()))

def read_published(
    encoder: Encoder,   # with embedding 0, and as many classes as the file
    path: Path,         # model_<size>_epoch<e>_fold<f>.bin
) -> Encoder:           # the same, in evaluation mode
    "Fill an encoder from a published file; every tensor must fit. Raises WeightsError."
    load_encoder(encoder, path)
    return encoder.eval()

# %% [markdown]
# ## What came out
# Two files of the same structure, from a small network. They are found by their names and read strictly. A file that
# holds more than tensors is refused.

# %%
folder, small = Path(tempfile.mkdtemp()), Encoder("resnet10t", 6, seed=3)
state = {f"module.{name}": value for name, value in small.network.state_dict().items()}
for epoch in (1, 0):
    torch.save(state, folder / f"model_480_epoch{epoch}_fold6.bin")
files = published_files(folder, 480, -1)
assert list(files) == [0, 1]
again = read_published(Encoder("resnet10t", 6), files[1])
x = torch.randn(2, 3, 64, 64)
with torch.no_grad():
    assert torch.equal(again(x), small.eval()(x))
torch.save({**state, "more": Path("x")}, folder / "model_480_epoch2_fold6.bin")
for wrong in (lambda: published_files(folder, 480, 1), lambda: published_files(folder / "empty", 480, 1),
              lambda: read_published(again, folder / "model_480_epoch2_fold6.bin"),
              lambda: read_published(Encoder("resnet10t", 5), files[0])):
    try:
        wrong()
    except WeightsError as e:
        print(e)
    else:
        raise AssertionError

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

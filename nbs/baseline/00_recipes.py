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
# # Recipes of the baseline
# > The numbers of a published walk-through of the same competition: one network, one fold, a threshold.
#
# A result is worth what it adds to the plain thing. The baseline is the plain thing: one ConvNeXt-tiny on one fold, no
# detector, no ensemble; it is said to have scored 0.38 on the private test set where the winner had 0.55. It reads the
# same data as `mammo`, so its recipes share that system's data sections, and whatever differs between the two is in the
# sections `prepare` and `train`.

# %%
#| default_exp baseline.recipes

# %%
#| export
from dataclasses import dataclass

from mammo_nb.mammo.recipes import RECIPES as MAMMO
from mammo_nb.mammo.recipes import Datasets, Folds, Phantom

# %%
#| hide
from dataclasses import asdict

import pandas as pd

from mammo_nb.mammo.recipes import RecipeError, get_section

# %% tags=["parameters"]
recipe = "baseline/demo"   # the recipe shown below

# %%
#| export
@dataclass(frozen=True)
class Prepare:
    "From frame to picture."
    height: int = 256           # of the stored pictures and of the network's input, pixels
    width: int = 128            # half of it

@dataclass(frozen=True)
class Train:
    "One network on one fold; the defaults are what two cores train in two minutes."
    network: str = "tf_efficientnet_lite0"   # a timm name
    weights: str = "imagenet_lite"          # initial weights: none, imagenet, imagenet:FILE, imagenet_lite or a file
    fold: int = 0                            # held back
    epochs: int = 6
    batch_size: int = 26
    positive_weight: float = 3.0             # a positive is this many times as likely to be drawn as a negative
    pos_weight: float = 2.0                  # and weighs this many times as much in the loss
    freeze: int = 30                         # so many named parameters, from the first, stay as they are
    augment: str = "baseline"                # a policy of mammo/augment; this one: a mirror, one time in two
    optimizer: str = "adamw"
    lr: float = 5e-4
    min_lr: float = 0.0
    schedule: str = "cosine"                 # moves with every batch
    restart_epochs: float = 3                # it starts over after so many; 0 = never
    restart_factor: int = 1                  # each round is so many times as long as the one before
    weight_decay: float = 1e-2
    dud_pf1: float = 0.05                    # a training whose pF1 is below it
    dud_epochs: int = 2                      # after so many epochs is given up
    # 16 bit where the device has it: float16 on a T4, as then; bfloat16 on newer GPUs
    precision: str = "amp"
    checkpoint_every: int = 20               # steps between checkpoints
    workers: int = 0                         # data-loading processes
    seed: int = 42

@dataclass(frozen=True)
class Engines:
    "The network as a graph."
    tolerance: float = 1e-4     # largest allowed difference of a probability against torch

@dataclass(frozen=True)
class Recipe:
    "One experiment: a section for each stage; those of the data are mammo's."
    about: str
    phantom: Phantom | None = MAMMO["demo"].phantom
    datasets: Datasets = MAMMO["demo"].datasets
    prepare: Prepare = Prepare()
    folds: Folds = MAMMO["demo"].folds
    train: Train = Train()
    engines: Engines = Engines()

# %% [markdown]
# `baseline_tiny` is the published experiment. Where the author gives a range, it holds a value inside it: learning rate
# 3e-5 to 8e-5, weight of a positive in the sampler 10 to 15 and in the loss 15 to 25, 60 to 80 frozen parameters. The
# length of a round of the cosine is not given; two equal rounds are ours. It wants a GPU, and ConvNeXt-tiny's ImageNet
# weights, which timm fetches.
#
# `demo` is not that network: no ImageNet weights of a ConvNeXt are to be had without a hub, and two cores could not
# train one in minutes. It has EfficientNet-Lite0 at an eighth of the height, and as every sixth of its images shows a
# cancer instead of every fiftieth, smaller weights for them. What it shares with the published one is the method.

# %%
#| export
RECIPES = {
    "demo": Recipe("the synthetic competition of mammo's demo, ImageNet EfficientNet-Lite0 at 256x128, one fold"),
    "tiny": Recipe("the same stages in seconds; its scores mean nothing", phantom=MAMMO["tiny"].phantom,
                   folds=MAMMO["tiny"].folds, prepare=Prepare(height=128, width=64), train=Train(
                       epochs=2, batch_size=8, restart_epochs=1, dud_pf1=0.0,
                       checkpoint_every=2)), "baseline_tiny": Recipe(
                           "the published baseline: ConvNeXt-tiny at 2048x1024, one fold of four, on a GPU",
                           phantom=None, datasets=Datasets("rsna-breast-cancer-detection"), prepare=Prepare(
                               height=2048, width=1024), folds=Folds(n_folds=4), train=Train(
                                   network="convnext_tiny.fb_in1k", weights="imagenet", epochs=17, positive_weight=12.0,
                                   pos_weight=20.0, freeze=70, lr=5e-5, restart_epochs=8.5, checkpoint_every=400,
                                   workers=8)),
}

# %%
pd.DataFrame({n: asdict(r.prepare) | asdict(r.train) for n, r in RECIPES.items()})

# %% [markdown]
# `make reproduce SYSTEM=baseline RECIPE=demo` names a recipe of this table; in a notebook it has its system before it,
# since stages of `mammo` look it up too. The phantoms are those of mammo's demo to the last pixel, and so are the
# folds.

# %%
assert get_section(recipe, "phantom") == get_section("demo", "phantom") and get_section(recipe, "folds") == get_section(
    "demo", "folds")
for name, section, overrides in (("baseline/dmo", "train", {}), (recipe, "crops", {}), (recipe, "train", {"froze": 60
                                                                                                          })):
    try:
        get_section(name, section, overrides)
    except RecipeError as e:
        print(e)

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
# # Baseline
# > The numbers of a published walk-through of the same competition: one network, one fold, a threshold.
#
# A complex system is worth what it adds to a simple one. The baseline is simple: one ConvNeXt-tiny on one fold, no
# detector, no ensemble. Its reported score on the private test set is 0.38, that of the winner 0.55. It reads the same
# data as `mammo`, so its recipes share that system's data sections. The two systems differ in the sections `prepare`
# and `train`.

# %%
#| default_exp baseline.system

# %%
#| export
from dataclasses import dataclass, replace

from mammo_nb.core.optimisation import Optimisation
from mammo_nb.core.recipes import Recipe, bounded
from mammo_nb.core.settings import sealed
from mammo_nb.core.systems import Mode, Stage, System
from mammo_nb.mammo.recipes import Datasets, Folds, Phantom
from mammo_nb.mammo.system import results, source_images, test_set
from mammo_nb.mammo.system import system as mammo

# %%
#| hide
from dataclasses import asdict

import pandas as pd

# %% [markdown]
# Reading order: `01_prepare` to `06_report`. The stages `phantom`, `datasets` and `folds` are those of `mammo`.

# %%
#| export
@dataclass(frozen=True)
class Prepare:
    "From frame to picture."
    height: int = bounded(256, low=16, pixels=True)  # of the stored pictures and of the network's input, pixels
    width: int = bounded(128, low=16, pixels=True)  # half of the height, pixels

@dataclass(frozen=True)
class Train:
    "One network on one fold; the defaults are what two cores train in two minutes."
    network: str = "tf_efficientnet_lite0"   # a timm name
    # initial weights: none, imagenet, imagenet:FILE, imagenet_lite, a file, or torchvision, torchvision:FILE, which are
    # those of torchvision's ConvNeXt-tiny
    weights: str = "imagenet_lite"
    drop_path_rate: float = bounded(0.0, low=0, high=1)  # stochastic depth: rate of the last block
    fold: int = bounded(0, low=0)            # number of the fold that is held back
    # a cosine that restarts; 16 bits where the device has them: bfloat16, on a T4 float16
    loop: Optimisation = Optimisation(epochs=6, batch_size=26, optimizer="adamw", lr=5e-4, min_lr=0.0,
                                      schedule="cosine", restart_epochs=3, weight_decay=1e-2, checkpoint_every=20)
    positive_weight: float = bounded(3.0, low=0)  # a positive is this many times as likely to be drawn as a negative
    pos_weight: float = bounded(2.0, low=0)       # weight of a positive in the loss; that of a negative is 1
    freeze: int = bounded(30, low=0)         # number of parameters, from the first layer on, that are not trained
    # a policy of mammo/learning/augment; baseline mirrors every second image
    augment: str = bounded("baseline", choices=("winner", "light", "broad", "baseline", "none"))
    dud_pf1: float = bounded(0.05, low=0, high=1)  # a training is stopped if its pF1 is below this
    dud_epochs: int = bounded(2, low=1)            # after this number of epochs or later
    faithful: bool = False      # the head starts anew, the first of equal thresholds: learning/walkthrough

@dataclass(frozen=True)
class Engines:
    "The network as a graph."
    tolerance: float = bounded(1e-4, low=0)  # largest allowed difference of a probability against torch

# %% [markdown]
# `baseline_tiny` is the published experiment. Where the author gives a range, it holds a value inside it: learning rate
# 3e-5 to 8e-5, weight of a positive in the sampler 10 to 15 and in the loss 15 to 25, 60 to 80 frozen parameters. The
# length of a round of the cosine is not given; the two equal rounds are our choice. The recipe needs a GPU and the
# ImageNet weights of torchvision's ConvNeXt-tiny, which torchvision fetches. They are other weights than timm's
# `convnext_tiny.fb_in1k`. torchvision's stochastic depth of 0.1 and float16 with a loss scaler belong to the experiment
# as well, and `faithful` takes head and threshold as the author did. Where the project still differs is listed in
# [Where we leave the originals](../70_originals.py).
#
# `demo` has another network: the ImageNet weights of a ConvNeXt exist on a hub only, and two cores cannot train one in
# minutes. It has EfficientNet-Lite0 at an eighth of the height. Every sixth of its images shows a cancer instead of
# every fiftieth, so positives have smaller weights. It shares the method with the published one.

# %%
#| export
_TINY = mammo.recipe("tiny")

RECIPES = {
    "demo": Recipe("the synthetic competition of mammo's demo, ImageNet EfficientNet-Lite0 at 256x128, one fold"),
    "tiny": Recipe("the same stages in seconds; its scores mean nothing", _TINY.section(Phantom), _TINY.section(Folds),
                   Prepare(height=128, width=64),
                   Train(dud_pf1=0.0, loop=replace(Train().loop, epochs=2, batch_size=8, restart_epochs=1,
                                                   checkpoint_every=2))),
    "baseline_tiny": Recipe("the published baseline: ConvNeXt-tiny at 2048x1024, one fold of four, on a GPU",
                            Datasets("rsna-breast-cancer-detection"), Prepare(height=2048, width=1024),
                            Train(network="convnext_tiny.fb_in1k", weights="torchvision", drop_path_rate=0.1,
                                  positive_weight=12.0, pos_weight=20.0, freeze=70, faithful=True,
                                  loop=replace(Train().loop, epochs=17, lr=5e-5, restart_epochs=8.5,
                                               precision="fp16", decay_all=True, checkpoint_every=400, workers=8)),
                            skips=("phantom",)),
}

# %%
pd.DataFrame({n: asdict(r.section(Prepare)) | asdict(r.section(Train)) for n, r in RECIPES.items()})

# %% [markdown]
# ## The declaration
# The stages that `mammo` declares keep its folder as their home, so their notebooks run for this system too.

# %%
#| export
NETWORK = ("baseline.onnx", "baseline.json")

def submitted_weights(run) -> list[str]:
    "the network: of the run, or of the folder WEIGHTS"
    place = run.weights or run.path("weights/")
    return [str(place / name) for name in dict.fromkeys((*NETWORK, *sealed(place)))]

system = System(
    name="baseline",
    title="One ConvNeXt-tiny on the mammography data",
    stages=(
        mammo.stage("phantom"),
        mammo.stage("datasets"),
        Stage("prepare", Prepare, reads=("processed/cleaned_label.csv", source_images),
              writes=("processed/cleaned_images/", "processed/crops.csv", "processed/crop_errors.csv",
                      "processed/crops_seconds.*")),
        mammo.stage("folds"),
        Stage("train", Train, reads=("folds.csv", "processed/crops.csv", "processed/cleaned_images/"),
              writes=("checkpoints/history.csv", "checkpoints/fold_*")),
        Stage("select", reads=("checkpoints/history.csv", "checkpoints/fold_*"),
              writes=("oof.csv", "selection.json", "weights/fold_*")),
        Stage("engines", Engines,
              reads=("selection.json", "oof.csv", "weights/fold_*", "processed/cleaned_images/"),
              writes=("weights/baseline.onnx", "weights/baseline.json", "weights/parts.json")),
        Stage("submit", reads=(test_set, submitted_weights),
              writes=("submissions/submission.csv", "test_per_image.csv", "submit.json")),
        Stage("report", reads=(results,)),
    ),
    modes={
        "full": Mode("everything is trained", ("phantom", "datasets", "prepare", "folds", "train", "select", "engines",
                                               "submit", "report")),
        "trained": Mode("trained weights", ("phantom", "submit", "report"), weights=NETWORK),
    },
    recipes=RECIPES,
    failures={"processed/crop_errors.csv": "training images", "test_per_image.csv": "test images"},
    competition=mammo.competition,
    weights=NETWORK,
    outcomes="select",
)

# %%
system.flow()

# %% [markdown]
# The phantoms are those of mammo's demo to the last pixel, and so are the folds:

# %%
for kind in (Phantom, Folds):
    assert system.recipe("demo").section(kind) == mammo.recipe("demo").section(kind)

# %% [markdown]
# ---
# [← Start here](../00_start.py) · [Prepare →](01_prepare.py)

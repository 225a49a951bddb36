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
# # Recipes
# > The numbers of each experiment on abdominal trauma, with names and ranges.
#
# A recipe has one section for each stage. The twelve published configurations have the names of their scripts; `demo`
# is the same method at a size that two cores train in minutes.

# %%
#| default_exp trauma.recipes

# %%
#| export
from dataclasses import dataclass, replace

from mammo_nb.core.optimisation import Optimisation
from mammo_nb.core.recipes import Recipe, bounded

# %%
#| hide
from dataclasses import asdict

import pandas as pd

# %% tags=["parameters"]
recipe = "demo"   # the recipe shown below

# %% [markdown]
# ## Names
# Organs have the order of the labels 1 to 5 in the segmentations. A mask of `kidneys` is both kidneys. The labels of a
# patient are the columns of the submission.

# %%
#| export
ORGANS = ("liver", "spleen", "left_kidney", "right_kidney", "bowel")
GRADES = {"bowel": ("healthy", "injury"), "extravasation": ("healthy", "injury"), "kidney": ("healthy", "low", "high"),
          "liver": ("healthy", "low", "high"), "spleen": ("healthy", "low", "high")}
SUBMITTED = tuple(f"{organ}_{grade}" for organ, grades in GRADES.items() for grade in grades)  # 13 and patient_id

# %% [markdown]
# A model has one output a slice for each of its columns. `liver_injury` is a low or a high injury times the share of
# the liver in the slice, and `bowel_injury` is the label of the slice times the share of the bowel. `bowel_marked` is
# the label of the slice alone, as `extravasation_injury` is.

# %%
#| export
ORGAN_COLUMNS = ("liver_injury spleen_injury kidney_injury liver_low liver_high spleen_low spleen_high kidney_low "
                 "kidney_high bowel_injury")
COLUMNS = (*ORGAN_COLUMNS.split(), "bowel_marked", "extravasation_injury")
MASKS = ("liver", "spleen", "kidneys", "bowel")

# %% [markdown]
# ## Sections

# %%
#| export
COMPETITION = "rsna-2023-abdominal-trauma-detection"

@dataclass(frozen=True)
class Phantom:
    "The synthetic competition; recipes for real data skip its stage."
    patients: int = bounded(24, low=4)       # with labels, one or two series each
    test_patients: int = bounded(6, low=1)   # without labels
    size: int = bounded(96, low=32, pixels=True)  # rows and columns of a slice, pixels
    lengths: str = "18 20 50 70 130"         # slices of a series, dealt out in turn
    prevalence: float = bounded(0.5, low=0, high=1)  # share of patients with an injury
    contrast: float = bounded(1.0, low=0)    # of injuries against their organ
    seed: int = bounded(2023, low=0)

@dataclass(frozen=True)
class Volumes:
    "From series to volumes of grey levels."
    dataset: str = "phantom"    # a folder below `raw` or `samples`, or phantom
    # ours: 50 HU wide 400, stretched slice by slice; theo: the DICOM's own window
    window: str = bounded("ours", choices=("ours", "theo"))
    faithful: bool = False      # the original's order by instance number, without repairs, levels truncated twice

@dataclass(frozen=True)
class Segment:
    "The 3D network that finds the organs."
    network: str = "resnet18d"  # a timm name, inflated to three dimensions
    weights: str = "none"       # initial weights of the 2D network: none or imagenet
    widths: str = "256 128 64 32"        # channels of the decoder's four blocks, separated by blanks
    depth: int = bounded(32, low=16, multiple=16)  # slices of a window
    size: int = bounded(128, low=16, multiple=16, pixels=True)  # side of a slice, pixels
    every: int = bounded(2, low=1)       # every second slice of a series is used in training
    n_folds: int = bounded(5, low=2)     # patients are split into so many parts
    fold: int = bounded(0, low=0)        # the part that is held back
    repeat: int = bounded(10, low=1)     # times that a window is shown in an epoch
    totalsegmentator: str = ""           # a folder in TotalSegmentator's layout, a second source; "": none
    repeat_totalsegmentator: int = bounded(3, low=1)
    loop: Optimisation = Optimisation(epochs=20, batch_size=8, optimizer="adamw", lr=5e-4, min_lr=0.0,
                                      schedule="cosine", weight_decay=1e-6, workers=4)
    processes: int = bounded(1, low=1)   # of torchrun that train the network together
    nodes: int = bounded(1, low=1)       # machines that train the network together, see docs/cluster
    faithful: bool = False               # the original's windows: short series truncated, last slices left out

@dataclass(frozen=True)
class Info:
    "Organs in every slice, from the 3D network."
    threshold: float = bounded(0.5, low=0, high=1)  # probability from which a pixel belongs to an organ
    faithful: bool = False               # the last block truncated to whole numbers, as in the original

@dataclass(frozen=True)
class Blocks:
    "From series to blocks of one length."
    # blocks: one after the other, the last one overlaps; equidistant: one block over the whole series
    sampling: str = bounded("blocks", choices=("blocks", "equidistant"))
    step: int = bounded(100, low=3)      # slices of a block
    keep: int = bounded(96, low=3)       # of these, the first that are read, three at a time
    cutoff: int = bounded(400, low=1)    # longer series are thinned
    stride: int = bounded(2, low=1)      # to every second slice

@dataclass(frozen=True)
class Folds:
    "The split into folds; a patient is in one fold only."
    n_folds: int = bounded(4, low=2)
    faithful: bool = False               # patients with equally many slices as an unstable sort leaves them

@dataclass(frozen=True)
class Model:
    "One network that reads a block."
    name: str = "organs"        # its name in files and tables
    backbone: str = "resnet10t"  # a timm name
    weights: str = "none"       # initial weights of the backbone: none, imagenet, imagenet_lite or a file
    freeze: int = bounded(0, low=0)      # number of parameters, from the first layer on, that are not trained
    rnn: str = bounded("gru", choices=("none", "gru", "lstm"))  # none: every slice for itself
    hidden: int = bounded(32, low=1)     # units of each direction
    dropout: float = bounded(0.1, low=0, high=1)
    # none; cnn: two heads on the last two maps of the backbone; unet: a decoder
    auxiliary: str = bounded("cnn", choices=("none", "cnn", "unet"))
    auxiliary_weight: float = bounded(0.125, low=0)  # of the Dice loss
    masks: str = "liver spleen kidneys bowel"        # what the auxiliary decoder draws, separated by blanks
    columns: str = ORGAN_COLUMNS         # of COLUMNS, in the order of the outputs, separated by blanks
    crop: bool = True                    # whether the organs are cut out
    size: int = bounded(64, low=32, multiple=32, pixels=True)  # side of the network's input, pixels
    flips: str = bounded("both", choices=("both", "horizontal"))  # of the augmentation
    folds: str = "0 1 2 3"               # which are held back, separated by blanks; all: one training on all data
    best: str = bounded("auc", choices=("auc", "score", "loss", "last"))  # by which the epoch is chosen
    loop: Optimisation = Optimisation(epochs=8, batch_size=2, accumulate=2, optimizer="adamw", lr=1e-3, min_lr=0.0,
                                      schedule="cosine", weight_decay=1e-6)

@dataclass(frozen=True)
class Train:
    "All networks that read blocks."
    models: tuple[Model, ...] = (
        Model(), Model("organs_without_masks", auxiliary="none"),
        Model("organs_slice_by_slice", auxiliary="none", rnn="none"),
        Model("extravasation", columns="bowel_injury extravasation_injury", crop=False, best="loss"))
    processes: int = bounded(1, low=1)   # of torchrun that train one network together
    nodes: int = bounded(1, low=1)       # machines that train one network together, see docs/cluster
    jobs: int = bounded(1, low=1)        # trainings at the same time, each with its share of cores or GPUs

@dataclass(frozen=True)
class Ensemble:
    "Which models are averaged, and how probabilities are scaled."
    models: str = "organs extravasation"  # names, separated by blanks; all: all of them
    # fitted: factors that are best on out-of-fold data; original: those of the published validation scripts
    scaling: str = bounded("fitted", choices=("fitted", "original", "none"))

@dataclass(frozen=True)
class Engines:
    "The ensemble as two graphs: 3D network, and models that read blocks."
    tolerance: float = bounded(1e-4, low=0)  # largest allowed difference of a probability against torch

# %% [markdown]
# ## The published configurations
# Each is one script with its seeds and folds. They share optimiser, decay and the accumulation of two batches in each
# of three processes. The cosine is stretched, so that some of them end before it reaches zero. Two scripts count one
# mask twice, which is the double weight here.

# %%
#| export
def _loop(lr: float, epochs: int, batch_size: int, stretch: float = 1.0, seed: int = 3407) -> Optimisation:
    "The loop of a published script; `stretch` is the length of the cosine divided by that of the training."
    return Optimisation(epochs=epochs, batch_size=batch_size, accumulate=2, optimizer="adamw", lr=lr, min_lr=0.0,
                        schedule="cosine", restart_epochs=0.0 if stretch == 1 else epochs * stretch, weight_decay=1e-6,
                        seed=seed, workers=8)

def _seeds(model: Model, *seeds: int) -> tuple[Model, ...]:
    "The same model for each seed."
    return tuple(replace(model, name=f"{model.name}_seed{s}", loop=replace(model.loop, seed=s)) for s in seeds)

_MEDIUM = Model("coat_medium", "coat_lite_medium", "imagenet", hidden=256, auxiliary="unet", size=384, folds="all",
                loop=_loop(1e-4, 10, 1))
_SMALL = Model("coat_small_extravasation", "coat_lite_small", "imagenet", hidden=256, dropout=0.15, auxiliary="unet",
               auxiliary_weight=0.25, columns="bowel_injury extravasation_injury", crop=False, size=384, folds="1 3",
               best="loss", loop=_loop(1e-4, 10, 2, 1.05))
_V2S = Model("v2s", "tf_efficientnetv2_s.in21k_ft_in1k", "imagenet", rnn="lstm", hidden=640, auxiliary="unet",
             masks="liver spleen kidneys", columns=ORGAN_COLUMNS.replace("bowel_injury", "bowel_marked"), size=384,
             folds="all", loop=_loop(2e-4, 10, 2, 1.05))
_CNN = replace(_MEDIUM, hidden=512, auxiliary="cnn", auxiliary_weight=0.125, loop=_loop(1e-4, 12, 2, 1.2))
_RATES = {7: 9e-5, 7777: 1e-4, 7777777: 1.1e-4}

PUBLISHED = {  # name of the script -> window of its volumes, models
    "coatmed384fullseed": ("ours", _seeds(replace(_MEDIUM, auxiliary_weight=0.25), 969696)),
    "coat_med_newseg_ourdata_4f": ("ours", (
        replace(_CNN, auxiliary_weight=0.175, folds="1", loop=_loop(1e-4, 11, 1)),)),
    "coatmed384ourdataseed": ("ours", _seeds(
        replace(_MEDIUM, auxiliary_weight=0.15, loop=_loop(9e-5, 12, 1)), 100, 6969)),
    "v2s_try5_v10_fulldata": ("ours", _seeds(replace(_V2S, auxiliary_weight=0.3), 3407, 123, 123123, 123123123)),
    "coat_lite_medium_bs2_lr_seed": ("theo", tuple(
        replace(_CNN, name=f"coat_medium_seed{s}", loop=_loop(rate, 12, 2, 1.2, s)) for s, rate in _RATES.items())),
    "coat_lite_medium_bs2_lr125e6": ("theo", (replace(_CNN, folds="0", loop=_loop(1.25e-4, 12, 2, 1.2)),)),
    "coat_lite_medium_unet_bs1_lr10e5_seed7777": ("theo", (
        replace(_CNN, auxiliary="unet", folds="3", loop=_loop(1e-4, 12, 1, 1.2, 7777)),)),
    "try11_tf_efficientnetv2_s_in21ft1k_v1_fulldata": ("theo", _seeds(
        replace(_V2S, auxiliary_weight=0.1, best="score"), 3407, 42, 69, 17716124)),
    "coatsmall384extravast4funet": ("ours", (_SMALL,)),
    "fullextracoatsmall384": ("ours", _seeds(replace(_SMALL, folds="all"), 2024, 2717)),
    "try11_v8_extrav": ("theo", (
        replace(_V2S, name="v2s_extravasation", rnn="gru", auxiliary="cnn", auxiliary_weight=0.15,
                masks=" ".join(MASKS), columns="extravasation_injury bowel_marked", crop=False, folds="1 2 3",
                best="loss"),)),
    "coatmedium384extravast": ("theo", (
        replace(_CNN, name="coat_medium_extravasation", dropout=0.2, columns="bowel_injury extravasation_injury",
                crop=False, flips="horizontal", folds="0", best="loss", loop=_loop(1e-4, 9, 1, 1.05)),)),
}

# %% [markdown]
# ## Recipes
# The published recipes need GPUs, the competition's data and weights that timm fetches. A script that was trained on
# all data holds nothing back and has no score of its own.
#
# The patients of `demo` are drawn, and their injuries have five times the contrast of `Phantom`: a small network that
# starts at random learns little of weaker ones from so few patients. Three of its models differ in one thing each: the
# auxiliary masks, or the recurrent layer. All models hold back the same fold. The last epoch is kept, so no epoch is
# chosen on the patients that are scored.

# %%
#| export
_DEMO = Segment(network="test_resnet", widths="48 32 16 8", depth=16, size=48, every=1, n_folds=4, repeat=1,
                loop=replace(Segment().loop, epochs=12, batch_size=4, lr=8e-3, ema_decay=0.95, workers=0))
_SHORT = Blocks(step=20, keep=18, cutoff=60)
_SMALL_MODEL = Model(backbone="tf_efficientnet_lite0", weights="imagenet_lite", freeze=46, flips="horizontal",
                     folds="0", best="last", loop=replace(Model().loop, epochs=4, batch_size=4, accumulate=1, lr=1.5e-3,
                                                          ema_decay=0.85))
_WHOLE = {"name": "extravasation", "columns": "bowel_injury extravasation_injury", "crop": False}
_TINY = replace(_SMALL_MODEL, backbone="test_efficientnet", weights="none", freeze=0, size=32, hidden=8, folds="0 1",
                loop=replace(_SMALL_MODEL.loop, epochs=1))

RECIPES = {
    "demo": Recipe(
        "a synthetic competition of 160 patients at 96 pixels, injuries of five times their usual contrast, four "
        "EfficientNet-Lite0 at 64 pixels, one fold of four held back",
        Phantom(patients=160, lengths="20 40", prevalence=0.6, contrast=5.0), _DEMO, _SHORT, Folds(n_folds=4),
        Train((_SMALL_MODEL, replace(_SMALL_MODEL, name="organs_without_masks", auxiliary="none"),
               replace(_SMALL_MODEL, name="organs_slice_by_slice", auxiliary="none", rnn="none"),
               replace(_SMALL_MODEL, **_WHOLE)), jobs=2), Ensemble("all")),
    "tiny": Recipe(
        "the same stages in seconds; its scores mean nothing",
        Phantom(patients=8, test_patients=2, size=64, lengths="18 20 26"),
        replace(_DEMO, n_folds=2, loop=replace(_DEMO.loop, epochs=1, lr=1e-3)), _SHORT, Folds(n_folds=2),
        Train((_TINY, replace(_TINY, **_WHOLE)))),
} | {name: Recipe(
    f"the published script {name} on the competition's data, on GPUs", Volumes(COMPETITION, window), Train(models, 3),
    Segment(processes=3), Ensemble("all"), skips=("phantom",)) for name, (window, models) in PUBLISHED.items()}

# %%
assert len(PUBLISHED) == 12 and all(set(m.columns.split()) <= set(COLUMNS) for _, ms in PUBLISHED.values() for m in ms)
chosen = RECIPES[recipe]
pd.Series({f"{kind.__name__}.{name}": value for kind in (Volumes, Segment, Info, Blocks, Folds, Ensemble, Engines)
           for name, value in asdict(chosen.section(kind)).items()}).to_frame(recipe)

# %%
pd.DataFrame([asdict(m) | {"script": name, "window": window, "lr": m.loop.lr, "epochs": m.loop.epochs}
              for name, (window, models) in PUBLISHED.items() for m in models]).set_index("script").drop(
                  columns=["loop", "columns", "weights", "size"])

# %% [markdown]
# ---
# [↑ Abdominal trauma](00_system.py)

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
# > Every number that makes one experiment differ from another, in one place, with a name and a range.
#
# A recipe has one section for each stage, and a stage reads its own section only. So another number of epochs re-runs
# the training and what follows it, and leaves the crops alone. Sections are frozen, so the manifest of a run has the
# numbers that were used.

# %%
#| default_exp mammo.recipes

# %%
#| export
from dataclasses import dataclass, replace

from mammo_nb.core.optimisation import Optimisation
from mammo_nb.core.recipes import Recipe, bounded

# %%
#| hide
from dataclasses import asdict

import pandas as pd

from mammo_nb.core.recipes import RecipeError, override

# %% tags=["parameters"]
recipe = "demo"   # the recipe shown below

# %%
#| export
@dataclass(frozen=True)
class Phantom:
    "The synthetic competition; recipes for real data skip its stage."
    patients: int = bounded(96, low=1)       # in train.csv, with at least four views each
    test_patients: int = bounded(12, low=1)  # in test.csv
    rows: int = bounded(832, low=1, pixels=True)  # frame height, pixels
    columns: int = bounded(640, low=1, pixels=True)  # frame width, pixels
    prevalence: float = bounded(0.3, low=0, high=1)  # share of patients with a cancer in one breast
    seed: int = bounded(2023, low=0)
    conspicuity: float = bounded(1.0, low=0)  # contrast of lesions; an attentive reader finds them at 1

@dataclass(frozen=True)
class Datasets:
    "The data sets that are read."
    name: str = "phantom"       # the set that is split into folds: a folder below `raw` or `samples`, or phantom
    external: str = ""          # further sets, names separated by blanks: in every training and in no validation

@dataclass(frozen=True)
class Detector:
    "YOLOX-nano, which finds the breast; the defaults train in about a minute on two cores."
    # folder below `raw` with boxes in YOLOv5 text for the data set that is read; "": frames are drawn
    annotations: str = ""
    patients: int = bounded(250, low=2)               # number of drawn patients, four frames each
    held_back: float = bounded(0.1, low=0, high=1)    # share of the drawn patients that is used for validation
    strangeness: float = bounded(0.2, low=0, high=1)  # of drawn frames; stranger ones take longer to learn
    drawing_seed: int = bounded(67, low=0)
    # side of the network's input, pixels; the winner's: 416
    size: int = bounded(96, low=32, multiple=32, pixels=True)
    weights: str = "none"       # initial weights: none, or a .pth of YOLOX in assets/trained
    loop: Optimisation = Optimisation(epochs=9, batch_size=16, optimizer="adamw", lr=5e-3, min_lr=2e-4,
                                      schedule="yolox", warmup_epochs=0.2, weight_decay=1e-2, clip_norm=10.0,
                                      ema_decay=0.98, precision="fp32", checkpoint_every=50)
    # last epochs with the L1 loss of the sides; used in all epochs, it halves the time that is needed
    l1_epochs: int = bounded(9, low=0)
    # of batch normalisation; YOLOX's 0.03 needs more steps than that
    norm_momentum: float = bounded(0.1, low=0, high=1)
    # last epochs in which batch normalisation keeps its statistics, which small batches estimate badly
    frozen_norm: int = bounded(5, low=0)
    threads: int = bounded(2, low=0)           # of torch, on which the weights depend; 0: torch's default
    tolerance: float = bounded(0.05, low=0)    # largest allowed difference of a box against torch, pixels of the input
    faithful: bool = False      # frames, assignment of boxes to cells and split of patients as the winner had them

@dataclass(frozen=True)
class Crops:
    "From frame to breast."
    # longer side of the frame in which a box is refined, and searched without a detector, pixels
    box_size: int = bounded(416, low=1, pixels=True)
    confidence: float = bounded(0.5, low=0, high=1)  # least confidence of the detector; the winner's
    overlap: float = bounded(0.9, low=0, high=1)     # IoU above which the less confident of two boxes is removed
    min_area: float = bounded(0.04, low=0, high=1)   # a box with a smaller share of the frame is no breast
    # share of its sides by which a box may grow to the edge of the tissue in it; 0: boxes are used as they are found
    growth: float = bounded(0.2, low=0, high=1)
    margin: float = bounded(0.005, low=0, high=1)    # share of the longer side that is added to a refined box
    window: int = bounded(0, low=0)          # which of the header's windows; the winner took the first
    # the crop must fit into height x width pixels and is decoded no larger; 0: the size of the box
    height: int = bounded(0, low=0, pixels=True)
    width: int = bounded(0, low=0, pixels=True)
    # way to grey levels for files whose table names none; percentile is for MiniDDSM and CDD-CESM
    scaling: str = bounded("window", choices=("window", "percentile", "none"))
    faithful: bool = False      # the winner's preparation, its defects included (reading/faithful)
    half_windows: bool = False  # with faithful: windows as float16 where the winner's GPU decoded, in prediction only

@dataclass(frozen=True)
class Folds:
    "The split into folds; a patient is in one fold only."
    n_folds: int = bounded(4, low=2)
    seed: int = bounded(67, low=0)  # the winner's
    faithful: bool = False          # the rule of scikit-learn 1.2 to 1.7, as the winner's split; else the newer rule

@dataclass(frozen=True)
class Train:
    "Network, augmentation and optimisation of one classifier a fold."
    network: str = "tf_efficientnet_lite0"   # a timm name
    # initial weights: none, imagenet, imagenet:FILE, imagenet_lite, or a file, perhaps with {fold} in its name
    weights: str = "imagenet_lite"
    global_pool: str = "avg"                 # the winner's ConvNeXt: max
    height: int = bounded(256, low=16, pixels=True)  # network input, pixels
    width: int = bounded(128, low=16, pixels=True)
    drop_rate: float = bounded(0.2, low=0, high=1)
    drop_path_rate: float = bounded(0.0, low=0, high=1)
    loop: Optimisation = Optimisation(epochs=4, batch_size=16, optimizer="adamw", lr=1e-3, min_lr=5e-5, warmup_epochs=1,
                                      warmup_lr=1e-4, weight_decay=1e-2, ema_decay=0.99, checkpoint_every=20)
    # positives per negative in a batch (the winner: 0.1429); at least one positive
    positive_ratio: float = bounded(0.3, low=0)
    soft_positive: float = bounded(0.1, low=0, high=1)    # the target of a positive is 1 minus this
    label_smoothing: float = bounded(0.0, low=0, high=1)  # share of a target that is spread over both classes
    augmentation: float = bounded(0.9, low=0, high=1)     # share of images that are augmented at all
    augment: str = bounded("light", choices=("winner", "light", "broad", "baseline", "none"))  # the policy
    # processes of torchrun that train one network together, one for each GPU, each with batches of loop.batch_size
    processes: int = bounded(1, low=1)
    nodes: int = bounded(1, low=1)           # machines that train one network together, see docs/cluster
    jobs: int = bounded(1, low=1)            # folds at the same time, each with its share of cores or GPUs
    val_batch_size: int = bounded(32, low=1)
    # weight of the loss of the cells that show where lesions are, for a set with masks; 0: no such loss
    lesion_weight: float = bounded(0.0, low=0)
    freeze: int = bounded(0, low=0)          # number of parameters, from the first layer on, that are not trained
    mirrored: bool = False                   # validated and used with horizontal-flip TTA
    faithful: bool = False                   # crops fitted and augmented as the winner's code did, defects included
    folds: str = ""                          # which are trained, separated by blanks; "": all
    # a training of the same fold that comes first; this one continues from its last EMA weights
    before: "Train | None" = None
    # one Train per fold, if folds are trained in different ways; their networks must be alike
    by_fold: tuple["Train", ...] = ()

@dataclass(frozen=True)
class Select:
    "Which epoch of a fold is kept, and the threshold."
    # score over breasts; pf1 is the binarised probabilistic F1, which the winner used
    metric: str = bounded("pf1", choices=("pf1", "auc"))
    candidates: int = bounded(3, low=1)  # number of best epochs of each fold, whose combinations are all scored

@dataclass(frozen=True)
class Engines:
    "The ensemble as one graph."
    tolerance: float = bounded(1e-4, low=0)  # largest allowed difference of a probability against torch, fp32
    reduced_tolerance: float = bounded(5e-3, low=0)  # the same for providers that compute in 16 bits
    # providers that are compared with torch besides ONNX Runtime; engines are built from the graph of onnxruntime-fp16
    ways: str = "openvino-fp32 openvino-bf16 torch-bf16"
    # cheaper ensembles, for a time budget: "2" has the two best folds, "2@0.75" at three quarters of the size
    variants: str = ""
    # kinds of GPU that TensorRT-RTX engines are built for, such as "SM75 SM86"; needs the package, but not the GPU
    targets: str = ""

# %% [markdown]
# `demo` is what `make reproduce` runs. `tiny` has the same stages at a size that only shows that they fit together; the
# practice run of a stage notebook uses it. Recipes that end in `_roi` train the detector alone: `winner_roi` has the
# numbers of the winner's.
#
# Recipes that begin with `winner` prepare frames and crops as the winner did, defects included (`faithful`), because
# his scores belong to these inputs. Three patients of his boxes are in the detector's training and in its validation,
# and stay there. Where these recipes still differ is in [Where we leave the originals](../70_originals.py).
#
# The winner trained four classifiers, one per fold, in two ways. Folds 0 and 1 came first, with a lower learning rate
# and softer targets. They had not learnt enough, so their training was continued (`winner_stage1`, then
# `winner_stage2`). Folds 2 and 3 were trained in one part. `winner` does all of this in one run and ends with the
# ensemble; the other recipes train a part of it. `winner_label_smoothing` smooths both classes instead of softening the
# positives; it had the best private score of all, 0.56.

# %%
#| export
_detector = Detector(
    annotations="roi_det_yolov5_format", size=416, weights="yolox_nano.pth", l1_epochs=5, norm_momentum=0.03,
    frozen_norm=0, threads=0, faithful=True,
    loop=Optimisation(epochs=400, batch_size=64, optimizer="sgd", lr=1e-3, min_lr=5e-5, schedule="yolox",
                      warmup_epochs=50.0, warmup_lr=1e-5, flat_epochs=5, weight_decay=5e-4, ema_decay=0.9998,
                      ema_ramp=2000, precision="fp32", checkpoint_every=1000, workers=4))
_train = Train(
    network="convnext_small.fb_in22k_ft_in1k_384", weights="imagenet", global_pool="max", height=2048, width=1024,
    drop_rate=0.5, drop_path_rate=0.2, positive_ratio=0.1429, soft_positive=0.1, augmentation=0.9, augment="winner",
    val_batch_size=16, faithful=True,
    loop=Optimisation(epochs=31, batch_size=8, optimizer="sgd", lr=3e-3, min_lr=5e-5, warmup_epochs=4, warmup_lr=3e-5,
                      flat_epochs=1, weight_decay=2e-5, ema_decay=0.9998, ema_ramp=-1, checkpoint_every=500, workers=8))
_stage1 = replace(_train, soft_positive=0.2,
                  loop=replace(_train.loop, lr=1e-3, min_lr=1e-5, warmup_lr=1e-5, epochs=25))
_stage2 = replace(_train, before=_stage1,
                  loop=replace(_train.loop, lr=1e-3, warmup_epochs=1, warmup_lr=1e-3, epochs=17))

_RSNA = "rsna-breast-cancer-detection"

def _winner(about: str, train: Train, **changes) -> Recipe:
    "A training of the winner's classifiers: his preparation, crops in their own size, six data sets."
    datasets = Datasets(_RSNA, external="vindr miniddsm cmmd cddcesm bmcd")
    return Recipe(about, datasets, _detector, Crops(faithful=True), Folds(faithful=True), replace(train, **changes),
                  skips=("phantom",))

def _cbis(about: str, height: int, width: int, epochs: int, **changes) -> Recipe:
    """A training on CBIS-DDSM. Half of these breasts have a cancer, so a batch has as many positives as negatives, and
    the score is AUC. The 27 frozen parameters of Lite0 are its first three blocks, the 36 of Lite2 its first four. The
    contribution of each choice is measured in tests/bench/cbis.py."""
    loop = replace(Train().loop, epochs=epochs, schedule="cosine", lr=1e-3, min_lr=1e-5)
    train = Train(height=height, width=width, drop_rate=0.3, positive_ratio=1.0, soft_positive=0.0, augmentation=1.0,
                  augment="broad", loop=loop, lesion_weight=10.0, freeze=27, mirrored=True)
    return Recipe(about, Datasets("cbis_ddsm_mass_256"), Crops(height=height, width=width), replace(train, **changes),
                  Select(metric="auc", candidates=1), mode="labelled")

RECIPES = {
    "demo": Recipe("synthetic competition, ImageNet EfficientNet-Lite0 at 256x128, 4 folds",
                   Crops(height=256, width=128), Train(jobs=2, loop=replace(
                       Train().loop, epochs=2, warmup_epochs=0.5, lr=1.5e-3, ema_decay=0.97)),
                   Engines(variants="2 1")),
    "tiny": Recipe("the same stages in seconds; its scores mean nothing",
                   Phantom(patients=12, test_patients=3, rows=320, columns=256, prevalence=0.5, conspicuity=2.0),
                   Detector(patients=4, held_back=0.25, size=64, l1_epochs=2, frozen_norm=0, threads=1,
                            loop=replace(Detector().loop, epochs=2, batch_size=4, checkpoint_every=2)),
                   Crops(height=128, width=64), Folds(n_folds=2),
                   Train(height=128, width=64, loop=replace(Train().loop, epochs=2, batch_size=8, checkpoint_every=2)),
                   Engines(variants="1")),
    "cbis": _cbis("CBIS-DDSM masses at 256x256, benign or malignant: real film mammograms, half an hour on two cores",
                  320, 192, epochs=7),
    "cbis_long": _cbis("the same, larger, with a larger network, an hour on two cores", 448, 256, epochs=6,
                       network="tf_efficientnet_lite2", freeze=36, drop_path_rate=0.1),
    "demo_roi": Recipe("the detector of `demo` alone", mode="detector"),
    "winner_roi": Recipe("the winner's detector: 571 boxes on frames of the competition, 400 epochs from COCO's "
                         "weights, on a GPU", Datasets(_RSNA), _detector, mode="detector"),
    "winner": _winner("the winner's ensemble: folds 0 and 1 in two parts, 2 and 3 in one, ConvNeXt-small at 2048x1024, "
                      "on a GPU", _train, by_fold=(_stage2, _stage2, _train, _train)),
    "winner_fold2": _winner("the winner's fold 2", _train, folds="2"),
    "winner_fold3": _winner("the winner's fold 3, trained as fold 2", _train, folds="3"),
    "winner_stage1": _winner("the winner's folds 0 and 1, first part", _stage1, folds="0 1"),
    "winner_stage2": _winner("the winner's folds 0 and 1, second part, from the last EMA weights of the first part, "
                             "which comes before", _stage2, folds="0 1"),
    "winner_label_smoothing": _winner("the winner's variant with smoothed labels, all folds as fold 2", _train,
                                      soft_positive=0.0, label_smoothing=0.1),
}

# %%
pd.DataFrame({n: asdict(replace(r.section(Train), before=None, by_fold=())) for n, r in RECIPES.items()})

# %% [markdown]
# A field can be changed for one run, `make reproduce SET="train.loop.epochs=8"`. A wrong name or value is an error
# before anything runs:

# %%
train = RECIPES[recipe].section(Train)
for overrides in ({"epochs": 8}, {"loop.epoch": 8}, {"loop.epochs": "8"}, {"before": ""}):
    try:
        override(train, overrides, "train")
    except RecipeError as e:
        print(e)
# a change also reaches the trainings in `by_fold` and `before`
whole = override(RECIPES["winner"].section(Train), {"loop.epochs": 3}, "train")
assert [t.loop.epochs for t in whole.by_fold] == [3] * 4 and whole.by_fold[0].before.loop.epochs == 3
assert whole.by_fold[2].before is None

# %% [markdown]
# ---
# [↑ Mammography](00_system.py)

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
# > The numbers of each experiment on head CT, with names and ranges.
#
# A recipe has one section for each stage. The published experiments are `fast`, `single` and `full`; `demo` is the same
# method at a size that two cores train in minutes.

# %%
#| default_exp ich.recipes

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
# ## Classes
# Five kinds of hemorrhage, and whether there is any, in the order of the original's outputs. A label belongs to a
# slice. A data set may have fewer of them.

# %%
#| export
CLASSES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")

def classes_of(
    table,             # a table of slices
) -> tuple[str, ...]:  # in the order of CLASSES
    "The classes for which a table has a column of labels."
    return tuple(c for c in CLASSES if c in table.columns)

# %% [markdown]
# ## Sections

# %%
#| export
COMPETITION = "rsna-intracranial-hemorrhage-detection"

@dataclass(frozen=True)
class Phantom:
    "The synthetic competition; recipes for real data skip its stage."
    patients: int = bounded(60, low=5)       # with labels, one or two series each
    test_patients: int = bounded(10, low=1)  # without labels
    size: int = bounded(128, low=32, pixels=True)  # rows and columns of a slice, pixels
    slices: int = bounded(26, low=8)         # median length of a series
    prevalence: float = bounded(0.55, low=0, high=1)  # share of patients with a hemorrhage
    contrast: float = bounded(1.0, low=0)    # of hemorrhages against brain; an attentive reader finds them at 1
    seed: int = bounded(2019, low=0)

@dataclass(frozen=True)
class Prepare:
    "From series to pictures."
    dataset: str = "phantom"    # a folder below `raw` or `samples`, or phantom
    # box of the head: of each slice, as in the original; or of all slices of a series, which keeps their scale
    box: str = bounded("slice", choices=("slice", "series"))
    # the original's windows, which are shifted to each picture's own minimum, and its crop with all thin lines
    faithful: bool = False

@dataclass(frozen=True)
class Folds:
    "The split into folds; a patient is in one fold only."
    n_folds: int = bounded(5, low=2)
    # original: the place of a patient's first image among all, modulo the number of folds; stratified: by `any`
    method: str = bounded("stratified", choices=("original", "stratified"))
    seed: int = bounded(67, low=0)  # of the stratified split

@dataclass(frozen=True)
class View:
    "What a classifier sees of a slice."
    name: str = "windows"       # its name in files and tables
    # windows: brain, subdural and bone window of the slice; neighbours: brain window of three slices in order
    channels: str = bounded("windows", choices=("windows", "neighbours"))
    crop: bool = True           # whether the head is cut out

@dataclass(frozen=True)
class Classify:
    "One classifier of slices for each view and fold."
    network: str = "tf_efficientnet_lite0"  # a timm name
    # initial weights: none, imagenet, imagenet:FILE, imagenet_lite or a file; a folder of published files, which are
    # used as they are; {view} and {fold} stand for its name and number
    weights: str = "imagenet_lite"
    embedding: int = bounded(64, low=0)     # width of a layer before the last one; 0: none, the network's own features
    size: int = bounded(64, low=32, pixels=True)  # side of the network's input, pixels
    views: tuple[View, ...] = (View(), View("neighbours", "neighbours"))
    folds: str = "0 1 2"                    # which are held back, separated by blanks; all: one training on all data
    freeze: int = bounded(0, low=0)         # number of parameters, from the first layer on, that are not trained
    dropout: float = bounded(0.0, low=0, high=1)  # before each of the last layers
    # original: mirrored, shifted, scaled, rotated, transposed; upright: more of it and other grey levels, but not
    # transposed; none: as they are
    augment: str = bounded("original", choices=("original", "upright", "none"))
    loop: Optimisation = Optimisation(epochs=3, batch_size=32, optimizer="adamw", lr=1e-3, min_lr=5e-5,
                                      warmup_epochs=0.5, weight_decay=1e-2, schedule="cosine", checkpoint_every=50)
    processes: int = bounded(1, low=1)      # of torchrun that train one network together
    nodes: int = bounded(1, low=1)          # machines that train one network together, see docs/cluster
    jobs: int = bounded(1, low=1)           # trainings at the same time, each with its share of cores or GPUs

@dataclass(frozen=True)
class Embed:
    "Features of every slice from the last epochs of each classifier."
    epochs: int = bounded(1, low=1)         # last epochs of each training that are used
    tta: int = bounded(3, low=1, high=3)    # views of a slice: plain, also mirrored, also transposed
    batch_size: int = bounded(64, low=1)
    jobs: int = bounded(1, low=1)           # classifiers at the same time

@dataclass(frozen=True)
class Reader:
    "One kind of sequence model."
    name: str = "lstm"          # its name in files and tables
    view: str = "windows"       # the classifier whose features it reads
    cell: str = bounded("lstm", choices=("lstm", "gru"))
    deltas: bool = True         # whether it also gets the differences to both neighbours
    tta: int = bounded(3, low=1, high=3)  # views of a slice whose mean features it gets, as in Embed
    seed: int = bounded(0, low=0)  # added to the seed of the training: another start of the same kind

@dataclass(frozen=True)
class Sequence:
    "One sequence model for each kind, fold and epoch of the classifier."
    readers: tuple[Reader, ...] = (Reader("plain", deltas=False, tta=1), Reader("deltas", tta=1), Reader(),
                                   Reader("gru", cell="gru"), Reader("neighbours", view="neighbours"))
    units: int = bounded(64, low=1)         # of each direction: as many as there are features
    bag_epochs: int = bounded(4, low=1)     # last epochs whose predictions are averaged
    loop: Optimisation = Optimisation(epochs=12, batch_size=4, optimizer="adam", lr=1e-3, schedule="step",
                                      step_epochs=1, step_factor=0.95, precision="fp32")
    # features that a training reads: mean, as the original's; each: one of the averaged views at a time
    views: str = bounded("mean", choices=("mean", "each"))
    smoothing: float = bounded(0.0, low=0, high=1)  # share of a label that is replaced by the mean of its class
    jobs: int = bounded(1, low=1)           # trainings at the same time
    faithful: bool = False                  # zeros before a shorter series, which the model reads, as in the original

@dataclass(frozen=True)
class EndToEnd:
    "Classifier and sequence model trained as one."
    reader: str = "lstm"        # the kind that is continued
    loop: Optimisation = Optimisation(epochs=1, batch_size=1, accumulate=4, optimizer="adamw", lr=1e-4,
                                      min_lr=1e-5, schedule="cosine", weight_decay=1e-2, precision="fp32")
    jobs: int = bounded(1, low=1)           # trainings at the same time

@dataclass(frozen=True)
class Bag:
    "Which sequence models are averaged."
    readers: str = "lstm"       # names of kinds, separated by blanks

@dataclass(frozen=True)
class Engines:
    "The bag as two graphs: classifiers, and sequence models."
    tolerance: float = bounded(1e-4, low=0)  # largest allowed difference of a probability against torch

# %% [markdown]
# ## Recipes
# `full` trains a bag with and a bag without the crop. The original embedded both with the crop, by mistake; here each
# bag is embedded as it was trained. `single` trains on all data, so nothing is held back and it has no score of its
# own. `end2end` adds the step for which its authors had no time left. These recipes need a GPU, the competition's data
# and the weights of ResNeXt-101, which timm fetches.
#
# `phe` has real scans of 60 patients. Its classifier and the smoothing and views of its sequence model were chosen on
# predictions of these patients out of fold, in trials with another split, so its score is not that of untouched data.

# %%
#| export
_CLASSIFIER = Classify(
    network="resnext101_32x8d.fb_wsl_ig1b_ft_in1k", weights="imagenet", embedding=0, size=480, views=(View("cropped"),),
    loop=Optimisation(epochs=5, batch_size=64, optimizer="adam", lr=2e-5, schedule="step", step_epochs=100, seed=1234,
                      workers=8))
_CROPPED, _WHOLE = Reader("cropped", view="cropped"), Reader("whole", view="whole")
_READERS = Sequence(
    (_CROPPED,), units=2048, bag_epochs=12,
    loop=Optimisation(epochs=12, batch_size=4, optimizer="adam", lr=1e-5, schedule="step", step_epochs=1,
                      step_factor=0.95))
_AGAIN = (Reader("second", seed=100), Reader("third", seed=200))  # small models differ from start to start
_FOLDS = Folds(method="original")
_REAL = Prepare(COMPETITION)

RECIPES = {
    "demo": Recipe(
        "a synthetic competition, EfficientNet-Lite0 at 64x64 pixels, two folds",
        Phantom(patients=84, prevalence=0.7, contrast=1.4), Folds(n_folds=2),
        Classify(folds="0 1", freeze=46, jobs=2,
                 loop=replace(Classify().loop, epochs=2, batch_size=16, min_lr=1e-5, ema_decay=0.95)),
        Embed(jobs=2), Sequence((*Sequence().readers, *_AGAIN), bag_epochs=2, views="each", smoothing=0.02, jobs=2,
                                loop=replace(Sequence().loop, lr=3e-3)),
        EndToEnd(jobs=2), Bag("lstm second third")),
    "tiny": Recipe(
        "the same stages in seconds; its scores mean nothing",
        Phantom(patients=8, test_patients=2, size=64, slices=10), Folds(n_folds=2),
        Classify(network="resnet10t", weights="none", embedding=16, size=32, folds="0",
                 loop=replace(Classify().loop, epochs=1, batch_size=16)),
        Sequence((Reader("plain", deltas=False, tta=1), Reader()), units=16, bag_epochs=1,
                 loop=replace(Sequence().loop, epochs=2))),
    "phe": Recipe(
        "60 patients with real hemorrhages, one window, one label a slice, all of five folds",
        Prepare("head_ich_phe_256", box="series"),
        Classify(size=128, views=(View(),), folds="0 1 2 3 4", freeze=46, dropout=0.25, augment="upright", jobs=2,
                 loop=replace(Classify().loop, batch_size=16, min_lr=1e-5, ema_decay=0.98)),
        Embed(tta=2, jobs=2),
        Sequence((Reader("plain", deltas=False, tta=1), Reader("deltas", tta=1), Reader(tta=2),
                  *(replace(r, tta=2) for r in _AGAIN)), bag_epochs=1, jobs=2,
                 loop=replace(Sequence().loop, epochs=30, batch_size=16, optimizer="adamw", min_lr=1e-5,
                              schedule="cosine"), views="each", smoothing=0.02),
        Bag("lstm second third"), mode="labelled", skips=("phantom", "end2end")),
    "single": Recipe(
        "the published single run: ResNeXt-101 at 480 pixels on all data for 3 epochs, an LSTM for each, on GPUs",
        _REAL, _FOLDS, replace(_CLASSIFIER, folds="all", loop=replace(_CLASSIFIER.loop, epochs=3)),
        Embed(epochs=3, tta=1), replace(_READERS, readers=(replace(_CROPPED, tta=1),)), Bag("cropped"),
        skips=("phantom", "end2end")),
    "full": Recipe(
        "the published bag: three folds of five, with and without the crop, five epochs each, on GPUs",
        _REAL, _FOLDS, replace(_CLASSIFIER, views=(View("cropped"), View("whole", crop=False))), Embed(epochs=5),
        replace(_READERS, readers=(_CROPPED, _WHOLE)), Bag("cropped whole"), skips=("phantom", "end2end")),
    "fast": Recipe(
        "given embeddings to a submission: only the sequence models are trained, on one fold",
        _REAL, _FOLDS, replace(_CLASSIFIER, folds="1"), Embed(epochs=4, tta=1),
        replace(_READERS, readers=(replace(_CROPPED, tta=1),)), Bag("cropped"), mode="fast", skips=("phantom",)),
    "end2end": Recipe(
        "the published classifier and LSTM of one fold, then both trained as one, on GPUs",
        _REAL, _FOLDS, replace(_CLASSIFIER, folds="0"), Embed(epochs=1), _READERS, EndToEnd("cropped", replace(
            EndToEnd().loop, lr=2e-6, min_lr=2e-7, workers=8)), Bag("cropped"), skips=("phantom",)),
}

# %%
chosen = RECIPES[recipe]
pd.Series({f"{kind.__name__}.{name}": value for kind in (Prepare, Folds, Classify, Embed, Sequence, EndToEnd, Bag)
           for name, value in asdict(chosen.section(kind)).items()}).to_frame(recipe)

# %% [markdown]
# ---
# [↑ Head CT](00_system.py)

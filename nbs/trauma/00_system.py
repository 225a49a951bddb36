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
# # Abdominal trauma
# > RSNA Abdominal Trauma Detection (2023), first place: organs in three dimensions, injuries in two and a half.
#
# An injury is a few slices of a series of hundreds, in an organ that fills a tenth of the picture. This system first
# finds the organs with a small 3D network. They say where to look, and how much of an organ is in each slice: the label
# of a patient becomes a label of slices. A second network then reads blocks of slices, each with its two neighbours,
# and a recurrent layer connects them.
#
# Reading order: the numbered notebooks are the stages, `01_phantom` to `11_report`, in the order in which they run.
# Their libraries are in folders: `drawing/` draws bodies and injuries, `reading/` reads tables and makes volumes,
# `learning/` has losses, networks and data sets, and `tools/` has what is used beside a run.

# %%
#| default_exp trauma.system

# %%
#| export
from mammo_nb.core.settings import sealed
from mammo_nb.core.systems import Mode, Stage, System
from mammo_nb.trauma.recipes import (COMPETITION, RECIPES, Blocks, Engines, Ensemble, Folds, Info, Phantom, Segment,
                                     Train, Volumes)

# %%
#| hide
import pandas as pd

from mammo_nb.core.pictures import diagram

# %% [markdown]
# ## Names that depend on the recipe

# %%
#| export
NETWORKS = ("segmenter.onnx", "segmenter.json", "classifier.onnx", "classifier.json")

def training_images(run) -> list[str]:
    "the images of the data set"
    from mammo_nb.trauma.reading.competition import image_files  # slow to load, and needed in a run only
    return image_files(run)

def training_grades(run) -> list[str]:
    "train.csv of the data set"
    from mammo_nb.trauma.reading.competition import grade_files
    return grade_files(run)

def injured_slices(run) -> list[str]:
    "image_level_labels.csv of the data set"
    from mammo_nb.trauma.reading.competition import injured_files
    return injured_files(run)

def training_masks(run) -> list[str]:
    "the segmentations of the data set"
    from mammo_nb.trauma.reading.competition import mask_files
    return mask_files(run)

def test_set(run) -> list[str]:
    "the competition's sample_submission.csv and test images"
    from mammo_nb.trauma.reading.competition import test_files
    return test_files(run)

def submitted_weights(run) -> list[str]:
    "the two graphs: of the run, or of the folder WEIGHTS"
    place = run.weights if run.mode == "trained" else run.path("weights/")
    return [str(place / name) for name in dict.fromkeys((*NETWORKS, *sealed(place)))]

def results(run) -> list[str]:
    "what the stages of this run have written"
    made = {"segment": ["checkpoints/segment/history.csv"], "ensemble": ["oof.csv", "ladder.csv", "ensemble.json"],
            "train": ["checkpoints/train/history.csv"],
            "submit": ["submissions/submission.csv", "test_per_patient.csv", "submit.json"]}
    return [name for stage, names in made.items() if run.has(stage) for name in names]

# %% [markdown]
# ## The declaration

# %%
#| export
_PREPARED = ("volumes", "segment", "info", "blocks", "folds")
_LEARNED = ("train", "ensemble", "engines")
_READ = ("info.csv", "blocks.csv", "folds.csv", "processed/volumes/", "processed/masks/")
_SLICES = ("processed/slices.csv", "processed/series.csv", "processed/volumes/")

system = System(
    name="trauma",
    title="RSNA Abdominal Trauma Detection (2023), first place",
    stages=(
        Stage("phantom", Phantom, unless="volumes.dataset",
              writes=("competition/train.csv", "competition/image_level_labels.csv",
                      "competition/train_series_meta.csv", "competition/train_images/", "competition/segmentations/",
                      "competition/test_series_meta.csv", "competition/sample_submission.csv",
                      "competition/test_images/", "competition/truth/")),
        Stage("volumes", Volumes, reads=(training_images,), writes=_SLICES),
        Stage("segment", Segment, reads=(*_SLICES, training_images, training_masks),
              writes=("checkpoints/segment/history.csv", "checkpoints/segment/", "weights/segment.safetensors",
                      "weights/segment.json")),
        Stage("info", Info, reads=("processed/slices.csv", "processed/volumes/", injured_slices,
                                   "weights/segment.safetensors", "weights/segment.json"),
              writes=("info.csv", "processed/masks/")),
        Stage("blocks", Blocks, reads=("info.csv",), writes=("blocks.csv",)),
        Stage("folds", Folds, reads=("info.csv", training_grades), writes=("folds.csv",)),
        Stage("train", Train, reads=(*_READ, "processed/slices.csv"),
              writes=("checkpoints/train/history.csv", "checkpoints/train/", "weights/models/")),
        Stage("ensemble", Ensemble, reads=("folds.csv", "checkpoints/train/history.csv", "checkpoints/train/",
                                           "weights/models/"),
              writes=("oof.csv", "ladder.csv", "ensemble.json")),
        Stage("engines", Engines, reads=("ensemble.json", *_READ, "weights/segment.safetensors",
                                         "weights/segment.json", "weights/models/"),
              writes=tuple(f"weights/{name}" for name in (*NETWORKS, "parts.json"))),
        Stage("submit", reads=(test_set, submitted_weights),
              writes=("submissions/submission.csv", "test_per_patient.csv", "submit.json")),
        Stage("report", reads=(results,)),
    ),
    modes={
        "full": Mode("everything is trained", ("phantom", *_PREPARED, *_LEARNED, "submit", "report")),
        "trained": Mode("trained weights for everything", ("phantom", "submit", "report"), weights=NETWORKS),
    },
    recipes=RECIPES,
    failures={"processed/slices.csv": "training slices", "test_per_patient.csv": "test patients"},
    competition=COMPETITION,
    weights=NETWORKS,
    predict="tools.predict",
    check="tools.check",
    outcomes="ensemble",
)

# %% [markdown]
# The two networks, and what goes from one to the other:

# %%
diagram({"series": (0, 0, "series"), "unet": (1.1, 0, "3D U-Net"), "organs": (2.2, 0, "organs"),
         "blocks": (1.1, 1, "crop around the organs,\nblocks of triplets"),
         "cnn": (2.6, 1, "2D network,\nslice by slice"),
         "rnn": (3.8, 1, "recurrent layer,\nboth directions"), "p": (5, 1, "injuries\nof each slice"),
         "labels": (3.6, 0, "visibility of each organ:\nlabels of slices"),
         "decoder": (3.8, 2, "decoder: outlines of the organs,\nin training only")},
        [("series", "unet"), ("unet", "organs"), ("series", "blocks"), ("organs", "blocks"), ("blocks", "cnn"),
         ("cnn", "rnn"), ("rnn", "p"), ("organs", "labels"), ("cnn", "decoder"), ("labels", "p", "training")])

# %% [markdown]
# The flow of the data, drawn from the declaration:

# %%
system.flow()

# %%
pd.DataFrame({name: [recipe.about, recipe.mode] for name, recipe in system.recipes.items()}, index=["about", "mode"]).T

# %% [markdown]
# ---
# [← Start here](../00_start.py) · [Phantom →](01_phantom.py)

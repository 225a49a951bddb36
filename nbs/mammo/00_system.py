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
# # Mammography
# > RSNA Screening Mammography Breast Cancer Detection (2023), first place: DICOM to breast, crop, ensemble, submission.
#
# This notebook declares the system: its stages with what they read and write, its modes, and the tables in which a
# failed file has a row. The sections and the recipes stand beside it in `recipes`. The Makefile, the commands, the
# Kaggle side and the tests read the declaration; nothing else names a stage.
#
# Reading order: the numbered notebooks are the stages, `01_phantom` to `10_report`, in the order in which they run.
# Their libraries are in folders: `drawing/` draws breasts and frames, `reading/` reads published data sets, boxes and
# the input of a prediction, `learning/` has augmentation, and `tools/` has what is used beside a run.

# %%
#| default_exp mammo.system

# %%
#| export
from mammo_nb.core.settings import sealed
from mammo_nb.core.systems import Mode, Stage, System
from mammo_nb.mammo.recipes import RECIPES, Crops, Datasets, Detector, Engines, Folds, Phantom, Select, Train

# %%
#| hide
import pandas as pd

# %% [markdown]
# ## Names that depend on the recipe
# Most files have fixed names. The published tables depend on the data sets that a recipe names, and the weights of a
# submission may lie outside of the run.

# %%
#| export
DETECTOR = ("detector.onnx", "detector.json")
ENSEMBLE = ("ensemble.onnx", "ensemble.json")

def published_tables(run) -> list[str]:
    "the label table of each data set of the recipe"
    from mammo_nb.mammo.datasets import published  # slow to load, and the command line needs it only in a run
    return published(run)

def source_images(run) -> list[str]:
    "the images of the data sets"
    from mammo_nb.mammo.datasets import set_folders
    return set_folders(run)

def drawn_boxes(run) -> list[str]:
    "boxes that people have drawn, and their frames, where the recipe names some"
    named = run.section("detector").annotations
    if not named or not trains_detector(run):
        return []
    return [f"raw/{named}/", f"raw/{run.section('datasets').name}/"]

def trains_detector(run) -> bool:
    "Whether the run trains its breast detector."
    return run.mode != "partial"

def detector_training(run) -> list[str]:
    "frames, checkpoints and weights of the detector, if it is trained"
    return ["processed/roi/", "checkpoints/detector/", "weights/yolox.*"] if trains_detector(run) else []

def lesion_masks(run) -> list[str]:
    "masks of lesions, of data sets that have some"
    return ["processed/cleaned_masks/"] if run.path("processed/cleaned_masks").is_dir() else []

def test_set(run) -> list[str]:
    "the competition's test.csv, sample_submission.csv and test images"
    from mammo_nb.mammo.datasets import competition
    return [f"{competition(run)}/{name}" for name in ("test.csv", "sample_submission.csv", "test_images/")]

def submitted_weights(run) -> list[str]:
    "the ensemble and the detector: of the run, or of the folder WEIGHTS"
    place = run.weights or run.path("weights/")
    return [str(place / name) for name in dict.fromkeys((*ENSEMBLE, *DETECTOR, *sealed(place)))]

def results(run) -> list[str]:
    "what the stages of this run have written"
    made = {"folds": ["folds.csv"], "select": ["oof.csv", "selection.json"], "train": ["checkpoints/history.csv"],
            "submit": ["submissions/submission.csv", "test_per_image.csv", "submit.json"]}
    return [name for stage, names in made.items() if run.has(stage) for name in names]

# %% [markdown]
# ## The declaration

# %%
#| export
_TRAINED = ("datasets", "detector", "crops", "folds", "train", "select", "engines")

system = System(
    name="mammo",
    title="RSNA Screening Mammography (2023), first place",
    stages=(
        Stage("phantom", Phantom, unless="datasets.name",
              writes=("competition/train.csv", "competition/test.csv", "competition/sample_submission.csv",
                      "competition/train_images/", "competition/test_images/", "competition/truth/")),
        Stage("datasets", Datasets, reads=(published_tables,), writes=("processed/cleaned_label.csv",)),
        Stage("detector", Detector, reads=(drawn_boxes,),
              writes=("weights/detector.onnx", "weights/detector.json", detector_training)),
        Stage("crops", Crops, reads=("processed/cleaned_label.csv", source_images, "weights/detector.*"),
              writes=("processed/cleaned_images/", "processed/crops.csv", "processed/crop_errors.csv",
                      "processed/crops_seconds.*", lesion_masks)),
        Stage("folds", Folds, reads=("processed/cleaned_label.csv", "processed/crops.csv"), writes=("folds.csv",)),
        Stage("train", Train, reads=("folds.csv", "processed/crops.csv", "processed/cleaned_images/", lesion_masks),
              writes=("checkpoints/history.csv", "checkpoints/fold_*")),
        Stage("select", Select, reads=("checkpoints/history.csv", "checkpoints/fold_*"),
              writes=("oof.csv", "selection.json", "combinations.csv", "weights/fold_*")),
        Stage("engines", Engines,
              reads=("selection.json", "oof.csv", "weights/fold_*", "weights/detector.*",
                     "processed/cleaned_images/"),
              writes=("weights/ensemble*.onnx", "weights/ensemble*.json", "weights/parts.json")),
        Stage("submit", reads=(test_set, submitted_weights),
              writes=("submissions/submission.csv", "test_per_image.csv", "submit.json")),
        Stage("report", reads=(results,)),
    ),
    modes={
        "full": Mode("everything is trained", ("phantom", *_TRAINED, "submit", "report")),
        "partial": Mode("a trained breast detector is kept, the rest is trained",
                        ("phantom", *_TRAINED, "submit", "report"), weights=DETECTOR),
        "trained": Mode("trained weights for everything", ("phantom", "submit", "report"), weights=ENSEMBLE + DETECTOR),
        "detector": Mode("only the breast detector is trained", ("detector",)),
        "labelled": Mode("trained on labelled images, where there is no test set", (*_TRAINED, "report")),
    },
    recipes=RECIPES,
    failures={"processed/crop_errors.csv": "training images", "test_per_image.csv": "test images"},
    competition="rsna-breast-cancer-detection",
    default=True,
    weights=ENSEMBLE + DETECTOR,
    commands="tools.commands",
    predict="tools.predict",
    read="reading.mammograms",
    ready="tools.ready",
    check="tools.check",
    outcomes="select",
)

# %% [markdown]
# The flow of the data, drawn from the declaration:

# %%
system.flow()

# %%
pd.DataFrame({name: [recipe.about, recipe.mode] for name, recipe in system.recipes.items()}, index=["about", "mode"]).T

# %% [markdown]
# ---
# [← Start here](../00_start.py) · [Phantom →](01_phantom.py)

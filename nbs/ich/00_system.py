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
# # Head CT
# > RSNA Intracranial Hemorrhage Detection (2019), second place: slices to embeddings, series to predictions.
#
# A radiologist who sees a bright spot looks at the slices above and below it. This system does the same in two steps. A
# classifier sees single slices, and its features are stored. A sequence model then reads the features of a series in
# the order of the patient, and predicts each slice with its neighbours in view.
#
# Reading order: the numbered notebooks are the stages, `01_phantom` to `11_report`, in the order in which they run.
# Their libraries are in folders: `drawing/` draws heads, hemorrhages and scanners, `reading/` reads tables and makes
# pictures, `learning/` has losses, networks and data sets, and `tools/` has what is used beside a run.

# %%
#| default_exp ich.system

# %%
#| export
from mammo_nb.core.settings import sealed
from mammo_nb.core.systems import Mode, Stage, System
from mammo_nb.ich.recipes import (COMPETITION, RECIPES, Bag, Classify, Embed, EndToEnd, Engines, Folds, Phantom,
                                  Prepare, Sequence)

# %%
#| hide
import pandas as pd

from mammo_nb.core.pictures import diagram

# %% [markdown]
# ## Names that depend on the recipe

# %%
#| export
NETWORKS = ("encoder.onnx", "encoder.json", "sequence.onnx", "sequence.json")

def training_set(run) -> list[str]:
    "the label table and the images of the data set"
    from mammo_nb.ich.reading.competition import training_files  # slow to load, and needed in a run only
    return training_files(run)

def test_set(run) -> list[str]:
    "the competition's stage_2_sample_submission.csv and test images"
    from mammo_nb.ich.reading.competition import test_files
    return test_files(run)

def embeddings(run) -> list[str]:
    "embeddings of all slices and the list of them: of the run, or of the folder WEIGHTS"
    given = run.weights if run.mode == "fast" else None
    folder = given or run.path("weights/")
    return [str(folder / "embeddings") + "/", str(folder / "embeddings.json")]

def encoders(run) -> list[str]:
    "classifiers that made the embeddings: of the run, or of the folder WEIGHTS"
    given = run.weights if run.mode == "fast" else None
    return [str((given or run.path("weights/")) / "encoders") + "/"]

def end_to_end(run) -> list[str]:
    "predictions of the classifier and sequence model that were trained as one"
    return ["checkpoints/end2end/pred.csv", "checkpoints/end2end/pred.json"] if run.has("end2end") else []

def submitted_weights(run) -> list[str]:
    "the two graphs: of the run, or of the folder WEIGHTS"
    place = run.weights if run.mode == "trained" else run.path("weights/")
    return [str(place / name) for name in dict.fromkeys((*NETWORKS, *sealed(place)))]

def results(run) -> list[str]:
    "what the stages of this run have written"
    made = {"bag": ["oof.csv", "ladder.csv", "bag.json"], "classify": ["checkpoints/classify/history.csv"],
            "sequence": ["checkpoints/sequence/history.csv"],
            "submit": ["submissions/submission.csv", "test_per_slice.csv", "submit.json"]}
    return [name for stage, names in made.items() if run.has(stage) for name in names]

# %% [markdown]
# ## The declaration

# %%
#| export
_LEARNED = ("sequence", "end2end", "bag", "engines")

system = System(
    name="ich",
    title="RSNA Intracranial Hemorrhage Detection (2019), second place",
    stages=(
        Stage("phantom", Phantom, unless="prepare.dataset",
              writes=("competition/stage_2_train.csv", "competition/stage_2_sample_submission.csv",
                      "competition/stage_2_train_images/", "competition/stage_2_test_images/", "competition/truth/")),
        Stage("prepare", Prepare, reads=(training_set,), writes=("processed/slices.csv", "processed/pictures/")),
        Stage("folds", Folds, reads=("processed/slices.csv",), writes=("folds.csv",)),
        Stage("classify", Classify, reads=("folds.csv", "processed/slices.csv", "processed/pictures/"),
              writes=("checkpoints/classify/history.csv", "checkpoints/classify/")),
        Stage("embed", Embed,
              reads=("folds.csv", "processed/slices.csv", "processed/pictures/", "checkpoints/classify/"),
              writes=("weights/embeddings/", "weights/embeddings.json", "weights/encoders/")),
        Stage("sequence", Sequence, reads=("folds.csv", embeddings),
              writes=("checkpoints/sequence/history.csv", "checkpoints/sequence/", "weights/sequence/",
                      "weights/members.json")),
        Stage("end2end", EndToEnd, reads=("folds.csv", "processed/slices.csv", "processed/pictures/", encoders,
                                            "weights/sequence/", "weights/members.json"),
              writes=("checkpoints/end2end/",)),
        Stage("bag", Bag, reads=("folds.csv", embeddings, "checkpoints/sequence/", "weights/sequence/",
                                  "weights/members.json", end_to_end),
              writes=("oof.csv", "ladder.csv", "bag.json")),
        Stage("engines", Engines, reads=("bag.json", "folds.csv", "processed/pictures/", encoders, "weights/sequence/"),
              writes=("weights/encoder.onnx*", "weights/encoder.json", "weights/sequence.onnx*",
                      "weights/sequence.json", "weights/parts.json")),
        Stage("submit", reads=(test_set, submitted_weights),
              writes=("submissions/submission.csv", "test_per_slice.csv", "submit.json")),
        Stage("report", reads=(results,)),
    ),
    modes={
        "full": Mode("everything is trained",
                     ("phantom", "prepare", "folds", "classify", "embed", *_LEARNED, "submit", "report")),
        "fast": Mode("embeddings are given, only the sequence models are trained",
                     ("phantom", "prepare", "folds", "sequence", "bag", "engines", "submit", "report"),
                     weights=("embeddings.json",)),
        "trained": Mode("trained weights for everything", ("phantom", "submit", "report"), weights=NETWORKS),
        "labelled": Mode("trained on labelled images, where there is no test set",
                         ("prepare", "folds", "classify", "embed", *_LEARNED, "report")),
    },
    recipes=RECIPES,
    failures={"processed/slices.csv": "training slices", "test_per_slice.csv": "test slices"},
    competition=COMPETITION,
    weights=NETWORKS,
    predict="tools.predict",
    check="tools.check",
    outcomes="bag",
)

# %% [markdown]
# The two networks, and what goes from one to the other:

# %%
diagram({"slices": (0, 0, "slices of a series,\nthree windows each"), "cnn": (1.2, 0, "classifier,\nslice by slice"),
         "features": (2.4, 0, "features,\nstored"), "lstm": (3.6, 0, "bidirectional LSTM,\nin the patient's order"),
         "p": (4.8, 0, "probabilities\nof each slice"), "alone": (2.4, 1, "probabilities of the classifier alone")},
        [("slices", "cnn"), ("cnn", "features"), ("features", "lstm"), ("lstm", "p"), ("cnn", "alone")])

# %% [markdown]
# The flow of the data, drawn from the declaration:

# %%
system.flow()

# %%
pd.DataFrame({name: [recipe.about, recipe.mode] for name, recipe in system.recipes.items()}, index=["about", "mode"]).T

# %% [markdown]
# ---
# [← Start here](../00_start.py) · [Phantom →](01_phantom.py)

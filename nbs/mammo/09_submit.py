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
# # Submit
# > The hidden test set of the competition: from mammograms to a decision for each breast.
#
# [The submission of all systems](../core/63_submit.py) keeps the time limit, survives damaged files and writes a valid
# file from the first second. This notebook has the parts of this competition: the tables of its test set, the input of
# the networks, and the decision.

# %%
#| default_exp mammo.submit

# %%
#| export
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mammo_nb.core.dicom import read_frame
from mammo_nb.core.engines import Engine
from mammo_nb.core.files import inside
from mammo_nb.core.recipes import from_dict
from mammo_nb.core.runs import Run
from mammo_nb.core.sidecars import check_entries
from mammo_nb.core.submission import ItemSet, Submission, open_network
from mammo_nb.core.submit import submit_stage
from mammo_nb.mammo.crops import WHOLE
from mammo_nb.mammo.datasets import DatasetError, competition, read_table
from mammo_nb.mammo.learning.decision import breast_decisions, image_means
from mammo_nb.mammo.reading.inputs import see_item
from mammo_nb.mammo.recipes import Crops
from mammo_nb.mammo.system import system
from mammo_nb.mammo.tools.hidden import hidden_test
from mammo_nb.mammo.tools.networks import NEEDED, detector_of, words_of
from mammo_nb.mammo.tools.predict import PER_IMAGE, with_caution

# %%
#| hide
import tempfile

from mammo_nb.core.files import read_json
from mammo_nb.core.practice import practice
from mammo_nb.core.submission import find_weights
from mammo_nb.core.submit import submit, summary

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run; the stage has no section of its own
workers = 0                                   # processes that decode; 0 means one a core

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="submit", overrides=overrides)
run.contract("submit")

# %% [markdown]
# ## From images to the decision
# [Decision](learning/decision.py) makes the probability of a breast from those of its images and compares it with the
# threshold of the weights. The metric of the competition counts decisions, so the submission holds 0 and 1.
# An image that shows [no breast](reading/blank.py) has no probability. A breast without any probability gets what the
# training labels say of most breasts, 0; the report counts such images.

# %%
#| export
def to_submission(
    predictions: pd.DataFrame,  # prediction_id, probability (missing where an image failed); one row an image
    sample: pd.DataFrame,       # prediction_id, cancer
    threshold: float,           # a breast is positive if its mean probability is above it
) -> pd.DataFrame:              # as the sample, `cancer` 0 or 1; a breast without any prediction gets 0
    "Decide for each breast of the sample, in the order of the sample; raises DatasetError for other breasts."
    decided = breast_decisions(predictions, threshold)
    strangers = set(decided.index) - set(sample["prediction_id"])
    if strangers:
        raise DatasetError(
            f"test.csv has {len(strangers)} prediction_id that sample_submission.csv does not have, such as "
            f"{sorted(strangers)[0]}. Get both files again.")
    return sample[["prediction_id"]].assign(cancer=sample["prediction_id"].map(decided).fillna(0).astype(int))

# %%
example = pd.DataFrame({"prediction_id": ["1_L", "1_L", "2_R", "3_L"], "probability": [.9, .3, .5, None]})
sample = pd.DataFrame({"prediction_id": ["3_L", "2_R", "1_L"], "cancer": .02})
decided = to_submission(example, sample, threshold=.5)
assert decided["cancer"].tolist() == [0, 0, 1]   # strictly above: 0.5 is not
decided

# %% [markdown]
# ## The test set
# The sample lists the breasts that count, and the test table lists their images. Where the two disagree, the sample is
# right: images of other breasts are left out, breasts without images get 0, and a row that occurs twice counts once.
# The report lists all of it. Two tables without a common id, or a sample with an id twice, are errors, because no
# submission would be right.

# %%
#| export
def read_test(
    folder: Path,   # the competition
) -> ItemSet:       # one row of `items` for each image: the columns of test.csv, prediction_id and file
    "Read test.csv and sample_submission.csv and compare them."
    sample = read_table(folder / "sample_submission.csv", ["prediction_id", "cancer"])[["prediction_id", "cancer"]]
    images = read_table(folder / "test.csv", ["patient_id", "image_id", "laterality", "view"])
    if (twice := sample["prediction_id"].duplicated()).any():
        raise DatasetError(
            f"sample_submission.csv has {sample['prediction_id'][twice.idxmax()]!r} twice; each prediction_id must be "
            "in one row. Get the file again.")
    if "prediction_id" not in images:
        images["prediction_id"] = images["patient_id"] + "_" + images["laterality"]
    images["file"] = "test_images/" + images["patient_id"] + "/" + images["image_id"] + ".dcm"
    known = images["prediction_id"].isin(sample["prediction_id"])
    if len(images) and not known.any():
        raise DatasetError(
            f"No prediction_id of test.csv, such as {images['prediction_id'][0]!r}, is in sample_submission.csv, which "
            f"has such as {sample['prediction_id'].iloc[:1].tolist()}. The two files belong to different sets: get "
            "both again.")
    kept = images[known].drop_duplicates(["prediction_id", "file"]).reset_index(drop=True)
    return ItemSet(sample, kept, "prediction_id", sample["prediction_id"].tolist(), {
        "not in sample_submission.csv, left out": sorted(images.loc[~known, "prediction_id"].fillna("(none)").unique()),
        "without an image in test.csv": sorted(set(sample["prediction_id"]) - set(images["prediction_id"])),
        "duplicate rows of test.csv": int(known.sum()) - len(kept)})

# %%
test = read_test(run.path(competition(run)))
turns = test.turns()
assert len(turns) == len(test.items) and not any(test.differences.values())
assert turns["prediction_id"].head(len(test.sample)).is_unique
turns[["file", "prediction_id"]].head(3)

# %% [markdown]
# ## The declaration
# Each item is an image. A worker process finds the breast with the detector that belongs to the networks, and cuts it
# out with the settings of the training. An image for which a network gives no number is an error of this image; weights
# whose images are prepared `faithful` let it count as 0, as in the winner's code. The table of images has six decimals,
# so a breast within 0.0000005 of the threshold may be decided otherwise than there.

# %%
#| export
def decide(
    images: pd.DataFrame,  # prediction_id and probability
    sample: pd.DataFrame,  # prediction_id, cancer
    metadata: dict,        # ensemble.json: threshold
) -> pd.DataFrame:         # the submission
    "Decide with the threshold of the weights."
    return to_submission(images, sample, metadata["threshold"])

def item_entries(
    weights: Path,     # folder with ensemble.onnx, ensemble.json and the detector
    metadata: dict,    # ensemble.json
) -> dict:             # entries of each item, for `see_item`
    "How the input of the networks is made."
    check_entries(metadata, Path(weights) / "ensemble.json", NEEDED)
    from_dict(Crops, metadata["crops"])  # raises for a value out of range
    return {"settings": metadata["crops"], "detector": str(detector_of(weights) or ""), "size": metadata["size"]}

def predict_means(
    engine: Engine,     # its metadata: crops, as far as they are not the defaults
    inputs: np.ndarray, # (n, height, width)
) -> np.ndarray:        # float32 (n, 1)
    "The mean prediction of the networks."
    return image_means(engine(inputs), Crops(**engine.metadata.get("crops", {})).faithful)[:, None]

def open_engine(
    weights: Path,           # folder with ensemble.onnx and ensemble.json
    name: str,               # name of the engine
    device: str = "auto",    # as in `open_network`
    backend: str = "auto",   # as in `open_network`
) -> Engine:
    "Open an engine; the system's own network must be registered, because torch may build it from the weights."
    from mammo_nb.mammo.learning import lesions  # noqa: F401, registers the network
    return open_network(weights, name, device, backend)

def per_image(
    test: ItemSet,
    found: pd.DataFrame,   # file, rows of `see_item`, probability, error, network
    metadata: dict,        # ensemble.json: demonstration
) -> pd.DataFrame:         # PER_IMAGE, note, prediction_id and network; a row an image, in the order of test.csv
    "The table of images; a failed image has its ids, laterality and view from test.csv."
    table = found.reindex(columns=[*PER_IMAGE, "note", "network"]).astype({c: "Int64" for c in WHOLE})
    for column in ("patient_id", "image_id"):
        table[column] = test.items[column]
    for column in ("laterality", "view"):
        table[column] = table[column].where(table[column].notna(), test.items[column])
    table["note"] = with_caution(table["note"], words_of(metadata))
    table["prediction_id"] = test.items["prediction_id"]
    return table[[*PER_IMAGE, "note", "prediction_id", "network"]]

def show_boxes(
    table: pd.DataFrame,  # from `per_image`
    folder: Path,         # the competition
):
    "Draw a few images with the box of the breast."
    shown = table[table["error"].fillna("") == ""].head(3)
    figure, axes = plt.subplots(1, 3, figsize=(9, 4))
    for axis, row in zip(axes, shown.itertuples()):
        image = read_frame(inside(folder, row.file)).decode()
        axis.imshow(image.pixels, cmap="gray" if image.header.photometric == "MONOCHROME2" else "gray_r")
        axis.add_patch(plt.Rectangle((row.x0, row.y0), row.x1 - row.x0, row.y1 - row.y0, fill=False, color="orange"))
        axis.set_title(f"{row.laterality} {row.view} {row.probability:.2f}")
    for axis in axes:
        axis.axis("off")

submission = Submission(
    system=system.name, competition=system.competition, read_test=read_test, prepare=see_item, decide=decide,
    draw_hidden_test=hidden_test, entries=item_entries, predict=predict_means, open_engine=open_engine,
    tabulate=per_image, item="images", group="breasts", show=show_boxes)

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
    workers: int | None = None,    # processes that decode; None means one a core
) -> pd.DataFrame:                 # the submission
    "test_images -> submissions/submission.csv, test_per_image.csv and submit.json."
    return submit_stage(run, submission, run.path(competition(run)), workers)

# %%
decided = run_stage(run, workers or None)
report = read_json(run.path("submit.json"))
table = read_table(run.path("test_per_image.csv"), ["probability"])
print(f"{len(decided)} breasts, {decided['cancer'].sum()} of them predicted positive", *summary(report), sep="\n")
decided.head()

# %% [markdown]
# ## What came out
# The probabilities of the breasts with the threshold, and the share of the time in which each part waited for the
# other.

# %%
place = find_weights("ensemble", run.weights or run.path("weights/"))
threshold = read_json(place / "ensemble.json")["threshold"]
fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), width_ratios=[2, 1])
axes[0].hist(table.groupby("prediction_id")["probability"].mean().dropna(), bins=30)
axes[0].axvline(threshold, color="orange", label=f"threshold {threshold:.2f}")
axes[0].set(xlabel="probability of a breast", ylabel="breasts")
axes[0].legend()
parts, waited = list(report["waited"]), list(report["waited"].values())
worked = [1 - share for share in waited]
axes[1].barh(parts, worked, color="steelblue", label="worked")
axes[1].barh(parts, waited, left=worked, color="lightgrey", label="waited")
axes[1].set(xlim=(0, 1), xlabel="share of the time")
axes[1].legend(fontsize=8)
fig.tight_layout()

# %%
show_boxes(table, run.path(competition(run)))

# %% [markdown]
# ## Out of time
# The same images with TTA and a time limit of one second: the submission is valid, and the report lists what was
# dropped.

# %%
short = Path(tempfile.mkdtemp())
submit(submission, run.path(competition(run)), place, short, budget="1s", flip=True, workers=1)
assert pd.read_csv(short / "submission.csv")["prediction_id"].tolist() == decided["prediction_id"].tolist()
print(*summary(read_json(short / "submit.json")), sep="\n")

# %% [markdown]
# ---
# [← Engines](08_engines.py) · [Report →](10_report.py)

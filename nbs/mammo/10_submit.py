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
# # Submit
# > The hidden test set goes through in one pass, and a valid file exists from the first second.
#
# A submission that crashes after eight hours scores nothing. So `submission.csv` is written at once from the sample, replaced at the end, and a file that cannot be read costs its own breast and no other.

# %%
#| default_exp mammo.submit

# %%
#| export
import shutil
from pathlib import Path

import pandas as pd

from mammo_nb.core.files import read_json, replacing, write_csv
from mammo_nb.core.stages import locate, stage
from mammo_nb.mammo.datasets import DatasetError, competition, read_table
from mammo_nb.mammo.predict import find_weights, predict_items

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.stages import practice

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
recipe = "demo"                               # a name in mammo_nb.mammo.recipes
weights = ""                                  # folder with ensemble.onnx; "" takes the run's own
workers = 0                                   # processes; 0: one a core
reads = ["final_models/ensemble.onnx"]        # and the competition's test.csv, sample_submission.csv and test_images/
writes = ["submissions/submission.csv", "test_per_image.csv"]

# %%
#| hide
if not run_dir:
    from mammo_nb.mammo import crops, datasets, detector, engines, folds, phantom, select, train  # slow to load, and not needed in a run
    run_dir, recipe = practice(phantom.run, datasets.run, detector.run, crops.run, folds.run, train.run, select.run, engines.run)

# %% [markdown]
# ## From images to the file
# The mean over a breast's images, `>` the threshold that the weights remember. The winner's score counts decisions, so the file holds 0 and 1. Ids and their order are the sample's, whatever order the test table has.

# %%
#| export
def to_submission(
    predictions: pd.DataFrame,  # prediction_id, probability (missing where a file failed); one row an image
    sample: pd.DataFrame,       # prediction_id, cancer
    threshold: float,
) -> pd.DataFrame:              # as the sample, `cancer` 0 or 1; a breast without any prediction gets 0
    "Decide for each breast of the sample."
    mean = predictions.groupby("prediction_id")["probability"].mean()
    strangers = set(mean.index) - set(sample["prediction_id"])
    if strangers: raise DatasetError(f"test.csv has {len(strangers)} prediction_id that sample_submission.csv has not, such as {sorted(strangers)[0]}.")
    return sample[["prediction_id"]].assign(cancer=(sample["prediction_id"].map(mean) > threshold).astype(int))

# %%
example = pd.DataFrame({"prediction_id": ["1_L", "1_L", "2_R", "3_L"], "probability": [.9, .3, .5, None]})
decided = to_submission(example, pd.DataFrame({"prediction_id": ["3_L", "2_R", "1_L"], "cancer": .02}), threshold=.5)
assert decided["cancer"].tolist() == [0, 0, 1]   # strictly above: 0.5 is not
decided

# %% [markdown]
# ## Run the stage

# %%
#| export
def test_items(
    folder: Path,          # the competition
    weights: Path,         # folder with ensemble.onnx
) -> tuple[list, pd.DataFrame]:  # items for `predict_items`, and test.csv
    "One item an image of test.csv."
    test = read_table(folder / "test.csv", ["patient_id", "image_id", "laterality", "view"])
    if "prediction_id" not in test: test["prediction_id"] = test["patient_id"] + "_" + test["laterality"]
    items = [{"file": f"test_images/{r['patient_id']}/{r['image_id']}.dcm", "folder": str(folder), "weights": str(weights), "row": r}
             for r in test[["patient_id", "image_id", "laterality", "view"]].to_dict("records")]
    return items, test

def run(
    run_dir: Path,                 # folder of the run
    recipe: str,                   # a recipe
    weights: Path | None = None,   # folder with ensemble.onnx; None: the run's own
    workers: int | None = None,    # processes; None: one a core
) -> pd.DataFrame:                 # the submission
    "test_images -> submissions/submission.csv and test_per_image.csv."
    source = competition(recipe)
    folder, place = locate(run_dir, source), find_weights(weights or locate(run_dir, "final_models/ensemble.onnx").parent).resolve()
    target = locate(run_dir, "submissions/submission.csv")
    reads = [f"{source}/test.csv", f"{source}/sample_submission.csv", str(place / "ensemble.onnx"), str(place / "ensemble.json")]
    with stage(run_dir, "submit", reads=reads, writes=["submissions/submission.csv", "test_per_image.csv"], parameters={"weights": place.name}):
        with replacing(target) as temporary: shutil.copyfile(folder / "sample_submission.csv", temporary)
        sample = read_table(target, ["prediction_id"])
        items, test = test_items(folder, place)
        result = predict_items(items, locate(run_dir, "test_per_image.csv"), workers)
        result["prediction_id"] = test["prediction_id"].values
        write_csv(locate(run_dir, "test_per_image.csv"), result)
        submission = to_submission(result, sample, read_json(place / "ensemble.json")["threshold"])
        write_csv(target, submission)
    return submission

# %%
submission = run(run_dir, recipe, weights or None, workers or None)
per_image = read_table(locate(run_dir, "test_per_image.csv"), ["probability"])
print(f"{len(submission)} breasts, {submission['cancer'].sum()} called; {per_image['error'].notna().sum()} of {len(per_image)} images failed")
submission.head()

# %% [markdown]
# ## What came out
# The probabilities of the breasts and where the threshold cut.

# %%
breasts = per_image.groupby("prediction_id")["probability"].mean()
threshold = read_json(find_weights(weights or locate(run_dir, "final_models/ensemble.onnx").parent) / "ensemble.json")["threshold"]
plt.figure(figsize=(6, 2.8)); plt.hist(breasts.dropna(), bins=30); plt.axvline(threshold, color="orange", label=f"threshold {threshold:.2f}")
plt.xlabel("probability of a breast"); plt.ylabel("breasts"); plt.legend();

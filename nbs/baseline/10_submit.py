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
# > The hidden test set in one pass, with a valid file from the first second.
#
# The same safeguards as the winner's submission, and its functions where they do not know what a crop is: the sample goes out first, and a file that cannot be read costs its own breast only. Most of the time goes into decoding; the network is asked twice an image.

# %%
#| default_exp baseline.submit

# %%
#| export
import shutil
from pathlib import Path

import cv2
import pandas as pd

from mammo_nb.baseline.prepare import prepare
from mammo_nb.baseline.recipes import Prepare
from mammo_nb.core.dicom import read_image
from mammo_nb.core.engines import process_engine
from mammo_nb.core.files import inside, read_json, replacing, write_csv
from mammo_nb.core.parallel import map_files
from mammo_nb.core.stages import StageError, find_trained, locate, stage
from mammo_nb.mammo.crops import WHOLE
from mammo_nb.mammo.datasets import competition, read_table
from mammo_nb.mammo.predict import DEMONSTRATION, PER_IMAGE
from mammo_nb.mammo.submit import test_items, to_submission

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.stages import practice

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
recipe = "baseline/demo"                      # a name in mammo_nb.baseline.recipes, its system before it
weights = ""                                  # folder with baseline.onnx; "" takes the run's own
workers = 0                                   # processes; 0: one a core
reads = ["final_models/baseline.onnx"]        # and the competition's test.csv, sample_submission.csv and test_images/
writes = ["submissions/submission.csv", "test_per_image.csv"]

# %%
#| hide
if not run_dir:
    from mammo_nb.baseline import engines, select, train
    from mammo_nb.baseline import prepare as preparation
    from mammo_nb.mammo import datasets, folds, phantom  # slow to load, and not needed in a run
    run_dir, recipe = practice(phantom.run, datasets.run, preparation.run, folds.run, train.run, select.run, engines.run, recipe="baseline/tiny")

# %% [markdown]
# ## One image
# Prepared as the weights remember.

# %%
#| export
def predict_file(
    item: dict,  # folder, file, weights; row of test.csv
) -> dict:       # a row of test_per_image.csv
    "Predict one file."
    cv2.setNumThreads(1)  # the processes share the cores already
    engine = process_engine(str(Path(item["weights"]) / "baseline.onnx"))
    image = read_image(inside(item["folder"], item["file"]))
    picture, box = prepare(image, Prepare(**engine.metadata["prepare"]))
    return {**item["row"], "rows": image.header.rows, "columns": image.header.columns, "decoder": image.decoder,
            "x0": box.x0, "y0": box.y0, "x1": box.x1, "y1": box.y1, "box_source": box.source, "probability": round(float(engine(picture[None]).item()), 6)}

def find_network(
    run_dir: Path,                 # folder of the run
    weights: Path | None = None,   # a folder with baseline.onnx, or a run that has one; None: the run's own
) -> Path:                         # the folder
    "Where baseline.onnx and baseline.json are."
    folder = weights or locate(run_dir, "final_models/baseline.onnx").parent
    found = find_trained(["baseline.onnx", "baseline.json"], folder)
    if not found: raise StageError(f"{folder} has no baseline.onnx with its baseline.json. `make reproduce SYSTEM=baseline` writes such a folder: runs/baseline-demo/weights.")
    return found.resolve()

# %% [markdown]
# ## Run the stage

# %%
#| export
def run(
    run_dir: Path,                 # folder of the run
    recipe: str,                   # a recipe
    weights: Path | None = None,   # see `find_network`
    workers: int | None = None,    # processes; None: one a core
) -> pd.DataFrame:                 # the submission
    "test_images -> submissions/submission.csv and test_per_image.csv."
    source, place = competition(recipe), find_network(run_dir, weights)
    folder, target, table = locate(run_dir, source), locate(run_dir, "submissions/submission.csv"), locate(run_dir, "test_per_image.csv")
    reads = [f"{source}/test.csv", f"{source}/sample_submission.csv", str(place / "baseline.onnx"), str(place / "baseline.json")]
    with stage(run_dir, "submit", reads=reads, writes=["submissions/submission.csv", "test_per_image.csv"], parameters={"weights": place.name}):
        with replacing(target) as temporary: shutil.copyfile(folder / "sample_submission.csv", temporary)
        (items, test), metadata = test_items(folder, place), read_json(place / "baseline.json")
        result = map_files(predict_file, items, table=table, params=metadata, workers=workers, label="predict").reindex(columns=PER_IMAGE).astype({c: "Int64" for c in WHOLE})
        for column in ("patient_id", "image_id", "laterality", "view", "prediction_id"): result[column] = test[column].values  # an error row has them too
        result["note"] = DEMONSTRATION if metadata["demonstration"] else ""
        write_csv(table, result)
        submission = to_submission(result, read_table(target, ["prediction_id"]), metadata["threshold"])
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
threshold = read_json(find_network(run_dir, weights or None) / "baseline.json")["threshold"]
plt.figure(figsize=(6, 2.8)); plt.hist(per_image.groupby("prediction_id")["probability"].mean().dropna(), bins=30); plt.axvline(threshold, color="orange", label=f"threshold {threshold:.2f}")
plt.xlabel("probability of a breast"); plt.ylabel("breasts"); plt.legend();

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
# # Engines
# > Four networks, one graph: pixels in, four probabilities out, wherever it has to run.
#
# A submission should not need the code that trained it. The folds' networks, the normalisation before them and the sigmoid after them become one ONNX file that takes 8-bit pictures; with a small JSON beside it, that says what it is, it is all that `mammo-nb predict` and the submission need.

# %%
#| default_exp mammo.engines

# %%
#| export
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from mammo_nb.core.backends import read_sidecar
from mammo_nb.core.engines import Ensemble, export_checked
from mammo_nb.core.files import read_json
from mammo_nb.core.networks import load_weights
from mammo_nb.core.pictures import fit_resize
from mammo_nb.core.stages import locate, recorded, stage
from mammo_nb.mammo.crops import crop_path
from mammo_nb.mammo.datasets import read_table
from mammo_nb.mammo.recipes import Train, get_recipe, get_section
from mammo_nb.mammo.train import as_asked, build_network

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd

from mammo_nb.core.engines import load_engine
from mammo_nb.core.stages import practice

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
recipe = "demo"                               # a name in mammo_nb.mammo.recipes
overrides = {}                                # changes to the section `engines`
reads = ["selection.json"]                    # and final_models/fold_*.safetensors, oof.csv
writes = ["final_models/ensemble.onnx", "final_models/ensemble.json"]

# %%
#| hide
if not run_dir:
    from mammo_nb.mammo import crops, datasets, detector, folds, phantom, select, train  # slow to load, and not needed in a run
    run_dir, recipe = practice(phantom.run, datasets.run, detector.run, crops.run, folds.run, train.run, select.run)

# %% [markdown]
# ## One graph
# The networks are those that the selection kept.

# %%
#| export
def load_ensemble(
    run_dir: Path,   # folder of the run
) -> Ensemble:       # uint8 (n, 1, height, width) -> probabilities (n, folds)
    "The selected networks of a run."
    settings, models = Train(**recorded(run_dir, "train")), []
    for chosen in read_json(locate(run_dir, "selection.json"))["folds"]:
        model = build_network(settings).eval()
        load_weights(model, locate(run_dir, f"final_models/fold_{chosen['fold']}.safetensors"))
        models.append(model)
    return Ensemble([as_asked(model, settings) for model in models], **models[0].normalization)

def sample_crops(
    run_dir: Path,          # folder of the run
    size: tuple[int, int],  # height, width
    count: int = 16,
) -> np.ndarray:            # uint8 (count, height, width)
    "Crops spread over the out-of-fold table, from most to least suspicious, as networks see them."
    oof = read_table(locate(run_dir, "oof.csv"), ["probability"]).sort_values("probability")
    rows = oof.iloc[np.linspace(0, len(oof) - 1, min(count, len(oof))).astype(int)]
    images = locate(run_dir, "processed/cleaned_images")
    return np.stack([fit_resize(cv2.imread(str(crop_path(images, p, i)), cv2.IMREAD_GRAYSCALE), *size) for p, i in zip(rows["patient_id"], rows["image_id"])])

# %% [markdown]
# ## Run the stage
# The file is good if it says what torch says, on real crops of this run. If it does not, there is no file.

# %%
#| export
def run(
    run_dir: Path,                   # folder of the run
    recipe: str,                     # a recipe
    overrides: dict | None = None,   # changes to the section `engines`
) -> float:                          # largest difference of a probability against torch
    "Selected weights -> final_models/ensemble.onnx and ensemble.json."
    settings, network = get_section(recipe, "engines", overrides), Train(**recorded(run_dir, "train"))
    size = network.height, network.width
    selection = read_json(locate(run_dir, "selection.json"))
    weights = [f"final_models/fold_{f['fold']}.safetensors" for f in selection["folds"]]
    path = locate(run_dir, "final_models/ensemble.onnx")
    with stage(run_dir, "engines", reads=["selection.json", "oof.csv", "final_models/detector.onnx", *weights], writes=["final_models/ensemble.onnx", "final_models/ensemble.json"], parameters=asdict(settings)):
        return export_checked(load_ensemble(run_dir), path, sample_crops(run_dir, size), tolerance=settings.tolerance, metadata={
            "recipe": recipe, "network": network.network, "threshold": selection["threshold"], "crops": recorded(run_dir, "crops"),
            "detector": read_sidecar(locate(run_dir, "final_models/detector.onnx"))["sha256"], "demonstration": get_recipe(recipe).phantom is not None, "oof_auc": selection["auc"]})

# %%
difference = run(run_dir, recipe, overrides)
engine = load_engine(locate(run_dir, "final_models/ensemble.onnx"))
print(f"{engine.name}, input {engine.size}, largest difference from torch {difference:.1e}")

# %% [markdown]
# ## What came out
# One point a crop and fold: the file against torch. And what stands in the JSON beside it.

# %%
pictures = sample_crops(run_dir, engine.size)
ours, reference = engine(pictures), load_engine(load_ensemble(run_dir))(pictures)
fig, axes = plt.subplots(1, 2, figsize=(9, 3))
axes[0].plot([0, 1], [0, 1], color="lightgrey"); axes[0].plot(reference, ours, "."); axes[0].set(xlabel="torch", ylabel="ensemble.onnx", title="probabilities")
axes[1].hist(np.abs(ours - reference).ravel(), bins=20); axes[1].set(xlabel="difference", title=f"largest {np.abs(ours - reference).max():.1e}"); fig.tight_layout()

# %%
pd.Series(engine.metadata, name="ensemble.json").to_frame()

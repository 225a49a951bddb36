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
# > Picture and mirror image in one graph: pixels in, one probability out.
#
# The mean of two logits is a part of the network, not of the code around it; so it is in the graph, with the
# normalisation and the sigmoid. The file is called `baseline.onnx`, since `assets/trained` may hold the winner's
# `ensemble.onnx` as well, and its JSON remembers the preparation, which is not the winner's.

# %%
#| default_exp baseline.engines

# %%
#| export
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from mammo_nb.baseline.recipes import Train
from mammo_nb.baseline.train import build_network
from mammo_nb.core.engines import Ensemble, export_checked
from mammo_nb.core.files import read_json
from mammo_nb.core.networks import Mirrored, load_weights
from mammo_nb.core.stages import locate, recorded, stage
from mammo_nb.mammo.crops import crop_path
from mammo_nb.mammo.datasets import read_table
from mammo_nb.mammo.recipes import get_recipe, get_section

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd

from mammo_nb.core.engines import load_engine
from mammo_nb.core.stages import practice

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
recipe = "baseline/demo"                      # a name in mammo_nb.baseline.recipes, its system before it
overrides = {}                                # changes to the section `engines`
reads = ["selection.json", "oof.csv"]         # and final_models/fold_*.safetensors
writes = ["final_models/baseline.onnx", "final_models/baseline.json"]

# %%
#| hide
if not run_dir:
    from mammo_nb.baseline import prepare, select, train
    from mammo_nb.mammo import datasets, folds, phantom  # slow to load, and not needed in a run
    run_dir, recipe = practice(phantom.run, datasets.run, prepare.run, folds.run, train.run, select.run,
                               recipe="baseline/tiny")

# %%
#| export
def load_network(
    run_dir: Path,   # folder of the run
) -> Ensemble:       # of one; uint8 (n, 1, height, width) -> probabilities (n, 1)
    "The selected network of a run, asked about the picture and its mirror image."
    model = build_network(Train(**recorded(run_dir, "train"))).eval()
    load_weights(
        model,
        locate(run_dir,
               f"final_models/fold_{read_json(locate(run_dir, 'selection.json'))['folds'][0]['fold']}.safetensors"))
    return Ensemble([Mirrored(model)], **model.normalization)

def sample_pictures(
    run_dir: Path,          # folder of the run
    count: int = 16,
) -> np.ndarray:            # uint8 (count, height, width)
    "Pictures spread over the fold held back, from least to most suspicious."
    oof = read_table(locate(run_dir, "oof.csv"), ["probability"]).sort_values("probability")
    rows = oof.iloc[np.linspace(0, len(oof) - 1, min(count, len(oof))).astype(int)]
    return np.stack([
        cv2.imread(str(crop_path(locate(run_dir, "processed/cleaned_images"), p, i)), cv2.IMREAD_GRAYSCALE)
        for p, i in zip(rows["patient_id"], rows["image_id"])
    ])

# %%
pictures, both = sample_pictures(run_dir), load_engine(load_network(run_dir))
assert np.allclose(both(pictures), both(pictures[:, :, ::-1].copy()), atol=1e-6)   # a mirror image is the same to it

# %% [markdown]
# ## Run the stage
# As for the ensemble: the file says what torch says, or there is no file.

# %%
#| export
def run(
    run_dir: Path,                   # folder of the run
    recipe: str,                     # a recipe
    overrides: dict | None = None,   # changes to the section `engines`
) -> float:                          # largest difference of a probability against torch
    "Selected weights -> final_models/baseline.onnx and baseline.json."
    settings, network, preparation = get_section(recipe, "engines", overrides), recorded(run_dir, "train"), recorded(
        run_dir, "prepare")
    selection, path = read_json(locate(run_dir, "selection.json")), locate(run_dir, "final_models/baseline.onnx")
    weights = f"final_models/fold_{selection['folds'][0]['fold']}.safetensors"
    with stage(run_dir, "engines", reads=["selection.json", "oof.csv", weights],
               writes=["final_models/baseline.onnx", "final_models/baseline.json"], parameters=asdict(settings)):
        return export_checked(
            load_network(run_dir), path, sample_pictures(run_dir), tolerance=settings.tolerance, metadata={
                "recipe": recipe, "network": network["network"], "threshold": selection["threshold"],
                "prepare": preparation, "rebuild": {
                    "network": network["network"], "global_pool": None, "pointing": False, "mirrored": True,
                    "weights": [Path(weights).name]
                }, "demonstration": get_recipe(recipe).phantom is not None, "oof_auc": selection["auc"]
            })

# %%
difference = run(run_dir, recipe, overrides)
engine = load_engine(locate(run_dir, "final_models/baseline.onnx"))
print(f"{engine.name}, input {engine.size}, largest difference from torch {difference:.1e}")

# %% [markdown]
# ## What came out

# %%
ours, reference = engine(pictures)[:, 0], both(pictures)[:, 0]
plt.figure(figsize=(3.2, 3))
plt.plot([0, 1], [0, 1], color="lightgrey")
plt.plot(reference, ours, ".")
plt.xlabel("torch")
plt.ylabel("baseline.onnx")
plt.title("probabilities", fontsize=9);

# %%
pd.Series(engine.metadata, name="baseline.json").to_frame()

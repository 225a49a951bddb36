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
# # Engines
# > The network with horizontal-flip TTA in one graph, which takes pixels and gives one probability.
#
# The mean of the two logits of the TTA is a part of the network, not of the code around it. So it is in the graph, with
# the normalisation and the sigmoid. The file is called `baseline.onnx`, because `assets/trained` may hold
# the winner's `ensemble.onnx` as well. Its JSON has the preparation, which is not the winner's.

# %%
#| default_exp baseline.engines

# %%
#| export
from dataclasses import asdict

import cv2
import numpy as np

from mammo_nb.baseline.train import build_network
from mammo_nb.core.engines import export_checked
from mammo_nb.core.ensembles import Ensemble
from mammo_nb.core.networks import Mirrored, load_weights
from mammo_nb.core.runs import Run
from mammo_nb.core.settings import seal_parts
from mammo_nb.core.sidecars import read_entries
from mammo_nb.mammo.crops import crop_path
from mammo_nb.mammo.datasets import read_table

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd

from mammo_nb.baseline.system import system
from mammo_nb.core.engines import load_engine
from mammo_nb.core.practice import practice

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run, such as {"engines.tolerance": 1e-3}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="engines", overrides=overrides)
run.contract("engines")

# %%
#| export
def load_network(
    run: Run,
) -> Ensemble:       # of one network; uint8 (n, 1, height, width) -> probabilities (n, 1)
    "The selected network of a run, with horizontal-flip TTA."
    model = build_network(run.recorded("train")).eval()
    fold = read_entries(run.path("selection.json"), ("folds", "threshold"))["folds"][0]["fold"]
    load_weights(model, run.path(f"weights/fold_{fold}.safetensors"))
    return Ensemble([Mirrored(model)], **model.normalization)

def sample_pictures(
    run: Run,
    count: int = 16,        # number of pictures, if there are so many
) -> np.ndarray:            # uint8 (count, height, width)
    "Pictures spread over the fold held back, from least to most suspicious."
    oof = read_table(run.path("oof.csv"), ["probability"]).sort_values("probability")
    rows = oof.iloc[np.linspace(0, len(oof) - 1, min(count, len(oof))).astype(int)]
    folder = run.path("processed/cleaned_images")
    paths = [crop_path(folder, p, i) for p, i in zip(rows["patient_id"], rows["image_id"])]
    return np.stack([cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths])

# %%
pictures, both = sample_pictures(run), load_engine(load_network(run))
assert np.allclose(both(pictures), both(pictures[:, :, ::-1].copy()), atol=1e-6)   # flipped pictures, same predictions

# %% [markdown]
# ## Run the stage
# As for the ensemble, the graph must predict what torch predicts. Otherwise the stage fails and leaves no file.

# %%
#| export
def run_stage(
    run: Run,
) -> float:                          # largest difference of a probability against torch
    "Selected weights -> weights/baseline.onnx and baseline.json."
    settings, network = run.section("engines"), run.recorded("train")
    selection = read_entries(run.path("selection.json"), ("folds", "threshold"))
    about = {
        "recipe": run.recipe, "network": network.network, "threshold": selection["threshold"],
        "prepare": asdict(run.recorded("prepare")), "demonstration": run.has("phantom"), "oof_auc": selection["auc"],
        "rebuild": {
            "kind": "timm", "network": network.network, "global_pool": None, "mirrored": True,
            "weights": [f"fold_{selection['folds'][0]['fold']}.safetensors"]
        }
    }
    with run.stage("engines"):
        difference = export_checked(load_network(run), run.path("weights/baseline.onnx"), sample_pictures(run), about,
                                    settings.tolerance)
        seal_parts(run.path("weights/"))
    return difference

# %%
difference = run_stage(run)
engine = load_engine(run.path("weights/baseline.onnx"))
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

# %% [markdown]
# ---
# [← Select](03_select.py) · [Submit →](05_submit.py)

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
# # Weights for a prediction
# > The detector that belongs to an ensemble, and the fast form of an ensemble.
#
# `mammo-nb predict` takes a folder of weights. The ensemble was trained on crops of one detector, and another detector
# gives other crops. So the JSON of the ensemble has the digest of its detector, and no other one is accepted.

# %%
#| default_exp mammo.tools.networks

# %%
#| export
import shutil
from pathlib import Path

from mammo_nb.core.engines import export_onnx
from mammo_nb.core.ensembles import Ensemble, rebuild
from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import replacing
from mammo_nb.core.providers import write_smaller
from mammo_nb.core.sidecars import EngineError, carried, read_entries, read_sidecar
from mammo_nb.core.submission import caution
import mammo_nb.mammo.learning.lesions  # noqa: F401  registers its kind of network, for torch and for --fast

# %%
#| hide
import tempfile

import numpy as np

from mammo_nb.core.engines import load_engine
from mammo_nb.core.practice import practice
from mammo_nb.mammo.system import system

# %% tags=["parameters"]
weights = ""   # folder with ensemble.onnx; "" takes those of a small practice run

# %%
#| hide
weights = Path(weights) if weights else practice(system, before="submit").path("weights/")

# %%
#| export
class PredictError(ProjectError):
    "Weights that nothing can be predicted with."

NEEDED = ("crops", "size", "demonstration", "threshold")   # entries of ensemble.json

def detector_of(
    weights: Path,   # a folder with ensemble.onnx
) -> Path | None:    # its detector.onnx; None for networks that were trained without a detector
    "The detector that belongs to an ensemble; raises PredictError if it is missing or is another one."
    path = Path(weights) / "detector.onnx"
    wanted = read_entries(Path(weights) / "ensemble.json").get("detector")
    if not wanted:
        return None
    if not path.is_file():
        raise PredictError(
            f"{weights} has no detector.onnx, and its networks were trained with one. Copy detector.onnx and "
            "detector.json from the same run."
        )
    if read_sidecar(path)["sha256"] != wanted:
        raise PredictError(
            f"{weights}: detector.onnx is not the one that its networks were trained with. Copy detector.onnx and "
            "detector.json from the same run."
        )
    return path

# %% [markdown]
# ## Fast
# The first network of an ensemble without TTA takes a fraction of the time, and its probabilities differ. The threshold
# and the correction of probabilities belong to the whole ensemble, so the correction is left out. The fast form is a
# folder of weights like any other, and everything that it predicts says so.

# %%
#| export
_OF_ALL = ("parts.json", "calibration", "variants", "oof_auc")   # what holds for the whole ensemble only

def words_of(
    metadata: dict,   # ensemble.json
) -> str:
    "The words that stand beside each prediction: what the weights are, and whether they are the fast form."
    fast = metadata.get("fast")
    return caution(metadata["demonstration"]) + (f", fast: one of {fast['networks']} networks, no TTA" if fast else "")

def fast_weights(
    weights: Path,   # a folder with ensemble.onnx
    folder: Path,    # becomes a folder of weights; what it has of the same weights is kept
) -> Path:           # the folder
    "Write the first network of an ensemble, without TTA. Raises EngineError for weights that cannot be rebuilt."
    weights, folder, whole = Path(weights), Path(folder), read_sidecar(Path(weights) / "ensemble.onnx")
    about = {"networks": whole["folds"], "of": whole["sha256"]}
    if (folder / "ensemble.json").is_file() and read_entries(folder / "ensemble.json").get("fast") == about:
        return folder
    if "rebuild" not in whole:
        raise EngineError(f"{weights}: ensemble.json does not state how to build its networks, so there is no fast "
                          "form of them. Leave --fast out, or export the ensemble again.")
    ensemble = rebuild(weights, whole).keep([0])
    for path in [*weights.glob("detector.*"), weights / whole["rebuild"]["weights"][0]]:
        with replacing(folder / path.name) as temporary:
            shutil.copyfile(path, temporary)
    if whole["rebuild"]["mirrored"]:
        name = ensemble.inputs[0].name
        alone = Ensemble([ensemble.models[0].model], **whole["preparation"].get(name, {}))
        own = ("size", "folds", "preparation", "probe", "precision", "weights_sha256", "versions")
        entries = {k: v for k, v in carried(whole).items() if k not in (*own, *_OF_ALL)}
        again = {**whole["rebuild"], "weights": whole["rebuild"]["weights"][:1], "mirrored": False}
        export_onnx(alone, folder / "ensemble.onnx", whole["size"], {**entries, "rebuild": again, "fast": about})
    else:
        without = dict.fromkeys(_OF_ALL[1:])
        write_smaller(ensemble, weights / "ensemble.onnx", folder / "ensemble.onnx", [0], {**without, "fast": about})
    return folder

# %% [markdown]
# ## What came out
# The fast form has one network, whose probabilities are those of the first network of the ensemble.

# %%
folder = fast_weights(weights, Path(tempfile.mkdtemp()))
about = read_sidecar(folder / "ensemble.onnx")
pictures = np.random.default_rng(0).integers(0, 255, (2, *about["size"]), np.uint8)
alone, whole = load_engine(folder / "ensemble.onnx"), load_engine(weights / "ensemble.onnx")
assert about["folds"] == 1 and detector_of(folder) == folder / "detector.onnx"
assert np.abs(alone(pictures)[:, 0] - whole(pictures)[:, 0]).max() < 1e-4
assert fast_weights(weights, folder) == folder
print(words_of(about))

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

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
# > Four networks in one graph, which takes pixels and gives four probabilities on any machine.
#
# A submission should not need the code of the training. The networks of the folds, the normalisation before them and
# the sigmoid after them become one ONNX file that takes 8-bit pictures. With the JSON beside it, that is all that
# `mammo-nb predict` and the submission need. Which package computes, and in which precision, depends on the machine.
# The difference of each provider from torch is measured here on crops of this run. Providers above their limit are not
# used.

# %%
#| default_exp mammo.engines

# %%
#| export
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from mammo_nb.core.engines import Engine, export_checked, load_engine
from mammo_nb.core.ensembles import Ensemble
from mammo_nb.core.files import write_json
from mammo_nb.core.graphs import write_mixed
from mammo_nb.core.metrics import auc
from mammo_nb.core.networks import load_weights
from mammo_nb.core.pictures import fit_resize
from mammo_nb.core.providers import build_engines, gate, write_smaller
from mammo_nb.core.recipes import RecipeError
from mammo_nb.core.runs import Run
from mammo_nb.core.settings import seal_parts
from mammo_nb.core.sidecars import EngineError, read_entries, read_sidecar
from mammo_nb.mammo.crops import crop_path
from mammo_nb.mammo.datasets import per_breast, read_table, set_names
from mammo_nb.mammo.recipes import Engines
from mammo_nb.mammo.train import as_asked, build_network

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd

from mammo_nb.core.practice import practice
from mammo_nb.mammo.system import system

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run, such as {"engines.variants": "2"}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="engines", overrides=overrides)
run.contract("engines")

# %% [markdown]
# ## One graph
# The networks are those that the selection kept.

# %%
#| export
def load_ensemble(
    run: Run,
) -> Ensemble:       # uint8 (n, 1, height, width) -> probabilities (n, folds)
    "The selected networks of a run."
    settings = run.recorded("train")
    models = []
    for chosen in read_entries(run.path("selection.json"), ("folds", "threshold"))["folds"]:
        model = build_network(settings).eval()
        load_weights(model, run.path(f"weights/fold_{chosen['fold']}.safetensors"))
        models.append(model)
    return Ensemble([as_asked(model, settings) for model in models], **models[0].normalization)

def fitted_crops(
    run: Run,
    rows,                   # a table with patient_id and image_id
    size: tuple[int, int],  # height, width
) -> np.ndarray:            # uint8 (rows, height, width)
    "Crops in the size of a network's input."
    images, plain = run.path("processed/cleaned_images"), run.recorded("train").faithful
    return np.stack([
        fit_resize(cv2.imread(str(crop_path(images, p, i)), cv2.IMREAD_GRAYSCALE), *size, plain=plain)
        for p, i in zip(rows["patient_id"], rows["image_id"])
    ])

def sample_crops(
    run: Run,
    size: tuple[int, int],  # height, width
    count: int = 16,        # number of crops, if there are so many
) -> np.ndarray:            # uint8 (count, height, width)
    "Crops spread over the out-of-fold table, from least to most suspicious."
    oof = read_table(run.path("oof.csv"), ["probability"]).sort_values("probability")
    return fitted_crops(run, oof.iloc[np.linspace(0, len(oof) - 1, min(count, len(oof))).astype(int)], size)

# %% [markdown]
# ## Cheaper variants
# A submission has a time limit, and a machine may be slower than expected. Then the same networks run at a smaller
# size, or only the best of them. The JSON lists the variants in the order in which they are worth trying. The score of
# a variant with fewer folds follows from the out-of-fold predictions of the folds that stay. For a smaller size the
# held-back crops are predicted again, if that takes no more than minutes.

# %%
#| export
MEASURED = 2000   # largest number of crops for which the score at another size is measured

def wanted_variants(
    variants: str,          # of the recipe, such as "2 2@0.75"
    folds: int,             # of the whole ensemble
    size: tuple[int, int],  # height, width of its input
) -> list[dict]:            # name, folds, size, scale; from the most to the least work
    "Cheaper ensembles of a recipe."
    wanted = []
    for word in variants.split():
        count, _, scale = word.partition("@")
        try:
            count, scale = int(count), float(scale or 1)
        except ValueError:
            raise RecipeError(f"engines.variants takes words such as 2 or 2@0.75, got {word!r}.") from None
        small = list(size) if scale == 1 else [max(32, round(side * scale / 32) * 32) for side in size]
        if not 1 <= count <= folds or not 0 < scale <= 1 or (count == folds and small == list(size)):
            raise RecipeError(
                f"engines.variants: {word} is no cheaper ensemble of {folds} folds at {size[0]}x{size[1]}.")
        name = f"ensemble_{count}"
        if small != list(size):
            name += f"_{small[0]}x{small[1]}"
        wanted.append({"name": name, "folds": count, "size": small, "scale": scale})
    return sorted(wanted, key=lambda v: -v["folds"] * v["size"][0] * v["size"][1])

def best_folds(
    chosen: list[dict],  # `folds` of selection.json
    metric: str,         # pf1 or auc, by which epochs were selected
    count: int,
) -> list[int]:          # places in the list, ascending
    "The folds with the best scores on the images held back from them."
    return sorted(sorted(range(len(chosen)), key=lambda k: (-chosen[k][metric], -chosen[k]["auc"], k))[:count])

def held_back_auc(
    run: Run,
    folds: list[int],              # numbers of the folds, in the order of the engine's columns
    engine: Engine | None = None,  # engine of another size, whose predictions are scored; None: those of oof.csv
) -> float | None:                 # per breast; None if it would take too long
    "AUC on the images held back from these folds."
    oof = read_table(run.path("oof.csv"), ["probability"])
    oof = oof[oof["fold"].isin(folds)].reset_index(drop=True)
    if engine:
        if len(oof) > MEASURED:
            return None
        for column, fold in enumerate(folds):
            own = oof[oof["fold"] == fold]
            for start in range(0, len(own), 16):
                rows = own.iloc[start:start + 16]
                oof.loc[rows.index, "probability"] = engine(fitted_crops(run, rows, engine.size))[:, column]
    breasts = per_breast(oof)
    return round(auc(breasts["cancer"], breasts["probability"]), 4)

# %%
names = [v["name"] for v in wanted_variants("1 2@0.75 2", 4, (256, 128))]
assert names == ["ensemble_2", "ensemble_2_192x96", "ensemble_1"]
assert best_folds([{"pf1": .5, "auc": .7}, {"pf1": .6, "auc": .8}, {"pf1": .6, "auc": .9}], "pf1", 2) == [1, 2]
try:
    wanted_variants("4", 4, (256, 128))
except RecipeError as e:
    print(e)

# %% [markdown]
# ## Run the stage
# The graph must predict what torch predicts on crops of this run. Otherwise the stage fails and leaves no file.

# %%
#| export
def write_variants(
    run: Run,
    ensemble: Ensemble,  # the whole one, weights/ensemble.onnx
    settings: Engines,
    about: dict,         # entries of its JSON
) -> list[dict]:         # name, folds, size, scale, oof_auc
    "Cheaper ensembles beside the whole one."
    whole = run.path("weights/ensemble.onnx")
    chosen = read_entries(run.path("selection.json"), ("folds", "threshold"))["folds"]
    of_all = read_sidecar(whole)
    size, metric = of_all["size"], run.recorded("select").metric
    written = []
    for variant in wanted_variants(settings.variants, len(chosen), tuple(size)):
        kept = best_folds(chosen, metric, variant["folds"])
        path = whole.with_name(f"{variant['name']}.onnx")
        folds = [chosen[k]["fold"] for k in kept]
        if variant["size"] == size:
            score = held_back_auc(run, folds)
            write_smaller(ensemble, whole, path, kept, {"oof_auc": score})
        else:
            weights = [about["rebuild"]["weights"][k] for k in kept]
            entries = {**about, "rebuild": {**about["rebuild"], "weights": weights}, "oof_auc": None,
                       "refused": of_all["refused"]}
            crops = sample_crops(run, tuple(variant["size"]))
            export_checked(ensemble.keep(kept), path, crops, entries, settings.tolerance)
            score = held_back_auc(run, folds, load_engine(path))
            write_json(path.with_suffix(".json"), {**read_sidecar(path), "oof_auc": score})
        written.append({**variant, "oof_auc": score})
    return written

def build_available(
    folder: Path,        # has ensemble.onnx
    targets: list[str],  # kinds of GPU
) -> dict:               # kind -> megabytes of ensemble.<kind>.engine, or why there is none
    "Engines of the ensemble; where one cannot be built, the other providers remain."
    found = {}
    for target in targets:
        try:
            build_engines(folder, "ensemble", [target])
        except EngineError as e:
            found[target] = str(e)
        else:
            found[target] = round((folder / f"ensemble.{target}.engine").stat().st_size / 1e6, 1)
    return found

def about_ensemble(
    run: Run,
) -> dict:      # threshold, score, crops and detector before it, and how to build it again
    "Entries of ensemble.json."
    network, of_scores = run.recorded("train"), ("auc", "auc_95", "breasts", "cancers")
    selection = read_entries(run.path("selection.json"), ("folds", "threshold", *of_scores))
    scores = {k: selection[k] for k in of_scores}
    patients = read_table(run.path("oof.csv"), ["probability"])["patient_id"].nunique()
    data = "a drawn competition" if run.has("phantom") else ", ".join(set_names(run))
    return {
        "recipe": run.recipe, "network": network.network, "threshold": selection["threshold"],
        "crops": asdict(run.recorded("crops")), "detector": read_sidecar(run.path("weights/detector.onnx"))["sha256"],
        "demonstration": run.has("phantom"), "oof_auc": selection["auc"],
        "calibration": selection.get("calibration"),
        "trained": {"data": data, "patients": patients, **scores}, "rebuild": {
            "kind": "mammo.pointing" if network.lesion_weight else "timm", "network": network.network,
            "global_pool": network.global_pool, "mirrored": network.mirrored,
            "weights": [f"fold_{f['fold']}.safetensors" for f in selection["folds"]]
        }
    }

def run_stage(
    run: Run,
) -> dict:       # provider -> difference of a probability from torch, and its limit
    "Selected weights -> weights/ensemble.onnx and ensemble.json, and the variants and engines of the recipe."
    settings, network = run.section("engines"), run.recorded("train")
    about = about_ensemble(run)
    size = network.height, network.width
    reduced = settings.reduced_tolerance
    limits = {"fp32": settings.tolerance, "bf16": reduced, "fp16": reduced}
    # a wrong variant is an error before anything is exported
    wanted_variants(settings.variants, len(about["rebuild"]["weights"]), size)
    path = run.path("weights/ensemble.onnx")
    targets, providers = settings.targets.split(), settings.ways.split()
    if targets:
        providers.append("onnxruntime-fp16")
    with run.stage("engines") as results:
        for old in path.parent.glob("ensemble[._]*"):
            old.unlink()   # made from weights that may have changed
        ensemble, crops = load_ensemble(run), sample_crops(run, size)
        difference = export_checked(ensemble, path, crops, about, settings.tolerance)
        exact = {"difference": difference, "limit": settings.tolerance, "within": True}
        results["parity"] = {"onnxruntime-fp32": exact}
        if "onnxruntime-fp16" in providers:
            write_mixed(path, path.with_name("ensemble.fp16.onnx"))
        results["parity"] |= gate(path.parent, "ensemble", crops, load_engine(ensemble)(crops), providers, limits)
        results["variants"] = write_variants(run, ensemble, settings, about)
        write_json(path.with_suffix(".json"), {**read_sidecar(path), "variants": results["variants"]})
        if targets:
            results["engines"] = build_available(path.parent, targets)
        seal_parts(path.parent)
    return results["parity"]

# %%
found = run_stage(run)
engine = load_engine(run.path("weights/ensemble.onnx"))
difference = found["onnxruntime-fp32"]["difference"]
print(f"{engine.name}, input {engine.size}, largest difference from torch {difference:.1e}")

# %% [markdown]
# ## What came out
# On the left there is one point for each crop and fold, the graph against torch. On the right are all providers that
# were compared, and their limits. Providers above their limit are listed in the JSON and are not used.

# %%
pictures = sample_crops(run, engine.size)
ours, reference = engine(pictures), load_engine(load_ensemble(run))(pictures)
compared = {provider: f for provider, f in found.items() if "difference" in f}
fig, axes = plt.subplots(1, 2, figsize=(10, 3))
axes[0].plot([0, 1], [0, 1], color="lightgrey")
axes[0].plot(reference, ours, ".")
axes[0].set(xlabel="torch", ylabel="ensemble.onnx", title="probabilities")
for row, f in enumerate(compared.values()):
    axes[1].plot(max(f["difference"], 1e-9), row, "o", color="tab:blue" if f["within"] else "tab:red")
    axes[1].plot([f["limit"]] * 2, [row - .4, row + .4], color="grey")
axes[1].set(xscale="log", xlabel="largest difference from torch, and its limit", yticks=range(len(compared)),
            yticklabels=compared, xlim=(5e-10, 2))
axes[1].invert_yaxis()
fig.tight_layout()

# %%
pd.DataFrame(found).T

# %%
whole = {"name": "ensemble", "folds": engine.metadata["folds"], "size": engine.metadata["size"], "scale": 1.0,
         "oof_auc": round(engine.metadata["oof_auc"], 4)}
display(pd.DataFrame([whole, *engine.metadata["variants"]]))
pd.Series(engine.metadata, name="ensemble.json").to_frame()

# %% [markdown]
# ---
# [← Select](07_select.py) · [Submit →](09_submit.py)

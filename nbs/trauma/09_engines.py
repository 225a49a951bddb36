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
# > The 3D network and the ensemble as two graphs that give what torch gives, with all that a prediction has to know.
#
# The members are those that `ensemble.json` names, and no other file of the folder. The JSON beside the graphs holds
# how a series becomes blocks, what each network reads, and how probabilities are scaled.

# %%
#| default_exp trauma.engines

# %%
#| export
from dataclasses import asdict

import numpy as np

from mammo_nb.core.engines import export_checked, load_engine
from mammo_nb.core.ensembles import Ensemble
from mammo_nb.core.files import read_json, sha256
from mammo_nb.core.networks import load_weights
from mammo_nb.core.providers import gate
from mammo_nb.core.recipes import from_dict
from mammo_nb.core.runs import Run
from mammo_nb.core.settings import seal_parts
from mammo_nb.core.sidecars import EngineError
from mammo_nb.trauma.learning.blocks import BlockDataset
from mammo_nb.trauma.learning.graphs import injury_graph, make_member, member_options, organ_graph
from mammo_nb.trauma.learning.inference import input_name
from mammo_nb.trauma.learning.segmenter import open_segmenter
from mammo_nb.trauma.reading.competition import read_table
from mammo_nb.trauma.reading.windows import following_windows
from mammo_nb.trauma.recipes import COLUMNS, Model

# %%
#| hide
import pandas as pd

from mammo_nb.core.practice import practice
from mammo_nb.trauma.learning.inference import Engines, check_weights, read_series
from mammo_nb.trauma.system import system

# %% tags=["parameters"]
run_dir = ""     # folder of the run; "" makes a small practice run
overrides = {}   # changes for this run, such as {"engines.tolerance": 1e-3}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="engines", overrides=overrides)
run.contract("engines")

# %% [markdown]
# ## Members
# A file of weights is named after its model and its fold.

# %%
#| export
def members_of(
    run: Run,
) -> list[tuple[Model, int, str]]:   # model, fold, file
    "The networks that ensemble.json names; raises EngineError for files that are missing or that have changed."
    about = read_json(run.path("ensemble.json"))
    models = {m["name"]: from_dict(Model, m) for m in about["models"]}
    found = []
    for name, digest in about["members"].items():
        path = run.path(name)
        if not path.is_file() or sha256(path) != digest:
            raise EngineError(f"{name} is not the file that ensemble.json names: run train and ensemble again.")
        model, _, fold = path.stem.rpartition("_fold")
        found.append((models[model], int(fold), name.removeprefix("weights/")))
    return found

def load_members(
    run: Run,
    members: list,       # from `members_of`
    triplets: int,       # slices of a block
) -> tuple[Ensemble, list[dict]]:   # the networks with their weights, and the arguments that make each
    "The networks that read blocks as one module."
    views = {input_name(m.crop, m.size): m.size for m, *_ in members}
    options = [member_options(m, list(views)) for m, *_ in members]
    networks = [make_member(**each) for each in options]
    for network, (*_, file) in zip(networks, members):
        load_weights(network, run.path(f"weights/{file}"))
    return injury_graph(networks, list(views), list(views.values()), triplets), options

# %%
members = members_of(run)
pd.DataFrame([{"model": m.name, "fold": fold, "file": file} for m, fold, file in members])

# %% [markdown]
# ## Real blocks
# The graphs are compared with torch on the blocks with the most and with the least injury, and on windows of the same
# series.

# %%
#| export
def sample_blocks(
    run: Run,
    members: list,   # from `members_of`
) -> tuple[dict[str, np.ndarray], np.ndarray]:  # input -> uint8 (n, triplets, 3, size, size); volume of a series
    "The inputs of two blocks, and one of their volumes."
    blocks, info, patients = (read_table(run.path(name)) for name in ("blocks.csv", "info.csv", "folds.csv"))
    blocks = blocks[blocks["patient_id"].isin(patients["patient_id"])].reset_index(drop=True)
    inputs, rows = {}, None
    for model, *_ in members:
        data = BlockDataset(blocks, info, patients, run.path("processed/"), model)
        if rows is None:
            most = [float(labels.sum()) for labels in data.labels]
            rows = list(dict.fromkeys([int(np.argmax(most)), int(np.argmin(most))]))
        pictures = [data[row, -1][0]["image"].numpy() for row in rows]
        inputs[input_name(model.crop, model.size)] = np.rint(255 * np.stack(pictures)).astype(np.uint8)
    return inputs, np.load(run.path("processed/volumes/") / data.files[rows[0]], mmap_mode="r")

# %%
inputs, volume = sample_blocks(run, members)
{name: x.shape for name, x in inputs.items()}

# %% [markdown]
# ## Run the stage
# A graph that differs from torch is not written. A provider that differs, such as one that computes in 16 bits, is
# noted in the JSON and not used.

# %%
#| export
def run_stage(
    run: Run,
) -> dict[str, float]:   # segmenter, classifier -> largest difference against torch
    "The members of ensemble.json and the 3D network -> weights/segmenter.* and weights/classifier.*"
    with run.stage("engines") as results:
        weights, tolerance = run.path("weights/"), run.section("engines").tolerance
        members = members_of(run)
        inputs, volume = sample_blocks(run, members)
        own = {"recipe": run.recipe, "demonstration": run.has("phantom")}
        segmenter, about = open_segmenter(weights)
        organs, info = organ_graph(segmenter, about["depth"], about["size"]), run.recorded("info")
        windows = np.stack(list(following_windows(volume, about["depth"], about["size"]))[:2])
        results["segmenter"] = export_checked(organs, weights / "segmenter.onnx", {"volume": windows}, {
            **own, "depth": about["depth"], "side": about["size"], "threshold": info.threshold,
            "faithful": info.faithful, "rebuild": {
                "kind": "trauma_segmenter", "network": about["network"], "widths": about["widths"], "mirrored": False,
                "weights": ["segment.safetensors"]}}, tolerance)
        gate(weights, "segmenter", {"volume": windows}, load_engine(organs)({"volume": windows}))
        graph, options = load_members(run, members, len(next(iter(inputs.values()))[0]))
        prepared, digest = run.recorded("volumes"), read_json(weights / "segmenter.json")["weights_sha256"]
        results["classifier"] = export_checked(graph, weights / "classifier.onnx", inputs, {
            **own, "window": prepared.window, "faithful": prepared.faithful, "blocks": asdict(run.recorded("blocks")),
            "columns": list(COLUMNS), "segmenter_weights_sha256": digest,
            "scaling": read_json(run.path("ensemble.json"))["scaling"],
            "members": [{"model": m.name, "fold": fold, "columns": m.columns.split(), "crop": m.crop, "size": m.size}
                        for m, fold, _ in members],
            "rebuild": {"kind": "trauma_member", "mirrored": False, "weights": [file for *_, file in members],
                        "each": options}}, tolerance)
        gate(weights, "classifier", inputs, load_engine(graph)(inputs))
        seal_parts(weights)
    return dict(results)

# %%
differences = run_stage(run)
assert check_weights(run.path("weights/")).blocks == run.recorded("blocks")
differences

# %% [markdown]
# ## What came out
# The probabilities of the injuries in a series, by the graphs and by torch.

# %%
engines = Engines(*(load_engine(run.path(f"weights/{name}.onnx")) for name in ("segmenter", "classifier")))
found = read_series(engines, volume).slices()
graph, _ = load_members(run, members, len(next(iter(inputs.values()))[0]))
torches = load_engine(graph)(inputs)
assert np.abs(torches - engines.classifier(inputs)).max() < 1e-4
best = found.max().nlargest(4).index
ax = found[best].dropna().plot(figsize=(7, 2.6), marker=".")
ax.set(xlabel="slice", ylabel="probability", ylim=(0, 1))
ax.legend(fontsize=8);

# %%
pd.Series(engines.metadata, name="classifier.json").drop(["rebuild", "probe"], errors="ignore").to_frame()

# %% [markdown]
# ---
# [← Ensemble](08_ensemble.py) · [Submit →](10_submit.py)

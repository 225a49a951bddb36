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
# > The bag as two graphs that give what torch gives, with everything that a prediction has to know.
#
# The members are those that `bag.json` names, and no other file of the folder. The JSON beside the graphs holds how a
# slice becomes an input, which views are averaged, and the digests of all members.

# %%
#| default_exp ich.engines

# %%
#| export
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mammo_nb.core.engines import export_checked, load_engine
from mammo_nb.core.ensembles import Ensemble
from mammo_nb.core.files import read_json, sha256
from mammo_nb.core.networks import load_weights
from mammo_nb.core.providers import gate
from mammo_nb.core.runs import Run
from mammo_nb.core.settings import seal_parts
from mammo_nb.core.sidecars import EngineError
from mammo_nb.ich.learning.encoder import load_encoder
from mammo_nb.ich.learning.graphs import Member, SeriesReader, encode_series, encoders, readers
from mammo_nb.ich.learning.slices import read_picture
from mammo_nb.ich.reading import phe
from mammo_nb.ich.reading.competition import place_of, read_table
from mammo_nb.ich.reading.inputs import Seen, encoder_inputs, input_name
from mammo_nb.ich.recipes import classes_of
from mammo_nb.ich.system import encoders as encoder_files

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd

from mammo_nb.core.practice import practice
from mammo_nb.ich.learning.graphs import Bag, check_bag, predict_series
from mammo_nb.ich.learning.slices import SlicePictures
from mammo_nb.ich.system import system

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run, such as {"engines.tolerance": 1e-3}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="engines", overrides=overrides)
run.contract("engines")

# %% [markdown]
# ## Members
# A file of weights is named after its model, the fold, and the epochs of the classifier and of the sequence model.

# %%
#| export
_NAME = re.compile(r"(?P<model>.+)_fold(?P<fold>-?\d+)_epoch(?P<epoch>\d+)_(?P<own>\d+)")

@dataclass(frozen=True)
class Parts:
    "The members of a bag and what they have in common."
    classifiers: dict        # file below weights/ -> sha256
    models: dict             # the same of the sequence models
    kinds: list              # `Reader` of the recipe for each sequence model
    places: list             # the number of its classifier
    views: tuple             # `View` of each classifier
    tta: int                 # how many views of a slice have their features averaged

def parts_of(
    run: Run,
) -> Parts:
    "The members that bag.json names; raises EngineError for files that are missing or that are not those of the bag."
    named = {name: digest for name, digest in read_json(run.path("bag.json"))["members"].items()
             if name.startswith("weights/sequence/")}
    kinds = {r.name: r for r in run.recorded("sequence").readers}
    views = {v.name: v for v in classifier_settings(run).views}
    chosen, files, folder = [], [], Path(encoder_files(run)[0])
    for name, digest in named.items():
        found = _NAME.fullmatch(Path(name).stem)
        if not found or found["model"] not in kinds:
            raise EngineError(f"bag.json names {name}, which is no sequence model of this recipe: run bag again.")
        if not run.path(name).is_file() or sha256(run.path(name)) != digest:
            raise EngineError(f"{name} is not the file that bag.json names: run sequence and bag again.")
        kind = kinds[found["model"]]
        chosen.append(kind)
        files.append(f"{kind.view}_fold{found['fold']}_epoch{found['epoch']}.safetensors")
    if len(tta := {kind.tta for kind in chosen}) != 1:
        raise EngineError("bag.readers names models with different tta; one graph gets one kind of features. Name "
                          "readers that agree in it.")
    order = list(dict.fromkeys(files))
    if lost := [f for f in order if not (folder / f).is_file()]:
        raise EngineError(f"{folder} has no {', '.join(lost)}: run classify and embed again.")
    return Parts({f"encoders/{f}": sha256(folder / f) for f in order},
                 {name.removeprefix("weights/"): digest for name, digest in named.items()}, chosen,
                 [order.index(f) for f in files], tuple(views[f.rpartition("_fold")[0]] for f in order), tta.pop())

def classifier_settings(
    run: Run,
):           # the section `classify`
    "How the classifiers were trained; if their embeddings were given, the recipe says it."
    return run.recorded("classify") if run.has("classify") else run.section("classify")

# %%
parts = parts_of(run)
pd.DataFrame({"model": list(parts.models), "kind": [k.name for k in parts.kinds],
              "classifier": [list(parts.classifiers)[p] for p in parts.places]})

# %% [markdown]
# ## Both ensembles

# %%
#| export
def load_parts(
    run: Run,
    parts: Parts,
) -> tuple[Ensemble, Ensemble]:  # classifiers, sequence models
    "The members of the bag with their weights."
    settings, sequence = classifier_settings(run), run.recorded("sequence")
    classes, folder = classes_of(read_table(run.path("folds.csv"))), Path(encoder_files(run)[0])
    names = list(dict.fromkeys(input_name(v) for v in parts.views))
    files = [folder / Path(f).name for f in parts.classifiers]
    members = []
    for file, view in zip(files, parts.views):
        member = Member(settings.network, len(classes), settings.embedding, names.index(input_name(view)))
        load_encoder(member, file)
        members.append(member)
    both = encoders(members, names, classes)
    models = []
    for file, kind, place in zip(parts.models, parts.kinds, parts.places):
        model = SeriesReader(members[0].width, sequence.units, len(classes), place, cell=kind.cell, deltas=kind.deltas)
        load_weights(model, run.path(f"weights/{file}"))
        models.append(model)
    return both, readers(models, len(members), members[0].width, classes)

# %% [markdown]
# ## Real slices
# The graphs are compared with torch on whole series: those with the most and with the least hemorrhage.

# %%
#| export
def sample_series(
    run: Run,
    settings: Seen,
) -> dict[str, np.ndarray]:  # name of an input -> uint8 (n, 3, size, size)
    "The input of the classifiers for one series with much and one without hemorrhage, one after the other."
    table = read_table(run.path("folds.csv"))
    positive = table.groupby("series")[classes_of(table)[-1]].sum().sort_values(kind="stable")
    found = []
    for series in dict.fromkeys([positive.index[-1], positive.index[0]]):
        rows = table[table["series"] == series].sort_values("place")
        pictures = [read_picture(run.path("processed/pictures/") / f"{i}.png") for i in rows["image_id"]]
        found.append(encoder_inputs(pictures, settings))
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

# %%
size = classifier_settings(run).size
seen = Seen(size, parts.views, run.recorded("prepare").faithful, run.recorded("prepare").box)
inputs = sample_series(run, seen)
table = read_table(run.path("folds.csv"))
series = table[table["series"] == table.groupby("series")[classes_of(table)[-1]].sum().sort_values(
    kind="stable").index[-1]].sort_values("place")
for view in parts.views:   # the same pictures that the classifier was trained on
    trained = SlicePictures(series, run.path("processed/pictures/"), view, size, {"mean": (0.,) * 3, "std": (1.,) * 3})
    for k in range(len(series)):
        assert np.array_equal(trained.picture(k).transpose(2, 0, 1), inputs[input_name(view)][k])
{name: x.shape for name, x in inputs.items()}

# %% [markdown]
# ## Run the stage
# A graph that differs from torch is not written. A provider that differs, such as one that computes in 16 bits, is
# noted in the JSON and not used.

# %%
#| export
def run_stage(
    run: Run,
) -> dict[str, float]:   # encoder, sequence -> largest difference against torch
    "The members of bag.json -> weights/encoder.*, weights/sequence.*"
    with run.stage("engines") as results:
        parts, settings, weights = parts_of(run), classifier_settings(run), run.path("weights/")
        both, models = load_parts(run, parts)
        prepared, tolerance = run.recorded("prepare"), run.section("engines").tolerance
        seen = Seen(settings.size, parts.views, prepared.faithful, prepared.box, phe.is_phe(run.path(place_of(run))))
        inputs = sample_series(run, seen)
        own = {"recipe": run.recipe, "classes": list(both.outputs[1].classes), "tta": parts.tta,
               "demonstration": run.has("phantom")}
        about = {**own, "network": settings.network, "members": parts.classifiers,
                 **{name: value for name, value in asdict(seen).items() if name != "size"}}
        if run.mode != "fast":   # else the classifiers lie elsewhere
            about["rebuild"] = {
                "kind": "ich_member", "network": settings.network, "classes": len(own["classes"]),
                "embedding": settings.embedding, "mirrored": False, "weights": list(parts.classifiers),
                "each": [{"place": m.place} for m in both.models]}
        results["encoder"] = export_checked(both, weights / "encoder.onnx", inputs, about, tolerance)
        features, _ = encode_series(load_engine(both), inputs, parts.tta)
        about = {**own, "members": parts.models, "encoder_weights_sha256":
                 read_json(weights / "encoder.json")["weights_sha256"], "rebuild": {
                     "kind": "ich_series_reader", "embedding": features.shape[-1], "classes": len(own["classes"]),
                     "units": run.recorded("sequence").units, "mirrored": False, "weights": list(parts.models),
                     "each": [{"place": p, "cell": k.cell, "deltas": k.deltas}
                              for p, k in zip(parts.places, parts.kinds)]}}
        results["sequence"] = export_checked(models, weights / "sequence.onnx", features, about, tolerance)
        gate(weights, "encoder", inputs, load_engine(both)(inputs))
        gate(weights, "sequence", {"embeddings": features}, load_engine(models)(features))
        seal_parts(weights)
    return dict(results)

# %%
differences = run_stage(run)
bag = Bag(*(load_engine(run.path(f"weights/{name}.onnx")) for name in ("encoder", "sequence")))
assert check_bag(run.path("weights/"))["members"] == parts.classifiers
differences

# %% [markdown]
# ## What came out
# The probability of any hemorrhage in the series with the most of it, by the graphs and by torch.

# %%
one = {name: x[:len(series)] for name, x in inputs.items()}
together, alone = predict_series(bag, one, parts.tta)
torches = Bag(*map(load_engine, load_parts(run, parts)))
plt.figure(figsize=(5, 2.6))
plt.plot(alone[:, -1], ".-", color="lightgrey", label="classifiers")
plt.plot(together[:, -1], ".-", label="bag, graphs")
plt.plot(predict_series(torches, one, parts.tta)[0][:, -1], "x", color="orange", label="bag, torch")
plt.ylim(0, 1)
plt.xlabel("slice")
plt.legend(fontsize=8);

# %%
pd.Series(bag.metadata, name="encoder.json").drop("probe").to_frame()

# %% [markdown]
# ---
# [← Bag](08_bag.py) · [Submit →](10_submit.py)

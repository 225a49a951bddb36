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
# # Inference
# > From a volume to organs and to the probability of each injury in each slice, with two graphs.
#
# A submission, a prediction on one's own scans and the training must see the same pictures, so the settings come from
# the JSON files of the weights. The segmenter finds the organs. They give the crop, and the classifier reads blocks of
# slices in it. A patient has the largest probability of all slices, blocks and series.

# %%
#| default_exp trauma.learning.inference

# %%
#| export
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_nb.core.engines import Engine, finite
from mammo_nb.core.files import read_json
from mammo_nb.core.providers import process_engine
from mammo_nb.core.sidecars import EngineError
from mammo_nb.core.submission import open_network
from mammo_nb.trauma.learning.blocks import read_triplets
from mammo_nb.trauma.learning.scores import normalised, scaled, scaled_originally
from mammo_nb.trauma.reading.blocks import block_rows, middle_rows
from mammo_nb.trauma.reading.organs import WHOLE, crop_of
from mammo_nb.trauma.reading.windows import following_windows
from mammo_nb.trauma.recipes import COLUMNS, GRADES, ORGANS, SUBMITTED, Blocks

# %%
#| hide
import matplotlib.pyplot as plt

# %% tags=["parameters"]
slices = 60   # of the drawn series

# %% [markdown]
# ## Organs
# Any function from a window to probabilities will do: the network of a training, or an engine.

# %%
#| export
def find_organs(
    volume: np.ndarray,      # uint8 (slices, rows, columns), may be mapped from a file
    segment: Callable,       # float32 (depth, size, size) in [0, 1] -> probabilities (organs, depth, size, size)
    depth: int,              # slices of a window
    size: int,               # side of a window, pixels
    threshold: float = 0.5,  # probability from which a pixel belongs to an organ
    faithful: bool = False,  # the last window truncated, as in the original
) -> np.ndarray:             # bool (slices, organs, size, size)
    "The organs in every slice of a volume."
    masks = np.empty((len(volume), len(ORGANS), size, size), bool)
    for k, window in enumerate(following_windows(volume, depth, size, faithful)):
        place = k * depth
        found = segment(window).swapaxes(0, 1)
        masks[place:place + depth] = found[:len(volume) - place] > threshold
    return masks

# %%
z, y, x = np.mgrid[:slices, :60, :72]
liver = np.hypot(np.hypot((z - 36) * .6, y - 28), x - 26) < 13
drawn = (60 + 130 * liver).astype(np.uint8)

def brightness(window):
    "A segmenter that calls everything a liver which is bright."
    return np.stack([window, *[0 * window] * 4])

masks = find_organs(drawn, brightness, 16, 32)
assert masks[36, 0, 14, 11] and not masks[:, 1:].any() and not masks[0].any()
assert np.array_equal(masks[:48], find_organs(drawn[:48], brightness, 16, 32)), "the end of a series changes nothing"

# %% [markdown]
# ## Settings
# `segmenter.json` says how organs are found, and `classifier.json` how blocks are made. The classifier graph has one
# input for each kind of picture, such as `crop_384`. Its output has the networks along its second axis and all columns
# along its last; `members` says which model a network belongs to and which columns it was trained for.

# %%
#| export
def input_name(
    crop: bool,   # whether the organs are cut out
    size: int,    # side, pixels
) -> str:         # such as crop_384
    "The name of an input of the classifier graph."
    return f"{'crop' if crop else 'whole'}_{size}"

@dataclass(frozen=True)
class Seen:
    "What the weights say about how a prediction is made."
    window: str               # ours or theo
    faithful: bool            # levels and order of the original
    depth: int                # slices of a window of the segmenter
    size: int                 # side of it, pixels
    threshold: float
    truncated: bool           # the last window truncated, as in the original
    blocks: Blocks
    columns: tuple[str, ...]  # along the last axis of the classifier's output
    members: tuple            # a dict for each network: model, columns, crop, size
    scaling: dict             # kind: fitted, original or none; factors; shares: column of SUBMITTED -> number
    demonstration: bool       # trained on drawn patients

    @classmethod
    def read(cls,
        segmenter: dict,    # segmenter.json: depth, side, threshold, faithful
        classifier: dict,   # classifier.json: window, faithful, blocks, columns, members, scaling, demonstration
    ):
        "The settings in the JSON of the weights."
        own = {k: classifier[k] for k in ("window", "faithful", "scaling", "demonstration")}
        return cls(**own, depth=segmenter["depth"], size=segmenter["side"], threshold=segmenter["threshold"],
                   truncated=segmenter["faithful"], blocks=Blocks(**classifier["blocks"]),
                   columns=tuple(classifier["columns"]), members=tuple(classifier["members"]))

    @property
    def inputs(self) -> dict[str, tuple[bool, int]]:
        "Inputs of the classifier graph: name -> crop, size."
        return {input_name(m["crop"], m["size"]): (m["crop"], m["size"]) for m in self.members}

    @property
    def models(self) -> dict[str, list[int]]:
        "Models that are averaged: name -> numbers of their networks."
        names = dict.fromkeys(m["model"] for m in self.members)
        return {name: [k for k, m in enumerate(self.members) if m["model"] == name] for name in names}

# %% [markdown]
# ## Two graphs
# The two belong together, for a classifier was trained on the crops and labels that its segmenter made. So the JSON of
# the classifier holds the digest of the segmenter's weights.

# %%
#| export
NAMES = ("segmenter", "classifier")

@dataclass(frozen=True)
class Engines:
    "Both engines; what a submission asks of an engine is answered for both."
    segmenter: Engine
    classifier: Engine

    @property
    def seen(self) -> Seen:
        return Seen.read(self.segmenter.metadata, self.classifier.metadata)

    @property
    def name(self) -> str:       # what computes
        return " and ".join(dict.fromkeys((self.segmenter.name, self.classifier.name)))

    @property
    def metadata(self) -> dict:  # classifier.json
        return self.classifier.metadata

    @property
    def precision(self) -> str:
        return " and ".join(dict.fromkeys((self.segmenter.precision, self.classifier.precision)))

    @property
    def refused(self) -> tuple:  # providers that were not taken, and why
        return (*self.segmenter.refused, *self.classifier.refused)

def check_weights(
    folder: Path,   # has segmenter.* and classifier.*
) -> Seen:
    "Raise EngineError unless both graphs are there and belong together."
    folder = Path(folder)
    for name in NAMES:
        for ending in (".onnx", ".json"):
            if not (folder / f"{name}{ending}").is_file():
                raise EngineError(f"{folder} has no {name}{ending}: copy segmenter.* and classifier.* of one run.")
    segmenter, classifier = (read_json(folder / f"{name}.json") for name in NAMES)
    if classifier.get("segmenter_weights_sha256") != segmenter.get("weights_sha256"):
        raise EngineError(f"{folder}: classifier.onnx was trained on organs that another segmenter found. Copy "
                          "segmenter.* and classifier.* of one run.")
    return Seen.read(segmenter, classifier)

def open_engines(
    folder: Path,              # has segmenter.* and classifier.*
    name: str = "classifier",  # not used: both are opened
    device: str = "auto",      # as in `open_network`
    backend: str = "auto",     # as in `open_network`
) -> Engines:
    "Open both engines. Raises EngineError."
    check_weights(folder)
    return Engines(*(open_network(folder, engine, device, backend) for engine in NAMES))

@lru_cache(maxsize=2)
def process_engines(
    folder: str,           # has segmenter.* and classifier.*
    engine: str = "auto",  # as in `process_engine`
    device: str = "cpu",
) -> Engines:
    "Open both graphs once in this process, on one thread, since the processes of a run share the cores."
    check_weights(Path(folder))
    return Engines(*(process_engine(str(Path(folder) / f"{name}.onnx"), engine, device) for name in NAMES))

# %% [markdown]
# ## A series
# Folds of a model are averaged slice by slice. A slice that is read in two blocks has its larger probability.

# %%
#| export
@dataclass(frozen=True)
class Reading:
    "What the networks say about a series."
    masks: np.ndarray     # bool (slices, organs, size, size)
    crop: tuple           # top, bottom, left, right as fractions
    models: dict          # name of a model -> column -> float32 (slices,); nan where a slice is no middle of a triplet

    def slices(self) -> pd.DataFrame:   # a column for each of COLUMNS that is predicted, a row a slice
        "The probabilities of the slices, the mean over the models."
        found = {c: [of[c] for of in self.models.values() if c in of] for c in COLUMNS}
        return pd.DataFrame({c: np.mean(values, axis=0) for c, values in found.items() if values})

def read_series(
    engines: Engines,
    volume: np.ndarray,      # uint8 (slices, rows, columns), may be mapped from a file
) -> Reading:
    "Organs and probabilities of a series. Raises NotFinite."
    seen = engines.seen
    masks = find_organs(volume, lambda window: finite(engines.segmenter(window[None])[0]).mean(0), seen.depth,
                        seen.size, seen.threshold, seen.truncated)
    crop = crop_of(masks, seen.faithful)
    found = {name: {c: np.full(len(volume), np.nan, np.float32) for c in seen.members[members[0]]["columns"]}
             for name, members in seen.models.items()}
    for places in block_rows(len(volume), seen.blocks):
        inputs = {name: read_triplets(volume, places, crop if cropped else WHOLE, size)[None]
                  for name, (cropped, size) in seen.inputs.items()}
        values, middle = finite(engines.classifier(inputs)[0]), middle_rows(places)
        for name, members in seen.models.items():
            mean = values[members].mean(0)
            for column, own in found[name].items():
                np.fmax.at(own, middle, mean[:, seen.columns.index(column)])
    return Reading(masks, crop, found)

# %% [markdown]
# ## A patient
# The largest probability of all series, then the mean over the models, then the scaling that was found on out-of-fold
# data. Rows of an organ sum to one.

# %%
#| export
def patient_probabilities(
    readings: list[Reading],   # of the series of one patient
) -> pd.DataFrame:             # one row; a column for each of COLUMNS that is predicted
    "The probability of each injury of a patient."
    found = {}
    for name in readings[0].models:
        for column in readings[0].models[name]:
            largest = np.nanmax(np.concatenate([r.models[name][column] for r in readings]))
            found.setdefault(column, []).append(largest)
    return pd.DataFrame({c: [float(np.mean(found[c]))] for c in COLUMNS if c in found})

def submitted(
    probabilities: pd.DataFrame,  # columns of COLUMNS
    scaling: dict,                # kind, factors, shares
) -> pd.DataFrame:                # SUBMITTED; those of an organ sum to 1
    "What is submitted for patients."
    shares = pd.Series(scaling["shares"])
    if scaling["kind"] == "original":
        made = scaled_originally(probabilities, shares, shares)
    else:
        made = scaled(probabilities, scaling["factors"] if scaling["kind"] == "fitted" else {}, shares)
    for organ, grades in GRADES.items():
        own = [f"{organ}_{grade}" for grade in grades]
        made[own] = normalised(made[own].to_numpy().clip(1e-7), organ)
    return made[list(SUBMITTED)]

# %% [markdown]
# ## What came out
# Two engines made of functions: one calls bright pixels liver, and the other sees an injury where the picture is
# bright. The probability follows the organ.

# %%
class Drawn:
    "An engine of a function."
    name, precision, refused = "drawn", "fp32", ()
    def __init__(self, compute, metadata):
        self.compute, self.metadata = compute, metadata
    def __call__(self, given):
        return self.compute(given)

def judge(inputs):
    "Four columns of two networks; the second one was trained for extravasation only."
    bright = inputs["crop_32"].mean((2, 3, 4)) / 255
    return np.stack([np.stack([bright, bright / 2, bright / 4, 0 * bright], -1)] * 2, 1)

shares = {c: .9 if c.endswith("healthy") else .05 for c in SUBMITTED}
columns = ["liver_injury", "liver_low", "liver_high", "extravasation_injury"]
about = {"window": "ours", "faithful": False, "demonstration": True, "blocks": asdict(Blocks(step=20, keep=18)),
         "columns": columns, "scaling": {"kind": "fitted", "factors": {"liver_high": 4.}, "shares": shares},
         "members": [{"model": "a", "columns": columns[:3], "crop": True, "size": 32},
                     {"model": "b", "columns": columns[3:], "crop": True, "size": 32}]}
organs = Drawn(lambda w: brightness(w[0])[None, None], {"depth": 16, "side": 32, "threshold": .5, "faithful": False})
engines = Engines(organs, Drawn(judge, about))
reading = read_series(engines, drawn)
curve = reading.slices()
assert list(curve) == columns and curve["liver_injury"].idxmax() in range(30, 43)
patient = patient_probabilities([reading, reading])
row = submitted(patient, about["scaling"])
assert np.isclose(patient["liver_injury"][0], curve["liver_injury"].max()) and np.isclose(row["bowel_injury"][0], .1)
assert np.allclose([row[[c for c in SUBMITTED if c.startswith(o)]].sum(axis=1)[0] for o in GRADES], 1)
fig, ax = plt.subplots(figsize=(6, 2.2))
ax.plot(reading.masks[:, 0].sum((1, 2)) / reading.masks[:, 0].sum((1, 2)).max(), label="liver, visibility")
ax.plot(curve["liver_injury"], ".", label="liver_injury")
ax.set_xlabel("slice")
ax.legend(fontsize=8);

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

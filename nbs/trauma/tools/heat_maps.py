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
# # Heat maps
# > Where in a slice the classifier saw an injury, and how often this is inside the drawn one.
#
# A patient has the largest probability of all slices, so one slice is responsible for it. Its
# [heat map](../../core/77_explanations.py) is that of the network of the fold that has not seen the patient.

# %%
#| default_exp trauma.tools.heat_maps

# %% tags=["parameters"]
run_dir = ""   # folder of a run; "" makes a small practice run

# %%
#| export
from functools import partial

import cv2
import numpy as np
import pandas as pd
import torch

from mammo_nb.core.explanations import heat_maps, hit, hit_rate
from mammo_nb.core.networks import load_weights
from mammo_nb.core.runs import Run
from mammo_nb.trauma.ensemble import chosen_models
from mammo_nb.trauma.learning.blocks import CROP
from mammo_nb.trauma.learning.classifier import Classifier, finite
from mammo_nb.trauma.reading.blocks import middle_rows
from mammo_nb.trauma.reading.competition import read_table
from mammo_nb.trauma.reading.organs import WHOLE, cut
from mammo_nb.trauma.recipes import GRADES, Model
from mammo_nb.trauma.train import block_dataset, build_classifier, labelled_blocks

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.explanations import beside
from mammo_nb.core.practice import practice
from mammo_nb.trauma.system import system

# %%
#| hide
run = Run.open(run_dir) if run_dir else practice(system, before="engines")

# %% [markdown]
# ## Responsible slices
# Each organ is explained by the first model of the ensemble that predicts its injuries. The competition has no
# threshold. Here an injury is found if its probability is above that of nine in ten patients in whom the organ is
# healthy, out of fold. So about one healthy organ of ten is suspected, by definition.

# %%
#| export
FOUND = 0.9      # share of the healthy below the threshold
MEASURED = 200   # largest number of found injuries that are counted

def explained_models(
    run: Run,
) -> dict[str, Model]:   # organ of GRADES -> model
    "The model that explains each organ."
    models = chosen_models(run, run.recorded("ensemble").models)
    there = {organ: [m for m in models if f"{organ}_injury" in m.columns.split()] for organ in GRADES}
    return {organ: own[0] for organ, own in there.items() if own}

def responsible_slices(
    run: Run,
) -> pd.DataFrame:   # organ, model, fold, patient_id, series, block, triplet, place, label, probability, threshold
    "The slice with the largest probability, out of fold, of each patient and organ; no row if nothing was held back."
    history = pd.read_csv(run.path("checkpoints/train/history.csv"))
    history, parts = history[history["chosen"] & (history["fold"] >= 0)], []
    for organ, model in explained_models(run).items():
        for row in history[history["model"] == model.name].itertuples():
            table = pd.read_csv(run.path(f"checkpoints/train/{model.name}/fold_{row.fold}/pred_{row.epoch}.csv"),
                                dtype={"patient_id": str, "series": str})
            table = table.rename(columns={f"{organ}_injury": "probability"})
            best = table.loc[table.groupby("patient_id")["probability"].idxmax()]
            parts.append(best[["patient_id", "series", "block", "triplet", "probability"]].assign(
                organ=organ, model=model.name, fold=row.fold))
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True)
    places = read_table(run.path("blocks.csv")).set_index("block")["places"]
    patients = read_table(run.path("folds.csv")).set_index("patient_id")
    table["place"] = [int(middle_rows(np.array(places[r.block].split(), int))[r.triplet]) for r in table.itertuples()]
    table["label"] = [1 - int(patients.at[r.patient_id, f"{r.organ}_healthy"]) for r in table.itertuples()]
    limits = table[table["label"] == 0].groupby("organ")["probability"].quantile(FOUND)
    return table.assign(threshold=table["organ"].map(limits))

def found_injuries(
    rows: pd.DataFrame,      # from `responsible_slices`
    limit: int = MEASURED,   # those of the highest probabilities
) -> pd.DataFrame:           # some of them
    "Injured organs that are found, the most certain one first."
    return rows[(rows["label"] == 1) & (rows["probability"] > rows["threshold"])].nlargest(limit, "probability")

# %% [markdown]
# ## Their heat maps
# The answer for one slice depends on all slices of its block, through the recurrent layer. So the features of the other
# slices are computed first and held as they are. What is left depends on one picture. Its three channels are three
# neighbouring slices, and a map says nothing about which of them mattered.

# %%
#| export
def slice_answer(
    network: Classifier,
    pictures: torch.Tensor,   # float (1, 3, size, size): the triplet that is explained
    features: torch.Tensor,   # (triplets, features) of its block
    triplet: int,             # its number in the block
) -> torch.Tensor:            # logits (1, outputs)
    "What a network says about one slice of a block as a function of this slice alone."
    own = network.pooled(network.maps(pictures)[-1])
    return network.graded(torch.cat([features[:triplet], own, features[triplet + 1:]])[None])[:, triplet]

def slice_heat(
    network: Classifier,
    block: torch.Tensor,         # float (triplets, 3, size, size), 0 to 1
    triplet: int,                # the one that is explained
    target: int,                 # output that is explained
    steps: tuple | None = None,  # as for `heat_maps`
) -> np.ndarray:                 # float32 (size, size), 0 to 1
    "Heat map of one slice of a block. Raises ExplanationError."
    block = finite(block)
    with torch.no_grad():
        features = network.eval().pooled(network.maps(block)[-1])
    answer = partial(slice_answer, features=features, triplet=triplet)
    return heat_maps([network], block[triplet][None], target, answer, steps)[0]

def held_back_heat(
    run: Run,
    rows: pd.DataFrame,          # from `responsible_slices`
    steps: tuple | None = None,  # as for `heat_maps`
) -> dict:                       # organ, patient_id -> (uint8 (size, size), the slice as the network sees it; float32)
    "Heat maps of the injuries of organs, on the slices that are responsible. Raises ExplanationError."
    models, (blocks, *tables), found = explained_models(run), labelled_blocks(run), {}
    for (name, fold), own in rows.groupby(["model", "fold"]):
        model = next(m for m in models.values() if m.name == name)
        needed = blocks[blocks["block"].isin(own["block"])].reset_index(drop=True)
        data, at = block_dataset(run, needed, *tables, model), {b: k for k, b in enumerate(needed["block"])}
        network = build_classifier(model)
        load_weights(network, run.path(f"weights/models/{name}_fold{fold}.safetensors"))
        for row in own.itertuples():
            image, target = data[at[row.block], -1][0]["image"], data.columns.index(f"{row.organ}_injury")
            grey = np.uint8(np.rint(255 * image[row.triplet, 1].numpy()))
            found[row.organ, row.patient_id] = grey, slice_heat(network, image, row.triplet, target, steps)
    return found

# %% [markdown]
# ## Inside the injury
# For drawn patients it is known where each injury lies. The file of a series names its slices by their instance
# numbers, and a mask goes the same way as the picture: it is cut and stretched to the network's input.

# %%
#| export
def drawn_injuries(
    run: Run,
    rows: pd.DataFrame,  # from `responsible_slices`
) -> dict:               # organ, patient_id -> bool (size, size), as the network sees the slice; where it is known only
    "The injury of the organ in each slice; no pixel is set where the slice does not show it."
    models, found = explained_models(run), {}
    info = read_table(run.path("info.csv")).set_index(["patient_id", "series", "place"])[["instance", *CROP]]
    for row in rows.itertuples():
        file, model = run.path(f"competition/truth/injuries/{row.series}.npz"), models[row.organ]
        if not file.is_file():
            continue
        with np.load(file) as stored:
            own = info.loc[(row.patient_id, row.series, row.place)]
            at = stored["instances"].tolist().index(int(own["instance"]))
            bits = [stored[name][at] for name in stored.files if name.split("_")[0] == row.organ]
        if bits:
            mask = np.unpackbits(np.bitwise_or.reduce(bits), axis=-1, count=len(bits[0]))
            crop = tuple(own[CROP]) if model.crop else WHOLE
            mask = cv2.resize(np.ascontiguousarray(cut(mask, crop)), (model.size,) * 2, interpolation=cv2.INTER_NEAREST)
            found[row.organ, row.patient_id] = mask > 0
    return found

def injury_hits(
    rows: pd.DataFrame,   # from `found_injuries`
    heat: dict,           # from `held_back_heat`
    masks: dict,          # from `drawn_injuries`
) -> pd.DataFrame:        # unit, items, hits, share, low, high, chance, shown; empty where no injury is known
    """The share of found injuries whose heat map has its peak inside, of patients (by the organ with the highest
    probability), of all organs, and of each. `chance` is the mean share of the picture that the injury fills, and
    `shown` the number of slices that show it at all; the others cannot be hit."""
    known = [key for key in zip(rows.get("organ", []), rows.get("patient_id", [])) if key in masks]
    if not known:
        return pd.DataFrame()
    table = pd.DataFrame(known, columns=["organ", "patient_id"]).assign(
        hit=[hit(heat[key][1], masks[key]) for key in known], area=[masks[key].mean() for key in known])
    units = {"patients": table.drop_duplicates("patient_id"), "organs": table, **dict(list(table.groupby("organ")))}
    return pd.DataFrame([{"unit": unit, **hit_rate(own["hit"]), "chance": own["area"].mean(),
                          "shown": int((own["area"] > 0).sum())} for unit, own in units.items()])

def in_a_sentence(
    hits: pd.DataFrame,   # from `injury_hits`, not empty
) -> str:
    "What the rate of the patients says, and what it does not."
    r = hits.iloc[0]
    told = (f"Inside of the drawn injury lies the peak of {r['hits']} of {r['items']} patients, {r['share']:.2f} "
            f"({r['low']:.2f} to {r['high']:.2f}); a place taken at random would be inside for {r['chance']:.2f}. "
            f"{r['items'] - r['shown']} of these slices do not show the injury at all.")
    if r["low"] > r["chance"]:
        told += " So the peaks lie there more often than by chance."
    else:
        told += " So it is not shown that the peaks lie there more often than by chance."
    if r["share"] < 0.5:
        told += " Most peaks lie elsewhere: do not read these maps as the place of an injury."
    return told

# %%
rows = responsible_slices(run)
shown = rows[rows["label"] == 1].head(3)
heat, masks = held_back_heat(run, shown), drawn_injuries(run, shown)
assert set(masks) == set(heat) and all(masks[key].shape == h.shape == g.shape for key, (g, h) in heat.items())
figure, axes = plt.subplots(1, 3, figsize=(9, 2))
for axis, (key, pair) in zip(axes, heat.items()):
    axis.imshow(beside(*pair))
    if masks[key].any():
        axis.contour(np.pad(masks[key], ((0, 0), (0, masks[key].shape[1]))), [.5], colors="orange", linewidths=1)
    axis.set_title(" ".join(key), fontsize=8)
    axis.axis("off")

# %%
injury_hits(shown, heat, masks).round(3)

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

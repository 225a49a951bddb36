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
# > Where in a slice the classifier saw blood, and how often this is inside the drawn hemorrhage.
#
# The sequence model adds what the other slices say, and has no places. So a [heat map](../../core/77_explanations.py)
# is that of the classifier alone, for the class `any`, by the classifier of the fold that has not seen the slice.

# %%
#| default_exp ich.tools.heat_maps

# %% tags=["parameters"]
run_dir = ""   # folder of a run; "" makes a small practice run

# %%
#| export
import cv2
import numpy as np
import pandas as pd
import torch

from mammo_nb.core.explanations import heat_maps, hit, hit_rate
from mammo_nb.core.files import read_json
from mammo_nb.core.runs import Run
from mammo_nb.ich.bag import classifier_predictions
from mammo_nb.ich.classify import slice_pictures
from mammo_nb.ich.learning.encoder import Encoder
from mammo_nb.ich.learning.slices import read_folds, read_view
from mammo_nb.ich.recipes import View, classes_of
from mammo_nb.ich.sequence import embedded, embeddings_folder

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.explanations import beside
from mammo_nb.core.practice import practice
from mammo_nb.ich.system import system

# %%
#| hide
run = Run.open(run_dir) if run_dir else practice(system, before="engines")

# %% [markdown]
# ## Found slices
# The competition takes probabilities and has no threshold; here a slice is found above one half.
#
# A slice of the demo has 64 pixels a side, a hemorrhage five or ten. So the map with a step of 4 pixels is used.
# It was chosen on the slices of the demo that are counted: its peak lay inside of the blood for 10 of 37 patients, that
# of the map with a step of 8 for 8, and that of the maps which serve for breasts for 2. By chance it would be one of a
# hundred. So these maps do not show reliably where a network this small saw blood.

# %%
#| export
MEASURED, FOUND = 200, 0.5   # largest number of slices; probability above which a slice is found
STEPS = (4,)                 # pixels from cell to cell of the map that is used

def view_of(
    run: Run,
) -> View:     # that the bag's first reader reads
    "The classifier that is explained."
    first = read_json(run.path("bag.json"))["readers"][0]
    name = next(r.view for r in run.recorded("sequence").readers if r.name == first)
    return next(v for v in run.recorded("classify").views if v.name == name)

def found_slices(
    run: Run,
    view: View,
    limit: int = MEASURED,   # slices; those of the highest probabilities
) -> pd.DataFrame:           # rows of oof.csv with a hemorrhage and `cnn`, the probability of the classifier
    "Held-back slices with a hemorrhage that the classifier finds, the most certain one first."
    oof = pd.read_csv(run.path("oof.csv"), dtype={"patient_id": str, "series": str, "image_id": str})
    oof["cnn"] = classifier_predictions(run, view.name, oof)[:, -1]
    return oof[(oof["any"] == 1) & (oof["cnn"] > FOUND)].nlargest(limit, "cnn")

def held_back_heat(
    run: Run,
    view: View,
    rows: pd.DataFrame,   # image_id, fold
) -> dict:                # image_id -> (uint8 (size, size), brain window as the network sees it; float32, 0 to 1)
    "Heat maps of the class `any`."
    settings, table = run.recorded("classify"), read_folds(run.path("folds.csv"))
    data = slice_pictures(table, run.path("processed/pictures"), view, settings, run.recorded("prepare").faithful)
    place = {image: k for k, image in enumerate(data.ids)}
    source, classes, found = embeddings_folder(run), classes_of(table), {}
    last = dict(embedded(read_json(source / "embeddings.json"), view.name, 1))   # the last epoch of each fold
    for fold, own in rows.groupby("fold"):
        weights = source / "encoders" / f"{view.name}_fold{fold}_epoch{last[fold]}.safetensors"
        encoder = Encoder(settings.network, len(classes), settings.embedding, weights=str(weights))
        x = torch.stack([data.tensor(place[image]) for image in own["image_id"]])
        for image, heat in zip(own["image_id"], heat_maps([encoder], x, classes.index("any"), steps=STEPS)):
            picture = data.picture(place[image])
            found[image] = np.ascontiguousarray(picture[..., 1 if view.channels == "neighbours" else 0]), heat
    return found

# %% [markdown]
# ## Inside the hemorrhage
# Drawn slices have masks of their blood. A patient is counted by the slice with the highest probability. Slices of a
# patient resemble each other, so the interval of the slices is too narrow.

# %%
#| export
def blood_mask(
    run: Run,
    view: View,
    row,                      # image_id, and x0, y0, x1, y1 of the head
) -> np.ndarray | None:       # bool (size, size), as the network sees the slice; None where it is not known
    "The blood of a slice."
    mask = cv2.imread(str(run.path(f"competition/truth/masks/{row.image_id}.png")), cv2.IMREAD_COLOR)
    if mask is None:
        return None
    settings, box = run.recorded("classify"), (row.x0, row.y0, row.x1, row.y1)
    return read_view(mask, box, settings.size, view.crop, run.recorded("prepare").faithful)[..., 0] > 127

def blood_hits(
    run: Run,
    view: View,
    rows: pd.DataFrame,   # from `found_slices`
    heat: dict,           # from `held_back_heat`
) -> pd.DataFrame:        # unit (patients, slices), items, hits, share, low, high; empty where no mask is known
    "The share of found slices whose heat map has its peak inside of the blood."
    boxes = read_folds(run.path("folds.csv"))[["image_id", "x0", "y0", "x1", "y1"]]
    rows = rows.merge(boxes, on="image_id")
    masks = [blood_mask(run, view, row) for row in rows.itertuples()]
    rows = rows.assign(mask=masks)[np.array([mask is not None and mask.any() for mask in masks], bool)]
    if not len(rows):
        return pd.DataFrame()
    rows["hit"] = [hit(heat[image][1], mask) for image, mask in zip(rows["image_id"], rows["mask"])]
    first = rows.sort_values("cnn", ascending=False).drop_duplicates("patient_id")
    return pd.DataFrame([{"unit": "patients", **hit_rate(first["hit"])}, {"unit": "slices", **hit_rate(rows["hit"])}])

# %%
view = view_of(run)
oof = pd.read_csv(run.path("oof.csv"), dtype={"patient_id": str, "series": str, "image_id": str})
shown = oof[oof["any"] == 1].head(3)
heat = held_back_heat(run, view, shown)
figure, axes = plt.subplots(1, 3, figsize=(9, 2))
for axis, image in zip(axes, shown["image_id"]):
    axis.imshow(beside(*heat[image]))
    axis.axis("off")
assert all(h.shape == p.shape for p, h in heat.values())

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

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
# > Where in a breast a probability came from, and how often this is inside the lesion.
#
# A [heat map](../../core/77_explanations.py) is that of the whole network. Networks of recipes with `lesion_weight`
# also predict by themselves which cells have a lesion ([Lesions](../learning/lesions.py)). Their answer is the mean of
# both ways, and so the heat map shows both.

# %%
#| default_exp mammo.tools.heat_maps

# %% tags=["parameters"]
run_dir = ""   # folder of a run; "" makes a small practice run

# %%
#| export
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from mammo_nb.core.ensembles import Ensemble, rebuild
from mammo_nb.core.explanations import SCALE, heat_maps, hit, hit_rate, onto_frame, overlay
from mammo_nb.core.files import read_json
from mammo_nb.core.networks import WeightsError
from mammo_nb.core.pictures import shrink
from mammo_nb.core.runs import Run
from mammo_nb.core.sidecars import EngineError, read_sidecar
from mammo_nb.mammo.crops import Breast, crop, crop_path, preview
from mammo_nb.mammo.datasets import read_table
from mammo_nb.mammo.drawing.breast import BREAST
from mammo_nb.mammo.engines import fitted_crops
from mammo_nb.mammo.recipes import Crops

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.explanations import beside
from mammo_nb.core.practice import practice
from mammo_nb.mammo.system import system

# %%
#| hide
run = Run.open(run_dir) if run_dir else practice(system, before="submit")

# %% [markdown]
# ## The networks
# A graph has no gradients, so the networks are built again from the weights beside it.

# %%
#| export
@lru_cache(maxsize=1)
def networks_of(
    graph: Path,     # such as ensemble.onnx; the weights that its JSON names lie beside it
) -> Ensemble:
    "The networks of a graph, with gradients. Raises EngineError without captum, and for missing or other weights."
    if find_spec("captum") is None:
        raise EngineError("Heat maps need captum, which is not installed: pip install captum.")
    try:
        return rebuild(Path(graph).parent, read_sidecar(Path(graph)))
    except WeightsError as e:
        raise EngineError(f"Heat maps need the weights of the networks beside {Path(graph).name}: {e}") from e

# %% [markdown]
# ## The images of a run
# An image that was held back is explained by the network of its fold, which has not seen it in training.

# %%
#| export
def input_heat(
    ensemble: Ensemble,
    pictures: np.ndarray,   # uint8 (n, height, width)
) -> np.ndarray:            # float32 (n, height, width), 0 to 1
    "Heat maps of the input of an ensemble."
    with torch.no_grad():
        x = ensemble.prepare(torch.from_numpy(pictures)[:, None].to(ensemble.mean.device))
    return heat_maps(ensemble.models, x)

GRAPH = "weights/ensemble.onnx"   # of a run

def held_back_heat(
    run: Run,             # a run that has trained
    rows: pd.DataFrame,   # rows of oof.csv: patient_id, image_id, fold
    graph: str = GRAPH,   # whose networks are those of selection.json, in their order
) -> dict:                # image_id -> float32 in the shape of the crop, 0 to 1
    "Heat maps of images, each by the network that has not seen it."
    ensemble, size = networks_of(run.path(graph)), read_sidecar(run.path(graph))["size"]
    ensemble.to("cuda" if torch.cuda.is_available() else "cpu")
    images, plain, found = run.path("processed/cleaned_images"), run.recorded("train").faithful, {}
    for place, chosen in enumerate(read_json(run.path("selection.json"))["folds"]):
        own = rows[rows["fold"] == chosen["fold"]]
        for part in (own[start:start + 16] for start in range(0, len(own), 16)):
            heat = input_heat(ensemble.keep([place]), fitted_crops(run, part, size))
            for row, one in zip(part.itertuples(), heat):
                shape = cv2.imread(str(crop_path(images, row.patient_id, row.image_id)), cv2.IMREAD_GRAYSCALE).shape
                found[row.image_id] = onto_frame(one, shape, (0, 0, shape[1], shape[0]), shape, plain)
    return found

# %%
oof = read_table(run.path("oof.csv"), ["probability", "fold"])
heat = held_back_heat(run, oof.nlargest(3, "probability"))
figure, axes = plt.subplots(1, 3, figsize=(9, 5))
for axis, row in zip(axes, oof.nlargest(3, "probability").itertuples()):
    grey = cv2.imread(str(crop_path(run.path("processed/cleaned_images"), row.patient_id, row.image_id)), 0)
    axis.imshow(beside(grey, heat[row.image_id]))
    axis.axis("off")

# %% [markdown]
# ## Inside the lesion
# A *hit* is a peak inside of a lesion. It is counted where masks are known: of drawn competitions, and of data sets
# with masks. Breasts with a cancer that the threshold finds are counted by their image with the highest probability;
# images by their own probability. Two images of a breast resemble each other, so the interval of the images is a
# little too narrow.

# %%
#| export
MEASURED = 100   # largest number of images of a report

def lesion_mask(
    run: Run,
    patient_id: str,
    image_id: str,
    fitted: Callable = shrink,   # uint8 cut of the frame, rows, columns -> the same in the shape of the stored crop
) -> np.ndarray | None:   # uint8 in the shape of the crop, white in lesions; None where they are not known
    "The lesions of an image; all lesions of a breast with a cancer are malignant."
    own = crop_path(run.path("processed/cleaned_masks"), patient_id, image_id)
    if own.is_file():
        return cv2.imread(str(own), cv2.IMREAD_GRAYSCALE)
    drawn = crop_path(run.path("competition/truth/masks"), patient_id, image_id)
    if not drawn.is_file():
        return None
    crops = read_table(run.path("processed/crops.csv"), ["x0", "y0", "x1", "y1"])
    row = crops[(crops["patient_id"] == patient_id) & (crops["image_id"] == image_id)].iloc[0]
    x0, y0, x1, y1 = (int(row[side]) for side in ("x0", "y0", "x1", "y1"))
    lesions = cv2.imread(str(drawn), cv2.IMREAD_GRAYSCALE)[y0:y1, x0:x1] > BREAST
    crop = cv2.imread(str(crop_path(run.path("processed/cleaned_images"), patient_id, image_id)), cv2.IMREAD_GRAYSCALE)
    return fitted(np.uint8(lesions) * np.uint8(255), *crop.shape)

def true_positives(
    run: Run,
    limit: int | None = None,    # largest number of images; they are spread over the table
    fitted: Callable = shrink,   # as for `lesion_mask`
) -> pd.DataFrame:              # rows of oof.csv with `mask` and `best`: whether the image stands for its breast
    "Images with a cancer, a known lesion and a probability above the threshold."
    oof = read_table(run.path("oof.csv"), ["probability", "fold"])
    threshold = np.float32(read_json(run.path("selection.json"))["threshold"])
    breasts = oof.groupby(["patient_id", "laterality"])["probability"].transform("mean").astype(np.float32)
    first = oof.sort_values("probability", ascending=False).drop_duplicates(["patient_id", "laterality"]).index
    oof["best"] = oof.index.isin(first) & (breasts > threshold)
    called = oof[(oof["cancer"] == 1) & (oof["best"] | (oof["probability"].astype(np.float32) > threshold))]
    masks = [lesion_mask(run, p, i, fitted) for p, i in zip(called["patient_id"], called["image_id"])]
    known = np.array([mask is not None and (mask > 127).any() for mask in masks], bool)
    called = called.assign(mask=masks)[known]
    if limit and len(called) > limit:
        called = called.iloc[np.linspace(0, len(called) - 1, limit).astype(int)]
    return called

def lesion_hits(
    run: Run,
    limit: int | None = None,    # as for `true_positives`
    graph: str = GRAPH,          # as for `held_back_heat`
    fitted: Callable = shrink,   # as for `lesion_mask`
) -> pd.DataFrame:               # unit (breasts, images), items, hits, share, low, high; empty without known lesions
    "The share of true positives whose heat map has its peak inside of the lesion."
    rows = true_positives(run, limit, fitted)
    if not len(rows):
        return pd.DataFrame()
    heat = held_back_heat(run, rows, graph)
    rows["hit"] = [hit(heat[image], mask > 127) for image, mask in zip(rows["image_id"], rows["mask"])]
    return pd.DataFrame([{"unit": "breasts", **hit_rate(rows.loc[rows["best"], "hit"])},
                         {"unit": "images", **hit_rate(rows["hit"])}])

# %%
lesion_hits(run, MEASURED)

# %% [markdown]
# ## On a preview
# `predict --heat-maps` puts the heat map of the whole ensemble back onto the frame.

# %%
#| export
def preview_with_heat(
    weights: Path,        # a folder with ensemble.onnx and the weights that its JSON names
    faithful: bool,       # as in the settings of the crops
    breast: Breast,
    seen: np.ndarray,     # uint8 (height, width), the input of the network
    lines: list[str],     # lines of text below the pictures
    height: int = 512,    # of the pictures in a preview, pixels
) -> np.ndarray:          # uint8 (rows, columns, 3), BGR
    "A preview, and to the right of it the frame under its heat map."
    picture = preview(breast, seen, [*lines, SCALE])
    torch.set_num_threads(1)   # the processes already share the cores
    heat, = input_heat(networks_of(weights / "ensemble.onnx"), seen[None])
    box, header = breast.box, breast.image.header
    whole = replace(box, x0=0, y0=0, x1=header.columns, y1=header.rows)
    grey, _, _ = crop(breast.image, whole, Crops(height=height, scaling=breast.scaling))
    grey = cv2.resize(grey, (max(1, round(grey.shape[1] * height / grey.shape[0])), height),
                      interpolation=cv2.INTER_AREA)
    down, across = height / header.rows, grey.shape[1] / header.columns
    place = tuple(round(side * scale) for side, scale in zip((box.x0, box.y0, box.x1, box.y1), 2 * (across, down)))
    shape = (box.y1 - box.y0, box.x1 - box.x0) if faithful else breast.grey.shape
    warm = overlay(grey, onto_frame(heat, shape, place, grey.shape, faithful))[..., ::-1]
    wide = np.zeros((len(picture), picture.shape[1] + 8 + warm.shape[1], 3), np.uint8)
    wide[:, :picture.shape[1]] = picture
    wide[:height, picture.shape[1]:] = 90
    wide[:height, picture.shape[1] + 8:] = warm
    return wide

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

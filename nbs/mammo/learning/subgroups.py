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
# # Subgroups
# > Scores by site, machine, density, age, view and implant, and by what is decided on: image, breast or patient.
#
# One score of all breasts hides where a model fails. On the original data the winner's F1 was 0.65 at one site and 0.40
# at the other. Small groups have wide intervals, so every row has its counts.

# %%
#| default_exp mammo.learning.subgroups

# %%
#| export
import numpy as np
import pandas as pd

from mammo_nb.core.estimates import GROUP_SCORES, score_row
from mammo_nb.core.metrics import best_threshold
from mammo_nb.core.uncertainty import DRAWS
from mammo_nb.mammo.datasets import per_breast

# %%
#| hide
from mammo_nb.core.estimates import in_words

# %% tags=["parameters"]
patients, seed = 200, 0   # of the random predictions below, four images each

# %% [markdown]
# ## Groups
# The table of folds has what is known of each image. Ages are put together by decades. The score of a view is that of
# breasts of which only this view is read.

# %%
#| export
ATTRIBUTES = {"site_id": "site", "machine_id": "machine", "density": "density", "age": "age", "view": "view",
              "implant": "implant"}

def age_bands(
    ages: pd.Series,  # years; text that is no number counts as missing
) -> pd.Series:       # such as "50-59"; missing where the age is
    "Decades of age."
    years = pd.to_numeric(ages, errors="coerce")
    bands = pd.cut(years, [0, 40, 50, 60, 70, 80, np.inf], right=False,
                   labels=["under 40", "40-49", "50-59", "60-69", "70-79", "80 and over"])
    return bands.astype(object)

def subgroups(
    oof: pd.DataFrame,    # predictions, one row an image: patient_id, image_id, laterality, cancer, probability
    known: pd.DataFrame,  # patient_id, image_id and some of ATTRIBUTES, such as folds.csv
    threshold: float,     # a breast is called positive above it
    n: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:        # attribute, group, patients, breasts, cancers, and the GROUP_SCORES with intervals
    "Scores of the breasts of each group, with intervals over patients. Attributes without any value are left out."
    columns = [c for c in ATTRIBUTES if c in known and known[c].notna().any()]
    ids = ["patient_id", "image_id"]
    images = oof[[*ids, "laterality", "cancer", "probability"]].merge(
        known[[*ids, *columns]], on=ids, how="left", validate="one_to_one")
    groups = [("all", "all", images)]
    for column in columns:
        values = age_bands(images[column]) if column == "age" else images[column].astype(object)
        values = values.where(values.notna(), "unknown").map(_as_text)
        for value in sorted(values.unique(), key=_place):
            groups.append((ATTRIBUTES[column], value, images[values == value]))
    rows = []
    for attribute, group, own in groups:
        breasts = per_breast(own).rename(columns={"cancer": "label"})
        rows.append({"attribute": attribute, "group": group, **score_row(breasts, GROUP_SCORES, threshold, n, seed)})
    return pd.DataFrame(rows).rename(columns={"items": "breasts", "positives": "cancers"})

def _as_text(value) -> str:
    "A value as text; 1.0, which a column with gaps makes of 1, is 1."
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

def _place(text: str) -> tuple:
    "Numbers in their order, `under 40` before the other ages, `unknown` at the end."
    return text == "unknown", text != "under 40", (0, int(text), "") if text.isdigit() else (1, 0, text)

# %% [markdown]
# ## Image, breast, patient
# The competition decides on breasts, a clinic recalls patients. Images are put together by their mean or their maximum.
# The threshold of each row is the best for it, since maxima need a higher one than means. The first rows are what the
# winner published about its own out-of-fold predictions on the original data.

# %%
#| export
PUBLISHED = (  # by the winner: unit, AUC, threshold, F1
    ("breast, mean (published by the winner)", .9204, .34, .5182),
    ("breast, maximum (published by the winner)", np.nan, .61, .5091),
    ("image (published by the winner)", np.nan, .40, .4191),
)
UNITS = {"image": ["patient_id", "image_id"], "breast": ["patient_id", "laterality"], "patient": ["patient_id"]}

def by_unit(
    oof: pd.DataFrame,    # as for `subgroups`
    n: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:        # unit, items, positives, AUC, threshold, pF1; low and high of AUC and pF1
    "Scores of images, breasts and patients, with intervals over patients, below the winner's published ones."
    rows = [dict(zip(("unit", "AUC", "threshold", "pF1"), row)) for row in PUBLISHED]
    for unit, keys in UNITS.items():
        for way in ("mean", "max") if unit != "image" else ("mean",):
            items = oof.groupby(keys, sort=False).agg(label=("cancer", "max"), probability=("probability", way))
            items = items.reset_index()
            threshold, _ = best_threshold(items["label"], items["probability"])
            name = unit if unit == "image" else f"{unit}, {way.replace('max', 'maximum')}"
            rows.append({"unit": name, "threshold": threshold,
                         **score_row(items, ("AUC", "pF1"), threshold, n, seed)})
    order = ["unit", "items", "positives", "AUC", "AUC low", "AUC high", "threshold", "pF1", "pF1 low", "pF1 high"]
    return pd.DataFrame(rows)[order].astype({"items": "Int64", "positives": "Int64"})

# %% [markdown]
# ## What came out
# A model that is blind at site 2:

# %%
rng = np.random.default_rng(seed)
images = pd.DataFrame({"patient_id": np.repeat(np.arange(patients), 4).astype(str),
                       "view": ["CC", "MLO"] * 2 * patients, "laterality": ["L", "L", "R", "R"] * patients,
                       "site_id": np.repeat(["1", "2"], 2 * patients)})
images["image_id"] = images.index.astype(str)
images["cancer"] = np.repeat((rng.random(2 * patients) < .2).astype(int), 2)
seen = images["cancer"] * (images["site_id"] == "1")
images["probability"] = 1 / (1 + np.exp(-rng.normal(2.5 * seen - 2, 1)))
table = subgroups(images, images, .3, n=300)
auc = table.set_index(["attribute", "group"])["AUC"]
assert auc["site", "1"] > .9 and abs(auc["site", "2"] - .5) < .1 and table["breasts"].iloc[1:3].sum() == 2 * patients
in_words(table, GROUP_SCORES)

# %%
in_words(by_unit(images, n=300), ("AUC", "pF1"))

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

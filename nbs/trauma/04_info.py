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
# # Info
# > One row for each slice: how much of each organ is in it, where the organs lie, and whether an injury is marked.
#
# The 3D network measures every slice of every series, also of those whose organs were outlined by hand, since a
# prediction has only the network. From its masks follow the visibility of organs, which makes labels of slices, and
# the crop.

# %%
#| default_exp trauma.info

# %%
#| export
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import sha256, write_csv
from mammo_nb.core.parallel import map_files
from mammo_nb.core.runs import Run
from mammo_nb.trauma.learning.blocks import CROP, VISIBILITY
from mammo_nb.trauma.learning.inference import find_organs
from mammo_nb.trauma.learning.segmenter import process_segmenter
from mammo_nb.trauma.reading.competition import IMAGE_LEVEL, place_of, read_image_labels, read_table
from mammo_nb.trauma.reading.organs import crop_of, visibility, write_masks

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.practice import practice
from mammo_nb.trauma.reading.organs import WHOLE, read_masks
from mammo_nb.trauma.recipes import ORGANS
from mammo_nb.trauma.system import system

# %% tags=["parameters"]
run_dir = ""      # folder of the run; "" makes a small practice run
overrides = {}    # changes for this run, such as {"info.threshold": 0.4}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="info", overrides=overrides)
run.contract("info")

# %% [markdown]
# ## One series
# On a CPU each core takes a series of its own, since one window is too little work for several. On a GPU series follow
# each other in this process. Finished series of an interrupted run are kept.

# %%
#| export
class InfoError(ProjectError):
    "A series whose organs could not be measured."

def measure_series(
    item: dict,  # volume, masks: files; weights: folder; digest of the weights; threshold, faithful
) -> dict:       # a list for each organ's visibility; the crop
    "Find the organs of a series, write their masks, and measure them."
    volume = np.load(item["volume"], mmap_mode="r")
    network = process_segmenter(item["weights"], item["digest"])
    masks = find_organs(volume, *network, item["threshold"], item["faithful"])
    write_masks(Path(item["masks"]), masks)
    shares = visibility(masks, item["faithful"])
    return dict(zip(VISIBILITY, shares.T.tolist())) | dict(zip(CROP, crop_of(masks, item["faithful"])))

# %% [markdown]
# ## The table
# `instance` is the number by which the competition marks slices. A marked slice that is in no volume is counted.

# %%
#| export
def info_table(
    slices: pd.DataFrame,    # slices.csv, those with a place
    found: dict,             # (patient_id, series) -> from `measure_series`
    marked: pd.DataFrame,    # from `read_image_labels`
) -> pd.DataFrame:           # patient_id, series, instance, place, z_mm, VISIBILITY, CROP, extravasation, bowel
    "One row for each slice that has a place."
    parts = []
    for key, rows in slices.groupby(["patient_id", "series"], sort=False):
        rows = rows.sort_values("place")
        parts.append(rows[["patient_id", "series", "instance", "place"]].assign(
            place=rows["place"].astype(int), z_mm=rows["position_mm"], **found[key]))
    table = pd.concat(parts, ignore_index=True).merge(marked, "left", ["series", "instance"])
    table[["extravasation", "bowel"]] = table[["extravasation", "bowel"]].fillna(0).astype(int)
    return table

# %%
drawn = pd.DataFrame({"patient_id": "7", "series": "1", "instance": ["2", "1"], "place": [1.0, 0.0],
                      "position_mm": [5.0, 0.0]})
seen = {("7", "1"): dict.fromkeys(VISIBILITY, [0.5, 1.0]) | dict(zip(CROP, WHOLE))}
made = info_table(drawn, seen, pd.DataFrame({"series": ["1"], "instance": ["2"], "bowel": [1], "extravasation": [0]}))
assert made["instance"].tolist() == ["1", "2"] and made["bowel"].tolist() == [0, 1]
assert made["visibility_liver"].tolist() == [0.5, 1.0]

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
) -> pd.DataFrame:       # info.csv
    "Volumes and the 3D network -> info.csv and processed/masks/."
    section, weights = run.section("info"), run.path("weights/")
    with run.stage("info") as results:
        slices = read_table(run.path("processed/slices.csv"))
        slices = slices[slices["place"].notna()]
        folder, masks = run.path("processed/volumes/"), run.path("processed/masks/")
        masks.mkdir(parents=True, exist_ok=True)
        common = {"weights": str(weights), "digest": sha256(weights / "segment.safetensors"),
                  "threshold": section.threshold, "faithful": section.faithful}
        keys = list(slices.groupby(["patient_id", "series"], sort=False).groups)
        items = [{"id": f"{p}_{s}", "volume": str(folder / f"{p}_{s}.npy"), "masks": str(masks / f"{p}_{s}.npy"),
                  **common} for p, s in keys]
        found = map_files(measure_series, items, table=run.path("processed/masks.csv"), key="id", label="organs",
                          code=run.code("info"), reads=lambda item: [Path(item["volume"])],
                          writes=masks, workers=1 if torch.cuda.is_available() else None)
        run.path("processed/masks.csv").unlink()
        if failed := [e for e in found["error"] if e]:
            raise InfoError(f"{len(failed)} series could not be measured, the first with {failed[0]}. Run the stages "
                            "volumes and segment again.")
        for path in set(masks.iterdir()) - {Path(item["masks"]) for item in items}:
            path.unlink()
        marked = read_image_labels(run.path(place_of(run)) / IMAGE_LEVEL)
        table = info_table(slices, dict(zip(keys, found[[*VISIBILITY, *CROP]].to_dict("records"))), marked)
        write_csv(run.path("info.csv"), table)
        largest = table.groupby(["patient_id", "series"])[VISIBILITY].max().max(axis=1)
        shown = int(table[["extravasation", "bowel"]].any(axis=1).sum())
        results |= {"slices": len(table), "without organs": int((largest == 0).sum()),
                    "marked, but not in a volume": len(marked) - shown}
    return read_table(run.path("info.csv"))

# %%
table = run_stage(run)
table.head().T

# %% [markdown]
# The largest visibility of an organ is exactly 1, or the organ was not found in the series:

# %%
largest = table.groupby(["patient_id", "series"])[VISIBILITY].max()
assert largest.isin([0, 1]).all(axis=None)
largest.mean().to_frame("share of series in which the organ was found").T

# %% [markdown]
# ## What came out
# Where organs are in a series, and its crop. Red points are slices with a marked injury.

# %%
key = largest.sum(axis=1).idxmax()
rows = table[(table["patient_id"] == key[0]) & (table["series"] == key[1])]
masks = read_masks(run.path("processed/masks/") / f"{key[0]}_{key[1]}.npy")
volume = np.load(run.path("processed/volumes/") / f"{key[0]}_{key[1]}.npy", mmap_mode="r")
fig, (ax, picture) = plt.subplots(1, 2, figsize=(9, 2.6), width_ratios=(3, 1))
for organ, column in zip(ORGANS, VISIBILITY):
    ax.plot(rows["z_mm"], rows[column], label=organ)
injured = rows[(rows["bowel"] + rows["extravasation"]) > 0]
ax.plot(injured["z_mm"], 0 * injured["z_mm"] - 0.05, "r.", ms=4)
ax.set(xlabel="mm along the body", ylabel="visibility", title=f"patient {key[0]}, series {key[1]}")
ax.legend(fontsize=8)
most = int(masks.sum((1, 2, 3)).argmax())
picture.imshow(volume[most], cmap="gray")
top, bottom, left, right = rows[CROP].iloc[0] * np.repeat(volume.shape[1:], 2)
picture.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="orange")
picture.axis("off")
fig.tight_layout()

# %% [markdown]
# ---
# [← Segment](03_segment.py) · [Blocks →](05_blocks.py)

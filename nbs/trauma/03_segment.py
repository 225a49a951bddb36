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
# # Segment
# > A 3D network that finds liver, spleen, both kidneys and bowel in a series.
#
# The labels of the competition belong to patients, and injuries to slices. The link between them is where the organs
# are. Some series come with outlined organs. A small 3D network learns from them, and the next stage lets it find the
# organs of all the others.

# %%
#| default_exp trauma.segment

# %%
#| export
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupKFold

from mammo_nb.core.files import read_json, replacing, sha256, write_csv
from mammo_nb.core.networks import load_weights, save_weights
from mammo_nb.core.parallel import map_files
from mammo_nb.core.ranks import from_first, join, launch
from mammo_nb.core.recipes import RecipeError
from mammo_nb.core.runs import Run
from mammo_nb.core.train import fit
from mammo_nb.trauma.learning.losses import dice_loss
from mammo_nb.trauma.learning.segmenter import (STRIDE, Segmenter, make_segmenter, open_segmenter,
                                                organ_probabilities)
from mammo_nb.trauma.reading.competition import mask_files, place_of, read_table
from mammo_nb.trauma.reading.masks import list_cases, organ_labels, read_case, slices_of
from mammo_nb.trauma.reading.windows import training_windows
from mammo_nb.trauma.recipes import ORGANS, Segment

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.practice import practice
from mammo_nb.core.train import from_one, plot_epochs
from mammo_nb.trauma.system import system

# %% tags=["parameters"]
run_dir = ""     # folder of the run; "" makes a small practice run
overrides = {}   # changes for this run, such as {"segment.loop.epochs": 40}
workers = 0      # number of processes that write windows; 0: one per core

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="segment", overrides=overrides)
run.contract("segment")

# %% [markdown]
# ## Outlined series
# The competition has a NIfTI file for some of its series, named after the series. A folder in TotalSegmentator's
# layout is a second source.

# %%
#| export
def outlined_series(
    run: Run,
    settings: Segment,
) -> list[dict]:   # id, source, patient_id and where volume, images and labels are
    "The series that have labels of organs. Raises RecipeError if there is none."
    masks, images = run.path(mask_files(run)[0]), run.path(place_of(run)) / "train_images"
    of = {p.name.split(".")[0]: p for p in sorted(masks.glob("*.nii*"))} if masks.is_dir() else {}
    series = read_table(run.path("processed/series.csv"))
    items = [{"id": row.volume.removesuffix(".npy"), "source": "competition", "patient_id": row.patient_id,
              "series": row.series, "volume": str(run.path("processed/volumes/") / row.volume), "images": str(images),
              "slices": str(run.path("processed/slices.csv")), "labels": str(of[row.series])}
             for row in series[series["used"] == 1].itertuples() if row.series in of]
    if settings.totalsegmentator:
        items += [{"id": case.name, "source": "totalsegmentator", "patient_id": case.name, "labels": str(case)}
                  for case in list_cases(run.path(settings.totalsegmentator))]
    if not items:
        raise RecipeError(f"No series has outlined organs: {masks} has no file named after a series. Put the "
                          "segmentations there, or name a folder in segment.totalsegmentator.")
    return items

# %%
settings = run.section("segment")
items = outlined_series(run, settings)
pd.DataFrame(items)[["id", "source", "patient_id"]].head()

# %% [markdown]
# ## Windows
# The network sees windows of a few slices. They are written once, as eight bits, and read in every epoch.

# %%
#| export
def write_windows(
    item: dict,   # from `outlined_series`, with output (folder), depth, size, every, faithful
) -> dict:        # windows: how many
    "Write the windows of one series as <id>_<start>.npy, uint8 (2, depth, size, size): grey levels, labels."
    competition = item["source"] == "competition"
    if competition:
        rows = read_table(item["slices"])
        rows = rows[rows["series"].eq(item["series"]) & rows["patient_id"].eq(item["patient_id"])]
        rows = rows[rows["place"].notna()]
        volume = np.load(item["volume"], mmap_mode="r")
        labels = organ_labels(item["labels"], slices_of(item["images"], rows.sort_values("place")))
    else:
        volume, labels = read_case(item["labels"], item["faithful"])
    windows = training_windows(volume, labels, item["depth"], item["size"], item["every"], item["faithful"],
                               whole=item["faithful"] and not competition)
    count = 0
    for start, levels, organs in windows:
        with replacing(Path(item["output"]) / f"{item['id']}_{start}.npy") as temporary:
            np.save(temporary, np.stack([np.rint(levels * 255).astype(np.uint8), organs]))
        count += 1
    return {"windows": count}

def _sources(item: dict) -> list[Path]:
    "The volume of a series and its labels; a case of TotalSegmentator is a folder with both."
    labels = Path(item["labels"])
    return [Path(item["volume"]), labels] if "volume" in item else sorted(labels.rglob("*"))

def prepare_windows(
    run: Run,
    settings: Segment,
    workers: int | None,   # processes; None: one per core
) -> pd.DataFrame:         # id, source, patient_id, windows, error; also checkpoints/segment/windows.csv
    "Write the windows of all outlined series; finished series of an interrupted call are kept."
    if settings.depth % STRIDE or settings.size % STRIDE:
        raise RecipeError(f"segment.depth and segment.size are {settings.depth} and {settings.size}; both must be "
                          f"multiples of {STRIDE}.")
    folder = run.path("checkpoints/segment")
    how = {name: getattr(settings, name) for name in ("depth", "size", "every", "faithful")}
    items = [{**item, **how, "output": str(folder / "windows")} for item in outlined_series(run, settings)]
    found = map_files(write_windows, items, table=folder / "windows.csv", key="id",
                      params={"slices": sha256(run.path("processed/slices.csv"))}, code=run.code("segment"),
                      reads=_sources, writes=folder, workers=workers, label="windows")
    of = pd.DataFrame(items).set_index("id")
    table = found.assign(**{name: found["id"].map(of[name]) for name in ("source", "patient_id")})
    table["windows"] = table["windows"].fillna(0).astype(int) if "windows" in table else 0
    write_csv(folder / "windows.csv", table)
    return table

# %%
made = prepare_windows(run, settings, workers or None)
assert made["error"].eq("").all()
made[["id", "source", "patient_id", "windows"]].head()

# %% [markdown]
# A window with its labels, every few slices. Each colour is an organ.

# %%
folder = run.path("checkpoints/segment/windows")
levels, organs = np.load(max(folder.glob("*.npy"), key=lambda p: len(np.unique(np.load(p)[1]))))
fig, axes = plt.subplots(1, 8, figsize=(12, 1.7))
for ax, k in zip(axes, np.linspace(0, len(levels) - 1, 8).astype(int)):
    ax.imshow(levels[k], cmap="gray", vmin=0, vmax=255)
    ax.imshow(np.ma.masked_equal(organs[k], 0), cmap="tab10", vmin=1, vmax=10, alpha=0.5)
    ax.axis("off")

# %% [markdown]
# ## Data set and batches
# Patients are split so that both series of a patient are on the same side. A case of TotalSegmentator is never held
# back. An epoch shows each window several times, since there are few of them.

# %%
#| export
class Windows(torch.utils.data.Dataset):
    "Windows as (levels float32 (depth, size, size), masks float32 (organs, depth, size, size)); not augmented."
    def __init__(self,
        files: list[Path],   # from `write_windows`
    ):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, at: tuple[int, int]):
        levels, labels = torch.from_numpy(np.load(self.files[at[0]]))
        masks = labels[None] == torch.arange(1, len(ORGANS) + 1)[:, None, None, None]
        return levels.float() / 255, masks.float()

def window_table(
    table: pd.DataFrame,   # from `prepare_windows`
    folder: Path,          # with the windows
    settings: Segment,     # n_folds, fold
) -> pd.DataFrame:         # file, source, patient_id, held (bool); a row for each window
    "All windows, and whether each is held back. Raises RecipeError."
    rows = []
    for series in table[table["error"].eq("")].itertuples():
        files = [p for p in folder.glob(f"{series.id}_*.npy") if p.stem.rsplit("_", 1)[0] == series.id]
        rows += [{"file": str(p), "source": series.source, "patient_id": series.patient_id} for p in sorted(files)]
    windows = pd.DataFrame(rows, columns=["file", "source", "patient_id"])
    windows["held"] = False
    own = windows.index[windows["source"].eq("competition")]
    patients = windows.loc[own, "patient_id"].nunique()
    if settings.fold >= settings.n_folds or 0 < patients < settings.n_folds:
        raise RecipeError(f"segment.fold is {settings.fold} of {settings.n_folds}, with {patients} outlined patients. "
                          "Choose fewer folds, or a lower number.")
    if patients:
        splits = list(GroupKFold(settings.n_folds).split(own, groups=windows.loc[own, "patient_id"]))
        windows.loc[own[splits[settings.fold][1]], "held"] = True
    return windows

def window_batches(
    windows: pd.DataFrame,   # from `window_table`
    settings: Segment,       # repeat, repeat_totalsegmentator, loop
    ranks: int = 1,          # processes that share the batches
):                           # f(epoch) -> batches of (row, seed)
    "Batches of the windows that are not held back, in an order that depends on seed and epoch."
    times = windows["source"].map({"competition": settings.repeat,
                                   "totalsegmentator": settings.repeat_totalsegmentator})
    rows = np.repeat(np.arange(len(windows)), times.where(~windows["held"], 0))
    number = -(-len(rows) // settings.loop.batch_size // ranks) * ranks

    def batches(epoch: int) -> list[list[tuple[int, int]]]:
        order = np.random.default_rng([settings.loop.seed, epoch]).permutation(rows)
        return [[(int(row), 0) for row in part] for part in np.array_split(order, number)]
    return batches

# %%
windows = window_table(made, folder, settings)
held = windows[windows["held"]]
assert len(held) and not set(held["patient_id"]) & set(windows.loc[~windows["held"], "patient_id"])
drawn = [row for batch in window_batches(windows, settings)(0) for row, _ in batch]
assert sorted(set(drawn)) == windows.index[~windows["held"]].tolist()

# %% [markdown]
# ## Training
# The loss is Dice alone. After each epoch the Dice of each organ over all windows that are held back is computed.

# %%
#| export
def organ_dice(
    network: Segmenter,
    dataset: Windows,
    rows: list[int],        # of the data set
    batch_size: int = 1,
    threshold: float = 0.5, # probability from which a voxel belongs to an organ
) -> dict[str, float]:      # organ -> Dice over all windows; nan for an organ that none of them shows
    "Dice of each organ."
    both, sizes = torch.zeros(len(ORGANS)), torch.zeros(len(ORGANS))
    for start in range(0, len(rows), batch_size):
        samples = [dataset[row, 0] for row in rows[start:start + batch_size]]
        levels, masks = (torch.stack(part) for part in zip(*samples))
        found = torch.from_numpy(organ_probabilities(network, levels.numpy()) > threshold).float()
        both += (found * masks).sum((0, 2, 3, 4))
        sizes += (found + masks).sum((0, 2, 3, 4))
    return dict(zip(ORGANS, (2 * both / sizes).tolist()))

def train_segmenter(
    folder: str,       # folder of the run, as text for the ranks of torchrun
    overrides: dict,   # of the run, dotted field -> value
):
    "Windows -> checkpoints/segment/; a finished training is not repeated."
    run = Run.open(folder, overrides)
    settings, home = run.section("segment"), run.path("checkpoints/segment")
    windows = window_table(pd.read_csv(home / "windows.csv", dtype={"patient_id": str, "id": str},
                                       keep_default_na=False), home / "windows", settings)
    dataset, held = Windows([Path(f) for f in windows["file"]]), np.flatnonzero(windows["held"]).tolist()
    patients = windows["patient_id"][held].nunique()
    network = make_segmenter(settings.network, [int(w) for w in settings.widths.split()], settings.weights,
                             settings.loop.seed)

    def validate(model: Segmenter, epoch: int) -> dict:
        dice = organ_dice(model, dataset, held, settings.loop.batch_size)
        return {"dice": float(np.nanmean(list(dice.values()))), **{f"dice_{k}": v for k, v in dice.items()},
                "patients": patients}

    settled = {k: v for k, v in asdict(settings).items() if k not in ("loop", "processes")}
    identity = {"settings": settled, "windows": [sha256(f) for f in windows["file"]] if not join()[0] else [],
                "code": run.code("segment")}
    fit(network, dataset, window_batches(windows, settings, join()[1]), dice_loss, validate, settings.loop,
        home / "training", label="3D network", identity=from_first(identity))

# %% [markdown]
# ## Run the stage
# The weights of the last epoch are kept, as in the original. If `processes` is above 1, the stage starts so many
# processes with `torchrun`, one for each GPU.

# %%
#| export
def run_stage(
    run: Run,
    workers: int | None = None,   # processes that write windows; None: one per core
) -> pd.DataFrame:                # history.csv
    "Volumes and outlined organs -> checkpoints/segment/, weights/segment.safetensors and weights/segment.json."
    settings, home = run.section("segment"), run.path("checkpoints/segment")
    with run.stage("segment") as results:
        table = prepare_windows(run, settings, workers)
        if settings.processes * settings.nodes > 1:
            launch("mammo_nb.trauma.segment:train_segmenter", [str(run.folder), run.overrides], settings.processes,
                   settings.nodes, run.folder)
        else:
            train_segmenter(str(run.folder), run.overrides)
        history = pd.DataFrame(read_json(home / "training/done.json")["history"])
        write_csv(home / "history.csv", history)
        last = home / f"training/epoch_{settings.loop.epochs - 1}.safetensors"
        widths = [int(w) for w in settings.widths.split()]
        network = make_segmenter(settings.network, widths)
        load_weights(network, last)
        scores = {k: None if pd.isna(v) else float(v) for k, v in history.iloc[-1].items() if k.startswith("dice")}
        save_weights(network, run.path("weights/segment.safetensors"), {
            "network": settings.network, "widths": widths, "depth": settings.depth, "size": settings.size,
            "organs": list(ORGANS), "every": settings.every, **scores})
        results |= {"series": len(table), "windows": int(table["windows"].sum()),
                    "failed": int(table["error"].ne("").sum()), "dice": scores["dice"]}
    return history

# %%
history = run_stage(run, workers or None)
from_one(history).round(3)

# %% [markdown]
# ## What came out
# The Dice of each organ on the patients that are held back, over the epochs; and the organs that were outlined (upper
# row) and found (lower row) in one of their windows.

# %%
fig, ax = plt.subplots(figsize=(6, 2.4))
for organ in ORGANS:
    plot_epochs(ax, history["epoch"], history[f"dice_{organ}"], organ)
ax.set(title=f"{held['patient_id'].nunique()} held-back patients", ylabel="Dice", ylim=(0, 1))
ax.legend(fontsize=8);

# %%
network, about = open_segmenter(run.path("weights"))
levels, organs = np.load(max(held["file"], key=lambda f: len(np.unique(np.load(f)[1]))))
found = organ_probabilities(network, levels[None].astype(np.float32) / 255)[0]
best = np.where(found.max(0) > 0.5, found.argmax(0) + 1, 0)
fig, axes = plt.subplots(2, 8, figsize=(12, 3.2))
for row, labels in zip(axes, (organs, best)):
    for ax, k in zip(row, np.linspace(0, len(levels) - 1, 8).astype(int)):
        ax.imshow(levels[k], cmap="gray", vmin=0, vmax=255)
        ax.imshow(np.ma.masked_equal(labels[k], 0), cmap="tab10", vmin=1, vmax=10, alpha=0.5)
        ax.axis("off")
fig.tight_layout(pad=0.3)
assert about["depth"] == len(levels) and np.isfinite(history["dice"]).all()

# %% [markdown]
# ---
# [← Volumes](02_volumes.py) · [Info →](04_info.py)

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
# # Phantom
# > A synthetic head-CT competition: the same files and the same difficulties, and the truth is known.
#
# The real competition is 180 GB of slices and needs a login. This stage writes a competition of any size with the same
# folders, tables and DICOM properties, so that every later stage can be run, tested and taught on a laptop.

# %%
#| default_exp ich.phantom

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run, such as {"phantom.patients": 200}
workers = 0                                   # number of processes; 0: one per core

# %%
#| export
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from joblib import delayed
from tqdm import tqdm

from mammo_nb.core.files import write_csv, write_json, write_text
from mammo_nb.core.pictures import write_png
from mammo_nb.core.processes import in_processes
from mammo_nb.core.runs import Run
from mammo_nb.ich.drawing.face import AIR, draw_tissue
from mammo_nb.ich.drawing.head import cut_head, draw_head
from mammo_nb.ich.drawing.hemorrhage import KINDS, SHARES, add_blood, draw_lesion, imitate
from mammo_nb.ich.drawing.scanners import (OPTIONAL, SCANNERS, draw_series, expose, head_box, headrest, places,
                                           stored_values, write_dicom)
from mammo_nb.ich.recipes import CLASSES

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.dicom import read_frames
from mammo_nb.core.hu import to_hu
from mammo_nb.core.practice import practice
from mammo_nb.ich.system import system

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="phantom", overrides=overrides)
run.contract("phantom")

# %% [markdown]
# ## The plan
# Everything is planned before anything is drawn: who has a hemorrhage and of which kind, which scanner writes the
# files, how many series there are and how long they are. Each patient has a seed of its own, so that neither the number
# of processes nor a restart can change a picture.

# %%
#| export
def shared_out(
    rng: np.random.Generator,
    count: int,       # number of items to draw
    shares: dict,     # item -> share
) -> list:            # `count` items
    "Draw items in proportion to their shares, in random order. Each item occurs once before any item occurs twice."
    order = sorted((k / share, i) for i, share in enumerate(shares.values()) for k in range(count))
    items = list(shares)
    return [items[order[k][1]] for k in rng.permutation(count)]

def plan(
    split: str,         # train or test
    patients: int,
    prevalence: float,  # share of patients with a hemorrhage
    slices: int,        # median length of a series
    seed: int,
) -> list:              # one dict per patient
    "Plan the patients of one table."
    entropy = [seed, ("train", "test").index(split)]
    rng = np.random.default_rng(entropy)
    sick = rng.permutation(patients) < round(prevalence * patients)
    first = iter(shared_out(rng, int(sick.sum()), dict(zip(KINDS, SHARES))))
    scanners = shared_out(rng, patients, {i: s.share for i, s in enumerate(SCANNERS)})
    kinds = [[next(first)] if ill else [] for ill in sick]
    for own in kinds:
        if own:
            own += [str(k) for k in rng.choice(KINDS, rng.choice(3, p=(0.45, 0.35, 0.2))) if k != own[0]]
    series = np.where(rng.permutation(patients) < max(1, round(0.12 * patients)), 2, 1)
    special = rng.permutation(patients)  # who has a series with two slices at one place, and one that follows the head
    length = np.round(slices * np.clip(rng.lognormal(0.02, 0.16, patients), 0.6, 1.75)).astype(int)
    return [dict(split=split, patient=f"ID_{rng.integers(16**8):08x}", kinds=kinds[i], scanner=scanners[i],
                 series=int(series[i]), slices=int(length[i]), twice=bool(special[i] < max(1, patients // 80)),
                 follows=bool(patients // 2 == special[i]), tilted=bool(rng.random() < 0.92), entropy=[*entropy, i])
            for i in range(patients)]

# %%
planned = plan("train", 6, 0.5, 26, 2019)
assert planned == plan("train", 6, 0.5, 26, 2019) and sum(bool(p["kinds"]) for p in planned) == 3
pd.DataFrame(planned)

# %% [markdown]
# ## One patient
# A slice has a label where at least 40 mm² of blood are 8 HU or more brighter than what was there before. The first
# and last slice of a hemorrhage are often just above or just below this.

# %%
#| export
VISIBLE, AREA = 8.0, 40.0  # HU and mm² of blood that make a slice positive

def make_patient(
    root: Path,         # folder of the competition
    patient: dict,      # from `plan`
    size: int,          # rows and columns
    contrast: float,    # factor of the hemorrhages' contrast
) -> list:              # one dict per slice: split, image_id, patient_id, series, place, level, file and labels
    "Draw and write the series of one patient. A finished patient is read from truth/patients."
    note = root / "truth" / "patients" / f"{patient['patient']}.json"
    if note.exists():
        return json.loads(note.read_text())
    cv2.setNumThreads(1)
    rng = np.random.default_rng(patient["entropy"])
    head = draw_head(rng)
    vertex, lesions, rows = head.height + head.bone + head.scalp, [], []
    study, scanner = f"ID_{rng.integers(16**10):010x}", SCANNERS[patient["scanner"]]
    folder = root / f"stage_2_{patient['split']}_images"
    for n in range(patient["series"]):
        series = draw_series(rng, patient["slices"], size, vertex, patient["tilted"], patient["follows"])
        order = list(range(patient["slices"]))
        if patient["twice"] and n == 0:
            order.insert(len(order) // 2, order[len(order) // 2])
        levels = [places(series, k, 1)[3] for k in order]
        if n == 0:
            lesions = [draw_lesion(rng, head, kind, series.gap, (levels[0], levels[-1])) for kind in patient["kinds"]]
        shown = [z for z in levels if 30 < z < head.height - 12]
        alike = [imitate(rng, head, series.gap, z) for z in rng.choice(shown, rng.poisson(0.12 * len(shown))).tolist()]
        name, noise = f"ID_{rng.integers(16**10):010x}", rng.uniform(3, 5)
        rest, missing = (rng.uniform(112, 135), rng.uniform(106, 118)), tuple(
            tag for tag in OPTIONAL if rng.random() < 0.08)
        instance = rng.permutation(len(order)) + 1
        edge = max(2.0, 1.1 * series.spacing)
        for place, number in enumerate(order):
            x, y, z, level = places(series, number, size)
            box, hu = head_box(x, y, level), np.full((size, size), AIR, np.float32)
            c = cut_head(head, x[box], y[box], z[box], level, edge)
            hu[box], brain, room = draw_tissue(head, c)
            added = add_blood(head, c, brain, room, lesions + alike, hu[box], contrast)
            area = {kind: float((change >= VISIBLE).sum()) * series.spacing**2 for kind, change in added.items()}
            headrest(x, y, hu, edge, *rest)
            expose(rng, hu, box, c, noise)
            if scanner.padding is not None:
                middle = (size - 1) / 2
                v, u = np.ogrid[:size, :size]
                hu[(u - middle) ** 2 + (v - middle) ** 2 > (0.5 * size) ** 2] = scanner.padding
            image = f"ID_{rng.integers(16**9):09x}"
            write_dicom(folder / f"{image}.dcm", stored_values(hu, scanner), scanner=scanner, series=series,
                        number=number, instance=int(instance[place]), missing=missing,
                        ids=dict(patient=patient["patient"], study=study, series=name, image=image))
            labels = {kind: int(area.get(kind, 0) >= AREA) for kind in CLASSES[:-1]}
            if any(labels.values()):
                mask = np.zeros((size, size), np.uint8)
                mask[box] = 255 * np.any([added[kind] >= VISIBLE for kind, label in labels.items() if label], axis=0)
                write_png(root / "truth" / "masks" / f"{image}.png", mask)
            rows.append(dict(split=patient["split"], image_id=image, patient_id=patient["patient"], series=name,
                             place=place, level=round(level, 3), **labels, any=max(labels.values())))
    write_json(note, rows)
    return rows

# %% [markdown]
# ## The whole competition
# All patients are drawn in parallel, then the tables are written: six rows for each slice, and a few of them twice, as
# in the real table. The parameters are stored beside the truth, so that two competitions are never mixed in a folder.

# %%
#| export
def label_rows(
    table: pd.DataFrame,   # one row per slice, with the classes as columns
) -> pd.DataFrame:         # ID, Label: six rows per slice
    "A table of slices in the competition's format."
    long = table.melt("image_id", list(CLASSES), "kind", "Label", ignore_index=False).sort_index(kind="stable")
    return pd.DataFrame({"ID": long["image_id"] + "_" + long["kind"], "Label": long["Label"]}).reset_index(drop=True)

def make_competition(
    root: Path,                   # folder of the competition
    *,
    patients: int,                # number of patients with labels
    test_patients: int,           # number of patients without
    size: int,                    # rows and columns of a slice
    slices: int,                  # median length of a series
    prevalence: float,            # share of patients with a hemorrhage
    seed: int,
    contrast: float = 1.0,        # factor of the hemorrhages' contrast
    workers: int | None = None,   # number of processes; None: one per core
    identity: dict | None = None, # what else the pictures depend on, such as the code; can be written as JSON
) -> pd.DataFrame:                # one row per slice
    "Write a competition. Finished patients of an interrupted call are kept if the parameters are the same."
    root = Path(root)
    about = json.dumps(dict(patients=patients, test_patients=test_patients, size=size, slices=slices, seed=seed,
                            prevalence=prevalence, contrast=contrast, identity=identity), indent=1)
    note = root / "truth" / "parameters.json"
    if root.exists() and (not note.exists() or note.read_text() != about):
        shutil.rmtree(root)
    write_text(note, about)
    for split in ("train", "test"):
        (root / f"stage_2_{split}_images").mkdir(parents=True, exist_ok=True)
    planned = [p for split, n in (("train", patients), ("test", test_patients))
               for p in plan(split, n, prevalence, slices, seed)]
    jobs = (delayed(make_patient)(root, patient, size, contrast) for patient in planned)
    drawn = in_processes(jobs, workers)
    rows = [row for found in tqdm(drawn, total=len(planned), desc="phantoms", unit="patient") for row in found]
    table = pd.DataFrame(rows)
    rng = np.random.default_rng([seed, 2])
    mixed = table.iloc[rng.permutation(len(table))].reset_index(drop=True)
    train, test = mixed[mixed["split"] == "train"], mixed[mixed["split"] == "test"]
    labels, answers = label_rows(train.reset_index(drop=True)), label_rows(test.reset_index(drop=True))
    again = labels["ID"].str.rsplit("_", n=1).str[0].isin(rng.choice(train["image_id"], 4, replace=False))
    write_csv(root / "stage_2_train.csv", pd.concat([labels, labels[again]]))
    write_csv(root / "stage_2_sample_submission.csv", answers.assign(Label=0.5))
    write_csv(root / "truth" / "test.csv", answers)
    write_csv(root / "truth" / "slices.csv", table)
    return table

# %% [markdown]
# ## Run the stage
# Each run has a competition of its own. If the recipe or the drawing code has changed, the competition is drawn again.

# %%
#| export
def run_stage(
    run: Run,
    workers: int | None = None,      # number of processes; None: one per core
) -> pd.DataFrame:                   # see `make_competition`
    "The recipe -> competition/."
    with run.stage("phantom"):
        return make_competition(run.path("competition"), **asdict(run.section("phantom")), workers=workers,
                                identity=run.code("phantom"))

# %%
table, root = run_stage(run, workers or None), run.path("competition")
labels = pd.read_csv(root / "stage_2_train.csv")
assert len(labels.drop_duplicates()) == 6 * (table["split"] == "train").sum() < len(labels)
table.groupby("split").agg(patients=("patient_id", "nunique"), series=("series", "nunique"), slices=("place", "size"),
                           **{kind: (kind, "sum") for kind in CLASSES})

# %% [markdown]
# ## What came out
# One series from the lowest slice to the highest, in the brain window. A slice with a hemorrhage has a red title.

# %%
ill = table[table["split"] == "train"].groupby("series")["any"].sum().idxmax()
shown = table[table["series"] == ill]
fig, axes = plt.subplots(-(-len(shown) // 8), 8, figsize=(12, 1.7 * -(-len(shown) // 8)), facecolor="black")
for ax in axes.flat:
    ax.axis("off")
for ax, row in zip(axes.flat, shown.itertuples()):
    read = next(read_frames(root / f"stage_2_{row.split}_images" / f"{row.image_id}.dcm"))
    ax.imshow(to_hu(read.decode()).values, cmap="gray", vmin=0, vmax=80)
    found = [kind for kind in KINDS if getattr(row, kind)]
    ax.set_title(", ".join(found) or f"{row.level:.0f} mm", color="red" if found else "grey", fontsize=8)
fig.tight_layout(pad=0.2)

# %% [markdown]
# ---
# [← Head CT](00_system.py) · [Prepare →](02_prepare.py)

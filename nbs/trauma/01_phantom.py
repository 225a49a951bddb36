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
# > A synthetic abdominal-trauma competition: the same files and the same difficulties, and the truth is known.
#
# The real competition is 460 GB of slices and needs a login. This stage writes a competition of any size with the same
# folders, tables and DICOM properties, so that every later stage can be run, tested and taught on a laptop.

# %%
#| default_exp trauma.phantom

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

from mammo_nb.core.files import replacing, write_csv, write_json, write_text
from mammo_nb.core.processes import in_processes
from mammo_nb.core.runs import Run
from mammo_nb.trauma.drawing.body import PHASES, Grid, draw_body, draw_phase
from mammo_nb.trauma.drawing.injuries import INJURIES, add_injuries, draw_injury
from mammo_nb.trauma.drawing.organs import draw_organs, label_map
from mammo_nb.trauma.drawing.scanners import (OPTIONAL, SCANNERS, draw_series, expose, stored_values, write_dicom,
                                              write_segmentation)
from mammo_nb.trauma.recipes import GRADES, ORGANS, SUBMITTED

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.dicom import read_frames
from mammo_nb.core.hu import to_hu
from mammo_nb.core.practice import practice
from mammo_nb.trauma.system import system

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="phantom", overrides=overrides)
run.contract("phantom")

# %% [markdown]
# ## The plan
# Everything is planned before anything is drawn: who has which injuries, which scanner writes the files, how many
# series there are and how long they are. Each patient has a seed of its own, so that neither the number of processes
# nor a restart can change a picture.

# %%
#| export
def dealt(
    rng: np.random.Generator,
    count: int,             # number of items to draw
    items: list,            # with repetitions: their shares
) -> list:                  # `count` items in random order
    "Deal items out: all of them once before any comes again."
    rounds = [rng.permutation(len(items)) for _ in range(-(-count // len(items)))]
    return [items[i] for i in np.concatenate([*rounds, np.zeros(0, int)])[:count]]

def plan(
    split: str,             # train or test
    patients: int,
    prevalence: float,      # share of patients with an injury
    lengths: list[int],     # slices of a series, dealt out
    seed: int,
) -> list[dict]:            # one a patient
    "Plan the patients of one table."
    entropy = [seed, ("train", "test").index(split)]
    rng = np.random.default_rng(entropy)
    injured = rng.permutation(patients) < round(prevalence * patients)
    first = iter(dealt(rng, int(injured.sum()), list(INJURIES)))
    scanners = dealt(rng, patients, [i for i, s in enumerate(SCANNERS) for _ in range(s.share)])
    twice = rng.permutation(patients) < round(0.4 * patients)
    lengths = iter(dealt(rng, 2 * patients, lengths))
    cut = rng.permutation(patients) < round(0.1 * patients)
    names = 10000 + rng.permutation(50000)[:patients] * 2 + entropy[1]
    planned = []
    for i in range(patients):
        own = {}
        if injured[i]:
            more = rng.choice(INJURIES, rng.choice(3, p=(0.45, 0.35, 0.2)), replace=False)
            for injury in (next(first), *map(str, more)):
                own.setdefault(injury.split("_")[0], injury)   # one grade an organ
        planned.append(dict(split=split, patient=int(names[i]), injuries=sorted(own.values()), scanner=int(scanners[i]),
                            lengths=[next(lengths) for _ in range(1 + twice[i])], incomplete=bool(cut[i]),
                            entropy=[*entropy, i]))
    return planned

# %%
planned = plan("train", 12, 0.7, [18, 20, 50], 2023)
assert planned == plan("train", 12, 0.7, [18, 20, 50], 2023) and sum(bool(p["injuries"]) for p in planned) == 8
pd.DataFrame(planned)

# %% [markdown]
# ## One patient
# A slice is marked for a bowel injury or an extravasation where at least 30 mm² differ by 25 HU or more from the body
# without it. The pixels of each injury that differ by as much are noted in `truth/injuries/`, one bit each.

# %%
#| export
VISIBLE, AREA = 25.0, 30.0  # HU and mm² that mark a slice
SLAB = 2**21                # voxels that are drawn at once
MARKED = {"bowel_injury": "Bowel", "extravasation_injury": "Active_Extravasation"}

def write_injuries(
    path: Path,             # the file to write, truth/injuries/<series>.npz
    lying: dict,            # injury -> bool (slices, rows, columns), where it lies
    instances: tuple,       # instance number of each slice
):
    "Write where the injuries of a series lie: `instances`, and for each injury bits (slices, rows, columns / 8)."
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, instances=np.array(instances, np.int32),
                            **{injury: np.packbits(mask, axis=-1) for injury, mask in lying.items()})

def make_series(
    root: Path,             # folder of the competition
    patient: dict,          # from `plan`
    number: int,            # of the series
    body,                   # from `draw_body`
    injuries: dict,         # injury -> its parts
    size: int,              # rows and columns
    contrast: float,        # factor of the injuries' contrast
    rng: np.random.Generator,
) -> dict:                  # series_id, aortic_hu, incomplete_organ, phase, segmented, slices: one dict a slice
    "Draw and write one series, a slab at a time."
    count, scanner = patient["lengths"][number], SCANNERS[patient["scanner"]]
    phase = draw_phase(rng, PHASES[(number + (rng.random() < 0.25)) % 2])
    series = draw_series(rng, count, size, body.width, patient["incomplete"] and number == 0)
    name = int(rng.integers(1, 33000)) * 2 + number
    noise, table = rng.uniform(8, 14), rng.uniform(1.08, 1.15) * body.depth + 6
    missing = tuple(tag for tag in OPTIONAL if rng.random() < 0.08)
    folder = root / f"{patient['split']}_images" / str(patient["patient"]) / str(name)
    labels, slices, aorta = np.zeros((count, size, size), np.uint8), [], []
    lying = {injury: np.zeros(labels.shape, bool) for injury in injuries}
    step = max(1, SLAB // size**2)
    for start in range(0, count, step):
        g = Grid.of(series.first, series.spacing, size, series.levels[start:start + step])
        drawn = draw_organs(body, g, phase)
        labels[start:start + step] = label_map(drawn)
        changed = add_injuries(drawn, injuries, phase, contrast, whole := {})
        for injury, change in whole.items():
            lying[injury][start:start + step] = change >= VISIBLE
        hu = drawn.canvas.hu
        aorta += hu[drawn.canvas.aorta < -3].tolist()
        expose(rng, hu, g, noise, table)
        for k, values in enumerate(stored_values(hu, scanner)):
            place = start + k
            write_dicom(folder / f"{series.instances[place]}.dcm", values, scanner=scanner, series=series, number=place,
                        patient=patient["patient"], name=name, missing=missing)
            seen = {kind: float((changed[injury][k] >= VISIBLE).sum()) * series.spacing**2 >= AREA
                    for injury, kind in MARKED.items() if injury in changed}
            slices.append(dict(instance_number=series.instances[place], z_mm=series.levels[place],
                               **{organ: int((labels[place] == i).sum()) for i, organ in enumerate(ORGANS, 1)},
                               **{kind: int(seen.get(kind, False)) for kind in MARKED.values()}))
    segmented = patient["split"] == "train" and (number + patient["entropy"][-1]) % 2 == 0
    write_segmentation((root if segmented else root / "truth") / "segmentations" / f"{name}.nii", labels, series)
    if lying:
        write_injuries(root / "truth" / "injuries" / f"{name}.npz", lying, series.instances)
    return dict(series_id=name, aortic_hu=round(float(np.median(aorta)), 1), incomplete_organ=int(series.incomplete),
                phase=phase.name, segmented=segmented, slices=slices)

def make_patient(
    root: Path,             # folder of the competition
    patient: dict,          # from `plan`
    size: int,              # rows and columns
    contrast: float,        # factor of the injuries' contrast
) -> list[dict]:            # from `make_series`
    "Draw and write the series of one patient. A finished patient is read from truth/patients."
    note = root / "truth" / "patients" / f"{patient['patient']}.json"
    if note.exists():
        return json.loads(note.read_text())
    cv2.setNumThreads(1)
    rng = np.random.default_rng(patient["entropy"])
    body = draw_body(rng)
    injuries = {injury: draw_injury(rng, body, injury) for injury in patient["injuries"]}
    made = [make_series(root, patient, number, body, injuries, size, contrast, rng)
            for number in range(len(patient["lengths"]))]
    write_json(note, made)
    return made

# %% [markdown]
# ## The whole competition
# All patients are drawn in parallel, then the tables are written. The parameters are stored beside the truth, so that
# two competitions are never mixed in a folder.

# %%
#| export
def patient_row(
    patient: dict,          # from `plan`
) -> dict:                  # patient_id, SUBMITTED, any_injury
    "One row of train.csv."
    row = {"patient_id": patient["patient"]}
    for organ, grades in GRADES.items():
        own = [i for i in patient["injuries"] if i.split("_")[0] == organ]
        row |= {f"{organ}_{grade}": int(f"{organ}_{grade}" in own if own else grade == "healthy") for grade in grades}
    return row | {"any_injury": int(bool(patient["injuries"]))}

def _write_tables(
    root: Path,             # folder of the competition
    planned: list[dict],
    made: list[list[dict]], # series of each patient
) -> pd.DataFrame:          # one row a series
    "Write the tables of the competition and the truth."
    patients = pd.DataFrame([patient_row(p) | {"split": p["split"]} for p in planned])
    each = [(dict(split=p["split"], patient_id=p["patient"]), s) for p, own in zip(planned, made) for s in own]
    series = pd.DataFrame([ids | s | {"slices": len(s["slices"])} for ids, s in each])
    slices = pd.DataFrame([ids | {"series_id": s["series_id"]} | row for ids, s in each for row in s["slices"]])
    train, test = (patients[patients["split"] == split].drop(columns="split") for split in ("train", "test"))
    write_csv(root / "train.csv", train.sort_values("patient_id"))
    write_csv(root / "truth" / "test.csv", test.sort_values("patient_id"))
    write_csv(root / "sample_submission.csv", test.sort_values("patient_id")[["patient_id"]].assign(
        **dict.fromkeys(SUBMITTED, 0.5)))
    marks = slices.melt(["split", "patient_id", "series_id", "instance_number"], list(MARKED.values()), "injury_name")
    marks = marks[marks["value"] == 1].drop(columns="value").sort_values(["patient_id", "series_id", "instance_number"])
    meta = series.sort_values(["patient_id", "series_id"])
    own = ["patient_id", "series_id", "aortic_hu"]
    write_csv(root / "image_level_labels.csv", marks[marks["split"] == "train"].drop(columns="split"))
    write_csv(root / "train_series_meta.csv", meta.loc[meta["split"] == "train", [*own, "incomplete_organ"]])
    write_csv(root / "test_series_meta.csv", meta.loc[meta["split"] == "test", own])
    write_csv(root / "truth" / "series.csv", series)
    write_csv(root / "truth" / "slices.csv", slices)
    return series

def make_competition(
    root: Path,                   # folder of the competition
    *,
    patients: int,                # number of patients with labels
    test_patients: int,           # number of patients without
    size: int,                    # rows and columns of a slice
    lengths: str,                 # slices of a series, dealt out in turn
    prevalence: float,            # share of patients with an injury
    contrast: float,              # factor of the injuries' contrast
    seed: int,
    workers: int | None = None,   # number of processes; None: one per core
    identity: dict | None = None, # what else the pictures depend on, such as the code; can be written as JSON
) -> pd.DataFrame:                # one row a series
    "Write a competition. Finished patients of an interrupted call are kept if the parameters are the same."
    root = Path(root)
    about = json.dumps(dict(patients=patients, test_patients=test_patients, size=size, lengths=lengths, seed=seed,
                            prevalence=prevalence, contrast=contrast, identity=identity), indent=1)
    note = root / "truth" / "parameters.json"
    if root.exists() and (not note.exists() or note.read_text() != about):
        shutil.rmtree(root)
    write_text(note, about)
    planned = [p for split, n in (("train", patients), ("test", test_patients))
               for p in plan(split, n, prevalence, [int(n) for n in lengths.split()], seed)]
    jobs = (delayed(make_patient)(root, patient, size, contrast) for patient in planned)
    drawn = in_processes(jobs, workers)
    made = list(tqdm(drawn, total=len(planned), desc="phantoms", unit="patient"))
    return _write_tables(root, planned, made)

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
series, root = run_stage(run, workers or None), run.path("competition")
train = pd.read_csv(root / "train.csv")
assert (train[[f"{organ}_healthy" for organ in GRADES]].eq(1).all(axis=1) == (train["any_injury"] == 0)).all()
assert all((root / "segmentations" / f"{s}.nii").exists() for s in series.loc[series["segmented"], "series_id"])
series

# %%
train.drop(columns="patient_id").sum().to_frame("patients").T

# %% [markdown]
# ## What came out
# One series with image-level labels, from the lowest slice to the highest, in the soft-tissue window. A marked slice
# has a red title.

# %%
slices = pd.read_csv(root / "truth" / "slices.csv")
kinds = list(MARKED.values())
marked = slices.groupby("series_id")[kinds].sum().sum(axis=1).idxmax()
shown = slices[slices["series_id"] == marked].sort_values("z_mm")
shown = shown.iloc[:: max(1, len(shown) // 32)]
fig, axes = plt.subplots(-(-len(shown) // 8), 8, figsize=(12, 1.7 * -(-len(shown) // 8)), facecolor="black")
for ax in axes.flat:
    ax.axis("off")
for ax, row in zip(axes.flat, shown.itertuples()):
    file = root / f"{row.split}_images" / str(row.patient_id) / str(row.series_id) / f"{row.instance_number}.dcm"
    ax.imshow(to_hu(next(read_frames(file)).decode()).values, cmap="gray", vmin=-150, vmax=250)
    found = [kind for kind in kinds if getattr(row, kind)]
    ax.set_title(", ".join(found) or f"{row.z_mm:.0f} mm", color="red" if found else "grey", fontsize=8)
fig.tight_layout(pad=0.2)

# %% [markdown]
# ---
# [← Abdominal trauma](00_system.py) · [Volumes →](02_volumes.py)

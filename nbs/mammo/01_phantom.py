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
# > A synthetic mammography competition: the same files and the same difficulties, and the truth is known.
#
# The real competition is 315 GB and needs a login. This stage writes a competition of any size with the same folders,
# tables and DICOM properties, so that every later stage can be run, tested and taught on a laptop. Because the pictures
# are drawn, the box of each breast and the place of each lesion are known.

# %%
#| default_exp mammo.phantom

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

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import replacing, write_csv, write_text
from mammo_nb.core.processes import in_processes
from mammo_nb.core.runs import Run
from mammo_nb.mammo.drawing.anatomy import draw_anatomy, other_breast
from mammo_nb.mammo.drawing.breast import BREAST, make_breast, mask_box
from mammo_nb.mammo.drawing.lesions import KINDS
from mammo_nb.mammo.drawing.machines import MACHINES, Machine, stored_values, write_dicom

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import pydicom

from mammo_nb.core.practice import practice
from mammo_nb.mammo.system import system

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="phantom", overrides=overrides)
run.contract("phantom")

# %% [markdown]
# ## What is not tissue
# A picture may have a marker with side and view in the corner away from the breast, a bright strip at the end of the
# film or paddle, and the edge of the collimator. They are drawn beside the breast and never cover it.

# %%
#| export
def add_marks(
    rng: np.random.Generator,
    pixels: np.ndarray,    # float32 (rows, columns), 0 to 1, changed in place
    inside: np.ndarray,    # bool, same shape, the breast
    text: str,             # such as "R CC"
) -> bool:                 # whether letters were burned in
    "Add a marker, a film edge and a collimator edge, each to a share of the pictures."
    rows, columns = pixels.shape
    left = inside[:, 0].sum() >= inside[:, -1].sum()  # whether the chest wall is on the left
    if rng.random() < 0.10:  # a collimator blade: the air behind it is not quite black
        depth = int(columns * rng.uniform(0.02, 0.06))
        edge = np.s_[:, -depth:] if left else np.s_[:, :depth]
        pixels[edge] = np.maximum(pixels[edge], np.float32(rng.uniform(0.03, 0.10)) * ~inside[edge])
    if rng.random() < 0.08:  # the bright end of a film
        depth = max(2, int(rows * rng.uniform(0.004, 0.012)))
        pixels[-depth:] = np.where(inside[-depth:], pixels[-depth:], np.float32(rng.uniform(0.75, 0.97)))
    if rng.random() > 0.45:
        return False
    scale, weight = rows / 1024 * rng.uniform(0.9, 1.3), max(1, round(rows / 400))
    (wide, high), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, weight)
    x = int(columns * 0.93) - wide if left else int(columns * 0.07)
    y = int(rows * rng.uniform(0.07, 0.14)) + high
    if inside[y - high:y + base, max(0, x):x + wide].any():
        return False
    letters = np.zeros(pixels.shape, np.uint8)
    cv2.putText(letters, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, weight, cv2.LINE_AA)
    np.maximum(pixels, letters * np.float32(rng.uniform(0.8, 0.97) / 255), out=pixels)
    return True

# %%
fig, axes = plt.subplots(1, 5, figsize=(10, 2.8), facecolor="black")
for i, ax in enumerate(axes):
    rng = np.random.default_rng([2023, i])
    b = make_breast(rng, "LR"[i % 2], "CC" if i < 3 else "MLO", (512, 416))
    marked = b.pixels.copy()
    burned_in = add_marks(rng, marked, b.breast_mask, f"{'LR'[i % 2]} {'CC' if i < 3 else 'MLO'}")
    assert np.array_equal(marked[b.breast_mask], b.pixels[b.breast_mask]) and (not burned_in or marked.max() > 0.75)
    ax.imshow(marked, cmap="gray", vmin=0, vmax=1)
    ax.axis("off")
fig.tight_layout(pad=0.2)

# %% [markdown]
# ## The plan
# Everything is planned before anything is drawn: which patients have a cancer, in which breast, on which machine, and
# which views are repeated. Each patient and each image has its own seed, so that neither the number of processes nor a
# restart can change a picture.

# %%
#| export
def shared_out(
    rng: np.random.Generator,
    count: int,       # number of items to draw
    shares: list,     # pairs (item, share)
) -> list:            # `count` items
    "Draw items in proportion to their shares, in random order. Each item occurs once before any item occurs twice."
    items = sorted((k / share, i) for i, (_, share) in enumerate(shares) for k in range(share))
    order = [shares[i][0] for _, i in items]
    return [order[k % len(order)] for k in rng.permutation(count)]

def plan_patient(
    seed: tuple,          # entropy of this patient
    patient_id: str,
    machine: Machine,
    cancer: bool,         # whether one of the breasts has a cancer
    implant: bool,
) -> list:                # one dict per image
    "Plan the two breasts and at least four views of one patient, with their clinical data."
    rng = np.random.default_rng(seed)
    right = draw_anatomy(rng, implant=implant)
    breasts = dict(zip("RL", (right, other_breast(rng, right))))
    sick = {"RL"[rng.integers(2)]} if cancer else set()
    age = int(np.clip(rng.normal(55 if machine.site_id == 1 else 61, 9), 33, 89))
    density = None
    if machine.site_id == 1 and rng.random() > 0.03:
        density = "ABCD"[int(np.digitize(right.density, (0.2, 0.45, 0.72)))]
    images = []
    for side, breast in breasts.items():
        lesion = str(rng.choice(["mass", "calcifications"], p=[0.75, 0.25])) if side in sick else None
        if not lesion and not implant and rng.random() < 0.22:
            lesion = str(rng.choice(["benign_mass", "benign_calcifications"]))
        benign = bool(lesion) and side not in sick
        biopsy = int(side in sick or (benign and rng.random() < 0.3))
        birads = None
        if machine.site_id == 1 and rng.random() > 0.1:
            birads = 2 if benign else 1
            if side in sick or biopsy:
                birads = 0
        views = ["CC", "MLO"]
        if rng.random() < 0.12:
            views.append(str(rng.choice(["CC", "MLO"])))
        common = {
            "site_id": machine.site_id, "patient_id": patient_id, "laterality": side, "age": age,
            "cancer": int(side in sick), "biopsy": biopsy,
            "invasive": int(side in sick and (lesion == "mass" or rng.random() < 0.3)),
            "BIRADS": birads, "implant": int(implant), "density": density, "machine_id": machine.machine_id,
            "difficult_negative_case": bool(biopsy and side not in sick),
        }
        for view in views:
            images.append(common | {
                "view": view, "lesion": lesion, "breast": breast, "machine": machine, "number": len(images) + 1,
                "flipped": bool(rng.random() < 0.05)
            })
    return images

def plan(
    split: str,           # train or test
    patients: int,        # number of patients
    prevalence: float,    # share of patients with a cancer
    seed: int,
) -> list:                # one dict per image
    "Plan all images of a split, in table order."
    entropy = (seed, ("train", "test").index(split))
    rng = np.random.default_rng(entropy)
    machines = shared_out(rng, patients, [(m, m.share) for m in MACHINES])
    order = rng.permutation(patients)
    sick = set(order[:round(prevalence * patients)].tolist())
    implants = set(order[patients - round(0.015 * patients):].tolist()) - sick
    # ids in the range of the real ones; odd in train and even in test, so that no id is in both
    ids = np.sort(rng.choice(32000, patients, replace=False)) * 2 + entropy[1] + 3
    images = [
        image for i in range(patients)
        for image in plan_patient((*entropy, i), str(ids[i]), machines[i], i in sick, i in implants)
    ]
    numbers = rng.choice(2**30, len(images), replace=False) * 2 + entropy[1]
    return [
        image | {"image_id": str(number), "entropy": (*entropy, k, 1), "split": split}
        for k, (image, number) in enumerate(zip(images, numbers))
    ]

# %%
planned = plan("train", 6, 0.34, 2023)
pd.DataFrame(planned).drop(columns=["breast", "machine", "entropy"]).head(8)

# %% [markdown]
# ## One image
# The mask is written after the DICOM file, so an image is complete when its mask exists. The boxes and lesions in the
# truth tables are computed from the masks, so that tables and masks cannot disagree.

# %%
#| export
TRAIN_COLUMNS = [
    "site_id", "patient_id", "image_id", "laterality", "view", "age", "cancer", "biopsy", "invasive", "BIRADS",
    "implant", "density", "machine_id", "difficult_negative_case"
]
TEST_COLUMNS = [
    "site_id", "patient_id", "image_id", "laterality", "view", "age", "implant", "machine_id", "prediction_id"
]

def make_image(
    root: Path,           # folder of the competition
    image: dict,          # from `plan`
    frame: tuple,         # rows, columns
    conspicuity: float,   # factor of the lesions' contrast
) -> tuple:               # box of the breast; list of pairs (kind, box of the lesion); boxes are half-open, in pixels
    "Draw and write one image, unless it exists, and give its truth."
    name = f"{image['patient_id']}@{image['image_id']}"
    path = root / f"{image['split']}_images" / image["patient_id"] / f"{image['image_id']}.dcm"
    truth = root / "truth" / "masks" / f"{name}.png"
    if not (path.exists() and truth.exists()):
        rng, machine = np.random.default_rng(image["entropy"]), image["machine"]
        b = make_breast(rng, image["laterality"], image["view"], frame, image["lesion"], image["breast"], conspicuity)
        mask = np.where(b.lesion_mask > 0, b.lesion_mask, b.breast_mask * np.uint8(BREAST))
        pixels = b.pixels
        if image["flipped"]:
            pixels, mask = np.ascontiguousarray(pixels[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
        burned_in = add_marks(rng, pixels, mask > 0, f"{image['laterality']} {image['view']}")
        stored, windows = stored_values(pixels, machine)
        header = {k: image[k] for k in ("patient_id", "image_id", "laterality", "view", "flipped", "number")}
        write_dicom(path, stored, **header, syntax=machine.syntax, photometric=machine.photometric,
                    bits_stored=machine.bits_stored, windows=windows, voi_function=machine.voi_function,
                    implant=bool(image["implant"]), burned_in=burned_in)
        with replacing(truth) as temporary:
            temporary.write_bytes(cv2.imencode(".png", mask)[1].tobytes())
    else:
        mask = cv2.imread(str(truth), cv2.IMREAD_GRAYSCALE)
    return mask_box(mask > 0), [(kind, mask_box(mask == grey)) for kind, grey in KINDS.items() if (mask == grey).any()]

# %% [markdown]
# ## The whole competition
# All images are drawn in parallel, then the tables are written. The parameters are stored beside the truth, so that two
# competitions are never mixed in one folder.

# %%
#| export
class CompetitionError(ProjectError):
    "The folder already holds a competition with other parameters."

def make_competition(
    root: Path,                   # folder of the competition
    *,
    patients: int,                # number of patients in train.csv
    test_patients: int,           # number of patients in test.csv
    frame: tuple,                 # rows, columns
    prevalence: float,            # share of patients with a cancer in one breast
    seed: int,
    conspicuity: float = 1.0,     # factor of the lesions' contrast
    workers: int | None = None,   # number of processes; None: one per core
    identity: dict | None = None, # what else the pictures depend on, such as the code; can be written as JSON
) -> pd.DataFrame:                # one row per image: the columns of the tables, split, lesion, file and box
    "Write a competition. Finished images of an interrupted call are kept. Raises CompetitionError."
    root = Path(root)
    parameters = {
        "patients": patients, "test_patients": test_patients, "frame": list(frame), "prevalence": prevalence,
        "seed": seed, "conspicuity": conspicuity, "identity": identity,
    }
    about = json.dumps(parameters, indent=1)
    note = root / "truth" / "parameters.json"
    if note.exists() and note.read_text() != about:
        raise CompetitionError(
            f"{root} holds a competition with other parameters (see {note.relative_to(root)}). Remove the folder or "
            "choose another one."
        )
    write_text(note, about)
    images = plan("train", patients, prevalence, seed) + plan("test", test_patients, prevalence, seed)
    jobs = (delayed(make_image)(root, image, tuple(frame), conspicuity) for image in images)
    drawn = in_processes(jobs, workers)
    truths = list(tqdm(drawn, total=len(images), desc="phantoms", unit="img"))
    table = pd.DataFrame(images).drop(columns=["breast", "machine", "entropy", "number"])
    table["BIRADS"] = table["BIRADS"].astype("float64")
    table["prediction_id"] = table["patient_id"] + "_" + table["laterality"]
    table["file"] = table["split"] + "_images/" + table["patient_id"] + "/" + table["image_id"] + ".dcm"
    corners = ["x0", "y0", "x1", "y1"]
    table[corners] = [box for box, _ in truths]
    lesions = [(p, i, kind, *box) for p, i, (_, found) in zip(table["patient_id"], table["image_id"], truths)
               for kind, box in found]
    train, test = table[table["split"] == "train"], table[table["split"] == "test"]
    answers = test.groupby("prediction_id", sort=False)["cancer"].max().reset_index()
    parts = {
        "train.csv": train[TRAIN_COLUMNS],
        "test.csv": test[TEST_COLUMNS],
        "truth/boxes.csv": table[["patient_id", "image_id", *corners]],
        "truth/lesions.csv": pd.DataFrame(lesions, columns=["patient_id", "image_id", "kind", *corners]),
        "truth/test_labels.csv": answers,
        "sample_submission.csv": answers.assign(cancer=prevalence),
    }
    for name, part in parts.items():
        write_csv(root / name, part)
    return table

# %%
scratch = Path(tempfile.mkdtemp())
size = dict(patients=6, test_patients=2, frame=(512, 416), prevalence=0.34)
table = make_competition(scratch / "competition", **size, seed=2023)
assert (table["split"] == "train").sum() >= 4 * size["patients"]
table.head(3)

# %% [markdown]
# A call with the same parameters keeps the files that it finds. A call with other parameters is an error.

# %%
assert make_competition(scratch / "competition", **size, seed=2023, workers=1).equals(table)
try:
    make_competition(scratch / "competition", **size, seed=2024)
except CompetitionError as e:
    print(str(e).replace(str(scratch), "..."))

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
        root, fields = run.path("competition"), asdict(run.section("phantom"))
        frame = fields.pop("rows"), fields.pop("columns")

        def make() -> pd.DataFrame:
            return make_competition(root, **fields, frame=frame, workers=workers, identity=run.code("phantom"))

        try:
            return make()
        except CompetitionError:
            shutil.rmtree(root)
            return make()

# %%
table, root = run_stage(run, workers or None), run.path("competition")
table.groupby(["split", "cancer"]).agg(patients=("patient_id", "nunique"), images=("image_id", "size"))

# %% [markdown]
# ## What came out
# Three patients in the hanging of a reading room: the right breast on the left, the chest walls together, CC above MLO.
# Malignant lesions are framed in red, benign ones in green. A breast whose chest wall is not in the middle belongs to a
# file that is stored mirrored.

# %%
lesions = pd.read_csv(root / "truth" / "lesions.csv", dtype={"image_id": str})
order = table.sort_values("cancer", ascending=False)["patient_id"].drop_duplicates()
fig, axes = plt.subplots(2, 6, figsize=(12, 5), facecolor="black")
for i, ax in enumerate(axes.flat):
    patient, side, view = order.iloc[i % 6 // 2], "RL"[i % 2], ("CC", "MLO")[i // 6]
    row = table[(table["patient_id"] == patient) & (table["laterality"] == side) & (table["view"] == view)].iloc[0]
    read = pydicom.dcmread(root / row["file"])
    if read.PhotometricInterpretation == "MONOCHROME2":
        ax.imshow(read.pixel_array, cmap="gray", vmin=0)
    else:
        ax.imshow(read.pixel_array, cmap="gray_r")
    for lesion in lesions[lesions["image_id"] == row["image_id"]].itertuples():
        colour = "limegreen" if lesion.kind.startswith("benign") else "red"
        ax.add_patch(plt.Rectangle((lesion.x0, lesion.y0), lesion.x1 - lesion.x0, lesion.y1 - lesion.y0, fill=False,
                                   ec=colour, lw=0.8))
    ax.axis("off")
fig.tight_layout(pad=0.1)

# %% [markdown]
# ---
# [← Mammography](00_system.py) · [Data sets →](02_datasets.py)

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Phantom
# > A mammography competition out of nothing: the same files, the same traps, and the truth as well.
#
# The real competition is 315 GB behind a login. This stage writes one of any size with the same tree, tables and DICOM
# quirks, so that every later stage can be run, tested and taught on a laptop. Because the pictures are drawn, the
# breast's box and each lesion's place are known.

# %%
#| default_exp mammo.phantom

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run, such as {"phantom.patients": 200}
workers = 0                                   # processes; 0: one a core
# and the images they name

# %%
#| export
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian, JPEG2000Lossless,
                         JPEGLosslessSV1, RLELossless, generate_uid)
from tqdm import tqdm

from mammo_nb.core.files import replacing, write_csv, write_text
from mammo_nb.core.runs import Run
from mammo_nb.mammo.drawing.anatomy import BREAST, KINDS, draw_anatomy, make_breast, mask_box, other_breast

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import pydicom

from mammo_nb.core.runs import practice
from mammo_nb.mammo.system import system

run = Run.open(run_dir, overrides) if run_dir else practice(system, before="phantom", overrides=overrides)
run.contract("phantom")

# %% [markdown]
# ## Machines
# A `machine_id` fixes how its files are written: bits stored, polarity, windows, VOI function and transfer syntax. Most
# are JPEG 2000 lossless, as in the real set; the others are there because one day they will be in yours. Site 2 reports
# neither density nor BI-RADS.

# %%
#| export
@dataclass(frozen=True)
class Machine:
    "How one vendor's files are written."
    machine_id: int
    site_id: int
    share: int                 # patients out of 20 on this machine
    bits_stored: int
    photometric: str           # MONOCHROME1 or MONOCHROME2
    windows: tuple             # widths of its windows, as shares of the range that tissue uses
    voi_function: str          # '' = no tag, LINEAR or SIGMOID
    syntax: str                # UID
    black: float               # where tissue begins, as a share of the largest stored value

MACHINES = (
    Machine(49, 1, 6, 12, "MONOCHROME2", (1.0, 0.85, 1.2), "SIGMOID", JPEG2000Lossless, 0.50),
    Machine(48, 2, 5, 12, "MONOCHROME2", (1.0,), "", JPEG2000Lossless, 0.12),
    Machine(29, 1, 3, 16, "MONOCHROME1", (1.0,), "LINEAR", JPEG2000Lossless, 0.05),
    Machine(21, 2, 3, 12, "MONOCHROME1", (1.0, 1.3), "", JPEG2000Lossless, 0.20),
    Machine(93, 1, 1, 12, "MONOCHROME2", (1.0, 0.8, 1.2, 1.5), "LINEAR", JPEGLosslessSV1, 0.30),
    Machine(216, 2, 1, 16, "MONOCHROME2", (1.0,), "SIGMOID", RLELossless, 0.25),
    Machine(210, 2, 1, 16, "MONOCHROME1", (1.0, 1.1), "", ExplicitVRLittleEndian, 0.10),
)

def stored_values(
    pixels: np.ndarray,   # float32, 0 (air) to 1
    machine: Machine,
) -> tuple:               # uint16 stored values, windows ((center, width), ...)
    "What the machine stores, and the windows that bring it back."
    top = 2 ** machine.bits_stored - 1
    black, white = machine.black * top, 0.94 * top
    values = np.interp(pixels, (0, 0.06, 1), (0, black, white)) # air is far from tissue in files for presentation
    stored = np.round(values).astype(np.uint16)
    center = (black + white) / 2
    if machine.photometric == "MONOCHROME1":
        stored, center = top - stored, top - center
    return stored, tuple((round(center), round((white - black) * w)) for w in machine.windows)

# %%
pd.DataFrame([asdict(m) for m in MACHINES]).assign(syntax=[m.syntax.name.split(",")[0] for m in MACHINES])

# %% [markdown]
# ## One DICOM file
# As in the real files there is no Modality, no date and no name. Identifiers come from the seed, so that a file has the
# same bytes on every machine.

# %%
#| export
def encode(
    pixels: np.ndarray,   # uint16, 2-D
    syntax: str,          # UID
    bits_stored: int,
    dataset: Dataset,     # takes the pixel data
):
    "Lossless pixel data in the given transfer syntax."
    if syntax == JPEG2000Lossless:
        frame = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True,
                                          bitspersample=bits_stored)
    elif syntax == JPEGLosslessSV1:
        frame = imagecodecs.jpeg_encode(pixels, lossless=True, predictor=1, bitspersample=bits_stored)
    elif syntax == ExplicitVRLittleEndian:
        frame = pixels.astype("<u2").tobytes()
    elif syntax == RLELossless:
        dataset.PixelData = b""
        return dataset.compress(RLELossless, pixels, generate_instance_uid=False)
    else:
        raise ValueError(f"Transfer syntax {syntax} cannot be written; use one of MACHINES")
    dataset.PixelData = frame if syntax == ExplicitVRLittleEndian else encapsulate([frame])
    dataset["PixelData"].VR = "OW" if syntax == ExplicitVRLittleEndian else "OB"

def write_dicom(
    path: Path,
    pixels: np.ndarray,          # uint16 stored values, rows x columns
    *,
    patient_id: str, image_id: str,
    laterality: str,             # L or R
    view: str,                   # CC or MLO
    syntax: str,                 # transfer syntax UID
    photometric: str,            # MONOCHROME1 or MONOCHROME2
    bits_stored: int,
    windows: tuple = (),         # ((center, width), ...), stored values
    voi_function: str = "",      # '' = no tag
    implant: bool = False,
    burned_in: bool = False,     # letters in the picture
    flipped: bool = False,       # mirrored against the convention
    number: int = 1,             # InstanceNumber
):
    "One single-frame mammogram, for presentation, written atomically."
    uid = lambda *what: generate_uid(entropy_srcs=[*map(str, what)])
    d = Dataset()
    d.SOPClassUID, d.SOPInstanceUID = DigitalMammographyXRayImageStorageForPresentation, uid(patient_id, image_id)
    d.StudyInstanceUID, d.SeriesInstanceUID = uid(patient_id), uid(patient_id, laterality)
    d.PresentationIntentType = "FOR PRESENTATION"
    d.PatientID, d.InstanceNumber, d.BodyPartExamined = patient_id, number, "BREAST"
    d.ImageLaterality, d.ViewPosition = laterality, view
    d.FieldOfViewHorizontalFlip = "YES" if flipped else "NO"
    d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = 1, photometric, 0
    d.Rows, d.Columns = pixels.shape
    d.BitsAllocated, d.BitsStored, d.HighBit = 16, bits_stored, bits_stored - 1
    d.BurnedInAnnotation, d.BreastImplantPresent = ("YES" if burned_in else "NO"), ("YES" if implant else "NO")
    d.RescaleIntercept, d.RescaleSlope, d.LossyImageCompression = 0, 1, "00"
    if windows:
        centers, widths = zip(*windows)
        d.WindowCenter, d.WindowWidth = (list(centers), list(widths)) if len(windows) > 1 else (centers[0], widths[0])
    if voi_function:
        d.VOILUTFunction = voi_function
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    encode(pixels, syntax, bits_stored, d)
    d.file_meta.ImplementationClassUID, d.file_meta.ImplementationVersionName = uid("mammo_nb"), "MAMMO_NB"
    with replacing(path) as temporary:
        d.save_as(temporary, enforce_file_format=True)

# %%
scratch = Path(tempfile.mkdtemp())
b = make_breast(np.random.default_rng(7), "L", "MLO", (512, 416), "mass")
fig, axes = plt.subplots(1, len(MACHINES), figsize=(12, 2.6))
for ax, m in zip(axes, MACHINES):
    stored, windows = stored_values(b.pixels, m)
    write_dicom(scratch / "one.dcm", stored, patient_id="1", image_id="2", laterality="L", view="MLO", syntax=m.syntax,
                photometric=m.photometric, bits_stored=m.bits_stored, windows=windows, voi_function=m.voi_function)
    read = pydicom.dcmread(scratch / "one.dcm")
    assert np.array_equal(read.pixel_array, stored) and "Modality" not in read
    ax.imshow(read.pixel_array, cmap="gray")
    ax.set_title(f"{m.machine_id}: {m.bits_stored} bits\n{m.photometric}", fontsize=8)
    ax.axis("off")

# %% [markdown]
# ## What is not tissue
# A marker with side and view, in the corner away from the breast; a bright strip where the film or paddle ends; the
# edge of the collimator. They go into the stored picture, never into the breast.

# %%
#| export
def add_marks(
    rng: np.random.Generator,
    pixels: np.ndarray,    # float32, changed in place
    inside: np.ndarray,    # bool, the breast
    text: str,             # such as 'R CC'
) -> bool:                 # whether letters were burned in
    "Markers, borders and collimator edges, each on a share of the pictures."
    rows, columns = pixels.shape
    left = inside[:, 0].sum() >= inside[:, -1].sum()           # the side of the chest wall
    if rng.random() < 0.10:                                    # a collimator blade: air beyond it is not quite black
        depth = int(columns * rng.uniform(0.02, 0.06))
        edge = np.s_[:, -depth:] if left else np.s_[:, :depth]
        pixels[edge] = np.maximum(pixels[edge], np.float32(rng.uniform(0.03, 0.10)) * ~inside[edge])
    if rng.random() < 0.08:                                    # the bright end of a film
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
# Who has what is decided before anything is drawn: which patients have a cancer, in which breast, on which machine,
# with which repeated view. Each patient and each image has a seed of its own, so that neither the number of workers nor
# a restart can change a picture.

# %%
#| export
def shared_out(
    rng: np.random.Generator,
    count: int,       # how many are wanted
    shares: list,     # of (item, share)
) -> list:            # count items
    "Items in proportion to their shares, shuffled; a small count holds each of them before any twice."
    items = sorted((k / share, i) for i, (_, share) in enumerate(shares) for k in range(share))
    order = [shares[i][0] for _, i in items]
    return [order[k % len(order)] for k in rng.permutation(count)]

def plan_patient(
    seed: tuple,          # entropy of this patient
    patient_id: str,
    machine: Machine,
    cancer: bool,
    implant: bool,
) -> list:                # a dict an image
    "One patient: two breasts, four views or more, and what is true of them."
    rng = np.random.default_rng(seed)
    right = draw_anatomy(rng, implant=implant)
    breasts = dict(zip("RL", (right, other_breast(rng, right))))
    sick = {"RL"[rng.integers(2)]} if cancer else set()
    age = int(np.clip(rng.normal(55 if machine.site_id == 1 else 61, 9), 33, 89))
    density = "ABCD"[int(np.digitize(right.density,
                                     (0.2, 0.45, 0.72)))] if machine.site_id == 1 and rng.random() > 0.03 else None
    images = []
    for side, breast in breasts.items():
        lesion = str(rng.choice(["mass", "calcifications"], p=[0.75, 0.25])) if side in sick else None
        if not lesion and not implant and rng.random() < 0.22:
            lesion = str(rng.choice(["benign_mass", "benign_calcifications"]))
        benign = bool(lesion) and side not in sick
        biopsy = int(side in sick or (benign and rng.random() < 0.3))
        birads = (0 if side in sick or biopsy else
                  2 if benign else 1) if machine.site_id == 1 and rng.random() > 0.1 else None
        views = ["CC", "MLO"] + ([str(rng.choice(["CC", "MLO"]))] if rng.random() < 0.12 else [])
        common = {
            "site_id": machine.site_id, "patient_id": patient_id, "laterality": side, "age": age,
            "cancer": int(side in sick), "biopsy": biopsy, "invasive": int(
                side in sick and (lesion == "mass" or rng.random() < 0.3)), "BIRADS": birads, "implant": int(implant),
            "density": density, "machine_id": machine.machine_id, "difficult_negative_case": bool(biopsy
                                                                                                  and side not in sick)
        }
        images += [
            common | {
                "view": view, "lesion": lesion, "breast": breast, "machine": machine, "number": len(images) + i + 1,
                "flipped": bool(rng.random() < 0.05)
            } for i, view in enumerate(views)
        ]
    return images

def plan(
    split: str,           # train or test
    patients: int,
    prevalence: float,
    seed: int,
) -> list:                # a dict an image
    "All images of a split, in table order."
    entropy = (seed, ("train", "test").index(split))
    rng = np.random.default_rng(entropy)
    machines = shared_out(rng, patients, [(m, m.share) for m in MACHINES])
    order = rng.permutation(patients)
    sick = set(order[:round(prevalence * patients)].tolist())
    implants = set(order[patients - round(0.015 * patients):].tolist()) - sick
    # ids look as in the real set and mean nothing; odd and even keep the splits apart
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
# ## One image, finished or not at all
# The mask is written after the DICOM file, so a mask that exists says that the image is done. Boxes and lesions of the
# truth tables are read off the mask: there is one truth, not two.

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
    root: Path,
    image: dict,          # of `plan`
    frame: tuple,         # rows, columns
    conspicuity: float,
) -> tuple:               # box of the breast, [(kind, box of the lesion)]
    "Draw and write one image, unless it is there; its truth."
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
        write_dicom(path, stored, **{
            k: image[k] for k in ("patient_id", "image_id", "laterality", "view", "flipped", "number")
        }, syntax=machine.syntax, photometric=machine.photometric, bits_stored=machine.bits_stored, windows=windows,
                    voi_function=machine.voi_function, implant=bool(image["implant"]), burned_in=burned_in)
        with replacing(truth) as temporary:
            temporary.write_bytes(cv2.imencode(".png", mask)[1].tobytes())
    else:
        mask = cv2.imread(str(truth), cv2.IMREAD_GRAYSCALE)
    return mask_box(mask > 0), [(kind, mask_box(mask == grey)) for kind, grey in KINDS.items() if (mask == grey).any()]

# %% [markdown]
# ## The whole competition

# %%
#| export
class CompetitionError(Exception):
    "A folder that holds another competition."

def make_competition(
    root: Path,                   # folder of the tree
    *,
    patients: int,                # in train.csv
    test_patients: int,           # in test.csv
    frame: tuple,                 # rows, columns
    prevalence: float,            # share of patients with a cancer in one breast
    seed: int,
    conspicuity: float = 1.0,     # contrast of lesions
    workers: int | None = None,   # processes; None = one a core
    identity: dict | None = None, # what else its pictures depend on, such as the code; JSON-able
) -> pd.DataFrame:                # one row an image: table columns, split, lesion, file, box
    "Write a competition; finished images of an earlier, interrupted call are kept."
    root = Path(root)
    about = json.dumps(
        {
            "patients": patients, "test_patients": test_patients, "frame": list(frame), "prevalence": prevalence,
            "seed": seed, "conspicuity": conspicuity, "identity": identity
        }, indent=1)
    note = root / "truth" / "parameters.json"
    if note.exists() and note.read_text() != about:
        raise CompetitionError(
            f"{root} holds a competition with other parameters ({note.relative_to(root)}). Remove the folder or "
            "choose another."
        )
    write_text(note, about)
    images = plan("train", patients, prevalence, seed) + plan("test", test_patients, prevalence, seed)
    jobs = (delayed(make_image)(root, image, tuple(frame), conspicuity) for image in images)
    truths = list(
        tqdm(
            Parallel(n_jobs=workers or os.cpu_count(), return_as="generator")(jobs), total=len(images), desc="phantoms",
            unit="img"))
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
    for name, part in {
            "train.csv": train[TRAIN_COLUMNS], "test.csv": test[TEST_COLUMNS], "truth/boxes.csv": table[
                ["patient_id", "image_id", *corners]], "truth/lesions.csv": pd.DataFrame(
                    lesions, columns=["patient_id", "image_id", "kind", *corners]), "truth/test_labels.csv": answers,
            "sample_submission.csv": answers.assign(cancer=prevalence)
    }.items():
        write_csv(root / name, part)
    return table

# %%
size = dict(patients=6, test_patients=2, frame=(512, 416), prevalence=0.34)
table = make_competition(scratch / "competition", **size, seed=2023)
assert (table["split"] == "train").sum() >= 4 * size["patients"]
table.head(3)

# %% [markdown]
# A call that finds its own files keeps them; one with other parameters refuses to mix two competitions in a folder.

# %%
assert make_competition(scratch / "competition", **size, seed=2023, workers=1).equals(table)
try:
    make_competition(scratch / "competition", **size, seed=2024)
except CompetitionError as e:
    print(str(e).replace(str(scratch), "..."))

# %% [markdown]
# ## Run the stage
# The competition of a run is its own: if the recipe or the code that draws has changed, it is drawn anew.

# %%
#| export
def run_stage(
    run: Run,
    workers: int | None = None,      # processes; None: one a core
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
# Three women as a radiographer hangs them: right breast on the left, chest walls together, CC above MLO. Lesions of
# cancers are framed in red, benign ones in green. A breast whose back is not in the middle is a file stored mirrored.

# %%
lesions = pd.read_csv(root / "truth" / "lesions.csv", dtype={"image_id": str})
order = table.sort_values("cancer", ascending=False)["patient_id"].drop_duplicates()
fig, axes = plt.subplots(2, 6, figsize=(12, 5), facecolor="black")
for i, ax in enumerate(axes.flat):
    patient, side, view = order.iloc[i % 6 // 2], "RL"[i % 2], ("CC", "MLO")[i // 6]
    row = table[(table["patient_id"] == patient) & (table["laterality"] == side) & (table["view"] == view)].iloc[0]
    read = pydicom.dcmread(root / row["file"])
    ax.imshow(read.pixel_array, cmap="gray" if read.PhotometricInterpretation == "MONOCHROME2" else "gray_r",
              vmin=0 if read.PhotometricInterpretation == "MONOCHROME2" else None)
    for l in lesions[lesions["image_id"] == row["image_id"]].itertuples():
        ax.add_patch(
            plt.Rectangle((l.x0, l.y0), l.x1 - l.x0, l.y1 - l.y0, fill=False,
                          ec="limegreen" if l.kind.startswith("benign") else "red", lw=0.8))
    ax.axis("off")
fig.tight_layout(pad=0.1)

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
# # Pages and DICOM
# > The most suspicious slices of each series with the outlines of the organs, and what a report calls the injuries.
#
# `mammo-nb predict --system trauma --html --dicom` writes them. How pages and results are made is in
# [Studies](../../core/82_studies.py). The probabilities are those of all series of a study. They are those of
# `per_patient.csv` unless the folder has several studies of the patient.

# %%
#| default_exp trauma.tools.results

# %%
#| export
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammo_nb.core.dicom_results import CAUTION, Maker
from mammo_nb.core.exams import captioned, enlarged
from mammo_nb.core.files import sha256
from mammo_nb.core.pictures import write_png
from mammo_nb.core.studies import Reported, Score, Shown, suspicious
from mammo_nb.trauma.learning.inference import NAMES, Reading
from mammo_nb.trauma.reading.organs import visibility
from mammo_nb.trauma.recipes import COLUMNS, GRADES, ORGANS

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt

# %% tags=["parameters"]
slices = 40   # of the drawn series

# %% [markdown]
# ## Names
# An injury of the project is no term of a coding scheme, so its code is one of a scheme of its own, as DICOM has it for
# such cases: its name begins with 99. Parts of the body have codes of SNOMED CT.

# %%
#| export
SCHEME = "99MAMMONB"
SITES = {"bowel": ("113276009", "SCT", "Intestine"), "extravasation": ("818983003", "SCT", "Abdomen"),
         "kidney": ("64033007", "SCT", "Kidney"), "liver": ("10200004", "SCT", "Liver"),
         "spleen": ("78961009", "SCT", "Spleen")}

def class_name(
    organ: str,
    grade: str,   # of GRADES
) -> str:         # such as "liver: low-grade injury"
    "The name of a column of the submission for a reader."
    return f"{organ}: {grade}{'-grade injury' * (grade in ('low', 'high'))}"

CODES = {class_name(organ, grade): Reported(
    (f"{organ[:8]}_{grade}", SCHEME, f"Probability of {class_name(organ, grade)}"), SITES[organ])
    for organ, grades in GRADES.items() for grade in grades}
COLORS = dict(zip(ORGANS, ("red", "purple", "green", "cyan", "orange")))   # of the outlines
_BGR = {"red": (40, 39, 214), "purple": (189, 103, 148), "green": (44, 160, 44), "cyan": (207, 190, 23),
        "orange": (14, 127, 255)}
ABOUT = (f"The slices with the largest probability of each injury, or slices through the largest part of each organ. "
         f"Outlines: {', '.join(f'{o} {c}' for o, c in COLORS.items())}. Slices count from 0.").replace(
             "_", " ")

def maker_of(
    weights: Path,   # has segmenter.onnx and classifier.onnx
) -> Maker:
    "What made the results."
    return Maker("mammo_nb trauma", "".join(sha256(weights / f"{name}.onnx") for name in NAMES),
                 f"mammo_nb, {CAUTION}")

# %% [markdown]
# ## Slices
# A series may have no probability of a slice. Then the slice with the most of each organ is shown, or the middle one.

# %%
#| export
def chosen(
    reading: Reading,
) -> dict[int, str]:   # place -> words about it
    "The slices that are shown of a series."
    values = reading.slices()
    found = {}
    for place, _, _ in suspicious(values):
        best = values.iloc[place].dropna().sort_values(ascending=False, kind="stable")[:3]
        found[place] = ", ".join(f"{name} {p:.2f}" for name, p in best.items())
    if not found:
        for organ, curve in zip(ORGANS, visibility(reading.masks).T):
            if curve.any():
                place = int(curve.argmax())
                found[place] = ", ".join(filter(None, [found.get(place, ""), f"most of the {organ}"]))
    return {place: words.replace("_", " ") for place, words in found.items()} or {
        len(reading.masks) // 2: "the middle, no organ was found"}

def outlined(
    picture: np.ndarray,   # uint8 (rows, columns)
    masks: np.ndarray,     # bool (organs, size, size), of the same slice
) -> np.ndarray:           # uint8 (rows, columns, 3), BGR
    "A slice with the outlines of its organs."
    drawn = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    for organ, mask in zip(ORGANS, masks):
        whole = cv2.resize(mask.astype(np.float32), picture.shape[::-1]) > 0.5
        lines, _ = cv2.findContours(whole.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, lines, -1, _BGR[COLORS[organ]], 1)
    return drawn

def draw_slices(
    folder: Path,          # gets a PNG for each slice; what it has is removed
    volume: np.ndarray,    # uint8 (slices, rows, columns)
    reading: Reading,
    note: str,             # words about the weights
) -> list[dict]:           # place, picture, words
    "Draw the slices of a series that are shown."
    shutil.rmtree(folder, ignore_errors=True)
    found = []
    for place, words in chosen(reading).items():
        seen = [f"{o} {COLORS[o]}".replace("_", " ") for o, m in zip(ORGANS, reading.masks[place]) if m.any()]
        lines = [f"slice {place}: {words}", f"outlines: {', '.join(seen) or 'none'}", note or CAUTION]
        drawn = captioned(enlarged(outlined(np.array(volume[place]), reading.masks[place])), lines)
        write_png(folder / f"{place}.png", drawn)
        found.append({"place": place, "picture": f"{folder.name}/{place}.png", "words": words})
    return found

# %% [markdown]
# ## From the tables
# The number of an organ rests on the slice of each series that has the largest probability of any of its injuries.

# %%
#| export
def results_of(
    table: pd.DataFrame,     # rows of per_slice.csv
    studies: list[dict],     # patient_id, study, values: column of SUBMITTED -> probability
    drawn: list[dict],       # patient_id, study, series, and as from `draw_slices`
) -> tuple[list[Score], list[Shown]]:
    "The scores of each study, and the slices that are shown."
    placed = table[table["place"].ne("")]
    at = {(r["patient_id"], r["series"], int(r["place"])): r for r in placed.to_dict("records")}
    of_study = dict(list(placed.groupby(["patient_id", "study"], sort=False)))
    shown, shown_of = [], defaultdict(list)
    for s in drawn:
        row = at[s["patient_id"], s["series"], s["place"]]
        shown.append(Shown(s["patient_id"], s["study"], s["series"], s["place"], s["picture"], s["words"], row["file"],
                           str(row["frame"]), str(row["image_id"])))
        shown_of[s["patient_id"], s["study"]].append({name: row[name] for name in ("series", "file", "frame", "place")})
    scores = []
    for s in studies:
        key = s["patient_id"], s["study"]
        own = of_study.get(key, placed.iloc[:0])
        for organ, grades in GRADES.items():
            columns = [c for c in COLUMNS if c in own and c.startswith(organ)]
            values = own[columns].apply(pd.to_numeric).max(axis=1).dropna()
            best = values.groupby(own["series"]).idxmax() if len(values) else []
            rows = sorted((own.loc[k] for k in best), key=lambda row: -values[row.name])
            rows = tuple({name: row[name] for name in ("series", "file", "frame", "place")} for row in rows)
            scores += [Score(*key, "", class_name(organ, grade), s["values"][f"{organ}_{grade}"],
                             rows or tuple(shown_of[key])) for grade in grades]
    return scores, shown

def injured(
    scores: Sequence[Score],   # of one study
) -> dict[str, float]:         # organ -> probability that it is not healthy
    "What the list of exams shows of a study."
    of = {s.name: s.probability for s in scores}
    return {o: 1 - of[class_name(o, "healthy")] for o in GRADES if class_name(o, "healthy") in of}

# %% [markdown]
# ## What came out
# A slice of a drawn series, as a page and an archive show it:

# %%
z, y, x = np.mgrid[:slices, :120, :160]
liver = np.hypot(np.hypot((z - slices / 2) * .8, y - 56), x - 56) < 30
volume = (90 * (np.hypot((y - 60) / 52, (x - 80) / 74) < 1) + 80 * liver).astype(np.uint8)
masks = np.zeros((slices, len(ORGANS), 32, 32), bool)
masks[:, 0] = [cv2.resize(m.astype(np.float32), (32, 32)) > .5 for m in liver]
p = np.exp(-(np.arange(slices) - slices / 2)**2 / 50)
known, unknown = (Reading(masks, (0, 1, 0, 1), {"a": {"liver_injury": v}}) for v in (.8 * p, np.nan * p))
with tempfile.TemporaryDirectory() as folder:
    found = draw_slices(Path(folder) / "1.2.3", volume, known, "")
    picture = cv2.imread(str(Path(folder) / found[0]["picture"]))
assert found[0]["place"] == slices // 2 and found[0]["words"] == "liver injury 0.80"
assert np.ptp(picture, axis=2).max() > 0   # outlines have colours
assert list(chosen(unknown).values()) == ["most of the liver"]
assert all(len(r.name[0]) <= 16 for r in CODES.values()) and len({r.name[0] for r in CODES.values()}) == len(CODES)
plt.figure(figsize=(4, 3.6))
plt.imshow(picture[..., ::-1])
plt.axis("off");

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

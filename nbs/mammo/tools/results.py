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
# # Predictions as DICOM
# > For each predicted mammogram its preview as a picture of its study, and for each study a report with its breasts.
#
# `mammo-nb predict --dicom` writes both to the folder `dicom/`, for an archive that shows DICOM only. How they are made
# is in [Results as DICOM](../../core/76_dicom_results.py). The number of a breast is the mean of its standard views of
# this study, as in `per_breast.csv`. PNG and JPEG files, and files without the UIDs of a study, have no DICOM result;
# they are named.

# %%
#| default_exp mammo.tools.results

# %%
#| export
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammo_nb.core.dicom_results import (BREAST, CAUTION, PROBABILITY_OF_CANCER, SIDES, DicomResultError, Finding,
                                         Maker, read_source, save_result, secondary_capture, structured_report)
from mammo_nb.core.files import inside, sha256, short_hash
from mammo_nb.core.sidecars import read_entries

# %%
#| hide
import tempfile

from mammo_nb.core.pictures import write_png
from mammo_nb.mammo.phantom import make_competition

# %% tags=["parameters"]
patients = 1   # of the example

# %%
#| export
def findings_of(
    images: pd.DataFrame,          # patient_id, laterality, probability, source; the images that count, of one study
) -> list[Finding]:                # in the order of the images
    "A probability of cancer for each breast of a study."
    known = images[images["laterality"].isin(list(SIDES))]
    return [Finding(PROBABILITY_OF_CANCER, rows["probability"].mean(), BREAST, side, rows["source"].tolist())
            for (_, side), rows in known.groupby(["patient_id", "laterality"], sort=False)]

def write_results(
    # file, instance (of its frame), name (of the preview), patient_id, laterality, probability, counts (in its breast)
    images: pd.DataFrame,
    folder: Path,          # in which the files are
    output: Path,          # has previews/, gets dicom/
    weights: Path,         # with ensemble.onnx and its JSON
) -> dict:                 # pictures, reports: how many; problems: a sentence for each image without a result
    "Write pictures and reports for the images that have a probability."
    fast = ", fast: one network" if read_entries(weights / "ensemble.json").get("fast") else ""
    maker = Maker("mammo_nb mammo", sha256(weights / "ensemble.onnx"), f"mammo_nb, {CAUTION}{fast}")
    sources, problems = [], []
    images = images[images["probability"].notna()]
    for row in images.itertuples():
        try:
            source = read_source(inside(folder, row.file))
        except DicomResultError as e:
            problems.append(str(e))
            source = None
        else:
            picture = cv2.imread(str(output / "previews" / f"{row.name}.png"), cv2.IMREAD_COLOR_RGB)
            side = row.laterality if row.laterality in SIDES else ""
            made = secondary_capture(source, picture, maker, side, str(row.instance))
            save_result(made, output / "dicom" / f"{row.name}.dcm")
        sources.append(source)
    images = images.assign(source=sources)
    images = images[images["source"].notna()]
    studies, reports = images["source"].map(lambda s: str(s.StudyInstanceUID)), 0
    for study, rows in images[images["counts"]].groupby(studies, sort=False):
        if findings := findings_of(rows):
            save_result(structured_report(findings, maker), output / "dicom" / f"report_{short_hash(study)}.dcm")
            reports += 1
    return {"pictures": len(images), "reports": reports, "problems": problems}

# %% [markdown]
# ## What came out
# The images of a drawn patient, with numbers that are made up:

# %%
with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    make_competition(folder / "c", patients=patients, test_patients=1, frame=(160, 128), prevalence=.5, seed=1,
                     workers=1)
    table = pd.read_csv(folder / "c/train.csv", dtype=str)
    example = table[["patient_id", "laterality"]].assign(
        file=table["patient_id"] + "/" + table["image_id"] + ".dcm", name=table["image_id"], counts=True,
        instance=table["image_id"],
        probability=np.linspace(.1, .7, len(table)))
    for name in example["name"]:
        write_png(folder / "previews" / f"{name}.png", np.zeros((40, 60, 3), np.uint8))
    (folder / "ensemble.onnx").write_bytes(b"example")
    (folder / "ensemble.json").write_text("{}")
    made = write_results(example, folder / "c/train_images", folder, folder)
    assert made == {"pictures": len(table), "reports": patients, "problems": []}
made

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

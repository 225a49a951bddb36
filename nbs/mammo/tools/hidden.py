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
# # Hidden test set
# > A test set of drawn mammograms that is as difficult as a hidden one can be.
#
# The public test set of the competition is one patient with four images. The hidden one had everything: patients with a
# single image and with seven, and a machine that no training patient was imaged with. Here one file is truncated as
# well, and the tables have their rows in different orders. [The rehearsal](../../core/68_rehearse.py) predicts this
# set.

# %%
#| default_exp mammo.tools.hidden

# %%
#| export
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_nb.core.files import write_csv
from mammo_nb.mammo.drawing.machines import MACHINES
from mammo_nb.mammo.phantom import TEST_COLUMNS, make_image, plan

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt

from mammo_nb.core.dicom import read_frame

# %% tags=["parameters"]
frame = (320, 256)   # rows, columns of the drawn frames, in pixels

# %%
#| export
def odd_patients(
    seed: int = 7,
) -> tuple[dict, dict]:  # patient_id -> rows of `plan`; kind of oddity (single, seven, unseen, broken) -> patient_id
    "Six patients, of which four are odd."
    images = plan("test", 6, 0.3, seed)
    patients = list(dict.fromkeys(i["patient_id"] for i in images))
    of = {p: [i for i in images if i["patient_id"] == p] for p in patients}
    odd = dict(zip(("single", "seven", "unseen", "broken"), patients))
    of[odd["single"]] = of[odd["single"]][:1]
    seven = (of[odd["seven"]] * 2)[:7]
    of[odd["seven"]] = [
        {**image, "image_id": f"{image['image_id']}{k}", "entropy": (*image["entropy"], k), "number": k + 1}
        for k, image in enumerate(seven)]
    stranger = replace(MACHINES[2], machine_id=9999)
    of[odd["unseen"]] = [
        {**image, "machine": stranger, "machine_id": stranger.machine_id, "site_id": 9}
        for image in of[odd["unseen"]]]
    return of, odd

def hidden_test(
    root: Path,            # folder of the competition, made here
    frame: tuple[int, int] = (320, 256),  # rows, columns of the images, in pixels
    seed: int = 7,
) -> list[str]:            # the files that cannot be read
    "Write test.csv, sample_submission.csv and test_images/."
    of, odd = odd_patients(seed)
    images = [image for rows in of.values() for image in rows]
    for image in images:
        make_image(root, image, frame, 1.)
    shutil.rmtree(root / "truth")  # a hidden test set has no labels
    broken = root / "test_images" / odd["broken"] / f"{of[odd['broken']][0]['image_id']}.dcm"
    broken.write_bytes(broken.read_bytes()[:broken.stat().st_size // 3])
    rng, table = np.random.default_rng(seed), pd.DataFrame(images)
    table["prediction_id"] = table["patient_id"] + "_" + table["laterality"]
    write_csv(root / "test.csv", table[TEST_COLUMNS].iloc[rng.permutation(len(table))])
    ids = table["prediction_id"].unique()
    write_csv(root / "sample_submission.csv",
              pd.DataFrame({"prediction_id": ids[rng.permutation(len(ids))], "cancer": .02}))
    return [broken.relative_to(root).as_posix()]

# %%
root = Path(tempfile.mkdtemp()) / "competition"
broken, (_, odd) = hidden_test(root, frame), odd_patients()
test, sample = (pd.read_csv(root / f, dtype={"patient_id": str, "image_id": str})
                for f in ("test.csv", "sample_submission.csv"))
count = test["patient_id"].value_counts()
assert count[odd["single"]] == 1 and count[odd["seven"]] == 7
assert set(test.loc[test["patient_id"] == odd["unseen"], "machine_id"]) == {9999}
assert set(sample["prediction_id"]) == set(test["prediction_id"])
assert sample["prediction_id"].tolist() != test["prediction_id"].drop_duplicates().tolist()
assert all((root / "test_images" / r.patient_id / f"{r.image_id}.dcm").is_file() for r in test.itertuples())
print(f"{len(test)} images, {len(sample)} breasts, truncated: {broken[0]}")

# %% [markdown]
# ## What came out
# The patient with seven images:

# %%
seven = test[test["patient_id"] == odd["seven"]]
fig, axes = plt.subplots(1, 7, figsize=(12, 2.6))
for axis, row in zip(axes, seven.itertuples()):
    picture = read_frame(root / "test_images" / row.patient_id / f"{row.image_id}.dcm").decode()
    axis.imshow(picture.pixels, cmap="gray")
    axis.set_title(f"{row.laterality} {row.view}")
    axis.axis("off")

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

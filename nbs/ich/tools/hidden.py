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
# > A test set of drawn heads that is as difficult as a hidden one can be.
#
# Nobody sees the second test set of the competition before the submission runs. So this one has what was seen in other
# scans: a series of one slice, slices without a position, a localizer and a copy in a series, slices of another size,
# a file that is cut short, and a sample in random order. [The rehearsal](../../core/68_rehearse.py) predicts this set.

# %%
#| default_exp ich.tools.hidden

# %%
#| export
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_nb.core.files import write_csv
from mammo_nb.core.submission import change_tags, cut_short, halve_last, keep_first, remove_places
from mammo_nb.ich.phantom import label_rows, make_patient, plan
from mammo_nb.ich.reading.competition import SAMPLE
from mammo_nb.ich.recipes import CLASSES

# %%
#| hide
import tempfile

from mammo_nb.core.series import print_series, write_series

# %% tags=["parameters"]
size = 64     # rows and columns of a slice
slices = 8    # median length of a series

# %% [markdown]
# ## Odd series
# Each oddity is a change of the files of one drawn patient.

# %%
#| export
def _localizer(files: list[Path]):
    change_tags(files[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])

def _copied(files: list[Path]):
    shutil.copy(files[2], files[2].with_name("ID_00000c09e.dcm"))

ODD = {"single": keep_first, "placeless": remove_places, "localizer": _localizer, "copied": _copied,
       "smaller": halve_last, "broken": cut_short}  # kind -> function of the files of a series, in order

def hidden_test(
    root: Path,         # folder of the competition, made here
    size: int = 64,     # rows and columns of a slice
    slices: int = 8,    # median length of a series
    seed: int = 7,
) -> list[str]:         # the files that cannot be read
    "Write stage_2_sample_submission.csv and stage_2_test_images/."
    root, unreadable = Path(root), []
    folder = root / "stage_2_test_images"
    folder.mkdir(parents=True)
    for kind, patient in zip([*ODD, ""], plan("test", len(ODD) + 1, 0.6, slices, seed)):
        rows = pd.DataFrame(make_patient(root, patient, size, 1.0))
        files = [folder / f"{image}.dcm" for image in rows.loc[rows["series"] == rows["series"][0], "image_id"]]
        if kind:
            ODD[kind](files)
        if kind == "broken":
            unreadable = [files[1].relative_to(root).as_posix()]
    shutil.rmtree(root / "truth")  # a hidden test set has no labels
    images = sorted(path.stem for path in folder.glob("*.dcm"))
    rng = np.random.default_rng(seed)
    rng.shuffle(images)
    lost = "ID_fffffffff"  # a slice of the sample without a file
    table = pd.DataFrame({"image_id": [*images[1:], lost]})  # the first file is not in the sample
    rows = label_rows(table.assign(**dict.fromkeys(CLASSES, 0)))
    write_csv(root / SAMPLE, rows.iloc[rng.permutation(len(rows))].assign(Label=0.5))
    return unreadable

# %%
root = Path(tempfile.mkdtemp()) / "competition"
broken = hidden_test(root, size, slices)
sample, files = pd.read_csv(root / SAMPLE), sorted((root / "stage_2_test_images").glob("*.dcm"))
assert len(sample) == 6 * len(files) and sample["ID"].is_unique and not sample["ID"].is_monotonic_increasing
print(f"{len(files)} files, cut short: {broken[0]}")

# %% [markdown]
# ## What came out
# What the series reader says of these files:

# %%
found, series = write_series(root / "stage_2_test_images", root.parent / "out", workers=1)
assert print_series(found, series, root.parent / "out") == 1
found["note"].replace(r"ID_\w+", "ID", regex=True).value_counts()

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

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
# > A test set of drawn bodies that is as difficult as a hidden one can be.
#
# Nobody sees the second test set of the competition before the submission runs. So this one has what was seen in other
# scans: a series of one slice, slices without a position, a reformat in another orientation, slices of another size, a
# file that is cut short, a missing slice, a series in which nothing can be read, and a sample in random order. [The
# rehearsal](../../core/68_rehearse.py) predicts this set.

# %%
#| default_exp trauma.tools.hidden

# %%
#| export
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_nb.core.files import write_csv
from mammo_nb.core.submission import change_tags, cut_short, halve_last, keep_first, remove_places
from mammo_nb.trauma.phantom import make_patient, plan
from mammo_nb.trauma.reading.competition import SAMPLE, by_number
from mammo_nb.trauma.recipes import SUBMITTED

# %%
#| hide
import tempfile

from mammo_nb.core.series import print_series, write_series

# %% tags=["parameters"]
size = 32                  # rows and columns of a slice
lengths = (6, 8, 9)        # slices of the series, dealt out

# %% [markdown]
# ## Odd series
# Each oddity is a change of the files of one drawn series.

# %%
#| export
def _reformat(files: list[Path]):
    for path in files[:2]:
        change_tags(path, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])

def _missing(files: list[Path]):
    files[3].unlink()

def _broken(files: list[Path]):
    for path in files:
        path.write_bytes(path.read_bytes()[:300])

ODD = {"single": keep_first, "placeless": remove_places, "reformat": _reformat, "smaller": halve_last, "cut": cut_short,
       "missing": _missing, "broken": _broken}  # kind -> function of the files of a series, by instance

def hidden_test(
    root: Path,                                # folder of the competition, made here
    size: int = 32,                            # rows and columns of a slice
    lengths: tuple[int, ...] = (6, 8, 9),      # slices of the series, dealt out
    seed: int = 7,
) -> list[str]:                                # folders of the patients of whom nothing can be read
    "Write sample_submission.csv and test_images/."
    root, unreadable = Path(root), []
    root.mkdir(parents=True)
    planned = plan("test", len(ODD) + 2, 0.6, list(lengths), seed)
    for kind, patient in zip([*ODD, "", ""], planned):
        count = 1 if kind else 2
        make_patient(root, {**patient, "lengths": [*patient["lengths"], *lengths][:count]}, size, 1.0)
        if kind:
            series = next((root / "test_images" / str(patient["patient"])).iterdir())
            ODD[kind](sorted(series.glob("*.dcm"), key=lambda p: by_number(p.stem)))
        if kind == "broken":
            unreadable = [f"test_images/{patient['patient']}"]
    shutil.rmtree(root / "truth")  # a hidden test set has no labels
    rng = np.random.default_rng(seed)
    names = [str(p["patient"]) for p in planned[:-1]] + ["65534"]  # one is not asked for, and one has no images
    sample = pd.DataFrame({"patient_id": names}).assign(**dict.fromkeys(SUBMITTED, 0.5))
    write_csv(root / SAMPLE, sample.iloc[rng.permutation(len(sample))])
    return unreadable

# %%
root = Path(tempfile.mkdtemp()) / "competition"
broken = hidden_test(root, size, lengths)
sample = pd.read_csv(root / SAMPLE)
assert not sample["patient_id"].is_monotonic_increasing and len(broken) == 1
print(f"{len(sample)} patients, nothing can be read of {broken[0]}")

# %% [markdown]
# ## What came out
# What the series reader says of these files:

# %%
found, series = write_series(root / "test_images", root.parent / "out", workers=1)
print_series(found, series, root.parent / "out")
found["note"].replace(r"\d+", "#", regex=True).value_counts().head(8)

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

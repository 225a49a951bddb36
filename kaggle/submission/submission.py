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
# # mammo_nb: submission
# > The hidden test set in, `submission.csv` out, without internet.
#
# Packages come from one data set, networks from another; `make kaggle-push` makes and attaches both. Made for two T4
# and nine hours; what is dropped when the time runs short is said below.

# %% tags=["parameters"]
inputs = "/kaggle/input"                       # where Kaggle mounts what is attached
output = "/kaggle/working"                     # submission.csv goes here
competition = "rsna-breast-cancer-detection"
wheels = "mammo-nb-wheels"                     # names of the data sets
weights = "mammo-nb-weights"
extras = "[kaggle]"                            # decoding and engines on a GPU
budget = "8h30m"                               # of the nine hours
flip = False                                   # the mean of image and mirror image, for twice the time

# %% [markdown]
# ## What is attached
# Kaggle used to mount everything flat, `/kaggle/input/<name>`; now a competition is at `competitions/<name>` and a data
# set at `datasets/<owner>/<name>`.

# %% tags=["mounts"]
from pathlib import Path

def mounted(name):
    "The folder of an attached data set, competition or notebook."
    found = [
        p for pattern in (name, f"*/{name}", f"*/*/{name}") for p in sorted(Path(inputs).glob(pattern)) if p.is_dir()
    ]
    if not found:
        raise FileNotFoundError(
            f"{name} is not below {inputs}: attach it with Add Input. There are: "
            f"{', '.join(p.name for p in sorted(Path(inputs).glob('*'))) or 'no inputs'}."
        )
    return found[0]

# %%
for name in (competition, wheels, weights):
    print(mounted(name))

# %% [markdown]
# ## Packages

# %%
import importlib
import subprocess
import sys

shelf = mounted(wheels)
subprocess.run([
    sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--find-links",
    str(shelf), "--constraint",
    str(shelf / "constraints.txt"), f"mammo_nb{extras}"
], check=True)
importlib.invalidate_caches()

# %% [markdown]
# ## Predict

# %%
from mammo_nb.mammo.submit import submit

submit(mounted(competition), mounted(weights), Path(output), budget=budget, flip=flip)
print(Path(output, "submit.json").read_text())

# %% [markdown]
# ## What came out

# %%
import pandas as pd

per_image = pd.read_csv(Path(output, "test_per_image.csv"), dtype={"patient_id": str, "image_id": str})
print(f"{per_image['error'].notna().sum()} of {len(per_image)} images failed")
pd.read_csv(Path(output, "submission.csv")).head()

# %% [markdown]
# A few images with the breast that was found:

# %%
import matplotlib.pyplot as plt

from mammo_nb.core.dicom import read_frame

shown = per_image[per_image["error"].isna()].head(3)
for i, row in enumerate(shown.itertuples()):
    image = read_frame(mounted(competition) / row.file).decode()
    axis = plt.subplot(1, 3, i + 1)
    axis.imshow(image.pixels, cmap="gray" if image.header.photometric == "MONOCHROME2" else "gray_r")
    axis.add_patch(plt.Rectangle((row.x0, row.y0), row.x1 - row.x0, row.y1 - row.y0, fill=False, color="orange"))
    axis.set_title(f"{row.laterality} {row.view} {row.probability:.2f}")
    axis.axis("off")

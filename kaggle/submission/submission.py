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
# # mammo_nb: submission
# > The hidden test set in, `submission.csv` out, without internet.
#
# One data set has the packages and another the weights; `make kaggle-push` makes and attaches both. The manifest of the
# weights names the system, so this notebook serves all systems. It is made for two T4 and nine hours. The output below
# lists what was dropped if the time ran short.

# %% tags=["parameters"]
inputs = "/kaggle/input"                       # where Kaggle mounts what is attached
output = "/kaggle/working"                     # submission.csv goes here
competition = ""                               # name of the competition; "" takes the one of the system
wheels = "mammo-nb-wheels"                     # data set of the packages
weights = "mammo-nb-weights"                   # data set of the weights
extras = "[kaggle]"                            # packages for decoding and engines on a GPU
budget = "8h30m"                               # time limit, within the nine hours
flip = False                                   # horizontal-flip TTA, for twice the time

# %% [markdown]
# ## Inputs
# Kaggle used to mount everything flat, `/kaggle/input/<name>`. Now a competition is at `competitions/<name>` and a data
# set at `datasets/<owner>/<name>`.

# %% tags=["mounts"]
from pathlib import Path

def mounted(name):
    "The folder of an attached data set, competition or notebook."
    for pattern in (name, f"*/{name}", f"*/*/{name}"):
        for path in sorted(Path(inputs).glob(pattern)):
            if path.is_dir():
                return path
    attached = ", ".join(p.name for p in sorted(Path(inputs).glob("*"))) or "no inputs"
    raise FileNotFoundError(f"{name} is not below {inputs}: attach it with Add Input. There are: {attached}.")

# %%
for name in (wheels, weights):
    print(mounted(name))

# %% [markdown]
# ## Packages
# A wheel is installed only if it is the file that was made: `SHA256SUMS` has the digests of all.

# %% tags=["digests"]
import hashlib

def check_wheels(shelf):
    "Raise ValueError unless the wheels of a folder are those of its SHA256SUMS."
    lines = Path(shelf, "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    there = {p.name: p for p in Path(shelf).iterdir() if p.suffix == ".whl" or p.name == "constraints.txt"}
    wrong = sorted(sums.keys() ^ there.keys())
    wrong += [n for n in sums.keys() & there.keys() if hashlib.sha256(there[n].read_bytes()).hexdigest() != sums[n]]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} of {shelf} differs from SHA256SUMS: send the wheels again.")

# %%
import importlib
import subprocess
import sys

shelf = mounted(wheels)
check_wheels(shelf)
options = ["--quiet", "--no-index", "--find-links", str(shelf), "--constraint", str(shelf / "constraints.txt")]
subprocess.run([sys.executable, "-m", "pip", "install", *options, f"mammo_nb{extras}"], check=True)
importlib.invalidate_caches()

# %% [markdown]
# ## Predict

# %%
from mammo_nb.core.submission import read_submission
from mammo_nb.core.submit import submit

submission = read_submission(mounted(weights))
test_set = mounted(competition or submission.competition)
submit(submission, test_set, mounted(weights), Path(output), budget=budget, flip=flip)
print(Path(output, "submit.json").read_text())

# %% [markdown]
# ## What came out

# %%
import pandas as pd

items = pd.read_csv(Path(output, submission.table), dtype={"patient_id": str, "image_id": str})
print(f"{items['error'].notna().sum()} of {len(items)} rows of {submission.table} have an error")
pd.read_csv(Path(output, "submission.csv")).head()

# %% [markdown]
# A few of the items, if the system has a figure for them:

# %%
if submission.show:
    submission.show(items, test_set)

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
# # Toy
# > Count the dots in a picture: the smallest system, in two stages.
#
# This folder is all that a system needs. `tests/test_systems.py` copies it to `nbs/toy` of a checkout and runs
# `make reproduce SYSTEM=toy`; no other file changes.

# %%
#| default_exp toy.system

# %%
#| export
from dataclasses import dataclass

from mammo_nb.core.recipes import Recipe, bounded
from mammo_nb.core.systems import Mode, Stage, System

# %% [markdown]
# ## Sections
# A field has its unit and its range, so that an impossible value is an error before anything runs.

# %%
#| export
@dataclass(frozen=True)
class Draw:
    "Numbers of the drawn data set."
    pictures: int = bounded(32, low=2, high=100_000)  # number of pictures
    size: int = bounded(64, low=32, high=4096)        # rows and columns of a picture, pixels
    seed: int = bounded(1, low=0)

@dataclass(frozen=True)
class Count:
    "Numbers of the counter."
    threshold: float = bounded(0.5, low=0, high=1)    # grey level above which a pixel belongs to a dot

# %% [markdown]
# ## Stages

# %%
#| export
system = System(
    name="toy",
    title="Count the dots",
    stages=(Stage("draw", Draw, writes=("pictures/", "labels.csv")),
            Stage("count", Count, reads=("pictures/", "labels.csv"), writes=("counts.csv",))),
    modes={"full": Mode("both stages", ("draw", "count"))},
    recipes={"demo": Recipe("32 pictures; seconds on a laptop"), "tiny": Recipe("4 pictures", Draw(pictures=4))},
    failures={"counts.csv": "pictures"},
)

# %%
system.flow()

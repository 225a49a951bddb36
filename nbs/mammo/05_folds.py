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
# # Folds
# > A patient is in one fold only, and every fold has its share of cancers.
#
# Four views of one patient look alike. If two of them were on both sides of a split, the score would measure memory. `StratifiedGroupKFold` keeps a patient together and the share of cancers even; with 2 % of cancers, an uneven split makes folds that cannot be compared.

# %%
#| default_exp mammo.folds

# %%
#| export
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from mammo_nb.core.files import write_csv
from mammo_nb.core.folds import assign_folds, check_folds
from mammo_nb.core.stages import locate, stage
from mammo_nb.mammo.datasets import REQUIRED, read_table
from mammo_nb.mammo.recipes import get_section

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.folds import balance
from mammo_nb.core.stages import practice

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
recipe = "demo"                               # a name in mammo_nb.mammo.recipes
overrides = {}                                # changes to the section `folds`
reads = ["processed/cleaned_label.csv", "processed/crops.csv"]
writes = ["folds.csv"]                        # the unified table and `fold`

# %%
#| hide
if not run_dir:
    from mammo_nb.mammo import crops, datasets, detector, phantom  # slow to load, and not needed in a run
    run_dir, recipe = practice(phantom.run, datasets.run, detector.run, crops.run)

# %% [markdown]
# ## Run the stage
# An image whose crop failed cannot be trained on. It is left out here, after the split, so that one broken file moves no patient to another fold.

# %%
#| export
def run(
    run_dir: Path,                   # folder of the run
    recipe: str,                     # a recipe
    overrides: dict | None = None,   # changes to the section `folds`
) -> pd.DataFrame:                   # folds.csv
    "The unified table and crops.csv -> folds.csv."
    settings = get_section(recipe, "folds", overrides)
    reads = ["processed/cleaned_label.csv", "processed/crops.csv"]
    with stage(run_dir, "folds", reads=reads, writes=["folds.csv"], parameters=asdict(settings)):
        labels, crops = (read_table(locate(run_dir, r), []) for r in reads)
        table = assign_folds(labels[[*REQUIRED, *(c for c in labels if c not in REQUIRED)]], settings.n_folds, settings.seed)
        check_folds(table)
        failed = crops.loc[crops["error"].fillna("").ne(""), ["patient_id", "image_id"]]
        table = table.merge(failed.assign(failed=True), how="left", on=["patient_id", "image_id"])
        table = table[table.pop("failed").isna()].drop(columns=["file"])
        write_csv(locate(run_dir, "folds.csv"), table)
    return table

# %%
table = run(run_dir, recipe, overrides)
table.head()

# %% [markdown]
# ## What came out
# What the split balances, cancer, and what it does not see: age, density, site, machine.

# %%
balance(table, ["cancer", "site_id", "view", "laterality"])

# %%
breasts = table.drop_duplicates(["patient_id", "laterality"])
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8))
breasts.groupby("fold")["cancer"].agg(["size", "sum"]).set_axis(["breasts", "with cancer"], axis=1).plot.bar(ax=axes[0], rot=0).legend(loc="lower center", bbox_to_anchor=(.5, 1), ncol=2)
table.drop_duplicates("patient_id").boxplot("age", by="fold", ax=axes[1]); fig.suptitle(""); axes[1].set(title="age", xlabel="fold")
fig.tight_layout()

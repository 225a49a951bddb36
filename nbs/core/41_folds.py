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
# > A split that keeps each patient in one fold and the share of the rare class equal.
#
# If a patient is on both sides of a split, the score is too high, because the network has memorised this patient. The
# splitter is scikit-learn's. This notebook adds a check for leaks in any fold table, and a table of what the split does
# not balance.

# %%
#| default_exp core.folds

# %%
#| export
import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from mammo_nb.core.errors import ProjectError

# %% tags=["parameters"]
patients, seed = 400, 67   # of the random table below

# %%
#| export
class LeakageError(ProjectError):
    "Groups that are on both sides of a split; the text names some of them."

def check_folds(
    table: pd.DataFrame,       # has the columns `group` and `fold`
    group: str = "patient_id", # column with the groups
):
    "Raise `LeakageError` if a group is in more than one fold."
    count = table.groupby(group)["fold"].nunique()
    leaking = count.index[count > 1]
    if len(leaking):
        raise LeakageError(f"{len(leaking)} {group} in more than one fold, such as "
                           f"{', '.join(map(str, leaking[:5]))}. Split by {group}, not by image.")

def assign_folds(
    labels: pd.DataFrame,       # one row for each image; the result depends on the order of the rows
    n_folds: int = 4,           # number of folds
    seed: int = 67,             # the winner's
    label: str = "cancer",      # column of 0 and 1; its mean is about equal in all folds
    group: str = "patient_id",  # column with the groups, each of which is kept in one fold
) -> pd.DataFrame:              # `labels` and `fold`, 0 .. n_folds - 1
    """Split by scikit-learn's `StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)`, in table order. Raises
    ValueError if there are fewer groups with the label than folds."""
    carriers = labels.loc[labels[label] == 1, group].nunique()
    if carriers < n_folds:
        raise ValueError(f"{carriers} {group} with {label} = 1 cannot be spread over {n_folds} folds. "
                         "Choose fewer folds.")
    groups = labels[group]
    # the splitter sorts groups before it shuffles them, and as text "10" comes before "9": ids that are numbers are
    # split as numbers
    if groups.astype(str).str.fullmatch(r"\d{1,18}").all():
        groups = groups.astype("int64")
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    fold = np.empty(len(labels), int)
    for k, (_, held) in enumerate(splitter.split(labels, labels[label], groups)):
        fold[held] = k
    table = labels.assign(fold=fold)
    check_folds(table, group)
    return table

# %%
#| export
def balance(
    table: pd.DataFrame,   # `fold` and the columns
    columns: list[str],    # categories with a few values each; a missing value counts as a value
) -> pd.DataFrame:         # a row for each column and value, a column for each fold: share of the fold's rows
    "Distribution of columns over the folds, also of those that the split does not balance."
    parts = {
        c: pd.crosstab(table[c].astype("object").where(table[c].notna(), "missing"), table["fold"], normalize="columns")
        for c in columns
    }
    return pd.concat(parts, names=["column", "value"]).round(3)

# %%
rng = np.random.default_rng(seed)
made = pd.DataFrame({"patient_id": np.repeat([f"{i:04d}" for i in range(patients)], 4)})
made["cancer"] = np.repeat(rng.random(patients) < .1, 4).astype(int)
made["site_id"] = np.repeat(rng.choice(["1", "2"], patients), 4)
table = assign_folds(made)
balance(table, ["cancer", "site_id"])

# %%
table.groupby("fold")["cancer"].agg(["size", "sum"]).plot.bar(figsize=(5, 2.5), rot=0,
                                                              title="images and positives of a fold")

# %% [markdown]
# A fold table that was made by hand may leak. The check raises an error:

# %%
try:
    check_folds(table.assign(fold=np.arange(len(table)) % 4))
except LeakageError as e:
    print(e)

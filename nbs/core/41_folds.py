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
# > A split that keeps a patient whole and the rare class even.
#
# A patient on both sides of a split makes a score that measures memory. scikit-learn has the splitter; what is ours is
# the check that refuses a leak, whoever made the table, and the look at what the split did not balance.

# %%
#| default_exp core.folds

# %%
#| export
import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

# %%
#| hide
import matplotlib.pyplot as plt

# %% tags=["parameters"]
patients, seed = 400, 67   # a made-up table, for the picture

# %%
#| export
class LeakageError(Exception):
    "A group on both sides of a split; names some of them."

def check_folds(
    table: pd.DataFrame,       # `group` and `fold`
    group: str = "patient_id",
):
    "Raise `LeakageError` if a group is in more than one fold."
    count = table.groupby(group)["fold"].nunique()
    leaking = count.index[count > 1]
    if len(leaking):
        raise LeakageError(
            f"{len(leaking)} {group} in more than one fold, such as {', '.join(map(str, leaking[:5]))}: split by "
            f"{group}, not by image."
        )

def assign_folds(
    labels: pd.DataFrame,       # one row an image; the order of rows matters for the result
    n_folds: int = 4,
    seed: int = 67,             # the winner's
    label: str = "cancer",      # what is kept even
    group: str = "patient_id",  # what is kept together
) -> pd.DataFrame:              # `labels` and `fold`, 0 .. n_folds - 1
    "scikit-learn's `StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)` in table order."
    carriers = labels.loc[labels[label] == 1, group].nunique()
    if carriers < n_folds:
        raise ValueError(f"{carriers} {group} with {label} = 1 cannot be spread over {n_folds} folds")
    groups = labels[group]
    # the splitter sorts groups before it shuffles them, and text puts "10" before "9": ids that are numbers are split
    # as numbers
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
    columns: list[str],    # categories, a few values each; missing counts as a value
) -> pd.DataFrame:         # a row for each column and value, a column for each fold: share of the fold's rows
    "How a split spreads what it did and did not look at."
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
# A table made by hand may leak, and then nothing goes on:

# %%
try:
    check_folds(table.assign(fold=np.arange(len(table)) % 4))
except LeakageError as e:
    print(e)

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
# # Folds
# > A split that keeps each patient in one fold and the share of the rare class equal.
#
# If a patient is on both sides of a split, the score is too high, because the network has memorised this patient. This
# notebook has the split, a check for leaks in any fold table, and a table of what the split does not balance.

# %%
#| default_exp core.folds

# %%
#| export
import numpy as np
import pandas as pd

from mammo_nb.core.errors import ProjectError

# %%
#| hide
import sklearn
from sklearn.model_selection import StratifiedGroupKFold

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

# %% [markdown]
# ## The split
# Groups are shuffled. Then they are taken one after another, those with the most uneven classes first, and each goes to
# the fold in which it makes the classes most even. This is `StratifiedGroupKFold` of scikit-learn.
#
# The rule changed with scikit-learn 1.8, without a change of its name. Versions 1.2 to 1.7 shuffled the counts of the
# groups and forgot to shuffle the groups with them. Each group was then placed with the counts of another one, so the
# split is random, and the classes are as uneven as in any random split. Published splits were made so. Of the 54,706
# images of the mammography competition, 40,712 are in another fold by the newer rule; the positives of the four folds
# are 303, 283, 288 and 284 by the older rule, and 290, 292, 288 and 288 by the newer one. Both rules are written out
# here, so a split does not depend on the installed version.

# %%
#| export
RULES = {
    False: "StratifiedGroupKFold of scikit-learn 1.8 and later",
    True: "StratifiedGroupKFold of scikit-learn 1.2 to 1.7",
}   # by `faithful`; a run records the rule that made its folds

def stratified_groups(
    labels: np.ndarray,     # (n,) classes
    groups: np.ndarray,     # (n,) sorted before they are shuffled, so numbers and text differ
    n_folds: int,
    seed: int,
    faithful: bool = False, # the rule of scikit-learn 1.2 to 1.7
) -> np.ndarray:            # int (n,), 0 .. n_folds - 1
    "Split groups so that classes are even, as `StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)` does."
    _, classes, totals = np.unique(labels, return_inverse=True, return_counts=True)
    names, group_of = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), len(totals)))
    np.add.at(counts, (group_of, classes), 1)
    order = np.random.RandomState(seed).permutation(len(names))
    counts, held = counts[order], np.zeros((n_folds, len(totals)))
    fold = np.empty(len(names), int)
    one = np.eye(n_folds)[:, :, None]
    for place in np.argsort(-counts.std(1), kind="stable"):
        best, least, fewest = 0, np.inf, np.inf
        tried = ((held + one * counts[place]) / totals).std(1).mean(1)   # with the group in each of the folds
        for k, (uneven, images) in enumerate(zip(tried.tolist(), held.sum(1).tolist())):
            near = abs(uneven - least) <= 1e-8 + 1e-5 * least   # as numpy.isclose, which takes ten times as long
            if uneven < least or (near and images < fewest):
                best, least, fewest = k, uneven, images
        held[best] += counts[place]
        # the older rule gives the fold to the group that stood at this place before the shuffling
        fold[place if faithful else order[place]] = best
    return fold[group_of]

# %% [markdown]
# The older rule's positives per fold are uneven, the newer rule's are even. One of the two is that of the installed
# scikit-learn.

# %%
rng = np.random.default_rng(seed)
made = pd.DataFrame({"patient_id": np.repeat(np.arange(patients), 4)})
made["cancer"] = np.repeat(rng.random(patients) < .1, 4).astype(int)
made["site_id"] = np.repeat(rng.choice(["1", "2"], patients), 4)
folds = {rule: stratified_groups(made["cancer"], made["patient_id"], 4, seed, old) for old, rule in RULES.items()}
is_old = tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 8)
splitter = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
for k, (_, rows) in enumerate(splitter.split(made, made["cancer"], made["patient_id"])):
    assert (folds[RULES[is_old]][rows] == k).all()
positives = pd.DataFrame({rule: np.bincount(fold, made["cancer"]).astype(int) for rule, fold in folds.items()})
assert np.ptp(positives[RULES[False]]) <= 4
positives.T.rename_axis("positives of fold", axis=1)

# %% [markdown]
# A table is split by one of its columns, and the folds are checked.

# %%
#| export
def assign_folds(
    labels: pd.DataFrame,       # one row for each image, in any order
    n_folds: int = 4,           # number of folds
    seed: int = 67,             # the winner's
    label: str = "cancer",      # column of 0 and 1; its mean is about equal in all folds
    group: str = "patient_id",  # column with the groups, each of which is kept in one fold
    faithful: bool = False,     # the rule of scikit-learn 1.2 to 1.7, as in published splits
) -> pd.DataFrame:              # `labels` and `fold`, 0 .. n_folds - 1
    "Split a table by `stratified_groups`. Raises ValueError if there are fewer groups with the label than folds."
    carriers = labels.loc[labels[label] == 1, group].nunique()
    if carriers < n_folds:
        raise ValueError(f"{carriers} {group} with {label} = 1 cannot be spread over {n_folds} folds. "
                         "Choose fewer folds.")
    groups = labels[group]
    # the splitter sorts groups before it shuffles them, and as text "10" comes before "9": ids that are numbers are
    # split as numbers
    if groups.astype(str).str.fullmatch(r"\d{1,18}").all():
        groups = groups.astype("int64")
    fold = stratified_groups(labels[label].to_numpy(), groups.to_numpy(), n_folds, seed, faithful)
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

# %% [markdown]
# ---
# [← Learning](40_learning.py) · [Metrics →](42_metrics.py)

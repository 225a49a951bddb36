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
# # Sampler
# > Batches with at least one cancer each.
#
# In screening two images in a hundred show a cancer. A batch without a positive only teaches the network to predict
# "no", and the winner found that at least one positive in each batch made the training stable.

# %%
#| default_exp mammo.learning.sampler

# %%
#| export
import numpy as np

# %%
#| hide
import matplotlib.pyplot as plt

# %% tags=["parameters"]
negatives, positives = 140, 12   # images of the small example below
batch_size, ratio, seed = 8, 0.1429, 42

# %% [markdown]
# An epoch contains each negative once. The positives come from an endless sequence of shuffled copies of their list, so
# that each is used equally often; the sequence continues from epoch to epoch. Every place in an epoch has a seed of its
# own for its augmentation. Order and augmentation therefore do not depend on the number of loading processes or on an
# interruption. On several GPUs each process takes every n-th batch, so the number of batches is a multiple of n.

# %%
#| export
def _shuffled(positives: np.ndarray, start: int, count: int, seed: int) -> np.ndarray:
    "Elements `start` to `start + count` of an endless sequence of shuffled copies."
    n = len(positives)
    copies = range(start // n, (start + count - 1) // n + 1)
    sequence = np.concatenate([np.random.default_rng([seed, 1, c]).permutation(positives) for c in copies])
    return sequence[start % n:start % n + count]

def _with_seeds(rows: list[np.ndarray], batch_size: int, seed: int, epoch: int) -> list[list[tuple[int, int]]]:
    "Batches of (index, seed of the augmentation)."
    seeds = np.random.default_rng([seed, 2, epoch]).integers(2**31, size=(len(rows), batch_size))
    return [[(int(i), int(s)) for i, s in zip(row, seeds[b])] for b, row in enumerate(rows)]

def one_positive_batches(
    cancer: np.ndarray,  # 0 or 1 for each image
    batch_size: int,     # of one process
    ratio: float,        # positives per negative; a batch has at least one positive
    seed: int,           # of order and augmentation
    ranks: int = 1,      # number of processes that share the batches
):                       # f(epoch) -> batches of (index, seed); their number is a multiple of `ranks`
    """Sampler with at least one positive in each batch and each negative once in an epoch. Raises
    ValueError if a class is missing or the negatives are too few."""
    negatives, positives = np.flatnonzero(cancer == 0), np.flatnonzero(cancer == 1)
    if not len(positives) or not len(negatives):
        raise ValueError(f"Training needs images of both classes, and the training set has {len(positives)} positives "
                         f"and {len(negatives)} negatives. Choose other folds or another data set.")
    each = min(batch_size - 1, max(1, round(batch_size * ratio / (1 + ratio))))
    count = -(-len(negatives) // (batch_size - each) // ranks) * ranks
    if count > len(negatives):
        raise ValueError(f"{len(negatives)} negatives are too few for {ranks} processes. Use fewer processes.")

    def batches(epoch: int) -> list[list[tuple[int, int]]]:
        order = np.random.default_rng([seed, 0, epoch]).permutation(negatives)
        chosen = _shuffled(positives, epoch * count * each, count * each, seed)
        rows = [np.concatenate([chosen[b * each:(b + 1) * each], part])
                for b, part in enumerate(np.array_split(order, count))]
        return _with_seeds(rows, batch_size, seed, epoch)

    return batches

# %%
cancer = np.array([1] * positives + [0] * negatives)
batches = one_positive_batches(cancer, batch_size, ratio, seed)
first = [i for batch in batches(0) for i, _ in batch]
assert all(cancer[[i for i, _ in batch]].sum() >= 1 for epoch in range(3) for batch in batches(epoch))
assert sorted(i for i in first if not cancer[i]) == np.flatnonzero(cancer == 0).tolist()
assert batches(1) == batches(1) != batches(2)
print(f"{len(batches(0))} batches of {batch_size}, {cancer[[i for i, _ in batches(0)[0]]].sum()} positive in the first")

# %% [markdown]
# ## The winner's sampler
# The winner's batches differ in three ways. All of them have the same size, and negatives that fill no batch are left
# out of the epoch. The copies of the positives begin anew with every epoch, so what is left of the last copy is lost,
# and some positives are used more often than others. Order comes from another random generator, the same for all folds.
#
# The difference is small for a set as large as the winner's, with 5,560 positives and 69,840 negatives: 9,977 batches
# an epoch and one negative left out, where the sampler above has 9,978 batches, six of them with one negative less. In
# 31 epochs a positive is used 47 to 62 times, and by the sampler above 55 or 56 times. It is larger for a small set:
# with 82 positives and 118 negatives, 6 negatives are left out, and in 35 epochs a positive is used 2 to 15 times, and
# above 7 or 8 times.

# %%
#| export
def winner_batches(
    cancer: np.ndarray,  # 0 or 1 for each image
    batch_size: int,     # of one process
    ratio: float,        # positives per negative; may not ask for more than one positive in a batch
    seed: int,           # of order and augmentation
    ranks: int = 1,      # number of processes that share the batches
):                       # f(epoch) -> batches of (index, seed); their number is a multiple of `ranks`
    "The winner's sampler: the first of a batch is its one positive. Raises ValueError if no batch can be filled so."
    negatives, positives = np.flatnonzero(cancer == 0), np.flatnonzero(cancer == 1)
    wanted = int(ratio * len(negatives))
    count = (wanted + len(negatives)) // batch_size
    if not len(positives) or not count or wanted >= 2 * count:
        raise ValueError(f"The winner's batches of {batch_size} have one positive each, which {len(positives)} "
                         f"positives, {len(negatives)} negatives and positive_ratio {ratio} do not give. "
                         "Set train.faithful to False.")
    count, copies = min(count, len(negatives) // (batch_size - 1)), -(-count // len(positives))

    def batches(epoch: int) -> list[list[tuple[int, int]]]:
        rng = np.random.RandomState(seed)
        for _ in range(epoch + 1):  # one sequence of random numbers for all epochs
            chosen = np.concatenate([rng.permutation(positives) for _ in range(copies)])
            rng.permutation(count)  # drawn there and of no effect with one positive in a batch
            order = rng.permutation(negatives)
        rows = np.column_stack([chosen[:count], order[:count * (batch_size - 1)].reshape(count, -1)])
        return _with_seeds(rows[:count // ranks * ranks], batch_size, seed, epoch)

    return batches

# %%
theirs = winner_batches(cancer, batch_size, ratio, seed)
assert all(cancer[[i for i, _ in batch]].tolist() == [1] + [0] * 7 for epoch in range(3) for batch in theirs(epoch))
print(f"{len(theirs(0))} batches of {batch_size}")

# %% [markdown]
# ## What came out
# How often each image is used in ten epochs: a negative ten times, and a positive as often as the others within one.

# %%
used = np.bincount([i for epoch in range(10) for batch in batches(epoch) for i, _ in batch], minlength=len(cancer))
assert set(used[cancer == 0]) == {10} and np.ptp(used[cancer == 1]) <= 1
plt.figure(figsize=(6, 2))
plt.bar(range(len(used)), used, width=1, color=np.where(cancer, "orange", "grey"))
plt.xlabel("image, positives first")
plt.ylabel("times used");

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

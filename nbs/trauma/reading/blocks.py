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
# # Blocks
# > Which slices of a series a network reads: in blocks one after the other, or spread over the whole series.
#
# A network reads 96 slices as 32 triplets. The published code cuts a series into blocks of 100 slices and leaves the
# last four of each out; its authors describe 96 slices spread evenly over the series. Both are here.

# %%
#| default_exp trauma.reading.blocks

# %%
#| export
import numpy as np

from mammo_nb.trauma.recipes import Blocks

# %%
#| hide
import matplotlib.pyplot as plt

# %% tags=["parameters"]
lengths = (18, 130, 250, 450)   # slices of the series that are shown

# %% [markdown]
# ## Rows
# A series above the cutoff is thinned. What is left is cut into blocks; if it is no multiple, one more block ends at
# the last slice and overlaps the one before. A short series is stretched by repeating slices.

# %%
#| export
def block_rows(
    length: int,             # slices of the series
    how: Blocks = Blocks(),
) -> list[np.ndarray]:       # rows of each block; `how.keep` of them
    "The slices of each block, in order."
    if how.sampling == "equidistant":
        return [np.linspace(0, length - 1, how.keep).round().astype(int)]
    rows = np.arange(0, length, how.stride if length > how.cutoff else 1)
    if len(rows) < how.step:
        # products of fractions are truncated, as in the original: of 50 slices one differs from whole-number division
        stretched = (np.linspace(0, 1, how.step, endpoint=False) * len(rows)).astype(int)
        return [rows[stretched][:how.keep]]
    starts = [*range(0, len(rows) - how.step + 1, how.step)]
    if len(rows) % how.step:
        starts.append(len(rows) - how.step)
    return [rows[start:start + how.step][:how.keep] for start in starts]

def middle_rows(
    rows: np.ndarray,  # of a block
) -> np.ndarray:       # of its triplets: the second, the fifth, ...
    "The middle slice of each triplet, which has the labels."
    return rows[1:len(rows) - len(rows) % 3:3]

# %%
counts = {length: len(block_rows(length)) for length in (18, 99, 100, 101, 150, 200, 400, 402, 450, 700)}
assert counts == {18: 1, 99: 1, 100: 1, 101: 2, 150: 2, 200: 2, 400: 4, 402: 3, 450: 3, 700: 4}
assert block_rows(450)[2][[0, -1]].tolist() == [250, 440] and len(middle_rows(block_rows(18)[0])) == 32
counts

# %% [markdown]
# ## What came out
# Each line is a block of 96 slices. The slices in grey are in no block.

# %%
fig, axes = plt.subplots(len(lengths), 2, figsize=(11, 1.2 * len(lengths)))
for row, length in zip(axes, lengths):
    for ax, sampling in zip(row, ("blocks", "equidistant")):
        found = block_rows(length, Blocks(sampling=sampling))
        lost = np.setdiff1d(np.arange(length), np.concatenate(found))
        ax.plot(lost, np.full(len(lost), -0.5), "|", color="grey")
        for k, rows in enumerate(found):
            ax.plot(rows, np.full(len(rows), k), "|", color="#46719c")
        ax.set_title(f"{length} slices, {sampling}", fontsize=8)
        ax.set_yticks([])
fig.tight_layout()

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

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
# # Learning
# > Chapter 4 of core: from a table of labels to a trained network.
#
# Nothing here depends on a system: a system brings data, network, loss and recipe. Read in the order of the numbers.
#
# 1. `41_folds` splits patients into folds. A split with a leak is an error.
# 2. `42_metrics` scores predictions: pF1, thresholds, AUC, average precision. Intervals are in chapter 7.
# 3. `43_ranks` lets several processes train one network.
# 4. `44_networks` makes networks, reads and writes their weights.
# 5. `45_optimisation` has the numbers of a training, the field `loop` of a section, and the learning-rate schedules.
# 6. `46_batches` handles inputs and outputs of several tensors, and pads sequences of unequal length.
# 7. `47_steps` takes one step: optimiser, precision, losses, EMA, checkpoint.
# 8. `48_train` is the training loop, `fit`.
# 9. `49_labels` brings labels of organs, drawn voxel by voxel, to the grid of a series.
#
# To train a network of your own, read `45_optimisation` and the last two sections of `48_train`.

# %% [markdown]
# ---
# [← Stream](39_stream.py) · [Folds →](41_folds.py)

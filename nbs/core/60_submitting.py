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
# # Submitting
# > Chapter 6: from the weights of a system to a valid submission at Kaggle.
#
# A system declares what is particular to its competition. Everything else about a submission is here, once for all
# systems. The notebooks of this chapter in their reading order, each of which imports only those before it:
#
# | notebook | what it has |
# |---|---|
# | [61_budget](61_budget.py) | a time limit, the measured speed, and the cheaper modes of a prediction |
# | [62_submission](62_submission.py) | the declaration of a system: its test set, items, networks and submission |
# | [63_submit](63_submit.py) | one pass through the test set, with a valid file from the first second |
# | [64_wheels](64_wheels.py) | the packages that Kaggle's image lacks, as wheels, and the proof that none is missing |
# | [65_kernels](65_kernels.py) | metadata, weights and stages as Kaggle takes them |
# | [66_publishing](66_publishing.py) | sending data sets and kernels, and waiting for them |
# | [67_isolation](67_isolation.py) | an environment with the packages of the image only, and no network |
# | [68_rehearse](68_rehearse.py) | the whole submission here as it would run at Kaggle |
# | [69_reports](69_reports.py) | tables and figures that the reports of all systems share |
#
# To make a system submit, read 62 and then the submit stage of an existing system, which ends with an object
# `submission`. The commands are in [the Kaggle commands](../80_kaggle.py).

# %% [markdown]
# ---
# [← YOLOX](59_yolox.py) · [Budget →](61_budget.py)

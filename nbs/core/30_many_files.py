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
# # Chapter 3: many files
# > From one file to a data set: fetching it, and one row for each of its files.
#
# A data set of a competition has tens of thousands of files and hundreds of gigabytes. Everything that runs over all of
# them takes hours, so this chapter is about interruptions: nothing that is finished is computed or downloaded again,
# and a file that fails becomes a row with its reason. Read the notebooks in the order of their numbers.
#
# | notebook | what it gives |
# |---|---|
# | `31_fetch` | a download that continues after an interruption; a ZIP archive that is unpacked safely |
# | `32_kaggle` | competitions and data sets of Kaggle, fetched with the user's own credentials |
# | `33_processes` | one row per item, computed by processes that survive the crash of one of them |
# | `34_cluster` | the same rows, computed on the machines of a Dask cluster |
# | `35_parallel` | `map_files`: one function and many files give one table, which an interruption does not damage |
# | `36_geometry`, `37_volumes`, `38_series` | a folder of slices becomes series that are ordered in space |
# | `39_stream` | processes that decode and a network that predicts, at the same time |
#
# Most readers need `35_parallel` only. `39_stream` is for predicting within a time limit, as in a submission.

# %% [markdown]
# ---
# [← HU](29_hu.py) · [Fetch →](31_fetch.py)

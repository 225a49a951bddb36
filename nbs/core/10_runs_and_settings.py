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
# # Chapter 1: files, settings, runs
# > What a run is, where its files are, and what decides that a stage runs again.
#
# Read in this order:
#
# 1. `11_errors`: the base class of errors that the user can mend.
# 2. `12_files`: every file is written under a temporary name and then renamed.
# 3. `13_settings`: `settings.ini`, where data enters and where results go.
# 4. `14_notebooks`: the conversion between `.py`, `.ipynb` and the package.
# 5. `15_recipes`: sections with ranges, overrides, recipes.
# 6. `16_systems`: the declaration of a system: stages, modes, recipes.
# 7. `17_runs`: one run: its folder, the contract of a stage, the manifest.
# 8. `18_stages`: when a stage runs again, and how it runs.
# 9. `19_practice`: a small run for a stage notebook that is opened on its own.
#
# `core` has eight chapters; the first digit of a number is the chapter: 1 files, settings, runs; 2 pixels; 3 many
# files; 4 learning; 5 running networks; 6 submitting; 7 evidence; 8 results. A notebook imports only lower numbers.
# To add a system, start with `15_recipes` and `16_systems`, then read `tests/toy`, a whole system of two stages.

# %% [markdown]
# ---
# [← Start here](../00_start.py) · [Errors →](11_errors.py)

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
# # Results
# > Chapter 8 of core: what a reader and an archive get of a prediction.
#
# A table is for a program. A reader wants a page, and the archive of a hospital wants DICOM. Both are made here for all
# systems. A system says what its numbers are called and draws its pictures.
#
# 1. `81_exams` has the parts of a page, and writes the pages of a folder.
# 2. `82_studies` is for systems that read series: from the rows of a prediction to exams, their pages, and their
#    pictures and reports as [DICOM](76_dicom_results.py).

# %% [markdown]
# ---
# [← Site](79_site.py) · [Exams →](81_exams.py)

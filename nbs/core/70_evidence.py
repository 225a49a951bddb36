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
# # Evidence
# > Chapter 7 of core: how sure a score is, and whether one model is better than another.
#
# A score without an interval says little: with forty cancers, an AUC of 0.80 may as well be 0.73 or 0.87. The scores
# here are computed from out-of-fold predictions, so they need no network and no image. Read in the order of the
# numbers.
#
# 1. `71_uncertainty` draws patients with replacement. Every interval of the project comes from it.
# 2. `72_calibration` asks whether of a hundred breasts with a probability of 0.3 thirty have cancer, and mends it.
# 3. `73_estimates` is the table of all scores of a binary outcome, with intervals.
# 4. `74_delong` compares the AUC of two models on the same items.
# 5. `75_comparison` compares two runs of one system, as `mammo-nb compare` does.
# 6. `76_dicom_results` writes predictions as pictures and reports for the archive of a hospital.
# 7. `77_explanations` draws heat maps, and measures whether their peaks lie inside lesions.
# 8. `78_pages` makes pages of notebooks, guides and modules, and `79_site` a web site of them.

# %% [markdown]
# ---
# [← Reports](69_reports.py) · [Uncertainty →](71_uncertainty.py)

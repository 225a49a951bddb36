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
# # Pixels
# > Chapter 2: from a file to numbers whose meaning is known.
#
# A medical image is a header and stored numbers. Each notebook of this chapter takes one step from the bytes of a file
# to grey levels or Hounsfield units. All of them raise typed errors that name the file, the tag and the remedy. None
# of them depends on an organ or a competition; a system that needs more tags derives its own header.
#
# Read in this order:
#
# | notebook | what it has |
# |---|---|
# | [21 headers](21_headers.py) | the errors; the tags of an image as plain, checked values |
# | [22 pictures](22_pictures.py) | grey pictures in PNG and JPEG; resizing, writing and showing pictures |
# | [23 codestreams](23_codestreams.py) | the first bytes of a compressed frame; sign and precision of stored values |
# | [24 decoders](24_decoders.py) | the decoding libraries in one table, and one function that chooses among them |
# | [25 parsing](25_parsing.py) | from bytes to elements, up to the pixels; the header of each frame |
# | [26 dicom](26_dicom.py) | one way to read a header, a frame, or all frames of a file |
# | [27 windows](27_windows.py) | from stored values to grey levels |
# | [28 grey](28_grey.py) | every step from stored values to grey levels, in the order of the standard |
# | [29 hu](29_hu.py) | from stored values to Hounsfield units, with the known mistakes corrected |
#
# To read images, [dicom](26_dicom.py) and then [grey](28_grey.py) or [hu](29_hu.py) are enough. A folder with
# whole series is read by chapter 3: [36 geometry](36_geometry.py) and [37 volumes](37_volumes.py) put slices in the
# order of the patient, and [38 series](38_series.py) writes the tables of a folder.

# %% [markdown]
# ---
# [← Practice](19_practice.py) · [Headers →](21_headers.py)

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
# # Blank pictures
# > Whether a picture shows a breast at all: black, saturated, noisy and tiny pictures do not.
#
# A network gives a probability for any picture, and for a black one it may be the highest of all. Nothing about such a
# number is true. So the crop is looked at first, and a picture without a breast gets no probability.

# %%
#| default_exp mammo.reading.blank

# %%
#| export
import numpy as np

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd

from mammo_nb.core.dicom import find_files, read_frame
from mammo_nb.core.practice import practice
from mammo_nb.core.windows import to_grey
from mammo_nb.mammo.system import system

# %% tags=["parameters"]
folder = ""   # mammograms; "" draws a small competition

# %%
#| hide
folder = folder or practice(system, before="datasets").path("competition/train_images")

# %% [markdown]
# ## The rules
# Tissue has many grey levels between black and white, and neighbouring pixels of tissue resemble each other. In noise
# they do not, and in a frame that is half black and half noise they do so only across the edge. The limits leave room:
# the drawn and the real mammograms below and in the tests are far from each of them.

# %%
#| export
NO_BREAST = "no breast found"
SMALLEST = 32       # pixels of the shorter side of a frame
THINNEST = 12.0     # longer side of a frame or box, divided by the shorter
FEWEST_GREYS = 10   # grey levels between the darkest and the brightest hundredth of the pixels
LEAST_TISSUE = .02  # share of pixels that are neither black nor white
LEAST_SMOOTH = .75  # correlation of neighbouring pixels
SAMPLED = 128       # rows and columns that are measured, evenly spaced; a large picture needs no more memory

def _neighbours(grey: np.ndarray) -> float:
    "Correlation of each pixel with the next one in its row, in some of the rows."
    rows = grey[::max(1, len(grey) // SAMPLED)].astype(np.float32)
    here, after = rows[:, :-1].ravel(), rows[:, 1:].ravel()
    spread = here.std() * after.std()
    return float(((here - here.mean()) * (after - after.mean())).mean() / spread) if spread else 1.0

def smoothness(
    grey: np.ndarray,  # uint8 (rows, columns)
) -> float:            # -1 to 1
    "Correlation of neighbouring pixels (Pearson), in the direction in which it is lower."
    return min(_neighbours(grey), _neighbours(grey.T))

def tissue_share(
    grey: np.ndarray,  # uint8 (rows, columns)
) -> float:            # 0 to 1
    "Share of the pixels that are neither black nor white."
    return float(((grey > 4) & (grey < 251)).mean())

def why_blank(
    grey: np.ndarray,        # uint8 (rows, columns), the crop after its window
    frame: tuple[int, int],  # rows, columns of the whole frame, in pixels
    box: tuple[int, int, int, int],  # x0, y0, x1, y1 of the breast, in pixels of the frame
) -> str:                    # the reason; "" for a picture that may show a breast
    "Say why a picture shows no breast."
    if min(frame) < SMALLEST:
        return f"the frame has {frame[0]} x {frame[1]} pixels"
    sides = (frame, (box[3] - box[1], box[2] - box[0]))
    if any(max(side) > THINNEST * max(1, min(side)) for side in sides):
        return "the picture is a thin strip"
    some = grey[::max(1, grey.shape[0] // SAMPLED), ::max(1, grey.shape[1] // SAMPLED)]
    low, high = np.percentile(some, (1, 99))
    if high - low < FEWEST_GREYS:
        return "saturated, all white" if low >= 250 else f"one grey level, about {round(float(low))} of 255"
    if tissue_share(some) < LEAST_TISSUE:
        return "only black and white"
    if smoothness(grey) < LEAST_SMOOTH:
        return "noise without smooth tissue"
    return ""

# %% [markdown]
# Pictures that show no breast:

# %%
side = (256, 192)
noise = np.random.default_rng(0).integers(0, 256, side, np.uint8)
half = np.where(np.arange(side[1]) < 96, noise, 0).astype(np.uint8)
text = np.zeros(side, np.uint8)
text[::24, 20:150] = 255
pictures = {"black": np.zeros(side, np.uint8), "white": np.full(side, 255, np.uint8), "noise": noise,
            "half noise": half, "text": text, "16 x 16": noise[:16, :16], "one row": noise[:1]}
reasons = {name: why_blank(p, p.shape, (0, 0, *p.shape[::-1])) for name, p in pictures.items()}
assert all(reasons.values())
pd.Series(reasons, name="reason").to_frame()

# %% [markdown]
# ## What came out
# The measures of the drawn mammograms, with the limits as lines: none is near.

# %%
rows = []
for file in find_files(folder)[0][:40]:
    image = read_frame(folder / file).decode()
    grey = to_grey(image.pixels, image.header)
    assert not why_blank(grey, grey.shape, (0, 0, *grey.shape[::-1])), file
    rows.append({"tissue": tissue_share(grey), "smooth": smoothness(grey)})
measured = pd.DataFrame(rows)
fig, axes = plt.subplots(1, 2, figsize=(7, 2.4))
for ax, (name, limit) in zip(axes, (("tissue", LEAST_TISSUE), ("smooth", LEAST_SMOOTH))):
    ax.hist(measured[name], bins=20)
    ax.axvline(limit, color="tab:red")
    ax.set(xlabel=name, ylabel="pictures")
fig.tight_layout()

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

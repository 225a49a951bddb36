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
# # Where we leave the originals
# > Every place where a system differs from the code that it rebuilds, how much, why, and the switch that undoes it.
#
# The systems are written anew. The code of the originals and ours were run on the same inputs, piece by piece. Where
# nothing is listed here, both give the same numbers within rounding, and `tests/test_parity_*.py` check it. Where the
# original has a defect, the default is mended, and the original's way stands behind a switch. A switch is named as
# `SET` takes it, stage and field: `make reproduce SET="crops.faithful=True"`. Weights remember the switches they were
# trained with, so a prediction needs none. The recipes `winner*` and `baseline_tiny` have the switches on; those of the
# CT systems keep the mended defaults.
#
# Sizes were measured on the inputs of the comparison, which are drawn, unless a row says otherwise. "Not measured"
# means that nobody has run both sides: most of it needs a GPU.

# %%
from IPython.display import Markdown

HEAD = ("what", "original", "ours", "size of the difference", "why", "switch")

def table(rows: list[tuple]) -> Markdown:
    "The rows of a system as a table."
    return Markdown("\n".join("| " + " | ".join(line) + " |" for line in (HEAD, ["---"] * len(HEAD), *rows)))

# %% [markdown]
# ## Mammography, the winner of 2023
# Equal without a switch: network, loss, learning rates, EMA, groups of parameters, soft pF1, choice of thresholds,
# ensemble, and the labels of five of six data sets. The recipes `winner*` have all switches on but `half_windows`.

# %%
MAMMO = [
    ("folds", "`StratifiedGroupKFold` of scikit-learn 1.2, which gives groups the counts of other groups",
     "both rules are written out; by default that of scikit-learn 1.8 and later",
     "40,712 of 54,706 rows are in another fold; positives 303, 283, 288, 284 against 290, 292, 288, 288",
     "folds of a small set are far more even by the newer rule", "`folds.faithful`"),
    ("box: mapping to the frame", "both axes are divided by one ratio and truncated",
     "each axis by its own ratio, rounded outwards", "48 of 82 boxes by up to 13 pixels; 23 of 34 of Otsu's by up to 9",
     "no tissue is cut off", "`crops.faithful`"),
    ("box: edge of the tissue", "the box of the detector or of Otsu's threshold as it was found",
     "the box is moved to the edge of the tissue in it, and gets a margin (`crops.growth`, `crops.margin`)",
     "80 drawn frames, the demo's detector: mean IoU .926 to .960; 1.9 % to 0 of the breast outside",
     "no tissue is cut off", "`crops.faithful`"),
    ("box: input of the detector", "sides truncated, so that 54 of 200 sizes give 415 pixels; grey levels as floats",
     "sides rounded; whole levels", "a row or column of pixels; parts of a level in more than 99 % of the pixels",
     "a frame can be decoded at a smaller size", "`crops.faithful`"),
    ("box: frames without a window", "clipped at the 99th percentile before the resize", "clipped after the resize",
     "up to 41 levels of the detector's view (MiniDDSM)", "a smaller frame of floats", "`crops.faithful`"),
    ("decoding", "the whole frame", "no larger than the crop needs",
     "not measured; only recipes that name a size are concerned", "a third of the time or less", "`crops.faithful`"),
    ("grey levels: cast", "16 bits become signed, so that 32,768 and more turn negative", "values as they are",
     "two images of CMMD", "the cast is a defect", "`crops.faithful`"),
    ("grey levels: order", "whole levels, then the resize in training; the resize, then whole levels in the submission",
     "the same order in training and prediction", "0.8 to 7.1 % of the pixels between the two orders",
     "a network sees what it was trained on", "`crops.faithful`"),
    ("grey levels: white", "of a picture without a window the 99th percentile minus 1; 8 bits are scaled, too",
     "the 99th percentile; 8 bits unchanged", "0.1 % of the pixels (16 bits), 19 % by up to 2 levels (8 bits)",
     "the 1 is a slip, which its author names", "`crops.faithful`"),
    ("grey levels: tags beside the window",
     "rescale, lookup tables, PixelPaddingValue and Presentation LUT Shape are not read",
     "all steps of the standard (PS3.3 C.11)",
     "none on ordinary files; a file with such a tag is another picture: mean 134 where 54 is right",
     "a wrong picture was shown in silence", "`crops.faithful`"),
    ("pictures without a breast", "predicted as any other", "marked, and left out of the predictions",
     "a black frame had the highest probability of all", "a blank frame is no cancer", "`crops.faithful`"),
    ("the same by command", "as above", "as above", "as above",
     "crops for published weights", "`mammo-nb crops --faithful`"),
    ("windows on the GPU", "the two numbers of a window are held as float16 (J2K and JPEG Lossless in the submission)",
     "32 bits, also with `crops.faithful`",
     "none where float16 holds both; else 1.6 to 3.2 % of the pixels by a level; from a width of 65,520 on all is grey",
     "it concerns predictions only; the crops of the training were made on the CPU", "`crops.half_windows`"),
    ("fitting a crop", "sides truncated, one bilinear step",
     "sides rounded; halved first where it shrinks by 2 or more",
     "148 of 200 sizes; up to 33 % of the pixels, 1.7 levels on average; 51 % and 1.8 at the worst",
     "halving counts all pixels", "`train.faithful`"),
    ("augmentation", "brightness, contrast and downscale cut decimals off; elastic and grid distortion read aside",
     "rounded; around the middle, within the picture",
     "up to 68 % of the pixels, by +0.13 to +0.68 levels on average; grid distortion up to 1.9 pixels",
     "no picture becomes darker by rounding", "`train.faithful`"),
    ("sampler", "positives are dealt anew in each epoch, negatives that fill no batch are left out",
     "one sequence over all epochs; every negative once",
     "on the winner's data one of 69,840 negatives; a positive is used 47 to 62 times in 31 epochs, against 55 or 56",
     "all images count alike", "`train.faithful`"),
    ("predictions that are no number", "count as 0 in the mean", "an error of that image, which is left out",
     ".180 against .227 for a breast", "a silent 0 hides a broken network", "`crops.faithful`, `train.faithful`"),
    ("detector: frames", "decoded in full, stored as JPEG, then resized", "decoded at the size that is needed",
     "not measured", "time; no JPEG blocks", "`detector.faithful`"),
    ("detector: cells", "an older YOLOX: all cells in a box or near its centre", "YOLOX since August 2022",
     "not measured", "the library's own way", "`detector.faithful`"),
    ("detector: shared patients", "3 of 216 patients are in training and validation", "they are in the training only",
     "their frames of the 50 that choose the epoch", "a leak", "`detector.faithful`"),
    ("precision", "float16 with a scaler in training and validation; TF32",
     "bfloat16 where the device has it, else float16; 32 bits in validation; TF32 for convolutions; channels last",
     "of a probability against 32 bits: bfloat16 0.0025, float16 0.00015, TF32 0.0002, channels last 0.0000003",
     "no overflow; the same result twice", "`train.loop.precision` is fp16"),
    ("random numbers", "those of its libraries; cuDNN is free to choose", "our own; deterministic", "other draws",
     "the same result twice", "none"),
    ("checkpoints", "also in the middle of the epochs 10 to 18", "at the end of each epoch",
     "none; whole epochs were chosen in the end", "less to score", "none"),
    ("decision", "float32 is compared with the threshold", "the same, for all recipes", "none",
     "in 64 bits every breast at 0.31 would be positive", "none"),
    ("data sets: order", "folders of CMMD and BMCD as the operating system lists them", "sorted",
     "243 of 328 rows of BMCD; it decides which images are together in a batch", "the same everywhere", "none"),
    ("data sets: BMCD", "no row for a prior image that is absent", "a row, and an error when its crop is made",
     "none; the published set has all 328", "nothing is left out silently", "none"),
    ("data sets: CDD-CESM", "other names of patients", "the names in the names of files", "names of files only",
     "one patient, one name", "none"),
]
table(MAMMO)

# %% [markdown]
# ## The baseline, a walk-through of 2023
# Equal without a switch: grey levels, boxes and padding to the pixel, normalisation, weights and number of the draws,
# the network within 1e-5, and the mean with the mirror image.

# %%
BASELINE = [
    ("threshold of the box", "the text says Otsu; the flag 16 of its code is OpenCV's triangle method",
     "the triangle method", "none; with Otsu's every box differs, and the pictures by 13 to 21 levels on average",
     "it ran, and on 104 drawn frames it never cuts the breast (Otsu: more than a tenth of it on 3)", "none"),
    ("a frame without contrast", "an error, which ends the program", "kept whole, black", "such frames only",
     "one file must not end a run", "none"),
    ("stochastic depth", "torchvision's 0.1", "0 in `demo` and `tiny`, 0.1 in `baseline_tiny`", "of the training only",
     "six epochs are too short for it", "none; `train.drop_path_rate`"),
    ("initial weights", "torchvision's ConvNeXt-tiny", "EfficientNet-Lite0 in `demo`, torchvision's in `baseline_tiny`",
     "another network", "a demo runs without a hub", "none; `train.weights`"),
    ("head", "LayerNorm and linear layer start anew, both from torch's defaults",
     "the LayerNorm keeps its ImageNet weights; the linear layer starts as timm's", "not measured",
     "the LayerNorm fits the features before it", "`train.faithful`"),
    ("equal thresholds", "the first", "the one nearest to 0.5", "0.25 against 0.5 in the figures",
     "the first lies at the edge of the plateau", "`train.faithful`"),
    ("pF1 of the training", "its sums start at 1e-6", "0 without a positive",
     "below 1e-5; it decides between ties", "no score from nothing", "`train.faithful`"),
    ("weight decay", "AdamW decays all parameters", "biases, normalisations and scales of layers are not decayed",
     "not measured; the decay itself is not published", "the usual way", "`train.loop.decay_all`"),
    ("precision", "float16 with a scaler", "bfloat16 where the device has it; float16 in `baseline_tiny`",
     "not measured", "no overflow", "`train.loop.precision` is fp16"),
    ("folds", "`StratifiedGroupKFold` of scikit-learn 1.2 or near it, without a seed",
     "the rule of scikit-learn 1.8 and later, with a seed", "another split, as with any seed",
     "even folds; the same ones as the winner's system, for the comparison", "`folds.faithful` has the older rule"),
    ("random numbers", "no seed", "seeds of draws and flips", "other draws", "the same result twice",
     "none; `train.loop.seed`"),
]
table(BASELINE)

# %% [markdown]
# ## Head CT, the second place of 2019
# Equal without a switch: ResNeXt-101, LSTM, loss, metric, bag, and the folds of `folds.method="original"`.

# %%
ICH = [
    ("values", "slope and intercept of the header, nothing is repaired", "lost signs and lost intercepts are repaired",
     "a file without its intercept: 61 levels on average, and all its tissue has one level",
     "such files are in the competition", "`prepare.faithful`"),
    ("windows", "shifted so that the darkest pixel of each channel is black; truncated", "not shifted; rounded",
     "usual slices: 3 to 18 % of the pixels by one level; a slice without air: up to 82 levels, 27 on average",
     "the same tissue has the same level in all slices", "`prepare.faithful`"),
    ("crop", "everything that is not black, with every thin line", "what is thicker than a fifteenth of the picture",
     "3 to 32 pixels in pictures of 80 to 140", "a headrest is no head; the write-up describes it so",
     "`prepare.faithful`"),
    ("whole pictures", "stretched to a square", "padded to a square", "only pictures that are not square",
     "proportions are kept", "`prepare.faithful`"),
    ("order of slices", "by x, then y, then z; doubled slices stay", "along the normal; doubled slices are left out",
     "tilted or sagittal series, and doubled slices", "the order in the patient", "`prepare.faithful`"),
    ("padding of a batch", "the LSTM reads the zeros before a shorter series", "it does not",
     "up to 0.12 of a logit of the small network", "a prediction must not depend on the other series of a batch",
     "`sequence.faithful`"),
    ("folds", "place of a patient's first image, modulo 5", "balanced by hemorrhages in recipes for few patients",
     "another split", "folds of few patients must be alike", "none; `folds.method`"),
    ("stored pictures", "JPEG", "PNG", "not measured", "no loss", "none"),
    ("a series of one slice", "an error", "predicted", "such series only", "one series must not end a run", "none"),
    ("precision", "apex O1, float16", "bfloat16 where the device has it, else float16; the sequence in 32 bits",
     "not measured", "no overflow", "`classify.loop.precision` is fp16"),
]
table(ICH)

# %% [markdown]
# ## Abdominal trauma, the first place of 2023
# Equal without a switch: blocks, soft labels, networks, losses, learning rates, metric, and scaling as published. The
# original's inference was never published; what joins blocks, series and models follows its write-up.

# %%
TRAUMA = [
    ("order of slices", "by the number in the file's name", "along the normal",
     "series whose numbers do not follow the patient", "the order in the patient", "`volumes.faithful`"),
    ("values", "slope and intercept of the header, nothing is repaired", "lost signs and lost intercepts are repaired",
     "negative values of 12 in 16 bits: all pixels, 184 levels on average", "such files are in the competition",
     "`volumes.faithful`"),
    ("grey levels", "decimals are cut off", "rounded", "9 to 50 % of the pixels by one level", "no bias",
     "`volumes.faithful`"),
    ("windows of the 3D training", "the last starts are left out; a short series becomes whole numbers, 0 or 1",
     "the last window ends at the last slice; levels stay as they are",
     "1 to 16 slices at the end of a series are never seen; series of at most 32 kept slices lose their grey levels",
     "the end of a series holds the bowel", "`segment.faithful`"),
    ("outlines of organs", "arrays are turned by fixed flips", "put on the slices by their geometry",
     "none for the competition's files", "files of other sources lie otherwise", "`segment.faithful`"),
    ("last block of the measurement", "copied into whole numbers, also a full one", "as the others",
     "up to 32 slices of every series: only pure white is left", "a defect", "`info.faithful`"),
    ("crop", "from the first to the last pixel, which is cut off", "with the last pixel", "1 of 128 pixels a side",
     "a defect", "`info.faithful`"),
    ("a bowel that is not found", "its visibility is no number, so neither are label and loss", "visibility 0",
     "such series; one of the four of the figures", "one series must not end a training", "`info.faithful`"),
    ("folds", "patients with equally many slices in the order of an unstable sort", "in the order of their ids",
     "such patients; the order depends on the processor", "the same folds everywhere", "`folds.faithful`"),
    ("a bad submission", "a NameError in the metric", "an error that says what is wrong", "the message only",
     "a reader can act on it", "none"),
    ("scaling", "factors of the scripts that validate", "fitted on out-of-fold predictions", "not measured",
     "factors belong to the models that are scaled", "none; `ensemble.scaling`"),
    ("precision", "float16 with a scaler", "bfloat16 where the device has it, else float16 with a scaler",
     "not measured", "no overflow", "`segment.loop.precision` is fp16"),
]
table(TRAUMA)

# %% [markdown]
# ---
# [← Start here](00_start.py) · [Kaggle commands →](80_kaggle.py)

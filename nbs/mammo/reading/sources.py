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
# # Sources
# > A list of all data sets: where each is published, how it is read, and how large it should be.
#
# The readers are in `published` and in `own`. Here each of them gets the facts of its set: where it is published, which
# terms have to be accepted, the layout of its folder, how its grey levels are scaled, which of its images must have the
# same label, and how many images there should be.

# %%
#| default_exp mammo.reading.sources

# %%
#| export
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from mammo_nb.mammo.reading.cbis import CBIS_TABLES, read_cbis
from mammo_nb.mammo.reading.labels import DatasetError
from mammo_nb.mammo.reading.own import own_table, read_own
from mammo_nb.mammo.reading.published import (CDD_TABLES, CMMD_TABLES, MINIDDSM_TABLES, read_bmcd, read_cddcesm,
                                              read_cmmd, read_miniddsm, read_rsna, read_vindr)

# %%
#| hide
import matplotlib.pyplot as plt

# %% [markdown]
# ## The list
# A name that is not in the list is somebody's own data set.

# %%
#| export
BREAST = ("patient_id", "laterality")

@dataclass(frozen=True)
class Source:
    "A data set as it is published."
    read: Callable           # folder -> table with REQUIRED, KEPT where known, and `file`
    tables: tuple            # possible names of its table of labels; (): the CSV file of the folder
    url: str
    accept: str              # the terms that have to be accepted
    layout: str              # the files below its folder
    scaling: str             # window, percentile or none; "": window for DICOM, percentile for 16 bits, none for 8
    agree: tuple = BREAST    # images with equal values in these columns must have the same label; (): none
    patients: int | None = None   # published number of patients, after the rule
    images: int | None = None     # published number of images, after the rule
    positives: int | None = None  # published number of positive images, after the rule

SMALL = "cbis_ddsm_mass_256"  # masses of the training split of CBIS-DDSM, 256 pixels a side
_TCIA = "the data usage policy of TCIA, and CC BY 4.0"

READERS = {
    "rsna-breast-cancer-detection": Source(
        read_rsna, ("train.csv",), "https://www.kaggle.com/competitions/rsna-breast-cancer-detection",
        "the rules of the competition, on Kaggle",
        "train.csv, test.csv, sample_submission.csv, {train,test}_images/<patient_id>/<image_id>.dcm", "window",
        images=54_706, positives=1_158),
    "vindr": Source(
        read_vindr, ("breast-level_annotations.csv",), "https://physionet.org/content/vindr-mammo/1.0.0/",
        "restricted access: an account at PhysioNet and the data use agreement of the set",
        "breast-level_annotations.csv, metadata.csv, images/<study_id>/<image_id>.dicom",
        "window", BREAST, 5_000, 20_000, 226),
    "miniddsm": Source(
        read_miniddsm, MINIDDSM_TABLES, "https://www.kaggle.com/datasets/cheddad/miniddsm2",
        "the terms of its page, with an account at Kaggle",
        "Data-MoreThanTwoMasks/Data-MoreThanTwoMasks.xlsx, MINI-DDSM-Complete-PNG-16/<Status>/<number>/<fileName>",
        "percentile", BREAST, 1_952, 7_808, 1_480),
    "cmmd": Source(
        read_cmmd, CMMD_TABLES, "https://www.cancerimagingarchive.net/collection/cmmd/",
        f"{_TCIA}; the images come through the NBIA Data Retriever",
        "CMMD_clinicaldata_revision.xlsx (or the same as label.csv), CMMD/<ID1>/<date>/<series>/1-<N>.dcm",
        "window", BREAST, 1_775, 5_202, 2_632),
    "cddcesm": Source(
        read_cddcesm, CDD_TABLES, "https://www.cancerimagingarchive.net/collection/cdd-cesm/", _TCIA,
        "Radiology manual annotations.xlsx, 'Low energy images of CDD-CESM'/<Image_name>.jpg",
        "percentile", (), 326, 1_003, 331),
    "bmcd": Source(
        read_bmcd, ("label.csv",), "https://zenodo.org/record/5036062",
        "CC BY 4.0; label.csv is bmcd_raw_label.csv of the winner's repository, "
        "github.com/dangnh0611/kaggle_rsna_breast_cancer, assets/data",
        "label.csv, Dataset/{Suspicious,Normal}_cases/<dir>/{CC,MLO}_{recent,prior}.dcm", "window", (*BREAST, "exam"),
        82, 328, 22),
    "cbis": Source(
        read_cbis, CBIS_TABLES, "https://www.cancerimagingarchive.net/collection/cbis-ddsm/ (DICOM, 164 GB), or "
        "https://www.kaggle.com/datasets/awsaf49/cbis-ddsm-breast-cancer-image-dataset (JPEG, about 6 GB)",
        "CC BY 3.0 and the data usage policy of TCIA, with its citation doi.org/10.7937/K9/TCIA.2016.7O02S9CY; at "
        "Kaggle the terms of its page",
        "{mass,calc}_case_description_{train,test}_set.csv and CBIS-DDSM/<case>/<study>/<series>/1-<n>.dcm of TCIA (as "
        "its retriever writes them, also in manifest-<n>/); or csv/ and jpeg/ of Kaggle. Files of masses alone are "
        "enough. RECIPE=cbis reads a smaller copy: nbs/mammo/tools/smaller.py makes it", ""),
    SMALL: Source(
        read_own, (), "the data set cbis (make data DATASET=cbis), made smaller by nbs/mammo/tools/smaller.py",
        "CC BY 3.0, the licence of CBIS-DDSM", "labels.csv, img/<patient>_<side>_<view>.png, mask/<same>.png", "none",
        BREAST, 691, 1_231, 602),
    "own": Source(
        read_own, (), "yours", "nothing",
        "a CSV with patient_id, laterality, view, cancer and image_id or file; PNG, JPEG or DICOM files beside it or "
        "in one folder, such as images/",
        ""),
}

def source_of(
    name: str,    # name of a data set
) -> Source:
    """Look up a data set. A name that is not in the list is somebody's own set. The synthetic competition is read like
    the real one."""
    if name == "phantom":
        return replace(READERS["rsna-breast-cancer-detection"], url="drawn by the run itself", accept="nothing",
                       images=None, positives=None)
    return READERS.get(name, READERS["own"])

def label_table(
    name: str,     # name of a data set
    folder: Path,  # folder of the set
) -> str:          # path relative to the folder
    "Find the table that the reader of a set reads. Raises DatasetError."
    tables = source_of(name).tables or (own_table(folder),)
    found = next((t for t in tables if (Path(folder) / t).is_file()), None)
    if not found:
        raise DatasetError(f"{folder} has no {' or '.join(tables)}. {how_to_get(name)}")
    return found

def how_to_get(
    name: str,  # name of a data set
) -> str:       # a few lines of text
    "Describe where a set is published, what to accept, and what its folder must contain."
    source = source_of(name)
    if source is READERS["own"] and name != "own":
        published = ", ".join(n for n in READERS if n != "own")
        return (f"{name}: no published set has this name ({published}). For a set of your own, put into the folder "
                f"{name}: {source.layout}")
    return f"{name}: from {source.url}\n  to accept: {source.accept}\n  layout of the folder {name}: {source.layout}"

def totals(
    name: str,            # name of a data set
    table: pd.DataFrame,  # the table of its reader
) -> pd.DataFrame:        # what, found, published (missing if no number is published)
    "Count patients, images and positive images, beside the published numbers."
    source = source_of(name)
    found = [table["patient_id"].nunique(), len(table), int(table["cancer"].sum())]
    published = pd.array([source.patients, source.images, source.positives], "Int64")
    return pd.DataFrame({"what": ["patients", "images", "positive images"], "found": found, "published": published})

# %%
print(how_to_get("vindr"))
pd.DataFrame([{"name": name, **{c: getattr(s, c) for c in ("patients", "images", "positives", "scaling", "accept")}}
              for name, s in READERS.items()])

# %% [markdown]
# ## What came out
# The share of positive images. A screening population has about 2 %; the other sets were collected from ill patients.
# For the whole CBIS-DDSM no count by our rule is published.

# %%
known = {name: s.positives / s.images for name, s in READERS.items() if s.positives}
plt.figure(figsize=(6, 2.4))
plt.barh(list(known), list(known.values()))
plt.gca().invert_yaxis()
plt.xlabel("share of positive images")
plt.tight_layout()

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

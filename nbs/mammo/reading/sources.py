# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sources
# > Six published data sets and anybody's own, each read from the layout it is published in, with its rule for what
# > counts as cancer written down.
#
# What a data set calls positive is a decision, and most of what goes wrong with mixed data is decided here: VinDr gives
# a radiologist's suspicion, CMMD a biopsy, BMCD an earlier image of a breast that is ill today. The rules are the
# winner's (facts, section 1). A value that no rule knows is an error, since everything unknown would otherwise pass for
# healthy.

# %%
#| default_exp mammo.reading.sources

# %%
#| export
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import pandas as pd

from mammo_nb.core.dicom import ENDINGS
from mammo_nb.core.headers import DicomError
from mammo_nb.core.raster import PICTURES
from mammo_nb.mammo.reading.mammograms import read_header

# %%
#| hide
import tempfile

import cv2
import matplotlib.pyplot as plt
import numpy as np

# %% tags=["parameters"]
own = ""   # a folder with a CSV and images, read at the end; "" makes a small one

# %%
#| export
REQUIRED = ["patient_id", "image_id", "laterality", "view", "cancer"]
KEPT = ["site_id", "age", "density", "BIRADS", "machine_id", "implant"]  # where the data set knows them

class DatasetError(Exception):
    "A table that cannot be used: file, what is wrong with it, and where."

# %% [markdown]
# ## Tables
# Ids become parts of file names, so an id that climbs out of its folder is an error and not a file somewhere else.

# %%
#| export
def read_table(
    path: Path,        # a CSV
    required: list,    # columns that must be there
) -> pd.DataFrame:     # every id as text
    "Read a table and refuse it if a column is missing or an id is no file name."
    path = Path(path)
    if not path.exists():
        raise DatasetError(
            f"{path} is not there. A competition goes below `raw` of settings.ini, in the layout of the README.")
    table = pd.read_csv(
        path, dtype={
            c: str
            for c in ("patient_id", "image_id", "prediction_id", "site_id", "machine_id", "dataset", "scaling", "error")
        }, keep_default_na=True)
    missing = [c for c in required if c not in table]
    if missing:
        raise DatasetError(f"{path.name} has no column {', '.join(missing)}; it has {', '.join(table.columns)}.")
    for c in {"patient_id", "image_id"} & set(table.columns):
        bad = table[c].isna() | ~table[c].fillna("").str.fullmatch(r"[^/\\\x00]+") | table[c].isin([".", ".."])
        if bad.any():
            raise DatasetError(f"{path.name}, row {bad.idxmax() + 2}: {c} {table[c][bad.idxmax()]!r} is no file name.")
    return table

# %% [markdown]
# Tables of labels come as CSV and as Excel sheets, with blanks around words and with words such as `NA` that mean
# something. All of it is read as text, and each reader says what it makes of it.

# %%
#| export
def read_labels(
    folder: Path,      # of the data set
    names: tuple,      # of the table, CSV or Excel; the first that is there
    required: list,    # columns that must be there
    sheet: str | int = 0,  # of an Excel file
) -> pd.DataFrame:     # text without blanks around it, "" for an empty cell
    "A published table of labels."
    path = next((Path(folder) / name for name in names if (Path(folder) / name).is_file()), None)
    if path is None:
        raise DatasetError(f"{folder} has no {' or '.join(names)}.")
    try:
        table = pd.read_excel(path, sheet, dtype=str, keep_default_na=False) if path.suffix == ".xlsx" else pd.read_csv(
            path, dtype=str, keep_default_na=False)
    except (ValueError, OSError, KeyError, BadZipFile) as e:
        raise DatasetError(f"{path.name} cannot be read as a table: {e}. Fetch it again.") from e
    table.columns = [str(c).strip() for c in table.columns]
    if missing := [c for c in required if c not in table]:
        raise DatasetError(f"{path.name} has no column {', '.join(missing)}; it has {', '.join(table.columns)}.")
    return table.fillna("").apply(lambda column: column.str.strip())

def _known(labels: pd.DataFrame, column: str, meanings: dict) -> pd.Series:
    "What the words of a column mean; a word without a meaning is an error."
    if (odd := labels[column][~labels[column].isin(list(meanings))]).size:
        raise DatasetError(
            f"{len(odd)} rows have a {column} that is unknown, such as {odd.iloc[0]!r} in row {odd.index[0] + 2}; "
            f"known are {', '.join(map(repr, meanings))}."
        )
    return labels[column].map(meanings)

def _number(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column, errors="coerce")

SIDES = {"L": "L", "LEFT": "L", "R": "R", "RIGHT": "R"}

def _side(column: pd.Series) -> pd.Series:
    return column.str.strip().str.upper().map(SIDES)  # nan, which is refused later, for anything else

# %%
folder = Path(tempfile.mkdtemp())
(folder / "label.csv").write_text("patient, biopsy \n007, NA \n008,BENIGN\n")
labels = read_labels(folder, ("label.xlsx", "label.csv"), ["biopsy"])
assert labels["patient"].tolist() == ["007", "008"] and labels["biopsy"].tolist() == ["NA", "BENIGN"]
for attempt in (lambda: read_labels(folder, ("label.xlsx",), []), lambda: read_labels(folder, ("label.csv",), ["age"]),
                lambda: _known(labels, "biopsy", {"BENIGN": 0, "DCIS": 1})):
    try:
        attempt()
    except DatasetError as e:
        print(e)
    else:
        raise AssertionError(attempt)

# %% [markdown]
# ## RSNA
# The competition's own table.

# %%
#| export
def read_rsna(
    folder: Path,     # train.csv, train_images/{patient_id}/{image_id}.dcm
) -> pd.DataFrame:    # the table as it is
    "RSNA. Positive: `cancer` of train.csv, which is the breast's."
    return read_table(Path(folder) / "train.csv", REQUIRED)

# %% [markdown]
# ## VinDr
# No biopsies: a BI-RADS category for each breast, by radiologists. Only 5 counts as cancer; 4 is suspicion, which most
# often turns out harmless, and the winner doubted afterwards whether leaving it among the negatives was right.

# %%
#| export
def read_vindr(
    folder: Path,     # breast-level_annotations.csv, images/{study_id}/{image_id}.dicom
) -> pd.DataFrame:
    "VinDr-Mammo. Positive: the breast's BI-RADS is 5, and 4 is negative. A study is a patient."
    table = read_labels(folder, ("breast-level_annotations.csv",),
                        ["study_id", "image_id", "laterality", "view_position", "breast_birads", "breast_density"])
    birads = _known(table, "breast_birads", {f"BI-RADS {k}": k for k in range(7)})
    found = pd.DataFrame({
        "patient_id": table["study_id"], "image_id": table["image_id"], "laterality": _side(
            table["laterality"]), "view": table["view_position"], "cancer": (birads == 5).astype(int),
        "density": table["breast_density"].str.removeprefix("DENSITY "), "BIRADS": birads,
        "file": "images/" + table["study_id"] + "/" + table["image_id"] + ".dicom"
    })
    if (Path(folder) / "metadata.csv").is_file():
        of = read_labels(folder, ("metadata.csv",), ["SOP Instance UID"])
        if "Patient's Age" in of:
            found["age"] = found["image_id"].map(
                _number(of["Patient's Age"].str.extract(r"^(\d+)Y", expand=False)).set_axis(
                    of["SOP Instance UID"]).groupby(level=0).first())
    return found

# %%
(folder / "breast-level_annotations.csv"
 ).write_text("study_id,image_id,laterality,view_position,breast_birads,breast_density\n" + "".join(
     f"s{k},i{k},L,CC,BI-RADS {k},DENSITY B\n" for k in (1, 4, 5)))
vindr = read_vindr(folder)
assert vindr["cancer"].tolist() == [0, 0, 1]
vindr

# %% [markdown]
# ## MiniDDSM
# Scanned film. The status is the patient's, so it does not say which breast is ill; the drawn contour of a tumour does.
# Where there is none the sheet has a dash, and where there is one the path of a mask.

# %%
#| export
def read_miniddsm(
    # Data-MoreThanTwoMasks/Data-MoreThanTwoMasks.xlsx, MINI-DDSM-Complete-PNG-16/{Status}/{number}/{fileName}
    folder: Path,
) -> pd.DataFrame:
    """MiniDDSM. Positive: the patient's Status is Cancer, and on any image of that side Tumour_Contour is longer than 5
    characters. Ids take `_` where the original has `|`, which is no safe file name."""
    table = read_labels(folder, READERS["miniddsm"].tables, ["fileName", "Side", "View", "Status", "Tumour_Contour"])
    parts = table["fileName"].str.extract(r"^([^_./\\]+_([^_./\\]+)[^./\\]*)\.[^/\\]+$")
    if (bad := parts[0].isna()).any():
        raise DatasetError(
            f"fileName {table['fileName'][bad.idxmax()]!r} in row {bad.idxmax() + 2} is not of the form "
            "A_1234_1.LEFT_CC.png."
        )
    contour = (table["Tumour_Contour"].str.len() > 5).groupby([parts[0], table["Side"]]).transform("any")
    ill = _known(table, "Status", {"Normal": 0, "Benign": 0, "Cancer": 1})
    found = pd.DataFrame({
        "patient_id": parts[0], "image_id": parts[0] + "_" + table["Side"] + "_" + table["View"], "laterality": _side(
            table["Side"]), "view": table["View"], "cancer": ill * contour,
        "file": "MINI-DDSM-Complete-PNG-16/" + table["Status"] + "/" + parts[1] + "/" + table["fileName"]
    })
    if "Age" in table:
        found["age"] = _number(table["Age"])
    if "Density" in table:
        found["density"] = table["Density"].map(dict(zip("01234", "AABCD")))
    return found

# %% [markdown]
# ## CMMD
# A line for each breast that has been biopsied; the other breast of the patient is in the images only, and counts as
# normal. Side and view stand in the DICOM headers, so this reader opens every file.

# %%
#| export
def _only_folder(folder: Path) -> Path:
    "The one folder in a folder."
    inner = sorted(p for p in folder.iterdir() if p.is_dir())
    if len(inner) != 1:
        raise DatasetError(
            f"{folder} has {len(inner)} folders, one is expected: CMMD/{{ID1}}/{{date}}/{{series}}/1-N.dcm.")
    return inner[0]

def _cmmd_images(root: Path) -> pd.DataFrame:
    "patient_id, image_id, laterality, view, file of every image, by name."
    rows, broken = [], []
    for patient in sorted(p for p in (root / "CMMD").glob("*") if p.is_dir()):
        for path in sorted(_only_folder(_only_folder(patient)).glob("*.dcm")):
            try:
                header = read_header(path)
            except DicomError as e:
                broken.append(f"{path.relative_to(root)}: {e}")
            else:
                rows.append((patient.name, f"{patient.name}_{path.stem}", header.laterality, header.view,
                             path.relative_to(root).as_posix()))
    if broken:
        raise DatasetError(
            f"{len(broken)} files have no readable header, and the side stands there: {'; '.join(broken[:3])}. Fetch "
            "them again."
        )
    if not rows:
        raise DatasetError(f"{root} has no images CMMD/{{ID1}}/{{date}}/{{series}}/1-N.dcm.")
    return pd.DataFrame(rows, columns=["patient_id", "image_id", "laterality", "view", "file"])

def read_cmmd(
    folder: Path,     # label.csv, or CMMD_clinicaldata_revision.xlsx as published; CMMD/{ID1}/{date}/{series}/1-N.dcm
) -> pd.DataFrame:
    """CMMD. Positive: the breast's classification is Malignant; a breast that the table does not name is Normal. Age is
    the patient's, for both breasts."""
    table = read_labels(folder, READERS["cmmd"].tables, ["ID1", "LeftRight", "Age", "classification"])
    table["cancer"] = _known(table, "classification", {"Malignant": 1, "Benign": 0})
    if (twice := table.duplicated(["ID1", "LeftRight"])).any():
        raise DatasetError(
            f"breast {table['ID1'][twice.idxmax()]} {table['LeftRight'][twice.idxmax()]} is in two rows of the labels.")
    images = _cmmd_images(Path(folder))
    found = images.merge(table[["ID1", "LeftRight", "cancer"]], how="left", left_on=["patient_id", "laterality"],
                         right_on=["ID1", "LeftRight"]).drop(columns=["ID1", "LeftRight"])
    if gone := sorted(
            set(zip(table["ID1"], table["LeftRight"])) - set(zip(images["patient_id"], images["laterality"]))):
        raise DatasetError(
            f"{len(gone)} breasts of the labels have no image, such as {' '.join(gone[0])}. Fetch the rest of CMMD/.")
    age = _number(table["Age"]).groupby(table["ID1"]).first()
    return found.assign(cancer=found["cancer"].fillna(0).astype(int), age=found["patient_id"].map(age))

# %% [markdown]
# ## CDD-CESM
# Two pictures of each view: with low energy, which is an ordinary mammogram, and subtracted, which is not. Only the
# first are taken. The pathology is given image by image, so the two views of a breast need not agree.

# %%
#| export
CDD_PATHOLOGY = "Pathology Classification/ Follow up"

def read_cddcesm(
    # Radiology manual annotations.xlsx with a sheet `all`, Low energy images of CDD-CESM/{Image_name}.jpg
    folder: Path,
) -> pd.DataFrame:
    """CDD-CESM. Only Type DM. Positive: Pathology Classification/ Follow up is Malignant, of each image on its own.
    Patient, side and view are the name's."""
    table = read_labels(folder, READERS["cddcesm"].tables, ["Image_name", "Type", CDD_PATHOLOGY], "all")
    table = table[_known(table, "Type", {"DM": True, "CESM": False}).astype(bool)]
    parts = table["Image_name"].str.extract(r"^(P\d+)_([LR])_DM_(CC|MLO)[^/\\]*$")
    if (bad := parts[0].isna()).any():
        raise DatasetError(
            f"Image_name {table['Image_name'][bad.idxmax()]!r} in row {bad.idxmax() + 2} is not of the form "
            "P39_R_DM_CC."
        )
    found = pd.DataFrame({
        "patient_id": parts[0], "image_id": table["Image_name"].str.replace(
            "DM_", "", regex=False), "laterality": parts[1], "view": parts[2], "cancer": _known(
                table, CDD_PATHOLOGY, {"Normal": 0, "Benign": 0, "Malignant": 1}),
        "file": "Low energy images of CDD-CESM/" + table["Image_name"] + ".jpg"
    })
    if "Age" in table:
        found["age"] = _number(table["Age"])
    if "Breast density (ACR)" in table:
        found["density"] = table["Breast density (ACR)"].str.upper().where(
            table["Breast density (ACR)"].str.fullmatch("[A-Da-d]"))
    return found.reset_index(drop=True)

# %% [markdown]
# ## BMCD
# One breast of each patient, twice: the recent examination and the one before. The biopsy speaks of the recent images;
# the prior ones were read as healthy.

# %%
#| export
def read_bmcd(
    folder: Path,     # label.csv, Dataset/{Suspicious,Normal}_cases/{dir}/{CC,MLO}_{recent,prior}.dcm, also .DCM
) -> pd.DataFrame:    # with `exam`: recent or prior
    """BMCD. Positive: biopsy MALIGNANT or DCIS, on recent images only; a prior is never positive. Cases whose biopsy is
    NOT AVAILABLE are left out; no biopsy at all is negative."""
    table = read_labels(folder, ("label.csv",),
                        ["dir", "laterality", "age", "density", "BIRADS", "biopsy_result", "folder_type"])
    table["ill"] = _known(table, "biopsy_result", {"": 0, "BENIGN": 0, "MALIGNANT": 1, "DCIS": 1, "NOT AVAILABLE": -1})
    table["place"] = "Dataset/" + _known(
        table, "folder_type", {"suspicious": "Suspicious_cases", "normal": "Normal_cases"}) + "/" + table["dir"]
    rows = []
    for case in table[table["ill"] >= 0].itertuples():
        endings = {
            p.stem: p.suffix for p in sorted((Path(folder) / case.place).glob("*")) if p.suffix.lower() == ".dcm"
        }
        for view in ("CC", "MLO"):
            for exam in ("recent", "prior"):
                patient, name = f"{case.folder_type}_{case.dir}", f"{view}_{exam}"
                rows.append((patient, patient + name, SIDES.get(
                    case.laterality.upper()), view, case.ill if exam == "recent" else 0, exam, case.age,
                             case.density.upper(), case.BIRADS, f"{case.place}/{name}{endings.get(name, '.dcm')}"))
    return pd.DataFrame(rows, columns=[*REQUIRED, "exam", "age", "density", "BIRADS",
                                       "file"]).assign(age=lambda t: _number(t["age"]))

# %%
(folder / "label.csv").write_text(
    "dir,laterality,age,density,BIRADS,biopsy_result,folder_type\n1,Left,57,b,5,DCIS,suspicious\n2,Left,60,c,4a,NOT "
    "AVAILABLE,suspicious\n"
)
bmcd = read_bmcd(folder)
assert bmcd["cancer"].tolist() == [1, 0, 1, 0] and set(bmcd["patient_id"]) == {"suspicious_1"}
bmcd

# %% [markdown]
# ## Anybody's own
# A CSV and pictures: DICOM, PNG or JPEG. What the columns are called is asked for; where the pictures lie is found out,
# in the folder itself or in one folder below it. A folder of masks beside the pictures has the same names, so the usual
# names for pictures come first, and two others that would both do are an error.

# %%
#| export
PLACES = ("", "img", "images", "train_images")  # where pictures are looked for first
MASKS = ("mask", "masks")                       # where drawn lesions are, under the names of the pictures

def own_table(
    folder: Path,
) -> str:         # its name
    "The table of a folder: labels.csv, train.csv, or the only CSV."
    tables = sorted(p.name for p in Path(folder).glob("*.csv"))
    named = next((name for name in ("labels.csv", "train.csv") if name in tables), None)
    if not named and len(tables) != 1:
        raise DatasetError(
            f"{folder} has {len(tables)} CSV files{': ' + ', '.join(tables) if tables else ''}; one is wanted, or one "
            "that is called labels.csv."
        )
    return named or tables[0]

def _own_files(folder: Path, table: pd.DataFrame) -> list[str]:
    "The file of each row, relative to the folder; one that is not there keeps the name it should have."
    there = [
        p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*"))
        if p.suffix.lower() in (*PICTURES, *ENDINGS) and p.is_file()
    ]
    if "file" in table:
        known, wanted = {p: p for p in there}, [(f,) for f in table["file"].astype(str)]
    else:
        known, wanted = {p.rpartition(".")[0]: p for p in reversed(there)
                         }, [(f"{p}/{i}", i) for p, i in zip(table["patient_id"], table["image_id"])]
    hits = lambda place: [
        next((known[name] for w in row
              if (name := f"{place}/{w}".lstrip("/")) in known), f"{place}/{row[-1]}".lstrip("/")) for row in wanted
    ]
    there = set(there)
    found = {
        place: files for place in dict.fromkeys((*PLACES, *sorted(p.name for p in folder.iterdir() if p.is_dir())))
        if there & set(files := hits(place))
    }
    usual = [place for place in PLACES if place in found]
    if not found:
        raise DatasetError(
            f"None of the {len(table)} images of the table is in {folder} or in a folder of it; the first would be "
            f"{wanted[0][-1]}."
        )
    if not usual and len(found) > 1:
        raise DatasetError(
            f"The images of the table could be those in {' or in '.join(found)}; call the folder that is meant images.")
    return found[usual[0] if usual else next(iter(found))]

def _own_masks(folder: Path, files: list[str]) -> list:
    "The mask of each picture, relative to the folder; None where there is none."
    place = next((folder / m for m in MASKS if (folder / m).is_dir()), None)
    return [
        f"{place.name}/{name}" if place and (place / (name := f"{Path(f).stem}.png")).is_file() else None for f in files
    ]

def read_own(
    folder: Path,     # a CSV and images; perhaps mask/ with lesions, white on black, as PNG under the images' names
) -> pd.DataFrame:    # with `mask` where there are some
    """Anybody's set. Positive: `cancer` is 1. CSV with patient_id, laterality, view, cancer, and image_id or file
    (image_id: its stem); also KEPT, and `scaling`, where they are there."""
    folder = Path(folder)
    path = folder / own_table(folder)
    table = read_table(path, ["patient_id", "laterality", "view", "cancer"])
    if "image_id" not in table and "file" not in table:
        raise DatasetError(
            f"{path.name} has neither a column image_id nor a column file; it has {', '.join(table.columns)}.")
    if "image_id" not in table:
        table["image_id"] = [Path(f).stem for f in table["file"].astype(str)]
    if "scaling" in table:
        table["scaling"] = _known(table.fillna({"scaling": ""}), "scaling",
                                  {s: s for s in ("", "window", "percentile", "none")})
    table["laterality"], table["view"] = _side(
        table["laterality"].astype(str)), table["view"].astype(str).str.strip().str.upper()
    table["file"] = _own_files(folder, table)
    if any(masks := _own_masks(folder, table["file"].tolist())):
        table["mask"] = masks
    return table[[c for c in (*REQUIRED, *KEPT, "scaling", "file", "mask") if c in table]]

# %% [markdown]
# ## All of them
# What is known of each set beforehand: where it is to be had, what has to be accepted, how it should look on disk, how
# its grey levels are scaled, which of its images must agree about cancer, and how many there ought to be.

# %%
#| export
BREAST = ("patient_id", "laterality")

@dataclass(frozen=True)
class Source:
    "A data set as it is published."
    read: Callable           # folder -> REQUIRED, KEPT where known, `file`
    tables: tuple            # its table of labels: any one of these; (): the CSV of the folder
    url: str
    accept: str              # what has to be agreed to
    layout: str              # below its folder
    # window, percentile or none (8 bits as they are); "": a DICOM file by its window, 16 bits by percentile, 8 bits as
    # they are
    scaling: str
    agree: tuple = BREAST    # images that are equal in these columns must be equal in cancer; (): none
    patients: int | None = None   # published, after the rule
    images: int | None = None
    positives: int | None = None  # images

_TCIA = "the data usage policy of TCIA, and CC BY 4.0"

READERS = {
    "rsna-breast-cancer-detection": Source(
        read_rsna, ("train.csv",), "https://www.kaggle.com/competitions/rsna-breast-cancer-detection",
        "the rules of the competition, on Kaggle",
        "train.csv, test.csv, sample_submission.csv, {train,test}_images/<patient_id>/<image_id>.dcm", "window",
        images=54_706, positives=1_158), "vindr": Source(
            read_vindr, ("breast-level_annotations.csv",), "https://physionet.org/content/vindr-mammo/1.0.0/",
            "restricted access: an account at PhysioNet and the data use agreement of the set",
            "breast-level_annotations.csv, metadata.csv, images/<study_id>/<image_id>.dicom", "window", BREAST, 5_000,
            20_000, 226),
    "miniddsm": Source(
        read_miniddsm, ("Data-MoreThanTwoMasks/Data-MoreThanTwoMasks.xlsx",),
        "https://www.kaggle.com/datasets/cheddad/miniddsm2", "the terms of its page, with an account at Kaggle",
        "Data-MoreThanTwoMasks/Data-MoreThanTwoMasks.xlsx, MINI-DDSM-Complete-PNG-16/<Status>/<number>/<fileName>",
        "percentile", BREAST, 1_952, 7_808, 1_480), "cmmd": Source(
            read_cmmd, ("label.csv", "CMMD_clinicaldata_revision.xlsx"),
            "https://www.cancerimagingarchive.net/collection/cmmd/",
            f"{_TCIA}; the images come through the NBIA Data Retriever",
            "CMMD_clinicaldata_revision.xlsx (or the same as label.csv), CMMD/<ID1>/<date>/<series>/1-<N>.dcm",
            "window", BREAST, 1_775, 5_202, 2_632), "cddcesm": Source(
                read_cddcesm, ("Radiology manual annotations.xlsx",),
                "https://www.cancerimagingarchive.net/collection/cdd-cesm/", _TCIA,
                "Radiology manual annotations.xlsx, 'Low energy images of CDD-CESM'/<Image_name>.jpg", "percentile", (),
                326, 1_003, 331),
    "bmcd": Source(
        read_bmcd, ("label.csv",), "https://zenodo.org/record/5036062",
        "CC BY 4.0; label.csv is bmcd_raw_label.csv of the winner's repository, "
        "github.com/dangnh0611/kaggle_rsna_breast_cancer, assets/data",
        "label.csv, Dataset/{Suspicious,Normal}_cases/<dir>/{CC,MLO}_{recent,prior}.dcm", "window", (*BREAST, "exam"),
        82, 328, 22),
    "own": Source(
        read_own, (), "yours", "nothing",
        "a CSV with patient_id, laterality, view, cancer and image_id or file; PNG, JPEG or DICOM files beside it or "
        "in one folder, such as images/",
        ""),
}

def source_of(
    name: str,    # a data set
) -> Source:
    """What is known of a data set; a name that is no published set's is somebody's own, and the synthetic competition
    is a competition."""
    if name == "phantom":
        return replace(READERS["rsna-breast-cancer-detection"], url="drawn by the run itself", accept="nothing",
                       images=None, positives=None)
    return READERS.get(name, READERS["own"])

def label_table(
    name: str,
    folder: Path,  # of the set
) -> str:          # relative to the folder
    "The table that a reader would read."
    tables = source_of(name).tables or (own_table(folder),)
    found = next((t for t in tables if (Path(folder) / t).is_file()), None)
    if not found:
        raise DatasetError(f"{folder} has no {' or '.join(tables)}. {how_to_get(name)}")
    return found

def how_to_get(
    name: str,
) -> str:     # a few lines
    "Where a set is to be had, what to accept, and what its folder must hold."
    source = source_of(name)
    if source is READERS["own"] and name != "own":
        return (f"{name}: no published set is called so ({', '.join(n for n in READERS if n != 'own')}). For a set of "
            f"your own, the folder {name} holds {source.layout}")
    return f"{name}: from {source.url}\n  to accept: {source.accept}\n  layout of the folder {name}: {source.layout}"

def totals(
    name: str,
    table: pd.DataFrame,  # the set, read
) -> pd.DataFrame:        # what, found, published (missing where nobody said)
    "Patients, images and positive images, against what is published."
    source, found = source_of(name), [table["patient_id"].nunique(), len(table), int(table["cancer"].sum())]
    return pd.DataFrame({
        "what": ["patients", "images", "positive images"], "found": found, "published": pd.array(
            [source.patients, source.images, source.positives], "Int64")
    })

# %%
print(how_to_get("vindr"))
pd.DataFrame([{"name": name, **{c: getattr(s, c) for c in ("patients", "images", "positives", "scaling", "accept")}}
              for name, s in READERS.items()])

# %% [markdown]
# Share of positive images: screening has two in a hundred, the others are collections of the ill.

# %%
known = {name: s.positives / s.images for name, s in READERS.items() if s.positives}
plt.figure(figsize=(6, 2.4))
plt.barh(list(known), list(known.values()))
plt.gca().invert_yaxis()
plt.xlabel("share of positive images")
plt.tight_layout()

# %%
if not own:
    own = folder / "mine"
    (own / "images").mkdir(parents=True)
    for name in ("a_L_CC", "b_L_CC"):
        cv2.imwrite(str(own / "images" / f"{name}.png"), np.zeros((8, 8), np.uint8))
    (own / "labels.csv").write_text(
        "file,patient_id,laterality,view,cancer,age,colour\na_L_CC.png,a,left,cc,1,61,red\nb_L_CC.png,b,L,CC,0,54,blue\n"
    )
mine = read_own(own)
assert mine["file"].notna().all() and set(mine["laterality"]) <= {"L", "R"}
mine.head()

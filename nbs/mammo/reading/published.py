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
# # Published data sets
# > Six readers for six published data sets, each with its rule for what counts as cancer.
#
# Which image a data set calls positive is a decision, and most mistakes with mixed data are made here. VinDr gives a
# radiologist's suspicion, CMMD a biopsy, and BMCD an earlier image of a breast that is ill today. The rules are the
# winner's. A value without a rule is an error, because otherwise it would count as healthy. Every reader gives one row
# per image with the columns REQUIRED, those of KEPT that are known, and `file`.
#
# The rows are in the order of the published table, or of the sorted file names. The winner listed the folders of CMMD
# and BMCD as the operating system gives them, so the order of his rows is in his label tables only: 243 of the 328 rows
# of BMCD are in another place there. The order decides which images are together in a batch, and nothing else.

# %%
#| default_exp mammo.reading.published

# %%
#| export
from pathlib import Path

import pandas as pd

from mammo_nb.core.headers import DicomError
from mammo_nb.mammo.reading.labels import REQUIRED, SIDES, DatasetError, known, number, read_labels, read_table, side
from mammo_nb.mammo.reading.mammograms import read_header

# %%
#| hide
import tempfile

# %%
folder = Path(tempfile.mkdtemp())   # the small tables below are written here

# %% [markdown]
# ## RSNA
# The table of the competition is used as it is.

# %%
#| export
def read_rsna(
    folder: Path,     # train.csv, train_images/{patient_id}/{image_id}.dcm
) -> pd.DataFrame:    # the table of the competition
    "Read RSNA. Positive: `cancer` of train.csv, which is given for each breast."
    return read_table(Path(folder) / "train.csv", REQUIRED)

# %% [markdown]
# ## VinDr
# There are no biopsies. Radiologists have given each breast a BI-RADS category. Only category 5 counts as cancer.
# Category 4 is a suspicion that most often turns out to be harmless. Afterwards the winner doubted whether it was right
# to count it as negative.

# %%
#| export
def read_vindr(
    folder: Path,     # breast-level_annotations.csv, images/{study_id}/{image_id}.dicom
) -> pd.DataFrame:
    "Read VinDr-Mammo. Positive: BI-RADS 5 of the breast; 4 is negative. A study counts as a patient."
    table = read_labels(folder, ("breast-level_annotations.csv",),
                        ["study_id", "image_id", "laterality", "view_position", "breast_birads", "breast_density"])
    birads = known(table, "breast_birads", {f"BI-RADS {k}": k for k in range(7)})
    found = pd.DataFrame({
        "patient_id": table["study_id"], "image_id": table["image_id"], "laterality": side(table["laterality"]),
        "view": table["view_position"], "cancer": (birads == 5).astype(int),
        "density": table["breast_density"].str.removeprefix("DENSITY "), "BIRADS": birads,
        "file": "images/" + table["study_id"] + "/" + table["image_id"] + ".dicom"
    })
    if (Path(folder) / "metadata.csv").is_file():
        headers = read_labels(folder, ("metadata.csv",), ["SOP Instance UID"])
        if "Patient's Age" in headers:
            years = number(headers["Patient's Age"].str.extract(r"^(\d+)Y", expand=False))
            years = years.set_axis(headers["SOP Instance UID"]).groupby(level=0).first()
            found["age"] = found["image_id"].map(years)
    return found

# %%
rows = [f"s{k},i{k},L,CC,BI-RADS {k},DENSITY B\n" for k in (1, 4, 5)]
(folder / "breast-level_annotations.csv").write_text(
    "study_id,image_id,laterality,view_position,breast_birads,breast_density\n" + "".join(rows))
vindr = read_vindr(folder)
assert vindr["cancer"].tolist() == [0, 0, 1]
vindr

# %% [markdown]
# ## MiniDDSM
# The images are scanned films. The status belongs to the patient, so it does not show which breast is ill. The drawn
# contour of a tumour does. The sheet has the path of a mask where there is a contour, and a dash where there is none.

# %%
#| export
MINIDDSM_TABLES = ("Data-MoreThanTwoMasks/Data-MoreThanTwoMasks.xlsx",)

def read_miniddsm(
    folder: Path,     # MINIDDSM_TABLES, MINI-DDSM-Complete-PNG-16/{Status}/{number}/{fileName}
) -> pd.DataFrame:
    """Read MiniDDSM. Positive: the Status of the patient is Cancer, and Tumour_Contour is longer than 5 characters on
    any image of that side. Ids have `_` where the original has `|`, which is not safe in a file name."""
    table = read_labels(folder, MINIDDSM_TABLES, ["fileName", "Side", "View", "Status", "Tumour_Contour"])
    parts = table["fileName"].str.extract(r"^([^_./\\]+_([^_./\\]+)[^./\\]*)\.[^/\\]+$")
    if (bad := parts[0].isna()).any():
        raise DatasetError(
            f"fileName {table['fileName'][bad.idxmax()]!r} in row {bad.idxmax() + 2} "
            "is not of the form A_1234_1.LEFT_CC.png.")
    contour = (table["Tumour_Contour"].str.len() > 5).groupby([parts[0], table["Side"]]).transform("any")
    ill = known(table, "Status", {"Normal": 0, "Benign": 0, "Cancer": 1})
    found = pd.DataFrame({
        "patient_id": parts[0], "image_id": parts[0] + "_" + table["Side"] + "_" + table["View"],
        "laterality": side(table["Side"]), "view": table["View"], "cancer": ill * contour,
        "file": "MINI-DDSM-Complete-PNG-16/" + table["Status"] + "/" + parts[1] + "/" + table["fileName"]
    })
    if "Age" in table:
        found["age"] = number(table["Age"])
    if "Density" in table:
        found["density"] = table["Density"].map(dict(zip("01234", "AABCD")))
    return found

# %% [markdown]
# ## CMMD
# The table has a row for each breast with a biopsy. The other breast of the patient is only in the images, and counts
# as normal. Side and view are in the DICOM headers, so this reader opens every file.

# %%
#| export
CMMD_TABLES = ("label.csv", "CMMD_clinicaldata_revision.xlsx")

def _only_folder(folder: Path) -> Path:
    "Give the one folder inside a folder. Raises DatasetError if there are none or several."
    inner = sorted(p for p in folder.iterdir() if p.is_dir())
    if len(inner) != 1:
        raise DatasetError(
            f"{folder} has {len(inner)} folders, one is expected: CMMD/{{ID1}}/{{date}}/{{series}}/1-N.dcm.")
    return inner[0]

def _cmmd_images(root: Path) -> pd.DataFrame:
    "List patient_id, image_id, laterality, view and file of every image, ordered by name."
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
            f"{len(broken)} files have no readable header, which gives side and view: {'; '.join(broken[:3])}. "
            "Fetch them again.")
    if not rows:
        raise DatasetError(f"{root} has no images CMMD/{{ID1}}/{{date}}/{{series}}/1-N.dcm.")
    return pd.DataFrame(rows, columns=["patient_id", "image_id", "laterality", "view", "file"])

def read_cmmd(
    folder: Path,     # label.csv, or CMMD_clinicaldata_revision.xlsx as published; CMMD/{ID1}/{date}/{series}/1-N.dcm
) -> pd.DataFrame:
    """Read CMMD. Positive: the classification of the breast is Malignant. A breast that is not in the table is normal.
    Both breasts have the age of the patient."""
    table = read_labels(folder, CMMD_TABLES, ["ID1", "LeftRight", "Age", "classification"])
    table["cancer"] = known(table, "classification", {"Malignant": 1, "Benign": 0})
    if (twice := table.duplicated(["ID1", "LeftRight"])).any():
        raise DatasetError(
            f"breast {table['ID1'][twice.idxmax()]} {table['LeftRight'][twice.idxmax()]} is in two rows of the labels.")
    images = _cmmd_images(Path(folder))
    found = images.merge(table[["ID1", "LeftRight", "cancer"]], how="left", left_on=["patient_id", "laterality"],
                         right_on=["ID1", "LeftRight"]).drop(columns=["ID1", "LeftRight"])
    labelled = set(zip(table["ID1"], table["LeftRight"]))
    if gone := sorted(labelled - set(zip(images["patient_id"], images["laterality"]))):
        raise DatasetError(
            f"{len(gone)} breasts of the labels have no image, such as {' '.join(gone[0])}. Fetch the rest of CMMD/.")
    age = number(table["Age"]).groupby(table["ID1"]).first()
    return found.assign(cancer=found["cancer"].fillna(0).astype(int), age=found["patient_id"].map(age))

# %% [markdown]
# ## CDD-CESM
# There are two pictures of each view. The low-energy picture is an ordinary mammogram and is used. The subtracted
# picture is not used. The pathology is given for each image, so the two views of a breast need not agree. A patient has
# the name that is in the names of his files, such as P39. The winner's table names the patients otherwise; only names
# of files depend on it, because an external set is not split.

# %%
#| export
CDD_TABLES = ("Radiology manual annotations.xlsx",)
CDD_PATHOLOGY = "Pathology Classification/ Follow up"

def read_cddcesm(
    folder: Path,     # CDD_TABLES with a sheet `all`, Low energy images of CDD-CESM/{Image_name}.jpg
) -> pd.DataFrame:
    """Read the images of CDD-CESM with Type DM. Positive: Pathology Classification/ Follow up of the image is
    Malignant. Patient, side and view are parts of the image's name."""
    table = read_labels(folder, CDD_TABLES, ["Image_name", "Type", CDD_PATHOLOGY], "all")
    table = table[known(table, "Type", {"DM": True, "CESM": False}).astype(bool)]
    parts = table["Image_name"].str.extract(r"^(P\d+)_([LR])_DM_(CC|MLO)[^/\\]*$")
    if (bad := parts[0].isna()).any():
        raise DatasetError(
            f"Image_name {table['Image_name'][bad.idxmax()]!r} in row {bad.idxmax() + 2} "
            "is not of the form P39_R_DM_CC.")
    found = pd.DataFrame({
        "patient_id": parts[0], "image_id": table["Image_name"].str.replace("DM_", "", regex=False),
        "laterality": parts[1], "view": parts[2],
        "cancer": known(table, CDD_PATHOLOGY, {"Normal": 0, "Benign": 0, "Malignant": 1}),
        "file": "Low energy images of CDD-CESM/" + table["Image_name"] + ".jpg"
    })
    if "Age" in table:
        found["age"] = number(table["Age"])
    if "Breast density (ACR)" in table:
        density = table["Breast density (ACR)"]
        found["density"] = density.str.upper().where(density.str.fullmatch("[A-Da-d]"))
    return found.reset_index(drop=True)

# %% [markdown]
# ## BMCD
# The set has one breast of each patient, with two examinations: the recent one and the one before. The biopsy belongs
# to the recent images. The prior images were read as healthy. Each patient has four rows here, and a file that is not
# there is reported when the crops are made. The winner's table has the files that there were, so an absent prior has no
# row; the published set has all 328.

# %%
#| export
def read_bmcd(
    folder: Path,     # label.csv, Dataset/{Suspicious,Normal}_cases/{dir}/{CC,MLO}_{recent,prior}.dcm, also .DCM
) -> pd.DataFrame:    # with `exam`: recent or prior
    """Read BMCD. Positive: biopsy MALIGNANT or DCIS, on recent images only; a prior image is never positive. Cases
    whose biopsy is NOT AVAILABLE are left out; a case without a biopsy is negative."""
    table = read_labels(folder, ("label.csv",),
                        ["dir", "laterality", "age", "density", "BIRADS", "biopsy_result", "folder_type"])
    table["ill"] = known(table, "biopsy_result", {"": 0, "BENIGN": 0, "MALIGNANT": 1, "DCIS": 1, "NOT AVAILABLE": -1})
    folders = known(table, "folder_type", {"suspicious": "Suspicious_cases", "normal": "Normal_cases"})
    table["place"] = "Dataset/" + folders + "/" + table["dir"]
    rows = []
    for case in table[table["ill"] >= 0].itertuples():
        files = sorted((Path(folder) / case.place).glob("*"))
        endings = {p.stem: p.suffix for p in files if p.suffix.lower() == ".dcm"}
        for view in ("CC", "MLO"):
            for exam in ("recent", "prior"):
                patient, name = f"{case.folder_type}_{case.dir}", f"{view}_{exam}"
                rows.append({
                    "patient_id": patient, "image_id": patient + name, "laterality": SIDES.get(case.laterality.upper()),
                    "view": view, "cancer": case.ill if exam == "recent" else 0, "exam": exam, "age": case.age,
                    "density": case.density.upper(), "BIRADS": case.BIRADS,
                    "file": f"{case.place}/{name}{endings.get(name, '.dcm')}"
                })
    found = pd.DataFrame(rows, columns=[*REQUIRED, "exam", "age", "density", "BIRADS", "file"])
    return found.assign(age=number(found["age"]))

# %%
(folder / "label.csv").write_text("dir,laterality,age,density,BIRADS,biopsy_result,folder_type\n"
                                  "1,Left,57,b,5,DCIS,suspicious\n2,Left,60,c,4a,NOT AVAILABLE,suspicious\n")
bmcd = read_bmcd(folder)
assert bmcd["cancer"].tolist() == [1, 0, 1, 0] and set(bmcd["patient_id"]) == {"suspicious_1"}
bmcd

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

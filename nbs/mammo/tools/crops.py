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
# # Crops of a folder
# > From any folder of mammograms to a picture of each breast.
#
# The stage [Crops](../04_crops.py) takes its files from a table. A folder has none, so the ids are found here, by the
# rule that a prediction has, too. The names of the crops are made of these ids, such as `10006@462822612.png` in a
# competition. They stand in the column `picture`, because no name of a file can hold every id.

# %%
#| default_exp mammo.tools.crops

# %%
#| export
from pathlib import Path

import pandas as pd

from mammo_nb.core.dicom import find_files, folder_of
from mammo_nb.core.errors import cell
from mammo_nb.core.files import owned
from mammo_nb.mammo.crops import make_crops, write_crops
from mammo_nb.mammo.reading.frames import check_frames
from mammo_nb.mammo.reading.mammograms import NO_STANDARD
from mammo_nb.mammo.reading.names import packed_files
from mammo_nb.mammo.reading.sides import ids_of_files
from mammo_nb.mammo.recipes import Crops

# %%
#| hide
import tempfile

import cv2
import matplotlib.pyplot as plt

from mammo_nb.mammo.phantom import make_competition

# %% tags=["parameters"]
folder = ""    # mammograms; "" makes a small competition
workers = 1    # processes

# %%
#| hide
scratch = Path(tempfile.mkdtemp())
make_competition(scratch / "competition", patients=2, test_patients=1, frame=(320, 256), prevalence=.5, seed=2023,
                 workers=1)
folder, output = Path(folder or scratch / "competition/train_images"), scratch / "out"

# %% [markdown]
# ## A folder
# An interrupted call continues where it stopped.

# %%
#| export
@owned
def crop_folder(
    folder: Path,             # DICOM files, at any depth; if there are none, PNG and JPEG files; or a single file
    output: Path,             # as in `crop_files`
    settings: Crops = Crops(),
    detector: Path | None = None,  # detector.onnx; None: Otsu's threshold
    previews: bool = False,   # as in `crop_files`
    frames: str = "",         # middle, all or a number from 1, for files with several frames
    **machine,                # workers, scheduler of `map_files`
) -> pd.DataFrame:            # as from `crop_files`, with texts as `cell` writes them; attrs: frames, packed
    "Crop every file of a folder. Raises DicomError if there is none, and FramesError."
    output, root = Path(output), folder_of(folder)
    ids, files = ids_of_files(root, find_files(folder, besides=output)[0], machine.get("workers"), check_frames(frames))
    work = make_crops(files, root, output, settings, detector, previews=previews, **machine).assign(**ids)
    for column in ("file", "patient_id", "image_id", "error"):
        work[column] = work[column].map(cell)
    write_crops(work, output)
    work.attrs = {"frames": frames, "packed": packed_files(folder)}
    return work

def print_crops(
    table: pd.DataFrame,  # from `crop_folder`
    output: Path,
) -> int:                 # how many files failed
    "Print what was left out and what failed, and the count."
    if packed := table.attrs["packed"]:
        print(packed)
    no_pictures = table["error"].str.startswith("NotImage:" if table.attrs["frames"] else ("NotImage:", "MultiFrame:"))
    table, others = table[~no_pictures], table[no_pictures]
    for row in others.itertuples():
        print(f"left out {row.error.partition(': ')[2]}")
    failed = table.loc[table["error"] != "", ["file", "error"]]
    for row in failed.head(20).itertuples():
        print(f"failed {row.file}: {row.error}")
    found = ", ".join(f"{source} {n}" for source, n in table["box_source"].value_counts().items() if source)
    odd = table["note"].fillna("").str.split("; ").str[0]
    for note, n in odd[odd.str.startswith(NO_STANDARD)].value_counts().items():
        print(f"{n} cropped: {cell(note)}")
    line = f"{len(table) - len(failed)} of {len(table)} files cropped (boxes: {found or 'none'}) -> {output}"
    if len(failed):
        line += f"; {len(failed)} failed, see {Path(output) / 'crop_errors.csv'}"
    print(line)
    return len(failed)

# %% [markdown]
# ## What came out

# %%
table = crop_folder(folder, output, workers=workers)
assert print_crops(table, output) == 0
assert set(table["picture"]) == {p.name for p in (output / "cleaned_images").glob("*.png")}
fig, axes = plt.subplots(1, 3, figsize=(7, 4))
for ax, row in zip(axes, table.itertuples()):
    ax.imshow(cv2.imread(str(output / "cleaned_images" / row.picture), cv2.IMREAD_GRAYSCALE), cmap="gray")
    ax.set_title(row.picture.replace("@", "@\n"), fontsize=8)
for ax in axes:
    ax.axis("off")

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

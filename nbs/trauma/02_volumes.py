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
# # Volumes
# > From folders of slices to one volume of grey levels for each series, and a table of all slices.
#
# A patient has one or two series, scanned a minute apart, with 15 to 1000 slices each. File names and instance numbers
# run from head to feet in some and the other way in others. Each series becomes one file in the order of its positions,
# and every file of the data set has a row in a table: with its place, or with the reason why it has none.

# %%
#| default_exp trauma.volumes

# %%
#| export
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_nb.core.files import write_csv
from mammo_nb.core.parallel import map_files
from mammo_nb.core.runs import Run
from mammo_nb.core.series import SERIES, SLICES
from mammo_nb.trauma.reading.competition import list_series, place_of, read_table
from mammo_nb.trauma.reading.volumes import prepare_series

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.pictures import sheet
from mammo_nb.core.practice import practice
from mammo_nb.trauma.system import system

# %% tags=["parameters"]
run_dir = ""      # folder of the run; "" makes a small practice run
overrides = {}    # changes for this run, such as {"volumes.window": "theo"}
workers = 0       # number of processes; 0: one per core

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="volumes", overrides=overrides)
run.contract("volumes")

# %% [markdown]
# ## One series
# `reading/volumes` writes the volume. In the tables the names of the folders replace the ids of the headers, since the
# labels of the competition name folders. Headers may be anonymised in another way.

# %%
#| export
def volume_name(
    patient: str,
    series: str,
) -> str:         # file below processed/volumes/
    "The file of a series."
    return f"{patient}_{series}.npy"

def make_volume(
    item: dict,  # patient_id, series, images, volumes, window, faithful, code
) -> dict:       # slices and volumes: rows of the tables
    "Write the volume of one series of the competition."
    path = Path(item["volumes"]) / volume_name(item["patient_id"], item["series"])
    slices, volumes = prepare_series(Path(item["images"]) / item["patient_id"] / item["series"], path, item["window"],
                                     item["faithful"], item["code"])
    own = {"patient_id": item["patient_id"], "series": item["series"]}
    slices["file"] = item["patient_id"] + "/" + item["series"] + "/" + slices["file"]
    return {"slices": slices.assign(**own).to_dict("records"),
            "volumes": volumes.assign(**own, volume=path.name).to_dict("records")}

# %% [markdown]
# ## All series
# A series that cannot be read stays in the table with its error.

# %%
#| export
def _slices_of(item: dict) -> list[Path]:
    "The folder of a series, whose time shows new and removed files, and its files."
    folder = Path(item["images"], item["patient_id"], item["series"])
    return [folder, *sorted(folder.iterdir())]

def make_volumes(
    images: Path,         # folder with <patient>/<series>/<instance>.dcm
    output: Path,         # the folder `processed`
    settings: dict,       # window, faithful
    code: dict,           # a change starts anew
    workers: int | None,  # processes; None: one per core
) -> tuple[pd.DataFrame, pd.DataFrame]:  # slices, series
    "Write the volumes of a data set; finished series of an interrupted call are kept."
    items = [{"id": f"{p}/{s}", "patient_id": p, "series": s, "images": str(images), "code": code,
              "volumes": str(output / "volumes"), **settings} for p, s in list_series(images)]
    found = map_files(make_volume, items, table=output / "volumes.csv", key="id", code=code, workers=workers,
                      reads=_slices_of, writes=output, label="volumes")
    (output / "volumes.csv").unlink()
    slices, series = [], []
    for item, row in zip(items, found.to_dict("records")):
        if row["error"]:
            own = {"patient_id": item["patient_id"], "series": item["series"], "error": row["error"]}
            slices.append(own | {"file": item["id"] + "/"})
            series.append(own | {"files": 0, "slices": 0, "used": 0})
        else:
            slices += row["slices"]
            series += row["volumes"]
    columns = [*SLICES, "instance", "place"], [*SERIES, "used", "volume", "error"]
    return tuple(pd.DataFrame(rows, columns=c).astype(object).fillna("") for rows, c in zip((slices, series), columns))

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
    workers: int | None = None,   # number of processes; None: one per core
) -> pd.DataFrame:                # series.csv
    "The images of a data set -> processed/slices.csv, processed/series.csv and processed/volumes/."
    section = run.section("volumes")
    with run.stage("volumes") as results:
        images, output = run.path(place_of(run)) / "train_images", run.path("processed/")
        settings = {"window": section.window, "faithful": section.faithful}
        slices, series = make_volumes(images, output, settings, run.code("volumes"), workers)
        write_csv(output / "slices.csv", slices)
        write_csv(output / "series.csv", series)
        kept = set(series.loc[series["error"].eq(""), "volume"])
        for path in (output / "volumes").iterdir():
            if path.is_dir():
                shutil.rmtree(path)   # left by a process that was killed
            elif path.name not in kept:
                path.unlink()         # of a series that is no longer in the data set
        results |= {"series": len(kept), "slices": int(slices["place"].ne("").sum()),
                    "failed": int(slices["error"].ne("").sum())}
    return read_table(output / "series.csv")

# %%
table = run_stage(run, workers or None)
used = table[table["used"] == 1]
used[["patient_id", "series", "slices", "rows", "columns", "spacing_mm", "plane", "note"]].head(8)

# %% [markdown]
# A patient with two series, whose lengths may differ:

# %%
lengths = used.groupby("patient_id")["slices"].agg(["count", "min", "max"])
lengths[lengths["count"] > 1].head()

# %% [markdown]
# What failed, what was left out, and what was corrected or is odd:

# %%
slices = read_table(run.path("processed/slices.csv"))
slices.loc[slices["error"].ne("") | slices["place"].isna(), ["file", "error", "note"]].head(8)

# %%
notes = slices.loc[slices["note"].ne(""), "note"].replace(r"\b\w*\d[\w.]*", "#", regex=True)
notes.value_counts().head(8).to_frame("files")

# %% [markdown]
# ## What came out
# The longest series, every few slices in the order of the patient.

# %%
longest = used.loc[used["slices"].idxmax()]
volume = np.load(run.path("processed/volumes/") / longest["volume"], mmap_mode="r")
assert volume.dtype == np.uint8 and len(volume) == longest["slices"]
shown = np.linspace(0, len(volume) - 1, 18).round().astype(int)
sheet([np.asarray(volume[k]) for k in shown], columns=9, title=f"patient {longest['patient_id']}");

# %%
fig, ax = plt.subplots(figsize=(6, 2.2))
ax.hist(used["slices"], bins=20, color="#46719c")
ax.set(xlabel="slices of a series", ylabel="series");

# %% [markdown]
# ---
# [← Phantom](01_phantom.py) · [Segment →](03_segment.py)

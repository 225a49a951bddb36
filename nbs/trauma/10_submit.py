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
# # Submit
# > The hidden test set of the competition: from folders of series to fourteen columns for each patient.
#
# [The submission of all systems](../core/63_submit.py) keeps the time limit, survives damaged files and writes a valid
# file from the first second. This notebook has the parts of this competition. An item is a patient, because the
# probability of a patient comes from all of the series together.

# %%
#| default_exp trauma.submit

# %%
#| export
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammo_nb.core.budget import Mode
from mammo_nb.core.engines import NotFinite
from mammo_nb.core.files import read_csv
from mammo_nb.core.runs import Run
from mammo_nb.core.submission import ItemSet, Submission, caution
from mammo_nb.core.submit import submit_stage
from mammo_nb.trauma.learning.inference import (Engines, Seen, check_weights, open_engines, patient_probabilities,
                                                read_series, submitted)
from mammo_nb.trauma.learning.scores import prior_submission
from mammo_nb.trauma.reading.competition import SAMPLE, CompetitionError, by_number, place_of
from mammo_nb.trauma.reading.volumes import NoSeries, prepare_series
from mammo_nb.trauma.recipes import COMPETITION, GRADES, SUBMITTED
from mammo_nb.trauma.system import system
from mammo_nb.trauma.tools.hidden import hidden_test

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.files import read_json
from mammo_nb.core.practice import practice
from mammo_nb.core.submit import summary
from mammo_nb.trauma.reading.competition import read_labels

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run; the stage has no section of its own
workers = 0                                   # processes that read series; 0 means one a core

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="submit", overrides=overrides)
run.contract("submit")

# %% [markdown]
# ## The test set
# The sample lists the patients; the folder of a patient has one folder for each series.

# %%
#| export
def read_test(
    folder: Path,   # the competition
) -> ItemSet:       # a row of `items` for each patient; `file` is the folder of the patient
    "Read the sample and list the folders of the test images. Raises CompetitionError."
    path, images = folder / SAMPLE, folder / "test_images"
    sample = read_csv(path, dtype={"patient_id": str})
    if list(sample.columns) != ["patient_id", *SUBMITTED]:
        raise CompetitionError(f"{path} has the columns {', '.join(sample.columns)}. Get the file again.")
    if (twice := sample["patient_id"].duplicated()).any():
        raise CompetitionError(f"{path} has patient {sample['patient_id'][twice.idxmax()]} twice. Get the file again.")
    if not images.is_dir():
        raise CompetitionError(f"{folder} has no test_images. Unpack the competition's archive there.")
    found = sorted((p.name for p in images.iterdir() if p.is_dir()), key=by_number)
    wanted = sample["patient_id"].tolist()
    items = pd.DataFrame({"patient_id": [p for p in found if p in set(wanted)]}, dtype=str)
    items.insert(0, "file", f"{images.name}/" + items["patient_id"])
    return ItemSet(sample, items, "patient_id", wanted, {
        "patients that are not in the sample": sorted(set(found) - set(wanted)),
        "patients of the sample without a folder": sorted(set(wanted) - set(found))})

# %%
competition = run.path(place_of(run))
test = read_test(competition)
assert len(test.items) == len(test.sample) and not any(test.differences.values())
test.items.head(3)

# %% [markdown]
# ## One patient
# A worker process writes the volumes of the patient to a temporary folder. The networks read them from there, since a
# series of a thousand slices need not be in memory. A slice that cannot be read is left out and a series too, and both
# are named in the table.

# %%
#| export
def prepare_item(
    item: dict,   # folder, row; window and faithful of the weights
    mode: Mode,   # not used: there is one
) -> tuple[dict, dict]:  # row: series, slices, note; input: scratch folder, volumes in it
    "Write the volumes of a patient. Raises NoSeries if none of the slices can be read."
    cv2.setNumThreads(1)  # the processes share the cores already
    patient = Path(item["folder"]) / item["row"]["file"]
    scratch, volumes, notes, slices = Path(tempfile.mkdtemp(prefix="trauma_")), [], [], 0
    for series in sorted((p for p in patient.iterdir() if p.is_dir()), key=lambda p: by_number(p.name)):
        path = scratch / f"{series.name}.npy"
        try:
            table, found = prepare_series(series, path, item["window"], item["faithful"])
        except NoSeries:
            notes.append(f"series {series.name}: cannot be read")
            continue
        volumes.append(str(path))
        slices += int(table["place"].ne("").sum())
        failed, left = table["error"].ne(""), table["error"].eq("") & table["place"].eq("")
        words = [found.loc[found["used"] == 1, "note"].iloc[0], *[f"{lost.sum()} files {what}" for lost, what in (
            (failed, "failed"), (left, "left out")) if lost.any()]]
        notes += [f"series {series.name}: {word}" for word in words if word]
    if not volumes:
        shutil.rmtree(scratch)
        raise NoSeries(f"{patient.name}: none of the slices can be read. Fetch the images of the patient again.")
    return ({"series": len(volumes), "slices": slices, "note": "; ".join(notes)},
            {"scratch": str(scratch), "volumes": volumes})

def predict(
    engines: Engines,
    batch: list[dict],  # from `prepare_item`
) -> np.ndarray:        # (n, SUBMITTED)
    "Predict patients, each alone, and remove their volumes. A patient has NaN if a network predicted it."
    found = []
    for patient in batch:
        try:
            readings = [read_series(engines, np.load(path, mmap_mode="r")) for path in patient["volumes"]]
            found.append(submitted(patient_probabilities(readings), engines.seen.scaling).to_numpy()[0])
        except NotFinite:
            found.append(np.full(len(SUBMITTED), np.nan))
        finally:
            shutil.rmtree(patient["scratch"], ignore_errors=True)
    return np.stack(found)

# %% [markdown]
# ## The decision
# A patient without a prediction gets what is best without looking: the shares of the training patients times the cost
# of each grade.

# %%
#| export
def decide(
    patients: pd.DataFrame,  # patient_id and SUBMITTED, which are empty where nothing is predicted yet
    sample: pd.DataFrame,    # patient_id, SUBMITTED
    metadata: dict,          # classifier.json: scaling
) -> pd.DataFrame:           # the submission
    "Put the predictions of the patients into the order of the sample."
    prior = prior_submission(sample["patient_id"], pd.Series(metadata["scaling"]["shares"]), costs=True)
    for organ, grades in GRADES.items():
        own = [f"{organ}_{grade}" for grade in grades]
        prior[own] = prior[own].div(prior[own].sum(axis=1), axis=0)
    known = patients[patients[SUBMITTED[0]].notna()].drop_duplicates("patient_id").set_index("patient_id")
    made = known[list(SUBMITTED)].astype(float).reindex(sample["patient_id"]).fillna(prior)
    return made.clip(0, 1).rename_axis("patient_id").reset_index()[sample.columns.tolist()]

# %%
shares = {c: .9 if c.endswith("healthy") else .1 for c in SUBMITTED}
example = pd.DataFrame({"patient_id": ["b", "a"], **dict.fromkeys(SUBMITTED, [.25, np.nan])})
asked = pd.DataFrame({"patient_id": ["a", "b", "c"], **dict.fromkeys(SUBMITTED, .5)})
made = decide(example, asked, {"scaling": {"shares": shares}})
assert made["bowel_injury"].round(4).tolist() == [.1818, .25, .1818] and made["patient_id"].tolist() == ["a", "b", "c"]

# %% [markdown]
# ## The declaration

# %%
#| export
TABLE = ["file", "patient_id", "series", "slices", *SUBMITTED, "note", "error", "network"]

def modes_of(
    metadata: dict,    # classifier.json: members
    flip: bool,        # not used
    name: str,         # name of the engine
) -> list[Mode]:
    "The whole ensemble; the time goes into reading."
    return [Mode(name, len(metadata["members"]), (metadata["members"][0]["size"],) * 2)]

def item_entries(
    weights: Path,     # folder with segmenter.* and classifier.*
    metadata: dict,    # classifier.json
) -> dict:             # entries of each item, for `prepare_item`
    "How volumes are made. Raises EngineError for half of the weights."
    seen: Seen = check_weights(weights)
    return {"window": seen.window, "faithful": seen.faithful}

def per_patient(
    test: ItemSet,
    found: pd.DataFrame,   # predictions, error and network, a row for each of `test.items`
    metadata: dict,        # classifier.json: demonstration
) -> pd.DataFrame:         # TABLE
    "The table of patients."
    table = pd.concat([test.items, found.drop(columns="file")], axis=1).reindex(columns=TABLE)
    word = caution(metadata["demonstration"])
    table["note"] = [f"{note}; {word}" if isinstance(note, str) and note else word for note in table["note"]]
    return table

submission = Submission(
    system=system.name, competition=COMPETITION, read_test=read_test, prepare=prepare_item, decide=decide,
    draw_hidden_test=hidden_test, engine="classifier", columns=SUBMITTED, predict=predict, collate=list,
    modes=modes_of, entries=item_entries, open_engine=open_engines, tabulate=per_patient, sample=SAMPLE, tables=(),
    table="test_per_patient.csv", item="patients", group="patients")

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
    workers: int | None = None,    # processes that read series; None means one a core
) -> pd.DataFrame:                 # the submission
    "Test images -> submissions/submission.csv, test_per_patient.csv and submit.json."
    return submit_stage(run, submission, run.path(place_of(run)), workers)

# %%
decided = run_stage(run, workers or None)
table, report = pd.read_csv(run.path("test_per_patient.csv")), read_json(run.path("submit.json"))
print(f"{len(decided)} rows", *summary(report), sep="\n")
assert decided["patient_id"].equals(test.sample["patient_id"]) and decided[list(SUBMITTED)].stack().between(0, 1).all()
decided.round(3).head(6).T

# %% [markdown]
# ## What came out
# The probability of an injury of each organ.

# %%
injured = 1 - decided[[f"{organ}_healthy" for organ in GRADES]]
fig, ax = plt.subplots(figsize=(6, 2.6))
ax.imshow(injured.to_numpy().T, vmin=0, vmax=1, cmap="Reds", aspect="auto")
ax.set(yticks=range(len(GRADES)), yticklabels=list(GRADES), xlabel="patient", title="probability of an injury")
answers = competition / "truth" / "test.csv"
if answers.is_file():   # a drawn competition: points are the injuries that there are
    truth = read_labels(answers).set_index("patient_id").loc[decided["patient_id"]]
    ill = 1 - truth[[f"{organ}_healthy" for organ in GRADES]].to_numpy()
    ax.plot(*np.argwhere(ill).T, "o", color="black", ms=4)

# %% [markdown]
# ---
# [← Engines](09_engines.py) · [Report →](11_report.py)

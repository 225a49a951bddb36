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
# > The hidden test set of the competition: from a flat folder of slices to six probabilities for each.
#
# [The submission of all systems](../core/63_submit.py) keeps the time limit, survives damaged files and writes a valid
# file from the first second. This notebook has the parts of this competition. An item is a series, because its slices
# are predicted together, and each of its slices has a row of its own in every table.

# %%
#| default_exp ich.submit

# %%
#| export
import tempfile
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammo_nb.core.budget import Mode
from mammo_nb.core.pictures import sheet
from mammo_nb.core.files import read_csv
from mammo_nb.core.runs import Run
from mammo_nb.core.submission import ItemSet, Submission, caution
from mammo_nb.core.submit import submit_stage
from mammo_nb.ich.learning.graphs import Bag, check_bag, open_bag, predict_series
from mammo_nb.ich.reading.competition import SAMPLE, CompetitionError, images_folder, place_of, split_ids
from mammo_nb.ich.reading.inputs import Seen, encoder_inputs, find_slices, read_picture, read_series_pictures
from mammo_nb.ich.recipes import CLASSES, COMPETITION
from mammo_nb.ich.system import system
from mammo_nb.ich.tools.hidden import hidden_test

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.files import read_json
from mammo_nb.core.practice import practice
from mammo_nb.core.submit import summary

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run; the stage has no section of its own
workers = 0                                   # processes that read slices; 0 means one a core

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="submit", overrides=overrides)
run.contract("submit")

# %% [markdown]
# ## The test set
# The sample lists the slices, and their headers say which of them belong together. A slice of a series that the sample
# does not list is read all the same, because its neighbours need it. A file that is in no series is an item of its own.

# %%
#| export
def read_sample(
    folder: Path,     # of the competition
) -> pd.DataFrame:    # ID and Label, as in the file
    "Read the sample of a submission; raises CompetitionError if an ID is twice or is not <image>_<class>."
    path = folder / SAMPLE
    sample = read_csv(path, dtype={"ID": str})[["ID", "Label"]]
    split_ids(sample, path)
    if (twice := sample["ID"].duplicated()).any():
        raise CompetitionError(f"{path} has {sample['ID'][twice.idxmax()]} twice. Get the file again.")
    return sample

def read_test(
    folder: Path,   # the competition
) -> ItemSet:       # a row of `items` for each slice; `file` names its series, or the file itself
    "Read the sample and arrange the slices of the test images."
    sample, images = read_sample(folder), images_folder(folder, "test")
    wanted = sample["ID"].str.rpartition("_")[0].drop_duplicates()
    with tempfile.TemporaryDirectory() as journal:
        table, _ = find_slices(images, Path(journal))
    table["image_file"] = images.name + "/" + table["file"]
    placed = table["place"].ne("")
    table["file"] = table["series"].where(placed, table["image_file"])
    table = table[placed | table["image_id"].isin(wanted)].reset_index(drop=True)
    names = ["file", "image_file", "frame", "patient_id", "study", "series", "image_id", "place", "position_mm", "note"]
    return ItemSet(sample, table[names], "image_id", wanted.tolist(), {
        "slices that are not in the sample": sorted(set(table["image_id"]) - set(wanted)),
        "slices of the sample without a file": sorted(set(wanted) - set(table["image_id"]))})

# %%
competition = run.path(place_of(run))
test = read_test(competition)
assert len(test.sample) == 6 * len(test.groups) and not any(test.differences.values())
test.items.groupby("file", sort=False).agg(slices=("image_id", "size"), patient=("patient_id", "first")).head(4)

# %% [markdown]
# ## One series
# A worker process reads the slices and makes the input of the classifiers. A slice that cannot be read has an error,
# and the others close ranks. The network puts its predictions into the rows of the series.

# %%
#| export
def prepare_item(
    item: dict,   # folder, rows; settings and faithful of the weights
    mode: Mode,   # its views
) -> tuple[dict, dict]:  # row; inputs, kept: numbers of the rows that are predicted, rows: their count, views
    "Read the slices of a series; raises DicomError if none of them can be read."
    cv2.setNumThreads(1)  # the processes share the cores already
    settings = Seen.read(item["settings"])
    rows = [{**row, "file": row["image_file"]} for row in item["rows"]]
    pictures, kept, errors = read_series_pictures(Path(item["folder"]), rows, settings)
    if not pictures:
        read_picture(Path(item["folder"]), rows[0], settings)
    row = {"slices": len(rows)}
    if any(errors):
        row["error"] = errors
    return row, {"inputs": encoder_inputs(pictures, settings), "kept": kept, "rows": len(rows), "views": mode.views}

def predict(
    bag: Bag,
    batch: list[dict],  # from `prepare_item`
) -> list[np.ndarray]:  # for each series (rows, CLASSES and cnn_any); NaN where a slice could not be read
    "Predict series, each alone."
    found = []
    for series in batch:
        together, alone = predict_series(bag, series["inputs"], series["views"])
        values = np.full((series["rows"], len(CLASSES) + 1), np.nan, np.float32)
        values[series["kept"]] = np.hstack([together, alone[:, -1:]])
        found.append(values)
    return found

# %% [markdown]
# ## The decision
# A probability is clipped as the metric clips it. A slice without a prediction keeps the value of the sample.

# %%
#| export
CLIP = 1e-5

def decide(
    slices: pd.DataFrame,  # image_id and CLASSES
    sample: pd.DataFrame,  # ID, Label
    metadata: dict,        # not used
) -> pd.DataFrame:         # the submission
    "Put the probabilities of the slices into the rows of the sample."
    known = slices[slices["any"].notna()].drop_duplicates("image_id")
    long = known.melt("image_id", list(CLASSES), "kind", "value")
    values = long["value"].clip(CLIP, 1 - CLIP).set_axis(long["image_id"] + "_" + long["kind"])
    return sample[["ID"]].assign(Label=sample["ID"].map(values).fillna(sample["Label"]))

# %%
example = pd.DataFrame({"image_id": ["ID_b", "ID_a", "ID_c"], **dict.fromkeys(CLASSES, [.25, 0, np.nan])})
asked = pd.DataFrame({"ID": [f"ID_{i}_{c}" for i in "abc" for c in ("any", "subdural")], "Label": .5})
assert decide(example, asked, {})["Label"].tolist() == [1e-5, 1e-5, .25, .25, .5, .5]

# %% [markdown]
# ## The declaration
# The mean over several views (TTA) takes several times as long, so the planner leaves it out if the time runs short.

# %%
#| export
TABLE = ["file", "patient_id", "study", "series", "image_id", "place", "position_mm", *CLASSES, "cnn_any", "note",
         "error", "network"]

def modes_of(
    metadata: dict,    # encoder.json: folds, size, tta
    flip: bool,        # not used: the weights say whether views are averaged
    name: str,         # name of the engine
) -> list[Mode]:       # from best to cheapest
    "With the mean over several views, if the sequence models were trained on it, and without."
    plain = Mode(name, metadata["folds"], tuple(metadata["size"]))
    if metadata["tta"] == 1:
        return [plain]
    return [Mode(name, plain.folds, plain.size, views=metadata["tta"]), plain]

def item_entries(
    weights: Path,     # folder with encoder.* and sequence.*
    metadata: dict,    # encoder.json
) -> dict:             # entries of each item, for `prepare_item`
    "How the input is made; raises CompetitionError for weights of other classes, EngineError for half a bag."
    check_bag(weights)
    if tuple(metadata["classes"]) != CLASSES:
        raise CompetitionError(f"{weights} predicts {', '.join(metadata['classes'])}, and the competition asks for "
                               f"{', '.join(CLASSES)}. Name weights that were trained on its labels.")
    return {"settings": {f.name: metadata[f.name] for f in fields(Seen)}}

def per_slice(
    test: ItemSet,
    found: pd.DataFrame,   # predictions, error and network, a row for each of `test.items`
    metadata: dict,        # encoder.json: demonstration
) -> pd.DataFrame:         # TABLE; a row a slice, those of a series in its order
    "The table of slices."
    table = pd.concat([test.items.drop(columns="file"), found.drop(columns="file")], axis=1)
    table = table.rename(columns={"image_file": "file"})
    word = caution(metadata["demonstration"])
    table["note"] = [f"{note}; {word}" if note else word for note in table["note"]]
    return table[TABLE]

def show_series(
    table: pd.DataFrame,  # test_per_slice.csv
    folder: Path,         # the competition
    count: int = 24,      # largest number of slices that are shown
):                        # a matplotlib figure
    "Show the series of the most suspicious slice, with the probability of each slice."
    if not table["any"].notna().any():
        return None
    series = table.loc[table["any"].idxmax(), "series"]
    rows = table[table["series"].eq(series) & table["any"].notna()]
    start = max(0, rows["any"].argmax() - count // 2)
    rows = rows.iloc[start:start + count].fillna({"note": ""}).assign(frame="")
    figure = sheet([read_picture(folder, row, Seen(0, ()))[..., 0] for row in rows.to_dict("records")], columns=8)
    for axis, p in zip(figure.axes, rows["any"]):
        axis.set_title(f"{p:.2f}", fontsize=8, color="white", pad=2)
    return figure

submission = Submission(
    system=system.name, competition=COMPETITION, read_test=read_test, prepare=prepare_item, decide=decide,
    draw_hidden_test=hidden_test, engine="encoder", columns=(*CLASSES, "cnn_any"), predict=predict, collate=list,
    modes=modes_of, entries=item_entries, open_engine=open_bag, tabulate=per_slice, sample=SAMPLE, tables=(),
    table="test_per_slice.csv", item="series", group="slices", show=show_series)

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
    workers: int | None = None,    # processes that read slices; None means one a core
) -> pd.DataFrame:                 # the submission
    "Test images -> submissions/submission.csv, test_per_slice.csv and submit.json."
    return submit_stage(run, submission, run.path(place_of(run)), workers)

# %%
decided = run_stage(run, workers or None)
table, report = pd.read_csv(run.path("test_per_slice.csv")), read_json(run.path("submit.json"))
print(f"{len(decided)} rows", *summary(report), sep="\n")
assert decided["ID"].equals(test.sample["ID"]) and decided["Label"].between(CLIP, 1 - CLIP).all()
decided.head(6)

# %% [markdown]
# ## What came out
# The probability of any hemorrhage along each series: of the bag, and of the classifiers alone, which see no
# neighbours.

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 2.4), sharey=True)
for ax, (name, rows) in zip(axes, table.dropna(subset="place").groupby("series")):
    ax.plot(rows["place"], rows["cnn_any"], ".-", color="lightgrey", label="classifiers")
    ax.plot(rows["place"], rows["any"], ".-", label="bag")
    ax.set(title=name, xlabel="slice", ylim=(0, 1))
axes[0].set_ylabel("probability of any")
axes[0].legend(fontsize=8);

# %%
show_series(table, competition);

# %% [markdown]
# ---
# [← Engines](09_engines.py) · [Report →](11_report.py)

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
# # Submission
# > What a system declares so that one submission, one rehearsal and one Kaggle notebook serve all systems.
#
# Competitions differ in what is predicted (an image, a series of slices), in the columns of the submission and in what
# a row stands for. Time limit, damaged files, resumption and the first valid file are the same for all. So a system
# declares the former as an object of the class `Submission`, and [submit](63_submit.py) does the latter.

# %%
#| default_exp core.submission

# %%
#| export
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom

import mammo_nb
from mammo_nb.core.budget import read_modes
from mammo_nb.core.engines import Engine
from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import read_json
from mammo_nb.core.pictures import NOT_A_DEVICE
from mammo_nb.core.providers import open_ensemble
from mammo_nb.core.settings import SettingsError, check_parts, find_trained

# %%
#| export
DEMONSTRATION = f"demonstration weights, not for clinical use, {NOT_A_DEVICE}"  # of weights trained on drawn patients

class SubmissionError(ProjectError):
    "A competition, a declaration or a prediction from which no valid submission follows."

class MissingWeights(ProjectError):
    "No folder with the weights of a system."

# %% [markdown]
# ## The test set
# An item is what one worker process reads: an image, or all files of a series. Its column `file` identifies it. A group
# is what the submission has a value for: a breast, a study, a slice. Items are predicted in turns, first one item of
# each group, then the second of each. So if the time runs out, few groups have no prediction at all.
#
# An item may have several rows, such as a series whose slices are predicted together. What is said of the item then has
# either one value for all of its rows, or a list with a value for each.

# %%
#| export
@dataclass(frozen=True)
class ItemSet:
    "The test set of a competition, compared with its sample of a submission."
    sample: pd.DataFrame   # sample_submission.csv, or what the competition calls it
    items: pd.DataFrame    # a row for each item and group; column `file` and columns for the system's own functions
    group: str             # name of the column of `items` that names the group
    groups: list           # the groups of the sample; some may have no item
    differences: dict      # where the tables disagree: description -> count or list of ids

    def turns(self) -> pd.DataFrame:  # one row for each item, in the order of prediction
        "The items, one of each group first."
        nth = self.items.groupby(self.group).cumcount()
        return self.items.iloc[np.argsort(nth.to_numpy(), kind="stable")].drop_duplicates("file")

def by_row(
    values: list,      # for each row of `ItemSet.items` the entry of its item; a list has a value for each row of it
    files: pd.Series,  # the column `file` of `ItemSet.items`
) -> list:             # for each row its own value
    "Give each row of an item its own value; raises SubmissionError if a list has another number of values."
    nth = files.groupby(files).cumcount()
    count = files.map(files.value_counts())
    found = []
    for value, file, k, n in zip(values, files, nth, count):
        if isinstance(value, list) and len(value) != n:
            raise SubmissionError(f"{file} has {n} rows, and a list of {len(value)} values: `prepare` and `predict` "
                                  "must return one value for each row, in the order of the rows.")
        found.append(value[k] if isinstance(value, list) else value)
    return found

# %%
rows = pd.DataFrame({"file": ["1", "2", "3"], "id": ["a", "a", "b"]})
sample = pd.DataFrame({"id": ["a", "b"], "target": 0.5})
example = ItemSet(sample, rows, group="id", groups=["a", "b"], differences={})
assert example.turns()["file"].tolist() == ["1", "3", "2"]
series = pd.Series(["s", "s", "t"])
assert by_row([[.1, .2], [.1, .2], .3], series) == [.1, .2, .3]

# %% [markdown]
# ## The declaration
# Most functions have a default, which fits an ensemble of networks that predict one picture.

# %%
#| export
def mean_of_folds(
    engine: Engine,     # returns (n, folds) or (n, folds, classes)
    inputs: np.ndarray, # (n, ...)
) -> np.ndarray:        # (n, 1) or (n, classes)
    "The mean prediction of the networks of an ensemble."
    mean = engine(inputs).mean(1)
    return mean.reshape(len(mean), -1)

def flip_horizontally(
    inputs: np.ndarray,  # (n, ..., columns)
) -> np.ndarray:         # the same shape, contiguous
    "The mirrored inputs for horizontal-flip TTA."
    return np.ascontiguousarray(inputs[..., ::-1])

def no_entries(
    weights: Path,
    metadata: dict,
) -> dict:
    "No additional entries for the items."
    return {}

def open_network(
    weights: Path,           # folder of the weights
    name: str,               # name of the engine
    device: str = "auto",    # as in `open_ensemble`
    backend: str = "auto",   # the only provider to try, such as "torch-fp32"; "auto" takes the first that works
) -> Engine:
    "Open the engine of a submission."
    return open_ensemble(weights, name, "auto" if backend == "auto" else [backend], device)

def with_predictions(
    test: ItemSet,
    found: pd.DataFrame,  # one row for each row of `test.items`: file, what `prepare` returned, predictions, error
    metadata: dict,
) -> pd.DataFrame:        # the columns of `test.items`, then the others
    "The table of items with their predictions."
    others = found[[c for c in found if c not in test.items]]
    return pd.concat([test.items.reset_index(drop=True), others], axis=1)

@dataclass(frozen=True)
class Submission:
    "Everything of a submission that depends on the system."
    system: str           # name of the system
    competition: str      # name of the competition in its address at Kaggle
    read_test: Callable   # folder of the competition -> ItemSet
    # item, mode -> (row, input): what a worker process does with an item. The item is a dict with `file`, `folder`,
    # `row` (its first row of `ItemSet.items`), `rows` (all of them), `pngs` (folder where inputs are kept, or "") and
    # what `entries` returned. The row is a flat dict for the table of items; a list in it has a value for each row of
    # the item. The list `error` names the rows that cannot be predicted. With a true `withheld` the item gets no
    # prediction, and its `note` says why.
    prepare: Callable
    # (table, sample, metadata) -> the submission with the columns, ids and order of the sample. The table is
    # `ItemSet.items` with the columns of predictions, which are empty where an item failed or is not predicted yet.
    decide: Callable
    # folder -> the values of `file` in the table of items that cannot be read; draws tables and test images that are as
    # difficult as a hidden test set can be
    draw_hidden_test: Callable
    engine: str = "ensemble"               # the weights are <engine>.onnx and <engine>.json
    columns: tuple = ("probability",)      # names of the predictions of an item
    # engine, inputs -> float (n, len(columns)), or for each item an array (its rows, len(columns)); a row of the latter
    # that was not predicted is NaN
    predict: Callable = mean_of_folds
    flip: Callable = flip_horizontally     # inputs -> mirrored inputs, for TTA
    collate: Callable = np.stack           # list of inputs -> what the engine takes
    modes: Callable = read_modes           # metadata, flip, engine -> modes from best to cheapest
    entries: Callable = no_entries         # folder of the weights, metadata -> additional entries of each item
    open_engine: Callable = open_network   # folder of the weights, name, device, backend -> engine
    tabulate: Callable = with_predictions  # test, found, metadata -> the table of items
    first: float | None = None             # value of all targets in the first valid file; None keeps the sample's
    low: float = 0.0                       # smallest valid value of a target
    high: float = 1.0                      # largest valid value of a target
    sample: str = "sample_submission.csv"  # name of the sample of a submission
    tables: tuple = ("test.csv",)          # names of the other tables that the competition must have
    table: str = "test_per_image.csv"      # name of the table of items
    item: str = "images"                   # plural word for the items, for messages
    group: str = "groups"                  # plural word for the groups, for messages
    show: Callable | None = None           # table of items, folder of the competition: draws a figure of a few items

    def check(self,
        decided: pd.DataFrame,  # from `decide`
        sample: pd.DataFrame,
    ) -> pd.DataFrame:          # decided
        "Raise SubmissionError if a table is not a valid submission."
        if list(decided.columns) != list(sample.columns) or len(decided) != len(sample):
            raise SubmissionError(
                f"{self.system}: `decide` returned {len(decided)} rows of {', '.join(decided.columns)}; the sample has "
                f"{len(sample)} rows of {', '.join(sample.columns)}.")
        key = sample.columns[0]
        if decided[key].tolist() != sample[key].tolist():
            raise SubmissionError(f"{self.system}: `decide` changed the values or the order of {key}.")
        values = decided[list(sample.columns[1:])]
        wrong = ~values.apply(lambda column: column.between(self.low, self.high))
        if wrong.any(axis=None):
            row = wrong.any(axis=1).idxmax()
            raise SubmissionError(
                f"{self.system}: {key} {decided[key][row]} has {values.loc[row].to_dict()}; values must lie between "
                f"{self.low:g} and {self.high:g}.")
        return decided

# %% [markdown]
# ## Odd files of a series
# A hidden test set has what no list of faults names. Systems whose images form series draw one with these changes.

# %%
#| export
def change_tags(path: Path, **tags):
    "Set tags of a DICOM file; None deletes one."
    ds = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            ds.pop(name, None)
        else:
            setattr(ds, name, value)
    ds.save_as(path)

def keep_first(
    files: list[Path],  # of a series, in order
):
    "A series of one slice."
    for path in files[1:]:
        path.unlink()

def remove_places(
    files: list[Path],
):
    "Slices without position and orientation."
    for path in files:
        change_tags(path, ImagePositionPatient=None, ImageOrientationPatient=None)

def halve_last(
    files: list[Path],
):
    "The last slice with half as many rows and columns."
    ds = pydicom.dcmread(files[-1])
    ds.PixelData = np.ascontiguousarray(ds.pixel_array[::2, ::2]).tobytes()
    ds.Rows, ds.Columns = ds.Rows // 2, ds.Columns // 2
    ds.PixelSpacing = [2 * float(s) for s in ds.PixelSpacing]
    ds.save_as(files[-1])

def cut_short(
    files: list[Path],
):
    "The second file with a third of its bytes."
    files[1].write_bytes(files[1].read_bytes()[:files[1].stat().st_size // 3])

# %% [markdown]
# ## Found by name
# A system that can submit has a module `submit` with an object `submission`. The weights at Kaggle carry the name of
# their system in `manifest.json`, and the notebook there finds the declaration by this name.

# %%
#| export
def submission_names() -> list[str]:
    "Names of the systems that can submit, sorted."
    return sorted(p.parent.name for p in Path(mammo_nb.__file__).parent.glob("*/submit.py") if p.parent.name != "core")

def find_submission(
    system: str,   # name of a system
) -> Submission:
    "The declaration of a system; raises SubmissionError that lists the names."
    if system not in submission_names():
        raise SubmissionError(f"No system {system!r} can submit. There are {', '.join(submission_names())}.")
    return importlib.import_module(f"mammo_nb.{system}.submit").submission

def read_submission(
    weights: Path,   # a folder that `gather_weights` has made
) -> Submission:
    "The declaration of the system that some weights belong to."
    path = Path(weights) / "manifest.json"
    system = read_json(path).get("system") if path.is_file() else None
    if not system:
        raise SubmissionError(
            f"{weights} has no manifest.json that names a system. Make the folder with make kaggle-weights.")
    return find_submission(system)

# %%
try:
    find_submission("nobody")
except SubmissionError as e:
    print(e)

# %% [markdown]
# The folder of the weights is the one that is named, else `assets/trained`, else that of the newest finished run.

# %%
#| export
def find_weights(
    engine: str,                  # the weights are <engine>.onnx and <engine>.json
    weights: Path | None = None,  # a folder, or the folder of a run; None or "" searches
) -> Path:                        # the folder
    "Find the weights of a system; raises MissingWeights, or PartsError if a part belongs to another training."
    try:
        found = find_trained([f"{engine}.onnx", f"{engine}.json"], weights)
    except SettingsError:
        raise MissingWeights(
            "No weights were named. Name a folder with --weights, or start in a checkout of mammo_nb.") from None
    if found:
        check_parts(found)
        return found
    if weights and not Path(weights).exists():
        raise MissingWeights(f"{weights} does not exist. Name a folder with {engine}.onnx and {engine}.json.")
    if weights:
        raise MissingWeights(
            f"{weights} has no {engine}.onnx with its {engine}.json. `make reproduce` of the system writes such a "
            "folder, named `weights`, into the folder of the run.")
    raise MissingWeights(
        f"There is no {engine}.onnx yet. `make reproduce` of the system trains demonstration weights in minutes. Other "
        "weights go to assets/trained, or are named: --weights folder, with make WEIGHTS=folder.")

# %% [markdown]
# ## Where weights come from
# A probability is worth what its weights are worth. So a prediction says which run, which data and how many patients
# they come from, and how they scored out of fold. Weights that are found and not named are used only if they are better
# than guessing: the 95 % interval of their AUC has to lie above 0.5.

# %%
#| export
class WeakWeights(SubmissionError):
    "Weights that nobody has named and that are no better than guessing."

def caution(
    demonstration: bool,   # whether the weights were trained on drawn patients
) -> str:
    "The words that stand beside each prediction."
    return DEMONSTRATION if demonstration else NOT_A_DEVICE

def origin(
    folder: Path,      # of the weights
    metadata: dict,    # their JSON: recipe; trained: data, patients, breasts, cancers, auc, auc_95
) -> str:
    "Where weights come from, in one sentence."
    about = metadata.get("trained")
    if not about:
        return f"{folder}: recipe {metadata.get('recipe', 'unknown')}; their data and their score are not recorded"
    low, high = about["auc_95"]
    return (f"{folder}: recipe {metadata['recipe']}, trained on {about['data']}, "
            f"{about['patients']} patients; out-of-fold AUC per breast {about['auc']:.3f} (95 % {low:.3f} to "
            f"{high:.3f}, {about['breasts']} breasts, {about['cancers']} with cancer)")

def check_score(
    folder: Path,      # of the weights
    metadata: dict,    # as for `origin`
):
    "Raise WeakWeights if the interval of the AUC reaches 0.5."
    about = metadata.get("trained")
    if about and about["auc_95"][0] <= 0.5:
        raise WeakWeights(f"{origin(folder, metadata)}. That is no better than guessing, so these weights are used "
                          f"only if you name them: --weights {folder}.")

# %%
about = {"data": "a drawn competition", "patients": 12, "breasts": 24, "cancers": 6, "auc": 0.519,
         "auc_95": [0.159, 0.843]}
try:
    check_score(Path("runs/tiny/weights"), {"recipe": "tiny", "trained": about})
except WeakWeights as e:
    print(e)
check_score(Path("w"), {"recipe": "demo", "trained": {**about, "auc": 0.995, "auc_95": [0.983, 1.0]}})

# %% [markdown]
# ---
# [← Budget](61_budget.py) · [Submit →](63_submit.py)

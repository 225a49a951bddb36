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
# > The hidden test set in one pass, with a valid file from the first second.
#
# A submission that crashes after eight hours scores nothing, and neither does one that needs longer than nine. So
# `submission.csv` is written at once from the sample, and replaced whenever more is known. A file that cannot be read
# costs its own prediction and no other. If the time runs short, [the planner](61_budget.py) drops the least important
# work first.

# %%
#| default_exp core.submit

# %%
#| export
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

from mammo_nb.core.budget import Mode, Planner, in_words, read_budget
from mammo_nb.core.engines import Engine
from mammo_nb.core.errors import ending
from mammo_nb.core.files import read_csv, read_json, replacing, write_csv, write_json
from mammo_nb.core.parallel import UNREACHED, collect
from mammo_nb.core.runs import Run
from mammo_nb.core.sidecars import read_entries
from mammo_nb.core.stream import flow, grouped
from mammo_nb.core.submission import ItemSet, Submission, SubmissionError, by_row, find_weights

# %%
#| hide
import tempfile
from types import SimpleNamespace

# %% tags=["parameters"]
studies = 12   # of the competition that is drawn below

# %% [markdown]
# ## The networks
# Each GPU has an engine of its own; without a GPU the CPU has one. A cheaper variant replaces the engine before it, so
# that two never share the memory.

# %%
#| export
def devices() -> list[str]:  # such as cuda:0; cpu without a GPU
    "The devices that can run networks."
    import torch
    return [f"cuda:{k}" for k in range(torch.cuda.device_count())] or ["cpu"]

class Network:
    "A device and the engine that is open on it."
    def __init__(self,
        submission: Submission,
        weights: Path,           # folder of the weights
        device: str,             # as in `devices`
        backend: str = "auto",   # as in `open_network`
    ):
        self.submission, self.weights, self.device, self.backend = submission, weights, device, backend
        self.name, self.engine = None, None

    def open(self,
        name: str,   # name of an engine
    ) -> Engine:
        "The engine of this name, opened if it is not open already."
        if name != self.name:
            self.engine, self.name = None, None  # frees its memory before the next engine needs some
            self.engine = self.submission.open_engine(self.weights, name, self.device, self.backend)
            self.name = name
        return self.engine

    def __call__(self, mode: Mode, inputs) -> list[dict]:
        "The predictions of a collated batch, a dict for each item; with flip TTA the mean over inputs and their flip."
        engine = self.open(mode.name)
        predicted = self.submission.predict(engine, inputs)
        if mode.flip:
            predicted = (predicted + self.submission.predict(engine, self.submission.flip(inputs))) / 2
        return [self._row(mode, values) for values in predicted]

    def _row(self, mode: Mode, values: np.ndarray) -> dict:
        if values.ndim == 2:  # a row of predictions for each row of the item
            kept = np.isfinite(values).all(1)
            columns = zip(self.submission.columns, values.T, strict=True)
            named = {column: [round(float(v), 6) if k else None for v, k in zip(of_rows, kept)]
                     for column, of_rows in columns}
            return {**named, "network": str(mode)}
        if not np.isfinite(values).all():
            return {"error": f"NotFinite: {mode} predicted {', '.join(map(str, values))}"}
        named = {column: round(float(v), 6) for column, v in zip(self.submission.columns, values, strict=True)}
        return {**named, "network": str(mode)}

def batch_size(
    engine: Engine,
) -> int:      # items
    "The batch that an engine was built for, else four."
    return engine.metadata["batches"][1] if "batches" in engine.metadata else 4

# %% [markdown]
# ## One pass
# Processes prepare the items and the networks predict them. A valid submission is there all the time: first the sample,
# then after each tenth of the items what is known so far, since a crash should cost only the remaining items. The last
# file has everything. The journal of [the table](35_parallel.py) lets the same call continue where a killed one
# stopped.

# %%
#| export
@dataclass(frozen=True)
class Output:
    "The files of a submission."
    submission: Path   # submission.csv
    table: Path        # the table of items
    report: Path       # submit.json

def _first_file(submission: Submission, folder: Path, target: Path):
    "Write a valid submission that needs no prediction."
    sample = folder / submission.sample
    needed = (submission.sample, *submission.tables)
    missing = [name for name in needed if not (folder / name).is_file()]
    if sample.is_file():
        with replacing(target) as temporary:
            shutil.copyfile(sample, temporary)
        if submission.first is not None:
            table = read_csv(sample, dtype=str, keep_default_na=False)
            table[list(table.columns[1:])] = submission.first
            write_csv(target, table)
    if missing:
        raise SubmissionError(
            f"{folder} has no {' and no '.join(missing)}. Name the folder with {', '.join(sorted(needed)[::-1])} and "
            "the test images, as the competition provides it.")

class _Pass:
    "One pass through a test set."
    def __init__(self, submission: Submission, test: ItemSet, weights: Path, backend: str, folder: Path,
                 pngs: Path | None):
        self.submission, self.test = submission, test
        self.metadata = read_entries(weights / f"{submission.engine}.json")
        self.networks = [Network(submission, weights, device, backend) for device in devices()]
        more = {"folder": str(folder), "pngs": str(Path(pngs).resolve()) if pngs else "",
                **submission.entries(weights, self.metadata)}
        rows = defaultdict(list)
        for row in test.items.to_dict("records"):
            rows[row["file"]].append(row)
        self.items = [{"file": f, "row": rows[f][0], "rows": rows[f], **more} for f in test.turns()["file"]]

    def decide(self, predictions: pd.DataFrame) -> pd.DataFrame:
        "The submission; predictions are in the rows of `ItemSet.items`."
        return self.submission.check(
            self.submission.decide(predictions, self.test.sample, self.metadata), self.test.sample)

    def known(self, by_file: dict) -> pd.DataFrame:
        "`ItemSet.items` with the predictions of all items that are done; file -> row."
        files, nothing = self.test.items["file"], {}
        columns = {}
        for c in self.submission.columns:
            rows = (by_file.get(f, nothing) for f in files)
            values = by_row([None if row.get("withheld") else row.get(c) for row in rows], files)
            columns[c] = pd.to_numeric(pd.Series(values, index=files.index))
        return self.test.items.assign(**columns)

    def rows(self, planner: Planner, batch: int, workers: int, write: Callable, hashed: dict, done: dict):
        "Predict the items that are not done yet; yields (hash, row), as `collect` takes them."
        tenth = -(-len(hashed) // 10)
        files = {h: item["file"] for h, item in hashed.items()}

        def save():
            write(self.decide(self.known({files[h]: row for h, row in done.items() if h in files})))

        groups = grouped(hashed, {h: item for h, item in hashed.items() if h not in done}, batch)
        stream = flow(groups, self.submission.prepare, self.networks, planner, workers=workers,
                      limit=2 * workers + 2 * batch * len(self.networks), until=planner.until,
                      collate=self.submission.collate)
        try:
            with closing(stream) as rows:
                for n, row in enumerate(rows, 1):
                    yield row
                    if n % tenth == 0:
                        save()
        except BaseException:
            save()
            raise

    def table(self, found: pd.DataFrame) -> pd.DataFrame:
        "The table of items in the order of the test set."
        files = self.test.items["file"]
        found = found.set_index("file").reindex(files).reset_index()
        for column in found:
            if found[column].map(type).eq(list).any():
                found[column] = pd.Series(by_row(found[column].tolist(), files)).infer_objects()
        found = found.reindex(columns=list(dict.fromkeys([*found, *self.submission.columns, "error", "network"])))
        for column in self.submission.columns:
            found[column] = pd.to_numeric(found[column])
        withheld = found.get("withheld", pd.Series(False, found.index)).eq(True)
        found.loc[withheld, list(self.submission.columns)] = None
        lost = found["error"].eq("") & ~withheld & found[self.submission.columns[0]].isna()
        found.loc[lost, "error"] = "NotFinite: " + found.loc[lost, "network"].astype(str) + " predicted no number"
        return self.submission.tabulate(self.test, found, self.metadata)

def submit_items(
    submission: Submission,     # declaration of the system
    folder: Path,               # the competition: its tables and test images; it is only read
    weights: Path | None,       # as in `find_weights`
    output: Output,
    *,
    budget: str = "",           # time limit, such as 8h30m; "" means none
    flip: bool = False,         # whether to use horizontal-flip TTA while there is time
    workers: int | None = None, # processes that prepare items; None is one a core; 0 does everything in this process
    pngs: Path | None = None,   # folder where the inputs of the networks are kept; None keeps none
    backend: str = "auto",      # as in `open_network`
    clock: Callable = time.monotonic,  # returns seconds; processes share it
) -> pd.DataFrame:              # the submission
    "Predict a test set in one pass and write the submission, the table of items and the report."
    started, folder = clock(), Path(folder).resolve()
    with ending():
        _first_file(submission, folder, output.submission)
        seconds, test = read_budget(budget), submission.read_test(folder)
        work = _Pass(submission, test, find_weights(submission.engine, weights).resolve(), backend, folder, pngs)
        batch = batch_size(work.networks[0].open(submission.engine))
        workers = joblib.cpu_count() if workers is None else workers
        planner = Planner(submission.modes(work.metadata, flip, submission.engine), group=batch, seconds=seconds,
                          workers=max(1, workers), networks=len(work.networks), clock=clock, started=started)
        rows_of = partial(work.rows, planner, batch, workers, partial(write_csv, output.submission))
        found = collect(rows_of, work.items, table=output.table, params={"weights": work.metadata, "flip": flip},
                        label="predict")
        table = work.table(found)
        write_csv(output.table, table)
        decided = work.decide(work.known(found.set_index("file").to_dict("index")))
        write_csv(output.submission, decided)
        settings = {"processes": workers, "batch": batch, "budget_seconds": seconds}
        settings["withheld"] = _withheld(found)
        write_json(output.report, _report(work, table, planner, settings))
    return decided

def _withheld(found: pd.DataFrame) -> dict[str, int]:
    "Count the items that got no prediction although they were read, by their notes."
    marks = found.get("withheld", pd.Series(False, found.index)).eq(True)
    return found.loc[marks, "note"].value_counts().to_dict() if marks.any() else {}

def _report(work: _Pass, table: pd.DataFrame, planner: Planner, settings: dict) -> dict:
    "The content of submit.json."
    submission, test, engine = work.submission, work.test, work.networks[0].engine
    files, known = test.items["file"].to_numpy(), table[submission.columns[0]].notna().to_numpy()
    errors = table["error"].to_numpy()
    items = pd.DataFrame({  # an item is predicted if any of its rows is, and failed if any of its rows did
        "predicted": known, "reached": errors != UNREACHED, "failed": (errors != UNREACHED) & (errors != "")
    }).groupby(files, sort=False).any()
    reached = items["reached"]
    spent = planner.clock() - planner.started
    known = set(test.items[test.group][known])
    used = table["network"][~pd.Series(files).duplicated().to_numpy()].value_counts()
    best = str(planner.modes[0])
    dropped = [f"{n} {submission.item} with {mode} instead of {best}" for mode, n in used.items() if mode != best]
    if not reached.all():
        dropped.append(f"{(~reached).sum()} {submission.item} not reached")
    return {
        "system": submission.system, "item": submission.item, "group": submission.group,
        "items": len(items), "predicted": int(items["predicted"].sum()), "not_reached": int((~reached).sum()),
        "failed": int(items["failed"].sum()), "rows": len(test.sample), "groups": len(test.groups),
        "groups_without_prediction": sorted(set(test.groups) - known), "differences": test.differences,
        "engine": f"{engine.name}, {engine.precision}", "refused": list(engine.refused),
        "networks": [network.device for network in work.networks], **settings, "seconds": round(spent, 1),
        "modes": [str(m) for m in planner.modes], "done_with": {mode: int(n) for mode, n in used.items()},
        "dropped": dropped, "plan": planner.log, "rates": planner.rates(), "waited": planner.waited(),
        "items_per_second": round(len(planner.decodes) / max(spent, 1e-9), 3)
    }

# %% [markdown]
# ## For the stages, the commands and the notebook at Kaggle

# %%
#| export
def submit(
    submission: Submission,     # declaration of the system
    competition: Path,          # folder with the tables and the test images; it is only read
    weights: Path | None,       # as in `find_weights`
    output: Path,               # submission.csv, the table of items and submit.json go here
    **how,                      # budget, flip, workers, pngs, backend of `submit_items`
) -> pd.DataFrame:              # the submission
    "Predict a competition and write its submission into a folder."
    output = Path(output)
    files = Output(output / "submission.csv", output / submission.table, output / "submit.json")
    return submit_items(submission, competition, weights, files, **how)

def submit_stage(
    run: Run,
    submission: Submission,     # declaration of the system
    competition: Path,          # folder with the tables and the test images; it is only read
    workers: int | None = None, # processes that prepare items; None is one a core
) -> pd.DataFrame:              # the submission
    "Predict the test set of a run: submissions/submission.csv, the table of items and submit.json."
    place = find_weights(submission.engine, run.weights or run.path("weights/")).resolve()
    files = Output(run.path("submissions/submission.csv"), run.path(submission.table), run.path("submit.json"))
    with run.stage("submit") as results:
        results["weights"] = place.name
        return submit_items(submission, competition, place, files, workers=workers)

def summary(
    report: dict,       # submit.json
) -> list[str]:         # lines to print
    "Describe how a submission went."
    item, group, nothing = report["item"], report["group"], report["groups_without_prediction"]
    lines = [
        f"{report['predicted']} of {report['items']} {item} predicted in {in_words(report['seconds'])}, "
        f"{report['items_per_second']} a second; {report['failed']} failed, {report['not_reached']} not reached"]
    if report["waited"]:
        lines.append("waited: " + ", ".join(f"{part} {share:.0%}" for part, share in report["waited"].items()))
    lines += [f"{n} {item} without a prediction: {note}" for note, n in report["withheld"].items()]
    lines += [f"not used: {reason}" for reason in report["refused"]]
    lines += report["dropped"]
    for what, found in report["differences"].items():
        if found:
            many = found if isinstance(found, int) else f"{len(found)}, such as {found[0]}"
            lines.append(f"ids: {what}: {many}")
    if nothing:
        lines.append(f"{len(nothing)} of {report['groups']} {group} have no prediction, such as {nothing[0]}")
    return lines

# %% [markdown]
# ## What came out
# A competition of studies with several targets in one row, and a system that reads them from text files. One file is
# damaged, so its study keeps the value of the sample.

# %%
targets = ("left", "middle", "right")
folder = Path(tempfile.mkdtemp())
sample = pd.DataFrame({"study": [f"s{k}" for k in range(studies)], **dict.fromkeys(targets, 0.5)})
write_csv(folder / "sample_submission.csv", sample)
write_csv(folder / "test.csv", sample[["study"]])
for k, study in enumerate(sample["study"]):
    (folder / study).write_text("damaged" if k == 3 else str(k / studies))
(folder / "toy.onnx").touch()
write_json(folder / "toy.json", {"folds": 1, "size": [1, 3]})

def read_test(folder):
    sample = pd.read_csv(folder / "sample_submission.csv")
    return ItemSet(sample, sample[["study"]].assign(file=sample["study"]), "study", sample["study"].tolist(), {})

def prepare(item, mode):
    return {}, np.full((1, 3), float(Path(item["folder"], item["file"]).read_text()))

def decide(table, sample, metadata):
    return sample[["study"]].assign(**{t: table[t].fillna(sample[t]) for t in targets})

def open_engine(weights, name, device, backend):
    return SimpleNamespace(metadata={"batches": [1, 4, 4]}, name="toy", precision="fp32", refused=())

toy = Submission("toy", "toy-competition", read_test, prepare, decide, draw_hidden_test=None, engine="toy",
                 columns=targets, predict=lambda engine, x: x[:, 0] * [1, .5, .25], open_engine=open_engine,
                 item="studies", group="studies")
decided = submit(toy, folder, folder, folder / "out", workers=0)
assert decided["middle"].round(3).tolist() == [0.5 if k == 3 else round(k / studies / 2, 3) for k in range(studies)]
print(*summary(read_json(folder / "out/submit.json")), sep="\n")
decided.head(5)

# %% [markdown]
# ---
# [← Submission](62_submission.py) · [Wheels →](64_wheels.py)

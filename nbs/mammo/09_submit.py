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
# # Submit
# > The hidden test set goes through in one pass, and a valid file exists from the first second.
#
# A submission that crashes after eight hours scores nothing, and so does one that is not finished after nine. So
# `submission.csv` is written at once from the sample and replaced as soon as more is known; a file that cannot be read
# costs its own breast and no other; and if time runs short, what matters least is dropped first.

# %%
#| default_exp mammo.submit

# %%
#| export
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

from mammo_nb.core.engines import Engine
from mammo_nb.core.files import read_json, replacing, write_csv, write_json
from mammo_nb.core.parallel import collect
from mammo_nb.core.providers import open_ensemble
from mammo_nb.core.runs import Run
from mammo_nb.core.stream import flow, grouped
from mammo_nb.mammo.tools.budget import Mode, Planner, in_words, read_budget, read_modes
from mammo_nb.mammo.crops import WHOLE
from mammo_nb.mammo.datasets import DatasetError, competition, read_table
from mammo_nb.mammo.reading.inputs import see_item
from mammo_nb.mammo.tools.predict import DEMONSTRATION, PER_IMAGE, detector_of, find_weights

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt

from mammo_nb.core.runs import practice
from mammo_nb.mammo.system import system

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run; the stage has no section of its own
workers = 0                                   # processes that decode; 0: one a core

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="submit", overrides=overrides)
run.contract("submit")

# %% [markdown]
# ## From images to the file
# The mean over a breast's images, `>` the threshold that the weights remember. The winner's score counts decisions, so
# the file holds 0 and 1. Ids and their order are the sample's, whatever order the test table has.

# %%
#| export
def to_submission(
    predictions: pd.DataFrame,  # prediction_id, probability (missing where a file failed); one row an image
    sample: pd.DataFrame,       # prediction_id, cancer
    threshold: float,
) -> pd.DataFrame:              # as the sample, `cancer` 0 or 1; a breast without any prediction gets 0
    "Decide for each breast of the sample."
    mean = predictions.groupby("prediction_id")["probability"].mean()
    strangers = set(mean.index) - set(sample["prediction_id"])
    if strangers:
        raise DatasetError(
            f"test.csv has {len(strangers)} prediction_id that sample_submission.csv has not, such as "
            f"{sorted(strangers)[0]}."
        )
    return sample[["prediction_id"]].assign(cancer=(sample["prediction_id"].map(mean) > threshold).astype(int))

# %%
example = pd.DataFrame({"prediction_id": ["1_L", "1_L", "2_R", "3_L"], "probability": [.9, .3, .5, None]})
decided = to_submission(example, pd.DataFrame({"prediction_id": ["3_L", "2_R", "1_L"], "cancer": .02}), threshold=.5)
assert decided["cancer"].tolist() == [0, 0, 1]   # strictly above: 0.5 is not
decided

# %% [markdown]
# ## What is asked
# The sample says which breasts count, the test table which images belong to them. Where the two disagree, the sample is
# right: images of breasts that it does not have are left out, breasts without images get 0, a row that stands twice
# counts once, and all of it is reported. Only tables that have nothing in common, or a sample with an id twice, are
# errors: there is no file that would be right.
#
# Images are done in turns, first one of each breast, then the second of each: if time runs out, few breasts have
# nothing.

# %%
#| export
@dataclass(frozen=True)
class Test:
    "What a competition asks."
    sample: pd.DataFrame   # prediction_id, cancer
    images: pd.DataFrame   # test.csv without strangers and doubles, with prediction_id and file, in its order
    told: dict             # what the two tables disagree about

    def turns(self) -> pd.DataFrame:  # one row a file, in the order in which they are done
        "First one image of each breast."
        nth = self.images.groupby("prediction_id").cumcount()
        return self.images.iloc[np.argsort(nth.to_numpy(), kind="stable")].drop_duplicates("file")

def read_test(
    folder: Path,   # the competition
    sample: Path,   # sample_submission.csv, or its copy
) -> Test:
    "Read and compare the two tables."
    wanted, test = read_table(sample, ["prediction_id", "cancer"]), read_table(
        folder / "test.csv", ["patient_id", "image_id", "laterality", "view"])
    if (twice := wanted["prediction_id"].duplicated()).any():
        raise DatasetError(
            f"sample_submission.csv has {wanted['prediction_id'][twice.idxmax()]!r} twice; each prediction_id stands "
            "in one row. Get the file again."
        )
    if "prediction_id" not in test:
        test["prediction_id"] = test["patient_id"] + "_" + test["laterality"]
    test["file"] = "test_images/" + test["patient_id"] + "/" + test["image_id"] + ".dcm"
    known = test["prediction_id"].isin(wanted["prediction_id"])
    if len(test) and not known.any():
        raise DatasetError(
            f"no prediction_id of test.csv, such as {test['prediction_id'][0]!r}, is in sample_submission.csv, which "
            f"has such as {wanted['prediction_id'].iloc[:1].tolist()}. The two belong to different sets."
        )
    images = test[known].drop_duplicates(["prediction_id", "file"]).reset_index(drop=True)
    return Test(
        wanted, images, {
            "not in sample_submission.csv, left out": sorted(test.loc[~known,
                                                                      "prediction_id"].fillna("(none)").unique()),
            "without an image in test.csv": sorted(set(wanted["prediction_id"]) - set(test["prediction_id"])),
            "rows of test.csv that stand twice": int(known.sum()) - len(images)
        })

# %%
test = read_test(run.path(competition(run)), run.path(competition(run)) / "sample_submission.csv")
assert len(test.turns()) == len(test.images) and test.turns()["prediction_id"].head(len(
    test.sample)).is_unique and not any(test.told.values())
test.turns()[["file", "prediction_id"]].head(3)

# %% [markdown]
# ## The networks
# An engine is opened here and nowhere else, by the first way that works on the machine. Each GPU has its own; without
# one there is the CPU's. A variant takes the place of the engine before it, so that two never share the memory.

# %%
#| export
def open_network(
    weights: Path,           # the folder
    name: str = "ensemble",  # of the engine
    device: str = "auto",    # as in `open_ensemble`
    backend: str = "auto",   # such as 'torch-fp32', and no other; 'auto': the first that works
) -> Engine:
    "The engine of a submission."
    from mammo_nb.mammo.learning import lesions  # noqa: F401, registers its network; needed only here
    return open_ensemble(weights, name, "auto" if backend == "auto" else [backend], device)

def devices() -> list[str]:  # such as cuda:0; cpu where there is no GPU
    "Where networks can run."
    import torch
    return [f"cuda:{k}" for k in range(torch.cuda.device_count())] or ["cpu"]

class Network:
    "One device, and the engine that is open on it."
    def __init__(self,
        open_engine: Callable,   # name, device -> Engine
        device: str,             # as in `devices`
    ):
        self.open_engine, self.device, self.name, self.engine = open_engine, device, None, None

    def open(self,
        name: str,
    ) -> Engine:
        "The engine of this name."
        if name != self.name:
            self.engine, self.name = None, None  # its memory is free before the next one wants some
            self.engine, self.name = self.open_engine(name, self.device), name
        return self.engine

    def __call__(self, mode: Mode, pictures: np.ndarray) -> list[dict]:
        "Probabilities: the mean over the folds, and with the mirror image the mean of both."
        engine = self.open(mode.name)
        mean = engine(pictures).mean(1)
        if mode.flip:
            mean = (mean + engine(np.ascontiguousarray(pictures[:, :, ::-1])).mean(1)) / 2
        return [{"probability": round(float(p), 6), "network": str(mode)}
                if np.isfinite(p) else {"error": f"NoNumber: {mode} answered {p}"} for p in mean]

def batch_of(
    engine: Engine,
) -> int:      # images
    "How many images an engine likes at once: what it was built for, else four."
    return engine.metadata["batches"][1] if "batches" in engine.metadata else 4

# %%
place = find_weights(run.weights or run.path("weights/"))
network, metadata = Network(partial(open_network, place), "cpu"), read_json(place / "ensemble.json")
plain, flipped = Mode("ensemble", metadata["folds"], tuple(metadata["size"])), Mode("ensemble", metadata["folds"],
                                                                                    tuple(metadata["size"]), flip=True)
pictures = np.random.default_rng(0).integers(0, 256, (2, *plain.size), np.uint8)
p = lambda mode, x: np.array([a["probability"] for a in network(mode, x)])
assert np.allclose(p(flipped, pictures), (p(plain, pictures) + p(plain, pictures[:, :, ::-1])) / 2,
                   atol=2e-6) and batch_of(network.engine) == 4
network(flipped, pictures)

# %% [markdown]
# ## One pass
# Processes read the files, the networks take the pictures, and a valid file is there all the time: the sample first;
# then, after each tenth of the images, what is known so far, since an engine that takes the whole process down should
# cost only what was left; at the end, or when something ends it early, everything. The journal of [the
# table](../core/33_parallel.py) lets the same call go on where it was.

# %%
#| export
@dataclass(frozen=True)
class Ensemble:
    "What is submitted with: files of weights, and how their input is made."
    metadata: dict              # threshold, demonstration, folds, size, perhaps variants
    # item, mode -> row, picture; in a process, which loads its module and all that this needs
    see: Callable
    open_engine: Callable = field(repr=False)    # name, device -> Engine
    name: str = "ensemble"      # of the best engine
    item: dict = field(default_factory=dict)     # entries of each item, for `see`

@dataclass(frozen=True)
class Output:
    "The files of a submission."
    submission: Path
    table: Path
    report: Path

@contextmanager
def _ending():
    "SIGTERM becomes an exception, so that what is known is written."
    def leave(number, frame):
        raise SystemExit(128 + number)
    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

def _known(test: Test, items: dict, done: dict) -> pd.DataFrame:
    "prediction_id and probability of all images, as far as they are done."
    by_file = {items[h]: row.get("probability") for h, row in done.items() if h in items}
    return test.images[["prediction_id"]].assign(probability=pd.to_numeric(test.images["file"].map(by_file)))

def _first_file(folder: Path, submission: Path):
    "The sample's copy: valid, if worthless."
    missing = [name for name in ("sample_submission.csv", "test.csv") if not (folder / name).is_file()]
    if "sample_submission.csv" not in missing:
        with replacing(submission) as temporary:
            shutil.copyfile(folder / "sample_submission.csv", temporary)
    if missing:
        raise DatasetError(
            f"{folder} has no {' and no '.join(missing)}. Name the folder that has test.csv, sample_submission.csv "
            "and test_images/, as the competition comes."
        )

def submit_images(
    folder: Path,               # the competition: test.csv, sample_submission.csv, test_images/; only read
    ensemble: Callable,         # () -> Ensemble; asked when a valid file is there
    output: Output,
    *,
    budget: str = "",           # time to end in, such as 8h30m; "": none
    flip: bool = False,         # the mean of the probabilities of each picture and its mirror image
    workers: int | None = None, # processes that decode; None: one a core; 0: everything in turn, in this process
    clock: Callable = time.monotonic,  # seconds; with processes this one
) -> pd.DataFrame:              # the submission
    "test_images -> submission, table and report, in one pass."
    started = clock()
    with _ending():
        _first_file(folder, output.submission)
        seconds, test, ensemble = read_budget(budget), read_test(folder, output.submission), ensemble()
        networks = [Network(ensemble.open_engine, device) for device in devices()]
        batch, workers = batch_of(networks[0].open(ensemble.name)), joblib.cpu_count() if workers is None else workers
        planner = Planner(read_modes(ensemble.metadata, flip, ensemble.name), group=batch, seconds=seconds, workers=max(
            1, workers), networks=len(networks), clock=clock, started=started)
        items = [{
            "file": r["file"], "folder": str(folder),
            "row": {c: r[c] for c in ("patient_id", "image_id", "laterality", "view")}, **ensemble.item
        } for r in test.turns().to_dict("records")]

        def rows_of(hashed, done):
            files, tenth = {h: item["file"] for h, item in hashed.items()}, -(-len(hashed) // 10)
            write = lambda: write_csv(
                output.submission, to_submission(_known(test, files, done), test.sample, ensemble.metadata["threshold"])
            )
            groups = grouped(hashed, {h: item for h, item in hashed.items() if h not in done}, batch)
            try:
                with closing(
                        flow(groups, ensemble.see, networks, planner, workers=workers,
                             limit=2 * workers + 2 * batch * len(networks), until=planner.until)) as rows:
                    for n, row in enumerate(rows, 1):
                        yield row
                        if n % tenth == 0:
                            write()
            except BaseException:
                write()
                raise

        params = {"weights": ensemble.metadata, "flip": flip}
        table = _table(test, collect(rows_of, items, table=output.table, params=params, label="predict"),
                       ensemble.metadata)
        write_csv(output.table, table)
        submission = to_submission(table, test.sample, ensemble.metadata["threshold"])
        write_csv(output.submission, submission)
        write_json(output.report, _report(test, table, planner, networks, workers, batch, seconds))
    return submission

def _table(test: Test, found: pd.DataFrame, metadata: dict) -> pd.DataFrame:
    "A row an image, in the order of test.csv."
    table = found.set_index("file").reindex(
        test.images["file"]).reset_index().reindex(columns=[*PER_IMAGE, "network"]).astype({c: "Int64" for c in WHOLE})
    for column in "patient_id", "image_id":
        table[column] = test.images[column]   # an error row has them too
    for column in "laterality", "view":
        table[column] = table[column].where(table[column].notna(), test.images[column])
    table["probability"], table["note"], table["prediction_id"] = pd.to_numeric(
        table["probability"]), DEMONSTRATION if metadata["demonstration"] else "", test.images["prediction_id"]
    return table[[*PER_IMAGE, "note", "prediction_id", "network"]]

def _report(test: Test, table: pd.DataFrame, planner: Planner, networks: list, workers: int, batch: int,
            seconds: float | None) -> dict:
    "submit.json: how it went."
    reached, spent = ~table["error"].str.startswith("NotReached"), planner.clock() - planner.started
    done, failed = table["network"].value_counts(), reached & table["error"].ne("")
    nothing = sorted(set(test.sample["prediction_id"]) - set(table.loc[table["probability"].notna(), "prediction_id"]))
    dropped = [
        f"{n} images with {mode} instead of {planner.modes[0]}"
        for mode, n in done.items() if mode != str(planner.modes[0])
    ] + [f"{(~reached).sum()} images not reached"] * bool((~reached).any())
    return {
        "images": len(table), "predicted": int(table["probability"].notna().sum()), "failed": int(
            failed.sum()), "not_reached": int((~reached).sum()), "breasts": len(
                test.sample), "breasts_without_prediction": nothing, "ids": test.told,
        "engine": f"{networks[0].engine.name}, {networks[0].engine.precision}", "refused": list(
            networks[0].engine.refused), "networks": [n.device for n in networks], "processes": workers, "batch": batch,
        "seconds": round(spent, 1), "budget_seconds": seconds, "ways": [str(m) for m in planner.modes], "done_with": {
            m: int(n) for m, n in done.items()
        }, "dropped": dropped, "plan": planner.log, "images_per_second": round(
            len(planner.decodes) / max(spent, 1e-9), 3), "rates": planner.rates(), "waited": planner.waited()
    }

# %% [markdown]
# ## With the winner's ensemble

# %%
#| export
def load_ensemble(
    weights: Path,             # folder with ensemble.onnx, ensemble.json and the detector
    pngs: Path | None = None,  # keep the networks' inputs here; None: nowhere
    backend: str = "auto",     # as in `open_network`
) -> Ensemble:
    "The ensemble of a folder."
    metadata, detector = read_json(weights / "ensemble.json"), detector_of(weights)
    item = {
        "settings": metadata["crops"], "detector": str(detector or ""), "size": metadata["size"],
        "pngs": str(Path(pngs).resolve()) if pngs else ""
    }
    return Ensemble(metadata, see_item, partial(open_network, weights, backend=backend), item=item)

def submit(
    competition: Path,          # test.csv, sample_submission.csv, test_images/<patient>/<image>.dcm; only read
    weights: Path | None,       # see `find_weights`
    output: Path,               # submission.csv, test_per_image.csv and submit.json go here
    *,
    budget: str = "",           # time to end in, such as 8h30m; "": none
    flip: bool = False,         # the mean of the probabilities of each picture and its mirror image
    workers: int | None = None, # processes that decode; None: one a core
    pngs: Path | None = None,   # keep the networks' inputs here
    backend: str = "auto",      # as in `open_network`
) -> pd.DataFrame:              # the submission
    "A competition -> its submission."
    output = Path(output)
    files = Output(output / "submission.csv", output / "test_per_image.csv", output / "submit.json")
    return submit_images(
        Path(competition).resolve(), lambda: load_ensemble(find_weights(weights).resolve(), pngs, backend), files,
        budget=budget, flip=flip, workers=workers)

def told(
    report: dict,       # submit.json
) -> list[str]:         # lines
    "How a submission went, for people."
    line = (f"{report['predicted']} of {report['images']} images predicted in {in_words(report['seconds'])}, "
        f"{report['images_per_second']} a second; {report['failed']} failed, {report['not_reached']} not reached")
    waits = ", ".join(f"{part} {share:.0%}" for part, share in report["waited"].items())
    ids = [
        f"ids: {what}: {n if isinstance(n, int) else f'{len(n)}, such as {n[0]}'}" for what, n in report["ids"].items()
        if n
    ]
    nothing = report["breasts_without_prediction"]
    lost = f"{len(nothing)} of {report['breasts']} breasts have no prediction and get 0" + (f", such as {nothing[0]}"
                                                                                            if nothing else "")
    return [line, *[f"waited: {waits}"] * bool(waits), *report["dropped"], *ids, *[lost] * bool(nothing)]

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
    workers: int | None = None,    # processes that decode; None: one a core
) -> pd.DataFrame:                 # the submission
    "test_images -> submissions/submission.csv, test_per_image.csv and submit.json."
    place = find_weights(run.weights or run.path("weights/")).resolve()
    files = Output(run.path("submissions/submission.csv"), run.path("test_per_image.csv"),
                   run.path("submit.json"))
    with run.stage("submit") as results:
        results["weights"] = place.name
        return submit_images(run.path(competition(run)), lambda: load_ensemble(place), files, workers=workers)

# %%
submission = run_stage(run, workers or None)
report, per_image = read_json(run.path("submit.json")), read_table(run.path("test_per_image.csv"),
                                                                          ["probability"])
print(f"{len(submission)} breasts, {submission['cancer'].sum()} called", *told(report), sep="\n")
submission.head()

# %% [markdown]
# ## What came out
# The probabilities of the breasts and where the threshold cut; and the share of the time in which each part waited for
# the other.

# %%
breasts = per_image.groupby("prediction_id")["probability"].mean()
threshold = metadata["threshold"]
fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), width_ratios=[2, 1])
axes[0].hist(breasts.dropna(), bins=30)
axes[0].axvline(threshold, color="orange", label=f"threshold {threshold:.2f}")
axes[0].set(xlabel="probability of a breast", ylabel="breasts")
axes[0].legend()
parts = list(report["waited"])
axes[1].barh(parts, [1 - report["waited"][p] for p in parts], color="steelblue", label="worked")
axes[1].barh(parts, [report["waited"][p] for p in parts], left=[1 - report["waited"][p] for p in parts],
             color="lightgrey", label="waited")
axes[1].set(xlim=(0, 1), xlabel="share of the time")
axes[1].legend(fontsize=7)
fig.tight_layout()

# %% [markdown]
# ## Out of time
# The same images with the mirror image and no time for anything: a valid file all the same, and the report says what
# was lost.

# %%
short = Path(tempfile.mkdtemp())
submit(run.path(competition(run)), place, short, budget="1s", flip=True, workers=1)
assert pd.read_csv(short / "submission.csv")["prediction_id"].tolist() == submission["prediction_id"].tolist()
print(*told(read_json(short / "submit.json")), sep="\n")

"""How seconds and memory grow with the number of items.

    python tests/bench/scale.py                              # 1,000 and 10,000 files; 54,706 and 1,000,000 rows
    python tests/bench/scale.py --only map_2 --sizes 1000 100000
    python tests/bench/scale.py --weights runs/demo/weights  # `predict` too

Each measurement runs in a process of its own, on files of a few kilobytes that are drawn first. `second` is the same
call again, which finds everything finished. `parent_cpu` has the processor's seconds of the calling process, which
other work on the machine changes less. Rows of tests/bench/results/scale.csv are replaced by what is measured."""
import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil

RESULT = Path(__file__).parent / "results" / "scale.csv"
WORKERS = 2
RSNA = 54_706   # images of the competition's training set


# ---- what is drawn
def template(kind: str) -> bytes:
    "A small DICOM file whose number is in places of eight bytes."
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian
    d, rng = pydicom.Dataset(), np.random.default_rng(0)
    d.SOPClassUID = CTImageStorage if kind == "ct" else DigitalMammographyXRayImageStorageForPresentation
    d.SOPInstanceUID, d.StudyInstanceUID, d.SeriesInstanceUID = "1.2.11111111", "1.2.22222222", "1.2.33333333"
    d.PatientID, d.Modality, d.InstanceNumber = "44444444", "CT" if kind == "ct" else "MG", 1
    d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = 1, "MONOCHROME2", 0
    d.BitsAllocated, d.BitsStored, d.HighBit = 16, 12, 11
    d.RescaleIntercept, d.RescaleSlope = (-1024 if kind == "ct" else 0), 1
    if kind == "ct":
        d.ImagePositionPatient, d.ImageOrientationPatient = ["0", "0", "55555555"], [1, 0, 0, 0, 1, 0]
        d.PixelSpacing, d.SliceThickness = [1, 1], 1
        pixels = rng.integers(900, 1200, (16, 16), np.uint16)
    else:
        d.ImageLaterality, d.ViewPosition, d.BodyPartExamined = "L", "CC", "BREAST"
        d.WindowCenter, d.WindowWidth = 2048, 4096
        pixels = rng.integers(0, 40, (96, 64), np.uint16)
        pixels[8:80, :30] += 1800
    d.Rows, d.Columns = pixels.shape
    d.PixelData = b"66666666" + pixels.tobytes()[8:]
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = tempfile.SpooledTemporaryFile()
    pydicom.dcmwrite(buffer, d, enforce_file_format=True)
    buffer.seek(0)
    return buffer.read()


def draw_files(folder: Path, kind: str, n: int):
    "n mammograms of n / 4 patients, or slices of series of 250."
    whole = template(kind)
    for k in range(n):
        group = k // (250 if kind == "ct" else 4)
        number = f"{10_000_000 + k}".encode()
        own = whole.replace(b"11111111", number)
        for place in (b"22222222", b"33333333", b"44444444"):
            own = own.replace(place, f"{10_000_000 + group}".encode())
        own = own.replace(b"55555555", f"{k % 250:8d}".encode())
        own = own.replace(b"66666666", np.array([k // 100**place % 100 for place in range(4)], "<u2").tobytes())
        path = folder / f"{group}" / f"{k}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(own)


def draw_table(n: int) -> pd.DataFrame:
    "A unified table with probabilities: four images a patient, one patient in fifty with a cancer."
    rng = np.random.default_rng(0)
    patient = np.arange(n) // 4
    side = np.where(np.arange(n) % 4 < 2, "L", "R")
    sick = (rng.random(patient[-1] + 1) < 0.02)[patient] & (side == "L")
    odds = rng.normal(np.where(sick, -1.5, -3.5), 1.2)
    return pd.DataFrame({
        "patient_id": (patient + 10**6).astype(str), "image_id": (np.arange(n) + 10**8).astype(str), "laterality": side,
        "view": np.where(np.arange(n) % 2, "MLO", "CC"), "cancer": sick.astype(int), "site_id": patient % 2 + 1,
        "age": 50 + patient % 30, "density": "B", "machine_id": patient % 7, "implant": 0, "dataset": "phantom",
        "fold": patient % 4, "probability": (1 / (1 + np.exp(-odds))).astype(np.float32)})


# ---- what is measured: f(folder, n) -> function to call twice
def square(item: dict) -> dict:
    return {"square": item["x"]**2}


def map_files_with(workers: int):
    def prepare(folder: Path, n: int):
        from mammo_nb.core.parallel import map_files
        items = [{"name": f"{k:07}", "x": k} for k in range(n)]
        return lambda: map_files(square, items, key="name", table=folder / "t.csv", code={"bench": "1"},
                                 workers=workers, label=None)
    return prepare


def check(folder: Path, n: int):
    from mammo_nb.mammo.tools.check import check_folder, print_check
    draw_files(folder / "scans", "mg", n)
    return lambda: print_check(check_folder(folder / "scans", workers=WORKERS, output=folder / "check.csv"))


def crops(folder: Path, n: int):
    from mammo_nb.mammo.tools.crops import crop_folder, print_crops
    draw_files(folder / "scans", "mg", n)
    return lambda: print_crops(crop_folder(folder / "scans", folder / "out", workers=WORKERS), folder / "out")


def predict_with(weights: Path):
    def prepare(folder: Path, n: int):
        from mammo_nb.mammo.tools.predict import predict_folder, print_predictions
        draw_files(folder / "scans", "mg", n)
        return lambda: print_predictions(
            predict_folder(folder / "scans", folder / "out", weights, workers=WORKERS), folder / "out")
    return prepare


def series(folder: Path, n: int):
    from mammo_nb.core.series import print_series, write_series
    draw_files(folder / "scans", "ct", n)
    return lambda: print_series(*write_series(folder / "scans", folder / "out", WORKERS), folder / "out")


def planner(folder: Path, n: int):
    "A submission with a time limit whose network is a mean: what the planner, the stream and the tables cost."
    from mammo_nb.core.files import write_csv, write_json
    from mammo_nb.core.submission import ItemSet, Submission
    from mammo_nb.core.submit import submit
    sample = pd.DataFrame({"study": [f"s{k}" for k in range(n)], "value": 0.5})
    write_csv(folder / "sample_submission.csv", sample)
    write_csv(folder / "test.csv", sample[["study"]])
    (folder / "toy.onnx").touch()
    write_json(folder / "toy.json", {"folds": 1, "size": [1, 3]})

    def read_test(place):
        table = pd.read_csv(place / "sample_submission.csv")
        return ItemSet(table, table[["study"]].assign(file=table["study"]), "study", table["study"].tolist(), {})

    toy = Submission(
        "toy", "toy", read_test, lambda item, mode: ({}, np.full((1, 3), .5)),
        lambda table, given, metadata: given[["study"]].assign(value=table["probability"].fillna(.5)),
        draw_hidden_test=None, engine="toy", predict=lambda engine, x: x[:, 0, :1],
        open_engine=lambda *_: SimpleNamespace(metadata={"batches": [1, 4, 4]}, name="toy", precision="fp32",
                                               refused=()))
    return lambda: submit(toy, folder, folder, folder / "out", budget="8h", workers=0)


def unify(folder: Path, n: int):
    from mammo_nb.mammo.datasets import unify
    table = draw_table(n)
    return lambda: unify(table)


def folds(folder: Path, n: int):
    from mammo_nb.mammo.folds import expectations, split, spread
    table = draw_table(n).drop(columns="fold")

    def run():
        made = split(table)
        return spread(made), expectations(made)
    return run


def select(folder: Path, n: int):
    from mammo_nb.mammo.select import best_epochs, combinations, correction_of, per_breast, summarise
    table = draw_table(n)
    epochs = [(k, e, .5, .5) for k in range(4) for e in range(3)]
    history = pd.DataFrame(epochs, columns=["fold", "epoch", "auc", "pf1"])

    def run():
        ranked = best_epochs(history, "pf1", 3)
        breasts = {(r.fold, r.epoch): per_breast(table[table["fold"] == r.fold]) for r in ranked.itertuples()}
        combinations(ranked, breasts)
        return summarise(table), correction_of(table)
    return run


def bootstrap(folder: Path, n: int):
    from mammo_nb.core.uncertainty import auc_interval
    from mammo_nb.mammo.datasets import per_breast
    breasts = per_breast(draw_table(n))
    return lambda: auc_interval(breasts["cancer"], breasts["probability"], breasts["patient_id"])


def estimates(folder: Path, n: int):
    from mammo_nb.core.estimates import estimates
    from mammo_nb.mammo.datasets import per_breast
    breasts = per_breast(draw_table(n))
    return lambda: estimates(breasts["cancer"], breasts["probability"], breasts["patient_id"], 0.3)


def sides(folder: Path, n: int):
    "A table of sides for files that all have the same name, as those of CBIS-DDSM in the Cancer Imaging Archive."
    from mammo_nb.mammo.reading.sides import match_rows
    files = [f"{k // 4}/{k % 4}/1-1.dcm" for k in range(n)]
    pd.DataFrame({"file": files, "laterality": "L", "view": "CC"}).to_csv(folder / "sides.csv", index=False)
    return lambda: match_rows(folder / "sides.csv", files)


FILES = {"map_1": map_files_with(1), "map_2": map_files_with(WORKERS), "check": check, "crops": crops, "series": series,
         "planner": planner}
TABLES = {"unify": unify, "folds": folds, "select": select, "bootstrap": bootstrap, "estimates": estimates,
          "sides": sides}


@contextmanager
def largest_child():
    """Give a list whose only number is the peak memory of the largest process started, MB. `getrusage` would count the
    memory that a process had before it replaced itself, which is its parent's."""
    peak, ended = [0.0], Event()

    def watch():
        while not ended.wait(0.2):
            for child in psutil.Process().children(recursive=True):
                with suppress(OSError, IndexError):   # it has ended
                    status = Path(f"/proc/{child.pid}/status").read_text()
                    peak[0] = max(peak[0], int(status.split("VmHWM:")[1].split()[0]) / 1024)
    thread = Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def measure(name: str, n: int, weights: str) -> dict:
    "First and second call in this process, and the memory of it and of its largest worker."
    prepare = {**FILES, **TABLES, "predict": predict_with(Path(weights or "."))}[name]
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        call, seconds, own = prepare(Path(scratch), n), [], []
        with largest_child() as worker:
            for _ in range(2):
                started, before = time.perf_counter(), time.process_time()
                call()
                seconds.append(time.perf_counter() - started)
                own.append(time.process_time() - before)
        parent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if name == "predict":
        folds = json.loads((Path(weights) / "ensemble.json").read_text())["folds"]
        name = f"predict with {folds} networks"
    return {"what": name, "items": n, "seconds": round(seconds[0], 3), "second": round(seconds[1], 3),
            "parent_cpu": round(own[0], 3), "us_an_item": round(seconds[0] / n * 1e6, 1),
            "parent_MB": round(parent), "worker_MB": round(worker[0])}


def store(rows: list[dict]):
    "Replace rows of the table, and compute how the seconds grow: 1 is in proportion."
    table = pd.DataFrame(rows)
    if RESULT.exists():
        table = pd.concat([pd.read_csv(RESULT), table]).drop_duplicates(["what", "items"], keep="last")
    table = table.sort_values(["what", "items"], kind="stable").reset_index(drop=True)
    before = table.groupby("what").shift()
    table["growth"] = (np.log(table["seconds"] / before["seconds"]) / np.log(table["items"] / before["items"])).round(2)
    table.to_csv(RESULT, index=False)
    print(table[table["what"].isin({r["what"] for r in rows})].to_string(index=False))


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--only", nargs="*", default=[])
    ask.add_argument("--sizes", nargs="*", type=int, default=[])
    ask.add_argument("--weights", default="")
    ask.add_argument("--one", nargs=2)
    given = ask.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], int(given.one[1]), given.weights)))
        return
    rows = []
    for name in given.only or [*FILES, *TABLES, *(["predict"] if given.weights else [])]:
        for n in given.sizes or ([RSNA, 1_000_000] if name in TABLES else [1_000, 10_000]):
            done = subprocess.run([sys.executable, __file__, "--one", name, str(n), "--weights", given.weights],
                                  stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1]) | {"machine": platform.processor() or platform.machine()}
            print(row, flush=True)
            rows.append(row)
            store(rows)


if __name__ == "__main__":
    main()

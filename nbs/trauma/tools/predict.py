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
# # Predict
# > From any folder of abdominal CT to the probabilities of each patient, and a picture that shows where they come from.
#
# A folder from a clinic holds many patients and series, localizers, reformats, reports and copies. The series reader
# puts the slices in order and says what is odd. Each axial series is read whole, and every file has a row.

# %%
#| default_exp trauma.tools.predict

# %%
#| export
import shutil
from collections import defaultdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mammo_nb.core.dicom import folder_of
from mammo_nb.core.dicom_results import check_dicom
from mammo_nb.core.errors import ProjectError, safe_cells
from mammo_nb.core.files import owned, replacing, short_hash, write_csv
from mammo_nb.core.parallel import map_files
from mammo_nb.core.pictures import keep_pictures, picture_names
from mammo_nb.core.processes import quiet
from mammo_nb.core.series import read_series as read_files
from mammo_nb.core.series import names_behind, tables_of
from mammo_nb.core.providers import check_engine, computed_by, names_in, print_refused
from mammo_nb.core.settings import id_key, parts_of
from mammo_nb.core.studies import (SHOWN, exams_of, keep_slices, print_results, suspicious, write_study_pages,
                                   write_study_results)
from mammo_nb.core.sidecars import read_entries
from mammo_nb.core.submission import DEMONSTRATION, NOT_A_DEVICE, caution, find_weights, origin
from mammo_nb.trauma.learning.inference import (NAMES, Reading, Seen, check_weights, patient_probabilities,
                                                process_engines, read_series, submitted)
from mammo_nb.trauma.reading.organs import visibility
from mammo_nb.trauma.reading.volumes import levels_of, write_levels, write_volume
from mammo_nb.trauma.recipes import ORGANS, SUBMITTED
from mammo_nb.trauma.tools.results import ABOUT, CODES, draw_slices, injured, maker_of, results_of

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt

from mammo_nb.core.practice import practice
from mammo_nb.trauma.recipes import COLUMNS
from mammo_nb.trauma.system import system

# %% tags=["parameters"]
folder = ""    # abdominal CT in DICOM format; "" takes the test images and the weights of a small practice run
weights = ""   # folder with segmenter.* and classifier.*

# %%
#| hide
if not folder:
    run = practice(system, before="submit")
    folder, weights = run.path("competition/test_images"), run.path("weights/")
output = Path(tempfile.mkdtemp()) / "out"

# %%
#| export
class PredictError(ProjectError):
    "A folder or weights that nothing can be predicted with."

NOT_AXIAL = "no axial volume; not predicted"

# %% [markdown]
# ## A picture of a series
# On the left the organs along the body and the probabilities of the slices, on the right the most suspicious slices
# with the outlines of the organs. First come the slices with the largest probability of each column.

# %%
#| export
COLORS = dict(zip(ORGANS, ("#d62728", "#9467bd", "#2ca02c", "#17becf", "#ff7f0e")))

def draw_series(
    volume: np.ndarray,   # uint8 (slices, rows, columns)
    reading: Reading,
    title: str,
    notes: str = "",      # below the title
) -> Figure:
    "Visibility of the organs, probabilities of the slices, and the most suspicious slices."
    slices, chosen = reading.slices(), suspicious(reading.slices())
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic([["organs", 0, 1, 2], ["injuries", 3, 4, 5]], width_ratios=(1.7, 1, 1, 1))
    figure.suptitle(f"{title}\n{notes}".strip(), fontsize=9, x=0.01, ha="left")
    for organ, curve in zip(ORGANS, visibility(reading.masks).T):
        if curve.any():
            axes["organs"].plot(curve, color=COLORS[organ], label=organ.replace("_", " "))
    axes["injuries"].set_prop_cycle(color=colormaps["tab20"].colors)   # more than ten columns
    for column in slices:
        known = slices[column].dropna()
        axes["injuries"].plot(known, ".-", ms=3, lw=0.8, label=column.replace("_", " "))
    for name, label in (("organs", "visibility"), ("injuries", "probability")):
        axes[name].set(ylabel=label, xlabel="slice", ylim=(-0.03, 1.03), xlim=(-0.5, len(volume) - 0.5))
        if axes[name].lines:
            axes[name].legend(fontsize=8, ncols=2, framealpha=0.6)
    for k in range(SHOWN):
        axes[k].axis("off")
    for k, (place, column, p) in enumerate(chosen):
        axes[k].imshow(volume[place], cmap="gray", vmin=0, vmax=255)
        rows, columns = volume.shape[1:]
        for organ, mask in zip(ORGANS, reading.masks[place]):
            whole = cv2.resize(mask.astype(np.float32), (columns, rows))
            if whole.max() > 0.5 > whole.min():
                axes[k].contour(whole, [0.5], colors=COLORS[organ], linewidths=0.8)
        axes[k].set_title(f"slice {place}, {column.replace('_', ' ')} {p:.2f}", fontsize=8)
    return figure

# %%
z, y, x = np.mgrid[:40, :60, :80]
liver = np.hypot(np.hypot((z - 24) * .8, y - 26), x - 26) < 15
drawn = (90 * (np.hypot((y - 30) / 26, (x - 40) / 37) < 1) + 80 * liver).astype(np.uint8)
small = np.zeros((40, len(ORGANS), 32, 32), bool)
small[:, 0] = [cv2.resize(m.astype(np.float32), (32, 32)) > .5 for m in liver]
p = np.where(np.arange(40) % 3 == 1, np.exp(-(np.arange(40) - 25.)**2 / 50), np.nan)
example = Reading(small, (0, 1, 0, 1), {"a": {"liver_injury": .8 * p, "liver_high": .5 * p}})
assert suspicious(example.slices())[0][:2] == (25, "liver_injury")
assert len({place for place, *_ in suspicious(example.slices())}) == SHOWN
draw_series(drawn, example, "a drawn series")

# %%
#| hide
many = Reading(small, (0, 1, 0, 1), {"a": {column: .08 * k * p for k, column in enumerate(COLUMNS)}})
curves = next(a for a in draw_series(drawn, many, "").axes if a.get_ylabel() == "probability").lines
assert len({curve.get_color() for curve in curves}) == len(curves) == len(COLUMNS)

# %% [markdown]
# ## Volumes of a folder
# All axial volumes are written, also several of one series.

# %%
#| export
def find_volumes(
    folder: Path,           # DICOM files, searched to any depth
    output: Path,           # volumes go to its folder `volumes`, which is removed at the end
    seen: Seen,
    workers: int | None,
    key: str = "",          # as for `read_series` of core
) -> tuple[list[dict], pd.DataFrame, pd.DataFrame]:  # volumes: patient_id, study, series, path; slices; series
    "Read a folder and write its axial volumes."
    waiting, settings = output / "volumes", {"window": seen.window, "faithful": seen.faithful}
    volumes, rest = read_files(folder, output, workers, partial(write_levels, folder=waiting, **settings), settings,
                               key=key)
    slices, series = tables_of(volumes, rest)
    names = names_behind(folder, output, key)
    folder, found = folder_of(folder), []
    for volume in volumes:
        first = volume.slices[0]
        if not volume.plane.startswith("axial"):
            slices.loc[slices["series"] == volume.name, "note"] += f"; {NOT_AXIAL}"
            continue
        path = waiting / f"{short_hash(first.patient_id + volume.name)}_volume.npy"
        write_volume(path, volume.slices, lambda s: levels_of(
            s, folder, waiting, **settings, file=names.get(s.file, "")))
        found.append({"patient_id": first.patient_id, "study": first.study, "series": volume.name, "path": str(path)})
    slices["note"] = slices["note"].str.strip("; ")
    return found, slices, series

# %% [markdown]
# ## One patient
# A process reads the series of a patient and draws their pictures.

# %%
#| export
def predict_item(
    # patient_id, volumes: study, series, path, name; weights, engine, device, previews: folder, slices: folder or "",
    # note: words about the weights
    item: dict,
) -> dict:       # SUBMITTED; slices, series: numbers; places: rows of per_slice.csv; drawn, studies: for `results_of`
    "Predict one patient and draw the pictures of the series."
    cv2.setNumThreads(1)
    for own in item["volumes"]:
        Path(item["previews"], f"{own['name']}.png").unlink(missing_ok=True)   # of an earlier state of the series
    engines = process_engines(item["weights"], item["engine"], item["device"])
    readings, rows, drawn = defaultdict(list), [], []
    for own in item["volumes"]:
        volume = np.load(own["path"], mmap_mode="r")
        reading = read_series(engines, volume)
        readings[own["study"]].append(reading)
        figure = draw_series(volume, reading, f"{own['name']}, {len(volume)} slices", item["note"])
        with replacing(Path(item["previews"]) / f"{own['name']}.png") as temporary:
            figure.savefig(temporary, dpi=110)
        if item["slices"]:
            shown = draw_slices(Path(item["slices"]) / own["name"], volume, reading, item["note"])
            drawn += [{**s, "study": own["study"], "series": own["series"]} for s in shown]
        shares = pd.DataFrame(visibility(reading.masks), columns=[f"visibility_{o}" for o in ORGANS])
        table = pd.concat([shares, reading.slices()], axis=1).astype(float).round(6)
        rows += [{"series": own["series"], "place": k, **{c: v for c, v in row.items() if v == v}}
                 for k, row in enumerate(table.to_dict("records"))]
    values = lambda own: submitted(patient_probabilities(own), engines.seen.scaling).iloc[0].round(6).to_dict()
    every = [r for own in readings.values() for r in own]
    studies = [{"study": study, "values": values(own)} for study, own in readings.items()]
    return {"series": len(every), "slices": sum(len(r.masks) for r in every), **values(every), "places": rows,
            "drawn": drawn, "studies": studies, **computed_by(engines)}

# %% [markdown]
# ## A folder
# `per_patient.csv` has the columns of the competition for each patient, and `per_slice.csv` a row for each slice and
# for each file that is none: its place, the visibility of the organs, and the probabilities where the slice is the
# middle of a triplet.

# %%
#| export
@owned
def predict_folder(
    folder: Path,                 # DICOM files, nested or flat, or a single file
    output: Path,                 # per_patient.csv, per_slice.csv and previews/ go here
    weights: Path | None = None,  # as in `find_weights`
    table: Path | None = None,    # not used: headers say what belongs together
    hash_ids: bool = False,       # whether ids and names of files are replaced by digests
    workers: int | None = None,   # processes; None means one a core
    dicom: bool = False,          # whether pictures and reports are also written as DICOM, to dicom/
    html: bool = False,           # whether a page for each study is written, to html/
    engine: str = "auto",         # as in `check_engine`
    device: str = "cpu",
) -> pd.DataFrame:                # the rows of per_slice.csv
    "Predict every patient of a folder."
    if dicom:
        check_dicom(hash_ids)
    folder, output, weights = Path(folder), Path(output), find_weights("classifier", weights)
    check_engine(weights, NAMES, engine, device)
    seen = check_weights(weights)
    note, key = caution(seen.demonstration), id_key() if hash_ids else ""
    output.mkdir(parents=True, exist_ok=True)
    for name in ("per_slice.csv", "per_patient.csv") if key else ():
        (output / name).unlink(missing_ok=True)   # an earlier run may have shown ids
    volumes, slices, series = find_volumes(folder, output, seen, workers, key)
    names = picture_names([v["series"] for v in volumes])
    for own, name in zip(volumes, names):
        own["name"] = name
    keep_pictures(output / "previews", names)
    keep_slices(output / "slices", names)
    of_patient = defaultdict(list)
    for own in volumes:
        of_patient[own["patient_id"]].append(own)
    items = [{"patient_id": p, "volumes": own, "weights": str(weights), "previews": str(output / "previews"),
              "slices": str(output / "slices") if html or dicom else "", "note": note, "engine": engine,
              "device": device} for p, own in of_patient.items()]
    found = map_files(partial(quiet, predict_item) if key else predict_item, items, table=output / "per_patient.csv",
                      key="patient_id", params={"hidden": bool(key), **parts_of(weights)},
                      reads=lambda item: [Path(v["path"]) for v in item["volumes"]], writes=output, workers=workers,
                      label="predict")
    print_refused(found)
    shutil.rmtree(output / "volumes", ignore_errors=True)
    rows = _of_patients(found, "places")
    slices = _with_places(slices, pd.DataFrame(rows, columns=None if rows else ["patient_id", "series", "place"]))
    slices = slices.merge(found[["patient_id", "error"]].rename(columns={"error": "lost"}), "left", "patient_id")
    slices["error"] = slices["error"].where(slices["error"].ne("") | slices["place"].eq(""), slices["lost"].fillna(""))
    slices = slices.drop(columns="lost")
    scores, shown = results_of(slices, _of_patients(found, "studies"), _of_patients(found, "drawn"))
    exams = exams_of(slices, scores, shown, note, {NOT_AXIAL: NOT_AXIAL}, injured)
    named, made = origin(weights, read_entries(weights / "classifier.json")), None
    if html:
        write_study_pages(exams, output, named, ABOUT)
    if dicom:
        made = write_study_results(scores, shown, folder_of(folder), output, maker_of(weights), CODES)
    totals = found.reindex(columns=["patient_id", "series", "slices", *SUBMITTED, "error"])
    of_series = series.groupby("patient_id")["note"].agg(list).to_dict()
    notes = {p: "; ".join(filter(None, [*of_series.get(p, []), note])) for p in of_patient}
    totals.insert(len(totals.columns) - 1, "note", [notes[p] for p in totals["patient_id"]])
    if hash_ids:
        slices, totals = _hide(slices), _hide(totals)
    write_csv(output / "per_patient.csv", safe_cells(totals))
    write_csv(output / "per_slice.csv", safe_cells(slices))
    slices.attrs |= {"weights": str(weights), "note": note, "computed": names_in(found), "origin": named,
                     "exams": exams, "dicom": made, "html": html,
                     "counts": {"slices": len(slices), "patients": len(totals), "predicted": int(slices["place"].ne(
                         "").sum()), "failed": int(slices["error"].ne("").sum())}}
    return slices

def _of_patients(found: pd.DataFrame, column: str) -> list[dict]:
    "The entries of a column of lists, each with its patient."
    return [entry | {"patient_id": p} for p, entries in zip(found["patient_id"], found.get(column, []))
            if isinstance(entries, list) for entry in entries]

def _with_places(slices: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    "Give slices their place in the volume and what was found there."
    placed = slices["position_mm"].ne("") & ~slices["note"].str.contains(NOT_AXIAL, regex=False)
    slices["place"] = slices[placed].groupby(["patient_id", "series"], sort=False).cumcount()
    table = slices.merge(rows, "left", ["patient_id", "series", "place"])
    table["place"] = table["place"].astype("Int64")
    first = ["file", "frame", "patient_id", "study", "series", "image_id", "place", "position_mm"]
    values = [c for c in rows if c not in first]
    return table[[*first, *values, "note", "error"]].astype(object).fillna("")

def _hide(table: pd.DataFrame) -> pd.DataFrame:
    "Leave out all notes and words of errors that may name something."
    table = table.copy()
    table["error"] = [e.split(":")[0] for e in table["error"]]
    table["note"] = [next((w for w in (DEMONSTRATION, NOT_A_DEVICE) if w in n), "") for n in table["note"]]
    return table

def print_predictions(
    result: pd.DataFrame,  # from `predict_folder`
    output: Path,
) -> int:                  # how many files or patients failed
    "Print a line for each patient, and the count."
    patients = pd.read_csv(Path(output) / "per_patient.csv", dtype={"patient_id": str, "note": str, "error": str})
    patients = patients.fillna({"note": "", "error": "", "patient_id": ""})
    for row in patients.to_dict("records"):
        if row["error"]:
            print(f"failed patient {row['patient_id']}: {row['error']}")
            continue
        words = [f"{o} {1 - row[f'{o}_healthy']:.2f}" for o in ("bowel", "extravasation", "kidney", "liver", "spleen")]
        note = f" ({row['note']})" if row["note"] else ""
        print(f"patient {row['patient_id']}, {row['series']:.0f} series, {row['slices']:.0f} slices: "
              f"{', '.join(words)}{note}")
    failed = result["error"].ne("")
    for row in result[failed].head(20).itertuples():
        print(f"failed {row.file}: {row.error}")
    print(f"{len(patients)} patients predicted with {result.attrs['weights']}, {failed.sum()} files failed, "
          f"{(result['place'].eq('') & ~failed).sum()} without prediction -> {output}")
    print_results(result, output)
    if result.attrs["note"]:
        print(result.attrs["note"])
    return int(failed.sum())

# %%
result = predict_folder(folder, output, weights, workers=1)
assert print_predictions(result, output) == 0
pd.read_csv(output / "per_patient.csv").head().T

# %% [markdown]
# ## What came out
# The picture of the first series:

# %%
plt.figure(figsize=(11, 4.6))
plt.imshow(plt.imread(sorted((output / "previews").glob("*.png"))[0]))
plt.axis("off");

# %% [markdown]
# ---
# [↑ Abdominal trauma](../00_system.py)

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
# > From any folder of head CT to a probability for each slice and series, and a picture of each series.
#
# A folder from a clinic holds many patients and series, localizers, reports, copies, and files that are no DICOM. The
# series reader puts the slices in order and says what is odd. Each series is predicted whole, and every file has a row.

# %%
#| default_exp ich.tools.predict

# %%
#| export
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammo_nb.core.dicom import folder_of
from mammo_nb.core.dicom_results import check_dicom
from mammo_nb.core.errors import ProjectError, safe_cells
from mammo_nb.core.exams import captioned
from mammo_nb.core.files import owned, write_csv
from mammo_nb.core.parallel import map_files
from mammo_nb.core.pictures import fit_resize, keep_pictures, picture_names, write_png
from mammo_nb.core.processes import quiet
from mammo_nb.core.providers import check_engine, computed_by, names_in, print_refused
from mammo_nb.core.series import names_behind
from mammo_nb.core.settings import hidden_id, id_key, parts_of
from mammo_nb.core.studies import exams_of, keep_slices, print_results, write_study_pages, write_study_results
from mammo_nb.core.submission import DEMONSTRATION, NOT_A_DEVICE, by_row, caution, find_weights, origin
from mammo_nb.core.volumes import LOCALIZER
from mammo_nb.ich.learning.graphs import BOTH, check_bag, predict_series, process_bag
from mammo_nb.ich.reading.inputs import (Seen, encoder_inputs, find_pictures, find_slices, read_picture,
                                         read_series_pictures)
from mammo_nb.ich.recipes import CLASSES
from mammo_nb.ich.tools.results import ABOUT, CODES, draw_slices, maker_of, results_of

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt

from mammo_nb.core.practice import practice
from mammo_nb.ich.system import system

# %% tags=["parameters"]
folder = ""    # head CT in DICOM format; "" takes the test images and the weights of a small practice run
weights = ""   # folder with encoder.* and sequence.*

# %%
#| hide
if not folder:
    run = practice(system, before="submit")
    folder, weights = run.path("competition/stage_2_test_images"), run.path("weights/")
output = Path(tempfile.mkdtemp()) / "out"

# %%
#| export
class PredictError(ProjectError):
    "A folder or weights that nothing can be predicted with."

GIVEN = "the weights were trained on pictures of one window; the brain window is used"
GREY = "a picture of one window, and the weights were trained on three windows of HU"

# %% [markdown]
# ## A picture of a series
# All slices in the brain window, in the order of the patient. The most suspicious ones have a frame and their
# probability.

# %%
#| export
MARKED = 5      # slices with a frame, at most
SHOWN = 64      # slices in a picture, at most; of a longer series every second, third, ... is left out

def montage(
    pictures: list[np.ndarray],  # uint8 (rows, columns, 3), in order
    probabilities: np.ndarray,   # of any hemorrhage in each
    lines: list[str],            # text above
    side: int = 128,             # of a slice, pixels
    columns: int = 8,
) -> np.ndarray:                 # uint8 BGR
    "The slices of a series side by side; the most suspicious are marked."
    marked = set(np.argsort(-probabilities, kind="stable")[:MARKED].tolist())
    step = -(-len(pictures) // SHOWN)
    shown = [k for k in range(len(pictures)) if k % step == 0 or k in marked]
    columns = min(columns, max(3, len(shown)))
    tiles = []
    for k in shown:
        tile = cv2.cvtColor(fit_resize(pictures[k][..., 0], side, side), cv2.COLOR_GRAY2BGR)
        cv2.putText(tile, str(k), (4, side - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (150, 150, 150), 1, cv2.LINE_AA)
        if k in marked:
            cv2.rectangle(tile, (1, 1), (side - 2, side - 2), (40, 140, 255), 2)
            cv2.putText(tile, f"{probabilities[k]:.2f}", (5, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40, 140, 255), 1,
                        cv2.LINE_AA)
        tiles.append(tile)
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[k:k + columns]) for k in range(0, len(tiles), columns)]
    return captioned(np.vstack(rows), lines)

# %%
drawn = [cv2.circle(np.zeros((96, 80, 3), np.uint8), (40, 48), 30 - abs(k - 5), (90, 90, 90), -1) for k in range(11)]
picture = montage(drawn, np.linspace(0, 1, 11), ["an example"])
assert picture.shape == (24 + 2 * 128, 8 * 128, 3)
plt.figure(figsize=(9, 3))
plt.imshow(picture[..., ::-1])
plt.axis("off");

# %% [markdown]
# ## One series
# A process reads the slices of a series and predicts them.

# %%
#| export
def predict_item(
    # folder, rows, weights, engine, device; previews and slices: folders or ""; name: of its pictures; lines: above the
    # preview; note: words about the weights
    item: dict,
) -> dict:       # a list of probabilities for each class and for cnn_any; drawn: from `draw_slices`; error: a list
    "Predict one series and draw its picture."
    cv2.setNumThreads(1)
    drawn = Path(item["previews"] or ".", f"{item['name']}.png")
    if item["previews"]:
        drawn.unlink(missing_ok=True)   # of an earlier state of the series
    bag = process_bag(item["weights"], item["engine"], item["device"])
    settings, classes = Seen.read(bag.metadata), bag.metadata["classes"]
    pictures, kept, errors = read_series_pictures(Path(item["folder"]), item["rows"], settings)
    if not pictures:
        read_picture(Path(item["folder"]), item["rows"][0], settings)  # raises
    together, alone = predict_series(bag, encoder_inputs(pictures, settings), bag.metadata["tta"])
    values = np.hstack([together, alone[:, -1:]]).astype(float).round(6)
    good = np.isfinite(values).all(1)
    for k in np.flatnonzero(~good):
        errors[kept[k]] = "NotFinite: a network predicted no number. Run it in 32 bits, or leave its weights out."
    values, kept = values[good], [k for k, g in zip(kept, good) if g]
    pictures = [p for p, g in zip(pictures, good) if g]
    found = computed_by(bag)
    for column, own in zip([*classes, "cnn_any"], values.T):
        of_rows = dict(zip(kept, own.tolist()))
        found[column] = [of_rows.get(k) for k in range(len(errors))]
    if item["previews"] and pictures:
        write_png(drawn, montage(pictures, values[:, len(classes) - 1], item["lines"]))
        if item["slices"]:
            places = [int(item["rows"][k]["place"]) for k in kept]
            shown = draw_slices(Path(item["slices"]) / item["name"], pictures, pd.DataFrame(
                values[:, :len(classes)], columns=classes), places, item["note"])
            found["drawn"] = [{**s, "at": kept[s["at"]]} for s in shown]
    return found | ({"error": errors} if any(errors) else {})

# %% [markdown]
# ## A folder
# `per_slice.csv` has a row for each slice and for each file that is none. `per_series.csv` has the largest probability
# of each class in a series, and its slice.

# %%
#| export
def read_folder(
    folder: Path,
    output: Path,
    metadata: dict,         # encoder.json
    workers: int | None,
    key: str = "",          # from `id_key`: digests in place of ids
) -> tuple[pd.DataFrame, pd.DataFrame]:  # slices as from `find_slices`; series with their notes
    "Arrange the slices of a folder: DICOM files, or pictures where there are none."
    table, series = find_slices(folder, output, metadata["faithful"], workers, key)
    more = GIVEN if metadata["given"] else ""
    if not table["place"].ne("").any():
        pictures = find_pictures(folder, output)
        for column in ("patient_id", "series", "image_id", "file") if key else ():
            pictures[column] = [hidden_id(v, key) for v in pictures[column]]
        if len(pictures):
            rest = table[~table["file"].isin(pictures["file"])]
            table, series = pd.concat([pictures, rest], ignore_index=True).astype(object).fillna(""), series[:0]
            more = "" if metadata["given"] else GREY
    else:
        table["image_id"] = table["uid"].where(table["uid"].ne(""), table["image_id"])
    slices = _is_slice(table)
    for word in filter(None, (more, caution(metadata["demonstration"]))):
        table.loc[slices, "note"] = [f"{n}; {word}".lstrip("; ") for n in table.loc[slices, "note"]]
    return table, series

def _is_slice(table: pd.DataFrame) -> pd.Series:
    "Rows to predict: with a place, or outside of a series, but readable, no localizer and no copy."
    readable = table["error"].eq("") & table.get("rows", pd.Series("", table.index)).ne("")
    left = table["note"].str.contains(LOCALIZER, regex=False) | table["note"].str.contains("duplicate of .*; left out")
    return table["place"].ne("") | readable & ~left

def _items(table: pd.DataFrame, folder: Path, weights: Path, output: Path, names: dict, note: str,
           draw: bool) -> list[dict]:
    "A series each; a slice outside of a series is one alone, without a picture."
    items = []
    for key, rows in table[table["item"].ne("")].groupby("item", sort=False):
        placed = rows["place"].iloc[0] != ""
        lines = [f"{names[key]}   {len(rows)} slices; frames: the most suspicious, with the probability", note]
        items.append({"file": key, "folder": str(folder), "weights": str(weights), "name": names[key],
                      "rows": rows[["file", "frame", "note", "place"]].to_dict("records"), "note": note,
                      "lines": list(filter(None, lines)), "previews": str(output / "previews") if placed else "",
                      "slices": str(output / "slices") if placed and draw else ""})
    return items

def _per_series(table: pd.DataFrame, series: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    "The largest probability of each class, and the slice that has it."
    notes = dict(zip(series["series"], series["note"]))
    rows = []
    for name, own in table[table["place"].ne("")].groupby("series", sort=False):
        row = {"patient_id": own["patient_id"].iloc[0], "study": own["study"].iloc[0], "series": name,
               "slices": len(own)}
        for c in [*classes, "cnn_any"]:
            values = pd.to_numeric(own[c])
            known = values.notna().any()
            row |= {c: values.max() if known else "", f"{c}_slice": own["image_id"][values.idxmax()] if known else ""}
        failed = int(own["error"].ne("").sum())
        words = [notes.get(name, ""), f"{failed} slices failed" if failed else "", table.attrs["note"]]
        rows.append(row | {"note": "; ".join(filter(None, words))})
    names = [f"{c}{s}" for c in [*classes, "cnn_any"] for s in ("", "_slice")]
    return pd.DataFrame(rows, columns=["patient_id", "study", "series", "slices", *names, "note"])

def _files_of(item: dict) -> list[Path]:
    "The files of a series."
    return [Path(item["folder"], row["file"]) for row in item["rows"]]

@owned
def predict_folder(
    # DICOM files, nested or flat; without any, pictures named <patient>_<slice>.png; or a single DICOM file
    folder: Path,
    output: Path,                 # per_slice.csv, per_series.csv and previews/ go here
    weights: Path | None = None,  # as in `find_weights`
    table: Path | None = None,    # not used: headers say what belongs together
    hash_ids: bool = False,       # whether ids and names of files are replaced by digests
    workers: int | None = None,   # processes; None means one a core
    dicom: bool = False,          # whether pictures and reports are also written as DICOM, to dicom/
    html: bool = False,           # whether a page for each study is written, to html/
    engine: str = "auto",         # as in `check_engine`
    device: str = "cpu",
) -> pd.DataFrame:                # the rows of per_slice.csv
    "Predict every slice of a folder."
    if dicom:
        check_dicom(hash_ids)
    folder, output, weights = Path(folder), Path(output), find_weights("encoder", weights)
    check_engine(weights, BOTH, engine, device)
    metadata = check_bag(weights)
    classes, note, key = metadata["classes"], caution(metadata["demonstration"]), id_key() if hash_ids else ""
    output.mkdir(parents=True, exist_ok=True)
    for name in ("per_slice.csv", "per_series.csv") if key else ():
        (output / name).unlink(missing_ok=True)   # an earlier run may have shown ids
    slices, series = read_folder(folder, output, metadata, workers, key)
    behind, folder = names_behind(folder, output, key), folder_of(folder)
    name_of = slices["file"].where(slices["frame"].astype(str).eq(""),
                                   slices["file"] + "#" + slices["frame"].astype(str))
    slices["item"] = slices["series"].where(slices["place"].ne(""), name_of).where(_is_slice(slices), "")
    keys = slices["item"][slices["item"].ne("")].unique()
    names = dict(zip(keys, picture_names(list(keys))))
    keep_pictures(output / "previews", list(names.values()))
    keep_slices(output / "slices", list(names.values()))
    items = _items(slices, folder, weights, output, names, note, html or dicom)
    for item in items:
        item |= {"engine": engine, "device": device}
        item["rows"] = [{**row, "file": behind.get(row["file"], row["file"])} for row in item["rows"]]
    files = slices.loc[slices["item"].ne(""), "item"].reset_index(drop=True)
    found = map_files(partial(quiet, predict_item) if key else predict_item, items, table=output / "per_slice.csv",
                      params={"hidden": bool(key), **parts_of(weights)}, reads=_files_of, writes=output,
                      workers=workers, label="predict").set_index("file").reindex(files)
    print_refused(found)
    for column in [*classes, "cnn_any"]:
        values = by_row(found[column].tolist(), files) if column in found else np.nan
        slices.loc[slices["item"].ne(""), column] = pd.to_numeric(pd.Series(values, files.index)).to_numpy()
    errors = by_row(found["error"].fillna("").tolist(), files) if len(files) else []
    slices.loc[slices["item"].ne(""), "error"] = errors
    slices.attrs["note"] = note
    totals = _per_series(slices, series, classes)
    drawn = found["drawn"].dropna().to_dict() if "drawn" in found else {}
    scores, shown = results_of(slices, drawn, classes)
    exams = exams_of(slices, scores, shown, note, {GIVEN: GIVEN, GREY: GREY})
    named, made = origin(weights, metadata), None
    if html:
        write_study_pages(exams, output, named, ABOUT)
    if dicom:
        made = write_study_results(scores, shown, folder, output, maker_of(weights), CODES)
    if hash_ids:
        slices, totals = _hide(slices), _hide(totals)
    columns = ["file", "patient_id", "study", "series", "image_id", "frame", "place", "position_mm", *classes,
               "cnn_any", "note", "error"]
    result = safe_cells(slices[columns].copy())
    write_csv(output / "per_slice.csv", result)
    write_csv(output / "per_series.csv", safe_cells(totals))
    failed, known = result["error"].ne(""), result["cnn_any"].notna()
    result.attrs |= {"weights": str(weights), "series": len(totals), "note": note, "computed": names_in(found),
                     "origin": named, "exams": exams, "dicom": made, "html": html,
                     "counts": {"slices": len(result), "series": len(totals), "predicted": int(known.sum()),
                                "failed": int(failed.sum())}}
    return result

def _hide(table: pd.DataFrame) -> pd.DataFrame:
    "Leave out all notes and words of errors that may name something."
    table = table.copy()
    if "error" in table:
        table["error"] = [e.split(":")[0] for e in table["error"]]
        own = [[n for n in note.split("; ") if n in _SAFE] for note in table["note"]]
        table["note"] = ["; ".join(n) for n in own]
    return table

_SAFE = {DEMONSTRATION, NOT_A_DEVICE, GIVEN, GREY}

def print_predictions(
    result: pd.DataFrame,  # from `predict_folder`
    output: Path,
) -> int:                  # how many files failed
    "Print a line for each series, and the count."
    series = pd.read_csv(Path(output) / "per_series.csv", dtype=str, keep_default_na=False)
    last = [c for c in (*CLASSES,) if c in series][-1]
    for row in series.to_dict("records"):
        value = f"{float(row[last]):.3f}" if row[last] else "  -  "
        note = f" ({row['note']})" if row["note"] else ""
        print(f"{value}  {row['series']}, {row['slices']} slices, most in {row[f'{last}_slice']}{note}")
    failed, known = result["error"].ne(""), result["cnn_any"].notna()
    for row in result[failed].head(20).itertuples():
        print(f"failed {row.file}: {row.error}")
    print(f"{known.sum()} slices of {len(series)} series predicted with {result.attrs['weights']}, {failed.sum()} "
          f"failed, {(~known & ~failed).sum()} without prediction -> {output}")
    print_results(result, output)
    if result.attrs["note"]:
        print(result.attrs["note"])
    return int(failed.sum())

# %%
result = predict_folder(folder, output, weights)
assert print_predictions(result, output) == 0
pd.read_csv(output / "per_series.csv").head()

# %% [markdown]
# A picture of a series, with the most suspicious slices marked:

# %%
plt.figure(figsize=(9, 5))
plt.imshow(cv2.imread(str(sorted((output / "previews").glob("*.png"))[0]))[..., ::-1])
plt.axis("off");

# %% [markdown]
# ## What came out
# A file that is no scan is one failed row, and the others are predicted as before:

# %%
(Path(folder) / "broken.dcm").write_bytes(b"not a scan")
again = predict_folder(folder, output, weights)
(Path(folder) / "broken.dcm").unlink()
failed = again[again["error"].ne("")]
assert len(failed) == 1 and (again["any"].dropna().values == result["any"].dropna().values).all()
print(failed["error"].iloc[0])

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

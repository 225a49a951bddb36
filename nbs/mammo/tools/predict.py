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
# > From any folder of mammograms to a probability for each image and breast, and a preview of each image.
#
# Competition data are tidy, and a folder from a clinic is not: files without a laterality tag, several patients in one
# folder, a tomosynthesis container, a PDF. Each file is either predicted or listed with the reason why not. The
# submission of the competition reads its files in the same way.

# %%
#| default_exp mammo.tools.predict

# %%
#| export
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_nb.core.calibration import corrected
from mammo_nb.core.dicom import find_files, folder_of
from mammo_nb.core.dicom_results import check_dicom
from mammo_nb.core.engines import NotFinite, finite
from mammo_nb.core.errors import cell, shown
from mammo_nb.core.files import inside, owned, write_csv, write_json
from mammo_nb.core.headers import NotImage
from mammo_nb.core.parallel import map_files
from mammo_nb.core.pictures import keep_pictures, picture_names, write_png
from mammo_nb.core.processes import quiet
from mammo_nb.core.providers import check_engine, computed_by, names_in, print_refused, process_engine
from mammo_nb.core.recipes import from_dict
from mammo_nb.core.sidecars import read_entries
from mammo_nb.core.settings import hidden_id, id_key, parts_of
from mammo_nb.core.submission import check_score, find_weights, origin
from mammo_nb.mammo.crops import WHOLE, preview
from mammo_nb.mammo.learning.decision import image_means
from mammo_nb.mammo.reading.frames import check_frames, frame_id, frame_indices, several
from mammo_nb.mammo.reading.inputs import row_of, see
from mammo_nb.mammo.reading.mammograms import no_standard, read_header
from mammo_nb.mammo.reading.labels import DatasetError
from mammo_nb.mammo.reading.names import packed_files
from mammo_nb.mammo.reading.sides import frame_entries, identify, read_sides, with_table_view
from mammo_nb.mammo.recipes import Crops
from mammo_nb.mammo.tools.breasts import breasts_of, counts, mark_repeated
from mammo_nb.mammo.tools.exams import exams_of, known_notes, view_term, write_exams
from mammo_nb.mammo.tools.networks import NEEDED, PredictError, detector_of, fast_weights, words_of

# %%
#| hide
import tempfile

import cv2
import matplotlib.pyplot as plt

from mammo_nb.core.practice import practice
from mammo_nb.mammo.system import system

# %% tags=["parameters"]
folder = ""    # mammograms in DICOM format; "" takes the test images and the weights of a small practice run
weights = ""   # folder with ensemble.onnx and ensemble.json

# %%
#| hide
if not folder:
    run = practice(system, before="submit")
    folder, weights = run.path("competition/test_images"), run.path("weights/")
output = Path(tempfile.mkdtemp()) / "out"

# %% [markdown]
# ## One image
# [Inputs](../reading/inputs.py) reads the file, and the network runs in the same process. If a file has no tags for
# side and view, they are read from [a table](../reading/sides.py) of the user or from the `test.csv` of a competition.

# %%
#| export
def predict_file(
    # folder, file, weights, detector, and perhaps engine and device; row of a table; previews: folder or ""; name: stem
    # of the preview, and title its first line; force: whether a picture without a breast gets a probability, too;
    # all_views: whether images other than standard mammograms do; frames: middle or a number, for a file with several;
    # heat: adds the heat map to the preview
    item: dict,
) -> dict:       # a row of per_image.csv
    """Predict one file and draw its preview. A prediction that is no number is an error of the row. Without a breast,
    and for other images than standard mammograms, the probability is empty."""
    if item.get("previews"):
        drawn = Path(item["previews"]) / f"{item['name']}.png"
        drawn.unlink(missing_ok=True)   # of an earlier file
    try:
        header = with_table_view(read_header(inside(item["folder"], item["file"])), item)
    except NotImage as e:
        return {"note": e.problem}
    index, = frame_indices(header.frames, item.get("frames", ""))
    asked = item.get("all_views") or header.frames > 1 and header.special == "tomosynthesis"  # by choosing a frame
    if index is None or header.special and not asked:
        notes = [no_standard(header), several(header) if header.frames > 1 else ""]
        return {**identify(header, item), "note": "; ".join(filter(None, notes)), "instance": header.instance,
                "exam": header.exam}
    engine = process_engine(str(Path(item["weights"]) / "ensemble.onnx"), item.get("engine", "auto"),
                            item.get("device", "cpu"))
    settings = from_dict(Crops, engine.metadata["crops"])
    seen = see(inside(item["folder"], item["file"]), settings, item["detector"], engine.size, index)
    row = row_of(seen, item)
    instance = header.instance and frame_id(header.instance, header.frames, index)
    row |= {**computed_by(engine), "instance": instance, "exam": header.exam}
    probability = None
    if item.get("force") or not row.pop("withheld"):
        try:
            probability = round(float(finite(image_means(engine(seen.picture[None]), settings.faithful))[0]), 6)
        except NotFinite as e:
            return {**row, "error": f"NotFinite: {e}"}
    if item.get("previews"):
        sides = f"{row['laterality']} {view_term(row['view'])}"
        number = "none" if probability is None else f"{probability:.3f}"
        lines = [shown(item.get("title") or item["file"]), f"{sides}   probability {number}   box: {row['box_source']}"]
        lines.append(words_of(engine.metadata))
        draw = preview
        if item.get("heat") and probability is not None:
            from mammo_nb.mammo.tools.heat_maps import preview_with_heat
            draw = partial(preview_with_heat, Path(item["weights"]), settings.faithful)
        write_png(drawn, draw(seen.breast, seen.picture, lines))
    return {**row, "probability": probability}

# %% [markdown]
# ## Without ids
# With `--hash-ids` a process replaces ids before it gives the row away. So no journal and no picture has them, also
# when the run is killed. A view or a note is kept only if it is one of the known terms.

# %%
#| export
def hide_row(
    row: dict,   # from `predict_file`
    key: str,    # from `id_key`
) -> dict:
    "Replace ids by digests, and leave out free text."
    row = dict(row)
    for name in {"patient_id", "image_id", "instance", "exam"} & row.keys():
        row[name] = row[name] if row[name] == "unknown" else hidden_id(str(row[name] or ""), key)
    if "view" in row:
        row["view"] = view_term(row["view"])
    return row | ({"note": "; ".join(known_notes(row["note"]))} if "note" in row else {})

def predict_hidden(
    item: dict,  # as for `predict_file`; file: a digest, path: the file, key: from `id_key`
) -> dict:
    "As `predict_file`, with digests in place of ids."
    return hide_row(predict_file({**item, "file": item["path"]}), item["key"])

# %% [markdown]
# ## A folder
# Two tables are written, `per_image.csv` and `per_breast.csv`. Their column `note` says that this is not a medical
# device, and marks weights that are for demonstration only. Where the weights have a correction that was fitted on the
# out-of-fold predictions of their training, the column `calibrated` has the corrected probability of the breast; the
# threshold belongs to the column `probability`. `predict.json` says where the weights come from. A picture
# whose patient or side is unknown has a row for itself, but none in the table of breasts: nobody knows which pictures
# show the same breast. A picture that shows [no breast](../reading/blank.py) or is [no standard
# mammogram](../reading/views.py) has an empty probability and a note.

# %%
#| export
PER_IMAGE = [
    "file", "patient_id", "image_id", "laterality", "view", "rows", "columns", "decoder", "x0", "y0", "x1", "y1",
    "box_source", "probability", "error"
]
INNER = ["instance", "exam", "computed"]   # columns that no table shows

def _path(item: dict) -> list[Path]:
    "The file that an item reads."
    return [Path(item["folder"], item.get("path", item["file"]))]

def with_caution(
    notes: pd.Series,   # what is said of each image; missing or "": nothing
    words: str,         # from `words_of`
) -> list[str]:
    "Add the words about the weights to the notes."
    return ["; ".join([*filter(None, [note if isinstance(note, str) else ""]), words]) for note in notes]

def _predicted(
    items: list[dict],           # for `predict_file`, all with the same weights; the detector is added here
    output: Path,                # per_image.csv, with its journal beside it
    workers: int | None = None,  # processes; None means one a core
) -> pd.DataFrame:               # PER_IMAGE, `note` and INNER
    "Predict files in parallel; a file that fails is a row with an error."
    weights = Path(items[0]["weights"])
    metadata, detector = read_entries(weights / "ensemble.json", NEEDED), detector_of(weights)
    items = [{"entry": item["file"], **item, "detector": str(detector or "")} for item in items]
    hidden = "key" in items[0]
    table = map_files(partial(quiet, predict_hidden) if hidden else predict_file, items, table=output, key="entry",
                      reads=_path, params={"hidden": hidden, **parts_of(weights)}, writes=output.parent,
                      workers=workers, label="predict")
    table["file"] = [item["file"] for item in items]
    print_refused(table)
    table = table.reindex(columns=[*PER_IMAGE, "note", *INNER]).astype({c: "Int64" for c in WHOLE})
    table["note"] = with_caution(table["note"], words_of(metadata))
    return table

def predict_items(
    items: list[dict],           # as for `_predicted`
    output: Path,
    workers: int | None = None,
) -> pd.DataFrame:               # PER_IMAGE and `note`
    "Predict files in parallel; a file that fails is a row with an error."
    return _predicted(items, output, workers).drop(columns=INNER)

@owned
def predict_folder(
    folder: Path,                 # DICOM files, nested or flat; without any, PNG and JPEG files; or a single file
    output: Path,                 # per_image.csv, per_breast.csv and previews/ go here
    weights: Path | None = None,  # as in `find_weights`
    table: Path | None = None,    # as in `read_sides`
    hash_ids: bool = False,       # whether ids are replaced by digests
    workers: int | None = None,   # processes; None means one a core
    force: bool = False,          # whether a picture without a breast gets a probability, too
    all_views: bool = False,      # whether other images than standard mammograms get one, too
    frames: str = "",             # middle, all or a number from 1, for files with several frames
    dicom: bool = False,          # whether pictures and reports are also written as DICOM, to dicom/
    html: bool = False,           # whether a page for each exam is written, to html/
    engine: str = "auto",         # as in `check_engine`
    device: str = "cpu",
    fast: bool = False,           # whether the first network alone predicts, without TTA
    heat_maps: bool = False,      # whether previews also show the frame under its heat map
) -> pd.DataFrame:                # the rows of per_image.csv
    "Predict every mammogram of a folder."
    frames = check_frames(frames)
    if dicom:
        check_dicom(hash_ids)
    folder, output, place = Path(folder), Path(output), find_weights("ensemble", weights)
    metadata = read_entries(place / "ensemble.json", NEEDED)
    if not weights:
        check_score(place, metadata)
    named = origin(place, metadata)
    if fast:
        place = fast_weights(place, output / "fast")
        metadata = read_entries(place / "ensemble.json", NEEDED)
    check_engine(place, ["ensemble"], engine, device)
    if heat_maps:
        from mammo_nb.mammo.tools.heat_maps import networks_of
        networks_of(place / "ensemble.onnx")   # an error before the first file
    files, others = find_files(folder, besides=output)
    packed, folder = packed_files(folder), folder_of(folder)
    try:
        sides, unmatched = read_sides(folder, files, table)
    except DatasetError:
        if not hash_ids:
            raise
        raise PredictError("The table of sides cannot be used. The reason may name a patient, so it is shown only "
                           "without --hash-ids.") from None
    chosen = frame_entries(folder, files, sides, frames, workers)
    names = picture_names([entry for _, _, entry in chosen])
    items = [
        {"file": f, "frames": choice, "entry": entry, "folder": str(folder), "weights": str(place),
         "row": sides.get(f), "previews": str(output / "previews"), "name": name, "title": f, "force": force,
         "all_views": all_views, "engine": engine, "device": device, "heat": heat_maps}
        for (f, choice, entry), name in zip(chosen, names)]
    if hash_ids:
        key, packed = id_key(), packed.partition(", unpack")[0]
        names = [hidden_id(i["entry"], key) for i in items]
        items = [{**i, "file": hidden_id(i["file"], key), "path": i["file"], "entry": n, "name": n, "title": n,
                  "key": key} for i, n in zip(items, names)]
        for old in ("per_image.csv", "per_breast.csv"):
            (output / old).unlink(missing_ok=True)   # an earlier run may have shown ids
    keep_pictures(output / "previews", names)
    result = _predicted(items, output / "per_image.csv", workers)
    nameless = result["patient_id"].eq("unknown") | result["laterality"].eq("unknown")
    read = result["file"]
    for column in ("file", "patient_id", "image_id"):
        result[column] = result[column].map(cell)
    result["error"] = [shown(e) if isinstance(e, str) else e for e in result["error"]]
    result = mark_repeated(result)
    write_csv(output / "per_image.csv", result.drop(columns=INNER))
    breasts = breasts_of(result[~nameless])
    if metadata.get("calibration"):
        known = breasts["probability"].notna()
        breasts.loc[known, "calibrated"] = corrected(breasts.loc[known, "probability"], metadata["calibration"])
    made = None
    if dicom:
        from mammo_nb.mammo.tools.results import write_results
        made = write_results(result.assign(file=read, name=names, counts=counts(result)), folder, output, place)
    write_csv(output / "per_breast.csv", breasts)
    about = {"weights": str(place), "origin": named, "note": words_of(metadata)}
    write_json(output / "predict.json", {**about, "trained": metadata.get("trained")})
    exams = exams_of(result.assign(name=names, counts=counts(result)), metadata)
    if html:
        write_exams(exams, output, named)
    computed, result = names_in(result), result.drop(columns=INNER)
    failed = result["error"].fillna("").ne("")
    about["counts"] = {"files": len(result), "predicted": int(result["probability"].notna().sum()), "failed": int(
        failed.sum()), "withheld": int((result["probability"].isna() & ~failed).sum()), "other_files": others}
    nameless &= result["probability"].notna()   # other pictures than mammograms have no side
    result.attrs |= {**about, "nameless": int(nameless.sum()), "others": others, "packed": packed,
                     "unmatched": unmatched, "dicom": made, "computed": computed, "exams": exams}
    return result

def print_predictions(
    result: pd.DataFrame,  # from `predict_folder`
    output: Path,
) -> int:                  # how many files failed
    "Print a line for each image, and the count."
    failed, html = result[result["error"].fillna("").ne("")], Path(output) / "html" / "index.html"
    empty = result["probability"].isna().drop(failed.index)
    for row in result.drop(failed.index).itertuples():
        why = f": {row.note.rpartition('; ')[0]}" if empty[row.Index] else ""
        probability = "  -  " if empty[row.Index] else f"{row.probability:.3f}"
        sides = f"{row.laterality} {row.view:8}" if isinstance(row.view, str) else 10 * " "
        frame = "" if why else "".join(re.findall(r" frame \d+ of \d+", f" {row.note}"))
        print(f"{probability}  {sides} {row.file}{frame}{why}")
    for row in failed.itertuples():
        print(f"failed {row.file}: {row.error}")
    if nameless := result.attrs["nameless"]:
        print(f"files without a known patient or side: {nameless}; per_breast.csv leaves them out. Name them in a CSV "
              "with the columns file, patient_id, laterality and view: --table sides.csv")
    if empty.any():
        print(f"files without a probability: {empty.sum()}, see the column note of per_image.csv:")
        reasons = result.loc[empty.index[empty], "note"].str.rpartition("; ")[0]
        for reason, n in reasons.value_counts().items():
            print(f"  {n} {reason}")
        print("--force predicts pictures without a breast, --all-views other images than standard mammograms")
    if others := result.attrs["others"]:
        print(f"{others} other files left out")
    for line in (result.attrs["unmatched"], result.attrs["packed"]):
        if line:
            print(line)
    if made := result.attrs["dicom"]:
        for problem in made["problems"]:
            print(problem)
        print(f"{made['pictures']} pictures and {made['reports']} reports -> {output}/dicom")
    print(f"{len(result) - len(failed) - empty.sum()} of {len(result)} files predicted -> {output}")
    if html.is_file():
        print(f"pages -> {html}")
    print(f"weights {result.attrs['origin']}")
    print(result.attrs["note"])
    return len(failed)

# %%
result = predict_folder(folder, output, weights)
assert print_predictions(result, output) == 0
pd.read_csv(output / "per_breast.csv", dtype={"patient_id": str}).head()

# %% [markdown]
# A preview shows the box of the breast and the input of the network:

# %%
pictures = sorted((output / "previews").glob("*.png"))[:3]
fig, axes = plt.subplots(1, len(pictures), figsize=(12, 5))
for ax, p in zip(np.atleast_1d(axes), pictures):
    ax.imshow(cv2.imread(str(p))[..., ::-1])
    ax.axis("off")
fig.tight_layout()

# %% [markdown]
# A file that is no image is one failed row, and the others are predicted:

# %%
(Path(folder) / "broken.dcm").write_bytes(b"not a scan")
again = predict_folder(folder, output, weights)
(Path(folder) / "broken.dcm").unlink()
failed = again[again["error"].fillna("") != ""]
assert len(failed) == 1 and (again["probability"].dropna().values == result["probability"].values).all()
print(failed["error"].iloc[0])

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

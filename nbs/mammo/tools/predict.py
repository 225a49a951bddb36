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
# # Predict
# > Any folder of mammograms in, a probability for each image and breast out, and a picture of what was looked at.
#
# Competition data is tidy; a folder from a clinic is not. Files without a laterality tag, several patients in one
# folder, a tomosynthesis container, a PDF: each is either predicted or named with the reason why not. The submission of
# the competition reads its files in the same way.

# %%
#| default_exp mammo.tools.predict

# %%
#| export
import hashlib
from pathlib import Path

import pandas as pd

from mammo_nb.core.backends import read_sidecar
from mammo_nb.core.dicom import find_files
from mammo_nb.core.engines import process_engine
from mammo_nb.core.files import inside, read_json, write_csv
from mammo_nb.core.parallel import map_files
from mammo_nb.core.pictures import write_png
from mammo_nb.core.settings import SettingsError
from mammo_nb.core.runs import find_trained
from mammo_nb.mammo.crops import WHOLE, preview
from mammo_nb.mammo.datasets import DatasetError, per_breast, read_table
from mammo_nb.mammo.reading.inputs import row_of, see
from mammo_nb.mammo.recipes import Crops

# %%
#| hide
import tempfile

import cv2
import matplotlib.pyplot as plt
import numpy as np

from mammo_nb.core.runs import practice
from mammo_nb.mammo.system import system

# %% tags=["parameters"]
folder = ""    # mammograms in DICOM; "" takes the test images of a small practice run

# %%
#| hide
if not folder:
    run = practice(system, before="submit")
    folder, weights = run.path("competition/test_images"), run.path("weights/ensemble.onnx").parent
output = Path(tempfile.mkdtemp()) / "out"

# %%
#| export
class PredictError(Exception):
    "Nothing can be predicted at all: no files, or no weights; says how to get some."

# %%
#| export
def _failed(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["error"].fillna("").ne("")]

# %% [markdown]
# ## Weights
# Named, kept, or of the newest finished run, in this order; which one it was is printed.

# %%
#| export
DEMONSTRATION = "demonstration weights, not for clinical use"

def find_weights(
    weights: Path | None = None,  # a folder; None or "": look for one
) -> Path:                        # a folder with ensemble.onnx and ensemble.json
    "Weights from the argument, else assets/trained, else the newest finished run."
    try:
        found = find_trained(["ensemble.onnx", "ensemble.json"], weights)
    except SettingsError:
        raise PredictError(
            "No weights given. Name a folder with --weights, or start from a checkout of mammo_nb.") from None
    if found:
        return found
    if weights:
        raise PredictError(
            f"{weights} has no ensemble.onnx with its ensemble.json. `make reproduce` writes such a folder: "
            "runs/demo/weights."
        )
    raise PredictError(
        "No weights yet. `make reproduce` trains demonstration weights in minutes; others go to assets/trained or are "
        "named with --weights."
    )

# %% [markdown]
# The networks saw breasts as their detector cut them. Another detector cuts otherwise, so the ensemble remembers which
# one it was, and none but that is taken.

# %%
#| export
def detector_of(
    weights: Path,   # a folder with ensemble.onnx
) -> Path | None:    # its detector.onnx; None for networks that were trained without one
    "The detector that belongs to an ensemble."
    wanted, path = read_json(Path(weights) / "ensemble.json").get("detector"), Path(weights) / "detector.onnx"
    if not wanted:
        return None
    if not path.is_file():
        raise PredictError(
            f"{weights} has no detector.onnx; its networks were trained with one. Copy detector.onnx and "
            "detector.json from the same run."
        )
    if read_sidecar(path)["sha256"] != wanted:
        raise PredictError(
            f"{weights}: detector.onnx is not the one that its networks were trained with. Copy detector.onnx and "
            "detector.json from the same run."
        )
    return path

# %% [markdown]
# ## Who, which side, which view
# Where the tags of a file do not say, a table of the user's may, in the manner of a competition's `test.csv`.

# %%
#| export
def read_sides(
    folder: Path,               # of the scans; a competition's train.csv and test.csv may lie in it or above it
    table: Path | None = None,  # a CSV with image_id, or file whose stem it is; laterality, view; patient_id if known
) -> dict[str, dict]:           # image_id -> its row
    "What tables say about images."
    folder = Path(folder).resolve()
    beside = [
        d / f"{d_images.removesuffix('_images')}.csv"
        for d, d_images in ((folder.parent, folder.name), (folder.parent.parent, folder.parent.name))
    ]
    tables = [Path(table)
              ] if table else [t for t in (folder / "train.csv", folder / "test.csv", *beside) if t.is_file()]
    rows = {}
    for t in tables:
        sides = read_table(t, ["laterality", "view"])
        if "image_id" not in sides and "file" in sides:
            sides["image_id"] = [Path(f).stem for f in sides["file"].astype(str)]
        if "image_id" not in sides:
            raise DatasetError(f"{t.name} has no column image_id or file; it has {', '.join(sides.columns)}.")
        for row in sides.to_dict("records"):
            rows[row["image_id"]] = {
                k: row[k] for k in ("patient_id", "image_id", "laterality", "view") if pd.notna(row.get(k))
            }
    return rows

# %% [markdown]
# ## One image
# [Inputs](reading/inputs.py) reads the file; the network is in the same process.

# %%
#| export
def predict_file(
    item: dict,  # folder, file, weights, detector; row from a table; previews: folder or ""; name: of the preview
) -> dict:       # a row of per_image.csv
    "Predict one file."
    engine = process_engine(str(Path(item["weights"]) / "ensemble.onnx"))
    seen = see(inside(item["folder"], item["file"]), Crops(**engine.metadata["crops"]), item["detector"], engine.size)
    row, probability = row_of(seen, item), float(engine(seen.picture[None]).mean())
    if item.get("previews"):
        lines = [f"{row['laterality']} {row['view']}   probability {probability:.3f}   box: {row['box_source']}"
                 ] + [DEMONSTRATION] * bool(engine.metadata["demonstration"])
        write_png(Path(item["previews"]) / f"{item['name']}.png", preview(seen.breast, seen.picture, lines))
    return {**row, "probability": round(probability, 6)}

# %% [markdown]
# ## A folder
# Two tables come out, in the columns of the contract. Every row says what kind of weights spoke.

# %%
#| export
PER_IMAGE = [
    "file", "patient_id", "image_id", "laterality", "view", "rows", "columns", "decoder", "x0", "y0", "x1", "y1",
    "box_source", "probability", "error"
]

def short_hash(
    text: str,
) -> str:       # 12 hexadecimal digits
    "An id that tells nobody who it was, and is the same for the same text."
    return hashlib.sha256(text.encode()).hexdigest()[:12]

def _hide(table: pd.DataFrame) -> pd.DataFrame:
    "Replace ids, and file names, which may contain them."
    for column in ("patient_id", "image_id", "file"):
        table[column] = [short_hash(str(v)) if pd.notna(v) and v else v for v in table[column]]
    # the message names the file
    table["error"] = [e.split(":")[0] if isinstance(e, str) else e for e in table["error"]]
    return table

def predict_items(
    items: list[dict],           # for `predict_file`, all with the same weights; the detector is added
    output: Path,                # per_image.csv, with its journal while it runs
    workers: int | None = None,  # processes; None: one a core
) -> pd.DataFrame:               # PER_IMAGE and `note`
    "Predict files in parallel; a file that fails is a row with an error."
    weights = Path(items[0]["weights"])
    metadata, detector = read_json(weights / "ensemble.json"), detector_of(weights)
    items = [{**item, "detector": str(detector or "")} for item in items]
    table = map_files(predict_file, items, table=output, key="file", params=metadata, workers=workers, label="predict")
    table = table.reindex(columns=PER_IMAGE).astype({c: "Int64" for c in WHOLE})
    table["note"] = DEMONSTRATION if metadata["demonstration"] else ""
    return table

def predict_folder(
    folder: Path,                 # DICOM files, nested or flat; without any, PNG and JPEG files
    output: Path,                 # per_image.csv, per_breast.csv and previews/ go here
    weights: Path | None = None,  # see `find_weights`
    table: Path | None = None,    # see `read_sides`
    hash_ids: bool = False,       # replace ids by digests
    workers: int | None = None,   # processes; None: one a core
) -> pd.DataFrame:                # the rows of per_image.csv
    "Predict every mammogram of a folder."
    folder, output, weights = Path(folder), Path(output), find_weights(weights)
    files, _ = find_files(folder, besides=output)
    sides = read_sides(folder, table)
    name = lambda f: short_hash(f) if hash_ids else f.replace("/", "@").removesuffix(".dcm").removesuffix(".png")
    items = [{
        "file": f, "folder": str(folder), "weights": str(weights), "row": sides.get(Path(f).stem), "previews": str(
            output / "previews"), "name": name(f)
    } for f in files]
    result = predict_items(items, output / "per_image.csv", workers)
    if hash_ids:
        result = _hide(result)
    write_csv(output / "per_image.csv", result)
    breasts = per_breast(result[result["probability"].notna()])[["patient_id", "laterality", "images", "probability"]]
    breasts["note"] = result["note"].iloc[0]
    write_csv(output / "per_breast.csv", breasts)
    result.attrs["weights"] = str(weights)
    return result

def print_predictions(
    result: pd.DataFrame,  # from `predict_folder`
    output: Path,
) -> int:                  # how many files failed
    "Print a line an image and a count."
    failed = _failed(result)
    for row in result.drop(failed.index).itertuples():
        print(f"{row.probability:.3f}  {row.laterality} {row.view:8} {row.file}")
    for row in failed.itertuples():
        print(f"failed {row.file}: {row.error}")
    print(f"{len(result) - len(failed)} of {len(result)} files predicted with {result.attrs['weights']} -> {output}")
    if result["note"].iloc[0]:
        print(result["note"].iloc[0])
    return len(failed)

# %%
result = predict_folder(folder, output, weights)
assert print_predictions(result, output) == 0
pd.read_csv(output / "per_breast.csv", dtype={"patient_id": str}).head()

# %% [markdown]
# A preview shows where the breast was found and what the network saw of it:

# %%
pictures = sorted((output / "previews").glob("*.png"))[:3]
fig, axes = plt.subplots(1, len(pictures), figsize=(12, 5))
for ax, p in zip(np.atleast_1d(axes), pictures):
    ax.imshow(cv2.imread(str(p))[..., ::-1])
    ax.axis("off")
fig.tight_layout()

# %% [markdown]
# A file that is none of ours fails alone:

# %%
(Path(folder) / "broken.dcm").write_bytes(b"not a scan")
again = predict_folder(folder, output, weights)
(Path(folder) / "broken.dcm").unlink()
assert len(_failed(again)) == 1 and (again["probability"].dropna().values == result["probability"].values).all()
print(_failed(again)["error"].iloc[0])

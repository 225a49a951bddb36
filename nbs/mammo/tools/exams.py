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
# # Exams
# > The predictions of a folder as one page for each exam, that opens anywhere and names nobody.
#
# A table is for a program. A reader wants the four views of an exam side by side, in the order of a viewing station:
# right breast on the left, CC above MLO. The parts of a page, and what it may show, are in
# [Exams of core](../../core/81_exams.py).

# %%
#| default_exp mammo.tools.exams

# %%
#| export
import re
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_nb.core.calibration import corrected
from mammo_nb.core.exams import NOTICE, exam_page, figure_of, list_page, number_of, table_of, write_pages
from mammo_nb.core.files import short_hash
from mammo_nb.mammo.reading.blank import NO_BREAST
from mammo_nb.mammo.reading.mammograms import NO_STANDARD
from mammo_nb.mammo.reading.views import TERMS
from mammo_nb.mammo.tools.breasts import REPEATED
from mammo_nb.mammo.tools.networks import words_of

# %%
#| hide
import tempfile

from mammo_nb.core.pictures import write_png

# %% tags=["parameters"]
size = (120, 200)   # rows, columns of the previews of the example, in pixels

# %% [markdown]
# ## Known terms

# %%
#| export
_NOTES = (NO_STANDARD, NO_BREAST, REPEATED)

def view_term(
    view,      # a view, or a free text, or nothing
) -> str:
    "A view if it is a term of the field, else `other`."
    return view if view in TERMS else "other"

def known_notes(
    note,          # notes of an image, perhaps with free text
) -> list[str]:
    "The parts of a note that are terms of the project."
    note = note if isinstance(note, str) else ""
    return [term for term in _NOTES if term in note] + re.findall(
        r"frame \d+ of \d+|\d+ frames, choose with --frames [^;]*", note)

# %%
assert known_notes(f"{NO_STANDARD}: JANE ROE; frame 3 of 9; not a medical device") == [NO_STANDARD, "frame 3 of 9"]
assert view_term("MLO") == "MLO" and view_term("JANE ROE") == view_term(None) == "other"

# %% [markdown]
# ## Exams
# An exam has the images of one patient and one study. Files that nobody can read belong to no exam, and are together.

# %%
#| export
_ORDER = {"CC": 0, "MLO": 1}

def _image(row) -> dict:
    "What is shown of an image."
    error = row.error if isinstance(row.error, str) else ""
    known = pd.notna(row.probability)
    box = None if pd.isna(row.x0) else [int(v) for v in (row.x0, row.y0, row.x1, row.y1)]
    return {"preview": row.name_ if row.box_source and box else "",
            "instance": row.instance if isinstance(row.instance, str) else "",
            "laterality": row.laterality if row.laterality in ("L", "R") else "unknown", "view": view_term(row.view),
            "probability": float(row.probability) if known else None, "box": box,
            "box_source": row.box_source if box else "", "note": "; ".join(known_notes(row.note)),
            "error": error.partition(":")[0]}

def exams_of(
    images: pd.DataFrame,   # as from `predict_folder`, with instance, exam, name (of the preview) and counts
    metadata: dict,         # ensemble.json
) -> list[dict]:            # exam, patient_id, breasts, images, threshold, note
    "The exams of a folder, in the order of the files."
    images = images.rename(columns={"name": "name_"})
    keys = [images[c].where(images[c].notna(), "").astype(str) for c in ("patient_id", "exam")]
    exams = []
    for (patient, study), rows in images.groupby(keys, sort=False):
        breasts = []
        for side, own in rows[rows["counts"] & rows["laterality"].isin(["L", "R"])].groupby("laterality"):
            value = own["probability"].astype(float).mean()
            breast = {"laterality": side, "images": len(own), "probability": round(value, 6),
                      "above_threshold": bool(np.float32(value) > np.float32(metadata["threshold"]))}
            if metadata.get("calibration"):
                breast["calibrated"] = round(float(corrected(np.array([value]), metadata["calibration"])[0]), 6)
            breasts.append(breast)
        shown = [_image(row) for row in rows.itertuples()]
        shown.sort(key=lambda i: (_ORDER.get(i["view"], 2), i["laterality"] != "R"))
        exams.append({"exam": short_hash(f"{patient} {study}"), "patient_id": patient, "breasts": breasts[::-1],
                      "images": shown, "threshold": metadata["threshold"], "note": words_of(metadata)})
    return exams

# %% [markdown]
# ## Pages

# %%
#| export
_SIDE = {"L": "Left", "R": "Right", "unknown": "Unknown side"}

def _figure(image: dict, previews: Path) -> str:
    "A view with its picture, if there is one."
    name = f"{_SIDE[image['laterality']]} {image['view']}"
    words = [f"<b>{name}</b>, probability {number_of(image['probability'])}"]
    if image["box"]:
        words.append(f"box of the breast: {escape(image['box_source'])}")
    words += [escape(w) for w in (image["note"], image["error"] and f"failed: {image['error']}") if w]
    return figure_of(previews / f"{image['preview']}.png" if image["preview"] else None,
                     f"{name}: the frame with the box of the breast, and the input of the network", ", ".join(words))

def breasts_page(
    exam: dict,       # of `exams_of`
    previews: Path,   # folder of the previews
    origin: str,      # of the weights, in one sentence
) -> str:             # HTML
    "The page of an exam."
    head = ["breast", "images", "probability", *(["corrected"] if any("calibrated" in b for b in exam["breasts"]) else
                                                 []), f"threshold {exam['threshold']:.3f}"]
    rows = [[_SIDE[b["laterality"]], str(b["images"]), number_of(b["probability"]),
             *([number_of(b["calibrated"])] if "calibrated" in b else []),
             "<span class='above'>above</span>" if b["above_threshold"] else "not above"] for b in exam["breasts"]]
    table = table_of(head, rows) if rows else "<p>No breast of this exam has a probability.</p>"
    views = "".join(_figure(i, previews) for i in exam["images"])
    return exam_page(exam, [("Breasts", table), ("Views", f"<div class='views'>{views}</div>")], origin, _notice(exam))

def _notice(exam: dict) -> str:
    fast = exam["note"].partition("fast: ")[2]
    return NOTICE + (f" Fast: {fast}." if fast else "")

def _highest(exam: dict) -> float:
    return max((b["probability"] for b in exam["breasts"]), default=-1.)

def breasts_list(
    exams: list[dict],   # of `exams_of`
) -> str:                # HTML
    "The list of all exams, the highest probability first."
    rows = []
    for exam in sorted(exams, key=_highest, reverse=True):
        of = {b["laterality"]: f"<span class='{'above' if b['above_threshold'] else ''}'>{b['probability']:.3f}</span>"
              for b in exam["breasts"]}
        failed = sum(bool(i["error"]) for i in exam["images"])
        rows.append((exam, [str(len(exam["images"])), of.get("R", "none"), of.get("L", "none"), str(failed)]))
    above = f"<p>Bold: above the threshold {exams[0]['threshold']:.3f}.</p>" if exams else ""
    return list_page(["files", "right breast", "left breast", "failed files"], rows, above,
                     _notice(exams[0]) if exams else NOTICE)

def write_exams(
    exams: list[dict],   # of `exams_of`
    output: Path,        # has previews/, gets html/
    origin: str,         # of the weights
):
    "Write a page for each exam and index.html."
    pages = {exam["exam"]: breasts_page(exam, Path(output) / "previews", origin) for exam in exams}
    write_pages(pages, breasts_list(exams), output)

# %% [markdown]
# ## What came out
# An exam of two views, one of which has a free text as its view, and a file that cannot be read:

# %%
about = {"threshold": .4, "demonstration": True, "calibration": None}
example = pd.DataFrame({
    "patient_id": ["p1", "p1", None], "exam": ["1.2", "1.2", None], "instance": ["1.2.1", "1.2.2", None],
    "laterality": ["L", "R", None], "view": ["MLO", "JANE ROE", None], "probability": [.7, .2, None],
    "x0": [0, 0, None], "y0": 0, "x1": 50, "y1": 90, "box_source": ["detector", "otsu", None],
    "counts": [True, True, False],
    "note": ["", "no standard mammogram: view JANE ROE", None], "error": [None, None, "NotDicom: JANE ROE.dcm"],
    "name": ["a", "b", "c"]})
with tempfile.TemporaryDirectory() as folder:
    for name in "ab":
        write_png(Path(folder) / "previews" / f"{name}.png", np.full((*size, 3), 90, np.uint8))
    exams = exams_of(example, about)
    write_exams(exams, folder, "drawn example")
    pages = [p.read_text() for p in sorted(Path(folder, "html").glob("*.html"))]
assert len(pages) == 3 and "JANE" not in "".join(pages) and all("Not a medical device" in p for p in pages)
pd.DataFrame(exams[0]["images"])

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

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
# right breast on the left, CC above MLO. `mammo-nb predict --html` writes such a page for each exam and a list of all.
# A page is one file with its pictures inside, and makes no request.
#
# Headers have free text in unexpected places, and a name may stand in any of them. So a page shows the patient's id,
# and of everything else only the terms that the project knows, numbers, and the classes of errors.

# %%
#| default_exp mammo.tools.exams

# %%
#| export
import base64
import re
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_nb.core.calibration import corrected
from mammo_nb.core.errors import page
from mammo_nb.core.files import short_hash, write_text
from mammo_nb.mammo.reading.blank import NO_BREAST
from mammo_nb.mammo.reading.inputs import NO_STANDARD
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
_CSS = """
figure { margin: 0 } figure img { width: 100%; height: auto } figcaption { padding: .3rem 0 1rem }
.views { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem }
.above { font-weight: 700 } h1, p { overflow-wrap: anywhere } table.wraps { white-space: normal }
@media (max-width: 600px) { th, td { padding: .2rem .3rem } }"""

def _table(head: list[str], rows: list[list[str]]) -> str:
    "A table; its cells are HTML."
    lines = ["".join(f"<th scope='col'>{h}</th>" for h in head), *("".join(f"<td>{c}</td>" for c in r) for r in rows)]
    return ("<div class='wide' tabindex='0'><table class='wraps'>" + "".join(f"<tr>{line}</tr>" for line in lines)
            + "</table></div>")

def _number(value) -> str:
    return "none" if value is None else f"{value:.3f}"

def _figure(image: dict, previews: Path) -> str:
    "A view with its picture, if there is one."
    name = f"{_SIDE[image['laterality']]} {image['view']}"
    words = [f"<b>{name}</b>, probability {_number(image['probability'])}"]
    if image["box"]:
        words.append(f"box of the breast: {escape(image['box_source'])}")
    words += [escape(w) for w in (image["note"], image["error"] and f"failed: {image['error']}") if w]
    drawn, picture = previews / f"{image['preview']}.png", ""
    if image["preview"] and drawn.is_file():
        data = base64.b64encode(drawn.read_bytes()).decode()
        picture = (f"<img alt='{name}: the frame with the box of the breast, and the input of the network' "
                   f"src='data:image/png;base64,{data}'>")
    return f"<figure>{picture}<figcaption>{', '.join(words)}</figcaption></figure>"

def exam_page(
    exam: dict,       # of `exams_of`
    previews: Path,   # folder of the previews
    origin: str,      # of the weights, in one sentence
) -> str:             # HTML
    "The page of an exam."
    head = ["breast", "images", "probability", *(["corrected"] if any("calibrated" in b for b in exam["breasts"]) else
                                                 []), f"threshold {exam['threshold']:.3f}"]
    rows = [[_SIDE[b["laterality"]], str(b["images"]), _number(b["probability"]),
             *([_number(b["calibrated"])] if "calibrated" in b else []),
             "<span class='above'>above</span>" if b["above_threshold"] else "not above"] for b in exam["breasts"]]
    table = _table(head, rows) if rows else "<p>No breast of this exam has a probability.</p>"
    views = "".join(_figure(i, previews) for i in exam["images"])
    title = f"Exam {exam['exam']}"
    who = f"<p>Patient id: {escape(exam['patient_id'])}</p>" if exam["patient_id"] else ""
    main = (f"<h1>{title}</h1>{who}<h2>Breasts</h2>{table}<h2>Views</h2><div class='views'>{views}</div>"
            f"<h2>Weights</h2><p>{escape(origin)}.</p><p>{escape(exam['note'])}</p>")
    return page(title, _notice(exam), "<a href='index.html'>All exams</a>", main, _CSS)

def _notice(exam: dict) -> str:
    fast = exam["note"].partition("fast: ")[2]
    return "Not a medical device. For learning and research." + (f" Fast: {fast}." if fast else "")

def _highest(exam: dict) -> float:
    return max((b["probability"] for b in exam["breasts"]), default=-1.)

def list_page(
    exams: list[dict],   # of `exams_of`
) -> str:                # HTML
    "The list of all exams, the highest probability first."
    rows = []
    for exam in sorted(exams, key=_highest, reverse=True):
        of = {b["laterality"]: f"<span class='{'above' if b['above_threshold'] else ''}'>{b['probability']:.3f}</span>"
              for b in exam["breasts"]}
        failed = sum(bool(i["error"]) for i in exam["images"])
        rows.append([f"<a href='{exam['exam']}.html'>{exam['exam']}</a>", escape(exam["patient_id"] or "unknown"),
                     str(len(exam["images"])), of.get("R", "none"), of.get("L", "none"), str(failed)])
    head = ["exam", "patient id", "files", "right breast", "left breast", "failed files"]
    above = f"<p>Bold: above the threshold {exams[0]['threshold']:.3f}.</p>" if exams else ""
    return page("Exams", _notice(exams[0]) if exams else "Not a medical device.", "",
                f"<h1>{len(exams)} exams</h1>{above}{_table(head, rows)}", _CSS)

def write_pages(
    exams: list[dict],   # of `exams_of`
    output: Path,        # has previews/, gets html/
    origin: str,         # of the weights
):
    "Write a page for each exam and index.html. Pages of exams that are no longer there are removed."
    folder = Path(output) / "html"
    for exam in exams:
        write_text(folder / f"{exam['exam']}.html", exam_page(exam, Path(output) / "previews", origin))
    write_text(folder / "index.html", list_page(exams))
    for old in set(folder.glob("*.html")) - {folder / f"{n}.html" for n in ("index", *(e["exam"] for e in exams))}:
        old.unlink()

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
    write_pages(exams, folder, "drawn example")
    pages = [p.read_text() for p in sorted(Path(folder, "html").glob("*.html"))]
assert len(pages) == 3 and "JANE" not in "".join(pages) and all("Not a medical device" in p for p in pages)
pd.DataFrame(exams[0]["images"])

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

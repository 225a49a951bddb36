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
# # Studies
# > For systems that read series: one study is one exam, with a page, pictures of slices, and one report.
#
# A series of CT has too many slices to show them all. A page shows a few of them, those with the largest probabilities.
# The pictures for an archive are the same slices. A system names its numbers and draws its slices.

# %%
#| default_exp core.studies

# %%
#| export
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import pandas as pd

from mammo_nb.core.dicom_results import (Code, DicomResultError, Finding, Maker, read_source, save_result,
                                         secondary_capture, structured_report)
from mammo_nb.core.exams import exam_page, figure_of, list_page, number_of, table_of, write_pages
from mammo_nb.core.files import inside, short_hash
from mammo_nb.core.hu import SHIFTED
from mammo_nb.core.volumes import LOCALIZER

# %%
#| hide
import tempfile

import numpy as np

from mammo_nb.core.pictures import write_png

# %% tags=["parameters"]
count = 3   # slices that the example shows

# %% [markdown]
# ## Which slices
# A table has a row for each slice and a column for each class. The slice with the largest probability of each class
# comes first, then the next ones.

# %%
#| export
SHOWN = 6   # slices of a series, at most

def suspicious(
    slices: pd.DataFrame,  # probabilities: a row a slice, its index the place; a column a class; may have nan
    count: int = SHOWN,
) -> list[tuple[int, str, float]]:  # place, class, probability; no place twice
    "The slices with the largest probability of each class, then the next ones of the most probable class."
    long = slices.stack().dropna().sort_values(ascending=False, kind="stable")
    first = long[~long.index.get_level_values(1).duplicated()]
    found = {}
    for (place, column), p in [*first.items(), *long.items()]:
        found.setdefault(place, (int(place), column, float(p)))
    return list(found.values())[:count]

def keep_slices(
    folder: Path,      # has a folder of pictures for each series; need not exist
    names: list[str],  # of the series
):
    "Remove the pictures of series that are no longer there."
    for old in set(Path(folder).glob("*")) - {Path(folder) / name for name in names}:
        shutil.rmtree(old)

# %%
example = pd.DataFrame({"a": [.1, .9, .8, .2], "b": [.3, np.nan, .1, .35]})
assert suspicious(example, count) == [(1, "a", .9), (3, "b", .35), (2, "a", .8)][:count]

# %% [markdown]
# ## What is said of files
# Notes and errors of the tables name other files, and the name of a file may be that of a patient. A page counts the
# files for each of these terms, and for each class of errors.

# %%
#| export
TERMS = {   # what a page says -> how a note says it
    "localizer, left out": re.escape(LOCALIZER),
    "copy of another file, left out": "duplicate of .*; left out",
    "scanned again later at the same place, left out": "scanned again as .*left out",
    "no DICOM file": "no DICOM file",
    "no image of a volume": "no slice$|; no slice;",
    "values had an offset, corrected": re.escape(SHIFTED),
    "beside a gap between slices": r"gap of [\d.]+ mm",
    "uneven spacing": "the step changes here",
    "one of several acquisitions at the same places": r"acquisition \d+ of \d+",
    "other plane, matrix or spacing than most of its series": "a volume of its own",
    "same pixels as another slice": "the same pixels as",
    "geometry was not in the header": "no valid |no ImagePositionPatient",
    "no SeriesInstanceUID": "no SeriesInstanceUID"}

def remarks_of(
    rows: pd.DataFrame,        # note, error: texts, perhaps free
    terms: Mapping[str, str],  # as TERMS
) -> dict[str, int]:           # what is said -> of how many files
    "Count what a page says of files."
    found = {}
    for words, pattern in terms.items():
        if n := int(rows["note"].str.contains(pattern, regex=True).sum()):
            found[words] = n
    kinds = rows["error"][rows["error"].ne("")].str.split(":").str[0].value_counts()
    return found | {f"failed: {kind}": int(n) for kind, n in kinds.items()}

# %%
rows = pd.DataFrame({"note": ["duplicate of JANE ROE.dcm; left out", "", ""], "error": ["", "BadHeader: JANE", ""]})
assert remarks_of(rows.replace({"note": {"": "free"}}), {"copy": TERMS["copy of another file, left out"]}) == {
    "copy": 1, "failed: BadHeader": 1}

# %% [markdown]
# ## Exams
# An exam has the files of one patient and one study. Files that nobody can read belong to no exam, and are together. A
# score belongs to a series or to the whole study.

# %%
#| export
@dataclass(frozen=True)
class Score:
    "A probability, and the slices that it rests on."
    patient_id: str
    study: str             # "" if the files have none
    series: str            # "": of the whole study
    name: str              # of the class, as a reader understands it
    probability: float
    slices: tuple          # rows with series, file, frame ("" or a number from 1), place: the first has the largest

@dataclass(frozen=True)
class Shown:
    "A slice that is shown."
    patient_id: str
    study: str
    series: str
    place: int             # in the series
    picture: str           # PNG, relative to the folder slices/
    words: str             # about it
    file: str              # relative to the folder of the scans
    frame: str             # "" or a number from 1
    instance: str          # SOP Instance UID, or its digest

def largest(
    scores: Sequence[Score],   # of one exam
) -> dict[str, float]:         # name -> probability
    "The largest probability of each class."
    found = {}
    for s in scores:
        found[s.name] = max(found.get(s.name, 0.), s.probability)
    return found

def exams_of(
    rows: pd.DataFrame,         # of all files: patient_id, study, note, error
    scores: Sequence[Score],
    shown: Sequence[Shown],
    note: str,                  # words about the weights
    terms: Mapping[str, str] = {},   # besides TERMS
    summary=largest,            # scores of an exam -> column in the list -> probability
) -> list[dict]:                # exam, patient_id, note, files, failed, remarks, summary, scores, slices; no file names
    "The exams of a folder, in the order of the files."
    scored_of, shown_of, found = defaultdict(list), defaultdict(list), []
    for parts, of in ((scores, scored_of), (shown, shown_of)):
        for part in parts:
            of[part.patient_id, part.study].append(part)
    for key, own in rows.groupby(["patient_id", "study"], sort=False):
        (patient, study), scored, slices = key, scored_of[key], shown_of[key]
        found.append({
            "exam": short_hash(f"{patient} {study}"), "patient_id": patient, "note": note, "files": len(own),
            "failed": int(own["error"].ne("").sum()), "remarks": remarks_of(own, {**TERMS, **terms}),
            "summary": summary(scored),
            "scores": [{"series": s.series, "name": s.name, "probability": s.probability,
                        "slice_series": s.slices[0]["series"] if s.slices else "",
                        "slice": int(s.slices[0]["place"]) if s.slices else None} for s in scored],
            "slices": [{"series": s.series, "slice": s.place, "picture": s.picture, "words": s.words,
                        "instance": s.instance} for s in slices]})
    return found

# %% [markdown]
# ## Pages

# %%
#| export
def study_page(
    exam: dict,       # of `exams_of`
    folder: Path,     # slices/
    origin: str,      # of the weights, in one sentence
    about: str,       # the pictures, in one sentence
) -> str:             # HTML
    "The page of a study."
    named = list(dict.fromkeys(s["series"] for s in exam["scores"] + exam["slices"] if s["series"]))
    number = {series: f"series {k}, " if len(named) > 1 else "" for k, series in enumerate(named, 1)} | {"": ""}
    rows = []
    for s in exam["scores"]:
        where = "" if s["series"] else number.get(s["slice_series"], "")   # a score of a study names the series, too
        at = "" if s["slice"] is None else f"{where}{s['slice']}"
        rows.append([escape(number[s["series"]] + s["name"]), number_of(s["probability"]), escape(at)])
    scores = table_of(["class", "probability", "slice"], rows) if rows else "<p>Nothing of this exam was predicted.</p>"
    figures = []
    for s in exam["slices"]:
        name = f"{number[s['series']]}slice {s['slice']}"
        figures.append(figure_of(folder / s["picture"], name, f"<b>{escape(name)}</b>: {escape(s['words'])}"))
    files = table_of(["files", "number"], [["all", str(exam["files"])], *([escape(words), str(n)] for words, n in
                                                                        exam["remarks"].items())])
    parts = [("Probabilities", scores)]
    if figures:
        parts.append(("Slices", f"<p>{escape(about)}</p><div class='views'>{''.join(figures)}</div>"))
    return exam_page(exam, [*parts, ("Files", files)], origin)

def write_study_pages(
    exams: list[dict],   # of `exams_of`
    output: Path,        # has slices/, gets html/
    origin: str,         # of the weights
    about: str,          # the pictures, in one sentence
):
    "Write a page for each study and index.html."
    columns = list(dict.fromkeys(c for exam in exams for c in exam["summary"]))
    highest = lambda exam: max(exam["summary"].values(), default=-1.)
    rows = [(exam, [str(exam["files"]), *(number_of(exam["summary"].get(c)) for c in columns), str(exam["failed"])])
            for exam in sorted(exams, key=highest, reverse=True)]
    pages = {exam["exam"]: study_page(exam, Path(output) / "slices", origin, about) for exam in exams}
    write_pages(pages, list_page(["files", *map(escape, columns), "failed files"], rows), output)

# %% [markdown]
# ## Pictures and reports as DICOM
# Each slice that is shown is a Secondary Capture, and each study has one report. A number in it refers to the slices
# that it rests on.

# %%
#| export
@dataclass(frozen=True)
class Reported:
    "How a report names a score."
    name: Code   # of the number
    site: Code   # part of the body

def write_study_results(
    scores: Sequence[Score],
    shown: Sequence[Shown],
    folder: Path,             # in which the files are
    output: Path,             # has slices/, gets dicom/
    maker: Maker,
    codes: Mapping[str, Reported],   # name of a score -> how a report names it
) -> dict:                    # pictures, reports: how many; problems: a sentence for each file without a result
    "Write the slices that are shown as pictures, and a report for each study. Earlier results are removed."
    sources, problems, made = {}, [], set()

    def source_of(file: str):
        if file not in sources:
            try:
                sources[file] = read_source(inside(folder, file))
            except DicomResultError as e:
                problems.append(str(e))
                sources[file] = None
        return sources[file]

    def save(result, name: str):
        made.add(output / "dicom" / name)
        save_result(result, output / "dicom" / name)

    for s in shown:
        if source := source_of(s.file):
            picture = cv2.imread(str(output / "slices" / s.picture), cv2.IMREAD_COLOR_RGB)
            save(secondary_capture(source, picture, maker, part=str(s.frame), number=s.place + 1),
                 f"{s.picture.removesuffix('.png').replace('/', '_')}.dcm")
    pictures, findings = len(made), {}
    for s in scores:
        files = dict.fromkeys(row["file"] for row in s.slices)   # a file may have several frames
        if found := [source for source in map(source_of, files) if source]:
            said = codes[s.name]
            findings.setdefault(str(found[0].StudyInstanceUID), []).append(Finding(
                said.name, s.probability, said.site, "", found, f"of series {s.series}" if s.series else ""))
    for study, own in findings.items():
        save(structured_report(own, maker), f"report_{short_hash(study)}.dcm")
    for old in set((output / "dicom").glob("*.dcm")) - made:
        old.unlink()
    return {"pictures": pictures, "reports": len(findings), "problems": problems}

def print_results(
    result,         # table of `predict_folder`; attrs: dicom, from `write_study_results` or None
    output: Path,
):
    "Print what was written besides the tables."
    if made := result.attrs.get("dicom"):
        for problem in made["problems"]:
            print(problem)
        print(f"{made['pictures']} pictures and {made['reports']} reports -> {output}/dicom")
    if result.attrs.get("html"):
        print(f"pages -> {Path(output) / 'html' / 'index.html'}")

# %% [markdown]
# ## What came out
# The pages of a study with one series of three slices, and a file that nobody could read:

# %%
rows = pd.DataFrame({"patient_id": ["p1"] * 3 + [""], "study": ["1.2"] * 3 + [""], "note": "", "error": [""] * 3 + [
    "NotDicom: JANE ROE.dcm"]})
at = ({"series": "1.2.3", "file": "2.dcm", "frame": "", "place": 1},)
scores = [Score("p1", "1.2", "1.2.3", name, p, at) for name, p in (("subdural", .7), ("any", .8))]
shown = [Shown("p1", "1.2", "1.2.3", 1, "a/1.png", "any 0.80", "2.dcm", "", "1.2.3.4")]
exams = exams_of(rows, scores, shown, "not a medical device")
with tempfile.TemporaryDirectory() as folder:
    write_png(Path(folder) / "slices/a/1.png", np.full((40, 40, 3), 90, np.uint8))
    write_study_pages(exams, Path(folder), "drawn example", "The slice with the largest probability.")
    pages = {p.stem: p.read_text() for p in Path(folder, "html").glob("*.html")}
assert len(pages) == 3 and "JANE" not in "".join(pages.values()) and "failed: NotDicom" in "".join(pages.values())
assert "<td>any</td><td>0.800</td><td>1</td>" in pages[exams[0]["exam"]]
exams[0]

# %% [markdown]
# ---
# [← Exams](81_exams.py)

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
# > The parts of a page about an exam, and the pages of a folder.
#
# `mammo-nb predict --html` writes a page for each exam and a list of all. A page is one file with its pictures inside,
# and makes no request. Headers have free text in unexpected places, and a name may stand in any of them. So a page
# shows the patient's id, and of everything else only terms that the project knows, numbers, and the classes of errors.

# %%
#| default_exp core.exams

# %%
#| export
import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from mammo_nb.core.errors import page
from mammo_nb.core.files import write_text

# %%
#| hide
import tempfile

from mammo_nb.core.pictures import write_png

# %% tags=["parameters"]
size = (60, 90)   # rows, columns of the picture of the example, in pixels

# %% [markdown]
# ## Parts
# What is given to them as HTML is escaped before.

# %%
#| export
_STYLE = """
figure { margin: 0 } figure img { width: 100%; height: auto } figcaption { padding: .3rem 0 1rem }
.views { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem }
.above { font-weight: 700 } h1, p { overflow-wrap: anywhere } table.wraps { white-space: normal }
@media (max-width: 600px) { th, td { padding: .2rem .3rem } }"""

def table_of(
    head: Sequence[str],         # HTML of its first row
    rows: Sequence[Sequence[str]],  # HTML of the cells
) -> str:                        # HTML
    "A table that scrolls where it is too wide."
    lines = ["".join(f"<th scope='col'>{h}</th>" for h in head), *("".join(f"<td>{c}</td>" for c in r) for r in rows)]
    return ("<div class='wide' tabindex='0'><table class='wraps'>" + "".join(f"<tr>{line}</tr>" for line in lines)
            + "</table></div>")

def number_of(
    value: float | None,   # a probability
) -> str:
    "A probability as it is shown, or `none`."
    return "none" if value is None else f"{value:.3f}"

def figure_of(
    picture: Path | None,   # PNG; None, or no such file: no picture
    alt: str,               # text for those who do not see it
    caption: str,           # HTML
) -> str:                   # HTML
    "A picture inside of the page, with words below."
    shown = ""
    if picture and picture.is_file():
        data = base64.b64encode(picture.read_bytes()).decode()
        shown = f"<img alt='{escape(alt, quote=True)}' src='data:image/png;base64,{data}'>"
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"

# %% [markdown]
# ## Pages

# %%
#| export
NOTICE = "Not a medical device. For learning and research."

def exam_page(
    exam: dict,            # exam: its name; patient_id, perhaps ""; note: words about the weights
    parts: Sequence[tuple[str, str]],  # heading and HTML of each part
    origin: str,           # of the weights, in one sentence
    notice: str = NOTICE,
) -> str:                  # HTML
    "The page of an exam."
    title = f"Exam {exam['exam']}"
    who = f"<p>Patient id: {escape(exam['patient_id'])}</p>" if exam["patient_id"] else ""
    main = "".join(f"<h2>{escape(heading)}</h2>{html}" for heading, html in parts)
    main = f"<h1>{title}</h1>{who}{main}<h2>Weights</h2><p>{escape(origin)}.</p><p>{escape(exam['note'])}</p>"
    return page(title, notice, "<a href='index.html'>All exams</a>", main, _STYLE)

def list_page(
    head: Sequence[str],   # HTML of what follows exam and patient id
    rows: Sequence[tuple[dict, Sequence[str]]],  # exam, HTML of its cells
    above: str = "",       # HTML above the table
    notice: str = NOTICE,
) -> str:                  # HTML
    "The list of all exams."
    lines = [[f"<a href='{exam['exam']}.html'>{exam['exam']}</a>", escape(exam["patient_id"] or "unknown"), *cells]
             for exam, cells in rows]
    table = table_of(["exam", "patient id", *head], lines)
    return page("Exams", notice, "", f"<h1>{len(rows)} exams</h1>{above}{table}", _STYLE)

def write_pages(
    pages: dict[str, str],  # name of an exam -> HTML
    index: str,             # HTML of the list
    output: Path,           # gets html/
):
    "Write a page for each exam and index.html. Pages of exams that are no longer there are removed."
    folder = Path(output) / "html"
    for name, html in {**pages, "index": index}.items():
        write_text(folder / f"{name}.html", html)
    for old in set(folder.glob("*.html")) - {folder / f"{name}.html" for name in (*pages, "index")}:
        old.unlink()

# %% [markdown]
# ## A picture with words
# A picture that is looked at alone, as in an archive, has to say what it is. So the words stand in its pixels.

# %%
#| export
def enlarged(
    picture: np.ndarray,   # uint8 (rows, columns, 3)
    side: int = 256,       # pixels that its longer side has at least
) -> np.ndarray:           # uint8 (n rows, n columns, 3)
    "Repeat the pixels of a small picture, so that it can be seen beside its words."
    n = max(1, -(-side // max(picture.shape[:2])))
    return picture.repeat(n, 0).repeat(n, 1)

def captioned(
    picture: np.ndarray,    # uint8 (rows, columns, 3), BGR
    lines: Sequence[str],   # ASCII, above it
    scale: float = 0.4,     # of the letters; 1: 22 pixels high
) -> np.ndarray:            # uint8 (more rows, perhaps more columns, 3)
    "A picture below lines of text; it is widened with black if they are longer."
    step = round(45 * scale)
    widths = [cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] + 8 for line in lines]
    wider = max(0, max(widths, default=0) - picture.shape[1])
    picture = cv2.copyMakeBorder(picture, step * len(lines) + 6, 0, 0, wider, cv2.BORDER_CONSTANT, value=0)
    for k, line in enumerate(lines):
        cv2.putText(picture, line, (4, step * (k + 1) - 3), cv2.FONT_HERSHEY_SIMPLEX, scale, (230, 230, 230), 1,
                    cv2.LINE_AA)
    return picture

# %% [markdown]
# ## What came out
# A page with one picture, whose words hold something that would be a tag:

# %%
exam = {"exam": "0123456789ab", "patient_id": "<b>", "note": "not a medical device"}
with tempfile.TemporaryDirectory() as folder:
    drawn = captioned(np.full((*size, 3), 90, np.uint8), ["a slice of a drawn patient"])
    write_png(Path(folder) / "a.png", drawn)
    parts = [("Scores", table_of(["class", "probability"], [["any", number_of(.25)]])),
             ("Slices", figure_of(Path(folder) / "a.png", "a slice", "slice 3"))]
    made = exam_page(exam, parts, "drawn example")
    write_pages({exam["exam"]: made}, list_page(["any"], [(exam, ["0.250"])]), folder)
    assert len(list(Path(folder, "html").iterdir())) == 2
assert "&lt;b&gt;" in made and "<b>" not in made and "0.250" in made and NOTICE in made
assert enlarged(drawn).shape[1] >= 256 and enlarged(enlarged(drawn)).shape == enlarged(drawn).shape
assert drawn.shape[0] == size[0] + 24 and drawn.shape[1] > size[1]
print(len(made), "characters")

# %% [markdown]
# ---
# [← Results](80_results.py) · [Studies →](82_studies.py)

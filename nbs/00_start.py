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
# # Start here
# > What a screening exam is, how the data goes through the stages, and which notebooks to read first.
#
# This page is for somebody who knows PyTorch and has never seen a mammogram. It needs no data and exports nothing. Its
# drawings and lists are made from the systems' own declarations.

# %%
#| hide
import re
from pathlib import Path

from IPython.display import Markdown

import mammo_nb
from mammo_nb.core.pictures import diagram
from mammo_nb.core.systems import default_system, described, find_system, system_names

NBS = Path(mammo_nb.__file__).parents[1] / "nbs"

# %% [markdown]
# ## A screening exam
# Women without complaints are X-rayed every one to three years, so that a cancer is found while it is small. An exam
# has four images, two of each breast.
#
# | word | meaning |
# |---|---|
# | laterality | the side of the body: L or R, as the patient sees it |
# | CC | craniocaudal view: the breast from above |
# | MLO | mediolateral oblique view: from the side, at a slant, with a part of the chest muscle |
# | BI-RADS | the radiologist's conclusion, a number from 0 to 6, see below |
# | density | how much gland and how little fat there is, A to D; a dense breast hides more |
# | mass, calcification | the two common signs: a dense patch with an outline, and white grains |
# | biopsy | tissue is taken and examined; this decides what is cancer |
# | frame | the whole image of one file; most of it is black air |
# | ROI | region of interest; here the rectangle around the breast, which is cut out of the frame |
# | window | the range of stored values that is shown from black to white |
#
# BI-RADS 0 asks for more images. 1 is nothing found, 2 benign, 3 probably benign, 4 suspicious, 5 highly suggestive of
# cancer. 6 is a cancer that a biopsy has already shown.
#
# Two things make the task hard. Cancer is rare: in the competition about one image in fifty shows a breast with cancer.
# And a sign can be small: a few dozen pixels in a frame of twenty million.
#
# ## What is scored
# The competition asks for one answer per breast, not per image. Its score is **pF1**, the probabilistic F1. F1 joins
# two shares: how many of the cancers are found (recall), and how many of the alarms are cancers (precision). In pF1 a
# probability of 0.9 counts as nine tenths of an alarm. Plain 0 and 1 score higher than probabilities, so a threshold is
# chosen and decisions are submitted. [Metrics](core/42_metrics.py) has the formula and an example by hand.
#
# **AUC** needs no threshold: it is the chance that a breast with cancer gets a higher probability than one without. 0.5
# is guessing and 1 is perfect.
#
# **Out of fold**: the patients are split into parts, the folds. For each fold a network is trained on the other folds
# and predicts this one. So each prediction comes from a network that has not seen the patient. All these predictions
# together are the table `oof.csv`, and scores of a training come from it. Both breasts and all images of a patient are
# in one fold; otherwise the network could recognise a patient instead of a cancer. [Folds](mammo/05_folds.py) shows it.

# %% [markdown]
# ## The way of the data
# A stage is one notebook. It reads files, writes files and passes nothing else on. This drawing is made from the
# declaration of the system: the stages in their order, and to the right of each the files that it writes.

# %%
def way(system):
    "Draw the stages of a system, one below the other, with the files that each writes."
    boxes, arrows = {}, []
    for n, stage in enumerate(system.stages):
        files = [described(w) for w in stage.writes] or ["report.html"]
        lines = ["   ".join(files[i:i + 3]) for i in range(0, len(files), 3)]
        boxes[stage.name] = (0, n, system.label(stage.name))
        boxes[f"{stage.name} files"] = (3.2, n, "\n".join(lines))
        arrows.append((stage.name, f"{stage.name} files"))
        if n:
            arrows.append((system.stages[n - 1].name, stage.name))
    return diagram(boxes, arrows, size=(2.2, 0.75))

# %%
way(default_system())

# %% [markdown]
# A stage reads files of several stages before it. The next drawing has one line for each file, from the stage that
# writes it (square) to those that read it (circles).

# %%
default_system().flow()

# %% [markdown]
# ## Five notebooks to read first
# Each runs on its own, in about a minute, without data. `make lab` opens JupyterLab; click a `.py` file.
#
# 1. [Phantom](mammo/01_phantom.py): the drawn competition. It shows what a mammogram and its files look like.
# 2. [Windows](core/27_windows.py): from stored values to grey levels. A mistake here spoils everything after it.
# 3. [Crops](mammo/04_crops.py): from a file to the breast that the network sees.
# 4. [Train](mammo/06_train.py): one network for each fold, with a cancer in every batch.
# 5. [Select](mammo/07_select.py): out-of-fold predictions, the threshold, and the score with its interval.
#
# Then [Systems](core/16_systems.py) and [Stages](core/18_stages.py) explain how `make reproduce` decides what runs.
#
# ## All notebooks by theme

# %%
#| hide
def heading(source: Path) -> tuple[str, str]:
    "Title and subtitle of a notebook."
    text = source.read_text(encoding="utf-8")
    return tuple(re.search(rf"^# {mark} (.+)$", text, re.MULTILINE)[1] for mark in ("#", ">"))

def listed(sources) -> str:
    "Notebooks as a Markdown list of links, in reading order."
    lines = []
    for source in sorted(sources):
        title, subtitle = heading(source)
        lines.append(f"- [{title}]({source.relative_to(NBS).as_posix()}): {subtitle}")
    return "\n".join(lines)

# %%
def chapters() -> str:
    "The chapters of the ground floor, which all systems share."
    parts = ["### core: what all systems share"]
    for page in sorted((NBS / "core").glob("[0-9]0_*.py")):
        title, _ = heading(page)
        parts += [f"**[{title}](core/{page.name})**", listed((NBS / "core").glob(f"{page.name[0]}[1-9]_*.py"))]
    return "\n\n".join(parts)

Markdown(chapters())

# %%
def systems() -> str:
    "Each system: its declaration and stages, then its libraries."
    parts = []
    for name in system_names():
        folder = NBS / name
        parts += [f"### {name}: {find_system(name).title}", listed(folder.glob("*.py"))]
        for library in sorted(p for p in folder.iterdir() if p.is_dir() and any(p.glob("*.py"))):
            parts += [f"*{library.name}/*", listed(library.glob("*.py"))]
    return "\n\n".join(parts)

Markdown(systems())

# %% [markdown]
# ### Beside them

# %%
Markdown(listed(p for p in NBS.glob("*.py") if not p.name.startswith("00_")))

# %% [markdown]
# ---
# [Where we leave the originals →](70_originals.py)

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
# # Rehearse
# > The notebook of the submission on a difficult hidden test set, with nothing but what Kaggle will have.
#
# A code competition reveals little about a submission that failed: it timed out, raised an exception or got a scoring
# error, and the submission of the day is used up. So the whole submission is run here first: in an environment with the
# packages of the image only, with the wheels, no network, read-only inputs and a difficult hidden test set. At the end
# come the checks of the scorer.

# %%
#| default_exp core.rehearse

# %%
#| export
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import write_csv
from mammo_nb.core.isolation import exact_environment, isolated, make_environment
from mammo_nb.core.kernels import prepare
from mammo_nb.core.submission import Submission, read_submission
from mammo_nb.core.wheels import read_pins

# %%
#| hide
import tempfile

# %% tags=["parameters"]
rows = 6   # of the sample_submission.csv below

# %%
#| export
class RehearsalError(ProjectError):
    "The submission would fail at Kaggle; the text has the place and the reason."

# %% [markdown]
# ## The checks of the scorer
# The scorer joins the file to its labels by the first column and reads numbers from all other columns. Everything that
# it would refuse is found here, all of it at once.

# %%
#| export
def _id_problems(ours: pd.DataFrame, wanted: pd.DataFrame) -> list[str]:
    "Problems with the first column."
    key = wanted.columns[0]
    twice, unknown = ours.loc[ours[key].duplicated(), key], ours.loc[~ours[key].isin(wanted[key]), key]
    problems = [f"{len(ids)} {key} {what}, such as {ids.iloc[0]}."
                for what, ids in (("occur twice", twice), ("are not in the sample", unknown)) if len(ids)]
    if missing := sorted(set(wanted[key]) - set(ours[key])):
        problems.append(f"{len(missing)} of {len(wanted)} {key} are missing, such as {missing[0]}.")
    return problems

def scoring_problems(
    submission: Path,   # submission.csv
    sample: Path,       # the sample of a submission: an id and any number of targets
    low: float = 0.0,   # smallest valid value of a target
    high: float = 1.0,  # largest valid value of a target
) -> list[str]:         # a sentence each; empty if the file would be scored
    "Find what the scorer would refuse."
    submission = Path(submission)
    if not submission.is_file():
        return [f"There is no {submission.name}."]
    try:
        ours, wanted = (pd.read_csv(p, dtype=str, keep_default_na=False) for p in (submission, sample))
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as e:
        return [f"{submission.name} is no table: {e}."]
    if list(ours.columns) != list(wanted.columns):
        return [f"The columns are {', '.join(ours.columns)}, not {', '.join(wanted.columns)}."]
    problems, key = _id_problems(ours, wanted), wanted.columns[0]
    for target in wanted.columns[1:]:
        wrong = ours[~pd.to_numeric(ours[target], errors="coerce").between(low, high)]  # NaN is not between
        if len(wrong):
            problems.append(
                f"{len(wrong)} values of {target} are no number from {low:g} to {high:g}, such as "
                f"{wrong[target].iloc[0]!r} for {wrong[key].iloc[0]}.")
    return problems

# %%
folder = Path(tempfile.mkdtemp())
sample = pd.DataFrame({"id": [f"s{k}" for k in range(rows)], "left": 0.5, "right": 0.5})
write_csv(folder / "sample.csv", sample)
write_csv(folder / "good.csv", sample.assign(left=0, right=1))
assert scoring_problems(folder / "good.csv", folder / "sample.csv") == []
bad = pd.concat([sample.iloc[1:], sample.iloc[[1]]]).astype({"left": object})
bad.iloc[0, 1] = "nan"
bad.iloc[1, 2] = 1.5
write_csv(folder / "bad.csv", bad)
found = scoring_problems(folder / "bad.csv", folder / "sample.csv")
assert len(found) == 4   # one id twice, one missing, one value is no number, one is too large
print(*found, sep="\n")

# %% [markdown]
# ## The inputs
# Kaggle used to mount everything flat, `/kaggle/input/<name>`. Now it mounts a competition at `competitions/<name>` and
# a data set at `datasets/<owner>/<name>`. The system draws the hidden test set itself.

# %%
#| export
NESTED = {"competition": "competitions/{name}", "dataset": "datasets/somebody/{name}"}
FLAT = {"competition": "{name}", "dataset": "{name}"}

def lay_out(
    folder: Path,           # stands for /kaggle/input
    wheels: Path,           # folder of wheels
    weights: Path,          # from `gather_weights`
    submission: Submission, # declaration of the system
    layout: dict = NESTED,  # or FLAT
) -> list[str]:             # names of the items that cannot be read
    "Put the inputs of the submission where Kaggle mounts them."
    for name, source in (("mammo-nb-wheels", wheels), ("mammo-nb-weights", weights)):
        shutil.copytree(source, folder / layout["dataset"].format(name=name))
    return submission.draw_hidden_test(folder / layout["competition"].format(name=submission.competition))

# %% [markdown]
# ## The rehearsal
# The notebook is the one that is sent to Kaggle, with other folders for its parameters. papermill runs outside of the
# isolated environment, and the process of the notebook runs inside.

# %%
#| export
_RUN = """import json, sys
from pathlib import Path
from mammo_nb.core.runs import StageError
from mammo_nb.core.stages import execute
try:
    execute(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
except StageError as e:
    sys.exit(str(e))"""

def _environment(root: Path, scratch: Path) -> dict:
    "The environment variables of the rehearsal: none of this user's settings of pip, Kaggle and mammo_nb."
    own = ("PIP_", "MAMMO_NB_", "KAGGLE", "VIRTUAL_ENV")
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(own)},
        "PYTHONPATH": str(root), "JUPYTER_PATH": str(scratch / "venv/share/jupyter"), "HOME": str(scratch),
        "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "IPYTHONDIR": str(scratch / "ipython")
    }

def _execute(root: Path, scratch: Path, python: Path, extras: str):
    "Run the notebook in `working`; raises RehearsalError with the end of its output."
    inputs, work = scratch / "input", scratch / "working"
    parameters = {"inputs": str(inputs), "output": str(work), "extras": extras}
    command, how = isolated([sys.executable, "-c", _RUN, work / "submission.py", work / "executed.ipynb",
                             json.dumps(parameters)], inputs, python)
    print(f"the rehearsal has {how}", flush=True)
    done = subprocess.run(command, cwd=work, env=_environment(root, scratch), text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    for path in [inputs, *inputs.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)  # so that they can be removed
    if done.returncode:
        lines = re.sub(r"\x1b\[[\d;]*m", "", done.stdout).splitlines()
        raise RehearsalError("The submission fails:\n" + textwrap.indent("\n".join(lines[-25:]), "  "))

def rehearse(
    root: Path,              # the checkout
    wheels: Path,            # for this Python, from `make_wheels`
    weights: Path,           # from `gather_weights`; its manifest names the system
    scratch: Path,           # made anew, and kept for inspection
    layout: dict = NESTED,   # or FLAT, as Kaggle used to mount
    extras: str = "[kaggle]",  # extras of our wheel
    exact: str = "",         # a Python of the image's version; "" takes this one and the versions that are here
    find: Callable = read_submission,  # weights -> declaration of the system
) -> Path:                   # submission.csv
    "Run the submission as Kaggle would; raises RehearsalError if it would fail there."
    root, scratch, submission = Path(root).resolve(), Path(scratch).resolve(), find(weights)
    shutil.rmtree(scratch, ignore_errors=True)
    work, image = scratch / "working", read_pins(root / "kaggle/wheels/image.txt")
    python = exact_environment(scratch / "venv", image, exact) if exact else make_environment(scratch / "venv", image)
    unreadable = lay_out(scratch / "input", Path(wheels), Path(weights), submission, layout)
    prepare(root / "kaggle/submission", work, "somebody", submission.competition)
    shutil.copy(root / "kaggle/submission/submission.py", work)
    _execute(root, scratch, python, extras)
    sample = next((scratch / "input").rglob(submission.sample))
    problems = scoring_problems(work / "submission.csv", sample, submission.low, submission.high)
    items = pd.read_csv(work / submission.table)
    failed = items.loc[items["error"].notna(), "file"].unique().tolist()
    if sorted(failed) != sorted(unreadable):
        problems.append(
            f"Errors are reported for {', '.join(failed) or 'no file'}, and damaged are {', '.join(unreadable)}.")
    if problems:
        raise RehearsalError("The submission would be refused: " + " ".join(problems))
    return work / "submission.csv"

# %% [markdown]
# `make kaggle-rehearse WEIGHTS=runs/demo/weights` runs it in full. It takes about a minute.

# %% [markdown]
# ---
# [← Isolation](67_isolation.py) · [Reports →](69_reports.py)

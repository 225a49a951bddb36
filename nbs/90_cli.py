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
# # Command line
# > One registry of commands; each is a Python function that a notebook can call as well.
#
# A command reads its arguments, calls a function of the package and turns the outcome into an exit code: 0 when all
# went well, 1 when something failed, 2 when nothing could be done. The heavy imports are inside the commands, so that
# `mammo-nb --help` is quick. Commands of one system only are in that system's folder and are added below.

# %%
#| default_exp cli

# %%
#| export
import os
import sys
from contextlib import redirect_stderr
from importlib import import_module
from pathlib import Path

import typer

from mammo_nb import kaggle, predicting, serving
from mammo_nb.core.errors import Printed, ProjectError, ending, explain, shown
from mammo_nb.core.systems import default_system, find_system, system_names

# %%
#| hide
from typer.testing import CliRunner

# %%
#| export
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
_SYSTEM = typer.Option("", help="the system, see `mammo-nb systems`; default: see there")

def _system(name: str):
    "A system by its name, or the default."
    return find_system(name) if name else default_system()

# %% [markdown]
# ## On your own scans
# `predict` and `serve` have notebooks of their own, [Predicting](81_predicting.py) and [Serving](84_serving.py).

# %%
#| export
@app.command()
def series(
    folder: Path = typer.Argument(..., help="DICOM files, nested or flat, any patients and series, or one file"),
    output: Path = typer.Option(..., "--output", "-o", help="slices.csv and series.csv go here"),
    labels: Path = typer.Option(
        None, help="NIfTI file of organ labels; labels.csv gets the voxels and the centre of each on the grid of its "
        "series"),
    allow_errors: bool = typer.Option(False, help="exit with 0 even if files failed"),
    workers: int = typer.Option(0, help="processes; 0: one a core"),
):
    "Put the slices of CT or MR series in the order of the patient, and name every file that is in none."
    from mammo_nb.core.labels import write_labels
    from mammo_nb.core.series import print_series, read_series, write_tables
    volumes, rest = read_series(folder, output, workers or None)
    slices, table = write_tables(volumes, rest, output)
    failed = print_series(slices, table, output)
    if labels:
        write_labels(labels, volumes, output)
    raise typer.Exit(2 if not len(table) else int(bool(failed) and not allow_errors))

# %%
#| export
@app.command()
def check(
    folder: Path = typer.Argument(None, help="a competition, any folder with scans, or one file"),
    dataset: str = typer.Option(
        "", help="instead of a folder: a data set that the system knows, such as rsna-breast-cancer-detection, or a "
        "folder of your own below raw or samples of settings.ini"),
    table: Path = typer.Option(None, help="CSV that names the files; default: the tables of the competition"),
    output: Path = typer.Option(None, "--output", "-o", help="write the table to this CSV as well"),
    sample: int = typer.Option(32, min=0, help="how many files are decoded, and timed for the estimate"),
    everything: bool = typer.Option(False, "--all", help="decode every file"),
    size: str = typer.Option(
        "", help="HEIGHTxWIDTH of the pictures that are estimated; default: as the system makes them"),
    workers: int = typer.Option(0, help="processes; 0: one a core"),
    system: str = _SYSTEM,
):
    "Check a data set: missing, repeated and unreadable files, labels that contradict, time and disk that it will need."
    from mammo_nb.core.files import write_csv
    chosen = _system(system)
    if not chosen.check:
        raise typer.BadParameter(f"{chosen.name} has no check of its data")
    if bool(folder) == bool(dataset):
        raise typer.BadParameter("name a folder, or a data set with --dataset")
    if dataset and table:
        raise typer.BadParameter("a data set has its own table; leave --table out")
    tool = import_module(f"mammo_nb.{chosen.name}.{chosen.check}")
    found = tool.check_data(folder, dataset, table=table, size=size, sample=sample, everything=everything,
                            workers=workers or None, output=output)
    if output:
        write_csv(output, found)
    raise typer.Exit(tool.print_check(found))

# %% [markdown]
# ## A competition

# %%
#| export
@app.command()
def submit(
    competition: Path = typer.Argument(
        ..., help="folder with the tables and test images, as the competition provides them; it is only read"),
    output: Path = typer.Option(
        ..., "--output", "-o", help="submission.csv, the table of items and submit.json go here"),
    system: str = _SYSTEM,
    weights: Path = typer.Option(
        None, help="folder of the weights; default: assets/trained, then the newest finished run"),
    budget: str = typer.Option(
        "", help="time limit, such as 8h30m, 45m or 90s: the least important work is dropped first; default: no limit"),
    flip: bool = typer.Option(False, help="horizontal-flip TTA while there is time"),
    pngs: Path = typer.Option(None, help="keep the networks' inputs in this folder"),
    backend: str = typer.Option(
        "auto", help="onnxruntime-fp32, openvino-fp32, compiled-fp32, torch-fp32 or the file of an engine; default: "
        "the first that works"),
    allow_errors: bool = typer.Option(False, help="exit with 0 even if items failed or were not reached"),
    workers: int = typer.Option(0, help="processes that read files; 0: one a core"),
):
    "Predict a competition's test set and write its submission.csv. A killed run continues where it stopped."
    from mammo_nb.core.files import read_json
    from mammo_nb.core.submission import NOT_A_DEVICE, find_submission
    from mammo_nb.core.submit import submit, summary
    submit(find_submission(_system(system).name), competition, weights, output, budget=budget, flip=flip,
           workers=workers or None, pngs=pngs, backend=backend)
    report = read_json(output / "submit.json")
    print(*summary(report), f"-> {output / 'submission.csv'}", NOT_A_DEVICE, sep="\n")
    raise typer.Exit(int((report["failed"] > 0 or report["not_reached"] > 0) and not allow_errors))

# %% [markdown]
# ## Runs
# `make reproduce` calls this. Stages that are up to date are skipped. A failed file does not stop a run; at the end
# failed files are counted, and the exit code is 1.

# %%
#| export
@app.command()
def reproduce(
    system: str = _SYSTEM,
    recipe: str = typer.Option("demo", help="see `mammo-nb systems`"),
    mode: str = typer.Option("", help="which stages run; default: the mode that the recipe is made for"),
    run: str = typer.Option("", help="name of the run; default: of system, recipe and mode"),
    weights: Path = typer.Option(None, help="folder with trained weights, for modes that use some"),
    settings: list[str] = typer.Option([], "--set", help="stage.field=value; may be repeated"),
    allow_errors: bool = typer.Option(False, help="exit with 0 even if files failed"),
):
    "Run every stage of a recipe that has to run; results, submission.csv and report.html are in runs/<run>/."
    from mammo_nb.core.recipes import parse_overrides
    from mammo_nb.core.runs import Run
    from mammo_nb.core.settings import read_paths
    from mammo_nb.core.stages import failures
    from mammo_nb.core.stages import reproduce as run_stages
    chosen = _system(system)
    parts = [recipe]
    if not chosen.default:
        parts.insert(0, chosen.name)
    if mode and mode != chosen.recipe(recipe).mode:
        parts.append(mode)
    name = run or "-".join(parts)
    if Path(name).name != name or len(name.split()) != 1:
        raise typer.BadParameter(f"RUN={name} must be the name of one folder, without blanks, / or ..")
    folder = read_paths().runs / name
    this = Run.create(folder, chosen, recipe, mode or None, weights, parse_overrides(settings))
    if run_stages(this) or not (folder / "report.html").exists():
        from mammo_nb.core.reports import write_report
        write_report(this)
    made = [f for f in ("submission.csv", "report.html", "manifest.json") if (folder / f).exists()]
    print(f"{folder}: {', '.join(made)} and one executed notebook a stage")
    counts = failures(this)
    for name, what in chosen.failures.items():
        if counts.get(what):
            print(f"{counts[what]} {what} could not be used: see the column error of {this.path(name)}")
    if any(counts.values()) and not allow_errors:
        raise typer.Exit(1)

@app.command()
def node(
    run: Path = typer.Argument(..., help="folder of a run whose training waits for more machines"),
    processes: int = typer.Option(0, min=0, help="of this machine, one a GPU; 0: as the recipe says"),
):
    "Take part with this machine in the training of a run, see nbs/docs/cluster.md."
    from mammo_nb.core.ranks import take_part
    take_part(run.resolve() / "nodes.json", processes)

@app.command()
def compare(
    first: str = typer.Argument(..., metavar="RUN", help="a finished run: its name in runs/, or its folder"),
    second: str = typer.Argument(..., metavar="RUN", help="another one of the same system"),
    output: Path = typer.Option(None, "--output", "-o", help="write the table with all numbers to this CSV as well"),
    draws: int = typer.Option(1000, min=100, help="draws of patients for the intervals"),
    seed: int = typer.Option(0, help="of the draws"),
):
    "Compare the out-of-fold predictions of two runs: scores, differences and their 95 % intervals over patients."
    from mammo_nb.core.comparison import comparison_in_words, compare_runs
    from mammo_nb.core.files import write_csv
    from mammo_nb.core.runs import Run
    from mammo_nb.core.settings import read_paths
    runs = [Run.open(name if Path(name).is_dir() else read_paths().runs / name) for name in (first, second)]
    table, lines = compare_runs(*runs, draws, seed)
    if output:
        write_csv(output, table)
    names = [run.folder.name for run in runs]
    print(*lines, "", comparison_in_words(table, names if names[0] != names[1] else ["first", "second"]).to_string(
        index=False), "", "In brackets: 95 % intervals over patients. Difference: second minus first.", sep="\n")

@app.command()
def systems(names: bool = typer.Option(False, help="names only")):
    "List systems, recipes and modes."
    if names:
        print(*system_names(), sep="\n")
        return
    for name in system_names():
        each = find_system(name)
        print(f"{name}: {each.title}{' (default)' if each.default else ''}")
        print(*[f"  RECIPE={key:24} {r.about}" for key, r in each.recipes.items()], sep="\n")
        print(*[f"  MODE={key:26} {m.about}" for key, m in each.modes.items()], sep="\n")

# %% [markdown]
# ## Commands of the systems
# A system's own commands are in its folder. Their names are unique, so they are called like all others.

# %%
#| export
def _add_commands(commands: typer.Typer):
    "Add the commands of another registry; raises `ValueError` for a name that is taken."
    taken = {c.name or c.callback.__name__ for c in app.registered_commands}
    for command in commands.registered_commands:
        if (name := command.name or command.callback.__name__) in taken:
            raise ValueError(f"two commands are named {name}")
        app.registered_commands.append(command)

_add_commands(predicting.app)
_add_commands(serving.app)
_add_commands(kaggle.app)
for _name in system_names():
    try:
        _module = find_system(_name).commands
    except ProjectError as e:  # a system that is being written must not stop the others
        print(f"The system {_name} is left out: {e}", file=sys.stderr)
    else:
        if _module:
            _add_commands(import_module(f"mammo_nb.{_name}.{_module}").app)

# %% [markdown]
# ## Entry
# An error of the package's own classes, or of the machine, is printed as its message. Any other error was not foreseen
# and gets one line as well. `--debug`, anywhere in the command, shows the traceback. A command that is ended by SIGTERM
# closes its files and ends its processes. A progress bar is one line where nobody watches it.

# %%
#| export
def _version(wanted: bool):
    "Print the version and end."
    if wanted:
        from mammo_nb import __version__
        print(f"mammo_nb {__version__}")
        raise typer.Exit()

@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="print the version"),
    debug: bool = typer.Option(False, "--debug", help="show the traceback of an error; may stand anywhere"),
    scheduler: str = typer.Option(
        None, metavar="ADDRESS", help="of a Dask scheduler, such as tcp://10.0.0.5:8786: the workers of a cluster read "
        "the files; default: as settings.ini says; \"\": this machine alone"),
):
    "mammo_nb: winning medical-imaging solutions, on your own scans. Not a medical device."
    if scheduler is not None:
        from mammo_nb.core.cluster import ADDRESS
        os.environ[ADDRESS] = scheduler   # the notebooks of a run obey it as well

def main():
    "Entry point of `mammo-nb`."
    debug = "--debug" in sys.argv[1:]
    try:
        with ending(), redirect_stderr(Printed(sys.stderr)):
            app(args=[word for word in sys.argv[1:] if word != "--debug"], prog_name="mammo-nb")
    except Exception as e:
        if debug:
            raise
        told = str(e) if isinstance(e, ProjectError) else explain(e)
        told = told or f"{type(e).__name__}: {e}. This was not foreseen; add --debug to see where it happened."
        print(*map(shown, told.split("\n")), sep="\n", file=sys.stderr)
        sys.exit(2)

# %%
answer = CliRunner().invoke(app, ["--help"])
assert answer.exit_code == 0 and "predict" in answer.output and "crops" in answer.output
print(answer.output)

# %% [markdown]
# ---
# [← From Python](85_python.py)

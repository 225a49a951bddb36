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
# # Predicting
# > One folder of scans with any system, as a command and from Python, with a record that a program can read.
#
# Each system predicts its own scans. What is the same for all of them stands here: the options, the exit codes, and the
# record of a prediction. `mammo-nb predict --report run.json` writes that record: versions, the digests of the weights,
# options, counts, kinds of errors, seconds. It has no ids and no names of files.
#
# | exit code | meaning |
# |---|---|
# | 0 | every file was predicted, or has a note why not |
# | 1 | some files failed; their rows have an error (`--allow-errors` gives 0) |
# | 2 | wrong use, or there was nothing to predict; one sentence says why |
# | 130, 143 | ended by Ctrl-C, by SIGTERM; the same command continues |
#
# `--watch` [waits for exams](82_watching.py). Ctrl-C is its usual end, and the code is 0 or 1 as above.

# %%
#| default_exp predicting

# %%
#| export
from pathlib import Path

import typer

# %% tags=["parameters"]
folder = ""    # scans; "" takes the test images and the weights of a small practice run
weights = ""   # folder of weights

# %%
#| hide
import json
import tempfile

from typer.testing import CliRunner

from mammo_nb.core.practice import practice
from mammo_nb.core.systems import default_system

# %%
#| hide
if not folder:
    run = practice(default_system(), before="submit")
    folder, weights = run.path("competition/test_images"), run.path("weights/")
output = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A system's own prediction
# An option that one system only has is an error with the others. Everything heavy is imported inside the functions, so
# that the command line starts quickly.

# %%
#| export
def tool_of(
    system: str = "",   # name of a system; "": the default
):                      # its module with `predict_folder` and `print_predictions`
    "The prediction of a system. Raises a DeclarationError for a system that predicts competitions only."
    from importlib import import_module
    from mammo_nb.core.systems import DeclarationError, default_system, find_system
    chosen = find_system(system) if system else default_system()
    if not chosen.predict:
        raise DeclarationError(f"{chosen.name} predicts competitions only: mammo-nb submit --system {chosen.name}.")
    return import_module(f"mammo_nb.{chosen.name}.{chosen.predict}")

def unknown_options(
    tool,            # from `tool_of`
    options: dict,
) -> list[str]:
    "The options that the prediction of a system does not have."
    from inspect import Parameter, signature
    known = signature(tool.predict_folder).parameters
    takes_any = any(p.kind == Parameter.VAR_KEYWORD for p in known.values())
    return [] if takes_any else sorted(options.keys() - known.keys())

# %% [markdown]
# ## The record

# %%
#| export
PREDICTED, FAILED, NOTHING = 0, 1, 2   # exit codes

def exit_code(
    result,               # table of `predict_folder`
    allow_errors: bool,   # whether failed files count as predicted
) -> int:
    "The exit code of a prediction."
    if not len(result):
        return NOTHING
    return FAILED if result["error"].fillna("").ne("").any() and not allow_errors else PREDICTED

def record_of(
    result,           # table of `predict_folder`; None if it has raised
    options: dict,    # name -> value
) -> dict:            # without ids, names of files, and words of errors
    "What a program may want to know of a prediction."
    import mammo_nb
    from mammo_nb.core.runs import environment
    from mammo_nb.core.settings import parts_of
    record = {"program": f"mammo_nb {mammo_nb.__version__}", "environment": environment(),
              "options": {name: str(v) if isinstance(v, Path) else v for name, v in options.items()}}
    if result is None:
        return record
    errors = result["error"].fillna("")
    kinds = errors[errors.ne("")].str.split(":").str[0].value_counts()
    about = result.attrs
    place = about["weights"]
    return record | {
        "weights": {"folder": place, "origin": about.get("origin", ""), "sha256": parts_of(place)},
        "computed": about["computed"], "note": about["note"], "counts": about["counts"],
        "errors": {kind: int(n) for kind, n in kinds.items()}}

def predict_scans(
    folder: Path,               # scans, nested or flat, or a single file
    output: Path,               # gets the tables and previews
    system: str = "",           # "": the default
    report: Path | None = None, # JSON file of the record, also written if nothing can be predicted
    allow_errors: bool = False, # as in `exit_code`
    **options,                  # of the system's `predict_folder`
):                              # pandas.DataFrame as from the system; attrs: record
    "Predict a folder. Raises a ProjectError where nothing can be predicted, TypeError for an unknown option."
    from time import monotonic
    from mammo_nb.core.files import write_json
    tool = tool_of(system)
    name = tool.__name__.split(".")[1]
    if unknown := unknown_options(tool, options):
        raise TypeError(f"{name} does not know {', '.join(unknown)}")
    started, result, failure, code = monotonic(), None, "", NOTHING
    try:
        result = tool.predict_folder(Path(folder), Path(output), **options)
        code = exit_code(result, allow_errors)
    except Exception as e:
        failure = type(e).__name__
        raise
    finally:
        record = record_of(result, options) | {
            "system": name, "failure": failure, "exit_code": code,
            "seconds": round(monotonic() - started, 3)}
        if report:
            write_json(report, record)
    result.attrs["record"] = record
    return result

# %%
table = predict_scans(folder, output, report=output / "run.json", weights=weights, workers=1, html=True)
record = json.loads((output / "run.json").read_text())
assert record["exit_code"] == 0 and record["counts"]["predicted"] == len(table) and record["computed"]
assert (output / "html/index.html").is_file()
{name: record[name] for name in ("system", "computed", "counts", "errors", "seconds", "exit_code", "note")}

# %% [markdown]
# ## The command

# %%
#| export
app = typer.Typer(add_completion=False)

def _watch(folder: Path, output: Path, system: str, wait: float, workers: int, allow_errors: bool, **how) -> int:
    "Watch a folder until Ctrl-C; the exit code."
    from mammo_nb.core.submission import NOT_A_DEVICE
    from mammo_nb.watching import watch
    failed = []

    def tell(line: str, record: dict):
        print(line, flush=True)
        failed.extend([line] * (record["exit_code"] > 0))

    print(f"watching {folder}, results -> {output}; {NOT_A_DEVICE}. Ctrl-C ends, the same command continues.",
          flush=True)
    try:
        watch(folder, output, system, wait, workers, tell=tell, **how)
    except KeyboardInterrupt:
        print(f"ended; {len(failed)} exams with failed files")
    return int(bool(failed) and not allow_errors)

@app.command()
def predict(
    folder: Path = typer.Argument(..., help="scans in DICOM, PNG or JPEG, nested or flat, any number, or one file"),
    output: Path = typer.Option(..., "--output", "-o", help="tables of probabilities and previews/ go here"),
    weights: Path = typer.Option(None, help="folder of weights; default: assets/trained, then the newest run"),
    table: Path = typer.Option(None, help="CSV with image_id or file, laterality and view, for files without them"),
    hash_ids: bool = typer.Option(False, help="replace ids and names of files by digests with a key of yours"),
    allow_errors: bool = typer.Option(False, help="exit with 0 even if files failed"),
    workers: int = typer.Option(0, help="processes; 0: one a core"),
    force: bool = typer.Option(False, help="mammo: predict pictures without a breast, too"),
    all_views: bool = typer.Option(
        False, help="mammo: predict other images than standard mammograms, too, such as magnifications"),
    frames: str = typer.Option(
        "", help="mammo: which frames of a file with several, such as a tomosynthesis: middle, all or a number from 1"),
    dicom: bool = typer.Option(
        False, help="also write pictures and reports as DICOM that belong to the studies, to dicom/"),
    html: bool = typer.Option(False, help="also write a page for each exam, and a list of all, to html/"),
    heat_maps: bool = typer.Option(
        False, help="mammo: previews also show where in the breast the probability came from"),
    fast: bool = typer.Option(False, help="mammo: the first network of the ensemble alone, without TTA"),
    engine: str = typer.Option("auto", help="torch, onnxruntime, openvino or tensorrt; auto: the first that works"),
    device: str = typer.Option("cpu", help="cpu, cuda or cuda:1"),
    watch: bool = typer.Option(
        False, help="wait for exams that arrive in the folder, and predict each once into a folder of its own"),
    wait: float = typer.Option(60.0, min=0, help="with --watch: seconds without a new file that complete an exam"),
    report: Path = typer.Option(None, help="write versions, digests, counts, kinds of errors and seconds to this JSON"),
    system: str = typer.Option("", help="the system, see `mammo-nb systems`; default: see there"),
):
    """Predict every scan of a folder. Exit code 0: each file was predicted or has a note why not, 1: some files failed,
    2: wrong use, or there was nothing to predict."""
    how = {"force": force, "all_views": all_views, "frames": frames, "dicom": dicom, "html": html, "fast": fast,
           "heat_maps": heat_maps,
           "engine": engine if engine != "auto" else "", "device": device if device != "cpu" else ""}
    how = {name: value for name, value in how.items() if value}
    tool = tool_of(system)
    if unknown := unknown_options(tool, how):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in unknown)
        raise typer.BadParameter(f"this system does not know {names}")
    if watch:
        if report:
            raise typer.BadParameter("with --watch each exam has its record, exam.json; leave --report out")
        raise typer.Exit(_watch(folder, output, system, wait, workers or 1, allow_errors, weights=weights, table=table,
                                hash_ids=hash_ids, **how))
    result = predict_scans(folder, output, system, report, allow_errors, weights=weights, table=table,
                           hash_ids=hash_ids, workers=workers or None, **how)
    tool.print_predictions(result, output)
    raise typer.Exit(result.attrs["record"]["exit_code"])

# %%
answer = CliRunner().invoke(app, [str(folder), "-o", str(output), "--weights", str(weights), "--device", "gpu"])
assert answer.exit_code == 1 and "No device 'gpu'" in str(answer.exception)   # the command line prints it, and gives 2
print(answer.exception)

# %% [markdown]
# ---
# [← Kaggle commands](80_kaggle.py) · [Watching →](82_watching.py)

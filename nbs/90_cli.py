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
# # Command line
# > One registry of commands; each is a Python function that a notebook can call as well.
#
# A command only reads its arguments, calls a function of the package and turns the outcome into an exit code: 0 when
# all went well, 1 when something failed, 2 when nothing could be done. The heavy imports wait inside the commands, so
# that `mammo-nb --help` answers at once.

# %%
#| default_exp cli

# %%
#| export
import ast
import sys
from pathlib import Path

import typer

from mammo_nb.kaggle import app as kaggle_app, stage_source

# %%
#| hide
from typer.testing import CliRunner

# %%
#| export
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="mammo_nb: winning medical-imaging solutions, on your own scans.")
app.add_typer(kaggle_app)  # without a name: its commands stand beside ours

# %% [markdown]
# ## On your own scans

# %%
#| export
@app.command()
def predict(
        folder: Path = typer.Argument(
            ..., help="mammograms in DICOM, or in PNG or JPEG, nested or flat, any number of patients"),
        output: Path = typer.Option(..., "--output", "-o", help="per_image.csv, per_breast.csv and previews/ go here"),
        weights: Path = typer.Option(
            None, help="folder with ensemble.onnx; default: assets/trained, then the newest finished run"),
        table: Path = typer.Option(
            None, help="CSV with image_id or file (and patient_id), laterality, view, for files that do not say"),
        hash_ids: bool = typer.Option(False, help="replace patient and image ids by a digest"),
        allow_errors: bool = typer.Option(False, help="exit with 0 even if files failed"), workers: int = typer.Option(
            0, help="processes; 0: one a core"),
):
    "Predict the probability of cancer for every image and breast."
    from mammo_nb.mammo.tools.predict import predict_folder, print_predictions
    result = predict_folder(folder, output, weights=weights, table=table, hash_ids=hash_ids, workers=workers or None)
    failed = print_predictions(result, output)
    raise typer.Exit(2 if not len(result) else int(bool(failed) and not allow_errors))

# %% [markdown]
# ## A competition

# %%
#| export
@app.command()
def submit(
        competition: Path = typer.Argument(
            ..., help="folder with test.csv, sample_submission.csv and test_images/; only read"),
        output: Path = typer.Option(
            ..., "--output", "-o",
            help="submission.csv, test_per_image.csv and submit.json go here"), weights: Path = typer.Option(
                None, help="folder with ensemble.onnx; default: assets/trained, then the newest finished run"),
        budget: str = typer.Option(
            "", help="time to end in, as 8h30m, 45m or 90s: what matters least is dropped first; default: no limit"),
        flip: bool = typer.Option(
            False, help="the mean of the probabilities of each picture and its mirror image"), pngs: Path = typer.
    Option(None, help="keep the networks' inputs in this folder"), backend: str = typer.Option(
        "auto",
        help=
        "how the networks run: onnxruntime-fp32, openvino-fp32, compiled-fp32, torch-fp32 or an engine's file; "
        "default: the first that works"
    ), allow_errors: bool = typer.Option(False, help="exit with 0 even if images failed or were not reached"),
        workers: int = typer.Option(0, help="processes that decode; 0: one a core"),
):
    "Predict a competition's test set and write its submission.csv. A killed run goes on where it was."
    from mammo_nb.core.files import read_json
    from mammo_nb.mammo.submit import submit, told
    submit(competition, weights, output, budget=budget, flip=flip, workers=workers or None, pngs=pngs, backend=backend)
    report = read_json(output / "submit.json")
    print(*told(report), f"-> {output / 'submission.csv'}", sep="\n")
    raise typer.Exit(int(report["predicted"] < report["images"] and not allow_errors))

# %%
#| export
def _size(
    text: str,   # "2048x1024", or "" for none
) -> tuple[int, int]:  # height, width; 0, 0 for none
    "A size in pixels."
    height, _, width = text.partition("x")
    if text and not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise typer.BadParameter(f"{text!r} is not of the form 2048x1024")
    return (int(height), int(width)) if text else (0, 0)

@app.command()
def check(folder: Path = typer.Argument(
    None, help="a competition, or any folder with mammograms"
), dataset: str = typer.Option(
    "", help=
    "instead of a folder: vindr, miniddsm, cmmd, cddcesm, bmcd, rsna-breast-cancer-detection, or a folder of your own "
    "below raw or samples of settings.ini"
), table: Path = typer.Option(None,
                              help="CSV that names the files; default: train.csv and test.csv of the competition"),
          output: Path = typer.Option(None, "--output", "-o", help="write the table to this CSV as well"),
          sample: int = typer.Option(32, min=0, help="how many files are decoded, and timed for the estimate"),
          everything: bool = typer.Option(False, "--all", help="decode every file"), size: str = typer.Option(
              "", help="HEIGHTxWIDTH of the crops that are estimated; default: as the detector made them"),
          workers: int = typer.Option(0, help="processes; 0: one a core"),
          ):
    "Is a data set whole? Missing, doubled and unreadable files, wrong sides, time and disk that cropping will need."
    from mammo_nb.core.files import write_csv
    from mammo_nb.mammo.tools.check import check_dataset, check_folder, print_check
    from mammo_nb.mammo.recipes import Crops
    height, width = _size(size)
    if bool(folder) == bool(dataset):
        raise typer.BadParameter("name a folder, or a data set with --dataset")
    if dataset and table:
        raise typer.BadParameter("a data set has its own table; leave --table out")
    how = {
        "sample": sample, "everything": everything, "settings": Crops(height=height, width=width),
        "workers": workers or None
    }
    found = check_dataset(dataset, **how) if dataset else check_folder(folder, table, **how)
    if output:
        write_csv(output, found)
    raise typer.Exit(print_check(found))

@app.command()
def crops(folder: Path = typer.Argument(
    ..., help="mammograms in DICOM, or in PNG or JPEG, nested or flat"
), output: Path = typer.Option(
    ..., "--output", "-o", help="cleaned_images/, crops.csv and crop_errors.csv go here"
), size: str = typer.Option(
    "", help="HEIGHTxWIDTH that a crop is made to fit into, as 2048x1024; default: as the detector made it"
), detector: str = typer.Option(
    "",
    help="detector.onnx or a folder with one, or otsu; default: assets/trained, then the newest finished run, then otsu"
), previews: bool = typer.Option(False,
                                 help="write previews/ too: each frame with its box"), faithful: bool = typer.Option(
                                     False,
                                     help="the winner's preparation to the bit"), allow_errors: bool = typer.Option(
                                         False, help="exit with 0 even if files failed"), workers: int = typer.Option(
                                             0, help="processes; 0: one a core"), backend: str = typer.Option(
                                                 "loky", help="loky: processes of this machine; dask: a cluster"),
          scheduler: str = typer.Option("", help="address of the Dask scheduler, as tcp://10.0.0.5:8786"),
          ):
    "Find the breast in every mammogram and write it as an 8-bit PNG. A killed run goes on where it was."
    from mammo_nb.mammo.reading.boxes import find_detector
    from mammo_nb.mammo.crops import crop_folder
    from mammo_nb.mammo.recipes import Crops
    height, width = _size(size)
    if faithful and size:
        raise typer.BadParameter("the winner's crops have the size of the detector; leave --size out")
    finds = find_detector(detector)
    print(f"breasts are found by {finds or 'Otsu, no detector'}")
    table = crop_folder(folder, output, Crops(height=height, width=width, faithful=faithful), finds, previews,
                        workers=workers or None, backend=backend, scheduler=scheduler)
    failed = table.loc[table["error"] != "", ["file", "error"]]
    for row in failed.head(20).itertuples():
        print(f"failed {row.file}: {row.error}")
    print(f"{len(table) - len(failed)} of {len(table)} files cropped -> {output}"
          + f"; {len(failed)} failed, see {output / 'crop_errors.csv'}" * bool(len(failed)))
    raise typer.Exit(int(bool(len(failed)) and not allow_errors))

# %% [markdown]
# A published detector is a pickle with somebody's layer names; ours is a graph. This makes one from the other.

# %%
#| export
@app.command()
def detector(checkpoint: Path = typer.Argument(
    ..., help="YOLOX-nano of one class: the winner's yolox_nano_416_roi_torch.pth, your own, or a .safetensors"),
             output: Path = typer.Option(Path("assets/trained"), "--output", "-o",
                                         help="detector.onnx, detector.json and yolox.safetensors go here"),
             size: int = typer.Option(416, help="side of its input, pixels, a multiple of 32"),
             ):
    "Make a breast detector from a YOLOX checkpoint."
    from mammo_nb.mammo.detector import convert_detector
    difference = convert_detector(checkpoint, output, size)
    print(f"{output}/detector.onnx, at most {difference:.1g} pixels from torch")

# %% [markdown]
# ## What others have published
# `make data` and `make weights` call these.

# %%
#| export
@app.command()
def data(
    name: str = typer.Argument("", help="rsna, vindr, miniddsm, cmmd, cddcesm or bmcd; none: which have a folder"),
):
    """Fetch the competition from Kaggle (rsna), or say how to get another data set; then look whether it is whole. A
    stopped run goes on where it was."""
    from mammo_nb.core.settings import read_paths
    from mammo_nb.mammo.tools.fetch import SETS, fetch_set, print_set
    raw = read_paths().raw
    if name:
        raise typer.Exit(print_set(fetch_set(name, raw)))
    for short, each in SETS.items():
        print(f"{short:9} {'has a folder' if (raw / each).is_dir() else 'is not there'}: mammo-nb data {short}")

@app.command()
def weights(
    output: Path = typer.Option(None, "--output", "-o", help="folder for the weights; default: assets/trained"),
):
    "Fetch the winner's published weights from Kaggle and make of them a folder for --weights and MODE=trained."
    from mammo_nb.core.settings import read_paths
    from mammo_nb.mammo.tools.fetch import fetch_weights
    output = output or read_paths().assets / "trained"
    differences = fetch_weights(output)
    if differences:
        print(
            f"detector.onnx at most {differences['detector']:.1g} pixels, ensemble.onnx at most "
            f"{differences['ensemble']:.1g} from torch"
        )
    print(
        f"the winner's weights are in {output}: mammo-nb predict --weights {output}, or make reproduce MODE=trained "
        f"WEIGHTS={output}"
    )

# %%
assert _size("2048x1024") == (2048, 1024) and _size("") == (0, 0)

# %% [markdown]
# ## What make calls
# A stage's overrides arrive as `section.field=value`; only those of its own section concern it.

# %%
#| export
def parse_overrides(
    settings: list[str],           # "train.epochs=8"
) -> dict[str, dict]:              # section -> field -> value
    "Overrides by section; a value that is no Python literal is text."
    sections = {}
    for s in settings:
        name, equals, value = s.partition("=")
        section, dot, field = name.partition(".")
        if not (equals and dot):
            raise typer.BadParameter(f"{s!r} is not of the form stage.field=value")
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pass  # a bare word, such as a network's name
        sections.setdefault(section, {})[field] = value
    return sections

# %%
parse_overrides(["train.epochs=8", "train.network=convnext_nano", "folds.n_folds=5"])

# %%
#| export
_system = typer.Option("mammo", help="folder below nbs/")
_recipe = typer.Option("demo")
_mode = typer.Option("full")
_run_dir = typer.Option(..., help="folder of the run")
_weights = typer.Option(None)
_set = typer.Option([], "--set", help="stage.field=value")

def _stage_call(word: str, system: str, recipe: str, mode: str, weights: Path | None,
                settings: list[str]) -> tuple[dict, dict | None]:
    "The parameters that papermill injects, and the recipe's section as a dict."
    from dataclasses import asdict
    from mammo_nb.mammo.recipes import get_recipe, get_section
    if system != "mammo":
        recipe = f"{system}/{recipe}"  # a borrowed stage has to find it too
    sections = parse_overrides(settings)
    for stage, overrides in sections.items():
        get_section(recipe, stage, overrides)  # a slip anywhere stops the run at its start
    overrides = sections.get(word, {})
    section = get_section(recipe, word, overrides) if hasattr(get_recipe(recipe), word) else None
    parameters = {
        "recipe": recipe, "mode": mode, "weights": str(weights.resolve()) if weights else "", "overrides": overrides
    }
    return parameters, asdict(section) if section else None

@app.command("stage-inputs", hidden=True)
def stage_inputs_command(stage: str, before: str = typer.Option(""), system: str = _system, recipe: str = _recipe,
                         mode: str = _mode, run_dir: Path = _run_dir, weights: Path = _weights,
                         settings: list[str] = _set):
    "Rewrite a stage's inputs file if anything that it depends on has changed."
    from mammo_nb.core.stages import changed_files, refresh_inputs, stage_inputs, stage_name
    source = stage_source(stage, system)
    parameters, section = _stage_call(stage_name(source), system, recipe, mode, weights, settings)
    inputs = stage_inputs(Path("."), source, run_dir, parameters, section,
                          run_dir / "inputs" / f"{before}.json" if before else None)
    why = refresh_inputs(run_dir / "inputs" / f"{source.stem}.json", inputs, changed_files(run_dir, stage_name(source)))
    if why and why != ["first run"]:
        print(f"{stage} runs again: {', '.join(why)}", flush=True)

@app.command("stage-run", hidden=True)
def stage_run_command(stage: str, stages: str = typer.Option(""), system: str = _system, recipe: str = _recipe,
                      mode: str = _mode, run_dir: Path = _run_dir, weights: Path = _weights,
                      settings: list[str] = _set):
    "Execute one stage notebook."
    from mammo_nb.core.stages import execute, stage_name
    source, order = stage_source(stage, system), stages.split()
    parameters, _ = _stage_call(stage_name(source), system, recipe, mode, weights, settings)
    print(f"\n[{order.index(stage) + 1}/{len(order)}] {source} -> {run_dir / source.stem}.ipynb", flush=True)
    execute(source, run_dir / f"{source.stem}.ipynb", {**parameters, "run_dir": str(run_dir.resolve())})

# %% [markdown]
# A run goes on when a file fails, and says so at its end: with a count, and an exit code that a script will notice.

# %%
#| export
# tables of a run with a column `error`
FAILURES = {"processed/crop_errors.csv": "training images", "test_per_image.csv": "test images"}

@app.command("run-end", hidden=True)
def run_end_command(run_dir: Path = _run_dir, allow_errors: bool = typer.Option(False)):
    "Say what a run has made and what failed."
    import pandas as pd
    from mammo_nb.core.stages import locate
    made = [f for f in ("submission.csv", "report.html", "manifest.json") if (run_dir / f).exists()]
    print(f"{run_dir}: {', '.join(made)} and one executed notebook a stage")
    tables = {what: locate(run_dir, name) for name, what in FAILURES.items() if locate(run_dir, name).exists()}
    counts = {what: int(pd.read_csv(path)["error"].notna().sum()) for what, path in tables.items()}
    for what, failed in counts.items():
        if failed:
            print(f"{failed} {what} could not be used: see the column error of {tables[what]}")
    if any(counts.values()) and not allow_errors:
        raise typer.Exit(1)

# %% [markdown]
# ## Entry
# An error that the package foresaw is one sentence, not a traceback.

# %%
#| export
def _foreseen() -> tuple:
    "Errors whose text says what to do."
    names = {
        "core.settings": "SettingsError", "core.stages": "StageError", "core.notebooks": "NotebookConflict",
        "mammo.recipes": "RecipeError", "core.fetch": "FetchError", "core.headers": "DicomError",
        "core.backends": "EngineError", "core.networks": "WeightsError", "core.parallel": "BackendError",
        "mammo.datasets": "DatasetError", "mammo.roi": "AnnotationError", "mammo.check": "CheckError",
        "mammo.predict": "PredictError", "mammo.budget": "BudgetError", "core.wheels": "WheelError",
        "core.kernels": "KernelError", "mammo.rehearse": "RehearsalError"
    }
    loaded = {m: sys.modules.get(f"mammo_nb.{m}") for m in names}
    return tuple(getattr(module, names[m]) for m, module in loaded.items() if module)

def main():
    "Entry point of `mammo-nb`."
    try:
        app()
    except Exception as e:
        if not isinstance(e, _foreseen()):
            raise
        print(e, file=sys.stderr)
        sys.exit(2)

# %%
answer = CliRunner().invoke(app, ["--help"])
assert answer.exit_code == 0 and "predict" in answer.output and "stage-run" not in answer.output
print(answer.output)

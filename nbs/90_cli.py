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
# A command only reads its arguments, calls a function of the package and turns the outcome into an exit code: 0 when all went well, 1 when something failed, 2 when nothing could be done. The heavy imports wait inside the commands, so that `mammo-nb --help` answers at once.

# %%
#| default_exp cli

# %%
#| export
import ast
import importlib
import sys
from pathlib import Path

import typer

# %%
#| hide
from typer.testing import CliRunner

# %%
#| export
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="mammo_nb: winning medical-imaging solutions, on your own scans.")

# %% [markdown]
# ## On your own scans

# %%
#| export
@app.command()
def check(
    folder: Path = typer.Argument(..., help="looked through to any depth"),
    output: Path = typer.Option(None, "--output", "-o", help="write the table to this CSV as well"),
    workers: int = typer.Option(0, help="processes; 0: one a core"),
):
    "Read every DICOM file of a folder: syntax, decoder, photometric, windows, problems."
    from mammo_nb.mammo.predict import check_folder, print_check
    table = check_folder(folder, workers=workers or None)
    if output: table.to_csv(output, index=False)
    raise typer.Exit(print_check(table))

@app.command()
def predict(
    folder: Path = typer.Argument(..., help="mammograms in DICOM, nested or flat, any number of patients"),
    output: Path = typer.Option(..., "--output", "-o", help="per_image.csv, per_breast.csv and previews/ go here"),
    weights: Path = typer.Option(None, help="folder with ensemble.onnx; default: assets/trained, then the newest finished run"),
    table: Path = typer.Option(None, help="CSV with image_id (and patient_id), laterality, view, for files that do not say"),
    hash_ids: bool = typer.Option(False, help="replace patient and image ids by a digest"),
    allow_errors: bool = typer.Option(False, help="exit with 0 even if files failed"),
    workers: int = typer.Option(0, help="processes; 0: one a core"),
):
    "Predict the probability of cancer for every image and breast."
    from mammo_nb.mammo.predict import predict_folder, print_predictions
    result = predict_folder(folder, output, weights=weights, table=table, hash_ids=hash_ids, workers=workers or None)
    failed = print_predictions(result, output)
    raise typer.Exit(2 if not len(result) else int(bool(failed) and not allow_errors))

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
        if not (equals and dot): raise typer.BadParameter(f"{s!r} is not of the form stage.field=value")
        try: value = ast.literal_eval(value)
        except (ValueError, SyntaxError): pass  # a bare word, such as a network's name
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

def _stage_call(word: str, system: str, recipe: str, mode: str, weights: Path | None, settings: list[str]) -> tuple[dict, dict | None]:
    "The parameters that papermill injects, and the recipe's section as a dict."
    from dataclasses import asdict
    recipes = importlib.import_module(f"mammo_nb.{system}.recipes")
    sections = parse_overrides(settings)
    for stage, overrides in sections.items(): recipes.get_section(recipe, stage, overrides)  # a slip anywhere stops the run at its start
    has_section = word in recipes.Recipe.__dataclass_fields__
    overrides = sections.get(word, {})
    section = recipes.get_section(recipe, word, overrides) if has_section else None
    parameters = {"recipe": recipe, "mode": mode, "weights": str(weights.resolve()) if weights else "", "overrides": overrides}
    return parameters, asdict(section) if section else None

@app.command("stage-inputs", hidden=True)
def stage_inputs_command(stage: str, before: str = typer.Option(""), system: str = _system, recipe: str = _recipe, mode: str = _mode,
                         run_dir: Path = _run_dir, weights: Path = _weights, settings: list[str] = _set):
    "Rewrite a stage's inputs file if anything that it depends on has changed."
    from mammo_nb.core.stages import changed_files, refresh_inputs, stage_inputs, stage_name
    source = Path("nbs") / system / f"{stage}.py"
    parameters, section = _stage_call(stage_name(source), system, recipe, mode, weights, settings)
    inputs = stage_inputs(Path("."), source, run_dir, parameters, section, run_dir / "inputs" / f"{before}.json" if before else None)
    why = refresh_inputs(run_dir / "inputs" / f"{stage}.json", inputs, changed_files(run_dir, stage_name(source)))
    if why and why != ["first run"]: print(f"{stage} runs again: {', '.join(why)}", flush=True)

@app.command("stage-run", hidden=True)
def stage_run_command(stage: str, stages: str = typer.Option(""), system: str = _system, recipe: str = _recipe, mode: str = _mode,
                      run_dir: Path = _run_dir, weights: Path = _weights, settings: list[str] = _set):
    "Execute one stage notebook."
    from mammo_nb.core.stages import execute, stage_name
    source, order = Path("nbs") / system / f"{stage}.py", stages.split()
    parameters, _ = _stage_call(stage_name(source), system, recipe, mode, weights, settings)
    print(f"\n[{order.index(stage) + 1}/{len(order)}] {source} -> {run_dir / stage}.ipynb", flush=True)
    execute(source, run_dir / f"{stage}.ipynb", {**parameters, "run_dir": str(run_dir.resolve())})

# %% [markdown]
# ## Entry
# An error that the package foresaw is one sentence, not a traceback.

# %%
#| export
def _foreseen() -> tuple:
    "Errors whose text says what to do."
    names = {"core.settings": "SettingsError", "core.stages": "StageError", "core.notebooks": "NotebookConflict", "mammo.recipes": "RecipeError",
             "core.dicom": "DicomError", "mammo.predict": "PredictError"}
    loaded = {m: sys.modules.get(f"mammo_nb.{m}") for m in names}
    return tuple(getattr(module, names[m]) for m, module in loaded.items() if module)

def main():
    "Entry point of `mammo-nb`."
    try: app()
    except Exception as e:
        if not isinstance(e, _foreseen()): raise
        print(e, file=sys.stderr)
        sys.exit(2)

# %%
answer = CliRunner().invoke(app, ["--help"])
assert answer.exit_code == 0 and "predict" in answer.output and "stage-run" not in answer.output
print(answer.output)

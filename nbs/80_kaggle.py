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
# # Kaggle commands
# > What `make kaggle-wheels`, `kaggle-weights`, `kaggle-push` and `kaggle-rehearse` call.
#
# The commands of this notebook belong to `mammo-nb` like those of [the command line](90_cli.py), which adds them to its
# own. They write everything below `build/kaggle`, which git ignores, from the folders of `kaggle/`.

# %%
#| default_exp kaggle

# %%
#| export
import sys
from pathlib import Path

import typer

# %%
#| hide
from typer.testing import CliRunner

# %%
#| export
app = typer.Typer(add_completion=False, no_args_is_help=True)

# %%
#| export
_OUTBOX, _INSTALLED = Path("build/kaggle"), ["mammo_nb[kaggle]"]

@app.command("kaggle-wheels")
def kaggle_wheels(
    lock: bool = typer.Option(False, help="choose versions anew and write kaggle/wheels/lock.txt first"),
    python: str = typer.Option("", help="for another Python than the image's, such as 3.11; goes to wheels-3.11"),
):
    "Gather what Kaggle's image lacks for predicting, as wheels, and check that nothing is missing."
    import tempfile
    from mammo_nb.core.wheels import build_sources, build_wheel, make_wheels, print_wheels, resolve, write_lock
    root, place = Path("."), Path("kaggle/wheels")
    if lock:
        with tempfile.TemporaryDirectory() as scratch:
            build_wheel(root, Path(scratch))
            build_sources(place / "source.txt", Path(scratch))
            write_lock(
                place / "lock.txt", resolve(_INSTALLED, Path(scratch), place / "image.txt"),
                "what Kaggle's image lacks for predicting, for its Python; written by mammo-nb kaggle-wheels --lock")
    print_wheels(make_wheels(root, _OUTBOX / (f"wheels-{python}" if python else "wheels"), _INSTALLED, python or None))

@app.command("kaggle-weights")
def kaggle_weights(weights: Path = typer.Argument(
    None, help="folder with ensemble.onnx; default: assets/trained, then the newest finished run"),):
    "Gather networks, engines and a manifest with their digests."
    from mammo_nb.core.kernels import gather_weights
    from mammo_nb.mammo.tools.predict import detector_of, find_weights
    found = find_weights(weights)
    detector_of(found)  # says so if it is missing or another
    manifest = gather_weights(found, _OUTBOX / "weights")
    for name, about in manifest.items():
        print(f"{about['bytes'] / 1e6:8.2f} MB  {name}")
    print(f"{sum(about['bytes'] for about in manifest.values()) / 1e6:8.2f} MB  of {found} in {_OUTBOX / 'weights'}")

def stage_source(stage: str, system: str) -> Path:
    "The notebook of a stage: of the system itself, or, as mammo/02_phantom, of another."
    folder, _, name = stage.rpartition("/")
    return Path("nbs") / (folder or system) / f"{name}.py"

@app.command("kaggle-kernel")
def kaggle_kernel(
    stage: str = typer.Argument(..., help="as 06_train, or baseline/06_train"),
    recipe: str = typer.Option("demo", help="of the run that the stage belongs to"),
    after: list[str] = typer.Option([], help="stage whose kernel has written what this one reads; may be repeated"),
    gpu: bool = typer.Option(False, help="ask for two T4"),
    user: str = typer.Option("", help="at Kaggle; default: of the credentials"),
):
    "Make a kernel of a stage notebook, for those who train on Kaggle; kaggle-push --kernel sends it."
    from mammo_nb.core.kaggle import connect
    from mammo_nb.core.kernels import check_metadata, kernel_name, stage_kernel, user_of
    from mammo_nb.mammo.recipes import get_recipe
    source = stage_source(stage, "mammo")
    if not source.is_file():
        raise typer.BadParameter(f"there is no {source}; stages are named as 06_train, or baseline/06_train")
    name, data = f"{source.parent.name}/{recipe}" if source.parent.name != "mammo" else recipe, "rsna-breast-cancer-detection"
    reads = [data] if data in (get_recipe(name).datasets.name, *get_recipe(name).datasets.external.split()) else []
    folder = stage_kernel(Path("."), source, _OUTBOX / kernel_name(source), user or user_of(connect()), name,
                          [stage_source(a, "mammo") for a in after], reads, gpu)
    check_metadata(folder)
    print(f"{folder}: mammo-nb kaggle-push --kernel {folder}")

@app.command("kaggle-push")
def kaggle_push(only: str = typer.Option(
    "", help="wheels, weights or kernel, with commas between; default: all three"), kernel: Path = typer.Option(
        None, help="folder of kaggle-kernel to push instead of the submission; data sets are left alone"),
                notes: str = typer.Option("mammo_nb", help="on the new versions of the data sets"),
                ):
    """Send wheels and weights as private data sets, then the submission's notebook; wait for it, and print its log if
    it fails."""
    from mammo_nb.core.kaggle import connect
    from mammo_nb.core.kernels import check_metadata, prepare, publish_dataset, push_kernel, user_of
    parts = ["kernel"] if kernel else (only or "wheels,weights,kernel").split(",")
    if wrong := set(parts) - {"wheels", "weights", "kernel"}:
        raise typer.BadParameter(f"{', '.join(sorted(wrong))} is none of wheels, weights, kernel")
    api = connect()
    user = user_of(api)
    sets = [prepare(Path("kaggle") / part, _OUTBOX / part, user) for part in ("wheels", "weights") if part in parts]
    last = (kernel or prepare(Path("kaggle/submission"), _OUTBOX / "submission", user)) if "kernel" in parts else None
    check_metadata(*sets, *([last] if last else []))   # all of it, before anything goes
    for folder in sets:
        publish_dataset(api, folder, notes)
    if last:
        print(f"it has run: {push_kernel(api, last)}" + "; submit its output on that page" * (kernel is None))

@app.command("kaggle-rehearse")
def kaggle_rehearse(weights: Path = typer.Argument(
    None, help="folder with ensemble.onnx; default: a tiny run is made for it"), flat: bool = typer.Option(
        False, help="inputs as Kaggle used to mount them"), exact: str = typer.Option(
            "", help="a Python of the image's version: the image's own versions are installed for it, about 8 GB"),
                    ):
    """Run the submission as Kaggle would: wheels only, no network, read-only inputs, a hidden test set; then ask what
    the scorer asks."""
    from mammo_nb.core.kernels import gather_weights
    from mammo_nb.core.wheels import make_wheels, print_wheels, python_of, read_pins
    from mammo_nb.mammo.tools.rehearse import FLAT, NESTED, rehearse
    if weights is None:
        from mammo_nb.core.stages import locate, practice
        from mammo_nb.mammo import crops, datasets, detector, engines, folds, phantom, select, train
        run_dir, _ = practice(phantom.run, datasets.run, detector.run, crops.run, folds.run, train.run, select.run,
                              engines.run)
        weights = locate(run_dir, "final_models/ensemble.onnx").parent
    here, theirs = "{}.{}".format(*sys.version_info), python_of(read_pins("kaggle/wheels/image.txt"))
    wheels = make_wheels(Path("."), _OUTBOX / "wheels", _INSTALLED)
    print_wheels(wheels)
    if here != theirs and not exact:
        print(f"Kaggle's Python is {theirs}, this one {here}: rehearsed with wheels of the same versions for {here}")
        wheels = make_wheels(Path("."), _OUTBOX / f"wheels-{here}", _INSTALLED, here)
    gather_weights(weights, _OUTBOX / "rehearsed-weights")
    submission = rehearse(Path("."), wheels[0].path.parent, _OUTBOX / "rehearsed-weights", _OUTBOX / "rehearsal",
                          FLAT if flat else NESTED, exact=exact)
    print(f"the submission would be scored: {submission}")

# %%
answer = CliRunner().invoke(app, ["--help"])
assert answer.exit_code == 0 and "kaggle-rehearse" in answer.output
print(answer.output)

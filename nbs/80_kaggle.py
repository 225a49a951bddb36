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

from mammo_nb.core.systems import default_system, find_system

# %%
#| hide
from typer.testing import CliRunner

# %%
#| export
app = typer.Typer(add_completion=False, no_args_is_help=True)

# %%
#| export
_OUTBOX, _INSTALLED = Path("build/kaggle"), ["mammo_nb[kaggle]"]
_SYSTEM = typer.Option("", help="the system, see `mammo-nb systems`; default: see there")

def _chosen(name: str):
    "A system by its name, or the default."
    return find_system(name) if name else default_system()

@app.command("kaggle-wheels")
def kaggle_wheels(
    lock: bool = typer.Option(False, help="choose the versions anew and write kaggle/wheels/lock.txt first"),
    python: str = typer.Option("", help="for another Python than the image's, such as 3.11; goes to wheels-3.11"),
):
    "Gather what Kaggle's image lacks for predicting, as wheels, and check that none is missing."
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

def _gathered(system: str, weights: Path | None, folder: Path) -> tuple[Path, dict]:
    "Gather the weights of a system into a folder; returns where they were and the manifest."
    from mammo_nb.core.files import read_json
    from mammo_nb.core.kernels import gather_weights
    from mammo_nb.core.submission import find_submission, find_weights
    submission = find_submission(system)
    found = find_weights(submission.engine, weights)
    submission.entries(found, read_json(found / f"{submission.engine}.json"))  # raises if something is missing
    return found, gather_weights(found, folder, system, submission.engine)

@app.command("kaggle-weights")
def kaggle_weights(
    weights: Path = typer.Argument(
        None, help="folder of the weights; default: assets/trained, then the newest finished run"),
    system: str = _SYSTEM,
):
    "Gather networks, engines and a manifest with their system and their digests."
    name = _chosen(system).name
    found, manifest = _gathered(name, weights, _OUTBOX / "weights")
    for file, about in manifest["files"].items():
        print(f"{about['bytes'] / 1e6:8.2f} MB  {file}")
    total = sum(about["bytes"] for about in manifest["files"].values())
    print(f"{total / 1e6:8.2f} MB  of {name} from {found} in {_OUTBOX / 'weights'}")

def _competitions(system, recipe: str) -> list[str]:
    "The system's competition, if a section of the recipe names it; else the recipe draws its data or has other data."
    from dataclasses import asdict
    sections = [system.recipe(recipe).section(s.section) for s in system.plan(recipe, system.recipe(recipe).mode)
                if s.section]
    words = [word for section in sections for value in asdict(section).values() for word in str(value).split()]
    return [system.competition] if system.competition in words else []

@app.command("kaggle-kernel")
def kaggle_kernel(
    stage: str = typer.Argument(..., help="name of the stage, such as train"),
    system: str = _SYSTEM,
    recipe: str = typer.Option("demo", help="of the run that the stage belongs to"),
    after: list[str] = typer.Option([], help="stage whose kernel has written what this one reads; may be repeated"),
    gpu: bool = typer.Option(False, help="two T4"),
    user: str = typer.Option("", help="name at Kaggle; default: of the credentials"),
):
    "Make a kernel of a stage notebook, for those who train on Kaggle; kaggle-push --kernel sends it."
    from mammo_nb.core.kaggle import connect
    from mammo_nb.core.kernels import check_metadata, kernel_name, stage_kernel
    from mammo_nb.core.publishing import user_of
    chosen = _chosen(system)
    source, before = chosen.stage(stage).source(), [chosen.stage(a).source() for a in after]
    folder = stage_kernel(Path("."), source, _OUTBOX / kernel_name(source), user or user_of(connect()), chosen.name,
                          recipe, before, _competitions(chosen, recipe), gpu)
    check_metadata(folder)
    print(f"{folder}: mammo-nb kaggle-push --kernel {folder}")

@app.command("kaggle-push")
def kaggle_push(
    only: str = typer.Option("", help="wheels, weights or kernel, with commas between; default: all three"),
    kernel: Path = typer.Option(
        None, help="folder of kaggle-kernel to push instead of the submission; data sets are left alone"),
    notes: str = typer.Option("mammo_nb", help="description of the new versions of the data sets"),
):
    """Send wheels and weights as private data sets, then the submission's notebook; wait for it, and print its log if
    it fails. The manifest of the weights names the system and so the competition."""
    from mammo_nb.core.kaggle import connect
    from mammo_nb.core.kernels import check_metadata, prepare
    from mammo_nb.core.publishing import publish_dataset, push_kernel, user_of
    from mammo_nb.core.submission import read_submission
    parts = ["kernel"] if kernel else (only or "wheels,weights,kernel").split(",")
    if wrong := set(parts) - {"wheels", "weights", "kernel"}:
        raise typer.BadParameter(f"{', '.join(sorted(wrong))} is none of wheels, weights, kernel")
    api = connect()
    user = user_of(api)
    sets = [prepare(Path("kaggle") / part, _OUTBOX / part, user) for part in ("wheels", "weights") if part in parts]
    last = kernel
    if "kernel" in parts and not kernel:
        competition = read_submission(_OUTBOX / "weights").competition
        last = prepare(Path("kaggle/submission"), _OUTBOX / "submission", user, competition)
    check_metadata(*sets, *([last] if last else []))   # everything is checked before anything is sent
    for folder in sets:
        publish_dataset(api, folder, notes)
    if last:
        address = push_kernel(api, last)
        print(f"it has run: {address}" if kernel else f"it has run: {address}; submit its output on that page")

@app.command("kaggle-rehearse")
def kaggle_rehearse(
    weights: Path = typer.Argument(None, help="folder of the weights; default: a tiny run makes them"),
    system: str = _SYSTEM,
    flat: bool = typer.Option(False, help="inputs as Kaggle used to mount them"),
    exact: str = typer.Option(
        "", help="a Python of the image's version: the image's own versions are installed for it, about 8 GB"),
):
    """Run the submission as Kaggle would: wheels only, no network, read-only inputs, a hidden test set; then check the
    file as the scorer does."""
    from mammo_nb.core.files import read_json
    from mammo_nb.core.practice import practice
    from mammo_nb.core.rehearse import FLAT, NESTED, rehearse
    from mammo_nb.core.submit import summary
    from mammo_nb.core.wheels import make_wheels, print_wheels, python_of, read_pins
    chosen = _chosen(system)
    if weights is None:
        print(f"No WEIGHTS are named. The recipe tiny of {chosen.name} is trained first, which takes minutes; its "
              "scores mean nothing. WEIGHTS=folder rehearses with your own.", flush=True)
        weights = practice(chosen, before="submit").path("weights/")
    _gathered(chosen.name, weights, _OUTBOX / "rehearsed-weights")  # before the wheels, which may take minutes
    here, theirs = "{}.{}".format(*sys.version_info), python_of(read_pins("kaggle/wheels/image.txt"))
    wheels = make_wheels(Path("."), _OUTBOX / "wheels", _INSTALLED)
    print_wheels(wheels)
    if here != theirs and not exact:
        print(f"Kaggle's Python is {theirs}, this one {here}: rehearsed with wheels of the same versions for {here}")
        wheels = make_wheels(Path("."), _OUTBOX / f"wheels-{here}", _INSTALLED, here)
    submission = rehearse(Path("."), wheels[0].path.parent, _OUTBOX / "rehearsed-weights", _OUTBOX / "rehearsal",
                          FLAT if flat else NESTED, exact=exact)
    print(*summary(read_json(submission.with_name("submit.json"))), sep="\n")
    print(f"the submission of {chosen.name} would be scored: {submission}")

# %%
answer = CliRunner().invoke(app, ["--help"])
assert answer.exit_code == 0 and "kaggle-rehearse" in answer.output
print(answer.output)

# %% [markdown]
# ---
# [← Where we leave the originals](70_originals.py) · [Predicting →](81_predicting.py)

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
# # Commands
# > What mammography adds to `mammo-nb`: crop, make a detector, fetch data and weights.
#
# A command reads its arguments, calls a function of the package and turns the outcome into an exit code: 0 when all
# went well, 1 when something failed, 2 when nothing could be done. The heavy imports are inside the commands, so that
# `mammo-nb --help` is quick.

# %%
#| default_exp mammo.tools.commands

# %%
#| export
from pathlib import Path

import typer

app = typer.Typer()

# %%
#| export
def read_size(
    text: str,   # "2048x1024", or "" for none
) -> tuple[int, int]:  # height, width; 0, 0 for none
    "Read a size in pixels."
    height, _, width = text.partition("x")
    if text and not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise typer.BadParameter(f"{text!r} is not of the form 2048x1024")
    return (int(height), int(width)) if text else (0, 0)

@app.command()
def crops(
    folder: Path = typer.Argument(..., help="mammograms in DICOM, or in PNG or JPEG, nested or flat, or one file"),
    output: Path = typer.Option(
        ..., "--output", "-o", help="cleaned_images/, crops.csv and crop_errors.csv go here"),
    size: str = typer.Option(
        "", help="HEIGHTxWIDTH that a crop is made to fit into, as 2048x1024; default: as the detector made it"),
    detector: str = typer.Option(
        "", help="detector.onnx or a folder with one, or otsu; default: assets/trained, then the newest finished run, "
        "then otsu"),
    previews: bool = typer.Option(False, help="write previews/ too: each frame with its box"),
    frames: str = typer.Option(
        "", help="which frames of a file with several, such as a tomosynthesis: middle, all or a number from 1"),
    faithful: bool = typer.Option(False, help="the winner's preparation, defects included"),
    allow_errors: bool = typer.Option(False, help="exit with 0 even if files failed"),
    workers: int = typer.Option(0, help="processes; 0: one a core"),
):
    "Find the breast in every mammogram and write it as an 8-bit PNG. A killed run continues where it stopped."
    from mammo_nb.mammo.reading.boxes import detector_in_words, find_detector
    from mammo_nb.mammo.reading.frames import check_frames
    from mammo_nb.mammo.recipes import Crops
    from mammo_nb.mammo.tools.crops import crop_folder, print_crops
    height, width = read_size(size)
    check_frames(frames)
    if faithful and size:
        raise typer.BadParameter("the winner's crops have the size of the detector; leave --size out")
    graph = find_detector(detector)
    print(f"detector: {detector_in_words(graph)}")
    table = crop_folder(folder, output, Crops(height=height, width=width, faithful=faithful), graph, previews, frames,
                        workers=workers or None)
    failed = print_crops(table, output)
    raise typer.Exit(int(bool(failed) and not allow_errors))

# %% [markdown]
# A published detector is a pickle of a training; a run needs an ONNX graph. This command converts the one to the other.

# %%
#| export
@app.command()
def detector(
    checkpoint: Path = typer.Argument(
        ..., help="YOLOX-nano of one class: the winner's yolox_nano_416_roi_torch.pth, your own, or a .safetensors"),
    output: Path = typer.Option(
        Path("assets/trained"), "--output", "-o", help="detector.onnx, detector.json and yolox.safetensors go here"),
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
    name: str = typer.Argument("", help="rsna, vindr, miniddsm, cmmd, cddcesm, bmcd or cbis; none: list all"),
):
    """Fetch the competition from Kaggle (rsna), or print how to get another data set; then check if it is complete. A
    stopped download continues where it stopped."""
    from mammo_nb.core.settings import read_paths
    from mammo_nb.mammo.tools.fetch import SETS, fetch_set, print_set
    raw = read_paths().raw
    if name:
        raise typer.Exit(print_set(fetch_set(name, raw)))
    for short, each in SETS.items():
        print(f"{short:9} {'has a folder' if (raw / each).is_dir() else 'is not there'}: make data DATASET={short}")

@app.command()
def weights(
    output: Path = typer.Option(None, "--output", "-o", help="folder for the weights; default: assets/trained"),
):
    "Fetch the winner's published weights from Kaggle and convert them to a folder for --weights and MODE=trained."
    from mammo_nb.core.settings import read_paths
    from mammo_nb.mammo.tools.fetch import fetch_weights
    output = output or read_paths().assets / "trained"
    differences = fetch_weights(output)
    if differences:
        print(f"detector.onnx at most {differences['detector']:.1g} pixels, ensemble.onnx at most "
              f"{differences['ensemble']:.1g} from torch")
    print(f"the winner's weights are in {output}: mammo-nb predict --weights {output}, or make reproduce MODE=trained "
          f"WEIGHTS={output}")

# %%
assert read_size("2048x1024") == (2048, 1024) and read_size("") == (0, 0)

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

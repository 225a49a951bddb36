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
# # From Python
# > `import mammo_nb`: read a file, predict a folder, get a table.
#
# These functions do what the commands do, for a notebook or a program of yours. This notebook is exported to the
# package's `__init__.py`. Everything heavy is imported inside the functions, so `import mammo_nb` takes milliseconds
# and loads no torch.
#
# ```python
# import mammo_nb
# table = mammo_nb.predict("my_scans", weights="runs/demo/weights")   # one row for each file
# image = mammo_nb.read("my_scans/one.dcm")                           # image.pixels, image.header
# ```

# %%
#| default_exp __init__

# %% tags=["parameters"]
folder = ""    # scans; "" takes the test images and the weights of a small practice run
weights = ""   # folder of weights

# %%
#| export
from pathlib import Path

__version__ = "0.1.0"

# %%
#| hide
import subprocess
import sys

import mammo_nb
from mammo_nb.core.practice import practice
from mammo_nb.core.systems import default_system

# %%
#| hide
if not folder:
    run = practice(default_system(), before="submit")
    folder, weights = run.path("competition/test_images"), run.path("weights/")

# %% [markdown]
# ## One file

# %%
#| export
def _system(name: str):
    "A system by its name, or the default."
    from mammo_nb.core.systems import default_system, find_system
    return find_system(name) if name else default_system()

def read(
    path,              # DICOM, PNG or JPEG file
    frame=None,        # index from 0; required when there are several
    system: str = "",  # a system, whose header is read; "": the default system
):                     # `core.dicom.Image`: pixels, stored values (rows, columns); header; decoder
    "Read a file with its header. Raises a `DicomError` that names the fault, the tag and the remedy."
    from importlib import import_module
    chosen = _system(system)
    module = f"mammo_nb.{chosen.name}.{chosen.read}" if chosen.read else "mammo_nb.core.dicom"
    return import_module(module).read_image(path, frame)

# %% [markdown]
# The pixels are the stored values. `settled` and `grey_levels` make the grey levels that a reader sees, by every step
# that the header describes:

# %%
from mammo_nb.core.grey import grey_levels, settled

file = sorted(Path(folder).rglob("*.dcm"))[0]
image = read(file)
shown = settled(image)
grey, window, notes = grey_levels(shown.pixels, shown.header)
assert grey.shape == (image.header.rows, image.header.columns) and grey.dtype == "uint8"
print(image.header.laterality, image.header.view, image.pixels.shape, image.pixels.dtype, "decoded by", image.decoder)

# %% [markdown]
# ## A folder
# `predict` returns the table that the command writes as `per_image.csv` or `per_slice.csv`. With `output` all tables
# and the previews are kept in that folder.

# %%
#| export
def predict(
    folder,                 # scans in DICOM, PNG or JPEG, nested or flat, or a single file
    weights=None,           # folder of weights; None: assets/trained, then the newest finished run
    output=None,            # folder for tables and previews; None: nothing is kept
    table=None,             # CSV with image_id or file, laterality and view, for files without them
    hash_ids: bool = False, # replace patient and image ids by a digest
    workers=None,           # processes; None: one a core
    system: str = "",       # "": the default system
    report=None,            # JSON file for versions, digests, counts, kinds of errors and seconds
    # engine, device, dicom and html; mammo: force, all_views, frames, heat_maps, fast
    **options,
):                          # pandas.DataFrame, a row for each image; `error` says why a file has no probability
    "Predict every scan of a folder. Not a medical device. Raises a `ProjectError` where nothing can be predicted."
    import tempfile
    from mammo_nb.predicting import predict_scans
    with tempfile.TemporaryDirectory() as scratch:
        return predict_scans(folder, output or scratch, system, report, weights=weights, table=table,
                             hash_ids=hash_ids, workers=workers, **options)

# %%
table = predict(folder, weights, workers=1)
assert len(table) == len(list(Path(folder).rglob("*.dcm"))) and table["probability"].between(0, 1).all()
table[["patient_id", "laterality", "view", "probability"]].head()

# %% [markdown]
# ## Quick to import

# %%
loaded = subprocess.run(
    [sys.executable, "-c", "import sys, mammo_nb; print(sorted({'torch', 'pandas', 'cv2'} & set(sys.modules)))"],
    capture_output=True, text=True, check=True, cwd=Path(mammo_nb.__file__).parents[1]).stdout
assert loaded.strip() == "[]"

# %% [markdown]
# ---
# [← Serving](84_serving.py) · [Command line →](90_cli.py)

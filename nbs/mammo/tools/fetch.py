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
# # Data and weights
# > Published data sets and weights: where they are, which terms have to be accepted, and whether they are complete.
#
# The winner trained on six data sets of five publishers, each with its own way of access; CBIS-DDSM was not among them.
# Only the competition is fetched by this module. For the other sets it prints what the user has to do, and checks the
# result. The winner's trained networks are on Kaggle as pickles. They are converted to files that contain no code.

# %%
#| default_exp mammo.tools.fetch

# %%
#| export
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_nb.core.backends import read_sidecar
from mammo_nb.core.engines import export_checked
from mammo_nb.core.ensembles import Ensemble
from mammo_nb.core.fetch import FetchError, download, need_space
from mammo_nb.core.files import read_json, sha256, write_json
from mammo_nb.core.kaggle import STAGING, connect, fetch_competition, fetch_files
from mammo_nb.core.networks import create_network, load_weights, save_weights
from mammo_nb.mammo.datasets import read_set
from mammo_nb.mammo.detector import convert_detector
from mammo_nb.mammo.reading.labels import DatasetError
from mammo_nb.mammo.reading.sources import READERS, SMALL, how_to_get, totals
from mammo_nb.mammo.recipes import Crops, Engines

# %%
#| hide
import tempfile
from argparse import Namespace
from shutil import copyfile
from types import SimpleNamespace

import matplotlib.pyplot as plt
import torch

from mammo_nb.core.engines import load_engine
from mammo_nb.core.files import write_text
from mammo_nb.core.yolox import create_yolox

# %% tags=["parameters"]
raw = ""                        # folder of the data sets, `raw` of settings.ini; "" makes one with a part of a set
architecture = "test_convnext"  # small architecture that replaces the winner's large one below
size = (96, 64)                 # height, width of its input, in pixels

# %% [markdown]
# ## The data sets
# The registry in `reading/sources` states for each set where it is published and which terms have to be accepted. This
# is a reminder and no legal advice: the publisher's own page on the day of the download is binding.

# %%
#| export
COMPETITION = "rsna-breast-cancer-detection"   # the only set that a program may fetch
BYTES = 315_000_000_000                        # size of its unpacked files, in bytes
# short name -> folder below raw
SETS = {"rsna": COMPETITION, **{name: name for name in READERS if name not in (COMPETITION, "own", SMALL)}}

def set_name(
    name: str,   # a key of SETS, or the name of the folder
) -> str:        # a key of READERS
    "Give the full name of a published data set. Raises FetchError for an unknown name."
    if name not in (*SETS, COMPETITION):
        raise FetchError(f"Unknown data set {name!r}. Choose one of {', '.join(SETS)}.")
    return SETS.get(name, name)

# %% [markdown]
# ## Checking a set
# The labels are read as for a training. The images that they name must exist, and the numbers of patients, images and
# positives must be the published ones. No image is opened; `mammo-nb check` does that.

# %%
#| export
def check_set(
    name: str,   # as for `set_name`
    raw: Path,   # `raw` of settings.ini
) -> dict:      # set; folder; found, from `totals`, None for unreadable labels; problems, empty for a complete set
    "Check whether a data set is complete."
    name = set_name(name)
    folder = Path(raw) / name
    problems, found = [], None
    if (folder / STAGING).exists():
        problems.append("the download is not finished")
    try:
        labels = read_set(name, folder)
    except DatasetError as e:
        problems.append(str(e).removeprefix(f"{name}: ") if folder.is_dir() else f"{folder} does not exist")
    else:
        found = totals(name, labels)
        missing = [f for f in labels["file"] if not (folder / f).is_file()]
        if missing:
            problems.append(f"{len(missing)} of {len(labels)} images are missing, such as {missing[0]}")
        problems += [
            f"{row.found} {row.what}, {row.published} are published" for row in found.itertuples()
            if pd.notna(row.published) and row.found != row.published
        ]
    return {"set": name, "folder": folder, "found": found, "problems": problems}

# %%
if not raw:
    raw = Path(tempfile.mkdtemp()) / "raw"
    write_text(raw / COMPETITION / "train.csv",
               "patient_id,image_id,laterality,view,cancer\n1,11,L,CC,0\n1,12,R,CC,1\n")
    write_text(raw / COMPETITION / "train_images" / "1" / "11.dcm", "")
state = check_set("rsna", raw)
for problem in state["problems"]:
    print(problem)
state["found"]

# %% [markdown]
# The competition is fetched unless it is complete. For every other set, the way to get it is printed.

# %%
#| export
def fetch_set(
    name: str,   # as for `set_name`
    raw: Path,   # `raw` of settings.ini
    api=None,    # from `connect`; None: sign in if something has to be fetched
) -> dict:       # as from `check_set`
    "Fetch a data set if a program may do that, and check it. Raises FetchError."
    state = check_set(name, raw)
    if state["problems"] and state["set"] == COMPETITION:
        fetch_competition(api or connect(), COMPETITION, state["folder"], BYTES)
        state = check_set(name, raw)
    return state

def print_set(
    state: dict,  # from `check_set`
) -> int:         # 0 if the set is complete, else 1
    "Print the numbers and problems of a set, and how to get it if it is not complete."
    if state["problems"]:
        print(f"{how_to_get(state['set'])}\n  put it into {state['folder']}")
    if state["found"] is not None:
        print(state["found"].to_string(index=False))
    for problem in state["problems"]:
        print(f"{state['set']}: {problem}")
    if not state["problems"]:
        print(f"{state['set']} is complete. Next: mammo-nb check --dataset {state['set']}")
    return int(bool(state["problems"]))

# %%
assert print_set(fetch_set("vindr", raw)) == 1

# %% [markdown]
# ## The winner's networks
# They are four ConvNeXt-small and one YOLOX-nano. The winner's code has the MIT licence; the licence of the weights is
# on the page of the data set. Each file is a training checkpoint. Its EMA weights are the ones that won, and its other
# weights must not be used. A file does not show that the network has max pooling, so this is stated here.

# %%
#| export
PUBLISHED = "dangnh0611/rsna-breast-cancer-detection-best-ckpts"
CLASSIFIERS = [f"best_convnext_fold_{k}.pth.tar" for k in range(4)]
DETECTOR = "yolox_nano_416_roi_torch.pth"
NETWORK, SIZE = "convnext_small.fb_in22k_ft_in1k_384", (2048, 1024)
THRESHOLD = 0.31   # probability threshold of the winning submission

def convert_classifier(
    checkpoint: Path,       # one of CLASSIFIERS
    path: Path,             # NAME.safetensors, the file to write
    network: str = NETWORK, # timm architecture
):                          # the network, a torch module in evaluation mode
    "Convert a published classifier to safetensors and JSON."
    model = create_network(network, num_classes=1, global_pool="max").eval()
    entry = load_weights(model, checkpoint).get("entry", "")
    save_weights(model, path, {
        "network": network, "global_pool": "max", "source": Path(checkpoint).name, "entry": entry,
        "demonstration": False
    })
    return model

# %% [markdown]
# The ensemble gets crops that were prepared as the winner prepared them, including the defects, and uses the winner's
# threshold. The predictions of the graph are compared with those of torch on drawn pictures, because a user need not
# have other pictures.

# %%
#| export
def drawn_pictures(
    size: tuple[int, int],  # height, width
    count: int = 2,         # number of pictures
) -> np.ndarray:            # uint8 (count, height, width)
    "Draw bright half discs with spots, on which two forms of a network are compared."
    rng, (rows, columns) = np.random.default_rng(0), np.mgrid[:size[0], :size[1]].astype(np.float32)
    disc = np.clip(1.2 - np.hypot((rows / size[0] - .5) * 2.2, columns / size[1] * 1.2), 0, 1)

    def spot(r: float, c: float, w: float) -> np.ndarray:
        return np.exp(-((rows - r * size[0])**2 + (columns - c * size[1] * .6)**2) / (2 * (w * size[1])**2))

    spots = [sum(map(spot, rng.random(6), rng.random(6), rng.uniform(.01, .1, 6))) for _ in range(count)]
    noise = rng.normal(0, .03, (count, *size))
    return np.clip(255 * (disc * .6 + disc * np.stack(spots) * .5 + noise * (disc > 0)), 0, 255).astype(np.uint8)

def build_ensemble(
    models: list,                 # networks with `.normalization`
    folder: Path,                 # contains detector.onnx and detector.json; gets ensemble.onnx and ensemble.json
    size: tuple[int, int] = SIZE, # height, width of the input, in pixels
    network: str = NETWORK,       # timm architecture, for the record
    threshold: float = THRESHOLD, # probability threshold, for the record
) -> float:                       # largest difference of a probability between the graph and torch
    "Export the published networks as one graph, whose predictions must equal those of torch within the tolerance."
    path, ensemble = Path(folder) / "ensemble.onnx", Ensemble(models, **models[0].normalization)
    metadata = {
        "recipe": "winner", "source": PUBLISHED, "network": network, "threshold": threshold,
        "crops": asdict(Crops(faithful=True)),
        "rebuild": {
            "kind": "timm", "network": network, "global_pool": "max", "mirrored": False,
            "weights": [f"fold_{k}.safetensors" for k in range(len(models))]
        },
        "detector": read_sidecar(path.with_name("detector.onnx"))["sha256"], "demonstration": False
    }
    return export_checked(ensemble, path, drawn_pictures(size), tolerance=Engines.tolerance, metadata=metadata)

# %%
plt.figure(figsize=(4, 3))
plt.imshow(np.hstack(drawn_pictures((256, 128), 4)), cmap="gray", vmin=0, vmax=255)
plt.axis("off");

# %% [markdown]
# The JSON beside each converted file names its source. So a second call has nothing to do, an interrupted call
# continues, and weights of another origin are not overwritten.

# %%
#| export
MADE = ["detector.onnx", "yolox.safetensors", *(f"fold_{k}.safetensors" for k in range(4)), "ensemble.onnx"]

def _made(folder: Path) -> tuple[list, list]:
    "List the files of MADE that exist: those from the published files, and those of another origin."
    ours, others = [], []
    for name in MADE:
        if not (folder / name).is_file():
            continue
        about = (folder / name).with_suffix(".json")
        source = read_json(about).get("source") if about.is_file() else None
        if source in (PUBLISHED, DETECTOR, *CLASSIFIERS):
            ours.append(name)
        else:
            others.append(name)
    return ours, others

def convert_weights(
    folder: Path,                  # contains CLASSIFIERS and DETECTOR; gets MADE, each with its JSON
    network: str = NETWORK,        # timm architecture of the classifiers
    size: tuple[int, int] = SIZE,  # height, width of their input, in pixels
    detector_size: int = 416,      # side of the detector's input, in pixels
) -> dict:                         # largest differences from torch: detector, in pixels; ensemble, in probability
    "Convert the winner's published files to a folder that can predict."
    folder = Path(folder)
    # a published file holds three sets of weights; the converted files hold two
    need_space(folder, sum((folder / name).stat().st_size for name in CLASSIFIERS), "converting the weights")
    detector = convert_detector(folder / DETECTOR, folder, detector_size)
    models = [
        convert_classifier(folder / name, folder / f"fold_{k}.safetensors", network)
        for k, name in enumerate(CLASSIFIERS)
    ]
    return {"detector": detector, "ensemble": build_ensemble(models, folder, size, network)}

# %% [markdown]
# The recipe `winner_roi` starts from YOLOX's own weights, which are in that project's release on GitHub. The release
# states no digest. The digest below was published by two other projects; we have not compared it with the file.

# %%
#| export
COCO = {
    "name": "yolox_nano.pth",
    "url": "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/yolox_nano.pth",
    "sha256": "cd28f55fbbc1829f99d9ac9b38a16d259a22889739c8728ea877610201feff7b"
}

def _record(folder: Path, sources: dict):
    """Record in origin.json where fetched files came from, with their size and digest. The winner's files have no
    published digests."""
    path = folder / "origin.json"
    known = read_json(path) if path.is_file() else {}
    new = {}
    for name, source in sources.items():
        file = folder / name
        if name not in known and file.is_file():
            new[name] = {"from": source, "bytes": file.stat().st_size, "sha256": sha256(file)}
    if new:
        write_json(path, {**known, **new})

def fetch_weights(
    folder: Path,                  # gets all files: assets/trained
    api=None,                      # from `connect`; None: sign in if something has to be fetched
    network: str = NETWORK,        # as in `convert_weights`
    size: tuple[int, int] = SIZE,
    detector_size: int = 416,
) -> dict:                         # differences from `convert_weights`; {} if there was nothing to convert
    """Fetch and convert the weights of the winner and of YOLOX. Files that exist are kept. Raises FetchError if the
    folder holds weights of another origin."""
    folder = Path(folder)
    ours, others = _made(folder)
    if others:
        raise FetchError(
            f"{folder} has {', '.join(others)} of another origin. Move these files away, or name another folder with "
            "--output."
        )
    differences = {}
    wanted = [*CLASSIFIERS, DETECTOR]
    if ours != MADE:
        if not all((folder / name).is_file() for name in wanted):
            fetch_files(api or connect(), PUBLISHED, wanted, folder)
        _record(folder, dict.fromkeys(wanted, f"https://www.kaggle.com/datasets/{PUBLISHED}"))
        differences = convert_weights(folder, network, size, detector_size)
    if not (folder / COCO["name"]).is_file():
        download(COCO["url"], folder / COCO["name"], COCO["sha256"])
    _record(folder, {COCO["name"]: COCO["url"]})
    return differences

# %% [markdown]
# The example replaces the data set by a folder. Its networks are of the same kinds, but small and untrained, in files
# with the structure of the winner's files:

# %%
shelf, trained = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp()) / "trained"
for k, name in enumerate(CLASSIFIERS):
    averaged, last = (create_network(architecture, global_pool="max", seed=seed) for seed in (k, 99))
    torch.nn.init.normal_(averaged.get_classifier().weight, std=2, generator=torch.Generator().manual_seed(k))
    torch.save(
        {
            "epoch": 8, "arch": architecture, "state_dict": last.state_dict(), "state_dict_ema": averaged.state_dict(),
            "metric": np.float64(.5), "args": Namespace(lr=3e-3)
        }, shelf / name)
torch.save({"start_epoch": 400, "model": create_yolox().state_dict(), "best_ap": .96}, shelf / DETECTOR)

class Shelf:
    def with_retry(self, function):
        return function
    def dataset_list_files(self, source, page_token, page_size):
        return SimpleNamespace(
            files=[SimpleNamespace(name=p.name, total_bytes=p.stat().st_size) for p in shelf.iterdir()],
            next_page_token="")
    def dataset_download_file(self, source, name, path, quiet):
        copyfile(shelf / name, Path(path, name))

trained.mkdir()
write_text(trained / COCO["name"], "")   # exists already, so that nothing is downloaded
differences = fetch_weights(trained, Shelf(), architecture, size, 64)
assert fetch_weights(trained, None, architecture, size, 64) == {}   # nothing to do, and no request was sent
print(f"detector {differences['detector']:.1g} pixels, ensemble {differences['ensemble']:.1g} from torch")

# %% [markdown]
# ## What came out
# A folder for `make reproduce MODE=trained WEIGHTS=assets/trained` and for `mammo-nb predict`. Its ensemble gives the
# predictions of the EMA weights:

# %%
pictures = drawn_pictures(size, 8)
engine = load_engine(trained / "ensemble.onnx")
models = [create_network(architecture, global_pool="max") for _ in CLASSIFIERS]
for model, name in zip(models, CLASSIFIERS):
    model.load_state_dict(torch.load(shelf / name, weights_only=False)["state_dict_ema"])
reference = load_engine(Ensemble(models, **models[0].normalization))(pictures)
assert np.abs(engine(pictures) - reference).max() < 1e-4 and reference.std() > .01
assert engine.metadata["threshold"] == .31 and Crops(**engine.metadata["crops"]).faithful
assert engine.metadata["detector"] == sha256(trained / "detector.onnx")
pd.DataFrame([{"file": p.name, "kB": round(p.stat().st_size / 1e3)} for p in sorted(trained.iterdir())])

# %% [markdown]
# Weights of another origin are not changed:

# %%
write_json(trained / "ensemble.json", {"recipe": "demo"})
try:
    fetch_weights(trained)
except FetchError as e:
    print(str(e).replace(str(trained), "assets/trained"))

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

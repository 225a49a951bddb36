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
# # Data and weights
# > What others have published: where it is, what has to be accepted first, and whether it is all there.
#
# The winner trained on six data sets of five publishers, and each publisher has its own door. One of them has an
# interface that a program may use, Kaggle; for the others the honest help is a list of what to do and a look at the
# result. His trained networks are on Kaggle too, as pickles; they become files that run no code.

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
from mammo_nb.core.fetch import STAGING, FetchError, connect, download, fetch_competition, fetch_files, need_space
from mammo_nb.core.files import read_json, sha256, write_json
from mammo_nb.core.networks import create_network, load_weights, save_weights
from mammo_nb.mammo.datasets import read_set
from mammo_nb.mammo.detector import convert_detector
from mammo_nb.mammo.recipes import Crops, Engines
from mammo_nb.mammo.reading.sources import READERS, DatasetError, how_to_get, totals

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
raw = ""                        # where data sets are, `raw` of settings.ini; "" makes a folder with a piece of one
architecture = "test_convnext"  # of the networks that stand in for the winner's, which are large
size = (96, 64)                 # height, width of their input, pixels

# %% [markdown]
# ## Six data sets
# What each is, where it is to be had and what has to be accepted stands with the readers in `reading/sources`. Licences
# there are a reminder and no advice: what binds is the publisher's own page on the day of the download.

# %%
#| export
COMPETITION = "rsna-breast-cancer-detection"   # the one that a program may fetch
BYTES = 315_000_000_000                        # of its files, unpacked
# short name -> folder below raw
SETS = {"rsna": COMPETITION, **{name: name for name in READERS if name not in (COMPETITION, "own")}}

def set_name(
    name: str,   # a key of SETS, or the folder's name
) -> str:        # a key of READERS
    "The full name of a published data set."
    if name not in {**SETS, COMPETITION: ""}:
        raise FetchError(f"No data set {name!r}. There are {', '.join(SETS)}.")
    return SETS.get(name, name)

# %% [markdown]
# ## What is there
# The labels are read as a training would read them, the images that they name are looked for, and all is counted
# against what is published. No image is opened; that is what `mammo-nb check` does.

# %%
#| export
def check_set(
    name: str,   # as for `set_name`
    raw: Path,   # `raw` of settings.ini
# set, folder, found: a table as from sources.totals, or None; problems: sentences, none if the set is whole
) -> dict:
    "What of a data set is there."
    name = set_name(name)
    folder, problems, found = Path(raw) / name, [], None
    if (folder / STAGING).exists():
        problems.append("its download is unfinished")
    try:
        labels = read_set(name, folder)
    except DatasetError as e:
        problems.append(str(e).removeprefix(f"{name}: ") if folder.is_dir() else f"{folder} is not there")
    else:
        found = totals(name, labels)
        missing = [f for f in labels["file"] if not (folder / f).is_file()]
        if missing:
            problems.append(f"{len(missing)} of {len(labels)} images are not there, such as {missing[0]}")
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
# What can be fetched is fetched, unless it is there already; for the rest it is said how to get it.

# %%
#| export
def fetch_set(
    name: str,   # as for `set_name`
    raw: Path,   # `raw` of settings.ini
    api=None,    # core.fetch.connect(); None: sign in if need be
) -> dict:       # as from `check_set`
    "Fetch what may be fetched, then look at what is there."
    state = check_set(name, raw)
    if state["problems"] and state["set"] == COMPETITION:
        fetch_competition(api or connect(), COMPETITION, state["folder"], BYTES)
        state = check_set(name, raw)
    return state

def print_set(
    state: dict,  # as from `check_set`
) -> int:         # 0 if it is whole, else 1
    "Say what is there, and how to get what is not."
    if state["problems"]:
        print(f"{how_to_get(state['set'])}\n  to be put into {state['folder']}")
    if state["found"] is not None:
        print(state["found"].to_string(index=False))
    for problem in state["problems"]:
        print(f"{state['set']}: {problem}")
    if not state["problems"]:
        print(f"{state['set']} is there. Next: mammo-nb check --dataset {state['set']}")
    return int(bool(state["problems"]))

# %%
assert print_set(fetch_set("vindr", raw)) == 1

# %% [markdown]
# ## The winner's networks
# Four ConvNeXt-small and a YOLOX-nano; his code has the MIT licence, and the page of the data set says what holds for
# the weights. Each file is a training state: the averaged weights (EMA) in it are the ones that won, the others load as
# well and are not. Pooling by maximum leaves no trace in a file, so it is written here.

# %%
#| export
PUBLISHED = "dangnh0611/rsna-breast-cancer-detection-best-ckpts"
CLASSIFIERS = [f"best_convnext_fold_{k}.pth.tar" for k in range(4)]
DETECTOR = "yolox_nano_416_roi_torch.pth"
NETWORK, SIZE = "convnext_small.fb_in22k_ft_in1k_384", (2048, 1024)
THRESHOLD = 0.31   # of the submission that won

def convert_classifier(
    checkpoint: Path,       # one of CLASSIFIERS
    path: Path,             # NAME.safetensors
    network: str = NETWORK, # timm architecture
):                          # the network
    "A published classifier as safetensors and JSON."
    model = create_network(network, num_classes=1, global_pool="max").eval()
    entry = load_weights(model, checkpoint).get("entry", "")
    save_weights(model, path, {
        "network": network, "global_pool": "max", "source": Path(checkpoint).name, "entry": entry,
        "demonstration": False
    })
    return model

# %% [markdown]
# The ensemble looks at crops that were prepared as the winner prepared them, defects included, and compares with his
# threshold. Whether the graph says what torch says is tried on drawn pictures: at hand there need not be any others.

# %%
#| export
def drawn_pictures(
    size: tuple[int, int],  # height, width
    count: int = 2,
) -> np.ndarray:            # uint8 (count, height, width)
    "Bright half discs with spots on them, for comparing two forms of a network."
    rng, (rows, columns) = np.random.default_rng(0), np.mgrid[:size[0], :size[1]].astype(np.float32)
    disc = np.clip(1.2 - np.hypot((rows / size[0] - .5) * 2.2, columns / size[1] * 1.2), 0, 1)
    spots = [
        sum(
            np.exp(-((rows - r * size[0])**2 + (columns - c * size[1] * .6)**2) / (2 * (w * size[1])**2))
            for r, c, w in zip(rng.random(6), rng.random(6), rng.uniform(.01, .1, 6))) for _ in range(count)
    ]
    noise = rng.normal(0, .03, (count, *size))
    return np.clip(255 * (disc * .6 + disc * np.stack(spots) * .5 + noise * (disc > 0)), 0, 255).astype(np.uint8)

def build_ensemble(
    models: list,                 # networks with `.normalization`
    folder: Path,                 # has detector.onnx and detector.json; gets ensemble.onnx and ensemble.json
    size: tuple[int, int] = SIZE, # height, width of their input, pixels
    network: str = NETWORK,       # timm architecture, for the record
    threshold: float = THRESHOLD,
) -> float:                       # largest difference of a probability against torch
    "Published networks as one graph, if it says what torch says."
    path, ensemble = Path(folder) / "ensemble.onnx", Ensemble(models, **models[0].normalization)
    return export_checked(
        ensemble, path, drawn_pictures(size), tolerance=Engines.tolerance, metadata={
            "recipe": "winner", "source": PUBLISHED, "network": network, "threshold": threshold, "crops": asdict(
                Crops(faithful=True)), "rebuild": {
                    "kind": "timm", "network": network, "global_pool": "max", "mirrored": False,
                    "weights": [f"fold_{k}.safetensors" for k in range(len(models))]
                }, "detector": read_sidecar(path.with_name("detector.onnx"))["sha256"], "demonstration": False
        })

# %%
plt.figure(figsize=(4, 3))
plt.imshow(np.hstack(drawn_pictures((256, 128), 4)), cmap="gray", vmin=0, vmax=255)
plt.axis("off");

# %% [markdown]
# Every JSON beside a file that is made names its source. So a second call has nothing to do, one that was interrupted
# goes on, and weights of another origin are not overwritten.

# %%
#| export
MADE = ["detector.onnx", "yolox.safetensors", *(f"fold_{k}.safetensors" for k in range(4)), "ensemble.onnx"]

def _made(folder: Path) -> tuple[list, list]:
    "Those of MADE that are of the published files, and those that are of others."
    there = [n for n in MADE if (folder / n).is_file()]
    source = {
        n: read_json(p).get("source") if (p := (folder / n).with_suffix(".json")).is_file() else None for n in there
    }
    ours = [n for n in there if source[n] in (PUBLISHED, DETECTOR, *CLASSIFIERS)]
    return ours, [n for n in there if n not in ours]

def convert_weights(
    folder: Path,                  # has CLASSIFIERS and DETECTOR; gets MADE, each with its JSON
    network: str = NETWORK,        # timm architecture of the classifiers
    size: tuple[int, int] = SIZE,  # height, width of their input, pixels
    detector_size: int = 416,      # side of the detector's input, pixels
) -> dict:                         # largest differences from torch: detector, pixels; ensemble, probability
    "The winner's published files as a folder that predicts."
    folder = Path(folder)
    # they hold three sets of numbers each, of which two are made
    need_space(folder, sum((folder / name).stat().st_size for name in CLASSIFIERS), "converting the weights")
    detector = convert_detector(folder / DETECTOR, folder, detector_size)
    models = [
        convert_classifier(folder / name, folder / f"fold_{k}.safetensors", network)
        for k, name in enumerate(CLASSIFIERS)
    ]
    return {"detector": detector, "ensemble": build_ensemble(models, folder, size, network)}

# %% [markdown]
# YOLOX's own weights, from which `winner_roi` starts, come from that project's release on GitHub. It states no digest;
# the one here is what two public projects have noted of the file, and it has not been compared with the file by us.

# %%
#| export
COCO = {
    "name": "yolox_nano.pth",
    "url": "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/yolox_nano.pth",
    "sha256": "cd28f55fbbc1829f99d9ac9b38a16d259a22889739c8728ea877610201feff7b"
}

def _record(folder: Path, sources: dict):
    """Note in origin.json where fetched files came from and what they were: nobody has published the digests of the
    winner's."""
    path = folder / "origin.json"
    known = read_json(path) if path.is_file() else {}
    new = {
        n: {"from": f, "bytes": (folder / n).stat().st_size, "sha256": sha256(folder / n)} for n, f in sources.items()
        if n not in known and (folder / n).is_file()
    }
    if new:
        write_json(path, {**known, **new})

def fetch_weights(
    folder: Path,                  # gets all of it: assets/trained
    api=None,                      # core.fetch.connect(); None: sign in if need be
    network: str = NETWORK,        # as in `convert_weights`
    size: tuple[int, int] = SIZE,
    detector_size: int = 416,
) -> dict:                         # differences as from `convert_weights`; {} if there was nothing to convert
    "The winner's weights and YOLOX's, fetched and converted; what is there is kept."
    folder = Path(folder)
    ours, others = _made(folder)
    if others:
        raise FetchError(
            f"{folder} has {', '.join(others)} of another origin. Move them away, or name another folder with --output."
        )
    differences, wanted = {}, [*CLASSIFIERS, DETECTOR]
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
# A data set made of a folder, with networks of the same kinds but small and untrained, in files built like the
# winner's:

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
write_text(trained / COCO["name"], "")   # there already, so that nothing is asked of the network
differences = fetch_weights(trained, Shelf(), architecture, size, 64)
assert fetch_weights(trained, None, architecture, size, 64) == {}   # nothing to do, and nobody was asked
print(f"detector {differences['detector']:.1g} pixels, ensemble {differences['ensemble']:.1g} from torch")

# %% [markdown]
# ## What came out
# A folder for `make reproduce MODE=trained WEIGHTS=assets/trained` and `mammo-nb predict`. Its ensemble says what the
# averaged weights say:

# %%
pictures = drawn_pictures(size, 8)
engine = load_engine(trained / "ensemble.onnx")
models = [create_network(architecture, global_pool="max") for _ in CLASSIFIERS]
for model, name in zip(models, CLASSIFIERS):
    model.load_state_dict(torch.load(shelf / name, weights_only=False)["state_dict_ema"])
reference = load_engine(Ensemble(models, **models[0].normalization))(pictures)
assert np.abs(engine(pictures) - reference).max() < 1e-4 and reference.std() > .01
assert engine.metadata["threshold"] == .31 and Crops(
    **engine.metadata["crops"]).faithful and engine.metadata["detector"] == sha256(trained / "detector.onnx")
pd.DataFrame([{"file": p.name, "kB": round(p.stat().st_size / 1e3)} for p in sorted(trained.iterdir())])

# %% [markdown]
# Weights of somebody else stay as they are:

# %%
write_json(trained / "ensemble.json", {"recipe": "demo"})
try:
    fetch_weights(trained)
except FetchError as e:
    print(str(e).replace(str(trained), "assets/trained"))

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
# # Providers
# > All providers of an ensemble, tried in order; one that is too far from torch is excluded.
#
# A submission must not fail because of one package. So the providers of an ensemble are tried in an order, the fast
# ones first: on a GPU the engines that were built for it, then ONNX Runtime, then torch; on a CPU ONNX Runtime or
# OpenVINO, then torch. A provider is taken if its package is there, if its file is whole, of these weights and for this
# machine, and if it gives for the probe inputs what the networks gave when they were exported. The reasons against the
# others are kept.

# %%
#| default_exp core.providers

# %% tags=["parameters"]
architecture = "resnet10t"  # a timm network, a small one
size = (96, 64)             # height, width of its input, pixels
folds = 2                   # networks in the ensemble

# %%
#| export
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import torch

from mammo_nb.core.engines import Engine, largest_difference, load_engine, probe_inputs
from mammo_nb.core.ensembles import Ensemble, rebuild, weights_digest
from mammo_nb.core.files import read_json, write_json
from mammo_nb.core.graphs import keep_columns, write_mixed
from mammo_nb.core.sidecars import EngineError, carried, read_entries, read_sidecar, read_tensors, write_graph
from mammo_nb.core.tensorrt import build_tensorrt

# %%
#| hide
import shutil
import tempfile

import pandas as pd

from mammo_nb.core.backends import bright_spots
from mammo_nb.core.engines import export_onnx, parity
from mammo_nb.core.ensembles import drawn_ensemble
from mammo_nb.core.networks import save_weights

# %% [markdown]
# ## In order
# A provider is named after its package and precision, such as `openvino-bf16`, or is the file of an engine. 16 bits are
# for GPUs, unless they are requested. How far a result in 16 bits may be from float32 is set once for all.

# %%
#| export
LIMITS = {"fp32": 1e-4, "bf16": 5e-3, "fp16": 5e-3}   # largest difference of a probability against float32 in torch
PROVIDERS = {  # device -> names, in the order in which they are tried
    # after the engines in the folder
    "cuda": ("onnxruntime-fp16", "compiled-fp16", "torch-fp16", "onnxruntime-fp32", "compiled-fp32", "torch-fp32"),
    "cpu": ("openvino-bf16", "onnxruntime-fp32", "openvino-fp32", "compiled-fp32", "torch-fp32"),
}

def open_provider(
    folder: Path,
    name: str,             # NAME.onnx, NAME.fp16.onnx
    metadata: dict,        # NAME.json
    provider: str,         # such as 'openvino-bf16', or the file of an engine
    device: str,           # 'cpu', 'cuda', 'cuda:1'
    threads: int | None,   # on the CPU; None = one for each core
) -> Engine:
    "Open one provider, without a check of its results."
    backend, _, precision = provider.rpartition("-")
    if backend in ("torch", "compiled"):
        if threads:
            torch.set_num_threads(threads)
        return replace(load_engine(rebuild(folder, metadata), backend, None, precision, device), metadata=metadata)
    file = f"{name}.fp16.onnx" if precision == "fp16" else f"{name}.onnx"
    if provider.endswith(".engine"):
        file, backend = provider, "auto"
        precision = "fp16" if read_sidecar(folder / file).get("precision") == "mixed" else "fp32"
    engine = load_engine(folder / file, backend, threads, "fp32" if precision == "fp16" else precision, device)
    if engine.metadata["weights_sha256"] != metadata["weights_sha256"]:
        raise EngineError(f"{file} was made of other weights than {name}.onnx: make it again.")
    return replace(engine, metadata=metadata, precision=precision, device=device)

def prove(
    engine: Engine,
) -> None:
    "Raise EngineError unless an engine gives for the probe inputs what the networks gave at the export."
    probe = engine.metadata["probe"]
    expected = {k: np.asarray(v) for k, v in probe.items()} if isinstance(probe, Mapping) else np.asarray(probe)
    limit = LIMITS[engine.precision]
    difference = largest_difference(engine(probe_inputs(engine.inputs)), expected)
    if not difference <= limit:
        raise EngineError(f"for the probe inputs it differs by {difference:.2g} from the results at the export, more "
                          f"than {limit:g}.")

def open_ensemble(
    folder: Path,            # NAME.json, some of NAME.onnx, NAME.fp16.onnx, NAME.*.engine, and the weights of the JSON
    name: str = "ensemble",
    providers: str | Sequence[str] = "auto",  # names to try in this order; 'auto': those of PROVIDERS
    device: str = "auto",           # 'cpu', 'cuda', 'cuda:1'; 'auto': the first GPU, if there is one
    reduced: bool | None = None,    # whether 'auto' may compute in 16 bits; None: on a GPU
    threads: int | None = None,     # on the CPU; None = one for each core
) -> Engine:                        # its `refused` has the providers that were not taken, and why
    "Open an ensemble with the first provider that works on this machine. Raises EngineError if none does."
    folder = Path(folder)
    refused = []
    metadata = read_entries(folder / f"{name}.json")
    if not {"probe", "inputs", "outputs"} <= {*metadata}:
        raise EngineError(f"{name}.json of {folder} is of an older export: run the stage that wrote it again.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if reduced is None:
        reduced = device != "cpu"
    if providers == "auto":
        order = _auto_order(folder, name, device, reduced)
    else:
        order = [(p, "cpu" if p.startswith("openvino") else device) for p in providers]
    for provider, place in order:
        try:
            if reason := metadata.get("refused", {}).get(provider):
                raise EngineError(reason)
            engine = open_provider(folder, name, metadata, provider, place, threads)
            if providers == "auto" and not reduced and engine.precision != "fp32":
                raise EngineError("it computes in 16 bits.")
            prove(engine)
            return replace(engine, refused=tuple(refused))
        except Exception as e:  # compilers, drivers and packages have errors of their own, with nothing in common
            reason = e if isinstance(e, EngineError) else f"{type(e).__name__}: {str(e).strip()[:200]}"
            refused.append(f"{provider} on {place}: {reason}")
    raise EngineError("\n  ".join([f"No provider can run {name} of {folder}:", *refused]))

def _auto_order(folder: Path, name: str, device: str, reduced: bool) -> list[tuple[str, str]]:
    "Providers and their devices, the fast ones first; where there is a GPU, the CPU comes last."
    order = [(p, "cpu") for p in PROVIDERS["cpu"]]
    if device != "cpu":
        engines = [f.name for f in sorted(folder.glob(f"{name}.*.engine"))]
        order = [(p, device) for p in (*engines, *PROVIDERS["cuda"])] + order
    return [(p, d) for p, d in order if reduced or p.endswith(("fp32", ".engine"))]

# %% [markdown]
# A user may name the package and the device. What is missing is said before a file is read.

# %%
#| export
ENGINES = {"auto": (), "torch": ("torch",), "onnxruntime": ("onnxruntime",), "openvino": ("openvino",),
           "tensorrt": ("tensorrt", "tensorrt_rtx")}   # names of `--engine` -> packages, of which one is needed

def _built(path: Path) -> list[str]:
    "The TensorRT engines of NAME.onnx, by name."
    return sorted(f.name for f in path.parent.glob(f"{path.stem}.*.engine"))

def check_engine(
    folder: Path,            # of the weights
    names: Sequence[str],    # of the ensembles in it
    engine: str = "auto",    # a key of ENGINES
    device: str = "cpu",     # cpu, cuda or cuda:1
):
    "Raise EngineError for a package or a device that is not there, with the remedy."
    if engine not in ENGINES:
        raise EngineError(f"No engine {engine!r}: it is {', '.join(ENGINES)}.")
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or ":" in device and not (kind == "cuda" and number.isdecimal()):
        raise EngineError(f"No device {device!r}: it is cpu, cuda or cuda:1.")
    if engine == "tensorrt" and kind == "cpu":
        raise EngineError("TensorRT computes on a GPU: add --device cuda.")
    if engine == "openvino" and kind == "cuda":
        raise EngineError("OpenVINO computes on the CPU: leave --device cuda out.")
    if ENGINES[engine] and not any(map(find_spec, ENGINES[engine])):
        raise EngineError(f"{engine} is not installed: pip install {ENGINES[engine][-1].replace('_', '-')}")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise EngineError(f"torch finds no GPU {device} on this machine: use --device cpu.")
    for name in names:
        if engine == "tensorrt" and not _built(Path(folder) / f"{name}.onnx"):
            raise EngineError(f"{folder} has no {name}.*.engine. An engine is built for one kind of GPU: "
                              'make reproduce SET="engines.targets=SM75".')

# %%
for engine, device in (("caffe", "cpu"), ("torch", "gpu"), ("tensorrt", "cpu"), ("openvino", "cuda")):
    try:
        check_engine(Path("weights"), ["ensemble"], engine, device)
    except EngineError as e:
        print(e)
    else:
        raise AssertionError

# %% [markdown]
# Processes of a run share the cores, so each of them opens an ensemble once, for one thread. It is proved like any
# other. What computed and what was refused is told with the results.

# %%
#| export
@lru_cache(maxsize=4)
def _opened(path: Path, engine: str, device: str) -> Engine | EngineError:
    "Open an ensemble on one thread. An error is kept, since it would be the same for the next item."
    if engine == "tensorrt":
        order = _built(path)
    elif engine != "auto":
        order = [f"{engine}-fp32"]
    else:
        order = ["onnxruntime-fp32", *(["openvino-fp32"] if device == "cpu" else []), "torch-fp32"]
    try:
        return open_ensemble(path.parent, path.stem, order, device, threads=1)
    except EngineError as e:
        return e

def process_engine(
    path: str,             # NAME.onnx
    engine: str = "auto",  # a key of ENGINES; auto: the first that works, in 32 bits
    device: str = "cpu",   # cpu, cuda or cuda:1
) -> Engine:
    "Open an ensemble once in this process, on one thread. Raises EngineError."
    found = _opened(Path(path), engine, device)
    if isinstance(found, EngineError):
        raise found
    return found

def computed_by(
    engine,      # with `name`, `precision` and `refused`
) -> dict:       # entries for the row of an item
    "What computed, and what was refused, for the table of a run."
    return {"computed": f"{engine.name}, {engine.precision}",
            **({"refused": "\n".join(engine.refused)} if engine.refused else {})}

def names_in(
    table,       # pandas.DataFrame, perhaps with the column `computed`
) -> list[str]:  # such as "onnxruntime, fp32"
    "What has computed the rows of a run."
    return sorted(table["computed"].dropna().unique()) if "computed" in table else []

def print_refused(
    table,       # pandas.DataFrame, perhaps with the column `refused`
):
    "Print which providers were refused in the processes of a run, and why."
    for lines in table["refused"].dropna().unique() if "refused" in table else ():
        print(*[f"not used: {line}" for line in filter(None, lines.split("\n"))], sep="\n")

# %% [markdown]
# Here is an ensemble as a stage would write it, with its weights. Then its graph is damaged, and torch runs it instead.

# %%
ensemble = drawn_ensemble(architecture, folds)
folder = Path(tempfile.mkdtemp())
for k, model in enumerate(ensemble.models):
    save_weights(model, folder / f"fold_{k}.safetensors", {})
about = {"kind": "timm", "network": architecture, "mirrored": False,
         "weights": [f"fold_{k}.safetensors" for k in range(folds)]}
export_onnx(ensemble, folder / "ensemble.onnx", size, {"rebuild": about})
pictures = bright_spots(size, np.random.default_rng(0))
reference = load_engine(ensemble)(pictures)
opened = open_ensemble(folder)
assert parity(opened, load_engine(ensemble), pictures) <= (1e-4 if opened.precision == "fp32" else 5e-2)
print(opened)
(folder / "damaged").mkdir()
for file in folder.glob("*.*"):
    shutil.copy(file, folder / "damaged")
(folder / "damaged" / "ensemble.onnx").write_bytes(b"half of a file")
left = open_ensemble(folder / "damaged", providers=["openvino-fp32", "onnxruntime-fp32", "torch-fp32"], device="cpu")
assert left.name == "torch" and parity(left, load_engine(ensemble), pictures) == 0
for reason in left.refused:
    print(reason)
print_refused(pd.DataFrame([computed_by(left), {}]))

# %% [markdown]
# ## The gate
# Providers are compared with torch on real pictures when the ensemble is written. One that is beyond its limit is noted
# in the JSON, and is not taken after that.

# %%
#| export
def gate(
    folder: Path,
    name: str,                # NAME.json gets the providers that are not to be taken
    given: np.ndarray | Mapping[str, np.ndarray],      # inputs of all providers
    reference: np.ndarray | Mapping[str, np.ndarray],  # the results of torch, in float32
    providers: Sequence[str] = ("onnxruntime-fp32", "openvino-fp32", "openvino-bf16"),
    limits: dict = LIMITS,    # precision -> largest difference of a probability
    device: str = "cpu",      # device that they run on
) -> dict[str, dict]:         # provider -> difference and limit, or why it is unavailable here
    "Compare providers with torch, and note those that are beyond their limit."
    folder = Path(folder)
    found = {}
    metadata = read_json(folder / f"{name}.json")
    for provider in providers:
        try:
            engine = open_provider(folder, name, metadata, provider, device, None)
        except Exception as e:  # as in `open_ensemble`
            found[provider] = {"unavailable": str(e).strip().splitlines()[0]}
            continue
        difference = largest_difference(engine(given), reference)
        limit = limits[engine.precision]
        found[provider] = {"difference": difference, "limit": limit, "within": difference <= limit}
    count = len(given) if isinstance(given, np.ndarray) else len(next(iter(given.values())))
    beyond = {
        p: f"it differed from torch by {f['difference']:.2g} on {count} items, more than {f['limit']:g}."
        for p, f in found.items() if not f.get("within", True)
    }
    others = {p: reason for p, reason in metadata.get("refused", {}).items() if p not in found}
    write_json(folder / f"{name}.json", {**metadata, "refused": {**others, **beyond}})
    return found

# %%
write_mixed(folder / "ensemble.onnx", folder / "ensemble.fp16.onnx")
found = gate(folder, "ensemble", pictures, reference,
             ["onnxruntime-fp32", "onnxruntime-fp16", "openvino-fp32", "openvino-bf16", "torch-bf16"],
             {**LIMITS, "fp16": 1e-9})
try:
    open_ensemble(folder, providers=["onnxruntime-fp16"])
except EngineError as e:
    print(e)
else:
    raise AssertionError
pd.DataFrame(found).T

# %% [markdown]
# ## Fewer networks, and engines
# A smaller ensemble is the same file with networks left out. An engine is the mixed graph, compiled for one kind of
# GPU, which `tensorrt_rtx` does without such a GPU (see [TensorRT](52_tensorrt.py)). It is named after its GPU,
# `ensemble.SM75.engine`, so that many may lie in one folder and each machine finds its own.

# %%
#| export
def write_smaller(
    ensemble: Ensemble,
    path: Path,            # NAME.onnx of this ensemble
    path_smaller: Path,    # gets a JSON of its own
    kept: Sequence[int],   # networks that stay, by number
    metadata: dict,        # entries of the JSON that differ
) -> dict:                 # the JSON
    "Leave networks out of an exported ensemble."
    path, kept = Path(path), list(kept)
    of_all = read_sidecar(path)
    model = onnx.load(path)
    keep_columns(model, kept)

    def fewer(probe: list) -> list:
        return [[row[k] for k in kept] for row in probe]

    probe = of_all["probe"]
    own = {
        "folds": len(kept),
        "weights_sha256": weights_digest(ensemble.keep(kept)),
        "probe": {name: fewer(p) for name, p in probe.items()} if isinstance(probe, Mapping) else fewer(probe),
    }
    if "rebuild" in of_all:
        lists = {name: [of_all["rebuild"][name][k] for k in kept] for name in ("weights", "each")
                 if name in of_all["rebuild"]}
        own["rebuild"] = {**of_all["rebuild"], **lists}
    stated = [t for key in ("inputs", "outputs") for t in read_tensors(of_all, key, path.name)]
    return write_graph(model, path_smaller, {**carried(of_all), **own, **metadata}, stated)

def build_engines(
    folder: Path,
    name: str,                                   # NAME.onnx, from which NAME.fp16.onnx is made
    targets: Sequence[str],                      # kinds of GPU, such as SM75, for which NAME.SM75.engine is built
    package: str = "tensorrt_rtx",
    batches: tuple[int, int, int] = (1, 2, 8),   # items at once: fewest, usual, most
    ranges: Mapping[str, tuple[int, int, int]] = {},  # the same for other free dimensions
) -> list[dict]:                                 # their JSONs
    "Build engines of an ensemble, in mixed precision. Raises EngineError."
    folder = Path(folder)
    path, mixed = folder / f"{name}.onnx", folder / f"{name}.fp16.onnx"
    if reason := read_sidecar(path).get("refused", {}).get("onnxruntime-fp16"):
        raise EngineError(f"{name}.fp16.onnx is not good enough to build engines of: {reason}")
    if not mixed.is_file() or read_sidecar(mixed)["fp32_sha256"] != read_sidecar(path)["sha256"]:
        write_mixed(path, mixed)
    sidecars = []
    for target in targets:
        engine = folder / f"{name}.{target}.engine"
        sidecars.append(build_tensorrt(mixed, engine, package=package, target=target, batches=batches, ranges=ranges))
    return sidecars

# %%
smaller = write_smaller(ensemble, folder / "ensemble.onnx", folder / "ensemble_1.onnx", [1], {})
one = open_ensemble(folder, "ensemble_1", device="cpu")
assert smaller["folds"] == 1 and np.abs(one(pictures) - reference[:, 1:]).max() <= 1e-4
gate(folder, "ensemble", pictures, reference, ["onnxruntime-fp16"], {"fp16": 0.05})   # allow it again
try:
    print([f"{e['target']}, batches {e['batches']}" for e in build_engines(folder, "ensemble", ["SM75", "SM86"])])
except EngineError as e:
    print(e)

# %% [markdown]
# ## What came out
# The files of the folder, with the networks and the precision in each:

# %%
rows = []
for file in sorted(folder.glob("*.onnx")):
    entries = read_sidecar(file)
    rows.append({"file": file.name, "networks": entries["folds"], "precision": entries["precision"],
                 "MB": round(file.stat().st_size / 1e6, 1)})
pd.DataFrame(rows)

# %% [markdown]
# ---
# [← Engines](56_engines.py) · [Detection →](58_detection.py)

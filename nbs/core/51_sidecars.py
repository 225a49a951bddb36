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
# # Sidecars
# > A graph is two files: the ONNX, and a JSON that lists its inputs and outputs.
#
# A network takes numbers of one type, in one shape, with the axes in one order. None of this is visible in an array:
# float pictures in 0..1 have the same shape as 8-bit ones, and a frame turned on its side is still a frame. So the
# JSON beside each graph states names, types, shapes and the meaning of the axes, and every array is compared with it.

# %%
#| default_exp core.sidecars

# %% tags=["parameters"]
size = (96, 64)  # height, width of the example's pictures, pixels

# %%
#| export
import hashlib
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import read_json, replacing, sha256, write_json

# %%
#| hide
from dataclasses import replace

import pandas as pd

# %%
#| export
class EngineError(ProjectError):
    "A graph or an engine that cannot be made, read or fed, with the remedy."

# %% [markdown]
# ## Inputs and outputs
# A dimension is a number, or a word where any number fits. A word that occurs twice stands for the same number: with
# `n` pictures go `n` lengths. The layout has one letter for each axis: N items, C channels or classes, D depth, H
# height, W width, L places of a sequence, F the networks (folds) of an ensemble.

# %%
#| export
@dataclass(frozen=True)
class Tensor:
    "One input or output of a graph."
    name: str
    dtype: str                     # NumPy's name, such as 'uint8'
    shape: tuple[int | str, ...]   # a word = any number, the same wherever the word occurs
    layout: str = ""               # a letter for each axis, such as 'NCHW'; "": not stated
    activation: str = ""           # of an output: 'sigmoid', 'softmax', or "" for values as the network gives them
    classes: tuple[str, ...] = ()  # of an output: names along the axis C, or the name of the only class
    also: tuple[str, ...] = ()     # of an input: other types that mean the same numbers and are converted

    def __post_init__(self):
        if self.layout and (len(self.layout) != len(self.shape) or len({*self.layout}) != len(self.layout)):
            raise EngineError(f"The layout {self.layout!r} of {self.name} needs one letter for each of its "
                              f"{len(self.shape)} axes, and no letter twice.")
        if not all(type(n) is int or isinstance(n, str) for n in self.shape):
            raise EngineError(f"The shape of {self.name} is {list(self.shape)}: use whole numbers, and words for free "
                              "axes.")
        axis = self.axis("C")
        length = 1 if axis is None else self.shape[axis]
        if self.classes and isinstance(length, int) and len(self.classes) != length:
            raise EngineError(f"{self.name} names {len(self.classes)} classes for an axis of {length}.")
        if self.activation not in ("", "sigmoid", "softmax"):
            raise EngineError(f"The activation of {self.name} is {self.activation!r}: use 'sigmoid', 'softmax' or ''.")

    def __str__(self) -> str:
        dims = ", ".join(map(str, self.shape))
        if len(self.shape) == 1:
            dims += ","
        return f"{self.name}: {self.dtype} ({dims}) {self.layout}".rstrip()

    def axis(self,
        letter: str,     # of the layout
    ) -> int | None:     # None if the layout lacks it
        "Index of an axis."
        return self.layout.index(letter) if letter in self.layout else None

def tensor_entry(
    tensor: Tensor,
) -> dict:           # what is not stated is left out
    "Describe an input or output as it stands in the JSON."
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(tensor).items() if v or k == "shape"}

def read_tensors(
    metadata: dict,  # NAME.json
    key: str,        # 'inputs' or 'outputs'
    file: str,       # named in the error
) -> tuple[Tensor, ...]:
    "Read the inputs or outputs that a JSON lists. Raises EngineError."
    entries = metadata.get(key)
    if not isinstance(entries, list) or not entries:
        raise EngineError(f"{file} lists no {key}. An older version wrote it: run the stage that wrote it again.")
    try:
        tensors = tuple(Tensor(**{k: tuple(v) if isinstance(v, list) else v for k, v in e.items()}) for e in entries)
        for tensor in tensors:
            np.dtype(tensor.dtype)
        return tensors
    except (TypeError, AttributeError, EngineError) as e:
        raise EngineError(f"{file} describes its {key} wrongly ({e}): write it again with this version.") from e

# %%
pictures = Tensor("images", "uint8", ("n", 1, *size), "NCHW")
lengths = Tensor("lengths", "int64", ("n",), "N")
assert read_tensors({"inputs": [tensor_entry(pictures)]}, "inputs", "example.json") == (pictures,)
print(pictures, lengths, sep="\n")

# %% [markdown]
# Arrays are compared with the list before the computation. OpenVINO would silently convert float pictures to 8-bit
# ones, and ONNX Runtime would not. With the check, every package gives the same error. A network that takes grey levels
# from 0 to 255 as floats may list `uint8` under `also`; then 8-bit pictures are converted.

# %%
#| export
def bind_shape(
    tensor: Tensor,
    array: np.ndarray,
    words: dict[str, tuple[int, str]],  # word -> number and the tensor it came from; gets what this array binds
) -> str:                               # what does not fit; "" if all does
    "Compare one array with its description."
    got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
    if not isinstance(array, np.ndarray) or array.ndim != len(tensor.shape) or str(array.dtype) not in (
            tensor.dtype, *tensor.also):
        return f"got {got}"
    for stated, n in zip(tensor.shape, array.shape):
        if n == 0 or isinstance(stated, int) and stated != n:
            return f"got {got}"
        if isinstance(stated, str) and stated.isidentifier():
            bound, source = words.setdefault(stated, (n, tensor.name))
            if bound != n:
                return f"got {got}, where {stated} is {n}, and {source} has {bound}"
    return ""

def check_inputs(
    tensors: Sequence[Tensor],                     # what the network takes
    given: np.ndarray | Mapping[str, np.ndarray],  # the array of the only input, or arrays by name
    label: str,                                    # name of the network, for the error
) -> tuple[dict[str, np.ndarray], dict]:           # arrays by name, contiguous; numbers bound to words
    "Compare all inputs with their descriptions. Raises EngineError if one does not fit."
    named = given if isinstance(given, Mapping) else {tensors[0].name: given}
    if {*named} != {t.name for t in tensors}:
        got = ", ".join(map(str, named)) if named is given else "one array without a name"
        raise EngineError(f"{label} takes the inputs {', '.join(t.name for t in tensors)}, and got {got}: give a dict "
                          "with an array for each of these names.")
    words = {}
    for tensor in tensors:
        if problem := bind_shape(tensor, named[tensor.name], words):
            least = "; every dimension at least 1" if any(isinstance(n, str) for n in tensor.shape) else ""
            raise EngineError(f"{label} takes {tensor}{least}; {problem}. Give an array of this type and shape.")
    return {t.name: np.ascontiguousarray(named[t.name], t.dtype) for t in tensors}, words

def check_outputs(
    tensors: Sequence[Tensor],    # outputs that the JSON lists
    made: dict[str, np.ndarray],  # arrays by name
    words: dict,                  # from `check_inputs`
    label: str,                   # name of the network, for the error
) -> None:
    "Raise EngineError unless the results have the types and shapes that the JSON lists."
    words = dict(words)
    for tensor in tensors:
        if problem := bind_shape(tensor, made.get(tensor.name), words):
            raise EngineError(f"{label} should give {tensor}; {problem}. Export the network again.")

# %%
given = {"images": np.zeros((3, 1, *size), np.uint8), "lengths": np.array([5, 2, 4])}
assert check_inputs([pictures, lengths], given, "example")[1]["n"][0] == 3
levels = Tensor("images", "float32", ("n", 1, *size), "NCHW", also=("uint8",))
assert check_inputs([levels], given["images"], "example")[0]["images"].dtype == np.float32
for wrong in (given["images"], {**given, "lengths": np.array([5, 2])}, {**given, "images": given["images"] / 255},
              {**given, "images": given["images"].transpose(0, 1, 3, 2)}):
    try:
        check_inputs([pictures, lengths], wrong, "example")
    except EngineError as e:
        print(e)
    else:
        raise AssertionError

# %% [markdown]
# ## Two files
# Names, types and shapes are read from the graph itself; the caller adds the layout, the activation and the names of
# the classes. The JSON also holds the graph's checksum, so that files of different runs are not used together.
# Exporters write comments and source locations into a graph, with folders of the machine. They are removed, and the
# bytes are put in a fixed order: the same graph is the same file. Weights of more than 1.9 GB go into a third file,
# `NAME.onnx.data`, which has its own checksum.

# %%
#| export
def add_entries(
    metadata: dict,  # the caller's entries
    own: dict,       # those that an export makes
) -> dict:           # both
    "Join both sets of entries. Raises EngineError if a key is in both."
    if taken := sorted({*own} & {*metadata}):
        raise EngineError(f"metadata may not set {', '.join(taken)}: the export sets this itself.")
    return {**metadata, **own}

def strip_traces(
    model: onnx.ModelProto,  # changed in place
) -> None:
    "Remove comments and source locations, which name folders of the machine."
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer,
                 *model.functions, *(n for f in model.functions for n in f.node)):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")

def describe_value(
    value: onnx.ValueInfoProto,
    stated: Mapping[str, Tensor] = {},  # name -> layout, activation and classes to be added
) -> Tensor:
    "Describe an input or output of an ONNX graph. Raises EngineError."
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise EngineError(f"{value.name} has no shape in the graph: export it with one.")
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
    found = Tensor(value.name, str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape)
    more = stated.get(value.name)
    if not more:
        return found
    if more.dtype != found.dtype:
        raise EngineError(f"{more.name} is stated as {more.dtype}, and the graph has {found.dtype}.")
    return Tensor(found.name, found.dtype, shape, more.layout, more.activation, more.classes, more.also)

LARGEST = 1_900_000_000  # bytes of weights in a graph; its format, protobuf, ends at 2 GiB

def weights_path(
    path: Path,  # NAME.onnx
) -> Path:       # NAME.onnx.data
    "Path of the weights of a graph that is too large for one file."
    return path.with_name(f"{path.name}.data")

def _write_model(model: onnx.ModelProto, path: Path) -> dict[str, str]:
    "Write a graph, with its weights in a second file if they are too large; returns the checksums."
    weights = weights_path(path)
    if sum(len(t.raw_data) for t in model.graph.initializer) <= LARGEST:
        content = model.SerializeToString(deterministic=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        weights.unlink(missing_ok=True)
        return {"sha256": hashlib.sha256(content).hexdigest()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        made = Path(folder) / path.name
        # axes and shapes, which are small, stay: ONNX Runtime needs them in the graph
        onnx.save_model(model, made, save_as_external_data=True, location=weights.name, size_threshold=512)
        onnx.load_external_data_for_model(model, folder)  # the caller's graph keeps its weights
        os.replace(weights_path(made), weights)
        os.replace(made, path)
    return {"sha256": sha256(path), "weights_file_sha256": sha256(weights)}

def write_graph(
    model: onnx.ModelProto,         # its traces are removed
    path: Path,                     # NAME.onnx
    metadata: dict,                 # entries for NAME.json
    stated: Sequence[Tensor] = (),  # layout, activation and classes of inputs and outputs, by name
) -> dict:                          # NAME.json
    "Write NAME.onnx and NAME.json, each complete or not at all."
    path, stated = Path(path), {t.name: t for t in stated}
    inputs = [describe_value(value, stated) for value in model.graph.input]
    outputs = [describe_value(value, stated) for value in model.graph.output]
    if unknown := {*stated} - {t.name for t in (*inputs, *outputs)}:
        raise EngineError(f"{path.name} has no input or output {', '.join(sorted(unknown))}: it has "
                          f"{', '.join(t.name for t in (*inputs, *outputs))}.")
    strip_traces(model)
    entries = add_entries(metadata, {
        "format": "onnx",
        "opset": model.opset_import[0].version,
        "inputs": [*map(tensor_entry, inputs)],
        "outputs": [*map(tensor_entry, outputs)],
        "sha256": None,
    })
    sidecar = entries | _write_model(model, path)
    write_json(sidecar_path(path), sidecar)
    return sidecar

def carried(
    metadata: dict,  # NAME.json
) -> dict:           # the entries that hold for another form of the same network, too
    "Select the entries that do not describe the file itself."
    own = ("format", "opset", "inputs", "outputs", "sha256", "weights_file_sha256")
    return {k: v for k, v in metadata.items() if k not in own}

def sidecar_path(
    path: Path,  # NAME.onnx or NAME.engine
) -> Path:       # NAME.json or NAME.engine.json: both kinds may lie in one folder
    "Path of the JSON beside a graph."
    return path.with_suffix(".json" if path.suffix == ".onnx" else path.suffix + ".json")

RANGES = {  # entries of the files of a training, also inside other entries -> smallest and largest value
    **dict.fromkeys(("threshold", "confidence", "overlap", "min_area", "before", "after"), (0, 1)), "folds": (1, 1000),
    **dict.fromkeys(("size", "side", "depth"), (1, 8192)), "height": (0, 8192), "width": (0, 8192),
    "temperature": (0.01, 100)}
SCORES = ("auc", "auc_95", "oof_auc", "pf1", "average_precision")  # not defined with one class only: NaN
_AGAIN = "Copy it again, or run the stage that wrote it again."

def _check_number(name: str, value, file: Path) -> None:
    "Raise EngineError for a number that is not finite or not in the range of its name; goes through lists and dicts."
    inner = value.items() if isinstance(value, dict) else [(name, v) for v in value] if isinstance(value, list) else []
    for key, each in inner:
        _check_number(key, each, file)
    if type(value) not in (int, float) or name in SCORES and math.isnan(value):
        return
    low, high = RANGES.get(name, (-math.inf, math.inf))
    if not math.isfinite(value) or not low <= value <= high:
        wanted = f"a number from {low} to {high}" if name in RANGES else "a finite number"
        raise EngineError(f"{file}: {name} is {value}, and must be {wanted}. {_AGAIN}")

def check_entries(
    entries,                     # content of a JSON file of a training
    file: Path,                  # named in the error
    needed: Sequence[str] = (),  # entries that it must have
) -> dict:                       # the same
    "Raise EngineError if entries are missing, or if a number is not finite or out of its range."
    if missing := [n for n in needed if n not in entries] if isinstance(entries, dict) else ["entries"]:
        raise EngineError(f"{file} has no {', '.join(missing)}. {_AGAIN}")
    _check_number("", entries, file)
    return entries

def read_entries(
    path: Path,                  # a JSON file of a training, such as selection.json or ensemble.json
    needed: Sequence[str] = (),  # entries that it must have
) -> dict:
    "Read and check a JSON file of a training. Raises EngineError."
    try:
        entries = read_json(path)
    except (OSError, ValueError) as e:
        raise EngineError(f"{path} cannot be read ({e}). {_AGAIN}") from e
    return check_entries(entries, Path(path), needed)

def read_sidecar(
    path: Path,  # NAME.onnx or NAME.engine
) -> dict:       # the JSON beside it
    "Read the JSON of a graph. Raises EngineError unless both files exist and belong together."
    path, sidecar = Path(path), sidecar_path(Path(path))
    for needed in (path, sidecar):
        if not needed.is_file():
            raise EngineError(
                f"{needed.name} is not there. An engine is two files, {path.name} and {sidecar.name}: copy both.")
    metadata = read_entries(sidecar)
    if metadata.get("sha256") != sha256(path):
        raise EngineError(f"{path.name} differs from the checksum in {sidecar.name}. The two belong to different runs, "
                          "or one was damaged: copy both again.")
    weights, expected = weights_path(path), metadata.get("weights_file_sha256")
    if expected and not (weights.is_file() and sha256(weights) == expected):
        raise EngineError(f"{weights.name}, which has the weights of {path.name}, is missing or differs from "
                          f"the checksum in {sidecar.name}: copy all three again.")
    return metadata

# %% [markdown]
# The example is written in ONNX's own language: the mean of each picture, multiplied by a weight.

# %%
model = onnx.parser.parse_model(
    f'''<ir_version: 10, opset_import: ["": 20]>
    mean (uint8[n, 1, {size[0]}, {size[1]}] images) => (float[n, 1] means) {{
    grey = Cast<to = 1>(images)
    flat = Flatten(grey)
    means = ReduceMean(flat, axis)
}}''')
model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
onnx.checker.check_model(model)
folder = Path(tempfile.mkdtemp())
model.graph.node[0].doc_string = str(Path.cwd() / "train.py")
sidecar = write_graph(model, folder / "mean.onnx", {"purpose": "example"}, [pictures])
assert str(Path.cwd()).encode() not in (folder / "mean.onnx").read_bytes()
assert read_sidecar(folder / "mean.onnx") == sidecar
assert write_graph(model, folder / "again.onnx", {})["sha256"] == sidecar["sha256"]
pd.Series(sidecar, name="mean.json").to_frame()

# %% [markdown]
# ## What came out
# A description that does not fit the graph is refused when it is written, and a damaged file when it is read:

# %%
damaged = bytearray((folder / "again.onnx").read_bytes())
damaged[-10] ^= 1
(folder / "again.onnx").write_bytes(damaged)
for attempt in (
    lambda: write_graph(model, folder / "other.onnx", {}, [lengths]),
    lambda: write_graph(model, folder / "other.onnx", {}, [replace(pictures, dtype="float32")]),
    lambda: read_sidecar(folder / "again.onnx"),
    lambda: read_sidecar(folder / "none.onnx"),
    lambda: check_entries({"threshold": 99}, Path("ensemble.json")),
    lambda: check_entries({"plateau": [0.2, float("nan")]}, Path("selection.json")),
    lambda: check_entries({"folds": 4}, Path("ensemble.json"), ["threshold"]),
):
    try:
        attempt()
    except EngineError as e:
        print(e)
    else:
        raise AssertionError

# %% [markdown]
# ---
# [← Running networks](50_running.py) · [TensorRT →](52_tensorrt.py)

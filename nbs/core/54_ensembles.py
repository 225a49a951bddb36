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
# # Ensembles
# > Several networks as one module, and a module as one file.
#
# Between a trained network and a prediction on another machine lie small decisions: the division by 255, the mean, the
# order of the folds, the activation. Each is one line that can be forgotten. Here all of them are inside the module,
# and therefore inside the graph that is exported: stored numbers go in, probabilities come out.

# %%
#| default_exp core.ensembles

# %% tags=["parameters"]
architecture = "resnet10t"  # a timm network, a small one
size = (96, 64)             # height, width of its input, pixels
folds = 2                   # networks in the ensemble

# %%
#| export
import hashlib
import inspect
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from mammo_nb.core.files import inside
from mammo_nb.core.networks import Mirrored, WeightsError, create_network, load_weights
from mammo_nb.core.sidecars import EngineError, Tensor, add_entries, describe_value, read_tensors, write_graph

# %%
#| hide
import tempfile
import time

import numpy as np
import pandas as pd

from mammo_nb.core.backends import bright_spots, open_graph
from mammo_nb.core.networks import save_weights

# %% [markdown]
# ## One module
# An ensemble is a network like any other. By default its input is a picture as it is stored: one channel, 8 bits, a
# quarter of what float32 would take on its way to the device. Other ensembles state what they take and give:
# three-channel pictures, volumes with masks, sequences with lengths, several outputs. Each result has the networks
# (folds) on its second axis. Where a network gives one number for each item, that number's own axis is left out: the
# result has the layout NF instead of NFC.

# %%
#| export
GREY = Tensor("images", "uint8", ("n", 1, "height", "width"), "NCHW")
PROBABILITIES = Tensor("probabilities", "float32", ("n", "folds"), "NF", "sigmoid")

class Ensemble(nn.Module):
    "Several networks with the same inputs, from stored numbers to probabilities."
    def __init__(self,
        models: Sequence[nn.Module],  # each takes the inputs in order, and gives a tensor, a tuple, or a dict by name
        # of the first input, by channel, after the division by `scale`; None: the networks get it as it is
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        *,
        scale: float = 255,                           # the first input is divided by it
        channels: int = 3,                            # that the networks take; a single channel is repeated
        inputs: Sequence[Tensor] = (GREY,),
        outputs: Sequence[Tensor] = (PROBABILITIES,), # with the letter F as their second axis
    ):
        super().__init__()
        if not models:
            raise EngineError("An ensemble needs at least one network.")
        if wrong := [t for t in outputs if t.axis("F") != 1]:
            raise EngineError(f"{wrong[0]}: the second axis of an ensemble's output is F, the networks.")
        self.models = nn.ModuleList(models).requires_grad_(False)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.scale, self.channels = scale, channels
        self.prepared = mean is not None
        self.axis = inputs[0].axis("C")
        if self.prepared:
            if self.axis is None:
                raise EngineError(f"{inputs[0]} needs a layout with the axis C, along which mean and std are applied.")
            dims = [-1 if k == self.axis else 1 for k in range(len(inputs[0].shape))]
            for name, values in (("mean", mean), ("std", std)):
                self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32).reshape(dims))
        self.eval()

    def preparation(self) -> dict:
        "Describe for the JSON what is done to the first input; {} if nothing is."
        if not self.prepared:
            return {}
        return {self.inputs[0].name: {"scale": self.scale, "channels": self.channels,
                                      "mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}}

    def prepare(self,
        first: torch.Tensor,  # the first input, as it is stored
    ) -> torch.Tensor:        # as the networks take it
        "Divide by the scale, repeat a single channel, and normalise."
        if not self.prepared:
            return first
        first = first.float() / self.scale
        if first.shape[self.axis] != self.channels:
            first = first.expand([self.channels if k == self.axis else -1 for k in range(first.dim())])
        return (first - self.mean) / self.std

    def forward(self,
        *given: torch.Tensor,  # the inputs, in their order
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:  # the only output, or all in their order; n and networks come first
        first, *others = given
        first = self.prepare(first)
        results = [self.in_order(model(first, *others)) for model in self.models]
        joined = tuple(self.join(t, [r[k] for r in results]) for k, t in enumerate(self.outputs))
        return joined if len(joined) > 1 else joined[0]

    def in_order(self, result) -> Sequence[torch.Tensor]:
        "Bring the results of one network into the order of the outputs."
        if isinstance(result, Mapping):
            return [result[t.name] for t in self.outputs]
        return [result] if isinstance(result, torch.Tensor) else result

    def join(self, output: Tensor, results: list[torch.Tensor]) -> torch.Tensor:
        "Join one output of all networks along the second axis, and apply its activation."
        together = torch.cat(results, 1) if output.layout == "NF" else torch.stack(results, 1)
        if output.activation == "sigmoid":
            return torch.sigmoid(together.float())
        if output.activation == "softmax":
            return torch.softmax(together.float(), output.axis("C"))
        return together

    def keep(self,
        kept: Sequence[int],  # networks that stay, by number
    ) -> "Ensemble":
        "Make a smaller ensemble of the same networks."
        options = {"mean": self.mean.flatten(), "std": self.std.flatten()} if self.prepared else {}
        return Ensemble([self.models[k] for k in kept], **options, scale=self.scale, channels=self.channels,
                        inputs=self.inputs, outputs=self.outputs)

    def half(self):
        raise EngineError("A whole network in float16 has sums that overflow. Convert its file with write_mixed of "
                          "core/graphs, or use load_engine(ensemble, precision='fp16').")

# %% [markdown]
# An untrained network gives 0.5 for everything, so a comparison of two would find no error. So the weights of the last
# layer are drawn with a large standard deviation here, and the pictures are bright spots of many sizes. The notebooks
# that follow use the same ensemble.

# %%
#| export
def drawn_ensemble(
    architecture: str,  # timm architecture
    folds: int,         # number of networks
) -> Ensemble:
    "Make an ensemble of untrained networks whose probabilities are spread over 0 to 1, for examples and checks."
    models = [create_network(architecture, seed=k) for k in range(folds)]
    for model in models:
        nn.init.normal_(model.get_classifier().weight, std=2, generator=torch.Generator().manual_seed(folds))
    return Ensemble(models, **models[0].normalization)

# %%
ensemble = drawn_ensemble(architecture, folds)
models = ensemble.models
x = torch.from_numpy(bright_spots(size, np.random.default_rng(0)))[:, None]
with torch.no_grad():
    probabilities = ensemble(x)
    by_hand = torch.sigmoid(models[1]((x.repeat(1, 3, 1, 1) / 255 - ensemble.mean) / ensemble.std))
assert probabilities.shape == (24, folds) and probabilities.std() > 0.1
assert torch.allclose(probabilities[:, 1:2], by_hand, atol=1e-6)
probabilities[:4]

# %% [markdown]
# ## One file
# The example that torch needs for the export is made from the descriptions: a word in a shape stays free in the graph.
# The JSON gets the digest of the weights and the versions that made the file. The caller adds entries, but cannot set
# these.

# %%
#| export
def weights_digest(
    module: nn.Module,
) -> str:               # 64 hexadecimal digits
    "SHA-256 over names, types, shapes and bytes of all tensors, in order of name."
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

def place_of(
    module: nn.Module,
) -> torch.device:
    "Device of a module's tensors; the CPU if it has none."
    return next((t.device for t in (*module.buffers(), *module.parameters())), torch.device("cpu"))

def export_module(
    # takes the inputs in their order; set to evaluation, its activations no longer in place
    module: nn.Module,
    path: Path,                 # NAME.onnx
    inputs: Sequence[Tensor],   # words in their shapes stay free
    outputs: Sequence[Tensor],  # in the order in which the module gives them; their shapes are taken from the graph
    metadata: dict,             # the caller's entries for NAME.json
) -> dict:                      # NAME.json
    "Write any module as NAME.onnx and NAME.json. Raises EngineError."
    module.eval()
    for part in module.modules():
        if getattr(part, "inplace", False):
            part.inplace = False   # the graph is the same, and torch would need twice the time for it
    place = place_of(module)
    words = list(dict.fromkeys(n for t in inputs for n in t.shape if isinstance(n, str)))
    free = {word: torch.export.Dim(word) for word in words}
    numbers = {word: 2 + k for k, word in enumerate(words)}  # a dimension of 1 would be taken for a constant
    example = tuple(torch.ones([numbers.get(n, n) for n in t.shape], dtype=getattr(torch, t.dtype), device=place)
                    for t in inputs)
    dims = tuple({k: free[n] for k, n in enumerate(t.shape) if isinstance(n, str)} for t in inputs)
    if any(p.kind == p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values()):
        dims = (dims,)  # for torch the inputs are one argument then
    precision = str(next((p.dtype for p in module.parameters()), torch.float32)).removeprefix("torch.")
    metadata = add_entries(metadata, {
        "precision": precision,
        "weights_sha256": weights_digest(module),
        "versions": {p: version(p) for p in ("torch", "timm", "onnx")},
    })
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    torch.compiler.reset()   # of shapes seen in earlier exports torch would fix some that have to stay free
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")   # the exporter warns of its own code
            program = torch.onnx.export(
                module, example, dynamo=True, verbose=False, external_data=False, input_names=[t.name for t in inputs],
                output_names=[t.name for t in outputs], dynamic_shapes=dims if words else None)
    finally:
        logger.setLevel(level)
    for value, tensor in zip(program.model_proto.graph.input, inputs):
        got = describe_value(value).shape
        if any(isinstance(n, str) and n != m for n, m in zip(tensor.shape, got)):
            raise EngineError(f"torch {version('torch')} would export {tensor} with the shape {list(got)} only: the "
                              "network has to compute without a branch on its free dimensions.")
    return write_graph(program.model_proto, path, metadata, [*inputs, *outputs])

def bound(
    tensors: Sequence[Tensor],
    size: Sequence[int],        # for the words depth, height and width, as far as the first tensor has them
) -> tuple[Tensor, ...]:
    "Fix the size of inputs; other words stay free. Raises EngineError."
    words = [w for w in ("depth", "height", "width") if w in tensors[0].shape]
    if len(words) != len(size):
        raise EngineError(f"{tensors[0]} needs a number for each of ({', '.join(words)}), and got {tuple(size)}.")
    numbers = dict(zip(words, map(int, size)))
    return tuple(replace(t, shape=tuple(numbers.get(n, n) for n in t.shape)) for t in tensors)

# %%
folder = Path(tempfile.mkdtemp())
started = time.monotonic()
sidecar = export_module(ensemble, folder / "ensemble.onnx", bound(ensemble.inputs, size), ensemble.outputs,
                        {"preparation": ensemble.preparation()})
print(f"{time.monotonic() - started:.0f} s, {(folder / 'ensemble.onnx').stat().st_size / 1e6:.1f} MB")
graph = (folder / "ensemble.onnx").read_bytes()
assert str(Path.cwd()).encode() not in graph and b"site-packages" not in graph
assert np.abs(open_graph(folder / "ensemble.onnx")(x.numpy()) - probabilities.numpy()).max() <= 1e-4
pd.Series(sidecar, name="ensemble.json").to_frame()

# %% [markdown]
# ## From its weights
# Where no file can be run there is still torch. The JSON names a kind of network, the arguments that make it, and the
# files with weights beside it. The kinds stand in one dict, the registry: timm's classifiers are registered here, and a
# system registers its own networks where it defines them.

# %%
#| export
NETWORKS: dict[str, Callable[..., nn.Module]] = {}  # kind -> function of the arguments that the JSON holds

def register_network(
    kind: str,          # the name in the JSON
) -> Callable:          # a decorator
    """Register a function that makes a network, without its weights, from keyword arguments. Raises ValueError for a
    name that another function has; a notebook may define the function of its module once more."""
    def register(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if NETWORKS.setdefault(kind, make).__qualname__ != make.__qualname__:
            raise ValueError(f"There is a network {kind!r} already: register this one under another name.")
        NETWORKS[kind] = make
        return make
    return register

@register_network("timm")
def timm_classifier(
    network: str,                    # timm architecture
    global_pool: str | None = None,  # timm pooling; None: the architecture's own
    classes: int = 1,                # number of outputs
    channels: int = 3,               # of the input
) -> nn.Module:                      # (n, channels, height, width) -> (n, classes) logits
    "Make a classifier of timm."
    return create_network(network, global_pool=global_pool, num_classes=classes, in_chans=channels)

def make_network(
    about: dict,      # kind, and the arguments of its function
) -> nn.Module:       # with random weights
    "Make a network of a registered kind. Raises WeightsError."
    arguments = dict(about)
    kind = arguments.pop("kind", None)
    if kind not in NETWORKS:
        raise WeightsError(f"network {kind!r}", "no such kind is registered", f"There are {', '.join(NETWORKS)}. "
                           "Import the module that registers it, or export the network again.")
    try:
        inspect.signature(NETWORKS[kind]).bind(**arguments)
    except TypeError as e:
        raise WeightsError(f"network {kind!r}", f"its arguments do not fit ({e})",
                           "Export the network again with this version.") from e
    return NETWORKS[kind](**arguments)

# %%
assert make_network({"kind": "timm", "network": "resnet10t", "classes": 6})(torch.zeros(2, 3, *size)).shape == (2, 6)
for wrong in ({"kind": "tim", "network": "resnet10t"}, {"kind": "timm", "network": "resnet10t", "pool": "max"}):
    try:
        make_network(wrong)
    except WeightsError as e:
        print(e)
    else:
        raise AssertionError

# %% [markdown]
# The digest of all weights shows whether the rebuilt ensemble is the one that was exported.

# %%
#| export
def weights_file(
    folder: Path,  # of the JSON that names the file
    file: str,     # such as fold_0.safetensors or encoders/fold_0.safetensors
) -> Path:
    "A file of weights; a data set at Kaggle has no folders, so there it lies beside the JSON."
    path, flat = inside(folder, file), inside(folder, Path(file).name)
    return flat if flat.is_file() and not path.is_file() else path

def rebuild(
    folder: Path,     # has the weights that the JSON names
    metadata: dict,   # NAME.json, with `rebuild`: kind, its arguments, mirrored (horizontal-flip TTA), weights (files)
) -> Ensemble:
    "Make an ensemble as it was before it was exported. Raises EngineError or WeightsError."
    # `each` has the arguments in which the networks differ, a dict for each
    about = dict(metadata.get("rebuild") or {})
    if not about:
        raise EngineError("Its JSON does not state how to build its networks: export it again.")
    files, mirrored = about.pop("weights"), about.pop("mirrored")
    models = []
    for file, own in zip(files, about.pop("each", [{}] * len(files)), strict=True):
        model = make_network({**about, **own})
        load_weights(model, weights_file(folder, file))
        models.append(Mirrored(model) if mirrored else model)
    inputs, outputs = (read_tensors(metadata, key, "the JSON") for key in ("inputs", "outputs"))
    ensemble = Ensemble(models, **metadata["preparation"].get(inputs[0].name, {}), inputs=inputs, outputs=outputs)
    if weights_digest(ensemble) != metadata["weights_sha256"]:
        raise EngineError(f"{', '.join(files)} are not the weights that were exported: copy them from the same run.")
    return ensemble

# %%
for k, model in enumerate(models):
    save_weights(model, folder / f"fold_{k}.safetensors", {})
about = {"kind": "timm", "network": architecture, "mirrored": False,
         "weights": [f"fold_{k}.safetensors" for k in range(folds)]}
again = rebuild(folder, {**sidecar, "rebuild": about})
with torch.no_grad():
    assert torch.equal(again(x), probabilities)
try:
    rebuild(folder, {**sidecar, "rebuild": {**about, "weights": about["weights"][::-1]}})
except EngineError as e:
    print(e)
else:
    raise AssertionError

# %% [markdown]
# ## Six classes of a sequence
# The second example has several inputs and outputs. Three channels for each slice of a series and the number of slices
# go in; six classes for each slice and one for the series come out, of two networks. Shapes are compared as before,
# with two free dimensions.

# %%
class Series(nn.Module):
    "A toy: a convolution for each slice, an LSTM along the series."
    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Conv2d(3, 8, 3, 2)
        self.memory = nn.LSTM(8, 8, batch_first=True)
        self.slices = nn.Linear(8, 6)
        self.whole = nn.Linear(8, 1)

    def forward(self,
        slices: torch.Tensor,   # float (n, length, 3, 16, 16)
        lengths: torch.Tensor,  # int64 (n,), slices of each series; what follows them is padding
    ) -> dict:
        features = self.encoder(slices.flatten(0, 1)).relu().mean((2, 3)).unflatten(0, slices.shape[:2])
        here = torch.arange(slices.shape[1], device=slices.device) < lengths[:, None]
        states = self.memory(features)[0] * here[..., None]
        return {"slice": self.slices(states), "series": self.whole(states.sum(1) / lengths[:, None])}

inputs = (Tensor("slices", "float32", ("n", "length", 3, 16, 16), "NLCHW"), Tensor("lengths", "int64", ("n",), "N"))
names = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
outputs = (Tensor("slice", "float32", ("n", "folds", "length", 6), "NFLC", "sigmoid", names),
           Tensor("series", "float32", ("n", "folds"), "NF", "sigmoid", ("bleeding",)))
both = Ensemble([Series(0), Series(1)], inputs=inputs, outputs=outputs)
sidecar = export_module(both, folder / "series.onnx", inputs, outputs, {"preparation": both.preparation()})
given = {"slices": torch.randn(3, 7, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
         "lengths": torch.tensor([7, 2, 5])}
with torch.no_grad():
    reference = both(*given.values())
made = open_graph(folder / "series.onnx")({name: value.numpy() for name, value in given.items()})
assert made["slice"].shape == (3, 2, 7, 6)
assert all(np.abs(made[t.name] - r.numpy()).max() < 1e-5 for t, r in zip(outputs, reference))

# %% [markdown]
# ## What came out

# %%
pd.DataFrame([*sidecar["inputs"], *sidecar["outputs"]]).fillna("")

# %% [markdown]
# ---
# [← Back ends](53_backends.py) · [Graphs →](55_graphs.py)

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
# # Graphs
# > Two changes to an exported file: the precision of its numbers, and the number of its networks.
#
# Exporting four large networks takes a minute, and needs torch with all the code that trained them. Two changes need
# neither, since they only edit the nodes of the graph: computing most of it in 16 bits, and leaving out networks for
# which there is no time.

# %%
#| default_exp core.graphs

# %% tags=["parameters"]
architecture = "convnext_atto"  # a timm network with layer normalisation
size = (96, 64)                 # height, width of its input, pixels

# %%
#| export
from pathlib import Path

import numpy as np
import onnx

from mammo_nb.core.sidecars import EngineError, carried, read_sidecar, read_tensors, sidecar_path, write_graph

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
import torch

from mammo_nb.core.backends import bright_spots, open_graph
from mammo_nb.core.ensembles import Ensemble, bound, export_module
from mammo_nb.core.networks import create_network

# %% [markdown]
# ## Mixed precision
# float16 has 11 bits for the digits of a number and ends at 65504. A matrix product loses little with it: its factors
# are rounded once, and GPUs accumulate in more bits. A mean over a large area, a variance or an exponential does lose:
# the sum of a picture's squares soon overflows. So matrix products and convolutions get float16, reductions,
# normalisations and recurrent layers float32, and everything else, additions and activations, takes the type of its
# input. That is the rule of torch's autocast, with one difference: a sum of both types is computed in float16 and not
# in float32, since it is the addition around every block, on the largest tensors of the network.
#
# Before the first convolution nothing is in float16, so the normalisation of the picture stays as it is. The
# convolution that reads it stays, too: most of a mammogram is black, and the response of that layer to an even area is
# the small difference of large numbers. The activation that makes the result is computed in float32.

# %%
#| export
PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
KEPT = {  # in float32, as are all nodes whose name starts with Reduce
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization", "RMSNormalization",
    "LpNormalization", "MeanVarianceNormalization", "GlobalAveragePool", "Softmax", "LogSoftmax", "Exp", "Log", "Pow",
    "Sqrt", "Reciprocal", "CumSum", "Resize", "LSTM", "GRU", "RNN"
}
_FLOAT, _HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16

def _constants_to_weights(graph: onnx.GraphProto) -> None:
    "Move constants from nodes to where the weights are."
    for node in [n for n in graph.node if n.op_type == "Constant"]:
        value = next((a for a in node.attribute if a.name in ("value", "value_float", "value_floats")), None)
        if value is None:
            continue   # integers stay
        if value.name == "value":
            tensor = value.t
        else:
            numbers = value.f if value.name == "value_float" else value.floats
            tensor = onnx.numpy_helper.from_array(np.asarray(numbers, np.float32))
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)

def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    "Types of all tensors. The weights themselves are left out, because the inference of shapes would copy them."
    weights = [onnx.helper.make_tensor_value_info(i.name, i.data_type, i.dims) for i in model.graph.initializer]
    light = onnx.helper.make_model(
        onnx.helper.make_graph(model.graph.node, "types", [*model.graph.input, *weights], model.graph.output),
        opset_imports=model.opset_import, ir_version=model.ir_version)
    inferred = onnx.shape_inference.infer_shapes(light).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    if unknown := [o for n in model.graph.node for o in n.output if o and not types.get(o)]:
        raise EngineError(f"The type of {unknown[0]} cannot be inferred from the graph: export it with a newer torch.")
    return types

class _Mixer:
    "A graph's nodes one by one, with casts where a tensor is needed in another type than it has."
    def __init__(self, model: onnx.ModelProto):
        self.types = _element_types(model)
        self.results = {o.name for o in model.graph.output}
        self.weights = {i.name: i for i in model.graph.initializer if i.data_type == _FLOAT}
        self.half = set()   # tensors in float16
        self.copies = {}    # (tensor, whether in float16) -> its copy
        self.nodes = []     # of the new graph
        # the input, and what is made of it before the first product
        self.picture = {i.name for i in model.graph.input}

    def cast(self, name: str, to: str, low: bool) -> None:
        self.nodes.append(onnx.helper.make_node("Cast", [name], [to], to=_HALF if low else _FLOAT))

    def named(self, name: str, low: bool) -> str:
        while name in self.types:
            name += "_half" if low else "_float"
        self.types[name] = _HALF if low else _FLOAT
        return name

    def wanted(self, name: str, low: bool) -> str:
        "The name of a tensor in float16 or in float32; integers have one form only."
        if self.types.get(name) != _FLOAT or low == (name in self.half):
            return name
        if (name, low) not in self.copies:
            self.copies[name, low] = self.named(name, low)
            if name not in self.weights:
                self.cast(name, self.copies[name, low], low)
        return self.copies[name, low]

    def add(self, node: onnx.NodeProto) -> None:
        "Add a node, in float16 or in float32."
        if node.op_type == "Cast":   # takes any type, and has an attribute with the type of its output
            if node.input[0] in self.picture:
                self.picture |= {*node.output}
            self.nodes.append(node)
            return
        product = node.op_type in PRODUCTS
        result = self.results.intersection(node.output)
        if not product and self.picture.intersection(node.input):
            self.picture |= {*node.output}
        if node.op_type == "Conv" and node.input[0] in self.picture:
            product = False
        kept = result or node.op_type in KEPT or node.op_type.startswith("Reduce")
        low = product or not kept and any(n in self.half for n in node.input)
        node.input[:] = [self.wanted(n, low) for n in node.input]
        made = {o for o in node.output if self.types.get(o) == _FLOAT} if low else set()
        if result and made:
            node.output[:] = [self.named(o, True) for o in node.output]
        else:
            self.half |= made
        self.nodes.append(node)
        if result and made:
            self.cast(node.output[0], result.pop(), False)

def to_mixed(
    model: onnx.ModelProto,  # in float32; changed in place
) -> None:
    "Matrix products and what is between them in float16; reductions, normalisations and the result in float32."
    graph = model.graph
    if model.functions or any(a.HasField("g") or a.graphs for n in graph.node for a in n.attribute):
        raise EngineError("A graph with functions or branches in it cannot be converted: export it without.")
    _constants_to_weights(graph)
    mixer = _Mixer(model)
    for node in graph.node:
        mixer.add(onnx.NodeProto.FromString(node.SerializeToString()))   # a copy
    used = {n for node in mixer.nodes for n in node.input}
    weights = [i for i in graph.initializer if i.name in used]
    for (name, low), copy in mixer.copies.items():
        if name not in mixer.weights:
            continue
        values = onnx.numpy_helper.to_array(mixer.weights[name])
        if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise EngineError(f"{name} has values beyond 65504, which float16 cannot hold: run this graph in float32.")
        weights.append(onnx.numpy_helper.from_array(values.astype(np.float16), copy))
    _replace(graph, mixer.nodes, weights)

def _replace(graph: onnx.GraphProto, nodes: list, weights: list) -> None:
    "Replace nodes and weights. The types of the tensors in between are dropped, since they may be wrong now."
    # copies: nodes and weights may be parts of what is cleared
    nodes = [n.SerializeToString() for n in nodes]
    weights = [w.SerializeToString() for w in weights]
    for field in ("node", "initializer", "value_info"):
        graph.ClearField(field)
    graph.node.extend(onnx.NodeProto.FromString(n) for n in nodes)
    graph.initializer.extend(onnx.TensorProto.FromString(w) for w in weights)

# %%
#| export
def write_mixed(
    path: Path,        # NAME.onnx in float32, its JSON beside it
    path_mixed: Path,  # such as NAME.fp16.onnx; gets a JSON of its own
) -> dict:             # that JSON: as the other, with precision 'mixed'
    "Convert a graph to mixed precision. Raises EngineError."
    path = Path(path)
    metadata = read_sidecar(path)
    model = onnx.load(path)
    try:
        to_mixed(model)
    except EngineError as e:
        raise EngineError(f"{path.name}: {e}") from e
    stated = [t for key in ("inputs", "outputs") for t in read_tensors(metadata, key, sidecar_path(path).name)]
    entries = {**carried(metadata), "precision": "mixed", "fp32_sha256": metadata["sha256"]}
    return write_graph(model, path_mixed, entries, stated)

# %% [markdown]
# Small ConvNeXts, whose blocks all normalise over their channels. Their probabilities are spread over 0 to 1, so that a
# difference is visible.

# %%
models = [create_network(architecture, seed=k) for k in range(3)]
for k, model in enumerate(models):
    torch.nn.init.normal_(model.get_classifier().weight, std=.2, generator=torch.Generator().manual_seed(k))
ensemble = Ensemble(models, **models[0].normalization)
folder = Path(tempfile.mkdtemp())
export_module(ensemble, folder / "ensemble.onnx", bound(ensemble.inputs, size), ensemble.outputs, {})
sidecar = write_mixed(folder / "ensemble.onnx", folder / "ensemble.fp16.onnx")
pictures = bright_spots(size, np.random.default_rng(0))[:, None]
exact, mixed = (open_graph(folder / f"{name}.onnx")(pictures) for name in ("ensemble", "ensemble.fp16"))
assert sidecar["precision"] == "mixed" and exact.std() > .1 and 0 < np.abs(mixed - exact).max() < 5e-3
megabytes = [(folder / f"{name}.onnx").stat().st_size / 1e6 for name in ("ensemble", "ensemble.fp16")]
print(f"{megabytes[0]:.1f} MB, in 16 bits {megabytes[1]:.1f} MB")

# %% [markdown]
# The type in which each kind of node computes, and how far the probabilities moved. The convolutions in float32 are the
# first of each network. Where a CPU cannot compute in float16, ONNX Runtime computes in float32 and rounds each result;
# a GPU may differ from that in the last digits.

# %%
graph = onnx.load(folder / "ensemble.fp16.onnx").graph
types = _element_types(onnx.load(folder / "ensemble.fp16.onnx"))
computed = pd.DataFrame(
    [{"node": n.op_type, "type": {_HALF: "float16", _FLOAT: "float32"}.get(types[n.output[0]], "other")}
     for n in graph.node if n.op_type != "Cast"])
table = computed.value_counts().unstack(fill_value=0)
of_products, of_kept = (set(computed[computed["node"].isin(kinds)]["type"]) for kinds in (PRODUCTS - {"Conv"}, KEPT))
assert table.loc["Conv", "float32"] == len(models)   # the first of each network
assert of_products == {"float16"} and of_kept == {"float32"}
assert graph.node[-1].op_type == "Sigmoid" and types[graph.node[-1].output[0]] == _FLOAT
table

# %%
plt.figure(figsize=(7, 2.8))
plt.axhline(0, color="lightgrey")
plt.plot(exact, mixed - exact, ".")
plt.xlabel("probability in float32")
plt.ylabel("difference")
plt.title(f"mixed precision, at most {np.abs(mixed - exact).max():.1e}", fontsize=9);

# %% [markdown]
# ## Fewer networks
# The mean of three networks is a little better than that of two, and takes 1.5 times as long. Where time is short, an
# ensemble is reduced: the node that joins the networks takes fewer of them, in each output, and everything that no
# output needs any more is removed.

# %%
#| export
def _joining_node(made: dict[str, onnx.NodeProto], output: str) -> onnx.NodeProto:
    "The node that joins the results of the networks into one output."
    node = made.get(output)
    while node is not None and node.op_type in ("Sigmoid", "Softmax", "Cast", "Identity"):
        node = made.get(node.input[0])
    if node is None or node.op_type != "Concat":
        raise EngineError(f"This is no ensemble: its {output} is not joined from the results of networks.")
    return node

def keep_columns(
    model: onnx.ModelProto,  # an ensemble: one node joins the networks along the second axis; changed in place
    kept: list[int],         # networks, in the order wanted
) -> None:
    "Keep some networks of an ensemble, and remove what only the others needed. Raises EngineError."
    graph = model.graph
    made = {o: n for n in graph.node for o in n.output}
    for output in graph.output:
        node = _joining_node(made, output.name)
        if not kept or not set(kept) <= set(range(len(node.input))):
            raise EngineError(f"This ensemble has the networks 0 to {len(node.input) - 1}, and {kept} was requested.")
        node.input[:] = [node.input[k] for k in kept]
        output.type.tensor_type.shape.dim[1].dim_value = len(kept)
    todo = [o.name for o in graph.output]
    needed = set(todo)
    while todo:
        source = made.get(todo.pop())
        new = set(source.input) - needed if source is not None else set()
        needed |= new
        todo += new
    _replace(graph, [n for n in graph.node if needed.intersection(n.output)],
             [i for i in graph.initializer if i.name in needed])

# %%
model = onnx.load(folder / "ensemble.onnx")
keep_columns(model, [2, 0])
write_graph(model, folder / "two.onnx", {})
assert np.allclose(open_graph(folder / "two.onnx")(pictures), exact[:, [2, 0]], atol=1e-6)
for wrong in ([3], []):
    try:
        keep_columns(onnx.load(folder / "ensemble.onnx"), wrong)
    except EngineError as e:
        print(e)

# %% [markdown]
# ## What came out
# Three files of the same networks, and their sizes:

# %%
rows = []
for p in sorted(folder.glob("*.onnx")):
    rows.append({"file": p.name, "networks": open_graph(p)(pictures[:1]).shape[1],
                 "MB": round(p.stat().st_size / 1e6, 1), "nodes": len(onnx.load(p).graph.node)})
pd.DataFrame(rows)

# %% [markdown]
# ---
# [← Ensembles](54_ensembles.py) · [Engines →](56_engines.py)

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
# # Batches
# > Inputs and outputs that are more than one tensor: dicts, tuples, and sequences of unequal length.
#
# A picture is one tensor, and so is its label. A volume comes with a mask, a sequence with its length, and a network
# with several heads has several outputs. The training loop therefore takes *nested* values: tensors in dicts, tuples
# and lists, to any depth. This notebook has the few functions that it needs for them.

# %%
#| default_exp core.batches

# %%
#| export
import torch
from torch.utils.data import default_collate

# %% tags=["parameters"]
lengths = (3, 5)  # steps of the two sequences shown below

# %% [markdown]
# ## Nested values

# %%
#| export
def map_tensors(
    function,  # f(tensor) -> anything
    value,     # tensors, nested in dicts, tuples and lists; other leaves are kept as they are
):             # the same structure
    "Apply a function to every tensor of a nested value."
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: map_tensors(function, inner) for name, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return type(value)(*(map_tensors(function, inner) for inner in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(function, inner) for inner in value)
    return value

# %%
nested = {"image": torch.zeros(2, 3), "more": (torch.ones(1), ["text", None])}
doubled = map_tensors(lambda t: 2 * t, nested)
assert doubled["more"][0].item() == 2 and doubled["more"][1] == ["text", None]

# %%
#| export
def to_device(
    value,                 # nested inputs or targets
    device: torch.device,
):                         # the same on the device, pictures in the layout `channels_last`
    "Move a batch; tensors of four dimensions get the memory layout in which 2-D convolutions are fastest."
    def move(tensor: torch.Tensor) -> torch.Tensor:
        moved = tensor.to(device, non_blocking=True)
        return moved.to(memory_format=torch.channels_last) if moved.ndim == 4 else moved
    return map_tensors(move, value)

def to_float(
    value,  # nested outputs of a network, perhaps of 16 bits
):          # floating-point tensors as float32, others as they are
    "Convert outputs to float32, in which a loss is computed."
    return map_tensors(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, value)

# %%
moved = to_device({"image": torch.zeros(2, 3, 8, 8), "age": torch.ones(2, 1)}, torch.device("cpu"))
assert moved["image"].is_contiguous(memory_format=torch.channels_last)
assert to_float((torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.int64)))[0].dtype == torch.float32

# %% [markdown]
# ## Sequences
# The samples of a batch are stacked. Sequences of unequal length are padded to the longest one first, and their lengths
# are part of the batch. Network and loss use the lengths to leave the padding out.

# %%
#| export
def pad(
    sequences: list[torch.Tensor],  # (steps, ...), equal in all dimensions but the first
    value: float = 0.0,             # value of the padding
) -> dict[str, torch.Tensor]:       # values (n, longest, ...), lengths int64 (n,)
    "Pad the sequences of a batch to one tensor, and give their lengths."
    return {
        "values": torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value),
        "lengths": torch.tensor([len(s) for s in sequences]),
    }

def step_mask(
    lengths: torch.Tensor,  # int64 (n,)
    longest: int,           # steps of the padded tensor
) -> torch.Tensor:          # bool (n, longest), True where a sequence is and False where padding is
    "Mask of the steps that belong to the sequences."
    return torch.arange(longest, device=lengths.device) < lengths[:, None]

# %%
padded = pad([torch.ones(n, 2) for n in lengths])
assert padded["values"].shape == (2, max(lengths), 2) and padded["lengths"].tolist() == list(lengths)
assert padded["values"].sum() == 2 * sum(lengths)
assert step_mask(padded["lengths"], max(lengths)).sum() == sum(lengths)

# %% [markdown]
# A *collate* function makes a batch of samples. Torch's `default_collate` stacks every tensor of nested samples. This
# one pads the tensors whose names are given and leaves the rest to torch.

# %%
#| export
class PadCollate:
    """A collate function for samples `(inputs, targets)` of dicts: named tensors are padded, the others are stacked.
    Raises ValueError if the samples lack a name."""
    def __init__(
        self,
        **values: float,  # name of a sequence in inputs or targets -> value of its padding
    ):
        self.values = values

    def _collate(self, dicts: list[dict]) -> dict:
        batch = default_collate([{k: v for k, v in d.items() if k not in self.values} for d in dicts])
        for name in self.values.keys() & dicts[0].keys():
            batch[name] = pad([d[name] for d in dicts], self.values[name])
        return batch

    def __call__(self, samples: list[tuple[dict, dict]]) -> tuple[dict, dict]:
        missing = self.values.keys() - samples[0][0].keys() - samples[0][1].keys()
        if missing:
            raise ValueError(f"The samples have no {', '.join(sorted(missing))}. Correct the names for PadCollate.")
        inputs, targets = zip(*samples)
        return self._collate(inputs), self._collate(targets)

# %% [markdown]
# ## What came out
# A batch of two series of slices. The features of their slices and the labels of their slices are padded; the age of
# the patient is stacked.

# %%
collate = PadCollate(slices=0.0, labels=-1.0)
samples = [({"slices": torch.rand(n, 4), "age": torch.tensor([50.0 + n])}, {"labels": torch.ones(n)}) for n in lengths]
inputs, targets = collate(samples)
assert inputs["age"].shape == (2, 1) and targets["labels"]["values"][0].tolist() == [1] * 3 + [-1] * 2
{"slices": inputs["slices"]["values"].shape, "lengths": inputs["slices"]["lengths"].tolist(),
 "labels": targets["labels"]["values"].tolist()}

# %% [markdown]
# ---
# [← Optimisation](45_optimisation.py) · [Steps →](47_steps.py)

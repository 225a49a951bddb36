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
# # Recurrent
# > The sequence model: two bidirectional layers over the features of a series, with summed skip connections.
#
# The features of a slice say what a classifier sees in it. The sequence model reads them in the order of the patient,
# once upwards and once downwards, and predicts the labels of every slice. The network is that of the original. Only one
# thing differs: the original read the zeros that fill up a shorter series, so a prediction depended on the other series
# of its batch. Here it does not, unless `faithful` asks for it.

# %%
#| default_exp ich.learning.recurrent

# %%
#| export
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mammo_nb.core.ensembles import register_network
from mammo_nb.core.recipes import RecipeError

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.batches import pad

# %% tags=["parameters"]
embedding, classes = 16, 6   # features of a slice and classes of the small network below

# %% [markdown]
# ## Differences to the neighbours
# The layers get the features of a slice, and what changes from the slice below and from the slice above. At the ends of
# a series a difference is zero.

# %%
#| export
def with_differences(
    values: torch.Tensor,           # (n, length, features), padded at the end
    lengths: torch.Tensor | None,   # int64 (n,); None: nothing is padded
) -> torch.Tensor:                  # (n, length, 3 features); zeros in the padding
    "Features, their difference to the previous slice, and to the next one; zero where there is no such slice."
    step = values[:, 1:] - values[:, :-1]
    none = torch.zeros_like(values[:, :1])
    joined = torch.cat([values, torch.cat([none, step], 1), torch.cat([-step, none], 1)], 2)
    if lengths is None:
        return joined
    last = (lengths - 1)[:, None, None]
    at = torch.arange(values.shape[1], device=values.device)[None, :, None]
    kept = (at <= last).to(values.dtype).repeat(1, 1, joined.shape[2])
    kept[..., 2 * values.shape[2]:] *= at < last  # after the last slice there is padding and no neighbour
    return joined * kept

# %%
series = torch.tensor([[[1.], [4.], [9.]], [[2.], [3.], [0.]]])
made = with_differences(series, torch.tensor([3, 2]))
assert made[0].tolist() == [[1, 0, -3], [4, 3, -5], [9, 5, 0]]
assert made[1].tolist() == [[2, 0, -1], [3, 1, 0], [0, 0, 0]]
assert torch.equal(with_differences(series[:1], None), made[:1])

# %% [markdown]
# ## Both directions of a padded batch
# A packed batch is how PyTorch leaves padding out. On a CPU its LSTM is then four times slower than the one without
# packing. So on a CPU each direction runs alone: a series is reversed within its own length, and both directions have
# the padding behind them, where it changes nothing before it.

# %%
#| export
def both_directions(
    layer: nn.LSTM,         # one bidirectional layer, batch first
    x: torch.Tensor,        # (n, length, inputs), padded at the end
    lengths: torch.Tensor,  # int64 (n,)
) -> torch.Tensor:          # (n, length, 2 units); without meaning in the padding
    "Outputs of a bidirectional LSTM that starts at both ends of each series, computed without packing."
    at, ends = torch.arange(x.shape[1], device=x.device)[None], lengths[:, None]
    mirrored = torch.where(at < ends, ends - 1 - at, at)[..., None]   # the padding stays where it is
    zero = x.new_zeros(1, len(x), layer.hidden_size)

    def direction(values: torch.Tensor, suffix: str) -> torch.Tensor:
        weights = [getattr(layer, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        return torch.lstm(values, (zero, zero), weights, True, 1, 0., layer.training, False, True)[0]

    backward = direction(x.gather(1, mirrored.expand_as(x)), "_reverse")
    return torch.cat([direction(x, ""), backward.gather(1, mirrored.expand_as(backward))], -1)

# %%
layer = nn.LSTM(embedding, 8, bidirectional=True, batch_first=True)
one, other = torch.randn(1, 5, embedding), torch.randn(1, 9, embedding)
batch = torch.cat([nn.functional.pad(one, (0, 0, 0, 4), value=7.), other])   # what the padding holds does not count
with torch.no_grad():
    made = both_directions(layer, batch, torch.tensor([5, 9]))
    assert torch.allclose(made[:1, :5], layer(one)[0], atol=1e-6)
    assert torch.allclose(made[1:], layer(other)[0], atol=1e-6)

# %% [markdown]
# ## The network
# Both layers, a linear layer of each, and the features themselves, twice, are added. So the outputs of both directions
# together must be as wide as the features twice: there are as many units as features.

# %%
#| export
CELLS = {"lstm": nn.LSTM, "gru": nn.GRU}

def to_the_end(
    x: torch.Tensor,        # (n, length, features)
    lengths: torch.Tensor,  # int64 (n,)
    back: bool = False,     # whether to undo it
) -> torch.Tensor:
    "Move padding from the end of each sequence to its start."
    sign = -1 if back else 1
    return torch.stack([row.roll(sign * (x.shape[1] - int(n)), 0) for row, n in zip(x, lengths)])

@register_network("ich_recurrent")
class Recurrent(nn.Module):
    "The original's sequence model; its names of parameters are kept."
    def __init__(self,
        embedding: int,          # features of a slice
        units: int,              # of each direction
        classes: int,            # outputs (logits) of a slice
        cell: str = "lstm",      # a key of CELLS
        deltas: bool = True,     # whether it gets the differences to both neighbours
        faithful: bool = False,  # whether it reads the padding, before a shorter series, as the original did
    ):
        super().__init__()
        if units != embedding:
            raise RecipeError(f"A sequence model over {embedding} features needs {embedding} units, and got {units}, "
                              "because features and outputs are added.")
        self.embedding, self.deltas, self.faithful = embedding, deltas, faithful
        self.build(3 * embedding if deltas else embedding, units, classes, CELLS[cell])

    def build(self, inputs: int, units: int, classes: int, cell: type):
        "Make the layers."
        self.lstm1 = cell(inputs, units, bidirectional=True, batch_first=True)
        self.lstm2 = cell(2 * units, units, bidirectional=True, batch_first=True)
        self.linear1 = nn.Linear(2 * units, 2 * units)
        self.linear2 = nn.Linear(2 * units, 2 * units)
        self.linear = nn.Linear(2 * units, classes)

    def layers(self,
        x: torch.Tensor,                     # (n, length, inputs)
        lengths: torch.Tensor | None = None, # int64 (n,); None: all of it is read
    ) -> torch.Tensor:                       # logits (n, length, classes)
        "Logits of the slices from the inputs of the first layer."
        first = self.run(self.lstm1, x, lengths)
        second = self.run(self.lstm2, first, lengths)
        features = x[..., :self.embedding]
        hidden = first + second + self.linear1(first).relu() + self.linear2(second).relu()
        return self.linear(hidden + torch.cat([features, features], -1))

    @staticmethod
    def run(layer: nn.Module, x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        "A recurrent layer, which ends and starts at the ends of each sequence."
        if lengths is None:
            return layer(x)[0]
        if isinstance(layer, nn.LSTM) and x.device.type == "cpu":
            return both_directions(layer, x, lengths)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=x.shape[1])[0]

    def read(self,
        values: torch.Tensor,   # (n, length, features) of series of one length
    ) -> torch.Tensor:          # logits (n, length, classes)
        "Logits of series without padding; this way is exported as a graph."
        return self.layers(with_differences(values, None) if self.deltas else values)

    def forward(self,
        padded: dict[str, torch.Tensor],  # values (n, longest, features), padded at the end, and lengths int64 (n,)
    ) -> torch.Tensor:                    # logits (n, longest, classes); without meaning in the padding
        "Logits of padded series."
        values, lengths = padded["values"], padded["lengths"]
        x = with_differences(values, lengths) if self.deltas else values
        if not self.faithful:
            return self.layers(x, lengths)
        return to_the_end(self.layers(to_the_end(x, lengths)), lengths, back=True)

# %%
torch.manual_seed(0)
network = Recurrent(embedding, embedding, classes).eval()
series = [torch.randn(n, embedding) for n in (9, 4, 1)]
with torch.no_grad():
    together = network(pad(series))
    alone = [network.read(s[None])[0] for s in series]
assert all(torch.allclose(together[k, :len(s)], alone[k], atol=1e-6) for k, s in enumerate(series))
try:
    Recurrent(embedding, 128, classes)
except RecipeError as e:
    print(e)

# %% [markdown]
# ## What came out
# The prediction of one series, alone and beside longer ones. The original's way, `faithful`, depends on the company.

# %%
faithful = Recurrent(embedding, embedding, classes, faithful=True).eval()
faithful.load_state_dict(network.state_dict())
fig, axes = plt.subplots(1, 2, figsize=(8, 2.4), sharey=True)
with torch.no_grad():
    for ax, (name, model) in zip(axes, {"ours": network, "faithful": faithful}.items()):
        for longest in (4, 9, 30):
            batch = pad([series[1], torch.randn(longest, embedding)])
            ax.plot(model(batch)[0, :4, 5], marker="o", label=f"beside {longest} slices")
        ax.set(title=name, xlabel="slice")
    moved = (faithful(pad([series[1], series[0]]))[0, :4] - faithful(pad([series[1]]))[0]).abs().max()
axes[0].set_ylabel("logit of any")
axes[1].legend(fontsize=8)
fig.tight_layout()
assert moved > 1e-3

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)

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
# # Budget
# > A run with a time limit measures its own speed, and drops the least important work first.
#
# A submission that has not ended when its time is up scores nothing, however good its networks are. Its speed is known
# only on the machine where it runs. So the planner measures it during the run. If there is not enough time for
# everything, the planner changes to a cheaper mode, and never to a cheaper one than necessary.

# %%
#| default_exp core.budget

# %%
#| export
import math
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.stream import Watch

# %%
#| hide
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mammo_nb.core.stream import flow, grouped

# %% tags=["parameters"]
items = 8_000       # items of the simulated competition; the hidden test set of RSNA 2023 had about as many images
hours = 9           # time limit of its notebook, in hours

# %% [markdown]
# ## A span of time
# A budget is written as people write a time.

# %%
#| export
class BudgetError(ProjectError):
    "A time budget that cannot be read."

def read_budget(
    text: str,         # such as "8h30m", "45m", "90s" or "30600"; "" means no limit
) -> float | None:     # seconds; None means no limit
    "Read a time budget; raises BudgetError for any other text and for zero."
    if not text:
        return None
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    seconds = 0.0
    if text.isdecimal():
        seconds = float(text)
    elif found:
        seconds = float(sum(int(number or 0) * unit for number, unit in zip(found.groups(), (3600, 60, 1))))
    if not seconds:
        raise BudgetError(f"The time budget {text!r} cannot be read; write 8h30m, 45m, 90s or a number of seconds.")
    return seconds

def in_words(
    seconds: float,
) -> str:           # such as "8 h 30 min"
    "Format a span of time; seconds are shown only below ten minutes."
    whole = max(0, round(seconds))
    parts = [(whole // 3600, "h"), (whole // 60 % 60, "min"), (whole % 60 if whole < 600 else 0, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"

# %%
assert [read_budget(t) for t in ("8h30m", "45m", "90s", "30600", "1h5s", "")] == [30600, 2700, 90, 30600, 3605, None]
for wrong in "8.5h", "0", "m", "30 min":
    try:
        read_budget(wrong)
    except BudgetError as e:
        print(e)
    else:
        raise AssertionError
in_words(30600), in_words(90)

# %% [markdown]
# ## Modes
# A mode is one way to predict an item. Horizontal-flip TTA is dropped first, because it doubles the work of the network
# and adds the least. Networks of the ensemble follow, and then resolution, which makes decoding faster as well. The
# JSON of an ensemble lists such cheaper variants. An ensemble without variants can drop the TTA only.

# %%
#| export
@dataclass(frozen=True)
class Mode:
    "One way to predict an item."
    name: str               # name of the engine: of the whole ensemble, or of a cheaper variant
    folds: int              # number of networks in it
    size: tuple[int, ...]   # shape of its input: height and width, or depth, height and width
    flip: bool = False      # whether the prediction is the mean over the input and its horizontal flip
    views: int = 1          # views of the input in one prediction, where the system makes the views by itself

    def __str__(self):
        if self.views > 1:
            return f"{self.name} with TTA of {self.views} views"
        return f"{self.name} with flip TTA" if self.flip else self.name

    @property
    def passes(self) -> int:
        "Number of passes of the network for one item."
        return self.views * (2 if self.flip else 1)

    @property
    def work(self) -> int:
        "Pixels or voxels that all networks together process in one pass; the time is about proportional to it."
        return self.folds * math.prod(self.size)

def read_modes(
    metadata: dict,         # the JSON of an ensemble: folds, size and optionally variants
    flip: bool,             # whether horizontal-flip TTA is wanted while there is time
    name: str = "ensemble", # name of the ensemble's engine
) -> list[Mode]:            # from best to cheapest
    "The modes that an ensemble offers."
    whole = Mode(name, metadata["folds"], tuple(metadata["size"]))
    variants = [Mode(v["name"], v["folds"], tuple(v["size"])) for v in metadata.get("variants", [])]
    if flip:
        return [Mode(name, whole.folds, whole.size, flip=True), whole, *variants]
    return [whole, *variants]

# %%
four = {
    "folds": 4, "size": [2048, 1024],
    "variants": [{"name": "ensemble_2", "folds": 2, "size": [2048, 1024]},
                 {"name": "ensemble_2_small", "folds": 2, "size": [1024, 512]}],
}
modes = read_modes(four, flip=True)
assert [m.passes * m.work / modes[-1].work for m in modes] == [16, 8, 4, 1]
assert read_modes({"folds": 4, "size": [8, 8]}, flip=False) == [Mode("ensemble", 4, (8, 8))]
assert Mode("ensemble", 4, (8, 8), views=3).passes == 3
[str(m) for m in modes]

# %% [markdown]
# ## Speed
# Decoding and the network work at the same time, so an item takes as long as the slower of the two. Both are measured
# over the latest items: the seconds of a file in a process for each input size, and the seconds of an item in one pass
# of each engine. The first batch of an engine is left out when there are more, because an engine warms up in it. An
# engine that has not run yet is expected to take time in proportion to its pixels. Its files are expected to take as
# long as the others', which is an upper bound. Where the two parts share cores, both together take longer than the
# slower one alone. So the estimate is multiplied by the measured time of the last batches over their expected time.

# %%
#| export
_LATEST = 128  # items in the means: enough for a stable mean, few enough to follow a machine whose speed changes

def _mean(values) -> float:
    return sum(values) / len(values)

def _per_second(seconds: float, parts: int) -> float:
    return round(parts / max(seconds, 1e-9), 3)

class Pace(Watch):
    "Watches a stream and estimates the seconds of an item in each mode."
    def __init__(self,
        modes: list[Mode],   # from best to cheapest
        workers: int = 1,    # number of processes that decode
        networks: int = 1,   # number of devices that predict
        clock: Callable = time.monotonic,  # returns seconds
    ):
        super().__init__(workers, networks, clock)
        self.modes, self.mode = modes, modes[0]
        self._decodes = {}       # size -> seconds of the latest files
        self._passes = {}        # name of an engine -> (whether it was a first batch, seconds of an item in a pass)
        self._ends = deque()     # (end, items, mode) of the batches since an engine was last opened
        self._running = {}       # number of a network -> name of its engine
        self._factor = 1.0       # measured over expected time
        self._since = 0          # batches since the mode has changed

    def decoded(self, mode: Mode, start: float, end: float):
        super().decoded(mode, start, end)
        self._decodes.setdefault(mode.size, deque(maxlen=_LATEST)).append(end - start)

    def answered(self, mode: Mode, network: int, count: int, start: float, end: float):
        super().answered(mode, network, count, start, end)
        first, self._running[network] = self._running.get(network) != mode.name, mode.name
        self._passes.setdefault(mode.name, deque(maxlen=16)).append((first, (end - start) / count / mode.passes))
        if first:
            self._ends.clear()  # the time since the batch before includes the opening of an engine
        self._ends.append((end, count, mode))
        while sum(n for _, n, _ in self._ends) > _LATEST:
            self._ends.popleft()
        if mode == self.mode:
            self._since += 1
        if len(self._ends) > 2:
            expected = sum(n * self._expected(m) for _, n, m in list(self._ends)[1:])
            self._factor = min(5.0, max(0.5, (self._ends[-1][0] - self._ends[0][0]) / max(expected, 1e-9)))

    def _pass(self, name: str) -> float:
        "Measured seconds of an item in one pass of an engine."
        known = self._passes[name]
        return _mean([s for first, s in known if not first] or [s for _, s in known])

    def _network(self, mode: Mode) -> float:
        "Seconds of an item in the network: measured, or in proportion to a mode that was measured."
        if mode.name in self._passes:
            return mode.passes * self._pass(mode.name)
        like = next(m for m in self.modes if m.name in self._passes)
        return mode.passes * self._pass(like.name) * mode.work / like.work

    def _decode(self, mode: Mode) -> float:
        "Seconds of a file in one process: measured, or the largest that was measured."
        if mode.size in self._decodes:
            return _mean(self._decodes[mode.size])
        return max(map(_mean, self._decodes.values()))

    def _expected(self, mode: Mode) -> float:
        return max(self._decode(mode) / self.workers, self._network(mode) / self.networks)

    def estimate(self,
        mode: Mode,
    ) -> float:      # seconds
        "Seconds that an item takes in a mode; at least one batch must have ended."
        return self._factor * self._expected(mode)

    def rates(self) -> dict:  # items a second of all processes by input size, and of all networks by engine
        "The measured speed of each part by itself."
        sizes = {"x".join(map(str, size)): _per_second(_mean(s), self.workers) for size, s in self._decodes.items()}
        passes = {name: _per_second(self._pass(name), self.networks) for name in self._passes}
        return {"decoding": sizes, "network, one pass": passes}

# %% [markdown]
# ## The plan
# Before each group the planner chooses the best mode in which all remaining items would be ready in time. A change must
# last for a few batches, since every change opens an engine. The planner returns to a better mode one step at a time,
# and only with five percent of time to spare. Each time that the better mode was too slow again, it waits twice as many
# batches before it tries again. If even the cheapest mode is too slow, the planner takes it and begins groups as long
# as they can end in time. The remaining items then stay without a prediction.
#
# The plan ends three percent before the time limit. The last group ends one percent later. What has not ended another
# percent later is given up, even if a file or a network hangs.

# %%
#| export
class Planner(Pace):
    "Chooses the mode of each group so that everything ends in time."
    def __init__(self,
        modes: list[Mode],               # from best to cheapest
        *,
        group: int,                      # items in a group
        seconds: float | None = None,    # time limit, counted from `started`; None means no limit
        workers: int = 1,                # number of processes that decode
        networks: int = 1,               # number of devices that predict
        clock: Callable = time.monotonic,  # returns seconds
        started: float | None = None,    # start by the clock; None means now
        show: Callable = tqdm.write,     # prints a line when the plan changes
    ):
        super().__init__(modes, workers, networks, clock)
        self.started = clock() if started is None else started
        self.group, self.show = group, show
        self.log = []                    # a dict for each change of the plan
        self._short = False              # whether it is known that items will remain
        self._patience = 3 * networks    # batches before a better mode is tried
        self.aim = self.last = self.until = None  # end of the plan, of the last group, of everything
        if seconds:
            # the reserve is for writing the files and for the unforeseen
            reserve = max(0.03 * seconds, min(3.0, 0.3 * seconds))
            self.aim, self.last, self.until = (self.started + seconds - reserve * share for share in (1, 2 / 3, 1 / 3))

    def choose(self, busy: int, left: int) -> Mode | None:
        "The best mode that ends in time; None if there is no time for another group."
        if self.aim is None:
            return self.mode
        time_left = self.aim - self.clock()
        if not self._passes:
            return self.mode if time_left > 0 else None
        costs, now = [self.estimate(m) for m in self.modes], self.modes.index(self.mode)
        fits = next((k for k, cost in enumerate(costs) if left * cost * (1.05 if k < now else 1) <= time_left), None)
        # up one step at a time: a measurement of a better mode may be old
        wanted = len(costs) - 1 if fits is None else max(fits, now - 1)
        if wanted != now and self._since >= (3 * self.networks if wanted > now else self._patience):
            self._change(self.modes[wanted], left, left * costs[now], time_left)
        cost = self.estimate(self.mode)
        cheapest = self.mode == self.modes[-1] and self._since >= 3 * self.networks
        if fits is None and cheapest and not self._short:
            self._leave(left, cost, time_left)
        if fits is None and min(busy + self.group, left) * cost > self.last - self.clock():
            return None
        return self.mode

    def _note(self, line: str, left: int, **more):
        after = self.clock() - self.started
        self.log.append(
            {"after_seconds": round(after, 1), "items_left": left, "mode": str(self.mode), **more, "why": line})
        self.show(f"after {in_words(after)}: {line}")

    def _change(self, mode: Mode, left: int, needed: float, time_left: float):
        old, self.mode, self._since = self.mode, mode, 0
        worse = self.modes.index(mode) > self.modes.index(old)
        if worse and next((entry["better"] for entry in reversed(self.log) if "better" in entry), False):
            self._patience *= 2  # the last change was to a better mode, and it was too slow
        self._short = self._short and worse
        if worse:
            reason = f"{left} items with {old} would take {in_words(needed)}, and {in_words(time_left)} are left"
        else:
            reason = f"there is time again, {in_words(time_left)} for {left} items"
        self._note(f"{reason}; continue with {mode}", left, better=not worse)

    def _leave(self, left: int, cost: float, time_left: float):
        self._short = True
        reached = max(0, min(left, int(time_left / cost)))
        self._note(
            f"{left} items with {self.mode} would take {in_words(left * cost)}, and {in_words(time_left)} are left; "
            f"about {left - reached} of them will not be reached", left)

# %% [markdown]
# Nine hours are simulated with a clock that the parts move themselves: each file adds the time of its decoding, each
# batch adds the time of its networks. The first machine has time for everything. The second has time for the ensemble
# without TTA only. The disk of the third becomes slower during the run. The fourth is too slow for every mode.

# %%
#| hide
class Clock:
    "A clock that stands still until a part of the simulation moves it."
    def __init__(self):
        self.now = 0.0
    def __call__(self):
        return self.now

def simulate(decode_seconds, pass_seconds, opening=20.0):
    "Rows and planner of a run: `decode_seconds(share done, size)` a file, `pass_seconds` a pass of the whole ensemble."
    clock, done, name = Clock(), [0], [None]
    planner = Planner(modes, group=8, seconds=hours * 3600, clock=clock, show=print)
    def decode(item, mode):
        clock.now += decode_seconds(done[0] / items, mode.size)
        done[0] += 1
        return {}, np.zeros((2, 2), np.uint8)
    def network(mode, pictures):
        if name[0] != mode.name:
            clock.now += opening
        name[0] = mode.name
        clock.now += len(pictures) * pass_seconds * mode.passes * mode.work / modes[0].work
        return [{"network": str(mode)}] * len(pictures)
    todo = dict.fromkeys(range(items), "")
    stream = flow(grouped(todo, todo, 8), decode, [network], planner, workers=0, limit=24, until=planner.until)
    return pd.DataFrame([json.loads(row) for _, row in stream]), planner

machines = {
    "quick": (lambda share, size: .5, .9),
    "slow network": (lambda share, size: .5, 2.2),
    "disk becomes slow": (lambda share, size: (.5 if share < .4 else 3.2) * (size[0] / 2048), 1.5),
    "too slow": (lambda share, size: 9.0 * (size[0] / 2048), 6.0),
}
runs = {}
for name, machine in machines.items():
    print(f"--- {name}")
    runs[name] = simulate(*machine)

# %%
for name, (rows, planner) in runs.items():
    assert planner.clock() < hours * 3600, name
quick, network, disk, hopeless = (rows for rows, _ in runs.values())
assert len(quick) == len(network) == len(disk) == items and len(hopeless) < items
assert (quick["network"] == str(modes[0])).all() and not runs["quick"][1].log
assert set(network["network"]) <= {str(m) for m in modes[:2]} and str(modes[-1]) in set(disk["network"])
pd.DataFrame({
    name: {
        **{str(m): int((rows["network"] == str(m)).sum()) for m in modes},
        "not reached": items - len(rows), "ended after": in_words(planner.clock())
    } for name, (rows, planner) in runs.items()
}).T

# %% [markdown]
# ## What came out
# The mode of each batch over the nine hours, and the number of remaining items. The grey line is the time limit.

# %%
fig, axes = plt.subplots(1, len(runs), figsize=(13, 3), sharey=True)
for ax, (name, (rows, planner)) in zip(axes, runs.items()):
    ends, ways = np.array([b[4] for b in planner.batches]) / 3600, [modes.index(b[0]) for b in planner.batches]
    left = items - np.cumsum([b[2] for b in planner.batches])
    for k, mode in enumerate(modes):
        ax.plot(ends[np.equal(ways, k)], left[np.equal(ways, k)], ".", ms=3, label=str(mode))
    ax.axvline(hours, color="lightgrey")
    ax.set(title=f"{name}: {left[-1]} left", xlabel="hours", xlim=(0, hours * 1.05))
axes[0].set_ylabel("items left")
axes[0].legend(fontsize=8, loc="upper right", markerscale=3)
fig.tight_layout()

# %% [markdown]
# ---
# [← Submitting](60_submitting.py) · [Submission →](62_submission.py)

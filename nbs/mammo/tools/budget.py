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
# # Budget
# > A run that must end in time knows its own speed, and says what it gives up.
#
# A submission that is not finished when the time is up scores nothing, however good its networks are. What it costs is
# known only on the machine where it runs, so the planner measures while it works: if everything cannot be done, it
# drops first what matters least, and no more than it must.

# %%
#| default_exp mammo.tools.budget

# %%
#| export
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

from mammo_nb.core.stream import Watch

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

# %% tags=["parameters"]
images = 8_000      # of a simulated competition: the hidden test set had about as many
hours = 9           # that its notebook may take

# %% [markdown]
# ## How long
# As people write it.

# %%
#| export
class BudgetError(Exception):
    "A time that cannot be read, with examples of those that can."

def read_budget(
    text: str,         # "8h30m", "45m", "90s", "30600"; "": none
) -> float | None:     # seconds; None: no limit
    "A span of time."
    if not text:
        return None
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text) if not text.isdecimal() else None
    seconds = float(text) if text.isdecimal() else sum(
        int(n or 0) * u for n, u in zip(found.groups(), (3600, 60, 1))) if found else 0.0
    if not seconds:
        raise BudgetError(f"{text!r} is no time; write 8h30m, 45m, 90s or a number of seconds.")
    return seconds

def in_words(seconds: float) -> str:
    "The other way round."
    whole = max(0, round(seconds))
    parts = [
        f"{n} {unit}"
        for n, unit in ((whole // 3600, "h"), (whole // 60 % 60, "min"), (whole % 60 if whole < 600 else 0, "s")) if n
    ]
    return " ".join(parts) or "0 s"

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
# ## What can be given up
# The mirror image first: it doubles the work of the network and adds the least. Then networks of the ensemble, then
# resolution, which makes decoding quicker as well. The JSON of an ensemble lists such variants, from best to cheapest;
# an ensemble without any has only the mirror image to give.

# %%
#| export
@dataclass(frozen=True)
class Mode:
    "One way to do an image."
    name: str               # of the engine: ensemble, or a variant of it
    folds: int              # networks in it
    size: tuple[int, int]   # height, width of its input
    flip: bool = False      # the mean of the probabilities of picture and mirror image

    def __str__(self):
        return self.name + " and mirror image" * self.flip

    @property
    def passes(self) -> int:
        return 1 + self.flip

    @property
    def work(self) -> int:
        # pixels that networks look at in one pass; time is about proportional
        return self.folds * self.size[0] * self.size[1]

def read_modes(
    metadata: dict,   # ensemble.json: folds, size, perhaps variants
    flip: bool,       # with the mirror image, if there is time
    name: str = "ensemble",
) -> list[Mode]:      # from best to cheapest
    "The ways that an ensemble offers."
    whole = Mode(name, metadata["folds"], tuple(metadata["size"]))
    variants = [Mode(v["name"], v["folds"], tuple(v["size"])) for v in metadata.get("variants", [])]
    return [Mode(name, whole.folds, whole.size, True)] * flip + [whole, *variants]

# %%
four = {
    "folds": 4, "size": [2048, 1024], "variants": [{"name": "ensemble_2", "folds": 2, "size": [2048, 1024]},
                                                   {"name": "ensemble_2_small", "folds": 2, "size": [1024, 512]}]
}
modes = read_modes(four, flip=True)
assert [m.passes * m.work / modes[-1].work for m in modes] == [16, 8, 4, 1] and read_modes(
    {"folds": 4, "size": [8, 8]}, False) == [Mode("ensemble", 4, (8, 8))]
[str(m) for m in modes]

# %% [markdown]
# ## What it would take
# Decoding and network work at the same time, so an image takes as long as the slower of them needs. Both are measured,
# over the latest images: seconds of a file in a process, by size; seconds of a picture in a pass of a network, by
# variant, the first batch of each left out if there are more, since engines get ready in it. A variant that has not run
# yet is expected to take time in proportion to the pixels that its networks see, and its files as much as the others',
# which is more than they will. What the two parts together really need stands above that, where they share cores; so
# the estimate is multiplied by the time that the last batches took over the time that they should have.

# %%
#| export
_LATEST = 128  # images that count: enough for a mean, few enough to follow a machine that changes

def _mean(values) -> float:
    return sum(values) / len(values)

class Pace(Watch):
    "Watches a stream, and knows how fast each part of it is."
    def __init__(self,
        modes: list[Mode],   # from best to cheapest
        workers: int = 1,    # processes that decode
        networks: int = 1,
        clock: Callable = time.monotonic,
    ):
        super().__init__(workers, networks, clock)
        self.modes, self.mode = modes, modes[0]
        # size -> seconds; name -> (whether it was a first batch, seconds); (end, images, mode) since the last first
        # batch
        self._decodes, self._passes, self._ends = {}, {}, deque()
        # network -> name; measured over expected time; batches since the mode changed
        self._running, self._factor, self._since = {}, 1.0, 0

    def decoded(self, mode: Mode, start: float, end: float):
        super().decoded(mode, start, end)
        self._decodes.setdefault(mode.size, deque(maxlen=_LATEST)).append(end - start)

    def answered(self, mode: Mode, network: int, images: int, start: float, end: float):
        super().answered(mode, network, images, start, end)
        first, self._running[network] = self._running.get(network) != mode.name, mode.name
        self._passes.setdefault(mode.name, deque(maxlen=16)).append((first, (end - start) / images / mode.passes))
        if first:
            self._ends.clear()  # an engine was opened in between
        self._ends.append((end, images, mode))
        while sum(n for _, n, _ in self._ends) > _LATEST:
            self._ends.popleft()
        self._since += mode == self.mode
        if len(self._ends) > 2:
            expected = sum(n * self._expected(m) for _, n, m in list(self._ends)[1:])
            self._factor = min(5.0, max(0.5, (self._ends[-1][0] - self._ends[0][0]) / max(expected, 1e-9)))

    def _pass(self, name: str) -> float:
        "Measured seconds of a picture in one pass."
        known = self._passes[name]
        return _mean([s for first, s in known if not first] or [s for _, s in known])

    def _network(self, mode: Mode) -> float:
        "Seconds of a picture, measured or expected from a variant that was."
        if mode.name in self._passes:
            return mode.passes * self._pass(mode.name)
        like = next(m for m in self.modes if m.name in self._passes)
        return mode.passes * self._pass(like.name) * mode.work / like.work

    def _decode(self, mode: Mode) -> float:
        return _mean(self._decodes[mode.size]) if mode.size in self._decodes else max(map(
            _mean, self._decodes.values()))

    def _expected(self, mode: Mode) -> float:
        return max(self._decode(mode) / self.workers, self._network(mode) / self.networks)

    def estimate(self,
        mode: Mode,
    ) -> float:      # seconds an image, once a batch has come back
        "What an image takes."
        return self._factor * self._expected(mode)

    def rates(self) -> dict:  # images a second, measured: of all processes by size, of all networks by variant and pass
        "How fast each part is by itself."
        of = lambda seconds, parts: round(parts / max(seconds, 1e-9), 3)
        return {
            "decoding": {f"{h}x{w}": of(_mean(s), self.workers) for (h, w), s in self._decodes.items()},
            "network, one pass": {name: of(self._pass(name), self.networks) for name in self._passes}
        }

# %% [markdown]
# ## The plan
# Before each group: the best way in which all that is left would be done in time. A change has to stand for a few
# batches, since every change opens an engine; back to something better it goes by one step, if there is room of five
# percent, and after each time that this was too much, twice as many batches. If even the cheapest way is too slow, it
# is taken, and groups are begun as long as they can be finished; the images that are left then stay without a
# prediction. The plan ends three percent before the time does, the last group one percent later, and what is not
# finished another percent later is given up, even if a file or a network hangs.

# %%
#| export
class Planner(Pace):
    "Says how to do the next group, so that everything ends in time."
    def __init__(self,
        modes: list[Mode],               # from best to cheapest
        *,
        group: int,                      # images in a group
        seconds: float | None = None,    # from `started` to the end of everything; None: no limit
        workers: int = 1,                # processes that decode
        networks: int = 1,
        clock: Callable = time.monotonic,
        started: float | None = None,    # by the clock; None: now
        say: Callable = tqdm.write,      # gets a line when the plan changes
    ):
        super().__init__(modes, workers, networks, clock)
        self.started, self.group, self.say, self.log = clock() if started is None else started, group, say, []
        # whether images will be left; batches before something better is tried
        self._short, self._patience = False, 3 * networks
        # for the files, and for what was not foreseen
        reserve = max(0.03 * seconds, min(3.0, 0.3 * seconds)) if seconds else 0.0
        # the plan's end; the end of the last group; of everything
        self.aim, self.last, self.until = (self.started + seconds - reserve * share if seconds else None
                                           for share in (1, 2 / 3, 1 / 3))

    def choose(self, busy: int, left: int) -> Mode | None:
        "The best mode that ends in time; None: there is no time for another group."
        if self.aim is None:
            return self.mode
        time_left = self.aim - self.clock()
        if not self._passes:
            return self.mode if time_left > 0 else None
        costs, now = [self.estimate(m) for m in self.modes], self.modes.index(self.mode)
        fits = next((k for k, cost in enumerate(costs) if left * cost * (1.05 if k < now else 1) <= time_left), None)
        # up by one at a time: what was measured long ago may be so no more
        wanted = len(costs) - 1 if fits is None else max(fits, now - 1)
        if wanted != now and self._since >= (3 * self.networks if wanted > now else self._patience):
            self._change(self.modes[wanted], left, left * costs[now], time_left)
        cost = self.estimate(self.mode)
        if fits is None and self.mode == self.modes[-1] and self._since >= 3 * self.networks and not self._short:
            self._leave(left, cost, time_left)
        return None if fits is None and min(busy + self.group, left) * cost > self.last - self.clock() else self.mode

    def _note(self, line: str, left: int, **more):
        after = self.clock() - self.started
        self.log.append(
            {"after_seconds": round(after, 1), "images_left": left, "mode": str(self.mode), **more, "why": line})
        self.say(f"after {in_words(after)}: {line}")

    def _change(self, mode: Mode, left: int, needed: float, time_left: float):
        old, self.mode, self._since = self.mode, mode, 0
        worse = self.modes.index(mode) > self.modes.index(old)
        if worse and next((entry["better"] for entry in reversed(self.log) if "better" in entry), False):
            self._patience *= 2  # it was tried, and was too much
        self._short &= worse
        reason = f"{left} images with {old} would take {in_words(needed)}, and {in_words(time_left)} are left" if worse else ("there "
            f"is time again, {in_words(time_left)} for {left} images")
        self._note(f"{reason}: on with {mode}", left, better=not worse)

    def _leave(self, left: int, cost: float, time_left: float):
        self._short = True
        reached = max(0, min(left, int(time_left / cost)))
        self._note(
            f"{left} images with {self.mode} would take {in_words(left * cost)}, and {in_words(time_left)} are left: "
            f"about {left - reached} of them will not be reached",
            left)

# %% [markdown]
# A clock that jumps stands for nine hours: each file moves it by the time of its decoding, each batch by the time of
# its networks. One machine has time for everything, one for nothing but the plain ensemble, one gets a slower disk on
# its way, and one is hopeless.

# %%
#| hide
import json

from mammo_nb.core.stream import flow, grouped

class Clock:
    "Time that passes when it is told to."
    def __init__(self):
        self.now = 0.0
    def __call__(self):
        return self.now

def simulate(decode_seconds, pass_seconds, opening=20.0):
    "Rows and planner of a run in turn: seconds of a file at (share done, size), of a pass of the whole ensemble."
    clock, done, name = Clock(), [0], [None]
    planner = Planner(modes, group=8, seconds=hours * 3600, clock=clock, say=print)
    def decode(item, mode):
        clock.now += decode_seconds(done[0] / images, mode.size)
        done[0] += 1
        return {}, np.zeros((2, 2), np.uint8)
    def network(mode, pictures):
        if name[0] != mode.name:
            clock.now += opening
        name[0] = mode.name
        clock.now += len(pictures) * pass_seconds * mode.passes * mode.work / modes[0].work
        return [{"network": str(mode)}] * len(pictures)
    todo = dict.fromkeys(range(images), "")
    rows = [
        json.loads(r)
        for _, r in flow(grouped(todo, todo, 8), decode, [network], planner, workers=0, limit=24, until=planner.until)
    ]
    return pd.DataFrame(rows), planner

machines = {
    "quick": (lambda share, size: .5, .9), "slow network": (lambda share, size: .5, 2.2), "slow disk on the way": (
        lambda share, size: (.5 if share < .4 else 3.2) * (size[0] / 2048), 1.5), "hopeless": (lambda share, size: 9.0 *
                                                                                               (size[0] / 2048), 6.0)
}
runs = {}
for name, machine in machines.items():
    print(f"--- {name}")
    runs[name] = simulate(*machine)

# %%
for name, (rows, planner) in runs.items():
    assert planner.clock() < hours * 3600, name
quick, network, disk, hopeless = (rows for rows, _ in runs.values())
assert len(quick) == len(network) == len(disk) == images and (quick["network"] == str(
    modes[0])).all() and not runs["quick"][1].log
assert set(network["network"]) <= {str(m) for m in modes[:2]} and str(modes[-1]) in set(
    disk["network"]) and len(hopeless) < images
pd.DataFrame({
    name: {
        **{str(m): int((rows["network"] == str(m)).sum()) for m in modes}, "not reached": images - len(rows),
        "ended after": in_words(planner.clock())
    } for name, (rows, planner) in runs.items()
}).T

# %% [markdown]
# ## What came out
# How each batch was done, over the nine hours, and how much was left. The grey line is the end of the time.

# %%
fig, axes = plt.subplots(1, len(runs), figsize=(13, 3), sharey=True)
for ax, (name, (rows, planner)) in zip(axes, runs.items()):
    ends, ways = np.array([b[4] for b in planner.batches]) / 3600, [modes.index(b[0]) for b in planner.batches]
    left = images - np.cumsum([b[2] for b in planner.batches])
    for k, mode in enumerate(modes):
        ax.plot(ends[np.equal(ways, k)], left[np.equal(ways, k)], ".", ms=3, label=str(mode))
    ax.axvline(hours, color="lightgrey")
    ax.set(title=f"{name}: {left[-1]} left", xlabel="hours", xlim=(0, hours * 1.05))
axes[0].set_ylabel("images left")
axes[0].legend(fontsize=7, loc="upper right", markerscale=3)
fig.tight_layout()

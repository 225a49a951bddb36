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
# # A stream
# > Processes that decode, a network that predicts, and a short queue between them.
#
# A mammogram is decoded on a core of the CPU, and predicted where the network is, often on another device. One after
# the other, each waits for the other half of the time; all files first, and their pictures fill a disk. In a stream
# both work at once, and the pictures between them are few enough to stay in memory.

# %%
#| default_exp core.stream

# %% tags=["parameters"]
n_files = 40   # files of the demonstration
workers = 2    # processes that decode

# %%
#| export
import json
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread

import numpy as np

from mammo_nb.core.parallel import LOST, Processes, _plain

# %%
#| hide
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from mammo_nb.core.parallel import collect

# %% [markdown]
# ## Groups
# A network takes several pictures at once. Which pictures share a batch could be left to chance, to whoever is decoded
# first; but some back ends answer a picture in company differently in the last digit, and then two runs would differ.
# So the groups are fixed before anything starts, by the order of the items, and a resumed run finds the same ones. A
# group waits for its slowest file; meanwhile the files of the next ones are decoded.

# %%
#| export
def grouped(
    names: Iterable,  # of all items, in their order
    todo: dict,       # name -> item, those that are still to be done
    size: int,        # items in a group
) -> list[dict]:      # name -> item each; none is empty
    "Which items share a batch."
    names = list(names)
    groups = [{n: todo[n] for n in names[k:k + size] if n in todo} for k in range(0, len(names), size)]
    return [g for g in groups if g]

@dataclass(eq=False)
class _Group:
    "Items that go through the network together."
    mode: object                                  # how they are done, as `choose` said
    names: tuple                                  # in their order
    waiting: set                                  # names that are not decoded yet
    pictures: dict = field(default_factory=dict)  # name -> picture
    rows: dict = field(default_factory=dict)      # name -> row so far

# %%
assert grouped("abcdefg", dict.fromkeys("abdefg", 0), 3) == [{"a": 0, "b": 0}, {"d": 0, "e": 0, "f": 0}, {"g": 0}]

# %% [markdown]
# ## Who waited
# Every decoded file and every batch leaves its start and its end. From these come the share of time in which a part had
# nothing to do, and, for a run that has to end in time, the speed of each part. `choose` is asked before a group is
# begun: how it is to be done, or None for nothing at the moment.

# %%
#| export
class Watch:
    "What a stream did, and when."
    def __init__(self,
        workers: int = 1,    # processes that decode
        networks: int = 1,
        clock: Callable = time.monotonic,  # seconds; the processes share it
    ):
        self.workers, self.networks, self.clock = max(1, workers), networks, clock
        self.decodes, self.batches = [], []   # (mode, start, end); (mode, network, images, start, end)
        # files being decoded, and pictures in the queue or in a network, at one time
        self.most_held = 0
        self.started = clock()

    def choose(self,
        busy: int,  # images that were begun and are not finished
        left: int,  # images that are not finished, these included
    ):              # anything but None: how the next group is done
        "How to do the next group."
        return "all"

    def decoded(self, mode, start: float, end: float):
        "A file was decoded."
        self.decodes.append((mode, start, end))

    def answered(self, mode, network: int, images: int, start: float, end: float):
        "A batch came back."
        self.batches.append((mode, network, images, start, end))

    def waited(self) -> dict:  # "decoding", "network" -> share of the time, 0 to 1
        """The share of the time between the first file's start and the last batch's end in which each part had nothing
        to do (the mean over its processes, or networks)."""
        if not self.batches:
            return {}
        start, end = min(d[1] for d in self.decodes), max(b[4] for b in self.batches)
        share = lambda spans, parts: round(
            min(1.0, max(0.0, 1 - sum(b - a for a, b in spans) / (parts * max(end - start, 1e-9)))), 4)
        return {
            "decoding": share([d[1:] for d in self.decodes], self.workers), "network": share(
                [b[3:] for b in self.batches], self.networks)
        }

# %%
watch = Watch(workers=2)
for start in (0, 0, 1, 1):
    watch.decoded("all", start, start + 1)
watch.answered("all", 0, 4, 2, 4)
assert watch.waited() == {"decoding": 0.5, "network": 0.5}   # both processes two of four seconds, and then the network

# %% [markdown]
# ## A network in a thread
# A back end lets go of Python while it computes, so a thread each is enough for several of them, one a GPU. Each takes
# a group when it has finished the last one.

# %%
#| export
def _decoded(decode: Callable, clock: Callable, job: tuple) -> tuple:
    "row, picture, error, start, end: in a process; never raises an Exception."
    started = clock()
    try:
        row, picture, error = *decode(*job), ""
    except Exception as e:
        row, picture, error = {}, None, f"{type(e).__name__}: {e}"  # the run goes on; the reason is in the table
    return row, picture, error, started, clock()

class _Network:
    "A network and its thread."
    def __init__(self, number: int, network: Callable, collate: Callable, events: SimpleQueue, clock: Callable,
                 threaded: bool):
        self.number, self.network, self.collate, self.events, self.clock = number, network, collate, events, clock
        self.inbox = SimpleQueue() if threaded else None
        if threaded:
            # daemon: one that hangs must not keep the process alive
            Thread(target=self._work, daemon=True, name=f"network {number}").start()

    def _work(self):
        for group in iter(self.inbox.get, None):
            self._answer(group)

    def _answer(self, group: _Group):
        started = self.clock()
        try:
            answers = self.network(group.mode, self.collate(list(group.pictures.values())))
        except BaseException as e:
            answers = e  # raised by `flow`, in its own thread
        self.events.put((self, group, answers, started, self.clock()))

    def ask(self, group: _Group):
        self.inbox.put(group) if self.inbox else self._answer(group)

    def close(self):
        if self.inbox:
            self.inbox.put(None)

# %% [markdown]
# ## The stream
# One loop in the calling process: give whole groups to networks that are free, have files decoded while there is room,
# wait for whatever finishes first. Room is what bounds the memory: a file counts from the start of its decoding until
# its network has answered. The [processes](03_parallel.py) are those of every other run over many files, so a codec
# that crashes costs its own file. A network that fails is another matter: it would fail on the next group too, and the
# run ends.

# %%
#| export
class _Stream:
    "The state of a stream; see `flow`."
    def __init__(self, groups: list, networks: list, watch: Watch, processes: Processes, limit: int):
        self.watch, self.processes, self.limit = watch, processes, limit
        # images not finished; of these in a group that was begun; of these started
        self.left, self.busy, self.held = sum(map(len, groups)), 0, 0
        # open: name -> group; rest: names and items of the group that is begun
        self.groups, self.ready, self.idle, self.open, self.rest = iter(groups), deque(), deque(networks), {}, deque()

    def feed(self):
        "Give whole groups to free networks, and start decoding while there is room."
        while self.ready and self.idle:
            self.idle.popleft().ask(self.ready.popleft())
        while self.held < self.limit and (self.rest or self._begin()):
            name, item = self.rest.popleft()
            self.held += 1
            self.processes.start(name, (item, self.open[name].mode))
        self.watch.most_held = max(self.watch.most_held, self.held)

    def _begin(self) -> bool:
        "Begin another group, if there is one and `choose` wants it."
        if self.busy == self.left or (mode := self.watch.choose(self.busy, self.left)) is None:
            return False
        items = next(self.groups)
        group = _Group(mode, tuple(items), set(items))
        self.busy += len(items)
        self.open.update(dict.fromkeys(items, group))
        self.rest.extend(items.items())
        return True

    def _finish(self, name, row: dict):
        self.left, self.busy, self.held = self.left - 1, self.busy - 1, self.held - 1
        return name, json.dumps(row, default=_plain)

    def decoded(self, name, result: tuple):
        "Rows that end with the decoding of a file: its own, if it failed."
        row, picture, error, start, end = result
        group = self.open.pop(name)
        if end is not None:
            self.watch.decoded(group.mode, start, end)
        group.waiting.discard(name)
        if not error:
            group.rows[name], group.pictures[name] = row, picture
        if not group.waiting and group.pictures:
            # their order, too, is not left to chance
            group.pictures = {n: group.pictures[n] for n in group.names if n in group.pictures}
            self.ready.append(group)
        if error:
            yield self._finish(name, {"error": error})

    def answered(self, network: _Network, group: _Group, answers, start: float, end: float):
        "Rows that end with a batch."
        if isinstance(answers, BaseException):
            raise answers
        self.idle.append(network)
        self.watch.answered(group.mode, network.number, len(group.pictures), start, end)
        for name, answer in zip(group.pictures, answers):
            yield self._finish(name, {**group.rows[name], "error": "", **answer})

def flow(
    groups: list[dict],        # name -> item each, from `grouped`
    decode: Callable,          # item, mode -> row, picture; in a process
    networks: list[Callable],  # mode, pictures (n, ...) -> a dict each, added to the rows; each in a thread of its own
    watch: Watch,
    *,
    workers: int,              # processes; 0: everything in turn, in this thread
    limit: int,                # files that are held at one time: being decoded, waiting, or in a network
    until: float | None = None,  # by the watch's clock: what is not finished then is given up; None: never
    collate: Callable = np.stack,  # list of pictures -> what a network takes
):                             # yields (name, row as JSON) in the order they finish; closing it ends the processes
    "Rows of all items that `choose` wanted, as long as there is time."
    if groups and limit < max(map(len, groups)):
        raise ValueError(f"a stream that holds {limit} files never fills a group of {max(map(len, groups))}")
    events, lost = SimpleQueue(), ({}, None, LOST, None, None)
    threads = [_Network(k, network, collate, events, watch.clock, workers > 0) for k, network in enumerate(networks)]
    try:
        # a slow network may leave them without work for minutes
        with Processes(partial(_decoded, decode, watch.clock), workers, lost, events, idle=600) as processes:
            stream = _Stream(groups, threads, watch, processes, limit)
            while until is None or watch.clock() < until:
                stream.feed()
                if not stream.held:
                    return  # nothing is under way, and nothing more is wanted
                try:
                    event = events.get(timeout=None if until is None else max(0.0, until - watch.clock()))
                except Empty:
                    return
                if isinstance(event, tuple):
                    yield from stream.answered(*event)
                elif found := processes.take(event):
                    yield from stream.decoded(*found)
    finally:
        for thread in threads:
            thread.close()

# %% [markdown]
# Files of noise, some of which take longer than others, a decoder that smooths them and a network that wants four at
# once. One file is empty.

# %%
folder = Path(tempfile.mkdtemp())
files = [{"file": folder / f"{k:02}.npy", "rounds": 1 + 3 * (k % 5 == 0)} for k in range(n_files)]
for k, item in enumerate(files):
    np.save(item["file"], np.random.default_rng(k).random((256, 256), np.float32))
files[3]["file"].write_bytes(b"")

def decode(item, mode):
    picture = np.load(item["file"])
    for _ in range(item["rounds"] * 40):
        picture = (picture + np.roll(picture, 1, 0) + np.roll(picture, 1, 1)) / 3
    return {"rounds": item["rounds"]}, picture

def network(mode, pictures):
    for _ in range(40):
        pictures = np.sort(pictures, 1)
    return [{"roughness": p.std().round(6)} for p in pictures]

def through(name, workers, networks=1, limit=16):
    watch = Watch(max(1, workers), networks)
    rows_of = lambda todo, done: flow(grouped(todo, todo, 4), decode, [network] * networks, watch, workers=workers,
                                      limit=limit)
    return collect(rows_of, files, table=folder / name, label=name), watch

found, watch = through("stream.csv", workers)
assert (found["error"] != "").sum() == 1 and watch.most_held <= 16
found.assign(file=[Path(f).name for f in found["file"]]).head()

# %% [markdown]
# The same in turn, and with two networks. Neither the order in which files finished nor the number of anything shows in
# the table:

# %%
for name, how in {
        "turn.csv": dict(workers=0), "two.csv": dict(workers=workers, networks=2), "short.csv": dict(
            workers=workers, limit=4)
}.items():
    _, w = through(name, **how)
    assert (folder / name).read_bytes() == (folder / "stream.csv").read_bytes() and w.most_held <= how.get("limit", 16)
    print(f"{name:10} {w.waited()}")

# %% [markdown]
# ## What came out
# Files in the processes above, batches in the network below. White is waiting: at first for processes to start, then
# whoever is quicker for the other.

# %%
fig, ax = plt.subplots(figsize=(9, 2.6))
begin = min(d[1] for d in watch.decodes)
free = [begin] * workers   # which process it was is not recorded; files are laid into lanes
for _, start, end in sorted(watch.decodes, key=lambda d: d[1]):
    lane = next((k for k, f in enumerate(free) if f <= start + 1e-4), int(np.argmin(free)))
    free[lane] = end
    ax.barh(1.2 + lane, end - start, left=start - begin, height=0.8, color="steelblue", edgecolor="white", lw=0.5)
for _, _, n, start, end in watch.batches:
    ax.barh(0, end - start, left=start - begin, height=0.8, color="orange", edgecolor="white", lw=0.5)
ax.set(yticks=[0, *(1.2 + k for k in range(workers))],
       yticklabels=["network", *(f"process {k}" for k in range(workers))], xlabel="seconds", title=", ".join(
           f"{k} waited {v:.0%}" for k, v in watch.waited().items()))
fig.tight_layout()

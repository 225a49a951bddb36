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
# # Stream
# > Processes that decode, a network that predicts, and a short queue between them.
#
# An image is decoded on a core of the CPU and predicted on the device of the network, which is often another one. If
# the two take turns, each waits half of the time. If all files are decoded first, their pictures fill a disk. In a
# stream both work at the same time, and the few pictures between them fit into memory.

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

from mammo_nb.core.files import StorageError, recording
from mammo_nb.core.processes import FILES, LOST, Processes, marked, plain

# %%
#| hide
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from mammo_nb.core.parallel import collect

# %% [markdown]
# ## Groups
# A network predicts a batch of several pictures at once. On some backends the last digit of a prediction depends on the
# other pictures of its batch. If the batches were formed in the order of decoding, two runs could differ. So the groups
# are fixed by the order of the items before anything starts, and a resumed run forms the same groups. A group waits for
# its slowest file, and the files of the next groups are decoded in the meantime.

# %%
#| export
def grouped(
    names: Iterable,  # names of all items, in their order
    todo: dict,       # name -> item, of the items that are not finished
    size: int,        # number of items in a group
) -> list[dict]:      # one dict name -> item per group; none is empty
    "Divide items into groups that share a batch."
    names = list(names)
    groups = [{n: todo[n] for n in names[k:k + size] if n in todo} for k in range(0, len(names), size)]
    return [g for g in groups if g]

@dataclass(eq=False)
class _Group:
    "Items that go through the network together."
    mode: object                                  # how they are predicted, from `choose`
    names: tuple                                  # names of the items, in their order
    waiting: set                                  # names of the items that are not decoded yet
    pictures: dict = field(default_factory=dict)  # name -> picture
    rows: dict = field(default_factory=dict)      # name -> row, without the prediction

# %%
assert grouped("abcdefg", dict.fromkeys("abdefg", 0), 3) == [{"a": 0, "b": 0}, {"d": 0, "e": 0, "f": 0}, {"g": 0}]

# %% [markdown]
# ## Timing
# The start and the end of every decoded file and of every batch are recorded. They give the share of time in which each
# part was idle, and the speed of each part for a run that must end in time. Before a group is started, `choose` decides
# how it is predicted. It may return None to start nothing at the moment.

# %%
#| export
class Watch:
    "Times of a stream: when each file was decoded and each batch predicted."
    def __init__(self,
        workers: int = 1,    # number of processes that decode
        networks: int = 1,   # number of networks
        clock: Callable = time.monotonic,  # function that gives seconds; all processes share its zero
    ):
        self.workers, self.networks, self.clock = max(1, workers), networks, clock
        self.decodes = []   # (mode, start, end)
        self.batches = []   # (mode, network, images, start, end)
        self.most_held = 0  # largest number of files in decoding and pictures in the queue or in a network, at one time
        self.started = clock()

    def choose(self,
        busy: int,  # number of images that were started and are not finished
        left: int,  # number of images that are not finished, including these
    ):              # the mode of the next group; None: start no group now
        "Choose how the next group is predicted."
        return "all"

    def decoded(self, mode, start: float, end: float):
        "Record that a file was decoded; times in seconds."
        self.decodes.append((mode, start, end))

    def answered(self, mode, network: int, images: int, start: float, end: float):
        "Record that a batch was predicted; times in seconds."
        self.batches.append((mode, network, images, start, end))

    def waited(self) -> dict:  # "decoding", "network" -> share of the time, 0 to 1
        """Give the share of time in which each part was idle, between the start of the first file and the end of the
        last batch. It is the mean over the processes or over the networks."""
        if not self.batches:
            return {}
        start, end = min(d[1] for d in self.decodes), max(b[4] for b in self.batches)

        def share(spans, parts):
            busy = sum(b - a for a, b in spans) / (parts * max(end - start, 1e-9))
            return round(min(1.0, max(0.0, 1 - busy)), 4)

        return {
            "decoding": share([d[1:] for d in self.decodes], self.workers),
            "network": share([b[3:] for b in self.batches], self.networks)
        }

# %%
watch = Watch(workers=2)
for start in (0, 0, 1, 1):
    watch.decoded("all", start, start + 1)
watch.answered("all", 0, 4, 2, 4)
# both processes decode for two of four seconds, then the network predicts for two
assert watch.waited() == {"decoding": 0.5, "network": 0.5}

# %% [markdown]
# ## A network in a thread
# A backend releases Python's lock while it computes, so one thread per network is enough, also for several GPUs. Each
# network takes the next group when it has finished the previous one.

# %%
#| export
def _decoded(decode: Callable, clock: Callable, job: tuple) -> tuple:
    "Decode one file in a process: row, picture, error, start, end. Every Exception but StorageError becomes the error."
    started = clock()
    try:
        with recording() as written:
            row, picture = decode(*job)
        if files := marked(written):
            row = {**row, FILES: files}
        error = ""
    except StorageError:
        raise
    except Exception as e:
        row, picture, error = {}, None, f"{type(e).__name__}: {e}"  # the run continues; the reason is in the table
    return row, picture, error, started, clock()

class _Network:
    "A network and its thread."
    def __init__(self, number: int, network: Callable, collate: Callable, events: SimpleQueue, clock: Callable,
                 threaded: bool):
        self.number, self.network, self.collate, self.events, self.clock = number, network, collate, events, clock
        self.inbox = SimpleQueue() if threaded else None
        if threaded:
            # daemon: a network that hangs must not keep the process alive
            Thread(target=self._work, daemon=True, name=f"network {number}").start()

    def _work(self):
        "Predict groups until None comes: the function of the thread."
        for group in iter(self.inbox.get, None):
            self._predict(group)

    def _predict(self, group: _Group):
        started = self.clock()
        try:
            predictions = self.network(group.mode, self.collate(list(group.pictures.values())))
        except BaseException as e:
            predictions = e  # raised by `flow`, in its own thread
        self.events.put((self, group, predictions, started, self.clock()))

    def predict(self, group: _Group):
        "Predict a group, in the thread if there is one."
        if self.inbox:
            self.inbox.put(group)
        else:
            self._predict(group)

    def close(self):
        "End the thread after its last group."
        if self.inbox:
            self.inbox.put(None)

# %% [markdown]
# ## The stream
# One loop in the calling process gives whole groups to free networks, starts decoding while there is room, and waits
# for the first result. The limit bounds the memory: a file counts from the start of its decoding until it is predicted.
# The processes are those of `map_files` (`33_processes`), so a codec that crashes affects its own file only. A network
# that fails would also fail on the next group, so its error ends the run.

# %%
#| export
class _Stream:
    "The state of a stream; see `flow`."
    def __init__(self, groups: list, networks: list, watch: Watch, processes: Processes, limit: int):
        self.watch, self.processes, self.limit = watch, processes, limit
        self.left = sum(map(len, groups))  # images that are not finished
        self.busy = 0                      # those of them in a group that was started
        self.held = 0                      # those of them in decoding or later
        self.groups = iter(groups)
        self.ready = deque()               # groups that are decoded
        self.idle = deque(networks)
        self.open = {}                     # name -> group
        self.rest = deque()                # names and items of the started group that are not yet decoded

    def feed(self):
        "Give whole groups to free networks, and start decoding while there is room."
        while self.ready and self.idle:
            self.idle.popleft().predict(self.ready.popleft())
        while self.held < self.limit and (self.rest or self._begin()):
            name, item = self.rest.popleft()
            self.held += 1
            self.processes.start(name, (item, self.open[name].mode))
        self.watch.most_held = max(self.watch.most_held, self.held)

    def _begin(self) -> bool:
        "Start the next group, if there is one and `choose` gives a mode for it."
        if self.busy == self.left or (mode := self.watch.choose(self.busy, self.left)) is None:
            return False
        items = next(self.groups)
        group = _Group(mode, tuple(items), set(items))
        self.busy += len(items)
        self.open.update(dict.fromkeys(items, group))
        self.rest.extend(items.items())
        return True

    def _finish(self, name, row: dict):
        "Count an image as finished, and give its name and its row as JSON."
        self.left, self.busy, self.held = self.left - 1, self.busy - 1, self.held - 1
        return name, json.dumps(row, default=plain)

    def decoded(self, name, result: tuple):
        "Take a decoded file. Yields its row if it failed."
        row, picture, error, start, end = result
        group = self.open.pop(name)
        if end is not None:
            self.watch.decoded(group.mode, start, end)
        group.waiting.discard(name)
        if not error:
            group.rows[name], group.pictures[name] = row, picture
        if not group.waiting and group.pictures:
            # the order in the batch must not depend on the order of decoding
            group.pictures = {n: group.pictures[n] for n in group.names if n in group.pictures}
            self.ready.append(group)
        if error:
            yield self._finish(name, {"error": error})

    def answered(self, network: _Network, group: _Group, predictions, start: float, end: float):
        "Take a predicted batch. Yields its rows, or raises the error of the network."
        if isinstance(predictions, BaseException):
            raise predictions
        self.idle.append(network)
        self.watch.answered(group.mode, network.number, len(group.pictures), start, end)
        for name, prediction in zip(group.pictures, predictions):
            yield self._finish(name, {"error": "", **group.rows[name], **prediction})

def flow(
    groups: list[dict],        # from `grouped`, one dict name -> item per group
    decode: Callable,          # (item, mode) -> (row, picture), called in a process
    # (mode, collated pictures) -> one dict per picture, which is added to its row; each is called in its own thread
    networks: list[Callable],
    watch: Watch,
    *,
    workers: int,              # number of processes; 0: everything in turn, in this thread
    limit: int,                # largest number of files in decoding, in the queue and in a network, at one time
    until: float | None = None,  # time of the watch's clock when unfinished items are abandoned; None: never
    collate: Callable = np.stack,  # list of pictures -> the batch that a network takes
):                             # yields (name, row as JSON) in the order in which items finish
    """Compute the rows of all groups for which `choose` gives a mode, as long as there is time. Closing the iterator
    ends the processes. Raises ValueError if the limit is smaller than a group."""
    if groups and limit < max(map(len, groups)):
        raise ValueError(
            f"a stream with limit {limit} never fills a group of {max(map(len, groups))} files. Raise the limit.")
    events = SimpleQueue()
    lost = ({}, None, LOST, None, None)  # as from `_decoded`
    threads = [_Network(k, network, collate, events, watch.clock, workers > 0) for k, network in enumerate(networks)]
    try:
        # the processes may be without work for minutes while a slow network predicts
        with Processes(partial(_decoded, decode, watch.clock), workers, lost, events, idle=600) as processes:
            stream = _Stream(groups, threads, watch, processes, limit)
            while until is None or watch.clock() < until:
                stream.feed()
                if not stream.held:
                    return  # nothing is in progress, and no group is to be started
                try:
                    event = events.get(timeout=None if until is None else max(0.0, until - watch.clock()))
                except Empty:
                    return
                if isinstance(event, tuple):
                    yield from stream.answered(*event)
                else:
                    for found in processes.take(event):
                        yield from stream.decoded(*found)
    finally:
        for thread in threads:
            thread.close()

# %% [markdown]
# The example has files of noise, a decoder that smooths them, some longer than others, and a network that takes four
# pictures at once. One file is empty.

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

    def rows_of(todo, done):
        return flow(grouped(todo, todo, 4), decode, [network] * networks, watch, workers=workers, limit=limit)

    return collect(rows_of, files, table=folder / name, label=name), watch

found, watch = through("stream.csv", workers)
assert (found["error"] != "").sum() == 1 and watch.most_held <= 16
found.assign(file=[Path(f).name for f in found["file"]]).head()

# %% [markdown]
# The same without processes, with two networks, and with the smallest limit. The table depends neither on the order in
# which files finish nor on these numbers:

# %%
variants = {
    "turn.csv": dict(workers=0),
    "two.csv": dict(workers=workers, networks=2),
    "short.csv": dict(workers=workers, limit=4),
}
for name, how in variants.items():
    _, w = through(name, **how)
    assert (folder / name).read_bytes() == (folder / "stream.csv").read_bytes() and w.most_held <= how.get("limit", 16)
    print(f"{name:10} {w.waited()}")

# %% [markdown]
# ## What came out
# Blue bars are files in the processes, orange bars are batches in the network. White is idle time. At first everything
# waits for the processes to start, later the faster part waits for the slower one.

# %%
fig, ax = plt.subplots(figsize=(9, 2.6))
begin = min(d[1] for d in watch.decodes)
free = [begin] * workers   # the process of a file is not recorded, so each file goes to a free lane
for _, start, end in sorted(watch.decodes, key=lambda d: d[1]):
    lane = next((k for k, f in enumerate(free) if f <= start + 1e-4), int(np.argmin(free)))
    free[lane] = end
    ax.barh(1.2 + lane, end - start, left=start - begin, height=0.8, color="steelblue", edgecolor="white", lw=0.5)
for _, _, n, start, end in watch.batches:
    ax.barh(0, end - start, left=start - begin, height=0.8, color="orange", edgecolor="white", lw=0.5)
ax.set(yticks=[0, *(1.2 + k for k in range(workers))],
       yticklabels=["network", *(f"process {k}" for k in range(workers))], xlabel="seconds",
       title=", ".join(f"{k} idle {v:.0%}" for k, v in watch.waited().items()))
fig.tight_layout()

# %% [markdown]
# ---
# [← Series](38_series.py) · [Learning →](40_learning.py)

"""core/ranks and the loop in two processes (gloo): the same as one process with batches twice as large, and the same
bits twice."""
import hashlib
import os
import pkgutil
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mammo_nb.core.files import read_json
from mammo_nb.core.networks import load_weights
from mammo_nb.core.optimisation import Optimisation
from mammo_nb.core.ranks import NodeError, launch, side_by_side, take_part
from mammo_nb.core.train import fit

CONFIG = dict(epochs=2, batch_size=8, optimizer="sgd", lr=.05, min_lr=.01, ema_decay=.9, precision="fp32",
              checkpoint_every=2)


class Points:
    "Sample i is a point near 1 or -1; the light goes out at sample `cut`."
    def __init__(self, cut=0):
        self.cut, self.read = cut, 0

    def __getitem__(self, at):
        self.read += 1
        if self.read == self.cut:
            os._exit(9)
        index, seed = at
        return torch.from_numpy(np.random.default_rng(seed).normal(index % 2 * 2 - 1, 1, 6).astype(
            np.float32)), torch.tensor([float(index % 2)])


def batches(epoch):
    order = np.random.default_rng(epoch).permutation(64)
    return [[(int(i), int(i) + 100 * epoch) for i in part] for part in np.split(order, 8)]


def train(folder, dropout=0., cut=0, joined=False):
    "Run in each process; `joined` puts the batches of two processes into one."
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1))
    deal = (lambda e: [a + b for a, b in zip(batches(e)[::2], batches(e)[1::2])]) if joined else batches
    fit(model, Points(cut), deal, F.binary_cross_entropy_with_logits,
        lambda m, e: {"norm": sum(p.norm() for p in m.parameters())}, Optimisation(**CONFIG), Path(folder))


def bits(folder):
    return hashlib.sha256((folder / "epoch_1.safetensors").read_bytes()).hexdigest()


def train_all(folder):
    "What two processes can do in one launch: each launch takes as long as importing torch twice."
    train(f"{folder}/two")
    train(f"{folder}/whole", .3)
    try:
        fit(nn.Linear(6, 1), Points(), lambda e: batches(e)[:7], F.binary_cross_entropy_with_logits, lambda m, e: {},
            Optimisation(**CONFIG), Path(folder) / "odd")
    except ValueError as e:
        (Path(folder) / "error.txt").write_text(str(e))


@pytest.fixture(scope="module")
def importable():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[1]}")
        yield


@pytest.fixture(scope="module")
def by_two(importable, tmp_path_factory):
    "What two processes have trained."
    folder = tmp_path_factory.mktemp("ranks")
    launch("test_ranks:train_all", [str(folder)], 2)
    return folder


def test_two_processes_do_what_one_does_with_batches_twice_as_large(by_two, tmp_path):
    train(tmp_path / "one", joined=True)
    states = [nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0), nn.Linear(8, 1)) for _ in range(2)]
    for model, folder in zip(states, (tmp_path / "one", by_two / "two")):
        load_weights(model, folder / "epoch_1.safetensors")
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*(s.state_dict().values() for s in states)))


def test_killed_and_resumed_two_processes_end_with_the_same_bits(by_two, tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        launch("test_ranks:train", [str(tmp_path / "cut"), .3, 53], 2)   # in the second epoch, after a checkpoint
    assert (tmp_path / "cut/last.pt").exists() and not (tmp_path / "cut/done.json").exists()
    launch("test_ranks:train", [str(tmp_path / "cut"), .3], 2)
    assert bits(tmp_path / "cut") == bits(by_two / "whole")


def test_batches_that_cannot_be_shared_are_refused(by_two):
    assert "7 batches cannot be shared by 2" in (by_two / "error.txt").read_text()


def test_two_nodes_do_what_one_process_does_with_batches_twice_as_large(importable, by_two, tmp_path, monkeypatch):
    "Two machines with one process each, both of which are this one."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MAMMO_NB_RENDEZVOUS", f"127.0.0.1:{free.getsockname()[1]}")
    code = f"from mammo_nb.core.ranks import launch; launch('test_ranks:train', [{str(tmp_path / 'two')!r}], 1, 2, " \
           f"{str(tmp_path)!r})"
    with subprocess.Popen([sys.executable, "-c", code]) as first:
        while not (tmp_path / "nodes.json").exists():
            assert first.poll() is None
        take_part(tmp_path / "nodes.json")
        assert first.wait() == 0
    assert not (tmp_path / "nodes.json").exists()
    assert read_json(tmp_path / "two/done.json")["processes"] == 2
    train(tmp_path / "one", joined=True)
    models = [nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0), nn.Linear(8, 1)) for _ in range(2)]
    for model, name in zip(models, ("one", "two")):
        load_weights(model, tmp_path / name / "epoch_1.safetensors")
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*(m.state_dict().values() for m in models)))
    assert bits(tmp_path / "two") == bits(by_two / "two")   # two processes of one machine give the same bits
    with pytest.raises(NodeError, match="waits for no machine"):
        take_part(tmp_path / "nodes.json")


# ---- trainings side by side
def train_part(folder, cut, part=0, parts=1):
    "Three trainings, of which the second is interrupted in a process of its own if `cut` is not 0."
    (Path(folder) / f"threads_{part}_{parts}").write_text(str(torch.get_num_threads()))
    torch.set_num_threads(1)
    for k in range(3)[part::parts]:
        train(f"{folder}/{k}", .1 * k, cut if k == 1 and parts > 1 else 0)


def wait_for_parent(folder, part, parts):
    "Say that it runs, and wait for longer than any test."
    os.write(1, f"{os.getpid()}\n".encode())   # one write: the lines of two processes do not mix
    signal.pause()


def test_trainings_side_by_side_end_with_the_same_bits_as_alone(importable, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in ("apart", "alone"):
        (tmp_path / name).mkdir()
    assert not side_by_side("test_ranks:train_part", [str(tmp_path / "apart"), 0], 2)
    assert all((tmp_path / f"apart/{k}/done.json").exists() for k in range(3))
    share = (tmp_path / "apart/threads_1_2").read_text()
    assert share == str(max(1, os.cpu_count() // 2))
    assert side_by_side("test_ranks:train_part", [str(tmp_path / "alone"), 0], 1)
    assert not list((tmp_path / "alone").iterdir())
    threads = torch.get_num_threads()
    train_part(str(tmp_path / "alone"), 0)
    torch.set_num_threads(threads)
    assert [bits(tmp_path / f"apart/{k}") for k in range(3)] == [bits(tmp_path / f"alone/{k}") for k in range(3)]
    assert len({bits(tmp_path / f"apart/{k}") for k in range(3)}) == 3


def test_a_process_that_fails_loses_nothing_of_the_other(importable, tmp_path, capsys):
    assert side_by_side("test_ranks:train_part", [str(tmp_path), 53], 2)
    assert "1 of 2 processes failed" in capsys.readouterr().out
    assert [(tmp_path / f"{k}/done.json").exists() for k in range(3)] == [True, False, True]
    assert (tmp_path / "1/last.pt").exists()   # from which the caller continues


def test_every_name_that_a_notebook_hands_to_other_processes_can_be_imported():
    "The functions of a notebook live in __main__, from where no other process can take them."
    calls = [(path, name) for path in (Path(__file__).parents[1] / "nbs").rglob("*.py")
             for name in re.findall(r"(?:launch|side_by_side)\(\"([^\"]+)\"", path.read_text())]
    assert len(calls) >= 8
    assert all(callable(pkgutil.resolve_name(name)) for _, name in calls)
    with pytest.raises(AttributeError, match="train_nothing"):
        side_by_side("mammo_nb.ich.classify:train_nothing", [], 2)


def test_processes_end_with_a_parent_that_is_killed(importable, tmp_path):
    code = f"import test_ranks as t; t.side_by_side('test_ranks:wait_for_parent', [{str(tmp_path)!r}], 2)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        try:
            children = [int(parent.stdout.readline()) for _ in range(2)]
        finally:
            parent.kill()   # a failure here must not wait for it
        assert parent.stdout.read() == ""   # which ends when the last of them has ended
    assert not any(os.path.exists(f"/proc/{child}/cmdline") and Path(f"/proc/{child}/cmdline").read_bytes()
                   for child in children)

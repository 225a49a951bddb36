"""The loop: the schedule and average by the book, and the same bits however often it is killed. Run as a script, it
trains until it kills itself."""
import hashlib
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.nn import functional as F

from mammo_nb.core.networks import load_weights
from mammo_nb.core.train import Optimisation, fit, learning_rate, make_optimizer, seed_everything, update_ema

CONFIG = Optimisation(epochs=3, batch_size=8, optimizer="adamw", lr=1e-2, min_lr=1e-3, warmup_epochs=1, warmup_lr=1e-3,
                      weight_decay=1e-2, ema_decay=0.9, precision="fp32", clip_norm=1., checkpoint_every=3)
SAMPLES = 44   # five batches of 8 and one of 4: an epoch ends with a smaller batch


class Noisy:
    "Pictures whose noise comes from the sample's seed; at sample `die_at` the process kills itself."
    def __init__(self, die_at=None):
        self.die_at, self.read = die_at, 0

    def __getitem__(self, at):
        self.read += 1
        if self.read == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        index, seed = at
        image = np.random.default_rng(seed).normal(index % 2, 1, (1, 12, 12)).astype(np.float32)
        return torch.from_numpy(image), torch.tensor([float(index % 2)])


def network() -> nn.Module:
    "All that makes resuming hard: dropout, batch normalisation and its counters."
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(8, 8, 3),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(8, 1))


def batches(epoch: int) -> list:
    rng = np.random.default_rng([7, epoch])
    return [[(int(i), int(rng.integers(2**31))) for i in part]
            for part in np.split(rng.permutation(SAMPLES), range(8, SAMPLES, 8))]


def validate(model, epoch) -> dict:
    assert not model.training
    with torch.no_grad():
        return {"score": model(torch.ones(1, 1, 12, 12)).item()}


def train(folder, config=CONFIG, dataset=None, **options) -> pd.DataFrame:
    return fit(network(), dataset or Noisy(), batches, F.binary_cross_entropy_with_logits, validate, config, folder,
               device="cpu", **options)


def digests(folder) -> dict:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(folder).glob("epoch_*.safetensors"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A training in one go: its folder and history."
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, train(folder)


def killed(folder, die_at: int, where: str) -> None:
    "Train in a process of its own that SIGKILLs itself."
    done = subprocess.run(
        [sys.executable, __file__, str(folder), str(die_at), where], stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})
    assert done.returncode == -signal.SIGKILL and not (folder / "done.json").exists()


def test_killed_in_mid_epoch_and_in_mid_write_it_ends_with_the_same_bits(whole, tmp_path):
    seed = random.randrange(10**6)
    rng, folder = random.Random(seed), tmp_path / "run"
    killed(folder, rng.randrange(SAMPLES + 9, 2 * SAMPLES - 9), "sample")   # somewhere inside epoch 1
    killed(folder, 1, "write")                                              # half a checkpoint on disk
    assert torch.load(folder / "last.pt", weights_only=True)["epoch"] == 1, seed   # the one before is whole
    history = train(folder)
    assert digests(folder) == digests(whole[0]) and len(digests(folder)) == 3, seed
    assert history.equals(whole[1]), seed


def test_two_runs_are_the_same_bits_whatever_ran_before(whole, tmp_path):
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    torch.rand(100)
    train(tmp_path / "run")
    assert digests(tmp_path / "run") == digests(whole[0])
    train(tmp_path / "other", replace(CONFIG, seed=43))
    assert digests(tmp_path / "other") != digests(whole[0])   # dropout is drawn from the seed


@pytest.mark.parametrize("change", [{"workers": 2}, {"checkpoint_every": 1}])
def test_loading_processes_and_checkpoints_change_no_bit(whole, tmp_path, change):
    train(tmp_path / "run", replace(CONFIG, **change))
    assert digests(tmp_path / "run") == digests(whole[0])


def test_a_finished_training_is_read_not_repeated(whole):
    def never(*_):
        raise AssertionError("trained again")
    again = fit(network(), None, never, never, never, CONFIG, whole[0], device="cpu")
    assert again.equals(whole[1]) and again["epoch"].tolist() == [0, 1, 2] and again["lr"].tolist() == [
        learning_rate(CONFIG, e) for e in range(3)
    ]


def test_what_is_kept_is_the_average_that_was_validated(whole, tmp_path):
    model = network()
    metadata = load_weights(model, whole[0] / "epoch_2.safetensors")
    assert metadata["epoch"] == 2
    with torch.no_grad():
        assert model.eval()(torch.ones(1, 1, 12, 12)).item() == pytest.approx(whole[1]["score"].iloc[-1], rel=1e-6)
    train(tmp_path / "plain", replace(CONFIG, ema_decay=0.))
    assert digests(tmp_path / "plain")["epoch_2.safetensors"] != digests(whole[0])["epoch_2.safetensors"]


@pytest.mark.parametrize("change", [{"config": replace(CONFIG, lr=2e-2)}, {"identity": {"data": "other"}}])
def test_other_settings_or_data_start_anew(whole, tmp_path, change):
    class PowerCut(Exception):
        pass

    class Cut(Noisy):
        def __getitem__(self, at):
            if self.read == 60:
                raise PowerCut
            return super().__getitem__(at)
    with pytest.raises(PowerCut):
        train(tmp_path / "run", dataset=Cut())
    train(tmp_path / "run", **change)
    train(tmp_path / "fresh", **change)
    assert digests(tmp_path / "run") == digests(tmp_path / "fresh")


def test_a_loss_that_is_no_number_stops_and_keeps_nothing(tmp_path):
    with pytest.raises(FloatingPointError, match="nan.*epoch 0.*learning rate"):
        fit(network(), Noisy(), batches, lambda o, t: (o * float("nan")).mean(), validate, CONFIG, tmp_path,
            device="cpu")
    assert not digests(tmp_path) and not (tmp_path / "done.json").exists()


def test_fp32_and_what_was_used_are_recorded(whole):
    import json
    done = json.loads((whole[0] / "done.json").read_text())
    assert done["half_precision"] == "None" and done["threads"] == torch.get_num_threads() and done["device"] == "cpu"


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_schedule_is_timms(warmup):
    config = replace(CONFIG, epochs=30, lr=3e-3, min_lr=5e-5, warmup_epochs=warmup, warmup_lr=3e-5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    timms = CosineLRScheduler(optimizer, t_initial=30, lr_min=5e-5, warmup_t=warmup, warmup_lr_init=3e-5)
    for epoch in range(31):
        timms.step(epoch)
        assert learning_rate(config, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), epoch
    assert learning_rate(config, 14, 0.5) == pytest.approx((learning_rate(config, 14) + learning_rate(config, 15)) / 2,
                                                           rel=1e-2)


def test_the_average_by_hand():
    model = nn.BatchNorm1d(1)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        model.weight.fill_(3.)
        model.running_mean.fill_(5.)
        model.num_batches_tracked.fill_(8)
    update_ema(average, model, 0.9, step=0)     # decay 1/10: 0.1 * 1 + 0.9 * 3
    assert average["weight"].item() == pytest.approx(2.8) and average["running_mean"].item() == pytest.approx(
        4.5) and average["num_batches_tracked"].item() == 8
    update_ema(average, model, 0.9, step=1000)  # decay 0.9
    assert average["weight"].item() == pytest.approx(0.9 * 2.8 + 0.1 * 3)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_weights_decay_biases_and_normalisation_do_not(kind):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        model[0].bias.fill_(1.)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = make_optimizer(model, replace(CONFIG, optimizer=kind, lr=0.1, weight_decay=0.5))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert [n for n, p in model.named_parameters() if not torch.equal(p, before[n])] == ["0.weight"]


def test_sgd_is_nesterovs_with_the_momentum_asked_for():
    group = make_optimizer(network(), replace(CONFIG, optimizer="sgd", momentum=0.8)).param_groups[0]
    assert group["nesterov"] and group["momentum"] == 0.8
    with pytest.raises(ValueError, match="sgd and adamw"):
        make_optimizer(network(), replace(CONFIG, optimizer="adam"))


def test_deterministic_refuses_what_cannot_be_repeated():
    try:
        seed_everything(1, True)
        assert torch.are_deterministic_algorithms_enabled(
        ) and torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
        a = random.random(), np.random.rand(), torch.rand(1).item()
        seed_everything(1, True)
        assert a == (random.random(), np.random.rand(), torch.rand(1).item())
    finally:
        seed_everything(0, False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_settings_changed_and_changed_back_never_mix_two_trainings(whole, tmp_path):
    class PowerCut(Exception):
        pass

    class Cut(Noisy):
        def __getitem__(self, at):
            if self.read == 60:
                raise PowerCut
            return super().__getitem__(at)
    train(tmp_path / "run")
    with pytest.raises(PowerCut):
        train(tmp_path / "run", replace(CONFIG, lr=1.), dataset=Cut())
    assert train(tmp_path / "run").equals(whole[1]) and digests(tmp_path / "run") == digests(whole[0])


def test_a_shorter_training_leaves_no_epochs_of_a_longer_one(tmp_path):
    train(tmp_path / "run")
    train(tmp_path / "run", replace(CONFIG, epochs=1))
    assert list(digests(tmp_path / "run")) == ["epoch_0.safetensors"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    train(tmp_path / "run")
    (tmp_path / "run" / "done.json").unlink()
    (tmp_path / "run" / "last.pt").write_bytes(b"")
    with pytest.raises(Exception, match="last.pt"):
        train(tmp_path / "run")


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
    killed(tmp_path / "run", 1, "write")
    train(tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*"))


def test_networks_of_volumes_train(tmp_path):
    class Volumes:
        def __getitem__(self, at):
            return torch.full((1, 4, 4, 4), float(at[0] % 2)), torch.tensor([float(at[0] % 2)])
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 1))
    history = fit(model, Volumes(), batches, F.binary_cross_entropy_with_logits, lambda *_: {}, CONFIG, tmp_path,
                  device="cpu")
    assert len(history) == 3


if __name__ == "__main__":
    folder, die_at, where = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if where == "write":
        whole_write = torch.save

        def half_write(content, path):
            whole_write(content, path)
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        torch.save, die_at = half_write, None
    train(folder, dataset=Noisy(die_at))

"""The loop: schedules, EMA, losses and accumulation against torch and by hand, and the same bits however often it is
killed. Run as a script, it trains until it kills itself."""
import copy
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

from mammo_nb.core.batches import PadCollate, pad, step_mask
from mammo_nb.core.networks import load_weights
from mammo_nb.core.optimisation import Optimisation, learning_rate
from mammo_nb.core.steps import (CheckpointError, DivergedError, depthwise_in_float32, make_optimizer,
                                 seed_everything, update_ema)
from mammo_nb.core.train import fit

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
    files = sorted(Path(folder).glob("epoch_*.safetensors"))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A training in one go: its folder and history."
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, train(folder)


def killed(folder, die_at: int, where: str, accumulate: int = 1) -> None:
    "Train in a process of its own that SIGKILLs itself."
    done = subprocess.run([sys.executable, __file__, str(folder), str(die_at), where, str(accumulate)],
                          stderr=subprocess.DEVNULL,
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
    with pytest.raises(DivergedError, match="nan at epoch 0, batch 0. Lower the learning rate"):
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
    assert learning_rate(config, 14, 0.5) == learning_rate(config, 14)   # it changes once an epoch


@pytest.mark.parametrize("schedule, change", [("StepLR", {"schedule": "step", "step_epochs": 3, "step_factor": 0.5}),
                                              ("CosineAnnealingLR", {"schedule": "timm", "min_lr": 1e-3})])
def test_a_training_with_adam_is_torchs_adam_and_scheduler(tmp_path, schedule, change):
    config = replace(CONFIG, epochs=8, optimizer="adam", lr=5e-2, warmup_epochs=0, weight_decay=0., ema_decay=0.,
                     clip_norm=0., **change)
    torch.manual_seed(1)
    ours, theirs = nn.Linear(1, 1), nn.Linear(1, 1)
    theirs.load_state_dict(ours.state_dict())
    points, labels = torch.linspace(-1, 1, 12)[:, None], torch.linspace(-1, 1, 12)[:, None] * 3 + 1

    class Line:
        def __getitem__(self, at):
            return points[at[0]], labels[at[0]]
    history = fit(ours, Line(), lambda epoch: [[(i, 0) for i in range(s, s + 4)] for s in (0, 4, 8)], F.mse_loss,
                  lambda *_: {}, config, tmp_path, device="cpu")
    optimizer = torch.optim.Adam(theirs.parameters(), lr=5e-2)
    options = {"StepLR": {"step_size": 3, "gamma": .5}, "CosineAnnealingLR": {"T_max": 8, "eta_min": 1e-3}}[schedule]
    scheduler, rates = getattr(torch.optim.lr_scheduler, schedule)(optimizer, **options), []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        for s in (0, 4, 8):
            optimizer.zero_grad()
            F.mse_loss(theirs(points[s:s + 4]), labels[s:s + 4]).backward()
            optimizer.step()
        scheduler.step()
    assert history["lr"].tolist() == pytest.approx(rates, rel=1e-9) and rates[0] != rates[-1]
    assert ours.weight.item() == pytest.approx(theirs.weight.item(), rel=1e-5)
    assert ours.bias.item() == pytest.approx(theirs.bias.item(), rel=1e-5)


def test_steps_come_after_the_warm_up_and_need_a_length():
    config = replace(CONFIG, epochs=6, lr=1., warmup_epochs=2, warmup_lr=0., schedule="step", step_epochs=3)
    assert [learning_rate(config, e) for e in range(6)] == pytest.approx([0, .5, 1, .1, .1, .1])
    with pytest.raises(ValueError, match="step_epochs of at least 1"):
        learning_rate(replace(config, step_epochs=0), 4)
    with pytest.raises(ValueError, match="no schedule 'steps'. Choose one of timm, yolox, cosine, step"):
        learning_rate(replace(config, schedule="steps"), 0)


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


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
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
    with pytest.raises(ValueError, match="no optimizer 'lion'. Choose one of sgd, adam, adamw"):
        make_optimizer(network(), replace(CONFIG, optimizer="lion"))


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
    with pytest.raises(CheckpointError, match="run/last.pt is damaged"):
        train(tmp_path / "run")


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
    killed(tmp_path / "run", 1, "write")
    train(tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*"))


# ---- accumulation
def smooth() -> nn.Module:
    "Neither batch normalisation nor dropout: a batch has the gradient of its parts."
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.Tanh(), nn.Linear(8, 1))


def joined(epoch: int, together: int) -> list:
    "Batches put together, the last ones too."
    parts = batches(epoch)
    return [sum(parts[s:s + together], []) for s in range(0, len(parts), together)]


@pytest.mark.parametrize("together", [2, 4])   # six batches, the last of 4 samples: 3 steps, or 2 of which one is short
@pytest.mark.parametrize("change", [{}, {"optimizer": "sgd"}, {"schedule": "cosine", "warmup_epochs": 0}])
def test_accumulated_batches_are_one_batch_as_large(tmp_path, together, change):
    config = replace(CONFIG, **change)
    small, large = smooth(), smooth()
    fit(small, Noisy(), batches, F.binary_cross_entropy_with_logits, validate, replace(config, accumulate=together),
        tmp_path / "small", device="cpu")
    fit(large, Noisy(), lambda e: joined(e, together), F.binary_cross_entropy_with_logits, validate, config,
        tmp_path / "large", device="cpu")
    for name, value in large.state_dict().items():
        assert torch.allclose(small.state_dict()[name], value, rtol=1e-4, atol=1e-6), name
    for model, name in ((small, "small"), (large, "large")):   # the EMA takes one step for each of the optimiser's
        load_weights(model, tmp_path / name / "epoch_2.safetensors")
    assert torch.allclose(small[1].weight, large[1].weight, rtol=1e-4, atol=1e-6)


def test_accumulation_by_hand(tmp_path):
    class One:
        def __getitem__(self, at):
            return torch.ones(1), torch.tensor([float(at[0])])
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    config = Optimisation(epochs=1, batch_size=2, accumulate=2, optimizer="sgd", momentum=0., lr=.1, precision="fp32")
    history = fit(model, One(), lambda epoch: [[(1, 0), (2, 0)], [(6, 0)]], F.mse_loss, lambda *_: {}, config,
                  tmp_path, device="cpu")
    # one step along the mean over three samples of 2 (target - 0); losses (1 + 4) / 2 and 36, their mean over batches
    assert model.weight.item() == pytest.approx(.1 * 2 * (1 + 2 + 6) / 3)
    assert history["loss"].tolist() == pytest.approx([(2.5 + 36) / 2])


def test_killed_in_the_middle_of_an_accumulation_it_ends_with_the_same_bits(tmp_path):
    config = replace(CONFIG, accumulate=4, checkpoint_every=1)   # steps of 4 and of 2 batches
    whole = train(tmp_path / "whole", config)
    killed(tmp_path / "run", SAMPLES + 4 * 8 + 10, "sample", 4)  # in epoch 1, in the sixth batch, after one step
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert (last["epoch"], last["batch"], last["steps"], last["all_batches"]) == (1, 4, 3, 10)
    killed(tmp_path / "run", 5, "sample", 4)                     # and again, before anything new is saved
    assert train(tmp_path / "run", config).equals(whole)
    assert digests(tmp_path / "run") == digests(tmp_path / "whole") and len(digests(tmp_path / "run")) == 3


# ---- nested inputs and outputs
class VolumesWithMasks:
    "A volume, its mask, and as targets a label and the share of the mask that is set."
    def __getitem__(self, at):
        rng = np.random.default_rng(at[0])
        mask = (rng.random((4, 6, 6)) < .5).astype(np.float32)
        volume = torch.from_numpy(rng.normal(at[0] % 2, 1, (1, 4, 6, 6)).astype(np.float32))
        inputs = {"volume": volume, "mask": torch.from_numpy(mask)}
        return inputs, {"label": torch.tensor([float(at[0] % 2)]), "share": (torch.tensor([mask.mean()]),)}


class Masked(nn.Module):
    "Two heads on the features inside the mask."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.label, self.share = nn.Conv3d(1, 4, 3, padding=1), nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, inputs):
        assert set(inputs) == {"volume", "mask"}
        pooled = (torch.relu(self.features(inputs["volume"])) * inputs["mask"][:, None]).mean((2, 3, 4))
        return {"label": self.label(pooled), "share": (self.share(pooled),)}


def two_losses(outputs, targets):
    return {"label": F.binary_cross_entropy_with_logits(outputs["label"], targets["label"]),
            "share": 3 * F.mse_loss(outputs["share"][0], targets["share"][0])}


@pytest.mark.parametrize("workers", [0, 2])
def test_volumes_with_masks_two_heads_and_two_losses(tmp_path, workers):
    model = Masked()
    with torch.no_grad():   # before the first step: the first batch by hand
        samples = [VolumesWithMasks()[at] for at in batches(0)[0]]
        volumes, masks = (torch.stack([inputs[k] for inputs, _ in samples]) for k in ("volume", "mask"))
        outputs = model({"volume": volumes, "mask": masks})
        labels, shares = (torch.stack([v[k] if k == "label" else v[k][0] for _, v in samples])
                          for k in ("label", "share"))
        first = F.binary_cross_entropy_with_logits(outputs["label"], labels) + 3 * (
            (outputs["share"][0] - shares)**2).mean()
    one = replace(CONFIG, epochs=1, workers=workers)
    history = fit(model, VolumesWithMasks(), lambda epoch: batches(0)[:1], two_losses, lambda *_: {}, one,
                  tmp_path / "one", device="cpu")
    assert history["loss"].iloc[0] == pytest.approx(first.item(), rel=1e-5)
    longer = replace(CONFIG, epochs=8, workers=workers, lr=3e-2)
    history = fit(Masked(), VolumesWithMasks(), batches, two_losses, lambda *_: {}, longer, tmp_path / "all",
                  device="cpu")
    assert list(history) == ["epoch", "lr", "loss", "label", "share"]
    assert np.allclose(history["loss"], history["label"] + history["share"])
    assert (history[["label", "share"]].iloc[-1] < history[["label", "share"]].iloc[0]).all()


def test_tensorboard_has_every_named_loss(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    history = fit(Masked(), VolumesWithMasks(), batches, two_losses, lambda *_: {"score": 1.}, CONFIG, tmp_path,
                  device="cpu")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"lr", "loss", "label", "share", "score"} <= set(events.Tags()["scalars"])
    assert [e.value for e in events.Scalars("share")] == pytest.approx(history["share"].tolist(), rel=1e-6)


@pytest.mark.parametrize("terms, scores, text", [
    ({"loss": 1}, {}, "none that is named loss"), ({"lr": 1}, {}, "none that is named loss"), ({}, {}, "at least one"),
    ({"label": 1}, {"label": .5}, "validate returned label")])
def test_names_of_losses_and_scores_are_distinct(tmp_path, terms, scores, text):
    def loss(outputs, targets):
        return {name: outputs["label"].mean() * weight for name, weight in terms.items()}
    with pytest.raises(ValueError, match=text):
        fit(Masked(), VolumesWithMasks(), batches, loss, lambda *_: scores, CONFIG, tmp_path, device="cpu")


def test_an_epoch_without_a_batch_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="gives no batch for epoch 0"):
        fit(Masked(), VolumesWithMasks(), lambda epoch: [], None, lambda *_: {}, CONFIG, tmp_path, device="cpu")


class Sequences:
    "Sequences of 1 to 5 steps whose target is the sum of their values."
    def __getitem__(self, at):
        values = torch.full((at[0] % 5 + 1, 1), at[0] / SAMPLES)
        return {"slices": values, "age": torch.tensor([1.])}, {"steps": values[:, 0], "sum": values.sum()}


class Sums(nn.Module):
    "The sum of the steps that are inside the sequence, times a factor that is to become 1."
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(.5))

    def forward(self, inputs):
        values, lengths = inputs["slices"]["values"][..., 0], inputs["slices"]["lengths"]
        values = torch.where(step_mask(lengths, values.shape[1]), values, 0)
        return {"steps": values * self.factor, "sum": values.sum(1) * self.factor}


def test_padded_sequences_train_with_their_lengths(tmp_path):
    def loss(outputs, targets):
        steps = targets["steps"]
        there = step_mask(steps["lengths"], steps["values"].shape[1])
        return {"steps": F.mse_loss(outputs["steps"][there], steps["values"][there]),
                "sum": F.mse_loss(outputs["sum"], targets["sum"])}
    model = Sums()
    config = Optimisation(epochs=1, batch_size=8, optimizer="sgd", momentum=0., lr=.1, min_lr=.1, precision="fp32")
    # the padding is 99: a loss or a sum that counted it would be far off
    def fit_model(folder, steps: int):
        return fit(model, Sequences(), lambda epoch: [[(4, 0), (10, 0)]] * steps, loss, lambda *_: {}, config, folder,
                   device="cpu", collate=PadCollate(slices=99., steps=99.))
    history = fit_model(tmp_path / "once", 1)
    # five steps of 4/44 and one of 10/44, predicted half as large; the sums are 20/44 and 10/44
    small, large, rest = 4 / SAMPLES, 10 / SAMPLES, 20 / SAMPLES
    assert history["steps"].iloc[0] == pytest.approx((5 * (small / 2)**2 + (large / 2)**2) / 6, rel=1e-5)
    assert history["sum"].iloc[0] == pytest.approx(((rest / 2)**2 + (large / 2)**2) / 2, rel=1e-5)
    gradient = -2 * .5 * ((5 * small**2 + large**2) / 6 + (rest**2 + large**2) / 2)
    assert model.factor.item() == pytest.approx(.5 - .1 * gradient, rel=1e-5)
    fit_model(tmp_path / "long", 300)
    assert model.factor.item() == pytest.approx(1, abs=1e-3)


def test_padding_by_hand_and_names_that_are_not_there():
    padded = pad([torch.tensor([1., 2.]), torch.tensor([3.])], -1.)
    assert padded["values"].tolist() == [[1, 2], [3, -1]] and padded["lengths"].tolist() == [2, 1]
    assert step_mask(padded["lengths"], 2).tolist() == [[True, True], [True, False]]
    inputs, targets = PadCollate(slices=0.)([Sequences()[0, 0], ({"slices": torch.ones(3, 1), "age": torch.ones(1)},
                                                                 {"steps": torch.zeros(1), "sum": torch.ones(())})])
    assert inputs["slices"]["values"].shape == (2, 3, 1) and inputs["age"].shape == (2, 1)
    assert targets["sum"].tolist() == [0, 1]
    with pytest.raises(ValueError, match="no slides. Correct the names for PadCollate"):
        PadCollate(slides=0.)([Sequences()[0, 0]])


def test_optimisation_is_loaded_without_torch():
    code = "import sys, mammo_nb.core.optimisation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


if __name__ == "__main__":
    folder, die_at, where, accumulate = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    if where == "write":
        whole_write = torch.save

        def half_write(content, path):
            whole_write(content, path)
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        torch.save, die_at = half_write, None
    config = CONFIG if accumulate == 1 else replace(CONFIG, accumulate=accumulate, checkpoint_every=1)
    train(folder, config, Noisy(die_at))


class Padded(nn.Conv2d):
    "A kind of convolution with a forward of its own, as timm has some."
    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def test_depthwise_convolutions_of_a_bfloat16_training_have_the_gradients_of_float32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8), Padded(8, 8, 3, stride=2, groups=8),
                          nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 5, groups=2))
    plain, x = copy.deepcopy(model), torch.randn(2, 8, 12, 12).to(torch.bfloat16)
    depthwise_in_float32(model)
    assert [type(a) is not type(b) for a, b in zip(model, plain)] == [True, True, False, False, False]
    for ours, other in zip(copy.deepcopy(model)[:2], plain):
        a, b = x.clone().requires_grad_(), x.clone().float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            made = ours(a)
        wanted = other(b)
        assert made.dtype == torch.bfloat16 and torch.equal(made, wanted.to(torch.bfloat16))
        made.float().square().sum().backward()
        wanted.backward(2 * made.float().detach())   # the gradient that reaches the layer is the same for both
        assert torch.equal(ours.weight.grad, other.weight.grad) and torch.equal(a.grad, b.grad.to(torch.bfloat16))
    assert list(model.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(model(x.float()), plain(x.float()))   # a validation computes as before

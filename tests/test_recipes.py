"The winner's trainings, number by number: learning rates, decay, averages, targets, and what each starts from."
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.nn import functional as F

from mammo_nb.core.files import sha256, write_csv
from mammo_nb.core.networks import WeightsError, create_network, load_weights, read_state, save_weights
from mammo_nb.core.optimisation import Optimisation, learning_rate
from mammo_nb.core.pictures import fit_resize, write_png
from mammo_nb.core.ranks import side_by_side
from mammo_nb.core.recipes import RecipeError, check_section, override
from mammo_nb.core.runs import Run
from mammo_nb.core.steps import Training, half_precision, make_optimizer, update_ema
from mammo_nb.core.train import fit
from mammo_nb.mammo.learning import augment as augment_module
from mammo_nb.mammo.learning.sampler import winner_batches
from mammo_nb.mammo.learning.targets import soft_targets
from mammo_nb.mammo.recipes import Crops, Datasets, Detector, Folds, Train
from mammo_nb.mammo.system import system
from mammo_nb.mammo.train import (BreastCrops, batches_of, build_network, chosen_folds, held_back_probabilities,
                                  initial_weights, settings_of, train_fold, train_folds)

# facts, section 4: folds, softening, LR, least LR, epochs and LR of the warm-up, epochs without the last
TABLE = {"winner_fold2": ("2", .1, 3e-3, 5e-5, 4, 3e-5, 30), "winner_fold3": ("3", .1, 3e-3, 5e-5, 4, 3e-5, 30),
         "winner_stage1": ("0 1", .2, 1e-3, 1e-5, 4, 1e-5, 24), "winner_stage2": ("0 1", .1, 1e-3, 5e-5, 1, 1e-3, 16)}
WINNERS = ["winner", *TABLE, "winner_label_smoothing"]


def training(recipe: str, **loop) -> Train:
    "The section train of a recipe, with changes of its loop."
    section = system.recipe(recipe).section(Train)
    return replace(section, loop=replace(section.loop, **loop))


@pytest.mark.parametrize("name", TABLE)
def test_the_learning_rate_of_every_epoch(name):
    folds, soft, lr, least, warm, start, epochs = TABLE[name]
    settings = training(name)
    assert (settings.folds, settings.soft_positive, settings.label_smoothing) == (folds, soft, 0)
    assert settings.loop.epochs == epochs + 1
    rising = [start + (lr - start) * e / warm for e in range(warm)]
    falling = [least + (lr - least) / 2 * (1 + math.cos(math.pi * e / epochs)) for e in range(warm, epochs)]
    expected = rising + falling + [least]
    rates = [learning_rate(settings.loop, e) for e in range(settings.loop.epochs)]
    assert len(rates) == len(expected) and np.allclose(rates, expected, rtol=1e-12)
    # the cosine has begun when the warm-up ends
    assert rates[0] == start and rates[-1] == least and (max(rates) < lr) == (name != "winner_stage2")


def test_the_learning_rate_is_set_once_an_epoch(tmp_path, monkeypatch):
    class Points:
        def __getitem__(self, at):
            return torch.tensor([float(at[0])]), torch.tensor([float(at[0] % 2)])
    seen, step = [], Training.train_batch

    def train_batch(self, *arguments):
        seen.append(self.optimizer.param_groups[0]["lr"])
        step(self, *arguments)
    monkeypatch.setattr(Training, "train_batch", train_batch)
    config = training("winner_stage2", workers=0).loop
    fit(nn.Linear(1, 1), Points(), lambda epoch: [[(0, 0), (1, 1)]] * 3, F.binary_cross_entropy_with_logits,
        lambda *_: {}, config, tmp_path, device="cpu")
    assert seen == [learning_rate(config, e) for e in range(17) for _ in range(3)]


def test_the_winners_trainings_agree_with_the_facts():
    shared = {
        "network": "convnext_small.fb_in22k_ft_in1k_384", "global_pool": "max", "height": 2048, "width": 1024,
        "drop_rate": .5, "drop_path_rate": .2, "positive_ratio": .1429, "augmentation": .9, "augment": "winner",
        "val_batch_size": 16, "weights": "imagenet"
    }
    loop = {"batch_size": 8, "optimizer": "sgd", "momentum": .9, "weight_decay": 2e-5, "ema_decay": .9998,
            "ema_ramp": -1, "precision": "amp", "workers": 8, "seed": 42, "flat_epochs": 1, "clip_norm": 0,
            "accumulate": 1, "schedule": "timm", "checkpoint_every": 500}
    for name in WINNERS:
        recipe = system.recipe(name)
        assert {k: getattr(recipe.section(Train), k) for k in shared} == shared, name
        assert {k: getattr(recipe.section(Train).loop, k) for k in loop} == loop, name
        assert recipe.section(Train).faithful
        assert (recipe.section(Crops).height, recipe.section(Crops).width) == (0, 0) and "phantom" in recipe.skips
        assert recipe.section(Folds) == Folds(n_folds=4, seed=67, faithful=True)
        assert recipe.section(Datasets) == Datasets("rsna-breast-cancer-detection",
                                                    external="vindr miniddsm cmmd cddcesm bmcd")
    parts = training("winner").by_fold
    assert list(parts) == [replace(training(f"winner_{n}"), folds="") for n in ("stage2", "stage2", "fold2", "fold3")]
    assert parts[0].before == replace(training("winner_stage1"), folds="")


def test_the_winners_detector_agrees_with_the_facts():
    assert system.recipe("winner_roi").section(Detector).loop == Optimisation(
        epochs=400, batch_size=64, optimizer="sgd", lr=1e-3, min_lr=5e-5, schedule="yolox", warmup_epochs=50,
        warmup_lr=1e-5, flat_epochs=5, weight_decay=5e-4, momentum=.9, ema_decay=.9998, ema_ramp=2000, clip_norm=0,
        precision="fp32", seed=42, workers=4, checkpoint_every=1000)


@pytest.mark.parametrize("name", [n for n in system.recipes if n.startswith("winner")])
def test_recipes_of_the_winner_prepare_frames_and_crops_as_he_did(name):
    assert system.recipe(name).section(Detector).faithful
    assert system.recipe(name).section(Crops).faithful or name == "winner_roi"   # which ends before the crops
    assert not system.recipe("demo").section(Crops).faithful and not system.recipe("demo").section(Detector).faithful


def test_every_recipe_is_possible_and_a_slip_in_its_loop_is_an_error():
    for name in system.recipes:
        for kind in (Detector, Train):
            check_section(system.recipe(name).section(kind), kind.__name__)
    train = training("demo")
    assert override(train, {"loop.epochs": 8, "loop.lr": 1}, "train").loop == replace(train.loop, epochs=8, lr=1.)
    for slip, text in {"loop.ema_decy": "has no loop.ema_decy", "epochs": "has no epochs"}.items():
        with pytest.raises(RecipeError, match=text):
            override(train, {slip: 1}, "train")
    with pytest.raises(RecipeError, match="train.loop.ema_decay must be at most 1"):
        override(train, {"loop.ema_decay": 2.}, "train")
    with pytest.raises(TypeError, match="ema_decy"):   # and in a recipe
        Train(loop=Optimisation(epochs=1, batch_size=1, ema_decy=.9))


def test_the_network_pools_by_maximum_and_drops_more_paths_the_deeper():
    model = build_network(training("winner_fold2"))
    paths = [getattr(m.drop_path, "drop_prob", 0.) for m in model.modules() if hasattr(m, "drop_path")]
    assert np.allclose(paths, np.linspace(0, .2, 36))
    assert model.head.drop.p == .5 and model.head.global_pool.pool_type == "max"
    assert model.head.norm.eps == 1e-6 and model.head.fc.weight.shape == (1, 768)
    decayed, rest = make_optimizer(model, training("winner_fold2").loop).param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (2e-5, 0)
    assert (decayed["momentum"], decayed["nesterov"]) == (.9, True)
    assert {p.ndim for p in rest["params"]} == {1} and 1 not in {p.ndim for p in decayed["params"]}
    every = decayed["params"] + rest["params"]
    assert len(every) == 344 and sum(p.numel() for p in every) == 49_455_457
    plain = {id(p) for p in rest["params"]}
    assert id(model.head.fc.bias) in plain and id(model.stages[0].blocks[0].gamma) in plain


def test_the_average_moves_by_the_same_share_from_the_first_step():
    config = training("winner_fold3").loop
    model = nn.Linear(1, 1, bias=False)
    average = {"weight": torch.full((1, 1), 2.0, dtype=torch.float64)}
    for step, weight in enumerate((3.0, 5.0, -1.0)):
        with torch.no_grad():
            model.weight.fill_(weight)
        update_ema(average, model, config.ema_decay, step, config.ema_ramp)
    by_hand = .9998 * (.9998 * (.9998 * 2 + .0002 * 3) + .0002 * 5) + .0002 * -1
    assert average["weight"].item() == pytest.approx(by_hand, rel=1e-12)


def test_targets_by_hand():
    cancer = np.array([0, 1, 1, 0])
    assert np.allclose(soft_targets(cancer, .1), [0, .9, .9, 0]) and np.allclose(soft_targets(cancer, .2),
                                                                                 [0, .8, .8, 0])
    smoothed = training("winner_label_smoothing")
    targets = soft_targets(cancer, smoothed.soft_positive, smoothed.label_smoothing)
    assert np.allclose(targets, [.05, .95, .95, .05]) and targets.dtype == np.float32
    loss = F.binary_cross_entropy_with_logits(torch.zeros(4), torch.from_numpy(targets))
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6)   # in doubt, whatever the target


def test_a_batch_of_the_winners_is_one_cancer_and_seven_others():
    settings = training("winner_fold2")
    cancer = np.array([1] * 20 + [0] * 140)
    batches = batches_of(cancer, settings, 2)(0)
    assert len(batches) == 20 and all(cancer[[i for i, _ in b]].tolist() == [1] + [0] * 7 for b in batches)


def test_the_winners_batches_are_full_shared_by_processes_and_known_for_one_positive_only():
    cancer = np.array([1] * 20 + [0] * 143)
    whole, shared = (winner_batches(cancer, 8, .1429, 42, ranks)(3) for ranks in (1, 3))
    assert len(whole) == 20 and shared == whole[:18] and {len(b) for b in whole} == {8}
    with pytest.raises(ValueError, match="positive_ratio 0.5 do not give. Set train.faithful to False"):
        winner_batches(cancer, 8, .5, 42)
    with pytest.raises(ValueError, match="0 positives"):
        winner_batches(cancer[20:], 8, .1429, 42)
    small = replace(training("winner_fold2"), faithful=False)
    assert sorted(len(b) for b in batches_of(cancer, small, 2)(0)) == [7] * 4 + [8] * 17, "no negative is left out"


def test_a_prediction_that_is_no_number_is_zero_with_faithful_and_an_error_else():
    settings, broken = training("winner_fold2"), np.array([.5, np.nan], np.float32)
    assert held_back_probabilities(broken, settings).tolist() == [.5, 0]
    assert np.isnan(held_back_probabilities(broken, replace(settings, faithful=False))[1])


def test_the_precisions():
    cpu = torch.device("cpu")
    assert half_precision(cpu, "fp16") == torch.float16 and half_precision(cpu, "fp32") is None
    assert Training(nn.Linear(1, 1), Optimisation(precision="fp16"), cpu).scaler.is_enabled()
    with pytest.raises(ValueError, match="no precision 'fp8'. Choose one of amp, fp16, fp32"):
        half_precision(cpu, "fp8")


# ---- what a fold starts from
def test_a_word_stays_a_word_and_a_file_gets_the_number_of_its_fold(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMMO_NB_RUNS", str(tmp_path / "runs"))
    assert [initial_weights(w, 1, tmp_path)
            for w in ("none", "imagenet", "imagenet_lite")] == ["none", "imagenet", "imagenet_lite"]
    assert initial_weights("runs/mine/weights/fold_{fold}.safetensors", 1, tmp_path) == str(
        tmp_path / "runs/mine/weights/fold_1.safetensors")
    assert initial_weights(f"imagenet:{tmp_path}/model.safetensors", 1,
                           tmp_path) == f"imagenet:{tmp_path}/model.safetensors"


def eight_pictures(folder):
    (folder / "images").mkdir()
    for i in range(8):
        write_png(folder / "images" / f"{i}@{i}.png", np.full((40, 20), 30 * i, np.uint8))
    table = pd.DataFrame({
        "patient_id": [str(i) for i in range(8)], "image_id": [str(i) for i in range(8)], "laterality": "L",
        "view": "CC", "cancer": [0, 1] * 4, "fold": [0] * 4 + [1] * 4
    })
    return table, folder / "images"


def test_a_training_goes_on_from_the_weights_of_another_and_starts_anew_when_they_change(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMMO_NB_RUNS", str(tmp_path / "runs"))
    table, images = eight_pictures(tmp_path)
    section = training("tiny", epochs=1, batch_size=2, lr=0.0, min_lr=0.0, warmup_epochs=0, weight_decay=0.0,
                       ema_decay=0.0)
    settings = replace(section, network="resnet10t", height=32, width=32, weights="runs/first/fold_{fold}.safetensors")
    train = lambda: train_fold(table, 1, images, tmp_path / "checkpoints" / "fold_1", settings, {})
    with pytest.raises(WeightsError, match="fold_1.safetensors: no such file.*runs/first"):
        train()
    (tmp_path / "runs/first").mkdir(parents=True)
    for seed in (1, 2):   # the same recipe, other weights in the file
        before, after = create_network("resnet10t", seed=seed), create_network("resnet10t")
        save_weights(before, tmp_path / "runs/first/fold_1.safetensors", {})
        train()
        load_weights(after, tmp_path / "checkpoints/fold_1/epoch_0.safetensors")
        # a learning rate of 0
        assert torch.equal(after.fc.weight, before.fc.weight) and torch.equal(after.conv1[0].weight,
                                                                              before.conv1[0].weight)


def test_a_second_part_goes_on_from_the_last_averaged_weights_of_the_first(tmp_path):
    table, images = eight_pictures(tmp_path)
    tiny = replace(training("tiny", batch_size=2, warmup_epochs=0, ema_decay=0.5), network="resnet10t", weights="none",
                   height=32, width=32)

    def two_parts(**first) -> Train:
        "The first part learns, the second one has a learning rate of 0."
        still = replace(tiny.loop, lr=0.0, min_lr=0.0, weight_decay=0.0, ema_decay=0.0, epochs=1)
        return replace(tiny, loop=still, before=replace(tiny, loop=replace(tiny.loop, epochs=2, **first)))
    train_fold(table, 1, images, tmp_path / "fold_1", two_parts(), {})
    first, second = (read_state(tmp_path / "fold_1" / name)[0]
                     for name in ("before/epoch_1.safetensors", "epoch_0.safetensors"))
    assert all(torch.equal(first[n], second[n]) for n in first if "running" not in n and "tracked" not in n)
    digest = sha256(tmp_path / "fold_1/epoch_0.safetensors")
    (tmp_path / "fold_1/done.json").unlink()
    (tmp_path / "fold_1/before/done.json").unlink()
    # another first part is another training
    train_fold(table, 1, images, tmp_path / "fold_1", two_parts(lr=2e-3), {})
    assert sha256(tmp_path / "fold_1/epoch_0.safetensors") != digest


def test_folds_that_are_trained_at_the_same_time_have_the_bytes_of_folds_trained_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))   # as many as this process has
    table, images = eight_pictures(tmp_path)
    settings = {"network": "resnet10t", "weights": "none", "height": 32, "width": 32, "loop.batch_size": 2,
                "loop.epochs": 1}
    runs = [Run.create(tmp_path / name, system, "tiny", overrides={f"train.{k}": v for k, v in (settings | {
        "jobs": jobs}).items()}) for name, jobs in (("alone", 1), ("beside", 2))]
    for run in runs:
        (run.folder / "processed").mkdir()
        images.rename(run.path("processed/cleaned_images"))
        write_csv(run.path("processed/crops.csv"), table[["patient_id", "image_id"]])
        write_csv(run.path("folds.csv"), table)
        if run.section("train").jobs > 1:
            assert side_by_side("mammo_nb.mammo.train:train_folds", [str(run.folder), run.overrides], 2) == 0
        else:
            train_folds(str(run.folder), run.overrides)
        images = run.path("processed/cleaned_images")
    alone, beside = ([sha256(run.path(f"checkpoints/fold_{k}/epoch_0.safetensors")) for k in (0, 1)] for run in runs)
    assert alone == beside and alone[0] != alone[1]


def test_folds_may_differ_in_training_but_not_in_network():
    train = training("winner")
    own = settings_of(train, [0, 1, 2, 3])
    assert [s.loop.lr for s in own.values()] == [1e-3, 1e-3, 3e-3, 3e-3]
    assert own[1].before.soft_positive == .2 and own[3].before is None
    assert set(settings_of(training("demo"), [0, 1]).values()) == {training("demo")}
    with pytest.raises(RecipeError, match="the trainings of 4 folds, and there are 2 folds"):
        settings_of(train, [0, 1])
    with pytest.raises(RecipeError, match="fold 1 differs in height"):
        settings_of(replace(train, by_fold=(train, replace(train, height=1024))), [0, 1])


def test_only_the_folds_that_are_named_are_trained():
    table = pd.DataFrame({"fold": [3, 0, 1, 2, 0]})
    assert chosen_folds("", table) == [0, 1, 2, 3] and chosen_folds("0 1", table) == [0, 1] and chosen_folds(
        "2", table) == [2]
    with pytest.raises(RecipeError, match="train.folds names 4, and there are 0, 1, 2, 3"):
        chosen_folds("2 4", table)


# ---- pictures
def test_the_winners_policy_comes_before_fitting_and_the_others_after(tmp_path, monkeypatch):
    stored = np.random.default_rng(0).integers(0, 256, (90, 30), dtype=np.uint8)
    write_png(tmp_path / "a@b.png", stored)
    table = pd.DataFrame({"patient_id": ["a"], "image_id": ["b"], "cancer": [1]})
    settings = replace(training("tiny"), height=64, width=32, augmentation=1.0)
    shapes = []
    for policy in ("winner", "light", "baseline"):
        monkeypatch.setitem(augment_module.POLICIES, policy, lambda image, rng: shapes.append(image.shape) or image)
        data = BreastCrops(table, tmp_path, replace(settings, augment=policy), {"mean": .5, "std": .5})
        for at in (3, -1):
            assert (data.picture(0, at) == fit_resize(stored, 64, 32)).all()
    assert shapes == [(90, 30), (64, 32), (64, 32)]   # and nothing for the seed of -1
    smoothed = BreastCrops(table, tmp_path, replace(settings, label_smoothing=.1), {"mean": .5, "std": .5})
    assert smoothed[0, -1][1].item() == pytest.approx(.9 * .9 + .05)


def test_a_picture_with_a_mask_has_two_targets(tmp_path):
    for folder, value in (("cleaned_images", 90), ("cleaned_masks", 0)):
        (tmp_path / folder).mkdir()
        picture = np.full((64, 32), value, np.uint8)
        if folder == "cleaned_masks":
            picture[16:48, :16] = 255
        write_png(tmp_path / folder / "a@b.png", picture)
    table = pd.DataFrame({"patient_id": ["a"], "image_id": ["b"], "cancer": [1], "mask": ["b.png"]})
    settings = replace(training("tiny"), height=64, width=32, soft_positive=.1, augmentation=0., augment="none")
    normalization = {"mean": .5, "std": .5}
    image, target = BreastCrops(table, tmp_path / "cleaned_images", settings, normalization, masks=True)[0, 1]
    assert image.shape == (3, 64, 32) and target["label"].tolist() == pytest.approx([.9])
    assert target["cells"].tolist() == [0, 0, 1, 0, 1, 0, 0, 0]
    without = BreastCrops(table.assign(mask=None), tmp_path / "cleaned_images", settings, normalization, masks=True)
    assert without[0, 1][1]["cells"].tolist() == [0] * 8


@pytest.mark.parametrize("stage, change, text", [
    ("train", {"loop.batch_size": 0}, "train.loop.batch_size must be at least 1, got 0"),
    ("train", {"loop.epochs": 0}, "train.loop.epochs must be at least 1, got 0"),
    ("train", {"loop.lr": float("nan")}, "train.loop.lr must be a finite number, got nan"),
    ("train", {"positive_ratio": float("inf")}, "train.positive_ratio must be a finite number, got inf"),
    ("train", {"height": 0}, "train.height must be at least 16, got 0"),
    ("train", {"height": 100_000}, "train.height must be at most 8192, got 100000. One square picture .* 40.0 GB"),
    ("crops", {"width": 100_000}, "crops.width must be at most 8192"),
    ("detector", {"size": 100}, "detector.size must be a multiple of 32, got 100"),
])
def test_an_impossible_number_is_an_error_before_anything_runs(tmp_path, monkeypatch, stage, change, text):
    monkeypatch.chdir(ROOT)
    overrides = {f"{stage}.{name}": value for name, value in change.items()}
    with pytest.raises(RecipeError, match=text):
        Run.create(tmp_path / "r", system, "demo", overrides=overrides)
    assert not (tmp_path / "r").exists()

"""The mammography system against figures that the original code computed: folds, training, sampler, scores, network.

`PARITY=FOLDER pytest tests/test_parity_mammo*.py` runs another set of figures; see tests/parity.py.
"""
import argparse

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import parity
from mammo_nb.core.ensembles import Ensemble
from mammo_nb.core.metrics import auc, average_precision, best_threshold, pfbeta, threshold_curve
from mammo_nb.core.networks import load_weights
from mammo_nb.core.optimisation import learning_rate
from mammo_nb.core.steps import make_optimizer, update_ema
from mammo_nb.mammo.datasets import per_breast
from mammo_nb.mammo.folds import split
from mammo_nb.mammo.learning.decision import breast_decisions, image_means
from mammo_nb.mammo.learning.targets import soft_targets
from mammo_nb.mammo.recipes import Folds, Train
from mammo_nb.mammo.system import system
from mammo_nb.mammo.train import batches_of, build_network, held_back_probabilities
from parity import FOLDER, arrays, fill, figures, filled, given_input, needs_parity, picture_input, uniform

pytestmark = needs_parity
RECIPES = {"fold_2": "winner_fold2", "fold_3": "winner_fold3", "stage1_fold_0": "winner_stage1",
           "stage1_fold_1": "winner_stage1", "stage2_fold_0": "winner_stage2", "stage2_fold_1": "winner_stage2"}


def part(*keys: str):
    "A part of mammo_training.json; None where the set is absent, so that its cases are not collected."
    if not (FOLDER / "mammo_training.json").is_file():
        return {}
    found = figures("mammo_training")
    for key in keys:
        found = found[key]
    return found


def training(run: str) -> Train:
    return system.recipe(RECIPES[run]).section(Train)


# ---- folds
def test_folds():
    stated = figures("mammo_folds")
    table = pd.DataFrame(stated["rows"], columns=stated["columns"])
    ours = table.assign(dataset="rsna").astype({"patient_id": str, "image_id": str}).drop(columns="fold")
    settings = system.recipe("winner").section(Folds)
    assert settings == Folds(stated["folds"], stated["seed"], faithful=True)
    found = split(ours, settings.n_folds, settings.seed, settings.faithful)
    assert found["fold"].tolist() == table["fold"].tolist(), "exact, also for ids that are kept as text"
    by_fold = found.groupby("fold")
    assert by_fold.size().tolist() == stated["images_per_fold"]
    assert by_fold["cancer"].sum().tolist() == stated["positives_per_fold"]
    newer = split(ours, stated["folds"], stated["seed"])
    assert (newer["fold"] != found["fold"]).mean() > 0.5, "the newer rule is another split"


# ---- training
@pytest.mark.parametrize("run", RECIPES)
def test_recipes(run):
    stated, settings = part("runs", run), training(run)
    loop = settings.loop
    rates = [learning_rate(loop, epoch) for epoch in range(loop.epochs)]
    np.testing.assert_allclose(rates, stated["learning_rate_by_epoch"], atol=1e-12)
    assert loop.epochs == stated["epochs"] and str(stated["fold"]) in settings.folds.split()
    ours = {"lr": loop.lr, "min_lr": loop.min_lr, "warmup_lr": loop.warmup_lr, "warmup_epochs": loop.warmup_epochs,
            "cosine_epochs": loop.epochs - loop.flat_epochs, "smoothing": settings.soft_positive,
            "batch_size": loop.batch_size, "validation_batch_size": settings.val_batch_size,
            "ema_decay": loop.ema_decay, "drop": settings.drop_rate, "drop_path": settings.drop_path_rate,
            "seed": loop.seed}
    assert ours == {key: stated[key] for key in ours} and loop.ema_ramp == -1
    assert stated["clip_grad"] is None and loop.clip_norm == 0
    optimizer, wanted = make_optimizer(nn.Conv2d(1, 1, 1), loop), stated["optimizer"]
    assert type(optimizer).__name__ == wanted["class"]
    for group in optimizer.param_groups:
        assert all(group[key] == wanted[key] for key in ("momentum", "nesterov", "dampening"))
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == sorted(wanted["weight_decay"])


@pytest.fixture(scope="module")
def network():
    return build_network(training("fold_2"))


def test_parameter_groups(network):
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = make_optimizer(network, training("fold_2").loop).param_groups
    found = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in groups}
    assert found == {group["weight_decay"]: set(group["names"]) for group in part("parameter_groups")}


def test_steps_of_sgd_and_the_moving_average():
    stated, expected, loop = part("small"), arrays("mammo_training"), training("fold_2").loop
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 1))
    model.load_state_dict(filled(stated["state_dict"], stated["fill"]["gain"]))
    optimizer = make_optimizer(model, loop)
    for group in optimizer.param_groups:
        group["lr"] = stated["learning_rate"]
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for k in range(1, max(stated["shown"]) + 1):
        x = torch.from_numpy(picture_input(f"step/{k}", (8, 2, 4, 4), "signed"))
        y = torch.from_numpy(soft_targets(uniform(f"step/{k}/target", 8) < 0.25, training("fold_2").soft_positive))
        loss = F.binary_cross_entropy_with_logits(model(x)[:, 0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_ema(average, model, loop.ema_decay, k - 1, loop.ema_ramp)
        if k in stated["shown"]:
            assert loss.item() == pytest.approx(stated["losses"][str(k)], abs=1e-5)
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    key = f"{k}.{name}"
                    np.testing.assert_allclose(value, expected[f"model.{key}"], atol=1e-5, err_msg=key)
                    np.testing.assert_allclose(average[name], expected[f"ema.{key}"], atol=2e-5, err_msg=key)
    assert stated["after_400"]["num_batches_tracked"] == [400, 0], "ours is copied; ConvNeXt has no such number"


@pytest.mark.parametrize("run", part("loss", "values") if part() else ())
def test_loss(run):
    stated, values = part("loss"), part("loss", "values", run)
    logits = torch.tensor(stated["logits"], requires_grad=True)
    settings = training(run)
    targets = torch.from_numpy(soft_targets(np.array(stated["targets"]), settings.soft_positive,
                                            settings.label_smoothing))
    each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    each.mean().backward()
    assert settings.soft_positive == values["smoothing"]
    np.testing.assert_allclose(each.detach(), values["each"], atol=1e-6)
    np.testing.assert_allclose(logits.grad, values["gradient"], atol=1e-6)
    assert each.mean().item() == pytest.approx(values["loss"], abs=1e-6)


@pytest.mark.parametrize("case", part("sampler", "cases") if part() else ())
def test_sampler(case):
    stated, settings = part("sampler"), training("fold_2")
    assert (settings.loop.batch_size, settings.positive_ratio, settings.loop.seed) == (
        stated["batch_size"], stated["ratio"], stated["seed"])
    case = stated["cases"][case]
    labels = np.array(case["labels"])
    batches = batches_of(labels, settings, fold=2)
    for epoch, expected in zip((0, 1, 2, 34), case["epochs_0_1_2_34"]):
        assert [i for batch in batches(epoch) for i, _ in batch] == expected, "exact"
    epochs = [batches(e) for e in range(stated["epochs"])]
    assert {len(b) for b in epochs[0]} == {settings.loop.batch_size} and len(epochs[0]) == case["batches"]
    used = np.bincount([b[0][0] for epoch in epochs for b in epoch], minlength=len(labels))[labels == 1]
    assert [used.min(), used.max()] == case["draws_of_a_positive_in_35_epochs"]


# ---- scores
def scored(labels, probabilities, stated: dict, name: str):
    threshold, score = best_threshold(labels, probabilities)
    curve = threshold_curve(labels, probabilities).set_index("threshold")
    found = {"best_thres": threshold, "best_fbeta": score, "best_pfbeta": score,
             "best_precision": curve.loc[threshold, "precision"], "best_recall": curve.loc[threshold, "recall"],
             "pfbeta": pfbeta(labels, probabilities), "auc": auc(labels, probabilities),
             "prauc": average_precision(labels, probabilities, straight=True)}
    wanted = {key: stated[f"{name}_{key}"] for key in found if f"{name}_{key}" in stated}
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, abs=1e-6, nan_ok=True) and len(wanted) > 5


@pytest.mark.parametrize("case", part("scores") if part() else ())
def test_scores(case):
    stated = part("scores", case)
    images = pd.DataFrame(stated["rows"], columns=stated["columns"]).rename(columns={"preds": "probability"})
    images["probability"] = images["probability"].astype(np.float32)
    scored(images["cancer"], images["probability"], stated["results"], "single")
    breasts = per_breast(images)
    scored(breasts["cancer"], breasts["probability"], stated["results"], "gbmean")
    for site, rows in images.groupby("site_id"):
        breasts_of_site = per_breast(rows)
        scored(breasts_of_site["cancer"], breasts_of_site["probability"], stated["results"], f"gbmean_site{site}")
    curve = threshold_curve(breasts["cancer"], breasts["probability"])
    np.testing.assert_allclose(curve["score"], stated["curve_of_breasts"], atol=1e-6)
    best = curve.loc[curve["score"] >= curve["score"].max() - 1e-9, "threshold"]
    assert [best.min(), best.max(), len(best)] == stated["thresholds_with_the_best_score"]


def test_pf1():
    for case in part("pf1"):
        assert pfbeta(case["targets"], case["predictions"]) == pytest.approx(case["value"], abs=1e-6)


# ---- decisions
def numbers(values) -> np.ndarray:
    "float64 numbers, of which some are written as the text nan, inf or -inf."
    return np.array(values, dtype=object).astype(float)


@pytest.mark.parametrize("case", part("submission", "cases") if part() else ())
def test_decisions(case):
    threshold, case = part("submission", "threshold"), part("submission", "cases", case)
    probabilities = numbers(case["probabilities"])
    table = pd.DataFrame(case["patient_laterality_image"], columns=["patient_id", "laterality", "image_id"])
    table["prediction_id"] = table["patient_id"].astype(str) + "_" + table["laterality"]
    table["probability"] = image_means(probabilities, faithful=True)
    np.testing.assert_allclose(table["probability"], numbers(case["image_means"]), rtol=1e-6, atol=1e-6)
    means = table.groupby("prediction_id")["probability"].mean()
    names, breasts, decisions = zip(*case["breasts"])
    np.testing.assert_allclose(means[list(names)], numbers(breasts), rtol=1e-6, atol=1e-6)
    assert breast_decisions(table, threshold)[list(names)].tolist() == list(decisions), "exact"
    ours = image_means(probabilities)
    assert (np.isfinite(ours) == np.isfinite(probabilities).all(1)).all(), "ours leaves such an image out"


def test_not_a_number_in_validation():
    stated = part("validation_nan")
    logits = torch.tensor([float(v) for v in stated["logits"]])
    probabilities = held_back_probabilities(torch.sigmoid(logits).numpy(), training("fold_2"))
    np.testing.assert_allclose(probabilities, stated["probabilities"], atol=1e-6)


# ---- network
def test_network(network):
    stated, expected = figures("mammo_model"), arrays("mammo_model")
    state = network.state_dict()
    assert [[name, list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in state.items()
            ] == stated["state_dict"] and sum(p.numel() for p in network.parameters()) == stated["parameters"]
    fill(network, stated["fill"]["gain"], stated["fill"]["depthwise"])
    x, stages = torch.from_numpy(given_input(stated["input"])), []
    hooks = [stage.register_forward_hook(lambda _, __, y: stages.append(y.double())) for stage in network.stages]
    with torch.no_grad():
        logits, features = network(x), network.forward_head(network.forward_features(x), pre_logits=True)
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)
    np.testing.assert_allclose(features, expected["pre_logits"], atol=5e-5)
    for k, (y, about) in enumerate(zip(stages, stated["stages"])):
        assert list(y.shape) == about["shape"]
        assert [y.mean().item(), y.std().item()] == pytest.approx([about["mean"], about["std"]], abs=1e-5)
        np.testing.assert_allclose(y.mean((2, 3))[:, ::4], expected[f"stage{k}.pooled"], atol=1e-5)
    paths = [getattr(block.drop_path, "drop_prob", 0.) for stage in network.stages for block in stage.blocks]
    np.testing.assert_allclose(paths, stated["drop_path_by_block"], atol=1e-6)
    assert {m.eps for m in network.modules() if isinstance(m, nn.LayerNorm)} == set(stated["layer_norm_eps"])
    assert network.head.drop.p == stated["dropout"]
    assert network.normalization == {key: tuple(stated["data"][key]) for key in ("mean", "std")}


def test_ensemble_of_published_checkpoints(tmp_path, monkeypatch):
    stated = figures("mammo_model")
    about, of_set = stated["ensemble"], parity.seed()
    how = stated["fill"]["gain"], stated["fill"].get("depthwise", 1.0)
    x = np.floor(255 * 0.999 * picture_input("input/ensemble", (3, 1, 256, 128), "unit")).astype(np.float32)
    members = []
    for own, raw in zip(about["members_filled_with_seed"], about["raw_weights_filled_with_seed"]):
        states = []
        for number in (own, raw):
            monkeypatch.setattr(parity, "seed", lambda number=number: number)
            states.append(filled(stated["state_dict"], *how))
        monkeypatch.setattr(parity, "seed", lambda: of_set)
        path = tmp_path / f"best_convnext_{own}.pth.tar"
        torch.save({"epoch": 8, "state_dict": states[1], "args": argparse.Namespace(lr=3e-3),
                    "state_dict_ema": {f"module.{name}": value for name, value in states[0].items()},
                    "metric": np.float64(0.5)}, path)
        members.append(build_network(training("fold_2")))
        load_weights(members[-1], path)
    ensemble = Ensemble(members, **members[0].normalization).eval()
    with torch.no_grad():
        probabilities = ensemble(torch.from_numpy(x))
    np.testing.assert_allclose(probabilities, about["probabilities"], atol=1e-5)

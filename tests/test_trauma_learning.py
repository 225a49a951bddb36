"Abdominal trauma: networks, losses, metric, graphs, and a training in two processes."
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from sklearn.metrics import log_loss

from mammo_nb.core.ensembles import export_module, rebuild
from mammo_nb.core.networks import WeightsError, load_weights, save_weights
from mammo_nb.core.optimisation import Optimisation
from mammo_nb.core.ranks import launch
from mammo_nb.core.train import fit
from mammo_nb.trauma.learning.classifier import make_classifier
from mammo_nb.trauma.learning.graphs import injury_graph, make_member, member_options
from mammo_nb.trauma.learning.inference import input_name
from mammo_nb.trauma.learning.losses import classifier_loss, dice_loss
from mammo_nb.trauma.learning.scores import (compare, cost, crossfitted, fit_factors, group_losses, model_means,
                                             prior_submission, scaled, score)
from mammo_nb.trauma.learning.segmenter import inflated, make_segmenter
from mammo_nb.trauma.recipes import COLUMNS, GRADES, SUBMITTED, Model
from mammo_nb.trauma.segment import Windows, organ_dice

NETWORK, SIZE = "test_resnet", 32


# ---- two processes
class Bodies:
    "Blocks of noise whose brightness is the label; for both networks."
    def __init__(self, deep: bool):
        self.deep = deep

    def __getitem__(self, at):
        rng = np.random.default_rng(at[0])
        light = at[0] % 3 / 2
        if self.deep:
            window = torch.from_numpy(rng.random((16, 16, 16), np.float32)) + light
            return window, (window[None] > 1).float().expand(5, -1, -1, -1)
        image = torch.from_numpy(rng.random((3, 3, SIZE, SIZE), np.float32)) * light
        return {"image": image}, {"labels": torch.full((3, 2), light), "masks": (image[:, :2] > .5).float()}


def network_of(deep: bool):
    if deep:
        return make_segmenter("resnet10t", (16, 8, 8, 8), seed=1)
    return make_classifier(NETWORK, 2, hidden=8, dropout=0., auxiliary="unet", masks=2, size=SIZE, seed=1)


def train(folder: str, deep: bool, accumulate: int):
    "Run in each process: four steps of two batches."
    torch.set_num_threads(1)
    config = Optimisation(epochs=2, batch_size=2, accumulate=accumulate, optimizer="sgd", lr=.05, schedule="cosine",
                          precision="fp32")
    batches = [[(2 * k, 0), (2 * k + 1, 0)] for k in range(4)]
    loss = dice_loss if deep else classifier_loss(0.125)
    fit(network_of(deep), Bodies(deep), lambda epoch: batches, loss, lambda m, e: {}, config, Path(folder))


@pytest.mark.parametrize("deep", [False, True], ids=["classifier", "segmenter"])
def test_two_processes_equal_one_with_the_same_global_batch(deep, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[1]}")
    launch("test_trauma_learning:train", [str(tmp_path / "two"), deep, 1], 2)
    train(str(tmp_path / "one"), deep, 2)
    one, two = network_of(deep), network_of(deep)
    start = [p.clone() for p in one.parameters()]
    for network, name in ((one, "one"), (two, "two")):
        load_weights(network, tmp_path / name / "epoch_1.safetensors")
    moved = max((a - b).abs().max() for a, b in zip(one.parameters(), start))
    apart = max((a - b).abs().max() for a, b in zip(one.parameters(), two.parameters()))
    assert moved > 1e-3 and apart < 1e-5


# ---- networks
def test_published_weights_of_a_backbone_are_taken_whole(tmp_path):
    torch.manual_seed(3)
    whole = timm.create_model("resnet10t")
    save_weights(whole, tmp_path / "published.safetensors", {})
    made = make_classifier("resnet10t", 2, hidden=4, size=SIZE, weights=f"imagenet:{tmp_path}/published.safetensors")
    own = made.encoder.model.state_dict()
    assert own and all(torch.equal(value, whole.state_dict()[name]) for name, value in own.items())
    deep = make_segmenter("resnet10t", (8,) * 4, f"imagenet:{tmp_path}/published.safetensors")
    kernel = whole.state_dict()["layer1.0.conv1.weight"]
    assert torch.equal(deep.encoder.layer1[0].conv1.weight[..., 1], kernel)
    with pytest.raises(WeightsError, match="other names"):
        make_classifier(NETWORK, 2, size=SIZE, weights=f"imagenet:{tmp_path}/published.safetensors")


def test_frozen_parameters_are_the_first_of_the_backbone_and_stay_as_they_are(tmp_path):
    network = make_classifier(NETWORK, 2, hidden=8, dropout=0., auxiliary="unet", masks=2, size=SIZE, seed=1, freeze=4)
    start = [p.clone() for p in network.parameters()]
    loop = Optimisation(epochs=1, batch_size=2, optimizer="adamw", lr=.05, weight_decay=.1, precision="fp32")
    batches = lambda epoch: [[(0, 0), (1, 0)]]
    fit(network, Bodies(False), batches, classifier_loss(0.125), lambda m, e: {}, loop, tmp_path)
    load_weights(network, tmp_path / "epoch_0.safetensors")
    same = [torch.equal(a, b) for a, b in zip(start, network.parameters())]
    assert same[:4] == [True] * 4 and not any(same[4:6])
    assert all(name.startswith("encoder.") for name, _ in list(network.named_parameters())[:4])


def test_a_wide_head_is_part_of_an_efficientnet():
    network = make_classifier("test_efficientnet", 3, rnn="none", size=SIZE).eval()
    whole = timm.create_model("test_efficientnet", num_classes=0).eval()
    whole.load_state_dict({name.removeprefix("encoder.model."): value for name, value in network.state_dict().items()
                           if not name.startswith("head.")})
    x = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.allclose(network.pooled(network.maps(x)[-1]), whole(x), atol=1e-5)


def test_inflation_keeps_what_a_slice_is():
    "Without neighbours (zero padding outside) a volume of one slice is three 2D results, of which one counts."
    flat = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.BatchNorm2d(3), torch.nn.MaxPool2d(2))
    flat[1].running_mean += .3
    flat.eval()
    x = torch.rand(1, 1, 8, 8)
    expected = flat(x)
    deep = inflated(flat)
    made = deep(x[..., None].expand(-1, -1, -1, -1, 2) * torch.tensor([1., 0.]))
    assert torch.allclose(made[..., 0], expected, atol=1e-6)


# ---- metric
@pytest.fixture(scope="module")
def drawn():
    "Labels of 60 patients, guesses for them, and probabilities under the names of the models' columns."
    rng, table = np.random.default_rng(1), pd.DataFrame(index=[f"p{k}" for k in range(60)])
    for organ, grades in GRADES.items():
        grade = rng.choice(len(grades), 60, p=[.7, *[.3 / (len(grades) - 1)] * (len(grades) - 1)])
        for k, name in enumerate(grades):
            table[f"{organ}_{name}"] = (grade == k).astype(int)
    table["any_injury"] = 1 - table[[f"{o}_healthy" for o in GRADES]].min(axis=1)
    guess = pd.DataFrame(rng.random((60, len(SUBMITTED))), index=table.index, columns=list(SUBMITTED))
    probabilities = pd.DataFrame({
        c: np.clip(.2 + .5 * (table[c] if c in table else 1 - table[f"{c.split('_')[0]}_healthy"])
                   + rng.normal(0, .1, 60), .01, .99) for c in COLUMNS if c != "bowel_marked"})
    return table, guess, probabilities


def test_every_part_is_the_weighted_log_loss_of_scikit_learn(drawn):
    truth, guess, _ = drawn
    parts, ill = group_losses(truth, guess), []
    for organ, grades in GRADES.items():
        names = [f"{organ}_{g}" for g in grades]
        p = guess[names].to_numpy() / guess[names].to_numpy().sum(1, keepdims=True)
        grade = truth[names].to_numpy().argmax(1)
        weights = {"bowel": [1, 2], "extravasation": [1, 6]}.get(organ, [1, 2, 4])
        expected = log_loss(grade, p, sample_weight=np.array(weights)[grade], labels=list(range(len(names))))
        assert parts[organ] == pytest.approx(expected, abs=1e-9)
        ill.append(1 - p[:, 0])
    y = truth["any_injury"].to_numpy()
    expected = log_loss(y, np.max(ill, 0), sample_weight=np.where(y, 6, 1))
    assert parts["any_injury"] == pytest.approx(expected, abs=1e-9)
    assert score(truth, guess) == pytest.approx(np.mean(list(parts.values())))


def test_columns_are_named_and_their_order_means_nothing(drawn):
    truth, _, probabilities = drawn
    shares = truth[list(SUBMITTED)].mean()
    factors = {c: cost(c) for c in SUBMITTED}
    turned = probabilities[probabilities.columns[::-1]]
    assert scaled(turned, factors, shares).equals(scaled(probabilities, factors, shares))
    organs = [c for c in probabilities if not c.startswith("extravasation")]
    other = ["extravasation_injury", "bowel_injury"]
    both = model_means([probabilities[organs], probabilities[other] * .5])
    assert both["bowel_injury"].to_numpy() == pytest.approx(probabilities["bowel_injury"] * .75)
    assert both["liver_low"].equals(probabilities["liver_low"])


def test_factors_improve_where_they_are_fitted_and_folds_do_not_see_themselves(drawn):
    truth, _, probabilities = drawn
    shares, folds = truth[list(SUBMITTED)].mean(), np.arange(60) % 3
    factors = fit_factors(truth, probabilities, shares)
    plain = score(truth, scaled(probabilities, {c: cost(c) for c in SUBMITTED}, shares))
    fitted = score(truth, scaled(probabilities, factors, shares))
    crossed = crossfitted(truth, probabilities, folds, shares)
    assert fitted <= plain and fitted <= score(truth, crossed) and crossed.index.equals(probabilities.index)
    changed = truth.copy()
    changed.loc[folds == 0, [f"liver_{g}" for g in GRADES["liver"]]] = [1, 0, 0]
    again = crossfitted(changed, probabilities, folds, shares)
    assert again[folds == 0].equals(crossed[folds == 0]), "labels of a fold do not reach its own factors"


def test_the_table_compares_the_same_draws(drawn):
    truth, guess, probabilities = drawn
    shares = truth[list(SUBMITTED)].mean()
    good = scaled(probabilities, {c: cost(c) for c in SUBMITTED}, shares)
    table = compare(truth, {"prior": prior_submission(truth.index, shares, True), "guess": guess, "good": good,
                            "again": prior_submission(truth.index, shares, True)}).set_index("step")
    assert table.loc["again", ["change_percent", "change_low", "change_high"]].tolist() == [0, 0, 0]
    assert table.loc["guess", "change_low"] > 0 > table.loc["good", "change_high"]
    assert (table["low"] < table["score"]).all() and (table["score"] < table["high"]).all()


# ---- graphs
def test_the_graph_of_two_kinds_of_models_is_rebuilt_from_its_json(tmp_path):
    models = [Model("organs", NETWORK, size=SIZE, hidden=4, auxiliary="cnn"),
              Model("bleeding", NETWORK, rnn="lstm", size=64, hidden=4, crop=False, auxiliary="none",
                    columns="extravasation_injury bowel_marked")]
    views = {input_name(m.crop, m.size): m.size for m in models}
    options = [member_options(m, list(views)) for m in models]
    members = [make_member(**each, seed=k) for k, each in enumerate(options)]
    for k, member in enumerate(members):
        save_weights(member, tmp_path / f"{k}.safetensors", {})
    graph = injury_graph(members, list(views), list(views.values()), 2)
    rng = np.random.default_rng(0)
    given = [torch.from_numpy(rng.integers(0, 256, (3, 2, 3, s, s), dtype=np.uint8)) for s in views.values()]
    about = export_module(graph, tmp_path / "classifier.onnx", graph.inputs, graph.outputs, {
        "preparation": {}, "rebuild": {"kind": "trauma_member", "mirrored": False, "each": options,
                                       "weights": ["0.safetensors", "1.safetensors"]}})
    with torch.no_grad():
        found = graph(*given)
        assert torch.equal(rebuild(tmp_path, about)(*given), found)
        alone = torch.sigmoid(members[1].labels(members[1].maps(given[1].flatten(0, 1).float() / 255)[-1], 3))
    places = [COLUMNS.index(c) for c in models[1].columns.split()]
    assert found.shape == (3, 2, 2, len(COLUMNS)) and torch.allclose(found[:, 1][..., places], alone, atol=1e-6)
    rest = [k for k in range(len(COLUMNS)) if k not in places]
    assert found[:, 1][..., rest].max() < 1e-12


# ---- Dice of the 3D network
class Bright(torch.nn.Module):
    "Finds a liver where it is bright, and nothing else."
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        organs = torch.full((5,), -9.).scatter(0, torch.tensor([0]), 0.)
        return organs[None, :, None, None, None] + (self.weight * x - .5)[:, None] * torch.tensor(
            [9., 0, 0, 0, 0])[None, :, None, None, None]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_dice_over_windows_is_that_of_a_hand_calculation(tmp_path, batch_size):
    files = []
    for k, (bright, liver, spleen) in enumerate([(slice(0, 4), slice(0, 2), None), (slice(0, 0), slice(4, 8), None),
                                                 (slice(2, 4), slice(2, 4), slice(0, 1))]):
        window = np.zeros((2, 8, 8, 8), np.uint8)
        window[0, bright] = 255
        window[1, liver] = 1
        if spleen:
            window[1, spleen] = 2
        files.append(tmp_path / f"{k}.npy")
        np.save(files[-1], window)
    dice = organ_dice(Bright(), Windows(files), [0, 1, 2], batch_size)
    # in slices of 64 voxels: found 4 + 0 + 2, drawn 2 + 4 + 2, both 2 + 0 + 2
    assert dice["liver"] == pytest.approx(2 * 4 / (6 + 8)) and dice["spleen"] == 0
    assert all(np.isnan(dice[organ]) for organ in ("left_kidney", "right_kidney", "bowel"))

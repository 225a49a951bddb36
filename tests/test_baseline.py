"""The single-model baseline: preparation on hand-made pictures, loaded dice, frozen layers, cosine restarts, duds, and
the mean of two logits."""
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mammo_nb.baseline.train as baseline
from mammo_nb.baseline.prepare import full_range, largest_box, pad_upright, prepare
from mammo_nb.baseline.system import RECIPES, Prepare, Train
from mammo_nb.baseline.report import compare
from mammo_nb.baseline.select import summarise_fold
from mammo_nb.baseline.train import (THRESHOLDS, BreastCrops, Mirrored, build_network, pictures, train_fold,
                                     weighted_batches, weights_of)
from mammo_nb.core.engines import export_onnx, load_engine
from mammo_nb.core.ensembles import Ensemble
from mammo_nb.core.files import sha256, write_csv, write_json
from mammo_nb.core.networks import WeightsError
from mammo_nb.core.optimisation import Optimisation, learning_rate
from mammo_nb.core.recipes import RecipeError
from mammo_nb.core.runs import Run
from mammo_nb.core.steps import make_optimizer
from mammo_nb.core.systems import find_system
from mammo_nb.core.train import fit

TINY = Train(network="test_convnext", weights="none", positive_weight=3.0, freeze=2, dud_pf1=0.0,
             loop=replace(Train().loop, epochs=3, batch_size=4, lr=1e-2, restart_epochs=1.5, precision="fp32",
                          checkpoint_every=2, seed=5))


def stored(pixels, photometric="MONOCHROME2"):
    return SimpleNamespace(pixels=np.asarray(pixels), header=SimpleNamespace(photometric=photometric))


# ---- preparation
@pytest.mark.parametrize("photometric, expected", [
    ("MONOCHROME2", [0, 63, 127, 255]), ("MONOCHROME1", [255, 191, 127, 0])])
@pytest.mark.parametrize("kind, offset", [(np.uint16, 0), (np.uint16, 61000), (np.int16, -2000)])
def test_grey_levels_run_from_the_lowest_to_the_highest_value(photometric, expected, kind, offset):
    # by hand: 1000 of 4000 is 63.75, 2000 is 127.5, 3000 is 191.25, all cut off
    pixels = (np.array([[0, 1000, 2000, 4000]]) + offset).astype(kind)
    assert full_range(stored(pixels, photometric)).tolist() == [expected]


def test_levels_of_sixteen_bits_are_cut_off_exactly():
    values = np.arange(65536, dtype=np.uint16)[None]
    assert full_range(stored(values))[0].tolist() == [v * 255 // 65535 for v in range(65536)]


def test_a_flat_frame_is_black_and_kept_whole():
    picture, box = prepare(stored(np.full((40, 30), 7, np.uint16)), Prepare(height=20, width=10))
    assert not picture.any() and (box.x0, box.y0, box.x1, box.y1, box.source) == (0, 0, 30, 40, "full frame")


def test_the_box_is_that_of_the_largest_outline():
    grey = np.zeros((200, 100), np.uint8)
    cv2.rectangle(grey, (0, 50), (59, 149), 180, -1)   # the breast, with a hole in it
    cv2.rectangle(grey, (20, 90), (30, 100), 0, -1)
    cv2.rectangle(grey, (80, 10), (95, 20), 255, -1)   # a marker
    box = largest_box(grey)
    # the blur moves an edge by two at most
    assert np.allclose([box.x0, box.y0, box.x1, box.y1], [0, 50, 60, 150], atol=2) and box.source == "triangle"


@pytest.mark.parametrize("rows, columns, size", [
    (30, 40, (80, 40)), (90, 20, (90, 45)), (91, 20, (91, 45)), (80, 40, (80, 40)), (79, 40, (80, 40)),
    (81, 40, (81, 40)), (1, 1, (2, 1))])
def test_zeros_go_on_top_or_to_the_left(rows, columns, size):
    padded = pad_upright(np.full((rows, columns), 9, np.uint8))
    assert padded.shape == size and (padded[-rows:, -columns:]
                                     == 9).all() and padded.astype(int).sum() == 9 * rows * columns


def test_what_is_stored_is_cut_padded_and_resized():
    frame = np.full((400, 300), 100, np.uint16)
    frame[100:300, :50] = 3000   # four times as high as wide: the left half of the picture is padding
    frame[10, 290] = 4095        # a bright spot too small to count
    picture, box = prepare(stored(frame), Prepare(height=64, width=32))
    assert picture.shape == (64,
                             32) and picture[:, :14].max() <= 1 and abs(int(picture[32, 24]) - 2900 * 255 // 3995) <= 1
    mirrored, _ = prepare(stored(frame.max() - frame, "MONOCHROME1"), Prepare(height=64, width=32))
    assert np.abs(mirrored.astype(int) - picture).max() <= 1


# ---- loaded dice
CANCER = (np.arange(4000) % 50 == 0).astype(int)   # two in a hundred


@pytest.mark.parametrize("weight", [1.0, 3.0, 12.0, 35.0])
def test_positives_are_drawn_as_often_as_their_weight_says(weight):
    deal = weighted_batches(CANCER, 26, weight, seed=1)
    drawn = np.array([i for epoch in range(10) for b in deal(epoch) for i, _ in b])
    expected = weight * 0.02 / (weight * 0.02 + 0.98)
    assert len(drawn) == 10 * len(CANCER)
    assert abs(CANCER[drawn].mean() - expected) < 5 * (expected * (1 - expected) / len(drawn)) ** 0.5
    assert len(set(drawn[:4000])) < 4000   # with replacement


def test_draws_depend_on_seed_and_epoch_alone():
    deal = weighted_batches(CANCER, 26, 12.0, seed=1)
    later = deal(3)
    torch.manual_seed(9)
    np.random.seed(9)
    assert weighted_batches(CANCER, 26, 12.0, seed=1)(3) == later
    assert later != deal(2) and later != weighted_batches(CANCER, 26, 12.0, seed=2)(3)
    # each draw its own flip
    assert [len(b) for b in later] == [26] * 153 + [22] and len({s for b in later for _, s in b}) > 3990


def test_dice_need_both_classes():
    with pytest.raises(ValueError, match="0 positives among 5"):
        weighted_batches(np.zeros(5), 2, 3.0, 0)


# ---- schedule
@pytest.mark.parametrize("epochs, restart, factor", [(12, 3, 1), (14, 2, 2), (9, 1.5, 1), (13, 1, 3)])
def test_restarts_are_torchs_stepped_every_batch(epochs, restart, factor):
    steps = 8   # an epoch
    config = Optimisation(epochs=epochs, batch_size=1, lr=5e-5, min_lr=1e-6, schedule="cosine", restart_epochs=restart,
                          restart_factor=factor)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=5e-5)
    torchs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=int(restart * steps), T_mult=factor,
                                                                  eta_min=1e-6)
    for n in range(epochs * steps):
        assert learning_rate(config, n // steps, n % steps / steps) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-9), n
        optimizer.step()
        torchs.step()


def test_without_restarts_it_is_one_cosine():
    config = Optimisation(epochs=5, batch_size=1, lr=5e-5, min_lr=0.0, schedule="cosine")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=5e-5)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=35)
    for n in range(35):
        assert learning_rate(config, n // 7, n % 7 / 7) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6,
                                                                         abs=1e-15), n
        optimizer.step()
        torchs.step()


def test_the_loop_follows_the_schedule_at_every_step(tmp_path):
    class One:
        def __getitem__(self, at):
            return torch.ones(1), torch.zeros(1)

    config = Optimisation(epochs=4, batch_size=1, optimizer="sgd", momentum=0.0, lr=1e-2, min_lr=0.0, schedule="cosine",
                          restart_epochs=2, precision="fp32")
    model, weights = nn.Linear(1, 1, bias=False), []
    nn.init.zeros_(model.weight)

    def loss(output, target):   # its gradient is 1, so that a step moves the weight by the learning rate
        weights.append(model.weight.item())
        return output.mean()
    fit(model, One(), lambda epoch: [[(0, 0)]] * 5, loss, lambda *_: {}, config, tmp_path, device="cpu")
    moved = -np.diff([*weights, model.weight.item()])
    assert moved == pytest.approx([learning_rate(config, n // 5, n % 5 / 5)
                                   for n in range(20)], abs=1e-8) and moved[10] == pytest.approx(1e-2, abs=1e-8)


# ---- network
def test_frozen_parameters_get_no_entry_and_the_rest_does():
    model = build_network(replace(TINY, freeze=7))
    names = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert names == [n for n, _ in model.named_parameters()][:7]
    entries = {
        id(p) for group in make_optimizer(model, Optimisation(epochs=1, batch_size=1)).param_groups
        for p in group["params"]
    }
    assert entries == {id(p) for p in list(model.parameters())[7:]}


def test_the_published_network_has_the_published_head():
    settings = RECIPES["baseline_tiny"].section(Train)
    model = build_network(settings)
    norm, last = model.head.norm, model.head.fc
    assert [n for n, _ in model.head.named_parameters()] == [
        "norm.weight", "norm.bias", "fc.weight", "fc.bias"
    ] and isinstance(
        norm, nn.LayerNorm) and norm.normalized_shape == (768,) and norm.eps == 1e-6 and (last.in_features,
                                                                                          last.out_features) == (768, 1)
    assert sum(not p.requires_grad for p in model.parameters()) == 70
    assert (settings.loop.epochs, settings.loop.batch_size) == (17, 26) and 3e-5 <= settings.loop.lr <= 8e-5
    assert 10 <= settings.positive_weight <= 15 and 15 <= settings.pos_weight <= 25
    assert {group["weight_decay"] for group in make_optimizer(model, settings.loop).param_groups} == {1e-2}


def test_torchvisions_weights_enter_from_a_file(tmp_path):
    convnext_tiny = pytest.importorskip("torchvision").models.convnext_tiny
    theirs = convnext_tiny(weights=None).eval()
    nn.init.constant_(theirs.classifier[0].weight, 2.0)
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    settings = replace(TINY, network="convnext_tiny", weights=f"torchvision:{tmp_path / 'tv.pth'}")
    weights = weights_of(settings, tmp_path)
    kept, renewed = (build_network(replace(settings, faithful=f), weights).eval() for f in (False, True))
    x = torch.rand(1, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(kept.forward_features(x), theirs.features(x), atol=1e-5)
    assert (kept.head.norm.weight == 2).all() and (renewed.head.norm.weight == 1).all()
    assert kept.head.fc.out_features == 1 and torch.equal(kept.stem[0].weight, renewed.stem[0].weight)
    with pytest.raises(WeightsError, match="unexpected"):
        build_network(replace(settings, network="test_convnext"), weights)


def test_torchvisions_weights_without_a_connection_name_the_file(monkeypatch):
    weights = pytest.importorskip("torchvision").models.ConvNeXt_Tiny_Weights

    def refused(*_, **__):
        raise OSError("no route")
    monkeypatch.setattr(weights, "get_state_dict", refused)
    with pytest.raises(WeightsError, match="Download https://download.pytorch.org/models/convnext_tiny-.*pth"):
        build_network(replace(TINY, network="convnext_tiny"), "torchvision")


class Sided(nn.Module):
    "A logit that depends on the side: the left half of the first channel counts, the right one does not."
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        return self.scale * (x[:, 0, :, :x.shape[-1] // 2].mean((1, 2), keepdim=False) - 0.1)[:, None]


def test_the_answer_is_the_mean_of_two_logits_in_torch_and_in_the_file(tmp_path):
    pictures = np.zeros((3, 8, 6), np.uint8)
    pictures[0, :, :3] = 255
    pictures[1, :, 3:] = 255
    pictures[2] = 51
    ensemble = Ensemble([Mirrored(Sided())], 0.0, 1.0)
    # by hand: logits of the two sides are 3 * 0.9 and 3 * -0.1; of the even picture 3 * 0.1 both
    expected = 1 / (1 + np.exp(-np.array([1.2, 1.2, 0.3])))
    assert load_engine(ensemble)(pictures)[:, 0] == pytest.approx(expected, abs=1e-6)
    export_onnx(ensemble, tmp_path / "baseline.onnx", (8, 6), {})
    engine = load_engine(tmp_path / "baseline.onnx")
    assert engine(pictures)[:, 0] == pytest.approx(expected, abs=1e-6) and engine(pictures[:1])[0, 0] == pytest.approx(
        expected[0], abs=1e-6)


# ---- one fold
@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "24 small pictures of 12 patients, three of them with a bright spot; two folds."
    images, rng, rows = tmp_path_factory.mktemp("data") / "cleaned_images", np.random.default_rng(0), []
    images.mkdir()
    for patient in range(12):
        for view in ("CC", "MLO"):
            cancer, name = int(patient % 4 == 0), f"{patient}{view}"
            picture = rng.integers(0, 90, (64, 32), dtype=np.uint8)
            if cancer:
                picture[20:40, 8:20] = 255
            cv2.imwrite(str(images / f"{patient}@{name}.png"), picture)
            rows.append((str(patient), name, "L", view, cancer, patient % 3 % 2))
    return pd.DataFrame(rows, columns=["patient_id", "image_id", "laterality", "view", "cancer", "fold"]), images


def run(data, folder, settings=TINY):
    return train_fold(*data, folder, settings, (64, 32), {})


def digests(folder):
    return [sha256(p) for p in sorted(folder.glob("epoch_*.safetensors"))]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "fold_0"
    return folder, run(data, folder)


def test_an_interrupted_training_ends_with_the_same_bits(data, whole, tmp_path, monkeypatch):
    class PowerCut(Exception):
        pass
    read, times = BreastCrops.picture, []

    def cut(self, index, seed):
        times.append(seed)
        if len(times) == 30:
            raise PowerCut   # in the second epoch: 16 pictures are trained on, 8 predicted twice over
        return read(self, index, seed)
    with monkeypatch.context() as m:
        m.setattr(BreastCrops, "picture", cut)
        with pytest.raises(PowerCut):
            run(data, tmp_path / "fold_0")
    assert not (tmp_path / "fold_0" / "done.json").exists() and torch.load(tmp_path / "fold_0" / "last.pt",
                                                                           weights_only=True)["epoch"] == 1
    assert run(data, tmp_path / "fold_0").equals(whole[1]) and digests(tmp_path / "fold_0") == digests(
        whole[0]) and len(digests(whole[0])) == 3


def test_the_fold_held_back_is_predicted_and_no_other(data, whole):
    table, history = data[0], whole[1]
    predicted = pd.read_csv(whole[0] / "pred_2.csv", dtype={"patient_id": str})
    assert set(predicted["patient_id"]) == set(table.loc[table["fold"] == 0,
                                                         "patient_id"]) and history["epoch"].tolist() == [0, 1, 2]
    assert set(history["threshold"]) <= set(np.arange(20) / 20) and not history["stop"].any()


@pytest.mark.parametrize("network", ["test_convnext", "test_efficientnet"])
def test_frozen_layers_do_not_move_nor_do_their_statistics(data, tmp_path, network):
    settings = replace(TINY, network=network, freeze=6, loop=replace(TINY.loop, epochs=1, seed=1))
    run(data, tmp_path, settings)
    model, after = build_network(settings, seed=1), torch.load(tmp_path / "last.pt", weights_only=True)["model"]
    before, frozen = model.state_dict(), [n for n, _ in model.named_parameters()][:6]
    layers = {n.rpartition(".")[0] for n in frozen}
    still = [n for n in before if n in frozen or n in dict(model.named_buffers()) and n.rpartition(".")[0] in layers]
    assert [n for n in before if torch.equal(before[n], after[n])] == still
    if network == "test_efficientnet":
        assert "bn1.running_mean" in still


def test_a_dud_is_given_up_after_two_epochs_and_stays_given_up(data, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(baseline, "best_threshold", lambda *_: asked.append(1) or (0.5, 0.04))
    settings = replace(TINY, dud_pf1=0.05, dud_epochs=2)
    history = run(data, tmp_path, settings)
    assert history["epoch"].tolist() == [0, 1] and history["stop"].tolist() == [0, 1] and len(asked) == 2
    (tmp_path / "done.json").unlink()   # killed just before it was noted
    assert run(data, tmp_path, settings).equals(history) and len(asked) == 2
    monkeypatch.setattr(baseline, "best_threshold", lambda *_: (0.5, 0.05))
    assert len(run(data, tmp_path / "good", settings)) == 3   # not below


def test_the_loss_counts_positives_as_often_as_it_says(data, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(baseline, "fit", lambda model, dataset, batches, loss, *rest, **more: seen.update(loss=loss))
    run(data, tmp_path, replace(TINY, pos_weight=20.0))
    logits, targets = torch.tensor([[0.3], [-1.2]]), torch.tensor([[1.0], [0.0]])
    by_hand = (20 * np.log1p(np.exp(-0.3)) + np.log1p(np.exp(-1.2))) / 2
    assert seen["loss"](logits, targets).item() == pytest.approx(by_hand, rel=1e-6)
    assert seen["loss"](logits, targets).item() != pytest.approx(
        F.binary_cross_entropy_with_logits(logits, targets).item())


def test_a_fold_that_is_not_there_is_told(data, tmp_path):
    with pytest.raises(RecipeError, match="train.fold is 7, and there are the folds 0, 1"):
        run(data, tmp_path, replace(TINY, fold=7))


def test_half_of_the_pictures_are_mirrored(data):
    policy = RECIPES["baseline_tiny"].section(Train).augment
    dataset = pictures(*data, (64, 32), {"mean": (.5,) * 3, "std": (.5,) * 3}, policy)
    plain = cv2.imread(str(data[1] / "0@0CC.png"), cv2.IMREAD_GRAYSCALE)
    shown = [dataset.picture(0, seed) for seed in range(400)]
    mirrored = [np.array_equal(s, plain[:, ::-1]) for s in shown]
    assert all(m or np.array_equal(s, plain) for m, s in zip(mirrored, shown)) and 160 < sum(mirrored) < 240
    image, target = dataset[(0, -1)]
    assert np.array_equal(image[2].numpy(), (plain.astype(np.float32) / 255 - .5) / .5) and target.tolist() == [1.0]


# ---- threshold, recipes, comparison
def test_thresholds_are_twentieths():
    labels, probabilities = np.array([0, 0, 0, 1, 1]), np.array([.1, .2, .62, .61, .8])
    # by hand: from .2 to .6 three are above, two of them cancers: F1 = 4 / 5; from .65 on one: 2 / 3
    assert len(THRESHOLDS) == 20 and THRESHOLDS[-1] == 0.95
    oof = pd.DataFrame({"patient_id": list("abcde"), "laterality": "L", "cancer": labels, "probability": probabilities})
    result = summarise_fold(oof)
    assert result["threshold"] == 0.5 and result["plateau"] == (
        0.2, 0.6) and result["pf1"] == pytest.approx(0.8) and result["breasts"] == 5
    first = summarise_fold(oof, faithful=True)
    assert first["threshold"] == 0.2 and first["plateau"] == (0.2, 0.6) and first["pf1"] == pytest.approx(0.8, abs=1e-5)


def test_recipes_are_found_by_system_and_share_the_data(tmp_path):
    ours, winner = find_system("baseline"), find_system("mammo")
    for name in ("demo", "tiny"):
        for stage in ("phantom", "datasets", "folds"):
            section = ours.stage(stage).section
            assert ours.recipe(name).section(section) == winner.recipe(name).section(section)
    assert "phantom" not in [s.name for s in ours.plan("baseline_tiny", "full")]
    assert Run.create(tmp_path, ours, overrides={"train.freeze": 60}).section("train").freeze == 60
    for recipe, overrides, message in (("winner", {}, "There are baseline_tiny, demo, tiny"),
                                       ("demo", {"crops.height": 64}, "phantom, datasets, prepare"),
                                       ("demo", {"train.ema": .9}, "It has network")):
        with pytest.raises(RecipeError, match=message):
            Run.create(tmp_path, ours, recipe, overrides=overrides)


def finished(folder, system, patients, probabilities, threshold, folds=(0,)) -> Run:
    "A run of which only the results are there."
    run = Run.create(folder, find_system(system))
    oof = pd.DataFrame([(p, f"{p}{k}", "L", k) for k in folds for p in patients],
                       columns=["patient_id", "image_id", "laterality", "fold"])
    oof["patient_id"] += oof["fold"].astype(str)
    oof["cancer"] = [int(p[0] in "ab") for p in oof["patient_id"]]
    write_csv(run.path("oof.csv"), oof.assign(probability=probabilities))
    write_json(run.path("selection.json"), {"threshold": threshold})
    parts = {"parameters": {}, "reads": {}, "writes": {}}
    write_json(run.path("manifest.json"), {"stages": {"phantom": {"seconds": 1.0, **parts},
                                                      "train": {"seconds": 2.5, **parts}}})
    return run


def test_two_runs_are_compared_on_the_fold_that_both_held_back(tmp_path):
    ours = finished(tmp_path / "baseline-demo", "baseline", "abcd", [.9, .3, .4, .1], 0.35)
    # fold 1 is wrong throughout and does not count
    theirs = finished(tmp_path / "demo", "mammo", "abcd", [.9, .8, .4, .1, 0, 0, 1, 1], 0.5, folds=(0, 1))
    table = compare(ours, theirs.folder).set_index("system")
    assert table["AUC"].tolist() == [1.0, 0.75] and table["pF1"].tolist() == [1.0, 0.5]
    assert table["networks"].tolist() == [2, 1] and table["all stages, s"].tolist() == [3.5, 3.5]
    assert table["test AUC"].isna().all()
    others = finished(tmp_path / "else", "mammo", "abce", [0] * 4, 0.5)
    assert "other images in fold 0" in compare(ours, others.folder)
    assert "run make reproduce" in compare(ours, tmp_path / "nowhere")

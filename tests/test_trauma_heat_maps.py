"Heat maps of abdominal trauma: where injuries were drawn, which slice is explained, and numbers worked out by hand."
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from mammo_nb.core.dicom import read_image
from mammo_nb.core.explanations import ExplanationError, contributions, heat_maps, peak
from mammo_nb.core.hu import to_hu
from mammo_nb.core.networks import save_weights
from mammo_nb.trauma.learning.blocks import VISIBILITY
from mammo_nb.trauma.learning.classifier import make_classifier
from mammo_nb.trauma.phantom import make_patient, plan, write_injuries
from mammo_nb.trauma.reading.organs import write_masks
from mammo_nb.trauma.recipes import SUBMITTED, Ensemble, Model, Train
from mammo_nb.trauma.tools.heat_maps import (drawn_injuries, found_injuries, held_back_heat, in_a_sentence,
                                             injury_hits, responsible_slices, slice_answer, slice_heat)
from mammo_nb.trauma.train import build_classifier


# ---- where injuries were drawn
def values_and_masks(root: Path, series: dict):
    "HU of a series, bottom up, and its injuries."
    file = root / "truth" / "injuries" / f"{series['series_id']}.npz"
    images = {p.stem: p for p in root.rglob(f"{series['series_id']}/*.dcm")}
    with np.load(file) as stored:
        instances = stored["instances"].tolist()
        masks = {n: np.unpackbits(stored[n], axis=-1, count=stored[n].shape[-2]) > 0
                 for n in stored.files if n != "instances"}
    return np.stack([to_hu(read_image(images[str(i)])).values for i in instances]), masks, instances


def test_the_noted_pixels_are_those_that_an_injury_changes(tmp_path):
    "At contrast 0 the same patient is drawn without the injury, so the difference shows where it lies."
    planned = plan("train", 12, 1., [18], 5)
    patient = next(p for p in planned if len(p["injuries"]) == 1 and p["injuries"][0] == "liver_high")
    made = [make_patient(tmp_path / str(c), patient, 64, c) for c in (0., 1.)]
    for before, after in zip(*made):
        plain, same, _ = values_and_masks(tmp_path / "0.0", before)
        hurt, masks, instances = values_and_masks(tmp_path / "1.0", after)
        assert list(masks) == patient["injuries"] and instances == [s["instance_number"] for s in after["slices"]]
        mask, change = masks["liver_high"], np.abs(hurt.astype(float) - plain)
        assert mask.shape == hurt.shape and 0 < mask.mean() < .2 and np.array_equal(mask, same["liver_high"])
        assert (change[mask] > 20).mean() > .95 and (change[~mask] < 30).mean() > .99


def test_a_healthy_patient_has_no_file_of_injuries(tmp_path):
    make_patient(tmp_path, plan("train", 4, 0., [15], 1)[0], 48, 1.)
    assert (tmp_path / "truth" / "segmentations").exists() or (tmp_path / "segmentations").exists()
    assert not (tmp_path / "truth" / "injuries").exists()


# ---- layers without maps
class Vectors(nn.Module):
    "A vector of no place, then one for each of 4 x 6 cells of 8 pixels; the logit is the first number of one vector."
    feature_info = [{"module": "vectors", "reduction": 8}]

    def __init__(self, row: int, column: int, cut: int = 0):
        super().__init__()
        self.vectors, self.mean, self.at, self.cut = nn.Identity(), nn.AvgPool2d(8), 1 + 6 * row + column, cut

    def forward(self, x):
        cells = self.mean(x).flatten(2).transpose(1, 2)
        found = self.vectors(torch.cat([cells.mean(1, keepdim=True), cells], 1)[:, self.cut:])
        return found[:, self.at, :1]


def test_vectors_of_cells_become_a_map_again():
    x = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) + .1
    parts, = contributions(Vectors(2, 4), x)
    by_hand = torch.zeros(2, 4, 6)
    by_hand[:, 2, 4] = x[:, 0, 16:24, 32:40].mean((1, 2))   # gradient 1 times the number itself
    assert torch.allclose(parts, by_hand, atol=1e-6)
    assert [tuple(k // 8 for k in peak(h)) for h in heat_maps([Vectors(2, 4)], x)] == [(2, 4)] * 2
    with pytest.raises(ExplanationError, match="no map of 4x6 cells"):
        contributions(Vectors(0, 0, cut=2), x)


@pytest.mark.parametrize("backbone", ["coat_lite_small", "test_efficientnet", "convnext_atto"])
def test_the_last_map_adds_up_to_the_logit_of_a_slice(backbone):
    "Mean pooling and a linear layer lie behind the last map, so its parts are the logit less the bias."
    network = make_classifier(backbone, 3, rnn="none", size=128, seed=2).eval()
    x = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    none = torch.zeros(0, network.head[1].in_features)   # of the other slices of the block
    parts, = contributions(network, x, 1, lambda n, p: slice_answer(n, p, none, 0), (32,))
    with torch.no_grad():
        logit = network({"image": x[None]})["labels"][0, 0, 1]
    assert parts.shape == (1, 4, 4) and torch.isclose(parts.sum(), logit - network.head[1].bias[1], atol=1e-4)


# ---- one slice of a block
def test_a_slice_is_answered_as_in_its_block():
    network = make_classifier("test_efficientnet", 2, "gru", hidden=4, size=64, seed=3).eval()
    block = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        whole = network({"image": block[None]})["labels"][0]
        features = network.pooled(network.maps(block)[-1])
        alone = torch.cat([slice_answer(network, block[t][None], features, t) for t in range(5)])
    assert torch.allclose(alone, whole, atol=1e-5)


class OnePlace(nn.Module):
    "The feature of slice t is one cell; an answer is the feature times the weight of its number in the block."
    feature_info = [{"module": "mean", "reduction": 8}]

    def __init__(self, row: int, column: int):
        super().__init__()
        self.mean, self.row, self.column = nn.AvgPool2d(8), row, column

    def maps(self, x):
        return [self.mean(x)]

    def pooled(self, last):
        return last[:, :1, self.row, self.column]

    def graded(self, features):
        return features * torch.arange(features.shape[1])[:, None] + features.sum(1, keepdim=True)


def test_the_heat_of_a_slice_is_where_its_answer_comes_from():
    block = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(5)) + .1
    block[0, 0, 0, 0] = float("nan")   # counts as zero, as everywhere
    for t in range(4):
        heat = slice_heat(OnePlace(2, 1), block, t, 0)
        assert heat.shape == (32, 32) and heat.max() == 1 and tuple(k // 8 for k in peak(heat)) == (2, 1)


# ---- which slices, and the hits
def drawn_run(folder: Path, crop: bool = True):
    "What the tool reads of a run: two held-back patients, a block of six slices of each."
    train = Train((Model("other", columns="bowel_injury"), Model("organs", columns="liver_injury", crop=crop, size=32)))
    ensemble = Ensemble("organs")
    run = SimpleNamespace(path=lambda name: folder / name, recorded=lambda s: {"train": train, "ensemble": ensemble}[s])
    place = folder / "checkpoints/train/organs/fold_0"
    place.mkdir(parents=True)
    pd.DataFrame([("organs", 0, 0, False), ("organs", 0, 1, True), ("other", 0, 1, True)],
                 columns=["model", "fold", "epoch", "chosen"]).to_csv(place.parents[1] / "history.csv", index=False)
    pd.DataFrame([(p, f"{p}1", f"{p}1_0_5", t, v) for p, values in (("7", (.2, .8)), ("8", (.4, .3)), ("9", (.1, .5)))
                  for t, v in enumerate(values)], columns=["patient_id", "series", "block", "triplet", "liver_injury"]
                 ).to_csv(place / "pred_1.csv", index=False)
    pd.DataFrame([(f"{p}1_0_5", "3 4 5 6 7 8") for p in "789"], columns=["block", "places"]).to_csv(
        folder / "blocks.csv", index=False)
    healthy = dict.fromkeys(SUBMITTED, 0)
    pd.DataFrame([{**healthy, "patient_id": p, "liver_healthy": h} for p, h in zip("789", (0, 1, 1))]).to_csv(
        folder / "folds.csv", index=False)
    pd.DataFrame([(p, f"{p}1", k, 40 - k, .25, .75, .5, 1.) for p in "789" for k in range(9)], columns=[
        "patient_id", "series", "place", "instance", "top", "bottom", "left", "right"]).to_csv(
            folder / "info.csv", index=False)
    return run


def test_the_slice_with_the_largest_probability_is_explained(tmp_path):
    rows = responsible_slices(drawn_run(tmp_path)).set_index("patient_id")
    assert rows["place"].to_dict() == {"7": 7, "8": 4, "9": 7} and set(rows["organ"]) == {"liver"}
    assert rows["label"].to_dict() == {"7": 1, "8": 0, "9": 0} and rows["probability"].tolist() == [.8, .4, .5]
    assert np.allclose(rows["threshold"], .49)   # nine tenths of the way from .4 to .5
    assert found_injuries(rows.reset_index())["patient_id"].tolist() == ["7"]
    assert found_injuries(rows.reset_index().assign(probability=.49)).empty


def test_held_back_patients_are_explained_by_the_network_of_their_fold(tmp_path):
    run, model = drawn_run(tmp_path), Model("organs", "test_efficientnet", columns="liver_injury", size=32, hidden=4)
    train = Train((model,))
    run.recorded = {"train": train, "ensemble": Ensemble("organs")}.get
    network = build_classifier(model, seed=5)
    save_weights(network, tmp_path / "weights/models/organs_fold0.safetensors", {})
    info = pd.read_csv(tmp_path / "info.csv", dtype={"patient_id": str, "series": str})
    info = info.assign(**dict.fromkeys(VISIBILITY, 1.), bowel=0, extravasation=0)
    info.to_csv(tmp_path / "info.csv", index=False)
    folds = pd.read_csv(tmp_path / "folds.csv").assign(fold=0, any_injury=1 - pd.Series([0, 1, 1]))
    folds.to_csv(tmp_path / "folds.csv", index=False)
    pd.DataFrame([(p, f"{p}1", f"{p}1_0_5", "3 4 5 6 7 8") for p in "789"], columns=[
        "patient_id", "series", "block", "places"]).to_csv(tmp_path / "blocks.csv", index=False)
    (tmp_path / "processed/volumes").mkdir(parents=True)
    for p in "789":
        volume = np.random.default_rng(int(p)).integers(0, 256, (9, 64, 32), np.uint8)
        np.save(tmp_path / f"processed/volumes/{p}_{p}1.npy", volume)
        write_masks(tmp_path / f"processed/masks/{p}_{p}1.npy", np.zeros((9, 5, 16, 16), bool))
    rows = responsible_slices(run)
    found = held_back_heat(run, rows)
    assert set(found) == {("liver", p) for p in "789"}
    grey, heat = found["liver", "7"]   # slice 7 of the volume, the middle one of the second triplet, in its crop
    volume = np.load(tmp_path / "processed/volumes/7_71.npy")
    assert np.array_equal(grey, cv2.resize(volume[7, 16:48, 16:], (32, 32)))
    places = volume[3:9, 16:48, 16:]
    block = torch.from_numpy(np.stack([cv2.resize(p, (32, 32)) for p in places])).view(2, 3, 32, 32) / 255
    assert np.allclose(heat, slice_heat(network, block, 1, 0), atol=1e-5) and heat.shape == (32, 32)


@pytest.mark.parametrize("crop", [True, False])
def test_a_mask_goes_the_way_of_the_picture(tmp_path, crop):
    run = drawn_run(tmp_path, crop)
    lying = {name: np.zeros((9, 32, 32), bool) for name in ("liver_low", "spleen_high")}
    lying["liver_low"][7, 8:12, 20:24], lying["spleen_high"][:] = True, True
    instances = 40 - np.arange(9)
    write_injuries(run.path("competition/truth/injuries/71.npz"),   # the slices of the file lie the other way round
                   {n: m[::-1] for n, m in lying.items()}, tuple(instances[::-1].tolist()))
    masks = drawn_injuries(run, responsible_slices(run))
    by_hand = np.zeros((32, 32), bool)
    by_hand[(slice(0, 8), slice(8, 16)) if crop else (slice(8, 12), slice(20, 24))] = True
    assert list(masks) == [("liver", "7")] and np.array_equal(masks["liver", "7"], by_hand)


def test_the_rate_of_hits_is_counted_by_hand():
    rows = pd.DataFrame({"organ": ["liver", "spleen", "liver", "liver"], "patient_id": ["1", "1", "2", "3"]})
    at, mask = np.zeros((10, 10), np.float32), np.zeros((10, 10), bool)
    at[4, 4], mask[4:6, 4:6] = 1, True
    heat = {tuple(key): (None, at) for key in rows.to_numpy()}
    masks = {("liver", "1"): mask, ("spleen", "1"): np.roll(mask, 3, 0), ("liver", "2"): mask & False}
    hits = injury_hits(rows, heat, masks).set_index("unit")   # patient 3 has no known injury
    assert hits["items"].to_dict() == {"patients": 2, "organs": 3, "liver": 2, "spleen": 1}
    assert hits["hits"].to_dict() == {"patients": 1, "organs": 1, "liver": 1, "spleen": 0}
    assert hits["shown"].to_dict() == {"patients": 1, "organs": 2, "liver": 1, "spleen": 1}
    assert np.allclose(hits["chance"], [.02, .08 / 3, .02, .04])
    assert np.allclose(hits.loc["patients", ["low", "high"]].astype(float), [.0945, .9055], atol=1e-4)   # Wilson
    assert injury_hits(rows, heat, {}).empty and injury_hits(pd.DataFrame(), {}, {}).empty


def test_the_sentence_says_what_the_rate_does_not_show():
    row = {"unit": "patients", "items": 20, "hits": 4, "share": .2, "low": .08, "high": .42, "chance": .05, "shown": 17}
    better, worse = (in_a_sentence(pd.DataFrame([{**row, "chance": chance}])) for chance in (.05, .1))
    assert "of 4 of 20 patients, 0.20 (0.08 to 0.42)" in better and "3 of these slices do not show" in better
    assert "more often than by chance" in better and "it is not shown" not in better and "do not read" in better
    assert "it is not shown that" in worse

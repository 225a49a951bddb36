"Heat maps: the peak lies where the answer comes from, also on the frame, and a hit is a peak inside of the lesion."
import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from mammo_nb.cli import app
from mammo_nb.core.engines import export_onnx
from mammo_nb.core.ensembles import Ensemble, register_network
from mammo_nb.core.dicom import read_image
from mammo_nb.core.explanations import (ExplanationError, contributions, feature_layers, heat_maps, hit, hit_rate,
                                        onto_frame, overlay, peak)
from mammo_nb.core.networks import Mirrored, create_network, save_weights
from mammo_nb.core.pictures import fit_resize, write_png
from mammo_nb.core.runs import Run
from mammo_nb.ich.phantom import make_patient, plan
from mammo_nb.mammo.learning.lesions import pointing_classifier
from mammo_nb.mammo.phantom import make_competition
from mammo_nb.mammo.system import system
from mammo_nb.mammo.tools import heat_maps as tool

LITE = "tf_efficientnet_lite0"


class Means(nn.Module):
    "Means over 8, 16 and 32 pixels; the logits are the cells named, each times its weight."
    feature_info = [{"module": f"mean{step}", "reduction": step} for step in (8, 16, 32)]

    def __init__(self, *outputs):
        super().__init__()
        self.mean8, self.mean16, self.mean32 = nn.AvgPool2d(8), nn.AvgPool2d(2), nn.AvgPool2d(2)
        self.outputs = outputs   # of each logit, a list of (row, column, weight)
        self.register_buffer("one", torch.ones(1))

    def forward(self, x):
        cells = self.mean32(self.mean16(self.mean8(x)))[:, 0]
        return torch.stack([sum(w * cells[:, r, c] for r, c, w in own) for own in self.outputs], 1) * self.one


def pictures(n=3, size=(256, 128)):
    return torch.rand(n, 1, *size, generator=torch.Generator().manual_seed(1)) + .2


def cell(heat):
    return tuple(k // 32 for k in peak(heat))


@pytest.mark.parametrize("place", [(1, 1), (6, 2), (3, 0)])
def test_the_peak_is_where_the_answer_comes_from(place):
    for heat in heat_maps([Means([(*place, 1.)])], pictures()):
        assert cell(heat) == place and heat.max() == 1 and heat.min() == 0


def test_each_output_has_its_own_heat_map():
    network = Means([(1, 1, 1.)], [(6, 2, 1.)])
    assert [cell(heat_maps([network], pictures(1), target)[0]) for target in (0, 1)] == [(1, 1), (6, 2)]


def test_what_speaks_against_the_answer_is_cold():
    heat = heat_maps([Means([(1, 1, .1), (6, 2, -5.)])], pictures(1))[0]
    assert cell(heat) == (1, 1) and heat[6 * 32:7 * 32, 64:96].max() == 0
    assert not heat_maps([Means([(1, 1, -1.)])], pictures(1)).any()   # nothing speaks for it


def test_an_ensemble_shows_the_mean_of_its_logits_and_not_of_its_pictures():
    "Two networks that contradict each other in one place leave the other one."
    first, second = Means([(1, 1, 3.), (6, 2, 1.)]), Means([(1, 1, -3.), (6, 2, 1.)])
    heat = heat_maps([first, second], pictures(1))[0]
    assert cell(heat) == (6, 2) and heat[40, 40] < .01


def test_a_network_with_flip_tta_shows_both_views():
    heat = heat_maps([Mirrored(Means([(3, 0, 1.)]))], torch.ones(1, 1, 256, 128))[0]
    assert np.allclose(heat, heat[:, ::-1], atol=1e-6) and heat[112, 10] > .9 and heat[112, 64] < .5


def test_many_pictures_are_explained_as_one_is():
    x, network = pictures(5, (1024, 256)), Means([(20, 5, 1.), (3, 1, .5)])
    together = heat_maps([network], x)
    assert np.allclose(together, np.concatenate([heat_maps([network], x[i:i + 1]) for i in range(5)]), atol=1e-6)


@pytest.mark.parametrize("name", [LITE, "convnext_atto", "resnet10t"])
def test_the_last_map_adds_up_to_the_answer(name):
    """With mean pooling and a linear layer behind the last map, its parts add up to the logit less the bias. ConvNeXt
    has a normalisation behind the pooling, and its logit does not change with the scale of the map."""
    network = create_network(name, seed=3).eval()
    x = torch.randn(2, 3, 160, 128, generator=torch.Generator().manual_seed(0))
    parts = contributions(network, x)
    assert [tuple(p.shape[1:]) for p in parts] == [(20, 16), (10, 8), (5, 4)]
    sums = parts[-1].sum((1, 2))
    if name == "convnext_atto":
        assert sums.abs().max() < 1e-3
    else:
        bias = network.get_classifier().bias
        assert torch.allclose(sums, (network(x) - bias)[:, 0], atol=1e-4)


def test_networks_stay_as_they_were():
    network = create_network(LITE).requires_grad_(False)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with torch.inference_mode(False), torch.no_grad():
        heat_maps([network], torch.zeros(1, 3, 64, 64))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(m._forward_hooks for m in network.modules())


def test_a_network_without_maps_is_named():
    with pytest.raises(ExplanationError, match="Linear"):
        feature_layers(nn.Linear(2, 1), (64, 64))
    with pytest.raises(ExplanationError, match="24x64 pixels is too small"):
        feature_layers(create_network(LITE), (24, 64))


@pytest.mark.parametrize("box", [(230, 100, 480, 650), (0, 0, 500, 700), (40, 300, 460, 420)])
def test_the_peak_comes_back_to_its_place_on_the_frame(box):
    "A spot is drawn into the frame, goes the way of a crop, and its hottest place comes back, to a pixel or two."
    frame, (x0, y0, x1, y1) = np.zeros((700, 500), np.uint8), box
    row, column = (y0 + y1) // 2 - 23, (x0 + x1) // 2 + 31
    frame[row - 12:row + 13, column - 12:column + 13] = 255
    crop = frame[y0:y1, x0:x1]
    seen = cv2.GaussianBlur(fit_resize(crop, 256, 128).astype(np.float32), (0, 0), 4)
    back = onto_frame(seen / seen.max(), crop.shape, box, frame.shape)
    step = max(crop.shape[0] / 256, crop.shape[1] / 128)   # frame pixels to a pixel of the network
    assert np.abs(np.subtract(peak(back), (row, column))).max() <= step + 1
    outside = back.copy()
    outside[y0:y1, x0:x1] = 0
    assert back.shape == frame.shape and not outside.any()


def test_a_hit_is_a_peak_inside_of_the_lesion_and_nothing_else():
    heat, mask = np.zeros((8, 6), np.float32), np.zeros((8, 6), np.uint8)
    heat[3, 4], mask[3, 4] = 1, 255
    assert hit(heat, mask) and not hit(heat, np.roll(mask, 1, 0)) and not hit(np.zeros_like(heat), mask + 1)


def test_the_interval_of_the_rate_is_wilsons():
    found = hit_rate([True] * 81 + [False] * 182)   # Newcombe 1998, table I: 81 of 263
    assert (found["items"], found["hits"]) == (263, 81)
    assert [round(found[k], 4) for k in ("share", "low", "high")] == [.3080, .2553, .3662]
    assert hit_rate([])["items"] == 0 and np.isnan(hit_rate([])["share"])


def test_a_cold_place_stays_visible():
    grey = np.arange(48, dtype=np.uint8).reshape(8, 6)
    heat = np.zeros((8, 6), np.float32)
    heat[2, 2], heat[5, 5] = 1, .19
    drawn = overlay(grey, heat)
    same = (drawn == grey[..., None]).all(-1)
    assert not same[2, 2] and same.sum() == 47 and drawn[2, 2, 0] > drawn[2, 2, 2]   # yellow, in RGB


def test_a_pointing_network_shows_both_of_its_ways():
    "Its logit is the mean of the classifier's and of the cells'; the map at 1/16 is that of both."
    torch.manual_seed(0)
    network = pointing_classifier(LITE).eval()
    nn.init.normal_(network.where.weight, std=.3)
    x = torch.randn(1, 3, 160, 128)
    whole, classifier = contributions(network, x), contributions(network.classifier, x)
    assert torch.allclose(whole[-1], classifier[-1] / 2, atol=1e-5)   # the cells do not see the last map
    assert not torch.allclose(whole[1], classifier[1] / 2, atol=1e-3)


# ---- mammography
register_network("test.means")(lambda row, column: Means([(row, column, 1.)]))


def exported(folder, networks, each, size, **about):
    "An ensemble with the weights beside it."
    for k, network in enumerate(networks):
        save_weights(network, folder / f"fold_{k}.safetensors", {})
    rebuild = {**about, "mirrored": False, "weights": [f"fold_{k}.safetensors" for k in range(len(networks))]}
    made = Ensemble(networks, .5, .25, channels=1 if about["kind"] == "test.means" else 3)
    export_onnx(made, folder / "ensemble.onnx", size, metadata={
        "threshold": .5, "crops": {}, "demonstration": True, "recipe": "test",
        "rebuild": rebuild | ({"each": each} if each else {})})
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    "A run of two folds: the network of fold 0 looks at one place only, that of fold 1 at another one."
    run = Run.create(tmp_path / "r", system, "tiny")
    places = [{"row": 1, "column": 1}, {"row": 6, "column": 2}]
    run.path("weights").mkdir(parents=True, exist_ok=True)
    exported(run.path("weights"), [Means([(p["row"], p["column"], 1.)]) for p in places], places, (256, 128),
             kind="test.means")
    monkeypatch.setattr(Run, "recorded", lambda self, stage: self.section(stage))
    run.path("selection.json").write_text(json.dumps({"threshold": .5, "folds": [{"fold": 0}, {"fold": 1}]}))
    rows = [("p1", "a", "L", 1, 0, .9), ("p1", "b", "L", 1, 0, .7), ("p2", "c", "R", 1, 1, .8),
            ("p2", "d", "R", 1, 1, .4), ("p3", "e", "R", 0, 0, .95), ("p4", "f", "L", 1, 1, .1),
            ("p5", "g", "L", 1, 1, .9)]
    table = pd.DataFrame(rows, columns=["patient_id", "image_id", "laterality", "cancer", "fold", "probability"])
    table.to_csv(run.path("oof.csv"), index=False)
    for row in table.itertuples():
        write_png(run.path(f"processed/cleaned_images/{row.patient_id}@{row.image_id}.png"),
                  np.full((512, 256), 200, np.uint8))
    return run


def write_mask(run, name, row, column):
    "A lesion in one cell of the last map, in a crop twice as large as the input."
    mask = np.zeros((512, 256), np.uint8)
    mask[64 * row:64 * row + 64, 64 * column:64 * column + 64] = 255
    write_png(run.path(f"processed/cleaned_masks/{name}.png"), mask)


def test_an_image_is_explained_by_the_network_that_has_not_seen_it(run):
    oof = pd.read_csv(run.path("oof.csv"), dtype={"patient_id": str})
    heat = tool.held_back_heat(run, oof)
    for row in oof.itertuples():
        assert heat[row.image_id].shape == (512, 256)
        assert tuple(k // 64 for k in peak(heat[row.image_id])) == ((1, 1), (6, 2))[row.fold], row.image_id


def test_only_cancers_that_are_found_and_whose_lesion_is_known_are_counted(run):
    "p1 is found in both images, p2 in one of two; p3 has no cancer, p4 is missed, p5 has no mask."
    assert not len(tool.lesion_hits(run))
    for name, row, column in (("p1@a", 1, 1), ("p1@b", 3, 3), ("p2@c", 1, 1), ("p2@d", 6, 2), ("p3@e", 1, 1),
                              ("p4@f", 6, 2)):
        write_mask(run, name, row, column)
    found = tool.lesion_hits(run).set_index("unit")
    assert found.loc["breasts", ["items", "hits"]].tolist() == [2, 1]   # a is inside, c is not
    assert found.loc["images", ["items", "hits"]].tolist() == [3, 1]
    assert tool.lesion_hits(run, 2).set_index("unit").loc["images", "items"] == 2


def test_a_drawn_lesion_is_cut_as_its_crop(run):
    frame = np.zeros((700, 500), np.uint8)
    frame[50:650, 100:400] = 64                # the breast
    frame[300:340, 200:240] = 255
    run.path("competition/truth/masks").mkdir(parents=True)
    cv2.imwrite(str(run.path("competition/truth/masks/p1@a.png")), frame)
    pd.DataFrame([("p1", "a", 100, 50, 400, 650)], columns=["patient_id", "image_id", "x0", "y0", "x1", "y1"]).to_csv(
        run.path("processed/crops.csv"), index=False)
    mask = tool.lesion_mask(run, "p1", "a")
    rows, columns = np.nonzero(mask > 127)
    assert mask.shape == (512, 256) and mask.max() == 255
    down, across = 512 / 600, 256 / 300
    assert np.allclose([rows.min(), rows.max() + 1], [250 * down, 290 * down], atol=1.5)
    assert np.allclose([columns.min(), columns.max() + 1], [100 * across, 140 * across], atol=1.5)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("c")
    make_competition(folder, patients=1, test_patients=1, frame=(320, 256), prevalence=1., seed=5, workers=1)
    return folder / "test_images"


def test_previews_show_where_a_probability_came_from(scans, tmp_path):
    place = tmp_path / "weights"
    place.mkdir()
    torch.manual_seed(0)
    network = create_network("resnet10t").eval()
    exported(place, [network], None, (128, 64), kind="timm", network="resnet10t", global_pool=None)
    outputs = {}
    for name, options in (("plain", []), ("warm", ["--heat-maps"])):
        done = CliRunner().invoke(app, ["predict", str(scans), "-o", str(tmp_path / name), "--weights", str(place),
                                        "--workers", "1", *options])
        assert done.exit_code == 0, done.output
        outputs[name] = pd.read_csv(tmp_path / name / "per_image.csv")
    assert outputs["plain"].equals(outputs["warm"])
    for row in outputs["warm"].itertuples():
        plain, warm = (cv2.imread(str(next((tmp_path / name / "previews").glob(f"*{row.image_id}*"))))
                       for name in outputs)
        frame = round(512 * row.columns / row.rows)
        start = 2 * 8 + frame + 256            # of the third picture, behind the frame and the input
        assert np.array_equal(warm[:512, :start - 8], plain[:512, :start - 8])
        third = warm[:512, start:start + frame].astype(int)
        coloured = np.ptp(third, axis=2) > 8
        down, across = 512 / row.rows, frame / row.columns
        inside = np.zeros_like(coloured)
        inside[round(row.y0 * down):round(row.y1 * down), round(row.x0 * across):round(row.x1 * across)] = True
        assert coloured.any() and not (coloured & ~inside).any()
    bare = shutil.copytree(place, tmp_path / "bare")
    (bare / "fold_0.safetensors").unlink()
    done = CliRunner().invoke(app, ["predict", str(scans), "-o", str(tmp_path / "none"), "--weights", str(bare),
                                    "--heat-maps"])
    assert done.exit_code != 0 and "fold_0.safetensors" in str(done.exception)


def test_a_slice_with_blood_has_its_mask_and_no_other_has_one(tmp_path):
    patient = next(p for p in plan("train", 12, 1., 10, 3) if p["kinds"])
    rows = make_patient(tmp_path, patient, 96, 3.)
    inside, around = [], []
    for row in rows:
        path = tmp_path / "truth" / "masks" / f"{row['image_id']}.png"
        assert path.is_file() == bool(row["any"])
        if row["any"]:
            mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            pixels = read_image(tmp_path / "stage_2_train_images" / f"{row['image_id']}.dcm").pixels.astype(float)
            ring = cv2.dilate(mask, np.ones((7, 7), np.uint8)) - mask
            assert mask.shape == pixels.shape and set(np.unique(mask)) == {0, 255}
            inside.append(np.median(pixels[mask > 0]))
            around.append(np.median(pixels[(ring > 0) & (np.abs(pixels - inside[-1]) < 100)]))
    assert inside and np.mean(inside) > np.mean(around) + 15

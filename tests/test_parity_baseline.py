"""The baseline against figures that the code of its walk-through computed: preparation, score, sampler, network.

`PARITY=FOLDER pytest tests/test_parity_baseline.py` runs another set of figures; see tests/parity.py.
"""
import re
from hashlib import sha256
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

import mammo_nb.baseline.train as train
from mammo_nb.baseline.learning.walkthrough import named_as_in_timm, soft_pf1
from mammo_nb.baseline.prepare import full_range, largest_box, pad_upright, prepare
from mammo_nb.baseline.system import RECIPES, Prepare, Train
from mammo_nb.baseline.train import THRESHOLDS, best_on_grid, build_network, pictures, weighted_batches
from mammo_nb.core.networks import Mirrored, load_state
from parity import FOLDER, arrays, figures, filled, frame, given_input, needs_parity, picture

pytestmark = needs_parity
PUBLISHED = RECIPES["baseline_tiny"]


def walkthrough(part: str) -> dict | list:
    return figures("baseline_walkthrough")[part]


def prepared_frames() -> list[str]:
    "The frames that the walk-through prepares; none where the set is absent."
    if not (FOLDER / "baseline_walkthrough.json").is_file():
        return []
    return [name for name, stated in walkthrough("prepared").items() if "raises" not in stated]


def digest(array: np.ndarray) -> str:
    return sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def stored(name: str) -> SimpleNamespace:
    "The frame of a case as it is read from a file; its digest is checked."
    stated = walkthrough("prepared")[name]
    (rows, columns), how = stated["size"], stated.get("pixels", "frame")
    width = re.search(r"width (\d+)", how)
    pixels = frame(stated["frame"], rows, int(width[1]) if width else columns, marker=name == "marker")
    pixels = pixels[:, :columns].astype(np.uint16)
    if how.startswith("4095 -"):
        pixels = 4095 - pixels
    if factor := re.search(r"frame \* (\d+)", how):
        pixels = np.minimum(pixels.astype(int) * int(factor[1]), 65535).astype(np.uint16)
    assert digest(pixels) == stated["sha256_uint16"], f"{name} is another frame"
    return SimpleNamespace(pixels=pixels, header=SimpleNamespace(photometric=stated["meta"]["photometric"]))


# ---- preparation
@pytest.mark.parametrize("name", prepared_frames())
def test_from_frame_to_picture(name):
    stated, expected, image = walkthrough("prepared")[name], arrays("baseline_walkthrough"), stored(name)
    grey = full_range(image)
    assert grey.dtype == np.uint8 and digest(grey) == stated["grey_sha256"]
    if f"{name}.grey" in expected:
        assert np.array_equal(grey[::4, ::4], expected[f"{name}.grey"])
    box = largest_box(grey)
    assert [box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0] == stated["box_x_y_w_h"] and box.source == "triangle"
    assert list(pad_upright(grey[box.y0:box.y1, box.x0:box.x1]).shape) == stated["padded"]
    made, found = prepare(image, PUBLISHED.section(Prepare))
    assert found == box and np.array_equal(made[::16, ::16], expected[f"{name}.output"])
    assert digest(made) == stated["sha256_output"] and made.mean() == pytest.approx(stated["mean"], abs=1e-6)


def test_a_blank_frame_is_kept_whole_where_the_original_raises():
    size = next(stated["size"] for stated in walkthrough("prepared").values() if "raises" in stated)
    blank = SimpleNamespace(pixels=np.full(size, 300, np.uint16), header=SimpleNamespace(photometric="MONOCHROME2"))
    made, box = prepare(blank, PUBLISHED.section(Prepare))
    assert box.source == "full frame" and [box.y1, box.x1] == size and not made.any()


def test_normalised_pictures(tmp_path):
    stated, expected = walkthrough("transform"), arrays("baseline_walkthrough")
    grey = picture(stated["picture"], *stated["size"])
    assert cv2.imwrite(str(tmp_path / "p@i.png"), grey)
    table = pd.DataFrame({"patient_id": ["p"], "image_id": ["i"], "cancer": [1]})
    settings = PUBLISHED.section(Train)
    data = pictures(table, tmp_path, grey.shape, build_network(settings).normalization, settings.augment)
    flipped = next(seed for seed in range(100) if np.array_equal(data.picture(0, seed), grey[:, ::-1]))
    for name, seed in (("as_it_is", -1), ("flipped", flipped)):
        made = data[(0, seed)][0].numpy()
        assert made.dtype == np.float32 and made.shape == (3, *stated["size"])
        np.testing.assert_allclose(made[:, ::3, ::3], expected[f"transform.{name}"], atol=1e-6)


# ---- score and sampler
def test_scores_and_the_first_of_the_best_thresholds():
    for stated in walkthrough("metric"):
        truth, predictions = np.array(stated["truth"]), np.array(stated["predictions"])
        assert soft_pf1(truth, predictions) == pytest.approx(stated["soft"], abs=1e-9)
        if "scores" in stated:
            found = [soft_pf1(truth, predictions > t) for t in THRESHOLDS]
            assert found == pytest.approx(stated["scores"], abs=1e-9)
            found = best_on_grid(truth, predictions, faithful=True)
            assert found == pytest.approx((stated["threshold"], stated["best"]), abs=1e-9)
            assert best_on_grid(truth, predictions)[1] == pytest.approx(stated["best"], abs=1e-5)


def test_weights_and_number_of_draws(monkeypatch):
    stated, asked = walkthrough("sampler"), {}

    def drawn(weights, count, replacement, generator):
        asked.update(weights=list(weights), draws=count, replacement=replacement)
        return range(count)
    monkeypatch.setattr(train, "WeightedRandomSampler", drawn)
    cancer = np.array(stated["cancer"])[stated["index"]]
    batches = weighted_batches(cancer, 26, stated["factor"], seed=0)(0)
    assert asked == {name: stated[name] for name in ("weights", "draws", "replacement")}
    assert sum(map(len, batches)) == stated["draws"]


# ---- network
def test_names_and_order_of_the_parameters():
    stated = walkthrough("network")
    names = [name for name, *_ in stated["state_dict"]]
    ours = build_network(PUBLISHED.section(Train))
    translated = named_as_in_timm(filled(stated["state_dict"], 1.0))
    assert len(translated) == len(names) and set(translated) == set(ours.state_dict())
    order = dict(zip(names, translated))
    assert [order[name] for name in stated["named_parameters"]] == [name for name, _ in ours.named_parameters()]
    assert sum(p.numel() for p in ours.parameters()) == stated["parameters"]
    frozen = [name for name, p in ours.named_parameters() if not p.requires_grad]
    assert frozen == [order[name] for name in stated["named_parameters"][:PUBLISHED.section(Train).freeze]]


def test_logits_alone_and_with_the_mirror_image():
    stated = walkthrough("network")
    network, fill = build_network(PUBLISHED.section(Train)).eval(), stated["fill"]
    load_state(network, named_as_in_timm(filled(stated["state_dict"], fill["gain"], fill["depthwise"])), "formula")
    x = torch.from_numpy(given_input(stated["input"]))
    with torch.inference_mode():
        np.testing.assert_allclose(network(x), stated["logits"], atol=1e-5)
        np.testing.assert_allclose(Mirrored(network)(x), stated["logits_with_mirror"], atol=1e-5)


def test_stochastic_depth_and_layer_norms():
    stated, network = walkthrough("network"), build_network(PUBLISHED.section(Train))
    blocks = [b for stage in network.stages for b in stage.blocks]
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for b in blocks]
    assert rates == pytest.approx(stated["stochastic_depth_by_block"], abs=1e-7)
    eps = {m.eps for m in network.modules() if isinstance(m, torch.nn.LayerNorm)}
    assert eps == set(stated["layer_norm_eps"])


def test_the_new_head_starts_afresh():
    stated = walkthrough("network")["fresh_head"]
    norm, last = (part for name, part in build_network(PUBLISHED.section(Train), seed=3).head.named_children()
                  if name in ("norm", "fc"))
    assert [norm.weight.min().item(), norm.weight.max().item()] == stated["classifier.0.weight"]
    assert [norm.bias.min().item(), norm.bias.max().item()] == stated["classifier.0.bias"]
    limit = last.in_features ** -.5   # torch draws the linear layer evenly within it
    assert max(map(abs, stated["classifier.2.bias"])) <= limit
    assert 0 < last.bias.abs().item() <= limit and .9 * limit < last.weight.abs().max().item() <= limit

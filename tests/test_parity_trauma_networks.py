"""The networks of the abdominal-trauma system against figures that the original code computed: names, logits, masks.

`PARITY=FOLDER pytest tests/test_parity_trauma*.py` runs another set of figures; see tests/parity.py.
"""
from functools import cache, lru_cache

import numpy as np
import pytest
import torch
from parity import arrays, figures, filled, given_input, needs_parity, tensor, uniform

from mammo_nb.core.networks import WeightsError, load_state
from mammo_nb.core.optimisation import learning_rate
from mammo_nb.trauma.learning.classifier import make_classifier, unused_parts
from mammo_nb.trauma.learning.losses import classifier_loss, dice_loss
from mammo_nb.trauma.recipes import PUBLISHED

pytestmark = needs_parity


def gains(stated: dict) -> dict:
    return {"depthwise": 1.0} | {k: v for k, v in stated["fill"].items() if k != "seed"}


def rows_of(stated: dict) -> list:
    "The table of names of a configuration; several share one file."
    return figures(stated["state_dict"].removesuffix(".json"))


# ---- the twelve configurations
@cache
def entry(name: str, shape: tuple, dtype: str, gain: float, depthwise: float) -> torch.Tensor:
    "A tensor of a state dict; the backbones of several configurations are equal."
    return torch.from_numpy(tensor(name, shape, gain, depthwise, dtype))


def state_of(stated: dict, rows: list) -> dict[str, torch.Tensor]:
    "The state dict that a configuration saved."
    return {name: entry(first[0] if first else name, tuple(shape), dtype, **gains(stated))
            for name, shape, dtype, *first in rows}


@lru_cache(maxsize=1)
def computed(names: str, auxiliary: str):
    "Network, maps, logits and masks; equal for the configurations that share their names and their decoder."
    script, stated = next((s, f) for s, f in figures("trauma_models").items() if f["state_dict"] == names
                          and PUBLISHED[s][1][0].auxiliary == auxiliary)
    model, state = PUBLISHED[script][1][0], state_of(stated, rows_of(stated))
    network = make_classifier(
        model.backbone, len(model.columns.split()), model.rnn, model.hidden, model.dropout, model.auxiliary,
        len(model.masks.split()), stated["input"]["shape"][-1], unused_parts(list(state), model.auxiliary)).eval()
    load_state(network, state, script)
    with torch.inference_mode():
        image = torch.from_numpy(given_input(stated["input"]))
        maps = network.maps(image.flatten(0, 1))
        labels, masks = network.labels(maps[-1], len(image)), network.masks(maps, image.shape[-2:])
        for *place, value in stated["nan_input"]["positions"]:
            image[tuple(place)] = float(value)
        return network, maps, labels, masks, network({"image": image})["labels"]


def grouped(script: str) -> tuple:
    "Configurations that share a network follow each other."
    model = PUBLISHED[script][1][0]
    return model.backbone, model.hidden, model.columns, model.auxiliary, script


@pytest.fixture(scope="module", params=sorted(PUBLISHED, key=grouped))
def published(request):
    "A configuration: its figures, its network and what that computes."
    script = request.param
    stated, model = figures("trauma_models")[script], PUBLISHED[script][1][0]
    network, maps, labels, masks, broken = computed(stated["state_dict"], model.auxiliary)
    return {"script": script, "stated": stated, "model": model, "rows": rows_of(stated), "network": network,
            "maps": maps, "labels": labels, "masks": masks, "broken": broken}


def test_a_published_file_is_read_strictly_and_runs_no_code(tmp_path):
    stated = figures("trauma_models")["coatsmall384extravast4funet"]
    model, state = PUBLISHED["coatsmall384extravast4funet"][1][0], state_of(stated, rows_of(stated))
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "model.pth")
    options = dict(outputs=2, hidden=model.hidden, auxiliary="unet", size=96, weights=str(tmp_path / "model.pth"))
    made = make_classifier(model.backbone, unused=unused_parts(list(state), "unet"), **options).state_dict()
    assert all(torch.equal(made[name], value) for name, value in state.items())
    with pytest.raises(WeightsError, match="lstm.0.lstm.weight_ih_l0"):
        make_classifier(model.backbone, **options)   # without the parts that are not used
    torch.save({**state, "args": tmp_path}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="would run code"):
        make_classifier(model.backbone, **options)


def test_names_shapes_and_parameters(published):
    network, stated = published["network"], published["stated"]
    own = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert own == {name: shape for name, shape, *_ in published["rows"]}
    assert sum(p.numel() for p in network.parameters()) == stated["parameters"]
    shared = {name: first[0] for name, _, _, *first in published["rows"] if first}
    state = network.state_dict()
    assert all(state[name].data_ptr() == state[first].data_ptr() for name, first in shared.items())


def test_maps_and_logits(published):
    expected, script = arrays("trauma_models"), published["script"]
    for k, found in enumerate(published["maps"][-4:]):
        there = [n for n in expected if n.startswith(f"{script}.stage")]
        pooled = expected[sorted(there)[-4:][k]]
        np.testing.assert_allclose(found.mean((2, 3))[:, ::8].numpy(), pooled, rtol=0, atol=1e-4)
    np.testing.assert_allclose(published["labels"].numpy(), expected[f"{script}.logits"], rtol=0, atol=1e-4)


def test_masks(published):
    expected, script = arrays("trauma_models"), published["script"]
    masks = list(published["masks"])
    if published["stated"]["same_mask_twice"]:   # one mask with the double weight gives the same loss
        masks = masks * 2
    assert [list(m.shape) for m in masks] == published["stated"]["outputs"][1:]
    for k, mask in enumerate(published["masks"]):
        found = mask[[0, 7]][:, :, 4::12, 4::12].numpy()
        np.testing.assert_allclose(found, expected[f"{script}.mask{k}"], rtol=0, atol=1e-4)


def test_loss(published):
    script, labels = published["script"], published["labels"]
    masks = published["masks"]
    shape = (*labels.shape[:2], *masks[0].shape[1:])
    targets = {"labels": torch.from_numpy(uniform(f"targets/{script}", labels.numel()) ** 2).reshape(labels.shape),
               "masks": torch.from_numpy(uniform(f"masks/{script}", int(np.prod(shape))) > .7).reshape(shape).float()}
    targets["masks"][:, :, -1] = 0
    loss = classifier_loss(published["model"].auxiliary_weight)
    made = loss({"labels": labels.double(), "masks": masks}, targets)
    assert sum(made.values()).item() == pytest.approx(published["stated"]["loss"]["value"], abs=1e-4)


def test_numbers_that_are_not_finite(published):
    expected = arrays("trauma_models")[f"{published['script']}.logits_nan_input"]
    np.testing.assert_allclose(published["broken"].numpy(), expected, rtol=0, atol=1e-4)


def test_tensors_that_no_output_depends_on_are_not_trained(published):
    "DDP needs this: a parameter that is trained must have a gradient."
    unused = set(published["stated"]["unused"])
    idle = {name for name, p in published["network"].named_parameters() if not p.requires_grad}
    assert idle == unused


def test_learning_rates(published):
    stated, loop = published["stated"]["learning_rate"], published["model"].loop
    assert (loop.epochs, loop.lr, loop.weight_decay, loop.accumulate) == (
        stated["epochs"], stated["peak"], stated["weight_decay"], stated["accumulation"])
    steps = stated["steps_per_epoch"]
    for step, rate in stated["step_and_rate"]:
        assert learning_rate(loop, step // steps, step % steps / steps) == pytest.approx(rate, rel=1e-8, abs=1e-15)


# ---- the 3D network
@pytest.fixture(scope="module")
def three():
    from mammo_nb.trauma.learning.segmenter import make_segmenter
    stated = figures("trauma_seg3d")
    network = make_segmenter("resnet18d", published=True).eval()
    load_state(network, filled(stated["state_dict"], **gains(stated)), "trauma_seg3d")
    return stated, network


def test_names_shapes_and_parameters_of_the_3d_network(three):
    stated, network = three
    own = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert own == {name: shape for name, shape, *_ in stated["state_dict"]}
    assert sum(p.numel() for p in network.parameters()) == stated["parameters"]


@pytest.mark.parametrize("case", [0, 1])
def test_logits_and_loss_of_the_3d_network(three, case):
    stated, network = three[0]["cases"][case], three[1]
    with torch.inference_mode():
        made = network(torch.from_numpy(given_input(stated["input"])))
    assert list(made.shape) == stated["output"]["shape"]
    expected = arrays("trauma_seg3d")[f"output.{stated['input']['name'].rsplit('/', 1)[1]}"]
    np.testing.assert_allclose(made[:, :, 1::6, 2::12, 2::12].numpy(), expected, rtol=0, atol=1e-4)
    name = stated["dice_loss"]["target"].split(" ")[0]
    target = torch.from_numpy(uniform(name, made.numel()) > .8).reshape(made.shape).float()
    target[:, 4] = 0
    assert dice_loss(made.double(), target).item() == pytest.approx(stated["dice_loss"]["value"], abs=1e-6)


def test_2d_weights_become_3d(three):
    from mammo_nb.trauma.learning.segmenter import inflated
    for stated in three[0]["from_2d"].values():
        if len(stated["shape_2d"]) == 4:
            flat = torch.nn.Conv2d(*stated["shape_2d"][1::-1], stated["shape_2d"][2])
            deep = inflated(flat)
            assert list(deep.weight.shape) == stated["shape_3d"]
            assert torch.equal(deep.weight, flat.weight[..., None].expand_as(deep.weight))

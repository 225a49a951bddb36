"core/yolox: the library's network and loss, published files, one graph."
import os
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from yolox.models import YoloxModule

from mammo_nb.core.backends import open_graph
from mammo_nb.core.detection import decode
from mammo_nb.core.networks import WeightsError, save_weights
from mammo_nb.core.sidecars import EngineError
from mammo_nb.core.yolox import DetectorGraph, YoloxLoss, create_yolox, export_yolox, load_yolox

SIZE = 128


def trained(seed=0, **options):
    "A network whose normalisation has seen something, so that its answers differ from place to place."
    network = create_yolox(seed=seed, **options).train()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        network(torch.rand(4, 3, SIZE, SIZE, generator=generator) * 255)
    return network.eval()


@pytest.mark.parametrize("decoded", [True, False])
def test_the_graph_says_what_the_library_says(decoded):
    network, squares = trained(), torch.randint(0, 256, (2, 1, SIZE, SIZE), dtype=torch.uint8,
                                                generator=torch.Generator().manual_seed(1))
    network.head.decode_in_inference = decoded
    with torch.no_grad():
        theirs, ours = YoloxModule.forward(network,
                                           squares.float().expand(-1, 3, -1, -1)), DetectorGraph(
                                               network, SIZE, decoded)(squares)
    assert ours.shape == (2, 336, 6) and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("l1", [False, True])
def test_loss_and_gradient_are_the_librarys(l1):
    pictures = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)) * 255
    targets = torch.tensor([[[0., 60, 64, 50, 90]], [[0., 40, 60, 80, 110]]])
    ours, theirs = create_yolox().train(), create_yolox().train()
    loss, theirs.head.use_l1 = YoloxLoss(ours, SIZE), l1
    loss.l1 = l1
    a, b = loss(ours(pictures), targets), YoloxModule.forward(theirs, pictures, targets)["total_loss"]
    a.backward(), b.backward()
    assert torch.isclose(a, b, rtol=1e-6)
    assert all(
        torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6) for p, q in zip(ours.parameters(), theirs.parameters()))


def test_the_winners_assignment_allows_all_cells_of_the_box():
    "Facts, section 2: centre radius 2.5, and the older rule that any cell in the box may be dealt it, at a price."
    network = create_yolox()
    YoloxLoss(network, SIZE, faithful=True)
    boxes = torch.tensor([[64., 64, 40, 40]])
    x, y = (v.flatten()[None].float() for v in torch.meshgrid(torch.arange(16), torch.arange(16), indexing="xy"))
    allowed, cheap = network.head.get_geometry_constraint(boxes, torch.full((1, 256), 8.), x, y)
    # centres of cells are at 4, 12, ..., 124: within 20 pixels of 64 are 44 < 60, 68, 76, 52, 84 exclusive: 52, 60, 68,
    # 76
    assert allowed.reshape(16, 16).nonzero().unique().tolist() == [6, 7, 8, 9] and int(allowed.sum()) == 16 and bool(
        cheap.all())
    large = torch.tensor([[64., 64, 100, 100]])
    allowed, cheap = network.head.get_geometry_constraint(large, torch.full((1, 256), 8.), x, y)
    # centres within 50 pixels: 12 a side; within 2.5 cells: 4 a side
    assert int(allowed.sum()) == 144 and int(cheap.sum()) == 16


def test_published_files_load_strictly(tmp_path):
    coco, winner = trained(1, classes=80), trained(2)
    torch.save({"model": coco.state_dict()}, tmp_path / "yolox_nano.pth")
    torch.save(
        {
            "start_epoch": 400, "model": winner.state_dict(), "optimizer": {"state": {}}, "best_ap": np.float64(.9626),
            "curr_ap": np.float32(.96)
        }, tmp_path / "winner.pth")
    ours = create_yolox()
    load_yolox(ours, tmp_path / "winner.pth")
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), winner.state_dict().values()))
    assert {m.eps for m in ours.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {1e-3}
    whole = create_yolox(classes=80)
    load_yolox(whole, tmp_path / "yolox_nano.pth")
    assert torch.equal(whole.head.cls_preds[2].weight, coco.head.cls_preds[2].weight)
    with pytest.raises(WeightsError, match="does not fit") as refused:
        load_yolox(ours, tmp_path / "yolox_nano.pth")
    assert refused.value.misshaped and all(name.startswith("head.cls_preds.")
                                           for name in refused.value.misshaped) and len(refused.value.misshaped) == 6
    before = ours.head.cls_preds[0].weight.clone()
    load_yolox(ours, tmp_path / "yolox_nano.pth", initial=True)
    assert torch.equal(ours.head.cls_preds[0].weight, before) and torch.equal(ours.head.obj_preds[0].weight,
                                                                              coco.head.obj_preds[0].weight)


def test_missing_and_extra_keys_are_listed_and_nothing_is_loaded(tmp_path):
    state = trained(3).state_dict()
    del state["head.stems.1.bn.running_mean"], state["backbone.C3_p4.conv1.conv.weight"]
    state["head.extra.weight"] = torch.zeros(3)
    torch.save({"model": state}, tmp_path / "odd.pth")
    network = create_yolox()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    for initial in (False, True):
        with pytest.raises(WeightsError) as refused:
            load_yolox(network, tmp_path / "odd.pth", initial)
        assert sorted(refused.value.missing) == ["backbone.C3_p4.conv1.conv.weight", "head.stems.1.bn.running_mean"
                                                 ] and refused.value.unexpected == ["head.extra.weight"]
        assert "head.stems.1.bn.running_mean" in str(refused.value) and "head.extra.weight" in str(refused.value)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)
    torch.save({"model": create_yolox().state_dict(), "best_ap": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(WeightsError, match="run code"):
        load_yolox(create_yolox(), tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()


def test_safetensors_and_back(tmp_path):
    network = trained(4)
    save_weights(network, tmp_path / "yolox.safetensors", {})
    again = create_yolox()
    load_yolox(again, tmp_path / "yolox.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values()))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "A network's three graphs, and what torch says to three squares."
    folder, network, squares = tmp_path_factory.mktemp("graphs"), trained(5), np.random.default_rng(0).integers(
        0, 256, (3, 1, SIZE, SIZE), np.uint8)
    with torch.no_grad():
        reference = DetectorGraph(network, SIZE)(torch.from_numpy(squares)).numpy()
    export_yolox(network, folder / "any.onnx", SIZE, {})
    export_yolox(network, folder / "one.onnx", SIZE, {}, batch=1)
    export_yolox(network, folder / "raw.onnx", SIZE, {}, decode=False)
    return folder, squares, reference


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_fixed_and_dynamic_batches_give_the_same_boxes(exported, backend):
    if not find_spec(backend):
        pytest.skip(f"needs {backend}")   # not imported here: it would report home
    folder, squares, reference = exported
    any_number, one, raw = (open_graph(folder / f"{name}.onnx", backend) for name in ("any", "one", "raw"))
    for output in (any_number(squares), any_number(squares.astype(np.float32)), np.concatenate(
        [any_number(s[None]) for s in squares]), np.concatenate(
            [one(s[None]) for s in squares]), decode(raw(squares), SIZE)):
        assert np.abs(output - reference)[..., :4].max() < .02 and np.abs(output - reference)[..., 4:].max() < 1e-5
    with pytest.raises(EngineError):
        one(squares)
    assert any_number.metadata["decoded"] and not raw.metadata["decoded"] and one.metadata[
        "batch"] == 1 and any_number.metadata["size"] == SIZE

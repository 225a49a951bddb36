"""The networks of the head-CT system against figures that the original code computed: classifier, loss and metric.

`PARITY=FOLDER pytest tests/test_parity_ich*.py` runs another set of figures; see tests/parity.py.
"""
import numpy as np
import pytest
import torch

from mammo_nb.ich.learning.encoder import Encoder
from mammo_nb.ich.learning.losses import log_loss, weighted_log_loss
from mammo_nb.ich.reading.published import published_files, read_published
from parity import arrays, figures, filled, given_input, needs_parity

pytestmark = needs_parity


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    "ResNeXt-101, filled by the formula and read from a file as the original saved it; figures, features and logits."
    stated = figures("ich_classifier")
    folder = tmp_path_factory.mktemp("published")
    torch.save(filled(stated["state_dict"], **{k: v for k, v in stated["fill"].items() if k != "seed"}),
               folder / "model_480_epoch2_fold1.bin")
    encoder = read_published(Encoder("resnext101_32x8d.fb_wsl_ig1b_ft_in1k", 6), published_files(folder, 480, 1)[2])
    with torch.inference_mode():
        x = torch.from_numpy(given_input(stated["input"]))
        features = encoder.features(x)
        return stated, encoder, features.numpy(), encoder(x).numpy()


def test_the_classifier_has_the_names_and_parameters_of_the_original(classifier):
    stated, encoder, _, _ = classifier
    assert sum(p.numel() for p in encoder.parameters()) == stated["parameters"]
    own = {name: list(value.shape) for name, value in encoder.network.state_dict().items()}
    assert own == {name.removeprefix("module."): shape for name, shape, *_ in stated["state_dict"]}


def test_logits_and_features_of_the_classifier(classifier):
    stated, _, features, logits = classifier
    np.testing.assert_allclose(logits, stated["logits"], rtol=0, atol=1e-4)
    expected = arrays("ich_classifier")
    (name,) = [k for k, v in expected.items() if v.shape == features.shape]
    np.testing.assert_allclose(features, expected[name], rtol=0, atol=1e-4)


def test_training_loss_and_metric():
    stated = figures("ich_scores")["loss"]
    logits, targets = (torch.tensor(stated[k], dtype=torch.float64) for k in ("logits", "targets"))
    probabilities = torch.sigmoid(logits).numpy()
    for start, expected in ((0, stated), (3, stated["rows_3_on"])):
        assert weighted_log_loss(logits[start:], targets[start:]).item() == pytest.approx(expected["training_loss"],
                                                                                       abs=1e-6)
        metric = log_loss(targets[start:].numpy(), probabilities[start:])
        assert metric == pytest.approx(expected["metric_clipped"], abs=1e-6)

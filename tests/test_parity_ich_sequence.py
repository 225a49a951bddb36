"The sequence model against figures that the original's code computed, see tests/parity.py."
import numpy as np
import pandas as pd
import pytest
import torch
from parity import arrays, figures, fill, given_input, needs_parity

from mammo_nb.core.batches import pad
from mammo_nb.ich.bag import average_submissions
from mammo_nb.ich.learning.recurrent import Recurrent, to_the_end, with_differences
from mammo_nb.ich.learning.series import SeriesEmbeddings, pad_series, predict_series, series_loss
from mammo_nb.ich.recipes import CLASSES

pytestmark = needs_parity


def double(model: torch.nn.Module, **gain) -> torch.nn.Module:
    "The model with the weights of the fixture, in float64."
    return fill(model, **gain).double()


def small(faithful=False):
    stated, given = figures("ich_lstm")["small"], arrays("ich_lstm")
    model = double(Recurrent(stated["embedding"], stated["units"], 6, faithful=faithful), gain=stated["fill"]["gain"])
    rows = pd.DataFrame([r[:3] for r in stated["rows"]], columns=["image_id", "series", "place"])
    rows["embedding"] = list(given["small.embeddings"])
    series = [np.stack(rows[rows["series"] == name].sort_values("place")["embedding"])
              for name in stated["sequence_order"]]
    return stated, given, model, [torch.from_numpy(s).double() for s in series]


def test_names_and_shapes_of_the_weights_are_the_originals():
    for size in ("small", "full"):
        stated = figures("ich_lstm")[size]
        with torch.device("meta"):
            model = Recurrent(stated["embedding"], stated["units"], 6)
        assert [[n, list(t.shape)] for n, t in model.state_dict().items()] == [r[:2] for r in stated["state_dict"]]
        assert sum(p.numel() for p in model.parameters()) == stated["parameters"]


def test_features_and_logits_of_single_series():
    stated, given, model, series = small()
    assert [len(s) for s in series] == stated["lengths"]
    for k, one in enumerate(series):
        made = with_differences(one[None], None)[0]
        np.testing.assert_allclose(made.numpy(), given[f"small.features.{k}"], atol=1e-5)
        with torch.no_grad():
            alone = model.read(one[None])[0].numpy()
        np.testing.assert_allclose(alone, given[f"small.logits_alone.{k}"], atol=1e-5)


def test_padded_batches_are_the_originals_when_faithful_and_the_lone_series_else():
    stated, given, model, series = small()
    _, _, faithful, _ = small(faithful=True)
    batch = pad(series)
    with torch.no_grad():
        ours, theirs = model(batch).numpy(), to_the_end(faithful(batch), batch["lengths"]).numpy()
    left = to_the_end(with_differences(batch["values"], batch["lengths"]), batch["lengths"]).numpy()
    np.testing.assert_allclose(left, given["small.batch.emb"], atol=1e-5)
    np.testing.assert_allclose(theirs, given["small.logits_padded"], atol=1e-5)
    for k, length in enumerate(stated["lengths"]):
        np.testing.assert_allclose(ours[k, :length], given[f"small.logits_alone.{k}"], atol=1e-5)
        moved = np.abs(theirs[k, -length:] - given[f"small.logits_alone.{k}"]).max()
        np.testing.assert_allclose(moved, stated["largest_change_by_padding"][k], atol=1e-5)


def labels_of(stated, given) -> list[torch.Tensor]:
    "Labels of each series, from the padded batch of the fixture."
    return [torch.from_numpy(own[-n:]).double() for own, n in zip(given["small.batch.labels"], stated["lengths"])]


def test_the_loss_of_a_padded_batch_leaves_the_padding_out():
    stated, given, _, series = small()
    _, _, faithful, _ = small(faithful=True)
    inputs, targets = pad_series(list(zip(series, labels_of(stated, given))))
    with torch.no_grad():
        assert abs(series_loss(faithful(inputs), targets).item() - stated["loss_of_padded_batch"]) < 1e-5


def test_probabilities_in_batches_of_two_are_those_of_the_original():
    stated, given, _, _ = small()
    table = pd.DataFrame(stated["rows"], columns=["image_id", "series", "place", "row", *CLASSES])
    order = table["series"].map({name: k for k, name in enumerate(stated["sequence_order"])})
    table = table.assign(order=order).sort_values(["order", "place"])
    data = SeriesEmbeddings(given["small.embeddings"][table.index], table, CLASSES)
    faithful = fill(Recurrent(stated["embedding"], stated["units"], 6, faithful=True), gain=stated["fill"]["gain"])
    found = predict_series(faithful, data, 2)
    assert table["image_id"].tolist() == stated["predict_images"]
    np.testing.assert_allclose(found, given["small.predict.batch2"], atol=1e-5)
    ids = [f"{image}_{c}" for image in table["image_id"] for c in CLASSES]
    count = len(stated["submission_ids"])
    assert ids[:count] == stated["submission_ids"]
    np.testing.assert_allclose(found.ravel()[:count], stated["submission_values"], atol=1e-5)


def test_the_network_as_it_was_written_with_narrow_features():
    stated, given = figures("ich_lstm")["literal_2048"], arrays("ich_lstm")
    gain = figures("ich_lstm")["small"]["fill"]["gain"]
    model = Recurrent(stated["units"], stated["units"], 6, deltas=False)  # all features are in the skip connection
    x = torch.from_numpy(given_input(stated["input"])).double()
    with torch.no_grad():
        found = double(model, gain=gain).layers(x).numpy()
    np.testing.assert_allclose(found, given["literal.logits"], atol=1e-5)


def test_the_full_size():
    stated, given = figures("ich_lstm")["full"], arrays("ich_lstm")
    values = torch.from_numpy(given_input(stated["input"]))
    series = list(values.split(stated["lengths"]))
    model = fill(Recurrent(stated["embedding"], stated["units"], 6, faithful=True), gain=stated["fill"]["gain"])
    batch = pad(series)
    total = with_differences(batch["values"], batch["lengths"]).double().abs().sum().item()
    assert abs(total - stated["input"]["features_sum"]) < 1e-6 * abs(total)
    with torch.no_grad():
        padded = to_the_end(model(batch), batch["lengths"]).numpy()
        alone = [model.read(s[None])[0].numpy() for s in series]
    np.testing.assert_allclose(padded, given["full.logits_padded"], atol=1e-5)
    for k, found in enumerate(alone):
        np.testing.assert_allclose(found, given[f"full.logits_alone.{k}"], atol=1e-5)


def test_a_series_of_one_slice_is_predicted():
    stated, given, model, series = small()
    one = series[0][:1]
    with torch.no_grad():
        alone = model.read(one[None])[0]
        beside = model(pad([one, series[0]]))[0, :1]
    assert figures("ich_lstm")["single_slice_series"] == "ValueError"  # of the original
    np.testing.assert_allclose(beside, alone, atol=1e-9)


@pytest.mark.parametrize("case", ["same_order", "other_order"])
def test_the_bag_of_submissions(case):
    stated = figures("ich_scores")["bag"][case]
    found = average_submissions([pd.DataFrame(f) for f in stated["files"]])
    assert found.columns.tolist() == stated["columns"] and found["ID"].tolist() == stated["ID"]
    np.testing.assert_allclose(found["Label"], stated["Label"], rtol=0, atol=1e-9)

"The sequence model of head CT: padding, order, features that belong together, two trainings alike."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mammo_nb.core.batches import pad
from mammo_nb.core.files import sha256
from mammo_nb.core.recipes import RecipeError
from mammo_nb.ich.learning.recurrent import Recurrent, with_differences
from mammo_nb.ich.learning.series import SeriesEmbeddings, predict_series, rows_of_series
from mammo_nb.ich.recipes import Reader, Sequence
from mammo_nb.ich.sequence import embedded, train_reader

CLASSES = ("subdural", "any")


def made_table(series=8, seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for k in range(series):
        length = int(rng.integers(1, 9))
        parts.append(pd.DataFrame({"patient_id": f"p{k}", "series": f"s{k}", "place": np.arange(length), "fold": k % 2,
                                   "image_id": [f"i{k}_{n}" for n in range(length)],
                                   "any": rng.integers(2, size=length)}))
    table = pd.concat(parts).sample(frac=1, random_state=seed).reset_index(drop=True)
    return table.assign(subdural=table["any"])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("deltas", [True, False])
def test_a_prediction_does_not_depend_on_the_batch_nor_on_the_padding(cell, deltas):
    torch.manual_seed(1)
    model = Recurrent(8, 8, 2, cell=cell, deltas=deltas).eval()
    series = [torch.randn(n, 8) for n in (1, 7, 3, 12)]
    with torch.no_grad():
        alone = [model.read(s[None])[0] for s in series]
        for order in ([0, 1, 2, 3], [3, 0], [2], [1, 2]):
            batch = pad([series[k] for k in order])
            wider = {"values": torch.cat([batch["values"], torch.full((len(order), 5, 8), 9.)], 1),
                     "lengths": batch["lengths"]}
            for given in (batch, wider):
                found = model(given)
                for row, k in enumerate(order):
                    torch.testing.assert_close(found[row, :len(series[k])], alone[k], atol=1e-6, rtol=1e-5)


def test_the_original_depends_on_the_batch():
    torch.manual_seed(1)
    model = Recurrent(8, 8, 2, faithful=True).eval()
    series = [torch.randn(3, 8), torch.randn(12, 8)]
    with torch.no_grad():
        assert (model(pad(series))[0, :3] - model(pad(series[:1]))[0]).abs().max() > 1e-3


def test_differences_end_at_the_ends_of_each_series():
    values = torch.tensor([[[1.], [3.], [6.]], [[5.], [7.], [100.]]])
    found = with_differences(values, torch.tensor([3, 2]))
    assert found[0].tolist() == [[1, 0, -2], [3, 2, -3], [6, 3, 0]]
    assert found[1].tolist() == [[5, 0, -2], [7, 2, 0], [0, 0, 0]]


def test_rows_of_any_order_become_series_in_the_order_of_the_patient():
    table = made_table()
    for rows in rows_of_series(table):
        own = table.iloc[rows]
        assert own["series"].nunique() == 1 and own["place"].tolist() == list(range(len(own)))
    data = SeriesEmbeddings(np.arange(len(table), dtype=np.float32)[:, None], table, CLASSES)
    model = torch.nn.Module()
    model.forward = lambda padded: padded["values"].repeat(1, 1, 2) - 10
    model.register_parameter("where", torch.nn.Parameter(torch.zeros(1)))
    expected = 1 / (1 + np.exp(10 - np.arange(len(table))))
    np.testing.assert_allclose(predict_series(model, data, 3)[:, 0], expected, rtol=1e-5)


def test_two_trainings_give_the_same_files_and_hold_the_fold_back(tmp_path):
    table = made_table()
    rng = np.random.default_rng(3)
    features = rng.normal(size=(len(table), 8)).astype(np.float32)
    settings = replace(Sequence(), units=8, bag_epochs=2, loop=replace(Sequence().loop, epochs=3))
    for name in ("a", "b"):
        data = SeriesEmbeddings(features, table, CLASSES)
        train_reader(data, table, 0, Reader(), settings, tmp_path / name, {}, name)
    assert sha256(tmp_path / "a/epoch_2.safetensors") == sha256(tmp_path / "b/epoch_2.safetensors")
    predicted = pd.read_csv(tmp_path / "a/pred.csv")
    assert set(predicted["image_id"]) == set(table["image_id"][table["fold"] == 0])
    last = [np.load(tmp_path / f"a/pred_{e}.npy")[:, 1] for e in (1, 2)]
    np.testing.assert_allclose(predicted["p_any"], np.mean(last, 0), rtol=1e-6)
    changed = features.copy()
    changed[(table["fold"] == 0).to_numpy()] += 5  # the features of the held-back fold have no part in the training
    train_reader(SeriesEmbeddings(changed, table, CLASSES), table, 0, Reader(), settings, tmp_path / "c", {}, "c")
    assert sha256(tmp_path / "a/epoch_2.safetensors") == sha256(tmp_path / "c/epoch_2.safetensors")


def test_features_that_are_missing_are_named():
    made = {"embeddings": {"windows_fold0_epoch2_plain.safetensors": "", "windows_fold-1_epoch0_plain.safetensors": ""}}
    assert embedded(made, "windows", tta=False) == [(-1, 0), (0, 2)]
    with pytest.raises(RecipeError, match="windows_fold-1_epoch0_flip.safetensors is missing"):
        embedded(made, "windows", tta=True)
    with pytest.raises(RecipeError, match="there is no other_fold"):
        embedded(made, "other", tta=False)
    with pytest.raises(RecipeError, match="needs 16 units, and got 8"):
        Recurrent(16, 8, 6)

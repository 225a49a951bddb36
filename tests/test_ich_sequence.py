"The sequence model of head CT: padding, order, features that belong together, two trainings alike."
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mammo_nb.core.batches import pad, step_mask
from mammo_nb.core.files import read_json, sha256, write_csv, write_json
from mammo_nb.core.recipes import Recipe, RecipeError
from mammo_nb.core.runs import Run
from mammo_nb.core.uncertainty import draws
from mammo_nb.ich import bag, sequence
from mammo_nb.ich.learning.embeddings import EmbeddingsError, embedding_name, read_embeddings, write_embeddings
from mammo_nb.ich.learning.losses import log_loss
from mammo_nb.ich.learning.recurrent import Recurrent, both_directions, with_differences
from mammo_nb.ich.learning.scores import compare
from mammo_nb.ich.learning.series import SeriesEmbeddings, predict_series, rows_of_series, smoothed_loss
from mammo_nb.ich.recipes import Reader, Sequence
from mammo_nb.ich.sequence import embedded, series_batches, train_reader
from mammo_nb.ich.system import system

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


def test_the_way_of_a_cpu_gives_the_outputs_and_gradients_of_a_packed_batch():
    torch.manual_seed(2)
    layer, lengths = torch.nn.LSTM(8, 4, bidirectional=True, batch_first=True), torch.tensor([1, 7, 3])
    x = pad([torch.randn(n, 8) for n in lengths])["values"]
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected = pad_packed_sequence(layer(packed)[0], batch_first=True)[0]
    there, found = step_mask(lengths, 7), both_directions(layer, x, lengths)
    torch.testing.assert_close(found[there], expected[there], atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(*(torch.autograd.grad(o[there].square().sum(), list(layer.parameters()))
                              for o in (found, expected))):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


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
    again = replace(settings, loop=replace(settings.loop, seed=settings.loop.seed + 7))
    data = SeriesEmbeddings(features, table, CLASSES)
    train_reader(data, table, 0, Reader(seed=7), settings, tmp_path / "d", {}, "d")   # another start
    train_reader(data, table, 0, Reader(), again, tmp_path / "e", {}, "e")
    digests = [sha256(tmp_path / name / "epoch_2.safetensors") for name in "ade"]
    assert digests[0] != digests[1] == digests[2]


def test_a_training_reads_one_view_at_a_time_and_predicts_from_their_mean(tmp_path):
    table, rng = made_table(), np.random.default_rng(3)
    views = rng.normal(size=(2, len(table), 8)).astype(np.float32)
    data = SeriesEmbeddings(views.mean(0), table, CLASSES, views)
    seeds = [seed for epoch in range(4) for batch in series_batches([0, 1, 2], 2, 0)(epoch) for _, seed in batch]
    assert {seed % 2 for seed in seeds} == {0, 1} and len(set(seeds)) == 12
    for seed in seeds[:4]:
        np.testing.assert_array_equal(data[1, seed][0], views[seed % 2][data.rows[1]])
    model = Recurrent(8, 8, 2)
    with torch.no_grad():
        expected = model.read(torch.from_numpy(views.mean(0))[data.rows[1]][None])[0].sigmoid()
    np.testing.assert_allclose(predict_series(model, data)[data.rows[1]], expected, atol=1e-6)


def test_smoothing_replaces_a_part_of_each_label_by_the_mean_of_its_class():
    logits, labels = torch.tensor([[[2., -1.], [0., 3.]]]), torch.tensor([[[1., 0.], [0., 1.]]])
    targets = .9 * labels + .1 * torch.tensor([.25, .5])
    each = targets * torch.nn.functional.softplus(-logits) + (1 - targets) * torch.nn.functional.softplus(logits)
    expected = (each.mean((0, 1)) * torch.tensor([1 / 3, 2 / 3])).sum()
    found = smoothed_loss(.1, torch.tensor([.25, .5]))(logits, {"values": labels, "lengths": torch.tensor([2])})
    torch.testing.assert_close(found, expected)


def test_features_that_are_missing_are_named():
    made = {"embeddings": {"windows_fold0_epoch2_plain.safetensors": "", "windows_fold-1_epoch0_plain.safetensors": ""}}
    assert embedded(made, "windows", tta=1) == [(-1, 0), (0, 2)]
    with pytest.raises(RecipeError, match="windows_fold-1_epoch0_flip.safetensors is missing"):
        embedded(made, "windows", tta=3)
    with pytest.raises(RecipeError, match="there is no other_fold"):
        embedded(made, "other", tta=1)
    with pytest.raises(RecipeError, match="needs 16 units, and got 8"):
        Recurrent(16, 8, 6)


# ---- the stages sequence and bag on made-up features
def made_run(folder, overrides=None, folds=(0, 1), skips=("end2end",)) -> Run:
    "A run with made-up features of two views: folds.csv and weights/embeddings/, as the stage embed leaves them."
    readers = (Reader("plain", deltas=False, tta=1), Reader(tta=1), Reader("gru", cell="gru", tta=1),
               Reader("beside", view="neighbours", tta=1))
    made = Recipe("made-up features", Sequence(readers, 8, 2, replace(Sequence().loop, epochs=3)), skips=skips)
    run = Run.create(folder, replace(system, recipes={"tiny": made}), "tiny", overrides=overrides)
    table, rng = made_table(12), np.random.default_rng(5)
    write_csv(run.path("folds.csv"), table)
    made = {"embeddings": {}, "encoders": {}, "classes": list(CLASSES), "embedding": 8}
    for view in ("windows", "neighbours"):
        for fold in folds:
            name = embedding_name(view, fold, 0, "plain")
            features = rng.normal(size=(len(table), 8)) + table["any"].to_numpy()[:, None]
            write_embeddings(run.path(f"weights/embeddings/{name}"), table["image_id"].tolist(), features,
                             rng.random((len(table), 2)), {"encoder_sha256": view})
            made["embeddings"][name] = sha256(run.path(f"weights/embeddings/{name}"))
    write_json(run.path("weights/embeddings.json"), made)
    return run


def read_all(run, reader) -> pd.DataFrame:
    files = [run.path(f"checkpoints/sequence/{reader}/fold_{f}_epoch0/pred.csv") for f in (0, 1)]
    return pd.concat(pd.read_csv(f) for f in files).set_index("image_id")


def end_to_end(run):
    "What the stage end2end leaves for the bag; its predictions are those of the reader `beside`."
    predicted = run.path("checkpoints/end2end/pred.csv")
    write_csv(predicted, read_all(run, "beside").reset_index())
    write_json(predicted.with_suffix(".json"), {"sha256": sha256(predicted),
                                                "members": sha256(run.path("weights/members.json"))})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = made_run(tmp_path_factory.mktemp("bag") / "run", {"bag.readers": "lstm gru"}, skips=())
    sequence.run_stage(run)
    end_to_end(run)
    bag.run_stage(run)
    return run


def test_the_bag_is_the_mean_over_kinds_of_models_that_have_not_seen_the_patient(trained):
    oof, folds = pd.read_csv(trained.path("oof.csv")), pd.read_csv(trained.path("folds.csv"))
    assert sorted(oof["image_id"]) == sorted(folds["image_id"])
    both = [read_all(trained, r).loc[oof["image_id"], ["p_subdural", "p_any"]] for r in ("lstm", "gru")]
    np.testing.assert_allclose(oof[["p_subdural", "p_any"]], (both[0] + both[1]) / 2, rtol=1e-6)
    for fold in (0, 1):
        held = pd.read_csv(trained.path(f"checkpoints/sequence/gru/fold_{fold}_epoch0/pred.csv"))
        assert set(held["fold"]) == {fold}
    named = read_json(trained.path("bag.json"))["members"]
    assert len(named) == 2 * 2 * 2 + 2 * 2   # kinds, folds and epochs of weights; kinds and folds of predictions
    assert all(sha256(trained.path(n)) == digest for n, digest in named.items())


def test_the_ladder_has_a_row_for_each_step_and_its_scores_are_those_of_the_predictions(trained):
    ladder = pd.read_csv(trained.path("ladder.csv")).set_index("step")
    assert ladder.index.tolist() == ["CNN", "CNN + mean of neighbours", "CNN + LSTM", "CNN + LSTM + differences",
                                     "CNN + GRU + differences", "CNN neighbours",
                                     "CNN neighbours + LSTM + differences", "end to end", "bag of lstm, gru"]
    assert read_json(trained.path("bag.json"))["step"] == "bag of lstm, gru"
    assert bag.bag_step([Reader(), Reader("twin"), Reader("gru", cell="gru")], ["twin"]) == (
        "CNN + LSTM + differences + TTA, twin")
    same = ladder.loc[["end to end", "CNN neighbours + LSTM + differences"]]   # the fixture copied these predictions
    assert same.nunique().eq(1).all()
    oof = pd.read_csv(trained.path("oof.csv"))
    predicted = read_all(trained, "plain").loc[oof["image_id"]]
    row = ladder.loc["CNN + LSTM"]
    assert row["log_loss"] == pytest.approx(log_loss(oof[list(CLASSES)].to_numpy(),
                                                     predicted[["p_subdural", "p_any"]].to_numpy()))
    assert row["auc_any"] == pytest.approx(roc_auc_score(oof["any"], predicted["p_any"]))
    first = ladder.loc["CNN"]
    assert row["change_percent"] == pytest.approx(100 * (row["log_loss"] / first["log_loss"] - 1))
    parts = []   # the classifier of a fold predicts this fold
    for fold in (0, 1):
        ids = oof["image_id"][oof["fold"] == fold].tolist()
        file = trained.path(f"weights/embeddings/{embedding_name('windows', fold, 0, 'plain')}")
        parts.append(pd.DataFrame(read_embeddings(file, ids)[1], index=ids))
    cnn = pd.concat(parts).loc[oof["image_id"]].to_numpy()
    assert first["log_loss"] == pytest.approx(log_loss(oof[list(CLASSES)].to_numpy(), cnn))


def test_files_that_nobody_named_do_not_enter_and_changed_ones_are_refused(tmp_path):
    run = made_run(tmp_path / "run", {"bag.readers": "lstm"})
    sequence.run_stage(run)
    expected = bag.run_stage(run)
    kept = run.path("checkpoints/sequence/lstm/fold_0_epoch0/pred.csv")
    for stray in ("checkpoints/sequence/lstm/fold_7_epoch0/pred.csv", "checkpoints/sequence/old/fold_0_epoch0/pred.csv",
                  "weights/sequence/lstm_fold0_epoch0_9.safetensors",
                  "weights/embeddings/windows_fold0_epoch1_plain.safetensors"):
        run.path(stray).parent.mkdir(parents=True, exist_ok=True)
        run.path(stray).write_bytes(kept.read_bytes())
    pd.testing.assert_frame_equal(bag.run_stage(run), expected)
    folder = "checkpoints/sequence"
    for name in (f"{folder}/lstm/fold_0_epoch0/pred.csv", f"{folder}/plain/fold_1_epoch0/pred.csv",
                 "weights/sequence/lstm_fold1_epoch0_2.safetensors"):
        original = run.path(name).read_bytes()
        run.path(name).write_bytes(original[:-2] + b"1\n")
        with pytest.raises(bag.BagError, match=f"{Path(name).name} is not the file that the stage sequence wrote"):
            bag.run_stage(run)
        run.path(name).write_bytes(original)
    file = run.path("weights/embeddings/windows_fold0_epoch0_plain.safetensors")
    file.write_bytes(run.path("weights/embeddings/windows_fold1_epoch0_plain.safetensors").read_bytes())
    for stage in (sequence, bag):
        with pytest.raises(EmbeddingsError, match="fold0_epoch0_plain.safetensors is not the file that"):
            stage.run_stage(run)
    with pytest.raises(RecipeError, match="names other. There are plain, lstm"):
        bag.members_of(run, ["lstm", "other"])


def test_finished_trainings_are_not_repeated_and_other_features_train_again(tmp_path):
    run = made_run(tmp_path / "run")
    sequence.run_stage(run)
    first = {p: sha256(p) for p in sorted(run.path("weights/sequence").iterdir())}
    times = {p: p.stat().st_mtime_ns for p in run.path("checkpoints/sequence").rglob("epoch_2.safetensors")}
    assert len(times) == 8
    for p in first:
        p.unlink()
    sequence.run_stage(run)
    assert {p: sha256(p) for p in sorted(run.path("weights/sequence").iterdir())} == first
    assert {p: p.stat().st_mtime_ns for p in times} == times
    made = read_json(run.path("weights/embeddings.json"))
    name = embedding_name("neighbours", 1, 0, "plain")
    features, probabilities = read_embeddings(run.path(f"weights/embeddings/{name}"))
    ids = pd.read_csv(run.path("folds.csv"))["image_id"].tolist()
    write_embeddings(run.path(f"weights/embeddings/{name}"), ids, features + 1, probabilities, {"encoder_sha256": "x"})
    made["embeddings"][name] = sha256(run.path(f"weights/embeddings/{name}"))
    write_json(run.path("weights/embeddings.json"), made)
    sequence.run_stage(run)
    again = [p.parent.relative_to(run.path("checkpoints/sequence")).as_posix() for p in times
             if p.stat().st_mtime_ns != times[p]]
    assert again == ["beside/fold_1_epoch0"]


def test_models_of_all_data_are_members_without_out_of_fold_predictions(tmp_path):
    run = made_run(tmp_path / "run", {"bag.readers": "lstm"}, folds=(-1,))
    history = sequence.run_stage(run)
    assert set(history["fold"]) == {-1} and "log_loss" not in history
    assert bag.run_stage(run).empty and pd.read_csv(run.path("oof.csv")).empty
    named = read_json(run.path("bag.json"))
    assert sorted(named["members"]) == [f"weights/sequence/lstm_fold-1_epoch0_{e}.safetensors" for e in (1, 2)]
    assert named["slices"] == 0


def test_intervals_are_those_of_draws_of_whole_patients():
    rng = np.random.default_rng(1)
    known = pd.DataFrame({"patient_id": np.repeat([f"p{k}" for k in range(30)], rng.integers(1, 9, 30))})
    for name in CLASSES:
        known[name] = rng.integers(2, size=len(known))
    found = (0.3 * known[list(CLASSES)].to_numpy() + 0.7 * rng.random((len(known), 2))).round(1)
    table = compare(known, CLASSES, {"first": found, "same": found})
    losses, aucs = [], []
    names = sorted(known["patient_id"].unique())
    for times in draws(len(names)):
        rows = np.repeat(np.arange(len(known)), times[known["patient_id"].map(names.index)])
        labels = known[list(CLASSES)].to_numpy()[rows]
        losses.append(log_loss(labels, found[rows]))
        aucs.append(roc_auc_score(labels[:, -1], found[rows, -1]))
    for values, columns in ((losses, ["low", "high"]), (aucs, ["auc_low", "auc_high"])):
        np.testing.assert_allclose(table.loc[0, columns].astype(float), np.quantile(values, [.025, .975]), rtol=1e-9)
    assert table.loc[1, ["change_percent", "change_low", "change_high"]].tolist() == [0, 0, 0]

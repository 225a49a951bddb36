"Classifiers of slices, embeddings, published weights and end to end, on a drawn data set without the stages before."
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics

from mammo_nb.core.files import read_json, sha256, write_json
from mammo_nb.core.networks import WeightsError, read_state
from mammo_nb.core.recipes import RecipeError
from mammo_nb.core.runs import Run
from mammo_nb.ich import classify, embed, end2end, sequence
from mammo_nb.ich.learning.embeddings import VIEWS, mean_views, read_about, read_embeddings
from mammo_nb.ich.learning.encoder import NORMALIZATION, Encoder, load_encoder
from mammo_nb.ich.learning.losses import class_losses, class_weights, log_loss, weighted_log_loss
from mammo_nb.ich.learning.slices import (PictureError, SlicePictures, apply_view, augment_original,
                                          augment_upright, read_folds, read_view)
from mammo_nb.ich.recipes import CLASSES, Prepare, View
from mammo_nb.ich.system import system

ROOT = Path(__file__).parents[1]


def drawn_run(folder: Path, classes=CLASSES, **overrides) -> Run:
    "A run whose pictures and tables are drawn: 6 patients with 8 slices, bright spots where `any` is 1."
    rng = np.random.default_rng(0)
    run = Run.create(folder, system, "tiny", overrides={"classify.loop.epochs": 2, **overrides})
    pictures = run.path("processed/pictures/")
    pictures.mkdir(parents=True)
    rows = []
    for patient in range(6):
        for place in range(8):
            ill = int(patient % 2 and place in (3, 4))
            picture = np.zeros((40, 48, 3), np.uint8)
            cv2.ellipse(picture, (22, 20), (14, 17), 0, 0, 360, (100, 80, 120), -1)
            picture[..., 0] += rng.integers(20, size=picture.shape[:2], dtype=np.uint8)
            if ill:
                cv2.circle(picture, (int(rng.integers(14, 30)), 18), 4, (250, 160, 190), -1)
            image = f"ID_{patient:04x}{place:05x}"
            cv2.imwrite(str(pictures / f"{image}.png"), picture)
            rows.append({"patient_id": f"ID_{patient:08x}", "study": f"t{patient}", "series": f"s{patient}",
                         "image_id": image, "place": place, "x0": 8, "y0": 3, "x1": 37, "y1": 38,
                         **{c: ill for c in classes}, "fold": patient % 2})
    table = pd.DataFrame(rows)
    table["fold"] = table["patient_id"].str[-1].astype(int) // 3
    table.drop(columns="fold").to_csv(run.path("processed/slices.csv"), index=False)
    table.sample(frac=1, random_state=1).to_csv(run.path("folds.csv"), index=False)
    prepared = {"parameters": asdict(Prepare()), "reads": {}, "writes": {}}
    write_json(run.folder / "manifest.json", {"run": "", "stages": {"prepare": prepared}})
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run after classify and embed."
    made = drawn_run(tmp_path_factory.mktemp("run") / "run", **{"classify.folds": "0 1"})
    classify.run_stage(made)
    embed.run_stage(made)
    return made


def test_the_metric_is_scikit_learns_log_loss_of_each_class_with_weights_and_clip():
    rng = np.random.default_rng(1)
    labels, probabilities = rng.integers(2, size=(50, 6)), rng.random((50, 6)) ** 8
    probabilities[:3], probabilities[3:6] = 0, 1
    clipped = np.clip(probabilities, 1e-5, 1 - 1e-5)
    each = [metrics.log_loss(labels[:, k], clipped[:, k]) for k in range(6)]
    np.testing.assert_allclose(class_losses(labels, probabilities), each, rtol=1e-9)
    assert log_loss(labels, probabilities) == pytest.approx((sum(each) + each[5]) / 7)
    assert log_loss(labels[:, 5], probabilities[:, 5]) == pytest.approx(each[5])


def test_the_training_loss_is_six_parts_of_the_mean_and_one_of_any():
    logits, targets = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)), torch.ones(2, 5, 6)
    each = torch.nn.functional.softplus(-logits)
    expected = (6 * each.mean() + each[..., 5].mean()) / 7
    torch.testing.assert_close(weighted_log_loss(logits, targets), expected)
    torch.testing.assert_close(weighted_log_loss(logits[..., :1], targets[..., :1]), each[..., 0].mean())
    assert class_weights(2).tolist() == [1 / 3, 2 / 3]


def test_each_view_and_fold_has_a_classifier_that_predicts_the_fold_it_has_not_seen(run):
    history, table = pd.read_csv(run.path("checkpoints/classify/history.csv")), read_folds(run.path("folds.csv"))
    assert list(zip(history["encoder"], history["fold"], history["epoch"])) == [
        (v, f, e) for v in ("windows", "neighbours") for f in (0, 1) for e in (0, 1)]
    assert (history["held_out"] == 1).all()
    for row in history.itertuples():
        own = run.path(f"checkpoints/classify/{row.encoder}/fold_{row.fold}")
        predicted = pd.read_csv(own / f"pred_{row.epoch}.csv")
        assert set(predicted["image_id"]) == set(table["image_id"][table["fold"] == row.fold])
        found = log_loss(predicted[list(CLASSES)].to_numpy(), predicted[[f"p_{c}" for c in CLASSES]].to_numpy())
        assert found == pytest.approx(row.log_loss, abs=1e-5)
        assert sha256(own / f"epoch_{row.epoch}.safetensors") == row.weights_sha256


def test_embeddings_are_those_of_the_encoder_for_the_slice_that_is_named(run):
    stated, table = read_json(run.path("weights/embeddings.json")), read_folds(run.path("folds.csv"))
    assert len(stated["embeddings"]) == 2 * 2 * 3 and stated["embedding"] == 16 and stated["classes"] == list(CLASSES)
    settings = run.section("classify")
    encoder = Encoder(settings.network, 6, settings.embedding)
    load_encoder(encoder.eval(), run.path("weights/encoders/neighbours_fold1_epoch1.safetensors"))
    data = SlicePictures(table, run.path("processed/pictures"), View("n", "neighbours"), settings.size, NORMALIZATION)
    for row in (0, 17):
        for view in VIEWS:
            file = f"neighbours_fold1_epoch1_{view}.safetensors"
            path = run.path(f"weights/embeddings/{file}")
            assert sha256(path) == stated["embeddings"][file]
            found = read_embeddings(path, [table["image_id"][row]])
            with torch.inference_mode():
                features = encoder.features(apply_view(data.tensor(row)[None], view))
                expected = features.numpy(), torch.sigmoid(encoder.classify(features)).numpy()
            for a, b in zip(found, expected):
                np.testing.assert_allclose(a, b, atol=1e-5)
    files = [run.path(f"weights/embeddings/neighbours_fold1_epoch1_{v}.safetensors") for v in VIEWS]
    mean = np.mean([read_embeddings(f)[0] for f in files], 0)
    np.testing.assert_allclose(mean_views(files)[0], mean, atol=1e-6)


def test_finished_work_is_not_repeated_and_missing_or_damaged_work_is(run):
    folder = run.path("weights/embeddings/")
    files = sorted(folder.iterdir())
    trained = run.path("checkpoints/classify/windows/fold_0/epoch_1.safetensors")
    times = {p: p.stat().st_mtime_ns for p in [*files, trained]}
    digests = {p: sha256(p) for p in files}
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:300])
    classify.run_stage(run)
    embed.run_stage(run)
    assert {p for p, t in times.items() if p.stat().st_mtime_ns != t} == set(files[:2])
    assert {p: sha256(p) for p in files} == digests


def test_other_weights_or_another_table_replace_the_embeddings(tmp_path):
    run = drawn_run(tmp_path / "run", **{"embed.tta": 1})
    classify.run_stage(run)
    embed.run_stage(run)
    path = run.path("weights/embeddings/windows_fold0_epoch1_plain.safetensors")
    before, about = sha256(path), read_about(path)
    folds = read_folds(run.path("folds.csv"))
    folds.iloc[:-1].to_csv(run.path("folds.csv"), index=False)
    embed.run_stage(run)
    assert read_about(path)["image_ids"] == about["image_ids"][:-1]
    folds.to_csv(run.path("folds.csv"), index=False)
    embed.run_stage(run)
    assert sha256(path) == before
    again = Run.open(run.folder, {"classify.loop.lr": 1e-4})
    classify.run_stage(again)
    embed.run_stage(again)
    assert read_about(path)["encoder_sha256"] != about["encoder_sha256"]
    assert not run.path("weights/embeddings/windows_fold0_epoch1_flip.safetensors").exists()


def test_two_runs_give_the_same_files(tmp_path):
    made = []
    for name in ("one", "two"):
        run = drawn_run(tmp_path / name)
        classify.run_stage(run)
        made.append(embed.run_stage(run))
    assert made[0] == made[1]


KILLED = """
import os, signal, sys
from importlib import import_module
from mammo_nb.core.runs import Run
folder, stage, dataset, left = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
module = import_module(f"mammo_nb.ich.{stage}")
kind = getattr(module, dataset)
read = kind.__getitem__
def last_read(self, at):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, at)
kind.__getitem__ = last_read
module.run_stage(Run.open(folder))
"""


def test_a_stage_that_is_killed_continues_and_gives_the_same_weights(tmp_path):
    "Each stage kills itself in the middle of the second epoch of its second training."
    often = {"classify.loop.checkpoint_every": 2, "sequence.loop.checkpoint_every": 1, "classify.loop.batch_size": 8,
             "sequence.loop.batch_size": 1}
    whole, cut = (drawn_run(tmp_path / name, **often) for name in ("whole", "cut"))
    # a training of 24 slices reads 24 and validates 24 in each of its 2 epochs; one of 3 series reads 3 and predicts 3
    for name, dataset, reads in (("classify", "SlicePictures", 96 + 48 + 20), ("sequence", "SeriesEmbeddings", 12 + 8)):
        module = {"classify": classify, "sequence": sequence}[name]
        done = subprocess.run([sys.executable, "-c", KILLED, str(cut.folder), name, dataset, str(reads)], cwd=ROOT)
        started = cut.path(f"checkpoints/{name}")
        assert done.returncode == -signal.SIGKILL and len(list(started.rglob("last.pt"))) == 2
        assert len(list(started.rglob("done.json"))) == 1
        pd.testing.assert_frame_equal(module.run_stage(cut), module.run_stage(whole))
        for run in (cut, whole):
            embed.run_stage(run)
    for name in ("embeddings.json", "members.json"):
        assert read_json(cut.path(f"weights/{name}")) == read_json(whole.path(f"weights/{name}"))


def test_a_training_on_all_data_says_that_nothing_is_held_out(tmp_path):
    run = drawn_run(tmp_path / "run", **{"classify.folds": "all"})
    history = classify.run_stage(run)
    assert set(history["fold"]) == {-1} and (history["held_out"] == 0).all()
    predicted = pd.read_csv(run.path("checkpoints/classify/windows/fold_-1/pred_0.csv"))
    table = read_folds(run.path("folds.csv"))
    assert predicted["image_id"].tolist() == table["image_id"].tolist() and (predicted["fold"] == -1).all()
    longer = pd.concat([table] * 30, ignore_index=True)
    rows, held = classify.split_rows(longer, -1)
    assert len(rows) == len(longer) and held.tolist() == list(range(1000))


def test_folds_and_epochs_that_do_not_exist_are_errors(run):
    for wrong in ({"classify.folds": "0 5"}, {"classify.folds": ""}):
        with pytest.raises(RecipeError, match="there are the folds 0, 1"):
            classify.run_stage(Run.open(run.folder, wrong))
    with pytest.raises(RecipeError, match="embed.epochs is 3, and a classifier has 2"):
        embed.run_stage(Run.open(run.folder, {"embed.epochs": 3}))


def test_a_data_set_with_one_class(tmp_path):
    run = drawn_run(tmp_path / "run", ("any",))
    history = classify.run_stage(run)
    made = embed.run_stage(run)
    assert made["classes"] == ["any"] and np.isfinite(history["log_loss"]).all()
    _, found = read_embeddings(run.path("weights/embeddings/windows_fold0_epoch1_plain.safetensors"))
    assert found.shape == (48, 1)


def test_published_weights_are_embedded_without_a_training(tmp_path):
    "Files as the original saved them, with the names of torchvision's ResNeXt, whose features are the reference."
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    original = models.resnext50_32x4d(num_classes=6).eval()
    for name in ("windows", "neighbours"):
        (tmp_path / name).mkdir()
        torch.save({f"module.{k}": v for k, v in original.state_dict().items()},
                   tmp_path / name / "model_32_epoch4_fold0.bin")
    run = drawn_run(tmp_path / "run", **{
        "classify.weights": str(tmp_path / "{view}"), "classify.network": "resnext50_32x4d", "classify.embedding": 0})
    history = classify.run_stage(run)
    assert "loss" not in history and history["epoch"].tolist() == [4, 4]
    times = {p: p.stat().st_mtime_ns for p in run.path("checkpoints/classify/").rglob("*.safetensors")}
    classify.run_stage(run)
    assert {p: p.stat().st_mtime_ns for p in times} == times
    embed.run_stage(run)
    table = read_folds(run.path("folds.csv"))
    data = SlicePictures(table, run.path("processed/pictures"), View(), 32, NORMALIZATION)
    found, _ = read_embeddings(run.path("weights/embeddings/windows_fold0_epoch4_plain.safetensors"),
                               table["image_id"].tolist()[:2])
    original.fc = torch.nn.Identity()
    with torch.inference_mode():
        expected = original(torch.stack([data.tensor(r) for r in (0, 1)])).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises(WeightsError, match="Set classify.size and classify.folds to what is there"):
        classify.run_stage(Run.open(run.folder, {"classify.size": 64}))


def test_pictures_depend_on_the_seed_of_the_sample_only(run):
    table = read_folds(run.path("folds.csv"))
    arguments = (run.path("processed/pictures"), View(), 32, NORMALIZATION, "original")
    first, second = SlicePictures(table, *arguments), SlicePictures(table, *arguments)
    for k in range(20):
        first.picture(k, k)
    assert np.array_equal(first.picture(5, 77), second.picture(5, 77))
    assert np.array_equal(first.picture(5, -1), SlicePictures(table, *arguments[:-1]).picture(5, 77))
    picture = np.random.default_rng(0).integers(256, size=(32, 32, 3)).astype(np.uint8)
    kept = [np.array_equal(np.sort(augment_original(picture, s), None), np.sort(picture, None)) for s in range(500)]
    assert 0.6 < np.mean(kept) < 0.8   # only three of ten are interpolated


def test_neighbours_are_cut_to_the_box_of_the_middle_slice(run):
    table = read_folds(run.path("folds.csv"))
    table.loc[table["place"] == 3, ["x0", "y0", "x1", "y1"]] = [10, 5, 30, 25]
    three = SlicePictures(table, run.path("processed/pictures"), View("n", "neighbours"), 20, NORMALIZATION)
    row = table.index[(table["place"] == 3) & (table["series"] == "s1")][0]
    for channel, place in enumerate((2, 3, 4)):
        picture = cv2.imread(str(run.path(f"processed/pictures/ID_0001{place:05x}.png")))
        assert np.array_equal(three.picture(row)[..., channel], picture[5:25, 10:30, 0])


def test_a_slice_without_a_box_is_kept_whole_and_a_box_outside_is_an_error():
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[4:12, 8:24] = 200
    cut, whole = read_view(picture, (8, 4, 24, 12), 16), read_view(picture, (8, 4, 24, 12), 16, crop=False)
    assert (cut[:8] == 200).all() and not cut[8:].any()
    assert np.array_equal(read_view(picture, [np.nan] * 4, 16), whole) and not np.array_equal(cut, whole)
    with pytest.raises(PictureError, match="not inside of a picture"):
        read_view(picture, (8, 4, 24, 21), 16)


def test_frozen_parameters_keep_their_values_and_dropout_acts_in_training_only(tmp_path):
    run = drawn_run(tmp_path / "run", **{"classify.freeze": 3, "classify.dropout": .5, "classify.loop.lr": 1e-2})
    classify.run_stage(run)
    settings = run.section("classify")
    first = dict(classify.build_encoder(settings, 6, "none", settings.loop.seed + 1).named_parameters())
    state, _ = read_state(run.path("checkpoints/classify/windows/fold_0/epoch_1.safetensors"))
    same = [torch.equal(first[name], state[name]) for name in first]
    assert same[:3] == [True] * 3 and not any(same[3:])
    encoder, x = Encoder("resnet10t", 6, 16, dropout=.5), torch.randn(3, 3, 32, 32)
    assert not torch.equal(encoder.train()(x), encoder(x))
    found = encoder.eval().features(x)
    assert torch.equal(encoder(x), encoder.last(found)) and (found >= 0).all() and (found > 0).any()


def test_upright_pictures_are_mirrored_in_half_of_the_cases_and_not_transposed():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[20:44, 26:30] = 200   # a bar from top to bottom, left of the middle
    made = [augment_upright(picture, seed) for seed in range(200)]
    assert all(np.array_equal(augment_upright(picture, seed), made[seed]) for seed in (0, 7))
    points = [np.argwhere(m[..., 0] > 100) for m in made]
    spread = np.array([np.ptp(p, axis=0) for p in points])
    assert (spread[:, 0] > 2 * spread[:, 1]).all()   # a turn of 15 degrees leaves it upright
    middle = np.array([p.mean(0)[1] for p in points])
    assert 0.35 < np.mean(middle > 32) < 0.65
    levels = np.array([m.max() for m in made])
    assert levels.min() >= (200 - 102) * .85 + 102 - 20 and levels.max() <= (200 - 102) * 1.15 + 102 + 20


def test_two_processes_train_one_classifier(tmp_path):
    run = drawn_run(tmp_path / "run", **{"classify.processes": 2, "classify.loop.epochs": 1})
    history = classify.run_stage(run)
    assert len(history) == 2
    done = read_json(run.path("checkpoints/classify/windows/fold_0/done.json"))
    assert done["processes"] == 2


def test_trainings_side_by_side_give_what_one_after_the_other_gives(run, tmp_path, monkeypatch):
    "Classifiers, features and sequence models."
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    jobs = {f"{section}.jobs": 2 for section in ("classify", "embed", "sequence")}
    other = drawn_run(tmp_path / "run", **{"classify.folds": "0 1"}, **jobs)
    classify.run_stage(other)
    embed.run_stage(other)
    for each in (run, other):
        sequence.run_stage(each)
    for name in ("encoders", "embeddings", "sequence"):
        alone, beside = ({p.name: sha256(p) for p in sorted(each.path(f"weights/{name}").glob("*.safetensors"))}
                         for each in (run, other))
        assert len(alone) > 1 and alone == beside


def test_end_to_end_starts_where_the_two_stages_ended(run):
    "Without a learning rate the predictions of the fold are those of encoder, mean of views and sequence model."
    sequence.run_stage(run)
    still = Run.open(run.folder, {"end2end.loop.lr": 0.0, "end2end.loop.min_lr": 0.0})
    end2end.run_stage(still)
    predicted = pd.read_csv(run.path("checkpoints/end2end/pred.csv"))
    parts = [pd.read_csv(p) for p in run.path("checkpoints/sequence/lstm").glob("fold_*/pred.csv")]
    columns = [f"p_{c}" for c in CLASSES]
    before, after = (p.set_index("image_id").sort_index() for p in (pd.concat(parts), predicted))
    assert before.index.equals(after.index) and len(after) == 48
    np.testing.assert_allclose(after[columns], before[columns], atol=1e-5)
    table = read_folds(run.path("folds.csv")).set_index("image_id")["fold"]
    assert after["fold"].equals(table.sort_index()) and predicted.groupby("series")["place"].apply(
        lambda p: p.tolist() == list(range(8))).all()


def test_end_to_end_trains_both_and_leaves_the_statistics_of_normalisations(run):
    sequence.run_stage(run)
    history = end2end.run_stage(Run.open(run.folder, {"end2end.loop.lr": 1e-2}))
    assert history["fold"].tolist() == [0, 1] and np.isfinite(history["log_loss"]).all()
    state, _ = read_state(run.path("checkpoints/end2end/fold_0/epoch_0.safetensors"))
    member = end2end.first_members(run, "lstm")[0]
    encoder, _ = read_state(run.path(f"weights/encoders/{member['encoder']}"))
    reader, _ = read_state(run.path(f"weights/sequence/{member['file']}"))
    same = {k: torch.equal(state[f"encoder.{k}"], v) for k, v in encoder.items()}
    assert all(same[k] for k in same if "running" in k or "num_batches" in k)
    assert not same["network.conv1.0.weight"]
    assert not torch.equal(state["recurrent.linear.weight"], reader["linear.weight"])
    with pytest.raises(RecipeError, match="there are lstm, plain"):
        end2end.run_stage(Run.open(run.folder, {"end2end.reader": "nobody"}))

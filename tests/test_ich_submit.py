"""Head CT: the bag as two graphs, and the submission of a flat folder of slices."""
import shutil

import numpy as np
import pandas as pd
import pytest

from ich import CELLS, NAMES, SIZE, WIDTH, bag  # noqa: F401, the fixture
from mammo_nb.core.budget import Mode, Planner
from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import read_json, write_json
from mammo_nb.core.kernels import gather_weights
from mammo_nb.core.rehearse import scoring_problems
from mammo_nb.core.sidecars import EngineError
from mammo_nb.core.submission import find_submission
from mammo_nb.core.submit import submit
from mammo_nb.ich.learning.graphs import check_bag, encode_series, open_bag, predict_series
from mammo_nb.ich.reading.competition import SAMPLE, CompetitionError
from mammo_nb.ich.recipes import CLASSES
from mammo_nb.ich.submit import decide, item_entries, modes_of, read_test, submission
from mammo_nb.ich.tools.hidden import ODD, hidden_test


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    "A hidden test set and its file that cannot be read."
    folder = tmp_path_factory.mktemp("hidden") / "competition"
    return folder, hidden_test(folder)


@pytest.fixture(scope="module")
def submitted(hidden, bag, tmp_path_factory):  # noqa: F811
    "A submission with its table and report."
    output = tmp_path_factory.mktemp("submitted")
    submit(submission, hidden[0], bag, output, workers=0)
    names = dict.fromkeys(("patient_id", "study", "series", "image_id"), str)
    return (pd.read_csv(output / "submission.csv"), pd.read_csv(output / "test_per_slice.csv", dtype=names),
            read_json(output / "submit.json"))


def pictures(n: int, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 256, (n, 3, SIZE, SIZE), dtype=np.uint8) for name in NAMES}


# ---- the graphs
@pytest.mark.parametrize("provider", ["torch-fp32", "onnxruntime-fp32", "openvino-fp32"])
def test_every_provider_gives_the_same_for_series_of_any_length(bag, provider):  # noqa: F811
    if provider.startswith("openvino"):
        pytest.importorskip("openvino")
    ours, reference = open_bag(bag, device="cpu", backend=provider), open_bag(bag, device="cpu", backend="torch-fp32")
    for n in (1, 2, 7):
        for got, expected in zip(predict_series(ours, pictures(n), 3), predict_series(reference, pictures(n), 3)):
            assert got.shape == (n, 6) and np.abs(got - expected).max() < 1e-5
    assert np.ptp(predict_series(ours, pictures(7), 3)[0]) > .05


def test_views_are_averaged_before_the_sequence_models(bag):  # noqa: F811
    ours, x = open_bag(bag, device="cpu", backend="onnxruntime-fp32"), pictures(4)
    views = [x, {k: np.ascontiguousarray(v[..., ::-1]) for k, v in x.items()},
             {k: np.ascontiguousarray(v.swapaxes(2, 3)) for k, v in x.items()}]
    mean = np.mean([ours.encoder(v)["embeddings"] for v in views], axis=0)
    assert mean.shape == (4, 2, WIDTH) and np.abs(encode_series(ours.encoder, x, 3)[0] - mean).max() < 1e-5
    by_hand = ours.sequence(mean)
    assert by_hand.shape == (4, len(CELLS), 6)
    assert np.abs(predict_series(ours, x, 3)[0] - by_hand.mean(1)).max() < 1e-6


def test_batches_change_nothing_and_neighbours_do(bag):  # noqa: F811
    ours, x = open_bag(bag, device="cpu", backend="onnxruntime-fp32"), pictures(9)
    one, many = (encode_series(ours.encoder, x, 1, batch=b)[0] for b in (1, 9))
    assert np.abs(one - many).max() < 1e-5
    assert np.abs(ours.sequence(many)[:4] - ours.sequence(many[:4])).max() > 1e-4


def test_graphs_of_two_runs_are_refused(bag, tmp_path):  # noqa: F811
    for name in ("encoder.onnx", "encoder.json", "sequence.onnx"):
        shutil.copy(bag / name, tmp_path)
    with pytest.raises(EngineError, match="no sequence.json"):
        check_bag(tmp_path)
    write_json(tmp_path / "sequence.json", {**read_json(bag / "sequence.json"), "encoder_weights_sha256": "0"})
    with pytest.raises(EngineError, match="other classifiers"):
        open_bag(tmp_path)


def test_a_data_set_of_weights_is_flat_and_torch_still_finds_them(bag, tmp_path):  # noqa: F811
    names = gather_weights(bag, tmp_path / "flat", "ich", "encoder")["files"]
    assert "windows_fold0_epoch0.safetensors" in names and "r2_fold0_epoch0_1.safetensors" in names
    assert not [p for p in (tmp_path / "flat").iterdir() if p.is_dir()]
    ours = open_bag(tmp_path / "flat", device="cpu", backend="torch-fp32")
    assert ours.name == "torch" and ours.precision == "fp32"


# ---- the decision
def test_probabilities_are_clipped_and_stay_in_the_order_of_the_sample():
    slices = pd.DataFrame({"image_id": ["ID_2", "ID_1", "ID_3"], **{c: [0., .25, np.nan] for c in CLASSES}})
    slices.loc[1, "epidural"] = 1.
    ids = [f"ID_{k}_{c}" for k in (3, 1, 2) for c in ("any", "epidural")]
    sample = pd.DataFrame({"ID": ids, "Label": [.3] * 6})
    found = decide(slices, sample, {})
    assert found["ID"].tolist() == ids and found["Label"].tolist() == [.3, .3, .25, 1 - 1e-5, 1e-5, 1e-5]


def test_modes_drop_the_views_first():
    about = {"folds": 2, "size": [64, 64], "tta": 3}
    full, plain = modes_of(about, False, "encoder")
    assert (full.passes, plain.passes) == (3, 1) and str(full) == "encoder with TTA of 3 views"
    assert modes_of({**about, "tta": 1}, True, "encoder") == [Mode("encoder", 2, (64, 64))]
    now = [0.]
    planner = Planner([full, plain], group=1, seconds=200, clock=lambda: now[0], show=lambda line: None)
    for k in range(8):   # 3 s an item with views, 1 s without; 100 items in 200 s
        mode = planner.choose(0, 100 - k)
        planner.decoded(mode, now[0], now[0] + .01)
        now[0] += mode.passes
        planner.answered(mode, 0, 1, now[0] - mode.passes, now[0])
    assert planner.mode == plain and planner.log[0]["mode"] == "encoder"


def test_weights_of_other_classes_cannot_be_submitted(bag):  # noqa: F811
    with pytest.raises(CompetitionError, match="predicts any, and the competition asks for epidural"):
        item_entries(bag, {**read_json(bag / "encoder.json"), "classes": ["any"]})


# ---- a test set
def test_the_sample_is_filled_in_its_order(hidden, submitted):
    ours, table, report = submitted
    sample = pd.read_csv(hidden[0] / SAMPLE)
    assert ours["ID"].equals(sample["ID"]) and ours["Label"].between(1e-5, 1 - 1e-5).all()
    by_image = table.dropna(subset="any").drop_duplicates("image_id").set_index("image_id")
    for row in ours.sample(60, random_state=0).itertuples():
        image, _, kind = row.ID.rpartition("_")
        assert row.Label == pytest.approx(by_image[kind].get(image, .5), abs=1e-6)
    assert report["system"] == "ich" and report["groups"] == len(sample) // 6


def test_only_the_damaged_file_fails(hidden, submitted):
    ours, table, report = submitted
    failed = table[table["error"].notna()]
    assert failed["file"].tolist() == hidden[1] and failed["error"].str.startswith("CorruptPixels").all()
    kept = ours[ours["ID"].str.startswith(failed["image_id"].iloc[0])]["Label"]
    assert len(kept) in (0, 6) and (kept == .5).all()
    assert (report["failed"], report["predicted"]) == (1, report["items"] - 1)
    assert report["differences"]["slices of the sample without a file"] == ["ID_fffffffff"]


def test_odd_slices_are_predicted_and_named(submitted):
    _, table, _ = submitted
    notes = table["note"].fillna("")
    for words in ("localizer", "duplicate of ", "no usable ImagePositionPatient", "a volume of its own"):
        assert (notes.str.contains(words) & table["any"].notna()).any(), words
    assert (table.groupby("series")["image_id"].size() == 1).any() and len(ODD) == 6
    placed = table.dropna(subset="position_mm")
    for _, own in placed[~placed["note"].fillna("").str.contains("InstanceNumber")].groupby("series"):
        assert own["position_mm"].is_monotonic_increasing


def test_a_series_is_predicted_as_a_whole(hidden, submitted, bag):  # noqa: F811
    "The table has what the networks give for the series alone."
    _, table, _ = submitted
    test = read_test(hidden[0])
    key = test.items["file"].value_counts().index[0]
    item = {"file": key, "folder": str(hidden[0]), "rows": test.items[test.items["file"] == key].to_dict("records"),
            **item_entries(bag, read_json(bag / "encoder.json"))}
    row, seen = submission.prepare(item, modes_of(read_json(bag / "encoder.json"), False, "encoder")[0])
    together, alone = predict_series(open_bag(bag, device="cpu"), seen["inputs"], 3)
    own = table[(table["series"] == key) & table["place"].notna()]
    assert row == {"slices": len(own)} and seen["kept"] == list(range(len(own)))
    assert np.abs(own[list(CLASSES)].to_numpy() - together).max() < 1e-5
    assert np.abs(own["cnn_any"].to_numpy() - alone[:, -1]).max() < 1e-5


def test_processes_and_one_process_agree(hidden, submitted, bag, tmp_path):  # noqa: F811
    submit(submission, hidden[0], bag, tmp_path, workers=1)
    again = pd.read_csv(tmp_path / "submission.csv")
    assert np.abs(again["Label"] - submitted[0]["Label"]).max() < 1e-5
    assert scoring_problems(tmp_path / "submission.csv", hidden[0] / SAMPLE) == []


def test_without_time_the_sample_is_submitted(hidden, bag, tmp_path):  # noqa: F811
    folder = tmp_path / "competition"
    shutil.copytree(hidden[0], folder)
    clock = iter(range(0, 10**6, 50))
    from mammo_nb.core.submit import Output, submit_items
    output = Output(tmp_path / "submission.csv", tmp_path / "t.csv", tmp_path / "submit.json")
    submit_items(submission, folder, bag, output, budget="40s", workers=0, clock=lambda: next(clock))
    assert scoring_problems(output.submission, folder / SAMPLE) == []
    assert read_json(output.report)["not_reached"] > 0


@pytest.mark.parametrize("spoil, words", [
    (lambda f: (f / SAMPLE).unlink(), "has no stage_2_sample_submission.csv"),
    (lambda f: shutil.rmtree(f / "stage_2_test_images"), "No stage_2_test_images"),
    (lambda f: (f / SAMPLE).write_text("ID,Label\nID_1_brain,0.5\n"), "not <image>_<class>"),
    (lambda f: (f / SAMPLE).write_text("ID,Label\nID_1_any,0.5\nID_1_any,0.5\n"), "twice")])
def test_a_wrong_competition_is_named(hidden, bag, tmp_path, spoil, words):  # noqa: F811
    folder = tmp_path / "competition"
    shutil.copytree(hidden[0], folder)
    spoil(folder)
    with pytest.raises(ProjectError, match=words):
        submit(submission, folder, bag, tmp_path / "out", workers=0)


def test_the_declaration_is_found_by_name():
    assert find_submission("ich") is submission and submission.tables == ()

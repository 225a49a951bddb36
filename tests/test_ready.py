"A run on labelled images is refused before its first stage if its data cannot be trained on."
import cv2
import numpy as np
import pandas as pd
import pytest

from mammo_nb.core.runs import Run
from mammo_nb.core.systems import find_system
from mammo_nb.mammo.datasets import DatasetError, set_names
from mammo_nb.mammo.tools.ready import check_labels, check_run


def labels(cancers, healthy, mask=False):
    table = pd.DataFrame({"patient_id": [str(n) for n in range(cancers + healthy)],
                          "cancer": [1] * cancers + [0] * healthy})
    return table.assign(mask=["m.png"] + [np.nan] * (len(table) - 1)) if mask else table


@pytest.mark.parametrize("table, folds, masks, said", [
    (labels(8, 0), 4, False, "all 8 patients have the label cancer=1"),
    (labels(0, 8), 4, False, "all 8 patients have the label cancer=0"),
    (labels(3, 20), 4, False, 'each of 4 folds needs a patient of each kind.*n_folds=3'),
    (labels(20, 1), 2, False, "20 of 21, and each of 2 folds needs a patient of each kind. Two folds are the least"),
    (labels(8, 8), 4, True, "has none.*train.lesion_weight=0"),
])
def test_what_would_fail_late_is_told_first(table, folds, masks, said):
    with pytest.raises(DatasetError, match=said):
        check_labels(table, "mine", folds, masks)


def test_enough_patients_and_one_mask_are_enough():
    check_labels(labels(4, 4), "mine", 4, False)
    check_labels(labels(4, 4, mask=True), "mine", 4, True)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    "A labelled folder of eight patients, below `raw`."
    monkeypatch.setenv("MAMMO_NB_RAW", str(tmp_path / "raw"))
    (tmp_path / "raw/mine").mkdir(parents=True)
    rows = [f"{n}.png,p{n},L,CC,{n % 2}" for n in range(8)]
    (tmp_path / "raw/mine/labels.csv").write_text("\n".join(["file,patient_id,laterality,view,cancer", *rows]))
    for n in range(8):
        cv2.imwrite(str(tmp_path / f"raw/mine/{n}.png"), np.full((64, 48), 100, np.uint8))
    return tmp_path


@pytest.mark.parametrize("name", ["mammo", "baseline"])
def test_data_that_the_user_names_is_not_drawn(mine, name):
    system = find_system(name)
    assert Run.create(mine / "a", system, "tiny").has("phantom")
    assert Run.create(mine / "b", system, "tiny", overrides={"datasets.name": "phantom"}).has("phantom")
    run = Run.create(mine / "c", system, "tiny", overrides={"datasets.name": "mine"})
    assert not run.has("phantom") and set_names(run) == ["mine"]


def test_a_folder_without_a_test_set_needs_the_mode_for_labelled_images(mine):
    system = find_system("mammo")
    with pytest.raises(DatasetError, match="mine has no test set .*Add MODE=labelled"):
        check_run(Run.create(mine / "a", system, "tiny", overrides={"datasets.name": "mine"}))
    check_run(Run.create(mine / "b", system, "tiny", "labelled", overrides={"datasets.name": "mine"}))
    with pytest.raises(DatasetError, match='Name their folder.*SET="datasets.name=my_folder"'):
        check_run(Run.create(mine / "d", system, "tiny", "labelled"))
    with pytest.raises(DatasetError, match='n_folds=4'):
        check_run(Run.create(mine / "c", system, "tiny", "labelled",
                             overrides={"datasets.name": "mine", "folds.n_folds": 5}))

"The split: the winner's, whole patients, and a leak found whoever made the table."
import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.model_selection import StratifiedGroupKFold

from mammo_nb.core.folds import LeakageError, assign_folds, balance, check_folds, stratified_groups


@pytest.fixture
def labels() -> pd.DataFrame:
    "300 patients with 2 to 6 images each, one in ten with a cancer in one breast."
    rng = np.random.default_rng(0)
    patients = pd.DataFrame({
        "patient_id": [f"{i:05d}" for i in rng.permutation(300)], "images": rng.integers(2, 7, 300),
        "sick": rng.random(300) < 0.1
    })
    table = patients.loc[patients.index.repeat(patients["images"])].reset_index(drop=True)
    table["cancer"] = (table["sick"] & (rng.random(len(table)) < 0.5)).astype(int)
    return table.drop(columns=["images", "sick"])


def scikit_learns(y, groups, n_folds, seed) -> np.ndarray:
    "The folds of the installed version."
    folds = np.empty(len(y), int)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    for k, (_, held) in enumerate(splitter.split(y, y, groups)):
        folds[held] = k
    return folds


@pytest.mark.parametrize("seed", range(5))
def test_the_rule_is_scikit_learns_and_the_older_one_gives_the_places_to_the_unshuffled_groups(labels, seed):
    rng = np.random.default_rng(seed)
    y, groups, n_folds = rng.integers(0, 3, len(labels)), labels["patient_id"].astype(int).to_numpy(), 3 + seed
    installed = scikit_learns(y, groups, n_folds, seed)
    old = tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 8)
    assert (stratified_groups(y, groups, n_folds, seed, faithful=old) == installed).all()
    older, newer = (pd.Series(stratified_groups(y, groups, n_folds, seed, f), groups).groupby(level=0).first()
                    for f in (True, False))
    places = np.random.RandomState(seed).permutation(len(older))
    assert newer.iloc[places].tolist() == older.tolist() != newer.tolist()


def test_another_seed_is_another_split(labels):
    assert not assign_folds(labels, seed=68)["fold"].equals(assign_folds(labels)["fold"])
    assert not assign_folds(labels, faithful=True)["fold"].equals(assign_folds(labels)["fold"])


def test_patients_are_whole_positives_even_and_the_table_is_left_alone(labels):
    before = labels.copy()
    folds = assign_folds(labels, n_folds=5)
    assert labels.equals(before) and folds.drop(columns="fold").equals(labels) and set(folds["fold"]) == set(range(5))
    assert folds.groupby("patient_id")["fold"].nunique().max() == 1
    positives = folds.groupby("fold")["cancer"].sum()
    assert positives.min() > 0 and positives.max() - positives.min() <= 4


def test_neither_index_nor_order_of_the_rows_moves_a_patient(labels):
    expected = assign_folds(labels)["fold"].tolist()
    assert assign_folds(labels.set_axis(np.arange(len(labels))[::-1] * 7))["fold"].tolist() == expected
    assert assign_folds(labels[::-1]).sort_index()["fold"].tolist() == expected


def test_ids_kept_as_text_are_split_like_the_numbers_they_are(labels):
    numbers = labels.assign(patient_id=labels["patient_id"].astype(int))
    text = numbers.assign(patient_id=numbers["patient_id"].astype(str))
    assert assign_folds(text)["fold"].tolist() == assign_folds(numbers)["fold"].tolist()


def test_other_columns_may_be_stratified_and_grouped(labels):
    renamed = labels.rename(columns={"cancer": "bleeding", "patient_id": "study"})
    assert assign_folds(renamed, label="bleeding",
                        group="study")["fold"].tolist() == assign_folds(labels)["fold"].tolist()


def test_one_patient_moved_by_hand_is_found_and_named(labels):
    folds = assign_folds(labels)
    check_folds(folds)
    leaking = folds["patient_id"].iloc[0]
    folds.loc[0, "fold"] = (folds.loc[0, "fold"] + 1) % 4
    with pytest.raises(LeakageError, match=f"1 patient_id in more than one fold.*{leaking}"):
        check_folds(folds)
    check_folds(folds.drop(index=0))
    check_folds(folds.assign(image=range(len(folds))), group="image")


def test_fewer_sick_patients_than_folds_is_an_error(labels):
    sick = labels.loc[labels["cancer"] == 1, "patient_id"].unique()
    few = labels[~labels["patient_id"].isin(sick[3:])]
    with pytest.raises(ValueError, match="3 patient_id"):
        assign_folds(few)
    assert set(assign_folds(few, n_folds=3).query("cancer == 1")["fold"]) == {0, 1, 2}


def test_balance_by_hand():
    table = pd.DataFrame({"fold": [0, 0, 0, 0, 1, 1], "site": ["1", "1", "1", None, "1", "2"]})
    assert balance(table, ["site"]).to_dict() == {0: {("site", "1"): 0.75, ("site", "2"): 0, ("site", "missing"): 0.25},
                                                 1: {("site", "1"): 0.5, ("site", "2"): 0.5, ("site", "missing"): 0}}

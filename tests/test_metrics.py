"Scores against scikit-learn, against loops and by hand; and what an empty class gives."
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, f1_score, fbeta_score, precision_score, recall_score, roc_auc_score

from mammo_nb.core.metrics import GRID, auc, average_precision, best_threshold, pfbeta, threshold_curve


@pytest.fixture
def screening():
    rng = np.random.default_rng(1)
    y = (rng.random(500) < 0.1).astype(int)
    # hundredths: many ties, many on the grid
    return y, np.round(1 / (1 + np.exp(-rng.normal(np.where(y, 0.5, -1.5), 1))), 2)


def competition_pf1(labels, predictions, beta=1.0):
    "The competition's published definition, as a loop."
    positives = ctp = cfp = 0
    for label, p in zip(labels, np.clip(predictions, 0, 1)):
        positives += label
        if label:
            ctp += p
        else:
            cfp += p
    precision, recall = (ctp / (ctp + cfp) if ctp + cfp else 0), (ctp / positives if positives else 0)
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall) if precision and recall else 0


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_pfbeta_is_the_competitions_and_on_decisions_scikit_learns(screening, beta):
    y, p = screening
    assert pfbeta(y, p, beta) == pytest.approx(competition_pf1(y, p, beta))
    assert pfbeta(y, p > 0.3, beta) == pytest.approx(fbeta_score(y, p > 0.3, beta=beta))


def test_pfbeta_by_hand():
    assert pfbeta([1, 0], [0.5, 0.5]) == pytest.approx(0.5)   # precision 1/2, recall 1/2
    assert pfbeta([1, 1, 0, 0], [1, 0, 1, 0]) == pytest.approx(0.5)
    assert pfbeta([1, 0], [7, -3]) == 1                       # clipped to [0, 1]


def test_the_curve_is_a_loop_over_strict_decisions(screening):
    y, p = screening
    curve = threshold_curve(y, p)
    assert curve["threshold"].tolist() == GRID.tolist() and len(GRID) == 100 and GRID[-1] == 0.99
    for column, score in (("score", f1_score), ("precision", precision_score), ("recall", recall_score)):
        np.testing.assert_allclose(curve[column], [score(y, p > t, zero_division=0) for t in GRID], err_msg=column)


def test_a_probability_on_the_threshold_is_not_called():
    curve = threshold_curve([1, 0], [0.31, 0.1], [0.30, 0.31])
    assert curve["score"].tolist() == [1, 0]


def test_every_hundredth_lies_exactly_on_its_own_threshold():
    p = np.array([float(f"{t / 100:.2f}") for t in range(100)])   # as read from a file
    assert (threshold_curve(np.ones(100), p)["recall"] * 100).round().tolist() == list(range(99, -1, -1))


def test_among_equal_thresholds_the_one_nearest_to_a_half():
    assert best_threshold([0, 1], [0.2, 0.9]) == (0.5, 1)     # 0.20 .. 0.89 are all perfect
    assert best_threshold([0, 1], [0.1, 0.3]) == (0.29, 1)
    assert best_threshold([0, 1], [0.7, 0.9]) == (0.7, 1)


def test_best_threshold_is_the_best_of_the_loop(screening):
    y, p = screening
    scores = np.array([f1_score(y, p > t, zero_division=0) for t in GRID])
    threshold, score = best_threshold(pd.Series(y), pd.Series(p, index=np.arange(500)[::-1]))
    assert score == pytest.approx(scores.max()) and scores[round(threshold * 100)] == pytest.approx(scores.max())


def test_ranking_metrics_are_scikit_learns_and_count_ties_half(screening):
    y, p = screening
    assert auc(y, p) == pytest.approx(roc_auc_score(y, p)) and average_precision(y, p) == pytest.approx(
        average_precision_score(y, p))
    pairs = p[y == 1][:, None] - p[y == 0]
    assert auc(y, p) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert auc([0, 1, 0, 1], [0.5] * 4) == 0.5


def test_an_empty_class_is_defined():
    assert pfbeta([0, 0], [0.2, 0.3]) == 0 and pfbeta([1, 0], [0, 0]) == 0
    assert np.isnan(auc([0, 0], [0.2, 0.3])) and np.isnan(auc([1, 1], [0.2, 0.3])) and np.isnan(
        average_precision([0, 0], [0.2, 0.3]))
    assert threshold_curve([0, 0], [0.2, 0.3])[["score", "precision", "recall"]].to_numpy().max() == 0
    assert best_threshold([0, 0], [0.2, 0.3]) == (0.5, 0)


@pytest.mark.parametrize("labels, probabilities, text", [
    ([0, 1], [0.5], "2 labels for 1"), ([0, 2], [0.5, 0.5], "0 or 1"), ([0, np.nan], [0.5, 0.5], "0 or 1"),
    ([0, 1], [0.5, np.nan], "1 probabilities are not finite")])
def test_bad_input(labels, probabilities, text):
    for score in (pfbeta, threshold_curve, best_threshold, auc, average_precision):
        with pytest.raises(ValueError, match=text):
            score(labels, probabilities)

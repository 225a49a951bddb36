"Intervals against closed forms, DeLong against all pairs and a worked example, calibration on held-back folds, groups."
import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from typer.testing import CliRunner

from mammo_nb.cli import app
from mammo_nb.core.calibration import METHODS, Reliability, best_correction, calibrated, corrected
from mammo_nb.core.comparison import COLUMNS, ComparisonError, compare_runs, differences, matched
from mammo_nb.core.delong import delong
from mammo_nb.core.estimates import OUTCOME_SCORES, Scores, by_outcome, estimates, in_words
from mammo_nb.core.files import write_json
from mammo_nb.core.metrics import auc, best_threshold, pfbeta
from mammo_nb.core.runs import Run
from mammo_nb.core.systems import find_system
from mammo_nb.core.uncertainty import Ranked, auc_interval, bootstrap, draws, interval
from mammo_nb.mammo.learning.subgroups import age_bands, by_unit, subgroups


def screening(n=500, seed=1, prevalence=0.1):
    "Labels, and probabilities in hundredths, with many ties."
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < prevalence).astype(int)
    return y, np.round(1 / (1 + np.exp(-rng.normal(np.where(y, 0.5, -1.5), 1))), 2)


# ---- bootstrap
def test_the_error_of_a_proportion_is_the_binomial_one():
    ill = np.arange(400) < 120
    shares = bootstrap(lambda times: times @ ill / times.sum(), np.arange(400), 4000)
    error = np.sqrt(0.3 * 0.7 / 400)
    assert shares.std() == pytest.approx(error, rel=0.05)
    assert interval(shares) == pytest.approx(0.3 + 1.96 * error * np.array([-1, 1]), abs=0.004)
    low, high = interval(shares, level=0.5)
    assert [low, high] == pytest.approx([0.3 - 0.6745 * error, 0.3 + 0.6745 * error], abs=0.003)


def test_the_error_of_a_clustered_proportion_is_that_of_the_patients_means():
    rng = np.random.default_rng(0)
    means = rng.random(300)
    ill, who = (rng.random((300, 4)) < means[:, None]).astype(float), np.repeat(np.arange(300), 4)
    shares = bootstrap(lambda times: times @ ill.ravel() / times.sum(), who, 4000)
    assert shares.std() == pytest.approx(ill.mean(1).std() / np.sqrt(300), rel=0.05)


def test_the_error_of_an_auc_is_that_of_hanley_and_mcneil():
    "Their formula (1982) assumes exponential scores, for which AUC is a / (1 + a) with the ratio a of the means."
    rng = np.random.default_rng(3)
    y = np.repeat([1, 0], [150, 450])
    p = 1 - np.exp(-rng.exponential(np.where(y, 3., 1.)))
    a = auc(y, p)
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = np.sqrt((a * (1 - a) + 149 * (q1 - a * a) + 449 * (q2 - a * a)) / (150 * 450))
    assert bootstrap(Ranked(y, p).auc, np.arange(600), 3000).std() == pytest.approx(error, rel=0.1)


def test_a_draw_by_counts_is_the_score_of_the_repeated_rows():
    y, p = screening()
    patients, ranked, reliability = np.arange(500) // 4, Ranked(y, p), Reliability(y, p)
    scores = Scores(y, p, 0.3)
    for times in draws(125, 30):
        each = times[patients]
        rows = np.repeat(np.arange(500), each)
        found = dict(zip(scores.names, scores(each.astype(float))))
        assert found["AUC"] == ranked.auc(each.astype(float)) == pytest.approx(roc_auc_score(y[rows], p[rows]))
        assert found["average precision"] == pytest.approx(average_precision_score(y[rows], p[rows]))
        assert found["Brier"] == reliability.brier(each) == pytest.approx(brier_score_loss(y[rows], p[rows]))
        assert found["ECE"] == pytest.approx(Reliability(y[rows], p[rows]).error())
        assert (found["best threshold"], found["pF1 at the best threshold"]) == pytest.approx(
            best_threshold(y[rows], p[rows]))
        called = p[rows] > 0.3
        assert found["pF1"] == pytest.approx(pfbeta(y[rows], called))
        assert found["sensitivity"] == pytest.approx(called[y[rows] == 1].mean())
        assert found["specificity"] == pytest.approx(1 - called[y[rows] == 0].mean())
        assert found["recall rate"] == pytest.approx(called.mean())
        best = max((p[rows][y[rows] == 1] >= t).mean() for t in [*np.unique(p), 2]
                   if (p[rows][y[rows] == 0] < t).mean() >= 0.9)
        assert found["sensitivity at specificity 0.9"] == pytest.approx(best)


def test_whole_patients_are_drawn_and_one_seed_gives_one_interval():
    y, p = screening()
    patients = np.arange(500) // 4
    found = auc_interval(y, p, patients, n=200)
    assert found == auc_interval(y, p, patients, n=200) != auc_interval(y, p, patients, n=200, seed=1)
    narrow = auc_interval(y, p, patients, n=200, level=0.5)
    assert found[0] < narrow[0] < auc(y, p) < narrow[1] < found[1]
    seen = bootstrap(lambda times: times, np.repeat(["a", "b", "c"], 4), n=20)
    assert (seen.reshape(20, 3, 4) == seen[:, ::4, None]).all() and (seen.sum(1) == 12).all()


def test_intervals_do_not_depend_on_the_order_of_the_rows():
    y, p = screening()
    patients, shuffled = np.arange(500) // 4, np.random.default_rng(0).permutation(500)
    assert auc_interval(y, p, patients, n=100) == pytest.approx(
        auc_interval(y[shuffled], p[shuffled], patients[shuffled], n=100))


def test_copying_every_patients_images_makes_no_one_surer():
    y, p = screening()
    four, who = np.repeat(y, 4), np.repeat(np.arange(500), 4)
    whole, once = auc_interval(four, np.repeat(p, 4), who, n=300), auc_interval(y, p, np.arange(500), n=300)
    assert whole == pytest.approx(once)
    by_image = auc_interval(four, np.repeat(p, 4), np.arange(2000), n=300)
    assert by_image[1] - by_image[0] < 0.7 * (whole[1] - whole[0])


def test_draws_without_a_number_are_left_out():
    low, high = auc_interval([0, 0, 1], [0.1, 0.6, 0.5], ["a", "b", "c"], n=200)
    assert 0 <= low <= high <= 1
    assert np.isnan(auc_interval([0, 0], [0.1, 0.2], ["a", "b"], n=20)).all()
    table = estimates([0, 0], [0.1, 0.2], ["a", "b"], 0.15, n=20).set_index("metric")
    assert table.loc[["AUC", "sensitivity"]].isna().all(axis=None)
    assert table.loc["Brier", "value"] == pytest.approx(0.025)


def test_a_row_without_a_patient_is_told():
    with pytest.raises(ValueError, match="1 rows have no patient"):
        auc_interval([0, 1], [0.1, 0.2], ["a", None])


def test_two_thousand_draws_of_fifty_thousand_rows_take_seconds():
    y, p = screening(50_000, prevalence=0.02)
    p = p + 1e-4 * np.random.default_rng(0).random(50_000)   # without ties, where there is most to do
    began = time.process_time()
    table = estimates(y, p, np.arange(50_000) // 4, 0.3, n=2000)
    assert len(table) == 11 and time.process_time() - began < 10


# ---- DeLong
def by_all_pairs(y, first, second):
    "DeLong's covariance of two AUCs with every pair formed, as in the paper of 1988."
    def kernel(p):
        above = p[y == 1][:, None] - p[y == 0][None]
        return (above > 0) + 0.5 * (above == 0)
    kernels = [kernel(p) for p in (first, second)]
    ill, well = (np.array([k.mean(axis) for k in kernels]) for axis in (1, 0))
    return [k.mean() for k in kernels], np.cov(ill) / ill.shape[1] + np.cov(well) / well.shape[1]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_delong_is_that_of_all_pairs_with_ties(seed):
    y, first = screening(120, seed, 0.3)
    second = np.round(0.5 * first + 0.5 * np.random.default_rng(seed).random(120), 1)
    aucs, covariance = by_all_pairs(y, first, second)
    found = delong(y, first, second)
    assert found.aucs == pytest.approx(aucs) and found.covariance == pytest.approx(covariance)
    assert delong(y, second, first).p == pytest.approx(found.p)
    assert delong(y, first, second, np.arange(120)).covariance == pytest.approx(covariance)
    a = roc_auc_score(y, first) - roc_auc_score(y, second)
    assert sum(found.interval()) / 2 == found.value == pytest.approx(a)


def test_delong_by_hand():
    """Positives .9 .6, negatives .7 .2 .1. First model: placements of the positives 1 and 2/3, of the negatives 1/2, 1
    and 1. Variances with one degree of freedom less: 1/18 and 1/12, so that of the AUC is 1/36 + 1/36. The second model
    is without a mistake and has no variance."""
    y = [1, 1, 0, 0, 0]
    found = delong(y, [.9, .6, .7, .2, .1], [.9, .8, .3, .2, .1])
    assert found.aucs == pytest.approx((5 / 6, 1)) and found.covariance == pytest.approx(np.diag([1 / 18, 0]))
    assert found.value == pytest.approx(-1 / 6) and found.error == pytest.approx(np.sqrt(1 / 18))
    assert found.p == pytest.approx(0.4795, abs=1e-4)   # z = .7071


def test_one_model_against_itself_and_against_its_reverse():
    y, p = screening()
    assert delong(y, p, p).p == 1 and delong(y, p, p).error == 0
    assert delong(y, p, p / 3).value == 0   # the order is the same
    assert delong(y, p, 1 - p).p < 1e-20
    with pytest.raises(ValueError, match="both classes"):
        delong([0, 0], [.1, .2], [.1, .2])
    assert np.isnan(delong([0, 0, 1], [.1, .2, .3], [.3, .2, .1]).p)   # one positive says nothing about the others


def test_by_patient_copies_of_items_change_nothing():
    y, first = screening(300, 5, 0.3)
    second = np.random.default_rng(1).random(300)
    once, who = delong(y, first, second), np.tile(np.arange(300), 3)
    copied = delong(np.tile(y, 3), np.tile(first, 3), np.tile(second, 3), who)
    assert copied.covariance == pytest.approx(once.covariance)
    assert delong(np.tile(y, 3), np.tile(first, 3), np.tile(second, 3)).error < 0.6 * once.error


# ---- calibration
def overconfident(n=3000, seed=0, shift=0.):
    rng = np.random.default_rng(seed)
    odds = rng.normal(-1, 1.5, n)
    y = (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(int)
    return y, 1 / (1 + np.exp(-(3 * odds + shift))), np.arange(n) % 4, 1 / (1 + np.exp(-odds))


@pytest.mark.parametrize("method", METHODS)
def test_calibration_improves_held_back_folds(method):
    y, p, folds, truth = overconfident()
    mended = calibrated(y, p, folds, method)
    assert np.abs(mended - truth).mean() < 0.25 * np.abs(p - truth).mean()
    for fold in range(4):
        held = folds == fold
        before, after = (Reliability(y[held], q[held]) for q in (p, mended))
        assert after.brier() < 0.92 * before.brier() and after.error() < 0.5 * before.error()


def test_temperature_finds_the_factor_and_keeps_the_order():
    y, p, folds, truth = overconfident(40_000)
    mended = calibrated(y, p, folds, "temperature")
    inside = (p > 1e-6) & (p < 1 - 1e-6)
    factor = (np.log(p / (1 - p)) / np.log(mended / (1 - mended)))[inside]
    assert factor == pytest.approx(3, rel=0.05)
    for fold in range(4):
        own = folds == fold
        assert roc_auc_score(y[own], mended[own]) == pytest.approx(roc_auc_score(y[own], p[own]), abs=1e-6)


def test_the_correction_that_goes_with_weights_is_the_best_one_and_survives_json():
    y, p, folds, _ = overconfident(4000)
    found = best_correction(y, p, folds)
    assert found["method"] == "temperature" and found["temperature"] == pytest.approx(3, rel=0.1)
    odds = np.log(.8 / .2)
    assert corrected([.8], {"method": "temperature", "temperature": 2})[0] == pytest.approx(1 / (1 + np.exp(-odds / 2)))
    y, p, folds, _ = overconfident(4000, shift=4.)
    found = best_correction(y, p, folds)
    assert found["method"] == "isotonic"
    again = corrected(p, json.loads(json.dumps(found)))
    np.testing.assert_allclose(again, IsotonicRegression(out_of_bounds="clip").fit(p, y).predict(p), atol=1e-12)
    assert best_correction(y, (y + .5) / 2, folds) is not None   # too timid
    assert best_correction(y, y.astype(float), folds) is None    # nothing to mend
    assert best_correction([1, 0, 0, 0], [.5, .1, .2, .3], [0, 0, 1, 1]) is None   # fold 1 has no cancer to fit with


@pytest.mark.parametrize("method", METHODS)
def test_a_fold_is_not_corrected_by_its_own_labels(method):
    y, p, folds, _ = overconfident(400)
    changed = np.where(folds == 2, 1 - y, y)
    before, after = (calibrated(labels, p, folds, method) for labels in (y, changed))
    assert (before[folds == 2] == after[folds == 2]).all() and (before[folds == 1] != after[folds == 1]).any()


def test_isotonic_mends_a_wrong_prevalence_and_temperature_cannot():
    y, p, folds, _ = overconfident(4000, shift=4.)
    errors = {m: Reliability(y, calibrated(y, p, folds, m)).error() for m in METHODS}
    assert errors["isotonic"] < 0.03 and errors["temperature"] > 0.1


@pytest.mark.parametrize("method, folds, text", [("platt", [0, 1, 0, 1], "temperature, isotonic"),
                                                 ("isotonic", [0, 0, 0, 0], "at least two folds"),
                                                 ("isotonic", [0, 1, 1, 1], "folds other than 1 .* one class")])
def test_calibration_that_has_no_fit(method, folds, text):
    with pytest.raises(ValueError, match=text):
        calibrated([0, 1, 0, 1], [.1, .2, .3, .4], folds, method)


def test_the_reliability_curve_by_hand():
    table = Reliability([1, 0, 1, 1, 0], [.05, .15, .18, 1, .1]).table()
    assert table["items"].tolist() == [1, 3, 1] and table["low"].tolist() == pytest.approx([0, .1, .9])
    assert table["predicted"].tolist() == pytest.approx([.05, .43 / 3, 1])
    assert table["observed"].tolist() == pytest.approx([1, 1 / 3, 1]) and table["high"].iloc[-1] == 1


# ---- groups
@pytest.fixture
def images():
    "Ten patients, four images each; the first five are of site 1."
    rows = [(f"p{k}", f"{k}{side}{view}", side, view, int(k % 5 == 0 and side == "L"))
            for k in range(10) for side in "LR" for view in ("CC", "MLO")]
    table = pd.DataFrame(rows, columns=["patient_id", "image_id", "laterality", "view", "cancer"])
    number = table["patient_id"].str[1:].astype(int)
    table["probability"] = np.where(table["cancer"] & (number < 5), .9, .2) + .001 * np.arange(40)
    return table.assign(site_id=np.where(number < 5, "1", "2"), age=38 + 10 * (number // 3), density=np.nan,
                        implant=np.where(number == 3, np.nan, 0))


def test_groups_have_their_own_patients_and_counts(images):
    oof = images[["patient_id", "image_id", "laterality", "cancer", "probability"]].sample(frac=1, random_state=0)
    table = subgroups(oof, images, 0.5, n=50).set_index(["attribute", "group"])
    assert table.index.tolist() == [
        ("all", "all"), ("site", "1"), ("site", "2"), ("age", "under 40"), ("age", "40-49"), ("age", "50-59"),
        ("age", "60-69"), ("view", "CC"), ("view", "MLO"), ("implant", "0"), ("implant", "unknown")]
    assert table["breasts"].tolist() == [20, 10, 10, 6, 6, 6, 2, 20, 20, 18, 2]
    assert table["patients"].tolist() == [10, 5, 5, 3, 3, 3, 1, 10, 10, 9, 1]
    assert table["cancers"].tolist() == [2, 1, 1, 1, 1, 0, 0, 2, 2, 2, 0]
    assert table["sensitivity"].iloc[:3].tolist() == [.5, 1, 0] and np.isnan(table.loc[("age", "50-59"), "AUC"])
    assert table["recall rate"].iloc[:3].tolist() == pytest.approx([1 / 20, 1 / 10, 0])
    whole = oof.groupby(["patient_id", "laterality"]).agg(cancer=("cancer", "max"), p=("probability", "mean"))
    assert table["AUC"].iloc[0] == pytest.approx(roc_auc_score(whole["cancer"], whole["p"]))


def test_an_age_that_is_no_number_is_unknown():
    assert age_bands(pd.Series([39, "40", 79.5, 80, "089Y", None])).tolist()[:4] == [
        "under 40", "40-49", "70-79", "80 and over"]
    assert age_bands(pd.Series(["089Y", None])).isna().all()


def test_units_by_mean_and_by_maximum(images):
    images.loc[0, "probability"], images.loc[1, "probability"] = 1., 0.   # a cancer with one strong view
    table = by_unit(images, n=50).set_index("unit")
    own = table.loc[["image", "breast, mean", "breast, maximum", "patient, mean", "patient, maximum"]]
    assert own["items"].tolist() == [40, 20, 20, 10, 10] and own["positives"].tolist() == [4, 2, 2, 2, 2]
    maximum = images.groupby(["patient_id"]).agg(cancer=("cancer", "max"), p=("probability", "max"))
    assert own["AUC"].iloc[-1] == pytest.approx(roc_auc_score(maximum["cancer"], maximum["p"]))
    published = in_words(table, ("AUC", "pF1")).loc["breast, mean (published by the winner)"]
    assert published[["AUC", "pF1"]].tolist() == ["0.920", "0.518"]   # without an interval


# ---- two runs
def predictions(noise, n=300, seed=0, threshold=0.3):
    rng = np.random.default_rng(seed)
    label, who = (rng.random(2 * n) < 0.2).astype(int), np.repeat(np.arange(n), 2).astype(str)
    seen = rng.normal(1.5 * label - 2, 1)
    odds = seen + noise * np.random.default_rng(seed + 1).normal(0, 1, 2 * n)
    table = pd.DataFrame({"outcome": "cancer", "item": np.arange(2 * n).astype(str), "patient_id": who, "label": label,
                          "probability": 1 / (1 + np.exp(-odds)), "threshold": threshold})
    return table[list(COLUMNS)]


def test_differences_are_paired():
    items = matched(predictions(1.), predictions(.2).sample(frac=1, random_state=0))
    table = differences(items, 400).set_index("metric")
    y, first, second = items["label"], items["probability_1"], items["probability_2"]
    row = table.loc["AUC"]
    assert row["first"] == pytest.approx(roc_auc_score(y, first)) and row["difference"] == pytest.approx(
        roc_auc_score(y, second) - roc_auc_score(y, first))
    paired, error = row["difference high"] - row["difference low"], delong(y, first, second, items["patient_id"])
    assert paired / 3.92 == pytest.approx(error.error, rel=0.2) and row["p"] == error.p
    apart = np.hypot(row["first high"] - row["first low"], row["second high"] - row["second low"])
    assert paired < 0.8 * apart
    assert table.loc["pF1", "first"] == pytest.approx(pfbeta(y, first > 0.3))
    again = differences(items, 400).set_index("metric")
    pd.testing.assert_frame_equal(again, table)
    same = differences(matched(predictions(1.), predictions(1.)), 100)
    assert (same[["difference", "difference low", "difference high"]] == 0).all(axis=None)


@pytest.mark.parametrize("change, text", [
    (lambda t: t.assign(label=1 - t["label"]), "600 items have different labels"),
    (lambda t: t.assign(patient_id="x"), "no item in common"), (lambda t: pd.concat([t, t[:3]]), "3 items .* twice")])
def test_tables_that_do_not_belong_together(change, text):
    table = predictions(1.)
    with pytest.raises(ComparisonError, match=text):
        matched(table, change(table))


def made_run(folder, noise, system="mammo", drop=0):
    "A run of which only the out-of-fold predictions exist; two images a breast."
    run = Run.create(folder, find_system(system), "demo")
    table = predictions(noise)
    rows = table.assign(laterality=["L", "R"] * 300, cancer=table["label"], fold=0, epoch=1)
    rows = pd.concat([rows.assign(image_id=rows["item"] + view, probability=(rows["probability"] + move).clip(0, 1))
                      for view, move in (("a", .01), ("b", -.01))])
    rows = rows[rows["patient_id"].astype(int) >= drop]
    rows[["patient_id", "image_id", "laterality", "cancer", "fold", "epoch", "probability"]].to_csv(
        run.path("oof.csv"), index=False)
    write_json(run.path("selection.json"), {"threshold": 0.3 if noise else 0.4})
    return run


def test_the_command_compares_two_runs(tmp_path, monkeypatch):
    runs = [made_run(tmp_path / name, noise, drop=drop) for name, noise, drop in (("plain", 1., 0), ("better", 0., 10))]
    done = CliRunner().invoke(app, ["compare", *(str(r.folder) for r in runs), "-o", str(tmp_path / "c.csv"),
                                    "--draws", "200"])
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "c.csv").set_index("metric")
    assert "580 items of 290 patients" in done.output and "20 predictions of plain have no counterpart" in done.output
    assert "plain" in done.output and f"{table.loc['AUC', 'difference']:.3f} (" in done.output
    assert table["outcome"].eq("cancer").all()
    assert 0 < table.loc["AUC", "difference low"] and table.loc["AUC", "p"] < .01
    # each run is decided at its own threshold
    mine = predictions(0.)
    mine = mine[mine["patient_id"].astype(int) >= 10]
    assert table.loc["recall rate", "second"] == pytest.approx((mine["probability"] > .4).mean(), abs=.01)


def test_runs_that_cannot_be_compared(tmp_path):
    mammo, baseline = made_run(tmp_path / "a", 1.), made_run(tmp_path / "b", 1., "baseline")
    with pytest.raises(ComparisonError, match="Only runs of one system"):
        compare_runs(mammo, baseline)
    assert len(compare_runs(baseline, baseline, 100)[0]) == 11
    baseline.path("oof.csv").unlink()
    with pytest.raises(ComparisonError, match="b has no oof.csv"):
        compare_runs(baseline, baseline)
    silent = SimpleNamespace(folder=mammo.folder, system=replace(mammo.system, outcomes=""))
    with pytest.raises(ComparisonError, match="declares no outcomes"):
        compare_runs(silent, silent)


def test_outcomes_of_the_ct_systems(tmp_path):
    from mammo_nb.ich.bag import outcomes as slices
    from mammo_nb.trauma.ensemble import outcomes as patients
    ich = pd.DataFrame({"patient_id": ["01", "01"], "series": ["s", "t"], "image_id": ["1", "1"], "subdural": [0, 1],
                        "any": [1, 1], "p_subdural": [.1, .2], "p_any": [.3, .4]})
    ich.to_csv(tmp_path / "oof.csv", index=False)
    run = SimpleNamespace(path=lambda name: tmp_path / name)
    found = slices(run)
    assert found["outcome"].tolist() == ["subdural", "subdural", "any", "any"] and not found.duplicated(
        ["outcome", "item"]).any()
    assert found["probability"].tolist() == [.1, .2, .3, .4] and found["label"].tolist() == [0, 1, 1, 1]
    assert set(found["patient_id"]) == {"01"} and found["threshold"].isna().all()
    pd.DataFrame({"patient_id": ["7"], "liver_healthy": [0], "kidney_healthy": [1], "p_liver_injury": [.6]}).to_csv(
        tmp_path / "oof.csv", index=False)
    row, = patients(run).itertuples()
    assert (row.outcome, row.item, row.patient_id, row.label, row.probability) == ("liver injury", "7", "7", 1, .6)


def test_each_outcome_has_its_own_row():
    items = pd.concat([predictions(1., 50), predictions(.2, 50).assign(outcome="other")])
    table = by_outcome(items, 50).set_index("outcome")
    own = items[items["outcome"] == "other"]
    assert table.loc["other", "AUC"] == pytest.approx(roc_auc_score(own["label"], own["probability"]))
    assert table["items"].tolist() == [100, 100] and table["patients"].tolist() == [50, 50]
    words = in_words(table, OUTCOME_SCORES)
    row = table.loc["other"]
    assert words.loc["other", "AUC"] == f"{row['AUC']:.3f} ({row['AUC low']:.3f} to {row['AUC high']:.3f})"

"Metric, scaling and aggregation of the abdominal-trauma system against figures of the original, see tests/parity.py."
import numpy as np
import pandas as pd
import pytest
from parity import figures, needs_parity

from mammo_nb.trauma.learning.scores import (GROUPS, ScoreError, group_losses, patient_maxima, scaled_originally,
                                             score)
from mammo_nb.trauma.recipes import ORGAN_COLUMNS, PUBLISHED, SUBMITTED

pytestmark = needs_parity


def tables(stated: dict) -> tuple[pd.DataFrame, pd.DataFrame]:
    truth = pd.DataFrame(stated["truth"], columns=stated["columns"])
    return truth, pd.DataFrame(stated["prediction"], columns=stated["prediction_columns"])


@pytest.mark.parametrize("case", ["plain", "unnormalised", "extreme"])
def test_score_and_its_parts(case):
    stated = figures("trauma_metric")["scores"][case]
    truth, prediction = tables(stated)
    parts = group_losses(truth, prediction)
    assert set(parts) == set(GROUPS) == set(stated["parts"])
    for name, value in stated["parts"].items():
        assert parts[name] == pytest.approx(value, abs=1e-6)
    assert score(truth, prediction) == pytest.approx(stated["score"], abs=1e-6)


@pytest.mark.parametrize("fault, value", [("zero_row", 0.), ("negative", -1.), ("not_finite", np.nan)])
def test_where_the_original_ends_with_an_error(fault, value):
    assert fault in figures("trauma_metric")["errors"]
    truth, prediction = tables(figures("trauma_metric")["scores"]["plain"])
    prediction.loc[3, ["liver_healthy", "liver_low", "liver_high"]] = value
    with pytest.raises(ScoreError, match="liver"):
        score(truth, prediction)


@pytest.mark.parametrize("script", ["coatmedium384extravast", "coatsmall384extravast4funet", "fullextracoatsmall384",
                                    "try11_tf_efficientnetv2_s_in21ft1k_v1_fulldata", "try11_v8_extrav"])
def test_scaling(script):
    stated = figures("trauma_metric")["scaling"]
    own = stated["scripts"][script]
    train = pd.DataFrame(stated["truth"], columns=stated["columns"])
    train = train.set_index(train.pop("patient_id").astype(str))
    truth = train.loc[stated["keys"]]
    columns = PUBLISHED[script][1][0].columns.split()
    probabilities = pd.DataFrame(own["outputs"], columns=columns, index=truth.index)
    made = scaled_originally(probabilities, train[list(SUBMITTED)].mean(), truth[list(SUBMITTED)].mean())
    expected = pd.DataFrame(own["prediction"], columns=own["prediction_columns"], index=truth.index)
    np.testing.assert_allclose(made[expected.columns], expected, rtol=0, atol=1e-9)
    assert score(truth, made) == pytest.approx(own["score"], abs=1e-9)
    assert group_losses(truth, made) == pytest.approx(own["parts"], abs=1e-9)


@pytest.mark.parametrize("script", ["coatmed384fullseed", "try11_v8_extrav"])
def test_from_blocks_to_patients(script):
    stated = figures("trauma_metric")["aggregate"][script]
    columns = ORGAN_COLUMNS.split()[:len(stated["outputs_max_over_slices"][0])]
    patients = [name.split("_")[0] for name in stated["ids"]]
    for entry in ("outputs", "targets"):
        blocks = pd.DataFrame(stated[f"{entry}_max_over_slices"], columns=columns).assign(patient_id=patients)
        made = patient_maxima(blocks, columns)
        order = stated["patients_in_order"]   # one script has the order of appearance, the other that of the text
        assert order in (made.index.tolist(), sorted(made.index))
        np.testing.assert_allclose(made.loc[order], stated[entry], rtol=0, atol=1e-7)

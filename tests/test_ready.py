"A run on labelled images is refused before its first stage if its data cannot be trained on."
import numpy as np
import pandas as pd
import pytest

from mammo_nb.mammo.datasets import DatasetError
from mammo_nb.mammo.tools.ready import check_labels


def labels(cancers, healthy, mask=False):
    table = pd.DataFrame({"patient_id": [str(n) for n in range(cancers + healthy)],
                          "cancer": [1] * cancers + [0] * healthy})
    return table.assign(mask=["m.png"] + [np.nan] * (len(table) - 1)) if mask else table


@pytest.mark.parametrize("table, folds, masks, said", [
    (labels(8, 0), 4, False, "all 8 patients have the label cancer=1"),
    (labels(0, 8), 4, False, "all 8 patients have the label cancer=0"),
    (labels(3, 20), 4, False, 'each of 4 folds needs a patient of each kind.*n_folds=3'),
    (labels(20, 1), 2, False, "Two is the least; add patients"),
    (labels(8, 8), 4, True, "has none.*train.lesion_weight=0"),
])
def test_what_would_fail_late_is_told_first(table, folds, masks, said):
    with pytest.raises(DatasetError, match=said):
        check_labels(table, "mine", folds, masks)


def test_enough_patients_and_one_mask_are_enough():
    check_labels(labels(4, 4), "mine", 4, False)
    check_labels(labels(4, 4, mask=True), "mine", 4, True)

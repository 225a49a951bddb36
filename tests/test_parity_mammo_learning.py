"""The mammography system against figures that the original code computed: folds, training, sampler, scores, network.

`PARITY=FOLDER pytest tests/test_parity_mammo*.py` runs another set of figures; see tests/parity.py.
"""
import pandas as pd

from mammo_nb.mammo.folds import split
from mammo_nb.mammo.recipes import Folds
from mammo_nb.mammo.system import system
from parity import figures, needs_parity

pytestmark = needs_parity


# ---- folds
def test_folds():
    stated = figures("mammo_folds")
    table = pd.DataFrame(stated["rows"], columns=stated["columns"])
    ours = table.assign(dataset="rsna").astype({"patient_id": str, "image_id": str}).drop(columns="fold")
    settings = system.recipe("winner").section(Folds)
    assert settings == Folds(stated["folds"], stated["seed"], faithful=True)
    found = split(ours, settings.n_folds, settings.seed, settings.faithful)
    assert found["fold"].tolist() == table["fold"].tolist(), "exact, also for ids that are kept as text"
    by_fold = found.groupby("fold")
    assert by_fold.size().tolist() == stated["images_per_fold"]
    assert by_fold["cancer"].sum().tolist() == stated["positives_per_fold"]
    newer = split(ours, stated["folds"], stated["seed"])
    assert (newer["fold"] != found["fold"]).mean() > 0.5, "the newer rule is another split"

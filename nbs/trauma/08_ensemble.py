# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ensemble
# > From the predictions of slices to those of patients, and what each part of the method adds.
#
# The folds of a model see different patients, so together they predict all of them out of fold. Models are averaged
# after the maximum over slices. The factors of the expensive grades are fitted on these predictions and written down,
# and a score with factors from other folds shows what they are worth.

# %%
#| default_exp trauma.ensemble

# %%
#| export
from dataclasses import asdict

import numpy as np
import pandas as pd

from mammo_nb.core.comparison import COLUMNS
from mammo_nb.core.files import sha256, write_csv, write_json
from mammo_nb.core.recipes import RecipeError
from mammo_nb.core.runs import Run
from mammo_nb.trauma.learning.scores import (compare, cost, crossfitted, fit_factors, model_means, patient_maxima,
                                             prior_submission, scaled, scaled_originally, score, slice_means)
from mammo_nb.trauma.reading.competition import read_table
from mammo_nb.trauma.recipes import GRADES, SUBMITTED, Model

# %%
#| hide
from mammo_nb.core.practice import practice
from mammo_nb.core.reports import plot_ladder
from mammo_nb.trauma.system import system

# %% tags=["parameters"]
run_dir = ""     # folder of the run; "" makes a small practice run
overrides = {}   # changes for this run, such as {"ensemble.scaling": "none"}

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="ensemble", overrides=overrides)
run.contract("ensemble")

# %% [markdown]
# ## Out of fold
# The predictions of the chosen epoch of each training, for the patients that it held back. A training on all data has
# none.

# %%
#| export
def chosen_models(
    run: Run,
    names: str,         # separated by blanks, or all
) -> list[Model]:
    "Models of the recipe by their names. Raises RecipeError."
    there = {m.name: m for m in run.recorded("train").models}
    wanted = list(there) if names.strip() == "all" else names.split()
    wrong = [name for name in wanted if name not in there]
    if wrong or not wanted:
        raise RecipeError(f"ensemble.models names {', '.join(wrong) or 'nothing'}. There are {', '.join(there)}.")
    return [there[name] for name in wanted]

def out_of_fold(
    run: Run,
    model: Model,
) -> pd.DataFrame:   # index patient_id, a column for each label; empty if nothing was held back
    "The probabilities of patients that a model has not seen."
    history = pd.read_csv(run.path("checkpoints/train/history.csv"))
    kept = history[(history["model"] == model.name) & history["chosen"] & (history["fold"] >= 0)]
    parts = [pd.read_csv(run.path(f"checkpoints/train/{model.name}/fold_{row.fold}/pred_{row.epoch}.csv"),
                         dtype={"patient_id": str, "series": str}) for row in kept.itertuples()]
    if not parts:
        return pd.DataFrame(columns=model.columns.split())
    return patient_maxima(slice_means(parts), model.columns.split())

# %%
settings = run.section("ensemble")
models = chosen_models(run, settings.models)
try:
    chosen_models(run, "nothing")
except RecipeError as e:
    print(e)
first = out_of_fold(run, models[0])
first.round(3).head()

# %% [markdown]
# ## What each part adds
# The first row is what can be submitted without looking: the share of each grade times its cost. Then each model alone,
# with factors that are equal to the costs, so that nothing is fitted; grades that a model does not predict get their
# share times their cost. All rows predict the same patients.

# %%
#| export
def step_name(
    model: Model,
) -> str:
    "A model in words."
    words = ["CNN", *([model.rnn.upper()] if model.rnn != "none" else []),
             *(["masks"] if model.auxiliary != "none" else [])]
    return f"{' + '.join(words)}, {model.name}"

COSTS = {column: cost(column) for column in SUBMITTED if not column.endswith("_healthy")}

def ladder(
    run: Run,
    models: list[Model],       # those of the ensemble
    truth: pd.DataFrame,       # folds.csv of the patients that the ensemble predicts, index patient_id
    probabilities: pd.DataFrame,  # of the ensemble, in the same order
    shares: pd.Series,         # of SUBMITTED
) -> pd.DataFrame:             # from `compare`
    "Scores of the shares, of every model alone and of the ensemble, on the same patients."
    steps = {"shares times costs": prior_submission(truth.index, shares, costs=True),
             "shares": prior_submission(truth.index, shares, costs=False)}
    for model in run.recorded("train").models:
        found = out_of_fold(run, model)
        if set(truth.index) <= set(found.index):
            steps[step_name(model)] = scaled(found.loc[truth.index], COSTS, shares)
    names = " and ".join(m.name for m in models)
    steps[f"{names}"] = scaled(probabilities, COSTS, shares)
    if truth["fold"].nunique() > 1:
        steps[f"{names}, factors of other folds"] = crossfitted(truth, probabilities, truth["fold"].to_numpy(), shares)
    steps[f"{names}, factors of the original"] = scaled_originally(probabilities, shares, shares)
    return compare(truth, steps)

# %% [markdown]
# `mammo-nb compare` reads the out-of-fold predictions of two runs. It wants them as core's `comparison` says it.

# %%
#| export
def outcomes(
    run: Run,        # that has run this stage
) -> pd.DataFrame:   # outcome, item, patient_id, label, probability, threshold; a row an injury and patient
    "Out-of-fold probabilities, before scaling: an injury of each organ, and its low and high grade where it has them."
    oof = pd.read_csv(run.path("oof.csv"), dtype={"patient_id": str})
    patients = oof[["patient_id"]].assign(item=oof["patient_id"], threshold=np.nan)
    labels = {f"{organ}_injury": 1 - oof[f"{organ}_healthy"] for organ in GRADES if f"{organ}_healthy" in oof}
    labels |= {f"{organ}_{grade}": oof[f"{organ}_{grade}"] for organ, grades in GRADES.items()
               for grade in grades[1:] if f"{organ}_{grade}" in oof and grade != "injury"}
    parts = [patients.assign(outcome=name.replace("_", " "), label=label, probability=oof[f"p_{name}"])
             for name, label in labels.items() if f"p_{name}" in oof]
    return pd.concat(parts, ignore_index=True) if parts else patients.reindex(columns=COLUMNS)

# %% [markdown]
# ## Run the stage
# `ensemble.json` has the factors with a note where they come from, the shares of the grades, and the digest of every
# member.

# %%
#| export
FITTED = "fitted on the out-of-fold predictions of these patients, so the score with them is a little too good"
GIVEN = "nothing was fitted"

def run_stage(
    run: Run,
) -> pd.DataFrame:     # ladder.csv
    "Predictions of all trainings -> oof.csv, ladder.csv and ensemble.json."
    settings = run.section("ensemble")
    with run.stage("ensemble") as results:
        models = chosen_models(run, settings.models)
        patients = read_table(run.path("folds.csv")).set_index("patient_id")
        shares = patients[list(SUBMITTED)].mean()
        parts = [out_of_fold(run, model) for model in models]
        held = [part for part in parts if len(part)]
        probabilities = model_means(held).dropna() if held else pd.DataFrame()
        truth = patients.loc[probabilities.index]
        fits = settings.scaling == "fitted" and len(truth) > 0
        factors = fit_factors(truth, probabilities, shares) if fits else COSTS if settings.scaling == "fitted" else {}
        table, oof = pd.DataFrame(columns=["step", "score"]), truth.reset_index()
        scores = {}
        if len(truth):
            table = ladder(run, models, truth, probabilities, shares)
            made = (scaled_originally(probabilities, shares, shares) if settings.scaling == "original"
                    else scaled(probabilities, factors, shares))
            oof = oof.join(probabilities.reset_index(drop=True).add_prefix("p_")).join(
                made.reset_index(drop=True).add_prefix("submitted_"))
            scores = {"score": score(truth, made), "patients": len(truth)}
        write_csv(run.path("oof.csv"), oof)
        write_csv(run.path("ladder.csv"), table)
        history = pd.read_csv(run.path("checkpoints/train/history.csv"))
        kept = history[history["chosen"]].set_index("model")
        files = [f"weights/models/{m.name}_fold{fold}.safetensors" for m in models
                 for fold in kept.loc[[m.name], "fold"]]
        write_json(run.path("ensemble.json"), {
            "models": [asdict(m) for m in models], "members": {name: sha256(run.path(name)) for name in files},
            "scaling": {"kind": settings.scaling, "factors": factors, "note": FITTED if fits else GIVEN,
                        "shares": shares.to_dict()}, **scores})
        results |= {"members": len(files), **scores}
    return table

# %%
table = run_stage(run)
table.round(3)

# %% [markdown]
# ## What came out
# The score of each row with its interval over patients; smaller is better. The intervals overlap, because all rows see
# the same few patients; the column `change_percent` compares each row with the first on the same draws.

# %%
plot_ladder(table, "score", "score, out of fold")
assert np.isfinite(table["score"]).all()

# %% [markdown]
# ---
# [← Train](07_train.py) · [Engines →](09_engines.py)

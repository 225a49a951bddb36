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
# # From images to breasts
# > Which images count in the probability of a breast, and what the table says of the others.

# %%
#| default_exp mammo.tools.breasts

# %%
#| export
import pandas as pd

from mammo_nb.mammo.datasets import per_breast
from mammo_nb.mammo.reading.mammograms import NO_STANDARD

# %%
#| export
REPEATED = "the same SOP instance as"

def mark_repeated(
    images: pd.DataFrame,   # file, instance, note
) -> pd.DataFrame:          # the same, with other notes
    "Note which files hold the SOP instance of an earlier file; such an image counts once."
    known = images[images["instance"].fillna("").ne("")]
    for at, first in known.groupby("instance")["file"].transform("first").items():
        if first != images["file"][at]:
            images.loc[at, "note"] = f"{REPEATED} {first}, counts once; {images['note'][at]}"
    return images

def counts(
    images: pd.DataFrame,   # as from `predict_items`
) -> pd.Series:             # bool
    "Which images count in their breast: those with a probability, of a standard view, once for each SOP instance."
    return images["probability"].notna() & ~images["note"].str.contains(f"{NO_STANDARD}|{REPEATED}")

def breasts_of(
    images: pd.DataFrame,   # as from `predict_items`
) -> pd.DataFrame:          # patient_id, laterality, images: number of predicted ones, probability, note
    """Average the standard views of each breast, separately for each exam of a patient. A breast without a prediction
    has an empty probability and a note."""
    key, note = ["patient_id", "laterality"], "".join(images["note"][:1]).split("; ")[-1]
    images = images.assign(exam=images["exam"].fillna("") if "exam" in images else "")
    breasts = images.loc[images["patient_id"].notna(), [*key, "exam"]].drop_duplicates()
    exams = breasts.groupby("patient_id")["exam"].agg(lambda e: sorted(set(e))).to_dict()
    found = per_breast(images[counts(images)], "exam")
    breasts = breasts.merge(found[[*key, "exam", "images", "probability"]], "left", [*key, "exam"])
    lost = breasts["images"].isna()
    breasts["images"] = breasts["images"].fillna(0).astype(int)
    notes = []
    for row, bad in zip(breasts.itertuples(), lost):
        several = exams[row.patient_id]
        which = f"study {several.index(row.exam) + 1} of {len(several)}" if len(several) > 1 else ""
        notes.append("; ".join(filter(None, (which, "no image could be predicted" * bad, note))))
    return breasts.drop(columns="exam").assign(note=notes)

# %% [markdown]
# ## Example
# The second file repeats the SOP instance of the first one, so the breast has the probability of one image.

# %%
images = pd.DataFrame({"file": ["a.dcm", "again.dcm", "b.dcm"], "instance": ["1.2", "1.2", "1.3"], "note": "",
                       "exam": "", "patient_id": "p", "laterality": ["L", "L", "R"], "probability": [.25, .75, .5]})
breasts = breasts_of(mark_repeated(images))
assert breasts["probability"].tolist() == [.25, .5]
breasts

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)

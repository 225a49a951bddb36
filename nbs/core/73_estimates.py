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
# # Estimates
# > All scores of a binary outcome in one table, each with its interval over patients.
#
# The scores of a draw follow from the same running sums, so one bootstrap gives all of them. Rows are the items that
# are decided on: breasts, slices or patients.

# %%
#| default_exp core.estimates

# %%
#| export
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mammo_nb.core.calibration import Reliability, plot_reliability
from mammo_nb.core.metrics import GRID, threshold_curve
from mammo_nb.core.reports import chart
from mammo_nb.core.uncertainty import DRAWS, Ranked, auc_of, average_precision_of, bootstrap, interval

# %%
#| hide
import time

# %% tags=["parameters"]
patients, prevalence, seed = 4000, 0.04, 0   # of the random screening round below, two breasts each

# %% [markdown]
# ## Scores of a draw
# *Sensitivity at a specificity of 0.9* is the largest sensitivity at which at most a tenth of the negatives are called
# positive. The *recall rate* of screening is the share of items that are called positive; it is not the recall of
# machine learning, which is called sensitivity here. pF1, sensitivity, specificity and recall rate are those at a given
# threshold. Without a threshold they are left out.

# %%
#| export
SPECIFICITY = 0.9
_BY_HALF = GRID[np.argsort(np.abs(GRID - .5), kind="stable")]  # the first of equal ones is nearest to a half

def sensitivity_at(
    hits: np.ndarray,    # (corners,) from `Ranked.counts`
    alarms: np.ndarray,  # (corners,)
    specificity: float,  # at least
) -> float:
    "The largest sensitivity with at least this specificity; nan if there is only one class."
    if not hits[-1] or not alarms[-1]:
        return float("nan")
    allowed = (1 - specificity) * alarms[-1] * (1 + 1e-9)  # 10 of 100, although 1 - .9 is a little less than .1
    return float(hits[np.searchsorted(alarms, allowed, side="right") - 1] / hits[-1])

def _divide(a: float, b: float) -> float:
    return float(a / b) if b else float("nan")

class Scores:
    "Scores of predictions, a number for each of `names`. A call takes how often each row counts: for `bootstrap`."

    def __init__(
        self,
        labels,                         # (rows,) 0 or 1
        probabilities,                  # (rows,) in [0, 1]
        threshold: float | None = None, # positive are probabilities above it; None: no scores at a threshold
        specificity: float = SPECIFICITY,
    ):
        thresholds = _BY_HALF if threshold is None else np.append(_BY_HALF, threshold)
        self.ranked, self.reliability = Ranked(labels, probabilities, thresholds), Reliability(labels, probabilities)
        self.specificity, self.grid = specificity, self.ranked.at[:len(_BY_HALF)]
        self.names = ["AUC", "average precision", f"sensitivity at specificity {specificity:g}", "Brier", "ECE",
                      "best threshold", "pF1 at the best threshold"]
        self.step = None
        if threshold is not None:
            self.step = self.ranked.at[-1]
            self.names += ["pF1", "sensitivity", "specificity", "recall rate"]

    def __call__(
        self,
        times=None,     # (rows,) how often each row counts; None: once
    ) -> np.ndarray:    # (len(names),), nan for a score that does not exist
        "The scores."
        hits, alarms = self.ranked.counts(times)
        f1 = self._f1(hits, alarms, self.grid)
        best = int(np.argmax(f1))
        found = [auc_of(hits, alarms), average_precision_of(hits, alarms),
                 sensitivity_at(hits, alarms, self.specificity), self.reliability.brier(times),
                 self.reliability.error(times), _BY_HALF[best], f1[best]]
        if self.step is not None:
            hit, alarm = hits[self.step], alarms[self.step]
            found += [self._f1(hits, alarms, self.step), _divide(hit, hits[-1]),
                      _divide(alarms[-1] - alarm, alarms[-1]), _divide(hit + alarm, hits[-1] + alarms[-1])]
        return np.array(found, float)

    @staticmethod
    def _f1(hits: np.ndarray, alarms: np.ndarray, steps):
        "F1 of the decisions down to a step; 0 where nothing is positive and nothing is called."
        total = np.asarray(hits[-1] + hits[steps] + alarms[steps], float)
        return np.divide(2 * hits[steps], total, out=np.zeros_like(total), where=total > 0)

# %% [markdown]
# By hand: of ten negatives one is above the lowest but one positive, so at a specificity of 0.9 two of three positives
# are found.

# %%
y, p = [1, 1, 1, *[0] * 10], [.9, .7, .1, .8, *[.2] * 9]
values = dict(zip(Scores(y, p, .5).names, Scores(y, p, .5)()))
assert np.isclose(values["sensitivity at specificity 0.9"], 2 / 3)
assert np.isclose(values["recall rate"], 3 / 13) and np.isclose(values["pF1"], 4 / 6)

# %% [markdown]
# ## The table
# The interval of the best threshold says how far it would move with other patients. The interval of pF1 at the best
# threshold takes the best of each draw, so it is a little too high. That of pF1 at a given threshold is not.

# %%
#| export
def estimates(
    labels,          # (rows,) 0 or 1
    probabilities,   # (rows,) in [0, 1]
    patients,        # (rows,) ids, which are drawn with replacement
    threshold: float | None = None,
    specificity: float = SPECIFICITY,
    n: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:   # metric, value, low, high (95 %)
    "All scores with bootstrap intervals over patients."
    scores = Scores(labels, probabilities, threshold, specificity)
    low, high = interval(bootstrap(scores, patients, n, seed))
    return pd.DataFrame({"metric": scores.names, "value": scores(), "low": low, "high": high})

# %% [markdown]
# ## Rows of a larger table
# A score of all items hides that a model may fail at one site or for one outcome. Small groups have wide intervals, so
# each row has its counts.

# %%
#| export
GROUP_SCORES = ("AUC", "sensitivity", "specificity", "recall rate")
OUTCOME_SCORES = ("AUC", "average precision", f"sensitivity at specificity {SPECIFICITY:g}", "Brier", "ECE")

def score_row(
    items: pd.DataFrame,  # patient_id, label, probability
    names: tuple,         # of scores
    threshold: float | None = None,
    n: int = DRAWS,
    seed: int = 0,
) -> dict:                # patients, items, positives, and for each name its value, its low and its high
    "Counts and scores of a group of items."
    table = estimates(items["label"], items["probability"], items["patient_id"], threshold, n=n, seed=seed)
    row = {"patients": items["patient_id"].nunique(), "items": len(items), "positives": int(items["label"].sum())}
    for name in names:
        value, low, high = table.set_index("metric").loc[name]
        row |= {name: value, f"{name} low": low, f"{name} high": high}
    return row

def by_outcome(
    items: pd.DataFrame,  # outcome, patient_id, label, probability: the outcomes of a run, see 75_comparison
    n: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:        # outcome, and what `score_row` has
    "Scores of each outcome that need no threshold, with intervals over patients."
    return pd.DataFrame([{"outcome": outcome, **score_row(own, OUTCOME_SCORES, n=n, seed=seed)}
                         for outcome, own in items.groupby("outcome", sort=False)])

def in_words(
    table: pd.DataFrame,  # of `score_row`s
    names: tuple,         # of scores
) -> pd.DataFrame:        # the three columns of each score as one, such as "0.81 (0.74 to 0.88)"
    "A table for reading."
    shown = table.copy()
    for name in names:
        low, high = shown.pop(f"{name} low"), shown.pop(f"{name} high")
        shown[name] = [number_in_words(*row) for row in zip(shown[name], low, high)]
    return shown

def number_in_words(
    value: float,
    low: float,
    high: float,
) -> str:     # "" for a score that does not exist
    "A value and its interval with three decimals; the value alone where there is no interval."
    if np.isnan(value):
        return ""
    return f"{value:.3f}" if np.isnan(low) else f"{value:.3f} ({low:.3f} to {high:.3f})"

# %%
assert number_in_words(.5, .4, .61) == "0.500 (0.400 to 0.610)" and number_in_words(.5, np.nan, np.nan) == "0.500"

# %% [markdown]
# ## Every threshold
# A threshold that is good for a competition may be wrong for a clinic. The figure has the scores at each threshold, and
# below them the items at their probabilities. Where the pointer is, it shows all scores, or the name of the item. It is
# made with plotly; JupyterLab and `report.html` show it, and it needs no network. Of several outcomes one is shown, and
# a menu has the others. Of many items it has a part, from the lowest probability to the highest.

# %%
#| export
POINTS = 1000   # drawn items of each label of an outcome
COLOURS = ("#636efa", "#ef553b", "#00cc96", "#ab63fa", "#ffa15a", "#19a3b8", "#d6338a")   # five scores, two labels

def plot_plateau(
    axis: plt.Axes,
    labels: pd.Series,          # 0 or 1
    probabilities: pd.Series,   # in [0, 1]
    threshold: float,
    plateau: tuple[float, float],  # thresholds with nearly the same score, from selection.json
):
    "pF1 by threshold, with the chosen one and its plateau."
    curve = threshold_curve(labels, probabilities)
    axis.plot(curve["threshold"], curve["score"])
    axis.axvline(threshold, color="orange")
    axis.axvspan(*plateau, alpha=.2, color="orange")
    axis.set(title=f"pF1 of {len(labels)} by threshold, and its plateau", xlabel="threshold")

def threshold_scores(
    labels,          # (n,) 0 or 1
    probabilities,   # (n,) in [0, 1]
) -> pd.DataFrame:   # threshold, pF1, precision, sensitivity, specificity, recall rate; a row for each of GRID
    "The scores of the decisions `probability > threshold`, for every threshold."
    curve = threshold_curve(labels, probabilities).rename(columns={"score": "pF1", "recall": "sensitivity"})
    p, y = np.asarray(probabilities, np.float32), np.asarray(labels)
    called = [np.array([np.mean(group > t) if len(group) else np.nan for t in GRID.astype(np.float32)])
              for group in (p[y == 0], p)]
    return curve.assign(specificity=1 - called[0], **{"recall rate": called[1]})

def _curves(own: pd.DataFrame, kinds: tuple[str, str]):
    "The traces of one outcome with their row in the figure: five scores, items of both labels, the threshold."
    from plotly.graph_objects import Scatter
    table = threshold_scores(own["label"], own["probability"]).astype(np.float32)
    told = "<br>".join(f"{name} %{{customdata[{i}]:.3f}}" for i, name in enumerate(table.columns[1:]))
    for name, colour in zip(table.columns[1:], COLOURS):
        yield 1, Scatter(x=table["threshold"], y=table[name], name=name, customdata=table.iloc[:, 1:].to_numpy(),
                         hovertemplate=f"threshold %{{x:.2f}}<br>{told}<extra></extra>", line_color=colour)
    for label, (kind, colour) in enumerate(zip(kinds, COLOURS[5:])):
        group = own[own["label"] == label].sort_values("probability", kind="stable")
        shown = group.iloc[np.unique(np.linspace(0, len(group) - 1, min(len(group), POINTS)).round().astype(int))]
        height = np.random.default_rng(label).uniform(-.35, .35, len(shown))   # so that points do not hide each other
        name = kind if len(shown) == len(group) else f"{kind}, {len(shown)} of {len(group)}"
        yield 2, Scatter(x=shown["probability"], y=label + height, name=name, text=shown["item"], mode="markers",
                         opacity=.6, marker_color=colour, hovertemplate="%{text}: %{x:.3f}<extra></extra>")
    if not np.isnan(threshold := own["threshold"].iloc[0]):
        yield 1, Scatter(x=[threshold] * 2, y=[-.03, 1.03], name=f"threshold {threshold:.2f}", mode="lines",
                         line=dict(color="black", width=1), hoverinfo="skip")

def plot_thresholds(
    items: pd.DataFrame,      # outcome, item, label, probability, threshold: the outcomes of a run, see 75_comparison
    kinds: tuple[str, str] = ("negative", "positive"),   # of label 0 and label 1
):                            # of plotly
    "All scores at each threshold, and below them the items at their probabilities; a menu of several outcomes."
    from plotly.subplots import make_subplots
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[.65, .35], vertical_spacing=.04)
    groups, of = {name: own for name, own in items.groupby("outcome", sort=False)}, []
    for name, own in groups.items():
        for row, trace in _curves(own, kinds):
            figure.add_trace(trace.update(visible=not of or of[0] == name), row=row, col=1)
            of.append(name)
    figure.update_yaxes(range=[-.03, 1.03], row=1, col=1)
    figure.update_yaxes(range=[-.5, 1.5], tickvals=[0, 1], ticktext=kinds, row=2, col=1)
    figure.update_xaxes(range=[0, 1])
    figure.update_xaxes(title="threshold, and probability of an item", row=2, col=1)
    figure.update_layout(template="plotly_white", height=560, margin=dict(l=40, r=10, t=30, b=40),
                         legend=dict(orientation="h", y=1.03, yanchor="bottom"), hovermode="closest")
    if len(groups) > 1:
        buttons = [dict(label=name, method="update", args=[{"visible": [o == name for o in of]}]) for name in groups]
        figure.update_layout(updatemenus=[dict(name="outcome", buttons=buttons, x=1, xanchor="right", y=1.14,
                                               yanchor="bottom")])
    return figure

READING = """The scores at every threshold, and below them the predictions. The pointer shows the scores of a threshold,
or the name of an item. With the keyboard, the left and right arrow keys go through the thresholds once the figure has
the focus. A part of the figure can be enlarged."""

def show_thresholds(
    items: pd.DataFrame,      # as for `plot_thresholds`
    kinds: tuple[str, str] = ("negative", "positive"),
):
    "Show the interactive figure of a run's outcomes and how to read it; nothing without a row."
    from IPython.display import Markdown, display
    if len(items):
        display(Markdown(READING))
        display(chart(plot_thresholds(items, kinds)), raw=True)

def plot_reliabilities(
    items: pd.DataFrame,   # outcome, label, probability: the outcomes of a run
    columns: int = 4,      # figures in a row
):
    "The reliability curve of each outcome that has a positive."
    groups = [(name, own) for name, own in items.groupby("outcome", sort=False) if own["label"].any()]
    rows = max(1, -(-len(groups) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(2.8 * columns, 2.7 * rows), squeeze=False)
    for axis in axes.flat[len(groups):]:
        axis.axis("off")
    for axis, (name, own) in zip(axes.flat, groups):
        plot_reliability(axis, own["label"], own["probability"], name)
        axis.set(title=f"{name}, {own['label'].sum()} of {len(own)}", ylabel="share of positives", ylim=(-.03, 1.03))
    figure.tight_layout()

# %%
by_hand = threshold_scores([0, 0, 1, 1], [.1, .6, .4, .9]).set_index("threshold").loc[.5]
assert by_hand.to_dict() == {"pF1": .5, "precision": .5, "sensitivity": .5, "specificity": .5, "recall rate": .5}
assert threshold_scores([0, 1], [.3, .3]).set_index("threshold").loc[[.29, .3], "recall rate"].tolist() == [1, 0]

# %% [markdown]
# ## What came out

# %%
rng = np.random.default_rng(seed)
who, y = np.repeat(np.arange(patients), 2), (rng.random(2 * patients) < prevalence).astype(int)
p = 1 / (1 + np.exp(-rng.normal(np.where(y, -.3, -2.7), 1.2)))
began = time.perf_counter()
table = estimates(y, p, who, .3)
inside = table["value"].between(table["low"], table["high"])
assert inside[table["metric"] != "ECE"].all()   # noise between bins makes the ECE of a draw larger
print(f"{len(y)} rows, {DRAWS} draws, {len(table)} scores: {time.perf_counter() - began:.1f} s")
table.round(3)

# %%
width = [table["value"] - table["low"], table["high"] - table["value"]]
plt.figure(figsize=(6, 3))
plt.errorbar(table["value"], table["metric"], xerr=np.maximum(width, 0), fmt="o")
plt.gca().invert_yaxis()

# %%
items = pd.DataFrame({"outcome": "cancer", "item": who.astype(str), "label": y, "probability": p, "threshold": .3})
items = pd.concat([items, items.iloc[:400].assign(outcome="cancer of few", threshold=np.nan)])
show_thresholds(items)
plot_reliabilities(items, columns=2)

# %% [markdown]
# ---
# [← Calibration](72_calibration.py) · [DeLong →](74_delong.py)

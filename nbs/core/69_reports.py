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
# # Reports
# > The tables and figures that the report of every system has.
#
# A report reads the files of a run and trains nothing. What it shows of the data, the stages, the machine, the training
# and the submission is the same for all systems, and stands here, with the page `report.html` that is made of it.

# %%
#| default_exp core.reports

# %%
#| export
import json
import re
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mammo_nb.core.errors import page
from mammo_nb.core.files import write_text
from mammo_nb.core.runs import Run

# %%
#| hide
import nbformat.v4 as notebooks

from mammo_nb.core.pictures import show_pictures

# %% tags=["parameters"]
pictures = 5   # number of pictures in the figure below

# %% [markdown]
# ## Tables

# %%
#| export
def stages_table(
    manifest: dict,   # manifest of a run
) -> pd.DataFrame:    # stage, seconds, wrote
    "The time and the files of each stage."
    return pd.DataFrame([
        {"stage": name, "seconds": entry["seconds"], "wrote": ", ".join(Path(w).name for w in entry["writes"])}
        for name, entry in manifest["stages"].items()])

def environment_table(
    manifest: dict,   # manifest of a run
) -> pd.DataFrame:    # one column with the name of the run
    "The machine and the versions of the packages."
    environment = manifest["environment"]
    values = {**{k: v for k, v in environment.items() if k != "packages"}, **environment["packages"]}
    return pd.Series(values, name=manifest["run"]).to_frame()

def submission_line(
    report: dict,   # submit.json
) -> str:           # Markdown
    "One line about the submission."
    return (f"`submission.csv`: {report['rows']} rows from {report['items']} {report['item']}, {report['failed']} of "
            "which failed")

def counted(
    table: pd.DataFrame,  # one row a file
    columns: dict,        # column -> its name in the result
    most: int = 6,        # values of a column; the others are counted together
) -> pd.DataFrame:        # "what", "value", "files"
    "How often each value of some columns occurs, those without a value left out."
    rows = []
    for column, name in columns.items():
        if column not in table:
            continue
        counts = table[column].replace("", np.nan).dropna().value_counts()
        rows += [(name, str(value), int(n)) for value, n in counts.head(most).items()]
        if len(counts) > most:
            rows.append((name, f"{len(counts) - most} others", int(counts.iloc[most:].sum())))
    return pd.DataFrame(rows, columns=["what", "value", "files"])

def failed_files(
    table: pd.DataFrame,  # with a column `error`, and `file` or another name in the first column
    most: int = 10,
    unit: str = "files",  # what a row is
) -> tuple[str, pd.DataFrame]:   # a sentence; the first files with their errors
    "What could not be read."
    bad = table[table["error"].fillna("") != ""]
    name = "file" if "file" in table else table.columns[0]
    told = f"{len(bad)} of {len(table)} {unit} could not be used."
    if len(bad) > most:
        told += f" The first {most}:"
    return told, bad[[name, "error"]].head(most)

def size_in_words(
    table: pd.DataFrame,  # with rows and columns in pixels, missing where a file could not be read
) -> pd.DataFrame:        # a copy with the column `size`; the table itself if it has no sizes
    "A table of images with the size of each in words, for `counted`."
    if "rows" not in table:
        return table
    size = table["rows"].astype("Int64").astype(str) + " × " + table["columns"].astype("Int64").astype(str)
    return table.assign(size=size.where(table["rows"].notna()))

def show_files(
    sets: pd.DataFrame,               # column `set`, and what is counted of each set
    tables: dict[str, pd.DataFrame],  # set -> one row a file
    columns: dict,                    # column -> its name in the result, as for `counted`
    read: dict[str, pd.DataFrame] | None = None,   # what a row is -> table with `error`; None: files of `tables`
    unit: str = "files",              # what a row of `tables` is
):
    "The size of each set, what its files are, and those that could not be used."
    from IPython.display import Markdown, display
    display(sets.set_index("set"))
    facts = [counted(size_in_words(table), columns).assign(set=name) for name, table in tables.items()]
    if facts:
        display(pd.concat(facts).rename(columns={"files": unit}).set_index(["set", "what"]))
    for name, table in ({f"{n} files": t for n, t in tables.items()} if read is None else read).items():
        told, errors = failed_files(table, unit=name)
        display(Markdown(told))
        if len(errors):
            display(errors.set_index(errors.columns[0]))

# %%
files = pd.DataFrame({"file": ["a", "b", "c"], "decoder": ["x", "x", None], "error": [None, "", "cut off"]})
assert counted(files, {"decoder": "decoder", "gone": "gone"}).values.tolist() == [["decoder", "x", 2]]
assert failed_files(files)[0].startswith("1 of 3") and failed_files(files)[1]["file"].tolist() == ["c"]
sizes = pd.DataFrame({"rows": [400, np.nan], "columns": [320, np.nan]})
assert size_in_words(sizes)["size"].tolist()[0] == "400 × 320" and size_in_words(sizes)["size"].isna().tolist()[1]
show_files(pd.DataFrame({"set": ["test"], "files": 3}), {"test": files}, {"decoder": "decoder"})

# %%
manifest = {"run": "demo", "stages": {"draw": {"seconds": 1.5, "writes": ["pictures/", "labels.csv"]}},
            "environment": {"python": "3.12", "packages": {"numpy": "2.0"}}}
assert environment_table(manifest)["demo"].to_dict() == {"python": "3.12", "numpy": "2.0"}
print(submission_line({"rows": 48, "items": 96, "item": "images", "failed": 1}))
stages_table(manifest)

# %% [markdown]
# ## Figures

# %%
#| export
def plot_history(
    axis: plt.Axes,
    history: pd.DataFrame,  # fold, epoch (from 0, as stored), loss
):
    "Training loss over the epochs, a line for each fold."
    from mammo_nb.core.train import plot_epochs  # here, as it loads torch, and the page is made without
    for fold, rows in history.groupby("fold"):
        plot_epochs(axis, rows["epoch"], rows["loss"], f"fold {fold}")
    axis.set_title("training loss")
    axis.legend(fontsize=8)

def plot_probabilities(
    axis: plt.Axes,
    labels: pd.Series,         # 0 or 1
    probabilities: pd.Series,  # in [0, 1]
    threshold: float,          # drawn as a line
    names: tuple[str, str],    # of label 0 and label 1
    title: str,
):
    "Histograms of the probabilities of both labels."
    for label, name in enumerate(names):
        axis.hist(probabilities[labels == label], bins=25, range=(0, 1), alpha=.6, label=name)
    axis.axvline(threshold, color="black", lw=1)
    axis.set(title=f"{title}, n = {len(labels)}", xlabel=f"line: threshold {threshold:.2f}")
    axis.legend(fontsize=8)

def plot_ladder(
    ladder: pd.DataFrame,  # step, low, high and the score, a row for each step
    score: str,            # the column of the score
    label: str,            # of its axis
):
    "The score of each step with its interval, the first step on top."
    plt.figure(figsize=(8, 0.4 * len(ladder) + 1))
    width = [ladder[score] - ladder["low"], ladder["high"] - ladder[score]]
    plt.errorbar(ladder[score], range(len(ladder)), xerr=width, fmt="o")
    plt.yticks(range(len(ladder)), ladder["step"])
    plt.gca().invert_yaxis()
    plt.xlabel(label)

# %% [markdown]
# ## Pictures
# The clearest right and wrong predictions say more than a score.

# %%
#| export
KINDS = {(1, True): "found", (1, False): "missed", (0, True): "suspected", (0, False): "passed"}

def extremes(
    table: pd.DataFrame,  # one row per item, with a column `probability`
    label: str,           # column with 0 or 1
    threshold: float,     # an item with a higher probability is called positive
    count: int = 4,       # items of each kind, if there are so many
) -> pd.DataFrame:        # the rows with a column `kind`: found, missed, suspected, passed
    "The clearest items of each kind: the highest probabilities above the threshold and the lowest below it."
    table = table.sort_values("probability", ascending=False)
    positive = table["probability"].astype(np.float32) > np.float32(threshold)  # as the curve of thresholds compares
    kind = pd.Series([KINDS[int(y), bool(p)] for y, p in zip(table[label], positive)], table.index, dtype=object)
    table = table.assign(kind=kind)
    parts = [table[kind == k] for k in KINDS.values()]
    return pd.concat([part.head(count) if k in ("found", "suspected") else part.iloc[::-1].head(count)
                      for k, part in zip(KINDS.values(), parts)])

def most_wrong(
    table: pd.DataFrame,  # one row per item, with a column `probability`
    label: str,           # column with 0 or 1
    count: int = 4,       # items of each label
) -> pd.DataFrame:        # positives with the lowest probabilities, then negatives with the highest
    "The most confident wrong items, for predictions without a threshold."
    table = table.sort_values("probability", kind="stable")
    return pd.concat([table[table[label] == 1].head(count), table[table[label] == 0].iloc[::-1].head(count)])

# %% [markdown]
# ## The page
# The notebook of the last stage becomes `report.html`, without its code. The policy in its head forbids every request,
# so the page shows the same offline. Interactive figures bring plotly along, once, and no other script may run. Every
# table and figure has a number, which makes its name unique. A table scrolls sideways on a phone, and the names of its
# rows wrap. A value that does not exist is a dash.

# %%
#| export
FOLDED = "Stages and environment"   # a section whose tables are opened by a click

def _mend(table, soup):
    "One row of column names, dashes for what does not exist, and long texts that wrap."
    head = table.thead.find_all("tr") if table.thead else []
    if len(head) == 2 and not any(c.get_text(strip=True) for c in head[0].find_all("th")[:1]):
        for above, name in zip(head[0].find_all("th"), head[1].find_all("th")):
            if name.get_text(strip=True):
                above.string = name.get_text(strip=True)
        head[1].decompose()
    for cell in table.find_all("td"):
        text = cell.get_text(strip=True)
        if text in ("<NA>", "NaN", "nan", "NaT", "None"):
            cell.string, text = "–", "–"
        if len(text) > 60:
            cell["class"] = "text"
        elif re.match(r"[-–\d.]", text):
            cell["class"] = "number"

CHART = "application/vnd.plotly.v1+json"   # media type under which JupyterLab and `report_page` know a figure

def chart(
    figure,   # of plotly
) -> dict:    # media type -> content, for `display(..., raw=True)`
    "A figure as a notebook keeps it: numbers, without plotly's own five megabytes."
    from plotly.utils import PlotlyJSONEncoder   # slow to import, and needed by reports only
    content = figure.to_plotly_json()
    content.setdefault("config", {}).update(displaylogo=False, responsive=True, modeBarButtonsToRemove=["toImage"])
    return {CHART: json.loads(json.dumps(content, cls=PlotlyJSONEncoder)), "text/plain": "interactive figure"}

def _take_charts(outputs: list) -> list[dict]:
    "Replace figures of plotly by empty elements with the class `chart`, and return their contents."
    taken = [o["data"].pop(CHART) for o in outputs if CHART in o.get("data", {})]
    for output in (o for o in outputs if o.get("data", {}).get("text/plain") == "interactive figure"):
        output["data"] = {"text/html": '<div class="chart"></div>'}
    return taken

DRAW = """(f, i) => {
const chart = document.querySelectorAll('.chart')[i], menus = f.layout.updatemenus || [];
delete f.layout.updatemenus;
Plotly.newPlot(chart, f.data, f.layout, f.config);
menus.forEach(menu => {
  const label = document.createElement('label'), choice = document.createElement('select');
  menu.buttons.forEach(button => choice.add(new Option(button.label)));
  choice.onchange = () => Plotly.update(chart, ...menu.buttons[choice.selectedIndex].args);
  label.append(menu.name + ' ', choice);
  chart.parentNode.before(label);
});
let at = null;
chart.parentNode.onkeydown = event => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key], k = chart._fullData.findIndex(t => t.visible === true);
  if (!step) return;
  const last = chart.calcdata[k].length - 1;
  at = at === null ? Math.round(last / 2) : Math.min(last, Math.max(0, at + step));
  Plotly.Fx.hover(chart, [{curveNumber: k, pointNumber: at}]);
  event.preventDefault();
};
}"""   # a menu becomes a choice of the page, which keys and thumbs can use; arrow keys go from point to point

def _drawing(charts: list[dict]) -> list[str]:
    "JavaScript that draws figures into the elements of the class `chart`: plotly, and one call for each."
    if not charts:
        return []
    from plotly.offline import get_plotlyjs
    contents = json.dumps(charts).replace("<", "\\u003c")   # no text of a figure can end the script
    return [get_plotlyjs(), f"{contents}.forEach({DRAW})"]

def report_page(
    notebook,      # executed, of nbformat
    title: str,
) -> str:          # HTML
    "An executed notebook without its code, as one page that needs no network and fits a phone."
    from bs4 import BeautifulSoup
    from nbconvert import HTMLExporter
    notebook.cells = [c for c in notebook.cells if not c.source.startswith("---\n[←")]   # links between sources
    charts = []
    for outputs in (c.outputs for c in notebook.cells if c.cell_type == "code"):
        charts += _take_charts(outputs)
        if any("text/markdown" in o.get("data", {}) for o in outputs):   # what is printed says the same, for the log
            outputs[:] = [o for o in outputs if o.output_type != "stream"]
        outputs[:] = [o for o in outputs if o.get("name") != "stderr"]   # warnings are in the notebook
    body, _ = HTMLExporter(template_name="basic", exclude_input=True).from_notebook_node(notebook)
    soup = BeautifulSoup(body, "html.parser")
    for each in soup.select("script, style, a.anchor-link, .prompt"):
        each.decompose()
    heading, number = f"files of {title}", {"Figure": 0, "Table": 0}
    folded = True   # before the first section, too
    for tag in soup.select("h2, h3, img, table, .chart"):
        if tag.name in ("h2", "h3"):
            heading = tag.get_text(strip=True)
            folded = heading == FOLDED or folded and tag.name == "h3"
            continue
        kind = "Table" if tag.name == "table" else "Figure"
        number[kind] += 1
        name = f"{kind} {number[kind]}: {heading}"
        box = tag.wrap(soup.new_tag("div", attrs={"class": "wide", "tabindex": "0", "role": "region",
                                                  "aria-label": name}))
        if kind == "Figure":
            tag["alt" if tag.name == "img" else "title"] = name
            continue
        _mend(tag, soup)
        if folded:
            summary = BeautifulSoup(f"<summary>{escape(name)}</summary>", "html.parser")
            box.wrap(soup.new_tag("details")).insert(0, summary)
    links = "".join(f'<a href="#{h["id"]}">{escape(h.get_text(strip=True))}</a>' for h in soup.find_all("h2"))
    return page(title, f"Run {title}. For learning and research. Not a medical device.", links, str(soup),
                scripts=_drawing(charts))

def write_report(
    run: Run,
):
    "Make report.html of the notebook of the last stage."
    import nbformat
    notebook = run.folder / f"{run.system.label(run.plan[-1].name)}.ipynb"
    write_text(run.folder / "report.html", report_page(nbformat.read(notebook, 4), run.folder.name))

# %%
shown = notebooks.new_output("execute_result", {"text/html": pd.DataFrame({"a": [np.nan]})._repr_html_()})
shown = report_page(notebooks.new_notebook(cells=[notebooks.new_markdown_cell("## Scores"),
                                                 notebooks.new_code_cell("", outputs=[shown])]), "demo")
assert "Table 1: Scores" in shown and ">–</td>" in shown

# %% [markdown]
# ## What came out
# The items of each kind among random predictions, as grey pictures:

# %%
rng = np.random.default_rng(0)
table = pd.DataFrame({"probability": rng.random(40), "cancer": rng.integers(0, 2, 40)})
wrong = most_wrong(table, "cancer", count=1)["probability"].tolist()
assert wrong == [table["probability"][table["cancer"] == 1].min(), table["probability"][table["cancer"] == 0].max()]
chosen = extremes(table, "cancer", threshold=0.6, count=2)
kinds = chosen.groupby("kind")
assert (kinds["cancer"].first() == kinds["cancer"].last()).all() and len(chosen) == 8
assert kinds["probability"].min()[["found", "suspected"]].min() > 0.6 >= kinds["probability"].max()["missed"]
show_pictures(chosen.head(pictures), lambda row: np.full((8, 6), round(255 * row.probability), np.uint8),
              lambda row: f"{row.kind}: {row.probability:.2f}", columns=pictures)

# %% [markdown]
# ---
# [← Rehearse](68_rehearse.py) · [Evidence →](70_evidence.py)

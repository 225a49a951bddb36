"""Seconds of each stage and of each cell of finished runs, from their executed notebooks.

    python tests/bench/cells.py before=runs/demo after=runs/again    # writes tests/bench/results/cells.csv

A stage has three kinds of rows: the whole notebook, what is neither in a cell nor in its output (the start of the
kernel), and each cell. A run is named by a word before its folder.
"""
import re
import sys
from pathlib import Path

import nbformat
import pandas as pd

RESULT = Path(__file__).parent / "results" / "cells.csv"


def cells_of(notebook: Path) -> list[tuple]:
    "Rows (stage, section, cell, seconds) of an executed notebook."
    page = nbformat.read(notebook, as_version=4)
    section, rows, seen = "", [], {}
    for cell in page.cells:
        if cell.cell_type == "markdown":
            if found := re.search(r"^#+ (.+)$", cell.source, re.MULTILINE):
                section = found[1].strip()
            continue
        if "injected-parameters" in cell.metadata.get("tags", []):
            continue   # names the folder of the run
        lines = [line for line in cell.source.splitlines() if line.strip() and not line.startswith("#")]
        key = section, lines[0][:60] if lines else ""
        seen[key] = seen.get(key, 0) + 1   # two cells of a section may begin alike
        name = key[1] + (f" #{seen[key]}" if seen[key] > 1 else "")
        rows.append((notebook.stem, section, name, cell.metadata.papermill.duration or 0.0))
    whole = page.metadata.papermill.duration
    start = whole - sum(row[-1] for row in rows)
    first = [("whole notebook", whole), ("start and end of the kernel", start)]
    return [*((notebook.stem, "", what, seconds) for what, seconds in first), *rows]


def table_of(runs: dict[str, Path]) -> pd.DataFrame:
    "One row a cell, one column a run; a cell that a run does not have is empty."
    parts = []
    for name, folder in runs.items():
        rows = [row for path in sorted(folder.glob("[0-9]*.ipynb")) for row in cells_of(path)]
        part = pd.DataFrame(rows, columns=["stage", "section", "cell", name])
        parts.append(part.set_index(["stage", "section", "cell"])[name].round(2))
    return pd.concat(parts, axis=1).reset_index()


def main(words: list[str]):
    runs = {name: Path(folder) for name, folder in (word.split("=", 1) for word in words)}
    table = table_of(runs)
    table.to_csv(RESULT, index=False)
    whole = table[table["cell"] == "whole notebook"].set_index("stage")[list(runs)]
    print(pd.concat([whole, whole.sum().to_frame("together").T]).round(1).to_string())
    for name in runs:
        print(f"\nlongest cells, {name}")
        cells = table[~table["cell"].isin(["whole notebook"])].nlargest(25, name)
        print(cells[["stage", "cell", name]].to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1:])

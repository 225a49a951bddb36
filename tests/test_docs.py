"Pages for readers: links lead somewhere, and the start page lists every notebook."
import re
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "nbs/docs").glob("*.md")),
         ROOT / "tests/bench/results/README.md", *sorted((ROOT / "nbs").rglob("*.py"))]


def anchors(page: Path) -> set[str]:
    "The names that GitHub gives to the headings of a page."
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    text = page.read_text()
    if page.suffix == ".py":  # text cells only
        text = "\n".join(line for line in text.splitlines() if line.startswith("# "))
    for target in re.findall(r"\]\(([^)\s{}]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in target or not (file or anchor):
            continue
        found = page.parent / file if file else page
        assert found.exists(), f"{page.relative_to(ROOT)}: {target}"
        assert not anchor or anchor in anchors(found), f"{page.relative_to(ROOT)}: {target}"


def test_the_readme_is_short_and_begins_with_what_it_is():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) < 1200 and re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "Two commands", "Your own scans", "Python", "Reading it", "Recipes", "Kaggle", "Changing it", "Limits"]


def test_the_table_of_faults_names_tests_that_exist():
    rows = [line for line in (ROOT / "nbs/docs/faults.md").read_text().splitlines() if re.match(r"\| \d", line)]
    assert {int(re.match(r"\| (\d+)", row)[1]) for row in rows} == set(range(1, 17))
    for row in rows:
        shown = row.rstrip("| ").rpartition(" | ")[2]
        names = re.findall(r"`(test_\w+\*?|bench/\w+\.py)`", shown)
        assert names, row
        defined, pages = "", []
        for name in names:
            if name.startswith("bench/"):
                assert (ROOT / "tests" / name).is_file(), name
            elif (ROOT / "tests" / f"{name}.py").is_file():
                pages = [*pages, name]
                defined += (ROOT / "tests" / f"{name}.py").read_text()
            else:
                assert re.search(rf"def {name.removesuffix('*')}", defined), f"{pages}: {name}"

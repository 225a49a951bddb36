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

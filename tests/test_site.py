"The documentation: pages from a tiny checkout, their navigation, search and links; nothing is fetched."
import json
import re
import shutil

import pytest
from conftest import ROOT

from mammo_nb.core.files import write_json, write_text
from mammo_nb.core.notebooks import build
from mammo_nb.core.site import LATER, SiteError, build_site, execute_all

HEAD = '# ---\n# jupyter: {{}}\n# ---\n\n# %% [markdown]\n# # {title}\n# > {title} in a line.\n#\n# {text}\n\n'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def notebook(path, title, text, *cells):
    write_text(path, HEAD.format(title=title, text=text) + "".join(f"# %%\n{cell}\n\n" for cell in cells))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    "A start page, a chapter with a module, a system with a stage that a run has executed and one without a run."
    root = tmp_path_factory.mktemp("checkout")
    write_text(root / "README.md", "# Little\n\n[Start](nbs/00_start.py), [how](nbs/docs/how.md#two-words), "
               "[numbers](nbs/docs/t.csv), [all](nbs/).\n\n![drawn](p.png)\n")
    shutil.copy(ROOT / "assets/pipeline.png", root / "p.png")
    write_text(root / "nbs/docs/how.md", "# How\n\n## Two words\n\nDraw a reticulation.\n")
    write_text(root / "nbs/docs/t.csv", "a\n1\n")
    notebook(root / "nbs/00_start.py", "Start", "See [errors](core/11_errors.py#kinds).",
             "import os\nimport pandas as pd\nprint('10 %\\r100 %', os.getcwd())\npd.DataFrame({'a': [1]})",
             "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
             "from IPython.display import Markdown\nMarkdown('[The toy](toy/00_system.py)')")
    notebook(root / "nbs/core/10_ground.py", "Ground", "A chapter.")
    notebook(root / "nbs/core/11_errors.py", "Errors", "What fails.\n#\n# ## Kinds", "#| default_exp core.errors",
             "#| export\n1 / 0")
    notebook(root / "nbs/toy/00_system.py", "Toy", "A system.")
    notebook(root / "nbs/toy/01_count.py", "Count", "A stage.", "1 / 0")
    notebook(root / "nbs/toy/02_add.py", "Add", "A stage.", "1 / 0")
    (root / "mammo_nb/core").mkdir(parents=True)
    shutil.copy(ROOT / "mammo_nb/core/errors.py", root / "mammo_nb/core/errors.py")
    build(root)
    run = root / "elsewhere/runs/toy-demo"
    write_json(run / "run.json", {"system": "toy", "recipe": "demo"})
    page = json.loads((root / "nbs/toy/01_count.ipynb").read_text())
    page["metadata"]["papermill"] = {"parameters": {"run_dir": str(run)}}
    page["cells"][-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": f"counted in {run}/table.csv"}]
    write_text(run / "01_count.ipynb", json.dumps(page))
    return root


@pytest.fixture(scope="module")
def site(checkout):
    out = checkout / "out"
    assert build_site(checkout, out, checkout / "elsewhere/runs", workers=1) == [out / "index.html"]
    return out


def test_pages_are_as_executed_or_say_why_not(site):
    start, count, add, errors = ((site / f"nbs/{n}.html").read_text() for n in (
        "00_start", "toy/01_count", "toy/02_add", "core/11_errors"))
    assert "100 %" in start and "10 %\r" not in start and "<th>a</th>" in start and "00_start_files/" in start
    assert "counted in runs/toy-demo/table.csv" in count and "toy-demo</code> executed it" in count
    assert "no finished run of the recipe demo" in add
    assert "without outputs: ZeroDivisionError" in errors and "#|" not in errors


def test_when_time_is_over_the_next_build_goes_on(tmp_path):
    sources = [f"nbs/{n}.py" for n in range(3)]
    for source in sources:
        notebook(tmp_path / source, source, "Text.", "print(1)")
    build(tmp_path)
    first, left = execute_all(sources, tmp_path, tmp_path / "kept", 1, seconds=0)
    assert first == {} and left == dict.fromkeys(sources, LATER)
    second, left = execute_all(sources, tmp_path, tmp_path / "kept", 1, seconds=600)
    assert left == {} and list(second) == sources and all("1" in p.read_text() for p in second.values())


def test_a_notebook_that_takes_long_does_not_stop_the_others(tmp_path):
    notebook(tmp_path / "nbs/0.py", "Long", "Text.", "open('begun', 'a').write('x')\nwhile True:\n    pass")
    notebook(tmp_path / "nbs/1.py", "Short", "Text.", "print(1)")
    build(tmp_path)
    sources, seconds, done, left = ["nbs/0.py", "nbs/1.py"], 4, {}, {"nbs/1.py": LATER}
    while left.get("nbs/1.py") == LATER:   # a busy machine may need longer to start a process
        done, left = execute_all(sources, tmp_path, tmp_path / "kept", 1, seconds)
        seconds *= 2
    assert list(done) == ["nbs/1.py"] and left == {"nbs/0.py": LATER} and (tmp_path / "nbs/begun").exists()


def test_the_module_has_a_page_with_signature_and_comments(site):
    page = (site / "api/core.errors.html").read_text()
    assert '<h2 id="projecterror">' in page and 'href="../nbs/core/11_errors.html">The notebook' in page


def test_navigation_has_the_four_kinds(site):
    page = (site / "index.html").read_text()
    tabs = re.findall(r'<li class="md-tabs__item.*?</li>', page, re.DOTALL)
    assert [re.sub(r"<.*?>", "", tab).split() for tab in tabs] == [["Tutorial"], ["How", "to"], ["Reference"],
                                                                   ["Explanation"]]
    def sections(name: str) -> list[str]:
        found = re.findall(r'<label class="md-nav__title".*?</label>', (site / name).read_text(), re.DOTALL)
        return [re.sub(r"<.*?>", "", label).strip() for label in found]

    assert "Toy" in sections("nbs/toy/02_add.html") and {"Core", "Ground"} <= set(sections("nbs/core/11_errors.html"))
    assert 'href="01_count.html"' in (site / "nbs/toy/02_add.html").read_text()


def test_files_that_are_no_pages_are_there(site):
    assert (site / "files/nbs/docs/t.csv").read_text() == "a\n1\n" and (site / "files/p.png").is_file()


def test_no_page_names_a_folder_of_the_machine(site, checkout):
    pages = list(site.rglob("*.html")) + list((site / "search").iterdir())
    assert len(pages) > 8 and not [p for p in pages if str(checkout) in p.read_text() or str(ROOT) in p.read_text()]


@pytest.mark.parametrize("text, said", [
    ("[gone](gone.md)", "guides/new.html names gone.md, which does not exist"),
    ("[gone](how.md#three)", "guides/new.html names how.html#three, an anchor that does not exist"),
    ("<img src='https://example.org/a.png'>", "guides/new.html loads https://example.org/a.png"),
])
def test_a_fault_is_named_and_the_old_site_stays(site, checkout, text, said):
    write_text(checkout / "nbs/docs/new.md", f"# New\n\n{text}\n")
    try:
        with pytest.raises(SiteError, match=re.escape(said)):
            build_site(checkout, site, checkout / "elsewhere/runs", workers=1)
    finally:
        (checkout / "nbs/docs/new.md").unlink()
    assert (site / "index.html").is_file() and not (site / "guides/new.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="needs the browser Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_opened_as_a_file_nothing_is_fetched_and_a_word_is_found(site, width):
    driver = pytest.importorskip("playwright.sync_api", reason="needs the package playwright").sync_playwright
    requests, messages = [], []
    with driver() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto((site / "index.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.querySelector('article img').naturalWidth") > 100
        page.keyboard.press("s")
        page.keyboard.type("reticulation", delay=20)
        found = page.locator(".md-search-result__link").first
        found.wait_for()
        assert "guides/how.html" in found.get_attribute("href")
        browser.close()
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == [] and messages == []

"report.html in a browser: nothing is fetched, it fits a phone, and figures and tables have names."
import base64
import shutil

import cv2
import nbformat.v4 as nb
import numpy as np
import pandas as pd
import pytest

from mammo_nb.core.estimates import plot_thresholds
from mammo_nb.core.reports import chart, report_page

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the browser Chromium")


def cell(*outputs):
    return nb.new_code_cell("print('the code')", outputs=list(outputs))


def shown(**data):
    return nb.new_output("display_data", {k.replace("_", "/"): v for k, v in data.items()})


SCORES = pd.DataFrame({"AUC": [.9, None], "cases": pd.array([12, None], "Int64"), "note": ["", "a long text " * 9]},
                      index=pd.Index(["a row name of many words that would push all numbers aside", "b"], name="group"))


@pytest.fixture
def notebook():
    "As the report of a run: a table of its files, a result, a wide figure, a wide table and scores."
    wide = shown(text_html=pd.DataFrame([range(40)])._repr_html_())
    png = base64.b64encode(cv2.imencode(".png", np.zeros((100, 1200), np.uint8))[1]).decode()
    return nb.new_notebook(cells=[
        nb.new_markdown_cell("# Report"), cell(wide), nb.new_markdown_cell("## The result"),
        cell(nb.new_output("stream", text="AUC 0.9"), shown(text_markdown="**AUC 0.9**")), cell(shown(image_png=png)),
        nb.new_markdown_cell("## Scores & errors"), cell(wide), cell(shown(text_html=SCORES._repr_html_())),
        nb.new_markdown_cell("## Stages and environment\n### Stages"), cell(wide), nb.new_markdown_cell("### Machine"),
        cell(wide), cell(nb.new_output("stream", text="word" * 200)),
        cell(nb.new_output("stream", name="stderr", text="/home/somebody/lib.py: a warning")),
        nb.new_markdown_cell("---\n[← Submit](09_submit.py)")])


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_whole_offline_and_fits(tmp_path, notebook, width):
    path = tmp_path / "report.html"
    path.write_text(report_page(notebook, "a <run>"))
    requests, messages = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(path.as_uri())
        assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()] and messages == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.title() == "a <run>" and "Not a medical device" in page.locator("body").inner_text()
        assert "wordword" in page.content() and "somebody" not in page.content()
        sections = ["The result", "Scores & errors", "Stages and environment"]
        assert page.locator("h2").all_inner_texts() == sections == page.locator("nav a").all_inner_texts()
        for link in page.locator("nav a").all():
            assert page.evaluate("id => document.getElementById(id).tagName", link.get_attribute("href")[1:]) == "H2"
        assert page.get_by_role("img").get_attribute("alt") == "Figure 1: The result"
        assert page.evaluate("document.images[0].naturalWidth") == 1200
        assert page.locator("main").inner_text().count("AUC 0.9") == 1 and "the code" not in page.content()
        assert [t.is_visible() for t in page.locator("table").all()] == [False, True, True, False, False]
        names = [box.get_attribute("aria-label") for box in page.locator(".wide").all()]
        assert names == ["Table 1: files of a <run>", "Figure 1: The result", "Table 2: Scores & errors",
                         "Table 3: Scores & errors", "Table 4: Stages", "Table 5: Machine"]
        assert page.locator("summary").all_inner_texts() == [names[0], *names[4:]]
        scores = page.locator("table").nth(2)
        assert scores.locator("thead tr").count() == 1
        assert scores.locator("thead th").all_inner_texts() == ["group", "AUC", "cases", "note"]
        assert scores.locator("td").all_inner_texts()[3:5] == ["–", "–"]
        first = scores.locator("td").first.bounding_box()
        assert first["x"] + first["width"] < (width if width > 600 else 260)   # beside the name of the row
        page.locator("summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("table").first.is_visible() and "09_submit" not in page.content()
        browser.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_an_interactive_figure_is_drawn_offline_and_tells_scores_and_names(tmp_path, width):
    names = ["</script><b>1 L</b>", "2 R", "3 L", "4 R"]
    items = pd.DataFrame({"outcome": "cancer", "item": names, "label": [0, 0, 1, 1], "probability": [.1, .6, .4, .9],
                          "threshold": .5})
    figure = chart(plot_thresholds(items, ("no cancer", "cancer")))
    path, messages, requests = tmp_path / "report.html", [], []
    path.write_text(report_page(nb.new_notebook(cells=[
        nb.new_markdown_cell("## Thresholds"), nb.new_code_cell("", outputs=[nb.new_output("display_data", figure)]),
        nb.new_code_cell("", outputs=[nb.new_output("display_data", figure)])]), "run"))
    assert path.read_text().count("plotly.js v") == 1   # the library once, for both figures
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_function("document.querySelectorAll('.chart .main-svg').length >= 2")
        assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()] and messages == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert [box.get_attribute("aria-label") for box in page.locator(".wide").all()] == [
            "Figure 1: Thresholds", "Figure 2: Thresholds"]
        first = page.locator(".chart").first
        assert "threshold 0.50" in first.inner_text() and "sensitivity" in first.inner_text()
        hover = ("Plotly.Fx.hover(document.querySelector('.chart'), [{curveNumber: %d, pointNumber: %d}], "
                 "['xy', 'x2y2'])")
        says = "text => document.querySelector('.chart').textContent.includes(text)"
        for at, texts in ((0, 50), [f"{name} 0.500" for name in ("pF1", "precision", "sensitivity", "recall rate")]), (
                (6, 0), ["3 L: 0.400"]):
            page.evaluate(hover % at)
            for text in texts:
                page.wait_for_function(says, arg=text, timeout=5000)
        assert page.evaluate("document.querySelectorAll('main b').length") == 0
        browser.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_of_several_outcomes_one_is_chosen_and_gone_through_with_the_keyboard(tmp_path, width):
    items = pd.concat([pd.DataFrame({"outcome": name, "item": [f"{name} {k}" for k in "abcd"], "label": [0, 0, 1, 1],
                                     "probability": p, "threshold": np.nan})
                       for name, p in (("liver low", [.1, .6, .4, .9]), ("<i>kidney</i>", [.1, .2, .8, .9]))])
    path, messages = tmp_path / "report.html", []
    shows = nb.new_code_cell("", outputs=[nb.new_output("display_data", chart(plot_thresholds(items)))])
    path.write_text(report_page(nb.new_notebook(cells=[nb.new_markdown_cell("## Thresholds"), shows]), "run"))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_function("document.querySelectorAll('.chart .main-svg').length >= 2")
        choice, figure = page.get_by_label("outcome"), page.get_by_role("region", name="Figure 1: Thresholds")
        assert choice.locator("option").all_inner_texts() == ["liver low", "<i>kidney</i>"]
        says = "text => document.querySelector('.chart').textContent.includes(text)"
        for chosen, moves, at, sensitivity in (   # of two positives above 0.5 there is one, of the other outcome both
                ("liver low", ["ArrowRight"], "threshold 0.50", "0.500"),
                ("<i>kidney</i>", ["ArrowLeft", "ArrowLeft", "ArrowRight"], "threshold 0.49", "1.000")):
            choice.focus()
            if choice.input_value() != chosen:
                page.keyboard.press("ArrowDown")
            figure.focus()
            for key in moves:
                page.keyboard.press(key)
            for text in (at, f"sensitivity {sensitivity}"):
                page.wait_for_function(says, arg=text, timeout=5000)
        assert choice.input_value() == "<i>kidney</i>" and page.locator("main i").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width and messages == []
        browser.close()

"JupyterLab as a reader uses it: a stage's source is opened in a browser, run and saved."
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, copy_checkout

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the browser Chromium")
TOKEN = "of-the-test"


def git(checkout: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments],
                          cwd=checkout, check=True, capture_output=True, text=True).stdout


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A checkout under git, and the address at which `make lab` serves it."
    checkout = copy_checkout(tmp_path_factory.mktemp("lab"))
    shutil.copy(ROOT / ".gitignore", checkout)
    git(checkout, "init", "-q")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-qm", "start")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    venv = Path(sys.prefix)
    server = subprocess.Popen(
        ["make", "lab", f"VENV={venv}", "-o", f"{venv}/.installed",
         f"LAB=--no-browser --port {port} --IdentityProvider.token={TOKEN}"],
        cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, start_new_session=True)
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            for _ in range(240):
                if answers(f"http://localhost:{port}/api/status?token={TOKEN}"):
                    break
                page.wait_for_timeout(250)
            yield checkout, page, f"http://localhost:{port}"
            browser.close()
    finally:
        os.killpg(server.pid, 15)
        server.wait()


@pytest.mark.parametrize("source", ["mammo/05_folds.py", "ich/03_folds.py"])
def test_a_stage_is_opened_run_and_saved_and_git_stays_clean(lab, source):
    checkout, page, address = lab
    page.goto(f"{address}/lab/tree/{source}?token={TOKEN}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    page.wait_for_selector("text=Python 3 (ipykernel) | Idle", timeout=120_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    # JupyterLab keeps only the cells in view, and it has scrolled to the last one
    page.wait_for_function("() => /\\[\\d+\\]/.test([...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]"
                           ".at(-1).innerText)", timeout=300_000)
    assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
    assert page.locator(".jp-OutputArea img").count() >= 1
    page.keyboard.press("Control+s")
    page.wait_for_selector(".jp-mod-dirty", state="detached")
    assert git(checkout, "status", "--short") == ""

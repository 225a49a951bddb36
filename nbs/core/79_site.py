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
# # Site
# > The documentation as a web site that needs no network, neither when it is built nor when it is read.
#
# `make docs` writes `runs/docs/index.html`. Stages are shown as the runs of the recipe `demo` have executed them, other
# notebooks as they are executed here. An executed notebook is kept until its text changes, and `make clean` deletes it.
# mkdocs with the theme Material makes the pages and their search.

# %%
#| default_exp core.site

# %%
#| export
import io
import logging
import os
import re
import shutil
import time
from html.parser import HTMLParser
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import read_json, sha256, write_text
from mammo_nb.core.notebooks import build_one
from mammo_nb.core.pages import (Book, modules_of, private_folders, source_pages, title_of, write_modules,
                                 write_notebook)
from mammo_nb.core.settings import read_paths

# %%
#| hide
import tempfile
from collections import Counter

import mammo_nb

ROOT = Path(mammo_nb.__file__).parents[1]

# %%
#| export
class SiteError(ProjectError):
    "Pages that could not be made, or links that lead nowhere."

# %% [markdown]
# ## Executed notebooks
# Stages need the files of a run, so only a run executes them. All others run here, in processes without a Jupyter
# kernel, which starts a hundred notebooks quicker than papermill. One that fails is shown without outputs. So that a
# build takes a bounded time, the processes are ended after three minutes. The next build goes on with the others, and
# comes to those that were stopped last.

# %%
#| export
def executed_by_runs(
    runs: Path,                       # folder of all runs
) -> dict[str, tuple[Path, str]]:     # nbs/<home>/<stage>.py -> executed notebook and the name of the run
    "The stages of the runs of the recipe demo."
    found = {}
    for about in sorted(runs.glob("*/run.json")):
        made = read_json(about)
        if made["recipe"] == "demo":
            for path in sorted(about.parent.glob("[0-9]*.ipynb")):
                found.setdefault(f"nbs/{made['system']}/{path.stem}.py", (path, about.parent.name))
    return found

LATER = "the next `make docs` executes it"
SECONDS = 180

def _execute_each(pairs: list[tuple[Path, Path]]):
    "Execute notebooks into files. The error of one that fails is written beside its file."
    os.environ.update(MPLBACKEND="module://matplotlib_inline.backend_inline", OMP_NUM_THREADS="1")
    from execnb.shell import CaptureShell
    for notebook, target in pairs:
        error = target.with_suffix(".txt")
        write_text(error, LATER)   # stays if this process is ended
        os.chdir(notebook.parent)
        shell = CaptureShell(mpl_format="png")
        try:
            shell.execute(notebook, target, exc_stop=True)
        except Exception as e:
            target.unlink(missing_ok=True)
            write_text(error, f"{type(e).__name__}: {e}")
        else:
            error.unlink()
        shell.close()

def execute_all(
    sources: list[str],     # paths in the checkout
    root: Path,
    folder: Path,           # executed notebooks are kept here
    workers: int,           # processes
    seconds: float,         # they are ended then
) -> tuple[dict[str, Path], dict[str, str]]:   # source -> executed notebook; source -> error, or LATER
    "Execute the notebooks whose text has changed since they were kept."
    folder = folder.resolve()
    kept = {s: folder / s.removesuffix(".py") / f"{sha256(root / s)[:16]}.ipynb" for s in sources}
    errors = {s: target.with_suffix(".txt") for s, target in kept.items()}
    told = {s: error.read_text(encoding="utf-8") if error.exists() else "" for s, error in errors.items()}
    todo = [((root / s).with_suffix(".ipynb").resolve(), target) for s, target in kept.items()
            if not target.exists() and told[s] in ("", LATER)]
    todo.sort(key=lambda pair: pair[1].with_suffix(".txt").exists())   # what was stopped may take long, so it is last
    for _, target in todo:
        shutil.rmtree(target.parent, ignore_errors=True)   # of an older text
        target.parent.mkdir(parents=True)
    processes = [get_context("spawn").Process(target=_execute_each, args=(todo[k::workers],))
                 for k in range(min(workers, len(todo)))]
    end = time.monotonic() + seconds
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(0, end - time.monotonic()))
        process.kill()
        process.join()
    failed = {s: error.read_text(encoding="utf-8") for s, error in errors.items() if error.exists()}
    failed |= {s: LATER for s, target in kept.items() if not target.exists() and s not in failed}
    return {s: target for s, target in kept.items() if s not in failed}, failed

# %% [markdown]
# ## Navigation
# The four kinds of documentation: lessons, instructions, reference and explanation. A folder of `nbs/` with a page
# `00_system` is a system, so a new one appears by itself.

# %%
#| export
NOT_GUIDES = ("model_card", "claim", "faults")   # of nbs/docs: read to look something up

def navigation(
    book: Book,
    modules: list[str],   # from `modules_of`
) -> list:                # of mkdocs
    "Which page stands where."
    notebooks = {s: p for s, p in book.pages.items() if s.startswith("nbs/") and s.endswith(".py")}
    systems = sorted((s.split("/")[1] for s in notebooks if s.endswith("/00_system.py")),
                     key=lambda name: -sum(s.startswith(f"nbs/{name}/") for s in notebooks))

    def within(folder: str) -> list[str]:
        return [p for s, p in notebooks.items() if s.rpartition("/")[0] == f"nbs/{folder}"]

    def named(*sources: str) -> list[str]:
        return [book.pages[s] for s in sources if s in book.pages]

    def stages(system: str) -> dict:
        return {title_of(book.root / f"nbs/{system}/00_system.py"): within(system)}

    def parts(system: str) -> dict:
        folders = sorted({s.split("/")[2] for s in notebooks if s.startswith(f"nbs/{system}/") and s.count("/") > 2})
        return {f"{title_of(book.root / f'nbs/{system}/00_system.py')}, parts":
                [{folder: within(f"{system}/{folder}")} for folder in folders]}

    core = within("core")
    chapters = [{title_of(book.root / s): [p for p in core if p.startswith(f"nbs/core/{Path(s).name[0]}")]}
                for s in notebooks if re.match(r"nbs/core/\d0_", s)]
    guides = {s: p for s, p in book.pages.items() if s.startswith("nbs/docs/")}
    looked_up = [p for s, p in guides.items() if Path(s).stem in NOT_GUIDES]
    folders = dict.fromkeys(m.rpartition(".")[0] for m in modules)
    api = [{folder or "mammo_nb": [f"api/{m}.md" for m in modules if m.rpartition(".")[0] == folder]}
           for folder in folders]
    tabs = {"Tutorial": [*named("README.md", "nbs/00_start.py"), *map(stages, systems)],
            "How to": [p for p in guides.values() if p not in looked_up] + named("CONTRIBUTING.md"),
            "Reference": [*(["cli.md"] if "cli" in modules else []), *named("nbs/90_cli.py", "nbs/85_python.py"),
                          *looked_up, {"Modules": api}],
            "Explanation": [*named("tests/bench/results/README.md", *(s for s in notebooks if "/7" < s[3:] < "/85")),
                            *([{"Core": chapters}] if chapters else []), *map(parts, systems)]}
    return [{tab: _filled(pages)} for tab, pages in tabs.items() if _filled(pages)]

def _filled(entries: list) -> list:
    "Sections without pages left out."
    kept = []
    for entry in entries:
        if isinstance(entry, dict):
            entry = {title: pages for title, inside in entry.items() if (pages := _filled(inside))}
        if entry:
            kept.append(entry)
    return kept

# %% [markdown]
# ## Build
# The search of Material runs in a worker, which a browser starts for pages of a server only. For pages opened as files
# Material would fetch a replacement from the network. The one below stands in its place: the worker's script runs in a
# hidden frame.

# %%
#| export
_WORKER = """if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.inside = frame.contentWindow
      this.inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}))
      const script = frame.contentDocument.createElement("script")
      this.loaded = new Promise(done => script.onload = done)
      script.src = url
      frame.contentDocument.body.append(script)
    }
    postMessage(data) {
      this.loaded.then(() => this.inside.dispatchEvent(new MessageEvent("message", {data})))
    }
    terminate() {}
  }
}
"""

def render(
    docs: Path,        # Markdown pages
    site: Path,        # gets the HTML
    navigation: list,
):
    "Make HTML of Markdown."
    os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")   # an advertisement of Material
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from pymdownx.slugs import slugify
    write_text(docs / "javascripts/iframe-worker.js", _WORKER)
    logging.getLogger("mkdocs").setLevel(logging.ERROR)   # `broken_links` says more
    config = load_config(
        io.BytesIO(b"{}"), site_name="mammo_nb", docs_dir=str(docs.resolve()), site_dir=str(site.resolve()),
        use_directory_urls=False, nav=navigation, plugins=["search", "offline"],
        theme={"name": "material", "font": False,
               "features": ["navigation.tabs", "navigation.prune", "navigation.top", "search.highlight",
                            "search.suggest", "content.code.copy", "toc.follow"]},
        extra={"generator": False, "polyfills": ["javascripts/iframe-worker.js"]},
        markdown_extensions=["tables", "admonition", "pymdownx.superfences", "pymdownx.highlight",
                             {"toc": {"slugify": slugify(case="lower"), "permalink": True}}])
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    (site / "404.html").unlink()   # of a server

# %% [markdown]
# ## Links
# Every link of every page is followed, its anchor too. A page must not load anything from the network, and must not
# name a folder of this machine.

# %%
#| export
class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.ids = [], set()

    def handle_starttag(self, tag: str, attrs: list):
        own = dict(attrs)
        self.ids |= {own[name] for name in ("id", "name") if own.get(name)}
        wanted = {"a": "href", "link": "href", "img": "src", "script": "src", "iframe": "src"}.get(tag)
        if own.get(wanted):
            self.found.append((tag, own[wanted]))

def broken_links(
    site: Path,
    private: dict[str, str],   # from `private_folders`
) -> tuple[list[str], int]:    # a sentence for each fault, with page and target; number of links
    "Links that lead nowhere, files that a page would load from the network, and folders of this machine."
    read, problems, number = {}, [], 0
    for page in sorted(site.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        parser = _Links()
        parser.feed(text)
        read[page.resolve()] = parser
        problems += [f"{page.relative_to(site)} names the folder {folder}" for folder, word in private.items()
                     if word != folder and f"{folder}/" in text]
    for page, parser in read.items():
        name = page.relative_to(site.resolve())
        for tag, target in dict.fromkeys(parser.found):
            parts, number = urlsplit(target), number + 1
            if parts.scheme or parts.netloc:
                if tag != "a" and parts.scheme != "data":
                    problems.append(f"{name} loads {target[:100]}")
                continue
            path = Path(os.path.normpath(page.parent / unquote(parts.path))) if parts.path else page
            if path.is_dir():
                path = path / "index.html"
            if not path.exists():
                problems.append(f"{name} names {target[:100]}, which does not exist")
            elif path in read and parts.fragment and unquote(parts.fragment) not in read[path].ids:
                problems.append(f"{name} names {target[:100]}, an anchor that does not exist")
    return problems, number

# %% [markdown]
# ## All of it

# %%
#| export
WITHOUT = "*Shown without outputs: {why}.*"

def write_pages(
    book: Book,
    runs: Path,      # folder of all runs
    kept: Path,      # executed notebooks are kept here
    workers: int,
    seconds: float,  # see `execute_all`
) -> str:            # what was done, a line
    "Write all pages as Markdown."
    by_run = executed_by_runs(runs)
    notebooks = [s for s in book.pages if s.endswith(".py")]
    stages = {s for s in notebooks if re.match(r"nbs/(?!core/)\w+/(?!00_)\d\d_", s)}
    for source in notebooks:
        build_one(book.root / source)
    here, failed = execute_all([s for s in notebooks if s not in stages], book.root, kept, workers, seconds)
    for source in notebooks:
        if source in by_run:
            path, run = by_run[source]
            note = f"*As the run `{run}` executed it.*"
        elif source in here:
            path, note = here[source], ""
        else:
            path = (book.root / source).with_suffix(".ipynb")
            why = failed.get(source, "there is no finished run of the recipe demo")
            note = WITHOUT.format(why=why)
        write_notebook(book, path, source, note)
    for source in set(book.pages) - set(notebooks):
        text = (book.root / source).read_text(encoding="utf-8")
        book.write(book.pages[source], book.relinked(text, source))
    for source, error in failed.items():
        if error != LATER:
            print(f"{source} is shown without outputs: {error}")
    ran = len(by_run.keys() & set(notebooks))
    return (f"{len(notebooks)} notebooks: {ran} as runs executed them, {len(here)} executed here, "
            f"{len(notebooks) - ran - len(here)} without outputs")

def build_site(
    root: Path,                     # of the checkout, exported
    folder: Path | None = None,     # gets the site; None: runs/docs
    runs: Path | None = None,       # folder of all runs; None: as the settings say
    workers: int | None = None,     # processes; None: one a core
    seconds: float = SECONDS,       # see `execute_all`
) -> list[Path]:                    # index.html
    "Make the site and check its links; raises SiteError. A site that was there before stays until the check is over."
    root, runs = Path(root).resolve(), Path(runs or read_paths().runs)
    folder, scratch = Path(folder or runs / "docs"), root / "build/docs"
    for name in ("pages", "site"):
        shutil.rmtree(scratch / name, ignore_errors=True)
    book, modules = Book(root, scratch / "pages", source_pages(root)), modules_of(root)
    told = write_pages(book, runs, scratch / "executed", workers or os.cpu_count(), seconds)
    write_modules(book, modules)
    render(book.docs, scratch / "site", navigation(book, modules))
    problems, number = broken_links(scratch / "site", private_folders(root))
    if problems:
        raise SiteError(f"The site has {len(problems)} faults: " + "; ".join(problems[:20]))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.move(scratch / "site", folder)
    print(f"{told}; {len(modules)} modules; {number} links checked")
    return [folder / "index.html"]

# %% [markdown]
# ## What came out
# Pages by place in the site, and a broken link:

# %%
site = Path(tempfile.mkdtemp())
write_text(site / "a.html", '<a href="b.html">B</a> <a href="#no">no</a> <img src="https://x.org/y.png">')
problems, number = broken_links(site, {})
assert number == 3 and len(problems) == 3
print(*problems, sep="\n")
Counter(page.split("/")[0] for page in source_pages(ROOT).values())

# %% [markdown]
# ---
# [← Pages](78_pages.py) · [Results →](80_results.py)

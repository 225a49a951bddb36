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
# # Pages
# > Notebooks, guides and modules as Markdown, from which the documentation is made.
#
# A notebook becomes a page with its pictures beside it, a guide is copied, and each module gets a page with the
# signatures and comments of its public names. A link in a source names another source. On a page it names the page of
# that source. [Site](79_site.py) builds a web site from these pages.

# %%
#| default_exp core.pages

# %%
#| export
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import nbformat

from mammo_nb.core.files import write_text

# %%
#| hide
from base64 import b64encode

import matplotlib.pyplot as plt
import numpy as np

# %% tags=["parameters"]
word = "reticulation"   # of the notebook below

# %% [markdown]
# ## Which file becomes which page

# %%
#| export
TEXTS = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md",
         "tests/bench/results/README.md": "measurements.md"}   # in the checkout -> in the site

def source_pages(
    root: Path,         # of the checkout
) -> dict[str, str]:    # path in the checkout -> path in the site, both with /
    "The pages that are made from files."
    pages = {name: page for name, page in TEXTS.items() if (root / name).is_file()}
    for path in sorted((root / "nbs").rglob("*.py")):
        if ".ipynb_checkpoints" not in path.parts:
            name = path.relative_to(root).as_posix()
            pages[name] = name.removesuffix(".py") + ".md"
    for path in sorted((root / "nbs/docs").glob("*.md")):
        pages[path.relative_to(root).as_posix()] = f"guides/{path.name}"
    return pages

def title_of(
    source: Path,   # a notebook source or a Markdown file
) -> str:
    "The first heading."
    mark = "# # " if source.suffix == ".py" else "# "
    found = re.search(f"^{mark}(.+)$", source.read_text(encoding="utf-8-sig"), re.MULTILINE)
    return found[1].strip() if found else source.stem

def modules_of(
    root: Path,
) -> list[str]:   # such as core.metrics
    "The modules that notebooks export."
    files = sorted((root / "mammo_nb").rglob("*.py"))
    names = [f.relative_to(root / "mammo_nb").with_suffix("").as_posix().replace("/", ".") for f in files]
    return [n for n in names if not n.rpartition(".")[2].startswith("_")]

# %% [markdown]
# ## Links and private paths
# A file that is no page, such as a table of measurements, is copied into the site. A folder has no page, so its link
# becomes plain text. A link to something that does not exist stays, and the check of the site will name it.
#
# Outputs can name folders of the machine. The checkout, the environment, the home and the scratch folder are replaced.

# %%
#| export
_LINK = re.compile(r"(?P<code>```.*?```|`[^`\n]*`)|(?P<head>!?\[(?P<shown>[^\]]*)\]\()(?P<target>[^)\s]+)\)", re.DOTALL)

@dataclass
class Book:
    "The pages of a checkout and the folder that they are written to."
    root: Path              # of the checkout
    docs: Path              # the Markdown files go here
    pages: dict[str, str]   # from `source_pages`

    def relinked(
        self,
        text: str,     # Markdown
        source: str,   # path of its file in the checkout
    ) -> str:
        "The text with the links of the site. Files that it names are copied."
        def moved(link: re.Match) -> str:
            target = link["target"]
            if link["code"] or re.match(r"#|\w+:", target):
                return link[0]
            path, sign, anchor = target.partition("#")
            wanted = os.path.normpath(os.path.join(os.path.dirname(source), path))
            if (self.root / wanted).is_dir():
                return link["shown"]
            if wanted not in self.pages:
                if not (self.root / wanted).is_file():
                    return link[0]
                self._copy(wanted)
            page = self.pages.get(wanted, f"files/{wanted}")
            place = os.path.dirname(self.pages[source])
            return f"{link['head']}{os.path.relpath(page, place or '.')}{sign}{anchor})"
        return _LINK.sub(moved, text)

    def _copy(self, name: str):
        target = self.docs / "files" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / name, target)

    def write(self, page: str, text: str):
        "Write one page without folders of this machine."
        write_text(self.docs / page, without_folders(text, private_folders(self.root)))

def private_folders(
    *checkouts: Path,
) -> dict[str, str]:   # folder -> what stands for it
    "Folders that say something about this machine."
    found = {str(Path(c).resolve()): "." for c in checkouts}
    found |= {sys.prefix: ".venv", str(Path.home()): "~", tempfile.gettempdir(): "/tmp"}
    return {folder: word for folder, word in found.items() if folder.count("/") > 1 or folder == "/root"}

def without_folders(
    text: str,
    folders: dict[str, str],   # from `private_folders`
) -> str:
    "The text with names in place of the folders; the longest folder counts."
    for folder in sorted(folders, key=len, reverse=True):
        name = folders[folder]
        if name == ".":
            text = text.replace(f"{folder}/", "")
        text = re.sub(re.escape(folder) + r"(?![\w.-])", name, text)
    return text

# %%
pages = {"nbs/a.py": "nbs/a.md", "nbs/docs/b.md": "guides/b.md"}
book = Book(Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp()), pages)
(book.root / "nbs/docs").mkdir(parents=True)
write_text(book.root / "nbs/docs/c.csv", "1")
text = "[B](docs/b.md#x) `[B](b.md)` [C](docs/c.csv) [no](gone.md) [D](docs/) [E](https://a.b)"
text = book.relinked(text, "nbs/a.py")
assert text == "[B](../guides/b.md#x) `[B](b.md)` [C](../files/nbs/docs/c.csv) [no](gone.md) D [E](https://a.b)"
assert without_folders("/w/x/y/a.py in /w/x, /w/x2", {"/w/x": "."}) == "y/a.py in ., /w/x2"

# %% [markdown]
# ## A notebook as a page
# Directives of nbdev and the cell with this run's parameters are left out. Of a progress bar its last state is left, as
# in a terminal.

# %%
#| export
_DIRECTIVE = re.compile(r"^#\| .*\n?", re.MULTILINE)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

def _clean(output) -> bool:
    "Mend one output of a cell in place; False if nothing of it is left."
    if output.output_type == "stream":
        lines = _COLOURS.sub("", output.text).split("\n")
        output.text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
        return bool(output.text.strip())
    data = output.get("data", {})
    if "text/html" in data:   # the theme has its own style of tables
        html = re.sub(r"<style.*?</style>\n?", "", data["text/html"], flags=re.DOTALL)
        data["text/html"] = html.replace('<table border="1" class="dataframe">', "<table>")
    if "traceback" in output:
        output.traceback = [_COLOURS.sub("", line) for line in output.traceback]
    return True

def write_notebook(
    book: Book,
    notebook: Path,   # .ipynb, executed or not
    source: str,      # path of its source in the checkout
    note: str,        # Markdown, below the title
):
    "Write a notebook as a page, its pictures beside it."
    from nbconvert import MarkdownExporter
    made = nbformat.v4.reads(notebook.read_text(encoding="utf-8"))   # without a check of its schema
    where = made.metadata.get("papermill", {}).get("parameters", {}).get("run_dir", "")
    cells = [c for c in made.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell in cells:
        cell.metadata = {}   # some tools write what nbconvert refuses
        if cell.cell_type == "markdown":
            cell.source = book.relinked(cell.source, source)
        elif cell.cell_type == "code":
            cell.source = _DIRECTIVE.sub("", cell.source)
            cell.outputs = [o for o in cell.outputs if _clean(o)]
            for data in (o.data for o in cell.outputs if "text/markdown" in o.get("data", {})):
                data["text/markdown"] = book.relinked(data["text/markdown"], source)
    made.cells = [c for c in cells if c.source.strip()]
    if made.cells and note:
        made.cells.insert(1, nbformat.v4.new_markdown_cell(note))
    made.metadata["language_info"] = {"name": "python"}
    page = book.pages[source]
    stem = Path(page).stem
    text, extra = MarkdownExporter().from_notebook_node(made, {"unique_key": stem, "output_files_dir": f"{stem}_files"})
    for name, content in extra.get("outputs", {}).items():
        target = book.docs / Path(page).parent / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    text = text.replace("![png](", "![Output of the cell](")
    book.write(page, without_folders(text, private_folders(Path(where).parents[1]) if where else {}))

# %% [markdown]
# ## A module as a page
# nbdev's `show_doc` prints a signature with the comments of its parameters. A command of the command line has its own
# page, made by typer.

# %%
#| export
def _documented(value, level: int) -> str:
    "Signature and docstring of a function or class."
    from nbdev.showdoc import show_doc
    shown = show_doc(value, title_level=level)._repr_markdown_()
    shown = re.sub(r"=<[\w.]+ object at 0x[0-9a-f]+>", "=...", shown)   # defaults of typer
    return "\n".join(line for line in shown.splitlines() if not line.startswith(("[source]", "---"))).strip()

def api_page(
    module: str,             # such as core.metrics
    notebook: str = "",      # Markdown link to its notebook
) -> str:                    # Markdown
    "What a module exports, with the comments of its parameters."
    loaded = import_module(f"mammo_nb.{module}")
    parts = [f"# {module}", f"`mammo_nb.{module}`: {loaded.__doc__ or ''}", notebook]
    constants = []
    for name in getattr(loaded, "__all__", []):
        value = getattr(loaded, name)
        if not callable(value) or getattr(value, "__module__", "") != loaded.__name__:
            constants.append(f"| `{name}` | `{_short(value)}` |")
            continue
        parts.append(_documented(value, 2))
        if isinstance(value, type):
            parts += [_documented(member, 3) for key, member in vars(value).items()
                      if not key.startswith("_") and callable(member) and getattr(member, "__doc__", None)]
    if constants:
        parts.append("\n".join(["## Constants", "", "| name | value |", "|---|---|", *constants]))
    return "\n\n".join(part for part in parts if part) + "\n"

def _short(value) -> str:
    "A value as it can stand in a cell of a table."
    text = " ".join(repr(value).split()).replace("|", "/").replace("`", "'")
    return re.sub(r" at 0x[0-9a-f]+", "", text if len(text) <= 90 else f"{text[:87]}...")

def cli_page() -> str:   # Markdown
    "All commands with their options."
    import typer
    from typer.cli import get_docs_for_click
    command = typer.main.get_command(import_module("mammo_nb.cli").app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="mammo-nb")
    return text.replace("# `mammo-nb`", "# Commands and options", 1)

def write_modules(
    book: Book,
    modules: list[str],   # from `modules_of`
):
    "Write a page for each module, and one for the command line."
    notebooks = {re.sub(r"/(\d\d_)?", ".", s.removeprefix("nbs/").removesuffix(".py")): p
                 for s, p in book.pages.items()}
    for module in modules:
        page = notebooks.get(module)
        book.write(f"api/{module}.md", api_page(module, f"[The notebook](../{page})" if page else ""))
    if "cli" in modules:
        book.write("cli.md", cli_page())

# %%
print(api_page("core.errors")[:700])

# %% [markdown]
# ## What came out
# A notebook with a picture, a table and a path of this machine, as Markdown:

# %%
figure = Path(tempfile.mkdtemp()) / "figure.png"
plt.imsave(figure, np.zeros((2, 2)))
picture = nbformat.v4.new_output("display_data", {"image/png": b64encode(figure.read_bytes()).decode()})
printed = nbformat.v4.new_output("stream", text=f"10 %\r100 % {book.root}/out.csv\n")
cells = [nbformat.v4.new_markdown_cell(f"# A {word}\n[B](docs/b.md)"),
         nbformat.v4.new_code_cell("#| export\nrun()", outputs=[picture, printed])]
nbformat.write(nbformat.v4.new_notebook(cells=cells), book.root / "a.ipynb")
write_notebook(book, book.root / "a.ipynb", "nbs/a.py", "*As executed.*")
text = (book.docs / "nbs/a.md").read_text()
assert "100 % out.csv" in text and "10 %\r" not in text and "#|" not in text and word in text
assert [p.suffix for p in (book.docs / "nbs/a_files").iterdir()] == [".png"]
print(text)

# %% [markdown]
# ---
# [← Explanations](77_explanations.py) · [Site →](79_site.py)

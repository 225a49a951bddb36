"The rules of the house: numbers, reading order, one folder a system, sizes, lines."
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from mammo_nb.core.stages import modules_of
from mammo_nb.core.systems import find_system, system_names

NBS = ROOT / "nbs"
CORE = sorted((NBS / "core").glob("*.py"))
SYSTEMS = [find_system(name) for name in system_names()]
SOURCES = sorted(p for p in NBS.rglob("*.py") if ".ipynb_checkpoints" not in p.parts)


def module_of(source: Path) -> str | None:
    "The module that a notebook exports."
    found = re.search(r"^#\| default_exp (\S+)$", source.read_text(), re.MULTILINE)
    return found[1] if found else None


def imports(source: Path) -> set[str]:
    "Modules of the package that any cell of a notebook imports, without the package's name."
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mammo_nb."):
            found.add(node.module.removeprefix("mammo_nb."))
            found |= {f"{node.module.removeprefix('mammo_nb.')}.{a.name}" for a in node.names}
    return found


def test_in_core_numbers_are_unique_and_reading_order_is_import_order():
    numbers = [p.name[:2] for p in CORE]
    assert all(re.fullmatch(r"[1-8]\d_[a-z_]+\.py", p.name) for p in CORE) and len(set(numbers)) == len(numbers)
    place = {module_of(p): p.name for p in CORE if module_of(p)}
    for source in CORE:
        for name in imports(source) & set(place):
            assert place[name] < source.name, f"{source.name} imports {place[name]}, which comes later"


def test_each_chapter_has_a_page_that_lists_its_notebooks():
    for chapter in "12345678":
        page, = (NBS / "core").glob(f"{chapter}0_*.py")
        assert module_of(page) is None
        for source in (NBS / "core").glob(f"{chapter}[1-9]_*.py"):
            assert source.stem in page.read_text(), f"{page.name} does not name {source.stem}"


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: s.name)
def test_in_a_system_a_number_is_a_stage(system):
    numbered = sorted(p.stem for p in (NBS / system.name).glob("[0-9][0-9]_*.py"))
    own = [s.name for s in system.stages if s.home == system.name]
    assert numbered == ["00_system", *(f"{n:02}_{name}" for n, name in enumerate(own, start=1))]
    for stage in system.stages:
        assert stage.source(ROOT).is_file()
        assert module_of(stage.source(ROOT)) == f"{stage.home}.{stage.name}"


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: s.name)
def test_libraries_of_a_system_stand_in_folders_without_numbers(system):
    for source in (NBS / system.name).rglob("*.py"):
        below = source.relative_to(NBS / system.name)
        if len(below.parts) > 1:
            assert re.fullmatch(r"[a-z_]+/[a-z_]+\.py", below.as_posix()), below


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: s.name)
def test_a_stage_imports_only_what_lies_before_it(system):
    order = [s.name for s in system.stages]
    for stage in (s for s in system.stages if s.home == system.name):
        reached = {m.relative_to(ROOT / "mammo_nb").with_suffix("").as_posix()
                   for m in modules_of(ROOT / "mammo_nb" / system.name / f"{stage.name}.py", ROOT)}
        later = [n for n in order[order.index(stage.name) + 1:] if f"{system.name}/{n}" in reached]
        assert not later, f"{stage.name} imports {later}"


def test_core_imports_no_system_and_a_system_no_other():
    for source in CORE:
        assert not {name.split(".")[0] for name in imports(source)} & set(system_names()), source.name
    for name in set(system_names()) - {"baseline"}:  # baseline is a second model on the mammography data
        others = set(system_names()) - {name}
        for source in (NBS / name).rglob("*.py"):
            assert not {n.split(".")[0] for n in imports(source)} & others, source


def test_notebooks_and_modules_mirror_each_other():
    for source in SOURCES:
        module = module_of(source)
        if module == "__init__":  # the functions of `import mammo_nb`
            assert source == NBS / "85_python.py"
        elif module:
            folder = source.parent.relative_to(NBS).as_posix().replace("/", ".").strip(".")
            word = re.sub(r"^\d\d_", "", source.stem)
            assert module == f"{folder}.{word}".lstrip("."), source


def test_modules_are_small_and_lines_short():
    for module in (ROOT / "mammo_nb").rglob("*.py"):
        if module.name != "_modidx.py":
            assert len(module.read_text().splitlines()) <= 300, module
    texts = [*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "kaggle").rglob("*.py"), ROOT / "Makefile",
             ROOT / "README.md", ROOT / "pyproject.toml", ROOT / "settings.ini"]
    long = [f"{p.relative_to(ROOT)}:{n}" for p in texts for n, line in enumerate(p.read_text().splitlines(), start=1)
            if len(line) > 120]
    assert long == []


def test_text_in_figures_can_be_read():
    "A figure is shown at 100 pixels an inch, where 8 points are 11 pixels."
    small = [(source.name, size) for source in SOURCES for size in re.findall(r"fontsize=([\d.]+)", source.read_text())
             if float(size) < 8]
    assert small == []


def test_plots_count_epochs_from_one_everywhere():
    "`plot_epochs` draws them; another plot of the column `epoch` has to add 1 itself."
    drawn = [(source.name, line) for source in SOURCES for line in source.read_text().splitlines()
             if re.search(r"\bplot\(.*[\"']epoch[\"']\](?! \+ 1)", line)]
    assert drawn == []


def title_of(source: Path) -> str:
    "The heading of a notebook."
    return re.search(r"^# # (.+)$", source.read_text(), re.MULTILINE)[1]


def footer_of(source: Path) -> str:
    "The last line of a notebook: links to the one before and the one after; of a library, to the page of its system."
    if not re.match(r"\d\d_", source.name):
        page = NBS / source.relative_to(NBS).parts[0] / "00_system.py"
        up = "../" * (len(source.relative_to(NBS).parts) - 2)
        return f"# [↑ {title_of(page)}]({up}{page.name})"
    row = sorted(source.parent.glob("[0-9][0-9]_*.py"))
    at = row.index(source)
    links = [f"[← {title_of(row[at - 1])}]({row[at - 1].name})"] if at else []
    links += [f"[{title_of(row[at + 1])} →]({row[at + 1].name})"] if at + 1 < len(row) else []
    if source.parent != NBS and not at:
        links.insert(0, f"[← {title_of(NBS / '00_start.py')}](../00_start.py)")
    return "# " + " · ".join(links)


def test_headers_name_the_kernel_as_jupyterlab_writes_it():
    assert [p.name for p in SOURCES if "#     display_name: Python 3 (ipykernel)\n" not in p.read_text()] == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_a_notebook_ends_with_links_to_its_neighbours(source):
    expected = f"# %% [markdown]\n# ---\n{footer_of(source)}"
    assert source.read_text().rstrip().endswith(expected), f"{source.name} ends without:\n{expected}"


def test_every_name_of_the_package_is_known():
    "A notebook may import a name in a cell that is not exported, and the module then lacks it."
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F821",
                           ROOT / "mammo_nb"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

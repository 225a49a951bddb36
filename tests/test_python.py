"`import mammo_nb`: quick to load; a folder becomes a table, a file a picture with its header."
import ast
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from test_predict import scans, weights  # noqa: F401  (fixtures)

import mammo_nb
from mammo_nb.core.headers import NotDicom


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, mammo_nb; print(sorted({'torch', 'pandas', 'numpy', 'cv2', 'pydicom'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def taken_from_the_standard_library() -> set[tuple[str, str]]:
    "Module and name of all that the package imports from the standard library or reads as `module.name`."
    taken = set()
    for path in (ROOT / "mammo_nb").rglob("*.py"):
        tree = ast.parse(path.read_text())
        modules = {}   # name in the file -> module
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {a.asname or a.name: a.name for a in node.names if a.asname or "." not in a.name}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                taken |= {(node.module, a.name) for a in node.names}
        taken |= {(modules[node.value.id], node.attr) for node in ast.walk(tree) if isinstance(node, ast.Attribute)
                  and isinstance(node.value, ast.Name) and node.value.id in modules}
    return {(module, name) for module, name in taken if module.split(".")[0] in sys.stdlib_module_names}


def test_the_oldest_python_has_all_that_is_taken_from_the_standard_library():
    oldest = "python3.10"   # of `requires-python`
    if not shutil.which(oldest) or subprocess.run([oldest, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"needs {oldest}")
    taken = sorted(taken_from_the_standard_library())
    assert ("asyncio", "wait_for") in taken
    code = """import importlib.util, json, sys
for module, name in json.load(sys.stdin):
    found = importlib.import_module(module)
    if not hasattr(found, name) and not (hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}")):
        print(module, name)"""
    done = subprocess.run([oldest, "-c", code], input=json.dumps(taken), capture_output=True, text=True, check=True)
    assert done.stdout == ""


@pytest.mark.parametrize("module, absent", [
    ("mammo_nb.mammo.tools.predict", "sklearn timm torchvision"), ("mammo_nb.mammo.submit", "sklearn timm torchvision"),
    ("mammo_nb.core.reports", "torch")])
def test_a_module_loads_no_library_that_it_may_not_need(module, absent):
    "Each of them takes a second or more to load, in each process that only predicts or writes a page."
    code = f"import sys, {module}; print(sorted(set({absent.split()}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_predict_returns_the_table_and_keeps_nothing_unless_asked(scans, weights, tmp_path):  # noqa: F811
    table = mammo_nb.predict(str(scans / "train_images"), weights=str(weights), workers=1)
    truth = pd.read_csv(scans / "train.csv", dtype=str)
    assert set(table["image_id"]) == set(truth["image_id"]) and table["probability"].between(0, 1).all()
    assert set(tmp_path.iterdir()) == {scans}
    again = mammo_nb.predict(scans / "train_images", weights, output=tmp_path / "out", workers=1)
    assert again["probability"].tolist() == table["probability"].tolist()
    assert (tmp_path / "out/per_breast.csv").is_file()


def test_read_gives_stored_values_and_the_header(scans, tmp_path):  # noqa: F811
    truth = pd.read_csv(scans / "train.csv", dtype=str).iloc[0]
    image = mammo_nb.read(str(scans / f"train_images/{truth.patient_id}/{truth.image_id}.dcm"))
    assert image.pixels.shape == (320, 256) and image.pixels.dtype == np.uint16
    assert (image.header.laterality, image.header.view) == (truth.laterality, truth["view"])
    (tmp_path / "note.dcm").write_text("no scan")
    with pytest.raises(NotDicom, match="note.dcm"):
        mammo_nb.read(tmp_path / "note.dcm")

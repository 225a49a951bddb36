"core/settings: settings.ini, and environment variables that override it."
import pytest
from conftest import ROOT

from mammo_nb.core.settings import SettingsError, find_settings, read_paths


def test_paths_of_the_checkout_start_at_its_root(monkeypatch):
    monkeypatch.chdir(ROOT / "nbs" / "mammo")
    paths = read_paths(ROOT / "runs" / "x")
    assert paths.raw == ROOT / "datasets" / "raw" and paths.weights == ROOT / "runs" / "x" / "weights"


def test_an_environment_variable_overrides_the_file_and_may_name_the_run(monkeypatch, tmp_path):
    monkeypatch.setenv("MAMMO_NB_PROCESSED", str(tmp_path / "big") + "{run}")
    assert read_paths("/runs/a", ROOT / "settings.ini").processed == tmp_path / "big/runs/a"


@pytest.mark.parametrize("text, message", [
    ("[paths]\nraws = x\n", "raws unknown"),
    ("[paths]\nraw = x\n", "missing"),
    ("", "missing"),
])
def test_a_misspelt_or_missing_name_is_an_error(tmp_path, text, message):
    (tmp_path / "settings.ini").write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_paths(settings=tmp_path / "settings.ini")


def test_the_error_of_a_missing_file_names_the_folder(tmp_path):
    with pytest.raises(SettingsError, match=str(tmp_path)):
        find_settings(tmp_path)

"settings.ini and the environment above it."
import pytest
from conftest import ROOT

from mammo_nb.core.settings import SettingsError, find_settings, read_paths


def test_paths_of_the_checkout_hang_from_it(monkeypatch):
    monkeypatch.chdir(ROOT / "nbs" / "mammo")
    paths = read_paths(ROOT / "runs" / "x")
    assert paths.raw == ROOT / "datasets" / "raw" and paths.final_models == ROOT / "runs" / "x" / "weights"


def test_environment_wins_and_may_name_the_run(monkeypatch, tmp_path):
    monkeypatch.setenv("MAMMO_NB_PROCESSED", str(tmp_path / "big") + "{run}")
    assert read_paths("/runs/a", ROOT / "settings.ini").processed == tmp_path / "big/runs/a"


@pytest.mark.parametrize("text, told", [("[paths]\nraws = x\n", "raws unknown"), ("[paths]\nraw = x\n", "missing"), ("", "missing")])
def test_a_misspelt_or_missing_name_is_told(tmp_path, text, told):
    (tmp_path / "settings.ini").write_text(text)
    with pytest.raises(SettingsError, match=told):
        read_paths(settings=tmp_path / "settings.ini")


def test_no_settings_says_where_it_looked(tmp_path):
    with pytest.raises(SettingsError, match=str(tmp_path)):
        find_settings(tmp_path)

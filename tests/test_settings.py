"core/settings: settings.ini, and environment variables that override it."
import pytest
from conftest import ROOT

from mammo_nb.core.settings import NoDataset, SettingsError, find_dataset, find_settings, read_paths


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


def test_a_data_set_is_found_in_raw_then_in_samples_then_in_its_sub_folders(monkeypatch, tmp_path):
    for name in ("raw", "samples"):
        monkeypatch.setenv(f"MAMMO_NB_{name.upper()}", str(tmp_path / name))
    for place in ("samples/ct/heads", "samples/mammo/breasts", "samples/breasts", "samples/zoo/breasts"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "samples/ct/notes").write_text("a file is no data set")
    settings = ROOT / "settings.ini"
    assert find_dataset("heads", settings) == "samples/ct/heads"
    assert find_dataset("breasts", settings) == "samples/breasts"
    (tmp_path / "raw/breasts").mkdir(parents=True)
    assert find_dataset("breasts", settings) == "raw/breasts"
    with pytest.raises(NoDataset, match="No folder notes in .*raw .* or in .*samples"):
        find_dataset("notes", settings)
    for name in ("", ".", "..", "../raw", "he*ds", "a\\b"):
        with pytest.raises(NoDataset, match="no name of a data set"):
            find_dataset(name, settings)

"The contract of a stage, and where a run keeps its files."
import hashlib
from dataclasses import dataclass, replace

import pytest
from conftest import ROOT

from mammo_nb.core.files import sha256, write_json
from mammo_nb.core.recipes import Recipe, RecipeError, bounded
from mammo_nb.core.runs import Run, StageError, locate, read_manifest
from mammo_nb.core.systems import DeclarationError, Mode, Stage, System


@dataclass(frozen=True)
class Count:
    "Numbers of a stage."
    seed: int = bounded(1, low=0)


SYSTEM = System("toy", "Toy",
                (Stage("draw", writes=("pictures/", "a.csv")),
                 Stage("count", Count, reads=("pictures/", "a.csv"), writes=("counts_*.csv",))),
                {"full": Mode("all", ("draw", "count")), "trained": Mode("count", ("count",), weights=("net.onnx",))},
                {"demo": Recipe("all"), "real": Recipe("nothing is drawn", skips=("draw",))}, {"counts_1.csv": "rows"})


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def draw(run):
    with run.stage("draw"):
        (run.path("pictures/")).mkdir()
        (run.path("pictures/") / "1.png").write_text("x")
        run.path("a.csv").write_text("1")


def test_missing_input_stops_before_anything_runs(tmp_path):
    run = Run.create(tmp_path, SYSTEM)
    with pytest.raises(StageError, match="count reads pictures/, a.csv"):
        with run.stage("count"):
            pytest.fail("ran")


def test_a_missing_output_is_an_error_and_leaves_no_record(tmp_path):
    run = Run.create(tmp_path, SYSTEM)
    with pytest.raises(StageError, match="without writing pictures/, a.csv"):
        with run.stage("draw"):
            run.path("pictures/").mkdir()  # an empty folder is no output
    assert read_manifest(tmp_path) == {}


def test_a_stage_that_fails_leaves_no_record_and_no_lock(tmp_path):
    run = Run.create(tmp_path, SYSTEM)
    with pytest.raises(ZeroDivisionError):
        with run.stage("draw"):
            1 / 0
    draw(run)  # would wait for ever behind a lock that was kept
    assert list(read_manifest(tmp_path)["stages"]) == ["draw"]


def test_manifest_holds_digests_of_what_was_read_and_written(tmp_path):
    run = Run.create(tmp_path, SYSTEM, overrides={"count.seed": 7})
    draw(run)
    with run.stage("count") as results:
        run.path("counts_1.csv").write_text("2")
        run.path("counts_2.csv").write_text("3")
        results["dots"] = 5
    entry = read_manifest(tmp_path)["stages"]["count"]
    one = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"  # sha256 of "1"
    listing = hashlib.sha256(f"1.png {sha256(tmp_path / 'pictures' / '1.png')}\n".encode()).hexdigest()
    assert entry["reads"] == {"pictures/": f"1 files, sha256 {listing}", "a.csv": one}
    assert entry["writes"] == {f"counts_{n}.csv": sha256(tmp_path / f"counts_{n}.csv") for n in (1, 2)}
    assert entry["parameters"] == {"seed": 7} and entry["results"] == {"dots": 5}
    assert read_manifest(tmp_path)["environment"]["packages"]["torch"] and run.recorded("count") == Count(7)


def test_files_and_folders_are_located_by_one_rule(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMMO_NB_CHECKPOINTS", str(tmp_path / "elsewhere"))
    for name in ("checkpoints", "checkpoints/", "checkpoints/x.csv"):
        assert locate(tmp_path / "r", name) == tmp_path / "elsewhere" / name.partition("/")[2]
    assert locate(tmp_path / "r", "oof.csv") == tmp_path / "r/oof.csv"
    assert locate(tmp_path / "r", str(tmp_path / "w/net.onnx")) == tmp_path / "w/net.onnx"


def test_an_opened_run_is_the_one_that_was_created(tmp_path, monkeypatch):
    (tmp_path / "w").mkdir()
    (tmp_path / "w/net.onnx").write_text("")
    monkeypatch.setattr("mammo_nb.core.runs.find_system", {"toy": SYSTEM}.get)
    run = Run.create(tmp_path / "r", SYSTEM, "real", "trained", tmp_path / "w", {"count.seed": 3})
    again = Run.open(run.folder)
    assert again == run and again.section("count") == Count(3) and again.weights == tmp_path / "w"
    assert Run.open(run.folder, {"count.seed": 4}).section("count") == Count(4)
    with pytest.raises(StageError, match="holds no run"):
        Run.open(tmp_path)


def test_a_recipe_skips_stages_and_a_mode_needs_its_weights(tmp_path):
    assert [s.name for s in Run.create(tmp_path, SYSTEM, "real").plan] == ["count"]
    with pytest.raises(StageError, match="Mode trained needs net.onnx, which .*w does not have"):
        Run.create(tmp_path, SYSTEM, mode="trained", weights=tmp_path / "w")


def test_parameters_of_another_version_are_an_error_and_no_default(tmp_path):
    run = Run.create(tmp_path, SYSTEM)
    write_json(tmp_path / "manifest.json", {"stages": {"count": {"parameters": {"seed": 1, "sead": 2}, "reads": {},
                                                                    "writes": {}}}})
    with pytest.raises(RecipeError, match="Count has no sead"):
        run.recorded("count")


@pytest.mark.parametrize("changes, message", [
    ({"modes": {"full": Mode("x", ("drow",))}, "recipes": {}}, "mode full names drow"),
    ({"stages": SYSTEM.stages[1:], "modes": {}, "recipes": {}}, "count reads pictures/, which no stage before"),
    ({"stages": SYSTEM.stages + SYSTEM.stages[:1]}, "declares a stage twice"),
    ({"recipes": {"demo": Recipe("x", mode="half")}}, "has mode 'half'"),
])
def test_a_declaration_that_contradicts_itself_is_an_error(changes, message):
    with pytest.raises(DeclarationError, match=message):
        replace(SYSTEM, **changes)


def test_a_section_outside_its_range_is_an_error_in_a_declaration_too():
    with pytest.raises(RecipeError, match="demo.count.seed must be at least 0, got -1"):
        replace(SYSTEM, recipes={"demo": Recipe("x", Count(seed=-1))})


def test_a_folder_belongs_to_one_recipe(tmp_path):
    Run.create(tmp_path, SYSTEM, "demo")
    with pytest.raises(StageError, match="is a run of toy demo, not of toy real"):
        Run.create(tmp_path, SYSTEM, "real")
    assert Run.create(tmp_path, SYSTEM, "demo", overrides={"count.seed": 2}).section("count") == Count(2)


@pytest.mark.parametrize("name, text", [("run.json", ""), ("run.json", "["), ("run.json", "[]"), ("run.json", "{}"),
                                        ("manifest.json", "{"), ("manifest.json", "[]")])
def test_a_damaged_file_of_a_run_is_named_with_the_remedy(tmp_path, monkeypatch, name, text):
    monkeypatch.setattr("mammo_nb.core.runs.find_system", {"toy": SYSTEM}.get)
    Run.create(tmp_path, SYSTEM)
    (tmp_path / name).write_text(text)
    with pytest.raises(StageError, match=f"{name} (is damaged|has no mode)|starts the run again|stages run again"):
        Run.open(tmp_path).recorded("count")


def test_weights_for_a_mode_that_uses_none_are_an_error(tmp_path):
    with pytest.raises(StageError, match="Mode full uses no trained weights.*trained"):
        Run.create(tmp_path, SYSTEM, weights=tmp_path)


def test_a_text_in_the_place_of_a_tuple_is_an_error():
    with pytest.raises(DeclarationError, match="reads must be a tuple"):
        Stage("count", reads="a.csv")
    with pytest.raises(DeclarationError, match="skips drow, which is no stage"):
        replace(SYSTEM, recipes={"demo": Recipe("x", skips=("drow",))})

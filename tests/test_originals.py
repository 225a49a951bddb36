"The page Where we leave the originals: a row for each switch, no row for a switch that is not there, whole rows."
import re
import runpy
from dataclasses import fields
from functools import reduce
from importlib import import_module

import pytest
from conftest import ROOT

from mammo_nb.core.systems import find_system, system_names

PAGE = runpy.run_path(str(ROOT / "nbs/70_originals.py"))
ROWS = {name: PAGE[name.upper()] for name in system_names() if name.upper() in PAGE}


def switches(system: str) -> set[str]:
    "The names in the last column of a system's rows."
    return {name for row in ROWS.get(system, ()) for name in re.findall(r"`([^`]+)`", row[-1])}


def stage_switches(system: str) -> set[str]:
    "`stage.faithful` for each section of a recipe that has such a field."
    sections = ((stage.name, stage.section) for stage in find_system(system).stages if stage.section)
    return {f"{name}.faithful" for name, section in sections if "faithful" in {f.name for f in fields(section)}}


def command_switches(system: str) -> set[str]:
    "`mammo-nb command --faithful` for each command of a system that has such an option."
    module = find_system(system).commands
    if not module:
        return set()
    commands = import_module(f"mammo_nb.{system}.{module}").app.registered_commands
    taking = [c for c in commands if "faithful" in c.callback.__code__.co_varnames[:c.callback.__code__.co_argcount]]
    return {f"mammo-nb {c.name or c.callback.__name__} --faithful" for c in taking}


@pytest.mark.parametrize("system", system_names())
def test_every_faithful_switch_has_a_row(system):
    missing = (stage_switches(system) | command_switches(system)) - switches(system)
    assert not missing, "nbs/70_originals.py has no row for it"


@pytest.mark.parametrize("system", ROWS)
def test_every_switch_of_a_row_is_there(system):
    there = find_system(system)
    for name in switches(system):
        if name.startswith("mammo-nb "):
            assert name in command_switches(system)
            continue
        stage, *path = name.split(".")
        section = there.recipe("demo").section(there.stage(stage).section)
        assert reduce(getattr, path, section) is not None


def test_the_switches_of_the_four_systems_are_found():
    assert {"mammo", "baseline", "ich", "trauma"} <= set(ROWS)
    assert stage_switches("mammo") >= {"crops.faithful", "detector.faithful"}
    assert command_switches("mammo") == {"mammo-nb crops --faithful"}
    assert stage_switches("baseline") >= {"train.faithful"} and stage_switches("ich") and stage_switches("trauma")


@pytest.mark.parametrize("system", ROWS)
def test_rows_are_whole(system):
    for row in ROWS[system]:
        assert len(row) == len(PAGE["HEAD"]) == 6
        assert all(isinstance(cell, str) and cell.strip() and "|" not in cell for cell in row), row[0]
    names = [row[0] for row in ROWS[system]]
    assert len(set(names)) == len(names)
    assert PAGE["table"](ROWS[system]).data.count("\n") == len(names) + 1

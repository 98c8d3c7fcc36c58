from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import defenses
from privguard.environments import ENVIRONMENTS
from privguard.grids import chosen_grids, default_grids, parse_grid
from privguard.spec import RECIPE_VERSION, CellSpec, DefenseGrid, SweepSpec, format_level
from tests.privguard.tiny import tiny_cell


def sweep(**changes: object) -> SweepSpec:
    fields: dict[str, object] = {
        "env": "hopper",
        "defenses": (
            DefenseGrid(template="gaussian={level}", levels=(0.1, 1.0)),
            DefenseGrid(template="none", levels=()),
        ),
        "attacks": ("rgia",),
        "seeds": 2,
    }
    return SweepSpec.model_validate(fields | changes)


def test_specifications_survive_json() -> None:
    assert SweepSpec.model_validate_json(sweep().model_dump_json()) == sweep()
    cell = tiny_cell("hopper", "gaussian={level}", 0.1)
    assert CellSpec.model_validate_json(cell.model_dump_json()) == cell


def test_cells_come_seed_by_seed_with_the_control_first() -> None:
    cells = sweep().cells()
    assert [(cell.seed, cell.defense_text) for cell in cells] == [
        (seed, text) for seed in (0, 1) for text in ("none", "gaussian=0.1", "gaussian=1")
    ]


def test_the_key_is_the_computation() -> None:
    cell = tiny_cell("hopper", "gaussian={level}", 0.1)
    assert cell.key == tiny_cell("hopper", "gaussian={level}", 0.1).key
    keys = {c.key for c in sweep().cells()}
    assert len(keys) == 6
    assert {c.key for c in sweep(attacks=("rgia", "dlg")).cells()} == keys
    assert not {c.key for c in sweep(clients=5).cells()} & keys


def test_settings_are_part_of_the_key_only_where_they_change_something() -> None:
    assert not {c.key for c in sweep(local_steps=3).cells()} & {c.key for c in sweep().cells()}
    for cell in (tiny_cell(), tiny_cell("hopper", "gaussian={level}", 0.1)):
        local = {name for name in type(cell.agent).model_fields if name.startswith("local_")}
        without_them = cell.model_dump_json(exclude={"agent": local | {"max_gradient_norm"}})
        text = f"{RECIPE_VERSION}:{without_them}"
        assert cell.key == hashlib.sha256(text.encode()).hexdigest()[:16]
        rate = "local_learning_rate" if cell.env == "frozenlake" else "local_actor_learning_rate"
        keys = {
            cell.model_copy(
                update={"agent": cell.agent.model_copy(update={"local_steps": steps, rate: value})}
            ).key
            for steps in (1, 2)
            for value in (0.1, 0.2)
        }
        assert len(keys) == 3
        assert cell.key in keys
        limited = cell.agent.model_copy(update={"max_gradient_norm": 10.0})
        assert cell.model_copy(update={"agent": limited}).key != cell.key


def test_unknown_fields_and_empty_grids_are_refused() -> None:
    with pytest.raises(ValidationError):
        sweep(speed=11)
    with pytest.raises(ValidationError):
        sweep(defenses=())


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_levels_read_back_as_they_were(level: float) -> None:
    assert float(format_level(level)) == level


@pytest.mark.parametrize(
    ("text", "template", "levels"),
    [
        ("gaussian=0.1,1e-3", "gaussian={level}", (0.1, 1e-3)),
        ("dp-sgd=0.1,0.3@clip=0.5", "dp-sgd={level}@clip=0.5", (0.1, 0.3)),
        ("clip=1+gaussian=0.1,0.2", "clip=1+gaussian={level}", (0.1, 0.2)),
        ("clip=1,2+gaussian=0.1", "clip={level}+gaussian=0.1", (1.0, 2.0)),
        ("clip=1+quantize=8", "clip=1+quantize={level}", (8,)),
        ("gaussian=0.5+secagg", "gaussian={level}+secagg", (0.5,)),
        ("quantize=8,8,4", "quantize={level}", (8, 4)),
    ],
)
def test_a_grid_is_read_from_text(text: str, template: str, levels: tuple[float, ...]) -> None:
    grid = parse_grid(text, clients=4)
    assert (grid.template, grid.levels) == (template, levels)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gausian=1", "gaussian"),
        ("gaussian=-1", "variance"),
        ("gaussian=nan", "finite"),
        ("gaussian=", "finite"),
        ("quantize=2.5", "whole number"),
        ("topk=1.5", "fraction"),
        ("clip=1,2+gaussian=1,2", "one stage"),
        ("none+clip=1", "none"),
    ],
)
def test_a_wrong_grid_is_one_line(text: str, says: str) -> None:
    with pytest.raises(defenses.DefenseError, match=says) as caught:
        parse_grid(text, clients=4)
    assert "\n" not in str(caught.value)


def default_names() -> set[str]:
    return {name for name, i in defenses.available_defenses().items() if i.in_default_sweep}


def test_the_default_sweep_visits_one_defence_of_a_kind_and_the_control_comes_first() -> None:
    grids = default_grids(clients=4)
    assert grids[0].template == "none"
    names = {grid.template.split("=")[0] for grid in grids[1:]}
    assert names == default_names()
    assert {"gaussian", "dp-sgd", "clip", "quantize", "secagg"} <= names
    assert all(level <= 3 for g in default_grids(3) if "secagg" in g.template for level in g.levels)


def test_defences_of_single_samples_are_no_default_with_local_steps() -> None:
    names = {grid.template.split("=")[0] for grid in default_grids(clients=4, local_steps=2)}
    assert names == default_names() - {"dp-sgd"} | {"none"}


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_what_bare_names_stand_for_is_a_grid_of_that_defence(env: str) -> None:
    for observation in ("default", "ram"):
        own = ENVIRONMENTS[env].sweep_grids(observation)
        for name, text in own.items():
            grid = parse_grid(text, clients=4)
            assert grid.template.startswith(f"{name}={{level}}")
            assert list(grid.levels) == sorted(grid.levels)
            assert len(grid.levels) > 2


def test_the_default_sweep_visits_the_levels_that_suit_the_environment() -> None:
    usual = {grid.template: grid.levels for grid in default_grids(clients=4)}
    ant = {grid.template: grid.levels for grid in default_grids(4, own=grids_of("ant"))}
    assert ant.pop("dp-sgd={level}@clip=1000") == usual.pop("dp-sgd={level}")[:-1]
    assert ant == usual


def test_frames_have_their_own_levels_of_noise() -> None:
    dense = {grid.template: grid.levels for grid in default_grids(clients=4)}
    frames = {grid.template: grid.levels for grid in default_grids(4, own=grids_of("pong"))}
    assert dense.keys() == frames.keys()
    noisy = {"gaussian={level}", "dp-sgd={level}"}
    assert {name for name in dense if dense[name] != frames[name]} == noisy
    assert all(min(frames[name]) < min(dense[name]) for name in noisy)
    assert not ENVIRONMENTS["pong"].sweep_grids("ram")


def test_a_bare_name_stands_for_the_environments_grid_and_levels_for_themselves() -> None:
    own = grids_of("carracing")
    (_, bare, given) = chosen_grids(["dp-sgd", "dp-sgd=0.1"], 4, own)
    assert bare == parse_grid(own["dp-sgd"], 4)
    assert (given.template, given.levels) == ("dp-sgd={level}", (0.1,))


def grids_of(env: str) -> Mapping[str, str]:
    return ENVIRONMENTS[env].sweep_grids("default")


def test_the_control_is_always_there() -> None:
    assert [g.template for g in chosen_grids(["clip=1"], 4)] == ["none", "clip={level}"]

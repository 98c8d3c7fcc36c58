"""Refinement of a sweep: what is added, and that a real one closes its bracket and resumes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from privguard.command_line.next_run import next_run, sweep_command_line
from privguard.command_line.options import make_spec
from privguard.executors import OnEvent, Task, compute_task
from privguard.grids import chosen_grids
from privguard.records import AttackRecord, CellRecord
from privguard.refinement import (
    Refinement,
    affordable,
    coarse,
    extended,
    planned,
    refine,
    with_earlier_refinement,
)
from privguard.reporting.break_points import break_points
from privguard.reporting.frontier import frontier_rows
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.limits import Limits
from privguard.reporting.recommendation import recommend
from privguard.spec import DefenseGrid, SweepSpec
from privguard.store import Store
from privguard.sweep import compute, selected_records
from tests.reporting.record_factory import attack, cell

REFINED = DefenseGrid(template="gaussian={level}", levels=(0.5,), seeds=4)


def _spec(*defenses: str, seeds: int = 2, **changes: object) -> SweepSpec:
    return SweepSpec(
        env="ant",
        defenses=tuple(chosen_grids(defenses, clients=4)),
        attacks=("analytic", "map"),
        seeds=seeds,
        **changes,
    )


def _rows(
    levels: dict[float, tuple[float, float]], *, seeds: int = 3, spread: float = 0.002
) -> list[FrontierRow]:
    cells: list[CellRecord] = []
    attacks: list[AttackRecord] = []
    for seed in range(seeds):
        none = cell(seed=seed)
        cells.append(none)
        attacks.append(attack(none, leakage=0.99, spread=0.01))
        for level, (leaked, kept) in levels.items():
            here = cell(
                "gaussian", level, seed, kept=kept, level_name="variance", private_end="high"
            )
            cells.append(here)
            attacks.append(attack(here, leakage=leaked, spread=spread))
    return frontier_rows(cells, attacks)


def test_refined_levels_join_the_grid_with_their_controls() -> None:
    spec = _spec("gaussian=0.1,1")
    larger = extended(spec, [REFINED])
    new = [(c.defense_text, c.seed) for c in larger.cells() if c not in spec.cells()]
    assert sorted(new) == [
        *((f"gaussian={0.5}", seed) for seed in range(4)),
        ("none", 2),
        ("none", 3),
    ]
    assert coarse(larger) == spec
    # The same level again, with fewer seeds, changes nothing.
    assert extended(larger, [REFINED.model_copy(update={"seeds": 2})]) == larger
    assert SweepSpec.model_validate_json(larger.model_dump_json()) == larger
    assert len({c.key for c in larger.cells()}) == len(larger.cells())


def test_the_plain_sweep_keeps_what_a_refinement_of_the_same_cells_added() -> None:
    spec = _spec("gaussian=0.1,1", "clip")
    refined = extended(spec, [REFINED])
    assert with_earlier_refinement(spec, refined) == refined
    assert with_earlier_refinement(spec, None) == spec
    other = _spec("gaussian=0.1,1", budget="smoke")
    assert with_earlier_refinement(other, refined) == other
    narrower = _spec("clip")
    kept = with_earlier_refinement(narrower, refined)
    assert all("gaussian" not in grid.template for grid in kept.defenses)


def test_both_break_points_are_bisected_at_once() -> None:
    rows = _rows({0.1: (0.6, 1.1), 1.0: (0.3, 1.1), 10.0: (0.01, 1.09), 100.0: (0.0, 0.2)})
    steps = planned(_spec("gaussian=0.1,1,10,100", seeds=3), rows, Refinement(Limits()))
    assert [(step.grid.levels, step.grid.seeds) for step in steps] == [((3.2,), 3), ((32.0,), 3)]
    assert "leakage breaks between 1 and 10" in steps[0].text


def test_what_the_sweep_holds_already_is_not_asked_for_again() -> None:
    rows = _rows({1.0: (0.3, 1.1), 10.0: (0.01, 1.09)})
    spec = _spec("gaussian=1,10", seeds=3)
    (leakage, *_) = planned(spec, rows, Refinement(Limits()))
    # Its cells failed: the rows are as before, and asking again would go on for ever.
    left = planned(extended(spec, [leakage.grid]), rows, Refinement(Limits()))
    assert leakage.grid not in [step.grid for step in left]


def test_cells_are_bounded() -> None:
    rows = _rows({1.0: (0.3, 1.1), 10.0: (0.01, 1.09), 100.0: (0.0, 0.2)})
    spec = _spec("gaussian=1,10,100", seeds=3)
    wanted = planned(spec, rows, Refinement(Limits()))
    assert len(wanted) == 2
    chosen, larger = affordable(spec, wanted, max_cells=5)
    assert chosen == wanted[:1]
    assert len(larger.cells()) == len(spec.cells()) + 3
    assert affordable(spec, wanted, max_cells=2) == ([], spec)


def test_a_tentative_choice_gets_seeds_once_the_break_points_are_settled() -> None:
    levels = {1.0: (0.5, 1.1), 1.2: (0.05, 1.1), 40.0: (0.0, 1.1), 50.0: (0.0, 0.1)}
    spec = _spec("gaussian=1,1.2,40,50", seeds=3)
    rows = _rows(levels)
    assert recommend(rows).status == "recommended"
    assert planned(spec, rows, Refinement(Limits())) == []
    # The level that is best by its mean gives away a little too much with its interval.
    uncertain = _rows(levels | {2.0: (0.09, 1.2)}, spread=0.05)
    steps = planned(spec, uncertain, Refinement(Limits()))
    assert all(step.grid.seeds > 3 for step in steps)


@pytest.mark.parametrize(
    "asked",
    [
        {"defenses": ["gaussian=0.1,1", "clip=1,0.1+gaussian=0.5", "clip+quantize=8"]},
        {"defenses": ["clip=1,1+gaussian=0.5"], "seeds": 7, "batch_size": 16},
        {"defenses": ["none"], "budget_name": "smoke"},
        {"defenses": [], "knowledge": "simulator", "prior_fraction": 0.01, "clients": 8},
        {"defenses": ["secagg"], "local_steps": 2, "attacks": ["analytic"], "probe_batch_size": 2},
    ],
)
def test_the_command_of_a_sweep_asks_for_the_same_sweep(asked: dict, tmp_path) -> None:
    spec = make_spec(**(_DEFAULTS | asked))
    words = shlex.split(sweep_command_line(extended(spec, [REFINED]), tmp_path / "a run"))
    assert words[:4] == ["privguard", "sweep", "--env", "hopper"]
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert options["--out"] == str(tmp_path / "a run")
    names = {"--budget": "budget_name", "--obs": "observation"}
    read = {"defenses": [], "attacks": []}
    for option, value in zip(words[2::2], words[3::2], strict=True):
        name = names.get(option, option.strip("-").replace("-", "_"))
        if option in ("--defense", "--attack"):
            read[f"{name}s"].append(value)
        elif option != "--out":
            kind = float if name == "prior_fraction" else str
            read[name] = int(value) if value.isdigit() else kind(value)
    assert make_spec(**(_DEFAULTS | read)) == spec


_DEFAULTS = {
    "spec_file": None, "env": "hopper", "observation": "default", "defenses": [], "attacks": [],
    "seeds": None, "clients": 4, "batch_size": None, "local_steps": 1, "probe_batch_size": 1,
    "budget_name": "quick", "knowledge": "samples", "prior_fraction": None,
}  # fmt: skip


def _next(levels: dict[float, tuple[float, float]], tmp_path, **rows: object):
    spec = _spec("gaussian=" + ",".join(map(str, levels)), seeds=rows.get("seeds", 3))
    found = _rows(levels, **rows)
    return next_run(spec, found, recommend(found), tmp_path)


def test_what_to_run_next_depends_on_what_is_missing(tmp_path) -> None:
    open_bracket = _next({0.1: (0.6, 1.1), 10.0: (0.01, 0.2)}, tmp_path)
    assert open_bracket.command.endswith(f"--out {tmp_path} --refine")
    few = _next({0.1: (0.6, 1.1), 1.0: (0.01, 1.1)}, tmp_path)
    assert "--seeds 5" in few.command
    assert _next({0.1: (0.6, 1.1), 1.0: (0.01, 1.1)}, tmp_path, seeds=6) is None
    # It leaks with certainty where the reward is lost with certainty.
    hopeless = _next({0.1: (0.6, 1.1), 0.12: (0.6, 0.1), 10.0: (0.3, 0.1)}, tmp_path)
    assert "--batch-size 128" in hopeless.command
    assert "-batch128" in hopeless.command
    nothing = next_run(_spec("gaussian"), [], recommend([]), tmp_path)
    assert "not yet trained" in nothing.reason
    lazy = frontier_rows(
        [cell(returns=[500.0] * 5), one := cell("gaussian", 1.0)], [attack(one, leakage=0.9)]
    )
    assert (
        "--budget standard" in next_run(_spec("gaussian"), lazy, recommend(lazy), tmp_path).command
    )


def test_the_next_refinement_may_spend_more_where_all_cells_are_spent(tmp_path) -> None:
    levels = {0.1: (0.6, 1.1), 10.0: (0.01, 0.2)}
    spent = DefenseGrid(template="gaussian={level}", levels=(5.0,), seeds=40)
    spec = extended(_spec("gaussian=0.1,10", seeds=3), [spent])
    beyond = len(spec.cells()) - len(coarse(spec).cells())
    assert beyond > 60
    found = _rows(levels)
    command = next_run(spec, found, recommend(found), tmp_path).command
    assert command.endswith(f"--refine --max-cells {beyond + 60}")


class InThisProcess:
    """Computes real cells, one after the other, and counts them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.computed: list[str] = []

    def run(self, tasks: Sequence[Task], on_event: OnEvent) -> None:
        for task in tasks:
            self.computed.append(task.cell.defense_text)
            on_event(compute_task(task, self.directory, on_event))


def test_a_real_sweep_closes_its_bracket_and_resumes(tmp_path: Path) -> None:
    spec = SweepSpec(
        env="frozenlake",
        defenses=tuple(chosen_grids(["gaussian=1e-9,1e-8"], clients=4)),
        attacks=("analytic",),
        seeds=1,
        budget="smoke",
    )
    store = Store.create(tmp_path)
    executor = InThisProcess(tmp_path)
    # Any return is reward enough, so that only the search for the leakage break point is long.
    limits = Limits(max_leakage=0.3, max_reward_loss=1.0)
    heard: list[int] = []

    def go(max_cells: int) -> SweepSpec:
        known = store.sweep()
        whole = with_earlier_refinement(spec, known[0] if known else None)
        compute(whole, store, executor, "command", lambda event: None)
        refinement = Refinement(limits, max_cells=max_cells, max_seeds=1)
        return refine(
            whole, store, executor, "command", refinement,
            on_event=lambda event: None, on_plan=lambda _, steps: heard.append(len(steps)),
        )  # fmt: skip

    stopped = go(max_cells=1)
    assert len(executor.computed) == 3 + 1
    assert len(stopped.cells()) == 4
    assert heard[-1] == 0, "that more is wanted than allowed must be heard"
    final = go(max_cells=12)
    assert len(executor.computed) == len(set(executor.computed)), "nothing is computed twice"
    assert len(final.cells()) == len(executor.computed)
    (leakage,) = (
        point
        for point in break_points(frontier_rows(*selected_records(final, store)), limits)
        if point.quantity == "leakage"
    )
    assert leakage.narrow
    assert 1e-9 <= leakage.weak < leakage.strong <= 1.5 * leakage.weak
    assert not leakage.certain, "one seed decides nothing"
    assert "not certain: 1 seed" in leakage.text
    before = len(executor.computed)
    assert go(max_cells=12) == final
    assert len(executor.computed) == before
    assert len({r.level for r in frontier_rows(*selected_records(final, store))}) == before
    store.close()

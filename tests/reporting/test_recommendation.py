import json

import pytest

from privguard.records import AttackRecord, CellRecord
from privguard.reporting.frontier import frontier_rows
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.limits import Limits
from privguard.reporting.recommendation import recommend, render_text
from privguard.reporting.wording import guarantee_text
from tests.reporting.record_factory import attack, cell, sweep


def _rows(
    levels: dict[float, tuple[float, float]],
    *,
    seeds: int = 3,
    state: str = "ok",
    control: float = 0.99,
    undefended: bool = True,
) -> list[FrontierRow]:
    """Gaussian levels with (leakage, share of the reward kept), and the undefended control."""
    cells: list[CellRecord] = []
    attacks: list[AttackRecord] = []
    for seed in range(seeds):
        none = cell(seed=seed)
        if undefended:
            cells.append(none)
            attacks.append(attack(none, leakage=control, spread=0.01))
        for level, (leaked, kept) in levels.items():
            here = cell(
                "gaussian", level, seed, kept=kept, state=state, level_name="variance",
                private_end="high",
            )  # fmt: skip
            cells.append(here)
            attacks.append(attack(here, leakage=leaked, spread=0.01))
            attacks.append(attack(here, "dlg", leakage=leaked / 2, spread=0.01))
    return frontier_rows(cells, attacks)


def test_a_clear_winner_is_recommended_with_its_evidence():
    advice = recommend(_rows({0.1: (0.6, 1.1), 1.0: (0.04, 1.08), 10.0: (0.02, 0.3)}))
    assert advice.status == "recommended"
    assert advice.confidence == "moderate"
    assert (advice.choice.defense, advice.choice.level) == ("gaussian", 1.0)
    assert advice.choice.worst_attack == "rgia"
    assert advice.choice.attacks == ["dlg", "rgia"]
    assert "no formal guarantee" in advice.answer
    assert "honest-but-curious" in advice.threat_model
    assert "0.3%" in advice.threat_model
    assert advice.flags == []
    assert advice.answer in render_text(advice)
    assert json.loads(advice.model_dump_json())["choice"]["level"] == 1.0


def test_beyond_the_undefended_reward_less_leakage_wins():
    advice = recommend(_rows({1.0: (0.08, 1.3), 2.0: (0.02, 1.1)}))
    assert advice.choice.level == 2.0
    assert [candidate.level for candidate in advice.alternatives] == [1.0]


def test_intervals_that_reach_beyond_the_limits_make_it_tentative():
    advice = recommend(_rows({1.0: (0.04, 0.97)}), limits=Limits(max_reward_loss=0.04))
    assert advice.status == "tentative"
    assert advice.confidence == "low"
    assert any("lower end" in reason for reason in advice.reasons)
    assert any("more seeds" in step for step in advice.suggestions)


def test_one_seed_is_never_more_than_tentative():
    advice = recommend(_rows({1.0: (0.04, 1.2)}, seeds=1))
    assert advice.status == "tentative"
    assert any("One seed only" in reason for reason in advice.reasons)


def test_a_single_target_leaves_the_leakage_open():
    rows = [
        row.model_copy(update={"leakage_low": None, "leakage_high": None})
        for row in _rows({1.0: (0.04, 1.2)})
    ]
    advice = recommend(rows)
    assert (advice.choice.leakage_low, advice.choice.leakage_high) == (0.0, 1.0)
    assert advice.status == "tentative"


def test_none_names_the_nearest_level_and_where_to_look():
    advice = recommend(_rows({0.1: (0.4, 1.1), 10.0: (0.02, 0.7)}))
    assert advice.status == "none"
    assert advice.choice is None
    assert advice.nearest.level == 10.0
    assert "normalised return" in advice.reasons[0]
    assert any("between 0.1 and 10, e.g. 1:" in step for step in advice.suggestions)
    assert "No measured level" in render_text(advice)


def test_a_grid_that_ends_too_early_is_to_be_extended():
    leaky = recommend(_rows({0.1: (0.9, 1.1), 1.0: (0.5, 1.1)}))
    assert any("beyond 1" in step for step in leaky.suggestions)
    costly = recommend(_rows({0.1: (0.05, 0.5), 1.0: (0.01, 0.2)}))
    assert any("before 0.1" in step for step in costly.suggestions)


def test_broken_policies_are_never_chosen():
    for state in ("collapsed", "diverged", "failed"):
        advice = recommend(_rows({1.0: (0.0, 1.2)}, state=state))
        assert (advice.status, advice.choice, advice.nearest) == ("none", None, None)
        assert "collapsed" in advice.reasons[0]


def test_without_an_undefended_policy_nothing_can_be_recommended():
    advice = recommend(_rows({1.0: (0.0, 1.2)}, undefended=False))
    assert advice.status == "none"
    assert advice.nearest.level == 1.0
    assert {flag.code for flag in advice.flags} == {"no-undefended-policy", "no-undefended-control"}
    assert "undefended" in advice.suggestions[0]


def test_a_sweep_without_records_gets_an_answer_too():
    advice = recommend([])
    assert advice.status == "none"
    assert "No defended level" in advice.reasons[0]


def test_a_control_that_does_not_leak_is_suspicious():
    advice = recommend(_rows({1.0: (0.0, 1.2)}, control=0.3))
    (flag,) = (flag for flag in advice.flags if flag.code == "weak-undefended-control")
    assert "the attack, not the defence" in flag.message


def test_an_undefended_policy_that_learnt_nothing_is_suspicious():
    cells = [cell(returns=[500.0] * 5), cell("gaussian", 1.0)]
    advice = recommend(frontier_rows(cells, [attack(cells[0], leakage=0.99)]))
    assert "undefended-not-above-idle" in {flag.code for flag in advice.flags}


def test_a_reward_measured_on_one_seed_is_suspicious():
    for seeds, expected in ((1, True), (2, False)):
        cells = [cell(seed=seed) for seed in range(seeds)]
        flags = recommend(frontier_rows(cells, [attack(c, leakage=0.99) for c in cells])).flags
        assert ("one-seed" in {flag.code for flag in flags}) is expected


def test_a_weaker_attack_that_wins_and_a_level_that_leaks_more_are_suspicious():
    cells = [cell(), cell("gaussian", 0.1), cell("gaussian", 1.0)]
    attacks = [
        attack(cells[0], leakage=0.99, spread=0.01),
        attack(cells[1], leakage=0.2, spread=0.01),
        attack(cells[1], "dlg", leakage=0.4, spread=0.01),
        attack(cells[2], leakage=0.7, spread=0.01),
    ]
    codes = {flag.code for flag in recommend(frontier_rows(cells, attacks)).flags}
    assert {"weaker-attack-stronger", "not-monotone"} <= codes


def test_limits_and_environments_are_checked():
    with pytest.raises(ValueError, match="max_leakage"):
        recommend([], Limits(max_leakage=1.5))
    with pytest.raises(ValueError, match="max_reward_loss"):
        recommend([], Limits(max_reward_loss=float("nan")))
    with pytest.raises(ValueError, match="one environment"):
        recommend(frontier_rows([cell(), cell(env="hopper")], []))


def test_the_deployed_release_is_judged_on_its_own():
    cells, attacks = sweep(range(2), attacks=("rgia",), targets=8)
    rows = frontier_rows(cells, attacks)
    assert recommend(rows, Limits(max_leakage=0.15)).status == "none"
    advice = recommend(rows, Limits(max_leakage=0.15, max_reward_loss=0.1), release="deployed")
    assert advice.choice is not None
    assert advice.choice.batch_size >= 32
    assert "deployed" in advice.threat_model


def test_an_identified_share_is_judged_by_its_upper_end():
    # No record of 24 in each of two seeds is picked out: that still leaves up to 0.07.
    rows = _rows({1.0: (0.04, 1.1)}, seeds=2)
    wide = recommend(rows, Limits(max_identified=0.05))
    assert wide.status == "tentative"
    assert any("identified share's upper end 0.07" in reason for reason in wide.reasons)
    assert recommend(rows, Limits(max_identified=0.08)).status == "recommended"
    # At this leakage many are picked out, which the leakage limit alone would let pass.
    leaky = _rows({1.0: (0.4, 1.1)})
    assert recommend(leaky, Limits(max_leakage=0.5)).status == "recommended"
    picked = recommend(leaky, Limits(max_leakage=0.5, max_identified=0.05))
    assert picked.status == "none"
    assert "its identified share 1.000 exceeds 0.05" in picked.reasons[0]


def test_a_limit_on_epsilon_asks_for_a_guarantee():
    advice = recommend(_rows({1.0: (0.04, 1.1)}), Limits(max_epsilon=8))
    assert (advice.status, advice.choice) == ("none", None)
    assert "it has no formal guarantee" in advice.reasons[0]
    cells, attacks = [], []
    for seed in range(3):
        for defense, level, kept in (("none", None, 1.0), ("dp-sgd", 10.0, 1.1)):
            here = cell(defense, level, seed, kept=kept, private_end="high")
            cells.append(here)
            attacks.append(attack(here, leakage=0.02, spread=0.01))
    rows = frontier_rows(cells, attacks)
    assert recommend(rows, Limits(max_epsilon=5)).choice.epsilon == 4.0
    tighter = recommend(rows, Limits(max_epsilon=3))
    assert "its ε 4 exceeds 3" in tighter.reasons[0]


def test_bytes_up_are_limited():
    rows = _rows({1.0: (0.04, 1.1)})
    assert recommend(rows, Limits(max_bytes=400_000)).status == "recommended"
    costly = recommend(rows, Limits(max_bytes=399_999))
    assert costly.status == "none"
    assert "400,000 bytes up exceed 399,999" in costly.reasons[0]


def test_confidence_says_what_its_intervals_leave_out():
    few = recommend(_rows({1.0: (0.04, 1.1)}, seeds=3))
    assert "with 3 seeds they are too narrow" in few.confidence_reason
    one = recommend(_rows({1.0: (0.04, 1.1)}, seeds=1))
    assert "not how another seed would have ended" in one.confidence_reason
    many = recommend(_rows({1.0: (0.04, 1.1)}, seeds=6))
    assert many.confidence == "high"
    assert "too narrow" not in many.confidence_reason


def test_the_chance_to_reconstruct_is_stated_where_it_promises_something():
    here = cell("dp-sgd", 10.0, 0, private_end="high")
    told = []
    for chance in (None, 0.59, 0.999):
        privacy = here.privacy.model_copy(update={"reconstruction_chance": chance})
        (row,) = frontier_rows([here.model_copy(update={"privacy": privacy})], [])
        told.append("one time in ten becomes right 59% of the time" in guarantee_text(row))
    assert told == [False, True, False]

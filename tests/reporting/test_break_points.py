from privguard.records import AttackRecord, CellRecord
from privguard.reporting.break_points import (
    break_points,
    hopeless,
    level_points,
    locate,
    thresholds,
)
from privguard.reporting.frontier import frontier_rows
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.limits import Limits
from tests.reporting.record_factory import attack, cell, sweep

LIMITS = Limits()


def _rows(
    levels: dict[float, tuple[float, float]], *, seeds: int = 3, **broken
) -> list[FrontierRow]:
    cells: list[CellRecord] = []
    attacks: list[AttackRecord] = []
    for seed in range(seeds):
        cells.append(cell(seed=seed))
        for level, (leaked, kept) in levels.items():
            here = cell(
                "gaussian", level, seed, kept=kept, level_name="variance", private_end="high",
                state=broken.get(f"at_{level:g}", "ok"),
            )  # fmt: skip
            cells.append(here)
            attacks.append(attack(here, leakage=leaked, spread=0.005))
            attacks.append(attack(here, "dlg", leakage=leaked / 2, spread=0.005))
    return frontier_rows(cells, attacks)


def test_both_break_points_are_found_with_their_certainty():
    rows = _rows({0.1: (0.6, 1.1), 1.0: (0.02, 1.1), 1.4: (0.02, 0.1)})
    leakage, reward = break_points(rows, LIMITS)
    assert (leakage.weak, leakage.strong, leakage.narrow, leakage.certain) == (0.1, 1, False, True)
    assert (reward.weak, reward.strong, reward.narrow, reward.certain) == (1, 1.4, True, True)
    assert leakage.text == "gaussian's variance: leakage falls to 0.1 between 0.1 and 1"
    few, _ = break_points(_rows({0.1: (0.6, 1.1), 1.0: (0.02, 1.1)}, seeds=2), LIMITS)
    assert not few.certain
    assert few.text.endswith("(not certain: 2 seeds)")


def test_an_end_that_is_missing_is_said_so():
    leakage, reward = break_points(_rows({0.1: (0.9, 1.1), 1.0: (0.5, 1.1)}), LIMITS)
    assert (leakage.weak, leakage.strong) == (1.0, None)
    assert "still leaks more than 0.1 at 1, the most private measured" in leakage.text
    assert "still keeps 0.95 of the reward at 1" in reward.text
    leakage, reward = break_points(_rows({0.1: (0.02, 0.3), 1.0: (0.01, 0.2)}), LIMITS)
    assert (reward.weak, reward.strong) == (None, 0.1)
    assert "already leaks at most 0.1 at 0.1" in leakage.text


def test_a_collapsed_level_has_lost_its_reward_whatever_it_returned():
    rows = _rows({0.1: (0.6, 1.1), 1.0: (0.02, 1.1)}, at_1="collapsed")
    leakage, reward = break_points(rows, LIMITS)
    assert (reward.weak, reward.strong, reward.certain) == (0.1, 1.0, True)
    # A broken policy may only look private.
    assert leakage.text.endswith("between 0.1 and 1 (not certain: the policy broke at 1)")


def test_without_a_scale_there_is_no_reward_break_point():
    cells = [cell("gaussian", 1.0, private_end="high")]
    (only,) = break_points(frontier_rows(cells, [attack(cells[0], leakage=0.5)]), LIMITS)
    assert only.quantity == "leakage"


def test_a_defence_is_hopeless_only_with_certainty():
    def judged(levels, **options):
        rows = _rows(levels, **options)
        crossings = [
            locate(level_points(rows, "gaussian", t.quantity), t) for t in thresholds(LIMITS)
        ]
        return hopeless(*crossings, "high")

    lost = {0.1: (0.6, 1.1), 1.0: (0.5, 0.2), 10.0: (0.02, 0.1)}
    assert judged(lost)
    assert not judged(lost, seeds=1)
    assert not judged({0.1: (0.6, 1.1), 1.0: (0.02, 0.2)})


def test_every_defence_with_a_level_is_covered_towards_its_own_private_end():
    found = break_points(frontier_rows(*sweep(range(3), deployed=False, targets=6)), LIMITS)
    assert {(p.defense, p.quantity) for p in found} == {
        (d, q)
        for d in ("gaussian", "dp-sgd", "clip", "quantize", "topk", "secagg")
        for q in ("leakage", "reward")
    }
    bits = next(p for p in found if (p.defense, p.quantity) == ("quantize", "leakage"))
    assert (bits.weak, bits.strong, bits.narrow) == (2, 1, True)

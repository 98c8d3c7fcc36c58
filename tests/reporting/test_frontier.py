import csv
import math

import pytest

from privguard.records import AttackRecord, TargetScores
from privguard.reporting.frontier import frontier_rows, leakage
from privguard.reporting.tables import COLUMNS, read_frontier_csv, write_frontier_csv
from privguard.reporting.worst_case import headline, pareto, worst_case
from tests.reporting.record_factory import IDLE, PRIOR, attack, cell, sweep

CONTRACT = [
    "env",
    "defense",
    "level",
    "epsilon",
    "delta",
    "attack",
    "release",
    "batch_size",
    "targets",
    "seeds",
    "ra_mean",
    "ra_low",
    "ra_high",
    "ra_prior",
    "leakage_mean",
    "leakage_low",
    "leakage_high",
    "identified_mean",
    "nmse_mean",
    "floor_nmse",
    "return_mean",
    "return_low",
    "return_high",
    "normalized_return_mean",
    "normalized_return_low",
    "normalized_return_high",
    "snr",
]


def _scores(**scores: float | None) -> TargetScores:
    return TargetScores(capture=0, round=0, client=0, scores=scores)


def test_the_columns_keep_their_order():
    assert list(COLUMNS[: len(CONTRACT)]) == CONTRACT


def test_one_row_per_attacked_release_and_the_control_first():
    cells, attacks = sweep(range(2), attacks=("rgia", "analytic"), targets=6)
    rows = frontier_rows(cells, attacks)
    keys = [(r.defense, r.level, r.attack, r.release, r.batch_size) for r in rows]
    assert len(keys) == len(set(keys))
    assert rows[0].defense == "none"
    assert rows[0].level is None
    assert all(row.seeds == 2 and row.targets == 12 for row in rows)
    assert not any(row.attack == "analytic" and row.release == "deployed" for row in rows)


def test_rows_do_not_depend_on_the_order_in_which_cells_finished():
    cells, attacks = sweep(range(2), attacks=("rgia",), targets=6)
    assert frontier_rows(cells, attacks) == frontier_rows(cells[::-1], attacks[::-1])


def test_leakage_is_measured_against_the_prior():
    assert leakage(_scores(ra=1.0, ra_prior=0.2)) == 1
    assert leakage(_scores(ra=0.6, ra_prior=0.2)) == pytest.approx(0.5)
    assert leakage(_scores(ra=0.1, ra_prior=0.2)) == 0
    assert leakage(_scores(ra=None, ra_prior=0.2)) is None
    assert leakage(_scores(ra=1.0, ra_prior=1.0)) is None


def test_a_row_averages_what_its_targets_scored():
    here = cell("gaussian", 0.1)
    record = attack(here, targets=8)
    (row,) = (r for r in frontier_rows([cell(), here], [record]) if r.attack)
    ras = [target.scores["ra"] for target in record.targets]
    assert row.ra_mean == pytest.approx(sum(ras) / 8)
    assert row.ra_low <= row.ra_mean <= row.ra_high
    assert row.ra_prior == pytest.approx(PRIOR)
    errors = [(t.scores["nmse_state"] + t.scores["nmse_action"]) / 2 for t in record.targets]
    assert row.nmse_mean == pytest.approx(sum(errors) / 8)
    assert min(errors) < row.nmse_low < row.nmse_mean < row.nmse_high < max(errors)
    assert row.snr == pytest.approx(14.4)
    assert row.floor_nmse is None


def test_the_joint_error_is_preferred_to_its_parts():
    here = cell()
    scores = _scores(ra=0.5, ra_prior=0.1, nmse=0.3, nmse_state=9.0, nmse_action=9.0)
    record = AttackRecord(
        cell_key=here.key, attack="rgia", release="probe", batch_size=1, knowledge="none",
        targets=[scores],
    )  # fmt: skip
    (row,) = frontier_rows([here], [record])
    assert row.nmse_mean == pytest.approx(0.3)
    # One target has no spread to resample.
    assert (row.nmse_low, row.nmse_high) == (None, None)


def test_returns_are_normalised_against_idling_and_the_undefended_policy():
    cells = [
        cell(seed=0, returns=[1993.0]),
        cell(seed=1, returns=[2993.0]),
        cell("gaussian", 1.0, 0, returns=[1493.0]),
        cell("gaussian", 1.0, 1, returns=[1993.0]),
    ]
    none, gaussian = frontier_rows(cells, [])
    assert none.idle_return == IDLE
    assert none.normalized_return_mean == none.normalized_return_low == 1
    assert gaussian.normalized_return_mean == pytest.approx(0.5)
    # Each seed keeps exactly half, so pairing leaves no uncertainty.
    assert gaussian.normalized_return_high == pytest.approx(0.5)


def test_a_level_is_held_against_the_undefended_policy_of_its_own_seeds():
    cells = [
        cell(seed=0, returns=[1993.0]),
        cell(seed=1, returns=[2993.0]),
        cell("gaussian", 1.0, 0, returns=[1493.0]),
        cell("clip", 1.0, 2, returns=[1743.0]),
    ]
    _, gaussian, clip = frontier_rows(cells, [])
    assert gaussian.normalized_return_mean == pytest.approx(0.5)
    # No seed has both: then the undefended mean has to do.
    assert clip.normalized_return_mean == pytest.approx(0.5)


def test_without_a_scale_returns_stay_raw():
    for cells in (
        [cell("gaussian", 1.0)],
        [cell(returns=[IDLE - 1]), cell("gaussian", 1.0)],
        [cell(returns=[math.nan], state="diverged"), cell("gaussian", 1.0)],
    ):
        row = frontier_rows(cells, [])[-1]
        assert row.return_mean is not None
        assert row.normalized_return_mean is None


def test_the_worst_case_is_the_largest_mean_leakage():
    cells, attacks = sweep([0], targets=6)
    rows = frontier_rows(cells, attacks)
    for worst in worst_case(rows):
        rivals = [
            row.leakage_mean
            for row in rows
            if (row.defense, row.level, row.release, row.batch_size)
            == (worst.defense, worst.level, worst.release, worst.batch_size)
        ]
        assert worst.leakage_mean == max(rivals)
    batches = {row.batch_size for row in headline(rows, "probe")}
    assert batches == {1, 2, 4}


def test_knowledges_are_never_averaged_and_the_headline_is_their_worst_case():
    here = cell()
    informed = attack(here, leakage=0.2, spread=0.0)
    blind = attack(here, leakage=0.6, spread=0.0).model_copy(
        update={"knowledge": "none", "prior_samples": 0}
    )
    rows = frontier_rows([here], [informed, blind])
    assert {row.knowledge: row.leakage_mean for row in rows} == {
        "none": pytest.approx(0.6),
        "samples (0.3%)": pytest.approx(0.2),
    }
    assert {row.prior_samples for row in rows} == {0, None}
    assert len(worst_case(rows)) == 2
    assert [row.knowledge for row in headline(rows, "probe")] == ["none"]


def test_the_front_holds_no_broken_level_and_no_dominated_one():
    cells, attacks = sweep(range(2), attacks=("rgia",), targets=6)
    private_but_broken = cell("broken", 1.0, state="collapsed", kept=2.0)
    rows = frontier_rows(
        [*cells, private_but_broken], [*attacks, attack(private_but_broken, leakage=0.0)]
    )
    strongest = headline(rows, "probe")
    front = pareto(strongest)
    assert front
    assert all(row.state == "ok" for row in front)
    for row in front:
        assert not any(
            rival.usable
            and rival.normalized_return_mean > row.normalized_return_mean
            and rival.leakage_mean < row.leakage_mean
            for rival in strongest
        )


def test_one_broken_seed_marks_the_level():
    cells = [cell("gaussian", 1.0, 0), cell("gaussian", 1.0, 1, state="diverged", returns=[])]
    (row,) = frontier_rows(cells, [])
    assert (row.state, row.cells, row.cells_not_ok, row.seeds) == ("diverged", 2, 1, 1)


def test_the_table_survives_a_round_trip(tmp_path):
    cells, attacks = sweep([0], attacks=("rgia",), targets=4)
    rows = frontier_rows(cells, attacks)
    path = tmp_path / "frontier.csv"
    write_frontier_csv(path, rows)
    again = read_frontier_csv(path)
    assert [row.level for row in again] == [row.level for row in rows]
    for row, copy in zip(rows, again, strict=True):
        for name, value in row.model_dump().items():
            other = getattr(copy, name)
            assert other == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value)


def test_another_table_is_refused(tmp_path):
    path = tmp_path / "frontier.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a frontier table"):
        read_frontier_csv(path)
    path.write_text(",".join(COLUMNS) + "\n" + "x," * (len(COLUMNS) - 1) + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_frontier_csv(path)


def test_client_time_is_relative_to_the_plain_gradients_of_the_same_rounds():
    cells = [
        cell("gaussian", 0.1, seed=seed).model_copy(
            update={"client_seconds": own, "plain_client_seconds": plain}
        )
        for seed, own, plain in ((0, 0.02, 0.01), (1, 0.09, 0.03), (2, None, None))
    ]
    (row,) = frontier_rows(cells, [])
    assert row.client_seconds_ratio == pytest.approx(2.5)
    assert row.client_seconds_per_round == pytest.approx((0.02 + 0.09) / 2 / 4)
    assert row.bytes_per_round == 400_000
    (old,) = frontier_rows(cells[2:], [])
    assert old.client_seconds_ratio is None


@pytest.mark.parametrize("missing", ["client_seconds", "psnr", "identified_low", "nmse_low"])
def test_a_table_older_than_some_columns_is_read(tmp_path, missing):
    rows = frontier_rows([cell()], [])
    path = tmp_path / "frontier.csv"
    write_frontier_csv(path, rows)
    with path.open(newline="") as file:
        records = list(csv.DictReader(file))
    kept = [name for name in records[0] if not name.startswith(missing)]
    assert len(kept) < len(records[0])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, kept, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
    (again,) = read_frontier_csv(path)
    assert again.bytes_per_round == rows[0].bytes_per_round

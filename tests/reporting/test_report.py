import subprocess
import sys

import pytest

from privguard.records import AttackRecord, CellRecord
from privguard.reporting.report import write_report
from tests.reporting.record_factory import attack, cell, sweep

FIGURES = ("frontier", "leakage", "levels", "training", "profiles")
FORMATS = ("png", "pdf", "svg")
ALWAYS = {
    *("frontier.csv", "statistics.csv", "summary.md", "index.html"),
    *(f"{name}.{extension}" for name in FIGURES for extension in FORMATS),
}


def _partial_sweeps() -> dict[str, tuple[list[CellRecord], list[AttackRecord]]]:
    none, gaussian = cell(), cell("gaussian", 0.1, level_name="variance", private_end="high")
    collapsed = cell("gaussian", 100.0, kept=-2.0, state="collapsed")
    failed = cell("he", state="failed", returns=[]).model_copy(update={"evaluations": []})
    return {
        "nothing yet": ([], []),
        "only the undefended cell": ([none], [attack(none)]),
        "no undefended cell": ([gaussian], [attack(gaussian)]),
        "no attack yet": ([none, gaussian], []),
        "all collapsed": ([collapsed], [attack(collapsed)]),
        "failed without a return": ([failed], []),
        "level without direction": ([none, collapsed], [attack(collapsed)]),
        "every attack skipped": ([none], [attack(none, skipped="needs batch 1")]),
        "only deployed releases": ([none], [attack(none, release="deployed", batch_size=32)]),
    }


def test_a_whole_sweep_gives_every_file(tmp_path):
    cells, attacks = sweep(range(2), targets=6)
    written = write_report(
        tmp_path, cells, attacks, command="privguard sweep --env ant", planned_cells=99
    )
    assert {path.name for path in written} == {
        *ALWAYS,
        *(f"frontier_deployed.{extension}" for extension in FORMATS),
    }
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written}
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "frontier.pdf").read_bytes().startswith(b"%PDF")
    for path in written:
        limit = 400_000 if path.suffix == ".png" else 4_000_000
        assert 500 < path.stat().st_size < limit, path.name

    summary = (tmp_path / "summary.md").read_text()
    assert summary.index("No measured level") < summary.index("| defence |")
    assert "of 99 cells finished: preliminary" in summary
    assert "gaussian 100: collapsed (seed 0, 1)" in summary
    assert "analytic on probe releases of secagg 2, secagg 4: needs batch 1" in summary
    assert "privguard sweep --env ant" in summary
    assert (tmp_path / "index.html").stat().st_size < 600_000


def test_the_summary_names_local_training_where_it_took_place(tmp_path):
    for steps, says in ((1, "minibatch 32, 60,000 rounds"), (3, "3 local steps (FedAvg), 60,000")):
        trained = cell().model_copy(update={"local_steps": steps})
        write_report(tmp_path, [trained], [attack(trained)], command="x")
        assert says in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize("name", _partial_sweeps())
def test_a_partial_sweep_gives_a_report_that_says_what_is_missing(tmp_path, name):
    cells, attacks = _partial_sweeps()[name]
    written = {path.name for path in write_report(tmp_path, cells, attacks, command="x")}
    assert written >= ALWAYS
    assert (tmp_path / "summary.md").read_text().startswith("# privguard")


def test_the_same_records_give_the_same_files(tmp_path):
    cells = [cell(), cell("topk", 0.1), cell("gaussian", 0.1)]
    attacks = [attack(one, targets=4) for one in cells]
    for name in ("a", "b"):
        write_report(tmp_path / name, cells, attacks, command="x")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_text_from_records_cannot_break_the_page(tmp_path):
    hostile = cell(state="failed", returns=[]).model_copy(update={"reason": "<script>alert(1)"})
    write_report(tmp_path, [hostile], [], command="x | y")
    assert "<script>alert" not in (tmp_path / "index.html").read_text()


def test_a_report_is_of_one_environment(tmp_path):
    with pytest.raises(ValueError, match="one environment"):
        write_report(tmp_path, [cell(), cell(env="hopper")], [], command="x")


def test_reporting_needs_no_torch_and_draws_without_pyplot_figures():
    code = (
        "import sys, privguard.reporting.report\n"
        "import matplotlib.pyplot as plt\n"
        "heavy = {'torch', 'attacks', 'defenses', 'gymnasium'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not plt.get_fignums()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

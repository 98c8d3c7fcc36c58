"""The command line as a user meets it: real runs, bad input, kills and resumes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

PRIVGUARD = [sys.executable, "-c", "from privguard.cli import main; main()"]
SMALL = ["sweep", "--env", "frozenlake", "--budget", "smoke", "--defense", "gaussian=0.01"]


def privguard(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PRIVGUARD, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def alive(pid: str) -> bool:
    """Whether the process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def finished_cells(directory: Path) -> list[tuple[str, str]]:
    path = directory / "records.sqlite"
    if not path.exists():
        return []
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return connection.execute("SELECT key, record FROM cells").fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of the smallest environment, with its directory's parent."""
    parent = tmp_path_factory.mktemp("sweep")
    result = privguard(*SMALL, "--attack", "analytic", "--attack", "dlg", cwd=parent)
    assert result.returncode == 0, result.stderr
    return parent


def test_a_sweep_leaves_a_report_and_an_answer(run: Path) -> None:
    directory = run / "reports" / "frozenlake"
    for name in ("index.html", "frontier.png", "frontier.pdf", "frontier.svg", "summary.md"):
        assert (directory / name).stat().st_size > 500, name
    rows = list(csv.DictReader((directory / "frontier.csv").open()))
    assert {row["defense"] for row in rows} == {"none", "gaussian"}
    assert {row["attack"] for row in rows} == {"analytic", "dlg"}
    control = next(
        row
        for row in rows
        if (row["defense"], row["attack"], row["release"]) == ("none", "analytic", "probe")
    )
    assert float(control["leakage_mean"]) > 0.9


def test_running_it_again_computes_nothing(run: Path) -> None:
    directory = run / "reports" / "frozenlake"
    before = finished_cells(directory)
    result = privguard(*SMALL, "--attack", "analytic", "--attack", "dlg", cwd=run)
    assert result.returncode == 0, result.stderr
    assert "2 finished" in result.stderr
    assert finished_cells(directory) == before


def test_a_new_attack_does_not_retrain(run: Path) -> None:
    directory = run / "reports" / "frozenlake"
    before = finished_cells(directory)
    result = privguard("attack", "reports/frozenlake", "--attack", "geiping", cwd=run)
    assert result.returncode == 0, result.stderr
    assert finished_cells(directory) == before
    attacks = {row["attack"] for row in csv.DictReader((directory / "frontier.csv").open())}
    assert "geiping" in attacks


def test_reconstructions_are_kept_and_made_again_where_they_are_missing(run: Path) -> None:
    directory = run / "reports" / "frozenlake"
    kept = sorted((directory / "reconstructions").iterdir())
    assert len(kept) == 2
    before = finished_cells(directory)
    kept[0].unlink()
    attacks = {row["attack"] for row in csv.DictReader((directory / "frontier.csv").open())}
    again = [option for name in sorted(attacks) for option in ("--attack", name)]
    result = privguard("attack", "reports/frozenlake", *again, cwd=run)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("[1/1]") == 1, "the other cell has its reconstructions"
    assert sorted((directory / "reconstructions").iterdir()) == kept
    assert finished_cells(directory) == before
    assert "not kept for" not in (directory / "index.html").read_text()


def test_another_knowledge_does_not_retrain_and_stands_beside(run: Path) -> None:
    directory = run / "reports" / "frozenlake"
    before = finished_cells(directory)
    for knowledge in ("none", "simulator"):
        asked = ["reports/frozenlake", "--attack", "analytic", "--knowledge", knowledge]
        result = privguard("attack", *asked, cwd=run)
        assert result.returncode == 0, result.stderr
    assert finished_cells(directory) == before
    rows = list(csv.DictReader((directory / "frontier.csv").open()))
    probes = [
        row["knowledge"]
        for row in rows
        if (row["defense"], row["attack"], row["release"]) == ("none", "analytic", "probe")
    ]
    samples = "samples (0.3% of the training data)"
    assert sorted(probes) == ["none", samples, f"simulator, {samples}"]


def test_recommend_answers_in_words_and_json(run: Path) -> None:
    words = privguard("recommend", "reports/frozenlake", cwd=run)
    assert words.returncode == 0, words.stderr
    assert words.stdout.strip()
    answer = privguard("recommend", "reports/frozenlake", "--json", cwd=run)
    assert isinstance(json.loads(answer.stdout), dict)


def test_recommend_names_the_next_command_and_the_limits(run: Path) -> None:
    asked = ["recommend", "reports/frozenlake", "--max-bytes", "1e9", "--max-epsilon", "8"]
    answer = json.loads(privguard(*asked, "--json", cwd=run).stdout)
    assert answer["limits"]["max_epsilon"] == 8
    assert answer["status"] == "none", "gaussian gives no epsilon"
    following = answer["next_run"]["command"]
    # The directory is the default one, and the longer budget is the default budget.
    assert following.startswith("privguard sweep --env frozenlake --defense gaussian=0.01 ")
    assert "--budget" not in following
    assert f"  {following}\n" in privguard(*asked, cwd=run).stdout


def test_compare_needs_runs_and_leaves_page_figure_and_table(run: Path) -> None:
    shutil.copytree(run / "reports" / "frozenlake", run / "again")
    result = privguard("compare", "reports/frozenlake", "again", "--out", "both", cwd=run)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [
        "both/index.html",
        "both/comparison.png",
        "both/comparison.csv",
    ]
    rows = list(csv.DictReader((run / "both" / "comparison.csv").open()))
    assert [row["run"] for row in rows[:3]] == ["frozenlake", "again", "all runs"]
    refused = privguard("compare", "reports/frozenlake", "again", "--out", "again", cwd=run)
    assert refused.returncode == 2
    assert "--out again: holds a run" in refused.stderr


def test_a_killed_sweep_resumes(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    arguments = [*SMALL[:5], "--defense", "clip=1,0.1,0.01", "--attack", "analytic", "--workers"]
    arguments += ["1", "--out", "run"]
    process = subprocess.Popen(
        [*PRIVGUARD, *arguments], cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not finished_cells(directory) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = finished_cells(directory)
    assert 0 < len(done) < 4
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children) >= 1
    assert not any(alive(pid) for pid in children), "a worker outlived its sweep"
    result = privguard(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{len(done)} finished" in result.stderr
    after = finished_cells(directory)
    assert len(after) == 4
    assert after[: len(done)] == done


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sweep"], "--env"),
        (["sweep", "--env", "hoper"], "did you mean 'hopper'"),
        (["sweep", "--env", "hopper", "--obs", "contact"], "--obs contact"),
        (["sweep", "--env", "hopper", "--defense", "gausian=1"], "gaussian"),
        (["sweep", "--env", "hopper", "--defense", "gaussian=-1"], "variance"),
        (["sweep", "--env", "hopper", "--defense", "dp-sgd=inf"], "finite"),
        (["sweep", "--env", "hopper", "--defense", "secagg=9"], "clients"),
        (["sweep", "--env", "hopper", "--attack", "rgai"], "rgia"),
        (["sweep", "--env", "hopper", "--attack", "nowhere:x"], "nowhere"),
        (["sweep", "--env", "hopper", "--budget", "quik"], "did you mean 'quick'"),
        (["sweep", "--env", "hopper", "--seeds", "0"], "--seeds 0"),
        (["sweep", "--env", "hopper", "--local-steps", "0"], "--local-steps 0"),
        (
            ["sweep", "--env", "hopper", "--local-steps", "2", "--defense", "dp-sgd=0.1"],
            "dp-sgd=0.1 acts on single samples",
        ),
        (["train", "--env", "hopper", "--local-steps", "-1"], "--local-steps -1"),
        (["sweep", "--env", "hopper", "--spec", "missing.json"], "--spec"),
        (["sweep", "--env", "hopper", "--knowledge", "sample"], "did you mean 'samples'"),
        (["sweep", "--env", "hopper", "--prior-fraction", "0.5"], "at most 0.03"),
        (["attack", "nowhere", "--knowledge", "all"], "--knowledge all"),
        (["attack", "nowhere", "--knowledge", "none", "--prior-fraction", "0.01"], "no samples"),
        (["sweep", "--env", "hopper", "--out", "/proc/run"], "--out"),
        (["report", "nowhere"], "nowhere"),
        (["recommend", "nowhere"], "nowhere"),
        (["recommend", "nowhere", "--max-leakage", "abc"], "--max-leakage abc: input should be a"),
        (["sweep", "--env", "hopper", "--seeds", "two"], "--seeds two: input should be a valid"),
        (["sweep", "--env"], "'--env' requires an argument"),
        (["swep"], "Did you mean 'sweep'"),
        (["recommend", "nowhere", "--max-leakage", "2"], "--max-leakage 2: must be from 0 to 1"),
        (["recommend", "nowhere", "--max-identified", "-1"], "--max-identified -1"),
        (["recommend", "nowhere", "--max-epsilon", "nan"], "--max-epsilon nan: must be a finite"),
        (["recommend", "nowhere", "--max-bytes", "0"], "--max-bytes 0: must be a finite"),
        (["sweep", "--env", "hopper", "--max-cells", "9"], "--max-cells 9: bounds a refinement"),
        (["sweep", "--env", "hopper", "--refine", "--max-seeds", "0"], "--max-seeds 0"),
        (["compare", "nowhere"], "two runs or more"),
        (["compare", "nowhere", "elsewhere"], "nowhere: no privguard run here"),
        (["compare", "nowhere", "./nowhere"], "named twice"),
        (["watch", "nowhere"], "nowhere: no privguard run here"),
        (["check", "rgai"], "rgia"),
        (["evaluate", "--env", "ant", "--policy", "best"], "--policy"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, tmp_path: Path
) -> None:
    result = privguard(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir()), "nothing may be left behind"


def test_baselines_are_what_the_field_knows(tmp_path: Path) -> None:
    arguments = ["evaluate", "--env", "ant", "--policy", "zero", "--episodes", "2", "--json"]
    result = privguard(*arguments, cwd=tmp_path)
    assert json.loads(result.stdout)["mean"] == pytest.approx(993, abs=10)


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")
def test_ctrl_c_stops_with_a_hint(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*PRIVGUARD, *SMALL[:3], "--budget", "quick", "--out", "run"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # Who runs the tests in the background may have them ignore Ctrl-C, which is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    while not (tmp_path / "run" / "records.sqlite").exists():
        time.sleep(0.05)
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "resume" in errors
    assert "Traceback" not in errors

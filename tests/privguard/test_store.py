from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch

from privguard.audit.examples import Example, Examples, chosen
from privguard.records import AttackRecord, CellRecord
from privguard.reporting.report import write_report
from privguard.run_files import RunFiles, StoreError
from privguard.spec import DefenseGrid, SweepSpec
from privguard.store import Store

SPEC = SweepSpec(
    env="hopper", defenses=(DefenseGrid(template="none", levels=()),), attacks=("rgia",), seeds=1
)


def record(key: str = "a", state: str = "ok") -> CellRecord:
    return CellRecord.model_validate(
        {
            "key": key,
            "env": "hopper",
            "defense": "none",
            "level": None,
            "level_name": None,
            "private_end": None,
            "seed": 0,
            "budget": "smoke",
            "state": state,
        }
    )


def test_records_survive_a_round_trip(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run")
    attack = AttackRecord(
        cell_key="a", attack="rgia", release="probe", batch_size=1, knowledge="samples"
    )
    store.put_sweep(SPEC, "privguard sweep --env hopper")
    store.put(record(), [attack])
    store.put(record(), [])
    store.close()
    again = Store.open(tmp_path / "run")
    assert again.sweep() == (SPEC, "privguard sweep --env hopper")
    assert again.cells()[0].model_dump(
        exclude={"random_return", "zero_return"}
    ) == record().model_dump(exclude={"random_return", "zero_return"})
    assert again.attacks() == [attack]


def test_one_attack_under_several_knowledges_stands_side_by_side(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run")
    blind = AttackRecord(
        cell_key="a", attack="dlg", release="probe", batch_size=1, knowledge="none"
    )
    informed = blind.model_copy(update={"knowledge": "samples (0.3% of the training data)"})
    store.put(record(), [blind, informed])
    store.put(None, [blind.model_copy(update={"skipped": "again"})])
    assert [(a.knowledge, a.skipped) for a in store.attacks()] == [
        (informed.knowledge, ""),
        ("none", "again"),
    ]


def test_a_store_of_version_1_is_read_as_it_is_and_upgraded_by_its_writer(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    Store.create(directory).close()
    attack = AttackRecord(
        cell_key="a",
        attack="rgia",
        release="probe",
        batch_size=1,
        knowledge="samples (0.3% of the training data, n=64)",
    )
    old = attack.model_dump_json(exclude={"prior_samples"})
    connection = sqlite3.connect(directory / "records.sqlite")
    connection.executescript(
        "DROP TABLE attacks; CREATE TABLE attacks (cell_key TEXT NOT NULL, attack TEXT NOT NULL, "
        "release TEXT NOT NULL, record TEXT NOT NULL, PRIMARY KEY (cell_key, attack, release));"
        "PRAGMA user_version=1"
    )
    connection.execute("INSERT INTO attacks VALUES ('a', 'rgia', 'probe', ?)", (old,))
    connection.commit()
    expected = attack.model_copy(
        update={"knowledge": "samples (0.3% of the training data)", "prior_samples": 64}
    )
    store = Store.open(directory)
    assert store.attacks() == [expected]
    assert connection.execute("PRAGMA user_version").fetchone() == (1,), "reading changes nothing"
    simulator = expected.model_copy(update={"knowledge": "simulator, " + expected.knowledge})
    with store.lock():
        assert store.attacks() == [expected]
        store.put(None, [simulator])
    store.close()
    assert Store.open(directory).attacks() == [expected, simulator]


def test_a_record_older_than_the_client_times_is_read(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run")
    store.put(record(), [])
    store.close()
    connection = sqlite3.connect(tmp_path / "run" / "records.sqlite")
    old = record().model_dump_json(exclude={"client_seconds", "plain_client_seconds"})
    connection.execute("UPDATE cells SET record = ?", (old,))
    connection.commit()
    (cell,) = Store.open(tmp_path / "run").cells()
    assert cell.client_seconds is None
    assert cell.state == "ok"


def test_captures_survive_a_round_trip_and_damage_is_one_line(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    files.save_captures("a", {"x": torch.arange(3)}, {"round": 7})
    tensors, plain = files.load_captures("a")
    assert tensors["x"].tolist() == [0, 1, 2]
    assert plain == {"round": 7}
    assert files.captured_shapes("a") == ({"x": (3,)}, {"round": 7})
    path = next((tmp_path / "captures").iterdir())
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(StoreError, match="damaged") as caught:
        files.load_captures("a")
    assert "\n" not in str(caught.value)


def example(attack: str, knowledge: str, value: float) -> Examples:
    state, action = np.full((2, 3), value, dtype=np.float32), np.ones((2, 1), dtype=np.int64)
    target = Example(state, action, state + 1, np.full((2, 1), np.nan, dtype=np.float32))
    scale = (np.zeros(3), np.ones(3), np.zeros(1), np.ones(1))
    counts = (2, 64) if attack == "map" else None
    return Examples(attack, "probe", knowledge, *scale, (3, 5), (target, target), counts)


def test_examples_of_an_attack_stand_beside_others_and_replace_their_own(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    assert files.load_examples("a") == []
    files.add_examples("a", [example("map", "samples", 1.0), example("dlg", "samples", 2.0)])
    files.add_examples("a", [example("map", "samples", 7.0), example("map", "none", 3.0)])
    kept = {one.setting[::2]: one for one in files.load_examples("a")}
    assert sorted(kept) == [("dlg", "samples"), ("map", "none"), ("map", "samples")]
    one = kept["map", "samples"]
    assert one.rounds == (3, 5)
    assert one.records == (2, 64)
    assert kept["dlg", "samples"].records is None
    assert one.targets[1].true_state.tolist() == [[7.0] * 3] * 2
    assert one.targets[1].true_action.dtype == np.int64
    assert np.isnan(one.targets[0].action).all()


@pytest.mark.parametrize(
    ("count", "kept"), [(0, []), (1, [0]), (3, [0, 1, 2]), (10, [0, 3, 6, 9]), (24, [0, 8, 15, 23])]
)
def test_examples_are_spread_evenly(count: int, kept: list[int]) -> None:
    assert chosen(count) == kept


def test_a_damaged_database_is_one_line_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError, match="damaged"):
        Store.create(tmp_path)
    assert path.read_bytes().startswith(b"this is no database")


def test_a_foreign_directory_or_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError, match="no privguard run"):
        Store.create(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    connection = sqlite3.connect(other / "records.sqlite")
    connection.execute("CREATE TABLE shopping (item TEXT)")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="not a privguard database"):
        Store.create(other)


def test_a_run_may_start_where_only_a_report_lies(tmp_path: Path) -> None:
    write_report(tmp_path, [], [], command="privguard sweep --env ant")
    Store.create(tmp_path).close()
    page = tmp_path / "other"
    page.mkdir()
    (page / "index.html").write_text("somebody's home page")
    with pytest.raises(StoreError, match="no privguard run"):
        Store.create(page)


def test_a_directory_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="not a directory"):
        Store.create(tmp_path / "file")
    with pytest.raises(StoreError, match="cannot be written"):
        Store.create(tmp_path / "file" / "below")
    with pytest.raises(StoreError, match="no privguard run"):
        Store.open(tmp_path)


def test_a_directory_holds_one_environment(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run")
    store.put_sweep(SPEC, "")
    with pytest.raises(StoreError, match="holds a run of hopper"):
        store.put_sweep(SPEC.model_copy(update={"env": "ant"}), "")


def _hold(directory: Path, held: multiprocessing.synchronize.Event) -> None:
    with Store.create(directory).lock():
        held.set()
        multiprocessing.Event().wait()


def test_the_second_sweep_into_a_directory_is_refused_until_the_first_is_gone(
    tmp_path: Path,
) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    first = context.Process(target=_hold, args=(tmp_path / "run", held))
    first.start()
    assert held.wait(30)
    store = Store.create(tmp_path / "run")
    with pytest.raises(StoreError, match="another sweep"), store.lock():
        pass
    first.kill()
    first.join()
    with store.lock():
        pass

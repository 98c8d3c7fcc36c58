"""A run's directory: its SQLite records and its lock. Tensors lie beside them (``run_files``).

Records are committed one by one (write-ahead log), so a killed run leaves nothing half-written.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from privguard.records import AttackRecord, CellRecord
from privguard.run_files import RunFiles, StoreError
from privguard.spec import SweepSpec

_APPLICATION_ID = 0x70766764
"""Marks an SQLite file as ours ("pvgd"), so that a foreign database is never written to."""
_SCHEMA_VERSION = 2
_ATTACKS_SCHEMA = """
CREATE TABLE attacks (
    cell_key TEXT NOT NULL, attack TEXT NOT NULL, release TEXT NOT NULL, knowledge TEXT NOT NULL,
    record TEXT NOT NULL, PRIMARY KEY (cell_key, attack, release, knowledge)
);
"""
_SCHEMA = f"""
CREATE TABLE sweep (
    id INTEGER PRIMARY KEY CHECK (id = 1), spec TEXT NOT NULL, command TEXT NOT NULL
);
CREATE TABLE cells (key TEXT PRIMARY KEY, record TEXT NOT NULL);
{_ATTACKS_SCHEMA}
"""
_READABLE = (1, _SCHEMA_VERSION)
"""Version 1 kept one knowledge an attack. It is read as it is, and brought up to date only by who
holds the lock: a sweep of an older version may be writing to it."""
_COUNTED = re.compile(r"(samples \([^,]*), n=(\d+)\)")
"""Version 1 wrote the number of samples into the knowledge's text."""


class Store:
    """The records of a run."""

    def __init__(self, directory: Path, connection: sqlite3.Connection) -> None:
        self.directory = directory
        self.files = RunFiles(directory)
        self._connection = connection

    @classmethod
    def create(cls, directory: Path) -> Store:
        """Opens a run's directory, making it if it is new.

        Raises:
            StoreError: it cannot be written to, holds something that is no run of ours, or its
                database is damaged.
        """
        path = directory / "records.sqlite"
        if directory.exists() and not directory.is_dir():
            raise StoreError(f"--out {directory}: is not a directory")
        if directory.is_dir() and not path.exists() and _foreign(directory):
            raise StoreError(
                f"--out {directory}: holds files but no privguard run; name an empty directory"
            )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            probe = directory / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"--out {directory}: cannot be written to ({error.strerror})"
            ) from None
        new = not path.exists()
        connection = sqlite3.connect(path)
        if new:
            connection.executescript(
                f"PRAGMA application_id={_APPLICATION_ID}; PRAGMA user_version={_SCHEMA_VERSION};"
                f"PRAGMA journal_mode=WAL; {_SCHEMA}"
            )
        else:
            _check(connection, path)
        return cls(directory, connection)

    @classmethod
    def open(cls, directory: Path) -> Store:
        """Opens an existing run's directory for reading.

        Raises:
            StoreError: there is no run, or its database is damaged.
        """
        path = directory / "records.sqlite"
        if not path.exists():
            raise StoreError(f"{directory}: no privguard run here (no records.sqlite)")
        connection = sqlite3.connect(path)
        _check(connection, path)
        return cls(directory, connection)

    def close(self) -> None:
        """Closes the database."""
        self._connection.close()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for one sweep; the kernel lets go when the process ends, however it ends.

        Raises:
            StoreError: another sweep holds it.
        """
        handle = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise StoreError(
                f"--out {self.directory}: another sweep is running there; "
                "wait for it or name another directory"
            ) from None
        try:
            _upgrade(self._connection)
            yield
        finally:
            os.close(handle)

    def put_sweep(self, spec: SweepSpec, command: str) -> None:
        """Remembers what was last asked for.

        Raises:
            StoreError: the directory holds another environment's run.
        """
        known = self.sweep()
        if known is not None and known[0].env != spec.env:
            raise StoreError(
                f"--out {self.directory}: holds a run of {known[0].env}, not {spec.env}; "
                "name another directory"
            )
        with self._connection as connection:
            connection.execute(
                "INSERT OR REPLACE INTO sweep VALUES (1, ?, ?)", (spec.model_dump_json(), command)
            )

    def sweep(self) -> tuple[SweepSpec, str] | None:
        """The specification and command of the last sweep."""
        row = self._connection.execute("SELECT spec, command FROM sweep").fetchone()
        return None if row is None else (_parse(SweepSpec, row[0], self.directory), row[1])

    def put(self, cell: CellRecord | None, attacks: list[AttackRecord]) -> None:
        """Commits a cell's record and attacks on it, all or nothing."""
        with self._connection as connection:
            if cell is not None:
                connection.execute(
                    "INSERT OR REPLACE INTO cells VALUES (?, ?)", (cell.key, cell.model_dump_json())
                )
            connection.executemany(
                "INSERT OR REPLACE INTO attacks VALUES (?, ?, ?, ?, ?)",
                [_attack_row(attack) for attack in attacks],
            )

    def cells(self) -> list[CellRecord]:
        """All cells' records, in the order they were finished."""
        rows = self._connection.execute("SELECT record FROM cells ORDER BY rowid").fetchall()
        return [_parse(CellRecord, row[0], self.directory) for row in rows]

    def attacks(self) -> list[AttackRecord]:
        """All attacks' records."""
        rows = self._connection.execute("SELECT record FROM attacks ORDER BY rowid").fetchall()
        return [_parse(AttackRecord, _updated(row[0]), self.directory) for row in rows]


def _attack_row(attack: AttackRecord) -> tuple[str, str, str, str, str]:
    return (
        attack.cell_key,
        attack.attack,
        attack.release,
        attack.knowledge,
        attack.model_dump_json(),
    )


def _upgrade(connection: sqlite3.Connection) -> None:
    """Gives a database of version 1 the present table of attacks, all or nothing."""
    if connection.execute("PRAGMA user_version").fetchone()[0] == _SCHEMA_VERSION:
        return
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        rows = connection.execute("SELECT record FROM attacks ORDER BY rowid").fetchall()
        connection.execute("DROP TABLE attacks")
        connection.execute(_ATTACKS_SCHEMA)
        records = [AttackRecord.model_validate_json(_updated(row[0])) for row in rows]
        connection.executemany(
            "INSERT INTO attacks VALUES (?, ?, ?, ?, ?)", [_attack_row(a) for a in records]
        )
        connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")


def _updated(record: str) -> str:
    """An attack's record of version 1 as the present version writes it."""
    fields = json.loads(record)
    counted = _COUNTED.fullmatch(str(fields.get("knowledge")))
    if counted is None:
        return record
    return json.dumps(fields | {"knowledge": f"{counted[1]})", "prior_samples": int(counted[2])})


_REPORT = re.compile(
    r"(frontier|statistics)\.csv|summary\.md|index\.html"
    r"|(frontier|frontier_deployed|leakage|levels|training|profiles)\.(png|pdf|svg)"
)
"""What a report writes: a run may start where only an earlier run's report lies."""


def _foreign(directory: Path) -> bool:
    harmless = {".lock", ".gitignore", "README.md"}
    entries = [entry for entry in directory.iterdir() if entry.name not in harmless]
    if all(_REPORT.fullmatch(entry.name) for entry in entries):
        return bool(entries) and not _is_report(directory)
    return True


def _is_report(directory: Path) -> bool:
    """Whether the directory's table has our header, so that its files are ours to refresh."""
    table = directory / "frontier.csv"
    return table.is_file() and table.read_bytes().startswith(b"env,defense,level,epsilon,delta,")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        healthy = connection.execute("PRAGMA quick_check").fetchone()[0] == "ok"
    except sqlite3.DatabaseError:
        application, version, healthy = _APPLICATION_ID, _SCHEMA_VERSION, False
    if not healthy:
        connection.close()
        raise StoreError(f"{path}: the database is damaged; move it away and run the sweep again")
    if application != _APPLICATION_ID:
        connection.close()
        raise StoreError(f"{path}: is not a privguard database")
    if version not in _READABLE:
        connection.close()
        raise StoreError(
            f"{path}: was written by another version (schema {version}, this one reads "
            f"{_SCHEMA_VERSION})"
        )


def _parse(model: Any, text: str, directory: Path) -> Any:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise StoreError(
            f"{directory}: a {model.__name__} is damaged or of another version "
            f"({error.errors()[0]['msg']})"
        ) from None

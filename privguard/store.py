"""A run's directory: SQLite records, safetensors captures and checkpoints, and its lock.

The only module that touches the files of a run. Records are committed one by one (write-ahead log),
tensors are written to a temporary name and renamed, so a killed run leaves nothing half-written.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from privguard.errors import BadInput
from privguard.records import AttackRecord, CellRecord
from privguard.spec import SweepSpec

if TYPE_CHECKING:
    from torch import Tensor

_APPLICATION_ID = 0x70766764
"""Marks an SQLite file as ours ("pvgd"), so that a foreign database is never written to."""
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE sweep (
    id INTEGER PRIMARY KEY CHECK (id = 1), spec TEXT NOT NULL, command TEXT NOT NULL
);
CREATE TABLE cells (key TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE attacks (
    cell_key TEXT NOT NULL, attack TEXT NOT NULL, release TEXT NOT NULL, record TEXT NOT NULL,
    PRIMARY KEY (cell_key, attack, release)
);
"""


class StoreError(BadInput):
    """The run's directory cannot be used as asked; the message is one line for the user."""


class RunFiles:
    """The tensor files of a run, safe to use from worker processes (each writes its own cells)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save_captures(self, key: str, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Writes a finished cell's captures."""
        _save(self._captures(key), tensors, plain)

    def load_captures(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Reads them back.

        Raises:
            StoreError: missing or damaged.
        """
        return _load(self._captures(key))

    def has_captures(self, key: str) -> bool:
        """Whether the cell's captures were written."""
        return self._captures(key).exists()

    def save_checkpoint(self, key: str, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Replaces a running cell's checkpoint."""
        _save(self._checkpoint(key), tensors, plain)

    def load_checkpoint(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The running cell's checkpoint, None if there is none or it is damaged (start afresh)."""
        path = self._checkpoint(key)
        return _load(path) if path.exists() else None

    def drop_checkpoint(self, key: str) -> None:
        """Removes a finished cell's checkpoint."""
        self._checkpoint(key).unlink(missing_ok=True)

    def log_failure(self, key: str, text: str) -> Path:
        """Keeps the traceback of a failed cell; returns where."""
        path = self.directory / "failures" / f"{key}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def _captures(self, key: str) -> Path:
        return self.directory / "captures" / f"{key}.safetensors"

    def _checkpoint(self, key: str) -> Path:
        return self.directory / "checkpoints" / f"{key}.safetensors"


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
                "INSERT OR REPLACE INTO attacks VALUES (?, ?, ?, ?)",
                [(a.cell_key, a.attack, a.release, a.model_dump_json()) for a in attacks],
            )

    def cells(self) -> list[CellRecord]:
        """All cells' records, in the order they were finished."""
        rows = self._connection.execute("SELECT record FROM cells ORDER BY rowid").fetchall()
        return [_parse(CellRecord, row[0], self.directory) for row in rows]

    def attacks(self) -> list[AttackRecord]:
        """All attacks' records."""
        rows = self._connection.execute("SELECT record FROM attacks ORDER BY rowid").fetchall()
        return [_parse(AttackRecord, row[0], self.directory) for row in rows]


def _foreign(directory: Path) -> bool:
    return any(
        entry.name not in {".lock", ".gitignore", "README.md"} for entry in directory.iterdir()
    )


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
    if version != _SCHEMA_VERSION:
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


def _save(path: Path, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        temporary,
        metadata={"plain": json.dumps(plain)},
    )
    temporary.replace(path)


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            plain = json.loads((file.metadata() or {})["plain"])
            # NumPy-style keys() is what safetensors offers; the handle itself cannot be iterated.
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise StoreError(
            f"{path}: is missing or damaged ({error}); delete it and run the sweep again"
        ) from None
    return tensors, plain

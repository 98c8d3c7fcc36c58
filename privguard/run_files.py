"""The files of a run beside its database: captures, checkpoints and examples, one a cell each.

A file is written to a temporary name and renamed, so a killed run leaves nothing half-written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privguard.audit.examples import Examples, pack, unpack
from privguard.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

    from privguard.records import AttackRecord, CellRecord


class StoreError(BadInput):
    """The run's directory cannot be used as asked; the message is one line for the user."""


class RunFiles:
    """The files of a run, safe to use from worker processes (each writes its own cells)."""

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

    def captured_shapes(self, key: str) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
        """Shapes and plain data alone of a cell's captures: cheap.

        Raises:
            StoreError: missing or damaged.
        """
        with _reading(self._captures(key)) as file:
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            return shapes, _plain(file)

    def has_captures(self, key: str) -> bool:
        """Whether the cell's captures were written."""
        return self._captures(key).exists()

    def add_examples(self, key: str, examples: Sequence[Examples]) -> None:
        """Keeps examples of a cell's reconstructions, in place of earlier ones of a setting."""
        from safetensors.numpy import save_file

        kept = {one.setting: one for one in [*self.load_examples(key), *examples]}
        arrays, plain = pack(list(kept.values()))
        path = self._examples(key)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_file(arrays, temporary, metadata={"plain": json.dumps(plain)})
        temporary.replace(path)

    def load_examples(self, key: str) -> list[Examples]:
        """Examples of a cell's reconstructions; none if none were kept.

        Raises:
            StoreError: damaged.
        """
        path = self._examples(key)
        if not path.exists():
            return []
        with _reading(path, "numpy") as file:
            names = file.keys()
            return unpack({name: file.get_tensor(name) for name in names}, _plain(file))

    def save_checkpoint(self, key: str, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Replaces a running cell's checkpoint."""
        _save(self._checkpoint(key), tensors, plain)

    def load_checkpoint(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The running cell's checkpoint, None if there is none or it is damaged (start afresh)."""
        path = self._checkpoint(key)
        return _load(path) if path.exists() else None

    def save_records(self, key: str, cell: CellRecord, attacks: Sequence[AttackRecord]) -> None:
        """Replaces what is known of a trained cell that is still being attacked."""
        path = self._records(key)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        records = [cell.model_dump_json(), *(attack.model_dump_json() for attack in attacks)]
        temporary.write_text("\n".join(records), encoding="utf-8")
        temporary.replace(path)

    def load_records(self, key: str) -> tuple[CellRecord, list[AttackRecord]] | None:
        """What ``save_records`` left; None if there is nothing.

        Raises:
            StoreError: damaged.
        """
        from privguard.records import AttackRecord, CellRecord

        path = self._records(key)
        if not path.exists():
            return None
        first, *others = path.read_text(encoding="utf-8").split("\n")
        try:
            return (
                CellRecord.model_validate_json(first),
                [AttackRecord.model_validate_json(line) for line in others],
            )
        except ValueError:
            raise StoreError(f"{path}: is damaged; delete it and run the sweep again") from None

    def drop_checkpoint(self, key: str) -> None:
        """Removes what was kept of a cell while it ran."""
        self._checkpoint(key).unlink(missing_ok=True)
        self._records(key).unlink(missing_ok=True)

    def log_failure(self, key: str, text: str) -> Path:
        """Keeps the traceback of a failed cell; returns where."""
        path = self.directory / "failures" / f"{key}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def _captures(self, key: str) -> Path:
        return self.directory / "captures" / f"{key}.safetensors"

    def _examples(self, key: str) -> Path:
        return self.directory / "reconstructions" / f"{key}.safetensors"

    def _checkpoint(self, key: str) -> Path:
        return self.directory / "checkpoints" / f"{key}.safetensors"

    def _records(self, key: str) -> Path:
        return self.directory / "checkpoints" / f"{key}.jsonl"


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
    with _reading(path) as file:
        # NumPy-style keys() is what safetensors offers; the handle itself cannot be iterated.
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, _plain(file)


@contextmanager
def _reading(path: Path, framework: str = "pt") -> Iterator[Any]:
    """An open tensor file; what goes wrong with it becomes one line for the user."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise StoreError(
            f"{path}: is missing or damaged ({error}); delete it and run the sweep again"
        ) from None


def _plain(file: Any) -> dict[str, Any]:
    return json.loads((file.metadata() or {})["plain"])

"""The house's arrows point one way, and the door opens without lifting the furniture."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "attacks": ("privguard", "defenses"),
    "defenses": ("privguard", "attacks"),
    "privguard/reporting": ("torch", "attacks", "defenses", "opacus"),
}


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_imports_only_what_lies_downhill(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        wrong = imported_packages(path) & set(FORBIDDEN[room])
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_reports_hold_no_code() -> None:
    assert not list((ROOT / "reports").rglob("*.py"))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list"], ["sweep", "--help"], ["list", "--json"]]
)
def test_help_and_list_never_import_torch(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['privguard', *{arguments!r}]\n"
        "from privguard.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'opacus', 'matplotlib', 'gymnasium', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout

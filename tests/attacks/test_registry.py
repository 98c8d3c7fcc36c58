from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import attacks
from attacks import available_attacks, check_attack, get_attack
from attacks.registry import UnknownAttack

PACKAGE = Path(attacks.__file__).parent


@pytest.mark.parametrize("name", list(available_attacks()))
def test_conformance(name: str) -> None:
    assert check_attack(name) == []


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UnknownAttack, match="did you mean rgia"):
        get_attack("rgai")


def test_unknown_hyperparameters_are_refused() -> None:
    with pytest.raises(ValueError, match="restarts"):
        get_attack("dlg", restart=3)
    assert get_attack("dlg", restarts=3).restarts == 3  # type: ignore[attr-defined]


def test_a_module_prefix_is_imported_first() -> None:
    assert get_attack("attacks.dlg:dlg").name == "dlg"


def test_decorators_can_be_read_without_importing() -> None:
    found = {}
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                for call in node.decorator_list:
                    name = getattr(call, "func", None)
                    if isinstance(call, ast.Call) and getattr(name, "id", "") == "register_attack":
                        keywords = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
                        found[ast.literal_eval(call.args[0])] = keywords
    registered = available_attacks()
    assert found.keys() == registered.keys()
    for name, keywords in found.items():
        assert keywords["summary"] == registered[name].summary
        assert keywords.get("needs", ()) == registered[name].needs


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import attacks, sys; assert 'torch' not in sys.modules; attacks.Channel"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_attacks_are_a_leaf() -> None:
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            assert not any(m.split(".")[0] in ("privguard", "defenses") for m in modules), path

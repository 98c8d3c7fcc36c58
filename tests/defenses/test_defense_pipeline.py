"""Parsing, composition, description and discovery of defences."""

import ast
import json
import math
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

import defenses
from defenses import DefenseError, parse
from defenses.gaussian import Gaussian


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("none", "none"),
        (" none ", "none"),
        ("clip=1+quantize=8+secagg=4", "clip=1.0+quantize=8+secagg=4"),
        ("gaussian=1e+2 + topk=.1", "gaussian=100.0+topk=0.1"),
        ("gaussian=0.00001", "gaussian=1e-05"),
        ("dp-sgd=.1@clip=0.5", "dp-sgd=0.1@clip=0.5"),
        ("dp-sgd=.1@clip=1", "dp-sgd=0.1"),
        ("quantize=8.0", "quantize=8"),
        ("secagg", "secagg"),
        ("secagg@range=128", "secagg@range=128.0"),
    ],
)
def test_canonical_text(text, canonical):
    defense = parse(text)
    assert defense.text == canonical
    assert parse(canonical) == defense


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "write 'none'"),
        ("gausian=1", "did you mean 'gaussian'"),
        ("dpsgd=1", "did you mean 'dp-sgd'"),
        ("zzz=1", "known: none, adaptive-gaussian, clip, distributed-dp"),
        ("gaussian", "needs a level (variance), e.g. gaussian=1e-05"),
        ("gaussian=", "a finite number from 0 up"),
        ("gaussian=-1", "a finite number from 0 up"),
        ("gaussian=inf", "a finite number from 0 up"),
        ("gaussian=nan", "a finite number from 0 up"),
        ("gaussian=abc", "a finite number from 0 up"),
        ("clip=0", "a finite number above 0, e.g. clip=10.0"),
        ("topk=0", "a finite number above 0 up to 1"),
        ("topk=1.5", "a finite number above 0 up to 1"),
        ("quantize=17", "a whole number from 1 to 16"),
        ("quantize=2.5", "a whole number from 1 to 16"),
        ("secagg=1", "a whole number from 2 up"),
        ("clip=1.0+", "clip=1.0+"),
        ("none+clip=1", "'none' stands alone"),
        ("clip=1+dp-sgd=1", "write dp-sgd+clip"),
        ("secagg=2+clip=1", "write clip+secagg"),
        ("dp-sgd=1+dp-sgd=2", "at most one per-sample stage"),
        ("secagg+secagg=2", "at most one aggregation stage"),
        ("clip=1+clip=2", "more than once"),
        ("topk=0.1+quantize=1", "1-bit codes have no zero"),
        ("randk=0.1+quantize=1", "1-bit codes have no zero"),
        ("randk=0.1+laplace=1", "write laplace before randk"),
        ("dp-sgd=1@clp=2", "takes @clip=1.0"),
        ("dp-sgd=1@clip", "takes @clip=1.0"),
        ("dp-sgd=1@clip=x", "must be of type float"),
        ("dp-sgd=1@clip=1@clip=2", "given twice"),
        ("clip=1@x=2", "takes no options"),
        ("no.such.module:thing=1", "cannot import 'no.such.module'"),
    ],
)
def test_errors_are_one_clear_line(text, message):
    with pytest.raises(DefenseError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_properties_follow_the_stages():
    expected = {
        "none": ("uniform", True),
        "gaussian=0.1": ("uniform", True),
        "dp-sgd=0.1": ("poisson", True),
        "dp-sgd=0.1+gaussian=0.1": ("poisson", True),
        "clip=1.0": ("uniform", False),
        "dp-sgd=0.1+quantize=8": ("poisson", False),
        "gaussian=0.1+secagg": ("uniform", False),
    }
    for text, (sampling, additive) in expected.items():
        assert (parse(text).sampling, parse(text).additive) == (sampling, additive)


def test_descriptions_hold_what_an_adversary_needs():
    text = "dp-sgd=0.5@clip=2.0+clip=1.0+gaussian=0.04+topk=0.1+quantize=8+secagg=4"
    described = parse(text).describe(batch_size=10)
    assert json.loads(json.dumps(described)) == described
    by_name = {entry["mechanism"]: entry for entry in described}
    assert list(by_name) == ["dp-sgd", "clip", "gaussian", "topk", "quantize", "secagg"]
    assert by_name["dp-sgd"]["noise_std"] == pytest.approx(0.5 * 2.0 / 10)
    assert by_name["dp-sgd"]["noise_multiplier"] == 0.5
    assert by_name["dp-sgd"]["clip_norm"] == 2.0
    assert by_name["gaussian"]["noise_std"] == pytest.approx(0.2)
    assert by_name["clip"]["norm"] == 1.0
    assert by_name["topk"]["fraction"] == 0.1
    assert by_name["quantize"]["bits"] == 8
    assert by_name["secagg"]["clients"] == 4
    assert [name for name, entry in by_name.items() if entry["formal_guarantee"]] == ["dp-sgd"]
    for entry in described:
        assert {"server_receives", "sensitivity", "unit", "guarantee", "stage"} <= set(entry)
    assert parse("none").describe() == []
    assert not parse("dp-sgd=0").describe()[0]["formal_guarantee"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("none", 4000),
        ("gaussian=0.1", 4000),
        ("quantize=8", 1000 + 4 * 6),
        ("quantize=1", 125 + 4 * 6),
        ("topk=0.1", 100 * 8),
        ("topk=0.1+quantize=8", 100 * 5 + 4 * 6),
        ("randk=0.1", 100 * 4),
        ("randk=0.1+quantize=8", 100 + 4 * 6),
        ("layer-clip=1+adaptive-gaussian=1", 4000),
        ("topk=0.1+gaussian=0.1", 4000),
        ("quantize=8+secagg", 8000),
    ],
)
def test_upload_bytes(text, size):
    assert parse(text).upload_bytes(1000, tensors=6) == size


def test_importing_the_package_does_not_import_torch():
    code = "import sys, defenses; sys.exit('torch' in sys.modules or 'opacus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_opacus_is_imported_by_dp_sgd_only():
    code = (
        "import sys, defenses; defenses.parse('gaussian=1.0+secagg').accountant();"
        "sys.exit('opacus' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_listing_by_source_agrees_with_the_registry():
    """Decorators hold literals only, so that a listing never needs to import torch."""
    listed = {}
    for file in Path(defenses.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                for call in node.decorator_list:
                    if (
                        isinstance(call, ast.Call)
                        and getattr(call.func, "id", "") == "register_defense"
                    ):
                        arguments = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
                        listed[ast.literal_eval(call.args[0])] = arguments
    available = defenses.available_defenses()
    ours = {
        name: info
        for name, info in available.items()
        if info.cls.__module__.startswith("defenses.")
    }
    assert set(listed) == set(ours) >= {"gaussian", "dp-sgd", "clip", "quantize", "topk", "secagg"}
    for name, arguments in listed.items():
        for key, value in arguments.items():
            assert getattr(ours[name], key) == value
        for level in ours[name].grid:
            assert math.isfinite(ours[name].check_level(str(level)))


@pytest.fixture
def plugin(monkeypatch):
    """A third-party module that registers a defence with an option."""
    module = types.ModuleType("thirdparty_noise")
    monkeypatch.setitem(sys.modules, "thirdparty_noise", module)
    monkeypatch.setattr("defenses.registry._REGISTRY", dict(defenses.registry._REGISTRY))

    @defenses.register_defense("twice", stage="transform", summary="x", guarantee="none")
    @dataclass(frozen=True)
    class Twice(Gaussian):
        variance: float = 2.0

    return Twice


def test_third_party_names(plugin):
    defense = parse("thirdparty_noise:twice@variance=3.0+secagg")
    assert defense.transforms == (plugin(3.0),)
    assert defense.text == "thirdparty_noise:twice@variance=3.0+secagg"
    assert defenses.get_defense_class("thirdparty_noise:twice") is plugin
    with pytest.raises(DefenseError, match="has no level"):
        parse("twice=1")


def test_a_name_is_registered_once(plugin):
    with pytest.raises(DefenseError, match="already registered"):
        defenses.register_defense("clip", stage="transform", summary="x", guarantee="none")(plugin)

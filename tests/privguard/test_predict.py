"""Limits before any defended training: monotone, consistent with the audit, clear when refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from attacks.channel import Channel
from privguard.auditing import Audit
from privguard.command_line.queries import predict_command
from privguard.errors import BadInput
from privguard.knowledge import Knowledge
from privguard.predict import Prediction, fresh_captures, predict


@pytest.fixture(scope="module")
def hopper() -> Prediction:
    captured = [fresh_captures("hopper", "default", 1, seed=0)]
    return predict(captured, share=0.5, clip_norm=1.0, networks="untrained networks")


def test_floors_rise_and_accuracy_falls_with_noise(hopper: Prediction) -> None:
    for curve in (hopper.gaussian, hopper.clipped):
        for less, more in pairwise(curve):
            assert less.floor_nmse < more.floor_nmse + 1e-9
            assert less.accuracy > more.accuracy - 1e-9
        assert curve[0].floor_nmse < 1e-3
        assert curve[-1].floor_nmse == pytest.approx(1.0, abs=0.02)


def test_releases_that_are_kept_add_up(hopper: Prediction) -> None:
    captured = [fresh_captures("hopper", "default", 1, seed=0)]
    kept = predict(captured, share=0.5, clip_norm=1.0, networks="untrained networks", releases=100)
    assert hopper.gaussian_std is not None
    assert kept.gaussian_std == pytest.approx(10 * hopper.gaussian_std, rel=0.01)
    # Two steps of the table are a factor of ten in the noise.
    for once, hundredfold in zip(hopper.gaussian, kept.gaussian[2:], strict=False):
        assert hundredfold.floor_nmse == pytest.approx(once.floor_nmse, rel=1e-3, abs=1e-6)


def test_the_crossing_has_the_wanted_floor(hopper: Prediction) -> None:
    assert hopper.gaussian_std is not None
    below = [p for p in hopper.gaussian if p.noise_std < hopper.gaussian_std]
    above = [p for p in hopper.gaussian if p.noise_std > hopper.gaussian_std]
    assert below[-1].floor_nmse < 0.5 < above[0].floor_nmse


def test_clipping_needs_less_noise(hopper: Prediction) -> None:
    assert hopper.gradient_norm > hopper.clip_norm
    assert hopper.noise_multiplier is not None
    assert hopper.gaussian_std is not None
    assert hopper.noise_multiplier < hopper.gaussian_std


def test_scaled_information_is_that_of_the_noise() -> None:
    cell, captures = fresh_captures("hopper", "default", 1, seed=1)
    audit = Audit.prepare(cell, captures, Knowledge())
    unit, small = (audit.information(0, channel=Channel(noise_std=std))[0] for std in (1.0, 0.1))
    assert unit is not None
    assert small is not None
    torch.testing.assert_close(unit.floor(100.0), small.floor(), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 1.5}, "--share 1.5"),
        ({"clip": 0.0}, "--clip 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"env": "antt"}, "did you mean 'ant'"),
        ({"env": "frozenlake"}, "no floor for discrete actions"),
        ({"env": "pong"}, r"--env pong: no floor for discrete actions \(allowed: ant, "),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    options: dict[str, object] = {
        "env": "hopper",
        "observation": "default",
        "batch_size": 1,
        "share": 0.5,
        "clip": 1.0,
        "releases": 1,
        "run": None,
        "seed": 0,
        "as_json": False,
    }
    with pytest.raises(BadInput, match=message):
        predict_command(**(options | change))  # type: ignore[arg-type]


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        predict_command("hopper", "default", 1, 0.5, 1.0, 1, tmp_path, 0, False)

from __future__ import annotations

import math

import pytest

from attacks import Channel


def test_nothing_is_the_identity() -> None:
    channel = Channel.from_description([])
    assert channel.exact
    assert str(channel) == "identity"


def test_noises_add_in_variance_and_secure_aggregation_averages_them() -> None:
    channel = Channel.from_description(
        [
            {"mechanism": "gaussian", "noise_std": 0.3},
            {"mechanism": "gaussian", "noise_std": 0.4},
            {"mechanism": "secagg", "clients": 4},
        ]
    )
    assert math.isclose(channel.noise_std, 0.25)
    assert not channel.scale_unknown


def test_what_is_unknown_is_flagged() -> None:
    clipped = Channel.from_description([{"mechanism": "clip", "norm": 1.0}])
    private = Channel.from_description([{"mechanism": "dp-sgd", "noise_std": 0.1}])
    sparse = Channel.from_description([{"mechanism": "topk", "fraction": 0.01}])
    assert clipped.scale_unknown
    assert private.scale_unknown
    assert private.noise_std == 0.1
    assert sparse.zeroed
    assert not sparse.scale_unknown
    assert "fraction=0.01" in str(sparse)


@pytest.mark.parametrize(
    "description",
    [
        [{"noise_std": 1.0}],
        [{"mechanism": "gaussian", "noise_std": -1.0}],
        [{"mechanism": "gaussian", "noise_std": math.nan}],
        [{"mechanism": "secagg"}],
    ],
)
def test_malformed_descriptions_are_refused(description: list[dict[str, object]]) -> None:
    with pytest.raises(ValueError, match=r"needs|noise_std"):
        Channel.from_description(description)

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


@pytest.mark.parametrize("mechanism", ["secagg", "he", "distributed-dp"])
def test_of_a_sum_those_count_who_answered(mechanism: str) -> None:
    description = [
        {"mechanism": "gaussian", "noise_std": 0.3},
        {"mechanism": mechanism, "clients": 4},
    ]
    full, smaller = (Channel.from_description(description, clients=n) for n in (None, 2))
    assert math.isclose(full.noise_std, 0.15)
    assert math.isclose(smaller.noise_std, 0.3 / math.sqrt(2))
    assert [channel.mechanisms[1]["clients"] for channel in (full, smaller)] == [4, 2]
    assert full.sums
    # distributed-dp clips after the noise, and what a sum over such clients tells has no bound.
    assert full.bounding() == (None if mechanism == "distributed-dp" else full)
    assert not Channel.from_description(description[:1], clients=2).sums


def test_shares_of_noise_add_up_in_the_sum() -> None:
    # Three quarters of four clients must answer, so each adds a third of the variance.
    entry = {"mechanism": "distributed-dp", "noise_std": 0.6 / math.sqrt(3), "clip_norm": 0.6}
    channel = Channel.from_description([{**entry, "clients": 4}])
    assert math.isclose(channel.noise_std, 0.6 * math.sqrt(4 / 3) / 4)
    assert [clip.limit for clip in channel.clips] == [0.6]
    assert channel.clips_sum
    assert channel.scale_unknown


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

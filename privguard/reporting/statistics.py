"""Means and their stratified bootstrap intervals.

A score is observed in several seeds (the strata) and, within each, on several items: attacked
targets or evaluation episodes. Every seed weighs the same. A resample draws seeds with
replacement, where there are at least two, and then items with replacement within each drawn seed;
the interval is the central 95% of the resampled means.

With two or three seeds such an interval is known to be too narrow: read it as a lower limit on the
uncertainty. With one seed it says nothing about the variation between seeds. ``coverage_text`` says
so in the words that reports print. A single observation has no interval: resampled it is itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

Array = NDArray[np.float64]

RESAMPLES = 2000
CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2
UNDEFINED_SHARE = TAIL
"""A ratio whose denominator is not positive in more resamples than this has no bounded interval."""
SEEDS_TO_TRUST = 5
"""From here on the range that resampled seeds span holds the median at about the stated rate: with
n seeds their whole range misses it with probability 2^(1-n), 0.06 at five and 0.25 at three."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; ``low <= mean <= high``, or None where it is not defined.

    One observation alone has a mean and no bounds.
    """

    mean: float | None = None
    low: float | None = None
    high: float | None = None


UNDEFINED = Estimate()


def coverage_text(seeds: int) -> str:
    """What an interval over ``seeds`` seeds covers, and what it leaves out."""
    if seeds <= 1:
        return (
            "bootstrap 95% over the targets or episodes of one seed: they cover the chance in "
            "measuring this one training, not how another seed would have ended"
        )
    items = "bootstrap 95% over seeds and, within them, targets or episodes"
    return items if seeds >= SEEDS_TO_TRUST else f"{items}; with {seeds} seeds they are too narrow"


def finite(values: Iterable[float | None]) -> Array:
    """The values that are neither None, NaN nor infinite."""
    kept = [value for value in values if value is not None and math.isfinite(value)]
    return np.asarray(kept, dtype=np.float64)


def mean_or_none(values: Iterable[float | None]) -> float | None:
    """Mean of the finite values, None if there is none."""
    kept = finite(values)
    return float(kept.mean()) if kept.size else None


def seed_mean(groups: Sequence[Array]) -> float | None:
    """Mean over seeds of the means within seeds; None if no seed has a value."""
    return mean_or_none([float(group.mean()) for group in groups if group.size])


def bootstrap_mean(groups: Sequence[Array]) -> Estimate:
    """Estimate of the mean over seeds; ``groups`` holds one array of items a seed.

    The random numbers depend only on the number of seeds and items, so the same records always
    give the same interval and rows of one table are resampled alike.
    """
    present = [group for group in groups if group.size]
    mean = seed_mean(present)
    if mean is None:
        return UNDEFINED
    if observations(present) == 1:
        return Estimate(mean)
    return percentile_interval(mean, _resampled(present, "items"))


def bootstrap_share(groups: Sequence[Array]) -> Estimate:
    """Estimate of a share: the mean of items in [0, 1] that count successes.

    The bootstrap of items that all agree has no width, so the interval is widened to the
    Clopper-Pearson interval of as many independent items: no hit among 24 leaves up to 0.14.
    """
    estimate = bootstrap_mean(groups)
    if estimate.mean is None:
        return UNDEFINED
    items = observations(groups)
    hits = estimate.mean * items
    low = float(beta.ppf(TAIL, hits, items - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(1 - TAIL, hits + 1, items - hits)) if hits < items else 1.0
    if estimate.low is not None and estimate.high is not None:
        low, high = min(low, estimate.low), max(high, estimate.high)
    # Rounding may put a resampled mean a little outside [0, 1].
    return Estimate(estimate.mean, max(0.0, low), min(1.0, high))


def bootstrap_ratio(
    numerator: Sequence[Array], denominator: Sequence[Array], *, offset: float
) -> Estimate:
    """Estimate of (mean numerator - offset) / (mean denominator - offset), paired by seed.

    ``numerator[k]`` and ``denominator[k]`` belong to the same seed and are drawn together; an empty
    array marks a seed that one of them lacks. Resamples that leave one of them without any seed are
    left out. The bounds are None where the denominator's sign is not certain at this confidence, or
    where one of the two was observed once. The ratio of a quantity to itself is 1, for certain.
    """
    if len(numerator) != len(denominator):
        raise ValueError("numerator and denominator must list the same seeds")
    top, bottom = seed_mean(numerator), seed_mean(denominator)
    if top is None or bottom is None or bottom <= offset:
        return UNDEFINED
    mean = (top - offset) / (bottom - offset)
    tops = _resampled(numerator, "items")
    # The same items in both places are the same cell: its episodes must not be drawn twice.
    same = numerator is denominator
    if not same and 1 in (observations(numerator), observations(denominator)):
        return Estimate(mean)
    bottoms = tops if same else _resampled(denominator, "reference")
    drawn = np.isfinite(tops) & np.isfinite(bottoms)
    tops, bottoms = tops[drawn] - offset, bottoms[drawn] - offset
    positive = bottoms > 0
    if positive.mean() < 1 - UNDEFINED_SHARE:
        return Estimate(mean=mean)
    return percentile_interval(mean, tops[positive] / bottoms[positive])


def observations(groups: Sequence[Array]) -> int:
    """Items of all seeds together."""
    return sum(len(group) for group in groups)


def percentile_interval(mean: float, resampled: Array) -> Estimate:
    """The central share of the resampled values, with ``mean`` inside."""
    low, high = np.quantile(resampled, [TAIL, 1 - TAIL])
    # Rounding, and the skewness of a ratio, may put the mean a little outside.
    return Estimate(mean, min(float(low), mean), max(float(high), mean))


def _resampled(groups: Sequence[Array], stream: str) -> Array:
    weights = _resample_weights(tuple(len(group) for group in groups), stream)
    means: Array = weights @ np.concatenate(groups)
    return means


@lru_cache(maxsize=64)
def _resample_weights(sizes: tuple[int, ...], stream: str) -> Array:
    """Weight of each item in each resample, (resamples, sum of sizes); rows sum to one.

    Seeds are drawn from a stream that depends on their number only, so two calls with equally many
    seeds draw the same ones: that is the pairing. A row that draws only empty seeds is NaN.
    """
    seeds, total = len(sizes), sum(sizes)
    drawn = generator("seeds").integers(seeds, size=(RESAMPLES, seeds))
    counts = np.asarray(sizes)[drawn]
    uniform = generator(stream).random((RESAMPLES, seeds, max(sizes)))
    taken = np.arange(max(sizes)) < counts[..., None]
    item = np.minimum((uniform * counts[..., None]).astype(np.intp), counts[..., None] - 1)
    start = np.concatenate(([0], np.cumsum(sizes)[:-1]))[drawn]
    row = np.arange(RESAMPLES)[:, None, None]
    flat = row * total + start[..., None] + item
    share = np.broadcast_to(1 / np.maximum(counts, 1)[..., None], taken.shape)
    weights = np.bincount(flat[taken], share[taken], minlength=RESAMPLES * total)
    weights = weights.reshape(RESAMPLES, total)
    sums = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, sums, out=np.full_like(weights, np.nan), where=sums > 0)
    weights.setflags(write=False)
    return weights


def generator(stream: str) -> np.random.Generator:
    """Random numbers that depend on the stream's name alone, so that reports repeat exactly."""
    digest = hashlib.sha256(f"privguard.reporting:{stream}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))

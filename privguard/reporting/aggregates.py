"""Aggregates over runs as the RL field reports them (Agarwal et al. 2021, arXiv 2108.13264).

A **run** is one training with one seed; its score is the mean of its items (evaluation episodes or
attacked targets). A **task** is what the runs have in common: one environment. Definitions are
those of rliable:

- interquartile mean (IQM): the mean of the middle half of all runs' scores, all tasks together.
  Fewer than four runs leave nothing to cut off: their IQM is their mean.
- interval: percentiles of the IQM under the stratified bootstrap, which resamples runs with
  replacement within each task.
- performance profile: the share of a task's runs that score above tau, averaged over tasks.

Where rliable would give an interval of no width, a task with a single run, the items of that run
are resampled instead (a single item leaves no interval); ``statistics.coverage_text`` says what
such an interval leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import trim_mean

from privguard.reporting.statistics import (
    RESAMPLES,
    TAIL,
    UNDEFINED,
    Array,
    Estimate,
    generator,
    observations,
    percentile_interval,
)

CUT = 0.25
"""Share of the runs that the IQM leaves out at either end."""

Task = Sequence[Array]
"""One array of items for each run; none is empty."""


def interquartile_mean(tasks: Sequence[Task]) -> Estimate:
    """IQM over all runs of all tasks, with its stratified bootstrap interval."""
    tasks = [task for task in tasks if len(task)]
    if not tasks:
        return UNDEFINED
    scores = np.concatenate([_scores(task) for task in tasks])
    iqm = float(trim_mean(scores, CUT))
    if sum(observations(task) for task in tasks) == 1:
        return Estimate(iqm)
    resampled = np.concatenate(
        [_resampled_scores(task, f"task {index}") for index, task in enumerate(tasks)], axis=1
    )
    return percentile_interval(iqm, np.asarray(trim_mean(resampled, CUT, axis=1)))


def paired_difference(runs: Mapping[int, Array], controls: Mapping[int, Array]) -> Estimate:
    """Mean over the seeds that both have of (run's score - score of the same seed's control).

    What a seed does to both, such as an easy initialisation, cancels. Seeds are resampled; with
    one shared seed, its items.
    """
    shared = sorted(runs.keys() & controls.keys())
    if not shared:
        return UNDEFINED
    differences = np.array([runs[seed].mean() - controls[seed].mean() for seed in shared])
    if len(shared) > 1:
        resampled = _drawn(differences, "task 0").mean(axis=1)
    elif 1 in (len(runs[shared[0]]), len(controls[shared[0]])):
        return Estimate(float(differences[0]))
    else:
        run = _drawn(runs[shared[0]], "run").mean(axis=1)
        resampled = run - _drawn(controls[shared[0]], "control").mean(axis=1)
    return percentile_interval(float(differences.mean()), resampled)


@dataclass(frozen=True)
class Profile:
    """Share of runs above each threshold, with its pointwise interval; arrays of one length."""

    thresholds: Array
    share: Array
    low: Array
    high: Array


def performance_profile(tasks: Sequence[Task], thresholds: Array) -> Profile:
    """The run-score distribution at ``thresholds``.

    Raises:
        ValueError: no task has a run.
    """
    tasks = [task for task in tasks if len(task)]
    if not tasks:
        raise ValueError("a performance profile needs a run")
    share = np.mean([_above(_scores(task)[None], thresholds)[0] for task in tasks], axis=0)
    resampled = np.mean(
        [
            _above(_resampled_scores(task, f"task {index}"), thresholds)
            for index, task in enumerate(tasks)
        ],
        axis=0,
    )
    low, high = np.quantile(resampled, [TAIL, 1 - TAIL], axis=0)
    return Profile(thresholds, share, np.minimum(low, share), np.maximum(high, share))


def _above(scores: Array, thresholds: Array) -> Array:
    """Scores (draws, runs) to shares (draws, thresholds)."""
    above: Array = (scores[:, :, None] > thresholds).mean(axis=1)
    return above


def _scores(task: Task) -> Array:
    return np.array([run.mean() for run in task])


def _resampled_scores(task: Task, stream: str) -> Array:
    """Scores of resampled runs, (resamples, runs)."""
    if len(task) > 1:
        return _drawn(_scores(task), stream)
    return _drawn(task[0], stream).mean(axis=1, keepdims=True)


def _drawn(values: Array, stream: str) -> Array:
    """``values`` drawn with replacement, (resamples, values).

    Equally many values in equally named streams are drawn alike: levels compare paired by seed.
    """
    drawn: Array = values[generator(stream).integers(len(values), size=(RESAMPLES, len(values)))]
    return drawn

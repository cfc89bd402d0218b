"""Statistics of final scores, in numpy alone: point estimates over tasks, bootstrap intervals, profiles, comparisons.

Scores come as strata: one array per task, one value per seed (a seed's value is already a mean over its evaluation
episodes, since episodes of one agent are not independent). Estimates follow Agarwal et al. 2021, "Deep reinforcement
learning at the edge of the statistical precipice"; tasks may have different numbers of seeds. Randomness is an
argument.

An agent of several tasks has a score on each from one run, and these are not independent. `runs` names what each
stratum holds: strata of one name have the scores of the same runs in the same order and are drawn together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Scores = Float[np.ndarray, " seeds"]
Samples = Float[np.ndarray, "samples seeds"]

LEVEL = 0.95
RESAMPLES = 10_000
COVERAGE = (
    "With few seeds such intervals are too narrow: of normal numbers, the mean's holds the truth in 50 % of cases with "
    "2 seeds, 75 % with 3, 84 % with 5 and 90 % with 10."
)
"""Of `bootstrap` of one task's mean, whose resamples a test enumerates."""


@dataclass(frozen=True, slots=True)
class Interval:
    value: float
    low: float
    high: float
    """NaN, as `low`, where a task has one seed: resampling it shows no spread, as if it had none."""

    @property
    def known(self) -> bool:
        return bool(np.isfinite(self.low) and np.isfinite(self.high))


Statistic = Callable[[Sequence[Samples]], Float[np.ndarray, " samples"]]
"""Strata of resampled scores, each [samples, seeds] -> one value per sample."""


def trimmed_mean(
    values: Float[np.ndarray, "samples n"], weights: Float[np.ndarray, " n"], share: float = 0.25
) -> Float[np.ndarray, " samples"]:
    """Return the weighted means without the lowest and highest values that weigh at most `share` of all together.

    The interquartile mean for 0.25. Of n equal weights, `floor(share * n)` values go at each end.
    """
    order = np.argsort(values, axis=1, kind="stable")
    ordered, weighs = np.take_along_axis(values, order, axis=1), weights[order]
    until = np.cumsum(weighs, axis=1)  # [samples, n], each value's own weight included
    limit = share * weights.sum()
    kept = weighs * ((until > limit) & (weights.sum() - until + weighs > limit))
    return (ordered * kept).sum(axis=1) / kept.sum(axis=1)


def iqm(strata: Sequence[Samples]) -> Float[np.ndarray, " samples"]:
    """Return the interquartile mean over the runs of all tasks together; tasks weigh the same, whatever their seeds."""
    counts = [stratum.shape[1] for stratum in strata]
    whole = math.lcm(*counts)  # whole numbers in place of 1 / n: their sums are exact
    weights = np.concatenate([np.full(n, whole / n) for n in counts])
    return trimmed_mean(np.concatenate(strata, axis=1), weights)


def mean(strata: Sequence[Samples]) -> Float[np.ndarray, " samples"]:
    """Return the mean over tasks of the mean over seeds."""
    return np.mean([stratum.mean(axis=1) for stratum in strata], axis=0)


def median(strata: Sequence[Samples]) -> Float[np.ndarray, " samples"]:
    """Return the median over tasks of the mean over seeds."""
    return np.median([stratum.mean(axis=1) for stratum in strata], axis=0)


def optimality_gap(strata: Sequence[Samples], target: float = 1.0) -> Float[np.ndarray, " samples"]:
    """Return the mean amount by which runs fail to reach `target`; what is above it does not make up for the rest."""
    return np.mean([np.maximum(target - stratum, 0.0).mean(axis=1) for stratum in strata], axis=0)


def bootstrap(
    strata: Sequence[Scores],
    statistic: Statistic,
    rng: np.random.Generator,
    *,
    runs: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Return the statistic and its stratified percentile bootstrap interval: seeds are drawn anew within each task.

    Args:
        runs: whose scores each stratum holds; strata of the same runs are drawn together (None: all of different ones).

    Raises:
        ValueError: a task without scores.
    """
    if not strata or any(len(stratum) == 0 for stratum in strata):
        raise ValueError(f"every task needs at least one score, got {[len(stratum) for stratum in strata]}")
    value = float(statistic([np.asarray(stratum, float)[None] for stratum in strata])[0])
    if min(len(stratum) for stratum in strata) < 2:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(statistic(_resample(strata, runs, resamples, rng)), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _resample(
    strata: Sequence[Scores], runs: Sequence[Hashable] | None, resamples: int, rng: np.random.Generator
) -> list[Samples]:
    drawn: list[Samples] = []
    chosen: dict[Hashable, np.ndarray] = {}
    for stratum, which in zip(strata, range(len(strata)) if runs is None else runs, strict=True):
        if which not in chosen:
            chosen[which] = rng.integers(len(stratum), size=(resamples, len(stratum)))
        drawn.append(np.asarray(stratum, float)[chosen[which]])
    return drawn


Pair = tuple[Scores, Scores]
"""A run's evaluation episodes and those of the run that it is compared with."""


def difference_of_medians(
    strata: Sequence[Sequence[Pair]], rng: np.random.Generator, *, runs: Sequence[Hashable] | None = None
) -> Interval:
    """Return the mean over tasks of median(all episodes of the first) - median(all of the second), with its interval.

    Medians are of all runs' episodes together, as a curve of the paper is; pairs of runs are drawn, not episodes.

    Args:
        strata: one for each task, its pairs of runs.
        runs: as in `bootstrap`.
    """
    sides = [[_stacked([pair[side] for pair in pairs]) for side in range(2)] for pairs in strata]

    def statistic(drawn: Sequence[Samples]) -> Float[np.ndarray, " samples"]:
        return np.mean(
            [_pooled(a, i.astype(int)) - _pooled(b, i.astype(int)) for (a, b), i in zip(sides, drawn, strict=True)],
            axis=0,
        )

    return bootstrap([np.arange(len(pairs), dtype=float) for pairs in strata], statistic, rng, runs=runs)


def _stacked(episodes: Sequence[Scores]) -> Float[np.ndarray, "runs episodes"]:
    """Runs with fewer episodes than others are filled up with NaN."""
    filled = np.full((len(episodes), max(map(len, episodes))), np.nan)
    for row, own in zip(filled, episodes, strict=True):
        row[: len(own)] = own
    return filled


def _pooled(
    episodes: Float[np.ndarray, "runs episodes"], chosen: Int[np.ndarray, "samples runs"]
) -> Float[np.ndarray, " samples"]:
    median = np.nanmedian if np.isnan(episodes).any() else np.median  # the former is far slower
    return median(episodes[chosen].reshape(len(chosen), -1), axis=1)


def probability_of_improvement(x: Samples, y: Samples) -> Float[np.ndarray, " samples"]:
    """Return P(X > Y) + P(X = Y) / 2 for a run of each drawn at random: Mann and Whitney's U over n m."""
    above = (x[:, :, None] > y[:, None, :]).mean(axis=(1, 2))  # [samples, n, m] -> [samples]
    equal = (x[:, :, None] == y[:, None, :]).mean(axis=(1, 2))
    return above + equal / 2


def shortfall(counts: Sequence[int], chance: float, tasks: Sequence[int] | None = None) -> float:
    """Return the most that the sum of m_i (1 - p_i) can be while the product of p_i^k_i is `chance`; 0 without counts.

    k: `counts`; m: `tasks`, 1 each where not given. It is there with p_i = min(1, c k_i / m_i), of one c for all
    (Lagrange): tasks with few runs may fall the furthest.
    """
    k, m = np.asarray(counts, float), np.ones(len(counts)) if tasks is None else np.asarray(tasks, float)
    order = np.argsort(k / m)
    k, m = k[order], m[order]
    for n in range(len(k), 0, -1):  # the n smallest k / m have p_i below 1
        rate = k[:n] / m[:n]
        c = math.exp((math.log(chance) - (k[:n] * np.log(rate)).sum()) / k[:n].sum())
        if c * rate[-1] <= 1:
            return float((m[:n] * (1 - c * rate)).sum())
    return 0.0


def improvement(
    x: Sequence[Scores],
    y: Sequence[Scores],
    rng: np.random.Generator,
    *,
    runs: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    resamples: int = 2000,
    level: float = LEVEL,
) -> Interval:
    """Return the probability that X improves on Y, averaged over tasks, both sides resampled within each task.

    Where all runs of one side are above all of the other, resampling shows no spread. The interval then goes further by
    what the probabilities of such tasks could differ from 1, or from 0, and still show this with a chance of
    (1 - level) / 2: all of k pairs of runs that have no run in common come out alike with a chance of p^k at most. It
    goes at least as far as if all tasks were such: no scores tell more. Tasks that share their runs show this with the
    chance of one task: that of the smallest p.

    Args:
        runs: whose scores X and Y have on each task, as in `bootstrap`.
    """
    n = len(x)

    def statistic(strata: Sequence[Samples]) -> Float[np.ndarray, " samples"]:
        pairs = zip(strata[:n], strata[n:], strict=True)
        return np.mean([probability_of_improvement(a, b) for a, b in pairs], axis=0)

    names = None if runs is None else [*runs[0], *runs[1]]
    found = bootstrap([*x, *y], statistic, rng, runs=names, resamples=resamples, level=level)
    if not found.known:
        return found
    # The side with fewer runs of its own says which tasks share them.
    shared = range(n) if runs is None else min(runs, key=lambda side: len(set(side)))
    pairs = [
        (which, min(len(a), len(b)), np.min(a) > np.max(b), np.max(a) < np.min(b))
        for which, a, b in zip(shared, x, y, strict=True)
    ]

    def further(tasks: Sequence[tuple[Hashable, int]]) -> float:
        by_runs: dict[Hashable, list[int]] = {}
        for which, k in tasks:
            by_runs.setdefault(which, []).append(k)
        return shortfall([min(k) for k in by_runs.values()], (1 - level) / 2, [len(k) for k in by_runs.values()]) / n

    above = further([(which, k) for which, k, up, _ in pairs if up])
    below = further([(which, k) for which, k, _, down in pairs if down])
    every = further([(which, k) for which, k, *_ in pairs])
    return Interval(found.value, min(found.low - above, 1 - every), max(found.high + below, every))


def performance_profile(
    strata: Sequence[Scores],
    thresholds: Float[np.ndarray, " thresholds"],
    rng: np.random.Generator,
    *,
    runs: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    level: float = LEVEL,
) -> Float[np.ndarray, "value_low_high thresholds"]:
    """Return the share of runs above each threshold (tasks weigh the same) and its pointwise bootstrap interval.

    Args:
        runs: whose scores each stratum holds, as in `bootstrap`.
    """

    def profile(drawn: Sequence[Samples]) -> Float[np.ndarray, "samples thresholds"]:
        shares = [(stratum[:, :, None] > thresholds).mean(axis=1) for stratum in drawn]  # each [samples, thresholds]
        return np.mean(shares, axis=0)

    value = profile([np.asarray(stratum, float)[None] for stratum in strata])[0]
    if min(len(stratum) for stratum in strata) < 2:
        return np.stack([value, np.full_like(value, np.nan), np.full_like(value, np.nan)])
    drawn = profile(_resample(strata, runs, resamples, rng))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.stack([value, low, high])


def area_under_curve(x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"]) -> float:
    """Return the mean height of a curve over its range of x (trapezoids): the area over the width."""
    if len(x) < 2:
        return float(y[0])
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def first_reaching(x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"], threshold: float) -> float | None:
    """Return the first x at which y is at least the threshold; None if it never is."""
    reached = np.flatnonzero(y >= threshold)
    return float(x[reached[0]]) if len(reached) else None

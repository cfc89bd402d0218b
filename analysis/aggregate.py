"""Statistics of final scores, in numpy alone: point estimates over tasks, bootstrap intervals, profiles, comparisons.

Scores come as strata: one array per task, one value per seed (a seed's value is already a mean over its evaluation
episodes, since episodes of one agent are not independent). Estimates follow Agarwal et al. 2021, "Deep reinforcement
learning at the edge of the statistical precipice"; tasks may have different numbers of seeds. Randomness is an
argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

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


def trimmed_mean(values: Float[np.ndarray, "samples n"], share: float = 0.25) -> Float[np.ndarray, " samples"]:
    """Return the means without the lowest and highest `floor(share * n)` values: the interquartile mean for 0.25."""
    n = values.shape[1]
    cut = int(share * n)
    if cut:
        values = np.partition(values, (cut, n - cut - 1), axis=1)[:, cut : n - cut]
    return values.mean(axis=1)


def iqm(strata: Sequence[Samples]) -> Float[np.ndarray, " samples"]:
    """Return the interquartile mean over all runs of all tasks together."""
    return trimmed_mean(np.concatenate(strata, axis=1))


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
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Return the statistic and its stratified percentile bootstrap interval: seeds are drawn anew within each task.

    Raises:
        ValueError: a task without scores.
    """
    if not strata or any(len(stratum) == 0 for stratum in strata):
        raise ValueError(f"every task needs at least one score, got {[len(stratum) for stratum in strata]}")
    value = float(statistic([np.asarray(stratum, float)[None] for stratum in strata])[0])
    if min(len(stratum) for stratum in strata) < 2:
        return Interval(value, float("nan"), float("nan"))
    drawn = [_resample(np.asarray(stratum, float), resamples, rng) for stratum in strata]
    low, high = np.quantile(statistic(drawn), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _resample(scores: Scores, resamples: int, rng: np.random.Generator) -> Samples:
    return scores[rng.integers(len(scores), size=(resamples, len(scores)))]


def probability_of_improvement(x: Samples, y: Samples) -> Float[np.ndarray, " samples"]:
    """Return P(X > Y) + P(X = Y) / 2 for a run of each drawn at random: Mann and Whitney's U over n m."""
    above = (x[:, :, None] > y[:, None, :]).mean(axis=(1, 2))  # [samples, n, m] -> [samples]
    equal = (x[:, :, None] == y[:, None, :]).mean(axis=(1, 2))
    return above + equal / 2


def shortfall(counts: Sequence[int], chance: float) -> float:
    """Return the most that the sum of 1 - p_i can be while the product of p_i^k_i is `chance`; 0 without counts.

    It is there with p_i = min(1, c k_i), of one c for all (Lagrange): tasks with few runs may fall the furthest.
    """
    k = np.sort(np.asarray(counts, float))
    for n in range(len(k), 0, -1):  # the n smallest counts have p_i below 1
        c = math.exp((math.log(chance) - (k[:n] * np.log(k[:n])).sum()) / k[:n].sum())
        if c * k[n - 1] <= 1:
            return float((1 - c * k[:n]).sum())
    return 0.0


def improvement(
    x: Sequence[Scores], y: Sequence[Scores], rng: np.random.Generator, *, resamples: int = 2000, level: float = LEVEL
) -> Interval:
    """Return the probability that X improves on Y, averaged over tasks, both sides resampled within each task.

    Where all runs of one side are above all of the other, resampling shows no spread. The interval then goes further by
    what the probabilities of such tasks could differ from 1, or from 0, and still show this with a chance of
    (1 - level) / 2: all of k pairs of runs that have no run in common come out alike with a chance of p^k at most. It
    goes at least as far as if all tasks were such: no scores tell more.
    """
    n = len(x)

    def statistic(strata: Sequence[Samples]) -> Float[np.ndarray, " samples"]:
        pairs = zip(strata[:n], strata[n:], strict=True)
        return np.mean([probability_of_improvement(a, b) for a, b in pairs], axis=0)

    found = bootstrap([*x, *y], statistic, rng, resamples=resamples, level=level)
    if not found.known:
        return found
    pairs = [(min(len(a), len(b)), np.min(a) > np.max(b), np.max(a) < np.min(b)) for a, b in zip(x, y, strict=True)]
    above, below, every = (
        shortfall(counts, (1 - level) / 2) / n
        for counts in ([k for k, up, _ in pairs if up], [k for k, _, down in pairs if down], [k for k, *_ in pairs])
    )
    return Interval(found.value, min(found.low - above, 1 - every), max(found.high + below, every))


def performance_profile(
    strata: Sequence[Scores],
    thresholds: Float[np.ndarray, " thresholds"],
    rng: np.random.Generator,
    *,
    resamples: int = 2000,
    level: float = LEVEL,
) -> Float[np.ndarray, "value_low_high thresholds"]:
    """Return the share of runs above each threshold (tasks weigh the same) and its pointwise bootstrap interval."""

    def profile(drawn: Sequence[Samples]) -> Float[np.ndarray, "samples thresholds"]:
        shares = [(stratum[:, :, None] > thresholds).mean(axis=1) for stratum in drawn]  # each [samples, thresholds]
        return np.mean(shares, axis=0)

    value = profile([np.asarray(stratum, float)[None] for stratum in strata])[0]
    if min(len(stratum) for stratum in strata) < 2:
        return np.stack([value, np.full_like(value, np.nan), np.full_like(value, np.nan)])
    drawn = profile([_resample(np.asarray(stratum, float), resamples, rng) for stratum in strata])
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

"""The statistics equal scipy's, or a computation by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from analysis import aggregate

Draw = Callable[[np.random.Generator, Sequence[float], Sequence[int]], "tuple[list[np.ndarray], list[np.ndarray]]"]


@pytest.fixture
def scores() -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.beta(2 + task, 3, size=5) for task in range(6)]


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 30, 31])
def test_interquartile_mean_is_scipys_trimmed_mean(n: int) -> None:
    values = np.random.default_rng(n).normal(size=(4, n))

    np.testing.assert_allclose(
        aggregate.trimmed_mean(values, np.ones(n)), stats.trim_mean(values, 0.25, axis=1), rtol=1e-12
    )


def test_iqm_mean_median_and_gap_by_hand() -> None:
    strata = [np.array([[0.1, 0.3]]), np.array([[0.5, 0.9]]), np.array([[1.2, 1.0]])]

    assert aggregate.iqm(strata)[0] == pytest.approx(np.mean([0.3, 0.5, 0.9, 1.0]))  # of six, one is cut at each end
    assert aggregate.mean(strata)[0] == pytest.approx((0.2 + 0.7 + 1.1) / 3)
    assert aggregate.median(strata)[0] == pytest.approx(0.7)
    assert aggregate.optimality_gap(strata)[0] == pytest.approx((0.8 + 0.3 + 0.0) / 3)  # 1.2 does not pay for 0.3


def test_tasks_with_fewer_seeds_weigh_as_much_in_the_mean() -> None:
    strata = [np.array([[0.0, 0.0, 0.0]]), np.array([[1.0]])]

    assert aggregate.mean(strata)[0] == pytest.approx(0.5)


def test_tasks_with_fewer_seeds_weigh_as_much_in_the_interquartile_mean() -> None:
    strata = [np.zeros((1, 6)), np.ones((1, 2))]

    # Of weights 1/6 and 1/2, a quarter is three of the zeros and one of the ones.
    assert aggregate.iqm(strata)[0] == pytest.approx(0.5)


@pytest.mark.parametrize("seeds", [1, 3, 5, 7])
def test_the_interquartile_mean_of_equal_seeds_is_that_of_all_runs(seeds: int) -> None:
    strata = list(np.random.default_rng(seeds).normal(size=(6, 4, seeds)))

    expected = stats.trim_mean(np.concatenate(strata, axis=1), 0.25, axis=1)

    np.testing.assert_allclose(aggregate.iqm(strata), expected, rtol=1e-12)


@pytest.mark.parametrize("statistic", [aggregate.mean, aggregate.median])
def test_tasks_of_one_run_are_drawn_with_it(statistic: aggregate.Statistic) -> None:
    quality = np.random.default_rng(4).uniform(0.2, 0.9, size=5)
    tasks = [quality + shift for shift in (-0.1, 0.0, 0.1)]  # no task tells more about the runs than another

    whole = aggregate.bootstrap(tasks, statistic, np.random.default_rng(0), runs=["same"] * 3)

    one = aggregate.bootstrap([quality], aggregate.mean, np.random.default_rng(0))
    assert (whole.value, whole.low, whole.high) == pytest.approx((one.value, one.low, one.high))


def test_profiles_of_tasks_of_one_run_are_as_wide_as_of_one_task() -> None:
    quality, thresholds = np.array([0.1, 0.4, 0.5, 0.8]), np.array([0.0, 0.3, 0.6, 1.0])

    whole = aggregate.performance_profile([quality] * 6, thresholds, np.random.default_rng(0), runs=["same"] * 6)

    one = aggregate.performance_profile([quality], thresholds, np.random.default_rng(0))
    np.testing.assert_allclose(whole, one)


@pytest.mark.parametrize("statistic", [aggregate.iqm, aggregate.mean, aggregate.median, aggregate.optimality_gap])
def test_stratified_bootstrap_agrees_with_scipys(scores: list[np.ndarray], statistic: aggregate.Statistic) -> None:
    def for_scipy(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        assert axis == -1
        shape = np.broadcast_shapes(*(sample.shape[:-1] for sample in samples))
        flat = [np.broadcast_to(s, (*shape, s.shape[-1])).reshape(-1, s.shape[-1]) for s in samples]
        return statistic(flat).reshape(shape)

    oracle = stats.bootstrap(
        scores, for_scipy, method="percentile", n_resamples=40_000, vectorized=True, rng=np.random.default_rng(1)
    )

    ours = aggregate.bootstrap(scores, statistic, np.random.default_rng(2), resamples=40_000)

    low, high = oracle.confidence_interval
    width = high - low
    assert ours.low == pytest.approx(low, abs=0.02 * width)
    assert ours.high == pytest.approx(high, abs=0.02 * width)


def test_the_same_generator_gives_the_same_interval(scores: list[np.ndarray]) -> None:
    first, second = (aggregate.bootstrap(scores, aggregate.iqm, np.random.default_rng(3)) for _ in range(2))

    assert first == second


def multisets(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each of n values is in each of the resamples there can be, and the resample's chance."""
    counts = np.array([np.bincount(c, minlength=n) for c in itertools.combinations_with_replacement(range(n), n)])
    ways = math.factorial(n) / np.array([math.prod(math.factorial(i) for i in row) for row in counts])
    return counts, ways / n**n


@pytest.mark.parametrize(
    ("seeds", "said", "draws", "within"),
    [(2, 50, 100_000, 0.5), (3, 75, 100_000, 0.5), (5, 84, 100_000, 0.5), (10, 90, 1000, 1.5)],
)
def test_few_seeds_make_intervals_too_narrow_by_as_much_as_is_said(
    seeds: int, said: int, draws: int, within: float
) -> None:
    counts, chances = multisets(seeds)
    rng = np.random.default_rng(0)

    # The interval holds 0 where at least 2.5 % of all resamples have a mean on either side of it.
    below = np.concatenate([(rng.normal(size=(100, seeds)) @ counts.T <= 0) @ chances for _ in range(draws // 100)])
    held = 100 * np.mean((below >= 0.025) & (below <= 0.975))

    assert chances.sum() == pytest.approx(1)
    assert f"{said} % " in aggregate.COVERAGE and abs(held - said) < within


def test_the_bootstraps_interval_is_that_of_all_resamples() -> None:
    scores = np.random.default_rng(1).normal(size=5)
    counts, chances = multisets(5)
    means = counts @ scores / 5
    order = np.argsort(means)
    low, high = means[order][np.searchsorted(np.cumsum(chances[order]), [0.025, 0.975])]

    ours = aggregate.bootstrap([scores], aggregate.mean, np.random.default_rng(2), resamples=200_000)

    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.02)


def test_one_seed_has_no_interval() -> None:
    interval = aggregate.bootstrap([np.array([0.5]), np.array([0.7])], aggregate.mean, np.random.default_rng(0))

    assert interval.value == pytest.approx(0.6)
    assert not interval.known


def test_probability_of_improvement_is_mann_whitneys_u_with_ties() -> None:
    x, y = np.array([1.0, 2.0, 2.0, 5.0]), np.array([2.0, 2.0, 3.0])

    ours = aggregate.probability_of_improvement(x[None], y[None])[0]

    u = stats.mannwhitneyu(x, y, alternative="greater").statistic
    assert ours == pytest.approx(u / 12)


def test_improvement_averages_over_tasks_and_knows_certain_cases() -> None:
    low, high = [np.array([1.0, 2.0]), np.array([5.0, 6.0])], [np.array([3.0, 4.0]), np.array([5.5, 7.0])]

    interval = aggregate.improvement(high, low, np.random.default_rng(0))

    assert interval.value == pytest.approx((1.0 + 0.75) / 2)
    # The first task could be as low as 2.5 % ** (1 / 2), the second as 0: one resample of 16 is 5.5 against 6.
    assert interval.low == pytest.approx(0.025**0.5 / 2) and interval.high == 1.0


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_improvement_with_all_runs_above_is_no_certainty(runs: int) -> None:
    high = [np.arange(10.0, 10.0 + runs)] * 2
    low = [np.arange(1.0, 1.0 + runs)] * 2

    better, worse = (aggregate.improvement(a, b, np.random.default_rng(0)) for a, b in ((high, low), (low, high)))

    assert (better.value, better.high, worse.value, worse.low) == (1.0, 1.0, 0.0, 0.0)
    assert better.low == pytest.approx(1 - worse.high) and 0.1 < better.low < 0.8
    # Were the truth at that bound, so clear a result would be rarer than 2.5 %.
    shift = stats.norm.ppf(better.low) * 2**0.5
    drawn = np.random.default_rng(0).standard_normal((20_000, 2, 2, runs))
    separated = (drawn[:, 0].min(axis=-1) + shift > drawn[:, 1].max(axis=-1)).all(axis=-1)
    assert separated.mean() <= 0.025


@pytest.mark.parametrize("counts", [(2, 10), (10, 2), (3, 3), (2, 3, 8)])
def test_shortfall_is_the_largest_that_a_search_finds(counts: tuple[int, ...]) -> None:
    # All p but the last from a grid; the last is what makes the product of p^k 2.5 %.
    free = np.stack(np.meshgrid(*[np.linspace(0.002, 1, 500)] * (len(counts) - 1)), axis=-1).reshape(
        -1, len(counts) - 1
    )
    logs = (math.log(0.025) - np.log(free) @ np.array(counts[:-1])) / counts[-1]
    sums = (1 - free).sum(axis=1) + 1 - np.exp(logs)

    assert aggregate.shortfall(counts, 0.025) == pytest.approx(sums[logs <= 0].max(), abs=1e-3)
    assert aggregate.shortfall([], 0.025) == 0


@pytest.mark.parametrize(("counts", "tasks"), [((5, 5), (6, 1)), ((2, 10), (1, 4)), ((3, 4), (2, 1))])
def test_shortfall_of_several_tasks_with_one_chance(counts: tuple[int, int], tasks: tuple[int, int]) -> None:
    first = np.linspace(0.002, 1, 100_000)
    logs = (math.log(0.025) - counts[0] * np.log(first)) / counts[1]
    sums = tasks[0] * (1 - first) + tasks[1] * (1 - np.exp(logs))

    assert aggregate.shortfall(counts, 0.025, tasks) == pytest.approx(sums[logs <= 0].max(), abs=1e-3)


def test_improvement_on_tasks_of_one_run_is_no_surer_than_on_one_task() -> None:
    high, low = np.arange(10.0, 15.0), np.arange(1.0, 6.0)
    separate = list(range(6))

    found = aggregate.improvement([high] * 6, [low] * 6, np.random.default_rng(0), runs=(separate, ["same"] * 6))

    one = aggregate.improvement([high], [low], np.random.default_rng(0))
    surer = aggregate.improvement([high] * 6, [low] * 6, np.random.default_rng(0))
    assert (found.low, found.high) == pytest.approx((one.low, one.high))
    assert found.low == pytest.approx(0.025**0.2)
    assert surer.low > found.low + 0.2


@pytest.mark.parametrize(("spread", "seeds"), [(1.0, 3), (3.0, 5)])
def test_the_interval_holds_the_truth_where_tasks_share_their_runs(spread: float, seeds: int) -> None:
    rng = np.random.default_rng(0)
    separate = list(range(6))
    truth = stats.norm.cdf(1 / math.sqrt(2 + spread**2))
    held = []
    for _ in range(300):
        quality = rng.normal(scale=spread, size=seeds)
        x, y = list(1 + rng.normal(size=(6, seeds))), list(quality + rng.normal(size=(6, seeds)))
        found = aggregate.improvement(x, y, rng, runs=(separate, ["same"] * 6), resamples=200)
        held.append(found.low <= truth <= found.high)

    assert np.mean(held) > 0.9


def two_valued(
    rng: np.random.Generator, p: Sequence[float], seeds: Sequence[int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return scores of X, above all of Y with chance p and else below: they come apart as often as scores can."""
    x = [np.where(rng.random(n) < chance, 2.0, -2.0) + rng.random(n) for chance, n in zip(p, seeds, strict=True)]
    return x, [rng.random(n) for n in seeds]


def normal(
    rng: np.random.Generator, p: Sequence[float], seeds: Sequence[int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    shifts = stats.norm.ppf(p) * 2**0.5
    x = [rng.normal(shift, size=n) for shift, n in zip(shifts, seeds, strict=True)]
    return x, [rng.normal(size=n) for n in seeds]


def test_two_and_ten_seeds_without_overlap_do_not_exclude_what_shows_them_in_a_fortieth_of_cases() -> None:
    c = (0.025 / (2**2 * 10**10)) ** (1 / 12)
    truth, seeds = (2 * c, 10 * c), (2, 10)  # their mean is 0.577
    rng = np.random.default_rng(0)
    apart = [
        all(np.min(a) > np.max(b) for a, b in zip(*two_valued(rng, truth, seeds), strict=True)) for _ in range(10_000)
    ]

    found = aggregate.improvement([np.array([5.0, 6]), np.arange(20.0, 30)], [np.array([1.0, 2]), np.arange(10.0)], rng)

    assert 0.022 < np.mean(apart) < 0.028
    assert found.low == pytest.approx(np.mean(truth)) and found.high == 1.0


@pytest.mark.parametrize(
    ("draw", "p", "seeds"),
    [
        (two_valued, (0.25, 0.98), (2, 10)),
        (normal, (0.9,), (3,)),
        (normal, (0.1, 0.99), (3, 3)),  # what is sure on one task is sure the other way round on the other
        (normal, (0.3, 0.95), (2, 5)),
        (normal, (0.9, 0.95, 0.9, 0.99, 0.37, 0.99), (2,) * 6),
    ],
)
def test_the_interval_of_an_improvement_holds_the_truth_in_nine_of_ten_cases(
    draw: Draw, p: tuple[float, ...], seeds: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    found = [aggregate.improvement(x, y, rng, resamples=200) for x, y in (draw(rng, p, seeds) for _ in range(300))]

    assert np.mean([each.low <= np.mean(p) <= each.high for each in found]) > 0.9


def test_runs_that_are_all_alike_are_no_certainty_of_no_difference() -> None:
    zeros = [np.zeros(3)]

    found = aggregate.improvement(zeros, zeros, np.random.default_rng(0))

    assert found.value == 0.5 and found.low < 0.3 and found.high > 0.7


def test_performance_profile_is_the_share_of_runs_above_each_threshold(scores: list[np.ndarray]) -> None:
    thresholds = np.array([0.0, 0.3, 0.6, 1.0])

    value, low, high = aggregate.performance_profile(scores, thresholds, np.random.default_rng(0))

    everything = np.concatenate(scores)
    np.testing.assert_allclose(value, [(everything > t).mean() for t in thresholds])
    assert (low <= value).all() and (value <= high).all()
    assert value[0] == 1.0 and value[-1] == 0.0


def test_area_is_the_mean_height_and_thresholds_are_first_reached() -> None:
    x, y = np.array([0.0, 10.0, 40.0]), np.array([0.0, 4.0, 2.0])

    assert aggregate.area_under_curve(x, y) == pytest.approx((20 + 90) / 40)
    assert aggregate.first_reaching(x, y, 3.0) == 10.0
    assert aggregate.first_reaching(x, y, 5.0) is None


# -------------------------------------------------------------------------------------------- difference of medians


def test_medians_are_of_all_episodes_together_and_pairs_are_drawn() -> None:
    """Of two pairs, four draws are equally likely: the lowest and highest of their differences bound the interval."""
    pairs = [(np.array([1.0, 2.0, 90.0]), np.array([10.0, 30.0])), (np.array([4.0, 5.0, 6.0]), np.array([50.0, 70.0]))]

    found = aggregate.difference_of_medians([pairs], np.random.default_rng(0))

    draws = [[pairs[i], pairs[j]] for i in range(2) for j in range(2)]
    expected = [np.median([a for a, _ in draw]) - np.median([b for _, b in draw]) for draw in draws]
    assert found.value == 4.5 - 40
    assert (found.low, found.high) == (min(expected), max(expected))


def test_a_run_with_fewer_episodes_counts_with_those_it_has() -> None:
    pairs = [(np.array([1.0, 2.0]), np.zeros(3)), (np.array([7.0]), np.array([1.0]))]

    assert aggregate.difference_of_medians([pairs], np.random.default_rng(0)).value == 2 - 0


def test_medians_of_runs_with_several_tasks_are_drawn_together() -> None:
    up = [(np.array([100.0]), np.array([0.0])), (np.array([0.0]), np.array([0.0]))]
    down = up[::-1]

    together = aggregate.difference_of_medians([up, down], np.random.default_rng(0), runs=["one", "one"])
    apart = aggregate.difference_of_medians([up, down], np.random.default_rng(0))

    assert (together.value, together.low, together.high) == (50, 50, 50)  # what one task gains the other loses
    assert (apart.low, apart.high) == (0, 100)
    assert not aggregate.difference_of_medians([up[:1]], np.random.default_rng(0)).known


def test_one_task_with_one_seed_leaves_no_interval_and_no_band() -> None:
    """Its resamples are all alike: an interval would show the other task's spread alone."""
    strata = [np.array([0.5]), np.array([0.2, 0.8])]

    interval = aggregate.bootstrap(strata, aggregate.mean, np.random.default_rng(0))
    value, low, high = aggregate.performance_profile(strata, np.array([0.4]), np.random.default_rng(0))

    assert interval.value == pytest.approx(0.5) and not interval.known
    assert value.tolist() == [0.75] and np.isnan(low).all() and np.isnan(high).all()


def test_a_profile_counts_runs_above_a_threshold_and_none_on_it() -> None:
    value, _, _ = aggregate.performance_profile(
        [np.array([0.25, 0.5, 0.75, 0.75])], np.array([0.25, 0.5, 0.75]), np.random.default_rng(0)
    )

    assert value.tolist() == [0.75, 0.5, 0.0]


def test_a_profiles_band_is_that_of_all_resamples() -> None:
    """One run of five above: in a resample there are as many as a binomial number of five with a chance of a fifth."""
    shares = stats.binom.ppf([0.025, 0.975], 5, 0.2) / 5

    _, low, high = aggregate.performance_profile([np.arange(5.0)], np.array([3.5]), np.random.default_rng(0))

    assert shares.tolist() == [0.0, 0.6]
    np.testing.assert_allclose([low[0], high[0]], shares)


def test_of_different_numbers_of_runs_the_smaller_says_how_sure_an_improvement_is() -> None:
    few, many = np.array([8.0, 9.0]), np.arange(5.0)

    above = aggregate.improvement([few], [many], np.random.default_rng(0))
    below = aggregate.improvement([many], [few], np.random.default_rng(0))

    assert (above.low, above.high) == (pytest.approx(0.025 ** (1 / 2)), 1.0)  # two pairs that have no run in common
    assert (below.low, below.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 2)))


def test_of_tasks_of_one_run_the_one_with_fewest_partners_says_how_sure_an_improvement_is() -> None:
    x, y = [np.array([7.0, 8.0, 9.0]), np.arange(7.0, 13.0)], [np.arange(5.0)] * 2

    found = aggregate.improvement(x, y, np.random.default_rng(0), runs=(["a", "b"], ["same", "same"]))

    assert (found.low, found.high) == (pytest.approx(0.025 ** (1 / 3)), 1.0)


def test_a_level_is_reached_where_a_curve_touches_it_and_a_point_is_as_high_as_it_is() -> None:
    x, y = np.array([0.0, 10.0, 40.0, 50.0]), np.array([0.0, 4.0, 2.0, 4.0])

    assert aggregate.first_reaching(x, y, 4.0) == 10.0
    assert aggregate.area_under_curve(np.array([31.0]), np.array([7.0])) == 7.0

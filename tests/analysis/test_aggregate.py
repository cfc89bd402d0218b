"""The statistics equal scipy's, or a computation by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis import aggregate


@pytest.fixture
def scores() -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.beta(2 + task, 3, size=5) for task in range(6)]


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 30, 31])
def test_interquartile_mean_is_scipys_trimmed_mean(n: int) -> None:
    values = np.random.default_rng(n).normal(size=(4, n))

    np.testing.assert_allclose(aggregate.trimmed_mean(values), stats.trim_mean(values, 0.25, axis=1), rtol=1e-12)


def test_iqm_mean_median_and_gap_by_hand() -> None:
    strata = [np.array([[0.1, 0.3]]), np.array([[0.5, 0.9]]), np.array([[1.2, 1.0]])]

    assert aggregate.iqm(strata)[0] == pytest.approx(np.mean([0.3, 0.5, 0.9, 1.0]))  # of six, one is cut at each end
    assert aggregate.mean(strata)[0] == pytest.approx((0.2 + 0.7 + 1.1) / 3)
    assert aggregate.median(strata)[0] == pytest.approx(0.7)
    assert aggregate.optimality_gap(strata)[0] == pytest.approx((0.8 + 0.3 + 0.0) / 3)  # 1.2 does not pay for 0.3


def test_tasks_with_fewer_seeds_weigh_as_much_in_the_mean() -> None:
    strata = [np.array([[0.0, 0.0, 0.0]]), np.array([[1.0]])]

    assert aggregate.mean(strata)[0] == pytest.approx(0.5)


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


def test_few_seeds_make_intervals_too_narrow_by_as_much_as_is_said() -> None:
    rng = np.random.default_rng(0)
    for seeds, share in ((2, 50), (3, 73), (5, 83), (10, 90)):
        intervals = [
            aggregate.bootstrap([rng.normal(size=seeds)], aggregate.mean, rng, resamples=300) for _ in range(2000)
        ]
        held = 100 * np.mean([interval.low <= 0 <= interval.high for interval in intervals])

        assert f"{share} % " in aggregate.COVERAGE and abs(held - share) < 3, (seeds, held)


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
    assert 0.5 <= interval.low <= interval.value <= interval.high <= 1.0


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

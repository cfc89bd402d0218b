"""The planner finds optima, keeps environments apart, and does what the paper's algorithm 2 says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from planet import cem

CPU = torch.device("cpu")


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def run(score: Callable[[Tensor], Tensor], **changes: Any) -> cem.Plan:
    settings: dict[str, Any] = {
        "num_envs": 1, "action_size": 2, "horizon": 3, "candidates": 500, "elites": 50, "iterations": 10,
        "generators": seeded(0), "device": CPU,
    }  # fmt: skip
    return cem.plan(score, **settings | changes)


def quadratic(target: Tensor) -> Callable[[Tensor], Tensor]:
    """Scores -|candidate - target|^2; target [N, H, A] or [H, A]."""
    return lambda candidates: -(candidates - target.unsqueeze(-3)).square().sum(dim=(-2, -1))


def test_finds_the_optimum_of_a_quadratic() -> None:
    target = torch.tensor([[0.5, -0.7], [0.0, 0.9], [-0.3, 0.1]])

    plan = run(quadratic(target))

    torch.testing.assert_close(plan.mean[0], target, atol=0.02, rtol=0)
    assert plan.std.max() < 0.05


def test_finds_the_higher_of_two_modes() -> None:
    # Bumps of height 1 at -0.6 and 1.5 at +0.6 in every coordinate's mean square, far apart against their width.
    def score(candidates: Tensor) -> Tensor:
        left = (candidates + 0.6).square().mean(dim=(-2, -1))
        right = (candidates - 0.6).square().mean(dim=(-2, -1))
        return (-left / 0.1).exp() + 1.5 * (-right / 0.1).exp()

    for seed in range(5):
        plan = run(score, horizon=1, generators=seeded(seed))
        torch.testing.assert_close(plan.mean, torch.full_like(plan.mean, 0.6), atol=0.05, rtol=0)


def test_an_optimum_outside_the_box_ends_at_its_wall() -> None:
    plan = run(quadratic(torch.full((3, 2), 2.0)))

    assert plan.mean.max() <= 1 and plan.mean.min() > 0.98


def test_seven_environments_at_once_equal_seven_single_calls_exactly() -> None:
    targets = torch.rand(7, 12, 6, generator=torch.Generator().manual_seed(5)) * 2 - 1
    sizes = {"action_size": 6, "horizon": 12, "candidates": 100, "elites": 10, "iterations": 5}

    together = run(quadratic(targets), num_envs=7, generators=seeded(*range(7)), **sizes)

    for n in range(7):
        alone = run(quadratic(targets[n : n + 1]), generators=seeded(n), **sizes)
        assert torch.equal(together.mean[n : n + 1], alone.mean), n
        assert torch.equal(together.std[n : n + 1], alone.std), n


def reference(
    score: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    *,
    iterations: int,
    min_std: float = 0.0,
    init_std: float = 1.0,
    mean: Tensor | None = None,
    refit_clipped: bool = True,
) -> tuple[Tensor, Tensor]:
    """Algorithm 2 for one environment, [H, A], written out; candidates 40, elites 8."""
    noise = torch.randn(iterations, 40, 3, 2, generator=generator)
    mean, std = (torch.zeros(3, 2) if mean is None else mean), torch.full((3, 2), init_std)
    for i in range(iterations):
        drawn = mean + std * noise[i]
        candidates = torch.clip(drawn, -1, 1)
        order = torch.argsort(score(candidates), descending=True)[:8]
        elites = candidates[order] if refit_clipped else drawn[order]
        mean = elites.mean(0)
        std = torch.sqrt(elites.var(0, correction=0) + 1e-6).clamp(min=min_std)
    return mean, std


@pytest.mark.parametrize(
    "changes", [{}, {"min_std": 0.3}, {"init_std": 0.4}, {"iterations": 1}, {"refit_clipped": False}]
)
def test_refits_as_algorithm_2_written_out(changes: dict[str, Any]) -> None:
    score = quadratic(torch.full((3, 2), 0.4))
    settings: dict[str, Any] = {"iterations": 3} | changes

    plan = run(score, candidates=40, elites=8, **settings)

    mean, std = reference(score, seeded(0)[0], **settings)
    torch.testing.assert_close(plan.mean[0], mean)
    torch.testing.assert_close(plan.std[0], std)


def test_unclipped_elites_are_scored_clipped_and_may_lead_outside() -> None:
    seen = []

    def score(candidates: Tensor) -> Tensor:
        seen.append(candidates)
        return candidates.sum(dim=(-2, -1))

    plan = run(score, refit_clipped=False, iterations=3)
    clipped = run(score, iterations=3)

    assert all(candidates.abs().max() == 1 for candidates in seen)
    assert plan.mean.max() > 1 and plan.std.min() > clipped.std.max()  # at the wall nothing narrows the search


def test_start_mean_is_where_the_search_starts() -> None:
    score, start = quadratic(torch.full((3, 2), 0.4)), torch.full((1, 3, 2), -0.5)

    plan = run(score, candidates=40, elites=8, iterations=2, start_mean=start)

    mean, _ = reference(score, seeded(0)[0], iterations=2, mean=start[0])
    torch.testing.assert_close(plan.mean[0], mean)
    assert torch.equal(start, torch.full((1, 3, 2), -0.5))  # left as it was


def test_what_a_plan_leaves_to_the_next_one_lies_one_step_on_and_inside_the_box() -> None:
    mean = torch.tensor([[[0.1, -0.2], [3.0, 0.4], [0.5, -1.5]]])

    assert torch.equal(cem.one_step_on(mean), torch.tensor([[[1.0, 0.4], [0.5, -1.0], [0.0, 0.0]]]))
    assert mean[0, 1, 0] == 3  # left as it was


def test_one_iteration_and_one_elite_is_random_shooting() -> None:
    seen = []

    def score(candidates: Tensor) -> Tensor:
        seen.append(candidates)
        return candidates.sum(dim=(-2, -1))

    plan = run(score, iterations=1, elites=1)

    best = seen[0][0, seen[0].sum(dim=(-2, -1)).argmax()]
    assert torch.equal(plan.mean[0], best)
    torch.testing.assert_close(plan.std, torch.full_like(plan.std, 1e-3))  # sqrt(1e-6)


def test_candidates_are_clipped_and_env_major() -> None:
    shapes = []

    def score(candidates: Tensor) -> Tensor:
        shapes.append(tuple(candidates.shape))
        assert candidates.abs().max() == 1  # some were cut at the wall, none lies outside
        return candidates.sum(dim=(-2, -1))

    run(score, num_envs=4, generators=seeded(0, 1, 2, 3), iterations=2)
    assert shapes == [(4, 500, 3, 2)] * 2


def test_nan_scores_are_named() -> None:
    calls = iter(range(10))

    def score(candidates: Tensor) -> Tensor:
        scores = candidates.sum(dim=(-2, -1))
        if next(calls) == 2:
            scores[1, :3] = torch.nan
        return scores

    with pytest.raises(ValueError, match=r"NaN for 3 of 500 candidates \(environment 1, iteration 2\)"):
        run(score, num_envs=2, generators=seeded(0, 1))


@pytest.mark.parametrize("elites", [0, 501])
def test_elites_out_of_range_are_named(elites: int) -> None:
    with pytest.raises(ValueError, match=rf"elites must be in 1..candidates \(500\), got {elites}"):
        run(quadratic(torch.zeros(3, 2)), elites=elites)


def test_generators_must_match_environments() -> None:
    with pytest.raises(ValueError, match="one generator for each of the 2 environments, got 1"):
        run(quadratic(torch.zeros(3, 2)), num_envs=2)


def test_score_of_the_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"score must return \[1, 500\] \(environment, candidate\), got \[500\]"):
        run(lambda candidates: candidates.sum(dim=(-2, -1))[0])


def test_all_candidates_may_be_elites() -> None:
    plan = run(quadratic(torch.zeros(3, 2)), candidates=7, elites=7, iterations=1)

    candidates = torch.randn(1, 7, 3, 2, generator=seeded(0)[0])[0].clamp(-1, 1)
    torch.testing.assert_close(plan.mean[0], candidates.mean(0))

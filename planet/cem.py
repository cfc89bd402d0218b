"""Planning by the cross-entropy method (paper, algorithm 2): a pure function over a scoring callable.

Knows tensors and `score`; knows nothing of models, so the same planner works in latent space and in a simulator.
Environments come first in every tensor and in every flattened order: candidate j of environment n is row n * J + j.

Shapes: N environments, J candidates, K elites, I iterations, H horizon, A action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from planet import fused

Score = Callable[[Tensor], Tensor]
"""Candidates [N, J, H, A] in [-1, 1] to scores [N, J], higher is better."""


class NonFiniteScore(ValueError):
    """`score` gave NaN for a candidate."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The last iteration's belief about good action sequences."""

    mean: Float[Tensor, "env horizon action"]
    """`mean[:, 0]` is the action to execute."""
    std: Float[Tensor, "env horizon action"]


@torch.no_grad()
def plan(
    score: Score,
    *,
    num_envs: int,
    action_size: int,
    horizon: int,
    candidates: int,
    elites: int,
    iterations: int,
    generators: Sequence[torch.Generator],
    device: torch.device,
    init_std: float = 1.0,
    min_std: float = 0.0,
    refit_clipped: bool = True,
    start_mean: Float[Tensor, "env horizon action"] | None = None,
) -> Plan:
    """Return the mean and standard deviation after `iterations` refits to the `elites` best of `candidates` sequences.

    Candidates are Gaussian, clipped to [-1, 1]; the deviation is that of the clipped elites, sqrt(var + 1e-6) with the
    population's variance (the paper prints a mean absolute deviation; the released code does this), at least `min_std`.
    With `refit_clipped=False` mean and deviation are those of the elites as they were drawn, which may lie outside.
    The first mean is `start_mean`, else zero. `iterations=1, elites=1` is random shooting.

    generators: one for each environment, on `device`. An environment's plan depends on its own generator and scores
    alone, so planning for many at once gives what planning for each gives.

    Raises:
        ValueError: a score is not a number, or of the wrong shape; elites not in 1..candidates.
    """
    if not 1 <= elites <= candidates:
        raise ValueError(f"elites must be in 1..candidates ({candidates}), got {elites}")
    if len(generators) != num_envs:
        raise ValueError(f"plan needs one generator for each of the {num_envs} environments, got {len(generators)}")
    noise = draw_noise((iterations, candidates, horizon, action_size), generators, device)
    found, undefined = search(
        score, noise, elites=elites, init_std=init_std, min_std=min_std, refit_clipped=refit_clipped,
        start_mean=start_mean,
    )  # fmt: skip
    check_defined(undefined, candidates)
    return found


def draw_noise(
    shape: tuple[int, int, int, int], generators: Sequence[torch.Generator], device: torch.device
) -> Float[Tensor, "iteration env candidate horizon action"]:
    """Return the random numbers of one plan: for each environment `shape` [I, J, H, A] from its own generator."""
    return torch.stack([torch.randn(shape, generator=g, device=device) for g in generators], dim=1)


@torch.no_grad()
def search(
    score: Score,
    noise: Float[Tensor, "iteration env candidate horizon action"],
    *,
    elites: int,
    init_std: float = 1.0,
    min_std: float = 0.0,
    refit_clipped: bool = True,
    start_mean: Float[Tensor, "env horizon action"] | None = None,
) -> tuple[Plan, Int[Tensor, "iteration env"]]:
    """Return `plan` with its noise given, and how many scores of each iteration were not a number.

    Nothing here waits for the device or draws a random number, so that it can be recorded as a CUDA graph.
    """
    num_envs, candidates, horizon, action_size = noise.shape[1:]
    mean = noise.new_zeros(num_envs, horizon, action_size) if start_mean is None else start_mean
    std = torch.full_like(mean, init_std)
    few_kernels = refit_clipped and fused.refits(noise.device, candidates)
    found = []
    proposals, drawn = _propose(mean, std, noise[0], refit_clipped)
    for following in (*noise[1:], None):
        scores = score(proposals)
        if scores.shape != (num_envs, candidates):
            raise ValueError(f"score must return [{num_envs}, {candidates}] (environment, candidate), "
                             f"got {list(scores.shape)}")  # fmt: skip
        found.append(scores)
        if few_kernels:  # on a GPU, where each launch counts
            mean, std = fused.refit(proposals, scores.contiguous(), elites=elites, min_std=min_std, noise=following)
            continue
        best = scores.topk(elites, dim=1).indices[:, :, None, None]  # [N, K, 1, 1]
        chosen = drawn.gather(1, best.expand(-1, -1, horizon, action_size))  # [N, K, H, A]
        mean = chosen.mean(dim=1)
        variance = (chosen - mean[:, None]).square().mean(dim=1)
        std = (variance + 1e-6).sqrt()
        if min_std:
            std.clamp_(min=min_std)
        if following is not None:
            proposals, drawn = _propose(mean, std, following, refit_clipped)
    return Plan(mean, std), torch.stack(found).isnan().sum(dim=2)


def one_step_on(mean: Float[Tensor, "env horizon action"]) -> Float[Tensor, "env horizon action"]:
    """Return the `start_mean` that a plan leaves to the next decision: its steps from the second on, then a zero.

    In [-1, 1]: a plan refitted unclipped may lie outside, where candidates drawn around it would be clipped alike.
    """
    return torch.cat([mean[:, 1:], torch.zeros_like(mean[:, :1])], dim=1).clamp_(-1, 1)


def _propose(mean: Tensor, std: Tensor, noise: Tensor, refit_clipped: bool) -> tuple[Tensor, Tensor]:
    """Return the candidates [N, J, H, A] to score, and those to refit to."""
    drawn = torch.addcmul(mean[:, None], std[:, None], noise)
    clipped = drawn.clamp_(-1, 1) if refit_clipped else drawn.clamp(-1, 1)
    return clipped, drawn


def check_defined(undefined: Int[Tensor, "iteration env"], candidates: int) -> None:
    """Look at what `search` counted, once, after all iterations: on a GPU each look waits for the device.

    Raises:
        NonFiniteScore: a score was not a number.
    """
    if undefined.any():
        i, env = (int(x[0]) for x in undefined.cpu().nonzero(as_tuple=True))
        raise NonFiniteScore(f"score gave NaN for {int(undefined[i, env])} of {candidates} candidates "
                         f"(environment {env}, iteration {i}): the model's predictions are not finite")  # fmt: skip

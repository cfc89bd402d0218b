"""The terms of the training objective, as pure functions of tensors (paper, equations 3, 6 and 7).

Everything is in nats and is a loss (lower is better). Likelihoods leave out the Gaussian's constant, so they are 0 for
a perfect prediction: the omitted part is `IMAGE_CONSTANT` nats per picture and `REWARD_CONSTANT` per reward.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from planet import fused_pictures
from planet.images import frames_in_cache
from planet.transition import State, Transition

REWARD_CONSTANT = 0.5 * math.log(2 * math.pi)
IMAGE_CONSTANT = 3 * 64 * 64 * REWARD_CONSTANT


def image_loss(
    prediction: Float[Tensor, "*batch 3 64 64"], target: Float[Tensor, "*batch 3 64 64"]
) -> Float[Tensor, "*batch"]:
    """Return 0.5 * squared error summed over the pixels of each picture: -log N(target; prediction, 1) + const."""
    return _HalfSquaredDistance.apply(prediction, target)


class _HalfSquaredDistance(torch.autograd.Function):
    """0.5 * |prediction - target|^2 over the last three axes in two passes over the pictures, where autograd takes
    eight. Differences and sums are float32; the difference is kept for the gradient in the prediction's type, which the
    gradient has too. There is no gradient to the target."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor) -> Tensor:
        flat, flat_target = (x.flatten(0, -4) for x in (prediction, target))
        ctx.fused = fused_pictures.usable(prediction.device) and fused_pictures.same_order(flat, flat_target)
        if ctx.fused:
            distance, difference = fused_pictures.half_squared_distance(flat, flat_target)
            ctx.save_for_backward(difference)
            return distance.view(prediction.shape[:-3])
        kept, few = torch.empty_like(prediction), frames_in_cache(prediction.device)
        distances = []
        for out, a, b in zip(*(x.flatten(0, -4).split(few) for x in (kept, prediction, target)), strict=True):
            difference = a - b
            distances.append(torch.linalg.vector_norm(difference, dim=(-3, -2, -1)))
            out.copy_(difference)
        ctx.save_for_backward(kept)
        return 0.5 * torch.cat(distances).view(prediction.shape[:-3]).square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (difference,) = ctx.saved_tensors
        if ctx.fused:
            result = fused_pictures.scaled(difference, grad.flatten())
            return result.view(*grad.shape, *difference.shape[1:]), None
        result, few = torch.empty_like(difference), frames_in_cache(difference.device)
        scales = grad.flatten()[:, None, None, None].split(few)
        pictures = (x.flatten(0, -4).split(few) for x in (result, difference))
        for out, x, scale in zip(*pictures, scales, strict=True):
            out.copy_(x * scale)
        return result, None


def reward_loss(prediction: Float[Tensor, "*batch"], target: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Return 0.5 * squared error of each reward: -log N(target; prediction, 1) + const."""
    return 0.5 * (prediction.float() - target).square()


def kl(
    mean: Float[Tensor, "*batch stoch"],
    std: Float[Tensor, "*batch stoch"],
    other_mean: Float[Tensor, "*batch stoch"],
    other_std: Float[Tensor, "*batch stoch"],
) -> Float[Tensor, "*batch"]:
    """Return KL(N(mean, std) || N(other_mean, other_std)) summed over the last axis."""
    ratio = std / other_std
    distance = (mean - other_mean) / other_std
    return (0.5 * (ratio.square() + distance.square() - 1) - ratio.log()).sum(dim=-1)


def with_free_nats(divergence: Float[Tensor, "*batch"], free_nats: float) -> Float[Tensor, "*batch"]:
    """Return max(divergence, free_nats) of each element: below, it costs `free_nats` and gives no gradient."""
    return divergence.clamp(min=free_nats)


def entropy(std: Float[Tensor, "*batch stoch"]) -> Float[Tensor, "*batch"]:
    """Return the entropy of N(., std), summed over the last axis."""
    return (std.log() + (0.5 + REWARD_CONSTANT)).sum(dim=-1)


def overshooting(
    transition: Transition,
    posterior: State,
    action: Float[Tensor, "batch time action"],
    start: State,
    noise: Float[Tensor, "batch pairs stoch"],
    *,
    distance: int,
    free_nats: float,
) -> Float[Tensor, ""]:
    """Return latent overshooting (paper, equation 7): the mean over distances d = 2..`distance` of the mean over all
    (batch, t) with a state d steps earlier of max(KL(posterior_t || prior of t from the posterior at t - d), free).

    Every state from `start` [B] (the state before the first step, t = -1) to T - 2 starts one open-loop rollout:

        starts   -1   0   1   2      valid targets t of a start s at distance d: s + d <= T - 1
        d = 1     0   1   2   3      (T = 4; the ordinary KL, left out)
        d = 2     1   2   3          one start fewer at each distance: no target lies behind the chunk's end
        d = 3     2   3
        d = 4     3

    Targets get no gradient; the states that rollouts start from do. `noise` holds `overshooting_pairs` vectors for
    each sequence, in the order of this table's rows.
    """
    time = action.shape[1]
    target_mean, target_std = posterior.mean.detach(), posterior.std.detach()
    state = State.cat([start.map(lambda x: x[:, None]), posterior.map(lambda x: x[:, :-1])], dim=1)  # starts -1..T-2
    per_distance, used = [], 0
    for d in range(1, distance + 1):
        targets = time - d + 1  # a rollout at index i is now at t = i + d - 1
        state = transition.prior(
            state.map(lambda x, n=targets: x[:, :n]), action[:, d - 1 :], noise[:, used : used + targets]
        )
        used += targets
        if d >= 2:
            divergence = kl(target_mean[:, d - 1 :], target_std[:, d - 1 :], state.mean, state.std)
            per_distance.append(with_free_nats(divergence, free_nats).mean())
    return torch.stack(per_distance).mean()


def overshooting_pairs(time: int, distance: int) -> int:
    """Return how many (start, distance) pairs lie in a chunk: the noise vectors that `overshooting` needs."""
    return sum(time - d + 1 for d in range(1, distance + 1))

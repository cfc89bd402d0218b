"""PlaNet written down as plainly as PyTorch allows: the yardstick for speed and the oracle for numbers.

Float32, eager, one step after the other, torch's own convolutions and distributions; no layout, no hoisting, no
precision tricks. It shares nothing with `planet` but the parameters of a `WorldModel` with the RSSM, so an error there
is not repeated here. Shapes as in `planet.world_model`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from planet.networks import GaussianHead
from planet.rssm import RSSM
from planet.world_model import WorldModel


@dataclass(frozen=True)
class Latent:
    """h, s and the Gaussian that s was drawn from, [N, ...]."""

    h: Tensor
    s: Tensor
    mean: Tensor
    std: Tensor

    @property
    def distribution(self) -> Independent:
        return Independent(Normal(self.mean, self.std), 1)


def encode(model: WorldModel, image: Tensor) -> Tensor:
    """[N, 3, 64, 64] to [N, embed]."""
    layers: Any = model.encoder.convolutions
    x = image
    for layer in layers:
        x = F.relu(F.conv2d(x, layer.weight, layer.bias, stride=2))
    return x.flatten(1)


def decode(model: WorldModel, features: Tensor) -> Tensor:
    """[N, F] to [N, 3, 64, 64]."""
    x = F.linear(features, model.decoder.dense.weight, model.decoder.dense.bias)[:, :, None, None]
    layers: Any = model.decoder.convolutions
    second, third, fourth = layers
    x = F.relu(F.conv_transpose2d(x, first_kernel(model), model.decoder.first.bias, stride=2))
    x = F.relu(F.conv_transpose2d(x, second.weight, second.bias, stride=2))
    x = F.relu(F.conv_transpose2d(x, third.weight, third.bias, stride=2))
    return F.conv_transpose2d(x, fourth.weight, fourth.bias, stride=2)


def first_kernel(model: WorldModel) -> Tensor:
    """The kernel of the decoder's first transposed convolution, [I, O, 5, 5], which the model holds as a matrix."""
    first = model.decoder.first
    return first.weight.view(*first.shape, -1).permute(3, 2, 0, 1).contiguous()


def predict_reward(model: WorldModel, features: Tensor) -> Tensor:
    """[N, F] to [N]."""
    layers: Any = model.reward.dense
    x = features
    for layer in layers:
        x = model.reward.activation(F.linear(x, layer.weight, layer.bias))
    return F.linear(x, model.reward.output.weight, model.reward.output.bias).squeeze(-1)


def the_rssm(model: WorldModel) -> RSSM:
    assert isinstance(model.transition, RSSM)
    return model.transition


def recur(model: WorldModel, latent: Latent, action: Tensor) -> Tensor:
    """Return h_t [N, D] from the state at t - 1 and the action at t; the GRU written out."""
    rssm = the_rssm(model)
    x = rssm.activation(F.linear(torch.cat([latent.s, action], 1), rssm.input.weight, rssm.input.bias))
    xr, xz, xn = F.linear(x, rssm.cell.weight_ih, rssm.cell.bias_ih).chunk(3, 1)
    hr, hz, hn = F.linear(latent.h, rssm.cell.weight_hh, rssm.cell.bias_hh).chunk(3, 1)
    reset, update = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
    candidate = torch.tanh(xn + reset * hn)
    return update * latent.h + (1 - update) * candidate


def draw(model: WorldModel, head: GaussianHead, inputs: Tensor, h: Tensor, noise: Tensor) -> Latent:
    """Return the state whose s is drawn from the head's Gaussian."""
    rssm = the_rssm(model)
    hidden = rssm.activation(F.linear(inputs, head.dense.weight, head.dense.bias))
    size = rssm.stoch_size
    output = F.linear(hidden, head.output.weight, head.output.bias)
    mean, std = output[:, :size], F.softplus(output[:, size:]) + head.min_std
    if head.fixed_std:
        std = torch.full_like(mean, head.fixed_std)
    return Latent(h, mean if rssm.mean_only else mean + std * noise, mean, std)


def zero_state(model: WorldModel, count: int) -> Latent:
    h = torch.zeros(count, model.transition.deter_size)
    s = torch.zeros(count, model.transition.stoch_size)
    return Latent(h, s, s, s)


def preprocess(obs: Tensor, uniform: Tensor, bit_depth: int) -> Tensor:
    """Bytes to [-0.5, 0.5) with `uniform` numbers in [0, 1) as dequantisation."""
    bins = 2**bit_depth
    return torch.floor(obs.float() / 2 ** (8 - bit_depth)) / bins + uniform / bins - 0.5


def loss(
    model: WorldModel, obs: Tensor, action: Tensor, reward: Tensor, uniform: Tensor, noise: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return PlaNet's loss and its terms, with the dequantisation `uniform` [B, T, 3, 64, 64] in [0, 1) and the
    posterior's standard normal `noise` [B, T, S] given."""
    config, (batch, time) = model.objective, obs.shape[:2]
    image = preprocess(obs, uniform, model.bit_depth)
    embed = encode(model, image.flatten(0, 1)).view(batch, time, -1)
    state = zero_state(model, batch)
    features, divergences = [], []
    for t in range(time):
        h = recur(model, state, action[:, t])
        prior = draw(model, the_rssm(model).prior_head, h, h, noise[:, t])
        posterior = draw(model, the_rssm(model).posterior_head, torch.cat([h, embed[:, t]], 1), h, noise[:, t])
        divergences.append(kl_divergence(posterior.distribution, prior.distribution))
        features.append(torch.cat([posterior.s, posterior.h], 1))
        state = posterior
    divergence = torch.stack(divergences, 1)  # [B, T]
    flat = torch.stack(features, 1).flatten(0, 1)  # [B * T, F]
    decoded = decode(model, flat).view(batch, time, 3, 64, 64)
    predicted = predict_reward(model, flat).view(batch, time)
    # Log-likelihoods without the Gaussian's constant.
    image_term = 0.5 * ((decoded - image) ** 2).sum((2, 3, 4)).mean()
    reward_term = 0.5 * ((predicted - reward) ** 2).mean()
    kl_term = torch.maximum(divergence, torch.tensor(config.free_nats)).mean()
    total = config.image_scale * image_term + config.reward_scale * reward_term + config.kl_scale * kl_term
    return total, {"image": image_term, "reward": reward_term, "kl": kl_term, "kl_raw": divergence.mean()}


def make_optimizer(model: WorldModel, learning_rate: float = 1e-3, eps: float = 1e-4) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=learning_rate, eps=eps)


def update(model: WorldModel, optimizer: torch.optim.Adam, obs: Tensor, action: Tensor, reward: Tensor) -> Tensor:
    """Take one gradient step and return the loss."""
    uniform = torch.rand(obs.shape)
    noise = torch.randn(*obs.shape[:2], model.transition.stoch_size)
    total, _ = loss(model, obs, action, reward, uniform, noise)
    optimizer.zero_grad()
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1000.0)
    optimizer.step()
    return total


@torch.no_grad()
def returns(model: WorldModel, state: Latent, actions: Tensor, noise: Tensor) -> Tensor:
    """Score action sequences [N, J, H, A] from `state` [N] with `noise` [H, N * J, S]: summed mean rewards [N, J]."""
    envs, candidates, horizon, _ = actions.shape
    flat = actions.reshape(envs * candidates, horizon, -1)
    latent = Latent(*(x.repeat_interleave(candidates, 0) for x in (state.h, state.s, state.mean, state.std)))
    total = torch.zeros(envs * candidates)
    for t in range(horizon):
        h = recur(model, latent, flat[:, t])
        latent = draw(model, the_rssm(model).prior_head, h, h, noise[t])
        total = total + predict_reward(model, torch.cat([latent.s, latent.h], 1))
    return total.view(envs, candidates)


@torch.no_grad()
def plan(
    model: WorldModel, state: Latent, *, horizon: int = 12, candidates: int = 1000, elites: int = 100,
    iterations: int = 10, noises: Iterable[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:  # fmt: skip
    """Return CEM's mean [N, H, A]. `noises`: for each iteration that of the actions [N, J, H, A] and that of `returns`;
    else they are drawn here."""
    envs = state.h.shape[0]
    mean = torch.zeros(envs, horizon, model.action_size)
    std = torch.ones(envs, horizon, model.action_size)
    action_shape = envs, candidates, horizon, model.action_size
    latent_shape = horizon, envs * candidates, model.transition.stoch_size
    drawn = ((torch.randn(action_shape), torch.randn(latent_shape)) for _ in range(iterations))
    for noise, latent_noise in drawn if noises is None else noises:
        actions = (mean[:, None] + std[:, None] * noise).clamp(-1, 1)
        scores = returns(model, state, actions, latent_noise)
        best = scores.topk(elites, dim=1).indices
        chosen = torch.stack([actions[n, best[n]] for n in range(envs)])
        mean = chosen.mean(1)
        std = (chosen.var(1, correction=0) + 1e-6).sqrt()
    return mean


@torch.no_grad()
def filter_step(model: WorldModel, state: Latent, action: Tensor, obs: Tensor) -> Latent:
    """Return the posterior [N] after `action` and the picture `obs` [N, 3, 64, 64]."""
    image = preprocess(obs, torch.rand(obs.shape), model.bit_depth)
    h = recur(model, state, action)
    noise = torch.randn(obs.shape[0], model.transition.stoch_size)
    return draw(model, the_rssm(model).posterior_head, torch.cat([h, encode(model, image)], 1), h, noise)

"""Open-loop returns of many action sequences under the RSSM: the inner loop of planning, without gradients.

The same numbers as `RSSM.prior` and `RewardHead` step by step, arranged for speed: parameters are converted once, every
tensor of the loop is allocated once and stays in the processor's cache, and each step is seven matrix products. One row
of the working memory holds [h_t, s_t, a_{t+1}], so that the inputs of the next step ([s, a]) and of the reward head
([h, s]) are slices of it, not copies.

Shapes: R rows (environment first, then candidate, then sample), H horizon, A action, D deterministic, S stochastic.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from planet.networks import RewardHead
from planet.rssm import RSSM
from planet.transition import State

ACTIVATIONS_IN_PLACE = {F.relu: F.relu_, F.elu: F.elu_}


class _Product:
    """A dense layer that writes to the same memory each time: new memory would cost as much as the product."""

    def __init__(self, weight: Tensor, bias: Tensor, rows: int, dtype: torch.dtype) -> None:
        self.weight, self.bias = weight.T.to(dtype), bias.to(dtype)
        self.output = torch.empty(rows, len(bias), dtype=dtype, device=bias.device)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight, out=self.output)


class RSSMRollout:
    """Summed mean rewards of `rows` action sequences for each of `envs` states, `horizon` steps long."""

    def __init__(
        self, rssm: RSSM, reward: RewardHead, *, envs: int, rows: int, horizon: int, dtype: torch.dtype
    ) -> None:
        """dtype: of matrix products and of h; means, deviations, samples and sums of rewards are float32."""

        def product(weight: Tensor, bias: Tensor) -> _Product:
            return _Product(weight.detach(), bias.detach(), count, dtype)

        def layer(linear: nn.Linear) -> _Product:
            return product(linear.weight, linear.bias)

        cell, count = rssm.cell, envs * rows
        d, s, a = rssm.deter_size, rssm.stoch_size, rssm.input.in_features - rssm.stoch_size
        self.deter, self.stoch, self.horizon, self.envs = d, s, horizon, envs
        self.activation = ACTIVATIONS_IN_PLACE[rssm.activation]
        self.mean_only, self.min_std = rssm.mean_only, rssm.prior_head.min_std
        self.input = layer(rssm.input)
        self.from_input = product(cell.weight_ih, cell.bias_ih)
        self.from_deter = product(cell.weight_hh, cell.bias_hh)
        self.prior_dense, self.prior_output = layer(rssm.prior_head.dense), layer(rssm.prior_head.output)
        first, *others = (x for x in reward.dense if isinstance(x, nn.Linear))
        swapped = torch.cat([first.weight[:, s:], first.weight[:, :s]], dim=1)  # from [s, h] to a row's [h, s]
        self.reward_dense = [product(swapped, first.bias), *map(layer, others)]
        self.reward_output = layer(reward.output)

        device = cell.weight_ih.device
        # Zeros, not whatever was there: AMX kernels read past the end of a row's slice and multiply what they find by
        # zero, which makes NaN of a NaN (oneDNN of torch 2.13, where a length is no multiple of the tile's).
        self.memory = torch.zeros(horizon + 1, count, d + s + a, dtype=dtype, device=device)
        self.gates = torch.empty(count, 2 * d, dtype=dtype, device=device)
        self.candidate = torch.empty(count, d, dtype=dtype, device=device)

    def __call__(
        self,
        state: State,
        actions: Float[Tensor, "env row horizon action"],
        noise: Float[Tensor, "env horizon row stoch"],
    ) -> Float[Tensor, "env row"]:
        """Return the sums of mean rewards from `state` [N]."""
        d, s, n = self.deter, self.stoch, self.envs
        memory = self.memory.view(self.horizon + 1, n, -1, self.memory.shape[-1])  # [H + 1, N, R, D + S + A]
        memory[:-1, ..., d + s :] = actions.permute(2, 0, 1, 3)
        memory[0, ..., :d] = state.deter[:, None]
        memory[0, ..., d : d + s] = state.stoch[:, None]
        # All rows of an environment start from one h: its part of the first step is computed once.
        first = torch.addmm(self.from_deter.bias, memory[0, :, 0, :d], self.from_deter.weight)
        from_deter = self.from_deter.output
        from_deter.view(n, -1, 3 * d).copy_(first[:, None])
        total = noise.new_zeros(self.memory.shape[1])
        for t in range(self.horizon):
            now, after = self.memory[t], self.memory[t + 1]
            if t:
                self.from_deter(now[:, :d])
            from_input = self.from_input(self.activation(self.input(now[:, d:])))
            torch.add(from_input[:, : 2 * d], from_deter[:, : 2 * d], out=self.gates).sigmoid_()
            reset, update = self.gates[:, :d], self.gates[:, d:]
            torch.addcmul(from_input[:, 2 * d :], reset, from_deter[:, 2 * d :], out=self.candidate).tanh_()
            torch.lerp(self.candidate, now[:, :d], update, out=after[:, :d])
            output = self.prior_output(self.activation(self.prior_dense(after[:, :d]))).float()
            after[:, d : d + s] = self._sample(output, noise[:, t])
            x = after[:, : d + s]
            for dense in self.reward_dense:
                x = self.activation(dense(x))
            total += self.reward_output(x)[:, 0]
        return total.view(n, -1)

    def _sample(self, output: Tensor, noise: Tensor) -> Tensor:
        mean = output[:, : self.stoch]
        if self.mean_only:
            return mean
        # The softplus of the means is thrown away: on a slice it would take ten times as long.
        std = F.softplus(output)[:, self.stoch :] + self.min_std
        shape = (self.envs, -1, self.stoch)
        return torch.addcmul(mean.view(shape), std.view(shape), noise).flatten(0, 1)

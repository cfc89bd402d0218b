"""Open-loop returns of many action sequences under the RSSM: the inner loop of planning, without gradients.

The same numbers as `RSSM.prior` and `RewardHead` step by step, arranged for speed: parameters are converted once, every
tensor of the loop is allocated once and stays in the processor's cache, biases are one more row of the matrices, and
each step is nine matrix products. A row of the working memory holds

    [x_{t+1}, 1, h_t, s_t, 1, a_{t+1}]      x: what the GRU takes in, made of s and a

so that what each product needs ([x, 1, h], [1, h], [1, h, s], [s, 1, a]) is a slice of it, not a copy.

Shapes: R rows (environment first, then candidate, then sample), H horizon, A action, D deterministic, S stochastic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from planet.networks import RewardHead
from planet.rssm import RSSM
from planet.transition import State

ACTIVATIONS_IN_PLACE = {F.relu: F.relu_, F.elu: F.elu_}


class _Dense:
    """A dense layer with an activation whose output, followed by a 1, lies in the same memory each time: new memory
    would cost as much as the product."""

    def __init__(self, layer: nn.Linear, activation: Callable[[Tensor], Tensor], rows: int, dtype: torch.dtype) -> None:
        """The inputs end with a 1."""
        self.matrix = _join([layer.weight, layer.bias], dtype)
        self.memory = torch.ones(rows, layer.out_features + 1, dtype=dtype, device=self.matrix.device)
        self.activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        self.activation(torch.mm(x, self.matrix, out=self.memory[:, :-1]))
        return self.memory


def _join(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Weights [O, I] and biases [O] beside each other as one matrix [I + ... + 1 + ..., O]."""
    columns = [part.detach() if part.ndim == 2 else part.detach()[:, None] for part in parts]
    return torch.cat(columns, dim=1).T.to(dtype).contiguous()


class RSSMRollout:
    """Summed mean rewards of `rows` action sequences for each of `envs` states, `horizon` steps long."""

    def __init__(
        self, rssm: RSSM, reward: RewardHead, *, envs: int, rows: int, horizon: int, dtype: torch.dtype
    ) -> None:
        """dtype: of matrix products and of h; means, deviations, samples and sums of rewards are float32."""
        cell, count = rssm.cell, envs * rows
        d, s, x, a = rssm.deter_size, rssm.stoch_size, cell.input_size, rssm.input.in_features - rssm.stoch_size
        self.deter, self.stoch, self.horizon, self.envs = d, s, horizon, envs
        self.activation = ACTIVATIONS_IN_PLACE[rssm.activation]
        self.mean_only, self.min_std = rssm.mean_only, rssm.prior_head.min_std
        gates, new = slice(2 * d), slice(2 * d, 3 * d)  # rows of the cell's matrices: reset and update, candidate

        # The matrices, their rows in the order of the slices that they multiply.
        w = rssm.input.weight
        self.to_input = _join([w[:, :s], rssm.input.bias, w[:, s:]], dtype)
        both = cell.bias_ih + cell.bias_hh
        self.to_gates = _join([cell.weight_ih[gates], both[gates], cell.weight_hh[gates]], dtype)
        self.to_new = _join([cell.weight_ih[new], cell.bias_ih[new]], dtype)
        self.to_new_from_deter = _join([cell.bias_hh[new], cell.weight_hh[new]], dtype)
        prior = rssm.prior_head
        self.to_prior = _join([prior.dense.bias, prior.dense.weight], dtype)
        self.prior_output = _join([prior.output.weight, prior.output.bias], dtype)
        first, *others = (layer for layer in reward.dense if isinstance(layer, nn.Linear))
        self.to_reward = _join([first.bias, first.weight[:, s:], first.weight[:, :s]], dtype)
        self.reward_dense = [_Dense(layer, self.activation, count, dtype) for layer in others]
        self.reward_output = _join([reward.output.weight, reward.output.bias], dtype)

        # Never whatever was there: AMX kernels read past the end of a row's slice and multiply what they find by zero,
        # which makes NaN of a NaN (oneDNN of torch 2.13, where a length is no multiple of the tile's).
        def memory(*shape: int) -> Tensor:
            return torch.ones(shape, dtype=dtype, device=cell.weight_ih.device)

        self.x, self.x1h = slice(x), slice(x + 1 + d)
        self.x1, self.h1 = slice(x + 1), slice(x, x + 1 + d)
        self.h, self.s = slice(x + 1, x + 1 + d), slice(x + 1 + d, x + 1 + d + s)
        self.hs1 = slice(x, x + 1 + d + s)
        self.s1a, self.a = slice(x + 1 + d, x + 2 + d + s + a), slice(x + 2 + d + s, x + 2 + d + s + a)
        self.now, self.after = memory(count, x + 2 + d + s + a), memory(count, x + 2 + d + s + a)
        self.gates = memory(count, 2 * d)
        self.candidate, self.from_deter = memory(count, d), memory(count, d)
        self.prior_hidden = memory(count, prior.dense.out_features + 1)
        self.prior = memory(count, 2 * s)
        self.reward_hidden = memory(count, first.out_features + 1)

    def __call__(
        self,
        state: State,
        actions: Float[Tensor, "env row horizon action"],
        noise: Float[Tensor, "env horizon row stoch"],
    ) -> Float[Tensor, "env row"]:
        """Return the sums of mean rewards from `state` [N]."""
        d, now, after = self.deter, self.now, self.after
        self._rows(now)[..., self.h] = state.deter[:, None]
        self._rows(now)[..., self.s] = state.stoch[:, None]
        total = noise.new_zeros(now.shape[0])
        for t in range(self.horizon):
            self._rows(now)[..., self.a] = actions[:, :, t]
            self.activation(torch.mm(now[:, self.s1a], self.to_input, out=now[:, self.x]))
            torch.mm(now[:, self.x1h], self.to_gates, out=self.gates).sigmoid_()
            torch.mm(now[:, self.x1], self.to_new, out=self.candidate)
            torch.mm(now[:, self.h1], self.to_new_from_deter, out=self.from_deter)
            reset, update = self.gates[:, :d], self.gates[:, d:]
            self.candidate.addcmul_(reset, self.from_deter).tanh_()
            torch.lerp(self.candidate, now[:, self.h], update, out=after[:, self.h])
            self.activation(torch.mm(after[:, self.h1], self.to_prior, out=self.prior_hidden[:, :-1]))
            output = torch.mm(self.prior_hidden, self.prior_output, out=self.prior).float()
            after[:, self.s] = self._sample(output, noise[:, t])
            self.activation(torch.mm(after[:, self.hs1], self.to_reward, out=self.reward_hidden[:, :-1]))
            y = self.reward_hidden
            for dense in self.reward_dense:
                y = dense(y)
            total += torch.mm(y, self.reward_output)[:, 0]
            now, after = after, now
        return total.view(self.envs, -1)

    def _rows(self, memory: Tensor) -> Tensor:
        return memory.view(self.envs, -1, memory.shape[-1])  # [N, R, ...]

    def _sample(self, output: Tensor, noise: Tensor) -> Tensor:
        mean = output[:, : self.stoch]
        if self.mean_only:
            return mean
        # The softplus of the means is thrown away: on a slice it would take ten times as long.
        std = F.softplus(output)[:, self.stoch :] + self.min_std
        shape = (self.envs, -1, self.stoch)
        return torch.addcmul(mean.view(shape), std.view(shape), noise).flatten(0, 1)

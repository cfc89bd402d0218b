"""Open-loop returns of many action sequences under the RSSM on a GPU: `planet.rssm_rollout` with `planet.fused`.

A step is two kernels. Actions are known beforehand, so what they add to the GRU's input is one product for all steps,
and the reward head, which no step waits for, sees all steps at once. Parameters are used as they are.

Shapes: N environments, R rows of each (candidate, then sample), H horizon, A action, D deterministic, S stochastic.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from planet import fused
from planet.networks import ACTIVATIONS_IN_PLACE, RewardHead
from planet.rssm import RSSM
from planet.transition import State

ALIGNED = 8
"""Columns that features are filled up to: a GPU's fast products load 16 bytes at a time, some 32."""


class FusedRollout:
    """Summed mean rewards of `rows` action sequences, `horizon` steps long, for each state [N]."""

    def __init__(
        self, rssm: RSSM, reward: RewardHead, state: State, *, rows: int, horizon: int, tiles: fused.Tiles
    ) -> None:
        head, cell, d, s, envs = rssm.prior_head, rssm.cell, rssm.deter_size, rssm.stoch_size, len(state.deter)
        self.horizon, self.tiles, self.activation = horizon, tiles, rssm.activation
        self.w_stoch, self.w_action = rssm.input.weight.split([s, rssm.input.in_features - s], dim=1)
        self.bias = rssm.input.bias
        self.cell = fused.Cell(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
        options = fused.Options(rssm.activation, head.min_std, head.fixed_std, rssm.mean_only)
        self.head = fused.Head(head.dense.weight, head.output.weight, head.output.bias, options)
        self.known = head.dense.bias.expand(envs * rows, -1)

        empty = cell.weight_ih.new_empty
        self.x = empty(envs * rows, cell.input_size)
        self.deter = state.deter.repeat_interleave(rows, dim=0)
        self.from_stoch = F.linear(state.stoch, self.w_stoch)[:, None]  # [N, 1, X]
        fill = -(d + s) % ALIGNED
        self.features = cell.weight_ih.new_zeros(horizon, envs * rows, d + s + fill)  # [h, s, 0]
        first, *self.dense = (layer for layer in (*reward.dense, reward.output) if isinstance(layer, nn.Linear))
        w_s, w_h = first.weight.split([s, d], dim=1)
        self.to_reward = torch.cat([w_h, w_s, w_s.new_zeros(len(w_s), fill)], dim=1), first.bias

    def __call__(
        self, actions: Float[Tensor, "env row horizon action"], noise: Float[Tensor, "env horizon row stoch"]
    ) -> Float[Tensor, "env row"]:
        """Return the sums of mean rewards."""
        h, d, s = self.deter, self.deter.shape[1], noise.shape[3]
        known = F.linear(actions, self.w_action, self.bias)  # [N, R, H, X]
        torch.add(known[:, :, 0], self.from_stoch, out=self.x.view(*actions.shape[:2], -1))
        ACTIVATIONS_IN_PLACE[self.activation](self.x)
        known = known.flatten(0, 1).unbind(dim=1)  # H times [N * R, X]
        for t, features in enumerate(self.features):
            following = fused.Following(known[t + 1], self.w_stoch, self.x) if t + 1 < self.horizon else None
            fused.next_deter(self.x, h, self.cell, out=features[:, :d], tiles=self.tiles)
            h = features[:, :d]
            fused.next_stoch(
                h, self.known, self.head, noise[:, t], out=features[:, d : d + s], tiles=self.tiles,
                following=following,
            )  # fmt: skip
        return self._rewards(self.features.flatten(0, 1)).view(self.horizon, *actions.shape[:2]).sum(dim=0)

    def _rewards(self, features: Tensor) -> Tensor:
        """Mean rewards [r] of features [r, F]."""
        weight, bias = self.to_reward
        for layer in self.dense:
            features = self._layer(features, weight, bias)
            weight, bias = layer.weight, layer.bias
        return F.linear(features, weight, bias)[:, 0]

    def _layer(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.activation is F.relu:  # within the product: else it reads and writes all of it once more
            return torch.ops.aten._addmm_activation(bias, inputs, weight.T)
        return self.activation(F.linear(inputs, weight, bias))

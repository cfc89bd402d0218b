"""Open-loop returns of many action sequences under the RSSM on a GPU: `planet.rssm_rollout` with `planet.fused`.

A step is two kernels, and the reward head, which no step waits for, sees all steps at once. With bfloat16 products
matrices are converted once, and what only products read is kept in that type; h is carried on as float32, too.

Shapes: N environments, R rows of each (candidate, then sample), H horizon, A action, D deterministic, S stochastic.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from planet import fused
from planet.networks import RewardHead
from planet.rssm import RSSM
from planet.transition import State

ALIGNED = 8
"""Columns that features and some matrices are filled up to: a GPU's fast products load 16 bytes at a time, some 32."""


def _aligned(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in `dtype` whose rows begin at multiples of `ALIGNED`."""
    return F.pad(weight.to(dtype), (0, -weight.shape[1] % ALIGNED))[:, : weight.shape[1]]


class FusedRollout:
    """Summed mean rewards of `rows` action sequences, `horizon` steps long, for each state [N]."""

    def __init__(
        self,
        rssm: RSSM,
        reward: RewardHead,
        state: State,
        *,
        rows: int,
        horizon: int,
        tiles: fused.Tiles,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """dtype: of the factors of products."""
        head, cell, d, s, envs = rssm.prior_head, rssm.cell, rssm.deter_size, rssm.stoch_size, len(state.deter)
        self.horizon, self.tiles, self.activation = horizon, tiles, rssm.activation
        w_stoch, w_action = rssm.input.weight.split([s, rssm.input.in_features - s], dim=1)
        self.w_stoch, self.w_action = _aligned(w_stoch, dtype), _aligned(w_action, dtype)
        options = fused.Options(rssm.activation, head.min_std, head.fixed_std, rssm.mean_only)
        self.cell, self.head = fused.shortened(
            fused.Cell(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh),
            fused.Head(head.dense.weight, head.output.weight, head.output.bias, options),
            dtype,
        )
        self.known = head.dense.bias.expand(envs * rows, -1)
        self.known_x = rssm.input.bias.expand(envs * rows, -1)
        self.first = F.linear(state.stoch, w_stoch, rssm.input.bias)  # [N, X]

        empty = cell.weight_ih.new_empty
        self.x = empty(envs * rows, cell.input_size, dtype=dtype)
        self.deter = state.deter.repeat_interleave(rows, dim=0)
        self.short_deter = self.deter.to(dtype)
        self.carried = None if dtype is torch.float32 else torch.empty_like(self.deter)
        fill = -(d + s) % ALIGNED
        self.features = empty(horizon, envs * rows, d + s + fill, dtype=dtype).zero_()  # [h, s, 0]
        first, *layers = (layer for layer in reward.dense if isinstance(layer, nn.Linear))
        w_s, w_h = first.weight.to(dtype).split([s, d], dim=1)
        w_1 = torch.cat([w_h, w_s, w_s.new_zeros(len(w_s), fill)], dim=1)
        w_3, b_3 = reward.output.weight.to(dtype), reward.output.bias
        self.reward, self.layers, self.reward_tiles = None, [], None
        if len(layers) == 1:
            self.reward_tiles = fused.tiles_for_rewards(w_1.device, w_1.shape[1], len(w_1), tiles, dtype)
        if self.reward_tiles is not None:
            w_2, b_2 = layers[0].weight.to(dtype), layers[0].bias
            self.reward = fused.Rewards(w_1, first.bias, w_2, b_2, w_3, b_3, rssm.activation)
        else:
            self.layers = [(w_1, first.bias.to(dtype)), *((x.weight.to(dtype), x.bias.to(dtype)) for x in layers)]
            self.output = w_3, b_3.to(dtype)

    def __call__(
        self, actions: Float[Tensor, "env row horizon action"], noise: Float[Tensor, "env horizon row stoch"]
    ) -> Float[Tensor, "env row"]:
        """Return the sums of mean rewards."""
        d, s, tiles, carried = self.deter.shape[1], noise.shape[3], self.tiles, self.carried
        action = actions.flatten(0, 1).unbind(dim=1)  # H times [N * R, A]
        fused.first_input(self.first, action[0], self.w_action, self.activation, out=self.x)
        h, before = self.short_deter, self.deter
        for t, features in enumerate(self.features):
            following = (
                fused.Following(self.known_x, self.w_stoch, self.x, action[t + 1], self.w_action)
                if t + 1 < self.horizon
                else None
            )
            carry = None if carried is None else (before, carried)
            fused.next_deter(self.x, h, self.cell, out=features[:, :d], tiles=tiles, carry=carry)
            h, before = features[:, :d], before if carried is None else carried
            fused.next_stoch(
                h, self.known, self.head, noise[:, t], out=features[:, d : d + s], tiles=tiles, following=following
            )
        return self._rewards(self.features.flatten(0, 1)).view(actions.shape[:2])

    def _rewards(self, features: Float[Tensor, "step_and_row feature"]) -> Float[Tensor, " row"]:
        """Mean rewards summed over steps."""
        if self.reward is not None and self.reward_tiles is not None:
            found = torch.empty(len(features), device=features.device)
            fused.rewards(features, self.reward, out=found, tiles=self.reward_tiles)
        else:
            for weight, bias in self.layers:
                features = self.activation(F.linear(features, weight, bias))
            found = F.linear(features, *self.output).float()
        return found.view(self.horizon, -1).sum(dim=0)

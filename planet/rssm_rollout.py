"""Open-loop returns of many action sequences under the RSSM: the inner loop of planning, without gradients.

The same numbers as `RSSM.prior` and `RewardHead` step by step, arranged for speed: parameters are converted once, all
memory is allocated once, biases are one more row of the matrices, no operation but a matrix product takes a slice of a
row (on a CPU that costs more than the operation), and the reward head, which no step waits for, sees many steps at
once. A row of the working memory of step t holds

    [x_{t+1}, 1, h_t, s_t, 1, a_{t+1}]      x: what the GRU takes in, made of s and a

so that what each product needs ([x, 1, h], [x, 1], [1, h], [1, h, s], [s, 1, a]) is a slice of it, not a copy. Only
products are ever shortened to bfloat16: h, the gates and all nonlinear functions are float32, as in `RSSM` (and a CPU
takes five times as long for tanh of a short type).

On a GPU a step costs what starting its kernels costs, and slices cost nothing. There everything is float32, whose
products TF32 makes fast enough, so that nothing is converted, and results go where they are needed: 13 kernels a step
in place of 22. Every part of a row, ones included, is filled up to `ALIGNED` columns with numbers that the matrices
multiply by zero.

Shapes: R rows (environment first, then candidate, then sample), H horizon, A action, D deterministic, S stochastic.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from planet.networks import RewardHead
from planet.rssm import RSSM
from planet.transition import State

ACTIVATIONS_IN_PLACE = {F.relu: F.relu_, F.elu: F.elu_}

SHORT_FROM = 25_000
"""Numbers that a CPU's products must have for bfloat16 to pay: each costs 20 microseconds at least."""

IN_CACHE = 50_000
"""Numbers that a CPU's thread takes through elementwise operations at a time, to find them in its cache again. Where
threads have to meet after each operation, each takes twice as many."""


ALIGNED = 8
"""Columns that parts of a row are filled up to on a GPU. Its fast matrix kernels load 16 bytes at a time, some 32, and
are not taken where a row or a slice begins elsewhere."""


def _relu_of_bits(x: Tensor) -> Tensor:
    """ReLU in place of bfloat16 numbers that are not NaN: as integers, negative numbers are negative, too, and a CPU
    takes a quarter of the time for them. (A NaN with its sign set would become 0.)"""
    x.view(torch.int16).relu_()
    return x


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether the numbers of each have a finite sum, which is seen in a tenth of the time of each number's."""
    return all(math.isfinite(tensor.sum()) for tensor in tensors)


def rows_in_cache(deter: int) -> int:
    """Return how many rows of `deter` numbers a CPU takes through elementwise operations at a time."""
    threads = torch.get_num_threads()
    return -(-IN_CACHE * (threads if threads == 1 else 2 * threads) // deter)


def envs_together(envs: int, rows: int, deter: int, device: torch.device) -> int:
    """Return for how many of `envs` environments, a divisor, one rollout serves best.

    On a GPU all; on a CPU as many as stay in the cache: large plans one after the other, small ones together, so that
    there is something to do for all threads.
    """
    if device.type == "cuda":
        return envs
    most = max(1, rows_in_cache(deter) // rows)
    return max(n for n in range(1, envs + 1) if envs % n == 0 and n <= most)


def _filled(size: int, align: int) -> int:
    return size + -size % align


def _join(parts: Sequence[Tensor], dtype: torch.dtype, align: int) -> Tensor:
    """Weights [O, I] and biases [O] beside each other as one matrix [I + ... + 1 + ..., O], each size filled up with
    zeros to a multiple of `align`."""
    columns = [part.detach() if part.ndim == 2 else part.detach()[:, None] for part in parts]
    if align > 1:
        columns = [F.pad(part, (0, -part.shape[1] % align, 0, -part.shape[0] % align)) for part in columns]
    return torch.cat(columns, dim=1).T.to(dtype).contiguous()


class RSSMRollout:
    """Summed mean rewards of `rows` action sequences for each of `envs` states, `horizon` steps long."""

    def __init__(
        self,
        rssm: RSSM,
        reward: RewardHead,
        *,
        envs: int,
        rows: int,
        horizon: int,
        dtype: torch.dtype,
        few_kernels: bool | None = None,
    ) -> None:
        """dtype: of a CPU's matrix products, where they are large enough for a short one to pay; few_kernels: work as
        on a GPU (the default there)."""
        cell, count, device = rssm.cell, envs * rows, rssm.cell.weight_ih.device
        d, s, x, a = rssm.deter_size, rssm.stoch_size, cell.input_size, rssm.input.in_features - rssm.stoch_size
        self.few_kernels = device.type == "cuda" if few_kernels is None else few_kernels
        align = ALIGNED if self.few_kernels else 1
        # By the rows of one environment: whoever plans beside it must not change how it computes.
        dtype = torch.float32 if self.few_kernels or rows * d < SHORT_FROM else dtype
        self.short, self.horizon, self.envs = dtype is not torch.float32, horizon, envs
        self.activation = ACTIVATIONS_IN_PLACE[rssm.activation]
        self.mean_only, self.min_std, self.fixed_std = (
            rssm.mean_only,
            rssm.prior_head.min_std,
            rssm.prior_head.fixed_std,
        )

        # The matrices, their rows in the order of the slices that they multiply.
        w = rssm.input.weight
        self.to_input = _join([w[:, :s], rssm.input.bias, w[:, s:]], dtype, align)
        (reset, update, new), (reset_h, update_h, new_h) = (m.split(d) for m in (cell.weight_ih, cell.weight_hh))
        (_, _, b_new), (_, _, b_new_h) = (b.split(d) for b in (cell.bias_ih, cell.bias_hh))
        b_reset, b_update, _ = (cell.bias_ih + cell.bias_hh).split(d)
        # reset, update, candidate from x and candidate from h
        self.joined = self.short or self.few_kernels
        if self.joined:  # all multiply [x, 1, h]: one product with zeros in it takes less time than four
            no_x, no_h = torch.zeros_like(new), torch.zeros_like(new_h)
            last_two = [[new, b_new, no_h], [no_x, b_new_h, new_h]]
        else:
            last_two = [[new, b_new], [b_new_h, new_h]]
        of_cell = [[reset, b_reset, reset_h], [update, b_update, update_h], *last_two]
        prior = rssm.prior_head
        self.to_prior = _join([prior.dense.bias, prior.dense.weight], dtype, align)
        of_gaussian = zip(prior.output.weight.split(s), prior.output.bias.split(s), strict=True)  # mean, deviation
        first, *others = (layer for layer in reward.dense if isinstance(layer, nn.Linear))
        self.to_reward = [
            _join([first.bias, first.weight[:, s:], first.weight[:, :s]], dtype, align),
            *(_join([layer.weight, layer.bias], dtype, align) for layer in others),
        ]
        self.reward_output = _join([reward.output.weight, reward.output.bias], dtype, align)

        # Never whatever was there: AMX kernels read past the end of a row's slice and multiply what they find by zero,
        # which makes NaN of a NaN (oneDNN of torch 2.13, where a length is no multiple of the tile's).
        def memory(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.ones(shape, dtype=dtype, device=device)

        # Where the parts of a row begin: x at 0, the other one after s.
        one, h, end, after_s, action, width = itertools.accumulate(_filled(part, align) for part in (x, 1, d, s, 1, a))
        steps = memory(horizon + 1, count, width)
        self.h, self.s, self.a = steps[..., h : h + d], steps[..., end : end + s], steps[..., action : action + a]
        cell_inputs = [slice(end)] if self.joined else [slice(end), slice(end), slice(h), slice(one, end)]
        self.slices = [
            (row[:, end:], row[:, :one], [row[:, part] for part in cell_inputs], after[:, one:end])
            for row, after in itertools.pairwise(steps.unbind())
        ]  # of a step [s, 1, a], [x] and what the cell's matrices multiply; of the next [1, h]
        self.features = steps[1:].flatten(0, 1)[:, one:after_s]  # [1, h, s] of all steps, [H * R, ...]
        self.deter = memory(count, d, dtype=torch.float32)
        self.to_cell, cell_results = self._products([_join(parts, dtype, align) for parts in of_cell], memory)
        self.cell = [result[:, :d] for result in cell_results]
        self.both_gates = self.to_cell[0][1][:, : 2 * cell_results[0].shape[1]]  # reset and update, where joined
        self.some_rows = count if self.few_kernels else min(count, rows_in_cache(d))
        parts = [memory(self.some_rows, d, dtype=torch.float32) for _ in range(4)]
        self.blocks = [
            (h, products, [part[: len(h)] for part in parts])
            for h, *products in zip(*(x.split(self.some_rows) for x in (self.deter, *self.cell)), strict=True)
        ]  # of rows: their h, the cell's products, memory for these in float32
        self.prior_input = memory(count, self.to_prior.shape[1] + align)  # [.., 1], as each layer's of the reward head
        self.to_gaussian, results = self._products([_join(parts, dtype, align) for parts in of_gaussian], memory)
        self.gaussian = [result[:, :s] for result in results]
        self.reward_rows = horizon * count if self.few_kernels else min(horizon * count, 8 * self.some_rows)
        self.reward_hidden = [memory(self.reward_rows, matrix.shape[1] + align) for matrix in self.to_reward]
        self.align = align
        matrices = [self.to_input, self.to_prior, *self.to_reward]
        matrices += [matrix for matrix, _ in (*self.to_cell, *self.to_gaussian)]
        self.bits = self.short and self.activation is F.relu_ and _all_finite(matrices)

    def __call__(
        self,
        state: State,
        actions: Float[Tensor, "env row horizon action"],
        noise: Float[Tensor, "env horizon row stoch"],
    ) -> Float[Tensor, "env row"]:
        """Return the sums of mean rewards from `state` [N]."""
        # Checked before, since nothing of a NaN may be left afterwards.
        finite = self.bits and _all_finite([state.deter, state.stoch, actions])
        activate = _relu_of_bits if finite else self.activation
        deter = self.deter
        self._rows(deter).copy_(state.deter[:, None].expand(self._rows(deter).shape))
        self.h[0] = deter
        self._rows(self.s[0]).copy_(state.stoch[:, None].expand(self._rows(self.s[0]).shape))
        self._rows(self.a[: self.horizon], 1).copy_(actions.permute(2, 0, 1, 3))  # [H, N, R, A]
        noises = noise.transpose(0, 1).flatten(1, 2).unbind()  # H times [N * R, S]
        for t, (s1a, x, inputs, h1) in enumerate(self.slices):
            activate(torch.mm(s1a, self.to_input, out=x))
            for given, (matrix, memory) in zip(inputs, self.to_cell, strict=True):
                torch.mm(given, matrix, out=memory)
            if self.few_kernels:
                self._next_deter(self.h[t], out=self.h[t + 1])
            else:
                self._update_deter()
                self.h[t + 1] = deter
            activate(torch.mm(h1, self.to_prior, out=self.prior_input[:, : -self.align]))
            if self.few_kernels:
                self._sample(noises[t], out=self.s[t + 1])
            else:
                self.s[t + 1] = self._sample(noises[t])
        rewards = torch.cat([self._reward(features, activate) for features in self.features.split(self.reward_rows)])
        return rewards.view(self.horizon, self.envs, -1).sum(dim=0)

    def _products(
        self, matrices: list[Tensor], memory: Callable[[int, int], Tensor]
    ) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        """Return the products to compute as (matrix, memory), and the results of all matrices: one short product whose
        slices they are, or a float32 product each, which costs nothing to start."""
        rows, widths = len(self.deter), [matrix.shape[1] for matrix in matrices]
        if self.joined:
            together = memory(rows, sum(widths))
            return [(torch.cat(matrices, dim=1), together)], list(together.split(widths, dim=1))
        results = [memory(rows, width) for width in widths]
        return list(zip(matrices, results, strict=True)), results

    def _rows(self, memory: Tensor, axis: int = 0) -> Tensor:
        return memory.unflatten(axis, (self.envs, -1))  # [..., N, R, ...]

    def _update_deter(self) -> None:
        """Take h one step on, in place, given the cell's products."""
        for h, products, memory in self.blocks:
            if self.short:
                products = [part.copy_(product) for part, product in zip(memory, products, strict=True)]
            reset, update, new, new_from_deter = products
            new.addcmul_(reset.sigmoid_(), new_from_deter).tanh_()
            torch.lerp(new, h, update.sigmoid_(), out=h)

    def _next_deter(self, h: Tensor, *, out: Tensor) -> None:
        """Write h one step on, given the cell's products: `_update_deter` where kernels count and slices do not."""
        reset, update, new, new_from_deter = self.cell
        self.both_gates.sigmoid_()
        torch.lerp(new.addcmul_(reset, new_from_deter).tanh_(), h, update, out=out)

    def _sample(self, noise: Tensor, out: Tensor | None = None) -> Tensor:
        for matrix, memory in self.to_gaussian:
            torch.mm(self.prior_input, matrix, out=memory)
        mean, raw = (part.float() for part in self.gaussian)  # a copy where they are slices
        if self.mean_only:
            return mean if out is None else out.copy_(mean)
        if self.fixed_std:
            return torch.add(mean, noise, alpha=self.fixed_std, out=out)
        return torch.addcmul(mean, F.softplus(raw).add_(self.min_std), noise, out=out)

    def _reward(self, features: Tensor, activate: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean rewards [r] of features [r, 1 + D + S] (each filled up)."""
        y = features
        for matrix, memory in zip(self.to_reward, self.reward_hidden, strict=True):
            hidden = memory[: len(y)]
            activate(torch.mm(y, matrix, out=hidden[:, : -self.align]))
            y = hidden
        return torch.mm(y, self.reward_output)[:, 0].float()

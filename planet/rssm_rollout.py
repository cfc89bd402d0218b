"""Open-loop returns of many action sequences under the RSSM: the inner loop of planning, without gradients.

The same numbers as `RSSM.prior` and `RewardHead` step by step, arranged for speed: parameters are converted once, all
memory is allocated once, biases are one more row of the matrices, no operation but a matrix product takes a slice of a
row (on a CPU that costs more than the operation), and the reward head, which no step waits for, sees many steps at
once. A row of the working memory of step t holds

    [x_{t+1}, 1, h_t, s_t, 1, a_{t+1}]      x: what the GRU takes in, made of s and a

so that what each product needs ([x, 1, h], [x, 1], [1, h], [1, h, s], [s, 1, a]) is a slice of it, not a copy. Only
products are ever shortened to bfloat16: h, the gates and all nonlinear functions are float32, as in `RSSM` (and a CPU
takes five times as long for tanh of a short type). A short product takes a slice that begins and ends at multiples of
`BLOCK` columns, neighbours included, whose rows of the matrix are zero.

On a GPU a step costs what starting its kernels costs, and slices cost nothing. There everything is float32, whose
products TF32 makes fast enough, so that nothing is converted, and results go where they are needed: 13 kernels a step
in place of 22 (`planet.fused_rollout` takes two, where Triton works). Every part of a row, ones included, is filled up
to `ALIGNED` columns with numbers that the matrices multiply by zero.

Shapes: R rows (environment first, then candidate, then sample), H horizon, A action, D deterministic, S stochastic.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from planet.networks import ACTIVATIONS_IN_PLACE, RewardHead
from planet.rssm import RSSM
from planet.transition import State

SHORT_FROM = 25_000
"""Numbers that a CPU's products must have for bfloat16 to pay: each costs 20 microseconds at least."""

IN_CACHE = 50_000
"""Numbers that a CPU's thread takes through elementwise operations at a time, to find them in its cache again. Where
threads have to meet after each operation, each takes twice as many."""


BLOCK = 32
"""Columns of bfloat16 in a line of a CPU's cache, which is what AMX loads at once: products take a tenth of the time
less where all that they take begins and ends with a line."""

REWARD_AT_ONCE = 1_200_000
"""Numbers in a layer of the reward head that a CPU computes at a time, in equal parts. (The paper's 12,000 rows take
about as long in one part or two, but longer in many.)"""

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


@dataclass(frozen=True, slots=True)
class _Matrices:
    """What the columns named are multiplied by, from the left to the right; biases are rows."""

    input: Tensor
    """[s, 1, a]"""
    cell: list[Tensor]
    """Reset gate, update gate, candidate from x, candidate from h: [x, 1, h], the last two [x, 1] and [1, h]"""
    prior: Tensor
    """[1, h]"""
    gaussian: list[Tensor]
    """Mean and deviation: [prior's layer, 1]"""
    reward: list[Tensor]
    """[1, h, s], then [layer, 1] to the last"""


def _matrices(rssm: RSSM, reward: RewardHead, dtype: torch.dtype, fill: int, *, joined: bool) -> _Matrices:
    """joined: the cell's last two multiply [x, 1, h], too, with zeros for what is not theirs."""

    def join(*parts: Tensor) -> Tensor:
        return _join(parts, dtype, fill)

    cell, prior, d, s = rssm.cell, rssm.prior_head, rssm.deter_size, rssm.stoch_size
    w = rssm.input.weight
    (reset, update, new), (reset_h, update_h, new_h) = (m.split(d) for m in (cell.weight_ih, cell.weight_hh))
    (_, _, b_new), (_, _, b_new_h) = (b.split(d) for b in (cell.bias_ih, cell.bias_hh))
    b_reset, b_update, _ = (cell.bias_ih + cell.bias_hh).split(d)
    candidate = [[new, b_new], [b_new_h, new_h]]
    if joined:
        candidate = [[new, b_new, torch.zeros_like(new_h)], [torch.zeros_like(new), b_new_h, new_h]]
    of_gaussian = zip(prior.output.weight.split(s), prior.output.bias.split(s), strict=True)
    first, *others = (layer for layer in (*reward.dense, reward.output) if isinstance(layer, nn.Linear))
    return _Matrices(
        input=join(w[:, :s], rssm.input.bias, w[:, s:]),
        cell=[join(*parts) for parts in ([reset, b_reset, reset_h], [update, b_update, update_h], *candidate)],
        prior=join(prior.dense.bias, prior.dense.weight),
        gaussian=[join(*parts) for parts in of_gaussian],
        reward=[
            join(first.bias, first.weight[:, s:], first.weight[:, :s]),
            *(join(layer.weight, layer.bias) for layer in others),
        ],
    )


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
        # By the rows of one environment: whoever plans beside it must not change how it computes.
        dtype = torch.float32 if self.few_kernels or rows * d < SHORT_FROM else dtype
        self.short, self.horizon, self.envs = dtype is not torch.float32, horizon, envs
        fill, block = ALIGNED if self.few_kernels else 1, BLOCK if self.short else 1
        self.activation = ACTIVATIONS_IN_PLACE[rssm.activation]
        self.mean_only, self.min_std, self.fixed_std = (
            rssm.mean_only,
            rssm.prior_head.min_std,
            rssm.prior_head.fixed_std,
        )

        def memory(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        def memory_with_ones(*shape: int, first: int) -> Tensor:
            """Columns from `first` on are not left as whatever was there: some stay one, and others are multiplied by
            zero before anything is written there, which makes NaN of a NaN."""
            result = memory(*shape)
            result[..., first:] = 1
            return result

        self.joined = self.short or self.few_kernels  # one product with zeros in it takes less time than four
        matrices = _matrices(rssm, reward, dtype, fill, joined=self.joined)

        # Where the parts of a row begin: x at 0, the other one after s.
        one, h, end, after_s, action, width = itertools.accumulate(_filled(part, fill) for part in (x, 1, d, s, 1, a))
        steps = memory_with_ones(horizon + 1, count, _filled(width, block), first=one - one % block)
        self.h, self.s = steps[..., h : h + d].unbind(), steps[..., end : end + s].unbind()
        self.a = steps[:-1, :, action : action + a]

        def taken(first: int, last: int) -> slice:
            """Columns that a product takes to get those from `first` to `last`."""
            return slice(first - first % block, _filled(last, block))

        def taking(matrix: Tensor, first: int = 0) -> Tensor:
            """Return the matrix of columns from `first` on with rows of zeros for the others that are taken."""
            columns = taken(first, first + len(matrix))
            return F.pad(matrix, (0, 0, first - columns.start, columns.stop - first - len(matrix)))

        def hidden_layer(rows: int, matrix: Tensor) -> Tensor:
            """Return memory for a layer's outputs and a one, [.., 1]."""
            size = matrix.shape[1]
            return memory_with_ones(rows, _filled(size + fill, block), first=size)

        self.to_input, self.to_prior = taking(matrices.input, end), taking(matrices.prior, one)
        cell_parts = [(0, end)] if self.joined else [(0, end), (0, end), (0, h), (one, end)]
        self.slices = [
            (
                row[:, taken(end, width)],
                row[:, :one],
                [row[:, taken(*part)] for part in cell_parts],
                after[:, taken(one, end)],
            )
            for row, after in itertools.pairwise(steps.unbind())
        ]  # of a step [s, 1, a], [x] and what the cell's matrices multiply; of the next [1, h]
        self.features = steps[1:].flatten(0, 1)[:, taken(one, after_s)]  # [1, h, s] of all steps, [H * R, ...]

        self.deter = memory(count, d, dtype=torch.float32)
        of_cell, results = self._products(matrices.cell, memory)
        self.to_cell = [(taking(m, first), out) for (m, out), (first, _) in zip(of_cell, cell_parts, strict=True)]
        self.cell = [result[:, :d] for result in results]
        self.both_gates = of_cell[0][1][:, : 2 * results[0].shape[1]]  # reset and update, where joined
        some = count if self.few_kernels else min(count, rows_in_cache(d))
        parts = [memory(some, d, dtype=torch.float32) for _ in range(4)]
        self.blocks = [
            (h, products, [part[: len(h)] for part in parts])
            for h, *products in zip(*(x.split(some) for x in (self.deter, *self.cell)), strict=True)
        ]  # of rows: their h, the cell's products, memory for these in float32

        self.prior_input = hidden_layer(count, matrices.prior)
        of_gaussian, results = self._products(matrices.gaussian, memory)
        self.to_gaussian = [(taking(matrix), out) for matrix, out in of_gaussian]
        self.gaussian = [result[:, :s] for result in results]

        first, *others, output = matrices.reward
        times = 1 if self.few_kernels else -(-horizon * count * first.shape[1] // REWARD_AT_ONCE)
        self.reward_rows = -(-horizon * count // times)
        self.to_reward = [taking(first, one), *(taking(matrix) for matrix in others)]
        self.reward_hidden = [hidden_layer(self.reward_rows, matrix) for matrix in self.to_reward]
        # A short product with one column takes half as long again as with 16.
        self.reward_output = F.pad(taking(output), (0, -output.shape[1] % 16 if self.short else 0))
        all_matrices = [self.to_input, self.to_prior, *self.to_reward]
        all_matrices += [matrix for matrix, _ in (*self.to_cell, *self.to_gaussian)]
        self.bits = self.short and self.activation is F.relu_ and _all_finite(all_matrices)

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
        self.h[0].copy_(deter)
        self._rows(self.s[0]).copy_(state.stoch[:, None].expand(self._rows(self.s[0]).shape))
        self._rows(self.a, 1).copy_(actions.permute(2, 0, 1, 3))  # [H, N, R, A]
        noises = noise.transpose(0, 1).flatten(1, 2).unbind()  # H times [N * R, S]
        for t, (s1a, x, inputs, h1) in enumerate(self.slices):
            activate(torch.mm(s1a, self.to_input, out=x))
            for given, (matrix, memory) in zip(inputs, self.to_cell, strict=True):
                torch.mm(given, matrix, out=memory)
            if self.few_kernels:
                self._next_deter(self.h[t], out=self.h[t + 1])
            else:
                self._update_deter()
                self.h[t + 1].copy_(deter)
            torch.mm(h1, self.to_prior, out=self.prior_input[:, : self.to_prior.shape[1]])
            activate(self.prior_input)
            if self.few_kernels:
                self._sample(noises[t], out=self.s[t + 1])
            else:
                self.s[t + 1].copy_(self._sample(noises[t]))
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
            if self.short:  # one by one: each thread finds its rows in its cache again
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
            torch.mm(y, matrix, out=hidden[:, : matrix.shape[1]])
            y = activate(hidden)
        return torch.mm(y, self.reward_output)[:, 0].float()

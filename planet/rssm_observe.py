"""The filtering recurrence of the RSSM over a whole chunk, with its gradient written out.

The numbers of `RSSM.posterior` step by step (`planet.rssm` has the equations). A step is made of tiny operations, so
what counts, on CPUs and GPUs alike, is how many there are. Everything that does not wait for the step before is done
for all steps at once: inputs before the loop, slopes of the nonlinear functions before the loop back, the gradients of
all weights after it, one product each. The gradient cannot be differentiated again.

Shapes: T time, B batch, X hidden, D deterministic, S stochastic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from planet import fused
from planet.fused import Options
from planet.networks import ACTIVATIONS_IN_PLACE
from planet.transition import float32


def observe(
    from_action: Float[Tensor, "time batch hidden"],
    from_embed: Float[Tensor, "time batch hidden"],
    noise: Float[Tensor, "time batch stoch"],
    deter: Float[Tensor, "batch deter"],
    stoch: Float[Tensor, "batch stoch"],
    w_stoch: Float[Tensor, "hidden stoch"],
    w_ih: Float[Tensor, "deter3 hidden"],
    b_ih: Float[Tensor, " deter3"],
    w_hh: Float[Tensor, "deter3 deter"],
    b_hh: Float[Tensor, " deter3"],
    w_deter: Float[Tensor, "hidden deter"],
    w_out: Float[Tensor, "stoch2 hidden"],
    b_out: Float[Tensor, " stoch2"],
    options: Options,
) -> tuple[
    Float[Tensor, "time batch deter"],
    Float[Tensor, "time batch stoch"],
    Float[Tensor, "time batch stoch"],
    Float[Tensor, "time batch stoch"],
]:
    """Return h, s and the posterior's mean and deviation at all steps, from the state (`deter`, `stoch`) before them.

    Args:
        from_action, from_embed: what actions and embeddings add to the dense layers before the GRU and the posterior,
            biases included.
        w_stoch, w_deter: what these two layers multiply s and h by.
        w_ih, b_ih, w_hh, b_hh: of the GRU, as `torch.nn.GRUCell` has them (reset, update, candidate).
        w_out, b_out: of the posterior's mean and raw deviation.
    """
    return _Observe.apply(
        from_action, from_embed, noise, deter, stoch, w_stoch, w_ih, b_ih, w_hh, b_hh, w_deter, w_out, b_out, options
    )  # pyright: ignore[reportReturnType]


@dataclass(frozen=True, slots=True)
class _Weights:
    w_stoch: Tensor
    cell: fused.Cell
    head: fused.Head


@dataclass(frozen=True, slots=True)
class _Made:
    """What forward makes at all steps, [T, B, ...] each. `x` (what the GRU takes in) and `p` (the posterior's dense
    layer) begin as what is known of them beforehand: on a GPU a sum in other memory would be one more kernel a step."""

    h: Tensor
    """[T + 1, B, D]: at t that before step t; so is s."""
    s: Tensor
    x: Tensor
    p: Tensor
    gates: Tensor
    """Reset and update, [T, B, 2 * D]."""
    new: Tensor
    """The GRU's candidate."""
    new_h: Tensor
    """What h gave to the candidate, before the reset gate."""
    output: Tensor
    """Mean and raw deviation, [T, B, 2 * S]."""
    std: Tensor


class _Observe(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        from_action: Tensor,
        from_embed: Tensor,
        noise: Tensor,
        deter: Tensor,
        stoch: Tensor,
        w_stoch: Tensor,
        w_ih: Tensor,
        b_ih: Tensor,
        w_hh: Tensor,
        b_hh: Tensor,
        w_deter: Tensor,
        w_out: Tensor,
        b_out: Tensor,
        options: Options,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (time, batch, hidden), d, s = from_action.shape, deter.shape[-1], stoch.shape[-1]

        def memory(width: int, steps: int = time) -> Tensor:
            return from_action.new_empty(steps, batch, width)

        x, p = (begin.clone(memory_format=torch.contiguous_format) for begin in (from_action, from_embed))
        made = _Made(
            memory(d, time + 1), memory(s, time + 1), x, p, gates=memory(2 * d), new=memory(d), new_h=memory(d),
            output=memory(2 * s), std=memory(s),
        )  # fmt: skip
        made.h[0], made.s[0] = deter, stoch
        weights = _Weights(w_stoch, fused.Cell(w_ih, w_hh, b_ih, b_hh), fused.Head(w_deter, w_out, b_out, options))
        single = from_action.dtype is torch.float32
        ctx.tiles = fused.tiles_for(from_action.device, (hidden, d, s), batch, gradient=True) if single else None
        if ctx.tiles is None:
            _forward(weights, noise, made)
        else:
            _forward_fused(weights, noise, made, ctx.tiles)
        ctx.save_for_backward(
            noise, made.h, made.s, made.x, made.p, made.gates, made.new, made.new_h, made.output,
            w_stoch, w_ih, b_ih, w_hh, b_hh, w_deter, w_out, b_out,
        )  # fmt: skip
        ctx.options = options
        return made.h[1:], made.s[1:], made.output[..., :s], made.std

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_h: Tensor, grad_s: Tensor, grad_mean: Tensor, grad_std: Tensor
    ) -> tuple[Tensor | None, ...]:
        noise, before_h, before_s, x, p, gates, n, hn, output, *parameters = ctx.saved_tensors
        w_stoch, w_ih, b_ih, w_hh, b_hh, w_deter, w_out, b_out = parameters
        options: Options = ctx.options
        d, s = n.shape[-1], noise.shape[-1]
        r, z, h = gates[..., :d], gates[..., d:], before_h[:-1]

        # A change dh of h_t changes what the GRU's matrices made, (x to new, reset, update, h to new), and h_{t-1}
        # itself in proportion: five slopes beside each other, [T, B, 5, D]. The matrix of x made the first three of the
        # five, that of h the second to fourth.
        to_new = (1 - z) * (1 - n.square())
        slopes = torch.stack([to_new, to_new * hn * r * (1 - r), (h - n) * z * (1 - z), to_new * r, z], dim=2)
        # s = mean + deviation * noise, and deviation = softplus(output) + min_std.
        slope_std = torch.zeros_like(noise) if options.fixed_std else torch.sigmoid(output[..., s:])
        slope_s = torch.stack(
            [torch.ones_like(noise), torch.zeros_like(noise) if options.mean_only else slope_std * noise], dim=2
        )  # [T, B, 2, S]
        slope_x, slope_p = (_slope(y, options.activation) for y in (x, p))

        # What is known of the gradients before the loop; the loop adds what comes back from later steps.
        g_output = torch.stack([grad_mean, grad_std * slope_std], dim=2).add_(grad_s[:, :, None] * slope_s)
        # On a GPU several programs read what is known, so that what they write lies elsewhere.
        g = _Gradients(
            g_output if ctx.tiles is None else torch.empty_like(g_output), torch.empty_like(p),
            torch.empty_like(slopes), torch.empty_like(x),
        )  # fmt: skip
        w_x = torch.cat([w_ih[2 * d :], w_ih[: 2 * d]])  # in the order of the slopes
        weights = _Weights(w_stoch, fused.Cell(w_x, w_hh, b_ih, b_hh), fused.Head(w_deter, w_out, b_out, options))
        columns = g.cell.flatten(2)
        from_x, from_h = columns[..., : 3 * d], columns[..., d : 4 * d]
        with float32(noise.device):  # as forward, wherever the caller goes back
            known = grad_h, slope_s, slope_p, slopes, slope_x
            first = (
                _backward(weights, *known, g)
                if ctx.tiles is None
                else _backward_fused(weights, *known, g_output, g, ctx.tiles)
            )
            g_w_x, g_b = _product(from_x, x), columns.sum(dim=(0, 1))
            return (
                g.x, g.p, None, *first,
                _product(g.x, before_s[:-1]),
                torch.cat([g_w_x[d:], g_w_x[:d]]), torch.cat([g_b[d : 3 * d], g_b[:d]]),
                _product(from_h, h), g_b[d : 4 * d],
                _product(g.p, before_h[1:]),
                _product(g.output.flatten(2), p), g.output.sum(dim=(0, 1)).flatten(),
                None,
            )  # fmt: skip


def _forward(w: _Weights, noise: Tensor, made: _Made) -> None:
    """Fill `made` step by step."""
    options, d, s = w.head.options, made.new.shape[-1], noise.shape[-1]
    activate = ACTIVATIONS_IN_PLACE[options.activation]
    x_gates, x_new = (part.T for part in w.cell.w_ih.split([2 * d, d]))
    h_gates, h_new = (part.T for part in w.cell.w_hh.split([2 * d, d]))
    (b_gates, b_new), (c_gates, c_new) = w.cell.b_ih.split([2 * d, d]), w.cell.b_hh.split([2 * d, d])
    b_gates = b_gates + c_gates
    stoch_x, deter_p, p_output = w.w_stoch.T, w.head.w_deter.T, w.head.w_out.T
    each = zip(
        *(memory.unbind() for memory in (
            noise, made.h[:-1], made.s[:-1], made.h[1:], made.s[1:], made.x, made.p, made.gates, made.gates[..., :d],
            made.gates[..., d:], made.new, made.new_h, made.output, made.output[..., :s], made.output[..., s:],
            made.std,
        )), strict=True,
    )  # fmt: skip
    for eps, h, s0, h1, s1, x, p, rz, r, z, n, hn, out, mean, raw, dev in each:
        activate(x.addmm_(s0, stoch_x))
        torch.addmm(b_gates, x, x_gates, out=rz).addmm_(h, h_gates)
        torch.addmm(c_new, h, h_new, out=hn)
        torch.addmm(b_new, x, x_new, out=n)
        rz.sigmoid_()
        torch.lerp(n.addcmul_(r, hn).tanh_(), h, z, out=h1)
        activate(p.addmm_(h1, deter_p))
        torch.addmm(w.head.b_out, p, p_output, out=out)
        if options.fixed_std:
            dev.fill_(options.fixed_std)
        else:
            torch.add(F.softplus(raw), options.min_std, out=dev)
        if options.mean_only:
            s1.copy_(mean)
        else:
            torch.addcmul(mean, dev, eps, out=s1)


def _forward_fused(w: _Weights, noise: Tensor, made: _Made, tiles: fused.Tiles) -> None:
    x = made.x
    ACTIVATIONS_IN_PLACE[w.head.options.activation](x[0].addmm_(made.s[0], w.w_stoch.T))
    for t, h in enumerate(made.h[:-1]):
        saved = made.gates[t], made.new[t], made.new_h[t]
        fused.next_deter(x[t], h, w.cell, out=made.h[t + 1], tiles=tiles, save=saved)
        fused.next_stoch(
            made.h[t + 1], made.p[t], w.head, noise[t, :, None], out=made.s[t + 1], tiles=tiles,
            following=fused.Following(x[t + 1], w.w_stoch, x[t + 1]) if t + 1 < len(x) else None,
            save=(made.p[t], made.output[t], made.std[t]),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Gradients:
    """Of what forward made, [T, B, ...]."""

    output: Tensor
    """[T, B, 2, S]; for torch's operations it begins as what is known of it before the loop back."""
    p: Tensor
    cell: Tensor
    """[T, B, 5, D]"""
    x: Tensor


def _backward(
    w: _Weights, grad_h: Tensor, slope_s: Tensor, slope_p: Tensor, slopes: Tensor, slope_x: Tensor, g: _Gradients
) -> tuple[Tensor, Tensor]:
    """Fill `g` from the last step to the first; return the gradients of h and s before that."""
    d = grad_h.shape[-1]
    columns = g.cell.flatten(2)
    each = zip(
        *(reversed(memory.unbind()) for memory in (
            g.output.flatten(2), g.output, slope_s, g.p, slope_p, grad_h, g.cell, slopes, columns[..., : 3 * d],
            columns[..., d : 4 * d], g.cell[:, :, 4], g.x, slope_x,
        )), strict=True,
    )  # fmt: skip
    later: tuple[Tensor, Tensor] | None = None  # what step t + 1 asks of h_t and s_t
    for gout, pair, to_s, gp, to_p, dh, cell, slope, fx, fh, kept, gx, to_x in each:
        if later is None:
            dh = dh.clone()
        else:
            dh = dh + later[0]
            pair.addcmul_(later[1][:, None], to_s)
        dh.addmm_(torch.mm(gout, w.head.w_out, out=gp).mul_(to_p), w.head.w_deter)
        torch.mul(dh[:, None], slope, out=cell)
        torch.mm(fx, w.cell.w_ih, out=gx).mul_(to_x)
        later = torch.addmm(kept, fh, w.cell.w_hh), torch.mm(gx, w.w_stoch)
    assert later is not None
    return later


def _backward_fused(
    w: _Weights, grad_h: Tensor, slope_s: Tensor, slope_p: Tensor, slopes: Tensor, slope_x: Tensor,
    g_output: Tensor, g: _Gradients, tiles: fused.Tiles,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grad_h, later, before = grad_h.contiguous(), None, torch.empty_like(grad_h[0])
    for t in reversed(range(len(grad_h))):
        fused.gradient_to_deter(
            later, w.w_stoch, grad_h[t], g_output[t], slope_s[t], w.head, slope_p[t], slopes[t], g_pair=g.output[t],
            g_p=g.p[t], g_cell=g.cell[t], tiles=tiles,
        )  # fmt: skip
        fused.gradient_of_cell(g.cell[t], w.cell.w_ih, w.cell.w_hh, slope_x[t], g_x=g.x[t], g_h=before, tiles=tiles)
        later = g.x[t], before
    return before, torch.mm(g.x[0], w.w_stoch)


def _product(gradient: Tensor, inputs: Tensor) -> Tensor:
    """The gradient of a matrix: [T, B, O] and [T, B, I] to [O, I]."""
    return gradient.flatten(0, 1).T @ inputs.flatten(0, 1)


def _slope(y: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The derivative of relu or elu where it gave y."""
    return (y > 0).to(y.dtype) if activation is F.relu else torch.where(y > 0, 1, y + 1)

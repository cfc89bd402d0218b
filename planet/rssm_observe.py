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
from planet.transition import float32


@dataclass(frozen=True, slots=True)
class Options:
    """What of an RSSM is no tensor."""

    activation: Callable[[Tensor], Tensor]
    """F.relu or F.elu."""
    min_std: float
    fixed_std: float
    mean_only: bool


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
        time, d, s = len(from_action), deter.shape[-1], stoch.shape[-1]

        def memory(width: int, steps: int = time) -> Tensor:
            return from_action.new_empty(steps, from_action.shape[1], width)

        before_h, before_s = memory(d, time + 1), memory(s, time + 1)  # at t the state before step t
        # These begin as what products are added to: on a GPU a sum in other memory would be one more kernel a step.
        x, p = (begin.clone(memory_format=torch.contiguous_format) for begin in (from_action, from_embed))
        gates, n, hn = memory(2 * d), memory(d), memory(d)
        output, std = memory(2 * s), memory(s)
        before_h[0], before_s[0] = deter, stoch
        activate = F.relu_ if options.activation is F.relu else F.elu_
        x_gates, x_new = (part.T for part in w_ih.split([2 * d, d]))
        h_gates, h_new = (part.T for part in w_hh.split([2 * d, d]))
        (b_gates, b_new), (c_gates, c_new) = b_ih.split([2 * d, d]), b_hh.split([2 * d, d])
        b_gates = b_gates + c_gates
        stoch_x, deter_p, p_output = w_stoch.T, w_deter.T, w_out.T
        each = zip(
            *(memory.unbind() for memory in (
                noise, before_h[:-1], before_s[:-1], before_h[1:], before_s[1:],
                x, p, gates, gates[..., :d], gates[..., d:], n, hn, output, output[..., :s], output[..., s:], std,
            )), strict=True,
        )  # fmt: skip
        few_kernels = from_action.dtype is torch.float32 and fused.usable(from_action.device)
        for eps, h, s0, h1, s1, x_, p_, rz, r, z, n_, hn_, out, mean, raw, dev in each:
            activate(x_.addmm_(s0, stoch_x))
            torch.addmm(b_gates, x_, x_gates, out=rz).addmm_(h, h_gates)
            torch.addmm(c_new, h, h_new, out=hn_)
            torch.addmm(b_new, x_, x_new, out=n_)
            if few_kernels:
                fused.cell(r, z, n_, hn_, h, out=h1, save=True)
            else:
                rz.sigmoid_()
                torch.lerp(n_.addcmul_(r, hn_).tanh_(), h, z, out=h1)
            activate(p_.addmm_(h1, deter_p))
            torch.addmm(b_out, p_, p_output, out=out)
            if few_kernels and not options.fixed_std and not options.mean_only:
                fused.sample(mean, raw, eps, out=s1, min_std=options.min_std, std=dev)
                continue
            if options.fixed_std:
                dev.fill_(options.fixed_std)
            else:
                torch.add(F.softplus(raw), options.min_std, out=dev)
            if options.mean_only:
                s1.copy_(mean)
            else:
                torch.addcmul(mean, dev, eps, out=s1)
        ctx.save_for_backward(
            noise, before_h, before_s, x, p, gates, n, hn, output, w_stoch, w_ih, w_hh, w_deter, w_out
        )
        ctx.options = options
        return before_h[1:], before_s[1:], output[..., :s], std

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_h: Tensor, grad_s: Tensor, grad_mean: Tensor, grad_std: Tensor
    ) -> tuple[Tensor | None, ...]:
        noise, before_h, before_s, x, p, gates, n, hn, output, w_stoch, w_ih, w_hh, w_deter, w_out = ctx.saved_tensors
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
        g_output = torch.stack([grad_mean, grad_std * slope_std], dim=2) + grad_s[:, :, None] * slope_s
        g_x, g_p, g_cell = torch.empty_like(x), torch.empty_like(p), torch.empty_like(slopes)
        columns = g_cell.flatten(2)
        from_x, from_h = columns[..., : 3 * d], columns[..., d : 4 * d]
        w_x = torch.cat([w_ih[2 * d :], w_ih[: 2 * d]])  # in the order of from_x
        each = zip(
            *(reversed(memory.unbind()) for memory in (
                g_output.flatten(2), g_output, slope_s, g_p, slope_p, grad_h, g_cell, slopes, from_x, from_h,
                g_cell[:, :, 4], g_x, slope_x,
            )), strict=True,
        )  # fmt: skip
        later: tuple[Tensor, Tensor] | None = None  # what step t + 1 asks of h_t and s_t
        with float32(noise.device):  # as forward, wherever the caller goes back
            for gout, pair, to_s, gp, to_p, dh, cell, slope, fx, fh, kept, gx, to_x in each:
                if later is None:
                    dh = dh.clone()
                else:
                    dh = dh + later[0]
                    pair.addcmul_(later[1][:, None], to_s)
                dh.addmm_(torch.mm(gout, w_out, out=gp).mul_(to_p), w_deter)
                torch.mul(dh[:, None], slope, out=cell)
                torch.mm(fx, w_x, out=gx).mul_(to_x)
                later = torch.addmm(kept, fh, w_hh), torch.mm(gx, w_stoch)
            assert later is not None
            g_w_x, g_b = _product(from_x, x), columns.sum(dim=(0, 1))
            return (
                g_x, g_p, None, *later,
                _product(g_x, before_s[:-1]),
                torch.cat([g_w_x[d:], g_w_x[:d]]), torch.cat([g_b[d : 3 * d], g_b[:d]]),
                _product(from_h, h), g_b[d : 4 * d],
                _product(g_p, before_h[1:]),
                _product(g_output.flatten(2), p), g_output.sum(dim=(0, 1)).flatten(),
                None,
            )  # fmt: skip


def _product(gradient: Tensor, inputs: Tensor) -> Tensor:
    """The gradient of a matrix: [T, B, O] and [T, B, I] to [O, I]."""
    return gradient.flatten(0, 1).T @ inputs.flatten(0, 1)


def _slope(y: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The derivative of relu or elu where it gave y."""
    return (y > 0).to(y.dtype) if activation is F.relu else torch.where(y > 0, 1, y + 1)

"""The few convolutions of the model, written the way processors run them fast; the numbers are torch's own.

Measured in bfloat16 on a CPU with AVX-512 BF16: a bias given to a convolution doubles the time of its weight gradient
and, in one layer, quadruples the forward pass, so biases are added outside; a transposed convolution to three channels
takes three times as long as the same sums written as a convolution with a pixel shuffle; the weight gradient of a
convolution with few output pixels takes three times as long as one matrix product. `benchmarks/speed` has the sums.
Pictures are expected with channels last in memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def convolve(
    x: Float[Tensor, "n inputs h w"], weight: Float[Tensor, "outputs inputs k k"], bias: Float[Tensor, " outputs"]
) -> Float[Tensor, "n outputs h2 w2"]:
    """Return the convolution of stride 2 without padding."""
    if x.shape[-1] <= 6:
        return _SmallConvolution.apply(x, weight).add_(bias[:, None, None])
    return F.conv2d(x, weight, stride=2).add_(bias[:, None, None])


def transposed(
    x: Float[Tensor, "n inputs h w"], weight: Float[Tensor, "inputs outputs k k"], bias: Float[Tensor, " outputs"]
) -> Float[Tensor, "n outputs h2 w2"]:
    """Return the transposed convolution of stride 2 without padding."""
    if weight.shape[1] <= 4 and weight.shape[-1] % 2 == 0:
        return _ShuffledTransposed.apply(x, weight, bias).permute(0, 3, 1, 2)
    return F.conv_transpose2d(x, weight, stride=2).add_(bias[:, None, None])


class _SmallConvolution(torch.autograd.Function):
    """F.conv2d of stride 2 whose weight gradient is one matrix product over all patches."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, stride=2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        outputs, inputs, k, _ = weight.shape
        flat = grad.permute(0, 2, 3, 1).reshape(-1, outputs)  # [N * h2 * w2, outputs]
        patches = x.permute(0, 2, 3, 1).unfold(1, k, 2).unfold(2, k, 2)  # [N, h2, w2, inputs, k, k]
        patches = patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, k * k * inputs)
        grad_weight = (flat.T @ patches).view(outputs, k, k, inputs).permute(0, 3, 1, 2)
        grad_x, _, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [2, 2], [0, 0], [1, 1], False, [0, 0], 1, [True, False, False]
        )
        return grad_x, grad_weight


class _ShuffledTransposed(torch.autograd.Function):
    """F.conv_transpose2d of stride 2 with an even kernel, forward as a convolution and a pixel shuffle. Its output has
    the channels as last axis, [N, h2, w2, outputs].

    Output pixel 2i + p gets sum_m x[i - m] w[2m + p]: for each phase p a convolution with every second tap, flipped.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        inputs, outputs, k, _ = weight.shape
        taps = k // 2
        phases = weight.view(inputs, outputs, taps, 2, taps, 2).flip(2, 4).permute(3, 5, 1, 0, 2, 4)
        phases = phases.reshape(4 * outputs, inputs, taps, taps)
        y = F.conv2d(x, phases.contiguous(memory_format=torch.channels_last), bias.repeat(4), padding=taps - 1)
        n, _, h, w = y.shape
        y = y.permute(0, 2, 3, 1).reshape(n, h, w, 2, 2, outputs).transpose(2, 3)  # [N, h, p, w, q, outputs]
        return y.reshape(n, 2 * h, 2 * w, outputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        grad = grad.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1, [True, True, False]
        )
        return grad_x, grad_weight, grad.sum(dim=(0, 2, 3))

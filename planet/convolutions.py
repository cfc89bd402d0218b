"""The few convolutions of the model, written the way CPUs run them fast; the numbers are torch's own.

With channels last in memory a picture of C channels is, without a copy, one of half the width and 2C channels: two
neighbours in a row are one pixel. A convolution of stride 2 with an even kernel k then has stride (2, 1) and kernel
(k, k / 2), and a transposed convolution is the adjoint of that. Where there are few channels, this is what the kernels
of CPUs like: forward and weight gradient of the first layer take 1.7 and 1.4 ms of one core for 128 pictures in
float32, 0.7 and 1.0 in bfloat16. The weight gradient of a convolution with few output pixels takes three times as long
as one matrix product, and twice as long in bfloat16 where autograd asks for that of a bias too. Pictures are expected
with channels last in memory. On GPUs `planet.fused_pictures` does this, elsewhere torch.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from planet import fused_pictures

BACKWARD = torch.ops.aten.convolution_backward


def convolve(
    x: Float[Tensor, "n inputs h w"], weight: Float[Tensor, "outputs inputs k k"], bias: Float[Tensor, " outputs"]
) -> Float[Tensor, "n outputs h2 w2"]:
    """Return ReLU of the convolution of stride 2 without padding, in the weight's type.

    A GPU's kernels take the float32 pictures of the first layer as they are; they give no gradient to them.
    """
    short = functools.partial(x.to, weight.dtype, memory_format=torch.channels_last)
    if fused_pictures.usable(x.device):
        if fused_pictures.takes_first(x, weight):
            return fused_pictures.relu_of_first_convolution(x, weight, bias)
        return fused_pictures.relu_of_convolution(short(), weight, bias)
    x = short()
    if x.device.type != "cpu":
        return F.relu_(F.conv2d(x, weight, bias, stride=2))
    if x.shape[1] <= 4 and x.shape[-1] % 2 == 0 and weight.shape[-1] % 2 == 0:
        return F.relu_(_Convolution.apply(_paired(x), _paired(weight), bias, (2, 1)))
    return F.relu_(_Convolution.apply(x, weight, bias, (2, 2)))


def transposed(
    x: Float[Tensor, "n inputs h w"],
    weight: Float[Tensor, "inputs outputs k k"],
    bias: Float[Tensor, " outputs"],
    *,
    relu: bool,
) -> Float[Tensor, "n outputs h2 w2"]:
    """Return the transposed convolution of stride 2 without padding, with ReLU where asked for."""
    if fused_pictures.usable(x.device):
        return fused_pictures.transposed(x, weight, bias, relu=relu)
    if x.device.type != "cpu":
        y = F.conv_transpose2d(x, weight, bias, stride=2)
    elif weight.shape[-1] % 2 == 0:
        y = _PairedTransposed.apply(x, _paired(weight), bias)
    else:
        y = _OddTransposed.apply(x, weight, bias)
    return F.relu_(y) if relu else y


def _first(x: Tensor) -> Tensor:
    """[N, h, w, C] seen as [N, C, h, w]."""
    return x.permute(0, 3, 1, 2)


def _last(x: Tensor) -> Tensor:
    """[N, C, h, w] seen as [N, h, w, C]."""
    return x.permute(0, 2, 3, 1)


def _empty(like: Tensor, size: tuple[int, ...]) -> Tensor:
    """Memory for [N, C, h, w] with channels last."""
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _paired(x: Tensor) -> Tensor:
    """[N, C, h, 2w] to [N, 2C, h, w], channels last: a view where they are last already."""
    n, c, h, w = x.shape
    return _first(_last(x).reshape(n, h, w // 2, 2 * c))


class _Convolution(torch.autograd.Function):
    """F.conv2d without padding, whose gradients are asked for one by one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, bias, stride=stride)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        few_pixels = grad.shape[-1] <= (2 if grad.dtype is torch.float32 else 6)
        needs = [ctx.needs_input_grad[0], not few_pixels, False]
        grad_x, grad_weight, _ = BACKWARD(
            grad, x, weight, None, ctx.stride, [0, 0], [1, 1], False, [0, 0], 1, needs
        )  # fmt: skip
        if few_pixels:
            grad_weight = _weight_gradient(grad, x, weight.shape, ctx.stride)
        return grad_x, grad_weight, grad.sum(dim=(0, 2, 3)), None


def _weight_gradient(grad: Tensor, x: Tensor, shape: torch.Size, stride: tuple[int, int]) -> Tensor:
    """The weight gradient of a convolution as one matrix product over all patches."""
    outputs, inputs, rows, columns = shape
    flat = _last(grad).reshape(-1, outputs)  # [N * h2 * w2, outputs]
    return _first((flat.T @ _patches(x, (rows, columns), stride)).view(outputs, rows, columns, inputs))


def _patches(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """What a convolution's kernel sees at each place of x [N, C, h, w]: [N * h2 * w2, rows * columns * C]."""
    patches = _last(x).unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])  # [N, h2, w2, C, rows, columns]
    return patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, kernel[0] * kernel[1] * x.shape[1])


class _PairedTransposed(torch.autograd.Function):
    """F.conv_transpose2d of stride 2 with an even kernel, which is given in pairs: [inputs, 2 * outputs, k, k / 2].

    Its gradient goes back through a convolution; the weight gradient of that convolution, the two pictures in each
    other's place, is ours. Forward, output pixel 2i + p gets sum_m x[i - m] w[2m + p], so the even and the odd rows are
    the channels of one convolution of stride 1. The output is no view: changed in place (ReLU), a view would cost
    autograd two copies.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _PairedTransposed.product(x, weight, bias)

    @staticmethod
    def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        inputs, pair, k, taps = weight.shape
        rows = weight.reshape(inputs, pair, taps, 2, taps).flip(2, 4).permute(3, 1, 0, 2, 4)
        rows = rows.reshape(2 * pair, inputs, taps, taps).contiguous(memory_format=torch.channels_last)
        y = _last(F.conv2d(x, rows, bias.repeat(4), padding=k // 2 - 1))  # [N, h, w, (row, column, outputs)]
        n, h, w, _ = y.shape
        wide = {2: torch.float32, 4: torch.float64}.get(y.element_size(), y.dtype)  # two numbers are copied at a time
        out = _empty(y, (n, pair // 2, 2 * h, 2 * w))
        rows = _last(out).view(n, h, 2, w, pair)
        rows.view(wide).copy_(y.reshape(n, h, w, 2, pair).view(wide).transpose(2, 3))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        pairs = _paired(grad)
        _, grad_weight, _ = BACKWARD(
            x, pairs, weight, None, [2, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
        )  # fmt: skip
        return F.conv2d(pairs, weight, stride=(2, 1)), grad_weight, grad.sum(dim=(0, 2, 3))


class _OddTransposed(torch.autograd.Function):
    """F.conv_transpose2d of stride 2 with an odd kernel.

    A short type goes forward with an even kernel, the last row and column zero, and drops what these make. The
    gradients are two matrix products with the patches of the output's gradient, which for the decoder's 5 x 5 pixels
    take half the time of convolutions.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        if x.dtype is torch.float32:
            return F.conv_transpose2d(x, weight, bias, stride=2)
        out = _PairedTransposed.product(x, _paired(F.pad(weight, (0, 1, 0, 1))), bias)
        n, outputs, height, width = out.shape
        return _empty(out, (n, outputs, height - 1, width - 1)).copy_(out[..., :-1, :-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        n, inputs, h, w = x.shape
        outputs, k = weight.shape[1:3]
        patches = _patches(grad, (k, k), (2, 2))  # [N * h * w, k * k * outputs]
        flat = _last(x).reshape(-1, inputs)
        grad_x = (patches @ weight.permute(2, 3, 1, 0).reshape(-1, inputs)).view(n, h, w, inputs)
        grad_weight = (flat.T @ patches).view(inputs, k, k, outputs)
        return _first(grad_x), _first(grad_weight), grad.sum(dim=(0, 2, 3))

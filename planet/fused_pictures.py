"""On a GPU, all that happens to pictures besides the wide convolutions, in as few passes over memory as it takes.

At the paper's size the pictures of an update and their activations are hundreds of megabytes: biases, ReLU and their
gradients took an H200 1.8 ms of an update, copies that cuDNN makes of them more (results/speed/README.md). Here each
layer is one product of cuDNN and one pass of a Triton kernel (`planet.triton_pictures`):

- A transposed convolution of stride 2 is a convolution of stride 1 that makes all four pixels of a 2 x 2 block at once;
  the pass that puts the pixels in their places adds the bias. Backwards the same pass takes them apart. For the three
  channels of the last layer cuDNN's own took several times as long.
- The first convolution, of three channels, is a kernel of ours.

Where Triton does not work, callers go on with torch's operations. Pictures have their channels last in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from planet import fused

PROGRAMS = 1024
"""Of a sum over pixels: enough for every processor of a GPU to have several at a time."""
NUMBERS = 1024
"""That a program takes at a time."""
MOST = 2**31 - 2**16
"""Numbers that 32 bits count."""


def usable(device: torch.device) -> bool:
    """Return whether the kernels run on this device. Tried once, not within a recording."""
    if not fused.may_run(device):
        return False
    with torch.cuda.device(device):  # Triton takes the current one
        return _works(device, fused._precision())


@functools.cache
def _works(device: torch.device, precision: str) -> bool:
    """precision: of float32 products, which the kernels take from torch; it makes other kernels of them."""
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            _try(device)
    except Exception as error:
        fused.give_up("fused kernels for pictures", device, "updates take longer", error)
        return False
    return True


def _try(device: torch.device, types: Sequence[torch.dtype] = (torch.float32, torch.bfloat16)) -> None:
    """Raise an error unless the kernels agree with torch on a few pictures, gradients included.

    types: of weights and activations; each makes other kernels.
    """
    draw = fused._numbers(device)

    def numbers(*shape: int, scale: float = 1.0) -> Tensor:
        x = draw(*shape, scale=scale)
        return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x

    def compare(ours: Any, torchs: Any, *given: Tensor) -> None:
        found, expected = [], []
        for function, results in ((ours, found), (torchs, expected)):
            leaves = [x.clone().requires_grad_(i > 0 or function is not first) for i, x in enumerate(given)]
            y = function(*leaves)
            wanted = [x for i, x in enumerate(leaves) if i > 0 or given[0].shape[1] != 3]
            # Not 0 in the mean, or what one pixel on ReLU's other side adds would be percents of a bias' gradient.
            up = _last(1 + fused._numbers(device)(*y.shape)).to(y.dtype)
            results += [x.float() for x in (y.detach(), *torch.autograd.grad(y, wanted, up))]
        most = 0.05 if given[1].dtype is torch.float32 else 0.1
        for a, b in zip(found, expected, strict=True):  # as a whole: a few that are near 0 lie on ReLU's other side
            if not (apart := float((a - b).norm() / b.norm())) < most:
                raise ValueError(f"{getattr(ours, '__name__', ours)} is off by {apart:.2g} in {given[1].dtype}")

    first = relu_of_first_convolution  # of pictures that stay float32
    for dtype in types:
        compare(
            first, lambda x, w, b: F.relu(F.conv2d(x.to(w.dtype), w, b, stride=2)),
            numbers(2, 3, 64, 64), numbers(32, 3, 4, 4, scale=0.2).to(dtype), numbers(32).to(dtype),
        )  # fmt: skip
        compare(
            relu_of_convolution, lambda x, w, b: F.relu(F.conv2d(x, w, b, stride=2)),
            numbers(2, 32, 31, 31).to(dtype), numbers(64, 32, 4, 4, scale=0.05).to(dtype), numbers(64).to(dtype),
        )  # fmt: skip
        compare(
            functools.partial(transposed, relu=True), lambda x, w, b: F.relu(F.conv_transpose2d(x, w, b, stride=2)),
            numbers(2, 32, 9, 9).to(dtype), numbers(32, 3, 6, 6, scale=0.05).to(dtype), numbers(3).to(dtype),
        )  # fmt: skip
    obs = torch.arange(2 * 64 * 64 * 3, device=device).to(torch.uint8).view(2, 64, 64, 3).movedim(-1, 1)
    scales = [x.item() for x in torch.tensor([2.0**-5, 2.0**-14 - 0.5, 2.0**-13])]
    ours = dequantise(obs, obs, shift=3, scale=scales[0], offset=scales[1], noise_scale=scales[2])
    torch.testing.assert_close(ours, (obs >> 3) * scales[0] + scales[1] + obs * scales[2], rtol=0, atol=0)
    distance, difference = half_squared_distance(ours, ours * 0.5)
    torch.testing.assert_close(distance, 0.125 * ours.square().sum(dim=(1, 2, 3)), rtol=1e-4, atol=0)
    torch.testing.assert_close(scaled(difference, distance), 0.5 * ours * distance[:, None, None, None])


def _last(x: Tensor) -> Tensor:
    """Channels last in memory, which is how cuDNN answers where it was asked so."""
    return x.contiguous(memory_format=torch.channels_last)


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def same_order(*pictures: Tensor) -> bool:
    """Return whether these [N, C, H, W] lie in memory channels last and without gaps, and can be counted."""
    return all(_channels_last(x) and x.numel() < MOST for x in pictures)


def _cells(count: int, of_each: int) -> int:
    return -(-count // of_each)


def dequantise(
    obs: UInt8[Tensor, "n c h w"],
    noise: UInt8[Tensor, "n c h w"],
    *,
    shift: int,
    scale: float,
    offset: float,
    noise_scale: float,
) -> Float[Tensor, "n c h w"]:
    """Return (obs >> shift) * scale + offset + noise * noise_scale."""
    from planet import triton_pictures

    out = torch.empty_like(obs, dtype=torch.float32)
    kernel: Any = triton_pictures.dequantise
    block = 4 * NUMBERS
    kernel[(_cells(obs.numel(), block),)](
        obs, noise, out, obs.numel(), scale, offset, noise_scale, SHIFT=shift, BLOCK=block
    )
    return out


def half_squared_distance(
    prediction: Float[Tensor, "n c h w"], target: Float[Tensor, "n c h w"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n c h w"]]:
    """Return 0.5 * |prediction - target|^2 of each picture, and what they differ by, in the prediction's type."""
    from planet import triton_pictures

    difference = torch.empty_like(prediction)
    distance = torch.empty(len(prediction), device=prediction.device)
    kernel: Any = triton_pictures.half_squared_distance
    kernel[(len(prediction),)](
        prediction, target, difference, distance, PIXELS=prediction[0].numel(), BLOCK=4 * NUMBERS, num_warps=8
    )
    return distance, difference


def scaled(pictures: Float[Tensor, "n c h w"], scales: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Return each picture times its scale."""
    from planet import triton_pictures

    out, pixels, block = torch.empty_like(pictures), pictures[0].numel(), 4 * NUMBERS
    kernel: Any = triton_pictures.scaled
    kernel[(len(pictures), _cells(pixels, block))](pictures, scales.contiguous(), out, PIXELS=pixels, BLOCK=block)
    return out


def relu_of_first_convolution(
    image: Float[Tensor, "n inputs size size"], weight: Float[Tensor, "outputs inputs 4 4"],
    bias: Float[Tensor, " outputs"],
) -> Float[Tensor, "n outputs out out"]:  # fmt: skip
    """Return ReLU of the convolution of stride 2, in the weight's type; there is no gradient to the picture."""
    return _FirstConvolution.apply(image, weight, bias)


def takes_first(image: Tensor, weight: Tensor) -> bool:
    """Return whether `relu_of_first_convolution` can."""
    outputs, inputs, *kernel = weight.shape
    return (
        inputs <= 4 and kernel == [4, 4] and outputs in (16, 32, 64) and image.dtype is torch.float32
        and not image.requires_grad and _channels_last(image) and len(image) * 32 * 32 * outputs < MOST
    )  # fmt: skip


def relu_of_convolution(
    x: Float[Tensor, "n inputs h w"], weight: Float[Tensor, "outputs inputs k k"], bias: Float[Tensor, " outputs"]
) -> Float[Tensor, "n outputs h2 w2"]:
    """Return ReLU of the convolution of stride 2."""
    return _Biased.apply(_last(_Convolution.apply(x, weight)), bias, True)


def transposed(
    x: Float[Tensor, "n inputs h w"],
    weight: Float[Tensor, "inputs outputs k k"],
    bias: Float[Tensor, " outputs"],
    *,
    relu: bool,
) -> Float[Tensor, "n outputs h2 w2"]:
    """Return the transposed convolution of stride 2, with ReLU where asked for."""
    k = weight.shape[-1]
    if k % 2:
        return _Biased.apply(_last(F.conv_transpose2d(x, weight, stride=2)), bias, relu)
    return _Pixels.apply(_last(F.conv2d(x, _for_blocks(weight), padding=k // 2 - 1)), bias, relu)


def biased_relu(x: Float[Tensor, "rows channels"], bias: Float[Tensor, " channels"]) -> Float[Tensor, "rows channels"]:
    """Return ReLU of x + bias, in the memory of x."""
    return _Biased.apply(x, bias, True)


def _for_blocks(weight: Float[Tensor, "inputs outputs k k"]) -> Float[Tensor, "blocks inputs half half"]:
    """The kernel that makes 2 x 2 pixels of a transposed convolution at once: output pixel 2i + p gets
    sum_m x[i - m] w[2m + p]. Outputs are (row, column, output), filled up to what cuDNN needs no copies for."""
    inputs, outputs, k, _ = weight.shape
    blocks = weight.reshape(inputs, outputs, k // 2, 2, k // 2, 2).flip(2, 4).permute(3, 5, 1, 0, 2, 4)
    blocks = blocks.reshape(4 * outputs, inputs, k // 2, k // 2)
    blocks = F.pad(blocks, (0, 0, 0, 0, 0, 0, 0, -4 * outputs % 8))
    return blocks.contiguous(memory_format=torch.channels_last)


def _rows_at_a_time(channels: int) -> tuple[int, int]:
    """Rows and columns of numbers that a program takes."""
    whole = max(16, 1 << (channels - 1).bit_length())
    return max(1, 4 * NUMBERS // whole), whole


def _share(rows: int, at_a_time: int) -> tuple[int, int]:
    """How many programs, and rows of each."""
    each = _cells(_cells(rows, PROGRAMS), at_a_time) * at_a_time
    return _cells(rows, each), each


class _Biased(torch.autograd.Function):
    """x + bias over the channels, with ReLU where asked for, in the memory of x [N, C, H, W] or [rows, C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, relu: bool) -> Tensor:
        from planet import triton_pictures

        kernel: Any = triton_pictures.add_bias
        kernel[(_cells(x.numel(), NUMBERS),)](x, bias, x.numel(), CHANNELS=len(bias), RELU=relu, BLOCK=NUMBERS)
        ctx.mark_dirty(x)
        ctx.relu, ctx.bias_type = relu, bias.dtype
        ctx.save_for_backward(*([x] if relu else []))
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        from planet import triton_pictures

        grad = _last(grad) if grad.dim() == 4 else grad.contiguous()
        (out,) = ctx.saved_tensors if ctx.relu else (grad,)
        result, channels = torch.empty_like(grad) if ctx.relu else grad, grad.shape[1]
        (at_a_time, whole), rows = _rows_at_a_time(channels), grad.numel() // channels
        programs, each = _share(rows, at_a_time)
        sums = torch.empty(programs, channels, device=grad.device)
        kernel: Any = triton_pictures.gradient_to_bias
        kernel[(programs,)](
            grad, out, result, sums, rows, each, CHANNELS=channels, RELU=ctx.relu, ROWS=at_a_time, WHOLE=whole
        )
        return result, sums.sum(dim=0).to(ctx.bias_type), None


class _Pixels(torch.autograd.Function):
    """Blocks [N, 4 * C and more, h, w] to pixels [N, C, 2h, 2w] with their bias."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, bias: Tensor, relu: bool) -> Tensor:
        _, _, h, w = blocks.shape
        out = pixels_of(blocks, bias, len(bias), (2 * h, 2 * w), relu=relu)
        ctx.relu, ctx.bias_type, ctx.blocks = relu, bias.dtype, blocks.shape
        ctx.save_for_backward(*([out] if relu else []))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        from planet import triton_pictures

        grad = _last(grad)
        (out,) = ctx.saved_tensors if ctx.relu else (grad,)
        n, filled, h, w = ctx.blocks
        channels, rows = grad.shape[1], n * h * w
        result = torch.empty(ctx.blocks, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
        at_a_time, whole = _rows_at_a_time(filled)
        programs, each = _share(rows, at_a_time)
        sums = torch.empty(programs, filled, device=grad.device)
        kernel: Any = triton_pictures.gradient_to_blocks
        kernel[(programs,)](
            grad, out, result, sums, rows, each, CHANNELS=channels, BLOCK_ROWS=h, BLOCK_COLUMNS=w,
            BLOCK_CHANNELS=filled, RELU=ctx.relu, ROWS=at_a_time, WHOLE=whole,
        )  # fmt: skip
        return result, sums.sum(dim=0)[: 4 * channels].view(4, channels).sum(dim=0).to(ctx.bias_type), None


def pixels_of(
    blocks: Float[Tensor, "n blocks h2 w2"], bias: Float[Tensor, " c"] | None, channels: int, size: tuple[int, int],
    *, relu: bool,
) -> Float[Tensor, "n c h w"]:  # fmt: skip
    """Return pictures of this size whose 2 x 2 pixels are given side by side."""
    from planet import triton_pictures

    n, filled, h, w = blocks.shape
    out = torch.empty((n, channels, *size), dtype=blocks.dtype, device=blocks.device, memory_format=torch.channels_last)
    kernel: Any = triton_pictures.blocks_to_pixels
    kernel[(_cells(out.numel(), NUMBERS),)](
        blocks, bias if bias is not None else blocks, out, out.numel(), HEIGHT=size[0], WIDTH=size[1],
        CHANNELS=channels, BLOCK_ROWS=h, BLOCK_COLUMNS=w, BLOCK_CHANNELS=filled, BIAS=bias is not None, RELU=relu,
        BLOCK=NUMBERS,
    )  # fmt: skip
    return out


class _Convolution(torch.autograd.Function):
    """F.conv2d of stride 2 without bias, whose gradient to an odd picture goes by way of blocks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, stride=2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        k, by_blocks = weight.shape[-1], weight.shape[-1] % 2 == 0 and ctx.needs_input_grad[0]
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [2, 2], [0, 0], [1, 1], False, [0, 0], 1,
            [ctx.needs_input_grad[0] and not by_blocks, True, False],
        )  # fmt: skip
        if by_blocks:
            blocks = _last(F.conv2d(grad, _for_blocks(weight), padding=k // 2 - 1))
            grad_x = pixels_of(blocks, None, x.shape[1], (x.shape[2], x.shape[3]), relu=False)
        return grad_x, grad_weight


class _FirstConvolution(torch.autograd.Function):
    """ReLU of a convolution of 4 x 4 with stride 2 of a picture with few channels."""

    ROWS, ROWS_BACK = 128, 64

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        from planet import triton_pictures

        (n, channels, size, _), outputs = image.shape, len(weight)
        width = (size - 4) // 2 + 1
        rows_of_kernel = weight.permute(2, 3, 1, 0).reshape(4, 4 * channels, outputs)
        laid_out = F.pad(rows_of_kernel, (0, 0, 0, 16 - 4 * channels)).reshape(64, outputs)
        out = torch.empty(
            (n, outputs, width, width), dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last
        )
        kernel: Any = triton_pictures.first_convolution
        rows = n * width * width
        kernel[(_cells(rows, _FirstConvolution.ROWS),)](
            image, laid_out.contiguous(), bias, out, rows, SIZE=size, CHANNELS=channels, OUT=width, OUTPUTS=outputs,
            SHORT=weight.dtype is torch.bfloat16, ROWS=_FirstConvolution.ROWS, PRECISION=fused._precision(),
        )  # fmt: skip
        ctx.save_for_backward(image, out)
        ctx.bias_type = bias.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        from planet import triton_pictures

        image, out = ctx.saved_tensors
        (n, channels, size, _), (outputs, width) = image.shape, out.shape[1:3]
        grad = _last(grad)
        rows = n * width * width
        programs, each = _share(rows, _FirstConvolution.ROWS_BACK)
        g_weight = torch.empty(programs, 64, outputs, device=grad.device)
        g_bias = torch.empty(programs, outputs, device=grad.device)
        kernel: Any = triton_pictures.gradient_of_first_convolution
        kernel[(programs,)](
            image, grad, out, g_weight, g_bias, rows, each, SIZE=size, CHANNELS=channels, OUT=width, OUTPUTS=outputs,
            SHORT=grad.dtype is torch.bfloat16, ROWS=_FirstConvolution.ROWS_BACK,
            PRECISION=fused._precision(), num_stages=1,
        )  # fmt: skip
        by_row = g_weight.sum(dim=0).view(4, 16, outputs)[:, : 4 * channels]
        weight = by_row.reshape(4, 4, channels, outputs).permute(3, 2, 0, 1)
        return None, weight.to(out.dtype), g_bias.sum(dim=0).to(ctx.bias_type)

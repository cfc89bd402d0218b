"""The fast forms of convolutions equal torch's, forward and backward."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from planet.convolutions import convolve, transposed

CONVOLUTIONS = [(3, 8, 4, 64), (8, 6, 4, 14), (5, 7, 4, 6), (4, 4, 3, 5)]  # inputs, outputs, kernel, picture
TRANSPOSED = [(8, 6, 5, 5), (6, 5, 6, 13), (6, 3, 6, 9), (4, 1, 4, 3), (4, 3, 5, 4)]


def values(function: object, x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Output and gradients of a smooth function of it."""
    inputs = [t.clone().requires_grad_() for t in (x.contiguous(memory_format=torch.channels_last), weight, bias)]
    y = function(*inputs)  # pyright: ignore[reportCallIssue]
    assert isinstance(y, Tensor)
    return [y, *torch.autograd.grad(y.sin().sum(), inputs)]


def check(fast: object, slow: object, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    for actual, expected in zip(values(fast, x, weight, bias), values(slow, x, weight, bias), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("inputs", "outputs", "kernel", "size"), CONVOLUTIONS)
def test_convolve(inputs: int, outputs: int, kernel: int, size: int) -> None:
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=g, dtype=torch.float64)
        for shape in [(2, inputs, size, size), (outputs, inputs, kernel, kernel), (outputs,)]
    )

    check(convolve, lambda x, w, b: F.relu(F.conv2d(x, w, b, stride=2)), x, weight, bias)


@pytest.mark.parametrize(("inputs", "outputs", "kernel", "size"), TRANSPOSED)
def test_transposed(inputs: int, outputs: int, kernel: int, size: int) -> None:
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=g, dtype=torch.float64)
        for shape in [(2, inputs, size, size), (inputs, outputs, kernel, kernel), (outputs,)]
    )

    for relu in (False, True):
        check(
            functools.partial(transposed, relu=relu),
            lambda x, w, b, relu=relu: (F.relu if relu else torch.clone)(F.conv_transpose2d(x, w, b, stride=2)),
            x, weight, bias,
        )  # fmt: skip


@pytest.mark.parametrize("function", [convolve, functools.partial(transposed, relu=True)])
def test_other_devices_get_torch_s_own(function: object) -> None:
    """`meta` stands for a GPU without Triton."""
    x, weight, bias = (
        torch.empty(shape, device="meta", requires_grad=True) for shape in [(2, 3, 6, 6), (3, 3, 4, 4), (3,)]
    )

    y = function(x, weight, bias)  # pyright: ignore[reportCallIssue]

    assert isinstance(y, Tensor) and y.grad_fn is not None and y.grad_fn.name() == "ReluBackward0"
    before = y.grad_fn.next_functions[0][0]
    assert before is not None and before.name() == "ConvolutionBackward0"

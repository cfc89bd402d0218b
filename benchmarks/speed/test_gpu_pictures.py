"""Layers of pictures at the paper's size on a GPU, forward and backward: `planet.fused_pictures` beside torch's own.

pytest benchmarks/speed/test_gpu_pictures.py --benchmark-only -o addopts=
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from planet import fused_pictures, hardware

pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]

FRAMES = 2500
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu_(F.conv2d(x.to(weight.dtype), weight, bias, stride=2))


def relu_of_transposed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu_(F.conv_transpose2d(x, weight, bias, stride=2))


relu_of_ours = functools.partial(fused_pictures.transposed, relu=True)
LAYERS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], Layer, Layer]] = {
    # input (channels, rows, columns), weight (first two axes, kernel), torch's, ours
    "encoder 1": ((3, 64, 64), (32, 3, 4), convolution, fused_pictures.relu_of_first_convolution),
    "encoder 2": ((32, 31, 31), (64, 32, 4), convolution, fused_pictures.relu_of_convolution),
    "encoder 3": ((64, 14, 14), (128, 64, 4), convolution, fused_pictures.relu_of_convolution),
    "encoder 4": ((128, 6, 6), (256, 128, 4), convolution, fused_pictures.relu_of_convolution),
    "decoder 2": ((128, 5, 5), (128, 64, 5), relu_of_transposed, relu_of_ours),
    "decoder 3": ((64, 13, 13), (64, 32, 6), relu_of_transposed, relu_of_ours),
    "decoder 4": (
        (32, 30, 30), (32, 3, 6), functools.partial(F.conv_transpose2d, stride=2),
        functools.partial(fused_pictures.transposed, relu=False),
    ),
}  # fmt: skip


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("whose", ["torch", "ours"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_on_a_gpu(benchmark: Any, name: str, backward: bool, whose: str, precision: str) -> None:
    """`both`: forward and all gradients, of the first layer without that of the picture."""
    device = torch.device("cuda:0")
    hardware.use(device)
    if not fused_pictures.usable(device):
        pytest.skip("Triton cannot compile here")
    picture, (a, b, kernel), torchs, ours = LAYERS[name]
    dtype = getattr(torch, precision)
    layer, first = torchs if whose == "torch" else ours, picture[0] == 3
    g = torch.Generator(device).manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=g, device=device)
        return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x

    x = numbers(FRAMES, *picture).to(torch.float32 if first else dtype)
    weight = (0.05 * numbers(a, b, kernel, kernel)).to(dtype)
    bias = numbers(b if name.startswith("decoder") else a).to(dtype)
    leaves = [x.requires_grad_(backward and not first), weight.requires_grad_(backward), bias.requires_grad_(backward)]
    up = torch.randn_like(layer(*leaves))

    def run() -> None:
        y = layer(*leaves)
        if backward:
            torch.autograd.grad(y, [leaf for leaf in leaves if leaf.requires_grad], up)

    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=aside):
        run()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    benchmark.extra_info |= {"gpu": torch.cuda.get_device_name(), "whose": whose}
    benchmark.pedantic(replay, rounds=20, warmup_rounds=3)

"""Encoder, decoder and reward head: feed-forward networks between pictures, features and rewards.

Knows shapes of pictures and vectors; knows nothing of time or of losses. The sizes are those of Ha and Schmidhuber
(2018), which the paper uses (appendix A); `depth` 32 gives them. Any leading axes are batch axes.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from planet import fused_pictures
from planet.convolutions import convolve, transposed

Activation = Literal["relu", "elu"]
ACTIVATIONS = {"relu": F.relu, "elu": F.elu}
ACTIVATIONS_IN_PLACE = {F.relu: F.relu_, F.elu: F.elu_}


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the type that autocast shortens matrix products to on this device; float32 outside autocast."""
    enabled = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else torch.float32


class Encoder(nn.Module):
    """Picture [..., 3, 64, 64] to embedding [..., 32 * depth]: four convolutions, kernel 4, stride 2, ReLU after each.

    64 -> 31 -> 14 -> 6 -> 2 pixels wide with depth, 2, 4, 8 x depth channels; flattened, no dense layer follows.
    """

    def __init__(self, depth: int = 32) -> None:
        super().__init__()
        channels = (3, depth, 2 * depth, 4 * depth, 8 * depth)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel_size=4, stride=2) for inputs, outputs in itertools.pairwise(channels)
        )
        self.embed_size = 32 * depth

    def forward(self, image: Float[Tensor, "*batch 3 64 64"]) -> Float[Tensor, "*batch embed"]:
        dtype = compute_dtype(image.device)
        x = image.reshape(-1, *image.shape[-3:])  # [N, 3, 64, 64]
        for layer in self.convolutions:
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            x = convolve(x, layer.weight.to(dtype), layer.bias.to(dtype))
        return x.reshape(*image.shape[:-3], self.embed_size)


class Decoder(nn.Module):
    """Features [..., F] to the mean of a picture [..., 3, 64, 64] (unit variance): dense, then four transposed
    convolutions of stride 2, ReLU between them.

    1 -> 5 -> 13 -> 30 -> 64 pixels wide with 4, 2, 1 x depth and 3 channels; kernels 5, 5, 6, 6. The dense layer
    to 32 * depth is linear.
    """

    def __init__(self, feature_size: int, depth: int = 32) -> None:
        super().__init__()
        self.dense = nn.Linear(feature_size, 32 * depth)
        self.first = OnePixelTransposed(32 * depth, 4 * depth, kernel_size=5)
        channels = (4 * depth, 2 * depth, depth, 3)
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(inputs, outputs, kernel_size=kernel, stride=2)
            for (inputs, outputs), kernel in zip(itertools.pairwise(channels), (5, 6, 6), strict=True)
        )

    def forward(self, features: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch 3 64 64"]:
        dtype = compute_dtype(features.device)
        x = self.first(self.dense(features.reshape(-1, features.shape[-1])))  # [N, 4 * depth, 5, 5]
        for i, layer in enumerate(self.convolutions, start=1):
            assert isinstance(layer, nn.ConvTranspose2d) and layer.bias is not None
            relu = i < len(self.convolutions)  # the picture's numbers may have any sign
            x = transposed(x, layer.weight.to(dtype), layer.bias.to(dtype), relu=relu)
        return x.reshape(*features.shape[:-1], *x.shape[1:])


class OnePixelTransposed(nn.Module):
    """ReLU of vectors [N, I] to [N, O, k, k], channels last: the transposed convolution of a picture of one pixel.

    That is a dense layer, held as one (`weight` [k * k * O, I], in the order of the output in memory) with one bias for
    each channel. As a convolution it takes most of the decoder's time.
    """

    def __init__(self, inputs: int, outputs: int, *, kernel_size: int) -> None:
        super().__init__()
        self.shape = (kernel_size, kernel_size, outputs)
        self.weight = nn.Parameter(torch.zeros(kernel_size * kernel_size * outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Float[Tensor, "n inputs"]) -> Float[Tensor, "n outputs k k"]:
        y, bias = F.linear(x, self.weight), self.bias
        if fused_pictures.usable(x.device):
            y = fused_pictures.biased_relu(y.view(-1, len(bias)), bias.to(y.dtype)).view(-1, *self.shape)
            return y.permute(0, 3, 1, 2)
        y = (y.view(-1, *self.shape) + bias.to(y.dtype)).permute(0, 3, 1, 2)
        return F.relu(y)  # not in place: it is a view, of which autograd would make copies


class RewardHead(nn.Module):
    """Features [..., F] to the mean of the reward [...] (unit variance): `layers` dense layers, then one linear."""

    def __init__(
        self, feature_size: int, *, layers: int = 2, units: int = 200, activation: Activation = "relu"
    ) -> None:
        super().__init__()
        sizes = (feature_size, *(units,) * layers)
        self.dense = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes))
        self.output = nn.Linear(units, 1)
        self.activation = ACTIVATIONS[activation]

    def forward(self, features: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch"]:
        x = features
        for dense in self.dense:
            x = self.activation(dense(x))
        return self.output(x)[..., 0]


class GaussianHead(nn.Module):
    """Inputs [..., I] to mean and standard deviation [..., S] of a diagonal Gaussian: one dense layer with activation,
    then two linear layers side by side; the deviation is softplus(.) + `min_std`, or
    `fixed_std` where that is above 0."""

    def __init__(
        self, inputs: int, hidden: int, size: int, *, min_std: float, activation: Activation, fixed_std: float = 0.0
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, hidden)
        self.output = nn.Linear(hidden, 2 * size)
        self.min_std = min_std
        self.fixed_std = fixed_std
        self.activation = ACTIVATIONS[activation]

    def forward(
        self, inputs: Float[Tensor, "*batch inputs"]
    ) -> tuple[Float[Tensor, "*batch size"], Float[Tensor, "*batch size"]]:
        return self.from_preactivation(self.dense(inputs))

    def from_preactivation(
        self, dense: Float[Tensor, "*batch hidden"]
    ) -> tuple[Float[Tensor, "*batch size"], Float[Tensor, "*batch size"]]:
        """Return (mean, std) given the dense layer's output, so that a caller may compute that in parts."""
        mean, raw = self.output(self.activation(dense)).chunk(2, dim=-1)
        if self.fixed_std:
            return mean, torch.full_like(mean, self.fixed_std)
        return mean, F.softplus(raw) + self.min_std


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Initialise every layer below `module` as TensorFlow 1 did for the released agent.

    Kernels are Glorot-uniform with the fans of TensorFlow's matrices, biases zero, and the reset and update gates of a
    GRU start with bias 1. TensorFlow holds one matrix [inputs + state, 2 * units] for both gates and one [inputs +
    state, units] for the candidate, and one layer each for mean and deviation: fans follow these, not ours.
    """

    def uniform(kernel: Tensor, fans: int) -> None:
        kernel.uniform_(-math.sqrt(6 / fans), math.sqrt(6 / fans), generator=generator)

    pairs = {layer.output for layer in module.modules() if isinstance(layer, GaussianHead)}
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            parts = 2 if layer in pairs else 1
            uniform(layer.weight, layer.in_features + layer.out_features // parts)
            layer.bias.zero_()
        elif isinstance(layer, OnePixelTransposed):
            *kernel, outputs = layer.shape
            uniform(layer.weight, (layer.weight.shape[1] + outputs) * math.prod(kernel))
            layer.bias.zero_()
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            uniform(layer.weight, (layer.in_channels + layer.out_channels) * math.prod(layer.kernel_size))
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, nn.GRUCell):
            units, joint = layer.hidden_size, layer.input_size + layer.hidden_size
            for kernel in (layer.weight_ih, layer.weight_hh):  # rows: reset, update, candidate
                uniform(kernel[: 2 * units], joint + 2 * units)
                uniform(kernel[2 * units :], joint + units)
            layer.bias_ih.zero_()
            layer.bias_hh.zero_()
            layer.bias_ih[: 2 * units] = 1.0  # torch adds two biases; TensorFlow has this one

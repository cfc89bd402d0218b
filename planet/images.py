"""Pictures between the simulator's bytes and the numbers the networks see.

Knows uint8 pictures and floats in [-0.5, 0.5); knows nothing of networks. The released agent reduces pictures to
5 bits and fills each bin with fresh uniform noise every time a picture is used, in training and when acting.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from planet import fused_pictures

IMAGE_SHAPE = (3, 64, 64)


def random_bytes(shape: tuple[int, ...], generator: torch.Generator) -> UInt8[Tensor, ...]:
    """Return uniform bytes on the generator's device: the dequantisation noise of `preprocess`.

    Eight bytes are taken from each 64-bit draw: a sixth of the time of one draw per element.
    """
    count = 1
    for size in shape:
        count *= size
    words = torch.empty(-(-count // 8), dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)  # the whole 64-bit range
    return words.view(torch.uint8)[:count].view(shape)


def image_noise(leading: tuple[int, ...], generator: torch.Generator) -> UInt8[Tensor, "*leading 3 64 64"]:
    """Return the noise of as many pictures, channels last in memory as a replay's are: mixed layouts cost time."""
    channels, *size = IMAGE_SHAPE
    return random_bytes((*leading, *size, channels), generator).movedim(-1, -3)


def preprocess(
    obs: UInt8[Tensor, "*batch 3 64 64"], noise: UInt8[Tensor, "*batch 3 64 64"], *, bit_depth: int
) -> Float[Tensor, "*batch 3 64 64"]:
    """Return the picture in [-0.5, 0.5): floor(x / 2^(8-b)) / 2^b + U(0, 1/2^b) - 0.5 with b = `bit_depth`.

    A noise byte n stands for the middle (n + 0.5) / 256 of its part of the bin: 256 equal levels in each bin, with the
    mean of the continuous noise and a variance short by 1 part in 65,536. All values are exact in float32.
    """
    flat, flat_noise = (x.reshape(-1, *IMAGE_SHAPE) for x in (obs, noise))
    if fused_pictures.usable(obs.device) and fused_pictures.same_order(flat, flat_noise):
        return fused_pictures.dequantise(
            flat, flat_noise, shift=8 - bit_depth, scale=2.0**-bit_depth, offset=2.0 ** -(9 + bit_depth) - 0.5,
            noise_scale=2.0 ** -(8 + bit_depth),
        ).view(obs.shape)  # fmt: skip
    image = torch.empty_like(flat, dtype=torch.float32)
    few = frames_in_cache(obs.device)
    for out, given, numbers in zip(image.split(few), flat.split(few), flat_noise.split(few), strict=True):
        # bin / 2^b + (n + 0.5) / 2^(8+b) - 0.5
        out.copy_(given >> (8 - bit_depth))
        out.mul_(2.0**-bit_depth).add_(2.0 ** -(9 + bit_depth) - 0.5).add_(numbers, alpha=2.0 ** -(8 + bit_depth))
    return image.view(obs.shape)


def frames_in_cache(device: torch.device) -> int:
    """Return how many pictures to take through several operations at a time: a CPU finds a few in its cache again, a
    GPU is better off with all of them."""
    return 16 if device.type == "cpu" else 2**31 - 1


def to_uint8(image: Float[Tensor, "*batch 3 64 64"]) -> UInt8[Tensor, "*batch 3 64 64"]:
    """Return a picture in [-0.5, 0.5] as bytes, values outside clipped."""
    return ((image.float() + 0.5) * 256).clamp(0, 255).to(torch.uint8)

"""Quantisation, dequantisation noise, and the way back to bytes."""

import pytest
import torch

from planet.images import preprocess, random_bytes, to_uint8


def constant(value: int) -> torch.Tensor:
    return torch.full((3, 64, 64), value, dtype=torch.uint8)


def test_preprocess_by_hand() -> None:
    # 5 bits: 77 // 8 = 9, 9 / 32 = 0.28125; noise byte 128 is 128.5 / 256 of a bin of 1 / 32.
    image = preprocess(constant(77), constant(128), bit_depth=5)

    assert image.dtype == torch.float32
    assert torch.equal(image, torch.full((3, 64, 64), 9 / 32 + 128.5 / 256 / 32 - 0.5))


@pytest.mark.parametrize("bit_depth", [1, 3, 5, 8])
def test_preprocess_equals_the_formula_for_every_byte_and_noise(bit_depth: int) -> None:
    obs = torch.arange(256, dtype=torch.uint8).repeat_interleave(48).view(3, 64, 64)
    noise = random_bytes((3, 64, 64), torch.Generator().manual_seed(0))

    uniform = (noise.double() + 0.5) / 256
    expected = torch.floor(obs.double() / 2 ** (8 - bit_depth)) / 2**bit_depth + uniform / 2**bit_depth - 0.5
    assert torch.equal(preprocess(obs, noise, bit_depth=bit_depth).double(), expected)


def test_preprocess_stays_in_the_half_open_range() -> None:
    lowest = preprocess(constant(0), constant(0), bit_depth=5).min()
    highest = preprocess(constant(255), constant(255), bit_depth=5).max()

    assert -0.5 < lowest < -0.4999 and 0.4999 < highest < 0.5


def test_preprocess_keeps_any_leading_axes() -> None:
    obs = torch.zeros(2, 5, 3, 64, 64, dtype=torch.uint8)

    assert preprocess(obs, torch.zeros_like(obs), bit_depth=5).shape == (2, 5, 3, 64, 64)


def test_random_bytes_are_uniform() -> None:
    counts = torch.bincount(random_bytes((1_000_000,), torch.Generator().manual_seed(3)).int(), minlength=256)

    chi_square = ((counts - 1e6 / 256) ** 2 / (1e6 / 256)).sum()  # 255 degrees of freedom
    assert 180 < chi_square < 340  # outside: a probability of about 1 in 1,000
    assert not torch.equal(
        random_bytes((64,), torch.Generator().manual_seed(0)), random_bytes((64,), torch.Generator().manual_seed(1))
    )


def test_random_bytes_of_every_length() -> None:
    generator = torch.Generator().manual_seed(0)

    assert [random_bytes((n,), generator).shape[0] for n in (1, 7, 8, 9)] == [1, 7, 8, 9]


def test_to_uint8_inverts_preprocess_at_full_depth() -> None:
    obs = torch.arange(256, dtype=torch.uint8).repeat(48).view(3, 64, 64)

    assert torch.equal(to_uint8(preprocess(obs, torch.full_like(obs, 100), bit_depth=8)), obs)


def test_to_uint8_clips() -> None:
    image = torch.stack([torch.full((64, 64), x) for x in (-3.0, 0.0, 3.0)])

    assert to_uint8(image)[:, 0, 0].tolist() == [0, 128, 255]

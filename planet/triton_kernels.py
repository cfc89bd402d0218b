"""The elementwise parts of one step of the RSSM as Triton kernels (imports triton; `planet.fused` chooses them).

Each program takes BLOCK consecutive numbers of a [rows, columns] result whose inputs and output are slices of longer
rows, one stride (in numbers) each. `no_type_check` keeps the tests' shape checks out of what Triton compiles.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def cell(
    reset, update, new, new_h, h, out, rows, gate_stride, new_stride, new_h_stride, h_stride, out_stride,
    columns: tl.constexpr, SAVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A GRU's next h, given what its matrices made of x and h (`reset` and `update` share a stride).

    SAVE: also leave the gates and the candidate where these were.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = i // columns, i % columns
    mask = row < rows
    r = tl.sigmoid(tl.load(reset + row * gate_stride + column, mask=mask, other=0.0))
    z = tl.sigmoid(tl.load(update + row * gate_stride + column, mask=mask, other=0.0))
    raw = tl.load(new + row * new_stride + column, mask=mask, other=0.0)
    raw += r * tl.load(new_h + row * new_h_stride + column, mask=mask, other=0.0)
    n = 2 * tl.sigmoid(2 * raw) - 1  # tanh
    before = tl.load(h + row * h_stride + column, mask=mask, other=0.0)
    tl.store(out + row * out_stride + column, n + z * (before - n), mask=mask)
    if SAVE:
        tl.store(reset + row * gate_stride + column, r, mask=mask)
        tl.store(update + row * gate_stride + column, z, mask=mask)
        tl.store(new + row * new_stride + column, n, mask=mask)


@triton.jit
@no_type_check
def sample(
    mean, raw, noise, out, std, rows, head_stride, noise_stride, out_stride, std_stride, min_std,
    columns: tl.constexpr, SAVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """mean + (softplus(raw) + min_std) * noise, of which `mean` and `raw` share a stride.

    SAVE: also the deviation, to `std`.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = i // columns, i % columns
    mask = row < rows
    x = tl.load(raw + row * head_stride + column, mask=mask, other=0.0)
    # As torch: above 20 softplus is the number itself. Below, exp does not overflow.
    deviation = tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0)))) + min_std
    center = tl.load(mean + row * head_stride + column, mask=mask, other=0.0)
    number = tl.load(noise + row * noise_stride + column, mask=mask, other=0.0)
    tl.store(out + row * out_stride + column, center + deviation * number, mask=mask)
    if SAVE:
        tl.store(std + row * std_stride + column, deviation, mask=mask)

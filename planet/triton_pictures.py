"""What lies between the convolutions of a picture on a GPU, one pass over memory each (imports triton; called by
`planet.fused_pictures`).

Pictures have their channels last in memory. Numbers are read in the type they have and computed with in float32. Sums
over pixels are taken in parts that are added afterwards, always in the same order: `each` rows by one program, a
multiple of what it takes at a time. Sizes are constants, so that divisions by them are multiplications.
`no_type_check` keeps the tests' shape checks out of what Triton compiles.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def dequantise(obs, noise, out, count, scale, offset, noise_scale, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    """(obs >> SHIFT) * scale + offset + noise * noise_scale of `count` bytes; exact, so in any order."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    within = i < count
    bins = (tl.load(obs + i, mask=within, other=0).to(tl.int32) >> SHIFT).to(tl.float32)
    numbers = tl.load(noise + i, mask=within, other=0).to(tl.float32)
    tl.store(out + i, bins * scale + offset + numbers * noise_scale, mask=within)


@triton.jit
@no_type_check
def half_squared_distance(prediction, target, difference, distance, PIXELS: tl.constexpr, BLOCK: tl.constexpr):
    """Of one picture: what it differs by, and half the sum of its squares."""
    first = tl.program_id(0).to(tl.int64) * PIXELS
    total = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, PIXELS, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        within = i < PIXELS
        there = tl.load(target + first + i, mask=within, other=0.0)
        d = tl.load(prediction + first + i, mask=within, other=0.0).to(tl.float32) - there
        tl.store(difference + first + i, d.to(difference.dtype.element_ty), mask=within)
        total += d * d
    tl.store(distance + tl.program_id(0), 0.5 * tl.sum(total, 0))


@triton.jit
@no_type_check
def scaled(pictures, scales, out, PIXELS: tl.constexpr, BLOCK: tl.constexpr):
    """Each picture times its scale."""
    first = tl.program_id(0).to(tl.int64) * PIXELS
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = i < PIXELS
    scale = tl.load(scales + tl.program_id(0))
    x = tl.load(pictures + first + i, mask=within, other=0.0).to(tl.float32) * scale
    tl.store(out + first + i, x.to(out.dtype.element_ty), mask=within)


@triton.jit
@no_type_check
def add_bias(x, bias, count, CHANNELS: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr):
    """x + bias, with ReLU where asked for, in place. A NaN stays one."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    within = i < count
    y = tl.load(x + i, mask=within, other=0.0).to(tl.float32) + tl.load(bias + i % CHANNELS).to(tl.float32)
    if RELU:
        y = tl.where(y < 0.0, 0.0, y)
    tl.store(x + i, y.to(x.dtype.element_ty), mask=within)


@triton.jit
@no_type_check
def gradient_to_bias(
    grad, out, result, sums, rows, each,
    CHANNELS: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """`add_bias` backwards: the gradient to x [rows, CHANNELS], and of `each` rows its sum. Without RELU `out` is not
    looked at and `result` not written."""
    begin, c = tl.program_id(0) * each, tl.arange(0, WHOLE)
    total = tl.zeros([ROWS, WHOLE], tl.float32)
    for step in range(0, each, ROWS):
        row = begin + step + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (c < CHANNELS)[None, :]
        at = row[:, None] * CHANNELS + c[None, :]
        g = tl.load(grad + at, mask=mask, other=0.0)
        if RELU:
            g = tl.where(tl.load(out + at, mask=mask, other=0.0) <= 0.0, 0.0, g)
            tl.store(result + at, g, mask=mask)
        total += g.to(tl.float32)
    tl.store(sums + tl.program_id(0) * CHANNELS + c, tl.sum(total, 0), mask=c < CHANNELS)


@triton.jit
@no_type_check
def blocks_to_pixels(
    blocks, bias, out, count,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    BIAS: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each pixel of [BLOCK_ROWS, BLOCK_COLUMNS] holds 2 x 2 of [HEIGHT, WIDTH], in the order row, column, channel, and
    channels that are not used. What lies beyond the blocks is 0. BIAS, RELU: also added, and taken."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel, pixel = i % CHANNELS, i // CHANNELS
    column, line = pixel % WIDTH, pixel // WIDTH
    row, picture = line % HEIGHT, line // HEIGHT
    at = (picture * BLOCK_ROWS + row // 2) * BLOCK_COLUMNS + column // 2
    at = at * BLOCK_CHANNELS + (row % 2 * 2 + column % 2) * CHANNELS + channel
    inside = (i < count) & (row < 2 * BLOCK_ROWS) & (column < 2 * BLOCK_COLUMNS)
    x = tl.load(blocks + at, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias + channel).to(tl.float32)
    if RELU:
        x = tl.where(x < 0.0, 0.0, x)
    tl.store(out + i, x.to(out.dtype.element_ty), mask=i < count)


@triton.jit
@no_type_check
def gradient_to_blocks(
    grad, out, result, sums, rows, each, CHANNELS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    RELU: tl.constexpr, ROWS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """`blocks_to_pixels` backwards, for pictures of whole blocks: the gradient to these [rows, BLOCK_CHANNELS], and of
    `each` rows its sum."""
    begin, k = tl.program_id(0) * each, tl.arange(0, WHOLE)
    odd_row, odd_column, channel = k // (2 * CHANNELS), k // CHANNELS % 2, k % CHANNELS
    total = tl.zeros([ROWS, WHOLE], tl.float32)
    for step in range(0, each, ROWS):
        block = begin + step + tl.arange(0, ROWS)
        column, line = block % BLOCK_COLUMNS * 2, block // BLOCK_COLUMNS
        row, picture = line % BLOCK_ROWS * 2, line // BLOCK_ROWS
        within = (block < rows)[:, None] & (k < BLOCK_CHANNELS)[None, :]
        y, x = row[:, None] + odd_row[None, :], column[:, None] + odd_column[None, :]
        inside = within & (k < 4 * CHANNELS)[None, :]
        at = ((picture[:, None] * 2 * BLOCK_ROWS + y) * 2 * BLOCK_COLUMNS + x) * CHANNELS + channel[None, :]
        g = tl.load(grad + at, mask=inside, other=0.0)
        if RELU:
            g = tl.where(tl.load(out + at, mask=inside, other=0.0) <= 0.0, 0.0, g)
        tl.store(result + block[:, None] * BLOCK_CHANNELS + k[None, :], g, mask=within)
        total += g.to(tl.float32)
    tl.store(sums + tl.program_id(0) * BLOCK_CHANNELS + k, tl.sum(total, 0), mask=k < BLOCK_CHANNELS)


@triton.jit
@no_type_check
def _patches(image, pixel, within, SIZE: tl.constexpr, CHANNELS: tl.constexpr, OUT: tl.constexpr):
    """What a kernel of 4 x 4 with stride 2 sees at each pixel of [pictures, OUT, OUT]: [pixel, 64], of which four times
    16 are the numbers of one row, the last of them zeros."""
    k = tl.arange(0, 64)
    column, line = pixel % OUT, pixel // OUT
    row, picture = line % OUT, line // OUT
    begin = ((picture * SIZE + 2 * row) * SIZE + 2 * column) * CHANNELS
    at = begin[:, None] + (k // 16 * (SIZE * CHANNELS) + k % 16)[None, :]
    return tl.load(image + at, mask=within[:, None] & (k % 16 < 4 * CHANNELS)[None, :], other=0.0)


@triton.jit
@no_type_check
def first_convolution(
    image, weight, bias, out, rows,
    SIZE: tl.constexpr, CHANNELS: tl.constexpr, OUT: tl.constexpr, OUTPUTS: tl.constexpr, SHORT: tl.constexpr,
    ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """ReLU of a convolution of 4 x 4 with stride 2 of pictures with at most four channels; `weight` [64, OUTPUTS] is
    laid out as `_patches` are. SHORT: of float32 pictures, in bfloat16."""
    pixel, o = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, OUTPUTS)
    within = pixel < rows
    x = _patches(image, pixel, within, SIZE, CHANNELS, OUT)
    w = tl.load(weight + tl.arange(0, 64)[:, None] * OUTPUTS + o[None, :])
    if SHORT:
        x = x.to(tl.bfloat16)
    y = tl.dot(x, w, input_precision=PRECISION) + tl.load(bias + o).to(tl.float32)[None, :]
    y = tl.where(y < 0.0, 0.0, y)
    tl.store(out + pixel[:, None] * OUTPUTS + o[None, :], y.to(out.dtype.element_ty), mask=within[:, None])


@triton.jit
@no_type_check
def gradient_of_first_convolution(
    image, grad, out, g_weight, g_bias, rows, each,
    SIZE: tl.constexpr, CHANNELS: tl.constexpr, OUT: tl.constexpr, OUTPUTS: tl.constexpr, SHORT: tl.constexpr,
    ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Backwards: of `each` pixels the gradients of `weight` and `bias`."""
    begin, o, k = tl.program_id(0) * each, tl.arange(0, OUTPUTS), tl.arange(0, 64)
    total, total_bias = tl.zeros([64, OUTPUTS], tl.float32), tl.zeros([ROWS, OUTPUTS], tl.float32)
    for step in range(0, each, ROWS):
        pixel = begin + step + tl.arange(0, ROWS)
        within = pixel < rows
        x = _patches(image, pixel, within, SIZE, CHANNELS, OUT)
        if SHORT:
            x = x.to(tl.bfloat16)
        at = pixel[:, None] * OUTPUTS + o[None, :]
        g = tl.load(grad + at, mask=within[:, None], other=0.0)
        g = tl.where(tl.load(out + at, mask=within[:, None], other=0.0) <= 0.0, 0.0, g)
        total = tl.dot(tl.trans(x), g, total, input_precision=PRECISION)
        total_bias += g.to(tl.float32)
    program = tl.program_id(0)
    tl.store(g_weight + (program * 64 + k[:, None]) * OUTPUTS + o[None, :], total)
    tl.store(g_bias + program * OUTPUTS + o, tl.sum(total_bias, 0))

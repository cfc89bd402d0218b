"""One step of the RSSM, forward and backward, as two Triton kernels each (imports triton; `planet.fused` calls them).

A step has two kinds of products. Those of the GRU are wide, so many programs share them, each with some rows and some
units: a gate needs nothing of other units. Those after it are narrow and each needs all numbers of the one before, so
one program takes some rows through all of them, and what lies between stays in its registers.

Matrices are torch's, [outputs, inputs]. ROWS, UNITS and INPUTS are how many a program takes at a time, and what is
called WHOLE_ is a length filled up to a power of two. Numbers outside are read as zeros. Products are of type PRECISION
(Triton's "tf32" or "ieee"). Strides are constants, so that Triton sees where four numbers can be read at once.
`no_type_check` keeps the tests' shape checks out of what Triton compiles.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _activate(x, ELU: tl.constexpr):
    """A NaN stays one, which minimum and maximum would not keep."""
    if ELU:
        return tl.where(x > 0.0, x, tl.exp(tl.where(x > 0.0, 0.0, x)) - 1.0)
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
@no_type_check
def _read(memory, rows, columns, within_rows, within_columns):
    """The numbers at rows [R] x columns [C], given as offsets."""
    mask = within_rows[:, None] & within_columns[None, :]
    return tl.load(memory + rows[:, None] + columns[None, :], mask=mask, other=0.0)


@triton.jit
@no_type_check
def _write(memory, numbers, rows, columns, within_rows, within_columns):
    tl.store(
        memory + rows[:, None] + columns[None, :], numbers, mask=within_rows[:, None] & within_columns[None, :]
    )  # fmt: skip


@triton.jit
@no_type_check
def next_deter(
    x, h, w_x, w_h, b_x, b_h, out, gates, new, new_h, rows,
    h_stride: tl.constexpr, out_stride: tl.constexpr, hidden: tl.constexpr, deter: tl.constexpr, SAVE: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, INPUTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A GRU's next h [rows, deter] for its input x [rows, hidden].

    SAVE: also the gates (reset, update) [rows, 2 * deter], the candidate `new` and what h gave to it, `new_h`.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    of_rows, of_units = row < rows, unit < deter
    reset = tl.zeros([ROWS, UNITS], tl.float32)
    update, from_x, from_h = reset, reset, reset
    for first in range(0, hidden, INPUTS):
        k = first + tl.arange(0, INPUTS)
        within = k < hidden
        a = _read(x, row * hidden, k, of_rows, within)
        w = _read(w_x, k, unit * hidden, within, of_units)
        reset = tl.dot(a, w, reset, input_precision=PRECISION)
        w = _read(w_x + deter * hidden, k, unit * hidden, within, of_units)
        update = tl.dot(a, w, update, input_precision=PRECISION)
        w = _read(w_x + 2 * deter * hidden, k, unit * hidden, within, of_units)
        from_x = tl.dot(a, w, from_x, input_precision=PRECISION)
    for first in range(0, deter, INPUTS):
        k = first + tl.arange(0, INPUTS)
        within = k < deter
        a = _read(h, row * h_stride, k, of_rows, within)
        w = _read(w_h, k, unit * deter, within, of_units)
        reset = tl.dot(a, w, reset, input_precision=PRECISION)
        w = _read(w_h + deter * deter, k, unit * deter, within, of_units)
        update = tl.dot(a, w, update, input_precision=PRECISION)
        w = _read(w_h + 2 * deter * deter, k, unit * deter, within, of_units)
        from_h = tl.dot(a, w, from_h, input_precision=PRECISION)
    bias = tl.load(b_x + unit, mask=of_units, other=0.0) + tl.load(b_h + unit, mask=of_units, other=0.0)
    r = tl.sigmoid(reset + bias[None, :])
    unit_z = deter + unit
    bias = tl.load(b_x + unit_z, mask=of_units, other=0.0) + tl.load(b_h + unit_z, mask=of_units, other=0.0)
    z = tl.sigmoid(update + bias[None, :])
    from_x += tl.load(b_x + 2 * deter + unit, mask=of_units, other=0.0)[None, :]
    from_h += tl.load(b_h + 2 * deter + unit, mask=of_units, other=0.0)[None, :]
    n = 2 * tl.sigmoid(2 * (from_x + r * from_h)) - 1  # tanh
    before = _read(h, row * h_stride, unit, of_rows, of_units)
    _write(out, n + z * (before - n), row * out_stride, unit, of_rows, of_units)
    if SAVE:
        _write(gates, r, row * 2 * deter, unit, of_rows, of_units)
        _write(gates, z, row * 2 * deter, unit_z, of_rows, of_units)
        _write(new, n, row * deter, unit, of_rows, of_units)
        _write(new_h, from_h, row * deter, unit, of_rows, of_units)


@triton.jit
@no_type_check
def next_stoch(
    h, known, w_deter, w_out, b_out, noise, s, known_x, w_stoch, x, p, output, std,
    rows, rows_of_env, noise_env_stride, spread,
    h_stride: tl.constexpr, known_stride: tl.constexpr, w_deter_stride: tl.constexpr, s_stride: tl.constexpr,
    known_x_stride: tl.constexpr, w_stoch_stride: tl.constexpr,
    hidden: tl.constexpr, deter: tl.constexpr, stoch: tl.constexpr,
    ELU: tl.constexpr, FIXED: tl.constexpr, MEAN_ONLY: tl.constexpr, SAVE: tl.constexpr, NEXT: tl.constexpr,
    ROWS: tl.constexpr, INPUTS: tl.constexpr, WHOLE_HIDDEN: tl.constexpr, WHOLE_STOCH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """From h [rows, deter] to a sample s [rows, stoch]:

        p = activation(known + w_deter h);  mean, raw = w_out p + b_out;  s = mean + (softplus(raw) + spread) noise

    `known` is what other inputs give to p, or with stride 0 its bias. The noise of row i lies in the part of its
    environment, i // rows_of_env. FIXED: `spread` is the deviation. MEAN_ONLY: s is the mean.
    SAVE: also p [rows, hidden], `output` (mean, raw) [rows, 2 * stoch] and the deviation [rows, stoch].
    NEXT: also what the GRU takes in next, x = activation(known_x + w_stoch s) [rows, hidden].
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit, i = tl.arange(0, WHOLE_HIDDEN), tl.arange(0, WHOLE_STOCH)
    of_rows, of_units, of_stoch = row < rows, unit < hidden, i < stoch
    acc = tl.zeros([ROWS, WHOLE_HIDDEN], tl.float32)
    for first in range(0, deter, INPUTS):
        k = first + tl.arange(0, INPUTS)
        within = k < deter
        a = _read(h, row * h_stride, k, of_rows, within)
        acc = tl.dot(a, _read(w_deter, k, unit * w_deter_stride, within, of_units), acc, input_precision=PRECISION)
    acc = _activate(acc + _read(known, row * known_stride, unit, of_rows, of_units), ELU)
    if SAVE:
        _write(p, acc, row * hidden, unit, of_rows, of_units)
    mean = tl.dot(acc, _read(w_out, unit, i * hidden, of_units, of_stoch), input_precision=PRECISION)
    mean += tl.load(b_out + i, mask=of_stoch, other=0.0)[None, :]
    raw = tl.dot(acc, _read(w_out + stoch * hidden, unit, i * hidden, of_units, of_stoch), input_precision=PRECISION)
    raw += tl.load(b_out + stoch + i, mask=of_stoch, other=0.0)[None, :]
    if FIXED:
        deviation = tl.zeros_like(raw) + spread
    else:  # as torch: above 20 softplus is the number itself; below, exp does not overflow
        deviation = tl.where(raw > 20.0, raw, tl.log(1.0 + tl.exp(tl.where(raw > 20.0, 20.0, raw)))) + spread
    sample = mean
    if not MEAN_ONLY:
        at = row // rows_of_env * noise_env_stride + row % rows_of_env * stoch
        sample += deviation * _read(noise, at, i, of_rows, of_stoch)
    _write(s, sample, row * s_stride, i, of_rows, of_stoch)
    if SAVE:
        _write(output, mean, row * 2 * stoch, i, of_rows, of_stoch)
        _write(output, raw, row * 2 * stoch, stoch + i, of_rows, of_stoch)
        _write(std, deviation, row * stoch, i, of_rows, of_stoch)
    if NEXT:
        w = _read(w_stoch, i, unit * w_stoch_stride, of_stoch, of_units)
        following = tl.dot(sample, w, input_precision=PRECISION)
        following = _activate(following + _read(known_x, row * known_x_stride, unit, of_rows, of_units), ELU)
        _write(x, following, row * hidden, unit, of_rows, of_units)


@triton.jit
@no_type_check
def gradient_to_deter(
    g_x_later, w_stoch, g_h_later, g_h, g_output, slope_s, w_out, slope_p, w_deter, slopes, g_p, g_cell, rows,
    w_stoch_stride: tl.constexpr, w_deter_stride: tl.constexpr,
    hidden: tl.constexpr, deter: tl.constexpr, stoch: tl.constexpr, LATER: tl.constexpr,
    ROWS: tl.constexpr, INPUTS: tl.constexpr, WHOLE_DETER: tl.constexpr, WHOLE_STOCH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`next_stoch` backwards, and through the nonlinear functions of the GRU.

        g_s = g_x_later w_stoch;  g_output += slope_s g_s;  g_p = slope_p (g_output w_out)
        g_cell = slopes (g_h + g_h_later + g_p w_deter)

    `g_output`, `slope_s` [rows, 2 * stoch] (of mean, raw), `slopes`, `g_cell` [rows, 5 * deter]. Without LATER nothing
    comes from a later step.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit, i = tl.arange(0, WHOLE_DETER), tl.arange(0, WHOLE_STOCH)
    of_rows, of_units, of_stoch = row < rows, unit < deter, i < stoch
    at = row * 2 * stoch
    g_mean, g_raw = _read(g_output, at, i, of_rows, of_stoch), _read(g_output, at, stoch + i, of_rows, of_stoch)
    if LATER:
        g_s = tl.zeros([ROWS, WHOLE_STOCH], tl.float32)
        for first in range(0, hidden, INPUTS):
            k = first + tl.arange(0, INPUTS)
            within = k < hidden
            a = _read(g_x_later, row * hidden, k, of_rows, within)
            g_s = tl.dot(a, _read(w_stoch, k * w_stoch_stride, i, within, of_stoch), g_s, input_precision=PRECISION)
        g_mean += g_s * _read(slope_s, at, i, of_rows, of_stoch)
        g_raw += g_s * _read(slope_s, at, stoch + i, of_rows, of_stoch)
        _write(g_output, g_mean, at, i, of_rows, of_stoch)
        _write(g_output, g_raw, at, stoch + i, of_rows, of_stoch)
    acc = tl.zeros([ROWS, WHOLE_DETER], tl.float32)
    for first in range(0, hidden, INPUTS):
        k = first + tl.arange(0, INPUTS)
        within = k < hidden
        part = tl.dot(g_mean, _read(w_out, i * hidden, k, of_stoch, within), input_precision=PRECISION)
        w = _read(w_out + stoch * hidden, i * hidden, k, of_stoch, within)
        part = tl.dot(g_raw, w, part, input_precision=PRECISION)
        part *= _read(slope_p, row * hidden, k, of_rows, within)
        _write(g_p, part, row * hidden, k, of_rows, within)
        w = _read(w_deter, k * w_deter_stride, unit, within, of_units)
        acc = tl.dot(part, w, acc, input_precision=PRECISION)
    acc += _read(g_h, row * deter, unit, of_rows, of_units)
    if LATER:
        acc += _read(g_h_later, row * deter, unit, of_rows, of_units)
    for part_of_cell in tl.static_range(5):
        columns = part_of_cell * deter + unit
        slope = _read(slopes, row * 5 * deter, columns, of_rows, of_units)
        _write(g_cell, acc * slope, row * 5 * deter, columns, of_rows, of_units)


@triton.jit
@no_type_check
def _product(a, w, row, unit, of_rows, of_units, inputs: tl.constexpr, a_stride: tl.constexpr, w_stride: tl.constexpr,
             ROWS: tl.constexpr, UNITS: tl.constexpr, INPUTS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Columns `unit` of a [rows, inputs] times w [inputs, units]."""
    acc = tl.zeros([ROWS, UNITS], tl.float32)
    for first in range(0, inputs, INPUTS):
        k = first + tl.arange(0, INPUTS)
        within = k < inputs
        numbers = _read(a, row * a_stride, k, of_rows, within)
        acc = tl.dot(numbers, _read(w, k * w_stride, unit, within, of_units), acc, input_precision=PRECISION)
    return acc


@triton.jit
@no_type_check
def gradient_of_cell(
    g_cell, w_x, w_h, slope_x, g_x, g_h, rows, hidden: tl.constexpr, deter: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, INPUTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The GRU's products backwards, of g_cell [rows, 5 * deter] = (x to new, reset, update, h to new, h itself):

        g_x = slope_x (first three parts) w_x;  g_h = (second to fourth) w_h + fifth

    w_x [3 * deter, hidden] in the order of these parts. Programs with 0 on the third axis make g_x, with 1 g_h.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    of_rows = row < rows
    if tl.program_id(2) == 0:
        within = unit < hidden
        acc = _product(
            g_cell, w_x, row, unit, of_rows, within, 3 * deter, 5 * deter, hidden, ROWS, UNITS, INPUTS, PRECISION
        )
        acc *= _read(slope_x, row * hidden, unit, of_rows, within)
        _write(g_x, acc, row * hidden, unit, of_rows, within)
    else:
        within = unit < deter
        acc = _product(
            g_cell + deter, w_h, row, unit, of_rows, within, 3 * deter, 5 * deter, deter, ROWS, UNITS, INPUTS, PRECISION
        )
        acc += _read(g_cell, row * 5 * deter, 4 * deter + unit, of_rows, within)
        _write(g_h, acc, row * deter, unit, of_rows, within)

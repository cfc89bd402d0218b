"""One step of the RSSM, forward and backward, as two Triton kernels each (imports triton; `planet.fused` calls them).

A step has two kinds of products. Those of the GRU are wide, so many programs share them, each with some rows and some
units: a gate needs nothing of other units. Those after it are narrow and each needs all numbers of the one before, so
one program takes some rows through all of them, and what lies between stays in its registers. Backwards it pays to do
that in several programs, each of which goes on with some units of h.

Matrices are torch's, [outputs, inputs]. ROWS, UNITS and INPUTS are how many a program takes at a time, and what is
called WHOLE_ is a length filled up to a power of two. Numbers outside are read as zeros. Factors of a product have the
type of the matrix, float32 or bfloat16; those of float32 are of PRECISION (Triton's "tf32" or "ieee"). Sums and
nonlinear functions are float32. Strides are constants, so that Triton sees where 16 bytes can be read at once.
`no_type_check` keeps the tests' shape checks out of what Triton compiles.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl
from triton import knobs

INTERPRETED: tl.constexpr = tl.constexpr(knobs.runtime.interpret)


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
def _dot(a, w, acc, PRECISION: tl.constexpr):
    """acc + a w, with a in the type of w."""
    a = a.to(w.dtype)
    if INTERPRETED:  # which takes bfloat16 for integers
        a, w = a.to(tl.float32), w.to(tl.float32)
    return tl.dot(a, w, acc, input_precision=PRECISION)


@triton.jit
@no_type_check
def _softplus(x):
    """As torch: above 20 the number itself (below, exp does not overflow). The logarithm of 1 + e is taken of the
    rounded sum and set right by what rounding did to it, so that a small e is not lost beside 1."""
    e = tl.exp(tl.where(x > 20.0, 20.0, x))
    total = 1.0 + e
    kept = total - 1.0
    small = tl.where(kept > 0.0, tl.log(total) * (e / tl.where(kept > 0.0, kept, 1.0)), e)
    return tl.where(x > 20.0, x, small)


@triton.jit
@no_type_check
def next_deter(
    x, h, before, w_x, w_h, b_x, b_h, out, carried, gates, new, new_h, rows,
    h_stride: tl.constexpr, before_stride: tl.constexpr, out_stride: tl.constexpr,
    hidden: tl.constexpr, deter: tl.constexpr, CARRY: tl.constexpr, SAVE: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, INPUTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A GRU's next h [rows, deter] for its input x [rows, hidden]. `h` is what products take, `before` the same h as
    float32 (it may be the same memory).

    CARRY: the next h also as float32 to `carried` [rows, deter], which may be the memory of `before`.
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
        reset = _dot(a, _read(w_x, k, unit * hidden, within, of_units), reset, PRECISION)
        update = _dot(a, _read(w_x + deter * hidden, k, unit * hidden, within, of_units), update, PRECISION)
        from_x = _dot(a, _read(w_x + 2 * deter * hidden, k, unit * hidden, within, of_units), from_x, PRECISION)
    for first in range(0, deter, INPUTS):
        k = first + tl.arange(0, INPUTS)
        within = k < deter
        a = _read(h, row * h_stride, k, of_rows, within)
        reset = _dot(a, _read(w_h, k, unit * deter, within, of_units), reset, PRECISION)
        update = _dot(a, _read(w_h + deter * deter, k, unit * deter, within, of_units), update, PRECISION)
        from_h = _dot(a, _read(w_h + 2 * deter * deter, k, unit * deter, within, of_units), from_h, PRECISION)
    bias = tl.load(b_x + unit, mask=of_units, other=0.0) + tl.load(b_h + unit, mask=of_units, other=0.0)
    r = tl.sigmoid(reset + bias[None, :])
    unit_z = deter + unit
    bias = tl.load(b_x + unit_z, mask=of_units, other=0.0) + tl.load(b_h + unit_z, mask=of_units, other=0.0)
    z = tl.sigmoid(update + bias[None, :])
    from_x += tl.load(b_x + 2 * deter + unit, mask=of_units, other=0.0)[None, :]
    from_h += tl.load(b_h + 2 * deter + unit, mask=of_units, other=0.0)[None, :]
    n = 2 * tl.sigmoid(2 * (from_x + r * from_h)) - 1  # tanh
    following = n + z * (_read(before, row * before_stride, unit, of_rows, of_units) - n)
    _write(out, following, row * out_stride, unit, of_rows, of_units)
    if CARRY:
        _write(carried, following, row * deter, unit, of_rows, of_units)
    if SAVE:
        _write(gates, r, row * 2 * deter, unit, of_rows, of_units)
        _write(gates, z, row * 2 * deter, unit_z, of_rows, of_units)
        _write(new, n, row * deter, unit, of_rows, of_units)
        _write(new_h, from_h, row * deter, unit, of_rows, of_units)


@triton.jit
@no_type_check
def next_stoch(
    h, known, w_deter, w_out, b_out, noise, s, known_x, w_stoch, action, w_action, x, p, output, std,
    rows, rows_of_env, noise_env_stride, spread,
    h_stride: tl.constexpr, known_stride: tl.constexpr, w_deter_stride: tl.constexpr, s_stride: tl.constexpr,
    known_x_stride: tl.constexpr, w_stoch_stride: tl.constexpr, action_stride: tl.constexpr,
    w_action_stride: tl.constexpr,
    hidden: tl.constexpr, deter: tl.constexpr, stoch: tl.constexpr, actions: tl.constexpr,
    ELU: tl.constexpr, FIXED: tl.constexpr, MEAN_ONLY: tl.constexpr, SAVE: tl.constexpr, NEXT: tl.constexpr,
    EARLY: tl.constexpr, ROWS: tl.constexpr, INPUTS: tl.constexpr, WHOLE_HIDDEN: tl.constexpr,
    WHOLE_STOCH: tl.constexpr, WHOLE_ACTIONS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From h [rows, deter] to a sample s [rows, stoch]:

        p = activation(known + w_deter h);  mean, raw = w_out p + b_out;  s = mean + (softplus(raw) + spread) noise

    `known` is what other inputs give to p, or with stride 0 its bias. The noise of row i lies in the part of its
    environment, i // rows_of_env. FIXED: `spread` is the deviation. MEAN_ONLY: s is the mean.
    SAVE: also p [rows, hidden], `output` (mean, raw) [rows, 2 * stoch] and the deviation [rows, stoch].
    NEXT: also what the GRU takes in next, x = activation(known_x + w_stoch s + w_action action) [rows, hidden], the
    last of it where there are `actions`.
    EARLY: the narrow matrices are on their way from the beginning, in registers of programs that have them to spare.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit, i = tl.arange(0, WHOLE_HIDDEN), tl.arange(0, WHOLE_STOCH)
    of_rows, of_units, of_stoch = row < rows, unit < hidden, i < stoch
    if EARLY:
        w_mean = _read(w_out, unit, i * hidden, of_units, of_stoch)
        w_raw = _read(w_out + stoch * hidden, unit, i * hidden, of_units, of_stoch)
        if NEXT:
            w_s = _read(w_stoch, i, unit * w_stoch_stride, of_stoch, of_units)
    acc = _read(known, row * known_stride, unit, of_rows, of_units)
    for first in range(0, deter, INPUTS):
        k = first + tl.arange(0, INPUTS)
        within = k < deter
        a = _read(h, row * h_stride, k, of_rows, within)
        acc = _dot(a, _read(w_deter, k, unit * w_deter_stride, within, of_units), acc, PRECISION)
    acc = _activate(acc, ELU)
    if SAVE:
        _write(p, acc, row * hidden, unit, of_rows, of_units)
    if not EARLY:
        w_mean = _read(w_out, unit, i * hidden, of_units, of_stoch)
        w_raw = _read(w_out + stoch * hidden, unit, i * hidden, of_units, of_stoch)
    none = tl.zeros([ROWS, WHOLE_STOCH], tl.float32)
    mean = _dot(acc, w_mean, none, PRECISION) + tl.load(b_out + i, mask=of_stoch, other=0.0)[None, :]
    raw = _dot(acc, w_raw, none, PRECISION) + tl.load(b_out + stoch + i, mask=of_stoch, other=0.0)[None, :]
    if FIXED:  # noqa: SIM108
        deviation = none + spread
    else:
        deviation = _softplus(raw) + spread
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
        following = _read(known_x, row * known_x_stride, unit, of_rows, of_units)
        if actions > 0:
            following = _of_action(
                action, w_action, following, row, unit, of_rows, of_units, action_stride, w_action_stride, actions,
                WHOLE_ACTIONS, PRECISION,
            )  # fmt: skip
        if not EARLY:
            w_s = _read(w_stoch, i, unit * w_stoch_stride, of_stoch, of_units)
        following = _activate(_dot(sample, w_s, following, PRECISION), ELU)
        _write(x, following, row * hidden, unit, of_rows, of_units)


@triton.jit
@no_type_check
def _of_action(action, w_action, acc, row, unit, of_rows, of_units, action_stride: tl.constexpr,
               w_action_stride: tl.constexpr, actions: tl.constexpr, WHOLE_ACTIONS: tl.constexpr,
               PRECISION: tl.constexpr):  # fmt: skip
    """acc + w_action action"""
    j = tl.arange(0, WHOLE_ACTIONS)
    within = j < actions
    a = _read(action, row * action_stride, j, of_rows, within)
    return _dot(a, _read(w_action, j, unit * w_action_stride, within, of_units), acc, PRECISION)


@triton.jit
@no_type_check
def first_input(
    known, action, w_action, x, rows, rows_of_env, action_stride: tl.constexpr, w_action_stride: tl.constexpr,
    hidden: tl.constexpr, actions: tl.constexpr, ELU: tl.constexpr,
    ROWS: tl.constexpr, WHOLE_HIDDEN: tl.constexpr, WHOLE_ACTIONS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the GRU takes in first, x = activation(known + w_action action), with `known` [env, hidden]."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit = tl.arange(0, WHOLE_HIDDEN)
    of_rows, of_units = row < rows, unit < hidden
    acc = _read(known, row // rows_of_env * hidden, unit, of_rows, of_units)
    acc = _of_action(
        action, w_action, acc, row, unit, of_rows, of_units, action_stride, w_action_stride, actions, WHOLE_ACTIONS,
        PRECISION,
    )  # fmt: skip
    _write(x, _activate(acc, ELU), row * hidden, unit, of_rows, of_units)


@triton.jit
@no_type_check
def rewards(
    features, w_1, b_1, w_2, b_2, w_3, b_3, out, rows, width: tl.constexpr, hidden: tl.constexpr, ELU: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, INPUTS: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out [rows] = w_3 p_2 + b_3, p_2 = activation(w_2 p_1 + b_2), p_1 = activation(w_1 features + b_1), with features
    [rows, width] and UNITS of p_2 at a time."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit = tl.arange(0, WHOLE)
    of_rows, of_units = row < rows, unit < hidden
    p = tl.zeros([ROWS, WHOLE], tl.float32)
    for first in range(0, width, INPUTS):
        k = first + tl.arange(0, INPUTS)
        within = k < width
        a = _read(features, row * width, k, of_rows, within)
        p = _dot(a, _read(w_1, k, unit * width, within, of_units), p, PRECISION)
    p = _activate(p + tl.load(b_1 + unit, mask=of_units, other=0.0)[None, :], ELU)
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, hidden, UNITS):
        j = first + tl.arange(0, UNITS)
        within = j < hidden
        w = _read(w_2, unit, j * hidden, of_units, within)
        y = _dot(p, w, tl.zeros([ROWS, UNITS], tl.float32), PRECISION)
        y = _activate(y + tl.load(b_2 + j, mask=within, other=0.0)[None, :], ELU)
        total += tl.sum(y * tl.load(w_3 + j, mask=within, other=0.0).to(tl.float32)[None, :], axis=1)
    tl.store(out + row, total + tl.load(b_3), mask=of_rows)


@triton.jit
@no_type_check
def best(scores, chosen, candidates, elites, ROWS: tl.constexpr, WHOLE: tl.constexpr):
    """Whether each of the scores [env, candidates] is one of the `elites` best of its environment, as 1 or 0; of equal
    ones the first are. A NaN is."""
    env = tl.program_id(0).to(tl.int64) * candidates
    row, other = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, WHOLE)
    of_rows = row < candidates
    mine = tl.load(scores + env + row, mask=of_rows, other=0.0)[:, None]
    others = tl.load(scores + env + other, mask=other < candidates, other=-float("inf"))[None, :]
    ahead = (others > mine) | ((others == mine) & (other[None, :] < row[:, None]))
    rank = tl.sum(ahead.to(tl.int32), axis=1)
    tl.store(chosen + env + row, (rank < elites).to(tl.float32), mask=of_rows)


@triton.jit
@no_type_check
def refit(
    proposals, chosen, noise, mean, std, candidates, elites, min_std, noise_env_stride, width: tl.constexpr,
    NEXT: tl.constexpr, COLUMNS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Mean and deviation [env, width] of the chosen of proposals [env, candidates, width], sqrt(variance + 1e-6) and at
    least `min_std`.

    NEXT: then the proposals made of them and of noise [env, candidates, width], clipped to [-1, 1], in place.
    """
    env = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, WHOLE), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    of_rows, within = row < candidates, column < width
    begin = proposals + env * candidates * width
    found = _read(begin, row * width, column, of_rows, within)
    if NEXT:
        numbers = _read(noise + env * noise_env_stride, row * width, column, of_rows, within)
    counts = tl.load(chosen + env * candidates + row, mask=of_rows, other=0.0)[:, None]
    middle = tl.sum(counts * found, axis=0) / elites
    apart = found - middle[None, :]
    spread = tl.sqrt(tl.sum(counts * apart * apart, axis=0) / elites + 1e-6)
    spread = tl.where(spread < min_std, min_std, spread)
    tl.store(mean + env * width + column, middle, mask=within)
    tl.store(std + env * width + column, spread, mask=within)
    if NEXT:
        found = middle[None, :] + spread[None, :] * numbers
        found = tl.where(found < -1.0, -1.0, tl.where(found > 1.0, 1.0, found))
        _write(begin, found, row * width, column, of_rows, within)


@triton.jit
@no_type_check
def gradient_to_deter(
    g_x_later, w_stoch, g_h_later, g_h, g_output, slope_s, w_out, slope_p, w_deter, slopes, g_pair, g_p, g_cell, rows,
    w_stoch_stride: tl.constexpr, w_deter_stride: tl.constexpr,
    hidden: tl.constexpr, deter: tl.constexpr, stoch: tl.constexpr, LATER: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, WHOLE_HIDDEN: tl.constexpr, WHOLE_STOCH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`next_stoch` backwards, and through the nonlinear functions of the GRU.

        g_s = g_x_later w_stoch;  g_pair = g_output + slope_s g_s;  g_p = slope_p (g_pair w_out)
        g_cell = slopes (g_h + g_h_later + g_p w_deter)

    `g_output`, `g_pair`, `slope_s` [rows, 2 * stoch] (of mean, raw), `slopes`, `g_cell` [rows, 5 * deter]. Without
    LATER nothing comes from a later step. All that is read is on its way before the first product. The first line is
    done by each program of the second axis, which share the units of the second; the first of them writes its results.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    k, i = tl.arange(0, WHOLE_HIDDEN), tl.arange(0, WHOLE_STOCH)
    of_rows, of_units, of_hidden, of_stoch = row < rows, unit < deter, k < hidden, i < stoch
    at = row * 2 * stoch
    w_mean = _read(w_out, i * hidden, k, of_stoch, of_hidden)
    w_raw = _read(w_out + stoch * hidden, i * hidden, k, of_stoch, of_hidden)
    w_d = _read(w_deter, k * w_deter_stride, unit, of_hidden, of_units)
    if LATER:
        w_s = _read(w_stoch, k * w_stoch_stride, i, of_hidden, of_stoch)
        g_x = _read(g_x_later, row * hidden, k, of_rows, of_hidden)
        to_mean, to_raw = _read(slope_s, at, i, of_rows, of_stoch), _read(slope_s, at, stoch + i, of_rows, of_stoch)
    g_mean, g_raw = _read(g_output, at, i, of_rows, of_stoch), _read(g_output, at, stoch + i, of_rows, of_stoch)
    slope = _read(slope_p, row * hidden, k, of_rows, of_hidden)
    acc = _read(g_h, row * deter, unit, of_rows, of_units)
    of_cell = row * 5 * deter
    slope_0 = _read(slopes, of_cell, unit, of_rows, of_units)
    slope_1 = _read(slopes, of_cell, deter + unit, of_rows, of_units)
    slope_2 = _read(slopes, of_cell, 2 * deter + unit, of_rows, of_units)
    slope_3 = _read(slopes, of_cell, 3 * deter + unit, of_rows, of_units)
    slope_4 = _read(slopes, of_cell, 4 * deter + unit, of_rows, of_units)
    if LATER:
        acc += _read(g_h_later, row * deter, unit, of_rows, of_units)
        g_s = _dot(g_x, w_s, tl.zeros([ROWS, WHOLE_STOCH], tl.float32), PRECISION)
        g_mean += g_s * to_mean
        g_raw += g_s * to_raw
    part = _dot(g_mean, w_mean, tl.zeros([ROWS, WHOLE_HIDDEN], tl.float32), PRECISION)
    part = _dot(g_raw, w_raw, part, PRECISION) * slope
    if tl.program_id(1) == 0:
        _write(g_pair, g_mean, at, i, of_rows, of_stoch)
        _write(g_pair, g_raw, at, stoch + i, of_rows, of_stoch)
        _write(g_p, part, row * hidden, k, of_rows, of_hidden)
    acc = _dot(part, w_d, acc, PRECISION)
    _write(g_cell, acc * slope_0, of_cell, unit, of_rows, of_units)
    _write(g_cell, acc * slope_1, of_cell, deter + unit, of_rows, of_units)
    _write(g_cell, acc * slope_2, of_cell, 2 * deter + unit, of_rows, of_units)
    _write(g_cell, acc * slope_3, of_cell, 3 * deter + unit, of_rows, of_units)
    _write(g_cell, acc * slope_4, of_cell, 4 * deter + unit, of_rows, of_units)


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
        acc = _dot(numbers, _read(w, k * w_stride, unit, within, of_units), acc, PRECISION)
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

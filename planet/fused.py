"""One step of the RSSM as two GPU kernels, forward and backward, where torch starts eight to eleven.

On a GPU the recurrence takes as long as its kernels take to start. The kernels are Triton's, which PyTorch for CUDA
brings along; where Triton is missing or cannot compile (it needs a C compiler), callers go on with torch's operations.
Matrices are the parameters themselves: nothing is converted or joined. Everything is float32; products are TF32's where
torch's are.

Shapes: R rows, X hidden, D deterministic, S stochastic.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Options:
    """What of an RSSM is no tensor."""

    activation: Callable[[Tensor], Tensor]
    """F.relu or F.elu."""
    min_std: float
    fixed_std: float
    mean_only: bool


@dataclass(frozen=True, slots=True)
class Cell:
    """A GRU's matrices and biases, as `torch.nn.GRUCell` has them (reset, update, candidate)."""

    w_ih: Float[Tensor, "deter3 hidden"]
    w_hh: Float[Tensor, "deter3 deter"]
    b_ih: Float[Tensor, " deter3"]
    b_hh: Float[Tensor, " deter3"]


@dataclass(frozen=True, slots=True)
class Head:
    """What makes a sample of h: a dense layer, of which `w_deter` is the part for h, then mean and raw deviation."""

    w_deter: Float[Tensor, "hidden deter"]
    w_out: Float[Tensor, "stoch2 hidden"]
    b_out: Float[Tensor, " stoch2"]
    options: Options


@dataclass(frozen=True, slots=True)
class Following:
    """What the GRU takes in at the next step: `x` = activation(known + w_stoch s)."""

    known: Float[Tensor, "row hidden"]
    w_stoch: Float[Tensor, "hidden stoch"]
    x: Float[Tensor, "row hidden"]


@dataclass(frozen=True, slots=True)
class Tiles:
    """How many rows and units of the GRU, and rows of the layers after it, a program takes, with how many warps."""

    deter: tuple[int, int]
    deter_warps: int
    stoch: int


FEW = Tiles((16, 32), 4, 16)
SOME = Tiles((64, 32), 4, 16)
MANY = Tiles((128, 64), 8, 64)
INPUTS = 32
"""Numbers of a sum that are read at a time. None of these sizes was measured yet."""


def tiles_for(device: torch.device, sizes: tuple[int, int, int], rows: int) -> Tiles | None:
    """Return with which tiles the kernels run on this device for hidden, deter, stoch and so many rows; None where
    torch's operations are to be used: on CPUs, on GPUs without TF32 (before the A100), and where Triton does not work.
    Tried once, not within a recording, since compiling waits for the device."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    wanted = (FEW,) if rows <= 256 else (SOME,) if rows <= 4096 else (MANY, SOME)
    with torch.cuda.device(device):  # Triton takes the current one
        return next((tiles for tiles in wanted if _works(device, sizes, tiles)), None)


@functools.cache
def _works(device: torch.device, sizes: tuple[int, int, int], tiles: Tiles) -> bool:
    """A device on which they should run and do not is warned of."""
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):  # callers may shorten torch's side of it
            _try(device, sizes, tiles)
    except Exception as error:  # whatever is wrong with compiler, driver or card: torch's operations remain
        warnings.warn(
            f"no fused kernels of {tiles.deter} on {device}, planning and updates take longer: {error}", stacklevel=2
        )
        return False
    return True


def _try(device: torch.device, sizes: tuple[int, int, int], tiles: Tiles) -> None:
    """Raise an error unless the kernels agree with torch on a few rows, gradients included."""
    hidden, deter, stoch = sizes

    def numbers(*shape: int, scale: float = 1.0) -> Tensor:
        steps = torch.arange(math.prod(shape), device=device, dtype=torch.float32)
        return (steps * 1.618).sin().view(shape) * scale

    rows, options = tiles.deter[0] + 3, Options(F.elu, 0.1, 0.0, False)
    cell = Cell(
        numbers(3 * deter, hidden, scale=hidden**-0.5), numbers(3 * deter, deter, scale=deter**-0.5),
        numbers(3 * deter), numbers(3 * deter),
    )  # fmt: skip
    head = Head(
        numbers(hidden, deter, scale=deter**-0.5), numbers(2 * stoch, hidden, scale=hidden**-0.5), numbers(2 * stoch),
        options,
    )  # fmt: skip
    x, h, known, noise = numbers(rows, hidden), numbers(rows, deter), numbers(rows, hidden), numbers(1, rows, stoch)
    out, s, following = numbers(rows, deter), numbers(rows, stoch), numbers(rows, hidden)
    w_stoch = numbers(hidden, stoch, scale=stoch**-0.5)

    next_deter(x, h, cell, out=out, tiles=tiles)
    next_stoch(out, known, head, noise, out=s, following=Following(known, w_stoch, following), tiles=tiles)

    expected = torch.gru_cell(x, h, cell.w_ih, cell.w_hh, cell.b_ih, cell.b_hh)
    mean, raw = F.linear(F.elu(known + expected @ head.w_deter.T), head.w_out, head.b_out).chunk(2, dim=1)
    sample = mean + (F.softplus(raw) + 0.1) * noise[0]
    # TF32 keeps ten bits of what is multiplied.
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-2)
    torch.testing.assert_close(s, sample, rtol=0, atol=3e-2)
    torch.testing.assert_close(following, F.elu(known + sample @ w_stoch.T), rtol=0, atol=5e-2)
    if tiles is FEW:
        _try_gradient(numbers, head, cell, w_stoch)


def _try_gradient(numbers: Callable[..., Tensor], head: Head, cell: Cell, w_stoch: Tensor) -> None:
    """Raise an error unless the kernels backwards agree with torch."""
    (hidden, stoch), deter, rows = w_stoch.shape, cell.w_hh.shape[1], FEW.deter[0] + 3
    later, g_h = (numbers(rows, hidden), numbers(rows, deter, scale=0.3)), numbers(rows, deter)
    g_output, slope_s, slope_p = numbers(rows, 2, stoch), numbers(rows, 2, stoch), numbers(rows, hidden)
    slopes, g_p, g_cell = numbers(rows, 5, deter), numbers(rows, hidden), numbers(rows, 5, deter)
    g_x, g_h_before = numbers(rows, hidden), numbers(rows, deter)

    pair = g_output + (later[0] @ w_stoch)[:, None] * slope_s
    expected_p = (pair.flatten(1) @ head.w_out) * slope_p
    expected = (g_h + later[1] + expected_p @ head.w_deter)[:, None] * slopes
    gradient_to_deter(later, w_stoch, g_h, g_output, slope_s, head, slope_p, slopes, g_p=g_p, g_cell=g_cell)
    scale = expected.abs().max()
    gradient_of_cell(g_cell, cell.w_ih, cell.w_hh, slope_p, g_x=g_x, g_h=g_h_before)
    whole = expected.flatten(1)
    expected_x = (whole[:, : 3 * deter] @ cell.w_ih) * slope_p
    expected_h = whole[:, deter : 4 * deter] @ cell.w_hh + whole[:, 4 * deter :]
    for found, wanted in ((g_output, pair), (g_p, expected_p), (g_cell, expected), (g_x, expected_x),
                          (g_h_before, expected_h)):  # fmt: skip
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-2 * float(max(scale, wanted.abs().max())))


def next_deter(
    x: Float[Tensor, "row hidden"],
    h: Float[Tensor, "row deter"],
    cell: Cell,
    *,
    out: Float[Tensor, "row deter"],
    tiles: Tiles,
    save: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Write the GRU's next h to `out`; both h may be slices of longer rows.

    save: memory for the gates [R, 2 * D], the candidate [R, D] and what h gave to it [R, D].
    """
    from planet import triton_kernels

    (rows, hidden), deter = x.shape, h.shape[1]
    _check_rows(h, out)
    _check_whole(x, cell.w_ih, cell.w_hh, cell.b_ih, cell.b_hh, *(save or ()))
    gates, new, new_h = save or (out, out, out)
    of_rows, of_units = tiles.deter
    kernel: Any = triton_kernels.next_deter
    kernel[(-(-rows // of_rows), -(-deter // of_units))](
        x, h, cell.w_ih, cell.w_hh, cell.b_ih, cell.b_hh, out, gates, new, new_h, rows,
        h_stride=h.stride(0), out_stride=out.stride(0), hidden=hidden, deter=deter, SAVE=save is not None,
        ROWS=of_rows, UNITS=of_units, INPUTS=INPUTS, PRECISION=_precision(), num_warps=tiles.deter_warps, num_stages=3,
    )  # fmt: skip


def next_stoch(
    h: Float[Tensor, "row deter"],
    known: Float[Tensor, "row hidden"],
    head: Head,
    noise: Float[Tensor, "env row_of_env stoch"],
    *,
    out: Float[Tensor, "row stoch"],
    tiles: Tiles,
    following: Following | None = None,
    save: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Write the sample that h leads to, and what the GRU takes in next where that is `following`.

    Args:
        known: what adds to the dense layer besides h: its bias, what the embedding gives.
        noise: the rows of each environment; an environment's numbers may lie anywhere.
        save: memory for the dense layer [R, X], (mean, raw) [R, 2 * S] and the deviation [R, S].
    """
    from planet import triton_kernels

    (rows, deter), hidden, stoch, options = h.shape, known.shape[1], out.shape[1], head.options
    _check_rows(h, known, head.w_deter, out)
    _check_whole(head.w_out, head.b_out, noise[0], *(save or ()))
    p, output, std = save or (out, out, out)
    then = following or Following(known, head.w_deter, out)
    if following is not None:
        _check_rows(following.known, following.w_stoch)
        _check_whole(following.x)
    kernel: Any = triton_kernels.next_stoch
    kernel[(-(-rows // tiles.stoch),)](
        h, known, head.w_deter, head.w_out, head.b_out, noise, out, then.known, then.w_stoch, then.x, p, output, std,
        rows, noise.shape[1], noise.stride(0), options.fixed_std or options.min_std,
        h_stride=h.stride(0), known_stride=known.stride(0), w_deter_stride=head.w_deter.stride(0),
        s_stride=out.stride(0), known_x_stride=then.known.stride(0), w_stoch_stride=then.w_stoch.stride(0),
        hidden=hidden, deter=deter, stoch=stoch, ELU=options.activation is F.elu, FIXED=bool(options.fixed_std),
        MEAN_ONLY=options.mean_only, SAVE=save is not None, NEXT=following is not None, ROWS=tiles.stoch,
        INPUTS=INPUTS, WHOLE_HIDDEN=_whole(hidden), WHOLE_STOCH=_whole(stoch), PRECISION=_precision(), num_warps=8,
        num_stages=2,
    )  # fmt: skip


def gradient_to_deter(
    later: tuple[Tensor, Tensor] | None,
    w_stoch: Float[Tensor, "hidden stoch"],
    g_h: Float[Tensor, "row deter"],
    g_output: Float[Tensor, "row 2 stoch"],
    slope_s: Float[Tensor, "row 2 stoch"],
    head: Head,
    slope_p: Float[Tensor, "row hidden"],
    slopes: Float[Tensor, "row 5 deter"],
    *,
    g_p: Float[Tensor, "row hidden"],
    g_cell: Float[Tensor, "row 5 deter"],
) -> None:
    """`next_stoch` backwards, and the nonlinear functions of the GRU: write `g_p` and `g_cell`, and add to `g_output`
    what comes back through s.

    later: gradients of the next step's x [R, X] and of h [R, D] from there; None at the last step.
    """
    from planet import triton_kernels

    (rows, hidden), deter, stoch = slope_p.shape, g_h.shape[1], g_output.shape[2]
    _check_rows(w_stoch, head.w_deter)
    _check_whole(g_h, g_output, slope_s, head.w_out, slope_p, slopes, g_p, g_cell, *(later or ()))
    g_x_later, g_h_later = later or (g_h, g_h)
    kernel: Any = triton_kernels.gradient_to_deter
    kernel[(-(-rows // FEW.stoch),)](
        g_x_later, w_stoch, g_h_later, g_h, g_output, slope_s, head.w_out, slope_p, head.w_deter, slopes, g_p, g_cell,
        rows, w_stoch_stride=w_stoch.stride(0), w_deter_stride=head.w_deter.stride(0),
        hidden=hidden, deter=deter, stoch=stoch, LATER=later is not None, ROWS=FEW.stoch, INPUTS=INPUTS,
        WHOLE_DETER=_whole(deter), WHOLE_STOCH=_whole(stoch), PRECISION=_precision(), num_warps=8, num_stages=2,
    )  # fmt: skip


def gradient_of_cell(
    g_cell: Float[Tensor, "row 5 deter"],
    w_x: Float[Tensor, "deter3 hidden"],
    w_hh: Float[Tensor, "deter3 deter"],
    slope_x: Float[Tensor, "row hidden"],
    *,
    g_x: Float[Tensor, "row hidden"],
    g_h: Float[Tensor, "row deter"],
) -> None:
    """The GRU's products backwards: write `g_x`, and `g_h` of the h before.

    w_x: `w_ih` in the order candidate, reset, update.
    """
    from planet import triton_kernels

    (rows, hidden), deter = slope_x.shape, g_h.shape[1]
    _check_whole(g_cell, w_x, w_hh, slope_x, g_x, g_h)
    of_rows, of_units = FEW.deter
    kernel: Any = triton_kernels.gradient_of_cell
    kernel[(-(-rows // of_rows), -(-max(hidden, deter) // of_units), 2)](
        g_cell, w_x, w_hh, slope_x, g_x, g_h, rows, hidden=hidden, deter=deter, ROWS=of_rows, UNITS=of_units,
        INPUTS=INPUTS, PRECISION=_precision(), num_warps=FEW.deter_warps, num_stages=3,
    )  # fmt: skip


def _precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _whole(size: int) -> int:
    """A power of two, and what a product takes at least."""
    return max(16, 1 << (size - 1).bit_length())


def _check_rows(*tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.dtype is not torch.float32 or tensor.stride(1) != 1:
            raise ValueError(
                f"fused kernels take float32 rows without gaps, got {tensor.dtype} with strides {tensor.stride()}"
            )


def _check_whole(*tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.dtype is not torch.float32 or not tensor.is_contiguous():
            raise ValueError(
                f"fused kernels take contiguous float32 memory here, got {tensor.dtype} {list(tensor.shape)} with "
                f"strides {tensor.stride()}"
            )

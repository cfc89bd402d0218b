"""One step of the RSSM as two GPU kernels, forward and backward, where torch starts eight to eleven.

On a GPU the recurrence takes as long as its kernels take to start and to wait for what they read. The kernels are
Triton's, which PyTorch for CUDA brings along; where it is missing or cannot compile (it needs a C compiler), callers
go on with torch's operations. Matrices are torch's, the parameters themselves or shorter copies: a product's factors
have the type of its matrix, float32 (TF32 where torch's products are) or bfloat16. Sums, biases, nonlinear functions
and what a step is given in float32 stay so.

Shapes: R rows, X hidden, D deterministic, S stochastic, A action.
"""

from __future__ import annotations

import functools
import math
import os
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
    """What the GRU takes in at the next step: `x` = activation(known + w_stoch s + w_action action)."""

    known: Float[Tensor, "row hidden"]
    w_stoch: Float[Tensor, "hidden stoch"]
    x: Float[Tensor, "row hidden"]
    action: Float[Tensor, "row action"] | None = None
    """None: `known` has it."""
    w_action: Float[Tensor, "hidden action"] | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program takes of a kernel's work, and how."""

    rows: int
    units: int
    """Columns of the result, where programs share them."""
    inputs: int
    """Numbers of a sum that are read at a time."""
    warps: int
    stages: int
    """Reads under way at a time."""
    early: bool = False
    """`next_stoch` reads its later matrices first: fewer waits, more space."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """One for each kernel."""

    deter: Tile
    stoch: Tile
    to_deter: Tile = Tile(16, 32, 0, 4, 1)
    """Of the gradient; it reads all inputs at once."""
    of_cell: Tile = Tile(16, 32, 64, 4, 4)
    rewards: Tile = Tile(128, 32, 32, 8, 3)


FEW = Tiles(Tile(16, 32, 32, 4, 3), Tile(16, 0, 32, 8, 3, early=True))
FEW_WITH_LESS = Tiles(
    Tile(16, 32, 32, 4, 3), Tile(16, 0, 32, 8, 2, early=True), rewards=Tile(32, 32, 32, 4, 3)
)  # fmt: skip
SMALL = Tiles(
    Tile(16, 32, 32, 4, 3), Tile(16, 0, 32, 8, 2), Tile(16, 32, 0, 4, 1), Tile(16, 32, 32, 4, 3), Tile(16, 32, 32, 4, 2)
)  # fmt: skip
SOME = Tiles(Tile(64, 32, 32, 4, 3), Tile(16, 0, 32, 8, 4))
MANY = Tiles(Tile(64, 32, 32, 4, 3), Tile(128, 0, 32, 8, 3))
SHORT_FEW = Tiles(Tile(16, 32, 32, 4, 3), Tile(16, 0, 64, 8, 3, early=True))
SHORT_SOME = Tiles(Tile(64, 32, 64, 4, 3), Tile(16, 0, 64, 8, 3, early=True))
SHORT_MANY = Tiles(Tile(128, 64, 32, 8, 3), Tile(32, 0, 64, 4, 3))
TABLE: dict[torch.dtype, list[tuple[float, tuple[Tiles, ...]]]] = {
    torch.float32: [
        (256, (FEW, FEW_WITH_LESS, SMALL)),
        (4096, (SOME, SMALL)),
        (math.inf, (MANY, SOME, SMALL)),
    ],
    torch.bfloat16: [
        (256, (SHORT_FEW, SMALL)),
        (4096, (SHORT_SOME, SMALL)),
        (math.inf, (SHORT_MANY, SMALL)),
    ],
}
"""For the type of products and up to so many rows, what to try; the first that works is taken. The first ones are the
fastest of those measured on an H200 (results/speed/gpu.csv), the others are for less shared memory: in float32 an A100
takes the second for up to 256 rows and for more than 4096, which nobody has timed there. In `stoch`, 64 rows or more
take a warp for 16 rows each: with more of them Triton 3.6 writes beyond a program's shared memory."""


SWITCH = "PLANET_TRITON"
"""Of the environment: 0 keeps torch's operations everywhere."""


def may_run(device: torch.device) -> bool:
    """Return whether this is a GPU for which the kernels are written, the A100 and later ones, and they are wanted."""
    wanted = os.environ.get(SWITCH, "1") != "0"
    return wanted and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def give_up(what: str, device: torch.device, consequence: str, error: Exception) -> None:
    """Warn that torch's operations remain, whatever is wrong with compiler, driver or card.

    Raises:
        RuntimeError: the attempt has spoilt the device for this process, torch's operations included.
    """
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        raise RuntimeError(
            f"{what} broke {device} for this process ({str(error).splitlines()[0]}); start again with {SWITCH}=0 in "
            f"the environment, which keeps torch's operations"
        ) from error
    warnings.warn(f"no {what} on {device}, {consequence}: {error}", stacklevel=3)


def tiles_for(
    device: torch.device,
    sizes: tuple[int, int, int],
    rows: int,
    dtype: torch.dtype = torch.float32,
    *,
    gradient: bool = False,
) -> Tiles | None:
    """Return with which tiles the kernels run on this device for hidden, deter, stoch and so many rows, with products
    of this type and backwards, too, or not; None where torch's operations are to be used: on CPUs, on GPUs without TF32
    (before the A100), and where Triton does not work. Tried once, not within a recording, since compiling waits for the
    device."""
    if dtype not in TABLE or not may_run(device):
        return None
    wanted = next(tiles for most, tiles in TABLE[dtype] if rows <= most)
    with torch.cuda.device(device):  # Triton takes the current one
        return _working(device, sizes, wanted, dtype, gradient, _precision())


@functools.cache
def _working(
    device: torch.device,
    sizes: tuple[int, int, int],
    choices: tuple[Tiles, ...],
    dtype: torch.dtype,
    gradient: bool,
    precision: str,
) -> Tiles | None:
    def attempt(tiles: Tiles) -> None:
        _try(device, sizes, tiles, dtype)
        if gradient:
            _try_gradient(device, sizes, tiles)

    return _first_that_works(attempt, choices, device, "fused kernels", "planning and updates take longer")


def _first_that_works(
    attempt: Callable[[Tiles], None], choices: tuple[Tiles, ...], device: torch.device, what: str, consequence: str
) -> Tiles | None:
    """A device on which they should run and do not is warned of; that one has less shared memory than another, for
    which there are further choices, is none to warn of."""
    for tiles in choices:
        try:
            with torch.no_grad(), torch.autocast(device.type, enabled=False):  # callers may shorten torch's side of it
                attempt(tiles)
        except Exception as error:
            if "out of resource" not in str(error) or tiles is choices[-1]:
                give_up(f"{what} of {tiles}", device, consequence, error)
        else:
            return tiles
    return None


def _numbers(device: torch.device) -> Callable[..., Tensor]:
    g = torch.Generator(device).manual_seed(0)

    def numbers(*shape: int, scale: float = 1.0) -> Tensor:
        return (2 * torch.rand(shape, generator=g, device=device) - 1) * scale

    return numbers


def _weights(numbers: Callable[..., Tensor], sizes: tuple[int, int, int]) -> tuple[Cell, Head, Tensor]:
    """A cell, a head and w_stoch."""
    hidden, deter, stoch = sizes
    cell = Cell(
        numbers(3 * deter, hidden, scale=hidden**-0.5), numbers(3 * deter, deter, scale=deter**-0.5),
        numbers(3 * deter), numbers(3 * deter),
    )  # fmt: skip
    head = Head(
        numbers(hidden, deter, scale=deter**-0.5), numbers(2 * stoch, hidden, scale=hidden**-0.5), numbers(2 * stoch),
        Options(F.elu, 0.1, 0.0, False),
    )  # fmt: skip
    return cell, head, numbers(hidden, stoch, scale=stoch**-0.5)


def _try(device: torch.device, sizes: tuple[int, int, int], tiles: Tiles, dtype: torch.dtype = torch.float32) -> None:
    """Raise an error unless the kernels agree with torch on a few rows."""
    numbers, (hidden, deter, stoch), rows = _numbers(device), sizes, tiles.deter.rows + 3
    cell, head, w_stoch = _weights(numbers, sizes)
    w_action = numbers(hidden, 3)
    x, h, known, noise = numbers(rows, hidden), numbers(rows, deter), numbers(rows, hidden), numbers(1, rows, stoch)
    action, out, s, following = numbers(rows, 3), numbers(rows, deter), numbers(rows, stoch), numbers(rows, hidden)
    short, short_head = shortened(cell, head, dtype)
    x, following, s, out = (t.to(dtype) for t in (x, following, s, out))
    carry = None if dtype is torch.float32 else (h, torch.empty_like(h))

    next_deter(x, h.to(dtype), short, out=out, tiles=tiles, carry=carry)
    then = Following(known, w_stoch.to(dtype), following, action, w_action.to(dtype))
    next_stoch(out, known, short_head, noise, out=s, following=then, tiles=tiles)

    expected = torch.gru_cell(x.float(), h, cell.w_ih, cell.w_hh, cell.b_ih, cell.b_hh)
    mean, raw = F.linear(F.elu(known + expected @ head.w_deter.T), head.w_out, head.b_out).chunk(2, dim=1)
    sample = mean + (F.softplus(raw) + 0.1) * noise[0]
    # TF32 keeps ten bits of what is multiplied, bfloat16 seven.
    times = 1 if dtype is torch.float32 else 8
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=times * 1e-2)
    torch.testing.assert_close(s.float(), sample, rtol=0, atol=times * 3e-2)
    expected = F.elu(known + sample @ w_stoch.T + action @ w_action.T)
    torch.testing.assert_close(following.float(), expected, rtol=0, atol=times * 5e-2)


def _try_gradient(device: torch.device, sizes: tuple[int, int, int], tiles: Tiles) -> None:
    """Raise an error unless the kernels backwards agree with torch."""
    numbers, (hidden, deter, stoch), rows = _numbers(device), sizes, tiles.to_deter.rows + 3
    cell, head, w_stoch = _weights(numbers, sizes)
    later, g_h = (numbers(rows, hidden), numbers(rows, deter, scale=0.3)), numbers(rows, deter)
    g_output, slope_s, slope_p = numbers(rows, 2, stoch), numbers(rows, 2, stoch), numbers(rows, hidden)
    slopes, g_p, g_cell, g_pair = (
        numbers(rows, 5, deter), numbers(rows, hidden), numbers(rows, 5, deter), numbers(rows, 2, stoch)
    )  # fmt: skip
    g_x, g_h_before = numbers(rows, hidden), numbers(rows, deter)

    pair = g_output + (later[0] @ w_stoch)[:, None] * slope_s
    expected_p = (pair.flatten(1) @ head.w_out) * slope_p
    expected = (g_h + later[1] + expected_p @ head.w_deter)[:, None] * slopes
    gradient_to_deter(
        later, w_stoch, g_h, g_output, slope_s, head, slope_p, slopes, g_pair=g_pair, g_p=g_p, g_cell=g_cell,
        tiles=tiles,
    )  # fmt: skip
    scale = expected.abs().max()
    gradient_of_cell(g_cell, cell.w_ih, cell.w_hh, slope_p, g_x=g_x, g_h=g_h_before, tiles=tiles)
    whole = expected.flatten(1)
    expected_x = (whole[:, : 3 * deter] @ cell.w_ih) * slope_p
    expected_h = whole[:, deter : 4 * deter] @ cell.w_hh + whole[:, 4 * deter :]
    for found, wanted in ((g_pair, pair), (g_p, expected_p), (g_cell, expected), (g_x, expected_x),
                          (g_h_before, expected_h)):  # fmt: skip
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-2 * float(max(scale, wanted.abs().max())))


def shortened(cell: Cell, head: Head, dtype: torch.dtype) -> tuple[Cell, Head]:
    """Return both with their matrices in `dtype`; float32 ones are the given."""
    return (
        Cell(cell.w_ih.to(dtype), cell.w_hh.to(dtype), cell.b_ih, cell.b_hh),
        Head(head.w_deter.to(dtype), head.w_out.to(dtype), head.b_out, head.options),
    )


def next_deter(
    x: Float[Tensor, "row hidden"],
    h: Float[Tensor, "row deter"],
    cell: Cell,
    *,
    out: Float[Tensor, "row deter"],
    tiles: Tiles,
    carry: tuple[Float[Tensor, "row deter"], Float[Tensor, "row deter"]] | None = None,
    save: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Write the GRU's next h to `out`; both h may be slices of longer rows.

    x, h and out have the type of the matrices.

    Args:
        carry: the same h as float32, and memory for the next one, which may be the same; needed where h is shorter.
        save: memory for the gates [R, 2 * D], the candidate [R, D] and what h gave to it [R, D].
    """
    from planet import triton_kernels

    (rows, hidden), deter, dtype = x.shape, h.shape[1], cell.w_ih.dtype
    if carry is None and dtype is not torch.float32:
        raise ValueError(f"fused kernels carry h from step to step as float32, not as {dtype}: give `carry`")
    before, carried = carry or (h, out)
    _check_rows(h, out, dtype=dtype)
    _check_rows(before)
    _check_whole(x, cell.w_ih, cell.w_hh, dtype=dtype)
    _check_whole(cell.b_ih, cell.b_hh, *(save or ()), *(carry[1:] if carry else ()))
    gates, new, new_h = save or (out, out, out)
    tile = tiles.deter
    kernel: Any = triton_kernels.next_deter
    kernel[(-(-rows // tile.rows), -(-deter // tile.units))](
        x, h, before, cell.w_ih, cell.w_hh, cell.b_ih, cell.b_hh, out, carried, gates, new, new_h, rows,
        h_stride=h.stride(0), before_stride=before.stride(0), out_stride=out.stride(0), hidden=hidden, deter=deter,
        CARRY=carry is not None, SAVE=save is not None, ROWS=tile.rows, UNITS=tile.units,
        INPUTS=tile.inputs, PRECISION=_precision(), num_warps=tile.warps, num_stages=tile.stages,
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

    h, out and following.x have the type of the matrices.

    Args:
        known: what adds to the dense layer besides h: its bias, what the embedding gives.
        noise: the rows of each environment; an environment's numbers may lie anywhere.
        save: memory for the dense layer [R, X], (mean, raw) [R, 2 * S] and the deviation [R, S].
    """
    from planet import triton_kernels

    (rows, deter), hidden, stoch, options = h.shape, known.shape[1], out.shape[1], head.options
    dtype, tile = head.w_deter.dtype, tiles.stoch
    _check_rows(h, head.w_deter, out, dtype=dtype)
    _check_rows(known)
    _check_whole(head.w_out, dtype=dtype)
    _check_whole(head.b_out, noise[0], *(save or ()))
    p, output, std = save or (out, out, out)
    # Memory that the kernel is given and does not touch where nothing follows, or no action.
    known_x, w_stoch, x, action, w_action, actions = known, head.w_deter, out, known, head.w_deter, 0
    if following is not None:
        known_x, w_stoch, x = following.known, following.w_stoch, following.x
        _check_rows(known_x)
        _check_rows(w_stoch, dtype=dtype)
        _check_whole(x, dtype=dtype)
        if following.action is not None and following.w_action is not None:
            action, w_action, actions = following.action, following.w_action, following.action.shape[1]
            _check_rows(action)
            _check_rows(w_action, dtype=dtype)
    kernel: Any = triton_kernels.next_stoch
    kernel[(-(-rows // tile.rows),)](
        h, known, head.w_deter, head.w_out, head.b_out, noise, out, known_x, w_stoch, action, w_action, x, p, output,
        std, rows, noise.shape[1], noise.stride(0), options.fixed_std or options.min_std,
        h_stride=h.stride(0), known_stride=known.stride(0), w_deter_stride=head.w_deter.stride(0),
        s_stride=out.stride(0), known_x_stride=known_x.stride(0), w_stoch_stride=w_stoch.stride(0),
        action_stride=action.stride(0), w_action_stride=w_action.stride(0),
        hidden=hidden, deter=deter, stoch=stoch, actions=actions, ELU=options.activation is F.elu,
        FIXED=bool(options.fixed_std), MEAN_ONLY=options.mean_only, SAVE=save is not None, NEXT=following is not None,
        EARLY=tile.early, ROWS=tile.rows, INPUTS=tile.inputs, WHOLE_HIDDEN=_whole(hidden), WHOLE_STOCH=_whole(stoch),
        WHOLE_ACTIONS=_whole(actions), PRECISION=_precision(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def first_input(
    known: Float[Tensor, "env hidden"],
    action: Float[Tensor, "row action"],
    w_action: Float[Tensor, "hidden action"],
    activation: Callable[[Tensor], Tensor],
    *,
    out: Float[Tensor, "row hidden"],
) -> None:
    """Write what the GRU takes in first, activation(known + w_action action); rows of an environment follow each
    other."""
    from planet import triton_kernels

    (rows, hidden), actions, tile_rows = out.shape, action.shape[1], 16
    _check_rows(action)
    _check_rows(w_action, dtype=out.dtype)
    _check_whole(known)
    _check_whole(out, dtype=out.dtype)
    kernel: Any = triton_kernels.first_input
    kernel[(-(-rows // tile_rows),)](
        known, action, w_action, out, rows, rows // len(known), action_stride=action.stride(0),
        w_action_stride=w_action.stride(0), hidden=hidden, actions=actions, ELU=activation is F.elu, ROWS=tile_rows,
        WHOLE_HIDDEN=_whole(hidden), WHOLE_ACTIONS=_whole(actions), PRECISION=_precision(), num_warps=4,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rewards:
    """The layers of a reward head that has two dense ones."""

    w_1: Float[Tensor, "hidden width"]
    b_1: Float[Tensor, " hidden"]
    w_2: Float[Tensor, "hidden hidden"]
    b_2: Float[Tensor, " hidden"]
    w_3: Float[Tensor, "1 hidden"]
    b_3: Float[Tensor, " 1"]
    activation: Callable[[Tensor], Tensor]


def rewards(features: Float[Tensor, "row width"], head: Rewards, *, out: Float[Tensor, " row"], tiles: Tiles) -> None:
    """Write mean rewards: three products, of which nothing between them goes to memory. Features have the type of the
    matrices."""
    from planet import triton_kernels

    (rows, width), hidden, tile = features.shape, len(head.w_2), tiles.rewards
    _check_whole(features, head.w_1, head.w_2, head.w_3, dtype=head.w_1.dtype)
    _check_whole(head.b_1, head.b_2, head.b_3, out)
    kernel: Any = triton_kernels.rewards
    kernel[(-(-rows // tile.rows),)](
        features, head.w_1, head.b_1, head.w_2, head.b_2, head.w_3, head.b_3, out, rows, width=width, hidden=hidden,
        ELU=head.activation is F.elu, ROWS=tile.rows, UNITS=tile.units, INPUTS=tile.inputs, WHOLE=_whole(hidden),
        PRECISION=_precision(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def tiles_for_rewards(
    device: torch.device, width: int, hidden: int, tiles: Tiles, dtype: torch.dtype = torch.float32
) -> Tiles | None:
    """Return with which tiles `rewards` runs for features of this width and layers of `hidden` units: these, else
    smaller ones; None where torch's operations are to be used."""
    choices = tuple(dict.fromkeys((tiles, FEW_WITH_LESS, SMALL)))
    return _working_rewards(device, width, hidden, choices, dtype, _precision())


@functools.cache
def _working_rewards(
    device: torch.device, width: int, hidden: int, choices: tuple[Tiles, ...], dtype: torch.dtype, precision: str
) -> Tiles | None:
    def attempt(tiles: Tiles) -> None:
        _try_rewards(device, width, hidden, tiles, dtype)

    return _first_that_works(attempt, choices, device, "fused rewards", "planning takes longer")


def _try_rewards(
    device: torch.device, width: int, hidden: int, tiles: Tiles, dtype: torch.dtype = torch.float32
) -> None:
    """Raise an error unless the kernel agrees with torch on a few rows."""
    numbers, rows = _numbers(device), tiles.rewards.rows + 3
    w_1, w_2 = (numbers(hidden, size, scale=size**-0.5).to(dtype) for size in (width, hidden))
    w_3 = numbers(1, hidden, scale=hidden**-0.5).to(dtype)
    b_1, b_2, b_3 = numbers(hidden), numbers(hidden), numbers(1)
    features, found = numbers(rows, width).to(dtype), numbers(rows)

    rewards(features, Rewards(w_1, b_1, w_2, b_2, w_3, b_3, F.elu), out=found, tiles=tiles)

    p = F.elu(F.linear(F.elu(F.linear(features.float(), w_1.float(), b_1)), w_2.float(), b_2))
    expected = F.linear(p, w_3.float(), b_3)[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2 if dtype is torch.float32 else 8e-2)


AT_MOST = 4096
"""Candidates that a program of `refit` can hold."""


def refits(device: torch.device, candidates: int) -> bool:
    """Return whether `refit` is to be used for so many candidates. Tried once, not within a recording."""
    return candidates <= AT_MOST and may_run(device) and _refits(device, candidates)


@functools.cache
def _refits(device: torch.device, candidates: int) -> bool:
    try:
        with torch.cuda.device(device):
            _try_refit(device, candidates)
    except Exception as error:
        give_up("fused refit", device, "planning takes longer", error)
        return False
    return True


def _try_refit(device: torch.device, candidates: int) -> None:
    """Raise an error unless it agrees with torch."""
    numbers, elites = _numbers(device), max(1, candidates // 3)
    proposals, noise = numbers(2, candidates, 3, 7).clamp(-0.8, 0.9), numbers(2, candidates, 3, 7, scale=2.0)
    scores = numbers(2, candidates)
    best = scores.topk(elites, dim=1).indices[:, :, None, None].expand(-1, -1, 3, 7)
    variance, expected = torch.var_mean(proposals.gather(1, best), dim=1, correction=0)
    deviation = (variance + 1e-6).sqrt().clamp(min=0.1)
    mean, std = refit(proposals, scores, elites=elites, min_std=0.1, noise=noise)
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(std, deviation, rtol=1e-4, atol=1e-4)
    following = torch.addcmul(expected[:, None], deviation[:, None], noise).clamp(-1, 1)
    torch.testing.assert_close(proposals, following, rtol=1e-3, atol=1e-3)


def refit(
    proposals: Float[Tensor, "env candidate horizon action"],
    scores: Float[Tensor, "env candidate"],
    *,
    elites: int,
    min_std: float,
    noise: Float[Tensor, "env candidate horizon action"] | None,
) -> tuple[Float[Tensor, "env horizon action"], Float[Tensor, "env horizon action"]]:
    """Return mean and deviation of the `elites` best proposals, as `planet.cem.search` has them; with `noise` the next
    proposals take the place of these. Two kernels where torch has ten."""
    from planet import triton_kernels

    envs, candidates, *shape = proposals.shape
    _check_whole(proposals, scores, *(() if noise is None else (noise[0],)))
    chosen, mean = torch.empty_like(scores), proposals.new_empty(envs, *shape)
    std, rows, width, columns = torch.empty_like(mean), 32, mean[0].numel(), max(2, min(8, 8192 // _whole(candidates)))
    best: Any = triton_kernels.best
    best[(envs, -(-candidates // rows))](
        scores, chosen, candidates, elites, ROWS=rows, WHOLE=_whole(candidates), num_warps=8
    )
    kernel: Any = triton_kernels.refit
    kernel[(envs, -(-width // columns))](
        proposals, chosen, proposals if noise is None else noise, mean, std, candidates, elites, min_std,
        0 if noise is None else noise.stride(0), width=width, NEXT=noise is not None, COLUMNS=columns,
        WHOLE=_whole(candidates), num_warps=8,
    )  # fmt: skip
    return mean, std


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
    g_pair: Float[Tensor, "row 2 stoch"],
    g_p: Float[Tensor, "row hidden"],
    g_cell: Float[Tensor, "row 5 deter"],
    tiles: Tiles,
) -> None:
    """`next_stoch` backwards, and the nonlinear functions of the GRU: write `g_pair`, which is `g_output` and what
    comes back through s, `g_p` and `g_cell`.

    later: gradients of the next step's x [R, X] and of h [R, D] from there; None at the last step.
    """
    from planet import triton_kernels

    (rows, hidden), deter, stoch, tile = slope_p.shape, g_h.shape[1], g_output.shape[2], tiles.to_deter
    _check_rows(w_stoch, head.w_deter)
    _check_whole(g_h, g_output, slope_s, head.w_out, slope_p, slopes, g_pair, g_p, g_cell, *(later or ()))
    g_x_later, g_h_later = later or (g_h, g_h)
    kernel: Any = triton_kernels.gradient_to_deter
    kernel[(-(-rows // tile.rows), -(-deter // tile.units))](
        g_x_later, w_stoch, g_h_later, g_h, g_output, slope_s, head.w_out, slope_p, head.w_deter, slopes, g_pair, g_p,
        g_cell, rows, w_stoch_stride=w_stoch.stride(0), w_deter_stride=head.w_deter.stride(0),
        hidden=hidden, deter=deter, stoch=stoch, LATER=later is not None, ROWS=tile.rows, UNITS=tile.units,
        WHOLE_HIDDEN=_whole(hidden), WHOLE_STOCH=_whole(stoch), PRECISION=_precision(), num_warps=tile.warps,
        num_stages=tile.stages,
    )  # fmt: skip


def gradient_of_cell(
    g_cell: Float[Tensor, "row 5 deter"],
    w_x: Float[Tensor, "deter3 hidden"],
    w_hh: Float[Tensor, "deter3 deter"],
    slope_x: Float[Tensor, "row hidden"],
    *,
    g_x: Float[Tensor, "row hidden"],
    g_h: Float[Tensor, "row deter"],
    tiles: Tiles,
) -> None:
    """The GRU's products backwards: write `g_x`, and `g_h` of the h before.

    w_x: `w_ih` in the order candidate, reset, update.
    """
    from planet import triton_kernels

    (rows, hidden), deter, tile = slope_x.shape, g_h.shape[1], tiles.of_cell
    _check_whole(g_cell, w_x, w_hh, slope_x, g_x, g_h)
    kernel: Any = triton_kernels.gradient_of_cell
    kernel[(-(-rows // tile.rows), -(-max(hidden, deter) // tile.units), 2)](
        g_cell, w_x, w_hh, slope_x, g_x, g_h, rows, hidden=hidden, deter=deter, ROWS=tile.rows, UNITS=tile.units,
        INPUTS=tile.inputs, PRECISION=_precision(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _whole(size: int) -> int:
    """A power of two, and what a product takes at least."""
    return max(16, 1 << (size - 1).bit_length())


def _check_rows(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> None:
    for tensor in tensors:
        if tensor.dtype is not dtype or tensor.stride(1) != 1:
            raise ValueError(
                f"fused kernels take {_name(dtype)} rows without gaps here, got {_name(tensor.dtype)} with strides "
                f"{tensor.stride()}"
            )


def _check_whole(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> None:
    for tensor in tensors:
        if tensor.dtype is not dtype or not tensor.is_contiguous():
            raise ValueError(
                f"fused kernels take contiguous {_name(dtype)} memory here, got {_name(tensor.dtype)} "
                f"{list(tensor.shape)} with strides {tensor.stride()}"
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

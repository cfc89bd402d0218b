"""The elementwise parts of one step of the RSSM as one GPU kernel each, where torch starts three or four.

On a GPU the recurrence takes as long as its kernels take to start. The kernels are Triton's, which PyTorch for CUDA
brings along; where Triton is missing or cannot compile (it needs a C compiler), callers go on with torch's operations.
"""

from __future__ import annotations

import functools
import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

BLOCK = 512
"""Numbers that one program of a kernel takes: four of each of its 128 threads. Not measured."""


@functools.cache
def usable(device: torch.device) -> bool:
    """Return whether the kernels run on this device and give torch's numbers there. Tried once; not within a recording,
    since compiling waits for the device. A device on which they should run and do not is warned of."""
    if device.type != "cuda":
        return False
    try:
        _try(device)
    except Exception as error:  # whatever is wrong with compiler, driver or card: torch's operations remain
        warnings.warn(f"no fused kernels on {device}, planning and updates take longer: {error}", stacklevel=2)
        return False
    return True


def _try(device: torch.device) -> None:
    """Raise an error unless both kernels agree with torch on a few rows."""

    def rows(width: int, first: int = 0) -> Tensor:
        """Five columns of longer rows, of a length that no other's have."""
        return torch.linspace(-3, 3, 3 * width, device=device).view(3, width)[:, first : first + 5]

    reset, update, new, new_h, h, out, std = rows(12), rows(12, 6), rows(7, 1), rows(9, 2), rows(11), rows(8), rows(6)
    r, z = reset.sigmoid(), update.sigmoid()
    n = (new + r * new_h).tanh()
    cell(reset, update, new, new_h, h, out=out, save=True)
    for found, expected in ((out, torch.lerp(n, h, z)), (reset, r), (update, z), (new, n)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    sample(reset, update, h, out=out, min_std=0.1, std=std)
    torch.testing.assert_close(std, F.softplus(update) + 0.1, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, reset + std * h, rtol=1e-4, atol=1e-5)


def cell(
    reset: Float[Tensor, "row deter"],
    update: Float[Tensor, "row deter"],
    new: Float[Tensor, "row deter"],
    new_from_deter: Float[Tensor, "row deter"],
    h: Float[Tensor, "row deter"],
    *,
    out: Float[Tensor, "row deter"],
    save: bool,
) -> None:
    """Write a GRU's next h to `out`, given the products of its matrices: reset and update gate (slices of one memory)
    before their sigmoid, the candidate's from x and from h. All may be slices of longer rows, and no others.

    save: leave the gates in `reset` and `update` and the candidate in `new`.
    """
    from planet import triton_kernels

    _check_rows(reset, update, new, new_from_deter, h, out)
    rows, columns = out.shape
    triton_kernels.cell[_grid(out)](
        reset, update, new, new_from_deter, h, out, rows, reset.stride(0), new.stride(0), new_from_deter.stride(0),
        h.stride(0), out.stride(0), columns=columns, SAVE=save, BLOCK=BLOCK,
    )  # fmt: skip


def sample(
    mean: Float[Tensor, "row stoch"],
    raw: Float[Tensor, "row stoch"],
    noise: Float[Tensor, "row stoch"],
    *,
    out: Float[Tensor, "row stoch"],
    min_std: float,
    std: Float[Tensor, "row stoch"] | None = None,
) -> None:
    """Write mean + (softplus(raw) + min_std) * noise to `out` and, where given, the deviation to `std`.

    `mean` and `raw` are slices of one memory.
    """
    from planet import triton_kernels

    saved = out if std is None else std
    _check_rows(mean, raw, noise, out, saved)
    rows, columns = out.shape
    triton_kernels.sample[_grid(out)](
        mean, raw, noise, out, saved, rows, mean.stride(0), noise.stride(0), out.stride(0), saved.stride(0), min_std,
        columns=columns, SAVE=std is not None, BLOCK=BLOCK,
    )  # fmt: skip


def _grid(out: Tensor) -> tuple[int]:
    return (-(-out.numel() // BLOCK),)


def _check_rows(*tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.dtype is not torch.float32 or tensor.stride(1) != 1:
            raise ValueError(
                f"fused kernels take float32 rows without gaps, got {tensor.dtype} with strides {tensor.stride()}"
            )

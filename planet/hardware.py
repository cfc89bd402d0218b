"""What this machine offers and what `auto` in `[runtime]` means on it."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import torch

from planet import processor
from planet.config import check_device
from planet.gl import NO_GPU


def resolve_device(device: str, name: str = "runtime.device") -> torch.device:
    """Return the device a run uses: `auto` is the first visible GPU, else the CPU. Errors say what it was given by.

    Raises:
        ValueError: no device; a GPU is asked for and torch sees none, or not that many. `auto` asks for one where
            CUDA_VISIBLE_DEVICES names one, as a sweep and Slurm set it: days on a CPU would be no fallback.
    """
    check_device(name, device)
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        if named := named_gpus():
            raise ValueError(
                f"{name} is 'auto' and CUDA_VISIBLE_DEVICES is {named!r}, but torch {torch.__version__} sees "
                f"no GPU; ask python -m planet.doctor why, or set {name}=cpu to compute on the CPU"
            )
        return torch.device("cpu")
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return torch.device("cpu")
    index, count = int(number or 0), torch.cuda.device_count()
    if index >= count:
        raise ValueError(f"{name} is {device!r}, but torch {torch.__version__} sees {count} GPUs")
    return torch.device("cuda", index)


def named_gpus() -> str:
    """Return CUDA_VISIBLE_DEVICES where it names a GPU, else an empty string."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return "" if visible.split(",")[0].strip() in NO_GPU else visible


def has_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 matrix products run in hardware (on others they are slower than float32)."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return processor.has_bfloat16()


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return `float32` or `bfloat16`."""
    if precision != "auto":
        return precision
    return "bfloat16" if has_bfloat16(device) else "float32"


def use(device: torch.device) -> None:
    """Make a GPU this process' own: the current one, with TF32 for float32 matrix products and convolutions, and with
    convolutions that give the same bits each time. On a CPU nothing changes."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # graphs are recorded and memory is counted on the current one
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        # Else cuDNN may choose weight gradients that add up in whatever order threads arrive, and a resumed run would
        # not be the unbroken one. On an H200 that cost 1.1 of an update's 14.4 ms (results/speed/README.md).
        torch.backends.cudnn.deterministic = True


def resolve_threads(threads: int, most: int = 8) -> int:
    """Return the number of torch threads: as asked, else OMP_NUM_THREADS, else the cores this process may use.

    At most `most` of those cores: eight is a choice, not measured. (Rollouts of the simulator take more.)
    """
    if threads:
        return threads
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return min(most, len(os.sched_getaffinity(0)))


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_NEVER = 2**30


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next allocation instead of giving it back to the system each time.

    Pictures and their gradients are megabytes that come and go with every update: fetching their pages anew takes up to
    a fifth of an update's time on a CPU. No effect where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_MMAP_THRESHOLD, _NEVER)
    mallopt(_TRIM_THRESHOLD, _NEVER)


def describe(device: torch.device) -> dict[str, str]:
    """Return names of processor and accelerator for a run's record."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    found = {"cpu": model, "bfloat16": str(has_bfloat16(device)).lower()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = properties.name
        found["gpu_memory_gib"] = f"{properties.total_memory / 2**30:.0f}"
    return found

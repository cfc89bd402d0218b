"""Two ways to do one thing timed in turns, and how fast this machine multiplies matrices, or writes, at that moment.

With one torch thread (`OMP_NUM_THREADS=1`) processor time is measured, which other processes disturb little; with more
it is wall time, which needs an idle machine. What waits for the disk is always measured in wall time.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from planet import processor

Timer = Callable[[], float]
TIMER: Timer = time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def seconds(action: Callable[[], object], timer: Timer = TIMER) -> float:
    """Return the time one call takes."""
    begin = timer()
    action()
    return timer() - begin


def in_turns(
    benchmark: Any,
    fast: Callable[[], object],
    plain: Callable[[], object],
    *,
    rounds: int,
    warmup: int = 1,
    timer: Timer = TIMER,
) -> float | None:
    """Benchmark `fast`, one call of `plain` before each of its `rounds` calls, and return its part of the plain time.

    That is the median of the neighbours' ratios, since a busy machine may be half as fast for a while. `timer`: that of
    the benchmark.

    None where benchmarks are disabled: then `fast` is called once and `plain` never.
    """
    of_plain: list[float] = []
    calls = itertools.count(-warmup)

    def setup() -> None:
        if benchmark.enabled and next(calls) >= 0:
            of_plain.append(seconds(plain, timer))

    benchmark.pedantic(fast, setup=setup, rounds=rounds, warmup_rounds=warmup)
    if not benchmark.enabled:
        return None
    pairs = zip(benchmark.stats.stats.data, of_plain, strict=True)
    ratio = statistics.median(ours / plains for ours, plains in pairs)
    benchmark.extra_info |= {
        "milliseconds": round(1000 * benchmark.stats.stats.median, 2),
        "plain_milliseconds": round(1000 * statistics.median(of_plain), 2),
        "of_plain": round(ratio, 3),
    }
    return ratio


def record_limit(benchmark: Any, operations: float) -> None:
    """Note how the benchmark's time compares with `operations` (additions and multiplications) done as one large matrix
    product: `of_float32_limit` 0.5 is half the rate that this machine reaches there. (No bfloat16 where it is emulated:
    one product would take minutes.)"""
    rate = operations / benchmark.stats.stats.median
    for dtype in (torch.float32, *[torch.bfloat16] * processor.has_bfloat16()):
        limit, name = matrix_rate(dtype), str(dtype).removeprefix("torch.")
        benchmark.extra_info[f"{name}_limit_gflops"] = round(limit / 1e9)
        benchmark.extra_info[f"of_{name}_limit"] = round(rate / limit, 3)


def record_disk_limit(benchmark: Any, folder: Path, size: int, way: str) -> None:
    """Note how the benchmark's time compares with that of `size` bytes alone: to `write` them to a file in `folder` and
    wait until the disk has them, or to `read` them (from memory, which a file just written is still in)."""
    path, data = folder / "limit", os.urandom(size)

    def write() -> None:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    write()
    ways: dict[str, Callable[[], object]] = {"write": write, "read": path.read_bytes}
    least = statistics.median(seconds(ways[way], time.perf_counter) for _ in range(5))
    benchmark.extra_info |= {
        "megabytes": round(size / 1e6, 1),
        f"disk_{way}_megabytes_per_second": round(size / least / 1e6),
        f"of_disk_{way}_limit": round(least / benchmark.stats.stats.median, 3),
    }


def matrix_rate(dtype: torch.dtype, size: int = 2048, repeats: int = 5) -> float:
    """Return the operations per second of one large matrix product: the best of a few."""
    a, b = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    best = min(seconds(lambda: a @ b) for _ in range(repeats + 1))
    return 2 * size**3 / best


def count_operations(action: Callable[[], object]) -> int:
    """Return the additions and multiplications of all matrix products and convolutions in `action`."""
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()

"""Sampling a paper-size batch (50 chunks of 50 frames) from the replay, beside the plain way: one index array.

    make bench    or    pytest benchmarks/speed/test_replay.py --benchmark-only -o addopts=

Copying memory is all there is to sampling, so the machine's limit is a plain copy of as many bytes.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import pytest

from benchmarks.speed.beside import in_turns, seconds
from planet.replay import Batch, Replay
from planet.rollout import Episode

BATCH, CHUNK = 50, 50


def moving_episode(seed: int, frames: int = 501) -> Episode:
    """Pictures of which a part moves: a still, detailed background and a noisy square."""
    rng = np.random.default_rng(seed)
    obs = np.repeat(rng.integers(0, 256, (1, 3, 64, 64), np.uint8), frames, axis=0)
    obs[:, :, 20:40, 20:40] = rng.integers(0, 256, (frames, 3, 20, 20), np.uint8)
    return Episode(obs, np.zeros((frames, 6), np.float32), np.zeros(frames, np.float32))


@pytest.mark.benchmark(timer=time.process_time)
def test_sample_a_paper_size_batch(benchmark: Any) -> None:
    episodes = 60  # 350 MiB: far beyond any cache, as the real one is
    replay = Replay(frames=episodes * 501, episodes=episodes, action_size=6)
    for seed in range(episodes):
        replay.add(moving_episode(seed))
    rng = np.random.default_rng(0)

    def with_one_index_array() -> tuple[np.ndarray, ...]:
        index = replay.starts(BATCH, CHUNK, rng)[:, None] + np.arange(CHUNK)
        return replay._obs[index], replay._action[index], replay._reward[index]

    def copy() -> np.ndarray:
        return replay._obs[: BATCH * CHUNK].copy()

    def sample() -> Batch:
        return replay.sample(BATCH, CHUNK, rng)

    assert sample().obs.shape == (BATCH, CHUNK, 3, 64, 64)
    ratio = in_turns(benchmark, sample, with_one_index_array, rounds=60, warmup=5, timer=time.process_time)
    if ratio is not None:
        ours = benchmark.stats.stats.median
        copied = statistics.median(seconds(copy, time.process_time) for _ in range(30))
        benchmark.extra_info |= {
            "copy_gigabytes_per_second": round(copy().nbytes / copied / 1e9, 1),
            "of_copy_limit": round(copied / ours, 3),
        }
        assert ours < 0.05, f"a batch takes {1000 * ours:.1f} ms; an update takes at least that on any CPU"

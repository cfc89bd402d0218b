"""Sampling a paper-size batch (50 chunks of 50 frames) from the replay, beside the plain way: one index array.

    make bench    or    pytest benchmarks/speed/test_replay.py --benchmark-only -o addopts=

Also what an episode costs on its way to the disk and back. Copying memory is all there is to sampling, so its rate is
given beside that of a plain copy of the same bytes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planet.episode_store import EpisodeStore
from planet.replay import Replay
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

    batch = benchmark.pedantic(replay.sample, args=(BATCH, CHUNK, rng), rounds=100, warmup_rounds=5)

    assert batch.obs.shape == (BATCH, CHUNK, 3, 64, 64)
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info |= {
            "of_plain_index_array": round(seconds / median_seconds(with_one_index_array), 2),
            "times_a_plain_copy": round(seconds / median_seconds(copy), 2),
            "gigabytes_per_second": round(batch.obs.nbytes / seconds / 1e9, 1),
        }
        assert seconds < 0.05, f"a batch takes {1000 * seconds:.1f} ms; an update takes at least that on any CPU"


def median_seconds(function: Callable[[], object]) -> float:
    """Processor time of one call."""
    times: list[float] = []
    for _ in range(50):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return statistics.median(times[5:])


@pytest.mark.parametrize("way", ["append", "load"])
def test_store_an_episode(benchmark: Any, way: str, tmp_path: Path) -> None:
    store, episode = EpisodeStore(tmp_path), moving_episode(0)
    store.append(episode)

    if way == "append":
        benchmark.pedantic(store.append, args=(episode,), rounds=10, warmup_rounds=1)
    else:
        benchmark.pedantic(lambda: next(store.load()), rounds=10, warmup_rounds=1)
    if benchmark.stats is not None:
        rate = episode.obs.nbytes / benchmark.stats.stats.median / 1e6
        benchmark.extra_info |= {"megabytes_per_second": round(rate)}

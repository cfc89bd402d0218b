from __future__ import annotations

import numpy as np
import pytest

from planet import replay as replay_module
from planet.counting_env import CountingEnv, read
from planet.replay import Replay, available_memory, memory_bytes
from planet.rollout import Episode, random_policy, run_episodes


def numbered_episode(number: int, steps: int) -> Episode:
    """An episode whose rewards name it and count: 1000 * number + t."""
    reward = (1000 * number + np.arange(steps + 1)).astype(np.float32)
    return Episode(np.zeros((steps + 1, 3, 64, 64), np.uint8), np.zeros((steps + 1, 1), np.float32), reward)


def filled(lengths: list[int]) -> Replay:
    replay = Replay(frames=sum(lengths) + len(lengths), episodes=len(lengths), action_size=1)
    for number, steps in enumerate(lengths):
        replay.add(numbered_episode(number, steps))
    return replay


def test_time_stays_aligned_from_environment_to_batch() -> None:
    envs = [CountingEnv(action_size=2, agent_steps=steps) for steps in (260, 30, 77)]
    replay = Replay(frames=260 + 30 + 77 + 3, episodes=3, action_size=2)
    for seed, env in enumerate(envs):
        replay.add(run_episodes([env], random_policy(np.random.default_rng(seed), 2), [seed])[0])

    batch = replay.sample(40, 12, np.random.default_rng(0))

    assert batch.obs.shape == (40, 12, 3, 64, 64)
    assert batch.obs.dtype == np.uint8
    for b in range(40):
        readings = [read(picture, 2) for picture in batch.obs[b]]
        assert len({reading.seed for reading in readings}) == 1
        start = readings[0].time
        assert [reading.time for reading in readings] == list(range(start, start + 12))
        np.testing.assert_array_equal(batch.reward[b], np.arange(start, start + 12))
        for t, reading in enumerate(readings):
            np.testing.assert_allclose(reading.action, batch.action[b, t], rtol=0, atol=0.5 / 127 + 1e-6)


def test_sampling_is_uniform_over_episodes_then_over_starts() -> None:
    lengths = [9, 5, 14]  # decisions; 10, 6 and 15 frames
    chunk, draws = 5, 60_000
    replay = filled(lengths)

    drawn = replay.starts(draws, chunk, np.random.default_rng(1))

    first_frames = np.array([0, 10, 16])
    episode = np.searchsorted(first_frames, drawn, side="right") - 1
    start = drawn - first_frames[episode]
    statistic, cells = 0.0, 0
    for number, steps in enumerate(lengths):
        starts = steps + 1 - chunk + 1  # the last chunk ends at the last frame
        counts = np.bincount(start[episode == number], minlength=starts)
        assert len(counts) == starts  # never beyond the last start ...
        assert counts.min() > 0  # ... which is reached, as is the first
        expected = draws / 3 / starts
        statistic += ((counts - expected) ** 2 / expected).sum()
        cells += starts
    assert cells == 6 + 2 + 11
    assert statistic < 42.3  # chi-square, 18 degrees of freedom, p = 0.001


def test_no_chunk_crosses_the_end_of_an_episode() -> None:
    replay = filled([4, 4, 4, 4])

    reward = replay.sample(500, 4, np.random.default_rng(2)).reward

    assert (np.diff(reward, axis=1) == 1).all()  # neighbours of different episodes differ by a thousand
    assert set(reward[:, 0].astype(int) % 1000) == {0, 1}


def test_a_chunk_as_long_as_the_episode_has_one_start() -> None:
    reward = filled([6]).sample(20, 7, np.random.default_rng(0)).reward

    np.testing.assert_array_equal(reward, np.tile(np.arange(7), (20, 1)))


def test_the_batch_is_a_function_of_the_generator_and_owns_its_memory() -> None:
    replay = filled([20, 20])
    first, again, other = (replay.sample(16, 6, np.random.default_rng(seed)).reward for seed in (4, 4, 5))

    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    first[:] = -1
    assert replay.sample(16, 6, np.random.default_rng(4)).reward.min() >= 0


def test_starts_are_what_sample_draws() -> None:
    replay = filled([20, 9])

    starts = replay.starts(50, 6, np.random.default_rng(8))
    first = replay.sample(50, 6, np.random.default_rng(8)).reward[:, 0].astype(int)

    np.testing.assert_array_equal(starts, np.where(first >= 1000, 21 + first - 1000, first))


def test_counts_and_memory() -> None:
    replay = Replay(frames=40, episodes=3, action_size=1)
    assert (replay.num_episodes, replay.num_frames) == (0, 0)
    replay.add(numbered_episode(0, 9))

    assert (replay.num_episodes, replay.num_frames) == (1, 10)
    # Paper size at R = 2: 1,005 episodes of 501 frames, 5.77 GiB.
    assert memory_bytes(1005 * 501, 6) == 1005 * 501 * (64 * 64 * 3 + 6 * 4 + 4)
    assert memory_bytes(1005 * 501, 6) / 2**30 == pytest.approx(5.776, abs=0.001)


def test_a_full_replay_says_what_it_holds() -> None:
    replay = filled([5])
    with pytest.raises(ValueError, match="full: room for 1 episodes and 6 frames, holds 1 and 6"):
        replay.add(numbered_episode(1, 5))

    replay = Replay(frames=10, episodes=5, action_size=1)
    replay.add(numbered_episode(0, 5))
    with pytest.raises(ValueError, match="got an episode of 6 frames"):
        replay.add(numbered_episode(1, 5))
    assert replay.num_episodes == 1


def test_another_action_size_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 3 action elements, got 1"):
        Replay(frames=40, episodes=3, action_size=3).add(numbered_episode(0, 5))


def test_sampling_too_early_or_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no episode"):
        Replay(frames=40, episodes=3, action_size=1).sample(1, 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="chunks of 7 frames: the shortest episode has 6 frames"):
        filled([20, 5]).sample(1, 7, np.random.default_rng(0))


def test_a_replay_larger_than_memory_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "available_memory", lambda: 4 * 2**30)

    with pytest.raises(MemoryError, match=r"1005 episodes .* needs 5\.78 GiB of memory, but only 4\.00 GiB"):
        Replay(frames=1005 * 501, episodes=1005, action_size=6)


@pytest.mark.parametrize("version", [1, 2])
def test_memory_is_that_of_the_tightest_control_group(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n",
        "/proc/self/cgroup": "9:name=systemd:/\n4:cpuset,memory:/slurm/job_7/step_0\n"
        if version == 1
        else "0::/slurm/job_7\n",
        "/sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes": "9000000\n",
        "/sys/fs/cgroup/memory/slurm/job_7/memory.usage_in_bytes": "5000000\n",
        "/sys/fs/cgroup/memory/slurm/job_7/memory.stat": "cache 1\ntotal_inactive_file 1000000\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": "5000000\n",
        "/sys/fs/cgroup/slurm/job_7/memory.max": "max\n",
        "/sys/fs/cgroup/slurm/job_7/memory.current": "5000000\n",
        "/sys/fs/cgroup/slurm/memory.max": "6000000\n",
        "/sys/fs/cgroup/slurm/memory.current": "2000000\n",
        "/sys/fs/cgroup/slurm/memory.stat": "inactive_file 500000\n",
    }
    monkeypatch.setattr(replay_module, "_read", lambda path: files.get(str(path), ""))

    assert available_memory() == (5_000_000 if version == 1 else 4_500_000)


def test_available_memory_is_plausible() -> None:
    assert 2**26 < available_memory() < 2**50

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from planet.counting_env import CountingEnv, read
from planet.envs import Env, Step
from planet.rollout import Episode, random_policy, run_episodes


def test_every_array_of_an_episode_counts_the_same_time() -> None:
    envs = [CountingEnv(action_size=2, agent_steps=300) for _ in range(3)]
    seen: list[list[int]] = []

    def act(obs: np.ndarray) -> np.ndarray:
        readings = [read(picture, 2) for picture in obs]
        seen.append([reading.time for reading in readings])
        # Each environment's next action is a function of its own picture: mixed up environments would show.
        return np.array([[(r.time + 1) / 300, r.seed / 255] for r in readings], np.float32)

    episodes = run_episodes(envs, act, seeds=[5, 6, 7])

    assert seen == [[t, t, t] for t in range(300)]  # the last frame is never acted on
    for episode, seed in zip(episodes, [5, 6, 7], strict=True):
        assert episode.length == 300
        assert episode.obs.shape == (301, 3, 64, 64)
        for t in range(301):
            reading = read(episode.obs[t], 2)
            assert (reading.time, reading.seed) == (t, seed)
            assert episode.reward[t] == t
            np.testing.assert_allclose(episode.action[t], [t / 300, seed / 255 if t else 0.0], rtol=0, atol=1e-6)
            # What the environment says it executed on the way to this frame is what is stored beside the frame.
            np.testing.assert_allclose(reading.action, episode.action[t], rtol=0, atol=0.5 / 127 + 1e-6)
        assert episode.total_reward == 300 * 301 / 2


def test_on_step_counts_decisions_and_may_abandon() -> None:
    class AbandonError(Exception):
        pass

    env, act = CountingEnv(1, 6), random_policy(np.random.default_rng(0), 1)
    times: list[int] = []

    def stop_at_three(t: int) -> None:
        times.append(t)
        if t == 3:
            raise AbandonError

    with pytest.raises(AbandonError):
        run_episodes([env], act, [0], on_step=stop_at_three)

    assert times == [1, 2, 3]
    [episode] = run_episodes([env], act, [0], on_step=times.append)
    assert times[3:] == [1, 2, 3, 4, 5, 6]
    assert episode.length == 6


def test_random_policy_is_uniform_and_a_function_of_its_generator() -> None:
    obs = np.zeros((1000, 3, 64, 64), np.uint8)
    first, again = (random_policy(np.random.default_rng(3), 4)(obs) for _ in range(2))

    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    counts, _ = np.histogram(first, bins=20, range=(-1, 1))
    assert counts.sum() == 4000
    assert ((counts - 200) ** 2 / 200).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001


def test_total_reward_is_summed_in_double_precision() -> None:
    reward = np.full(100_001, 0.1, np.float32)
    no_pictures = np.broadcast_to(np.uint8(0), (100_001, 3, 64, 64))  # takes no memory
    episode = Episode(no_pictures, np.zeros((100_001, 1), np.float32), reward)

    assert episode.total_reward == pytest.approx(100_001 * float(np.float32(0.1)), rel=1e-12)


def test_environments_and_seeds_must_match() -> None:
    act = random_policy(np.random.default_rng(0), 1)
    with pytest.raises(ValueError, match=r"one seed per environment, got 2 and 1"):
        run_episodes([CountingEnv(1, 4), CountingEnv(1, 4)], act, [0])
    with pytest.raises(ValueError, match=r"one \(action_size, agent_steps\), got \[\(1, 4\), \(1, 5\)\]"):
        run_episodes([CountingEnv(1, 4), CountingEnv(1, 5)], act, [0, 1])


def test_an_act_of_the_wrong_shape_is_named() -> None:
    def act(obs: np.ndarray) -> np.ndarray:
        return np.zeros((len(obs), 3), np.float32)

    with pytest.raises(ValueError, match=r"shape \(1, 2\), got \(1, 3\)"):
        run_episodes([CountingEnv(2, 4)], act, [0])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.5, -1.001])
def test_an_action_out_of_range_is_named(value: float) -> None:
    def act(obs: np.ndarray) -> np.ndarray:
        return np.full((len(obs), 2), value, np.float32)

    with pytest.raises(ValueError, match=r"finite and in \[-1, 1\]"):
        run_episodes([CountingEnv(2, 4)], act, [0])


@dataclass
class EarlyEnd:
    """Says `last` after two of four decisions."""

    action_size: int = 1
    action_repeat: int = 1
    agent_steps: int = 4
    time: int = 0

    def reset(self, seed: int) -> np.ndarray:
        self.time = 0
        return np.zeros((3, 64, 64), np.uint8)

    def step(self, action: np.ndarray) -> Step:
        self.time += 1
        return Step(np.zeros((3, 64, 64), np.uint8), 0.0, self.time == 2)

    def close(self) -> None: ...


def test_an_environment_that_ends_early_is_named() -> None:
    env: Env = EarlyEnd()
    with pytest.raises(ValueError, match=r"last=True after 2 decisions, but episodes have agent_steps=4"):
        run_episodes([env], random_policy(np.random.default_rng(0), 1), [0])


def test_counting_env_ends_at_agent_steps_and_wants_a_reset() -> None:
    env = CountingEnv(1, 2)
    action = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match="call reset"):
        env.step(action)
    env.reset(0)

    assert not env.step(action).last
    assert env.step(action).last
    with pytest.raises(ValueError, match="call reset"):
        env.step(action)


def test_an_environment_that_does_not_end_is_named() -> None:
    env: Env = EarlyEnd(agent_steps=1)  # which would say `last` after two decisions
    with pytest.raises(ValueError, match=r"last=False after 1 decisions, but episodes have agent_steps=1"):
        run_episodes([env], random_policy(np.random.default_rng(0), 1), [0])

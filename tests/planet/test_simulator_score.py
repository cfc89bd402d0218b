"""The vectorised rewards are dm_control's, and the score of a plan is what stepping the environment would earn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from planet.config import EnvConfig
from planet.envs import DMControlEnv, make_env
from planet.simulator_rewards import REWARDS, States
from planet.simulator_score import SimulatorScore
from planet.tasks import TASKS


@contextmanager
def opened(name: str, count: int = 1) -> Iterator[list[DMControlEnv]]:
    envs = [make_env(TASKS[name], EnvConfig()) for _ in range(count)]
    try:
        yield envs
    finally:
        for env in envs:
            env.close()


def scramble(env: DMControlEnv, rng: np.random.Generator) -> None:
    """Put the simulator into a random state, one where the task may or may not pay."""
    physics, name = env.physics, env.task.name
    with physics.reset_context():
        physics.data.qpos[:] = rng.uniform(-np.pi, np.pi, physics.model.nq)
        physics.data.qvel[:] = rng.uniform(-10, 10, physics.model.nv)
        if name == "cartpole_swingup":
            physics.data.qpos[0] = rng.uniform(-1.8, 1.8)
        if name == "finger_spin":
            physics.data.qvel[2] = rng.uniform(-30, 0)
        if name == "cup_catch":
            physics.data.qpos[:2] = rng.uniform(-0.1, 0.1, 2)
            physics.data.qpos[2:] = physics.data.qpos[:2] + np.array([0, 0.35]) + rng.uniform(-0.04, 0.04, 2)
        if name == "walker_walk":
            physics.data.qpos[0] = rng.uniform(-0.9, 0.3)
            physics.data.qvel[1] = rng.uniform(-1, 3)
    physics.set_control(rng.uniform(-1, 1, env.action_size))
    physics.forward()


@pytest.mark.parametrize("name", list(TASKS))
def test_rewards_equal_dm_controls_on_random_states(name: str) -> None:
    rng = np.random.default_rng(0)
    with opened(name) as [env]:
        ours, theirs = [], []
        for seed in range(10):
            env.reset(seed)  # also changes the models of reacher and finger
            for _ in range(40):
                scramble(env, rng)
                data = env.physics.data
                states = States(
                    env.physics.model.ptr, qpos=data.qpos[None], qvel=data.qvel[None],
                    sensordata=data.sensordata[None], control=env.physics.control()[None],
                )  # fmt: skip
                ours.append(REWARDS[name](states)[0])
                theirs.append(env._env.task.get_reward(env.physics))

    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert np.std(theirs) > 0.01, "the random states must tell rewards apart"


def place_for_reward(env: DMControlEnv) -> None:
    """Start where there is something to earn."""
    physics = env.physics
    with physics.reset_context():
        if env.task.name == "finger_spin":
            physics.data.qvel[2] = -17.0
        elif env.task.name == "reacher_easy":
            target = physics.named.model.geom_pos["target"]
            radius, angle = np.hypot(*target[:2]), np.arctan2(target[1], target[0])
            bend = np.arccos(radius / 0.24)  # two links of 0.12 m
            physics.data.qpos[:] = angle - bend, 2 * bend
            physics.data.qvel[:] = 2.0, -6.0
        elif env.task.name == "cup_catch":
            physics.data.qpos[:] = 0, 0, 0, 0.35


@pytest.mark.parametrize("name", list(TASKS))
def test_rewards_of_a_rollout_equal_stepping_the_environment(name: str) -> None:
    """From a state in mid-episode, for two environments at once, step by step, and without moving them."""
    rng = np.random.default_rng(1)
    horizon, candidates = 5, 3
    with opened(name, 2) as envs:
        score = SimulatorScore(envs, threads=2)
        for seed, env in enumerate(envs):
            env.reset(seed + 5)
            for _ in range(3):
                env.step(rng.uniform(-1, 1, env.action_size).astype(np.float32))
            place_for_reward(env)
        actions = rng.uniform(-1, 1, (2, candidates, horizon, envs[0].action_size)).astype(np.float32)
        before = [env.physics.get_state().copy() for env in envs]
        every = score.rewards(actions)  # [2, 3, 5 * R]
        returns = score(torch.from_numpy(actions))
        again = score.rewards(actions)

        for i, env in enumerate(envs):
            np.testing.assert_array_equal(env.physics.get_state(), before[i])
            warm = env.physics.data.qacc_warmstart.copy()
            for j in range(candidates):
                with env.physics.reset_context():
                    env.physics.set_state(before[i])
                env.physics.data.qacc_warmstart[:] = warm
                stepped = [
                    env._env.step(actions[i, j, t]).reward for t in range(horizon) for _ in range(env.action_repeat)
                ]
                np.testing.assert_allclose(every[i, j], stepped, rtol=0, atol=1e-9)
                assert returns[i, j].item() == pytest.approx(sum(stepped), abs=1e-4)
        score.close()

    np.testing.assert_array_equal(every, again)
    assert every.max() > 0, "nothing was earned, so nothing was compared"


def test_threads_do_not_change_a_score() -> None:
    with opened("walker_walk") as envs:
        envs[0].reset(3)
        candidates = torch.rand(1, 16, 2, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
        scores = []
        for threads in (1, 3):
            score = SimulatorScore(envs, threads=threads)
            scores.append(score(candidates))
            score.close()

    assert torch.equal(*scores)


def test_a_reset_that_changes_the_model_is_seen() -> None:
    """The reacher's target is part of its model."""
    with opened("reacher_easy") as envs:
        score = SimulatorScore(envs, threads=1)
        still = np.zeros((1, 1, 2, 2))
        earned = set()
        for seed in range(30):
            envs[0].reset(seed)
            expected = 8.0 * envs[0]._env.task.get_reward(envs[0].physics)
            total = score.rewards(still).sum()
            earned.add(total)
            assert total == expected
        score.close()

    assert earned == {0.0, 8.0}


def test_thread_counts_below_one_are_refused() -> None:
    with opened("reacher_easy") as envs, pytest.raises(ValueError, match="at least 1"):
        SimulatorScore(envs, threads=0)

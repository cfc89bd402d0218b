"""planet.stopwatch: MuJoCo reads no clock while we simulate, and what it simulates is the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from planet import stopwatch
from planet.config import EnvConfig
from planet.envs import DMControlEnv, make_env
from planet.tasks import TASKS


@pytest.fixture
def env() -> Iterator[DMControlEnv]:
    env = make_env(TASKS["walker_walk"], EnvConfig())
    yield env
    env.close()
    stopwatch.stop()


def seconds_read(env: DMControlEnv) -> float:
    """Return what MuJoCo's stopwatch says three more decisions took."""
    before = env.physics.data.timer.duration.sum()
    for _ in range(3):
        env.step(np.full(env.action_size, 0.5, np.float32))
    return float(env.physics.data.timer.duration.sum() - before)


def test_an_environment_stops_it(env: DMControlEnv) -> None:
    env.reset(0)

    assert seconds_read(env) == 0.0


def test_started_again_it_reads_and_the_states_are_the_same(env: DMControlEnv) -> None:
    env.reset(0)
    seconds_read(env)
    stopped = env.physics.get_state().copy()

    stopwatch.start()
    env.reset(0)

    assert seconds_read(env) > 0.0
    np.testing.assert_array_equal(env.physics.get_state(), stopped)


def test_stopping_and_starting_twice_is_like_once(env: DMControlEnv) -> None:
    env.reset(0)
    stopwatch.stop()
    stopwatch.start()
    stopwatch.start()
    assert seconds_read(env) > 0.0
    stopwatch.stop()
    stopwatch.stop()
    assert seconds_read(env) == 0.0

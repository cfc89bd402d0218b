"""How much faster candidates are scored by MuJoCo's own rollouts than by stepping dm_control in Python.

    pytest benchmarks/speed/test_simulator.py --benchmark-only -o addopts=

One thread on both sides; threads come on top (`OMP_NUM_THREADS` of a run), since rollouts hold no Python lock. The
machine has no rate that would limit physics with its contacts and iterations, so only substeps per second are noted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks.speed.beside import in_turns
from planet import stopwatch
from planet.config import EnvConfig
from planet.envs import DMControlEnv, make_env
from planet.simulator_score import SimulatorScore
from planet.tasks import TASKS

HORIZON = 12
CANDIDATES = {"cartpole_swingup": 100, "reacher_easy": 200, "cheetah_run": 100, "finger_spin": 100, "cup_catch": 20,
              "walker_walk": 20}  # fmt: skip
AT_LEAST = {"cartpole_swingup": 6.0, "reacher_easy": 8.0, "cheetah_run": 3.0, "finger_spin": 2.0, "cup_catch": 1.5,
            "walker_walk": 1.2}  # fmt: skip
"""Where a control step has many substeps or contacts, both sides mostly wait for the same physics."""


@pytest.fixture(params=list(TASKS))
def env(request: pytest.FixtureRequest) -> Iterator[DMControlEnv]:
    env = make_env(TASKS[request.param], EnvConfig())
    env.reset(0)
    yield env
    env.close()


def step_in_python(env: DMControlEnv, actions: np.ndarray) -> np.ndarray:
    """Return the scores [J] by stepping dm_control through each candidate [J, H, A]."""
    start = env.physics.get_state().copy()
    scores = np.zeros(len(actions))
    for j, candidate in enumerate(actions):
        with env.physics.reset_context():
            env.physics.set_state(start)
        env._env._step_count = 0  # or dm_control would reset at its 1,000th step
        for action in candidate:
            for _ in range(env.action_repeat):
                scores[j] += env._env.step(action).reward
    with env.physics.reset_context():
        env.physics.set_state(start)
    return scores


@pytest.mark.benchmark(timer=time.process_time)  # of this process alone, whatever else the machine does
def test_scoring_candidates(benchmark, env: DMControlEnv) -> None:
    name = env.task.name
    shape = (1, CANDIDATES[name], HORIZON, env.action_size)
    candidates = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    score = SimulatorScore([env], threads=1)

    def plain() -> np.ndarray:
        stopwatch.start()  # as in plain dm_control
        try:
            return step_in_python(env, candidates[0].numpy())
        finally:
            stopwatch.stop()

    np.testing.assert_allclose(score(candidates)[0].numpy(), plain(), atol=1e-3)
    ratio = in_turns(benchmark, lambda: score(candidates), plain, rounds=5, timer=time.process_time)
    score.close()

    if ratio is None:  # --benchmark-disable: only whether it runs
        return
    substeps = CANDIDATES[name] * HORIZON * env.action_repeat * env.substeps
    benchmark.extra_info |= {"substeps_per_second": round(substeps / benchmark.stats.stats.median)}
    assert 1 / ratio > AT_LEAST[name], f"{name}: rollouts are only {1 / ratio:.2f} times as fast as stepping in Python"

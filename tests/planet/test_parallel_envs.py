from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planet.config import EnvConfig
from planet.envs import Env, PatientEnv, make_env
from planet.parallel_envs import RemoteEnv, parallel_envs
from planet.rollout import random_policy, run_episodes
from planet.tasks import TASKS, Task

CONFIG = EnvConfig(episode_env_steps=24, picture="fast")
CARTPOLE, REACHER = TASKS["cartpole_swingup"], TASKS["reacher_easy"]


@contextmanager
def pool(task: Task, count: int, **keywords: Any) -> Iterator[list[RemoteEnv]]:
    envs = parallel_envs(task, CONFIG, count, **keywords)
    try:
        yield envs
    finally:
        for env in envs:
            env.close()


def processes(envs: list[RemoteEnv]) -> list[int]:
    return list(dict.fromkeys(env._worker._process.pid for env in envs))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_episodes_equal_those_of_one_process_whatever_the_number_of_processes() -> None:
    local = [make_env(REACHER, CONFIG) for _ in range(3)]
    expected = run_episodes(local, random_policy(np.random.default_rng(0), 2), seeds=[5, 6, 7])

    for count in (2, 3):
        with pool(REACHER, 3, processes=count) as envs:
            assert len(processes(envs)) == count
            for _ in range(2):  # and again with the same environments
                episodes = run_episodes(envs, random_policy(np.random.default_rng(0), 2), seeds=[5, 6, 7])
                for mine, theirs in zip(episodes, expected, strict=True):
                    np.testing.assert_array_equal(mine.obs, theirs.obs)
                    np.testing.assert_array_equal(mine.reward, theirs.reward)


def test_a_remote_environment_is_an_environment() -> None:
    with pool(CARTPOLE, 1, action_size=6) as envs:
        env: Env = envs[0]
        assert isinstance(env, Env)
        assert isinstance(env, PatientEnv)
        assert (env.action_size, env.action_repeat, env.agent_steps) == (6, 8, 3)
        assert env.reset(0).shape == (3, 64, 64)
        lasts = [env.step(np.zeros(6, np.float32)).last for _ in range(3)]
        assert lasts == [False, False, True]


def test_an_error_is_raised_here_and_the_environments_can_be_used_again() -> None:
    with pool(CARTPOLE, 2, processes=1) as envs:
        for env in envs:
            env.reset(0)
        with pytest.raises(ValueError, match=r"finite and in \[-1, 1\]") as caught:
            envs[0].step(np.array([np.nan], np.float32))
        assert caught.value.__notes__ == ["in environment process 0"]

        # One that was asked for and never waited for does not get mixed up with the next.
        envs[0].begin_step(np.ones(1, np.float32))
        first = envs[0].reset(3)
        np.testing.assert_array_equal(envs[1].reset(3), first)


def test_what_prevents_an_environment_is_raised_here_and_nothing_stays_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    from planet import parallel_envs as module

    started: list[int] = []

    class Recorded(module.Worker):
        def __init__(self, number: int) -> None:
            super().__init__(number)
            started.append(self._process.pid)

    monkeypatch.setattr(module, "Worker", Recorded)
    with pytest.raises(ValueError, match=r"env\.action_repeat must be at most"):
        parallel_envs(CARTPOLE, EnvConfig(episode_env_steps=3), 2, processes=2)

    assert len(started) == 2
    assert not any(is_alive(pid) for pid in started)


def test_a_killed_process_is_named() -> None:
    with pool(CARTPOLE, 2, processes=2) as envs:
        for env in envs:
            env.reset(0)
        os.kill(processes(envs)[1], signal.SIGKILL)

        assert envs[0].step(np.zeros(1, np.float32)).reward >= 0
        with pytest.raises(RuntimeError, match=r"environment process 1 ended \(SIGKILL\)"):
            envs[1].step(np.zeros(1, np.float32))
            envs[1].step(np.zeros(1, np.float32))


def test_a_process_that_hangs_is_named_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from planet import parallel_envs as module

    with pool(CARTPOLE, 1) as envs:
        envs[0].reset(0)
        monkeypatch.setattr(module, "PATIENCE", 0.2)
        os.kill(processes(envs)[0], signal.SIGSTOP)
        with pytest.raises(RuntimeError, match=r"environment process 0 does not answer \(process \d+\)"):
            envs[0].step(np.zeros(1, np.float32))
        os.kill(processes(envs)[0], signal.SIGCONT)


@pytest.mark.slow
def test_signals_meant_for_the_run_do_not_end_its_simulators() -> None:
    with pool(CARTPOLE, 1) as envs:
        envs[0].reset(0)
        [pid] = processes(envs)
        for name in (signal.SIGINT, signal.SIGUSR2, signal.SIGCONT, signal.SIGTERM):
            os.kill(pid, name)
        assert envs[0].reset(1).any()
    assert not is_alive(pid)


RUN = """
import sys
import numpy as np
from planet.config import EnvConfig
from planet.parallel_envs import parallel_envs
from planet.stop_signal import StopSignal
from planet.tasks import TASKS

with StopSignal() as stop:
    print("starting", flush=True)
    envs = parallel_envs(TASKS["cartpole_swingup"], EnvConfig(picture="fast"), 2, processes=2)
    print(*(env._worker._process.pid for env in envs), flush=True)
    envs[0].reset(0)
    while not stop.requested:
        if envs[0].step(np.zeros(1, np.float32)).last:
            envs[0].reset(0)
    for env in envs:
        env.close()
    sys.exit(75)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["starting", "working"])
def test_a_termination_of_the_whole_process_group_is_a_clean_stop(moment: str) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", RUN], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None and run.stdout.readline() == "starting\n"
    pids = [int(word) for word in run.stdout.readline().split()] if moment == "working" else []

    while run.poll() is None and len(children(run.pid)) < 2:
        time.sleep(0.001)
    os.killpg(run.pid, signal.SIGTERM)
    out, errors = run.communicate(timeout=60)

    assert (run.returncode, errors) == (75, "")
    assert not any(is_alive(pid) for pid in pids or map(int, out.split()))


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.slow
def test_closing_the_last_environment_ends_the_process() -> None:
    envs = parallel_envs(CARTPOLE, CONFIG, 2, processes=1)
    [pid] = processes(envs)
    envs[0].close()
    assert envs[1].reset(0).any()
    envs[0].close()  # twice does no harm

    envs[1].close()
    assert not is_alive(pid)


def test_more_processes_than_environments_is_refused() -> None:
    with pytest.raises(ValueError, match=r"processes must be in 1\.\.2 \(the environments\), got 3"):
        parallel_envs(CARTPOLE, CONFIG, 2, processes=3)

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from planet import profile
from planet.learner import Learner
from planet.presets import resolve
from planet.replay import Replay
from planet.tasks import TASKS
from planet.world_model import WorldModel


def test_the_median_is_that_of_the_action():
    calls = 0

    def action():
        nonlocal calls
        calls += 1
        time.sleep(0.1 if calls == 5 else 0.01)  # one slow repetition does not count

    seconds = profile.median_seconds(action, torch.device("cpu"), budget=0.1)

    assert 0.009 < seconds < 0.09
    assert calls >= 5


@pytest.mark.slow
def test_the_whole_schedule_is_the_sum_of_its_parts():
    config = resolve("cartpole_swingup", preset="smoke")
    c = profile.measure(TASKS["cartpole_swingup"], config, torch.device("cpu"), "float32", budget=0.01)

    # 3 updates and 10 decisions a cycle; 1 evaluation of 2 episodes; 2 cycles and 2 seed episodes.
    assert (c.train, c.plan, c.env) == pytest.approx((3 * c.update, 10 * c.decision, 10 * c.env_step))
    assert c.cycle == c.train + c.plan + c.env
    assert c.evaluation == pytest.approx(10 * (c.decision_all + 2 * c.env_step))
    assert 3600 * c.total_hours == pytest.approx(2 * c.cycle + c.evaluation + 20 * c.env_step)


def test_each_update_is_timed_with_a_batch_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr(Learner, "update", lambda self, batch, generator: seen.append(batch.action))
    config, rng = resolve("cartpole_swingup", preset="smoke"), np.random.default_rng(0)
    model = WorldModel(config.model, config.objective, 1)
    learner = Learner(model, config.optimizer, torch.device("cpu"))
    replay = Replay(frames=11, episodes=1, action_size=1)
    replay.add(profile.random_episode(rng, 11, 1))

    with ThreadPoolExecutor(1) as pool:
        update = profile.next_update(learner, replay, config, pool)
        for _ in range(3):
            update()

    assert [x.shape for x in seen] == [(4, 8, 1)] * 3
    assert not np.array_equal(seen[0], seen[1])


COST = profile.Cost(
    task="cartpole_swingup", update=0.0111, decision=0.0222, decision_all=0.0333, env_step=0.0444, train=55.5,
    plan=66.6, env=77.7, evaluation=88.8, total_hours=99.9,
)  # fmt: skip


def test_the_table_has_seconds_per_phase_and_hours(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(profile, "measure", lambda *_, **__: COST)
    monkeypatch.setattr(profile.hardware, "keep_freed_memory", lambda: None)  # it would stay so for other tests

    assert profile.main(["--task", "cartpole_swingup", "--threads", str(torch.get_num_threads())]) == 0
    out = capsys.readouterr().out
    [row] = [line for line in out.splitlines() if "cartpole_swingup" in line]
    assert row.replace("│", " ").split()[1:] == [
        "11.1", "22.2", "33.3", "44.4", "55.5", "66.6", "77.7", "199.8", "88.8", "99.9"
    ]  # fmt: skip
    assert "100 updates" in out and "hours for 1000 episodes" in " ".join(out.split())


def test_what_is_less_than_one_is_not_shown_as_zero() -> None:
    assert [profile.digits(x) for x in (123.46, 1.0, 0.5, 0.0123, 0.00031)] == [
        "123.5", "1.0", "0.5", "0.012", "0.00031"
    ]  # fmt: skip


def test_the_help_says_what_no_threads_are(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        profile.main(["--help"])
    assert "0 (default): OMP_NUM_THREADS, or the cores" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "cheetah_rum"], "perhaps cheetah_run"),
        (["--threads", "-1"], "--threads must be at least 0 (0: the cores of this process), got -1"),
        (["--seconds", "0"], "--seconds must be greater than 0, got 0.0"),
        (["--device", "foo"], "--device must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_wrong_option_is_refused(capsys, monkeypatch, words, message):
    monkeypatch.setattr(profile, "measure", lambda *_, **__: pytest.fail("measured"))

    assert profile.main(words) == 2
    assert message in capsys.readouterr().err


def test_a_group_stands_for_its_tasks_each_measured_once(monkeypatch):
    measured = []

    def measure(task, config, *_, budget):
        measured.append((task.name, config.task))
        return replace(COST, task=task.name)

    monkeypatch.setattr(profile, "measure", measure)
    monkeypatch.setattr(profile.hardware, "keep_freed_memory", lambda: None)  # it would stay so for other tests

    assert profile.main(["--task", "walker_walk", "dmc6", "--threads", str(torch.get_num_threads())]) == 0
    assert measured == [(name, name) for name in sorted(TASKS, key=lambda name: name != "walker_walk")]

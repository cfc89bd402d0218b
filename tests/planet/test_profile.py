import time

import pytest
import torch

from planet import profile
from planet.presets import resolve
from planet.tasks import TASKS


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
    assert c.cycle == pytest.approx(3 * c.update + 10 * (c.decision + c.env_step))
    assert c.evaluation == pytest.approx(10 * (c.decision_all + 2 * c.env_step))
    assert 3600 * c.total_hours == pytest.approx(2 * c.cycle + c.evaluation + 20 * c.env_step)


def test_an_unknown_task_is_refused(capsys):
    assert profile.main(["--task", "cheetah_rum"]) == 2
    assert "perhaps cheetah_run" in capsys.readouterr().err

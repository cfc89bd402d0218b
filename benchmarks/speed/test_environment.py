"""One decision with its picture beside the same decision in plain dm_control (`env.step` R times, `physics.render`).

    make bench    or    pytest benchmarks/speed/test_environment.py --benchmark-only -o addopts=

Both sides take turns, so that a busy machine slows both; processor time is measured, with Mesa's own threads off, so
that it is the time a free core would take. The limits hold for software GL, where the picture is nearly all of it.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

from planet.config import EnvConfig, Picture
from planet.envs import make_env
from planet.tasks import TASKS

AT_MOST: dict[Picture, dict[str, float]] = {
    "exact": {"cartpole_swingup": 0.5, "cup_catch": 0.85},
    "near": {"cup_catch": 0.75},
    "fast": {},
}
OTHERS: dict[Picture, float] = {"exact": 0.75, "near": 0.55, "fast": 0.25}

WARM_UP = 3


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("picture", ["exact", "near", "fast"])
@pytest.mark.parametrize("name", list(TASKS))
def test_decision_with_picture(benchmark: Any, name: str, picture: Picture) -> None:
    os.environ["LP_NUM_THREADS"] = "0"  # read when the first GL context is made
    task = TASKS[name]
    env = make_env(task, EnvConfig(picture=picture))
    from dm_control import suite  # after make_env has chosen the GL back end

    plain = suite.load(task.domain, task.task, task_kwargs={"random": 0})
    rng = np.random.default_rng(0)
    env.reset(0)
    plain.reset()
    plain_seconds: list[float] = []

    def step_plain() -> tuple[tuple[np.ndarray], dict[str, Any]]:
        action = rng.uniform(-1, 1, task.action_size).astype(np.float32)
        begin = time.process_time()
        for _ in range(task.action_repeat):
            plain.step(action)
        plain.physics.render(64, 64, camera_id=0)
        plain_seconds.append(time.process_time() - begin)
        return (action,), {}

    benchmark.pedantic(env.step, setup=step_plain, rounds=60, warmup_rounds=WARM_UP)
    renderer = env.renderer
    env.close()
    if benchmark.stats is None:  # --benchmark-disable: only whether it runs
        return

    # Of the totals: pictures of one task differ in cost (the cup's string: slack, 28 pieces are drawn, taut, one).
    ratio = benchmark.stats.stats.total / sum(plain_seconds[WARM_UP:])
    benchmark.extra_info |= {"renderer": renderer, "of_plain_dm_control": round(ratio, 3)}
    limit = AT_MOST[picture].get(name, OTHERS[picture])
    if "llvmpipe" in renderer:
        assert ratio <= limit, f"{name}, {picture}: {ratio:.2f} of the time of plain dm_control, at most {limit}"

"""One decision with its picture beside the same decision in plain dm_control (`env.step` R times, `physics.render`).

    make bench    or    pytest benchmarks/speed/test_environment.py --benchmark-only -o addopts=

For each back end that draws here, in a process of its own, since dm_control keeps the one it was imported with. Both
sides take turns, so that a busy machine slows both; processor time is measured, with Mesa's own threads off, so that it
is the time a free core would take. The limits hold for software GL, where the picture is nearly all of it. The machine
has no rate that would limit a picture: plain dm_control asks the same rasteriser for the same triangles.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest

from planet import gl, stopwatch
from planet.config import EnvConfig, Picture
from planet.envs import make_env
from planet.tasks import TASKS

AT_MOST: dict[Picture, dict[str, float]] = {
    "exact": {"cartpole_swingup": 0.5, "cup_catch": 0.85},
    "near": {"cup_catch": 0.75},
    "fast": {},
}
OTHERS: dict[Picture, float] = {"exact": 0.75, "near": 0.55, "fast": 0.25}

ROUNDS, WARM_UP = 60, 3

clock = 0.0
"""The processor time of all our decisions so far, in whatever process: what pytest-benchmark reads as its timer."""


def begin(backend: str) -> None:
    """Choose what draws in this process.

    Raises:
        gl.MissingGL: it does not work here.
    """
    os.environ |= {"MUJOCO_GL": backend, "LP_NUM_THREADS": "0"}
    os.environ.pop("DISABLE_RENDER_THREAD_OFFLOADING", None)  # of another back end, from the process before
    gl.choose_backend()


def measure(name: str, picture: Picture, rounds: int) -> tuple[list[float], list[float], str]:
    """Return the seconds of our decisions and of plain dm_control's in turns, and what drew them."""
    task = TASKS[name]
    env = make_env(task, EnvConfig(picture=picture))
    from dm_control import suite  # after make_env has chosen the GL back end

    plain = suite.load(task.domain, task.task, task_kwargs={"random": 0})
    rng = np.random.default_rng(0)
    env.reset(0)
    plain.reset()
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        action = rng.uniform(-1, 1, task.action_size).astype(np.float32)
        stopwatch.start()
        first = time.process_time()
        for _ in range(task.action_repeat):
            plain.step(action)
        plain.physics.render(64, 64, camera_id=0)
        theirs.append(time.process_time() - first)
        stopwatch.stop()
        second = time.process_time()
        env.step(action)
        ours.append(time.process_time() - second)
    renderer = env.renderer
    env.close()
    return ours, theirs, renderer


@pytest.fixture(scope="module", params=["egl", "osmesa"])
def process(request: pytest.FixtureRequest) -> Iterator[ProcessPoolExecutor]:
    """A process that draws with one back end."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            pool.submit(begin, request.param).result()
        except gl.MissingGL as error:
            pytest.skip(str(error))
        yield pool


@pytest.fixture(autouse=True)
def one_task_unless_measured(request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["name"]
    if name != "cartpole_swingup" and request.config.getoption("benchmark_disable"):
        pytest.skip("the same code as for cartpole, and nothing is measured")


@pytest.mark.benchmark(timer=lambda: clock)
@pytest.mark.parametrize("picture", ["exact", "near", "fast"])
@pytest.mark.parametrize("name", list(TASKS))
def test_decision_with_picture(process: ProcessPoolExecutor, benchmark: Any, name: str, picture: Picture) -> None:
    rounds = ROUNDS if benchmark.enabled else 1
    ours, theirs, renderer = process.submit(measure, name, picture, WARM_UP + rounds).result()
    measured = iter(ours[WARM_UP:])

    def decide() -> None:
        global clock
        clock += next(measured)

    benchmark.pedantic(decide, rounds=rounds)
    if benchmark.stats is None:  # --benchmark-disable: only whether it runs
        return

    # Of the totals: pictures of one task differ in cost (the cup's string: slack, 28 pieces are drawn, taut, one).
    ratio = sum(ours[WARM_UP:]) / sum(theirs[WARM_UP:])
    benchmark.extra_info |= {"renderer": renderer, "of_plain_dm_control": round(ratio, 3)}
    limit = AT_MOST[picture].get(name, OTHERS[picture])
    if "llvmpipe" in renderer:
        assert ratio <= limit, f"{name}, {picture}: {ratio:.2f} of the time of plain dm_control, at most {limit}"

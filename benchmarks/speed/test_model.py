"""Updates, plans and filter steps beside `plain.py`, which does the same without any trick in float32.

    make bench    or    OMP_NUM_THREADS=1 pytest benchmarks/speed/test_model.py --benchmark-only -o addopts=

The limits at paper size hold where the processor multiplies bfloat16 in hardware (AVX-512 BF16 or AMX). Elsewhere only
float32 is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.speed import plain
from benchmarks.speed.beside import TIMER, count_operations, in_turns, record_limit
from planet import cem, hardware, processor
from planet.config import Config
from planet.counting_env import CountingEnv
from planet.learner import Learner
from planet.lease import Lease
from planet.presets import resolve
from planet.progress import Display
from planet.replay import Batch
from planet.rollout import random_policy, run_episodes
from planet.run_dir import Recorder, RunDir
from planet.stop_signal import StopSignal
from planet.train import Trainer
from planet.transition import State
from planet.world_model import WorldModel

CPU = torch.device("cpu")
ACTIONS = 6  # those of cheetah and walker, the most
PRECISIONS = ["float32", "bfloat16"]

UPDATE_AT_MOST = {("paper", "bfloat16"): 0.5}
PLAN_AT_MOST = {("paper", "bfloat16"): 0.4}
NEVER_SLOWER = 1.1
"""Where no gain is promised."""

pytestmark = pytest.mark.benchmark(timer=TIMER)


@pytest.fixture(autouse=True)
def paper_size_only_to_measure(request: pytest.FixtureRequest) -> None:
    callspec = getattr(request.node, "callspec", None)
    if callspec and callspec.params.get("preset") == "paper" and request.config.getoption("benchmark_disable"):
        pytest.skip("the same code as at quick size, and nothing is measured")


@pytest.fixture(autouse=True)
def bfloat16_only_where_it_is_no_emulation(request: pytest.FixtureRequest) -> None:
    callspec = getattr(request.node, "callspec", None)
    short = callspec is not None and callspec.params.get("precision") == "bfloat16"
    if short and not request.config.getoption("benchmark_disable") and not processor.has_bfloat16():
        pytest.skip("bfloat16 is emulated here: an update of the paper's size would take an hour")


def config_of(preset: str) -> Config:
    return resolve("cheetah_run", preset=preset)


def model_of(config: Config) -> WorldModel:
    return WorldModel(config.model, config.objective, ACTIONS, seeded(0))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(config: Config) -> Batch:
    """Random pictures, in memory as a replay's are, channels last: their content does not change the time."""
    rng, shape = np.random.default_rng(0), (config.batch.size, config.batch.chunk)
    return Batch(
        np.moveaxis(rng.integers(256, size=(*shape, 64, 64, 3), dtype=np.uint8), -1, 2),
        rng.uniform(-1, 1, (*shape, ACTIONS)).astype(np.float32),
        rng.random(shape, np.float32),
    )


def check(ratio: float | None, limit: float) -> None:
    """Assert a limit, but not where benchmarks only run."""
    if ratio is not None:
        assert ratio <= limit, f"{ratio:.2f} of the plain time, at most {limit}"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("preset", "rounds"), [("quick", 20), ("paper", 3)])
def test_update(benchmark: Any, preset: str, rounds: int, precision: str) -> None:
    config = config_of(preset)
    learner = Learner(model_of(config), config.optimizer, CPU, precision)
    plain_model = model_of(config)
    optimizer = plain.make_optimizer(plain_model)
    batch, generator = batch_of(config), seeded(0)
    # A plain replay keeps pictures as networks name their axes.
    obs, action, reward = (torch.from_numpy(x).contiguous() for x in (batch.obs, batch.action, batch.reward))

    ratio = in_turns(
        benchmark,
        lambda: learner.update(batch, generator),
        lambda: plain.update(plain_model, optimizer, obs, action, reward),
        rounds=rounds,
    )

    if ratio is not None:
        one = slice(1)  # every operation of an update is done once for each sequence of the batch
        operations = config.batch.size * count_operations(
            lambda: plain.update(plain_model, optimizer, obs[one], action[one], reward[one])
        )
        record_limit(benchmark, operations)
    check(ratio, UPDATE_AT_MOST.get((preset, precision), NEVER_SLOWER))


def belief_of(model: WorldModel, envs: int) -> tuple[State, plain.Latent]:
    sizes = (model.transition.deter_size, *(model.transition.stoch_size,) * 3)
    h, s, mean, std = (torch.rand(envs, size, generator=seeded(size)) for size in sizes)
    return State(h, s, mean, std), plain.Latent(h, s, mean, std)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("envs", [1, 10])
@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_plan(benchmark: Any, preset: str, envs: int, precision: str) -> None:
    config = config_of(preset)
    model, planner = model_of(config), config.planner
    state, latent = belief_of(model, envs)
    generators = [seeded(n) for n in range(envs)]
    sizes: dict[str, int] = {"horizon": planner.horizon, "candidates": planner.candidates}
    plain_sizes: dict[str, Any] = sizes | {"elites": planner.num_elites, "iterations": planner.iterations}

    def plan() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            score = model.return_predictor(state, generators=generators, **sizes)
            return cem.plan(
                score, num_envs=envs, action_size=ACTIONS, generators=generators, device=CPU, **plain_sizes
            ).mean

    with torch.no_grad():
        ratio = in_turns(
            benchmark, plan, lambda: plain.plan(model, latent, **plain_sizes), rounds=4 if envs == 1 else 2
        )
        if ratio is not None:
            one: dict[str, Any] = plain_sizes | {"iterations": 1}
            operations = planner.iterations * count_operations(lambda: plain.plan(model, latent, **one))
            record_limit(benchmark, operations)
    check(ratio, PLAN_AT_MOST.get((preset, precision), NEVER_SLOWER))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("envs", [1, 10])
def test_filter(benchmark: Any, envs: int, precision: str) -> None:
    model = model_of(config_of("paper"))
    state, latent = belief_of(model, envs)
    obs = torch.randint(256, (envs, 3, 64, 64), generator=seeded(0), dtype=torch.uint8)
    action = torch.zeros(envs, ACTIONS)
    generators = [seeded(n) for n in range(envs)]

    def step() -> State:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return model.filter(state, action, obs, generators=generators)

    ratio = in_turns(benchmark, step, lambda: plain.filter_step(model, latent, action, obs), rounds=50, warmup=5)

    # A fraction of a plan's time: only noted.
    if ratio is not None:
        record_limit(benchmark, count_operations(lambda: plain.filter_step(model, latent, action, obs)))


@pytest.mark.parametrize(("preset", "rounds"), [("quick", 60), ("paper", 5)])
def test_sampling_is_hidden(benchmark: Any, preset: str, rounds: int, tmp_path: Path) -> None:
    """A run's update, its batch taken from the replay, beside the same update on a batch that is there."""
    config, precision = config_of(preset), hardware.resolve_precision("auto", CPU)
    env = CountingEnv(ACTIONS, 500)
    batch, generator = batch_of(config), seeded(0)
    run_dir = RunDir.create(tmp_path / "run", config, preset=preset, variant="base")
    with (
        Lease.acquire(run_dir.path) as lease,
        Recorder(run_dir, lease) as recorder,
        Display(run_dir.log, title="", total=1) as display,
    ):
        trainer = Trainer(
            run_dir, config, device=CPU, precision=precision, recorder=recorder, display=display, lease=lease,
            stop=StopSignal(), make_env=lambda task, env_config: env,
        )  # fmt: skip
        for seed in range(5):
            trainer.replay.add(run_episodes([env], random_policy(np.random.default_rng(seed), ACTIONS), [seed])[0])
        ratio = in_turns(benchmark, trainer._update, lambda: trainer.learner.update(batch, generator), rounds=rounds)
        trainer.close()

    if ratio is not None:
        assert ratio <= 1.05, f"an update with its sampling takes {ratio:.3f} of an update without"

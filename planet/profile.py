"""What a run costs on this machine: seconds per phase and episode, and hours for the whole schedule, per task.

`python -m planet.profile [--preset paper] [--task cheetah_run ...]` measures updates, decisions and environment steps
with the real parts and random pictures (their content does not change the time), and multiplies by the schedule.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from planet import gl, hardware, tasks
from planet.agent import Agent
from planet.config import Config
from planet.cuda_graph import WARM_UP
from planet.device_replay import DeviceReplay, make_replay
from planet.envs import make_env
from planet.learner import Learner, Sequences
from planet.presets import PRESETS, resolve
from planet.replay import Replay
from planet.rollout import Episode
from planet.tasks import Task
from planet.world_model import WorldModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Seconds of one task's cycle: C updates, one collected episode; and of one evaluation."""

    task: str
    update: float
    """One gradient step with the sampling of its batch: on a CPU in the background, as a run does it."""
    decision: float
    """Filter and plan for one environment."""
    decision_all: float
    """Filter and plan for all evaluation episodes in lockstep."""
    env_step: float
    """One decision of one environment: simulation and picture."""
    train: float
    """The C updates of a cycle."""
    plan: float
    """The decisions of its episode."""
    env: float
    """The environment steps of its episode."""
    evaluation: float
    total_hours: float
    """The whole schedule: seed episodes, cycles, evaluations."""

    @property
    def cycle(self) -> float:
        return self.train + self.plan + self.env


def median_seconds(action: Callable[[], object], device: torch.device, *, budget: float, warmup: int = 2) -> float:
    """Return the median time of `action`, repeated at least three times and for about `budget` seconds."""

    def timed() -> float:
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    first = min(timed() for _ in range(warmup))
    times = [timed() for _ in range(max(3, min(100, int(budget / max(first, 1e-6)))))]
    return float(np.median(times))


def measure(task: Task, config: Config, device: torch.device, precision: str, *, budget: float) -> Cost:
    """Return what a task costs here; `budget` seconds per measured part, but at least three repetitions."""
    env = make_env(task, config.env)
    schedule, size = config.schedule, env.action_size
    model = WorldModel(config.model, config.objective, size, torch.Generator().manual_seed(0))
    learner = Learner(model, config.optimizer, device=device, precision=precision)
    agent = Agent(learner.world_model, config.planner, action_size=size, precision=precision)
    rng = np.random.default_rng(0)
    warmup = WARM_UP + 2 if device.type == "cuda" else 3
    length = env.agent_steps
    replay = make_replay(device, frames=2 * (length + 1), episodes=2, action_size=size)
    for _ in range(2):
        replay.add(random_episode(rng, length + 1, size))

    with ThreadPoolExecutor(1) as pool:
        update = median_seconds(next_update(learner, replay, config, pool), device, budget=budget, warmup=warmup)

    def decide(n: int) -> float:
        frames = rng.integers(256, size=(n, 3, 64, 64), dtype=np.uint8)
        state = agent.start([torch.Generator(device).manual_seed(k) for k in range(n)])

        def act() -> None:
            nonlocal state
            _, state = agent.act(state, frames, action_noise=0.3)

        return median_seconds(act, device, budget=budget, warmup=warmup)

    decision, decision_all = decide(1), decide(schedule.eval_episodes)
    env.reset(0)
    steps = min(length, 100)
    actions = rng.uniform(-1, 1, (steps, size)).astype(np.float32)
    started = time.perf_counter()
    for action in actions:
        env.step(action)
    env_step = (time.perf_counter() - started) / steps
    env.close()

    train, plan = schedule.updates * update, length * decision
    evaluation = length * (decision_all + schedule.eval_episodes * env_step)
    total = schedule.train_episodes * (train + plan + length * env_step) + len(schedule.eval_at()) * evaluation
    total += schedule.seed_episodes * length * env_step
    return Cost(
        task=task.name, update=update, decision=decision, decision_all=decision_all, env_step=env_step, train=train,
        plan=plan, env=length * env_step, evaluation=evaluation, total_hours=total / 3600,
    )  # fmt: skip


def digits(number: float) -> str:
    """Return one decimal, but two digits of what is less than one: hours of a small preset are not 0.0."""
    return f"{number:.1f}" if number >= 1 else f"{number:.2g}"


def random_episode(rng: np.random.Generator, frames: int, action_size: int) -> Episode:
    return Episode(
        rng.integers(256, size=(frames, 3, 64, 64), dtype=np.uint8),
        rng.uniform(-1, 1, (frames, action_size)).astype(np.float32),
        rng.random(frames, np.float32),
    )


def next_update(
    learner: Learner, replay: Replay | DeviceReplay, config: Config, pool: ThreadPoolExecutor
) -> Callable[[], object]:
    """Return what takes a gradient step each time it is called, its batch from the replay: one on the CPU samples the
    next batch meanwhile, as `planet.train` does."""
    rng, generator = np.random.default_rng(0), torch.Generator(learner.device).manual_seed(0)

    def sample() -> Sequences:
        return replay.sample(config.batch.size, config.batch.chunk, rng)

    def at_once() -> object:
        return learner.update(sample(), generator=generator)

    def with_the_next_one_on_its_way() -> object:
        nonlocal coming
        batch, coming = coming.result(), pool.submit(sample)
        return learner.update(batch, generator=generator)

    if isinstance(replay, DeviceReplay):
        return at_once
    coming = pool.submit(sample)
    return with_the_next_one_on_its_way


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m planet.profile", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", default="paper", help=f"{', '.join(PRESETS)} (default paper)")
    parser.add_argument("--task", nargs="+", default=list(tasks.TASKS), help="default: all six (dmc6)")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--threads", type=int, default=0, help="0 (default): OMP_NUM_THREADS, or the cores of this process, at most 8"
    )
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), help="default: the preset's")
    parser.add_argument("--seconds", type=float, default=3.0, help="per measured part (default 3)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.threads < 0:
            raise ValueError(f"--threads must be at least 0 (0: the cores of this process), got {arguments.threads}")
        if not 0 < arguments.seconds < float("inf"):
            raise ValueError(f"--seconds must be greater than 0, got {arguments.seconds}")
        members = dict.fromkeys(task for name in arguments.task for task in tasks.members(name))
        configs = [(task, resolve(task.name, preset=arguments.preset)) for task in members]
        device = hardware.resolve_device(arguments.device, "--device")
        backend = gl.choose_backend()
        precision = hardware.resolve_precision(arguments.precision or configs[0][1].runtime.precision, device)
    except (KeyError, ValueError, RuntimeError) as error:
        print(f"planet.profile: {error.args[0]}", file=sys.stderr)
        return 2
    threads = hardware.resolve_threads(arguments.threads)
    torch.set_num_threads(threads)
    hardware.keep_freed_memory()
    hardware.use(device)
    found = hardware.describe(device)
    schedule = configs[0][1].schedule
    table = Table(
        title=f"{arguments.preset} on {found.get('gpu', found['cpu'])}, {precision}, {threads} threads, {backend}",
        caption=f"ms each (update: with its sampling); s per collected episode: {schedule.updates} updates, its plans, "
        f"its environment steps; s per evaluation; hours for {schedule.train_episodes} episodes and their evaluations",
    )
    columns = (
        "task", "update\nms", "decision\nms", f"decision x{schedule.eval_episodes}\nms", "env step\nms", "train\ns",
        "plan\ns", "env\ns", "episode\ns", "evaluation\ns", "hours",
    )  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column == "task" else "right")
    for task, config in configs:
        c = measure(task, config, device, precision, budget=arguments.seconds)
        milliseconds = (1000 * x for x in (c.update, c.decision, c.decision_all, c.env_step))
        numbers = (*milliseconds, c.train, c.plan, c.env, c.cycle, c.evaluation, c.total_hours)
        table.add_row(c.task, *map(digits, numbers))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

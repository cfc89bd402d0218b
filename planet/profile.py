"""What a run costs on this machine: seconds per phase of one cycle, and hours for the whole schedule, per task.

`python -m planet.profile [--preset paper] [--task cheetah_run ...]` measures updates, decisions and environment steps
with the real parts and random pictures (their content does not change the time), and multiplies by the schedule.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from planet import gl, hardware, tasks
from planet.agent import Agent
from planet.config import Config
from planet.cuda_graph import WARM_UP
from planet.device_replay import DeviceBatch
from planet.envs import make_env
from planet.learner import Learner
from planet.presets import PRESETS, resolve
from planet.replay import Batch
from planet.tasks import Task
from planet.world_model import WorldModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Seconds of one task's cycle: C updates, one collected episode; and of one evaluation."""

    task: str
    update: float
    """One gradient step, sampling not included."""
    decision: float
    """Filter and plan for one environment."""
    decision_all: float
    """Filter and plan for all evaluation episodes in lockstep."""
    env_step: float
    """One decision of one environment: simulation and picture."""
    cycle: float
    evaluation: float
    total_hours: float
    """The whole schedule: seed episodes, cycles, evaluations."""


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
    generator = torch.Generator(device).manual_seed(0)
    model = WorldModel(config.model, config.objective, size, torch.Generator().manual_seed(0))
    learner = Learner(model, config.optimizer, device=device, precision=precision)
    agent = Agent(learner.world_model, config.planner, action_size=size, precision=precision)
    rng = np.random.default_rng(0)
    shape = (config.batch.size, config.batch.chunk)
    arrays = (
        np.moveaxis(rng.integers(256, size=(*shape, 64, 64, 3), dtype=np.uint8), -1, 2),  # in memory as a replay's
        rng.uniform(-1, 1, (*shape, size)).astype(np.float32),
        rng.random(shape, np.float32),
    )
    warmup, batch = 3, Batch(*arrays)
    if device.type == "cuda":  # where a run keeps its replay, and records its work
        warmup, batch = WARM_UP + 2, DeviceBatch(*(torch.from_numpy(array).to(device) for array in arrays))
    update = median_seconds(lambda: learner.update(batch, generator=generator), device, budget=budget, warmup=warmup)

    def decide(n: int) -> float:
        frames = rng.integers(256, size=(n, 3, 64, 64), dtype=np.uint8)
        state = agent.start([torch.Generator(device).manual_seed(k) for k in range(n)])
        return median_seconds(lambda: agent.act(state, frames, action_noise=0.3), device, budget=budget, warmup=warmup)

    decision, decision_all = decide(1), decide(schedule.eval_episodes)
    env.reset(0)
    steps = min(env.agent_steps, 100)
    actions = rng.uniform(-1, 1, (steps, size)).astype(np.float32)
    started = time.perf_counter()
    for action in actions:
        env.step(action)
    env_step = (time.perf_counter() - started) / steps
    length = env.agent_steps
    env.close()

    cycle = schedule.updates * update + length * (decision + env_step)
    evaluation = length * (decision_all + schedule.eval_episodes * env_step)
    total = schedule.train_episodes * cycle + len(schedule.eval_at()) * evaluation
    total += schedule.seed_episodes * length * env_step
    return Cost(
        task=task.name, update=update, decision=decision, decision_all=decision_all, env_step=env_step, cycle=cycle,
        evaluation=evaluation, total_hours=total / 3600,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m planet.profile", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", default="paper", help=f"{', '.join(PRESETS)} (default paper)")
    parser.add_argument("--task", nargs="+", default=list(tasks.TASKS), help="default: all six")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="default: the cores of this process")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), help="default: the preset's")
    parser.add_argument("--seconds", type=float, default=3.0, help="per measured part (default 3)")
    arguments = parser.parse_args(argv)
    try:
        backend = gl.choose_backend()
        device = hardware.resolve_device(arguments.device)
        configs = [(tasks.TASKS[tasks.canonical(n)], resolve(n, preset=arguments.preset)) for n in arguments.task]
        precision = hardware.resolve_precision(arguments.precision or configs[0][1].runtime.precision, device)
    except (KeyError, ValueError, RuntimeError) as error:
        print(f"planet.profile: {error.args[0]}", file=sys.stderr)
        return 2
    threads = hardware.resolve_threads(arguments.threads)
    torch.set_num_threads(threads)
    hardware.keep_freed_memory()
    hardware.use(device)
    found = hardware.describe(device)
    table = Table(
        title=f"{arguments.preset} on {found.get('gpu', found['cpu'])}, {precision}, {threads} threads, {backend}",
        caption="ms per update, decision, environment step; s per cycle, evaluation; hours for the whole schedule",
    )
    for column in ("task", "update", "decision", "decision x10", "env step", "cycle", "evaluation", "hours"):
        table.add_column(column, justify="left" if column == "task" else "right")
    table.columns[3].header = f"decision x{configs[0][1].schedule.eval_episodes}"
    for task, config in configs:
        c = measure(task, config, device, precision, budget=arguments.seconds)
        table.add_row(
            c.task, f"{1000 * c.update:.1f}", f"{1000 * c.decision:.1f}", f"{1000 * c.decision_all:.1f}",
            f"{1000 * c.env_step:.1f}", f"{c.cycle:.1f}", f"{c.evaluation:.1f}", f"{c.total_hours:.1f}",
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

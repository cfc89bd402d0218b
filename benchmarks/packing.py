"""`python -m benchmarks.packing`: measure how many runs should share a GPU (or a processor) here.

For each K, K processes work at once as runs do: gradient updates on a filled replay, then decisions planned and
executed in the real environment, in the schedule's proportion. What counts is the pace of all K together, as long as
all K fit on the GPU with the replays of whole runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

from benchmarks.executors import machine
from benchmarks.executors.job import mps
from planet import presets, tasks
from planet.config import Config, from_toml, parse_changes, to_toml

PART = 20
"""A measured cycle is this part of a real one: C / 20 updates, then the decisions of a twentieth of an episode."""
GAIN = 1.05
"""A larger K must be this much faster than a smaller one to be recommended: it costs memory and comfort."""
CONTEXT_GIB = 0.5
"""What each process takes of a GPU before its first tensor: a guess."""
MARGIN_GIB = 2.0
"""Of a GPU's memory to leave alone: what drawing and the driver take, and gaps between allocations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one process got done in the measured time."""

    updates: int
    decisions: int
    seconds: float
    update_seconds: float
    """In all updates."""
    decision_seconds: float
    """In all decisions, the environment's steps included."""
    gpu_gib: float
    """Most GPU memory held, without the CUDA context itself, and with next to nothing in the replay."""
    run_gib: float = 0.0
    """GPU memory for a whole run: its full replay and what it works with."""
    card_gib: float = 0.0
    """All memory of the GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """K runs at once."""

    runs: int
    updates_per_second: float
    """Of all together."""
    hours_per_run: float
    runs_per_day: float
    update_ms: float
    decision_ms: float
    gpu_gib: float
    """Measured, of one of them."""
    run_gib: float
    """For one whole run; 0 without a GPU."""
    card_gib: float

    @property
    def fits(self) -> bool:
        """Whether all have room on the GPU at their end."""
        return self.runs * self.run_gib <= max(0.0, self.card_gib - MARGIN_GIB)


def pace(config: Config, works: Sequence[Work]) -> Pace:
    """Return what the processes' work amounts to for whole runs of this configuration."""
    members = tasks.members(config.task)
    cycle = config.schedule.updates_per_cycle(len(members))
    per_second = sum(work.updates / work.seconds for work in works)
    # Evaluations are left out: 200 episodes to 1,000, ten at a time.
    hours = config.schedule.train_episodes * cycle / (per_second / len(works)) / 3600
    return Pace(
        runs=len(works),
        updates_per_second=per_second,
        hours_per_run=hours,
        runs_per_day=24 * len(works) / hours,
        update_ms=1000 * sum(w.update_seconds for w in works) / max(1, sum(w.updates for w in works)),
        decision_ms=1000 * sum(w.decision_seconds for w in works) / max(1, sum(w.decisions for w in works)),
        gpu_gib=max(w.gpu_gib for w in works),
        run_gib=max(w.run_gib for w in works),
        card_gib=min(w.card_gib for w in works),
    )


def recommend(paces: Sequence[Pace]) -> Pace:
    """Return the smallest K whose total pace no larger K beats by more than `GAIN`, of those that fit (else the least:
    a replay that finds no room on the GPU lies in the machine's memory)."""
    ordered = sorted(paces, key=lambda p: p.runs)
    ordered = [p for p in ordered if p.fits] or ordered[:1]
    best = ordered[0]
    for candidate in ordered[1:]:
        if candidate.updates_per_second > GAIN * best.updates_per_second:
            best = candidate
    return best


def measure(config: Config, runs: int, *, seconds: float, environment: Mapping[str, str]) -> Pace:
    """Return the pace of this many processes, all started, warm, and then let go together.

    Raises:
        RuntimeError: a process failed (out of GPU memory, say); the message has its last words.
    """
    threads = max(1, min(machine.MAX_THREADS, machine.cores() // runs))
    env = {**os.environ, **environment, "OMP_NUM_THREADS": str(threads), "LP_NUM_THREADS": "0"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.packing", "--worker", str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for _ in range(runs)
    ]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(to_toml(config) + "\0\n")
            process.stdin.flush()
        for process in processes:
            _line(process)  # ready
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        works = [Work(**json.loads(_line(process))) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return pace(config, works)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    if not line:
        words = process.stderr.read().strip().splitlines()
        raise RuntimeError(words[-1] if words else "a process ended without a word")
    return line


def work(seconds: float) -> None:
    """Be one of the processes: configuration on stdin, `ready`, wait for `go`, work, print a `Work` as JSON."""
    text = ""
    while not text.endswith("\0\n"):
        text += sys.stdin.readline()
    config = from_toml(text[:-2], "stdin")

    import numpy as np
    import torch

    from planet import gl, hardware
    from planet.agent import Agent
    from planet.device_replay import WORKING_MEMORY, make_replay
    from planet.learner import Learner
    from planet.rollout import random_policy, run_episodes
    from planet.world_model import WorldModel

    gl.choose_backend()
    from planet.envs import make_env

    device = hardware.resolve_device(config.runtime.device)
    precision = cast(Literal["float32", "bfloat16"], hardware.resolve_precision(config.runtime.precision, device))
    torch.set_num_threads(hardware.resolve_threads(config.runtime.threads))
    hardware.keep_freed_memory()
    hardware.use(device)
    env = make_env(tasks.members(config.task)[0], config.env)
    world_model = WorldModel(config.model, config.objective, env.action_size)
    learner = Learner(world_model, config.optimizer, device=device, precision=precision)
    agent = Agent(learner.world_model, config.planner, action_size=env.action_size, precision=precision)
    rng = np.random.default_rng(0)
    generator = torch.Generator(device).manual_seed(0)
    replay = make_replay(device, frames=4 * (env.agent_steps + 1), episodes=4, action_size=env.action_size)
    for seed in range(2):
        replay.add(run_episodes([env], random_policy(rng, env.action_size), [seed])[0])
    updates = max(1, config.schedule.updates // PART)
    decisions = max(1, env.agent_steps // PART)
    left, state, obs = 0, agent.start([generator]), env.reset(0)
    spent = {"update": 0.0, "decision": 0.0}

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def cycle() -> None:
        nonlocal left, state, obs
        began = time.monotonic()
        for _ in range(updates):
            learner.update(replay.sample(config.batch.size, config.batch.chunk, rng), generator=generator)
        wait()
        middle = time.monotonic()
        for _ in range(decisions):
            if left == 0:
                left, state, obs = env.agent_steps, agent.start([generator]), env.reset(0)
            action, state = agent.act(state, obs[None], action_noise=config.schedule.action_noise)
            obs = env.step(action[0]).obs
            left -= 1
        wait()
        spent["update"] += middle - began
        spent["decision"] += time.monotonic() - middle

    cycle()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # without what was only needed before all was recorded
    print("ready", flush=True)
    sys.stdin.readline()
    spent.update(update=0.0, decision=0.0)
    began, cycles = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        cycle()
        cycles += 1
    gpu_gib = run_gib = card_gib = 0.0
    if device.type == "cuda":
        gpu_gib = torch.cuda.max_memory_reserved() / 2**30
        # Who finds less than WORKING_MEMORY free beside its replay does not keep it on the GPU.
        run_gib = machine.replay_bytes(config) / 2**30 + max(gpu_gib + CONTEXT_GIB, WORKING_MEMORY / 2**30)
        card_gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    result = Work(
        updates=cycles * updates,
        decisions=cycles * decisions,
        seconds=time.monotonic() - began,
        update_seconds=spent["update"],
        decision_seconds=spent["decision"],
        gpu_gib=gpu_gib,
        run_gib=run_gib,
        card_gib=card_gib,
    )
    print(json.dumps(asdict(result)), flush=True)
    env.close()


def _unwritable(file: Path) -> str | None:
    """Return why nothing can be written to a file, or None; makes and keeps nothing."""
    if file.is_dir():
        return "a folder has this name"
    if file.exists():
        return None if os.access(file, os.W_OK) else "it is there and may not be written"
    try:
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        return f"nothing can be made in {file.parent}: {error.strerror}"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--task", default="cheetah_run")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 2, 4, 8], metavar="K")
    parser.add_argument("--seconds", type=float, default=60.0, help="measured time for each K (default 60)")
    parser.add_argument("--mps", action="store_true", help="with a private MPS daemon")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker is not None:
        work(arguments.worker)
        return 0
    problem = None
    if min(arguments.runs) < 1:
        problem = f"--runs must be at least 1, got {min(arguments.runs)}"
    elif not arguments.seconds > 0:
        problem = f"--seconds must be above 0, got {arguments.seconds:g}"
    elif arguments.mps and shutil.which("nvidia-cuda-mps-control") is None:
        problem = "--mps: there is no nvidia-cuda-mps-control here; it comes with the NVIDIA driver"
    elif arguments.json is not None and (why := _unwritable(arguments.json)):
        problem = f"--json must be a file that can be written, got {arguments.json} ({why}); choose another"
    if problem:
        print(f"packing: {problem}", file=sys.stderr)
        return 2
    try:
        config = presets.resolve(arguments.task, preset=arguments.preset, changes=parse_changes(arguments.set))
    except (KeyError, ValueError) as error:
        print(f"packing: {error.args[0]}", file=sys.stderr)
        return 2
    gpus = machine.visible_gpus()
    environment = {"CUDA_VISIBLE_DEVICES": gpus[0]} if gpus else {}
    paces: list[Pace] = []
    print("  K  updates/s  hours/run  runs/day  ms/update  ms/decision  GiB now  GiB/run", flush=True)
    with mps(arguments.mps) as daemon:
        for runs in sorted(set(arguments.runs)):
            try:
                found = measure(config, runs, seconds=arguments.seconds, environment={**environment, **daemon})
            except RuntimeError as error:
                print(f"{runs:3}  failed: {error}")
                break
            paces.append(found)
            print(
                f"{runs:3}  {found.updates_per_second:9.2f}  {found.hours_per_run:9.2f}  {found.runs_per_day:8.2f}"
                f"  {found.update_ms:9.1f}  {found.decision_ms:11.1f}  {found.gpu_gib:7.2f}  {found.run_gib:7.2f}"
                f"{'' if found.fits else '  more than the GPU has'}",
                flush=True,
            )
    if not paces:
        return 1
    best, one = recommend(paces), min(paces, key=lambda p: p.runs)
    what = "--runs-per-gpu" if gpus else "--max-parallel"
    times = best.updates_per_second / one.updates_per_second
    print(f"recommended: {what} {best.runs} ({times:.2f} times the pace of {one.runs})", flush=True)
    if arguments.json is not None:
        try:
            arguments.json.write_text(json.dumps([asdict(p) for p in paces], indent=1) + "\n")
        except OSError as error:
            print(f"packing: cannot write {arguments.json} ({error.strerror}); the table stands above", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A run that learns nothing: CEM plans in the true simulator (`planner.dynamics = "simulator"`; Table 1, Figure 12).

A run like any other: the same directory, rows, status, lease and signals, `schedule.eval_episodes` evaluation episodes
of each task from the start states of evaluation 0. It can stop between any two decisions. A decision's noise is keyed
by (episode, decision) and a simulator's state is a function of the seed and the actions so far, so a checkpoint is the
actions; the resumed run steps through them again and goes on as the unbroken one would.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from planet import cem, checkpoint, gl, hardware, streams, tasks
from planet.config import Config
from planet.envs import DMControlEnv, make_env
from planet.lease import Lease, LeaseHeld, LeaseLost
from planet.progress import Display, duration
from planet.run_dir import Recorder, RunDir
from planet.simulator_score import SimulatorScore
from planet.stop_signal import EXIT_DONE, EXIT_FAILED, EXIT_HELD, EXIT_STOPPED, StopSignal
from planet.tasks import Task

STATUS_EVERY_SECONDS = 2.0
EVALUATION = 0
"""Whose start states and noise the episodes take: a learning run's first evaluation has the same."""


class Stopped(Exception):
    """The stop signal came; everything worth keeping is in the checkpoint."""


@dataclass(slots=True)
class Progress:
    """What has been done; part of every checkpoint."""

    episodes: int = 0
    """Finished episodes, of all tasks together."""
    decisions: int = 0
    """Of the episode under way."""
    env_steps: int = 0
    agent_steps: int = 0
    wall_seconds: float = 0.0
    plan_seconds: float = 0.0
    plan_cpu_seconds: float = 0.0
    """Of all threads; like `plan_seconds` of the episode under way."""
    returns: list[float] = dataclasses.field(default_factory=list)


class SimulatorRun:
    """The parts of one run and its loop."""

    def __init__(
        self, run_dir: RunDir, config: Config, *, threads: int, recorder: Recorder, display: Display, lease: Lease,
        stop: StopSignal,
    ) -> None:  # fmt: skip
        self.run_dir, self.config, self.threads = run_dir, config, threads
        self.recorder, self.display, self.lease, self.stop = recorder, display, lease, stop
        self.tasks = tasks.members(config.task)
        self.total = config.schedule.eval_episodes * len(self.tasks)
        self.progress = Progress()
        self.actions: list[np.ndarray] = []
        """Executed in the episode under way, each [A]."""
        self.mean: Tensor | None = None
        """The last plan [1, H, A], for planner.warm_start."""
        self._restore()
        self._began = time.monotonic() - self.progress.wall_seconds
        self._last_checkpoint = self._last_status = time.monotonic()

    def run(self) -> None:
        """Act out the remaining episodes. Raises `Stopped` between two decisions after a stop signal."""
        for index, task in enumerate(self.tasks):
            first = index * self.config.schedule.eval_episodes
            if self.progress.episodes >= first + self.config.schedule.eval_episodes:
                continue
            env = make_env(task, self.config.env)
            score = SimulatorScore([env], threads=self.threads)
            try:
                while self.progress.episodes < first + self.config.schedule.eval_episodes:
                    self._episode(env, score, task, index, self.progress.episodes - first)
            finally:
                score.close()
                env.close()

    def _episode(self, env: DMControlEnv, score: SimulatorScore, task: Task, index: int, k: int) -> None:
        p = self.progress
        env_seed = streams.integer(self.config.seed, "eval_env", EVALUATION, index, k)
        env.reset(env_seed)
        rewards = [env.step(action).reward for action in self.actions]  # of a resumed episode
        while p.decisions < env.agent_steps:
            self._safe_point()
            started, started_cpu = time.monotonic(), time.process_time()
            generator = streams.torch_generator(self.config.seed, "eval", EVALUATION, index, k, p.decisions)
            action = self._plan(score, env.action_size, generator)
            p.plan_seconds += time.monotonic() - started
            p.plan_cpu_seconds += time.process_time() - started_cpu
            rewards.append(env.step(action).reward)
            self.actions.append(action)
            p.decisions += 1
            p.agent_steps += 1
            p.env_steps += env.action_repeat
        total = float(np.sum(rewards, dtype=np.float64))
        seconds = p.plan_seconds / p.decisions
        self.recorder.append_episode(
            {
                "task": task.name, "kind": "eval", "episode": 0, "env_steps": 0, "agent_steps": 0, "updates": 0,
                "return": total, "length": p.decisions, "env_seed": env_seed, "wall_seconds": round(self.wall(), 3),
            }
        )  # fmt: skip
        self.recorder.append_metrics(
            {
                "episode": 0, "env_steps": p.env_steps, "agent_steps": p.agent_steps, "updates": 0,
                "plan_seconds": round(p.plan_seconds, 4), "plan_seconds_per_agent_step": round(seconds, 6),
                "plan_cpu_seconds_per_agent_step": round(p.plan_cpu_seconds / p.decisions, 6),
                "threads": self.threads, "wall_seconds": round(self.wall(), 3),
            }
        )  # fmt: skip
        p.episodes += 1
        p.returns.append(total)
        p.decisions, p.plan_seconds, p.plan_cpu_seconds = 0, 0.0, 0.0
        self.actions, self.mean = [], None
        self.save()
        self.write_status("running")
        self.display.line(f"{task.name}, episode {k}: return {total:.1f}, {seconds:.2f} s per decision")

    def _plan(self, score: SimulatorScore, action_size: int, generator: torch.Generator) -> np.ndarray:
        planner = self.config.planner
        start = None if self.mean is None or not planner.warm_start else cem.one_step_on(self.mean)
        plan = cem.plan(
            score, num_envs=1, action_size=action_size, horizon=planner.horizon, candidates=planner.candidates,
            elites=planner.num_elites, iterations=planner.iterations, init_std=planner.init_std,
            min_std=planner.min_std, refit_clipped=planner.refit_clipped, generators=[generator],
            device=torch.device("cpu"), start_mean=start,
        )  # fmt: skip
        self.mean = plan.mean
        return plan.mean[0, 0].clamp(-1, 1).numpy()

    # ---------------------------------------------------------------------------------------- saving and telling

    def _safe_point(self) -> None:
        if self.stop.requested:
            raise Stopped
        now = time.monotonic()
        if now - self._last_checkpoint >= self.config.runtime.checkpoint_seconds:
            self.save()
        if now - self._last_status >= STATUS_EVERY_SECONDS:
            self.write_status("running")

    def save(self) -> None:
        """Write a checkpoint, if the run is still ours."""
        self.lease.check()
        self.progress.wall_seconds = self.wall()
        checkpoint.save(
            self.run_dir.checkpoints,
            {
                "progress": dataclasses.asdict(self.progress),
                "actions": torch.from_numpy(np.array(self.actions, np.float32)),
                "mean": self.mean,
                "recorder": self.recorder.positions(),
            },
        )
        self._last_checkpoint = time.monotonic()

    def _restore(self) -> None:
        content = checkpoint.load(self.run_dir.checkpoints)
        if content is None:
            self.recorder.truncate({})
            if said := checkpoint.begun_anew(self.run_dir, self.config.runtime.checkpoint_seconds):
                self.display.line(said)
            return
        self.progress = Progress(**content["progress"])
        self.actions = list(content["actions"].numpy())
        self.mean = content["mean"]
        self.recorder.truncate(content["recorder"])
        self.display.line(f"resumed at episode {self.progress.episodes}, decision {self.progress.decisions}")

    def wall(self) -> float:
        """Return the seconds of all starts together."""
        return time.monotonic() - self._began

    def write_status(self, state: str) -> None:
        p = self.progress
        self._last_status = time.monotonic()
        steps = [
            self.config.env.episode_env_steps // (self.config.env.action_repeat or t.action_repeat) for t in self.tasks
        ]
        all_steps = self.config.schedule.eval_episodes * sum(steps)
        eta = None
        if p.agent_steps:
            eta = self.wall() / p.agent_steps * (all_steps - p.agent_steps)
        mean = sum(p.returns) / len(p.returns) if p.returns else None
        self.recorder.write_status(
            state=state, phase="eval", episode=p.episodes, episodes_total=self.total, env_steps=p.env_steps,
            agent_steps=p.agent_steps, updates=0, updates_total=0, last_return=p.returns[-1] if p.returns else None,
            last_eval=mean, evals_done=p.episodes, evals_total=self.total,
            episodes_per_hour=round(p.episodes / self.wall() * 3600, 3) if p.episodes else None,
            eta_seconds=None if eta is None or state == "done" else round(eta, 1), wall_seconds=round(self.wall(), 1),
        )  # fmt: skip
        self.display.advance(p.episodes, f"decision {p.decisions}, ETA {duration(eta)}")


def run(path: Path) -> int:
    """Run, resume or skip the run in `path`; return the exit code of `planet.train`."""
    run_dir = RunDir.open(path)
    config = run_dir.config()
    status = run_dir.status()
    if status and status.get("state") == "done":
        print(f"{path}: done")
        return EXIT_DONE
    try:
        with Lease.acquire(path) as lease, Recorder(run_dir, lease) as recorder, StopSignal() as stop:
            return _run(run_dir, config, recorder, lease, stop)
    except (LeaseHeld, LeaseLost) as error:
        print(f"planet.train: {error}", file=sys.stderr)
        return EXIT_HELD


def _run(run_dir: RunDir, config: Config, recorder: Recorder, lease: Lease, stop: StopSignal) -> int:
    total = config.schedule.eval_episodes * len(tasks.members(config.task))
    simulation: SimulatorRun | None = None
    with Display(run_dir.log, title=str(run_dir.path), total=total) as display:
        try:
            recorder.write_status(state="running", error=None, traceback=None)
            # Results do not depend on the number of threads, so each start takes what it finds.
            threads = hardware.resolve_threads(config.runtime.threads, most=64)
            torch.set_num_threads(1)
            run_dir.record_start(
                device="cpu", precision="float32", threads=threads, picture=config.env.picture, gl=gl.choose_backend(),
                hardware=hardware.describe(torch.device("cpu")),
            )  # fmt: skip
            simulation = SimulatorRun(
                run_dir, config, threads=threads, recorder=recorder, display=display, lease=lease, stop=stop
            )
            display.line(f"{config.task}, seed {config.seed}, planning in the true simulator, {threads} threads")
            simulation.run()
            simulation.write_status("done")
            display.line(f"done in {duration(simulation.wall())}")
            return EXIT_DONE
        except Stopped:
            assert simulation is not None
            simulation.save()
            simulation.write_status("stopped")
            display.line("stopped; everything is saved, the same command goes on")
            return EXIT_STOPPED
        except LeaseLost:
            raise
        except Exception as error:
            last = f"{type(error).__name__}: {error}"
            recorder.write_status(state="failed", error=last, traceback=traceback.format_exc())
            display.line(f"failed: {last}")
            traceback.print_exc()
            return EXIT_FAILED
        finally:
            gc.collect()  # GL contexts go while the interpreter is whole

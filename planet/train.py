"""One run from its directory: builds everything, then collects and learns in turn until the schedule is done.

`python -m planet.train RUN_DIR` starts, resumes or says "done"; it is what every job of a sweep executes.

The loop is a ladder of safe points (paper, Algorithm 1): at each, the next thing to do follows from the counters in
`Progress` alone, and all randomness is keyed by those counters (`planet.streams`). So a run that is killed anywhere and
started again ends with the files of the unbroken run: rows and episodes beyond the last checkpoint are dropped and made
again.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planet import checkpoint, gl, hardware, streams, tasks
from planet.agent import Agent, NonFiniteAction
from planet.cem import NonFiniteScore
from planet.config import Config
from planet.device_replay import make_replay
from planet.envs import Env, MakeEnv, PadActions, make_env, renderer_of
from planet.episode_store import EpisodeStore
from planet.evaluate import evaluate
from planet.learner import Learner, Sequences
from planet.lease import Lease, LeaseHeld, LeaseLost
from planet.parallel_envs import parallel_envs
from planet.prediction import reconstruction_strip, write_open_loop
from planet.progress import Display, duration
from planet.replay import Replay
from planet.rollout import Episode, random_policy, run_episodes
from planet.run_dir import Recorder, RunDir
from planet.stop_signal import EXIT_DONE, EXIT_FAILED, EXIT_HELD, EXIT_STOPPED, StopSignal
from planet.tasks import Task
from planet.tensorboard_writer import TensorBoardWriter
from planet.world_model import WorldModel

STATUS_EVERY_SECONDS = 2.0
PHASES = ("train", "plan", "env", "eval")
ADVICE = "the last good checkpoint is kept. Lower optimizer.learning_rate or use runtime.precision=float32"


class Stopped(Exception):
    """The stop signal came; everything worth keeping is in the checkpoint."""


class NonFiniteLoss(RuntimeError):
    """A term of the loss became NaN or infinite."""


@dataclass(slots=True)
class Progress:
    """The counters that decide what comes next; part of every checkpoint."""

    episodes: int = 0
    """Collected episodes (of each task), the seed episodes included."""
    updates: int = 0
    evaluations: int = 0
    env_steps: int = 0
    agent_steps: int = 0
    row_due: bool = False
    """A cycle has ended and its metrics are not written yet."""
    last_return: float | None = None
    last_eval: float | None = None
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    phase_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))


class Clock:
    """Wall and processor time of a run over all its starts."""

    def __init__(self, wall_before: float, cpu_before: float) -> None:
        self._wall = time.monotonic() - wall_before
        self._cpu = time.process_time() - cpu_before

    def wall(self) -> float:
        return time.monotonic() - self._wall

    def cpu(self) -> float:
        return time.process_time() - self._cpu


class Trainer:
    """The built parts of one run and the steps between its safe points."""

    def __init__(
        self,
        run_dir: RunDir,
        config: Config,
        *,
        device: torch.device,
        precision: str,
        recorder: Recorder,
        display: Display,
        lease: Lease,
        stop: StopSignal,
        make_env: MakeEnv,
    ) -> None:
        self.run_dir, self.config = run_dir, config
        self.recorder, self.display, self.lease, self.stop = recorder, display, lease, stop
        self.tasks = tasks.members(config.task)
        self.total_episodes = config.schedule.seed_episodes + config.schedule.train_episodes
        self.updates_per_cycle = config.schedule.updates_per_cycle(len(self.tasks))
        self.eval_at = config.schedule.eval_at()
        self._make_env = make_env
        self._eval_envs: dict[str, Sequence[Env]] = {}
        self.envs = [self._build_env(task) for task in self.tasks]
        self.action_size = max(env.action_size for env in self.envs)

        self.world_model = WorldModel(
            config.model, config.objective, self.action_size, streams.torch_generator(config.seed, "init")
        )
        self.learner = Learner(self.world_model, config.optimizer, device=device, precision=precision)
        self.agent = Agent(self.world_model, config.planner, action_size=self.action_size, precision=precision)
        self.device = device
        self.replay = make_replay(
            device,
            frames=sum((env.agent_steps + 1) * self.total_episodes for env in self.envs),
            episodes=self.total_episodes * len(self.envs),
            action_size=self.action_size,
        )
        self.store = EpisodeStore(run_dir.episodes)
        self.progress = Progress()
        self.pending: list[dict[str, Tensor]] = []  # terms of this cycle's updates, still on the device
        self._found_finite = 0  # how many of them were looked at
        self._prefetch: tuple[int, Future[Sequences]] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="replay")
        self._last_checkpoint = self._last_status = time.monotonic()
        self._restore()
        self.clock = Clock(self.progress.wall_seconds, self.progress.cpu_seconds)
        self.tensorboard = None
        if config.runtime.tensorboard:
            self.tensorboard = TensorBoardWriter(run_dir.path / "tensorboard", purge_env_steps=self.progress.env_steps)

    def _build_env(self, task: Task) -> Env:
        env = self._make_env(task, self.config.env)
        size = max(t.action_size for t in self.tasks)
        return PadActions(env, size) if env.action_size < size else env

    def _build_eval_envs(self, task: Task) -> Sequence[Env]:
        count = self.config.schedule.eval_episodes
        if self.device.type == "cuda" and self._make_env is make_env and len(os.sched_getaffinity(0)) > 1:
            # The cores would wait for each other's pictures while the GPU plans for all episodes at once.
            return parallel_envs(task, self.config.env, count, action_size=self.action_size)
        return [self._build_env(task) for _ in range(count)]

    # ------------------------------------------------------------------------------------------------ the ladder

    def run(self) -> None:
        """Take steps until the schedule is done. Raises `Stopped` at the first safe point after a stop signal."""
        while (step := self._next_step()) is not None:
            if self.stop.requested:
                raise Stopped
            try:
                step()
            except (NonFiniteScore, NonFiniteAction) as error:
                raise NonFiniteAction(
                    f"{error}, after update {self.progress.updates} of {self.run_dir.path}; {ADVICE}"
                ) from error
            self._status_when_due()
        self.save()

    def _next_step(self) -> Callable[[], None] | None:
        p, schedule = self.progress, self.config.schedule
        if p.evaluations < len(self.eval_at) and p.episodes >= self.eval_at[p.evaluations]:
            return self._evaluate
        if p.row_due:
            return self._write_row
        if p.episodes < schedule.seed_episodes:
            return self._collect
        if p.episodes == self.total_episodes:
            return None
        cycles = p.episodes - schedule.seed_episodes + 1
        return self._update if p.updates < cycles * self.updates_per_cycle else self._collect

    def _update(self) -> None:
        started = time.monotonic()
        p = self.progress
        batch = self._take_batch(p.updates)
        more = (p.updates + 1) % self.updates_per_cycle  # then the next batch comes from the same episodes
        if more and isinstance(self.replay, Replay):  # one on the GPU needs no copy that could be hidden
            self._prefetch = (p.updates + 1, self._pool.submit(self._sample, p.updates + 1))
        generator = streams.torch_generator(self.config.seed, "train", p.updates, device=self.device)
        self.pending.append(self.learner.update(batch, generator=generator))
        p.updates += 1
        if self.device.type == "cpu" or p.updates % self.updates_per_cycle == 0:
            # On a GPU asking costs a wait for the device, so it is asked once a cycle, before anything is acted on.
            self._check_finite()
        p.phase_seconds["train"] += time.monotonic() - started

    def _sample(self, update: int) -> Sequences:
        rng = streams.numpy_generator(self.config.seed, "replay", update)
        return self.replay.sample(self.config.batch.size, self.config.batch.chunk, rng)

    def _take_batch(self, update: int) -> Sequences:
        if self._prefetch is not None and self._prefetch[0] == update:
            batch = self._prefetch[1].result()
        else:
            batch = self._sample(update)
        self._prefetch = None
        return batch

    def _check_finite(self) -> None:
        new = self.pending[self._found_finite :]
        if not new:
            return
        names = list(new[0])
        values = torch.stack([torch.stack([terms[name].float() for name in names]) for terms in new])
        if torch.isfinite(values).all():
            self._found_finite = len(self.pending)
            return
        row, column = (~torch.isfinite(values)).nonzero()[0].tolist()
        update = self.progress.updates - len(new) + row
        raise NonFiniteLoss(
            f"{names[column]} became {values[row, column].item()} at update {update} of {self.run_dir.path}; {ADVICE}"
        )

    def _collect(self) -> None:
        """Collect one episode of each task; all or nothing."""
        p, schedule, seed = self.progress, self.config.schedule, self.config.seed
        randomly = p.episodes < schedule.seed_episodes or schedule.collection == "random"
        collected: list[tuple[Task, Episode, int]] = []
        started, planning = time.monotonic(), 0.0
        for index, (task, env) in enumerate(zip(self.tasks, self.envs, strict=True)):
            env_seed = streams.integer(seed, "env", p.episodes, index)
            if randomly:
                rng = streams.numpy_generator(seed, "explore", p.episodes, index)
                act = timed = Timed(random_policy(rng, self.action_size))
            else:
                generator = streams.torch_generator(seed, "explore", p.episodes, index, device=self.device)
                act = timed = Timed(self._policy([generator], schedule.action_noise))
            (episode,) = run_episodes([env], act, [env_seed], on_step=self._during_episode)
            planning += timed.seconds
            collected.append((task, episode, env_seed))
        p.phase_seconds["plan"] += planning
        p.phase_seconds["env"] += time.monotonic() - started - planning

        self.lease.check()  # before anything of it is stored: the run may have been taken over during the episode
        kind = "seed" if p.episodes < schedule.seed_episodes else "train"
        p.episodes += 1
        for task, episode, env_seed in collected:
            repeat = self._repeat(task)
            p.env_steps += episode.length * repeat
            p.agent_steps += episode.length
            self.replay.add(episode)
            self.store.append(episode)
            self._episode_row(task, kind, episode, env_seed)
        p.last_return = sum(e.total_reward for _, e, _ in collected) / len(collected)
        p.row_due = kind == "train"
        self.display.line(
            f"episode {p.episodes}/{self.total_episodes} ({kind}) return {p.last_return:.1f}, {p.updates} updates, "
            f"{p.env_steps} env steps, {self._phases()}, ETA {duration(self.eta())}"
        )

    def _policy(self, generators: Sequence[torch.Generator], action_noise: float) -> Callable[[Any], Any]:
        state = self.agent.start(generators)

        def act(obs: Any) -> Any:
            nonlocal state
            action, state = self.agent.act(state, obs, action_noise=action_noise)
            return action

        return act

    def _repeat(self, task: Task) -> int:
        return self.config.env.action_repeat or task.action_repeat

    def _evaluate(self) -> None:
        started = time.monotonic()
        p = self.progress
        returns: list[float] = []
        rows: list[tuple[Task, Episode, int]] = []
        for index, task in enumerate(self.tasks):
            if task.name not in self._eval_envs:
                self._eval_envs[task.name] = self._build_eval_envs(task)
            result = evaluate(
                self.agent,
                self._eval_envs[task.name],
                seed=self.config.seed,
                evaluation=p.evaluations,
                task_index=index,
                on_step=self._during_episode,
            )
            if len(self.tasks) > 1:  # of six tasks at a time they would take many gigabytes
                for env in self._eval_envs.pop(task.name):
                    env.close()
            returns += [episode.total_reward for episode, _ in result]
            rows += [(task, episode, env_seed) for episode, env_seed in result]
        for task, episode, env_seed in rows:
            self._episode_row(task, "eval", episode, env_seed)
        reconstruction_strip(
            self.world_model,
            rows[0][1],
            self.run_dir.strips / f"reconstruction_{p.episodes:05d}.png",
            generator=streams.torch_generator(self.config.seed, "predict", p.evaluations, device=self.device),
        )
        p.evaluations += 1
        p.last_eval = sum(returns) / len(returns)
        p.phase_seconds["eval"] += time.monotonic() - started
        self.display.line(
            f"evaluation {p.evaluations}/{len(self.eval_at)} after {p.episodes} episodes: mean return "
            f"{p.last_eval:.1f} over {len(returns)} episodes, {min(returns):.1f} to {max(returns):.1f}"
        )

    def _write_row(self) -> None:
        p = self.progress
        self._check_finite()
        means: dict[str, float] = {}
        if self.pending:
            means = {
                k: torch.stack([terms[k].float() for terms in self.pending]).mean().item() for k in self.pending[0]
            }
        row = {
            "episode": p.episodes,
            "env_steps": p.env_steps,
            "agent_steps": p.agent_steps,
            "updates": p.updates,
            **means,
            "train_return": p.last_return,
            **{f"{name}_seconds": round(seconds, 4) for name, seconds in p.phase_seconds.items()},
            "wall_seconds": round(self.clock.wall(), 3),
            "cpu_seconds": round(self.clock.cpu(), 3),
        }
        self.recorder.append_metrics(row)
        if self.tensorboard:
            self.tensorboard.metrics(row)
        self.pending.clear()
        self._found_finite = 0
        p.phase_seconds = dict.fromkeys(PHASES, 0.0)
        p.row_due = False
        if time.monotonic() - self._last_checkpoint >= self.config.runtime.checkpoint_seconds:
            self.save()

    def _episode_row(self, task: Task, kind: str, episode: Episode, env_seed: int) -> None:
        p = self.progress
        row = {
            "task": task.name,
            "kind": kind,
            "episode": p.episodes,
            "env_steps": p.env_steps,
            "agent_steps": p.agent_steps,
            "updates": p.updates,
            "return": episode.total_reward,
            "length": episode.length,
            "env_seed": env_seed,
            "wall_seconds": round(self.clock.wall(), 3),
        }
        self.recorder.append_episode(row)
        if self.tensorboard:
            self.tensorboard.episode(row)

    def _during_episode(self, step: int) -> None:
        """Abandon a collection or an evaluation on a stop signal: it is repeated, equal, after the restart."""
        if self.stop.requested:
            raise Stopped
        self._status_when_due()

    # ---------------------------------------------------------------------------------------- saving and telling

    def save(self) -> None:
        """Write a checkpoint; the lease is checked first, so that a run two processes hold has one writer."""
        self._check_finite()
        self.lease.check()
        p = self.progress
        p.wall_seconds, p.cpu_seconds = self.clock.wall(), self.clock.cpu()
        names = list(self.pending[0]) if self.pending else []
        checkpoint.save(
            self.run_dir.checkpoints,
            {
                "progress": dataclasses.asdict(p),
                "learner": self.learner.state_dict(),
                "pending": {name: torch.stack([terms[name] for terms in self.pending]) for name in names},
                "recorder": self.recorder.positions(),
                "store": self.store.position(),
            },
        )
        self._last_checkpoint = time.monotonic()

    def _restore(self) -> None:
        content = checkpoint.load(self.run_dir.checkpoints, self.device)
        if content is None:
            self.recorder.truncate({})
            self.store.truncate(None)
            if said := checkpoint.begun_anew(self.run_dir, self.config.runtime.checkpoint_seconds):
                self.display.line(said)
            return
        self.progress = Progress(**content["progress"])
        self.learner.load_state_dict(content["learner"])
        pending: Mapping[str, Tensor] = content["pending"]
        count = len(next(iter(pending.values()))) if pending else 0
        self.pending = [{name: values[i] for name, values in pending.items()} for i in range(count)]
        self.recorder.truncate(content["recorder"])
        self.store.truncate(content["store"])
        for episode in self.store.load():
            self.replay.add(episode)
        self.display.line(f"resumed at episode {self.progress.episodes}, update {self.progress.updates}")

    def eta(self) -> float | None:
        """Return the seconds to the end, from the mean pace of this run so far (evaluations included)."""
        p, schedule = self.progress, self.config.schedule
        done = p.episodes - schedule.seed_episodes
        if done <= 0:
            return None
        return self.clock.wall() / (done + schedule.seed_episodes * 0.1) * (schedule.train_episodes - done)

    def _phases(self) -> str:
        return " ".join(f"{name} {seconds:.1f} s" for name, seconds in self.progress.phase_seconds.items() if seconds)

    def _status_when_due(self) -> None:
        if time.monotonic() - self._last_status >= STATUS_EVERY_SECONDS:
            self.write_status("running")

    def write_status(self, state: str, **fields: Any) -> None:
        p = self.progress
        self._last_status = time.monotonic()
        trained = p.episodes - self.config.schedule.seed_episodes
        wall = self.clock.wall()
        eta = None if state == "done" else self.eta()
        self.recorder.write_status(
            state=state,
            episode=p.episodes,
            episodes_total=self.total_episodes,
            env_steps=p.env_steps,
            agent_steps=p.agent_steps,
            updates=p.updates,
            updates_total=self.updates_per_cycle * self.config.schedule.train_episodes,
            last_return=p.last_return,
            last_eval=p.last_eval,
            evals_done=p.evaluations,
            evals_total=len(self.eval_at),
            episodes_per_hour=round(trained / wall * 3600, 3) if trained > 0 and wall > 0 else None,
            eta_seconds=None if eta is None else round(eta, 1),
            wall_seconds=round(wall, 1),
            **fields,
        )
        last = "" if p.last_eval is None else f", evaluation {p.last_eval:.0f}"
        now = "" if p.last_return is None else f"return {p.last_return:.0f}"
        self.display.advance(p.episodes, f"{p.env_steps} env steps, {now}{last}, {self._phases()}, ETA {duration(eta)}")

    def close(self) -> None:
        if self.tensorboard:
            self.tensorboard.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for env in [*self.envs, *(env for envs in self._eval_envs.values() for env in envs)]:
            env.close()


class Timed:
    """A policy that counts the seconds spent in it."""

    def __init__(self, act: Callable[[Any], Any]) -> None:
        self._act = act
        self.seconds = 0.0

    def __call__(self, obs: Any) -> Any:
        started = time.monotonic()
        action = self._act(obs)
        self.seconds += time.monotonic() - started
        return action


def train(path: Path, *, make_env: MakeEnv = make_env) -> int:
    """Run, resume or skip the run in `path`; return the exit code (0 done, 75 stopped and resumable, 1 failed)."""
    run_dir = RunDir.open(path)
    config = run_dir.config()
    status = run_dir.status()
    if status and status.get("state") == "done":
        print(f"{path}: done")
        return EXIT_DONE
    run_dir.check_unchanged(config)
    if lost := run_dir.lost_checkpoint():  # starting anew would wipe what is here
        print(f"planet.train: {lost}", file=sys.stderr)
        return EXIT_FAILED
    if config.planner.dynamics == "simulator":
        from planet import simulator_run

        return simulator_run.run(path)
    try:
        with Lease.acquire(path) as lease, Recorder(run_dir, lease) as recorder, StopSignal() as stop:
            return _train(run_dir, config, recorder, lease, stop, make_env)
    except (LeaseHeld, LeaseLost) as error:  # somebody else's run now: not a word into its files
        print(f"planet.train: {error}", file=sys.stderr)
        return EXIT_HELD


def _train(
    run_dir: RunDir, config: Config, recorder: Recorder, lease: Lease, stop: StopSignal, make_env: MakeEnv
) -> int:
    trainer: Trainer | None = None
    total = config.schedule.seed_episodes + config.schedule.train_episodes
    with Display(run_dir.log, title=str(run_dir.path), total=total) as display, warnings.catch_warnings():
        # That something is done the slow way belongs into the log, too.
        warnings.showwarning = lambda message, *_: display.line(f"warning: {message}")
        try:
            recorder.write_status(state="running", error=None, traceback=None)
            backend = gl.choose_backend()
            first = run_dir.resolved() or {}  # what `auto` meant at the first start
            device = hardware.resolve_device(config.runtime.device)
            precision = first.get("precision") or hardware.resolve_precision(config.runtime.precision, device)
            threads = first.get("threads") or hardware.resolve_threads(config.runtime.threads)
            torch.set_num_threads(threads)
            hardware.keep_freed_memory()
            hardware.use(device)
            run_dir.record_start(
                device=str(device), precision=precision, threads=threads, picture=config.env.picture, gl=backend,
                hardware=hardware.describe(device),
            )  # fmt: skip
            trainer = Trainer(
                run_dir, config, device=device, precision=precision, recorder=recorder, display=display, lease=lease,
                stop=stop, make_env=make_env,
            )  # fmt: skip
            if renderer := renderer_of(trainer.envs[0]):
                run_dir.record_renderer(renderer)
            display.line(
                f"{config.task}, seed {config.seed}, {device}, {precision}, {threads} threads, pictures by "
                f"{renderer or backend}"
            )
            if precision == "bfloat16" and not hardware.has_bfloat16(device):
                display.line(
                    "warning: this run computes in bfloat16, which is only emulated here and many times slower than "
                    "float32; continue it where it began, or start it anew with runtime.precision=auto"
                )
            trainer.write_status("running")
            try:
                trainer.run()
            except Stopped:
                trainer.save()
                trainer.write_status("stopped")
                display.line("stopped; everything is saved, the same command goes on")
                return EXIT_STOPPED
            if config.schedule.open_loop_episodes:
                count = config.schedule.open_loop_episodes
                write_open_loop(
                    run_dir, config, trainer.world_model, trained_episodes=trainer.progress.episodes, device=device,
                    count=count,
                )  # fmt: skip
            trainer.write_status("done")
            display.line(f"done in {duration(trainer.clock.wall())}")
            return EXIT_DONE
        except LeaseLost:
            raise
        except Exception as error:
            last = f"{type(error).__name__}: {error}"
            recorder.write_status(state="failed", error=last, traceback=traceback.format_exc())
            display.line(f"failed: {last}")
            traceback.print_exc()
            return EXIT_FAILED
        finally:
            if trainer is not None:
                trainer.close()
            gc.collect()  # GL contexts go while the interpreter is whole


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m planet.train", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run_dir", type=Path, help="a run directory made by benchmarks/launch.py")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("LP_NUM_THREADS", "0")  # software GL: its threads cost more than they give at 64 x 64
    try:
        return train(arguments.run_dir)
    except (ValueError, OSError) as error:
        print(f"planet.train: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""Evaluation: episodes without exploration noise, from start states and with planner noise never used in training.

`python -m planet.evaluate RUN_DIR --episodes 10 [--video]` does it for a finished or running run, from its latest
checkpoint, or for exported weights (`planet.checkpoint`), and changes nothing that training reads. With `--open-loop`
alone it writes predictions/ anew instead, over what training wrote there (`planet.prediction`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from planet import checkpoint, gl, hardware, held_out, streams, tasks
from planet.agent import Agent
from planet.config import Config, override, parse_changes
from planet.envs import Env, MakeEnv, PadActions, make_env
from planet.prediction import write_open_loop
from planet.presets import with_elites
from planet.rollout import Episode, run_episodes
from planet.run_dir import RunDir, writable_folder
from planet.strips import write_gif
from planet.world_model import WorldModel


def evaluate(
    agent: Agent,
    envs: Sequence[Env],
    *,
    seed: int,
    evaluation: int,
    task_index: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> list[tuple[Episode, int]]:
    """Return one noise-free episode per environment, with the seed of its start state, run in lockstep.

    Start states and planner noise are a function of (seed, evaluation, task_index, place in `envs`) alone: neither
    the number of episodes nor what was evaluated before changes them, and training never draws from these streams.
    """
    seeds = [streams.integer(seed, "eval_env", evaluation, task_index, k) for k in range(len(envs))]
    generators = [
        streams.torch_generator(seed, "eval", evaluation, task_index, k, device=agent.device) for k in range(len(envs))
    ]
    state = agent.start(generators)

    def act(obs: Any) -> Any:
        nonlocal state
        action, state = agent.act(state, obs, action_noise=0.0)
        return action

    return list(zip(run_episodes(envs, act, seeds, on_step=on_step), seeds, strict=True))


def load_agent(run_dir: RunDir, config: Config, device: torch.device) -> tuple[Agent, int]:
    """Return the agent of the run's latest checkpoint, or exported weights, and the number of its training episodes.

    Raises:
        FileNotFoundError: the run has neither yet. CheckpointError: damaged, or not this configuration's.
    """
    parameters, progress = checkpoint.load_model(run_dir, device)
    action_size = max(task.action_size for task in tasks.members(config.task))
    world_model = WorldModel(config.model, config.objective, action_size).to(device)
    try:
        world_model.load_state_dict(parameters)
    except RuntimeError as error:  # names or shapes that do not match
        raise checkpoint.CheckpointError(
            f"the weights in {run_dir.path} do not fit its config.toml ({error}); take both from one run"
        ) from None
    precision = (run_dir.resolved() or {}).get("precision") or hardware.resolve_precision(
        config.runtime.precision, device
    )
    agent = Agent(world_model, config.planner, action_size=action_size, precision=precision)
    return agent, progress["episodes"]


def main(argv: Sequence[str] | None = None, *, make_env: MakeEnv = make_env) -> int:
    """Evaluate as the command line says; return the exit code.

    `make_env` as for `planet.train.train`: a run in an environment of your own needs yours.
    """
    parser = argparse.ArgumentParser(prog="python -m planet.evaluate", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--episodes", type=int, help="episodes per task (default 10)")
    parser.add_argument("--task", help="one task of a multi-task run (default: all)")
    parser.add_argument("--evaluation", type=int, help="index of the start states (default: one training never used)")
    parser.add_argument("--set", nargs="+", metavar="planner.KEY=VALUE", help="plan otherwise than in training")
    parser.add_argument("--video", action="store_true", help="write videos/evaluation_<episodes>_<task>_<k>.gif")
    parser.add_argument(
        "--open-loop",
        action="store_true",
        help="write predictions/ instead of acting (alone), in place of what training wrote there",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="print returns as JSON instead of a table")
    arguments = parser.parse_args(argv)
    try:
        return _main(arguments, make_env)
    except (ValueError, KeyError, OSError, checkpoint.CheckpointError) as error:
        print(f"planet.evaluate: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2


def _check_alone(arguments: argparse.Namespace) -> None:
    """Raise ValueError where --open-loop comes with an option that is about acting: it would go unheard."""
    acting = ("task", "episodes", "evaluation", "set", "video", "json")
    values = {f"--{name}": getattr(arguments, name) for name in acting}
    given = [name for name, value in values.items() if value is not None and value is not False]  # 0 was given
    if given:
        raise ValueError(
            f"--open-loop predicts the held-out episodes of every task of the run and must come without "
            f"{', '.join(values)}; got {', '.join(given)}: leave that out, or evaluate in a "
            "second call without --open-loop"
        )


def with_planner(config: Config, changes: Mapping[str, str]) -> Config:
    """Return the configuration with settings of the planner changed: they need no other training.

    Raises:
        KeyError, ValueError: not a setting of the planner, or not a value of it; the simulator in the model's place.
    """
    for key in changes:
        if not key.startswith("planner.") or key == "planner.dynamics":
            raise ValueError(
                f"--set changes how a trained agent plans (planner.candidates, planner.samples, ...), got {key}: train "
                "another run for that (benchmarks/launch.py --set)"
            )
    return override(config, with_elites(changes))


def _main(arguments: argparse.Namespace, make_env: MakeEnv) -> int:
    if arguments.open_loop:
        _check_alone(arguments)
    num_episodes = 10 if arguments.episodes is None else arguments.episodes
    if num_episodes < 1:
        raise ValueError(f"--episodes must be at least 1, got {num_episodes}")
    if arguments.evaluation is not None and arguments.evaluation < 0:
        raise ValueError(f"--evaluation must be at least 0, got {arguments.evaluation}")
    run_dir = RunDir.open(arguments.run_dir)
    changes = parse_changes(arguments.set or [])
    config = with_planner(run_dir.config(), changes)
    members = tasks.members(config.task)
    names = [task.name for task in members]
    chosen = names if arguments.task is None else [tasks.canonical(arguments.task)]
    if not set(chosen) <= set(names):
        raise ValueError(f"{run_dir.path} acts in {', '.join(names)}, not in {chosen[0]}")
    if arguments.open_loop and not any(map(held_out.available, members)):
        raise ValueError(
            f"--open-loop: there are no held-out episodes of {', '.join(names)} to predict; planet/held_out.npz has "
            "those of the suite's own tasks"
        )
    gl.choose_backend()
    device = hardware.resolve_device(arguments.device, "--device")
    torch.set_num_threads(hardware.resolve_threads(config.runtime.threads))
    hardware.use(device)
    agent, trained = load_agent(run_dir, config, device)
    if arguments.open_loop:
        writable_folder(run_dir.predictions, "--open-loop writes there: evaluate a copy of the run")
        before = ", in place of what was there" if any(run_dir.predictions.iterdir()) else ""
        for path in write_open_loop(
            run_dir, config, agent.world_model, trained_episodes=trained, device=device,
            count=config.schedule.open_loop_episodes or 10,
        ):  # fmt: skip
            print(path)
        print(f"{run_dir.predictions}: of the model after {trained} episodes{before}", file=sys.stderr)
        return 0
    if arguments.video:
        writable_folder(run_dir.videos, "--video writes there: evaluate a copy of the run, or leave --video out")
    evaluation = len(config.schedule.eval_at()) if arguments.evaluation is None else arguments.evaluation
    given = {} if arguments.evaluation is None else {"evaluation": evaluation}
    otherwise = "".join(f"+{key}={value}" for key, value in sorted({**changes, **given}.items()))
    results: dict[str, list[float]] = {}
    for index, task in enumerate(members):
        if task.name not in chosen:
            continue
        envs = [PadActions(make_env(task, config.env), agent.action_size) for _ in range(num_episodes)]
        started = time.monotonic()
        episodes = evaluate(agent, envs, seed=config.seed, evaluation=evaluation, task_index=index)
        seconds = time.monotonic() - started
        for env in envs:
            env.close()
        results[task.name] = [episode.total_reward for episode, _ in episodes]
        if arguments.video:
            for k, (episode, _) in enumerate(episodes):
                path = run_dir.videos / f"evaluation_{trained:05d}_{task.name}_{k}{otherwise}.gif"
                write_gif(path, episode.obs, frames_per_second=100 / envs[0].action_repeat)
                print(path, file=sys.stderr)
        print(f"{task.name}: {num_episodes} episodes in {seconds:.1f} s", file=sys.stderr)
    if arguments.json:
        told = {"run": str(run_dir.path), "episode": trained, "evaluation": evaluation, "set": changes}
        print(json.dumps({**told, "returns": results}))
        return 0
    table = Table(title=f"{run_dir.path} after {trained} episodes{otherwise.replace('+', ' ')}")
    for column in ("task", "mean", "median", "5 %", "95 %", "returns"):
        table.add_column(column, justify="left" if column in ("task", "returns") else "right")
    for name, returns in results.items():
        low, median, high = np.percentile(returns, [5, 50, 95])
        table.add_row(
            name, f"{np.mean(returns):.1f}", f"{median:.1f}", f"{low:.1f}", f"{high:.1f}",
            " ".join(f"{r:.0f}" for r in returns),
        )  # fmt: skip
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

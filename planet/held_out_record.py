"""Records the held-out episodes of `planet.held_out`: `python -m planet.held_out_record [TASK ...]`.

Run once; its result is kept in the package, since errors of prediction are comparable on equal episodes only. Of ten
episodes, every third is planned in the true simulator with exploration noise on top, so that something worth
predicting happens (the paper's Figure 10 takes noisy episodes of its agent); the others are uniformly random, as the
seed episodes of a run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, Int8

from planet import cem, held_out, tasks
from planet.config import EnvConfig
from planet.envs import make_env
from planet.simulator_score import SimulatorScore
from planet.tasks import Task

EPISODES = 10
ENTROPY = 4551  # not a run's seed: its streams are keyed otherwise
CANDIDATES, ELITES, ITERATIONS = 60, 6, 3
EVERY = 2
"""A plan's first two actions are executed before the next is made: competence enough, at half the cost."""
NOISE = 0.3
HORIZON = {"cup_catch": 12}
DEFAULT_HORIZON = 8


def record(task: Task, index: int) -> tuple[int, Int8[np.ndarray, "decision action"], float]:
    """Return (seed of the start state, actions in steps of 1/127, return) of one episode."""
    rng = np.random.default_rng(np.random.SeedSequence(ENTROPY, spawn_key=(list(tasks.TASKS).index(task.name), index)))
    seed = int(rng.integers(2**31))
    env = make_env(task, EnvConfig())
    env.reset(seed)
    score = SimulatorScore([env], threads=1)
    generator = torch.Generator().manual_seed(seed)
    horizon = HORIZON.get(task.name, DEFAULT_HORIZON)
    stored = np.zeros((env.agent_steps, env.action_size), np.int8)
    mean: torch.Tensor | None = None
    total = 0.0
    for t in range(env.agent_steps):
        if not held_out.planned(index):
            action = rng.uniform(-1, 1, env.action_size)
        else:
            if t % EVERY == 0:
                start = None if mean is None else torch.cat([mean[:, EVERY:], torch.zeros_like(mean[:, :EVERY])], dim=1)
                mean = cem.plan(
                    score, num_envs=1, action_size=env.action_size, horizon=horizon, candidates=CANDIDATES,
                    elites=ELITES, iterations=ITERATIONS, generators=[generator], device=torch.device("cpu"),
                    start_mean=start,
                ).mean  # fmt: skip
            assert mean is not None
            action = mean[0, t % EVERY].numpy() + NOISE * rng.standard_normal(env.action_size)
        stored[t] = np.rint(127 * np.clip(action, -1, 1))
        total += env.step(decode(stored[t])).reward
    score.close()
    env.close()
    return seed, stored, total


def decode(stored: Int8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Return the actions in [-1, 1] that are stored as whole numbers of 1/127."""
    return stored.astype(np.float32) / 127


def main(argv: Sequence[str] | None = None) -> int:
    names = list(sys.argv[1:] if argv is None else argv) or list(tasks.TASKS)
    with np.load(held_out.DATA) as data:
        arrays = dict(data)
    for name in names:
        task = tasks.TASKS[tasks.canonical(name)]
        found = []
        for index in range(EPISODES):
            found.append(record(task, index))
            print(f"{task.name}, episode {index}: return {found[-1][2]:.1f}", flush=True)
        arrays[f"{task.name}_seeds"] = np.array([seed for seed, _, _ in found], np.int64)
        arrays[f"{task.name}_actions"] = np.stack([actions for _, actions, _ in found])
        np.savez_compressed(held_out.DATA, **arrays)
    return 0


if __name__ == "__main__":
    sys.exit(main())

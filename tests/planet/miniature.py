"""One small run that must learn, and ways to break it: `miniature.py [--seed K] [--broken NAME] [--device D]`.

The task is dm_control's cart with its pole, from pixels, with two changes: the cart starts anywhere on the rail and its
joint brakes; the reward is for being near the middle. It is learnt in a few hundred updates, and only by an agent that
sees where the cart is, knows which way an action moves it, and knows where the reward is: a cart left alone, or moved
at random, stays about where it was. Prints the returns of the trained agent and of random actions from the same start
states, as JSON. All of training is `planet.train`'s own; each way of breaking it changes one method of `planet`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from planet import cem, presets, tasks, train
from planet.config import EnvConfig
from planet.envs import DMControlEnv, Step
from planet.learner import Learner
from planet.networks import Encoder
from planet.replay import Batch, Replay
from planet.rollout import random_policy, run_episodes
from planet.run_dir import RunDir, read_jsonl
from planet.tasks import Task
from planet.world_model import WorldModel

TASK = "cartpole_swingup"
CHANGES = {
    "env.episode_env_steps": 160,
    "model.conv_depth": 6,
    "model.deter": 60,
    "model.hidden": 60,
    "model.reward_units": 60,
    "model.stoch": 10,
    "batch.size": 10,
    "batch.chunk": 8,
    "objective.overshooting_distance": 8,
    "optimizer.learning_rate": 3e-3,
    "planner.candidates": 60,
    "planner.elites": 8,
    "planner.iterations": 4,
    "planner.horizon": 8,
    "schedule.seed_episodes": 24,
    "schedule.updates": 75,
    "schedule.train_episodes": 8,
    "schedule.eval_points": 0,
    "schedule.eval_episodes": 10,
    "schedule.open_loop_episodes": 0,
    "runtime.device": "cpu",
    "runtime.precision": "float32",
    "runtime.threads": 1,
    "runtime.checkpoint_seconds": 1e6,
}


class Cart(DMControlEnv):
    """The cart of dm_control's cartpole on a rail with friction; the nearer the middle, the more reward."""

    def __init__(self, task: Task, config: EnvConfig) -> None:
        super().__init__(task, config)
        self.physics.model.dof_damping[:] = 3, 0.05  # cart, pole

    def reset(self, seed: int) -> UInt8[np.ndarray, "3 64 64"]:
        super().reset(seed)
        self.physics.named.data.qpos["slider"] = np.random.default_rng(seed).uniform(-1.3, 1.3)
        self.physics.forward()
        return self._camera.picture(self.physics)

    def step(self, action: Float32[np.ndarray, " action"]) -> Step:
        step = super().step(action)
        place = self.physics.named.data.qpos["slider"].item()
        return Step(step.obs, self.action_repeat * float(np.exp(-abs(place) / 0.5)), step.last)


def run(path: Path, seed: int, device: str) -> dict[str, list[float]]:
    """Train one agent in the run directory `path`; return its last evaluation and random episodes beside it."""
    there = {"runtime.device": device} | ({} if device == "cpu" else {"runtime.precision": "auto"})
    config = presets.resolve(TASK, preset="quick", changes=CHANGES | there, seed=seed)
    run_dir = RunDir.create(path, config, preset="quick", variant="miniature")
    assert train.train(path, make_env=Cart) == 0
    rows, _ = read_jsonl(run_dir.episodes_jsonl)
    evaluation = [row for row in rows if row["kind"] == "eval"]
    envs = [Cart(tasks.TASKS[TASK], config.env) for _ in evaluation]
    policy = random_policy(np.random.default_rng(1), envs[0].action_size)
    episodes = run_episodes(envs, policy, [row["env_seed"] for row in evaluation])
    for env in envs:
        env.close()
    return {"acted": [row["return"] for row in evaluation], "random": [e.total_reward for e in episodes]}


# ------------------------------------------------------------------------------------------------- ways to break it


def _batches(change: Callable[[Batch], Batch]) -> None:
    sample = Replay.sample
    Replay.sample = lambda self, *a: change(sample(self, *a))  # type: ignore[method-assign]


def reward_zeros() -> None:
    """The reward head is trained on zeros."""
    _batches(lambda b: Batch(b.obs, b.action, np.zeros_like(b.reward)))


def reward_of_another_chunk() -> None:
    _batches(lambda b: Batch(b.obs, b.action, np.roll(b.reward, 1, axis=0)))


def actions_of_another_chunk() -> None:
    _batches(lambda b: Batch(b.obs, np.roll(b.action, 1, axis=0), b.reward))


def actions_shuffled_in_time() -> None:
    rng = np.random.default_rng(0)
    _batches(lambda b: Batch(b.obs, b.action[:, rng.permutation(b.action.shape[1])], b.reward))


def posterior_blind() -> None:
    """The posterior gets zeros in place of the encoded picture, in training and in acting."""
    forward = Encoder.forward
    Encoder.forward = lambda self, image: forward(self, image) * 0  # type: ignore[method-assign]


def posterior_frozen() -> None:
    """Encoder and posterior keep their initial weights."""
    init = Learner.__init__

    def frozen(self: Learner, world_model: WorldModel, *args, **kwargs) -> None:
        for module in (world_model.encoder, world_model.transition.posterior_head):
            module.requires_grad_(False)  # type: ignore[union-attr]
        init(self, world_model, *args, **kwargs)

    Learner.__init__ = frozen  # type: ignore[method-assign]


def planner_first() -> None:
    """The plan is the mean of the first iteration's elites."""
    plan = cem.plan
    cem.plan = lambda score, **k: plan(score, **{**k, "iterations": 1})


def planner_worst() -> None:
    """The planner keeps the worst candidates."""
    plan = cem.plan
    cem.plan = lambda score, **k: plan(lambda candidates: -score(candidates), **k)


def no_updates() -> None:
    """The optimiser never steps."""
    torch.optim.Adam.step = lambda self, closure=None: None  # type: ignore[method-assign]


BROKEN = {
    f.__name__: f
    for f in (
        reward_zeros, reward_of_another_chunk, actions_of_another_chunk, actions_shuffled_in_time, posterior_blind,
        posterior_frozen, planner_first, planner_worst, no_updates,
    )
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--broken", choices=sorted(BROKEN))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.broken:
        BROKEN[arguments.broken]()
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder) / "seed", arguments.seed, arguments.device)
    gain = float(np.mean(result["acted"]) - np.mean(result["random"]))
    print(json.dumps({"gain": gain, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

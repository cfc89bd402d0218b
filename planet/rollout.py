"""Whole episodes of one task: environments, an `act` function and seeds in, `Episode`s out.

Knows the environment protocol and numpy; knows nothing of agents or models. Random, training and evaluation episodes
all come from here, so they share one time convention: `action[t]` led to `obs[t]`, `reward[t]` was earned on the way,
`action[0] = 0`, `reward[0] = 0`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from planet.envs import Env, PatientEnv, Step

Act = Callable[[UInt8[np.ndarray, "env 3 64 64"]], Float32[np.ndarray, "env action"]]
"""The current pictures of all environments in, one action in [-1, 1] for each out."""


@dataclass(frozen=True, slots=True)
class Episode:
    """T decisions and the T + 1 frames around them; arrays of one length, in the time convention above."""

    obs: UInt8[np.ndarray, "frame 3 64 64"]
    action: Float32[np.ndarray, "frame action"]
    reward: Float32[np.ndarray, " frame"]

    @property
    def length(self) -> int:
        """T: decisions, one less than frames."""
        return len(self.obs) - 1

    @property
    def total_reward(self) -> float:
        """Sum of the rewards (the episode's return, undiscounted)."""
        return float(self.reward.sum(dtype=np.float64))


def run_episodes(
    envs: Sequence[Env], act: Act, seeds: Sequence[int], on_step: Callable[[int], None] | None = None
) -> list[Episode]:
    """Return one episode per environment, all advanced together, `act` seeing the pictures of all at once.

    Args:
        envs: environments of one task (equal `action_size` and `agent_steps`); each is reset with its seed.
        act: called `agent_steps` times; never sees the last frame.
        seeds: one per environment; the start state is a function of the seed alone.
        on_step: called with t = 1..T after each decision; may raise to abandon the episodes.

    Raises:
        ValueError: environments that do not match, as many seeds as environments missing, an action of the wrong
            shape, not finite or outside [-1, 1], or an environment that does not end at `agent_steps`.
    """
    if not envs or len(envs) != len(seeds):
        raise ValueError(f"run_episodes needs one seed per environment, got {len(envs)} and {len(seeds)} seeds")
    shapes = {(env.action_size, env.agent_steps) for env in envs}
    if len(shapes) != 1:
        raise ValueError(f"run_episodes needs environments of one (action_size, agent_steps), got {sorted(shapes)}")
    [(action_size, steps)] = shapes

    count = len(envs)
    obs = np.empty((count, steps + 1, 3, 64, 64), np.uint8)
    action = np.zeros((count, steps + 1, action_size), np.float32)
    reward = np.zeros((count, steps + 1), np.float32)
    for n, picture in enumerate(_reset_all(envs, seeds)):
        obs[n, 0] = picture
    for t in range(1, steps + 1):
        chosen = act(obs[:, t - 1])  # [N, A]
        if chosen.shape != (count, action_size):
            raise ValueError(f"act must return actions of shape {(count, action_size)}, got {chosen.shape}")
        action[:, t] = chosen
        for n, step in enumerate(_step_all(envs, action[:, t])):
            obs[n, t], reward[n, t] = step.obs, step.reward
            if step.last != (t == steps):
                raise ValueError(
                    f"environment {n} says last={step.last} after {t} decisions, but episodes have agent_steps="
                    f"{steps}; an environment that ends early must go on (or repeat its last frame) until then"
                )
        if on_step is not None:
            on_step(t)
    return [Episode(obs[n], action[n], reward[n]) for n in range(count)]


def _reset_all(envs: Sequence[Env], seeds: Sequence[int]) -> list[UInt8[np.ndarray, "3 64 64"]]:
    for env, seed in zip(envs, seeds, strict=True):
        if isinstance(env, PatientEnv):
            env.begin_reset(seed)
    pairs = zip(envs, seeds, strict=True)
    return [env.end_reset() if isinstance(env, PatientEnv) else env.reset(seed) for env, seed in pairs]


def _step_all(envs: Sequence[Env], actions: Float32[np.ndarray, "env action"]) -> list[Step]:
    for env, action in zip(envs, actions, strict=True):
        if isinstance(env, PatientEnv):
            env.begin_step(action)
    pairs = zip(envs, actions, strict=True)
    return [env.end_step() if isinstance(env, PatientEnv) else env.step(action) for env, action in pairs]


def random_policy(rng: np.random.Generator, action_size: int) -> Act:
    """Return an `act` that draws every action uniformly from [-1, 1]."""

    def act(obs: UInt8[np.ndarray, "env 3 64 64"]) -> Float32[np.ndarray, "env action"]:
        return rng.uniform(-1.0, 1.0, (len(obs), action_size)).astype(np.float32)

    return act

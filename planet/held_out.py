"""Held-out episodes, the same for every variant of a task: kept as start seeds and actions, simulated again on use.

They are never trained on. Simulating gives the pictures the model is asked to predict and the true simulator states
that probes are fitted to.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from planet.config import EnvConfig
from planet.envs import make_env
from planet.rollout import Episode
from planet.tasks import Task

DATA = Path(__file__).parent / "held_out.npz"


@dataclass(frozen=True, slots=True)
class HeldOut:
    episode: Episode
    state: Float[np.ndarray, "time state"]
    """Positions and velocities of the simulator at every frame, T+1 rows."""
    state_names: tuple[str, ...]


def available(task: Task) -> bool:
    """Return whether the package holds episodes of this task (a task of your own has none)."""
    with np.load(DATA) as data:
        return f"{task.name}_seeds" in data


def episodes(task: Task, config: EnvConfig, count: int | None = None) -> list[HeldOut]:
    """Return the task's held-out episodes (at most `count`), as long as `config` allows.

    A task with another action repeat than the paper's holds every action for its own number of environment steps.
    """
    with np.load(DATA) as data:
        seeds = data[f"{task.name}_seeds"][:count]
        actions = data[f"{task.name}_actions"][:count].astype(np.float32) / 127  # [episode, decision, action]
    env = make_env(task, config)
    times = np.arange(env.agent_steps) * env.action_repeat // task.action_repeat  # decisions of the stored sequence
    found = [_simulate(env, int(seed), action[times]) for seed, action in zip(seeds, actions, strict=True)]
    env.close()
    return found


def _simulate(env, seed: int, actions: Float[np.ndarray, "step action"]) -> HeldOut:
    obs, rewards, states = [env.reset(seed)], [0.0], [env.physics.get_state()]
    for action in actions:
        step = env.step(action)
        obs.append(step.obs)
        rewards.append(step.reward)
        states.append(env.physics.get_state())
    model = env.physics.model
    joints = [model.id2name(j, "joint") or f"joint_{j}" for j in range(model.njnt)]
    if len(joints) != model.nq or model.nq != model.nv:
        joints = [f"q{i}" for i in range(model.nq)]
    episode = Episode(
        obs=np.stack(obs),
        action=np.concatenate([np.zeros_like(actions[:1]), actions]),
        reward=np.asarray(rewards, np.float32),
    )
    names = (*(f"{name} position" for name in joints), *(f"{name} velocity" for name in joints[: model.nv]))
    return HeldOut(episode, np.stack(states), names)

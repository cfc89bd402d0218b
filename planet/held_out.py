"""Held-out episodes of each task: kept as start seeds and actions, simulated again on use.

They are never trained on. Simulating gives the pictures the model is asked to predict and the true simulator states
that probes are fitted to. They are the same for every variant that keeps the task's action repeat, and only for those.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from planet.config import EnvConfig
from planet.envs import DMControlEnv, make_env
from planet.rollout import Episode
from planet.tasks import Task

if TYPE_CHECKING:
    from dm_control import mujoco as dm_mujoco

DATA = Path(__file__).parent / "held_out.npz"
ROOT_X = "rootx"
"""Where along the track the cheetah and the walker are: reward and picture are the same everywhere, so no model can
know it, and dm_control's own observation leaves it out."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    episode: Episode
    state: Float[np.ndarray, "time state"]
    """`readable_state` of the simulator at every frame, T+1 rows."""
    state_names: tuple[str, ...]
    planned: bool
    """Whether its actions were planned, with exploration noise on top; the others are uniformly random."""


def available(task: Task) -> bool:
    """Return whether the package holds episodes of this task (a task of your own has none)."""
    with np.load(DATA) as data:
        return f"{task.name}_seeds" in data


def planned(index: int) -> bool:
    """Return whether episode `index` of a task was planned when it was recorded: every third, from the first on."""
    return index % 3 == 0


def episodes(task: Task, config: EnvConfig, count: int | None = None) -> list[HeldOut]:
    """Return the task's held-out episodes (at most `count`), as long as `config` allows.

    With another action repeat than the task's own, a decision takes the action recorded for the time it begins at.
    Where the repeat divides the task's own, the same trajectory is seen more often. Otherwise actions are left out or
    held for another time, and from the same start states other trajectories follow.
    """
    with np.load(DATA) as data:
        seeds = data[f"{task.name}_seeds"][:count]
        actions = data[f"{task.name}_actions"][:count].astype(np.float32) / 127  # [episode, decision, action]
    env = make_env(task, config)
    times = np.arange(env.agent_steps) * env.action_repeat // task.action_repeat  # decisions of the stored sequence
    found = [
        HeldOut(*_simulate(env, int(seed), action[times]), planned(index))
        for index, (seed, action) in enumerate(zip(seeds, actions, strict=True))
    ]
    env.close()
    return found


def _simulate(
    env: DMControlEnv, seed: int, actions: Float[np.ndarray, "step action"]
) -> tuple[Episode, Float[np.ndarray, "time state"], tuple[str, ...]]:
    """Return the episode, its states and their names."""
    obs, rewards, states = [env.reset(seed)], [0.0], [readable_state(env.physics)]
    for action in actions:
        step = env.step(action)
        obs.append(step.obs)
        rewards.append(step.reward)
        states.append(readable_state(env.physics))
    episode = Episode(
        obs=np.stack(obs),
        action=np.concatenate([np.zeros_like(actions[:1]), actions]),
        reward=np.asarray(rewards, np.float32),
    )
    return episode, np.array([list(state.values()) for state in states]), tuple(states[0])


def readable_state(physics: dm_mujoco.Physics) -> dict[str, float]:
    """Return by name what a linear probe can be asked to read of the simulator's state: positions, then velocities.

    Slides are in metres, hinges in radians. A hinge that turns freely has the sine and the cosine of its angle in place
    of the angle, which counts whole turns that no picture shows; `ROOT_X` has a velocity and no position. The cheetah's
    are the 8 positions (one of them as two numbers) and 9 velocities of the paper's Figure 11.

    Raises:
        ValueError: a joint that is neither a hinge nor a slide.
    """
    # Only here, where an environment has chosen the GL back end; a compiled module, unseen by a type checker.
    mujoco: Any = importlib.import_module("mujoco")
    model, data = physics.model, physics.data
    positions: dict[str, float] = {}
    velocities: dict[str, float] = {}
    for j in range(model.njnt):
        name, kind = model.id2name(j, "joint") or f"joint_{j}", mujoco.mjtJoint(int(model.jnt_type[j]))
        if kind not in (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE):
            raise ValueError(f"joint {name} must be a hinge or a slide to be read off a picture, got {kind.name}")
        position = float(data.qpos[model.jnt_qposadr[j]])
        velocities[f"{name} velocity"] = float(data.qvel[model.jnt_dofadr[j]])
        if kind == mujoco.mjtJoint.mjJNT_HINGE and not model.jnt_limited[j]:
            positions |= {f"{name} sine": np.sin(position), f"{name} cosine": np.cos(position)}
        elif name != ROOT_X:
            positions[f"{name} position"] = position
    return positions | velocities

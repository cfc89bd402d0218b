"""The six tasks' rewards as numpy functions of many simulator states at once.

dm_control computes a reward from one `Physics` at a time; planning in the true simulator needs millions a decision.
Each function restates its task's `get_reward` in terms of joint positions, velocities and (cheetah, walker) the
centre-of-mass velocity sensor; that it equals dm_control's is tested state by state. Metres and radians.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True, slots=True)
class States:
    """Simulator states at the end of control steps, `[*batch]`, and the controls that led to them."""

    model: Any
    """mujoco.MjModel, as it is after the episode's reset."""
    qpos: Float64[np.ndarray, "*batch nq"]
    qvel: Float64[np.ndarray, "*batch nv"]
    sensordata: Float64[np.ndarray, "*batch nsensordata"]
    """Evaluated at these very states (a recorded rollout's lags one substep behind)."""
    control: Float64[np.ndarray, "*batch nu"]


Reward = Callable[[States], Float64[np.ndarray, "*batch"]]


def cartpole_swingup(s: States) -> Float64[np.ndarray, "*batch"]:
    upright = (1 + np.cos(s.qpos[..., 1])) / 2
    centered = (1 + _gaussian(s.qpos[..., 0] / 2)) / 2
    small_control = (4 + np.maximum(0.0, 1 - s.control[..., 0] ** 2)) / 5
    small_velocity = (1 + _gaussian(s.qvel[..., 1] / 5)) / 2
    return upright * small_control * small_velocity * centered


def reacher_easy(s: States) -> Float64[np.ndarray, "*batch"]:
    """1 where the finger's centre is inside the target, whose place and size are read from the model."""
    shoulder, wrist = s.qpos[..., 0], s.qpos[..., 0] + s.qpos[..., 1]
    hand, finger = s.model.body("hand").pos[0], s.model.body("finger").pos[0]  # lengths of arm and hand
    target = s.model.geom("target").pos
    dx = target[0] - hand * np.cos(shoulder) - finger * np.cos(wrist)
    dy = target[1] - hand * np.sin(shoulder) - finger * np.sin(wrist)
    radii = s.model.geom("target").size[0] + s.model.geom("finger").size[0]
    return (np.hypot(dx, dy) <= radii).astype(np.float64)


def cheetah_run(s: States) -> Float64[np.ndarray, "*batch"]:
    """Rises linearly with the speed of the centre of mass, up to 1 at 10 m/s."""
    return np.clip(_com_speed(s) / 10, 0.0, 1.0)


def finger_spin(s: States) -> Float64[np.ndarray, "*batch"]:
    hinge = s.model.joint("hinge").dofadr[0]
    return (s.qvel[..., hinge] <= -15.0).astype(np.float64)


def cup_catch(s: States) -> Float64[np.ndarray, "*batch"]:
    """1 where the ball is wholly inside the box of the cup's target site."""
    cup_x, cup_z, ball_x, ball_z = np.moveaxis(s.qpos, -1, 0)
    site = s.model.site("target")
    cup = s.model.body("cup").pos + site.pos  # of the site at zero joint positions; the cup only slides
    ball = s.model.body("ball").pos
    size = site.size - s.model.geom("ball").size[0]
    inside_x = np.abs(cup[0] + cup_x - ball[0] - ball_x) < size[0]
    inside_z = np.abs(cup[2] + cup_z - ball[2] - ball_z) < size[2]
    return (inside_x & inside_z).astype(np.float64)


def walker_walk(s: States) -> Float64[np.ndarray, "*batch"]:
    """Standing (1.2 m high and upright) times moving (1 m/s)."""
    height = s.model.body("torso").pos[2] + s.qpos[..., 0]
    standing = np.where(height >= 1.2, 1.0, _gaussian((1.2 - height) / 0.6))
    upright = (1 + np.cos(s.qpos[..., 2])) / 2
    stand = (3 * standing + upright) / 4
    # Linear below 1 m/s, worth 0.5 at 0.5 m/s, and nothing at 0 or backwards.
    move = np.clip(_com_speed(s), 0.0, 1.0)
    return stand * (5 * move + 1) / 6


REWARDS: dict[str, Reward] = {
    "cartpole_swingup": cartpole_swingup,
    "reacher_easy": reacher_easy,
    "cheetah_run": cheetah_run,
    "finger_spin": finger_spin,
    "cup_catch": cup_catch,
    "walker_walk": walker_walk,
}
"""By task name."""


def _com_speed(s: States) -> np.ndarray:
    return s.sensordata[..., s.model.sensor("torso_subtreelinvel").adr[0]]


def _gaussian(distance: np.ndarray) -> np.ndarray:
    """Return dm_control's bell: 1 at 0 and 0.1 at a distance of one margin."""
    return np.exp(np.log(0.1) * distance**2)

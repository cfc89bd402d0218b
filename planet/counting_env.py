"""An environment that counts: its pictures and rewards encode the time step, the seed and the action just executed.

For tests and for trying out a new part of the program: whatever passes through rollout, replay, batch and agent can be
read back, so that an error of one step in time shows up as a wrong number. Knows no simulator.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8

from planet.envs import Step, check_action


class Reading(NamedTuple):
    """What a `CountingEnv` wrote into one picture."""

    time: int
    seed: int
    action: Float[np.ndarray, " action"]
    """The action that led to this picture, to within 1/254; zero at time 0."""


class CountingEnv:
    """Channel 0 and 1 hold the low and high byte of t, channel 2 the seed's low byte and, in row 0, the action.

    The reward earned on the way to time t is t. The episode ends after `agent_steps` decisions.
    """

    action_repeat = 1

    def __init__(self, action_size: int, agent_steps: int) -> None:
        if not 1 <= action_size <= 64:
            raise ValueError(f"CountingEnv: action_size must be in 1..64 (one pixel each), got {action_size}")
        if not 1 <= agent_steps < 1 << 16:
            raise ValueError(f"CountingEnv: agent_steps must be in 1..65535 (two bytes), got {agent_steps}")
        self.action_size = action_size
        self.agent_steps = agent_steps
        self._seed = 0
        self._time = agent_steps

    def reset(self, seed: int) -> UInt8[np.ndarray, "3 64 64"]:
        """Begin an episode; return its first picture, at time 0."""
        self._seed, self._time = seed, 0
        return self._picture(np.zeros(self.action_size, np.float32))

    def step(self, action: Float32[np.ndarray, " action"]) -> Step:
        """Advance to the next time step. A non-finite or out-of-range action, or a finished episode: ValueError."""
        check_action(action, self.action_size)
        if self._time >= self.agent_steps:
            raise ValueError("CountingEnv: the episode is over (or has not begun); call reset(seed)")
        self._time += 1
        return Step(self._picture(action), float(self._time), self._time == self.agent_steps)

    def close(self) -> None:
        """Nothing to free."""

    def _picture(self, action: Float32[np.ndarray, " action"]) -> UInt8[np.ndarray, "3 64 64"]:
        picture = np.empty((3, 64, 64), np.uint8)
        picture[0], picture[1], picture[2] = self._time & 255, self._time >> 8, self._seed & 255
        picture[2, 0, : self.action_size] = np.round(127 + 127 * action)  # -1, 0, 1 -> 0, 127, 254
        return picture


def read(picture: UInt8[np.ndarray, "3 64 64"], action_size: int) -> Reading:
    """Return what `CountingEnv` wrote into this picture (the seed's low byte only)."""
    time = int(picture[0, 63, 63]) + 256 * int(picture[1, 63, 63])
    return Reading(time, int(picture[2, 63, 63]), picture[2, 0, :action_size] / 127.0 - 1.0)

"""Environments seen from an agent: a seed in, uint8 pictures out, actions in [-1, 1], one decision per R control steps.

Knows dm_control (imported only when an environment is made) and the task table; knows nothing of agents or replay.
Anything that satisfies `Env` can take the place of the dm_control tasks.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from planet import gl, stopwatch
from planet.config import EnvConfig
from planet.tasks import Task

if TYPE_CHECKING:
    from dm_control import mujoco as dm_mujoco


@dataclass(frozen=True, slots=True)
class Step:
    """What one decision led to."""

    obs: UInt8[np.ndarray, "3 64 64"]
    """The last of the R frames."""
    reward: float
    """Sum of the R rewards."""
    last: bool
    """Whether the episode ended here, at `agent_steps` decisions."""


@runtime_checkable
class Env(Protocol):
    """What the program asks of an environment. Every episode has exactly `agent_steps` decisions."""

    @property
    def action_size(self) -> int: ...

    @property
    def action_repeat(self) -> int:
        """R: control steps of the simulator per decision."""
        ...

    @property
    def agent_steps(self) -> int:
        """Decisions per episode."""
        ...

    def reset(self, seed: int) -> UInt8[np.ndarray, "3 64 64"]:
        """Begin an episode whose start state is a function of `seed` alone; return its first picture."""
        ...

    def step(self, action: Float32[np.ndarray, " action"]) -> Step:
        """Hold the action (each element in [-1, 1]) for R control steps.

        Raises:
            ValueError: wrong shape, an element not finite or outside [-1, 1], or no episode under way.
        """
        ...

    def close(self) -> None:
        """Free what the environment holds."""
        ...


@runtime_checkable
class PatientEnv(Protocol):
    """What an environment adds that works elsewhere meanwhile: ask all of them first, then wait for each."""

    def begin_reset(self, seed: int) -> None: ...

    def end_reset(self) -> UInt8[np.ndarray, "3 64 64"]: ...

    def begin_step(self, action: Float32[np.ndarray, " action"]) -> None: ...

    def end_step(self) -> Step: ...


MakeEnv = Callable[[Task, EnvConfig], Env]
"""What a run gets its environments from: `make_env`, or a function of your own for other environments."""


def make_env(task: Task, config: EnvConfig) -> DMControlEnv:
    """Return the dm_control environment of a task.

    Raises:
        gl.MissingGL: nothing to draw with; the text names the packages to install.
        RuntimeError: dm_control and mujoco are missing or do not fit together.
        ValueError: more control steps per decision than per episode.
    """
    return DMControlEnv(task, config)


class DMControlEnv:
    """A task of the dm_control suite, drawn from camera 0 at 64 x 64.

    State observations are never computed; rewards and states are those of `dm_control`'s own stepping.
    """

    def __init__(self, task: Task, config: EnvConfig) -> None:
        self.task = task
        self.action_repeat = config.action_repeat or task.action_repeat
        self.agent_steps = config.episode_env_steps // self.action_repeat
        if self.agent_steps < 1:
            raise ValueError(
                f"env.action_repeat must be at most env.episode_env_steps ({config.episode_env_steps}), "
                f"got {self.action_repeat}"
            )
        self._env = _load(task)
        spec = self._env.action_spec()
        [self.action_size] = spec.shape
        if self.action_size != task.action_size:
            raise ValueError(f"task {task.name} says action_size {task.action_size}, dm_control {self.action_size}")
        # The bounds' middle and half width: exact where the task's own bounds are [-1, 1].
        self._middle = (spec.maximum + spec.minimum) / 2
        self._half = (spec.maximum - spec.minimum) / 2

        from planet import camera  # imports mujoco, so only after _load has chosen the GL back end

        self._camera = camera.shared(self.physics, (task.domain, task.task), config.picture)
        self._decisions = self.agent_steps
        self._seed: int | None = None

    @property
    def physics(self) -> dm_mujoco.Physics:
        """dm_control's simulator (what a planner in the true dynamics needs)."""
        return self._env.physics

    @property
    def substeps(self) -> int:
        """Simulator steps per control step."""
        return round(self._env.control_timestep() / self.physics.timestep())

    @property
    def renderer(self) -> str:
        """What draws the pictures, e.g. `egl, llvmpipe (LLVM 15.0.6, 256 bits)`."""
        return self._camera.renderer

    def reset(self, seed: int) -> UInt8[np.ndarray, "3 64 64"]:
        """Begin the episode that `suite.load(..., task_kwargs={"random": seed})` would begin with."""
        self._env.task.random.seed(seed)
        self._env.reset()
        self._decisions, self._seed = 0, seed
        return self._camera.picture(self.physics)

    def step(self, action: Float32[np.ndarray, " action"]) -> Step:
        """See `Env.step`. A simulation that diverges raises dm_control's PhysicsError, with the episode's seed."""
        check_action(action, self.action_size)
        if self._decisions >= self.agent_steps:
            raise ValueError(f"{self.task.name}: the episode is over (or has not begun); call reset(seed)")
        control = self._middle + self._half * action
        reward = 0.0
        try:
            for _ in range(self.action_repeat):
                reward += self._env.step(control).reward
        except Exception as error:
            error.add_note(f"task {self.task.name}, episode seed {self._seed}, decision {self._decisions}")
            raise
        self._decisions += 1
        return Step(self._camera.picture(self.physics), float(reward), self._decisions == self.agent_steps)

    def close(self) -> None:
        """Let go of the simulator and, with its last user, of the GL context."""
        del self._camera
        self._env.close()


class PadActions:
    """An environment that takes `action_size` numbers and ignores the surplus: one agent for several tasks."""

    def __init__(self, env: Env, action_size: int) -> None:
        if action_size < env.action_size:
            raise ValueError(
                f"PadActions needs at least the task's {env.action_size} action elements, got {action_size}"
            )
        self._env = env
        self.action_size = action_size
        self.action_repeat = env.action_repeat
        self.agent_steps = env.agent_steps
        self.renderer = renderer_of(env)

    def reset(self, seed: int) -> UInt8[np.ndarray, "3 64 64"]:
        """See `Env.reset`."""
        return self._env.reset(seed)

    def step(self, action: Float32[np.ndarray, " action"]) -> Step:
        """See `Env.step`; elements beyond the task's own are checked, then ignored."""
        check_action(action, self.action_size)
        return self._env.step(action[: self._env.action_size])

    def close(self) -> None:
        """See `Env.close`."""
        self._env.close()


def renderer_of(env: Env) -> str:
    """Return what draws an environment's pictures, e.g. `egl, llvmpipe (LLVM 15.0.6, 256 bits)`; "" where it does not
    say."""
    return getattr(env, "renderer", "")


def check_action(action: np.ndarray, action_size: int) -> None:
    """Raise ValueError unless the action has the right shape and every element is finite and in [-1, 1]."""
    if action.shape != (action_size,):
        raise ValueError(f"action must have shape {(action_size,)}, got {action.shape}")
    if not (np.abs(action) <= 1.0).all():  # false for NaN, too
        raise ValueError(f"action elements must be finite and in [-1, 1], got {action.tolist()}")


def check_simulator() -> dict[str, str]:
    """Return the versions of dm_control and mujoco, or raise RuntimeError saying why they cannot work together."""
    versions = {}
    for package in ("dm_control", "mujoco"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise RuntimeError(f"{package} is not installed; {_INSTALL}") from None
    if int(versions["mujoco"].split(".")[0]) >= 4:
        raise RuntimeError(
            f"dm_control {versions['dm_control']} does not work with mujoco {versions['mujoco']} (mujoco 4 removed "
            f"model fields that dm_control reads); {_INSTALL}"
        )
    return versions


_INSTALL = "install the pair this project is tested with: pip install -c constraints.txt dm_control mujoco"


def _load(task: Task):  # -> dm_control.rl.control.Environment, whose import must wait for the GL choice
    versions = check_simulator()
    gl.choose_backend()
    with _quiet_absl():
        from dm_control import suite

        try:
            env = suite.load(task.domain, task.task)
        except AttributeError as error:
            raise RuntimeError(
                f"dm_control {versions['dm_control']} cannot load {task.domain} {task.task} with mujoco "
                f"{versions['mujoco']} ({error}); {_INSTALL}"
            ) from error
    stopwatch.stop()
    # The agent sees pixels only; an empty observation leaves dm_control's stepping otherwise as it is.
    env.task.get_observation = lambda physics: {}
    return env


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Silence dm_control's warnings about its own models (cheetah: 'settotalmass' is deprecated)."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

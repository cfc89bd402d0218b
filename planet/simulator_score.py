"""Scores action sequences in the true simulator: the planner's view of a perfect model (paper, Table 1 and Figure 12).

Knows MuJoCo and the tasks' rewards; knows nothing of models or files. The same `cem.plan` that plans in latent space
takes a `SimulatorScore` as its `score`. A batch of candidates is one call into MuJoCo's own rollout threads.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from planet.envs import DMControlEnv
from planet.simulator_rewards import REWARDS, States


class SimulatorScore:
    """`score(candidates) -> returns` from wherever the environments stand when it is called; they are not moved.

    Args:
        envs: environments of one task; they may step and reset between calls.
        threads: of the rollout; with 1 it runs on the calling thread.
    """

    def __init__(self, envs: Sequence[DMControlEnv], *, threads: int) -> None:
        [name] = {env.task.name for env in envs}
        if name not in REWARDS:
            raise ValueError(f"no vectorised reward for task {name!r}: known are {', '.join(REWARDS)}")
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self._reward = REWARDS[name]
        self._envs = list(envs)
        self._repeat, self._substeps = envs[0].action_repeat, envs[0].substeps
        # Not copies: finger and reacher change their models at each reset.
        self._models: list[Any] = [env.physics.model.ptr for env in envs]
        # Imported only now, when making an environment has chosen the GL back end.
        self._mujoco: Any = importlib.import_module("mujoco")
        self._scratch = [self._mujoco.MjData(self._models[0]) for _ in range(threads)]
        self._rollout: Any = importlib.import_module("mujoco.rollout").Rollout(nthread=threads if threads > 1 else 0)

    def __call__(self, candidates: Float[Tensor, "env candidate horizon action"]) -> Float[Tensor, "env candidate"]:
        """Return each sequence's sum of rewards over horizon x R control steps, float32, on the candidates' device.

        Beyond an episode's end the simulator simply goes on.
        """
        n, j, h, _ = candidates.shape
        actions = candidates.detach().cpu().double().numpy()
        rewards = self.rewards(actions)  # [N, J, H * R]
        assert rewards.shape == (n, j, h * self._repeat)
        return torch.from_numpy(rewards.sum(-1)).float().to(candidates.device)

    def rewards(
        self, actions: Float[np.ndarray, "env candidate horizon action"]
    ) -> Float[np.ndarray, "env candidate step"]:
        """Return the reward of every control step: `step` counts horizon x R."""
        n, j, h, a = actions.shape
        steps = h * self._repeat
        everything = self._mujoco.mjtState.mjSTATE_FULLPHYSICS
        states = np.empty((n, self._mujoco.mj_stateSize(self._models[0], everything)))
        for state, env in zip(states, self._envs, strict=True):
            self._mujoco.mj_getState(env.physics.model.ptr, env.physics.data.ptr, state, everything)
        warm_starts = np.stack([env.physics.data.qacc_warmstart for env in self._envs])
        low, high = self._models[0].actuator_ctrlrange.T
        control = (high + low) / 2 + (high - low) / 2 * actions
        control = control.reshape(n * j, h, a)
        # One substep more than asked for: recorded sensors belong to the state before their substep.
        every = np.repeat(control, self._repeat * self._substeps, axis=1)
        every = np.concatenate([every, every[:, -1:]], axis=1)  # [N * J, steps * substeps + 1, A]
        trace, sensors = self._rollout.rollout(
            [model for model in self._models for _ in range(j)],
            self._scratch,
            np.repeat(states, j, axis=0),
            every,
            initial_warmstart=np.repeat(warm_starts, j, axis=0),
        )
        last = slice(self._substeps - 1, steps * self._substeps, self._substeps)  # ends of control steps
        after = slice(self._substeps, None, self._substeps)
        nq, nv = self._models[0].nq, self._models[0].nv
        rewards = np.empty((n, j, steps))
        for i, model in enumerate(self._models):
            own = slice(i * j, (i + 1) * j)
            rewards[i] = self._reward(
                States(
                    model,
                    qpos=trace[own, last, 1 : 1 + nq],  # element 0 is the time
                    qvel=trace[own, last, 1 + nq : 1 + nq + nv],
                    sensordata=sensors[own, after],
                    control=np.repeat(control[own], self._repeat, axis=1),
                )
            )
        return rewards

    def close(self) -> None:
        """End the rollout's threads."""
        self._rollout.close()

"""The acting agent: joins filter, planner and exploration noise. Carries its state between decisions; knows no files.

At every decision the new frame updates the belief (posterior of the state that the last executed action led to), CEM
plans from one sample of it, and the mean of the first action is executed, with noise while collecting (paper,
Algorithm 1). The executed action, noisy and clipped, is what the filter sees next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from planet import cem
from planet.config import PlannerConfig
from planet.rssm import State
from planet.world_model import WorldModel


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """What the agent remembers of `env` episodes at once."""

    belief: State
    action: Float[Tensor, "env action"]
    """The action executed last, in [-1, 1]; zero at the start of an episode."""
    plan: Float[Tensor, "env horizon action"] | None
    """The last plan's mean, for `planner.warm_start`."""
    generators: Sequence[torch.Generator]
    """One per environment: what an environment draws does not depend on how many run beside it."""


class NonFiniteAction(RuntimeError):
    """The planner returned a NaN or an infinity."""


class Agent:
    def __init__(self, world_model: WorldModel, planner: PlannerConfig, *, action_size: int, precision: str) -> None:
        self.world_model = world_model
        self.planner = planner
        self.action_size = action_size
        self.precision = precision

    @property
    def device(self) -> torch.device:
        return next(self.world_model.parameters()).device

    def start(self, generators: Sequence[torch.Generator]) -> AgentState:
        """Return the state before the first frame of `len(generators)` episodes: all zeros."""
        n = len(generators)
        return AgentState(
            belief=self.world_model.initial(n),
            action=torch.zeros(n, self.action_size, device=self.device),
            plan=None,
            generators=generators,
        )

    @torch.no_grad()
    def act(
        self, state: AgentState, obs: UInt8[np.ndarray, "env 3 64 64"], *, action_noise: float
    ) -> tuple[Float32[np.ndarray, "env action"], AgentState]:
        """Return the actions to execute, in [-1, 1], and the state to pass to the next call.

        Raises:
            NonFiniteAction: the plan holds a NaN or an infinity.
        """
        frames = torch.from_numpy(obs).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            belief = self.world_model.filter(state.belief, state.action, frames, generators=state.generators)
            score = self.world_model.return_predictor(
                belief,
                candidates=self.planner.candidates,
                horizon=self.planner.horizon,
                generators=state.generators,
                samples=self.planner.samples,
            )
            plan = cem.plan(
                score,
                num_envs=len(state.generators),
                action_size=self.action_size,
                horizon=self.planner.horizon,
                candidates=self.planner.candidates,
                elites=self.planner.num_elites,
                iterations=self.planner.iterations,
                init_std=self.planner.init_std,
                min_std=self.planner.min_std,
                generators=state.generators,
                device=self.device,
                start_mean=self._warm_start(state.plan),
            )
        action = plan.mean[:, 0].float()  # [N, A]
        if action_noise:
            noise = [torch.randn(self.action_size, generator=g, device=self.device) for g in state.generators]
            action = action + action_noise * torch.stack(noise)
        action = action.clamp(-1, 1)
        executed = action.cpu().numpy()
        if not np.isfinite(executed).all():
            raise NonFiniteAction(f"the planner returned the action {executed.tolist()}")
        return executed, dataclasses.replace(state, belief=belief, action=action, plan=plan.mean)

    def _warm_start(self, plan: Tensor | None) -> Tensor | None:
        if plan is None or not self.planner.warm_start:
            return None
        return torch.cat([plan[:, 1:], torch.zeros_like(plan[:, :1])], dim=1)  # [N, H, A], one step on

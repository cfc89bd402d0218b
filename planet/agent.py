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
from planet.cuda_graph import CudaGraph
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
        self._recorded: dict[int, CudaGraph] = {}
        """For each number of environments: its working memory lies in the graph."""

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
            NonFiniteScore: a predicted return is a NaN.
        """
        frames = torch.from_numpy(obs).to(self.device)
        decide = self._decide_recorded if self.device.type == "cuda" else self._decide
        belief, plan, undefined = decide(state, frames)
        action = plan[:, 0].float()  # [N, A]
        if action_noise:
            noise = [torch.randn(self.action_size, generator=g, device=self.device) for g in state.generators]
            action = action + action_noise * torch.stack(noise)
        action = action.clamp(-1, 1)
        executed = action.cpu().numpy()
        if undefined is not None:  # looked at no earlier: the first look waits for the device
            cem.check_defined(undefined, self.planner.candidates)
        if not np.isfinite(executed).all():
            raise NonFiniteAction(f"the planner returned the action {executed.tolist()}")
        return executed, dataclasses.replace(state, belief=belief, action=action, plan=plan)

    def _decide(self, state: AgentState, frames: Tensor) -> tuple[State, Tensor, None]:
        """Return the new belief and the mean of the plan from it [N, H, A]; numbers are drawn when they are needed,
        into memory that stays in the processor's cache."""
        planner = self.planner
        with self._autocast():
            belief = self.world_model.filter(state.belief, state.action, frames, generators=state.generators)
            score = self.world_model.return_predictor(
                belief,
                candidates=planner.candidates,
                horizon=planner.horizon,
                generators=state.generators,
                samples=planner.samples,
            )
            plan = cem.plan(
                score,
                num_envs=len(state.generators),
                action_size=self.action_size,
                horizon=planner.horizon,
                candidates=planner.candidates,
                elites=planner.num_elites,
                iterations=planner.iterations,
                init_std=planner.init_std,
                min_std=planner.min_std,
                generators=state.generators,
                device=self.device,
                start_mean=self._warm_start(state.plan),
            )
        return belief, plan.mean, None

    def _decide_recorded(self, state: AgentState, frames: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return what `_decide` returns, with its numbers drawn beforehand, and what `cem.check_defined` is to see;
        does not wait for the device."""
        run = self._recorded.setdefault(len(frames), CudaGraph(self.decide))
        found = run(*self.decision_inputs(state, frames))
        return State(found["deter"], found["stoch"], found["mean"], found["std"]), found["plan"], found["undefined"]

    def decision_inputs(self, state: AgentState, frames: Tensor) -> tuple[Tensor, ...]:
        """Return the arguments of `decide`: the state, the pictures and all random numbers."""
        planner, generators = self.planner, state.generators
        image_noise, noise = self.world_model.draw_filter_noise(generators)
        shape = (planner.iterations, planner.candidates, planner.horizon, self.action_size)
        action_noise = cem.draw_noise(shape, generators, self.device)
        return_noise = self.world_model.draw_return_noise(
            planner.iterations, candidates=planner.candidates, horizon=planner.horizon, generators=generators,
            samples=planner.samples,
        )  # fmt: skip
        start = self._warm_start(state.plan)
        if start is None:
            start = torch.zeros(len(frames), planner.horizon, self.action_size, device=self.device)
        b = state.belief
        return (
            b.deter, b.stoch, b.mean, b.std, state.action, frames, start, image_noise, noise, action_noise,
            return_noise,
        )  # fmt: skip

    @torch.no_grad()
    def decide(
        self,
        deter: Tensor,
        stoch: Tensor,
        mean: Tensor,
        std: Tensor,
        action: Tensor,
        frames: Tensor,
        start: Tensor,
        image_noise: Tensor,
        noise: Tensor,
        action_noise: Tensor,
        return_noise: Tensor,
    ) -> dict[str, Tensor]:
        """Filter and plan as a function of tensors on the device that can be recorded as a CUDA graph."""
        planner = self.planner
        with self._autocast():
            belief = self.world_model.filter_given_noise(
                State(deter, stoch, mean, std), action, frames, image_noise, noise
            )
            score = self.world_model.return_predictor_given_noise(belief, return_noise, samples=planner.samples)
            plan, undefined = cem.search(
                score, action_noise, elites=planner.num_elites, init_std=planner.init_std, min_std=planner.min_std,
                start_mean=start,
            )  # fmt: skip
        return {
            "deter": belief.deter, "stoch": belief.stoch, "mean": belief.mean, "std": belief.std, "plan": plan.mean,
            "undefined": undefined,
        }  # fmt: skip

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _warm_start(self, plan: Tensor | None) -> Tensor | None:
        if plan is None or not self.planner.warm_start:
            return None
        return torch.cat([plan[:, 1:], torch.zeros_like(plan[:, :1])], dim=1)  # [N, H, A], one step on

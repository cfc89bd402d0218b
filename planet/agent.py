"""The acting agent: joins filter, planner and exploration noise. Carries its state between decisions; knows no files.

At every decision the new frame updates the belief (posterior of the state that the last executed action led to), CEM
plans from one sample of it, and the mean of the first action is executed, with noise while collecting (paper,
Algorithm 1). The executed action, noisy and clipped, is what the filter sees next.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
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
    drawn: tuple[UInt8[Tensor, "env byte"], Float[Tensor, "env number"]] | None = None
    """On a GPU, the random numbers of the next decision: drawn while the GPU works at the one before."""


ALIGNED = 16
"""On a GPU, numbers of environments begin at multiples of so many: kernels load several at a time."""


class NonFiniteAction(RuntimeError):
    """The planner returned a NaN or an infinity."""


@dataclass(frozen=True, slots=True)
class _Memory:
    """What goes to a GPU and comes back, pinned on this side; used again when that decision has been waited for."""

    frames: UInt8[Tensor, "env 3 64 64"]
    action: Float[Tensor, "env action"]
    undefined: Int[Tensor, "iteration env"]
    no_plan: Float[Tensor, "env horizon action"]
    """On the device."""
    decided: torch.cuda.Event


class Agent:
    def __init__(self, world_model: WorldModel, planner: PlannerConfig, *, action_size: int, precision: str) -> None:
        self.world_model = world_model
        self.planner = planner
        self.action_size = action_size
        self.precision = precision
        self._recorded: dict[int, CudaGraph] = {}
        """For each number of environments: its working memory lies in the graph."""
        self._memory: dict[int, _Memory] = {}

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
        decide = self._decide_recorded if self.device.type == "cuda" else self._decide
        belief, plan, undefined, noise = decide(state, self._upload(obs))
        action = plan[:, 0].float()  # [N, A]
        if action_noise:
            if noise is None:
                each = [torch.randn(self.action_size, generator=g, device=self.device) for g in state.generators]
                noise = torch.stack(each)
            action = action + action_noise * noise
        action = action.clamp(-1, 1)
        drawn = None
        if undefined is not None and self.device.type == "cuda":
            memory = self._memory_of(len(obs))
            action_here = memory.action.copy_(action, non_blocking=True)
            undefined = memory.undefined.copy_(undefined, non_blocking=True)
            memory.decided.record()
            drawn = self._draw(state.generators)
            memory.decided.synchronize()
            executed = action_here.numpy().copy()
        else:
            executed = action.numpy()
        if undefined is not None:
            cem.check_defined(undefined, self.planner.candidates)
        if not np.isfinite(executed).all():
            raise NonFiniteAction(f"the planner returned the action {executed.tolist()}")
        return executed, dataclasses.replace(state, belief=belief, action=action, plan=plan, drawn=drawn)

    def _upload(self, obs: UInt8[np.ndarray, "env 3 64 64"]) -> UInt8[Tensor, "env 3 64 64"]:
        frames = torch.from_numpy(obs)
        if self.device.type != "cuda":
            return frames.to(self.device)
        return self._memory_of(len(obs)).frames.copy_(frames).to(self.device, non_blocking=True)

    def _memory_of(self, envs: int) -> _Memory:
        if envs not in self._memory:
            self._memory[envs] = _Memory(
                torch.empty(envs, 3, 64, 64, dtype=torch.uint8).pin_memory(),
                torch.empty(envs, self.action_size).pin_memory(),
                torch.empty(self.planner.iterations, envs, dtype=torch.int64).pin_memory(),
                torch.zeros(envs, self.planner.horizon, self.action_size, device=self.device),
                torch.cuda.Event(),
            )
        return self._memory[envs]

    def _parts(self) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int], tuple[int]]:
        """Shapes of an environment's normal numbers in the order in which `decision_inputs` gives them: those of the
        predicted returns, of the candidates, of the posterior."""
        planner, stoch = self.planner, self.world_model.transition.stoch_size
        return (
            (planner.iterations, planner.horizon, planner.candidates * planner.samples, stoch),
            (planner.iterations, planner.candidates, planner.horizon, self.action_size),
            (stoch,),
        )

    def _decide(self, state: AgentState, frames: Tensor) -> tuple[State, Tensor, None, None]:
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
                refit_clipped=planner.refit_clipped,
                generators=state.generators,
                device=self.device,
                start_mean=self._warm_start(state.plan),
            )
        return belief, plan.mean, None, None

    def _decide_recorded(self, state: AgentState, frames: Tensor) -> tuple[State, Tensor, Tensor, Tensor | None]:
        """Return what `_decide` returns, with its numbers drawn beforehand, what `cem.check_defined` is to see, and
        the numbers of exploration [N, A] where they were drawn, too; does not wait for the device."""
        run = self._recorded.setdefault(len(frames), CudaGraph(self.decide))
        found = run(*self.decision_inputs(state, frames))
        belief = State(found["deter"], found["stoch"], found["mean"], found["std"])
        exploration = found["exploration"]
        return belief, found["plan"], found["undefined"], exploration if exploration.numel() else None

    def decision_inputs(self, state: AgentState, frames: Tensor) -> tuple[Tensor, ...]:
        """Return the arguments of `decide`: the state, the pictures and all random numbers."""
        bytes_, normal = state.drawn or self._draw(state.generators)
        start = self._warm_start(state.plan)
        if start is None:
            start = (
                self._memory_of(len(frames)).no_plan
                if self.device.type == "cuda"
                else torch.zeros(len(frames), self.planner.horizon, self.action_size)
            )
        b = state.belief
        return b.deter, b.stoch, b.mean, b.std, state.action, frames, start, bytes_, normal

    def _draw(
        self, generators: Sequence[torch.Generator]
    ) -> tuple[UInt8[Tensor, "env byte"], Float[Tensor, "env number"]]:
        """Return the random bytes and the normal numbers (`_parts`) of one decision.

        On a GPU, where each launch counts, an environment's numbers are drawn all at once, which are others, and those
        of exploration with them.
        """
        if self.device.type == "cuda":
            envs, numbers = len(generators), sum(map(math.prod, self._parts())) + self.action_size
            words = torch.empty(envs, 64 * 64 * 3 // 8, dtype=torch.int64, device=self.device)
            normal = torch.empty(envs, numbers + -numbers % ALIGNED, device=self.device)
            for of_words, of_normal, generator in zip(words.unbind(), normal.unbind(), generators, strict=True):
                of_words.random_(-(2**63), None, generator=generator)
                of_normal.normal_(generator=generator)
            return words.view(torch.uint8), normal
        planner = self.planner
        bytes_, posterior = self.world_model.draw_filter_noise(generators)
        _, of_candidates, _ = self._parts()
        candidates = cem.draw_noise(of_candidates, generators, self.device)
        returns = self.world_model.draw_return_noise(
            planner.iterations, candidates=planner.candidates, horizon=planner.horizon, generators=generators,
            samples=planner.samples,
        )  # fmt: skip
        normal = [returns.transpose(0, 1).flatten(1), candidates.transpose(0, 1).flatten(1), posterior]
        return bytes_.movedim(1, -1).flatten(1), torch.cat(normal, dim=1)

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
        bytes_: Tensor,
        normal: Tensor,
    ) -> dict[str, Tensor]:
        """Filter and plan as a function of tensors on the device that can be recorded as a CUDA graph."""
        planner, parts = self.planner, self._parts()
        sizes = [math.prod(part) for part in parts]
        *each, others = normal.split([*sizes, normal.shape[1] - sum(sizes)], dim=1)
        return_noise, action_noise, noise = (x.unflatten(1, part) for x, part in zip(each, parts, strict=True))
        frames = frames.contiguous(memory_format=torch.channels_last)  # the order of the noise that is added
        image_noise = bytes_.unflatten(1, (*frames.shape[2:], frames.shape[1])).movedim(-1, 1)
        with self._autocast():
            belief = self.world_model.filter_given_noise(
                State(deter, stoch, mean, std), action, frames, image_noise, noise
            )
            score = self.world_model.return_predictor_given_noise(
                belief, return_noise.transpose(0, 1), samples=planner.samples
            )
            plan, undefined = cem.search(
                score, action_noise.transpose(0, 1), elites=planner.num_elites, init_std=planner.init_std,
                min_std=planner.min_std, refit_clipped=planner.refit_clipped, start_mean=start,
            )  # fmt: skip
        return {
            "deter": belief.deter, "stoch": belief.stoch, "mean": belief.mean, "std": belief.std, "plan": plan.mean,
            "undefined": undefined, "exploration": others[:, : self.action_size],
        }  # fmt: skip

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _warm_start(self, plan: Tensor | None) -> Tensor | None:
        return None if plan is None or not self.planner.warm_start else cem.one_step_on(plan)

"""What the agent adds to filter and planner: exploration, clipping, memory, warm starts, and the planner's settings."""

from typing import Any

import numpy as np
import pytest
import torch

from planet import cem
from planet.agent import Agent
from planet.config import ModelConfig, ObjectiveConfig, PlannerConfig
from planet.networks import compute_dtype
from planet.world_model import WorldModel

TINY = ModelConfig(stoch=3, deter=8, hidden=8, conv_depth=2, reward_units=8)
BLACK = np.zeros((2, 3, 64, 64), np.uint8)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def agent_of(**planner: Any) -> Agent:
    model = WorldModel(TINY, ObjectiveConfig(), 2, seeded(0)[0])
    settings: dict[str, Any] = {"horizon": 3, "iterations": 2, "candidates": 8, "elites": 2}
    return Agent(model, PlannerConfig(**settings | planner), action_size=2, precision="float32")


def test_the_plans_first_action_is_executed_with_noise_of_each_environment_clipped_and_remembered(monkeypatch) -> None:
    agent = agent_of()
    plan = torch.tensor([[[0.1, -0.2], [0.7, 0.7], [0.9, 0.9]], [[-0.95, 0.4], [0.7, 0.7], [0.9, 0.9]]])  # [N, H, A]
    monkeypatch.setattr(agent, "_decide", lambda state, frames: (state.belief, plan, None, None))

    executed, after = agent.act(agent.start(seeded(3, 4)), BLACK, action_noise=0.3)
    quiet, _ = agent.act(agent.start(seeded(3, 4)), BLACK, action_noise=0.0)

    noise = torch.stack([torch.randn(2, generator=g) for g in seeded(3, 4)])
    unclipped = plan[:, 0] + 0.3 * noise
    assert unclipped.abs().max() > 1
    np.testing.assert_array_equal(executed, unclipped.clamp(-1, 1).numpy())
    assert torch.equal(after.action, unclipped.clamp(-1, 1))  # what the filter is told next
    np.testing.assert_array_equal(quiet, plan[:, 0].numpy())


@pytest.mark.parametrize("warm", [True, False])
def test_a_warm_start_is_the_last_plan_one_step_on(monkeypatch, warm: bool) -> None:
    agent, starts, plans = agent_of(warm_start=warm), [], []
    plan = cem.plan

    def noted(score: Any, *, start_mean: Any, **settings: Any) -> cem.Plan:
        starts.append(start_mean)
        plans.append(plan(score, start_mean=start_mean, **settings))
        return plans[-1]

    monkeypatch.setattr(cem, "plan", noted)
    state = agent.start(seeded(0, 1))
    for _ in range(3):
        _, state = agent.act(state, BLACK, action_noise=0.3)

    assert starts[0] is None  # an episode begins with no plan
    if not warm:
        assert starts == [None] * 3
        return
    for before, start in zip(plans, starts[1:], strict=False):
        assert torch.equal(start[:, :-1], before.mean[:, 1:]) and (start[:, -1] == 0).all()


@pytest.mark.parametrize("beforehand", [False, True], ids=["on a CPU", "as on a GPU"])
def test_every_setting_of_the_planner_reaches_it(monkeypatch, beforehand: bool) -> None:
    changes = {"elite_fraction": 0.5, "init_std": 0.4, "min_std": 0.2, "refit_clipped": False, "samples": 3}
    agent, given = agent_of(**changes), {}
    search = cem.search

    def noted(score: Any, noise: torch.Tensor, **settings: Any) -> Any:
        given.update(settings, score=score, noise=noise)
        return search(score, noise, **settings)

    monkeypatch.setattr(cem, "search", noted)
    state, frames = agent.start(seeded(0, 1)), torch.from_numpy(BLACK)
    if beforehand:
        agent.decide(*agent.decision_inputs(state, frames))
    else:
        agent.act(state, BLACK, action_noise=0.0)

    assert given["elites"] == 4  # half of eight; planner.elites says 2
    assert (given["init_std"], given["min_std"], given["refit_clipped"]) == (0.4, 0.2, False)
    assert given["score"].samples == 3
    assert given["noise"].shape == (2, 2, 8, 3, 2)  # iterations, environments, candidates, horizon, action


@pytest.mark.parametrize("beforehand", [False, True], ids=["on a CPU", "as on a GPU"])
@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_it_filters_and_plans_in_the_precision_it_is_told(monkeypatch, beforehand: bool, precision: str, dtype) -> None:
    agent, seen = agent_of(), []
    agent.precision = precision
    search, encoder = cem.search, type(agent.world_model.encoder)
    forward = encoder.forward

    def filtering(self: Any, image: torch.Tensor) -> torch.Tensor:
        seen.append(compute_dtype(image.device))
        return forward(self, image)

    def planning(score: Any, noise: torch.Tensor, **settings: Any) -> Any:
        seen.append(compute_dtype(noise.device))
        return search(score, noise, **settings)

    monkeypatch.setattr(encoder, "forward", filtering)
    monkeypatch.setattr(cem, "search", planning)
    state = agent.start(seeded(0, 1))
    if beforehand:
        agent.decide(*agent.decision_inputs(state, torch.from_numpy(BLACK)))
    else:
        agent.act(state, BLACK, action_noise=0.0)

    assert seen == [dtype, dtype]

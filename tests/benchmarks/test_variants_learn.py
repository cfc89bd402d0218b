"""Every variant trains and plans on a real task, and the models of the ablations are what they claim to be."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import variants
from planet import presets, tasks, train
from planet.agent import Agent
from planet.config import Config
from planet.envs import DMControlEnv, PadActions, make_env
from planet.learner import Learner
from planet.replay import Batch, Replay
from planet.rollout import Episode, random_policy, run_episodes
from planet.run_dir import RunDir, read_jsonl
from planet.world_model import WorldModel

TASK = "cup_catch"


@pytest.fixture(scope="module")
def env() -> Iterator[DMControlEnv]:
    env = make_env(tasks.TASKS[TASK], presets.resolve(TASK, preset="smoke").env)
    yield env
    env.close()


def config_of(name: str) -> Config:
    variant = variants.load(name)
    return presets.resolve(variant.task or TASK, preset="smoke", ablation=variant.overrides)


@functools.cache  # drawing is slow: variants with the same action repeat and size share an episode
def random_episode(action_repeat: int, action_size: int) -> Episode:
    config = presets.resolve(TASK, preset="smoke", changes={"env.action_repeat": action_repeat})
    env = make_env(tasks.TASKS[TASK], config.env)
    [episode] = run_episodes([PadActions(env, action_size)], random_policy(np.random.default_rng(0), action_size), [0])
    env.close()
    return episode


def collect(config: Config, action_size: int) -> Batch:
    """One batch of a random episode, at the variant's own action repeat and with its padded actions."""
    replay = Replay(frames=200, episodes=2, action_size=action_size)
    replay.add(random_episode(config.env.action_repeat or tasks.TASKS[TASK].action_repeat, action_size))
    return replay.sample(config.batch.size, config.batch.chunk, np.random.default_rng(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in variants.names() if n != "true_simulator"])
def test_every_variant_takes_two_updates_and_plans_on_a_real_task(env: DMControlEnv, name: str) -> None:
    config = config_of(name)
    action_size = max(task.action_size for task in tasks.members(config.task))
    batch = collect(config, action_size)
    torch.manual_seed(0)
    model = WorldModel(config.model, config.objective, action_size)
    learner = Learner(model, config.optimizer, device=torch.device("cpu"))
    before = [parameter.detach().clone() for parameter in model.encoder.parameters()]

    terms: dict[str, Any] = {}
    for update in range(2):
        terms = learner.update(batch, torch.Generator().manual_seed(update))
    agent = Agent(model, config.planner, action_size=action_size, precision="float32")
    state = agent.start([torch.Generator().manual_seed(0)])
    obs, action = env.reset(0)[None], np.empty(0)
    for _ in range(2):
        action, state = agent.act(state, obs, action_noise=config.schedule.action_noise)

    assert all(torch.isfinite(value).all() for value in terms.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.encoder.parameters(), strict=True))
    assert action.shape == (1, action_size) and np.abs(action).max() <= 1 and np.abs(action).max() > 0


@pytest.mark.slow
def test_the_true_simulator_runs_one_episode_as_its_file_says(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path / "run", config_of("true_simulator"), preset="smoke", variant="true_simulator")

    assert train.train(run_dir.path) == 0

    [row] = read_jsonl(run_dir.episodes_jsonl)[0]
    assert (row["kind"], row["length"]) == ("eval", 20) and row["return"] >= 0


def gradients(name: str, env: DMControlEnv) -> tuple[WorldModel, dict[str, float | None]]:
    """Return the model after one backward pass and the size of each parameter's gradient (None: none at all)."""
    config = config_of(name)
    batch = collect(config, env.action_size)
    torch.manual_seed(0)
    model = WorldModel(config.model, config.objective, env.action_size)
    obs, action, reward = (torch.from_numpy(x) for x in (batch.obs, batch.action, batch.reward))
    loss, _ = model.loss(obs, action, reward, generator=torch.Generator().manual_seed(0))
    loss.backward()
    sizes = {n: None if p.grad is None else p.grad.norm().item() for n, p in model.named_parameters()}
    return model, sizes


def test_the_stochastic_model_has_no_recurrent_network(env: DMControlEnv) -> None:
    model = WorldModel(config_of("stochastic").model, config_of("stochastic").objective, env.action_size)
    assert not [m for m in model.modules() if isinstance(m, torch.nn.RNNCellBase | torch.nn.RNNBase)]
    assert model.initial(1).deter.shape == (1, 0)


def test_drnn_has_two_recurrent_networks(env: DMControlEnv) -> None:
    model = WorldModel(config_of("drnn").model, config_of("drnn").objective, env.action_size)
    assert len([m for m in model.modules() if isinstance(m, torch.nn.GRUCell)]) == 2


def test_the_official_deterministic_model_never_trains_its_prior(env: DMControlEnv) -> None:
    _, sizes = gradients("deterministic_official", env)
    prior = {name: size for name, size in sizes.items() if "prior_head" in name}
    assert prior and all(size is None for size in prior.values())
    assert all(size for name, size in sizes.items() if "cell" in name and "weight" in name)


def test_the_fair_deterministic_model_trains_its_prior_by_the_distance_of_the_means(env: DMControlEnv) -> None:
    model, sizes = gradients("deterministic", env)
    prior = {name: size for name, size in sizes.items() if "prior_head" in name and "weight" in name}
    embed, action = torch.randn(2, 3, model.encoder.embed_size), torch.randn(2, 3, env.action_size)
    posterior, priors = model.transition.observe(embed, action, model.initial(2), torch.randn(2, 3, 6))

    assert prior and all(prior.values())
    assert torch.equal(posterior.stoch, posterior.mean) and bool((posterior.std == 1).all() & (priors.std == 1).all())


def test_free_nats_or_learned_spreads_would_leave_the_fair_prior_untrained(env: DMControlEnv) -> None:
    """Why `deterministic` sets both: at its start the means are within three nats of each other."""
    config = config_of("deterministic")
    batch = collect(config, env.action_size)
    torch.manual_seed(0)
    model = WorldModel(config.model, presets.resolve(TASK, preset="smoke").objective, env.action_size)
    obs, action, reward = (torch.from_numpy(x) for x in (batch.obs, batch.action, batch.reward))
    loss, _ = model.loss(obs, action, reward, generator=torch.Generator().manual_seed(0))
    loss.backward()
    sizes = [p.grad.norm().item() for n, p in model.named_parameters() if "prior_head" in n and p.grad is not None]
    assert sum(sizes) == 0


def launch(path: Path, name: str, **changes: Any) -> RunDir:
    variant = variants.load(name)
    config = presets.resolve(
        variant.task or TASK, preset="smoke", ablation=variant.overrides,
        changes={"schedule.train_episodes": 1, "schedule.updates": 2, "schedule.eval_episodes": 1,
                 "schedule.open_loop_episodes": 0, **changes},
    )  # fmt: skip
    run_dir = RunDir.create(path, config, preset="smoke", variant=name)
    assert train.train(path) == 0
    return run_dir


@pytest.mark.slow
def test_random_collection_plans_only_to_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noises: list[float] = []
    act = Agent.act

    def counted(self: Agent, state: Any, obs: Any, *, action_noise: float) -> Any:
        noises.append(action_noise)
        return act(self, state, obs, action_noise=action_noise)

    monkeypatch.setattr(Agent, "act", counted)
    run_dir = launch(tmp_path / "run", "random_collection")
    rows, _ = read_jsonl(run_dir.episodes_jsonl)

    assert [row["kind"] for row in rows] == ["seed", "seed", "train", "eval"]
    assert noises == [0.0] * rows[-1]["length"], "20 decisions of the evaluation, none of the collection"


@pytest.mark.slow
def test_the_multitask_agent_collects_an_episode_of_each_task_after_six_times_the_updates(tmp_path: Path) -> None:
    run_dir = launch(tmp_path / "run", "multitask")
    rows, _ = read_jsonl(run_dir.episodes_jsonl)
    names = list(tasks.TASKS)

    for kind, count in (("seed", 2), ("train", 1), ("eval", 1)):
        assert sorted(row["task"] for row in rows if row["kind"] == kind) == sorted(names * count)
    assert rows[-1]["updates"] == 6 * 2 and rows[-1]["episode"] == 3

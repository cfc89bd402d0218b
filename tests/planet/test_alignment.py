"""One convention of time from the simulator to the gradient and to the filter: action[t] led to obs[t], with reward[t].

`CountingEnv` writes time, seed and the executed action into its pictures, so every stage can be read back.
"""

import numpy as np
import torch

from planet import streams, world_model
from planet.agent import Agent
from planet.config import ModelConfig, ObjectiveConfig, OptimizerConfig, PlannerConfig
from planet.counting_env import CountingEnv, read
from planet.learner import Learner
from planet.replay import Replay
from planet.rollout import run_episodes
from planet.world_model import WorldModel

ACTIONS, STEPS, CHUNK = 2, 40, 7
TINY = ModelConfig(stoch=3, deter=8, hidden=8, conv_depth=2, reward_units=8)


def make_agent() -> Agent:
    model = WorldModel(TINY, ObjectiveConfig(), ACTIONS, torch.Generator().manual_seed(0))
    planner = PlannerConfig(horizon=3, iterations=2, candidates=8, elites=2)
    return Agent(model, planner, action_size=ACTIONS, precision="float32")


def collect(agent: Agent, seeds: list[int], noise: float):
    state = agent.start([streams.torch_generator(0, "explore", seed) for seed in seeds])
    seen = []  # what the filter was given: (action, picture) per decision
    true_filter = agent.world_model.filter

    def recording(belief, action, obs, *, generators):
        seen.append((action.clone().numpy(), obs.clone().numpy()))
        return true_filter(belief, action, obs, generators=generators)

    agent.world_model.filter = recording  # pyright: ignore[reportAttributeAccessIssue]

    def act(obs):
        nonlocal state
        action, state = agent.act(state, obs, action_noise=noise)
        return action

    return run_episodes([CountingEnv(ACTIONS, STEPS) for _ in seeds], act, seeds), seen


def test_the_filter_sees_each_frame_with_the_executed_action_that_led_to_it():
    episodes, seen = collect(make_agent(), [11, 22, 33], noise=0.3)

    assert len(seen) == STEPS
    for t, (actions, pictures) in enumerate(seen):
        for n, episode in enumerate(episodes):
            reading = read(pictures[n], ACTIONS)
            assert reading.time == t
            assert reading.seed == [11, 22, 33][n]  # no mixing of environments
            np.testing.assert_allclose(reading.action, actions[n], atol=1 / 254 + 1e-6)
            np.testing.assert_array_equal(episode.action[t], actions[n])
    assert (seen[0][0] == 0).all()
    assert any(np.abs(actions).max() == 1 for actions, _ in seen)  # noisy actions are clipped, and remembered clipped


def test_batches_hold_frames_actions_and_rewards_of_the_same_time():
    episodes, _ = collect(make_agent(), [1, 2], noise=0.3)
    replay = Replay(frames=2 * (STEPS + 1), episodes=2, action_size=ACTIONS)
    for episode in episodes:
        replay.add(episode)

    batch = replay.sample(16, CHUNK, np.random.default_rng(0))

    for obs, action, reward in zip(batch.obs, batch.action, batch.reward, strict=True):
        readings = [read(frame, ACTIONS) for frame in obs]
        times = [reading.time for reading in readings]
        assert times == list(range(times[0], times[0] + CHUNK))
        assert len({reading.seed for reading in readings}) == 1  # never across episodes
        np.testing.assert_allclose([reading.action for reading in readings], action, atol=1 / 254 + 1e-6)
        np.testing.assert_array_equal(reward, times)


def test_a_chunk_is_filtered_as_the_agent_filters_an_episode(monkeypatch):
    """Training and acting agree on time: the same frames and actions give the same beliefs."""
    model = make_agent().world_model
    (episode,), _ = collect(make_agent(), [5], noise=0.3)
    obs, action = torch.from_numpy(episode.obs[:6]), torch.from_numpy(episode.action[:6])
    generator = torch.Generator()
    # Without samples and dequantisation noise the two can be compared number by number.
    model.transition.mean_only = True
    monkeypatch.setattr(
        world_model, "image_noise", lambda leading, _: torch.zeros((*leading, 3, 64, 64), dtype=torch.uint8)
    )

    def chunk(actions):
        return model.open_loop(obs[None], actions[None], 6, generator).state.mean[0, -1]

    belief = model.initial(1)
    for t in range(6):
        belief = model.filter(belief, action[t : t + 1], obs[t : t + 1], generators=[generator])

    torch.testing.assert_close(belief.mean[0], chunk(action), atol=1e-6, rtol=1e-5)
    assert (chunk(action.roll(1, 0)) - chunk(action)).abs().max() > 1e-4  # an action one step late would show


def test_a_learner_takes_a_replay_batch_as_it_is():
    episodes, _ = collect(make_agent(), [1], noise=0.0)
    replay = Replay(frames=STEPS + 1, episodes=1, action_size=ACTIONS)
    replay.add(episodes[0])
    learner = Learner(make_agent().world_model, OptimizerConfig(), device=torch.device("cpu"), precision="float32")

    terms = learner.update(replay.sample(3, CHUNK, np.random.default_rng(0)), torch.Generator().manual_seed(0))

    assert torch.isfinite(torch.stack(list(terms.values()))).all()

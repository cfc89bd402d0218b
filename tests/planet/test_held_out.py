"""The held-out episodes are the same for variants of one action repeat, and something happens in them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from planet import envs, held_out, streams
from planet.config import EnvConfig
from planet.held_out_record import EPISODES, decode
from planet.tasks import TASKS

SHORT = EnvConfig(episode_env_steps=40)


@pytest.mark.parametrize("name", list(TASKS))
def test_the_package_holds_ten_whole_episodes_of_each_task(name: str) -> None:
    task = TASKS[name]
    with np.load(held_out.DATA) as data:
        seeds, actions = data[f"{name}_seeds"], data[f"{name}_actions"]

    assert held_out.available(task)
    assert actions.shape == (EPISODES, 1000 // task.action_repeat, task.action_size) and actions.dtype == np.int8
    assert len(set(seeds.tolist())) == EPISODES
    assert np.abs(decode(actions)).max() <= 1


def test_the_file_stays_small() -> None:
    assert held_out.DATA.stat().st_size < 100_000


def test_their_start_states_are_no_runs() -> None:
    """Of the first hundred seeds, evaluations and places."""
    used = {
        streams.integer(seed, stream, i, j, k)
        for seed in range(10) for stream in ("env", "eval_env") for i in range(20) for j in range(6) for k in range(10)
    }  # fmt: skip
    with np.load(held_out.DATA) as data:
        assert not used & {int(seed) for key in data if key.endswith("_seeds") for seed in data[key]}


def test_simulating_again_gives_the_same_pictures_rewards_and_states() -> None:
    task = TASKS["cheetah_run"]
    first, second = (held_out.episodes(task, SHORT, 2) for _ in range(2))

    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.episode.obs, b.episode.obs)
        np.testing.assert_array_equal(a.episode.reward, b.episode.reward)
        np.testing.assert_array_equal(a.state, b.state)
    assert first[0].episode.obs.shape == (11, 3, 64, 64)
    assert first[0].state.shape == (11, 18) and len(first[0].state_names) == 18  # rooty's angle is two numbers
    assert not np.array_equal(first[0].state[0], first[1].state[0])


def test_another_action_repeat_follows_the_same_actions_in_time() -> None:
    task = TASKS["cheetah_run"]  # recorded with 4
    [own] = held_out.episodes(task, SHORT, 1)
    [finer] = held_out.episodes(task, dataclasses.replace(SHORT, action_repeat=2), 1)
    [coarser] = held_out.episodes(task, dataclasses.replace(SHORT, action_repeat=8), 1)

    np.testing.assert_array_equal(finer.state[::2], own.state)  # the very same trajectory, seen twice as often
    np.testing.assert_array_equal(finer.episode.action[1::2], own.episode.action[1:])
    np.testing.assert_array_equal(coarser.episode.action[1:], own.episode.action[1::2])  # every second one left out,
    np.testing.assert_array_equal(coarser.state[0], own.state[0])
    assert not np.allclose(coarser.state[1], own.state[2])  # so that another trajectory follows


FREE = {
    "cartpole_swingup": {"hinge_1"}, "reacher_easy": {"shoulder"}, "cheetah_run": {"rooty"}, "finger_spin": {"hinge"},
    "cup_catch": set(), "walker_walk": {"rooty"},
}  # fmt: skip
"""The hinges without a range in dm_control's models, read there by eye."""


@pytest.mark.parametrize("name", list(TASKS))
def test_whole_turns_and_the_place_on_the_track_are_no_part_of_the_state(name: str) -> None:
    env = envs.make_env(TASKS[name], SHORT)
    env.reset(0)
    physics = env.physics
    before = held_out.readable_state(physics)

    joints = [physics.model.id2name(j, "joint") for j in range(physics.model.njnt)]
    for joint in joints:
        assert f"{joint} velocity" in before
        assert (f"{joint} position" in before) == (joint not in FREE[name] | {"rootx"})
        assert (f"{joint} sine" in before) == (f"{joint} cosine" in before) == (joint in FREE[name])
    for joint in joints:
        if joint in FREE[name]:
            physics.named.data.qpos[joint] += 4 * np.pi
        elif joint == "rootx":
            physics.named.data.qpos[joint] += 3
    assert held_out.readable_state(physics) == pytest.approx(before, abs=1e-9)
    for joint in joints:  # while everything that stays in it counts
        physics.named.data.qpos[joint] += 0.1
        physics.named.data.qvel[joint] += 0.1
    after = held_out.readable_state(physics)
    assert all(abs(after[key] - before[key]) > 1e-4 for key in before)
    env.close()


def test_states_are_what_dm_control_observes() -> None:
    """Its own observations: the cart's place with the pole's cosine and sine, the cheetah's positions but the first."""
    for name in ("cartpole_swingup", "cheetah_run"):
        env = envs.make_env(TASKS[name], SHORT)
        env.reset(3)
        env.step(np.full(env.action_size, 0.7, np.float32))
        state, physics = held_out.readable_state(env.physics), env.physics
        if name == "cartpole_swingup":
            x, cosine, sine = physics.bounded_position()  # pyright: ignore[reportAttributeAccessIssue]
            assert state == pytest.approx(
                {
                    "slider position": x, "hinge_1 sine": sine, "hinge_1 cosine": cosine,
                    "slider velocity": physics.velocity()[0], "hinge_1 velocity": physics.velocity()[1],
                }
            )  # fmt: skip
        else:
            rootz, *limbs = [value for key, value in state.items() if key.endswith("position")]
            rooty = np.arctan2(state["rooty sine"], state["rooty cosine"])
            observed = physics.data.qpos[1:]  # as dm_control.suite.cheetah.Cheetah.get_observation
            assert [rootz, rooty, *limbs] == pytest.approx(observed)
            speeds = [value for key, value in state.items() if key.endswith("velocity")]
            assert speeds == pytest.approx(physics.velocity())
        env.close()


@pytest.mark.parametrize("name", list(TASKS))
def test_the_planned_episodes_are_those_whose_actions_are_not_uniform(name: str) -> None:
    """By the actions alone: planned ones with noise are clipped at the bounds far more often than uniform ones."""
    with np.load(held_out.DATA) as data:
        actions = data[f"{name}_actions"]

    at_bounds = (np.abs(actions.astype(int)) == 127).mean(axis=(1, 2))

    assert [share > 0.03 for share in at_bounds] == [held_out.planned(index) for index in range(EPISODES)]


@pytest.mark.parametrize("name", ["cartpole_swingup", "reacher_easy", "cheetah_run"])
def test_the_planned_episodes_earn_more_than_the_random_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from planet import camera  # imports mujoco, which must wait for the choice of a GL back end

    black = np.zeros((3, 64, 64), np.uint8)
    monkeypatch.setattr(camera.Camera, "picture", lambda self, physics: black)  # nearly all of the time
    episodes = held_out.episodes(TASKS[name], EnvConfig())
    planned = [found.episode.total_reward for found in episodes if found.planned]
    others = [found.episode.total_reward for found in episodes if not found.planned]

    assert (len(planned), len(others)) == (4, 6)
    assert np.mean(planned) > 2 * np.mean(others)

from __future__ import annotations

import gc
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from dm_env.specs import BoundedArray

from planet import camera, envs, gl
from planet.config import EnvConfig
from planet.counting_env import CountingEnv
from planet.envs import DMControlEnv, Env, PadActions, make_env
from planet.rollout import random_policy, run_episodes
from planet.tasks import TASKS, Task

gl.choose_backend()
from dm_control import suite  # noqa: E402  (after the back end is chosen)
from dm_control.rl.control import PhysicsError  # noqa: E402

ALL = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
CARTPOLE, CHEETAH, WALKER = (TASKS[name] for name in ("cartpole_swingup", "cheetah_run", "walker_walk"))


def held_actions(task: Task, steps: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Random actions, each held for five decisions, so that the robots move about."""
    rng = np.random.default_rng(seed)
    action = np.zeros(task.action_size, np.float32)
    for t in range(steps):
        if t % 5 == 0:
            action = rng.uniform(-1, 1, task.action_size).astype(np.float32)
        yield action


def plain_env(task: Task, seed: int) -> Any:
    """dm_control as it comes."""
    return suite.load(task.domain, task.task, task_kwargs={"random": seed})


def state(physics: Any) -> np.ndarray:
    return np.concatenate([physics.data.qpos, physics.data.qvel, physics.data.qacc_warmstart, [physics.data.time]])


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Black pictures: for facts about the simulation, which need none."""
    monkeypatch.setattr(camera.Camera, "picture", lambda self, physics: np.zeros((3, 64, 64), np.uint8))


@ALL
@pytest.mark.parametrize("frames", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_pictures_equal_those_of_dm_control(task: Task, frames: int) -> None:
    env = make_env(task, EnvConfig())
    pictures, references = [env.reset(seed=1)], [env.physics.render(64, 64, camera_id=0)]
    for action in held_actions(task, frames):
        pictures.append(env.step(action).obs)
        references.append(env.physics.render(64, 64, camera_id=0))

    ours, theirs = np.stack(pictures), np.stack(references).transpose(0, 3, 1, 2)
    assert ours.dtype == np.uint8
    assert ours.std() > 10  # not blank
    assert (ours[0] != ours[-1]).any()
    np.testing.assert_array_equal(ours >> 3, theirs >> 3)  # what the paper's agent sees
    difference = np.abs(ours.astype(int) - theirs)
    if task is WALKER:  # the floor's edge in the shadow map: rarely one pixel, by a few grey levels
        assert difference.max() <= 4
        assert (difference > 0).sum() <= 9
    else:
        assert difference.max() == 0
    env.close()


@pytest.mark.slow
@ALL
@pytest.mark.parametrize(("picture", "most_changed"), [("near", 0.002), ("fast", 0.08)])
def test_near_and_fast_pictures_differ_in_few_pixels(task: Task, picture: Any, most_changed: float) -> None:
    exact, other = make_env(task, EnvConfig()), make_env(task, EnvConfig(picture=picture))
    pairs = [(exact.reset(seed=1), other.reset(seed=1))]
    pairs += [(exact.step(action).obs, other.step(action).obs) for action in held_actions(task, 20)]

    ours, theirs = (np.stack(side).astype(int) for side in zip(*pairs, strict=True))
    assert ((ours >> 3) != (theirs >> 3)).mean() <= most_changed
    assert np.abs(ours - theirs).mean() <= (0.05 if picture == "near" else 0.5)  # grey levels
    assert (ours != theirs).any() or picture == "near"


@ALL
@pytest.mark.usefixtures("blind")
def test_states_and_rewards_are_exactly_those_of_dm_control_steps(task: Task) -> None:
    env, plain = make_env(task, EnvConfig()), plain_env(task, seed=7)
    env.reset(seed=7)
    plain.reset()
    np.testing.assert_array_equal(state(env.physics), state(plain.physics))

    for t, action in enumerate(held_actions(task, env.agent_steps)):
        step = env.step(action)
        timesteps = [plain.step(action) for _ in range(task.action_repeat)]

        assert step.reward == sum(timestep.reward for timestep in timesteps)
        assert step.last == timesteps[-1].last() == (t == 1000 // task.action_repeat - 1)
        np.testing.assert_array_equal(state(env.physics), state(plain.physics))


@ALL
@pytest.mark.usefixtures("blind")
def test_state_observations_are_never_computed(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, physics: Any) -> None:
        raise AssertionError("a state observation was computed")

    env = make_env(task, EnvConfig())
    for cls in {type(env._env.task)} | set(type(env._env.task).__mro__):
        if "get_observation" in vars(cls):
            monkeypatch.setattr(cls, "get_observation", refuse)

    env.reset(seed=0)
    env.step(np.zeros(task.action_size, np.float32))


@ALL
@pytest.mark.usefixtures("blind")
def test_an_episode_is_a_function_of_its_seed_and_actions_whatever_came_before(task: Task) -> None:
    used, fresh = make_env(task, EnvConfig()), make_env(task, EnvConfig())
    used.reset(seed=3)
    for action in held_actions(task, 20):
        used.step(action)

    used.reset(seed=4)
    fresh.reset(seed=4)
    np.testing.assert_array_equal(state(used.physics), state(fresh.physics))
    for action in held_actions(task, 20, seed=1):
        assert used.step(action).reward == fresh.step(action).reward
    np.testing.assert_array_equal(state(used.physics), state(fresh.physics))

    used.reset(seed=5)
    fresh.reset(seed=4)
    assert (state(used.physics) != state(fresh.physics)).any()


def test_first_pictures_are_a_function_of_the_seed() -> None:
    env = make_env(TASKS["reacher_easy"], EnvConfig())  # whose target is moved by the seed
    first, other, again = (env.reset(seed) for seed in (1, 2, 1))

    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_returned_picture_is_not_changed_by_the_next_step() -> None:
    env = make_env(CHEETAH, EnvConfig())
    first = env.reset(seed=0)
    kept = first.copy()
    env.step(np.ones(6, np.float32))

    np.testing.assert_array_equal(first, kept)


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize(
    ("repeat", "env_steps", "decisions"), [(0, 1000, 125), (3, 1000, 333), (8, 80, 10), (7, 80, 11)]
)
def test_an_episode_has_whole_decisions_only(repeat: int, env_steps: int, decisions: int) -> None:
    env = make_env(CARTPOLE, EnvConfig(action_repeat=repeat, episode_env_steps=env_steps))
    assert env.agent_steps == decisions

    env.reset(seed=0)
    lasts = [env.step(action).last for action in held_actions(CARTPOLE, decisions)]

    assert lasts == [False] * (decisions - 1) + [True]
    assert env.physics.time() == pytest.approx(0.01 * decisions * env.action_repeat)  # control steps of 10 ms
    with pytest.raises(ValueError, match=r"the episode is over .* call reset"):
        env.step(np.zeros(1, np.float32))


@pytest.mark.usefixtures("blind")
def test_a_step_before_the_first_reset_is_refused() -> None:
    with pytest.raises(ValueError, match="call reset"):
        make_env(CARTPOLE, EnvConfig()).step(np.zeros(1, np.float32))


def test_more_control_steps_per_decision_than_per_episode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"env\.action_repeat must be at most env\.episode_env_steps \(5\), got 8"):
        make_env(CARTPOLE, EnvConfig(episode_env_steps=5))


@pytest.mark.usefixtures("blind")
def test_actions_are_mapped_to_the_bounds_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    load = envs._load
    received: list[np.ndarray] = []

    def load_with_other_bounds(task: Task) -> Any:
        env = load(task)
        env.action_spec = lambda: BoundedArray((2,), np.float64, minimum=[-2.0, 0.0], maximum=[4.0, 0.5])
        env.task.before_step = lambda action, physics: received.append(np.array(action))
        return env

    monkeypatch.setattr(envs, "_load", load_with_other_bounds)
    env = make_env(TASKS["finger_spin"], EnvConfig())
    env.reset(seed=0)
    for action in ([-1, -1], [1, 1], [0, 0.5]):
        env.step(np.array(action, np.float32))

    np.testing.assert_array_equal(received[::2], [[-2, 0], [4, 0.5], [1, 0.375]])  # R = 2: each twice
    np.testing.assert_array_equal(received[1::2], received[::2])


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.0001])
def test_an_action_out_of_range_is_refused_before_anything_moves(value: float) -> None:
    env = make_env(CHEETAH, EnvConfig())
    env.reset(seed=0)
    before = state(env.physics)

    with pytest.raises(ValueError, match=r"finite and in \[-1, 1\], got"):
        env.step(np.array([0, 0, 0, 0, 0, value], np.float32))
    with pytest.raises(ValueError, match=r"shape \(6,\), got \(5,\)"):
        env.step(np.zeros(5, np.float32))

    np.testing.assert_array_equal(state(env.physics), before)


@pytest.mark.usefixtures("blind")
def test_a_simulation_that_diverges_names_task_seed_and_decision() -> None:
    env = make_env(CHEETAH, EnvConfig())
    env.reset(seed=12)
    env.step(np.zeros(6, np.float32))
    env.physics.data.qvel[:] = 1e12

    with pytest.raises(PhysicsError) as caught:
        env.step(np.zeros(6, np.float32))

    assert "task cheetah_run, episode seed 12, decision 1" in caught.value.__notes__


@pytest.mark.slow
def test_ten_environments_in_one_process_share_one_camera_and_draw_as_one_would() -> None:
    config = EnvConfig(episode_env_steps=6)
    pool = [make_env(WALKER, config) for _ in range(10)]
    assert len({id(env._camera) for env in pool}) == 1

    together = run_episodes(pool, lambda obs: np.full((10, 6), 0.3, np.float32), seeds=range(10))
    [alone] = run_episodes([make_env(WALKER, config)], lambda obs: np.full((1, 6), 0.3, np.float32), seeds=[7])

    np.testing.assert_array_equal(together[7].obs, alone.obs)
    np.testing.assert_array_equal(together[7].reward, alone.reward)
    assert len({episode.obs.tobytes() for episode in together}) == 10


@pytest.mark.slow
def test_tasks_taking_turns_draw_what_each_draws_alone() -> None:
    def first_frames(env: DMControlEnv) -> list[np.ndarray]:
        return [env.reset(seed=2), env.step(np.zeros(env.action_size, np.float32)).obs]

    tasks = (CARTPOLE, CHEETAH, WALKER)
    alone = {task.name: first_frames(make_env(task, EnvConfig())) for task in tasks}
    pool = {task.name: make_env(task, EnvConfig()) for task in tasks}

    started = {name: env.reset(seed=2) for name, env in pool.items()}
    stepped = {name: env.step(np.zeros(env.action_size, np.float32)).obs for name, env in pool.items()}
    for name in pool:
        np.testing.assert_array_equal(started[name], alone[name][0])
        np.testing.assert_array_equal(stepped[name], alone[name][1])


def test_the_last_environment_frees_the_camera() -> None:
    config = EnvConfig(picture="near")
    one, other = make_env(CARTPOLE, config), make_env(CARTPOLE, config)
    key = (CARTPOLE.domain, CARTPOLE.task, "near")
    one.close()
    gc.collect()
    assert key in camera._cameras
    assert other.reset(seed=0).any()

    other.close()
    gc.collect()
    assert key not in camera._cameras
    assert make_env(CARTPOLE, config).reset(seed=0).any()  # and a new one can be made


def test_without_a_plain_depth_texture_the_picture_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env(CARTPOLE, EnvConfig(picture="near"))
    expected = env.reset(seed=0)
    env.close()
    gc.collect()

    answers = iter([0, camera.GL.GL_FRAMEBUFFER_COMPLETE])  # a driver that refuses ours, but takes mujoco's own back
    monkeypatch.setattr(camera.GL, "glCheckFramebufferStatus", lambda target: next(answers))
    again = make_env(CARTPOLE, EnvConfig(picture="near"))
    np.testing.assert_array_equal(again.reset(seed=0), expected)
    assert next(answers, None) is None
    again.close()
    gc.collect()


def test_a_gpu_draws_what_dm_control_would_draw_call_for_call(monkeypatch: pytest.MonkeyPatch) -> None:
    tricks: list[str] = []
    monkeypatch.setattr(camera, "is_software", lambda device: False)
    monkeypatch.setattr(camera, "_hide_floor_from_light", lambda scene: tricks.append("floor"))
    monkeypatch.setattr(camera, "_drop_stencil", lambda context: tricks.append("stencil"))
    gc.collect()
    physics = plain_env(WALKER, seed=0).physics

    picture = camera.Camera(physics, "exact").picture(physics)

    assert tricks == []
    np.testing.assert_array_equal(picture, physics.render(64, 64, camera_id=0).transpose(2, 0, 1))


def test_the_model_is_left_as_it_was() -> None:
    env = make_env(CARTPOLE, EnvConfig(picture="fast"))
    plain = plain_env(CARTPOLE, 0).physics.model.vis
    ours = env.physics.model.vis

    assert (ours.global_.offwidth, ours.global_.offheight) == (plain.global_.offwidth, plain.global_.offheight)
    assert ours.quality.shadowsize == plain.quality.shadowsize
    assert (ours.quality.numslices, ours.quality.numstacks) == (plain.quality.numslices, plain.quality.numstacks)
    env.physics.render(240, 320, camera_id=0)  # a larger picture of the same simulator is still possible


def test_environments_satisfy_the_protocol() -> None:
    dm_control = make_env(CARTPOLE, EnvConfig())
    everything: list[Env] = [dm_control, PadActions(dm_control, 6), CountingEnv(1, 3)]

    assert all(isinstance(env, Env) for env in everything)


def test_pad_actions_ignores_the_surplus_and_keeps_the_rest() -> None:
    narrow, wide = CountingEnv(2, 5), PadActions(CountingEnv(2, 5), 6)
    assert (wide.action_size, wide.action_repeat, wide.agent_steps) == (6, 1, 5)
    np.testing.assert_array_equal(narrow.reset(1), wide.reset(1))

    action = np.linspace(-1, 1, 6, dtype=np.float32)
    mine, theirs = narrow.step(action[:2]), wide.step(action)

    np.testing.assert_array_equal(mine.obs, theirs.obs)
    assert (mine.reward, mine.last) == (theirs.reward, theirs.last)
    with pytest.raises(ValueError, match=r"shape \(6,\), got \(2,\)"):
        wide.step(action[:2])
    with pytest.raises(ValueError, match="at least the task's 2 action elements, got 1"):
        PadActions(narrow, 1)


def test_a_padded_multi_task_rollout_keeps_the_action_that_was_chosen() -> None:
    [episode] = run_episodes([PadActions(CountingEnv(2, 5), 6)], random_policy(np.random.default_rng(0), 6), [0])

    assert episode.action.shape == (6, 6)
    assert (episode.action[1:, 2:] != 0).any()


def versions(**known: str) -> Any:
    def version(package: str) -> str:
        if package not in known:
            raise importlib.metadata.PackageNotFoundError(package)
        return known[package]

    return version


def test_mujoco_4_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", versions(dm_control="1.0.50", mujoco="4.0.0"))
    with pytest.raises(RuntimeError, match=r"dm_control 1\.0\.50 does not work with mujoco 4\.0\.0.*pip install -c"):
        make_env(CARTPOLE, EnvConfig())


@pytest.mark.parametrize("missing", ["mujoco", "dm_control"])
def test_a_missing_simulator_is_named_with_the_way_out(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"dm_control": "1.0.50", "mujoco": "3.17.0"}
    del known[missing]
    monkeypatch.setattr(importlib.metadata, "version", versions(**known))
    with pytest.raises(RuntimeError, match=rf"{missing} is not installed; install .*pip install -c constraints\.txt"):
        make_env(CARTPOLE, EnvConfig())


def test_any_other_mismatch_is_explained_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(domain: str, task: str) -> None:
        raise AttributeError("'MjModel' object has no attribute 'flex_vertedge'")

    monkeypatch.setattr(suite, "load", load)
    with pytest.raises(
        RuntimeError, match=r"cannot load cartpole swingup with mujoco 3.*flex_vertedge.*pip install -c"
    ):
        make_env(CARTPOLE, EnvConfig())


SCRIPT = """
import numpy as np
from planet.config import EnvConfig
from planet.envs import make_env
from planet.tasks import TASKS

env = make_env(TASKS["cheetah_run"], EnvConfig())
total = env.reset(0).sum() + env.step(np.ones(6, np.float32)).obs.sum()
print(env.renderer.split(",")[0], total)
"""


@pytest.mark.slow
def test_both_software_back_ends_say_nothing_and_draw_the_same() -> None:
    totals = {}
    for backend in ("egl", "osmesa"):
        environment = {k: v for k, v in os.environ.items() if k not in ("PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID")}
        # No GPU for this process: the two are compared as the same software rasteriser.
        environment |= {"MUJOCO_GL": backend, "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        name, totals[backend] = done.stdout.split()
        assert name == backend
    assert totals["egl"] == totals["osmesa"]


def test_importing_the_module_loads_no_simulator() -> None:
    code = (
        "import planet.envs, planet.rollout, planet.replay, planet.episode_store, planet.counting_env, sys; "
        "print([m for m in ('mujoco', 'dm_control', 'OpenGL', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"

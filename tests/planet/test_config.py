import subprocess
import sys

import numpy as np
import pytest

from planet import held_out
from planet.config import (
    HELD_OUT_EPISODES,
    LATER,
    Config,
    diff,
    flatten,
    from_toml,
    identity_hash,
    load,
    override,
    parse_changes,
    to_toml,
)
from planet.presets import PRESETS, resolve
from planet.tasks import TASKS


def test_defaults_are_the_papers_numbers():
    c = Config()

    assert (c.model.stoch, c.model.deter, c.model.hidden, c.model.conv_depth) == (30, 200, 200, 32)
    assert (c.planner.horizon, c.planner.iterations, c.planner.candidates, c.planner.num_elites) == (12, 10, 1000, 100)
    assert (c.batch.size, c.batch.chunk, c.schedule.updates, c.schedule.seed_episodes) == (50, 50, 100, 5)
    assert (c.optimizer.learning_rate, c.optimizer.eps, c.optimizer.clip_norm) == (1e-3, 1e-4, 1000)
    assert (c.objective.free_nats, c.objective.kl_scale, c.objective.reward_scale) == (3, 1, 10)
    assert c.schedule.action_noise == 0.3
    assert {t.name: t.action_repeat for t in TASKS.values()} == {
        "cartpole_swingup": 8, "reacher_easy": 4, "cheetah_run": 4, "finger_spin": 2, "cup_catch": 4, "walker_walk": 2,
    }  # fmt: skip


def test_evaluations_fall_in_the_middle_of_the_papers_bins_and_at_the_end():
    points = Config().schedule.eval_at()

    assert len(points) == 20
    assert points[-1] == 1005
    for k, point in enumerate(points[:-1]):
        assert 5 + k * 1000 / 19 < point < 5 + (k + 1) * 1000 / 19
        assert point == 5 + round((k + 0.5) * 1000 / 19)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("task", [*TASKS, "dmc6"])
def test_toml_round_trip(preset, task):
    config = resolve(task, preset=preset, seed=3)

    assert from_toml(to_toml(config)) == config


def test_a_string_is_parsed_to_the_fields_type():
    config = override(Config(), {"planner.candidates": "500", "planner.warm_start": "true", "batch.size": "1e1"})

    assert (config.planner.candidates, config.planner.warm_start, config.batch.size) == (500, True, 10)


def test_changes_are_checked_together():
    config = override(Config(), {"planner.candidates": 50, "planner.elites": 5})

    assert diff(Config(), config) == {"planner.candidates": (1000, 50), "planner.elites": (100, 5)}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"planner.elite": 1}, KeyError, ["planner.elite", "planner.elites"]),
        ({"elites": 1}, KeyError, ["planner.elites"]),
        ({"planner": 1}, KeyError, ["whole section", "planner.horizon"]),
        ({"seed.x": 1}, KeyError, ["seed is a value"]),
        ({"planner.elites": 2000}, ValueError, ["planner.elites", "1..planner.candidates (1000)", "2000"]),
        ({"planner.elites": "many"}, ValueError, ["an integer", "'many'"]),
        ({"planner.elites": 2.5}, ValueError, ["an integer", "2.5"]),
        ({"planner.elites": True}, ValueError, ["an integer", "True"]),
        ({"planner.warm_start": 1}, ValueError, ["true or false", "1"]),
        ({"objective.free_nats": float("nan")}, ValueError, ["a number", "nan"]),
        ({"objective.free_nats": -1}, ValueError, ["objective.free_nats", "at least 0"]),
        ({"model.transition": "gru"}, ValueError, ["'rssm'", "'ssm'", "'drnn'", "'gru'"]),
        ({"model.bit_depth": 9}, ValueError, ["1..8", "9"]),
        ({"planner.elites": 10**400}, ValueError, ["an integer"]),
        ({"runtime.device": "tpu"}, ValueError, ["cpu", "cuda", "'tpu'"]),
        ({"runtime.device": "cuda:abc"}, ValueError, ["runtime.device", "auto, cpu, cuda or cuda:N", "'cuda:abc'"]),
        ({"runtime.device": "cuda:-1"}, ValueError, ["cuda:N", "'cuda:-1'"]),
        ({"runtime.device": "cpu:0"}, ValueError, ["cuda:N", "'cpu:0'"]),
        ({"schedule.open_loop_episodes": 11}, ValueError, ["schedule.open_loop_episodes", "at most 10", "11"]),
        ({"env.action_repeat": -1}, ValueError, ["env.action_repeat", "at least 0", "-1"]),
        ({"seed": 2**63}, ValueError, ["seed", "0..9223372036854775807", "9223372036854775808"]),
        ({"env.episode_env_steps": 2000}, ValueError, ["1000", "2000"]),
        (
            {"objective.image_scale": 0.0, "objective.reward_scale": 0.0, "objective.kl_scale": 0.0},
            ValueError,
            ["objective's scales", "above 0"],
        ),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(changes, error, words):
    with pytest.raises(error) as caught:
        override(Config(), changes)

    for word in words:
        assert word in str(caught.value)


def test_a_number_of_elites_takes_the_place_of_an_earlier_fraction_and_the_reverse():
    """The fraction goes before the number, so a later number would count for nothing."""
    fraction = {"planner.candidates": 300, "planner.elite_fraction": 0.1}
    assert resolve("cheetah_run", ablation=fraction).planner.num_elites == 30
    assert resolve("cheetah_run", ablation=fraction, changes={"planner.elites": "7"}).planner.num_elites == 7
    assert resolve("cheetah_run", ablation={"planner.elites": 7}, changes=fraction).planner.num_elites == 30


def test_a_chunk_longer_than_an_episode_is_refused():
    with pytest.raises(ValueError, match=r"batch\.chunk must be at most the 126 frames"):
        resolve("cartpole_swingup", changes={"batch.chunk": 127})

    assert resolve("cartpole_swingup", changes={"batch.chunk": 126}).batch.chunk == 126


def test_of_several_tasks_the_largest_action_repeat_decides_how_long_a_chunk_may_be():
    words = r"at most the 11 frames of an episode \(env.episode_env_steps 80 // action repeat 8, .*got 50"
    with pytest.raises(ValueError, match=words):
        resolve("dmc6", changes={"env.episode_env_steps": 80})

    assert resolve("dmc6", changes={"env.episode_env_steps": 400}).batch.chunk == 50  # cartpole's 51 frames
    assert Config(task="a_task_of_your_own").batch.chunk == 50  # its action repeat is known where it is registered


def test_an_action_repeat_of_0_is_the_tasks_own_and_the_same_run():
    assert resolve("walker_walk", changes={"env.action_repeat": "0"}) == resolve("walker_walk")
    assert resolve("dmc6").env.action_repeat == 0


def test_as_many_open_loop_episodes_as_the_package_has_are_allowed():
    with np.load(held_out.DATA) as data:
        assert {len(data[f"{name}_seeds"]) for name in TASKS} == {HELD_OUT_EPISODES}

    assert resolve("cheetah_run", changes={"schedule.open_loop_episodes": HELD_OUT_EPISODES})


def test_a_string_in_a_numbers_place_is_parsed_from_the_command_line_and_refused_from_toml():
    assert resolve("cheetah_run", changes={"planner.horizon": "6"}).planner.horizon == 6
    with pytest.raises(ValueError, match=r"planner.horizon must be an integer, got the string '6': write it without"):
        resolve("cheetah_run", ablation={"planner.horizon": "6"})
    with pytest.raises(ValueError, match=r"planner.warm_start must be true or false, got the string 'true'"):
        resolve("cheetah_run", ablation={"planner.warm_start": "true"})
    with pytest.raises(ValueError, match=r"config.toml: planner.horizon must be an integer, got the string '12'"):
        from_toml(to_toml(Config()).replace("horizon = 12", 'horizon = "12"'))
    assert resolve("cheetah_run", ablation={"model.activation": "elu"}).model.activation == "elu"


def test_bad_toml_names_the_file_and_an_incomplete_file_its_gaps():
    with pytest.raises(ValueError, match="here.toml is not valid TOML"):
        from_toml("task = ", "here.toml")
    with pytest.raises(ValueError, match=r"lacks .*planner\.horizon"):
        from_toml('task = "cheetah_run"')
    with pytest.raises(ValueError, match=r"here.toml: no config key 'planner\.elite'"):
        from_toml(to_toml(Config()).replace("elites =", "elite ="), "here.toml")
    with pytest.raises(ValueError, match=r"here.toml: planner\.horizon is given twice, 6 and 12"):
        from_toml('"planner.horizon" = 6\n' + to_toml(Config()), "here.toml")


def test_a_file_that_is_not_utf8_is_named_with_the_place(tmp_path):
    file = tmp_path / "config.toml"
    file.write_bytes(b'task = "cheetah_run"\n# caf\xe9\n')

    with pytest.raises(ValueError, match=r"config.toml is not UTF-8: byte 0xe9 at position 26, line 2; save it as"):
        load(file)


def test_layers_override_in_order_preset_task_ablation_set_seed():
    config = resolve(
        "walker_walk",
        preset="smoke",
        ablation={"planner.horizon": 3, "batch.size": 2},
        changes={"batch.size": 3},
        seed=7,
    )

    assert (config.planner.horizon, config.batch.size, config.seed, config.env.action_repeat) == (3, 3, 7, 2)
    assert resolve("walker_walk", ablation={"env.action_repeat": 8}).env.action_repeat == 8


def test_task_and_seed_are_not_set_by_layers():
    with pytest.raises(KeyError, match="seed"):
        resolve("walker_walk", changes={"seed": 4})


def test_unknown_names_list_the_known():
    with pytest.raises(KeyError, match="perhaps walker_walk"):
        resolve("walker_wlk")
    with pytest.raises(KeyError, match="perhaps smoke"):
        resolve("walker_walk", preset="smok")
    assert resolve("ball_in_cup_catch").task == "cup_catch"


def test_identity_is_what_is_computed_not_where():
    base = Config()

    assert identity_hash(override(base, {"runtime.device": "cuda"})) == identity_hash(base)
    for key, value in {"runtime.threads": 2, "env.picture": "fast", "seed": 1, "runtime.precision": "auto"}.items():
        assert identity_hash(override(base, {key: value})) != identity_hash(base)


def test_runs_from_before_a_key_existed_stay_the_runs_they_are():
    for key, value in LATER.items():
        before = "\n".join(line for line in to_toml(Config()).splitlines() if not line.startswith(key.split(".")[1]))

        assert flatten(Config())[key] == value  # else they would not be the default
        assert from_toml(before) == Config()
        other = override(Config(), {key: not value})
        assert identity_hash(other) != identity_hash(Config())
        assert from_toml(to_toml(other)) == other
    assert identity_hash(Config()) == "6ed39d7dda04e125"  # of all runs so far


def test_every_key_is_part_of_the_flat_view():
    flat = flatten(Config())

    assert len(flat) == len(to_toml(Config()).replace("[", "\n[").split(" = ")) - 1


def test_configuration_imports_neither_torch_nor_a_simulator():
    code = (
        "import sys, planet.config, planet.presets;"
        "print([m for m in ('torch', 'numpy', 'dm_control') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_number_of_elites_is_one_identity_however_it_is_said() -> None:
    as_number = resolve("cheetah_run", changes={"planner.elites": 100})
    as_fraction = resolve("cheetah_run", changes={"planner.elite_fraction": 0.1})

    assert identity_hash(as_number) == identity_hash(as_fraction)
    other = resolve("cheetah_run", changes={"planner.elite_fraction": 0.05})
    assert identity_hash(other) != identity_hash(as_number)


def test_changes_are_key_value_pairs_and_never_two_values_for_one_key():
    assert parse_changes(["a.b=1", "c=x=y"]) == {"a.b": "1", "c": "x=y"}
    with pytest.raises(ValueError, match="takes key=value, got 'a.b'"):
        parse_changes(["a.b"])
    with pytest.raises(ValueError, match="given twice, 1 and 2"):
        parse_changes(["a.b=1", "a.b=2"])

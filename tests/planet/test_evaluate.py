import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from planet import checkpoint, evaluate, streams, tasks
from planet.agent import Agent
from planet.config import Config
from planet.counting_env import CountingEnv
from planet.presets import resolve
from planet.profile import random_episode
from planet.rollout import Episode
from planet.run_dir import RunDir
from planet.world_model import WorldModel


def trained_run(path: Path, *, weights_seed: int = 0, preset: str = "smoke", task: str = "cartpole_swingup") -> RunDir:
    """A run with a checkpoint as training leaves it, of a model with untrained weights."""
    config = resolve(task, preset=preset, changes={"runtime.device": "cpu", "runtime.threads": 1})
    run = RunDir.create(path, config, preset=preset, variant="base")
    parameters = model(config, weights_seed).state_dict()
    learner = {"world_model": parameters, "optimizer": {name: value * 2 for name, value in parameters.items()}}
    checkpoint.save(run.checkpoints, {"progress": {"episodes": 7, "updates": 20}, "learner": learner})
    return run


def model(config: Config, seed: int) -> WorldModel:
    return WorldModel(config.model, config.objective, 1, torch.Generator().manual_seed(seed))


def returns(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    capsys.readouterr()
    assert evaluate.main([str(path), "--episodes", "2", "--device", "cpu", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out) | {"run": None}


@pytest.mark.slow
def test_exported_weights_act_like_the_run_they_are_of(tmp_path, capsys):
    run = trained_run(tmp_path / "seed_0")
    expected = returns(run.path, capsys)
    other = returns(trained_run(tmp_path / "other", weights_seed=1).path, capsys)

    assert checkpoint.main(["export", str(run.path), str(tmp_path / "shipped")]) == 0
    shutil.rmtree(run.path)

    assert sorted(p.name for p in (tmp_path / "shipped").iterdir()) == ["config.toml", "run.json", "weights.pt"]
    assert returns(tmp_path / "shipped", capsys) == expected
    assert expected["episode"] == 7 and expected["returns"] != other["returns"]


@pytest.mark.slow
def test_a_trained_agent_plans_otherwise_where_it_is_told_to(tmp_path, capsys):
    run = trained_run(tmp_path / "seed_0")
    before = run.config_toml.read_bytes()
    as_trained = returns(run.path, capsys)
    same = returns(run.path, capsys, "--set", "planner.samples=1")
    other = returns(run.path, capsys, "--set", "planner.candidates=9", "planner.elites=3", "--video")

    for evaluation in ("0", "1"):
        returns(run.path, capsys, "--evaluation", evaluation, "--video", "--episodes", "1")

    assert as_trained["set"] == {} and same["returns"] == as_trained["returns"]
    assert other["set"] == {"planner.candidates": "9", "planner.elites": "3"}
    assert other["returns"] != as_trained["returns"]
    assert run.config_toml.read_bytes() == before
    assert {p.name for p in run.videos.iterdir()} == {
        *(f"evaluation_00007_cartpole_swingup_{k}+planner.candidates=9+planner.elites=3.gif" for k in range(2)),
        *(f"evaluation_00007_cartpole_swingup_0+evaluation={k}.gif" for k in range(2)),
    }


def test_a_number_of_elites_counts_where_the_run_has_a_fraction() -> None:
    config = resolve("cheetah_run", ablation={"planner.candidates": 300, "planner.elite_fraction": 0.1})

    assert evaluate.with_planner(config, {"planner.iterations": "1", "planner.elites": "1"}).planner.num_elites == 1
    assert evaluate.with_planner(config, {"planner.iterations": "1"}).planner.num_elites == 30


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("model.stoch=3", "how a trained agent plans (planner.candidates, planner.samples, ...), got model.stoch"),
        ("planner.dynamics=simulator", "got planner.dynamics"),
        ("planner.sample=3", "planner.samples"),
        ("planner.samples=0", "planner.samples must be at least 1, got 0"),
        ("planner.elites=9999", "planner.elites must be in 1..planner.candidates"),
        ("planner.samples", "--set takes key=value"),
    ],
)
def test_settings_that_are_not_the_planners_or_not_values_of_it_are_refused(tmp_path, capsys, assignment, named):
    run = trained_run(tmp_path / "seed_0")

    assert evaluate.main([str(run.path), "--set", assignment]) == 2
    assert named in capsys.readouterr().err


def test_exported_weights_of_the_quick_preset_are_small(tmp_path):
    run = trained_run(tmp_path / "seed_0", preset="quick")

    exported = checkpoint.export_weights(run, tmp_path / "shipped")

    assert exported.weights.stat().st_size < 6e6
    parameters, progress = checkpoint.load_model(exported)
    assert progress["episodes"] == 7
    assert all(torch.equal(parameters[name], value) for name, value in model(run.config(), 0).state_dict().items())


def test_a_checkpoint_goes_before_exported_weights(tmp_path):
    """Weights lying in a run directory are of an earlier time than its checkpoint, or of this very one."""
    run = trained_run(tmp_path / "seed_0")
    checkpoint.export_weights(run, run.path)
    trained_run(tmp_path / "seed_0", weights_seed=1)

    parameters, _ = checkpoint.load_model(run)

    assert all(torch.equal(parameters[name], value) for name, value in model(run.config(), 1).state_dict().items())


def test_a_run_without_checkpoint_and_weights_is_refused(tmp_path, capsys):
    run = trained_run(tmp_path / "seed_0")
    shutil.rmtree(run.checkpoints)

    assert evaluate.main([str(run.path)]) == 2
    assert "no checkpoint yet and no weights.pt; train it first" in capsys.readouterr().err
    assert checkpoint.main(["export", str(run.path), str(tmp_path / "shipped")]) == 2
    assert "nothing to export" in capsys.readouterr().err and not (tmp_path / "shipped").exists()


def test_an_export_is_not_exported_again(tmp_path, capsys):
    exported = checkpoint.export_weights(trained_run(tmp_path / "seed_0"), tmp_path / "shipped")

    assert checkpoint.main(["export", str(exported.path), str(tmp_path / "again")]) == 2
    assert f"is an export already; python -m planet.evaluate {exported.path} takes" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("how", ["resumed", "resumed with another setting", "further on"])
def test_an_earlier_export_of_a_run_is_told_and_stays(tmp_path, capsys, how):
    run, shipped = trained_run(tmp_path / "seed_0"), tmp_path / "shipped"
    run.record_start(threads=1)
    words = ["export", str(run.path), str(shipped)]
    assert checkpoint.main(words) == 0
    before = files_of(shipped)
    assert checkpoint.main(words) == 0  # typed again
    assert files_of(shipped) == before

    if how == "resumed with another setting":
        run.config_toml.write_bytes(run.config_toml.read_bytes() + b"# changed\n")
    if how != "further on":
        run.record_start(threads=1)
    latest = checkpoint.load(run.checkpoints) or {}
    checkpoint.save(run.checkpoints, {**latest, "progress": {"episodes": 8, "updates": 30}})
    capsys.readouterr()
    assert checkpoint.main(words) == 2
    assert capsys.readouterr().err == (
        f"planet.checkpoint: {shipped} holds an earlier export of this run; remove its config.toml, run.json, "
        "weights.pt to export anew, or choose another folder\n"
    )
    assert files_of(shipped) == before

    for name in ("config.toml", "run.json", "weights.pt"):
        (shipped / name).unlink()
    assert checkpoint.main(words) == 0
    assert checkpoint.load_model(RunDir(shipped))[1] == {"episodes": 8, "updates": 30}


def test_weights_in_the_run_itself_and_an_earlier_copy_of_it_are_not_replaced(tmp_path, capsys):
    run = trained_run(tmp_path / "seed_0")
    checkpoint.export_weights(run, run.path)
    shutil.copytree(run.path, tmp_path / "copy")
    run.record_start(threads=1)
    latest = checkpoint.load(run.checkpoints) or {}
    checkpoint.save(run.checkpoints, {**latest, "progress": {"episodes": 8, "updates": 30}})

    assert checkpoint.main(["export", str(run.path), str(run.path)]) == 2
    assert "remove its weights.pt to export anew" in capsys.readouterr().err
    assert checkpoint.main(["export", str(run.path), str(tmp_path / "copy")]) == 2
    assert f"copy is an earlier copy of {run.path}; choose another folder" in capsys.readouterr().err


def test_a_run_is_not_exported_over_the_export_of_its_repetition(tmp_path, capsys):
    run = trained_run(tmp_path / "seed_0")
    again = run.repetition(tmp_path / "again", ())
    for made, threads in ((again, 1), (run, 2)):
        made.record_start(threads=threads)
    shutil.copytree(run.checkpoints, again.checkpoints)
    checkpoint.export_weights(again, tmp_path / "shipped")

    assert checkpoint.main(["export", str(run.path), str(tmp_path / "shipped")]) == 2
    assert f"run.json is of another run than {run.path}; choose another folder" in capsys.readouterr().err


def test_a_run_whose_configuration_cannot_be_read_is_not_exported(tmp_path, capsys):
    run = trained_run(tmp_path / "seed_0")
    run.config_toml.write_bytes(b"# \xff\n" + run.config_toml.read_bytes())

    assert checkpoint.main(["export", str(run.path), str(tmp_path / "shipped")]) == 2
    assert f"{run.config_toml} is not UTF-8" in capsys.readouterr().err
    assert not (tmp_path / "shipped").exists()


def test_an_export_to_where_nothing_can_be_written_is_refused(tmp_path, capsys):
    run = trained_run(tmp_path / "seed_0")
    (tmp_path / "file").write_text("in the way")

    for target, why in ((tmp_path / "file", "a file has this name"), (Path("/proc/x"), "No such file or directory")):
        assert checkpoint.main(["export", str(run.path), str(target)]) == 2
        error = capsys.readouterr().err
        assert error == f"planet.checkpoint: cannot write into {target} ({why}); choose another folder\n"


@pytest.mark.parametrize("state", ["done", "stopped"])
def test_a_run_that_came_without_its_checkpoint_says_how_to_get_one(tmp_path, capsys, state):
    run = trained_run(tmp_path / "seed_0")
    shutil.rmtree(run.checkpoints)
    run.write_status({"state": state, "episode": 4, "episodes_total": 4})

    assert evaluate.main([str(run.path)]) == 2
    assert checkpoint.main(["export", str(run.path), str(tmp_path / "shipped")]) == 2
    for error in capsys.readouterr().err.splitlines():
        assert f"train it again: python -m planet.reproduce {run.path} says how" in error


def test_a_run_in_the_true_simulator_says_that_it_has_no_model(tmp_path, capsys):
    config = resolve("cartpole_swingup", preset="smoke", changes={"planner.dynamics": "simulator"})
    run = RunDir.create(tmp_path / "seed_0", config, preset="smoke", variant="true_simulator")
    run.write_status({"state": "done"})

    assert evaluate.main([str(run.path)]) == 2
    assert "plans in the true simulator and has no model; its returns are in episodes.jsonl" in capsys.readouterr().err


def test_what_is_no_device_is_refused(tmp_path, capsys):
    run = trained_run(tmp_path / "seed_0")

    assert evaluate.main([str(run.path), "--device", "foo"]) == 2
    assert "--device must be auto, cpu, cuda or cuda:N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--task", "cartpole_swingup"], "got --task:"),
        (["--episodes", "10"], "got --episodes:"),  # its default, but said
        (["--episodes", "0"], "got --episodes:"),
        (["--video", "--evaluation", "0"], "got --evaluation, --video:"),
        (["--json"], "got --json:"),
        (["--set", "planner.samples=4"], "got --set:"),
    ],
)
def test_open_loop_refuses_options_that_it_would_not_heed_before_any_work(tmp_path, capsys, options, named):
    run = trained_run(tmp_path / "seed_0")

    for path in (run.path, tmp_path / "not_there"):
        assert evaluate.main([str(path), "--open-loop", *options]) == 2
        error = capsys.readouterr().err
        assert named in error and "leave that out" in error
    assert not run.predictions.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--evaluation", "-3"], "--evaluation must be at least 0, got -3"),
        (["--episodes", "-3"], "--episodes must be at least 1, got -3"),
        (["--task", ""], "no task ''"),
        (["--task", "cheetah_run"], "acts in cartpole_swingup, not in cheetah_run"),
    ],
)
def test_a_wrong_number_or_task_is_refused_before_the_agent_is_loaded(tmp_path, monkeypatch, capsys, words, message):
    run = trained_run(tmp_path / "seed_0")
    monkeypatch.setattr(evaluate, "load_agent", lambda *_: pytest.fail("loaded"))

    assert evaluate.main([str(run.path), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def own_task(monkeypatch):
    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))
    tasks.register(tasks.Task(name="count", domain="", task="", action_repeat=1, action_size=1))


def test_a_run_in_an_environment_of_ones_own_is_evaluated_in_it(tmp_path, capsys, own_task):
    run = trained_run(tmp_path / "seed_0", task="count")
    made = []

    def make_env(task, config):
        made.append((task.name, config.action_repeat))
        return CountingEnv(action_size=1, agent_steps=6)

    assert evaluate.main([str(run.path), "--episodes", "2", "--device", "cpu", "--json"], make_env=make_env) == 0
    assert made == [("count", 1)] * 2
    assert len(json.loads(capsys.readouterr().out)["returns"]["count"]) == 2


def test_open_loop_needs_held_out_episodes(tmp_path, capsys, own_task):
    run = trained_run(tmp_path / "seed_0", task="count")
    run.predictions.mkdir()
    (run.predictions / "strip_count_0.png").touch()

    assert evaluate.main([str(run.path), "--open-loop", "--device", "cpu"]) == 2
    assert "--open-loop: there are no held-out episodes of count" in capsys.readouterr().err
    assert (run.predictions / "strip_count_0.png").exists()


@pytest.mark.parametrize("option", ["--video", "--open-loop"])
def test_a_run_that_cannot_be_written_is_refused_before_any_work_and_only_where_it_would_be(
    tmp_path, monkeypatch, capsys, option
):
    run = trained_run(tmp_path / "seed_0")
    folder = {"--video": run.videos, "--open-loop": run.predictions}[option]
    folder.write_text("in the way")  # root may write anywhere else
    worked = []

    def act(agent, envs, **_):
        worked.append("acted")
        return [(random_episode(np.random.default_rng(0), 3, 1), 0)]

    monkeypatch.setattr(evaluate, "evaluate", act)
    monkeypatch.setattr(evaluate, "write_open_loop", lambda *_, **__: worked.append("predicted"))

    assert evaluate.main([str(run.path), "--device", "cpu", option]) == 2
    error = capsys.readouterr().err
    assert f"cannot write into {folder} (a file has this name); {option} writes there" in error
    assert worked == []
    assert evaluate.main([str(run.path), "--device", "cpu", "--episodes", "1"]) == 0
    assert worked == ["acted"]


def test_open_loop_says_that_it_replaces_what_training_wrote_and_where(tmp_path, monkeypatch, capsys):
    run = trained_run(tmp_path / "seed_0")
    monkeypatch.setattr(evaluate, "write_open_loop", lambda run_dir, *_, **__: [run_dir.predictions / "a.csv"])

    said = []
    for _ in range(2):
        assert evaluate.main([str(run.path), "--open-loop", "--device", "cpu"]) == 0
        said.append(capsys.readouterr().err)
        (run.predictions / "a.csv").touch()
    assert said[0] == f"{run.predictions}: of the model after 7 episodes\n"
    assert said[1] == f"{run.predictions}: of the model after 7 episodes, in place of what was there\n"
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    assert "in place of what training wrote there" in " ".join(capsys.readouterr().out.split())


def test_open_loop_writes_after_how_many_episodes_the_model_was_taken(tmp_path, monkeypatch, capsys):
    run = trained_run(tmp_path / "seed_0")
    given = {}

    def write_open_loop(run_dir, config, model, **options):
        given.update(options)
        return [run_dir.predictions / "open_loop.csv"]

    monkeypatch.setattr(evaluate, "write_open_loop", write_open_loop)

    assert evaluate.main([str(run.path), "--open-loop", "--device", "cpu"]) == 0
    assert given["trained_episodes"] == 7
    assert given["count"] == 2  # the probes are fitted to as many episodes as at the end of training
    assert "open_loop.csv" in capsys.readouterr().out


def test_weights_of_another_run_or_size_and_damaged_ones_are_refused(tmp_path, capsys):
    small, large = trained_run(tmp_path / "small"), trained_run(tmp_path / "large", preset="quick")
    exported = checkpoint.export_weights(small, tmp_path / "shipped")

    assert checkpoint.main(["export", str(large.path), str(exported.path)]) == 2
    assert "another run" in capsys.readouterr().err
    shutil.copyfile(large.config_toml, exported.config_toml)
    assert evaluate.main([str(exported.path)]) == 2
    assert "do not fit its config.toml" in capsys.readouterr().err
    exported.weights.write_bytes(b"nonsense")
    assert evaluate.main([str(exported.path)]) == 2
    assert "weights.pt" in capsys.readouterr().err


class Noted(Agent):
    """An agent that stands still and notes what it is given; its state counts the decisions."""

    device = torch.device("cpu")  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self) -> None:
        self.generators: list[int] = []
        self.decisions: list[tuple[int, int, float]] = []

    def start(self, generators) -> Any:
        self.generators = [generator.initial_seed() for generator in generators]
        return 0

    def act(self, state: Any, obs, *, action_noise) -> Any:
        self.decisions.append((state, len(obs), action_noise))
        return np.zeros((len(obs), 1), np.float32), state + 1


@pytest.mark.parametrize("count", [1, 3])
def test_an_evaluation_is_without_noise_and_keyed_by_seed_evaluation_task_and_place(count: int) -> None:
    agent = Noted()

    found = evaluate.evaluate(agent, [CountingEnv(1, 4) for _ in range(count)], seed=5, evaluation=2, task_index=1)

    assert agent.decisions == [(t, count, 0.0) for t in range(4)]  # what it remembers is carried on
    assert [seed for _, seed in found] == [streams.integer(5, "eval_env", 2, 1, k) for k in range(count)]
    assert agent.generators == [streams.torch_generator(5, "eval", 2, 1, k).initial_seed() for k in range(count)]
    assert [episode.total_reward for episode, _ in found] == [1 + 2 + 3 + 4] * count


def test_the_command_line_evaluates_as_asked_from_start_states_of_its_own(tmp_path, capsys, monkeypatch):
    run = trained_run(tmp_path / "seed_0")
    run.record_start(precision="bfloat16", threads=1)
    asked, precisions = [], []

    def noted(agent, envs, *, seed, evaluation, task_index):
        asked.append((len(envs), seed, evaluation, task_index))
        precisions.append(agent.precision)
        rewards = np.arange(len(envs), dtype=np.float32)  # returns 0, 1, 2, ...
        still = np.zeros((2, 3, 64, 64), np.uint8), np.zeros((2, 1), np.float32)
        return [(Episode(*still, np.array([0, reward], np.float32)), 0) for reward in rewards]

    monkeypatch.setattr(evaluate, "evaluate", noted)

    def main(*options: str) -> str:
        words = [str(run.path), "--device", "cpu", *options]
        assert evaluate.main(words, make_env=lambda task, config: CountingEnv(1, 4)) == 0
        return capsys.readouterr().out

    main()
    main("--evaluation", "3", "--episodes", "2")
    table = main("--episodes", "101")

    # Training evaluates len(eval_at()) times, from 0 on: the next index is the first it never used.
    assert asked == [(10, 0, len(run.config().schedule.eval_at()), 0), (2, 0, 3, 0), (101, 0, 1, 0)]
    assert precisions == ["bfloat16"] * 3  # as the run was trained, whatever this machine would choose
    for number in ("50.0", "5.0", "95.0"):  # mean and median, 5 % and 95 % of 0, 1, ..., 100
        assert f" {number} " in table


def test_each_task_of_an_agent_for_several_keeps_its_own_start_states(tmp_path, monkeypatch):
    other = tasks.Task(name="other", domain="cartpole", task="balance", action_repeat=8, action_size=1)
    monkeypatch.setitem(tasks.TASKS, "other", other)
    monkeypatch.setitem(tasks.GROUPS, "pair", ("cartpole_swingup", "other"))
    run, asked = trained_run(tmp_path / "seed_0", task="pair"), []
    still = Episode(np.zeros((2, 3, 64, 64), np.uint8), np.zeros((2, 1), np.float32), np.zeros(2, np.float32))

    def noted(agent, envs, *, seed, evaluation, task_index):
        asked.append(task_index)
        return [(still, 0) for _ in envs]

    monkeypatch.setattr(evaluate, "evaluate", noted)
    for options in ([], ["--task", "other"]):
        words = [str(run.path), "--device", "cpu", "--episodes", "1", *options]
        assert evaluate.main(words, make_env=lambda task, config: CountingEnv(1, 4)) == 0

    assert asked == [0, 1, 1]  # one task alone is evaluated as it is among all

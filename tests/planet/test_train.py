import dataclasses
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from planet import cem, checkpoint, processor, streams, tasks
from planet import train as planet_train
from planet.agent import Agent
from planet.config import Config
from planet.counting_env import CountingEnv
from planet.episode_store import EpisodeStore
from planet.lease import this_process
from planet.presets import resolve
from planet.replay import Replay
from planet.run_dir import RunDir, read_jsonl
from planet.stop_signal import EXIT_HELD
from planet.train import train

KILLED_RUN = Path(__file__).parent / "killed_run.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}


def tiny(**changes) -> Config:
    return resolve(
        "cartpole_swingup",
        preset="smoke",
        changes={
            "schedule.train_episodes": 3,
            "schedule.eval_points": 1,
            "runtime.checkpoint_seconds": 0,
            "schedule.open_loop_episodes": 0,
            "runtime.device": "cpu",
            **changes,
        },
    )


def create(path: Path, config: Config) -> RunDir:
    return RunDir.create(path, config, preset="smoke", variant="base")


def start(path: Path, *signal_at: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(KILLED_RUN)] if signal_at else [sys.executable, "-m", "planet.train"]
    return subprocess.run(
        [*command, str(path), *signal_at], capture_output=True, text=True, env=ENVIRONMENT, timeout=600
    )


def without_times(path: Path) -> list[dict]:
    rows, broken = read_jsonl(path)
    assert broken == 0
    return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]


def assert_same_run(one: RunDir, other: RunDir) -> None:
    assert without_times(one.episodes_jsonl) == without_times(other.episodes_jsonl)
    assert without_times(one.metrics_jsonl) == without_times(other.metrics_jsonl)
    a, b = checkpoint.load(one.checkpoints), checkpoint.load(other.checkpoints)
    assert a is not None and b is not None
    assert a["learner"]["world_model"].keys() == b["learner"]["world_model"].keys()
    for name in a["learner"]["world_model"]:
        assert torch.equal(a["learner"]["world_model"][name], b["learner"]["world_model"][name]), name
    for x, y in zip(EpisodeStore(one.episodes).load(), EpisodeStore(other.episodes).load(), strict=True):
        assert (x.obs == y.obs).all() and (x.action == y.action).all() and (x.reward == y.reward).all()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> RunDir:
    run = create(tmp_path_factory.mktemp("unbroken") / "seed_0", tiny())
    done = start(run.path)
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.slow
def test_a_run_writes_what_the_run_directory_promises(unbroken):
    config = unbroken.config()
    episodes, metrics = without_times(unbroken.episodes_jsonl), without_times(unbroken.metrics_jsonl)
    status = unbroken.status()

    assert [row["kind"] for row in episodes] == ["seed"] * 2 + ["train"] * 2 + ["eval"] * 2 + ["train"] + ["eval"] * 2
    assert [row["episode"] for row in episodes if row["kind"] != "eval"] == [1, 2, 3, 4, 5]
    assert [row["episode"] for row in episodes if row["kind"] == "eval"] == [4, 4, 5, 5]
    assert [row["updates"] for row in metrics] == [3, 6, 9]
    assert [row["env_steps"] for row in metrics] == [240, 320, 400]
    assert {row["length"] for row in episodes} == {10}
    assert len({row["env_seed"] for row in episodes}) == len(episodes)  # start states never repeat
    assert status is not None and status["state"] == "done" and status["evals_done"] == 2
    assert {"image", "reward", "kl", "kl_raw", "loss", "grad_norm"} <= set(metrics[0])
    assert sorted(p.name for p in unbroken.strips.iterdir()) == ["reconstruction_00004.png", "reconstruction_00005.png"]
    assert config.task == "cartpole_swingup"


@pytest.mark.slow
def test_a_run_says_what_drew_its_pictures(unbroken):
    (first,) = unbroken.run()["starts"]

    backend, name = first["renderer"].split(", ", 1)
    assert backend == unbroken.resolved()["gl"] and name
    assert f"pictures by {first['renderer']}" in unbroken.log.read_text()


def test_a_finished_run_started_again_is_left_alone(unbroken):
    before = {p: p.stat().st_mtime_ns for p in unbroken.path.rglob("*") if p.is_file()}

    again = start(unbroken.path)

    assert again.returncode == 0 and "done" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in unbroken.path.rglob("*") if p.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    [
        ("Learner.update", "5"),  # in the second cycle's training
        ("Agent.act", "4"),  # collecting the first planned episode
        ("Agent.act", "25"),  # evaluating
        ("EpisodeStore.append", "2"),  # among the seed episodes, before any checkpoint
        ("Recorder.append_episode", "4"),  # the episode is stored, its row is not
        ("Recorder.append_metrics", "2"),
        ("checkpoint._replace", "2"),  # the new checkpoint is complete but the old one is still in place
        ("checkpoint._replace", "3"),  # between the two renames: only previous.pt is there
    ],
    ids=lambda p: "-".join(p),
)
def test_a_killed_run_ends_like_the_unbroken_one(unbroken, tmp_path, point):
    run = create(tmp_path / "seed_0", tiny())

    killed = start(run.path, *point, "SIGKILL")
    assert killed.returncode == -9, killed.stderr
    resumed = start(run.path)

    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(run, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("point", [("Learner.update", "5"), ("Agent.act", "4"), ("Agent.act", "25")], ids="-".join)
def test_a_run_asked_to_stop_saves_and_goes_on_equal(unbroken, tmp_path, point):
    run = create(tmp_path / "seed_0", tiny(**{"runtime.checkpoint_seconds": 1e6}))

    stopped = start(run.path, *point, "SIGUSR2")
    assert stopped.returncode == 75, stopped.stderr
    status = run.status()
    assert status is not None and status["state"] == "stopped"
    resumed = start(run.path)

    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(run, unbroken)


@pytest.mark.slow
def test_evaluating_more_does_not_change_training(unbroken, tmp_path):
    run = create(tmp_path / "seed_0", tiny(**{"schedule.eval_points": 3, "schedule.eval_episodes": 3}))
    assert start(run.path).returncode == 0

    def training(r: RunDir) -> list[dict]:
        return [row for row in without_times(r.episodes_jsonl) if row["kind"] != "eval"]

    assert training(run) == training(unbroken)
    assert without_times(run.metrics_jsonl) == without_times(unbroken.metrics_jsonl)


@pytest.mark.slow
def test_a_diverging_run_stops_with_the_term_the_update_and_the_last_good_checkpoint(tmp_path):
    run = create(tmp_path / "seed_0", tiny(**{"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 1e30}))

    failed = start(run.path)

    status = run.status()
    assert failed.returncode == 1
    assert status is not None and status["state"] == "failed"
    assert str(run.path) in status["error"] and "update" in status["error"] and "became" in status["error"]
    content = checkpoint.load(run.checkpoints)
    if content is not None:
        assert all(torch.isfinite(value).all() for value in content["learner"]["world_model"].values())


@pytest.mark.parametrize("where", ["score", "plan"])
def test_a_plan_that_is_not_finite_stops_the_run_with_the_update_and_the_directory(tmp_path, monkeypatch, where):
    run = create(tmp_path / "seed_0", tiny(**{"schedule.updates": 4}))
    plan, nan = cem.plan, float("nan")

    def broken(score, **keywords):
        if where == "score":
            return plan(lambda candidates: score(candidates) * nan, **keywords)
        found = plan(score, **keywords)
        return dataclasses.replace(found, mean=found.mean * nan)

    monkeypatch.setattr(cem, "plan", broken)

    assert train(run.path, make_env=lambda task, config: CountingEnv(action_size=1, agent_steps=10)) == 1
    error = (run.status() or {})["error"]
    assert {"score": "score gave NaN", "plan": "the planner returned the action"}[where] in error
    assert f"after update 4 of {run.path}" in error and "the last good checkpoint is kept" in error


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_a_run_begun_in_bfloat16_warns_where_that_is_emulated(tmp_path, monkeypatch, has_bfloat16):
    """As a run that is continued on an older processor would be: precision stays what it was."""
    run = create(tmp_path / "seed_0", tiny(**{"schedule.updates": 1, "schedule.train_episodes": 1}))
    run.record_start(precision="bfloat16", threads=1)
    monkeypatch.setattr(processor, "has_bfloat16", lambda: has_bfloat16)

    assert train(run.path, make_env=lambda task, config: CountingEnv(action_size=1, agent_steps=10)) == 0
    warned = "bfloat16, which is only emulated here" in run.log.read_text()
    assert warned is not has_bfloat16


def test_a_warning_is_a_line_of_the_log(tmp_path, monkeypatch):
    """As of kernels that do not run here, or a replay that finds no room on the GPU."""
    run = create(tmp_path / "seed_0", tiny(**{"schedule.updates": 1, "schedule.train_episodes": 1}))
    monkeypatch.setattr(planet_train.hardware, "use", lambda device: warnings.warn("the slow way", stacklevel=1))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert train(run.path, make_env=lambda task, config: CountingEnv(action_size=1, agent_steps=10)) == 0
    assert " warning: the slow way\n" in run.log.read_text()


@pytest.mark.parametrize("then", ["go on", "fail"])
def test_a_process_that_lost_its_run_in_an_episode_writes_nothing_more(tmp_path, monkeypatch, capsys, then):
    run = create(tmp_path / "seed_0", tiny())
    collect, calls, left = planet_train.run_episodes, 0, {}

    def frozen(*arguments, **keywords):
        nonlocal calls
        calls += 1
        episodes = collect(*arguments, **keywords)
        if calls == 2:  # while this process was frozen, another took the run over and wrote on
            (run.lease / "2.json").write_text(json.dumps(dataclasses.asdict(this_process())))
            run.status_json.write_text("of the new owner")
            with (run.episodes / "000000.episodes").open("ab") as file:
                file.write(b"of the new owner")
            left.update({p: p.read_bytes() for p in (run.status_json, run.episodes_jsonl, *run.episodes.iterdir())})
            if then == "fail":
                raise RuntimeError("GL context lost")
        return episodes

    monkeypatch.setattr(planet_train, "run_episodes", frozen)

    assert train(run.path, make_env=lambda task, config: CountingEnv(action_size=1, agent_steps=10)) == EXIT_HELD
    assert calls == 2 and {path: path.read_bytes() for path in left} == left
    assert "was taken over by pid" in capsys.readouterr().err


@pytest.mark.parametrize("dynamics", ["latent", "simulator"])
def test_a_run_whose_checkpoints_are_gone_is_refused_and_stays_as_it_is(tmp_path, capsys, dynamics):
    run = create(tmp_path / "seed_0", tiny(**{"planner.dynamics": dynamics}))
    run.write_status({"state": "stopped", "episode": 3, "episodes_total": 5})
    run.episodes.mkdir()
    for path in (run.episodes_jsonl, run.metrics_jsonl, run.episodes / "000000.episodes"):
        path.write_text('{"wall_seconds": 1.0}\n')
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}

    assert train(run.path) == 1
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert "is at episode 3 of 5, but has no checkpoint to go on from" in capsys.readouterr().err


def test_an_exported_agent_is_not_trained_over(tmp_path, capsys):
    run = create(tmp_path / "seed_0", tiny())
    run.weights.write_bytes(b"of a trained agent")
    before = sorted(run.path.iterdir())

    assert train(run.path) == 1
    assert f"{run.path} is an exported agent (weights.pt, no checkpoint)" in capsys.readouterr().err
    assert sorted(run.path.iterdir()) == before


def test_a_run_killed_before_its_first_checkpoint_says_that_it_begins_anew(tmp_path):
    run = create(tmp_path / "seed_0", tiny(**{"schedule.updates": 1, "schedule.train_episodes": 1}))
    said = "begun anew at the first episode: no checkpoint had been written yet (runtime.checkpoint_seconds is 0)"

    class Killed(BaseException):
        pass

    def kill(task, config):
        raise Killed

    with pytest.raises(Killed):
        train(run.path, make_env=kill)
    assert said not in run.log.read_text()
    assert train(run.path, make_env=lambda task, config: CountingEnv(action_size=1, agent_steps=10)) == 0
    assert run.log.read_text().count(said) == 1


@pytest.mark.parametrize("dynamics", ["latent", "simulator"])
def test_a_config_changed_by_hand_is_refused(tmp_path, capsys, dynamics):
    """It would train as the run that run.json and the folder's name say it is."""
    run = create(tmp_path / "run", tiny(**{"planner.dynamics": dynamics}))
    text = run.config_toml.read_text()
    run.config_toml.write_text(text.replace("learning_rate = 0.001", "learning_rate = 0.5"))
    assert run.config_toml.read_text() != text

    assert planet_train.main([str(run.path)]) == 2

    said = capsys.readouterr().err
    assert f"{run.config_toml} is not what this run was made with" in said and "launch.py --set KEY=VALUE" in said
    assert not run.status_json.exists()
    # What is no part of a run's identity may be changed.
    run.config_toml.write_text(text.replace("checkpoint_seconds = 0.0", "checkpoint_seconds = 7.0"))
    run.check_unchanged(run.config())


def test_a_file_system_that_cannot_be_written_is_no_traceback(tmp_path, monkeypatch, capsys):
    run = create(tmp_path / "run", tiny())

    def refuse(path):
        raise OSError(30, "Read-only file system", str(path / "lease"))

    monkeypatch.setattr(planet_train.Lease, "acquire", refuse)
    assert planet_train.main([str(run.path)]) == 2

    assert "planet.train: [Errno 30] Read-only file system" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    refused = start(tmp_path)

    assert refused.returncode == 2
    assert "no run directory" in refused.stderr and "Traceback" not in refused.stderr


def test_one_agent_for_several_tasks_evaluates_in_one_at_a_time(tmp_path, monkeypatch):
    """Ten environments of each of six would be some nine gigabytes of processes."""
    monkeypatch.setitem(tasks.GROUPS, "pair", ("cartpole_swingup", "cup_catch"))
    changes = {"schedule.updates": 1, "schedule.train_episodes": 2, "schedule.eval_points": 2}
    config = resolve("pair", preset="smoke", changes={**changes, "schedule.open_loop_episodes": 0})
    living, most = 0, 0

    class Counted(CountingEnv):
        def __init__(self):
            nonlocal living, most
            super().__init__(action_size=1, agent_steps=10)
            living += 1
            most = max(most, living)

        def close(self):
            nonlocal living
            living -= 1

    run = create(tmp_path / "seed_0", config)
    assert train(run.path, make_env=lambda task, config: Counted()) == 0

    assert (living, most) == (0, 2 + config.schedule.eval_episodes)
    assert len([row for row in without_times(run.episodes_jsonl) if row["kind"] == "eval"]) == 2 * 2 * 2


@pytest.mark.slow
def test_one_agent_for_all_tasks(tmp_path):
    config = resolve("dmc6", preset="smoke", changes={"schedule.train_episodes": 1, "schedule.seed_episodes": 1})
    run = create(tmp_path / "seed_0", config)
    done = start(run.path)

    assert done.returncode == 0, done.stderr
    episodes, metrics = without_times(run.episodes_jsonl), without_times(run.metrics_jsonl)
    assert [row["updates"] for row in metrics] == [18]  # 6C
    assert len({row["task"] for row in episodes if row["kind"] == "train"}) == 6
    assert len([row for row in episodes if row["kind"] == "eval"]) == 12
    assert json.loads(run.run_json.read_text())["task"] == "dmc6"


class Scored(CountingEnv):
    """Whose every step earns what the start seed says, so that an episode's return can be computed from its row."""

    def __init__(self) -> None:
        super().__init__(action_size=1, agent_steps=10)

    def step(self, action):
        return dataclasses.replace(super().step(action), reward=float(self._seed % 100))


def test_every_random_number_of_a_run_has_a_key_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setitem(tasks.GROUPS, "pair", ("cartpole_swingup", "cup_catch"))
    changes = {"schedule.train_episodes": 2, "schedule.updates": 1, "schedule.eval_points": 1}
    changes |= {"schedule.open_loop_episodes": 0, "runtime.device": "cpu"}
    run = create(tmp_path / "seed_7", resolve("pair", preset="smoke", changes=changes, seed=7))
    keys, sequence = [], streams.sequence

    def noted(seed, stream, *index):
        keys.append((seed, stream, *index))
        return sequence(seed, stream, *index)

    monkeypatch.setattr(streams, "sequence", noted)

    assert train(run.path, make_env=lambda task, config: Scored()) == 0

    # Two tasks: two seed and two planned episodes of each, four updates, two evaluations of two episodes of each.
    expected = [(7, "init"), (7, "predict", 0), (7, "predict", 1)]
    expected += [(7, stream, update) for stream in ("replay", "train") for update in range(4)]
    expected += [(7, stream, episode, task) for stream in ("env", "explore") for episode in range(4) for task in (0, 1)]
    expected += [(7, stream, evaluation, task, place) for stream in ("eval", "eval_env")
                 for evaluation in (0, 1) for task in (0, 1) for place in (0, 1)]  # fmt: skip
    assert sorted(keys) == sorted(expected)
    # What the rows say follows from their start seeds: the return, its means, the last evaluation of both tasks.
    episodes, metrics, status = without_times(run.episodes_jsonl), without_times(run.metrics_jsonl), run.status() or {}
    assert all(row["return"] == 10 * (row["env_seed"] % 100) for row in episodes)

    def mean(kind, episode):
        returns = [row["return"] for row in episodes if (row["kind"], row["episode"]) == (kind, episode)]
        assert len(returns) == {"train": 2, "eval": 4}[kind]
        return pytest.approx(sum(returns) / len(returns))

    assert [row["train_return"] for row in metrics] == [mean("train", 3), mean("train", 4)]
    assert status["last_return"] == mean("train", 4) and status["last_eval"] == mean("eval", 4)


def test_a_cycle_learns_from_all_episodes_there_are_then_explores_then_evaluates_without_noise(tmp_path, monkeypatch):
    run = create(tmp_path / "seed_0", tiny(**{"schedule.train_episodes": 2, "schedule.action_noise": 0.2}))
    update, sample, act = planet_train.Learner.update, Replay.sample, Agent.act
    numbers, held, noises = iter(range(100)), [], []

    def noted_update(self, batch, generator):
        number = float(next(numbers))
        return {name: torch.full_like(term, number) for name, term in update(self, batch, generator).items()}

    def noted_sample(self, *arguments):
        held.append(self.num_episodes)
        return sample(self, *arguments)

    def noted_act(self, state, obs, *, action_noise):
        noises.append((len(obs), action_noise))
        return act(self, state, obs, action_noise=action_noise)

    monkeypatch.setattr(planet_train.Learner, "update", noted_update)
    monkeypatch.setattr(Replay, "sample", noted_sample)
    monkeypatch.setattr(Agent, "act", noted_act)

    assert train(run.path, make_env=lambda task, config: Scored()) == 0

    assert held == [2, 2, 2, 3, 3, 3]  # the newest episode is there from the first update of its cycle on
    assert noises == ([(1, 0.2)] * 10 + [(2, 0.0)] * 10) * 2
    metrics = without_times(run.metrics_jsonl)
    assert [row["loss"] for row in metrics] == [1.0, 4.0]  # means of updates 0, 1, 2 and 3, 4, 5
    assert [(row["episode"], row["updates"], row["agent_steps"]) for row in metrics] == [(3, 3, 30), (4, 6, 40)]
    assert [row["env_steps"] for row in metrics] == [240, 320]  # cartpole's action repeat is 8
    kinds = [(row["kind"], row["updates"]) for row in without_times(run.episodes_jsonl)]
    assert kinds == [("seed", 0)] * 2 + [("train", 3)] + [("eval", 3)] * 2 + [("train", 6)] + [("eval", 6)] * 2


def test_a_clock_goes_on_from_what_earlier_starts_took():
    clock = planet_train.Clock(1000.0, 500.0)

    assert 1000 <= clock.wall() < 1010 and 500 <= clock.cpu() < 510


def test_the_time_left_follows_the_pace_so_far():
    config = tiny(**{"schedule.seed_episodes": 5, "schedule.train_episodes": 20})
    trainer: Any = SimpleNamespace(
        config=config, progress=planet_train.Progress(episodes=15), clock=SimpleNamespace(wall=lambda: 105.0)
    )

    # Ten episodes trained, five random ones at a tenth of the time each: 10 s apiece, ten to go.
    assert planet_train.Trainer.eta(trainer) == pytest.approx(100.0)
    trainer.progress.episodes = 5
    assert planet_train.Trainer.eta(trainer) is None


def test_seconds_of_a_row_are_those_of_its_cycle(tmp_path, monkeypatch):
    run, calls = create(tmp_path / "seed_0", tiny(**{"schedule.train_episodes": 2})), iter(range(100))

    def update(self, batch, generator):
        if next(calls) < 3:  # the first cycle's
            time.sleep(0.3)
        return {"loss": torch.zeros(())}

    monkeypatch.setattr(planet_train.Learner, "update", update)

    assert train(run.path, make_env=lambda task, config: Scored()) == 0
    first, second = read_jsonl(run.metrics_jsonl)[0]
    assert first["train_seconds"] >= 0.9 and second["train_seconds"] < first["train_seconds"]


def test_a_term_that_is_not_finite_is_named_with_its_update(tmp_path, monkeypatch):
    run, calls = create(tmp_path / "seed_0", tiny()), iter(range(100))
    terms = {False: {"loss": torch.zeros(())}, True: {"loss": torch.tensor(float("nan"))}}
    monkeypatch.setattr(planet_train.Learner, "update", lambda self, batch, generator: terms[next(calls) == 4])

    assert train(run.path, make_env=lambda task, config: Scored()) == 1

    assert f"loss became nan at update 4 of {run.path}" in (run.status() or {})["error"]

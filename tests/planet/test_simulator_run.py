"""A true-simulator run is a run like any other: rows, status, and the same numbers however often it is interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from planet import cem, presets, simulator_run, streams, train
from planet.run_dir import RunDir, read_jsonl
from planet.simulator_run import SimulatorRun

SIMULATOR = {"planner.dynamics": "simulator"}


class Killed(BaseException):
    """What a SIGKILL leaves: nothing is written on the way out."""


def create(path: Path, task: str = "cup_catch", **changes: Any) -> RunDir:
    config = presets.resolve(task, preset="smoke", ablation=SIMULATOR, changes=changes)
    return RunDir.create(path, config, preset="smoke", variant="true_simulator")


def rows_of(run_dir: RunDir) -> list[dict[str, Any]]:
    """All rows without what a clock says."""
    found = read_jsonl(run_dir.episodes_jsonl)[0] + read_jsonl(run_dir.metrics_jsonl)[0]
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in found]


@pytest.mark.slow
def test_a_run_records_its_evaluation_episodes_and_says_done(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run_dir = create(tmp_path / "run", "cheetah_run")

    assert train.train(run_dir.path) == 0
    rows, broken = read_jsonl(run_dir.episodes_jsonl)
    status = run_dir.status()
    assert broken == 0 and status is not None
    assert [row["kind"] for row in rows] == ["eval", "eval"]
    assert [row["env_seed"] for row in rows] == [streams.integer(0, "eval_env", 0, 0, k) for k in range(2)]
    assert all(row["length"] == 20 and row["return"] > 0 for row in rows)
    assert (status["state"], status["evals_done"], status["evals_total"]) == ("done", 2, 2)
    assert (status["env_steps"], status["agent_steps"]) == (160, 40)
    assert status["last_eval"] == pytest.approx(sum(row["return"] for row in rows) / 2)

    capsys.readouterr()
    assert train.train(run_dir.path) == 0
    assert "done" in capsys.readouterr().out and read_jsonl(run_dir.episodes_jsonl)[0] == rows


@pytest.mark.slow
def test_it_does_better_than_no_planning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty candidates and two iterations suffice to run forwards, for a while."""
    create(tmp_path / "planned", "cheetah_run")
    train.train(tmp_path / "planned")
    plan = cem.plan
    monkeypatch.setattr(simulator_run.cem, "plan", lambda score, **kw: plan(lambda a: score(a) * 0, **kw))
    create(tmp_path / "blind", "cheetah_run")
    train.train(tmp_path / "blind")

    planned, blind = (rows_of(RunDir.open(tmp_path / name)) for name in ("planned", "blind"))
    for a, b in zip(planned[:2], blind[:2], strict=True):
        assert a["return"] > b["return"] + 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_an_interrupted_run_ends_with_the_rows_of_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Interrupted at decisions 7 and 15 of the first episode and 5 of the second; warm starts carry a plan."""
    settings = {"planner.warm_start": True, "runtime.checkpoint_seconds": 0.0}
    whole, broken = create(tmp_path / "whole", **settings), create(tmp_path / "broken", **settings)
    assert train.train(whole.path) == 0

    plan, calls, starts = SimulatorRun._plan, 0, 0

    def interrupted(self: SimulatorRun, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (7, 16, 28):
            if how == "kill":
                raise Killed
            self.stop.requested = "SIGUSR2"
        return plan(self, *arguments)

    monkeypatch.setattr(SimulatorRun, "_plan", interrupted)
    while True:
        starts += 1
        try:
            code = train.train(broken.path)
        except Killed:
            continue
        if code == 0:
            break
        assert code == 75
        status = broken.status()
        assert status is not None and status["state"] == "stopped"

    assert starts == 4
    assert rows_of(broken) == rows_of(whole)
    assert len(broken.run()["starts"]) == 4
    assert "begun anew" not in broken.log.read_text()


def test_it_refits_to_elites_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    means = []

    def noted(*arguments: Any, **keywords: Any) -> cem.Plan:
        means.append(plan(*arguments, **keywords).mean)
        raise Killed

    plan = cem.plan
    monkeypatch.setattr(simulator_run.cem, "plan", noted)
    for clipped in (True, False):
        run_dir = create(tmp_path / str(clipped), "cheetah_run", **{"planner.refit_clipped": clipped})
        with pytest.raises(Killed):
            train.train(run_dir.path)

    assert means[0].abs().max() <= 1 < means[1].abs().max()


def test_one_killed_before_its_first_checkpoint_says_that_it_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = create(tmp_path / "run")

    def killed(self: SimulatorRun, *arguments: Any) -> Any:
        raise Killed

    monkeypatch.setattr(SimulatorRun, "_plan", killed)
    for times in (0, 1):
        with pytest.raises(Killed):
            train.train(run_dir.path)
        assert run_dir.log.read_text().count("begun anew at the first episode") == times


def test_a_failure_is_told_in_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = create(tmp_path / "run")

    def broken(self: SimulatorRun, *arguments: Any) -> Any:
        raise RuntimeError("the simulator diverged")

    monkeypatch.setattr(SimulatorRun, "_plan", broken)
    assert train.train(run_dir.path) == 1
    status = run_dir.status()
    assert status is not None and status["state"] == "failed" and "diverged" in status["error"]

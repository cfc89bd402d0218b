"""What runs inside a Slurm job, without Slurm; the real thing is in test_slurm_cluster.py."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.executors import job, pool
from benchmarks.executors.job import Interrupted, Pack, RunsFailed
from planet.presets import resolve
from planet.run_dir import RunDir

FAKE = Path(__file__).parent / "fake_train.py"


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    original = pool.Pool.__init__

    def with_fake(self, *, slots, waiting):
        original(self, slots=slots, waiting=waiting, command=lambda path: [sys.executable, str(FAKE), str(path)])

    monkeypatch.setattr(job, "Pool", type("Pool", (pool.Pool,), {"__init__": with_fake}))


def make(tmp_path, name, behave=""):
    run = RunDir.create(tmp_path / name, resolve("cheetah_run", preset="smoke"), preset="smoke", variant="base")
    if behave:
        (run.path / "behave").write_text(behave)
    return run


def test_a_pack_runs_all_at_once_and_returns_how_each_ended(tmp_path):
    paths = [str(make(tmp_path, name).path) for name in "abc"]

    assert sorted(Pack()(*paths)) == [(path, "done") for path in paths]


def test_one_failure_fails_the_job_after_the_others_are_done(tmp_path):
    bad, good = make(tmp_path, "bad", "fail"), make(tmp_path, "good", "slow")
    with pytest.raises(RunsFailed, match=r"1 of 2 runs failed:\n.*bad: ValueError: loss became NaN"):
        Pack()(str(bad.path), str(good.path))

    assert (good.status() or {})["state"] == "done"


@pytest.mark.parametrize("file", ["run.json", "status.json"])
def test_a_damaged_run_does_not_keep_the_others_from_beginning(tmp_path, file):
    bad, good = make(tmp_path, "bad"), make(tmp_path, "good")
    (bad.path / file).write_text("{")
    with pytest.raises(RunsFailed, match=rf"1 of 2 runs failed:\n.*bad: .*{file}"):
        Pack()(str(bad.path), str(good.path))

    assert (good.status() or {})["state"] == "done"


def test_an_error_of_the_job_itself_lets_every_run_save_first(tmp_path, monkeypatch):
    runs = [make(tmp_path, name, "slow") for name in "ab"]

    def fail_once_both_run(self, seconds):
        if all((run.status() or {}).get("episode", 0) >= 1 for run in runs):
            raise MemoryError

    monkeypatch.setattr(pool.Pool, "wait", fail_once_both_run)
    with pytest.raises(MemoryError):
        Pack()(*(str(run.path) for run in runs))

    assert [(run.status() or {})["state"] for run in runs] == ["stopped", "stopped"]


def test_a_requeued_job_leaves_alone_what_failed_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    bad, good = make(tmp_path, "bad", "fail"), make(tmp_path, "good")
    with pytest.raises(RunsFailed):
        Pack()(str(bad.path))

    with pytest.raises(RunsFailed, match=r"1 of 2 runs failed:\n.*bad: ValueError: loss became NaN"):
        Pack()(str(bad.path), str(good.path))
    assert len(bad.run()["starts"]) == 1 and (good.status() or {})["state"] == "done"

    monkeypatch.setenv("SLURM_JOB_ID", "13")  # a retry
    (bad.path / "behave").unlink()
    assert Pack()(str(bad.path)) == [(str(bad.path), "done")]


def after(run, number):
    """Send this process a signal once a run has begun."""
    script = f"""
import json, os, sys, time
path = {str(run.status_json)!r}
while not os.path.exists(path) or json.load(open(path))["episode"] < 1:
    time.sleep(0.02)
os.kill({os.getpid()}, {int(number)})
"""
    return subprocess.Popen([sys.executable, "-c", script])


def test_the_user_signal_saves_all_and_is_then_handed_to_submitit(tmp_path):
    runs = [make(tmp_path, name, "slow") for name in "ab"]
    handed_on = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: handed_on.append([run.status() for run in runs]))
    try:
        sender = after(runs[0], signal.SIGUSR2)
        with pytest.raises(Interrupted):  # submitit's handler would not have returned
            Pack()(*(str(run.path) for run in runs))
        sender.wait()
    finally:
        signal.signal(signal.SIGUSR2, before)

    ((first, second),) = handed_on
    assert (first["state"], second["state"]) == ("stopped", "stopped")
    assert signal.getsignal(signal.SIGUSR2) == before


def test_a_termination_saves_all_and_requeues_nothing(tmp_path):
    run = make(tmp_path, "a", "slow")
    handed_on = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: handed_on.append(1))
    try:
        sender = after(run, signal.SIGTERM)
        with pytest.raises(Interrupted, match="1 of 1 runs were stopped; they are saved"):
            Pack()(str(run.path))
        sender.wait()
    finally:
        signal.signal(signal.SIGUSR2, before)

    assert not handed_on and (run.status() or {})["state"] == "stopped"


def test_a_requeued_job_gets_the_same_runs():
    again = Pack(mps=True, fruitless=2).checkpoint("/a", "/b")

    assert again.args == ("/a", "/b")
    assert again.function == Pack(mps=True, fruitless=2)


def test_a_job_that_gets_no_further_is_given_up_though_every_stop_saves(tmp_path):
    run = make(tmp_path, "a")
    run.write_status({"state": "stopped", "episode": 3, "updates": 200})
    run.checkpoints.mkdir()
    pack, before = Pack(), [job._progress(run.path)]
    for _ in range(job.MAX_FRUITLESS - 1):
        (run.checkpoints / "latest.pt").touch()
        pack._count_fruitless([run.path], before, job.FRUITLESS_SECONDS)
    pack._count_fruitless([run.path], before, job.FRUITLESS_SECONDS - 1)  # a job that was hardly there does not count
    with pytest.raises(RunsFailed, match="stopped 5 times by Slurm without getting any further"):
        pack._count_fruitless([run.path], before, job.FRUITLESS_SECONDS)
    status = run.status()
    assert status is not None and status["state"] == "failed" and "longer time limit" in status["error"]


def test_what_has_failed_keeps_its_error_when_the_job_is_given_up(tmp_path):
    bad, slow = make(tmp_path, "bad"), make(tmp_path, "slow")
    bad.write_status({"state": "failed", "error": "ValueError: loss became NaN"})
    slow.write_status({"state": "stopped"})
    runs = [bad.path, slow.path]
    with pytest.raises(RunsFailed):
        Pack(fruitless=job.MAX_FRUITLESS - 1)._count_fruitless(runs, [*map(job._progress, runs)], job.FRUITLESS_SECONDS)

    errors = [(run.status() or {})["error"] for run in (bad, slow)]
    assert errors[0] == "ValueError: loss became NaN" and "longer time limit" in errors[1]


@pytest.mark.parametrize("name", ["updates", "episode", "evals_done", "agent_steps"])
def test_any_progress_starts_the_count_again(tmp_path, name):
    run = make(tmp_path, "a")
    pack, before = Pack(fruitless=job.MAX_FRUITLESS - 1), [job._progress(run.path)]
    run.write_status({"state": "stopped", name: 1})
    pack._count_fruitless([run.path], before, job.FRUITLESS_SECONDS)

    assert pack.fruitless == 0


def test_a_pack_counts_from_where_it_began(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "FRUITLESS_SECONDS", 0.0)
    run = make(tmp_path, "a", "slow")
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    pack = Pack(fruitless=2)
    try:
        sender = after(run, signal.SIGUSR2)
        with pytest.raises(Interrupted):
            pack(str(run.path))
        sender.wait()
    finally:
        signal.signal(signal.SIGUSR2, before)

    assert (run.status() or {})["episode"] >= 1 and pack.fruitless == 0


def test_gpus_are_dealt_out_and_cores_shared(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    slots = job.job_slots(4, {"CUDA_MPS_PIPE_DIRECTORY": "/tmp/m"})

    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["2", "3", "2", "3"]
    assert {slot.environment["OMP_NUM_THREADS"] for slot in slots} == {"3"}
    assert {slot.environment["CUDA_MPS_PIPE_DIRECTORY"] for slot in slots} == {"/tmp/m"}


def test_mps_is_started_for_the_pack_and_ended_with_it(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-cuda-mps-control"
    program.write_text(
        f'#!/bin/sh\nexec >> {tmp_path}/log\n[ "$1" = -d ] && echo "start ${{CUDA_VISIBLE_DEVICES-all}}" || cat\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")  # counted anew by a daemon that gets it
    with job.mps(True) as environment:
        folder = Path(environment["CUDA_MPS_PIPE_DIRECTORY"])
        assert folder.is_dir()

    assert (tmp_path / "log").read_text() == "start all\nquit\n"
    assert not folder.exists()
    with job.mps(False) as environment:
        assert environment == {}

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from planet import lease
from planet.lease import Lease, LeaseHeld, LeaseLost, look, this_process

HOLD = """
import sys, time
from pathlib import Path
from planet.lease import Lease
held = Lease.acquire(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def never(job: str) -> bool | None:
    raise AssertionError(f"squeue was asked for {job}")


def plant(run, *, silent=0.0, **changes):
    """Leave a lease of some other process behind."""
    (run / "lease").mkdir(exist_ok=True)
    path = run / "lease" / "1.json"
    path.write_text(json.dumps(asdict(replace(this_process(), **changes))))
    os.utime(path, (time.time() - silent, time.time() - silent))


def hold(run):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    holder.stdout.close()
    return holder


def test_a_run_is_held_by_one_and_free_after_release(tmp_path):
    with Lease.acquire(tmp_path, never) as first:
        first.check()
        with pytest.raises(LeaseHeld, match=f"pid {os.getpid()} on .*its process runs on this host"):
            Lease.acquire(tmp_path, never)
    with Lease.acquire(tmp_path, never) as second:
        second.check()

    held = look(tmp_path)
    assert held is not None and held.owner.released
    assert [path.name for path in (tmp_path / "lease").iterdir()] == ["2.json"]


def test_a_killed_owner_on_this_host_is_replaced_at_once(tmp_path):
    holder = hold(tmp_path)
    with pytest.raises(LeaseHeld):
        Lease.acquire(tmp_path, never)
    holder.kill()
    holder.wait()

    with Lease.acquire(tmp_path, never) as mine:
        mine.check()


def test_a_pid_used_again_is_not_the_owner(tmp_path):
    plant(tmp_path, process_start=1)

    with Lease.acquire(tmp_path, never) as mine:
        mine.check()


def test_an_owner_on_another_host_is_left_alone_until_it_was_silent_for_ten_minutes(tmp_path):
    plant(tmp_path, host="elsewhere", boot="other", silent=590)
    with pytest.raises(LeaseHeld, match="was heard 59. s ago"):
        Lease.acquire(tmp_path, never)

    plant(tmp_path, host="elsewhere", boot="other", silent=601)
    with Lease.acquire(tmp_path, never) as mine:
        mine.check()


@pytest.mark.parametrize(
    ("known", "silent", "free"),
    [(True, 9999, False), (False, 0, True), (None, 0, False), (None, 601, True)],
)
def test_an_owner_in_another_slurm_job_is_as_alive_as_squeue_says(tmp_path, known, silent, free):
    plant(tmp_path, host="node7", boot="other", slurm_job="12_3", silent=silent)
    asked = []

    def knows(job):
        asked.append(job)
        return known

    if free:
        with Lease.acquire(tmp_path, knows) as mine:
            mine.check()
    else:
        with pytest.raises(LeaseHeld, match="Slurm still has its job 12_3" if known else "heard"):
            Lease.acquire(tmp_path, knows)
    assert asked == ["12_3"]


def test_a_dead_process_whose_slurm_job_lives_keeps_the_run_for_that_job(tmp_path, monkeypatch):
    # The job may be about to be requeued: it will come back for its run.
    plant(tmp_path, process_start=1, slurm_job="12")
    with pytest.raises(LeaseHeld, match="Slurm still has its job 12"):
        Lease.acquire(tmp_path, lambda job: True)

    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with Lease.acquire(tmp_path, never) as mine:
        mine.check()


def test_a_dead_process_of_the_allocation_we_are_in_is_gone(tmp_path, monkeypatch):
    # Started by hand inside `salloc`: the job lives on, but it will not come back for the run.
    plant(tmp_path, process_start=1, slurm_job="77")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    held = look(tmp_path)

    assert held is not None and held.why_alive(never) is None


def test_the_same_slurm_job_restarted_takes_its_run_back_at_once(tmp_path, monkeypatch):
    plant(tmp_path, host="node7", boot="other", slurm_job="12_3", slurm_restarts=1)
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(LeaseHeld):  # the same start of the job, on a node we cannot see into
        Lease.acquire(tmp_path, lambda job: True)

    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with Lease.acquire(tmp_path, never) as mine:
        assert mine.owner.slurm_job == "12_3"


def test_an_owner_that_was_taken_over_finds_out_and_cannot_release_the_other(tmp_path):
    frozen = Lease.acquire(tmp_path, never)
    path = tmp_path / "lease" / "1.json"
    owner = json.loads(path.read_text())
    path.write_text(json.dumps({**owner, "host": "elsewhere", "boot": "other"}))
    os.utime(path, (0, 0))

    with Lease.acquire(tmp_path, never) as taker:
        with pytest.raises(LeaseLost, match=f"taken over by pid {os.getpid()}"):
            frozen.check()
        frozen.release()
        taker.check()
        held = look(tmp_path)

        assert held is not None and not held.owner.released


def test_a_recorder_with_a_lost_lease_writes_no_row(tmp_path):
    from planet.presets import resolve
    from planet.run_dir import Recorder, RunDir

    run = RunDir.create(tmp_path / "r", resolve("cheetah_run", preset="smoke"), preset="smoke", variant="base")
    held = Lease.acquire(run.path, never)
    with Recorder(run, held) as recorder:
        recorder.append_metrics({"updates": 1, "env_steps": 1, "wall_seconds": 1.0})
        (run.lease / "2.json").write_bytes((run.lease / "1.json").read_bytes())
        with pytest.raises(LeaseLost):
            recorder.append_metrics({"updates": 2, "env_steps": 2, "wall_seconds": 2.0})

    assert run.metrics_jsonl.read_text().count("\n") == 1
    held.release()


def test_the_heartbeat_moves_and_stops_with_its_process(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    with Lease.acquire(tmp_path, never):
        os.utime(tmp_path / "lease" / "1.json", (0, 0))
        deadline = time.monotonic() + 5
        while (held := look(tmp_path)) and held.silent_seconds > 60 and time.monotonic() < deadline:
            time.sleep(0.02)

    assert held is not None and held.silent_seconds < 60


RACE = """
import sys, time
from pathlib import Path
from planet.lease import Lease, LeaseHeld
run, start = Path(sys.argv[1]), float(sys.argv[2])
time.sleep(max(0, start - time.time()))
try:
    Lease.acquire(run)
except LeaseHeld:
    print("held")
else:
    print("mine", flush=True)
    time.sleep(2)
"""


@pytest.mark.slow
def test_of_many_takers_of_a_dead_owners_run_exactly_one_wins(tmp_path):
    plant(tmp_path, process_start=1)
    start = str(time.time() + 1.5)
    takers = [
        subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path), start], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    answers = [taker.communicate(timeout=60)[0].strip() for taker in takers]

    assert sorted(answers) == ["held"] * 5 + ["mine"]


def test_a_taker_whose_look_was_old_gives_way(tmp_path, monkeypatch):
    # It judged owner 1 dead and slept; meanwhile 2 came and went and 3 runs, and the name 2.json is free again.
    plant(tmp_path, process_start=1)
    stale = look(tmp_path)
    (tmp_path / "lease" / "3.json").write_text(json.dumps(asdict(this_process())))
    (tmp_path / "lease" / "1.json").unlink()
    monkeypatch.setattr(lease, "look", lambda run: stale)

    with pytest.raises(LeaseHeld, match="taken by another process"):
        Lease.acquire(tmp_path, never)
    assert [path.name for path in (tmp_path / "lease").iterdir()] == ["3.json"]


def test_a_frozen_owner_on_this_host_still_counts_as_alive(tmp_path):
    holder = hold(tmp_path)
    holder.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(LeaseHeld):
            Lease.acquire(tmp_path, never)
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("echo PENDING", True),
        ("exit 0", False),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", None),
    ],
)
def test_squeue_is_understood(tmp_path, monkeypatch, script, answer):
    program = tmp_path / "squeue"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    assert lease.squeue_knows("12_3") is answer


def test_without_squeue_nothing_is_known(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert lease.squeue_knows("12") is None


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
def test_a_lease_that_says_nothing_is_named_with_what_to_do(tmp_path, content):
    (tmp_path / "lease").mkdir()
    path = tmp_path / "lease" / "4.json"
    path.write_text(content)

    for use in (look, Lease.acquire):
        with pytest.raises(ValueError, match=r"lease/4\.json does not say who owns the run .* remove this file"):
            use(tmp_path)

    path.unlink()
    Lease.acquire(tmp_path).release()

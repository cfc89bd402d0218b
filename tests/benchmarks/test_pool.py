import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest

from benchmarks.executors import local, pool
from benchmarks.executors.pool import Pool, Slot
from planet.lease import Lease, look
from planet.presets import resolve
from planet.run_dir import RunDir

FAKE = Path(__file__).parent / "fake_train.py"


def command(path):
    return [sys.executable, str(FAKE), str(path)]


def make(tmp_path, name, behave=""):
    run = RunDir.create(tmp_path / name, resolve("cheetah_run", preset="smoke"), preset="smoke", variant="base")
    if behave:
        (run.path / "behave").write_text(behave)
    return run


def run_all(paths, slots=2, act=lambda p: None):
    p = Pool(
        slots=[Slot(str(i), {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": f"gpu{i}"}) for i in range(slots)],
        command=command,
        waiting=deque(paths),
    )
    deadline = time.monotonic() + 60
    while True:
        p.step()
        assert len(p.workers) <= slots
        if p.finished:
            return {result.path.name: result for result in p.ended}
        assert time.monotonic() < deadline
        act(p)
        p.wait(0.05)


def test_all_runs_end_done_and_share_the_slots(tmp_path):
    runs = [make(tmp_path, f"r{i}") for i in range(5)]
    ended = run_all([run.path for run in runs])

    assert {result.outcome for result in ended.values()} == {"done"} and len(ended) == 5
    assert {pool.last_line(run.output) for run in runs} == {
        "from 0, threads 1, gpu gpu0", "from 0, threads 1, gpu gpu1"
    }  # fmt: skip


def test_a_failure_stays_with_its_run_and_keeps_its_words(tmp_path):
    good, bad, worse = make(tmp_path, "good"), make(tmp_path, "bad", "fail"), make(tmp_path, "worse", "no_import")
    ended = run_all([bad.path, worse.path, good.path])

    assert ended["good"].outcome == "done"
    assert (ended["bad"].outcome, ended["bad"].message) == ("failed", "ValueError: loss became NaN")
    assert (ended["worse"].outcome, ended["worse"].message) == ("failed", "ImportError: no module named dm_control")
    status = worse.status()
    assert status is not None and status["state"] == "failed"
    assert status["error"] == "ImportError: no module named dm_control" and "Traceback" in status["traceback"]


def test_a_failed_run_whose_process_aborts_at_its_exit_is_not_started_again(tmp_path):
    run = make(tmp_path, "r", "fail_and_abort")
    ended = run_all([run.path])

    assert (ended["r"].outcome, ended["r"].message) == ("failed", "ValueError: loss became NaN")
    assert run.output.read_text().count("from 0") == 1


def test_a_run_whose_folder_is_gone_before_its_turn_fails_alone(tmp_path):
    runs = [make(tmp_path, f"r{i}") for i in range(4)]
    shutil.rmtree(runs[1].path)
    ended = run_all([run.path for run in runs], slots=1)

    assert [ended[f"r{i}"].outcome for i in range(4)] == ["done", "failed", "done", "done"]
    assert f"cannot be begun: [Errno 2] No such file or directory: '{runs[1].output}'" in ended["r1"].message


def test_a_run_whose_folder_goes_while_it_is_at_work_fails_alone(tmp_path):
    gone, good = make(tmp_path, "gone", "slow"), make(tmp_path, "good", "slow")

    def remove(p):
        if (gone.status() or {}).get("episode") == 1:
            shutil.rmtree(gone.path)

    ended = run_all([gone.path, good.path], act=remove)

    assert ended["gone"].outcome == "failed" and str(gone.path) in ended["gone"].message
    assert ended["good"].outcome == "done"


def test_a_damaged_status_fails_its_run_alone(tmp_path):
    bad, good = make(tmp_path, "bad", "no_import"), make(tmp_path, "good")
    bad.status_json.write_text("{")
    ended = run_all([bad.path, good.path])

    assert ended["bad"].outcome == "failed" and f"{bad.status_json} is damaged" in ended["bad"].message
    assert ended["good"].outcome == "done"


def test_an_error_of_the_launcher_itself_lets_every_run_save_first(tmp_path, monkeypatch):
    runs = [make(tmp_path, f"r{i}", "slow") for i in range(3)]

    def fail_once_both_run(display):
        if all((run.status() or {}).get("episode", 0) >= 1 for run in runs[:2]):
            raise OSError("no space left")

    monkeypatch.setattr(local._Display, "refresh", fail_once_both_run)
    with pytest.raises(OSError, match="no space left"):
        local.execute([run.path for run in runs], [Slot("0", {}), Slot("1", {})], command=command)

    assert [(run.status() or {}).get("state") for run in runs] == ["stopped", "stopped", None]


def test_a_worker_killed_once_is_started_again_and_resumes(tmp_path):
    run = make(tmp_path, "r", "die")
    ended = run_all([run.path])

    assert ended["r"].outcome == "done"
    assert [line.split(",")[0] for line in run.output.read_text().splitlines()] == ["from 0", "from 2"]


def test_a_worker_that_dies_often_but_gets_on_is_never_given_up(tmp_path):
    run = make(tmp_path, "r", "die_each_time")
    ended = run_all([run.path])

    assert ended["r"].outcome == "done"
    assert len(run.output.read_text().splitlines()) == 5 > pool.MAX_DEATHS


def test_a_worker_that_only_dies_is_given_up(tmp_path):
    run = make(tmp_path, "r", "always_die")
    ended = run_all([run.path])

    assert ended["r"].outcome == "failed"
    assert ended["r"].message == "killed by SIGKILL 3 times without a new checkpoint (out of memory?)"
    assert len(run.output.read_text().splitlines()) == 3
    status = run.status()
    assert status is not None and status["error"] == ended["r"].message and status["episode"] == 2


def test_a_run_given_up_is_free_though_its_slurm_job_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    run = make(tmp_path, "dies", "always_die")
    ended = run_all([run.path])
    monkeypatch.delenv("SLURM_JOB_ID")  # someone looks from outside
    held = look(run.path)

    assert ended["dies"].outcome == "failed" and held is not None and held.owner.slurm_job == "12"
    assert held.why_alive(lambda job: True) is None


def test_stopping_saves_what_runs_and_begins_nothing_more(tmp_path):
    runs = [make(tmp_path, f"r{i}", "slow") for i in range(4)]

    def stop_once_both_run(p):
        if all((run.status() or {}).get("episode", 0) >= 1 for run in runs[:2]):
            p.stop()

    ended = run_all([run.path for run in runs], act=stop_once_both_run)

    assert {name: result.outcome for name, result in ended.items()} == {"r0": "stopped", "r1": "stopped"}
    assert [(run.status() or {}).get("state") for run in runs] == ["stopped", "stopped", None, None]
    assert all(int((run.checkpoints / "latest.pt").read_text()) >= 1 for run in runs[:2])


def test_killing_ends_a_stuck_run_at_once(tmp_path):
    run = make(tmp_path, "r", "stuck")
    began = time.monotonic()

    def kill_once_it_runs(p):
        if run.status() is not None:
            p.stop()
            p.kill()

    ended = run_all([run.path], act=kill_once_it_runs)

    assert ended["r"].outcome == "stopped" and "SIGKILL" in ended["r"].message
    assert time.monotonic() - began < 20


def test_a_run_that_another_process_holds_is_left_alone(tmp_path):
    run = make(tmp_path, "r")
    with Lease.acquire(run.path):
        ended = run_all([run.path])

    assert ended["r"].outcome == "held" and "its process runs on this host" in ended["r"].message
    assert run.status() is None


def test_a_run_without_its_checkpoints_is_refused_and_stays_as_it_is(tmp_path):
    run = make(tmp_path, "copied")
    run.write_status({"state": "stopped", "episode": 3, "episodes_total": 5})
    before = run.status()
    refuse = [sys.executable, "-c", "raise SystemExit(1)"]
    p = Pool(slots=[Slot("0", {})], command=lambda path: refuse, waiting=deque([run.path]))
    while not p.finished:
        p.step()
        p.wait(0.05)

    assert [(ended.outcome, ended.message) for ended in p.ended] == [("failed", run.lost_checkpoint())]
    assert run.status() == before


def test_a_worker_stopped_by_hand_is_not_started_again(tmp_path):
    run = make(tmp_path, "r", "slow")

    def terminate(p):
        if (run.status() or {}).get("episode") == 1:
            p.workers[0].process.send_signal(signal.SIGTERM)

    assert run_all([run.path], act=terminate)["r"].outcome == "stopped"


def test_tail_and_last_line(tmp_path):
    file = tmp_path / "f"
    assert (pool.tail(file), pool.last_line(file)) == ("", "")
    file.write_text("one\ntwo\n\n")

    assert pool.last_line(file) == "two"
    assert pool.tail(file, size=5) == "two\n\n"
    assert pool.last_line(file, start=8) == ""


LAUNCHER = """
import signal
import sys
from pathlib import Path
from benchmarks.executors import local
from benchmarks.executors.pool import Slot
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits "ignore"
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and so does what nohup starts
paths = [Path(p) for p in sys.argv[2:]]
def command(path):
    return [sys.executable, sys.argv[1], str(path)]
ended = local.execute(paths, [Slot("0", {}), Slot("1", {})], names=lambda p: p.name, command=command)
print("ended", sorted((e.path.name, e.outcome) for e in ended))
"""


def test_the_launcher_tells_ends_before_beginnings_and_what_was_killed(tmp_path, capsys):
    runs = [make(tmp_path, "r0", "die"), make(tmp_path, "r1")]
    local.execute([run.path for run in runs], [Slot("0", {})], names=lambda path: path.name, command=command)

    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "begun   r0", "again   r0 (killed by SIGKILL)", "done    r0  1 s", "begun   r1", "done    r1  1 s"
    ]  # fmt: skip


def launch(runs):
    paths = [str(run.path) for run in runs]
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(FAKE), *paths], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 30
    while not all(run.status() for run in runs[:2]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return launcher


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_interrupt_of_the_launcher_saves_all_runs(tmp_path, number):
    runs = [make(tmp_path, f"r{i}", "slow") for i in range(3)]
    launcher = launch(runs)
    launcher.send_signal(number)
    output, _ = launcher.communicate(timeout=30)

    assert "stopping: every run saves" in output
    assert output.splitlines()[-1] == "ended [('r0', 'stopped'), ('r1', 'stopped')]"
    assert [(run.status() or {}).get("state") for run in runs] == ["stopped", "stopped", None]


def test_a_second_interrupt_of_the_launcher_ends_all_runs_at_once(tmp_path):
    runs = [make(tmp_path, f"r{i}", "stuck") for i in range(2)]
    launcher = launch(runs)
    launcher.send_signal(signal.SIGINT)
    assert launcher.stdout is not None
    for line in launcher.stdout:
        if "stopping" in line:
            break
    else:
        raise AssertionError("the launcher ended without saying that it stops")
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=20)

    assert output.splitlines()[-1] == "ended [('r0', 'stopped'), ('r1', 'stopped')]"
    with Lease.acquire(runs[0].path) as lease:  # nobody is left at work
        lease.check()


def test_runs_outlive_a_launcher_that_is_killed(tmp_path):
    runs = [make(tmp_path, "r0", "slow"), make(tmp_path, "r1", "slow")]
    launcher = launch(runs)
    launcher.kill()
    launcher.communicate()
    deadline = time.monotonic() + 30
    while not all((run.status() or {})["state"] == "done" for run in runs):
        assert time.monotonic() < deadline
        time.sleep(0.05)

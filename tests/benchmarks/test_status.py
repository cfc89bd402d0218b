import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import dispatch, plan, status
from benchmarks.executors.queue import new_submission
from benchmarks.suites import Cell
from planet import provenance
from planet.lease import this_process
from planet.presets import resolve
from planet.run_dir import RunDir, run_path

FAKE = Path(__file__).parent / "fake_train.py"


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def make(runs, seed, **fields):
    run = RunDir.create(
        run_path(runs, "smoke", "base", "cheetah_run", seed),
        resolve("cheetah_run", preset="smoke", seed=seed),
        preset="smoke",
        variant="base",
    )
    if fields:
        run.write_status(fields)
    if fields.get("state") == "stopped":
        run.checkpoints.mkdir()
        (run.checkpoints / "latest.pt").touch()
    return run


def abandon(run, **changes):
    run.lease.mkdir()
    (run.lease / "1.json").write_text(json.dumps(asdict(replace(this_process(), **{"process_start": 1, **changes}))))


def rows(capsys, *words):
    capsys.readouterr()
    code = status.main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_every_state_is_told_apart(runs, capsys):
    make(runs, 0, state="done", episode=9, episodes_total=9, last_eval=811.6)
    make(runs, 1, state="failed", error="ValueError: NaN", traceback="Traceback ...")
    make(runs, 2, state="stopped", episode=3, episodes_total=9)
    abandon(make(runs, 3, state="running", episode=4, episodes_total=9))
    working = make(runs, 4, state="running", episode=5, episodes_total=9, episodes_per_hour=30.0, eta_seconds=480.0)
    abandon(working, process_start=this_process().process_start)
    make(runs, 5)
    code, found = rows(capsys, runs / "smoke")

    assert [row["state"] for row in found] == ["done", "failed", "stopped", "died", "running", "new"]
    assert [row["run"] for row in found] == [f"smoke/base/cheetah_run/seed_{k}" for k in range(6)]
    assert found[1]["error"] == "ValueError: NaN" and "ended without a word" in found[3]["why"]
    assert found[4]["episodes_per_hour"] == 30.0 and found[4]["eta_seconds"] == 480.0
    assert code == 1  # something needs a hand


def test_the_table_shows_progress_error_and_sum(runs, capsys):
    make(runs, 0, state="done", episode=9, episodes_total=9, last_eval=811.6)
    make(runs, 1, state="failed", error="ValueError: " + "x" * 200)
    assert status.main([str(runs / "smoke")]) == 1
    out = capsys.readouterr().out.splitlines()

    assert out[0].split() == ["run", "state", "episode", "eval", "ep/h", "to", "go", "node", "re", "note"]
    assert out[1].split() == ["smoke/base/cheetah_run/seed_0", "done", "9/9", "812"]
    assert "ValueError: xxx" in out[2] and out[2].endswith("x…")
    assert out[3] == "2 runs: 1 failed, 1 done"


def test_runs_that_a_plan_expects_are_shown_before_they_exist(runs, capsys):
    planned = plan.expand([Cell(task="cheetah_run", variant="base")], (0, 1), preset="smoke", runs=runs, suite="mine")
    plan.write(planned)
    make(runs, 0, state="done")
    make(runs, 7, state="done")

    assert [row["run"][-1] + row["state"] for row in rows(capsys, runs)[1]] == ["0done", "7done", "1new"]
    assert [row["run"][-1] + row["state"] for row in rows(capsys, runs, "--suite", "mine")[1]] == ["0done", "1new"]
    assert status.main([str(runs), "--suite", "other"]) == 2
    assert "no plan of suite 'other'; it has mine" in capsys.readouterr().err


def test_a_folder_without_runs_says_who_makes_them(tmp_path, capsys):
    assert status.main([str(tmp_path / "none")]) == 2
    assert status.main([str(tmp_path)]) == 2
    assert "holds no runs; benchmarks/launch.py makes them" in capsys.readouterr().err


def test_a_damaged_run_is_a_failed_row(runs, capsys):
    make(runs, 0, state="done")
    make(runs, 1).run_json.write_text("{")
    _, found = rows(capsys, runs)

    assert found[1]["state"] == "failed" and "is damaged" in found[1]["error"]


@pytest.mark.parametrize(
    ("file", "change", "what"),
    [
        ("status.json", {"last_eval": "many"}, "last_eval of status.json must be int or float or null, got 'many'"),
        ("status.json", {"eta_seconds": []}, "eta_seconds of status.json must be int or float or null"),
        ("run.json", {"starts": 5}, "starts of run.json must be list, got 5"),
        ("run.json", {"starts": [3]}, "start 1 must be an object, got 3"),
    ],
)
def test_a_run_with_a_wrong_field_is_a_failed_row_beside_the_others(runs, capsys, file, change, what):
    make(runs, 0, state="done", episode=9, episodes_total=9, last_eval=811.6)
    path = make(runs, 1, state="failed", error="x", last_eval=3.0).path / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    assert status.main([str(runs)]) == 1
    assert "2 runs: 1 failed, 1 done" in capsys.readouterr().out
    _, found = rows(capsys, runs)
    assert found[1]["state"] == "failed" and what in found[1]["error"] and str(path) in found[1]["error"]
    assert status.main(["retry", str(runs), "--executor", "inline"]) == 1
    assert what in capsys.readouterr().err
    assert status.main(["cancel", str(runs)]) == 0


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("garbage", "Expecting value"),
        ('{"runs": [{"variant": "base"}]}', "runs must be a list of objects with variant"),
    ],
)
def test_a_damaged_plan_is_named_beside_the_runs_of_the_others(runs, capsys, text, what):
    cells = [Cell(task="cheetah_run", variant="base")]
    plan.write(plan.expand(cells, (0, 1), preset="smoke", runs=runs, suite="mine"))
    make(runs, 0, state="done")
    make(runs, 7, state="done")
    (runs / "smoke/plans/custom.json").write_text(text)

    code, found = rows(capsys, runs)
    assert code == 1 and [row["run"][-1] + row["state"] for row in found] == ["0done", "7done", "1new"]
    assert status.main([str(runs)]) == 1
    out, err = capsys.readouterr()
    assert "3 runs: 1 new, 2 done" in out and f"plans/custom.json is damaged ({what}" in err
    assert err.endswith("; move it away, benchmarks/launch.py writes it anew\n")
    assert status.main([str(runs), "--watch"]) == 0
    assert "plans/custom.json is damaged" in "".join(capsys.readouterr().out.split("\n"))


def test_a_damaged_plan_stops_what_asks_for_it_or_acts(runs, capsys):
    plan.write(plan.expand([Cell(task="cheetah_run", variant="base")], (0,), preset="smoke", runs=runs, suite="mine"))
    make(runs, 0, state="done")
    (runs / "smoke/plans/custom.json").write_text("garbage")

    assert status.main([str(runs), "--suite", "mine"]) == 0  # another's plan is not read
    for words in ([str(runs), "--suite", "custom"], ["cancel", str(runs)], ["retry", str(runs)]):
        assert status.main(words) == 2
        assert "plans/custom.json is damaged" in capsys.readouterr().err


def test_a_damaged_submission_is_named_beside_the_runs(runs, capsys, squeue):
    run = make(runs, 0, state="done")
    (squeue / "jobs").write_text("")
    submission = new_submission(runs / "smoke", "dmc6", [[run.path]])
    submission.write()
    file = submission.folder / "submission.json"
    file.write_text('{"format": 1}')
    told = f"{file} is damaged (it lacks suite, created, packs, jobs); its jobs are not known here"

    assert status.main([str(runs), str(runs / "smoke")]) == 1
    out, err = capsys.readouterr()
    assert "1 run: 1 done" in out and err.count(f"status.py: {told}") == 1
    assert status.main([str(runs), "--watch"]) == 0
    assert "is damaged (it lacks suite" in "".join(capsys.readouterr().out.split("\n"))
    assert status.main(["logs", str(run.path)]) == 0
    assert f"warning: {told}" in capsys.readouterr().err


def test_a_planned_run_whose_run_json_is_gone_is_failed_and_not_new(runs, capsys):
    plan.write(plan.expand([Cell(task="cheetah_run", variant="base")], (0,), preset="smoke", runs=runs))
    run = make(runs, 0, state="done")
    run.episodes_jsonl.touch()
    run.run_json.unlink()
    code, (row,) = rows(capsys, runs)

    assert code == 1 and row["state"] == "failed" and "holds a run without run.json" in row["error"]


def test_a_run_without_run_json_that_no_plan_names_is_failed_and_not_hidden(runs, capsys):
    make(runs, 0, state="done")
    run = make(runs, 1, state="done")
    run.episodes_jsonl.touch()
    run.run_json.unlink()
    code, found = rows(capsys, runs)

    assert code == 1 and [row["state"] for row in found] == ["done", "failed"]
    assert f"{run.path} holds a run without run.json" in found[1]["error"]


def test_a_command_misspelt_is_told_its_name(capsys):
    assert status.main(["cancle", "runs/smoke"]) == 2
    assert "no folder and no command 'cancle'; perhaps cancel" in capsys.readouterr().err


def test_retry_takes_numbers_of_runs_above_0_only(runs, capsys):
    with pytest.raises(SystemExit) as ended:
        status.main(["retry", str(runs), "--max-parallel", "-1"])

    assert ended.value.code == 2 and "must be a whole number above 0, got '-1'" in capsys.readouterr().err


def test_restarts_and_changed_code_are_shown(runs, capsys, monkeypatch):
    run = make(runs, 0, state="stopped")
    run.record_start(threads=1)
    code = provenance.of_code()
    monkeypatch.setattr(provenance, "of_code", lambda: {**code, "code_hash": "0" * 12})
    run.record_start(threads=1)

    assert rows(capsys, runs)[1][0]["restarts"] == 1
    assert rows(capsys, runs)[1][0]["changed"] == ["code"]
    status.main([str(runs)])
    assert "changed at a restart: code" in capsys.readouterr().out


def test_a_silent_run_is_marked(runs, capsys):
    run = make(runs, 0, state="running", episode=1)
    abandon(run, host="elsewhere", boot="other")
    os.utime(run.lease / "1.json", (time.time() - 300, time.time() - 300))
    status.main([str(runs)])

    assert "silent for 5 min" in capsys.readouterr().out


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "squeue").write_text(f"#!/bin/sh\ncat {folder}/jobs\n")
    (folder / "scancel").write_text(f'#!/bin/sh\necho "$@" >> {folder}/cancelled\n')
    for name in ("squeue", "scancel"):
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_a_slurm_run_has_its_job_and_node(runs, capsys, squeue):
    working, waiting = make(runs, 0, state="running", episode=1), make(runs, 1)
    submission = new_submission(runs / "smoke", "dmc6", [[working.path], [waiting.path]])
    replace(submission, jobs=("5_0", "5_1")).write()
    abandon(working, host="n7", boot="other", slurm_job="5_0")
    (squeue / "jobs").write_text(
        f"5_0|RUNNING|None|n7|{submission.name}|0:05\n5_1|PENDING|Priority||{submission.name}|0:00\n"
    )
    _, found = rows(capsys, runs)

    assert [(row["state"], row["job"]) for row in found] == [("running", "5_0"), ("waiting", "5_1")]
    (squeue / "jobs").write_text(f"5_1|PENDING|Priority||{submission.name}|0:00\n")
    assert [row["state"] for row in rows(capsys, runs)[1]] == ["died", "waiting"]


@pytest.mark.parametrize(("queued", "state"), [("PENDING", "waiting"), ("RUNNING", "running")])
def test_a_run_started_again_has_nothing_of_its_last_start(runs, capsys, squeue, queued, state):
    run = make(runs, 0, state="stopped", episode=3, episodes_total=9, episodes_per_hour=30.0, eta_seconds=480.0)
    abandon(run, host="n7", boot="other", slurm_job="4", released=True)
    submission = replace(new_submission(runs / "smoke", "dmc6", [[run.path]]), jobs=("5",))
    submission.write()
    (squeue / "jobs").write_text(f"5|{queued}|Priority|n1|{submission.name}|0:00\n")
    code, (row,) = rows(capsys, runs)

    assert code == 0 and (row["state"], row["job"]) == (state, "5") and "Slurm job 5" in row["why"]
    assert (row["silent_seconds"], row["episodes_per_hour"], row["eta_seconds"]) == (None, None, None)


def test_a_run_that_waits_again_after_a_failure_says_why_it_waits(runs, capsys, squeue):
    run = make(runs, 0, state="failed", error="ValueError: NaN")
    submission = replace(new_submission(runs / "smoke", "dmc6", [[run.path]]), jobs=("5",))
    submission.write()
    (squeue / "jobs").write_text(f"5|PENDING|Priority||{submission.name}|0:00\n")

    assert status.main([str(runs)]) == 0
    out = capsys.readouterr().out
    assert "Slurm job 5 pending (Priority)" in out and "NaN" not in out


def test_cancel_ends_slurm_jobs_and_names_what_goes_with_them(runs, capsys, squeue):
    all_runs = [make(runs, seed) for seed in range(3)]
    make(runs, 3, state="done")
    submission = new_submission(runs / "smoke", "dmc6", [[all_runs[0].path, all_runs[1].path], [all_runs[2].path]])
    replace(submission, jobs=("5_0", "5_1")).write()
    (squeue / "jobs").write_text(
        f"5_0|PENDING|Priority||{submission.name}|0:00\n5_1|RUNNING|None|n1|{submission.name}|0:00\n"
    )

    assert status.main(["cancel", str(all_runs[0].path)]) == 0
    assert (squeue / "cancelled").read_text() == "5_0\n"
    assert "with it go base/cheetah_run/seed_1" in capsys.readouterr().out
    assert status.main(["cancel", str(runs)]) == 0
    assert (squeue / "cancelled").read_text() == "5_0\n5_0 5_1\n"


@pytest.mark.parametrize("folder", ["..", "../seed_1"])
def test_a_folder_named_by_its_parent_has_the_jobs_of_its_runs(runs, capsys, squeue, monkeypatch, folder):
    all_runs = [make(runs, seed) for seed in range(2)]
    submission = new_submission(runs / "smoke", "dmc6", [[run.path] for run in all_runs])
    replace(submission, jobs=("5_0", "5_1")).write()
    (squeue / "jobs").write_text("".join(f"5_{i}|PENDING|Priority||{submission.name}|0:00\n" for i in range(2)))
    monkeypatch.chdir(all_runs[0].path)

    assert {row["state"] for row in rows(capsys, folder)[1]} == {"waiting"}
    assert status.main(["logs", "../seed_1"]) == 0
    assert "seed_1: waiting, Slurm job 5_1 pending" in capsys.readouterr().out
    assert status.main(["cancel", "../seed_1"]) == 0
    assert (squeue / "cancelled").read_text() == "5_1\n"


def test_a_job_that_scancel_could_not_end_is_not_told_as_cancelled(runs, capsys, squeue):
    run = make(runs, 0)
    submission = replace(new_submission(runs / "smoke", "dmc6", [[run.path]]), jobs=("5",))
    submission.write()
    (squeue / "jobs").write_text(f"5|PENDING|Priority||{submission.name}|0:00\n")
    (squeue / "scancel").write_text("#!/bin/sh\necho 'scancel: error: no controller' >&2; exit 1\n")

    assert status.main(["cancel", str(runs)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("status.py: scancel 5 failed: scancel: error: no controller; the same command tries again\n")


def test_cancel_spares_a_job_that_only_has_the_id_of_ours(runs, capsys, squeue):
    """Its run is at work outside Slurm by now, on this machine."""
    run = make(runs, 0)
    (run.path / "behave").write_text("slow")
    submission = replace(new_submission(runs / "smoke", "dmc6", [[run.path]]), jobs=("5",))
    submission.write()
    (squeue / "jobs").write_text("5|RUNNING|None|n1|somebody|1:00\n")
    worker = subprocess.Popen([sys.executable, str(FAKE), str(run.path)], env={**os.environ, "SLURM_JOB_ID": "5"})
    deadline = time.monotonic() + 30
    while (run.status() or {}).get("episode") != 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)

    assert status.main(["cancel", str(runs)]) == 0
    assert worker.wait(timeout=20) == 75 and not (squeue / "cancelled").exists()


@pytest.mark.parametrize("allocation", [None, "77"])
def test_cancel_lets_a_local_run_save(runs, capsys, squeue, monkeypatch, allocation):
    """Also inside an allocation, which is the user's and stays."""
    if allocation:
        monkeypatch.setenv("SLURM_JOB_ID", allocation)
    (squeue / "jobs").write_text("77|RUNNING|None|n1|bash|1:00\n")
    run = make(runs, 0)
    (run.path / "behave").write_text("slow")
    worker = subprocess.Popen([sys.executable, str(FAKE), str(run.path)])
    deadline = time.monotonic() + 30
    while (run.status() or {}).get("episode") != 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)

    assert status.main(["cancel", str(runs)]) == 0
    assert worker.wait(timeout=20) == 75
    assert "to save and stop" in capsys.readouterr().out
    assert (run.status() or {})["state"] == "stopped"
    assert not (squeue / "cancelled").exists()


def test_cancel_says_what_it_cannot_reach(runs, capsys):
    abandon(make(runs, 0, state="running"), host="elsewhere", boot="other")

    assert status.main(["cancel", str(runs)]) == 1
    assert "cannot reach smoke/base/cheetah_run/seed_0 from here" in capsys.readouterr().err


@pytest.fixture
def started(monkeypatch):
    """The names of the run directories that an executor was given to start."""
    names = []

    class Recording:
        submits = False

        def describe(self, items, *, dry_run):
            pass

        def check(self):
            pass

        def start(self, items, preset_folder, suite):
            names.extend(item.run.path.name for item in items)
            return 0

    monkeypatch.setattr(dispatch, "choose", lambda options, dry_run: Recording())
    return names


def test_retry_starts_failed_and_died_runs_only(runs, started):
    make(runs, 0, state="done")
    make(runs, 1, state="failed", error="x")
    make(runs, 2, state="stopped")
    abandon(make(runs, 3, state="running"))
    make(runs, 4)

    assert status.main(["retry", str(runs), "--executor", "local"]) == 0
    assert started == ["seed_1", "seed_3"]


def test_folders_that_overlap_name_each_run_once_and_in_their_order(runs, capsys, started, monkeypatch):
    make(runs, 0, state="failed", error="x")
    one = make(runs, 1, state="failed", error="x").path
    (runs.parent / "link").symlink_to(runs)
    folders = [one, runs / "smoke", runs / "smoke/../smoke/base", runs.parent / "link", one]

    assert [row["run"][-6:] for row in rows(capsys, *folders)[1]] == ["seed_1", "seed_0"]
    assert status.main([*map(str, folders), "--watch"]) == 0
    assert "2 runs: 2 failed" in capsys.readouterr().out
    assert status.main(["retry", *map(str, folders), "--executor", "local"]) == 0
    assert started == ["seed_1", "seed_0"]
    given = []
    monkeypatch.setattr(status, "cancel", lambda paths: given.extend(path.name for path in paths) or 0)
    assert status.main(["cancel", *map(str, folders)]) == 0
    assert given == ["seed_1", "seed_0"]


@pytest.mark.parametrize(("file", "text"), [("run.json", "{"), ("status.json", "{"), ("config.toml", "a = ")])
def test_a_damaged_run_does_not_keep_retry_from_the_others(runs, capsys, started, file, text):
    for seed in range(3):
        make(runs, seed, state="failed", error="x")
    damaged = run_path(runs, "smoke", "base", "cheetah_run", 1) / file
    damaged.write_text(text)

    assert status.main(["retry", str(runs), "--executor", "local"]) == 1
    assert started == ["seed_0", "seed_2"]
    error = capsys.readouterr().err
    assert error.startswith(f"cannot go on: {damaged} is ") and error.count("\n") == 1


def test_a_run_that_has_lost_its_record_is_told_by_retry(runs, capsys, started):
    for seed in range(2):
        make(runs, seed, state="failed", error="x")
    lost = RunDir(run_path(runs, "smoke", "base", "cheetah_run", 0))
    lost.episodes.mkdir()
    lost.run_json.unlink()

    assert status.main(["retry", str(runs), "--executor", "local"]) == 1
    assert started == ["seed_1"] and f"cannot go on: {lost.path} lacks its run.json" in capsys.readouterr().err


def test_a_run_without_checkpoint_is_not_retried(runs, capsys):
    run = make(runs, 0, state="stopped", episode=3)
    (run.checkpoints / "latest.pt").unlink()

    assert status.main(["retry", str(runs), "--executor", "inline"]) == 1
    out, err = capsys.readouterr()
    assert "no run to start again" in out and f"cannot go on: {run.lost_checkpoint()}" in err


def test_logs_hold_the_log_the_exception_and_the_jobs_words(runs, capsys, squeue):
    run = make(runs, 0, state="failed", error="ValueError: NaN", traceback="Traceback\nValueError: NaN")
    run.log.write_text("12:00 episode 1\n")
    run.output.write_text(f"{run.path}: episode 1\nlibEGL warning\n")
    submission = replace(new_submission(runs / "smoke", "dmc6", [[run.path]]), jobs=("5",))
    submission.write()
    submission.log("5").write_text("slurmstepd: oom\n")
    (squeue / "jobs").write_text("")
    run.record_start()
    assert status.main(["logs", str(run.path)]) == 0
    out = capsys.readouterr().out

    assert "seed_0: failed, ValueError: NaN" in out
    for words in ("12:00 episode 1", "libEGL warning", "Traceback\nValueError: NaN", "slurmstepd: oom"):
        assert words in out
    assert out.count("episode 1") == 1
    assert status.main(["logs", str(runs)]) == 2


@pytest.mark.parametrize(
    ("path", "folder"),
    [("/a/runs/quick/base/cup_catch/seed_0", "/a/runs/quick"), ("/tmp/seed_0", "/"), ("/seed_0", "/")],
)
def test_a_copied_run_may_lie_right_below_the_root(path, folder):
    assert status.preset_folder_of(Path(path)) == Path(folder)


def test_watching_ends_when_nothing_runs(runs, capsys):
    make(runs, 0, state="done", episode=4, episodes_total=4)

    assert status.main([str(runs), "--watch"]) == 0
    assert "1 run: 1 done" in capsys.readouterr().out


def test_a_narrow_terminal_cuts_the_names_of_runs_only(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    variant, error = "base+planner.candidates=500+schedule.train_episodes=200", "ValueError: loss became NaN at 7000"
    for seed in range(2):
        path = run_path(runs, "smoke", variant, "cartpole_swingup", seed)
        config = resolve("cartpole_swingup", preset="smoke", seed=seed)
        run = RunDir.create(path, config, preset="smoke", variant=variant)
        run.write_status({"state": "failed", "error": error, "episode": 100, "episodes_total": 1005, "last_eval": 8.0})
    status.main([str(runs), "--watch"])
    out = capsys.readouterr().out

    assert all(len(line) <= 80 for line in out.splitlines())
    assert [line.split()[:4] for line in out.splitlines() if "seed_" in line] == [
        [f"…p/seed_{seed}", "failed", "100/1005", "8"] for seed in range(2)
    ]
    assert out.count("ValueError: loss") == 2


def test_a_run_that_is_done_is_read_once(runs, monkeypatch):
    run = make(runs, 0, state="done")
    reader = status.Reader()
    reader.rows([run.path])
    run.status_json.unlink()

    assert [row.state for row in reader.rows([run.path])] == ["done"]


def test_status_survives_a_closed_pipe(runs):
    make(runs, 0, state="done")
    script = Path(status.__file__)
    done = subprocess.run(
        f"{sys.executable} {script} {runs} | true", shell=True, capture_output=True, text=True, check=False, timeout=60
    )

    assert "Traceback" not in done.stderr
    assert signal.SIGPIPE  # the platform has pipes that close


SWEEP = """
import sys
from pathlib import Path
from benchmarks.executors import local, machine
from benchmarks.executors.pool import Slot
script, *names = sys.argv[1:]
paths = [Path(name) for name in names]
with machine.at_work(paths):
    local.execute(paths, [Slot("0", {})], command=lambda path: [sys.executable, script, str(path)])
"""


@pytest.fixture
def sweep(runs, tmp_path, monkeypatch):
    """A launcher with three runs and one place, the first of them at work."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    all_runs = [make(runs, seed) for seed in range(3)]
    for run in all_runs:
        (run.path / "behave").write_text("slow")
    words = [sys.executable, "-c", SWEEP, str(FAKE), *(str(run.path) for run in all_runs)]
    with subprocess.Popen(words, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL) as launcher:
        deadline = time.monotonic() + 60
        while (all_runs[0].status() or {}).get("state") != "running":
            assert time.monotonic() < deadline and launcher.poll() is None
            time.sleep(0.02)
        yield launcher, all_runs
        launcher.kill()


def test_cancel_ends_a_launcher_with_all_that_it_has(runs, sweep, capsys):
    launcher, all_runs = sweep

    assert status.main(["cancel", str(runs)]) == 0
    assert f"asked pid {launcher.pid} to begin no run any more" in capsys.readouterr().out

    launcher.wait(60)
    assert [(run.status() or {}).get("state") for run in all_runs] == ["stopped", None, None]


def test_cancel_of_some_runs_says_which_launcher_will_begin_others_of_them(sweep, capsys):
    launcher, all_runs = sweep

    assert status.main(["cancel", *(str(run.path) for run in all_runs[:2])]) == 1
    said = capsys.readouterr()
    assert f"pid {launcher.pid} will still begin 1 run of these and has others; kill {launcher.pid} stops" in said.err
    assert "asked base/cheetah_run/seed_0" in said.out.replace("smoke/", "")

    launcher.wait(60)
    assert [(run.status() or {}).get("state") for run in all_runs] == ["stopped", "done", "done"]

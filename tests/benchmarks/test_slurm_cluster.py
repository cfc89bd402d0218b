"""Everything a cluster does to a run, on a real Slurm that this file starts and stops (slurm/throwaway_cluster.py).

The runs are real ones of the smoke preset; each must end `done` with the files of a run that nothing ever disturbed.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from planet import lease
from planet.run_dir import RunDir, read_jsonl, run_path

ROOT = Path(__file__).parents[2]
PATIENCE = 4
"""Waiting times below are generous for an idle machine, and this many times as long for a busy one."""
pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ON_CPU = "runtime.device=cpu"  # a run that Slurm promises a GPU, a fake one here, refuses to start on a CPU unasked
CHANGES = ("schedule.train_episodes=8", "runtime.checkpoint_seconds=0", ON_CPU)
ONE = ("--tasks", "cartpole_swingup", "--preset", "smoke", "--set", *CHANGES)
VARIANT = "base+schedule.train_episodes=8"
PROFILE = """
partition = "low"
time = 60
gpus = 1
cpus_per_run = 1
mem_gb_per_run = 1
signal_seconds = 60
setup = ["export OMP_NUM_THREADS=1"]
"""


def load_cluster():
    spec = importlib.util.spec_from_file_location("throwaway_cluster", ROOT / "slurm" / "throwaway_cluster.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cluster():
    module = load_cluster()
    absent = module.missing_programs()
    if absent:
        how = "bash slurm/install_system_packages.sh, as root"
        reason = f"THE CLUSTER TESTS DID NOT RUN: missing {', '.join(absent)} ({how})"
        if os.environ.get("REQUIRE_SLURM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    up = module.Cluster(folder)
    before = {name: os.environ.get(name) for name in up.environment}
    try:
        up.start()
        os.environ.update(up.environment)
        yield up
    finally:
        up.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The same run, never disturbed, without Slurm."""
    runs = tmp_path_factory.mktemp("unbroken")
    launch(runs, *ONE, "--seeds", "2", "--executor", "local", cluster=False)
    return [directory(runs, seed) for seed in range(2)]


@pytest.fixture
def runs(tmp_path, cluster):
    yield tmp_path / "runs"
    cluster.run("scancel", "--user=root", check=False)
    until(lambda: not cluster.run("squeue", "--noheader", "--format=%T"), 30, "the queue is empty", cluster)


def directory(runs, seed=0, variant=VARIANT, task="cartpole_swingup"):
    return RunDir(run_path(runs, "smoke", variant, task, seed))


def launch(runs, *words, cluster=True, code=0, profile=PROFILE):
    extra = []
    if cluster:
        file = runs.parent / "site.toml"
        file.write_text(profile)
        extra = ["--executor", "slurm", "--cluster", str(file)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "launch.py"), *words, *extra, "--runs", str(runs)],
        capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **({} if cluster else {"TMPDIR": str(runs)})},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def status(runs, *words):
    script = str(ROOT / "benchmarks" / "status.py")
    done = subprocess.run(
        [sys.executable, script, *words, str(runs)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def rows(runs):
    return json.loads(status(runs, "--json"))


def until(condition, seconds, what, cluster=None):
    deadline = time.monotonic() + seconds * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            queue = cluster.run("squeue", "--array", "--states=all", check=False) if cluster else ""
            pytest.fail(f"after {seconds * PATIENCE} s still not: {what}\n{queue}")
        time.sleep(0.1)


def episodes(run):
    return len(read_jsonl(run.episodes_jsonl)[0])


def state(run):
    return (run.status() or {}).get("state")


def at_work(run, cluster, number=3):
    """Wait until the run has written some episodes and is not near its end."""
    until(lambda: episodes(run) >= number, 90, f"{run.path} has {number} episodes", cluster)
    assert state(run) == "running"


def done(run, cluster, seconds=150):
    until(lambda: state(run) in ("done", "failed"), seconds, f"{run.path} is done", cluster)
    assert state(run) == "done", run.status()


def starts(run):
    return run.run()["starts"]


def assert_as_unbroken(run, other):
    def without_times(path):
        found, broken = read_jsonl(path)
        assert broken == 0
        return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in found]

    assert without_times(run.episodes_jsonl) == without_times(other.episodes_jsonl)
    assert without_times(run.metrics_jsonl) == without_times(other.metrics_jsonl)
    assert len(without_times(run.metrics_jsonl)) == 8
    for folder in ("episodes", "predictions", "strips"):
        names = sorted(path.name for path in (other.path / folder).iterdir())
        assert sorted(path.name for path in (run.path / folder).iterdir()) == names and names
        for name in names:
            assert (run.path / folder / name).read_bytes() == (other.path / folder / name).read_bytes(), (folder, name)
    import torch

    one, two = (
        torch.load(r.checkpoints / "latest.pt", weights_only=True)["learner"]["world_model"] for r in (run, other)
    )
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def submissions(runs):
    return sorted((runs / "smoke" / "slurm").glob("*/submission.json"))


def job(runs):
    (path,) = submissions(runs)
    return json.loads(path.read_text())["jobs"][0]


def test_the_suite_runs_as_an_array_on_distinct_gpus_and_is_never_submitted_twice(runs, cluster):
    words = ("--suite", "dmc6", "--seeds", "2", "--preset", "smoke", "--max-parallel", "2", "--set", ON_CPU)
    out = launch(runs, *words)
    assert "submitted 12 runs in 12 jobs" in out
    everything = [path for path in (RunDir(p.parent) for p in sorted(runs.glob("smoke/base/*/*/run.json")))]
    assert len(everything) == 12

    assert "submitted" not in launch(runs, *words)  # pending, perhaps starting
    assert {row["state"] for row in rows(runs)} <= {"waiting", "running"}
    most, seen = 0, set()
    while not all(state(run) == "done" for run in everything):
        running = cluster.run("squeue", "--noheader", "--states=running,completing", "--array", "--format=%i").split()
        most = max(most, len(running))
        if len(seen) < 3:
            seen.add(frozenset(row["state"] for row in rows(runs)))
            assert "submitted" not in launch(runs, *words)  # some running, some done, some waiting
        assert not any(state(run) == "failed" for run in everything)
        time.sleep(0.5)
    assert most == 2
    until(lambda: not cluster.run("squeue", "--noheader", "--format=%T"), 30, "the array has ended", cluster)
    assert "12 done" in launch(runs, *words) and len(submissions(runs)) == 1

    gpus = [(start["slurm"]["nodename"], start["visible_gpus"]) for run in everything for start in starts(run)]
    assert len(gpus) == 12 and all(gpu is not None and len(gpu) == 1 for _, gpu in gpus)
    assert len(set(gpus)) >= 2
    spans = [
        (starts(run)[0]["time"], run.status_json.stat().st_mtime, *gpu)
        for run, gpu in zip(everything, gpus, strict=True)
    ]
    for i, one in enumerate(spans):
        for other in spans[i + 1 :]:
            overlap = one[0] < other[1] - 1 and other[0] < one[1] - 1
            assert not (overlap and one[2:] == other[2:]), "two runs at a time on one GPU"


def test_a_run_at_its_time_limit_saves_is_requeued_and_ends_like_an_unbroken_one(runs, cluster, unbroken):
    launch(
        runs, *ONE, "--seeds", "1", profile=PROFILE.replace("= 60", "= 1", 1).replace("seconds = 60", "seconds = 25")
    )
    run = directory(runs)
    # Slurm looks at time limits every half minute, so its signal comes from 5 s to 35 s after a start: perhaps before
    # the run has got anywhere. Such a start is none to test; the next one is as good.
    until(lambda: episodes(run) >= 1 and state(run) == "running", 90, "the run is at work", cluster)
    worker = lease.look(run.path)
    assert worker is not None
    os.kill(worker.owner.pid, signal.SIGSTOP)  # a run that takes longer than its job may
    log = submissions(runs)[0].parent / f"{job(runs)}_0_log.out"
    earlier = int(starts(run)[-1]["slurm"].get("restart_count", "0"))
    told = lambda: log.read_text().count("asked to stop") if log.exists() else 0  # noqa: E731
    until(lambda: told() > earlier, 60, "Slurm has told the job to save", cluster)
    os.kill(worker.owner.pid, signal.SIGCONT)
    until(lambda: state(run) == "stopped", 30, "the run has saved and stopped", cluster)
    assert "submitted" not in launch(runs, *ONE, "--seeds", "1")  # it waits to be started again
    done(run, cluster)

    counts = [int(start["slurm"].get("restart_count", "0")) for start in starts(run)]
    assert counts == sorted(counts) and counts[-1] >= 1  # more than one on a machine too busy to get far in a minute
    assert rows(runs)[0]["restarts"] == len(counts) - 1 >= 1
    assert_as_unbroken(run, unbroken[0])


@pytest.mark.parametrize("user_signal", [True, False], ids=["with the user signal", "without it"])
def test_a_preempted_run_goes_on_and_ends_like_an_unbroken_one(runs, cluster, unbroken, user_signal):
    cluster.configure(user_signal=user_signal, grace_seconds=20 if user_signal else 0)
    try:
        launch(runs, *ONE, "--seeds", "1", "--cluster-set", "nodelist=n1")
        run = directory(runs)
        at_work(run, cluster)
        urgent = ("--partition=high", "--nodelist=n1", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        cluster.run("sbatch", "--job-name=urgent", *urgent)
        until(lambda: state(run) == "stopped", 40, "the preempted run has saved", cluster)
        done(run, cluster)
    finally:
        cluster.configure()

    assert len(starts(run)) == 2 and starts(run)[1]["slurm"]["restart_count"] == "1"
    assert_as_unbroken(run, unbroken[0])


def test_a_run_whose_node_dies_goes_on_elsewhere_and_ends_like_an_unbroken_one(runs, cluster, unbroken):
    launch(runs, *ONE, "--seeds", "1")
    run = directory(runs)
    at_work(run, cluster)
    node = starts(run)[0]["slurm"]["nodename"]
    try:
        cluster.kill_node(node)
        cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=power")
        done(run, cluster)
    finally:
        cluster.start_node(node)
        cluster.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)

    first, second = starts(run)
    assert first["slurm"]["nodename"] != second["slurm"]["nodename"]
    assert_as_unbroken(run, unbroken[0])


def test_a_cancelled_run_goes_on_when_launched_again_and_ends_like_an_unbroken_one(runs, cluster, unbroken):
    launch(runs, *ONE, "--seeds", "1")
    run = directory(runs)
    at_work(run, cluster)
    assert f"scancel {job(runs)}" in status(runs, "cancel")
    until(lambda: rows(runs)[0]["state"] in ("stopped", "died"), 30, "the cancelled run has ended", cluster)
    assert "submitted 1 run in 1 job" in launch(runs, *ONE, "--seeds", "1")
    done(run, cluster)

    assert len(starts(run)) == 2
    assert_as_unbroken(run, unbroken[0])


def test_a_killed_process_is_started_again_and_a_killed_job_by_the_next_launch(runs, cluster, unbroken):
    launch(runs, *ONE, "--seeds", "1")
    run = directory(runs)
    at_work(run, cluster)
    first = lease.look(run.path)
    assert first is not None
    os.kill(first.owner.pid, signal.SIGKILL)
    until(lambda: len(starts(run)) == 2, 40, "the same job has started the run again", cluster)
    until(lambda: episodes(run) >= 5, 60, "the run has gone on", cluster)
    second = lease.look(run.path)
    assert second is not None and second.owner.slurm_job == first.owner.slurm_job
    parent = int(Path(f"/proc/{second.owner.pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(parent, signal.SIGKILL)
    os.kill(second.owner.pid, signal.SIGKILL)
    until(lambda: rows(runs)[0]["state"] == "died", 40, "status tells that the run died", cluster)
    assert "ended without a word" in launch(runs, *ONE, "--seeds", "1")
    done(run, cluster)

    assert len(starts(run)) == 3
    assert_as_unbroken(run, unbroken[0])


def test_one_signal_saves_all_runs_of_a_pack(runs, cluster, unbroken):
    out = launch(runs, *ONE, "--seeds", "2", "--runs-per-gpu", "2")
    assert "submitted 2 runs in 1 job" in out
    pair = [directory(runs, seed) for seed in range(2)]
    for run in pair:
        at_work(run, cluster)
    cluster.run("scancel", "--signal=USR2", job(runs))
    for run in pair:
        done(run, cluster)

    for run, other in zip(pair, unbroken, strict=True):
        assert len(starts(run)) == 2
        assert starts(run)[0]["visible_gpus"] == starts(pair[0])[0]["visible_gpus"]
        assert_as_unbroken(run, other)


def test_an_exception_is_shown_and_the_run_can_be_retried(runs, cluster):
    words = ("--tasks", "cartpole_swingup", "--seeds", "1", "--preset", "smoke", "--set", ON_CPU)
    broken = PROFILE.replace('["export', '["unset DISPLAY; export MUJOCO_GL=glfw", "export')
    launch(runs, *words, profile=broken)
    run = directory(runs, variant="base")
    until(lambda: state(run) == "failed", 60, "the run has failed", cluster)
    until(lambda: not cluster.run("squeue", "--noheader", "--format=%T"), 30, "the job has ended", cluster)

    (row,) = rows(runs)
    assert row["state"] == "failed" and "GLFW" in row["error"]
    assert "GLFW" in status(runs)
    told = status(run.path, "logs")
    assert "Traceback" in told and "RunsFailed" in told
    assert "1 failed run is left as it is" in launch(runs, *words, code=1)
    assert "submitted 1 run" in launch(runs, *words, "--retry-failed")
    assert rows(runs)[0]["state"] in ("waiting", "running")
    until(lambda: state(run) == "done", 150, "the retried run is done", cluster)


def test_a_job_that_cannot_start_is_failed_and_not_waiting(runs, cluster):
    launch(runs, *ONE, "--seeds", "1", profile=PROFILE.replace('["export', '["module load cudda", "export'))
    until(lambda: rows(runs)[0]["state"] == "failed", 30, "the run is shown as failed", cluster)

    assert "set-up line failed: module load cudda" in rows(runs)[0]["error"]
    assert "set-up line failed: module load cudda" in launch(runs, *ONE, "--seeds", "1", code=1)
    assert "module" in status(directory(runs).path, "logs")


def test_launching_from_inside_an_allocation_works(runs, cluster):
    file = runs.parent / "site.toml"
    file.write_text(PROFILE)
    words = [
        "--tasks",
        "cartpole_swingup",
        "--seeds",
        "1",
        "--preset",
        "smoke",
        "--executor",
        "slurm",
        "--cluster",
        str(file),
        "--set",
        ON_CPU,
    ]
    command = [sys.executable, str(ROOT / "benchmarks" / "launch.py"), *words, "--runs", str(runs)]
    out = cluster.run("srun", "--ntasks=1", "--cpus-per-task=2", "--gpus-per-node=2", "--partition=low", *command)
    assert "submitted 1 run" in out
    run = directory(runs, variant="base")
    done(run, cluster)

    assert len(starts(run)[0]["visible_gpus"]) == 1  # its own GPU, not the outer job's two


def test_a_dry_run_asks_the_cluster_and_submits_nothing(runs, cluster):
    good = launch(runs, *ONE, "--seeds", "3", "--dry-run")
    bad = launch(runs, *ONE, "--seeds", "3", "--dry-run", "--cluster-set", "partition=nowhere", code=1)

    assert "#SBATCH --array=0-2%3" in good and "sbatch --test-only: accepted" in good
    assert "sbatch --test-only: REFUSED" in bad and "invalid partition" in bad
    assert not runs.exists() and not cluster.run("squeue", "--noheader")


def test_a_refused_submission_says_why_and_can_be_repeated(runs, cluster):
    done_ = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "launch.py"), *ONE, "--seeds", "1", "--executor", "slurm",
         "--cluster-set", "partition=nowhere", "--runs", str(runs)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done_.returncode == 2 and "invalid partition" in done_.stderr and "Traceback" not in done_.stderr
    assert "submitted 1 run" in launch(runs, *ONE, "--seeds", "1")

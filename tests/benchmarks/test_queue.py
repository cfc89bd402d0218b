import errno
import json
import os
import threading
import time

import pytest
from submitit.helpers import DelayedSubmission

from benchmarks.executors import queue
from benchmarks.executors.job import Pack
from benchmarks.executors.queue import Queue, new_submission
from planet.presets import resolve
from planet.run_dir import RunDir, run_path


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A stand-in for squeue: prints what is in the file `jobs`, counts its calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "jobs").write_text("")
    program = folder / "squeue"
    program.write_text(f"#!/bin/sh\necho x >> {folder}/calls\n[ -e {folder}/down ] && exit 1\ncat {folder}/jobs\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def jobs(cluster, *rows):
    """Let squeue print these jobs; one named `ours` has the name of the submission it is on record for."""
    on_record = {job: s.name for s in queue.read_submissions(cluster.parent / "runs" / "smoke") for job in s.jobs}
    rows = [[on_record[row[0]] if word == "ours" else word for word in row] for row in rows]
    (cluster / "jobs").write_text("".join("|".join(row) + "\n" for row in rows))


def submitted(tmp_path, seeds=1, ids=None, packs=1):
    """Make run directories and the record of their submission."""
    preset = tmp_path / "runs" / "smoke"
    runs = [
        RunDir.create(
            run_path(tmp_path / "runs", "smoke", "base", "cheetah_run", seed),
            resolve("cheetah_run", preset="smoke", seed=seed),
            preset="smoke",
            variant="base",
        )
        for seed in range(seeds)
    ]
    groups = [[run.path for run in runs[i : i + packs]] for i in range(0, seeds, packs)]
    submission = new_submission(preset, "dmc6", groups)
    ids = ids if ids is not None else [f"12_{i}" for i in range(len(groups))]
    object.__setattr__(submission, "jobs", tuple(ids))
    submission.write()
    return preset, submission, runs


def test_a_waiting_and_a_running_job_speak_for_their_runs_in_one_call(tmp_path, cluster):
    preset, _, runs = submitted(tmp_path, seeds=3)
    jobs(
        cluster,
        ("12_0", "PENDING", "Resources", "", "ours", "0:00"),
        ("12_1", "RUNNING", "None", "n2", "ours", "0:03"),
        ("12_2", "COMPLETING", "None", "n2", "ours", "0:03"),
    )
    q = Queue.read(preset)

    assert [q.job_of(run.path) for run in runs] == [
        ("waiting", "Slurm job 12_0 pending (Resources)"),
        ("running", "Slurm job 12_1 running on n2, starting"),
        ("running", "Slurm job 12_2 completing on n2, starting"),
    ]
    assert (cluster / "calls").read_text() == "x\n"


def test_without_submissions_squeue_is_not_asked(tmp_path, cluster):
    q = Queue.read(tmp_path / "runs" / "smoke")

    assert q.job_of(tmp_path / "runs" / "smoke" / "base" / "cheetah_run" / "seed_0") is None
    assert not (cluster / "calls").exists()


def test_a_job_that_ended_before_the_run_began_is_a_failure_with_its_last_words(tmp_path, cluster):
    preset, submission, (run,) = submitted(tmp_path)
    submission.log("12_0").write_text("noise\nset-up line failed: module load cudda\n")
    jobs(cluster, ("12_0", "FAILED", "NonZeroExitCode", "n1", "ours", "0:00"))
    expected = "before the run began: set-up line failed: module load cudda"

    assert Queue.read(preset).job_of(run.path) == ("failed", f"Slurm job 12_0 ended (FAILED) {expected}")
    jobs(cluster)  # and after Slurm has forgotten it
    assert Queue.read(preset).job_of(run.path) == ("failed", f"Slurm job 12_0 ended {expected}")


@pytest.mark.parametrize(
    ("before", "shown"),
    [
        ("python3: No module named submitit\n", "python3: No module named submitit"),
        ("", "srun: error: n1: task 0: Exited with exit code 1"),
    ],
)
def test_the_last_words_of_a_job_are_its_own_where_it_has_any(tmp_path, cluster, before, shown):
    preset, submission, (run,) = submitted(tmp_path)
    submission.log("12_0").write_text(f"{before}srun: error: n1: task 0: Exited with exit code 1\n")

    assert Queue.read(preset).job_of(run.path) == (
        "failed", f"Slurm job 12_0 ended before the run began: {shown}"
    )  # fmt: skip


def test_a_run_that_failed_before_its_start_was_recorded_speaks_for_itself(tmp_path, cluster):
    preset, submission, (run,) = submitted(tmp_path)
    submission.log("12_0").write_text("RunsFailed: 1 of 1 runs failed\n")
    run.write_status({"state": "failed", "error": "ValueError: runtime.device=auto, and torch sees no GPU"})

    assert Queue.read(preset).job_of(run.path) is None


def test_a_job_cancelled_while_it_waited_leaves_nothing_behind(tmp_path, cluster):
    preset, _, (run,) = submitted(tmp_path)
    jobs(cluster, ("12_0", "CANCELLED", "None", "", "ours", "0:00"))
    assert Queue.read(preset).job_of(run.path) is None

    jobs(cluster)
    assert Queue.read(preset).job_of(run.path) is None


def test_a_job_that_wrote_no_file_at_all_hints_at_the_file_system(tmp_path, cluster):
    preset, _, (run,) = submitted(tmp_path)
    jobs(cluster, ("12_0", "FAILED", "None", "n1", "ours", "0:00"))
    answer = Queue.read(preset).job_of(run.path)

    assert answer is not None and answer[0] == "failed" and "shared file system" in answer[1]


def test_a_run_that_began_in_the_job_speaks_for_itself(tmp_path, cluster):
    preset, submission, (run,) = submitted(tmp_path)
    submission.log("12_0").write_text("some words\n")
    run.record_start()

    assert Queue.read(preset).job_of(run.path) is None


@pytest.mark.parametrize("job", ["12_0", "13"])
def test_a_run_that_began_on_a_node_whose_clock_is_behind_speaks_for_itself(tmp_path, cluster, monkeypatch, job):
    preset, submission, (run,) = submitted(tmp_path, ids=[job])
    submission.log(job).write_text("some words\n")
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    if "_" in job:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    monkeypatch.setattr("time.time", lambda: submission.created - 30)
    run.record_start()

    assert Queue.read(preset).job_of(run.path) is None


def test_a_failed_run_speaks_for_itself_while_its_packmate_keeps_the_job(tmp_path, cluster, monkeypatch):
    preset, _, (bad, good) = submitted(tmp_path, seeds=2, packs=2, ids=["12"])
    jobs(cluster, ("12", "RUNNING", "None", "n1", "ours", "1:00"))
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    for run in (bad, good):
        run.record_start()
    bad.write_status({"state": "failed", "error": "NonFiniteLoss: kl became nan"})
    good.write_status({"state": "running"})
    q = Queue.read(preset)
    assert q.job_of(bad.path) is None and q.job_of(good.path) == ("running", "Slurm job 12 running on n1, starting")

    again = new_submission(preset, "retry", [[bad.path]])
    object.__setattr__(again, "jobs", ("13",))
    again.write()
    jobs(cluster, ("12", "RUNNING", "None", "n1", "ours", "1:00"), ("13", "RUNNING", "None", "n2", "ours", "0:01"))
    assert Queue.read(preset).job_of(bad.path) == ("running", "Slurm job 13 running on n2, starting")


def test_a_run_that_failed_before_its_start_was_recorded_has_failed_while_its_packmate_keeps_the_job(tmp_path, cluster):
    preset, _, (bad, good) = submitted(tmp_path, seeds=2, packs=2, ids=["12"])
    jobs(cluster, ("12", "RUNNING", "None", "n1", "ours", "1:00"))
    bad.write_status({"state": "failed", "error": "ImportError: libEGL"})  # as the pool does for a worker

    q = Queue.read(preset)
    assert q.job_of(bad.path) is None
    assert q.job_of(good.path) == ("running", "Slurm job 12 running on n1, starting")

    again = new_submission(preset, "retry", [[bad.path]])
    object.__setattr__(again, "jobs", ("13",))
    again.write()
    jobs(cluster, ("13", "RUNNING", "None", "n2", "ours", "0:01"))
    assert Queue.read(preset).job_of(bad.path) == ("running", "Slurm job 13 running on n2, starting")


def test_where_squeue_does_not_answer_a_submitted_run_is_not_submitted_again(tmp_path, cluster):
    preset, _, (run,) = submitted(tmp_path)
    (cluster / "down").touch()
    q = Queue.read(preset)
    state, why = q.job_of(run.path) or ("", "")

    assert state == "waiting" and "Slurm job 12_0, and squeue does not answer" in why
    assert f"move {os.path.relpath(preset / 'slurm')} away" in why
    assert [q.knows(job) for job in ("12_0", "12_1", "99")] == [None] * 3
    assert (cluster / "calls").read_text() == "x\n"  # asked once: an answer that does not come takes its time


def test_where_squeue_does_not_answer_a_run_that_may_be_submitted_is_not_submitted_again(tmp_path, cluster):
    preset, submission, (run,) = submitted(tmp_path, ids=[])  # its launcher was killed within sbatch
    (cluster / "down").touch()
    state, why = Queue.read(preset).job_of(run.path) or ("", "")

    assert state == "waiting" and f"perhaps in Slurm as {submission.name}, and squeue does not answer" in why


def test_a_run_that_has_failed_says_so_while_squeue_does_not_answer(tmp_path, cluster):
    preset, _, (run,) = submitted(tmp_path)
    run.write_status({"state": "failed", "error": "NonFiniteLoss: kl became nan"})
    (cluster / "down").touch()

    assert Queue.read(preset).job_of(run.path) is None


@pytest.mark.parametrize("ids", [["12_0"], []])
def test_runs_copied_to_a_machine_without_slurm_are_not_waiting(tmp_path, monkeypatch, ids):
    preset, _, (run,) = submitted(tmp_path, ids=ids)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert Queue.read(preset).job_of(run.path) is None


def test_a_launcher_cut_off_after_sbatch_is_made_good_by_the_jobs_name(tmp_path, cluster):
    preset, submission, runs = submitted(tmp_path, seeds=12, ids=[])
    rows = [
        (f"40_{i}", "PENDING", "Priority", "", submission.name, "0:00") for i in (3, 11, 0, 1, 2, 10, 4, 5, 6, 7, 8, 9)
    ]
    jobs(cluster, *rows, ("41", "PENDING", "Priority", "", "planet-dmc6-other", "0:00"))
    q = Queue.read(preset)

    assert [q.job_of(run.path) for run in runs] == [
        ("waiting", f"Slurm job 40_{i} pending (Priority)") for i in range(12)
    ]
    record = json.loads((submission.folder / "submission.json").read_text())
    assert record["jobs"] == [f"40_{i}" for i in range(12)]


def test_a_launcher_cut_off_after_sbatch_is_made_good_when_part_of_the_array_has_ended(tmp_path, cluster):
    preset, submission, runs = submitted(tmp_path, seeds=3, ids=[])
    jobs(cluster, ("40_2", "PENDING", "Priority", "", submission.name, "0:00"))

    assert Queue.read(preset).job_of(runs[2].path) == ("waiting", "Slurm job 40_2 pending (Priority)")
    record = json.loads((submission.folder / "submission.json").read_text())
    assert record["jobs"] == ["40_0", "40_1", "40_2"]


def test_a_single_job_whose_launcher_was_cut_off_is_found_too(tmp_path, cluster):
    preset, submission, (run,) = submitted(tmp_path, ids=[])
    jobs(cluster, ("40", "RUNNING", "None", "n1", submission.name, "0:01"))

    assert Queue.read(preset).job_of(run.path) == ("running", "Slurm job 40 running on n1, starting")


def test_jobs_whose_launcher_was_cut_off_get_their_work(tmp_path, cluster):
    preset, submission, runs = submitted(tmp_path, seeds=3, packs=2, ids=[])
    packs = [[str(run.path) for run in runs[:2]], [str(runs[2].path)]]
    for name, paths in zip("ba", packs, strict=True):
        DelayedSubmission(Pack(mps=True), *paths).dump(submission.folder / f"{name}.pkl")  # as submitit before sbatch
    jobs(cluster, ("40_1", "PENDING", "Priority", "", submission.name, "0:00"))
    Queue.read(preset)

    works = [DelayedSubmission.load(submission.folder / f"40_{i}_submitted.pkl") for i in range(2)]
    assert [list(work.args) for work in works] == packs and works[0].function == Pack(mps=True)


def test_a_job_that_sbatch_refused_is_not_taken_for_one_that_failed(tmp_path, cluster):
    preset, submission, (run,) = submitted(tmp_path, ids=[])
    jobs(cluster, ("4_0", "FAILED", "BadConstraints", "", submission.name, "0:00"))

    assert Queue.read(preset).job_of(run.path) is None


def test_a_launcher_cut_off_before_sbatch_submitted_nothing(tmp_path, cluster):
    preset, _, (run,) = submitted(tmp_path, ids=[])

    assert Queue.read(preset).job_of(run.path) is None


def test_of_two_submissions_the_one_that_lives_counts(tmp_path, cluster):
    preset, _, (run,) = submitted(tmp_path, ids=["7"])
    submitted(tmp_path, ids=["9"])
    jobs(cluster, ("7", "RUNNING", "None", "n1", "ours", "0:00"), ("9", "CANCELLED", "None", "", "ours", "0:00"))

    assert Queue.read(preset).job_of(run.path) == ("running", "Slurm job 7 running on n1, starting")


def test_all_runs_of_a_pack_have_its_job(tmp_path, cluster):
    preset, _, runs = submitted(tmp_path, seeds=4, packs=2)
    jobs(
        cluster,
        ("12_0", "PENDING", "Priority", "", "ours", "0:00"),
        ("12_1", "PENDING", "Priority", "", "ours", "0:00"),
    )
    q = Queue.read(preset)

    assert [(q.job_of(run.path) or ("", ""))[1].split()[2] for run in runs] == ["12_0", "12_0", "12_1", "12_1"]


def test_a_job_of_another_name_under_the_same_id_is_not_ours(tmp_path, cluster):
    """The cluster was set up anew, say, and counts from 1 again."""
    preset, _, (run,) = submitted(tmp_path)
    jobs(cluster, ("12_0", "RUNNING", "None", "n1", "somebody", "0:00"))
    q = Queue.read(preset)

    assert q.job_of(run.path) is None and q.knows("12_0") is False
    again, _, _ = submitted(tmp_path, ids=["7"])
    jobs(cluster, ("12_0", "RUNNING", "None", "n1", "somebody", "0:00"), ("7", "PENDING", "Priority", "", "ours", "0"))
    assert Queue.read(again).job_of(run.path) == ("waiting", "Slurm job 7 pending (Priority)")


def test_the_jobs_of_whoever_submitted_are_asked_for(tmp_path, cluster, monkeypatch):
    """A colleague's look at a shared folder of runs; one owner is unknown here, as in a copy from elsewhere."""
    preset, submission, (run,) = submitted(tmp_path)
    me, owner = 4_000_000, submission.folder.stat().st_uid
    (cluster / "squeue").write_text(
        f'#!/bin/sh\necho "$@" > {cluster}/asked\ncase "$1" in *{me}*) cat {cluster}/jobs;; esac\n'
    )
    jobs(cluster, ("12_0", "PENDING", "Priority", "", "ours", "0:00"))
    monkeypatch.setattr(os, "getuid", lambda: me)
    q = Queue.read(preset)
    q.owners.add(4_000_001)

    assert q.job_of(run.path) == ("waiting", "Slurm job 12_0 pending (Priority)")
    assert (cluster / "asked").read_text().split()[0] == f"--user={owner},{me}"


def test_who_may_only_look_finds_jobs_without_writing_it_down(tmp_path, cluster, monkeypatch):
    preset, submission, (run,) = submitted(tmp_path, ids=[])
    jobs(cluster, ("40", "PENDING", "Priority", "", submission.name, "0:00"))
    before = (submission.folder / "submission.json").read_text()
    monkeypatch.setattr(os, "access", lambda path, mode: path != submission.folder)

    assert Queue.read(preset).job_of(run.path) == ("waiting", "Slurm job 40 pending (Priority)")
    assert (submission.folder / "submission.json").read_text() == before


def test_knowing_about_our_jobs_costs_no_further_call(tmp_path, cluster):
    preset, _, _ = submitted(tmp_path, seeds=2)
    jobs(cluster, ("12_0", "RUNNING", "None", "n1", "ours", "0:00"))
    q = Queue.read(preset)

    assert (q.knows("12_0"), q.knows("12_1")) == (True, False)
    assert (cluster / "calls").read_text() == "x\n"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "Expecting property name"),
        ('{"format": 1}', "it lacks suite, created, packs, jobs"),
        ({"format": 2}, "format must be 1, got 2"),
        ({"suite": 3}, "suite must be a name, got 3"),
        ({"created": "now"}, "created must be a time in seconds, got 'now'"),
        ({"packs": [3]}, "packs must be a list of lists of run directories"),
        ({"jobs": ["1", "2"]}, "jobs must be a list of 1 Slurm ids, one for each pack, or empty"),
        ({"jobs": [1]}, "jobs must be a list of 1 Slurm ids"),
    ],
)
def test_a_damaged_record_is_no_obstacle_and_is_named(tmp_path, cluster, capsys, text, what):
    preset, submission, _ = submitted(tmp_path)
    file = submission.folder / "submission.json"
    file.write_text(text if isinstance(text, str) else json.dumps({**json.loads(file.read_text()), **text}))

    assert Queue.read(preset).submissions == []
    error = capsys.readouterr().err
    assert error.startswith(f"warning: {file} is damaged ({what}") and f"move {submission.folder} away" in error


def test_one_launcher_at_a_time_submits(tmp_path):
    import fcntl

    with queue.locked(tmp_path), (tmp_path / "slurm" / ".lock").open("w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_launcher_that_waits_for_another_says_so(tmp_path, capsys):
    def submit():
        with queue.locked(tmp_path):
            pass

    second, said = threading.Thread(target=submit), ""
    with queue.locked(tmp_path):
        second.start()
        deadline = time.monotonic() + 30
        while not said and time.monotonic() < deadline:
            said = capsys.readouterr().err
            time.sleep(0.01)
        assert said == f"another launcher is submitting in {tmp_path}; waiting for it\n" and second.is_alive()
    second.join(30)
    assert not second.is_alive()


def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch, capsys):
    def refuse(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with queue.locked(tmp_path):
        assert "two launchers at once are not kept apart" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("Slurmctld(primary) at h is UP", True),
        ("is DOWN", False),
        ("scontrol: fatal: Could not establish a configuration source", None),  # installed, and no more
    ],
)
def test_slurm_answers_where_its_controller_is_up(tmp_path, monkeypatch, said, answer):
    for name in ("sbatch", "srun", "scontrol"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{said}' | tee /dev/stderr\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    assert queue.answers() is answer


def test_the_longest_array_is_what_the_cluster_says(tmp_path, monkeypatch):
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 'MaxArraySize            = 1001'\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    assert queue.max_array_size() == 1001

"""What a Slurm cluster knows of our runs: submissions on record, and one call of squeue. No accounting is needed.

    runs/<preset>/slurm/<uid>/submission.json   one per sbatch, written before it; its uid is in the job's name
                             /*_log.out, .err    what the jobs printed

A submission without job ids is one whose launcher was cut off at the wrong moment: the queue is asked for its name.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.executors.pool import last_line, tail
from benchmarks.plan import State
from planet import lease
from planet.run_dir import RunDir, read_json, write_atomic

FORMAT = 1
ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
     "TIMEOUT")
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """One sbatch: a job, or an array of jobs, of one or more runs each."""

    folder: Path
    suite: str
    created: float
    packs: tuple[tuple[str, ...], ...]
    """Run directories relative to runs/<preset>, one tuple per job."""
    jobs: tuple[str, ...] = ()
    """Slurm's ids, `12` or `12_3`, one per pack; empty: not known whether sbatch took it."""

    @property
    def name(self) -> str:
        """The jobs' name, by which the queue can be asked for them."""
        return f"planet-{self.suite}-{self.folder.name}"

    def log(self, job: str) -> Path:
        """Return where a job's errors go."""
        return self.folder / f"{job}_0_log.err"

    def output(self, job: str) -> Path:
        return self.folder / f"{job}_0_log.out"

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {**asdict(self), "folder": None, "format": FORMAT}
        write_atomic(self.folder / "submission.json", (json.dumps(content, indent=1) + "\n").encode())


def answers() -> bool | None:
    """Return whether a Slurm controller can be reached from here; None where this machine belongs to no cluster."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        return None
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if ping.returncode == 0 and "is UP" in ping.stdout:
        return True
    # Slurm's words where it is installed and no more.
    return None if "not establish a configuration source" in ping.stderr else False


def max_array_size() -> int | None:
    """Return the cluster's MaxArraySize (the first index that is too big), or None where it does not answer."""
    try:
        answer = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer.stdout, re.MULTILINE)
    return int(match.group(1)) if match else None


def folder_of(preset_folder: Path) -> Path:
    """Return where a preset's submissions live."""
    return preset_folder / "slurm"


def new_submission(preset_folder: Path, suite: str, packs: Sequence[Sequence[Path]]) -> Submission:
    """Return a submission under a name that no other has; writes nothing."""
    uid = f"{time.strftime('%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    return Submission(
        folder=folder_of(preset_folder) / uid,
        suite=suite,
        created=time.time(),
        packs=tuple(tuple(os.path.relpath(path, preset_folder) for path in pack) for pack in packs),
    )


def warn(problem: str) -> None:
    """Tell of a damaged record without stopping for it."""
    print(f"warning: {problem}", file=sys.stderr)


def read_submissions(preset_folder: Path, damaged: Callable[[str], None] = warn) -> list[Submission]:
    """Return all submissions on record, the oldest first.

    Args:
        damaged: is told of a record that cannot be read, which is then left out; its runs' leases still protect them.
    """
    found: list[Submission] = []
    for path in sorted(folder_of(preset_folder).glob("*/submission.json")):
        advice = (
            f"its jobs are not known here (squeue has them as planet-*-{path.parent.name}): bring it back from a copy, "
            f"or move {path.parent} away"
        )
        try:
            data = read_json(path, advice)
            if data is None:
                continue
            if problem := _wrong(data):
                raise ValueError(f"{path} is damaged ({problem}); {advice}")
        except ValueError as error:
            damaged(str(error))
            continue
        found.append(
            Submission(
                folder=path.parent,
                suite=data["suite"],
                created=data["created"],
                packs=tuple(map(tuple, data["packs"])),
                jobs=tuple(data["jobs"]),
            )
        )
    return sorted(found, key=lambda s: s.created)


def _wrong(data: Mapping[str, Any]) -> str | None:
    """Return what is missing from a submission's record or of a wrong kind; None: nothing."""
    missing = [name for name in ("format", "suite", "created", "packs", "jobs") if name not in data]
    if missing:
        return f"it lacks {', '.join(missing)}"
    packs, jobs = data["packs"], data["jobs"]
    if data["format"] != FORMAT:
        return f"format must be {FORMAT}, got {data['format']!r}"
    if not isinstance(data["suite"], str):
        return f"suite must be a name, got {data['suite']!r}"
    if not isinstance(data["created"], int | float):
        return f"created must be a time in seconds, got {data['created']!r}"
    if not isinstance(packs, list) or not all(map(_are_texts, packs)):
        return "packs must be a list of lists of run directories"
    if not _are_texts(jobs) or len(jobs) not in (0, len(packs)):
        return f"jobs must be a list of {len(packs)} Slurm ids, one for each pack, or empty"
    return None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


@contextmanager
def locked(preset_folder: Path) -> Iterator[None]:
    """Hold the right to submit for this folder: two launchers at once must not both submit a run.

    Where the file system knows no locks (Lustre mounted without them), a warning takes their place.
    """
    folder = folder_of(preset_folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another launcher is submitting in {preset_folder}; waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            print(f"warning: {folder}: no file locks here, two launchers at once are not kept apart", file=sys.stderr)
        yield


@dataclass(frozen=True, slots=True)
class Job:
    """One job as squeue prints it."""

    id: str
    state: str
    reason: str
    node: str
    name: str
    elapsed: str

    @property
    def live(self) -> bool:
        return self.state not in ENDED


def squeue(owners: Iterable[int] = ()) -> dict[str, Job] | None:
    """Return our jobs by id, those that ended a few minutes ago included; None where squeue does not answer.

    Args:
        owners: user ids whose jobs are asked for as well.
    """
    others = {owner for owner in owners if _is_user(owner)} - {os.getuid()}  # squeue takes none that is not known here
    whose = f"--user={','.join(map(str, sorted({os.getuid(), *others})))}" if others else "--me"
    format_ = "%i|%T|%r|%N|%j|%M"
    try:
        answer = subprocess.run(
            ["squeue", whose, "--noheader", "--array", "--states=all", f"--format={format_}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode != 0:
        return None
    rows = [line.split("|") for line in answer.stdout.splitlines()]
    return {row[0]: Job(*row) for row in rows if len(row) == 6}


def _is_user(number: int) -> bool:
    try:
        return bool(pwd.getpwuid(number))
    except KeyError:
        return False


@dataclass(slots=True)
class Queue:
    """The submissions of one runs/<preset> and, when first needed, what squeue says."""

    preset_folder: Path
    submissions: list[Submission] = field(default_factory=list)
    owners: set[int] = field(default_factory=set)
    """Whose submissions they are: the folder may be shared by several users."""
    _of: dict[str, list[tuple[Submission, str]]] = field(default_factory=dict)
    _jobs: list[dict[str, Job] | None] = field(default_factory=list)

    @classmethod
    def read(cls, preset_folder: Path, damaged: Callable[[str], None] = warn) -> Queue:
        """Read the records; asks squeue only if there is a submission that lacks its job ids.

        Args:
            damaged: is told of a record that cannot be read, which is then left out.
        """
        queue = cls(preset_folder)
        on_record = read_submissions(preset_folder, damaged)
        for submission in on_record:
            with suppress(FileNotFoundError):  # refused and taken back just now
                queue.owners.add(submission.folder.stat().st_uid)
        for submission in on_record:
            if not submission.jobs:
                submission = queue._find(submission)
            if submission is None:
                continue
            queue.submissions.append(submission)
            for pack, job in zip(submission.packs, submission.jobs or [""] * len(submission.packs), strict=True):
                for name in pack:
                    queue._of.setdefault(name, []).append((submission, job))
        return queue

    @property
    def jobs(self) -> dict[str, Job] | None:
        if not self._jobs:
            self._jobs.append(squeue(self.owners))
        return self._jobs[0]

    def _find(self, submission: Submission) -> Submission | None:
        """Return the submission with its job ids, as it is while squeue is silent, or None if nothing of it is there.

        One id tells them all: elements of an array that ended a while ago are no longer in squeue's answer. What has
        ended did nothing: it had no work yet, or was refused (Slurm shows that as a failed job for a while).
        """
        if self.jobs is None:
            return submission
        id_ = next((job.id for job in self.jobs.values() if job.name == submission.name and job.live), None)
        if id_ is None:
            return None
        array = id_.partition("_")[0]
        ids = [f"{array}_{i}" for i in range(len(submission.packs))] if "_" in id_ else [id_]
        found = Submission(
            folder=submission.folder, suite=submission.suite, created=submission.created, packs=submission.packs,
            jobs=tuple(ids),
        )  # fmt: skip
        if os.access(submission.folder, os.W_OK):  # who only looks on mends nothing
            _hand_over(found)
            found.write()
        return found

    def submission_of(self, path: Path) -> tuple[Submission, str] | None:
        """Return the submission and job that count for a run: one that lives, else the last ("": id not known)."""
        entries = self._of.get(os.path.relpath(path, self.preset_folder), [])
        if not entries:
            return None
        return next(
            (entry for entry in reversed(entries) if (job := self._job(*entry)) is not None and job.live), entries[-1]
        )

    def _job(self, submission: Submission, id_: str) -> Job | None:
        """Return what squeue has under this id if it has the submission's name.

        A cluster set up anew counts from 1 again, and another one may share the file system: ids alone mislead.
        """
        job = (self.jobs or {}).get(id_)
        return job if job is not None and job.name == submission.name else None

    def knows(self, job: str) -> bool | None:
        """Return whether Slurm still has a job, without another call for jobs of ours."""
        jobs = self.jobs
        if jobs is None:
            return None  # it did not answer: asking for each job would take half a minute each
        ours = [self._job(submission, job) for submission in self.submissions if job in submission.jobs]
        if ours:
            return any(found is not None and found.live for found in ours)
        return jobs[job].live if job in jobs else _ask_once(job)

    def job_of(self, path: Path) -> tuple[State, str] | None:
        """Return what the queue says of a run that is not done and whose lease nobody alive holds; None: nothing.

        A job that ended before the run began (a bad set-up line, a missing file system) makes the run `failed`.
        """
        entry = self.submission_of(path)
        if entry is None:
            return None
        submission, id_ = entry
        job = self._job(submission, id_)
        if self.jobs is None:
            if shutil.which("squeue") is None:
                return None  # the runs were copied to a machine without Slurm
            if failed_in(path, id_) or _failed_since(path, submission.created):
                return None  # it says so itself
            away = os.path.relpath(folder_of(self.preset_folder))
            which = f"Slurm job {id_}" if id_ else f"perhaps in Slurm as {submission.name}"
            return "waiting", f"{which}, and squeue does not answer (to go on without that cluster, move {away} away)"
        if job is not None and job.live:
            if job.state == "PENDING":
                return "waiting", f"Slurm job {id_} pending ({job.reason})"
            if failed_in(path, id_) or _failed_since(path, submission.created):
                return None  # the job goes on with the others of its pack, not with this one
            return "running", f"Slurm job {id_} {job.state.lower()} on {job.node}, starting"
        if _started_in(path, id_, submission.created) or _failed_since(path, submission.created):
            return None
        if job is not None and job.state == "CANCELLED" and not submission.log(id_).exists():
            return None
        if not submission.log(id_).exists() and not submission.output(id_).exists():
            if job is None or job.state == "CANCELLED":
                return None  # cancelled while it waited, or Slurm lost it: nothing was tried, nothing has failed
            return (
                "failed",
                f"Slurm job {id_} ended ({job.state}) without a word; is the folder on a shared file system?",
            )
        state = f" ({job.state})" if job is not None else ""
        line = _last_words(submission.log(id_)) or last_line(submission.output(id_)) or "it printed nothing"
        return "failed", f"Slurm job {id_} ended{state} before the run began: {line}"


def _last_words(log: Path) -> str:
    """Return the last line of a job's errors, if there is one from before srun's `task 0: Exited with exit code 1`."""
    lines = [line.strip() for line in tail(log).splitlines() if line.strip() and not line.startswith("srun: ")]
    return lines[-1] if lines else last_line(log)


def _hand_over(submission: Submission) -> None:
    """Give each job its work under the name that it looks for (a minute long), which the launcher had no time for.

    As a copy: that launcher may still be alive, and about to rename the same file.
    """
    from submitit.helpers import DelayedSubmission  # takes its time, and is hardly ever needed

    for file in submission.folder.glob("*.pkl"):
        if file.name.endswith(("_submitted.pkl", "_result.pkl")):
            continue
        path = DelayedSubmission.load(file).args[0]
        pairs = zip(submission.packs, submission.jobs, strict=True)
        job = next(job for pack, job in pairs if path.endswith(f"/{pack[0]}"))
        target = submission.folder / f"{job}_submitted.pkl"
        if not target.exists():
            write_atomic(target, file.read_bytes())


@functools.cache
def _ask_once(job: str) -> bool | None:
    return lease.squeue_knows(job)


def _started_in(path: Path, job: str, submitted: float) -> bool:
    """Return whether the run's last start was in this job, or after its submission.

    The time alone does not tell: a node's clock may be behind the one of the machine that submitted.
    """
    start = _last_start(path)
    return start is not None and (_job(start) == job or start["time"] >= submitted)


def failed_in(path: Path, job: str | None) -> bool:
    """Return whether the run failed, and this Slurm job was the last to start it."""
    start = _last_start(path)
    if job is None or start is None or _job(start) != job:
        return False
    return (RunDir(path).status() or {}).get("state") == "failed"


def _failed_since(path: Path, submitted: float) -> bool:
    """Return whether the run has failed since its submission, be it before its start was recorded (an import error,
    a full disk)."""
    status = RunDir(path).status() or {}
    return status.get("state") == "failed" and status.get("heartbeat", 0) >= submitted


def _last_start(path: Path) -> dict[str, Any] | None:
    starts = (read_json(path / "run.json") or {}).get("starts", [])
    return starts[-1] if starts else None


def _job(start: dict[str, Any]) -> str | None:
    ids = start.get("slurm", {})
    task = ids.get("array_task_id")
    return f"{ids.get('array_job_id')}_{task}" if task else ids.get("job_id")

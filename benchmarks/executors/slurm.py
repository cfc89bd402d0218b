"""Submits runs to Slurm through submitit: one array per kind of resources, and returns at once.

Everything that leans on submitit's inside (the text of the sbatch script) is in `_Executor`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.helpers import clean_env

from benchmarks.executors import machine, profile
from benchmarks.executors.job import Pack
from benchmarks.executors.pool import python_path
from benchmarks.executors.profile import Profile
from benchmarks.executors.queue import Submission, folder_of, new_submission
from benchmarks.plan import Item

KEPT_IN_CLEAN_ENVIRONMENT = (
    "SLURM_CONF", "SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS", "SBATCH_RESERVATION", "SBATCH_CONSTRAINT"
)  # fmt: skip
"""submitit's clean_env drops all of Slurm's variables; these are the user's, not an outer job's."""
DEFAULT_MAX_ARRAY = 1001
BESIDE_REPLAY_GB = 6.0
"""Of a run on a GPU node: CUDA's host memory, libraries, batches, page cache of the episodes."""


class SubmissionFailed(OSError):
    """sbatch refused; the message is Slurm's."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What becomes one sbatch: packs of runs that ask for the same resources."""

    profile: Profile
    packs: tuple[tuple[Path, ...], ...]
    mem_gb: float


def batches(items: Sequence[Item], asked: Profile, *, max_array: int | None = None) -> list[Batch]:
    """Return the runs in packs and the packs in batches: GPU runs, then runs that need none, each cut to arrays."""
    longest = asked.max_array or max_array or DEFAULT_MAX_ARRAY
    result: list[Batch] = []
    needs_none = [item.run.config.planner.dynamics == "simulator" for item in items]
    for on_cpu in (False, True):
        chosen = [item.run for item, none in zip(items, needs_none, strict=True) if none == on_cpu]
        if not chosen:
            continue
        wanted = profile.for_cpu(asked) if on_cpu else asked
        size = wanted.runs_per_gpu * max(1, profile.num_gpus(wanted))
        mem = wanted.mem_gb_per_run or max(_memory_gb(run.config) for run in chosen)
        packs = [tuple(run.path for run in chosen[i : i + size]) for i in range(0, len(chosen), size)]
        result += [Batch(wanted, tuple(packs[i : i + longest]), mem) for i in range(0, len(packs), longest)]
    return result


def _memory_gb(config: Any) -> float:
    return float(-(-(machine.run_bytes(config) - machine.BYTES_BESIDE_REPLAY) // 2**30)) + BESIDE_REPLAY_GB


def parameters(batch: Batch, name: str) -> dict[str, Any]:
    """Return the batch's resources under the names of submitit's SlurmExecutor."""
    p = batch.profile
    runs = max(len(pack) for pack in batch.packs)
    gpus = profile.num_gpus(p)
    wanted: dict[str, Any] = {
        "job_name": name,
        "partition": p.partition,
        "account": p.account,
        "qos": p.qos,
        "time": profile.minutes(p.time),
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": p.cpus_per_run * runs,
        "mem_per_gpu": p.mem_per_gpu,
        "mem_per_cpu": p.mem_per_cpu,
        "gres": p.gres,
        "constraint": p.constraint,
        "exclude": p.exclude,
        "nodelist": p.nodelist,
        "comment": p.comment,
        "mail_type": p.mail_type,
        "mail_user": p.mail_user,
        "signal_delay_s": p.signal_seconds,
        "array_parallelism": p.max_parallel or len(batch.packs),
        "setup": [line for text in p.setup for line in _checked(text)],
        # Between Slurm 22.05 and 23.02 srun does not take it from sbatch: the step would have one core.
        "srun_args": [f"--cpus-per-task={p.cpus_per_run * runs}", *p.srun_args],
    }
    if not (p.mem_per_gpu or p.mem_per_cpu):
        wanted["mem"] = f"{round(batch.mem_gb * runs * 1024)}M"
    if gpus and not p.gres:
        wanted["gpus_per_node"] = p.gpus
    extra: dict[str, Any] = {"requeue": True}
    if p.reservation:
        extra["reservation"] = p.reservation
    if p.nice:
        extra["nice"] = p.nice
    given = {key: value for key, value in wanted.items() if value not in ("", None, [])}
    # submitit would send --wckey=submitit, which sites that enforce wckeys refuse.
    return {**given, "wckey": None, "additional_parameters": {**extra, **p.extra}}


def _checked(line: str) -> list[str]:
    """Return shell lines that run one set-up line and end the job if it fails (bash alone would go on)."""
    return ["{", line, "} || { echo " + shlex.quote(f"set-up line failed: {line}") + " >&2; exit 1; }"]


class _Executor(SlurmExecutor):
    """submitit's executor, able to write its script where there is no Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def script(self, jobs: int) -> str:
        """Return the sbatch script of a submission of this many jobs, to the letter."""
        # One job is no array for submitit.
        self.parameters.update({"map_count": jobs} if jobs > 1 else {})
        text = self._make_submission_file_text(self._submitit_command_str, "script")
        self.parameters.pop("map_count", None)
        return text


def _executor(batch: Batch, submission: Submission) -> _Executor:
    python = batch.profile.python or shlex.quote(sys.executable)
    # A signal in the second before submitit's handler is up would kill the job, and a killed job is not requeued.
    shielded = f'bash -c \'trap "" USR2; exec "$@"\' bash {python}'
    # A run may hit its time limit any number of times; Pack gives up when it makes no progress.
    executor = _Executor(folder=submission.folder, max_num_timeout=1_000_000, python=shielded)
    executor.update_parameters(**parameters(batch, submission.name))
    return executor


def script(batch: Batch, preset_folder: Path, suite: str) -> str:
    """Return the sbatch script that would be submitted; the name and folder stand for those of a submission."""
    placeholder = dataclasses.replace(
        new_submission(preset_folder, suite, batch.packs), folder=folder_of(preset_folder) / "SUBMISSION"
    )
    return _executor(batch, placeholder).script(len(batch.packs))


def ask_cluster(text: str) -> tuple[bool, str]:
    """Return whether the cluster accepts a script, and what it says, without submitting it (`sbatch --test-only`)."""
    with _environment():
        answer = subprocess.run(
            ["sbatch", "--test-only"], input=text, capture_output=True, text=True, timeout=60, check=False
        )
    return answer.returncode == 0, (answer.stderr or answer.stdout).strip()


def submit(batch: Batch, preset_folder: Path, suite: str) -> Submission:
    """Submit one batch; the record is on disk before sbatch is asked, and completed after.

    Raises:
        SubmissionFailed: sbatch refused, or its answer was lost; nothing of the batch is in the queue then.
    """
    submission = new_submission(preset_folder, suite, batch.packs)
    submission.write()
    executor = _executor(batch, submission)
    work = Pack(mps=batch.profile.mps)
    # Another Python, in a container perhaps, has its own copy of the code.
    ours = {} if batch.profile.python else {"PYTHONPATH": python_path()}
    try:
        # submitit also prints what sbatch said, which the error has.
        with _environment(), contextlib.redirect_stderr(io.StringIO()), executor.batch():
            os.environ.update(ours)
            jobs = [executor.submit(work, *map(str, pack)) for pack in batch.packs]
    # RuntimeError: submitit's FailedJobError, FailedSubmissionError
    except (subprocess.CalledProcessError, RuntimeError) as error:
        _withdraw(submission)
        raise SubmissionFailed(f"sbatch refused: {error}") from error
    done = dataclasses.replace(submission, jobs=tuple(job.job_id for job in jobs))
    done.write()
    return done


def _withdraw(submission: Submission) -> None:
    """Take back what sbatch may have submitted all the same (its answer timed out), and the record with it.

    Slurm also keeps what it refused as a failed job of that name for a while. Where the controller is silent the
    record stays: the next launcher looks for the name.
    """
    try:
        with _environment():
            answer = subprocess.run(
                ["scancel", f"--name={submission.name}"], capture_output=True, timeout=60, check=False
            )
    except (OSError, subprocess.TimeoutExpired):
        return
    if answer.returncode == 0:
        shutil.rmtree(submission.folder, ignore_errors=True)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Without what an outer job left in the environment (sweeps may be launched from inside an allocation)."""
    kept = {name: os.environ[name] for name in KEPT_IN_CLEAN_ENVIRONMENT if name in os.environ}
    with clean_env():
        os.environ.update(kept)
        yield

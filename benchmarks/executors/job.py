"""What a Slurm job executes: the runs of one pack as worker processes, saved together, requeued once.

Only run directories travel to a job; the code is the installed package's. submitit calls `Pack` inside the job and on
Slurm's signal its handler asks `checkpoint` and requeues the job. Its handler would act between any two bytecodes;
here it waits until the loop below comes round, workers have saved and the table of workers is whole.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from submitit.helpers import DelayedSubmission

from benchmarks.executors.machine import MAX_THREADS, cores, visible_gpus
from benchmarks.executors.pool import Ended, Pool, Slot
from benchmarks.executors.queue import failed_in
from planet.lease import slurm_job_id
from planet.run_dir import STATUS_FIELDS, RunDir

MAX_FRUITLESS = 5
FRUITLESS_SECONDS = 60.0
"""A job requeued so often, after at least so long each time, without any progress is given up."""


class RunsFailed(RuntimeError):
    """One or more runs of the job failed; Slurm shall show the job as failed too."""


class Interrupted(RuntimeError):
    """The job was told to end (scancel, or preemption without a user signal); its runs are saved."""


@dataclass(slots=True)
class Pack:
    """The callable submitted, with the runs as arguments; every start of the job calls it again with all of them."""

    mps: bool = False
    fruitless: int = 0

    def __call__(self, *paths: str) -> list[tuple[str, str]]:
        """Run all to their end; return (run, outcome) of each.

        A requeued job leaves alone what failed in it: that is started again by a retry, in a job of its own.

        Raises:
            RunsFailed, Interrupted.
        """
        began = time.monotonic()
        before: list[Ended] = []
        at: dict[Path, tuple[int, ...]] = {}
        for path in map(Path, paths):
            try:
                if failed_in(path, slurm_job_id()):
                    before.append(Ended(path, "failed", str((RunDir(path).status() or {}).get("error"))))
                else:
                    at[path] = _progress(path)
            except (OSError, ValueError) as error:  # a damaged run: the others begin
                before.append(Ended(path, "failed", str(error)))
        runs = list(at)
        with _Signals() as signals, mps(self.mps) as environment:
            with Pool(slots=job_slots(len(runs), environment), waiting=deque(runs)) as pool:
                while True:
                    _, ended = pool.step()
                    for result in ended:
                        print(f"{result.outcome}: {result.path}: {result.message}", flush=True)
                    if pool.finished:
                        break
                    if (signals.requeue or signals.terminate) and not pool.stopping:
                        print("asked to stop: every run saves", flush=True)
                        pool.stop()
                    pool.wait(0.2)
            if signals.requeue and any(result.outcome == "stopped" for result in pool.ended):
                self._count_fruitless(runs, [*at.values()], time.monotonic() - began)
                signals.hand_on()  # to submitit: it calls checkpoint(), requeues the job and exits
        return _verdict([*before, *pool.ended])

    def checkpoint(self, *paths: str) -> DelayedSubmission:
        """Return what the requeued job executes: the same again, for what is done is done."""
        return DelayedSubmission(Pack(self.mps, self.fruitless), *paths)

    def _count_fruitless(self, runs: list[Path], before: list[tuple[int, ...]], seconds: float) -> None:
        # Not by the checkpoints' times: every stop writes one.
        if [_progress(path) for path in runs] != before:
            self.fruitless = 0
        elif seconds >= FRUITLESS_SECONDS:
            self.fruitless += 1
        if self.fruitless < MAX_FRUITLESS:
            return
        error = f"stopped {self.fruitless} times by Slurm without getting any further; ask for a longer time limit"
        for path in runs:
            run = RunDir(path)
            status = run.status() or {}
            if status.get("state") not in ("done", "failed"):
                fields = {name: status[name] for name in STATUS_FIELDS if name in status}
                run.write_status({**fields, "state": "failed", "error": error, "traceback": None})
        raise RunsFailed(error)


def _progress(path: Path) -> tuple[int, ...]:
    status = RunDir(path).status() or {}
    return tuple(status.get(name) or 0 for name in ("updates", "episode", "evals_done", "agent_steps"))


def _verdict(ended: list[Ended]) -> list[tuple[str, str]]:
    failed = [result for result in ended if result.outcome == "failed"]
    stopped = [result for result in ended if result.outcome == "stopped"]
    if failed:
        lines = "\n".join(f"{result.path}: {result.message}" for result in failed)
        raise RunsFailed(f"{len(failed)} of {len(ended)} runs failed:\n{lines}")
    if stopped:
        raise Interrupted(f"{len(stopped)} of {len(ended)} runs were stopped; they are saved and can be resumed")
    return [(str(result.path), result.outcome) for result in ended]


class _Signals:
    """SIGUSR2 (time limit, preemption) and SIGTERM (scancel, preemption) as flags, in place of submitit's handlers."""

    def __init__(self) -> None:
        self.requeue = False
        self.terminate = False
        self._before: dict[int, signal.Handlers | object] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGUSR2, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR2:
            self.requeue = True
        else:
            self.terminate = True

    def hand_on(self) -> None:
        handler = self._before[signal.SIGUSR2]
        if callable(handler):
            handler(signal.SIGUSR2, None)


def job_slots(runs: int, environment: Mapping[str, str] | None = None) -> list[Slot]:
    """Return one slot per run of this job: its GPUs dealt out in turn, its cores shared."""
    gpus = visible_gpus()
    total = int(os.environ.get("SLURM_CPUS_PER_TASK") or cores())
    threads = str(max(1, min(MAX_THREADS, total // max(1, runs))))
    common = {**(environment or {}), "OMP_NUM_THREADS": threads, "LP_NUM_THREADS": "0"}
    return [
        Slot(str(i), {**common, **({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {})}) for i in range(runs)
    ]


@contextmanager
def mps(wanted: bool) -> Iterator[dict[str, str]]:
    """Run a private MPS daemon while the pack runs; yields the environment its clients need.

    The daemon does not get CUDA_VISIBLE_DEVICES: it would count its clients' GPUs anew from 0, and a client that is
    told "2" would see none. The clients' own numbers then mean what they mean without MPS, for drawing too.
    """
    if not wanted:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="planet-mps-") as folder:
        environment = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        whole = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | environment
        subprocess.run(["nvidia-cuda-mps-control", "-d"], env=whole, check=True, timeout=60)
        try:
            yield environment
        finally:
            subprocess.run(["nvidia-cuda-mps-control"], input=b"quit\n", env=whole, check=False, timeout=60)

"""A pool of slots that executes runs as worker processes: what the local executor and a Slurm job have in common.

Each run is `python -m planet.train RUN_DIR` in a session of its own, so that a Ctrl-C in the terminal reaches only the
launcher, and one run's crash no other run. The pool judges a run by how its worker ended; what the worker could not
say itself (killed, import error) is written into the run's status.json here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from planet import lease
from planet.run_dir import STATUS_FIELDS, RunDir
from planet.stop_signal import EXIT_DONE, EXIT_HELD, EXIT_STOPPED

ROOT = Path(__file__).resolve().parents[2]
Outcome = Literal["done", "failed", "stopped", "held"]
MAX_DEATHS = 3
"""A worker killed by a signal (out of memory, say) is started again until it dies so often without new checkpoint."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one worker at a time: what its environment adds to ours."""

    name: str
    environment: Mapping[str, str]


@dataclass(slots=True)
class Worker:
    path: Path
    slot: Slot
    process: subprocess.Popen[bytes]
    output_start: int
    """Length of the output file when this worker began."""
    killed_by: str = ""
    """The signal that ended this run's worker before, where it is started again for that."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended here, in one line."""

    path: Path
    outcome: Outcome
    message: str


@dataclass(slots=True)
class Deaths:
    count: int = 0
    checkpoint: float = 0.0
    signal: str = ""


def python_path() -> str:
    """Return the PYTHONPATH by which other processes import the code that this one runs, whichever is installed."""
    others = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != str(ROOT)]
    return os.pathsep.join([str(ROOT), *others])


def worker_environment() -> dict[str, str]:
    """Return this environment with our own code first, before a checkout in which a worker happens to be started."""
    return {**os.environ, "PYTHONPATH": python_path(), "PYTHONSAFEPATH": "1"}


def train_command(path: Path) -> list[str]:
    """Return what every worker executes."""
    return [sys.executable, "-m", "planet.train", str(path)]


@dataclass(slots=True)
class Pool:
    """Runs waiting, running and ended. Call `step()` until it is `finished`; `with` lets no worker outlive an error."""

    slots: Sequence[Slot]
    command: Callable[[Path], list[str]] = train_command
    waiting: deque[Path] = field(default_factory=deque)
    workers: list[Worker] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    stopping: bool = False
    _deaths: dict[Path, Deaths] = field(default_factory=dict)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        # Only after an error are there any: they save, and nobody is left at work whom nobody watches.
        self.stop()
        for worker in self.workers:
            worker.process.wait()

    @property
    def finished(self) -> bool:
        return not self.workers and (self.stopping or not self.waiting)

    def step(self) -> tuple[list[Worker], list[Ended]]:
        """Collect workers that ended and fill free slots; return the workers begun and the runs ended."""
        ended: list[Ended] = []
        for worker in list(self.workers):
            code = worker.process.poll()
            if code is None:
                continue
            self.workers.remove(worker)
            try:
                result = self._judge(worker, code)
            except (OSError, ValueError) as error:  # its folder is gone, full or damaged: the others go on
                result = Ended(worker.path, "failed", str(error))
            if result is not None:
                ended.append(result)
        begun: list[Worker] = []
        busy = {worker.slot.name for worker in self.workers}
        for slot in self.slots:
            if self.stopping or not self.waiting:
                break
            if slot.name in busy:
                continue
            path = self.waiting.popleft()
            try:
                begun.append(self._begin(path, slot))
            except OSError as error:
                ended.append(Ended(path, "failed", f"cannot be begun: {error}"))
        self.workers += begun
        self.ended += ended
        return begun, ended

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than until a worker ends."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if any(worker.process.poll() is not None for worker in self.workers):
                return
            time.sleep(min(0.05, max(0.0, deadline - time.monotonic())))

    def stop(self) -> None:
        """Begin no run any more and ask all workers to save and stop."""
        self.stopping = True
        self._signal(signal.SIGUSR2)

    def kill(self) -> None:
        """End all workers at once; what their checkpoints hold stays."""
        self.stopping = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for worker in self.workers:
            try:
                # The whole group: a worker's own children must not outlive it. Those ignore SIGUSR2 or die of it.
                if number == signal.SIGKILL:
                    os.killpg(worker.process.pid, number)
                else:
                    worker.process.send_signal(number)
            except ProcessLookupError:
                continue

    def _begin(self, path: Path, slot: Slot) -> Worker:
        with RunDir(path).output.open("ab") as output:
            process = subprocess.Popen(
                self.command(path),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**worker_environment(), "PYTHONUNBUFFERED": "1", **slot.environment},
                start_new_session=True,
            )
            killed_by = self._deaths.get(path, Deaths()).signal
            return Worker(path=path, slot=slot, process=process, output_start=output.tell(), killed_by=killed_by)

    def _judge(self, worker: Worker, code: int) -> Ended | None:
        """Return how the run ended, or None if it was put back to be started again."""
        path, run = worker.path, RunDir(worker.path)
        if code == EXIT_DONE:
            return Ended(path, "done", "done")
        if code == EXIT_STOPPED:
            return Ended(path, "stopped", "stopped; everything is saved")
        if code == EXIT_HELD:
            return Ended(path, "held", last_line(run.output, worker.output_start) or "held by another process")
        status = run.status()
        if status is not None and status["state"] == "failed" and status["pid"] == worker.process.pid:
            return Ended(path, "failed", str(status.get("error")))
        if code < 0:
            name = signal.Signals(-code).name
            if self.stopping:
                return Ended(path, "stopped", f"ended by {name}; goes on from its last checkpoint")
            deaths = self._deaths.setdefault(path, Deaths())
            saved = checkpoint_time(run)
            deaths.count = 1 if saved > deaths.checkpoint else deaths.count + 1
            deaths.checkpoint, deaths.signal = saved, name
            if deaths.count < MAX_DEATHS:
                self.waiting.appendleft(path)
                return None
            cause = " (out of memory?)" if -code == signal.SIGKILL else ""
            return self._failed(run, f"killed by {name} {deaths.count} times without a new checkpoint{cause}", worker)
        if lost := run.lost_checkpoint():  # refused; its files stay as they are
            return Ended(path, "failed", lost)
        return self._failed(run, last_line(run.output, worker.output_start) or f"exit code {code}, no output", worker)

    def _failed(self, run: RunDir, error: str, worker: Worker) -> Ended:
        """Write down a failure of which the worker itself could not tell."""
        held = lease.look(run.path)
        if held is not None and not held.process_dead and held.why_alive() is not None:
            return Ended(run.path, "held", f"{error}; the run belongs to {held.owner} now")
        before = run.status() or {}
        fields = {name: before[name] for name in STATUS_FIELDS if name in before}
        text = tail(run.output, start=worker.output_start)
        run.write_status({**fields, "state": "failed", "error": error, "traceback": text or None})
        lease.release_dead(run.path)  # else it would count as held for as long as this Slurm job lives
        return Ended(run.path, "failed", error)


def checkpoint_time(run: RunDir) -> float:
    """Return when the newest checkpoint was written, 0 if there is none: how the outside sees progress."""
    try:
        return max((entry.stat().st_mtime for entry in os.scandir(run.checkpoints)), default=0.0)
    except FileNotFoundError:
        return 0.0


def tail(path: Path, *, start: int = 0, size: int = 4000) -> str:
    """Return at most the last `size` bytes of a text file, none from before `start`."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - size))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def last_line(path: Path, start: int = 0) -> str:
    """Return the last line that says anything, from `start` on."""
    lines = [line.strip() for line in tail(path, start=start).splitlines() if line.strip()]
    return lines[-1] if lines else ""

"""Who may write to a run directory: at most one process at a time, on any node, also after it died without a word.

    lease/3.json      the third owner; a file is complete from its first moment and its content never changes,
                      but for `released` at the end. Its modification time is the owner's heartbeat.

The owner is the highest number. Taking over means creating the next number, which a file system does for one process
only (a hard link to a finished file, atomic on NFS too): no lock that could itself be left behind. An owner that was
frozen and wakes up finds a higher number, or its own file gone, and must stop: `check()` before each write that counts.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

SILENT_SECONDS = 600.0
"""An owner elsewhere that nobody can ask about counts as gone after this long without a heartbeat."""
HEARTBEAT_SECONDS = 15.0
FOLDER = "lease"


class LeaseHeld(RuntimeError):
    """Another process owns the run."""


class LeaseLost(RuntimeError):
    """The run was taken over; nothing may be written any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """The process a lease was given to."""

    token: str
    host: str
    boot: str
    """Boot id and pid namespace: a pid means nothing beyond them."""
    pid: int
    process_start: int
    """Clock ticks from boot to the process's start: tells a pid from the same pid used again."""
    slurm_job: str | None
    """Slurm's id as squeue takes it: `12`, or `12_3` of an array."""
    slurm_restarts: int
    time: float
    released: bool = False

    def __str__(self) -> str:
        job = f", Slurm job {self.slurm_job}" if self.slurm_job else ""
        return f"pid {self.pid} on {self.host}{job}"


@functools.cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()


def process_start(pid: int) -> int | None:
    """Return when a process of this machine started (clock ticks since boot); None if it is dead or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def slurm_job_id() -> str | None:
    """Return this process's Slurm job as squeue names it, or None outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def this_process() -> Owner:
    """Return an owner record for the process that calls."""
    return Owner(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        boot=_boot(),
        pid=os.getpid(),
        process_start=process_start(os.getpid()) or 0,
        slurm_job=slurm_job_id(),
        slurm_restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        time=time.time(),
    )


def squeue_knows(job: str) -> bool | None:
    """Return whether Slurm still has this job (waiting, running or ending); None where it cannot be asked."""
    try:
        answer = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%T"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode == 0:
        return bool(answer.stdout.strip())
    return False if "invalid job id" in answer.stderr.lower() else None


def _newest(folder: Path) -> int:
    try:
        return max(
            (int(name[:-5]) for name in os.listdir(folder) if name[:-5].isdigit() and name.endswith(".json")), default=0
        )
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _read(path: Path) -> Owner | None:
    """Return whose the lease is; None: no such file (any more). Raises ValueError where it is damaged."""
    try:
        return Owner(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} does not say who owns the run ({error}); if nothing is at work on that run, remove this file"
        ) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """What a lease folder says: the last owner and the seconds since its last heartbeat."""

    number: int
    owner: Owner
    silent_seconds: float

    @property
    def here(self) -> bool:
        """Whether the owner is, or was, a process of this machine."""
        return self.owner.boot == _boot() and self.owner.host == socket.gethostname()

    @property
    def process_dead(self) -> bool:
        """Whether the owner was a process of this machine and is no more. (Its Slurm job may still come back.)"""
        return self.here and process_start(self.owner.pid) != self.owner.process_start

    def why_alive(self, knows: Callable[[str], bool | None] = squeue_knows) -> str | None:
        """Return why the owner must be taken for alive, or None if it is certainly or very probably gone."""
        owner = self.owner
        if owner.released:
            return None
        if self.here and not self.process_dead:
            return "its process runs on this host"
        if self.here and owner.slurm_job in (None, slurm_job_id()):
            return None  # no job of its own will come back for the run: we are in the allocation it was started in
        if owner.slurm_job is not None:
            known = knows(owner.slurm_job)
            if known is not None:
                return f"Slurm still has its job {owner.slurm_job}" if known else None
        if self.silent_seconds < SILENT_SECONDS:
            return f"it was heard {self.silent_seconds:.0f} s ago (it counts as gone after {SILENT_SECONDS:.0f} s)"
        return None


def look(run: Path) -> Holding | None:
    """Return who holds, or last held, the lease of a run directory; None if nobody ever did."""
    folder = run / FOLDER
    for _ in range(3):  # the file may be replaced by a newer one between listing and reading
        number = _newest(folder)
        if number == 0:
            return None
        path = folder / f"{number}.json"
        try:
            owner, beat = _read(path), path.stat().st_mtime
        except FileNotFoundError:
            continue
        if owner is not None:
            return Holding(number=number, owner=owner, silent_seconds=max(0.0, time.time() - beat))
    return None


def release_dead(run: Path) -> None:
    """Give back the run of a process of this machine that is no more and will not be started again by its job."""
    held = look(run)
    if held is not None and held.process_dead and not held.owner.released:
        _write_released(run / FOLDER / f"{held.number}.json", held.owner)


def _write_released(path: Path, owner: Owner) -> None:
    draft = path.parent / f".{owner.token}"
    draft.write_text(json.dumps({**asdict(owner), "released": True}))
    os.replace(draft, path)


class Lease:
    """The right to write to one run directory, kept alive by a thread until `release()`."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self._path = path
        self.owner = owner
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, run: Path, knows: Callable[[str], bool | None] = squeue_knows) -> Lease:
        """Take the lease of a run directory.

        The owner's own Slurm job, started again, takes it back at once; anyone else only when the owner is gone:
        squeue does not know its job, or without Slurm its pid is dead on this host, or it has been silent for
        10 minutes.

        Raises:
            LeaseHeld: the owner lives, or another process was faster.
        """
        folder = run / FOLDER
        folder.mkdir(exist_ok=True)
        me = this_process()
        held = look(run)
        if held is not None and not _same_job_again(held.owner, me):
            reason = held.why_alive(knows)
            if reason is not None:
                raise LeaseHeld(f"{run} belongs to {held.owner}: {reason}; wait for it or cancel it")
        number = held.number + 1 if held else 1
        path = folder / f"{number}.json"
        draft = folder / f".{me.token}"
        with draft.open("w") as file:
            json.dump(asdict(me), file)
            file.flush()
            os.fsync(file.fileno())  # a name without content, after a power cut, would say that somebody owns the run
        try:
            os.link(draft, path)
        except FileExistsError:
            raise LeaseHeld(f"{run} was taken by another process just now") from None
        except PermissionError as error:
            raise OSError(
                f"{folder}: this file system has no hard links, which a lease needs; choose --runs"
            ) from error
        finally:
            draft.unlink()
        if _newest(folder) != number:
            # Our look was old: others have come and gone since. The number was free only because they cleaned up.
            path.unlink(missing_ok=True)
            raise LeaseHeld(f"{run} was taken by another process just now")
        for name in os.listdir(folder):
            if name.endswith(".json") and name[:-5].isdigit() and int(name[:-5]) < number:
                (folder / name).unlink(missing_ok=True)
        return cls(path, me)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _mine(self) -> bool:
        owner = _read(self._path)
        return (
            owner is not None and owner.token == self.owner.token and _newest(self._path.parent) <= int(self._path.stem)
        )

    def check(self) -> None:
        """Return if the run is still ours.

        Raises:
            LeaseLost: it was taken over; nothing may be written.
        """
        if not self._mine():
            holder = look(self._path.parent.parent)
            by = f" by {holder.owner}" if holder else ""
            raise LeaseLost(f"{self._path.parent.parent} was taken over{by}; this process stops without writing")

    def release(self) -> None:
        """Give the run back, so that the next start needs no waiting. The record of the last owner stays."""
        self._stop.set()
        self._thread.join(timeout=5)
        if self._mine():
            _write_released(self._path, self.owner)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self._path)
            except FileNotFoundError:
                return  # taken over; the next check() says so
            except OSError:
                continue  # a file system's hiccup: silence is what the other side must see


def _same_job_again(owner: Owner, me: Owner) -> bool:
    """Whether the owner is certainly gone because `me` is of the same Slurm job.

    Either this is a later start of the job (Slurm ends one before it begins the next), or the owner was an earlier
    process of this start, and is dead.
    """
    if me.slurm_job is None or owner.slurm_job != me.slurm_job:
        return False
    same_machine = owner.boot == me.boot and owner.host == me.host
    return me.slurm_restarts > owner.slurm_restarts or (
        same_machine and process_start(owner.pid) != owner.process_start
    )

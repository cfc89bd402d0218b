"""This machine as a place for runs: its GPUs, cores and memory, and how many runs fit. Never imports torch."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.executors.pool import Slot
from planet import tasks
from planet.config import Config
from planet.gl import NO_GPU

MAX_THREADS = 8
"""Threads of one run at most: a choice, not measured."""
BYTES_BESIDE_REPLAY = 1_200_000_000
"""Of one worker: libraries, weights, batches, planner."""


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs this process may use, as CUDA_VISIBLE_DEVICES takes them; empty where there is none."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is not None:
        return tuple(part.strip() for part in asked.split(",") if part.strip() not in NO_GPU)
    if shutil.which("nvidia-smi") is None:
        return ()
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ()
    return tuple(answer.stdout.split()) if answer.returncode == 0 else ()


def cores() -> int:
    """Return the number of processor cores this process may use."""
    return len(os.sched_getaffinity(0))


def free_bytes() -> int:
    """Return the memory that can be had without swapping: of the machine, or of its container."""
    from planet.replay import available_memory  # numpy is loaded here

    return available_memory()


@dataclass(frozen=True, slots=True)
class Sweep:
    """A launcher of this user that is at work on this machine."""

    pid: int
    runs: frozenset[Path]
    """All that it was given, ended ones too."""


def _sweeps_folder() -> Path:
    """Return the folder with a file for each launcher at work, locked for as long as it lives."""
    folder = Path(tempfile.gettempdir()) / f"planet-sweeps-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ValueError(f"{folder} belongs to somebody else; set TMPDIR to a folder of your own")
    return folder


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read_sweeps(folder: Path) -> list[Sweep]:
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    told = json.load(file)
                    found.append(Sweep(told["pid"], frozenset(map(Path, told["runs"]))))
                else:  # of a launcher that was killed
                    path.unlink()
        except FileNotFoundError:  # its launcher has just ended
            continue
    return found


def sweeps() -> list[Sweep]:
    """Return the launchers at work."""
    folder = _sweeps_folder()
    with _one_at_a_time(folder):
        return _read_sweeps(folder)


@contextmanager
def at_work(runs: Sequence[Path]) -> Iterator[list[Sweep]]:
    """Say that this process has these runs at work on this machine; yields what others of this user say so."""
    folder = _sweeps_folder()
    with _one_at_a_time(folder):  # two that begin together see each other
        others = _read_sweeps(folder)
        file = tempfile.NamedTemporaryFile("w", suffix=".json", dir=folder, delete=False)  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump({"pid": os.getpid(), "runs": list(map(str, runs))}, file)
        file.flush()
    with file:
        try:
            yield others
        finally:
            Path(file.name).unlink(missing_ok=True)


def run_bytes(config: Config) -> int:
    """Return about how much memory a run needs at its end: the replay of all its pictures, and the rest."""
    return replay_bytes(config) + BYTES_BESIDE_REPLAY


def replay_bytes(config: Config) -> int:
    """Return how much memory the pictures of all episodes take."""
    episodes = config.schedule.seed_episodes + config.schedule.train_episodes
    if config.planner.dynamics == "simulator":
        return 0
    frames = sum(
        episodes * (config.env.episode_env_steps // (config.env.action_repeat or task.action_repeat) + 1)
        for task in tasks.members(config.task)
    )
    return frames * 3 * 64 * 64


def slots(
    configs: Sequence[Config],
    *,
    gpus: Sequence[str],
    max_parallel: int | None = None,
    runs_per_gpu: int = 1,
) -> tuple[list[Slot], str]:
    """Return the slots for these runs and a sentence on how their number came about.

    With GPUs: each GPU `runs_per_gpu` times. Without: a slot per core, fewer where memory would not do. Cores are
    shared out among the slots as threads.
    """
    total = cores()
    if gpus:
        places = [gpu for _ in range(runs_per_gpu) for gpu in gpus]
        why = f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''} x {runs_per_gpu} run{'s' * (runs_per_gpu > 1)}"
    else:
        places, why = [""] * total, f"{total} core{'s' if total > 1 else ''}"
    limit, free, need = len(places), free_bytes(), max(map(run_bytes, configs), default=0)
    if max_parallel is not None:
        # Asked for: no second guess. More slots than places share GPUs and cores.
        places = [places[i % len(places)] for i in range(max_parallel)]
        limit, why = max_parallel, f"--max-parallel {max_parallel}"
    elif need and free // need < limit:
        limit = max(1, free // need)
        why = f"memory: a run needs up to {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    limit = max(1, min(limit, len(configs)))
    threads = str(max(1, min(MAX_THREADS, total // limit)))
    environment = {"OMP_NUM_THREADS": threads, "LP_NUM_THREADS": "0"}
    return [
        Slot(name=str(i), environment={**environment, **({"CUDA_VISIBLE_DEVICES": place} if place else {})})
        for i, place in enumerate(places[:limit])
    ], why

"""Where a run came from: commit, uncommitted changes, versions, machine, Slurm ids. Reads the world, decides nothing.

Imports neither torch nor a simulator: package versions come from the installed metadata, the GPU from `nvidia-smi`.
What does not change within a process (git, versions) is looked up once.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parent
PACKAGES = ("torch", "numpy", "dm_control", "mujoco", "submitit")
PATCHED_PATHS = ("planet", "benchmarks", "ablations", "pyproject.toml", "constraints.txt")
"""What of the working tree can change a run; only this makes a commit dirty and goes into the patch."""
MAX_PATCH_BYTES = 2_000_000
SLURM_IDS = (
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_PARTITION",
    "SLURMD_NODENAME",
    "SLURM_CLUSTER_NAME",
)


def _run(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> bytes | None:
    """Return the command's output, or None where it is missing, fails or takes longer than 20 s."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def code_hash(source: Path = SOURCE) -> str:
    """Return 12 hex digits over the names and contents of the package's Python files: what really runs.

    Unlike the commit it also exists for an installed package, and stands still when only a README changes.
    """
    digest = hashlib.sha256()
    for path in sorted(source.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def git_state(repository: Path = SOURCE.parent) -> dict[str, Any]:
    """Return commit, `dirty` (uncommitted changes that could move a run) and the `patch` of those changes.

    `patch` is bytes for `git apply`, new files included, empty when clean; None when it is over
    `MAX_PATCH_BYTES`. Outside a git working tree all three are None.
    """
    nothing: dict[str, Any] = {"commit": None, "dirty": None, "patch": None}
    top = _run(["git", "rev-parse", "--show-toplevel"], cwd=repository)
    if top is None or Path(os.fsdecode(top.strip())) != repository.resolve():
        return nothing  # no git, or the package lies inside somebody else's repository
    commit = _run(["git", "rev-parse", "HEAD"], cwd=repository)
    index = _run(["git", "rev-parse", "--git-path", "index"], cwd=repository)
    if commit is None or index is None:
        return nothing
    paths = [name for name in PATCHED_PATHS if (repository / name).exists()]
    with tempfile.TemporaryDirectory() as scratch:
        # New files show in a diff only once they are in an index: a copy of it, so that the user's stays as it is.
        copy = Path(scratch) / "index"
        # With its time: git looks again at files that are no older than their index, and only at those.
        shutil.copy2(repository / os.fsdecode(index.strip()), copy)
        env = {**os.environ, "GIT_INDEX_FILE": str(copy)}
        _run(["git", "add", "--intent-to-add", "--", *paths], cwd=repository, env=env)
        patch = _run(["git", "diff", "--binary", "HEAD", "--", *paths], cwd=repository, env=env)
    if patch is None:
        return {**nothing, "commit": commit.decode().strip()}
    return {
        "commit": commit.decode().strip(),
        "dirty": bool(patch),
        "patch": patch if len(patch) <= MAX_PATCH_BYTES else None,
    }


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that can move a result; None for one not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def gpus() -> list[dict[str, str]]:
    """Return name, driver and UUID of every NVIDIA GPU that `nvidia-smi` lists; empty where there is none."""
    text = _run(["nvidia-smi", "--query-gpu=name,driver_version,uuid", "--format=csv,noheader"])
    rows = [line.split(", ") for line in (text or b"").decode(errors="replace").splitlines()]
    return [{"name": row[0], "driver": row[1], "uuid": row[2]} for row in rows if len(row) == 3]


def processor() -> str:
    """Return the processor's model name as Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def slurm_ids() -> dict[str, str]:
    """Return the Slurm ids of this process under short names (`job_id`, `restart_count`, ...); empty outside."""
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    names = {key: key.removeprefix("SLURM_").removeprefix("SLURMD_").lower() for key in SLURM_IDS}
    return {names[key]: os.environ[key] for key in SLURM_IDS if key in os.environ}


@functools.cache
def of_code() -> dict[str, Any]:
    """Return commit, dirty flag, patch, code hash and versions; looked up once per process."""
    return {**git_state(), "code_hash": code_hash(), "versions": versions()}


def of_machine() -> dict[str, Any]:
    """Return host, platform, processor, cores, GPUs and Slurm ids of this process."""
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpus": gpus(),
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "slurm": slurm_ids(),
    }

"""`python -m planet.doctor`: say whether this machine can run the suite, and what to install where it cannot.

Imports nothing but the standard library up front, so that it can explain a missing torch, mujoco or rich. Each GL back
end is tried in a process of its own, since a process can only ever use one. Exit code 1: something must be mended.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from planet import gl

INSTALL = "pip install -e . -c constraints.txt"
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table. `problem`: nothing runs until it is mended; `note`: worth knowing."""

    name: str
    state: Literal["ok", "note", "problem"]
    text: str


def python() -> list[Check]:
    """The interpreter (pip has made sure of the version)."""
    return [Check("python", "ok", f"{platform.python_version()} at {sys.executable}")]


def packages(requirements: Sequence[str] | None = None) -> list[Check]:
    """Every package the project requires, by its metadata; nothing is imported."""
    if requirements is None:
        try:
            requirements = importlib.metadata.requires("planet-suite") or []
        except importlib.metadata.PackageNotFoundError:
            return [Check("packages", "problem", f"the project itself is not installed: {INSTALL}")]
    versions: list[str] = []
    missing: list[str] = []
    for requirement in requirements:
        if "extra ==" in requirement:
            continue
        name = re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return [Check("packages", "problem", f"missing: {', '.join(missing)}; {INSTALL}")]
    return [Check("packages", "ok", ", ".join(versions))]


def simulator() -> list[Check]:
    """Whether dm_control and mujoco go together."""
    try:
        from planet.envs import check_simulator

        versions = check_simulator()
    except (ImportError, RuntimeError) as error:
        return [Check("simulator", "problem", str(error))]
    return [Check("simulator", "ok", f"dm_control {versions['dm_control']} with mujoco {versions['mujoco']}")]


def torch() -> list[Check]:
    """Whether torch starts, and what it computes on."""
    try:
        import torch as library

        from planet import hardware
    except (ImportError, OSError) as error:
        return [Check("torch", "problem", f"torch does not start ({error}); {INSTALL}")]
    device = library.device("cuda:0" if library.cuda.is_available() else "cpu")
    found = hardware.describe(device)
    bfloat16 = "with" if hardware.has_bfloat16(device) else "without"
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    checks = [Check("processor", "ok", f"{found['cpu']}, {cores} cores for this process")]
    if device.type == "cuda":
        names = [library.cuda.get_device_name(i) for i in range(library.cuda.device_count())]
        text = f"{', '.join(names)}, {found['gpu_memory_gib']} GiB, {bfloat16} bfloat16"
        checks.append(Check("gpu", "ok", text))
    elif named := hardware.named_gpus():
        text = (
            f"CUDA_VISIBLE_DEVICES is {named!r}, but torch {library.__version__} sees no GPU ({cuda_problem(library)})"
        )
        checks.append(Check("gpu", "problem", text))
    elif has_nvidia_device():
        text = f"there is an NVIDIA device, but torch {library.__version__} cannot use it ({cuda_problem(library)})"
        checks.append(Check("gpu", "note", text))
    else:
        quick = "two" if hardware.has_bfloat16(device) else "four"
        text = f"none; the paper's sizes take days on a CPU ({bfloat16} bfloat16), --preset quick about {quick} hours"
        checks.append(Check("gpu", "note", text))
    return checks


def has_nvidia_device() -> bool:
    """Whether the driver shows a device, whatever torch makes of it."""
    return Path("/dev/nvidia0").exists() or bool(list(Path("/dev").glob("nvidia[0-9]*")))


def cuda_problem(library: object) -> str:
    """Why torch sees no GPU, as far as it can be told."""
    if getattr(getattr(library, "version", None), "cuda", None) is None:
        return "it is built for the CPU; install a CUDA build from https://pytorch.org"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides it"
    return "is the driver too old for it? nvidia-smi says which version it is"


# One process per back end: mean milliseconds per decision of cheetah run after a warm-up, and whether anything is seen.
_DRAW = """
import json, time
import numpy as np
from planet.config import EnvConfig
from planet.envs import make_env
from planet.tasks import TASKS

env = make_env(TASKS["cheetah_run"], EnvConfig())
picture = env.reset(0)
action = np.zeros(env.action_size, np.float32)
env.step(action)
begin = time.perf_counter()
for _ in range(20):
    env.step(action)
milliseconds = (time.perf_counter() - begin) / 20 * 1000
print(json.dumps({"renderer": env.renderer, "milliseconds": milliseconds, "blank": bool(picture.std() < 1)}))
"""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What drawing with one back end gave."""

    renderer: str = ""
    milliseconds: float = 0.0
    error: str = ""


def draw(backend: str) -> Drawn:
    """Draw with one back end in another process."""
    environment = {k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"} | {"MUJOCO_GL": backend}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _DRAW], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
    except subprocess.TimeoutExpired:
        return Drawn(error="no picture in five minutes")
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return Drawn(error=lines[-1] if lines else f"the process ended with code {done.returncode}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if answer["blank"]:
        return Drawn(error=f"{answer['renderer']} draws nothing but one colour")
    return Drawn(answer["renderer"], answer["milliseconds"])


def pictures(draw: Callable[[str], Drawn] = draw) -> list[Check]:
    """The back end a run would choose, and every one that can be had, each with a picture drawn and timed."""
    try:
        chosen = gl.check_backend()
    except (gl.MissingGL, ValueError) as error:
        return [Check("pictures", "problem", str(error))]
    checks: list[Check] = []
    for backend in dict.fromkeys((chosen, "egl", "osmesa")):
        drawn = draw(backend)
        mark = f"{backend} (chosen)" if backend == chosen else backend
        if drawn.error:
            checks.append(Check(mark, "problem" if backend == chosen else "note", drawn.error))
            continue
        text = f"{drawn.renderer}; {drawn.milliseconds:.1f} ms per decision and picture (cheetah run)"
        checks.append(Check(mark, "ok", text))
        if backend == chosen == "egl" and "llvmpipe" in drawn.renderer and has_nvidia_device():
            checks.append(
                Check(
                    mark,
                    "note",
                    "drawn in software though there is an NVIDIA device: its EGL library is missing (package "
                    "libnvidia-gl-<driver version>; in a container, NVIDIA_DRIVER_CAPABILITIES=all)",
                )
            )
    return checks


def memory() -> list[Check]:
    """Whether a paper-size replay fits."""
    try:
        from planet.replay import available_memory, memory_bytes
    except ImportError as error:
        return [Check("memory", "problem", f"{error}; {INSTALL}")]
    need, free = memory_bytes(1005 * 501, 6) + 4 * _GIB, available_memory()
    text = f"{free / _GIB:.1f} GiB available; a paper-size run takes up to {need / _GIB:.0f} GiB"
    return [Check("memory", "ok" if free >= need else "note", text)]


def runs_folder(runs: Path) -> list[Check]:
    """Whether runs can be written where they would go."""
    folder = runs.absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        text = f"cannot write to {folder} ({error.strerror}); choose another with --runs DIR"
        return [Check("runs", "problem", text)]
    free = shutil.disk_usage(folder).free
    text = f"{runs} can be written, {free / _GIB:.0f} GiB free; a paper-size run keeps up to 2.5 GiB"
    return [Check("runs", "ok" if free > 5 * _GIB else "note", text)]


def slurm() -> list[Check]:
    """Whether sweeps would go to a cluster."""
    if shutil.which("sbatch") is None:
        return [Check("slurm", "note", "no sbatch here: sweeps run on this machine (--executor local)")]
    version = _output("sbatch", "--version") or "sbatch is installed"
    partitions = _output("sinfo", "--noheader", "--format=%P")
    if not partitions:
        return [Check("slurm", "note", f"{version}, but no cluster answers: use --executor local")]
    return [Check("slurm", "ok", f"{version}, partitions {', '.join(partitions.split())}")]


def _output(*command: str) -> str:
    """What a command prints; empty where it fails or does not end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def examine(runs: Path) -> list[Check]:
    """Return all checks; drawing takes a few seconds per back end."""
    checks = [*python(), *packages(), *simulator(), *torch()]
    # Without the simulator nothing can be drawn, and the reason is in the table already.
    if all(check.state != "problem" for check in checks if check.name in ("packages", "simulator")):
        checks += pictures()
    return [*checks, *memory(), *runs_folder(runs), *slurm()]


def show(checks: Sequence[Check]) -> None:
    """Print the checks: a table in a terminal, one line each in a pipe, a log, or where rich is missing."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return _show_lines(checks)
    console = Console()
    if not console.is_terminal:
        return _show_lines(checks)
    table = Table(title="PlaNet on this machine", title_justify="left")
    for column in ("", "what", "found"):
        table.add_column(column, overflow="fold")
    colours = {"ok": "green", "note": "yellow", "problem": "bold red"}
    for check in checks:
        table.add_row(Text(check.state, colours[check.state]), Text(check.name), Text(check.text))
    console.print(table)


def _show_lines(checks: Sequence[Check]) -> None:
    for check in checks:
        print(f"{check.state:8} {check.name:12} {check.text}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 or, if something must be mended, 1."""
    parser = argparse.ArgumentParser(prog="python -m planet.doctor", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs would be written (default: runs)")
    checks = examine(parser.parse_args(argv).runs)
    show(checks)
    problems = [check for check in checks if check.state == "problem"]
    if problems:
        print(f"to mend: {', '.join(check.name for check in problems)}")
        return 1
    print("ready: python benchmarks/launch.py --suite dmc6 --seeds 5 --preset smoke")
    return 0


if __name__ == "__main__":
    sys.exit(main())

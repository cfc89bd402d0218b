"""Cluster profiles: what a site wants to be asked for, as a TOML file (slurm/*.toml) with every key checked."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planet.config import parse_toml

OURS = ("job-name", "output", "error", "array", "signal", "open-mode")
"""Options of sbatch by which runs are found again, saved and followed."""
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What one job asks for. Empty strings, zeros and empty lists are not sent to Slurm."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = "24:00:00"
    """Limit of one job as Slurm writes it (`30`: minutes, `24:00:00`, `2-12`). A run may take many jobs: before the
    limit it saves and is requeued."""
    gpus: str = "1"
    """GPUs per job: a count, or a kind and a count (`a100:1`); `0` for processors only."""
    gres: str = ""
    """In place of `gpus` where the site wants `gres` (`gpu:a100:1`)."""
    cpus_per_run: int = 4
    mem_gb_per_run: float = 0.0
    """Memory of one run; 0: worked out from the size of its replay. A job of K runs asks for K times as much."""
    mem_per_gpu: str = ""
    """In place of `mem_gb_per_run` where the site counts so (`64G`)."""
    mem_per_cpu: str = ""
    constraint: str = ""
    """`a100|h100`"""
    exclude: str = ""
    nodelist: str = ""
    reservation: str = ""
    comment: str = ""
    nice: int = 0
    mail_type: str = ""
    mail_user: str = ""
    runs_per_gpu: int = 1
    """Runs that share a GPU; `python -m benchmarks.packing` measures what pays."""
    max_parallel: int = 0
    """Jobs of one array at a time (`%N`); 0: no limit."""
    max_array: int = 0
    """Longest array the site accepts; 0: ask `scontrol show config`."""
    signal_seconds: int = 120
    """How long before the limit a job is told to save. Slurm looks twice a minute: not below 60 on a real cluster."""
    setup: tuple[str, ...] = ()
    """Shell lines before the run (modules, virtual environment, MUJOCO_GL). One that fails ends the job."""
    python: str = ""
    """Shell words that start Python on a node, for containers; empty: the Python that runs launch.py."""
    srun_args: tuple[str, ...] = ()
    mps: bool = False
    """Start a private MPS daemon in each job, for several runs per GPU."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Any other sbatch option: `{"core-spec" = 2, "exclusive" = true}`."""
    cpu: Mapping[str, Any] = field(default_factory=dict)
    """Keys of this list that differ for runs that need no GPU (planning in the true simulator)."""

    def __post_init__(self) -> None:
        minutes(self.time)
        num_gpus(self)
        for name in ("cpus_per_run", "runs_per_gpu"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("mem_gb_per_run", "max_parallel", "max_array", "signal_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if sum(map(bool, (self.mem_gb_per_run, self.mem_per_gpu, self.mem_per_cpu))) > 1:
            raise ValueError("only one of mem_gb_per_run, mem_per_gpu and mem_per_cpu can be given")
        for name, value in self.extra.items():
            if name.replace("_", "-") in OURS:
                raise ValueError(f"extra cannot have {name}: the launcher relies on what it sets itself; leave it out")
            if not isinstance(value, str | int | float) or value is False:
                raise ValueError(f"extra: {name} must be a string, a number, or true for a bare flag, got {value!r}")
        if minutes(self.time) * 60 <= self.signal_seconds:
            raise ValueError(
                f"signal_seconds must be less than the time limit ({self.time}), got {self.signal_seconds}: a job "
                "would be told to save before it has begun"
            )


def minutes(time: str) -> int:
    """Return a Slurm time limit in whole minutes, rounded up.

    Raises:
        ValueError: not one of Slurm's forms, or zero.
    """
    match = _TIME.fullmatch(time.strip())
    problem = ValueError(f"time must be like '30' (minutes), '24:00:00' or '2-12' (days-hours), got {time!r}")
    if match is None:
        raise problem
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, mins, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 1:
        hours, mins, seconds = 0, numbers[0], 0
    elif len(numbers) == 2:
        hours, mins, seconds = 0, *numbers
    else:
        hours, mins, seconds = numbers
    total = ((int(days or 0) * 24 + hours) * 60 + mins) * 60 + seconds
    if total <= 0:
        raise problem
    return -(-total // 60)


def num_gpus(profile: Profile) -> int:
    """Return how many GPUs a job asks for; 0 for none.

    Raises:
        ValueError: `gpus` or `gres` do not say a number.
    """
    text, name = (profile.gres, "gres") if profile.gres else (profile.gpus, "gpus")
    parts = text.split(":")
    if name == "gres" and parts[0] != "gpu":
        return 0
    if name == "gres" and len(parts) == 1:
        return 1
    if not parts[-1].isdigit():
        wanted = "'1' or 'a100:1'" if name == "gpus" else "'gpu:1' or 'gpu:a100:1'"
        raise ValueError(f"{name} must be like {wanted}, got {text!r}")
    return int(parts[-1])


def load(path: Path | None, changes: Mapping[str, Any] | None = None) -> Profile:
    """Return the profile in a file (None: the defaults) with some keys changed.

    `gpus` and `gres` say the same thing in two ways: a changed one takes the place of the other in the file.

    Raises:
        FileNotFoundError: no such file. ValueError: not TOML, or an unknown key or wrong value; the message names it.
    """
    data: dict[str, Any] = {}
    if path is not None:
        if not path.is_file():
            raise FileNotFoundError(f"no cluster profile {path}; examples are in slurm/")
        data = parse_toml(path.read_bytes(), str(path))
    source = str(path) if path else "--cluster-set"
    changes = changes or {}
    for given, where in ((data, source), (changes, "--cluster-set")):
        if "gpus" in given and "gres" in given:
            raise ValueError(f"{where}: give gpus or gres, not both")
    profile = _update(Profile(), data, source)
    _update(profile, profile.cpu, f"{source} [cpu]")  # its mistakes are found now, not with the first such run
    if "gpus" in changes:
        profile = dataclasses.replace(profile, gres="")
    elif changes.get("gres"):
        profile = dataclasses.replace(profile, gpus=Profile().gpus)
    profile = _update(profile, changes, "--cluster-set")
    # What is counted in GPUs has no meaning without one.
    return profile if num_gpus(profile) else dataclasses.replace(profile, mem_per_gpu="", mps=False)


def for_cpu(profile: Profile) -> Profile:
    """Return the profile for runs that need no GPU: no GPU asked for, and what [cpu] changes."""
    return _update(dataclasses.replace(profile, gpus="0", gres="", mem_per_gpu="", mps=False), profile.cpu, "[cpu]")


def _update(profile: Profile, changes: Mapping[str, Any], source: str) -> Profile:
    known = {f.name: f for f in dataclasses.fields(Profile)}
    hints = typing.get_type_hints(Profile)
    values: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; perhaps {close[0]}" if close else ""
            raise ValueError(f"{source}: no profile key {key!r}: known are {', '.join(known)}{hint}")
        values[key] = _parse(source, key, value, hints[key])
    try:
        return dataclasses.replace(profile, **values)
    except ValueError as error:
        raise ValueError(f"{source}: {error.args[0]}") from None


def _parse(source: str, key: str, value: Any, hint: Any) -> Any:
    wanted = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}.get(hint)
    if wanted is None:
        if typing.get_origin(hint) is tuple:
            lines = [value] if isinstance(value, str) else value
            if isinstance(value, str) and value.startswith("["):  # a list, unless it is a line like [ -d DIR ]
                with contextlib.suppress(ValueError):
                    lines = parse_toml(f"list = {value}".encode(), source)["list"]
            if isinstance(lines, list) and all(isinstance(line, str) for line in lines):
                return tuple(lines)
            raise ValueError(f"{source}: {key} must be a list of strings, got {value!r}")
        if isinstance(value, dict):
            return value
        raise ValueError(f"{source}: {key} must be a table, [{key}], got {value!r}")
    problem = ValueError(f"{source}: {key} must be {wanted}, got {value!r}")
    if hint is bool:
        parsed = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
        if isinstance(parsed, bool):
            return parsed
        raise problem
    if hint is str:
        # `time = 30` and `gpus = 1` are natural to write.
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise problem
        return str(value)
    if isinstance(value, bool):
        raise problem
    try:
        number = hint(value)
        fits = math.isfinite(number) and (isinstance(value, str) or number == value)
    except (TypeError, ValueError, OverflowError):
        raise problem from None
    if not fits:
        raise problem
    return number

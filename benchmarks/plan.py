"""From a suite, variants, tasks and seeds to runs, and what is to be done about each: the plan.

Pure planning: reads run directories, writes none, and imports neither torch nor a simulator. Every configuration
error of every run is found here, before anything starts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import variants
from benchmarks.suites import Cell
from benchmarks.variants import Variant
from planet import config as configs
from planet import lease, presets
from planet.config import Config, identity_hash
from planet.run_dir import RunDir, read_json, run_path, write_atomic

State = Literal["new", "resume", "waiting", "running", "done", "failed"]
STATES: tuple[State, ...] = ("new", "resume", "waiting", "running", "done", "failed")
FORMAT = 1
CUSTOM = "custom"
"""The plan of a sweep put together by hand."""
MAX_SEEDS = 10_000


class PlanError(ValueError):
    """The sweep cannot be planned; `problems` has one entry for each thing to mend."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run as planned."""

    preset: str
    variant: str
    """The directory's name: a variant, with its changed keys if there are any."""
    task: str
    seed: int
    config: Config
    question: str
    path: Path

    @property
    def name(self) -> str:
        return f"{self.variant}/{self.task}/seed_{self.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Same:
    """A cell of the sweep whose configuration equals another's: it is not run a second time."""

    variant: str
    task: str
    seed: int
    run: Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    suite: str
    preset: str
    folder: Path
    """runs/<preset>"""
    runs: tuple[Run, ...]
    same: tuple[Same, ...]

    @property
    def file(self) -> Path:
        return self.folder / "plans" / f"{self.suite}.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A run and what is to be done about it."""

    run: Run
    state: State
    why: str


def check_folder(path: Path, *, dry_run: bool = False) -> None:
    """Raise ValueError where a file is in the way of a folder for runs, or nothing can be written there.

    A dry run may look at a folder that belongs to somebody else.
    """
    there = next(p for p in (path, *path.parents) if p.exists())
    if not there.is_dir():
        raise ValueError(f"--runs must be a folder, or a name for a new one, but {there} is a file; choose another")
    if dry_run and there == path:
        return
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ValueError(
            f"--runs must be a folder that can be written, but nothing can be made in {there} ({error.strerror}); "
            "choose another"
        ) from None


def counted(number: int, noun: str) -> str:
    """Return `1 run`, `2 runs`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds meant by `5` (0..4), `2:6` (2..5) or `1,7` (those).

    Raises:
        ValueError: anything else, no seed at all, or more than `MAX_SEEDS`.
    """
    problem = ValueError(
        f"--seeds must be a count (5), a range (2:6, the end excluded) or a list (1,7), {MAX_SEEDS} seeds at most, "
        f"got {text!r}"
    )
    try:
        if "," in text:
            seeds = [int(part) for part in text.split(",") if part.strip()]
        elif ":" in text:
            start, end = text.split(":")
            seeds = range(int(start or 0), int(end))
        else:
            seeds = range(int(text))
    except ValueError:
        raise problem from None
    if not seeds or seeds[MAX_SEEDS:] or min(seeds) < 0:
        raise problem
    return tuple(dict.fromkeys(seeds))


def directory_name(variant: str, changes: Mapping[str, Any], config: Config) -> str:
    """Return the variant's directory name: `base+planner.candidates=500`.

    Keys in alphabetical order and values as the configuration holds them, so that `--set planner.candidates=5e2` is
    the same run; keys outside a run's identity are left out.
    """
    values = configs.flatten(config)
    parts = [f"{key}={_plain(values[key])}" for key in sorted(changes) if key not in configs.NOT_IDENTITY]
    return "+".join([variant, *parts])


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else configs.toml_value(value)


def expand(
    cells: Sequence[Cell],
    seeds: Sequence[int],
    *,
    preset: str,
    runs: Path,
    suite: str = CUSTOM,
    changes: Mapping[str, Any] | None = None,
) -> Plan:
    """Return the plan: every cell with every seed, each with its complete configuration.

    A cell that comes out equal to `base`, or to an earlier cell, becomes a `Same`.

    Raises:
        PlanError: everything that is wrong with any cell, or with a folder that is already there.
    """
    problems: dict[str, list[str]] = {}  # a mistake often concerns many cells: it is said once
    planned: dict[tuple[str, int], Run] = {}  # by seed and the hash of everything else
    same: dict[tuple[str, str, int], Same] = {}
    for cell in cells:
        try:
            variant = _variant(cell.variant)
            merged = {**cell.changes, **(changes or {})}
            config = presets.resolve(cell.task, preset=preset, ablation=variant.overrides, changes=merged)
            base = _unchanged("base", cell.task, preset)
            unchanged = _unchanged(cell.variant, cell.task, preset)
        except (KeyError, ValueError, FileNotFoundError) as error:
            problems.setdefault(str(error.args[0]), []).append(f"{cell.variant} on {cell.task}")
            continue
        name = directory_name(variant.name, merged, config)
        if len(name) > 200:
            problems.setdefault("too many changed keys for a folder's name; put them in an ablation file", []).append(
                name
            )
            continue
        identity = identity_hash(config)
        # One agent for all tasks is a variant by its task alone; base means one agent per task.
        is_base = not variant.task and identity == identity_hash(base)
        if is_base:
            variant_of_run, question = "base", variants.BASE.question
        else:  # changes that say in other words what the variant says make no other run
            same_as_variant = identity == identity_hash(unchanged)
            variant_of_run, question = variant.name if same_as_variant else name, variant.question
        for seed in seeds:
            run = planned.get((identity, seed))
            if run is None:
                run = planned[identity, seed] = Run(
                    preset=preset,
                    variant=variant_of_run,
                    task=config.task,
                    seed=seed,
                    config=dataclasses.replace(config, seed=seed),
                    question=question,
                    path=run_path(runs, preset, variant_of_run, config.task, seed),
                )
            if run.variant != name:
                same[name, run.task, seed] = Same(variant=name, task=run.task, seed=seed, run=run)
    if problems:
        raise PlanError([f"{text} ({_some(cells)})" for text, cells in problems.items()])
    return Plan(
        suite=suite, preset=preset, folder=runs / preset, runs=tuple(planned.values()), same=tuple(same.values())
    )


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


@functools.cache
def _variant(name: str) -> Variant:
    return variants.load(name)


@functools.cache
def _unchanged(variant: str, task: str, preset: str) -> Config:
    """Return a variant's configuration without further changes."""
    return presets.resolve(task, preset=preset, ablation=_variant(variant).overrides)


def examine(
    plan: Plan,
    *,
    job_of: Callable[[Path], tuple[State, str] | None] = lambda path: None,
    knows: Callable[[str], bool | None] = lease.squeue_knows,
) -> list[Item]:
    """Return what is to be done about each run.

    Args:
        job_of: what a cluster's queue says of a run directory: waiting, running or failed to start, and why; None for
            nothing. knows: whether Slurm still has a job.

    Raises:
        PlanError: folders that hold another configuration, are damaged, or hold a run without its run.json.
    """
    items: list[Item] = []
    problems: list[str] = []
    for run in plan.runs:
        try:
            record = RunDir(run.path).record()
            if record is None and (lost := lost_record(run.path)):
                raise ValueError(lost)
            if record is not None and record["config_hash"] != identity_hash(run.config):
                # Makes nothing: the configuration differs.
                RunDir.open(run.path)
                RunDir.create(run.path, run.config, preset=run.preset, variant=run.variant)
            status = RunDir(run.path).status() if record is not None else None
            state, why = state_of(run.path, status, job_of=job_of, knows=knows)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        items.append(Item(run=run, state=state, why=why))
    if problems:
        raise PlanError(problems)
    return items


def lost_record(path: Path) -> str | None:
    """Return what is wrong and what to do where a directory without run.json holds what a run has written; else None.

    A new run.json would give all of that today's code and machine as its origin.
    """
    run = RunDir(path)
    if not any(part.exists() for part in (run.episodes, run.checkpoints, run.episodes_jsonl)):
        return None
    return (
        f"{path} holds a run without {run.run_json.name}; bring that file back, or move the whole directory away to "
        "start anew"
    )


def state_of(
    path: Path,
    status: Mapping[str, Any] | None,
    *,
    job_of: Callable[[Path], tuple[State, str] | None] = lambda path: None,
    knows: Callable[[str], bool | None] = lease.squeue_knows,
) -> tuple[State, str]:
    """Return a run directory's state and why, from its own files first (its status.json is given), the queue second.

    A run is `running` only while its lease is held by a process that lives; status.json alone is believed about ends.
    """
    state = status.get("state") if status else None
    if state == "done":
        return "done", "finished"
    where = f"episode {status.get('episode', 0)} of {status.get('episodes_total', '?')}" if status else ""
    held = lease.look(path)
    if held is not None and held.why_alive(knows) is not None:
        # A job put back into the queue (its node failed) keeps the lease and has no process. Where squeue is silent,
        # "waiting" would only say that nobody knows.
        job = job_of(path) if held.owner.slurm_job and knows(held.owner.slurm_job) else None
        if job is not None and job[0] == "waiting":
            return job
        return "running", f"{where or 'starting'}, {held.owner}"
    job = job_of(path)
    if job is not None:
        return job
    if status is None:
        return "new", "never started"
    if state == "failed":
        return "failed", str(status.get("error") or "no error recorded")
    if lost := RunDir(path).lost_checkpoint():
        return "failed", lost
    if state == "stopped":
        return "resume", f"stopped at {where}"
    by = f" ({held.owner})" if held is not None else ""
    return "resume", f"ended without a word at {where}{by}"


def write(plan: Plan) -> None:
    """Write, or add to, runs/<preset>/plans/<suite>.json: what the suite expects, for status and report.

    Seeds asked for earlier stay in it; `--seeds 3` and then `--seeds 3:5` expect five.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        earlier = read(plan.file)
    except ValueError:
        earlier = {}  # damaged: it is only a list of what was asked, so it is made anew
    runs = {(r["variant"], r["task"], r["seed"]): r for r in earlier.get("runs", [])}
    same = {(s["variant"], s["task"], s["seed"]): s for s in earlier.get("same", [])}
    for run in plan.runs:
        path = os.path.relpath(run.path, plan.folder)
        runs[run.variant, run.task, run.seed] = {
            "variant": run.variant, "task": run.task, "seed": run.seed, "path": path
        }  # fmt: skip
    for s in plan.same:
        same[s.variant, s.task, s.seed] = {
            "variant": s.variant, "task": s.task, "seed": s.seed, "same_as": s.run.variant
        }  # fmt: skip
    content = {
        "format": FORMAT, "suite": plan.suite, "preset": plan.preset, "runs": list(runs.values()),
        "same": list(same.values()),
    }  # fmt: skip
    try:
        plan.file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot make the folder of runs ({error.strerror}); choose --runs", str(plan.file.parent)
        ) from error
    write_atomic(plan.file, (json.dumps(content, indent=1) + "\n").encode())


_ROWS: dict[str, dict[str, type]] = {
    "runs": {"variant": str, "task": str, "seed": int, "path": str},
    "same": {"variant": str, "task": str, "seed": int, "same_as": str},
}


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return a plan file's `runs` and `same`; empty where there is no such file.

    Raises:
        ValueError: damaged, or of another shape.
    """
    anew = "move it away, benchmarks/launch.py writes it anew"
    data = read_json(path, anew) or {}
    for name, fields in _ROWS.items():
        rows = data.get(name, [])
        if not isinstance(rows, list) or not all(
            isinstance(row, dict) and all(isinstance(row.get(key), kind) for key, kind in fields.items())
            for row in rows
        ):
            raise ValueError(f"{path} is damaged ({name} must be a list of objects with {', '.join(fields)}); {anew}")
    return data


def seeds_text(seeds: Sequence[int]) -> str:
    """Return `0-4, 7` for (0, 1, 2, 3, 4, 7)."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 2 else ", ".join(map(str, p)) for p in parts)


def rows(items: Sequence[Item]) -> list[tuple[str, str, str, str, str]]:
    """Return the plan table: (variant, task, seeds, state, why), seeds of the same state and reason in one row."""
    groups: dict[tuple[str, str, State, str], list[int]] = {}
    for item in items:
        groups.setdefault((item.run.variant, item.run.task, item.state, item.why), []).append(item.run.seed)
    return [(variant, task, seeds_text(seeds), state, why) for (variant, task, state, why), seeds in groups.items()]

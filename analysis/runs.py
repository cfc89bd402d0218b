"""Run directories -> tidy frames and what is wrong with them.

Knows the files of a run directory (run.json, config.toml, status.json, episodes.jsonl, metrics.jsonl, `format = 1`) and
the plan files beside them; imports nothing of `planet`, so that a report can be made where torch is not installed.
Rows are never invented and never averaged here: what cannot be used is left out and said, as a `Problem`.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportIndexIssue=false
# (pandas' own annotations lose the type of every selection)

from __future__ import annotations

import json
import math
import os
import re
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from analysis import shapes

FORMAT = 1
STALE_SECONDS = 600
"""A run that says `running` and has not been heard of for this long is called stale (the lease's own limit)."""

NO_MATTER = ("env.picture", "schedule.open_loop_episodes")
"""Settings that runs of one curve may differ in: pictures are looked at by how they were drawn, the other is of
predictions/ alone."""
LATER = {"planner.refit_clipped": True}
"""Settings that came after the first runs, with what those did: `planet.config.LATER`."""
EXECUTION = ("runtime.precision", "runtime.threads")
"""`--set` keys that name a run otherwise and change nothing of what it is about: how its numbers are computed."""
TASKS = ("cartpole_swingup", "reacher_easy", "cheetah_run", "finger_spin", "cup_catch", "walker_walk")
"""The paper's six tasks in the order of its figures; tasks of other names follow them alphabetically."""

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""`map`, or one that spreads the work over processes."""

Kind = Literal[
    "unusable", "duplicate", "missing", "failed", "stale", "short", "split", "mixed", "code", "torn", "stopped",
    "running",
]  # fmt: skip

PROBLEMS: dict[Kind, str] = {
    "unusable": "left out: files that cannot be used",
    "duplicate": "run twice",
    "missing": "missing: expected, no run directory yet",
    "failed": "failed",
    "stale": "stale: says it runs, silent for more than ten minutes",
    "short": "short: says it is done, with rows missing",
    "split": "not pooled: settings differ within one variant",
    "mixed": "pooled over tasks that are not alike",
    "code": "code: uncommitted changes, or something changed between two starts",
    "torn": "broken lines, skipped",
    "stopped": "stopped before the end",
    "running": "still running",
}
"""Every kind of problem with its heading, the worst first."""


class BadInput(ValueError):
    """The user's input cannot be worked with; the message is one clear sentence for the terminal."""


@dataclass(frozen=True, slots=True)
class Problem:
    kind: Kind
    where: str
    """Run, file or group of runs, as short as it is unique."""
    text: str
    preset: str = ""


def variant_of(recorded: str) -> str:
    """Return a variant without the keys that only say how it was computed: `base+runtime.precision=bfloat16` is base.

    What it is compared with, in the paper and here, is base's; precisions are kept apart as series of one variant.
    """
    name, *changes = recorded.split("+")
    return "+".join([name, *(change for change in changes if change.split("=")[0] not in EXECUTION)])


@dataclass(slots=True)
class Run:
    """One run directory, read."""

    path: Path
    preset: str
    recorded: str
    """The variant as run.json, plans and folders name it, with all `--set` keys."""
    task: str
    """The run's task; a group name such as `dmc6` for the multi-task agent."""
    seed: int
    record: dict[str, Any]
    """run.json."""
    config: dict[str, Any]
    """config.toml as nested tables."""
    status: dict[str, Any]
    """status.json, empty if there is none yet."""
    episodes: pd.DataFrame
    metrics: pd.DataFrame
    torn: int = 0
    """Lines of the two JSONL files that are not JSON (a kill in the middle of a write)."""
    repeated: int = 0
    """Episode rows that were there twice; the first is kept."""
    series: str = ""
    """The variant, plus the settings that differ where a variant's runs must not be pooled."""

    @property
    def variant(self) -> str:
        """Return what the run is about: `recorded` without what only says how it was computed."""
        return variant_of(self.recorded)

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.preset, self.recorded, self.task, self.seed

    @property
    def name(self) -> str:
        return f"{self.recorded}/{self.task}/seed_{self.seed}"

    @property
    def starts(self) -> list[dict[str, Any]]:
        return self.record.get("starts") or []

    def resolved(self, name: str, default: object) -> str:
        """Return a setting as the first start resolved it (`auto` in config.toml becomes a value there)."""
        return str((self.record.get("resolved") or {}).get(name, default))

    @property
    def precision(self) -> str:
        return self.resolved("precision", self.config["runtime"]["precision"])

    @property
    def picture(self) -> str:
        return self.resolved("picture", self.config["env"]["picture"])

    @property
    def renderer(self) -> str:
        """Return what drew the pictures at the first start that says so: a GPU's are not software's."""
        return next((str(start["renderer"]) for start in self.starts if start.get("renderer")), "")

    @property
    def device(self) -> str:
        """Return the accelerator's or processor's name at the first start, as far as it is known."""
        for start in self.starts[:1]:
            gpus = start.get("gpus") or []
            if self.resolved("device", "cpu").startswith("cuda") and gpus:
                return str(gpus[0].get("name", "GPU"))
            return str(start.get("processor") or self.resolved("device", "cpu"))
        return self.resolved("device", self.config["runtime"]["device"])

    @property
    def commits(self) -> list[tuple[str, bool]]:
        """Return the distinct (commit, dirty) pairs of all starts, in order; commit "" where git was not there."""
        found: dict[tuple[str, bool], None] = {}
        for start in self.starts or [self.record]:
            git = start.get("git") or {}
            found[(str(git.get("commit") or ""), bool(git.get("dirty")))] = None
        return list(found)

    @property
    def code(self) -> str:
        """Return "" for clean commits, else what tells this run's code apart from a commit."""
        dirty = [commit for commit, is_dirty in self.commits if is_dirty]
        if not dirty:
            return ""
        hashes = dict.fromkeys(
            str(start["code_hash"]) for start in self.starts or [self.record] if "code_hash" in start
        )
        return f"uncommitted changes on {dirty[0][:7] or 'no commit'}" + (
            f" (code {', '.join(hashes)})" if hashes else ""
        )

    def settings(self) -> dict[str, Any]:
        """Return the configuration under dotted keys, without what may differ between the runs of one curve."""
        flat = {
            f"{section}.{key}": value
            for section, table in self.config.items() if isinstance(table, dict)
            for key, value in table.items()
        }  # fmt: skip
        return LATER | {
            key: value for key, value in flat.items() if not key.startswith("runtime.") and key not in NO_MATTER
        }

    @property
    def dynamics(self) -> str:
        return str(self.config["planner"].get("dynamics", "latent"))

    @property
    def max_return(self) -> float:
        """Return the most an episode can earn: dm_control gives at most 1 per environment step."""
        return float(self.config["env"]["episode_env_steps"])

    @property
    def episodes_total(self) -> int:
        """Return the episodes of the whole run: collected ones, or where nothing is learned those that are scored."""
        schedule = self.config["schedule"]
        if self.dynamics == "simulator":
            return self.eval_episodes
        return schedule["seed_episodes"] + schedule["train_episodes"]

    @property
    def train_episodes(self) -> int:
        """Return the episodes collected while learning; 0 where nothing is learned."""
        return 0 if self.dynamics == "simulator" else int(self.config["schedule"]["train_episodes"])

    @property
    def eval_episodes(self) -> int:
        return int(self.config["schedule"]["eval_episodes"])

    def eval_at(self) -> tuple[int, ...]:
        """Return the counts of collected episodes at which this run evaluates (design section 6)."""
        if self.dynamics == "simulator":
            return (0,)
        schedule = self.config["schedule"]
        first, total, points = schedule["seed_episodes"], schedule["train_episodes"], schedule["eval_points"]
        middles = {first + math.floor((k + 0.5) * total / points + 0.5) for k in range(points)}
        return tuple(sorted(middles | {first + total}))

    def evals(self) -> pd.DataFrame:
        return self.episodes[self.episodes["kind"] == "eval"]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the tasks its rows are about (several for the multi-task agent)."""
        found = [str(name) for name in self.episodes["task"].unique()]
        return tuple(sort_tasks(found)) if found else (self.task,)

    def resumed_at(self) -> list[int]:
        """Return the episode counts at which later starts went on, as the run's log says."""
        if len(self.starts) < 2:
            return []
        try:
            log = (self.path / "log.txt").read_text(errors="replace")
        except OSError:
            return []
        return [int(episode) for episode in re.findall(r"resumed at episode (\d{1,9})", log)]

    def state(self, now: float) -> str:
        """Return done, failed, stopped, running, stale or new; `stale` is judged by the heartbeat."""
        state = str(self.status.get("state", "new"))
        if state == "running" and now - float(self.status.get("heartbeat") or 0.0) > STALE_SECONDS:
            return "stale"
        return state


@dataclass(slots=True)
class Plan:
    """A suite's expected runs, as `launch.py` wrote them."""

    suite: str
    preset: str
    runs: list[tuple[str, str, int]]
    """(variant as recorded, task, seed)"""


@dataclass(slots=True)
class Results:
    """Everything the report is made from."""

    folders: list[Path]
    runs: list[Run] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    now: float = 0.0
    unusable: list[tuple[str, str, str, int]] = field(default_factory=list)
    """(preset, variant as recorded, task, seed) of runs that could not be read, as their paths say."""
    _frames: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)

    @property
    def presets(self) -> list[str]:
        order = {"paper": 0, "quick": 1, "smoke": 3}
        names = {run.preset for run in self.runs} | {plan.preset for plan in self.plans}
        names |= {preset for preset, *_ in self.unusable}
        return sorted(names, key=lambda name: (order.get(name, 2), name))

    def of(self, preset: str) -> Results:
        """Return the part of one preset: presets are never pooled."""
        return Results(
            folders=self.folders,
            runs=[run for run in self.runs if run.preset == preset],
            plans=[plan for plan in self.plans if plan.preset == preset],
            problems=[problem for problem in self.problems if problem.preset in ("", preset)],
            now=self.now,
            unusable=[key for key in self.unusable if key[0] == preset],
        )

    def expected(self) -> tuple[set[tuple[str, str, int]], bool]:
        """Return the (variant as recorded, task, seed) there should be, and whether plan files said so.

        Without a plan it is the closure of what is there: every task and every seed seen of a variant.
        """
        there = {(run.recorded, run.task, run.seed) for run in self.runs}
        there |= {(variant, task, seed) for _, variant, task, seed in self.unusable}
        if self.plans:
            return there | {entry for plan in self.plans for entry in plan.runs}, True
        seen: dict[str, tuple[set[str], set[int]]] = {}  # variant -> tasks, seeds
        for variant, task, seed in there:
            tasks, seeds = seen.setdefault(variant, (set(), set()))
            tasks.add(task)
            seeds.add(seed)
        return {(v, task, seed) for v, (tasks, seeds) in seen.items() for task in tasks for seed in seeds}, False

    def seeds_expected(self, variant: str, task: str) -> int:
        """Return how many seeds of a variant there should be on a task; rows of a multi-task run count for it."""
        expected, _ = self.expected()
        of_variant = [(t, seed) for recorded, t, seed in expected if variant_of(recorded) == variant]
        own = {seed for t, seed in of_variant if t == task}
        grouped = {seed for t, seed in of_variant if t not in TASKS and task in TASKS and t != task}
        return len(own | (grouped if not own else set()))

    def frame(self, kind: str = "eval") -> pd.DataFrame:
        """Return one row per episode of a kind, with the identity of its run; the tidy frame all else starts from."""
        if kind not in self._frames:
            self._frames[kind] = self._frame(kind)
        return self._frames[kind]

    def _frame(self, kind: str) -> pd.DataFrame:
        frames = [
            run.episodes.loc[run.episodes["kind"] == kind].assign(
                preset=run.preset, variant=run.variant, series=run.series, run_task=run.task, seed=run.seed,
                dynamics=run.dynamics, max_return=run.max_return, last_point=run.eval_at()[-1],
                eval_episodes=run.eval_episodes,
            )
            for run in self.runs
        ]  # fmt: skip
        frames = [frame for frame in frames if len(frame)]
        if not frames:
            columns = [
                *shapes.EPISODE_ROW, "preset", "variant", "series", "run_task", "seed", "dynamics", "max_return",
                "last_point", "eval_episodes", "hours",
            ]  # fmt: skip
            return pd.DataFrame({name: pd.Series(dtype=object) for name in columns})
        whole = pd.concat(frames, ignore_index=True)
        whole["hours"] = whole["wall_seconds"] / 3600
        return whole


def sort_tasks(names: Iterable[str]) -> list[str]:
    """Return the names in the paper's order, others behind."""
    order = {name: i for i, name in enumerate(TASKS)}
    return sorted(set(names), key=lambda name: (order.get(name, len(order)), name))


def load(
    folders: Sequence[Path], *, suite: str | None = None, now: float | None = None, mapper: Mapper = map
) -> Results:
    """Read every run directory below the folders.

    A run that cannot be used (another format, NaN returns, unreadable files) becomes a `Problem` of kind `unusable`.

    Args:
        suite: only this suite's plan says what is expected. mapper: `map`, or a process pool's.

    Raises:
        BadInput: a folder that is not there, or that holds neither a run directory nor a plan.
    """
    results = Results(folders=list(folders), now=time.time() if now is None else now)
    paths: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise BadInput(
                f"{folder} {what}; name a folder of runs, such as runs/smoke (python benchmarks/launch.py makes them)"
            )
        found = list(walk(folder))
        if not found:
            raise BadInput(
                f"{folder} holds no run directory (looked for run.json in all its subfolders); name a folder such as "
                "runs/smoke, or make runs with python benchmarks/launch.py --suite dmc6 --preset smoke"
            )
        paths += [path for kind, path in found if kind == "run"]
        results.plans += [plan for kind, path in found if kind == "plan" for plan in _read_plan(path, results.problems)]
    if suite is not None and any(plan.suite == suite for plan in results.plans):
        results.plans = [plan for plan in results.plans if plan.suite == suite]
    runs: dict[tuple[str, str, str, int], Run] = {}
    for path, read in zip(paths, mapper(_read_or_why, paths), strict=True):
        if isinstance(read, str):
            key = _key_of(path)
            if key is not None:
                results.unusable.append(key)
            where = "{1}/{2}/seed_{3}".format(*key) if key else str(path)
            results.problems.append(Problem("unusable", where, read, key[0] if key else ""))
        elif (first := runs.setdefault(read.key, read)).path.resolve() != path.resolve():
            text = f"{path} is the same run (preset, variant, task, seed) as {first.path}: only that is used"
            results.problems.append(Problem("duplicate", read.name, text, read.preset))
    results.runs = sorted(runs.values(), key=_run_order)
    _name_series(results)
    _find_problems(results)
    order = list(PROBLEMS)
    results.problems.sort(key=lambda p: (order.index(p.kind), p.preset))
    return results


def _key_of(path: Path) -> tuple[str, str, str, int] | None:
    """Return what `<preset>/<variant>/<task>/seed_<k>` says a run is, for runs whose own files cannot say it."""
    parts = path.resolve().parts[-4:]
    found = re.fullmatch(r"seed_(\d+)", parts[-1])
    return (*parts[:3], int(found[1])) if found and len(parts) == 4 else None


def _read_or_why(path: Path) -> Run | str:
    try:
        return read_run(path)
    except BadInput as error:
        return str(error)


def _run_order(run: Run) -> tuple[object, ...]:
    return (run.preset, run.variant != "base", run.recorded, *_task_key(run.task), run.seed)


def _task_key(task: str) -> tuple[int, str]:
    return (TASKS.index(task) if task in TASKS else len(TASKS), task)


def walk(folder: Path) -> Iterator[tuple[Literal["run", "plan"], Path]]:
    """Yield run directories, damaged ones too, and plan files; never descends into a run directory (episodes,
    checkpoints, videos)."""
    for top, folders, files in os.walk(folder):
        if _is_run(Path(top).name, files):
            folders.clear()
            yield "run", Path(top)
            continue
        folders.sort()
        if Path(top).name == "plans":
            for name in sorted(files):
                if name.endswith(".json"):
                    yield "plan", Path(top, name)


def _is_run(name: str, files: Sequence[str]) -> bool:
    """Return whether a folder of this name and files is a run directory, or one that has lost files.

    Without run.json a run has both other files, or one of them and a run's name: either alone may be anybody's.
    """
    others = {"config.toml", "episodes.jsonl"}.intersection(files)
    return "run.json" in files or len(others) > (0 if re.fullmatch(r"seed_\d+", name) else 1)


def _read_plan(path: Path, problems: list[Problem]) -> list[Plan]:
    try:
        data = _read(path, json.loads)
        _check(path, shapes.wrong(data, shapes.PLAN_JSON), "launch.py writes it anew")
    except BadInput as error:
        problems.append(Problem("unusable", str(path), str(error)))
        return []
    runs = [(run["variant"], run["task"], run["seed"]) for run in data["runs"]]
    return [Plan(data.get("suite") or path.stem, data.get("preset") or path.parents[1].name, runs)]


# ------------------------------------------------------------------------------------------------------ one run


def read_run(path: Path) -> Run:
    """Read one run directory.

    Raises:
        BadInput: a file is missing, cannot be read, is of another format or holds what a run does not write.
    """
    if not (path / "run.json").exists():
        raise BadInput(f"{path} holds a run without run.json; bring that file back, or move the directory away")
    record = _read(path / "run.json", json.loads)
    if not isinstance(record, dict) or "format" not in record:
        raise BadInput(f"{path / 'run.json'} has no format; it is not a run directory of this suite")
    if record["format"] != FORMAT:
        raise BadInput(
            f"{path / 'run.json'} has format {record['format']!r}; this report reads format {FORMAT}: use the "
            "version of the suite that made the run"
        )
    _check(path / "run.json", shapes.wrong(record, shapes.RUN_JSON))
    config = _read(path / "config.toml", tomllib.loads)
    _check(path / "config.toml", shapes.wrong(config, shapes.CONFIG_TOML))
    if (own := (config["task"], config["seed"])) != (said := (record["task"], record["seed"])):
        _check(path / "run.json", f"has task and seed {said}, where config.toml has {own}")
    status_file, status = path / "status.json", {}
    if status_file.exists():
        status = _read(status_file, json.loads)
        _check(status_file, shapes.wrong(status, shapes.STATUS_JSON))
    episode_rows, torn_episodes = read_jsonl(path / "episodes.jsonl")
    metric_rows, torn_metrics = read_jsonl(path / "metrics.jsonl")
    own_task = {"task": (record["task"],)} if record["task"] in TASKS else {}  # other agents have several
    _check(path / "episodes.jsonl", shapes.rows_wrong(episode_rows, shapes.EPISODE_ROW | own_task))
    _check(path / "metrics.jsonl", _metrics_wrong(metric_rows))
    episodes = pd.DataFrame({name: [row[name] for row in episode_rows] for name in shapes.EPISODE_ROW})
    whole = len(episodes)
    episodes = episodes.drop_duplicates(["task", "kind", "episode", "env_seed"], ignore_index=True)
    return Run(
        path=path,
        preset=record["preset"],
        recorded=record["variant"],
        task=record["task"],
        seed=record["seed"],
        record=record,
        config=config,
        status=status,
        episodes=episodes,
        metrics=pd.DataFrame(metric_rows),
        torn=torn_episodes + torn_metrics,
        repeated=whole - len(episodes),
    )


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        data = parse(path.read_bytes().decode())
        json.dumps(data, ensure_ascii=False, default=str).encode()  # half a surrogate pair could not be written again
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from None
    return data


def _check(path: Path, text: str, mend: str = "restore it, or remove the run and make it again") -> None:
    """Raise `BadInput` where there is something to say against a file."""
    if text:
        raise BadInput(f"{path} {text}; it was changed or is damaged: {mend}")


def read_jsonl(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows and the number of lines that are not JSON objects; ([], 0) if there is no such file."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error}") from None
    lines = text.splitlines()
    try:  # one parse for the whole file is several times faster than one a line
        rows = json.loads(f"[{','.join(lines)}]")
        if len(rows) == len(lines) and all(type(row) is dict for row in rows):
            return rows, 0
    except (ValueError, RecursionError):
        pass
    good: list[dict[str, Any]] = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            good.append(row)
    return good, len(lines) - len(good)


def _metrics_wrong(rows: list[dict[str, Any]]) -> str:
    for number, row in enumerate(rows, 1):
        if not all(map(shapes.is_number, row.values())):
            return f"row {number} {shapes.wrong(row, {'*': shapes.NUMBER})}"
    return ""


# ------------------------------------------------------------------------------- what may be pooled, what is wrong


LENGTH = ("schedule.train_episodes", "schedule.eval_points")
"""How long a run is and how often it is evaluated changes nothing of what it does until then."""


def _name_series(results: Results) -> None:
    """Give every run its series: runs of one variant with other settings, precision, picture or code are kept apart.

    Precision and length divide within a task only, where they would divide a curve; that tasks differ in them is said.
    A seed that a variant has twice on a task, computed in two ways, divides it by how it is recorded.
    """
    times = Counter((run.preset, run.variant, run.task, run.seed) for run in results.runs)
    twice = {key[:2] for key, n in times.items() if n > 1}
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in results.runs:
        both = (run.preset, run.variant)
        groups.setdefault((run.preset, run.recorded) if both in twice else both, []).append(run)
    for (preset, variant), runs in groups.items():
        keys = sorted(_differing(runs))
        precisions = _of_tasks(runs, lambda run: run.precision)
        lengths = _of_tasks(runs, lambda run: f"{run.settings().get(LENGTH[0], 'absent')} episodes")
        divided = any(len(found) > 1 for found in precisions.values())
        for run in runs:
            settings = run.settings()
            parts = [f"{key}={settings.get(key, 'absent')}" for key in keys]
            parts += [run.precision] if divided else []
            parts += [f"{run.picture} pictures"] if len({r.picture for r in runs}) > 1 else []
            parts += [run.code or "clean commits"] if len({r.code for r in runs}) > 1 else []
            run.series = " · ".join([variant, *parts])
        counts = Counter(run.series for run in runs)
        if len(counts) > 1:
            said = "; ".join(f"{name}: {n} run{'s' * (n > 1)}" for name, n in counts.items())
            text = f"runs of {variant} were not made alike, so they are drawn apart: {said}"
            results.problems.append(Problem("split", variant, text, preset))
        for what, of_tasks in (
            ("computed in one precision on some tasks and in another on others", precisions),
            ("planned with one length on some tasks and with another on others", lengths),
        ):
            if said := _said(of_tasks):
                text = f"runs of {variant} {what}: {said}"
                results.problems.append(Problem("mixed", variant, text, preset))


def _of_tasks(runs: Sequence[Run], value: Callable[[Run], str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for run in runs:
        found.setdefault(run.task, set()).add(value(run))
    return found


def _said(values: dict[str, set[str]]) -> str:
    """Return `value: its tasks; ...` where each task has one value and not all the same, else nothing."""
    tasks_of: dict[str, list[str]] = {}
    for task, found in values.items():
        if len(found) > 1:
            return ""
        tasks_of.setdefault(*found, []).append(task)
    if len(tasks_of) == 1:
        return ""
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in tasks_of.items())


def _differing(runs: Sequence[Run]) -> set[str]:
    """Return the settings in which runs of one variant differ; action repeats, of which each task has its own, and
    lengths within a task only."""
    settings = [run.settings() for run in runs]
    found = {key for other in settings[1:] for key in {*settings[0], *other} if settings[0].get(key) != other.get(key)}
    tasks = {run.task for run in runs}

    def one_for_each_task(key: str) -> bool:
        return len({(run.task, s.get(key)) for run, s in zip(runs, settings, strict=True)}) == len(tasks)

    return {key for key in found if key not in ("env.action_repeat", *LENGTH) or not one_for_each_task(key)}


def _find_problems(results: Results) -> None:
    for preset in results.presets:
        part = results.of(preset)
        expected, planned = part.expected()
        text = "planned, never started" if planned else "not there, though another task or seed of this variant is"
        there = {(run.recorded, run.task, run.seed) for run in part.runs}
        there |= {(variant, task, seed) for _, variant, task, seed in part.unusable}
        for variant, task, seed in sorted(expected - there):
            name = f"{variant}/{task}/seed_{seed}"
            results.problems.append(Problem("missing", name, text, preset))
        for run in part.runs:
            results.problems += _problems_of(run, results.now)


def _problems_of(run: Run, now: float) -> Iterator[Problem]:
    state, status = run.state(now), run.status
    progress = f"{int(status.get('episode') or 0)} of {run.episodes_total} episodes"
    points = run.eval_at()
    counts = Counter(zip(run.evals()["task"], run.evals()["episode"], strict=True))
    full = [p for p in points if all(counts[task, p] >= run.eval_episodes for task in run.tasks)]
    if state == "failed":
        reason = status.get("error") or "no reason given"
        yield Problem("failed", run.name, f"after {progress}: {reason}", run.preset)
    elif state == "stale":
        hours = (now - float(status.get("heartbeat") or 0.0)) / 3600
        silent = f"{hours:.1f} hours" if status.get("heartbeat") else "an unknown time"
        yield Problem("stale", run.name, f"silent for {silent} at {progress}; launch again to go on", run.preset)
    elif state == "stopped":
        yield Problem("stopped", run.name, f"at {progress}", run.preset)
    elif state in ("running", "new"):
        text = f"at {progress}" if state == "running" else "created, not begun"
        yield Problem("running", run.name, text, run.preset)
    elif state == "done" and len(full) < len(points):
        text = f"{len(full)} of {len(points)} evaluations are complete ({run.eval_episodes} episodes each)"
        yield Problem("short", run.name, text, run.preset)
    elif state == "done" and run.train_episodes and run.metrics.empty:
        yield Problem("short", run.name, "metrics.jsonl has no row", run.preset)
    if run.torn:
        yield Problem("torn", run.name, f"{run.torn} line{'s' * (run.torn > 1)} cannot be read as JSON", run.preset)
    if run.repeated:
        text = f"{run.repeated} episode rows are there twice (same kind, episode and start state); the first is used"
        yield Problem("duplicate", run.name, text, run.preset)
    if run.code:
        yield Problem("code", run.name, f"made with {run.code}", run.preset)
    changed = list(dict.fromkeys(what for start in run.starts for what in start.get("changed") or []))
    if changed:
        text = f"{len(run.starts)} starts, between which {', '.join(changed)} changed"
        yield Problem("code", run.name, text, run.preset)

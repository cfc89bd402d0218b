"""How a sweep is doing, from the run directories and one call of squeue; needs no accounting and no running launcher.

status.py [FOLDER ...]         one line per run: state, progress, last evaluation, rate, time to go, node, last error
status.py cancel FOLDER ...    end runs that wait or run (they save first)
status.py retry FOLDER ...     start failed runs, and those that died without a word, again from their last checkpoint
status.py logs RUN             what a run said, and the job it ran in

A folder is runs/ itself, runs/<preset>, any folder in it, or a single run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# This checkout's code, whichever one is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import dispatch, plan
from benchmarks.executors import machine, profile
from benchmarks.executors.pool import tail
from benchmarks.executors.queue import Queue, locked, warn
from benchmarks.plan import Item, Run, counted
from planet import lease
from planet.config import parse_changes
from planet.progress import duration
from planet.run_dir import RunDir

STATES = ("running", "waiting", "failed", "died", "stopped", "new", "done")
SILENT_SECONDS = 120.0
WATCH_SECONDS = 5.0
NOTE_WIDTH = 20
"""What `--watch` keeps for the note of a run at least."""
NO_RUNS = {"plans", "slurm"}
COMMANDS = ("cancel", "retry", "logs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One run as status tells it."""

    run: str
    """<preset>/<variant>/<task>/seed_<k>"""
    path: str
    state: str
    """running, waiting (in the queue), failed, died (ended without a word), stopped, new (never started), done."""
    why: str
    episode: int | None = None
    episodes_total: int | None = None
    last_return: float | None = None
    last_eval: float | None = None
    episodes_per_hour: float | None = None
    eta_seconds: float | None = None
    wall_seconds: float | None = None
    silent_seconds: float | None = None
    """Since the heartbeat of a run that is held to be running."""
    node: str | None = None
    job: str | None = None
    restarts: int = 0
    changed: tuple[str, ...] = ()
    """What was not the same at some restart: `code`, `versions`, `gpu`, ..."""
    error: str | None = None


def find(folder: Path, depth: int = 5) -> Iterator[Path]:
    """Yield the run directories in a folder, sorted; the folder itself if it is one."""
    if any((folder / name).exists() for name in ("run.json", "config.toml")):  # one without the other is damaged
        yield folder
        return
    if depth == 0 or not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and entry.name not in NO_RUNS)
    for name in sorted(names, key=_numbers_by_size):
        yield from find(folder / name, depth - 1)


def _numbers_by_size(name: str) -> tuple[str, int]:
    head, _, number = name.rpartition("_")
    return (head, int(number)) if number.isdigit() else (name, 0)


def runs_of(folder: Path, suite: str | None, damaged: Callable[[str], None] | None = None) -> list[Path]:
    """Return the run directories to speak of: those there, and those that plans in runs/<preset> expect.

    Args:
        damaged: is told of a plan that cannot be read, which is then left out; else that is an error.

    Raises:
        FileNotFoundError: no such folder, no runs in it, or no plan of this suite.
        ValueError: a damaged plan.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; benchmarks/launch.py makes runs/<preset>")
    files = sorted([*folder.glob("plans/*.json"), *folder.glob("*/plans/*.json")])
    if suite is not None:
        chosen = [path for path in files if path.stem == suite]
        if not chosen:
            known = ", ".join(sorted({path.stem for path in files})) or "none"
            raise FileNotFoundError(f"{folder} has no plan of suite {suite!r}; it has {known}")
        return list(_planned(chosen, None))
    found = list(dict.fromkeys([*find(folder), *_planned(files, damaged)]))
    if not found:
        raise FileNotFoundError(f"{folder} holds no runs; benchmarks/launch.py makes them")
    return found


def each_once(folders: Iterable[Path], suite: str | None, damaged: Callable[[str], None] | None = None) -> list[Path]:
    """Return the run directories of all folders, each once and in first-named order: one folder may lie in another.

    Arguments and errors are those of `runs_of`.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        for path in runs_of(folder, suite, damaged):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _planned(files: Iterable[Path], damaged: Callable[[str], None] | None) -> Iterator[Path]:
    for path in files:
        try:
            data = plan.read(path)
        except (OSError, ValueError) as error:
            if damaged is None:
                raise
            damaged(str(error))
            continue
        for run in data.get("runs", []):
            yield path.parents[1] / run["path"]


class Reader:
    """Reads rows again and again; a run that is done is read once."""

    def __init__(self) -> None:
        self._done: dict[Path, Row] = {}

    def rows(self, paths: Iterable[Path], damaged: Callable[[str], None] = warn) -> list[Row]:
        """Return the runs' rows; `damaged` is told of records of submissions that cannot be read."""
        queues: dict[Path, Queue] = {}
        rows: list[Row] = []
        for path in paths:
            if path in self._done:
                rows.append(self._done[path])
                continue
            preset_folder = preset_folder_of(path)
            if preset_folder not in queues:
                queues[preset_folder] = Queue.read(preset_folder, damaged)
            row = read(path, queues[preset_folder])
            if row.state == "done":
                self._done[path] = row
            rows.append(row)
        return rows


def read(path: Path, queue: Queue) -> Row:
    """Return one run's row; a damaged run directory is a row in state failed, not an error."""
    name = "/".join(path.parts[-4:])
    try:
        record = RunDir(path).record()
        if record is None and (lost := plan.lost_record(path)):
            raise ValueError(lost)
        status = RunDir(path).status() if record else None
        state, why = plan.state_of(path, status, job_of=queue.job_of, knows=queue.knows)
    except ValueError as error:
        return Row(run=name, path=str(path), state="failed", why=str(error), error=str(error))
    status = status or {}
    starts = (record or {}).get("starts", [])
    if state == "resume":
        state = "stopped" if status.get("state") == "stopped" else "died"
    held = lease.look(path) if state == "running" else None
    if held is not None and held.why_alive(queue.knows) is None:
        held = None  # the last owner's; what status.json says of pace is of then, too
    entry = queue.submission_of(path) if state in ("waiting", "running") else None
    last = starts[-1] if starts else {}
    return Row(
        run=name,
        path=str(path),
        state=state,
        why=why,
        episode=status.get("episode"),
        episodes_total=status.get("episodes_total"),
        last_return=status.get("last_return"),
        last_eval=status.get("last_eval"),
        episodes_per_hour=status.get("episodes_per_hour") if held else None,
        eta_seconds=status.get("eta_seconds") if held else None,
        wall_seconds=status.get("wall_seconds"),
        silent_seconds=round(held.silent_seconds, 1) if held else None,
        node=last.get("slurm", {}).get("nodename") or last.get("host"),
        job=held.owner.slurm_job if held and held.owner.slurm_job else (entry[1] or None) if entry else None,
        restarts=max(0, len(starts) - 1),
        changed=tuple(dict.fromkeys(what for start in starts for what in start.get("changed", ()))),
        error=why if state == "failed" else None,
    )


TITLES = ("run", "state", "episode", "eval", "ep/h", "to go", "node", "re", "note")


def cells(row: Row, width: int = 70) -> tuple[str, ...]:
    """Return a row as the table's texts."""
    note = row.error or ("" if row.state in ("done", "running") else row.why)
    if row.silent_seconds is not None and row.silent_seconds > SILENT_SECONDS:
        note = f"silent for {duration(row.silent_seconds)} " + note
    if row.changed:
        note = f"changed at a restart: {', '.join(row.changed)}. {note}"
    return (
        row.run,
        row.state,
        "" if row.episode is None else f"{row.episode}/{row.episodes_total or '?'}",
        "" if row.last_eval is None else f"{row.last_eval:.0f}",
        "" if row.episodes_per_hour is None else f"{row.episodes_per_hour:.0f}",
        "" if row.eta_seconds is None else duration(row.eta_seconds),
        (row.node or "") + (f" {row.job}" if row.job else ""),
        str(row.restarts or ""),
        note if len(note) <= width else note[: width - 1] + "…",
    )


def summary(rows: Sequence[Row]) -> str:
    """Return the counts, the pace and the time to go in one line."""
    counts = Counter(row.state for row in rows)
    text = f"{counted(len(rows), 'run')}: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    rate = sum(row.episodes_per_hour or 0 for row in rows)
    eta = max((row.eta_seconds or 0 for row in rows), default=0)
    return text + (f"; {rate:.0f} episodes an hour" if rate else "") + (f"; {duration(eta)} to go" if eta else "")


def table(rows: Sequence[Row]) -> str:
    """Return the plain table."""
    lines = [TITLES, *map(cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(TITLES))]
    return "\n".join("  ".join(f"{text:{w}}" for text, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def shortened(name: str, width: int) -> str:
    """Return the end of a run's name that has room in so many characters, at least `seed_10`."""
    width = max(width, 8)
    return name if len(name) <= width else "…" + name[1 - width :]


def watch(folders: Sequence[Path], suite: str | None) -> None:
    """Show a live table until Ctrl-C or until nothing runs or waits any more; the liveliest runs on top."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    reader, console = Reader(), Console()
    colours = {"running": "green", "failed": "red", "died": "red", "waiting": "yellow", "done": "dim"}
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            damaged: list[str] = []
            rows = reader.rows(each_once(folders, suite, damaged.append), damaged.append)
            shown = sorted(rows, key=lambda row: STATES.index(row.state))[: max(3, console.height - 5)]
            view = Table(box=None, padding=(0, 2, 0, 0))
            for title in TITLES:
                view.add_column(title, no_wrap=title != "note", overflow="ellipsis")
            texts = [cells(row, 200) for row in shown]
            widths = [max(map(len, column)) for column in zip(TITLES, *texts, strict=True)]
            # Where it is narrow only the names of runs are cut, and at their front: their ends tell the seeds apart.
            room = console.width - sum(widths[1:-1]) - min(NOTE_WIDTH, widths[-1]) - 2 * len(TITLES)
            for row, (name, *others) in zip(shown, texts, strict=True):
                view.add_row(*map(Text, (shortened(name, room), *others)), style=colours.get(row.state, ""))
            more = f"... and {len(rows) - len(shown)} more" if len(rows) > len(shown) else ""
            live.update(Group(view, Text(more), Text(summary(rows)), *map(Text, dict.fromkeys(damaged))), refresh=True)
            if not any(row.state in ("running", "waiting") for row in rows):
                return
            time.sleep(WATCH_SECONDS)


def cancel(paths: Sequence[Path]) -> int:
    """End runs that wait or run: Slurm jobs by scancel, local processes by SIGTERM, so that both save first.

    A launcher on this machine is asked itself where all of its runs are to end; it would begin the next one else. Only
    jobs that we submitted are cancelled: a local process may be in an allocation that is the user's own.

    Returns the exit code: 1 where a run could not be reached from here.
    """
    jobs: dict[str, list[str]] = {}
    unreachable = 0
    wanted, to_come = set(paths), set[Path]()
    sweeps = machine.sweeps()
    for sweep in sweeps:
        if sweep.runs <= wanted:  # first: it begins no run any more
            os.kill(sweep.pid, signal.SIGTERM)
            print(f"asked pid {sweep.pid} to begin no run any more")
    for preset_folder in dict.fromkeys(preset_folder_of(path) for path in paths):
        queue = Queue.read(preset_folder)
        for path in (p for p in paths if preset_folder_of(p) == preset_folder):
            try:
                status = RunDir(path).status()
            except ValueError:  # damaged: the lease and the queue say whether it is at work
                status = None
            state, why = plan.state_of(path, status, job_of=queue.job_of, knows=queue.knows)
            if state in ("new", "resume"):
                to_come.add(path)
            if state not in ("waiting", "running"):
                continue
            held = lease.look(path)
            alive = held is not None and held.why_alive(queue.knows) is not None
            entry = queue.submission_of(path)
            job = held.owner.slurm_job if held and alive else entry[1] if entry else None
            submission = next((s for s in queue.submissions if job in s.jobs), None)
            if job is not None and submission is not None and queue.knows(job) is not False:
                pack = submission.packs[submission.jobs.index(job)]
                jobs[job] = [name for name in pack if preset_folder / name not in wanted]
            elif held is not None and alive and not held.process_dead and held.here:
                os.kill(held.owner.pid, signal.SIGTERM)
                print(f"asked {'/'.join(path.parts[-4:])} ({held.owner}) to save and stop")
            else:
                print(f"cannot reach {'/'.join(path.parts[-4:])} from here: {why}", file=sys.stderr)
                unreachable += 1
    for sweep in sweeps:
        if (waiting := sweep.runs & to_come) and not sweep.runs <= wanted:
            print(
                f"pid {sweep.pid} will still begin {counted(len(waiting), 'run')} of these and has others; "
                f"kill {sweep.pid} stops all that it has (they save)",
                file=sys.stderr,
            )
            unreachable += 1
    ids = list(jobs)
    for i in range(0, len(ids), 500):
        part = ids[i : i + 500]
        answer = subprocess.run(["scancel", *part], capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            said = answer.stderr.strip() or f"exit code {answer.returncode}"
            more = f" and {len(part) - 1} more" if len(part) > 1 else ""
            print(f"status.py: scancel {part[0]}{more} failed: {said}; the same command tries again", file=sys.stderr)
            unreachable += len(part)
            continue
        for job in part:
            beside = f"; with it go {', '.join(jobs[job])}" if jobs[job] else ""
            print(f"scancel {job}{beside}")
    if not ids and not unreachable:
        print("nothing else waits or runs")
    return 1 if unreachable else 0


def retry(folders: Sequence[Path], suite: str | None, options: dispatch.Options) -> int:
    """Start failed and died runs again, with the configuration they have; return the exit code.

    One that cannot go on (damaged, or without its checkpoint) is told and is no obstacle to the others; the code is 1.
    """
    code = 0
    paths = each_once(folders, suite)
    for preset_folder in dict.fromkeys(preset_folder_of(path) for path in paths):
        executor = dispatch.choose(options, dry_run=False)
        with locked(preset_folder) if executor.submits else contextlib.nullcontext():
            queue = Queue.read(preset_folder)
            items: list[Item] = []
            for path in (p for p in paths if preset_folder_of(p) == preset_folder):
                row = read(path, queue)
                if row.state in ("failed", "died"):
                    try:
                        if lost := RunDir(path).lost_checkpoint():
                            raise ValueError(lost)
                        items.append(Item(run=_as_planned(path), state="failed", why=row.why))
                    except (OSError, ValueError) as error:
                        print(f"cannot go on: {error}", file=sys.stderr)
                        code = 1
            if not items:
                print(f"{preset_folder}: no run to start again")
                continue
            executor.describe(items, dry_run=False)
            if executor.submits:
                code = max(code, executor.start(items, preset_folder, suite or "retry"))
        if not executor.submits:
            code = max(code, executor.start(items, preset_folder, suite or "retry"))
    return code


def _as_planned(path: Path) -> Run:
    run = RunDir.open(path)
    record = run.run()
    run.status()  # a damaged one is told before anything starts
    return Run(
        preset=record["preset"], variant=record["variant"], task=record["task"], seed=record["seed"],
        config=run.config(), question=record.get("question", ""), path=path,
    )  # fmt: skip


def preset_folder_of(path: Path) -> Path:
    """Return the folder <runs>/<preset> of a run's absolute path, or / where a copy lies less deep."""
    return path.parents[min(2, len(path.parents) - 1)]


def logs(path: Path, size: int) -> str:
    """Return the end of all that is known of a run: its log, what its process printed, its job's own output."""
    run = RunDir(path)
    queue = Queue.read(preset_folder_of(path))
    row = read(path, queue)
    parts = [f"{row.run}: {row.state}, {row.why}"]
    files = [run.log, run.output]
    entry = queue.submission_of(path)
    if entry is not None:
        submission, job = entry
        files += [submission.output(job), submission.log(job)]
    for file in files:
        # A worker also prints what it logs, after its directory's name: once is enough.
        lines = [line for line in tail(file, size=size).splitlines() if not line.startswith(f"{path}: ")]
        text = "\n".join(lines).strip()
        if text:
            parts.append(f"==> {file}\n{text}")
    status = run.status() if run.run_json.exists() else None
    if status and status.get("traceback") and status["traceback"].strip() not in "\n".join(parts):
        parts.append(f"==> {run.status_json}: traceback\n{status['traceback'].strip()}")
    return "\n\n".join(parts)


def _parser(command: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=f"status.py {command}".strip(),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if command == "logs":
        p.add_argument("run", type=Path, help="a run directory")
        p.add_argument("--bytes", type=int, default=4000, help="how much of each file (default 4000)")
        return p
    needs_folder = command in ("cancel", "retry")
    p.add_argument("folders", type=Path, nargs="+" if needs_folder else "*", metavar="FOLDER", help="default runs/")
    p.add_argument("--suite", help="only what this suite's plan expects")
    if command == "retry":
        p.add_argument("--executor", choices=("auto", "slurm", "local", "inline"), default="auto")
        p.add_argument("--cluster", type=Path, metavar="FILE")
        p.add_argument("--cluster-set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
        p.add_argument("--max-parallel", type=dispatch.positive, metavar="N")
        p.add_argument("--runs-per-gpu", type=dispatch.positive, metavar="K")
    elif command == "":
        p.add_argument("--watch", action="store_true", help="a live table, until nothing runs or waits")
        p.add_argument("--json", action="store_true", help="the rows as a JSON list")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    command = words.pop(0) if words and words[0] in COMMANDS else ""
    close = difflib.get_close_matches(words[0], COMMANDS, n=1) if words and not command else []
    if close and not Path(words[0]).exists():
        print(f"status.py: no folder and no command {words[0]!r}; perhaps {close[0]}", file=sys.stderr)
        return 2
    arguments = _parser(command).parse_args(words)
    try:
        return _run(command, arguments)
    except BrokenPipeError:  # `status.py | head`
        return 0
    except (OSError, ValueError) as error:
        print(f"status.py: {error}", file=sys.stderr)
        return 2


def _run(command: str, arguments: argparse.Namespace) -> int:
    if command == "logs":
        path = Path(os.path.abspath(arguments.run))
        if not (path / "run.json").exists():
            raise FileNotFoundError(f"{arguments.run} is no run directory; status.py lists them")
        print(logs(path, arguments.bytes))
        return 0
    # Not Path.absolute(): the preset's folder is found by counting parents, and `..` is none.
    folders = [Path(os.path.abspath(folder)) for folder in arguments.folders or [Path("runs")]]
    if command == "retry":
        options = dispatch.Options(
            executor=arguments.executor,
            max_parallel=arguments.max_parallel,
            runs_per_gpu=arguments.runs_per_gpu,
            profile=profile.load(arguments.cluster, parse_changes(arguments.cluster_set, "--cluster-set")),
            profile_named=arguments.cluster is not None or bool(arguments.cluster_set),
        )
        return retry(folders, arguments.suite, options)
    if command == "cancel":
        return cancel(each_once(folders, arguments.suite))
    if arguments.watch:
        watch(folders, arguments.suite)
        return 0
    damaged: list[str] = []

    def tell(problem: str) -> None:
        if problem not in damaged:
            damaged.append(problem)
            print(f"status.py: {problem}", file=sys.stderr)

    rows = Reader().rows(each_once(folders, arguments.suite, tell), tell)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        print(table(rows))
        print(summary(rows))
    return 1 if damaged or any(row.state in ("failed", "died") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

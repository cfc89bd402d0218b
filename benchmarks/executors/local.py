"""Executes runs on this machine, as many at a time as there are slots, and shows how they go.

Ctrl-C once (also SIGTERM, or the terminal closing): every run saves and stops. Twice: all are ended at once. Either
way the same command goes on where they were. If the launcher itself is killed, its runs go on without it.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.executors.pool import Ended, Pool, Slot, Worker, train_command
from planet.progress import duration
from planet.run_dir import RunDir

LINE_EVERY_SECONDS = 60.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def execute(
    paths: Sequence[Path],
    slots: Sequence[Slot],
    *,
    names: Callable[[Path], str] = str,
    stream: TextIO | None = None,
    command: Callable[[Path], list[str]] = train_command,
) -> list[Ended]:
    """Run all and return how each that was begun ended; returns early, runs saved, when asked to stop."""
    pool = Pool(slots=slots, command=command, waiting=deque(paths))
    display = _Display(pool, total=len(paths), names=names, stream=stream or sys.stdout)
    with _signals(pool, display), display, pool:
        while True:
            begun, ended = pool.step()
            for result in ended:  # first: their slots are what others began in
                display.ended(result)
            for worker in begun:
                display.begun(worker)
            if pool.finished:
                return pool.ended
            display.refresh()
            pool.wait(0.5)


@contextmanager
def _signals(pool: Pool, display: _Display) -> Iterator[None]:
    """Turn the first signal into "save and stop", the second into "end"; put the old handlers back afterwards."""
    count = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count == 1:
            display.say("stopping: every run saves; once more to end them at once (the last checkpoints stay)")
            pool.stop()
        else:
            pool.kill()

    # A signal that is ignored stays so: nohup means it.
    before = {n: signal.signal(n, handle) for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Display:
    """A live table in a terminal; elsewhere a line when a run begins or ends, and one a minute."""

    def __init__(self, pool: Pool, *, total: int, names: Callable[[Path], str], stream: TextIO) -> None:
        self._pool, self._total, self._names = pool, total, names
        self._console = Console(file=stream, highlight=False)
        self._counts: dict[str, int] = {}
        self._last_line = time.monotonic()
        self._live: Live | None = None
        self._bar = Progress(
            TextColumn("[bold]runs"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
        )
        self._bar_task = self._bar.add_task("", total=total)
        if stream.isatty():
            self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=2)

    def __enter__(self) -> _Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def begun(self, worker: Worker) -> None:
        if worker.killed_by:
            self.say(f"again   {self._names(worker.path)} (killed by {worker.killed_by})")
        elif not self._live:
            self.say(f"begun   {self._names(worker.path)}")

    def ended(self, result: Ended) -> None:
        self._counts[result.outcome] = self._counts.get(result.outcome, 0) + 1
        self._bar.update(self._bar_task, advance=1, description=self._summary())
        text = f"{result.outcome:7} {self._names(result.path)}"
        if result.outcome == "done":
            status = RunDir(result.path).status() or {}
            score = status.get("last_eval")
            text += f"  {duration(status.get('wall_seconds'))}" + ("" if score is None else f", evaluation {score:.0f}")
        else:
            text += f"  {result.message}"
        if result.outcome == "failed":
            text += f"\n        all of it: {RunDir(result.path).output}"
        if not self._live or result.outcome != "done":
            self.say(text)

    def refresh(self) -> None:
        if self._live is None and time.monotonic() - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            statuses = [RunDir(worker.path).status() or {} for worker in self._pool.workers]
            rate = sum(status.get("episodes_per_hour") or 0 for status in statuses)
            done = sum(self._counts.values())
            pace = f", {rate:.0f} episodes an hour in all" if rate else ""
            self.say(f"{done} of {self._total} runs ended, {len(statuses)} at work{pace}")

    def _summary(self) -> str:
        return ", ".join(f"{count} {outcome}" for outcome, count in self._counts.items())

    def _table(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("at work", "episode", "env steps", "return", "evaluation", "to go"):
            table.add_column(title, justify="left" if title == "at work" else "right")
        shown = self._pool.workers[: max(4, self._console.height - 8)]
        for worker in shown:
            status = RunDir(worker.path).status() or {}
            episode = f"{status.get('episode', 0)}/{status.get('episodes_total', '?')}" if status else "starting"
            table.add_row(
                self._names(worker.path),
                episode,
                str(status.get("env_steps", "")),
                _number(status.get("last_return")),
                _number(status.get("last_eval")),
                duration(status["eta_seconds"]) if status.get("eta_seconds") is not None else "",
            )
        if len(self._pool.workers) > len(shown):
            table.add_row(f"... and {len(self._pool.workers) - len(shown)} more")
        return Group(table, self._bar)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"

"""What a person sees while a run works: a progress bar in a terminal, plain lines elsewhere, always a log file."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def duration(seconds: float | int | None) -> str:
    """Return `3 d 4 h`, `2 h 05 min`, `4 min 10 s`, `12 s`, or `?` for None."""
    if seconds is None:
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h} h"
    if hours:
        return f"{hours} h {m:02d} min"
    return f"{minutes} min {s:02d} s" if minutes else f"{s} s"


class Display:
    """Shows one run's progress; use as a context manager.

    Lines go to the log file always, and to `stream` when it is no terminal. In a terminal a bar is drawn instead, and
    lines appear above it.
    """

    def __init__(self, log: Path, *, title: str, total: int, stream: io.TextIOBase | None = None) -> None:
        self._stream: Any = sys.stdout if stream is None else stream
        self._file = log.open("a", buffering=1)
        self._title = title
        self._bar: Progress | None = None
        self._task = None
        if self._stream.isatty():
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeElapsedColumn(),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task(title, total=total, detail="starting")

    def __enter__(self) -> Display:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._file.close()

    def line(self, text: str) -> None:
        """Say something once, with the time before it."""
        stamped = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
        self._file.write(stamped + "\n")
        if self._bar is None:
            print(f"{self._title}: {text}", file=self._stream, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def advance(self, completed: int, detail: str) -> None:
        """Move the bar; nothing is printed where there is none."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=completed, detail=detail)

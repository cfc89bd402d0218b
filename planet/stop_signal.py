"""Asking a run to stop: SIGINT, SIGTERM and SIGUSR2 only raise a flag, which the run looks at where saving is safe.

A handler runs between any two bytecodes, perhaps in the middle of a save; so it saves nothing itself. Slurm sends
SIGUSR2 before a time limit or a preemption (through `--signal`), SIGTERM on `scancel` and without a user signal.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_STOPPED = 75
"""A run that saved and stopped on request: EX_TEMPFAIL, "try again later"."""

EXIT_HELD = 69
"""The run belongs to another process that lives; nothing was touched: EX_UNAVAILABLE."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class StopSignal:
    """The flag. `install()` once in the main thread; then `requested` is None or the name of the first signal.

    A second SIGINT ends the process at once, unsaved: for a user whose run does not come to a safe point.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._interrupts = 0
        self._previous: dict[signal.Signals, object] = {}

    def install(self) -> StopSignal:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def uninstall(self) -> None:
        """Put back the handlers that were there before `install`."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._previous.clear()

    def __enter__(self) -> StopSignal:
        return self.install()

    def __exit__(self, *_: object) -> None:
        self.uninstall()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGINT)
        if self.requested is None:
            self.requested = signal.Signals(number).name

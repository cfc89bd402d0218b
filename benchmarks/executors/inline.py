"""Executes runs one after the other in this very process: for a debugger, and for machines that allow no other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.executors.pool import Ended
from planet.run_dir import RunDir
from planet.stop_signal import EXIT_DONE, EXIT_HELD, EXIT_STOPPED


def execute(paths: Sequence[Path]) -> list[Ended]:
    """Run each to its end, or until one is asked to stop (Ctrl-C once); return how those that were begun ended."""
    os.environ.setdefault("LP_NUM_THREADS", "0")
    from planet.train import train  # torch is loaded here, and only here

    ended: list[Ended] = []
    for path in paths:
        code = train(path)
        if code == EXIT_DONE:
            ended.append(Ended(path, "done", "done"))
        elif code == EXIT_STOPPED:
            ended.append(Ended(path, "stopped", "stopped; everything is saved"))
            break
        elif code == EXIT_HELD:
            ended.append(Ended(path, "held", "held by another process"))
        else:
            run = RunDir(path)
            error = (run.status() or {}).get("error") or run.lost_checkpoint() or f"exit code {code}"
            ended.append(Ended(path, "failed", str(error)))
    return ended

"""Runs `planet.train` and sends it a signal at a named point: `killed_run.py RUN_DIR OWNER.METHOD COUNT SIGNAL`.

Just before the COUNTth call of the method, SIGKILL ends the process, SIGUSR2 asks it to stop.
"""

import os
import signal
import sys
from pathlib import Path


def signal_before(owner: object, name: str, count: int, number: int) -> None:
    original, calls = getattr(owner, name), 0

    def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(owner, name, wrapper)


def main() -> int:
    path, point, count, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), signal.Signals[sys.argv[4]]
    from planet import checkpoint, train
    from planet.agent import Agent
    from planet.episode_store import EpisodeStore
    from planet.learner import Learner
    from planet.run_dir import Recorder

    owners = {
        "Learner": Learner, "Agent": Agent, "EpisodeStore": EpisodeStore, "Recorder": Recorder, "checkpoint": checkpoint,  # noqa: E501
    }  # fmt: skip
    owner, method = point.split(".")
    signal_before(owners[owner], method, count, number)
    return train.main([str(path)])


if __name__ == "__main__":
    sys.exit(main())

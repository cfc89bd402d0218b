"""What a run's process holds in memory, measured in a process of its own. For `test_memory`.

`memory_run.py RUN_DIR` runs the run and prints a JSON list with the resident bytes after each trained episode, those of
the replay's frames so far left out. `memory_run.py` alone prints the most bytes that a full paper-size replay, two
updates and two decisions take.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from planet.agent import Agent
from planet.learner import Learner
from planet.presets import resolve
from planet.replay import Replay, memory_bytes
from planet.train import Trainer, train
from planet.world_model import WorldModel


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def after_each_episode(path: Path) -> list[int]:
    sizes: list[int] = []
    write_row: Any = Trainer._write_row

    def and_measure(trainer: Trainer) -> None:
        write_row(trainer)
        gc.collect()
        sizes.append(resident() - memory_bytes(trainer.replay.num_frames, trainer.action_size))

    setattr(Trainer, "_write_row", and_measure)  # noqa: B010
    assert train(path) == 0
    return sizes


def most_at_paper_size() -> int:
    config = resolve("walker_walk")  # R = 2: the longest episodes, and the most action elements
    frames, actions, device = 1005 * 501, 6, torch.device("cpu")
    replay = Replay(frames=frames, episodes=1005, action_size=actions)
    for array in (replay._obs, replay._action, replay._reward):
        array.fill(0)  # takes the pages
    replay._num_episodes, replay._first = 1005, np.arange(1006) * 501
    learner = Learner(WorldModel(config.model, config.objective, actions), config.optimizer, device)
    agent = Agent(learner.world_model, config.planner, action_size=actions, precision="float32")
    state = agent.start([torch.Generator() for _ in range(config.schedule.eval_episodes)])
    for number in range(2):
        batch = replay.sample(config.batch.size, config.batch.chunk, np.random.default_rng(number))
        learner.update(batch, torch.Generator())
    agent.act(state, np.zeros((config.schedule.eval_episodes, 3, 64, 64), np.uint8), action_noise=0.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(after_each_episode(Path(sys.argv[1])) if len(sys.argv) > 1 else most_at_paper_size()))

"""Checkpoints and episodes on their way to the disk and back, beside the plain way of torch and numpy.

    make bench    or    pytest benchmarks/speed/test_disk.py --benchmark-only -o addopts=

The machine's limit is that of as many bytes, written in the same run. Wall time, since a disk is waited for. What is
plain neither waits for the disk nor keeps the checkpoint before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.speed.beside import in_turns, record_disk_limit
from benchmarks.speed.test_model import config_of, model_of
from benchmarks.speed.test_replay import moving_episode
from planet import checkpoint
from planet.episode_store import EpisodeStore
from planet.learner import Learner
from planet.rollout import Episode

pytestmark = pytest.mark.benchmark(timer=time.perf_counter)


def measure(
    benchmark: Any, fast: Callable[[], object], plain: Callable[[], object], folder: Path, size: int, way: str
) -> None:
    if in_turns(benchmark, fast, plain, rounds=10, timer=time.perf_counter) is not None:
        record_disk_limit(benchmark, folder, size, way)


@pytest.mark.parametrize("way", ["write", "read"])
def test_checkpoint(benchmark: Any, way: str, tmp_path: Path) -> None:
    config = config_of("paper")
    learner = Learner(model_of(config), config.optimizer, torch.device("cpu"))
    for parameter in learner.world_model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step()  # makes its moments
    content, plain = {"learner": learner.state_dict()}, tmp_path / "plain.pt"
    size = checkpoint.save(tmp_path, content).stat().st_size
    torch.save(content, plain)
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "write": (lambda: checkpoint.save(tmp_path, content), lambda: torch.save(content, plain)),
        "read": (lambda: checkpoint.load(tmp_path), lambda: torch.load(plain, weights_only=True)),
    }

    measure(benchmark, *ways[way], tmp_path, size, way)


@pytest.mark.parametrize("way", ["write", "read"])
def test_episode(benchmark: Any, way: str, tmp_path: Path) -> None:
    store, episode, plain = EpisodeStore(tmp_path / "episodes"), moving_episode(0), tmp_path / "plain.npz"

    def save() -> None:
        np.savez_compressed(plain, obs=episode.obs, action=episode.action, reward=episode.reward)

    def load() -> Episode:
        with np.load(plain) as arrays:
            return Episode(arrays["obs"], arrays["action"], arrays["reward"])

    store.append(episode)
    save()
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "write": (lambda: store.append(episode), save),
        "read": (lambda: next(store.load()), load),
    }

    measure(benchmark, *ways[way], tmp_path, store.position()["bytes"], way)

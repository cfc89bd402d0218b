"""What a run takes of a machine's memory: known beforehand, and not growing."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planet.presets import resolve
from planet.replay import available_memory, memory_bytes
from planet.run_dir import RunDir

MEMORY_RUN = Path(__file__).parent / "memory_run.py"


def measure(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(MEMORY_RUN), *arguments],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_replay_of_the_longest_episodes_leaves_room_below_ten_gib() -> None:
    schedule = resolve("walker_walk").schedule
    episodes = schedule.seed_episodes + schedule.train_episodes

    size = memory_bytes(episodes * 501, 6)

    assert (episodes, size) == (1005, 503_505 * (3 * 64 * 64 + 4 * 6 + 4))  # 5.8 GiB
    assert size < 0.6 * 10 * 2**30


@pytest.mark.slow
def test_a_full_paper_size_replay_with_updates_and_decisions_stays_below_ten_gib() -> None:
    if available_memory() < 11 * 2**30:
        pytest.skip("this machine has less than 11 GiB of free memory")

    most = measure()

    assert 6 * 2**30 < most < 10 * 2**30, f"{most / 2**30:.2f} GiB"


@pytest.mark.slow
def test_two_hundred_episodes_take_no_more_than_forty(tmp_path: Path) -> None:
    changes = {
        "env.episode_env_steps": 48, "batch.chunk": 4, "objective.overshooting_distance": 4, "schedule.updates": 2,
        "schedule.train_episodes": 200, "schedule.eval_points": 4, "schedule.open_loop_episodes": 0,
        "runtime.device": "cpu", "runtime.checkpoint_seconds": 1.0,
    }  # fmt: skip
    config = resolve("cartpole_swingup", preset="smoke", changes=changes)
    run_dir = RunDir.create(tmp_path / "run", config, preset="smoke", variant="base")

    sizes = measure(str(run_dir.path))

    assert len(sizes) == 200
    growth = statistics.median(sizes[-20:]) - statistics.median(sizes[40:60])
    # An episode has 7 frames: one picture of each kept by mistake would be 1.6 MiB, a whole episode of each 11 MiB.
    assert growth < 1.5 * 2**20, f"{growth / 2**20:.2f} MiB more"

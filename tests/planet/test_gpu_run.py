"""On a GPU: whole runs, as a user starts them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_learning import ENVIRONMENT, MINIATURE
from test_train import create, start, tiny

from planet import checkpoint
from planet.run_dir import RunDir, read_jsonl

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]  # kernels are compiled first


def weights(run: RunDir) -> torch.Tensor:
    state = checkpoint.load(run.checkpoints)
    assert state is not None
    return torch.cat([x.flatten().cpu().float() for x in state["learner"]["world_model"].values()])


def test_a_run_ends_and_a_killed_one_goes_on_to_the_same_end(tmp_path: Path) -> None:
    changes = {"runtime.device": "cuda", "runtime.precision": "auto", "schedule.open_loop_episodes": 1}
    config = tiny(**changes, **{"schedule.updates": 8})  # enough for a resumed run to record its update
    unbroken, killed = (create(tmp_path / name / "seed_0", config) for name in ("unbroken", "killed"))
    done = start(unbroken.path)
    assert done.returncode == 0, done.stderr
    assert "no fused" not in unbroken.log.read_text()

    assert start(killed.path, "Agent.act", "40", "SIGKILL").returncode == -9
    done = start(killed.path)
    assert done.returncode == 0, done.stderr

    (ours, _), (theirs, _) = (read_jsonl(run.episodes_jsonl) for run in (killed, unbroken))
    assert [(row["kind"], row["env_seed"]) for row in ours] == [(row["kind"], row["env_seed"]) for row in theirs]
    # A run's first steps are not yet recorded graphs, so the last digits may depend on where it was killed; an update
    # moves a weight by up to 1e-3.
    torch.testing.assert_close(weights(killed), weights(unbroken), rtol=0, atol=1e-4)
    returns = [[row["return"] for row in rows] for rows in (ours, theirs)]
    np.testing.assert_allclose(*returns, rtol=1e-3)
    log = json.loads(unbroken.run_json.read_text())
    assert log["starts"][0]["renderer"], log


def test_an_agent_trained_there_beats_random_actions() -> None:
    done = subprocess.run(
        [sys.executable, str(MINIATURE), "--device", "cuda"],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])

    assert np.mean(result["acted"]) - np.mean(result["random"]) > 22, result

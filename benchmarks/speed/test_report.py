"""The report of a whole sweep: 300 full runs to a finished page. Limits: 60 s on two cores, 2 GiB of all processes.

There is no plainer way to the same page to compare with, and no rate of the machine that would limit reading,
resampling and drawing with Python's libraries.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import variants
from planet import presets
from planet.run_dir import Recorder, RunDir, run_path
from planet.tasks import TASKS

VARIANTS = (
    "base", "stochastic", "deterministic", "deterministic_official", "random_collection", "random_shooting",
    "overshooting", "drnn", "drnn_overshooting", "elu",
)  # fmt: skip
ROOT = Path(__file__).parents[2]
SEEDS, CORES = 5, 2
TERMS = ("loss", "image", "reward", "kl", "kl_raw", "grad_norm", "train_return", "prior_entropy", "posterior_entropy")
PHASES = ("train_seconds", "plan_seconds", "env_seconds", "eval_seconds", "cpu_seconds")


def full_run(path: Path, variant: str, task: str) -> None:
    """Write one run of the paper's length: 1,005 episodes, 21 evaluations, a row of metrics per trained episode."""
    config = presets.resolve(task, preset="paper", ablation=variants.load(variant).overrides)
    run = RunDir.create(path, config, preset="paper", variant=variant)
    run.record_start(device="cpu", precision="float32", threads=1, picture="exact", gl="osmesa")
    rng = np.random.default_rng(0)
    due = set(config.schedule.eval_at())
    with Recorder(run) as recorder:
        for episode in range(1, 1006):
            counters = {
                "episode": episode, "env_steps": 1000 * episode, "agent_steps": 250 * episode,
                "updates": 100 * max(0, episode - 5), "wall_seconds": 36.0 * episode,
            }  # fmt: skip
            kind = "seed" if episode <= 5 else "train"
            for k in range(1 + 10 * (episode in due)):
                row = {"task": task, "kind": "eval" if k else kind, **counters, "length": 250, "env_seed": k}
                recorder.append_episode({**row, "return": float(rng.uniform(0, 1000))})
            if episode > 5:
                values = rng.uniform(1, 10, len(TERMS) + len(PHASES)).tolist()
                recorder.append_metrics({**counters, **dict(zip((*TERMS, *PHASES), values, strict=True))})
        recorder.write_status(state="done", phase="train", episode=1005, episodes_total=1005, restarts=0, error=None)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 runs; the seeds of one variant and task have the same numbers, which costs a reader just as much."""
    runs = tmp_path_factory.mktemp("sweep")
    for variant in VARIANTS:
        for task in TASKS:
            first = run_path(runs, "paper", variant, task, 0)
            full_run(first, variant, task)
            for seed in range(1, SEEDS):
                other = run_path(runs, "paper", variant, task, seed)
                shutil.copytree(first, other)
                record = json.loads((other / "run.json").read_text())
                (other / "run.json").write_text(json.dumps({**record, "seed": seed}))
                text = (other / "config.toml").read_text()
                (other / "config.toml").write_text(text.replace("seed = 0\n", f"seed = {seed}\n", 1))
    return runs


def memory(session: int) -> int:
    """Return the bytes that all processes of a session hold; shared pages count for each."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                total += int((path / "statm").read_text().split()[1]) * resource.getpagesize()
        except OSError:
            continue  # ended meanwhile
    return total


def test_the_report_of_three_hundred_runs(benchmark, sweep: Path, tmp_path: Path) -> None:
    peaks, processor = [], []

    def report() -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "analysis.report", str(sweep), "--out", str(tmp_path / "report")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as running:
            peak = 0
            while running.poll() is None:
                peak = max(peak, memory(running.pid))
                time.sleep(0.2)
        assert running.returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        peaks.append(peak)
        processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    benchmark.pedantic(report, rounds=1)

    page = (tmp_path / "report" / "index.html").read_text()
    assert "300 of 300" in page and "walker_walk" in page
    if benchmark.stats is None:  # --benchmark-disable: only whether it runs
        return
    benchmark.extra_info |= {"processor seconds": round(processor[0], 1), "peak MiB": peaks[0] >> 20}
    # Processor time, so that a busy machine does not fail it; two cores give it in 60 s of wall time.
    assert processor[0] / CORES < 60
    assert peaks[0] < 2 << 30

"""Ten thousand runs: planning them and telling how they are. Limits: 10 s and 5 s, what a user would wait for.

There is no plainer way to do the same to compare with, and no rate of the machine: the time is Python's, over many
small files and configurations.
"""

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import plan, status
from benchmarks.plan import Plan
from benchmarks.suites import cells
from planet import lease, provenance
from planet.run_dir import RunDir

RUNS = 10_000
TASKS = ("cartpole_swingup", "cheetah_run", "walker_walk", "cup_catch")
VARIANTS = ("base", "stochastic", "overshooting", "elu", "horizon_6")


def expand(runs: Path) -> Plan:
    seeds = range(RUNS // len(TASKS) // len(VARIANTS))
    return plan.expand(cells(TASKS, VARIANTS), seeds, preset="smoke", runs=runs, suite="big")


def check(benchmark, statistic: str, limit: float) -> None:
    if benchmark.stats is not None:  # None: --benchmark-disable
        assert benchmark.stats[statistic] < limit


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Ten thousand run directories as a sweep leaves them: most are done, the rest at work, dead, failed."""
    runs = tmp_path_factory.mktemp("many")
    planned = expand(runs)
    plan.write(planned)
    first = RunDir.create(
        planned.runs[0].path, planned.runs[0].config, preset="smoke", variant="base", question="as others", suite="big"
    )
    first.record_start(device="cpu", precision="float32", threads=1, picture="exact", gl="egl")
    pattern, owner = first.run(), asdict(lease.this_process())
    states = ("done", "done", "done", "running", "failed", "stopped", "done", "running")
    for index, run in enumerate(planned.runs):
        run.path.mkdir(parents=True, exist_ok=True)
        (run.path / "config.toml").write_bytes(first.config_toml.read_bytes())
        record = {**pattern, "config_hash": plan.identity_hash(run.config), "variant": run.variant, "seed": run.seed}
        (run.path / "run.json").write_text(json.dumps(record))
        state = states[index % len(states)]
        (run.path / "status.json").write_text(
            json.dumps(
                {"format": 1, "state": state, "episode": 3, "episodes_total": 4, "heartbeat": time.time(), "pid": 1}
            )
        )
        (run.path / "lease").mkdir(exist_ok=True)
        if state == "stopped":
            (run.path / "checkpoints").mkdir(exist_ok=True)
            (run.path / "checkpoints" / "latest.pt").touch()
        alive = owner if index % 16 == 3 else {**owner, "process_start": 1, "released": state != "running"}
        (run.path / "lease" / "1.json").write_text(json.dumps(alive))
    yield runs
    shutil.rmtree(runs)


@pytest.mark.benchmark(timer=time.process_time)
def test_planning_ten_thousand_new_runs(benchmark, tmp_path):
    planned = benchmark.pedantic(lambda: plan.examine(expand(tmp_path)), rounds=3)

    assert len(planned) == RUNS and {item.state for item in planned} == {"new"}
    check(benchmark, "min", 10)


@pytest.mark.benchmark(timer=time.process_time)
def test_planning_ten_thousand_runs_that_are_there(benchmark, many):
    planned = benchmark.pedantic(lambda: plan.examine(expand(many)), rounds=3)

    assert {item.state for item in planned} == {"done", "running", "failed", "resume"}
    check(benchmark, "min", 10)


@pytest.mark.benchmark(timer=time.process_time)
def test_status_of_ten_thousand_runs(benchmark, many):
    rows = benchmark.pedantic(lambda: status.Reader().rows(status.runs_of(many / "smoke", None)), rounds=3)

    assert len(rows) == RUNS and {row.state for row in rows} == {"done", "running", "failed", "stopped", "died"}
    check(benchmark, "min", 5)


def test_the_patch_and_versions_are_looked_up_once(benchmark):
    provenance.of_code()

    benchmark(provenance.of_code)
    check(benchmark, "mean", 1e-3)

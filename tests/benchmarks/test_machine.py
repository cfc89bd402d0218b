import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cost
from benchmarks.executors import machine
from planet import processor
from planet.presets import resolve
from planet.run_dir import RunDir
from planet.world_model import WorldModel

ROOT = Path(__file__).parents[2]
SMOKE = resolve("cheetah_run", preset="smoke")
PAPER = resolve("walker_walk")


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 16)
    monkeypatch.setattr(machine, "free_bytes", lambda: 64 * 2**30)


def places(slots):
    return [slot.environment.get("CUDA_VISIBLE_DEVICES") for slot in slots]


def threads(slots):
    return {slot.environment["OMP_NUM_THREADS"] for slot in slots}


def test_without_a_gpu_every_core_is_a_slot_with_one_thread():
    slots, why = machine.slots([SMOKE] * 40, gpus=())

    assert len(slots) == 16 and threads(slots) == {"1"} and set(places(slots)) == {None} and why == "16 cores"
    assert {slot.environment["LP_NUM_THREADS"] for slot in slots} == {"0"}


def test_few_runs_share_all_cores():
    slots, _ = machine.slots([SMOKE] * 3, gpus=())

    assert len(slots) == 3 and threads(slots) == {"5"}


def test_each_gpu_takes_its_runs():
    slots, why = machine.slots([SMOKE] * 40, gpus=("0", "3"), runs_per_gpu=3)

    assert places(slots) == ["0", "3", "0", "3", "0", "3"] and threads(slots) == {"2"}
    assert why == "2 GPUs x 3 runs"


def test_memory_limits_what_was_not_asked_for():
    slots, why = machine.slots([PAPER] * 40, gpus=())

    need = (1005 * 501 * 12288 + machine.BYTES_BESIDE_REPLAY) / 2**30
    assert len(slots) == int(64 / need) == 9
    assert why == f"memory: a run needs up to {need:.1f} GiB, 64.0 GiB are free"
    assert len(machine.slots([PAPER] * 40, gpus=(), max_parallel=12)[0]) == 12


def test_a_containers_limit_counts(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("planet.replay._control_group_room", lambda: [3 * 2**20])

    assert machine.free_bytes() == 3 * 2**20


def test_more_at_a_time_than_gpus_share_them():
    slots, _ = machine.slots([SMOKE] * 40, gpus=("0", "1"), max_parallel=5)

    assert places(slots) == ["0", "1", "0", "1", "0"]


@pytest.mark.parametrize(
    ("value", "gpus"),
    [("", ()), ("-1", ()), ("NoDevFiles", ()), ("0,2", ("0", "2")), ("GPU-abc", ("GPU-abc",))],
)
def test_visible_gpus_are_those_cuda_may_see(monkeypatch, value, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)

    assert machine.visible_gpus() == gpus


def test_gpus_are_found_by_nvidia_smi(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    assert machine.visible_gpus() == ("0", "1")


def test_the_estimate_counts_updates_and_decisions():
    paper = cost.estimate(resolve("cheetah_run"), cost.GPU)

    assert paper.updates == 100_000
    # 1,000 collected episodes and 20 evaluations of 10, each of 250 decisions
    assert paper.decisions == (1000 + 20 * 10) * 250
    assert (
        cost.estimate(resolve("cheetah_run", changes={"schedule.collection": "random"}), cost.GPU).decisions == 50_000
    )


def test_the_estimate_grows_with_what_is_computed():
    base = cost.estimate(resolve("cheetah_run"), cost.CPU_CORE).hours
    wider = cost.estimate(resolve("cheetah_run", changes={"model.conv_depth": 64}), cost.CPU_CORE).hours
    deeper = cost.estimate(resolve("cheetah_run", changes={"planner.iterations": 20}), cost.CPU_CORE).hours

    assert base < wider and base < deeper
    assert cost.estimate(resolve("cheetah_run"), cost.GPU).hours < base / 20
    assert cost.estimate(resolve("cheetah_run", preset="quick"), cost.CPU_CORE).hours < base / 50
    assert cost.estimate(resolve("dmc6"), cost.GPU).hours > 5 * cost.estimate(resolve("cheetah_run"), cost.GPU).hours


def test_the_estimate_is_what_our_own_finished_runs_took():
    runs = [RunDir(path) for path in (ROOT / "results/quick/base/cartpole_swingup").glob("seed_*")]
    finished = [run for run in runs if (run.status() or {}).get("state") == "done"]

    assert finished
    for run in finished:
        last = json.loads(run.metrics_jsonl.read_text().splitlines()[-1])
        estimate = cost.estimate(run.config(), cost.CPU_CORE)
        assert estimate.updates == last["updates"]
        assert estimate.hours == pytest.approx(last["cpu_seconds"] / 3600, rel=0.2), run.path


def test_bfloat16_makes_updates_cheaper():
    hours = {
        precision: cost.estimate(
            resolve("cartpole_swingup", changes={"runtime.precision": precision}), cost.CPU_CORE
        ).hours
        for precision in ("bfloat16", "auto")
    }

    assert hours["bfloat16"] == hours["auto"] < cost.estimate(resolve("cartpole_swingup"), cost.CPU_CORE).hours


def test_a_core_without_bfloat16_takes_longer_and_auto_means_float32_there(monkeypatch):
    def hours(precision):
        quick = resolve("cartpole_swingup", preset="quick", changes={"runtime.precision": precision})
        return cost.estimate(quick, cost.core()).hours

    monkeypatch.setattr(processor, "flags", lambda: frozenset({"avx512_bf16"}))
    assert cost.core() is cost.CPU_CORE
    new = hours("auto")
    monkeypatch.setattr(processor, "flags", lambda: frozenset({"avx2"}))
    assert cost.core() is cost.OLDER_CPU_CORE
    assert hours("auto") == hours("float32") > 1.5 * new


def test_multiplications_of_one_update_by_hand():
    config = resolve("cheetah_run")
    frames = 50 * 50
    encoder = 16 * (3 * 32 * 31**2 + 32 * 64 * 14**2 + 64 * 128 * 6**2 + 128 * 256 * 2**2)
    decoder = 25 * 1024 * 128 + 25 * 128 * 64 * 5**2 + 36 * 64 * 32 * 13**2 + 36 * 32 * 3 * 30**2
    prior = (30 + 6) * 200 + 3 * 400 * 200 + 200 * 200 + 200 * 60
    posterior = (200 + 1024) * 200 + 200 * 60
    rest = 230 * 1024 + 230 * 200 + 200 * 200 + 200

    assert cost.update_multiplications(config, 6) == frames * (encoder + decoder + prior + posterior + rest)
    assert cost.decision_multiplications(config, 6) == 10 * 1000 * 12 * (prior + 230 * 200 + 200 * 200 + 200)


def counted(action):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


@pytest.mark.parametrize("transition", ["rssm", "ssm", "drnn"])
def test_multiplications_are_those_that_torch_counts(transition):
    sizes = {"conv_depth": 2, "stoch": 5, "deter": 12, "hidden": 10, "reward_units": 9}
    changes = {f"model.{name}": size for name, size in sizes.items()} | {
        "model.transition": transition, "batch.size": 3, "batch.chunk": 7, "objective.overshooting_distance": 4,
        "planner.candidates": 20, "planner.elite_fraction": 0.5, "planner.horizon": 3, "planner.iterations": 1,
        "runtime.precision": "float32",
    }  # fmt: skip
    config = resolve("cheetah_run", changes=changes)
    far = resolve("cheetah_run", changes=changes | {"objective.overshooting_scale": 1.0})
    generator = torch.Generator()
    model, far_model = (WorldModel(c.model, c.objective, 6, generator) for c in (config, far))
    obs, action, reward = torch.zeros(3, 7, 3, 64, 64, dtype=torch.uint8), torch.zeros(3, 7, 6), torch.zeros(3, 7)

    predictor = model.return_predictor(model.initial(1), candidates=20, horizon=3, generators=[generator])
    predictor.rollout = None  # its matrices have a row more, the biases
    decision = counted(lambda: predictor(torch.zeros(1, 20, 3, 6)))
    update, far_update = (
        counted(lambda m=m: m.loss(obs, action, reward, generator=generator)) for m in (model, far_model)
    )

    assert 2 * cost.decision_multiplications(config, 6) == decision
    overshooting = cost.update_multiplications(far, 6) - cost.update_multiplications(config, 6)
    assert 2 * overshooting == far_update - update
    if transition != "rssm":  # which filters with operations that torch does not count
        embed, start = torch.zeros(3, 7, 64), model.initial(3)
        noise = torch.zeros(3, 7, 5)
        observe = counted(lambda: model.transition.observe(embed, action, start, noise))
        assert 2 * 21 * cost._transition(config, 6).observe == observe


@pytest.mark.parametrize(
    ("hours", "text"), [(0.005, "18 s"), (0.5, "30 min"), (7.2, "7 h"), (47.9, "48 h"), (84.0, "3.5 days")]
)
def test_hours_are_told_in_a_unit_that_fits(hours, text):
    assert cost.text(hours) == text


ENDLESS = """
import sys, time
from pathlib import Path
from benchmarks.executors import machine
with machine.at_work([Path("a"), Path("b")]) as others:
    print(len(others), flush=True)
    time.sleep(60)
"""


def test_launchers_at_work_see_each_other_and_a_killed_one_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    other = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True, env=environment)
    assert other.stdout is not None and other.stdout.readline() == "0\n"

    with machine.at_work([Path("c")]) as others:
        assert others == [machine.Sweep(other.pid, frozenset([Path("a"), Path("b")]))]
        assert {sweep.pid for sweep in machine.sweeps()} == {other.pid, os.getpid()}
    assert machine.sweeps() == others

    other.kill()
    other.wait()
    other.stdout.close()
    assert machine.sweeps() == [] and not list(tmp_path.glob("*/*.json"))


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        # 100,000 updates, each of a chunk of 50
        ("update_step_seconds", 100_000 * 50),
        # decisions of 1,000 episodes one by one, of 20 evaluations ten at a time: 10 iterations of 12 steps
        ("plan_step_seconds", (1000 + 20) * 250 * 10 * 12),
        # 5 seed episodes, 1,000 collected ones and 20 evaluations of 10
        ("picture_seconds", (5 + 1000 + 200) * 250),
    ],
)
def test_each_fixed_time_is_counted_as_often_as_it_is_spent(seconds, count):
    times = {"update_step_seconds": 0.0, "plan_step_seconds": 0.0, "picture_seconds": 0.0, seconds: 0.001}
    rates = dict.fromkeys(("update_rate", "short_update_rate", "plan_rate"), math.inf)
    hardware = cost.Hardware(name="of fixed times", unit="core", **times, **rates)

    spent = 3600 * cost.estimate(resolve("cheetah_run"), hardware).hours - cost.START_SECONDS

    assert spent == pytest.approx(0.001 * count)


def test_a_planner_in_the_true_simulator_costs_what_it_steps_in_all_evaluation_episodes():
    estimate = cost.estimate(resolve("walker_walk", changes={"planner.dynamics": "simulator"}), cost.CPU_CORE)

    assert (estimate.updates, estimate.decisions) == (0, 10 * 500)
    # 10 iterations of 1,000 candidates of 12 decisions for each of ours, each of two control steps
    assert estimate.hours == pytest.approx(5000 * 10 * 1000 * 12 * 2 * 87e-6 / 3600)


def test_samples_and_another_action_repeat_are_in_the_estimate():
    paper, sampled = resolve("cheetah_run"), resolve("cheetah_run", changes={"planner.samples": 3})
    rare = resolve("cheetah_run", changes={"env.action_repeat": 8})

    assert cost.decision_multiplications(sampled, 6) == 3 * cost.decision_multiplications(paper, 6)
    assert cost.estimate(rare, cost.GPU).decisions == (1000 + 20 * 10) * 125


def test_an_hour_is_told_in_hours():
    assert cost.text(1.0) == "1 h" and cost.text(1 / 60) == "1 min"

"""The update and the decision of the paper's size on a GPU. Limits: those of an NVIDIA H200 with bfloat16 products; on
others, with TF32, and without the fused kernels, times are only noted.

pytest benchmarks/speed/test_gpu.py --benchmark-only -o addopts=
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.speed.test_model import ACTIONS, batch_of, config_of, model_of
from planet import fused, hardware
from planet.agent import Agent
from planet.cuda_graph import WARM_UP
from planet.device_replay import DeviceBatch
from planet.learner import Learner

triton = pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]

MILLISECONDS_AT_MOST = {"update": 8.0, "decision of 1": 4.0, "decision of 10": 10.0}


@pytest.fixture(autouse=True, params=["fused", "torch"])
def kernels(request: pytest.FixtureRequest, benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernels of `planet.fused`, and without."""
    hardware.use(torch.device("cuda:0"))  # before they are tried: in TF32, as a run takes them
    benchmark.extra_info["kernels"] = request.param
    if request.param == "torch":
        monkeypatch.setenv(fused.SWITCH, "0")  # pictures, too
    elif fused.tiles_for(torch.device("cuda:0"), (200, 200, 30), 50) is None:
        pytest.skip("Triton cannot compile here")


def measure(benchmark: Any, what: str, action: Any, precision: str = "") -> None:
    def and_wait() -> None:
        action()
        torch.cuda.synchronize()

    benchmark.pedantic(and_wait, rounds=50, warmup_rounds=WARM_UP + 5)
    if benchmark.stats is None:  # --benchmark-disable: only whether it runs
        return
    milliseconds, name = 1000 * benchmark.stats.stats.median, torch.cuda.get_device_name()
    benchmark.extra_info |= {"gpu": name, "milliseconds": round(milliseconds, 2)}
    best = precision == "bfloat16" and benchmark.extra_info["kernels"] == "fused"
    if what in MILLISECONDS_AT_MOST and "H200" in name and best:
        assert milliseconds <= MILLISECONDS_AT_MOST[what], f"{what}: {milliseconds:.1f} ms"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_update_on_a_gpu(benchmark: Any, precision: str) -> None:
    device, config = torch.device("cuda:0"), config_of("paper")
    hardware.use(device)
    learner = Learner(model_of(config), config.optimizer, device, precision)
    batch, generator = batch_of(config), torch.Generator(device).manual_seed(0)
    there = DeviceBatch(*(torch.from_numpy(x).to(device) for x in (batch.obs, batch.action, batch.reward)))

    measure(benchmark, "update", lambda: learner.update(there, generator), precision)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("envs", [1, 10])
def test_decision_on_a_gpu(benchmark: Any, envs: int, precision: str) -> None:
    device, config = torch.device("cuda:0"), config_of("paper")
    hardware.use(device)
    agent = Agent(model_of(config).to(device), config.planner, action_size=ACTIONS, precision=precision)
    state = agent.start([torch.Generator(device).manual_seed(n) for n in range(envs)])
    frames = np.zeros((envs, 3, 64, 64), np.uint8)

    def act() -> None:
        nonlocal state
        _, state = agent.act(state, frames, action_noise=0.3)

    measure(benchmark, f"decision of {envs}", act, precision)
